/**
 * What people see in a terminal: lines, one line that changes in place, bars, and the
 * same facts as plain lines when the output is a file or a pipe.
 */
import { styleText } from "node:util";

type Style = Parameters<typeof styleText>[0];

export class Output {
	readonly stream: NodeJS.WriteStream;
	/** Lines of the changing part that are on the screen now. */
	#liveLines = 0;
	#lastPlain = "";
	#lastPlainMs = Date.now();

	constructor(stream: NodeJS.WriteStream = process.stdout) {
		this.stream = stream;
	}

	/** Whether lines can be changed in place. */
	get isTerminal(): boolean {
		return this.stream.isTTY === true && process.env.TERM !== "dumb";
	}

	/** Colours only on a terminal, and not when NO_COLOR is set. */
	paint(style: Style, text: string): string {
		return styleText(style, text, { stream: this.stream });
	}

	line(text = ""): void {
		this.#eraseLive();
		this.stream.write(`${text}\n`);
		this.#lastPlainMs = Date.now();
	}

	/**
	 * Shows `lines` below everything said so far and replaces what was shown so
	 * before. Not on a terminal: says the lines once they have changed and nothing else
	 * was said for two seconds.
	 */
	live(lines: readonly string[]): void {
		if (this.isTerminal) {
			this.#eraseLive();
			const width = Math.max(20, (this.stream.columns || 80) - 1);
			const cut = lines.map((line) => cutToWidth(line, width));
			this.stream.write(`${cut.join("\n")}\n`);
			this.#liveLines = cut.length;
			return;
		}
		if (Date.now() - this.#lastPlainMs < 2000) return;
		this.#sayPlain(lines);
	}

	/** Ends the changing part: its last state stays. */
	settle(lines: readonly string[]): void {
		if (this.isTerminal) {
			this.live(lines);
			this.#liveLines = 0;
		} else this.#sayPlain(lines);
	}

	#sayPlain(lines: readonly string[]): void {
		const text = lines.join("\n");
		if (text === this.#lastPlain) return;
		this.#lastPlain = text;
		this.#lastPlainMs = Date.now();
		this.stream.write(`${text}\n`);
	}

	#eraseLive(): void {
		if (this.#liveLines === 0) return;
		this.stream.write(`\x1b[${this.#liveLines}A\r\x1b[J`);
		this.#liveLines = 0;
	}

	/** `█████░░░░░`, `done` of `total`; nothing at all where lines cannot change in place. */
	bar(done: number, total: number, width = 28): string {
		if (!this.isTerminal) return "";
		const full = total === 0 ? 0 : Math.floor((done / total) * width);
		return (
			this.paint(done >= total ? "green" : "cyan", "█".repeat(full)) +
			this.paint("dim", "░".repeat(width - full))
		);
	}
}

/** Cuts to `width` visible characters; colour codes count nothing and stay complete. */
export function cutToWidth(line: string, width: number): string {
	let seen = 0;
	let cut = "";
	// A colour code, or one character.
	// biome-ignore lint/suspicious/noControlCharactersInRegex: colour codes begin with one.
	for (const [part] of line.matchAll(/\x1b\[[0-9;]*m|./gu)) {
		if (part.startsWith("\x1b")) cut += part;
		else if (++seen <= width) cut += part;
	}
	return cut;
}

/** `512 B`, `384 KiB`, `1.2 GiB`. */
export function bytesText(bytes: number): string {
	const units = ["B", "KiB", "MiB", "GiB", "TiB"];
	let value = bytes;
	let unit = 0;
	while (value >= 1024 && unit < units.length - 1) {
		value /= 1024;
		unit++;
	}
	const digits = unit === 0 || value >= 100 || Number.isInteger(value) ? 0 : 1;
	return `${value.toFixed(digits)} ${units[unit]}`;
}

/** `0.4 s`, `12 s`, `3 min 05 s`. */
export function durationText(ms: number): string {
	if (ms < 9_950) return `${(ms / 1000).toFixed(1)} s`;
	const seconds = Math.round(ms / 1000);
	if (seconds < 60) return `${seconds} s`;
	return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
}

/** `1 device`, `200 devices`. */
export function counted(count: number, noun: string): string {
	return `${count.toLocaleString("en-GB")} ${noun}${count === 1 ? "" : "s"}`;
}

/** Two columns, the first as wide as its widest entry. */
export function columns(
	rows: readonly (readonly [string, string])[],
	indent = "  ",
): string {
	return aligned(rows)
		.map((line) => indent + line)
		.join("\n");
}

/**
 * Lines of a table: the headings, which are the keys of the first row, and a line for
 * each row.
 */
export function tableLines(rows: readonly Record<string, string>[]): string[] {
	const [first] = rows;
	if (!first) return [];
	return aligned([
		Object.keys(first),
		...rows.map((row) => Object.values(row)),
	]);
}

function aligned(rows: readonly (readonly string[])[]): string[] {
	const cells = rows.map((row) => row.map(oneLine));
	const widths = (cells[0] ?? []).map((_, column) =>
		Math.max(...cells.map((row) => displayWidth(row[column] ?? ""))),
	);
	return cells.map((row) =>
		row
			.map((cell, column) => {
				const gap = (widths[column] ?? 0) - displayWidth(cell);
				return cell + " ".repeat(Math.max(0, gap));
			})
			.join("  ")
			.trimEnd(),
	);
}

/**
 * What somebody wrote, fit for one cell: line breaks, tabs, escapes and what turns the
 * direction of writing would move everything behind it, so each becomes a blank.
 */
export function oneLine(text: string): string {
	return text.replace(
		/[\p{Cc}\p{Zl}\p{Zp}\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]/gu,
		" ",
	);
}

/** Shown with their neighbour, or not at all. */
const NO_CELL = /[\p{Mn}\p{Me}\p{Cf}]/u;
/** Two cells each: Unicode's East Asian Width W and F, as far as fonts have it so. */
const TWO_CELLS =
	/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}\p{Script=Bopomofo}\p{Script=Yi}\p{Emoji_Presentation}\u3000-\u303E\u30FC\u31C0-\u33FF\uFE30-\uFE6F\uFF01-\uFF60\uFFE0-\uFFE6]/u;
/** Narrow letters of those scripts. */
const HALF_WIDTH = /[\uFF61-\uFFDC\uFFE8-\uFFEE]/u;

/** How many cells of a terminal a text takes. */
export function displayWidth(text: string): number {
	let cells = 0;
	for (const sign of text)
		cells += NO_CELL.test(sign)
			? 0
			: TWO_CELLS.test(sign) && !HALF_WIDTH.test(sign)
				? 2
				: 1;
	return cells;
}
