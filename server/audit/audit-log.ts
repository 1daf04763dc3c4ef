/**
 * The end of the audit trail that grows. Entries that come together share a transaction:
 * whoever holds the row of the head numbers and chains them, so several processes write
 * one chain.
 */
import type { KeyObject } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import { type Db, inTransaction, rowsTable } from "../database/database.ts";
import { type AuditEntry, chain, chainedFields } from "./audit-chain.ts";
import { lockEnd, moveEnd } from "./audit-ends.ts";

/** In one transaction: a few milliseconds on SQLite, whose writes run on the main thread. */
const BATCH = 500;
const WAITING_LIMIT = 10_000;

interface Waiting {
	entry: AuditEntry;
	resolve: () => void;
	reject: (error: unknown) => void;
}

export class AuditLog implements AsyncDisposable {
	readonly #db: Db;
	readonly #key: KeyObject;
	readonly #waitingLimit: number;
	#waiting: Waiting[] = [];
	#forRoom: (() => void)[] = [];
	#writing: Promise<void> | undefined;
	#closed = false;

	constructor(parts: { db: Db; key: KeyObject; waitingLimit?: number }) {
		this.#db = parts.db;
		this.#key = parts.key;
		this.#waitingLimit = parts.waitingLimit ?? WAITING_LIMIT;
	}

	/** Entries that are not on disk yet. */
	get waiting(): number {
		return this.#waiting.length;
	}

	/**
	 * Resolves when the row is on disk. Where too many wait already it takes its place
	 * only once there is room.
	 *
	 * @throws what the store says, or `BrokenChain`: the entry is not kept then.
	 */
	async append(entry: AuditEntry): Promise<void> {
		while (this.#waiting.length >= this.#waitingLimit)
			await new Promise<void>((resolve) => this.#forRoom.push(resolve));
		if (this.#closed) throw new Error("The audit trail is closed.");
		return new Promise((resolve, reject) => {
			this.#waiting.push({ entry, resolve, reject });
			this.#writing ??= this.#write();
		});
	}

	/** Writes what waits; nothing is taken after that. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed = true;
		while (this.#writing !== undefined) await this.#writing;
		for (const resolve of this.#forRoom.splice(0)) resolve();
	}

	async #write(): Promise<void> {
		// Whatever else this turn's sockets bring joins.
		await nextTurn();
		while (this.#waiting.length > 0) {
			const batch = this.#waiting.splice(0, BATCH);
			for (const resolve of this.#forRoom.splice(0, batch.length)) resolve();
			try {
				await appendRows(
					this.#db,
					this.#key,
					batch.map(({ entry }) => entry),
				);
				for (const { resolve } of batch) resolve();
			} catch (error) {
				for (const { reject } of batch) reject(error);
			}
		}
		this.#writing = undefined;
	}
}

const columns = {
	...(Object.fromEntries(
		[...chainedFields, "hash"].map((field) => [field, "text"]),
	) as Record<(typeof chainedFields)[number] | "hash", "text">),
	status: "integer",
} as const;
// As text: an integer of a row of parameters may be too short for the number of a row.
const names = Object.keys(columns);
const selected = names.map((name) =>
	name === "seq"
		? sql`cast(${sql.ref(`v.${name}`)} as bigint)`
		: sql.ref(`v.${name}`),
);

async function appendRows(
	db: Db,
	key: KeyObject,
	entries: readonly AuditEntry[],
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const head = await lockEnd(trx, key, "head");
		const { rows, last } = chain(head, entries);
		await sql`
			insert into audit (${sql.join(names.map((name) => sql.ref(name)))})
			select ${sql.join(selected)} from ${rowsTable(
				trx,
				columns,
				rows.map((row) => ({ ...row, seq: String(row.seq) })),
			)} as v`.execute(trx);
		await moveEnd(trx, key, "head", last);
	});
}
