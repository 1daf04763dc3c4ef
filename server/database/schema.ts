/** What migrations need where the two engines' definitions differ. */
import {
	type ColumnDataType,
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
