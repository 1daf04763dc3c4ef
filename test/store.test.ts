import assert from "node:assert/strict";
import fs, { statSync } from "node:fs";
import { chmod, stat, writeFile } from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { mock, test } from "node:test";
import { sql } from "kysely";
import pg from "pg";
import { readConfig } from "../server/config.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	listTable,
	openStore,
	rowsTable,
} from "../server/database/database.ts";
import { LogSync } from "../server/database/sqlite-log.ts";
import {
	type Engine,
	forEachEngine,
	postgres,
	sqlite,
} from "./support/engines.ts";
import { until } from "./support/mqtt-listener.ts";

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
						record_id: "",
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

test("a commit that fails takes nobody's half of a transaction with it", () =>
	withStore(sqlite, async (db) => {
		const user = (id: string, accountId: string) => ({
			user_id: id,
			account_id: accountId,
			name: id,
			password_hash: "",
			is_administrator: 0 as const,
			record_id: "",
			created_at: "",
		});
		await db.insertInto("accounts").values(account("a")).execute();
		// Referring to nobody is noticed only at the COMMIT, which the others share.
		const broken = inTransaction(db, async (trx) => {
			await sql`pragma defer_foreign_keys = on`.execute(trx);
			await trx.insertInto("users").values(user("u0", "nobody")).execute();
		});
		const others = Array.from({ length: 300 }, (_, index) =>
			inTransaction(db, async (trx) => {
				await trx
					.insertInto("users")
					.values(user(`x${index}`, "a"))
					.execute();
				await nextTurns(index % 3);
				await trx
					.insertInto("users")
					.values(user(`y${index}`, "a"))
					.execute();
			}),
		);
		const outcomes = await Promise.allSettled([broken, ...others]);
		assert.equal(outcomes[0]?.status, "rejected");
		const names = new Set(
			(await db.selectFrom("users").select("name").execute()).map(
				({ name }) => name,
			),
		);
		for (const [index, { status }] of outcomes.slice(1).entries()) {
			const whole = status === "fulfilled";
			assert.equal(names.has(`x${index}`), whole, `first half of ${index}`);
			assert.equal(names.has(`y${index}`), whole, `second half of ${index}`);
		}
		await db.insertInto("users").values(user("afterwards", "a")).execute();
	}));

test("the log of the embedded store stays bounded under steady writing", () =>
	withStore(sqlite, async (db, env) => {
		const file = `${readConfig(env).dataDir}/otaru.db-wal`;
		const padding = "x".repeat(20_000);
		let largest = 0;
		const write = async (writer: number) => {
			for (let index = 0; index < 4_000; index++) {
				await inTransaction(db, (trx) =>
					trx
						.insertInto("accounts")
						.values({ ...account(`${writer}-${index}`), name: padding })
						.execute(),
				);
				if (index % 50 === 0) largest = Math.max(largest, statSync(file).size);
			}
		};
		// 240 MB in all.
		await Promise.all([write(1), write(2), write(3)]);
		assert.ok(largest < 200 * 1024 * 1024, `${largest} bytes`);
	}));

test("a connection to PostgreSQL that breaks rejects what ran on it, and the next works", () =>
	withStore(postgres, async (db, env) => {
		const client = new pg.Client({ connectionString: env.OTARU_DATABASE_URL });
		await client.connect();
		const breakAll = () =>
			client.query(
				"select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()",
			);
		await db.insertInto("accounts").values(account("before")).execute();
		const asleep = inTransaction(db, async (trx) => {
			await trx.insertInto("accounts").values(account("lost")).execute();
			await sql`select pg_sleep(10)`.execute(trx);
		});
		const between = inTransaction(db, async (trx) => {
			await trx.insertInto("accounts").values(account("lost too")).execute();
			await new Promise((resolve) => setTimeout(resolve, 500));
			await trx.insertInto("accounts").values(account("never")).execute();
		});
		const outcomes = Promise.allSettled([asleep, between]);
		await new Promise((resolve) => setTimeout(resolve, 200));
		await breakAll();
		assert.deepEqual(
			(await outcomes).map(({ status }) => status),
			["rejected", "rejected"],
		);
		await client.end();
		const rows = await db.selectFrom("accounts").select("account_id").execute();
		assert.deepEqual(
			rows.map((row) => row.account_id),
			["before"],
		);
	}));

async function nextTurns(count: number): Promise<void> {
	for (let turn = 0; turn < count; turn++)
		await new Promise((resolve) => setImmediate(resolve));
}

test("nobody but its owner reads the embedded store, not even one that was open to all before", async () => {
	const fresh = await sqlite.fresh();
	const modesOf = async (file: string) =>
		Promise.all(
			[file, `${file}-wal`, `${file}-shm`].map(
				async (path) => (await stat(path)).mode & 0o777,
			),
		);
	const umask = process.umask(0o022);
	try {
		const { database } = readConfig(fresh.env);
		assert.ok(database.kind === "sqlite");
		const { file } = database;
		const write = (db: Db, id: string) =>
			db.insertInto("accounts").values(account(id)).execute();
		let beside: DatabaseSync | undefined;
		{
			await using store = await openStore(database);
			await write(store.db, "first");
			assert.deepEqual(await modesOf(file), [0o600, 0o600, 0o600]);
			// Somebody who looks at it keeps log and index from going, as a crash does.
			beside = new DatabaseSync(file, { readOnly: true });
			beside.prepare("select * from accounts").all();
		}
		for (const path of [file, `${file}-wal`, `${file}-shm`])
			await chmod(path, 0o644);
		await using store = await openStore(database);
		await write(store.db, "second");
		assert.deepEqual(await modesOf(file), [0o600, 0o600, 0o600]);
		beside.close();
	} finally {
		process.umask(umask);
		await fresh.dispose();
	}
});

test("the embedded store is in WAL mode, and its log is synced by us", async () => {
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
			assert.equal(await read("synchronous"), 1);
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

test("nobody is answered before the embedded store's log is on disk, and whoever comes meanwhile shares the next sync", async () => {
	const fresh = await sqlite.fresh();
	const held: (() => void)[] = [];
	const real = fs.fdatasync;
	let holding = false;
	mock.method(
		fs,
		"fdatasync",
		(fd: number, done: (error: Error | null) => void) => {
			if (holding) held.push(() => real(fd, done));
			else real(fd, done);
		},
	);
	syncBuiltinESMExports();
	try {
		await using store = await openStore(readConfig(fresh.env).database);
		// Before the store closes, whatever failed: closing waits for what is held.
		using _release = {
			[Symbol.dispose]() {
				holding = false;
				for (const go of held.splice(0)) go();
			},
		};
		const { db } = store;
		await sql`create table kept (n integer)`.execute(db);
		holding = true;
		const answered: number[] = [];
		const insert = (n: number) =>
			sql`insert into kept values (${n})`
				.execute(db)
				.then(() => answered.push(n));
		const writes = [insert(1)];
		await until(() => held.length === 1, "a sync");
		writes.push(insert(2), insert(3));
		await nextTurns(20);
		assert.deepEqual(answered, []);
		assert.equal(held.length, 1, "one sync at a time");
		held.shift()?.();
		await until(() => held.length === 1, "a sync");
		assert.deepEqual(answered, [1]);
		await nextTurns(20);
		assert.equal(held.length, 1, "two and three share one");
		holding = false;
		held.shift()?.();
		await Promise.all(writes);
		assert.deepEqual(answered, [1, 2, 3]);
	} finally {
		mock.restoreAll();
		syncBuiltinESMExports();
		await fresh.dispose();
	}
});

test("a disk that fails to keep the log ends the process, and answers nobody", async () => {
	const fresh = await sqlite.fresh();
	try {
		const file = join(fresh.env.OTARU_DATA ?? "", "log-test");
		await writeFile(file, "");
		const failures: Error[] = [];
		let answered = false;
		const log = new LogSync(file, {
			sync: () => Promise.reject(new Error("EIO")),
			fail: (error) => failures.push(error),
		});
		const answer = () => {
			answered = true;
		};
		log.after([{ resolve: answer, reject: answer }]);
		await until(() => failures.length === 1, "a failure");
		log.after([{ resolve: answer, reject: answer }]);
		await nextTurns(20);
		assert.equal(failures.length, 1);
		assert.match(failures[0]?.message ?? "", /log-test; check the disk/);
		assert.equal(answered, false);
	} finally {
		await fresh.dispose();
	}
});
