/** When access keys were last used: kept in memory, and written now and then. */
import type { Clock, Db } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";

const log = logger("access");

/** A key that is used all the time is written this often. */
const WRITE_EVERY_MS = 5 * 60 * 1000;
/** Uses of many keys that come within this time are written together. */
const GATHER_MS = 2_000;
const REMEMBERED_KEYS = 10_000;

/**
 * What a killed process has not written yet is lost, and a key's last use lags behind by
 * five minutes at most: good enough to tell which keys nobody needs any more.
 */
export class KeyUses implements AsyncDisposable {
	readonly #db: Db;
	readonly #now: Clock;
	/** When each key's use was last noted for writing, in milliseconds of the epoch. */
	readonly #noted = new Map<string, number>();
	#unwritten = new Map<string, Date>();
	#timer: NodeJS.Timeout | undefined;
	#writing: Promise<void> = Promise.resolve();

	constructor({ db, now }: { db: Db; now: Clock }) {
		this.#db = db;
		this.#now = now;
	}

	/** Called for every request that was signed well: costs a look-up. */
	note(accessKey: string): void {
		const at = this.#now();
		const before = this.#noted.get(accessKey);
		if (
			before !== undefined &&
			Math.abs(at.getTime() - before) < WRITE_EVERY_MS
		)
			return;
		this.#noted.delete(accessKey);
		this.#noted.set(accessKey, at.getTime());
		if (this.#noted.size > REMEMBERED_KEYS) {
			// Maps keep insertion order: the oldest goes.
			for (const oldest of this.#noted.keys()) {
				this.#noted.delete(oldest);
				break;
			}
		}
		this.#unwritten.set(accessKey, at);
		this.#timer ??= setTimeout(() => void this.flush(), GATHER_MS).unref();
	}

	/** Writes what is noted. Never throws: nobody's request depends on it. */
	flush(): Promise<void> {
		clearTimeout(this.#timer);
		this.#timer = undefined;
		const uses = this.#unwritten;
		this.#unwritten = new Map();
		this.#writing = this.#writing.then(async () => {
			try {
				for (const [accessKey, at] of uses)
					await this.#db
						.updateTable("access_keys")
						.set({ last_used_at: instant(at) })
						.where("access_key", "=", accessKey)
						.where((eb) =>
							eb.or([
								eb("last_used_at", "is", null),
								eb("last_used_at", "<", instant(at)),
							]),
						)
						.execute();
			} catch (error) {
				log.warn(
					{ err: error },
					"the last uses of access keys were not written",
				);
			}
		});
		return this.#writing;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.flush();
	}
}
