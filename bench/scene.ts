/** What every measurement begins with: a server in its own process, a product, a package, devices. */
import { randomBytes } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { registerDevices } from "../cli/registry.ts";
import type { DeviceIdentity } from "../simulator/connection.ts";
import { ServerProcess } from "../test/support/server-process.ts";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";

export const MODULE = { name: "MCU", version: "1.0.0" };

export interface Scene extends AsyncDisposable {
	server: ServerProcess;
	dataDir: string;
	credentials: CredentialsFile;
	api: Client;
	devices: DeviceIdentity[];
	packageId: string;
}

/** A server on an empty embedded store, with that many registered devices of one product. */
export async function openScene(
	deviceCount: number,
	say: (text: string) => void,
): Promise<Scene> {
	await using cleanup = new AsyncDisposableStack();
	const dataDir = mkdtempSync(join(tmpdir(), "otaru-bench-"));
	cleanup.defer(() => rmSync(dataDir, { recursive: true, force: true }));
	const server = cleanup.use(
		await ServerProcess.start({
			dataDir,
			env: { OTARU_DEVICE_MESSAGES_PER_SECOND: "0" },
		}),
	);
	const credentials = JSON.parse(
		readFileSync(join(dataDir, "credentials.json"), "utf8"),
	) as CredentialsFile;
	const api = new Client({
		endpoint: server.url,
		projectId: credentials.project_id,
		credentials: {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	});
	const appId = credentials.app_id;
	const productId = "bench";
	await api.createProduct({
		app_id: appId,
		product_id: productId,
		name: "Bench",
		device_type: "Bench",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
	});
	await api.createOtaModule({
		app_id: appId,
		product_id: productId,
		module_name: MODULE.name,
	});
	await api.updateProductOtaProfile(productId, { module_form: "native" });
	await api.putObject("bench", "mcu.bin", randomBytes(64 * 1024));
	const { package_id: packageId } = await api.createPackage({
		app_id: appId,
		product_id: productId,
		package_type: "modulePackage",
		module_name: MODULE.name,
		version: "2.0.0",
		file_location: {
			obs_location: {
				region_name: "otaru",
				bucket_name: "bench",
				object_key: "mcu.bin",
			},
		},
	});
	const startedAtMs = performance.now();
	const devices = await registerDevices(
		api,
		{ appId, productId },
		{ count: deviceCount, prefix: "device" },
	);
	const seconds = (performance.now() - startedAtMs) / 1000;
	say(
		`${deviceCount} devices registered through the API, ${rate(deviceCount, seconds)}`,
	);
	const closing = cleanup.move();
	return {
		server,
		dataDir,
		credentials,
		api,
		devices,
		packageId,
		[Symbol.asyncDispose]: () => closing.disposeAsync(),
	};
}

/**
 * The longest the server's event loop was held since this was last asked, as its own
 * histogram (resolution 10 ms) has it.
 */
export async function longestStallMs(server: ServerProcess): Promise<number> {
	const metrics = await (await fetch(`${server.url}/metrics`)).text();
	const value = /^otaru_nodejs_eventloop_lag_max_seconds (\S+)$/m.exec(
		metrics,
	)?.[1];
	if (value === undefined)
		throw new Error("The server's metrics do not tell its event loop's lag.");
	return Number(value) * 1000;
}

/** `12,345/s`. */
export function rate(count: number, seconds: number): string {
	return `${Math.round(count / seconds).toLocaleString("en-GB")}/s`;
}
