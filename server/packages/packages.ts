/** Upgrade packages: a file with a version, for the firmware, the software or one module. */
import type { Selectable, SelectQueryBuilder } from "kysely";
import { mayAlso, type Scope } from "../access/permissions.ts";
import { holdObject, type StoredObject } from "../artifacts/objects.ts";
import type { PackagesConfig } from "../config.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	instant,
	type PackageRow,
	type PackageType,
	type Tables,
} from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { holdModuleNamed } from "../ota-modules/ota-modules.ts";
import { holdProductNamed, UNFINISHED } from "../products/products.ts";
import {
	admitted,
	getResourceSpace,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import { sourceVersionSet, sourceVersionsText } from "./source-versions.ts";

/** The product's id and name are those of now. */
export type Package = Selectable<PackageRow> & {
	product_id: string;
	product_name: string;
};

export interface NewPackage {
	spaceId: string;
	productId: string;
	packageType: PackageType;
	/** Only of a `modulePackage`, and always of one. */
	moduleName: string | undefined;
	version: string;
	sourceVersions: readonly string[];
	description: string | null;
	customInfo: string | null;
	regionName: string;
	bucketName: string;
	objectKey: string;
	/** SHA-256 as 64 hex digits of either case; undefined: taken from the file. */
	sign: string | undefined;
}

function selectPackages(
	db: Db,
): SelectQueryBuilder<Tables, "packages" | "products", Package> {
	return db
		.selectFrom("packages")
		.innerJoin("products", "products.product_key", "packages.product_key")
		.selectAll("packages")
		.select(["products.product_id", "products.name as product_name"]);
}

/**
 * What can be said about a package before anything is looked up.
 *
 * @throws 400 IOTDA.000006 for a module name where none belongs or a missing one, and
 * for a file of a kind that is not taken
 */
function checkPackage(
	input: Pick<NewPackage, "packageType" | "moduleName" | "objectKey">,
	limits: PackagesConfig,
): void {
	if (input.packageType === "modulePackage" && input.moduleName === undefined)
		throw invalidInput(
			"module_name",
			"is required when package_type is modulePackage",
		);
	if (input.packageType !== "modulePackage" && input.moduleName !== undefined)
		throw invalidInput(
			"module_name",
			"is allowed only when package_type is modulePackage",
		);
	const key = input.objectKey.toLowerCase();
	if (!limits.suffixes.some((suffix) => key.endsWith(suffix)))
		throw invalidInput(
			"file_location.obs_location.object_key",
			`must end in one of ${limits.suffixes.join(" ")}`,
		);
}

/**
 * @throws 400 for what `checkPackage` refuses, a product that the space does not have
 * (IOTDA.013900), a module that the product does not have (IOTDA.014950), a file that
 * is not there (IOTDA.014962), too large (IOTDA.000006) or not the one that the sign
 * belongs to (IOTDA.014963), and an exact repeat of product, type, module, version
 * and set of source versions (IOTDA.014961)
 */
export async function createPackage(
	db: Db,
	scope: Scope,
	input: NewPackage,
	limits: PackagesConfig,
	now: Date,
): Promise<Package> {
	checkPackage(input, limits);
	try {
		return await inTransaction(db, async (trx) => {
			const space = await getResourceSpace(trx, scope, input.spaceId);
			const product = await holdProductNamed(
				trx,
				space.app_id,
				input.productId,
			);
			if (input.moduleName !== undefined)
				await holdModuleNamed(trx, product.product_key, input.moduleName);
			const file = await holdFile(trx, scope, input, limits);
			const row = await trx
				.insertInto("packages")
				.values({
					package_id: randomHex(12),
					record_id: newRecordId(now),
					project_id: scope.projectId,
					app_id: space.app_id,
					product_key: product.product_key,
					package_type: input.packageType,
					module_name: input.moduleName ?? "",
					version: input.version,
					source_versions: sourceVersionsText(input.sourceVersions),
					source_version_set: sourceVersionSet(input.sourceVersions),
					description: input.description,
					custom_info: input.customInfo,
					region_name: input.regionName,
					bucket_name: input.bucketName,
					object_key: input.objectKey,
					sign: input.sign ?? file.sha256,
					sha256: file.sha256,
					size_bytes: file.sizeBytes,
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
		if (isUniqueViolation(error, "packages_identity"))
			throw new ApiError(errors.packageExists, { cause: error });
		throw error;
	}
}

/**
 * The file of a new package, held until the package is stored: who replaces or
 * deletes a file locks its row and asks for packages then, so either he finds this
 * package or this package finds no file.
 */
async function holdFile(
	trx: Db,
	scope: Scope,
	input: NewPackage,
	limits: PackagesConfig,
): Promise<StoredObject> {
	const file = await holdObject(
		trx,
		scope.projectId,
		input.bucketName,
		input.objectKey,
	);
	const fits = input.sign?.toLowerCase() === file?.sha256;
	// Files belong to the project, not to a resource space. Who may not read them all can
	// name one only by its hash, which proves that he has its bytes.
	const mayKnow =
		fits || mayAlso(scope, "otaru:objects:get", "Read", "instance");
	if (!file || !mayKnow)
		throw new ApiError(errors.packageFileMissing, {
			detail: mayKnow
				? "file_location.obs_location must name a bucket_name and object_key that were uploaded."
				: "file_location.obs_location must name a bucket_name and object_key that were uploaded, and its sign, the SHA-256 of the file, since otaru:objects:get is not granted.",
		});
	if (file.sizeBytes > limits.sizeLimitBytes)
		throw invalidInput(
			"file_location.obs_location.object_key",
			`must name a file of at most ${limits.sizeLimitBytes} bytes`,
		);
	if (input.sign !== undefined && !fits)
		throw new ApiError(errors.signMismatch, {
			detail:
				"file_location.obs_location.sign must be the SHA-256 of the file.",
		});
	return file;
}

/** @throws 404 IOTDA.014960 */
export async function getPackage(
	db: Db,
	scope: Scope,
	packageId: string,
): Promise<Package> {
	const found = admitted(
		scope,
		await selectPackages(db)
			.where("packages.package_id", "=", packageId)
			.where("packages.project_id", "=", scope.projectId)
			.executeTakeFirst(),
	);
	if (!found) throw new ApiError(errors.unknownPackage);
	return found;
}

export async function listPackages(
	db: Db,
	scope: Scope,
	filter: {
		packageType: PackageType;
		spaceId: string | undefined;
		productId: string | undefined;
		version: string | undefined;
	},
	page: Page,
): Promise<PageResult<Package>> {
	let query = selectPackages(db)
		.where("packages.project_id", "=", scope.projectId)
		.where("packages.package_type", "=", filter.packageType);
	if (filter.spaceId !== undefined) {
		const space = await getResourceSpace(db, scope, filter.spaceId);
		query = query.where("packages.app_id", "=", space.app_id);
	} else {
		const visible = await visibleSpaceIds(db, scope);
		if (visible?.length === 0) return { items: [], page: { count: 0 } };
		if (visible) query = query.where("packages.app_id", "in", visible);
	}
	if (filter.productId !== undefined)
		query = query.where("products.product_id", "=", filter.productId);
	if (filter.version !== undefined)
		query = query.where("packages.version", "=", filter.version);
	return listPage(query, "packages.record_id", page);
}

/**
 * Removes the record; the file stays.
 *
 * @throws 404 IOTDA.014960, 403 IOTDA.014964 while an unfinished task uses it
 */
export async function deletePackage(
	db: Db,
	scope: Scope,
	packageId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await getPackage(trx, scope, packageId);
		// Who makes a task of it holds the row for share.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("packages")
				.select("package_id")
				.where("package_id", "=", packageId),
		).execute();
		const task = await trx
			.selectFrom("upgrade_task_packages")
			.innerJoin(
				"upgrade_tasks",
				"upgrade_tasks.task_id",
				"upgrade_task_packages.task_id",
			)
			.select("upgrade_tasks.task_id")
			.where("upgrade_task_packages.package_id", "=", packageId)
			.where("upgrade_tasks.status", "in", UNFINISHED)
			.limit(1)
			.executeTakeFirst();
		if (task) throw new ApiError(errors.packageInTask);
		const { numDeletedRows } = await trx
			.deleteFrom("packages")
			.where("package_id", "=", packageId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.unknownPackage);
	});
}
