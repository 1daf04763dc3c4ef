/**
 * Every route × who asks: what a route answers to strangers, to users without a grant, to
 * users with exactly its action on exactly one resource space, and to those who are
 * denied it. A route without a row here fails the first test.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import { Client } from "../wire/client.ts";
import type { Product } from "../wire/products.ts";
import { grant, makeUser, ofSpace, type TestUser } from "./support/access.ts";
import { forEachEngine } from "./support/engines.ts";
import { type Answer, send, signed } from "./support/raw-request.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

/** A resource space with one of everything in it. */
interface Place {
	appId: string;
	product: Product;
	packageId: string;
	deviceId: string;
	groupId: string;
	taskId: string;
	importId: string;
}

interface Ask {
	/** Below the prefix of the row, with ids and query. */
	path: string;
	body?: object | string;
	headers?: Record<string, string>;
}

interface Row {
	/** Asks for something of the place; may make what is to be deleted. */
	ask: (server: TestServer, place: Place) => Ask | Promise<Ask>;
	/** When it is allowed. */
	status: number;
	/**
	 * What somebody is told who may do it in another space only: the space that he names
	 * is refused him (403), the object is not there for him (404, or 400 where a body names
	 * it), or the list is empty.
	 * `instance`: it concerns no space, so no space is enough for it.
	 */
	elsewhere: 403 | 404 | 400 | "empty" | "instance";
}

const product = (place: Place) => place.product.product_id;

function rows(): Record<string, Row> {
	const apps = "/apps";
	const inSpace = (
		path: (place: Place) => string,
		status: number,
		elsewhere: Row["elsewhere"],
		body?: (place: Place) => object,
	): Row => ({
		ask: (_server, place) => ({
			path: path(place),
			...(body && { body: body(place) }),
		}),
		status,
		elsewhere,
	});
	const v5 = (path: string) => `/v5/iot/:project_id${path}`;
	const own = (path: string) => `/otaru/v1/projects/:project_id${path}`;
	return {
		[`POST ${v5(apps)}`]: inSpace(
			() => v5(apps),
			201,
			"instance",
			() => ({ app_name: unique("space") }),
		),
		[`GET ${v5(apps)}`]: inSpace(() => v5(apps), 200, "empty"),
		[`GET ${v5("/apps/:app_id")}`]: inSpace(
			({ appId }) => v5(`/apps/${appId}`),
			200,
			403,
		),
		[`PUT ${v5("/apps/:app_id")}`]: inSpace(
			({ appId }) => v5(`/apps/${appId}`),
			200,
			403,
			() => ({ app_name: unique("space") }),
		),
		// It has products: allowed, but refused for another reason.
		[`DELETE ${v5("/apps/:app_id")}`]: inSpace(
			({ appId }) => v5(`/apps/${appId}`),
			403,
			403,
		),

		[`GET ${own("/apps/:app_id/access")}`]: inSpace(
			({ appId }) => own(`/apps/${appId}/access`),
			200,
			403,
		),
		[`PUT ${own("/apps/:app_id/access")}`]: inSpace(
			({ appId }) => own(`/apps/${appId}/access`),
			200,
			403,
			() => ({ tags: { stage: "test" } }),
		),

		[`POST ${v5("/products")}`]: inSpace(
			() => v5("/products"),
			201,
			403,
			({ appId }) => ({
				app_id: appId,
				name: unique("p"),
				device_type: "t",
				protocol_type: "MQTT",
				data_format: "json",
				service_capabilities: [],
			}),
		),
		[`GET ${v5("/products")}`]: inSpace(() => v5("/products"), 200, "empty"),
		[`GET ${v5("/products/:product_id")}`]: inSpace(
			(place) => v5(`/products/${product(place)}`),
			200,
			404,
		),
		[`PUT ${v5("/products/:product_id")}`]: inSpace(
			(place) => v5(`/products/${product(place)}`),
			200,
			403,
			({ appId }) => ({ app_id: appId, description: "x" }),
		),
		[`DELETE ${v5("/products/:product_id")}`]: {
			ask: async ({ api }, { appId }) => {
				const made = await makeProduct(api, { app_id: appId });
				return { path: v5(`/products/${made.product_id}`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`GET ${own("/products/:product_id/ota-profile")}`]: inSpace(
			(place) => own(`/products/${product(place)}/ota-profile`),
			200,
			404,
		),
		[`PUT ${own("/products/:product_id/ota-profile")}`]: inSpace(
			(place) => own(`/products/${product(place)}/ota-profile`),
			200,
			404,
			() => ({}),
		),

		[`POST ${v5("/devices")}`]: inSpace(
			() => v5("/devices"),
			201,
			403,
			(place) => ({
				app_id: place.appId,
				product_id: product(place),
				node_id: unique("n"),
			}),
		),
		[`GET ${v5("/devices")}`]: inSpace(() => v5("/devices"), 200, "empty"),
		[`GET ${v5("/devices/:device_id")}`]: inSpace(
			({ deviceId }) => v5(`/devices/${deviceId}`),
			200,
			404,
		),
		[`PUT ${v5("/devices/:device_id")}`]: inSpace(
			({ deviceId }) => v5(`/devices/${deviceId}`),
			200,
			404,
			() => ({ device_name: "renamed" }),
		),
		[`DELETE ${v5("/devices/:device_id")}`]: {
			ask: async (server, place) => {
				const { device_id } = await makeDevice(server.api, place.product);
				return { path: v5(`/devices/${device_id}`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`POST ${v5("/devices/:device_id/action")}`]: inSpace(
			({ deviceId }) => v5(`/devices/${deviceId}/action?action_id=resetSecret`),
			200,
			404,
			() => ({}),
		),
		[`POST ${v5("/devices/:device_id/freeze")}`]: {
			ask: async (server, place) => {
				const { device_id } = await makeDevice(server.api, place.product);
				return { path: v5(`/devices/${device_id}/freeze`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`POST ${v5("/devices/:device_id/unfreeze")}`]: {
			ask: async (server, place) => {
				const { device_id } = await makeDevice(server.api, place.product);
				await server.api.freezeDevice(device_id);
				return { path: v5(`/devices/${device_id}/unfreeze`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`GET ${own("/devices/:device_id/ota-profile")}`]: inSpace(
			({ deviceId }) => own(`/devices/${deviceId}/ota-profile`),
			200,
			404,
		),
		[`PUT ${own("/devices/:device_id/ota-profile")}`]: inSpace(
			({ deviceId }) => own(`/devices/${deviceId}/ota-profile`),
			200,
			404,
			() => ({ module_form: "native" }),
		),
		[`GET ${own("/devices/:device_id/events")}`]: inSpace(
			({ deviceId }) => own(`/devices/${deviceId}/events`),
			200,
			404,
		),

		[`POST ${v5("/device-group")}`]: inSpace(
			() => v5("/device-group"),
			201,
			403,
			({ appId }) => ({ app_id: appId, name: unique("g") }),
		),
		[`GET ${v5("/device-group")}`]: inSpace(
			() => v5("/device-group"),
			200,
			"empty",
		),
		[`GET ${v5("/device-group/:group_id")}`]: inSpace(
			({ groupId }) => v5(`/device-group/${groupId}`),
			200,
			404,
		),
		[`PUT ${v5("/device-group/:group_id")}`]: inSpace(
			({ groupId }) => v5(`/device-group/${groupId}`),
			200,
			404,
			() => ({ name: unique("g") }),
		),
		[`DELETE ${v5("/device-group/:group_id")}`]: {
			ask: async ({ api }, { appId }) => {
				const { group_id } = await api.createDeviceGroup({
					app_id: appId,
					name: unique("g"),
				});
				return { path: v5(`/device-group/${group_id}`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`POST ${v5("/device-group/:group_id/action")}`]: {
			ask: async (server, place) => {
				const { device_id } = await makeDevice(server.api, place.product);
				return {
					path: v5(
						`/device-group/${place.groupId}/action?action_id=addDevice&device_id=${device_id}`,
					),
				};
			},
			status: 200,
			elsewhere: 404,
		},
		[`GET ${v5("/device-group/:group_id/devices")}`]: inSpace(
			({ groupId }) => v5(`/device-group/${groupId}/devices`),
			200,
			404,
		),
		[`POST ${v5("/devices/:device_id/list-device-group")}`]: inSpace(
			({ deviceId }) => v5(`/devices/${deviceId}/list-device-group`),
			200,
			404,
		),

		[`POST ${v5("/tags/bind-resource")}`]: inSpace(
			() => v5("/tags/bind-resource"),
			200,
			400,
			({ deviceId }) => ({
				resource_type: "device",
				resource_id: deviceId,
				tags: [{ tag_key: "k", tag_value: "v" }],
			}),
		),
		[`POST ${v5("/tags/unbind-resource")}`]: {
			ask: async ({ api }, { deviceId }) => {
				await api.bindTags({
					resource_type: "device",
					resource_id: deviceId,
					tags: [{ tag_key: "gone", tag_value: "v" }],
				});
				return {
					path: v5("/tags/unbind-resource"),
					body: {
						resource_type: "device",
						resource_id: deviceId,
						tag_keys: ["gone"],
					},
				};
			},
			status: 200,
			elsewhere: 400,
		},
		[`POST ${v5("/tags/query-resources")}`]: inSpace(
			() => v5("/tags/query-resources"),
			200,
			"empty",
			() => ({ resource_type: "device", tags: [{ tag_key: "always" }] }),
		),

		[`POST ${own("/devices::import")}`]: {
			ask: (_server, place) => ({
				path: own(`/devices:import?format=ndjson&app_id=${place.appId}`),
				body: `${JSON.stringify({ product_id: product(place), node_id: unique("n") })}\n`,
				headers: { "content-type": "application/x-ndjson" },
			}),
			status: 202,
			elsewhere: 403,
		},
		[`GET ${own("/device-imports")}`]: inSpace(
			() => own("/device-imports"),
			200,
			"empty",
		),
		[`GET ${own("/device-imports/:import_id")}`]: inSpace(
			({ importId }) => own(`/device-imports/${importId}`),
			200,
			404,
		),
		[`GET ${own("/device-imports/:import_id/refusals")}`]: inSpace(
			({ importId }) => own(`/device-imports/${importId}/refusals`),
			200,
			404,
		),
		[`DELETE ${own("/device-imports/:import_id")}`]: {
			ask: async (server, place) => ({
				path: own(`/device-imports/${await importOne(server, place)}`),
			}),
			status: 204,
			elsewhere: 404,
		},
		[`GET ${own("/devices::export")}`]: inSpace(
			() => own("/devices:export?format=ndjson"),
			200,
			"empty",
		),

		[`POST ${v5("/ota-upgrades/modules")}`]: {
			ask: async ({ api }, { appId }) => {
				const made = await makeProduct(api, { app_id: appId });
				return {
					path: v5("/ota-upgrades/modules"),
					body: {
						app_id: appId,
						product_id: made.product_id,
						module_name: unique("m"),
					},
				};
			},
			status: 201,
			elsewhere: 403,
		},
		[`GET ${v5("/ota-upgrades/modules")}`]: inSpace(
			({ appId }) => v5(`/ota-upgrades/modules?app_id=${appId}`),
			200,
			403,
		),
		...Object.fromEntries(
			(["GET", "PUT", "DELETE"] as const).map((method) => [
				`${method} ${v5("/ota-upgrades/modules/:module_id")}`,
				{
					ask: async ({ api }, { appId }) => {
						const made = await makeProduct(api, { app_id: appId });
						const { module_id } = await makeModule(api, made, unique("m"));
						return {
							path: v5(`/ota-upgrades/modules/${module_id}`),
							...(method === "PUT" && { body: { description: "x" } }),
						};
					},
					status: method === "DELETE" ? 204 : 200,
					elsewhere: 404,
				} satisfies Row,
			]),
		),
		[`POST ${v5("/ota-upgrades/packages")}`]: {
			ask: async ({ api }, place) => ({
				path: v5("/ota-upgrades/packages"),
				body: {
					app_id: place.appId,
					product_id: product(place),
					package_type: "firmwarePackage",
					version: unique("v"),
					file_location: await signedUpload(api),
				},
			}),
			status: 201,
			elsewhere: 403,
		},
		[`GET ${v5("/ota-upgrades/packages")}`]: inSpace(
			() => v5("/ota-upgrades/packages?package_type=firmwarePackage"),
			200,
			"empty",
		),
		[`GET ${v5("/ota-upgrades/packages/:package_id")}`]: inSpace(
			({ packageId }) => v5(`/ota-upgrades/packages/${packageId}`),
			200,
			404,
		),
		[`DELETE ${v5("/ota-upgrades/packages/:package_id")}`]: {
			ask: async ({ api }, place) => {
				const { package_id } = await makePackage(api, place.product, {
					version: unique("v"),
				});
				return { path: v5(`/ota-upgrades/packages/${package_id}`) };
			},
			status: 204,
			elsewhere: 404,
		},

		[`POST ${v5("/batchtasks")}`]: inSpace(
			() => v5("/batchtasks"),
			201,
			403,
			({ appId, packageId, deviceId }) => ({
				app_id: appId,
				task_name: unique("t").replace("-", "_"),
				task_type: "firmwareUpgrade",
				targets: [deviceId],
				document: { package_ids: [packageId] },
			}),
		),
		[`GET ${v5("/batchtasks")}`]: inSpace(
			() => v5("/batchtasks?task_type=firmwareUpgrade"),
			200,
			"empty",
		),
		[`GET ${v5("/batchtasks/:task_id")}`]: inSpace(
			({ taskId }) => v5(`/batchtasks/${taskId}`),
			200,
			404,
		),
		[`DELETE ${v5("/batchtasks/:task_id")}`]: {
			ask: async (server, place) => {
				const taskId = await makeTask(server, place);
				await server.api.stopTask(taskId);
				for (;;) {
					const { batchtask } = await server.api.getTask(taskId);
					if (batchtask.status === "Stopped") break;
					await new Promise((resolve) => setTimeout(resolve, 20));
				}
				return { path: v5(`/batchtasks/${taskId}`) };
			},
			status: 204,
			elsewhere: 404,
		},
		[`GET ${own("/batchtasks/:task_id/targets/:device_id/why")}`]: inSpace(
			({ taskId, deviceId }) =>
				own(`/batchtasks/${taskId}/targets/${deviceId}/why`),
			200,
			404,
		),
		[`POST ${v5("/batchtasks/:task_id/retry")}`]: inSpace(
			({ taskId }) => v5(`/batchtasks/${taskId}/retry`),
			200,
			404,
			() => ({}),
		),
		[`POST ${v5("/batchtasks/:task_id/stop")}`]: {
			ask: async (server, place) => ({
				path: v5(`/batchtasks/${await makeTask(server, place)}/stop`),
				body: {},
			}),
			status: 200,
			elsewhere: 404,
		},
		[`POST ${v5("/batchtasks/:task_id/confirm")}`]: {
			ask: async (server, place) => ({
				path: v5(
					`/batchtasks/${await makeTask(server, place, { need_confirm: true })}/confirm`,
				),
				body: {},
			}),
			status: 200,
			elsewhere: 404,
		},
		[`GET ${own("/events")}`]: inSpace(
			({ taskId }) => own(`/events?task_id=${taskId}`),
			200,
			404,
		),

		...objectRows(own),
	};
}

function objectRows(own: (path: string) => string): Record<string, Row> {
	const object = "/objects/:bucket_name/*";
	const one = (status: number): Row => ({
		ask: async ({ api }) => {
			const { obs_location } = await upload(api);
			return {
				path: own(
					`/objects/${obs_location.bucket_name}/${obs_location.object_key}`,
				),
			};
		},
		status,
		elsewhere: "instance",
	});
	return {
		[`PUT ${own(object)}`]: {
			ask: () => ({
				path: own(`/objects/firmware/${unique("f")}.bin`),
				body: "bytes",
				headers: { "content-type": "application/octet-stream" },
			}),
			status: 201,
			elsewhere: "instance",
		},
		[`GET ${own(object)}`]: one(200),
		[`HEAD ${own(object)}`]: one(200),
		[`DELETE ${own(object)}`]: one(204),
		[`GET ${own("/objects/:bucket_name")}`]: {
			ask: () => ({ path: own("/objects/firmware") }),
			status: 200,
			elsewhere: "instance",
		},
	};
}

/** Who may not read files names one by its hash too. */
async function signedUpload(api: Client) {
	const bytes = randomBytes(64);
	const { obs_location } = await upload(api, `${unique("f")}.bin`, bytes);
	const sign = createHash("sha256").update(bytes).digest("hex");
	return { obs_location: { ...obs_location, sign } };
}

async function importOne(server: TestServer, place: Place): Promise<string> {
	const { import_id } = await server.api.importDevices(
		`${JSON.stringify({ product_id: product(place), node_id: unique("n") })}\n`,
		{ format: "ndjson", appId: place.appId },
	);
	return import_id;
}

async function makeTask(
	{ api }: TestServer,
	{ appId, packageId, product: of }: Place,
	fields: object = {},
): Promise<string> {
	const { device_id } = await makeDevice(api, of);
	const { task_id } = await api.createTask({
		app_id: appId,
		task_name: unique("t").replace("-", "_"),
		task_type: "firmwareUpgrade",
		targets: [device_id],
		document: { package_ids: [packageId] },
		...fields,
	});
	return task_id;
}

async function makePlace(server: TestServer): Promise<Place> {
	const { api } = server;
	const { app_id: appId } = await api.createResourceSpace({
		app_name: unique("space"),
	});
	const made = await makeProduct(api, { app_id: appId });
	const { package_id: packageId } = await makePackage(api, made);
	const { device_id: deviceId } = await makeDevice(api, made);
	await api.bindTags({
		resource_type: "device",
		resource_id: deviceId,
		tags: [{ tag_key: "always", tag_value: "" }],
	});
	const { group_id: groupId } = await api.createDeviceGroup({
		app_id: appId,
		name: unique("g"),
	});
	const place = { appId, product: made, packageId, deviceId, groupId };
	const { task_id: taskId } = await api.createTask({
		app_id: appId,
		task_name: unique("t").replace("-", "_"),
		task_type: "firmwareUpgrade",
		targets: [deviceId],
		document: { package_ids: [packageId] },
	});
	const whole = { ...place, taskId, importId: "" };
	return { ...whole, importId: await importOne(server, whole) };
}

type Proof =
	| { key: TestUser["key"]; date?: Date }
	| { token: string }
	| undefined;

async function call(
	server: TestServer,
	method: string,
	ask: Ask,
	proof: Proof,
): Promise<Answer> {
	const path = ask.path.replace(":project_id", server.credentials.project_id);
	const body =
		ask.body === undefined || typeof ask.body === "string"
			? ask.body
			: JSON.stringify(ask.body);
	const headers: Record<string, string> = {
		...(body !== undefined && { "content-type": "application/json" }),
		...ask.headers,
	};
	// Streams of events end for us with their first bytes.
	if (/\/events\?task_id/.test(path)) return firstBytes(server, path, proof);
	if (proof === undefined || "token" in proof)
		return send(server.url, {
			method,
			path,
			headers: {
				...headers,
				...(proof && { "x-auth-token": proof.token }),
			},
			...(body !== undefined && { body }),
		});
	const declared = createHash("sha256")
		.update(body ?? "")
		.digest("hex");
	return send(
		server.url,
		await signed(server, {
			method,
			path,
			headers: {
				...headers,
				...(ask.headers && { "x-sdk-content-sha256": declared }),
			},
			...(body !== undefined && { body }),
			...proof,
		}),
	);
}

async function firstBytes(
	server: TestServer,
	path: string,
	proof: Proof,
): Promise<Answer> {
	const request =
		proof === undefined || "token" in proof
			? { path, headers: proof ? { "x-auth-token": proof.token } : {} }
			: await signed(server, { path, ...proof });
	const { host: _host, ...headers } = request.headers as Record<string, string>;
	const closing = new AbortController();
	const answer = await fetch(new URL(path, server.url), {
		headers,
		signal: closing.signal,
	});
	const text = answer.ok ? "" : await answer.text();
	closing.abort();
	return {
		status: answer.status,
		headers: {},
		text,
		json: text === "" ? undefined : JSON.parse(text),
	};
}

function assertForbidden(answer: Answer, what: string): void {
	assert.equal(answer.status, 403, `${what}: ${answer.status} ${answer.text}`);
	if (answer.text === "") return;
	const code = answer.json.error_code ?? answer.json.error?.code;
	assert.ok(code === "IOTDA.000022" || code === 403, `${what}: ${answer.text}`);
}

/** Whether a list, or a file of lines, shows nothing. */
function isEmpty({ json, text }: Answer): boolean {
	if (text.trim() === "") return true;
	const list = Object.values(json ?? {}).find(Array.isArray);
	return Array.isArray(list) && list.length === 0;
}

forEachEngine((engine) => {
	let server: TestServer;
	let here: Place;
	let there: Place;
	let user: TestUser;
	let nobody: TestUser;
	let foreignToken: string;
	const all = rows();

	before(async () => {
		server = await startServer(engine);
		[here, there] = [await makePlace(server), await makePlace(server)];
		user = await makeUser(server.api);
		nobody = await makeUser(server.api);
		const { project_id } = await server.api.call<{ project_id: string }>(
			"POST",
			"/otaru/v1/access/projects",
			{ json: { project_name: unique("other") } },
		);
		const { user_name, domain_name, password } = server.credentials;
		({ token: foreignToken } = await new Client({
			endpoint: server.url,
			projectId: project_id,
		}).signIn({
			userName: user_name,
			domainName: domain_name,
			password,
		}));
	});
	after(() => server[Symbol.asyncDispose]());

	/** Routes of projects: what concerns no project is granted as a whole, see below. */
	const ofProjects = () =>
		server.server.routes.filter(
			({ path, open }) => !open && path.includes(":project_id"),
		);

	test("every route of projects has a row here", () => {
		assert.deepEqual(
			ofProjects()
				.map(({ method, path }) => `${method} ${path}`)
				.filter((name) => !(name in all)),
			[],
		);
	});

	test("whoever is not signed in is refused, whatever he asks for", async () => {
		for (const [name, row] of Object.entries(all)) {
			const [method = ""] = name.split(" ");
			const ask = await row.ask(server, here);
			const wrong = { ...user.key, secretKey: "x".repeat(40) };
			const late = new Date(Date.now() - 16 * 60_000);
			for (const [what, proof] of [
				["no credential", undefined],
				["a wrong signature", { key: wrong }],
				["an old date", { key: user.key, date: late }],
				["an unknown token", { token: "unknown" }],
			] as const) {
				const answer = await call(server, method, ask, proof);
				assert.equal(answer.status, 401, `${name}, ${what}: ${answer.text}`);
				if (answer.text !== "")
					assert.equal(answer.json.error_code, "APIGW.0301", name);
			}
			// One that is right ends the count of the wrong ones: the next is looked at.
			const ownAffairs = { path: "/v5/caller-identity" };
			await call(server, "GET", ownAffairs, { key: user.key });
		}
	});

	test("a token of another project, and a user without a grant, are refused", async () => {
		for (const [name, row] of Object.entries(all)) {
			const [method = ""] = name.split(" ");
			const ask = await row.ask(server, here);
			for (const [what, proof] of [
				["a token of another project", { token: foreignToken }],
				["no grant", { key: nobody.key }],
			] as const)
				assertForbidden(
					await call(server, method, ask, proof),
					`${name}, ${what}`,
				);
		}
	});

	test("an action on one resource space is allowed there, and nowhere else", async () => {
		const actions = new Map(
			server.server.routes.map(({ method, path, action }) => [
				`${method} ${path}`,
				action ?? "",
			]),
		);
		for (const [name, row] of Object.entries(all)) {
			const [method = ""] = name.split(" ");
			const action = actions.get(name) ?? "";
			const resource = row.elsewhere === "instance" ? "*" : ofSpace(here.appId);
			const allow = await grant(server.api, user, [
				{ Effect: "Allow", Action: [action], Resource: [resource] },
			]);
			const inside = await row.ask(server, here);
			const allowed = await call(server, method, inside, { key: user.key });
			assert.equal(
				allowed.status,
				row.status,
				`${name}: ${allowed.text.slice(0, 300)}`,
			);
			assert.notEqual(allowed.json?.error_code, "IOTDA.000022", name);
			if (row.elsewhere === "empty")
				assert.ok(!isEmpty(allowed), `${name} shows nothing`);

			const deny = await grant(server.api, user, [
				{ Effect: "Deny", Action: [action], Resource: [resource] },
			]);
			const denied = await call(server, method, await row.ask(server, here), {
				key: user.key,
			});
			if (row.elsewhere === "empty")
				assert.ok(
					denied.status === 403 || isEmpty(denied),
					`${name}, denied: ${denied.text.slice(0, 300)}`,
				);
			else if (row.elsewhere === 404 || row.elsewhere === 400)
				assert.ok(
					denied.status === row.elsewhere || denied.status === 403,
					`${name}, denied: ${denied.text.slice(0, 300)}`,
				);
			else assertForbidden(denied, `${name}, denied`);
			await deny.revoke();
			await allow.revoke();

			const elsewhere = await grant(server.api, user, [
				{ Effect: "Allow", Action: [action], Resource: [ofSpace(there.appId)] },
			]);
			const outside = await call(server, method, await row.ask(server, here), {
				key: user.key,
			});
			switch (row.elsewhere) {
				case 403:
				case "instance":
					assertForbidden(outside, `${name}, from elsewhere`);
					break;
				case 404:
				case 400:
					assert.equal(
						outside.status,
						row.elsewhere,
						`${name}: ${outside.text}`,
					);
					break;
				case "empty":
					assert.equal(outside.status, 200, `${name}: ${outside.text}`);
					assert.ok(
						!outside.text.includes(here.deviceId) &&
							!outside.text.includes(here.appId) &&
							!outside.text.includes(here.taskId),
						`${name} shows what is elsewhere: ${outside.text.slice(0, 300)}`,
					);
					break;
				default:
					row.elsewhere satisfies never;
			}
			await elsewhere.revoke();
		}
	});

	test("what concerns no project is refused without a grant of its action, but for what everyone may", async () => {
		for (const route of server.server.routes) {
			const { method, path, open, everyone, administratorsOnly } = route;
			const { action = "" } = route;
			if (open || path.includes(":project_id")) continue;
			const name = `${method} ${path}`;
			const ask = {
				path: path
					.replaceAll(/(?<!:):\w+/g, "0".repeat(32))
					.replaceAll("::", ":"),
				...(method !== "GET" && { body: {} }),
			};
			const stranger = await call(server, method, ask, undefined);
			assert.equal(stranger.status, 401, name);
			const without = await call(server, method, ask, { key: nobody.key });
			if (everyone) {
				assert.notEqual(without.json?.error_code, "IOTDA.000022", name);
				continue;
			}
			assertForbidden(without, name);
			const { revoke } = await grant(server.api, user, [
				{ Effect: "Allow", Action: [action] },
			]);
			const allowed = await call(server, method, ask, { key: user.key });
			if (administratorsOnly) assertForbidden(allowed, name);
			else
				assert.notEqual(
					allowed.json?.error_code,
					"IOTDA.000022",
					`${name}: ${allowed.text.slice(0, 300)}`,
				);
			await revoke();
		}
	});
});
