/** Upgrade tasks as operators know them: create, list, show. Wire: batch tasks. */
import type { Selectable } from "kysely";
import { admits, type Scope } from "../access/permissions.ts";
import { type Db, inTransaction, lockForShare } from "../database/database.ts";
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
} from "../database/tables.ts";
import { findGroups } from "../device-groups/device-groups.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import {
	getResourceSpace,
	getSpaceOrDefault,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import { chunksOf } from "./targets.ts";
import { counterOf } from "./task.ts";
import type { TaskPolicy } from "./task-policy.ts";
import {
	failTask,
	markerPosition,
	positionMarker,
	recordTaskHistory,
	type UpgradeTask,
} from "./task-rows.ts";

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
	/** Either devices, or the groups they are in. */
	targets: { deviceIds: readonly string[] } | { groupIds: readonly string[] };
	packageIds: readonly string[];
	policy: TaskPolicy;
	needConfirm: boolean;
	gatewayMode: boolean;
	/** As the caller sent it: echoed in every answer. */
	sent: {
		document: Record<string, unknown>;
		targetsFilter: Record<string, unknown> | undefined;
		taskPolicy: Record<string, unknown> | undefined;
		taskExtInfo: Record<string, unknown> | undefined;
	};
}

const packageTypeOf: Readonly<Record<TaskType, PackageType>> = {
	firmwareUpgrade: "firmwarePackage",
	softwareUpgrade: "softwarePackage",
	moduleUpgrade: "modulePackage",
};

/**
 * Stores the task; the rollout makes subtasks of its targets afterwards. One that names a
 * group which does not exist has failed at once and says so.
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
	const targets =
		"deviceIds" in input.targets
			? chunksOf(input.targets.deviceIds).map((chunk) => JSON.stringify(chunk))
			: [];
	const groupIds = "groupIds" in input.targets ? input.targets.groupIds : [];
	const { policy, sent } = input;
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
			document: JSON.stringify(sent.document),
			targets_filter: jsonOrNull(sent.targetsFilter),
			task_policy: jsonOrNull(sent.taskPolicy),
			task_ext_info: jsonOrNull(sent.taskExtInfo),
			task_mode: input.gatewayMode ? "GATEWAY" : null,
			need_confirm: input.needConfirm ? 1 : 0,
			confirmed: 0,
			schedule_at: policy.scheduleAt ? instant(policy.scheduleAt) : null,
			retry_count: policy.retryCount,
			retry_interval_minutes: policy.retryIntervalMinutes,
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
			expanded_parts: 0,
			expanded_after: "",
			part_count: targets.length + groupIds.length,
			last_position: 0,
			started_position: 0,
			swept_position: null,
			due_at: instant(now),
			leased_until: null,
			leased_by: null,
			created_at: instant(now),
			finished_at: null,
			deleted_at: null,
		};
		await trx.insertInto("upgrade_tasks").values(row).execute();
		if (targets.length > 0)
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
		await recordTaskHistory(
			trx,
			row,
			"task_created",
			{ task_name: row.task_name, task_type: row.task_type },
			now,
		);
		const unknown = await storeGroups(trx, row, groupIds);
		if (unknown === undefined) return row;
		await failTask(
			trx,
			row,
			`The device group ${unknown} does not exist.`,
			now,
		);
		return trx
			.selectFrom("upgrade_tasks")
			.selectAll()
			.where("task_id", "=", taskId)
			.executeTakeFirstOrThrow();
	});
	return { task, targets };
}

/**
 * The groups as they are now: a dynamic one that is deleted while the task still looks
 * for its devices is none the less the one that was meant.
 *
 * @returns the first that does not exist
 */
async function storeGroups(
	trx: Db,
	{ task_id, app_id }: UpgradeTask,
	groupIds: readonly string[],
): Promise<string | undefined> {
	if (groupIds.length === 0) return undefined;
	const found = new Map(
		(await findGroups(trx, app_id, groupIds)).map((group) => [
			group.groupId,
			group,
		]),
	);
	const rows = [];
	for (const [part, groupId] of groupIds.entries()) {
		const group = found.get(groupId);
		if (!group) return groupId;
		rows.push({
			task_id,
			part,
			group_id: groupId,
			group_type: group.type,
			rule: group.rule,
			walk: null,
		});
	}
	await trx.insertInto("upgrade_task_groups").values(rows).execute();
	return undefined;
}

function jsonOrNull(value: Record<string, unknown> | undefined): string | null {
	return value === undefined ? null : JSON.stringify(value);
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
export async function getTask(
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
	if (!task || !admits(scope, task.app_id))
		throw new ApiError(errors.unknownTask);
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
