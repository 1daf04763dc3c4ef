/** Accounts, their users and projects. */
import type { Db } from "../database/database.ts";

/** Who a request comes from, whatever proved it. */
export interface Caller {
	accountId: string;
	accountName: string;
	userId: string;
	userName: string;
	isAdministrator: boolean;
}

export interface Project {
	projectId: string;
	accountId: string;
	name: string;
}

/** A user by his id, or by his name in an account. */
export interface UserQuery {
	user: { name: string } | { id: string };
	/** Undefined only beside an id. */
	account: { name: string } | { id: string } | undefined;
}

export async function findUser(
	db: Db,
	query: UserQuery,
): Promise<(Caller & { passwordHash: string }) | undefined> {
	const { user, account } = query;
	let select = db
		.selectFrom("users")
		.innerJoin("accounts", "accounts.account_id", "users.account_id")
		.select([
			"users.user_id as userId",
			"users.name as userName",
			"users.password_hash as passwordHash",
			"users.is_administrator as isAdministrator",
			"accounts.account_id as accountId",
			"accounts.name as accountName",
		]);
	select =
		"id" in user
			? select.where("users.user_id", "=", user.id)
			: select.where("users.name", "=", user.name);
	if (account) {
		select =
			"id" in account
				? select.where("accounts.account_id", "=", account.id)
				: select.where("accounts.name", "=", account.name);
	}
	const row = await select.executeTakeFirst();
	return row && { ...row, isAdministrator: row.isAdministrator === 1 };
}

/** The projects of an account, oldest first; with `name` the one of that name. */
export async function listProjects(
	db: Db,
	accountId: string,
	name?: string,
): Promise<Project[]> {
	let select = db
		.selectFrom("projects")
		.select(["project_id as projectId", "account_id as accountId", "name"])
		.where("account_id", "=", accountId)
		.orderBy("created_at")
		.orderBy("project_id");
	if (name !== undefined) select = select.where("name", "=", name);
	return select.execute();
}

/**
 * The projects that a name stands for: the one so named, else for a region of this
 * server the oldest. SDKs look their project up by the region they were given.
 */
export async function listProjectsNamed(
	db: Db,
	accountId: string,
	name: string,
	regions: readonly string[],
): Promise<Project[]> {
	const named = await listProjects(db, accountId, name);
	if (named.length > 0 || !regions.includes(name)) return named;
	return (await listProjects(db, accountId)).slice(0, 1);
}

export async function findProject(
	db: Db,
	accountId: string,
	projectId: string,
): Promise<Project | undefined> {
	return db
		.selectFrom("projects")
		.select(["project_id as projectId", "account_id as accountId", "name"])
		.where("project_id", "=", projectId)
		.where("account_id", "=", accountId)
		.executeTakeFirst();
}
