/**
 * Many simulated devices in one process: they share one pool of download connections
 * and one TLS context, connect one after the other, and are counted together.
 */
import { Agent } from "node:https";
import { createSecureContext, type SecureContext } from "node:tls";
import type { IClientOptions } from "mqtt";
import type { DeviceIdentity } from "./connection.ts";
import {
	type DeviceEvent,
	type DeviceVersions,
	SimulatedDevice,
} from "./device.ts";
import { assignFaults, type FaultSpec } from "./faults.ts";

export interface FleetMember {
	identity: DeviceIdentity;
	versions: DeviceVersions;
	/** `mqtt://host:port`, `mqtts://host:port` or `wss://host:port/mqtt`. */
	brokerUrl: string;
}

export interface FleetOptions {
	members: readonly FleetMember[];
	/** PEM of the authority behind the server's certificate; absent: the well-known ones. */
	ca?: string | undefined;
	faults?: readonly FaultSpec[];
	/** Everything that happens by chance follows from it. */
	seed?: number;
	speaksModules?: boolean;
	connectsPerSecond?: number;
	backoffMs?: { min: number; max: number };
	installMs?: number;
	/** MQTT 3.1 (3), 3.1.1 (4) or 5.0 (5). */
	mqttVersion?: 3 | 4 | 5;
	/** Downloads of the fleet at the same time; the others wait for their turn. */
	maxDownloads?: number;
	onEvent?: (device: SimulatedDevice, event: DeviceEvent) => void;
}

/** What the fleet has done so far; `connected` is how many are connected now. */
export interface FleetCounts {
	devices: number;
	connected: number;
	/** Version reports that the server acknowledged. */
	introductions: number;
	/** Connections that ended, reboots included. */
	disconnects: number;
	/** CONNACKs with a code other than 0. */
	refused: number;
	/** Attempts to connect that found no server, or not the expected one. */
	unreachable: number;
	notices: number;
	misunderstood: number;
	downloads: number;
	downloadedBytes: number;
	/** Breaks in the middle of a download. */
	interruptions: number;
	installs: number;
	failures: number;
	/** Acknowledged progress reports. */
	reports: number;
}

export class Fleet implements AsyncDisposable {
	readonly devices: readonly SimulatedDevice[];
	readonly counts: FleetCounts;
	/** The newest reason why a device could not connect; undefined once one is connected. */
	lastTrouble: string | undefined;
	readonly #agent: Agent;
	readonly #connectsPerSecond: number;
	readonly #onEvent: FleetOptions["onEvent"];
	#starter: NodeJS.Timeout | undefined;

	constructor(options: FleetOptions) {
		const { members, seed = 1, ca } = options;
		const secureContext = createSecureContext(ca ? { ca } : {});
		this.#agent = new Agent({
			keepAlive: true,
			maxSockets: options.maxDownloads ?? 512,
			secureContext,
		});
		this.#connectsPerSecond = options.connectsPerSecond ?? 500;
		this.#onEvent = options.onEvent;
		const brokers = new Map<string, IClientOptions>();
		const behaviours = assignFaults(options.faults ?? [], members.length, seed);
		const count = (device: SimulatedDevice, event: DeviceEvent) =>
			this.#count(device, event);
		this.devices = members.map((member, index) => {
			let broker = brokers.get(member.brokerUrl);
			if (!broker) {
				broker = brokerOptions(
					member.brokerUrl,
					secureContext,
					options.mqttVersion ?? 4,
				);
				brokers.set(member.brokerUrl, broker);
			}
			return new SimulatedDevice({
				identity: member.identity,
				versions: member.versions,
				speaksModules: options.speaksModules ?? true,
				behaviour: behaviours[index] ?? {},
				broker,
				agent: this.#agent,
				seed,
				backoffMs: options.backoffMs ?? { min: 1000, max: 30_000 },
				installMs: options.installMs ?? 300,
				onEvent: count,
			});
		});
		this.counts = {
			devices: members.length,
			connected: 0,
			introductions: 0,
			disconnects: 0,
			refused: 0,
			unreachable: 0,
			notices: 0,
			misunderstood: 0,
			downloads: 0,
			downloadedBytes: 0,
			interruptions: 0,
			installs: 0,
			failures: 0,
			reports: 0,
		};
	}

	/** Starts the devices one after the other, `connectsPerSecond` of them. */
	start(): void {
		const startedAtMs = Date.now();
		let started = 0;
		const step = () => {
			const due = Math.ceil(
				((Date.now() - startedAtMs + 20) / 1000) * this.#connectsPerSecond,
			);
			while (started < due && started < this.devices.length)
				this.devices[started++]?.start();
			if (started < this.devices.length) this.#starter = setTimeout(step, 20);
		};
		step();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		clearTimeout(this.#starter);
		await Promise.all(
			this.devices.map((device) => device[Symbol.asyncDispose]()),
		);
		this.#agent.destroy();
	}

	#count(device: SimulatedDevice, event: DeviceEvent): void {
		const { counts } = this;
		switch (event.kind) {
			case "connected":
				counts.connected++;
				this.lastTrouble = undefined;
				break;
			case "disconnected":
				counts.connected--;
				counts.disconnects++;
				break;
			case "introduced":
				counts.introductions++;
				break;
			case "refused":
				counts.refused++;
				this.lastTrouble = `the server refuses ${device.deviceId} with code ${event.code}`;
				break;
			case "unreachable":
				counts.unreachable++;
				this.lastTrouble = event.reason;
				break;
			case "noticed":
				counts.notices++;
				break;
			case "misunderstood":
				counts.misunderstood++;
				break;
			case "interrupted":
				counts.interruptions++;
				break;
			case "downloaded":
				counts.downloads++;
				counts.downloadedBytes += event.sizeBytes;
				break;
			case "installed":
				counts.installs++;
				break;
			case "reported":
				counts.reports++;
				break;
			case "failed":
				counts.failures++;
				break;
			default:
				event satisfies never;
		}
		this.#onEvent?.(device, event);
	}
}

/**
 * MQTT.js options for one of the three ways in.
 *
 * @throws TypeError when the address is none of them.
 */
export function brokerOptions(
	brokerUrl: string,
	secureContext: SecureContext | undefined,
	mqttVersion: 3 | 4 | 5,
): IClientOptions {
	const url = new URL(brokerUrl);
	const protocol = url.protocol.slice(0, -1);
	const common: IClientOptions = {
		host: url.hostname,
		port: Number(url.port),
		protocolVersion: mqttVersion,
		protocolId: mqttVersion === 3 ? "MQIsdp" : "MQTT",
		connectTimeout: 20_000,
	};
	switch (protocol) {
		case "mqtt":
			return { ...common, protocol };
		case "mqtts":
			return { ...common, protocol, ...(secureContext && { secureContext }) };
		case "wss":
			return {
				...common,
				protocol,
				path: url.pathname,
				// Handed on to tls.connect, which the type of these options does not say.
				wsOptions: {
					perMessageDeflate: false,
					secureContext,
				} as NonNullable<IClientOptions["wsOptions"]>,
			};
		default:
			throw new TypeError(
				`A broker address begins with mqtt://, mqtts:// or wss://, not "${brokerUrl}".`,
			);
	}
}
