/** A hand that turns: the server's clock in tests. */
export class HandClock {
	#now: Date;

	constructor(start = new Date()) {
		this.#now = start;
	}

	readonly now = (): Date => new Date(this.#now);

	/** Time passes; the server notices at its next tick. */
	pass({
		hours = 0,
		minutes = 0,
		seconds = 0,
	}: {
		hours?: number;
		minutes?: number;
		seconds?: number;
	}): void {
		this.#now = new Date(
			this.#now.getTime() + ((hours * 60 + minutes) * 60 + seconds) * 1_000,
		);
	}
}
