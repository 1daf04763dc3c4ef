/** One device through an upgrade, over its real protocol. */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { after, before, test } from "node:test";
import type { TaskWithDetails } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { download, ScriptedDevice, until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

forEachEngine((engine) => {
	let server: TestServer;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
	});
	after(() => server[Symbol.asyncDispose]());

	/** A product with a module, a device and a package of random bytes, and what to do with them. */
	async function world(
		packageType:
			| "firmwarePackage"
			| "softwarePackage"
			| "modulePackage" = "firmwarePackage",
	) {
		const { api } = server;
		const product = await makeProduct(api);
		const module =
			packageType === "modulePackage"
				? await makeModule(api, product, "MCU")
				: undefined;
		const bytes = randomBytes(70_000);
		const file_location = await upload(api, `${unique("fw")}.bin`, bytes);
		const made = await makePackage(api, product, {
			package_type: packageType,
			version: "v2",
			file_location,
			custom_info: "hello",
			...(module ? { module_name: module.module_name } : {}),
		});
		const device = await makeDevice(api, product);
		const taskType =
			packageType === "firmwarePackage"
				? "firmwareUpgrade"
				: packageType === "softwarePackage"
					? "softwareUpgrade"
					: "moduleUpgrade";
		return {
			api,
			product,
			package: made,
			device,
			bytes,
			sha256: createHash("sha256").update(bytes).digest("hex"),
			startTask: (
				targets: string[] = [device.device_id ?? ""],
				packageIds = [made.package_id],
			) =>
				api.createTask({
					task_name: "upgrade",
					task_type: taskType,
					targets,
					document: { package_ids: packageIds },
				}),
			finished: (taskId: string) =>
				until(
					() => api.getTask(taskId),
					({ batchtask }) =>
						["Success", "Fail", "PartialSuccess", "Stopped"].includes(
							batchtask.status,
						),
				),
		};
	}

	function onlyDetail(shown: TaskWithDetails) {
		assert.equal(shown.task_details.length, 1);
		return shown.task_details[0];
	}

	test("a connected device takes a firmware upgrade to Success", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		assert.match(task.task_id, /^[0-9a-f]{24}$/);
		const query = await device.next("version_query");
		assert.deepEqual(query.paras, {});
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		assert.equal(paras.version, "v2");
		assert.equal(paras.sign, w.sha256);
		assert.equal(paras.file_size, w.bytes.length);
		assert.equal(paras.custom_info, "hello");
		assert.equal(paras.expires, 86_400);
		assert.equal("access_token" in paras, false);
		assert.match(
			String(paras.url),
			/^https:\/\/127\.0\.0\.1:\d+\/.+\/[^/]+\.bin\?/,
		);
		const fetched = await download(server, paras);
		assert.equal(fetched.status, 200);
		assert.ok(fetched.bytes.equals(w.bytes));
		await device.report(0, "v1", 50);
		const running = await w.api.getTask(task.task_id);
		assert.equal(running.batchtask.status, "Processing");
		assert.deepEqual(onlyDetail(running), {
			target: device.deviceId,
			status: "Processing",
			output: "50%",
		});
		await device.report(0, "v1", 100);
		await device.hearsNothing();
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.status,
			"Processing",
		);
		await device.report(0, "v2", 100);
		const done = await w.api.getTask(task.task_id);
		assert.equal(done.batchtask.status, "Success");
		assert.deepEqual(done.batchtask.task_progress, {
			total: 1,
			processing: 0,
			success: 1,
			fail: 0,
			waitting: 0,
			fail_wait_retry: 0,
			stopped: 0,
			removed: 0,
		});
		assert.equal((await w.api.getDevice(device.deviceId)).fw_version, "v2");
		assert.equal(
			(await download(server, paras)).status,
			401,
			"the link dies with the subtask",
		);
	});

	test("software goes the same way, by a token when the product says so", async () => {
		const w = await world("softwarePackage");
		await w.api.updateProductOtaProfile(w.product.product_id ?? "", {
			download_form: "token",
		});
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		await device.next("version_query");
		await device.say("version_report", { sw_version: "v1", fw_version: "v2" });
		const { paras } = await device.next("software_upgrade");
		assert.match(String(paras.access_token), /^[0-9a-f]{32}$/);
		assert.equal(
			(await download(server, { ...paras, access_token: "0".repeat(32) }))
				.status,
			401,
		);
		const fetched = await download(server, paras, { range: "bytes=69990-" });
		assert.equal(fetched.status, 206);
		assert.ok(fetched.bytes.equals(w.bytes.subarray(69_990)));
		await device.report(0, "v2");
		assert.equal((await w.finished(task.task_id)).batchtask.status, "Success");
		const shown = await w.api.getDevice(device.deviceId);
		assert.equal(shown.sw_version, "v2");
	});

	test("a device that speaks of modules gets its module upgraded in the native form", async () => {
		const w = await world("modulePackage");
		await using device = await ScriptedDevice.connect(server, w.device);
		await device.reportModules({ MCU: "v1", Unheard: "v9" });
		const task = await w.startTask();
		const query = await device.next("version_query");
		assert.deepEqual(query.paras, { module_name: "MCU" });
		await device.say("version_report", { module_name: "MCU", version: "v1" });
		const { paras } = await device.next("module_upgrade_v2");
		assert.equal(paras.module_name, "MCU");
		await device.report(0, "v2", 100, { module_name: "Other" });
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.status,
			"Processing",
			"another module proves nothing",
		);
		await device.report(0, "v2", 100, { module_name: "MCU" });
		assert.equal((await w.finished(task.task_id)).batchtask.status, "Success");
		assert.deepEqual((await w.api.getDevice(device.deviceId)).modules, [
			{ module_name: "MCU", module_version: "v2" },
		]);
	});

	test("a device marked compatible gets its module dressed as firmware", async () => {
		const w = await world("modulePackage");
		await w.api.updateProductOtaProfile(w.product.product_id ?? "", {
			module_form: "compatible",
		});
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		const { paras } = await device.next("firmware_upgrade_v2");
		assert.equal(paras.module_name, "MCU");
		await device.say("version_report", { fw_version: "v2" });
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.status,
			"Processing",
			"the firmware's version is not the module's",
		);
		await device.report(0, "v2", 100);
		assert.equal((await w.finished(task.task_id)).batchtask.status, "Success");
		const shown = await w.api.getDevice(device.deviceId);
		assert.deepEqual(shown.modules, [
			{ module_name: "MCU", module_version: "v2" },
		]);
		assert.equal(
			shown.fw_version,
			"v2",
			"what the device said of its firmware is kept",
		);
		const again = await w.startTask();
		const same = await w.finished(again.task_id);
		assert.equal(
			onlyDetail(same)?.output,
			"The current version is the same as the target version",
		);
	});

	test("a device that does not know of modules fails at once and hears nothing", async () => {
		const w = await world("modulePackage");
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "Fail");
		assert.deepEqual(onlyDetail(shown)?.error, {
			error_code: "IOTDA.014979",
			error_msg: "Unsupported package type",
		});
		await device.hearsNothing();
	});

	test("a device that has the version already succeeds without a notice", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v2");
		const shown = await w.finished(task.task_id);
		assert.deepEqual(onlyDetail(shown), {
			target: device.deviceId,
			status: "Success",
			output: "The current version is the same as the target version",
		});
		await device.hearsNothing();
	});

	test("an offline device is waited for and upgraded when it comes", async () => {
		const w = await world();
		const task = await w.startTask();
		await until(
			() => w.api.getTask(task.task_id),
			({ batchtask }) => batchtask.task_progress.processing === 1,
		);
		await using device = await ScriptedDevice.connect(server, w.device);
		await device.next("version_query");
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		await device.report(0, "v2");
		assert.equal((await w.finished(task.task_id)).batchtask.status, "Success");
	});

	test("of several packages the one that lists the reported version is taken, else the one for every version", async () => {
		const w = await world();
		const diff = (sources: string[], key: string) =>
			makePackage(w.api, w.product, {
				version: "v2",
				support_source_versions: sources,
				custom_info: key,
			});
		const first = await diff(["v1.5", "v1.6"], "diff-1.5");
		const second = await diff(["v1.7"], "diff-1.7");
		for (const [version, expected] of [
			["v1.5", "diff-1.5"],
			["v1.6", "diff-1.5"],
			["v1.7", "diff-1.7"],
			["v1", "hello"],
			["v1.50", "hello"],
			["V1.5", "hello"],
			["v9", "hello"],
		] as const) {
			const device = await makeDevice(w.api, w.product);
			await using scripted = await ScriptedDevice.connect(server, device);
			const task = await w.startTask(
				[device.device_id],
				[first.package_id, w.package.package_id, second.package_id],
			);
			await scripted.next("version_query");
			await scripted.reportFirmware(version);
			const { paras } = await scripted.next("firmware_upgrade_v2");
			assert.equal(paras.custom_info, expected, version);
			assert.equal(paras.version, "v2");
			await scripted.report(0, "v2");
			const { batchtask } = await w.finished(task.task_id);
			assert.equal(batchtask.status, "Success");
		}
		const device = await makeDevice(w.api, w.product);
		await using scripted = await ScriptedDevice.connect(server, device);
		const task = await w.startTask(
			[device.device_id],
			[first.package_id, second.package_id],
		);
		await scripted.next("version_query");
		await scripted.reportFirmware("v1");
		assert.equal(
			onlyDetail(await w.finished(task.task_id))?.error?.error_code,
			"IOTDA.005004",
		);
		await scripted.hearsNothing();
	});

	test("extension data goes along in every message; the marks of a gateway's children do not reach a device of its own", async () => {
		for (const [packageType, event, download_form] of [
			["firmwarePackage", "firmware_upgrade_v2", "presigned"],
			["softwarePackage", "software_upgrade", "token"],
		] as const) {
			const w = await world(packageType);
			await w.api.updateProductOtaProfile(w.product.product_id, {
				download_form,
			});
			await using device = await ScriptedDevice.connect(server, w.device);
			const extInfo = { wave: 3, notes: { de: "später", list: [1, null] } };
			const task = await w.api.createTask({
				task_name: "extended",
				task_type:
					packageType === "firmwarePackage"
						? "firmwareUpgrade"
						: "softwareUpgrade",
				task_mode: "GATEWAY",
				task_ext_info: extInfo,
				targets: [device.deviceId],
				document: { package_ids: [w.package.package_id] },
			});
			const query = await device.next("version_query");
			assert.deepEqual(query.paras, { task_ext_info: extInfo });
			await device.say("version_report", {
				fw_version: "v1",
				sw_version: "v1",
			});
			const { paras } = await device.next(event);
			assert.deepEqual(paras.task_ext_info, extInfo);
			assert.equal("task_id" in paras, false);
			assert.equal("sub_device_count" in paras, false);
			await device.report(0, "v2");
			assert.equal(
				(await w.finished(task.task_id)).batchtask.status,
				"Success",
			);
		}
	});

	test("without extension data nothing of the kind is sent", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		assert.deepEqual((await device.next("version_query")).paras, {});
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		for (const name of ["task_ext_info", "task_id", "sub_device_count"])
			assert.equal(name in paras, false, name);
		await w.api.stopTask(task.task_id);
	});

	test("a version that no package can upgrade from is a failure", async () => {
		const w = await world();
		const diff = await makePackage(w.api, w.product, {
			version: "v3",
			support_source_versions: ["v2"],
		});
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask(undefined, [diff.package_id]);
		await device.next("version_query");
		await device.reportFirmware("v1");
		assert.deepEqual(onlyDetail(await w.finished(task.task_id))?.error, {
			error_code: "IOTDA.005004",
			error_msg:
				"Upgrade failed. The current version cannot be upgraded to the target version.",
		});
	});

	test("a failure report ends the upgrade with the device's reason", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		await device.report(255, "", undefined, { description: "flash worn out" });
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "Fail");
		assert.deepEqual(onlyDetail(shown)?.error, {
			error_code: "IOTDA.005011",
			error_msg: "flash worn out",
		});
		await device.report(0, "v2", 100);
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.status,
			"Fail",
			"what comes after the end is ignored",
		);
	});

	test("two tasks for one device: the second fails with Task Conflict, and a third after the first is taken", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const first = await w.startTask();
		await device.next("version_query");
		const second = await w.startTask();
		const refused = await w.finished(second.task_id);
		assert.deepEqual(onlyDetail(refused)?.error, {
			error_code: "IOTDA.014979",
			error_msg: "Task Conflict",
		});
		await device.reportFirmware("v2");
		await w.finished(first.task_id);
		const third = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v2");
		assert.equal((await w.finished(third.task_id)).batchtask.status, "Success");
	});

	test("targets that cannot take part fail at once, each with its reason, and the rest goes on", async () => {
		const w = await world();
		const other = await makeDevice(w.api, await makeProduct(w.api));
		const frozen = await makeDevice(w.api, w.product);
		await w.api.freezeDevice(frozen.device_id ?? "");
		const absentGateway = await makeDevice(w.api, w.product);
		const child = await makeDevice(w.api, w.product, {
			gateway_id: absentGateway.device_id,
		});
		await using device = await ScriptedDevice.connect(server, w.device);
		const targets = [
			device.deviceId,
			other.device_id,
			frozen.device_id,
			child.device_id,
			"nobody",
			device.deviceId,
		].map(String);
		const task = await w.startTask(targets);
		assert.deepEqual(task.targets, targets);
		await device.next("version_query");
		await device.reportFirmware("v2");
		const running = await w.api.getTask(task.task_id);
		assert.deepEqual(
			running.task_details
				.filter(({ status }) => status === "Processing")
				.map(({ target }) => target),
			[child.device_id],
			"a device behind a gateway is waited for like any other",
		);
		await w.api.stopTask(task.task_id, { targets: [child.device_id] });
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "PartialSuccess");
		assert.equal(
			shown.batchtask.task_progress.total,
			5,
			"a device named twice counts once",
		);
		const reasons = new Map(
			shown.task_details.map((detail) => [
				detail.target,
				detail.error?.error_msg ?? detail.status,
			]),
		);
		assert.deepEqual(
			targets.slice(0, 5).map((target) => reasons.get(target)),
			[
				"Success",
				"The device does not belong to the product of the package.",
				"The device is frozen.",
				"Stopped",
				"The device does not exist.",
			],
		);
	});

	test("time limits end what nobody answers", async () => {
		const w = await world();
		const neverThere = await w.startTask();
		await until(
			() => w.api.getTask(neverThere.task_id),
			({ batchtask }) => batchtask.task_progress.processing === 1,
		);
		clock.pass({ hours: 25, seconds: 1 });
		assert.equal(
			onlyDetail(await w.finished(neverThere.task_id))?.error?.error_msg,
			"Waiting for the device online timeout",
		);

		await using device = await ScriptedDevice.connect(server, w.device);
		const silent = await w.startTask();
		await device.next("version_query");
		clock.pass({ minutes: 3, seconds: 1 });
		assert.deepEqual(onlyDetail(await w.finished(silent.task_id))?.error, {
			error_code: "IOTDA.005010",
			error_msg: "Waiting for report device firmware version timeout",
		});

		const stuck = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		await device.report(0, "v1", 10);
		clock.pass({ hours: 24, seconds: 1 });
		await device.next("version_query");
		await device.reportFirmware("v1");
		assert.equal(
			onlyDetail(await w.finished(stuck.task_id))?.error?.error_msg,
			"Wait for the device to report upgrade result timeout",
		);

		const late = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		clock.pass({ hours: 24, seconds: 1 });
		await device.next("version_query");
		await device.reportFirmware("v2");
		assert.equal(
			(await w.finished(late.task_id)).batchtask.status,
			"Success",
			"a device that only forgot to report is believed",
		);
	});

	test("a device that lost its download gets the notice again, but not too often", async () => {
		const w = await world();
		await server.api.updateProductOtaProfile(w.product.product_id ?? "", {
			download_form: "token",
		});
		const task = await w.startTask();
		const first = await ScriptedDevice.connect(server, w.device);
		await first.next("version_query");
		await first.reportFirmware("v1");
		const { paras } = await first.next("firmware_upgrade");
		await first[Symbol.asyncDispose]();

		clock.pass({ minutes: 4 });
		const second = await ScriptedDevice.connect(server, w.device);
		await second.next("version_query");
		await second.reportFirmware("v1");
		await second.hearsNothing();
		clock.pass({ minutes: 7 });
		const again = await second.next("firmware_upgrade");
		assert.equal(
			(await download(server, paras)).status,
			200,
			"a repeated notice does not end the download before it",
		);
		assert.notEqual(again.paras.access_token, paras.access_token);
		assert.equal((await download(server, again.paras)).status, 200);
		await second[Symbol.asyncDispose]();

		await using third = await ScriptedDevice.connect(server, w.device);
		await third.next("version_query");
		await third.reportFirmware("v2");
		assert.equal(
			(await w.finished(task.task_id)).batchtask.status,
			"Success",
			"it rebooted into the new version",
		);
	});

	test("a server that restarts goes on where it was", async () => {
		const w = await world();
		const idle = await makeDevice(w.api, w.product);
		const task = await w.startTask([
			w.device.device_id ?? "",
			idle.device_id ?? "",
		]);
		{
			await using device = await ScriptedDevice.connect(server, w.device);
			await device.next("version_query");
			await device.reportFirmware("v1");
			await device.next("firmware_upgrade_v2");
			await device.report(0, "v1", 30);
			await server.restart();
		}
		await using device = await ScriptedDevice.connect(server, w.device);
		await device.next("version_query");
		await device.reportFirmware("v2");
		await using other = await ScriptedDevice.connect(server, idle);
		await other.next("version_query");
		await other.reportFirmware("v2");
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "Success");
		assert.equal(shown.batchtask.task_progress.success, 2);
	});

	test("an outage longer than a time limit does not fail the devices that come back", async () => {
		const w = await world();
		const task = await w.startTask();
		const first = await ScriptedDevice.connect(server, w.device);
		await first.next("version_query");
		await server.restart(() => clock.pass({ minutes: 4 }));
		await first[Symbol.asyncDispose]();
		await using device = await ScriptedDevice.connect(server, w.device);
		await device.next("version_query");
		await device.reportFirmware("v2");
		assert.equal((await w.finished(task.task_id)).batchtask.status, "Success");
	});

	test("devices deleted while a task reaches for them are removed from it, and it ends", async () => {
		const w = await world();
		const devices = await Promise.all(
			Array.from({ length: 60 }, () => makeDevice(w.api, w.product)),
		);
		const ids = devices.map((device) => device.device_id ?? "");
		const task = await w.startTask(ids);
		await Promise.all(ids.map((deviceId) => w.api.deleteDevice(deviceId)));
		clock.pass({ hours: 26 });
		const { batchtask } = await w.finished(task.task_id);
		assert.equal(batchtask.status, "Fail");
		assert.equal(batchtask.task_progress.total, 60);
		assert.equal(
			batchtask.task_progress.fail + batchtask.task_progress.removed,
			60,
		);
	});

	test("a reason that ends in the middle of a character is kept up to it", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		await device.next("version_query");
		await device.reportFirmware("v1");
		await device.next("firmware_upgrade_v2");
		await device.report(255, "v1", 3, {
			description: `${"x".repeat(511)}\u{1F600}${"\ud800"}\u0000!`,
		});
		const shown = await w.finished(task.task_id);
		assert.match(onlyDetail(shown)?.error?.error_msg ?? "", /^x{511}/);
	});

	test("stopping a task ends what is unfinished and closes the download", async () => {
		const w = await world();
		const idle = await makeDevice(w.api, w.product);
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask([device.deviceId, idle.device_id ?? ""]);
		await device.next("version_query");
		await device.reportFirmware("v1");
		const { paras } = await device.next("firmware_upgrade_v2");
		await assert.rejects(w.api.deleteTask(task.task_id), {
			code: "IOTDA.014971",
			status: 403,
		});
		const stopped = await w.api.stopTask(task.task_id);
		assert.deepEqual(stopped.targets, [
			{ target: device.deviceId, status: "success" },
			{ target: idle.device_id, status: "success" },
		]);
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "Stopped");
		assert.equal(shown.batchtask.task_progress.stopped, 2);
		assert.equal((await download(server, paras)).status, 401);
		await device.report(0, "v2", 100);
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.task_progress.stopped,
			2,
		);
		await assert.rejects(w.api.stopTask(task.task_id), {
			code: "IOTDA.014971",
			status: 403,
		});
		await w.api.deleteTask(task.task_id);
		await assert.rejects(w.api.getTask(task.task_id), {
			code: "IOTDA.014970",
			status: 404,
		});
	});

	test("stopping some targets leaves the others, and says which could not be stopped", async () => {
		const w = await world();
		const idle = await makeDevice(w.api, w.product);
		const task = await w.startTask([
			w.device.device_id ?? "",
			idle.device_id ?? "",
		]);
		await until(
			() => w.api.getTask(task.task_id),
			({ batchtask }) => batchtask.task_progress.processing === 2,
		);
		const answer = await w.api.stopTask(task.task_id, {
			targets: [idle.device_id ?? "", "nobody"],
		});
		assert.deepEqual(answer.targets[0], {
			target: idle.device_id,
			status: "success",
		});
		assert.equal(answer.targets[1]?.status, "failure");
		assert.equal(answer.targets[1]?.error_code, "IOTDA.014219");
		assert.equal(
			(await w.api.getTask(task.task_id)).batchtask.status,
			"Processing",
		);
		await using device = await ScriptedDevice.connect(server, w.device);
		await device.next("version_query");
		await device.reportFirmware("v2");
		assert.equal(
			(await w.finished(task.task_id)).batchtask.status,
			"PartialSuccess",
		);
	});

	test("a device deleted in the middle counts as removed", async () => {
		const w = await world();
		await using device = await ScriptedDevice.connect(server, w.device);
		const task = await w.startTask();
		await device.next("version_query");
		await w.api.deleteDevice(device.deviceId);
		const shown = await w.finished(task.task_id);
		assert.equal(shown.batchtask.status, "Fail");
		assert.equal(shown.batchtask.task_progress.removed, 1);
		assert.equal(onlyDetail(shown)?.status, "Removed");
		await until(
			async () => device.client.connected,
			(connected) => !connected,
		);
	});

	test("a task whose file is damaged fails as a whole and names it", async () => {
		await using fresh = await startServer(engine, { now: clock.now });
		const product = await makeProduct(fresh.api);
		const made = await makePackage(fresh.api, product, {
			file_location: await upload(fresh.api, "folder/fw.bin"),
		});
		const device = await makeDevice(fresh.api, product);
		rmSync(fresh.config.artifactsDir, { recursive: true });
		const task = await fresh.api.createTask({
			task_name: "damaged",
			task_type: "firmwareUpgrade",
			targets: [device.device_id ?? ""],
			document: { package_ids: [made.package_id ?? ""] },
		});
		const shown = await until(
			() => fresh.api.getTask(task.task_id),
			({ batchtask }) => batchtask.status === "Fail",
		);
		assert.match(
			String(shown.batchtask.status_desc),
			/folder\/fw\.bin .*missing/,
		);
		assert.deepEqual(shown.task_details, []);
	});
});
