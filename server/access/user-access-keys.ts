/** The access keys of a user, as those see them who manage them. */
import type { Selectable, Updateable } from "kysely";
import type { Clock, Db } from "../database/database.ts";
import type { AccessKeyRow } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import type { Sealed } from "../secrets/sealed.ts";
import {
	type AccessKeyPair,
	addAccessKey,
	newAccessKeyPair,
} from "./access-keys.ts";
import { changeAccess } from "./access-version.ts";
import type { Scope } from "./permissions.ts";
import { endTokens } from "./tokens.ts";
import {
	bit,
	getUser,
	lockUser,
	refuseLockOut,
	requireMayChange,
	type User,
} from "./users.ts";

/** Without the secret, even the encrypted one. */
export type UserAccessKey = Omit<Selectable<AccessKeyRow>, "secret_sealed">;

/** As many as it takes to replace one without an interruption. */
const KEYS_PER_USER = 2;

const columns = [
	"access_key",
	"user_id",
	"description",
	"enabled",
	"last_used_at",
	"created_at",
] as const;

/**
 * A new key ends nothing: what works goes on working until the old one is deleted.
 *
 * @throws 404 IOTDA.015900, 403 IOTDA.015915 when the user has two, 403 IOTDA.000022 for
 * an administrator's, unless the caller is one, 403 IOTDA.015924 for his own while he
 * must change his password
 */
export async function createUserAccessKey(
	db: Db,
	scope: Scope,
	sealed: Sealed,
	userId: string,
	input: { description: string | null },
	now: Clock,
): Promise<UserAccessKey & Pick<AccessKeyPair, "secretKey">> {
	const pair = newAccessKeyPair();
	return changeAccess(db, scope.accountId, async (trx) => {
		const user = await lockUser(trx, scope, userId);
		requireMayChange(scope, user);
		refuseWayAround(scope, user);
		const { count } = await trx
			.selectFrom("access_keys")
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("user_id", "=", userId)
			.executeTakeFirstOrThrow();
		if (Number(count) >= KEYS_PER_USER)
			throw new ApiError(errors.tooManyAccessKeys, {
				detail: `At most ${KEYS_PER_USER} are allowed, disabled ones included.`,
			});
		await addAccessKey(trx, sealed, userId, pair, now, input.description);
		const key = await getUserAccessKey(trx, userId, pair.accessKey);
		return { ...key, secretKey: pair.secretKey };
	});
}

/**
 * Whether a Deny counts for what everybody may do without a grant. It does for his own
 * keys, which outlive any token; looking, and choosing another password, stay open.
 */
export function heedsDenials({
	action,
	level,
}: Pick<Scope, "action" | "level">): boolean {
	return (
		level !== "List" && level !== "Read" && action !== "iam:me:changePassword"
	);
}

/** @throws 403 IOTDA.000022 when a policy of the caller denies what he does to himself */
export function refuseDenied(scope: Scope): void {
	const { action, level, rights } = scope;
	if (!heedsDenials(scope)) return;
	if (rights.decide(action, level, "instance").because === "denied")
		throw new ApiError(errors.forbidden, { detail: `(${action})` });
}

/** A key would let him go on without ever choosing a password of his own. */
function refuseWayAround(scope: Scope, user: User): void {
	if (user.user_id === scope.userId && user.must_change_password === 1)
		throw new ApiError(errors.passwordMustChange);
}

/** Oldest first. */
export async function listUserAccessKeys(
	db: Db,
	scope: Scope,
	userId: string,
): Promise<UserAccessKey[]> {
	await getUser(db, scope, userId);
	return db
		.selectFrom("access_keys")
		.select(columns)
		.where("user_id", "=", userId)
		.orderBy("created_at")
		.orderBy("access_key")
		.execute();
}

/**
 * What is missing stays. Who loses a key that was enabled is signed out besides.
 *
 * @throws 404 IOTDA.015900, 404 IOTDA.015904, 403 IOTDA.000022, 403 IOTDA.015914
 */
export async function updateUserAccessKey(
	db: Db,
	scope: Scope,
	userId: string,
	accessKey: string,
	changes: { description?: string | null; isEnabled?: boolean },
): Promise<UserAccessKey> {
	const set: Updateable<AccessKeyRow> = {};
	if (changes.description !== undefined) set.description = changes.description;
	if (changes.isEnabled !== undefined) set.enabled = bit(changes.isEnabled);
	return changeAccess(db, scope.accountId, async (trx) => {
		const user = await lockUser(trx, scope, userId);
		requireMayChange(scope, user);
		const before = await getUserAccessKey(trx, userId, accessKey);
		if (Object.keys(set).length === 0) return before;
		// One that was disabled before he had to change it is no way around either.
		if (changes.isEnabled && before.enabled === 0) refuseWayAround(scope, user);
		await trx
			.updateTable("access_keys")
			.set(set)
			.where("access_key", "=", accessKey)
			.execute();
		const after = await getUserAccessKey(trx, userId, accessKey);
		if (after.enabled < before.enabled) await endTokens(trx, [userId]);
		await refuseLockOut(trx, scope.accountId);
		return after;
	});
}

/** @throws 404 IOTDA.015900, 404 IOTDA.015904, 403 IOTDA.000022, 403 IOTDA.015914 */
export async function deleteUserAccessKey(
	db: Db,
	scope: Scope,
	userId: string,
	accessKey: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		requireMayChange(scope, await lockUser(trx, scope, userId));
		await getUserAccessKey(trx, userId, accessKey);
		await trx
			.deleteFrom("access_keys")
			.where("access_key", "=", accessKey)
			.execute();
		await endTokens(trx, [userId]);
		await refuseLockOut(trx, scope.accountId);
	});
}

async function getUserAccessKey(
	db: Db,
	userId: string,
	accessKey: string,
): Promise<UserAccessKey> {
	const key = await db
		.selectFrom("access_keys")
		.select(columns)
		.where("user_id", "=", userId)
		.where("access_key", "=", accessKey)
		.executeTakeFirst();
	if (!key) throw new ApiError(errors.unknownAccessKey);
	return key;
}
