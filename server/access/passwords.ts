/** Passwords of users: hashed with scrypt, slow on purpose, and few at a time. */
import { randomBytes, scrypt, timingSafeEqual } from "node:crypto";

// 32 MiB and three passes: one of the settings OWASP names as equal in strength,
// and the one that a small machine can afford.
const COST = 2 ** 15;
const BLOCK_SIZE = 8;
const PASSES = 3;
const SALT_BYTES = 16;
const HASH_BYTES = 32;

/** Each costs 32 MiB and one of the few threads that also serve the disk. */
const AT_ONCE = 2;
const MAX_WAITING = 50;

/** More sign-ins wait for their password check than this server will queue. */
export class TooManyPasswordChecks extends Error {
	override name = "TooManyPasswordChecks";
}

/** `scrypt.{cost}.{block size}.{passes}.{salt}.{hash}`, the last two in base64url. */
export async function hashPassword(password: string): Promise<string> {
	const salt = randomBytes(SALT_BYTES);
	const derived = await derive(password, salt, COST, BLOCK_SIZE, PASSES);
	return [
		"scrypt",
		COST,
		BLOCK_SIZE,
		PASSES,
		salt.toString("base64url"),
		derived.toString("base64url"),
	].join(".");
}

/**
 * @param passwordHash undefined for a user who does not exist: takes as long, so that
 * nobody learns by the clock who does.
 * @throws TooManyPasswordChecks
 */
export async function checkPassword(
	password: string,
	passwordHash: string | undefined,
): Promise<boolean> {
	const [form, cost, blockSize, passes, salt, expected] = (
		passwordHash ?? NOBODY
	).split(".");
	if (form !== "scrypt" || salt === undefined || expected === undefined)
		throw new Error("The stored password has an unknown form.");
	const derived = await derive(
		password,
		Buffer.from(salt, "base64url"),
		Number(cost),
		Number(blockSize),
		Number(passes),
	);
	const same = timingSafeEqual(derived, Buffer.from(expected, "base64url"));
	return same && passwordHash !== undefined;
}

const NOBODY = [
	"scrypt",
	COST,
	BLOCK_SIZE,
	PASSES,
	randomBytes(SALT_BYTES).toString("base64url"),
	randomBytes(HASH_BYTES).toString("base64url"),
].join(".");

let running = 0;
const waiting: (() => void)[] = [];

async function derive(
	password: string,
	salt: Buffer,
	cost: number,
	blockSize: number,
	passes: number,
): Promise<Buffer> {
	if (running >= AT_ONCE) {
		if (waiting.length >= MAX_WAITING) throw new TooManyPasswordChecks();
		// Whoever leaves hands his place over, so `running` does not change.
		await new Promise<void>((resolve) => waiting.push(resolve));
	} else {
		running++;
	}
	try {
		return await new Promise((resolve, reject) => {
			scrypt(
				password.normalize("NFKC"),
				salt,
				HASH_BYTES,
				{
					N: cost,
					r: blockSize,
					p: passes,
					maxmem: 256 * cost * blockSize,
				},
				(error, derived) => (error ? reject(error) : resolve(derived)),
			);
		});
	} finally {
		const next = waiting.shift();
		if (next) next();
		else running--;
	}
}
