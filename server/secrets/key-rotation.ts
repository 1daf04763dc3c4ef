/**
 * A new master key in place of an old one, while the server serves.
 *
 *   idle --rotate--> running --nothing stale left--> settling --still nothing--> idle
 *
 * The new key seals at once; everything that an old one sealed is opened and sealed again,
 * some hundred rows at a time. An update counts only if the column still holds what was
 * read, so a secret that is reset meanwhile wins. A transaction that sealed under the old
 * key may commit after its rows were passed: so the rotation settles, and looks once more,
 * before the old key is given up.
 *
 * All state is the list of keys and the rows themselves; a killed rotation goes on at the
 * next start. With the keys in the file several lines mean that one is unfinished; with
 * the setting, whose several keys mean nothing, a row in the store does.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { sql } from "kysely";
import type { MasterKeyStatus } from "../../wire/master-key.ts";
import { type Clock, type Db, rowsTable } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { logger } from "../log.ts";
import { CHECK_NAME, type MasterKeyFile } from "./master-key.ts";
import { KEY_BYTES, type KeyRing, masterKeyId } from "./sealed.ts";

const log = logger("master-key");

/** Every column of the store that holds sealed texts, by the primary key of its table. */
export const sealedColumns = [
	{ table: "access_keys", key: "access_key", column: "secret_sealed" },
	{ table: "devices", key: "device_id", column: "secondary_secret_sealed" },
	{ table: "devices", key: "device_id", column: "secret_sealed" },
	{ table: "server_secrets", key: "name", column: "sealed" },
] as const;
type SealedColumn = (typeof sealedColumns)[number];

/** In `server_secrets`: a rotation was asked for, and is not finished. */
const MARK = "master-key-rotation";

export interface RotationLimits {
	/** Rows read at once; what the event loop is held for stays in the milliseconds. */
	batch: number;
	/** Longer than any transaction between sealing a secret and its commit. */
	settleMs: number;
	/** After a failure, and while there are secrets that cannot be read. */
	retryMs: number;
}

const defaults: RotationLimits = {
	batch: 250,
	settleMs: 30_000,
	retryMs: 60_000,
};
/** Rows counted in one query. */
const COUNTED_AT_ONCE = 2_000;
/** The rotation gives way to everything else: it rests as long as it works, this long at most. */
const REST_MS = 50;
/** So that a server with nothing to seal sees both keys before the old one goes. */
const LOOK_MS = 5_000;

export interface RotationParts {
	db: Db;
	ring: KeyRing;
	/** Undefined when the keys come from the setting. */
	file: MasterKeyFile | undefined;
	now: Clock;
	limits?: Partial<RotationLimits>;
}

interface Counted {
	byKey: Map<string, number>;
	/** On the clock of `performance.now()`: good until then. */
	untilMs: number;
}

export class KeyRotation implements AsyncDisposable {
	readonly #parts: RotationParts;
	readonly #limits: RotationLimits;
	readonly #closing = new AbortController();
	#looking: NodeJS.Timeout | undefined;
	#state: MasterKeyStatus["state"] = "idle";
	#running: Promise<void> = Promise.resolve();
	#unreadable = 0;
	#counted: Promise<Counted> | undefined;

	constructor(parts: RotationParts) {
		this.#parts = parts;
		this.#limits = { ...defaults, ...parts.limits };
	}

	/** Watches the keys, and goes on with what an earlier run of the process left. */
	async start(): Promise<void> {
		const { ring } = this.#parts;
		this.#looking = setInterval(() => ring.refresh(), LOOK_MS).unref();
		if (ring.keyIds.length === 1 || !(await this.#isUnfinished())) return;
		log.info({ keyIds: ring.keyIds }, "goes on with changing the master key");
		this.#run();
	}

	/**
	 * Begins a rotation; when this resolves the new key seals.
	 *
	 * @throws 403 IOTDA.015940 while one is under way, IOTDA.015941 when the setting has
	 * one key only, IOTDA.015942 when somebody put other keys into the file.
	 */
	async rotate(): Promise<void> {
		const { ring, file, db, now } = this.#parts;
		if (this.#state !== "idle") throw new ApiError(errors.rotationUnderWay);
		this.#state = "running";
		try {
			if (file) {
				const keys = await file.change((before) => {
					// Another process on the same directory is at it.
					if (before.length > 1) throw new ApiError(errors.rotationUnderWay);
					requireKeyOf(ring, before);
					return [randomBytes(KEY_BYTES), ...before];
				});
				ring.replace(keys);
			} else {
				if (ring.keyIds.length === 1)
					throw new ApiError(errors.noOtherMasterKey, {
						detail:
							"Add the new key to OTARU_MASTER_KEY of every server, second in the list; then put it first everywhere; then ask again.",
					});
				await db
					.insertInto("server_secrets")
					.values({
						name: MARK,
						sealed: ring.seal(MARK),
						created_at: instant(now()),
					})
					.onConflict((conflict) => conflict.column("name").doNothing())
					.execute();
			}
		} catch (error) {
			this.#state = "idle";
			throw error;
		}
		log.info({ keyIds: ring.keyIds }, "the master key is being changed");
		this.#run();
	}

	/** Here, in another process, or in one that was killed. */
	async #isUnfinished(): Promise<boolean> {
		const { ring, file, db } = this.#parts;
		if (file) return ring.keyIds.length > 1;
		const mark = await db
			.selectFrom("server_secrets")
			.select("name")
			.where("name", "=", MARK)
			.executeTakeFirst();
		return mark !== undefined;
	}

	async status(): Promise<MasterKeyStatus> {
		const { ring, file } = this.#parts;
		const { byKey } = await this.#count();
		const { keyId, keyIds } = ring;
		const state =
			this.#state === "idle" && (await this.#isUnfinished())
				? "running"
				: this.#state;
		const keys = [...new Set([...keyIds, ...byKey.keys()])].map((id) => {
			const secrets = byKey.get(id) ?? 0;
			return {
				key_id: id,
				secrets,
				known: keyIds.includes(id),
				needed: id === keyId || secrets > 0 || state !== "idle",
			};
		});
		return {
			source: file ? "file" : "setting",
			state,
			key_id: keyId,
			keys,
			remaining: keys.reduce(
				(sum, { key_id, secrets }) => sum + (key_id === keyId ? 0 : secrets),
				0,
			),
			unreadable: this.#unreadable,
		};
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closing.abort();
		clearInterval(this.#looking);
		await this.#running;
	}

	#run(): void {
		this.#state = "running";
		this.#running = this.#untilDone().catch((error: unknown) => {
			// The process ends; the next start goes on.
			if (!this.#closing.signal.aborted)
				log.error({ err: error }, "the change of the master key broke off");
		});
	}

	async #untilDone(): Promise<void> {
		const { ring } = this.#parts;
		const old = ring.keyIds.slice(1);
		const since = performance.now();
		for (;;) {
			try {
				this.#state = "running";
				await this.#resealAll();
				this.#state = "settling";
				const settledMs = performance.now() - since;
				await this.#rest(Math.max(0, this.#limits.settleMs - settledMs));
				const late = await this.#resealAll();
				if (late === 0 && this.#unreadable === 0) {
					await this.#finish(old);
					return;
				}
				if (this.#unreadable > 0) {
					log.error(
						{ unreadable: this.#unreadable, keyIds: old },
						"secrets that cannot be read keep an old master key",
					);
					await this.#rest(this.#limits.retryMs);
				}
			} catch (error) {
				if (this.#closing.signal.aborted) throw error;
				log.error({ err: error }, "could not encrypt all secrets; tries again");
				await this.#rest(this.#limits.retryMs);
			}
		}
	}

	async #finish(old: readonly string[]): Promise<void> {
		const { file, ring, db } = this.#parts;
		await this.#resealOne(CHECK_NAME);
		if (file) {
			const keys = await file.change((found) => {
				requireKeyOf(ring, found);
				return found.filter((key) => !old.includes(masterKeyId(key)));
			});
			ring.replace(keys);
		}
		await db.deleteFrom("server_secrets").where("name", "=", MARK).execute();
		this.#counted = undefined;
		this.#state = "idle";
		log.info(
			{ keyId: ring.keyId, formerKeyIds: old },
			"everything is encrypted under the new master key",
		);
	}

	/** @returns how many secrets were sealed again. */
	async #resealAll(): Promise<number> {
		let resealed = 0;
		this.#unreadable = 0;
		for (const place of sealedColumns) {
			let last = "";
			for (;;) {
				const begin = performance.now();
				const rows = await this.#read(place, last);
				const end = rows.at(-1);
				if (!end) break;
				resealed += await this.#reseal(place, rows);
				last = end.id;
				await this.#rest(Math.min(performance.now() - begin, REST_MS));
			}
		}
		return resealed;
	}

	async #read(
		{ table, key, column }: SealedColumn,
		last: string,
	): Promise<{ id: string; sealed: string | null }[]> {
		const { rows } = await sql<{ id: string; sealed: string | null }>`
			select ${sql.ref(key)} as id, ${sql.ref(column)} as sealed from ${sql.table(table)}
			where ${sql.ref(key)} > ${last} order by ${sql.ref(key)}
			limit ${sql.lit(this.#limits.batch)}`.execute(this.#parts.db);
		return rows;
	}

	/** The check row is left out: it says which key the rest may still need. */
	async #reseal(
		place: SealedColumn,
		rows: readonly { id: string; sealed: string | null }[],
	): Promise<number> {
		const { ring } = this.#parts;
		const stale: { id: string; stale: string; fresh: string }[] = [];
		for (const { id, sealed } of rows) {
			if (sealed === null || ring.isCurrent(sealed)) continue;
			if (place.table === "server_secrets" && id === CHECK_NAME) continue;
			try {
				stale.push({ id, stale: sealed, fresh: ring.seal(ring.open(sealed)) });
			} catch (error) {
				this.#unreadable++;
				log.error(
					{ err: error, table: place.table, id },
					"a secret cannot be read",
				);
			}
		}
		if (stale.length > 0) await this.#replace(place, stale);
		return stale.length;
	}

	async #replace(
		{ table, key, column }: SealedColumn,
		rows: { id: string; stale: string; fresh: string }[],
	): Promise<void> {
		const { db } = this.#parts;
		const values = rowsTable(
			db,
			{ id: "text", stale: "text", fresh: "text" },
			rows,
		);
		await sql`update ${sql.table(table)} set ${sql.ref(column)} = v.fresh from ${values} as v
			where ${sql.ref(`${table}.${key}`)} = v.id
			and ${sql.ref(`${table}.${column}`)} = v.stale`.execute(db);
	}

	async #resealOne(name: string): Promise<void> {
		const { db, ring } = this.#parts;
		const row = await db
			.selectFrom("server_secrets")
			.select("sealed")
			.where("name", "=", name)
			.executeTakeFirst();
		if (!row || ring.isCurrent(row.sealed)) return;
		await db
			.updateTable("server_secrets")
			.set({ sealed: ring.seal(ring.open(row.sealed)) })
			.where("name", "=", name)
			.where("sealed", "=", row.sealed)
			.execute();
	}

	/** @throws when the process ends. */
	async #rest(ms: number): Promise<void> {
		await pause(ms, undefined, { signal: this.#closing.signal, ref: false });
	}

	/** With a million devices it takes a second or two: who asks often is told again. */
	#count(): Promise<Counted> {
		const counted = this.#counted;
		const again = () => {
			this.#counted = this.#countAll();
			return this.#counted;
		};
		if (!counted) return again();
		return counted.then(
			(done) => (performance.now() < done.untilMs ? done : again()),
			again,
		);
	}

	async #countAll(): Promise<Counted> {
		const begin = performance.now();
		const byKey = new Map<string, number>();
		for (const { table, key, column } of sealedColumns) {
			let last = "";
			for (;;) {
				const { rows } = await sql<{
					key_id: string | null;
					count: number | string;
					last: string;
				}>`
					select substr(sealed, 4, 8) as key_id, count(*) as count, max(id) as last
					from (
						select ${sql.ref(key)} as id, ${sql.ref(column)} as sealed from ${sql.table(table)}
						where ${sql.ref(key)} > ${last} order by ${sql.ref(key)}
						limit ${sql.lit(COUNTED_AT_ONCE)}
					) as counted_rows
					group by 1`.execute(this.#parts.db);
				if (rows.length === 0) break;
				for (const row of rows) {
					if (row.last > last) last = row.last;
					if (row.key_id !== null)
						byKey.set(
							row.key_id,
							(byKey.get(row.key_id) ?? 0) + Number(row.count),
						);
				}
				await new Promise((resolve) => setImmediate(resolve));
			}
		}
		const tookMs = performance.now() - begin;
		return { byKey, untilMs: performance.now() + 5 * tookMs };
	}
}

/**
 * Somebody may have put other keys into the file: with those in front of them, or alone,
 * everything would be sealed under keys that are not the store's own.
 *
 * @throws 403 IOTDA.015942
 */
function requireKeyOf(ring: KeyRing, keys: readonly Buffer[]): void {
	if (!keys.some((key) => masterKeyId(key) === ring.keyId))
		throw new ApiError(errors.foreignMasterKey, {
			detail: `The server has ${ring.keyId}.`,
		});
}
