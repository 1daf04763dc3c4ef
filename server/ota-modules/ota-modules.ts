/** OTA modules: the separately upgradable parts of a product's devices. */
import type { Selectable, SelectQueryBuilder, Updateable } from "kysely";
import type { Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import { instant, type OtaModuleRow, type Tables } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { holdProductNamed } from "../products/products.ts";
import {
	admitted,
	getResourceSpace,
} from "../resource-spaces/resource-spaces.ts";

/** The product's id and name are those of now, not of the module's creation. */
export type OtaModule = Selectable<OtaModuleRow> & {
	product_id: string;
	product_name: string;
};

/** Also what the store itself holds to: a slot is 1 to 10 and taken once per product. */
const MODULES_PER_PRODUCT = 10;

function selectModules(
	db: Db,
): SelectQueryBuilder<Tables, "ota_modules" | "products", OtaModule> {
	return db
		.selectFrom("ota_modules")
		.innerJoin("products", "products.product_key", "ota_modules.product_key")
		.selectAll("ota_modules")
		.select(["products.product_id", "products.name as product_name"]);
}

/**
 * @throws 400 IOTDA.013900 for a product that the space does not have, 400
 * IOTDA.014951 when the product has a module of this name, 403 IOTDA.014952 when it
 * has ten
 */
export async function createOtaModule(
	db: Db,
	scope: Scope,
	input: {
		spaceId: string;
		productId: string;
		moduleName: string;
		aliasName: string | null;
		description: string | null;
	},
	now: Date,
): Promise<OtaModule> {
	for (;;) {
		try {
			return await inTransaction(db, async (trx) => {
				const space = await getResourceSpace(trx, scope, input.spaceId);
				const product = await holdProductNamed(
					trx,
					space.app_id,
					input.productId,
				);
				const row = await trx
					.insertInto("ota_modules")
					.values({
						module_id: randomHex(16),
						record_id: newRecordId(now),
						project_id: scope.projectId,
						app_id: space.app_id,
						product_key: product.product_key,
						module_name: input.moduleName,
						alias_name: input.aliasName,
						description: input.description,
						slot: await freeSlot(trx, product.product_key, input.moduleName),
						created_at: instant(now),
					})
					.returningAll()
					.executeTakeFirstOrThrow();
				return {
					...row,
					product_id: product.product_id,
					product_name: product.name,
				};
			});
		} catch (error) {
			if (isUniqueViolation(error, "ota_modules_name"))
				throw new ApiError(errors.moduleExists, { cause: error });
			// Somebody else took the slot in the meantime. Each time round he has filled
			// one of the ten, so this ends.
			if (!isUniqueViolation(error, "ota_modules_slot")) throw error;
		}
	}
}

/** The lowest slot of the product that no module has. */
async function freeSlot(
	trx: Db,
	productKey: string,
	moduleName: string,
): Promise<number> {
	const modules = await trx
		.selectFrom("ota_modules")
		.select(["module_name", "slot"])
		.where("product_key", "=", productKey)
		.execute();
	if (modules.some((module) => module.module_name === moduleName))
		throw new ApiError(errors.moduleExists);
	const taken = new Set(modules.map((module) => module.slot));
	for (let slot = 1; slot <= MODULES_PER_PRODUCT; slot++)
		if (!taken.has(slot)) return slot;
	throw new ApiError(errors.tooManyModules, {
		detail: `At most ${MODULES_PER_PRODUCT} are allowed.`,
	});
}

/** @throws 404 IOTDA.014950 */
export async function getOtaModule(
	db: Db,
	scope: Scope,
	moduleId: string,
): Promise<OtaModule> {
	const module = admitted(
		scope,
		await selectModules(db)
			.where("ota_modules.module_id", "=", moduleId)
			.where("ota_modules.project_id", "=", scope.projectId)
			.executeTakeFirst(),
	);
	if (!module) throw new ApiError(errors.unknownModule);
	return module;
}

/** The modules of a space, or of one product in it. An unknown product has none. */
export async function listOtaModules(
	db: Db,
	scope: Scope,
	filter: { spaceId: string; productId: string | undefined },
	page: Page,
): Promise<PageResult<OtaModule>> {
	const space = await getResourceSpace(db, scope, filter.spaceId);
	let query = selectModules(db).where("ota_modules.app_id", "=", space.app_id);
	if (filter.productId !== undefined)
		query = query.where("products.product_id", "=", filter.productId);
	return listPage(query, "ota_modules.record_id", page);
}

/**
 * What is missing stays, null clears. The name is what devices and packages know a
 * module by and never changes.
 *
 * @throws 404 IOTDA.014950
 */
export async function updateOtaModule(
	db: Db,
	scope: Scope,
	moduleId: string,
	changes: { aliasName?: string | null; description?: string | null },
): Promise<OtaModule> {
	return inTransaction(db, async (trx) => {
		const module = await getOtaModule(trx, scope, moduleId);
		const columns: Updateable<OtaModuleRow> = {};
		if (changes.aliasName !== undefined) columns.alias_name = changes.aliasName;
		if (changes.description !== undefined)
			columns.description = changes.description;
		if (Object.keys(columns).length === 0) return module;
		const row = await trx
			.updateTable("ota_modules")
			.set(columns)
			.where("module_id", "=", moduleId)
			.returningAll()
			.executeTakeFirst();
		if (!row) throw new ApiError(errors.unknownModule);
		return { ...module, ...row };
	});
}

/**
 * @throws 404 IOTDA.014950, 403 IOTDA.014953 while packages name the module: they
 * point at it by name, and a module created anew under that name would inherit them
 */
export async function deleteOtaModule(
	db: Db,
	scope: Scope,
	moduleId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const module = await getOtaModule(trx, scope, moduleId);
		await lockForUpdate(
			trx,
			trx
				.selectFrom("ota_modules")
				.select("module_id")
				.where("module_id", "=", moduleId),
		).execute();
		const used = await trx
			.selectFrom("packages")
			.select("package_id")
			.where("product_key", "=", module.product_key)
			.where("package_type", "=", "modulePackage")
			.where("module_name", "=", module.module_name)
			.limit(1)
			.executeTakeFirst();
		if (used) throw new ApiError(errors.moduleInUse);
		const { numDeletedRows } = await trx
			.deleteFrom("ota_modules")
			.where("module_id", "=", moduleId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.unknownModule);
	});
}

/**
 * Makes sure that the product has this module and keeps it from being deleted until
 * the transaction ends.
 *
 * @throws 400 IOTDA.014950
 */
export async function holdModuleNamed(
	trx: Db,
	productKey: string,
	moduleName: string,
): Promise<void> {
	const held = await lockForShare(
		trx,
		trx
			.selectFrom("ota_modules")
			.select("module_id")
			.where("product_key", "=", productKey)
			.where("module_name", "=", moduleName),
	).executeTakeFirst();
	if (!held)
		throw new ApiError(errors.unknownModuleNamed, {
			detail: "module_name names no module of the product.",
		});
}
