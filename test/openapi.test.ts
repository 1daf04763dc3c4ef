/** The API's own description: valid, complete, and true. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Validator } from "@seriousme/openapi-schema-validator";
import { Ajv2020 } from "ajv/dist/2020.js";
import {
	PASSWORD_MAX,
	PASSWORD_MIN,
} from "../server/access/password-policy.ts";
import {
	documentedPath,
	isDescribed,
} from "../server/api-description/openapi.ts";
import { fieldWords } from "../server/api-description/openapi-words.ts";
import {
	PATTERN_LIMIT,
	RULE_CONDITION_LIMIT,
	RULE_DEPTH_LIMIT,
	RULE_LENGTH_LIMIT,
} from "../server/device-groups/group-rule.ts";
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
		required: boolean;
		description?: string;
		schema: object;
		example?: unknown;
	}[];
	requestBody?: {
		content: Record<string, { schema: DescribedSchema; example?: unknown }>;
	};
	responses: Record<
		string,
		{
			description: string;
			headers: Record<string, object>;
			content?: Record<string, { schema: DescribedSchema; example?: unknown }>;
		}
	>;
	"x-codeSamples": { lang: string; label: string; source: string }[];
}
interface DescribedSchema {
	$ref?: string;
	type?: string | string[];
	format?: string;
	description?: string;
	enum?: unknown[];
	properties?: Record<string, DescribedSchema>;
	items?: DescribedSchema;
	anyOf?: DescribedSchema[];
	additionalProperties?: DescribedSchema | boolean;
}
interface Document {
	info: { description: string };
	servers: { url: string }[];
	paths: Record<string, Record<string, Described>>;
	components: {
		headers: Record<string, { description: string }>;
		schemas: Record<string, DescribedSchema>;
	};
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
		else if (route.administratorsOnly)
			assert.match(description, /Only for administrators/, operationId);
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
	const schemas = document.components.schemas as unknown as Record<
		string,
		{ properties: Record<string, { description: string; maxLength: number }> }
	>;
	const { app_id, module_name } = schemas.CreateOtaModule?.properties ?? {};
	assert.equal(
		app_id?.description,
		"The id of the resource space. Must be 1 to 36 characters: letters A-Z a-z, digits, _ and -.",
	);
	assert.equal(module_name?.maxLength, 64);
	const list = document.paths["/v5/iot/{project_id}/ota-upgrades/modules"]?.get;
	assert.deepEqual(
		list?.parameters?.find(({ name }) => name === "limit")?.schema,
		{ type: "integer", minimum: 1, maximum: 50, default: 10 },
	);
});

function operationNamed(operationId: string): Described {
	const found = operations().find(([, one]) => one.operationId === operationId);
	assert.ok(found, operationId);
	return found[1];
}

/** All schemas, wherever they stand, with the place. */
function* schemasIn(
	schema: DescribedSchema | undefined,
	where: string,
): Generator<[where: string, schema: DescribedSchema]> {
	if (!schema) return;
	yield [where, schema];
	for (const [name, inner] of Object.entries(schema.properties ?? {}))
		yield* schemasIn(inner, `${where}.${name}`);
	yield* schemasIn(schema.items, `${where}[]`);
	for (const option of schema.anyOf ?? []) yield* schemasIn(option, where);
	if (typeof schema.additionalProperties === "object")
		yield* schemasIn(schema.additionalProperties, `${where}{}`);
}

function* allSchemas(): Generator<[where: string, schema: DescribedSchema]> {
	for (const [name, schema] of Object.entries(document.components.schemas))
		yield* schemasIn(schema, name);
	for (const [name, { requestBody, responses }] of operations())
		for (const { content = {} } of [
			requestBody ?? {},
			...Object.values(responses),
		])
			for (const { schema } of Object.values(content))
				yield* schemasIn(schema, name);
}

test("every field and every parameter says what it means, beside its rule", () => {
	const silent: string[] = [];
	/** A rule alone says what a value must be, not what it is for. */
	const isSilent = (description: string | undefined) =>
		!description || /^Must /.test(description);
	let fields = 0;
	for (const [where, { properties = {} }] of allSchemas())
		for (const [name, { description }] of Object.entries(properties)) {
			fields++;
			if (isSilent(description)) silent.push(`${where}.${name}`);
		}
	for (const [where, { parameters = [] }] of operations())
		for (const { name, description } of parameters)
			if (isSilent(description)) silent.push(`${where} ${name}`);
	assert.deepEqual(silent, []);
	assert.ok(fields > 400, `${fields}`);
	// Words that nothing has any more.
	const text = JSON.stringify(document);
	assert.deepEqual(
		Object.entries(fieldWords).filter(
			([, words]) => !text.includes(JSON.stringify(words).slice(1, -1)),
		),
		[],
	);
});

test("the letters of a rule are those of ASCII, and it says so", () => {
	assert.doesNotMatch(
		JSON.stringify(document),
		/letters(?! A-Z a-z)(?<!lower-case letters(?= a-z))/,
	);
});

test("headers that mean something to a call are declared with it", () => {
	const headersOf = (operationId: string, place: "request" | number) => {
		const { parameters = [], responses } = operationNamed(operationId);
		return place === "request"
			? parameters
					.filter((parameter) => parameter.in === "header")
					.map(({ name, required }) => name + (required ? "!" : ""))
			: Object.keys(responses[place]?.headers ?? {}).filter(
					(name) => name !== "X-Request-Id",
				);
	};
	const token = "X-Subject-Token";
	assert.deepEqual(headersOf("KeystoneCreateUserTokenByPassword", 201), [
		token,
	]);
	assert.deepEqual(headersOf("KeystoneValidateToken", "request"), [
		`${token}!`,
	]);
	assert.deepEqual(headersOf("KeystoneValidateToken", 200), [token]);
	assert.deepEqual(headersOf("WatchEvents", "request"), ["Last-Event-ID"]);
	assert.deepEqual(headersOf("GetObject", "request"), [
		"Range",
		"If-None-Match",
		"If-Range",
	]);
	for (const status of [206, 416])
		assert.ok(headersOf("GetObject", status).includes("Content-Range"));
	assert.ok(headersOf("HeadObject", 200).includes("ETag"));
	for (const name of ["PutObject", "ImportDevices"])
		assert.deepEqual(headersOf(name, "request"), ["X-Sdk-Content-Sha256"]);
	for (const [name, { responses }] of operations())
		for (const [status, { headers }] of Object.entries(responses)) {
			assert.ok(headers["X-Request-Id"], `${name} ${status}`);
			if (status === "429") assert.ok(headers["Retry-After"], name);
		}
	assert.match(document.info.description, /`Instance-Id`/);
	assert.match(
		document.components.headers.RequestId?.description ?? "",
		/only its own failures \(5xx\)/,
	);
});

test("a file's answers have the headers that are declared, and its name may be sent with %2F", async () => {
	await server.api.putObject("firmware", "headers/mcu-1.0.0.bin", "image");
	const path = `/otaru/v1/projects/${server.credentials.project_id}/objects/firmware/headers%2Fmcu-1.0.0.bin`;
	for (const [name, method, headers, status] of [
		["GetObject", "GET", {}, 200],
		["GetObject", "GET", { range: "bytes=0-1" }, 206],
		["GetObject", "GET", { "if-none-match": "*" }, 304],
		["GetObject", "GET", { range: "bytes=9-" }, 416],
		["HeadObject", "HEAD", {}, 200],
	] as const) {
		const answer = await server.api.send(method, path, { headers });
		await answer.text();
		assert.equal(answer.status, status);
		const declared = operationNamed(name).responses[status]?.headers ?? {};
		for (const header of Object.keys(declared))
			assert.ok(answer.headers.get(header), `${name} ${status} ${header}`);
	}
});

test("404 is declared where a call can find something missing, and nowhere else", async () => {
	for (const [name, { parameters = [], responses }] of operations()) {
		const named = parameters.filter(
			(parameter) =>
				parameter.in === "path" &&
				!["project_id", "app_id", "bucket_name"].includes(parameter.name),
		);
		assert.equal(
			"404" in responses,
			named.length > 0 ||
				/^GET (\/v3\/auth\/tokens|\/otaru\/v1\/projects\/\{project_id\}\/events)$/.test(
					name,
				),
			name,
		);
	}
	const { project_id } = server.credentials;
	for (const [path, status] of [
		["/v5/iot/nope/apps", 403],
		[`/v5/iot/${project_id}/apps/nope`, 403],
		[`/otaru/v1/projects/${project_id}/objects/no-such-bucket`, 200],
		[`/otaru/v1/projects/${project_id}/events?task_id=abc`, 404],
		[`/v5/iot/${project_id}/devices/nope`, 404],
	] as const)
		assert.equal((await server.api.send("GET", path)).status, status, path);
	const unknown = await server.api.send("GET", "/v3/auth/tokens", {
		headers: { "x-subject-token": "nope" },
	});
	assert.equal(unknown.status, 404);
	assert.deepEqual(
		await unknown.json(),
		operationNamed("KeystoneValidateToken").responses[404]?.content?.[
			"application/json"
		]?.example,
	);
});

test("what goes together with what is in the schemas, and is what the server admits", async () => {
	const ajv = new Ajv2020({ strict: false });
	ajv.addSchema({ $id: "otaru:", ...document });
	const { project_id, app_id } = server.credentials;
	const grants = "/otaru/v1/access/grants";
	const tasks = `/v5/iot/${project_id}/batchtasks`;
	const { policies } = await server.api.call<{
		policies: { policy_id: string }[];
	}>("GET", "/otaru/v1/access/policies");
	const { user_id } = await server.api.call<{ user_id: string }>(
		"GET",
		"/otaru/v1/access/me",
	);
	const grant = (scope: object) => ({
		policy_id: policies[0]?.policy_id,
		principal: { type: "user", id: user_id },
		scope,
	});
	const task = {
		app_id,
		task_name: "t",
		task_type: "firmwareUpgrade",
		targets: ["d1"],
		document: { package_ids: ["nope"] },
	};
	const { targets: _targets, document: _document, ...bare } = task;
	const password = "brass kettle on the moor";
	/** Undefined: the schema admits it. */
	const cases: [
		operationId: string,
		path: string,
		body: object,
		field: string | undefined,
	][] = [
		["CreateGrant", grants, grant({ type: "project" }), "scope.id"],
		["CreateGrant", grants, grant({ type: "project", id: "x" }), undefined],
		["CreateGrant", grants, grant({ type: "all" }), undefined],
		["CreateBatchTask", tasks, task, undefined],
		["CreateBatchTask", tasks, { ...task, document: undefined }, "document"],
		[
			"CreateBatchTask",
			tasks,
			{ ...task, document: {} },
			"document.package_ids",
		],
		[
			"CreateBatchTask",
			tasks,
			{ ...task, document: { package_id: "nope" } },
			undefined,
		],
		["CreateBatchTask", tasks, { ...bare, document: task.document }, "targets"],
		[
			"CreateBatchTask",
			tasks,
			{
				...bare,
				document: task.document,
				targets_filter: { group_ids: ["a"] },
			},
			undefined,
		],
		[
			"CreateBatchTask",
			tasks,
			{ ...task, task_policy: { retry_count: 2 } },
			"task_policy.retry_interval",
		],
		[
			"CreateBatchTask",
			tasks,
			{ ...task, task_policy: { retry_count: 2, retry_interval: 5 } },
			undefined,
		],
		...(["too short", "x".repeat(PASSWORD_MAX + 1)] as const).map(
			(bad): (typeof cases)[number] => [
				"CreateUser",
				"/otaru/v1/access/users",
				{ user_name: "anna", password: bad },
				"password",
			],
		),
		[
			"CreateUser",
			"/otaru/v1/access/users",
			{ user_name: "anna", password: password.slice(0, PASSWORD_MIN) },
			undefined,
		],
		[
			"ChangeOwnPassword",
			"/otaru/v1/access/me/password",
			{ password: server.credentials.password, new_password: "too short" },
			"new_password",
		],
		[
			"AddDeviceGroup",
			`/v5/iot/${project_id}/device-group`,
			{
				name: "g",
				group_type: "DYNAMIC",
				dynamic_group_rule: `device_name = '${"x".repeat(RULE_LENGTH_LIMIT)}'`,
			},
			"dynamic_group_rule",
		],
	];
	for (const [operationId, path, body, field] of cases) {
		const where = `${operationId} ${JSON.stringify(body)}`;
		const { schema } = operationNamed(operationId).requestBody?.content[
			"application/json"
		] ?? { schema: {} };
		const fits = ajv.compile({ $ref: `otaru:${schema.$ref}` });
		assert.equal(
			fits(JSON.parse(JSON.stringify(body))),
			field === undefined,
			where,
		);
		if (field === undefined) continue;
		const method = operationId === "ChangeOwnPassword" ? "PUT" : "POST";
		const answer = await server.api.send(method, path, { json: body });
		assert.equal(answer.status, 400, where);
		const { error_msg } = (await answer.json()) as { error_msg: string };
		assert.ok(error_msg.includes(` ${field} `), `${where}: ${error_msg}`);
	}
	const { dynamic_group_rule } =
		document.components.schemas.CreateGroup?.properties ?? {};
	for (const limit of [RULE_CONDITION_LIMIT, RULE_DEPTH_LIMIT, PATTERN_LIMIT])
		assert.ok(dynamic_group_rule?.description?.includes(` ${limit} `));
});

test("lists that count their newest part only say so", async () => {
	const { AuditPageInfo, DeviceEventPageInfo } = document.components.schemas;
	assert.match(
		AuditPageInfo?.properties?.count?.description ?? "",
		/newest 10,000 records/,
	);
	assert.match(
		DeviceEventPageInfo?.properties?.count?.description ?? "",
		/newest 2,000 records/,
	);
	// What does not page takes no limit; the introduction names it.
	for (const name of ["ListProjects", "ListAccessKeys", "ShowApplications"])
		assert.ok(
			!operationNamed(name).parameters?.some(({ name }) => name === "limit"),
		);
	assert.match(document.info.description, /without pages: projects/);
});

test("a client can be made of it: names, choices, null and files", () => {
	const names = Object.keys(document.components.schemas);
	assert.equal(
		new Set(names.map((name) => name.toLowerCase())).size,
		names.length,
	);
	assert.deepEqual(
		document.servers.map(({ url }) => url),
		["/"],
	);
	const nullable: string[] = [];
	for (const [where, schema] of allSchemas()) {
		if ([schema.type].flat().includes("null")) nullable.push(where);
		if (schema.enum) {
			assert.ok(schema.type, where);
			assert.equal(
				schema.enum.includes(null),
				Array.isArray(schema.type) && schema.type.includes("null"),
				where,
			);
		}
		for (const option of schema.anyOf ?? [])
			assert.notEqual(option.type, "null", `${where}: a type of two says it`);
	}
	// Elsewhere what has no value is absent, as the server writes its answers.
	assert.deepEqual(nullable.sort(), [
		"DeviceOtaProfile.module_form",
		"UpdateDeviceOtaProfile.module_form",
	]);
	const { TaskStatus, PackageType, DeviceEventKind } =
		document.components.schemas;
	for (const choice of [TaskStatus, PackageType, DeviceEventKind])
		assert.ok(choice?.type === "string" && choice.enum);
	for (const [name, { requestBody, responses }] of operations())
		for (const { content = {} } of [
			requestBody ?? {},
			...Object.values(responses),
		])
			for (const [type, { schema }] of Object.entries(content)) {
				if (type === "application/json") continue;
				assert.equal(schema.type, "string", name);
				assert.equal(
					schema.format,
					/^text\/(event-stream|plain)$/.test(type) ? undefined : "binary",
					`${name} ${type}`,
				);
			}
});

test("HEAD of the description answers as GET, without the body", async () => {
	const url = `${server.url}/openapi.json`;
	const [whole, head] = await Promise.all([
		fetch(url),
		fetch(url, { method: "HEAD" }),
	]);
	await whole.arrayBuffer();
	assert.equal(head.status, 200);
	assert.equal(await head.text(), "");
	for (const name of ["content-type", "content-length", "etag", "vary"])
		assert.equal(head.headers.get(name), whole.headers.get(name), name);
	const known = await fetch(url, {
		method: "HEAD",
		headers: { "if-none-match": head.headers.get("etag") ?? "" },
	});
	assert.equal(known.status, 304);
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
