import assert from "node:assert/strict";
import { test } from "node:test";
import { forEachEngine } from "./support/engines.ts";
import { makeProduct, refused, succeeded } from "./support/seed.ts";
import { startServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";

forEachEngine((engine) => {
	test("a project starts with one default space, which can be renamed but not deleted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { applications } = await api.listResourceSpaces();
		assert.equal(applications.length, 1);
		const [space] = applications;
		assert.ok(space);
		assert.equal(space.default_app, true);
		assert.equal(space.app_id, server.credentials.app_id);
		assert.match(space.app_id, /^[0-9a-f]{32}$/);

		await refused(
			api.deleteResourceSpace(space.app_id),
			403,
			"IOTDA.001901",
			"default",
		);
		const renamed = await api.updateResourceSpace(space.app_id, {
			app_name: "house",
		});
		assert.deepEqual(renamed, { ...space, app_name: "house" });
		assert.deepEqual(await api.getResourceSpace(space.app_id), renamed);
	});

	test("a space is created, shown, renamed and deleted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const created = await api.createResourceSpace({
			app_name: "工厂_A-1?'#().,&%@!",
		});
		assert.deepEqual(Object.keys(created).sort(), [
			"app_id",
			"app_name",
			"create_time",
			"default_app",
		]);
		assert.match(created.app_id, /^[0-9a-f]{32}$/);
		assert.match(created.create_time, /^\d{8}T\d{6}Z$/);
		assert.equal(created.default_app, false);
		assert.deepEqual(await api.getResourceSpace(created.app_id), created);

		assert.deepEqual(
			await api.updateResourceSpace(created.app_id, {}),
			created,
			"a missing name changes nothing",
		);
		const renamed = await api.updateResourceSpace(created.app_id, {
			app_name: "lab",
		});
		assert.deepEqual(renamed, { ...created, app_name: "lab" });

		await api.deleteResourceSpace(created.app_id);
		await refused(
			api.getResourceSpace(created.app_id),
			403,
			"IOTDA.001000",
			"The application does not exist.",
		);
	});

	test("the list shows all spaces, only the default one, or only the others", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const a = await api.createResourceSpace({ app_name: "same" });
		const b = await api.createResourceSpace({ app_name: "same" });
		const ids = async (query: { default_app?: "true" | "false" }) =>
			(await api.listResourceSpaces(query)).applications.map(
				(space) => space.app_id,
			);
		const preset = server.credentials.app_id;
		assert.deepEqual(await ids({}), [b.app_id, a.app_id, preset]);
		assert.deepEqual(await ids({ default_app: "true" }), [preset]);
		assert.deepEqual(await ids({ default_app: "false" }), [b.app_id, a.app_id]);
	});

	test("an unknown space is refused as the vendor does it, with 403", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const calls = [
			() => api.getResourceSpace(UNKNOWN),
			() => api.updateResourceSpace(UNKNOWN, { app_name: "x" }),
			() => api.deleteResourceSpace(UNKNOWN),
			() => api.listProducts({ app_id: UNKNOWN }),
			() => api.listDevices({ app_id: UNKNOWN }),
			() => api.listOtaModules({ app_id: UNKNOWN }),
			() =>
				api.listPackages({ app_id: UNKNOWN, package_type: "firmwarePackage" }),
			() => makeProduct(api, { app_id: UNKNOWN }),
		];
		for (const call of calls) await refused(call(), 403, "IOTDA.001000");
	});

	test("of many spaces created at once exactly ten exist with the default one", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const created = await succeeded(
			Array.from({ length: 25 }, (_, index) =>
				api.createResourceSpace({ app_name: `space${index}` }),
			),
			403,
			"IOTDA.001902",
		);
		assert.equal(created, 9);
		const { applications } = await api.listResourceSpaces();
		assert.equal(applications.length, 10);
		const last = applications.find((space) => !space.default_app);
		assert.ok(last);
		await api.deleteResourceSpace(last.app_id);
		await api.createResourceSpace({ app_name: "again" });
	});

	test("a space with products cannot be deleted, however close the two come", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const kept = await api.createResourceSpace({ app_name: "kept" });
		const product = await makeProduct(api, { app_id: kept.app_id });
		await refused(api.deleteResourceSpace(kept.app_id), 403, "IOTDA.001900");
		await api.deleteProduct(product.product_id, { app_id: kept.app_id });
		await api.deleteResourceSpace(kept.app_id);

		for (let round = 0; round < 8; round++) {
			const { app_id } = await api.createResourceSpace({ app_name: "race" });
			const [made, removed] = await Promise.allSettled([
				makeProduct(api, { app_id }),
				api.deleteResourceSpace(app_id),
			]);
			assert.notEqual(
				made.status,
				removed.status,
				"either the product is there or the space is gone",
			);
			if (made.status === "fulfilled") {
				await api.deleteProduct(made.value.product_id, { app_id });
				await api.deleteResourceSpace(app_id);
			} else await refused(Promise.reject(made.reason), 403, "IOTDA.001000");
		}
	});
});
