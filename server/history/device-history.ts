/** The timeline of a device, a page at a time. */
import { sql } from "kysely";
import type { Db } from "../database/database.ts";
import type { Page, PageResult } from "../database/paging.ts";
import { fromInstant, instant } from "../database/tables.ts";
import type { DeviceEventKind } from "./history.ts";

export interface DeviceEvent {
	seq: number;
	kind: DeviceEventKind;
	taskId: string | undefined;
	detail: Record<string, unknown> | undefined;
	at: Date;
}

export interface DeviceEventFilter {
	kind: DeviceEventKind | undefined;
	taskId: string | undefined;
	/** At or after. */
	from: Date | undefined;
	/** Before. */
	until: Date | undefined;
}

/**
 * Entries that a page looks through, and that its count is made of. A device has a few
 * hundred in a year; one that reports madly for months must not hold up everybody.
 */
const WINDOW = 2_000;

/**
 * Newest first. A page that looked through its window without being full ends with the
 * marker of where it stopped: further matches may lie beyond. The count is that of the
 * newest 2,000 entries.
 *
 * @param device as it is registered now: what an id was in another project or resource
 * space is nobody's business here
 */
export async function listDeviceEvents(
	db: Db,
	device: { device_id: string; project_id: string; app_id: string },
	filter: DeviceEventFilter,
	page: Page,
): Promise<PageResult<DeviceEvent>> {
	const before = markerSeq(page.marker);
	const beyond = await endOfWindow(db, device.device_id, before);
	let matching = db
		.selectFrom("history")
		.where("device_id", "=", device.device_id)
		.where("project_id", "=", device.project_id)
		.where("app_id", "=", device.app_id);
	if (filter.kind !== undefined)
		matching = matching.where("kind", "=", filter.kind);
	if (filter.taskId !== undefined)
		matching = matching.where("task_id", "=", filter.taskId);
	if (filter.from) matching = matching.where("at", ">=", instant(filter.from));
	if (filter.until) matching = matching.where("at", "<", instant(filter.until));
	const rows = await matching
		.select(["seq", "kind", "task_id", "detail", "at"])
		.where("seq", "<", before)
		.where("seq", ">", beyond)
		.orderBy("seq", "desc")
		.limit(page.limit)
		.offset(page.offset)
		.execute();
	const counted = await matching
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("seq", ">", await endOfWindow(db, device.device_id, LAST))
		.executeTakeFirstOrThrow();
	const last = rows.at(-1);
	const next = rows.length < page.limit && beyond > 0 ? beyond + 1 : last?.seq;
	return {
		items: rows.map((row) => ({
			seq: row.seq,
			// Only entries of devices have a device.
			kind: row.kind as DeviceEventKind,
			taskId: row.task_id ?? undefined,
			detail:
				row.detail === null
					? undefined
					: (JSON.parse(row.detail) as Record<string, unknown>),
			at: fromInstant(row.at),
		})),
		page: {
			count: Number(counted.count),
			...(next === undefined ? {} : { marker: eventId(next) }),
		},
	};
}

const LAST = Number.MAX_SAFE_INTEGER;

/** An entry as callers know it, and as the marker of a page: its number in 24 hex digits. */
export function eventId(seq: number): string {
	return seq.toString(16).padStart(24, "0");
}

function markerSeq(marker: string): number {
	return Math.min(Number.parseInt(marker, 16), LAST);
}

/** The newest entry that is older than the window before `seq`; 0: all of it is inside. */
async function endOfWindow(
	db: Db,
	deviceId: string,
	seq: number,
): Promise<number> {
	const { rows } = await sql<{ seq: number }>`
		select seq from history where device_id = ${deviceId} and seq < ${seq}
		order by seq desc limit 1 offset ${sql.lit(WINDOW)}`.execute(db);
	return rows[0]?.seq ?? 0;
}
