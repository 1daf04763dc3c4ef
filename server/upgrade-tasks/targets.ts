/** Targets -> subtasks: the devices of a task as rows, chunk by chunk, in the order given. */
import { type RawBuilder, sql } from "kysely";
import { type Db, engineOf, listTable } from "../database/database.ts";
import {
	instant,
	type SubtaskStatus,
	type TaskType,
} from "../database/tables.ts";
import { failures } from "./failures.ts";
import { CounterDeltas } from "./task-rows.ts";

/** Device ids of a chunk: small enough that a chunk never holds the event loop for long. */
export const CHUNK_SIZE = 5_000;

export function chunksOf(deviceIds: readonly string[]): string[][] {
	const chunks: string[][] = [];
	for (let start = 0; start < deviceIds.length; start += CHUNK_SIZE) {
		chunks.push(deviceIds.slice(start, start + CHUNK_SIZE));
	}
	return chunks;
}

export interface ExpandableTask {
	taskId: string;
	projectId: string;
	productKey: string;
	taskType: TaskType;
}

/** Why a device cannot take part, in the order in which it is asked. */
const refusals = [
	["unknown_device", failures.unknownDevice],
	["other_product", failures.otherProduct],
	["frozen_device", failures.frozenDevice],
	["child_device", failures.childDevice],
	["unsupported", failures.unsupportedPackageType],
] as const;

/**
 * Makes subtasks of one chunk of targets: `status`, or `Fail` at once for a device
 * that cannot take part. A device named twice counts once.
 */
export async function expandChunk(
	trx: Db,
	task: ExpandableTask,
	chunk: number,
	status: SubtaskStatus & ("Waitting" | "Stopped"),
	now: Date,
): Promise<void> {
	const ids = sql`(select device_ids from upgrade_task_targets where task_id = ${task.taskId} and chunk = ${chunk})`;
	const pick = (field: "code" | "message") =>
		sql`case reason ${sql.join(
			refusals.map(
				([reason, failure]) =>
					sql`when ${sql.lit(reason)} then ${sql.lit(failure[field])}`,
			),
			sql` `,
		)} end`;
	await holdDevices(trx, ids);
	const before = chunk * CHUNK_SIZE;
	const inserted = await sql`
		insert into subtasks (task_id, position, device_id, status, error_code, error_msg, updated_at)
		with resolved as (
			select listed.value as device_id, listed.ordinal as ordinal,
				case
					when d.device_id is null then 'unknown_device'
					when d.product_key <> ${task.productKey} then 'other_product'
					when d.frozen = 1 then 'frozen_device'
					when d.gateway_id is not null then 'child_device'
					when ${sql.lit(task.taskType)} = 'moduleUpgrade' and d.speaks_modules = 0
						and coalesce(d.module_form, p.module_form) = 'none' then 'unsupported'
				end as reason
			from ${listTable(trx, ids)} as listed
			left join devices d on d.device_id = listed.value and d.project_id = ${task.projectId}
			left join products p on p.product_key = d.product_key
		)
		select ${task.taskId}, ${before} + ordinal, device_id,
			case when reason is null then ${sql.lit(status)} else 'Fail' end,
			${pick("code")}, ${pick("message")}, ${instant(now)}
		from resolved
		where true
		order by ordinal
		on conflict (task_id, device_id) do nothing`.execute(trx);
	// Counting the few that failed is cheaper than reading back every row.
	const { refused } = await trx
		.selectFrom("subtasks")
		.select((eb) => eb.fn.countAll<number>().as("refused"))
		.where("task_id", "=", task.taskId)
		.where("status", "=", "Fail")
		.where("position", ">", before)
		.where("position", "<=", before + CHUNK_SIZE)
		.executeTakeFirstOrThrow();
	const failed = Number(refused);
	const deltas = new CounterDeltas();
	deltas.move(task.taskId, null, "Fail", failed);
	deltas.move(
		task.taskId,
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
 */
async function holdDevices(trx: Db, ids: RawBuilder<unknown>): Promise<void> {
	if (engineOf(trx) === "sqlite") return;
	await sql`
		select device_id from devices
		where device_id in (select value from ${listTable(trx, ids)} as listed)
		order by device_id for key share`.execute(trx);
}
