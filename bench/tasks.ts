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
	/** The reference, run right after it: whatever else the machine does burdens both. */
	rawMs: number;
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
		const measured = await createAndWatch(scene, file, deviceCount);
		// The devices are to be free again for the next round.
		const { batchtasks } = await api.listTasks({
			task_type: "moduleUpgrade",
			limit: 1,
		});
		const taskId = batchtasks[0]?.task_id ?? "";
		await api.stopTask(taskId);
		await untilStatus(scene, taskId, "Stopped");
		const rawMs = rawInsertSelect(file, deviceCount);
		rounds.push({ ...measured, rawMs });
		say(
			`round ${round}: 201 after ${measured.answeredMs.toFixed(0)} ms, all subtasks after ${measured.standingMs.toFixed(0)} ms, longest stall ${measured.stallMs.toFixed(0)} ms; raw ${rawMs.toFixed(0)} ms`,
		);
	}
	await server.stop();

	const answered = median(rounds.map(({ answeredMs }) => answeredMs));
	const standing = median(rounds.map(({ standingMs }) => standingMs));
	const raw = median(rounds.map(({ rawMs }) => rawMs));
	const ratio = median(
		rounds.map(({ standingMs, rawMs }) => standingMs / rawMs),
	);
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
				value: `${raw.toFixed(0)} ms`,
			},
			{
				figure: "ratio of the two, round by round",
				value: ratio.toFixed(2),
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
): Promise<Omit<Round, "rawMs">> {
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
		"select total, expanded_parts = part_count as complete from upgrade_tasks order by created_at desc, task_id desc limit 1",
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
	database.exec(
		"pragma synchronous=full; pragma busy_timeout=10000; pragma wal_autocheckpoint=0",
	);
	const insert = database.prepare(
		`insert into subtasks (task_id, position, device_id, status, updated_at)
		select ?, row_number() over (order by record_id), device_id, 'Waitting', '2026-01-29T08:00:00.000Z'
		from devices order by record_id limit ?`,
	);
	const startedAtMs = performance.now();
	const { changes } = insert.run("reference", rows);
	const elapsedMs = performance.now() - startedAtMs;
	if (Number(changes) !== rows)
		throw new Error(`The reference inserted ${changes} rows, not ${rows}.`);
	database.exec("delete from subtasks where task_id = 'reference'");
	return elapsedMs;
}

function median(values: readonly number[]): number {
	const sorted = [...values].sort((a, b) => a - b);
	return sorted[Math.floor(sorted.length / 2)] ?? 0;
}
