/**
 * Programs that others wrote, unmodified, against a real server: the vendor's cloud SDK
 * drives the management API, a device on the vendor's device SDK is upgraded, and a
 * fuzzer makes calls from the API's own description.
 *
 * Prints a line per client and at the end "N passed, N failed". A client that could not
 * run, because a registry or a tool was out of reach, counts as failed and says why.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { Fleet } from "../../simulator/fleet.ts";
import { Client } from "../../wire/client.ts";
import { ServerProcess } from "../support/server-process.ts";
import { fuzz, runSamples } from "./description.ts";
import {
	NotRun,
	prepareFirmware,
	prepareFuzzer,
	prepareJava,
	preparePython,
} from "./toolchain.ts";

const CLIENT_TIMEOUT_MS = 90_000;
/** Statuses that a task keeps. */
const ENDED = new Set(["Success", "Fail", "PartialSuccess", "Stopped"]);

/** Of `credentials.json`, what the server writes at its first start. */
interface Credentials {
	endpoint: string;
	mqtts_endpoint: string;
	ca_file: string;
	access_key: string;
	secret_key: string;
	project_id: string;
	project_name: string;
	app_id: string;
}

interface World {
	credentials: Credentials;
	api: Client;
	/** For the files of the clients; emptied at the end. */
	dir: string;
}

interface ForeignClient {
	name: string;
	/** @throws NotRun when it cannot start; any other error when something does not fit. */
	run(world: World): Promise<void>;
}

const clients: ForeignClient[] = [
	{
		name: "cloud SDK for Python, SDK-HMAC-SHA256",
		run: (world) => useCloudSdk(world, "cloud_sdk.py", "plain"),
	},
	{
		name: "cloud SDK for Python, V11-HMAC-SHA256",
		run: (world) => useCloudSdk(world, "cloud_sdk.py", "derived"),
	},
	{
		name: "cloud SDK for Python, tags, groups and tasks, SDK-HMAC-SHA256",
		run: (world) => useCloudSdk(world, "cloud_tasks.py", "plain"),
	},
	{
		name: "cloud SDK for Python, tags, groups and tasks, V11-HMAC-SHA256",
		run: (world) => useCloudSdk(world, "cloud_tasks.py", "derived"),
	},
	{
		name: "cloud SDK for Python, 500 requests of its signers, also altered",
		run: (world) => useCloudSdk(world, "signers.py", "plain"),
	},
	{
		name: "the description's Python samples of modules and packages, as they stand",
		run: runSamples,
	},
	{
		name: "thousands of calls made from the description's schemas",
		run: fuzz,
	},
	{
		name: "device SDK for Java, signed download address",
		run: (world) => upgradeDevice(world, "presigned"),
	},
	{
		name: "device SDK for Java, download token",
		run: (world) => upgradeDevice(world, "token"),
	},
	{
		name: "device SDK for Java, a gateway with three children upgrades two of them",
		run: upgradeBehindGateway,
	},
];

/** What a Python program asks for when it wants a device to connect. */
interface WantedDevice {
	device_id: string;
	secret: string;
	firmware?: string;
	/** Speaks of modules, and has this one. */
	module_name?: string;
	module_version?: string;
	/** Fails every upgrade with this result code. */
	fail_code?: number;
}

/**
 * The Python program makes everything through the SDK and reads it back; its devices
 * are ours, since no device SDK of the vendor knows modules, or fails when it is told.
 */
async function useCloudSdk(
	{ credentials, dir }: World,
	script: string,
	signature: "plain" | "derived",
): Promise<void> {
	const { python } = await preparePython();
	const ca = await readFile(credentials.ca_file, "utf8");
	const program = new Program(
		python,
		["-B", join(import.meta.dirname, script)],
		{
			// The SDK leaves a file in the home directory.
			HOME: dir,
			NO_PROXY: "127.0.0.1",
			OTARU_ENDPOINT: credentials.endpoint,
			OTARU_ACCESS_KEY: credentials.access_key,
			OTARU_SECRET_KEY: credentials.secret_key,
			OTARU_PROJECT_ID: credentials.project_id,
			OTARU_APP_ID: credentials.app_id,
			OTARU_REGION: credentials.project_name,
			OTARU_SIGNATURE: signature,
		},
	);
	const fleets = new Map<string, Fleet>();
	await using cleanup = new AsyncDisposableStack();
	cleanup.defer(async () => {
		for (const fleet of fleets.values()) await fleet[Symbol.asyncDispose]();
	});
	program.onLine(/^device (\{.*\})$/, ([, described = ""]) => {
		const device = JSON.parse(described) as WantedDevice;
		const { module_name, module_version, fail_code } = device;
		const fleet = new Fleet({
			ca,
			members: [
				{
					identity: { deviceId: device.device_id, secret: device.secret },
					brokerUrl: credentials.mqtts_endpoint,
					versions: {
						firmware: device.firmware ?? "1.0.0",
						software: "1.0.0",
						modules:
							module_name === undefined || module_version === undefined
								? {}
								: { [module_name]: module_version },
					},
				},
			],
			faults:
				fail_code === undefined
					? []
					: [{ name: "fail", value: fail_code, share: 1 }],
		});
		fleets.set(device.device_id, fleet);
		fleet.start();
	});
	program.onLine(/^gone (\{.*\})$/, ([, described = ""]) => {
		const { device_id } = JSON.parse(described) as { device_id: string };
		const fleet = fleets.get(device_id);
		fleets.delete(device_id);
		void fleet?.[Symbol.asyncDispose]();
	});
	await program.succeeds();
}

/** A firmware upgrade from the first sign-in to Success, with a real image. */
async function upgradeDevice(
	{ credentials, api, dir }: World,
	form: "presigned" | "token",
): Promise<void> {
	const [{ classPath }, { image }] = await Promise.all([
		prepareJava(),
		prepareFirmware(),
	]);
	const original = await readFile(image);
	const sha256 = createHash("sha256").update(original).digest("hex");
	const stored = join(dir, `${form}.bin`);

	const appId = credentials.app_id;
	const { product_id: productId } = await api.createProduct({
		app_id: appId,
		name: `Board-${form}`,
		device_type: "Board",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
	});
	await api.updateProductOtaProfile(productId, { download_form: form });
	const objectKey = `${form}/u-boot.bin`;
	await api.putObject("boards", objectKey, original, { sha256 });
	const { package_id: packageId } = await api.createPackage({
		app_id: appId,
		product_id: productId,
		package_type: "firmwarePackage",
		version: "2023.01",
		file_location: {
			obs_location: {
				region_name: credentials.project_name,
				bucket_name: "boards",
				object_key: objectKey,
			},
		},
	});
	const { device_id: deviceId, auth_info: auth } = await api.createDevice({
		app_id: appId,
		product_id: productId,
		node_id: "board",
	});

	await using board = new Program(
		"java",
		["-XX:+UseSerialGC", "--class-path", classPath, "UpgradingDevice"],
		{
			DEVICE_SERVER: credentials.mqtts_endpoint.replace(/^mqtts:/, "ssl:"),
			DEVICE_ID: deviceId,
			DEVICE_SECRET: auth?.secret ?? "",
			DEVICE_CA_FILE: credentials.ca_file,
			DEVICE_IMAGE: stored,
			DEVICE_VERSION: "2022.10",
		},
	);
	const installed = board.line(/^installed (\S+) (\S+) (\S+)$/);
	// Once the task waits for the device, once the device waits for the task.
	if (form === "token") await untilDevice(api, deviceId, "ONLINE", board);
	const { task_id: taskId } = await api.createTask({
		app_id: appId,
		task_name: `board_${form}`,
		task_type: "firmwareUpgrade",
		targets: [deviceId],
		document: { package_ids: [packageId] },
	});

	const [, version, reportedSha256, reportedForm] = await installed;
	same("version that the device installed", version, "2023.01");
	same("form of the notice", reportedForm, form);
	same("SHA-256 that the device computed", reportedSha256, sha256);
	same(
		"SHA-256 of the image that the device stored",
		createHash("sha256")
			.update(await readFile(stored))
			.digest("hex"),
		sha256,
	);
	const task = await until("the task ends", board, async () => {
		const task = await api.getTask(taskId);
		return ENDED.has(task.batchtask.status) ? task : undefined;
	});
	same("status of the task", task.batchtask.status, "Success");
	same("status of the subtask", task.task_details[0]?.status, "Success");
	same("devices done", task.batchtask.task_progress.success, 1);
	const device = await untilDevice(api, deviceId, "ONLINE", board);
	same("firmware version", device.fw_version, "2023.01");
	same("SDK version", device.device_sdk_version, "JAVA_v1.2.1");
	board.endInput();
	await board.succeeds();
	await untilDevice(api, deviceId, "OFFLINE", board);
}

/** The gateway learns of its children, says that they are there, and fetches one image for two. */
async function upgradeBehindGateway({
	credentials,
	api,
}: World): Promise<void> {
	const [{ classPath }, { image }] = await Promise.all([
		prepareJava(),
		prepareFirmware(),
	]);
	const original = await readFile(image);
	const sha256 = createHash("sha256").update(original).digest("hex");
	const appId = credentials.app_id;
	const product = (name: string) =>
		api.createProduct({
			app_id: appId,
			name,
			device_type: name,
			protocol_type: "MQTT",
			data_format: "json",
			service_capabilities: [],
		});
	const hubs = await product("Hub");
	const lamps = await product("Lamp");
	await api.putObject("lamps", "u-boot.bin", original, { sha256 });
	const { package_id: packageId } = await api.createPackage({
		app_id: appId,
		product_id: lamps.product_id,
		package_type: "firmwarePackage",
		version: "2023.01",
		file_location: {
			obs_location: {
				region_name: credentials.project_name,
				bucket_name: "lamps",
				object_key: "u-boot.bin",
			},
		},
	});
	const gateway = await api.createDevice({
		app_id: appId,
		product_id: hubs.product_id,
		node_id: "hub",
	});
	const child = async (nodeId: string) => {
		const { device_id } = await api.createDevice({
			app_id: appId,
			product_id: lamps.product_id,
			node_id: nodeId,
			gateway_id: gateway.device_id,
		});
		return device_id;
	};
	const [first, second] = [await child("lamp1"), await child("lamp2")];

	await using hub = new Program(
		"java",
		["-XX:+UseSerialGC", "--class-path", classPath, "UpgradingGateway"],
		{
			DEVICE_SERVER: credentials.mqtts_endpoint.replace(/^mqtts:/, "ssl:"),
			DEVICE_ID: gateway.device_id,
			DEVICE_SECRET: gateway.auth_info.secret ?? "",
			DEVICE_CA_FILE: credentials.ca_file,
			DEVICE_VERSION: "2022.10",
		},
	);
	// Two it learns of by asking, the third when it is registered.
	const synced = hub.line(/^children 2 /);
	const notified = hub.line(/^children 3 /);
	const installed: string[][] = [];
	hub.onLine(/^installed (\S+) (\S+) (\S+) (\S+) (\S+)$/, ([, ...said]) => {
		installed.push(said);
	});
	await synced;
	const third = await child("lamp3");
	await notified;
	for (const id of [first, second, third])
		await untilDevice(api, id, "ONLINE", hub);
	const { task_id: taskId } = await api.createTask({
		app_id: appId,
		task_name: "lamps",
		task_type: "firmwareUpgrade",
		task_mode: "GATEWAY",
		targets: [first, second],
		document: { package_ids: [packageId] },
	});
	const task = await until("the task ends", hub, async () => {
		const task = await api.getTask(taskId);
		return ENDED.has(task.batchtask.status) ? task : undefined;
	});
	same("status of the task", task.batchtask.status, "Success");
	same("devices done", task.batchtask.task_progress.success, 2);
	await until("both are installed", hub, async () =>
		installed.length < 2 ? undefined : installed,
	);
	same(
		"what the gateway did",
		installed
			.map((said) => said.join(" "))
			.sort()
			.join("\n"),
		[first, second]
			.map((id) => `${id} 2023.01 ${sha256} ${taskId} 2`)
			.sort()
			.join("\n"),
	);
	for (const id of [first, second])
		same("firmware version", (await api.getDevice(id)).fw_version, "2023.01");
	same(
		"firmware version of the third",
		(await api.getDevice(third)).fw_version,
		undefined,
	);
	// It may be told before the caller has his answer.
	const removed = hub.line(/^children 2 /);
	await api.deleteDevice(third);
	await removed;
	const downloads = hub.line(/^downloads (\d+)$/);
	hub.endInput();
	same("downloads of the gateway", (await downloads)[1], "1");
	await hub.succeeds();
	await untilDevice(api, first, "OFFLINE", hub);
}

function untilDevice(
	api: Client,
	deviceId: string,
	status: "ONLINE" | "OFFLINE",
	program: Program,
) {
	return until(`the device is ${status}`, program, async () => {
		const device = await api.getDevice(deviceId);
		return device.status === status ? device : undefined;
	});
}

/** Asks until there is an answer; gives up after 30 seconds, or when the program failed. */
async function until<T>(
	what: string,
	program: Program,
	ask: () => Promise<T | undefined>,
): Promise<T> {
	const deadlineMs = Date.now() + 30_000;
	while (Date.now() < deadlineMs) {
		const answer = await ask();
		if (answer !== undefined) return answer;
		program.mustNotHaveFailed();
		await pause(50);
	}
	throw program.fault(`waited 30 s until ${what}`);
}

function same(what: string, actual: unknown, wanted: unknown): void {
	if (actual !== wanted)
		throw new Error(`${what}: wanted ${wanted}, got ${actual}`);
}

/** A client's process. It is ended when it takes too long, or with its scope. */
class Program implements AsyncDisposable {
	readonly #child: ChildProcess;
	readonly #exit: Promise<number | null>;
	readonly #listeners: ((line: string) => void)[] = [];
	#said = "";
	#status: number | null | undefined;

	constructor(
		command: string,
		args: string[],
		env: Record<string, string | undefined>,
	) {
		const child = spawn(command, args, {
			env: { ...process.env, ...env },
			stdio: ["pipe", "pipe", "pipe"],
			timeout: CLIENT_TIMEOUT_MS,
			killSignal: "SIGKILL",
		});
		this.#child = child;
		child.stderr.setEncoding("utf8").on("data", (text: string) => {
			this.#said += text;
		});
		createInterface({ input: child.stdout }).on("line", (line) => {
			this.#said += `${line}\n`;
			for (const listener of this.#listeners) listener(line);
		});
		this.#exit = once(child, "close").then(([status]) => {
			this.#status = status;
			return status;
		});
	}

	onLine(pattern: RegExp, listener: (match: RegExpMatchArray) => void): void {
		this.#listeners.push((line) => {
			const match = line.match(pattern);
			if (match) listener(match);
		});
	}

	/** The first line of this form; rejects when the program ends without it. */
	line(pattern: RegExp): Promise<RegExpMatchArray> {
		const found = new Promise<RegExpMatchArray>((resolve) => {
			this.onLine(pattern, resolve);
		});
		const ended = this.#exit.then((status) => {
			throw this.fault(`ended with ${status} and never said ${pattern}`);
		});
		const line = Promise.race([found, ended]);
		// Whoever asked may have failed at something else by then.
		line.catch(() => undefined);
		return line;
	}

	endInput(): void {
		this.#child.stdin?.end();
	}

	/** Resolves when it has ended with 0. */
	async succeeds(): Promise<void> {
		await this.#exit;
		this.mustNotHaveFailed();
	}

	mustNotHaveFailed(): void {
		if (this.#status !== undefined && this.#status !== 0)
			throw this.fault(`ended with ${this.#status ?? "no status, killed"}`);
	}

	fault(what: string): Error {
		const end = this.#said.trimEnd().split("\n").slice(-25);
		return new Error([what, ...end].join("\n    "));
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#child.kill("SIGKILL");
		await this.#exit;
	}
}

async function main(): Promise<number> {
	// Fetched while the server starts; each client looks at the outcome for itself.
	void Promise.allSettled([
		preparePython(),
		prepareFuzzer(),
		prepareJava(),
		prepareFirmware(),
	]);

	const dir = await mkdtemp(join(tmpdir(), "otaru-clients-"));
	await using cleanup = new AsyncDisposableStack();
	cleanup.defer(() => rm(dir, { recursive: true, force: true }));
	const server = cleanup.use(
		await ServerProcess.start({
			dataDir: dir,
			// A client that is refused on purpose comes from many addresses.
			env: { OTARU_TRUSTED_PROXIES: "127.0.0.1" },
		}),
	);
	const credentials: Credentials = JSON.parse(
		await readFile(join(dir, "credentials.json"), "utf8"),
	);
	const api = new Client({
		endpoint: credentials.endpoint,
		projectId: credentials.project_id,
		credentials: {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	});

	let passed = 0;
	for (const client of clients) {
		const startedAtMs = performance.now();
		const outcome = await client.run({ credentials, api, dir }).then(
			() => "passed",
			(error: Error) =>
				error instanceof NotRun
					? `did not run: ${error.message}`
					: `failed: ${error.message}`,
		);
		const seconds = ((performance.now() - startedAtMs) / 1000).toFixed(1);
		console.log(`${client.name}: ${outcome} (${seconds} s)`);
		if (outcome === "passed") passed++;
	}
	if (passed < clients.length && server.stderr)
		console.log(`The server said:\n${server.stderr.slice(-4000)}`);
	return passed;
}

const passed = await main().catch((error: Error) => {
	console.log(`No client ran: ${error.message}`);
	return 0;
});
const failed = clients.length - passed;
console.log(`${passed} passed, ${failed} failed`);
// Fetching what nobody waits for any more must not keep the process.
process.exit(failed === 0 ? 0 : 1);
