import { Type } from "typebox";
import { projectParams } from "../../wire/envelope.ts";
import {
	bindTags as bindTagsBody,
	queryTagged,
	queryTaggedPage,
	taggedResources,
	unbindTags as unbindTagsBody,
} from "../../wire/tags.ts";
import type { Http } from "../access/route.ts";
import type { Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { bindTags, listTaggedDevices, unbindTags } from "./device-tags.ts";
import { SlowCounts } from "./device-windows.ts";

const TAGS = "/v5/iot/:project_id/tags";

export function tagRoutes(http: Http, { db }: { db: Db }): void {
	const counts = new SlowCounts();

	http.post(
		`${TAGS}/bind-resource`,
		{
			config: { action: "iotda:tags:bind", level: "Tagging" },
			schema: {
				operationId: "TagDevice",
				summary: "Bind tags to a device",
				tags: ["Tags"],

				params: projectParams,
				body: bindTagsBody,
				response: { 200: Type.Null() },
			},
		},
		async (request, reply) => {
			const { resource_id, tags } = request.body;
			const requestTags = Object.fromEntries(
				tags.map(({ tag_key, tag_value }) => [tag_key, tag_value ?? ""]),
			);
			await bindTags(
				db,
				{ ...request.scope, requestTags },
				resource_id,
				tags.map(({ tag_key, tag_value }) => ({
					key: tag_key,
					value: tag_value ?? "",
				})),
			);
			return reply.type("application/json").send(null);
		},
	);

	http.post(
		`${TAGS}/unbind-resource`,
		{
			config: { action: "iotda:tags:unbind", level: "Tagging" },
			schema: {
				operationId: "UntagDevice",
				summary: "Unbind tags from a device",
				tags: ["Tags"],

				params: projectParams,
				body: unbindTagsBody,
				response: { 200: Type.Null() },
			},
		},
		async (request, reply) => {
			const { resource_id, tag_keys } = request.body;
			const requestTags = Object.fromEntries(tag_keys.map((key) => [key, ""]));
			await unbindTags(
				db,
				{ ...request.scope, requestTags },
				resource_id,
				tag_keys,
			);
			return reply.type("application/json").send(null);
		},
	);

	http.post(
		`${TAGS}/query-resources`,
		{
			config: { action: "iotda:tags:queryResourceList", level: "List" },
			schema: {
				operationId: "ListResourcesByTags",
				summary: "List devices by tags",
				tags: ["Tags"],

				params: projectParams,
				querystring: queryTaggedPage,
				body: queryTagged,
				response: { 200: taggedResources },
			},
		},
		async (request) => {
			const { items, page } = await listTaggedDevices(
				db,
				request.scope,
				counts,
				request.body.tags.map(({ tag_key, tag_value }) => ({
					key: tag_key,
					value: tag_value,
				})),
				readPage(request.query),
			);
			return {
				resources: items.map(({ device_id }) => ({ resource_id: device_id })),
				page,
			};
		},
	);
}
