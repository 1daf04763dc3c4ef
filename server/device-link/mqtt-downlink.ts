/** QoS 1 messages to one device that are not acknowledged yet. */

/** Messages kept for one device, sent and unsent. */
const LIMIT = 128;
const LIMIT_BYTES = 1024 * 1024;

export interface DownlinkMessage {
	/** 0 until it was sent once; kept from then on, so that a repetition is known as one. */
	id: number;
	readonly topic: string;
	readonly payload: Buffer;
	/** Called once with whether the device took it; undefined when nobody waits any more. */
	settle: ((delivered: boolean) => void) | undefined;
}

/** Survives its connection when the client asked for a lasting session. */
export class Downlink {
	/** By packet id, in the order they were sent. */
	readonly #inFlight = new Map<number, DownlinkMessage>();
	#waiting: DownlinkMessage[] = [];
	#bytes = 0;
	#lastId = 0;

	get isEmpty(): boolean {
		return this.#inFlight.size === 0 && this.#waiting.length === 0;
	}

	/** @returns false when too much waits already. */
	add(message: DownlinkMessage): boolean {
		if (
			this.#inFlight.size + this.#waiting.length >= LIMIT ||
			this.#bytes + message.payload.length > LIMIT_BYTES
		)
			return false;
		this.#bytes += message.payload.length;
		this.#waiting.push(message);
		return true;
	}

	/** The next message to be sent, unless `limit` of them are under way. */
	next(
		limit: number,
	): { message: DownlinkMessage; isRepeated: boolean } | undefined {
		if (this.#inFlight.size >= limit) return undefined;
		const message = this.#waiting.shift();
		if (!message) return undefined;
		const isRepeated = message.id !== 0;
		if (!isRepeated) message.id = this.#freeId();
		this.#inFlight.set(message.id, message);
		return { message, isRepeated };
	}

	/** Ends the message with this packet id, if there is one under way. */
	acknowledged(messageId: number, delivered: boolean): boolean {
		const message = this.#inFlight.get(messageId);
		if (!message) return false;
		this.#inFlight.delete(messageId);
		this.#bytes -= message.payload.length;
		message.settle?.(delivered);
		return true;
	}

	/** The connection is over: nobody waits for these messages any more, and what was sent must be sent again. */
	interrupt(): void {
		this.#waiting = [...this.#inFlight.values(), ...this.#waiting];
		this.#inFlight.clear();
		for (const message of this.#waiting) {
			message.settle?.(false);
			message.settle = undefined;
		}
	}

	#freeId(): number {
		do {
			this.#lastId = (this.#lastId % 65_535) + 1;
		} while (
			this.#inFlight.has(this.#lastId) ||
			this.#waiting.some(({ id }) => id === this.#lastId)
		);
		return this.#lastId;
	}
}
