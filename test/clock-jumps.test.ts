/**
 * A clock that is wrong, is put right, or stands elsewhere after a restart; and devices
 * whose own clock says anything at all.
 */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { wireTime } from "../wire/envelope.ts";
import type { CreateTask } from "../wire/tasks.ts";
import { HandClock } from "./support/clock.ts";
import { DeviceLink, type HeardEvent } from "./support/device-link.ts";
import { forEachEngine } from "./support/engines.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	detailOf,
	makeTaskWorld,
	TARGET_VERSION,
} from "./support/task-world.ts";

const MINUTE = 60_000;

forEachEngine((engine) => {
	let server: TestServer;
	const clock = new HandClock();
	before(async () => {
		server = await startServer(engine, {
			now: clock.now,
			// One of them says a megabyte several times.
			env: { OTARU_DEVICE_BYTES_PER_SECOND: "0" },
		});
	});
	after(() => server[Symbol.asyncDispose]());

	/** Turns the clock, back as well, and lets the server do whatever it finds due then. */
	async function turn(by: Parameters<HandClock["pass"]>[0]): Promise<void> {
		clock.pass(by);
		await server.server.quiet();
	}

	/** When a schedule is to begin, as a policy of a task. */
	function inMinutes(minutes: number): Pick<CreateTask, "task_policy"> {
		const at = new Date(clock.now().getTime() + minutes * MINUTE);
		return { task_policy: { schedule_time: wireTime(at) } };
	}

	/** A device that says what the test wants, in messages with any time in them. */
	class Talker {
		readonly #heard: HeardEvent[] = [];
		readonly #link: DeviceLink;

		static async connect(device: {
			device_id: string;
			auth_info: { secret?: string };
		}): Promise<Talker> {
			const heard: HeardEvent[] = [];
			const link = await DeviceLink.open(server, {
				id: device.device_id,
				secret: device.auth_info.secret ?? "",
				heard,
			});
			// The server gives it a moment before it speaks, of the same length.
			await new Promise((resolve) => setTimeout(resolve, 1));
			return new Talker(link, heard);
		}

		private constructor(link: DeviceLink, heard: HeardEvent[]) {
			this.#link = link;
			this.#heard = heard;
		}

		/** What it was told since it was last asked: types of events. */
		async hears(): Promise<string[]> {
			await server.server.quiet();
			await this.#link.ping();
			return this.#heard.splice(0).map(({ type }) => type);
		}

		async say(type: string, paras: object, eventTime?: unknown): Promise<void> {
			await this.#link.say(
				JSON.stringify({
					services: [
						{
							service_id: "$ota",
							event_type: type,
							...(eventTime === undefined ? {} : { event_time: eventTime }),
							paras,
						},
					],
				}),
			);
		}

		has(version: string, eventTime?: unknown): Promise<void> {
			return this.say("version_report", { fw_version: version }, eventTime);
		}

		reports(
			result_code: number,
			version: string,
			progress: number,
			eventTime?: unknown,
		): Promise<void> {
			return this.say(
				"upgrade_progress_report",
				{ result_code, version, progress },
				eventTime,
			);
		}

		leave(): Promise<void> {
			return this.#link.close(true);
		}
	}

	/** One device in one task; what its subtask has come to, and the device itself. */
	async function world(fields: Partial<CreateTask> = {}) {
		const made = await makeTaskWorld(server, 1);
		const [device] = made.devices;
		assert.ok(device);
		const { task_id: taskId } = await made.start(fields);
		await server.server.quiet();
		return {
			...made,
			taskId,
			connect: () => Talker.connect(device),
			status: async () =>
				(await detailOf(made.api, taskId, device.device_id)).status,
			failure: async () =>
				(await detailOf(made.api, taskId, device.device_id)).error?.error_msg,
			taskStatus: async () => (await made.api.getTask(taskId)).batchtask.status,
			version: async () =>
				(await made.api.getDevice(device.device_id)).fw_version,
		};
	}

	// --- restarts -----------------------------------------------------------------------

	test("a schedule outlives a restart", async () => {
		const w = await world(inMinutes(120));
		await server.restart();
		await server.server.quiet();
		assert.equal(await w.taskStatus(), "Waitting");
		await turn({ minutes: 119 });
		assert.equal(await w.status(), "Waitting");
		await turn({ minutes: 1 });
		assert.equal(await w.status(), "Processing");
	});

	test("a task whose time came while the server was down begins when it is back", async () => {
		const w = await world(inMinutes(20));
		await server.restart(() => clock.pass({ hours: 3 }));
		await server.server.quiet();
		assert.equal(await w.taskStatus(), "Processing");
		const device = await w.connect();
		assert.deepEqual(await device.hears(), ["version_query"]);
		await device.has(TARGET_VERSION);
		assert.equal(await w.taskStatus(), "Success");
		await device.leave();
	});

	test("a task that nobody confirmed does not begin because its time came while the server was down", async () => {
		const w = await world({ ...inMinutes(20), need_confirm: true });
		await server.restart(() => clock.pass({ hours: 3 }));
		await server.server.quiet();
		assert.equal(await w.taskStatus(), "Waitting");
		await w.api.confirmTask(w.taskId);
		await server.server.quiet();
		assert.equal(await w.taskStatus(), "Processing");
	});

	test("a retry that fell due while the server was down begins when it is back", async () => {
		const w = await world({
			task_policy: { retry_count: 1, retry_interval: 30 },
		});
		const device = await w.connect();
		assert.deepEqual(await device.hears(), ["version_query"]);
		await device.has("v1");
		assert.deepEqual(await device.hears(), ["firmware_upgrade_v2"]);
		await device.reports(10, "v1", 0);
		assert.equal(await w.status(), "FailWaitRetry");
		await server.restart(() => clock.pass({ hours: 2 }));
		await server.server.quiet();
		assert.equal(await w.status(), "Processing");
		const again = await w.connect();
		assert.deepEqual(await again.hears(), ["version_query"]);
		await again.has("v1");
		assert.deepEqual(await again.hears(), ["firmware_upgrade_v2"]);
		await again.reports(10, "v1", 0);
		assert.equal(await w.status(), "Fail");
		await again.leave();
	});

	test("a server that comes back an hour earlier than it went goes on with what it was creating", async () => {
		const w = await makeTaskWorld(server, 1);
		const nobody = Array.from({ length: 20_000 }, (_, n) => `nobody-${n}`);
		const { task_id: taskId } = await w.start({ targets: nobody });
		await server.restart(() => clock.pass({ hours: -1 }));
		await server.server.quiet();
		const { batchtask } = await w.api.getTask(taskId);
		assert.equal(batchtask.status, "Fail");
		assert.equal(batchtask.task_progress.fail, nobody.length);
	});

	// --- an hour back -------------------------------------------------------------------

	test("an hour back: a scheduled task waits for its time by the clock, and begins once", async () => {
		const w = await world(inMinutes(30));
		const device = await w.connect();
		await turn({ hours: -1 });
		assert.equal(await w.taskStatus(), "Waitting");
		await turn({ minutes: 89 });
		assert.equal(await w.taskStatus(), "Waitting");
		assert.deepEqual(await device.hears(), []);
		await turn({ minutes: 1 });
		assert.equal(await w.taskStatus(), "Processing");
		assert.deepEqual(await device.hears(), ["version_query"]);
		// Back to before its time: what has begun has begun.
		await turn({ hours: -1 });
		await turn({ minutes: 61 });
		assert.deepEqual(await device.hears(), []);
		await device.leave();
	});

	test("an hour back: an answer that is awaited is taken, and asked for again of whoever comes again", async () => {
		const w = await world();
		const device = await w.connect();
		assert.deepEqual(await device.hears(), ["version_query"]);
		await turn({ hours: -1 });
		assert.deepEqual(await device.hears(), []);
		await device.leave();
		const again = await w.connect();
		assert.deepEqual(await again.hears(), ["version_query"]);
		await turn({ minutes: 2 });
		await again.has("v1");
		assert.deepEqual(await again.hears(), ["firmware_upgrade_v2"]);
		await again.reports(0, TARGET_VERSION, 100);
		assert.equal(await w.status(), "Success");
		await again.leave();
	});

	test("an hour back: an answer that never comes fails, at the latest when the clock says what it said", async () => {
		const w = await world();
		const device = await w.connect();
		assert.deepEqual(await device.hears(), ["version_query"]);
		await turn({ hours: -1 });
		assert.equal(await w.status(), "Processing");
		await turn({ minutes: 63 });
		assert.equal(
			await w.failure(),
			"Waiting for report device firmware version timeout",
		);
		assert.deepEqual(await device.hears(), []);
		await device.leave();
	});

	test("an hour back: a device that has its notice is asked when it comes again, and gets no second notice too soon", async () => {
		const w = await world();
		const device = await w.connect();
		await device.has("v1");
		assert.deepEqual(await device.hears(), [
			"version_query",
			"firmware_upgrade_v2",
		]);
		await turn({ hours: -1 });
		await device.leave();
		const again = await w.connect();
		assert.deepEqual(await again.hears(), ["version_query"]);
		await again.has("v1");
		assert.deepEqual(await again.hears(), []);
		await turn({ minutes: 69 });
		assert.deepEqual(await again.hears(), []);
		await turn({ minutes: 1 });
		assert.deepEqual(await again.hears(), ["firmware_upgrade_v2"]);
		await again.leave();
		// Rebooted into the new version, which it tells when it is asked.
		const rebooted = await w.connect();
		assert.deepEqual(await rebooted.hears(), ["version_query"]);
		await rebooted.has(TARGET_VERSION);
		assert.equal(await w.status(), "Success");
		await rebooted.leave();
	});

	test("an hour back: a retry waits for its time by the clock, and no retry is lost or added", async () => {
		const w = await world({
			task_policy: { retry_count: 2, retry_interval: 5 },
		});
		const device = await w.connect();
		for (const attempt of [0, 1, 2]) {
			assert.deepEqual(await device.hears(), ["version_query"]);
			await device.has("v1");
			assert.deepEqual(await device.hears(), ["firmware_upgrade_v2"]);
			await device.reports(10, "v1", 0);
			if (attempt === 2) break;
			assert.equal(await w.status(), "FailWaitRetry");
			await turn({ hours: -1 });
			await turn({ minutes: 64 });
			assert.equal(await w.status(), "FailWaitRetry");
			assert.deepEqual(await device.hears(), []);
			await turn({ minutes: 1 });
		}
		assert.equal(await w.status(), "Fail");
		await device.leave();
	});

	test("an hour back: a task claimed by a process that died is taken up, not after an hour", async () => {
		const w = await world();
		const { db } = server.server;
		const hourAgo = new Date(clock.now().getTime() - 60 * MINUTE);
		const claimedUntil = new Date(clock.now().getTime() + 30_000);
		// As if it had been created and claimed, and nothing more.
		await db.deleteFrom("subtasks").where("task_id", "=", w.taskId).execute();
		await db
			.updateTable("upgrade_tasks")
			.set({
				status: "Initializing",
				total: 0,
				processing: 0,
				expanded_parts: 0,
				last_position: 0,
				started_position: 0,
				due_at: hourAgo.toISOString(),
				leased_by: "another process",
				leased_until: claimedUntil.toISOString(),
			})
			.where("task_id", "=", w.taskId)
			.execute();
		await turn({ seconds: 1 });
		assert.equal(await w.taskStatus(), "Initializing");
		await turn({ hours: -1 });
		assert.equal(await w.taskStatus(), "Processing");
	});

	test("an hour back: tasks are created, stopped, retried and confirmed as ever", async () => {
		const w = await world({ need_confirm: true });
		await turn({ hours: -1 });
		await w.api.confirmTask(w.taskId, { targets: w.deviceIds });
		await server.server.quiet();
		assert.equal(await w.status(), "Processing");
		await turn({ hours: -1 });
		const conflicting = await w.start();
		await server.server.quiet();
		const shown = await w.api.getTask(conflicting.task_id);
		assert.equal(shown.batchtask.status, "Fail");
		await turn({ hours: -1 });
		await w.api.stopTask(w.taskId);
		await w.api.retryTask(conflicting.task_id);
		await server.server.quiet();
		assert.equal(await w.taskStatus(), "Stopped");
		const retried = await w.api.getTask(conflicting.task_id);
		assert.equal(retried.batchtask.status, "Processing");
	});

	// --- ahead --------------------------------------------------------------------------

	test("an hour ahead: what is due by the new time happens once, the rest does not", async () => {
		const scheduled = await world(inMinutes(50));
		const later = await world(inMinutes(70));
		const offered = await world();
		const device = await offered.connect();
		await device.has("v1");
		assert.deepEqual(await device.hears(), [
			"version_query",
			"firmware_upgrade_v2",
		]);
		const asked = await world();
		const silent = await asked.connect();
		assert.deepEqual(await silent.hears(), ["version_query"]);
		await turn({ hours: 1 });
		assert.equal(await scheduled.taskStatus(), "Processing");
		assert.equal(await later.taskStatus(), "Waitting");
		assert.equal(await asked.status(), "Fail");
		assert.equal(await offered.status(), "Processing");
		assert.deepEqual(await device.hears(), []);
		await device.reports(0, TARGET_VERSION, 100);
		assert.equal(await offered.status(), "Success");
		await device.leave();
		await silent.leave();
	});

	test("a day ahead: the device is asked for its version once more before it has failed", async () => {
		const w = await world();
		const waiting = await world();
		const device = await w.connect();
		await device.has("v1");
		await device.reports(0, "v1", 50);
		assert.deepEqual(await device.hears(), [
			"version_query",
			"firmware_upgrade_v2",
		]);
		await turn({ hours: 24 });
		assert.deepEqual(await device.hears(), ["version_query"]);
		assert.equal(await waiting.status(), "Processing");
		await device.has(TARGET_VERSION);
		assert.equal(await w.status(), "Success");
		await turn({ hours: 1 });
		assert.equal(
			await waiting.failure(),
			"Waiting for the device online timeout",
		);
		await device.leave();
	});

	test("a day ahead by mistake and back again: an upgrade that began in between ends as it should", async () => {
		await turn({ hours: 24 });
		const w = await world();
		const device = await w.connect();
		await device.has("v1");
		assert.deepEqual(await device.hears(), [
			"version_query",
			"firmware_upgrade_v2",
		]);
		await turn({ hours: -24 });
		assert.deepEqual(await device.hears(), []);
		await device.reports(0, "v1", 50);
		await device.leave();
		const again = await w.connect();
		assert.deepEqual(await again.hears(), ["version_query"]);
		await again.has(TARGET_VERSION);
		assert.equal(await w.taskStatus(), "Success");
		await again.leave();
	});

	// --- devices ------------------------------------------------------------------------

	const times: [what: string, eventTime: unknown][] = [
		["null", null],
		["an empty text", ""],
		["a number", 1_769_673_600_000],
		["a negative number", -1],
		["a number beyond every date", 1e300],
		["local time", "2026-11-22T23:39:46Z"],
		["local time with an offset", "2026-11-22T23:39:46+08:00"],
		["a time without a zone", "20261122T233946"],
		["the year 9999", "99991231T235959Z"],
		["the year 0", "00000101T000000Z"],
		["a negative year", "-20260101T000000Z"],
		["a date that does not exist", "20260230T256199Z"],
		["1 MB of text", "9".repeat(1_000_000)],
		["Chinese text", "下午三点"],
		["a text with NUL", "2026\u0000"],
		["half a character", "\ud800"],
		["a list", ["20261122T233946Z"]],
		["an object", { $date: "20261122T233946Z" }],
		["true", true],
	];

	for (const [what, eventTime] of times)
		test(`a device whose event_time is ${what} takes its upgrade`, async () => {
			const w = await world();
			const device = await w.connect();
			assert.deepEqual(await device.hears(), ["version_query"]);
			await device.has("v1", eventTime);
			assert.equal(await w.version(), "v1");
			assert.deepEqual(await device.hears(), ["firmware_upgrade_v2"]);
			await device.reports(0, "v1", 50, eventTime);
			const [deviceId = ""] = w.deviceIds;
			assert.equal((await detailOf(w.api, w.taskId, deviceId)).output, "50%");
			await device.reports(0, TARGET_VERSION, 100, eventTime);
			assert.equal(await w.taskStatus(), "Success");
			// Its own time is nowhere: what is told of it happened when it arrived.
			const { events } = await w.api.listDeviceEvents(deviceId);
			assert.ok(events.length > 0);
			for (const { time } of events)
				assert.equal(time, clock.now().toISOString());
			await device.leave();
		});
});
