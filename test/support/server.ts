/** A whole server inside the test's process, on real ports and a store of its own. */
import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Config, readConfig } from "../../server/config.ts";
import {
	type Overrides,
	type Server,
	startServer as start,
} from "../../server/server.ts";
import { Client } from "../../wire/client.ts";
import type { CredentialsFile } from "../../wire/credentials.ts";
import type { Engine, FreshStore } from "./engines.ts";

export interface TestServer extends AsyncDisposable {
	/** Of the management API. */
	url: string;
	/** Signs as the administrator. */
	api: Client;
	credentials: CredentialsFile;
	config: Config;
	server: Server;
	/** Closes the server and starts it again on the same store and the same ports. */
	restart(meanwhile?: () => unknown): Promise<void>;
}

export interface TestServerOptions extends Overrides {
	/** Settings beside those that every test server has. */
	env?: Record<string, string>;
}

/** Every listener takes a free port on 127.0.0.1; devices are spoken to at once. */
const settings = {
	OTARU_HTTP_PORT: "0",
	OTARU_MQTT_PORT: "0",
	OTARU_MQTTS_PORT: "0",
	OTARU_DEVICE_PORT: "0",
	OTARU_DEVICE_HOST: "127.0.0.1",
	OTARU_DEVICE_PUBLIC_HOST: "127.0.0.1",
	OTARU_DATABASE_CONNECTIONS: "8",
	OTARU_CONNECT_PAUSE_MS: "0",
	OTARU_LOG_LEVEL: process.env.OTARU_TEST_LOG_LEVEL ?? "silent",
};

export async function startServer(
	engine: Engine,
	options: TestServerOptions = {},
): Promise<TestServer> {
	const { env = {}, ...overrides } = options;
	const fresh = await engine.fresh();
	try {
		return await startOn(fresh, env, overrides);
	} catch (error) {
		await fresh.dispose();
		throw error;
	}
}

async function startOn(
	fresh: FreshStore,
	env: Record<string, string>,
	overrides: Overrides,
): Promise<TestServer> {
	let config = readConfig({ ...settings, ...fresh.env, ...env });
	let server = await start(config, overrides);
	const credentials = JSON.parse(
		readFileSync(join(config.dataDir, "credentials.json"), "utf8"),
	) as CredentialsFile;
	const api = new Client({
		endpoint: credentials.endpoint,
		projectId: credentials.project_id,
		credentials: {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
		...(overrides.now ? { now: overrides.now } : {}),
	});
	return {
		url: credentials.endpoint,
		api,
		credentials,
		config,
		get server() {
			return server;
		},
		async restart(meanwhile) {
			const { http, device, mqtts, mqtt } = server.ports;
			await server[Symbol.asyncDispose]();
			await meanwhile?.();
			config = readConfig({
				...settings,
				...fresh.env,
				...env,
				OTARU_HTTP_PORT: String(http),
				OTARU_DEVICE_PORT: String(device),
				OTARU_MQTTS_PORT: String(mqtts),
				OTARU_MQTT_PORT: mqtt === undefined ? "off" : String(mqtt),
			});
			server = await start(config, overrides);
			// Connections kept from before end here, and not in the test's next call.
			await fetch(`${credentials.endpoint}/health/live`).catch(() => undefined);
		},
		async [Symbol.asyncDispose]() {
			await server[Symbol.asyncDispose]();
			await fresh.dispose();
		},
	};
}

/** Another server on the same PostgreSQL store, as a second process would be. */
export async function startBeside(
	first: TestServer,
): Promise<Pick<TestServer, "api" | "config" | "server"> & AsyncDisposable> {
	const { database, dataDir } = first.config;
	if (database.kind !== "postgres")
		throw new Error("The embedded store has one server.");
	const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
	const config = readConfig({
		...settings,
		OTARU_DATA: directory,
		OTARU_DATABASE_URL: database.url,
		OTARU_MASTER_KEY: readFileSync(join(dataDir, "master.key"), "utf8"),
	});
	const server = await start(config);
	const { access_key, secret_key, project_id } = first.credentials;
	return {
		config,
		server,
		api: new Client({
			endpoint: `http://127.0.0.1:${server.ports.http}`,
			projectId: project_id,
			credentials: { accessKey: access_key, secretKey: secret_key },
		}),
		async [Symbol.asyncDispose]() {
			await server[Symbol.asyncDispose]();
			await rm(directory, { recursive: true, force: true });
		},
	};
}
