/**
 * Enterprise projects: what resource spaces are sorted into, across projects, so that
 * grants and policies can speak of several at once. And what policies see of a space.
 */
import { randomUUID } from "node:crypto";
import type { Selectable, Updateable } from "kysely";
import { type Db, isUniqueViolation } from "../database/database.ts";
import { newRecordId } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type EnterpriseProjectRow,
	fromInstant,
	instant,
	type ResourceSpaceRow,
} from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { changeAccess } from "./access-version.ts";
import { requireAction, type Scope } from "./permissions.ts";

export interface EnterpriseProject {
	enterpriseProjectId: string;
	name: string;
	description: string | null;
	/** Undefined for the default one. */
	createdAt: Date | undefined;
}

/** Every account has it, without a row; what was sorted into no other is in it. */
const DEFAULT: EnterpriseProject = {
	enterpriseProjectId: "0",
	name: "default",
	description: null,
	createdAt: undefined,
};
/** Below that of every row: the last of a list that begins with the newest. */
const DEFAULT_RECORD_ID = "1".padStart(24, "0");

export async function findEnterpriseProject(
	db: Db,
	accountId: string,
	enterpriseProjectId: string,
): Promise<EnterpriseProject | undefined> {
	if (enterpriseProjectId === DEFAULT.enterpriseProjectId) return DEFAULT;
	const row = await db
		.selectFrom("enterprise_projects")
		.selectAll()
		.where("enterprise_project_id", "=", enterpriseProjectId)
		.where("account_id", "=", accountId)
		.executeTakeFirst();
	return row && fromRow(row);
}

/** @throws 404 IOTDA.015906 */
export async function getEnterpriseProject(
	db: Db,
	scope: Scope,
	enterpriseProjectId: string,
): Promise<EnterpriseProject> {
	const found = await findEnterpriseProject(
		db,
		scope.accountId,
		enterpriseProjectId,
	);
	if (!found) throw new ApiError(errors.unknownEnterpriseProject);
	return found;
}

/** Newest first, the default one last. */
export async function listEnterpriseProjects(
	db: Db,
	scope: Scope,
	page: Page,
): Promise<PageResult<EnterpriseProject>> {
	const query = db
		.selectFrom("enterprise_projects")
		.selectAll()
		.where("account_id", "=", scope.accountId);
	const { items, page: info } = await listPage(
		query,
		"enterprise_projects.record_id",
		page,
	);
	const { after } = await query
		.clearSelect()
		.select((eb) => eb.fn.countAll<number>().as("after"))
		.where("record_id", "<", page.marker)
		.executeTakeFirstOrThrow();
	const hasDefault =
		items.length < page.limit &&
		page.marker > DEFAULT_RECORD_ID &&
		page.offset <= Number(after);
	const marker = hasDefault ? DEFAULT_RECORD_ID : info.marker;
	return {
		items: [...items.map(fromRow), ...(hasDefault ? [DEFAULT] : [])],
		page: {
			count: info.count + 1,
			...(marker === undefined ? {} : { marker }),
		},
	};
}

/** @throws 400 IOTDA.015913 when the name is taken */
export async function createEnterpriseProject(
	db: Db,
	scope: Scope,
	input: { name: string; description: string | null },
	now: Date,
): Promise<EnterpriseProject> {
	refuseDefaultName(input.name);
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) =>
			fromRow(
				await trx
					.insertInto("enterprise_projects")
					.values({
						enterprise_project_id: randomUUID(),
						record_id: newRecordId(now),
						account_id: scope.accountId,
						name: input.name,
						description: input.description,
						created_at: instant(now),
					})
					.returningAll()
					.executeTakeFirstOrThrow(),
			),
		),
	);
}

/**
 * What is missing stays.
 *
 * @throws 404 IOTDA.015906, 403 IOTDA.015921 for the default one, 400 IOTDA.015913
 */
export async function updateEnterpriseProject(
	db: Db,
	scope: Scope,
	enterpriseProjectId: string,
	changes: { name?: string; description?: string | null },
): Promise<EnterpriseProject> {
	refuseDefault(enterpriseProjectId);
	if (changes.name !== undefined) refuseDefaultName(changes.name);
	const columns: Updateable<EnterpriseProjectRow> = changes;
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) => {
			const before = await getEnterpriseProject(
				trx,
				scope,
				enterpriseProjectId,
			);
			if (Object.keys(columns).length === 0) return before;
			return fromRow(
				await trx
					.updateTable("enterprise_projects")
					.set(columns)
					.where("enterprise_project_id", "=", enterpriseProjectId)
					.returningAll()
					.executeTakeFirstOrThrow(),
			);
		}),
	);
}

/**
 * @throws 404 IOTDA.015906, 403 IOTDA.015921 for the default one, 403 IOTDA.015922 while
 * a resource space is in it or a grant names it
 */
export async function deleteEnterpriseProject(
	db: Db,
	scope: Scope,
	enterpriseProjectId: string,
): Promise<void> {
	refuseDefault(enterpriseProjectId);
	await changeAccess(db, scope.accountId, async (trx) => {
		await getEnterpriseProject(trx, scope, enterpriseProjectId);
		const spaces = await trx
			.selectFrom("resource_spaces")
			.innerJoin(
				"projects",
				"projects.project_id",
				"resource_spaces.project_id",
			)
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("projects.account_id", "=", scope.accountId)
			.where("enterprise_project_id", "=", enterpriseProjectId)
			.executeTakeFirstOrThrow();
		const grants = await trx
			.selectFrom("grants")
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("account_id", "=", scope.accountId)
			.where("scope_type", "=", "enterprise_project")
			.where("scope_id", "=", enterpriseProjectId)
			.executeTakeFirstOrThrow();
		if (Number(spaces.count) + Number(grants.count) > 0)
			throw new ApiError(errors.enterpriseProjectInUse, {
				detail: `Resource spaces in it: ${spaces.count}; grants on it: ${grants.count}.`,
			});
		await trx
			.deleteFrom("enterprise_projects")
			.where("enterprise_project_id", "=", enterpriseProjectId)
			.execute();
	});
}

function refuseDefault(enterpriseProjectId: string): void {
	if (enterpriseProjectId === DEFAULT.enterpriseProjectId)
		throw new ApiError(errors.defaultEnterpriseProject);
}

function refuseDefaultName(name: string): void {
	if (name === DEFAULT.name)
		throw new ApiError(errors.enterpriseProjectExists, {
			detail: "The default enterprise project has this name.",
		});
}

async function orNameTaken<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (isUniqueViolation(error, "enterprise_projects_name"))
			throw new ApiError(errors.enterpriseProjectExists, { cause: error });
		throw error;
	}
}

function fromRow(row: Selectable<EnterpriseProjectRow>): EnterpriseProject {
	return {
		enterpriseProjectId: row.enterprise_project_id,
		name: row.name,
		description: row.description,
		createdAt: fromInstant(row.created_at),
	};
}

// --- what policies see of a resource space ----------------------------------------------

export interface SpaceAccess {
	spaceId: string;
	enterpriseProject: EnterpriseProject;
	tags: Record<string, string>;
}

/** @throws 403 IOTDA.000022 without the permission, 403 IOTDA.001000 when unknown */
export async function getSpaceAccess(
	db: Db,
	scope: Scope,
	spaceId: string,
): Promise<SpaceAccess> {
	requireAction(scope, { appId: spaceId });
	const space = await db
		.selectFrom("resource_spaces")
		.select(["enterprise_project_id", "tags"])
		.where("app_id", "=", spaceId)
		.where("project_id", "=", scope.projectId)
		.executeTakeFirst();
	if (!space) throw new ApiError(errors.unknownSpace);
	return {
		spaceId,
		enterpriseProject: await getEnterpriseProject(
			db,
			scope,
			space.enterprise_project_id,
		),
		tags: JSON.parse(space.tags) as Record<string, string>,
	};
}

/**
 * What is missing stays; tags are replaced as a whole.
 *
 * @throws as `getSpaceAccess`; 400 IOTDA.000006 for an enterprise project that does not
 * exist
 */
export async function setSpaceAccess(
	db: Db,
	scope: Scope,
	spaceId: string,
	changes: { enterpriseProjectId?: string; tags?: Record<string, string> },
): Promise<SpaceAccess> {
	const { enterpriseProjectId, tags } = changes;
	const columns: Updateable<ResourceSpaceRow> = {};
	if (enterpriseProjectId !== undefined)
		columns.enterprise_project_id = enterpriseProjectId;
	if (tags !== undefined) columns.tags = JSON.stringify(tags);
	return changeAccess(db, scope.accountId, async (trx) => {
		const before = await getSpaceAccess(trx, scope, spaceId);
		if (
			enterpriseProjectId !== undefined &&
			!(await findEnterpriseProject(trx, scope.accountId, enterpriseProjectId))
		)
			throw invalidInput(
				"enterprise_project_id",
				"must name an enterprise project",
			);
		if (Object.keys(columns).length === 0) return before;
		// Allowed before and after: nobody moves a space to where he could do more with it.
		requireAction(scope, {
			appId: spaceId,
			as: {
				...(enterpriseProjectId !== undefined && { enterpriseProjectId }),
				...(tags && { tags }),
			},
		});
		await trx
			.updateTable("resource_spaces")
			.set(columns)
			.where("app_id", "=", spaceId)
			.where("project_id", "=", scope.projectId)
			.execute();
		return getSpaceAccess(trx, scope, spaceId);
	});
}
