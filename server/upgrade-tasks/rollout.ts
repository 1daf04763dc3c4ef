/**
 * The tick: takes what is due and moves it on. Every piece of work is a row with a
 * due time, so a server that was killed goes on where it was: each step is one
 * transaction that also says how far it came.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { ArtifactStore } from "../artifacts/artifact-store.ts";
import { verifyObject } from "../artifacts/objects.ts";
import type { UpgradeTimes } from "../config.ts";
import { claimDueTasks, leaseEnd, releaseClaims } from "../database/claims.ts";
import {
	type Clock,
	type Db,
	inTransaction,
	isUniqueViolation,
	listTable,
} from "../database/database.ts";
import type { Signal } from "../database/signal.ts";
import { instant } from "../database/tables.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Exchanges } from "./exchanges.ts";
import { failures } from "./failures.ts";
import { startedExchange } from "./subtask.ts";
import { CHUNK_SIZE, expandChunk } from "./targets.ts";
import { CounterDeltas, finishTasks } from "./task-rows.ts";
import {
	removeDeviceFromTasks,
	removeSome,
	stopSome,
	type UpgradeTask,
} from "./upgrade-tasks.ts";

const TICK_MS = 1_000;
/** Everybody connected here is looked at this often, in case a wake-up was lost. */
const SWEEP_MS = 60_000;
const LEASE_MS = 30_000;
const TASKS_AT_ONCE = 8;
const DUE_AT_ONCE = 500;
/** Positions started in one transaction. */
const START_WINDOW = 500;

const log = logger("rollout");

export interface RolloutParts {
	db: Db;
	signal: Signal;
	now: Clock;
	times: UpgradeTimes;
	artifacts: ArtifactStore;
	exchanges: Exchanges;
	events: Events;
	/** This process, as presence knows it. */
	nodeId: string;
	/** Whether the device is connected to this process. */
	isHere(deviceId: string): boolean;
	/** Every device connected to this process. */
	devicesHere(): Iterable<string>;
}

/** What one process tells the others. */
type Wake =
	| { wake: "tasks" }
	/** Subtasks above `from` up to `to` were started by `node`. */
	| { wake: "started"; task: string; from: number; to: number; node: string };

/** Tells the rollout of every process that a task has something due. */
export function wakeRollout(signal: Signal): void {
	signal.send(JSON.stringify({ wake: "tasks" } satisfies Wake));
}

export class Rollout implements AsyncDisposable {
	readonly #parts: RolloutParts;
	readonly #advancing = new Map<string, Promise<void>>();
	#loop: Promise<void> = Promise.resolve();
	#closed = false;
	#sweptAt = performance.now();
	#wake: (() => void) | undefined;
	#woken = false;

	constructor(parts: RolloutParts) {
		this.#parts = parts;
		parts.signal.onSignal((payload) => this.#onSignal(payload));
	}

	async start(): Promise<void> {
		const { db, nodeId, now, times } = this.#parts;
		await releaseClaims(db, nodeId);
		await graceAfterOutage(db, now(), times.versionTimeoutMs);
		this.#loop = this.#run();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed = true;
		this.#wakeUp();
		await this.#loop;
		await Promise.allSettled(this.#advancing.values());
	}

	async #run(): Promise<void> {
		while (!this.#closed) {
			let busy = false;
			try {
				busy = await this.#tick();
			} catch (error) {
				// The store may be away for a while; what is due stays due.
				log.error({ err: error }, "the rollout could not look for due work");
				this.#parts.events.happened("rollout_tick_failed");
			}
			if (!busy) await this.#pause();
			else await nextTurn();
		}
	}

	/** True when there may be more to do at once. */
	async #tick(): Promise<boolean> {
		const { db, now, exchanges, nodeId } = this.#parts;
		const room = TASKS_AT_ONCE - this.#advancing.size;
		const claimed =
			room > 0 ? await claimDueTasks(db, nodeId, now(), room, LEASE_MS) : [];
		for (const taskId of claimed) this.#advance(taskId);
		const due = await findDueDevices(db, nodeId, now(), DUE_AT_ONCE);
		const gone = due.filter((device) => !device.exists);
		for (const { deviceId } of gone)
			await inTransaction(db, (trx) =>
				removeDeviceFromTasks(trx, deviceId, now()),
			);
		const there = due.filter((device) => device.exists);
		await exchanges.settleDue(
			there.map(({ deviceId }) => ({
				deviceId,
				isHere: this.#parts.isHere(deviceId),
			})),
		);
		if (performance.now() - this.#sweptAt > SWEEP_MS) await this.#sweep();
		return due.length === DUE_AT_ONCE;
	}

	#advance(taskId: string): void {
		if (this.#advancing.has(taskId)) return;
		const work = this.#advanceTask(taskId)
			.catch((error: unknown) => {
				log.error(
					{ err: error, task_id: taskId },
					"a task could not be moved on; it is tried again",
				);
				this.#parts.events.happened("task_advance_failed");
			})
			.finally(() => {
				this.#advancing.delete(taskId);
				this.#wakeUp();
			});
		this.#advancing.set(taskId, work);
	}

	async #advanceTask(taskId: string): Promise<void> {
		const { db } = this.#parts;
		let verified = false;
		while (!this.#closed) {
			const task = await db
				.selectFrom("upgrade_tasks")
				.selectAll()
				.where("task_id", "=", taskId)
				.executeTakeFirst();
			if (!task) return;
			if (task.deleted_at !== null) {
				if (await removeSome(db, taskId)) return;
			} else if (
				task.status === "Initializing" &&
				!verified &&
				task.expanded_chunks === 0
			) {
				if (!(await this.#verifyPackages(task))) return;
				verified = true;
			} else if (
				task.expanded_chunks < task.chunk_count &&
				(task.status === "Initializing" || task.status === "Stopping")
			) {
				await this.#expand(task);
			} else if (task.status === "Initializing") {
				await this.#toProcessing(task);
			} else if (
				task.status === "Processing" &&
				task.started_position < task.chunk_count * CHUNK_SIZE
			) {
				await this.#startWindow(task);
			} else if (task.status === "Stopping") {
				const now = this.#parts.now();
				const stopped = await inTransaction(db, async (trx) => {
					const count = await stopSome(trx, taskId, now);
					if (count === 0) await finishTasks(trx, [taskId], now);
					return count;
				});
				if (stopped === 0) return;
			} else {
				await this.#rest(taskId);
				return;
			}
			await nextTurn();
		}
	}

	/** Nothing is due any more; devices move the task from here on. */
	async #rest(taskId: string): Promise<void> {
		const { db } = this.#parts;
		await db
			.updateTable("upgrade_tasks")
			.set({ due_at: null, leased_until: null, leased_by: null })
			.where("task_id", "=", taskId)
			.where("status", "not in", ["Stopping", "Initializing"])
			.where("deleted_at", "is", null)
			.execute();
	}

	/** The files are still what they were when the packages were created; else the task fails. */
	async #verifyPackages(task: UpgradeTask): Promise<boolean> {
		const { db, artifacts, now, events } = this.#parts;
		const packages = await db
			.selectFrom("upgrade_task_packages as tp")
			.innerJoin("packages as p", "p.package_id", "tp.package_id")
			.select(["p.package_id", "p.object_key", "p.sha256", "p.size_bytes"])
			.where("tp.task_id", "=", task.task_id)
			.execute();
		for (const { package_id, object_key, sha256, size_bytes } of packages) {
			const condition = await verifyObject(artifacts, sha256, size_bytes);
			if (condition === "sound") continue;
			const at = now();
			await db
				.updateTable("upgrade_tasks")
				.set({
					status: "Fail",
					status_desc:
						`The file ${object_key} of package ${package_id} cannot be used: ${condition}.`.slice(
							0,
							1_024,
						),
					finished_at: instant(at),
					due_at: null,
					leased_until: null,
				})
				.where("task_id", "=", task.task_id)
				.where("status", "=", "Initializing")
				.execute();
			events.happened(
				"task_failed",
				{ reason: "file" },
				{ task_id: task.task_id, package_id, condition },
				"error",
			);
			return false;
		}
		return true;
	}

	async #expand(task: UpgradeTask): Promise<void> {
		const now = this.#parts.now();
		await inTransaction(this.#parts.db, async (trx) => {
			// Whoever claimed the same task after a lease ran out loses here.
			const advanced = await trx
				.updateTable("upgrade_tasks")
				.set({
					expanded_chunks: task.expanded_chunks + 1,
					leased_until: leaseEnd(now, LEASE_MS),
				})
				.where("task_id", "=", task.task_id)
				.where("expanded_chunks", "=", task.expanded_chunks)
				.where("status", "=", task.status)
				.executeTakeFirst();
			if (Number(advanced.numUpdatedRows) === 0) return;
			await expandChunk(
				trx,
				{
					taskId: task.task_id,
					projectId: task.project_id,
					productKey: task.product_key,
					taskType: task.task_type,
				},
				task.expanded_chunks,
				task.status === "Stopping" ? "Stopped" : "Waitting",
				now,
			);
		});
	}

	async #toProcessing(task: UpgradeTask): Promise<void> {
		const now = this.#parts.now();
		await inTransaction(this.#parts.db, async (trx) => {
			await trx
				.updateTable("upgrade_tasks")
				.set({ status: "Processing" })
				.where("task_id", "=", task.task_id)
				.where("status", "=", "Initializing")
				.execute();
			// All of its devices may have been refused already.
			await finishTasks(trx, [task.task_id], now);
		});
	}

	async #startWindow(task: UpgradeTask): Promise<void> {
		const { db, signal, nodeId } = this.#parts;
		const from = task.started_position;
		const to = from + START_WINDOW;
		for (let attempt = 1; ; attempt++) {
			try {
				await this.#startPositions(task, from, to);
				break;
			} catch (error) {
				// Another task took one of these devices between the look and the write.
				if (attempt >= 5 || !isUniqueViolation(error, "subtasks_one_exchange"))
					throw error;
			}
		}
		signal.send(
			JSON.stringify({
				wake: "started",
				task: task.task_id,
				from,
				to,
				node: nodeId,
			} satisfies Wake),
		);
		await this.#speakTo(await devicesAwaited(db, task.task_id, from, to));
	}

	async #startPositions(
		task: UpgradeTask,
		from: number,
		to: number,
	): Promise<void> {
		const now = this.#parts.now();
		const exchange = startedExchange(now, this.#parts.times.onlineTimeoutMs);
		await inTransaction(this.#parts.db, async (trx) => {
			const advanced = await trx
				.updateTable("upgrade_tasks")
				.set({ started_position: to, leased_until: leaseEnd(now, LEASE_MS) })
				.where("task_id", "=", task.task_id)
				.where("started_position", "=", from)
				.where("status", "=", "Processing")
				.executeTakeFirst();
			if (Number(advanced.numUpdatedRows) === 0) return;
			const window = sql`task_id = ${task.task_id} and position > ${from} and position <= ${to} and status = 'Waitting'`;
			const started = await sql`
				update subtasks set status = 'Processing', phase = ${exchange.phase},
					due_at = ${exchange.dueAt ? instant(exchange.dueAt) : null},
					revision = revision + 1, updated_at = ${instant(now)}
				where ${window} and not exists (
					select 1 from subtasks other
					where other.device_id = subtasks.device_id and other.status = 'Processing')`.execute(
				trx,
			);
			const refused = await sql`
				update subtasks set status = 'Fail', error_code = ${failures.conflict.code},
					error_msg = ${failures.conflict.message}, revision = revision + 1, updated_at = ${instant(now)}
				where ${window}`.execute(trx);
			const deltas = new CounterDeltas();
			deltas.move(
				task.task_id,
				"Waitting",
				"Processing",
				Number(started.numAffectedRows ?? 0),
			);
			deltas.move(
				task.task_id,
				"Waitting",
				"Fail",
				Number(refused.numAffectedRows ?? 0),
			);
			await deltas.write(trx, now);
		});
	}

	/** Begins with those of the devices that are connected to this process. */
	async #speakTo(deviceIds: readonly string[]): Promise<void> {
		const { exchanges, isHere } = this.#parts;
		const here = deviceIds.filter((deviceId) => isHere(deviceId));
		const outcomes = await Promise.allSettled(
			here.map((deviceId) => exchanges.record(deviceId, { kind: "present" })),
		);
		const failed = outcomes.filter(
			({ status }) => status === "rejected",
		).length;
		// They still await their device; the next sweep speaks to them.
		if (failed > 0)
			log.warn({ devices: failed }, "could not begin with some devices");
	}

	async #sweep(): Promise<void> {
		this.#sweptAt = performance.now();
		let some: string[] = [];
		const look = async () => {
			const { rows } = await sql<{ device_id: string }>`
				select device_id from subtasks
				where status = 'Processing' and phase = 'await_online' and device_id in
					(select value from ${listTable(this.#parts.db, sql`${JSON.stringify(some)}`)} as here)`.execute(
				this.#parts.db,
			);
			some = [];
			await this.#speakTo(rows.map((row) => row.device_id));
			await nextTurn();
		};
		for (const deviceId of [...this.#parts.devicesHere()]) {
			some.push(deviceId);
			if (some.length >= 500) await look();
		}
		if (some.length > 0) await look();
	}

	#onSignal(payload: string): void {
		if (payload === "") {
			// Signals may have been missed.
			this.#sweptAt = Number.NEGATIVE_INFINITY;
		} else {
			const wake = readWake(payload);
			if (!wake) return;
			if (wake.wake === "started") {
				if (wake.node === this.#parts.nodeId) return;
				devicesAwaited(this.#parts.db, wake.task, wake.from, wake.to)
					.then((deviceIds) => this.#speakTo(deviceIds))
					.catch((error: unknown) =>
						log.warn(
							{ err: error },
							"a wake-up came to nothing; the sweep follows",
						),
					);
				return;
			}
		}
		this.#wakeUp();
	}

	#wakeUp(): void {
		this.#woken = true;
		this.#wake?.();
	}

	async #pause(): Promise<void> {
		if (!this.#woken && !this.#closed) {
			const { promise, resolve } = Promise.withResolvers<void>();
			this.#wake = resolve;
			const timer = setTimeout(resolve, TICK_MS);
			await promise;
			clearTimeout(timer);
			this.#wake = undefined;
		}
		this.#woken = false;
	}
}

/** Devices of these positions that were not spoken to yet. */
async function devicesAwaited(
	db: Db,
	taskId: string,
	from: number,
	to: number,
): Promise<string[]> {
	const rows = await db
		.selectFrom("subtasks")
		.select("device_id")
		.where("task_id", "=", taskId)
		.where("position", ">", from)
		.where("position", "<=", to)
		.where("status", "=", "Processing")
		.where("phase", "=", "await_online")
		.execute();
	return rows.map((row) => row.device_id);
}

/**
 * Devices whose running subtask is due, the most overdue first: those connected to
 * this process, which alone can speak to them, and those connected to none. One that
 * does not exist is told so, lest its subtask is due for ever.
 */
async function findDueDevices(
	db: Db,
	nodeId: string,
	now: Date,
	limit: number,
): Promise<{ deviceId: string; exists: boolean }[]> {
	const rows = await db
		.selectFrom("subtasks as s")
		.leftJoin("presence as p", "p.device_id", "s.device_id")
		.leftJoin("devices as d", "d.device_id", "s.device_id")
		.select(["s.device_id", "d.device_id as existing"])
		.where("s.due_at", "<=", instant(now))
		.where("s.status", "=", "Processing")
		.where((eb) =>
			eb.or([eb("p.node_id", "is", null), eb("p.node_id", "=", nodeId)]),
		)
		.orderBy("s.due_at")
		.limit(limit)
		.execute();
	return rows.map((row) => ({
		deviceId: row.device_id,
		exists: row.existing !== null,
	}));
}

/**
 * What ran out while nobody was there to hear the devices is not their fault: after a
 * start they get the time of a version query to come back and say how far they are.
 */
async function graceAfterOutage(
	db: Db,
	now: Date,
	graceMs: number,
): Promise<void> {
	const until = instant(new Date(now.getTime() + graceMs));
	await db
		.updateTable("subtasks")
		.set((eb) => ({ due_at: until, revision: eb("revision", "+", 1) }))
		.where("status", "=", "Processing")
		.where("due_at", "<", until)
		// A repetition that was put off has waited long enough.
		.where((eb) =>
			eb.or([
				eb("phase", "not in", ["delivered", "reporting"]),
				eb("due_at", "=", eb.ref("expires_at")),
			]),
		)
		.execute();
}

function readWake(payload: string): Wake | undefined {
	// Other kinds of signals are none of the rollout's business.
	return payload.startsWith('{"wake"')
		? (JSON.parse(payload) as Wake)
		: undefined;
}
