import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import {
	type DeadlineEntry,
	Deadlines,
} from "../server/device-link/deadlines.ts";

/** With a tick of a millisecond the wheel goes round once a second. */
const TICK_MS = 1;

class Entry implements DeadlineEntry {
	dueAtMs = 0;
	nextEntry: DeadlineEntry | undefined = undefined;
	previousEntry: DeadlineEntry | undefined = undefined;
	/** In the wheel's time. */
	readonly passedAt: number[] = [];
	readonly #deadlines: Deadlines;
	readonly #onPassed: (entry: Entry) => void;
	constructor(
		deadlines: Deadlines,
		onPassed: (entry: Entry) => void = () => {},
	) {
		this.#deadlines = deadlines;
		this.#onPassed = onPassed;
	}
	deadlinePassed(): void {
		this.passedAt.push(this.#deadlines.nowMs);
		this.#onPassed(this);
	}
}

async function passed(entry: Entry, count = 1): Promise<number[]> {
	while (entry.passedAt.length < count) await pause(5);
	return entry.passedAt;
}

test("every limit passes once, not before its time, however far away it is", async () => {
	const deadlines = new Deadlines(TICK_MS);
	await pause(10);
	const limits = [0, 1, 7, 200, 1_023, 1_024, 1_025, 1_500, 2_300];
	const startedAt = deadlines.nowMs;
	const entries = limits.map((limit) => {
		const entry = new Entry(deadlines);
		deadlines.set(entry, limit);
		return entry;
	});
	for (const [index, entry] of entries.entries()) {
		const [at = 0] = await passed(entry);
		const wanted = startedAt + (limits[index] ?? 0);
		assert.ok(at >= wanted && at < wanted + 50, `${at} instead of ${wanted}`);
	}
	await pause(50);
	assert.deepEqual(
		entries.map(({ passedAt }) => passedAt.length),
		limits.map(() => 1),
	);
	deadlines.close();
});

test("a limit may be raised, moved, cleared and set again from within its own end", async () => {
	const deadlines = new Deadlines(TICK_MS);
	await pause(10);
	const startedAt = deadlines.nowMs;
	const raised = new Entry(deadlines);
	deadlines.set(raised, 50);
	raised.dueAtMs += 100;
	const earlier = new Entry(deadlines);
	deadlines.set(earlier, 5_000);
	deadlines.set(earlier, 20);
	const cleared = new Entry(deadlines);
	deadlines.set(cleared, 20);
	deadlines.clear(cleared);
	deadlines.clear(cleared);
	const repeated = new Entry(deadlines, (entry) => {
		if (entry.passedAt.length < 3) deadlines.set(entry, 30);
	});
	deadlines.set(repeated, 30);
	// Clears its neighbour in the same slot while the slot is being emptied.
	const victim = new Entry(deadlines);
	const killer = new Entry(deadlines, () => deadlines.clear(victim));
	deadlines.set(killer, 40);
	deadlines.set(victim, 40);

	assert.ok(((await passed(raised))[0] ?? 0) >= startedAt + 150);
	assert.ok(((await passed(earlier))[0] ?? 0) < startedAt + 150);
	const [first = 0, second = 0, third = 0] = await passed(repeated, 3);
	assert.ok(second - first >= 30 && third - second >= 30);
	await passed(killer);
	assert.deepEqual(victim.passedAt, []);
	assert.deepEqual(cleared.passedAt, []);
	deadlines.close();
});

test("time in which the process does not run does not count", async () => {
	const deadlines = new Deadlines(50);
	await pause(120);
	const entry = new Entry(deadlines);
	deadlines.set(entry, 600);
	const heldUntil = performance.now() + 1_000;
	while (performance.now() < heldUntil);
	await pause(60);
	assert.deepEqual(entry.passedAt, []);
	await passed(entry);
	deadlines.close();
});
