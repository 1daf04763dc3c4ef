/**
 * CSV as RFC 4180 has it: cells divided by commas, records by line breaks; a cell in
 * quotes may hold both, and quotes written twice.
 *
 * Not a library: those there are lose their place over a quote that is missing, and
 * take the lines that follow for one cell. Here one wrong line is one wrong line.
 */

/** In front of a file it tells spreadsheets that the file is UTF-8. */
export const BYTE_ORDER_MARK = "\ufeff";
const QUOTE = 0x22;
const COMMA = 0x2c;
const CR = 0x0d;
const LF = 0x0a;

/**
 * Where the record that begins at `start` ends: the index of its line break, or of the
 * end of the bytes. "open": the bytes end before that can be said. "malformed": quotes
 * stand where none may. `complete` says that nothing follows the bytes.
 */
export function endOfRecord(
	bytes: Buffer,
	start: number,
	complete: boolean,
): number | "open" | "malformed" {
	const { length } = bytes;
	let at = start;
	// Once per cell.
	for (;;) {
		if (bytes[at] === QUOTE) {
			for (;;) {
				at = bytes.indexOf(QUOTE, at + 1);
				if (at === -1) return complete ? "malformed" : "open";
				if (bytes[at + 1] !== QUOTE) break;
				at++;
			}
			at++;
			if (at === length && !complete) return "open";
		} else {
			while (at < length && bytes[at] !== COMMA && bytes[at] !== LF) {
				if (bytes[at] === QUOTE) return "malformed";
				at++;
			}
		}
		if (at >= length) return complete ? length : "open";
		if (bytes[at] === LF) return at;
		if (bytes[at] === COMMA) {
			at++;
			continue;
		}
		// After a quoted cell only the carriage return of a line break is left.
		if (bytes[at] !== CR) return "malformed";
		if (at + 1 === length) return complete ? length : "open";
		if (bytes[at + 1] !== LF) return "malformed";
		return at + 1;
	}
}

/** The cells of one record, without its line break, whose quotes are in order. */
export function readCells(record: string): string[] {
	if (!record.includes('"')) return record.split(",");
	const cells: string[] = [];
	for (let at = 0; at <= record.length; ) {
		if (record[at] !== '"') {
			const comma = record.indexOf(",", at);
			const end = comma === -1 ? record.length : comma;
			cells.push(record.slice(at, end));
			at = end + 1;
			continue;
		}
		let close = record.indexOf('"', at + 1);
		while (record[close + 1] === '"') close = record.indexOf('"', close + 2);
		cells.push(record.slice(at + 1, close).replaceAll('""', '"'));
		at = close + 2;
	}
	return cells;
}

/** One record with its line break. */
export function writeRecord(cells: readonly string[]): string {
	return `${cells.map(writeCell).join(",")}\r\n`;
}

function writeCell(text: string): string {
	return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/**
 * Spreadsheets compute a cell that begins with one of these signs, whoever wrote it. An
 * apostrophe in front makes it a text; one that was there already gets another, so that
 * `asText` and `fromText` undo each other.
 */
export function asText(cell: string): string {
	return /^'*[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell;
}

export function fromText(cell: string): string {
	return /^'+[=+\-@\t\r]/.test(cell) ? cell.slice(1) : cell;
}
