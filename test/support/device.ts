/** A device that does exactly what the test says, over a real MQTT connection. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { connectAsync, type MqttClient } from "mqtt";
import { deviceTopics, type UpgradeParas } from "../../wire/device-messages.ts";
import type { Device } from "../../wire/devices.ts";
import type { TestServer } from "./server.ts";

export interface ReceivedEvent {
	type: string;
	paras: Record<string, unknown>;
	objectDeviceId: string;
	eventId: string | undefined;
}

export class ScriptedDevice implements AsyncDisposable {
	readonly deviceId: string;
	readonly client: MqttClient;
	readonly #received: ReceivedEvent[] = [];
	#waiting: (() => void) | undefined;

	static async connect(
		server: TestServer,
		device: Device,
	): Promise<ScriptedDevice> {
		const { deviceId, options } = signIn(device);
		const client = await connectAsync(
			server.credentials.mqtt_endpoint,
			options,
		);
		return new ScriptedDevice(deviceId, client);
	}

	private constructor(deviceId: string, client: MqttClient) {
		this.deviceId = deviceId;
		this.client = client;
		client.on("message", (topic, payload) => {
			assert.equal(topic, deviceTopics(deviceId).eventsDown);
			const message = JSON.parse(payload.toString()) as {
				object_device_id: string;
				services: {
					service_id: string;
					event_type: string;
					event_id?: string;
					paras: Record<string, unknown>;
				}[];
			};
			for (const { event_type, event_id, paras } of message.services) {
				this.#received.push({
					type: event_type,
					paras,
					objectDeviceId: message.object_device_id,
					eventId: event_id,
				});
			}
			this.#waiting?.();
		});
	}

	/** The next event the server sends; it must be of this type, and for this device itself. */
	next(type: string, timeoutMs?: number): Promise<ReceivedEvent> {
		return this.nextFor(this.deviceId, type, timeoutMs);
	}

	/** As `next`, for a device behind this gateway, and of any of several types. */
	async nextFor(
		deviceId: string,
		type: string | readonly string[],
		timeoutMs?: number,
	): Promise<ReceivedEvent> {
		const event = await this.#take(String(type), timeoutMs);
		assert.ok([type].flat().includes(event.type), JSON.stringify(event));
		assert.equal(event.objectDeviceId, deviceId);
		return event;
	}

	/** As `next`, for any of several devices behind this gateway. */
	async nextOfAny(
		devices: readonly Device[],
		type: string,
	): Promise<ReceivedEvent> {
		const event = await this.#take(type);
		assert.equal(event.type, type, JSON.stringify(event));
		assert.ok(
			devices.some(({ device_id }) => device_id === event.objectDeviceId),
			JSON.stringify(event),
		);
		return event;
	}

	/** So many events, whatever they are. */
	async several(count: number): Promise<ReceivedEvent[]> {
		const events: ReceivedEvent[] = [];
		while (events.length < count) events.push(await this.#take("anything"));
		return events;
	}

	async #take(awaited: string, timeoutMs = 5_000): Promise<ReceivedEvent> {
		const deadline = Date.now() + timeoutMs;
		while (this.#received.length === 0) {
			const left = deadline - Date.now();
			if (left <= 0)
				assert.fail(`${this.deviceId} waited for ${awaited} and heard nothing`);
			await new Promise<void>((resolve) => {
				const timer = setTimeout(resolve, left);
				this.#waiting = () => {
					clearTimeout(timer);
					resolve();
				};
			});
		}
		const event = this.#received.shift();
		assert.ok(event);
		return event;
	}

	/** Fails when the server says something within the time. */
	async hearsNothing(ms = 300): Promise<void> {
		await new Promise((resolve) => setTimeout(resolve, ms));
		assert.deepEqual(this.#received, []);
	}

	/** Resolves when the server has acknowledged, and so stored, the event. */
	async say(eventType: string, paras: object, service = "$ota"): Promise<void> {
		await this.sayRaw(
			JSON.stringify({
				services: [{ service_id: service, event_type: eventType, paras }],
			}),
		);
	}

	/** As a gateway says something about a device behind it. */
	async sayOf(
		deviceId: string,
		eventType: string,
		paras: object,
		service = "$ota",
	): Promise<void> {
		await this.sayRaw(
			JSON.stringify({
				object_device_id: deviceId,
				services: [{ service_id: service, event_type: eventType, paras }],
			}),
		);
	}

	/** Asks or tells something about the devices behind this gateway. */
	async manage(
		eventType: string,
		paras: object,
		eventId?: string,
	): Promise<void> {
		await this.sayRaw(
			JSON.stringify({
				services: [
					{
						service_id: "$sub_device_manager",
						event_type: eventType,
						...(eventId === undefined ? {} : { event_id: eventId }),
						paras,
					},
				],
			}),
		);
	}

	async sayRaw(payload: string | Buffer): Promise<void> {
		await this.client.publishAsync(
			deviceTopics(this.deviceId).eventsUp,
			payload,
			{ qos: 1 },
		);
	}

	reportFirmware(version: string): Promise<void> {
		return this.say("version_report", { fw_version: version });
	}

	reportModules(modules: Record<string, string>): Promise<void> {
		return this.say("version_report", {
			modules: Object.entries(modules).map(([module_name, module_version]) => ({
				module_name,
				module_version,
			})),
		});
	}

	report(
		resultCode: number,
		version: string,
		progress?: number,
		more: object = {},
	): Promise<void> {
		return this.say("upgrade_progress_report", {
			result_code: resultCode,
			version,
			...(progress === undefined ? {} : { progress }),
			...more,
		});
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.client.endAsync(true);
	}
}

/** How a device with a secret signs in: the password is an HMAC of its secret under the hour. */
export function signIn(device: Device, timestamp = hourText(new Date())) {
	const deviceId = device.device_id;
	const secret = device.auth_info?.secret;
	assert.ok(deviceId && secret);
	return {
		deviceId,
		options: {
			clientId: `${deviceId}_0_0_${timestamp}`,
			username: deviceId,
			password: createHmac("sha256", timestamp).update(secret).digest("hex"),
			protocolVersion: 4 as const,
			reconnectPeriod: 0,
			keepalive: 120,
			connectTimeout: 10_000,
		},
	};
}

function hourText(date: Date): string {
	return date.toISOString().slice(0, 13).replace(/\D/g, "");
}

export interface Downloaded {
	status: number;
	headers: Record<string, string | string[] | undefined>;
	bytes: Buffer;
}

/** Fetches what an upgrade event points at. */
export function download(
	server: TestServer,
	paras: Record<string, unknown>,
	headers: Record<string, string> = {},
): Promise<Downloaded> {
	const { url, access_token } = paras as unknown as UpgradeParas;
	return new Promise((resolve, reject) => {
		const sent = request(
			url,
			{
				ca: readFileSync(server.credentials.ca_file),
				agent: false,
				headers: {
					...(access_token ? { authorization: `Bearer ${access_token}` } : {}),
					...headers,
				},
			},
			(answer) => {
				const chunks: Buffer[] = [];
				answer.on("data", (chunk: Buffer) => chunks.push(chunk));
				answer.on("end", () =>
					resolve({
						status: answer.statusCode ?? 0,
						headers: answer.headers,
						bytes: Buffer.concat(chunks),
					}),
				);
				answer.on("error", reject);
			},
		);
		sent.on("error", reject);
		sent.end();
	});
}

/** Asks again until the condition holds; the last answer is returned. */
export async function until<T>(
	ask: () => Promise<T>,
	holds: (value: T) => boolean,
	timeoutMs = 10_000,
): Promise<T> {
	const deadline = Date.now() + timeoutMs;
	for (;;) {
		const value = await ask();
		if (holds(value)) return value;
		if (Date.now() > deadline)
			assert.fail(
				`it did not come about: ${JSON.stringify(value).slice(0, 2_000)}`,
			);
		await new Promise((resolve) => setTimeout(resolve, 25));
	}
}
