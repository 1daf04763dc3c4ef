/**
 * One simulated device: connects over MQTT, tells its versions, takes upgrade notices,
 * really downloads and checks the packages, and reports. It speaks the official
 * protocol and nothing else; it keeps working when the server goes away and comes back.
 */
import { setTimeout as pause } from "node:timers/promises";
import type {
	ProgressReportParas,
	VersionReportParas,
} from "../wire/device-messages.ts";
import {
	Connection,
	type ConnectionEvent,
	type DeviceIdentity,
	otaReport,
	type Surroundings,
} from "./connection.ts";
import {
	DownloadFailure,
	downloadPackage,
	type PackageLink,
} from "./download.ts";
import type { Behaviour } from "./faults.ts";
import { type Notice, readDownlink, type Target } from "./notice.ts";
import { randomStream } from "./random.ts";

export interface DeviceVersions {
	firmware: string;
	software: string;
	/** By module name. */
	modules: Readonly<Record<string, string>>;
}

export interface DeviceOptions extends Surroundings {
	onEvent?: ((device: SimulatedDevice, event: DeviceEvent) => void) | undefined;
	identity: DeviceIdentity;
	versions: DeviceVersions;
	/**
	 * Whether it knows module events and tells its module versions. If not, it takes a
	 * module's package as a firmware upgrade with the module's name beside it.
	 */
	speaksModules: boolean;
	behaviour: Behaviour;
}

export type DeviceEvent =
	| ConnectionEvent
	/** The server has acknowledged what this device told about its versions. */
	| { kind: "introduced" }
	| { kind: "noticed"; target: Target; version: string }
	| { kind: "misunderstood"; reason: string }
	| { kind: "interrupted"; reason: string; receivedBytes: number }
	| { kind: "downloaded"; sizeBytes: number }
	| { kind: "installed"; target: Target; version: string }
	/** The server has acknowledged this progress report. */
	| { kind: "reported"; resultCode: number; progress: number; version: string }
	| { kind: "failed"; resultCode: number; description: string };

interface Upgrade {
	notice: Notice;
	link: PackageLink;
	abort: AbortController;
}

/** Codes a device reports only once it has seen the package. */
const AFTER_DOWNLOAD = new Set([7, 10, 255]);

export class SimulatedDevice implements AsyncDisposable {
	readonly deviceId: string;
	readonly #options: DeviceOptions;
	readonly #random: () => number;
	readonly #versions: { firmware: string; software: string };
	readonly #modules: Map<string, string>;
	readonly #connection: Connection;
	#upgrade: Upgrade | undefined;
	#installs = 0;

	constructor(options: DeviceOptions) {
		this.deviceId = options.identity.deviceId;
		this.#options = options;
		this.#random = randomStream(options.seed, this.deviceId);
		this.#versions = {
			firmware: options.versions.firmware,
			software: options.versions.software,
		};
		this.#modules = new Map(Object.entries(options.versions.modules));
		this.#connection = new Connection({
			identity: options.identity,
			surroundings: options,
			random: this.#random,
			onMessage: (payload) => this.#receive(payload),
			onEvent: (event) => {
				this.#emit(event);
				if (
					event.kind === "connected" &&
					options.speaksModules &&
					!options.behaviour.mute
				)
					this.#reportVersions();
			},
		});
	}

	get connected(): boolean {
		return this.#connection.connected;
	}

	/** How many packages it has installed. */
	get installs(): number {
		return this.#installs;
	}

	/** Undefined for a module it does not have. */
	version(target: Target): string | undefined {
		return target.kind === "module"
			? this.#modules.get(target.moduleName)
			: this.#versions[target.kind];
	}

	/** Connects, now or as late as its behaviour says, and stays connected until it is stopped. */
	start(): void {
		this.#connection.connectIn(this.#options.behaviour.connectAfterMs ?? 0);
	}

	/** Disconnects, gives up what it is doing, and never comes back. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#upgrade?.abort.abort();
		await this.#connection[Symbol.asyncDispose]();
	}

	// --- saying -----------------------------------------------------------------

	#reportVersions(): void {
		const paras: VersionReportParas = {
			fw_version: this.#versions.firmware,
			sw_version: this.#versions.software,
		};
		if (this.#options.speaksModules) {
			paras.modules = Array.from(
				this.#modules,
				([module_name, module_version]) => ({ module_name, module_version }),
			);
		}
		this.#say("version", "version_report", paras, { kind: "introduced" });
	}

	#reportProgress(
		target: Target,
		resultCode: number,
		progress: number,
		version: string,
		description: string,
	): void {
		const paras: ProgressReportParas = {
			result_code: resultCode,
			progress,
			version,
			description,
		};
		if (target.kind === "module" && this.#options.speaksModules)
			paras.module_name = target.moduleName;
		this.#say("progress", "upgrade_progress_report", paras, {
			kind: "reported",
			resultCode,
			progress,
			version,
		});
	}

	#say(
		key: string,
		eventType: string,
		paras: VersionReportParas | ProgressReportParas,
		event: DeviceEvent,
	): void {
		this.#connection.say(key, otaReport(this.deviceId, eventType, paras), () =>
			this.#emit(event),
		);
	}

	// --- hearing ----------------------------------------------------------------

	#receive(payload: Buffer): void {
		for (const said of readDownlink(payload, this.deviceId)) {
			switch (said.kind) {
				case "version_query":
					if (!this.#options.behaviour.mute) this.#reportVersions();
					break;
				case "notice":
					this.#takeNotice(said.notice);
					break;
				case "misunderstood":
					this.#emit({ kind: "misunderstood", reason: said.reason });
					break;
				default:
					said satisfies never;
			}
		}
	}

	#takeNotice(notice: Notice): void {
		const { target, version } = notice;
		if (target.kind === "module") {
			// A device without module events does not know these words, and ignores them.
			if (notice.moduleEvent && !this.#options.speaksModules) return;
			if (!this.#modules.has(target.moduleName)) {
				this.#fail(notice, 8, `there is no module ${target.moduleName}`);
				return;
			}
		}
		const running = this.#upgrade;
		if (running && sameUpgrade(running.notice, notice)) {
			running.link = notice.link;
			return;
		}
		running?.abort.abort();
		this.#emit({ kind: "noticed", target, version });
		const upgrade: Upgrade = {
			notice,
			link: notice.link,
			abort: new AbortController(),
		};
		this.#upgrade = upgrade;
		void this.#run(upgrade);
	}

	// --- upgrading --------------------------------------------------------------

	/** Never rejects: whatever goes wrong is reported as a device reports it. */
	async #run(upgrade: Upgrade): Promise<void> {
		try {
			await this.#carryOut(upgrade);
		} catch (error) {
			if (upgrade.abort.signal.aborted) return;
			const code = error instanceof DownloadFailure ? error.resultCode : 255;
			const description =
				error instanceof Error ? error.message : String(error);
			this.#fail(upgrade.notice, code, description);
		} finally {
			if (this.#upgrade === upgrade) this.#upgrade = undefined;
		}
	}

	async #carryOut(upgrade: Upgrade): Promise<void> {
		const { notice } = upgrade;
		const { target, version, sizeBytes } = notice;
		const { behaviour, installMs } = this.#options;
		const before = this.version(target) ?? "";
		if (before === version) {
			// Told again about what it has: the report got lost, or the task is new.
			if (!behaviour.silent)
				this.#reportProgress(target, 0, 100, version, "already installed");
			return;
		}
		const { failCode } = behaviour;
		if (failCode !== undefined && !AFTER_DOWNLOAD.has(failCode)) {
			this.#fail(notice, failCode, "simulated failure before the download");
			return;
		}
		await this.#download(upgrade, before);
		this.#emit({ kind: "downloaded", sizeBytes });
		if (failCode !== undefined) {
			this.#fail(notice, failCode, "simulated failure after the download");
			return;
		}
		if (behaviour.silent) return;
		this.#reportProgress(target, 0, 90, before, "installing");
		const { signal } = upgrade.abort;
		await pause(installMs * (0.5 + this.#random()), undefined, { signal });
		if (behaviour.stale) {
			this.#reportProgress(target, 0, 100, before, "installed");
			return;
		}
		this.#install(target, version);
		if (behaviour.rebootMs !== undefined) {
			await this.#connection.disconnect();
			this.#reportProgress(target, 0, 100, version, "installed");
			this.#connection.connectIn(behaviour.rebootMs);
			return;
		}
		this.#reportProgress(target, 0, 100, version, "installed");
	}

	#install(target: Target, version: string): void {
		if (target.kind === "module") this.#modules.set(target.moduleName, version);
		else this.#versions[target.kind] = version;
		this.#installs++;
		this.#emit({ kind: "installed", target, version });
	}

	async #download(upgrade: Upgrade, before: string): Promise<void> {
		const { target, sizeBytes, sha256, expiresSeconds } = upgrade.notice;
		const { behaviour, agent } = this.#options;
		const cutAt: number[] = [];
		while (cutAt.length < (behaviour.downloadDrops ?? 0))
			cutAt.push(1 + Math.floor(this.#random() * (sizeBytes - 1)));
		cutAt.sort((a, b) => a - b);
		let cutsLeft = cutAt.length;
		let reportedAtMs = Date.now();
		let reported = 0;
		await downloadPackage({
			link: () => upgrade.link,
			sizeBytes,
			sha256,
			deadlineMs: Date.now() + expiresSeconds * 1000,
			agent,
			bytesPerSecond: behaviour.downloadBytesPerSecond,
			cutAt,
			retryAfterMs: (attempt) => this.#connection.backoff(attempt),
			signal: upgrade.abort.signal,
			onBytes: (received) => {
				// A word at least every tenth of the way, and at most every two seconds.
				const progress = Math.floor((received / sizeBytes) * 90);
				if (progress < reported + 9 || progress >= 90) return;
				if (Date.now() - reportedAtMs < 2000) return;
				reported = progress;
				reportedAtMs = Date.now();
				if (!behaviour.silent)
					this.#reportProgress(target, 0, progress, before, "downloading");
			},
			onInterrupted: (reason, receivedBytes) => {
				this.#emit({ kind: "interrupted", reason, receivedBytes });
				if (cutsLeft === 0) return;
				// Its own fault: a device that loses the network loses all of it.
				cutsLeft--;
				this.#connection.lose();
			},
		});
	}

	#fail(notice: Notice, resultCode: number, description: string): void {
		this.#emit({ kind: "failed", resultCode, description });
		if (this.#options.behaviour.silent) return;
		const { target } = notice;
		const version = this.version(target) ?? "";
		this.#reportProgress(target, resultCode, 0, version, description);
	}

	#emit(event: DeviceEvent): void {
		this.#options.onEvent?.(this, event);
	}
}

function sameUpgrade(a: Notice, b: Notice): boolean {
	return (
		a.target.kind === b.target.kind &&
		a.version === b.version &&
		a.sha256 === b.sha256 &&
		(a.target.kind === "module" ? a.target.moduleName : "") ===
			(b.target.kind === "module" ? b.target.moduleName : "")
	);
}
