/** Products: what all devices of one model have in common. */
import type { Selectable, SelectQueryBuilder, Updateable } from "kysely";
import { maySee, type Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type DownloadForm,
	instant,
	type ModuleForm,
	type ProductRow,
	type Tables,
	type TaskStatus,
} from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import {
	admitted,
	getResourceSpace,
	getSpaceOrDefault,
	lockProject,
	type ResourceSpace,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";

export type Product = Selectable<ProductRow> & { app_name: string };

const PRODUCTS_PER_PROJECT = 1000;

const isUnfinished: Readonly<Record<TaskStatus, boolean>> = {
	Initializing: true,
	Waitting: true,
	Processing: true,
	Stopping: true,
	Success: false,
	Fail: false,
	PartialSuccess: false,
	Stopped: false,
};
/** Of tasks that still send something to devices, or wait to. */
export const UNFINISHED = Object.entries(isUnfinished)
	.filter(([, unfinished]) => unfinished)
	.map(([status]) => status as TaskStatus);

/** What a caller may say about a product; null clears. */
export interface ProductTexts {
	name: string;
	deviceType: string;
	protocolType: string;
	dataFormat: string;
	manufacturerName: string | null;
	industry: string | null;
	description: string | null;
	/** JSON. */
	serviceCapabilities: string;
}

/** Which product is meant: `product_id` is unique only inside its space. */
export interface ProductName {
	spaceId: string | undefined;
	productId: string;
}

function selectProducts(
	db: Db,
): SelectQueryBuilder<Tables, "products" | "resource_spaces", Product> {
	return db
		.selectFrom("products")
		.innerJoin("resource_spaces", "resource_spaces.app_id", "products.app_id")
		.selectAll("products")
		.select("resource_spaces.name as app_name");
}

/**
 * @throws 400 IOTDA.013902 when the space has a product of this id, 403 IOTDA.013903
 * when the project has 1,000 products
 */
export async function createProduct(
	db: Db,
	scope: Scope,
	input: ProductTexts & {
		spaceId: string | undefined;
		productId: string | undefined;
	},
	now: Date,
): Promise<Product> {
	const productId = input.productId ?? randomHex(12);
	try {
		return await inTransaction(db, async (trx) => {
			const space = await holdSpace(
				trx,
				await getSpaceOrDefault(trx, scope, input.spaceId),
			);
			await lockProject(trx, scope.projectId);
			if (await findProduct(trx, space.app_id, productId))
				throw new ApiError(errors.productExists);
			const { count } = await trx
				.selectFrom("products")
				.select((eb) => eb.fn.countAll<number>().as("count"))
				.where("project_id", "=", scope.projectId)
				.executeTakeFirstOrThrow();
			if (Number(count) >= PRODUCTS_PER_PROJECT)
				throw new ApiError(errors.tooManyProducts, {
					detail: `At most ${PRODUCTS_PER_PROJECT} are allowed.`,
				});
			const row = await trx
				.insertInto("products")
				.values({
					product_key: newRecordId(now),
					project_id: scope.projectId,
					app_id: space.app_id,
					product_id: productId,
					...columnsOf(input),
					module_form: "none",
					download_form: "presigned",
					created_at: instant(now),
				})
				.returningAll()
				.executeTakeFirstOrThrow();
			return { ...row, app_name: space.name };
		});
	} catch (error) {
		if (isUniqueViolation(error, "products_space_product_id"))
			throw new ApiError(errors.productExists, { cause: error });
		throw error;
	}
}

/** Keeps the space from being deleted until the transaction ends. */
async function holdSpace(
	trx: Db,
	space: ResourceSpace,
): Promise<ResourceSpace> {
	const held = await lockForShare(
		trx,
		trx
			.selectFrom("resource_spaces")
			.select("app_id")
			.where("app_id", "=", space.app_id),
	).executeTakeFirst();
	if (!held) throw new ApiError(errors.unknownSpace);
	return space;
}

function columnsOf(texts: ProductTexts) {
	return {
		name: texts.name,
		device_type: texts.deviceType,
		protocol_type: texts.protocolType,
		data_format: texts.dataFormat,
		manufacturer_name: texts.manufacturerName,
		industry: texts.industry,
		description: texts.description,
		service_capabilities: texts.serviceCapabilities,
	};
}

/** The product of this id in a space that the caller was already admitted to. */
export async function findProduct(
	db: Db,
	spaceId: string,
	productId: string,
): Promise<Product | undefined> {
	return selectProducts(db)
		.where("products.app_id", "=", spaceId)
		.where("products.product_id", "=", productId)
		.executeTakeFirst();
}

/** Our keys of the products of this id that the caller may see: in one space, or in any. */
export async function findProductKeys(
	db: Db,
	scope: Scope,
	spaceId: string | undefined,
	productId: string,
): Promise<string[]> {
	let query = db
		.selectFrom("products")
		.select(["product_key", "app_id"])
		.where("project_id", "=", scope.projectId)
		.where("product_id", "=", productId);
	if (spaceId !== undefined) query = query.where("app_id", "=", spaceId);
	const products = await query.execute();
	return products
		.filter((product) => maySee(scope, product.app_id))
		.map((product) => product.product_key);
}

/**
 * The product that a body names, kept from being deleted until the transaction ends.
 *
 * @throws 400 IOTDA.013900 when the space has none of this id
 */
export async function holdProductNamed(
	trx: Db,
	spaceId: string,
	productId: string,
): Promise<Product> {
	const held = await lockForShare(
		trx,
		trx
			.selectFrom("products")
			.select("product_key")
			.where("app_id", "=", spaceId)
			.where("product_id", "=", productId),
	).executeTakeFirst();
	const product = held && (await findProduct(trx, spaceId, productId));
	if (!product)
		throw new ApiError(errors.unknownProductNamed, {
			detail: "product_id names no product of the application.",
		});
	return product;
}

/**
 * Without a space: the product of this id in the default space, else the oldest one
 * of any space.
 *
 * @throws 404 IOTDA.013900
 */
export async function getProduct(
	db: Db,
	scope: Scope,
	{ spaceId, productId }: ProductName,
): Promise<Product> {
	const space =
		spaceId === undefined
			? undefined
			: await getResourceSpace(db, scope, spaceId);
	let query = selectProducts(db)
		.where("products.project_id", "=", scope.projectId)
		.where("products.product_id", "=", productId)
		.orderBy("resource_spaces.is_default", "desc")
		.orderBy("products.product_key");
	if (space) query = query.where("products.app_id", "=", space.app_id);
	// At most one per space, and spaces are few.
	const found = await query.execute();
	const product = admitted(
		scope,
		found.find((row) => maySee(scope, row.app_id)),
	);
	if (!product) throw new ApiError(errors.unknownProduct);
	return product;
}

export async function listProducts(
	db: Db,
	scope: Scope,
	filter: { spaceId: string | undefined; name: string | undefined },
	page: Page,
): Promise<PageResult<Product>> {
	let query = selectProducts(db).where(
		"products.project_id",
		"=",
		scope.projectId,
	);
	if (filter.spaceId !== undefined) {
		const space = await getResourceSpace(db, scope, filter.spaceId);
		query = query.where("products.app_id", "=", space.app_id);
	} else {
		const visible = await visibleSpaceIds(db, scope);
		if (visible?.length === 0) return { items: [], page: { count: 0 } };
		if (visible) query = query.where("products.app_id", "in", visible);
	}
	if (filter.name !== undefined)
		query = query.where("products.name", "=", filter.name);
	return listPage(query, "products.product_key", page);
}

/**
 * What is missing stays as it is.
 *
 * @throws 404 IOTDA.013900, 403 IOTDA.013905 for a change of another protocol to CoAP
 */
export async function updateProduct(
	db: Db,
	scope: Scope,
	name: ProductName,
	changes: Partial<ProductTexts>,
): Promise<Product> {
	return inTransaction(db, async (trx) => {
		const product = await holdForUpdate(
			trx,
			await getProduct(trx, scope, name),
		);
		if (changes.protocolType === "CoAP" && product.protocol_type !== "CoAP")
			throw new ApiError(errors.protocolFixed);
		return change(trx, product, columnsGiven(changes));
	});
}

function columnsGiven(changes: Partial<ProductTexts>): Updateable<ProductRow> {
	const columns: Updateable<ProductRow> = {};
	if (changes.name !== undefined) columns.name = changes.name;
	if (changes.deviceType !== undefined)
		columns.device_type = changes.deviceType;
	if (changes.protocolType !== undefined)
		columns.protocol_type = changes.protocolType;
	if (changes.dataFormat !== undefined)
		columns.data_format = changes.dataFormat;
	if (changes.manufacturerName !== undefined)
		columns.manufacturer_name = changes.manufacturerName;
	if (changes.industry !== undefined) columns.industry = changes.industry;
	if (changes.description !== undefined)
		columns.description = changes.description;
	if (changes.serviceCapabilities !== undefined)
		columns.service_capabilities = changes.serviceCapabilities;
	return columns;
}

/** How the devices of a product take upgrades. */
export async function updateOtaProfile(
	db: Db,
	scope: Scope,
	name: ProductName,
	changes: { moduleForm?: ModuleForm; downloadForm?: DownloadForm },
): Promise<Product> {
	return inTransaction(db, async (trx) => {
		const product = await holdForUpdate(
			trx,
			await getProduct(trx, scope, name),
		);
		const columns: Updateable<ProductRow> = {};
		if (changes.moduleForm !== undefined)
			columns.module_form = changes.moduleForm;
		if (changes.downloadForm !== undefined)
			columns.download_form = changes.downloadForm;
		return change(trx, product, columns);
	});
}

async function change(
	trx: Db,
	product: Product,
	columns: Updateable<ProductRow>,
): Promise<Product> {
	if (Object.keys(columns).length === 0) return product;
	const row = await trx
		.updateTable("products")
		.set(columns)
		.where("product_key", "=", product.product_key)
		.returningAll()
		.executeTakeFirstOrThrow();
	return { ...row, app_name: product.app_name };
}

/** Locks the product's row; what was read before may be old, so it is read again. */
async function holdForUpdate(trx: Db, product: Product): Promise<Product> {
	const row = await lockForUpdate(
		trx,
		trx
			.selectFrom("products")
			.selectAll()
			.where("product_key", "=", product.product_key),
	).executeTakeFirst();
	if (!row) throw new ApiError(errors.unknownProduct);
	return { ...row, app_name: product.app_name };
}

/**
 * Removes the product with its modules and packages; the packages' files stay.
 *
 * @throws 404 IOTDA.013900, 403 IOTDA.013901 while it has devices, 403 IOTDA.013904
 * while an unfinished task uses it
 */
export async function deleteProduct(
	db: Db,
	scope: Scope,
	name: ProductName,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		// Whoever adds a device, a module or a package to the product holds its row for
		// share, so that nothing of the kind appears after these questions.
		const product = await holdForUpdate(
			trx,
			await getProduct(trx, scope, name),
		);
		const device = await trx
			.selectFrom("devices")
			.select("device_id")
			.where("product_key", "=", product.product_key)
			.limit(1)
			.executeTakeFirst();
		if (device) throw new ApiError(errors.productHasDevices);
		// Whoever makes a task holds its packages for share: wait for him, then look.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("packages")
				.select("package_id")
				.where("product_key", "=", product.product_key)
				.orderBy("package_id"),
		).execute();
		const task = await trx
			.selectFrom("upgrade_tasks")
			.select("task_id")
			.where("project_id", "=", product.project_id)
			.where("product_key", "=", product.product_key)
			.where("status", "in", UNFINISHED)
			.limit(1)
			.executeTakeFirst();
		if (task) throw new ApiError(errors.productInTask);
		await trx
			.deleteFrom("packages")
			.where("product_key", "=", product.product_key)
			.execute();
		await trx
			.deleteFrom("ota_modules")
			.where("product_key", "=", product.product_key)
			.execute();
		await trx
			.deleteFrom("products")
			.where("product_key", "=", product.product_key)
			.execute();
	});
}
