/**
 * Durable device reports per second, from real MQTT sockets: each report is a QoS 1
 * message that changes a running subtask, and counts when its PUBACK is there, which the
 * server sends after the commit.
 */
import { execFileSync, fork } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import type { FromLoad, LoadPhase, LoadPlan } from "./load/reporters.ts";
import { keepResult } from "./results.ts";
import { longestStallMs, MODULE, openScene, rate } from "./scene.ts";

/** First one report at a time on each connection, then ten without waiting. */
const PHASES = [
	{ window: 1, upToProgress: 49 },
	{ window: 10, upToProgress: 99 },
] as const satisfies LoadPhase[];
const GOAL_PER_SECOND = 10_000;
/** Rows per commit of the references: one, and about what a server's group commit comes to. */
const REFERENCES = [1, 64] as const;

export interface ReportsOptions {
	connections: number;
}

export async function benchReports(
	{ connections }: ReportsOptions,
	say: (text: string) => void,
): Promise<void> {
	await using scene = await openScene(connections, say);
	const { server, api, devices, packageId } = scene;
	const load = new Load({
		host: "127.0.0.1",
		port: server.ports.mqtt,
		devices,
		module: MODULE,
	});
	await using _ended = load;
	await load.hears("connected");
	say(`${connections} connections, each signed in with its password`);
	const { task_id } = await api.createTask({
		task_name: "reports",
		task_type: "moduleUpgrade",
		targets: devices.map(({ deviceId }) => deviceId),
		document: { package_ids: [packageId] },
	});
	await load.hears("noticed");
	say("every device has its notice; reporting");
	const phases = [];
	for (const phase of PHASES) {
		await longestStallMs(server);
		const done = await load.run(phase);
		phases.push({ ...phase, ...done, stallMs: await longestStallMs(server) });
	}
	const { batchtask } = await api.getTask(task_id, { limit: 1 });
	if (batchtask.task_progress.processing !== connections)
		throw new Error(
			`The reports were to leave ${connections} subtasks running: ${JSON.stringify(batchtask.task_progress)}`,
		);
	// Acknowledged is stored: seen in the file of a server that got no time to tidy up.
	await server.kill();
	checkStored(join(scene.dataDir, "otaru.db"), connections);

	const references = REFERENCES.map((rowsPerCommit) => ({
		rowsPerCommit,
		perSecond: rawInserts(rowsPerCommit),
	}));
	const reports = phases.reduce((sum, phase) => sum + phase.reports, 0);
	keepResult({
		name: "reports",
		what: `${reports.toLocaleString("en-GB")} progress reports with QoS 1 over ${connections} plain MQTT connections, embedded store, every acknowledged report found in the file after a kill; reports of one device that arrive together are settled in one write. The load comes from a second process on the same machine`,
		rows: phases.flatMap((phase) => {
			const perSecond = (phase.reports / phase.elapsedMs) * 1000;
			const each = `${phase.window} at a time`;
			return [
				{
					figure: `durable reports, ${each} per connection`,
					value: rate(perSecond, 1),
					goal: `≥ ${GOAL_PER_SECOND.toLocaleString("en-GB")}/s`,
				},
				...references.map((reference) => ({
					figure: `— ratio to raw node:sqlite inserts, ${reference.rowsPerCommit} per commit`,
					value: `${(perSecond / reference.perSecond).toFixed(2)} (of ${rate(reference.perSecond, 1)})`,
				})),
				{
					figure: "— report to PUBACK, p50 and p99",
					value: `${phase.p50Ms.toFixed(0)} and ${phase.p99Ms.toFixed(0)} ms`,
				},
				{
					figure: "— longest event-loop stall",
					value: `${phase.stallMs.toFixed(0)} ms`,
				},
			];
		}),
	});
}

function checkStored(file: string, connections: number): void {
	using database = new DatabaseSync(file);
	const last = PHASES[PHASES.length - 1]?.upToProgress ?? 0;
	const row = database
		.prepare("select count(*) as count from subtasks where progress = ?")
		.get(last);
	if (Number(row?.count) !== connections)
		throw new Error(
			`${row?.count} of ${connections} devices have their last acknowledged report in the store.`,
		);
}

/** Rows a second of bare durable inserts, in a process of its own. */
function rawInserts(rowsPerCommit: number): number {
	const directory = mkdtempSync(join(tmpdir(), "otaru-bench-raw-"));
	try {
		const program = join(import.meta.dirname, "load", "raw-inserts.ts");
		const output = execFileSync(
			process.execPath,
			[program, join(directory, "raw.db"), String(rowsPerCommit), "2000"],
			{ encoding: "utf8" },
		);
		const { rows, elapsedMs } = JSON.parse(output) as {
			rows: number;
			elapsedMs: number;
		};
		return (rows / elapsedMs) * 1000;
	} finally {
		rmSync(directory, { recursive: true });
	}
}

/** The process that plays the devices. */
class Load implements AsyncDisposable {
	readonly #child = fork(join(import.meta.dirname, "load", "reporters.ts"));
	readonly #said: FromLoad[] = [];
	#exited = false;
	#wake: () => void = () => {};

	constructor(plan: LoadPlan) {
		this.#child.on("message", (message: FromLoad) => {
			this.#said.push(message);
			this.#wake();
		});
		this.#child.on("exit", () => {
			this.#exited = true;
			this.#wake();
		});
		this.#child.send(plan);
	}

	/** @returns the figures of this phase. */
	async run(phase: LoadPhase): Promise<FromLoad & { kind: "done" }> {
		this.#said.length = 0;
		this.#child.send(phase);
		return this.hears("done");
	}

	/** @throws when it fails or ends instead, or says nothing for two minutes. */
	async hears<K extends FromLoad["kind"]>(
		kind: K,
	): Promise<FromLoad & { kind: K }> {
		const deadlineMs = Date.now() + 120_000;
		for (;;) {
			for (const said of this.#said) {
				if (said.kind === kind) return said as FromLoad & { kind: K };
				if (said.kind === "failed") throw new Error(said.reason);
			}
			if (this.#exited || Date.now() > deadlineMs)
				throw new Error(`The load generator never said "${kind}".`);
			await new Promise<void>((resolve) => {
				const timer = setTimeout(resolve, 1000);
				this.#wake = () => {
					clearTimeout(timer);
					resolve();
				};
			});
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		if (this.#exited) return;
		const gone = new Promise((resolve) => this.#child.once("exit", resolve));
		this.#child.kill("SIGKILL");
		await gone;
	}
}
