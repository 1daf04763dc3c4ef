/**
 * The MQTT listeners by themselves, on real ports, with ears that take notes; and a
 * client that says exactly the bytes it is given.
 */
import { connect as connectTcp } from "node:net";
import type { Duplex } from "node:stream";
import {
	generate,
	type IConnectPacket,
	type Packet,
	parser as packetParser,
} from "mqtt-packet";
import {
	type MqttServer,
	type MqttServerParts,
	openMqttServer,
} from "../../server/device-link/mqtt-server.ts";
import type {
	DeviceConnection,
	DeviceEars,
} from "../../server/device-link/mqtt-session.ts";
import type { SignIn } from "../../server/device-link/sign-in.ts";
import { Events } from "../../server/events.ts";
import { setLogLevel } from "../../server/log.ts";
import { selfSignedCertificate } from "./certificate.ts";

setLogLevel("silent");

export const DEVICE = "prod1_dev1";
export const UP = `$oc/devices/${DEVICE}/sys/events/up`;
export const DOWN = `$oc/devices/${DEVICE}/sys/events/down`;

export interface Heard {
	connection: DeviceConnection;
	topic: string;
	payload: string;
}

/** Notes everything; `hear` decides when a message counts as stored. */
export class NotingEars implements DeviceEars {
	readonly online: DeviceConnection[] = [];
	readonly offline: DeviceConnection[] = [];
	readonly messages: Heard[] = [];
	/** In the order things happened: `connected ID`, `closed ID`. */
	readonly order: string[] = [];
	hear: (message: Heard) => Promise<void> = async () => {};

	connected(connection: DeviceConnection): void {
		this.online.push(connection);
		this.order.push(`connected ${connection.connectionId}`);
	}

	closed(connection: DeviceConnection): void {
		this.offline.push(connection);
		this.order.push(`closed ${connection.connectionId}`);
	}

	heard(
		connection: DeviceConnection,
		topic: string,
		payload: Buffer,
	): Promise<void> {
		const message = { connection, topic, payload: payload.toString() };
		this.messages.push(message);
		return this.hear(message);
	}
}

export interface Listening extends AsyncDisposable {
	server: MqttServer;
	ears: NotingEars;
	events: Events;
	port: number;
	tlsPort: number;
	/** The value of a counter, over all its labels or those given. */
	count(name: string, labels?: Record<string, string>): Promise<number>;
}

/** Whoever claims to be a device is it, unless a test brings its own check. */
export const believeEverybody: SignIn = async ({ username = "" }) => ({
	ok: true,
	deviceId: username,
});

let certificate: Promise<{ key: string; cert: string }> | undefined;

export async function listen(
	options: {
		signIn?: SignIn;
		config?: Partial<MqttServerParts["config"]>;
		clientCa?: string;
	} = {},
): Promise<Listening> {
	certificate ??= selfSignedCertificate();
	const ears = new NotingEars();
	const events = new Events();
	const server = await openMqttServer({
		config: {
			mqtt: { host: "127.0.0.1", port: 0 },
			mqtts: { host: "127.0.0.1", port: 0 },
			signInTimeoutMs: 20_000,
			keepAliveMinSeconds: 30,
			keepAliveMaxSeconds: 1200,
			messageLimitBytes: 1_048_576,
			messagesPerSecond: 0,
			bytesPerSecond: 0,
			maxConnections: 10_000,
			...options.config,
		},
		tls: { ...(await certificate), clientCa: options.clientCa },
		signIn: options.signIn ?? believeEverybody,
		ears,
		events,
	});
	return {
		server,
		ears,
		events,
		port: server.port ?? 0,
		tlsPort: server.tlsPort ?? 0,
		async count(name, labels = {}) {
			const metric = await events.registry
				.getSingleMetric(`otaru_${name}_total`)
				?.get();
			return (metric?.values ?? [])
				.filter(({ labels: found }) =>
					Object.entries(labels).every(([key, value]) => found[key] === value),
				)
				.reduce((sum, { value }) => sum + value, 0);
		},
		[Symbol.asyncDispose]: () => server.close(),
	};
}

/** A CONNECT as a device sends it. */
export function connectPacket(
	options: Partial<IConnectPacket> = {},
): IConnectPacket {
	const protocolVersion = options.protocolVersion ?? 4;
	return {
		cmd: "connect",
		protocolId: protocolVersion === 3 ? "MQIsdp" : "MQTT",
		protocolVersion,
		clean: true,
		keepalive: 120,
		clientId: `${options.username ?? DEVICE}_0_0_2026010100`,
		username: DEVICE,
		password: Buffer.from("0".repeat(64)),
		...options,
	};
}

/** Bytes of a packet in one version of the protocol. */
export function bytesOf(
	packet: Packet,
	protocolVersion: 3 | 4 | 5 = 4,
): Buffer {
	return generate(packet, { protocolVersion });
}

/** Says what it is told to and reads packets; knows no manners of its own. */
export class RawClient implements Disposable {
	readonly socket: Duplex;
	readonly protocolVersion: 3 | 4 | 5;
	readonly received: Packet[] = [];
	/** Resolves when the other side has hung up. */
	readonly closed: Promise<void>;
	#isClosed = false;
	#wake = () => {};

	static async open(
		port: number,
		protocolVersion: 3 | 4 | 5 = 4,
	): Promise<RawClient> {
		const socket = connectTcp({ host: "127.0.0.1", port, noDelay: true });
		await new Promise<void>((resolve, reject) => {
			socket.once("connect", resolve);
			socket.once("error", reject);
		});
		return new RawClient(socket, protocolVersion);
	}

	/** A client that has signed in. */
	static async signedIn(
		port: number,
		options: Partial<IConnectPacket> = {},
	): Promise<RawClient> {
		const client = await RawClient.open(port, options.protocolVersion ?? 4);
		client.send(connectPacket(options));
		const connack = await client.next("connack");
		if ((connack.returnCode ?? connack.reasonCode) !== 0)
			throw new Error(
				`refused with ${connack.returnCode ?? connack.reasonCode}`,
			);
		return client;
	}

	constructor(socket: Duplex, protocolVersion: 3 | 4 | 5) {
		this.socket = socket;
		this.protocolVersion = protocolVersion;
		const parser = packetParser({ protocolVersion });
		parser.on("packet", (packet) => {
			this.received.push(packet);
			this.#wake();
		});
		socket.on("data", (chunk: Buffer) => parser.parse(chunk));
		socket.on("error", () => {});
		this.closed = new Promise((resolve) => {
			const over = () => {
				this.#isClosed = true;
				this.#wake();
				resolve();
			};
			socket.once("end", over);
			socket.once("close", over);
		});
	}

	get isClosed(): boolean {
		return this.#isClosed;
	}

	send(packet: Packet): void {
		this.write(bytesOf(packet, this.protocolVersion));
	}

	write(bytes: Buffer | readonly number[]): void {
		this.socket.write(Buffer.from(bytes));
	}

	publish(
		payload: string | Buffer,
		{
			topic = UP,
			qos = 1,
			messageId = 1,
			...rest
		}: {
			topic?: string;
			qos?: 0 | 1 | 2;
			messageId?: number;
			retain?: boolean;
			dup?: boolean;
			properties?: object;
		} = {},
	): void {
		this.send({
			cmd: "publish",
			topic,
			payload,
			qos,
			messageId,
			retain: false,
			dup: false,
			...rest,
		});
	}

	/** The next packet, which must be of this kind; taken from `received`. */
	async next<C extends Packet["cmd"]>(
		cmd: C,
		timeoutMs = 5_000,
	): Promise<Extract<Packet, { cmd: C }>> {
		const packet = await this.nextAny(cmd, timeoutMs);
		if (packet.cmd !== cmd)
			throw new Error(
				`${packet.cmd} instead of ${cmd}: ${JSON.stringify(packet)}`,
			);
		return packet as Extract<Packet, { cmd: C }>;
	}

	/** The next packet whatever it is; taken from `received`. */
	async nextAny(what = "packet", timeoutMs = 5_000): Promise<Packet> {
		const deadlineMs = performance.now() + timeoutMs;
		while (this.received.length === 0) {
			if (this.#isClosed)
				throw new Error(`the connection was closed instead of a ${what}`);
			const leftMs = deadlineMs - performance.now();
			if (leftMs <= 0) throw new Error(`no ${what} in ${timeoutMs} ms`);
			await new Promise<void>((resolve) => {
				const timer = setTimeout(resolve, leftMs);
				this.#wake = () => {
					clearTimeout(timer);
					resolve();
				};
			});
		}
		return this.received.shift() as Packet;
	}

	/** Resolves once the server has handled everything said before. */
	async settled(): Promise<void> {
		this.send({ cmd: "pingreq" });
		await this.next("pingresp");
	}

	[Symbol.dispose](): void {
		this.socket.destroy();
	}
}

/** Polls until it is true. */
export async function until(
	condition: () => boolean | Promise<boolean>,
	what: string,
	timeoutMs = 5_000,
): Promise<void> {
	const deadlineMs = performance.now() + timeoutMs;
	while (!(await condition())) {
		if (performance.now() > deadlineMs) throw new Error(`not in time: ${what}`);
		await new Promise((resolve) => setTimeout(resolve, 5));
	}
}
