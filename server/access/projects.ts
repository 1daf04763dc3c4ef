/** Projects of an account: what the management API is addressed by. */
import {
	type Db,
	isUniqueViolation,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { fromInstant, instant } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { changeAccess } from "./access-version.ts";
import { deleteGrantsOfProject } from "./grants.ts";
import type { Scope } from "./permissions.ts";

export interface ManagedProject {
	projectId: string;
	name: string;
	/** Of its default resource space. */
	defaultSpaceId: string | undefined;
	createdAt: Date;
}

const PROJECTS_PER_ACCOUNT = 100;

/** All of them, oldest first. */
export async function listManagedProjects(
	db: Db,
	scope: Scope,
): Promise<ManagedProject[]> {
	const rows = await projects(db, scope)
		.orderBy("projects.created_at")
		.orderBy("projects.project_id")
		.execute();
	return rows.map(fromRow);
}

/** @throws 404 IOTDA.015905 */
export async function getManagedProject(
	db: Db,
	scope: Scope,
	projectId: string,
): Promise<ManagedProject> {
	const row = await projects(db, scope)
		.where("projects.project_id", "=", projectId)
		.executeTakeFirst();
	if (!row) throw new ApiError(errors.unknownProject);
	return fromRow(row);
}

function projects(db: Db, scope: Scope) {
	return db
		.selectFrom("projects")
		.leftJoin("resource_spaces", (join) =>
			join
				.onRef("resource_spaces.project_id", "=", "projects.project_id")
				.on("resource_spaces.is_default", "=", 1),
		)
		.select([
			"projects.project_id as projectId",
			"projects.name",
			"resource_spaces.app_id as defaultSpaceId",
			"projects.created_at as createdAt",
		])
		.where("projects.account_id", "=", scope.accountId);
}

function fromRow(row: {
	projectId: string;
	name: string;
	defaultSpaceId: string | null;
	createdAt: string;
}): ManagedProject {
	return {
		...row,
		defaultSpaceId: row.defaultSpaceId ?? undefined,
		createdAt: fromInstant(row.createdAt),
	};
}

/**
 * With a default resource space, as every project has one.
 *
 * @throws 400 IOTDA.015912 when the name is taken, 403 IOTDA.015920 when there are a
 * hundred
 */
export async function createProject(
	db: Db,
	scope: Scope,
	input: { name: string },
	now: Date,
): Promise<ManagedProject> {
	const projectId = randomHex(16);
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) => {
			if ((await countProjects(trx, scope)) >= PROJECTS_PER_ACCOUNT)
				throw new ApiError(errors.tooManyProjects, {
					detail: `At most ${PROJECTS_PER_ACCOUNT} are allowed.`,
				});
			await trx
				.insertInto("projects")
				.values({
					project_id: projectId,
					account_id: scope.accountId,
					name: input.name,
					created_at: instant(now),
				})
				.execute();
			await trx
				.insertInto("resource_spaces")
				.values({
					app_id: randomHex(16),
					record_id: newRecordId(now),
					project_id: projectId,
					name: "DefaultApp",
					is_default: 1,
					created_at: instant(now),
				})
				.execute();
			return getManagedProject(trx, scope, projectId);
		}),
	);
}

/** @throws 404 IOTDA.015905, 400 IOTDA.015912 when the name is taken */
export async function renameProject(
	db: Db,
	scope: Scope,
	projectId: string,
	name: string,
): Promise<ManagedProject> {
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) => {
			await getManagedProject(trx, scope, projectId);
			await trx
				.updateTable("projects")
				.set({ name })
				.where("project_id", "=", projectId)
				.execute();
			return getManagedProject(trx, scope, projectId);
		}),
	);
}

/**
 * With its resource spaces, the grants in it and the tokens for it. What would be left
 * behind where nobody could reach it any more keeps it: products, files, tasks, imports.
 *
 * @throws 404 IOTDA.015905, 403 IOTDA.015918 for the last one, 403 IOTDA.015919 while
 * there is something in it
 */
export async function deleteProject(
	db: Db,
	scope: Scope,
	projectId: string,
): Promise<void> {
	await changeAccess(db, scope.accountId, async (trx) => {
		await getManagedProject(trx, scope, projectId);
		if ((await countProjects(trx, scope)) <= 1)
			throw new ApiError(errors.lastProject);
		// Whoever creates something in a space or in the project holds one of these rows,
		// and is seen here.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("resource_spaces")
				.select("app_id")
				.where("project_id", "=", projectId),
		).execute();
		await lockForUpdate(
			trx,
			trx
				.selectFrom("projects")
				.select("project_id")
				.where("project_id", "=", projectId),
		).execute();
		await refuseContents(trx, projectId);
		await deleteGrantsOfProject(trx, scope.accountId, projectId);
		await trx
			.deleteFrom("tokens")
			.where("project_id", "=", projectId)
			.execute();
		await trx
			.deleteFrom("resource_spaces")
			.where("project_id", "=", projectId)
			.execute();
		await trx
			.deleteFrom("projects")
			.where("project_id", "=", projectId)
			.execute();
	});
}

async function countProjects(db: Db, scope: Scope): Promise<number> {
	const { count } = await db
		.selectFrom("projects")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("account_id", "=", scope.accountId)
		.executeTakeFirstOrThrow();
	return Number(count);
}

async function refuseContents(trx: Db, projectId: string): Promise<void> {
	const contents = [
		["products", "products"],
		["upgrade_tasks", "tasks"],
		["objects", "files"],
	] as const;
	const left: string[] = [];
	for (const [table, word] of contents) {
		const { count } = await trx
			.selectFrom(table)
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("project_id", "=", projectId)
			.executeTakeFirstOrThrow();
		if (Number(count) > 0) left.push(`${word}: ${count}`);
	}
	const imports = await trx
		.selectFrom("device_imports")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("project_id", "=", projectId)
		.where("deleted_at", "is", null)
		.executeTakeFirstOrThrow();
	if (Number(imports.count) > 0) left.push(`device imports: ${imports.count}`);
	if (left.length > 0)
		throw new ApiError(errors.projectNotEmpty, {
			detail: `There are still ${left.join(", ")}.`,
		});
}

async function orNameTaken<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (isUniqueViolation(error, "projects_name"))
			throw new ApiError(errors.projectExists, { cause: error });
		throw error;
	}
}
