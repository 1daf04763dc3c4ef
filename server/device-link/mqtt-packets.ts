/**
 * Bytes <-> MQTT packets, on `mqtt-packet`.
 *
 * Where a packet ends is decided here and not by the library: it buffers whatever
 * length a peer announces, looks for fields beyond the end of a packet in the bytes
 * that follow, and keeps a stream object per connection. Given exactly one whole
 * packet at a time, one parser serves all connections and sees nothing but that packet.
 */
import {
	generate,
	type IConnackPacket,
	type IConnectPacket,
	type IDisconnectPacket,
	type IPublishPacket,
	type ISubackPacket,
	type IUnsubackPacket,
	type Packet,
	parser,
} from "mqtt-packet";

export type { Packet } from "mqtt-packet";

/** 3: MQTT 3.1, 4: MQTT 3.1.1, 5: MQTT 5.0. */
export type MqttVersion = 3 | 4 | 5;

/** The packet types a client sends, from the first four bits. */
export const packetType = {
	connect: 1,
	publish: 3,
	puback: 4,
	subscribe: 8,
	unsubscribe: 10,
	pingreq: 12,
	disconnect: 14,
} as const;

export const NEEDS_MORE = 0;
export const MALFORMED = -1;

/**
 * Length of the packet that begins at `start`, fixed header included; `NEEDS_MORE`
 * when its header is not complete yet, `MALFORMED` when it never will be.
 */
export function packetLength(
	bytes: Buffer,
	start: number,
	end: number,
): number {
	let remaining = 0;
	for (let digit = 0; digit < 4; digit++) {
		const at = start + 1 + digit;
		if (at >= end) return NEEDS_MORE;
		const byte = bytes[at] as number;
		remaining += (byte & 0x7f) * 128 ** digit;
		if (byte < 0x80) return 2 + digit + remaining;
	}
	return MALFORMED;
}

/** Where the variable header of a whole packet begins. */
function bodyStart(packet: Buffer): number {
	let at = 1;
	while ((packet[at] as number) >= 0x80) at++;
	return at + 1;
}

/** What a CONNECT says it speaks, read before anything else in it is believed. */
export function protocolOf(
	connect: Buffer,
): { name: string; level: number } | undefined {
	const at = bodyStart(connect);
	if (connect.length < at + 2) return undefined;
	const length = connect.readUInt16BE(at);
	const level = connect[at + 2 + length];
	if (level === undefined) return undefined;
	return { name: connect.toString("latin1", at + 2, at + 2 + length), level };
}

export class PacketReader {
	#early = new SinglePacketParser(4);
	#five = new SinglePacketParser(5);

	/**
	 * Reads one whole packet of a client that speaks `version`.
	 *
	 * @returns undefined when it is malformed.
	 */
	read(packet: Buffer, version: MqttVersion): Packet | undefined {
		// The parser takes the version of a CONNECT from the packet and remembers it, so
		// each of the two only ever sees its own.
		const parsed = (version === 5 ? this.#five : this.#early).parse(packet);
		if (!parsed || !isWhole(parsed)) return undefined;
		return parsed;
	}
}

class SinglePacketParser {
	readonly #version: MqttVersion;
	#parser: ReturnType<typeof parser>;
	#parsed: Packet | undefined;
	#failed = false;

	constructor(version: MqttVersion) {
		this.#version = version;
		this.#parser = this.#create();
	}

	parse(packet: Buffer): Packet | undefined {
		this.#parsed = undefined;
		this.#failed = false;
		let left = 0;
		try {
			left = this.#parser.parse(packet);
		} catch {
			// It reads past the end of some truncated packets.
			this.#failed = true;
		}
		const parsed = this.#parsed as Packet | undefined;
		if (this.#failed || left !== 0 || !parsed) {
			// Its position survives an error, and would be applied to the next packet.
			this.#parser = this.#create();
			return undefined;
		}
		return parsed;
	}

	#create(): ReturnType<typeof parser> {
		const created = parser({ protocolVersion: this.#version });
		created.on("packet", (packet) => {
			this.#parsed = packet;
		});
		created.on("error", () => {
			this.#failed = true;
		});
		return created;
	}
}

/** The library leaves null, -1 or lists where a field was cut off or came twice. */
function isWhole(packet: Packet): boolean {
	if ("properties" in packet && packet.properties) {
		for (const [name, value] of Object.entries(packet.properties)) {
			if (name === "userProperties") continue;
			if (value === null || value === undefined || value === -1) return false;
			if (Array.isArray(value)) return false;
			if (typeof value === "string" && !isMqttText(value)) return false;
		}
	}
	switch (packet.cmd) {
		case "publish":
			return (
				isMqttText(packet.topic) && (packet.qos === 0 || isId(packet.messageId))
			);
		case "subscribe":
			return (
				isId(packet.messageId) &&
				packet.subscriptions.length > 0 &&
				packet.subscriptions.every(({ topic }) => isMqttText(topic))
			);
		case "unsubscribe":
			return (
				isId(packet.messageId) &&
				packet.unsubscriptions.length > 0 &&
				packet.unsubscriptions.every(isMqttText)
			);
		case "puback":
			return isId(packet.messageId);
		default:
			return true;
	}
}

function isId(messageId: number | undefined): boolean {
	return messageId !== undefined && messageId > 0;
}

/**
 * Well-formed UTF-8 without U+0000. Bytes that are none have been decoded to U+FFFD;
 * a real U+FFFD is refused with them, since no name of ours holds one.
 */
function isMqttText(text: string): boolean {
	return !text.includes("\uFFFD") && !text.includes("\0");
}

// --- what the server sends ------------------------------------------------------

export const pingresp = Buffer.from([0xd0, 0]);

/** PUBACK; the reason is sent to 5.0 clients only, and only when it is not success. */
export function puback(
	messageId: number,
	version: MqttVersion,
	reason: number,
): Buffer {
	const high = messageId >> 8;
	const low = messageId & 0xff;
	return version === 5 && reason !== 0
		? Buffer.from([0x40, 3, high, low, reason])
		: Buffer.from([0x40, 2, high, low]);
}

/** CONNACK of MQTT 3.1 and 3.1.1. */
export function connack3(code: number, sessionPresent: boolean): Buffer {
	return Buffer.from([0x20, 2, sessionPresent ? 1 : 0, code]);
}

/** @throws when a field cannot be written, such as a topic of more than 65,535 bytes. */
export function write(
	packet:
		| IConnackPacket
		| IConnectPacket
		| IDisconnectPacket
		| IPublishPacket
		| ISubackPacket
		| IUnsubackPacket,
	version: MqttVersion,
): Buffer {
	return generate(packet, { protocolVersion: version });
}
