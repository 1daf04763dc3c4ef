/** Looking into the audit trail: a page of it, or a stretch of the chain as a whole. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { type SqlBool, sql } from "kysely";
import type { Db } from "../database/database.ts";
import type { Page, PageResult } from "../database/paging.ts";
import { instant } from "../database/tables.ts";
import { type AuditRecord, BEGINNING } from "./audit-chain.ts";

/** Fields that are compared for being equal. */
export const equalFields = [
	"user_id",
	"user_name",
	"credential",
	"action",
	"project_id",
	"app_id",
	"resource",
	"address",
	"decision",
	"status",
] as const;

export type AuditFilter = Partial<
	Pick<AuditRecord, (typeof equalFields)[number]>
> & {
	/** At or after. */
	from?: Date | undefined;
	/** Before. */
	until?: Date | undefined;
};

/** Those with an index, the one that leaves the fewest rows first. */
const indexed = ["resource", "user_id", "action"] as const;
/**
 * Rows that are looked through at once, and that the count is made of: of one user,
 * action or resource if the filter names one, else of all. About 10 ms on SQLite, whose
 * reads run on the main thread.
 */
const WINDOW = 10_000;
/** Windows of one page: a filter that nothing fits must not go through years at once. */
const WINDOWS_PER_PAGE = 20;
const LAST = Number.MAX_SAFE_INTEGER;
/** By how much the clocks of servers that write one chain may differ. */
const CLOCKS_DIFFER_MS = 60_000;

/** A row as the marker of a page: its number in 24 hex digits. */
export function markerOf(seq: number): string {
	return seq.toString(16).padStart(24, "0");
}

/**
 * Newest first: rows of this account, and those of nobody. A page that looked through its
 * windows without being full ends with the marker of where it stopped: further rows may
 * lie beyond. The count is that of the newest window.
 */
export async function searchAudit(
	db: Db,
	accountId: string,
	filter: AuditFilter,
	page: Page,
): Promise<PageResult<AuditRecord>> {
	const stretch = await stretchOf(db, filter);
	const candidates = () => {
		const by = indexed.find((field) => filter[field] !== undefined);
		const all = db.selectFrom("audit").where("seq", ">", stretch.after);
		return by === undefined ? all : all.where(by, "=", filter[by] as string);
	};
	const matching = () => {
		let query = candidates().where((eb) =>
			eb.or([eb("account_id", "=", accountId), eb("account_id", "is", null)]),
		);
		for (const field of equalFields) {
			const wanted = filter[field];
			if (wanted !== undefined) query = query.where(field, "=", wanted);
		}
		if (filter.from) query = query.where("at", ">=", instant(filter.from));
		if (filter.until) query = query.where("at", "<", instant(filter.until));
		return query;
	};
	/** The newest row that is older than the window before `seq`. */
	const windowEnd = async (seq: number) => {
		const row = await candidates()
			.select("seq")
			.where("seq", "<", seq)
			.orderBy("seq", "desc")
			.offset(WINDOW)
			.limit(1)
			.executeTakeFirst();
		return row?.seq ?? stretch.after;
	};

	const newest = stretch.until + 1;
	const counted = await matching()
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("seq", "<", newest)
		.where("seq", ">", await windowEnd(newest))
		.executeTakeFirstOrThrow();

	let before = Math.min(Number.parseInt(page.marker, 16), newest);
	const wanted = page.offset + page.limit;
	const found: AuditRecord[] = [];
	for (let window = 0; window < WINDOWS_PER_PAGE; window++) {
		const beyond = await windowEnd(before);
		found.push(
			...(await matching()
				.selectAll()
				.where("seq", "<", before)
				.where("seq", ">", beyond)
				.orderBy("seq", "desc")
				.limit(wanted - found.length)
				.execute()),
		);
		before = beyond + 1;
		if (found.length >= wanted || beyond <= stretch.after) break;
		await nextTurn();
	}
	const items = found.slice(page.offset);
	const next =
		found.length < wanted && before > stretch.after + 1
			? before
			: items.at(-1)?.seq;
	return {
		items,
		page: {
			count: Number(counted.count),
			...(next === undefined ? {} : { marker: markerOf(next) }),
		},
	};
}

export interface Stretch {
	/** Rows behind this number … */
	after: number;
	/** … up to this one. */
	until: number;
}

/**
 * The part of the chain that a time span lies in: rows are numbered in the order of
 * time, but for clocks that differ a little.
 */
export async function stretchOf(
	db: Db,
	{ from, until }: Pick<AuditFilter, "from" | "until">,
): Promise<Stretch> {
	const stretch: Stretch = { after: 0, until: LAST - 1 };
	if (from) {
		const first = await db
			.selectFrom("audit")
			.select("at")
			.where("at", ">=", instant(from))
			.orderBy("at")
			.limit(1)
			.executeTakeFirst();
		if (!first) return { after: LAST - 1, until: LAST - 1 };
		const seq = await edge(
			db,
			"min",
			sql`at >= ${first.at} and at <= ${shifted(first.at, CLOCKS_DIFFER_MS)}`,
		);
		stretch.after = seq - 1;
	}
	if (until) {
		const last = await db
			.selectFrom("audit")
			.select("at")
			.where("at", "<", instant(until))
			.orderBy("at", "desc")
			.limit(1)
			.executeTakeFirst();
		if (!last) return { after: LAST - 1, until: LAST - 1 };
		stretch.until = await edge(
			db,
			"max",
			sql`at <= ${last.at} and at >= ${shifted(last.at, -CLOCKS_DIFFER_MS)}`,
		);
	}
	return stretch;
}

async function edge(
	db: Db,
	which: "min" | "max",
	condition: ReturnType<typeof sql>,
): Promise<number> {
	const row = await db
		.selectFrom("audit")
		.select((eb) => eb.fn[which]("seq").as("seq"))
		.where(condition as ReturnType<typeof sql<SqlBool>>)
		.executeTakeFirstOrThrow();
	return Number(row.seq);
}

function shifted(at: string, ms: number): string {
	return instant(new Date(new Date(at).getTime() + ms));
}

export interface ExportedRow {
	row: AuditRecord;
	/** Of the row before. */
	previousHash: string;
}

const PIECE = 500;

/**
 * A stretch of the chain without a gap, oldest first, in pieces; up to where it ended at
 * the beginning. Also rows of other accounts: without them nothing could be checked.
 */
export async function* exportAudit(
	db: Db,
	{ after, until }: Stretch,
): AsyncGenerator<ExportedRow[]> {
	const newest = await db
		.selectFrom("audit")
		.select("seq")
		.orderBy("seq", "desc")
		.limit(1)
		.executeTakeFirst();
	const end = Math.min(until, newest?.seq ?? 0);
	let previous: { seq: number; hash: string } | undefined;
	for (let seq = after; seq < end; ) {
		const rows = await db
			.selectFrom("audit")
			.selectAll()
			.where("seq", ">", seq)
			.where("seq", "<=", end)
			.orderBy("seq")
			.limit(PIECE)
			.execute();
		const [first] = rows;
		const last = rows.at(-1);
		if (!first || !last) return;
		let hash =
			previous?.seq === first.seq - 1
				? previous.hash
				: await hashOf(db, first.seq - 1);
		yield rows.map((row) => {
			const exported = { row, previousHash: hash };
			hash = row.hash;
			return exported;
		});
		previous = { seq: last.seq, hash: last.hash };
		seq = last.seq;
		await nextTurn();
	}
}

/** Of a row, or of the last one that was removed; empty when it is not known any more. */
async function hashOf(db: Db, seq: number): Promise<string> {
	if (seq === BEGINNING.seq) return BEGINNING.hash;
	const row =
		(await db
			.selectFrom("audit")
			.select("hash")
			.where("seq", "=", seq)
			.executeTakeFirst()) ??
		(await db
			.selectFrom("audit_ends")
			.select("hash")
			.where("name", "=", "tail")
			.where("seq", "=", seq)
			.executeTakeFirst());
	return row?.hash ?? "";
}
