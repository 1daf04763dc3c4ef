/** Grants: what gives a user or a user group the rights of a policy, and where. */
import type { Selectable } from "kysely";
import { type Db, isUniqueViolation } from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type GrantRow,
	type GrantScopeType,
	instant,
	type PrincipalType,
} from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { changeAccess } from "./access-version.ts";
import { findProject } from "./accounts.ts";
import { findEnterpriseProject } from "./enterprise-projects.ts";
import type { Scope } from "./permissions.ts";
import { findSystemPolicy } from "./policies.ts";
import { endTokens } from "./tokens.ts";
import { memberIds } from "./user-groups.ts";

/** With the names that people know the ids by. */
export type Grant = Selectable<GrantRow> & {
	policyName: string;
	principalName: string;
	/** Undefined for `all`. */
	scopeName: string | undefined;
};

export interface GrantFilter {
	policyId?: string | undefined;
	principalType?: PrincipalType | undefined;
	principalId?: string | undefined;
	scopeType?: GrantScopeType | undefined;
	scopeId?: string | undefined;
}

/** Newest first. */
export async function listGrants(
	db: Db,
	scope: Scope,
	filter: GrantFilter,
	page: Page,
): Promise<PageResult<Grant>> {
	let query = grantsWithNames(db, scope);
	if (filter.policyId !== undefined)
		query = query.where("grants.policy_id", "=", filter.policyId);
	if (filter.principalType !== undefined)
		query = query.where("grants.principal_type", "=", filter.principalType);
	if (filter.principalId !== undefined)
		query = query.where("grants.principal_id", "=", filter.principalId);
	if (filter.scopeType !== undefined)
		query = query.where("grants.scope_type", "=", filter.scopeType);
	if (filter.scopeId !== undefined)
		query = query.where("grants.scope_id", "=", filter.scopeId);
	const { items, page: pageInfo } = await listPage(
		query,
		"grants.record_id",
		page,
	);
	return { items: items.map(named), page: pageInfo };
}

/** @throws 404 IOTDA.015903 */
export async function getGrant(
	db: Db,
	scope: Scope,
	grantId: string,
): Promise<Grant> {
	const row = await grantsWithNames(db, scope)
		.where("grants.grant_id", "=", grantId)
		.executeTakeFirst();
	if (!row) throw new ApiError(errors.unknownGrant);
	return named(row);
}

/**
 * Whom it concerns is signed out.
 *
 * @throws 400 IOTDA.000006 naming the field that names nothing of the account, 400
 * IOTDA.015911 when there is the same grant already
 */
export async function createGrant(
	db: Db,
	scope: Scope,
	input: {
		policyId: string;
		principalType: PrincipalType;
		principalId: string;
		scopeType: GrantScopeType;
		/** Undefined for `all`, and only there. */
		scopeId: string | undefined;
	},
	now: Date,
): Promise<Grant> {
	const grantId = randomHex(16);
	try {
		return await changeAccess(db, scope.accountId, async (trx) => {
			await requirePolicy(trx, scope, input.policyId);
			await requirePrincipal(trx, scope, input);
			await requireScope(trx, scope, input);
			await trx
				.insertInto("grants")
				.values({
					grant_id: grantId,
					record_id: newRecordId(now),
					account_id: scope.accountId,
					policy_id: input.policyId,
					principal_type: input.principalType,
					principal_id: input.principalId,
					scope_type: input.scopeType,
					scope_id: input.scopeId ?? "",
					created_at: instant(now),
				})
				.execute();
			const grant = await getGrant(trx, scope, grantId);
			await endTokens(trx, await holders(trx, grant));
			return grant;
		});
	} catch (error) {
		if (isUniqueViolation(error, "grants_identity"))
			throw new ApiError(errors.grantExists, { cause: error });
		throw error;
	}
}

/**
 * Whom it concerned is signed out.
 *
 * @throws 404 IOTDA.015903
 */
export async function deleteGrant(
	db: Db,
	scope: Scope,
	grantId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		const grant = await getGrant(trx, scope, grantId);
		await trx.deleteFrom("grants").where("grant_id", "=", grantId).execute();
		await endTokens(trx, await holders(trx, grant));
	});
}

/** Removes what was granted in a project that goes; whom it concerned is signed out. */
export async function deleteGrantsOfProject(
	trx: Db,
	accountId: string,
	projectId: string,
): Promise<void> {
	const grants = await trx
		.deleteFrom("grants")
		.where("account_id", "=", accountId)
		.where("scope_type", "=", "project")
		.where("scope_id", "=", projectId)
		.returning(["principal_type", "principal_id"])
		.execute();
	for (const grant of grants) await endTokens(trx, await holders(trx, grant));
}

async function holders(
	trx: Db,
	grant: Pick<Grant, "principal_type" | "principal_id">,
): Promise<string[]> {
	switch (grant.principal_type) {
		case "user":
			return [grant.principal_id];
		case "group":
			return memberIds(trx, grant.principal_id);
		default:
			return grant.principal_type satisfies never;
	}
}

function grantsWithNames(db: Db, scope: Scope) {
	return db
		.selectFrom("grants")
		.leftJoin("policies", "policies.policy_id", "grants.policy_id")
		.leftJoin("users", (join) =>
			join
				.onRef("users.user_id", "=", "grants.principal_id")
				.on("grants.principal_type", "=", "user"),
		)
		.leftJoin("user_groups", (join) =>
			join
				.onRef("user_groups.group_id", "=", "grants.principal_id")
				.on("grants.principal_type", "=", "group"),
		)
		.leftJoin("projects", (join) =>
			join
				.onRef("projects.project_id", "=", "grants.scope_id")
				.on("grants.scope_type", "=", "project"),
		)
		.leftJoin("enterprise_projects", (join) =>
			join
				.onRef(
					"enterprise_projects.enterprise_project_id",
					"=",
					"grants.scope_id",
				)
				.on("grants.scope_type", "=", "enterprise_project"),
		)
		.selectAll("grants")
		.select([
			"policies.name as customPolicyName",
			"users.name as userName",
			"user_groups.name as groupName",
			"projects.name as projectName",
			"enterprise_projects.name as enterpriseProjectName",
		])
		.where("grants.account_id", "=", scope.accountId);
}

type GrantWithNames = Awaited<
	ReturnType<ReturnType<typeof grantsWithNames>["executeTakeFirstOrThrow"]>
>;

function named(row: GrantWithNames): Grant {
	const {
		customPolicyName,
		userName,
		groupName,
		projectName,
		enterpriseProjectName,
		...grant
	} = row;
	return {
		...grant,
		policyName:
			customPolicyName ??
			findSystemPolicy(grant.policy_id)?.name ??
			grant.policy_id,
		principalName: userName ?? groupName ?? grant.principal_id,
		scopeName: scopeNameOf(grant, projectName ?? enterpriseProjectName),
	};
}

function scopeNameOf(
	grant: Pick<Grant, "scope_type" | "scope_id">,
	found: string | null,
): string | undefined {
	switch (grant.scope_type) {
		case "all":
			return undefined;
		case "project":
			return found ?? grant.scope_id;
		case "enterprise_project":
			// The default one has no row.
			return found ?? "default";
		default:
			return grant.scope_type satisfies never;
	}
}

// --- what a grant names ----------------------------------------------------------------

async function requirePolicy(
	trx: Db,
	scope: Scope,
	policyId: string,
): Promise<void> {
	if (findSystemPolicy(policyId)) return;
	const policy = await trx
		.selectFrom("policies")
		.select("policy_id")
		.where("policy_id", "=", policyId)
		.where("account_id", "=", scope.accountId)
		.executeTakeFirst();
	if (!policy) throw invalidInput("policy_id", "must name a policy");
}

async function requirePrincipal(
	trx: Db,
	scope: Scope,
	principal: { principalType: PrincipalType; principalId: string },
): Promise<void> {
	const { principalType, principalId } = principal;
	const found =
		principalType === "user"
			? await trx
					.selectFrom("users")
					.select("user_id")
					.where("user_id", "=", principalId)
					.where("account_id", "=", scope.accountId)
					.executeTakeFirst()
			: await trx
					.selectFrom("user_groups")
					.select("group_id")
					.where("group_id", "=", principalId)
					.where("account_id", "=", scope.accountId)
					.executeTakeFirst();
	if (!found)
		throw invalidInput(
			"principal.id",
			`must name a ${principalType === "user" ? "user" : "user group"}`,
		);
}

async function requireScope(
	trx: Db,
	scope: Scope,
	where: { scopeType: GrantScopeType; scopeId: string | undefined },
): Promise<void> {
	const { scopeType, scopeId } = where;
	if (scopeType === "all") {
		if (scopeId !== undefined)
			throw invalidInput("scope.id", "must be left out for the type all");
		return;
	}
	if (scopeId === undefined)
		throw invalidInput("scope.id", `is required for the type ${scopeType}`);
	switch (scopeType) {
		case "project":
			if (!(await findProject(trx, scope.accountId, scopeId)))
				throw invalidInput("scope.id", "must name a project");
			break;
		case "enterprise_project":
			if (!(await findEnterpriseProject(trx, scope.accountId, scopeId)))
				throw invalidInput("scope.id", "must name an enterprise project");
			break;
		default:
			scopeType satisfies never;
	}
}
