/**
 * What operators do with a task that stands: confirm, stop, retry, delete. Each works on
 * some targets or on all of it. All of it may be a million rows: the call does the first
 * piece and the rollout the others, one transaction each.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { type RawBuilder, type Selectable, sql, type Updateable } from "kysely";
import type { Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import {
	instant,
	optionalInstant,
	type SubtaskRow,
	type SubtaskStatus,
	type TaskStatus,
	type UpgradeTaskRow,
} from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { recordHistory } from "../history/history.ts";
import { retriableStatuses, unfinishedStatuses } from "./subtask.ts";
import { canConfirm, canDelete, canRetry, canStop, counterOf } from "./task.ts";
import { isTime } from "./task-policy.ts";
import {
	CounterDeltas,
	finishTasks,
	holdTaskRow,
	recordTaskHistory,
	type SubtaskChange,
	setStatus,
	type UpgradeTask,
	writeChanges,
} from "./task-rows.ts";
import { getTask } from "./upgrade-tasks.ts";

type Subtask = Selectable<SubtaskRow>;

/** Subtasks that one transaction changes: keeps the event loop free. */
const SWEEP_SIZE = 5_000;
/** Subtasks that one statement changes. */
const PIECE_SIZE = 500;
/** What an operation on all of a task reports about at most. */
const REPORTED_TARGETS = 100;
const EXPANSION_WAIT_MS = 5_000;
const SWEEP_WAIT_MS = 30_000;

/** What became of one target; `done`: the operation was carried out. */
export type TargetOutcome = { deviceId: string; done: boolean };

/**
 * Stops the subtasks of the given devices, or the whole task. Devices are not told:
 * the protocol has no message for it; what they fetch afterwards is refused.
 *
 * @returns what became of each target; for the whole task at most the first 100
 * @throws 403 IOTDA.014971 when the task is finished or stopping already
 */
export async function stopTask(
	db: Db,
	scope: Scope,
	taskId: string,
	deviceIds: readonly string[] | undefined,
	now: Date,
): Promise<TargetOutcome[]> {
	const found = await getTask(db, scope, taskId);
	await untilExpanded(db, found);
	if (deviceIds) await untilSwept(db, found);
	return inTransaction(db, async (trx) => {
		const task = await holdTask(trx, scope, taskId, canStop, "stopped");
		if (deviceIds)
			return onTargets(trx, task, deviceIds, unfinishedStatuses, now, {
				changeOf: (row) => endOf(row, "Stopped"),
				history: "stopped",
			});
		const first = await firstTargets(trx, task, unfinishedStatuses);
		await setStatus(
			trx,
			task,
			"Stopping",
			{
				...dueAtOnce(now),
				swept_position: 0,
				// Nobody named the devices of a group: those not looked at yet are left out.
				...(task.targets_filter === null ||
				(await hasListedTargets(trx, taskId))
					? {}
					: { expanded_parts: task.part_count }),
			},
			now,
		);
		await stopSome(
			trx,
			{ ...task, status: "Stopping", swept_position: 0 },
			now,
		);
		return first;
	});
}

/**
 * Lets subtasks begin that wait to be confirmed, or all of them.
 *
 * @returns what became of each target; for the whole task at most the first 100
 * @throws 403 IOTDA.014971 when the task is finished or being stopped
 */
export async function confirmTask(
	db: Db,
	scope: Scope,
	taskId: string,
	deviceIds: readonly string[] | undefined,
	now: Date,
): Promise<TargetOutcome[]> {
	await untilExpanded(db, await getTask(db, scope, taskId));
	return inTransaction(db, async (trx) => {
		const task = await holdTask(trx, scope, taskId, canConfirm, "confirmed");
		const isHeld = task.need_confirm === 1 && task.confirmed === 0;
		// One that was refused as a whole may have been retried before its time.
		const timely =
			task.status === "Processing" ||
			isTime(optionalInstant(task.schedule_at), now);
		const begins = task.status === "Waitting" && timely;
		const outcomes = deviceIds
			? await confirmTargets(trx, task, deviceIds, isHeld, timely, now)
			: isHeld
				? await firstTargets(trx, task, ["Waitting"], true)
				: [];
		if (!isHeld) return outcomes;
		if (deviceIds === undefined)
			await trx
				.updateTable("upgrade_tasks")
				.set({ confirmed: 1, started_position: 0 })
				.where("task_id", "=", taskId)
				.execute();
		const goesOn = outcomes.some(({ done }) => done) || !deviceIds;
		if (goesOn && begins)
			await setStatus(trx, task, "Processing", dueAtOnce(now), now);
		else if (goesOn && task.status === "Processing")
			await trx
				.updateTable("upgrade_tasks")
				.set(dueAtOnce(now))
				.where("task_id", "=", taskId)
				.execute();
		return outcomes;
	});
}

/** @param isDue its task's time has come */
async function confirmTargets(
	trx: Db,
	task: UpgradeTask,
	deviceIds: readonly string[],
	isHeld: boolean,
	isDue: boolean,
	now: Date,
): Promise<TargetOutcome[]> {
	const rows = await holdSubtasks(trx, task.task_id, deviceIds);
	const held = rows.filter(
		(row) => isHeld && row.status === "Waitting" && row.held === 1,
	);
	if (held.length > 0)
		await trx
			.updateTable("subtasks")
			.set((eb) => ({
				held: 0,
				due_at: isDue ? instant(now) : null,
				revision: eb("revision", "+", 1),
				updated_at: instant(now),
			}))
			.where("task_id", "=", task.task_id)
			.where(
				"position",
				"in",
				held.map(({ position }) => position),
			)
			.execute();
	return outcomesOf(deviceIds, held);
}

/**
 * Takes up again what failed, waits for another attempt, or was stopped, with all its
 * retries before it. A finished task runs again.
 *
 * @returns what became of each target; for the whole task at most the first 100
 * @throws 403 IOTDA.014971 unless the task runs or has failed, all of it or a part, and
 * when a package of it was deleted
 */
export async function retryTask(
	db: Db,
	scope: Scope,
	taskId: string,
	deviceIds: readonly string[] | undefined,
	now: Date,
): Promise<TargetOutcome[]> {
	return inTransaction(db, async (trx) => {
		const task = await holdTask(trx, scope, taskId, canRetry, "retried");
		await holdPackages(trx, taskId);
		const outcomes = deviceIds
			? await onTargets(trx, task, deviceIds, retriableStatuses, now, {
					changeOf: (row) => ({
						...endOf(row, "Waitting"),
						packageId: undefined,
						progress: undefined,
						// A device that was not confirmed before still is not.
						dueAt: row.held && !task.confirmed ? undefined : now,
						attempt: 0,
					}),
				})
			: await firstTargets(trx, task, retriableStatuses);
		if (!outcomes.some(({ done }) => done)) return outcomes;
		if (deviceIds === undefined) {
			// `startedPosition` goes back once the last piece waits: see `retrySome`.
			await trx
				.updateTable("upgrade_tasks")
				.set({ swept_position: 0, ...dueAtOnce(now) })
				.where("task_id", "=", taskId)
				.execute();
		}
		if (task.status !== "Processing")
			await setStatus(
				trx,
				task,
				"Processing",
				{ finished_at: null, ...dueAtOnce(now) },
				now,
			);
		if (deviceIds === undefined)
			await retrySome(trx, { ...task, swept_position: 0 }, now);
		return outcomes;
	});
}

/**
 * Kept from being deleted until the transaction ends: those of a finished task may be.
 *
 * @throws 403 IOTDA.014971 when one of them is gone
 */
async function holdPackages(trx: Db, taskId: string): Promise<void> {
	const named = await trx
		.selectFrom("upgrade_task_packages")
		.select("package_id")
		.where("task_id", "=", taskId)
		.execute();
	const ids = named.map(({ package_id }) => package_id);
	const held = await lockForShare(
		trx,
		trx
			.selectFrom("packages")
			.select("package_id")
			.where("package_id", "in", ids)
			.orderBy("package_id"),
	).execute();
	const there = new Set(held.map(({ package_id }) => package_id));
	const gone = ids.find((packageId) => !there.has(packageId));
	if (gone !== undefined)
		throw new ApiError(errors.taskStatus, {
			detail: `The package ${gone} of the task was deleted.`,
		});
}

/** @throws 403 IOTDA.014971 while the task is unfinished */
export async function deleteTask(
	db: Db,
	scope: Scope,
	taskId: string,
	now: Date,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const task = await getTask(trx, scope, taskId);
		const held = await holdTaskRow(trx, taskId);
		if (!held) throw new ApiError(errors.unknownTask);
		if (!canDelete(held.status)) {
			throw new ApiError(errors.taskStatus, {
				detail: `A task in ${held.status} cannot be deleted; stop it first.`,
			});
		}
		// Its rows may be a million: the rollout removes them in pieces.
		await trx
			.updateTable("upgrade_tasks")
			.set({
				deleted_at: instant(now),
				due_at: instant(now),
				leased_until: null,
			})
			.where("task_id", "=", taskId)
			.execute();
		await recordTaskHistory(trx, task, "task_deleted", {}, now);
	});
}

/** A device is being deleted in this transaction: its unfinished subtasks become Removed. */
export async function removeDeviceFromTasks(
	trx: Db,
	deviceId: string,
	now: Date,
): Promise<void> {
	const open = await lockForUpdate(
		trx,
		trx
			.selectFrom("subtasks")
			.selectAll()
			.where("device_id", "=", deviceId)
			.where("status", "in", [...unfinishedStatuses])
			.orderBy("task_id"),
	).execute();
	if (open.length === 0) return;
	await writeChanges(
		trx,
		open.map((row) => endOf(row, "Removed")),
		now,
	);
	const tasks = await trx
		.selectFrom("upgrade_tasks")
		.select(["task_id", "project_id", "app_id"])
		.where(
			"task_id",
			"in",
			open.map(({ task_id }) => task_id),
		)
		.execute();
	await recordHistory(
		trx,
		tasks.map(({ task_id, project_id, app_id }) => ({
			projectId: project_id,
			spaceId: app_id,
			deviceId,
			taskId: task_id,
			kind: "removed",
		})),
		now,
	);
}

// --- all of a task, piece by piece -------------------------------------------------

/**
 * Stops the next piece of a task that is held.
 *
 * @returns false when there is nothing left, and the task has its result
 */
export async function stopSome(
	trx: Db,
	task: UpgradeTask,
	now: Date,
): Promise<boolean> {
	const { task_id: taskId } = task;
	const pieces = await nextPieces(trx, task);
	if (pieces.length === 0) {
		await finishTasks(trx, [taskId], now);
		return false;
	}
	const deltas = new CounterDeltas();
	for (const piece of pieces) {
		// Told of devices that were offered something: for them it changes something.
		await sql`
			insert into history (project_id, app_id, device_id, task_id, kind, at)
			select ${task.project_id}, ${task.app_id}, device_id, task_id, 'stopped', ${instant(now)}
			from subtasks where ${piece} and status = 'Processing' and offered_at is not null
			order by position`.execute(trx);
		for (const status of unfinishedStatuses) {
			if (task[counterOf[status]] === 0) continue;
			const result = await sql`
				update subtasks set status = 'Stopped', phase = null, due_at = null, asked = 0,
					error_code = null, error_msg = null,
					revision = revision + 1, updated_at = ${instant(now)}
				where ${piece} and status = ${sql.lit(status)}`.execute(trx);
			deltas.move(
				taskId,
				status,
				"Stopped",
				Number(result.numAffectedRows ?? 0),
			);
		}
		// Others are served in between; they only cannot write.
		await nextTurn();
	}
	await deltas.write(trx, now);
	return true;
}

/**
 * Takes the next piece of a held task up again. After the last piece the task starts
 * what waits in it from its first position on.
 */
export async function retrySome(
	trx: Db,
	task: UpgradeTask,
	now: Date,
): Promise<void> {
	const { task_id: taskId } = task;
	const pieces = await nextPieces(trx, task, { started_position: 0 });
	const deltas = new CounterDeltas();
	for (const piece of pieces) {
		for (const status of retriableStatuses) {
			if (task[counterOf[status]] === 0) continue;
			const result = await sql`
				update subtasks set status = 'Waitting', attempt = 0, phase = null, due_at = null, asked = 0,
					package_id = null, offered_at = null, expires_at = null, progress = null,
					output = null, error_code = null, error_msg = null,
					revision = revision + 1, updated_at = ${instant(now)}
				where ${piece} and status = ${sql.lit(status)}`.execute(trx);
			deltas.move(
				taskId,
				status,
				"Waitting",
				Number(result.numAffectedRows ?? 0),
			);
		}
		await nextTurn();
	}
	await deltas.write(trx, now);
	// What it took up may have been stopped or removed before the last piece.
	await finishTasks(trx, [taskId], now);
}

/**
 * The next positions that a sweep over a held task has not reached, as conditions; none:
 * no sweep is under way. `then` goes along with the last of them.
 */
async function nextPieces(
	trx: Db,
	{ task_id, swept_position, last_position }: UpgradeTask,
	then: Updateable<UpgradeTaskRow> = {},
): Promise<RawBuilder<unknown>[]> {
	if (swept_position === null) return [];
	const to = Math.min(swept_position + SWEEP_SIZE, last_position);
	await trx
		.updateTable("upgrade_tasks")
		.set(
			to >= last_position
				? { ...then, swept_position: null }
				: { swept_position: to },
		)
		.where("task_id", "=", task_id)
		.execute();
	const pieces: RawBuilder<unknown>[] = [];
	for (let from = swept_position; from < to; from += PIECE_SIZE)
		pieces.push(
			sql`task_id = ${task_id} and position > ${from} and position <= ${from + PIECE_SIZE}`,
		);
	return pieces;
}

/** Removes a piece of a deleted task; true when nothing is left of it. */
export async function removeSome(db: Db, taskId: string): Promise<boolean> {
	return inTransaction(db, async (trx) => {
		const result = await sql`
			delete from subtasks where task_id = ${taskId} and position in (
				select position from subtasks where task_id = ${taskId} order by position limit ${sql.lit(SWEEP_SIZE)})`.execute(
			trx,
		);
		if (Number(result.numAffectedRows ?? 0) > 0) return false;
		for (const table of [
			"upgrade_task_targets",
			"upgrade_task_groups",
			"upgrade_task_packages",
			"upgrade_tasks",
		] as const) {
			await trx.deleteFrom(table).where("task_id", "=", taskId).execute();
		}
		return true;
	});
}

// --- some targets ------------------------------------------------------------------

async function onTargets(
	trx: Db,
	task: UpgradeTask,
	deviceIds: readonly string[],
	statuses: readonly SubtaskStatus[],
	now: Date,
	how: { changeOf: (row: Subtask) => SubtaskChange; history?: "stopped" },
): Promise<TargetOutcome[]> {
	const rows = await holdSubtasks(trx, task.task_id, deviceIds);
	const chosen = rows.filter(({ status }) => statuses.includes(status));
	await writeChanges(trx, chosen.map(how.changeOf), now);
	const { history } = how;
	if (history)
		await recordHistory(
			trx,
			chosen.map(({ device_id }) => ({
				projectId: task.project_id,
				spaceId: task.app_id,
				deviceId: device_id,
				taskId: task.task_id,
				kind: history,
			})),
			now,
		);
	return outcomesOf(deviceIds, chosen);
}

function holdSubtasks(
	trx: Db,
	taskId: string,
	deviceIds: readonly string[],
): Promise<Subtask[]> {
	return lockForUpdate(
		trx,
		trx
			.selectFrom("subtasks")
			.selectAll()
			.where("task_id", "=", taskId)
			.where("device_id", "in", [...deviceIds])
			.orderBy("position"),
	).execute();
}

function outcomesOf(
	deviceIds: readonly string[],
	chosen: readonly Subtask[],
): TargetOutcome[] {
	const done = new Set(chosen.map((row) => row.device_id));
	return [...new Set(deviceIds)].map((deviceId) => ({
		deviceId,
		done: done.has(deviceId),
	}));
}

/** The first targets in one of the statuses: status by status, since each has its index. */
async function firstTargets(
	trx: Db,
	task: UpgradeTask,
	statuses: readonly SubtaskStatus[],
	held?: true,
): Promise<TargetOutcome[]> {
	const found: { position: number; device_id: string }[] = [];
	for (const status of statuses) {
		if (task[counterOf[status]] === 0) continue;
		let query = trx
			.selectFrom("subtasks")
			.select(["position", "device_id"])
			.where("task_id", "=", task.task_id)
			.where("status", "=", status)
			.orderBy("position")
			.limit(REPORTED_TARGETS);
		if (held) query = query.where("held", "=", 1);
		found.push(...(await query.execute()));
	}
	return found
		.sort((a, b) => a.position - b.position)
		.slice(0, REPORTED_TARGETS)
		.map(({ device_id }) => ({ deviceId: device_id, done: true }));
}

// --- both --------------------------------------------------------------------------

/** The caller's task, held until the transaction ends, in a status that allows the operation. */
async function holdTask(
	trx: Db,
	scope: Scope,
	taskId: string,
	allows: (status: TaskStatus) => boolean,
	words: string,
): Promise<UpgradeTask> {
	await getTask(trx, scope, taskId);
	const task = await holdTaskRow(trx, taskId);
	if (!task) throw new ApiError(errors.unknownTask);
	if (!allows(task.status)) {
		throw new ApiError(errors.taskStatus, {
			detail: `A task in ${task.status} cannot be ${words}.`,
		});
	}
	return task;
}

/**
 * An operation right after the creation finds its targets: they become subtasks within
 * the second. When they do not, it goes on all the same.
 */
async function untilExpanded(db: Db, task: UpgradeTask): Promise<void> {
	await until(
		db,
		task,
		({ status }) => status !== "Initializing",
		EXPANSION_WAIT_MS,
	);
}

/** A retry of everything would take up again what is stopped ahead of where it is. */
async function untilSwept(db: Db, task: UpgradeTask): Promise<void> {
	await until(
		db,
		task,
		({ status, swept_position }) =>
			status !== "Processing" || swept_position === null,
		SWEEP_WAIT_MS,
	);
}

async function until(
	db: Db,
	task: UpgradeTask,
	holds: (task: Pick<UpgradeTask, "status" | "swept_position">) => boolean,
	waitMs: number,
): Promise<void> {
	const deadlineMs = performance.now() + waitMs;
	let row: Parameters<typeof holds>[0] | undefined = task;
	while (row && !holds(row) && performance.now() < deadlineMs) {
		await new Promise((resolve) => setTimeout(resolve, 20));
		row = await db
			.selectFrom("upgrade_tasks")
			.select(["status", "swept_position"])
			.where("task_id", "=", task.task_id)
			.executeTakeFirst();
	}
}

async function hasListedTargets(trx: Db, taskId: string): Promise<boolean> {
	const listed = await trx
		.selectFrom("upgrade_task_targets")
		.select("chunk")
		.where("task_id", "=", taskId)
		.limit(1)
		.executeTakeFirst();
	return listed !== undefined;
}

function dueAtOnce(now: Date) {
	return { due_at: instant(now), leased_until: null, leased_by: null };
}

function endOf(
	row: Subtask,
	to: "Stopped" | "Removed" | "Waitting",
): SubtaskChange {
	return {
		taskId: row.task_id,
		position: row.position,
		revision: row.revision,
		from: row.status,
		to,
		packageId: row.package_id ?? undefined,
		progress: row.progress ?? undefined,
	};
}
