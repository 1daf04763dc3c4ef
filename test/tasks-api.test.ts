/** Batch tasks as callers of the management API meet them. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

forEachEngine((engine) => {
	let server: TestServer;
	let packageId: string;
	let softwareId: string;
	before(async () => {
		server = await startServer(engine);
		const product = await makeProduct(server.api);
		packageId = (await makePackage(server.api, product)).package_id ?? "";
		softwareId =
			(
				await makePackage(server.api, product, {
					package_type: "softwarePackage",
				})
			).package_id ?? "";
	});
	after(() => server[Symbol.asyncDispose]());

	const tasks = () => `/v5/iot/${server.api.projectId}/batchtasks`;
	const good = () => ({
		task_name: "任务_1",
		task_type: "firmwareUpgrade",
		targets: ["nobody"],
		document: { package_ids: [packageId] },
	});
	const countTasks = async () =>
		(await server.api.listTasks({ task_type: "firmwareUpgrade" })).page.count +
		(await server.api.listTasks({ task_type: "softwareUpgrade" })).page.count +
		(await server.api.listTasks({ task_type: "moduleUpgrade" })).page.count;

	test("a task answers with exactly the vendor's fields", async () => {
		const task = await server.api.call<Record<string, unknown>>(
			"POST",
			tasks(),
			{ json: good() },
		);
		assert.deepEqual(Object.keys(task).sort(), [
			"create_time",
			"document",
			"need_confirm",
			"status",
			"targets",
			"task_id",
			"task_name",
			"task_progress",
			"task_type",
		]);
		assert.equal(task.status, "Initializing");
		assert.match(String(task.create_time), /^\d{8}T\d{6}Z$/);
		assert.deepEqual(task.document, { package_ids: [packageId] });
		const shown = await until(
			() => server.api.getTask(String(task.task_id)),
			({ batchtask }) => batchtask.status === "Fail",
		);
		assert.deepEqual(shown.task_details, [
			{
				target: "nobody",
				status: "Fail",
				error: {
					error_code: "IOTDA.014979",
					error_msg: "The device does not exist.",
				},
			},
		]);
	});

	const field = (name: string, value: unknown) => ({
		...good(),
		[name]: value,
	});
	const document = (value: unknown) => field("document", value);
	const misfits: [
		title: string,
		body: () => unknown,
		status: number,
		code: string,
		words: string,
	][] = [
		[
			"no name",
			() => field("task_name", undefined),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"an empty name",
			() => field("task_name", ""),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"a name of 129 characters",
			() => field("task_name", "x".repeat(129)),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"a name with a blank",
			() => field("task_name", "two words"),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"a name with a hyphen",
			() => field("task_name", "a-b"),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"a name that is a number",
			() => field("task_name", 7),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"a name that is null",
			() => field("task_name", null),
			400,
			"IOTDA.000006",
			"task_name",
		],
		[
			"no type",
			() => field("task_type", undefined),
			400,
			"IOTDA.000006",
			"task_type",
		],
		[
			"an unknown type",
			() => field("task_type", "firmwareupgrade"),
			400,
			"IOTDA.000006",
			"task_type",
		],
		[
			"a type that upgrades nothing",
			() => field("task_type", "createDevices"),
			403,
			"IOTDA.014972",
			"task_type",
		],
		[
			"no targets",
			() => field("targets", undefined),
			400,
			"IOTDA.000006",
			"targets",
		],
		[
			"an empty list of targets",
			() => field("targets", []),
			400,
			"IOTDA.000006",
			"targets",
		],
		[
			"30,001 targets",
			() =>
				field(
					"targets",
					Array.from({ length: 30_001 }, (_, i) => `d${i}`),
				),
			400,
			"IOTDA.000006",
			"targets",
		],
		[
			"a target of 129 characters",
			() => field("targets", ["ok", "x".repeat(129)]),
			400,
			"IOTDA.000006",
			"targets[1]",
		],
		[
			"a target with a slash",
			() => field("targets", ["a/b"]),
			400,
			"IOTDA.000006",
			"targets[0]",
		],
		[
			"a target that is a number",
			() => field("targets", [1]),
			400,
			"IOTDA.000006",
			"targets[0]",
		],
		[
			"targets that are a text",
			() => field("targets", "nobody"),
			400,
			"IOTDA.000006",
			"targets",
		],
		["no document", () => document(undefined), 400, "IOTDA.000006", "document"],
		[
			"an empty document",
			() => document({}),
			400,
			"IOTDA.000006",
			"document.package_ids",
		],
		[
			"no package",
			() => document({ package_ids: [] }),
			400,
			"IOTDA.000006",
			"document.package_ids",
		],
		[
			"eleven packages",
			() =>
				document({
					package_ids: Array.from({ length: 11 }, (_, i) => `p${i}`),
				}),
			400,
			"IOTDA.000006",
			"document.package_ids",
		],
		[
			"a package twice",
			() => document({ package_ids: [packageId, packageId] }),
			400,
			"IOTDA.000006",
			"document.package_ids",
		],
		[
			"an unknown package",
			() => document({ package_ids: ["unknown"] }),
			400,
			"IOTDA.014960",
			"document.package_ids[0]",
		],
		[
			"a package of another type",
			() => document({ package_ids: [softwareId] }),
			400,
			"IOTDA.000006",
			"firmwarePackage",
		],
		[
			"both forms of the package",
			() => document({ package_ids: [packageId], package_id: packageId }),
			400,
			"IOTDA.000006",
			"document.package_id",
		],
		[
			"an unknown space",
			() => field("app_id", "unknown"),
			403,
			"IOTDA.001000",
			"",
		],
		[
			"a space with a bad character",
			() => field("app_id", "a b"),
			400,
			"IOTDA.000006",
			"app_id",
		],
		[
			"a flag that is a text",
			() => field("need_confirm", "true"),
			400,
			"IOTDA.000006",
			"need_confirm",
		],
		[
			"confirmation, which is not offered",
			() => field("need_confirm", true),
			400,
			"IOTDA.000006",
			"need_confirm",
		],
		[
			"a schedule, which is not offered",
			() => field("task_policy", { schedule_time: "20260101T000000Z" }),
			400,
			"IOTDA.000006",
			"task_policy",
		],
		[
			"groups, which are not offered",
			() => field("targets_filter", { group_ids: ["g"] }),
			400,
			"IOTDA.000006",
			"targets_filter",
		],
		[
			"gateway mode, which is not offered",
			() => field("task_mode", "GATEWAY"),
			400,
			"IOTDA.000006",
			"task_mode",
		],
		[
			"extension data, which is not offered",
			() => field("task_ext_info", {}),
			400,
			"IOTDA.000006",
			"task_ext_info",
		],
		[
			"a batch file, which does not go with upgrades",
			() => field("document_source", "f"),
			400,
			"IOTDA.000006",
			"document_source",
		],
		["a list in place of the body", () => [good()], 400, "IOTDA.000006", ""],
	];
	for (const [title, body, status, code, words] of misfits) {
		test(`a task with ${title} is refused and leaves nothing`, async () => {
			const before = await countTasks();
			await refused(
				server.api.call("POST", tasks(), { json: body() }),
				status,
				code,
				words,
			);
			assert.equal(await countTasks(), before);
		});
	}

	test("a task without a body, or with one that is no JSON, is refused", async () => {
		await refused(server.api.call("POST", tasks()), 400, "IOTDA.000006");
		await refused(
			server.api.call("POST", tasks(), {
				body: "{",
				headers: { "content-type": "application/json" },
			}),
			400,
			"IOTDA.000008",
		);
	});

	test("packages of one task must agree in product, module and version", async () => {
		const { api } = server;
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		await makeModule(api, product, "Modem");
		const module = (
			module_name: string,
			version: string,
			sources: string[] = [],
		) =>
			makePackage(api, product, {
				package_type: "modulePackage",
				module_name,
				version,
				support_source_versions: sources,
			});
		const [mcu, mcuFromOld, mcuNext, modem] = await Promise.all([
			module("MCU", "v2"),
			module("MCU", "v2", ["v1"]),
			module("MCU", "v3"),
			module("Modem", "v2"),
		]);
		const create = (...made: { package_id?: string }[]) =>
			api.createTask({
				task_name: "several",
				task_type: "moduleUpgrade",
				targets: ["nobody"],
				document: {
					package_ids: made.map(({ package_id }) => package_id ?? ""),
				},
			});
		await create(mcu, mcuFromOld);
		await refused(create(mcu, modem), 400, "IOTDA.000006", "module");
		await refused(create(mcu, mcuNext), 400, "IOTDA.000006", "version");
		const other = await makeProduct(api);
		await makeModule(api, other, "MCU");
		const foreign = await makePackage(api, other, {
			package_type: "modulePackage",
			module_name: "MCU",
			version: "v2",
		});
		await refused(create(mcu, foreign), 400, "IOTDA.000006", "product");
	});

	test("the older form of a single package is taken and echoed", async () => {
		const task = await server.api.createTask({
			task_name: "old",
			task_type: "firmwareUpgrade",
			targets: ["nobody"],
			document: { package_id: packageId },
		});
		assert.deepEqual(task.document, { package_id: packageId });
	});

	test("a package cannot be deleted while an unfinished task uses it, and can afterwards", async () => {
		const { api } = server;
		const product = await makeProduct(api);
		const made = await makePackage(api, product, {
			file_location: await upload(api),
		});
		const device = await makeDevice(api, product);
		const task = await api.createTask({
			task_name: "busy",
			task_type: "firmwareUpgrade",
			targets: [device.device_id ?? ""],
			document: { package_ids: [made.package_id ?? ""] },
		});
		await refused(
			api.deletePackage(made.package_id ?? ""),
			403,
			"IOTDA.014964",
		);
		await api.stopTask(task.task_id);
		await until(
			() => api.getTask(task.task_id),
			({ batchtask }) => batchtask.status === "Stopped",
		);
		await api.deletePackage(made.package_id ?? "");
		assert.equal(
			(await api.getTask(task.task_id)).batchtask.status,
			"Stopped",
			"the task's history stays",
		);
	});

	test("retry and confirm are refused by name, an unknown task with 404, a bad id with 400", async () => {
		const { task_id } = await server.api.createTask(good() as never);
		await refused(
			server.api.call("POST", `${tasks()}/${task_id}/retry`, { json: {} }),
			400,
			"IOTDA.000006",
			"retry",
		);
		await refused(
			server.api.call("POST", `${tasks()}/${task_id}/confirm`, { json: {} }),
			400,
			"IOTDA.000006",
			"confirm",
		);
		const unknown = "0".repeat(24);
		await refused(server.api.getTask(unknown), 404, "IOTDA.014970");
		await refused(server.api.deleteTask(unknown), 404, "IOTDA.014970");
		await refused(server.api.stopTask(unknown), 404, "IOTDA.014970");
		await refused(server.api.getTask("XYZ"), 400, "IOTDA.000006", "task_id");
		await refused(
			server.api.stopTask(unknown, { targets: [] }),
			400,
			"IOTDA.000006",
			"targets",
		);
	});

	test("the list needs a type, filters by space and status, and pages newest first", async () => {
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "tasks" });
		const product = await makeProduct(api, { app_id: space.app_id ?? "" });
		const made = await makePackage(api, product);
		const ids: string[] = [];
		for (let index = 0; index < 5; index++) {
			const task = await api.createTask({
				app_id: space.app_id ?? "",
				task_name: `t${index}`,
				task_type: "firmwareUpgrade",
				targets: ["nobody"],
				document: { package_ids: [made.package_id ?? ""] },
			});
			ids.unshift(task.task_id);
		}
		await refused(api.call("GET", tasks()), 400, "IOTDA.000006", "task_type");
		await refused(
			api.listTasks({
				task_type: "firmwareUpgrade",
				status: "Waiting" as never,
			}),
			400,
			"IOTDA.000006",
			"status",
		);
		await refused(
			api.listTasks({ task_type: "firmwareUpgrade", limit: 51 }),
			400,
			"IOTDA.000017",
		);
		await refused(
			api.listTasks({ task_type: "firmwareUpgrade", marker: "zz" }),
			400,
			"IOTDA.000018",
		);
		const query = {
			task_type: "firmwareUpgrade",
			app_id: space.app_id ?? "",
		} as const;
		const first = await api.listTasks({ ...query, limit: 2 });
		const second = await api.listTasks({
			...query,
			limit: 2,
			marker: first.page.marker ?? "",
		});
		const third = await api.listTasks({ ...query, limit: 2, offset: 4 });
		assert.deepEqual(
			[...first.batchtasks, ...second.batchtasks, ...third.batchtasks].map(
				(task) => task.task_id,
			),
			ids,
		);
		assert.deepEqual(
			[first.page.count, second.page.count, third.page.count],
			[5, 5, 5],
		);
		await until(
			() => api.listTasks({ ...query, status: "Fail" }),
			({ page }) => page.count === 5,
		);
		assert.deepEqual(
			(await api.listTasks({ ...query, status: "Success" })).page,
			{ count: 0 },
		);
		assert.equal(
			(
				await api.listTasks({
					task_type: "moduleUpgrade",
					app_id: space.app_id ?? "",
				})
			).page.count,
			0,
		);
	});

	test("the details of a task page and filter without counting", async () => {
		const { api } = server;
		const targets = Array.from(
			{ length: 2_345 },
			(_, index) => `missing-${index}`,
		);
		const task = await api.createTask({
			task_name: "many",
			task_type: "firmwareUpgrade",
			targets,
			document: { package_ids: [packageId] },
		});
		const shown = await until(
			() => api.getTask(task.task_id, { limit: 50 }),
			({ batchtask }) => batchtask.status === "Fail",
		);
		assert.deepEqual(shown.batchtask.targets, targets);
		assert.equal(shown.batchtask.task_progress.fail, 2_345);
		assert.equal(shown.page.count, 2_345);
		assert.deepEqual(
			shown.task_details.map(({ target }) => target),
			targets.slice(-50).reverse(),
		);
		const seen: string[] = [];
		let marker: string | undefined;
		do {
			const page = await api.getTask(task.task_id, {
				limit: 50,
				...(marker ? { marker } : {}),
			});
			seen.push(...page.task_details.map(({ target }) => target));
			marker = page.page.marker;
		} while (marker);
		assert.deepEqual(seen, [...targets].reverse());
		const one = await api.getTask(task.task_id, { target: "missing-7" });
		assert.deepEqual(
			one.task_details.map(({ target }) => target),
			["missing-7"],
		);
		assert.equal(one.page.count, 1);
		assert.equal(
			(
				await api.getTask(task.task_id, {
					target: "missing-7",
					task_detail_status: "Success",
				})
			).page.count,
			0,
		);
		assert.equal(
			(await api.getTask(task.task_id, { task_detail_status: "Fail" })).page
				.count,
			2_345,
		);
		assert.equal(
			(await api.getTask(task.task_id, { task_detail_status: "Waitting" }))
				.task_details.length,
			0,
		);
	});

	test("a stop right after the creation finds its targets", async () => {
		const { api } = server;
		const product = await makeProduct(api);
		const made = await makePackage(api, product);
		const devices = await Promise.all(
			Array.from({ length: 5 }, () => makeDevice(api, product)),
		);
		const targets = devices.map(({ device_id }) => device_id ?? "");
		const create = () =>
			api.createTask({
				task_name: "brief",
				task_type: "firmwareUpgrade",
				targets,
				document: { package_ids: [made.package_id ?? ""] },
			});
		const some = await create();
		assert.deepEqual(
			(await api.stopTask(some.task_id, { targets: targets.slice(0, 2) }))
				.targets,
			targets.slice(0, 2).map((target) => ({ target, status: "success" })),
		);
		await api.stopTask(some.task_id);
		const all = await create();
		assert.equal((await api.stopTask(all.task_id)).targets.length, 5);
		const shown = await until(
			() => api.getTask(all.task_id),
			({ batchtask }) => batchtask.status === "Stopped",
		);
		assert.equal(shown.batchtask.task_progress.stopped, 5);
	});

	test("the list of a type that upgrades nothing is empty", async () => {
		const { api } = server;
		assert.deepEqual(await api.listTasks({ task_type: "createDevices" }), {
			batchtasks: [],
			page: { count: 0 },
		});
	});

	test("thirty thousand targets are taken", async () => {
		const { api } = server;
		const targets = Array.from(
			{ length: 30_000 },
			(_, index) => `missing-${index}`,
		);
		const task = await api.createTask({
			task_name: "most",
			task_type: "firmwareUpgrade",
			targets,
			document: { package_ids: [packageId] },
		});
		const shown = await until(
			() => api.getTask(task.task_id),
			({ batchtask }) => batchtask.status === "Fail",
			60_000,
		);
		assert.equal(shown.batchtask.task_progress.total, 30_000);
	});
});
