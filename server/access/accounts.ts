/** Accounts, their users and projects. */
import type { ExpressionBuilder } from "kysely";
import type { Db } from "../database/database.ts";
import type { Tables } from "../database/tables.ts";
import { accessVersion } from "./access-version.ts";

/** Who a request comes from, whatever proved it. */
export interface Caller {
	accountId: string;
	accountName: string;
	userId: string;
	userName: string;
	isAdministrator: boolean;
	/**
	 * Signed in with a password that somebody else chose: until he has changed it, he may
	 * do nothing else. Programs that sign with a key of his are not held up.
	 */
	mustChangePassword: boolean;
	/** The number in `access_version`, of the same moment as the rest. */
	accessVersion: number;
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

/** Stands where a hash would: this user has no password, only keys. */
export const NO_PASSWORD = "none";

/** @returns with `passwordHash` undefined for one who has no password; nobody for a disabled user. */
export async function findUser(
	db: Db,
	query: UserQuery,
): Promise<(Caller & { passwordHash: string | undefined }) | undefined> {
	const { user, account } = query;
	let select = db
		.selectFrom("users")
		.innerJoin("accounts", "accounts.account_id", "users.account_id")
		.select([
			"users.user_id as userId",
			"users.name as userName",
			"users.password_hash as passwordHash",
			"users.is_administrator",
			"users.must_change_password",
			"accounts.account_id as accountId",
			"accounts.name as accountName",
			accessVersion,
		])
		.where("users.enabled", "=", 1);
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
	if (!row) return undefined;
	const { is_administrator, must_change_password, passwordHash, ...found } =
		row;
	return {
		...found,
		passwordHash: passwordHash === NO_PASSWORD ? undefined : passwordHash,
		isAdministrator: is_administrator === 1,
		mustChangePassword: must_change_password === 1,
	};
}

export async function findAccountId(
	db: Db,
	name: string,
): Promise<string | undefined> {
	const row = await db
		.selectFrom("accounts")
		.select("account_id")
		.where("name", "=", name)
		.executeTakeFirst();
	return row?.account_id;
}

/** The projects of an account, oldest first. */
export async function listProjects(
	db: Db,
	accountId: string,
): Promise<Project[]> {
	return db
		.selectFrom("projects")
		.select(["project_id as projectId", "account_id as accountId", "name"])
		.where("account_id", "=", accountId)
		.orderBy("created_at")
		.orderBy("project_id")
		.execute();
}

/**
 * The projects that the caller has any business in, oldest first; with a name those that
 * it stands for: the one so named, else for a region of this server the oldest. SDKs look
 * their project up by the region they were given.
 */
export async function listProjectsOf(
	db: Db,
	caller: Pick<Caller, "accountId" | "userId" | "isAdministrator">,
	{ name, regions }: { name?: string | undefined; regions: readonly string[] },
): Promise<Project[]> {
	const all = await listProjects(db, caller.accountId);
	const entered = caller.isAdministrator
		? undefined
		: await enteredProjects(db, caller);
	const own = all.filter(({ projectId }) => entered?.has(projectId) ?? true);
	if (name === undefined) return own;
	const named = own.filter((project) => project.name === name);
	return named.length > 0 || !regions.includes(name) ? named : own.slice(0, 1);
}

/** The projects that any grant of the user reaches; undefined: all. */
async function enteredProjects(
	db: Db,
	{ accountId, userId }: Pick<Caller, "accountId" | "userId">,
): Promise<Set<string> | undefined> {
	const scopes = await db
		.selectFrom("grants")
		.leftJoin("resource_spaces", (join) =>
			join
				.on("grants.scope_type", "=", "enterprise_project")
				.onRef("resource_spaces.enterprise_project_id", "=", "grants.scope_id"),
		)
		.select(["scope_type", "scope_id", "resource_spaces.project_id"])
		.distinct()
		.where(grantedTo({ accountId, userId }))
		.execute();
	if (scopes.some(({ scope_type }) => scope_type === "all")) return undefined;
	return new Set(
		scopes.flatMap(({ scope_type, scope_id, project_id }) =>
			scope_type === "project" ? [scope_id] : (project_id ?? []),
		),
	);
}

/** The grants of a user: his own, and those of his groups. */
export function grantedTo({
	accountId,
	userId,
}: Pick<Caller, "accountId" | "userId">) {
	return (eb: ExpressionBuilder<Tables, "grants">) =>
		eb.and([
			eb("grants.account_id", "=", accountId),
			eb.or([
				eb.and([
					eb("principal_type", "=", "user"),
					eb("principal_id", "=", userId),
				]),
				eb.and([
					eb("principal_type", "=", "group"),
					eb(
						"principal_id",
						"in",
						eb
							.selectFrom("user_group_members")
							.select("user_group_members.group_id")
							.where("user_group_members.user_id", "=", userId),
					),
				]),
			]),
		]);
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
