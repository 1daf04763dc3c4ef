/** Sign-in by password, and the tokens that come of it. */
import { hash, randomBytes } from "node:crypto";
import { compileOnce } from "../database/compile-once.ts";
import { type Clock, type Db, inTransaction } from "../database/database.ts";
import { fromInstant, instant } from "../database/tables.ts";
import { accessVersion } from "./access-version.ts";
import {
	type Caller,
	findAccountId,
	findUser,
	type Project,
	type UserQuery,
} from "./accounts.ts";
import { checkPassword } from "./passwords.ts";
import type { SignInLimits } from "./sign-in-limits.ts";

export const TOKEN_LIFE_MS = 24 * 60 * 60 * 1000;
/** An expired token is remembered this long, to be told apart from an unknown one. */
const KEEP_EXPIRED_MS = 24 * 60 * 60 * 1000;

export interface TokenHolder extends Caller {
	/** Undefined for a token of the whole account. */
	project: Project | undefined;
	issuedAt: Date;
	expiresAt: Date;
}

/** Who proved himself by a password, and the hash it was compared with. */
export type Signer = Caller & { passwordHash: string };

/**
 * @returns the token, of which only the hash is kept; undefined when the user was
 * disabled or deleted or got another password since he proved himself.
 */
export async function issueToken(
	db: Db,
	signer: Pick<Signer, "userId" | "passwordHash">,
	projectId: string | undefined,
	now: Clock,
): Promise<{ token: string; issuedAt: Date; expiresAt: Date } | undefined> {
	const token = randomBytes(48).toString("base64url");
	const issuedAt = now();
	const expiresAt = new Date(issuedAt.getTime() + TOKEN_LIFE_MS);
	const issued = await inTransaction(db, async (trx) => {
		// Whoever changes the user ends his tokens in the same transaction: he waits for
		// this one and finds its token, or this one waits for him and finds another hash.
		const { numUpdatedRows } = await trx
			.updateTable("users")
			.set({ last_sign_in_at: instant(issuedAt) })
			.where("user_id", "=", signer.userId)
			.where("password_hash", "=", signer.passwordHash)
			.where("enabled", "=", 1)
			.executeTakeFirst();
		if (numUpdatedRows === 0n) return false;
		await trx
			.insertInto("tokens")
			.values({
				token_hash: hash("sha256", token),
				user_id: signer.userId,
				project_id: projectId ?? null,
				created_at: instant(issuedAt),
				expires_at: instant(expiresAt),
			})
			.execute();
		return true;
	});
	if (!issued) return undefined;
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

/** Signs these users out. To be called in the transaction that changes what they may do. */
export async function endTokens(
	trx: Db,
	userIds: readonly string[],
): Promise<void> {
	if (userIds.length === 0) return;
	await trx.deleteFrom("tokens").where("user_id", "in", userIds).execute();
}

/**
 * The token's holder, also of one that expired lately: the caller compares `expiresAt`.
 * A disabled user's token has none.
 */
export async function findTokenHolder(
	db: Db,
	token: string,
): Promise<TokenHolder | undefined> {
	const [row] = await tokenHolder(db, hash("sha256", token));
	if (!row) return undefined;
	return {
		accountId: row.accountId,
		accountName: row.accountName,
		userId: row.userId,
		userName: row.userName,
		isAdministrator: row.is_administrator === 1,
		mustChangePassword: row.must_change_password === 1,
		accessVersion: row.accessVersion,
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

const tokenHolder = compileOnce((db, tokenHash: string) =>
	db
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
			"users.must_change_password",
			"accounts.account_id as accountId",
			"accounts.name as accountName",
			accessVersion,
		])
		.where("tokens.token_hash", "=", tokenHash)
		.where("users.enabled", "=", 1),
);

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
): Promise<Signer | undefined> {
	const user = await findUser(db, query);
	const attempt = limits.begin(await triedUser(db, query, user), address);
	let caller: Signer | undefined;
	try {
		const passwordHash = user?.passwordHash;
		if (
			(await checkPassword(password, passwordHash)) &&
			user &&
			passwordHash !== undefined
		)
			caller = { ...user, passwordHash };
	} catch (error) {
		attempt.forget();
		throw error;
	}
	if (caller) attempt.succeeded();
	return caller;
}

/**
 * Whose password is tried, in one form for all ways of naming him. Of a user who does not
 * exist the ways are as many as of one who does, or by them a stranger could tell.
 */
async function triedUser(
	db: Db,
	{ user, account }: UserQuery,
	found: Caller | undefined,
): Promise<string> {
	const accountId =
		account && "name" in account
			? await findAccountId(db, account.name)
			: account?.id;
	if (found) return found.userId;
	return JSON.stringify([user, accountId ?? account]);
}
