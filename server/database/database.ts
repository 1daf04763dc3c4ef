/** One relational store, two engines: open by configuration, migrate, transactions. */
import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import {
	type Dialect,
	Kysely,
	type RawBuilder,
	type SelectQueryBuilder,
	type SqlBool,
	SqliteAdapter,
	sql,
} from "kysely";
import type { DatabaseConfig } from "../config.ts";
import { readDirectly } from "./compile-once.ts";
import { migrate } from "./migrate.ts";
import { openLocalSignal, type Signal } from "./signal.ts";
import { SqliteDialect } from "./sqlite.ts";
import type { Tables } from "./tables.ts";

export { isUniqueViolation } from "./unique.ts";

export type Db = Kysely<Tables>;
export type Clock = () => Date;

export interface Store extends AsyncDisposable {
	db: Db;
	signal: Signal;
}

/**
 * Opens the store and brings its schema up to date.
 *
 * @throws when the schema was written by a newer server: a sentence that says so.
 */
export async function openStore(config: DatabaseConfig): Promise<Store> {
	return config.kind === "sqlite"
		? openStoreOn(new SqliteDialect(fileIn(config.file)), async () =>
				openLocalSignal(),
			)
		: openPostgres(config.url, config.connections);
}

/** The driver is loaded only when it is used. */
async function openPostgres(url: string, connections: number): Promise<Store> {
	const postgres = await import("./postgres.ts");
	return openStoreOn(postgres.openDialect(url, connections), () =>
		postgres.openPostgresSignal(url),
	);
}

async function openStoreOn(
	dialect: Dialect,
	openSignal: () => Promise<Signal>,
): Promise<Store> {
	const db: Db = new Kysely<Tables>({ dialect });
	try {
		await migrate(db);
		if (dialect instanceof SqliteDialect)
			readDirectly(db, (text, values) => dialect.read(text, values));
		const signal = await openSignal();
		return {
			db,
			signal,
			async [Symbol.asyncDispose]() {
				await signal[Symbol.asyncDispose]();
				await db.destroy();
			},
		};
	} catch (error) {
		await db.destroy();
		throw error;
	}
}

function fileIn(file: string): string {
	mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
	return file;
}

/** Which engine runs. Only `database/` asks. */
export function engineOf(db: Db): "sqlite" | "postgres" {
	return db.getExecutor().adapter instanceof SqliteAdapter
		? "sqlite"
		: "postgres";
}

/**
 * Runs `work` in one transaction, or in the caller's when `db` is one already.
 * On PostgreSQL a deadlock or serialization failure is tried again, so `work` must
 * do nothing but talk to the store it is given.
 */
export async function inTransaction<T>(
	db: Db,
	work: (trx: Db) => Promise<T>,
): Promise<T> {
	if (db.isTransaction) return work(db);
	for (let attempt = 1; ; attempt++) {
		try {
			return await db.transaction().execute(work);
		} catch (error) {
			const code =
				error instanceof Error && "code" in error ? error.code : undefined;
			if (attempt >= 8 || (code !== "40001" && code !== "40P01")) throw error;
			await new Promise((resolve) =>
				setTimeout(resolve, Math.random() * 10 * attempt),
			);
		}
	}
}

/** Locks the rows of a select until the transaction ends; SQLite's writers queue anyway. */
export function lockForUpdate<DB, TB extends keyof DB, O>(
	db: Db,
	query: SelectQueryBuilder<DB, TB, O>,
): SelectQueryBuilder<DB, TB, O> {
	return engineOf(db) === "postgres" ? query.forUpdate() : query;
}

/** Like `lockForUpdate`, but others may lock the same rows so too. */
export function lockForShare<DB, TB extends keyof DB, O>(
	db: Db,
	query: SelectQueryBuilder<DB, TB, O>,
): SelectQueryBuilder<DB, TB, O> {
	return engineOf(db) === "postgres" ? query.forShare() : query;
}

export type RowColumns = Record<string, "text" | "integer">;
export type RowOf<C extends RowColumns> = {
	[K in keyof C]: (C[K] extends "text" ? string : number) | null;
};

/**
 * Many rows as one parameter: a table expression over `rows`, for
 * `insert … select` and `update … from` of a batch in one statement.
 *
 * @example sql`update t set a = v.a from ${rowsTable(db, { id: "text", a: "integer" }, rows)} as v where t.id = v.id`
 */
export function rowsTable<C extends RowColumns>(
	db: Db,
	columns: C,
	rows: readonly RowOf<C>[],
): RawBuilder<unknown> {
	const names = Object.keys(columns);
	if (engineOf(db) === "sqlite") {
		const picked = names.map(
			(name, index) => sql`value ->> ${sql.lit(index)} as ${sql.ref(name)}`,
		);
		const json = JSON.stringify(
			rows.map((row) => names.map((name) => row[name])),
		);
		return sql`(select ${sql.join(picked)} from json_each(${json}))`;
	}
	const typed = names.map(
		(name) =>
			sql`${sql.ref(name)} ${sql.raw(columns[name] === "text" ? "text" : "integer")}`,
	);
	return sql`(select * from json_to_recordset(${JSON.stringify(rows)}::json) as rows_table(${sql.join(typed)}))`;
}

/** A JSON list of texts held by a column or parameter, as rows (`value`, `ordinal` from 1). */
export function listTable(
	db: Db,
	json: RawBuilder<unknown>,
): RawBuilder<unknown> {
	return engineOf(db) === "sqlite"
		? sql`(select value, key + 1 as ordinal from json_each(${json}))`
		: sql`(select value, ordinality::integer as ordinal from json_array_elements_text((${json})::json) with ordinality)`;
}

/**
 * Whether a text consists of the parts in their order, with anything between them: `abc%`
 * is `["abc", ""]`. Upper and lower case differ, on both engines.
 */
export function textFits(
	db: Db,
	text: RawBuilder<unknown>,
	parts: readonly string[],
): RawBuilder<SqlBool> {
	if (engineOf(db) === "postgres")
		return sql`${text} like ${parts.map((part) => part.replaceAll(/[\\%_]/g, "\\$&")).join("%")}`;
	// SQLite's LIKE takes A for a; its GLOB does not.
	return sql`${text} glob ${parts.map((part) => part.replaceAll(/[*?[]/g, "[$&]")).join("*")}`;
}
