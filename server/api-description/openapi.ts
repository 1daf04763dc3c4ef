/**
 * The API's own description, OpenAPI 3.1, made from the routes as they declared
 * themselves: what the server checks is what the document says.
 */
import { readFileSync } from "node:fs";
import { STATUS_CODES } from "node:http";
import type { FastifySchema } from "fastify";
import * as access from "../../wire/access.ts";
import * as accessManagement from "../../wire/access-management.ts";
import * as accessSimulation from "../../wire/access-simulation.ts";
import * as audit from "../../wire/audit.ts";
import * as deviceGroups from "../../wire/device-groups.ts";
import * as deviceImports from "../../wire/device-imports.ts";
import * as devices from "../../wire/devices.ts";
import * as envelope from "../../wire/envelope.ts";
import {
	exampleAppId,
	exampleProjectId,
	examples,
	type OperationExample,
} from "../../wire/examples.ts";
import * as history from "../../wire/history.ts";
import * as masterKey from "../../wire/master-key.ts";
import * as objects from "../../wire/objects.ts";
import * as otaModules from "../../wire/ota-modules.ts";
import * as packages from "../../wire/packages.ts";
import * as products from "../../wire/products.ts";
import * as resourceSpaces from "../../wire/resource-spaces.ts";
import * as tags from "../../wire/tags.ts";
import * as tasks from "../../wire/tasks.ts";
import { errorAnswer } from "../error-body.ts";
import { ApiError, type ErrorKind, errors } from "../errors.ts";
import { codeSamples } from "./code-samples.ts";
import { type JsonSchema, SchemaWriter } from "./openapi-schemas.ts";

/** A route as it declared itself. */
export interface DescribedRoute {
	method: string;
	/** As the router has it: `/apps/:app_id`. */
	path: string;
	open: boolean;
	action: string | undefined;
	level: string | undefined;
	concerns: "instance" | undefined;
	everyone: boolean;
	administratorsOnly: boolean;
	schema: FastifySchema | undefined;
}

export interface Parameter {
	name: string;
	in: "path" | "query" | "header";
	required: boolean;
	schema: JsonSchema;
	example?: unknown;
	description?: string;
}

/** What is known of an operation when its samples are written. */
export interface Operation {
	operationId: string;
	method: string;
	/** With the names of parameters in braces. */
	path: string;
	open: boolean;
	parameters: readonly Parameter[];
	/** Undefined: it takes no body. */
	body: unknown;
	/** Absent: JSON. */
	bodyType: string | undefined;
	/** Whether the answer is text or bytes, and whether it has an end. */
	answer: "nothing" | "json" | "file" | "stream";
}

const wire = {
	...{ envelope, access, resourceSpaces, products, devices, deviceGroups },
	...{ accessManagement, accessSimulation, audit, masterKey },
	...{ tags, deviceImports, otaModules, packages, objects, tasks, history },
};

/** The router's path as OpenAPI writes it; `*` is the key of an object. */
export function documentedPath(path: string): string {
	return path
		.replaceAll("::", "\0")
		.replace(/:(\w+)/g, "{$1}")
		.replace(/\*$/, "{object_key}")
		.replaceAll("\0", ":");
}

/** Those that the document describes; one of them without a name is refused at the start. */
export function isDescribed(route: Pick<DescribedRoute, "schema">): boolean {
	return !route.schema?.hide;
}

/** @throws Error when an operation has no example, or two have one name. */
export function describeApi(routes: readonly DescribedRoute[]): object {
	const writer = new SchemaWriter(wire);
	const paths: Record<string, Record<string, object>> = {};
	const tagNames = new Set<string>();
	const seen = new Set<string>();
	for (const route of routes) {
		if (!isDescribed(route)) continue;
		const { operationId = "" } = route.schema ?? {};
		const example = examples[operationId];
		if (!example) throw new Error(`${operationId} has no example.`);
		if (seen.has(operationId))
			throw new Error(`${operationId} names two operations.`);
		seen.add(operationId);
		for (const tag of route.schema?.tags ?? []) tagNames.add(tag);
		const path = documentedPath(route.path);
		paths[path] ??= {};
		paths[path][route.method.toLowerCase()] = describe(
			route,
			operationId,
			example,
			writer,
		);
	}
	for (const body of [envelope.errorBody, envelope.iamErrorBody])
		writer.write(body);
	return {
		openapi: "3.1.0",
		info: {
			title: "Otaru",
			version: version(),
			summary: "Over-the-air updates for devices made of several modules.",
			description: introduction,
			license: { name: "Apache-2.0", identifier: "Apache-2.0" },
		},
		servers: [{ url: "/", description: "This server" }],
		security: [{ token: [] }, { signature: [] }],
		tags: [...new Set([...leadingTags, ...tagNames])]
			.filter((name) => tagNames.has(name))
			.map((name) => ({ name })),
		paths,
		// For a reader who knows the caller's own, and puts them in their place.
		"x-otaru-example-ids": {
			project_id: exampleProjectId,
			app_id: exampleAppId,
		},
		components: {
			securitySchemes,
			headers: {
				RequestId: {
					description:
						"The id of the call. The server logs only its own failures (5xx) under it; the audit trail names it too.",
					schema: { type: "string" },
					example: requestId,
				},
				RetryAfter: {
					description: "Seconds after which to try again.",
					schema: { type: "integer", minimum: 0 },
					example: 1,
				},
			},
			schemas: writer.components,
		},
	};
}

/** What people come for; the others follow in the order of their routes. */
const leadingTags = [
	...["OTA modules", "Upgrade packages", "Package files", "Upgrade tasks"],
	...["Resource spaces", "Products", "Devices", "Device groups", "Tags"],
	...["Device imports", "History", "Identity"],
];

const introduction = [
	"The management API of Otaru: what the vendor's SDKs call under `/v5`, its sign-in under `/v3`, and Otaru's own calls under `/otaru/v1`.",
	"Every call but the few that are open is proven by a token or a signature, and needs the action it names. Unknown keys of a body and unknown parameters of a query are ignored. Times are UTC.",
	"Every call that is not open may have the header `Instance-Id`, and none needs it: where the server has an instance id (`OTARU_INSTANCE_ID`), a call that names another one is refused with 403.",
	"Calls that take `limit`, `marker` and `offset` answer in pages, newest first: `limit` records, older than `marker`, after skipping `offset`. ListObjects goes by the names of files instead. Lists that are always short come whole, without pages: projects, regions and accounts, the access keys of a user, the resource spaces of a project, the groups of a device.",
].join("\n\n");

const securitySchemes = {
	token: {
		type: "apiKey",
		in: "header",
		name: "X-Auth-Token",
		description:
			"A token for the project of the path, as POST /v3/auth/tokens answers it in the header X-Subject-Token. It lasts 24 hours.",
	},
	signature: {
		type: "apiKey",
		in: "header",
		name: "Authorization",
		description:
			"`SDK-HMAC-SHA256 Access=…, SignedHeaders=…, Signature=…` or `V11-HMAC-SHA256 Credential=…, …`, made with an access key over method, path, query, headers and body, with the time in X-Sdk-Date; the vendor's SDKs do it.",
	},
};

const requestId = "4f2a9c7e1b3d5f608a7c9e1b3d5f7092";

function version(): string {
	const file = new URL("../../package.json", import.meta.url);
	return (JSON.parse(readFileSync(file, "utf8")) as { version: string })
		.version;
}

function describe(
	route: DescribedRoute,
	operationId: string,
	example: OperationExample,
	writer: SchemaWriter,
): object {
	const { schema = {}, method, open } = route;
	const parameters = [
		...parametersOf("path", schema.params, operationId, example, writer),
		...parametersOf("query", schema.querystring, operationId, example, writer),
		...headersOf(schema),
	];
	const body = bodyOf(schema, example, writer);
	return {
		operationId,
		summary: schema.summary,
		description: [schema.description, permissionSentence(route)]
			.filter((sentence) => sentence !== undefined)
			.join(" "),
		tags: schema.tags,
		...(route.action === undefined ? {} : { "x-otaru-action": route.action }),
		...(open ? { security: [] } : {}),
		...(parameters.length > 0 ? { parameters } : {}),
		...(body ? { requestBody: body } : {}),
		responses: responsesOf(route, operationId, example, writer),
		"x-codeSamples": codeSamples({
			operationId,
			method,
			path: documentedPath(route.path),
			open,
			parameters,
			body: example.body,
			bodyType: schema.consumes?.[0],
			answer: answerOf(schema, example),
		}),
	};
}

function answerOf(
	schema: FastifySchema,
	example: OperationExample,
): Operation["answer"] {
	const [types] = Object.values(schema.produces ?? {});
	if (types?.[0] === "text/event-stream") return "stream";
	if (types && types.length > 0) return "file";
	return example.response === undefined ? "nothing" : "json";
}

function permissionSentence(route: DescribedRoute): string {
	if (route.open) return "Open to everyone.";
	if (route.administratorsOnly)
		return "Only for administrators, whatever is granted.";
	if (route.everyone)
		return "Whoever has signed in may call it, without a grant.";
	const on =
		route.concerns === "instance"
			? "type `instance`: the server as a whole"
			: "type `app`: the resource space concerned";
	return `Needs the action \`${route.action}\` (level ${route.level}) on a resource of ${on}.`;
}

function parametersOf(
	place: "path" | "query",
	declared: unknown,
	operationId: string,
	example: OperationExample,
	writer: SchemaWriter,
): Parameter[] {
	const { properties = {}, required = [] } = (declared ?? {}) as JsonSchema;
	return Object.entries(properties).map(([key, property]) => {
		const name = key === "*" ? "object_key" : key;
		const {
			description,
			default: _default,
			...schema
		} = writer.write(property, {
			field: name,
			owner: operationId,
		}) as JsonSchema;
		const value =
			name === "project_id" ? exampleProjectId : example[place]?.[name];
		return {
			name,
			in: place,
			required: place === "path" || required.includes(key),
			...(description === undefined ? {} : { description }),
			schema: {
				...schema,
				...(_default === undefined ? {} : { default: _default }),
			},
			...(value === undefined ? {} : { example: value }),
		};
	});
}

function headersOf({ requestHeaders = {} }: FastifySchema): Parameter[] {
	return Object.entries(requestHeaders).map(
		([name, { description, required = false, schema }]) => ({
			name,
			in: "header",
			required,
			description,
			schema,
		}),
	);
}

function bodyOf(
	{ body, consumes }: FastifySchema,
	example: OperationExample,
	writer: SchemaWriter,
): object | undefined {
	if (consumes)
		return {
			required: true,
			content: Object.fromEntries(
				consumes.map((type, index) => [
					type,
					{
						schema: textOrBytes(type),
						...(index === 0 ? { example: example.body } : {}),
					},
				]),
			),
		};
	if (!body) return undefined;
	return {
		// An absent body counts as an empty object.
		required: ((body as JsonSchema).required ?? []).length > 0,
		content: {
			"application/json": {
				schema: writer.write(body),
				example: example.body,
			},
		},
	};
}

/** No JSON. Files are bytes to a client; what has lines that are read one by one is text. */
function textOrBytes(type: string): JsonSchema {
	return type === "text/event-stream" || type === "text/plain"
		? { type: "string" }
		: { type: "string", format: "binary" };
}

// --- answers --------------------------------------------------------------------

function responsesOf(
	route: DescribedRoute,
	operationId: string,
	example: OperationExample,
	writer: SchemaWriter,
): Record<string, object> {
	const { schema = {} } = route;
	const responses: Record<string, object> = {};
	const declared = Object.entries(
		(schema.response ?? {}) as Record<string, JsonSchema>,
	);
	for (const [status, answer] of declared) {
		responses[status] = {
			description: STATUS_CODES[status] ?? "Done",
			headers: answerHeaders(Number(status), route),
			...(answer.type === "null"
				? {}
				: {
						content: {
							"application/json": {
								schema: writer.write(answer, { owner: operationId }),
								example: example.response,
							},
						},
					}),
		};
	}
	for (const [status, types] of Object.entries(schema.produces ?? {})) {
		responses[status] = {
			description: STATUS_CODES[status] ?? "Done",
			headers: answerHeaders(Number(status), route),
			...(types.length === 0
				? {}
				: {
						content: Object.fromEntries(
							types.map((type: string, index: number) => [
								type,
								{
									schema: textOrBytes(type),
									...(index === 0 ? { example: example.response } : {}),
								},
							]),
						),
					}),
		};
	}
	// What answers nothing declares nothing.
	if (Object.keys(responses).length === 0)
		responses[204] = {
			description: "Done",
			headers: answerHeaders(204, route),
		};
	for (const status of failuresOf(route))
		responses[status] = failure(status, route, writer);
	return responses;
}

function answerHeaders(
	status: number,
	{ open, schema }: DescribedRoute,
): Record<string, object> {
	// Whoever proves himself wrongly too often is told when he may try again.
	const waits = status === 429 || (status === 401 && !open);
	return {
		"X-Request-Id": { $ref: "#/components/headers/RequestId" },
		...(waits
			? { "Retry-After": { $ref: "#/components/headers/RetryAfter" } }
			: {}),
		...schema?.answerHeaders?.[status],
	};
}

/** An unknown project or resource space is 403, and a bucket is no more than a name. */
const neverMissing = new Set(["project_id", "app_id", "bucket_name"]);

/** The first thing named by the path that a call can find missing. */
function findableIn(path: string): string | undefined {
	return [...documentedPath(path).matchAll(/\{(\w+)\}/g)]
		.map(([, name = ""]) => name)
		.find((name) => !neverMissing.has(name));
}

/** By what the path names; the others name a token or a task elsewhere. */
const missing: Readonly<Record<string, ErrorKind>> = {
	access_key: errors.unknownAccessKey,
	device_id: errors.unknownDevice,
	enterprise_project_id: errors.unknownEnterpriseProject,
	grant_id: errors.unknownGrant,
	group_id: errors.unknownGroup,
	import_id: errors.unknownImport,
	managed_project_id: errors.unknownProject,
	module_id: errors.unknownModule,
	object_key: errors.unknownObject,
	package_id: errors.unknownPackage,
	policy_id: errors.unknownPolicy,
	product_id: errors.unknownProduct,
	task_id: errors.unknownTask,
	user_id: errors.unknownUser,
};

function missingFrom(path: string): ApiError {
	if (path.startsWith("/v3/")) return new ApiError(errors.unknownToken);
	const name = findableIn(path) ?? "task_id";
	return new ApiError(
		name === "group_id" && path.startsWith("/otaru/")
			? errors.unknownUserGroup
			: (missing[name] ?? errors.noSuchApi),
	);
}

/** The refusals that a caller can meet, by what the route is. */
function failuresOf({ method, path, open, schema = {} }: DescribedRoute) {
	const takesInput = schema.body ?? schema.consumes ?? schema.querystring;
	const statuses = new Set<number>(schema.failures);
	if (!open || takesInput) statuses.add(400);
	if (!open) for (const status of [401, 403, 429]) statuses.add(status);
	if (findableIn(path) !== undefined) statuses.add(404);
	if (method !== "GET" && method !== "HEAD") statuses.add(413);
	statuses.add(500);
	return [...statuses].sort((a, b) => a - b);
}

/** An example of each status, and what it means. */
const typical: Readonly<Record<number, [sentence: string, error: ApiError]>> = {
	400: [
		"The input is not as the schema says, or does not go with what there is. The sentence names field and rule.",
		new ApiError(errors.invalidInput, { detail: "app_id is required." }),
	],
	401: [
		"Neither a signature nor a token that counts. With Retry-After: too many wrong ones came from there.",
		new ApiError(errors.unauthenticated, {
			detail: "verify aksk signature fail",
		}),
	],
	403: [
		"No permission, an unknown resource space, or a state or limit that does not allow it.",
		new ApiError(errors.forbidden),
	],
	404: ["What the call names does not exist.", new ApiError(errors.noSuchApi)],
	413: ["The body is too large.", new ApiError(errors.bodyTooLarge)],
	416: [
		"The file has no such range.",
		new ApiError(errors.rangeNotSatisfiable, {
			detail: "The object has 4 bytes.",
		}),
	],
	429: [
		"Too many calls; the header Retry-After says when to come back.",
		new ApiError(errors.tooManyRequests, {
			detail: "policy project over ratelimit,limit:100,time:1 second",
		}),
	],
	500: [
		"A fault of the server, which it logged.",
		new ApiError(errors.internal),
	],
	503: ["The server is not ready for it.", new ApiError(errors.notReady)],
	507: ["The server has no room left.", new ApiError(errors.storageFull)],
};

/** Where nobody has to prove who he is, and one call finds it out. */
const typicalOfSignIn: typeof typical = {
	401: ["User or password is wrong.", new ApiError(errors.wrongPassword)],
	429: [
		"Too many failed sign-ins; the header Retry-After says when to come back.",
		new ApiError(errors.tooManySignIns, {
			detail: "Try again in 300 seconds.",
		}),
	],
};

function failure(
	status: number,
	route: DescribedRoute,
	writer: SchemaWriter,
): object {
	const { method, path, open } = route;
	const known = (open ? typicalOfSignIn[status] : undefined) ?? typical[status];
	if (!known) throw new Error(`Status ${status} has no description.`);
	const [description, usual] = known;
	const error = status === 404 ? missingFrom(path) : usual;
	const both = path.startsWith("/v3/")
		? [envelope.iamErrorBody, envelope.errorBody]
		: [envelope.errorBody];
	const schemas = both.map((body) => writer.write(body));
	return {
		description,
		headers: answerHeaders(status, route),
		...(method === "HEAD"
			? {}
			: {
					content: {
						"application/json": {
							schema: schemas.length === 1 ? schemas[0] : { anyOf: schemas },
							example: errorAnswer(error, path, requestId).body,
						},
					},
				}),
	};
}
