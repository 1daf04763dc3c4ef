/** The API's own description: valid, complete, and true. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Validator } from "@seriousme/openapi-schema-validator";
import {
	documentedPath,
	isDescribed,
} from "../server/api-description/openapi.ts";
import type { DeclaredRoute } from "../server/http/http-server.ts";
import { partChecker } from "../server/http/schemas.ts";
import type { Payload, Query } from "../wire/client.ts";
import {
	exampleProjectId,
	examples,
	type OperationExample,
} from "../wire/examples.ts";
import { sqlite } from "./support/engines.ts";
import { startServer, type TestServer } from "./support/server.ts";

interface Described {
	operationId: string;
	summary: string;
	tags: string[];
	description: string;
	"x-otaru-action"?: string;
	security?: object[];
	parameters?: {
		name: string;
		in: string;
		schema: object;
		example?: unknown;
	}[];
	requestBody?: { content: Record<string, { example?: unknown }> };
	responses: Record<
		string,
		{ content?: Record<string, { schema: object; example?: unknown }> }
	>;
	"x-codeSamples": { lang: string; label: string; source: string }[];
}
interface Document {
	paths: Record<string, Record<string, Described>>;
	components: { schemas: Record<string, { description?: string }> };
}

let server: TestServer;
let document: Document;
let routes: readonly DeclaredRoute[];
before(async () => {
	server = await startServer(sqlite);
	const answer = await fetch(`${server.url}/openapi.json`);
	assert.equal(answer.status, 200);
	assert.equal(answer.headers.get("content-type"), "application/json");
	document = (await answer.json()) as Document;
	routes = server.server.routes.filter(isDescribed);
});
after(() => server?.[Symbol.asyncDispose]());

function operations(): [name: string, operation: Described][] {
	return Object.entries(document.paths).flatMap(([path, item]) =>
		Object.entries(item).map(([method, operation]): [string, Described] => [
			`${method.toUpperCase()} ${path}`,
			operation,
		]),
	);
}

function operationOf(route: DeclaredRoute): Described {
	const path = documentedPath(route.path);
	const found = document.paths[path]?.[route.method.toLowerCase()];
	assert.ok(found, `${route.method} ${route.path} is not described`);
	return found;
}

test("the description is a valid document of OpenAPI 3.1", async () => {
	const { valid, errors } = await new Validator().validate(
		structuredClone(document) as unknown as Record<string, unknown>,
	);
	assert.deepEqual(errors, undefined);
	assert.equal(valid, true);
});

test("every route is in it, and nothing that is no route", () => {
	assert.deepEqual(
		operations()
			.map(([name]) => name)
			.sort(),
		routes
			.map(({ method, path }) => `${method} ${documentedPath(path)}`)
			.sort(),
	);
	assert.ok(routes.length > 100);
	for (const { path } of server.server.routes.filter(
		(route) => !isDescribed(route),
	))
		assert.match(path, /^\/(openapi\.json|explorer(\/.*)?|v3\/projects)$/);
});

test("every operation says what it is, who may call it, and how to", () => {
	for (const route of routes) {
		const operation = operationOf(route);
		const { operationId, summary, tags, description } = operation;
		assert.match(operationId, /^[A-Z][A-Za-z]+$/);
		assert.ok(summary.length > 5 && tags.length === 1, operationId);
		assert.equal(operation["x-otaru-action"], route.action, operationId);
		if (route.open) assert.deepEqual(operation.security, [], operationId);
		else if (!route.everyone)
			assert.ok(
				description.includes(
					`\`${route.action}\` (level ${route.level}) on a resource of type \`${route.concerns ?? "app"}\``,
				),
				description,
			);
		const statuses = Object.keys(operation.responses);
		assert.ok(statuses.some((status) => status.startsWith("2")));
		assert.ok(statuses.includes("500"));
		if (!route.open)
			for (const status of ["400", "401", "403", "429"])
				assert.ok(statuses.includes(status), `${operationId} ${status}`);
		const languages = operation["x-codeSamples"].map(({ label }) => label);
		assert.ok(languages.includes("curl"), operationId);
	}
	const vendors = operations().filter(([, operation]) =>
		operation["x-codeSamples"].some(({ label }) => label === "Python SDK"),
	);
	assert.ok(vendors.length >= 43);
	for (const [, operation] of vendors)
		assert.deepEqual(
			operation["x-codeSamples"].map(({ label }) => label),
			["Python SDK", "Java SDK", "Go SDK", "Node.js SDK", "curl"],
		);
});

test("names of operations are unique, and every example belongs to one", () => {
	const names = operations().map(([, { operationId }]) => operationId);
	assert.equal(new Set(names).size, names.length);
	assert.deepEqual(Object.keys(examples).sort(), [...names].sort());
});

test("what is shared by several operations is a component, and references lead to one", () => {
	const text = JSON.stringify(document);
	const referred = new Set(
		[...text.matchAll(/"#\/components\/schemas\/(\w+)"/g)].map(
			(match) => match[1] ?? "",
		),
	);
	for (const name of referred)
		assert.ok(document.components.schemas[name], name);
	for (const name of ["OtaModule", "ErrorBody", "IamErrorBody", "PageInfo"])
		assert.ok(referred.has(name), name);
	assert.deepEqual(
		Object.keys(document.components.schemas).filter(
			(name) => !referred.has(name),
		),
		[],
	);
	// The server's own marks are none of a reader's business.
	assert.doesNotMatch(text, /"(rule|documented|~kind)":/);
});

test("a field says its meaning and the server's own rule for it", () => {
	const schemas = document.components.schemas as Record<
		string,
		{ properties: Record<string, { description: string; maxLength: number }> }
	>;
	const { app_id, module_name } = schemas.CreateOtaModule?.properties ?? {};
	assert.equal(
		app_id?.description,
		"The id of the resource space. Must be 1 to 36 characters: letters, digits, _ and -.",
	);
	assert.equal(module_name?.maxLength, 64);
	const list = document.paths["/v5/iot/{project_id}/ota-upgrades/modules"]?.get;
	assert.deepEqual(
		list?.parameters?.find(({ name }) => name === "limit")?.schema,
		{ type: "integer", minimum: 1, maximum: 50, default: 10 },
	);
});

const textsOf = (values: OperationExample["query"]) =>
	Object.fromEntries(
		Object.entries(values ?? {}).map(([name, value]) => [name, String(value)]),
	);

test("every example passes the server's own checks", () => {
	const check = (
		what: string,
		schema: unknown,
		part: string,
		value: unknown,
	) => {
		const result = partChecker(schema, part)(value);
		if (result !== true) assert.fail(`${what}: ${result.error.message}`);
	};
	for (const { method, path, schema = {} } of routes) {
		const name = schema.operationId ?? "";
		const example = examples[name];
		assert.ok(example, `${method} ${path}`);
		const { object_key: key, ...params } = {
			project_id: exampleProjectId,
			...example.path,
		} as Record<string, string>;
		if (schema.params)
			check(name, schema.params, "params", { ...params, "*": key ?? "" });
		if (schema.querystring)
			check(name, schema.querystring, "querystring", textsOf(example.query));
		else assert.equal(example.query, undefined, name);
		if (schema.body) check(name, schema.body, "body", example.body);
		else assert.equal(example.body !== undefined, !!schema.consumes, name);
		for (const answer of Object.values(
			(schema.response ?? {}) as Record<string, AnswerSchema>,
		)) {
			if (answer.type === "null")
				assert.equal(example.response, undefined, name);
			else {
				assert.ok(example.response, name);
				check(`answer of ${name}`, answer, "body", example.response);
				assertDeclared(name, answer, example.response);
			}
		}
	}
});

interface AnswerSchema {
	type?: string;
	properties?: Record<string, AnswerSchema>;
	items?: AnswerSchema;
	additionalProperties?: unknown;
}

/** An example shows no field that the answer does not have. */
function assertDeclared(
	where: string,
	schema: AnswerSchema,
	value: unknown,
): void {
	if (Array.isArray(value) && schema.items)
		for (const one of value) assertDeclared(`${where}[]`, schema.items, one);
	else if (schema.properties && !schema.additionalProperties)
		for (const [key, inner] of Object.entries(value as object)) {
			const declared = schema.properties[key];
			assert.ok(declared, `${where}.${key} is not declared`);
			assertDeclared(`${where}.${key}`, declared, inner);
		}
}

test("the examples of spaces, products, modules, packages and devices are what the server answers", async () => {
	const story = [
		...["AddApplication", "ShowApplication"],
		...["CreateProduct", "ListProducts", "ShowProduct"],
		...["CreateOtaModule", "ListOtaModules", "ShowOtaModule"],
		...["PutObject", "ListObjects", "CreateOtaPackage"],
		...["ListOtaPackageInfo", "ShowOtaPackage"],
		...["AddDevice", "AddDeviceGroup", "ListDeviceGroups", "ShowDeviceGroup"],
		...["CreateOrDeleteDeviceInGroup", "ShowDevicesInGroup"],
		...["ListDeviceGroupsByDevice", "TagDevice", "ListResourcesByTags"],
		...["UntagDevice", "UpdateDeviceGroup", "DeleteOtaPackage", "DeleteObject"],
		...["UpdateOtaModule", "DeleteOtaModule", "UpdateProduct"],
		"UpdateApplication",
	];
	const { project_id } = server.credentials;
	/** What the server called the things of the examples. */
	const real = new Map([[exampleProjectId, project_id]]);
	const inReality = <T>(value: T): T => {
		let text = JSON.stringify(value ?? null);
		for (const [imagined, id] of real) text = text.replaceAll(imagined, id);
		return JSON.parse(text) as T;
	};
	for (const name of story) {
		const route = routes.find(({ schema }) => schema?.operationId === name);
		assert.ok(route, name);
		const example = examples[name] ?? {};
		const path = documentedPath(route.path).replace(
			/\{(\w+)\}/g,
			(_, parameter: string) =>
				inReality({ project_id: exampleProjectId, ...example.path } as Record<
					string,
					string
				>)[parameter] ?? "",
		);
		const answer = await server.api.send(route.method, path, {
			...(example.query && { query: inReality(example.query) as Query }),
			...(example.body === undefined
				? {}
				: route.schema?.consumes
					? {
							body: example.body as Payload,
							headers: { "content-type": route.schema.consumes[0] ?? "" },
						}
					: { json: inReality(example.body) }),
		});
		const text = await answer.text();
		assert.ok(answer.ok, `${name}: ${text}`);
		const described = operationOf(route).responses[answer.status];
		assert.ok(described, `${name}: ${answer.status} is not described`);
		if (example.response === undefined) {
			assert.equal(text, "", name);
			continue;
		}
		const given = JSON.parse(text) as Record<string, unknown>;
		for (const [key, imagined] of Object.entries(example.response ?? {}))
			if (/^(app|product|module|package|group|device)_id$/.test(key))
				real.set(String(imagined), String(given[key]));
		assert.deepEqual(
			timeless(given),
			timeless(inReality(example.response)),
			name,
		);
	}
});

/** Times, markers and what is random count for their form only. */
function timeless(value: unknown): unknown {
	return JSON.parse(
		JSON.stringify(value, (key, inner) =>
			key === "marker"
				? typeof inner
				: key === "secret" || /_time$/.test(key)
					? String(inner).replace(/[0-9A-Za-z]/g, "0")
					: inner,
		).replace(/"secret":"[^"]*"/g, '"secret":""'),
	);
}
