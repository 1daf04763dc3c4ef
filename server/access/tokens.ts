/** Sign-in by password, and the tokens that come of it. */
import { hash, randomBytes } from "node:crypto";
import type { Clock, Db } from "../database/database.ts";
import { fromInstant, instant } from "../database/tables.ts";
import {
	type Caller,
	findUser,
	type Project,
	type UserQuery,
} from "./accounts.ts";
import { checkPassword } from "./passwords.ts";

export const TOKEN_LIFE_MS = 24 * 60 * 60 * 1000;
/** An expired token is remembered this long, to be told apart from an unknown one. */
const KEEP_EXPIRED_MS = 24 * 60 * 60 * 1000;

export interface TokenHolder extends Caller {
	/** Undefined for a token of the whole account. */
	project: Project | undefined;
	issuedAt: Date;
	expiresAt: Date;
}

/** @returns the token; only its hash is kept. */
export async function issueToken(
	db: Db,
	userId: string,
	projectId: string | undefined,
	now: Clock,
): Promise<{ token: string; issuedAt: Date; expiresAt: Date }> {
	const token = randomBytes(48).toString("base64url");
	const issuedAt = now();
	const expiresAt = new Date(issuedAt.getTime() + TOKEN_LIFE_MS);
	await db
		.insertInto("tokens")
		.values({
			token_hash: hash("sha256", token),
			user_id: userId,
			project_id: projectId ?? null,
			created_at: instant(issuedAt),
			expires_at: instant(expiresAt),
		})
		.execute();
	await db
		.deleteFrom("tokens")
		.where(
			"expires_at",
			"<",
			instant(new Date(issuedAt.getTime() - KEEP_EXPIRED_MS)),
		)
		.execute();
	return { token, issuedAt, expiresAt };
}

/** The token's holder, also of one that expired lately: the caller compares `expiresAt`. */
export async function findTokenHolder(
	db: Db,
	token: string,
): Promise<TokenHolder | undefined> {
	const row = await db
		.selectFrom("tokens")
		.innerJoin("users", "users.user_id", "tokens.user_id")
		.innerJoin("accounts", "accounts.account_id", "users.account_id")
		.leftJoin("projects", "projects.project_id", "tokens.project_id")
		.select([
			"projects.project_id",
			"projects.name as projectName",
			"tokens.created_at",
			"tokens.expires_at",
			"users.user_id as userId",
			"users.name as userName",
			"users.is_administrator",
			"accounts.account_id as accountId",
			"accounts.name as accountName",
		])
		.where("tokens.token_hash", "=", hash("sha256", token))
		.executeTakeFirst();
	if (!row) return undefined;
	return {
		accountId: row.accountId,
		accountName: row.accountName,
		userId: row.userId,
		userName: row.userName,
		isAdministrator: row.is_administrator === 1,
		project:
			row.project_id === null || row.projectName === null
				? undefined
				: {
						projectId: row.project_id,
						accountId: row.accountId,
						name: row.projectName,
					},
		issuedAt: fromInstant(row.created_at),
		expiresAt: fromInstant(row.expires_at),
	};
}

/** Too many failed attempts: try again after `retryAfterSeconds`. */
export class SignInBlocked extends Error {
	override name = "SignInBlocked";
	readonly retryAfterSeconds: number;

	constructor(retryAfterSeconds: number) {
		super("too many failed sign-ins");
		this.retryAfterSeconds = retryAfterSeconds;
	}
}

/**
 * The user whose password this is; undefined when user or password is wrong.
 *
 * @throws SignInBlocked, TooManyPasswordChecks
 */
export async function findSigner(
	db: Db,
	limits: SignInLimits,
	query: UserQuery,
	password: string,
	address: string,
): Promise<Caller | undefined> {
	const attempt = limits.begin(JSON.stringify(query), address);
	let caller: Caller | undefined;
	try {
		const user = await findUser(db, query);
		if (await checkPassword(password, user?.passwordHash)) caller = user;
	} catch (error) {
		attempt.forget();
		throw error;
	}
	if (caller) attempt.succeeded();
	return caller;
}

const FREE_ATTEMPTS_OF_USER = 5;
/** More, since a whole office may share one address. */
const FREE_ATTEMPTS_OF_ADDRESS = 20;
const MAX_DELAY_MS = 5 * 60 * 1000;
const FORGET_AFTER_MS = 60 * 60 * 1000;
const MAX_REMEMBERED = 10_000;

interface Failures {
	count: number;
	lastAt: number;
}

/**
 * Failed sign-ins per user and per address, in memory. After a few of them each next
 * one has to wait, twice as long every time, five minutes at most. An attempt counts
 * as failed while it runs, so a hundred at once gain nothing. Where a user has signed
 * in before, others' failures in his name do not lock him out.
 */
export class SignInLimits {
	readonly #users = new Map<string, Failures>();
	readonly #addresses = new Map<string, Failures>();
	/** User and address of past successes; only the keys matter. */
	readonly #known = new Map<string, true>();
	readonly #now: Clock;

	constructor(now: Clock) {
		this.#now = now;
	}

	/** @throws SignInBlocked */
	begin(user: string, address: string): { succeeded(): void; forget(): void } {
		const now = this.#now().getTime();
		const both = `${user} ${address}`;
		const isKnown = this.#known.has(both);
		const blockedUntil = Math.max(
			freeAt(this.#addresses.get(address), FREE_ATTEMPTS_OF_ADDRESS),
			isKnown ? 0 : freeAt(this.#users.get(user), FREE_ATTEMPTS_OF_USER),
		);
		if (blockedUntil > now)
			throw new SignInBlocked(Math.ceil((blockedUntil - now) / 1000));
		count(this.#addresses, address, 1, now);
		if (!isKnown) count(this.#users, user, 1, now);
		const forget = () => {
			count(this.#addresses, address, -1, now);
			if (!isKnown) count(this.#users, user, -1, now);
		};
		return {
			forget,
			succeeded: () => {
				forget();
				this.#users.delete(user);
				remember(this.#known, both, true);
			},
		};
	}
}

/** When the next attempt may be made, in milliseconds of the epoch. */
function freeAt(failures: Failures | undefined, free: number): number {
	if (!failures || failures.count < free) return 0;
	const delayMs = Math.min(1_000 * 2 ** (failures.count - free), MAX_DELAY_MS);
	return failures.lastAt + delayMs;
}

function count(
	map: Map<string, Failures>,
	key: string,
	by: 1 | -1,
	now: number,
): void {
	const before = map.get(key);
	const kept =
		before && now - before.lastAt < FORGET_AFTER_MS ? before.count : 0;
	remember(map, key, { count: Math.max(0, kept + by), lastAt: now });
}

/** Puts the entry at the end and drops the oldest of too many. */
function remember<V>(map: Map<string, V>, key: string, value: V): void {
	map.delete(key);
	map.set(key, value);
	if (map.size > MAX_REMEMBERED) {
		for (const oldest of map.keys()) {
			map.delete(oldest);
			break;
		}
	}
}
