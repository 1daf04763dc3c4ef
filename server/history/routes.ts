import type { Selectable } from "kysely";
import type { Static } from "typebox";
import { deviceParams } from "../../wire/devices.ts";
import {
	parseWireTime,
	projectParams,
	wireTime,
	wireTimeMs,
	withoutAbsent,
} from "../../wire/envelope.ts";
import { lastEventId } from "../../wire/headers.ts";
import {
	deviceEventList,
	listDeviceEventsQuery,
	type SubtaskEvent,
	type TaskChangeEvent,
	type TaskState,
	type DeviceEvent as WireDeviceEvent,
	watchQuery,
} from "../../wire/history.ts";
import { maySee, type Scope } from "../access/permissions.ts";
import type { Http } from "../access/route.ts";
import type { Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { type DeviceRow, fromInstant } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import {
	type DeviceEvent,
	type DeviceEventFilter,
	eventId,
	listDeviceEvents,
} from "./device-history.ts";
import { eventText } from "./event-stream.ts";
import type { DeviceEventKind, TaskChangeKind } from "./history.ts";
import type { Told, WatchedEntry } from "./tail.ts";
import { getWatchedTask, type WatchedTask } from "./watched-tasks.ts";
import { idOf, positionOf, type Watching } from "./watching.ts";

const DEVICE_EVENTS =
	"/otaru/v1/projects/:project_id/devices/:device_id/events";
const EVENTS = "/otaru/v1/projects/:project_id/events";

export interface HistoryRouteParts {
	db: Db;
	watching: Watching;
	/** @throws 404 IOTDA.014000 */
	getDevice: (
		db: Db,
		scope: Scope,
		deviceId: string,
	) => Promise<
		Pick<Selectable<DeviceRow>, "device_id" | "project_id" | "app_id">
	>;
	/** @throws 403 IOTDA.001000 */
	getResourceSpace: (db: Db, scope: Scope, spaceId: string) => Promise<unknown>;
}

export function historyRoutes(http: Http, parts: HistoryRouteParts): void {
	const { db, watching } = parts;

	http.get(
		DEVICE_EVENTS,
		{
			config: { action: "iotda:devices:query", level: "Read" },
			schema: {
				operationId: "ListDeviceEvents",
				summary: "List what happened to a device",
				tags: ["History"],

				params: deviceParams,
				querystring: listDeviceEventsQuery,
				response: { 200: deviceEventList },
			},
		},
		async (request) => {
			const page = readPage(request.query);
			const filter = readFilter(request.query);
			const device = await parts.getDevice(
				db,
				request.scope,
				request.params.device_id,
			);
			const result = await listDeviceEvents(db, device, filter, page);
			return { events: result.items.map(toWire), page: result.page };
		},
	);

	// An open stream would hold up the listener's end.
	http.addHook("preClose", () => watching.end());

	http.get(
		EVENTS,
		{
			config: { action: "iotda:batchtasks:query", level: "Read" },
			schema: {
				operationId: "WatchEvents",
				summary: "Watch devices and tasks as events",
				tags: ["History"],
				produces: { 200: ["text/event-stream"] },
				failures: [404, 503],
				requestHeaders: lastEventId,
				params: projectParams,
				querystring: watchQuery,
			},
		},
		async (request, reply) => {
			const { scope } = request;
			const { task_id: taskId, app_id: spaceId } = request.query;
			const after = readLastEventId(
				request.headers["last-event-id"],
				request.query.last_event_id,
			);
			if (spaceId !== undefined)
				await parts.getResourceSpace(db, scope, spaceId);
			if (taskId !== undefined)
				await getWatchedTask(db, scope, taskId, spaceId);
			const isFor = (about: { app_id: string }) =>
				(spaceId === undefined || about.app_id === spaceId) &&
				maySee(scope, about.app_id);
			await watching.serve(
				{
					watch: { projectId: scope.projectId, taskId },
					after,
					accessVersion: request.caller.accessVersion,
					textOf: (told) =>
						isFor(told.kind === "entry" ? told.entry : told.task)
							? textOf(told)
							: undefined,
				},
				reply.raw,
				() => {
					reply.hijack();
					return reply.getHeaders();
				},
			);
		},
	);
}

function readFilter(
	query: Static<typeof listDeviceEventsQuery>,
): DeviceEventFilter {
	const from = readTime("start_time", query.start_time);
	const until = readTime("end_time", query.end_time);
	if (from && until && from >= until)
		throw new ApiError(errors.startNotBeforeEnd, {
			detail: "start_time must be earlier than end_time.",
		});
	return { kind: query.kind, taskId: query.task_id, from, until };
}

function readTime(field: string, text: string | undefined): Date | undefined {
	if (text === undefined) return undefined;
	const time = parseWireTime(text);
	if (!time)
		throw new ApiError(errors.invalidTime, {
			detail: `${field} must be a time such as 20230211T121212Z.`,
		});
	return time;
}

/** The header before the query: a browser that comes back repeats the address as it was. */
function readLastEventId(
	header: string | string[] | undefined,
	query: string | undefined,
) {
	const [field, id] = header
		? ["Last-Event-ID", String(header)]
		: ["last_event_id", query];
	if (id === undefined) return undefined;
	const position = positionOf(id);
	if (!position)
		throw invalidInput(
			field ?? "",
			"must be the id of an event that was sent, such as 0-17",
		);
	return position;
}

function toWire(event: DeviceEvent): WireDeviceEvent {
	return withoutAbsent({
		event_id: eventId(event.seq),
		kind: event.kind,
		time: wireTimeMs(event.at),
		task_id: event.taskId,
		detail: event.detail,
	});
}

/** The same for everybody, so it is written once. */
const texts = new WeakMap<Told, string>();

function textOf(told: Told): string {
	let text = texts.get(told);
	if (text === undefined) {
		text = told.kind === "entry" ? entryText(told) : taskText(told.task);
		texts.set(told, text);
	}
	return text;
}

function entryText({ position, entry }: Told & { kind: "entry" }): string {
	const id = idOf(position);
	return entry.device_id === null
		? eventText({ id, event: "task_change", data: changeData(entry) })
		: eventText({
				id,
				event: "subtask",
				data: subtaskData(entry, entry.device_id),
			});
}

function subtaskData(entry: WatchedEntry, deviceId: string): string {
	return withDetail(entry, {
		event_id: eventId(entry.seq),
		task_id: entry.task_id,
		device_id: deviceId,
		kind: entry.kind as DeviceEventKind,
		time: entry.at,
	} satisfies SubtaskEvent);
}

function changeData(entry: WatchedEntry): string {
	return withDetail(entry, {
		event_id: eventId(entry.seq),
		task_id: entry.task_id,
		kind: entry.kind as TaskChangeKind,
		time: entry.at,
	} satisfies TaskChangeEvent);
}

/** The detail is JSON already, in one line. */
function withDetail({ detail }: WatchedEntry, data: object): string {
	const text = JSON.stringify(data);
	return detail === null ? text : `${text.slice(0, -1)},"detail":${detail}}`;
}

function taskText(task: WatchedTask): string {
	const data: TaskState = withoutAbsent({
		task_id: task.task_id,
		task_name: task.task_name,
		task_type: task.task_type,
		status: task.status,
		status_desc: task.status_desc,
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
	return eventText({ event: "task", data: JSON.stringify(data) });
}
