/** Watching: everything that happens is told once, in its order, whatever breaks on the way. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { sql } from "kysely";
import type { Db } from "../server/database/database.ts";
import { type HistoryEntry, recordHistory } from "../server/history/history.ts";
import { sweepHistory } from "../server/history/retention.ts";
import { startServer as start } from "../server/server.ts";
import { Client, signRequest } from "../wire/client.ts";
import { readEventStream } from "../wire/event-stream.ts";
import { HandClock } from "./support/clock.ts";
import { until } from "./support/device.ts";
import { forEachEngine, postgres } from "./support/engines.ts";
import { refused, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import {
	countersWhen,
	failInstalling,
	makeTaskWorld,
	succeed,
	taskWhen,
} from "./support/task-world.ts";
import { Watcher } from "./support/watcher.ts";

/** Entries about a task that only the history knows. */
function entriesOf(
	projectId: string,
	taskId: string,
	count: number,
	detail?: Record<string, unknown>,
): HistoryEntry[] {
	return Array.from({ length: count }, (_, index) => ({
		projectId,
		spaceId: "space",
		deviceId: `device-${index}`,
		taskId,
		kind: "offered",
		...(detail ? { detail } : {}),
	}));
}

const devicesOf = (watcher: Watcher) =>
	watcher.of("subtask").map(({ data }) => data.device_id);

/** The path of the stream, signed: for requests that `fetch` cannot make. */
async function signedRequest(
	{ url, api, credentials }: TestServer,
	query = "",
): Promise<string> {
	const address = new URL(
		`/otaru/v1/projects/${api.projectId}/events${query}`,
		url,
	);
	const headers = await signRequest(
		{
			method: "GET",
			url: address,
			headers: { host: address.host },
			payloadHash:
				"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
			date: new Date(),
		},
		{ accessKey: credentials.access_key, secretKey: credentials.secret_key },
	);
	return `GET ${address.pathname}${address.search} HTTP/1.1\r\nHost: ${address.host}\r\nX-Sdk-Date: ${headers["x-sdk-date"]}\r\nAuthorization: ${headers.authorization}\r\n\r\n`;
}

forEachEngine((engine) => {
	describe("watching", () => {
		let server: TestServer;
		let api: Client;
		let db: Db;
		before(async () => {
			server = await startServer(engine);
			api = server.api;
			db = server.server.db;
		});
		after(() => server[Symbol.asyncDispose]());

		test("a task is told from how it stands to its end, and its end comes last", async () => {
			const world = await makeTaskWorld(server, 2);
			await using first = await world.connect(0);
			await using second = await world.connect(1);
			const { task_id } = await world.start();
			await countersWhen(api, task_id, { processing: 2 });
			await using watcher = await Watcher.open(api, { task_id });
			await watcher.when(({ told }) => told.length > 0);
			const snapshot = watcher.told[0];
			assert.ok(snapshot?.type === "task" && snapshot.id);
			const { create_time, ...state } = snapshot.data;
			assert.match(create_time, /^\d{8}T\d{6}Z$/);
			assert.deepEqual(state, {
				task_id,
				task_name: "upgrade",
				task_type: "firmwareUpgrade",
				status: "Processing",
				task_progress: {
					...{ total: 2, processing: 2, success: 0, fail: 0, waitting: 0 },
					...{ fail_wait_retry: 0, stopped: 0, removed: 0 },
				},
			});
			await failInstalling(second);
			await succeed(first);
			await watcher.when(({ told }) => {
				const last = told.at(-1);
				return last?.type === "task" && last.data.status !== "Processing";
			});
			const last = watcher.told.at(-1);
			assert.ok(last?.type === "task");
			assert.equal(last.data.status, "PartialSuccess");
			assert.equal(last.data.task_progress.success, 1);
			assert.equal(last.data.task_progress.fail, 1);
			assert.deepEqual(watcher.subtasks, [
				`${second.deviceId}/offered`,
				`${second.deviceId}/failed`,
				`${first.deviceId}/succeeded`,
			]);
			const failed = watcher.of("subtask")[1];
			assert.match(String(failed?.data.detail?.error_code), /^IOTDA\.\d{6}$/);
			assert.equal(failed?.data.task_id, task_id);
			assert.match(failed?.id ?? "", /^\d+-\d+$/);
			// Under the same id as in the timeline.
			const { events } = await api.listDeviceEvents(second.deviceId, {
				kind: "failed",
			});
			const { device_id: _, ...inTimeline } = failed?.data ?? {};
			assert.deepEqual(events[0], inTimeline);
			assert.deepEqual(
				watcher.of("task_change").map(({ data }) => data.kind),
				["task_status"],
			);
		});

		test("of a project all tasks are told, from their creation to their deletion", async () => {
			await using watcher = await Watcher.open(api);
			const { app_id } = await api.createResourceSpace({ app_name: "other" });
			await using inOther = await Watcher.open(api, { app_id });
			const world = await makeTaskWorld(server, 1);
			const elsewhere = await makeTaskWorld(server, 1, app_id);
			const tasks = [await world.start(), await elsewhere.start()];
			for (const { task_id } of tasks) {
				await taskWhen(api, task_id, "Processing");
				await api.stopTask(task_id);
				await taskWhen(api, task_id, "Stopped");
				await watcher.when((w) =>
					w
						.of("task")
						.some(
							({ data }) =>
								data.task_id === task_id && data.status === "Stopped",
						),
				);
				await api.deleteTask(task_id);
				await watcher.when((w) =>
					w
						.of("task_change")
						.some(
							({ data }) =>
								data.task_id === task_id && data.kind === "task_deleted",
						),
				);
			}
			const told = (w: Watcher) =>
				new Set(
					w.told.map(({ data }) =>
						"task_id" in data ? data.task_id : undefined,
					),
				);
			assert.deepEqual(told(watcher), new Set(tasks.map((t) => t.task_id)));
			assert.deepEqual(told(inOther), new Set([tasks[1]?.task_id]));
			const kinds = watcher
				.of("task_change")
				.filter(({ data }) => data.task_id === tasks[0]?.task_id)
				.map(({ data }) => data.kind);
			assert.equal(kinds[0], "task_created");
			assert.equal(kinds.at(-1), "task_deleted");
			assert.ok(kinds.includes("task_status"));
		});

		test("counters that move without a word about devices are told all the same", async () => {
			const world = await makeTaskWorld(server, 3);
			const { task_id } = await world.start();
			await countersWhen(api, task_id, { processing: 3 });
			await using watcher = await Watcher.open(api, { task_id });
			await db
				.updateTable("upgrade_tasks")
				.set({ processing: 1, stopped: 2 })
				.where("task_id", "=", task_id)
				.execute();
			await watcher.when((w) =>
				w.of("task").some(({ data }) => data.task_progress.stopped === 2),
			);
			assert.deepEqual(watcher.subtasks, []);
		});

		test("a thousand entries at once are told to everybody, each once and in their order", async () => {
			const taskId = unique("task");
			await using one = await Watcher.open(api);
			await using other = await Watcher.open(api);
			const entries = entriesOf(api.projectId, taskId, 1_000);
			// In many transactions, some of them at the same time.
			for (let at = 0; at < 500; at += 100)
				await recordHistory(db, entries.slice(at, at + 100), new Date());
			await Promise.all(
				Array.from({ length: 500 }, (_, index) =>
					recordHistory(db, [entries[500 + index] as HistoryEntry], new Date()),
				),
			);
			for (const watcher of [one, other])
				await watcher.when((w) => devicesOf(w).length >= 1_000);
			await pause(600);
			const { rows } = await sql<{ device_id: string }>`
				select device_id from history where task_id = ${taskId} order by tx, seq`.execute(
				db,
			);
			const stored = rows.map(({ device_id }) => device_id);
			assert.deepEqual(devicesOf(one), stored);
			assert.deepEqual(devicesOf(other), stored);
			assert.equal(new Set(stored).size, 1_000);
		});

		test("entries that other projects have are nobody's business here", async () => {
			await using watcher = await Watcher.open(api);
			await recordHistory(db, entriesOf("elsewhere", "t1", 3), new Date());
			await recordHistory(db, entriesOf(api.projectId, "t2", 1), new Date());
			await watcher.when(({ told }) => told.length > 0);
			assert.deepEqual(
				watcher.of("subtask").map(({ data }) => data.task_id),
				["t2"],
			);
		});

		test("whoever comes back goes on exactly where he was, from wherever that is", async () => {
			const taskId = unique("task");
			await using first = await Watcher.open(api);
			await recordHistory(db, entriesOf(api.projectId, taskId, 20), new Date());
			await first.when((w) => devicesOf(w).length === 20);
			const ids = first.of("subtask").map(({ id }) => id ?? "");
			// More than the ring holds.
			for (let at = 0; at < 4; at++)
				await recordHistory(
					db,
					entriesOf(api.projectId, taskId, 1_000),
					new Date(),
				);
			await first.when((w) => devicesOf(w).length === 4_020);
			const all = first.of("subtask").map(({ id }) => id);
			assert.equal(new Set(all).size, 4_020);
			for (const from of [0, 7, 19, 600, 4_000]) {
				await using again = await Watcher.open(api, {
					last_event_id: all[from] ?? "",
				});
				await again.when((w) => devicesOf(w).length === 4_019 - from);
				assert.deepEqual(
					again.of("subtask").map(({ id }) => id),
					all.slice(from + 1),
				);
			}
			// The header goes before the query, as browsers need it.
			const answer = await api.send(
				"GET",
				`/otaru/v1/projects/${api.projectId}/events`,
				{
					query: { last_event_id: ids[0] },
					headers: { "last-event-id": all.at(-2) ?? "" },
				},
			);
			assert.ok(answer.body);
			for await (const { event, lastEventId } of readEventStream(answer.body))
				if (event === "subtask") {
					assert.equal(lastEventId, all.at(-1));
					break;
				}
		});

		test("a restart of the server loses nothing and repeats nothing", async () => {
			await using own = await startServer(engine);
			const taskId = unique("task");
			const record = (from: number) =>
				recordHistory(
					own.server.db,
					entriesOf(own.api.projectId, taskId, from + 10).slice(from),
					new Date(),
				);
			const first = await Watcher.open(own.api);
			await record(0);
			await first.when((w) => devicesOf(w).length === 10);
			await record(10);
			const startedMs = performance.now();
			await own.restart();
			assert.equal(await first.ended, undefined, "the stream ended in order");
			assert.ok(performance.now() - startedMs < 5_000);
			await record(20);
			await using again = await Watcher.open(own.api, {
				last_event_id: first.lastId,
			});
			await again.when(
				(w) => devicesOf(first).length + devicesOf(w).length >= 30,
			);
			assert.deepEqual(
				[...devicesOf(first), ...devicesOf(again)],
				Array.from({ length: 30 }, (_, index) => `device-${index}`),
			);
		});

		test("the way a task ended while nobody watched is told to who comes back", async () => {
			const world = await makeTaskWorld(server, 1);
			await using device = await world.connect(0);
			const { task_id } = await world.start();
			await device.next("version_query");
			const first = await Watcher.open(api, { task_id });
			await first[Symbol.asyncDispose]();
			await device.reportFirmware("v2");
			await taskWhen(api, task_id, "Success");
			await using again = await Watcher.open(api, {
				task_id,
				last_event_id: first.lastId,
			});
			await again.when((w) => w.of("task").length > 0);
			assert.deepEqual(
				again.told.map(({ type }) => type),
				["task_change", "subtask", "task"],
			);
			assert.equal(again.of("task")[0]?.data.status, "Success");
		});

		test("whoever was away for longer than history is kept must read anew", async () => {
			const clock = new HandClock();
			await using own = await startServer(engine, { now: clock.now });
			const record = (count: number) =>
				recordHistory(
					own.server.db,
					entriesOf(own.api.projectId, "t", count),
					clock.now(),
				);
			const first = await Watcher.open(own.api);
			await record(2);
			await first.when((w) => devicesOf(w).length === 2);
			await first[Symbol.asyncDispose]();
			const [early, late] = first.of("subtask").map(({ id }) => id ?? "");
			clock.pass({ hours: 24 * 91 });
			await record(1);
			const swept = await sweepHistory(own.server.db, clock.now(), 90);
			assert.equal(swept, 2);
			const again = await Watcher.open(own.api, {
				last_event_id: early ?? "",
			});
			await again.when(({ told }) => told.length > 0);
			const reset = again.told[0];
			assert.ok(reset?.type === "reset");
			assert.match(reset.data.reason, /not kept/);
			await record(1);
			await again.when(({ told }) => told.length === 2);
			assert.equal(again.told[1]?.type, "subtask");
			await again[Symbol.asyncDispose]();
			// Nothing after this one was removed.
			await using kept = await Watcher.open(own.api, {
				last_event_id: late ?? "",
			});
			await kept.when(({ told }) => told.length === 2);
			assert.deepEqual(
				kept.told.map(({ type }) => type),
				["subtask", "subtask"],
			);
		});

		test("an id that this store has not reached is answered with a reset, and how the task stands", async () => {
			const world = await makeTaskWorld(server, 1);
			const { task_id } = await world.start();
			await using watcher = await Watcher.open(api, {
				task_id,
				last_event_id: "999999999999-3",
			});
			await watcher.when((w) => w.of("task").length > 0);
			const [first] = watcher.told;
			assert.equal(first?.type, "reset");
			assert.notEqual(first?.id, "999999999999-3");
			assert.equal(watcher.of("task")[0]?.data.task_id, task_id);
		});

		test("what cannot be watched is refused with its field and rule", async () => {
			const { app_id } = await api.createResourceSpace({ app_name: "empty" });
			const world = await makeTaskWorld(server, 1);
			const { task_id } = await world.start();
			const watch = (query: object) =>
				Watcher.open(api, query as { task_id: string });
			for (const [query, status, code, words] of [
				[{ task_id: "UPPER" }, 400, "IOTDA.000006", "task_id must be"],
				[{ task_id: "" }, 400, "IOTDA.000006", "task_id must be"],
				[{ task_id: "0".repeat(24) }, 404, "IOTDA.014970", ""],
				[{ task_id, app_id }, 404, "IOTDA.014970", ""],
				[{ app_id: "a b" }, 400, "IOTDA.000006", "app_id must be"],
				[{ app_id: "0".repeat(32) }, 403, "IOTDA.001000", ""],
				[{ last_event_id: "12" }, 400, "IOTDA.000006", "last_event_id must"],
				[{ last_event_id: "" }, 400, "IOTDA.000006", "last_event_id must"],
				[{ last_event_id: "-1-2" }, 400, "IOTDA.000006", "last_event_id must"],
				[
					{ last_event_id: `1-${"9".repeat(30)}` },
					...[400, "IOTDA.000006", "last_event_id must"],
				],
			] as [object, number, string, string][])
				await refused(watch(query), status, code, words);
			const path = `/otaru/v1/projects/${api.projectId}/events`;
			const withHeader = (id: string) =>
				api.call("GET", path, { headers: { "last-event-id": id } });
			await refused(
				withHeader("yesterday"),
				...([400, "IOTDA.000006", "Last-Event-ID must be"] as const),
			);
			await refused(
				api.call("GET", `${path}?task_id=a&task_id=b`),
				...([400, "IOTDA.000006", "task_id must be"] as const),
			);
			await refused(
				Watcher.open(api.as(undefined)),
				...([401, "APIGW.0301"] as const),
			);
			await api.stopTask(task_id);
			await taskWhen(api, task_id, "Stopped");
			await api.deleteTask(task_id);
			await refused(watch({ task_id }), 404, "IOTDA.014970");
		});

		test("a stream says what it is, gives signs of life, and moves its id on", async () => {
			await using own = await startServer(engine, {
				watching: { quietMs: 100 },
			});
			const stop = new AbortController();
			const answer = await own.api.send(
				"GET",
				`/otaru/v1/projects/${own.api.projectId}/events`,
				{ signal: stop.signal },
			);
			assert.equal(answer.status, 200);
			assert.deepEqual(
				["content-type", "cache-control", "x-accel-buffering"].map((name) =>
					answer.headers.get(name),
				),
				["text/event-stream", "no-store", "no"],
			);
			assert.equal(answer.headers.get("x-content-type-options"), "nosniff");
			assert.ok(answer.headers.get("x-request-id"));
			let text = "";
			const reading = (async () => {
				for await (const piece of answer.body ?? [])
					text += Buffer.from(piece).toString();
			})().catch(() => {});
			await until(
				async () => text,
				(so) => so.includes(":\n\n:\n\n"),
			);
			assert.match(text, /^retry: \d+\nid: \d+-\d+\n\n/);
			// Of another project: nothing to tell, but nothing to go through again either.
			await recordHistory(own.server.db, entriesOf("p", "t", 1), new Date());
			const [, first] = /id: (\d+-\d+)/.exec(text) ?? [];
			await until(
				async () => text,
				(so) => /:\nid: \d+-\d+\n\n/.test(so),
			);
			const [, moved] = /:\nid: (\d+-\d+)\n\n/.exec(text) ?? [];
			assert.notEqual(moved, first);
			assert.doesNotMatch(text, /event|data/);
			stop.abort();
			await reading;
		});

		test("a stream is over after its time, and its client goes on in the next", async () => {
			await using own = await startServer(engine, {
				watching: { lifeMs: 600 },
			});
			const watcher = await Watcher.open(own.api);
			await recordHistory(
				own.server.db,
				entriesOf(own.api.projectId, "t", 3),
				new Date(),
			);
			assert.equal(await watcher.ended, undefined);
			assert.equal(devicesOf(watcher).length, 3);
			await using again = await Watcher.open(own.api, {
				last_event_id: watcher.lastId,
			});
			await again.ended;
			assert.deepEqual(again.told, []);
		});

		test("no more watch than there is room for, and a place that is left is free again", async () => {
			await using own = await startServer(engine, {
				watching: { streams: 2 },
			});
			const first = await Watcher.open(own.api);
			await using _second = await Watcher.open(own.api);
			await refused(
				Watcher.open(own.api),
				...([503, "IOTDA.000926", "At most 2"] as const),
			);
			await first[Symbol.asyncDispose]();
			await until(
				() => Watcher.open(own.api).catch(() => undefined),
				(watcher) => {
					void watcher?.[Symbol.asyncDispose]();
					return watcher !== undefined;
				},
			);
		});

		test("who takes nothing is cut off, and goes on where he was", async () => {
			await using own = await startServer(engine, {
				watching: { stallMs: 3_000 },
			});
			const request = await signedRequest(own);
			const socket = connect(Number(new URL(own.url).port), "127.0.0.1");
			let text = "";
			let closed = false;
			socket.on("close", () => {
				closed = true;
			});
			socket.on("error", () => {});
			socket.on("data", (bytes: Buffer) => {
				text += bytes.toString();
			});
			socket.write(request);
			await until(
				async () => text,
				(so) => so.includes("id: "),
			);
			socket.pause();
			// Megabytes more than the kernel takes for a client that does not read.
			const detail = { text: "x".repeat(4_000) };
			const total = 6_000;
			await using quick = await Watcher.open(own.api);
			for (let at = 0; at < total; at += 500)
				await recordHistory(
					own.server.db,
					entriesOf(own.api.projectId, "t", at + 500, detail).slice(at),
					new Date(),
				);
			await quick.when((w) => devicesOf(w).length === total, 30_000);
			const watchers = async () => {
				const metrics = await (await fetch(`${own.url}/metrics`)).text();
				return /^otaru_watchers (\d+)$/m.exec(metrics)?.[1];
			};
			await until(watchers, (count) => count === "1", 20_000);
			socket.resume();
			await until(
				async () => closed,
				(is) => is,
			);
			const got = [...text.matchAll(/id: (\S+)\nevent: subtask\n.*\n\n/g)];
			assert.ok(got.length < total, "he was cut off");
			await using again = await Watcher.open(own.api, {
				last_event_id: got.at(-1)?.[1] ?? /id: (\S+)/.exec(text)?.[1] ?? "",
			});
			await again.when(
				(w) => devicesOf(w).length === total - got.length,
				30_000,
			);
			assert.deepEqual(
				[
					...got.map(([, id]) => id),
					...again.of("subtask").map(({ id }) => id),
				],
				quick.of("subtask").map(({ id }) => id),
			);
		});

		test("a server that stops does not wait for those who watch", async () => {
			const own = await startServer(engine);
			const watchers = await Promise.all(
				Array.from({ length: 20 }, () => Watcher.open(own.api)),
			);
			const startedMs = performance.now();
			await own[Symbol.asyncDispose]();
			assert.ok(performance.now() - startedMs < 3_000);
			for (const watcher of watchers)
				assert.equal(await watcher.ended, undefined);
		});

		test("a store that fails for a while ends no stream and loses nothing", async () => {
			await using own = await startServer(engine);
			await using watcher = await Watcher.open(own.api);
			const record = (from: number) =>
				recordHistory(
					own.server.db,
					entriesOf(own.api.projectId, "t", from + 5).slice(from),
					new Date(),
				);
			await record(0);
			await watcher.when((w) => devicesOf(w).length === 5);
			await sql`alter table history rename to history_away`.execute(
				own.server.db,
			);
			await pause(700);
			await sql`alter table history_away rename to history`.execute(
				own.server.db,
			);
			await record(5);
			await watcher.when((w) => devicesOf(w).length === 10);
			assert.equal(watcher.told.length, 10);
		});
	});
});

describe("watching on PostgreSQL", () => {
	test("a transaction that commits after a younger one is told first, and not passed over", async () => {
		await using server = await startServer(postgres);
		const { api } = server;
		const { db } = server.server;
		await using watcher = await Watcher.open(api);
		const slow = await db.startTransaction().execute();
		await using _ended = {
			async [Symbol.asyncDispose]() {
				if (!slow.isCommitted) await slow.rollback().execute();
			},
		};
		const entry = (taskId: string) =>
			entriesOf(api.projectId, taskId, 1) as HistoryEntry[];
		await recordHistory(slow, entry("slow"), new Date());
		await recordHistory(db, entry("quick"), new Date());
		await pause(1_000);
		assert.deepEqual(watcher.told, [], "it might be the wrong order");
		await using late = await Watcher.open(api);
		await slow.commit().execute();
		await watcher.when(({ told }) => told.length === 2);
		await pause(500);
		const tasks = (w: Watcher) =>
			w.of("subtask").map(({ data }) => data.task_id);
		assert.deepEqual(tasks(watcher), ["slow", "quick"]);
		// Neither was settled yet when this one came.
		assert.deepEqual(tasks(late), ["slow", "quick"]);
		// Numbers alone would have passed over one: it was drawn by the slow one first.
		const { rows } = await sql<{ task_id: string }>`
			select task_id from history order by seq`.execute(db);
		assert.deepEqual(
			rows.map(({ task_id }) => task_id),
			["slow", "quick"],
		);
	});

	test("many writers at once, some slow, some undone: every entry is told once, in one order", async () => {
		await using server = await startServer(postgres);
		const { api } = server;
		const { db } = server.server;
		await using watcher = await Watcher.open(api);
		await Promise.all(
			Array.from({ length: 60 }, (_, index) =>
				db
					.transaction()
					.execute(async (trx) => {
						const entries = entriesOf(api.projectId, `task-${index}`, 10);
						await recordHistory(trx, entries.slice(0, 5), new Date());
						await pause((index * 37) % 200);
						await recordHistory(trx, entries.slice(5), new Date());
						if (index % 10 === 3) throw new Error("undone");
					})
					.catch(() => {}),
			),
		);
		await watcher.when((w) => w.told.length >= 540);
		await pause(500);
		const ids = watcher.of("subtask").map(({ id }) => id ?? "");
		assert.equal(ids.length, 540);
		const positions = ids.map((id) => id.split("-").map(Number));
		const sorted = [...positions].sort(
			([tx = 0, seq = 0], [otherTx = 0, otherSeq = 0]) =>
				tx - otherTx || seq - otherSeq,
		);
		assert.deepEqual(positions, sorted);
	});

	test("whoever loses one node goes on at another", async () => {
		await using server = await startServer(postgres);
		const directory = mkdtempSync(join(tmpdir(), "otaru-test-"));
		const masterKey = readFileSync(
			join(server.config.dataDir, "master.key"),
			"utf8",
		).trim();
		const other = await start({
			...server.config,
			dataDir: directory,
			artifactsDir: join(directory, "artifacts"),
			masterKey,
		});
		try {
			const there = new Client({
				endpoint: `http://127.0.0.1:${other.ports.http}`,
				projectId: server.api.projectId,
				credentials: {
					accessKey: server.credentials.access_key,
					secretKey: server.credentials.secret_key,
				},
			});
			const record = (db: Db, from: number) =>
				recordHistory(
					db,
					entriesOf(there.projectId, "t", from + 10).slice(from),
					new Date(),
				);
			const first = await Watcher.open(server.api);
			// Written by the other node.
			await record(other.db, 0);
			await first.when((w) => devicesOf(w).length === 10);
			await first[Symbol.asyncDispose]();
			await record(server.server.db, 10);
			await using again = await Watcher.open(there, {
				last_event_id: first.lastId,
			});
			await record(server.server.db, 20);
			await again.when((w) => devicesOf(w).length === 20);
			assert.deepEqual(
				[...devicesOf(first), ...devicesOf(again)],
				Array.from({ length: 30 }, (_, index) => `device-${index}`),
			);
		} finally {
			await other[Symbol.asyncDispose]();
			rmSync(directory, { recursive: true, force: true });
		}
	});

	test("entries restored from another cluster are not told as if they were new", async () => {
		await using server = await startServer(postgres);
		const { api } = server;
		const { db } = server.server;
		await recordHistory(
			db,
			entriesOf(api.projectId, "restored", 3),
			new Date(),
		);
		await sql`update history set tx = tx + 1000000000`.execute(db);
		await server.restart();
		const after = server.server.db;
		await until(
			() => after.selectFrom("history").select("tx").execute(),
			(rows) => rows.length === 3 && rows.every(({ tx }) => tx === 0),
		);
		await using watcher = await Watcher.open(api);
		await recordHistory(after, entriesOf(api.projectId, "new", 1), new Date());
		await watcher.when(({ told }) => told.length > 0);
		assert.deepEqual(
			watcher.of("subtask").map(({ data }) => data.task_id),
			["new"],
		);
	});
});
