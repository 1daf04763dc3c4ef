/** The timeline of a device: what it tells, how it is paged, and how long it is kept. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { type RawBuilder, sql } from "kysely";
import type { Db } from "../server/database/database.ts";
import { recordHistory } from "../server/history/history.ts";
import { sweepHistory } from "../server/history/retention.ts";
import type { Client } from "../wire/client.ts";
import type { Device } from "../wire/devices.ts";
import type { DeviceEvent } from "../wire/history.ts";
import { HandClock } from "./support/clock.ts";
import { download, ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makeProduct,
	refused,
	unique,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	failInstalling,
	makeTaskWorld,
	succeed,
	taskWhen,
} from "./support/task-world.ts";

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	let db: Db;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
		api = server.api;
		db = server.server.db;
	});
	after(() => server[Symbol.asyncDispose]());

	/** Oldest first. */
	async function timeline(
		deviceId: string,
		query: Parameters<Client["listDeviceEvents"]>[1] = {},
	): Promise<DeviceEvent[]> {
		const { events } = await api.listDeviceEvents(deviceId, {
			limit: 50,
			...query,
		});
		return events.reverse();
	}

	const kindsOf = (events: readonly DeviceEvent[]) =>
		events.map(({ kind }) => kind);

	/** As soon as the timeline has these kinds, in this order. */
	const timelineWhen = async (deviceId: string, kinds: readonly string[]) =>
		until(
			() => timeline(deviceId),
			(events) => kindsOf(events).join() === kinds.join(),
		);

	const newDevice = async (): Promise<Device> =>
		makeDevice(api, await makeProduct(api));

	/** Entries of a device as if they had been recorded one after the other. */
	async function insertEntries(
		device: Device,
		count: number,
		kind = "connected",
		fields: { project_id?: string; app_id?: string } = {},
	): Promise<void> {
		for (let done = 0; done < count; done += 500)
			await recordHistory(
				db,
				Array.from({ length: Math.min(500, count - done) }, () => ({
					projectId: fields.project_id ?? api.projectId,
					spaceId: fields.app_id ?? device.app_id ?? "",
					deviceId: device.device_id,
					kind: kind as "connected",
				})),
				clock.now(),
			);
	}

	const rowsWhere = async (condition: RawBuilder<unknown>) => {
		const { rows } = await sql<{ count: number }>`
			select count(*) as count from history where ${condition}`.execute(db);
		return Number(rows[0]?.count);
	};

	test("an upgrade is told from the registration to its success", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		await timelineWhen(device.deviceId, ["registered", "connected"]);
		const { task_id } = await world.start();
		await device.next("version_query");
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		assert.equal((await download(server, paras)).bytes.length, 1024);
		await until(
			() => timeline(device.deviceId, { kind: "downloaded" }),
			(events) => events.length === 1,
		);
		await device.report(0, "v2", 100);
		const events = await timelineWhen(device.deviceId, [
			...["registered", "connected", "versions_reported", "offered"],
			...["downloaded", "versions_reported", "succeeded"],
		]);
		const details = events.map(({ detail }) => detail);
		assert.deepEqual(details[0], {
			product_id: world.product.product_id,
			node_id: world.devices[0]?.node_id,
		});
		assert.deepEqual(details[2], {
			changes: [{ part: "firmware", new: "v1" }],
		});
		assert.deepEqual(details[3], {
			version: "v2",
			package_id: world.packageId,
			attempt: 0,
		});
		assert.deepEqual(details[4], { package_id: world.packageId, bytes: 1024 });
		assert.deepEqual(details[5], {
			changes: [{ part: "firmware", old: "v1", new: "v2" }],
		});
		assert.equal(details[6]?.version, "v2");
		for (const [index, { event_id, time, task_id: of }] of events.entries()) {
			assert.match(event_id, /^[0-9a-f]{24}$/);
			assert.ok(event_id > (events[index - 1]?.event_id ?? ""));
			assert.equal(time, clock.now().toISOString());
			assert.equal(of, [3, 4, 6].includes(index) ? task_id : undefined);
		}
		assert.deepEqual(kindsOf(await timeline(device.deviceId, { task_id })), [
			"offered",
			"downloaded",
			"succeeded",
		]);
	});

	test("a failure, its retry and a stop are told with their reasons", async () => {
		const world = await makeTaskWorld(server, 2);
		await using device = await world.connect(0);
		const { task_id } = await world.start({
			task_policy: { retry_count: 1, retry_interval: 5 },
		});
		await failInstalling(device);
		const [scheduled] = await until(
			() => timeline(device.deviceId, { kind: "retry_scheduled" }),
			(events) => events.length === 1,
		);
		assert.equal(scheduled?.detail?.attempt, 1);
		assert.equal(scheduled?.detail?.of, 1);
		assert.ok(scheduled?.detail?.due_at);
		clock.pass({ minutes: 6 });
		await failInstalling(device);
		const [failed] = await until(
			() => timeline(device.deviceId, { kind: "failed" }),
			(events) => events.length === 1,
		);
		assert.match(String(failed?.detail?.error_code), /^IOTDA\.\d{6}$/);
		assert.ok(failed?.detail?.error_msg);
		const waiting = world.deviceIds[1] ?? "";
		await api.stopTask(task_id, { targets: [waiting] });
		assert.deepEqual(kindsOf(await timeline(waiting)), [
			"registered",
			"stopped",
		]);
		await taskWhen(api, task_id, "Fail");
	});

	test("a task that a device was in when it was deleted is named, once the id is there again", async () => {
		const world = await makeTaskWorld(server, 1);
		const { task_id } = await world.start();
		await taskWhen(api, task_id, "Processing");
		const [deviceId = ""] = world.deviceIds;
		await api.deleteDevice(deviceId);
		await refused(api.listDeviceEvents(deviceId), 404, "IOTDA.014000");
		await makeDevice(api, world.product, { device_id: deviceId });
		const events = await timeline(deviceId);
		assert.deepEqual(kindsOf(events), [
			...["registered", "removed", "deleted", "registered"],
		]);
		assert.equal(events[1]?.task_id, task_id);
	});

	test("versions are told when they change, all of one report together", async () => {
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		const registered = await makeDevice(api, product);
		await using device = await ScriptedDevice.connect(server, registered);
		const reported = () =>
			timeline(device.deviceId, { kind: "versions_reported" });
		const say = (fw_version: string, MCU: string) =>
			device.say("version_report", {
				fw_version,
				modules: [
					{ module_name: "MCU", module_version: MCU },
					{ module_name: "Unknown", module_version: "v9" },
				],
			});
		await say("v1", "m1");
		await say("v1", "m1");
		assert.deepEqual(
			(await reported()).map(({ detail }) => detail),
			[
				{
					changes: [
						{ part: "firmware", new: "v1" },
						{ part: "module", module_name: "MCU", new: "m1" },
					],
				},
			],
		);
		await say("v1", "m2");
		await device.say("version_report", { sw_version: "s1" });
		await device.reportModules({ Unknown: "v10" });
		assert.deepEqual(
			(await reported()).slice(1).map(({ detail }) => detail),
			[
				{
					changes: [
						{ part: "module", module_name: "MCU", old: "m1", new: "m2" },
					],
				},
				{ changes: [{ part: "software", new: "s1" }] },
			],
		);
		const shown = await api.getDevice(device.deviceId);
		assert.equal(shown.fw_version, "v1");
		assert.deepEqual(shown.modules, [
			{ module_name: "MCU", module_version: "m2" },
		]);
	});

	test("a device that comes and goes is told of once in ten minutes", async () => {
		const registered = await newDevice();
		const comeAndGo = async () => {
			await using device = await ScriptedDevice.connect(server, registered);
			await until(
				() => api.getDevice(device.deviceId),
				({ status }) => status === "ONLINE",
			);
		};
		const connections = () =>
			timeline(registered.device_id, { kind: "connected" });
		const offline = () =>
			until(
				() => api.getDevice(registered.device_id),
				({ status }) => status === "OFFLINE",
			);
		for (let time = 0; time < 4; time++) {
			await comeAndGo();
			await offline();
			clock.pass({ minutes: 2 });
		}
		assert.equal((await connections()).length, 1);
		clock.pass({ minutes: 2 });
		await comeAndGo();
		await offline();
		assert.equal((await connections()).length, 2);
		// Set back by an hour: not silent until that hour has passed again.
		clock.pass({ hours: -1 });
		await comeAndGo();
		await offline();
		assert.equal((await connections()).length, 3);
		clock.pass({ hours: 1 });
	});

	test("a device that reports new versions all the time does not fill the disk", async () => {
		const registered = await newDevice();
		await using device = await ScriptedDevice.connect(server, registered);
		for (let version = 0; version < 40; version++)
			await device.reportFirmware(`v${version}`);
		assert.equal((await timeline(device.deviceId)).length, 30);
		const shown = await api.getDevice(device.deviceId);
		assert.equal(shown.fw_version, "v39", "but the version is kept");
		clock.pass({ minutes: 11 });
		await device.reportFirmware("v40");
		const last = (await timeline(device.deviceId)).at(-1);
		assert.deepEqual(last?.detail, {
			changes: [{ part: "firmware", old: "v39", new: "v40" }],
		});
	});

	test("a download is told when its last byte is taken, and not twice in a row", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		await world.start();
		await device.next("version_query");
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		const fetched = () => timeline(device.deviceId, { kind: "downloaded" });
		await download(server, paras, { range: "bytes=0-1022" });
		await download(server, paras, { range: "bytes=2000-" });
		await new Promise((resolve) => setTimeout(resolve, 100));
		assert.equal((await fetched()).length, 0);
		for (const range of ["bytes=1023-1023", "bytes=1000-", "bytes=0-"])
			await download(server, paras, { range });
		await until(fetched, (events) => events.length === 1);
		await download(server, paras);
		await new Promise((resolve) => setTimeout(resolve, 100));
		assert.equal((await fetched()).length, 1);
		// After something else has happened it is another download.
		await device.reportFirmware("v1.5");
		await download(server, paras);
		await until(fetched, (events) => events.length === 2);
	});

	test("a timeline that cannot be written fails no download", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		await world.start();
		await device.next("version_query");
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		await sql`alter table history rename to history_away`.execute(db);
		try {
			const { status, bytes } = await download(server, paras);
			assert.deepEqual([status, bytes.length], [200, 1024]);
			await new Promise((resolve) => setTimeout(resolve, 100));
		} finally {
			await sql`alter table history_away rename to history`.execute(db);
		}
		await download(server, paras);
		await until(
			() => timeline(device.deviceId, { kind: "downloaded" }),
			(events) => events.length === 1,
		);
	});

	test("pages go from the newest to the oldest, each entry once", async () => {
		const device = await newDevice();
		await insertEntries(device, 24);
		const seen: string[] = [];
		let marker: string | undefined;
		do {
			const { events, page } = await api.listDeviceEvents(device.device_id, {
				limit: 7,
				...(marker === undefined ? {} : { marker }),
			});
			assert.equal(page.count, 25);
			seen.push(...events.map(({ event_id }) => event_id));
			marker = page.marker;
		} while (marker !== undefined);
		assert.equal(seen.length, 25);
		assert.deepEqual(seen, [...new Set(seen)].sort().reverse());
		const { events } = await api.listDeviceEvents(device.device_id, {
			limit: 3,
			offset: 2,
			marker: seen[4] ?? "",
		});
		assert.deepEqual(
			events.map(({ event_id }) => event_id),
			seen.slice(7, 10),
		);
	});

	test("entries are found by kind and by time", async () => {
		const device = await newDevice();
		const text = () =>
			`${clock.now().toISOString().slice(0, 19).replace(/[-:]/g, "")}Z`;
		clock.pass({ minutes: 10 });
		const start_time = text();
		await insertEntries(device, 2);
		clock.pass({ minutes: 10 });
		const end_time = text();
		await insertEntries(device, 3, "failed");
		const found = async (query: Parameters<Client["listDeviceEvents"]>[1]) => {
			const { events, page } = await api.listDeviceEvents(
				device.device_id,
				query,
			);
			assert.equal(page.count, events.length);
			return kindsOf(events).join();
		};
		assert.equal(await found({ kind: "failed" }), "failed,failed,failed");
		assert.equal(await found({ start_time, end_time }), "connected,connected");
		assert.equal(await found({ end_time: start_time }), "registered");
		assert.equal(await found({ kind: "offered" }), "");
		assert.equal(await found({ task_id: "abc" }), "");
	});

	test("on a device with thousands of entries a page looks through some, and says where to go on", async () => {
		const device = await newDevice();
		await insertEntries(device, 1, "failed");
		await insertEntries(device, 4_500);
		await insertEntries(device, 1, "failed");
		const all = await api.listDeviceEvents(device.device_id, { limit: 1 });
		assert.equal(all.page.count, 2_000);
		const found: DeviceEvent[] = [];
		const pages: number[] = [];
		let marker: string | undefined;
		do {
			const { events, page } = await api.listDeviceEvents(device.device_id, {
				kind: "failed",
				...(marker === undefined ? {} : { marker }),
			});
			assert.equal(page.count, 1, "of the newest 2,000");
			found.push(...events);
			pages.push(events.length);
			marker = page.marker;
			assert.ok(pages.length < 10);
		} while (marker !== undefined);
		assert.equal(found.length, 2);
		assert.ok(pages.length > 1);
	});

	test("what the id was in another project or another space stays there", async () => {
		const device = await newDevice();
		await insertEntries(device, 3, "failed", { project_id: "elsewhere" });
		await insertEntries(device, 3, "stopped", { app_id: "elsewhere" });
		const { events, page } = await api.listDeviceEvents(device.device_id);
		assert.deepEqual(kindsOf(events), ["registered"]);
		assert.equal(page.count, 1);
	});

	test("a misfit in the query is refused with its field and rule", async () => {
		const { device_id } = await newDevice();
		for (const [query, status, code, words] of [
			[{ kind: "exploded" }, 400, "IOTDA.000006", "kind must be one of"],
			[{ kind: "task_created" }, 400, "IOTDA.000006", "kind must be one of"],
			[{ task_id: "XYZ" }, 400, "IOTDA.000006", "task_id must be"],
			[{ task_id: "" }, 400, "IOTDA.000006", "task_id must be"],
			[{ start_time: "yesterday" }, 400, "IOTDA.000009", "start_time must be"],
			[{ end_time: "20230231T000000Z" }, 400, "IOTDA.000009", "end_time"],
			[
				{ start_time: "20230211T000000Z", end_time: "20230211T000000Z" },
				...[400, "IOTDA.000010", "start_time must be earlier"],
			],
			[{ limit: 0 }, 400, "IOTDA.000017", "limit must be"],
			[{ limit: 51 }, 400, "IOTDA.000017", "limit must be"],
			[{ marker: "zz" }, 400, "IOTDA.000018", "marker must be"],
			[{ offset: 501 }, 400, "IOTDA.000006", "offset must be"],
		] as [object, number, string, string][])
			await refused(
				api.listDeviceEvents(device_id, query as { limit: number }),
				status,
				code,
				words,
			);
		await refused(
			api.listDeviceEvents("a device!"),
			400,
			"IOTDA.000006",
			"device_id must be",
		);
		await refused(api.listDeviceEvents(unique("no")), 404, "IOTDA.014000");
		// Repeated: a list where a text belongs.
		const path = `/otaru/v1/projects/${api.projectId}/devices/${device_id}/events?kind=failed&kind=failed`;
		await refused(api.call("GET", path), 400, "IOTDA.000006", "kind must be");
		await refused(
			api.as(undefined).listDeviceEvents(device_id),
			401,
			"APIGW.0301",
		);
	});

	test("markers beyond every entry stand for the last, and small ones for none", async () => {
		const { device_id } = await newDevice();
		const at = (marker: string) => api.listDeviceEvents(device_id, { marker });
		assert.equal((await at("f".repeat(24))).events.length, 1);
		const none = await at("0".repeat(24));
		assert.deepEqual(none.events, []);
		assert.equal(none.page.count, 1);
		assert.equal(none.page.marker, undefined);
	});

	test("what is older than the setting says goes at the next start, and what is younger stays", async () => {
		await using own = await startServer(engine, { now: clock.now });
		const product = await makeProduct(own.api);
		const device = await makeDevice(own.api, product);
		const entries = (count: number) =>
			recordHistory(
				own.server.db,
				Array.from({ length: count }, () => ({
					projectId: own.api.projectId,
					spaceId: device.app_id ?? "",
					deviceId: device.device_id,
					kind: "connected" as const,
				})),
				clock.now(),
			);
		await entries(700);
		clock.pass({ hours: 24 * 60 });
		await entries(5);
		clock.pass({ hours: 24 * 31 + 1 });
		await own.restart();
		await until(
			() => own.api.listDeviceEvents(device.device_id, { limit: 1 }),
			({ page }) => page.count === 5,
		);
		assert.equal(await sweepHistory(own.server.db, clock.now(), 0), 0);
		assert.equal(await sweepHistory(own.server.db, clock.now(), 31), 5);
	});

	test("entries of a clock that was ahead stay, and those behind them go all the same", async () => {
		// Its own sweep would come between.
		await using own = await startServer(engine, {
			env: { OTARU_HISTORY_DAYS: "0" },
		});
		const at = (days: number) =>
			new Date(clock.now().getTime() + days * 24 * 60 * 60_000);
		const entries = (count: number, when: Date) =>
			recordHistory(
				own.server.db,
				Array.from({ length: count }, () => ({
					projectId: "p",
					spaceId: "s",
					deviceId: "d",
					kind: "connected" as const,
				})),
				when,
			);
		const left = async () => {
			const { rows } = await sql<{ count: number }>`
				select count(*) as count from history`.execute(own.server.db);
			return Number(rows[0]?.count);
		};
		await entries(600, at(4_000));
		await entries(600, at(-100));
		await entries(600, at(0));
		assert.equal(await sweepHistory(own.server.db, clock.now(), 90), 600);
		assert.equal(await left(), 1_200);
		assert.equal(await sweepHistory(own.server.db, clock.now(), 90), 0);
	});

	test("a registration that fails leaves nothing in a timeline", async () => {
		const device = await newDevice();
		await refused(
			api.createDevice({
				product_id: device.product_id ?? "",
				node_id: "other",
				device_id: device.device_id,
			}),
			400,
			"IOTDA.014031",
		);
		assert.equal(await rowsWhere(sql`device_id = ${device.device_id}`), 1);
	});

	test("a device that has the version already is told to have succeeded", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		const { task_id } = await world.start();
		await succeed(device);
		await taskWhen(api, task_id, "Success");
		const events = await timeline(device.deviceId, { task_id });
		assert.deepEqual(kindsOf(events), ["succeeded"]);
	});
});
