/** Targets -> subtasks: the devices of a task as rows, piece by piece, in the order given. */
import { type RawBuilder, type Selectable, sql } from "kysely";
import { type Db, engineOf, listTable } from "../database/database.ts";
import {
	instant,
	type SubtaskStatus,
	type UpgradeTaskGroupRow,
	type UpgradeTaskRow,
} from "../database/tables.ts";
import {
	type GroupSnapshot,
	nextWindow,
	type Walk,
	walkOf,
	windowDevices,
} from "../device-groups/device-groups.ts";
import { recordHistory } from "../history/history.ts";
import { failures } from "./failures.ts";
import { CounterDeltas } from "./task-rows.ts";

/** Devices of a piece: small enough that it never holds the event loop for long. */
export const CHUNK_SIZE = 5_000;

/** Devices of a group that are looked at in one statement. */
const WINDOW_SIZE = 500;

export function chunksOf(deviceIds: readonly string[]): string[][] {
	const chunks: string[][] = [];
	for (let start = 0; start < deviceIds.length; start += CHUNK_SIZE) {
		chunks.push(deviceIds.slice(start, start + CHUNK_SIZE));
	}
	return chunks;
}

/** The part of a task's row that its expansion reads. */
export type ExpandableTask = Pick<
	Selectable<UpgradeTaskRow>,
	| "task_id"
	| "project_id"
	| "app_id"
	| "product_key"
	| "task_type"
	| "need_confirm"
	| "expanded_parts"
	| "expanded_after"
	| "last_position"
>;

/** How far a step of an expansion came. */
export interface Expanded {
	parts: number;
	after: string;
	lastPosition: number;
}

/** Why a device cannot take part, in the order in which it is asked. */
export const refusals = [
	["unknown_device", failures.unknownDevice],
	["other_product", failures.otherProduct],
	["frozen_device", failures.frozenDevice],
	["unsupported", failures.unsupportedPackageType],
] as const;

/**
 * The reason why `d`, of product `p`, cannot take part, as an expression; null: it can.
 * Both are outer-joined.
 */
export function refusalOf(
	task: Pick<ExpandableTask, "product_key" | "task_type">,
): RawBuilder<string | null> {
	return sql`case
		when d.device_id is null then 'unknown_device'
		when d.product_key <> ${task.product_key} then 'other_product'
		when d.frozen = 1 then 'frozen_device'
		when ${sql.lit(task.task_type)} = 'moduleUpgrade' and d.speaks_modules = 0
			and coalesce(d.module_form, p.module_form) = 'none' then 'unsupported'
	end`;
}

/** The code or the text of a reason held by the column `reason`. */
export function failureOf(field: "code" | "message"): RawBuilder<string> {
	return sql`case reason ${sql.join(
		refusals.map(
			([reason, failure]) =>
				sql`when ${sql.lit(reason)} then ${sql.lit(failure[field])}`,
		),
		sql` `,
	)} end`;
}

/**
 * Makes subtasks of the next piece of a task's targets: `status`, or `Fail` at once for
 * a device that cannot take part. A device that is named twice, or is in two groups,
 * counts once.
 */
export async function expandSome(
	trx: Db,
	task: ExpandableTask,
	status: SubtaskStatus & ("Waitting" | "Stopped"),
	now: Date,
): Promise<Expanded> {
	const group = await trx
		.selectFrom("upgrade_task_groups")
		.selectAll()
		.where("task_id", "=", task.task_id)
		.where("part", "=", task.expanded_parts)
		.executeTakeFirst();
	return group
		? expandGroup(trx, task, group, status, now)
		: expandChunk(trx, task, status, now);
}

async function expandChunk(
	trx: Db,
	task: ExpandableTask,
	status: "Waitting" | "Stopped",
	now: Date,
): Promise<Expanded> {
	const chunk = task.expanded_parts;
	const ids = sql`(select device_ids from upgrade_task_targets where task_id = ${task.task_id} and chunk = ${chunk})`;
	await holdDevices(
		trx,
		sql`select value from ${listTable(trx, ids)} as listed`,
	);
	await insertSubtasks(
		trx,
		task,
		sql`
			select listed.value as device_id, listed.ordinal as ordinal, ${refusalOf(task)} as reason
			from ${listTable(trx, ids)} as listed
			left join devices d on d.device_id = listed.value and d.app_id = ${task.app_id}
			left join products p on p.product_key = d.product_key`,
		status,
		now,
	);
	return {
		parts: chunk + 1,
		after: "",
		lastPosition: await lastPosition(trx, task),
	};
}

/**
 * A group is walked in windows of candidates, not of matches: a rule that hardly any
 * device fulfils costs no more at a time than one that all do.
 */
async function expandGroup(
	trx: Db,
	task: ExpandableTask,
	row: Selectable<UpgradeTaskGroupRow>,
	status: "Waitting" | "Stopped",
	now: Date,
): Promise<Expanded> {
	const group = {
		groupId: row.group_id,
		spaceId: task.app_id,
		type: row.group_type,
		rule: row.rule,
	};
	const after = task.expanded_after;
	const walk =
		row.walk ?? (await chooseWalk(trx, task.task_id, row.part, group));
	const until = await nextWindow(trx, group, walk, after, WINDOW_SIZE);
	if (until === undefined)
		return {
			parts: task.expanded_parts + 1,
			after: "",
			lastPosition: task.last_position,
		};
	const found = windowDevices(trx, group, walk, after, until).select([
		"devices.device_id",
		"devices.product_key",
		"devices.frozen",
		"devices.speaks_modules",
		"devices.module_form",
	]);
	await holdDevices(trx, sql`select device_id from (${found}) as found`);
	await insertSubtasks(
		trx,
		task,
		sql`
			select d.device_id as device_id, row_number() over (order by d.device_id) as ordinal,
				${refusalOf(task)} as reason
			from (${found}) as d
			left join products p on p.product_key = d.product_key`,
		status,
		now,
	);
	return {
		parts: task.expanded_parts,
		after: until,
		lastPosition: await lastPosition(trx, task),
	};
}

/** Windows of positions that hold nothing would be work for nothing. */
async function lastPosition(trx: Db, task: ExpandableTask): Promise<number> {
	const { last } = await trx
		.selectFrom("subtasks")
		.select((eb) => eb.fn.max("position").as("last"))
		.where("task_id", "=", task.task_id)
		.executeTakeFirstOrThrow();
	return last ?? task.last_position;
}

async function chooseWalk(
	trx: Db,
	taskId: string,
	part: number,
	group: GroupSnapshot,
): Promise<Walk> {
	const walk = await walkOf(trx, group);
	await trx
		.updateTable("upgrade_task_groups")
		.set({ walk })
		.where("task_id", "=", taskId)
		.where("part", "=", part)
		.execute();
	return walk;
}

/** @param resolved rows of device_id, ordinal from 1, and reason */
async function insertSubtasks(
	trx: Db,
	task: ExpandableTask,
	resolved: RawBuilder<unknown>,
	status: "Waitting" | "Stopped",
	now: Date,
): Promise<void> {
	const before = task.last_position;
	const inserted = await sql`
		insert into subtasks (task_id, position, device_id, status, held, error_code, error_msg, updated_at)
		with resolved as (${resolved})
		select ${task.task_id}, ${before} + ordinal, device_id,
			case when reason is null then ${sql.lit(status)} else 'Fail' end, ${sql.lit(task.need_confirm)},
			${failureOf("code")}, ${failureOf("message")}, ${instant(now)}
		from resolved
		where true
		order by ordinal
		on conflict (task_id, device_id) do nothing`.execute(trx);
	const refused = trx
		.selectFrom("subtasks")
		.where("task_id", "=", task.task_id)
		.where("status", "=", "Fail")
		.where("position", ">", before)
		.where("position", "<=", before + CHUNK_SIZE);
	// Counting the few that failed is cheaper than reading back every row.
	const counted = await refused
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.executeTakeFirstOrThrow();
	const failed = Number(counted.count);
	if (failed > 0) {
		const rows = await refused
			.select(["device_id", "error_code", "error_msg"])
			.orderBy("position")
			.execute();
		await recordHistory(
			trx,
			rows.map(({ device_id, error_code, error_msg }) => ({
				projectId: task.project_id,
				spaceId: task.app_id,
				deviceId: device_id,
				taskId: task.task_id,
				kind: "failed",
				detail: { error_code, error_msg },
			})),
			now,
		);
	}
	const deltas = new CounterDeltas();
	deltas.move(task.task_id, null, "Fail", failed);
	deltas.move(
		task.task_id,
		null,
		status,
		Number(inserted.numAffectedRows ?? 0) - failed,
	);
	await deltas.write(trx, now);
}

/**
 * Keeps the devices from being deleted until the transaction ends: a deletion that did
 * not see their new subtasks would leave them without a device for ever. SQLite has one
 * writer, so nothing can come between there.
 *
 * @param ids a select of device ids
 */
async function holdDevices(trx: Db, ids: RawBuilder<unknown>): Promise<void> {
	if (engineOf(trx) === "sqlite") return;
	await sql`
		select device_id from devices where device_id in (${ids})
		order by device_id for key share`.execute(trx);
}
