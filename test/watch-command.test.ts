/** `otaru tasks` as a process of its own, against a server with devices. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import type { WatchEvent } from "../wire/history.ts";
import { until } from "./support/device.ts";
import { sqlite } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	countersWhen,
	failInstalling,
	makeTaskWorld,
	succeed,
	taskWhen,
} from "./support/task-world.ts";

describe("otaru tasks", () => {
	let server: TestServer;
	before(async () => {
		server = await startServer(sqlite);
	});
	after(() => server[Symbol.asyncDispose]());

	const otaru = (...args: string[]) =>
		new OtaruCommand(["tasks", ...args, "--data", server.config.dataDir]);

	const says = (command: OtaruCommand, text: string) =>
		until(
			async () => command.stdout + command.stderr,
			(said) => said.includes(text),
		);

	test("watch writes a line for everything that happens, and ends with 0 when all succeeded", async () => {
		const world = await makeTaskWorld(server, 2);
		await using first = await world.connect(0);
		await using second = await world.connect(1);
		const { task_id } = await world.start();
		await countersWhen(world.api, task_id, { processing: 2 });
		await using command = otaru("watch", task_id);
		await says(
			command,
			"upgrade: Processing · 0/2 · 0 succeeded · 2 under way",
		);
		await succeed(first);
		await says(command, `${first.deviceId}  succeeded: v2`);
		await second.next("version_query");
		await second.reportFirmware("v1");
		await says(command, `${second.deviceId}  offered v2`);
		await second.report(0, "v2");
		assert.equal(await command.ended, 0, command.stderr);
		const lines = command.stdout.trimEnd().split("\n");
		assert.equal(lines.at(-1), "upgrade: Success · 2/2 · 2 succeeded");
		assert.ok(
			lines.some((line) => line.endsWith("  the task is Success")),
			command.stdout,
		);
		assert.ok(!command.stdout.includes("\u001b"));
		assert.equal(command.stderr, "");
	});

	test("watch ends with 1 when a device failed, and says why", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		const { task_id } = await world.start();
		await using command = otaru("watch", task_id);
		await says(command, "upgrade: Processing");
		await failInstalling(device);
		assert.equal(await command.ended, 1, command.stderr);
		assert.match(
			command.stdout,
			new RegExp(`  ${device.deviceId}  failed: IOTDA\\.\\d{6} .+\n`),
		);
		assert.match(command.stdout, /upgrade: Fail · 1\/1 · .*1 failed\n$/);
	});

	test("watch of a task that has ended says how, at once", async () => {
		const world = await makeTaskWorld(server, 1);
		const { task_id } = await world.start();
		await taskWhen(world.api, task_id, "Processing");
		await world.api.stopTask(task_id);
		await taskWhen(world.api, task_id, "Stopped");
		await using command = otaru("watch", task_id);
		assert.equal(await command.ended, 1);
		assert.match(command.stdout, /^upgrade: Stopped · 1\/1 .*1 stopped\n$/);
	});

	test("watch goes on by itself when the server was away, and misses nothing", async () => {
		const world = await makeTaskWorld(server, 2);
		const first = await world.connect(0);
		const { task_id } = await world.start();
		await countersWhen(world.api, task_id, { processing: 2 });
		await using command = otaru("watch", task_id, "--json");
		await says(command, '"type":"task"');
		await failInstalling(first);
		await says(command, '"kind":"failed"');
		await first[Symbol.asyncDispose]();
		await server.restart(() => pause(1_500));
		await using second = await world.connect(1);
		await succeed(second);
		assert.equal(await command.ended, 1, command.stderr);
		const events = command.stdout
			.trimEnd()
			.split("\n")
			.map((line) => JSON.parse(line) as WatchEvent);
		assert.deepEqual(
			events.flatMap(({ type, data }) =>
				type === "subtask" ? [`${data.device_id}/${data.kind}`] : [],
			),
			[
				`${world.deviceIds[0]}/offered`,
				`${world.deviceIds[0]}/failed`,
				`${world.deviceIds[1]}/succeeded`,
			],
		);
		const last = events.at(-1);
		assert.ok(last?.type === "task");
		assert.equal(last.data.status, "PartialSuccess");
		assert.match(
			command.stderr,
			/^The connection is lost \(.+\); trying again\.\nThe connection is back\.\n$/,
		);
	});

	test("watch of a task that is deleted meanwhile ends with 1 and says so", async () => {
		const world = await makeTaskWorld(server, 1);
		const { task_id } = await world.start();
		await using command = otaru("watch", task_id);
		await says(command, "upgrade: ");
		await server.server.db
			.updateTable("upgrade_tasks")
			.set({ deleted_at: new Date().toISOString() })
			.where("task_id", "=", task_id)
			.execute();
		await server.restart();
		assert.equal(await command.ended, 1, command.stderr);
		assert.match(command.stdout, /The task was deleted\.\n$/);
	});

	test("Ctrl-C leaves without a word, with 130", async () => {
		const world = await makeTaskWorld(server, 1);
		const { task_id } = await world.start();
		await using command = otaru("watch", task_id);
		await says(command, "upgrade: ");
		const said = command.stdout;
		command.interrupt();
		assert.equal(await command.ended, 130);
		assert.equal(command.stdout, said);
		assert.equal(command.stderr, "");
	});

	test("list and show say how tasks stand, newest first", async () => {
		const world = await makeTaskWorld(server, 1);
		await using device = await world.connect(0);
		const { task_id } = await world.start({ task_name: "shown" });
		await failInstalling(device);
		await taskWhen(world.api, task_id, "Fail");
		await using list = otaru("list", "--limit", "2");
		assert.equal(await list.ended, 0, list.stderr);
		const [newest = "", ...others] = list.stdout.trimEnd().split("\n");
		assert.match(
			newest,
			new RegExp(
				`^${task_id}  \\d{8}T\\d{6}Z  Fail +0/1 succeeded, 1 failed  shown$`,
			),
		);
		assert.equal(others.length, 1);
		await using none = otaru("list", "--status", "Waitting");
		assert.equal(await none.ended, 0);
		assert.equal(none.stdout, "There are no tasks.\n");
		await using show = otaru("show", task_id);
		assert.equal(await show.ended, 0, show.stderr);
		assert.match(
			show.stdout,
			new RegExp(`^${task_id}  .+\n  ${device.deviceId}  IOTDA\\.\\d{6} .+\n$`),
		);
		await using json = otaru("show", task_id, "--json");
		assert.equal(await json.ended, 0);
		assert.equal(JSON.parse(json.stdout).failed_details.length, 1);
	});

	for (const [what, args, words] of [
		["nothing to do", [], "list, show or watch"],
		["something unknown to do", ["confirm", "1"], '"confirm"'],
		["no task", ["watch"], "id of a task is missing"],
		["two tasks", ["watch", "a", "b"], '"b" is one word too many'],
		["an unknown status", ["list", "--status", "Done"], "--status must be"],
		["a limit that is none", ["list", "--limit", "0"], "--limit must be"],
		["an unknown option", ["list", "--colour"], "--colour"],
	] as const) {
		test(`${what} ends with 2 and the next step`, async () => {
			await using command = otaru(...args);
			assert.equal(await command.ended, 2, command.stderr);
			assert.ok(command.stderr.includes(words), command.stderr);
			assert.match(command.stderr, /^otaru: .+\n.+/s);
		});
	}

	test("a task that does not exist ends with 3 and the server's words", async () => {
		for (const action of ["watch", "show"]) {
			await using command = otaru(action, "0".repeat(24));
			assert.equal(await command.ended, 3);
			assert.match(command.stderr, /404 IOTDA\.014970/);
		}
	});

	test("a server that is not there ends with 3", async () => {
		await using command = otaru(
			...["watch", "1", "--endpoint", "http://127.0.0.1:9"],
			...["--access-key", "a", "--secret-key", "b", "--project-id", "c"],
		);
		assert.equal(await command.ended, 3);
		assert.match(command.stderr, /cannot be reached/);
	});
});
