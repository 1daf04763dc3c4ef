/**
 * The tick: takes what is due and moves it on. Every piece of work is a row with a
 * due time, so a server that was killed goes on where it was: each step is one
 * transaction that also says how far it came.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { ArtifactStore } from "../artifacts/artifact-store.ts";
import { verifyObject } from "../artifacts/objects.ts";
import type { UpgradeTimes } from "../config.ts";
import { claimDueTasks, leaseEnd, releaseClaims } from "../database/claims.ts";
import {
	type Clock,
	type Db,
	inTransaction,
	isUniqueViolation,
} from "../database/database.ts";
import type { Signal } from "../database/signal.ts";
import { fromInstant, instant, optionalInstant } from "../database/tables.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Exchanges } from "./exchanges.ts";
import {
	type Awaited as AwaitedDevice,
	findAwaited,
	findAwaitedOn,
	findDueStarts,
	type Positions,
	type Start,
	startSome,
	stillDue,
} from "./starting.ts";
import { expandSome } from "./targets.ts";
import {
	removeDeviceFromTasks,
	removeSome,
	retrySome,
	stopSome,
} from "./task-operations.ts";
import { isTime } from "./task-policy.ts";
import {
	failTask,
	finishTasks,
	holdTaskRow,
	isConfirmed,
	setStatus,
	type UpgradeTask,
} from "./task-rows.ts";

const TICK_MS = 1_000;
/** Everybody connected here is looked at this often, in case a wake-up was lost. */
const SWEEP_MS = 60_000;
const LEASE_MS = 30_000;
const TASKS_AT_ONCE = 8;
const DUE_AT_ONCE = 500;
/** Pieces of a group that become subtasks in one transaction. */
const STEPS = 4;
/** Positions started in one transaction. */
const START_WINDOW = 500;
/** A task older than this is started with another look at its devices. */
const RECHECK_MS = 60_000;

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
	/** These subtasks were started by `node`. */
	| { wake: "started"; task: string; positions: Positions; node: string };

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
	/** Those who wait until nothing is due. */
	#awaitingQuiet: (() => void)[] = [];

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
		for (const resolve of this.#awaitingQuiet.splice(0)) resolve();
	}

	/**
	 * Resolves once nothing is due and nothing is being moved on, as seen by a look that
	 * began after the call: for those who turn the clock themselves.
	 */
	quiet(): Promise<void> {
		const { promise, resolve } = Promise.withResolvers<void>();
		this.#awaitingQuiet.push(resolve);
		this.#wakeUp();
		return promise;
	}

	async #run(): Promise<void> {
		while (!this.#closed) {
			let busy = false;
			const asked = this.#awaitingQuiet.splice(0);
			try {
				const { found, isFull } = await this.#tick();
				if (found === 0 && this.#advancing.size === 0)
					for (const resolve of asked.splice(0)) resolve();
				busy = isFull || (asked.length > 0 && this.#advancing.size === 0);
			} catch (error) {
				// The store may be away for a while; what is due stays due.
				log.error({ err: error }, "the rollout could not look for due work");
				this.#parts.events.happened("rollout_tick_failed");
			}
			this.#awaitingQuiet.unshift(...asked);
			if (!busy) await this.#pause();
			else await nextTurn();
		}
	}

	/** What was due; `isFull`: there may be more to do at once. */
	async #tick(): Promise<{ found: number; isFull: boolean }> {
		const { db, now, exchanges, nodeId } = this.#parts;
		const room = TASKS_AT_ONCE - this.#advancing.size;
		const claimed =
			room > 0 ? await claimDueTasks(db, nodeId, now(), room, LEASE_MS) : [];
		for (const taskId of claimed) this.#advance(taskId);
		const due = await findDueDevices(db, nodeId, now(), DUE_AT_ONCE);
		const there: { deviceId: string; isHere: boolean }[] = [];
		for (const { deviceId, linkId } of due) {
			if (linkId === null)
				await inTransaction(db, (trx) =>
					removeDeviceFromTasks(trx, deviceId, now()),
				);
			else there.push({ deviceId, isHere: this.#parts.isHere(linkId) });
		}
		await exchanges.settleDue(there);
		const starts = await findDueStarts(db, now(), DUE_AT_ONCE);
		await this.#startDue(starts);
		if (performance.now() - this.#sweptAt > SWEEP_MS) await this.#sweep();
		return {
			found: claimed.length + due.length + starts.length,
			isFull: due.length === DUE_AT_ONCE || starts.length === DUE_AT_ONCE,
		};
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
				task.expanded_parts === 0 &&
				task.expanded_after === ""
			) {
				if (!(await this.#verifyPackages(task))) return;
				verified = true;
			} else if (
				task.expanded_parts < task.part_count &&
				(task.status === "Initializing" || task.status === "Stopping")
			) {
				await this.#expand(task);
			} else if (task.status === "Initializing") {
				await this.#afterExpansion(task);
			} else if (task.status === "Waitting") {
				if (!(await this.#endWaiting(task))) return;
			} else if (task.status === "Processing" && task.swept_position !== null) {
				await this.#retryWindow(task.task_id);
			} else if (
				task.status === "Processing" &&
				task.started_position < task.last_position
			) {
				await this.#startWindow(task);
			} else if (task.status === "Stopping") {
				if (!(await this.#stopPiece(taskId))) return;
			} else {
				await this.#rest(taskId);
				return;
			}
			await nextTurn();
		}
	}

	/** Nothing is due any more; devices, and what falls due by itself, move the task from here on. */
	async #rest(taskId: string): Promise<void> {
		const { db } = this.#parts;
		await db
			.updateTable("upgrade_tasks")
			.set({ due_at: null, leased_until: null, leased_by: null })
			.where("task_id", "=", taskId)
			// Somebody may have asked for more in the meantime.
			.where("status", "not in", ["Stopping", "Initializing", "Waitting"])
			.where("swept_position", "is", null)
			.where((eb) =>
				eb.or([
					eb("status", "!=", "Processing"),
					eb("started_position", ">=", eb.ref("last_position")),
				]),
			)
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
			await inTransaction(db, (trx) =>
				failTask(
					trx,
					task,
					`The file ${object_key} of package ${package_id} cannot be used: ${condition}.`,
					now(),
				),
			);
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
			const same = trx
				.updateTable("upgrade_tasks")
				.where("task_id", "=", task.task_id)
				.where("expanded_parts", "=", task.expanded_parts)
				.where("expanded_after", "=", task.expanded_after)
				.where("status", "=", task.status);
			// Whoever claimed the same task after a lease ran out loses here.
			const held = await same
				.set({ leased_until: leaseEnd(now, LEASE_MS) })
				.executeTakeFirst();
			if (held.numUpdatedRows === 0n) return;
			let reached = task;
			for (let step = 0; step < STEPS; step++) {
				// Others are served in between; they only cannot write.
				if (step > 0) await nextTurn();
				const { parts, after, lastPosition } = await expandSome(
					trx,
					reached,
					task.status === "Stopping" ? "Stopped" : "Waitting",
					now,
				);
				reached = {
					...reached,
					expanded_parts: parts,
					expanded_after: after,
					last_position: lastPosition,
				};
				if (parts > task.expanded_parts) break;
			}
			const { expanded_parts, expanded_after, last_position } = reached;
			await same
				.set({ expanded_parts, expanded_after, last_position })
				.execute();
			if (expanded_parts === task.part_count)
				await finishTasks(trx, [task.task_id], now);
		});
	}

	/** All subtasks stand: the task begins, or waits for its time or a confirmation. */
	async #afterExpansion({ task_id }: UpgradeTask): Promise<void> {
		const now = this.#parts.now();
		await inTransaction(this.#parts.db, async (trx) => {
			const task = await holdTaskRow(trx, task_id);
			if (task?.status !== "Initializing") return;
			if (task.total === 0) {
				await failTask(trx, task, "The task has no devices.", now);
				return;
			}
			const scheduleAt = optionalInstant(task.schedule_at);
			// When everything was refused already there is nothing to wait for.
			const waits =
				task.waitting > 0 &&
				(!isTime(scheduleAt, now) || !(await isConfirmed(trx, task)));
			await setStatus(
				trx,
				task,
				waits ? "Waitting" : "Processing",
				{ due_at: instant(now) },
				now,
			);
			if (!waits) await finishTasks(trx, [task_id], now);
		});
	}

	/** True when the task goes on; else it rests until its time, or until somebody confirms. */
	async #endWaiting({ task_id }: UpgradeTask): Promise<boolean> {
		const now = this.#parts.now();
		return inTransaction(this.#parts.db, async (trx) => {
			const task = await holdTaskRow(trx, task_id);
			if (task?.status !== "Waitting") return task !== undefined;
			const scheduleAt = optionalInstant(task.schedule_at);
			const timely = isTime(scheduleAt, now);
			if (timely && (await isConfirmed(trx, task))) {
				await setStatus(trx, task, "Processing", {}, now);
				await finishTasks(trx, [task_id], now);
				return true;
			}
			await trx
				.updateTable("upgrade_tasks")
				.set({
					due_at: timely ? null : task.schedule_at,
					leased_until: null,
					leased_by: null,
				})
				.where("task_id", "=", task_id)
				.execute();
			return false;
		});
	}

	async #retryWindow(taskId: string): Promise<void> {
		const now = this.#parts.now();
		await inTransaction(this.#parts.db, async (trx) => {
			const task = await holdTaskRow(trx, taskId);
			if (task?.status === "Processing") await retrySome(trx, task, now);
		});
	}

	/** True when there is more to stop. */
	async #stopPiece(taskId: string): Promise<boolean> {
		const now = this.#parts.now();
		return inTransaction(this.#parts.db, async (trx) => {
			const task = await holdTaskRow(trx, taskId);
			if (task?.status !== "Stopping") return task !== undefined;
			return stopSome(trx, task, now);
		});
	}

	async #startWindow(task: UpgradeTask): Promise<void> {
		const from = task.started_position;
		const positions = { from, to: from + START_WINDOW };
		const { now } = this.#parts;
		await this.#start(task.task_id, positions, async (trx) => {
			const advanced = await trx
				.updateTable("upgrade_tasks")
				.set({
					started_position: positions.to,
					leased_until: leaseEnd(now(), LEASE_MS),
				})
				.where("task_id", "=", task.task_id)
				.where("started_position", "=", from)
				.where("status", "=", "Processing")
				.returningAll()
				.executeTakeFirst();
			return advanced
				? {
						task: advanced,
						positions,
						status: "Waitting",
						recheck:
							// Whoever waited may have been frozen in the meantime.
							task.need_confirm === 1 ||
							task.schedule_at !== null ||
							now().getTime() - fromInstant(task.created_at).getTime() >
								RECHECK_MS,
					}
				: undefined;
		});
	}

	/** Confirmed or retried one by one, or due to be tried again. */
	async #startDue(
		starts: Awaited<ReturnType<typeof findDueStarts>>,
	): Promise<void> {
		const byTask = Map.groupBy(
			starts,
			({ taskId, status }) => `${taskId}/${status}`,
		);
		for (const group of byTask.values()) {
			const [first] = group;
			if (first === undefined) continue;
			const { taskId, status } = first;
			const positions = { positions: group.map(({ position }) => position) };
			await this.#start(taskId, positions, async (trx) => {
				const task = await holdTaskRow(trx, taskId);
				if (task?.status !== "Processing") return undefined;
				const due = await stillDue(trx, taskId, positions, this.#parts.now());
				return {
					task,
					positions: { positions: due },
					status,
					recheck: true,
				};
			});
		}
	}

	/** Starts what `choose` says, in its transaction, and begins with those that are here. */
	async #start(
		taskId: string,
		positions: Positions,
		choose: (trx: Db) => Promise<Start | undefined>,
	): Promise<void> {
		const { db, signal, nodeId, now, times } = this.#parts;
		for (let attempt = 1; ; attempt++) {
			try {
				await inTransaction(db, async (trx) => {
					const start = await choose(trx);
					if (start) await startSome(trx, start, times.onlineTimeoutMs, now());
				});
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
				task: taskId,
				positions,
				node: nodeId,
			} satisfies Wake),
		);
		await this.#speakTo(await findAwaited(db, taskId, positions));
	}

	/** Begins with those of the devices that are connected to this process. */
	async #speakTo(devices: readonly AwaitedDevice[]): Promise<void> {
		const { exchanges, isHere } = this.#parts;
		const here = devices.filter(({ linkId }) => isHere(linkId));
		const outcomes = await Promise.allSettled(
			here.map(({ deviceId }) =>
				exchanges.record(deviceId, { kind: "present" }),
			),
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
			const awaited = await findAwaitedOn(this.#parts.db, some);
			some = [];
			await this.#speakTo(awaited);
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
				findAwaited(this.#parts.db, wake.task, wake.positions)
					.then((devices) => this.#speakTo(devices))
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
): Promise<{ deviceId: string; linkId: string | null }[]> {
	const rows = await db
		.selectFrom("subtasks as s")
		.leftJoin("devices as d", "d.device_id", "s.device_id")
		.leftJoin("presence as p", "p.device_id", "d.link_id")
		.select(["s.device_id", "d.link_id"])
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
		linkId: row.link_id,
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
