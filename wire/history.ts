/**
 * What happened to devices and tasks: the timeline of a device as a list, and watching
 * as server-sent events. Not the vendor's: its API has neither.
 */
import { type Static, Type } from "typebox";
import {
	countedToPageInfo,
	freeObject,
	id36,
	oneOf,
	pageOf,
	pageQuery,
	timeText,
} from "./envelope.ts";
import { task } from "./tasks.ts";

/** What a timeline tells of. */
export const deviceEventKinds = [
	"registered",
	"deleted",
	"connected",
	"versions_reported",
	"offered",
	"downloaded",
	"succeeded",
	"failed",
	"retry_scheduled",
	"stopped",
	"removed",
] as const;

/** What happens to a task as a whole. */
export const taskChangeKinds = [
	"task_created",
	"task_status",
	"task_deleted",
] as const;

const taskId = () =>
	Type.String({
		pattern: "^[a-f0-9]{1,24}$",
		rule: "must be 1 to 24 characters: the digits 0-9 and a-f",
	});

export const listDeviceEventsQuery = Type.Object({
	kind: Type.Optional(oneOf(deviceEventKinds)),
	task_id: Type.Optional(taskId()),
	/** At or after: `20230211T121212Z`. */
	start_time: Type.Optional(timeText()),
	/** Before. */
	end_time: Type.Optional(timeText()),
	...pageQuery,
});

export const deviceEvent = Type.Object({
	/** 24 hex digits, larger for what was stored later: the marker of the list. */
	event_id: Type.String(),
	kind: oneOf(deviceEventKinds),
	/** With milliseconds, as a device's connection times. */
	time: Type.String(),
	task_id: Type.Optional(Type.String()),
	/** By kind; see docs/watching.md. */
	detail: Type.Optional(freeObject()),
});
export type DeviceEvent = Static<typeof deviceEvent>;
/** A list counts no further: a device that reports madly for months has many. */
export const COUNTED_DEVICE_EVENTS = 2_000;
export const deviceEventPageInfo = countedToPageInfo(COUNTED_DEVICE_EVENTS);
export const deviceEventList = pageOf(
	"events",
	deviceEvent,
	deviceEventPageInfo,
);

export const watchQuery = Type.Object({
	task_id: Type.Optional(taskId()),
	app_id: Type.Optional(id36()),
	/** For clients that cannot set the header `Last-Event-ID`, which goes before it. */
	last_event_id: Type.Optional(
		Type.String({
			documented: { pattern: "^[0-9]{1,15}-[0-9]{1,15}$" },
			rule: "must be the id of an event that was sent, such as 0-17",
		}),
	),
});

/** Event `subtask`: something happened to a device in a task. */
export interface SubtaskEvent extends DeviceEvent {
	task_id: string;
	device_id: string;
}

/** Event `task_change`: something happened to a task as a whole. */
export interface TaskChangeEvent {
	event_id: string;
	task_id: string;
	kind: (typeof taskChangeKinds)[number];
	time: string;
	detail?: Record<string, unknown>;
}

/** Event `task`: how a task stands, after everything that was told before. */
export const taskState = Type.Pick(task, [
	"task_id",
	"task_name",
	"task_type",
	"status",
	"status_desc",
	"task_progress",
	"create_time",
]);
export type TaskState = Static<typeof taskState>;

/** What a watcher is told. */
export type WatchEvent =
	| { type: "subtask"; id: string | undefined; data: SubtaskEvent }
	| { type: "task_change"; id: string | undefined; data: TaskChangeEvent }
	| { type: "task"; id: string | undefined; data: TaskState }
	/** What lies between the last event and the next is not kept: read the state anew. */
	| { type: "reset"; id: string | undefined; data: { reason: string } };
