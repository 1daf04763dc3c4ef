import assert from "node:assert/strict";
import { connect as connectTcp, type Socket } from "node:net";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import fc from "fast-check";
import type { IConnectPacket, Packet } from "mqtt-packet";
import {
	bytesOf,
	connectPacket,
	DEVICE,
	DOWN,
	type Listening,
	listen,
	RawClient,
	UP,
	until,
} from "./support/mqtt-listener.ts";

const versions = [3, 4, 5] as const;
const MB = 1024 * 1024;

/** The server still works, and nothing went wrong inside it. */
async function assertUnharmed(listening: Listening): Promise<void> {
	assert.equal(await listening.count("device_session_errors"), 0);
	using client = await RawClient.signedIn(listening.port, {
		username: "a_good",
	});
	client.publish("still here", {
		topic: "$oc/devices/a_good/sys/events/up",
		messageId: 4,
	});
	assert.equal((await client.next("puback")).messageId, 4);
	assert.equal(listening.ears.messages.at(-1)?.payload, "still here");
}

function remainingLength(bytes: number): number[] {
	const digits = [];
	for (let rest = bytes; ; rest >>= 7) {
		digits.push((rest & 0x7f) | (rest > 0x7f ? 0x80 : 0));
		if (rest <= 0x7f) return digits;
	}
}

function text(content: string | Buffer): Buffer {
	const bytes = Buffer.from(content);
	return Buffer.concat([Buffer.from([bytes.length >> 8, bytes.length]), bytes]);
}

function packetBytes(first: number, ...parts: Buffer[]): Buffer {
	const body = Buffer.concat(parts);
	return Buffer.concat([
		Buffer.from([first, ...remainingLength(body.length)]),
		body,
	]);
}

// --- before signing in --------------------------------------------------------------------

for (const [what, bytes] of [
	[
		"a PUBLISH",
		bytesOf({
			cmd: "publish",
			topic: UP,
			payload: "x",
			qos: 0,
			dup: false,
			retain: false,
		}),
	],
	[
		"a SUBSCRIBE",
		bytesOf({
			cmd: "subscribe",
			messageId: 1,
			subscriptions: [{ topic: DOWN, qos: 1 }],
		}),
	],
	["a PINGREQ", Buffer.from([0xc0, 0])],
	["a DISCONNECT", Buffer.from([0xe0, 0])],
	["an HTTP request", Buffer.from("GET / HTTP/1.1\r\nHost: a\r\n\r\n")],
	["a packet of type 0", Buffer.from([0x00, 0])],
	["a CONNECT of no length", Buffer.from([0x10, 0])],
	["a CONNECT with flags in its header", Buffer.from([0x13, 0])],
	[
		"a CONNECT that announces 20 KB",
		Buffer.from([0x10, ...remainingLength(20_000)]),
	],
	[
		"a CONNECT that announces 256 MB",
		Buffer.from([0x10, 0xff, 0xff, 0xff, 0x7f]),
	],
	[
		"a length of five digits",
		Buffer.from([0x10, 0xff, 0xff, 0xff, 0xff, 0x01]),
	],
	[
		"another protocol's name",
		packetBytes(0x10, text("AMQP"), Buffer.from([4, 2, 0, 60]), text("c")),
	],
	[
		"a protocol name beyond its packet",
		packetBytes(0x10, Buffer.from([0xff, 0xff, 0x4d])),
	],
	[
		"a reserved connect flag",
		packetBytes(0x10, text("MQTT"), Buffer.from([4, 3, 0, 60]), text("c")),
	],
	[
		"a will QoS without a will",
		packetBytes(0x10, text("MQTT"), Buffer.from([4, 0x0a, 0, 60]), text("c")),
	],
	[
		"a client id beyond its packet",
		packetBytes(0x10, text("MQTT"), Buffer.from([4, 2, 0, 60, 0, 200, 0x41])),
	],
	[
		"a missing user name",
		packetBytes(0x10, text("MQTT"), Buffer.from([4, 0x82, 0, 60]), text("c")),
	],
	[
		"5.0 properties beyond their packet",
		packetBytes(
			0x10,
			text("MQTT"),
			Buffer.from([5, 2, 0, 60, 90, 0x11]),
			text("c"),
		),
	],
	[
		"an unknown 5.0 property",
		packetBytes(
			0x10,
			text("MQTT"),
			Buffer.from([5, 2, 0, 60, 2, 0x7e, 1]),
			text("c"),
		),
	],
	[
		"a 5.0 property cut off",
		packetBytes(0x10, text("MQTT"), Buffer.from([5, 2, 0, 60, 3, 0x11, 0, 0])),
	],
] as const) {
	test(`before signing in, ${what} ends the connection without an answer`, async () => {
		await using listening = await listen();
		using client = await RawClient.open(listening.port);
		client.write(bytes);
		await client.closed;
		assert.deepEqual(client.received, []);
		await assertUnharmed(listening);
		assert.equal(listening.ears.online.length, 1);
	});
}

test("a CONNECT of garbled UTF-8 is not let in", async () => {
	await using listening = await listen({
		signIn: async ({ clientId, username = "" }) =>
			clientId === `${username}_0_0_2026010100`
				? { ok: true, deviceId: username }
				: { ok: false, refused: "identifier" },
	});
	using client = await RawClient.open(listening.port);
	client.write(
		packetBytes(
			0x10,
			text("MQTT"),
			Buffer.from([4, 0x82, 0, 60]),
			text(Buffer.from([0xff, 0xfe, 0xc0])),
			text("d"),
		),
	);
	assert.equal((await client.next("connack")).returnCode, 2);
	await client.closed;
});

test("2,000 connections that say nothing are closed, and devices get in meanwhile", async () => {
	await using listening = await listen({ config: { signInTimeoutMs: 1_500 } });
	const silent: Socket[] = [];
	let closed = 0;
	for (let batch = 0; batch < 10; batch++) {
		await Promise.all(
			Array.from({ length: 200 }, async (_, index) => {
				const port = index % 4 === 0 ? listening.tlsPort : listening.port;
				const socket = connectTcp(port, "127.0.0.1");
				silent.push(socket);
				socket.on("error", () => {});
				socket.once("close", () => closed++);
				await new Promise((resolve) => socket.once("connect", resolve));
			}),
		);
	}
	await assertUnharmed(listening);
	await until(() => closed === 2_000, "all 2,000 closed", 10_000);
	await assertUnharmed(listening);
	const open = await listening.events.registry
		.getSingleMetric("otaru_device_connections")
		?.get();
	assert.ok((open?.values[0]?.value ?? 99) <= 2);
});

test("many who drip a CONNECT byte by byte hold little memory", async () => {
	await using listening = await listen();
	const clients = await Promise.all(
		Array.from({ length: 50 }, () => RawClient.open(listening.port)),
	);
	const announced = Buffer.from([0x10, ...remainingLength(15_000)]);
	for (const client of clients) client.write(announced);
	for (let byte = 0; byte < 100; byte++) {
		for (const client of clients) client.write([0]);
		await pause(1);
	}
	await assertUnharmed(listening);
	for (const client of clients) {
		assert.equal(client.isClosed, false);
		client[Symbol.dispose]();
	}
});

// --- after signing in ---------------------------------------------------------------------

const properties = (...bytes: number[]) =>
	Buffer.from([bytes.length, ...bytes]);

/** First byte, variable header and payload; what a 5.0 client is told; the versions it concerns. */
const faults: readonly [
	what: string,
	bytes: (version: 3 | 4 | 5) => Buffer,
	reason: number,
	only?: readonly (3 | 4 | 5)[],
][] = [
	[
		"a second CONNECT",
		(v) => bytesOf(connectPacket({ protocolVersion: v }), v),
		0x82,
	],
	["a CONNACK", () => Buffer.from([0x20, 2, 0, 0]), 0x82, [3, 4]],
	["a SUBACK", () => packetBytes(0x90, Buffer.from([0, 1, 0])), 0x82, [3, 4]],
	["an UNSUBACK", () => packetBytes(0xb0, Buffer.from([0, 1])), 0x82, [3, 4]],
	["a PUBREC", () => packetBytes(0x50, Buffer.from([0, 1])), 0x82],
	["a PUBREL", () => packetBytes(0x62, Buffer.from([0, 1])), 0x82],
	["a PUBCOMP", () => packetBytes(0x70, Buffer.from([0, 1])), 0x82],
	["a PINGRESP", () => Buffer.from([0xd0, 0]), 0x82],
	["an AUTH", () => packetBytes(0xf0, Buffer.from([0x18, 0])), 0x82, [5]],
	[
		"an AUTH before 5.0",
		() => packetBytes(0xf0, Buffer.from([0x18, 0])),
		0x81,
		[3, 4],
	],
	["a packet of type 0", () => Buffer.from([0x00, 0]), 0x81],
	["a PINGREQ with flags", () => Buffer.from([0xc1, 0]), 0x81],
	[
		"a SUBSCRIBE with other flags",
		() => packetBytes(0x80, Buffer.from([0, 1]), text("a"), Buffer.from([0])),
		0x81,
	],
	["a QoS of 3", () => packetBytes(0x36, text(UP), Buffer.from([0, 1])), 0x81],
	[
		"a packet id of 0",
		(v) =>
			packetBytes(
				0x32,
				text(UP),
				Buffer.from([0, 0]),
				...(v === 5 ? [properties()] : []),
			),
		0x81,
	],
	[
		"a PUBLISH cut off in its topic",
		() => packetBytes(0x32, Buffer.from([0, 50, 0x41])),
		0x81,
	],
	["a PUBLISH of nothing", () => packetBytes(0x32), 0x81],
	[
		"a PUBLISH cut off before its packet id",
		() => packetBytes(0x32, text(UP)),
		0x81,
	],
	[
		"a topic of garbled UTF-8",
		(v) =>
			packetBytes(
				0x30,
				text(Buffer.from([0x61, 0xff, 0xfe])),
				...(v === 5 ? [properties()] : []),
			),
		0x81,
	],
	[
		"a topic with U+0000",
		(v) =>
			packetBytes(0x30, text(`${UP}\0`), ...(v === 5 ? [properties()] : [])),
		0x81,
	],
	[
		"a topic with a wildcard",
		(v) =>
			packetBytes(
				0x30,
				text(`$oc/devices/${DEVICE}/+`),
				...(v === 5 ? [properties()] : []),
			),
		0x90,
	],
	[
		"a topic of 60 KB",
		(v) =>
			packetBytes(
				0x30,
				text("a".repeat(60_000)),
				...(v === 5 ? [properties()] : []),
			),
		0x90,
	],
	[
		"an empty topic",
		(v) => packetBytes(0x30, text(""), ...(v === 5 ? [properties()] : [])),
		0x82,
	],
	[
		"a topic alias given twice",
		() => packetBytes(0x30, text(UP), properties(0x23, 0, 1, 0x23, 0, 2)),
		0x81,
		[5],
	],
	[
		"a topic alias cut off",
		() => packetBytes(0x30, text(UP), properties(0x23, 0)),
		0x81,
		[5],
	],
	[
		"properties beyond their packet",
		() => packetBytes(0x30, text(UP), Buffer.from([120, 1])),
		0x81,
		[5],
	],
	[
		"an unknown property",
		() => packetBytes(0x30, text(UP), properties(0x7e, 0)),
		0x81,
		[5],
	],
	[
		"a SUBSCRIBE to nothing",
		(v) =>
			packetBytes(
				0x82,
				Buffer.from([0, 1]),
				...(v === 5 ? [properties()] : []),
			),
		0x81,
	],
	[
		"a SUBSCRIBE with a packet id of 0",
		(v) =>
			packetBytes(
				0x82,
				Buffer.from([0, 0]),
				...(v === 5 ? [properties()] : []),
				text(DOWN),
				Buffer.from([1]),
			),
		0x81,
	],
	[
		"a SUBSCRIBE without its options",
		(v) =>
			packetBytes(
				0x82,
				Buffer.from([0, 1]),
				...(v === 5 ? [properties()] : []),
				text(DOWN),
			),
		0x81,
	],
	[
		"a SUBSCRIBE with reserved options",
		(v) =>
			packetBytes(
				0x82,
				Buffer.from([0, 1]),
				...(v === 5 ? [properties()] : []),
				text(DOWN),
				Buffer.from([0xc1]),
			),
		0x81,
	],
	[
		"an UNSUBSCRIBE from nothing",
		(v) =>
			packetBytes(
				0xa2,
				Buffer.from([0, 1]),
				...(v === 5 ? [properties()] : []),
			),
		0x81,
	],
	[
		"a SUBSCRIBE that announces 70 KB",
		() => Buffer.from([0x82, ...remainingLength(70_000)]),
		0x95,
	],
	[
		"a PUBLISH that announces 2 MB",
		() => Buffer.from([0x32, ...remainingLength(2 * MB)]),
		0x95,
	],
	[
		"a PUBLISH that announces 256 MB",
		() => Buffer.from([0x32, 0xff, 0xff, 0xff, 0x7f]),
		0x95,
	],
	[
		"a length of five digits",
		() => Buffer.from([0x32, 0xff, 0xff, 0xff, 0xff, 0x01]),
		0x81,
	],
];

for (const [what, bytes, reason, only = versions] of faults) {
	test(`${what} ends the connection, and nothing of it is heard`, async () => {
		await using listening = await listen();
		for (const protocolVersion of only) {
			using client = await RawClient.signedIn(listening.port, {
				protocolVersion,
			});
			client.write(bytes(protocolVersion));
			// Nothing that follows it counts any more.
			client.publish("too late");
			if (protocolVersion === 5)
				assert.equal((await client.next("disconnect")).reasonCode, reason);
			await client.closed;
			assert.deepEqual(client.received, []);
		}
		assert.deepEqual(listening.ears.messages, []);
		assert.equal(listening.ears.offline.length, only.length);
		await assertUnharmed(listening);
	});
}

test("a message that comes byte by byte is heard whole", async () => {
	await using listening = await listen();
	using client = await RawClient.open(listening.port);
	const bytes = Buffer.concat([
		bytesOf(connectPacket()),
		bytesOf({
			cmd: "publish",
			topic: UP,
			payload: "hello",
			qos: 1,
			messageId: 3,
			dup: false,
			retain: false,
		}),
		bytesOf({ cmd: "pingreq" }),
	]);
	for (const byte of bytes) {
		client.write([byte]);
		await new Promise(setImmediate);
	}
	await client.next("connack");
	// PINGREQ is answered at once, PUBACK follows the storing.
	const answers = [await client.nextAny(), await client.nextAny()];
	assert.deepEqual(answers.map(({ cmd }) => cmd).sort(), [
		"pingresp",
		"puback",
	]);
	assert.equal(listening.ears.messages[0]?.payload, "hello");
});

test("what is said right after CONNECT is heard once the device is let in", async () => {
	await using listening = await listen({
		signIn: async ({ username = "" }) => {
			await pause(100);
			return { ok: true, deviceId: username };
		},
	});
	using client = await RawClient.open(listening.port);
	client.write(
		Buffer.concat([
			bytesOf(connectPacket()),
			...Array.from({ length: 20 }, (_, index) =>
				bytesOf({
					cmd: "publish",
					topic: UP,
					payload: String(index),
					qos: 1,
					messageId: index + 1,
					dup: false,
					retain: false,
				}),
			),
		]),
	);
	await pause(20);
	client.publish("20", { messageId: 21 });
	await client.next("connack");
	for (let id = 1; id <= 21; id++)
		assert.equal((await client.next("puback")).messageId, id);
	assert.deepEqual(
		listening.ears.messages.map(({ payload }) => payload),
		Array.from({ length: 21 }, (_, index) => String(index)),
	);
});

test("megabytes that trickle in are neither copied over and over nor kept", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const message = bytesOf({
		cmd: "publish",
		topic: UP,
		payload: Buffer.alloc(MB, "a"),
		qos: 1,
		messageId: 1,
		dup: false,
		retain: false,
	});
	const since = performance.now();
	for (let at = 0; at < message.length; at += 100) {
		client.write(message.subarray(at, at + 100));
		if (at % 5_000 === 0) await new Promise(setImmediate);
	}
	await client.next("puback", 20_000);
	assert.ok(performance.now() - since < 15_000);
	assert.equal(listening.ears.messages[0]?.payload.length, MB);
});

test("a device's JSON is not the session's business: whatever is in it is heard", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const payloads = [
		"",
		"{",
		"[".repeat(100_000),
		`{"services":${"[".repeat(50_000)}`,
		"\u0000",
	];
	for (const [index, payload] of payloads.entries())
		client.publish(payload, { messageId: index + 1 });
	for (const _ of payloads) await client.next("puback");
	assert.deepEqual(
		listening.ears.messages.map(({ payload }) => payload),
		payloads,
	);
});

// --- anything at all ----------------------------------------------------------------------

/** Sends the bytes over a connection of its own and waits until the server has dealt with them. */
async function say(
	client: RawClient,
	chunks: readonly Uint8Array[],
): Promise<void> {
	for (const chunk of chunks) {
		client.write(Buffer.from(chunk));
		await new Promise(setImmediate);
	}
	client.socket.end();
	await client.closed;
	client[Symbol.dispose]();
}

const noise = fc.array(fc.uint8Array({ maxLength: 200 }), { maxLength: 5 });

test("random bytes before signing in harm nobody", async () => {
	await using listening = await listen();
	await fc.assert(
		fc.asyncProperty(noise, async (chunks) => {
			await say(await RawClient.open(listening.port), chunks);
		}),
		{ numRuns: 300 },
	);
	await assertUnharmed(listening);
});

test("random bytes after a CONNECT header harm nobody", async () => {
	await using listening = await listen();
	const heads = [
		packetBytes(0x10, text("MQTT"), Buffer.from([5, 0xc2, 0, 60])),
		packetBytes(0x10, text("MQTT"), Buffer.from([4, 0xfe, 0, 60])),
		packetBytes(0x10, text("MQIsdp"), Buffer.from([3, 0xc2, 0, 60])),
	];
	await fc.assert(
		fc.asyncProperty(
			fc.constantFrom(...heads),
			fc.uint8Array({ maxLength: 120 }),
			async (head, rest) => {
				const body = Buffer.concat([head.subarray(2), rest]);
				await say(await RawClient.open(listening.port), [
					Buffer.from([0x10, ...remainingLength(body.length)]),
					body,
				]);
			},
		),
		{ numRuns: 600 },
	);
	await assertUnharmed(listening);
});

test("random packets after signing in harm nobody", async () => {
	await using listening = await listen();
	await fc.assert(
		fc.asyncProperty(
			fc.constantFrom(...versions),
			fc.array(
				fc.tuple(
					fc.integer({ min: 0, max: 255 }),
					fc.uint8Array({ maxLength: 60 }),
				),
				{ minLength: 1, maxLength: 6 },
			),
			async (protocolVersion, packets) => {
				await say(
					await RawClient.signedIn(listening.port, { protocolVersion }),
					packets.map(([first, body]) => packetBytes(first, Buffer.from(body))),
				);
			},
		),
		{ numRuns: 600 },
	);
	await assertUnharmed(listening);
});

/** Every kind of packet, for cutting and twisting. */
function everyPacket(version: 3 | 4 | 5): Packet[] {
	const five = version === 5;
	return [
		connectPacket({
			protocolVersion: version,
			will: { topic: UP, payload: "w", qos: 1 },
			...(five
				? { properties: { userProperties: { a: "b" }, receiveMaximum: 5 } }
				: {}),
		} as Partial<IConnectPacket>),
		{ cmd: "connack", returnCode: 0, reasonCode: 0, sessionPresent: false },
		{
			cmd: "publish",
			topic: UP,
			payload: "hello",
			qos: 1,
			messageId: 5,
			dup: false,
			retain: false,
			...(five
				? { properties: { topicAlias: 1, userProperties: { a: "b" } } }
				: {}),
		} as Packet,
		{ cmd: "puback", messageId: 5, reasonCode: 0 },
		{ cmd: "pubrec", messageId: 5, reasonCode: 0 },
		{ cmd: "pubrel", messageId: 5, reasonCode: 0 },
		{ cmd: "pubcomp", messageId: 5, reasonCode: 0 },
		{
			cmd: "subscribe",
			messageId: 6,
			subscriptions: [{ topic: DOWN, qos: 1 }],
		},
		{ cmd: "suback", messageId: 6, granted: [1] },
		{ cmd: "unsubscribe", messageId: 7, unsubscriptions: [DOWN] },
		{ cmd: "unsuback", messageId: 7, granted: [0] },
		{ cmd: "pingreq" },
		{ cmd: "pingresp" },
		{ cmd: "disconnect", reasonCode: 0 },
		...(five ? [{ cmd: "auth", reasonCode: 0x18 } as const] : []),
	];
}

for (const version of versions) {
	const packets = everyPacket(version).map((packet) =>
		bytesOf(packet, version),
	);

	test(`packets of level ${version} in any order harm nobody`, async () => {
		await using listening = await listen();
		await fc.assert(
			fc.asyncProperty(
				fc.array(fc.constantFrom(...packets), { maxLength: 12 }),
				async (order) => {
					await say(await RawClient.open(listening.port, version), order);
				},
			),
			{ numRuns: 200 },
		);
		await assertUnharmed(listening);
	});

	test(`packets of level ${version} cut short, with their length put right, harm nobody`, async () => {
		await using listening = await listen();
		for (const packet of packets) {
			const start = 2;
			for (let end = start; end <= packet.length; end++) {
				const body = packet.subarray(start, end);
				await say(
					await RawClient.signedIn(listening.port, {
						protocolVersion: version,
					}),
					[packetBytes(packet[0] as number, body)],
				);
			}
		}
		await assertUnharmed(listening);
	});

	test(`packets of level ${version} with bytes changed harm nobody`, async () => {
		await using listening = await listen();
		await fc.assert(
			fc.asyncProperty(
				fc.constantFrom(...packets),
				fc.array(
					fc.tuple(fc.nat({ max: 255 }), fc.integer({ min: 0, max: 255 })),
					{ minLength: 1, maxLength: 3 },
				),
				async (packet, changes) => {
					const twisted = Buffer.from(packet);
					for (const [at, value] of changes)
						twisted[at % twisted.length] = value;
					await say(
						await RawClient.signedIn(listening.port, {
							protocolVersion: version,
						}),
						[twisted],
					);
				},
			),
			{ numRuns: 400 },
		);
		await assertUnharmed(listening);
	});
}
