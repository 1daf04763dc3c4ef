/** User groups: grants go to them as a rule, and their members inherit. */
import type { Selectable, Updateable } from "kysely";
import { type Db, isUniqueViolation } from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import { instant, type UserGroupRow } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { changeAccess } from "./access-version.ts";
import type { Scope } from "./permissions.ts";
import { endTokens } from "./tokens.ts";
import { getUser, type User } from "./users.ts";

export type UserGroup = Selectable<UserGroupRow>;

/** @throws 404 IOTDA.015901 */
export async function getUserGroup(
	db: Db,
	scope: Scope,
	groupId: string,
): Promise<UserGroup> {
	const group = await db
		.selectFrom("user_groups")
		.selectAll()
		.where("group_id", "=", groupId)
		.where("account_id", "=", scope.accountId)
		.executeTakeFirst();
	if (!group) throw new ApiError(errors.unknownUserGroup);
	return group;
}

/** Newest first. */
export async function listUserGroups(
	db: Db,
	scope: Scope,
	filter: { name?: string | undefined },
	page: Page,
): Promise<PageResult<UserGroup>> {
	let query = db
		.selectFrom("user_groups")
		.selectAll()
		.where("account_id", "=", scope.accountId);
	if (filter.name !== undefined) query = query.where("name", "=", filter.name);
	return listPage(query, "user_groups.record_id", page);
}

/** @throws 400 IOTDA.015909 when the name is taken */
export async function createUserGroup(
	db: Db,
	scope: Scope,
	input: { name: string; description: string | null },
	now: Date,
): Promise<UserGroup> {
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, (trx) =>
			trx
				.insertInto("user_groups")
				.values({
					group_id: randomHex(16),
					record_id: newRecordId(now),
					account_id: scope.accountId,
					name: input.name,
					description: input.description,
					created_at: instant(now),
				})
				.returningAll()
				.executeTakeFirstOrThrow(),
		),
	);
}

/**
 * What is missing stays.
 *
 * @throws 404 IOTDA.015901, 400 IOTDA.015909
 */
export async function updateUserGroup(
	db: Db,
	scope: Scope,
	groupId: string,
	changes: { name?: string; description?: string | null },
): Promise<UserGroup> {
	const columns: Updateable<UserGroupRow> = changes;
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) => {
			const group = await getUserGroup(trx, scope, groupId);
			if (Object.keys(columns).length === 0) return group;
			return trx
				.updateTable("user_groups")
				.set(columns)
				.where("group_id", "=", groupId)
				.returningAll()
				.executeTakeFirstOrThrow();
		}),
	);
}

/**
 * With its grants. Its members are signed out.
 *
 * @throws 404 IOTDA.015901
 */
export async function deleteUserGroup(
	db: Db,
	scope: Scope,
	groupId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		await getUserGroup(trx, scope, groupId);
		await endTokens(trx, await memberIds(trx, groupId));
		await trx
			.deleteFrom("grants")
			.where("account_id", "=", scope.accountId)
			.where("principal_type", "=", "group")
			.where("principal_id", "=", groupId)
			.execute();
		await trx
			.deleteFrom("user_group_members")
			.where("group_id", "=", groupId)
			.execute();
		await trx
			.deleteFrom("user_groups")
			.where("group_id", "=", groupId)
			.execute();
	});
}

async function orNameTaken<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (isUniqueViolation(error, "user_groups_name"))
			throw new ApiError(errors.userGroupExists, { cause: error });
		throw error;
	}
}

// --- members ------------------------------------------------------------------------

export async function memberIds(db: Db, groupId: string): Promise<string[]> {
	const members = await db
		.selectFrom("user_group_members")
		.select("user_id")
		.where("group_id", "=", groupId)
		.execute();
	return members.map((member) => member.user_id);
}

/**
 * One who is in it already stays in it, and stays signed in.
 *
 * @throws 404 IOTDA.015901, 404 IOTDA.015900
 */
export async function addUserToGroup(
	db: Db,
	scope: Scope,
	groupId: string,
	userId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		await getUserGroup(trx, scope, groupId);
		await getUser(trx, scope, userId);
		const { numInsertedOrUpdatedRows } = await trx
			.insertInto("user_group_members")
			.values({ group_id: groupId, user_id: userId })
			.onConflict((conflict) =>
				conflict.columns(["group_id", "user_id"]).doNothing(),
			)
			.executeTakeFirst();
		if (numInsertedOrUpdatedRows) await endTokens(trx, [userId]);
	});
}

/** @throws 404 IOTDA.015901, 404 IOTDA.015900, 404 IOTDA.015907 for one who is not in it */
export async function removeUserFromGroup(
	db: Db,
	scope: Scope,
	groupId: string,
	userId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		await getUserGroup(trx, scope, groupId);
		await getUser(trx, scope, userId);
		const { numDeletedRows } = await trx
			.deleteFrom("user_group_members")
			.where("group_id", "=", groupId)
			.where("user_id", "=", userId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.notInUserGroup);
		await endTokens(trx, [userId]);
	});
}

/** Newest users first. @throws 404 IOTDA.015901 */
export async function listGroupUsers(
	db: Db,
	scope: Scope,
	groupId: string,
	page: Page,
): Promise<PageResult<User>> {
	await getUserGroup(db, scope, groupId);
	return listPage(
		db
			.selectFrom("users")
			.innerJoin(
				"user_group_members",
				"user_group_members.user_id",
				"users.user_id",
			)
			.selectAll("users")
			.where("user_group_members.group_id", "=", groupId),
		"users.record_id",
		page,
	);
}

/** Newest groups first. @throws 404 IOTDA.015900 */
export async function listGroupsOfUser(
	db: Db,
	scope: Scope,
	userId: string,
	page: Page,
): Promise<PageResult<UserGroup>> {
	await getUser(db, scope, userId);
	return listPage(groupsOf(db, userId), "user_groups.record_id", page);
}

/** All of them, by name. */
export async function groupsOfUser(
	db: Db,
	userId: string,
): Promise<UserGroup[]> {
	return groupsOf(db, userId).orderBy("name").execute();
}

function groupsOf(db: Db, userId: string) {
	return db
		.selectFrom("user_groups")
		.innerJoin(
			"user_group_members",
			"user_group_members.group_id",
			"user_groups.group_id",
		)
		.selectAll("user_groups")
		.where("user_group_members.user_id", "=", userId);
}
