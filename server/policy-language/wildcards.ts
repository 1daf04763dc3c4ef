/**
 * Patterns of policies: `*` stands for any number of characters, `?` for exactly one.
 * No regular expressions: whoever may write a policy must not be able to make every
 * request of its holders slow.
 */

/** The longest text a policy may hold, in UTF-16 code units; bounds what a pattern costs. */
export const POLICY_TEXT_LIMIT = 1_024;

export type Matcher = (text: string) => boolean;

/** Whether the pattern stands for any text at all, the empty one included. */
export function isAnything(pattern: string): boolean {
	return /^\*+$/.test(pattern);
}

/**
 * Cost of a match: length of the text times that of the longest piece between two stars,
 * at the very worst.
 */
export function compileWildcards(pattern: string): Matcher {
	if (isAnything(pattern)) return () => true;
	if (pattern.includes("?")) return compileWithSingles(pattern);
	const [prefix = "", ...rest] = pattern.split("*");
	const suffix = rest.pop();
	if (suffix === undefined) return (text) => text === pattern;
	const pieces = rest.filter((piece) => piece !== "");
	return (text) => {
		const end = text.length - suffix.length;
		if (prefix.length > end) return false;
		if (!text.startsWith(prefix) || !text.endsWith(suffix)) return false;
		let at = prefix.length;
		for (const piece of pieces) {
			// The leftmost place leaves most to what follows.
			const found = text.indexOf(piece, at);
			if (found < 0) return false;
			at = found + piece.length;
			if (at > end) return false;
		}
		return true;
	};
}

/** Counts characters as people do, in code points: `?` takes a whole one. */
function compileWithSingles(pattern: string): Matcher {
	const wanted = [...pattern];
	return (text) => {
		const given = [...text];
		let at = 0;
		let next = 0;
		// Where to go on when something does not fit: behind the last star, one further on.
		let afterStar = -1;
		let triedFrom = 0;
		while (at < given.length) {
			if (wanted[next] === "*") {
				next += 1;
				afterStar = next;
				triedFrom = at;
			} else if (wanted[next] === "?" || wanted[next] === given[at]) {
				next += 1;
				at += 1;
			} else if (afterStar >= 0) {
				next = afterStar;
				triedFrom += 1;
				at = triedFrom;
			} else return false;
		}
		while (wanted[next] === "*") next += 1;
		return next === wanted.length;
	};
}
