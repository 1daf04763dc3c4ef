/**
 * One device's MQTT connection, from accept to close.
 *
 *   awaiting_connect --CONNECT--> signing_in --accepted--> connected --> closing --> closed
 *
 * `closing` has said its last word and waits a moment for the peer to hang up, so that
 * the word is not lost to a reset. What a device says is bounded in every direction:
 * bytes of one packet, messages not yet stored, messages a second, bytes it does not
 * read. Whoever reaches a bound is read more slowly, not cut off; whoever breaks the
 * protocol is cut off.
 *
 * A hundred thousand of these idle at once: nothing here keeps a buffer, a timer or a
 * closure per connection while the device is silent.
 */
import type { Duplex } from "node:stream";
import type {
	IConnectPacket,
	IPublishPacket,
	ISubscribePacket,
	IUnsubscribePacket,
} from "mqtt-packet";
import { randomHex } from "../database/ids.ts";
import type { Events } from "../events.ts";
import type { DeadlineEntry, Deadlines } from "./deadlines.ts";
import { Downlink, type DownlinkMessage } from "./mqtt-downlink.ts";
import { Inbox } from "./mqtt-inbox.ts";
import {
	connack3,
	MALFORMED,
	type MqttVersion,
	NEEDS_MORE,
	type PacketReader,
	packetLength,
	packetType,
	pingresp,
	protocolOf,
	puback,
	write,
} from "./mqtt-packets.ts";
import { isTopicName, ownerOf, subscriptionFault } from "./mqtt-topics.ts";
import type { DeviceCertificate, Refusal, SignIn } from "./sign-in.ts";

/** One signed-in device. */
export interface DeviceConnection {
	readonly deviceId: string;
	readonly connectionId: string;
	readonly remoteAddress: string;
	/**
	 * Queues a PUBLISH, QoS 1 unless told otherwise, never retained. Resolves true when
	 * the device acknowledged it (QoS 0: when it was handed to the socket); false when
	 * the connection ended before, when the device refused it or takes no packet of that
	 * size, or when too many wait already.
	 */
	send(
		topic: string,
		payload: string | Buffer,
		options?: { qos?: 0 | 1 },
	): Promise<boolean>;
	close(reason: CloseReason): void;
}

export type CloseReason =
	| "replaced"
	| "frozen"
	| "deleted"
	| "secret_changed"
	| "shutdown";

/** Who listens to connections. */
export interface DeviceEars {
	/** After the CONNACK that accepts the device was written. */
	connected(connection: DeviceConnection): void | Promise<void>;
	/** Once for each connection that `connected` was called for; a replaced one before its successor. */
	closed(connection: DeviceConnection): void | Promise<void>;
	/**
	 * Resolves when what the device said is stored; only then is it acknowledged. A
	 * rejection means: not stored. A QoS 1 message is then not acknowledged and the
	 * connection closed, so that the device repeats it; a QoS 0 message is lost.
	 */
	heard(
		connection: DeviceConnection,
		topic: string,
		payload: Buffer,
	): Promise<void>;
}

export interface SessionLimits {
	signInTimeoutMs: number;
	keepAliveMinSeconds: number;
	keepAliveMaxSeconds: number;
	/** Payload of one PUBLISH. */
	messageLimitBytes: number;
	/** 0: no limit. */
	messagesPerSecond: number;
	/** 0: no limit. */
	bytesPerSecond: number;
}

/** What all sessions of a server share. */
export interface SessionHost {
	readonly limits: SessionLimits;
	readonly reader: PacketReader;
	readonly deadlines: Deadlines;
	readonly signIn: SignIn;
	readonly ears: DeviceEars;
	readonly events: Events;
	signingIn(session: MqttSession): void;
	/** Makes the session the device's only one; returns what is kept of an earlier session unless a clean start is asked. */
	admit(session: MqttSession, clean: boolean): KeptSession | undefined;
	/** The session no longer is its device's connection. */
	left(session: MqttSession, kept: KeptSession | undefined): void;
	/** Its socket is closed. */
	gone(session: MqttSession): void;
}

/** What outlives a connection whose client asked for it. */
export interface KeptSession {
	subscriptions: Set<string> | undefined;
	/** Interrupted. */
	downlink: Downlink | undefined;
	keepMs: number;
}

/** What only MQTT 5.0 clients say. */
interface FiveState {
	receiveMaximum: number;
	maximumPacketBytes: number;
	sessionExpirySeconds: number;
	/** Topic names by alias. */
	aliases: Map<number, string> | undefined;
}

interface Uplink {
	/** 0 for QoS 0. */
	messageId: number;
	reason: number;
	stored: boolean;
}

type State =
	| "awaiting_connect"
	| "signing_in"
	| "connected"
	| "closing"
	| "closed";

/** Why a connection ended, for the metric. */
type EndReason =
	| CloseReason
	| "disconnected"
	| "lost"
	| "silent"
	| "no_sign_in"
	| "refused"
	| "malformed"
	| "protocol_error"
	| "not_supported"
	| "too_large"
	| "not_stored"
	| "internal_error";

/** A CONNECT is small; nobody who has not signed in makes the server hold more. */
const CONNECT_LIMIT_BYTES = 16 * 1024;
/** Every packet but PUBLISH and CONNECT. */
const CONTROL_LIMIT_BYTES = 64 * 1024;
/** Topic and properties of a PUBLISH, beside its payload. */
const PUBLISH_OVERHEAD_BYTES = 8 * 1024;
/** Uplink messages handed over and not yet stored. */
const UPLINK_WINDOW = 64;
const TOPIC_ALIASES = 16;
const DOWNLINK_IN_FLIGHT = 32;
/**
 * How long unacknowledged messages wait for a device that asked for it. Not longer
 * than a notice may be repeated anyway: an old one names a download that is gone.
 */
const SESSION_KEPT_MS = 10 * 60_000;
const UNREAD_LIMIT_BYTES = 64 * 1024;
const LINGER_MS = 2_000;

/** MQTT 3.x code, MQTT 5.0 reason. */
const refusals: Record<Refusal, readonly [three: number, five: number]> = {
	identifier: [2, 0x85],
	unavailable: [3, 0x88],
	credentials: [4, 0x86],
	not_authorized: [5, 0x87],
};

const closeReasons: Record<CloseReason, number> = {
	replaced: 0x8e,
	frozen: 0x98,
	deleted: 0x98,
	secret_changed: 0x98,
	shutdown: 0x8b,
};

const session = Symbol("session");
type Socket = Duplex & { [session]?: MqttSession };

// One function for all sockets: listeners made per connection would be most of what an
// idle one weighs.
function onData(this: Socket, chunk: Buffer): void {
	this[session]?.received(chunk);
}
function onClose(this: Socket): void {
	this[session]?.socketClosed();
}
function onDrain(this: Socket): void {
	this[session]?.drained();
}
function onError(): void {
	// "close" follows.
}

export class MqttSession implements DeviceConnection, DeadlineEntry {
	dueAtMs = 0;
	nextEntry: DeadlineEntry | undefined = undefined;
	previousEntry: DeadlineEntry | undefined = undefined;

	deviceId = "";
	connectionId = "";
	readonly remoteAddress: string;

	readonly #host: SessionHost;
	readonly #socket: Socket;
	#certificate: DeviceCertificate | undefined;
	#state: State = "awaiting_connect";
	#version: MqttVersion = 4;
	#clean = true;
	#keepAliveMs = 0;
	#five: FiveState | undefined = undefined;

	#inbox: Inbox | undefined = undefined;
	#paused = false;
	#throttled = false;
	#unread = false;
	#corked = false;
	/** Until when the device has used up its rate, in ms of `performance.now()`. */
	#paidUntilMs = 0;

	#uplinks: Uplink[] | undefined = undefined;
	#downlink: Downlink | undefined = undefined;
	#subscriptions: Set<string> | undefined = undefined;

	/** @param deadlineMs what is left of the time to sign in. */
	constructor(
		host: SessionHost,
		socket: Duplex,
		from: { remoteAddress: string; certificate: DeviceCertificate | undefined },
		deadlineMs: number,
	) {
		this.#host = host;
		this.#socket = socket;
		this.remoteAddress = from.remoteAddress;
		this.#certificate = from.certificate;
		this.#socket[session] = this;
		socket.on("error", onError);
		socket.on("close", onClose);
		socket.on("data", onData);
		host.deadlines.set(this, deadlineMs);
	}

	// --- what the device says -------------------------------------------------------

	/** Bytes from the socket. Never throws. */
	received(chunk: Buffer): void {
		switch (this.#state) {
			case "closing":
			case "closed":
				return;
			case "connected":
				this.dueAtMs = this.#host.deadlines.nowMs + this.#keepAliveMs;
				break;
			case "awaiting_connect":
			case "signing_in":
				break;
			default:
				throw new TypeError(this.#state satisfies never);
		}
		try {
			if (this.#inbox) {
				this.#inbox.append(chunk);
				this.#handleInbox();
			} else {
				const handled = this.#handle(chunk);
				if (handled < chunk.length)
					this.#inbox = new Inbox(chunk.subarray(handled));
				this.#pauseIfHeldUp();
			}
		} catch (error) {
			this.#broke(error);
		}
	}

	/** Whether the next packet has to wait. */
	#isHeldUp(): boolean {
		return (
			this.#state === "signing_in" ||
			this.#throttled ||
			this.#unread ||
			(this.#uplinks?.length ?? 0) >= UPLINK_WINDOW
		);
	}

	/** Handles whole packets; returns where it stopped, which is the end once the session closes. */
	#handle(bytes: Buffer): number {
		const end = bytes.length;
		let at = 0;
		while (at < end && !this.#isHeldUp()) {
			const type = (bytes[at] as number) >> 4;
			if (this.#state === "awaiting_connect" && type !== packetType.connect) {
				this.#end("protocol_error");
				return end;
			}
			const length = packetLength(bytes, at, end);
			if (length === MALFORMED) {
				this.#end("malformed", 0x81);
				return end;
			}
			if (length > this.#limitOf(type)) {
				this.#end("too_large", 0x95);
				return end;
			}
			if (length === NEEDS_MORE || end - at < length) break;
			this.#packet(bytes.subarray(at, at + length));
			at += length;
			if (this.#state === "closing" || this.#state === "closed") return end;
		}
		return at;
	}

	#limitOf(type: number): number {
		if (this.#state === "awaiting_connect") return CONNECT_LIMIT_BYTES;
		return type === packetType.publish
			? this.#host.limits.messageLimitBytes + PUBLISH_OVERHEAD_BYTES
			: CONTROL_LIMIT_BYTES;
	}

	#handleInbox(): void {
		const inbox = this.#inbox;
		if (inbox) {
			inbox.consume(this.#handle(inbox.bytes));
			if (inbox.isEmpty) this.#inbox = undefined;
		}
		this.#pauseIfHeldUp();
	}

	#pauseIfHeldUp(): void {
		if (this.#isHeldUp()) {
			if (this.#inbox && !this.#paused) {
				this.#paused = true;
				this.#socket.pause();
			}
		} else if (this.#paused) {
			this.#paused = false;
			this.#socket.resume();
		}
	}

	/** Something that held the session up is over. */
	#goOn(): void {
		if (this.#state === "closing" || this.#state === "closed") return;
		try {
			if (this.#inbox || this.#paused) this.#handleInbox();
		} catch (error) {
			this.#broke(error);
		}
	}

	#packet(bytes: Buffer): void {
		const type = (bytes[0] as number) >> 4;
		if (this.#state === "awaiting_connect") {
			this.#connect(bytes);
			return;
		}
		// The answers to what the server sends are not what the device says by itself.
		if (type !== packetType.puback) this.#charge(bytes.length);
		if (type === packetType.connect) {
			this.#end("protocol_error", 0x82);
			return;
		}
		const packet = this.#host.reader.read(bytes, this.#version);
		if (!packet) {
			this.#end("malformed", 0x81);
			return;
		}
		switch (packet.cmd) {
			case "publish":
				this.#publish(packet);
				return;
			case "puback":
				this.#acknowledged(packet.messageId ?? 0, packet.reasonCode ?? 0);
				return;
			case "subscribe":
				this.#subscribe(packet);
				return;
			case "unsubscribe":
				this.#unsubscribe(packet);
				return;
			case "pingreq":
				this.#write(pingresp);
				return;
			case "disconnect":
				this.#disconnect(packet.properties?.sessionExpiryInterval);
				return;
			case "connect":
			case "connack":
			case "suback":
			case "unsuback":
			case "pingresp":
			case "pubrec":
			case "pubrel":
			case "pubcomp":
			case "auth":
				this.#end("protocol_error", 0x82);
				return;
			default:
				throw new TypeError(packet satisfies never);
		}
	}

	/** Takes a packet from the device's rates; beyond them, reading stops until they are earned again. */
	#charge(sizeBytes: number): void {
		const { messagesPerSecond, bytesPerSecond } = this.#host.limits;
		const costMs = Math.max(
			messagesPerSecond === 0 ? 0 : 1000 / messagesPerSecond,
			bytesPerSecond === 0 ? 0 : (1000 * sizeBytes) / bytesPerSecond,
		);
		if (costMs === 0) return;
		const now = performance.now();
		this.#paidUntilMs = Math.max(this.#paidUntilMs, now) + costMs;
		// A second's worth may come at once.
		const aheadMs = this.#paidUntilMs - now - 1000;
		if (aheadMs > 0) {
			this.#throttled = true;
			setTimeout(unthrottle, aheadMs, this).unref();
		}
	}

	unthrottled(): void {
		this.#throttled = false;
		this.#goOn();
	}

	// --- signing in -----------------------------------------------------------------

	#connect(bytes: Buffer): void {
		const protocol = protocolOf(bytes);
		if (!protocol || (protocol.name !== "MQTT" && protocol.name !== "MQIsdp")) {
			this.#end("malformed");
			return;
		}
		const version = versionOf(protocol);
		if (!version) {
			this.#host.events.happened("device_sign_ins", {
				result: "protocol_version",
			});
			// A version beyond 5.0 presumably has the answers of 5.0.
			this.#write(
				protocol.name === "MQTT" && protocol.level > 5
					? connack5(0x84)
					: connack3(1, false),
			);
			this.#end("refused");
			return;
		}
		this.#version = version;
		const packet = this.#host.reader.read(bytes, version);
		if (packet?.cmd !== "connect") {
			this.#end("malformed");
			return;
		}
		if (version === 5 && !this.#readFive(packet)) return;
		const keepAlive = packet.keepalive ?? 0;
		const { keepAliveMinSeconds, keepAliveMaxSeconds } = this.#host.limits;
		if (keepAlive < keepAliveMinSeconds || keepAlive > keepAliveMaxSeconds) {
			this.#refuse("identifier");
			return;
		}
		this.#keepAliveMs = keepAlive * 1500;
		this.#clean = packet.clean ?? true;
		this.#state = "signing_in";
		// Until the answer it is only what the device claims to be.
		this.deviceId = packet.username ?? "";
		this.#host.signingIn(this);
		const certificate = this.#certificate;
		this.#certificate = undefined;
		this.#host
			.signIn({
				clientId: packet.clientId,
				username: packet.username,
				password: packet.password,
				certificate,
				remoteAddress: this.remoteAddress,
			})
			.then(
				(result) =>
					result.ok
						? this.#accept(result.deviceId)
						: this.#refuse(result.refused),
				(error: unknown) => {
					this.#host.events.happened(
						"device_sign_in_errors",
						{},
						{ err: error },
						"error",
					);
					this.#refuse("unavailable");
				},
			)
			.catch((error: unknown) => this.#broke(error));
	}

	/** The part of a CONNECT that only 5.0 has; false when the connection was refused for it. */
	#readFive(packet: IConnectPacket): boolean {
		const properties = packet.properties ?? {};
		const reason =
			properties.receiveMaximum === 0 || properties.maximumPacketSize === 0
				? 0x82
				: properties.authenticationMethod !== undefined
					? 0x8c
					: packet.will?.retain
						? 0x9a
						: (packet.will?.qos ?? 0) > 1
							? 0x9b
							: 0;
		if (reason !== 0) {
			this.#host.events.happened("device_sign_ins", {
				result: "not_supported",
			});
			this.#write(connack5(reason));
			this.#end("refused");
			return false;
		}
		this.#five = {
			receiveMaximum: properties.receiveMaximum ?? 65_535,
			maximumPacketBytes: properties.maximumPacketSize ?? 0xffff_ffff,
			sessionExpirySeconds: properties.sessionExpiryInterval ?? 0,
			aliases: undefined,
		};
		return true;
	}

	/** The answer that was being waited for does not count any more: the device shall ask again. */
	interruptSignIn(): void {
		this.#refuse("unavailable");
	}

	#refuse(refusal: Refusal): void {
		if (this.#state !== "signing_in" && this.#state !== "awaiting_connect")
			return;
		this.#host.events.happened(
			"device_sign_ins",
			{ result: refusal },
			{ address: this.remoteAddress },
		);
		const [three, five] = refusals[refusal];
		this.#write(this.#version === 5 ? connack5(five) : connack3(three, false));
		this.#end("refused");
	}

	#accept(deviceId: string): void {
		// The connection may have ended meanwhile.
		if (this.#state !== "signing_in") return;
		this.deviceId = deviceId;
		this.connectionId = randomHex(12);
		const kept = this.#host.admit(this, this.#clean);
		this.#state = "connected";
		this.#host.deadlines.set(this, this.#keepAliveMs);
		this.#host.events.happened("device_sign_ins", { result: "accepted" });
		// In MQTT 3.1 the bit does not exist.
		const present = kept !== undefined && this.#version !== 3;
		this.#write(
			this.#version === 5
				? connack5(0, present, this.#five, this.#host.limits)
				: connack3(0, present),
		);
		this.#subscriptions = kept?.subscriptions;
		this.#downlink = kept?.downlink;
		this.#deliver();
		this.#tell("connected");
		this.#goOn();
	}

	// --- messages from the device -----------------------------------------------------

	#publish(packet: IPublishPacket): void {
		if (packet.qos === 2) {
			this.#end("not_supported", 0x9b);
			return;
		}
		if (this.#version === 5 && packet.retain) {
			this.#end("not_supported", 0x9a);
			return;
		}
		const payload = packet.payload as Buffer;
		if (payload.length > this.#host.limits.messageLimitBytes) {
			this.#end("too_large", 0x95);
			return;
		}
		const topic = this.#topicOf(packet);
		if (topic === undefined) return;
		const owner = ownerOf(topic, this.deviceId);
		const uplink: Uplink = {
			messageId: packet.messageId ?? 0,
			reason: owner === "foreign" ? 0x87 : 0,
			stored: owner !== "own",
		};
		this.#uplinks ??= [];
		this.#uplinks.push(uplink);
		if (owner === "own") {
			this.#host.ears.heard(this, topic, payload).then(
				() => this.#stored(uplink),
				(error: unknown) => this.#notStored(uplink, error),
			);
			return;
		}
		// Acknowledged, so that the device does not repeat it for ever.
		this.#host.events.happened(
			"device_messages_dropped",
			{ reason: `${owner}_topic` },
			{ device_id: this.deviceId, topic: topic.slice(0, 256) },
		);
		this.#acknowledge();
	}

	/** The topic of a PUBLISH, its alias resolved; undefined when the connection was closed for it. */
	#topicOf({ topic, properties }: IPublishPacket): string | undefined {
		if (!isTopicName(topic)) {
			this.#end("protocol_error", 0x90);
			return undefined;
		}
		const alias = properties?.topicAlias;
		if (alias === undefined) {
			if (topic !== "") return topic;
			this.#end("protocol_error", 0x82);
			return undefined;
		}
		if (!this.#five || alias < 1 || alias > TOPIC_ALIASES) {
			this.#end("protocol_error", 0x94);
			return undefined;
		}
		if (topic !== "") {
			this.#five.aliases ??= new Map();
			this.#five.aliases.set(alias, topic);
			return topic;
		}
		const known = this.#five.aliases?.get(alias);
		if (known === undefined) this.#end("protocol_error", 0x82);
		return known;
	}

	#stored(uplink: Uplink): void {
		uplink.stored = true;
		if (this.#state !== "connected") return;
		this.#acknowledge();
		this.#goOn();
	}

	#notStored(uplink: Uplink, error: unknown): void {
		this.#host.events.happened(
			"device_messages_not_stored",
			{},
			{ device_id: this.deviceId, err: error },
			"error",
		);
		// Nothing repeats a QoS 0 message, so closing would only cost what else is under way.
		if (uplink.messageId === 0) this.#stored(uplink);
		else this.#end("not_stored", 0x80);
	}

	/** In the order the messages came in. */
	#acknowledge(): void {
		const uplinks = this.#uplinks;
		if (!uplinks) return;
		let done = 0;
		for (; done < uplinks.length; done++) {
			const { messageId, reason, stored } = uplinks[done] as Uplink;
			if (!stored) break;
			if (messageId !== 0)
				this.#write(puback(messageId, this.#version, reason));
		}
		if (done === uplinks.length) this.#uplinks = undefined;
		else uplinks.splice(0, done);
	}

	/**
	 * Subscribing changes nothing about delivery: every device is sent its own topics
	 * anyway, once. It is granted, refused and counted so that clients are content.
	 */
	#subscribe(packet: ISubscribePacket): void {
		const identified = packet.properties?.subscriptionIdentifier !== undefined;
		const granted = packet.subscriptions.map(({ topic, qos }) => {
			const fault = identified
				? 0xa1
				: subscriptionFault(topic, this.deviceId, this.#subscriptions);
			if (fault !== undefined) return this.#version === 5 ? fault : 0x80;
			this.#subscriptions ??= new Set();
			this.#subscriptions.add(topic);
			return Math.min(qos, 1);
		});
		this.#write(
			write(
				{
					cmd: "suback",
					messageId: packet.messageId ?? 0,
					granted,
					properties: {},
				},
				this.#version,
			),
		);
	}

	#unsubscribe(packet: IUnsubscribePacket): void {
		const granted = packet.unsubscriptions.map((filter) =>
			this.#subscriptions?.delete(filter) ? 0 : 0x11,
		);
		this.#write(
			write(
				{
					cmd: "unsuback",
					messageId: packet.messageId ?? 0,
					granted,
					properties: {},
				},
				this.#version,
			),
		);
	}

	#disconnect(sessionExpirySeconds: number | undefined): void {
		if (this.#five && sessionExpirySeconds !== undefined) {
			if (this.#five.sessionExpirySeconds === 0 && sessionExpirySeconds > 0) {
				this.#end("protocol_error", 0x82);
				return;
			}
			this.#five.sessionExpirySeconds = sessionExpirySeconds;
		}
		this.#end("disconnected");
	}

	// --- messages to the device ---------------------------------------------------------

	send(
		topic: string,
		payload: string | Buffer,
		options: { qos?: 0 | 1 } = {},
	): Promise<boolean> {
		if (this.#state !== "connected") return Promise.resolve(false);
		const message: DownlinkMessage = {
			id: 0,
			topic,
			payload: typeof payload === "string" ? Buffer.from(payload) : payload,
			settle: undefined,
		};
		// Fixed header, length of the topic, packet id, length of the properties.
		const packetBytes =
			5 + 2 + Buffer.byteLength(topic) + 2 + 1 + message.payload.length;
		if (this.#five && packetBytes > this.#five.maximumPacketBytes)
			return Promise.resolve(false);
		if (options.qos === 0) {
			if (this.#unread) return Promise.resolve(false);
			this.#write(this.#publication(message, 0, false));
			return Promise.resolve(true);
		}
		this.#downlink ??= new Downlink();
		if (!this.#downlink.add(message)) {
			this.#host.events.happened(
				"device_downlink_refused",
				{ by: "server" },
				{ device_id: this.deviceId },
			);
			return Promise.resolve(false);
		}
		return new Promise((resolve) => {
			message.settle = resolve;
			this.#deliver();
		});
	}

	#publication(message: DownlinkMessage, qos: 0 | 1, dup: boolean): Buffer {
		return write(
			{
				cmd: "publish",
				topic: message.topic,
				payload: message.payload,
				qos,
				dup,
				retain: false,
				messageId: message.id,
			},
			this.#version,
		);
	}

	/** Sends what waits, as far as the device takes more at once. */
	#deliver(): void {
		const limit = Math.min(
			DOWNLINK_IN_FLIGHT,
			this.#five?.receiveMaximum ?? DOWNLINK_IN_FLIGHT,
		);
		for (;;) {
			const next = this.#downlink?.next(limit);
			if (!next) return;
			this.#write(this.#publication(next.message, 1, next.isRepeated));
		}
	}

	#acknowledged(messageId: number, reason: number): void {
		if (!this.#downlink?.acknowledged(messageId, reason < 0x80)) {
			// It answers what nobody said.
			this.#charge(4);
			return;
		}
		if (reason >= 0x80)
			this.#host.events.happened(
				"device_downlink_refused",
				{ by: "device" },
				{ device_id: this.deviceId, reason },
			);
		this.#deliver();
		if (this.#downlink.isEmpty) this.#downlink = undefined;
	}

	#write(bytes: Buffer): void {
		if (!this.#corked) {
			// Everything that is said in one turn goes out in one system call.
			this.#corked = true;
			this.#socket.cork();
			process.nextTick(flush, this);
		}
		this.#socket.write(bytes);
		if (
			!this.#unread &&
			this.#socket.writableLength > UNREAD_LIMIT_BYTES &&
			this.#socket.writableNeedDrain
		) {
			this.#unread = true;
			this.#socket.once("drain", onDrain);
		}
	}

	flushed(): void {
		this.#corked = false;
		this.#socket.uncork();
	}

	drained(): void {
		this.#unread = false;
		this.#goOn();
	}

	// --- the end ----------------------------------------------------------------------

	close(reason: CloseReason): void {
		if (this.#state === "connected") this.#end(reason, closeReasons[reason]);
		else this.destroy();
	}

	/** Ends at once, without a word. */
	destroy(): void {
		this.#socket.destroy();
	}

	deadlinePassed(): void {
		try {
			this.#tooLate();
		} catch (error) {
			this.#broke(error);
		}
	}

	#tooLate(): void {
		switch (this.#state) {
			case "awaiting_connect":
				this.#end("no_sign_in");
				this.#socket.destroy();
				return;
			case "signing_in":
				this.#refuse("unavailable");
				return;
			case "connected":
				// It may have spoken, and it was we who did not listen; unless we wait for it
				// to take what it was sent.
				if (this.#paused && !this.#unread)
					this.#host.deadlines.set(this, this.#keepAliveMs);
				else this.#end("silent", 0x8d);
				return;
			case "closing":
			case "closed":
				this.#socket.destroy();
				return;
			default:
				throw new TypeError(this.#state satisfies never);
		}
	}

	socketClosed(): void {
		if (this.#state !== "closing" && this.#state !== "closed")
			this.#leave("lost");
		this.#state = "closed";
		this.#inbox = undefined;
		this.#host.deadlines.clear(this);
		this.#host.gone(this);
	}

	#broke(error: unknown): void {
		this.#host.events.happened(
			"device_session_errors",
			{},
			{ device_id: this.deviceId, err: error },
			"error",
		);
		if (this.#state !== "closing" && this.#state !== "closed")
			this.#leave("internal_error");
		this.#state = "closing";
		this.#socket.destroy();
	}

	/** Says good-bye, with the reason if the client speaks 5.0, and hangs up. */
	#end(reason: EndReason, five?: number): void {
		if (this.#state === "closing" || this.#state === "closed") return;
		if (
			five !== undefined &&
			this.#version === 5 &&
			this.#state === "connected"
		) {
			this.#write(
				write({ cmd: "disconnect", reasonCode: five, properties: {} }, 5),
			);
		}
		this.#leave(reason);
		this.#state = "closing";
		this.#inbox = undefined;
		this.#host.deadlines.set(this, LINGER_MS);
		this.#socket.end();
		// What still arrives is read and dropped: closing on unread bytes would reset the
		// connection and could take the last word with it.
		this.#socket.resume();
	}

	/** The end as everybody else sees it. */
	#leave(reason: EndReason): void {
		this.#host.events.happened("device_connections_closed", { reason });
		const wasConnected = this.#state === "connected";
		this.#state = "closing";
		const downlink = this.#downlink;
		this.#downlink = undefined;
		downlink?.interrupt();
		const keepMs = this.#keepMs(reason);
		this.#host.left(
			this,
			wasConnected && keepMs > 0
				? { subscriptions: this.#subscriptions, downlink, keepMs }
				: undefined,
		);
		if (wasConnected) this.#tell("closed");
	}

	#keepMs(reason: EndReason): number {
		// Whoever comes next under this name may be somebody else.
		if (
			reason === "frozen" ||
			reason === "deleted" ||
			reason === "secret_changed"
		)
			return 0;
		if (this.#five)
			return Math.min(this.#five.sessionExpirySeconds * 1000, SESSION_KEPT_MS);
		return this.#clean ? 0 : SESSION_KEPT_MS;
	}

	#tell(what: "connected" | "closed"): void {
		const failed = (error: unknown) => {
			this.#host.events.happened(
				"device_session_errors",
				{},
				{ device_id: this.deviceId, err: error },
				"error",
			);
			// Whoever should have taken note of the device did not: it shall come again.
			if (what === "connected") this.#end("internal_error", 0x80);
		};
		try {
			this.#host.ears[what](this)?.catch(failed);
		} catch (error) {
			failed(error);
		}
	}
}

function unthrottle(throttled: MqttSession): void {
	throttled.unthrottled();
}

function flush(corked: MqttSession): void {
	corked.flushed();
}

/** MQTT 3.1 calls itself MQIsdp, level 3; 3.1.1 and 5.0 call themselves MQTT. */
function versionOf({
	name,
	level,
}: {
	name: string;
	level: number;
}): MqttVersion | undefined {
	if (name === "MQIsdp") return level === 3 ? 3 : undefined;
	return level === 4 || level === 5 ? level : undefined;
}

/** CONNACK of MQTT 5.0; an accepting one tells the client what this server does not offer. */
function connack5(
	reasonCode: number,
	sessionPresent = false,
	five?: FiveState,
	limits?: SessionLimits,
): Buffer {
	const keptSeconds = SESSION_KEPT_MS / 1000;
	return write(
		{
			cmd: "connack",
			sessionPresent,
			reasonCode,
			properties:
				five && limits
					? {
							...(five.sessionExpirySeconds > keptSeconds
								? { sessionExpiryInterval: keptSeconds }
								: {}),
							receiveMaximum: UPLINK_WINDOW,
							maximumQoS: 1,
							retainAvailable: false,
							maximumPacketSize:
								limits.messageLimitBytes + PUBLISH_OVERHEAD_BYTES,
							topicAliasMaximum: TOPIC_ALIASES,
							wildcardSubscriptionAvailable: true,
							subscriptionIdentifiersAvailable: false,
							sharedSubscriptionAvailable: false,
						}
					: {},
		},
		5,
	);
}
