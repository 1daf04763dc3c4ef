import assert from "node:assert/strict";
import { X509Certificate } from "node:crypto";
import { createServer } from "node:http";
import { connect as connectTcp } from "node:net";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { type ConnectionOptions, connect as connectTls } from "node:tls";
import type { IConnectPacket } from "mqtt-packet";
import { WebSocket } from "ws";
import type { Refusal, SignInAttempt } from "../server/device-link/sign-in.ts";
import { selfSignedCertificate } from "./support/certificate.ts";
import {
	believeEverybody,
	bytesOf,
	connectPacket,
	DEVICE,
	listen,
	RawClient,
	UP,
	until,
} from "./support/mqtt-listener.ts";

for (const protocolVersion of [3, 4, 5] as const) {
	test(`a device that speaks protocol level ${protocolVersion} is let in`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		await client.settled();
		const connection = listening.server.connectionOf(DEVICE);
		assert.equal(connection?.deviceId, DEVICE);
		assert.equal(connection.remoteAddress, "127.0.0.1");
		assert.equal(listening.ears.online[0], connection);
		assert.deepEqual([...listening.server.connections()], [connection]);
	});
}

test("what a client claims to be is handed to the sign-in as it said it", async () => {
	const attempts: SignInAttempt[] = [];
	await using listening = await listen({
		signIn: async (attempt) => {
			attempts.push(attempt);
			return { ok: true, deviceId: attempt.username ?? "" };
		},
	});
	using _ = await RawClient.signedIn(listening.port);
	assert.deepEqual(attempts, [
		{
			clientId: `${DEVICE}_0_0_2026010100`,
			username: DEVICE,
			password: Buffer.from("0".repeat(64)),
			certificate: undefined,
			remoteAddress: "127.0.0.1",
		},
	]);
});

for (const [name, level, answer] of [
	["MQTT", 3, "20020001"],
	["MQIsdp", 4, "20020001"],
	["MQTT", 0x84, "2003008400"],
	["MQTT", 6, "2003008400"],
	["MQIsdp", 0x83, "20020001"],
] as const) {
	test(`${name} level ${level} is refused as a version the server does not speak`, async () => {
		await using listening = await listen();
		using client = await RawClient.open(listening.port);
		const answers: Buffer[] = [];
		client.socket.on("data", (chunk: Buffer) => answers.push(chunk));
		const bytes = bytesOf(connectPacket({ protocolId: name }));
		bytes[4 + name.length] = level;
		client.write(bytes);
		await client.closed;
		assert.equal(Buffer.concat(answers).toString("hex"), answer);
	});
}

for (const [refusal, three, five] of [
	["identifier", 0x02, 0x85],
	["unavailable", 0x03, 0x88],
	["credentials", 0x04, 0x86],
	["not_authorized", 0x05, 0x87],
] as const satisfies [Refusal, number, number][]) {
	test(`a sign-in refused for ${refusal} is answered ${three}, in MQTT 5.0 ${five}, and closed`, async () => {
		await using listening = await listen({
			signIn: async () => ({ ok: false, refused: refusal }),
		});
		for (const protocolVersion of [3, 4, 5] as const) {
			using client = await RawClient.open(listening.port, protocolVersion);
			client.send(connectPacket({ protocolVersion }));
			const connack = await client.next("connack");
			assert.equal(connack.sessionPresent, false);
			assert.equal(
				protocolVersion === 5 ? connack.reasonCode : connack.returnCode,
				protocolVersion === 5 ? five : three,
			);
			await client.closed;
		}
		assert.deepEqual(listening.ears.order, []);
		assert.equal(
			await listening.count("device_sign_ins", { result: refusal }),
			3,
		);
	});
}

test("a sign-in that breaks is the server's trouble, never the device's credentials", async () => {
	await using listening = await listen({
		signIn: () => Promise.reject(new Error("the store does not answer")),
	});
	using three = await RawClient.open(listening.port);
	three.send(connectPacket());
	assert.equal((await three.next("connack")).returnCode, 3);
	using five = await RawClient.open(listening.port, 5);
	five.send(connectPacket({ protocolVersion: 5 }));
	assert.equal((await five.next("connack")).reasonCode, 0x88);
});

for (const [keepalive, isAllowed] of [
	[0, false],
	[29, false],
	[30, true],
	[1200, true],
	[1201, false],
	[65_535, false],
] as const) {
	test(`a keep-alive of ${keepalive} s is ${isAllowed ? "accepted" : "refused as the identifier is"}`, async () => {
		let asked = 0;
		await using listening = await listen({
			signIn: (attempt) => {
				asked++;
				return believeEverybody(attempt);
			},
		});
		for (const protocolVersion of [4, 5] as const) {
			using client = await RawClient.open(listening.port, protocolVersion);
			client.send(connectPacket({ keepalive, protocolVersion }));
			const connack = await client.next("connack");
			assert.equal(
				connack.returnCode ?? connack.reasonCode,
				isAllowed ? 0 : protocolVersion === 5 ? 0x85 : 0x02,
			);
		}
		assert.equal(asked, isAllowed ? 2 : 0);
	});
}

test("MQTT 5.0 clients are told what the server does not offer", async () => {
	await using listening = await listen({
		config: { messageLimitBytes: 1_048_576 },
	});
	using client = await RawClient.open(listening.port, 5);
	client.send(connectPacket({ protocolVersion: 5 }));
	assert.deepEqual((await client.next("connack")).properties, {
		receiveMaximum: 64,
		maximumQoS: 1,
		retainAvailable: false,
		maximumPacketSize: 1_048_576 + 8192,
		topicAliasMaximum: 16,
		wildcardSubscriptionAvailable: true,
		subscriptionIdentifiersAvailable: false,
		sharedSubscriptionAvailable: false,
	});
});

for (const [what, options, reason] of [
	[
		"an authentication method",
		{ properties: { authenticationMethod: "SCRAM-SHA-1" } },
		0x8c,
	],
	[
		"a retained will",
		{ will: { topic: UP, payload: "gone", retain: true } },
		0x9a,
	],
	["a will of QoS 2", { will: { topic: UP, payload: "gone", qos: 2 } }, 0x9b],
	["a receive maximum of 0", { properties: { receiveMaximum: 0 } }, 0x82],
	[
		"a maximum packet size of 0",
		{ properties: { maximumPacketSize: 0 } },
		0x82,
	],
] as const satisfies [string, Partial<IConnectPacket>, number][]) {
	test(`an MQTT 5.0 client that asks for ${what} is refused with ${reason}`, async () => {
		await using listening = await listen();
		using client = await RawClient.open(listening.port, 5);
		client.send(connectPacket({ protocolVersion: 5, ...options }));
		assert.equal((await client.next("connack")).reasonCode, reason);
		await client.closed;
	});
}

test("a will is taken and never published", async () => {
	await using listening = await listen();
	for (const protocolVersion of [3, 4, 5] as const) {
		const client = await RawClient.signedIn(listening.port, {
			protocolVersion,
			will: {
				topic: UP,
				payload: "gone",
				qos: 1,
				retain: protocolVersion !== 5,
			},
		});
		client[Symbol.dispose]();
	}
	await until(() => listening.ears.offline.length === 3, "three good-byes");
	assert.deepEqual(listening.ears.messages, []);
});

test("a newer connection of a device replaces the older one, whose late end is not a second one", async () => {
	await using listening = await listen();
	using older = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	const first = listening.server.connectionOf(DEVICE);
	using newer = await RawClient.signedIn(listening.port);
	const second = listening.server.connectionOf(DEVICE);
	assert.notEqual(first?.connectionId, second?.connectionId);
	assert.equal((await older.next("disconnect")).reasonCode, 0x8e);
	await older.closed;
	await newer.settled();
	assert.deepEqual(listening.ears.order, [
		`connected ${first?.connectionId}`,
		`closed ${first?.connectionId}`,
		`connected ${second?.connectionId}`,
	]);
	assert.equal(listening.server.connectionOf(DEVICE), second);
});

test("a device that is disconnected while its sign-in is being decided must ask again", async () => {
	const { promise: asked, resolve: ask } = Promise.withResolvers<void>();
	const { promise: decided, resolve: decide } = Promise.withResolvers<void>();
	await using listening = await listen({
		signIn: async (attempt) => {
			ask();
			await decided;
			return believeEverybody(attempt);
		},
	});
	using client = await RawClient.open(listening.port);
	client.send(connectPacket());
	await asked;
	listening.server.disconnect(DEVICE, "frozen");
	decide();
	assert.equal((await client.next("connack")).returnCode, 3);
	await client.closed;
	assert.equal(listening.server.connectionOf(DEVICE), undefined);
	assert.deepEqual(listening.ears.order, []);
});

for (const [reason, code] of [
	["frozen", 0x98],
	["deleted", 0x98],
	["secret_changed", 0x98],
	["shutdown", 0x8b],
] as const) {
	test(`a device disconnected because it is "${reason}" is told ${code} in MQTT 5.0`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion: 5,
		});
		listening.server.disconnect(DEVICE, reason);
		assert.equal(listening.server.connectionOf(DEVICE), undefined);
		assert.equal((await client.next("disconnect")).reasonCode, code);
		await client.closed;
		assert.equal(listening.ears.offline.length, 1);
	});
}

test("a server that closes says good-bye to its devices and then listens no more", async () => {
	const listening = await listen();
	using three = await RawClient.signedIn(listening.port, { username: "a_1" });
	using five = await RawClient.signedIn(listening.port, {
		username: "a_2",
		protocolVersion: 5,
	});
	await listening.server.close();
	assert.equal((await five.next("disconnect")).reasonCode, 0x8b);
	await Promise.all([three.closed, five.closed]);
	assert.equal(listening.ears.offline.length, 2);
	await assert.rejects(RawClient.open(listening.port), /ECONNREFUSED/);
});

test("a device that does not hang up is cut off when the server closes", async () => {
	const listening = await listen();
	const socket = connectTcp({
		host: "127.0.0.1",
		port: listening.port,
		allowHalfOpen: true,
	});
	using client = new RawClient(socket, 4);
	client.send(connectPacket());
	await client.next("connack");
	let isGone = false;
	socket.once("close", () => {
		isGone = true;
	});
	const since = performance.now();
	await listening.server.close();
	const lastedMs = performance.now() - since;
	assert.ok(lastedMs >= 900 && lastedMs < 4_000, `lasted ${lastedMs} ms`);
	// Nobody is there any more to hear this.
	await until(() => {
		client.send({ cmd: "pingreq" });
		return isGone;
	}, "a reset");
});

test("a device is dead after one and a half times its keep-alive without a word", async () => {
	await using listening = await listen({ config: { keepAliveMinSeconds: 1 } });
	using silent = await RawClient.signedIn(listening.port, {
		username: "a_silent",
		protocolVersion: 5,
		keepalive: 1,
	});
	using talking = await RawClient.signedIn(listening.port, {
		username: "a_talking",
		keepalive: 1,
	});
	const since = performance.now();
	const word = setInterval(() => talking.send({ cmd: "pingreq" }), 300);
	assert.equal((await silent.next("disconnect")).reasonCode, 0x8d);
	const lastedMs = performance.now() - since;
	assert.ok(lastedMs >= 1_450 && lastedMs < 3_500, `lasted ${lastedMs} ms`);
	await silent.closed;
	await pause(1_000);
	clearInterval(word);
	assert.equal(talking.isClosed, false);
	assert.ok(listening.server.connectionOf("a_talking"));
	assert.equal(listening.server.connectionOf("a_silent"), undefined);
});

test("connections beyond the limit are closed at once, and there is room again afterwards", async () => {
	await using listening = await listen({ config: { maxConnections: 2 } });
	const first = await RawClient.signedIn(listening.port, { username: "a_1" });
	using _second = await RawClient.signedIn(listening.port, { username: "a_2" });
	using third = await RawClient.open(listening.port);
	await third.closed;
	first[Symbol.dispose]();
	await until(() => listening.ears.offline.length === 1, "room");
	using _fourth = await RawClient.signedIn(listening.port, { username: "a_4" });
	assert.equal(await listening.count("device_connections_refused"), 1);
});

test("a port that is taken keeps the server from starting", async () => {
	await using listening = await listen();
	await assert.rejects(
		listen({ config: { mqtt: { host: "127.0.0.1", port: listening.port } } }),
		/EADDRINUSE/,
	);
});

test("without a plain listener there is only TLS", async () => {
	await using listening = await listen({ config: { mqtt: undefined } });
	assert.equal(listening.server.port, undefined);
	using client = await tlsClient(listening.tlsPort);
	client.send(connectPacket());
	assert.equal((await client.next("connack")).returnCode, 0);
});

// --- TLS ------------------------------------------------------------------------------

async function tlsClient(
	port: number,
	options: ConnectionOptions = {},
): Promise<RawClient> {
	const socket = connectTls({
		host: "127.0.0.1",
		port,
		rejectUnauthorized: false,
		...options,
	});
	await new Promise<void>((resolve, reject) => {
		socket.once("secureConnect", resolve);
		socket.once("error", reject);
	});
	return new RawClient(socket, 4);
}

for (const options of [
	{ minVersion: "TLSv1.3" },
	{ maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES128-GCM-SHA256" },
	{ maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES256-GCM-SHA384" },
	{ maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES128-SHA" },
	{ maxVersion: "TLSv1.2", ciphers: "ECDHE-ECDSA-AES256-SHA" },
] as const satisfies ConnectionOptions[]) {
	test(`a device connects with ${JSON.stringify(options)}`, async () => {
		await using listening = await listen();
		using client = await tlsClient(listening.tlsPort, options);
		client.send(connectPacket());
		assert.equal((await client.next("connack")).returnCode, 0);
		client.publish("hello");
		assert.equal((await client.next("puback")).messageId, 1);
		assert.equal(listening.ears.messages[0]?.payload, "hello");
		assert.equal(listening.ears.online[0]?.remoteAddress, "127.0.0.1");
	});
}

for (const options of [
	{ minVersion: "TLSv1.1", maxVersion: "TLSv1.1", ciphers: "ALL:@SECLEVEL=0" },
	{ maxVersion: "TLSv1.2", ciphers: "AES128-GCM-SHA256" },
] as const satisfies ConnectionOptions[]) {
	test(`nobody connects with ${JSON.stringify(options)}`, async () => {
		await using listening = await listen();
		await assert.rejects(tlsClient(listening.tlsPort, options));
	});
}

test("a device's certificate reaches the sign-in by its fingerprints", async () => {
	const attempts: SignInAttempt[] = [];
	await using listening = await listen({
		signIn: (attempt) => {
			attempts.push(attempt);
			return believeEverybody(attempt);
		},
	});
	const own = await selfSignedCertificate();
	for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
		using client = await tlsClient(listening.tlsPort, { ...own, maxVersion });
		client.send(connectPacket());
		await client.next("connack");
	}
	const { fingerprint, fingerprint256 } = new X509Certificate(own.cert);
	const plain = (text: string) => text.replaceAll(":", "").toLowerCase();
	for (const { certificate } of attempts)
		assert.deepEqual(certificate, {
			sha1: plain(fingerprint),
			sha256: plain(fingerprint256),
			trusted: true,
		});
	assert.equal(attempts.length, 2);
});

test("with authorities set, only their certificates are trusted", async () => {
	const trusted: (boolean | undefined)[] = [];
	const own = await selfSignedCertificate();
	await using listening = await listen({
		clientCa: own.cert,
		signIn: (attempt) => {
			trusted.push(attempt.certificate?.trusted);
			return believeEverybody(attempt);
		},
	});
	for (const certificate of [own, await selfSignedCertificate(), {}]) {
		using client = await tlsClient(listening.tlsPort, certificate);
		client.send(connectPacket());
		await client.next("connack");
	}
	assert.deepEqual(trusted, [true, false, undefined]);
});

test("the time to sign in covers the TLS handshake and half a CONNECT", async () => {
	await using listening = await listen({ config: { signInTimeoutMs: 800 } });
	const since = performance.now();
	const silent = connectTcp(listening.tlsPort, "127.0.0.1");
	using shaken = await tlsClient(listening.tlsPort);
	using half = await RawClient.open(listening.port);
	half.write(bytesOf(connectPacket()).subarray(0, 20));
	await pause(500);
	shaken.write(bytesOf(connectPacket()).subarray(0, 20));
	half.write(bytesOf(connectPacket()).subarray(20, 25));
	await Promise.all([
		shaken.closed,
		half.closed,
		new Promise((resolve) => silent.once("close", resolve)),
	]);
	const lastedMs = performance.now() - since;
	assert.ok(lastedMs >= 750 && lastedMs < 3_000, `lasted ${lastedMs} ms`);
});

test("a sign-in that is not decided in time is refused as unavailable", async () => {
	await using listening = await listen({
		config: { signInTimeoutMs: 300 },
		signIn: () => new Promise(() => {}),
	});
	using client = await RawClient.open(listening.port);
	client.send(connectPacket());
	assert.equal((await client.next("connack")).returnCode, 3);
	await client.closed;
});

test("what is no TLS ends the connection and nothing else", async () => {
	await using listening = await listen();
	using garbled = await RawClient.open(listening.tlsPort);
	garbled.send(connectPacket());
	await garbled.closed;
	using client = await tlsClient(listening.tlsPort);
	client.send(connectPacket());
	assert.equal((await client.next("connack")).returnCode, 0);
	client.socket.once("error", () => {});
});

// --- WebSocket --------------------------------------------------------------------------

async function webSockets(options: Parameters<typeof listen>[0] = {}) {
	const listening = await listen(options);
	const http = createServer();
	http.on("upgrade", (request, socket, head) =>
		listening.server.handleUpgrade(request, socket, head),
	);
	await new Promise<void>((resolve) => http.listen(0, "127.0.0.1", resolve));
	const address = http.address();
	const port = typeof address === "object" ? (address?.port ?? 0) : 0;
	return {
		...listening,
		url: `ws://127.0.0.1:${port}`,
		async [Symbol.asyncDispose]() {
			await listening.server.close();
			http.closeAllConnections();
			await new Promise((resolve) => http.close(resolve));
		},
	};
}

async function opened(socket: WebSocket): Promise<WebSocket> {
	await new Promise<void>((resolve, reject) => {
		socket.once("open", resolve);
		socket.once("error", reject);
	});
	return socket;
}

test("a device connects over WebSocket, its packets cut into frames as it likes", async () => {
	await using listening = await webSockets();
	const socket = await opened(new WebSocket(`${listening.url}/mqtt`, "mqtt"));
	assert.equal(socket.protocol, "mqtt");
	const answers: Buffer[] = [];
	socket.on("message", (data) => answers.push(data as Buffer));
	const bytes = Buffer.concat([
		bytesOf(connectPacket()),
		bytesOf({
			cmd: "publish",
			topic: UP,
			payload: "hello",
			qos: 1,
			messageId: 7,
			dup: false,
			retain: false,
		}),
	]);
	for (let at = 0; at < bytes.length; at += 11)
		socket.send(bytes.subarray(at, at + 11));
	await until(() => Buffer.concat(answers).length === 8, "CONNACK and PUBACK");
	assert.equal(Buffer.concat(answers).toString("hex"), "2002000040020007");
	assert.equal(listening.ears.messages[0]?.payload, "hello");
	socket.close();
	await until(() => listening.ears.offline.length === 1, "the good-bye");
});

test("a WebSocket to another path or without the subprotocol is turned away", async () => {
	await using listening = await webSockets();
	await assert.rejects(
		opened(new WebSocket(`${listening.url}/other`, "mqtt")),
		/404/,
	);
	await assert.rejects(opened(new WebSocket(`${listening.url}/mqtt`)), /400/);
	await assert.rejects(
		opened(new WebSocket(`${listening.url}/mqtt`, "chat")),
		/400/,
	);
});

test("text frames and frames of megabytes end a WebSocket connection", async () => {
	await using listening = await webSockets();
	for (const message of ["hello", Buffer.alloc(3 * 1024 * 1024)]) {
		const socket = await opened(new WebSocket(`${listening.url}/mqtt`, "mqtt"));
		socket.on("error", () => {});
		const closed = new Promise((resolve) => socket.once("close", resolve));
		socket.send(message);
		await closed;
	}
});

test("a WebSocket that says nothing is closed after the time to sign in", async () => {
	await using listening = await webSockets({
		config: { signInTimeoutMs: 300 },
	});
	const socket = await opened(new WebSocket(`${listening.url}/mqtt`, "mqtt"));
	await new Promise((resolve) => socket.once("close", resolve));
});
