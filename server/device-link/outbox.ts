/**
 * What is said to one connection, in order, as fast as the device takes it.
 *
 * A gateway may have notices for thousands of devices behind it at once; a connection
 * takes only so many unacknowledged messages and loses the rest. What waits here is not
 * written yet: a message is made when its turn comes, so that what it says of times is
 * true then.
 */
import type { Message } from "./iotda.ts";
import type { DeviceConnection } from "./mqtt-session.ts";

/** Unacknowledged at once; below what a connection keeps. */
const WINDOW = 64;
/** A gateway has at most 50,000 children, and there are seldom two things to tell it of each. */
export const WAITING_LIMIT = 100_000;

interface Waiting {
	make: () => Message;
	settle: (delivered: boolean) => void;
	fail: (error: unknown) => void;
}

export class Outbox {
	readonly #connection: DeviceConnection;
	#waiting: Waiting[] = [];
	/** Those before this index have been sent. */
	#next = 0;
	#unacknowledged = 0;
	#closed = false;

	constructor(connection: DeviceConnection) {
		this.#connection = connection;
	}

	get isEmpty(): boolean {
		return this.#unacknowledged === 0 && this.#next === this.#waiting.length;
	}

	/**
	 * Resolves true when the device acknowledged the message; false when the connection
	 * ended before, when the device refused it, or when `most` messages wait already.
	 */
	send(make: () => Message, most: number): Promise<boolean> {
		if (this.#closed || this.#waiting.length - this.#next >= most)
			return Promise.resolve(false);
		return new Promise((settle, fail) => {
			this.#waiting.push({ make, settle, fail });
			this.#sendOn();
		});
	}

	/** The connection is over. */
	close(): void {
		this.#closed = true;
		for (const { settle } of this.#waiting.splice(0).slice(this.#next))
			settle(false);
		this.#next = 0;
	}

	#sendOn(): void {
		while (this.#unacknowledged < WINDOW) {
			const next = this.#waiting[this.#next];
			if (!next) break;
			this.#next++;
			this.#unacknowledged++;
			this.#sendOne(next)
				.finally(() => {
					this.#unacknowledged--;
					this.#sendOn();
				})
				.then(next.settle, next.fail);
		}
		// Taking them off one by one would move all that wait, each time.
		if (this.#next > 1_000 || this.#next === this.#waiting.length) {
			this.#waiting.splice(0, this.#next);
			this.#next = 0;
		}
	}

	async #sendOne({ make }: Waiting): Promise<boolean> {
		const { topic, payload } = make();
		return this.#connection.send(topic, payload);
	}
}
