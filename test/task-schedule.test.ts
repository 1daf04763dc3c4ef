/** Tasks that begin later: what happens until their time, at it, and across a restart. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { wireTime } from "../wire/envelope.ts";
import type { CreateTask } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	allDone,
	counters,
	countersWhen,
	detailOf,
	detailWhen,
	makeBell,
	makeTaskWorld,
	notDone,
	succeed,
	taskWhen,
} from "./support/task-world.ts";

const DAY_MS = 24 * 60 * 60 * 1000;

forEachEngine((engine) => {
	let server: TestServer;
	let ring: () => Promise<void>;
	// On a whole second, since the wire knows no smaller part of a time.
	const clock = new HandClock(new Date(Math.floor(Date.now() / 1000) * 1000));
	before(async () => {
		server = await startServer(engine, { now: clock.now });
		ring = await makeBell(server);
	});
	after(() => server[Symbol.asyncDispose]());

	const inMs = (ms: number) => wireTime(new Date(clock.now().getTime() + ms));
	const inMinutes = (minutes: number): Partial<CreateTask> => ({
		task_policy: { schedule_time: inMs(minutes * 60_000) },
	});
	/** Time passes, and what is due by then is looked at. */
	const pass = async (time: Parameters<HandClock["pass"]>[0]) => {
		clock.pass(time);
		await ring();
	};
	/** Whatever is due has been looked at afterwards. */
	const aTick = async () => {
		await ring();
		await new Promise((resolve) => setTimeout(resolve, 400));
	};

	test("a scheduled task waits with all its subtasks, and begins at its time", async () => {
		const w = await makeTaskWorld(server, 2);
		await using device = await w.connect(0);
		const created = await w.start(inMinutes(60));
		assert.equal(created.status, "Initializing");
		const waiting = await taskWhen(w.api, created.task_id, "Waitting");
		assert.deepEqual(
			waiting.batchtask.task_progress,
			counters({ waitting: 2 }),
		);
		assert.deepEqual(
			waiting.task_details,
			w.deviceIds.map((target) => ({ target, status: "Waitting" })).reverse(),
		);
		await pass({ minutes: 59, seconds: 59 });
		await device.reportFirmware("v1");
		await aTick();
		await device.hearsNothing(0);
		assert.deepEqual(await w.api.getTask(created.task_id), waiting);
		await pass({ seconds: 1 });
		const running = await taskWhen(w.api, created.task_id, "Processing");
		assert.equal(running.batchtask.task_progress.total, 2);
		await succeed(device);
		await using late = await w.connect(1);
		await succeed(late);
		const done = await taskWhen(w.api, created.task_id, "Success");
		assert.deepEqual(done.batchtask.task_policy, created.task_policy);
	});

	test("seven days ahead is taken, a second more is not", async () => {
		const w = await makeTaskWorld(server, 1);
		const last = inMs(7 * DAY_MS);
		const task = await w.start({ task_policy: { schedule_time: last } });
		assert.deepEqual(task.task_policy, { schedule_time: last });
		for (const ms of [7 * DAY_MS + 1_000, 8 * DAY_MS, 4_000 * DAY_MS])
			await refused(
				w.start({ task_policy: { schedule_time: inMs(ms) } }),
				400,
				"IOTDA.000009",
				"task_policy.schedule_time must be within seven days",
			);
		await taskWhen(w.api, task.task_id, "Waitting");
		await w.api.stopTask(task.task_id);
	});

	test("a time that is over, or now, means at once", async () => {
		for (const ms of [0, -1_000, -400 * DAY_MS]) {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const policy = { schedule_time: inMs(ms) };
			const task = await w.start({ task_policy: policy });
			await succeed(device);
			const { batchtask } = await taskWhen(w.api, task.task_id, "Success");
			assert.deepEqual(batchtask.task_policy, policy, "shown as it was sent");
		}
	});

	test("a whole task stopped before its time never begins", async () => {
		const w = await makeTaskWorld(server, 2);
		await using device = await w.connect(0);
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		assert.deepEqual(
			(await w.api.stopTask(task_id)).targets,
			allDone(w.deviceIds),
		);
		const stopped = await taskWhen(w.api, task_id, "Stopped");
		assert.deepEqual(stopped.batchtask.task_progress, counters({ stopped: 2 }));
		await pass({ minutes: 11 });
		await aTick();
		await device.hearsNothing(0);
		assert.deepEqual(await w.api.getTask(task_id), stopped);
		await refused(w.api.retryTask(task_id), 403, "IOTDA.014971", "Stopped");
	});

	test("some targets stopped before the time stay behind; all of them end the task", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = "", third = ""] = w.deviceIds;
		await using device = await w.connect(2);
		await using behind = await w.connect(0);
		const some = await w.start(inMinutes(10));
		const all = await w.start({
			...inMinutes(10),
			targets: [first, second],
		});
		assert.deepEqual(
			(await w.api.stopTask(some.task_id, { targets: [first, second] }))
				.targets,
			allDone([first, second]),
		);
		assert.deepEqual(
			(await w.api.stopTask(all.task_id, { targets: [second, first] })).targets,
			allDone([second, first]),
		);
		assert.equal(
			(await taskWhen(w.api, all.task_id, "Stopped")).batchtask.task_progress
				.stopped,
			2,
		);
		assert.equal(
			(await w.api.getTask(some.task_id)).batchtask.status,
			"Waitting",
		);
		await pass({ minutes: 10 });
		await succeed(device);
		const { batchtask } = await taskWhen(w.api, some.task_id, "PartialSuccess");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ stopped: 2, success: 1 }),
		);
		assert.equal(
			(await detailOf(w.api, some.task_id, third)).status,
			"Success",
		);
		await behind.hearsNothing(0);
	});

	test("a waiting task can be neither deleted nor retried; stopped, it can be deleted", async () => {
		const w = await makeTaskWorld(server, 1);
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		await refused(w.api.deleteTask(task_id), 403, "IOTDA.014971", "Waitting");
		await refused(w.api.retryTask(task_id), 403, "IOTDA.014971", "Waitting");
		await refused(
			w.api.retryTask(task_id, { targets: w.deviceIds }),
			403,
			"IOTDA.014971",
		);
		assert.equal((await w.api.getTask(task_id)).batchtask.status, "Waitting");
		await w.api.stopTask(task_id);
		await taskWhen(w.api, task_id, "Stopped");
		await w.api.deleteTask(task_id);
		await refused(w.api.getTask(task_id), 404, "IOTDA.014970");
		await pass({ minutes: 11 });
		await aTick();
		await refused(w.api.getTask(task_id), 404, "IOTDA.014970");
	});

	test("confirming a scheduled task that needs no confirmation does not begin it", async () => {
		const w = await makeTaskWorld(server, 1);
		await using device = await w.connect(0);
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		assert.deepEqual((await w.api.confirmTask(task_id)).targets, []);
		assert.deepEqual(
			(await w.api.confirmTask(task_id, { targets: w.deviceIds })).targets,
			w.deviceIds.map(notDone),
		);
		await aTick();
		await device.hearsNothing(0);
		assert.equal((await w.api.getTask(task_id)).batchtask.status, "Waitting");
		await pass({ minutes: 10 });
		await succeed(device);
		await taskWhen(w.api, task_id, "Success");
	});

	test("confirmed before its time it begins at its time", async () => {
		const w = await makeTaskWorld(server, 2);
		const [, second = ""] = w.deviceIds;
		await using device = await w.connect(0);
		await using other = await w.connect(1);
		const whole = await w.start({
			...inMinutes(30),
			need_confirm: true,
			targets: w.deviceIds.slice(0, 1),
		});
		const part = await w.start({
			...inMinutes(30),
			need_confirm: true,
			targets: [second, "nobody"],
		});
		await taskWhen(w.api, whole.task_id, "Waitting");
		assert.deepEqual(
			(await w.api.confirmTask(whole.task_id)).targets,
			allDone(w.deviceIds.slice(0, 1)),
		);
		assert.deepEqual(
			(await w.api.confirmTask(part.task_id, { targets: [second] })).targets,
			allDone([second]),
		);
		await aTick();
		await device.hearsNothing(0);
		await other.hearsNothing(0);
		for (const { task_id } of [whole, part])
			assert.equal((await w.api.getTask(task_id)).batchtask.status, "Waitting");
		await pass({ minutes: 30 });
		await Promise.all([succeed(device), succeed(other)]);
		await taskWhen(w.api, whole.task_id, "Success");
		await taskWhen(w.api, part.task_id, "PartialSuccess");
	});

	test("confirmed after its time it begins at once", async () => {
		const w = await makeTaskWorld(server, 1);
		await using device = await w.connect(0);
		const { task_id } = await w.start({ ...inMinutes(5), need_confirm: true });
		await taskWhen(w.api, task_id, "Waitting");
		await pass({ minutes: 6 });
		await aTick();
		await device.hearsNothing(0);
		assert.equal((await w.api.getTask(task_id)).batchtask.status, "Waitting");
		await w.api.confirmTask(task_id);
		assert.equal((await w.api.getTask(task_id)).batchtask.status, "Processing");
		await succeed(device);
		await taskWhen(w.api, task_id, "Success");
	});

	test("a restart changes nothing about the time, also one that lasts beyond it", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", second = ""] = w.deviceIds;
		const soon = await w.start({ ...inMinutes(20), targets: [first] });
		const later = await w.start({ ...inMinutes(90), targets: [second] });
		for (const { task_id } of [soon, later])
			await taskWhen(w.api, task_id, "Waitting");
		await server.restart();
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		await aTick();
		await one.hearsNothing(0);
		await pass({ minutes: 20 });
		await succeed(one);
		await taskWhen(w.api, soon.task_id, "Success");
		await two.hearsNothing(0);
		await server.restart(() => clock.pass({ minutes: 80 }));
		await taskWhen(w.api, later.task_id, "Processing");
		await using again = await w.connect(1);
		await succeed(again);
		await taskWhen(w.api, later.task_id, "Success");
	});

	test("a clock that jumps back an hour makes a task wait until its time has really come", async () => {
		const w = await makeTaskWorld(server, 1);
		await using device = await w.connect(0);
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		await pass({ hours: -1 });
		await pass({ minutes: 69 });
		await aTick();
		await device.hearsNothing(0);
		await pass({ minutes: 1 });
		await succeed(device);
		await taskWhen(w.api, task_id, "Success");
	});

	test("who cannot take part fails at once, whatever the time; with nobody left the task is over", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", frozen = ""] = w.deviceIds;
		await w.api.freezeDevice(frozen);
		const some = await w.start({
			...inMinutes(10),
			targets: [first, frozen, "nobody"],
		});
		const none = await w.start({ ...inMinutes(10), targets: ["nobody"] });
		const { batchtask } = await taskWhen(w.api, some.task_id, "Waitting");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ waitting: 1, fail: 2 }),
		);
		assert.deepEqual(
			(await taskWhen(w.api, none.task_id, "Fail")).batchtask.task_progress,
			counters({ fail: 1 }),
		);
		await w.api.stopTask(some.task_id);
	});

	test("a device frozen before the time fails at it, one that is free again takes part", async () => {
		const w = await makeTaskWorld(server, 2);
		const [frozen = "", freed = ""] = w.deviceIds;
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		await w.api.freezeDevice(frozen);
		await w.api.freezeDevice(freed);
		await w.api.unfreezeDevice(freed);
		await pass({ minutes: 10 });
		const failed = await detailWhen(w.api, task_id, frozen, "Fail");
		assert.deepEqual(failed.error, {
			error_code: "IOTDA.014979",
			error_msg: "The device is frozen.",
		});
		await using device = await w.connect(1);
		await succeed(device);
		await taskWhen(w.api, task_id, "PartialSuccess");
	});

	test("a device deleted before the time is removed; when all are, the task has failed", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", second = ""] = w.deviceIds;
		const { task_id } = await w.start(inMinutes(10));
		await taskWhen(w.api, task_id, "Waitting");
		await w.api.deleteDevice(first);
		const part = await w.api.getTask(task_id);
		assert.equal(part.batchtask.status, "Waitting");
		assert.deepEqual(
			part.batchtask.task_progress,
			counters({ waitting: 1, removed: 1 }),
		);
		await w.api.deleteDevice(second);
		const over = await taskWhen(w.api, task_id, "Fail");
		assert.deepEqual(over.batchtask.task_progress, counters({ removed: 2 }));
		assert.deepEqual(
			over.task_details.map(({ status }) => status),
			["Removed", "Removed"],
		);
		await refused(w.api.confirmTask(task_id), 403, "IOTDA.014971");
		await w.api.deleteTask(task_id);
	});

	test("a device that is busy at the time is a conflict, one that was busy before is not", async () => {
		const w = await makeTaskWorld(server, 1);
		await using device = await w.connect(0);
		const now = await w.start();
		await device.next("version_query");
		const soon = await w.start(inMinutes(1));
		const later = await w.start(inMinutes(2));
		for (const { task_id } of [soon, later])
			await taskWhen(w.api, task_id, "Waitting");
		await pass({ minutes: 1 });
		const { task_details } = await taskWhen(w.api, soon.task_id, "Fail");
		assert.equal(task_details[0]?.error?.error_msg, "Task Conflict");
		await device.reportFirmware("v2");
		await taskWhen(w.api, now.task_id, "Success");
		await pass({ minutes: 1 });
		await succeed(device);
		await taskWhen(w.api, later.task_id, "Success");
	});

	test("an offline device is waited for 25 hours from the time on, not from the creation", async () => {
		const w = await makeTaskWorld(server, 1);
		const { task_id } = await w.start(inMinutes(6 * 24 * 60));
		await taskWhen(w.api, task_id, "Waitting");
		await pass({ hours: 6 * 24 });
		await countersWhen(w.api, task_id, { processing: 1 });
		await pass({ hours: 24, minutes: 59 });
		await aTick();
		await countersWhen(w.api, task_id, { processing: 1 });
		await pass({ minutes: 1 });
		const shown = await until(
			() => w.api.getTask(task_id),
			({ batchtask }) => batchtask.status === "Fail",
		);
		assert.equal(
			shown.task_details[0]?.error?.error_msg,
			"Waiting for the device online timeout",
		);
	});
});
