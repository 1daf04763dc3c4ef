import assert from "node:assert/strict";
import { test } from "node:test";
import type { ServiceCapability } from "../wire/products.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	succeeded,
	upload,
} from "./support/seed.ts";
import { startServer } from "./support/server.ts";

/** Every key of the model, and some that the vendor may add later. */
const capabilities = [
	{
		service_id: "Thermo$1",
		service_type: "Thermo",
		description: "reads; the room，",
		option: "Mandatory",
		properties: [
			{
				property_name: "temperature",
				data_type: "decimal",
				method: "RWE",
				required: true,
				min: "-40",
				max: "85.5",
				step: 0.1,
				unit: "°C",
				description: "now",
				default_value: { any: ["thing", null, 1.5] },
			},
			{
				property_name: "mode",
				data_type: "enum",
				method: "R",
				enum_list: ["on", "off", ""],
				max_length: 3,
			},
		],
		commands: [
			{
				command_name: "reset",
				paras: [{ para_name: "how", data_type: "string list", max_length: 0 }],
				responses: [
					{
						response_name: "done",
						paras: [{ para_name: "at", data_type: "DateTime" }],
					},
				],
			},
		],
		events: [
			{
				event_type: "overheated",
				paras: [{ para_name: "by", data_type: "int", min: "0", max: "9" }],
			},
		],
		later: { added: "by the vendor" },
	},
	{ service_id: "Empty", service_type: "Empty", properties: [] },
] as unknown as ServiceCapability[];

forEachEngine((engine) => {
	test("a product is shown as it was created, its model to the letter", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const created = await api.createProduct({
			product_id: "Thermo_1-a",
			name: "温度计#1",
			device_type: "Thermometer",
			protocol_type: "MQTT",
			data_format: "json",
			manufacturer_name: "ACME",
			industry: "home",
			description: "measures;\nand tells",
			service_capabilities: capabilities,
			app_id: credentials.app_id,
		});
		const { app_name, create_time, ...rest } = created;
		assert.ok(app_name);
		assert.match(create_time, /^\d{8}T\d{6}Z$/);
		assert.deepEqual(rest, {
			app_id: credentials.app_id,
			product_id: "Thermo_1-a",
			name: "温度计#1",
			device_type: "Thermometer",
			protocol_type: "MQTT",
			data_format: "json",
			manufacturer_name: "ACME",
			industry: "home",
			description: "measures;\nand tells",
			service_capabilities: capabilities,
		});
		assert.deepEqual(await api.getProduct("Thermo_1-a"), created);
		const { service_capabilities: _, ...item } = created;
		assert.deepEqual((await api.listProducts()).products, [item]);
	});

	test("a product without an id gets one of 24 hexadecimal digits, in the default space", async () => {
		await using server = await startServer(engine);
		const product = await makeProduct(server.api);
		assert.match(product.product_id, /^[0-9a-f]{24}$/);
		assert.equal(product.app_id, server.credentials.app_id);
		assert.equal("manufacturer_name" in product, false);
	});

	test("an id is unique in its space and free in another", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		await makeProduct(api, { product_id: "p" });
		await refused(
			makeProduct(api, { product_id: "p" }),
			400,
			"IOTDA.013902",
			"already exists",
		);
		await makeProduct(api, { product_id: "p", app_id: space.app_id });
		assert.equal(
			await succeeded(
				Array.from({ length: 12 }, () =>
					makeProduct(api, { product_id: "race" }),
				),
				400,
				"IOTDA.013902",
			),
			1,
		);
	});

	test("without a space the one in the default space is meant, else the oldest", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const old = await api.createResourceSpace({ app_name: "old" });
		const young = await api.createResourceSpace({ app_name: "young" });
		// The product in the younger space is the older one.
		await makeProduct(api, { product_id: "p", app_id: young.app_id });
		await makeProduct(api, { product_id: "p", app_id: old.app_id });
		const where = async () => (await api.getProduct("p")).app_id;
		assert.equal(await where(), young.app_id);
		await makeProduct(api, { product_id: "p" });
		assert.equal(await where(), credentials.app_id);

		const changed = await api.updateProduct("p", { name: "changed" });
		assert.equal(changed.app_id, credentials.app_id);
		assert.equal(
			(await api.getProduct("p", { app_id: old.app_id })).name,
			"Thermometer",
		);
		await api.updateProduct("p", { app_id: old.app_id, name: "old" });
		assert.equal(
			(await api.getProduct("p", { app_id: old.app_id })).name,
			"old",
		);

		await api.deleteProduct("p");
		assert.equal(await where(), young.app_id);
		await api.deleteProduct("p");
		assert.equal(await where(), old.app_id);
		await api.deleteProduct("p", { app_id: old.app_id });
		await refused(api.getProduct("p"), 404, "IOTDA.013900");
	});

	test("an update leaves what is missing and clears what is empty", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const created = await makeProduct(api, {
			manufacturer_name: "ACME",
			industry: "home",
			description: "d",
			service_capabilities: capabilities,
		});
		const update = (body: Parameters<typeof api.updateProduct>[1]) =>
			api.updateProduct(created.product_id, body);
		assert.deepEqual(await update({}), created);
		const { manufacturer_name: _, industry: __, ...rest } = created;
		assert.deepEqual(
			await update({ manufacturer_name: "", industry: "", description: "new" }),
			{ ...rest, description: "new" },
		);
		const changed = await update({
			name: "n",
			device_type: "t",
			data_format: "binary",
			protocol_type: "HTTP",
			service_capabilities: [],
		});
		assert.deepEqual(changed, {
			...rest,
			description: "new",
			name: "n",
			device_type: "t",
			data_format: "binary",
			protocol_type: "HTTP",
			service_capabilities: [],
		});
		assert.deepEqual(await api.getProduct(created.product_id), changed);
	});

	test("no product becomes a CoAP product, but one may stay one", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const mqtt = await makeProduct(api);
		await refused(
			api.updateProduct(mqtt.product_id, { protocol_type: "CoAP", name: "x" }),
			403,
			"IOTDA.013905",
			"CoAP",
		);
		assert.deepEqual(await api.getProduct(mqtt.product_id), mqtt);
		const coap = await makeProduct(api, { protocol_type: "CoAP" });
		await api.updateProduct(coap.product_id, { protocol_type: "CoAP" });
		await api.updateProduct(coap.product_id, { protocol_type: "MQTT" });
		await refused(
			api.updateProduct(coap.product_id, { protocol_type: "CoAP" }),
			403,
			"IOTDA.013905",
		);
	});

	test("a model whose names repeat, or that is larger than 500 KB, is refused by its path", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const service = (service_id: string, rest: object = {}) =>
			({ service_id, service_type: "t", ...rest }) as ServiceCapability;
		const property = { property_name: "p", data_type: "int", method: "R" };
		const cases: [ServiceCapability[], string][] = [
			[
				[service("a"), service("b"), service("a")],
				"service_capabilities[2].service_id must not repeat",
			],
			[
				[service("a"), service("b", { properties: [property, property] })],
				"service_capabilities[1].properties[1].property_name must not repeat",
			],
			[
				[
					service("a", {
						commands: [{ command_name: "c" }, { command_name: "c" }],
					}),
				],
				"service_capabilities[0].commands[1].command_name must not repeat",
			],
			[
				[service("a", { note: "x".repeat(512_000) })],
				"service_capabilities must be at most 500 KB",
			],
		];
		for (const [service_capabilities, words] of cases)
			await refused(
				makeProduct(api, { service_capabilities }),
				400,
				"IOTDA.000006",
				words,
			);
		assert.equal((await api.listProducts()).page.count, 0);

		const largest = [service("a", { note: "" })];
		const room = 500 * 1024 - JSON.stringify(largest).length;
		Object.assign(largest[0] ?? {}, { note: "x".repeat(room) });
		const product = await makeProduct(api, { service_capabilities: largest });
		assert.deepEqual(product.service_capabilities, largest);
		// The same names in two services are no repetition.
		await makeProduct(api, {
			service_capabilities: [
				service("a", { properties: [property] }),
				service("b", { properties: [property] }),
			],
		});
	});

	test("the list is filtered by space and by the exact name", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		await makeProduct(api, { product_id: "a", name: "One" });
		await makeProduct(api, { product_id: "b", name: "One.1" });
		await makeProduct(api, {
			product_id: "c",
			name: "One",
			app_id: space.app_id,
		});
		const ids = async (query: Parameters<typeof api.listProducts>[0]) =>
			(await api.listProducts(query)).products.map((p) => p.product_id);
		assert.deepEqual(await ids({}), ["c", "b", "a"]);
		assert.deepEqual(await ids({ product_name: "One" }), ["c", "a"]);
		assert.deepEqual(await ids({ product_name: "one" }), []);
		assert.deepEqual(await ids({ app_id: credentials.app_id }), ["b", "a"]);
		assert.deepEqual(await ids({ app_id: space.app_id, product_name: "One" }), [
			"c",
		]);
	});

	test("a product with devices stays; without them it takes modules and packages along, but no files", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const module = await makeModule(api, product, "MCU");
		const file_location = await upload(api, "kept.bin");
		const built = await makePackage(api, product, { file_location });
		const device = await makeDevice(api, product);

		await refused(
			api.deleteProduct(product.product_id),
			403,
			"IOTDA.013901",
			"has devices",
		);
		await api.deleteDevice(device.device_id);
		await api.deleteProduct(product.product_id);

		await refused(api.getProduct(product.product_id), 404, "IOTDA.013900");
		await refused(api.deleteProduct(product.product_id), 404, "IOTDA.013900");
		await refused(api.getOtaModule(module.module_id), 404, "IOTDA.014950");
		await refused(api.getPackage(built.package_id), 404, "IOTDA.014960");
		const again = await makeProduct(api, { product_id: product.product_id });
		assert.equal(
			(await api.listOtaModules({ app_id: again.app_id })).page.count,
			0,
		);
		await makePackage(api, again, { file_location });
	});

	test("a product stays while an unfinished task uses it", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const built = await makePackage(api, product);
		const device = await makeDevice(api, product);
		const waiting = await makeDevice(api, product);
		const task = await api.createTask({
			app_id: product.app_id,
			task_name: "rollout",
			task_type: "firmwareUpgrade",
			targets: [device.device_id, waiting.device_id],
			document: { package_ids: [built.package_id] },
		});
		await refused(api.deleteProduct(product.product_id), 403, "IOTDA.013901");
		await api.deleteDevice(device.device_id);
		await refused(api.deleteProduct(product.product_id), 403, "IOTDA.013901");
		await api.stopTask(task.task_id);
		await api.deleteDevice(waiting.device_id);
		await untilGone(() => api.deleteProduct(product.product_id));
		await refused(api.getProduct(product.product_id), 404, "IOTDA.013900");
	});

	test("a product deleted while a device is registered for it leaves no device without a product", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		for (let round = 0; round < 8; round++) {
			const product = await makeProduct(api);
			const [made, removed] = await Promise.allSettled([
				makeDevice(api, product),
				api.deleteProduct(product.product_id),
			]);
			assert.notEqual(made.status, removed.status);
			if (made.status === "rejected")
				await refused(Promise.reject(made.reason), 400, "IOTDA.013900");
		}
	});

	test("a project has at most a thousand products", {
		timeout: 300_000,
	}, async () => {
		await using server = await startServer(engine);
		const { api } = server;
		for (let made = 0; made < 990; made += 30)
			await Promise.all(
				Array.from({ length: 30 }, (_, index) =>
					makeProduct(api, { product_id: `p${made + index}` }),
				),
			);
		assert.equal(
			await succeeded(
				Array.from({ length: 30 }, () => makeProduct(api)),
				403,
				"IOTDA.013903",
			),
			10,
		);
		assert.equal((await api.listProducts()).page.count, 1000);
		await refused(makeProduct(api, { product_id: "p0" }), 400, "IOTDA.013902");
	});

	test("how a product's devices take upgrades is set apart from the vendor's fields", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const id = product.product_id;
		assert.deepEqual(await api.getProductOtaProfile(id), {
			module_form: "none",
			download_form: "presigned",
		});
		assert.deepEqual(
			await api.updateProductOtaProfile(id, { module_form: "native" }),
			{ module_form: "native", download_form: "presigned" },
		);
		assert.deepEqual(
			await api.updateProductOtaProfile(id, { download_form: "token" }),
			{ module_form: "native", download_form: "token" },
		);
		assert.deepEqual(await api.updateProductOtaProfile(id, {}), {
			module_form: "native",
			download_form: "token",
		});
		assert.deepEqual(await api.getProduct(id), product);

		const space = await api.createResourceSpace({ app_name: "other" });
		await makeProduct(api, { product_id: id, app_id: space.app_id });
		await api.updateProductOtaProfile(
			id,
			{ module_form: "compatible" },
			{ app_id: space.app_id },
		);
		assert.equal((await api.getProductOtaProfile(id)).module_form, "native");
		await refused(api.getProductOtaProfile("unknown"), 404, "IOTDA.013900");
		await refused(
			api.updateProductOtaProfile("unknown", {}),
			404,
			"IOTDA.013900",
		);
	});
});

/** A stopped task finishes a moment after the answer. */
async function untilGone(remove: () => Promise<void>): Promise<void> {
	for (let attempt = 0; ; attempt++) {
		try {
			return await remove();
		} catch (error) {
			if (attempt === 100) throw error;
			await new Promise((resolve) => setTimeout(resolve, 50));
		}
	}
}
