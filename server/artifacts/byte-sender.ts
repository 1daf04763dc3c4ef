/**
 * Hands artifacts to many readers at once, from buffers that are used again.
 *
 * Large writes are cheap in time and dear in memory. A buffer stays occupied until the
 * kernel has taken it, which a slow reader can delay for minutes, and Node's TLS keeps
 * two encrypted copies of the size of the largest write for as long as a connection
 * lives. So the size of a write follows from how many readers there are: few get 256
 * KiB at a time, hundreds 16 KiB, and together they stay near one budget. Measured
 * over TLS with 500 readers that take nothing: 240 MB with large writes for all, 60 MB
 * so.
 */
import type { Writable } from "node:stream";
import type { OpenArtifact } from "./artifact-store.ts";
import type { ByteRange } from "./byte-range.ts";

const LARGEST_BYTES = 256 * 1024;
/** One TLS record: smaller writes save nothing. */
const SMALLEST_BYTES = 16 * 1024;
const BUDGET_BYTES = 24 * 1024 * 1024;
/** A buffer and its two encrypted copies. */
const COPIES = 3;
/**
 * Reads under way together. More would not be faster, and thousands that come back in
 * one turn of the event loop would be encrypted in that turn, while everything else of
 * this process waits.
 */
const READS_AT_ONCE = 16;
/**
 * A reader that takes a byte now and then is not silent, and would hold its buffer for
 * ever. The slowest radio modules take some hundred bytes a second; after a network that
 * was lost for minutes they go on.
 */
const PATIENCE_MS = 5 * 60_000;
const LEAST_BYTES_PER_SECOND = 50;

export class ByteSender {
	readonly #patienceMs: number;
	readonly #leastBytesPerSecond: number;
	/** By size. Left to the garbage collector they would pile up faster than it comes. */
	readonly #idle = new Map<number, Buffer[]>();
	#sending = 0;
	#reading = 0;
	readonly #waitingToRead: (() => void)[] = [];

	/** A write must be taken within `patienceMs` and the time it needs at the least rate. */
	constructor(
		patienceMs = PATIENCE_MS,
		leastBytesPerSecond = LEAST_BYTES_PER_SECOND,
	) {
		this.#patienceMs = patienceMs;
		this.#leastBytesPerSecond = leastBytesPerSecond;
	}

	/**
	 * Writes the range to `out`, which stays open.
	 *
	 * @returns the bytes that `out` has flushed: fewer than the range holds when it
	 * was closed meanwhile, here too when its reader is too slow.
	 * @throws when the artifact cannot be read to the end of the range.
	 */
	async send(
		artifact: OpenArtifact,
		range: ByteRange,
		out: Writable,
	): Promise<number> {
		let position = range.start;
		this.#sending++;
		try {
			while (position < range.end && !out.destroyed) {
				await this.#turnToRead();
				const left = range.end - position;
				const buffer = this.#take(left);
				try {
					let flush: Promise<boolean>;
					let read: number;
					try {
						const length = Math.min(buffer.length, left);
						read = await artifact.read(buffer, length, position);
						if (read === 0) {
							throw new Error(`The artifact ended at byte ${position}.`);
						}
						flush = flushed(
							out,
							buffer.subarray(0, read),
							this.#patienceMs + (1000 * read) / this.#leastBytesPerSecond,
						);
					} finally {
						this.#readDone();
					}
					if (!(await flush)) break;
					position += read;
				} finally {
					this.#give(buffer);
				}
			}
			return position - range.start;
		} finally {
			if (--this.#sending === 0) this.#idle.clear();
		}
	}

	async #turnToRead(): Promise<void> {
		if (this.#reading < READS_AT_ONCE) this.#reading++;
		else
			await new Promise<void>((resolve) => this.#waitingToRead.push(resolve));
	}

	/** The turn passes to whoever has waited longest. */
	#readDone(): void {
		const next = this.#waitingToRead.shift();
		if (next) next();
		else this.#reading--;
	}

	#take(wantedBytes: number): Buffer {
		let size = this.#largestNow();
		while (size > SMALLEST_BYTES && size / 2 >= wantedBytes) size /= 2;
		// Not from Node's own pool: these live long and are large.
		return this.#idle.get(size)?.pop() ?? Buffer.allocUnsafeSlow(size);
	}

	#give(buffer: Buffer): void {
		// From a time with fewer readers: nobody will ask for this size soon.
		if (buffer.length > this.#largestNow()) return;
		const idle = this.#idle.get(buffer.length);
		if (idle) idle.push(buffer);
		else this.#idle.set(buffer.length, [buffer]);
	}

	#largestNow(): number {
		const share = BUDGET_BYTES / COPIES / this.#sending;
		let size = LARGEST_BYTES;
		while (size > SMALLEST_BYTES && size > share) size /= 2;
		return size;
	}
}

/** Resolves when the kernel has taken the chunk, or with false when it never will. */
function flushed(
	out: Writable,
	chunk: Buffer,
	withinMs: number,
): Promise<boolean> {
	if (out.destroyed) return Promise.resolve(false);
	return new Promise((resolve) => {
		const timer = setTimeout(() => out.destroy(), withinMs).unref();
		const closed = () => {
			clearTimeout(timer);
			resolve(false);
		};
		out.once("close", closed);
		out.write(chunk, (error) => {
			clearTimeout(timer);
			out.off("close", closed);
			resolve(!error);
		});
	});
}
