/** Device groups: trees, members, limits, and what is in a group by its rule. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import {
	findGroups,
	nextWindow,
	walkOf,
	windowDevices,
} from "../server/device-groups/device-groups.ts";
import { SlowCounts } from "../server/devices/device-windows.ts";
import type { Client } from "../wire/client.ts";
import { HandClock } from "./support/clock.ts";
import { ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makeProduct,
	refused,
	succeeded,
	unique,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

type GroupFields = Partial<Parameters<Client["createDeviceGroup"]>[0]>;

const makeGroup = (api: Client, fields: GroupFields = {}) =>
	api.createDeviceGroup({ name: unique("group"), ...fields });
const makeDynamicGroup = (api: Client, rule: string) =>
	makeGroup(api, { group_type: "DYNAMIC", dynamic_group_rule: rule });
const add = (api: Client, groupId: string, deviceId: string) =>
	api.changeDeviceGroup(groupId, {
		action_id: "addDevice",
		device_id: deviceId,
	});
const remove = (api: Client, groupId: string, deviceId: string) =>
	api.changeDeviceGroup(groupId, {
		action_id: "removeDevice",
		device_id: deviceId,
	});

/** Ids of the first page, in its order. */
async function members(api: Client, groupId: string): Promise<string[]> {
	const { devices, page } = await api.listGroupDevices(groupId, { limit: 50 });
	assert.equal(page.count, devices.length);
	return devices.map((device) => device.device_id);
}

async function groupsOf(api: Client, deviceId: string): Promise<string[]> {
	const { device_groups } = await api.listGroupsOfDevice(deviceId);
	return device_groups.map((group) => group.group_id);
}

/** Devices in bulk, behind the API's back: `device-0` and so on, in the order of their record ids. */
async function fillSpace(
	{ api, server: { db } }: TestServer,
	count: number,
): Promise<void> {
	const product = await makeProduct(api);
	const { device_id } = await makeDevice(api, product);
	const row = await db
		.selectFrom("devices")
		.selectAll()
		.where("device_id", "=", device_id)
		.executeTakeFirstOrThrow();
	await api.deleteDevice(device_id);
	for (let made = 0; made < count; made += 500)
		await db
			.insertInto("devices")
			.values(
				Array.from({ length: Math.min(500, count - made) }, (_, index) => ({
					...row,
					device_id: `device-${made + index}`,
					link_id: `device-${made + index}`,
					node_id: `${(made + index) % 10}`,
					record_id: (made + index).toString(16).padStart(24, "0"),
				})),
			)
			.execute();
}

forEachEngine((engine) => {
	test("a group is answered whole, and listed without its rule", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { group_id, ...least } = await api.createDeviceGroup({ name: "a" });
		assert.match(group_id, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
		assert.deepEqual(least, { name: "a", group_type: "STATIC" });

		const most = await api.createDeviceGroup({
			name: "厅 #1 (a's), 50%?",
			description: "first floor",
			app_id: server.credentials.app_id,
			super_group_id: group_id,
			group_type: "STATIC",
		});
		assert.deepEqual(most, {
			group_id: most.group_id,
			name: "厅 #1 (a's), 50%?",
			description: "first floor",
			super_group_id: group_id,
			group_type: "STATIC",
		});

		const rule = "device_name =  '客厅''s' OR  (tag.站点 is not null)";
		const dynamic = await api.createDeviceGroup({
			name: "c",
			group_type: "DYNAMIC",
			dynamic_group_rule: rule,
		});
		assert.deepEqual(dynamic, {
			group_id: dynamic.group_id,
			name: "c",
			group_type: "DYNAMIC",
			dynamic_group_rule: rule,
		});
		for (const group of [most, dynamic])
			assert.deepEqual(await api.getDeviceGroup(group.group_id), group);
		const { dynamic_group_rule: _, ...listed } = dynamic;
		assert.deepEqual((await api.listDeviceGroups()).device_groups, [
			listed,
			most,
			{ group_id, ...least },
		]);
		assert.equal(await api.deleteDeviceGroup(dynamic.group_id), undefined);
		await refused(api.getDeviceGroup(dynamic.group_id), 404, "IOTDA.014980");
	});

	test("an update leaves what is missing and clears what is empty", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const created = await makeGroup(api, { name: "a", description: "text" });
		const id = created.group_id;
		assert.deepEqual(await api.updateDeviceGroup(id, {}), created);
		assert.deepEqual(await api.updateDeviceGroup(id, { name: "a" }), created);
		const renamed = await api.updateDeviceGroup(id, { name: "b" });
		assert.deepEqual(renamed, { ...created, name: "b" });
		const { description: _, ...cleared } = renamed;
		assert.deepEqual(
			await api.updateDeviceGroup(id, { description: "" }),
			cleared,
		);
		assert.deepEqual(await api.getDeviceGroup(id), cleared);
		// The rule of a dynamic group is what it is.
		const dynamic = await makeDynamicGroup(api, "node_id = 'a'");
		assert.deepEqual(
			await api.updateDeviceGroup(dynamic.group_id, {
				dynamic_group_rule: "node_id = 'b'",
			} as never),
			dynamic,
		);
	});

	test("a name is unique in its space, however many come at once", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const first = await makeGroup(api, { name: "a" });
		const second = await makeGroup(api, { name: "b" });
		await makeGroup(api, { name: "a", app_id: space.app_id });
		await refused(
			makeGroup(api, { name: "a" }),
			400,
			"IOTDA.014984",
			"The device group name already exists.",
		);
		await refused(
			api.updateDeviceGroup(second.group_id, { name: "a" }),
			400,
			"IOTDA.014984",
		);
		assert.equal((await api.getDeviceGroup(second.group_id)).name, "b");
		assert.equal(
			await succeeded(
				[
					...Array.from({ length: 6 }, () => makeGroup(api, { name: "c" })),
					api.updateDeviceGroup(first.group_id, { name: "c" }),
					api.updateDeviceGroup(second.group_id, { name: "c" }),
				],
				400,
				"IOTDA.014984",
			),
			1,
		);
	});

	test("the list is filtered by space, name, type and time of the last change, and paged", async () => {
		const clock = new HandClock(new Date("2026-01-29T08:00:00.000Z"));
		await using server = await startServer(engine, { now: clock.now });
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const early = await makeGroup(api, { name: "1" });
		clock.pass({ seconds: 10 });
		await makeGroup(api, { name: "2", app_id: space.app_id });
		await makeGroup(api, {
			name: "3",
			group_type: "DYNAMIC",
			dynamic_group_rule: "node_id = 'a'",
		});
		const names = async (query: Parameters<Client["listDeviceGroups"]>[0]) => {
			const { device_groups, page } = await api.listDeviceGroups(query);
			assert.equal(page.count, device_groups.length);
			return device_groups.map((group) => group.name).join("");
		};
		assert.equal(await names({}), "321");
		assert.equal(await names({ app_id: space.app_id }), "2");
		assert.equal(await names({ app_id: server.credentials.app_id }), "31");
		assert.equal(await names({ name: "2" }), "2");
		assert.equal(await names({ name: "2", group_type: "DYNAMIC" }), "");
		assert.equal(await names({ group_type: "STATIC" }), "21");
		assert.equal(
			await names({ last_modified_time: "20260129T075959Z" }),
			"321",
		);
		assert.equal(await names({ last_modified_time: "20260129T080000Z" }), "32");
		assert.equal(await names({ last_modified_time: "20260129T080010Z" }), "");
		clock.pass({ seconds: 10 });
		await api.updateDeviceGroup(early.group_id, { description: "new" });
		assert.equal(await names({ last_modified_time: "20260129T080010Z" }), "1");

		const first = await api.listDeviceGroups({ limit: 2 });
		assert.equal(first.page.count, 3);
		const { marker } = first.page;
		assert.ok(marker);
		const rest = await api.listDeviceGroups({ limit: 2, marker });
		assert.deepEqual(
			[...first.device_groups, ...rest.device_groups],
			(await api.listDeviceGroups()).device_groups,
		);
		assert.deepEqual(
			(await api.listDeviceGroups({ offset: 2 })).device_groups,
			rest.device_groups,
		);
		assert.deepEqual(
			(await api.listDeviceGroups({ marker: "0".repeat(24) })).page,
			{ count: 3 },
		);
	});

	test("groups stand below each other, five levels deep", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const elsewhere = await makeGroup(api, { app_id: space.app_id });
		const dynamic = await makeDynamicGroup(api, "node_id = 'a'");
		const below = (super_group_id: string) =>
			makeGroup(api, { super_group_id });
		const tree = [await makeGroup(api)];
		for (let level = 2; level <= 5; level++) {
			const parent = tree.at(-1)?.group_id ?? "";
			const child = await below(parent);
			assert.equal(child.super_group_id, parent);
			tree.push(child);
		}
		const ids = tree.map((group) => group.group_id);
		await refused(below(ids[4] ?? ""), 403, "IOTDA.014986", "at most 5 levels");
		await below(ids[3] ?? "");
		for (const unknown of [
			"no-such-group",
			"00000000-0000-4000-8000-000000000000",
			elsewhere.group_id,
		])
			await refused(below(unknown), 400, "IOTDA.014980", "super_group_id");
		await refused(
			below(dynamic.group_id),
			400,
			"IOTDA.000006",
			"super_group_id must name a static group",
		);
		await refused(
			api.deleteDeviceGroup(ids[3] ?? ""),
			403,
			"IOTDA.014981",
			"groups below it",
		);
		await api.deleteDeviceGroup(ids[4] ?? "");
	});

	test("a group deleted while another is made below it leaves no orphan", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		for (let round = 0; round < 8; round++) {
			const parent = await makeGroup(api);
			const [made, removed] = await Promise.allSettled([
				makeGroup(api, { super_group_id: parent.group_id }),
				api.deleteDeviceGroup(parent.group_id),
			]);
			assert.notEqual(made.status, removed.status);
			if (made.status === "rejected")
				await refused(Promise.reject(made.reason), 400, "IOTDA.014980");
		}
	});

	test("groups go with their space", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const { group_id } = await makeGroup(api, { app_id: space.app_id });
		await api.deleteResourceSpace(space.app_id);
		await refused(api.getDeviceGroup(group_id), 404, "IOTDA.014980");
		assert.equal((await api.listDeviceGroups()).page.count, 0);
	});

	test("devices are put into a static group and taken out again", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		const far = await makeProduct(api, { app_id: space.app_id });
		await makeDevice(api, product, { device_id: "d1", node_id: "n1" });
		await makeDevice(api, product, { device_id: "d2", device_name: "two" });
		await makeDevice(api, far, { device_id: "far" });
		const { group_id } = await makeGroup(api);

		const answer = await api.send(
			"POST",
			`/v5/iot/${api.projectId}/device-group/${group_id}/action`,
			{
				query: { action_id: "addDevice", device_id: "d1" },
				headers: { "content-type": "application/json" },
			},
		);
		assert.equal(answer.status, 200);
		assert.equal(answer.headers.get("content-type"), "application/json");
		assert.equal(await answer.text(), "");
		await add(api, group_id, "d2");
		await add(api, group_id, "d1");
		assert.deepEqual(await api.listGroupDevices(group_id), {
			devices: [
				{
					device_id: "d2",
					node_id: (await api.getDevice("d2")).node_id,
					device_name: "two",
					product_id: product.product_id,
				},
				{ device_id: "d1", node_id: "n1", product_id: product.product_id },
			],
			page: {
				count: 2,
				marker: (await api.listGroupDevices(group_id, { offset: 1 })).page
					.marker,
			},
		});

		for (const change of [add, remove]) {
			await refused(
				change(api, group_id, "nobody"),
				404,
				"IOTDA.014000",
				"The device does not exist.",
			);
			await refused(change(api, group_id, "far"), 403, "IOTDA.014983");
			await refused(change(api, unique("no"), "d1"), 404, "IOTDA.014980");
		}
		await refused(
			api.deleteDeviceGroup(group_id),
			403,
			"IOTDA.014981",
			"devices in it",
		);
		assert.equal(await remove(api, group_id, "d1"), undefined);
		await refused(remove(api, group_id, "d1"), 403, "IOTDA.014982");
		assert.deepEqual(await members(api, group_id), ["d2"]);
		await api.deleteDevice("d2");
		assert.deepEqual(await members(api, group_id), []);
		await api.deleteDeviceGroup(group_id);
		await refused(api.listGroupDevices(group_id), 404, "IOTDA.014980");
		await refused(api.deleteDeviceGroup(group_id), 404, "IOTDA.014980");
		await refused(
			api.updateDeviceGroup(group_id, { name: "x" }),
			404,
			"IOTDA.014980",
		);
	});

	test("limits hold, however many come at once", async () => {
		await using server = await startServer(engine, {
			env: {
				OTARU_GROUPS_LIMIT: "7",
				OTARU_GROUP_DEVICES_LIMIT: "3",
				OTARU_DEVICE_GROUPS_LIMIT: "2",
				OTARU_GROUP_DEPTH_LIMIT: "1",
			},
		});
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const { group_id } = await makeGroup(api, { app_id: space.app_id });
		assert.equal(
			await succeeded(
				Array.from({ length: 12 }, () => makeGroup(api)),
				403,
				"IOTDA.014985",
			),
			6,
		);
		await refused(
			makeGroup(api),
			403,
			"IOTDA.014985",
			"At most 7 are allowed.",
		);
		await api.deleteDeviceGroup(group_id);
		const [first, ...others] = (await api.listDeviceGroups()).device_groups.map(
			(group) => group.group_id,
		);
		assert.ok(first);
		await refused(
			makeGroup(api, { super_group_id: first }),
			403,
			"IOTDA.014986",
		);

		const product = await makeProduct(api);
		const devices = await Promise.all(
			Array.from({ length: 8 }, () => makeDevice(api, product)),
		);
		const ids = devices.map((device) => device.device_id);
		assert.equal(
			await succeeded(
				ids.map((id) => add(api, first, id)),
				403,
				"IOTDA.014987",
			),
			3,
		);
		const inside = await members(api, first);
		assert.equal(inside.length, 3);
		const outside = ids.find((id) => !inside.includes(id)) ?? "";
		await refused(
			add(api, first, outside),
			403,
			"IOTDA.014987",
			"At most 3 are allowed.",
		);
		await add(api, first, inside[0] ?? "");

		assert.equal(
			await succeeded(
				others.map((id) => add(api, id, outside)),
				403,
				"IOTDA.014988",
			),
			2,
		);
		const groups = await groupsOf(api, outside);
		assert.equal(groups.length, 2);
		const free = others.find((id) => !groups.includes(id)) ?? "";
		await refused(
			add(api, free, outside),
			403,
			"IOTDA.014988",
			"At most 2 are allowed.",
		);
		await add(api, groups[0] ?? "", outside);
		await remove(api, groups[0] ?? "", outside);
		await add(api, free, outside);
	});

	test("a group of 20,000 devices takes no more", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { db } = server.server;
		await fillSpace(server, 20_005);
		const { group_id } = await makeGroup(api);
		const rows = Array.from({ length: 19_998 }, (_, index) => ({
			group_id,
			device_id: `device-${index}`,
			device_record_id: index.toString(16).padStart(24, "0"),
		}));
		for (let done = 0; done < rows.length; done += 5_000)
			await db
				.insertInto("device_group_members")
				.values(rows.slice(done, done + 5_000))
				.execute();
		assert.equal(
			await succeeded(
				Array.from({ length: 6 }, (_, index) =>
					add(api, group_id, `device-${19_998 + index}`),
				),
				403,
				"IOTDA.014987",
			),
			2,
		);
		assert.equal((await api.listGroupDevices(group_id)).page.count, 20_000);
	});

	test("a group or a device deleted while they are joined leaves no member behind", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		for (let round = 0; round < 8; round++) {
			const { group_id } = await makeGroup(api);
			const { device_id } = await makeDevice(api, product);
			const [joined, removed] = await Promise.allSettled([
				add(api, group_id, device_id),
				round % 2 === 0
					? api.deleteDeviceGroup(group_id)
					: api.deleteDevice(device_id),
			]);
			if (round % 2 === 0) assert.notEqual(joined.status, removed.status);
			else assert.equal(removed.status, "fulfilled");
			if (joined.status === "rejected")
				await refused(
					Promise.reject(joined.reason),
					404,
					round % 2 === 0 ? "IOTDA.014980" : "IOTDA.014000",
				);
		}
		const orphans = await server.server.db
			.selectFrom("device_group_members as m")
			.leftJoin("devices as d", "d.device_id", "m.device_id")
			.leftJoin("device_groups as g", "g.group_id", "m.group_id")
			.select("m.device_id")
			.where((eb) =>
				eb.or([eb("d.device_id", "is", null), eb("g.group_id", "is", null)]),
			)
			.execute();
		assert.deepEqual(orphans, []);
	});

	test("a dynamic group has the devices of its space that fit its rule now", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api, { product_id: "thermo" });
		const far = await makeProduct(api, {
			product_id: "thermo",
			app_id: space.app_id,
		});
		await makeModule(api, product, "MCU");
		const device = await makeDevice(api, product, {
			device_id: "a",
			node_id: "SN_1",
		});
		await makeDevice(api, product, {
			device_id: "b",
			node_id: "SNx1",
			device_name: "客厅's",
		});
		await makeDevice(api, product, {
			device_id: "c",
			node_id: "sn_1",
			gateway_id: "a",
		});
		await makeDevice(api, far, { device_id: "far", node_id: "SN_1" });
		const { group_id: chosen } = await makeGroup(api);
		await add(api, chosen, "b");
		const inGroup = async (rule: string, ids: string[]) => {
			const { group_id } = await makeDynamicGroup(api, rule);
			assert.deepEqual(await members(api, group_id), ids, rule);
			for (const id of ["a", "b", "c", "far"])
				assert.equal(
					(await groupsOf(api, id)).includes(group_id),
					ids.includes(id),
					`${rule}: ${id}`,
				);
			return group_id;
		};
		await inGroup("product_id = 'thermo'", ["c", "b", "a"]);
		await inGroup("product_id != 'thermo'", []);
		await inGroup("product_name = 'Thermometer'", ["c", "b", "a"]);
		await inGroup("node_id like 'SN_1%'", ["a"]);
		await inGroup("node_id in ('SNx1', 'sn_1')", ["c", "b"]);
		await inGroup("device_name = '客厅''s'", ["b"]);
		await inGroup("device_name is null", ["c", "a"]);
		await inGroup("node_type = 'ENDPOINT'", ["c"]);
		await inGroup("gateway_id = 'a'", ["c", "a"]);
		await inGroup(`group_id = '${chosen}'`, ["b"]);
		await inGroup("create_time < '20200101T000000Z'", []);
		const online = await inGroup("status = 'ONLINE'", []);
		const tagged = await inGroup("tag.site = 'Berlin'", []);
		const current = await inGroup("module.MCU = '1.2'", []);
		const outdated = await inGroup("module.MCU != '1.2'", ["c", "b", "a"]);
		const reported = await inGroup("module.MCU is not null", []);

		await api.bindTags({
			resource_type: "device",
			resource_id: "b",
			tags: [{ tag_key: "site", tag_value: "Berlin" }],
		});
		assert.deepEqual(await members(api, tagged), ["b"]);
		await api.bindTags({
			resource_type: "device",
			resource_id: "b",
			tags: [{ tag_key: "site", tag_value: "berlin" }],
		});
		assert.deepEqual(await members(api, tagged), []);

		await using connection = await ScriptedDevice.connect(server, device);
		assert.ok(connection.client.connected);
		await until(
			() => members(api, online),
			(ids) => ids.length === 1,
		);
		await server.server.db
			.insertInto("device_modules")
			.values({
				device_id: "a",
				module_name: "MCU",
				module_version: "1.2",
				reported_at: new Date().toISOString(),
			})
			.execute();
		assert.deepEqual(await members(api, current), ["a"]);
		assert.deepEqual(await members(api, outdated), ["c", "b"]);
		assert.deepEqual(await members(api, reported), ["a"]);
	});

	test("the devices of a dynamic group are not put in by hand", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { device_id } = await makeDevice(api, await makeProduct(api));
		const { group_id } = await makeDynamicGroup(
			api,
			`device_id = '${device_id}'`,
		);
		await refused(add(api, group_id, device_id), 403, "IOTDA.014989");
		await refused(remove(api, group_id, device_id), 403, "IOTDA.014989");
		await refused(
			makeDynamicGroup(api, `group_id in ('x', '${group_id}')`),
			400,
			"IOTDA.000006",
			`dynamic_group_rule names the dynamic group ${group_id}`,
		);
		// It is empty of what was put in, whoever fits.
		await api.deleteDeviceGroup(group_id);
	});

	test("the groups of a device are the static and the dynamic ones, newest first", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const { device_id } = await makeDevice(api, await makeProduct(api), {
			node_id: "a",
		});
		const parent = await makeGroup(api);
		const dynamic = await makeDynamicGroup(api, "node_id = 'a'");
		const child = await makeGroup(api, {
			description: "text",
			super_group_id: parent.group_id,
		});
		await makeDynamicGroup(api, "node_id = 'b'");
		await makeGroup(api, {
			app_id: space.app_id,
			group_type: "DYNAMIC",
			dynamic_group_rule: "node_id = 'a'",
		});
		await add(api, child.group_id, device_id);
		const { dynamic_group_rule: _, ...listed } = dynamic;
		assert.deepEqual(await api.listGroupsOfDevice(device_id), {
			device_groups: [child, listed],
		});
		await refused(api.listGroupsOfDevice("nobody"), 404, "IOTDA.014000");
	});

	test("the devices of a group come in pages", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const { group_id: byHand } = await makeGroup(api);
		const { group_id: byRule } = await makeDynamicGroup(
			api,
			"node_id like 'in%'",
		);
		const ids: string[] = [];
		for (let index = 0; index < 7; index++) {
			const inside = index % 3 !== 2;
			const { device_id } = await makeDevice(api, product, {
				node_id: `${inside ? "in" : "out"}-${index}`,
			});
			if (!inside) continue;
			ids.unshift(device_id);
			await add(api, byHand, device_id);
		}
		for (const groupId of [byHand, byRule]) {
			assert.deepEqual(await members(api, groupId), ids);
			const paged: string[] = [];
			let marker: string | undefined;
			for (;;) {
				const { devices, page } = await api.listGroupDevices(groupId, {
					limit: 2,
					...(marker === undefined ? {} : { marker }),
				});
				assert.equal(page.count, ids.length);
				paged.push(...devices.map((device) => device.device_id));
				if (page.marker === undefined) break;
				({ marker } = page);
			}
			assert.deepEqual(paged, ids);
			const skipped = await api.listGroupDevices(groupId, {
				limit: 2,
				offset: 3,
			});
			assert.deepEqual(
				skipped.devices.map((device) => device.device_id),
				ids.slice(3, 5),
			);
			assert.deepEqual(await api.listGroupDevices(groupId, { offset: 500 }), {
				devices: [],
				page: { count: ids.length },
			});
		}
	});

	test("groups of many devices are worked through in windows, whatever fits", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { db } = server.server;
		const { app_id } = server.credentials;
		await fillSpace(server, 12_000);
		await api.bindTags({
			resource_type: "device",
			resource_id: "device-11",
			tags: [{ tag_key: "rare" }],
		});
		const { group_id: chosen } = await makeGroup(api);
		for (const id of ["device-3", "device-7000", "device-11999"])
			await add(api, chosen, id);
		const all = Array.from({ length: 12_000 }, (_, index) => `device-${index}`);
		const costly = Array.from(
			{ length: 25 },
			(_, index) => `tag.${index} is not null`,
		).join(" or ");
		const cases: [groupId: string, ids: string[]][] = [
			[chosen, ["device-3", "device-7000", "device-11999"]],
		];
		for (const [rule, ids] of [
			["node_id != 'x'", all],
			["node_id = '7'", all.filter((_, index) => index % 10 === 7)],
			["tag.rare is not null", ["device-11"]],
			[`${costly} or tag_key = 'rare'`, ["device-11"]],
			["node_id = 'x'", []],
		] as const)
			cases.push([(await makeDynamicGroup(api, rule)).group_id, [...ids]]);
		for (const [groupId, ids] of cases) {
			const [group] = await findGroups(db, app_id, [groupId, "no-group"]);
			assert.ok(group);
			assert.equal(
				await walkOf(db, group),
				group.type === "STATIC" ? "record_id" : "device_id",
			);
			for (const walk of ["record_id", "device_id"] as const) {
				const found: string[] = [];
				let after = "";
				for (;;) {
					const end = await nextWindow(db, group, walk, after, 5_000);
					if (end === undefined) break;
					assert.ok(end > after);
					const rows = await windowDevices(db, group, walk, after, end)
						.select("devices.device_id")
						.orderBy(
							group.type === "STATIC" ? "devices.record_id" : `devices.${walk}`,
						)
						.execute();
					assert.ok(rows.length <= 5_000);
					found.push(...rows.map((row) => row.device_id));
					after = end;
				}
				assert.deepEqual(
					found,
					walk === "device_id" && group.type === "DYNAMIC"
						? ids.toSorted()
						: ids,
				);
			}
			const { devices, page } = await api.listGroupDevices(groupId, {
				limit: 50,
				offset: 3,
			});
			assert.equal(page.count, ids.length);
			assert.deepEqual(
				devices.map((device) => device.device_id),
				ids.toReversed().slice(3, 53),
			);
		}
		assert.deepEqual(await findGroups(db, "other", [chosen]), []);
	});

	test("what does not fit is refused by field and rule", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { group_id } = await makeGroup(api, { name: "there" });
		const dynamic = { name: "d", group_type: "DYNAMIC" };
		const rule = (text: string) => ({ ...dynamic, dynamic_group_rule: text });
		const bodies: [body: unknown, words: string][] = [
			[{}, "name is required"],
			[{ name: "" }, "name must be 1 to 64 characters"],
			[{ name: "中".repeat(65) }, "name must be 1 to 64 characters"],
			[{ name: "a/b" }, "name must be 1 to 64 characters"],
			[{ name: "a\nb" }, "name must be 1 to 64 characters"],
			[{ name: 7 }, "name must be a string"],
			[{ name: null }, "name must be a string"],
			[
				{ name: "a", description: "a".repeat(65) },
				"description must be 0 to 64",
			],
			[{ name: "a", description: "a$" }, "description must be 0 to 64"],
			[{ name: "a", description: [] }, "description must be a string"],
			[{ name: "a", app_id: "a b" }, "app_id must be 1 to 36"],
			[{ name: "a", super_group_id: "" }, "super_group_id must be 1 to 36"],
			[{ name: "a", super_group_id: {} }, "super_group_id must be a string"],
			[
				{ name: "a", group_type: "static" },
				"group_type must be one of STATIC, DYNAMIC",
			],
			[{ name: "a", group_type: true }, "group_type must be one of"],
			[
				{ name: "a", dynamic_group_rule: "node_id = 'a'" },
				"dynamic_group_rule is for dynamic groups only",
			],
			[dynamic, "dynamic_group_rule is required for a dynamic group"],
			[rule(""), "dynamic_group_rule is required for a dynamic group"],
			[
				{ ...dynamic, dynamic_group_rule: 7 },
				"dynamic_group_rule must be a string",
			],
			[
				{ ...rule("node_id = 'a'"), super_group_id: group_id },
				"super_group_id is for static groups only",
			],
			[
				rule("x".repeat(10_000)),
				"dynamic_group_rule is wrong at character 4001: a rule has at most 4000 characters",
			],
			[rule(`node_id in ('${"中".repeat(9_985)}')`), "at character 4001"],
			[rule("(".repeat(5_000)), "at character 4001"],
			[
				rule(`${"(".repeat(1_500)}node_id = 'a'${")".repeat(1_500)}`),
				"at character 33: parentheses and not may be nested 32 deep",
			],
			[rule("名 = 'a'"), "at character 1: there is no field 名"],
			[
				rule("device_name = '名''s"),
				"at character 15: the text that begins here has no closing quote",
			],
			[
				rule("module.MCU > '1'"),
				"at character 12: module.MCU cannot be asked with >",
			],
			[
				rule("node_id = 'a' and"),
				"at character 18: expected the name of a field, not, or (",
			],
		];
		for (const [body, words] of bodies)
			await refused(
				api.createDeviceGroup(body as never),
				400,
				"IOTDA.000006",
				words,
			);
		for (const [body, words] of [
			[{ name: "" }, "name"],
			[{ name: null }, "name"],
			[{ name: "a;b" }, "name"],
			[{ description: "a".repeat(65) }, "description"],
			[{ description: 1 }, "description"],
		] as const)
			await refused(
				api.updateDeviceGroup(group_id, body as never),
				400,
				"IOTDA.000006",
				words,
			);
		await refused(
			api.createDeviceGroup({ name: "a", app_id: "unknown" }),
			403,
			"IOTDA.001000",
		);
		await refused(
			api.listDeviceGroups({ app_id: "unknown" }),
			403,
			"IOTDA.001000",
		);
		const queries: [Record<string, string>, code: string, words: string][] = [
			[{ app_id: "" }, "IOTDA.000006", "app_id"],
			[{ name: "" }, "IOTDA.000006", "name"],
			[{ name: "a\\" }, "IOTDA.000006", "name"],
			[{ group_type: "X" }, "IOTDA.000006", "group_type"],
			[
				{ last_modified_time: "2026-01-29" },
				"IOTDA.000009",
				"last_modified_time",
			],
			[{ last_modified_time: "" }, "IOTDA.000009", "last_modified_time"],
			[{ limit: "51" }, "IOTDA.000017", "limit"],
			[{ limit: "0" }, "IOTDA.000017", "limit"],
			[{ marker: "x" }, "IOTDA.000018", "marker"],
			[{ offset: "501" }, "IOTDA.000006", "offset"],
		];
		for (const [query, code, words] of queries) {
			await refused(api.listDeviceGroups(query as never), 400, code, words);
			if (
				code === "IOTDA.000017" ||
				code === "IOTDA.000018" ||
				"offset" in query
			)
				await refused(
					api.listGroupDevices(group_id, query as never),
					400,
					code,
					words,
				);
		}
		for (const [query, words] of [
			[{ device_id: "a" }, "action_id is required"],
			[{ action_id: "addDevice" }, "device_id is required"],
			[
				{ action_id: "adddevice", device_id: "a" },
				"action_id must be one of addDevice, removeDevice",
			],
			[{ action_id: "addDevice", device_id: "" }, "device_id must be 1 to 128"],
			[
				{ action_id: "addDevice", device_id: "a b" },
				"device_id must be 1 to 128",
			],
		] as const)
			await refused(
				api.changeDeviceGroup(group_id, query as never),
				400,
				"IOTDA.000006",
				words,
			);
		for (const bad of ["a b", "a".repeat(37), "名"])
			await refused(api.getDeviceGroup(bad), 400, "IOTDA.000006", "group_id");
		assert.deepEqual(
			(await api.listDeviceGroups()).device_groups.map((group) => group.name),
			["there"],
		);
	});
});

test("a count of many devices that took long is kept for a while, any other is not", async () => {
	const counts = new SlowCounts();
	let asked = 0;
	const count = (key: string, windows: number, takesMs: number) =>
		counts.of(key, async () => {
			await pause(takesMs);
			return { count: ++asked, windows };
		});
	const quick = () => count("quick", 200, 0);
	assert.deepEqual([await quick(), await quick()], [1, 2]);
	const small = () => count("small", 9, 110);
	assert.deepEqual([await small(), await small()], [3, 4]);
	const slow = () => count("slow", 10, 110);
	assert.deepEqual([await slow(), await slow(), await quick()], [5, 5, 6]);
	await pause(1_300);
	assert.equal(await slow(), 7);
});
