/**
 * Many devices, looked through a window at a time: a condition that few of a million
 * devices fit, or that takes look-ups for each, would hold the embedded store's thread
 * for seconds in one statement.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import {
	type RawBuilder,
	type SelectQueryBuilder,
	type SqlBool,
	sql,
} from "kysely";
import type { Db } from "../database/database.ts";
import type { Page } from "../database/paging.ts";
import type { Tables } from "../database/tables.ts";

/** Which devices come into question: those of one resource space, or of one project. */
export interface Candidates {
	column: "app_id" | "project_id";
	id: string;
}

export interface DeviceSearch {
	candidates: Candidates;
	condition: RawBuilder<SqlBool>;
	/** How many look-ups in other tables the condition may take for one device. */
	lookUps: number;
}

export type DeviceQuery = SelectQueryBuilder<Tables, "devices", object>;

/** Candidates of a window whose condition needs nothing but their rows. */
const WINDOW_SIZE = 5_000;
/** Look-ups that one window may take: 5 to 10 ms on SQLite. */
const LOOK_UPS_PER_WINDOW = 5_000;

/** How many candidates a window may have: `size`, or fewer where each is costly. */
export function windowSize(lookUps: number, size = WINDOW_SIZE): number {
	return Math.max(1, Math.min(size, Math.floor(LOOK_UPS_PER_WINDOW / lookUps)));
}

/**
 * The record id that ends the next `size` candidates after `after`; undefined: there are
 * none. Walks an index and nothing else.
 */
export async function endOfWindow(
	db: Db,
	{ column, id }: Candidates,
	after: string,
	size: number,
): Promise<string | undefined> {
	return lastOf(
		db,
		sql`select record_id from devices where ${sql.ref(column)} = ${id} and record_id > ${after}`,
		size,
	);
}

/**
 * The last of the first `size` rows of `ids`, a select of one column `record_id`
 * without an order; undefined: it is empty.
 */
export async function lastOf(
	db: Db,
	ids: RawBuilder<unknown>,
	size: number,
): Promise<string | undefined> {
	const full = await sql<{ record_id: string }>`
		${ids} order by record_id limit 1 offset ${size - 1}`.execute(db);
	if (full.rows[0]) return full.rows[0].record_id;
	const rest = await sql<{ last: string | null }>`
		select max(record_id) as last from (${ids}) as ids`.execute(db);
	return rest.rows[0]?.last ?? undefined;
}

/**
 * Whether there is such a row, asked for each device by itself. The offset is a fence to
 * PostgreSQL: it would join, and as long as its statistics do not know a table that was
 * just filled, multiply one by the other (3 s for 7,000 devices, instead of 30 ms).
 *
 * @param rows what follows `from`
 */
export function thereIs(rows: RawBuilder<unknown>): RawBuilder<SqlBool> {
	return sql`exists (select 1 from ${rows} limit 1 offset 0)`;
}

/** The candidates with `after` < record id <= `until`. */
export function candidatesWithin(
	db: Db,
	{ column, id }: Candidates,
	after: string,
	until: string,
): DeviceQuery {
	return db
		.selectFrom("devices")
		.where(`devices.${column}`, "=", id)
		.where("devices.record_id", ">", after)
		.where("devices.record_id", "<=", until);
}

/** The devices of one page, newest first. */
export async function findPage<T extends { record_id: string }>(
	db: Db,
	{ candidates, condition, lookUps }: DeviceSearch,
	page: Page,
	select: (devices: DeviceQuery) => SelectQueryBuilder<Tables, "devices", T>,
): Promise<T[]> {
	const { column, id } = candidates;
	const size = windowSize(lookUps);
	const wanted = page.offset + page.limit;
	const found: T[] = [];
	for (let before = page.marker; ; await nextTurn()) {
		const { rows } = await sql<{ record_id: string }>`
			select record_id from devices
			where ${sql.ref(column)} = ${id} and record_id < ${before}
			order by record_id desc limit 1 offset ${size - 1}`.execute(db);
		const from = rows[0]?.record_id;
		const devices = db
			.selectFrom("devices")
			.where(`devices.${column}`, "=", id)
			.where("devices.record_id", ">=", from ?? "")
			.where("devices.record_id", "<", before)
			.where(condition);
		const some = await select(devices)
			.orderBy("devices.record_id", "desc")
			.limit(wanted - found.length)
			.execute();
		found.push(...some);
		if (found.length >= wanted || from === undefined)
			return found.slice(page.offset);
		before = from;
	}
}

export interface Count {
	count: number;
	/** In so many windows. */
	windows: number;
}

/** How many devices fit. */
export async function countFitting(
	db: Db,
	{ candidates, condition, lookUps }: DeviceSearch,
): Promise<Count> {
	const size = windowSize(lookUps);
	let count = 0;
	let after = "";
	for (let windows = 0; ; windows++) {
		const until = await endOfWindow(db, candidates, after, size);
		if (until === undefined) return { count, windows };
		const fitting = await candidatesWithin(db, candidates, after, until)
			.where(condition)
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.executeTakeFirstOrThrow();
		count += Number(fitting.count);
		after = until;
		await nextTurn();
	}
}

/** A count of so many windows may be kept, if it was slow besides. */
const MANY_WINDOWS = 10;
const SLOW_MS = 100;
/** A slow count is kept for so many times as long as it took. */
const KEPT_FACTOR = 10;

/**
 * Counts that took long, kept for a while: who pages through a million devices asks for
 * the same count with every page, and would have all of them looked at every time.
 */
export class SlowCounts {
	readonly #kept = new Map<string, { count: number; untilMs: number }>();

	/** @param key what is counted */
	async of(key: string, count: () => Promise<Count>): Promise<number> {
		const startMs = performance.now();
		const kept = this.#kept.get(key);
		if (kept && startMs < kept.untilMs) return kept.count;
		const counted = await count();
		const endMs = performance.now();
		for (const [name, { untilMs }] of this.#kept)
			if (untilMs <= endMs) this.#kept.delete(name);
		if (counted.windows >= MANY_WINDOWS && endMs - startMs > SLOW_MS)
			this.#kept.set(key, {
				count: counted.count,
				untilMs: endMs + KEPT_FACTOR * (endMs - startMs),
			});
		return counted.count;
	}
}
