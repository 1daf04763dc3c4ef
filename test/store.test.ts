import assert from "node:assert/strict";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { sql } from "kysely";
import { readConfig } from "../server/config.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	listTable,
	openStore,
	rowsTable,
} from "../server/database/database.ts";
import { type Engine, forEachEngine, sqlite } from "./support/engines.ts";

async function withStore(
	engine: Engine,
	work: (db: Db, env: Record<string, string>) => Promise<void>,
) {
	const fresh = await engine.fresh();
	try {
		await using store = await openStore(readConfig(fresh.env).database);
		await work(store.db, fresh.env);
	} finally {
		await fresh.dispose();
	}
}

const account = (id: string) => ({
	account_id: id,
	name: id,
	created_at: new Date().toISOString(),
});

forEachEngine((engine) => {
	test("a failed transaction leaves nothing and takes no other along", () =>
		withStore(engine, async (db) => {
			const outcomes = await Promise.allSettled(
				Array.from({ length: 200 }, (_, index) =>
					inTransaction(db, async (trx) => {
						await trx
							.insertInto("accounts")
							.values(account(`a${index}`))
							.execute();
						if (index % 3 === 0) throw new Error("changed my mind");
					}),
				),
			);
			const kept = await db
				.selectFrom("accounts")
				.select("account_id")
				.execute();
			assert.equal(
				outcomes.filter(({ status }) => status === "fulfilled").length,
				133,
			);
			assert.deepEqual(
				kept.map((row) => row.account_id).sort(),
				Array.from({ length: 200 }, (_, index) => `a${index}`)
					.filter((_, index) => index % 3 !== 0)
					.sort(),
			);
		}));

	test("a refused row is told apart by the constraint that refused it", () =>
		withStore(engine, async (db) => {
			await db.insertInto("accounts").values(account("a")).execute();
			const user = (id: string, name: string) =>
				db
					.insertInto("users")
					.values({
						user_id: id,
						account_id: "a",
						name,
						password_hash: "",
						is_administrator: 0,
						created_at: "",
					})
					.execute();
			await user("u1", "ann");
			const error = await user("u2", "ann").catch((caught: unknown) => caught);
			assert.equal(isUniqueViolation(error, "users_name"), true);
			assert.equal(isUniqueViolation(error, "projects_name"), false);
			const again = await db
				.insertInto("accounts")
				.values(account("a"))
				.execute()
				.catch((caught: unknown) => caught);
			assert.equal(isUniqueViolation(again, "accounts_pkey"), true);
		}));

	test("rows given as one parameter keep their values, nulls and order", () =>
		withStore(engine, async (db) => {
			const rows = [
				{ id: "007", count: 7 },
				{ id: 'it\'s "quoted" 固件', count: null },
				{ id: null, count: -1 },
			];
			const read =
				await sql`select * from ${rowsTable(db, { id: "text", count: "integer" }, rows)} as v`.execute(
					db,
				);
			assert.deepEqual(
				read.rows.map((row) => ({ ...(row as object) })),
				rows,
			);
			const list =
				await sql`select * from ${listTable(db, sql`${JSON.stringify(["b", "a"])}`)} as v order by ordinal`.execute(
					db,
				);
			assert.deepEqual(
				list.rows.map((row) => ({ ...(row as object) })),
				[
					{ value: "b", ordinal: 1 },
					{ value: "a", ordinal: 2 },
				],
			);
		}));

	test("ids sort byte by byte, whatever the language of the cluster", () =>
		withStore(engine, async (db) => {
			for (const id of ["b", "A", "a-1", "a_1", "a1", "B", "0", "f"])
				await db.insertInto("accounts").values(account(id)).execute();
			const rows = await db
				.selectFrom("accounts")
				.select("account_id")
				.orderBy("account_id")
				.execute();
			assert.deepEqual(
				rows.map((row) => row.account_id),
				["0", "A", "B", "a-1", "a1", "a_1", "b", "f"],
			);
		}));

	test("opening a store again changes nothing; a newer schema is refused in a sentence", async () => {
		const fresh = await engine.fresh();
		try {
			const { database } = readConfig(fresh.env);
			{
				await using first = await openStore(database);
				await first.db.insertInto("accounts").values(account("kept")).execute();
			}
			{
				await using second = await openStore(database);
				assert.equal(
					(
						await second.db
							.selectFrom("accounts")
							.select("account_id")
							.execute()
					).length,
					1,
				);
				await sql`insert into kysely_migration (name, timestamp) values ('9999-from-the-future', '2030-01-01')`.execute(
					second.db,
				);
			}
			await assert.rejects(
				openStore(database),
				/written by a newer server .*9999-from-the-future/,
			);
		} finally {
			await fresh.dispose();
		}
	});
});

test("the embedded store is in WAL mode and syncs every commit", async () => {
	const fresh = await sqlite.fresh();
	try {
		const { database } = readConfig(fresh.env);
		assert.equal(database.kind, "sqlite");
		await using store = await openStore(database);
		await inTransaction(store.db, async (trx) => {
			const read = async (name: string) =>
				Object.values(
					(
						await sql
							.raw<Record<string, unknown>>(`pragma ${name}`)
							.execute(trx)
					).rows[0] ?? {},
				)[0];
			assert.equal(await read("journal_mode"), "wal");
			assert.equal(await read("synchronous"), 2);
			assert.equal(await read("foreign_keys"), 1);
		});
		assert.ok(database.kind === "sqlite");
		const other = new DatabaseSync(database.file, { readOnly: true });
		assert.equal(
			Object.values(other.prepare("pragma integrity_check").get() ?? {})[0],
			"ok",
		);
		other.close();
	} finally {
		await fresh.dispose();
	}
});
