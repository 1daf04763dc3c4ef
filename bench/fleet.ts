/**
 * A task on a million devices of a dynamic group: when the caller has his 201, when every
 * subtask stands, what others wait for meanwhile, and what it costs to stop it again.
 */
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as pause } from "node:timers/promises";
import { keepResult } from "./results.ts";
import { longestStallMs, openScene, type Scene } from "./scene.ts";

const GOAL_201_MS = 50;
const GOAL_RATIO = 2;
const GOAL_STALL_MS = 50;
const GOAL_READ_MS = 5;

export async function benchFleet(
	{ devices: deviceCount }: { devices: number },
	say: (text: string) => void,
): Promise<void> {
	await using scene = await openScene(1, say);
	const { server, dataDir, api } = scene;
	const file = join(dataDir, "otaru.db");
	addDevices(file, deviceCount - 1);
	say(`${deviceCount} devices stand in the store`);

	const group = await api.call<{ group_id: string }>(
		"POST",
		`/v5/iot/${api.projectId}/device-group`,
		{
			json: {
				name: "everything",
				group_type: "DYNAMIC",
				dynamic_group_rule: "product_id = 'bench'",
			},
		},
	);
	using reader = new DatabaseSync(file, { readOnly: true });
	const standing = reader.prepare(
		"select total, processing, status, expanded_parts = part_count as complete from upgrade_tasks where task_id = ?",
	);
	await longestStallMs(server);

	const sentAtMs = performance.now();
	const { task_id: taskId } = await api.createTask({
		task_name: "fleet",
		task_type: "moduleUpgrade",
		targets_filter: { group_ids: [group.group_id] },
		document: { package_ids: [scene.packageId] },
	});
	const answeredMs = performance.now() - sentAtMs;
	const during = readsDuring(scene, taskId);
	await until(() => {
		const row = standing.get(taskId);
		return Number(row?.total) === deviceCount && Boolean(row?.complete);
	}, "stand");
	const standingMs = performance.now() - sentAtMs;
	const expandStallMs = await longestStallMs(server);
	say(
		`201 after ${answeredMs.toFixed(0)} ms, all subtasks after ${standingMs.toFixed(0)} ms, longest stall ${expandStallMs.toFixed(0)} ms`,
	);

	await until(
		() => Number(standing.get(taskId)?.processing) === deviceCount,
		"start",
	);
	const startedMs = performance.now() - sentAtMs - standingMs;
	const startStallMs = await longestStallMs(server);
	const reads = await during.stop();
	say(
		`all started ${startedMs.toFixed(0)} ms later, longest stall ${startStallMs.toFixed(0)} ms; ${reads.show.length} shows, ${reads.list.length} lists meanwhile`,
	);

	const stopAtMs = performance.now();
	await api.stopTask(taskId);
	const stopAnsweredMs = performance.now() - stopAtMs;
	await until(() => standing.get(taskId)?.status === "Stopped", "stop");
	const stoppedMs = performance.now() - stopAtMs;
	const stopStallMs = await longestStallMs(server);
	say(
		`stop answered after ${stopAnsweredMs.toFixed(0)} ms, all stopped after ${stoppedMs.toFixed(0)} ms, longest stall ${stopStallMs.toFixed(0)} ms`,
	);

	// With the server at rest, as it was before the task.
	await pause(1_000);
	const rawMs = rawInsertSelect(file, deviceCount);
	say(`raw ${rawMs.toFixed(0)} ms`);
	await server.stop();

	keepResult({
		name: "fleet",
		what: `A moduleUpgrade task on the ${deviceCount.toLocaleString("en-GB")} devices of a dynamic group, embedded store; one round`,
		rows: [
			{
				figure: "201",
				value: `${answeredMs.toFixed(0)} ms`,
				goal: `≤ ${GOAL_201_MS} ms`,
			},
			{
				figure: "all subtasks stand after",
				value: `${standingMs.toFixed(0)} ms`,
			},
			{
				figure: "one raw INSERT … SELECT of the product's devices",
				value: `${rawMs.toFixed(0)} ms`,
			},
			{
				figure: "ratio of the two",
				value: (standingMs / rawMs).toFixed(2),
				goal: `≤ ${GOAL_RATIO}`,
			},
			{
				figure: "all of them started after",
				value: `${startedMs.toFixed(0)} ms more`,
			},
			{
				figure: "show of the task meanwhile, p50 and p99",
				value: `${quantile(reads.show, 0.5)} and ${quantile(reads.show, 0.99)} ms`,
				goal: `≤ ${GOAL_READ_MS} ms`,
			},
			{
				figure: "list of tasks meanwhile, p50 and p99",
				value: `${quantile(reads.list, 0.5)} and ${quantile(reads.list, 0.99)} ms`,
				goal: `≤ ${GOAL_READ_MS} ms`,
			},
			{
				figure: "all of it stopped after",
				value: `${stoppedMs.toFixed(0)} ms`,
			},
			{
				figure: "ratio of stop to creation",
				value: (stoppedMs / standingMs).toFixed(2),
				goal: "≤ 1",
			},
			{
				figure: "longest event-loop stall: expansion, start, stop",
				value: `${expandStallMs.toFixed(0)}, ${startStallMs.toFixed(0)} and ${stopStallMs.toFixed(0)} ms`,
				goal: `≤ ${GOAL_STALL_MS} ms`,
			},
		],
	});
}

/** Asks for the task and for the list of tasks, again and again, from outside. */
function readsDuring({ api }: Scene, taskId: string) {
	const show: number[] = [];
	const list: number[] = [];
	let stopped = false;
	const time = async (into: number[], call: () => Promise<unknown>) => {
		const startedAtMs = performance.now();
		await call();
		into.push(performance.now() - startedAtMs);
	};
	const running = (async () => {
		while (!stopped) {
			await time(show, () => api.getTask(taskId));
			await time(list, () => api.listTasks({ task_type: "moduleUpgrade" }));
			await pause(20);
		}
	})();
	return {
		async stop() {
			stopped = true;
			await running;
			return { show, list };
		},
	};
}

async function until(holds: () => boolean, words: string): Promise<void> {
	const deadlineMs = performance.now() + 300_000;
	while (!holds()) {
		if (performance.now() > deadlineMs)
			throw new Error(`The subtasks did not ${words} within five minutes.`);
		await pause(5);
	}
}

/** Copies of the one device that the API registered, straight into the store. */
function addDevices(file: string, count: number): void {
	using database = new DatabaseSync(file);
	database.exec("pragma synchronous=off; pragma busy_timeout=10000");
	const columns = database
		.prepare("select name from pragma_table_info('devices')")
		.all()
		.map(({ name }) => String(name));
	const copied = columns.map((name) => {
		switch (name) {
			case "device_id":
			case "link_id":
				return "'bench_' || lower(hex(randomblob(4))) || '_' || n";
			case "record_id":
				return "printf('%012x%012x', 1700000000000 + n / 1000, n)";
			case "node_id":
				return "'node_' || n";
			default:
				return `d.${name}`;
		}
	});
	const insert = database.prepare(
		`with recursive numbers(n) as (select ? union all select n + 1 from numbers where n < ?)
		insert into devices (${columns.join(", ")}) select ${copied.join(", ")} from numbers, (select * from devices limit 1) as d`,
	);
	const pieces = 100_000;
	for (let from = 1; from <= count; from += pieces)
		insert.run(from, Math.min(from + pieces - 1, count));
	database.exec("update devices set link_id = device_id");
	database.exec("analyze");
}

/**
 * The reference: the same devices as rows of one task, in one statement, in the order in
 * which they were registered.
 */
function rawInsertSelect(file: string, rows: number): number {
	using database = new DatabaseSync(file);
	database.exec(
		"pragma synchronous=full; pragma busy_timeout=10000; pragma wal_autocheckpoint=0; pragma cache_size=-65536",
	);
	const insert = database.prepare(
		`insert into subtasks (task_id, position, device_id, status, updated_at)
		select ?, row_number() over (order by d.record_id), d.device_id, 'Waitting', '2026-01-29T08:00:00.000Z'
		from devices d join products p on p.product_key = d.product_key
		where p.product_id = 'bench' order by d.record_id`,
	);
	const startedAtMs = performance.now();
	const { changes } = insert.run("reference");
	const elapsedMs = performance.now() - startedAtMs;
	if (Number(changes) !== rows)
		throw new Error(`The reference inserted ${changes} rows, not ${rows}.`);
	return elapsedMs;
}

function quantile(values: readonly number[], share: number): string {
	const sorted = [...values].sort((a, b) => a - b);
	const at = Math.min(sorted.length - 1, Math.floor(sorted.length * share));
	return (sorted[at] ?? 0).toFixed(1);
}
