/**
 * `otaru demo`: the first minute with this product. A real server on an empty store,
 * real packages, simulated devices on real sockets, and an upgrade to watch.
 */
import { randomBytes } from "node:crypto";
import {
	existsSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
} from "node:fs";
import { createServer as createTcpServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { readConfig } from "../server/config.ts";
import { startServer as openServer } from "../server/server.ts";
import type { DeviceIdentity } from "../simulator/connection.ts";
import { Fleet } from "../simulator/fleet.ts";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import type { Task } from "../wire/tasks.ts";
import type { Command } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { untilInterrupted } from "./interrupt.ts";
import { bytesText, columns, counted, durationText, Output } from "./output.ts";
import { inParallel, registerDevices } from "./registry.ts";
import { brokerUrl } from "./session.ts";

const PRODUCT_ID = "thermostat";
const BUCKET = "demo";
const KIB = 1024;

interface DemoModule {
	name: string;
	alias: string;
	oldVersion: string;
	newVersion: string;
	packageBytes: number;
}

const demoModules: readonly DemoModule[] = [
	{
		name: "MCU",
		alias: "Micro Controller Unit",
		oldVersion: "1.0.0",
		newVersion: "1.1.0",
		packageBytes: 256 * KIB,
	},
	{
		name: "Modem",
		alias: "Cellular modem",
		oldVersion: "2.0.0",
		newVersion: "2.1.0",
		packageBytes: 384 * KIB,
	},
];

const help = `otaru demo: a server and its devices, upgraded in front of you

Starts a server on an empty store in a temporary directory, makes a product with the
modules ${demoModules.map(({ name }) => name).join(" and ")}, uploads packages of random bytes, connects simulated
devices over MQTT, plain and with TLS, upgrades both modules on all of them, and
stays up until Ctrl-C. It listens on this machine only and leaves nothing behind.

Usage
  npm run demo
  npm run demo -- [options]

Options
  --devices N    simulated devices, at most 5000 (200)
  --data DIR     keep the server's data here; an empty or new directory
  --exit         end after the upgrade: 0 only if the management API says that
                 every device runs the new versions

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
`;

async function run(args: string[]): Promise<number> {
	const { values } = parseArgs({
		args,
		options: {
			devices: { type: "string", default: "200" },
			data: { type: "string" },
			exit: { type: "boolean", default: false },
		},
	});
	const count = /^\d{1,4}$/.test(values.devices) ? Number(values.devices) : 0;
	if (count < 1 || count > 5000) {
		throw new CommandError(
			`--devices must be a whole number from 1 to 5000, not "${values.devices}".`,
			"See npm run demo -- --help.",
			exitCodes.usage,
		);
	}
	const stop = untilInterrupted();
	await using cleanup = new AsyncDisposableStack();
	const dataDir = dataDirectory(values.data, cleanup);
	try {
		const options = {
			count,
			dataDir,
			keepsData: values.data !== undefined,
			endAfterwards: values.exit,
		};
		return await show(options, stop.signal, cleanup);
	} catch (error) {
		if (stop.signal.aborted) return exitCodes.interrupted.code;
		throw error;
	}
}

async function show(
	options: {
		count: number;
		dataDir: string;
		keepsData: boolean;
		endAfterwards: boolean;
	},
	signal: AbortSignal,
	cleanup: AsyncDisposableStack,
): Promise<number> {
	const { count, dataDir, endAfterwards } = options;
	const out = new Output();
	const step = (name: string, text: string) =>
		out.line(
			`  ${out.paint("green", "✓")} ${out.paint("bold", name.padEnd(9))} ${text}`,
		);
	const detail = (text: string) =>
		out.line(`              ${out.paint("dim", text)}`);
	out.line();
	out.line(
		`  ${out.paint("bold", "Otaru")} ${out.paint("dim", "· over-the-air updates for devices made of several firmware modules")}`,
	);
	out.line();

	const { credentials, movedPorts, readyMs } = await startServer(
		dataDir,
		cleanup,
	);
	const client = new Client({
		endpoint: credentials.endpoint,
		projectId: credentials.project_id,
		credentials: {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	});
	step(
		"Server",
		`ready after ${durationText(readyMs)}, on an empty embedded store`,
	);
	detail(`management API  ${credentials.endpoint}`);
	detail(`for devices     ${devicesListenText(credentials)}`);
	for (const moved of movedPorts) detail(moved);
	signal.throwIfAborted();

	const packageIds = await makeProduct(client, credentials.app_id, step);
	signal.throwIfAborted();

	const { fleet, identities } = await connectDevices(
		client,
		credentials,
		count,
		out,
		signal,
	);
	cleanup.use(fleet);
	const overTls = identities.length - plainShare(count);
	step(
		"Devices",
		`${count} simulated ones online: ${plainShare(count)} over MQTT, ${overTls} over MQTT with TLS`,
	);
	out.line();

	const startedAtMs = Date.now();
	const tasks: Task[] = [];
	for (const module of demoModules) {
		const packageId = packageIds.get(module.name) ?? "";
		tasks.push(
			await upgrade(client, module, packageId, identities, out, signal),
		);
	}
	const elapsedMs = Date.now() - startedAtMs;
	const upgraded = await countUpgraded(client, identities);
	out.line();
	const verdict = `${upgraded} of ${count} ${count === 1 ? "device" : "devices"} on the new version`;
	const complete =
		upgraded === count && tasks.every((task) => isComplete(task, count));
	if (!complete) {
		out.line(`  ${out.paint("red", "✗")} ${out.paint("bold", verdict)}`);
		await showFailures(client, tasks, out);
		if (endAfterwards) return exitCodes.failed.code;
	} else {
		out.line(`  ${out.paint("green", "✓")} ${out.paint("bold", verdict)}`);
		detail(
			`${counted(fleet.counts.downloads, "download")}, ${bytesText(fleet.counts.downloadedBytes)} over HTTPS, every hash checked, in ${durationText(elapsedMs)};`,
		);
		detail(
			"the management API has each device's versions and both tasks at Success",
		);
	}
	out.line();
	if (endAfterwards) return exitCodes.ok.code;

	await showNextSteps(
		client,
		credentials,
		dataDir,
		identities,
		packageIds,
		options.keepsData,
		out,
	);
	await new Promise<void>((resolve) => {
		if (signal.aborted) resolve();
		else signal.addEventListener("abort", () => resolve(), { once: true });
	});
	out.line();
	return complete ? exitCodes.ok.code : exitCodes.failed.code;
}

// --- the server -----------------------------------------------------------------

function dataDirectory(
	given: string | undefined,
	cleanup: AsyncDisposableStack,
): string {
	if (given === undefined) {
		const directory = mkdtempSync(join(tmpdir(), "otaru-demo-"));
		cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
		return directory;
	}
	const directory = resolve(given);
	if (existsSync(directory) && readdirSync(directory).length > 0) {
		throw new CommandError(
			`${directory} is not empty, and the demo begins with an empty store.`,
			"Name another directory with --data, or leave it out.",
			exitCodes.usage,
		);
	}
	return directory;
}

async function startServer(
	dataDir: string,
	cleanup: AsyncDisposableStack,
): Promise<{
	credentials: CredentialsFile;
	movedPorts: string[];
	readyMs: number;
}> {
	const startedAtMs = performance.now();
	const host = "127.0.0.1";
	const movedPorts: string[] = [];
	const env: Record<string, string> = {
		OTARU_DATA: dataDir,
		OTARU_LOG_LEVEL: "error",
		OTARU_HTTP_HOST: host,
		OTARU_MQTT_HOST: host,
		OTARU_DEVICE_HOST: host,
		OTARU_DEVICE_PUBLIC_HOST: host,
	};
	const defaults = readConfig(env);
	for (const [setting, port] of [
		["OTARU_HTTP_PORT", defaults.http.port],
		["OTARU_MQTT_PORT", defaults.devices.mqtt?.port ?? 0],
		["OTARU_MQTTS_PORT", defaults.devices.mqtts.port],
		["OTARU_DEVICE_PORT", defaults.devices.https.port],
	] as const) {
		if (await isFree(host, port)) continue;
		env[setting] = "0";
		movedPorts.push(
			`port ${port} is taken on this machine: another one is used instead`,
		);
	}
	cleanup.use(await openServer(readConfig(env)));
	const file = join(dataDir, "credentials.json");
	const credentials = JSON.parse(readFileSync(file, "utf8")) as CredentialsFile;
	return { credentials, movedPorts, readyMs: performance.now() - startedAtMs };
}

function isFree(host: string, port: number): Promise<boolean> {
	return new Promise((resolve) => {
		const probe = createTcpServer();
		probe.once("error", () => resolve(false));
		probe.listen(port, host, () => probe.close(() => resolve(true)));
	});
}

function devicesListenText(credentials: CredentialsFile): string {
	const { mqtt_endpoint, mqtts_endpoint, device_endpoint } = credentials;
	return [mqtt_endpoint, mqtts_endpoint, device_endpoint]
		.filter(Boolean)
		.join("  ");
}

// --- what is upgraded -------------------------------------------------------------

/** Product, modules and packages. @returns the id of each module's package. */
async function makeProduct(
	client: Client,
	appId: string,
	step: (name: string, text: string) => void,
): Promise<Map<string, string>> {
	await client.createProduct({
		app_id: appId,
		product_id: PRODUCT_ID,
		name: "Thermostat",
		device_type: "Thermostat",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
	});
	for (const { name, alias } of demoModules) {
		await client.createOtaModule({
			app_id: appId,
			product_id: PRODUCT_ID,
			module_name: name,
			alias_name: alias,
		});
	}
	step(
		"Product",
		`${PRODUCT_ID}, made of the modules ${demoModules.map(({ name }) => name).join(" and ")}`,
	);
	const packageIds = new Map<string, string>();
	for (const { name, newVersion, packageBytes } of demoModules) {
		const objectKey = `${name}-${newVersion}.bin`;
		await client.putObject(BUCKET, objectKey, randomBytes(packageBytes));
		const { package_id } = await client.createPackage({
			app_id: appId,
			product_id: PRODUCT_ID,
			package_type: "modulePackage",
			module_name: name,
			version: newVersion,
			file_location: {
				obs_location: {
					region_name: "otaru",
					bucket_name: BUCKET,
					object_key: objectKey,
				},
			},
		});
		packageIds.set(name, package_id);
	}
	step(
		"Packages",
		`${demoModules.map((module) => `${module.name} ${module.newVersion} (${bytesText(module.packageBytes)})`).join(" and ")}, random bytes`,
	);
	return packageIds;
}

/** The rest connects with TLS. */
function plainShare(count: number): number {
	return Math.ceil((count * 3) / 4);
}

async function connectDevices(
	client: Client,
	credentials: CredentialsFile,
	count: number,
	out: Output,
	signal: AbortSignal,
): Promise<{ fleet: Fleet; identities: DeviceIdentity[] }> {
	const identities = await registerDevices(
		client,
		{ appId: credentials.app_id, productId: PRODUCT_ID },
		{
			count,
			prefix: "demo",
			signal,
			onProgress: (done) =>
				out.live([
					`    registering devices  ${out.bar(done, count)} ${done}/${count}`,
				]),
		},
	);
	const overTls = brokerUrl("mqtts", credentials.mqtts_endpoint);
	const plain = credentials.mqtt_endpoint
		? brokerUrl("mqtt", credentials.mqtt_endpoint)
		: overTls;
	const fleet = new Fleet({
		members: identities.map((identity, index) => ({
			identity,
			versions: {
				firmware: "1.0.0",
				software: "1.0.0",
				modules: Object.fromEntries(
					demoModules.map(({ name, oldVersion }) => [name, oldVersion]),
				),
			},
			brokerUrl: index < plainShare(count) ? plain : overTls,
		})),
		ca: readFileSync(credentials.ca_file ?? "", "utf8"),
		connectsPerSecond: 400,
	});
	fleet.start();
	const deadlineMs = Date.now() + 30_000 + count * 20;
	// An upgrade of modules goes to devices that have said that they know of modules.
	while (fleet.counts.connected < count || fleet.counts.introductions < count) {
		if (Date.now() > deadlineMs) {
			await fleet[Symbol.asyncDispose]();
			throw new CommandError(
				`Only ${fleet.counts.connected} of ${count} devices could connect: ${fleet.lastTrouble ?? "no reason known"}.`,
				"Try fewer: npm run demo -- --devices 20.",
				exitCodes.failed,
			);
		}
		out.live([
			`    connecting devices   ${out.bar(fleet.counts.connected, count)} ${fleet.counts.connected}/${count}`,
		]);
		await pause(100, undefined, { signal }).catch(async (error) => {
			await fleet[Symbol.asyncDispose]();
			throw error;
		});
	}
	return { fleet, identities };
}

/** Starts the task for one module and shows it until it is over, or does not move any more. */
async function upgrade(
	client: Client,
	module: DemoModule,
	packageId: string,
	identities: readonly DeviceIdentity[],
	out: Output,
	signal: AbortSignal,
): Promise<Task> {
	const total = identities.length;
	const startedAtMs = Date.now();
	let task = await client.createTask({
		task_name: `${module.name}_${module.newVersion.replaceAll(".", "_")}`,
		task_type: "moduleUpgrade",
		targets: identities.map(({ deviceId }) => deviceId),
		document: { package_ids: [packageId] },
	});
	const title =
		`${module.name} ${module.oldVersion} → ${module.newVersion}`.padEnd(22);
	const state = () => {
		const { success, fail } = task.task_progress;
		const failed = fail > 0 ? out.paint("red", `  ${fail} failed`) : "";
		return [
			`    ${title} ${out.bar(success, total)} ${`${success}/${total}`.padStart(9)}  ${durationText(Date.now() - startedAtMs)}${failed}`,
		];
	};
	let movedAtMs = Date.now();
	let before = "";
	while (
		!["Success", "Fail", "PartialSuccess", "Stopped"].includes(task.status)
	) {
		out.live(state());
		await pause(120, undefined, { signal });
		({ batchtask: task } = await client.getTask(task.task_id, { limit: 1 }));
		const now = JSON.stringify(task.task_progress);
		if (now !== before) {
			before = now;
			movedAtMs = Date.now();
		}
		if (Date.now() - movedAtMs > 60_000) break;
	}
	out.settle(state());
	return task;
}

// --- what came of it ---------------------------------------------------------------

function isComplete(task: Task, count: number): boolean {
	const { total, success } = task.task_progress;
	return task.status === "Success" && total === count && success === count;
}

/** Asks the management API for every device: how many run the new version of every module. */
async function countUpgraded(
	client: Client,
	identities: readonly DeviceIdentity[],
): Promise<number> {
	const upgraded = await inParallel(identities.length, 16, async (index) => {
		const device = await client.getDevice(identities[index]?.deviceId ?? "");
		return demoModules.every(({ name, newVersion }) =>
			device.modules.some(
				(module) =>
					module.module_name === name && module.module_version === newVersion,
			),
		);
	});
	return upgraded.filter(Boolean).length;
}

async function showFailures(
	client: Client,
	tasks: readonly Task[],
	out: Output,
): Promise<void> {
	for (const task of tasks) {
		out.line(
			`    ${task.task_name} is ${task.status}: ${JSON.stringify(task.task_progress)}`,
		);
		const { task_details } = await client.getTask(task.task_id, { limit: 50 });
		const bad = task_details
			.filter(({ status }) => status !== "Success")
			.slice(0, 5);
		for (const { target, status, error } of bad)
			out.line(`      ${target} ${status} ${error?.error_msg ?? ""}`);
	}
}

async function showNextSteps(
	client: Client,
	credentials: CredentialsFile,
	dataDir: string,
	identities: readonly DeviceIdentity[],
	packageIds: ReadonlyMap<string, string>,
	keepsData: boolean,
	out: Output,
): Promise<void> {
	const { token } = await client.signIn({
		domainName: credentials.domain_name,
		userName: credentials.user_name,
		password: credentials.password,
	});
	const api = `${credentials.endpoint}/v5/iot/${credentials.project_id}`;
	const [first] = demoModules;
	const rehearsal = JSON.stringify({
		task_name: "rehearsal",
		task_type: "moduleUpgrade",
		targets: [1, 2, 3].map((number) => `${PRODUCT_ID}_sim-000${number}`),
		document: { package_ids: [packageIds.get(first?.name ?? "")] },
	});
	const heading = (text: string) => out.line(`  ${out.paint("bold", text)}`);
	const command = (text: string) => out.line(`    ${out.paint("cyan", text)}`);
	heading("The server stays up. Try it from another terminal:");
	out.line();
	command(`TOKEN=${token}`);
	command(`API=${api}`);
	out.line();
	out.line("    The product's modules, and one of the devices:");
	command(
		`curl -s -H "X-Auth-Token: $TOKEN" "$API/ota-upgrades/modules?app_id=${credentials.app_id}"`,
	);
	command(
		`curl -s -H "X-Auth-Token: $TOKEN" "$API/devices/${identities[0]?.deviceId}"`,
	);
	out.line();
	out.line("    Three more devices that misbehave, and an upgrade for them:");
	command(
		`npm run otaru -- simulate --data ${dataDir} --product ${PRODUCT_ID} --count 3 --fault drop=0.4 --fault fail:10=0.4`,
	);
	command(
		`curl -s -H "X-Auth-Token: $TOKEN" -H "Content-Type: application/json" "$API/batchtasks" -d '${rehearsal}'`,
	);
	out.line();
	out.line(
		`    Access key, password and authority   ${join(dataDir, "credentials.json")}`,
	);
	out.line(
		`    Health and metrics                   ${credentials.endpoint}/health/ready  ${credentials.endpoint}/metrics`,
	);
	out.line();
	const end = keepsData
		? `Ctrl-C ends the demo; its data stays in ${dataDir}.`
		: "Ctrl-C ends the demo and removes its data.";
	out.line(`  ${out.paint("dim", end)}`);
}

export const demo: Command = {
	summary: "a server and 200 devices, upgraded in front of you",
	help,
	run,
};
