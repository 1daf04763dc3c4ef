/**
 * The lines of a file that comes in pieces: a JSON value each, or a CSV record, which may
 * go over several lines. Knows where in the file it is, so that reading can go on there
 * another day, and finds back after a line that is broken.
 */
import { BYTE_ORDER_MARK, endOfRecord } from "./csv.ts";

export const LINE_LIMIT_BYTES = 64 * 1024;
/** Room for the longest line and a good piece of what follows. */
const WINDOW_BYTES = 4 * LINE_LIMIT_BYTES;
const LF = 0x0a;
const CR = 0x0d;
const MARK_BYTES = Buffer.from(BYTE_ORDER_MARK);

export type LineFault = "too_long" | "quotes";

export type FileLine =
	/** `bytes` without the line break; good until the window is filled again. */
	| { line: number; bytes: Buffer; fault?: undefined }
	| { line: number; fault: LineFault };

/** Between two lines. */
export interface FilePosition {
	bytes: number;
	/** How many lines are before it. */
	lines: number;
}

/**
 * Fill it with what the file has from `position` on, take the lines out, and fill it
 * again when there is none.
 */
export class LineSplitter {
	readonly #quoted: boolean;
	readonly #window = Buffer.allocUnsafeSlow(WINDOW_BYTES);
	#filled = 0;
	/** Where in the window the next line begins. */
	#at = 0;
	/** Where the next quote is; the end when there is none. */
	#quoteAt = -1;
	#complete = false;
	/** Inside a line that is too long: its beginning is not in the window any more. */
	#skippedBytes = 0;
	#bytes: number;
	#lines: number;

	constructor(format: "csv" | "ndjson", position: FilePosition) {
		this.#quoted = format === "csv";
		this.#bytes = position.bytes;
		this.#lines = position.lines;
	}

	/** After the line that was given out last. */
	get position(): FilePosition {
		return { bytes: this.#bytes, lines: this.#lines };
	}

	/** Where the next bytes of the file are to be put; tell `filled` how many they are. */
	room(): Buffer {
		this.#window.copyWithin(0, this.#at, this.#filled);
		this.#filled -= this.#at;
		this.#at = 0;
		this.#quoteAt = -1;
		return this.#window.subarray(this.#filled);
	}

	/** 0: the file has ended. */
	filled(byteCount: number): void {
		this.#filled += byteCount;
		this.#complete = byteCount === 0;
	}

	/** Undefined: the window must be filled, or the file has ended. */
	next(): FileLine | undefined {
		const data = this.#window.subarray(0, this.#filled);
		if (this.#bytes === 0 && !this.#passByteOrderMark(data)) return undefined;
		if (this.#at === data.length && this.#skippedBytes === 0) return undefined;
		const lineBreak = data.indexOf(LF, this.#at);
		const lineEnd = lineBreak === -1 ? data.length : lineBreak;
		if (this.#skippedBytes > 0 || lineEnd - this.#at > LINE_LIMIT_BYTES) {
			if (lineBreak === -1 && !this.#complete) {
				this.#skippedBytes += data.length - this.#at;
				this.#at = data.length;
				return undefined;
			}
			return this.#refuse(data, lineEnd, "too_long");
		}
		if (this.#quoted && this.#hasQuote(data, lineEnd))
			return this.#takeQuoted(data, lineBreak);
		if (lineBreak === -1 && !this.#complete) return undefined;
		return this.#take(data, lineEnd, 1);
	}

	/** The record may go on after the line break, inside a cell. */
	#takeQuoted(data: Buffer, lineBreak: number): FileLine | undefined {
		const end = endOfRecord(data, this.#at, this.#complete);
		if (typeof end === "number" && end - this.#at <= LINE_LIMIT_BYTES)
			return this.#take(data, end, countBreaks(data, this.#at, end) + 1);
		if (end === "open" && data.length - this.#at <= LINE_LIMIT_BYTES)
			return undefined;
		// One quote too many or too few must not take the lines that follow along.
		if (lineBreak === -1 && !this.#complete) return undefined;
		return this.#refuse(
			data,
			lineBreak === -1 ? data.length : lineBreak,
			"quotes",
		);
	}

	#take(data: Buffer, end: number, lines: number): FileLine {
		const line = this.#lines + 1;
		const withoutReturn =
			end > this.#at && data[end - 1] === CR ? end - 1 : end;
		const bytes = data.subarray(this.#at, withoutReturn);
		this.#pass(data, end, lines);
		return { line, bytes };
	}

	#refuse(data: Buffer, end: number, fault: LineFault): FileLine {
		const line = this.#lines + 1;
		this.#bytes += this.#skippedBytes;
		this.#skippedBytes = 0;
		this.#pass(data, end, 1);
		return { line, fault };
	}

	#pass(data: Buffer, end: number, lines: number): void {
		const next = Math.min(end + 1, data.length);
		this.#bytes += next - this.#at;
		this.#lines += lines;
		this.#at = next;
	}

	#hasQuote(data: Buffer, lineEnd: number): boolean {
		if (this.#quoteAt < this.#at) {
			const found = data.indexOf(0x22, this.#at);
			this.#quoteAt = found === -1 ? data.length : found;
		}
		return this.#quoteAt < lineEnd;
	}

	/** @returns false while it cannot be told whether there is one. */
	#passByteOrderMark(data: Buffer): boolean {
		if (this.#skippedBytes > 0) return true;
		const { length } = MARK_BYTES;
		if (data.length < length && !this.#complete) return false;
		if (data.subarray(0, length).equals(MARK_BYTES)) {
			this.#at = length;
			this.#bytes = length;
		}
		return true;
	}
}

function countBreaks(data: Buffer, start: number, end: number): number {
	let count = 0;
	for (let at = data.indexOf(LF, start); at !== -1 && at < end; count++)
		at = data.indexOf(LF, at + 1);
	return count;
}
