import assert from "node:assert/strict";
import { test } from "node:test";
import { forEachEngine } from "./support/engines.ts";
import {
	makeModule,
	makePackage,
	makeProduct,
	refused,
	succeeded,
} from "./support/seed.ts";
import { startServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";

forEachEngine((engine) => {
	test("the vendor's example is answered with 201 and exactly its eight fields", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		await makeProduct(api, { product_id: "5ba24f5ebbe8f56f5a14f605" });
		const answer = await api.send(
			"POST",
			`/v5/iot/${credentials.project_id}/ota-upgrades/modules`,
			{
				json: {
					app_id: credentials.app_id,
					product_id: "5ba24f5ebbe8f56f5a14f605",
					module_name: "MCU",
					alias_name: "Micro Controller Unit",
					description: "Microcontroller unit firmware module.",
				},
			},
		);
		assert.equal(answer.status, 201);
		assert.equal(answer.headers.get("content-type"), "application/json");
		assert.ok(answer.headers.get("x-request-id"));
		const { module_id, create_time, ...rest } = (await answer.json()) as Record<
			string,
			string
		>;
		assert.deepEqual(rest, {
			app_id: credentials.app_id,
			product_id: "5ba24f5ebbe8f56f5a14f605",
			product_name: "Thermometer",
			module_name: "MCU",
			alias_name: "Micro Controller Unit",
			description: "Microcontroller unit firmware module.",
		});
		assert.match(module_id ?? "", /^[0-9a-f]{32}$/);
		assert.match(create_time ?? "", /^\d{8}T\d{6}Z$/);
	});

	test("a module is shown and listed as it was created, and leaves out what it does not have", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const bare = await makeModule(api, product, "MCU");
		assert.deepEqual(Object.keys(bare).sort(), [
			"app_id",
			"create_time",
			"module_id",
			"module_name",
			"product_id",
			"product_name",
		]);
		assert.deepEqual(await api.getOtaModule(bare.module_id), bare);
		const { modules, page } = await api.listOtaModules({
			app_id: product.app_id,
		});
		assert.deepEqual(modules, [bare]);
		assert.equal(page.count, 1);
		assert.match(page.marker ?? "", /^[0-9a-f]{24}$/);
	});

	test("an alias takes letters, digits, the three signs, Chinese characters and blanks between", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const module = await makeModule(api, product, "MCU");
		for (const alias of [
			"a",
			"a b",
			"a  b",
			"微 控制器",
			"A_b-c.1",
			"x".repeat(64),
		]) {
			const changed = await api.updateOtaModule(module.module_id, {
				alias_name: alias,
			});
			assert.equal(changed.alias_name, alias);
		}
	});

	test("an update leaves what is missing, clears what is empty, and never touches the name", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const created = await api.createOtaModule({
			app_id: product.app_id,
			product_id: product.product_id,
			module_name: "MCU",
			alias_name: "Controller",
			description: "first\nline 固件 🚀",
		});
		const update = (body: object) =>
			api.updateOtaModule(created.module_id, body);

		assert.deepEqual(await update({}), created);
		assert.deepEqual(await update({ module_name: "Other", slot: 5 }), created);
		assert.deepEqual(await update({ alias_name: "MCU 2" }), {
			...created,
			alias_name: "MCU 2",
		});
		const { alias_name: _, ...withoutAlias } = created;
		assert.deepEqual(await update({ alias_name: "" }), withoutAlias);
		const cleared = await update({ alias_name: "again", description: "" });
		assert.deepEqual(Object.keys(cleared).includes("description"), false);
		assert.equal(cleared.alias_name, "again");
		assert.deepEqual(await api.getOtaModule(created.module_id), cleared);
	});

	test("the product's name is the one it has now", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const module = await makeModule(api, product, "MCU");
		await api.updateProduct(product.product_id, { name: "Hygrometer" });
		assert.equal(
			(await api.getOtaModule(module.module_id)).product_name,
			"Hygrometer",
		);
	});

	test("a name is unique in its product, to the letter, and free in another", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const other = await makeProduct(api);
		await makeModule(api, product, "MCU");
		await refused(
			makeModule(api, product, "MCU"),
			400,
			"IOTDA.014951",
			"already exists",
		);
		await makeModule(api, product, "mcu");
		await makeModule(api, other, "MCU");
	});

	test("of the same name created thirty times at once one module exists", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const created = await succeeded(
			Array.from({ length: 30 }, () => makeModule(api, product, "MCU")),
			400,
			"IOTDA.014951",
		);
		assert.equal(created, 1);
	});

	test("of thirty modules created at once exactly ten exist, and never an eleventh", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const created = await succeeded(
			Array.from({ length: 30 }, (_, index) =>
				makeModule(api, product, `module${index}`),
			),
			403,
			"IOTDA.014952",
		);
		assert.equal(created, 10);
		const list = () =>
			api.listOtaModules({ app_id: product.app_id, limit: 50 });
		const { modules } = await list();
		assert.equal(modules.length, 10);

		const taken = modules[4]?.module_name ?? "";
		await refused(makeModule(api, product, taken), 400, "IOTDA.014951");
		await refused(
			makeModule(api, product, "eleventh"),
			403,
			"IOTDA.014952",
			"upper limit",
		);
		await makeModule(api, await makeProduct(api), "eleventh");

		await api.deleteOtaModule(modules[4]?.module_id ?? "");
		await api.deleteOtaModule(modules[7]?.module_id ?? "");
		assert.equal(
			await succeeded(
				Array.from({ length: 10 }, (_, index) =>
					makeModule(api, product, `later${index}`),
				),
				403,
				"IOTDA.014952",
			),
			2,
		);
		assert.equal(
			(
				await api.listOtaModules({
					app_id: product.app_id,
					product_id: product.product_id,
				})
			).page.count,
			10,
		);
	});

	test("the list is that of a space, or of one product in it", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const a = await makeProduct(api);
		const b = await makeProduct(api);
		const elsewhere = await makeProduct(api, {
			app_id: space.app_id,
			product_id: a.product_id,
		});
		const names = async (query: { app_id: string; product_id?: string }) =>
			(await api.listOtaModules(query)).modules.map((module) => [
				module.product_id,
				module.module_name,
			]);
		await makeModule(api, a, "one");
		await makeModule(api, b, "two");
		await makeModule(api, elsewhere, "three");

		assert.deepEqual(await names({ app_id: a.app_id }), [
			[b.product_id, "two"],
			[a.product_id, "one"],
		]);
		assert.deepEqual(
			await names({ app_id: a.app_id, product_id: a.product_id }),
			[[a.product_id, "one"]],
		);
		assert.deepEqual(await names({ app_id: space.app_id }), [
			[a.product_id, "three"],
		]);
		assert.deepEqual(
			await names({ app_id: a.app_id, product_id: "no-such-product" }),
			[],
		);
	});

	test("a product that the space does not have is refused with 400", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		await refused(
			makeModule(api, { ...product, product_id: UNKNOWN }, "MCU"),
			400,
			"IOTDA.013900",
			"product_id",
		);
		await refused(
			makeModule(api, { ...product, app_id: space.app_id }, "MCU"),
			400,
			"IOTDA.013900",
			"product_id",
		);
		await refused(
			makeModule(api, { ...product, app_id: UNKNOWN }, "MCU"),
			403,
			"IOTDA.001000",
		);
	});

	test("an unknown module is refused with 404, and so is one just deleted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const module = await makeModule(api, await makeProduct(api), "MCU");
		await api.deleteOtaModule(module.module_id);
		for (const id of [UNKNOWN, module.module_id, "x"]) {
			await refused(api.getOtaModule(id), 404, "IOTDA.014950");
			await refused(
				api.updateOtaModule(id, { alias_name: "a" }),
				404,
				"IOTDA.014950",
			);
			await refused(api.deleteOtaModule(id), 404, "IOTDA.014950");
		}
	});

	test("a module stays while packages name it", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const module = await makeModule(api, product, "MCU");
		await makePackage(api, product);
		const named = await makePackage(api, product, {
			package_type: "modulePackage",
			module_name: "MCU",
		});
		await refused(
			api.deleteOtaModule(module.module_id),
			403,
			"IOTDA.014953",
			"used by upgrade packages",
		);
		await api.deletePackage(named.package_id);
		await api.deleteOtaModule(module.module_id);
	});

	test("a module deleted while a package is made for it leaves no package without a module", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const { file_location } = await makePackage(api, product);
		for (let round = 0; round < 8; round++) {
			const module = await makeModule(api, product, "MCU");
			const [made, removed] = await Promise.allSettled([
				makePackage(api, product, {
					package_type: "modulePackage",
					module_name: "MCU",
					file_location,
				}),
				api.deleteOtaModule(module.module_id),
			]);
			assert.notEqual(made.status, removed.status);
			if (made.status === "fulfilled") {
				await api.deletePackage(made.value.package_id);
				await api.deleteOtaModule(module.module_id);
			} else await refused(Promise.reject(made.reason), 400, "IOTDA.014950");
		}
	});
});
