/**
 * Why a device has not got, or did not get, the package of a task: in codes for programs
 * and in words for people at three in the morning. `reasonsOf` is pure.
 */
import type { Selectable } from "kysely";
import type { Scope } from "../access/permissions.ts";
import type { Db } from "../database/database.ts";
import {
	fromInstant,
	optionalInstant,
	type SubtaskRow,
} from "../database/tables.ts";
import { readSourceVersions } from "../packages/source-versions.ts";
import { failures } from "./failures.ts";
import type { UpgradeTask } from "./task-rows.ts";
import { getTask } from "./upgrade-tasks.ts";

export type ReasonCode =
	| "NOT_A_TARGET"
	| "TASK_INITIALIZING"
	| "TASK_FAILED"
	| "TASK_SCHEDULED"
	| "NOT_CONFIRMED"
	| "STARTS_SOON"
	| "WAITS_FOR_CONNECTION"
	| "GATEWAY_OFFLINE"
	| "DEVICE_FROZEN"
	| "DEVICE_OFFLINE"
	| "WAITS_FOR_VERSION"
	| "OFFERED"
	| "IN_PROGRESS"
	| "ASKED_FOR_RESULT"
	| "RETRY_SCHEDULED"
	| "FAILED"
	| "TASK_CONFLICT"
	| "VERSION_NOT_SUPPORTED"
	| "SUCCEEDED"
	| "STOPPED"
	| "REMOVED";

export interface Reason {
	code: ReasonCode;
	message: string;
	/** When this began, and when it ends by itself. */
	since?: Date | undefined;
	until?: Date | undefined;
}

/** What is known of a device in a task. */
export interface Facts {
	task: UpgradeTask;
	/** Undefined: the device is not in the task. */
	subtask: Selectable<SubtaskRow> | undefined;
	/** Undefined: there is no such device any more. */
	device:
		| {
				frozen: boolean;
				/** Null: it never connected. */
				statusChangedAt: Date | undefined;
				online: boolean;
				gatewayId: string | undefined;
				currentVersion: string | undefined;
		  }
		| undefined;
	/** The task in whose upgrade the device is now, when that is another one. */
	otherTaskId: string | undefined;
	/** Versions the packages upgrade from; undefined: from every version. */
	sourceVersions: readonly string[] | undefined;
}

export interface Explanation {
	task: UpgradeTask;
	subtask: Selectable<SubtaskRow> | undefined;
	reasons: Reason[];
}

/** The most important reason comes first. */
export function reasonsOf(facts: Facts): Reason[] {
	const { task, subtask } = facts;
	if (!subtask) return withoutSubtask(task);
	switch (subtask.status) {
		case "Waitting":
			return waiting(facts, subtask);
		case "Processing":
			return running(facts, subtask);
		case "FailWaitRetry":
			return [
				{
					code: "RETRY_SCHEDULED",
					message: `Retry ${subtask.attempt + 1} of ${task.retry_count} is due.`,
					since: fromInstant(subtask.updated_at),
					until: optionalInstant(subtask.due_at),
				},
				...failed(facts, subtask),
			];
		case "Fail":
			return failed(facts, subtask);
		case "Success":
			return [
				{
					code: "SUCCEEDED",
					message: `${subtask.output ?? "The upgrade succeeded"}: ${task.target_version}.`,
					since: fromInstant(subtask.updated_at),
				},
			];
		case "Stopped":
			return [
				{
					code: "STOPPED",
					message: subtask.offered_at
						? "The task was stopped after the package had been offered; the device was not told, but its download is refused."
						: "The task was stopped before the package was offered.",
					since: fromInstant(subtask.updated_at),
				},
			];
		case "Removed":
			return [
				{
					code: "REMOVED",
					message: "The device was deleted while the task was unfinished.",
					since: fromInstant(subtask.updated_at),
				},
			];
		default:
			return subtask.status satisfies never;
	}
}

function withoutSubtask(task: UpgradeTask): Reason[] {
	if (task.status === "Initializing")
		return [
			{
				code: "TASK_INITIALIZING",
				message: `The devices of the task are still being resolved; ${task.total} stand so far.`,
				since: fromInstant(task.created_at),
			},
		];
	const reasons: Reason[] = [
		{
			code: "NOT_A_TARGET",
			message:
				task.targets_filter === null
					? "The device is not among the targets of the task."
					: "The device was in none of the task's groups when the task was created.",
			since: fromInstant(task.created_at),
		},
	];
	if (task.status === "Fail" && task.status_desc !== null)
		reasons.unshift({
			code: "TASK_FAILED",
			message: task.status_desc,
			since: optionalInstant(task.finished_at),
		});
	return reasons;
}

function waiting(facts: Facts, subtask: Selectable<SubtaskRow>): Reason[] {
	const { task } = facts;
	const reasons: Reason[] = [];
	if (subtask.held && !task.confirmed)
		reasons.push({
			code: "NOT_CONFIRMED",
			message: "The task needs confirmation, and this device is not confirmed.",
			since: fromInstant(task.created_at),
		});
	if (task.status === "Waitting" && task.schedule_at !== null)
		reasons.push({
			code: "TASK_SCHEDULED",
			message: "The task is scheduled for later.",
			since: fromInstant(task.created_at),
			until: fromInstant(task.schedule_at),
		});
	if (reasons.length === 0)
		reasons.push(
			task.status === "Initializing"
				? {
						code: "TASK_INITIALIZING",
						message: `The devices of the task are still being resolved; ${task.total} stand so far.`,
						since: fromInstant(task.created_at),
					}
				: {
						code: "STARTS_SOON",
						message: `It is started in its turn: devices up to position ${Math.min(task.started_position, task.last_position)} of ${task.last_position} are started, this one stands at ${subtask.position}.`,
						since: fromInstant(subtask.updated_at),
					},
		);
	return [...reasons, ...otherExchange(facts, "would fail"), ...frozen(facts)];
}

function running(facts: Facts, subtask: Selectable<SubtaskRow>): Reason[] {
	const since = fromInstant(subtask.updated_at);
	const until = optionalInstant(subtask.due_at);
	const offeredAt = optionalInstant(subtask.offered_at);
	switch (subtask.phase) {
		case "await_online":
			return [...frozen(facts), ...unreachable(facts, { since, until })];
		case "await_version":
			return [
				{
					code: "WAITS_FOR_VERSION",
					message: "The device was asked for its version and has not answered.",
					since,
					until,
				},
				...offline(facts),
			];
		case "delivered":
			return [
				{
					code: "OFFERED",
					message:
						"The package was offered; the device has reported nothing since.",
					since: offeredAt,
					until: optionalInstant(subtask.expires_at),
				},
				...offline(facts),
			];
		case "reporting":
			return [
				{
					code: "IN_PROGRESS",
					message:
						subtask.progress === null
							? "The device reports that it is at work."
							: `The device reports ${subtask.progress}%, and has not reported the new version.`,
					since: offeredAt,
					until: optionalInstant(subtask.expires_at),
				},
				...offline(facts),
			];
		case "verify_version":
			return [
				{
					code: "ASKED_FOR_RESULT",
					message:
						"The time for the upgrade is over; the device was asked once more for its version.",
					since,
					until,
				},
				...offline(facts),
			];
		case null:
			return [];
		default:
			return subtask.phase satisfies never;
	}
}

function unreachable(
	{ device }: Facts,
	times: Pick<Reason, "since" | "until">,
): Reason[] {
	if (!device || device.online)
		return [
			{
				code: "STARTS_SOON",
				message: "The device is connected and is about to be spoken to.",
				since: times.since,
			},
		];
	const seen =
		device.statusChangedAt === undefined
			? "it has never connected"
			: `last connected until ${device.statusChangedAt.toISOString()}`;
	return device.gatewayId === undefined
		? [
				{
					code: "WAITS_FOR_CONNECTION",
					message: `The device is not connected; ${seen}.`,
					...times,
				},
			]
		: [
				{
					code: "GATEWAY_OFFLINE",
					message: `Its gateway ${device.gatewayId} is not connected; ${seen}.`,
					...times,
				},
			];
}

function offline({ device }: Facts): Reason[] {
	return device && !device.online
		? [
				{
					code: "DEVICE_OFFLINE",
					message:
						device.gatewayId === undefined
							? "The device is not connected now."
							: `Its gateway ${device.gatewayId} is not connected now.`,
					since: device.statusChangedAt,
				},
			]
		: [];
}

function frozen({ device }: Facts): Reason[] {
	return device?.frozen
		? [
				{
					code: "DEVICE_FROZEN",
					message: "The device is frozen and cannot connect.",
				},
			]
		: [];
}

function otherExchange({ otherTaskId }: Facts, then: string): Reason[] {
	return otherTaskId === undefined
		? []
		: [
				{
					code: "TASK_CONFLICT",
					message: `The device is in the middle of an upgrade by task ${otherTaskId}; while it is, an attempt of this task ${then}.`,
				},
			];
}

function failed(facts: Facts, subtask: Selectable<SubtaskRow>): Reason[] {
	const { task, device, sourceVersions } = facts;
	const code = subtask.error_code ?? "";
	const message = subtask.error_msg ?? "";
	const since = fromInstant(subtask.updated_at);
	if (message === failures.conflict.message)
		return [
			{
				code: "TASK_CONFLICT",
				message:
					"When this task reached the device, it was in the middle of another task's upgrade.",
				since,
			},
			...otherExchange(facts, "fails again"),
		];
	if (code === failures.noPackageForVersion.code)
		return [
			{
				code: "VERSION_NOT_SUPPORTED",
				message: `The packages of the task upgrade from ${sourceVersions?.join(", ") ?? "any version"}; the device reports ${device?.currentVersion ?? "no version"}.`,
				since,
			},
		];
	return [
		{
			code: "FAILED",
			message: `${code}: ${message}${subtask.attempt > 0 ? ` (after ${subtask.attempt} of ${task.retry_count} retries)` : ""}`,
			since,
		},
		...frozen(facts),
	];
}

/** @throws 404 IOTDA.014970 for an unknown task; a device that is not in it is explained */
export async function explain(
	db: Db,
	scope: Scope,
	taskId: string,
	deviceId: string,
): Promise<Explanation> {
	const task = await getTask(db, scope, taskId);
	const subtask = await db
		.selectFrom("subtasks")
		.selectAll()
		.where("task_id", "=", taskId)
		.where("device_id", "=", deviceId)
		.executeTakeFirst();
	const device = await db
		.selectFrom("devices as d")
		.leftJoin("presence as p", "p.device_id", "d.link_id")
		.leftJoin("device_modules as m", (join) =>
			join
				.onRef("m.device_id", "=", "d.device_id")
				.on("m.module_name", "=", task.module_name),
		)
		.leftJoin("devices as link", "link.device_id", "d.link_id")
		.select([
			"d.frozen",
			"d.depth",
			"d.link_id",
			"link.connection_status_at",
			"d.fw_version",
			"d.sw_version",
			"m.module_version",
			"p.connection_id",
		])
		.where("d.device_id", "=", deviceId)
		.where("d.project_id", "=", scope.projectId)
		.executeTakeFirst();
	const other = subtask
		? await db
				.selectFrom("subtasks")
				.select("task_id")
				.where("device_id", "=", deviceId)
				.where("status", "=", "Processing")
				.where("task_id", "!=", taskId)
				.executeTakeFirst()
		: undefined;
	const packages = await db
		.selectFrom("upgrade_task_packages as tp")
		.innerJoin("packages as p", "p.package_id", "tp.package_id")
		.select("p.source_versions")
		.where("tp.task_id", "=", taskId)
		.execute();
	const sources = packages.map((row) =>
		readSourceVersions(row.source_versions),
	);
	const reasons = reasonsOf({
		task,
		subtask,
		device: device && {
			frozen: device.frozen === 1,
			statusChangedAt: optionalInstant(device.connection_status_at),
			online: device.connection_id !== null,
			gatewayId: device.depth > 0 ? device.link_id : undefined,
			currentVersion:
				(task.task_type === "firmwareUpgrade"
					? device.fw_version
					: task.task_type === "softwareUpgrade"
						? device.sw_version
						: device.module_version) ?? undefined,
		},
		otherTaskId: other?.task_id,
		sourceVersions: sources.some((list) => list.length === 0)
			? undefined
			: [...new Set(sources.flat())],
	});
	return { task, subtask, reasons };
}
