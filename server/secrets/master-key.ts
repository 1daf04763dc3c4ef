/**
 * Where master keys come from: the setting, or the file `master.key` in the data
 * directory, which is made for a store that has no secrets yet. Both may hold several
 * keys; the first seals, all of them open.
 */
import { randomBytes } from "node:crypto";
import {
	chmodSync,
	closeSync,
	fsyncSync,
	linkSync,
	mkdirSync,
	openSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { type Config, ConfigError } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { randomHex } from "../database/ids.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";
import { KEY_BYTES, KeyRing, keyIdOf, masterKeyId } from "./sealed.ts";

const log = logger("master-key");

/** Opened at every start: proves that the keys are the store's own. Changed last by a rotation. */
export const CHECK_NAME = "master-key-check";
/** The file is looked at again at most this often. */
const LOOK_AGAIN_MS = 1_000;
/** Whoever changes the file needs milliseconds; a lock this old was left by a dead process. */
const LOCK_STALE_MS = 10_000;

/**
 * Reads the master keys from the setting or the file, makes that file for a store that
 * has no secrets yet, and proves that the keys are the store's own.
 *
 * @throws ConfigError when a key is missing, malformed or another one: a server
 * that went on would answer every sign-in with a refusal.
 */
export async function openSealed(
	config: Pick<Config, "masterKey" | "dataDir">,
	db: Db,
	now: Clock,
): Promise<KeyRing> {
	const file = new MasterKeyFile(config.dataDir);
	const isSetting = config.masterKey !== undefined;
	const source = isSetting ? "the setting OTARU_MASTER_KEY" : file.path;
	let made = false;
	if (!isSetting && !file.exists()) {
		if ((await findCheck(db)) !== undefined) {
			throw new ConfigError(
				`The secrets in the store are encrypted, and the key is missing: put it back as ${file.path}, or set OTARU_MASTER_KEY to the key of the other servers on this store.`,
			);
		}
		made = file.make();
	}
	const ring =
		config.masterKey === undefined
			? new KeyRing(
					file.read(),
					(isUrgent) => file.readIfChanged(isUrgent),
					(keys) => areOfStore(db, keys, file),
				)
			: new KeyRing(parseKeys(config.masterKey, source));
	await db
		.insertInto("server_secrets")
		.values({
			name: CHECK_NAME,
			sealed: ring.seal(CHECK_NAME),
			created_at: instant(now()),
		})
		.onConflict((conflict) => conflict.column("name").doNothing())
		.execute();
	const fault = await findFault(db, ring, source);
	if (fault !== undefined) {
		// Another server was faster on the same store, with a key of its own.
		if (made) rmSync(file.path, { force: true });
		throw new ConfigError(fault);
	}
	return ring;
}

/** Says once why not. When the store cannot be asked, the file is looked at again. */
async function areOfStore(
	db: Db,
	keys: readonly Buffer[],
	file: MasterKeyFile,
): Promise<boolean> {
	try {
		const fault = await findFault(db, new KeyRing(keys), file.path);
		if (fault === undefined) return true;
		log.error(
			{ fault },
			"master.key was changed, and no longer fits the store: the server goes on with the keys it has, but cannot start again before they are put back",
		);
	} catch (error) {
		log.warn({ err: error }, "could not compare master.key with the store");
		file.forget();
	}
	return false;
}

/** What the few secrets that every start needs say against these keys. */
async function findFault(
	db: Db,
	ring: KeyRing,
	source: string,
): Promise<string | undefined> {
	const check = await findCheck(db);
	const known = ring.keyIds;
	if (check === undefined || !opens(ring, check)) {
		return `The key in ${source} is not the one that encrypted the secrets in the store: there it is ${known.join(" and ")}, here ${check === undefined ? "none" : keyIdOf(check)}. All servers on one store need the same OTARU_MASTER_KEY, or the same data directory. When keys are being changed, the old one must stay in the list until otaru keys status says that it is no longer needed.`;
	}
	const rows = await db
		.selectFrom("server_secrets")
		.select("sealed")
		.union(db.selectFrom("access_keys").select("secret_sealed as sealed"))
		.execute();
	const foreign = new Set(
		rows
			.map(({ sealed }) => keyIdOf(sealed))
			.filter((keyId) => !known.includes(keyId)),
	);
	if (foreign.size === 0) return undefined;
	return `Some secrets in the store are encrypted under the master key ${[...foreign].join(", ")}, which is not in ${source} (${known.join(", ")}). A new key must be in the list of every server, second, before any server has it first; an old one must stay until otaru keys status says that it is no longer needed.`;
}

async function findCheck(db: Db): Promise<string | undefined> {
	const row = await db
		.selectFrom("server_secrets")
		.select("sealed")
		.where("name", "=", CHECK_NAME)
		.executeTakeFirst();
	return row?.sealed;
}

function opens(ring: KeyRing, check: string): boolean {
	try {
		return ring.open(check) === CHECK_NAME;
	} catch {
		return false;
	}
}

/** Keys as text: 64 hexadecimal digits or base64 each, apart by commas or line ends. */
export function parseKeys(text: string, source: string): Buffer[] {
	const keys = text
		.split(/[\s,]+/)
		.filter(Boolean)
		.map((word) =>
			/^[0-9a-fA-F]{64}$/.test(word)
				? Buffer.from(word, "hex")
				: Buffer.from(word, "base64"),
		);
	if (keys.length === 0 || keys.some(({ length }) => length !== KEY_BYTES)) {
		throw new ConfigError(
			`The master key in ${source} must be 32 bytes, as 64 hexadecimal digits or as base64; of several, separated by commas or line ends, each one.`,
		);
	}
	if (new Set(keys.map(masterKeyId)).size < keys.length)
		throw new ConfigError(`${source} lists one master key twice.`);
	return keys;
}

/** `master.key`: one key a line, mode 0600, replaced whole or not at all. */
export class MasterKeyFile {
	readonly path: string;
	#seen = "";
	#lookedAtMs = Number.NEGATIVE_INFINITY;

	constructor(dataDir: string) {
		this.path = join(dataDir, "master.key");
	}

	exists(): boolean {
		return statSync(this.path, { throwIfNoEntry: false }) !== undefined;
	}

	/** @throws ConfigError when it does not hold keys. */
	read(): Buffer[] {
		this.#seen = this.#state();
		return parseKeys(readFileSync(this.path, "utf8"), this.path);
	}

	/** The keys when somebody changed the file since it was read here. Never throws. */
	readIfChanged(isUrgent: boolean): Buffer[] | undefined {
		const nowMs = performance.now();
		if (!isUrgent && nowMs - this.#lookedAtMs < LOOK_AGAIN_MS) return undefined;
		this.#lookedAtMs = nowMs;
		try {
			return this.#state() === this.#seen ? undefined : this.read();
		} catch {
			// Gone or damaged: what was read before still opens everything.
			return undefined;
		}
	}

	/** It counts as changed at the next look. */
	forget(): void {
		this.#seen = "";
	}

	/** The first key. Returns false when another process just made one, which stays. */
	make(): boolean {
		mkdirSync(dirname(this.path), { recursive: true, mode: 0o700 });
		const draft = this.#draft([randomBytes(KEY_BYTES)]);
		try {
			linkSync(draft, this.path);
			return true;
		} catch (error) {
			if (!this.exists()) throw error;
			return false;
		} finally {
			rmSync(draft, { force: true });
		}
	}

	/**
	 * Replaces the keys in the file by what `change` makes of them, while no other process
	 * does. Survives being killed: the file is the old one or the new one.
	 */
	async change(change: (keys: Buffer[]) => Buffer[]): Promise<Buffer[]> {
		await this.#lock();
		try {
			const before = this.read();
			const after = change(before);
			if (after.length === 0) throw new Error("No master key would be left.");
			const draft = this.#draft(after);
			renameSync(draft, this.path);
			syncDirectory(dirname(this.path));
			this.#seen = this.#state();
			return after;
		} finally {
			rmSync(this.#lockPath, { force: true });
		}
	}

	#draft(keys: readonly Buffer[]): string {
		// Of two containers on one directory both may be process 1.
		const draft = `${this.path}.${randomHex(4)}.new`;
		const text = keys.map((key) => `${key.toString("hex")}\n`).join("");
		writeFileSync(draft, text, { mode: 0o600, flag: "wx", flush: true });
		// Whatever the umask of the process says.
		chmodSync(draft, 0o600);
		return draft;
	}

	get #lockPath(): string {
		return `${this.path}.lock`;
	}

	async #lock(): Promise<void> {
		for (let attempt = 0; ; attempt++) {
			try {
				closeSync(openSync(this.#lockPath, "wx", 0o600));
				return;
			} catch (error) {
				if (!(error instanceof Error && "code" in error)) throw error;
				if (error.code !== "EEXIST" || attempt >= 600) throw error;
			}
			const lock = statSync(this.#lockPath, { throwIfNoEntry: false });
			if (lock && Math.abs(Date.now() - lock.mtimeMs) > LOCK_STALE_MS)
				rmSync(this.#lockPath, { force: true });
			else await pause(20);
		}
	}

	#state(): string {
		const { ino, mtimeMs, size } = statSync(this.path);
		return `${ino} ${mtimeMs} ${size}`;
	}
}

/** So that the new name outlives a power failure. */
function syncDirectory(directory: string): void {
	const handle = openSync(directory, "r");
	try {
		fsyncSync(handle);
	} finally {
		closeSync(handle);
	}
}
