/**
 * The devices of the report benchmark, in a process of their own: bare sockets and
 * hand-made packets, so that what is measured is the server. Each connection signs in,
 * tells its module version, takes the upgrade notice, and then reports progress as
 * fast as the acknowledgements allow.
 */
import { connect, type Socket } from "node:net";
import { generate, type Packet, parser } from "mqtt-packet";
import { type DeviceIdentity, signIn } from "../../simulator/connection.ts";
import { readDownlink } from "../../simulator/notice.ts";
import { deviceTopics, otaService } from "../../wire/device-messages.ts";

export interface LoadPlan {
	host: string;
	port: number;
	devices: DeviceIdentity[];
	module: { name: string; version: string };
}

/** Sent once every device has its notice, as often as wanted. */
export interface LoadPhase {
	/** Reports of one connection that may wait for their acknowledgement. */
	window: number;
	/** Each device reports its progress on from where it is, up to this; at most 99. */
	upToProgress: number;
}

export type FromLoad =
	| { kind: "connected" }
	/** Every device has its upgrade notice: its exchange is running. */
	| { kind: "noticed" }
	| {
			kind: "done";
			reports: number;
			elapsedMs: number;
			/** From writing a report to its PUBACK. */
			p50Ms: number;
			p99Ms: number;
			maxMs: number;
	  }
	| { kind: "failed"; reason: string };

interface Listeners {
	connected: () => void;
	noticed: () => void;
	acknowledged: (ms: number) => void;
}

class Reporter {
	readonly #socket: Socket;
	readonly #plan: LoadPlan;
	readonly #identity: DeviceIdentity;
	readonly #topic: string;
	readonly #on: Listeners;
	#noticed = false;
	#progress = 0;
	#upToProgress = 0;
	/** When the report with this packet id, which is its progress, was written. */
	readonly #sentAtMs: number[] = [];
	#out: Buffer[] = [];

	constructor(plan: LoadPlan, identity: DeviceIdentity, on: Listeners) {
		this.#plan = plan;
		this.#identity = identity;
		this.#on = on;
		this.#topic = deviceTopics(identity.deviceId).eventsUp;
		this.#socket = connect({ host: plan.host, port: plan.port, noDelay: true });
		const packets = parser({ protocolVersion: 4 });
		packets.on("packet", (packet: Packet) => this.#receive(packet));
		this.#socket.on("data", (data) => {
			packets.parse(data);
			this.#flush();
		});
		this.#socket.on("error", (error) => fail(error.message));
		this.#socket.on("close", () => fail("the server closed a connection"));
		this.#write({
			cmd: "connect",
			protocolId: "MQTT",
			protocolVersion: 4,
			clean: true,
			keepalive: 120,
			...withBytes(signIn(identity, new Date())),
		});
		this.#flush();
	}

	run(phase: LoadPhase): void {
		this.#upToProgress = phase.upToProgress;
		for (let i = 0; i < phase.window; i++) this.#report();
		this.#flush();
	}

	#receive(packet: Packet): void {
		switch (packet.cmd) {
			case "connack":
				if (packet.returnCode !== 0)
					fail(`CONNACK with code ${packet.returnCode}`);
				this.#tellVersions();
				this.#on.connected();
				break;
			case "puback": {
				const sentAt = this.#sentAtMs[packet.messageId ?? 0];
				if (sentAt === undefined) break;
				this.#on.acknowledged(performance.now() - sentAt);
				this.#report();
				break;
			}
			case "publish":
				if (packet.qos === 1)
					this.#write({ cmd: "puback", messageId: packet.messageId ?? 0 });
				this.#hear(Buffer.from(packet.payload));
				break;
			default:
		}
	}

	#hear(payload: Buffer): void {
		for (const said of readDownlink(payload, this.#identity.deviceId)) {
			if (said.kind === "version_query") this.#tellVersions();
			if (said.kind === "notice" && !this.#noticed) {
				this.#noticed = true;
				this.#on.noticed();
			}
		}
	}

	#tellVersions(): void {
		const { name, version } = this.#plan.module;
		// Packet ids of reports are 1 to 99.
		this.#publish(1000, "version_report", {
			modules: [{ module_name: name, module_version: version }],
		});
	}

	#report(): void {
		if (this.#progress >= this.#upToProgress) return;
		const progress = ++this.#progress;
		this.#sentAtMs[progress] = performance.now();
		this.#publish(progress, "upgrade_progress_report", {
			result_code: 0,
			progress,
			version: this.#plan.module.version,
			module_name: this.#plan.module.name,
		});
	}

	#publish(
		messageId: number,
		eventType: string,
		paras: Record<string, unknown>,
	): void {
		this.#write({
			cmd: "publish",
			topic: this.#topic,
			qos: 1,
			dup: false,
			retain: false,
			messageId,
			payload: JSON.stringify({
				services: [{ service_id: otaService, event_type: eventType, paras }],
			}),
		});
	}

	#write(packet: Packet): void {
		this.#out.push(generate(packet));
	}

	/** One write for all that one arrival of data caused. */
	#flush(): void {
		if (this.#out.length === 0) return;
		this.#socket.write(
			this.#out.length === 1
				? (this.#out[0] as Buffer)
				: Buffer.concat(this.#out),
		);
		this.#out = [];
	}
}

function withBytes(identity: ReturnType<typeof signIn>) {
	return { ...identity, password: Buffer.from(identity.password) };
}

function tell(message: FromLoad): void {
	process.send?.(message);
}

function fail(reason: string): void {
	tell({ kind: "failed", reason });
	process.exit(1);
}

// Whoever started this is gone: nobody is left to tell.
process.on("disconnect", () => process.exit());

process.once("message", (plan: LoadPlan) => {
	const count = plan.devices.length;
	let connected = 0;
	let noticed = 0;
	let phase: Phase | undefined;
	const on: Listeners = {
		connected: () => {
			if (++connected === count) tell({ kind: "connected" });
		},
		noticed: () => {
			if (++noticed === count) tell({ kind: "noticed" });
		},
		acknowledged: (ms) => phase?.acknowledged(ms),
	};
	const reporters = plan.devices.map(
		(identity) => new Reporter(plan, identity, on),
	);
	let progress = 0;
	process.on("message", (next: LoadPhase) => {
		phase = new Phase(count * (next.upToProgress - progress));
		progress = next.upToProgress;
		for (const reporter of reporters) reporter.run(next);
	});
});

/** Counts the acknowledgements of one phase and tells when all are there. */
class Phase {
	readonly #latenciesMs: Float64Array;
	readonly #startedAtMs = performance.now();
	#acknowledged = 0;

	constructor(reports: number) {
		this.#latenciesMs = new Float64Array(reports);
	}

	acknowledged(ms: number): void {
		const latencies = this.#latenciesMs;
		latencies[this.#acknowledged++] = ms;
		if (this.#acknowledged < latencies.length) return;
		const elapsedMs = performance.now() - this.#startedAtMs;
		latencies.sort();
		const at = (share: number) =>
			latencies[Math.floor((latencies.length - 1) * share)] ?? 0;
		tell({
			kind: "done",
			reports: latencies.length,
			elapsedMs,
			p50Ms: at(0.5),
			p99Ms: at(0.99),
			maxMs: at(1),
		});
	}
}
