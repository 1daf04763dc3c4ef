/** Devices behind a gateway: what is said about them, and how they are upgraded. */
import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { Agent } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { readConfig } from "../server/config.ts";
import { startServer as startNode } from "../server/server.ts";
import { brokerOptions } from "../simulator/fleet.ts";
import { type GatewayEvent, SimulatedGateway } from "../simulator/gateway.ts";
import type { Device } from "../wire/devices.ts";
import { HandClock } from "./support/clock.ts";
import { download, ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine, postgres } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

forEachEngine((engine) => {
	let server: TestServer;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
	});
	after(() => server[Symbol.asyncDispose]());

	const connect = (gateway: Device) => ScriptedDevice.connect(server, gateway);

	/** A gateway with three children, the last of them behind the first; a package for them. */
	async function world() {
		const { api } = server;
		const hubs = await makeProduct(api);
		const lamps = await makeProduct(api);
		const gateway = await makeDevice(api, hubs);
		const child = (parent: Device) =>
			makeDevice(api, lamps, { gateway_id: parent.device_id });
		const first = await child(gateway);
		const second = await child(gateway);
		const third = await child(first);
		const made = await makePackage(api, lamps, { version: "v2" });
		const start = (
			targets: Device[],
			fields: Partial<Parameters<typeof api.createTask>[0]> = {},
		) =>
			api.createTask({
				task_name: "lamps",
				task_type: "firmwareUpgrade",
				targets: targets.map(({ device_id }) => device_id),
				document: { package_ids: [made.package_id] },
				...fields,
			});
		const statusesOf = async (taskId: string) => {
			const { task_details } = await api.getTask(taskId);
			return Object.fromEntries(
				task_details.map(({ target, status }) => [target, status]),
			);
		};
		const ended = (taskId: string) =>
			until(
				() => api.getTask(taskId),
				({ batchtask }) =>
					["Success", "Fail", "PartialSuccess"].includes(batchtask.status),
			);
		return {
			api,
			hubs,
			lamps,
			gateway,
			children: [first, second, third] as const,
			start,
			statusesOf,
			ended,
		};
	}

	describe("what a gateway says about others", () => {
		test("is stored for the child it names, on every level", async () => {
			const { api, lamps, gateway, children } = await world();
			await makeModule(api, lamps, "MCU");
			await using device = await connect(gateway);
			for (const [index, { device_id }] of children.entries()) {
				await device.sayOf(device_id, "version_report", {
					fw_version: `f${index}`,
					sw_version: null,
					modules: [{ module_name: "MCU", module_version: `m${index}` }],
				});
				await device.sayOf(
					device_id,
					"sdk_info_report",
					{ device_sdk_version: "lamp-1", sw_version: `s${index}` },
					"$sdk_info",
				);
				const shown = await api.getDevice(device_id);
				assert.equal(shown.fw_version, `f${index}`);
				assert.equal(shown.sw_version, `s${index}`);
				assert.equal(shown.device_sdk_version, "lamp-1");
				assert.deepEqual(shown.modules, [
					{ module_name: "MCU", module_version: `m${index}` },
				]);
			}
			assert.equal(
				(await api.getDevice(gateway.device_id)).fw_version,
				undefined,
			);
		});

		test("the time is told to the child that asked for it", async () => {
			const { gateway, children } = await world();
			await using device = await connect(gateway);
			const [child] = children;
			await device.sayOf(
				child.device_id,
				"time_sync_request",
				{ device_send_time: 5 },
				"$time_sync",
			);
			const { paras } = await device.nextFor(
				child.device_id,
				"time_sync_response",
			);
			assert.equal(paras.device_send_time, 5);
			await device.say(
				"time_sync_request",
				{ device_send_time: 6 },
				"$time_sync",
			);
			assert.equal(
				(await device.next("time_sync_response")).paras.device_send_time,
				6,
			);
		});

		test("fails when the device is not behind it: acknowledged, counted, not acted on", async () => {
			const { api, lamps, gateway, children } = await world();
			const other = await world();
			const direct = await makeDevice(api, lamps);
			await using device = await connect(gateway);
			await using alone = await connect(direct);
			const strangers = [
				other.gateway.device_id,
				other.children[0].device_id,
				other.children[2].device_id,
				direct.device_id,
				"unheard-of",
			];
			const counted = () =>
				dropsOf(
					server,
					"about another device",
					"object_device_id is no device id",
				);
			const before = await counted();
			for (const id of [...strangers, "a\u0000b", "x".repeat(1_000)])
				await device.sayOf(id, "version_report", { fw_version: "evil" });
			// A device without children speaks for nobody, whatever it is called.
			await alone.sayOf(children[0].device_id, "version_report", {
				fw_version: "evil",
			});
			assert.equal((await counted()) - before, 8);
			for (const id of [...strangers.slice(0, 4), children[0].device_id])
				assert.equal((await api.getDevice(id)).fw_version, undefined, id);
			await device.hearsNothing(100);
			assert.ok(device.client.connected);
		});

		test("a child cannot be asked about the children of its gateway", async () => {
			const { gateway, children } = await world();
			await using device = await connect(gateway);
			const before = await dropsOf(server, "a sub-device is no gateway");
			await device.sayOf(
				children[0].device_id,
				"sub_device_sync_request",
				{},
				"$sub_device_manager",
			);
			await device.hearsNothing(100);
			assert.equal(
				(await dropsOf(server, "a sub-device is no gateway")) - before,
				1,
			);
		});

		test("a child that moves to another gateway is spoken for by that one alone", async () => {
			const { api, lamps, gateway, children } = await world();
			const other = await world();
			const [, child] = children;
			await using old = await connect(gateway);
			await using current = await connect(other.gateway);
			await old.sayOf(child.device_id, "version_report", { fw_version: "f1" });
			assert.equal((await api.getDevice(child.device_id)).fw_version, "f1");
			await api.deleteDevice(child.device_id);
			await old.next("delete_sub_device_notify");
			await makeDevice(api, lamps, {
				device_id: child.device_id,
				gateway_id: other.gateway.device_id,
			});
			await current.next("add_sub_device_notify");
			await old.sayOf(child.device_id, "version_report", { fw_version: "f2" });
			assert.equal(
				(await api.getDevice(child.device_id)).fw_version,
				undefined,
			);
			await current.sayOf(child.device_id, "version_report", {
				fw_version: "f3",
			});
			assert.equal((await api.getDevice(child.device_id)).fw_version, "f3");
		});

		test("reports about one child stay in their order, however many come at once", async () => {
			const { api, gateway, children } = await world();
			await using device = await connect(gateway);
			await Promise.all(
				Array.from({ length: 40 }, (_, index) =>
					device.sayOf(children[index % 3]?.device_id ?? "", "version_report", {
						fw_version: `f${index}`,
					}),
				),
			);
			for (const [index, { device_id }] of children.entries())
				assert.equal(
					(await api.getDevice(device_id)).fw_version,
					`f${[39, 37, 38][index]}`,
				);
		});
	});

	describe("an upgrade behind a gateway", () => {
		test("in gateway mode names the task and how many share it, and nothing of it without", async () => {
			const { gateway, children, start, statusesOf, ended } = await world();
			const [first, second, third] = children;
			await using device = await connect(gateway);
			for (const mode of ["GATEWAY", undefined] as const) {
				const version = mode ? "v1" : "v0";
				const shared = { batch: mode ?? "none" };
				const task = await start([first, third], {
					...(mode ? { task_mode: mode } : {}),
					task_ext_info: shared,
				});
				const expected = {
					...(mode ? { task_id: task.task_id, sub_device_count: 2 } : {}),
					task_ext_info: shared,
				};
				const either = async (type: string) => {
					const events = [
						await device.nextOfAny([first, third], type),
						await device.nextOfAny([first, third], type),
					];
					assert.deepEqual(
						events.map(({ objectDeviceId }) => objectDeviceId).sort(),
						[first.device_id, third.device_id].sort(),
					);
					return events;
				};
				for (const { paras } of await either("version_query"))
					assert.deepEqual(paras, expected);
				for (const { device_id } of [first, third])
					await device.sayOf(device_id, "version_report", {
						fw_version: version,
					});
				for (const { paras } of await either("firmware_upgrade_v2")) {
					const { task_id, sub_device_count, task_ext_info } = paras;
					assert.deepEqual(
						mode
							? { task_id, sub_device_count, task_ext_info }
							: { task_ext_info },
						expected,
					);
					assert.equal("task_id" in paras, mode !== undefined);
					assert.equal((await download(server, paras)).status, 200);
				}
				for (const { device_id } of [first, third])
					await device.sayOf(device_id, "upgrade_progress_report", {
						result_code: 0,
						progress: 100,
						version: "v2",
					});
				assert.deepEqual(await statusesOf(task.task_id), {
					[first.device_id]: "Success",
					[third.device_id]: "Success",
				});
				assert.equal((await ended(task.task_id)).batchtask.status, "Success");
			}
			await device.hearsNothing(100);
			assert.equal(
				(await server.api.getDevice(second.device_id)).fw_version,
				undefined,
			);
		});

		test("another gateway's reports about its children are ignored", async () => {
			const { gateway, children, start, statusesOf } = await world();
			const other = await world();
			const [first] = children;
			await using device = await connect(gateway);
			await using intruder = await connect(other.gateway);
			const { task_id } = await start([first]);
			await device.nextFor(first.device_id, "version_query");
			await intruder.sayOf(first.device_id, "version_report", {
				fw_version: "v2",
			});
			await device.sayOf(first.device_id, "version_report", {
				fw_version: "v1",
			});
			await device.nextFor(first.device_id, "firmware_upgrade_v2");
			await intruder.sayOf(first.device_id, "upgrade_progress_report", {
				result_code: 10,
				version: "v1",
			});
			assert.deepEqual(await statusesOf(task_id), {
				[first.device_id]: "Processing",
			});
			await device.sayOf(first.device_id, "upgrade_progress_report", {
				result_code: 0,
				version: "v2",
			});
			assert.deepEqual(await statusesOf(task_id), {
				[first.device_id]: "Success",
			});
		});

		test("waits while the gateway is away, and goes on when it is back", async () => {
			const { gateway, children, start, statusesOf } = await world();
			const [first, second] = children;
			const { task_id } = await start([first, second]);
			await until(
				() => statusesOf(task_id),
				(statuses) => statuses[second.device_id] === "Processing",
			);
			{
				await using device = await connect(gateway);
				await device.nextOfAny([first, second], "version_query");
				await device.nextOfAny([first, second], "version_query");
				await device.sayOf(first.device_id, "version_report", {
					fw_version: "v1",
				});
				await device.nextFor(first.device_id, "firmware_upgrade_v2");
			}
			await using device = await connect(gateway);
			// One is asked what runs now, the other has not answered yet.
			await device.nextOfAny([first, second], "version_query");
			await device.nextOfAny([first, second], "version_query");
			await device.sayOf(first.device_id, "version_report", {
				fw_version: "v2",
			});
			await device.sayOf(second.device_id, "version_report", {
				fw_version: "v2",
			});
			assert.deepEqual(await statusesOf(task_id), {
				[first.device_id]: "Success",
				[second.device_id]: "Success",
			});
		});

		test("asks a child again that its gateway says is back", async () => {
			const { gateway, children, start, statusesOf } = await world();
			const [first] = children;
			await using device = await connect(gateway);
			const status = async (status: string) => {
				await device.manage("sub_device_update_status", {
					device_statuses: [{ device_id: first.device_id, status }],
				});
			};
			const answer = () => device.next("sub_device_update_status_response");
			await status("OFFLINE");
			await answer();
			const { task_id } = await start([first]);
			await device.nextFor(first.device_id, "version_query");
			clock.pass({ minutes: 2 });
			await status("ONLINE");
			const events = await device.several(2);
			assert.deepEqual(events.map(({ type }) => type).sort(), [
				"sub_device_update_status_response",
				"version_query",
			]);
			clock.pass({ minutes: 2 });
			await device.sayOf(first.device_id, "version_report", {
				fw_version: "v1",
			});
			await device.nextFor(first.device_id, "firmware_upgrade_v2");
			assert.deepEqual(await statusesOf(task_id), {
				[first.device_id]: "Processing",
			});
		});

		test("a gateway with more children in a task than a connection takes messages loses none", async () => {
			const { api, lamps, gateway, start, ended } = await world();
			const children: Device[] = [];
			while (children.length < 200)
				children.push(
					...(await Promise.all(
						Array.from({ length: 100 }, () =>
							makeDevice(api, lamps, { gateway_id: gateway.device_id }),
						),
					)),
				);
			const { task_id } = await start(children);
			await using device = await connect(gateway);
			const asked = new Set<string>();
			while (asked.size < children.length) {
				const { objectDeviceId } = await device.nextOfAny(
					children,
					"version_query",
				);
				asked.add(objectDeviceId);
			}
			clock.pass({ hours: 1 });
			assert.equal((await ended(task_id)).batchtask.status, "Fail");
		});

		for (const mode of ["GATEWAY", undefined] as const)
			test(`a simulated gateway ${mode ? "fetches once and distributes" : "fetches for each child"}`, async () => {
				const { api, gateway, children, start, ended } = await world();
				const [first, second, third] = children;
				const events: GatewayEvent[] = [];
				const of = <K extends GatewayEvent["kind"]>(kind: K) =>
					events.filter(
						(event): event is GatewayEvent & { kind: K } => event.kind === kind,
					);
				await using hub = simulate(server, gateway, events);
				hub.start();
				await until(
					async () => hub.children,
					(ids) => ids.length === 3,
				);
				const shown = async (device: Device) =>
					(await api.getDevice(device.device_id)).status;
				await until(
					() => shown(third),
					(status) => status === "ONLINE",
				);
				const task = await start([first, second], {
					...(mode ? { task_mode: mode } : {}),
				});
				await until(
					async () => of("downloaded"),
					(downloaded) => downloaded.length > 0,
				);
				await hub.leave(200);
				const done = await ended(task.task_id);
				assert.deepEqual(done.batchtask.task_progress, {
					total: 2,
					processing: 0,
					success: 2,
					fail: 0,
					waitting: 0,
					fail_wait_retry: 0,
					stopped: 0,
					removed: 0,
				});
				assert.equal(hub.downloads, mode ? 1 : 2);
				for (const { taskId, subDeviceCount } of of("noticed"))
					assert.deepEqual(
						{ taskId, subDeviceCount },
						mode
							? { taskId: task.task_id, subDeviceCount: 2 }
							: { taskId: undefined, subDeviceCount: undefined },
					);
				for (const device of [first, second]) {
					assert.equal(hub.version(device.device_id, "firmware"), "v2");
					assert.equal(
						(await api.getDevice(device.device_id)).fw_version,
						"v2",
					);
				}
				assert.equal(hub.version(third.device_id, "firmware"), "v1");
				assert.ok(
					of("asked").every(({ deviceId }) => deviceId !== third.device_id),
				);
				assert.deepEqual(of("misunderstood"), []);
				await api.deleteDevice(third.device_id);
				await until(
					async () => hub.children,
					(ids) => !ids.includes(third.device_id),
				);
			});
	});
});

test("a gateway is told of its children to whichever process it is connected", async () => {
	await using server = await startServer(postgres);
	const { api } = server;
	const product = await makeProduct(api);
	const gateway = await makeDevice(api, product);
	const dataDir = mkdtempSync(join(tmpdir(), "otaru-test-"));
	try {
		cpSync(server.config.dataDir, dataDir, { recursive: true });
		rmSync(join(dataDir, "node-id"), { force: true });
		const { database } = server.config;
		assert.ok(database.kind === "postgres");
		await using node = await startNode(
			readConfig({
				OTARU_DATA: dataDir,
				OTARU_DATABASE_URL: database.url,
				OTARU_HTTP_PORT: "0",
				OTARU_MQTT_PORT: "0",
				OTARU_MQTTS_PORT: "0",
				OTARU_DEVICE_PORT: "0",
				OTARU_DEVICE_HOST: "127.0.0.1",
				OTARU_DATABASE_CONNECTIONS: "4",
				OTARU_CONNECT_PAUSE_MS: "0",
				OTARU_LOG_LEVEL: "silent",
			}),
		);
		const elsewhere = {
			...server,
			credentials: {
				...server.credentials,
				mqtt_endpoint: `mqtt://127.0.0.1:${node.ports.mqtt}`,
			},
		};
		await using device = await ScriptedDevice.connect(elsewhere, gateway);
		const child = await makeDevice(api, product, {
			gateway_id: gateway.device_id,
		});
		const added = await device.next("add_sub_device_notify");
		assert.equal(added.paras.version, 1);
		await api.deleteDevice(child.device_id);
		const deleted = await device.next("delete_sub_device_notify");
		assert.deepEqual(deleted.paras, {
			devices: [
				{
					parent_device_id: gateway.device_id,
					node_id: child.node_id,
					device_id: child.device_id,
				},
			],
			version: 2,
		});
	} finally {
		rmSync(dataDir, { recursive: true, force: true });
	}
});

function simulate(
	server: TestServer,
	gateway: Device,
	events: GatewayEvent[],
): SimulatedGateway {
	return new SimulatedGateway({
		identity: {
			deviceId: gateway.device_id,
			secret: gateway.auth_info.secret ?? "",
		},
		childVersions: { firmware: "v1", software: "v1" },
		broker: brokerOptions(server.credentials.mqtt_endpoint, undefined, 4),
		agent: new Agent({ ca: readFileSync(server.credentials.ca_file) }),
		seed: 1,
		backoffMs: { min: 20, max: 200 },
		installMs: 300,
		onEvent: (_gateway, event) => events.push(event),
	});
}

/** How many messages were dropped for these reasons, as the metrics say. */
async function dropsOf(
	server: TestServer,
	...reasons: string[]
): Promise<number> {
	const text = await (await fetch(`${server.url}/metrics`)).text();
	return reasons.reduce((sum, reason) => {
		const line = text
			.split("\n")
			.find((line) =>
				line.startsWith(`otaru_uplink_dropped_total{reason="${reason}"}`),
			);
		return sum + Number(line?.split(" ").at(-1) ?? 0);
	}, 0);
}
