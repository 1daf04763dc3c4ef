/**
 * Time limits of very many connections on one timer: a wheel of slots, each a ring of
 * entries. Setting, moving and clearing a limit touches a few pointers, and a limit
 * that is only ever pushed further away (a keep-alive) costs one assignment.
 */

/** Something with a time limit. The pointers belong to `Deadlines`. */
export interface DeadlineEntry {
	/**
	 * In the time of `Deadlines.nowMs`. May be raised directly at any time; to make it
	 * earlier, call `set`.
	 */
	dueAtMs: number;
	nextEntry: DeadlineEntry | undefined;
	previousEntry: DeadlineEntry | undefined;
	/** Called once when the limit has passed; the entry is no longer on the wheel then. */
	deadlinePassed(): void;
}

const SLOTS = 1024;

export class Deadlines {
	/**
	 * Milliseconds that this process was awake, one tick exact. It stands still while
	 * the process is stopped or its event loop held, so that a pause of the server is
	 * not taken for the silence of all devices.
	 */
	nowMs = 0;
	readonly #tickMs: number;
	readonly #slots: DeadlineEntry[] = [];
	readonly #timer: NodeJS.Timeout;
	#lastTickAt = performance.now();
	#slotReached = 0;

	constructor(tickMs = 250) {
		this.#tickMs = tickMs;
		for (let slot = 0; slot < SLOTS; slot++) this.#slots.push(ring());
		this.#timer = setInterval(() => this.#tick(), tickMs);
		this.#timer.unref();
	}

	/** Calls `entry.deadlinePassed()` no earlier than `afterMs` from now, once; replaces an earlier limit. */
	set(entry: DeadlineEntry, afterMs: number): void {
		this.clear(entry);
		// nowMs may be one tick old.
		entry.dueAtMs = this.nowMs + afterMs + this.#tickMs;
		this.#insert(entry);
	}

	clear(entry: DeadlineEntry): void {
		const { nextEntry, previousEntry } = entry;
		if (!nextEntry || !previousEntry) return;
		previousEntry.nextEntry = nextEntry;
		nextEntry.previousEntry = previousEntry;
		entry.nextEntry = undefined;
		entry.previousEntry = undefined;
	}

	close(): void {
		clearInterval(this.#timer);
	}

	#insert(entry: DeadlineEntry): void {
		// An entry due beyond the wheel's span waits in its last slot and is put again.
		const wanted = Math.ceil(entry.dueAtMs / this.#tickMs);
		const slot = Math.min(
			Math.max(wanted, this.#slotReached + 1),
			this.#slotReached + SLOTS - 1,
		);
		const head = this.#slots[slot % SLOTS] as DeadlineEntry;
		const last = head.previousEntry as DeadlineEntry;
		last.nextEntry = entry;
		entry.previousEntry = last;
		entry.nextEntry = head;
		head.previousEntry = entry;
	}

	#tick(): void {
		const at = performance.now();
		this.nowMs += Math.min(at - this.#lastTickAt, 4 * this.#tickMs);
		this.#lastTickAt = at;
		const reached = Math.floor(this.nowMs / this.#tickMs);
		while (this.#slotReached < reached) {
			this.#slotReached++;
			this.#empty(this.#slots[this.#slotReached % SLOTS] as DeadlineEntry);
		}
	}

	#empty(head: DeadlineEntry): void {
		// Entries put again land in later slots, never in this one: its next turn is a
		// whole round away.
		for (;;) {
			const entry = head.nextEntry as DeadlineEntry;
			if (entry === head) return;
			this.clear(entry);
			if (entry.dueAtMs > this.nowMs) this.#insert(entry);
			else entry.deadlinePassed();
		}
	}
}

function ring(): DeadlineEntry {
	const head: DeadlineEntry = {
		dueAtMs: 0,
		nextEntry: undefined,
		previousEntry: undefined,
		deadlinePassed() {},
	};
	head.nextEntry = head;
	head.previousEntry = head;
	return head;
}
