/** Batch tasks: what brings packages to devices. `Waitting` is the vendor's spelling. */
import { type Static, Type } from "typebox";
import {
	deviceId,
	id36,
	oneOf,
	pageInfo,
	pageOf,
	pageQuery,
	pathId,
} from "./envelope.ts";

export const otaTaskTypes = [
	"firmwareUpgrade",
	"softwareUpgrade",
	"moduleUpgrade",
] as const;
/** The vendor's other batch types: known, so that they are refused by name. */
export const otherTaskTypes = [
	"createDevices",
	"updateDevices",
	"deleteDevices",
	"freezeDevices",
	"unfreezeDevices",
	"createCommands",
	"createAsyncCommands",
	"createMessages",
	"updateDeviceShadows",
	"changeGateway",
] as const;

export const taskStatuses = [
	"Initializing",
	"Waitting",
	"Processing",
	"Success",
	"Fail",
	"PartialSuccess",
	"Stopping",
	"Stopped",
] as const;

export const subtaskStatuses = [
	"Success",
	"Fail",
	"Processing",
	"FailWaitRetry",
	"Stopped",
	"Waitting",
	"Removed",
] as const;

export const taskParams = Type.Object({
	project_id: pathId(64),
	task_id: Type.String({
		pattern: "^[a-f0-9]{1,24}$",
		rule: "must be 1 to 24 characters: the digits 0-9 and a-f",
	}),
});

const free = Type.Optional(Type.Unknown());

export const createTask = Type.Object({
	app_id: Type.Optional(id36()),
	task_name: Type.String({
		pattern: "^[\\u4E00-\\u9FFF\\u3400-\\u4DBFA-Za-z0-9_]{1,128}$",
		minLength: 1,
		maxLength: 128,
		rule: "must be 1 to 128 characters: Chinese characters, letters, digits and _",
	}),
	task_type: oneOf([...otaTaskTypes, ...otherTaskTypes]),
	targets: Type.Optional(
		Type.Array(deviceId(), {
			minItems: 1,
			maxItems: 30_000,
			rule: "must be a list of 1 to 30000 device ids",
		}),
	),
	document: Type.Optional(
		Type.Object(
			{
				package_ids: Type.Optional(
					Type.Array(id36(), {
						minItems: 1,
						maxItems: 10,
						rule: "must be a list of 1 to 10 package ids",
					}),
				),
				/** The older form of a single package. */
				package_id: Type.Optional(id36()),
			},
			{ rule: "must be an object" },
		),
	),
	need_confirm: Type.Optional(Type.Boolean({ rule: "must be true or false" })),
	// Not offered yet: looked at only to be refused by name.
	task_mode: free,
	task_ext_info: free,
	targets_filter: free,
	task_policy: free,
	document_source: free,
});
export type CreateTask = Static<typeof createTask>;

export const taskProgress = Type.Object({
	total: Type.Integer(),
	processing: Type.Integer(),
	success: Type.Integer(),
	fail: Type.Integer(),
	waitting: Type.Integer(),
	fail_wait_retry: Type.Integer(),
	stopped: Type.Integer(),
	removed: Type.Integer(),
});

export const task = Type.Object({
	task_id: Type.String(),
	task_name: Type.String(),
	task_type: Type.String(),
	need_confirm: Type.Boolean(),
	targets: Type.Array(Type.String()),
	document: Type.Object({}, { additionalProperties: true }),
	status: Type.String(),
	status_desc: Type.Optional(Type.String()),
	task_progress: taskProgress,
	create_time: Type.String(),
});
export type Task = Static<typeof task>;

export const listTasksQuery = Type.Object({
	task_type: oneOf([...otaTaskTypes, ...otherTaskTypes]),
	app_id: Type.Optional(id36()),
	status: Type.Optional(oneOf(taskStatuses)),
	...pageQuery,
});
export const taskList = pageOf("batchtasks", task);

export const showTaskQuery = Type.Object({
	task_detail_status: Type.Optional(oneOf(subtaskStatuses)),
	target: Type.Optional(deviceId()),
	...pageQuery,
});

export const taskDetail = Type.Object({
	target: Type.String(),
	status: Type.String(),
	output: Type.Optional(Type.String()),
	error: Type.Optional(
		Type.Object({ error_code: Type.String(), error_msg: Type.String() }),
	),
});
export type TaskDetail = Static<typeof taskDetail>;

export const taskWithDetails = Type.Object({
	batchtask: task,
	task_details: Type.Array(taskDetail),
	page: pageInfo,
});
export type TaskWithDetails = Static<typeof taskWithDetails>;

export const stopTask = Type.Object({
	targets: Type.Optional(
		Type.Array(deviceId(), {
			minItems: 1,
			maxItems: 100,
			rule: "must be a list of 1 to 100 device ids",
		}),
	),
});

export const targetResult = Type.Object({
	target: Type.String(),
	status: oneOf(["success", "failure"]),
	error_code: Type.Optional(Type.String()),
	error_msg: Type.Optional(Type.String()),
});
export const targetResults = Type.Object({ targets: Type.Array(targetResult) });
