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
	timeText,
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

/** A list of what an operation is to work on; without it, on all of the task. */
export const someTargets = Type.Object({
	targets: Type.Optional(
		Type.Array(deviceId(), {
			minItems: 1,
			maxItems: 100,
			rule: "must be a list of 1 to 100 device ids",
		}),
	),
});

export const taskPolicy = Type.Object(
	{
		/** `yyyyMMdd'T'HHmmss'Z'`, UTC, at most seven days ahead. */
		schedule_time: Type.Optional(timeText()),
		retry_count: Type.Optional(
			Type.Integer({
				minimum: 1,
				maximum: 5,
				rule: "must be a whole number from 1 to 5",
			}),
		),
		/** Minutes. */
		retry_interval: Type.Optional(
			Type.Integer({
				minimum: 1,
				maximum: 1440,
				rule: "must be a whole number of minutes from 1 to 1440",
			}),
		),
	},
	{
		rule: "must be an object",
		documented: {
			dependentRequired: {
				retry_count: ["retry_interval"],
				retry_interval: ["retry_count"],
			},
		},
	},
);

const createTaskFields = {
	app_id: Type.Optional(id36()),
	task_name: Type.String({
		pattern: "^[\\u4E00-\\u9FFF\\u3400-\\u4DBFA-Za-z0-9_]{1,128}$",
		minLength: 1,
		maxLength: 128,
		rule: "must be 1 to 128 characters: Chinese characters, letters A-Z a-z, digits and _",
	}),
	task_type: oneOf([...otaTaskTypes, ...otherTaskTypes]),
	targets: Type.Optional(
		// How many there may be is a setting of the server.
		Type.Array(deviceId(), {
			minItems: 1,
			rule: "must be a list of at least one device id",
		}),
	),
	targets_filter: Type.Optional(
		Type.Object(
			{
				group_ids: Type.Array(
					Type.String({
						pattern: "^[A-Fa-f0-9-]{1,36}$",
						rule: "must be 1 to 36 characters: hex digits and -",
					}),
					{
						minItems: 1,
						maxItems: 100,
						rule: "must be a list of 1 to 100 group ids",
						documented: { uniqueItems: true },
					},
				),
			},
			{ rule: "must be an object with group_ids" },
		),
	),
	document: Type.Optional(
		Type.Object(
			{
				package_ids: Type.Optional(
					Type.Array(id36(), {
						minItems: 1,
						maxItems: 10,
						rule: "must be a list of 1 to 10 package ids",
						documented: { uniqueItems: true },
					}),
				),
				/** The older form of a single package. */
				package_id: Type.Optional(id36()),
			},
			{
				rule: "must be an object",
				documented: {
					if: { required: ["package_ids"] },
					else: { required: ["package_id"] },
				},
			},
		),
	),
	need_confirm: Type.Optional(Type.Boolean({ rule: "must be true or false" })),
	task_policy: Type.Optional(taskPolicy),
	task_mode: Type.Optional(oneOf(["GATEWAY"])),
	task_ext_info: Type.Optional(
		Type.Object({}, { additionalProperties: true, rule: "must be an object" }),
	),
	/** A batch file; looked at only to be refused by name. */
	document_source: Type.Optional(Type.Unknown()),
};
export const createTask = Type.Object(createTaskFields, {
	// Asked after the kind of task, of which many are refused for what they are.
	documented: {
		required: ["task_name", "task_type", "document"],
		if: { required: ["targets"] },
		else: { required: ["targets_filter"] },
	},
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
	task_type: Type.String({ documented: { enum: otaTaskTypes } }),
	task_mode: Type.Optional(Type.String()),
	need_confirm: Type.Boolean(),
	task_ext_info: Type.Optional(Type.Object({}, { additionalProperties: true })),
	targets: Type.Array(Type.String()),
	targets_filter: Type.Optional(
		Type.Object({}, { additionalProperties: true }),
	),
	task_policy: Type.Optional(Type.Object({}, { additionalProperties: true })),
	document: Type.Object({}, { additionalProperties: true }),
	status: Type.String({ documented: { enum: taskStatuses } }),
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
	status: Type.String({ documented: { enum: subtaskStatuses } }),
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

export const targetResult = Type.Object({
	target: Type.String(),
	status: oneOf(["success", "failure"]),
	error_code: Type.Optional(Type.String()),
	error_msg: Type.Optional(Type.String()),
});
export const targetResults = Type.Object({ targets: Type.Array(targetResult) });

// --- our own ----------------------------------------------------------------------

export const whyParams = Type.Object({
	...taskParams.properties,
	device_id: deviceId(),
});

/** Why a device has not got, or did not get, the package of a task. */
export const why = Type.Object({
	task_id: Type.String(),
	target: Type.String(),
	task_status: Type.String({ documented: { enum: taskStatuses } }),
	/** Absent: the device is not in the task. */
	status: Type.Optional(Type.String({ documented: { enum: subtaskStatuses } })),
	/** The most important one first. */
	reasons: Type.Array(
		Type.Object({
			code: Type.String(),
			message: Type.String(),
			/** With milliseconds, as devices' times are. */
			since: Type.Optional(Type.String()),
			until: Type.Optional(Type.String()),
		}),
	),
	/** The error as the task's details show it. */
	error: Type.Optional(
		Type.Object({ error_code: Type.String(), error_msg: Type.String() }),
	),
	/** Retries that were made by themselves, and how many the task allows. */
	retries: Type.Integer(),
	retry_count: Type.Integer(),
});
export type Why = Static<typeof why>;
