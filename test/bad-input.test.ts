/**
 * Every constraint of every field, as tables: what does not fit is refused with a
 * message that names the field, and leaves the store as it was; what just fits is taken.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { forEachEngine } from "./support/engines.ts";
import {
	BUCKET,
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

// --- what a field may hold --------------------------------------------------------

interface Constraint {
	/** Values that just fit. */
	fits: unknown[];
	/** Values that just do not. */
	misfits: unknown[];
}

const notTexts = [7, true, null, [], {}, ["a"]];
const notFlags = [0, "true", "", null, [], {}];
const notObjects = [7, "a", true, null, []];
const notLists = [7, "a", true, null, {}];

/** `bad`: characters outside the alphabet; a NUL is outside every one. */
function text(
	min: number,
	max: number,
	{ bad = [] as string[], good = "a" } = {},
): Constraint {
	const of = (length: number) => good.repeat(length);
	return {
		fits: [of(max), of(Math.max(min, 1)), ...(min === 0 ? [""] : [])],
		misfits: [
			of(max + 1),
			...(min > 0 ? [of(min - 1)] : []),
			...["\u0000", ...bad].flatMap((sign) => [
				of(Math.max(min, 1)) + sign,
				sign + of(Math.max(min, 1)),
			]),
			...notTexts,
		],
	};
}

const CODE_BAD = [" ", ".", "/", "$", "é", "中", "\n", "🚀"];
const id = text(1, 36, { bad: CODE_BAD });
const deviceIdText = text(1, 128, { bad: CODE_BAD });
const NAME_BAD = [" ", "/", "$", "é", "中", "\n", "🚀"];
const TEXT_BAD = [" ", "\n", "$", ";", "/", "\\", '"', "é", "，", "🚀", "<"];
const plain = (min: number, max: number) =>
	text(min, max, { bad: TEXT_BAD, good: "中" });
const description = (max: number) =>
	text(0, max, { bad: ["$", "\\", '"', "é", "🚀", "<", "！"], good: "；" });
/** Counted in code points: each of these is two of JavaScript's characters. */
const free = (min: number, max: number) => text(min, max, { good: "🚀" });

function oneOf(...values: string[]): Constraint {
	return {
		fits: values,
		misfits: [
			"",
			"x",
			...values.map((value) => ` ${value}`),
			(values[0] ?? "").toUpperCase() === values[0]
				? (values[0] ?? "").toLowerCase()
				: (values[0] ?? "").toUpperCase(),
			...notTexts,
		],
	};
}
const flag: Constraint = { fits: [true, false], misfits: notFlags };
const wholeNumber = (min: number, max: number): Constraint => ({
	fits: [min, max],
	misfits: [min - 1, max + 1, min + 0.5, 1e300, "1", null, true, [], {}],
});
const digits = (...lengths: number[]): Constraint => ({
	fits: [],
	misfits: [
		...lengths.flatMap((length) => [
			"a".repeat(length - 1),
			"a".repeat(length + 1),
			"g".repeat(length),
			`${"a".repeat(length - 1)}\u0000`,
			`${"a".repeat(length - 1)} `,
		]),
		"",
		...notTexts,
	],
});
const object: Constraint = { fits: [{}], misfits: notObjects };
const list = (misfits: unknown[] = []): Constraint => ({
	fits: [[]],
	misfits: [...notLists, ...misfits],
});
const listOf = (item: Constraint): unknown[] =>
	item.misfits.map((misfit) => [misfit]);
const required = (constraint: Constraint) => ({
	...constraint,
	required: true,
});

type Field = Constraint & { required?: boolean };
/** By their path: `a.b`, `a.0.b`. */
type Fields = Record<string, Field>;

// --- the endpoints ------------------------------------------------------------------

type Body = Record<string, unknown>;

interface World {
	server: TestServer;
	appId: string;
	productId: string;
	moduleId: string;
	packageId: string;
	deviceId: string;
	/** Key of an uploaded file. */
	objectKey: string;
	/** What the store held when it was last looked at; undefined once it may differ. */
	lastSeen: string | undefined;
}

interface Endpoint {
	method: "POST" | "PUT";
	path: (world: World) => string;
	/** A body that fits, and that may be sent again and again. */
	body: (world: World) => Body;
	fields: Fields;
	/** Makes room after a body that fitted. */
	undo?: (world: World, answer: Body) => Promise<void>;
}

const v5 = (world: World, rest: string) =>
	`/v5/iot/${world.server.credentials.project_id}/${rest}`;
const otaru = (world: World, rest: string) =>
	`/otaru/v1/projects/${world.server.credentials.project_id}/${rest}`;

const valueFields: Record<string, Field> = {
	required: flag,
	enum_list: list([[1], [null]]),
	min: free(1, 16),
	max: free(1, 16),
	max_length: wholeNumber(0, 2147483647),
	step: { fits: [0, 0.1, 1e10], misfits: ["1", null, true, [], {}] },
	unit: free(0, 16),
	description: description(128),
};
const parameterFields: Record<string, Field> = {
	para_name: required(free(1, 32)),
	data_type: required(
		oneOf(
			"int",
			"long",
			"decimal",
			"string",
			"DateTime",
			"jsonObject",
			"enum",
			"boolean",
			"string list",
		),
	),
	...valueFields,
};
const under = (path: string, fields: Fields): Fields =>
	Object.fromEntries(
		Object.entries(fields).map(([key, field]) => [`${path}.${key}`, field]),
	);
const SERVICE = "service_capabilities.0";
const capabilityFields: Fields = {
	[SERVICE]: { fits: [], misfits: notObjects },
	...under(SERVICE, {
		service_id: required(
			text(1, 64, { bad: TEXT_BAD.filter((c) => c !== "$"), good: "$" }),
		),
		service_type: required(
			text(1, 64, { bad: TEXT_BAD.filter((c) => c !== "$"), good: "中" }),
		),
		description: description(128),
		option: oneOf("Master", "Mandatory", "Optional"),
		properties: list([Array.from({ length: 501 }, () => ({}))]),
		commands: list([Array.from({ length: 501 }, () => ({}))]),
		events: list([Array.from({ length: 501 }, () => ({}))]),
		"properties.0": { fits: [], misfits: notObjects },
		"properties.0.property_name": required(plain(1, 64)),
		"properties.0.data_type": required(oneOf("int", "decimal", "string list")),
		"properties.0.method": required(
			oneOf("R", "W", "E", "RW", "RE", "WE", "RWE"),
		),
		...under("properties.0", valueFields),
		"commands.0.command_name": required(plain(1, 64)),
		"commands.0.paras": list(),
		"commands.0.responses": list(),
		"commands.0.responses.0.response_name": required(free(1, 128)),
		"commands.0.responses.0.paras": list(),
		"events.0.event_type": required(free(1, 32)),
		"events.0.paras": list(),
		...under("commands.0.paras.0", parameterFields),
		...under("commands.0.responses.0.paras.0", parameterFields),
		...under("events.0.paras.0", parameterFields),
	}),
};
const capabilities = () => [
	{
		service_id: "s",
		service_type: "t",
		properties: [{ property_name: "p", data_type: "int", method: "R" }],
		commands: [
			{
				command_name: "c",
				paras: [{ para_name: "p", data_type: "int" }],
				responses: [
					{
						response_name: "r",
						paras: [{ para_name: "p", data_type: "int" }],
					},
				],
			},
		],
		events: [
			{ event_type: "e", paras: [{ para_name: "p", data_type: "int" }] },
		],
	},
];

const PROTOCOLS = [
	"MQTT",
	"HTTP",
	"HTTPS",
	"Modbus",
	"ONVIF",
	"OPC-UA",
	"OPC-DA",
	"Other",
	"TCP",
	"UDP",
];
const productTexts: Fields = {
	manufacturer_name: plain(0, 32),
	industry: plain(0, 64),
	description: description(128),
	service_capabilities: list([
		Array.from({ length: 501 }, (_, index) => ({
			service_id: `s${index}`,
			service_type: "t",
		})),
	]),
	...capabilityFields,
};
const aliasName: Constraint = {
	fits: ["", "a", "a b", "中 文", "a".repeat(64), `a${" ".repeat(62)}b`],
	misfits: [
		"a".repeat(65),
		" a",
		"a ",
		" ",
		"a\tb",
		"a\nb",
		"a/b",
		"é",
		"a\u0000b",
		"🚀",
		...notTexts,
	],
};

/** A value that a caller may name, but that names nothing here, is no misfit of its shape. */
const known = (constraint: Constraint): Field => ({
	fits: [],
	misfits: constraint.misfits,
	required: true,
});
const mayName = (constraint: Constraint): Field => ({
	fits: [],
	misfits: constraint.misfits,
});

const endpoints: Record<string, Endpoint> = {
	"create resource space": {
		method: "POST",
		path: (w) => v5(w, "apps"),
		body: () => ({ app_name: "space" }),
		fields: { app_name: required(plain(1, 64)) },
		undo: (w, answer) =>
			w.server.api.deleteResourceSpace(String(answer.app_id)),
	},
	"update resource space": {
		method: "PUT",
		path: (w) => v5(w, `apps/${w.appId}`),
		body: () => ({ app_name: "space" }),
		fields: { app_name: plain(1, 64) },
	},
	"create product": {
		method: "POST",
		path: (w) => v5(w, "products"),
		body: () => ({
			name: "n",
			device_type: "t",
			protocol_type: "MQTT",
			data_format: "json",
			service_capabilities: capabilities(),
		}),
		fields: {
			product_id: id,
			name: required(plain(1, 64)),
			device_type: required(plain(1, 32)),
			protocol_type: required(oneOf(...PROTOCOLS, "CoAP")),
			data_format: required(oneOf("json", "binary")),
			app_id: mayName(id),
			...productTexts,
			service_capabilities: {
				...productTexts.service_capabilities,
				required: true,
			} as Field,
		},
		undo: (w, answer) => w.server.api.deleteProduct(String(answer.product_id)),
	},
	"update product": {
		method: "PUT",
		path: (w) => v5(w, `products/${w.productId}`),
		body: () => ({ service_capabilities: capabilities() }),
		fields: {
			name: plain(1, 64),
			device_type: plain(1, 32),
			protocol_type: oneOf(...PROTOCOLS),
			data_format: oneOf("json", "binary"),
			app_id: mayName(id),
			...productTexts,
		},
	},
	"update a product's OTA profile": {
		method: "PUT",
		path: (w) => otaru(w, `products/${w.productId}/ota-profile`),
		body: () => ({}),
		fields: {
			module_form: oneOf("none", "native", "compatible"),
			download_form: oneOf("presigned", "token"),
		},
	},
	"create OTA module": {
		method: "POST",
		path: (w) => v5(w, "ota-upgrades/modules"),
		body: (w) => ({
			app_id: w.appId,
			product_id: w.productId,
			module_name: unique("module"),
		}),
		fields: {
			app_id: known(id),
			product_id: known(id),
			module_name: required(text(1, 64, { bad: NAME_BAD })),
			alias_name: aliasName,
			description: free(0, 1024),
		},
		undo: (w, answer) => w.server.api.deleteOtaModule(String(answer.module_id)),
	},
	"update OTA module": {
		method: "PUT",
		path: (w) => v5(w, `ota-upgrades/modules/${w.moduleId}`),
		body: () => ({}),
		fields: { alias_name: aliasName, description: free(0, 1024) },
	},
	"create package": {
		method: "POST",
		path: (w) => v5(w, "ota-upgrades/packages"),
		body: (w) => ({
			app_id: w.appId,
			product_id: w.productId,
			package_type: "modulePackage",
			module_name: "MCU",
			version: unique("v"),
			file_location: {
				obs_location: {
					region_name: "otaru",
					bucket_name: BUCKET,
					object_key: w.objectKey,
				},
			},
		}),
		fields: {
			app_id: known(id),
			product_id: known(id),
			package_type: {
				...oneOf("modulePackage"),
				required: true,
			},
			module_name: known(text(1, 64, { bad: NAME_BAD })),
			version: required(text(1, 256, { bad: NAME_BAD })),
			support_source_versions: {
				fits: [
					[],
					["a".repeat(256)],
					Array.from({ length: 20 }, (_, index) => `v${index}`),
				],
				misfits: [
					...notLists,
					Array.from({ length: 21 }, (_, index) => `v${index}`),
					["a", "b", "a"],
					...listOf(text(1, 256, { bad: NAME_BAD })),
				],
			},
			description: free(0, 1024),
			custom_info: free(0, 4096),
			file_location: { fits: [], misfits: notObjects, required: true },
			"file_location.obs_location": {
				fits: [],
				misfits: notObjects,
				required: true,
			},
			"file_location.obs_location.region_name": required(
				text(1, 256, { bad: [" ", "_", ".", "/", "é"] }),
			),
			"file_location.obs_location.bucket_name": known(
				text(3, 63, { bad: [" ", "_", "A", "/", "é"] }),
			),
			"file_location.obs_location.object_key": {
				fits: [],
				misfits: [
					"",
					`${"a".repeat(1021)}.bin`,
					"a.txt",
					"a.bin\u0000",
					"a\u0000.bin",
					...notTexts,
				],
				required: true,
			},
			"file_location.obs_location.sign_method": oneOf("SHA256"),
			"file_location.obs_location.sign": digits(64),
		},
		undo: (w, answer) => w.server.api.deletePackage(String(answer.package_id)),
	},
	"create device": {
		method: "POST",
		path: (w) => v5(w, "devices"),
		body: (w) => ({
			product_id: w.productId,
			node_id: unique("node"),
			shadow: [{ service_id: "s", desired: {} }],
		}),
		fields: {
			device_id: deviceIdText,
			node_id: required(text(1, 64, { bad: CODE_BAD })),
			device_name: plain(0, 256),
			product_id: known(id),
			description: plain(0, 2048),
			gateway_id: mayName(deviceIdText),
			app_id: mayName(id),
			extension_info: {
				fits: [{}, { a: "x".repeat(1024 - 8) }],
				misfits: [
					...notObjects,
					{ a: "x".repeat(1024 - 7) },
					{ a: "é".repeat(600) },
				],
			},
			auth_info: object,
			"auth_info.auth_type": oneOf("SECRET", "CERTIFICATES"),
			"auth_info.secret": text(8, 32, { bad: CODE_BAD }),
			"auth_info.fingerprint": {
				fits: ["a".repeat(40), "F".repeat(64)],
				misfits: digits(40, 64).misfits,
			},
			"auth_info.secure_access": flag,
			"auth_info.timeout": wholeNumber(0, 2147483647),
			shadow: list(),
			"shadow.0": { fits: [], misfits: notObjects },
			"shadow.0.service_id": required(free(1, 32)),
			"shadow.0.desired": { ...object, required: true },
		},
		undo: (w, answer) => w.server.api.deleteDevice(String(answer.device_id)),
	},
	"update device": {
		method: "PUT",
		path: (w) => v5(w, `devices/${w.deviceId}`),
		body: () => ({}),
		fields: {
			device_name: plain(0, 256),
			description: plain(0, 2048),
			extension_info: {
				fits: [{}, { a: "x".repeat(1024 - 8) }],
				misfits: [...notObjects, { a: "x".repeat(1024 - 7) }],
			},
			auth_info: object,
			"auth_info.secure_access": flag,
			"auth_info.timeout": wholeNumber(0, 2147483647),
		},
	},
	"reset a device's secret": {
		method: "POST",
		path: (w) =>
			`${v5(w, `devices/${w.deviceId}/action`)}?action_id=resetSecret`,
		body: () => ({}),
		fields: {
			secret: text(8, 32, { bad: CODE_BAD }),
			force_disconnect: flag,
			secret_type: oneOf("PRIMARY", "SECONDARY"),
		},
	},
	"update a device's OTA profile": {
		method: "PUT",
		path: (w) => otaru(w, `devices/${w.deviceId}/ota-profile`),
		body: () => ({ module_form: null }),
		fields: {
			module_form: {
				fits: ["none", "native", "compatible", null],
				misfits: ["", "None", "x", 7, true, [], {}],
				required: true,
			},
		},
	},
	"create task": {
		method: "POST",
		path: (w) => v5(w, "batchtasks"),
		body: (w) => ({
			task_name: "task",
			task_type: "moduleUpgrade",
			targets: [w.deviceId],
			document: { package_ids: [w.packageId] },
		}),
		fields: {
			app_id: mayName(id),
			task_name: {
				fits: [],
				misfits: text(1, 128, { bad: [...TEXT_BAD, "-", "."] }).misfits,
				required: true,
			},
			task_type: {
				fits: [],
				misfits: oneOf("moduleUpgrade").misfits,
				required: true,
			},
			targets: {
				fits: [],
				misfits: [
					...notLists,
					[],
					Array.from({ length: 30_001 }, (_, index) => `d${index}`),
					...listOf(deviceIdText),
				],
				required: true,
			},
			document: { fits: [], misfits: [...notObjects, {}], required: true },
			"document.package_ids": {
				fits: [],
				misfits: [...notLists, [], ...listOf(id)],
				required: true,
			},
			need_confirm: { fits: [], misfits: notFlags },
			task_mode: { fits: [], misfits: ["", "gateway", 7, true, [], {}] },
			task_ext_info: {
				fits: [],
				misfits: [...notObjects, { a: "中".repeat(505) }],
			},
			targets_filter: {
				fits: [],
				misfits: [
					...notObjects,
					{},
					{ group_ids: [] },
					{ group_ids: "a" },
					{ group_ids: ["g"] },
					{ group_ids: ["a", 7] },
					{ group_ids: ["a".repeat(37)] },
					{ group_ids: ["a", "a"] },
				],
			},
			task_policy: {
				fits: [],
				misfits: [
					...notObjects,
					{ schedule_time: 7 },
					{ retry_count: 1 },
					{ retry_interval: 1 },
					...[0, -1, 6, 1.5, "1", null, true].map((retry_count) => ({
						retry_count,
						retry_interval: 1,
					})),
					...[0, -1, 1441, 1.5, "1", null, true].map((retry_interval) => ({
						retry_count: 1,
						retry_interval,
					})),
				],
			},
			document_source: { fits: [], misfits: ["file"] },
		},
	},
};

// --- asking ---------------------------------------------------------------------------

const MISSING = Symbol("missing");

/** The same body with one value put in, or taken out, at the path. */
function altered(body: Body, path: string, value: unknown): Body {
	const copy = structuredClone(body);
	const keys = path.split(".");
	const last = keys.pop() ?? "";
	let holder: Body = copy;
	for (const [index, key] of keys.entries()) {
		const next = keys[index + 1] ?? last;
		holder[key] ??= /^\d+$/.test(next) ? [] : {};
		holder = holder[key] as Body;
	}
	if (value === MISSING) delete holder[last];
	else holder[last] = value;
	return copy;
}

/** `a.0.b` as the answer names it: `a[0].b`. */
function named(path: string): string {
	return path.replace(/\.(\d+)/g, "[$1]");
}

function short(value: unknown): string {
	if (value === MISSING) return "nothing";
	const text = JSON.stringify(value);
	return text.length > 70 ? `${text.slice(0, 70)}… (${text.length})` : text;
}

/** A body of almost `limit` bytes: one field holds nothing but `sign`, as JSON writes it. */
function longText(
	body: Body,
	path: string,
	sign: string,
	limit: number,
): Uint8Array {
	const count = Math.floor((limit - 20_000) / Buffer.byteLength(sign));
	return Buffer.from(
		JSON.stringify(altered(body, path, "LONG")).replace(
			'"LONG"',
			`"${sign.repeat(count)}"`,
		),
	);
}

interface Asked {
	status: number;
	body: Body;
	said: string;
}

async function ask(
	world: World,
	method: string,
	path: string,
	payload: unknown,
	headers: Record<string, string> = {},
): Promise<Asked> {
	const { api } = world.server;
	const answer = await api.send(method, path, {
		...(payload instanceof Uint8Array
			? { body: payload as Uint8Array<ArrayBuffer> }
			: payload === undefined
				? {}
				: { json: payload }),
		headers: { "content-type": "application/json", ...headers },
	});
	const text = await answer.text();
	const body = text === "" ? {} : (JSON.parse(text) as Body);
	assert.ok(answer.headers.get("x-request-id"));
	if (answer.status < 400) world.lastSeen = undefined;
	else {
		assert.equal(typeof body.error_code, "string", text);
		assert.equal(typeof body.error_msg, "string", text);
	}
	return {
		status: answer.status,
		body,
		said: `${answer.status} ${body.error_code ?? ""} ${body.error_msg ?? ""}`,
	};
}

/** Everything that a management call could have changed. */
async function stored(world: World): Promise<string> {
	const { db } = world.server.server;
	const rows = await Promise.all([
		db.selectFrom("resource_spaces").selectAll().orderBy("record_id").execute(),
		db.selectFrom("products").selectAll().orderBy("product_key").execute(),
		db.selectFrom("ota_modules").selectAll().orderBy("record_id").execute(),
		db.selectFrom("packages").selectAll().orderBy("record_id").execute(),
		db.selectFrom("devices").selectAll().orderBy("record_id").execute(),
		// Only that they are there: a task moves on by itself.
		db
			.selectFrom("upgrade_tasks")
			.select("task_id")
			.orderBy("task_id")
			.execute(),
		db.selectFrom("objects").selectAll().orderBy("object_key").execute(),
	]);
	return JSON.stringify(rows);
}

/** Runs `work`, after which the store must hold what it held before. */
async function withoutTrace<T>(
	world: World,
	why: string,
	work: () => Promise<T>,
): Promise<T> {
	const earlier = world.lastSeen ?? (await stored(world));
	const result = await work();
	const later = await stored(world);
	assert.ok(later === earlier, `${why} left a trace:\n${earlier}\n${later}`);
	world.lastSeen = later;
	return result;
}

async function refusedBody(
	world: World,
	endpoint: Endpoint,
	payload: unknown,
	expected: { status?: number; code: string; words: string; why: string },
): Promise<void> {
	const { status, body, said } = await withoutTrace(world, expected.why, () =>
		ask(world, endpoint.method, endpoint.path(world), payload),
	);
	const why = `${expected.why} was answered with ${said}`;
	assert.equal(status, expected.status ?? 400, why);
	assert.equal(body.error_code, expected.code, why);
	assert.ok(
		String(body.error_msg).includes(expected.words),
		`${why}, which does not say "${expected.words}"`,
	);
}

async function makeWorld(server: TestServer): Promise<World> {
	const { api, credentials } = server;
	const product = await makeProduct(api);
	const module = await makeModule(api, product, "MCU");
	const device = await makeDevice(api, product);
	const file_location = await upload(api);
	const built = await makePackage(api, product, {
		package_type: "modulePackage",
		module_name: "MCU",
		file_location,
	});
	return {
		server,
		appId: credentials.app_id,
		productId: product.product_id,
		moduleId: module.module_id,
		packageId: built.package_id,
		deviceId: device.device_id,
		objectKey: file_location.obs_location.object_key,
		lastSeen: undefined,
	};
}

forEachEngine((engine) => {
	let world: World;
	before(async () => {
		world = await makeWorld(await startServer(engine));
	});
	after(() => world.server[Symbol.asyncDispose]());

	for (const [name, endpoint] of Object.entries(endpoints)) {
		describe(name, () => {
			for (const [path, field] of Object.entries(endpoint.fields)) {
				test(`${named(path)}: what does not fit is refused by its name, what just fits is taken`, async () => {
					const misfits: unknown[] = [...field.misfits];
					if (field.required) misfits.push(MISSING);
					for (const misfit of misfits)
						await refusedBody(
							world,
							endpoint,
							altered(endpoint.body(world), path, misfit),
							{
								code: "IOTDA.000006",
								words: named(path),
								why: short(misfit),
							},
						);
					const fits: unknown[] = [...field.fits];
					if (!field.required && !/\d$/.test(path)) fits.push(MISSING);
					for (const value of fits) {
						const body = altered(endpoint.body(world), path, value);
						const {
							status,
							said,
							body: answer,
						} = await ask(world, endpoint.method, endpoint.path(world), body);
						assert.ok(
							status === 200 || status === 201,
							`${short(value)} was answered with ${said}`,
						);
						await endpoint.undo?.(world, answer);
					}
				});
			}

			test("a body that is not one JSON object in UTF-8, each key once, is refused", async () => {
				const text = JSON.stringify(endpoint.body(world));
				const bytes = (body: string) => new TextEncoder().encode(body);
				const withKey = (key: string, value: string) =>
					`${text.slice(0, -1)}${text === "{}" ? "" : ","}"${key}":${value}}`;
				const format: [string, Uint8Array, string][] = [
					["half a body", bytes(`${text.slice(0, -1)},`), "not JSON"],
					["no JSON", bytes("app_id=1"), "not JSON"],
					["two values", bytes(`${text}{}`), "not JSON"],
					["a comment", bytes(`/**/${text}`), "not JSON"],
					["NaN", bytes(withKey("extra", "NaN")), "not JSON"],
					[
						"a bare NUL in a text",
						bytes(withKey("extra", '"\u0000"')),
						"not JSON",
					],
					[
						"broken UTF-8",
						Buffer.concat([
							bytes(text.slice(0, -1)),
							bytes(`${text === "{}" ? "" : ","}"extra":"`),
							Buffer.from([0xc3, 0x28]),
							bytes('"}'),
						]),
						"not UTF-8",
					],
					[
						"a key twice",
						bytes(`${withKey("extra", "1").slice(0, -1)},"extra":2}`),
						"extra",
					],
					[
						"a key twice, once escaped",
						bytes(`${withKey("extra", "1").slice(0, -1)},"\\u0065xtra":1}`),
						"extra",
					],
					[
						"half a surrogate pair",
						bytes(withKey("extra", '"\\ud800"')),
						"surrogate",
					],
					[
						"a hundred thousand brackets",
						bytes(withKey("extra", "[".repeat(100_000) + "]".repeat(100_000))),
						"nested deeper",
					],
				];
				for (const [why, payload, words] of format)
					await refusedBody(world, endpoint, payload, {
						code: "IOTDA.000008",
						words,
						why,
					});
				for (const payload of ["[]", '"text"', "7", "true", "null", "[{}]"])
					await refusedBody(world, endpoint, bytes(payload), {
						code: "IOTDA.000006",
						words: "body",
						why: payload,
					});
			});

			test("a body above 12 MB is refused, and one just below it is read", async () => {
				const limit = world.server.config.http.bodyLimitBytes;
				assert.equal(limit, 12 * 1024 * 1024);
				const text = JSON.stringify(endpoint.body(world));
				const padded = (size: number) =>
					Buffer.concat([
						Buffer.from(text.slice(0, -1)),
						Buffer.alloc(size - text.length, " "),
						Buffer.from("}"),
					]);
				await refusedBody(world, endpoint, padded(limit + 1), {
					status: 413,
					code: "IOTDA.000923",
					words: String(limit),
					why: "a body one byte too large",
				});
				const [path = ""] = Object.keys(endpoint.fields);
				await refusedBody(
					world,
					endpoint,
					longText(endpoint.body(world), path, "中", limit),
					{
						code: "IOTDA.000006",
						words: named(path),
						why: "a text of 12 MB",
					},
				);
			});

			test("unknown keys are passed over and never come back", async () => {
				const { status, body, said } = await ask(
					world,
					endpoint.method,
					endpoint.path(world),
					{
						...endpoint.body(world),
						unknown_key: { deep: [1, "\u0000"] },
						project_id: "elsewhere",
						record_id: "x",
						toString: 1,
					},
				);
				assert.ok(status === 200 || status === 201, said);
				for (const key of ["unknown_key", "project_id", "record_id"])
					assert.equal(key in body, false);
				await endpoint.undo?.(world, body);
			});
		});
	}

	test("a text of 12 MB is refused whatever it is made of", async () => {
		const endpoint = endpoints["update OTA module"];
		assert.ok(endpoint);
		const limit = world.server.config.http.bodyLimitBytes;
		for (const path of ["alias_name", "description"])
			for (const sign of [
				"a",
				" ",
				"é",
				"🚀",
				"é中",
				"\\u0000",
				"\\ud83d\\ude80",
			])
				await refusedBody(
					world,
					endpoint,
					longText(endpoint.body(world), path, sign, limit),
					{ code: "IOTDA.000006", words: path, why: `12 MB of ${sign}` },
				);
	});

	describe("addresses", () => {
		const idTexts = [
			"a%20b",
			"a.b",
			"a%2Fb",
			"%C3%A9",
			"a%00",
			"%E4%B8%AD",
			"..a",
		];
		const routes: [string, number, string[], (rest: string) => string][] = [
			["app_id", 36, ["GET", "PUT", "DELETE"], (x) => v5(world, `apps/${x}`)],
			[
				"product_id",
				36,
				["GET", "PUT", "DELETE"],
				(x) => v5(world, `products/${x}`),
			],
			[
				"product_id",
				36,
				["GET", "PUT"],
				(x) => otaru(world, `products/${x}/ota-profile`),
			],
			[
				"module_id",
				36,
				["GET", "PUT", "DELETE"],
				(x) => v5(world, `ota-upgrades/modules/${x}`),
			],
			[
				"package_id",
				36,
				["GET", "DELETE"],
				(x) => v5(world, `ota-upgrades/packages/${x}`),
			],
			[
				"device_id",
				128,
				["GET", "PUT", "DELETE"],
				(x) => v5(world, `devices/${x}`),
			],
			["device_id", 128, ["POST"], (x) => v5(world, `devices/${x}/freeze`)],
			["device_id", 128, ["POST"], (x) => v5(world, `devices/${x}/unfreeze`)],
			[
				"device_id",
				128,
				["POST"],
				(x) => `${v5(world, `devices/${x}/action`)}?action_id=resetSecret`,
			],
			[
				"device_id",
				128,
				["GET", "PUT"],
				(x) => otaru(world, `devices/${x}/ota-profile`),
			],
			["task_id", 24, ["GET", "DELETE"], (x) => v5(world, `batchtasks/${x}`)],
			["task_id", 24, ["POST"], (x) => v5(world, `batchtasks/${x}/stop`)],
		];
		/** Bodies that fit whatever is asked for. */
		const anyBody = { module_form: "none" };

		test("an id that cannot be one is refused by its name, one that could be is unknown", async () => {
			await withoutTrace(world, "an id", refuseAll);
			async function refuseAll() {
				for (const [field, max, methods, path] of routes)
					for (const method of methods) {
						const body =
							method === "GET" || method === "DELETE" ? undefined : anyBody;
						for (const wrong of [...idTexts, "a".repeat(max + 1)]) {
							const {
								status,
								body: answer,
								said,
							} = await ask(world, method, path(wrong), body);
							const why = `${method} ${path(wrong)}: ${said}`;
							assert.equal(status, 400, why);
							assert.equal(answer.error_code, "IOTDA.000006", why);
							assert.ok(String(answer.error_msg).includes(field), why);
						}
						const { status, said } = await ask(
							world,
							method,
							path("a".repeat(max)),
							body,
						);
						assert.equal(
							status,
							field === "app_id" ? 403 : 404,
							`${method} ${path("")}: ${said}`,
						);
					}
			}
		});

		test("a path or method that there is not, and a foreign project, are told apart", async () => {
			const expect = async (
				method: string,
				path: string,
				status: number,
				code: string,
			) => {
				const asked = await ask(world, method, path, undefined);
				assert.equal(asked.status, status, `${method} ${path}: ${asked.said}`);
				assert.equal(asked.body.error_code, code);
			};
			await expect("GET", v5(world, "nothing"), 404, "APIGW.0101");
			await expect("PATCH", v5(world, "products"), 404, "APIGW.0101");
			await expect("DELETE", v5(world, "products"), 404, "APIGW.0101");
			await expect("GET", `${v5(world, "products")}/a/b`, 404, "APIGW.0101");
			await expect(
				"GET",
				"/v5/iot/0123456789abcdef0123456789abcdef/products",
				403,
				"IOTDA.000022",
			);
		});
	});

	describe("queries", () => {
		const ID = ["", "a b", "é", "a.b", "a".repeat(37), "\u0000"];
		const ENUM = ["", "x", "firmwarepackage"];
		const FLAG = ["", "1", "True", "yes"];
		const lists: [
			string,
			() => string,
			Record<string, string>,
			Record<string, string[]>,
			string[],
		][] = [
			[
				"resource spaces",
				() => v5(world, "apps"),
				{},
				{ default_app: FLAG },
				[],
			],
			[
				"products",
				() => v5(world, "products"),
				{},
				{
					app_id: ID,
					product_name: ["", "a b", "a".repeat(65), "\u0000"],
				},
				[],
			],
			[
				"one product",
				() => v5(world, `products/${world.productId}`),
				{},
				{ app_id: ID },
				[],
			],
			[
				"a product's OTA profile",
				() => otaru(world, `products/${world.productId}/ota-profile`),
				{},
				{ app_id: ID },
				[],
			],
			[
				"modules",
				() => v5(world, "ota-upgrades/modules"),
				{ app_id: "a" },
				{ app_id: ID, product_id: ID },
				["app_id"],
			],
			[
				"packages",
				() => v5(world, "ota-upgrades/packages"),
				{ package_type: "firmwarePackage" },
				{
					package_type: ENUM,
					app_id: ID,
					product_id: ID,
					version: ["", "a b", "a/b", "a".repeat(257), "\u0000"],
				},
				["package_type"],
			],
			[
				"devices",
				() => v5(world, "devices"),
				{},
				{
					app_id: ID,
					product_id: ID,
					gateway_id: ["", "a b", "a".repeat(129), "\u0000"],
					is_cascade_query: FLAG,
					node_id: ["", "a b", "a".repeat(65), "\u0000"],
					device_name: ["", "a b", "a".repeat(257), "\u0000"],
				},
				[],
			],
			[
				"tasks",
				() => v5(world, "batchtasks"),
				{ task_type: "firmwareUpgrade" },
				{ task_type: ENUM, app_id: ID, status: ENUM },
				["task_type"],
			],
		];
		for (const [name, path, valid, fields, mandatory] of lists) {
			test(`${name}: a filter that does not fit, is missing or is there twice is refused by its name`, async () => {
				const expect = async (query: [string, string][], field: string) => {
					const search = new URLSearchParams(query).toString();
					const { status, body, said } = await ask(
						world,
						"GET",
						`${path()}?${search}`,
						undefined,
					);
					assert.equal(status, 400, `${search}: ${said}`);
					assert.equal(body.error_code, "IOTDA.000006", said);
					assert.ok(
						String(body.error_msg).includes(field),
						`${search}: ${said}`,
					);
				};
				for (const [field, values] of Object.entries(fields)) {
					for (const value of values)
						await expect(Object.entries({ ...valid, [field]: value }), field);
					await expect(
						[...Object.entries({ ...valid, [field]: "a" }), [field, "a"]],
						field,
					);
				}
				for (const field of mandatory) {
					const { [field]: _, ...rest } = valid;
					await expect(Object.entries(rest), field);
				}
			});
		}

		test("the action on a device must be one there is", async () => {
			for (const query of [
				"",
				"?action_id=",
				"?action_id=reset",
				"?action_id=resetsecret",
				"?action_id=resetSecret&action_id=resetSecret",
			]) {
				const path = v5(world, `devices/${world.deviceId}/action${query}`);
				const { status, body, said } = await withoutTrace(world, query, () =>
					ask(world, "POST", path, {}),
				);
				assert.equal(status, 400, said);
				assert.equal(body.error_code, "IOTDA.000006");
				assert.ok(String(body.error_msg).includes("action_id"), said);
			}
		});
	});

	test("what lies in another space is not to be named, and what is unknown neither", async () => {
		const { api } = world.server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const far = await makeProduct(api, { app_id: space.app_id });
		await makeModule(api, far, "Far");
		const farDevice = await makeDevice(api, far);
		const farPackage = await makePackage(api, far);
		world.lastSeen = undefined;
		const make = (name: string, changes: Body) =>
			[name, changes] as [keyof typeof endpoints, Body];
		const cases: [[string, Body], number, string][] = [
			[
				make("create OTA module", { product_id: far.product_id }),
				400,
				"IOTDA.013900",
			],
			[
				make("create OTA module", { product_id: "unknown" }),
				400,
				"IOTDA.013900",
			],
			[
				make("create OTA module", { app_id: space.app_id }),
				400,
				"IOTDA.013900",
			],
			[make("create OTA module", { app_id: "unknown" }), 403, "IOTDA.001000"],
			[
				make("create package", { product_id: far.product_id }),
				400,
				"IOTDA.013900",
			],
			[make("create package", { module_name: "Far" }), 400, "IOTDA.014950"],
			[make("create package", { app_id: space.app_id }), 400, "IOTDA.013900"],
			[make("create package", { app_id: "unknown" }), 403, "IOTDA.001000"],
			[
				make("create device", { product_id: far.product_id }),
				400,
				"IOTDA.013900",
			],
			[
				make("create device", { gateway_id: farDevice.device_id }),
				400,
				"IOTDA.014000",
			],
			[make("create device", { gateway_id: "unknown" }), 400, "IOTDA.014000"],
			[make("create device", { app_id: space.app_id }), 400, "IOTDA.013900"],
			[make("create device", { app_id: "unknown" }), 403, "IOTDA.001000"],
			[make("create product", { app_id: "unknown" }), 403, "IOTDA.001000"],
			[make("update product", { app_id: space.app_id }), 404, "IOTDA.013900"],
			[make("update product", { app_id: "unknown" }), 403, "IOTDA.001000"],
			[
				make("create task", {
					document: { package_ids: [farPackage.package_id] },
				}),
				400,
				"IOTDA.014960",
			],
			[
				make("create task", { document: { package_ids: ["unknown"] } }),
				400,
				"IOTDA.014960",
			],
			[make("create task", { app_id: "unknown" }), 403, "IOTDA.001000"],
		];
		for (const [[name, changes], status, code] of cases) {
			const endpoint = endpoints[name];
			assert.ok(endpoint);
			await refusedBody(
				world,
				endpoint,
				{ ...endpoint.body(world), ...changes },
				{ status, code, words: "", why: `${name} ${short(changes)}` },
			);
		}
	});

	test("no body ever gives a 500", { timeout: 300_000 }, async () => {
		const anyKey = fc.constantFrom(
			...new Set(
				Object.values(endpoints).flatMap((endpoint) =>
					Object.keys(endpoint.fields),
				),
			),
		);
		const anyValue = fc.oneof(
			fc.jsonValue({ maxDepth: 3 }),
			fc.string({ unit: "binary", maxLength: 40 }),
			fc.double(),
			fc.constantFrom(world.appId, world.productId, "MCU", world.deviceId),
		);
		const anyChange = fc.tuple(anyKey, anyValue);
		await fc.assert(
			fc.asyncProperty(
				fc.constantFrom(...Object.keys(endpoints)),
				fc.array(anyChange, { minLength: 1, maxLength: 4 }),
				fc.option(fc.nat({ max: 400 })),
				async (name, changes, cutAt) => {
					const endpoint = endpoints[name];
					assert.ok(endpoint);
					let body: Body = endpoint.body(world);
					for (const [path, value] of changes)
						try {
							body = altered(body, path, value);
						} catch {
							// An earlier change left nothing to put this one into.
						}
					const bytes = new TextEncoder().encode(JSON.stringify(body));
					const { status, said } = await ask(
						world,
						endpoint.method,
						endpoint.path(world),
						cutAt === null ? bytes : bytes.subarray(0, cutAt),
					);
					assert.ok(status < 500, said);
				},
			),
			{ numRuns: 600 },
		);
		await fc.assert(
			fc.asyncProperty(
				fc.constantFrom(...Object.keys(endpoints)),
				fc.uint8Array({ maxLength: 60 }),
				async (name, bytes) => {
					const endpoint = endpoints[name];
					assert.ok(endpoint);
					const { status, said } = await ask(
						world,
						endpoint.method,
						endpoint.path(world),
						new Uint8Array(bytes),
					);
					assert.ok(status < 500, said);
				},
			),
			{ numRuns: 150 },
		);
	});

	test("no address and no query ever gives a 500", {
		timeout: 300_000,
	}, async () => {
		const names = [
			"app_id",
			"product_id",
			"package_type",
			"task_type",
			"limit",
			"marker",
			"offset",
			"start_time",
			"end_time",
			"device_name",
			"gateway_id",
			"is_cascade_query",
			"default_app",
			"action_id",
		];
		const anyText = fc.oneof(
			fc.string({ unit: "binary", maxLength: 30 }),
			fc.stringMatching(/^[0-9a-f]{0,40}$/),
			fc.constantFrom("true", "20230211T121212Z", "0", "f".repeat(24)),
		);
		await fc.assert(
			fc.asyncProperty(
				fc.constantFrom("GET", "DELETE", "POST", "PUT"),
				fc.constantFrom(
					"apps",
					"products",
					"ota-upgrades/modules",
					"ota-upgrades/packages",
					"devices",
					"batchtasks",
				),
				fc.option(anyText),
				fc.array(fc.tuple(fc.constantFrom(...names), anyText), {
					maxLength: 4,
				}),
				async (method, collection, last, query) => {
					const segment =
						last === null || last === "." || last === ".."
							? ""
							: `/${encodeURIComponent(last)}`;
					const search = new URLSearchParams(query).toString();
					const { status, said } = await ask(
						world,
						method,
						`${v5(world, collection)}${segment}${search ? `?${search}` : ""}`,
						method === "GET" || method === "DELETE" ? undefined : {},
					);
					assert.ok(status < 500, said);
				},
			),
			{ numRuns: 400 },
		);
	});
});
