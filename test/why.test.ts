import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Why } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { makeDevice, makePackage, refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	detailWhen,
	failInstalling,
	makeTaskWorld,
	succeed,
	type TaskWorld,
	taskWhen,
} from "./support/task-world.ts";

forEachEngine((engine) => {
	const clock = new HandClock();
	let server: TestServer;
	before(async () => {
		server = await startServer(engine, { now: clock.now });
	});
	after(async () => {
		await server[Symbol.asyncDispose]();
	});

	const world = (devices = 1) => makeTaskWorld(server, devices);
	const idOf = (w: TaskWorld, index = 0) => w.deviceIds[index] ?? "";
	const codes = ({ reasons }: Why) => reasons.map(({ code }) => code);

	test("a device that never connected is said to be waited for, since when and until when", async () => {
		const w = await world();
		const { task_id } = await w.start();
		await detailWhen(w.api, task_id, idOf(w), "Processing");
		const why = await w.api.explainTarget(task_id, idOf(w));
		assert.equal(why.status, "Processing");
		assert.equal(why.task_status, "Processing");
		assert.deepEqual(codes(why), ["WAITS_FOR_CONNECTION"]);
		const [reason] = why.reasons;
		assert.match(reason?.message ?? "", /it has never connected/);
		const since = Date.parse(reason?.since ?? "");
		assert.equal(since, clock.now().getTime());
		assert.equal(Date.parse(reason?.until ?? "") - since, 25 * 3_600_000);
	});

	test("a device that went away is said to be last connected then; a frozen one says so first", async () => {
		const w = await world();
		const device = await w.connect(0);
		await device[Symbol.asyncDispose]();
		await until(
			() => w.api.getDevice(idOf(w)),
			({ status }) => status === "OFFLINE",
		);
		const { task_id } = await w.start();
		await detailWhen(w.api, task_id, idOf(w), "Processing");
		const away = await w.api.explainTarget(task_id, idOf(w));
		assert.match(
			away.reasons[0]?.message ?? "",
			/^The device is not connected; last connected until \d{4}-/,
		);
		await w.api.freezeDevice(idOf(w));
		assert.deepEqual(codes(await w.api.explainTarget(task_id, idOf(w))), [
			"DEVICE_FROZEN",
			"WAITS_FOR_CONNECTION",
		]);
	});

	test("a child's gateway is named when it is not connected", async () => {
		const w = await world();
		const child = await makeDevice(w.api, w.product, { gateway_id: idOf(w) });
		const { task_id } = await w.start({ targets: [child.device_id] });
		await detailWhen(w.api, task_id, child.device_id, "Processing");
		const why = await w.api.explainTarget(task_id, child.device_id);
		assert.deepEqual(codes(why), ["GATEWAY_OFFLINE"]);
		assert.ok(why.reasons[0]?.message.includes(idOf(w)));
	});

	test("each step of an upgrade is explained, and its success", async () => {
		const w = await world();
		await using device = await w.connect(0);
		const { task_id } = await w.start();
		const explained = async (code: string) => {
			const why = await until(
				() => w.api.explainTarget(task_id, idOf(w)),
				({ reasons }) => reasons[0]?.code === code,
			);
			return why.reasons[0];
		};
		await device.next("version_query");
		const asked = await explained("WAITS_FOR_VERSION");
		assert.equal(
			Date.parse(asked?.until ?? "") - Date.parse(asked?.since ?? ""),
			180_000,
		);
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		await explained("OFFERED");
		await device.report(0, "v1", 40);
		assert.match((await explained("IN_PROGRESS"))?.message ?? "", /40%/);
		await device[Symbol.asyncDispose]();
		await until(
			() => w.api.explainTarget(task_id, idOf(w)),
			(why) => codes(why).join() === "IN_PROGRESS,DEVICE_OFFLINE",
		);
		await using again = await w.connect(0);
		await succeed(again);
		assert.equal(
			(await explained("SUCCEEDED"))?.message,
			"The device reported the target version: v2.",
		);
	});

	test("a schedule and a missing confirmation are both named", async () => {
		const w = await world();
		const time = new Date(clock.now().getTime() + 3_600_000);
		const { task_id } = await w.start({
			need_confirm: true,
			task_policy: {
				schedule_time: `${time.toISOString().slice(0, 19).replace(/[-:]/g, "")}Z`,
			},
		});
		await taskWhen(w.api, task_id, "Waitting");
		const why = await w.api.explainTarget(task_id, idOf(w));
		assert.deepEqual(codes(why), ["NOT_CONFIRMED", "TASK_SCHEDULED"]);
		assert.equal(
			Date.parse(why.reasons[1]?.until ?? ""),
			Math.floor(time.getTime() / 1_000) * 1_000,
		);
		await w.api.confirmTask(task_id);
		assert.deepEqual(codes(await w.api.explainTarget(task_id, idOf(w))), [
			"TASK_SCHEDULED",
		]);
	});

	test("a retry says which of how many is due when, and why it is needed", async () => {
		const w = await world();
		await using device = await w.connect(0);
		const { task_id } = await w.start({
			task_policy: { retry_count: 2, retry_interval: 5 },
		});
		await failInstalling(device);
		await detailWhen(w.api, task_id, idOf(w), "FailWaitRetry");
		const why = await w.api.explainTarget(task_id, idOf(w));
		assert.deepEqual(codes(why), ["RETRY_SCHEDULED", "FAILED"]);
		assert.equal(why.reasons[0]?.message, "Retry 1 of 2 is due.");
		assert.equal(
			Date.parse(why.reasons[0]?.until ?? ""),
			clock.now().getTime() + 5 * 60_000,
		);
		assert.equal(
			why.reasons[1]?.message,
			"IOTDA.005011: Firmware update failed",
		);
		assert.deepEqual([why.retries, why.retry_count], [0, 2]);
		assert.equal(why.error?.error_code, "IOTDA.005011");
	});

	test("a conflict names the other task, before and after", async () => {
		const w = await world();
		const first = await w.start();
		await detailWhen(w.api, first.task_id, idOf(w), "Processing");
		const second = await w.start();
		await detailWhen(w.api, second.task_id, idOf(w), "Fail");
		const lost = await w.api.explainTarget(second.task_id, idOf(w));
		assert.deepEqual(codes(lost), ["TASK_CONFLICT", "TASK_CONFLICT"]);
		assert.ok(lost.reasons[1]?.message.includes(first.task_id));
		const third = await w.start({ need_confirm: true });
		await taskWhen(w.api, third.task_id, "Waitting");
		const held = await w.api.explainTarget(third.task_id, idOf(w));
		assert.deepEqual(codes(held), ["NOT_CONFIRMED", "TASK_CONFLICT"]);
		assert.ok(held.reasons[1]?.message.includes(first.task_id));
	});

	test("a version that no package upgrades from is named with those that can be", async () => {
		const w = await world();
		const { package_id } = await makePackage(w.api, w.product, {
			version: "v3",
			support_source_versions: ["v1.8", "v1.9"],
		});
		await using device = await w.connect(0);
		const { task_id } = await w.start({
			document: { package_ids: [package_id] },
		});
		await device.next("version_query");
		await device.reportFirmware("v1.0");
		await detailWhen(w.api, task_id, idOf(w), "Fail");
		const why = await w.api.explainTarget(task_id, idOf(w));
		assert.deepEqual(codes(why), ["VERSION_NOT_SUPPORTED"]);
		assert.equal(
			why.reasons[0]?.message,
			"The packages of the task upgrade from v1.8, v1.9; the device reports v1.0.",
		);
	});

	test("what was stopped, removed or never meant is said to be", async () => {
		const w = await world(3);
		await using offered = await w.connect(0);
		const task = await w.start();
		await offered.next("version_query");
		await offered.reportFirmware("v1");
		await offered.next("firmware_upgrade_v2");
		await w.api.deleteDevice(idOf(w, 2));
		await w.api.stopTask(task.task_id);
		await taskWhen(w.api, task.task_id, "Stopped");
		const [told, untold, gone] = await Promise.all(
			w.deviceIds.map((id) => w.api.explainTarget(task.task_id, id)),
		);
		assert.deepEqual(
			[told, untold, gone].map((why) => why?.reasons[0]?.code),
			["STOPPED", "STOPPED", "REMOVED"],
		);
		assert.match(told?.reasons[0]?.message ?? "", /after the package had been/);
		assert.match(untold?.reasons[0]?.message ?? "", /before the package was/);
		const stranger = await w.api.explainTarget(task.task_id, "nobody");
		assert.deepEqual(codes(stranger), ["NOT_A_TARGET"]);
		assert.equal(stranger.status, undefined);
		assert.equal(stranger.target, "nobody");
	});

	test("a task that failed as a whole says so of every device", async () => {
		const w = await world();
		const { task_id } = await w.start({
			targets_filter: { group_ids: ["00000000-0000-4000-8000-000000000000"] },
		});
		const why = await w.api.explainTarget(task_id, idOf(w));
		assert.deepEqual(codes(why), ["TASK_FAILED", "NOT_A_TARGET"]);
		assert.match(why.reasons[0]?.message ?? "", /does not exist/);
	});

	test("an unknown task is 404, a bad id 400", async () => {
		const { api } = server;
		await refused(
			api.explainTarget("0".repeat(24), "nobody"),
			404,
			"IOTDA.014970",
		);
		await refused(
			api.explainTarget("nonsense!", "nobody"),
			400,
			"IOTDA.000006",
		);
		await refused(
			api.explainTarget("0".repeat(24), "no body"),
			400,
			"IOTDA.000006",
		);
	});

	test("a device that had the version already is said to have it", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(
			server,
			w.devices[0] ?? assert.fail(),
		);
		const { task_id } = await w.start();
		await succeed(device);
		const why = await until(
			() => w.api.explainTarget(task_id, idOf(w)),
			({ status }) => status === "Success",
		);
		assert.equal(
			why.reasons[0]?.message,
			"The current version is the same as the target version: v2.",
		);
	});
});
