import { projectParams, wireTime, withoutAbsent } from "../../wire/envelope.ts";
import {
	createPackage as createPackageBody,
	listPackagesQuery,
	type OtaPackage,
	otaPackage,
	type PackageItem,
	packageList,
	packageParams,
} from "../../wire/packages.ts";
import type { Http } from "../access/route.ts";
import type { PackagesConfig } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant } from "../database/tables.ts";
import {
	createPackage,
	deletePackage,
	getPackage,
	listPackages,
	type Package,
} from "./packages.ts";
import { readSourceVersions } from "./source-versions.ts";

const PACKAGES = "/v5/iot/:project_id/ota-upgrades/packages";

export function packageRoutes(
	http: Http,
	{ db, now, limits }: { db: Db; now: Clock; limits: PackagesConfig },
): void {
	http.post(
		PACKAGES,
		{
			config: { action: "iotda:otapackages:create", level: "Write" },
			schema: {
				operationId: "CreateOtaPackage",
				summary: "Create an upgrade package",
				tags: ["Upgrade packages"],

				params: projectParams,
				body: createPackageBody,
				response: { 201: otaPackage },
			},
		},
		async (request, reply) => {
			const { body } = request;
			const location = body.file_location.obs_location;
			const created = await createPackage(
				db,
				request.scope,
				{
					spaceId: body.app_id,
					productId: body.product_id,
					packageType: body.package_type,
					moduleName: body.module_name,
					version: body.version,
					sourceVersions: body.support_source_versions ?? [],
					description: body.description || null,
					customInfo: body.custom_info || null,
					regionName: location.region_name,
					bucketName: location.bucket_name,
					objectKey: location.object_key,
					sign: location.sign,
				},
				limits,
				now(),
			);
			return reply.code(201).send(toWire(created));
		},
	);

	http.get(
		PACKAGES,
		{
			config: { action: "iotda:otapackages:queryList", level: "List" },
			schema: {
				operationId: "ListOtaPackageInfo",
				summary: "List upgrade packages",
				tags: ["Upgrade packages"],

				params: projectParams,
				querystring: listPackagesQuery,
				response: { 200: packageList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listPackages(
				db,
				request.scope,
				{
					packageType: query.package_type,
					spaceId: query.app_id,
					productId: query.product_id,
					version: query.version,
				},
				readPage(query),
			);
			return { packages: items.map(toItem), page };
		},
	);

	http.get(
		`${PACKAGES}/:package_id`,
		{
			config: { action: "iotda:otapackages:query", level: "Read" },
			schema: {
				operationId: "ShowOtaPackage",
				summary: "Show an upgrade package",
				tags: ["Upgrade packages"],
				params: packageParams,
				response: { 200: otaPackage },
			},
		},
		async (request) =>
			toWire(await getPackage(db, request.scope, request.params.package_id)),
	);

	http.delete(
		`${PACKAGES}/:package_id`,
		{
			config: { action: "iotda:otapackages:delete", level: "Write" },
			schema: {
				operationId: "DeleteOtaPackage",
				summary: "Delete an upgrade package",
				tags: ["Upgrade packages"],
				params: packageParams,
			},
		},
		async (request, reply) => {
			await deletePackage(db, request.scope, request.params.package_id);
			return reply.code(204).send();
		},
	);
}

function toItem(row: Package): PackageItem {
	return withoutAbsent({
		package_id: row.package_id,
		app_id: row.app_id,
		package_type: row.package_type,
		product_id: row.product_id,
		product_name: row.product_name,
		module_name: row.module_name || undefined,
		version: row.version,
		support_source_versions: readSourceVersions(row.source_versions),
		description: row.description,
		custom_info: row.custom_info,
		create_time: wireTime(fromInstant(row.created_at)),
	});
}

function toWire(row: Package): OtaPackage {
	return {
		...toItem(row),
		file_location: {
			obs_location: {
				region_name: row.region_name,
				bucket_name: row.bucket_name,
				object_key: row.object_key,
				sign_method: "SHA256",
				sign: row.sign,
			},
		},
	};
}
