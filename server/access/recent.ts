/**
 * Remembers the latest of ever so many, in bounded memory: two halves, of which the older
 * is dropped whole when the younger is full. Dropping the oldest entry of a map one by one
 * would cost more the larger it is, since the map walks over all that were dropped before.
 */
export class Recent<V> {
	#young = new Map<string, V>();
	#old = new Map<string, V>();
	readonly #half: number;

	/** @param limit the most entries; the latest half of them is always there. */
	constructor(limit: number) {
		this.#half = Math.max(1, Math.ceil(limit / 2));
	}

	get(key: string): V | undefined {
		return this.#young.get(key) ?? this.#old.get(key);
	}

	set(key: string, value: V): void {
		if (this.#young.size >= this.#half && !this.#young.has(key)) {
			this.#old = this.#young;
			this.#young = new Map();
		}
		this.#young.set(key, value);
	}

	delete(key: string): void {
		this.#young.delete(key);
		this.#old.delete(key);
	}
}
