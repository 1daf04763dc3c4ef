/**
 * Chance that repeats itself: everything a simulated fleet does by chance follows
 * from one seed, so that a rehearsal that went wrong can be run again.
 */

/** A stream of numbers in [0, 1) that depends on nothing but `seed` and `name`. */
export function randomStream(seed: number, name = ""): () => number {
	let state = hash32(name, seed);
	return () => {
		// A 32-bit Weyl sequence, mixed: short, fast, and far better than the few
		// hundred draws of one device need.
		state = (state + 0x9e3779b9) >>> 0;
		return mix(state) / 0x1_0000_0000;
	};
}

/** 0 to `count - 1`, each once, in an order that depends on nothing but `seed` and `name`. */
export function shuffledIndexes(
	count: number,
	seed: number,
	name: string,
): number[] {
	const random = randomStream(seed, name);
	const indexes = Array.from({ length: count }, (_, index) => index);
	for (let last = count - 1; last > 0; last--) {
		const other = Math.floor(random() * (last + 1));
		const swap = indexes[last] as number;
		indexes[last] = indexes[other] as number;
		indexes[other] = swap;
	}
	return indexes;
}

function hash32(text: string, seed: number): number {
	let hash = mix(seed >>> 0);
	for (let i = 0; i < text.length; i++) {
		hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
	}
	return mix(hash);
}

function mix(value: number): number {
	let mixed = value;
	mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
	mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
	return (mixed ^ (mixed >>> 15)) >>> 0;
}
