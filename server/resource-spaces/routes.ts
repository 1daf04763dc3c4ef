import { projectParams, wireTime } from "../../wire/envelope.ts";
import {
	type App,
	app,
	appList,
	appParams,
	createApp,
	listAppsQuery,
	updateApp,
} from "../../wire/resource-spaces.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { fromInstant } from "../database/tables.ts";
import {
	createResourceSpace,
	deleteResourceSpace,
	getResourceSpace,
	listResourceSpaces,
	type ResourceSpace,
	updateResourceSpace,
} from "./resource-spaces.ts";

const APPS = "/v5/iot/:project_id/apps";

export function resourceSpaceRoutes(
	http: Http,
	{ db, now }: { db: Db; now: Clock },
): void {
	http.post(
		APPS,
		{
			config: {
				action: "iotda:apps:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "AddApplication",
				summary: "Create a resource space",
				tags: ["Resource spaces"],

				params: projectParams,
				body: createApp,
				response: { 201: app },
			},
		},
		async (request, reply) => {
			const space = await createResourceSpace(
				db,
				request.scope,
				{ name: request.body.app_name },
				now(),
			);
			return reply.code(201).send(toWire(space));
		},
	);

	http.get(
		APPS,
		{
			config: { action: "iotda:apps:queryList", level: "List" },
			schema: {
				operationId: "ShowApplications",
				summary: "List resource spaces",
				tags: ["Resource spaces"],

				params: projectParams,
				querystring: listAppsQuery,
				response: { 200: appList },
			},
		},
		async (request) => {
			const wanted = request.query.default_app;
			const spaces = await listResourceSpaces(
				db,
				request.scope,
				wanted === undefined ? {} : { isDefault: wanted === "true" },
			);
			return { applications: spaces.map(toWire) };
		},
	);

	http.get(
		`${APPS}/:app_id`,
		{
			config: { action: "iotda:apps:query", level: "Read" },
			schema: {
				operationId: "ShowApplication",
				summary: "Show a resource space",
				tags: ["Resource spaces"],
				params: appParams,
				response: { 200: app },
			},
		},
		async (request) =>
			toWire(await getResourceSpace(db, request.scope, request.params.app_id)),
	);

	http.put(
		`${APPS}/:app_id`,
		{
			config: { action: "iotda:apps:modify", level: "Write" },
			schema: {
				operationId: "UpdateApplication",
				summary: "Rename a resource space",
				tags: ["Resource spaces"],
				params: appParams,
				body: updateApp,
				response: { 200: app },
			},
		},
		async (request) => {
			const { app_name } = request.body;
			const space = await updateResourceSpace(
				db,
				request.scope,
				request.params.app_id,
				app_name === undefined ? {} : { name: app_name },
			);
			return toWire(space);
		},
	);

	http.delete(
		`${APPS}/:app_id`,
		{
			config: { action: "iotda:apps:delete", level: "Write" },
			schema: {
				operationId: "DeleteApplication",
				summary: "Delete a resource space",
				tags: ["Resource spaces"],
				params: appParams,
			},
		},
		async (request, reply) => {
			await deleteResourceSpace(db, request.scope, request.params.app_id);
			return reply.code(204).send();
		},
	);
}

function toWire(space: ResourceSpace): App {
	return {
		app_id: space.app_id,
		app_name: space.name,
		create_time: wireTime(fromInstant(space.created_at)),
		default_app: space.is_default === 1,
	};
}
