import { projectParams, wireTime, withoutAbsent } from "../../wire/envelope.ts";
import {
	createOtaModule as createOtaModuleBody,
	listOtaModulesQuery,
	otaModule,
	otaModuleList,
	otaModuleParams,
	updateOtaModule as updateOtaModuleBody,
	type OtaModule as WireOtaModule,
} from "../../wire/ota-modules.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant } from "../database/tables.ts";
import {
	createOtaModule,
	deleteOtaModule,
	getOtaModule,
	listOtaModules,
	type OtaModule,
	updateOtaModule,
} from "./ota-modules.ts";

const MODULES = "/v5/iot/:project_id/ota-upgrades/modules";

export function otaModuleRoutes(
	http: Http,
	{ db, now }: { db: Db; now: Clock },
): void {
	http.post(
		MODULES,
		{
			config: { action: "iotda:otamodules:create", level: "Write" },
			schema: {
				operationId: "CreateOtaModule",
				summary: "Create an OTA module",
				tags: ["OTA modules"],

				params: projectParams,
				body: createOtaModuleBody,
				response: { 201: otaModule },
			},
		},
		async (request, reply) => {
			const { body } = request;
			const module = await createOtaModule(
				db,
				request.scope,
				{
					spaceId: body.app_id,
					productId: body.product_id,
					moduleName: body.module_name,
					aliasName: body.alias_name || null,
					description: body.description || null,
				},
				now(),
			);
			return reply.code(201).send(toWire(module));
		},
	);

	http.get(
		MODULES,
		{
			config: { action: "iotda:otamodules:queryList", level: "List" },
			schema: {
				operationId: "ListOtaModules",
				summary: "List OTA modules",
				tags: ["OTA modules"],

				params: projectParams,
				querystring: listOtaModulesQuery,
				response: { 200: otaModuleList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listOtaModules(
				db,
				request.scope,
				{ spaceId: query.app_id, productId: query.product_id },
				readPage(query),
			);
			return { modules: items.map(toWire), page };
		},
	);

	http.get(
		`${MODULES}/:module_id`,
		{
			config: { action: "iotda:otamodules:query", level: "Read" },
			schema: {
				operationId: "ShowOtaModule",
				summary: "Show an OTA module",
				tags: ["OTA modules"],
				params: otaModuleParams,
				response: { 200: otaModule },
			},
		},
		async (request) =>
			toWire(await getOtaModule(db, request.scope, request.params.module_id)),
	);

	http.put(
		`${MODULES}/:module_id`,
		{
			config: { action: "iotda:otamodules:update", level: "Write" },
			schema: {
				operationId: "UpdateOtaModule",
				summary: "Update an OTA module",
				tags: ["OTA modules"],

				params: otaModuleParams,
				body: updateOtaModuleBody,
				response: { 200: otaModule },
			},
		},
		async (request) => {
			const { alias_name, description } = request.body;
			const module = await updateOtaModule(
				db,
				request.scope,
				request.params.module_id,
				{
					...(alias_name !== undefined && { aliasName: alias_name || null }),
					...(description !== undefined && {
						description: description || null,
					}),
				},
			);
			return toWire(module);
		},
	);

	http.delete(
		`${MODULES}/:module_id`,
		{
			config: { action: "iotda:otamodules:delete", level: "Write" },
			schema: {
				operationId: "DeleteOtaModule",
				summary: "Delete an OTA module",
				tags: ["OTA modules"],
				params: otaModuleParams,
			},
		},
		async (request, reply) => {
			await deleteOtaModule(db, request.scope, request.params.module_id);
			return reply.code(204).send();
		},
	);
}

function toWire(module: OtaModule): WireOtaModule {
	return withoutAbsent({
		module_id: module.module_id,
		app_id: module.app_id,
		product_id: module.product_id,
		product_name: module.product_name,
		module_name: module.module_name,
		alias_name: module.alias_name,
		description: module.description,
		create_time: wireTime(fromInstant(module.created_at)),
	});
}
