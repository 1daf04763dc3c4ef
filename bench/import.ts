/**
 * A million devices from one file, through the front door: how long it takes until all
 * of them stand, what the server's memory and event loop say meanwhile, and how long the
 * store alone needs for the same rows.
 */
import { createWriteStream, openAsBlob, statSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { pipeline } from "node:stream/promises";
import { setTimeout as pause } from "node:timers/promises";
import { openStore } from "../server/database/database.ts";
import type { DeviceImport } from "../wire/device-imports.ts";
import { keepResult } from "./results.ts";
import { openScene, rate, type Scene } from "./scene.ts";

const GOAL_SECONDS = 60;
const GOAL_RESIDENT_MB = 250;
const GOAL_STALL_MS = 50;
const SAMPLE_MS = 250;

export interface ImportOptions {
	devices: number;
}

export async function benchImport(
	{ devices }: ImportOptions,
	say: (text: string) => void,
): Promise<void> {
	await using scene = await openScene(0, say);
	const { server, dataDir } = scene;
	const file = join(dataDir, "devices.csv");
	await writeFile(file, devices);
	const sizeMb = statSync(file).size / 1e6;
	const idle = await sample(scene);
	say(
		`a file of ${sizeMb.toFixed(0)} MB; the idle server has ${idle.residentMb.toFixed(0)} MB`,
	);

	const first = await importAndWatch(scene, file, say);
	if (first.job.created !== devices)
		throw new Error(`Not all were registered: ${JSON.stringify(first.job)}`);
	const second = await importAndWatch(scene, file, say);
	if (second.job.unchanged !== devices)
		throw new Error(`Not all were found: ${JSON.stringify(second.job)}`);
	await server.stop();
	const rawSeconds = await rawInsertSelect(dataDir, devices);
	say(`raw: ${rawSeconds.toFixed(1)} s`);

	const peakMb = Math.max(first.residentMb, second.residentMb);
	const stallMs = Math.max(first.stallMs, second.stallMs);
	keepResult({
		name: "import",
		what: `${devices.toLocaleString("en-GB")} devices from one CSV file of ${sizeMb.toFixed(0)} MB, without secrets, embedded store; the load comes from a second process on the same machine`,
		rows: [
			{
				figure: "202 after the upload began",
				value: `${first.uploadSeconds.toFixed(1)} s`,
			},
			{
				figure: "all devices stand after the 202",
				value: `${first.seconds.toFixed(1)} s, ${rate(devices, first.seconds)}`,
				goal: `≤ ${GOAL_SECONDS} s for a million`,
			},
			{
				figure: "one raw INSERT … SELECT each for devices and history",
				value: `${rawSeconds.toFixed(1)} s`,
			},
			{
				figure: "ratio of the two",
				value: (first.seconds / rawSeconds).toFixed(2),
			},
			{
				figure: "the same file again, nothing to be done",
				value: `${second.seconds.toFixed(1)} s`,
			},
			{
				figure: "resident memory of the server at its highest",
				value: `${peakMb.toFixed(0)} MB (${idle.residentMb.toFixed(0)} MB before)`,
				goal: `≤ ${GOAL_RESIDENT_MB} MB`,
			},
			{
				figure: "longest event-loop stall",
				value: `${stallMs.toFixed(0)} ms`,
				goal: `≤ ${GOAL_STALL_MS} ms`,
			},
		],
	});
}

/** As a factory writes it: in the order of the serial numbers. */
async function writeFile(file: string, devices: number): Promise<void> {
	await pipeline(function* () {
		yield "node_id,product_id,device_name\n";
		for (let from = 1; from <= devices; from += 1_000) {
			let text = "";
			for (let n = from; n < from + 1_000 && n <= devices; n++) {
				const serial = String(n).padStart(9, "0");
				text += `SN${serial},bench,Thermometer-${serial}\n`;
			}
			yield text;
		}
	}, createWriteStream(file));
}

interface Watched {
	job: DeviceImport;
	uploadSeconds: number;
	/** From the 202 to the end. */
	seconds: number;
	residentMb: number;
	stallMs: number;
}

async function importAndWatch(
	scene: Scene,
	file: string,
	say: (text: string) => void,
): Promise<Watched> {
	const { api, credentials } = scene;
	await sample(scene);
	const beganMs = performance.now();
	let job = await api.importDevices(await openAsBlob(file), {
		format: "csv",
		appId: credentials.app_id,
	});
	const acceptedMs = performance.now();
	let { residentMb, stallMs } = await sample(scene);
	while (job.status === "Processing") {
		await pause(SAMPLE_MS);
		const now = await sample(scene);
		residentMb = Math.max(residentMb, now.residentMb);
		stallMs = Math.max(stallMs, now.stallMs);
		job = await api.getDeviceImport(job.import_id);
	}
	const watched = {
		job,
		uploadSeconds: (acceptedMs - beganMs) / 1000,
		seconds: (performance.now() - acceptedMs) / 1000,
		residentMb,
		stallMs,
	};
	say(
		`${job.created} created, ${job.unchanged} unchanged in ${watched.seconds.toFixed(1)} s after an upload of ${watched.uploadSeconds.toFixed(1)} s; at most ${residentMb.toFixed(0)} MB, longest stall ${stallMs.toFixed(0)} ms`,
	);
	return watched;
}

/** What the server's own metrics say; the stall is that since they were last asked. */
async function sample({
	server,
}: Scene): Promise<{ residentMb: number; stallMs: number }> {
	const metrics = await (await fetch(`${server.url}/metrics`)).text();
	const read = (name: string) => {
		const value = new RegExp(`^${name} (\\S+)$`, "m").exec(metrics)?.[1];
		if (value === undefined)
			throw new Error(`The server's metrics have no ${name}.`);
		return Number(value);
	};
	return {
		residentMb: read("otaru_process_resident_memory_bytes") / 1e6,
		stallMs: read("otaru_nodejs_eventloop_lag_max_seconds") * 1000,
	};
}

/** The reference: the same rows into an empty store of the same schema, a statement for each table. */
async function rawInsertSelect(
	dataDir: string,
	devices: number,
): Promise<number> {
	const file = join(dataDir, "reference.db");
	await (await openStore({ kind: "sqlite", file }))[Symbol.asyncDispose]();
	using database = new DatabaseSync(file);
	database.exec(
		"pragma journal_mode=wal; pragma synchronous=full; pragma cache_size=-65536; pragma foreign_keys=off; pragma wal_autocheckpoint=10000",
	);
	database.prepare("attach ? as imported").run(join(dataDir, "otaru.db"));
	const startedAtMs = performance.now();
	const { changes } = database
		.prepare(
			"insert into devices select * from imported.devices order by rowid",
		)
		.run();
	database
		.prepare("insert into history select * from imported.history order by seq")
		.run();
	const seconds = (performance.now() - startedAtMs) / 1000;
	if (Number(changes) !== devices)
		throw new Error(`The reference inserted ${changes} rows, not ${devices}.`);
	return seconds;
}
