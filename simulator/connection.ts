/**
 * The connection of a simulated device or gateway: signs in over MQTT, comes back
 * whenever it was lost, and says again what was not acknowledged.
 */
import { createHmac } from "node:crypto";
import type { Agent } from "node:https";
import { connect, type IClientOptions, type MqttClient } from "mqtt";
import {
	type DeviceEvents,
	deviceTopics,
	otaService,
	type ServiceEvent,
} from "../wire/device-messages.ts";
import { wireTime } from "../wire/envelope.ts";

export interface DeviceIdentity {
	deviceId: string;
	secret: string;
}

/** What a device needs beside itself; one object serves a whole fleet. */
export interface Surroundings {
	/** Connection options of MQTT.js without the identity; see `brokerOptions`. */
	broker: IClientOptions;
	/** For downloads: carries the server's authority and bounds the connections. */
	agent: Agent;
	seed: number;
	/** Pause before reconnecting and before repeating a download: doubles from one to the other. */
	backoffMs: { min: number; max: number };
	/** How long an installation takes, roughly. */
	installMs: number;
}

export type ConnectionEvent =
	| { kind: "connected" }
	| { kind: "disconnected" }
	/** CONNACK with this code; the device tries again. */
	| { kind: "refused"; code: number }
	/** The address, the name or the certificate was no good; the device tries again. */
	| { kind: "unreachable"; reason: string };

export interface ConnectionOptions {
	identity: DeviceIdentity;
	surroundings: Surroundings;
	random: () => number;
	/** A payload of `events/down`. */
	onMessage: (payload: Buffer) => void;
	onEvent: (event: ConnectionEvent) => void;
}

interface Outgoing {
	/** A newer message of the same key replaces one that could not be sent yet. */
	key: string;
	payload: string;
	onAcknowledged: () => void;
}

const KEEP_ALIVE_SECONDS = 120;

export class Connection implements AsyncDisposable {
	readonly #options: ConnectionOptions;
	#client: MqttClient | undefined;
	#connected = false;
	#stopped = false;
	#attempts = 0;
	#timer: NodeJS.Timeout | undefined;
	#outbox: Outgoing[] = [];

	constructor(options: ConnectionOptions) {
		this.#options = options;
	}

	get connected(): boolean {
		return this.#connected;
	}

	/** Connects after so many milliseconds, and stays connected. */
	connectIn(ms: number): void {
		clearTimeout(this.#timer);
		if (this.#stopped) return;
		this.#timer = setTimeout(() => this.#connect(), ms);
	}

	/** Disconnects and never comes back. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#stopped = true;
		clearTimeout(this.#timer);
		await this.disconnect();
	}

	#connect(): void {
		if (this.#stopped) return;
		const { identity, surroundings, onEvent, onMessage } = this.#options;
		// A client per connection: a device that signs in again computes its password
		// again, and what was not acknowledged is this device's business, not the
		// library's.
		const client = connect({
			...surroundings.broker,
			...signIn(identity, new Date()),
			keepalive: KEEP_ALIVE_SECONDS,
			clean: true,
			reconnectPeriod: 0,
			resubscribe: false,
		});
		this.#client = client;
		client.on("connect", () => {
			this.#attempts = 0;
			this.#connected = true;
			for (const message of [...this.#outbox]) this.#send(message);
			onEvent({ kind: "connected" });
		});
		client.on("message", (_topic, payload) => onMessage(payload));
		client.on("error", (error) => {
			const code = "code" in error ? error.code : undefined;
			onEvent(
				typeof code === "number"
					? { kind: "refused", code }
					: { kind: "unreachable", reason: error.message },
			);
		});
		client.once("close", () => this.#closed(client));
	}

	#closed(client: MqttClient): void {
		if (this.#client !== client) return;
		this.#client = undefined;
		this.#setDisconnected();
		this.connectIn(this.backoff(++this.#attempts));
	}

	#setDisconnected(): void {
		if (!this.#connected) return;
		this.#connected = false;
		this.#options.onEvent({ kind: "disconnected" });
	}

	/** Says goodbye; resolves when the connection is closed. */
	async disconnect(): Promise<void> {
		const client = this.#client;
		this.#client = undefined;
		this.#setDisconnected();
		if (!client || client.stream.closed) return;
		const { promise, resolve } = Promise.withResolvers<void>();
		client.stream.once("close", resolve);
		const force = setTimeout(() => client.stream.destroy(), 1000);
		// Politely only when nothing waits for its acknowledgement, which the library
		// would wait for; what is open is sent again on the next connection.
		client.end(!client.connected || this.#outbox.length > 0);
		await promise;
		clearTimeout(force);
	}

	/** Loses the connection as a network does; it is made anew. */
	lose(): void {
		this.#client?.stream.destroy();
	}

	/** Milliseconds to wait before attempt 1, 2, … */
	backoff(attempt: number): number {
		const { min, max } = this.#options.surroundings.backoffMs;
		const ceiling = Math.min(max, min * 2 ** Math.min(attempt - 1, 20));
		// Spread over half of it, so that a fleet does not come back in one instant.
		return ceiling * (0.5 + this.#options.random() / 2);
	}

	/**
	 * Says something on `events/up`, now or when there is a connection again, as often as
	 * it takes until the server acknowledges it.
	 *
	 * @param key a newer message of the same key replaces one that could not be sent yet
	 */
	say(key: string, said: DeviceEvents, onAcknowledged = () => {}): void {
		if (!this.#connected)
			this.#outbox = this.#outbox.filter((message) => message.key !== key);
		const message = { key, payload: JSON.stringify(said), onAcknowledged };
		this.#outbox.push(message);
		this.#send(message);
	}

	/** Leaves the outbox only with the acknowledgement, however many connections that takes. */
	#send(message: Outgoing): void {
		const client = this.#client;
		if (!client || !this.#connected) return;
		client.publish(
			deviceTopics(this.#options.identity.deviceId).eventsUp,
			message.payload,
			{ qos: 1 },
			(error) => {
				if (error || !this.#outbox.includes(message)) return;
				this.#outbox = this.#outbox.filter((other) => other !== message);
				message.onAcknowledged();
			},
		);
	}
}

/** An event of the upgrade service about a device. */
export function otaReport(
	deviceId: string,
	eventType: string,
	paras: object,
): DeviceEvents {
	return eventOf(deviceId, otaService, eventType, paras);
}

export function eventOf(
	deviceId: string,
	service: string,
	eventType: string,
	paras: object,
): DeviceEvents {
	const event: ServiceEvent = {
		service_id: service,
		event_type: eventType,
		event_time: wireTime(new Date()),
		paras: { ...paras },
	};
	return { object_device_id: deviceId, services: [event] };
}

/**
 * Client id, user name and password of a device with a secret: the password is an
 * HMAC-SHA256 of the secret under the hour (UTC) that the client id names.
 */
export function signIn(
	identity: DeviceIdentity,
	now: Date,
): { clientId: string; username: string; password: string } {
	const hour = now.toISOString().slice(0, 13).replace(/[-T]/g, "");
	return {
		clientId: `${identity.deviceId}_0_0_${hour}`,
		username: identity.deviceId,
		password: createHmac("sha256", hour).update(identity.secret).digest("hex"),
	};
}
