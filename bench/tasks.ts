/**
 * A task on as many listed devices as one call takes: when the caller has his 201, when
 * every subtask stands, and how long the server's event loop was held meanwhile.
 */
import { request } from "node:http";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as pause } from "node:timers/promises";
import { sha256Hex, signRequest } from "../wire/client.ts";
import { keepResult } from "./results.ts";
import { longestStallMs, openScene, type Scene } from "./scene.ts";

const ROUNDS = 5;
const GOAL_201_MS = 50;
const GOAL_RATIO = 2;
const GOAL_STALL_MS = 50;

interface Round {
	answeredMs: number;
	/** From the end of the body to the last subtask. */
	standingMs: number;
	stallMs: number;
}

export interface TasksOptions {
	devices: number;
}

export async function benchTasks(
	{ devices: deviceCount }: TasksOptions,
	say: (text: string) => void,
): Promise<void> {
	await using scene = await openScene(deviceCount, say);
	const { server, dataDir, api } = scene;
	const file = join(dataDir, "otaru.db");
	const rounds: Round[] = [];
	for (let round = 1; round <= ROUNDS; round++) {
		rounds.push(await createAndWatch(scene, file, deviceCount));
		const last = rounds.at(-1) as Round;
		say(
			`round ${round}: 201 after ${last.answeredMs.toFixed(0)} ms, all subtasks after ${last.standingMs.toFixed(0)} ms, longest stall ${last.stallMs.toFixed(0)} ms`,
		);
		// The devices are to be free again for the next round.
		const { batchtasks } = await api.listTasks({
			task_type: "moduleUpgrade",
			limit: 1,
		});
		const taskId = batchtasks[0]?.task_id ?? "";
		await api.stopTask(taskId);
		await untilStatus(scene, taskId, "Stopped");
	}
	await server.stop();
	const rawMs = rawInsertSelect(file, deviceCount);

	const answered = median(rounds.map(({ answeredMs }) => answeredMs));
	const standing = median(rounds.map(({ standingMs }) => standingMs));
	const stall = Math.max(...rounds.map(({ stallMs }) => stallMs));
	keepResult({
		name: "tasks",
		what: `A moduleUpgrade task on ${deviceCount.toLocaleString("en-GB")} listed devices, embedded store; medians of ${ROUNDS} rounds, the stall is the worst of them`,
		rows: [
			{
				figure: "201 after the body was sent",
				value: `${answered.toFixed(0)} ms`,
				goal: `≤ ${GOAL_201_MS} ms`,
			},
			{
				figure: "all subtasks stand after",
				value: `${standing.toFixed(0)} ms`,
			},
			{
				figure: "one raw INSERT … SELECT of as many rows",
				value: `${rawMs.toFixed(0)} ms`,
			},
			{
				figure: "ratio of the two",
				value: (standing / rawMs).toFixed(2),
				goal: `≤ ${GOAL_RATIO}`,
			},
			{
				figure: "longest event-loop stall",
				value: `${stall.toFixed(0)} ms`,
				goal: `≤ ${GOAL_STALL_MS} ms`,
			},
		],
	});
}

async function createAndWatch(
	{ server, api, credentials, devices, packageId }: Scene,
	file: string,
	deviceCount: number,
): Promise<Round> {
	const url = new URL(`/v5/iot/${api.projectId}/batchtasks`, server.url);
	const body = Buffer.from(
		JSON.stringify({
			task_name: "tasks",
			task_type: "moduleUpgrade",
			targets: devices.map(({ deviceId }) => deviceId),
			document: { package_ids: [packageId] },
		}),
	);
	const headers = { "content-type": "application/json", host: url.host };
	const signed = await signRequest(
		{
			method: "POST",
			url,
			headers,
			payloadHash: await sha256Hex(body),
			date: new Date(),
		},
		{
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	);
	// The store is asked by a connection of its own: asking the server would slow it.
	using reader = new DatabaseSync(file, { readOnly: true });
	const standing = reader.prepare(
		"select total, expanded_chunks = chunk_count as complete from upgrade_tasks order by created_at desc, task_id desc limit 1",
	);
	const tasks = reader.prepare("select count(*) as count from upgrade_tasks");
	const before = Number(tasks.get()?.count);
	await longestStallMs(server);

	let sentAtMs = 0;
	const answered = new Promise<number>((resolve, reject) => {
		const call = request(url, {
			method: "POST",
			headers: { ...headers, ...signed, "content-length": body.length },
		});
		call.on("finish", () => {
			sentAtMs = performance.now();
		});
		call.on("response", (response) => {
			const atMs = performance.now();
			response.resume();
			if (response.statusCode === 201) resolve(atMs);
			else reject(new Error(`status ${response.statusCode}`));
		});
		call.on("error", reject);
		call.end(body);
	});
	const deadlineMs = performance.now() + 120_000;
	for (;;) {
		if (Number(tasks.get()?.count) > before) {
			const row = standing.get();
			if (Number(row?.total) === deviceCount && row?.complete) break;
		}
		if (performance.now() > deadlineMs)
			throw new Error("The subtasks did not stand within two minutes.");
		await pause(2);
	}
	const standingMs = performance.now() - sentAtMs;
	return {
		answeredMs: (await answered) - sentAtMs,
		standingMs,
		stallMs: await longestStallMs(server),
	};
}

async function untilStatus(
	{ api }: Scene,
	taskId: string,
	status: string,
): Promise<void> {
	const deadlineMs = Date.now() + 120_000;
	for (;;) {
		const { batchtask } = await api.getTask(taskId, { limit: 1 });
		if (batchtask.status === status) return;
		if (Date.now() > deadlineMs)
			throw new Error(`The task stays ${batchtask.status}.`);
		await pause(100);
	}
}

/** The reference: the rows of one task in one statement, into the same schema in the same file. */
function rawInsertSelect(file: string, rows: number): number {
	using database = new DatabaseSync(file);
	database.exec("pragma journal_mode=wal; pragma synchronous=full");
	const insert = database.prepare(
		`insert into subtasks (task_id, position, device_id, status, updated_at)
		select ?, row_number() over (order by record_id), device_id, 'Waitting', '2026-01-29T08:00:00.000Z'
		from devices order by record_id limit ?`,
	);
	const remove = database.prepare("delete from subtasks where task_id = ?");
	const times: number[] = [];
	for (let round = 1; round <= ROUNDS; round++) {
		const taskId = `reference${round}`;
		const startedAtMs = performance.now();
		const { changes } = insert.run(taskId, rows);
		times.push(performance.now() - startedAtMs);
		if (Number(changes) !== rows)
			throw new Error(`The reference inserted ${changes} rows, not ${rows}.`);
		remove.run(taskId);
	}
	return median(times);
}

function median(values: readonly number[]): number {
	const sorted = [...values].sort((a, b) => a - b);
	return sorted[Math.floor(sorted.length / 2)] ?? 0;
}
