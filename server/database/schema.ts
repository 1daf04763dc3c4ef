/** What migrations need where the two engines' definitions differ. */
import {
	type ColumnDataType,
	type ColumnDefinitionBuilder,
	type CreateTableBuilder,
	type Expression,
	type Kysely,
	type SqlBool,
	SqliteAdapter,
	sql,
} from "kysely";
import { uniqueIndexes } from "./unique.ts";

type Schema = Kysely<unknown>;

function isSqlite(db: Schema): boolean {
	return db.getExecutor().adapter instanceof SqliteAdapter;
}

/**
 * Text that is compared byte by byte, on both engines: ids, names and instants,
 * which are ordered and paged by. PostgreSQL would otherwise sort by the language
 * of the cluster.
 */
export function idText(db: Schema): ColumnDataType | Expression<unknown> {
	return isSqlite(db) ? "text" : sql`text collate "C"`;
}

/** The unique index of that name in `unique.ts`, optionally over some rows only. */
export async function uniqueIndex(
	db: Schema,
	name: keyof typeof uniqueIndexes,
	where?: string,
): Promise<void> {
	const [table, columns] = uniqueIndexes[name];
	let index = db.schema
		.createIndex(name)
		.on(table)
		.columns([...columns])
		.unique();
	if (where) index = index.where(sql.raw<SqlBool>(where) as never);
	await index.execute();
}

export async function partialIndex(
	db: Schema,
	name: string,
	table: string,
	columns: string[],
	where: string,
): Promise<void> {
	await db.schema
		.createIndex(name)
		.on(table)
		.columns(columns)
		.where(sql.raw<SqlBool>(where) as never)
		.execute();
}

/** A table whose rows the store numbers in the order of their insertion, never twice. */
export function numberedRow(
	db: Schema,
	table: CreateTableBuilder<string, never>,
	name: string,
): CreateTableBuilder<string, string> {
	return isSqlite(db)
		? table.addColumn(name, "integer", (c) => c.primaryKey().autoIncrement())
		: table.addColumn(name, "bigserial", (c) => c.primaryKey());
}

/**
 * Which transaction wrote the row. On PostgreSQL transactions commit in another order
 * than they draw their numbers: who follows a table needs to know which may still come.
 * SQLite has one writer, so there is nothing to tell apart.
 */
export function transactionNumber(
	db: Schema,
): (column: ColumnDefinitionBuilder) => ColumnDefinitionBuilder {
	return (column) =>
		column
			.notNull()
			.defaultTo(isSqlite(db) ? 0 : sql`(pg_current_xact_id()::text::bigint)`);
}

/**
 * The order in which a numbered table is followed (follow.ts), where it is not that of
 * the row numbers alone.
 */
export async function followingIndex(
	db: Schema,
	name: string,
	table: string,
): Promise<void> {
	if (isSqlite(db)) return;
	await db.schema.createIndex(name).on(table).columns(["tx", "seq"]).execute();
}
