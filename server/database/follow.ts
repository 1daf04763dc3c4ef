/**
 * Following a table that only grows, such as the history, so that no row is passed over
 * and none is seen twice.
 *
 * On PostgreSQL rows become visible in another order than they are numbered: a
 * transaction that began early may commit late. So a row counts as settled only when no
 * transaction as old as its own is open any more, and the order is that of transactions,
 * then of numbers: nothing can come to stand before a settled row. One transaction that
 * stays open holds up everything after it, in whichever database of the cluster it is.
 * SQLite has one writer: what is committed is settled, and the number is the order.
 */
import { type RawBuilder, type SqlBool, sql } from "kysely";
import { type Db, engineOf, inTransaction } from "./database.ts";

/** A place between two rows: after this one, before the next. */
export interface Position {
	/** The transaction that wrote the row; 0 on SQLite. */
	tx: number;
	seq: number;
}

/** Whether `a` comes after `b`. */
export function isAfter(a: Position, b: Position): boolean {
	return a.tx > b.tx || (a.tx === b.tx && a.seq > b.seq);
}

/** What a query needs to read on from a position, over the columns `tx` and `seq`. */
export function settledAfter(
	db: Db,
	{ tx, seq }: Position,
): { condition: RawBuilder<SqlBool>; order: RawBuilder<unknown> } {
	return engineOf(db) === "sqlite"
		? { condition: sql`seq > ${seq}`, order: sql`seq` }
		: {
				condition: sql`(tx, seq) > (${tx}, ${seq})
					and tx < pg_snapshot_xmin(pg_current_snapshot())::text::bigint`,
				order: sql`tx, seq`,
			};
}

/**
 * Where the table ends now. Rows up to `settled` can all be read, and stay as they are;
 * no row that is committed comes after `end`.
 */
export async function readEnds(
	db: Db,
	table: "history",
): Promise<{ settled: Position; end: Position }> {
	if (engineOf(db) === "sqlite") {
		// The last number given, whether or not its row is still there.
		const { rows } = await sql<{ seq: number }>`
			select seq from sqlite_sequence where name = ${table}`.execute(db);
		const last = { tx: 0, seq: rows[0]?.seq ?? 0 };
		return { settled: last, end: last };
	}
	const { rows } = await sql<{ oldest: number; next: number }>`
		select pg_snapshot_xmin(s)::text::bigint as oldest, pg_snapshot_xmax(s)::text::bigint as next
		from pg_current_snapshot() as s`.execute(db);
	const { oldest, next } = rows[0] as { oldest: number; next: number };
	return { settled: { tx: oldest, seq: 0 }, end: { tx: next, seq: 0 } };
}

/**
 * Rows that came with a dump from another cluster carry the transactions of that one,
 * which this one has not reached: when it does, they would all be taken for new. They
 * are given to the beginning, a piece at a time.
 *
 * @returns how many; 0 when there are none left
 */
export async function settleForeignRows(
	db: Db,
	table: "history",
	limit: number,
): Promise<number> {
	if (engineOf(db) === "sqlite") return 0;
	return inTransaction(db, async (trx) => {
		const result = await sql`
			update ${sql.table(table)} set tx = 0 where seq in (
				select seq from ${sql.table(table)}
				where tx >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint
				order by tx, seq limit ${sql.lit(limit)})`.execute(trx);
		return Number(result.numAffectedRows ?? 0);
	});
}
