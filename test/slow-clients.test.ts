import assert from "node:assert/strict";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createServer } from "node:http";
import {
	type AddressInfo,
	connect,
	createServer as createTcpServer,
	type Socket,
} from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Writable } from "node:stream";
import { after, before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { connect as connectTls, type TLSSocket } from "node:tls";
import { streamedBody } from "../server/access/streamed-body.ts";
import { ByteSender } from "../server/artifacts/byte-sender.ts";
import { ApiError, errors } from "../server/errors.ts";
import { Events } from "../server/events.ts";
import { limitConnections } from "../server/http/connection-limits.ts";
import { readBody } from "../server/http/read-body.ts";
import { selfSignedCertificate } from "./support/certificate.ts";
import { sqlite } from "./support/engines.ts";
import {
	bytesOf,
	connectPacket,
	listen,
	RawClient,
} from "./support/mqtt-listener.ts";
import { sendBytes } from "./support/raw-request.ts";
import { startServer, type TestServer } from "./support/server.ts";

/** In place of the seconds of the real ones. */
const httpTimes = {
	headersMs: 400,
	handshakeMs: 400,
	silenceMs: 600,
	lookMs: 50,
};

/** Resolves to what came, once the other side has closed; @throws when it does not. */
async function closedBy(
	socket: Socket | TLSSocket,
	withinMs = 5_000,
): Promise<string> {
	let text = "";
	socket.on("data", (chunk) => {
		text += chunk.toString("latin1");
	});
	socket.on("error", () => {});
	await Promise.race([
		new Promise((resolve) => socket.once("close", resolve)),
		pause(withinMs).then(() => {
			socket.destroy();
			throw new Error(`still open after ${withinMs} ms; so far: ${text}`);
		}),
	]);
	return text;
}

/** Says the text a character at a time until the other side has had enough. */
async function drip(
	socket: Socket,
	text: string | Buffer,
	everyMs: number,
): Promise<void> {
	for (const byte of Buffer.from(text)) {
		if (socket.destroyed || socket.writableEnded) return;
		socket.write(Buffer.of(byte));
		await pause(everyMs);
	}
}

async function opened(port: number): Promise<Socket> {
	const socket = connect({ port, host: "127.0.0.1", noDelay: true });
	await once(socket, "connect");
	return socket;
}

describe("the management listener", () => {
	let server: TestServer;
	let port = 0;
	before(async () => {
		server = await startServer(sqlite, { httpTimes });
		port = server.server.ports.http;
	});
	after(() => server[Symbol.asyncDispose]());

	test("closes on whoever says nothing, or only half of his headers", async () => {
		await closedBy(await opened(port));
		const half = await opened(port);
		half.write("GET /health/live HTTP/1.1\r\nHost: x\r\n");
		assert.match(await closedBy(half), /^HTTP\/1\.1 408 /);
	});

	test("closes on whoever sends his headers a character at a time", async () => {
		const socket = await opened(port);
		const closed = closedBy(socket);
		await drip(
			socket,
			`GET /health/live HTTP/1.1\r\nX-Long: ${"a".repeat(1_000)}`,
			20,
		);
		assert.match(await closed, /^HTTP\/1\.1 408 /);
	});

	test("closes on whoever never reads his answers, and does not go on making them", async () => {
		const socket = await opened(port);
		socket.pause();
		socket.on("error", () => {});
		const request = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
		const some = request.repeat(1_000);
		const asked = 100_000;
		for (let sent = 0; sent < asked && !socket.destroyed; sent += 1_000)
			socket.write(some);
		await Promise.race([once(socket, "close"), pause(5_000)]);
		const metrics = await (await fetch(`${server.url}/metrics`)).text();
		socket.destroy();
		const answered = Number(
			/otaru_http_answers_total\{status="200"\} (\d+)/.exec(metrics)?.[1],
		);
		assert.ok(answered > 10 && answered < asked / 2, String(answered));
	});

	test("takes no more than 200 headers and no more than 16 KiB of them", async () => {
		const head = (headers: string) =>
			`GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n${headers}\r\n`;
		const many = await sendBytes(server.url, head("a: b\r\n".repeat(300)));
		assert.match(many, /^HTTP\/1\.1 400 /);
		assert.match(many, /at most 200 headers/);
		const large = await sendBytes(
			server.url,
			head(`a: ${"b".repeat(17 * 1024)}\r\n`),
		);
		assert.match(large, /^HTTP\/1\.1 431 /);
		const usual = await sendBytes(server.url, head("a: b\r\n".repeat(150)));
		assert.match(usual, /^HTTP\/1\.1 200 /);
	});

	test("with TLS closes on whoever does not begin or end the handshake", async () => {
		const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
		try {
			const { cert, key } = await selfSignedCertificate();
			const [certFile, keyFile] = [
				join(directory, "cert.pem"),
				join(directory, "key.pem"),
			];
			writeFileSync(certFile, cert);
			writeFileSync(keyFile, key);
			await using secured = await startServer(sqlite, {
				httpTimes,
				env: { OTARU_HTTP_TLS_CERT: certFile, OTARU_HTTP_TLS_KEY: keyFile },
			});
			const tlsPort = secured.server.ports.http;
			assert.equal(await closedBy(await opened(tlsPort)), "");
			const half = await opened(tlsPort);
			// A ClientHello that announces more than it brings.
			half.write(Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]));
			await closedBy(half);
			const silent = connectTls({
				port: tlsPort,
				host: "127.0.0.1",
				rejectUnauthorized: false,
			});
			await closedBy(silent);
		} finally {
			await rm(directory, { recursive: true, force: true });
		}
	});

	for (const [what, env, open] of [
		["of one address", { OTARU_HTTP_CONNECTIONS_PER_ADDRESS: "3" }, 3],
		["of all", { OTARU_HTTP_MAX_CONNECTIONS: "4" }, 4],
	] as const) {
		test(`has a limit on the connections ${what}, and takes another when one has gone`, async () => {
			await using limited = await startServer(sqlite, { env });
			const { http } = limited.server.ports;
			const sockets = await Promise.all(
				Array.from({ length: open }, () => opened(http)),
			);
			await pause(50);
			await closedBy(await opened(http).catch(() => connect(http)), 1_000);
			assert.ok(sockets.every(({ readyState }) => readyState === "open"));
			for (const socket of sockets) socket.destroy();
			await pause(50);
			assert.match(
				await sendBytes(
					limited.url,
					"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
				),
				/otaru_http_connections_refused_total\{reason="too_many[a-z_]*"\} 1/,
			);
		});
	}

	test("counts no connection of a trusted proxy", async () => {
		for (const [proxies, left] of [
			[["127.0.0.0/8"], 5],
			[["loopback"], 5],
			[["127.0.0.1", "::1"], 5],
			[["10.0.0.0/8"], 2],
		] as const) {
			const listener = createTcpServer();
			limitConnections(
				listener,
				{ total: 100, perAddress: 2, trustedProxies: proxies },
				new Events(),
			);
			listener.listen(0, "127.0.0.1");
			await once(listener, "listening");
			const { port: itsPort } = listener.address() as AddressInfo;
			const sockets = await Promise.all(
				Array.from({ length: 5 }, () => opened(itsPort)),
			);
			for (const socket of sockets) socket.on("error", () => {}).resume();
			await pause(50);
			assert.equal(
				sockets.filter(({ readyState }) => readyState === "open").length,
				left,
				proxies.join(),
			);
			for (const socket of sockets) socket.destroy();
			listener.close();
		}
	});
});

describe("a body", () => {
	/** What `take` makes of a body that drips; undefined when the connection was cut before. */
	async function outcomeOf(
		take: (
			...exchange: Parameters<Parameters<typeof createServer>[1] & object>
		) => Promise<unknown>,
		everyMs: number,
		count: number,
	): Promise<unknown> {
		const done = Promise.withResolvers<unknown>();
		const http = createServer((request, response) => {
			take(request, response).then(
				() => done.resolve("taken"),
				(error: unknown) => done.resolve(error),
			);
		});
		http.listen(0, "127.0.0.1");
		await once(http, "listening");
		const socket = await opened((http.address() as AddressInfo).port);
		socket.on("error", () => {});
		try {
			socket.write(
				`POST / HTTP/1.1\r\nHost: x\r\nContent-Length: ${count}\r\n\r\n`,
			);
			void drip(socket, "x".repeat(count), everyMs);
			return await done.promise;
		} finally {
			socket.destroy();
			http.close();
		}
	}

	test("of JSON has to be there after some time, however steadily it comes", async () => {
		const begin = performance.now();
		const error = await outcomeOf(
			(request, response) => readBody(request, response, 1_000, 300),
			20,
			1_000,
		);
		assert.ok(error instanceof ApiError, String(error));
		assert.equal(error.kind, errors.invalidFormat);
		assert.ok(performance.now() - begin < 5_000);
		assert.equal(
			await outcomeOf(
				(request, response) => readBody(request, response, 1_000, 30_000),
				1,
				20,
			),
			"taken",
		);
	});

	test("of an upload is cut off when next to nothing comes, not for what its reader does", async () => {
		const takeAll = async (bytes: AsyncIterable<Buffer>, restMs: number) => {
			for await (const _chunk of bytes) await pause(restMs);
		};
		const error = await outcomeOf(
			(request) => takeAll(streamedBody(request, 200), 0),
			20,
			1_000,
		);
		assert.ok(error instanceof ApiError, String(error));
		assert.equal(error.kind, errors.objectIncomplete);
		assert.match(String(error.cause), /too slowly/);
		assert.equal(
			await outcomeOf(
				(request) => takeAll(streamedBody(request, 1_000), 300),
				1,
				12,
			),
			"taken",
		);
	});
});

describe("a package on its way", () => {
	const artifact = {
		sizeBytes: 1_000_000,
		read: async (_buffer: Buffer, length: number) => length,
		async [Symbol.asyncDispose]() {},
	};

	test("is given up when its reader takes less than the least rate", async () => {
		const slow = new Writable({
			// The kernel of somebody who reads a byte now and then.
			write: (_chunk, _encoding, done) => {
				setTimeout(done, 2_000).unref();
			},
		});
		const begin = performance.now();
		const sent = await new ByteSender(100, 1_000_000).send(
			artifact as never,
			{ start: 0, end: 1_000_000 },
			slow,
		);
		assert.equal(sent, 0);
		assert.equal(slow.destroyed, true);
		assert.ok(performance.now() - begin < 1_900);
	});

	test("goes on for a reader that is slow but not that slow", async () => {
		const steady = new Writable({
			write: (_chunk, _encoding, done) => {
				setTimeout(done, 60);
			},
		});
		const sent = await new ByteSender(50, 2_000_000).send(
			artifact as never,
			{ start: 0, end: 1_000_000 },
			steady,
		);
		assert.equal(sent, 1_000_000);
	});
});

describe("the MQTT listeners", () => {
	test("close on a CONNECT that comes a byte at a time", async () => {
		await using listening = await listen({ config: { signInTimeoutMs: 300 } });
		const socket = await opened(listening.port);
		const closed = closedBy(socket, 3_000);
		await drip(socket, bytesOf(connectPacket()), 20);
		await closed;
		assert.equal(
			await listening.count("device_connections_closed", {
				reason: "no_sign_in",
			}),
			1,
		);
	});

	test("close on a handshake that comes a byte at a time", async () => {
		await using listening = await listen({ config: { signInTimeoutMs: 300 } });
		const socket = await opened(listening.tlsPort);
		const closed = closedBy(socket, 3_000);
		await drip(
			socket,
			Buffer.from([0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
			60,
		);
		await closed;
	});

	test("close on a device that never reads its answers, once its keep-alive is over, and hold little for it", async () => {
		await using listening = await listen({
			config: { keepAliveMinSeconds: 1 },
		});
		const device = await RawClient.signedIn(listening.port, { keepalive: 1 });
		device.socket.pause();
		device.socket.on("error", () => {});
		const pings = bytesOf({ cmd: "pingreq" });
		const many = Buffer.alloc(pings.length * 100_000, pings);
		const before = process.memoryUsage().rss;
		const writing = setInterval(() => {
			if (device.socket.writableLength < 1_000_000) device.socket.write(many);
		}, 1);
		try {
			const until = performance.now() + 10_000;
			while ((await listening.count("device_connections_closed")) === 0) {
				assert.ok(performance.now() < until, "it was not closed");
				await pause(20);
			}
			assert.ok(process.memoryUsage().rss - before < 200_000_000);
		} finally {
			clearInterval(writing);
			device.socket.destroy();
		}
	});
});

describe("the device HTTPS listener", () => {
	let server: TestServer;
	before(async () => {
		server = await startServer(sqlite, {
			env: { OTARU_DEVICE_SIGN_IN_SECONDS: "0.5" },
		});
	});
	after(() => server[Symbol.asyncDispose]());

	async function said(text: string): Promise<TLSSocket> {
		const socket = connectTls({
			port: server.server.ports.device,
			host: "127.0.0.1",
			rejectUnauthorized: false,
			// So that only the server can end it.
			allowHalfOpen: true,
		} as never);
		socket.on("error", () => {});
		socket.once("end", () => {
			// Only an end that is an end on both sides answers this with a reset.
			const speaking = setInterval(() => socket.write("x"), 20);
			socket.once("close", () => clearInterval(speaking));
		});
		await once(socket, "secureConnect");
		socket.write(text);
		return socket;
	}
	const upgraded = (path = "/mqtt") =>
		said(
			`GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${"a".repeat(22)}==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n`,
		);

	test("closes on whoever does not sign in", async () => {
		const socket = await upgraded();
		assert.match(await closedBy(socket), /^HTTP\/1\.1 101 /);
	});

	test("closes on whoever was refused the upgrade and does not hang up", async () => {
		const socket = await upgraded("/elsewhere");
		assert.match(await closedBy(socket), /^HTTP\/1\.1 404 /);
	});

	test("closes on whoever speaks no HTTP and does not hang up", async () => {
		const socket = await said("EHLO there\r\n\r\n");
		assert.match(await closedBy(socket), /^HTTP\/1\.1 400 /);
	});

	test("answers no more pings than their sender reads the answers of", async () => {
		const socket = await upgraded();
		await once(socket, "data");
		socket.pause();
		// A masked ping with the longest payload.
		const ping = Buffer.concat([
			Buffer.from([0x89, 0x80 | 125, 0, 0, 0, 0]),
			Buffer.alloc(125),
		]);
		const many = Buffer.alloc(ping.length * 5_000, ping);
		const before = process.memoryUsage().rss;
		const until = performance.now() + 3_000;
		while (!socket.destroyed && performance.now() < until) {
			if (socket.writableLength < 4_000_000) socket.write(many);
			await pause(1);
		}
		socket.destroy();
		assert.ok(process.memoryUsage().rss - before < 200_000_000);
		assert.ok(performance.now() < until, "it was not closed");
	});
});
