/**
 * The end of the history, read once for everybody who watches: new entries, and how the
 * tasks stand that they are about. It is read only while somebody follows.
 *
 * What is new is kept in a ring for as long as there is room. A follower takes from it
 * at his own pace; one who comes from further back, or has fallen behind it, reads the
 * store himself until he has caught up. Nothing is ever queued for a follower.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { Db } from "../database/database.ts";
import {
	isAfter,
	type Position,
	readEnds,
	settledAfter,
} from "../database/follow.ts";
import { logger } from "../log.ts";
import type { HistoryKind } from "./history.ts";
import { readTasks, type WatchedTask } from "./watched-tasks.ts";

const log = logger("history");
const POLL_MS = 250;
/** From one look at a task to the next. */
const TASK_MS = 1_000;
/** After an entry that says how a task stands now. */
const SOON_MS = 20;
/** Entries in one query: a few milliseconds on SQLite. */
const PAGE = 500;
/** Of a follower, who holds it until his client has taken it. */
const FOLLOWER_PAGE = 200;
const RING = 2_000;
/** A task of which nothing was heard for so long is forgotten, unless it is followed. */
const FORGET_MS = 60_000;
const TASKS_AT_ONCE = 200;

export interface Watch {
	projectId: string;
	/** Only this task; it is looked at even when no entry speaks of it. */
	taskId: string | undefined;
}

/** An entry that has a task. */
export interface WatchedEntry {
	seq: number;
	project_id: string;
	app_id: string;
	task_id: string;
	/** Null: about the task as a whole. */
	device_id: string | null;
	kind: HistoryKind;
	/** JSON object. */
	detail: string | null;
	at: string;
}

/** What followers are told, in the order in which it became true. */
export type Told =
	| { kind: "entry"; position: Position; entry: WatchedEntry }
	/** Comes after every entry that had a part in it. */
	| { kind: "task"; position: Position; task: WatchedTask };

type ToldEntry = Told & { kind: "entry" };

export type Step =
	/** Where following begins; always the first. */
	| { kind: "start"; position: Position }
	| { kind: "told"; told: readonly Told[]; position: Position }
	/** Something after the position was removed, or it is none of this store. */
	| { kind: "reset"; position: Position }
	/** Nothing for a while. */
	| { kind: "quiet"; position: Position };

type Row = Omit<WatchedEntry, "task_id"> & {
	tx: number;
	task_id: string | null;
};

export class HistoryTail implements AsyncDisposable {
	readonly #db: Db;
	#tail: Tail | undefined;
	#ended: Promise<unknown> = Promise.resolve();

	constructor(db: Db) {
		this.#db = db;
	}

	/**
	 * Everything that happens after `after`, or from now on, until the signal is aborted.
	 *
	 * @throws when the store cannot be read.
	 */
	async *follow(
		watch: Watch,
		after: Position | undefined,
		{ quietMs, signal }: { quietMs: number; signal: AbortSignal },
	): AsyncGenerator<Step> {
		this.#tail ??= new Tail(this.#db);
		const tail = this.#tail;
		tail.enter(watch);
		try {
			yield* new Follower(this.#db, tail, watch).steps(after, quietMs, signal);
		} finally {
			if (tail.leave(watch) === 0) {
				if (this.#tail === tail) this.#tail = undefined;
				this.#ended = Promise.all([this.#ended, tail.stop()]);
			}
		}
	}

	/** Followers must have left. */
	async [Symbol.asyncDispose](): Promise<void> {
		await this.#ended;
	}
}

class Follower {
	readonly #db: Db;
	readonly #tail: Tail;
	readonly #watch: Watch;
	/** Tasks of entries that were read from the store: their states were not told with them. */
	readonly #untold = new Set<string>();

	constructor(db: Db, tail: Tail, watch: Watch) {
		this.#db = db;
		this.#tail = tail;
		this.#watch = watch;
		if (watch.taskId !== undefined) this.#untold.add(watch.taskId);
	}

	async *steps(
		after: Position | undefined,
		quietMs: number,
		signal: AbortSignal,
	): AsyncGenerator<Step> {
		const tail = this.#tail;
		await tail.started;
		const { settled, end } = await readEnds(this.#db, "history");
		let position = after ?? settled;
		yield { kind: "start", position };
		if (isAfter(position, end)) {
			position = settled;
			yield { kind: "reset", position };
		}
		/** The next one in the ring; undefined: the ring does not reach back to the position. */
		let number: number | undefined;
		let tasksFrom = 0;
		let saidAtMs = performance.now();
		while (!signal.aborted) {
			if (number === undefined || number < tail.first) {
				if (isAfter(tail.from, position)) {
					const upTo = tail.from;
					const page = await readPage(this.#db, position);
					if (page === "removed") {
						position = (await readEnds(this.#db, "history")).settled;
						if (this.#watch.taskId !== undefined)
							this.#untold.add(this.#watch.taskId);
						yield { kind: "reset", position };
						continue;
					}
					const told = page.told.filter((one) => this.#isFor(one));
					for (const { entry } of told) this.#untold.add(entry.task_id);
					position = page.position;
					if (!page.isFull && isAfter(upTo, position)) position = upTo;
					if (told.length > 0) yield { kind: "told", told, position };
					number = undefined;
					await nextTurn();
					continue;
				}
				number = tail.first;
				// States from before are out of date: those that matter are told anew.
				tasksFrom = tail.next;
				tail.tellAnew(this.#untold);
				this.#untold.clear();
			}
			const from = position;
			const told = tail
				.since(number)
				.filter(
					(one, index) =>
						this.#isFor(one) &&
						(one.kind === "entry"
							? isAfter(one.position, from)
							: (number as number) + index >= tasksFrom),
				);
			number = tail.next;
			if (isAfter(tail.to, position)) position = tail.to;
			if (told.length > 0) {
				yield { kind: "told", told, position };
				saidAtMs = performance.now();
			}
			// Sending took its time: what came meanwhile goes first.
			if (number !== tail.next || signal.aborted) continue;
			const leftMs = saidAtMs + quietMs - performance.now();
			if (leftMs > 0 && (await tail.changed(leftMs, signal))) continue;
			if (signal.aborted) return;
			yield { kind: "quiet", position };
			saidAtMs = performance.now();
		}
	}

	#isFor(told: Told): boolean {
		const { projectId, taskId } = this.#watch;
		const about = told.kind === "entry" ? told.entry : told.task;
		return (
			about.project_id === projectId &&
			(taskId === undefined || about.task_id === taskId)
		);
	}
}

/** A task that is looked at. */
interface LookedAt {
	followers: number;
	/** An entry has spoken of it since it was read. */
	touched: boolean;
	readAtMs: number;
	/** What was told of it last. */
	told: string | undefined;
	/** Read, and told when everything up to the end that was seen after it has been. */
	pending: { task: WatchedTask | undefined; end: Position } | undefined;
}

class Tail {
	readonly #db: Db;
	readonly started: Promise<void>;
	readonly #stopping = new AbortController();
	readonly #running: Promise<void>;
	/** The ring, and the number of its first. */
	#told: Told[] = [];
	first = 0;
	/** Every entry after `from` and up to `to` is in the ring. */
	from: Position = { tx: 0, seq: 0 };
	to: Position = { tx: 0, seq: 0 };
	#followers = 0;
	/** By project: how many follow all of its tasks. */
	readonly #wide = new Map<string, number>();
	readonly #tasks = new Map<string, LookedAt>();
	readonly #waiting = new Set<() => void>();
	/** What those who wait know of already. */
	#woken: { next: number; to: Position } | undefined;
	#soon = false;

	constructor(db: Db) {
		this.#db = db;
		this.started = this.#start();
		this.#running = this.started.then(
			() => this.#run(),
			() => {},
		);
	}

	/** The number that the next one gets. */
	get next(): number {
		return this.first + this.#told.length;
	}

	since(number: number): Told[] {
		return this.#told.slice(Math.max(0, number - this.first));
	}

	enter({ projectId, taskId }: Watch): void {
		this.#followers++;
		if (taskId === undefined)
			this.#wide.set(projectId, (this.#wide.get(projectId) ?? 0) + 1);
		else this.#lookAt(taskId).followers++;
	}

	/** @returns how many are left */
	leave({ projectId, taskId }: Watch): number {
		if (taskId === undefined) {
			const left = (this.#wide.get(projectId) ?? 0) - 1;
			if (left > 0) this.#wide.set(projectId, left);
			else this.#wide.delete(projectId);
		} else this.#lookAt(taskId).followers--;
		return --this.#followers;
	}

	/** How these tasks stand is told even if it was told before. */
	tellAnew(taskIds: Iterable<string>): void {
		for (const taskId of taskIds) {
			const task = this.#lookAt(taskId);
			task.told = undefined;
			task.touched = true;
			this.#lookSoon(task);
		}
	}

	/** Resolves to false when nothing comes within the time; the signal ends it too. */
	changed(withinMs: number, signal: AbortSignal): Promise<boolean> {
		return new Promise((resolve) => {
			const done = (woken: boolean) => {
				clearTimeout(timer);
				signal.removeEventListener("abort", aborted);
				this.#waiting.delete(wake);
				resolve(woken);
			};
			const wake = () => done(true);
			const aborted = () => done(false);
			const timer = setTimeout(done, withinMs, false);
			signal.addEventListener("abort", aborted);
			this.#waiting.add(wake);
		});
	}

	/** Resolves when the store is not read any more. */
	async stop(): Promise<void> {
		this.#stopping.abort();
		await this.#running;
	}

	async #start(): Promise<void> {
		const { settled } = await readEnds(this.#db, "history");
		this.from = settled;
		this.to = settled;
	}

	async #run(): Promise<void> {
		let failing = false;
		while (!this.#stopping.signal.aborted) {
			this.#soon = false;
			try {
				await this.#look();
				failing = false;
			} catch (error) {
				if (!failing)
					log.error(
						{ err: error },
						"the history cannot be read; those who watch wait",
					);
				failing = true;
			}
			await this.#pause();
		}
	}

	async #pause(): Promise<void> {
		const { signal } = this.#stopping;
		if (signal.aborted) return;
		await new Promise<void>((resolve) => {
			const done = () => {
				clearTimeout(timer);
				signal.removeEventListener("abort", done);
				resolve();
			};
			const timer = setTimeout(done, this.#soon ? SOON_MS : POLL_MS);
			signal.addEventListener("abort", done);
		});
	}

	/**
	 * Tasks are read before the entries: so everything that had a part in a state is told
	 * before it, unless a transaction of that time is open still. Then the state waits.
	 */
	async #look(): Promise<void> {
		const due = this.#dueTasks();
		const found = new Map<string, WatchedTask>();
		for (let at = 0; at < due.length; at += TASKS_AT_ONCE) {
			const some = due.slice(at, at + TASKS_AT_ONCE);
			for (const task of await readTasks(this.#db, some))
				found.set(task.task_id, task);
		}
		const { settled, end } = await readEnds(this.#db, "history");
		for (const taskId of due) {
			const task = this.#tasks.get(taskId);
			if (task) task.pending = { task: found.get(taskId), end };
		}
		await this.#readOn();
		for (const task of this.#tasks.values()) {
			if (!task.pending || isAfter(task.pending.end, settled)) continue;
			const state = task.pending.task;
			task.pending = undefined;
			const text = JSON.stringify(state);
			if (!state || text === task.told) continue;
			task.told = text;
			this.#tell({ kind: "task", position: this.to, task: state });
		}
		this.#wake();
	}

	#dueTasks(): string[] {
		const nowMs = performance.now();
		const due: string[] = [];
		for (const [taskId, task] of this.#tasks) {
			const ageMs = nowMs - task.readAtMs;
			if (task.pending) continue;
			if (task.followers > 0 || task.touched) {
				if (ageMs < TASK_MS) continue;
				task.touched = false;
				task.readAtMs = nowMs;
				due.push(taskId);
			} else if (ageMs > FORGET_MS) this.#tasks.delete(taskId);
		}
		return due;
	}

	async #readOn(): Promise<void> {
		while (!this.#stopping.signal.aborted) {
			const rows = await readRows(this.#db, this.to, PAGE);
			for (const row of rows) {
				this.to = positionOf(row);
				const told = toldOf(row);
				if (!told) continue;
				this.#tell(told);
				this.#touch(told.entry);
			}
			if (rows.length < PAGE) return;
			this.#wake();
			await nextTurn();
		}
	}

	#touch({ project_id, task_id, device_id }: WatchedEntry): void {
		if (!this.#tasks.has(task_id) && !this.#wide.has(project_id)) return;
		const task = this.#lookAt(task_id);
		task.touched = true;
		if (device_id === null) this.#lookSoon(task);
	}

	#lookSoon(task: LookedAt): void {
		task.readAtMs = Number.NEGATIVE_INFINITY;
		this.#soon = true;
	}

	#lookAt(taskId: string): LookedAt {
		let task = this.#tasks.get(taskId);
		if (!task) {
			task = {
				followers: 0,
				touched: false,
				readAtMs: Number.NEGATIVE_INFINITY,
				told: undefined,
				pending: undefined,
			};
			this.#tasks.set(taskId, task);
		}
		return task;
	}

	#tell(told: Told): void {
		this.#told.push(told);
		// In larger pieces: taking one from the front moves all of them.
		if (this.#told.length < RING + PAGE) return;
		const dropped = this.#told.splice(0, PAGE);
		this.first += dropped.length;
		this.from = dropped.at(-1)?.position ?? this.from;
	}

	#wake(): void {
		const known = this.#woken;
		if (known?.next === this.next && known.to === this.to) return;
		this.#woken = { next: this.next, to: this.to };
		for (const wake of [...this.#waiting]) wake();
	}
}

/** Settled entries after a position, whatever they are about. */
async function readRows(
	db: Db,
	after: Position,
	limit: number,
): Promise<Row[]> {
	const { condition, order } = settledAfter(db, after);
	const { rows } = await sql<Row>`
		select seq, tx, project_id, app_id, device_id, task_id, kind, detail, at
		from history where ${condition} order by ${order} limit ${sql.lit(limit)}`.execute(
		db,
	);
	return rows;
}

/** As `readRows`; `removed` when entries after the position are not there any more. */
async function readPage(
	db: Db,
	after: Position,
): Promise<
	"removed" | { told: ToldEntry[]; position: Position; isFull: boolean }
> {
	const rows = await readRows(db, after, FOLLOWER_PAGE);
	// Afterwards: whatever the rows lack was removed before this is read.
	const swept = await db
		.selectFrom("history_swept")
		.select(["tx", "seq"])
		.executeTakeFirstOrThrow();
	if (isAfter(swept, after)) return "removed";
	const last = rows.at(-1);
	return {
		told: rows.map(toldOf).filter((told) => told !== undefined),
		position: last ? positionOf(last) : after,
		isFull: rows.length === FOLLOWER_PAGE,
	};
}

function positionOf({ tx, seq }: Row): Position {
	return { tx, seq };
}

function toldOf(row: Row): ToldEntry | undefined {
	const { tx, task_id, ...entry } = row;
	if (task_id === null) return undefined;
	return {
		kind: "entry",
		position: { tx, seq: row.seq },
		entry: { ...entry, task_id },
	};
}
