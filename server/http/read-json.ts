/**
 * JSON as the management API takes it: UTF-8 without faults, no key twice, no nesting
 * bombs, no text that no store keeps.
 */
import { ApiError, errors } from "../errors.ts";

const MAX_DEPTH = 100;
const utf8 = new TextDecoder("utf-8", { fatal: true });

/**
 * @param what is read, as a sentence about it begins
 * @returns undefined for an empty body.
 * @throws 400 IOTDA.000008 naming what is wrong.
 */
export function readJson(bytes: Uint8Array, what = "The body"): unknown {
	if (bytes.length === 0) return undefined;
	let text: string;
	try {
		text = utf8.decode(bytes);
	} catch {
		throw malformed(`${what} is not UTF-8.`);
	}
	const scan = scanJson(text);
	if (scan.depth > MAX_DEPTH)
		throw malformed(`${what} is nested deeper than ${MAX_DEPTH} levels.`);
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (cause) {
		throw malformed(`${what} is not JSON${place(cause)}.`, cause);
	}
	if (scan.repeatedKey !== undefined)
		throw malformed(
			`The key ${JSON.stringify(scan.repeatedKey)} occurs twice in one object.`,
		);
	if (scan.mayHoldHalves) refuseHalves(value, what);
	if (scan.hasPrototypeKey) dropPrototypeKeys(value);
	return value;
}

function malformed(detail: string, cause?: unknown): ApiError {
	return new ApiError(errors.invalidFormat, { detail, cause });
}

/** " at position 17", when the parser says so. */
function place(error: unknown): string {
	const match = /at position \d+/.exec(
		error instanceof Error ? error.message : "",
	);
	return match ? ` (${match[0]})` : "";
}

interface Scan {
	/** Deepest nesting of objects and lists. */
	depth: number;
	/** The first key that one object has twice. */
	repeatedKey: string | undefined;
	hasPrototypeKey: boolean;
	/** The text has escapes of surrogates, which may lack their other half. */
	mayHoldHalves: boolean;
}

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

/**
 * One pass over the brackets and texts, meant for what turns out to be JSON: for
 * anything else the answer is worthless but harmless, since the parser refuses it.
 * Texts are skipped by `indexOf`, so a list of 30,000 ids costs a millisecond.
 */
function scanJson(text: string): Scan {
	const scan: Scan = {
		depth: 0,
		repeatedKey: undefined,
		hasPrototypeKey: false,
		mayHoldHalves: /\\u[dD][89a-fA-F]/.test(text),
	};
	// One entry per open bracket: the keys of an object so far, undefined for a list.
	const open: (Set<string> | undefined)[] = [];
	let keyExpected = false;
	for (let i = 0; i < text.length; i++) {
		switch (text.charCodeAt(i)) {
			case QUOTE: {
				const end = endOfText(text, i);
				if (keyExpected) {
					keyExpected = false;
					const key = unescapeText(text.slice(i, end + 1));
					const keys = open.at(-1);
					if (keys?.has(key)) scan.repeatedKey ??= key;
					keys?.add(key);
					if (key === "__proto__") scan.hasPrototypeKey = true;
				}
				i = end;
				break;
			}
			case OPEN_OBJECT:
				open.push(new Set());
				keyExpected = true;
				break;
			case OPEN_LIST:
				open.push(undefined);
				keyExpected = false;
				break;
			case CLOSE_OBJECT:
			case CLOSE_LIST:
				open.pop();
				keyExpected = false;
				break;
			case COMMA:
				keyExpected = open.at(-1) !== undefined;
				break;
		}
		if (open.length > scan.depth) {
			scan.depth = open.length;
			if (scan.depth > MAX_DEPTH) return scan;
		}
	}
	return scan;
}

/** Index of the quote that ends the text beginning at `start`; the end when none does. */
function endOfText(text: string, start: number): number {
	for (let from = start + 1; ; ) {
		const quote = text.indexOf('"', from);
		if (quote === -1) return text.length;
		let backslashes = 0;
		while (text.charCodeAt(quote - 1 - backslashes) === BACKSLASH)
			backslashes++;
		if (backslashes % 2 === 0) return quote;
		from = quote + 1;
	}
}

/** Keys are compared as what they say: `"a"` and `"\u0061"` are one. */
function unescapeText(quoted: string): string {
	if (!quoted.includes("\\")) return quoted.slice(1, -1);
	try {
		return String(JSON.parse(quoted));
	} catch {
		return quoted;
	}
}

/** Half a surrogate pair is no character: a store would keep something else in its place. */
function refuseHalves(value: unknown, what: string): void {
	walk(value, (holder) => {
		for (const [key, item] of Object.entries(holder)) {
			if (
				!key.isWellFormed() ||
				(typeof item === "string" && !item.isWellFormed())
			)
				throw malformed(`${what} has a text with half a surrogate pair.`);
		}
	});
	if (typeof value === "string" && !value.isWellFormed())
		throw malformed(`${what} has a text with half a surrogate pair.`);
}

/** Unknown keys are ignored; this one would not be, by whoever copies the object. */
function dropPrototypeKeys(value: unknown): void {
	walk(value, (holder) => {
		if (Object.hasOwn(holder, "__proto__"))
			Reflect.deleteProperty(holder, "__proto__");
	});
}

/** Every object and list in the value, outermost first; the depth is limited by now. */
function walk(value: unknown, visit: (holder: object) => void): void {
	if (typeof value !== "object" || value === null) return;
	visit(value);
	for (const item of Object.values(value)) walk(item, visit);
}
