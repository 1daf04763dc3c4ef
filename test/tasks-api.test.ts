/** Batch tasks as callers of the management API meet them. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { wireTime } from "../wire/envelope.ts";
import type { CreateTask, Task } from "../wire/tasks.ts";
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
import {
	allDone,
	counters,
	countersWhen,
	detailOf,
	failInstalling,
	makeTaskWorld,
	notDone,
	succeed,
	taskWhen,
} from "./support/task-world.ts";

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
			"neither targets nor groups",
			() => field("targets", undefined),
			400,
			"IOTDA.000006",
			"targets must be given, or targets_filter",
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
			"a batch file, which does not go with upgrades",
			() => field("document_source", "f"),
			400,
			"IOTDA.000006",
			"document_source",
		],
		[
			"a batch file beside everything else",
			() => ({ ...field("document_source", "f"), targets: undefined }),
			400,
			"IOTDA.000006",
			"document_source",
		],
		["a list in place of the body", () => [good()], 400, "IOTDA.000006", ""],
	];
	/** Values that a field does not take, and what the refusal says of it. */
	const badValues: [name: string, rule: string, values: unknown[]][] = [
		["need_confirm", "must be true or false", ["true", 1, 0, null, [], {}]],
		[
			"task_mode",
			"must be one of GATEWAY",
			["gateway", "DIRECT", "", 1, null, ["GATEWAY"]],
		],
		[
			"task_ext_info",
			"must be an object",
			["text", "", 7, true, null, [], [{ a: 1 }]],
		],
		[
			"task_ext_info",
			"must be at most 512 characters as JSON",
			[{ a: "x".repeat(505) }, { a: "𝄞".repeat(505) }, { a: '"'.repeat(253) }],
		],
		["task_policy", "must be an object", ["now", 5, true, null, []]],
		[
			"task_policy.schedule_time",
			"must be a string",
			[20300101, null, {}, true],
		],
		[
			"task_policy.retry_count",
			"must be a whole number from 1 to 5",
			[0, -1, 6].map((retry_count) => ({ retry_count, retry_interval: 5 })),
		],
		[
			"task_policy.retry_count",
			"must be a whole number",
			[1.5, "2", null, true, [1]].map((retry_count) => ({
				retry_count,
				retry_interval: 5,
			})),
		],
		[
			"task_policy.retry_interval",
			"must be a whole number of minutes from 1 to 1440",
			[0, -5, 1441].map((retry_interval) => ({
				retry_count: 1,
				retry_interval,
			})),
		],
		[
			"task_policy.retry_interval",
			"must be a whole number",
			[0.5, "5", null, false].map((retry_interval) => ({
				retry_count: 1,
				retry_interval,
			})),
		],
		[
			"task_policy.retry_interval",
			"must be given with task_policy.retry_count",
			[{ retry_count: 1 }],
		],
		[
			"task_policy.retry_count",
			"must be given with task_policy.retry_interval",
			[{ retry_interval: 5 }],
		],
		["targets_filter", "must be an object", ["a1", 7, null, [], ["a1"]]],
		["targets_filter.group_ids", "is required", [{}, { groups: ["a1"] }]],
		[
			"targets_filter.group_ids",
			"must be a list",
			["a1", null, { 0: "a1" }].map((group_ids) => ({ group_ids })),
		],
		[
			"targets_filter.group_ids",
			"must be a list of 1 to 100 group ids",
			[
				{ group_ids: [] },
				{ group_ids: Array.from({ length: 101 }, (_, i) => i.toString(16)) },
			],
		],
		[
			"targets_filter.group_ids[1]",
			"must be 1 to 36 characters: hex digits and -",
			["", "xyz", "a 1", "a".repeat(37)].map((id) => ({
				group_ids: ["b2", id],
			})),
		],
		[
			"targets_filter.group_ids[1]",
			"must be a string",
			[7, null, ["a1"]].map((id) => ({ group_ids: ["b2", id] })),
		],
		[
			"targets_filter.group_ids",
			"must not name a group twice",
			[{ group_ids: ["a1", "b2", "a1"] }],
		],
	];
	for (const [name, rule, values] of badValues) {
		const [outer = ""] = name.split(".");
		for (const given of values) {
			const value =
				name.startsWith("task_policy.schedule_time") && outer === "task_policy"
					? { schedule_time: given }
					: given;
			misfits.push([
				`${name} ${JSON.stringify(given).slice(0, 60)}`,
				() => ({
					...field(outer, value),
					...(outer === "targets_filter" ? { targets: undefined } : {}),
				}),
				400,
				"IOTDA.000006",
				`${name} ${rule}`,
			]);
		}
	}
	for (const text of [
		"",
		"now",
		"2030-01-01T00:00:00Z",
		"20300101T000000",
		"20300101T000000z",
		"20300101 000000Z",
		"20300101T000000.000Z",
		"20300101T000000+0800",
		"20300230T000000Z",
		"20301301T000000Z",
		"20300101T240000Z",
		"20300101T006000Z",
		" 20300101T000000Z",
	])
		misfits.push([
			`a schedule for "${text}"`,
			() => field("task_policy", { schedule_time: text }),
			400,
			"IOTDA.000009",
			"task_policy.schedule_time must be a time such as 20230211T121212Z",
		]);
	misfits.push([
		"a schedule in eight days",
		() =>
			field("task_policy", {
				schedule_time: wireTime(new Date(Date.now() + 8 * 86_400_000)),
			}),
		400,
		"IOTDA.000009",
		"task_policy.schedule_time must be within seven days",
	]);
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

	test("each call asks for its own action", () => {
		const declared = server.server.routes
			.filter(({ path }) => /^\/v5\/.*\/batchtasks/.test(path))
			.map(({ method, action, level }) => `${method} ${action} ${level}`)
			.filter((text) => !text.startsWith("HEAD"))
			.sort();
		assert.deepEqual(declared, [
			"DELETE iotda:batchtasks:delete Write",
			"GET iotda:batchtasks:query Read",
			"GET iotda:batchtasks:queryList List",
			"POST iotda:batchtasks:confirm Write",
			"POST iotda:batchtasks:create Write",
			"POST iotda:batchtasks:retry Write",
			"POST iotda:batchtasks:stop Write",
		]);
	});

	test("what is shown of a task has every field exactly as it was sent", async () => {
		const { api } = server;
		const w = await makeTaskWorld(server, 2);
		const sent = {
			app_id: w.product.app_id ?? "",
			task_name: "全部_fields_1",
			task_type: "softwareUpgrade",
			task_mode: "GATEWAY",
			need_confirm: true,
			task_ext_info: {
				z: 1,
				a: { deep: [1.5, null, "日本語 𝄞", false, {}], "": "" },
				quoted: 'say "hi"\\\n',
			},
			targets: [...w.deviceIds, w.deviceIds[0] ?? "", "nobody"],
			targets_filter: { group_ids: ["00000000-dead-BEEF-0000-000000000000"] },
			document: {
				package_ids: [
					(
						await makePackage(api, w.product, {
							package_type: "softwarePackage",
						})
					).package_id,
				],
			},
			task_policy: {
				schedule_time: wireTime(new Date(Date.now() + 3_600_000)),
				retry_count: 5,
				retry_interval: 1440,
			},
		} satisfies CreateTask;
		const created = await api.createTask(sent);
		const shown = (await taskWhen(api, created.task_id, "Waitting")).batchtask;
		const listed = (
			await api.listTasks({ task_type: "softwareUpgrade", limit: 1 })
		).batchtasks[0];
		const { app_id: _notShown, ...echoed } = sent;
		for (const answer of [created, shown, listed]) {
			const { task_id, status, task_progress, create_time, ...rest } =
				answer as Task;
			assert.equal(task_id, created.task_id);
			assert.equal(create_time, created.create_time);
			assert.deepEqual(rest, echoed);
			assert.equal(
				JSON.stringify(rest.task_ext_info),
				JSON.stringify(sent.task_ext_info),
			);
			assert.ok(status === "Initializing" || task_progress.total === 3);
		}
		assert.deepEqual(
			shown.task_progress,
			counters({ waitting: 2, fail: 1 }),
			"a device that is named twice counts once",
		);
		await api.stopTask(created.task_id);
	});

	test("empty objects come back empty, and what was not sent is left out", async () => {
		const { api } = server;
		const task = await api.createTask({
			...(good() as CreateTask),
			need_confirm: false,
			task_policy: {},
			task_ext_info: {},
		});
		assert.deepEqual([task.task_policy, task.task_ext_info], [{}, {}]);
		assert.equal(task.need_confirm, false);
		assert.equal("task_mode" in task || "targets_filter" in task, false);
		const { batchtask } = await taskWhen(api, task.task_id, "Fail");
		assert.deepEqual(
			[batchtask.task_policy, batchtask.task_ext_info],
			[{}, {}],
		);
	});

	test("unknown keys in what is sent change nothing", async () => {
		const task = await server.api.call<Task>("POST", tasks(), {
			json: {
				...good(),
				status: "Success",
				colour: "red",
				document: { package_ids: [packageId], version: "v9" },
				task_policy: { retry_count: 1, retry_interval: 1, forever: true },
			},
		});
		assert.equal(task.status, "Initializing");
		assert.equal("colour" in task, false);
		assert.deepEqual(
			task.document,
			{ package_ids: [packageId], version: "v9" },
			"a document is echoed as it was sent",
		);
		await taskWhen(server.api, task.task_id, "Fail");
	});

	test("extension data of 512 characters as JSON is taken, counted in code points", async () => {
		const { api } = server;
		for (const text of ["x".repeat(504), "𝄞".repeat(504), '"'.repeat(252)]) {
			const task = await api.createTask({
				...(good() as CreateTask),
				task_ext_info: { a: text },
			});
			assert.deepEqual(task.task_ext_info, { a: text });
		}
	});

	test("the bounds of the retry policy are taken", async () => {
		for (const [retry_count, retry_interval] of [
			[1, 1],
			[5, 1440],
		] as const) {
			const task = await server.api.createTask({
				...(good() as CreateTask),
				task_policy: { retry_count, retry_interval },
			});
			assert.deepEqual(task.task_policy, { retry_count, retry_interval });
			await taskWhen(server.api, task.task_id, "Fail");
		}
	});

	test("of targets and groups given together only the targets take effect", async () => {
		const w = await makeTaskWorld(server, 1);
		const task = await w.start({
			targets: w.deviceIds,
			targets_filter: { group_ids: ["00000000"] },
		});
		await using device = await w.connect(0);
		await succeed(device);
		const { batchtask } = await taskWhen(w.api, task.task_id, "Success");
		assert.equal(batchtask.task_progress.total, 1);
		assert.deepEqual(batchtask.targets_filter, { group_ids: ["00000000"] });
	});

	test("a task without a space is one of the default space, and its packages too", async () => {
		const { api, credentials } = server;
		const space = await api.createResourceSpace({ app_name: "elsewhere" });
		const elsewhere = await makeTaskWorld(server, 1, space.app_id);
		await refused(
			api.createTask({
				task_name: "default",
				task_type: "firmwareUpgrade",
				targets: elsewhere.deviceIds,
				document: { package_ids: [elsewhere.packageId] },
			}),
			400,
			"IOTDA.014960",
			"document.package_ids[0]",
		);
		await refused(
			elsewhere.start({ document: { package_ids: [packageId] } }),
			400,
			"IOTDA.014960",
			"document.package_ids[0]",
		);
		const task = await api.createTask(good() as CreateTask);
		const listed = await api.listTasks({
			task_type: "firmwareUpgrade",
			app_id: credentials.app_id,
			limit: 1,
		});
		assert.equal(listed.batchtasks[0]?.task_id, task.task_id);
		assert.equal(
			(
				await api.listTasks({
					task_type: "firmwareUpgrade",
					app_id: space.app_id ?? "",
				})
			).page.count,
			0,
		);
	});

	const operate = (operation: string, taskId: string, json?: unknown) =>
		server.api.call("POST", `${tasks()}/${taskId}/${operation}`, { json });

	for (const operation of ["retry", "stop", "confirm"]) {
		test(`${operation} takes 1 to 100 device ids or none, and names what does not fit`, async () => {
			const w = await makeTaskWorld(server, 1);
			const { task_id } = await w.start();
			const before = await countersWhen(w.api, task_id, { processing: 1 });
			const list = "targets must be a list of 1 to 100 device ids";
			for (const [targets, words] of [
				[[], list],
				[Array.from({ length: 101 }, (_, i) => `d${i}`), list],
				["nobody", "targets must be a list"],
				[{}, "targets must be a list"],
				[null, "targets must be a list"],
				[7, "targets must be a list"],
				[[7], "targets[0]"],
				[[null], "targets[0]"],
				[["ok", ""], "targets[1]"],
				[["ok", "a/b"], "targets[1]"],
				[["x".repeat(129)], "targets[0]"],
				[[["ok"]], "targets[0]"],
			] as const)
				await refused(
					operate(operation, task_id, { targets }),
					400,
					"IOTDA.000006",
					words,
				);
			for (const body of [[], "x", 7, null])
				await refused(operate(operation, task_id, body), 400, "IOTDA.000006");
			await refused(
				server.api.call("POST", `${tasks()}/${task_id}/${operation}`, {
					body: "{",
					headers: { "content-type": "application/json" },
				}),
				400,
				"IOTDA.000008",
			);
			assert.deepEqual(await w.api.getTask(task_id), before);
			await w.api.stopTask(task_id);
		});
	}

	test("a call on an unknown task is a 404, on what cannot be an id a 400", async () => {
		const { api } = server;
		const unknown = "0".repeat(24);
		for (const taskId of [unknown, "a", "0123456789abcdef01234567"])
			for (const call of [
				() => api.getTask(taskId),
				() => api.deleteTask(taskId),
				() => api.stopTask(taskId),
				() => api.retryTask(taskId),
				() => api.confirmTask(taskId),
				() => api.stopTask(taskId, { targets: ["nobody"] }),
				() => api.retryTask(taskId, { targets: ["nobody"] }),
				() => api.confirmTask(taskId, { targets: ["nobody"] }),
			])
				await refused(
					call(),
					404,
					"IOTDA.014970",
					"The batch task does not exist.",
				);
		for (const taskId of ["XYZ", "0".repeat(25), "ABCDEF", "a.b", "a%20b"])
			for (const [method, rest] of [
				["GET", ""],
				["DELETE", ""],
				["POST", "/stop"],
				["POST", "/retry"],
				["POST", "/confirm"],
			] as const)
				await refused(
					api.call(method, `${tasks()}/${taskId}${rest}`, {
						...(method === "POST" ? { json: {} } : {}),
					}),
					400,
					"IOTDA.000006",
					"task_id",
				);
	});

	test("a task of another project is unknown", async () => {
		const { task_id } = await server.api.createTask(good() as CreateTask);
		await refused(
			server.api.call("GET", `/v5/iot/${"0".repeat(32)}/batchtasks/${task_id}`),
			403,
			"IOTDA.000022",
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

	test("the list filters by each status, and lists what show shows", async () => {
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "statuses" });
		const w = await makeTaskWorld(server, 4, space.app_id);
		const [good, idle, stopped] = w.deviceIds as [string, string, string];
		await using device = await w.connect(0);
		const success = await w.start({ targets: [good] });
		await succeed(device);
		await taskWhen(api, success.task_id, "Success");
		const partial = await w.start({ targets: [good, "nobody"] });
		await succeed(device);
		const tasks: Record<string, string> = {
			Success: success.task_id,
			PartialSuccess: partial.task_id,
			Fail: (await w.start({ targets: ["nobody"] })).task_id,
			Processing: (await w.start({ targets: [idle] })).task_id,
			Stopped: (await w.start({ targets: [stopped] })).task_id,
			Waitting: (await w.start({ need_confirm: true })).task_id,
		};
		await api.stopTask(tasks.Stopped ?? "");
		for (const [status, taskId] of Object.entries(tasks)) {
			const { batchtask } = await taskWhen(api, taskId, status);
			const { batchtasks, page } = await api.listTasks({
				task_type: "firmwareUpgrade",
				app_id: space.app_id ?? "",
				status: status as never,
			});
			assert.deepEqual(batchtasks, [batchtask], status);
			assert.deepEqual(page, { count: 1, marker: page.marker });
		}
		for (const status of ["Initializing", "Stopping"] as const)
			assert.deepEqual(
				await api.listTasks({
					task_type: "firmwareUpgrade",
					app_id: space.app_id ?? "",
					status,
				}),
				{ batchtasks: [], page: { count: 0 } },
			);
	});

	test("the details of a task filter by each status, by target, and page", async () => {
		const { api } = server;
		const w = await makeTaskWorld(server, 6);
		const [done, again, idle, stopped, deleted, held] = w.deviceIds as [
			string,
			string,
			string,
			string,
			string,
			string,
		];
		await using first = await w.connect(0);
		await using second = await w.connect(1);
		const { task_id } = await w.start({
			targets: [...w.deviceIds, "nobody"],
			need_confirm: true,
			task_policy: { retry_count: 1, retry_interval: 60 },
		});
		await api.confirmTask(task_id, {
			targets: [done, again, idle, stopped, deleted],
		});
		await Promise.all([succeed(first), failInstalling(second)]);
		await api.stopTask(task_id, { targets: [stopped] });
		await api.deleteDevice(deleted);
		const statuses = {
			Success: done,
			FailWaitRetry: again,
			Processing: idle,
			Stopped: stopped,
			Removed: deleted,
			Waitting: held,
			Fail: "nobody",
		} as const;
		const { batchtask, task_details, page } = await countersWhen(api, task_id, {
			success: 1,
			fail_wait_retry: 1,
			processing: 1,
			stopped: 1,
			removed: 1,
			waitting: 1,
			fail: 1,
		});
		assert.equal(batchtask.status, "Processing");
		assert.deepEqual(
			task_details.map(({ target, status }) => [status, target]),
			Object.entries(statuses).reverse(),
			"the last of the list first",
		);
		assert.equal(page.count, 7);
		const detailsOf = new Map(
			task_details.map((detail) => [detail.target, detail]),
		);
		assert.deepEqual(
			[...detailsOf.values()]
				.filter(({ error }) => error)
				.map(({ target }) => target),
			["nobody", again],
		);
		for (const [status, target] of Object.entries(statuses)) {
			const expected = [detailsOf.get(target)];
			const filtered = await api.getTask(task_id, {
				task_detail_status: status as never,
			});
			assert.deepEqual(filtered.task_details, expected, status);
			assert.equal(filtered.page.count, 1);
			assert.deepEqual(filtered.batchtask, batchtask);
			for (const other of Object.keys(statuses)) {
				const both = await api.getTask(task_id, {
					task_detail_status: other as never,
					target,
				});
				assert.deepEqual(both.task_details, other === status ? expected : []);
				assert.equal(both.page.count, other === status ? 1 : 0);
			}
			assert.deepEqual(await detailOf(api, task_id, target), expected[0]);
		}
		assert.deepEqual(
			(await api.getTask(task_id, { target: "stranger" })).page,
			{ count: 0 },
		);

		const targets = task_details.map(({ target }) => target);
		const pages = [
			await api.getTask(task_id, { limit: 3 }),
			await api.getTask(task_id, { limit: 3, offset: 3 }),
			await api.getTask(task_id, { limit: 3, offset: 6 }),
		];
		assert.deepEqual(
			pages.flatMap((page) => page.task_details.map(({ target }) => target)),
			targets,
		);
		assert.deepEqual(
			pages.map(({ page }) => page.count),
			[7, 7, 7],
		);
		const after = await api.getTask(task_id, {
			limit: 3,
			marker: pages[0]?.page.marker ?? "",
			offset: 1,
		});
		assert.deepEqual(
			after.task_details.map(({ target }) => target),
			targets.slice(4, 7),
		);
		assert.deepEqual((await api.getTask(task_id, { offset: 7 })).page, {
			count: 7,
		});
		await api.stopTask(task_id);
	});

	test("what a query of tasks or details does not take is refused by name", async () => {
		const { api } = server;
		const { task_id } = await api.createTask(good() as CreateTask);
		const list = (query: Record<string, string>) =>
			api.call("GET", tasks(), {
				query: { task_type: "firmwareUpgrade", ...query },
			});
		const show = (query: Record<string, string>) =>
			api.call("GET", `${tasks()}/${task_id}`, { query });
		for (const call of [list, show]) {
			for (const limit of ["0", "51", "-1", "ten", "1.5", ""])
				await refused(call({ limit }), 400, "IOTDA.000017", "limit");
			for (const marker of ["zz", "f".repeat(23), "f".repeat(25), ""])
				await refused(call({ marker }), 400, "IOTDA.000018", "marker");
			for (const offset of ["-1", "501", "x", "1.5"])
				await refused(call({ offset }), 400, "IOTDA.000006", "offset");
		}
		for (const status of ["Waiting", "success", "", "Removed"])
			await refused(list({ status }), 400, "IOTDA.000006", "status");
		for (const type of ["", "upgrade", "FirmwareUpgrade"])
			await refused(
				list({ task_type: type }),
				400,
				"IOTDA.000006",
				"task_type",
			);
		await refused(list({ app_id: "a b" }), 400, "IOTDA.000006", "app_id");
		await refused(list({ app_id: "unknown" }), 403, "IOTDA.001000");
		for (const status of ["Waiting", "fail", "", "PartialSuccess"])
			await refused(
				show({ task_detail_status: status }),
				400,
				"IOTDA.000006",
				"task_detail_status",
			);
		for (const target of ["a/b", "", "x".repeat(129)])
			await refused(show({ target }), 400, "IOTDA.000006", "target");
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

	test("thirty thousand targets with the longest ids are taken, and shown as they came", async () => {
		const { api } = server;
		const targets = Array.from(
			{ length: 30_000 },
			(_, index) => `${"x".repeat(122)}-${10_000 + (index % 29_990)}`,
		);
		const task = await api.createTask({
			task_name: "most",
			task_type: "firmwareUpgrade",
			targets,
			document: { package_ids: [packageId] },
		});
		const { batchtask } = await taskWhen(api, task.task_id, "Fail", 60_000);
		assert.deepEqual(batchtask.targets, targets);
		assert.deepEqual(batchtask.task_progress, counters({ fail: 29_990 }));
		await api.deleteTask(task.task_id);
		await refused(api.getTask(task.task_id), 404, "IOTDA.014970");
	});

	test("how many targets a task may list is a setting", async () => {
		for (const limit of [3, 30_001]) {
			await using other = await startServer(engine, {
				env: { OTARU_TASK_TARGETS_LIMIT: String(limit) },
			});
			const w = await makeTaskWorld(other, 0);
			const targets = Array.from({ length: limit + 1 }, (_, i) => `d${i}`);
			await refused(
				w.start({ targets }),
				400,
				"IOTDA.000006",
				`targets must be a list of 1 to ${limit} device ids`,
			);
			const task = await w.start({ targets: targets.slice(1) });
			const { batchtask } = await taskWhen(w.api, task.task_id, "Fail", 60_000);
			assert.equal(batchtask.task_progress.total, limit);
		}
	});

	test("a stop of some targets, or of a whole task, says what became of each", async () => {
		const w = await makeTaskWorld(server, 3);
		const [first = "", second = "", third = ""] = w.deviceIds;
		const { task_id } = await w.start({
			targets: [...w.deviceIds, "nobody"],
			need_confirm: true,
		});
		assert.deepEqual(
			(
				await w.api.stopTask(task_id, {
					targets: [second, "nobody", second, "stranger"],
				})
			).targets,
			[...allDone([second]), notDone("nobody"), notDone("stranger")],
		);
		assert.deepEqual(
			(await w.api.stopTask(task_id, { targets: [second] })).targets,
			[notDone(second)],
		);
		assert.deepEqual(
			(await w.api.stopTask(task_id)).targets,
			allDone([first, third]),
		);
		const { batchtask } = await taskWhen(w.api, task_id, "Stopped");
		assert.deepEqual(
			batchtask.task_progress,
			counters({ stopped: 3, fail: 1 }),
		);
	});
});
