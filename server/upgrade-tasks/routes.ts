import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import {
	parseWireTime,
	projectParams,
	wireTime,
	wireTimeMs,
	withoutAbsent,
} from "../../wire/envelope.ts";
import {
	type CreateTask,
	createTask as createTaskBody,
	listTasksQuery,
	otaTaskTypes,
	showTaskQuery,
	someTargets,
	type TaskDetail,
	targetResults,
	task as taskAnswer,
	taskList,
	taskParams,
	taskWithDetails,
	type Why,
	type Task as WireTask,
	why,
	whyParams,
} from "../../wire/tasks.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { type PageResult, readPage } from "../database/paging.ts";
import type { Signal } from "../database/signal.ts";
import { fromInstant, type TaskType } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { type Explanation, explain } from "./explanation.ts";
import { wakeRollout } from "./rollout.ts";
import {
	confirmTask,
	deleteTask,
	retryTask,
	stopTask,
} from "./task-operations.ts";
import { SCHEDULE_HORIZON_MS, type TaskPolicy } from "./task-policy.ts";
import type { UpgradeTask } from "./task-rows.ts";
import {
	createTask,
	listTargets,
	listTasks,
	type NewTask,
	type Subtask,
	showTask,
} from "./upgrade-tasks.ts";

const TASKS = "/v5/iot/:project_id/batchtasks";
const TASK = `${TASKS}/:task_id`;
const WHY =
	"/otaru/v1/projects/:project_id/batchtasks/:task_id/targets/:device_id/why";

export interface UpgradeTaskRouteParts {
	db: Db;
	now: Clock;
	signal: Signal;
	/** The most devices that one task may list. */
	taskLimits: { targets: number };
}

export function upgradeTaskRoutes(
	http: Http,
	{ db, now, signal, taskLimits }: UpgradeTaskRouteParts,
): void {
	http.post(
		TASKS,
		{
			config: { action: "iotda:batchtasks:create", level: "Write" },
			schema: {
				operationId: "CreateBatchTask",
				summary: "Create an upgrade task",
				tags: ["Upgrade tasks"],

				params: projectParams,
				body: createTaskBody,
				response: { 201: taskAnswer },
			},
		},
		async (request, reply) => {
			const created = await createTask(
				db,
				request.scope,
				readNewTask(request.body, taskLimits.targets, now()),
				now(),
			);
			wakeRollout(signal);
			// The answer is a stream, which shows it to nobody but its reader.
			request.audited = {
				resource: created.task.task_id,
				appId: created.task.app_id,
			};
			return sendText(reply.code(201), taskText(created.task, created.targets));
		},
	);

	http.get(
		TASKS,
		{
			config: { action: "iotda:batchtasks:queryList", level: "List" },
			schema: {
				operationId: "ListBatchTasks",
				summary: "List upgrade tasks",
				tags: ["Upgrade tasks"],

				params: projectParams,
				querystring: listTasksQuery,
				response: { 200: taskList },
			},
		},
		async (request, reply) => {
			const { task_type, app_id, status } = request.query;
			const page = readPage(request.query);
			const result = await listTasks(
				db,
				request.scope,
				{ type: task_type, spaceId: app_id, status },
				page,
			);
			return sendText(reply, taskListText(db, result));
		},
	);

	http.get(
		TASK,
		{
			config: { action: "iotda:batchtasks:query", level: "Read" },
			schema: {
				operationId: "ShowBatchTask",
				summary: "Show an upgrade task and its devices",
				tags: ["Upgrade tasks"],

				params: taskParams,
				querystring: showTaskQuery,
				response: { 200: taskWithDetails },
			},
		},
		async (request, reply) => {
			const { task_detail_status, target } = request.query;
			const shown = await showTask(
				db,
				request.scope,
				request.params.task_id,
				{ status: task_detail_status, deviceId: target },
				readPage(request.query),
			);
			const rest = JSON.stringify({
				task_details: shown.subtasks.map(detailToWire),
				page: shown.page,
			});
			return sendText(reply, [
				'{"batchtask":',
				...taskText(shown.task, shown.targets),
				`,${rest.slice(1)}`,
			]);
		},
	);

	http.delete(
		TASK,
		{
			config: { action: "iotda:batchtasks:delete", level: "Write" },
			schema: {
				operationId: "DeleteBatchTask",
				summary: "Delete an upgrade task",
				tags: ["Upgrade tasks"],
				params: taskParams,
			},
		},
		async (request, reply) => {
			await deleteTask(db, request.scope, request.params.task_id, now());
			wakeRollout(signal);
			return reply.code(204).send();
		},
	);

	http.get(
		WHY,
		{
			config: { action: "iotda:batchtasks:query", level: "Read" },
			schema: {
				operationId: "ExplainBatchTaskTarget",
				summary: "Explain why a device has not got its package",
				tags: ["Upgrade tasks"],
				params: whyParams,
				response: { 200: why },
			},
		},
		async (request) => {
			const { task_id, device_id } = request.params;
			return whyToWire(
				device_id,
				await explain(db, request.scope, task_id, device_id),
			);
		},
	);

	const operations = {
		retry: ["RetryBatchTask", "Retry an upgrade task", retryTask],
		stop: ["StopBatchTask", "Stop an upgrade task", stopTask],
		confirm: ["ConfirmBatchTask", "Confirm an upgrade task", confirmTask],
	} as const;
	for (const operation of ["retry", "stop", "confirm"] as const) {
		const [operationId, summary, operate] = operations[operation];
		http.post(
			`${TASK}/${operation}`,
			{
				config: { action: `iotda:batchtasks:${operation}`, level: "Write" },
				schema: {
					operationId,
					summary,
					tags: ["Upgrade tasks"],
					params: taskParams,
					body: someTargets,
					response: { 200: targetResults },
				},
			},
			async (request) => {
				const outcomes = await operate(
					db,
					request.scope,
					request.params.task_id,
					request.body.targets,
					now(),
				);
				wakeRollout(signal);
				return {
					targets: outcomes.map(({ deviceId, done }) =>
						done
							? { target: deviceId, status: "success" as const }
							: {
									target: deviceId,
									status: "failure" as const,
									error_code: errors.targetStatus.code,
									error_msg: errors.targetStatus.message,
								},
					),
				};
			},
		);
	}
}

function whyToWire(
	deviceId: string,
	{ task, subtask, reasons }: Explanation,
): Why {
	return withoutAbsent({
		task_id: task.task_id,
		target: deviceId,
		task_status: task.status,
		status: subtask?.status,
		reasons: reasons.map(({ code, message, since, until }) =>
			withoutAbsent({
				code,
				message,
				since: since && wireTimeMs(since),
				until: until && wireTimeMs(until),
			}),
		),
		error: subtask && errorOf(subtask),
		retries: subtask?.attempt ?? 0,
		retry_count: task.retry_count,
	});
}

/** @throws 403 IOTDA.014972 for a batch type that does not upgrade anything */
function otaType(type: string): TaskType {
	const known = otaTaskTypes.find((candidate) => candidate === type);
	if (!known)
		throw new ApiError(errors.taskType, {
			detail: `task_type must be one of ${otaTaskTypes.join(", ")}.`,
		});
	return known;
}

const EXT_INFO_LIMIT = 512;

/** The rules between the fields. */
function readNewTask(
	body: CreateTask,
	targetsLimit: number,
	now: Date,
): NewTask {
	const type = otaType(body.task_type);
	if (body.document_source !== undefined)
		throw invalidInput(
			"document_source",
			`does not go with task_type ${body.task_type}`,
		);
	const { targets, targets_filter, document, task_ext_info } = body;
	if (!targets && !targets_filter)
		throw invalidInput("targets", "must be given, or targets_filter");
	if (targets && targets.length > targetsLimit)
		throw invalidInput(
			"targets",
			`must be a list of 1 to ${targetsLimit} device ids`,
		);
	const groupIds = targets_filter?.group_ids ?? [];
	if (new Set(groupIds).size < groupIds.length)
		throw invalidInput(
			"targets_filter.group_ids",
			"must not name a group twice",
		);
	if (!document) throw invalidInput("document", "must be given");
	const { package_ids, package_id } = document;
	if (package_ids && package_id !== undefined)
		throw invalidInput(
			"document.package_id",
			"does not go with document.package_ids",
		);
	const packageIds =
		package_ids ?? (package_id === undefined ? undefined : [package_id]);
	if (!packageIds) throw invalidInput("document.package_ids", "must be given");
	if (new Set(packageIds).size < packageIds.length)
		throw invalidInput("document.package_ids", "must not name a package twice");
	if (
		task_ext_info &&
		[...JSON.stringify(task_ext_info)].length > EXT_INFO_LIMIT
	)
		throw invalidInput(
			"task_ext_info",
			`must be at most ${EXT_INFO_LIMIT} characters as JSON`,
		);
	return {
		spaceId: body.app_id,
		name: body.task_name,
		type,
		// Of several, the first that is given counts.
		targets: targets ? { deviceIds: targets } : { groupIds },
		packageIds,
		policy: readPolicy(body.task_policy ?? {}, now),
		needConfirm: body.need_confirm ?? false,
		gatewayMode: body.task_mode === "GATEWAY",
		sent: {
			document,
			targetsFilter: targets_filter,
			taskPolicy: body.task_policy,
			taskExtInfo: task_ext_info as Record<string, unknown> | undefined,
		},
	};
}

function readPolicy(
	policy: NonNullable<CreateTask["task_policy"]>,
	now: Date,
): TaskPolicy {
	const { schedule_time, retry_count, retry_interval } = policy;
	if (retry_count === undefined && retry_interval !== undefined)
		throw invalidInput(
			"task_policy.retry_count",
			"must be given with task_policy.retry_interval",
		);
	if (retry_count !== undefined && retry_interval === undefined)
		throw invalidInput(
			"task_policy.retry_interval",
			"must be given with task_policy.retry_count",
		);
	return {
		scheduleAt: readSchedule(schedule_time, now),
		retryCount: retry_count ?? 0,
		retryIntervalMinutes: retry_interval ?? 0,
	};
}

/** A time that is over means at once. */
function readSchedule(text: string | undefined, now: Date): Date | undefined {
	if (text === undefined) return undefined;
	const time = parseWireTime(text);
	if (!time)
		throw new ApiError(errors.invalidTime, {
			detail:
				"task_policy.schedule_time must be a time such as 20230211T121212Z.",
		});
	if (time.getTime() - now.getTime() > SCHEDULE_HORIZON_MS)
		throw new ApiError(errors.invalidTime, {
			detail: "task_policy.schedule_time must be within seven days.",
		});
	return time <= now ? undefined : time;
}

/**
 * A task as JSON. Its targets, 30,000 at the most, go from the store into the answer
 * as they are: reading and writing them anew would hold the event loop for 100 ms.
 */
function* taskText(
	task: UpgradeTask,
	targets: readonly string[],
): Generator<string> {
	yield `${JSON.stringify(withoutTargets(task)).slice(0, -1)},"targets":[`;
	for (const [index, chunk] of targets.entries())
		yield (index === 0 ? "" : ",") + chunk.slice(1, -1);
	yield "]}";
}

/** Targets are read task by task, while the ones before are sent. */
async function* taskListText(
	db: Db,
	{ items, page }: PageResult<UpgradeTask>,
): AsyncGenerator<string> {
	yield '{"batchtasks":[';
	for (const [index, task] of items.entries()) {
		if (index > 0) yield ",";
		yield* taskText(task, await listTargets(db, task.task_id));
	}
	yield `],"page":${JSON.stringify(page)}}`;
}

/** An answer that is JSON text already. */
function sendText(
	reply: FastifyReply,
	pieces: Iterable<string> | AsyncIterable<string>,
): FastifyReply {
	return reply
		.type("application/json")
		.send(Readable.from(pieces, { objectMode: false }));
}

function withoutTargets(task: UpgradeTask): Omit<WireTask, "targets"> {
	return withoutAbsent({
		task_id: task.task_id,
		task_name: task.task_name,
		task_type: task.task_type,
		task_mode: task.task_mode ?? undefined,
		need_confirm: task.need_confirm === 1,
		task_ext_info: sentObject(task.task_ext_info),
		targets_filter: sentObject(task.targets_filter),
		document: JSON.parse(task.document) as Record<string, unknown>,
		task_policy: sentObject(task.task_policy),
		status: task.status,
		status_desc: task.status_desc ?? undefined,
		task_progress: {
			total: task.total,
			processing: task.processing,
			success: task.success,
			fail: task.fail,
			waitting: task.waitting,
			fail_wait_retry: task.fail_wait_retry,
			stopped: task.stopped,
			removed: task.removed,
		},
		create_time: wireTime(fromInstant(task.created_at)),
	});
}

function sentObject(text: string | null): Record<string, unknown> | undefined {
	return text === null
		? undefined
		: (JSON.parse(text) as Record<string, unknown>);
}

function detailToWire(subtask: Subtask): TaskDetail {
	return withoutAbsent({
		target: subtask.device_id,
		status: subtask.status,
		output: subtask.output ?? progressText(subtask),
		error: errorOf(subtask),
	});
}

function errorOf({ error_code, error_msg }: Subtask) {
	return error_code !== null && error_msg !== null
		? { error_code, error_msg }
		: undefined;
}

/** While it runs, the last progress the device reported. */
function progressText({ status, progress }: Subtask): string | undefined {
	return status === "Processing" && progress !== null
		? `${progress}%`
		: undefined;
}
