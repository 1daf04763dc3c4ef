/** Bytes of one connection that have arrived and cannot be handled yet. */
export class Inbox {
	#buffer: Buffer;
	#start = 0;
	#end: number;

	/** Copies what it is given: a chunk may be a slice of something much larger. */
	constructor(bytes: Buffer) {
		this.#buffer = Buffer.from(bytes);
		this.#end = bytes.length;
	}

	get isEmpty(): boolean {
		return this.#start === this.#end;
	}

	/** Valid until the next `append`. */
	get bytes(): Buffer {
		return this.#buffer.subarray(this.#start, this.#end);
	}

	append(chunk: Buffer): void {
		if (this.#buffer.length - this.#end < chunk.length) {
			// Twice as much each time, so that a message that trickles in byte by byte is
			// not copied for every byte.
			const used = this.#end - this.#start;
			const larger = Buffer.allocUnsafeSlow(
				Math.max(used + chunk.length, 2 * used),
			);
			this.#buffer.copy(larger, 0, this.#start, this.#end);
			this.#buffer = larger;
			this.#start = 0;
			this.#end = used;
		}
		chunk.copy(this.#buffer, this.#end);
		this.#end += chunk.length;
	}

	/** The first `count` bytes are handled. */
	consume(count: number): void {
		this.#start += count;
	}
}
