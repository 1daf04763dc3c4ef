import assert from "node:assert/strict";
import { test } from "node:test";
import { ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { makeDevice, makeProduct, refused, succeeded } from "./support/seed.ts";
import { startServer } from "./support/server.ts";

forEachEngine((engine) => {
	test("a device is answered whole and listed without what only it may know", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const created = await api.createDevice({
			app_id: product.app_id,
			product_id: product.product_id,
			device_id: "Thermo_1-a",
			node_id: "SN-0001",
			device_name: "厅#1",
			description: "in-the-hall",
			auth_info: {
				auth_type: "SECRET",
				secret: "3b935a250c50dc2c6d481d048cefdc3c",
				fingerprint: "dc0f1016f495157344ac5f1296335cff725ef22f",
				secure_access: false,
				timeout: 300,
			},
			extension_info: { floor: 1, door: { open: null, 名: ["x"] } },
			shadow: [{ service_id: "Thermo", desired: { on: true } }],
		});
		const { app_name, create_time, ...rest } = created;
		assert.equal(app_name, product.app_name);
		assert.match(create_time, /^\d{8}T\d{6}Z$/);
		assert.deepEqual(rest, {
			app_id: product.app_id,
			device_id: "Thermo_1-a",
			node_id: "SN-0001",
			gateway_id: "Thermo_1-a",
			node_type: "GATEWAY",
			device_name: "厅#1",
			description: "in-the-hall",
			product_id: product.product_id,
			product_name: product.name,
			status: "INACTIVE",
			tags: [],
			modules: [],
			auth_info: {
				auth_type: "SECRET",
				secret: "3b935a250c50dc2c6d481d048cefdc3c",
				fingerprint: "dc0f1016f495157344ac5f1296335cff725ef22f",
				secure_access: false,
				timeout: 300,
			},
			extension_info: { floor: 1, door: { open: null, 名: ["x"] } },
		});
		assert.deepEqual(await api.getDevice("Thermo_1-a"), created);
		const {
			auth_info: _,
			modules: __,
			create_time: ___,
			extension_info: ____,
			...item
		} = created;
		assert.deepEqual((await api.listDevices()).devices, [item]);
	});

	test("a device with the least there is gets an id of product and node, and a secret", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const { app_id, ...device } = await api.createDevice({
			product_id: product.product_id,
			node_id: "n1",
		});
		assert.equal(app_id, server.credentials.app_id);
		assert.equal(device.device_id, `${product.product_id}_n1`);
		const { secret, ...auth } = device.auth_info;
		assert.match(secret ?? "", /^[0-9a-f]{32}$/);
		assert.deepEqual(auth, {
			auth_type: "SECRET",
			secure_access: true,
			timeout: 0,
		});
		for (const key of ["device_name", "description", "extension_info"])
			assert.equal(key in device, false);

		const certified = await makeDevice(api, product, {
			auth_info: { auth_type: "CERTIFICATES", fingerprint: "Ab".repeat(32) },
		});
		assert.deepEqual(certified.auth_info, {
			auth_type: "CERTIFICATES",
			fingerprint: "Ab".repeat(32),
			secure_access: true,
			timeout: 0,
		});
	});

	test("secrets are kept encrypted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const secret = "a-secret-nobody-may-read";
		const device = await makeDevice(api, await makeProduct(api), {
			auth_info: { secret },
		});
		const row = await server.server.db
			.selectFrom("devices")
			.selectAll()
			.where("device_id", "=", device.device_id)
			.executeTakeFirstOrThrow();
		assert.ok(row.secret_sealed);
		assert.equal(JSON.stringify(row).includes(secret), false);
	});

	test("a device id is unique among all devices, in whatever space", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		const other = await makeProduct(api, { app_id: space.app_id });
		await makeDevice(api, product, { device_id: "d" });
		await refused(
			makeDevice(api, product, { device_id: "d" }),
			400,
			"IOTDA.014031",
			"The device already exists.",
		);
		await refused(
			makeDevice(api, other, { device_id: "d" }),
			400,
			"IOTDA.014031",
		);
		assert.equal(
			await succeeded(
				Array.from({ length: 12 }, () =>
					makeDevice(api, product, { node_id: "race" }),
				),
				400,
				"IOTDA.014031",
			),
			1,
		);
	});

	test("an update leaves what is missing and clears what is empty", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const created = await makeDevice(api, await makeProduct(api), {
			device_name: "name",
			description: "text",
			extension_info: { a: 1 },
		});
		const update = (body: Parameters<typeof api.updateDevice>[1]) =>
			api.updateDevice(created.device_id, body);
		assert.deepEqual(await update({}), created);
		const changed = await update({
			device_name: "",
			description: "new",
			extension_info: {},
			auth_info: { secure_access: false, timeout: 7 },
		});
		const { device_name: _, ...rest } = created;
		assert.deepEqual(changed, {
			...rest,
			description: "new",
			extension_info: {},
			auth_info: { ...created.auth_info, secure_access: false, timeout: 7 },
		});
		assert.deepEqual(await api.getDevice(created.device_id), changed);
	});

	test("one of the two secrets is replaced while the other stays", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const created = await makeDevice(api, await makeProduct(api));
		const id = created.device_id;
		const secrets = async () => {
			const { auth_info } = await api.getDevice(id);
			return [auth_info.secret, auth_info.secondary_secret];
		};
		const [first] = await secrets();

		const reset = await api.resetDeviceSecret(id);
		assert.deepEqual(Object.keys(reset), [
			"device_id",
			"secret",
			"secret_type",
		]);
		assert.equal(reset.device_id, id);
		assert.equal(reset.secret_type, "PRIMARY");
		assert.match(reset.secret, /^[0-9a-f]{32}$/);
		assert.notEqual(reset.secret, first);

		assert.deepEqual(
			await api.resetDeviceSecret(id, {
				secret: "12345678",
				secret_type: "SECONDARY",
				force_disconnect: true,
			}),
			{ device_id: id, secret: "12345678", secret_type: "SECONDARY" },
		);
		assert.deepEqual(await secrets(), [reset.secret, "12345678"]);

		const bodiless = await api.send(
			"POST",
			`/v5/iot/${credentials.project_id}/devices/${id}/action`,
			{
				query: { action_id: "resetSecret" },
				headers: { "content-type": "application/json" },
			},
		);
		assert.equal(bodiless.status, 200);
		assert.notEqual((await secrets())[0], reset.secret);
	});

	test("a device is frozen once and unfrozen once; a sub-device never", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const gateway = await makeDevice(api, product);
		const child = await makeDevice(api, product, {
			gateway_id: gateway.device_id,
		});
		const status = async () => (await api.getDevice(gateway.device_id)).status;
		await refused(api.unfreezeDevice(gateway.device_id), 403, "IOTDA.014040");
		assert.equal(await api.freezeDevice(gateway.device_id), undefined);
		assert.equal(await status(), "FROZEN");
		await refused(api.freezeDevice(gateway.device_id), 403, "IOTDA.014039");
		assert.equal(
			(await api.listDevices()).devices.find(
				(device) => device.device_id === gateway.device_id,
			)?.status,
			"FROZEN",
		);
		await api.unfreezeDevice(gateway.device_id);
		assert.equal(await status(), "INACTIVE");
		await refused(api.freezeDevice(child.device_id), 403, "IOTDA.014038");
		await refused(api.unfreezeDevice(child.device_id), 403, "IOTDA.014040");
	});

	test("a device is online while it is connected, and freezing, deleting or a forced reset ends that", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const device = await makeDevice(api, product);
		const id = device.device_id;
		const show = () => api.getDevice(id);
		const becomes = (status: string) =>
			until(show, (shown) => shown.status === status);
		const connect = async (secret?: string) => {
			const { auth_info } = device;
			const connection = await ScriptedDevice.connect(server, {
				...device,
				auth_info: secret === undefined ? auth_info : { ...auth_info, secret },
			});
			await becomes("ONLINE");
			return connection;
		};
		const ended = (connection: ScriptedDevice) =>
			until(
				async () => connection.client.connected,
				(connected) => !connected,
			);

		await using first = await connect();
		const online = await show();
		assert.match(
			online.active_time ?? "",
			/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/,
		);
		assert.ok(online.connection_status_update_time);
		assert.equal((await api.listDevices()).devices[0]?.status, "ONLINE");

		await api.freezeDevice(id);
		await ended(first);
		await becomes("FROZEN");
		await assert.rejects(ScriptedDevice.connect(server, device));
		await api.unfreezeDevice(id);
		const offline = await becomes("OFFLINE");
		assert.equal(offline.active_time, online.active_time);

		await using second = await connect();
		const kept = await api.resetDeviceSecret(id);
		assert.equal((await show()).status, "ONLINE");
		assert.equal(second.client.connected, true);
		const { secret } = await api.resetDeviceSecret(id, {
			force_disconnect: true,
		});
		await ended(second);
		for (const old of [device.auth_info.secret, kept.secret])
			await assert.rejects(connect(old), "an old secret signs nobody in");

		await using third = await connect(secret);
		await api.deleteDevice(id);
		await ended(third);
		await assert.rejects(connect(secret));
	});

	test("sub-devices go two levels deep, in the space of their gateway", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		const elsewhere = await makeProduct(api, { app_id: space.app_id });
		const below = (gateway_id: string, node_id: string) =>
			makeDevice(api, product, { gateway_id, node_id, device_id: node_id });
		await makeDevice(api, product, { device_id: "top" });
		const child = await below("top", "child");
		assert.equal(child.gateway_id, "top");
		assert.equal(child.node_type, "ENDPOINT");
		await below("child", "grandchild");
		await refused(
			below("grandchild", "too-deep"),
			403,
			"IOTDA.014900",
			"gateway_id",
		);
		await refused(below("nobody", "x"), 400, "IOTDA.014000", "gateway_id");
		await refused(
			makeDevice(api, elsewhere, { gateway_id: "top" }),
			400,
			"IOTDA.014000",
			"gateway_id",
		);

		const ids = async (query: Parameters<typeof api.listDevices>[0]) =>
			(await api.listDevices(query)).devices.map((device) => device.device_id);
		assert.deepEqual(await ids({ gateway_id: "top" }), ["child"]);
		assert.deepEqual(
			await ids({ gateway_id: "top", is_cascade_query: "false" }),
			["child"],
		);
		assert.deepEqual(
			await ids({ gateway_id: "top", is_cascade_query: "true" }),
			["grandchild", "child"],
		);
		assert.deepEqual(await ids({ gateway_id: "grandchild" }), []);

		await refused(api.deleteDevice("top"), 403, "IOTDA.014024");
		await refused(api.deleteDevice("child"), 403, "IOTDA.014024");
		await api.deleteDevice("grandchild");
		await api.deleteDevice("child");
		await api.deleteDevice("top");
	});

	test("a gateway takes 50,000 sub-devices and no more, however many come at once", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { db } = server.server;
		const product = await makeProduct(api);
		const gateway = await makeDevice(api, product);
		const below = () =>
			makeDevice(api, product, { gateway_id: gateway.device_id });
		const first = await below();
		const row = await db
			.selectFrom("devices")
			.selectAll()
			.where("device_id", "=", first.device_id)
			.executeTakeFirstOrThrow();
		const wanted = 50_000 - 3;
		for (let made = 1; made < wanted; made += 500)
			await db
				.insertInto("devices")
				.values(
					Array.from({ length: Math.min(500, wanted - made) }, (_, index) => ({
						...row,
						device_id: `child-${made + index}`,
						record_id: (made + index).toString(16).padStart(24, "0"),
					})),
				)
				.execute();
		assert.equal(
			await succeeded(Array.from({ length: 10 }, below), 403, "IOTDA.014900"),
			3,
		);
		await refused(below(), 403, "IOTDA.014900", "50000 sub-devices");
		assert.equal(
			(await api.listDevices({ gateway_id: gateway.device_id })).page.count,
			50_000,
		);
	});

	test("a gateway deleted while a sub-device is registered below it leaves no orphan", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		for (let round = 0; round < 8; round++) {
			const gateway = await makeDevice(api, product);
			const [made, removed] = await Promise.allSettled([
				makeDevice(api, product, { gateway_id: gateway.device_id }),
				api.deleteDevice(gateway.device_id),
			]);
			assert.notEqual(made.status, removed.status);
			if (made.status === "rejected")
				await refused(Promise.reject(made.reason), 400, "IOTDA.014000");
		}
	});

	test("the list is filtered by space, product, node, name and time of registration", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const a = await makeProduct(api, { product_id: "a" });
		const b = await makeProduct(api, { product_id: "b" });
		const far = await makeProduct(api, {
			product_id: "a",
			app_id: space.app_id,
		});
		await makeDevice(api, a, { device_id: "1", node_id: "x" });
		await makeDevice(api, a, { device_id: "2", device_name: "two" });
		await makeDevice(api, b, { device_id: "3", node_id: "x" });
		const last = await makeDevice(api, far, {
			device_id: "4",
			device_name: "two",
		});
		const ids = async (query: Parameters<typeof api.listDevices>[0]) => {
			const { devices, page } = await api.listDevices(query);
			assert.equal(page.count, devices.length);
			return devices.map((device) => device.device_id).join("");
		};
		assert.equal(await ids({}), "4321");
		assert.equal(await ids({ app_id: a.app_id }), "321");
		assert.equal(await ids({ product_id: "a" }), "421");
		assert.equal(await ids({ product_id: "a", app_id: space.app_id }), "4");
		assert.equal(await ids({ node_id: "x" }), "31");
		assert.equal(await ids({ device_name: "two" }), "42");
		assert.equal(await ids({ device_name: "TWO" }), "");
		assert.equal(await ids({ start_time: "20200101T000000Z" }), "4321");
		assert.equal(
			await ids({
				start_time: last.create_time,
				device_name: "two",
				app_id: space.app_id,
			}),
			"4",
		);
		assert.equal(await ids({ end_time: "20200101T000000Z" }), "");
		assert.equal(
			await ids({
				start_time: "20200101T000000Z",
				end_time: "20990101T000000Z",
			}),
			"4321",
		);
		for (const [start_time, end_time] of [
			["20990101T000000Z", "20200101T000000Z"],
			["20200101T000000Z", "20200101T000000Z"],
		] as const)
			await refused(
				api.listDevices({ start_time, end_time }),
				400,
				"IOTDA.000010",
				"start_time must be earlier",
			);
		for (const time of ["2020-01-01T00:00:00Z", "20200230T000000Z", "", "x"])
			for (const field of ["start_time", "end_time"])
				await refused(
					api.listDevices({ [field]: time }),
					400,
					"IOTDA.000009",
					field,
				);
	});

	test("an unknown device is refused with 404, and so is one just deleted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const device = await makeDevice(api, await makeProduct(api));
		await api.deleteDevice(device.device_id);
		for (const id of ["unknown", device.device_id]) {
			const calls = [
				() => api.getDevice(id),
				() => api.updateDevice(id, { device_name: "x" }),
				() => api.updateDevice(id, {}),
				() => api.deleteDevice(id),
				() => api.resetDeviceSecret(id),
				() => api.freezeDevice(id),
				() => api.unfreezeDevice(id),
				() => api.getDeviceOtaProfile(id),
				() => api.updateDeviceOtaProfile(id, { module_form: null }),
			];
			for (const call of calls)
				await refused(call(), 404, "IOTDA.014000", "does not exist");
		}
	});

	test("a product that the space does not have is refused with 400", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		for (const wrong of [{ product_id: "unknown" }, { app_id: space.app_id }])
			await refused(
				makeDevice(api, product, wrong),
				400,
				"IOTDA.013900",
				"product_id",
			);
	});

	test("how one device takes module upgrades may differ from its product", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const device = await makeDevice(api, await makeProduct(api));
		const id = device.device_id;
		assert.deepEqual(await api.getDeviceOtaProfile(id), {
			module_form: null,
			speaks_modules: false,
		});
		for (const module_form of ["native", "compatible", "none", null] as const) {
			const profile = await api.updateDeviceOtaProfile(id, { module_form });
			assert.deepEqual(profile, { module_form, speaks_modules: false });
			assert.deepEqual(await api.getDeviceOtaProfile(id), profile);
		}
		assert.deepEqual(await api.getDevice(id), device);
	});
});
