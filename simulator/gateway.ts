/**
 * One simulated gateway: the devices behind it do not connect, all their traffic is on
 * its connection and names them. It asks which devices are behind it and says that they
 * are there; it passes on what they are asked, fetches their packages and installs them.
 * A package that it may share, it fetches once.
 */
import { setTimeout as pause } from "node:timers/promises";
import {
	type ProgressReportParas,
	type SubDeviceStatusParas,
	type SubDeviceSyncParas,
	subDeviceService,
	type VersionReportParas,
} from "../wire/device-messages.ts";
import {
	Connection,
	type ConnectionEvent,
	type DeviceIdentity,
	eventOf,
	otaReport,
	type Surroundings,
} from "./connection.ts";
import {
	DownloadFailure,
	downloadPackage,
	type PackageLink,
} from "./download.ts";
import { type ListNews, type Notice, readGatewayDownlink } from "./notice.ts";
import { randomStream } from "./random.ts";

export interface GatewayOptions extends Surroundings {
	identity: DeviceIdentity;
	/** What runs on a child before it was ever upgraded. */
	childVersions: { firmware: string; software: string };
	onEvent?:
		| ((gateway: SimulatedGateway, event: GatewayEvent) => void)
		| undefined;
}

export type GatewayEvent =
	| ConnectionEvent
	/** It knows of children that were added or deleted. */
	| { kind: "children"; version: number; count: number }
	| { kind: "misunderstood"; reason: string }
	| { kind: "asked"; deviceId: string }
	| {
			kind: "noticed";
			deviceId: string;
			version: string;
			taskId: string | undefined;
			subDeviceCount: number | undefined;
	  }
	/** For all children that share it. */
	| { kind: "downloaded"; sizeBytes: number }
	| { kind: "installed"; deviceId: string; version: string }
	| { kind: "reported"; deviceId: string; resultCode: number; version: string }
	| { kind: "failed"; deviceId: string; resultCode: number };

interface Child {
	firmware: string;
	software: string;
	upgrade: { version: string; abort: AbortController } | undefined;
}

/** One package on its way to the gateway. */
interface Fetching {
	/** The newest: a repeated notice brings another one, also in the middle. */
	link: PackageLink;
	done: Promise<void>;
}

/** As many as one request may name. */
const STATUSES_AT_ONCE = 100;

export class SimulatedGateway implements AsyncDisposable {
	readonly deviceId: string;
	readonly #options: GatewayOptions;
	readonly #connection: Connection;
	readonly #random: () => number;
	readonly #children = new Map<string, Child>();
	/** By what may be shared: a task's package, or that of a single child. */
	readonly #fetching = new Map<string, Fetching>();
	readonly #stop = new AbortController();
	#listVersion = 0;
	#downloads = 0;

	constructor(options: GatewayOptions) {
		this.deviceId = options.identity.deviceId;
		this.#options = options;
		this.#random = randomStream(options.seed, this.deviceId);
		this.#connection = new Connection({
			identity: options.identity,
			surroundings: options,
			random: this.#random,
			onMessage: (payload) => this.#receive(payload),
			onEvent: (event) => {
				this.#emit(event);
				if (event.kind === "connected") this.#introduce();
			},
		});
	}

	get connected(): boolean {
		return this.#connection.connected;
	}

	/** Packages it has fetched. */
	get downloads(): number {
		return this.#downloads;
	}

	/** Ids of the children it knows of. */
	get children(): string[] {
		return [...this.#children.keys()];
	}

	/** Undefined for a child it does not know of. */
	version(deviceId: string, part: "firmware" | "software"): string | undefined {
		return this.#children.get(deviceId)?.[part];
	}

	/** Connects, and stays connected until it is stopped. */
	start(): void {
		this.#connection.connectIn(0);
	}

	/** Disconnects for so many milliseconds. What it is doing goes on. */
	async leave(ms: number): Promise<void> {
		await this.#connection.disconnect();
		this.#connection.connectIn(ms);
	}

	/** Disconnects, gives up what it is doing, and never comes back. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#stop.abort();
		await this.#connection[Symbol.asyncDispose]();
		await Promise.allSettled(
			Array.from(this.#fetching.values(), ({ done }) => done),
		);
	}

	// --- its children -------------------------------------------------------------

	/** Asks what has changed among its children, and says that those it knows are there. */
	#introduce(): void {
		const sync: SubDeviceSyncParas = { version: this.#listVersion };
		this.#manage("sync", "sub_device_sync_request", sync);
		this.#reportOnline(this.children);
	}

	#reportOnline(deviceIds: readonly string[]): void {
		for (let start = 0; start < deviceIds.length; start += STATUSES_AT_ONCE) {
			const some = deviceIds.slice(start, start + STATUSES_AT_ONCE);
			const paras: SubDeviceStatusParas = {
				device_statuses: some.map((device_id) => ({
					device_id,
					status: "ONLINE",
				})),
			};
			this.#manage(`status/${some.join()}`, "sub_device_update_status", paras);
		}
	}

	#manage(key: string, eventType: string, paras: object): void {
		this.#connection.say(
			key,
			eventOf(this.deviceId, subDeviceService, eventType, paras),
		);
	}

	#takeNews({ kind, version, children }: ListNews): void {
		// As the vendor's sample gateways do: what is not newer is old.
		if (version <= this.#listVersion) return;
		this.#listVersion = version;
		for (const { deviceId } of children) {
			if (kind === "added")
				this.#children.set(deviceId, {
					...this.#options.childVersions,
					upgrade: undefined,
				});
			else {
				this.#children.get(deviceId)?.upgrade?.abort.abort();
				this.#children.delete(deviceId);
			}
		}
		if (kind === "added")
			this.#reportOnline(children.map(({ deviceId }) => deviceId));
		this.#emit({ kind: "children", version, count: this.#children.size });
	}

	// --- hearing ------------------------------------------------------------------

	#receive(payload: Buffer): void {
		const { about, said } = readGatewayDownlink(payload);
		for (const one of said) {
			switch (one.kind) {
				case "added":
				case "deleted":
					this.#takeNews(one);
					break;
				case "version_query":
					this.#reportVersions(about);
					break;
				case "notice":
					this.#takeNotice(about, one.notice);
					break;
				case "misunderstood":
					this.#emit(one);
					break;
				default:
					one satisfies never;
			}
		}
	}

	#reportVersions(deviceId: string): void {
		const child = this.#childNamed(deviceId);
		if (!child) return;
		this.#emit({ kind: "asked", deviceId });
		const paras: VersionReportParas = {
			fw_version: child.firmware,
			sw_version: child.software,
		};
		this.#connection.say(
			`version/${deviceId}`,
			otaReport(deviceId, "version_report", paras),
		);
	}

	#childNamed(deviceId: string): Child | undefined {
		const child = this.#children.get(deviceId);
		if (!child)
			this.#emit({ kind: "misunderstood", reason: `for ${deviceId}` });
		return child;
	}

	#takeNotice(deviceId: string, notice: Notice): void {
		const child = this.#childNamed(deviceId);
		if (!child) return;
		const { version, taskId, subDeviceCount } = notice;
		if (child.upgrade?.version === version) {
			// Said again: the link may be another one.
			const fetching = this.#fetching.get(packageKey(deviceId, notice));
			if (fetching) fetching.link = notice.link;
			return;
		}
		child.upgrade?.abort.abort();
		this.#emit({ kind: "noticed", deviceId, version, taskId, subDeviceCount });
		const upgrade = { version, abort: new AbortController() };
		child.upgrade = upgrade;
		void this.#run(deviceId, child, notice, upgrade.abort.signal).finally(
			() => {
				if (child.upgrade === upgrade) child.upgrade = undefined;
			},
		);
	}

	// --- upgrading ----------------------------------------------------------------

	/** Never rejects: whatever goes wrong is reported as a gateway reports it. */
	async #run(
		deviceId: string,
		child: Child,
		notice: Notice,
		abort: AbortSignal,
	): Promise<void> {
		const signal = AbortSignal.any([abort, this.#stop.signal]);
		const { target, version } = notice;
		try {
			if (target.kind === "module")
				throw new DownloadFailure(8, "its children have no modules");
			const before = child[target.kind];
			if (before !== version) {
				await this.#fetch(deviceId, notice);
				signal.throwIfAborted();
				this.#report(deviceId, 0, 90, before, "installing");
				await pause(
					this.#options.installMs * (0.5 + this.#random()),
					undefined,
					{ signal },
				);
				child[target.kind] = version;
				this.#emit({ kind: "installed", deviceId, version });
			}
			this.#report(deviceId, 0, 100, version, "installed");
		} catch (error) {
			if (signal.aborted) return;
			const resultCode =
				error instanceof DownloadFailure ? error.resultCode : 255;
			this.#emit({ kind: "failed", deviceId, resultCode });
			const current = target.kind === "module" ? "" : child[target.kind];
			this.#report(deviceId, resultCode, 0, current, String(error));
		}
	}

	/** Resolves when the package is there; one that is shared is fetched by whoever is first. */
	#fetch(deviceId: string, notice: Notice): Promise<void> {
		const key = packageKey(deviceId, notice);
		const known = this.#fetching.get(key);
		if (known) return known.done;
		const fetching: Fetching = { link: notice.link, done: Promise.resolve() };
		fetching.done = this.#download(notice, fetching);
		this.#fetching.set(key, fetching);
		// A package of a task is kept for those that are still to come.
		const forget = () => this.#fetching.delete(key);
		fetching.done.then(notice.taskId === undefined ? forget : () => {}, forget);
		return fetching.done;
	}

	async #download(notice: Notice, fetching: Fetching): Promise<void> {
		const { sizeBytes, sha256, expiresSeconds } = notice;
		await downloadPackage({
			link: () => fetching.link,
			sizeBytes,
			sha256,
			deadlineMs: Date.now() + expiresSeconds * 1000,
			agent: this.#options.agent,
			retryAfterMs: (attempt) => this.#connection.backoff(attempt),
			signal: this.#stop.signal,
		});
		this.#downloads++;
		this.#emit({ kind: "downloaded", sizeBytes });
	}

	#report(
		deviceId: string,
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
		this.#connection.say(
			`progress/${deviceId}`,
			otaReport(deviceId, "upgrade_progress_report", paras),
			() => this.#emit({ kind: "reported", deviceId, resultCode, version }),
		);
	}

	#emit(event: GatewayEvent): void {
		this.#options.onEvent?.(this, event);
	}
}

/** In a task whose gateways distribute, all children share what has the same digest. */
function packageKey(deviceId: string, { taskId, sha256 }: Notice): string {
	return `${taskId ?? deviceId}/${sha256}`;
}
