/**
 * What happened to devices and tasks, as rows: the timeline of a device, and what those
 * who watch are told. Written by the transaction that made it happen, so it is never
 * said of something that was not stored.
 */
import { type RawBuilder, sql } from "kysely";
import { type Db, rowsTable } from "../database/database.ts";
import { instant } from "../database/tables.ts";

/** Of devices, by themselves and in tasks. */
export type DeviceEventKind =
	| "registered"
	| "deleted"
	| "connected"
	| "versions_reported"
	| "offered"
	| "downloaded"
	| "succeeded"
	| "failed"
	| "retry_scheduled"
	| "stopped"
	| "removed";
/** Of tasks alone. */
export type TaskChangeKind = "task_created" | "task_status" | "task_deleted";
export type HistoryKind = DeviceEventKind | TaskChangeKind;

export interface HistoryEntry {
	projectId: string;
	spaceId: string;
	deviceId?: string;
	taskId?: string;
	kind: HistoryKind;
	/** Small, and made of plain JSON. */
	detail?: Record<string, unknown>;
}

/** Writes the entries in the order given, in one statement. */
export async function recordHistory(
	trx: Db,
	entries: readonly HistoryEntry[],
	now: Date,
): Promise<void> {
	if (entries.length > 0) await insertEntries(trx, entries, now, sql`true`);
}

/** A device that lives as it should has a handful of entries in a day. */
const FLOOD_ENTRIES = 30;
const FLOOD_MS = 10 * 60_000;

/**
 * Like `recordHistory`, for entries that devices can bring about as often as they like:
 * those of a device whose timeline has grown by 30 entries in 10 minutes are left out,
 * so that no device fills the disk.
 */
export async function recordFromDevices(
	trx: Db,
	entries: readonly (HistoryEntry & { deviceId: string })[],
	now: Date,
): Promise<void> {
	if (entries.length === 0) return;
	await insertEntries(trx, entries, now, notFlooding(sql`v.device_id`, now));
}

/** Whether a device may have another entry: one step in an index and one row. */
export function notFlooding(
	deviceId: RawBuilder<unknown>,
	now: Date,
): RawBuilder<unknown> {
	return sql`coalesce((
		select recent.at from history as recent where recent.device_id = ${deviceId}
		order by recent.seq desc limit 1 offset ${sql.lit(FLOOD_ENTRIES - 1)}
	), '') <= ${instant(new Date(now.getTime() - FLOOD_MS))}`;
}

async function insertEntries(
	trx: Db,
	entries: readonly HistoryEntry[],
	now: Date,
	condition: RawBuilder<unknown>,
): Promise<void> {
	const rows = entries.map((entry) => ({
		project_id: entry.projectId,
		app_id: entry.spaceId,
		device_id: entry.deviceId ?? null,
		task_id: entry.taskId ?? null,
		kind: entry.kind,
		detail: entry.detail === undefined ? null : JSON.stringify(entry.detail),
	}));
	const columns = {
		project_id: "text",
		app_id: "text",
		device_id: "text",
		task_id: "text",
		kind: "text",
		detail: "text",
	} as const;
	await sql`
		insert into history (project_id, app_id, device_id, task_id, kind, detail, at)
		select v.project_id, v.app_id, v.device_id, v.task_id, v.kind, v.detail, ${instant(now)}
		from ${rowsTable(trx, columns, rows)} as v
		where ${condition}`.execute(trx);
}
