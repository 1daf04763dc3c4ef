/**
 * The connection of a device without any cleverness of its own, for tests that make
 * thousands: it says what it is told to and keeps what it hears.
 */
import { createHmac } from "node:crypto";
import { connect as connectTcp, type Socket } from "node:net";
import { generate, parser as packetParser } from "mqtt-packet";
import { deviceTopics, otaService } from "../../wire/device-messages.ts";
import type { TestServer } from "./server.ts";

export interface LinkedDevice {
	readonly id: string;
	readonly secret: string;
	/** What it heard of upgrades, on whichever connection; whoever reads it takes it away. */
	readonly heard: HeardEvent[];
}

export interface HeardEvent {
	/** The device it is for: this one, or one behind it. */
	about: string;
	type: string;
	paras: Record<string, unknown>;
}

/** Of the client id; with a signature of type 0 nobody compares it with the clock. */
const TIMESTAMP = "2026010100";

export class DeviceLink {
	/** Resolves when the other side has hung up too. */
	readonly closed: Promise<void>;
	readonly #socket: Socket;
	readonly #device: LinkedDevice;
	/** Those who wait for a CONNACK, PUBACK or PINGRESP, in the order they asked. */
	readonly #asked: PromiseWithResolvers<void>[] = [];
	#messageId = 0;

	/** @throws when the server refuses or hangs up */
	static async open(
		server: TestServer,
		device: LinkedDevice,
	): Promise<DeviceLink> {
		const { port } = new URL(server.credentials.mqtt_endpoint);
		const link = new DeviceLink(
			connectTcp({ host: "127.0.0.1", port: Number(port), noDelay: true }),
			device,
		);
		await link.#ask(
			generate({
				cmd: "connect",
				protocolId: "MQTT",
				protocolVersion: 4,
				clean: true,
				keepalive: 1_000,
				clientId: `${device.id}_0_0_${TIMESTAMP}`,
				username: device.id,
				password: Buffer.from(
					createHmac("sha256", TIMESTAMP).update(device.secret).digest("hex"),
				),
			}),
		);
		return link;
	}

	private constructor(socket: Socket, device: LinkedDevice) {
		this.#socket = socket;
		this.#device = device;
		const parser = packetParser({ protocolVersion: 4 });
		parser.on("packet", (packet) => {
			switch (packet.cmd) {
				case "publish":
					this.#hear(packet.payload.toString());
					if (packet.qos === 1)
						socket.write(
							generate({ cmd: "puback", messageId: packet.messageId ?? 0 }),
						);
					break;
				case "connack":
					if (packet.returnCode !== 0)
						this.#fail(new Error(`refused with ${packet.returnCode}`));
					this.#asked.shift()?.resolve();
					break;
				case "puback":
				case "pingresp":
					this.#asked.shift()?.resolve();
					break;
			}
		});
		socket.on("data", (chunk: Buffer) => parser.parse(chunk));
		socket.on("error", (error) => this.#fail(error));
		this.closed = new Promise((resolve) =>
			socket.once("close", () => {
				this.#fail(new Error(`the server has hung up on ${device.id}`));
				resolve();
			}),
		);
	}

	#hear(payload: string): void {
		const message = JSON.parse(payload) as {
			object_device_id: string;
			services: {
				service_id: string;
				event_type: string;
				paras: Record<string, unknown>;
			}[];
		};
		for (const { service_id, event_type, paras } of message.services)
			if (service_id === otaService)
				this.#device.heard.push({
					about: message.object_device_id,
					type: event_type,
					paras,
				});
	}

	#fail(error: Error): void {
		for (const { reject } of this.#asked.splice(0)) reject(error);
	}

	async #ask(bytes: Buffer): Promise<void> {
		const asked = Promise.withResolvers<void>();
		this.#asked.push(asked);
		this.#socket.write(bytes);
		await asked.promise;
	}

	/** Resolves when the server has stored it. */
	say(payload: string): Promise<void> {
		this.#messageId = (this.#messageId % 65_535) + 1;
		return this.#ask(
			generate({
				cmd: "publish",
				topic: deviceTopics(this.#device.id).eventsUp,
				payload,
				qos: 1,
				messageId: this.#messageId,
				retain: false,
				dup: false,
			}),
		);
	}

	/** Whatever was sent to it before has been heard afterwards. */
	async ping(): Promise<void> {
		if (this.#socket.writable) await this.#ask(generate({ cmd: "pingreq" }));
	}

	/** Resolves when the server knows. */
	async close(politely: boolean): Promise<void> {
		if (politely) this.#socket.write(generate({ cmd: "disconnect" }));
		this.#socket.end();
		await this.closed;
	}

	destroy(): void {
		this.#socket.destroy();
	}
}
