/** Ids made by the server: lower-case hex text. */
import { randomBytes } from "node:crypto";

const POOL_BYTES = 4_096;
let pool = Buffer.alloc(0);
let used = 0;

/**
 * A few random bytes, given out once. A page of them costs as much as one: 2 µs, and
 * memory outside of the heap.
 */
export function randomPiece(bytes: number): Buffer {
	if (used + bytes > pool.length) {
		// Those that were given out keep theirs.
		pool = randomBytes(Math.max(POOL_BYTES, bytes));
		used = 0;
	}
	used += bytes;
	return pool.subarray(used - bytes, used);
}

/** `bytes` random bytes as hex: 12 give the vendor's 24 digits, 16 its 32. */
export function randomHex(bytes: number): string {
	return randomPiece(bytes).toString("hex");
}

// 24 hex digits: 48 bits of milliseconds, 24 bits of a counter that starts anew
// with each millisecond, 24 bits that tell processes apart.
const process24 = randomBytes(3).toString("hex");
let lastMs = 0;
let counter = 0;

/**
 * A time-ordered record id, the `marker` of paging: an id made later in this
 * process is larger, whatever the clock does; between processes order is as good
 * as their clocks agree.
 */
export function newRecordId(now: Date): string {
	const ms = now.getTime();
	if (ms > lastMs) {
		lastMs = ms;
		counter = 0;
	} else if (++counter > 0xffffff) {
		lastMs++;
		counter = 0;
	}
	return (
		lastMs.toString(16).padStart(12, "0") +
		counter.toString(16).padStart(6, "0") +
		process24
	);
}
