/** What a gateway learns and says about the devices behind it. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { readConfig } from "../server/config.ts";
import type {
	AddSubDeviceParas,
	AddSubDeviceResponseParas,
	DeleteSubDeviceParas,
	DeleteSubDeviceResponseParas,
	SubDeviceStatusResponseParas,
} from "../wire/device-messages.ts";
import type { Device } from "../wire/devices.ts";
import type { Product } from "../wire/products.ts";
import { HandClock } from "./support/clock.ts";
import { ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { makeDevice, makeProduct, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const ADDED = "add_sub_device_notify";
const DELETED = "delete_sub_device_notify";
const SYNC = "sub_device_sync_request";
const STATUS = "sub_device_update_status";
const STATUS_ANSWER = "sub_device_update_status_response";

forEachEngine((engine) => {
	let server: TestServer;
	let product: Product;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
		product = await makeProduct(server.api);
	});
	after(() => server[Symbol.asyncDispose]());

	/** Resolves when the gateway is listed as connected, some milliseconds after it is. */
	async function connect(gateway: Device) {
		const device = await ScriptedDevice.connect(server, gateway);
		await until(
			() => statusOf(gateway),
			(status) => status === "ONLINE",
		);
		return device;
	}

	const register = (fields: Parameters<typeof makeDevice>[2] = {}) =>
		makeDevice(server.api, product, fields);
	const childOf = (parent: Device, fields: object = {}) =>
		register({ gateway_id: parent.device_id, ...fields });
	const statusOf = async (device: Device) =>
		(await server.api.getDevice(device.device_id)).status;

	/** Every page of additions or deletions that comes until the gateway hears nothing more. */
	async function told(gateway: ScriptedDevice, expected: number) {
		const pages: {
			type: string;
			ids: string[];
			version: number;
		}[] = [];
		while (pages.reduce((sum, { ids }) => sum + ids.length, 0) < expected) {
			const { type, paras } = await gateway.nextFor(gateway.deviceId, [
				ADDED,
				DELETED,
			]);
			const { devices, version } = paras as unknown as
				| AddSubDeviceParas
				| DeleteSubDeviceParas;
			pages.push({
				type,
				ids: devices.map(({ device_id }) => device_id),
				version,
			});
		}
		await gateway.hearsNothing(150);
		for (const [index, { ids, version }] of pages.entries()) {
			assert.ok(ids.length <= 10, "more than the C SDK takes");
			const before = pages[index - 1];
			assert.ok(
				before === undefined || before.version < version,
				"each page is newer than the one before",
			);
		}
		return pages;
	}

	describe("the list of children", () => {
		test("a gateway that asks is told of all levels below it, as the vendor's SDKs read it", async () => {
			const gateway = await register();
			const child = await childOf(gateway, {
				device_name: "Lamp",
				description: "hall",
				extension_info: { floor: 2 },
			});
			const grandchild = await childOf(child);
			await childOf(await register());
			await using device = await connect(gateway);
			await device.manage(SYNC, {});
			const { paras } = await device.next(ADDED);
			assert.deepEqual(paras, {
				devices: [
					{
						parent_device_id: gateway.device_id,
						node_id: child.node_id,
						device_id: child.device_id,
						name: "Lamp",
						description: "hall",
						manufacturer_id: null,
						model: null,
						product_id: product.product_id,
						fw_version: null,
						sw_version: null,
						status: "INACTIVE",
						extension_info: { floor: 2 },
					},
					{
						parent_device_id: child.device_id,
						node_id: grandchild.node_id,
						device_id: grandchild.device_id,
						name: null,
						description: null,
						manufacturer_id: null,
						model: null,
						product_id: product.product_id,
						fw_version: null,
						sw_version: null,
						status: "INACTIVE",
						extension_info: null,
					},
				],
				version: 2,
			});
			await device.hearsNothing(150);
		});

		test("a gateway without children hears nothing", async () => {
			const gateway = await register();
			await using device = await connect(gateway);
			await device.manage(SYNC, { version: 0 });
			await device.hearsNothing();
		});

		test("who asks without the $ is answered too", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await using device = await connect(gateway);
			await device.say(SYNC, { version: -1 }, "sub_device_manager");
			assert.deepEqual(
				(await told(device, 1)).map(({ ids }) => ids),
				[[child.device_id]],
			);
		});

		test("a gateway that knows a version is told what changed since then", async () => {
			const gateway = await register();
			const [first, second, third] = [
				await childOf(gateway),
				await childOf(gateway),
				await childOf(gateway),
			];
			let version: number;
			{
				await using device = await connect(gateway);
				await device.manage(SYNC, { version: 0 });
				const pages = await told(device, 3);
				version = pages.at(-1)?.version ?? 0;
				await device.manage(SYNC, { version });
				await device.hearsNothing();
			}
			await server.api.deleteDevice(first.device_id);
			const fourth = await childOf(gateway);
			await server.api.deleteDevice(third.device_id);
			const again = await childOf(gateway, { device_id: third.device_id });
			await using device = await connect(gateway);
			await device.manage(SYNC, { version });
			const changes = [
				{ type: DELETED, ids: [first.device_id], version: version + 1 },
				{ type: ADDED, ids: [fourth.device_id], version: version + 2 },
				{ type: DELETED, ids: [third.device_id], version: version + 3 },
				{ type: ADDED, ids: [again.device_id], version: version + 4 },
			];
			assert.deepEqual(await told(device, 4), changes);
			await device.manage(SYNC, { version: version + 2 });
			assert.deepEqual(await told(device, 2), changes.slice(2));
			assert.equal(await statusOf(second), "INACTIVE");
		});

		test("children that were registered by the thousand come in pages, each newer than the last", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await addRows(child, 1_234);
			await using device = await connect(gateway);
			await device.manage(SYNC, {});
			const pages = await told(device, 1_235);
			assert.equal(
				new Set(pages.flatMap(({ ids }) => ids)).size,
				1_235,
				"each of them once",
			);
			assert.ok(pages.length <= 125);
			const middle = pages[60];
			assert.ok(middle);
			await device.manage(SYNC, { version: middle.version });
			assert.deepEqual(await told(device, 1_235 - 601), pages.slice(61));
		});

		test("a gateway that comes from elsewhere with a higher version is told all, above it", async () => {
			const gateway = await register();
			const children = [await childOf(gateway), await childOf(gateway)];
			await using device = await connect(gateway);
			await device.manage(SYNC, { version: 5_000 });
			assert.deepEqual(await told(device, 2), [
				{
					type: ADDED,
					ids: children.map(({ device_id }) => device_id),
					version: 5_001,
				},
			]);
			const third = await childOf(gateway);
			assert.deepEqual(await told(device, 1), [
				{ type: ADDED, ids: [third.device_id], version: 5_002 },
			]);
			// What no list can have is taken as none.
			await device.manage(SYNC, { version: 2 ** 52 });
			assert.equal((await told(device, 3)).at(-1)?.version, 5_002);
		});

		test("a connected gateway is told when a child is registered or deleted", async () => {
			const gateway = await register();
			await using device = await connect(gateway);
			const child = await childOf(gateway);
			const added = await device.next(ADDED);
			assert.deepEqual(
				(added.paras as unknown as AddSubDeviceParas).devices[0]?.device_id,
				child.device_id,
			);
			assert.equal(added.paras.version, 1);
			const grandchild = await childOf(child);
			assert.deepEqual(await told(device, 1), [
				{ type: ADDED, ids: [grandchild.device_id], version: 2 },
			]);
			await server.api.deleteDevice(grandchild.device_id);
			const deleted = await device.next(DELETED);
			assert.deepEqual(deleted.paras, {
				devices: [
					{
						parent_device_id: child.device_id,
						node_id: grandchild.node_id,
						device_id: grandchild.device_id,
					},
				],
				version: 3,
			});
			// Another gateway's business.
			await childOf(await register());
			await device.hearsNothing();
		});

		test("a hundred registrations at once reach the gateway, each once, in fewer messages", async () => {
			const gateway = await register();
			await using device = await connect(gateway);
			const children = await Promise.all(
				Array.from({ length: 100 }, () => childOf(gateway)),
			);
			const pages = await told(device, 100);
			assert.deepEqual(
				pages.flatMap(({ ids }) => ids).sort(),
				children.map(({ device_id }) => device_id).sort(),
			);
		});

		test("what an import left unsaid is told along with the next change", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await using device = await connect(gateway);
			await addRows(child, 3);
			await device.hearsNothing(150);
			await childOf(gateway);
			assert.equal((await told(device, 4)).flatMap(({ ids }) => ids).length, 4);
		});

		test("a deletion that the gateway knows of is not kept", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await server.api.deleteDevice(child.device_id);
			const kept = async () => {
				const rows = await server.server.db
					.selectFrom("deleted_children")
					.select("version")
					.where("link_id", "=", gateway.device_id)
					.execute();
				return rows.map(({ version }) => version);
			};
			assert.deepEqual(await kept(), [2]);
			await using device = await connect(gateway);
			await device.manage(SYNC, { version: 2 });
			await until(kept, (rows) => rows.length === 0);
			await server.api.deleteDevice(gateway.device_id);
		});

		/** Rows as an import makes them, without a version. */
		async function addRows(like: Device, count: number): Promise<void> {
			const { db } = server.server;
			const row = await db
				.selectFrom("devices")
				.selectAll()
				.where("device_id", "=", like.device_id)
				.executeTakeFirstOrThrow();
			for (let made = 0; made < count; made += 200)
				await db
					.insertInto("devices")
					.values(
						Array.from({ length: Math.min(200, count - made) }, (_, index) => ({
							...row,
							device_id: unique("imported"),
							record_id: `f${(made + index).toString(16).padStart(23, "0")}`,
							link_version: null,
						})),
					)
					.execute();
		}
	});

	describe("the status of children", () => {
		test("a child is as its gateway says, as long as the gateway is there", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			const other = await childOf(gateway);
			const listed = async () => {
				const { devices } = await server.api.listDevices({
					gateway_id: gateway.device_id,
				});
				return devices.map(({ status }) => status).reverse();
			};
			assert.deepEqual(await listed(), ["INACTIVE", "INACTIVE"]);
			{
				await using device = await connect(gateway);
				assert.deepEqual(await listed(), ["INACTIVE", "INACTIVE"]);
				clock.pass({ minutes: 1 });
				await device.manage(
					STATUS,
					{
						device_statuses: [
							{ device_id: child.device_id, status: "ONLINE" },
							{ device_id: other.device_id, status: "OFFLINE" },
						],
					},
					"e-1",
				);
				const answer = await device.next(STATUS_ANSWER);
				assert.equal(answer.eventId, "e-1");
				assert.deepEqual(answer.paras, {
					successful_devices: [
						{ device_id: child.device_id, status: "ONLINE" },
						{ device_id: other.device_id, status: "OFFLINE" },
					],
					failed_devices: [],
				});
				assert.deepEqual(await listed(), ["ONLINE", "OFFLINE"]);
				const shown = await server.api.getDevice(child.device_id);
				assert.equal(shown.status, "ONLINE");
				assert.equal(shown.connection_status_update_time, time(clock.now()));
				assert.equal(shown.active_time, time(clock.now()));
				assert.equal(
					(await server.api.getDevice(other.device_id)).active_time,
					undefined,
				);
				clock.pass({ minutes: 1 });
			}
			await until(listed, ([first]) => first === "OFFLINE");
			assert.deepEqual(await listed(), ["OFFLINE", "OFFLINE"]);
			assert.equal(
				(await server.api.getDevice(child.device_id))
					.connection_status_update_time,
				time(clock.now()),
				"it went with its gateway",
			);
			clock.pass({ minutes: 1 });
			await using device = await connect(gateway);
			await until(listed, ([first]) => first === "ONLINE");
			const since = (await server.api.getDevice(other.device_id))
				.connection_status_update_time;
			assert.notEqual(since, time(clock.now()), "that one was off all along");
			await server.api.freezeDevice(gateway.device_id);
			await until(listed, ([first]) => first === "OFFLINE");
			assert.equal(await statusOf(gateway), "FROZEN");
			assert.equal(device.client.connected, false);
			const timeline = await server.api.listDeviceEvents(child.device_id);
			assert.deepEqual(
				timeline.events.map(({ kind }) => kind),
				["connected", "registered"],
			);
			const { count } = await server.server.db
				.selectFrom("presence")
				.select((eb) => eb.fn.countAll<number>().as("count"))
				.where("device_id", "in", [child.device_id, other.device_id])
				.executeTakeFirstOrThrow();
			assert.equal(Number(count), 0, "presence is of connections");
		});

		test("whoever is spoken for is there, whatever its gateway says of statuses", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await using device = await connect(gateway);
			await device.sayOf(child.device_id, "version_report", {
				fw_version: "v1",
			});
			const shown = await server.api.getDevice(child.device_id);
			assert.equal(shown.status, "ONLINE");
			assert.equal(shown.fw_version, "v1");
			await device.manage(STATUS, {
				device_statuses: [{ device_id: child.device_id, status: "OFFLINE" }],
			});
			await device.next(STATUS_ANSWER);
			await device.sayOf(child.device_id, "version_report", {
				fw_version: "v2",
			});
			assert.equal(await statusOf(child), "OFFLINE");
		});

		test("only its own children, and only words of the protocol, are taken", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			const grandchild = await childOf(child);
			const stranger = await register();
			const foreign = await childOf(stranger);
			await using device = await connect(gateway);
			const cases: [given: unknown, code: string, words: string][] = [
				[
					{ device_id: foreign.device_id, status: "ONLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[
					{ device_id: stranger.device_id, status: "ONLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[
					{ device_id: gateway.device_id, status: "OFFLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[
					{ device_id: "unheard-of", status: "ONLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[
					{ device_id: "a\u0000b", status: "ONLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[
					{ device_id: "x".repeat(5_000), status: "ONLINE" },
					"IOTDA.014000",
					"does not exist",
				],
				[{ status: "ONLINE" }, "IOTDA.014000", "does not exist"],
				[
					{ device_id: child.device_id, status: "FROZEN" },
					"IOTDA.000006",
					"status must be ONLINE or OFFLINE",
				],
				[
					{ device_id: child.device_id },
					"IOTDA.000006",
					"status must be ONLINE or OFFLINE",
				],
				[null, "IOTDA.000006", "status must be ONLINE or OFFLINE"],
				[17, "IOTDA.000006", "status must be ONLINE or OFFLINE"],
			];
			for (const [given, code, words] of cases) {
				const right = { device_id: grandchild.device_id, status: "ONLINE" };
				await device.manage(STATUS, { device_statuses: [given, right] }, "e");
				const { paras } = await device.next(STATUS_ANSWER);
				const answer = paras as unknown as SubDeviceStatusResponseParas;
				assert.deepEqual(answer.successful_devices, [right]);
				assert.equal(answer.failed_devices.length, 1);
				assert.equal(answer.failed_devices[0]?.error_code, code);
				assert.ok(answer.failed_devices[0].error_msg.includes(words));
			}
			assert.equal(await statusOf(foreign), "INACTIVE");
			assert.equal(await statusOf(child), "INACTIVE");
			assert.equal(await statusOf(grandchild), "ONLINE");
		});

		test("the last word about a child counts, within a message and after it", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await using device = await connect(gateway);
			const said = (...statuses: string[]) =>
				device.manage(
					STATUS,
					{
						device_statuses: statuses.map((status) => ({
							device_id: child.device_id,
							status,
						})),
					},
					"e",
				);
			await said("ONLINE", "OFFLINE", "ONLINE");
			const { paras } = await device.next(STATUS_ANSWER);
			assert.deepEqual(paras.successful_devices, [
				{ device_id: child.device_id, status: "ONLINE" },
			]);
			for (let round = 0; round < 5; round++) {
				await Promise.all([
					...Array.from({ length: 8 }, () => said("ONLINE")),
					said("OFFLINE"),
				]);
				assert.equal(await statusOf(child), "OFFLINE");
			}
		});

		test("a hundred are taken at once, and the next one is told so", async () => {
			const gateway = await register();
			const children = await Promise.all(
				Array.from({ length: 101 }, () => childOf(gateway)),
			);
			await using device = await connect(gateway);
			await device.manage(
				STATUS,
				{
					device_statuses: [...children, ...children].map(({ device_id }) => ({
						device_id,
						status: "ONLINE",
					})),
				},
				"e",
			);
			const { paras } = await device.next(STATUS_ANSWER);
			const answer = paras as unknown as SubDeviceStatusResponseParas;
			assert.equal(answer.successful_devices.length, 100);
			assert.deepEqual(
				answer.failed_devices.map(({ device_id }) => device_id),
				[children[100]?.device_id],
			);
			assert.match(
				answer.failed_devices[0]?.error_msg ?? "",
				/device_statuses must hold at most 100 devices/,
			);
		});

		test("who gives no event id gets answers that the C SDK survives", async () => {
			const gateway = await register();
			const children = await Promise.all(
				Array.from({ length: 7 }, () => childOf(gateway)),
			);
			await using device = await connect(gateway);
			await device.manage(STATUS, {
				device_statuses: [
					...children.map(({ device_id }) => ({ device_id, status: "ONLINE" })),
					{ device_id: "unheard-of", status: "ONLINE" },
				],
			});
			const answers = [
				await device.next(STATUS_ANSWER),
				await device.next(STATUS_ANSWER),
				await device.next(STATUS_ANSWER),
			];
			assert.deepEqual(
				answers.map(({ paras }) => {
					const { successful_devices, failed_devices } =
						paras as unknown as SubDeviceStatusResponseParas;
					return [successful_devices.length, failed_devices.length];
				}),
				[
					[3, 1],
					[3, 0],
					[1, 0],
				],
			);
			const [eventId, ...same] = answers.map((answer) => answer.eventId);
			assert.match(eventId ?? "", /^[0-9a-f-]{36}$/);
			assert.deepEqual(same, [eventId, eventId]);
		});
	});

	describe("gateways that register devices", () => {
		const ADD = "add_sub_device_request";
		const ADD_ANSWER = "add_sub_device_response";
		const DELETE = "delete_sub_device_request";
		const DELETE_ANSWER = "delete_sub_device_response";

		test("are refused unless the operator allows it", async () => {
			const gateway = await register();
			const child = await childOf(gateway);
			await using device = await connect(gateway);
			const node_id = unique("node");
			await device.manage(
				ADD,
				{ devices: [{ node_id, product_id: product.product_id }] },
				"e1",
			);
			const added = await device.next(ADD_ANSWER);
			assert.equal(added.eventId, "e1");
			const error = {
				error_code: "IOTDA.014901",
				error_msg:
					"Operation not allowed. Gateways may not register or delete sub-devices.",
			};
			assert.deepEqual(added.paras, {
				successful_devices: [],
				failed_devices: [{ node_id, product_id: product.product_id, ...error }],
			});
			await device.manage(DELETE, { devices: [child.device_id] }, "e2");
			const deleted = await device.next(DELETE_ANSWER);
			assert.equal(deleted.eventId, "e2");
			assert.deepEqual(deleted.paras, {
				successful_devices: [],
				failed_devices: [{ device_id: child.device_id, ...error }],
			});
			assert.equal(await statusOf(child), "INACTIVE");
		});

		test("register, see and delete devices behind themselves where they may", async () => {
			await using open = await startServer(engine, {
				env: { OTARU_GATEWAYS_REGISTER: "on" },
			});
			const { api } = open;
			const product = await makeProduct(api, { product_id: "lamps" });
			const gateway = await makeDevice(api, product, { device_id: "gw" });
			await makeDevice(api, product, { device_id: "elsewhere" });
			await makeDevice(api, product, {
				device_id: "foreign",
				gateway_id: "elsewhere",
			});
			await using device = await ScriptedDevice.connect(open, gateway);
			const request = {
				devices: [
					{
						node_id: "n1",
						product_id: "lamps",
						name: "Lamp",
						description: "hall",
						extension_info: { floor: 2 },
					},
					{ node_id: "n2", device_id: "own-id", product_id: "lamps" },
					{
						node_id: "n3",
						product_id: "lamps",
						parent_device_id: "lamps_n1",
					},
				],
			};
			await device.manage(ADD, request, "e1");
			const answer = await device.next(ADD_ANSWER);
			const { successful_devices, failed_devices } =
				answer.paras as unknown as AddSubDeviceResponseParas;
			assert.deepEqual(failed_devices, []);
			assert.deepEqual(
				successful_devices.map((added) => [
					added.device_id,
					added.parent_device_id,
					added.name,
					added.status,
				]),
				[
					["lamps_n1", "gw", "Lamp", "INACTIVE"],
					["own-id", "gw", null, "INACTIVE"],
					["lamps_n3", "lamps_n1", null, "INACTIVE"],
				],
			);
			assert.deepEqual(await told(device, 3), [
				{ type: ADDED, ids: ["lamps_n1", "own-id", "lamps_n3"], version: 3 },
			]);
			const shown = await api.getDevice("lamps_n1");
			assert.equal(shown.gateway_id, "gw");
			assert.equal(shown.app_id, gateway.app_id);
			assert.deepEqual(shown.extension_info, { floor: 2 });

			// The same request again is its repetition, and changes nothing.
			await device.manage(ADD, request, "e2");
			const again = await device.next(ADD_ANSWER);
			assert.deepEqual(again.paras.failed_devices, []);
			assert.equal(
				(again.paras as unknown as AddSubDeviceResponseParas).successful_devices
					.length,
				3,
			);

			const wrong: [device: object, code: string, words: string][] = [
				[{ product_id: "lamps" }, "IOTDA.000006", "node_id"],
				[{ node_id: "n", product_id: 5 }, "IOTDA.000006", "product_id"],
				[{ node_id: "a b", product_id: "lamps" }, "IOTDA.000006", "node_id"],
				[
					{ node_id: "n", product_id: "unknown" },
					"IOTDA.013900",
					"The product does not exist",
				],
				[
					{ node_id: "n", product_id: "lamps", device_id: "foreign" },
					"IOTDA.014031",
					"already exists",
				],
				[
					{ node_id: "n", product_id: "lamps", device_id: "own-id" },
					"IOTDA.014031",
					"already exists",
				],
				[
					{ node_id: "n", product_id: "lamps", parent_device_id: "elsewhere" },
					"IOTDA.014000",
					"gateway_id names no device",
				],
				[
					{ node_id: "n", product_id: "lamps", parent_device_id: "foreign" },
					"IOTDA.014000",
					"gateway_id names no device",
				],
				[
					{ node_id: "n", product_id: "lamps", parent_device_id: "lamps_n3" },
					"IOTDA.014900",
					"2 levels",
				],
				[
					{ node_id: "n", product_id: "lamps", extension_info: "text" },
					"IOTDA.000006",
					"extension_info",
				],
				[
					{
						node_id: "n",
						product_id: "lamps",
						extension_info: { long: "x".repeat(1_100) },
					},
					"IOTDA.000006",
					"extension_info must be at most 1 KB",
				],
				[
					{ node_id: "n", product_id: "lamps", name: "a\u0000b" },
					"IOTDA.000006",
					"device_name",
				],
			];
			await device.manage(
				ADD,
				{ devices: wrong.map(([given]) => given) },
				"e3",
			);
			const refused = (await device.next(ADD_ANSWER))
				.paras as unknown as AddSubDeviceResponseParas;
			assert.deepEqual(refused.successful_devices, []);
			for (const [index, [, code, words]] of wrong.entries()) {
				const failure = refused.failed_devices[index];
				assert.equal(failure?.error_code, code, failure?.error_msg);
				assert.ok(failure.error_msg.includes(words), failure.error_msg);
			}

			await device.manage(
				DELETE,
				{ devices: ["lamps_n1", "foreign", "gw", "own-id", "nobody", 7] },
				"e4",
			);
			const deleted = (await device.next(DELETE_ANSWER))
				.paras as unknown as DeleteSubDeviceResponseParas;
			assert.deepEqual(deleted.successful_devices, ["own-id"]);
			assert.deepEqual(
				deleted.failed_devices.map(({ device_id, error_code }) => [
					device_id,
					error_code,
				]),
				[
					["lamps_n1", "IOTDA.014024"],
					["foreign", "IOTDA.014000"],
					["gw", "IOTDA.014000"],
					["nobody", "IOTDA.014000"],
					["", "IOTDA.014000"],
				],
			);
			assert.deepEqual(await told(device, 1), [
				{ type: DELETED, ids: ["own-id"], version: 4 },
			]);
			assert.equal((await api.getDevice("foreign")).device_id, "foreign");

			const many = Array.from({ length: 60 }, (_, index) => ({
				node_id: `m${index}`,
				product_id: "lamps",
			}));
			await device.manage(ADD, { devices: many });
			const taken = await device.next(ADD_ANSWER);
			assert.match(taken.eventId ?? "", /^[0-9a-f-]{36}$/);
			const { successful_devices: fifty, failed_devices: rest } =
				taken.paras as unknown as AddSubDeviceResponseParas;
			assert.equal(fifty.length, 50);
			assert.deepEqual(
				rest.map(({ node_id }) => node_id),
				["m50"],
			);
			await told(device, 50);
		});
	});

	test("no request of a gateway whatever breaks anything", async () => {
		const gateway = await register();
		const child = await childOf(gateway);
		const foreign = await childOf(await register());
		const id = fc.oneof(
			fc.constantFrom(child.device_id, foreign.device_id, gateway.device_id),
			fc.string({ unit: "binary", maxLength: 200 }),
			fc.jsonValue(),
		);
		const entry = fc.oneof(
			fc.record(
				{
					device_id: id,
					node_id: id,
					product_id: fc.oneof(fc.constant(product.product_id), id),
					parent_device_id: id,
					name: fc.jsonValue(),
					extension_info: fc.jsonValue(),
					status: fc.oneof(
						fc.constantFrom("ONLINE", "OFFLINE"),
						fc.jsonValue(),
					),
				},
				{ requiredKeys: [] },
			),
			fc.jsonValue(),
		);
		const list = fc.oneof(fc.array(entry, { maxLength: 150 }), fc.jsonValue());
		const message = fc.record({
			object_device_id: fc.option(id, { nil: undefined }),
			services: fc.array(
				fc.record({
					service_id: fc.constantFrom(
						"$sub_device_manager",
						"sub_device_manager",
						"$ota",
					),
					event_type: fc.constantFrom(
						SYNC,
						STATUS,
						"add_sub_device_request",
						"delete_sub_device_request",
						"version_report",
						"upgrade_progress_report",
					),
					event_id: fc.jsonValue(),
					paras: fc.oneof(
						fc.record(
							{
								device_statuses: list,
								devices: list,
								version: fc.oneof(fc.integer(), fc.double(), fc.jsonValue()),
							},
							{ requiredKeys: [] },
						),
						fc.jsonValue(),
					),
				}),
				{ maxLength: 4 },
			),
		});
		await using open = await startServer(engine, {
			env: {
				OTARU_GATEWAYS_REGISTER: "on",
				OTARU_DEVICE_MESSAGES_PER_SECOND: "0",
				OTARU_DEVICE_BYTES_PER_SECOND: "0",
			},
		});
		const home = await makeProduct(open.api, {
			product_id: product.product_id ?? "",
		});
		const same = (device: Device, fields: object = {}) =>
			makeDevice(open.api, home, { device_id: device.device_id, ...fields });
		const self = await same(gateway);
		await same(child, { gateway_id: gateway.device_id });
		await same(foreign);
		await using device = await ScriptedDevice.connect(open, self);
		await fc.assert(
			fc.asyncProperty(message, (said) => device.sayRaw(JSON.stringify(said))),
			{ numRuns: 200, endOnFailure: true },
		);
		assert.ok(device.client.connected);
		await device.sayOf(child.device_id, "version_report", {
			fw_version: "still-here",
		});
		const shown = await open.api
			.getDevice(child.device_id)
			.catch(() => undefined);
		assert.ok(
			shown === undefined || shown.fw_version === "still-here",
			"unless it was deleted as it was asked for",
		);
		assert.equal(
			(await open.api.getDevice(foreign.device_id)).status,
			"INACTIVE",
		);
	});
});

test("whether gateways register devices is a setting of on or off", () => {
	assert.equal(readConfig({}).devices.gatewaysRegister, false);
	for (const value of ["yes", "true", "1", "ON"])
		assert.throws(
			() => readConfig({ OTARU_GATEWAYS_REGISTER: value }),
			/OTARU_GATEWAYS_REGISTER must be on or off/,
		);
});

/** As the management API writes instants with milliseconds. */
function time(date: Date): string {
	return date.toISOString();
}
