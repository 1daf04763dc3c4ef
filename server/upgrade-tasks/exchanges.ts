/**
 * What devices say and what follows for their running upgrades, in batches.
 *
 * Everything that arrives while one batch is being written goes into the next: one
 * transaction, a handful of statements, whatever the number of devices. Whoever
 * handed something in is answered when it is on disk, and only then are notices sent.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { UpgradeTimes } from "../config.ts";
import { type Clock, type Db, inTransaction } from "../database/database.ts";
import {
	recordVersions,
	type VersionsOfDevice,
} from "../devices/device-versions.ts";
import type { Events } from "../events.ts";
import {
	type HistoryEntry,
	type HistoryKind,
	recordHistory,
} from "../history/history.ts";
import { logger } from "../log.ts";
import { readSourceVersions } from "../packages/source-versions.ts";
import {
	after,
	type Consequence,
	type Exchange,
	type Goal,
	type Happening,
} from "./subtask.ts";
import { retryAt } from "./task-policy.ts";
import {
	countBehind,
	fileNameOf,
	findGateways,
	findRunning,
	findRunningBehind,
	type RunningSubtask,
	StaleSubtasksError,
	type SubtaskChange,
	writeChanges,
} from "./task-rows.ts";

/** What a device said, whichever protocol it speaks. */
export type DeviceReport =
	| { kind: "connected"; since: Date }
	/** Not said by the device: it was here when the rollout reached it. */
	| { kind: "present" }
	| {
			kind: "versions";
			firmware?: string;
			software?: string;
			sdk?: string;
			modules?: readonly { name: string; version: string }[];
	  }
	| {
			kind: "progress";
			resultCode: number;
			progress: number | undefined;
			version: string;
			description: string | undefined;
			/** Given only by devices that speak of modules. */
			moduleName: string | undefined;
	  };

/** What the server tells a device; `device-link` puts it into the device's protocol. */
export type Notice = {
	/** The device whose connection carries the message: itself, or its gateway. */
	linkId: string;
	/** For a child, in a task whose gateways fetch once and distribute. */
	gateway?: { taskId: string; subDeviceCount: number };
	/** What the task's creator wants handed on. */
	taskExtInfo?: Record<string, unknown>;
} & (
	| {
			kind: "version_query";
			deviceId: string;
			/** For a module task in messages that name it. */
			moduleName: string | undefined;
	  }
	| {
			kind: "upgrade";
			deviceId: string;
			taskId: string;
			position: number;
			part: "firmware" | "software" | "module";
			form: "classic" | "native" | "compatible";
			moduleName: string | undefined;
			downloadForm: "presigned" | "token";
			version: string;
			packageId: string;
			fileName: string;
			sizeBytes: number;
			/** SHA-256, as it was given or computed when the package was created. */
			sign: string;
			customInfo: string | undefined;
			offeredAt: Date;
			expiresAt: Date;
	  }
);

export type Notify = (notice: Notice) => void;

interface PackageFacts {
	packageId: string;
	sourceVersions: readonly string[];
	fileName: string;
	sizeBytes: number;
	sign: string;
	customInfo: string | undefined;
}

type Due = { kind: "due"; isHere: boolean };
type Input = { deviceId: string; report: DeviceReport | Due };
interface Waiting extends Input {
	resolve: () => void;
	reject: (error: unknown) => void;
}

interface Settled {
	notices: Notice[];
	changes: SubtaskChange[];
	droppedVersions: number;
	/** Those of the connected that carry other devices. */
	gateways: { deviceId: string; since: Date }[];
}

const BATCH_LIMIT = 500;
/** Failures in a row, each alone, that show that the store is at fault. */
const STORE_FAILURES = 3;
const CLOSED = "The server is stopping.";
const KEPT_TASKS = 200;
const log = logger("upgrade-tasks");

export class Exchanges implements AsyncDisposable {
	readonly #db: Db;
	readonly #now: Clock;
	readonly #times: UpgradeTimes;
	readonly #notify: Notify;
	readonly #events: Events;
	readonly #packages = new Kept<PackageFacts[]>();
	readonly #countsBehind = new Kept<number>();
	readonly #behind = new Set<Promise<void>>();
	#waiting: Waiting[] = [];
	#flushing: Promise<void> | undefined;
	#closed = false;

	constructor(parts: {
		db: Db;
		now: Clock;
		times: UpgradeTimes;
		notify: Notify;
		events: Events;
	}) {
		this.#db = parts.db;
		this.#now = parts.now;
		this.#times = parts.times;
		this.#notify = parts.notify;
		this.#events = parts.events;
	}

	/**
	 * Takes one thing a device said. Resolves when what follows from it is stored.
	 * Reports of one device are settled in the order they were handed in.
	 *
	 * @throws when the store failed: nothing of it was kept.
	 */
	record(deviceId: string, report: DeviceReport): Promise<void> {
		return this.#enqueue({ deviceId, report });
	}

	/** The time of these devices' running subtasks has come. */
	async settleDue(
		devices: readonly { deviceId: string; isHere: boolean }[],
	): Promise<void> {
		await Promise.all(
			devices.map(({ deviceId, isHere }) =>
				this.#enqueue({ deviceId, report: { kind: "due", isHere } }),
			),
		);
	}

	#enqueue(input: Input): Promise<void> {
		if (this.#closed) return Promise.reject(new Error(CLOSED));
		return new Promise((resolve, reject) => {
			this.#waiting.push({ ...input, resolve, reject });
			// What the other sockets of this turn bring shares the batch.
			this.#flushing ??= nextTurn().then(() => this.#flush());
		});
	}

	async #flush(): Promise<void> {
		while (this.#waiting.length > 0) {
			const batch = this.#waiting.splice(0, BATCH_LIMIT);
			await this.#settleBatch(batch);
			// Sockets get their turn between two batches.
			if (this.#waiting.length > 0) await nextTurn();
		}
		this.#flushing = undefined;
	}

	/** Resolves once nothing is left of what was handed in. */
	async quiet(): Promise<void> {
		while (this.#flushing || this.#behind.size > 0)
			await Promise.allSettled([this.#flushing, ...this.#behind]);
	}

	/** What was handed in and not begun is refused, so that devices say it again. */
	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed = true;
		for (const { reject } of this.#waiting.splice(0)) reject(new Error(CLOSED));
		await this.#flushing;
		await Promise.allSettled(this.#behind);
	}

	async #settleBatch(batch: readonly Waiting[]): Promise<void> {
		try {
			const settled = await this.#settle(batch);
			this.#tell(batch, settled);
		} catch (error) {
			if (batch.length === 1) this.#refuse(batch, error);
			else await this.#settleEach(batch);
		}
	}

	/** One of them may be at fault: each alone, so that it takes nobody along. */
	async #settleEach(batch: readonly Waiting[]): Promise<void> {
		let failuresInARow = 0;
		for (const [index, single] of batch.entries()) {
			try {
				const settled = await this.#settle([single]);
				this.#tell([single], settled);
				failuresInARow = 0;
			} catch (error) {
				failuresInARow++;
				// So many at once: it is the store, and the rest need not try.
				if (failuresInARow >= STORE_FAILURES) {
					this.#refuse(batch.slice(index), error);
					return;
				}
				this.#refuse([single], error);
			}
		}
	}

	/** What was settled is on disk. Never throws: it must not be settled again. */
	#tell(batch: readonly Waiting[], settled: Settled): void {
		for (const { resolve } of batch) resolve();
		this.#count(settled.changes, settled.droppedVersions);
		for (const { deviceId, since } of settled.gateways)
			this.#goOnBehind(deviceId, since);
		for (const notice of settled.notices) {
			try {
				this.#notify(notice);
			} catch (error) {
				log.error(
					{ err: error, device_id: notice.deviceId },
					"a notice could not be made",
				);
			}
		}
	}

	/** A gateway has connected, and with it the devices behind it, which may be 50,000. */
	#goOnBehind(gateway: string, since: Date): void {
		const work = (async () => {
			for (let after = ""; !this.#closed; ) {
				const some = await findRunningBehind(
					this.#db,
					gateway,
					after,
					BATCH_LIMIT,
				);
				const last = some.at(-1);
				if (last === undefined) return;
				await Promise.all(
					some.map(({ deviceId }) =>
						this.record(deviceId, { kind: "connected", since }),
					),
				);
				after = last.recordId;
			}
		})().catch((error: unknown) => {
			log.error(
				{ err: error, device_id: gateway },
				"could not go on with devices behind a gateway; the next sweep does",
			);
		});
		this.#behind.add(work);
		void work.finally(() => this.#behind.delete(work));
	}

	#refuse(batch: readonly Waiting[], error: unknown): void {
		log.error(
			{ err: error, device_id: batch[0]?.deviceId, reports: batch.length },
			"what devices said could not be stored",
		);
		for (const { reject } of batch) {
			this.#events.happened("report_not_stored", {});
			reject(error);
		}
	}

	async #settle(inputs: readonly Input[]): Promise<Settled> {
		for (let attempt = 1; ; attempt++) {
			try {
				return await inTransaction(this.#db, (trx) =>
					this.#decide(trx, inputs),
				);
			} catch (error) {
				if (!(error instanceof StaleSubtasksError) || attempt >= 5) throw error;
			}
		}
	}

	async #decide(trx: Db, inputs: readonly Input[]): Promise<Settled> {
		const now = this.#now();
		const dropped = await recordVersions(
			trx,
			inputs.flatMap(reportedVersions),
			now,
		);
		const running = new Map<string, Tracked>();
		for (const subtask of await findRunning(trx, [
			...new Set(inputs.map((input) => input.deviceId)),
		])) {
			running.set(subtask.deviceId, {
				subtask,
				current: subtask.exchange,
				consequence: undefined,
				notices: [],
			});
		}
		for (const { deviceId, report } of inputs) {
			const tracked = running.get(deviceId);
			if (!tracked || tracked.consequence) {
				if (report.kind === "progress")
					this.#events.happened("report_without_exchange", {});
				continue;
			}
			const happening = happeningFor(tracked, report, now);
			if (!happening) continue;
			const packages = await this.#packagesOf(trx, tracked.subtask.taskId);
			const goal: Goal = {
				version: tracked.subtask.targetVersion,
				form: tracked.subtask.form,
				packages,
				currentVersion: currentVersion(tracked.subtask),
			};
			const consequence = after(
				tracked.current,
				goal,
				happening,
				this.#times,
				now,
			);
			switch (consequence.kind) {
				case "nothing":
					break;
				case "goes_on": {
					tracked.current = consequence.exchange;
					if (consequence.send) {
						const notice = noticeFor(
							consequence.send,
							tracked,
							packages,
							await this.#behindGateway(trx, tracked.subtask),
						);
						if (notice) tracked.notices.push(notice);
					}
					break;
				}
				case "succeeded":
				case "failed":
					tracked.consequence = consequence;
					// The notices decided before the end are not worth sending any more.
					tracked.notices = [];
					tracked.provenByReport = report.kind === "progress";
					break;
				default:
					consequence satisfies never;
			}
		}
		const changes: SubtaskChange[] = [];
		const notices: Notice[] = [];
		const proven: RunningSubtask[] = [];
		const history: HistoryEntry[] = [];
		for (const tracked of running.values()) {
			const change = changeOf(tracked, now);
			if (change) changes.push(change);
			notices.push(...tracked.notices);
			history.push(...historyOf(tracked, change));
			if (tracked.consequence?.kind === "succeeded" && tracked.provenByReport)
				proven.push(tracked.subtask);
		}
		await writeChanges(trx, changes, now);
		// The report that ended the upgrade named the version that runs now.
		await recordVersions(trx, proven.map(provenVersion), now);
		await recordHistory(trx, history, now);
		return {
			notices,
			changes,
			droppedVersions: dropped,
			gateways: await connectedGateways(trx, inputs),
		};
	}

	/** Undefined unless the device is a child in a task whose gateways distribute. */
	async #behindGateway(
		db: Db,
		{ taskId, deviceId, linkId, gatewayMode }: RunningSubtask,
	): Promise<{ taskId: string; subDeviceCount: number } | undefined> {
		if (!gatewayMode || linkId === deviceId) return undefined;
		// All of a task's subtasks stand before the first of them runs.
		const subDeviceCount = await this.#countsBehind.get(
			`${taskId}/${linkId}`,
			() => countBehind(db, taskId, linkId),
		);
		return { taskId, subDeviceCount };
	}

	#count(changes: readonly SubtaskChange[], droppedVersions: number): void {
		if (droppedVersions > 0) {
			this.#events.happened(
				"unknown_module_reported",
				{},
				{ modules: droppedVersions },
			);
		}
		for (const change of changes) {
			if (change.to === "Success")
				this.#events.happened(
					"subtask_succeeded",
					{},
					{ task_id: change.taskId, position: change.position },
				);
			if (change.to === "Fail" || change.to === "FailWaitRetry") {
				this.#events.happened(
					"subtask_failed",
					{ code: change.errorCode ?? "" },
					{
						task_id: change.taskId,
						position: change.position,
						reason: change.errorMessage,
					},
				);
			}
		}
	}

	/** The packages of a task never change, so they are read once. */
	#packagesOf(db: Db, taskId: string): Promise<PackageFacts[]> {
		return this.#packages.get(taskId, () => loadPackages(db, taskId));
	}
}

/** What was read about the tasks that were last asked for. */
class Kept<T> {
	readonly #values = new Map<string, Promise<T>>();

	get(key: string, load: () => Promise<T>): Promise<T> {
		const kept = this.#values.get(key);
		if (kept !== undefined) return kept;
		const loading = load();
		this.#values.set(key, loading);
		loading.catch(() => this.#values.delete(key));
		if (this.#values.size > KEPT_TASKS) {
			for (const oldest of this.#values.keys()) {
				this.#values.delete(oldest);
				break;
			}
		}
		return loading;
	}
}

/** A running subtask while a batch is decided. */
interface Tracked {
	subtask: RunningSubtask;
	current: Exchange;
	consequence: (Consequence & { kind: "succeeded" | "failed" }) | undefined;
	notices: Notice[];
	provenByReport?: boolean;
}

async function connectedGateways(
	db: Db,
	inputs: readonly Input[],
): Promise<{ deviceId: string; since: Date }[]> {
	const connected = new Map<string, Date>();
	for (const { deviceId, report } of inputs)
		if (report.kind === "connected") connected.set(deviceId, report.since);
	const gateways = await findGateways(db, [...connected.keys()]);
	return gateways.map((deviceId) => ({
		deviceId,
		since: connected.get(deviceId) as Date,
	}));
}

/** What a report means for the device's running exchange; undefined: nothing. */
function happeningFor(
	tracked: Tracked,
	report: DeviceReport | Due,
	now: Date,
): Happening | undefined {
	const { subtask, current } = tracked;
	switch (report.kind) {
		case "connected":
		case "present":
			return report;
		case "due":
			// Something settled since the row was found due may have put it off.
			return current.dueAt !== undefined && current.dueAt <= now
				? report
				: undefined;
		case "versions": {
			const version =
				subtask.taskType === "firmwareUpgrade"
					? report.firmware
					: subtask.taskType === "softwareUpgrade"
						? report.software
						: report.modules?.find(({ name }) => name === subtask.moduleName)
								?.version;
			return version === undefined ? undefined : { kind: "version", version };
		}
		case "progress":
			// A report about another module does not belong to this exchange.
			if (
				report.moduleName !== undefined &&
				report.moduleName !== subtask.moduleName
			)
				return undefined;
			return {
				kind: "progress",
				resultCode: report.resultCode,
				progress: report.progress,
				version: report.version,
				description: report.description,
			};
		default:
			return report satisfies never;
	}
}

function currentVersion(subtask: RunningSubtask): string | undefined {
	switch (subtask.taskType) {
		case "firmwareUpgrade":
			return subtask.fwVersion;
		case "softwareUpgrade":
			return subtask.swVersion;
		case "moduleUpgrade":
			return subtask.moduleVersion;
		default:
			return subtask.taskType satisfies never;
	}
}

/** What a report says about versions. Whoever names a module in it speaks of modules. */
function reportedVersions({ deviceId, report }: Input): VersionsOfDevice[] {
	switch (report.kind) {
		case "versions":
			return [
				{ deviceId, ...report, speaksModules: report.modules !== undefined },
			];
		case "progress":
			return report.moduleName === undefined
				? []
				: [{ deviceId, speaksModules: true }];
		case "connected":
		case "present":
		case "due":
			return [];
		default:
			return report satisfies never;
	}
}

/** The report that ended an upgrade proved this version. */
function provenVersion({
	deviceId,
	taskType,
	moduleName,
	targetVersion,
}: RunningSubtask): VersionsOfDevice {
	switch (taskType) {
		case "firmwareUpgrade":
			return { deviceId, firmware: targetVersion };
		case "softwareUpgrade":
			return { deviceId, software: targetVersion };
		case "moduleUpgrade":
			return {
				deviceId,
				modules: [{ name: moduleName, version: targetVersion }],
			};
		default:
			return taskType satisfies never;
	}
}

function noticeFor(
	send: "version_query" | "notice",
	tracked: Tracked,
	packages: readonly PackageFacts[],
	gateway: { taskId: string; subDeviceCount: number } | undefined,
): Notice | undefined {
	const { subtask, current } = tracked;
	const addressed = {
		deviceId: subtask.deviceId,
		linkId: subtask.linkId,
		...(gateway === undefined ? {} : { gateway }),
		...(subtask.taskExtInfo === undefined
			? {}
			: { taskExtInfo: subtask.taskExtInfo }),
	};
	const named =
		subtask.form === "native" || subtask.form === "compatible"
			? subtask.moduleName
			: undefined;
	if (send === "version_query") {
		return {
			kind: "version_query",
			...addressed,
			moduleName: subtask.form === "native" ? named : undefined,
		};
	}
	const offered = packages.find(
		({ packageId }) => packageId === current.packageId,
	);
	if (
		!offered ||
		!current.offeredAt ||
		!current.expiresAt ||
		subtask.form === "none"
	)
		return undefined;
	return {
		kind: "upgrade",
		...addressed,
		taskId: subtask.taskId,
		position: subtask.position,
		part:
			subtask.taskType === "firmwareUpgrade"
				? "firmware"
				: subtask.taskType === "softwareUpgrade"
					? "software"
					: "module",
		form: subtask.form,
		moduleName: named,
		downloadForm: subtask.downloadForm,
		version: subtask.targetVersion,
		packageId: offered.packageId,
		fileName: offered.fileName,
		sizeBytes: offered.sizeBytes,
		sign: offered.sign,
		customInfo: offered.customInfo,
		offeredAt: current.offeredAt,
		expiresAt: current.expiresAt,
	};
}

function changeOf(
	{ subtask, current, consequence }: Tracked,
	now: Date,
): SubtaskChange | undefined {
	const base = {
		taskId: subtask.taskId,
		position: subtask.position,
		revision: subtask.revision,
		from: "Processing",
	} as const;
	if (!consequence) {
		return sameExchange(current, subtask.exchange)
			? undefined
			: { ...base, to: "Processing", exchange: current };
	}
	if (consequence.kind === "succeeded") {
		return {
			...base,
			to: "Success",
			packageId: current.packageId,
			progress: 100,
			output: consequence.output,
		};
	}
	const dueAt = retryAt(subtask.retries, subtask.attempt, now);
	return {
		...base,
		to: dueAt === undefined ? "Fail" : "FailWaitRetry",
		dueAt,
		packageId: current.packageId,
		progress: current.progress,
		errorCode: consequence.failure.code,
		errorMessage: consequence.failure.message,
	};
}

/** What is worth telling of it afterwards: the notices that go out, and the end. */
function historyOf(
	{ subtask, notices }: Tracked,
	change: SubtaskChange | undefined,
): HistoryEntry[] {
	const entry = (
		kind: HistoryKind,
		detail: Record<string, unknown>,
	): HistoryEntry => ({
		projectId: subtask.projectId,
		spaceId: subtask.spaceId,
		deviceId: subtask.deviceId,
		taskId: subtask.taskId,
		kind,
		detail,
	});
	const { attempt, targetVersion } = subtask;
	const entries = notices.flatMap((notice) =>
		notice.kind === "upgrade"
			? [
					entry("offered", {
						version: notice.version,
						package_id: notice.packageId,
						attempt,
					}),
				]
			: [],
	);
	if (change?.to === "Success")
		entries.push(
			entry("succeeded", { version: targetVersion, output: change.output }),
		);
	if (change?.to === "Fail")
		entries.push(entry("failed", failureDetail(change)));
	if (change?.to === "FailWaitRetry")
		entries.push(
			entry("retry_scheduled", {
				...failureDetail(change),
				attempt: attempt + 1,
				of: subtask.retries.retryCount,
				due_at: change.dueAt?.toISOString(),
			}),
		);
	return entries;
}

function failureDetail({ errorCode, errorMessage }: SubtaskChange) {
	return { error_code: errorCode, error_msg: errorMessage };
}

function sameExchange(a: Exchange, b: Exchange): boolean {
	return (
		a.phase === b.phase &&
		a.asked === b.asked &&
		a.packageId === b.packageId &&
		a.progress === b.progress &&
		a.offeredAt?.getTime() === b.offeredAt?.getTime() &&
		a.expiresAt?.getTime() === b.expiresAt?.getTime() &&
		a.dueAt?.getTime() === b.dueAt?.getTime()
	);
}

async function loadPackages(db: Db, taskId: string): Promise<PackageFacts[]> {
	const rows = await db
		.selectFrom("upgrade_task_packages as tp")
		.innerJoin("packages as p", "p.package_id", "tp.package_id")
		.select([
			"p.package_id",
			"p.source_versions",
			"p.object_key",
			"p.size_bytes",
			"p.sign",
			"p.custom_info",
		])
		.where("tp.task_id", "=", taskId)
		.orderBy("p.record_id")
		.execute();
	return rows.map((row) => ({
		packageId: row.package_id,
		sourceVersions: readSourceVersions(row.source_versions),
		fileName: fileNameOf(row.object_key),
		sizeBytes: row.size_bytes,
		sign: row.sign,
		customInfo: row.custom_info ?? undefined,
	}));
}
