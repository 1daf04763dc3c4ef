/** Simulated devices behave as they are told to, and the task says what became of each. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { brokerUrl } from "../cli/session.ts";
import type { DeviceEvent } from "../simulator/device.ts";
import { assignFaults, FaultError, parseFault } from "../simulator/faults.ts";
import {
	Fleet,
	type FleetMember,
	type FleetOptions,
} from "../simulator/fleet.ts";
import type { Product } from "../wire/products.ts";
import { forEachEngine, sqlite as sqliteEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

describe("faults", () => {
	test("are written as name, value and share", () => {
		assert.deepEqual(parseFault("drop=0.1"), {
			name: "drop",
			value: 1,
			share: 0.1,
		});
		assert.deepEqual(parseFault("fail:5=0.25"), {
			name: "fail",
			value: 5,
			share: 0.25,
		});
		assert.deepEqual(parseFault("slow"), { name: "slow", value: 32, share: 1 });
	});

	for (const [text, words] of [
		["explode=1", 'no fault "explode=1"'],
		["", "no fault"],
		["drop=2", "share of drop must be from 0 to 1"],
		["drop=-1", "share of drop must be from 0 to 1"],
		["drop=", "share of drop must be from 0 to 1"],
		["fail=10", "fail:10=0.1"],
		["fail:0=1", "must be from 1 to 65535"],
		["fail:1.5=1", "must be from 1 to 65535"],
		["fail:x=1", "must be from 1 to 65535"],
		["silent:3=1", "takes no value"],
		["toString=1", "no fault"],
	] as const) {
		test(`"${text}" is refused with the rule`, () => {
			assert.throws(
				() => parseFault(text),
				(error) => error instanceof FaultError && error.message.includes(words),
			);
		});
	}

	test("befall exactly their share of the fleet, the same devices for the same seed", () => {
		const specs = ["drop=0.1", "fail:5=0.25", "fail:10=0.25", "silent=0.5"].map(
			parseFault,
		);
		const fleet = assignFaults(specs, 200, 7);
		const having = (name: keyof (typeof fleet)[number]) =>
			fleet.filter((behaviour) => behaviour[name] !== undefined).length;
		assert.equal(having("downloadDrops"), 20);
		assert.equal(having("failCode"), 100);
		assert.equal(fleet.filter(({ failCode }) => failCode === 5).length, 50);
		assert.equal(having("silent"), 100);
		assert.ok(fleet.some((behaviour) => Object.keys(behaviour).length >= 2));
		assert.deepEqual(assignFaults(specs, 200, 7), fleet);
		assert.notDeepEqual(assignFaults(specs, 200, 8), fleet);
	});
});

forEachEngine((engine) => {
	test("a task says of each fault what became of it", async () => {
		await using server = await startServer(engine, {
			env: {
				OTARU_VERSION_TIMEOUT_SECONDS: "2",
				OTARU_UPGRADE_TIMEOUT_SECONDS: "5",
				OTARU_RESEND_INTERVAL_SECONDS: "1",
			},
		});
		const world = await makeWorld(server, "native", 96 * 1024);
		const expected: Record<
			string,
			{ faults: string[]; status: string; words: string }
		> = {
			plain: { faults: [], status: "Success", words: "target version" },
			slow: { faults: ["slow:48"], status: "Success", words: "target version" },
			drop: { faults: ["drop:3"], status: "Success", words: "target version" },
			reboot: {
				faults: ["reboot:0"],
				status: "Success",
				words: "target version",
			},
			late: {
				faults: ["offline:1"],
				status: "Success",
				words: "target version",
			},
			both: {
				faults: ["drop", "reboot:0"],
				status: "Success",
				words: "target version",
			},
			battery: {
				faults: ["fail:4"],
				status: "Fail",
				words: "simulated failure before the download",
			},
			install: {
				faults: ["fail:10"],
				status: "Fail",
				words: "Firmware update failed",
			},
			foreign: { faults: ["fail:77"], status: "Fail", words: "result_code" },
			silent: {
				faults: ["silent"],
				status: "Fail",
				words: "Wait for the device to report upgrade result timeout",
			},
			stale: {
				faults: ["stale"],
				status: "Fail",
				words: "Wait for the device to report upgrade result timeout",
			},
			mute: { faults: ["mute"], status: "Fail", words: "version timeout" },
		};
		await using fleets = new AsyncDisposableStack();
		const byDevice = new Map<string, { name: string; fleet: Fleet }>();
		for (const [name, { faults }] of Object.entries(expected)) {
			const member = await world.member({ MCU: "1.0.0" }, "mqtt");
			const fleet = fleets.use(
				world.fleet([member], { faults: faults.map(parseFault) }),
			);
			fleet.start();
			byDevice.set(member.identity.deviceId, { name, fleet });
		}
		const startedAtMs = Date.now();
		const { task_id } = await world.upgrade([...byDevice.keys()]);
		const details = await untilOver(server, task_id);
		assert.equal(details.length, byDevice.size);
		for (const { target, status, output, error } of details) {
			const { name = "", fleet } = byDevice.get(target) ?? {};
			const words = output ?? error?.error_msg ?? "";
			assert.equal(status, expected[name]?.status, `${name}: ${words}`);
			assert.ok(
				words.includes(expected[name]?.words ?? "-"),
				`${name}: ${words}`,
			);
			const device = fleet?.devices[0];
			assert.equal(device?.installs, status === "Success" ? 1 : 0, name);
		}
		const counts = (name: string) =>
			[...byDevice.values()].find((one) => one.name === name)?.fleet.counts;
		assert.equal(counts("drop")?.interruptions, 3);
		assert.ok((counts("drop")?.disconnects ?? 0) >= 1);
		assert.equal(counts("drop")?.downloads, 1);
		assert.ok((counts("reboot")?.disconnects ?? 0) >= 1);
		assert.equal(counts("battery")?.downloads, 0);
		assert.equal(counts("install")?.downloads, 1);
		assert.equal(counts("silent")?.reports, 0);
		assert.equal(counts("silent")?.downloads, 1);
		// 96 KiB at 48 KiB a second.
		assert.ok(Date.now() - startedAtMs >= 1500);
	});

	for (const form of ["presigned", "token"] as const) {
		test(`devices that know nothing of modules take a module's package (${form})`, async () => {
			await using server = await startServer(engine);
			const world = await makeWorld(server, "compatible", 10_000, form);
			const member = await world.member({ MCU: "1.0.0" }, "mqtts");
			const events: DeviceEvent[] = [];
			await using fleet = world.fleet([member], {
				speaksModules: false,
				onEvent: (_device, event) => events.push(event),
			});
			fleet.start();
			const { deviceId } = member.identity;
			const { task_id } = await world.upgrade([deviceId]);
			const [detail] = await untilOver(server, task_id);
			assert.equal(detail?.status, "Success", JSON.stringify(detail));
			assert.equal(
				fleet.devices[0]?.version({ kind: "module", moduleName: "MCU" }),
				"2.0.0",
			);
			assert.equal(fleet.devices[0]?.version({ kind: "firmware" }), "1.0.0");
			const { modules } = await server.api.getDevice(deviceId);
			assert.deepEqual(modules, [
				{ module_name: "MCU", module_version: "2.0.0" },
			]);
			assert.equal(fleet.counts.misunderstood, 0);
		});
	}
});

describe("a fleet", () => {
	for (const mqttVersion of [3, 4, 5] as const) {
		test(`connects by TCP, TLS and WebSocket with MQTT version ${mqttVersion} and upgrades firmware and software`, async () => {
			await using server = await startServer(sqliteEngine);
			const world = await makeWorld(server, "native", 5000);
			const members = await Promise.all(
				(["mqtt", "mqtts", "wss"] as const).map((transport) =>
					world.member({}, transport),
				),
			);
			await using fleet = world.fleet(members, { mqttVersion });
			fleet.start();
			for (const [task_type, package_type, kind] of [
				["firmwareUpgrade", "firmwarePackage", "firmware"],
				["softwareUpgrade", "softwarePackage", "software"],
			] as const) {
				const { package_id } = await makePackage(server.api, world.product, {
					package_type,
					version: "3.0.0",
				});
				const { task_id } = await server.api.createTask({
					task_name: kind,
					task_type,
					targets: members.map(({ identity }) => identity.deviceId),
					document: { package_ids: [package_id] },
				});
				for (const detail of await untilOver(server, task_id))
					assert.equal(detail.status, "Success", JSON.stringify(detail));
				for (const device of fleet.devices)
					assert.equal(device.version({ kind }), "3.0.0");
			}
			assert.equal(fleet.counts.connected, 3);
			assert.equal(fleet.counts.misunderstood, 0);
		});
	}

	test("keeps trying when it is refused, and says why", async () => {
		await using server = await startServer(sqliteEngine);
		const world = await makeWorld(server, "native", 100);
		const member = await world.member({}, "mqtt");
		const wrong = {
			...member,
			identity: { ...member.identity, secret: "not-the-secret" },
		};
		await using fleet = world.fleet([wrong]);
		fleet.start();
		await until(() => fleet.counts.refused >= 2);
		assert.match(fleet.lastTrouble ?? "", /refuses .* with code 4/);
		assert.equal(fleet.counts.connected, 0);
	});

	test("does not trust a server whose certificate another authority has signed", async () => {
		await using server = await startServer(sqliteEngine);
		await using other = await startServer(sqliteEngine);
		const world = await makeWorld(server, "native", 100);
		const member = await world.member({}, "mqtts");
		await using fleet = world.fleet([member], {
			ca: readFileSync(other.credentials.ca_file, "utf8"),
		});
		fleet.start();
		await until(() => fleet.counts.unreachable >= 2);
		assert.equal(fleet.counts.connected, 0);
	});

	test("is gone from the server's view when it is stopped", async () => {
		await using server = await startServer(sqliteEngine);
		const world = await makeWorld(server, "native", 100);
		const members = [
			await world.member({}, "mqtt"),
			await world.member({}, "wss"),
		];
		const fleet = world.fleet(members);
		fleet.start();
		const status = async () =>
			Promise.all(
				members.map(
					async ({ identity }) =>
						(await server.api.getDevice(identity.deviceId)).status,
				),
			);
		await until(async () =>
			(await status()).every((text) => text === "ONLINE"),
		);
		await fleet[Symbol.asyncDispose]();
		await until(async () =>
			(await status()).every((text) => text === "OFFLINE"),
		);
		assert.equal(fleet.counts.connected, 0);
	});
});

interface World {
	product: Product;
	/** A registered device with these modules, to connect by that way. */
	member(
		modules: Record<string, string>,
		transport: "mqtt" | "mqtts" | "wss",
	): Promise<FleetMember>;
	fleet(members: FleetMember[], options?: Partial<FleetOptions>): Fleet;
	/** Starts the upgrade of MCU to 2.0.0. */
	upgrade(targets: string[]): Promise<{ task_id: string }>;
}

async function makeWorld(
	{ api, credentials }: TestServer,
	moduleForm: "native" | "compatible",
	packageBytes: number,
	downloadForm: "presigned" | "token" = "presigned",
): Promise<World> {
	const product = await makeProduct(api);
	await makeModule(api, product, "MCU");
	await api.updateProductOtaProfile(product.product_id, {
		module_form: moduleForm,
		download_form: downloadForm,
	});
	const { package_id } = await makePackage(api, product, {
		package_type: "modulePackage",
		module_name: "MCU",
		version: "2.0.0",
		file_location: await upload(
			api,
			`${unique("mcu")}.bin`,
			randomBytes(packageBytes),
		),
	});
	const brokers = {
		mqtt: brokerUrl("mqtt", credentials.mqtt_endpoint),
		mqtts: brokerUrl("mqtts", credentials.mqtts_endpoint),
		wss: `${brokerUrl("wss", credentials.device_endpoint)}/mqtt`,
	};
	return {
		product,
		async member(modules, transport) {
			const device = await makeDevice(api, product);
			return {
				identity: {
					deviceId: device.device_id,
					secret: device.auth_info?.secret ?? "",
				},
				versions: { firmware: "1.0.0", software: "1.0.0", modules },
				brokerUrl: brokers[transport],
			};
		},
		fleet: (members, options = {}) =>
			new Fleet({
				members,
				ca: readFileSync(credentials.ca_file, "utf8"),
				seed: 1,
				installMs: 20,
				backoffMs: { min: 50, max: 200 },
				...options,
			}),
		upgrade: (targets) =>
			api.createTask({
				task_name: "upgrade",
				task_type: "moduleUpgrade",
				targets,
				document: { package_ids: [package_id] },
			}),
	};
}

/** What became of each device, once the task is over. */
async function untilOver({ api }: TestServer, taskId: string) {
	await until(async () => {
		const { batchtask } = await api.getTask(taskId);
		return ["Success", "Fail", "PartialSuccess"].includes(batchtask.status);
	});
	return (await api.getTask(taskId, { limit: 50 })).task_details;
}

async function until(
	condition: () => boolean | Promise<boolean>,
): Promise<void> {
	const deadlineMs = Date.now() + 30_000;
	while (!(await condition())) {
		if (Date.now() > deadlineMs) assert.fail(`not within 30 s: ${condition}`);
		await pause(50);
	}
}
