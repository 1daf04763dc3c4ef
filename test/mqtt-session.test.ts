import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import mqtt from "mqtt";
import type { Heard } from "./support/mqtt-listener.ts";
import {
	connectPacket,
	DEVICE,
	DOWN,
	listen,
	RawClient,
	UP,
	until,
} from "./support/mqtt-listener.ts";

const versions = [3, 4, 5] as const;

/** Ears whose messages count as stored only when the test says so. */
function storing(listening: Awaited<ReturnType<typeof listen>>) {
	const stored = new Map<
		string,
		{ resolve: () => void; reject: (error: Error) => void }
	>();
	listening.ears.hear = ({ payload }: Heard) =>
		new Promise((resolve, reject) => stored.set(payload, { resolve, reject }));
	return {
		store: (payload: string) => stored.get(payload)?.resolve(),
		fail: (payload: string) =>
			stored.get(payload)?.reject(new Error("not stored")),
	};
}

// --- messages from the device -------------------------------------------------------------

test("a message is acknowledged only when it is stored, in the order the messages came", async () => {
	await using listening = await listen();
	const { store } = storing(listening);
	using client = await RawClient.signedIn(listening.port);
	client.publish("one", { messageId: 11 });
	client.publish("two", { messageId: 12 });
	client.publish("by the way", { qos: 0 });
	client.publish("three", { messageId: 13 });
	await client.settled();
	assert.deepEqual(
		listening.ears.messages.map(({ topic, payload }) => [topic, payload]),
		[
			[UP, "one"],
			[UP, "two"],
			[UP, "by the way"],
			[UP, "three"],
		],
	);
	store("two");
	store("three");
	await client.settled();
	store("one");
	assert.equal((await client.next("puback")).messageId, 11);
	assert.equal((await client.next("puback")).messageId, 12);
	await client.settled();
	store("by the way");
	assert.equal((await client.next("puback")).messageId, 13);
	await client.settled();
});

for (const protocolVersion of versions) {
	test(`a message that was not stored is not acknowledged: the connection of level ${protocolVersion} is closed`, async () => {
		await using listening = await listen();
		const { store, fail } = storing(listening);
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		client.publish("one", { messageId: 1 });
		client.publish("two", { messageId: 2 });
		await client.settled();
		fail("one");
		store("two");
		if (protocolVersion === 5)
			assert.equal((await client.next("disconnect")).reasonCode, 0x80);
		await client.closed;
		assert.deepEqual(client.received, []);
		assert.equal(listening.ears.offline.length, 1);
	});
}

test("a QoS 0 message that was not stored is lost, and the connection goes on", async () => {
	await using listening = await listen();
	const { store, fail } = storing(listening);
	using client = await RawClient.signedIn(listening.port);
	client.publish("one", { qos: 0 });
	client.publish("two", { messageId: 2 });
	await client.settled();
	store("two");
	fail("one");
	assert.equal((await client.next("puback")).messageId, 2);
	assert.equal(await listening.count("device_messages_not_stored"), 1);
});

test("at most 64 messages of one device are under way; the rest waits unread", async () => {
	await using listening = await listen();
	const { store } = storing(listening);
	using client = await RawClient.signedIn(listening.port);
	for (let id = 1; id <= 200; id++) client.publish(`m${id}`, { messageId: id });
	await until(() => listening.ears.messages.length >= 64, "64 messages");
	await pause(50);
	assert.equal(listening.ears.messages.length, 64);
	for (let id = 1; id <= 10; id++) store(`m${id}`);
	await until(() => listening.ears.messages.length >= 74, "ten more");
	await pause(50);
	assert.equal(listening.ears.messages.length, 74);
	for (let id = 1; id <= 200; id++) {
		await until(() => listening.ears.messages.length >= id, `message ${id}`);
		store(`m${id}`);
	}
	for (let id = 1; id <= 200; id++)
		assert.equal((await client.next("puback")).messageId, id);
});

test("a device that talks faster than its rate is read more slowly, and nothing is lost", async () => {
	await using listening = await listen({ config: { messagesPerSecond: 20 } });
	using client = await RawClient.signedIn(listening.port);
	const since = performance.now();
	for (let id = 1; id <= 40; id++) client.publish(`m${id}`, { messageId: id });
	for (let id = 1; id <= 40; id++)
		assert.equal((await client.next("puback")).messageId, id);
	const lastedMs = performance.now() - since;
	// Twenty at once, the other twenty at 50 ms each.
	assert.ok(lastedMs > 900 && lastedMs < 3_000, `lasted ${lastedMs} ms`);
});

test("a device that does not take its answers is not read any further", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	client.socket.pause();
	const pings = Buffer.from("c000".repeat(32_768), "hex");
	let written = 0;
	while (written < 64 * 1024 * 1024) {
		const taken = await Promise.race([
			new Promise<true>((resolve) =>
				client.socket.write(pings, () => resolve(true)),
			),
			pause(1_000, false),
		]);
		if (!taken) break;
		written += pings.length;
	}
	assert.ok(written < 64 * 1024 * 1024, "the server took everything");
	client.socket.resume();
	client.socket.on("data", () => {});
	await new Promise<void>((resolve) =>
		client.socket.write(pings, () => resolve()),
	);
});

test("messages on foreign topics are acknowledged and counted, and not acted on", async () => {
	await using listening = await listen();
	for (const protocolVersion of versions) {
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		const topics = [
			"$oc/devices/prod1_dev2/sys/events/up",
			`$oc/devices/${DEVICE}2/sys/events/up`,
			`$oc/devices/${DEVICE}`,
			"my/own/topic",
			`/huawei/v1/devices/${DEVICE}/data/json`,
		];
		for (const [index, topic] of topics.entries()) {
			client.publish("hello", { topic, messageId: index + 1 });
			const puback = await client.next("puback");
			assert.equal(puback.messageId, index + 1);
			if (protocolVersion === 5)
				assert.equal(puback.reasonCode, index < 3 ? 0x87 : 0);
		}
		client.publish("hello", {
			topic: "$oc/devices/other/sys/events/up",
			qos: 0,
		});
		await client.settled();
	}
	assert.deepEqual(listening.ears.messages, []);
	assert.equal(
		await listening.count("device_messages_dropped", {
			reason: "foreign_topic",
		}),
		12,
	);
	assert.equal(
		await listening.count("device_messages_dropped", {
			reason: "unknown_topic",
		}),
		6,
	);
});

test("every own topic is heard, whatever follows the device's id", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const topics = [
		UP,
		`$oc/devices/${DEVICE}/sys/messages/up?encoding=gzip`,
		`$oc/devices/${DEVICE}/user/anything`,
		`$oc/devices/${DEVICE}/sys/commands/response/request_id=1`,
	];
	for (const topic of topics) client.publish("x", { topic });
	for (const _ of topics) await client.next("puback");
	assert.deepEqual(
		listening.ears.messages.map(({ topic }) => topic),
		topics,
	);
});

test("a topic alias stands for the topic it was given with", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	client.publish("one", { properties: { topicAlias: 16 } });
	client.publish("two", { topic: "", properties: { topicAlias: 16 } });
	client.publish("three", {
		topic: `$oc/devices/${DEVICE}/user/x`,
		properties: { topicAlias: 16 },
	});
	client.publish("four", { topic: "", properties: { topicAlias: 16 } });
	for (let count = 0; count < 4; count++) await client.next("puback");
	assert.deepEqual(
		listening.ears.messages.map(({ topic }) => topic),
		[UP, UP, `$oc/devices/${DEVICE}/user/x`, `$oc/devices/${DEVICE}/user/x`],
	);
});

for (const [what, topic, topicAlias, reason] of [
	["beyond the maximum", UP, 17, 0x94],
	["of 0", UP, 0, 0x94],
	["never given", "", 3, 0x82],
] as const) {
	test(`a topic alias ${what} ends the connection with ${reason}`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion: 5,
		});
		client.publish("one", { topic, properties: { topicAlias } });
		assert.equal((await client.next("disconnect")).reasonCode, reason);
		await client.closed;
		assert.deepEqual(listening.ears.messages, []);
	});
}

test("the properties of a 5.0 message that mean nothing here are tolerated", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
		properties: { userProperties: { maker: "a", line: ["1", "2"] } },
	});
	client.publish("one", {
		properties: {
			userProperties: { __proto__: "x", a: ["1", "2"] },
			responseTopic: "r",
			correlationData: Buffer.from("c"),
			contentType: "application/json",
			payloadFormatIndicator: true,
			messageExpiryInterval: 10,
		},
	});
	assert.equal((await client.next("puback")).reasonCode ?? 0, 0);
	assert.equal(listening.ears.messages[0]?.payload, "one");
});

for (const protocolVersion of versions) {
	test(`a QoS 2 message ends the connection of level ${protocolVersion}`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		client.publish("one", { qos: 2 });
		if (protocolVersion === 5)
			assert.equal((await client.next("disconnect")).reasonCode, 0x9b);
		await client.closed;
		assert.deepEqual(client.received, []);
		assert.deepEqual(listening.ears.messages, []);
	});

	test(`a retained message is ${protocolVersion === 5 ? "refused, as 5.0 asks for" : "a message like any other"} (level ${protocolVersion})`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		client.publish("one", { retain: true });
		if (protocolVersion === 5) {
			assert.equal((await client.next("disconnect")).reasonCode, 0x9a);
			await client.closed;
		} else {
			await client.next("puback");
		}
		assert.equal(listening.ears.messages.length, protocolVersion === 5 ? 0 : 1);
	});

	test(`a message of 1 MB is heard, one byte more ends the connection of level ${protocolVersion}`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		client.publish(Buffer.alloc(1_048_576, "a"));
		await client.next("puback");
		assert.equal(listening.ears.messages[0]?.payload.length, 1_048_576);
		client.publish(Buffer.alloc(1_048_577, "a"), { messageId: 2 });
		if (protocolVersion === 5)
			assert.equal((await client.next("disconnect")).reasonCode, 0x95);
		await client.closed;
		assert.equal(listening.ears.messages.length, 1);
	});
}

// --- messages to the device -----------------------------------------------------------------

for (const protocolVersion of versions) {
	test(`a device of level ${protocolVersion} that never subscribed is sent its messages with QoS 1, and acknowledges`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		const connection = listening.server.connectionOf(DEVICE);
		const delivered = connection?.send(DOWN, "hello");
		const message = await client.next("publish");
		assert.equal(message.topic, DOWN);
		assert.equal(message.payload.toString(), "hello");
		assert.equal(message.qos, 1);
		assert.equal(message.retain, false);
		assert.equal(message.dup, false);
		client.send({ cmd: "puback", messageId: message.messageId ?? 0 });
		assert.equal(await delivered, true);
	});
}

test("QoS 0 is sent without waiting for anything", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const connection = listening.server.connectionOf(DEVICE);
	assert.equal(await connection?.send(DOWN, "hello", { qos: 0 }), true);
	assert.equal((await client.next("publish")).qos, 0);
});

test("a device that has subscribed by itself is sent a message once", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	client.send({
		cmd: "subscribe",
		messageId: 1,
		subscriptions: [
			{ topic: DOWN, qos: 0 },
			{ topic: `$oc/devices/${DEVICE}/#`, qos: 1 },
		],
	});
	assert.deepEqual((await client.next("suback")).granted, [0, 1]);
	void listening.server.connectionOf(DEVICE)?.send(DOWN, "hello");
	assert.equal((await client.next("publish")).qos, 1);
	await client.settled();
});

test("a message whose connection ends before it is acknowledged was not delivered", async () => {
	await using listening = await listen();
	const client = await RawClient.signedIn(listening.port);
	const connection = listening.server.connectionOf(DEVICE);
	const delivered = connection?.send(DOWN, "hello");
	await client.next("publish");
	client[Symbol.dispose]();
	assert.equal(await delivered, false);
	assert.equal(await connection?.send(DOWN, "hello"), false);
});

test("a message that a 5.0 device refuses was not delivered", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	const delivered = listening.server.connectionOf(DEVICE)?.send(DOWN, "hello");
	const { messageId = 0 } = await client.next("publish");
	client.send({ cmd: "puback", messageId, reasonCode: 0x83 });
	assert.equal(await delivered, false);
});

test("no more is sent at once than a 5.0 device receives, and the rest follows", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
		properties: { receiveMaximum: 2 },
	});
	const connection = listening.server.connectionOf(DEVICE);
	const delivered = ["1", "2", "3", "4", "5"].map((text) =>
		connection?.send(DOWN, text),
	);
	const first = await client.next("publish");
	await client.next("publish");
	await client.settled();
	client.send({ cmd: "puback", messageId: first.messageId ?? 0 });
	assert.equal((await client.next("publish")).payload.toString(), "3");
	await client.settled();
	assert.equal(await delivered[0], true);
});

test("a message larger than a 5.0 device takes is not sent", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
		properties: { maximumPacketSize: 200 },
	});
	const connection = listening.server.connectionOf(DEVICE);
	assert.equal(await connection?.send(DOWN, "x".repeat(200)), false);
	void connection?.send(DOWN, "hello");
	assert.equal((await client.next("publish")).payload.toString(), "hello");
});

test("a device that acknowledges nothing is sent 32 messages, and 128 are kept for it", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const connection = listening.server.connectionOf(DEVICE);
	const outcomes = Array.from({ length: 130 }, (_, index) =>
		connection?.send(DOWN, String(index)),
	);
	assert.deepEqual(await Promise.all(outcomes.slice(128)), [false, false]);
	for (let index = 0; index < 32; index++)
		assert.equal((await client.next("publish")).messageId, index + 1);
	await client.settled();
	client.send({ cmd: "puback", messageId: 1 });
	assert.equal((await client.next("publish")).payload.toString(), "32");
	// An acknowledgement of something never sent changes nothing.
	client.send({ cmd: "puback", messageId: 999 });
	await client.settled();
});

test("packet ids start anew after 65,535 and are never used twice at a time", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port);
	const connection = listening.server.connectionOf(DEVICE);
	void connection?.send(DOWN, "never acknowledged");
	assert.equal((await client.next("publish")).messageId, 1);
	client.socket.removeAllListeners("data");
	const ids = new Set<number>();
	let buffered = Buffer.alloc(0);
	client.socket.on("data", (chunk: Buffer) => {
		buffered = Buffer.concat([buffered, chunk]);
		const length = 2 + 2 + DOWN.length + 2;
		while (buffered.length >= length) {
			const messageId = buffered.readUInt16BE(length - 2);
			ids.add(messageId);
			buffered = buffered.subarray(length);
			client.send({ cmd: "puback", messageId });
		}
	});
	for (let sent = 0; sent < 65_600; sent += 100) {
		const outcomes = await Promise.all(
			Array.from({ length: 100 }, () => connection?.send(DOWN, "")),
		);
		assert.ok(outcomes.every(Boolean));
	}
	assert.equal(ids.size, 65_534);
	assert.equal(ids.has(0) || ids.has(1), false);
});

// --- sessions that outlive their connection ---------------------------------------------------

test("with clean session 0, what was not acknowledged is sent again as a duplicate", async () => {
	await using listening = await listen();
	const first = await RawClient.signedIn(listening.port, { clean: false });
	const connection = listening.server.connectionOf(DEVICE);
	void connection?.send(DOWN, "one");
	void connection?.send(DOWN, "two");
	const one = await first.next("publish");
	const two = await first.next("publish");
	first.send({ cmd: "puback", messageId: one.messageId ?? 0 });
	await first.settled();
	first[Symbol.dispose]();
	await until(() => listening.ears.offline.length === 1, "the good-bye");

	using second = await RawClient.open(listening.port);
	second.send(connectPacket({ clean: false }));
	assert.equal((await second.next("connack")).sessionPresent, true);
	const again = await second.next("publish");
	assert.equal(again.payload.toString(), "two");
	assert.equal(again.messageId, two.messageId);
	assert.equal(again.dup, true);
	const delivered = listening.server.connectionOf(DEVICE)?.send(DOWN, "three");
	const three = await second.next("publish");
	assert.notEqual(three.messageId, again.messageId);
	second.send({ cmd: "puback", messageId: again.messageId ?? 0 });
	second.send({ cmd: "puback", messageId: three.messageId ?? 0 });
	assert.equal(await delivered, true);
	await second.settled();
});

test("what waited unsent for a replaced connection goes to its successor, not as a duplicate", async () => {
	await using listening = await listen();
	using first = await RawClient.signedIn(listening.port, {
		clean: false,
		protocolVersion: 5,
		properties: { receiveMaximum: 1, sessionExpiryInterval: 60 },
	});
	const connection = listening.server.connectionOf(DEVICE);
	void connection?.send(DOWN, "sent");
	void connection?.send(DOWN, "waiting");
	await first.next("publish");
	using second = await RawClient.open(listening.port);
	second.send(connectPacket({ clean: false }));
	assert.equal((await second.next("connack")).sessionPresent, true);
	const sent = await second.next("publish");
	const waiting = await second.next("publish");
	assert.deepEqual(
		[
			sent.payload.toString(),
			sent.dup,
			waiting.payload.toString(),
			waiting.dup,
		],
		["sent", true, "waiting", false],
	);
});

for (const [what, first, second, isKept] of [
	["clean session 1 after 0", { clean: false }, { clean: true }, false],
	["clean session 0 after 1", { clean: true }, { clean: false }, false],
	["clean session 0 after 0", { clean: false }, { clean: false }, true],
	[
		"5.0 without an expiry",
		{ protocolVersion: 5, clean: false },
		{ protocolVersion: 5, clean: false },
		false,
	],
	[
		"5.0 with an expiry, even if it began clean",
		{
			protocolVersion: 5,
			clean: true,
			properties: { sessionExpiryInterval: 100 },
		},
		{ protocolVersion: 5, clean: false },
		true,
	],
	[
		"5.0 that starts clean",
		{ protocolVersion: 5, properties: { sessionExpiryInterval: 100 } },
		{ protocolVersion: 5, clean: true },
		false,
	],
] as const) {
	test(`a session is ${isKept ? "kept" : "not kept"}: ${what}`, async () => {
		await using listening = await listen();
		const client = await RawClient.signedIn(listening.port, first);
		void listening.server.connectionOf(DEVICE)?.send(DOWN, "one");
		await client.next("publish");
		client[Symbol.dispose]();
		await until(() => listening.ears.offline.length === 1, "the good-bye");
		const protocolVersion =
			"protocolVersion" in second ? second.protocolVersion : 4;
		using next = await RawClient.open(listening.port, protocolVersion);
		next.send(connectPacket(second));
		assert.equal((await next.next("connack")).sessionPresent, isKept);
		if (isKept) assert.equal((await next.next("publish")).dup, true);
		await next.settled();
	});
}

test("a session is kept no longer than a 5.0 device asks, nor longer than the server says", async () => {
	await using listening = await listen();
	const client = await RawClient.open(listening.port, 5);
	client.send(
		connectPacket({
			protocolVersion: 5,
			properties: { sessionExpiryInterval: 86_400 },
		}),
	);
	assert.equal(
		(await client.next("connack")).properties?.sessionExpiryInterval,
		600,
	);
	client.send({
		cmd: "disconnect",
		reasonCode: 0,
		properties: { sessionExpiryInterval: 1 },
	});
	await client.closed;
	await pause(1_600);
	using next = await RawClient.open(listening.port, 5);
	next.send(connectPacket({ protocolVersion: 5, clean: false }));
	assert.equal((await next.next("connack")).sessionPresent, false);
});

for (const reason of ["frozen", "deleted", "secret_changed"] as const) {
	test(`nothing is kept for a device that was cut off because it is "${reason}"`, async () => {
		await using listening = await listen();
		using first = await RawClient.signedIn(listening.port, { clean: false });
		const connection = listening.server.connectionOf(DEVICE);
		const delivered = connection?.send(DOWN, "one");
		await first.next("publish");
		connection?.close(reason);
		assert.equal(await delivered, false);
		using second = await RawClient.open(listening.port);
		second.send(connectPacket({ clean: false }));
		assert.equal((await second.next("connack")).sessionPresent, false);
		await second.settled();
	});
}

test("what is kept for a device that is away is dropped when it is disconnected", async () => {
	await using listening = await listen();
	const first = await RawClient.signedIn(listening.port, { clean: false });
	void listening.server.connectionOf(DEVICE)?.send(DOWN, "one");
	await first.next("publish");
	first[Symbol.dispose]();
	await until(() => listening.ears.offline.length === 1, "the good-bye");
	listening.server.disconnect(DEVICE, "secret_changed");
	using second = await RawClient.open(listening.port);
	second.send(connectPacket({ clean: false }));
	assert.equal((await second.next("connack")).sessionPresent, false);
	await second.settled();
});

test("a 5.0 device cannot ask for a session at its good-bye that it did not ask for at its start", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	client.send({
		cmd: "disconnect",
		reasonCode: 0,
		properties: { sessionExpiryInterval: 10 },
	});
	assert.equal((await client.next("disconnect")).reasonCode, 0x82);
});

// --- subscriptions --------------------------------------------------------------------------

const filters = [
	[DOWN, 0, 0],
	[`$oc/devices/${DEVICE}/sys/commands/#`, 1, 1],
	[`$oc/devices/${DEVICE}/+/events/down`, 2, 1],
	[`$oc/devices/${DEVICE}/#`, 1, 1],
	["#", 1, 0x87],
	["$oc/devices/+/sys/events/down", 1, 0x87],
	["$oc/devices/#", 1, 0x87],
	["$oc/devices/prod1_dev2/sys/events/down", 1, 0x87],
	[`$oc/devices/${DEVICE}2/sys/events/down`, 1, 0x87],
	[`$oc/devices/${DEVICE}`, 1, 0x87],
	["$SYS/#", 1, 0x87],
	[`$oc/devices/${DEVICE}/sys#`, 1, 0x8f],
	[`$oc/devices/${DEVICE}/#/x`, 1, 0x8f],
	[`$oc/devices/${DEVICE}/a+/x`, 1, 0x8f],
	[`$oc/devices/${DEVICE}/+a/x`, 1, 0x8f],
	["", 1, 0x8f],
	[`$oc/devices/${DEVICE}/${"x".repeat(1024)}`, 1, 0x8f],
	[`$share/group/$oc/devices/${DEVICE}/#`, 1, 0x9e],
] as const;

for (const protocolVersion of versions) {
	test(`own topics are granted with at most QoS 1, everything else is refused without closing (level ${protocolVersion})`, async () => {
		await using listening = await listen();
		using client = await RawClient.signedIn(listening.port, {
			protocolVersion,
		});
		client.send({
			cmd: "subscribe",
			messageId: 77,
			subscriptions: filters.map(([topic, qos]) => ({ topic, qos })),
		});
		const suback = await client.next("suback");
		assert.equal(suback.messageId, 77);
		assert.deepEqual(
			suback.granted,
			filters.map(([, , answer]) =>
				answer > 2 && protocolVersion !== 5 ? 0x80 : answer,
			),
		);
		await client.settled();
	});
}

test("the hundred-and-first subscription is refused, an old one may be repeated", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	const subscribe = async (...topics: string[]) => {
		client.send({
			cmd: "subscribe",
			messageId: 1,
			subscriptions: topics.map((topic) => ({ topic, qos: 1 })),
		});
		return (await client.next("suback")).granted;
	};
	const own = (index: number) => `$oc/devices/${DEVICE}/user/${index}`;
	const hundred = Array.from({ length: 100 }, (_, index) => own(index));
	assert.deepEqual(await subscribe(...hundred), Array(100).fill(1));
	assert.deepEqual(await subscribe(own(100), own(5)), [0x97, 1]);
	client.send({
		cmd: "unsubscribe",
		messageId: 9,
		unsubscriptions: [own(5), own(5), "never"],
	});
	const unsuback = await client.next("unsuback");
	assert.equal(unsuback.messageId, 9);
	assert.deepEqual(unsuback.granted, [0, 0x11, 0x11]);
	assert.deepEqual(await subscribe(own(100)), [1]);
});

test("a subscription identifier is refused as not supported", async () => {
	await using listening = await listen();
	using client = await RawClient.signedIn(listening.port, {
		protocolVersion: 5,
	});
	client.send({
		cmd: "subscribe",
		messageId: 1,
		subscriptions: [{ topic: DOWN, qos: 1 }],
		properties: { subscriptionIdentifier: 5 },
	});
	assert.deepEqual((await client.next("suback")).granted, [0xa1]);
});

// --- with a client as devices use it -----------------------------------------------------------

for (const protocolVersion of versions) {
	test(`MQTT.js of level ${protocolVersion} publishes, subscribes, receives and says good-bye`, async () => {
		await using listening = await listen();
		const client = await mqtt.connectAsync({
			host: "127.0.0.1",
			port: listening.port,
			protocolVersion,
			protocolId: protocolVersion === 3 ? "MQIsdp" : "MQTT",
			clientId: `${DEVICE}_0_0_2026010100`,
			username: DEVICE,
			password: "0".repeat(64),
			keepalive: 120,
			reconnectPeriod: 0,
		});
		const received = new Promise<string>((resolve) =>
			client.once("message", (topic, payload) =>
				resolve(`${topic} ${payload}`),
			),
		);
		await client.subscribeAsync(DOWN, { qos: 1 });
		await client.publishAsync(UP, "hello", { qos: 1 });
		assert.equal(listening.ears.messages[0]?.payload, "hello");
		const delivered = listening.server.connectionOf(DEVICE)?.send(DOWN, "you");
		assert.equal(await received, `${DOWN} you`);
		assert.equal(await delivered, true);
		await client.endAsync();
		await until(() => listening.ears.offline.length === 1, "the good-bye");
		assert.equal(
			await listening.count("device_connections_closed", {
				reason: "disconnected",
			}),
			1,
		);
	});
}
