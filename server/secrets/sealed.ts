/**
 * Secrets at rest: encrypted with AES-256-GCM under a master key.
 *
 * A signature or a device password can only be checked with the secret itself, so
 * these secrets must stay readable, unlike passwords of users, which are hashed.
 *
 * There may be several master keys while one replaces another: the first of the ring
 * seals, all of them open. Each sealed text names its key: `v1.{key id}.{base64url}`.
 */
import {
	createCipheriv,
	createDecipheriv,
	createHash,
	createSecretKey,
	type KeyObject,
} from "node:crypto";
import { randomPiece } from "../database/ids.ts";

export interface Sealed {
	/** The same text never gives the same result twice. */
	seal(secret: string): string;
	/** @throws UnknownMasterKey, or another error when the text was altered. */
	open(sealed: string): string;
}

export const KEY_BYTES = 32;
const NONCE_BYTES = 12;
const TAG_BYTES = 16;

/** A text was sealed under a key that this process does not have. */
export class UnknownMasterKey extends Error {
	override name = "UnknownMasterKey";
	readonly keyId: string;

	constructor(keyId: string, known: readonly string[]) {
		super(
			`The secret was sealed under another master key: ${keyId}, and this server has ${known.join(" and ")}. While keys are changed every server needs both, the new one too before any server has it first.`,
		);
		this.keyId = keyId;
	}
}

/** One key, for those who need no ring. @param key 32 bytes. */
export function sealedUnder(key: Buffer): KeyRing {
	return new KeyRing([key]);
}

/**
 * Asked before a text is sealed, and urgently when its key is unknown: another process may
 * have changed the keys meanwhile. Undefined: they are the same.
 */
export type LookForKeys = (isUrgent: boolean) => readonly Buffer[] | undefined;

/** Whether these keys, and no others, open what the store holds. Never rejects. */
export type ProveKeys = (keys: readonly Buffer[]) => Promise<boolean>;

export class KeyRing implements Sealed {
	#keys: readonly RingKey[];
	/** Keys that were in the ring since the start; what they sealed may still be in memory. */
	readonly #known = new Map<string, RingKey>();
	/** A list that was found and lacks a key of the ring: not trusted with sealing yet. */
	#offered: readonly RingKey[] = [];
	readonly #look: LookForKeys | undefined;
	readonly #prove: ProveKeys | undefined;

	/**
	 * @param keys 32 bytes each, at least one; the first seals.
	 * @param prove asked before a list is taken that lacks a key of the ring; without it
	 * no such list is taken.
	 */
	constructor(keys: readonly Buffer[], look?: LookForKeys, prove?: ProveKeys) {
		this.#keys = [];
		this.#look = look;
		this.#prove = prove;
		this.replace(keys);
	}

	/** Of the key that seals: 8 hexadecimal digits. */
	get keyId(): string {
		return this.#first.id;
	}

	/** Of all keys, the one that seals first. */
	get keyIds(): string[] {
		return this.#keys.map(({ id }) => id);
	}

	/** From now on these are the keys. */
	replace(keys: readonly Buffer[]): void {
		const ring = this.#ringOf(keys);
		for (const key of ring) this.#known.set(key.id, key);
		this.#keys = ring;
		this.#offered = [];
	}

	#ringOf(keys: readonly Buffer[]): RingKey[] {
		return keys.map((bytes) => {
			const id = masterKeyId(bytes);
			const known = this.#known.get(id);
			// With a key object opening takes a quarter of the time it takes with the bytes.
			return known ?? { id, key: createSecretKey(bytes) };
		});
	}

	/** Looks whether somebody else changed the keys. */
	refresh(): void {
		this.#refresh(false);
	}

	#refresh(isUrgent: boolean): void {
		const keys = this.#look?.(isUrgent);
		if (!keys) return;
		const found = this.#ringOf(keys);
		const ids = new Set(found.map(({ id }) => id));
		// What has all keys of the ring opens whatever the ring does.
		if (this.#keys.every(({ id }) => ids.has(id))) {
			this.replace(keys);
			return;
		}
		// Sealed under keys that are not the store's own, secrets would be lost.
		this.#offered = found;
		this.#prove?.(keys).then((isProven) => {
			if (isProven && this.#offered === found) this.replace(keys);
		});
	}

	seal(secret: string): string {
		this.#refresh(false);
		const { id, key } = this.#first;
		const nonce = randomPiece(NONCE_BYTES);
		const cipher = createCipheriv("aes-256-gcm", key, nonce);
		const bytes = Buffer.concat([
			nonce,
			cipher.update(secret, "utf8"),
			cipher.final(),
			cipher.getAuthTag(),
		]);
		return `v1.${id}.${bytes.toString("base64url")}`;
	}

	open(sealed: string): string {
		const [form, sealedWith = "", text] = sealed.split(".");
		if (form !== "v1" || text === undefined)
			throw new Error("This is not a sealed secret.");
		let found = this.#known.get(sealedWith);
		if (!found) {
			this.#refresh(true);
			// The text itself shows whether an offered key is the one.
			found =
				this.#known.get(sealedWith) ??
				this.#offered.find(({ id }) => id === sealedWith);
		}
		if (!found) throw new UnknownMasterKey(sealedWith, this.keyIds);
		const bytes = Buffer.from(text, "base64url");
		const decipher = createDecipheriv(
			"aes-256-gcm",
			found.key,
			bytes.subarray(0, NONCE_BYTES),
			// Without it a tag of four bytes would do.
			{ authTagLength: TAG_BYTES },
		);
		decipher.setAuthTag(bytes.subarray(-TAG_BYTES));
		return (
			decipher.update(
				bytes.subarray(NONCE_BYTES, -TAG_BYTES),
				undefined,
				"utf8",
			) + decipher.final("utf8")
		);
	}

	/** Whether the text is sealed under the key that seals now. */
	isCurrent(sealed: string): boolean {
		return keyIdOf(sealed) === this.#first.id;
	}

	get #first(): RingKey {
		const [first] = this.#keys;
		if (!first) throw new Error("There is no master key.");
		return first;
	}
}

interface RingKey {
	id: string;
	key: KeyObject;
}

/** Of the key that a text is sealed under. */
export function keyIdOf(sealed: string): string {
	return sealed.split(".", 2)[1] ?? "";
}

/** Tells a foreign key apart from damage; a hash, cut short, says nothing of the key. */
export function masterKeyId(key: Buffer): string {
	return createHash("sha256")
		.update("otaru master key")
		.update(key)
		.digest("hex")
		.slice(0, 8);
}
