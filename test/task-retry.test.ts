/** Failures that are tried again: by the task's own policy, and when an operator asks. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import type { CreateTask } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { download, ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
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
	taskWhen,
} from "./support/task-world.ts";

const INSTALL_FAILED = {
	error_code: "IOTDA.005011",
	error_msg: "Firmware update failed",
};
const CONFLICT = { error_code: "IOTDA.014979", error_msg: "Task Conflict" };

const retries = (
	retry_count: number,
	retry_interval = 5,
): Partial<CreateTask> => ({ task_policy: { retry_count, retry_interval } });

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

	describe("retries by policy", () => {
		test("a failure waits for the interval and is tried again, as often as the policy says, and then is one", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(2));
			for (const _attempt of [1, 2]) {
				const paras = await failInstalling(device);
				const waiting = await w.api.getTask(task_id);
				assert.equal(waiting.batchtask.status, "Processing");
				assert.deepEqual(
					waiting.batchtask.task_progress,
					counters({ fail_wait_retry: 1 }),
				);
				assert.deepEqual(waiting.task_details, [
					{ target: deviceId, status: "FailWaitRetry", error: INSTALL_FAILED },
				]);
				assert.equal(
					(await download(server, paras)).status,
					401,
					"nothing can be fetched between two attempts",
				);
				await pass({ minutes: 4, seconds: 59 });
				await aTick();
				await device.hearsNothing(0);
				await pass({ seconds: 1 });
				const running = await detailWhen(
					w.api,
					task_id,
					deviceId,
					"Processing",
				);
				assert.deepEqual(
					running,
					{ target: deviceId, status: "Processing" },
					"the error of the attempt before is gone",
				);
			}
			await failInstalling(device);
			const failed = await taskWhen(w.api, task_id, "Fail");
			assert.deepEqual(failed.batchtask.task_progress, counters({ fail: 1 }));
			assert.deepEqual(failed.task_details, [
				{ target: deviceId, status: "Fail", error: INSTALL_FAILED },
			]);
			await pass({ hours: 25 });
			await aTick();
			await device.hearsNothing(0);
		});

		test("a success in the second attempt is a success", async () => {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(3, 1440));
			await failInstalling(device);
			await pass({ hours: 24 });
			await device.next("version_query");
			await device.reportFirmware("v1");
			const { paras } = await device.next("firmware_upgrade_v2");
			assert.equal((await download(server, paras)).status, 200);
			await device.report(0, "v1", 60);
			assert.equal(
				(await detailOf(w.api, task_id, device.deviceId)).output,
				"60%",
			);
			await device.report(0, "v2", 100);
			const { batchtask, task_details } = await taskWhen(
				w.api,
				task_id,
				"Success",
			);
			assert.deepEqual(batchtask.task_progress, counters({ success: 1 }));
			assert.deepEqual(task_details, [
				{
					target: device.deviceId,
					status: "Success",
					output: "The device reported the target version",
				},
			]);
		});

		test("each device has its own attempts and its own time", async () => {
			const w = await makeTaskWorld(server, 2);
			await using first = await w.connect(0);
			await using second = await w.connect(1);
			const { task_id } = await w.start(retries(1));
			await failInstalling(first);
			await pass({ minutes: 2 });
			await failInstalling(second);
			await countersWhen(w.api, task_id, { fail_wait_retry: 2 });
			await pass({ minutes: 3 });
			await succeed(first);
			await second.hearsNothing();
			await countersWhen(w.api, task_id, { success: 1, fail_wait_retry: 1 });
			await pass({ minutes: 2 });
			await succeed(second);
			await taskWhen(w.api, task_id, "Success");
		});

		test("every failure that a device reports is tried again", async () => {
			const kinds: [
				report: (device: ScriptedDevice) => Promise<void>,
				error_code: string,
				error_msg: string,
			][] = (
				[
					[1, "Device in use"],
					[2, "Poor signal"],
					[3, "Already the latest version"],
					[4, "Low battery"],
					[5, "Not enough storage for the new firmware package"],
					[6, "Waiting for device downloaded package timeout"],
					[7, "Integrity check failure for new downloaded package"],
					[8, "Unsupported package type"],
					[9, "Out of memory during downloading process"],
					[10, "Firmware update failed"],
					[255, "Internal error"],
				] as const
			).map(([code, text]) => [
				(device) => device.report(code, "v1"),
				"IOTDA.005011",
				text,
			]);
			kinds.push(
				[
					(device) => device.report(77, "v1"),
					"IOTDA.005009",
					"Upgrade failed. Invalid result_code 77.",
				],
				[
					(device) => device.report(0, "v1", 101),
					"IOTDA.005008",
					"Upgrade failed. Reported progress 101% is invalid.",
				],
				[
					(device) => device.report(0, "v1", -1),
					"IOTDA.005008",
					"Upgrade failed. Reported progress -1% is invalid.",
				],
				[
					(device) => device.report(255, "", 3, { description: "worn out" }),
					"IOTDA.005011",
					"worn out",
				],
			);
			const w = await makeTaskWorld(server, kinds.length);
			const devices = await Promise.all(kinds.map((_, i) => w.connect(i)));
			const { task_id } = await w.start(retries(1, 1));
			await Promise.all(
				kinds.map(async ([report], index) => {
					const device = devices[index];
					assert.ok(device);
					await device.next("version_query");
					await device.reportFirmware("v1");
					await device.next("firmware_upgrade_v2");
					await report(device);
				}),
			);
			const { task_details } = await w.api.getTask(task_id, { limit: 50 });
			assert.deepEqual(
				task_details.reverse(),
				kinds.map(([, error_code, error_msg], index) => ({
					target: w.deviceIds[index],
					status: "FailWaitRetry",
					error: { error_code, error_msg },
				})),
			);
			await pass({ minutes: 1 });
			await Promise.all(devices.map(succeed));
			await taskWhen(w.api, task_id, "Success");
			await Promise.all(devices.map((device) => device[Symbol.asyncDispose]()));
		});

		test("every time limit that runs out is tried again", async () => {
			const w = await makeTaskWorld(server, 3);
			await using old = await w.connect(0);
			await using silent = await w.connect(1);
			const { task_id } = await w.start({
				...retries(1, 1440),
				targets: w.deviceIds.slice(0, 2),
			});
			for (const device of [old, silent]) {
				await device.next("version_query");
				await device.reportFirmware("v1");
				await device.next("firmware_upgrade_v2");
			}
			await pass({ hours: 24 });
			for (const device of [old, silent]) await device.next("version_query");
			await old.reportFirmware("v1");
			await using mute = await w.connect(2);
			const other = await w.start({
				...retries(1, 1440),
				targets: w.deviceIds.slice(2),
			});
			await mute.next("version_query");
			await pass({ minutes: 3 });
			for (const [taskId, device, error_msg] of [
				[task_id, old, "Wait for the device to report upgrade result timeout"],
				[
					task_id,
					silent,
					"Updating timeout and query device version for check timeout",
				],
				[
					other.task_id,
					mute,
					"Waiting for report device firmware version timeout",
				],
			] as const)
				assert.deepEqual(
					await detailWhen(w.api, taskId, device.deviceId, "FailWaitRetry"),
					{
						target: device.deviceId,
						status: "FailWaitRetry",
						error: { error_code: "IOTDA.005010", error_msg },
					},
				);
			await pass({ hours: 24 });
			await Promise.all([old, silent, mute].map(succeed));
			await taskWhen(w.api, task_id, "Success");
			await taskWhen(w.api, other.task_id, "Success");
		});

		test("a device that does not come is waited for anew in each attempt", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			const { task_id } = await w.start(retries(1));
			const error = {
				error_code: "IOTDA.005010",
				error_msg: "Waiting for the device online timeout",
			};
			await countersWhen(w.api, task_id, { processing: 1 });
			await pass({ hours: 25 });
			const waiting = await detailWhen(
				w.api,
				task_id,
				deviceId,
				"FailWaitRetry",
			);
			assert.deepEqual(waiting.error, error);
			await pass({ minutes: 5 });
			await countersWhen(w.api, task_id, { processing: 1 });
			await pass({ hours: 24 });
			await aTick();
			await countersWhen(w.api, task_id, { processing: 1 });
			await pass({ hours: 1 });
			const { task_details } = await taskWhen(w.api, task_id, "Fail");
			assert.deepEqual(task_details[0]?.error, error);
		});

		test("a version that no package fits is tried again, and another version then may fit", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			const only = await makePackage(w.api, w.product, {
				version: "v2",
				support_source_versions: ["v1.5"],
			});
			await using device = await w.connect(0);
			const { task_id } = await w.start({
				...retries(1),
				document: { package_ids: [only.package_id] },
			});
			await device.next("version_query");
			await device.reportFirmware("v1");
			const waiting = await detailWhen(
				w.api,
				task_id,
				deviceId,
				"FailWaitRetry",
			);
			assert.equal(waiting.error?.error_code, "IOTDA.005004");
			await pass({ minutes: 5 });
			await device.next("version_query");
			await device.reportFirmware("v1.5");
			await device.next("firmware_upgrade_v2");
			await device.report(0, "v2");
			await taskWhen(w.api, task_id, "Success");
		});

		test("Task Conflict is tried again, and spends its attempts while the device stays busy", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const busy = await w.start();
			await device.next("version_query");
			const short = await w.start(retries(1));
			const long = await w.start(retries(2));
			for (const { task_id } of [short, long])
				assert.deepEqual(
					await detailWhen(w.api, task_id, deviceId, "FailWaitRetry"),
					{ target: deviceId, status: "FailWaitRetry", error: CONFLICT },
				);
			await device.reportFirmware("v1");
			await device.next("firmware_upgrade_v2");
			await pass({ minutes: 5 });
			const failed = await taskWhen(w.api, short.task_id, "Fail");
			assert.deepEqual(failed.task_details[0]?.error, CONFLICT);
			assert.equal(
				(await detailOf(w.api, long.task_id, deviceId)).status,
				"FailWaitRetry",
			);
			await device.report(0, "v2");
			await taskWhen(w.api, busy.task_id, "Success");
			await pass({ minutes: 5 });
			await succeed(device);
			await taskWhen(w.api, long.task_id, "Success");
		});

		test("of two tasks whose attempts fall due together one is a conflict for the other", async () => {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const first = await w.start(retries(1));
			await failInstalling(device);
			const second = await w.start(retries(1));
			await failInstalling(device);
			await pass({ minutes: 5 });
			await device.next("version_query");
			await aTick();
			const statuses = await Promise.all(
				[first, second].map(
					async ({ task_id }) =>
						(await w.api.getTask(task_id)).batchtask.status,
				),
			);
			assert.deepEqual(statuses.sort(), ["Fail", "Processing"]);
			await device.reportFirmware("v2");
		});

		test("who is refused at the creation has failed at once, whatever the policy", async () => {
			const w = await makeTaskWorld(server, 1);
			const [frozen = ""] = w.deviceIds;
			await w.api.freezeDevice(frozen);
			const other = await makeDevice(w.api, await makeProduct(w.api));
			const { task_id } = await w.start({
				...retries(5, 1),
				targets: [frozen, other.device_id, "nobody"],
			});
			const shown = await taskWhen(w.api, task_id, "Fail");
			assert.deepEqual(shown.batchtask.task_progress, counters({ fail: 3 }));
			assert.deepEqual(
				shown.task_details.map(({ error }) => error?.error_msg),
				[
					"The device does not exist.",
					"The device does not belong to the product of the package.",
					"The device is frozen.",
				],
			);
		});

		test("what a device says between two attempts is ignored, and a new version found in the next", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(1));
			await failInstalling(device);
			await device.report(0, "v2", 100);
			await device.reportFirmware("v2");
			assert.equal(
				(await detailOf(w.api, task_id, deviceId)).status,
				"FailWaitRetry",
			);
			assert.equal((await w.api.getDevice(deviceId)).fw_version, "v2");
			await pass({ minutes: 5 });
			await succeed(device);
			const { task_details } = await taskWhen(w.api, task_id, "Success");
			assert.equal(
				task_details[0]?.output,
				"The current version is the same as the target version",
			);
		});

		test("between two attempts a stop ends it and a deletion removes it", async () => {
			const w = await makeTaskWorld(server, 3);
			const [stopped = "", deleted = "", whole = ""] = w.deviceIds;
			await using first = await w.connect(0);
			await using second = await w.connect(1);
			await using third = await w.connect(2);
			const { task_id } = await w.start(retries(5));
			await Promise.all([first, second, third].map(failInstalling));
			await countersWhen(w.api, task_id, { fail_wait_retry: 3 });
			assert.deepEqual(
				(await w.api.stopTask(task_id, { targets: [stopped] })).targets,
				allDone([stopped]),
			);
			await w.api.deleteDevice(deleted);
			await countersWhen(w.api, task_id, {
				fail_wait_retry: 1,
				stopped: 1,
				removed: 1,
			});
			assert.deepEqual(
				(await w.api.stopTask(task_id)).targets,
				allDone([whole]),
			);
			const { batchtask } = await taskWhen(w.api, task_id, "Stopped");
			assert.deepEqual(
				batchtask.task_progress,
				counters({ stopped: 2, removed: 1 }),
			);
			await pass({ minutes: 6 });
			await aTick();
			await first.hearsNothing(0);
			await third.hearsNothing(0);
		});

		test("a device frozen between two attempts has failed when the next is due", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(3));
			await failInstalling(device);
			await w.api.freezeDevice(deviceId);
			await pass({ minutes: 5 });
			const { task_details } = await taskWhen(w.api, task_id, "Fail");
			assert.equal(task_details[0]?.error?.error_msg, "The device is frozen.");
		});

		test("a restart between two attempts changes nothing, also one that lasts beyond the interval", async () => {
			const w = await makeTaskWorld(server, 2);
			const [first = "", second = ""] = w.deviceIds;
			const { task_id } = await w.start(retries(2));
			{
				await using one = await w.connect(0);
				await using two = await w.connect(1);
				await Promise.all([failInstalling(one), failInstalling(two)]);
				await countersWhen(w.api, task_id, { fail_wait_retry: 2 });
				await server.restart();
			}
			await pass({ minutes: 4 });
			await aTick();
			await countersWhen(w.api, task_id, { fail_wait_retry: 2 });
			await server.restart(() => clock.pass({ minutes: 2 }));
			await using one = await w.connect(0);
			await succeed(one);
			await detailWhen(w.api, task_id, first, "Success");
			await using two = await w.connect(1);
			await failInstalling(two);
			await detailWhen(w.api, task_id, second, "FailWaitRetry");
			await pass({ minutes: 5 });
			await failInstalling(two);
			await taskWhen(w.api, task_id, "PartialSuccess");
		});
	});

	describe("retries asked for", () => {
		test("a finished task with failures runs again and ends anew, with the same subtasks", async () => {
			const w = await makeTaskWorld(server, 3);
			const [good = "", bad = "", stopped = ""] = w.deviceIds;
			await using one = await w.connect(0);
			await using two = await w.connect(1);
			await using three = await w.connect(2);
			const { task_id } = await w.start();
			await succeed(one);
			await failInstalling(two);
			await three.next("version_query");
			await w.api.stopTask(task_id, { targets: [stopped] });
			const partly = await taskWhen(w.api, task_id, "PartialSuccess");
			assert.deepEqual(
				partly.batchtask.task_progress,
				counters({ success: 1, fail: 1, stopped: 1 }),
			);
			assert.deepEqual(
				(await w.api.retryTask(task_id)).targets,
				allDone([bad, stopped]),
			);
			const again = await w.api.getTask(task_id);
			assert.equal(again.batchtask.status, "Processing");
			assert.equal(again.batchtask.task_progress.total, 3);
			assert.equal(again.batchtask.task_progress.success, 1);
			await succeed(two);
			await succeed(three);
			const done = await taskWhen(w.api, task_id, "Success");
			assert.deepEqual(done.batchtask.task_progress, counters({ success: 3 }));
			assert.deepEqual(
				done.task_details.map(({ target, status, error }) => [
					target,
					status,
					error,
				]),
				[stopped, bad, good].map((target) => [target, "Success", undefined]),
			);
			await one.hearsNothing(0);
		});

		test("a task that failed fails again, and may be retried again", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start();
			await failInstalling(device);
			await taskWhen(w.api, task_id, "Fail");
			for (const body of [{}, { targets: [deviceId] }]) {
				assert.deepEqual(
					(await w.api.retryTask(task_id, body)).targets,
					allDone([deviceId]),
				);
				await refused(
					w.api.deleteTask(task_id),
					403,
					"IOTDA.014971",
					"Processing",
				);
				await device.next("version_query");
				await device.reportFirmware("v1");
				const { paras } = await device.next("firmware_upgrade_v2");
				assert.equal((await download(server, paras)).status, 200);
				await device.report(5, "v1");
				const { task_details } = await taskWhen(w.api, task_id, "Fail");
				assert.deepEqual(task_details[0]?.error, {
					error_code: "IOTDA.005011",
					error_msg: "Not enough storage for the new firmware package",
				});
			}
			await w.api.retryTask(task_id);
			await succeed(device);
			await taskWhen(w.api, task_id, "Success");
			await refused(w.api.retryTask(task_id), 403, "IOTDA.014971", "Success");
		});

		test("while the task runs, named targets are retried, others refused one by one", async () => {
			const w = await makeTaskWorld(server, 5);
			const [good = "", bad = "", idle = "", stopped = "", deleted = ""] =
				w.deviceIds;
			await using one = await w.connect(0);
			await using two = await w.connect(1);
			await using four = await w.connect(3);
			const { task_id } = await w.start();
			await succeed(one);
			await failInstalling(two);
			await four.next("version_query");
			await w.api.stopTask(task_id, { targets: [stopped] });
			await w.api.deleteDevice(deleted);
			await countersWhen(w.api, task_id, {
				success: 1,
				fail: 1,
				processing: 1,
				stopped: 1,
				removed: 1,
			});
			assert.deepEqual(
				(
					await w.api.retryTask(task_id, {
						targets: [good, bad, idle, stopped, deleted, "stranger", bad],
					})
				).targets,
				[
					notDone(good),
					...allDone([bad]),
					notDone(idle),
					...allDone([stopped]),
					notDone(deleted),
					notDone("stranger"),
				],
			);
			await succeed(two);
			await succeed(four);
			await countersWhen(w.api, task_id, {
				success: 3,
				processing: 1,
				removed: 1,
			});
			await w.api.stopTask(task_id, { targets: [idle] });
			await taskWhen(w.api, task_id, "PartialSuccess");
		});

		test("when no named target can be retried the task stays as it is", async () => {
			const w = await makeTaskWorld(server, 1);
			const { task_id } = await w.start({ targets: ["nobody"] });
			const before = await taskWhen(w.api, task_id, "Fail");
			assert.deepEqual(
				(await w.api.retryTask(task_id, { targets: w.deviceIds })).targets,
				w.deviceIds.map(notDone),
			);
			assert.deepEqual(await w.api.getTask(task_id), before);
		});

		test("a running task in which nothing failed has nothing to retry", async () => {
			const w = await makeTaskWorld(server, 1);
			const { task_id } = await w.start();
			const before = await countersWhen(w.api, task_id, { processing: 1 });
			assert.deepEqual((await w.api.retryTask(task_id)).targets, []);
			assert.deepEqual(await w.api.getTask(task_id), before);
			await w.api.stopTask(task_id);
		});

		test("only a running task and one with failures can be retried", async () => {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const waiting = await w.start({ need_confirm: true });
			await taskWhen(w.api, waiting.task_id, "Waitting");
			const success = await w.start();
			await succeed(device);
			await taskWhen(w.api, success.task_id, "Success");
			const stopped = await w.start();
			await device.next("version_query");
			await w.api.stopTask(stopped.task_id);
			await taskWhen(w.api, stopped.task_id, "Stopped");
			for (const [{ task_id }, status] of [
				[waiting, "Waitting"],
				[success, "Success"],
				[stopped, "Stopped"],
			] as const) {
				for (const body of [{}, { targets: w.deviceIds }])
					await refused(
						w.api.retryTask(task_id, body),
						403,
						"IOTDA.014971",
						`A task in ${status} cannot be retried.`,
					);
				assert.equal((await w.api.getTask(task_id)).batchtask.status, status);
			}
		});

		test("the policy's attempts start anew, also for one that waits for its next", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(1));
			await failInstalling(device);
			await detailWhen(w.api, task_id, deviceId, "FailWaitRetry");
			assert.deepEqual(
				(await w.api.retryTask(task_id, { targets: [deviceId] })).targets,
				allDone([deviceId]),
			);
			for (const body of [{}, { targets: [deviceId] }]) {
				await failInstalling(device);
				await detailWhen(w.api, task_id, deviceId, "FailWaitRetry");
				await pass({ minutes: 5 });
				await failInstalling(device);
				await taskWhen(w.api, task_id, "Fail");
				await w.api.retryTask(task_id, body);
			}
			await succeed(device);
			await taskWhen(w.api, task_id, "Success");
		});

		test("with {} what waits for its next attempt is tried at once", async () => {
			const w = await makeTaskWorld(server, 1);
			const [deviceId = ""] = w.deviceIds;
			await using device = await w.connect(0);
			const { task_id } = await w.start(retries(1, 1440));
			await failInstalling(device);
			await detailWhen(w.api, task_id, deviceId, "FailWaitRetry");
			assert.deepEqual(
				(await w.api.retryTask(task_id)).targets,
				allDone([deviceId]),
			);
			await succeed(device);
			await taskWhen(w.api, task_id, "Success");
			await pass({ hours: 25 });
			await aTick();
			await device.hearsNothing(0);
		});

		test("who was refused is looked at again: refused again, or taken when it can take part now", async () => {
			const w = await makeTaskWorld(server, 1);
			const [frozen = ""] = w.deviceIds;
			await w.api.freezeDevice(frozen);
			const newcomer = `${w.product.product_id}_newcomer`;
			for (const whole of [true, false]) {
				const { task_id } = await w.start({
					targets: [frozen, newcomer, "nobody"],
				});
				const first = await taskWhen(w.api, task_id, "Fail");
				const retry = () =>
					w.api.retryTask(
						task_id,
						whole ? {} : { targets: [frozen, newcomer, "nobody"] },
					);
				assert.deepEqual(
					(await retry()).targets,
					allDone([frozen, newcomer, "nobody"]),
				);
				const second = await taskWhen(w.api, task_id, "Fail");
				assert.deepEqual(second, first, "nothing has changed since");
				await w.api.unfreezeDevice(frozen);
				const registered = await makeDevice(w.api, w.product, {
					node_id: "newcomer",
				});
				assert.equal(registered.device_id, newcomer);
				await using one = await w.connect(0);
				await using two = await ScriptedDevice.connect(server, registered);
				await retry();
				await Promise.all([succeed(one), succeed(two)]);
				const { batchtask } = await taskWhen(w.api, task_id, "PartialSuccess");
				assert.deepEqual(
					batchtask.task_progress,
					counters({ success: 2, fail: 1 }),
				);
				await w.api.deleteDevice(newcomer);
				await w.api.freezeDevice(frozen);
			}
		});

		test("a retry that meets a busy device is a conflict", async () => {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const { task_id } = await w.start();
			await failInstalling(device);
			await taskWhen(w.api, task_id, "Fail");
			const other = await w.start();
			await device.next("version_query");
			await w.api.retryTask(task_id);
			const { task_details } = await taskWhen(w.api, task_id, "Fail");
			assert.deepEqual(task_details[0]?.error, CONFLICT);
			await device.reportFirmware("v2");
			await taskWhen(w.api, other.task_id, "Success");
		});

		test("a task whose targets are stopped or deleted right after the retry ends", async () => {
			for (const end of ["stop", "delete", "stop all"]) {
				const w = await makeTaskWorld(server, 1);
				const [deviceId = ""] = w.deviceIds;
				await using device = await w.connect(0);
				const { task_id } = await w.start();
				await failInstalling(device);
				await taskWhen(w.api, task_id, "Fail");
				const [retried] = await Promise.all([
					w.api.retryTask(task_id),
					end === "stop"
						? w.api.stopTask(task_id, { targets: [deviceId] }).catch(() => {})
						: end === "delete"
							? w.api.deleteDevice(deviceId)
							: w.api.stopTask(task_id).catch(() => {}),
				]);
				const { batchtask } = await w.api.getTask(task_id);
				if (batchtask.status === "Processing" && end !== "delete")
					await w.api
						.stopTask(task_id, end === "stop" ? { targets: [deviceId] } : {})
						.catch(() => {});
				const shown = await until(
					() => w.api.getTask(task_id),
					({ batchtask }) => /^(Fail|Stopped)$/.test(batchtask.status),
				);
				assert.equal(
					shown.batchtask.task_progress.total,
					1,
					JSON.stringify(retried),
				);
			}
		});

		test("three thousand failed targets are all retried, and the first hundred reported", async () => {
			const w = await makeTaskWorld(server, 0);
			const targets = await importDevices(w.api, w.product, 3_000);
			const { task_id } = await w.start({ ...retries(1), targets });
			await countersWhen(w.api, task_id, { processing: 3_000 }, 60_000);
			await pass({ hours: 25 });
			await countersWhen(w.api, task_id, { fail_wait_retry: 3_000 }, 60_000);
			assert.deepEqual(
				(await w.api.retryTask(task_id)).targets,
				allDone(targets.slice(0, 100)),
			);
			await countersWhen(w.api, task_id, { processing: 3_000 }, 60_000);
			await pass({ hours: 25 });
			await countersWhen(w.api, task_id, { fail_wait_retry: 3_000 }, 60_000);
			await pass({ minutes: 5 });
			await countersWhen(w.api, task_id, { processing: 3_000 }, 60_000);
			await pass({ hours: 25 });
			await taskWhen(w.api, task_id, "Fail", 60_000);
			assert.deepEqual(
				(
					await w.api.retryTask(task_id, {
						targets: targets.slice(2_900),
					})
				).targets,
				allDone(targets.slice(2_900)),
			);
			await countersWhen(w.api, task_id, { processing: 100, fail: 2_900 });
			assert.deepEqual(
				(await w.api.retryTask(task_id)).targets,
				allDone(targets.slice(0, 100)),
			);
			await countersWhen(w.api, task_id, { processing: 3_000 }, 60_000);
			assert.deepEqual(
				(await w.api.stopTask(task_id)).targets,
				allDone(targets.slice(0, 100)),
			);
			const { batchtask } = await taskWhen(w.api, task_id, "Stopped", 60_000);
			assert.deepEqual(batchtask.task_progress, counters({ stopped: 3_000 }));
		});

		test("a task whose package was deleted is not run again", async () => {
			const w = await makeTaskWorld(server, 1);
			await using device = await w.connect(0);
			const { task_id } = await w.start();
			await failInstalling(device);
			await taskWhen(w.api, task_id, "Fail");
			await w.api.deletePackage(w.packageId);
			for (const targets of [w.deviceIds, undefined])
				await refused(
					w.api.retryTask(task_id, targets ? { targets } : {}),
					403,
					"IOTDA.014971",
				);
			await taskWhen(w.api, task_id, "Fail");
		});
	});
});
