/** Tasks whose subtasks begin only once somebody confirms them. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { HandClock } from "./support/clock.ts";
import { ScriptedDevice } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	allDone,
	counters,
	countersWhen,
	detailOf,
	detailWhen,
	failInstalling,
	importDevices,
	makeBell,
	makeTaskWorld,
	notDone,
	succeed,
	type TaskWorld,
	taskWhen,
} from "./support/task-world.ts";

forEachEngine((engine) => {
	let server: TestServer;
	let ring: () => Promise<void>;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
		ring = await makeBell(server);
	});
	after(() => server[Symbol.asyncDispose]());

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
	const startHeld = async (
		w: TaskWorld,
		fields: Parameters<TaskWorld["start"]>[0] = {},
	) => {
		const { task_id } = await w.start({ need_confirm: true, ...fields });
		await taskWhen(w.api, task_id, "Waitting");
		return task_id;
	};

	test("until it is confirmed everything waits, for days, and devices hear nothing", async () => {
		const w = await makeTaskWorld(server, 2);
		await using device = await w.connect(0);
		const taskId = await startHeld(w);
		const waiting = await w.api.getTask(taskId);
		assert.equal(waiting.batchtask.need_confirm, true);
		assert.deepEqual(
			waiting.batchtask.task_progress,
			counters({ waitting: 2 }),
		);
		assert.deepEqual(
			waiting.task_details,
			w.deviceIds.map((target) => ({ target, status: "Waitting" })).reverse(),
		);
		await pass({ hours: 24 * 30 });
		await device.reportFirmware("v2");
		await device.report(0, "v2", 100);
		await using again = await w.connect(0);
		await aTick();
		await device.hearsNothing(0);
		await again.hearsNothing(0);
		assert.deepEqual(await w.api.getTask(taskId), waiting);
		await refused(w.api.deleteTask(taskId), 403, "IOTDA.014971", "Waitting");
		await w.api.stopTask(taskId);
	});

	test("confirmed as a whole it begins with everything", async () => {
		const w = await makeTaskWorld(server, 2);
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		const taskId = await startHeld(w);
		assert.deepEqual(
			(await w.api.confirmTask(taskId)).targets,
			allDone(w.deviceIds),
		);
		assert.equal((await w.api.getTask(taskId)).batchtask.status, "Processing");
		await Promise.all([succeed(one), succeed(two)]);
		const { batchtask } = await taskWhen(w.api, taskId, "Success");
		assert.deepEqual(batchtask.task_progress, counters({ success: 2 }));
	});

	test("right after its creation it can be confirmed", async () => {
		const w = await makeTaskWorld(server, 2);
		const whole = await w.start({ need_confirm: true });
		assert.deepEqual(
			(await w.api.confirmTask(whole.task_id)).targets,
			allDone(w.deviceIds),
		);
		await countersWhen(w.api, whole.task_id, { processing: 2 });
		await w.api.stopTask(whole.task_id);
		const part = await w.start({ need_confirm: true });
		assert.deepEqual(
			(await w.api.confirmTask(part.task_id, { targets: w.deviceIds })).targets,
			allDone(w.deviceIds),
		);
		await countersWhen(w.api, part.task_id, { processing: 2 });
		await w.api.stopTask(part.task_id);
	});

	test("confirmed target by target, those begin and the others wait on", async () => {
		const w = await makeTaskWorld(server, 4);
		const [first = "", second = "", third = "", fourth = ""] = w.deviceIds;
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		await using three = await w.connect(2);
		const taskId = await startHeld(w, {
			targets: [...w.deviceIds, "nobody"],
		});
		assert.deepEqual(
			(
				await w.api.confirmTask(taskId, {
					targets: [second, "nobody", "stranger", second],
				})
			).targets,
			[...allDone([second]), notDone("nobody"), notDone("stranger")],
		);
		await two.next("version_query");
		await one.hearsNothing();
		await three.hearsNothing(0);
		await countersWhen(w.api, taskId, { processing: 1, waitting: 3, fail: 1 });
		assert.deepEqual(
			(await w.api.confirmTask(taskId, { targets: [first, second] })).targets,
			[...allDone([first]), notDone(second)],
			"what runs already needs no confirmation",
		);
		await succeed(one);
		await two.reportFirmware("v2");
		const half = await countersWhen(w.api, taskId, {
			success: 2,
			waitting: 2,
			fail: 1,
		});
		assert.equal(half.batchtask.status, "Processing");
		assert.deepEqual(
			(await w.api.confirmTask(taskId)).targets,
			allDone([third, fourth]),
			"only what still waited",
		);
		await succeed(three);
		await using four = await w.connect(3);
		await succeed(four);
		const { batchtask } = await taskWhen(w.api, taskId, "PartialSuccess");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ success: 4, fail: 1 }),
		);
	});

	test("confirming nothing new changes nothing", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = ""] = w.deviceIds;
		await using one = await w.connect(0);
		const taskId = await startHeld(w);
		assert.deepEqual(
			(await w.api.confirmTask(taskId, { targets: ["stranger"] })).targets,
			[notDone("stranger")],
		);
		await aTick();
		await one.hearsNothing(0);
		assert.equal((await w.api.getTask(taskId)).batchtask.status, "Waitting");
		await w.api.confirmTask(taskId);
		await one.next("version_query");
		assert.deepEqual((await w.api.confirmTask(taskId)).targets, []);
		assert.deepEqual(
			(await w.api.confirmTask(taskId, { targets: [first] })).targets,
			[notDone(first)],
		);
		await one.hearsNothing();
		await countersWhen(w.api, taskId, { processing: 2 });
		await w.api.stopTask(taskId);
	});

	test("a task that needs no confirmation has nothing to confirm", async () => {
		const w = await makeTaskWorld(server, 1);
		for (const fields of [{}, { need_confirm: false }]) {
			const { task_id } = await w.start(fields);
			assert.deepEqual((await w.api.confirmTask(task_id)).targets, []);
			assert.deepEqual(
				(await w.api.confirmTask(task_id, { targets: w.deviceIds })).targets,
				w.deviceIds.map(notDone),
			);
			await countersWhen(w.api, task_id, { processing: 1 });
			await w.api.stopTask(task_id);
		}
	});

	test("what is over cannot be confirmed", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", second = ""] = w.deviceIds;
		await using one = await w.connect(0);
		const success = await startHeld(w, { targets: [first] });
		await w.api.confirmTask(success);
		await succeed(one);
		const partial = await startHeld(w, { targets: [first, "nobody"] });
		await w.api.confirmTask(partial);
		await succeed(one);
		const fail = (await w.start({ need_confirm: true, targets: ["nobody"] }))
			.task_id;
		const stopped = await startHeld(w, { targets: [second] });
		await w.api.stopTask(stopped);
		for (const [taskId, status] of [
			[success, "Success"],
			[partial, "PartialSuccess"],
			[fail, "Fail"],
			[stopped, "Stopped"],
		] as const) {
			await taskWhen(w.api, taskId, status);
			for (const body of [{}, { targets: w.deviceIds }])
				await refused(
					w.api.confirmTask(taskId, body),
					403,
					"IOTDA.014971",
					`A task in ${status} cannot be confirmed.`,
				);
			assert.equal((await w.api.getTask(taskId)).batchtask.status, status);
		}
	});

	test("with nobody left who could take part there is nothing to wait for", async () => {
		const w = await makeTaskWorld(server, 1);
		const { task_id } = await w.start({
			need_confirm: true,
			targets: ["nobody"],
		});
		await taskWhen(w.api, task_id, "Fail");
		const some = await startHeld(w, { targets: [...w.deviceIds, "nobody"] });
		assert.deepEqual(
			(await w.api.getTask(some)).batchtask.task_progress,
			counters({ waitting: 1, fail: 1 }),
		);
		await w.api.deleteDevice(w.deviceIds[0] ?? "");
		const { batchtask } = await taskWhen(w.api, some, "Fail");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ removed: 1, fail: 1 }),
		);
	});

	test("what is not confirmed can be stopped, some or all of it", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = "", third = ""] = w.deviceIds;
		await using one = await w.connect(0);
		const taskId = await startHeld(w);
		assert.deepEqual(
			(await w.api.stopTask(taskId, { targets: [second] })).targets,
			allDone([second]),
		);
		assert.equal((await w.api.getTask(taskId)).batchtask.status, "Waitting");
		assert.deepEqual(
			(await w.api.confirmTask(taskId, { targets: [first, second] })).targets,
			[...allDone([first]), notDone(second)],
		);
		await succeed(one);
		await countersWhen(w.api, taskId, { success: 1, stopped: 1, waitting: 1 });
		assert.deepEqual((await w.api.stopTask(taskId)).targets, allDone([third]));
		const { batchtask } = await taskWhen(w.api, taskId, "Stopped");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ success: 1, stopped: 2 }),
		);
		const none = await startHeld(w);
		await w.api.stopTask(none, { targets: w.deviceIds });
		assert.deepEqual(
			(await taskWhen(w.api, none, "Stopped")).batchtask.task_progress,
			counters({ stopped: 3 }),
		);
	});

	test("stopped before it was confirmed and retried, it waits to be confirmed again", async () => {
		for (const whole of [true, false]) {
			const w = await makeTaskWorld(server, 3);
			const [runs = "", held = "", confirmed = ""] = w.deviceIds;
			await using two = await w.connect(1);
			await using three = await w.connect(2);
			const taskId = await startHeld(w);
			await w.api.confirmTask(taskId, { targets: [runs, confirmed] });
			await three.next("version_query");
			await w.api.stopTask(taskId, { targets: [held, confirmed] });
			await countersWhen(w.api, taskId, { processing: 1, stopped: 2 });
			assert.deepEqual(
				(
					await w.api.retryTask(
						taskId,
						whole ? {} : { targets: [held, confirmed] },
					)
				).targets,
				allDone([held, confirmed]),
			);
			await succeed(three);
			await two.hearsNothing();
			await countersWhen(w.api, taskId, {
				processing: 1,
				waitting: 1,
				success: 1,
			});
			assert.deepEqual(
				(await w.api.confirmTask(taskId, whole ? {} : { targets: [held] }))
					.targets,
				allDone([held]),
			);
			await succeed(two);
			await countersWhen(w.api, taskId, { processing: 1, success: 2 });
			await w.api.stopTask(taskId);
		}
	});

	test("in a task that had failed, too, what was never confirmed waits after a retry", async () => {
		const w = await makeTaskWorld(server, 2);
		const [failing = "", held = ""] = w.deviceIds;
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		const taskId = await startHeld(w);
		await w.api.confirmTask(taskId, { targets: [failing] });
		await w.api.stopTask(taskId, { targets: [held] });
		await failInstalling(one);
		await taskWhen(w.api, taskId, "Fail");
		assert.deepEqual(
			(await w.api.retryTask(taskId, { targets: [held] })).targets,
			allDone([held]),
		);
		await two.hearsNothing();
		const { batchtask } = await countersWhen(w.api, taskId, {
			fail: 1,
			waitting: 1,
		});
		assert.equal(batchtask.status, "Processing");
		assert.deepEqual(
			(await w.api.confirmTask(taskId)).targets,
			allDone([held]),
		);
		await succeed(two);
		await taskWhen(w.api, taskId, "PartialSuccess");
	});

	test("confirmed once, another attempt needs no confirmation", async () => {
		for (const body of [undefined, "targets"]) {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const taskId = await startHeld(w, {
				task_policy: { retry_count: 1, retry_interval: 5 },
			});
			await w.api.confirmTask(
				taskId,
				body === undefined ? {} : { targets: w.deviceIds },
			);
			await failInstalling(device);
			await pass({ minutes: 5 });
			await failInstalling(device);
			await taskWhen(w.api, taskId, "Fail");
			await w.api.retryTask(
				taskId,
				body === undefined ? {} : { targets: w.deviceIds },
			);
			await succeed(device);
			await taskWhen(w.api, taskId, "Success");
		}
	});

	test("a device that is frozen or busy when it is confirmed fails then", async () => {
		for (const whole of [true, false]) {
			const w = await makeTaskWorld(server, 2);
			const [frozen = "", busy = ""] = w.deviceIds;
			await using device = await w.connect(1);
			const taskId = await startHeld(w);
			await w.api.freezeDevice(frozen);
			const other = await w.start({ targets: [busy] });
			await device.next("version_query");
			assert.deepEqual(
				(await w.api.confirmTask(taskId, whole ? {} : { targets: w.deviceIds }))
					.targets,
				allDone(w.deviceIds),
			);
			assert.equal(
				(await detailWhen(w.api, taskId, frozen, "Fail")).error?.error_msg,
				"The device is frozen.",
			);
			assert.equal(
				(await detailWhen(w.api, taskId, busy, "Fail")).error?.error_msg,
				"Task Conflict",
			);
			await taskWhen(w.api, taskId, "Fail");
			await device.reportFirmware("v2");
			await taskWhen(w.api, other.task_id, "Success");
		}
	});

	test("a restart forgets neither what is confirmed nor what is not", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = ""] = w.deviceIds;
		const part = await startHeld(w, { targets: [first, second] });
		const none = await startHeld(w, { targets: w.deviceIds.slice(2) });
		await w.api.confirmTask(part, { targets: [first] });
		await server.restart();
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		await using three = await w.connect(2);
		await succeed(one);
		await aTick();
		await two.hearsNothing(0);
		await three.hearsNothing(0);
		assert.equal((await w.api.getTask(none)).batchtask.status, "Waitting");
		await w.api.confirmTask(none);
		await succeed(three);
		await w.api.confirmTask(part);
		await succeed(two);
		for (const taskId of [part, none]) await taskWhen(w.api, taskId, "Success");
	});

	test("software and modules are confirmed alike", async () => {
		const { api } = server;
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		const device = await makeDevice(api, product);
		await using scripted = await ScriptedDevice.connect(server, device);
		await scripted.reportModules({ MCU: "v1" });
		for (const [package_type, task_type, report] of [
			["softwarePackage", "softwareUpgrade", { sw_version: "v2" }],
			[
				"modulePackage",
				"moduleUpgrade",
				{ modules: [{ module_name: "MCU", module_version: "v2" }] },
			],
		] as const) {
			const made = await makePackage(api, product, {
				package_type,
				version: "v2",
				...(package_type === "modulePackage" ? { module_name: "MCU" } : {}),
			});
			const { task_id } = await api.createTask({
				task_name: "held",
				task_type,
				need_confirm: true,
				targets: [device.device_id],
				document: { package_ids: [made.package_id] },
			});
			await taskWhen(api, task_id, "Waitting");
			await scripted.hearsNothing();
			await api.confirmTask(task_id);
			await scripted.next("version_query");
			await scripted.say("version_report", report);
			await taskWhen(api, task_id, "Success");
		}
	});

	test("of many targets the first hundred are reported, and all begin", async () => {
		const w = await makeTaskWorld(server, 0);
		const targets = await importDevices(w.api, w.product, 1_234);
		const taskId = await startHeld(w, { targets });
		const some = targets.slice(1_100, 1_200);
		assert.deepEqual(
			(await w.api.confirmTask(taskId, { targets: some })).targets,
			allDone(some),
		);
		await countersWhen(w.api, taskId, { processing: 100, waitting: 1_134 });
		assert.equal(
			(await detailOf(w.api, taskId, some[0] ?? "")).status,
			"Processing",
		);
		assert.deepEqual(
			(await w.api.confirmTask(taskId)).targets,
			allDone(targets.slice(0, 100)),
		);
		await countersWhen(w.api, taskId, { processing: 1_234 });
		await w.api.stopTask(taskId);
		await taskWhen(w.api, taskId, "Stopped");
	});
});
