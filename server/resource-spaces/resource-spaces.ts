/** Resource spaces: what separates one maker's products from another's. Wire: `app_id`. */
import type { Selectable } from "kysely";
import { accessChanged } from "../access/access-version.ts";
import {
	admits,
	maySee,
	requireAction,
	type Scope,
} from "../access/permissions.ts";
import { type Db, inTransaction, lockForUpdate } from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { instant, type ResourceSpaceRow } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";

export type ResourceSpace = Selectable<ResourceSpaceRow>;

const SPACES_PER_PROJECT = 10;

/**
 * The space a caller names, once he may act on it. Asked before existence, so that
 * somebody without the permission does not learn which spaces there are.
 *
 * @throws 403 IOTDA.000022 without the permission, 403 IOTDA.001000 when unknown
 */
export async function getResourceSpace(
	db: Db,
	scope: Scope,
	spaceId: string,
): Promise<ResourceSpace> {
	requireAction(scope, { appId: spaceId });
	const space = await db
		.selectFrom("resource_spaces")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.where("app_id", "=", spaceId)
		.executeTakeFirst();
	if (!space) throw new ApiError(errors.unknownSpace);
	return space;
}

/** The space named, or the default one where the vendor lets callers leave it out. */
export async function getSpaceOrDefault(
	db: Db,
	scope: Scope,
	spaceId: string | undefined,
): Promise<ResourceSpace> {
	if (spaceId !== undefined) return getResourceSpace(db, scope, spaceId);
	const space = await db
		.selectFrom("resource_spaces")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.where("is_default", "=", 1)
		.executeTakeFirst();
	if (!space) throw new ApiError(errors.unknownSpace);
	requireAction(scope, { appId: space.app_id });
	return space;
}

/**
 * Passes on an object that was found by its own id, if the caller may act on the
 * space it lies in. In a space he may not see it answers like one that does not
 * exist: undefined.
 *
 * @throws 403 IOTDA.000022 when he sees the space but may not do this there
 */
export function admitted<T extends { app_id: string }>(
	scope: Scope,
	found: T | undefined,
): T | undefined {
	return found && admits(scope, found.app_id) ? found : undefined;
}

/** Ids of the spaces whose objects lists may show; undefined: nothing is hidden. */
export async function visibleSpaceIds(
	db: Db,
	scope: Scope,
): Promise<string[] | undefined> {
	const spaces = await db
		.selectFrom("resource_spaces")
		.select("app_id")
		.where("project_id", "=", scope.projectId)
		.execute();
	const visible = spaces
		.map((space) => space.app_id)
		.filter((spaceId) => maySee(scope, spaceId));
	return visible.length === spaces.length ? undefined : visible;
}

/** Newest first. `isDefault` picks only the default space, or only the others. */
export async function listResourceSpaces(
	db: Db,
	scope: Scope,
	filter: { isDefault?: boolean },
): Promise<ResourceSpace[]> {
	let query = db
		.selectFrom("resource_spaces")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.orderBy("record_id", "desc");
	if (filter.isDefault !== undefined)
		query = query.where("is_default", "=", filter.isDefault ? 1 : 0);
	const spaces = await query.execute();
	return spaces.filter((space) => maySee(scope, space.app_id));
}

/**
 * A new space; names may repeat.
 *
 * @throws 403 IOTDA.001902 when the project has ten
 */
export async function createResourceSpace(
	db: Db,
	scope: Scope,
	input: { name: string },
	now: Date,
): Promise<ResourceSpace> {
	return inTransaction(db, async (trx) => {
		await lockProject(trx, scope.projectId);
		const { count } = await trx
			.selectFrom("resource_spaces")
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("project_id", "=", scope.projectId)
			.executeTakeFirstOrThrow();
		if (Number(count) >= SPACES_PER_PROJECT)
			throw new ApiError(errors.tooManySpaces, {
				detail: `At most ${SPACES_PER_PROJECT} are allowed.`,
			});
		await accessChanged(trx);
		return trx
			.insertInto("resource_spaces")
			.values({
				app_id: randomHex(16),
				record_id: newRecordId(now),
				project_id: scope.projectId,
				name: input.name,
				is_default: 0,
				created_at: instant(now),
			})
			.returningAll()
			.executeTakeFirstOrThrow();
	});
}

/** A missing name changes nothing. */
export async function updateResourceSpace(
	db: Db,
	scope: Scope,
	spaceId: string,
	changes: { name?: string },
): Promise<ResourceSpace> {
	return inTransaction(db, async (trx) => {
		const space = await getResourceSpace(trx, scope, spaceId);
		if (changes.name === undefined) return space;
		await trx
			.updateTable("resource_spaces")
			.set({ name: changes.name })
			.where("app_id", "=", spaceId)
			.execute();
		return { ...space, name: changes.name };
	});
}

/**
 * @throws 403 IOTDA.001901 for the default space, 403 IOTDA.001900 while it has
 * products
 */
export async function deleteResourceSpace(
	db: Db,
	scope: Scope,
	spaceId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const space = await getResourceSpace(trx, scope, spaceId);
		if (space.is_default) throw new ApiError(errors.defaultSpace);
		// Whoever creates a product in it holds the row for share, and is seen here.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("resource_spaces")
				.select("app_id")
				.where("app_id", "=", spaceId),
		).execute();
		const product = await trx
			.selectFrom("products")
			.select("product_key")
			.where("app_id", "=", spaceId)
			.limit(1)
			.executeTakeFirst();
		if (product) throw new ApiError(errors.spaceNotEmpty);
		const { numDeletedRows } = await trx
			.deleteFrom("resource_spaces")
			.where("app_id", "=", spaceId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.unknownSpace);
		await accessChanged(trx);
	});
}

/**
 * Makes those wait who count what the project has in order to keep to a limit.
 *
 * @throws 403 IOTDA.000022 when the project was deleted since the caller signed in
 */
export async function lockProject(trx: Db, projectId: string): Promise<void> {
	const project = await lockForUpdate(
		trx,
		trx
			.selectFrom("projects")
			.select("project_id")
			.where("project_id", "=", projectId),
	).executeTakeFirst();
	if (!project)
		throw new ApiError(errors.forbidden, {
			detail: "(the project of the path is not the caller's)",
		});
}
