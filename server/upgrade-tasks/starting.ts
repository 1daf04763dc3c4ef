/** Waitting and FailWaitRetry -> Processing: a piece of a task's subtasks at a time. */
import { type RawBuilder, sql } from "kysely";
import { type Db, listTable } from "../database/database.ts";
import { instant, type SubtaskStatus } from "../database/tables.ts";
import { recordHistory } from "../history/history.ts";
import { type Failure, failures } from "./failures.ts";
import { startedExchange } from "./subtask.ts";
import { failureOf, refusalOf } from "./targets.ts";
import { retryAt } from "./task-policy.ts";
import { CounterDeltas, type UpgradeTask } from "./task-rows.ts";

/** Which subtasks of a task: a window of positions, or some of them. */
export type Positions =
	| { from: number; to: number }
	| { positions: readonly number[] };

export interface Start {
	task: UpgradeTask;
	positions: Positions;
	/** What they are in: a FailWaitRetry begins its next attempt. */
	status: SubtaskStatus & ("Waitting" | "FailWaitRetry");
	/**
	 * Whether each device can take part is looked at again, since that was long ago. It
	 * always is for those that somebody retried: they may have been refused before.
	 */
	recheck: boolean;
}

/**
 * Starts the subtasks: each becomes Processing, unless its device is in another exchange
 * or can take no part. What waits for a confirmation is left alone.
 */
export async function startSome(
	trx: Db,
	start: Start,
	onlineTimeoutMs: number,
	now: Date,
): Promise<void> {
	const { task, status } = start;
	const chosen = (alias: "s" | "subtasks") =>
		sql`${within(trx, task.task_id, start.positions, alias)}
			and ${sql.ref(`${alias}.status`)} = ${sql.lit(status)}
			${task.confirmed ? sql`` : sql`and ${sql.ref(`${alias}.held`)} = 0`}`;
	const at = instant(now);
	const deltas = new CounterDeltas();
	// The retries made by themselves, this one included.
	const attempt = status === "FailWaitRetry" ? sql`attempt + 1` : sql`attempt`;
	const refused = await sql<Ended>`
		update subtasks set status = 'Fail', error_code = r.code, error_msg = r.message,
			attempt = ${attempt}, due_at = null, revision = revision + 1, updated_at = ${at}
		from (
			select position, ${failureOf("code")} as code, ${failureOf("message")} as message
			from (
				select s.position as position, ${refusalOf(task)} as reason
				from subtasks s
				left join devices d on d.device_id = s.device_id and d.project_id = ${task.project_id}
				left join products p on p.product_key = d.product_key
				where ${chosen("s")} ${start.recheck ? sql`` : sql`and s.revision > 0`}
			) as looked_at where reason is not null
		) as r
		where subtasks.task_id = ${task.task_id} and subtasks.position = r.position
		returning device_id, attempt, error_code, error_msg`.execute(trx);
	deltas.move(task.task_id, status, "Fail", refused.rows.length);
	await record(trx, task, "failed", refused.rows, now);
	const exchange = startedExchange(now, onlineTimeoutMs);
	const started = await sql`
		update subtasks set status = 'Processing', phase = ${exchange.phase}, asked = 0,
			due_at = ${exchange.dueAt ? instant(exchange.dueAt) : null}, attempt = ${attempt},
			package_id = null, offered_at = null, expires_at = null, progress = null,
			output = null, error_code = null, error_msg = null,
			revision = revision + 1, updated_at = ${at}
		where ${chosen("subtasks")} and not exists (
			select 1 from subtasks other
			where other.device_id = subtasks.device_id and other.status = 'Processing')`.execute(
		trx,
	);
	deltas.move(
		task.task_id,
		status,
		"Processing",
		Number(started.numAffectedRows ?? 0),
	);
	// What is left has a device that is in the middle of another upgrade.
	const fail = (failure: Failure) =>
		sql`error_code = ${failure.code}, error_msg = ${failure.message}`;
	const spent = await sql<Ended>`
		update subtasks set status = 'Fail', ${fail(failures.conflict)}, attempt = ${attempt}, due_at = null,
			revision = revision + 1, updated_at = ${at}
		where ${chosen("subtasks")} and ${attempt} >= ${sql.lit(task.retry_count)}
		returning device_id, attempt, error_code, error_msg`.execute(trx);
	deltas.move(task.task_id, status, "Fail", spent.rows.length);
	await record(trx, task, "failed", spent.rows, now);
	if (task.retry_count > 0) {
		const dueAt = retryAt(
			{
				retryCount: task.retry_count,
				retryIntervalMinutes: task.retry_interval_minutes,
			},
			0,
			now,
		);
		const again = await sql<Ended>`
			update subtasks set status = 'FailWaitRetry', ${fail(failures.conflict)}, attempt = ${attempt},
				due_at = ${dueAt ? instant(dueAt) : null}, revision = revision + 1, updated_at = ${at}
			where ${chosen("subtasks")}
			returning device_id, attempt, error_code, error_msg`.execute(trx);
		deltas.move(task.task_id, status, "FailWaitRetry", again.rows.length);
		await record(trx, task, "retry_scheduled", again.rows, now, {
			of: task.retry_count,
			due_at: dueAt?.toISOString(),
		});
	}
	await deltas.write(trx, now);
}

interface Ended {
	device_id: string;
	attempt: number;
	error_code: string;
	error_msg: string;
}

function record(
	trx: Db,
	task: UpgradeTask,
	kind: "failed" | "retry_scheduled",
	ended: readonly Ended[],
	now: Date,
	more: Record<string, unknown> = {},
): Promise<void> {
	return recordHistory(
		trx,
		ended.map(({ device_id, attempt, error_code, error_msg }) => ({
			projectId: task.project_id,
			spaceId: task.app_id,
			deviceId: device_id,
			taskId: task.task_id,
			kind,
			detail: {
				error_code,
				error_msg,
				...(kind === "retry_scheduled" ? { attempt: attempt + 1 } : {}),
				...more,
			},
		})),
		now,
	);
}

function within(
	db: Db,
	taskId: string,
	positions: Positions,
	alias: string,
): RawBuilder<unknown> {
	const position = sql.ref(`${alias}.position`);
	const task = sql`${sql.ref(`${alias}.task_id`)} = ${taskId}`;
	return "from" in positions
		? sql`${task} and ${position} > ${positions.from} and ${position} <= ${positions.to}`
		: sql`${task} and ${position} in (
			select cast(value as integer) from ${listTable(db, sql`${JSON.stringify(positions.positions)}`)} as chosen)`;
}

export interface Awaited {
	deviceId: string;
	linkId: string;
}

/** Devices of these subtasks that were not spoken to yet. */
export async function findAwaited(
	db: Db,
	taskId: string,
	positions: Positions,
): Promise<Awaited[]> {
	// Where nobody is behind a gateway, nobody needs to be looked up.
	const link = (await isAnyBehind(db))
		? sql`(select d.link_id from devices d where d.device_id = s.device_id)`
		: sql`s.device_id`;
	const { rows } = await sql<{ device_id: string; link_id: string | null }>`
		select s.device_id, ${link} as link_id from subtasks s
		where ${within(db, taskId, positions, "s")}
			and s.status = 'Processing' and s.phase = 'await_online'`.execute(db);
	return rows.map(({ device_id, link_id }) => ({
		deviceId: device_id,
		linkId: link_id ?? device_id,
	}));
}

async function isAnyBehind(db: Db): Promise<boolean> {
	const child = await db
		.selectFrom("devices")
		.select("device_id")
		.where("depth", ">", sql.lit(0))
		.limit(1)
		.executeTakeFirst();
	return child !== undefined;
}

/** Devices that are carried by one of these connections and were not spoken to yet. */
export async function findAwaitedOn(
	db: Db,
	linkIds: readonly string[],
): Promise<Awaited[]> {
	const links = listTable(db, sql`${JSON.stringify(linkIds)}`);
	const { rows } = await sql<{ device_id: string; link_id: string }>`
		select s.device_id as device_id, s.device_id as link_id from subtasks s
		where s.status = 'Processing' and s.phase = 'await_online'
			and s.device_id in (select value from ${links} as here)
			and not exists (select 1 from devices d where d.device_id = s.device_id and d.depth > 0)
		union all
		select s.device_id, d.link_id from devices d
		join subtasks s on s.device_id = d.device_id
		where d.depth > 0 and d.link_id in (select value from ${links} as here)
			and s.status = 'Processing' and s.phase = 'await_online'`.execute(db);
	return rows.map((row) => ({ deviceId: row.device_id, linkId: row.link_id }));
}

/** Subtasks whose start is due, the most overdue first, each with its task. */
export async function findDueStarts(
	db: Db,
	now: Date,
	limit: number,
): Promise<
	{
		taskId: string;
		position: number;
		status: "Waitting" | "FailWaitRetry";
	}[]
> {
	const rows = await db
		.selectFrom("subtasks as s")
		.innerJoin("upgrade_tasks as t", "t.task_id", "s.task_id")
		.select(["s.task_id", "s.position", "s.status"])
		.where("s.due_at", "<=", instant(now))
		.where("s.status", "in", ["Waitting", "FailWaitRetry"])
		.where("t.status", "=", "Processing")
		.where("t.deleted_at", "is", null)
		.orderBy("s.due_at")
		.limit(limit)
		.execute();
	return rows.map((row) => ({
		taskId: row.task_id,
		position: row.position,
		status: row.status as "Waitting" | "FailWaitRetry",
	}));
}

/** Those of the positions whose start is still due: somebody may have been faster. */
export async function stillDue(
	trx: Db,
	taskId: string,
	{ positions }: { positions: readonly number[] },
	now: Date,
): Promise<number[]> {
	const rows = await trx
		.selectFrom("subtasks")
		.select("position")
		.where("task_id", "=", taskId)
		.where("position", "in", [...positions])
		.where("due_at", "<=", instant(now))
		.execute();
	return rows.map((row) => row.position);
}
