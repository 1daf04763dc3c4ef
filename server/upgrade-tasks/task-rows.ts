/** The SQL of tasks and subtasks: batches as one statement, moves guarded, counters kept. */
import { type Selectable, sql, type Updateable } from "kysely";
import {
	type Db,
	engineOf,
	listTable,
	lockForUpdate,
	rowsTable,
} from "../database/database.ts";
import {
	type ExchangePhase,
	fromInstant,
	instant,
	optionalInstant,
	type SubtaskStatus,
	type TaskStatus,
	type TaskType,
	type UpgradeTaskRow,
} from "../database/tables.ts";
import { recordHistory } from "../history/history.ts";
import { type Exchange, type ExchangeForm, subtaskMoves } from "./subtask.ts";
import {
	type CounterName,
	counterNames,
	counterOf,
	resultOf,
	taskMoves,
} from "./task.ts";
import type { RetryPolicy } from "./task-policy.ts";

export type UpgradeTask = Selectable<UpgradeTaskRow>;

/** A subtask in `Processing` with what decisions about it need. */
export interface RunningSubtask {
	taskId: string;
	position: number;
	projectId: string;
	spaceId: string;
	deviceId: string;
	/** The device whose connection carries it: itself, or its gateway. */
	linkId: string;
	revision: number;
	/** Retries made by themselves. */
	attempt: number;
	retries: RetryPolicy;
	gatewayMode: boolean;
	taskExtInfo: Record<string, unknown> | undefined;
	exchange: Exchange;
	taskType: TaskType;
	moduleName: string;
	targetVersion: string;
	form: ExchangeForm;
	downloadForm: "presigned" | "token";
	fwVersion: string | undefined;
	swVersion: string | undefined;
	moduleVersion: string | undefined;
}

interface RunningRow {
	task_id: string;
	position: number;
	project_id: string;
	app_id: string;
	device_id: string;
	link_id: string;
	revision: number;
	attempt: number;
	retry_count: number;
	retry_interval_minutes: number;
	task_mode: string | null;
	task_ext_info: string | null;
	phase: ExchangePhase;
	asked: number;
	package_id: string | null;
	due_at: string | null;
	offered_at: string | null;
	expires_at: string | null;
	progress: number | null;
	task_type: TaskType;
	module_name: string;
	target_version: string;
	fw_version: string | null;
	sw_version: string | null;
	speaks_modules: number;
	module_form: "none" | "native" | "compatible";
	download_form: "presigned" | "token";
	module_version: string | null;
}

/**
 * The running subtask of each device, at most one per device. On PostgreSQL the rows
 * are locked until the transaction ends.
 */
export async function findRunning(
	db: Db,
	deviceIds: readonly string[],
): Promise<RunningSubtask[]> {
	if (deviceIds.length === 0) return [];
	const devices = listTable(db, sql`${JSON.stringify(deviceIds)}`);
	const lock = engineOf(db) === "postgres" ? sql`for update of s` : sql``;
	const { rows } = await sql<RunningRow>`
		select s.task_id, s.position, s.device_id, s.revision, s.attempt, s.phase, s.asked, s.package_id,
			s.due_at, s.offered_at, s.expires_at, s.progress,
			t.project_id, t.app_id, t.retry_count, t.retry_interval_minutes, t.task_mode, t.task_ext_info,
			d.link_id, t.task_type, t.module_name, t.target_version,
			d.fw_version, d.sw_version, d.speaks_modules,
			coalesce(d.module_form, p.module_form) as module_form, p.download_form, m.module_version
		from subtasks s
		join upgrade_tasks t on t.task_id = s.task_id
		join devices d on d.device_id = s.device_id
		join products p on p.product_key = d.product_key
		left join device_modules m on m.device_id = s.device_id and m.module_name = t.module_name
		where s.status = 'Processing' and s.device_id in (select value from ${devices} as wanted)
		order by s.device_id
		${lock}`.execute(db);
	return rows.map((row) => ({
		taskId: row.task_id,
		position: row.position,
		projectId: row.project_id,
		spaceId: row.app_id,
		deviceId: row.device_id,
		linkId: row.link_id,
		revision: row.revision,
		attempt: row.attempt,
		retries: {
			retryCount: row.retry_count,
			retryIntervalMinutes: row.retry_interval_minutes,
		},
		gatewayMode: row.task_mode === "GATEWAY",
		taskExtInfo:
			row.task_ext_info === null
				? undefined
				: (JSON.parse(row.task_ext_info) as Record<string, unknown>),
		exchange: {
			phase: row.phase,
			asked: row.asked === 1,
			packageId: row.package_id ?? undefined,
			offeredAt: optionalInstant(row.offered_at),
			expiresAt: optionalInstant(row.expires_at),
			dueAt: optionalInstant(row.due_at),
			progress: row.progress ?? undefined,
		},
		taskType: row.task_type,
		moduleName: row.module_name,
		targetVersion: row.target_version,
		form: formOf(row.task_type, row.speaks_modules === 1, row.module_form),
		downloadForm: row.download_form,
		fwVersion: row.fw_version ?? undefined,
		swVersion: row.sw_version ?? undefined,
		moduleVersion: row.module_version ?? undefined,
	}));
}

/** Those of the devices that carry others. */
export async function findGateways(
	db: Db,
	deviceIds: readonly string[],
): Promise<string[]> {
	if (deviceIds.length === 0) return [];
	const { rows } = await sql<{ link_id: string }>`
		select value as link_id from ${listTable(db, sql`${JSON.stringify(deviceIds)}`)} as connected
		where exists (select 1 from devices d where d.link_id = connected.value and d.depth > 0)`.execute(
		db,
	);
	return rows.map((row) => row.link_id);
}

/** Devices behind a gateway whose exchange runs, in the order of their record ids. */
export async function findRunningBehind(
	db: Db,
	gateway: string,
	after: string,
	limit: number,
): Promise<{ deviceId: string; recordId: string }[]> {
	const rows = await db
		.selectFrom("devices as d")
		.select(["d.device_id", "d.record_id"])
		.where("d.link_id", "=", gateway)
		.where("d.depth", ">", sql.lit(0))
		.where("d.record_id", ">", after)
		.where((eb) =>
			eb.exists(
				eb
					.selectFrom("subtasks as s")
					.select("s.task_id")
					.whereRef("s.device_id", "=", "d.device_id")
					.where("s.status", "=", "Processing"),
			),
		)
		.orderBy("d.record_id")
		.limit(limit)
		.execute();
	return rows.map((row) => ({
		deviceId: row.device_id,
		recordId: row.record_id,
	}));
}

/** How many of the devices behind this gateway stand in the task. */
export async function countBehind(
	db: Db,
	taskId: string,
	gateway: string,
): Promise<number> {
	const row = await db
		.selectFrom("devices as d")
		.innerJoin("subtasks as s", "s.device_id", "d.device_id")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("d.link_id", "=", gateway)
		.where("d.depth", ">", sql.lit(0))
		.where("s.task_id", "=", taskId)
		.executeTakeFirstOrThrow();
	return Number(row.count);
}

function formOf(
	taskType: TaskType,
	speaksModules: boolean,
	mark: "none" | "native" | "compatible",
): ExchangeForm {
	if (taskType !== "moduleUpgrade") return "classic";
	return speaksModules ? "native" : mark;
}

/** A decided change of one subtask, written only over the revision it was decided on. */
export interface SubtaskChange {
	taskId: string;
	position: number;
	revision: number;
	from: SubtaskStatus;
	to: SubtaskStatus;
	/** Absent once it is no longer running. */
	exchange?: Exchange;
	/** When it goes on by itself, although it is not running. */
	dueAt?: Date | undefined;
	/** Given when it is counted anew. */
	attempt?: number;
	progress?: number | undefined;
	packageId?: string | undefined;
	output?: string;
	errorCode?: string;
	errorMessage?: string;
}

/** Somebody was faster: read again and decide anew. */
export class StaleSubtasksError extends Error {
	override name = "StaleSubtasksError";
}

/**
 * Writes the changes and moves the counters of their tasks in the same transaction.
 * Tasks that have nothing unfinished left get their result.
 *
 * @throws StaleSubtasksError when a row is no longer the one that was read.
 */
export async function writeChanges(
	trx: Db,
	changes: readonly SubtaskChange[],
	now: Date,
): Promise<void> {
	if (changes.length === 0) return;
	for (const { from, to } of changes) {
		if (from !== to && !subtaskMoves[from].includes(to)) {
			throw new Error(`A subtask does not go from ${from} to ${to}.`);
		}
	}
	const rows = changes.map((change) => ({
		task_id: change.taskId,
		position: change.position,
		revision: change.revision,
		attempt: change.attempt ?? null,
		status: change.to,
		phase: change.exchange?.phase ?? null,
		asked: change.exchange?.asked ? 1 : 0,
		package_id: change.exchange?.packageId ?? change.packageId ?? null,
		due_at: dueText(change.exchange?.dueAt ?? change.dueAt),
		offered_at: change.exchange?.offeredAt
			? instant(change.exchange.offeredAt)
			: null,
		expires_at: change.exchange?.expiresAt
			? instant(change.exchange.expiresAt)
			: null,
		progress: change.exchange?.progress ?? change.progress ?? null,
		output: change.output ?? null,
		error_code: change.errorCode ?? null,
		error_msg: change.errorMessage ?? null,
	}));
	const changed = rowsTable(
		trx,
		{
			task_id: "text",
			position: "integer",
			revision: "integer",
			attempt: "integer",
			status: "text",
			phase: "text",
			asked: "integer",
			package_id: "text",
			due_at: "text",
			offered_at: "text",
			expires_at: "text",
			progress: "integer",
			output: "text",
			error_code: "text",
			error_msg: "text",
		},
		rows,
	);
	const result = await sql`
		update subtasks set
			status = v.status, phase = v.phase, asked = v.asked, revision = subtasks.revision + 1,
			attempt = coalesce(v.attempt, subtasks.attempt),
			package_id = v.package_id, due_at = v.due_at, offered_at = coalesce(v.offered_at, subtasks.offered_at),
			expires_at = coalesce(v.expires_at, subtasks.expires_at), progress = v.progress, output = v.output,
			error_code = v.error_code, error_msg = v.error_msg, updated_at = ${instant(now)}
		from ${changed} as v
		where subtasks.task_id = v.task_id and subtasks.position = v.position
			and subtasks.revision = v.revision`.execute(trx);
	if (Number(result.numAffectedRows) !== changes.length) {
		throw new StaleSubtasksError("subtasks changed under a decision");
	}
	const deltas = new CounterDeltas();
	for (const change of changes)
		deltas.move(change.taskId, change.from, change.to);
	await deltas.write(trx, now);
}

function dueText(dueAt: Date | undefined): string | null {
	return dueAt === undefined ? null : instant(dueAt);
}

/** Movements of counters, summed per task, so that a batch touches each task's row once. */
export class CounterDeltas {
	readonly #byTask = new Map<string, Map<CounterName | "total", number>>();

	/** One subtask, or `count` of them, went from one status to another; null: it is new. */
	move(
		taskId: string,
		from: SubtaskStatus | null,
		to: SubtaskStatus,
		count = 1,
	): void {
		if (from === to || count === 0) return;
		let deltas = this.#byTask.get(taskId);
		if (!deltas) {
			deltas = new Map();
			this.#byTask.set(taskId, deltas);
		}
		const add = (name: CounterName | "total", by: number) =>
			deltas.set(name, (deltas.get(name) ?? 0) + by);
		if (from === null) add("total", count);
		else add(counterOf[from], -count);
		add(counterOf[to], count);
	}

	async write(trx: Db, now: Date): Promise<void> {
		if (this.#byTask.size === 0) return;
		// In the order of their ids: two nodes that touch the same tasks never wait for each other in a ring.
		const taskIds = [...this.#byTask.keys()].sort();
		const rows = taskIds.map((taskId) => {
			const deltas = this.#byTask.get(taskId);
			return {
				task_id: taskId,
				total: deltas?.get("total") ?? 0,
				waitting: deltas?.get("waitting") ?? 0,
				processing: deltas?.get("processing") ?? 0,
				success: deltas?.get("success") ?? 0,
				fail: deltas?.get("fail") ?? 0,
				fail_wait_retry: deltas?.get("fail_wait_retry") ?? 0,
				stopped: deltas?.get("stopped") ?? 0,
				removed: deltas?.get("removed") ?? 0,
			};
		});
		const columns = {
			task_id: "text",
			total: "integer",
			...integerColumns,
		} as const;
		await sql`
			update upgrade_tasks set
				total = upgrade_tasks.total + v.total,
				${sql.join(counterNames.map((name) => sql`${sql.ref(name)} = ${sql.ref(`upgrade_tasks.${name}`)} + ${sql.ref(`v.${name}`)}`))}
			from ${rowsTable(trx, columns, rows)} as v
			where upgrade_tasks.task_id = v.task_id`.execute(trx);
		await finishTasks(trx, taskIds, now);
	}
}

const integerColumns = {
	waitting: "integer",
	processing: "integer",
	success: "integer",
	fail: "integer",
	fail_wait_retry: "integer",
	stopped: "integer",
	removed: "integer",
} as const satisfies Record<CounterName, "integer">;

/**
 * Gives their result to those of the tasks that are fully expanded and have nothing
 * unfinished left. Hardly any batch ends a task, so most cost one look.
 */
export async function finishTasks(
	trx: Db,
	taskIds: readonly string[],
	now: Date,
): Promise<void> {
	const { rows: ended } = await sql<UpgradeTask>`
		select * from upgrade_tasks
		where task_id in (select value from ${listTable(trx, sql`${JSON.stringify(taskIds)}`)} as touched)
			and status in ('Waitting', 'Processing', 'Stopping')
			and expanded_parts = part_count and swept_position is null
			and waitting + processing + fail_wait_retry = 0`.execute(trx);
	for (const task of ended) {
		const result = task.status === "Stopping" ? "Stopped" : resultOf(task);
		if (result === undefined)
			throw new Error(`The task ${task.task_id} is finished without a result.`);
		await setStatus(
			trx,
			task,
			result,
			{ finished_at: instant(now), due_at: null },
			now,
		);
	}
}

/** The row of a task, held until the transaction ends; undefined once it is deleted. */
export async function holdTaskRow(
	trx: Db,
	taskId: string,
): Promise<UpgradeTask | undefined> {
	return lockForUpdate(
		trx,
		trx
			.selectFrom("upgrade_tasks")
			.selectAll()
			.where("task_id", "=", taskId)
			.where("deleted_at", "is", null),
	).executeTakeFirst();
}

/** Whether anything of the task may start as far as confirmation goes. */
export async function isConfirmed(
	db: Db,
	{ task_id, need_confirm, confirmed }: UpgradeTask,
): Promise<boolean> {
	if (!need_confirm || confirmed) return true;
	const some = await db
		.selectFrom("subtasks")
		.select("position")
		.where("task_id", "=", task_id)
		.where("status", "=", "Waitting")
		.where("held", "=", 0)
		.limit(1)
		.executeTakeFirst();
	return some !== undefined;
}

/**
 * Moves a task that is held from the status that was read, with whatever goes along.
 *
 * @throws when the move is not drawn
 */
export async function setStatus(
	trx: Db,
	task: UpgradeTask,
	status: TaskStatus,
	columns: Updateable<UpgradeTaskRow>,
	now: Date,
): Promise<void> {
	if (!taskMoves[task.status].includes(status))
		throw new Error(`A task does not go from ${task.status} to ${status}.`);
	await trx
		.updateTable("upgrade_tasks")
		.set({ ...columns, status })
		.where("task_id", "=", task.task_id)
		.where("status", "=", task.status)
		.execute();
	const { status_desc } = columns;
	await recordTaskHistory(
		trx,
		task,
		"task_status",
		{ status, ...(status_desc ? { status_desc } : {}) },
		now,
	);
}

/** The task cannot begin: it ends without a subtask. */
export async function failTask(
	trx: Db,
	task: UpgradeTask,
	reason: string,
	now: Date,
): Promise<void> {
	await setStatus(
		trx,
		task,
		"Fail",
		{
			status_desc: reason.slice(0, 1_024),
			finished_at: instant(now),
			due_at: null,
			leased_until: null,
			leased_by: null,
		},
		now,
	);
}

export function recordTaskHistory(
	trx: Db,
	task: Pick<UpgradeTask, "task_id" | "project_id" | "app_id">,
	kind: "task_created" | "task_status" | "task_deleted",
	detail: Record<string, unknown>,
	now: Date,
): Promise<void> {
	return recordHistory(
		trx,
		[
			{
				projectId: task.project_id,
				spaceId: task.app_id,
				taskId: task.task_id,
				kind,
				detail,
			},
		],
		now,
	);
}

/** The marker of a subtask in `task_details`: its position as 24 hex digits. */
export function positionMarker(position: number): string {
	return position.toString(16).padStart(24, "0");
}

/** The position a marker stands for; markers beyond every position stand for the last. */
export function markerPosition(marker: string): number {
	const position = Number.parseInt(marker, 16);
	return Math.min(position, 2_147_483_647);
}

/** What a download needs to know of a subtask. */
export interface DownloadRow {
	status: SubtaskStatus;
	packageId: string;
	fileName: string;
	offeredAt: Date;
	expiresAt: Date;
	sha256: string;
	sizeBytes: number;
}

/** The offered package of a subtask; undefined when there is no such subtask or nothing was offered. */
export async function findDownload(
	db: Db,
	taskId: string,
	position: number,
): Promise<DownloadRow | undefined> {
	const row = await db
		.selectFrom("subtasks")
		.innerJoin("packages", "packages.package_id", "subtasks.package_id")
		.select([
			"subtasks.status",
			"packages.package_id",
			"packages.object_key",
			"subtasks.offered_at",
			"subtasks.expires_at",
			"packages.sha256",
			"packages.size_bytes",
		])
		.where("subtasks.task_id", "=", taskId)
		.where("subtasks.position", "=", position)
		.executeTakeFirst();
	if (!row?.offered_at || !row.expires_at) return undefined;
	return {
		status: row.status,
		packageId: row.package_id,
		fileName: fileNameOf(row.object_key),
		offeredAt: fromInstant(row.offered_at),
		expiresAt: fromInstant(row.expires_at),
		sha256: row.sha256,
		sizeBytes: row.size_bytes,
	};
}

/** The last segment of an object's key. */
export function fileNameOf(objectKey: string): string {
	return objectKey.slice(objectKey.lastIndexOf("/") + 1);
}
