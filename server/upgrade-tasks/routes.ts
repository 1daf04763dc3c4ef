import { Readable } from "node:stream";
import type { FastifyReply } from "fastify";
import { projectParams, wireTime, withoutAbsent } from "../../wire/envelope.ts";
import {
	type CreateTask,
	createTask as createTaskBody,
	listTasksQuery,
	otaTaskTypes,
	showTaskQuery,
	stopTask as stopTaskBody,
	type TaskDetail,
	targetResults,
	task as taskAnswer,
	taskList,
	taskParams,
	taskWithDetails,
	type Task as WireTask,
} from "../../wire/tasks.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { type PageResult, readPage } from "../database/paging.ts";
import type { Signal } from "../database/signal.ts";
import { fromInstant, type TaskType } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { wakeRollout } from "./rollout.ts";
import {
	createTask,
	deleteTask,
	listTargets,
	listTasks,
	type Subtask,
	showTask,
	stopTask,
	type UpgradeTask,
} from "./upgrade-tasks.ts";

const TASKS = "/v5/iot/:project_id/batchtasks";
const TASK = `${TASKS}/:task_id`;

export function upgradeTaskRoutes(
	http: Http,
	{ db, now, signal }: { db: Db; now: Clock; signal: Signal },
): void {
	http.post(
		TASKS,
		{
			config: { action: "iotda:batchtasks:create", level: "Write" },
			schema: {
				params: projectParams,
				body: createTaskBody,
				response: { 201: taskAnswer },
			},
		},
		async (request, reply) => {
			const type = otaType(request.body.task_type);
			const { deviceIds, packageIds, document } = readNewTask(request.body);
			const created = await createTask(
				db,
				request.scope,
				{
					spaceId: request.body.app_id,
					name: request.body.task_name,
					type,
					deviceIds,
					packageIds,
					document,
				},
				now(),
			);
			wakeRollout(signal);
			return sendText(reply.code(201), taskText(created.task, created.targets));
		},
	);

	http.get(
		TASKS,
		{
			config: { action: "iotda:batchtasks:queryList", level: "List" },
			schema: {
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
			schema: { params: taskParams },
		},
		async (request, reply) => {
			await deleteTask(db, request.scope, request.params.task_id, now());
			wakeRollout(signal);
			return reply.code(204).send();
		},
	);

	http.post(
		`${TASK}/stop`,
		{
			config: { action: "iotda:batchtasks:stop", level: "Write" },
			schema: {
				params: taskParams,
				body: stopTaskBody,
				response: { 200: targetResults },
			},
		},
		async (request) => {
			const outcomes = await stopTask(
				db,
				request.scope,
				request.params.task_id,
				request.body.targets,
				now(),
			);
			wakeRollout(signal);
			return {
				targets: outcomes.map(({ deviceId, stopped }) =>
					stopped
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

	for (const operation of ["retry", "confirm"] as const) {
		http.post(
			`${TASK}/${operation}`,
			{
				config: { action: `iotda:batchtasks:${operation}`, level: "Write" },
				schema: { params: taskParams },
			},
			async () => {
				throw invalidInput(operation, "is not supported by this version");
			},
		);
	}
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

/**
 * The rules between the fields. What this version does not do is refused by name:
 * a task that silently ran at once although it was scheduled would be worse than none.
 */
function readNewTask(body: CreateTask) {
	const unsupported = [
		"task_mode",
		"task_ext_info",
		"targets_filter",
		"task_policy",
	] as const;
	for (const field of unsupported) {
		if (body[field] !== undefined)
			throw invalidInput(field, "is not supported by this version");
	}
	if (body.need_confirm)
		throw invalidInput(
			"need_confirm",
			"must be false: confirmation is not supported by this version",
		);
	if (body.document_source !== undefined)
		throw invalidInput(
			"document_source",
			`does not go with task_type ${body.task_type}`,
		);
	if (!body.targets) throw invalidInput("targets", "must be given");
	if (!body.document) throw invalidInput("document", "must be given");
	const { package_ids, package_id } = body.document;
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
	return { deviceIds: body.targets, packageIds, document: body.document };
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
		// A task that needs confirmation is refused, so there is none.
		need_confirm: false,
		document: JSON.parse(task.document) as Record<string, unknown>,
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
function detailToWire(subtask: Subtask): TaskDetail {
	return withoutAbsent({
		target: subtask.device_id,
		status: subtask.status,
		output: subtask.output ?? progressText(subtask),
		error:
			subtask.error_code !== null && subtask.error_msg !== null
				? { error_code: subtask.error_code, error_msg: subtask.error_msg }
				: undefined,
	});
}

/** While it runs, the last progress the device reported. */
function progressText({ status, progress }: Subtask): string | undefined {
	return status === "Processing" && progress !== null
		? `${progress}%`
		: undefined;
}
