/**
 * The embedded engine: `node:sqlite` behind Kysely.
 *
 * Two connections to one file in WAL mode. Reads outside a transaction run at once
 * on the reader and see what is committed; writes and transactions pass through one
 * lane. Transactions that arrive within one turn of the event loop, or while an earlier
 * commit is on its way to the disk, share a commit: each runs inside a savepoint of its
 * own, so one that fails takes nobody along. COMMIT itself only writes to the log
 * (`synchronous=NORMAL`); a thread of the pool then brings the log to the disk, and only
 * after that is anybody answered. So nothing that was acknowledged can be lost, as with
 * `synchronous=FULL`, and a slow disk never holds the event loop.
 */

import { chmodSync, closeSync, existsSync, openSync, statSync } from "node:fs";
import {
	DatabaseSync,
	type SQLInputValue,
	type StatementSync,
} from "node:sqlite";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Worker } from "node:worker_threads";
import {
	type CompiledQuery,
	type DatabaseConnection,
	type DatabaseIntrospector,
	type Dialect,
	type Driver,
	type Kysely,
	type QueryResult,
	SqliteAdapter,
	SqliteIntrospector,
	SqliteQueryCompiler,
} from "kysely";
import { logger } from "../log.ts";
import { type Committer, LogSync } from "./sqlite-log.ts";

const log = logger("store");

/** Transactions that share one commit at most, and for how long others may join it. */
const GROUP_LIMIT = 1_000;
const GROUP_MS = 10;
const KEPT_STATEMENTS = 500;
/** About 10,000 pages of 4 KiB: past that the log is written back into the file. */
const WAL_LIMIT_BYTES = 40 * 1024 * 1024;
/** Past that writers wait until all of it is written back. */
const WAL_HARD_LIMIT_BYTES = 4 * WAL_LIMIT_BYTES;

export class SqliteDialect implements Dialect {
	readonly #file: string;
	#driver: SqliteDriver | undefined;
	constructor(file: string) {
		this.#file = file;
	}
	createDriver(): Driver {
		this.#driver = new SqliteDriver(this.#file);
		return this.#driver;
	}
	/** Rows of a select outside of any transaction, without waiting for anybody. */
	read(sql: string, parameters: readonly unknown[]): readonly unknown[] {
		if (!this.#driver) throw new Error("The store is not open.");
		return this.#driver.read(sql, parameters);
	}
	createQueryCompiler() {
		return new SqliteQueryCompiler();
	}
	createAdapter() {
		return new LaneAdapter();
	}
	createIntrospector(db: Kysely<never>): DatabaseIntrospector {
		return new SqliteIntrospector(db);
	}
}

class LaneAdapter extends SqliteAdapter {
	/** SQLite's schema changes are transactional; a migration cut off leaves nothing behind. */
	override get supportsTransactionalDdl() {
		return true;
	}

	/** The lane below orders the writers; Kysely's own lock would keep them from sharing a commit. */
	override get supportsMultipleConnections() {
		return true;
	}
}

class SqliteDriver implements Driver {
	readonly #file: string;
	#writer: StatementCache | undefined;
	#reader: StatementCache | undefined;
	#lane: WriteLane | undefined;
	#checkpointer: Checkpointer | undefined;

	constructor(file: string) {
		this.#file = file;
	}

	async init(): Promise<void> {
		keepPrivate(this.#file);
		// 16 MB of pages: with 64 a million inserts, sorted or not, are no faster.
		const writer = new DatabaseSync(this.#file, { timeout: 10_000 });
		writer.exec(
			"pragma journal_mode=wal; pragma synchronous=normal; pragma foreign_keys=on; pragma wal_autocheckpoint=0; pragma cache_size=-16384; pragma temp_store=memory",
		);
		const reader = new DatabaseSync(this.#file, {
			timeout: 10_000,
			readOnly: true,
		});
		reader.exec("pragma cache_size=-65536; pragma mmap_size=268435456");
		this.#writer = new StatementCache(writer);
		this.#reader = new StatementCache(reader);
		this.#lane = new WriteLane(this.#writer, new LogSync(`${this.#file}-wal`));
		this.#checkpointer = new Checkpointer(this.#file, this.#lane);
	}

	async acquireConnection(): Promise<DatabaseConnection> {
		if (!this.#lane || !this.#writer || !this.#reader)
			throw new Error("The store is closed.");
		return new SqliteConnection(this.#lane, this.#writer, this.#reader);
	}

	read(sql: string, parameters: readonly unknown[]): readonly unknown[] {
		if (!this.#reader) throw new Error("The store is closed.");
		return this.#reader.run(sql, parameters).rows;
	}

	async beginTransaction(connection: DatabaseConnection): Promise<void> {
		await (connection as SqliteConnection).begin();
	}

	async commitTransaction(connection: DatabaseConnection): Promise<void> {
		await (connection as SqliteConnection).commit();
	}

	async rollbackTransaction(connection: DatabaseConnection): Promise<void> {
		(connection as SqliteConnection).rollback();
	}

	async releaseConnection(): Promise<void> {
		// Connections are only the caller's place in the lane; there is nothing to give back.
	}

	async destroy(): Promise<void> {
		await this.#checkpointer?.close();
		await this.#lane?.close();
		this.#reader?.database.close();
		this.#writer?.database.close();
		this.#lane = undefined;
		this.#reader = undefined;
		this.#writer = undefined;
	}
}

/**
 * Makes the file readable for its owner only, also one that an earlier release or an
 * operator's copy left open; SQLite gives the log and its index the mode of the file.
 * Not by the umask of the process, which would also close the authority's certificate.
 */
function keepPrivate(file: string): void {
	// Not opened once it is there: closing it would end the locks of this process on it.
	if (!existsSync(file)) closeSync(openSync(file, "a", 0o600));
	for (const path of [file, `${file}-wal`, `${file}-shm`]) {
		const mode = statSync(path, { throwIfNoEntry: false })?.mode ?? 0;
		if ((mode & 0o077) === 0) continue;
		try {
			chmodSync(path, mode & 0o700);
		} catch (err) {
			// Another user's file, or a file system without modes: it works all the same.
			log.warn({ err, path }, "others may read the store, and it stays so");
		}
	}
}

/** Prepared statements kept by their text; preparing costs more than running most of them. */
class StatementCache {
	readonly database: DatabaseSync;
	readonly #statements = new Map<
		string,
		{ statement: StatementSync; columns: readonly string[] }
	>();

	constructor(database: DatabaseSync) {
		this.database = database;
	}

	run<R>(sql: string, parameters: readonly unknown[]): QueryResult<R> {
		let kept = this.#statements.get(sql);
		if (!kept) {
			const statement = this.database.prepare(sql);
			// For each row that it makes an object of, `node:sqlite` leaves a hidden class
			// behind, which only a collection of the old generation removes.
			statement.setReturnArrays(true);
			kept = { statement, columns: namesOf(statement) };
			if (this.#statements.size >= KEPT_STATEMENTS) {
				// Maps keep insertion order: the oldest goes.
				for (const oldest of this.#statements.keys()) {
					this.#statements.delete(oldest);
					break;
				}
			}
			this.#statements.set(sql, kept);
		}
		const values = parameters as SQLInputValue[];
		if (kept.columns.length > 0) {
			const rows = kept.statement.all(...values) as unknown as unknown[][];
			// SQLite prepares by itself again after a change of the schema.
			if (rows[0] && rows[0].length !== kept.columns.length)
				kept.columns = namesOf(kept.statement);
			return {
				rows: rows.map((row) => asObject(row, kept.columns) as R),
				numAffectedRows: BigInt(rows.length),
			};
		}
		const result = kept.statement.run(...values);
		return {
			rows: [],
			numAffectedRows: BigInt(result.changes),
			insertId: BigInt(result.lastInsertRowid),
		};
	}
}

function namesOf(statement: StatementSync): string[] {
	return statement.columns().map(({ name }) => name);
}

function asObject(
	row: readonly unknown[],
	columns: readonly string[],
): Record<string, unknown> {
	const object: Record<string, unknown> = {};
	for (let index = 0; index < columns.length; index++)
		object[columns[index] as string] = row[index];
	return object;
}

class SqliteConnection implements DatabaseConnection {
	readonly #lane: WriteLane;
	readonly #writer: StatementCache;
	readonly #reader: StatementCache;
	#inTransaction = false;

	constructor(lane: WriteLane, writer: StatementCache, reader: StatementCache) {
		this.#lane = lane;
		this.#writer = writer;
		this.#reader = reader;
	}

	async executeQuery<R>(query: CompiledQuery): Promise<QueryResult<R>> {
		if (this.#inTransaction)
			return this.#writer.run<R>(query.sql, query.parameters);
		if (/^\s*(select|pragma\s+\w+\s*$)/i.test(query.sql)) {
			return this.#reader.run<R>(query.sql, query.parameters);
		}
		// A lone statement is atomic by itself and needs no savepoint.
		await this.#lane.enter(false);
		let result: QueryResult<R>;
		try {
			result = this.#writer.run<R>(query.sql, query.parameters);
		} catch (error) {
			this.#lane.leaveFailed(false);
			throw error;
		}
		await this.#lane.leave(false);
		return result;
	}

	// biome-ignore lint/correctness/useYield: the interface asks for a generator; nothing streams.
	async *streamQuery<R>(): AsyncIterableIterator<QueryResult<R>> {
		throw new Error(
			"The embedded store does not stream queries; page through them.",
		);
	}

	async begin(): Promise<void> {
		await this.#lane.enter(true);
		this.#inTransaction = true;
	}

	async commit(): Promise<void> {
		this.#inTransaction = false;
		await this.#lane.leave(true);
	}

	rollback(): void {
		// After a COMMIT that failed Kysely rolls back what has left the lane already.
		if (!this.#inTransaction) return;
		this.#inTransaction = false;
		this.#lane.leaveFailed(true);
	}
}

interface Entrant {
	savepoint: boolean;
	/** Wants no transaction, and nobody else's to be open. */
	alone: boolean;
	resolve: () => void;
	reject: (error: unknown) => void;
}

/** One writer at a time; those that follow each other closely are committed together. */
class WriteLane {
	readonly #writer: StatementCache;
	readonly #sync: LogSync;
	readonly #waiting: Entrant[] = [];
	#committers: Committer[] = [];
	#occupied = false;
	#groupOpen = false;
	#groupSince = 0;
	#commitScheduled = false;
	#closed = false;

	constructor(writer: StatementCache, sync: LogSync) {
		this.#writer = writer;
		this.#sync = sync;
		// Those who came meanwhile share the next commit.
		sync.onIdle = () => this.#scheduleCommit();
	}

	/** Resolves when it is the caller's turn; the shared transaction is open then. */
	enter(savepoint: boolean, alone = false): Promise<void> {
		if (this.#closed) return Promise.reject(new Error("The store is closed."));
		return new Promise((resolve, reject) => {
			const entrant = { savepoint, alone, resolve, reject };
			if (this.#occupied) this.#waiting.push(entrant);
			else this.#admit(entrant);
		});
	}

	/** Ends the caller's part; resolves when it is on disk. */
	leave(savepoint: boolean): Promise<void> {
		return new Promise((resolve, reject) => {
			try {
				if (savepoint) this.#writer.run("release one", []);
				this.#committers.push({ resolve, reject });
			} catch (error) {
				reject(error);
			}
			this.#next();
		});
	}

	/** Ends the caller's part without effect. */
	leaveFailed(savepoint: boolean): void {
		try {
			if (savepoint) {
				this.#writer.run("rollback to one", []);
				this.#writer.run("release one", []);
			}
		} finally {
			this.#next();
		}
	}

	/** Runs `work` while nobody writes and nothing is uncommitted. */
	async alone(work: () => Promise<void>): Promise<void> {
		await this.enter(false, true);
		try {
			await work();
		} finally {
			this.#next();
		}
	}

	/** Waits for whoever is inside, then commits. */
	async close(): Promise<void> {
		this.#closed = true;
		for (const { reject } of this.#waiting.splice(0))
			reject(new Error("The store is closed."));
		while (this.#occupied) await nextTurn();
		this.#commit();
		await this.#sync.close();
	}

	#admit(entrant: Entrant): void {
		this.#occupied = true;
		if (entrant.alone) {
			this.#commit();
			entrant.resolve();
			return;
		}
		try {
			if (!this.#groupOpen) {
				this.#writer.run("begin immediate", []);
				this.#groupOpen = true;
				this.#groupSince = performance.now();
			}
			if (entrant.savepoint) this.#writer.run("savepoint one", []);
		} catch (error) {
			entrant.reject(error);
			this.#next();
			return;
		}
		entrant.resolve();
	}

	#next(): void {
		const full =
			this.#committers.length >= GROUP_LIMIT ||
			(this.#committers.length > 0 &&
				performance.now() - this.#groupSince > GROUP_MS);
		if (full) this.#commit();
		const entrant = this.#waiting.shift();
		if (entrant) {
			this.#admit(entrant);
			return;
		}
		this.#occupied = false;
		if (!this.#sync.running) this.#scheduleCommit();
	}

	/** After the poll phase: whatever else this turn's sockets bring may still join. */
	#scheduleCommit(): void {
		if (!this.#groupOpen || this.#commitScheduled) return;
		this.#commitScheduled = true;
		setImmediate(() => {
			this.#commitScheduled = false;
			// Somebody is inside: the commit follows when he leaves.
			if (!this.#occupied) this.#commit();
		});
	}

	#commit(): void {
		if (!this.#groupOpen) return;
		const committers = this.#committers;
		this.#committers = [];
		this.#groupOpen = false;
		try {
			this.#writer.run("commit", []);
		} catch (error) {
			try {
				this.#writer.run("rollback", []);
			} catch {
				// A COMMIT that failed may have ended the transaction already.
			}
			for (const { reject } of committers) reject(error);
			return;
		}
		this.#sync.after(committers);
	}
}

/**
 * Writes the log back into the file from a thread of its own: on the main thread a
 * checkpoint of 40 MB would hold the event loop for longer than its budget. One beside
 * the writers makes nobody wait, but under steady writing it never catches up, and the
 * log would grow until the disk is full: then the writers wait for one that does.
 */
class Checkpointer {
	readonly #file: string;
	readonly #lane: WriteLane;
	readonly #timer: NodeJS.Timeout;
	#worker: Worker | undefined;
	#running: Promise<void> | undefined;
	#checkedMs = 0;

	constructor(file: string, lane: WriteLane) {
		this.#file = file;
		this.#lane = lane;
		this.#timer = setInterval(() => this.#check(), 500);
		this.#timer.unref();
	}

	#check(): void {
		if (this.#running !== undefined) return;
		const log = statSync(`${this.#file}-wal`, { throwIfNoEntry: false });
		if (!log || log.size < WAL_LIMIT_BYTES || log.mtimeMs === this.#checkedMs)
			return;
		this.#checkedMs = log.mtimeMs;
		const done =
			log.size < WAL_HARD_LIMIT_BYTES
				? this.#checkpoint("passive")
				: this.#lane.alone(() => this.#checkpoint("truncate"));
		this.#running = done
			.catch(() => {
				// The store is closing, or the thread died: the next look tries again.
				this.#checkedMs = 0;
			})
			.finally(() => {
				this.#running = undefined;
			});
	}

	#checkpoint(mode: "passive" | "truncate"): Promise<void> {
		this.#worker ??= new Worker(
			new URL("./sqlite-checkpoint.ts", import.meta.url),
			{ workerData: { file: this.#file } },
		);
		const worker = this.#worker;
		worker.unref();
		return new Promise((resolve, reject) => {
			const failed = (error: Error) => {
				this.#worker = undefined;
				reject(error);
			};
			worker.once("error", failed);
			worker.once("message", () => {
				worker.off("error", failed);
				resolve();
			});
			worker.postMessage(mode);
		});
	}

	async close(): Promise<void> {
		clearInterval(this.#timer);
		await this.#running;
		await this.#worker?.terminate();
	}
}
