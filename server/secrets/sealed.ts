/**
 * Secrets at rest: encrypted with AES-256-GCM under the master key.
 *
 * A signature or a device password can only be checked with the secret itself, so
 * these secrets must stay readable, unlike passwords of users, which are hashed.
 */
import {
	createCipheriv,
	createDecipheriv,
	createHash,
	createSecretKey,
	randomBytes,
} from "node:crypto";
import {
	linkSync,
	mkdirSync,
	readFileSync,
	rmSync,
	writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { type Config, ConfigError } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { randomPiece } from "../database/ids.ts";
import { instant } from "../database/tables.ts";

export interface Sealed {
	/** The same text never gives the same result twice. */
	seal(secret: string): string;
	/** @throws when the text was sealed under another key, or altered. */
	open(sealed: string): string;
}

const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const CHECK_NAME = "master-key-check";

/** @param key 32 bytes. */
export function sealedUnder(key: Buffer): Sealed {
	// With a key object opening takes a quarter of the time it takes with the bytes.
	const secretKey = createSecretKey(key);
	// Tells a foreign key apart from damage; a hash, cut short, says nothing of the key.
	const keyId = createHash("sha256")
		.update("otaru master key")
		.update(key)
		.digest("hex")
		.slice(0, 8);
	return {
		seal(secret) {
			const nonce = randomPiece(NONCE_BYTES);
			const cipher = createCipheriv("aes-256-gcm", secretKey, nonce);
			const bytes = Buffer.concat([
				nonce,
				cipher.update(secret, "utf8"),
				cipher.final(),
				cipher.getAuthTag(),
			]);
			return `v1.${keyId}.${bytes.toString("base64url")}`;
		},
		open(sealed) {
			const [form, sealedWith, text] = sealed.split(".");
			if (form !== "v1" || text === undefined)
				throw new Error("This is not a sealed secret.");
			if (sealedWith !== keyId)
				throw new Error("The secret was sealed under another master key.");
			const bytes = Buffer.from(text, "base64url");
			const decipher = createDecipheriv(
				"aes-256-gcm",
				secretKey,
				bytes.subarray(0, NONCE_BYTES),
			);
			decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
			return (
				decipher.update(
					bytes.subarray(NONCE_BYTES, -TAG_BYTES),
					undefined,
					"utf8",
				) + decipher.final("utf8")
			);
		},
	};
}

/**
 * Reads the master key from the setting or from `master.key` in the data directory,
 * makes that file for a store that has no secrets yet, and proves that the key is
 * the store's own.
 *
 * @throws ConfigError when the key is missing, malformed or another one: a server
 * that went on would answer every sign-in with a refusal.
 */
export async function openSealed(
	config: Pick<Config, "masterKey" | "dataDir">,
	db: Db,
	now: Clock,
): Promise<Sealed> {
	const file = join(config.dataDir, "master.key");
	const source =
		config.masterKey === undefined ? file : "the setting OTARU_MASTER_KEY";
	let text = config.masterKey ?? readIfThere(file);
	let made = false;
	if (text === undefined) {
		if ((await findCheck(db)) !== undefined) {
			throw new ConfigError(
				`The secrets in the store are encrypted, and the key is missing: put it back as ${file}, or set OTARU_MASTER_KEY to the key of the other servers on this store.`,
			);
		}
		({ text, made } = makeKeyFile(config.dataDir, file));
	}
	const sealed = sealedUnder(parseKey(text, source));
	await db
		.insertInto("server_secrets")
		.values({
			name: CHECK_NAME,
			sealed: sealed.seal(CHECK_NAME),
			created_at: instant(now()),
		})
		.onConflict((conflict) => conflict.column("name").doNothing())
		.execute();
	const check = await findCheck(db);
	if (check === undefined || !opens(sealed, check)) {
		// Another server was faster on the same store, with a key of its own.
		if (made) rmSync(file, { force: true });
		throw new ConfigError(
			`The key in ${source} is not the one that encrypted the secrets in the store. All servers on one store need the same OTARU_MASTER_KEY, or the same data directory.`,
		);
	}
	return sealed;
}

async function findCheck(db: Db): Promise<string | undefined> {
	const row = await db
		.selectFrom("server_secrets")
		.select("sealed")
		.where("name", "=", CHECK_NAME)
		.executeTakeFirst();
	return row?.sealed;
}

function opens(sealed: Sealed, check: string): boolean {
	try {
		return sealed.open(check) === CHECK_NAME;
	} catch {
		return false;
	}
}

function parseKey(text: string, source: string): Buffer {
	const trimmed = text.trim();
	const key = /^[0-9a-fA-F]{64}$/.test(trimmed)
		? Buffer.from(trimmed, "hex")
		: Buffer.from(trimmed, "base64");
	if (key.length !== KEY_BYTES) {
		throw new ConfigError(
			`The master key in ${source} must be 32 bytes, as 64 hexadecimal digits or as base64.`,
		);
	}
	return key;
}

function readIfThere(file: string): string | undefined {
	try {
		return readFileSync(file, "utf8");
	} catch (error) {
		if (error instanceof Error && "code" in error && error.code === "ENOENT")
			return undefined;
		throw error;
	}
}

/** Whole or not at all, and never over a key that another process just made. */
function makeKeyFile(
	dataDir: string,
	file: string,
): { text: string; made: boolean } {
	mkdirSync(dataDir, { recursive: true, mode: 0o700 });
	const draft = `${file}.${process.pid}.new`;
	const text = randomBytes(KEY_BYTES).toString("hex");
	writeFileSync(draft, `${text}\n`, { mode: 0o600, flush: true });
	try {
		linkSync(draft, file);
		return { text, made: true };
	} catch (error) {
		const theirs = readIfThere(file);
		if (theirs === undefined) throw error;
		return { text: theirs, made: false };
	} finally {
		rmSync(draft, { force: true });
	}
}
