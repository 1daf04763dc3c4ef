/** A server that runs for years gets a new certificate without stopping. */
import assert from "node:assert/strict";
import { createSecretKey, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { connect, type TLSSocket } from "node:tls";
import { openDisk } from "../server/artifacts/disk.ts";
import { createDownloadLinks } from "../server/artifacts/download-links.ts";
import { openDownloadServer } from "../server/device-link/download-server.ts";
import { Events } from "../server/events.ts";
import { selfSignedCertificate } from "./support/certificate.ts";
import { listen } from "./support/mqtt-listener.ts";

async function connected(port: number): Promise<TLSSocket> {
	const socket = connect({
		port,
		host: "127.0.0.1",
		rejectUnauthorized: false,
	});
	socket.on("error", () => {});
	await once(socket, "secureConnect");
	return socket;
}

/** Old connections stand, new ones see the new certificate. */
async function renews(
	port: number,
	server: { renewCertificate(tls: { cert: string; key: string }): void },
): Promise<void> {
	const before = await connected(port);
	server.renewCertificate(await selfSignedCertificate());
	const after = await connected(port);
	assert.notEqual(
		before.getPeerCertificate().fingerprint256,
		after.getPeerCertificate().fingerprint256,
	);
	assert.equal(after.getProtocol(), "TLSv1.3");
	assert.equal(before.readyState, "open");
	before.destroy();
	after.destroy();
}

test("the MQTT listener shows a renewed certificate to new connections", async () => {
	await using listening = await listen();
	await renews(listening.tlsPort, listening.server);
});

test("the download listener shows a renewed certificate to new connections", async () => {
	const directory = mkdtempSync(join(tmpdir(), "otaru-test-"));
	try {
		await using store = await openDisk(directory);
		await using listener = await openDownloadServer({
			config: {
				devices: {
					https: { host: "127.0.0.1", port: 0 },
					maxConnections: 10,
					signInTimeoutMs: 20_000,
				},
			},
			tls: await selfSignedCertificate(),
			links: createDownloadLinks({
				key: createSecretKey(randomBytes(32)),
				base: () => "",
			}),
			findDownload: async () => undefined,
			store,
			events: new Events(),
			now: () => new Date(),
		});
		await renews(listener.port, listener);
	} finally {
		rmSync(directory, { recursive: true, force: true });
	}
});
