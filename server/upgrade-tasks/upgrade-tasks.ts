/** Upgrade tasks as operators know them: create, list, show, stop, delete. Wire: batch tasks. */
import { type Selectable, sql } from "kysely";
import { maySee, requireAction, type Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	instant,
	type PackageRow,
	type PackageType,
	type SubtaskRow,
	type SubtaskStatus,
	type TaskStatus,
	type TaskType,
	type UpgradeTaskRow,
} from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import {
	getResourceSpace,
	getSpaceOrDefault,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import { unfinishedStatuses } from "./subtask.ts";
import { chunksOf } from "./targets.ts";
import { canDelete, canStop, counterOf } from "./task.ts";
import {
	CounterDeltas,
	markerPosition,
	positionMarker,
	type SubtaskChange,
	writeChanges,
} from "./task-rows.ts";

export type UpgradeTask = Selectable<UpgradeTaskRow>;
export type Subtask = Selectable<SubtaskRow>;
/** Submitted targets are a table of their own: only what shows them reads them. */
export interface TaskWithTargets {
	task: UpgradeTask;
	/** The submitted device ids, in chunks: JSON lists, as text that is only passed on. */
	targets: string[];
}

export interface NewTask {
	spaceId: string | undefined;
	name: string;
	type: TaskType;
	deviceIds: readonly string[];
	packageIds: readonly string[];
	/** As the caller sent it: echoed in every answer. */
	document: Record<string, unknown>;
}

const packageTypeOf: Readonly<Record<TaskType, PackageType>> = {
	firmwareUpgrade: "firmwarePackage",
	softwareUpgrade: "softwarePackage",
	moduleUpgrade: "modulePackage",
};

/** Subtasks that one transaction stops or removes: keeps the event loop free. */
const SWEEP_SIZE = 1_000;
/** What a stop of everything reports about at most. */
const REPORTED_TARGETS = 100;
const EXPANSION_WAIT_MS = 5_000;

/**
 * Stores the task; the rollout makes subtasks of its targets afterwards.
 *
 * @throws 400 when a package is unknown, of another type than the task, or unlike the others
 */
export async function createTask(
	db: Db,
	scope: Scope,
	input: NewTask,
	now: Date,
): Promise<TaskWithTargets> {
	const space = await getSpaceOrDefault(db, scope, input.spaceId);
	const targets = chunksOf(input.deviceIds).map((chunk) =>
		JSON.stringify(chunk),
	);
	const task = await inTransaction(db, async (trx) => {
		const packages = await holdPackages(trx, scope, space.app_id, input);
		const first = packages[0];
		if (!first)
			throw invalidInput(
				"document.package_ids",
				"must name at least one package",
			);
		// Time-ordered, so that a task's subtasks are appended to the indexes rather than
		// strewn over them: half the time for a large task.
		const taskId = newRecordId(now);
		const row: UpgradeTask = {
			task_id: taskId,
			record_id: taskId,
			project_id: scope.projectId,
			app_id: space.app_id,
			product_key: first.product_key,
			task_name: input.name,
			task_type: input.type,
			module_name: first.module_name,
			target_version: first.version,
			document: JSON.stringify(input.document),
			status: "Initializing",
			status_desc: null,
			total: 0,
			waitting: 0,
			processing: 0,
			success: 0,
			fail: 0,
			fail_wait_retry: 0,
			stopped: 0,
			removed: 0,
			expanded_chunks: 0,
			chunk_count: targets.length,
			started_position: 0,
			due_at: instant(now),
			leased_until: null,
			leased_by: null,
			created_at: instant(now),
			finished_at: null,
			deleted_at: null,
		};
		await trx.insertInto("upgrade_tasks").values(row).execute();
		await trx
			.insertInto("upgrade_task_targets")
			.values(
				targets.map((device_ids, chunk) => ({
					task_id: row.task_id,
					chunk,
					device_ids,
				})),
			)
			.execute();
		await trx
			.insertInto("upgrade_task_packages")
			.values(
				packages.map(({ package_id }) => ({
					task_id: row.task_id,
					package_id,
				})),
			)
			.execute();
		return row;
	});
	return { task, targets };
}

/** The packages of a new task, kept from being deleted until the transaction ends. */
async function holdPackages(
	trx: Db,
	scope: Scope,
	spaceId: string,
	input: NewTask,
): Promise<Selectable<PackageRow>[]> {
	const found = await lockForShare(
		trx,
		trx
			.selectFrom("packages")
			.selectAll()
			.where("project_id", "=", scope.projectId)
			.where("app_id", "=", spaceId)
			.where("package_id", "in", [...input.packageIds])
			.orderBy("package_id"),
	).execute();
	const byId = new Map(found.map((row) => [row.package_id, row]));
	const packages = input.packageIds.map((packageId, index) => {
		const row = byId.get(packageId);
		if (!row) {
			throw new ApiError(errors.unknownPackageNamed, {
				detail: `document.package_ids[${index}] names no package of the application.`,
			});
		}
		return row;
	});
	const first = packages[0];
	for (const [index, row] of packages.entries()) {
		const field = `document.package_ids[${index}]`;
		if (row.package_type !== packageTypeOf[input.type]) {
			throw invalidInput(
				field,
				`must name a ${packageTypeOf[input.type]} for a task of type ${input.type}, not a ${row.package_type}`,
			);
		}
		if (!first) continue;
		if (row.product_key !== first.product_key)
			throw invalidInput(
				field,
				"must belong to the same product as the others",
			);
		if (row.module_name !== first.module_name)
			throw invalidInput(
				field,
				"must be for the same module as the others: a task upgrades one module",
			);
		if (row.version !== first.version)
			throw invalidInput(field, "must have the same version as the others");
	}
	return packages;
}

export interface TaskFilter {
	/** Of a type that upgrades nothing there are none. */
	type: string;
	spaceId: string | undefined;
	status: TaskStatus | undefined;
}

export async function listTasks(
	db: Db,
	scope: Scope,
	filter: TaskFilter,
	page: Page,
): Promise<PageResult<UpgradeTask>> {
	if (filter.spaceId !== undefined)
		await getResourceSpace(db, scope, filter.spaceId);
	let query = db
		.selectFrom("upgrade_tasks")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.where("task_type", "=", filter.type as TaskType)
		.where("deleted_at", "is", null);
	if (filter.spaceId !== undefined) {
		query = query.where("app_id", "=", filter.spaceId);
	} else {
		const visible = await visibleSpaceIds(db, scope);
		if (visible)
			query = query.where("app_id", "in", visible.length > 0 ? visible : [""]);
	}
	if (filter.status !== undefined)
		query = query.where("status", "=", filter.status);
	return listPage(query, "upgrade_tasks.record_id", page);
}

/** The targets of a task as they were submitted, in chunks: JSON lists, as text. */
export async function listTargets(db: Db, taskId: string): Promise<string[]> {
	const rows = await db
		.selectFrom("upgrade_task_targets")
		.select("device_ids")
		.where("task_id", "=", taskId)
		.orderBy("chunk")
		.execute();
	return rows.map((row) => row.device_ids);
}

/** @throws 404 IOTDA.014970 */
async function getTask(
	db: Db,
	scope: Scope,
	taskId: string,
): Promise<UpgradeTask> {
	const task = await db
		.selectFrom("upgrade_tasks")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.where("task_id", "=", taskId)
		.where("deleted_at", "is", null)
		.executeTakeFirst();
	if (!task || !maySee(scope, task.app_id))
		throw new ApiError(errors.unknownTask);
	requireAction(scope, scope.action, task.app_id);
	return task;
}

export interface SubtaskFilter {
	status: SubtaskStatus | undefined;
	deviceId: string | undefined;
}

/**
 * The task with one page of its subtasks, the last ones of the target list first.
 * The count comes from the task's counters, so a page costs the same on a task of a
 * million devices.
 */
export async function showTask(
	db: Db,
	scope: Scope,
	taskId: string,
	filter: SubtaskFilter,
	page: Page,
): Promise<
	TaskWithTargets & {
		subtasks: Subtask[];
		page: { count: number; marker?: string };
	}
> {
	const task = await getTask(db, scope, taskId);
	let query = db
		.selectFrom("subtasks")
		.selectAll()
		.where("task_id", "=", taskId)
		.where("position", "<", markerPosition(page.marker))
		.orderBy("position", "desc")
		.limit(page.limit)
		.offset(page.offset);
	if (filter.status !== undefined)
		query = query.where("status", "=", filter.status);
	if (filter.deviceId !== undefined)
		query = query.where("device_id", "=", filter.deviceId);
	const subtasks = await query.execute();
	const last = subtasks.at(-1);
	return {
		task,
		targets: await listTargets(db, taskId),
		subtasks,
		page: {
			count: await countSubtasks(db, task, filter),
			...(last ? { marker: positionMarker(last.position) } : {}),
		},
	};
}

async function countSubtasks(
	db: Db,
	task: UpgradeTask,
	filter: SubtaskFilter,
): Promise<number> {
	if (filter.deviceId === undefined) {
		return filter.status === undefined
			? task.total
			: task[counterOf[filter.status]];
	}
	// A device stands in a task once.
	const row = await db
		.selectFrom("subtasks")
		.select("status")
		.where("task_id", "=", task.task_id)
		.where("device_id", "=", filter.deviceId)
		.executeTakeFirst();
	return row && (filter.status === undefined || row.status === filter.status)
		? 1
		: 0;
}

export type TargetOutcome = { deviceId: string; stopped: boolean };

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
	await untilExpanded(db, await getTask(db, scope, taskId));
	return inTransaction(db, async (trx) => {
		const seen = await getTask(trx, scope, taskId);
		const { status } = await lockForUpdate(
			trx,
			trx
				.selectFrom("upgrade_tasks")
				.select("status")
				.where("task_id", "=", seen.task_id),
		).executeTakeFirstOrThrow();
		if (!canStop(status)) {
			throw new ApiError(errors.taskStatus, {
				detail: `A task in ${status} cannot be stopped.`,
			});
		}
		if (deviceIds) return stopTargets(trx, taskId, deviceIds, now);
		await trx
			.updateTable("upgrade_tasks")
			.set({ status: "Stopping", due_at: instant(now), leased_until: null })
			.where("task_id", "=", taskId)
			.execute();
		const first = await trx
			.selectFrom("subtasks")
			.select("device_id")
			.where("task_id", "=", taskId)
			.where("status", "in", [...unfinishedStatuses])
			.orderBy("position")
			.limit(REPORTED_TARGETS)
			.execute();
		await stopSome(trx, taskId, now);
		return first.map((row) => ({ deviceId: row.device_id, stopped: true }));
	});
}

/**
 * A stop right after the creation finds its targets: they become subtasks within the
 * second. When they do not, the stop goes on all the same.
 */
async function untilExpanded(db: Db, task: UpgradeTask): Promise<void> {
	const deadlineMs = performance.now() + EXPANSION_WAIT_MS;
	let status: TaskStatus | undefined = task.status;
	while (status === "Initializing" && performance.now() < deadlineMs) {
		await new Promise((resolve) => setTimeout(resolve, 20));
		const row = await db
			.selectFrom("upgrade_tasks")
			.select("status")
			.where("task_id", "=", task.task_id)
			.executeTakeFirst();
		status = row?.status;
	}
}

async function stopTargets(
	trx: Db,
	taskId: string,
	deviceIds: readonly string[],
	now: Date,
): Promise<TargetOutcome[]> {
	const found = await lockForUpdate(
		trx,
		trx
			.selectFrom("subtasks")
			.selectAll()
			.where("task_id", "=", taskId)
			.where("device_id", "in", [...deviceIds])
			.orderBy("position"),
	).execute();
	const open = found.filter((row) => isUnfinished(row.status));
	await writeChanges(
		trx,
		open.map((row) => endOf(row, "Stopped")),
		now,
	);
	const stopped = new Set(open.map((row) => row.device_id));
	return [...new Set(deviceIds)].map((deviceId) => ({
		deviceId,
		stopped: stopped.has(deviceId),
	}));
}

/**
 * Stops up to a thousand of what is unfinished in a task.
 *
 * @returns how many; 0 when there is nothing left
 */
export async function stopSome(
	trx: Db,
	taskId: string,
	now: Date,
): Promise<number> {
	const deltas = new CounterDeltas();
	let stopped = 0;
	for (const status of unfinishedStatuses) {
		if (stopped >= SWEEP_SIZE) break;
		const result = await sql`
			update subtasks set status = 'Stopped', phase = null, due_at = null, asked = 0,
				revision = revision + 1, updated_at = ${instant(now)}
			where task_id = ${taskId} and status = ${status} and position in (
				select position from subtasks where task_id = ${taskId} and status = ${status}
				order by position limit ${sql.lit(SWEEP_SIZE - stopped)})`.execute(trx);
		const count = Number(result.numAffectedRows ?? 0);
		deltas.move(taskId, status, "Stopped", count);
		stopped += count;
	}
	await deltas.write(trx, now);
	return stopped;
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
		if (!canDelete(task.status)) {
			throw new ApiError(errors.taskStatus, {
				detail: `A task in ${task.status} cannot be deleted; stop it first.`,
			});
		}
		// A finished task moves no more, so nothing can come between. Its rows may be
		// a million: the rollout removes them in pieces.
		await trx
			.updateTable("upgrade_tasks")
			.set({
				deleted_at: instant(now),
				due_at: instant(now),
				leased_until: null,
			})
			.where("task_id", "=", taskId)
			.execute();
	});
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
			"upgrade_task_packages",
			"upgrade_tasks",
		] as const) {
			await trx.deleteFrom(table).where("task_id", "=", taskId).execute();
		}
		return true;
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
	await writeChanges(
		trx,
		open.map((row) => endOf(row, "Removed")),
		now,
	);
}

function endOf(row: Subtask, to: "Stopped" | "Removed"): SubtaskChange {
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

function isUnfinished(status: SubtaskStatus): boolean {
	return (unfinishedStatuses as readonly SubtaskStatus[]).includes(status);
}
