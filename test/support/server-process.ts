/**
 * A server in a process of its own, as an operator runs it: for tests that kill it and
 * for measurements that must not share its event loop.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const root = join(import.meta.dirname, "..", "..");
const { scripts } = JSON.parse(
	readFileSync(join(root, "package.json"), "utf8"),
) as { scripts: { start: string } };
/** As `npm start` gives them to Node. */
const startArguments = scripts.start
	.split(" ")
	.slice(1)
	.map((word) => (word.startsWith("-") ? word : join(root, word)));

export interface ServerProcessOptions {
	dataDir: string;
	/** Settings beside the ports and the data directory. */
	env?: Record<string, string>;
	/** Arguments of Node itself, such as `--import`. */
	nodeArguments?: readonly string[];
	/** Keeps all that it writes to standard output: its log. */
	keepStdout?: boolean;
}

export class ServerProcess implements AsyncDisposable {
	/** Of the management API. */
	readonly url: string;
	readonly ports: { http: number; mqtt: number; mqtts: number; https: number };
	readonly dataDir: string;
	readonly #env: Record<string, string>;
	readonly #nodeArguments: readonly string[];
	#child: ChildProcess | undefined;
	/** What the process running now has written to standard error. */
	stderr = "";
	/** All of the log, over every restart; empty unless it is to be kept. */
	stdout = "";
	readonly #keepStdout: boolean;

	/** Takes free ports and keeps them over every restart. */
	static async start(options: ServerProcessOptions): Promise<ServerProcess> {
		const [http = 0, mqtt = 0, mqtts = 0, https = 0] = await freePorts(4);
		const server = new ServerProcess(options, { http, mqtt, mqtts, https });
		await server.start();
		return server;
	}

	private constructor(
		options: ServerProcessOptions,
		ports: ServerProcess["ports"],
	) {
		this.ports = ports;
		this.url = `http://127.0.0.1:${ports.http}`;
		this.dataDir = options.dataDir;
		this.#keepStdout = options.keepStdout ?? false;
		this.#nodeArguments = options.nodeArguments ?? [];
		this.#env = {
			OTARU_DATA: options.dataDir,
			OTARU_LOG_LEVEL: "warn",
			OTARU_HTTP_PORT: String(ports.http),
			OTARU_DEVICE_HOST: "127.0.0.1",
			OTARU_DEVICE_PUBLIC_HOST: "127.0.0.1",
			OTARU_MQTT_PORT: String(ports.mqtt),
			OTARU_MQTTS_PORT: String(ports.mqtts),
			OTARU_DEVICE_PORT: String(ports.https),
			...options.env,
		};
	}

	get pid(): number | undefined {
		return this.#child?.pid;
	}

	/** Resolves when it answers that it is ready. */
	async start(): Promise<void> {
		this.stderr = "";
		const child = spawn(
			process.execPath,
			[...this.#nodeArguments, ...startArguments],
			{
				cwd: this.dataDir,
				env: { ...withoutSettings(process.env), ...this.#env },
				stdio: ["ignore", this.#keepStdout ? "pipe" : "ignore", "pipe"],
			},
		);
		this.#child = child;
		child.stdout?.setEncoding("utf8").on("data", (text: string) => {
			this.stdout += text;
		});
		child.stderr?.setEncoding("utf8").on("data", (text: string) => {
			this.stderr = (this.stderr + text).slice(-20_000);
		});
		const deadlineMs = Date.now() + 30_000;
		while (!(await answers(`${this.url}/health/ready`))) {
			if (child.exitCode !== null || child.signalCode !== null)
				throw new Error(`The server ended at its start:\n${this.stderr}`);
			if (Date.now() > deadlineMs)
				throw new Error(`The server was not ready in 30 s:\n${this.stderr}`);
			await pause(10);
		}
	}

	/** `kill -9`: no goodbye, nothing flushed. */
	async kill(): Promise<void> {
		await this.#end("SIGKILL");
	}

	/** As an operator stops it. @returns its exit code. */
	async stop(): Promise<number | null> {
		return this.#end("SIGTERM");
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#end("SIGKILL");
	}

	async #end(signal: "SIGKILL" | "SIGTERM"): Promise<number | null> {
		const child = this.#child;
		this.#child = undefined;
		if (!child) return null;
		if (child.exitCode === null && child.signalCode === null) {
			const gone = once(child, "exit");
			child.kill(signal);
			await gone;
		}
		return child.exitCode;
	}
}

/** Ports that nobody listens on at this moment, all different. */
export async function freePorts(count: number): Promise<number[]> {
	const servers = Array.from({ length: count }, () => createServer());
	const ports = await Promise.all(
		servers.map(async (server) => {
			server.listen(0, "127.0.0.1");
			await once(server, "listening");
			const address = server.address();
			if (address === null || typeof address === "string")
				throw new Error("no free port");
			return address.port;
		}),
	);
	for (const server of servers) {
		server.close();
		await once(server, "close");
	}
	return ports;
}

async function answers(url: string): Promise<boolean> {
	try {
		const response = await fetch(url, { signal: AbortSignal.timeout(2_000) });
		await response.arrayBuffer();
		return response.ok;
	} catch {
		return false;
	}
}

/** The surroundings of the tests must not configure the server under test. */
function withoutSettings(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
	return Object.fromEntries(
		Object.entries(env).filter(([name]) => !name.startsWith("OTARU_")),
	);
}
