/** The part of a file that a `Range` header asks for (RFC 9110 section 14). */

/** `end` is exclusive. */
export interface ByteRange {
	start: number;
	end: number;
}

/**
 * @returns the range of a single-range header; `"whole"` when there is no header or
 * one that is to be ignored (several ranges, another unit, nonsense);
 * `"unsatisfiable"` when it lies outside the file.
 */
export function readRange(
	header: string | undefined,
	sizeBytes: number,
): ByteRange | "whole" | "unsatisfiable" {
	const match = /^bytes=[ \t]*(\d{0,15})-(\d{0,15})[ \t]*$/i.exec(header ?? "");
	if (!match) return "whole";
	const [, first = "", last = ""] = match;
	if (first === "") {
		if (last === "") return "whole";
		const length = Math.min(Number(last), sizeBytes);
		return length === 0
			? "unsatisfiable"
			: { start: sizeBytes - length, end: sizeBytes };
	}
	const start = Number(first);
	const end = last === "" ? sizeBytes : Number(last) + 1;
	if (end <= start && last !== "") return "whole";
	return start >= sizeBytes
		? "unsatisfiable"
		: { start, end: Math.min(end, sizeBytes) };
}

/** The value of a `Content-Range` header; without a range, that for one which cannot be served. */
export function contentRange(
	range: ByteRange | undefined,
	sizeBytes: number,
): string {
	return range
		? `bytes ${range.start}-${range.end - 1}/${sizeBytes}`
		: `bytes */${sizeBytes}`;
}
