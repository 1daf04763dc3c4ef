/** Users of an account: who there is, how they sign in, and who may change whom. */
import type { Selectable, Updateable } from "kysely";
import {
	type Db,
	isUniqueViolation,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import { type Bit, instant, type UserRow } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { newPassword } from "./access-keys.ts";
import { changeAccess } from "./access-version.ts";
import { NO_PASSWORD } from "./accounts.ts";
import { passwordFault } from "./password-policy.ts";
import {
	checkPassword,
	hashPassword,
	TooManyPasswordChecks,
} from "./passwords.ts";
import type { Scope } from "./permissions.ts";
import { endTokens } from "./tokens.ts";

export type User = Selectable<UserRow>;
/** With the password that was made up for him: nobody is ever told again. */
export type UserAndPassword = User & { password?: string };

/** @throws 404 IOTDA.015900 */
export async function getUser(
	db: Db,
	scope: Scope,
	userId: string,
): Promise<User> {
	const user = await db
		.selectFrom("users")
		.selectAll()
		.where("user_id", "=", userId)
		.where("account_id", "=", scope.accountId)
		.executeTakeFirst();
	if (!user) throw new ApiError(errors.unknownUser);
	return user;
}

/** Newest first. */
export async function listUsers(
	db: Db,
	scope: Scope,
	filter: { name?: string | undefined; enabled?: boolean | undefined },
	page: Page,
): Promise<PageResult<User>> {
	let query = db
		.selectFrom("users")
		.selectAll()
		.where("account_id", "=", scope.accountId);
	if (filter.name !== undefined) query = query.where("name", "=", filter.name);
	if (filter.enabled !== undefined)
		query = query.where("enabled", "=", bit(filter.enabled));
	return listPage(query, "users.record_id", page);
}

/**
 * @throws 400 IOTDA.000006 for a password that is too easy or not wanted, 400
 * IOTDA.015908 when the name is taken, 403 IOTDA.000022 for an administrator that
 * somebody else would make
 */
export async function createUser(
	db: Db,
	scope: Scope,
	input: {
		name: string;
		description: string | null;
		/** Undefined: one is made up. */
		password: string | undefined;
		/** false: he signs with access keys only. */
		hasPassword: boolean;
		/** Undefined: true for one who has a password. */
		mustChangePassword: boolean | undefined;
		isAdministrator: boolean;
	},
	now: Date,
): Promise<UserAndPassword> {
	if (input.isAdministrator) requireAdministrator(scope);
	if (!input.hasPassword) {
		refuseBesideNoPassword(input.password, input.mustChangePassword);
	}
	const password =
		input.password ?? (input.hasPassword ? madeUpFor(input.name) : undefined);
	const passwordHash =
		password === undefined
			? NO_PASSWORD
			: await hashNew(password, input.name, "password");
	try {
		const user = await changeAccess(db, scope.accountId, (trx) =>
			trx
				.insertInto("users")
				.values({
					user_id: randomHex(16),
					record_id: newRecordId(now),
					account_id: scope.accountId,
					name: input.name,
					description: input.description,
					password_hash: passwordHash,
					must_change_password: bit(
						input.mustChangePassword ?? input.hasPassword,
					),
					is_administrator: bit(input.isAdministrator),
					created_at: instant(now),
				})
				.returningAll()
				.executeTakeFirstOrThrow(),
		);
		return input.password === undefined && password !== undefined
			? { ...user, password }
			: user;
	} catch (error) {
		if (isUniqueViolation(error, "users_name"))
			throw new ApiError(errors.userExists, { cause: error });
		throw error;
	}
}

export interface UserChanges {
	description?: string | null;
	isEnabled?: boolean;
	isAdministrator?: boolean;
	password?: string;
	/** A new password is made up. */
	makesPassword?: boolean;
	/** false: takes the password away. */
	hasPassword?: boolean;
	/** Undefined with a new password: true, unless it is the caller's own. */
	mustChangePassword?: boolean;
}

/**
 * What is missing stays. A user who is disabled, gets another password, or becomes or
 * stops being an administrator is signed out.
 *
 * Whoever becomes an administrator loses the access keys he had, and his password with
 * them unless the same call gives or takes one: any of them may be known to somebody who
 * was allowed to manage him as long as he was none.
 *
 * @throws 404 IOTDA.015900, 400 IOTDA.000006 for a password that is too easy, 403
 * IOTDA.000022 for changes that only an administrator may make, 403 IOTDA.015914 when
 * no administrator would be left
 */
export async function updateUser(
	db: Db,
	scope: Scope,
	userId: string,
	changes: UserChanges,
): Promise<UserAndPassword> {
	const before = await getUser(db, scope, userId);
	requireMayChange(scope, before);
	if (changes.isAdministrator) requireAdministrator(scope);
	if (changes.password !== undefined && changes.makesPassword)
		throw invalidInput("password", "cannot be given with generate_password");
	const password =
		changes.password ??
		(changes.makesPassword ? madeUpFor(before.name) : undefined);
	if (changes.hasPassword === false)
		refuseBesideNoPassword(password, changes.mustChangePassword);
	// Slow, so not while others wait for this change.
	const passwordHash =
		changes.hasPassword === false
			? NO_PASSWORD
			: password === undefined
				? undefined
				: await hashNew(password, before.name, "password");

	// Whether it is needed shows only when nobody else can change him any more.
	const replacement =
		changes.isAdministrator && passwordHash === undefined
			? await makeUp(before.name)
			: undefined;

	const columns: Updateable<UserRow> = {};
	if (changes.description !== undefined)
		columns.description = changes.description;
	if (changes.isEnabled !== undefined) columns.enabled = bit(changes.isEnabled);
	if (changes.isAdministrator !== undefined)
		columns.is_administrator = bit(changes.isAdministrator);
	if (passwordHash !== undefined) {
		columns.password_hash = passwordHash;
		columns.must_change_password = bit(
			passwordHash !== NO_PASSWORD && userId !== scope.userId,
		);
	}
	if (changes.mustChangePassword !== undefined)
		columns.must_change_password = bit(changes.mustChangePassword);
	if (Object.keys(columns).length === 0) {
		refusePasswordOfNone(before, changes);
		return before;
	}

	return changeAccess(db, scope.accountId, async (trx) => {
		// Since it was read above, somebody may have made him an administrator.
		const locked = await lockUser(trx, scope, userId);
		requireMayChange(scope, locked);
		const isPromoted =
			columns.is_administrator === 1 && locked.is_administrator === 0;
		const replaced =
			isPromoted && locked.password_hash !== NO_PASSWORD
				? replacement
				: undefined;
		if (isPromoted)
			await trx
				.deleteFrom("access_keys")
				.where("user_id", "=", userId)
				.execute();
		const user = await trx
			.updateTable("users")
			.set({
				...(replaced && {
					password_hash: replaced.passwordHash,
					must_change_password: 1,
				}),
				...columns,
			})
			.where("user_id", "=", userId)
			.returningAll()
			.executeTakeFirstOrThrow();
		refusePasswordOfNone(user, changes);
		if (
			passwordHash !== undefined ||
			user.enabled !== locked.enabled ||
			user.is_administrator !== locked.is_administrator
		)
			await endTokens(trx, [userId]);
		await refuseLockOut(trx, scope.accountId);
		const madeUp =
			replaced?.password ??
			(changes.password === undefined ? password : undefined);
		return madeUp === undefined ? user : { ...user, password: madeUp };
	});
}

/**
 * With his access keys, tokens, memberships and grants.
 *
 * @throws 404 IOTDA.015900, 403 IOTDA.000022 for an administrator, unless the caller is
 * one, 403 IOTDA.015914 when no administrator would be left
 */
export async function deleteUser(
	db: Db,
	scope: Scope,
	userId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		requireMayChange(scope, await lockUser(trx, scope, userId));
		await endTokens(trx, [userId]);
		await trx
			.deleteFrom("grants")
			.where("account_id", "=", scope.accountId)
			.where("principal_type", "=", "user")
			.where("principal_id", "=", userId)
			.execute();
		await trx
			.deleteFrom("user_group_members")
			.where("user_id", "=", userId)
			.execute();
		await trx.deleteFrom("access_keys").where("user_id", "=", userId).execute();
		await trx.deleteFrom("users").where("user_id", "=", userId).execute();
		await refuseLockOut(trx, scope.accountId);
	});
}

/**
 * The caller's own password, by the one he has. He is signed out everywhere.
 *
 * @throws 403 IOTDA.015923 when `password` is not the present one, 400 IOTDA.000006 when
 * the new one is too easy or the same
 */
export async function changeOwnPassword(
	db: Db,
	scope: Scope,
	input: { password: string; newPassword: string },
): Promise<void> {
	const before = await getUser(db, scope, scope.userId);
	const { password_hash } = before;
	const isRight = await orTooMany(() =>
		checkPassword(
			input.password,
			password_hash === NO_PASSWORD ? undefined : password_hash,
		),
	);
	if (!isRight) throw new ApiError(errors.wrongOwnPassword);
	// As they are hashed: what looks the same is the same.
	if (input.password.normalize("NFKC") === input.newPassword.normalize("NFKC"))
		throw invalidInput("new_password", "must differ from the present one");
	const passwordHash = await hashNew(
		input.newPassword,
		before.name,
		"new_password",
	);
	await changeAccess(db, scope.accountId, async (trx) => {
		const { numUpdatedRows } = await trx
			.updateTable("users")
			.set({ password_hash: passwordHash, must_change_password: 0 })
			.where("user_id", "=", scope.userId)
			// Another change came in between: then it was not the present one any more.
			.where("password_hash", "=", password_hash)
			.executeTakeFirst();
		if (numUpdatedRows === 0n) throw new ApiError(errors.wrongOwnPassword);
		await endTokens(trx, [scope.userId]);
	});
}

// --- who may change whom ------------------------------------------------------------

function requireAdministrator(scope: Scope): void {
	if (!scope.isAdministrator)
		throw new ApiError(errors.forbidden, {
			detail: "(only an administrator may make an administrator)",
		});
}

/**
 * Whoever may change users must not be able to become an administrator by it, so
 * administrators are changed by administrators only.
 *
 * @throws 403 IOTDA.000022
 */
export function requireMayChange(
	scope: Scope,
	user: Pick<User, "is_administrator">,
): void {
	if (user.is_administrator === 1 && !scope.isAdministrator)
		throw new ApiError(errors.forbidden, {
			detail: "(only an administrator may change an administrator)",
		});
}

/** Keeps the user from signing in and from changing until the transaction ends. */
export async function lockUser(
	trx: Db,
	scope: Scope,
	userId: string,
): Promise<User> {
	const user = await lockForUpdate(
		trx,
		trx
			.selectFrom("users")
			.selectAll()
			.where("user_id", "=", userId)
			.where("account_id", "=", scope.accountId),
	).executeTakeFirst();
	if (!user) throw new ApiError(errors.unknownUser);
	return user;
}

/**
 * To be asked after a change to users or keys, in its transaction (`changeAccess`): is
 * there still an administrator who is enabled and has a password or an enabled key?
 *
 * @throws 403 IOTDA.015914
 */
export async function refuseLockOut(trx: Db, accountId: string): Promise<void> {
	const left = await trx
		.selectFrom("users")
		.select("user_id")
		.where("account_id", "=", accountId)
		.where("is_administrator", "=", 1)
		.where("enabled", "=", 1)
		.where((eb) =>
			eb.or([
				eb("password_hash", "<>", NO_PASSWORD),
				eb(
					"user_id",
					"in",
					eb
						.selectFrom("access_keys")
						.select("access_keys.user_id")
						.where("access_keys.enabled", "=", 1),
				),
			]),
		)
		.limit(1)
		.executeTakeFirst();
	if (!left) throw new ApiError(errors.lastAdministrator);
}

// --- passwords ------------------------------------------------------------------------

function madeUpFor(userName: string): string {
	for (;;) {
		const password = newPassword();
		// One in millions has the user's short name in it.
		if (passwordFault(password, userName) === undefined) return password;
	}
}

async function makeUp(
	userName: string,
): Promise<{ password: string; passwordHash: string }> {
	const password = madeUpFor(userName);
	return {
		password,
		passwordHash: await hashNew(password, userName, "password"),
	};
}

async function hashNew(
	password: string,
	userName: string,
	field: string,
): Promise<string> {
	const fault = passwordFault(password, userName);
	if (fault !== undefined) throw invalidInput(field, fault);
	return orTooMany(() => hashPassword(password));
}

async function orTooMany<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (error instanceof TooManyPasswordChecks)
			throw new ApiError(errors.tooManyPasswords, {
				detail: "Try again in some seconds.",
				cause: error,
			});
		throw error;
	}
}

function refuseBesideNoPassword(
	password: string | undefined,
	mustChangePassword: boolean | undefined,
): void {
	if (password !== undefined)
		throw invalidInput(
			"password_sign_in",
			"must not be false along with a password",
		);
	if (mustChangePassword)
		throw invalidInput(
			"must_change_password",
			"must not be true without a password",
		);
}

function refusePasswordOfNone(user: User, changes: UserChanges): void {
	if (user.password_hash !== NO_PASSWORD) return;
	if (changes.mustChangePassword)
		throw invalidInput(
			"must_change_password",
			"must not be true without a password",
		);
	if (changes.hasPassword)
		throw invalidInput(
			"password_sign_in",
			"must come with password or generate_password for a user who has no password",
		);
}

export function bit(flag: boolean): Bit {
	return flag ? 1 : 0;
}
