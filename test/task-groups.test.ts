/** Device groups as the targets of tasks. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { inTransaction, lockForUpdate } from "../server/database/database.ts";
import { counterOf } from "../server/upgrade-tasks/task.ts";
import type { Client } from "../wire/client.ts";
import type { TaskWithDetails } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makePackage,
	makeProduct,
	refused,
	unique,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	allDone,
	counters,
	countersWhen,
	detailOf,
	importDevices,
	makeTaskWorld,
	succeed,
	type TaskWorld,
	taskWhen,
} from "./support/task-world.ts";

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, { now: clock.now });
		api = server.api;
	});
	after(() => server[Symbol.asyncDispose]());

	async function makeStaticGroup(
		deviceIds: readonly string[],
		more: { app_id?: string; super_group_id?: string } = {},
	): Promise<string> {
		const { group_id } = await api.createDeviceGroup({
			name: unique("static"),
			...more,
		});
		for (const device_id of deviceIds)
			await api.changeDeviceGroup(group_id, {
				action_id: "addDevice",
				device_id,
			});
		return group_id;
	}

	async function makeDynamicGroup(
		rule: string,
		app_id?: string,
	): Promise<string> {
		const { group_id } = await api.createDeviceGroup({
			name: unique("dynamic"),
			group_type: "DYNAMIC",
			dynamic_group_rule: rule,
			...(app_id ? { app_id } : {}),
		});
		return group_id;
	}

	const onGroups = (w: TaskWorld, ...group_ids: string[]) =>
		w.start({ targets_filter: { group_ids } });
	const targetsOf = ({ task_details }: TaskWithDetails) =>
		task_details.map(({ target }) => target).sort();
	/** Devices all stand, and the task runs. */
	const running = (taskId: string, count: number) =>
		countersWhen(api, taskId, { processing: count });
	/** The counters say what the subtasks are. */
	async function rowsFit(taskId: string): Promise<void> {
		const rows = await server.server.db
			.selectFrom("subtasks")
			.select(["status", (eb) => eb.fn.countAll<number>().as("count")])
			.where("task_id", "=", taskId)
			.groupBy("status")
			.execute();
		const counted = rows.map(
			({ status, count }) => [counterOf[status], Number(count)] as const,
		);
		const { batchtask } = await api.getTask(taskId);
		assert.deepEqual(
			batchtask.task_progress,
			counters(Object.fromEntries(counted)),
		);
	}
	const ofProduct = ({ product }: TaskWorld) =>
		`product_id = '${product.product_id}'`;

	test("a task on a static group upgrades its members, and shows the groups as they were sent", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = "", stranger = ""] = w.deviceIds;
		await using one = await w.connect(0);
		const group = await makeStaticGroup([first, second]);
		const task = await onGroups(w, group);
		assert.deepEqual(task.targets_filter, { group_ids: [group] });
		assert.deepEqual(task.targets, []);
		const shown = await running(task.task_id, 2);
		assert.deepEqual(targetsOf(shown), [first, second].sort());
		assert.deepEqual(shown.batchtask.targets, []);
		assert.deepEqual(shown.batchtask.targets_filter, { group_ids: [group] });
		assert.equal(
			(await api.getTask(task.task_id, { target: stranger })).page.count,
			0,
		);
		await succeed(one);
		await using two = await w.connect(1);
		await succeed(two);
		const done = await taskWhen(api, task.task_id, "Success");
		assert.deepEqual(done.batchtask.task_progress, counters({ success: 2 }));
	});

	test("a task on a dynamic group upgrades who fits its rule when the task is created", async () => {
		const w = await makeTaskWorld(server, 4);
		const [old = "", tagged = "", current = "", unheard = ""] = w.deviceIds;
		await using one = await w.connect(0);
		await one.reportFirmware("v1");
		await using three = await w.connect(2);
		await three.reportFirmware("v2");
		await api.bindTags({
			resource_type: "device",
			resource_id: tagged,
			tags: [{ tag_key: "ring", tag_value: "canary" }],
		});
		const group = await makeDynamicGroup(
			`${ofProduct(w)} and (fw_version = 'v1' or tag_key = 'ring' and tag_value = 'canary')`,
		);
		const { task_id } = await onGroups(w, group);
		const shown = await running(task_id, 2);
		assert.deepEqual(targetsOf(shown), [old, tagged].sort());
		await succeed(one);
		await api.stopTask(task_id);
		assert.ok(current !== unheard);
	});

	test("a device in several of the groups stands in the task once", async () => {
		const w = await makeTaskWorld(server, 4);
		const [first = "", second = "", third = "", fourth = ""] = w.deviceIds;
		const groups = [
			await makeStaticGroup([first, second]),
			await makeStaticGroup([second, third]),
			await makeDynamicGroup(
				`device_id in ('${first}', '${third}', '${fourth}')`,
			),
		];
		const { task_id } = await onGroups(w, ...groups);
		const shown = await running(task_id, 4);
		assert.deepEqual(targetsOf(shown), [...w.deviceIds].sort());
		await api.stopTask(task_id);
		const { batchtask } = await taskWhen(api, task_id, "Stopped");
		assert.deepEqual(batchtask.task_progress, counters({ stopped: 4 }));
	});

	test("a group without devices fails the task, which says so and has no subtasks", async () => {
		const w = await makeTaskWorld(server, 1);
		for (const groups of [
			[await makeStaticGroup([])],
			[await makeDynamicGroup("device_id = 'nobody-at-all'")],
			[
				await makeStaticGroup([]),
				await makeDynamicGroup("device_name = 'nobody-at-all'"),
			],
		]) {
			const { task_id } = await onGroups(w, ...groups);
			const shown = await taskWhen(api, task_id, "Fail");
			assert.equal(shown.batchtask.status_desc, "The task has no devices.");
			assert.deepEqual(shown.batchtask.task_progress, counters({}));
			assert.deepEqual(shown.task_details, []);
			assert.deepEqual(shown.page, { count: 0 });
			assert.deepEqual((await api.retryTask(task_id)).targets, []);
			assert.equal((await api.getTask(task_id)).batchtask.status, "Fail");
			await api.deleteTask(task_id);
		}
	});

	test("an empty group beside another takes nothing away", async () => {
		const w = await makeTaskWorld(server, 1);
		const { task_id } = await onGroups(
			w,
			await makeStaticGroup([]),
			await makeStaticGroup(w.deviceIds),
			await makeDynamicGroup("node_id = 'nobody-at-all'"),
		);
		await running(task_id, 1);
		await api.stopTask(task_id);
	});

	test("an unknown group does not make the call fail: the task fails, names it, and has no subtasks", async () => {
		const w = await makeTaskWorld(server, 1);
		const known = await makeStaticGroup(w.deviceIds);
		const space = await api.createResourceSpace({ app_name: "groups" });
		const foreign = await makeStaticGroup([], { app_id: space.app_id });
		const deleted = await makeStaticGroup([]);
		await api.deleteDeviceGroup(deleted);
		for (const [groups, unknown] of [
			[["a1b2"], "a1b2"],
			[[known, "00000000-0000"], "00000000-0000"],
			[["c3", known, "d4"], "c3"],
			[[foreign], foreign],
			[[deleted, known], deleted],
			[[known.toUpperCase()], known.toUpperCase()],
		] as const) {
			const made = await makePackage(api, w.product, { version: "v3" });
			const task = await w.start({
				targets_filter: { group_ids: [...groups] },
				document: { package_ids: [made.package_id] },
				need_confirm: true,
			});
			const shown = await taskWhen(api, task.task_id, "Fail");
			assert.equal(
				shown.batchtask.status_desc,
				`The device group ${unknown} does not exist.`,
			);
			assert.deepEqual(shown.batchtask.targets_filter, { group_ids: groups });
			assert.deepEqual(shown.batchtask.task_progress, counters({}));
			assert.deepEqual(shown.task_details, []);
			await refused(api.confirmTask(task.task_id), 403, "IOTDA.014971");
			await refused(api.stopTask(task.task_id), 403, "IOTDA.014971");
			// It is over, so it keeps nothing from being deleted.
			await api.deletePackage(made.package_id);
			await api.deleteTask(task.task_id);
		}
	});

	test("who is in the groups is settled at the creation", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = "", third = ""] = w.deviceIds;
		await using one = await w.connect(0);
		await one.reportFirmware("v1");
		const fixed = await makeStaticGroup([second]);
		const byVersion = await makeDynamicGroup(
			`${ofProduct(w)} and fw_version = 'v1'`,
		);
		const { task_id } = await w.start({
			targets_filter: { group_ids: [fixed, byVersion] },
			need_confirm: true,
		});
		await countersWhen(api, task_id, { waitting: 2 });
		await api.changeDeviceGroup(fixed, {
			action_id: "removeDevice",
			device_id: second,
		});
		await api.changeDeviceGroup(fixed, {
			action_id: "addDevice",
			device_id: third,
		});
		await one.reportFirmware("v1.9");
		await using three = await w.connect(2);
		await three.reportFirmware("v1");
		await api.confirmTask(task_id);
		assert.deepEqual(
			targetsOf(await running(task_id, 2)),
			[first, second].sort(),
		);
		await succeed(one);
		await three.hearsNothing();
		await using two = await w.connect(1);
		await succeed(two);
		await taskWhen(api, task_id, "Success");
	});

	test("a task goes on although its groups are deleted", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", second = ""] = w.deviceIds;
		const fixed = await makeStaticGroup([first]);
		const dynamic = await makeDynamicGroup(`device_id = '${second}'`);
		const { task_id } = await onGroups(w, fixed, dynamic);
		await running(task_id, 2);
		await api.deleteDeviceGroup(dynamic);
		await api.changeDeviceGroup(fixed, {
			action_id: "removeDevice",
			device_id: first,
		});
		await api.deleteDeviceGroup(fixed);
		await server.restart();
		await using one = await w.connect(0);
		await using two = await w.connect(1);
		await Promise.all([succeed(one), succeed(two)]);
		const { batchtask } = await taskWhen(api, task_id, "Success");
		assert.deepEqual(batchtask.targets_filter, { group_ids: [fixed, dynamic] });
	});

	test("a dynamic group deleted right after the creation is none the less the one that was meant", async () => {
		const w = await makeTaskWorld(server, 0);
		await importDevices(api, w.product, 300);
		const group = await makeDynamicGroup(ofProduct(w));
		const { task_id } = await onGroups(w, group);
		await api.deleteDeviceGroup(group);
		await running(task_id, 300);
		await api.stopTask(task_id);
	});

	test("groups below a group are not part of it", async () => {
		const w = await makeTaskWorld(server, 2);
		const [first = "", second = ""] = w.deviceIds;
		const above = await makeStaticGroup([first]);
		await makeStaticGroup([second], { super_group_id: above });
		const { task_id } = await onGroups(w, above);
		assert.deepEqual(targetsOf(await running(task_id, 1)), [first]);
		await api.stopTask(task_id);
	});

	test("members that cannot take part fail at once, each with its reason", async () => {
		const w = await makeTaskWorld(server, 2);
		const [good = "", frozen = ""] = w.deviceIds;
		await api.freezeDevice(frozen);
		const other = await makeDevice(api, await makeProduct(api));
		const { task_id } = await onGroups(
			w,
			await makeStaticGroup([good, frozen, other.device_id]),
		);
		await countersWhen(api, task_id, { processing: 1, fail: 2 });
		for (const [deviceId, text] of [
			[frozen, "The device is frozen."],
			[
				other.device_id,
				"The device does not belong to the product of the package.",
			],
		] as const)
			assert.deepEqual((await detailOf(api, task_id, deviceId)).error, {
				error_code: "IOTDA.014979",
				error_msg: text,
			});
		await api.deleteDevice(good);
		const { batchtask } = await taskWhen(api, task_id, "Fail");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ fail: 2, removed: 1 }),
		);
	});

	test("twelve thousand devices of a group stand in the task once each; it pages, runs, stops and is deleted", async () => {
		const space = await api.createResourceSpace({ app_name: "fleet" });
		const w = await makeTaskWorld(server, 0, space.app_id);
		const other = await makeProduct(api, { app_id: space.app_id });
		await importDevices(api, other, 700);
		const targets = await importDevices(api, w.product, 12_000);
		const group = await makeDynamicGroup(ofProduct(w), space.app_id);
		const some = await makeStaticGroup(
			[targets[11_999] ?? "", `${other.product_id}_000007`],
			{ app_id: space.app_id },
		);
		const { task_id } = await onGroups(w, some, group);
		await countersWhen(api, task_id, { processing: 12_000, fail: 1 }, 60_000);

		const seen: string[] = [];
		for (let marker: string | undefined; ; ) {
			const { task_details, page } = await api.getTask(task_id, {
				limit: 50,
				...(marker ? { marker } : {}),
			});
			assert.equal(page.count, 12_001);
			seen.push(...task_details.map(({ target }) => target));
			marker = page.marker;
			if (!marker) break;
		}
		assert.deepEqual(
			seen.sort(),
			[...targets, `${other.product_id}_000007`].sort(),
		);
		const { batchtasks } = await api.listTasks({
			task_type: "firmwareUpgrade",
			app_id: space.app_id,
			status: "Processing",
		});
		assert.deepEqual(batchtasks, [(await api.getTask(task_id)).batchtask]);
		for (const [status, count] of [
			["Processing", 12_000],
			["Fail", 1],
			["Success", 0],
		] as const)
			assert.equal(
				(await api.getTask(task_id, { task_detail_status: status })).page.count,
				count,
			);

		const { targets: stopped } = await api.stopTask(task_id);
		assert.equal(stopped.length, 100);
		assert.ok(stopped.every(({ status }) => status === "success"));
		const { batchtask } = await taskWhen(api, task_id, "Stopped", 60_000);
		assert.deepEqual(
			batchtask.task_progress,
			counters({ stopped: 12_000, fail: 1 }),
		);
		await rowsFit(task_id);
		await rowsFit(task_id);
		await api.deleteTask(task_id);
		await refused(api.getTask(task_id), 404, "IOTDA.014970");
	});

	test("a large task that is stopped, retried and confirmed piece by piece keeps its counters right", async () => {
		const space = await api.createResourceSpace({ app_name: "pieces" });
		const w = await makeTaskWorld(server, 0, space.app_id);
		const targets = await importDevices(api, w.product, 12_000);
		const group = await makeDynamicGroup(ofProduct(w), space.app_id);
		const { task_id } = await w.start({
			targets_filter: { group_ids: [group] },
			need_confirm: true,
			task_policy: { retry_count: 1, retry_interval: 5 },
		});
		await countersWhen(api, task_id, { waitting: 12_000 }, 60_000);
		await api.confirmTask(task_id, { targets: targets.slice(6_000, 6_100) });
		await countersWhen(api, task_id, { waitting: 11_900, processing: 100 });
		await api.confirmTask(task_id);
		await countersWhen(api, task_id, { processing: 12_000 }, 60_000);
		clock.pass({ hours: 25 });
		await countersWhen(api, task_id, { fail_wait_retry: 12_000 }, 60_000);
		await api.retryTask(task_id);
		const last = targets.slice(-100);
		assert.deepEqual(
			(await api.stopTask(task_id, { targets: last })).targets,
			allDone(last),
		);
		await countersWhen(
			api,
			task_id,
			{ processing: 11_900, stopped: 100 },
			60_000,
		);
		await rowsFit(task_id);
		await api.deleteDevice(targets[11_000] ?? "");
		await api.stopTask(task_id);
		// While it is being stopped, and after it, nothing else can be asked of it.
		await refused(api.stopTask(task_id), 403, "IOTDA.014971");
		await refused(api.confirmTask(task_id), 403, "IOTDA.014971");
		await refused(api.retryTask(task_id), 403, "IOTDA.014971");
		const { batchtask } = await taskWhen(api, task_id, "Stopped", 60_000);
		assert.deepEqual(
			batchtask.task_progress,
			counters({ stopped: 11_999, removed: 1 }),
		);
		await rowsFit(task_id);
	});

	test("a restart in the middle of the expansion loses and doubles nobody", async () => {
		const space = await api.createResourceSpace({ app_name: "restart" });
		const w = await makeTaskWorld(server, 0, space.app_id);
		const targets = await importDevices(api, w.product, 12_000);
		const group = await makeDynamicGroup(ofProduct(w), space.app_id);
		const some = await makeStaticGroup(targets.slice(5_998, 6_002), {
			app_id: space.app_id,
		});
		const grouped = await onGroups(w, group, some);
		await server.restart();
		await countersWhen(api, grouped.task_id, { processing: 12_000 }, 60_000);
		await api.stopTask(grouped.task_id);
		await taskWhen(api, grouped.task_id, "Stopped", 60_000);
		const listed = await w.start({ targets });
		await server.restart();
		await countersWhen(api, listed.task_id, { processing: 12_000 }, 60_000);
		await api.stopTask(listed.task_id);
		await server.restart();
		const { batchtask } = await taskWhen(
			api,
			listed.task_id,
			"Stopped",
			60_000,
		);
		assert.deepEqual(batchtask.task_progress, counters({ stopped: 12_000 }));
		await rowsFit(listed.task_id);
		await rowsFit(grouped.task_id);
	});

	/** Keeps the task as it is, until an operation that waits for its expansion has given up waiting. */
	async function holdTask(taskId: string): Promise<void> {
		await inTransaction(server.server.db, async (trx) => {
			await lockForUpdate(
				trx,
				trx
					.selectFrom("upgrade_tasks")
					.selectAll()
					.where("task_id", "=", taskId),
			).execute();
			await new Promise((resolve) => setTimeout(resolve, 5_300));
		});
	}

	test("a stop in the middle of the expansion leaves the rest of a group out", async () => {
		const space = await api.createResourceSpace({ app_name: "middle" });
		const w = await makeTaskWorld(server, 0, space.app_id);
		await importDevices(api, w.product, 12_000);
		// So costly to decide that it takes many small steps.
		const rule = Array.from({ length: 28 }, (_, i) => `tag.t${i} is null`).join(
			" and ",
		);
		const group = await makeDynamicGroup(rule, space.app_id);
		const { task_id } = await onGroups(w, group);
		await until(
			() => api.getTask(task_id),
			({ batchtask }) => batchtask.task_progress.total > 0,
		);
		const held = holdTask(task_id);
		const { targets: stopped } = await api.stopTask(task_id);
		await held;
		assert.equal(stopped.length, 100);
		const { batchtask } = await taskWhen(api, task_id, "Stopped");
		const { total } = batchtask.task_progress;
		assert.ok(total < 12_000, `it was over already: ${total}`);
		assert.deepEqual(batchtask.task_progress, counters({ stopped: total }));
		await rowsFit(task_id);
		await server.restart();
		assert.deepEqual(
			(await api.getTask(task_id)).batchtask.task_progress,
			counters({ stopped: total }),
		);
	});

	test("a stop in the middle of the expansion of a list stops all that were named", async () => {
		const w = await makeTaskWorld(server, 0);
		const targets = await importDevices(api, w.product, 12_000);
		const { task_id } = await w.start({
			targets: [...targets, ...targets.slice(0, 3_000), "nobody"],
			targets_filter: { group_ids: ["a1"] },
		});
		const held = holdTask(task_id);
		const { targets: stopped } = await api.stopTask(task_id);
		await held;
		assert.ok(stopped.every(({ status }) => status === "success"));
		const { batchtask } = await taskWhen(api, task_id, "Stopped", 60_000);
		assert.deepEqual(
			batchtask.task_progress,
			counters({ stopped: 12_000, fail: 1 }),
		);
		await rowsFit(task_id);
		assert.deepEqual(
			allDone(targets.slice(0, 100)).slice(0, stopped.length),
			stopped,
		);
	});
});
