/**
 * What upgrade tasks should do, in a few hundred lines: a plain state machine over its own
 * `now`, without a store, processes or pieces. `test/model.test.ts` makes the server and
 * this live through the same, and compares whatever can be seen of both.
 *
 * Everything that can happen is a method. Time is epoch milliseconds. What falls due is
 * taken in the order of its time by `passTo`.
 */

export type Part = "firmware" | "software" | "module";
/** The module of the product that there are packages for. */
export const MODULE = "MCU";
export type ModuleForm = "native" | "compatible" | "none";
export type SubtaskStatus =
	| "Waitting"
	| "Processing"
	| "FailWaitRetry"
	| "Success"
	| "Fail"
	| "Stopped"
	| "Removed";
export type TaskStatus =
	| "Waitting"
	| "Processing"
	| "Success"
	| "Fail"
	| "PartialSuccess"
	| "Stopped";

export interface ModelDevice {
	readonly name: string;
	/** The device whose connection carries it: itself, or its gateway. */
	readonly link: string;
	/** It is of the product that the packages are for. */
	readonly fits: boolean;
	readonly form: ModuleForm;
	/** It has named a module itself. */
	speaksModules: boolean;
	exists: boolean;
	frozen: boolean;
	/** Its own connection; that of a child does not exist. */
	connected: boolean;
	readonly versions: Partial<Record<Part, string>>;
	/** What it was told, in order; whoever compares takes it away. */
	told: Told[];
}

type Said =
	| { kind: "version_query" }
	| { kind: "notice"; form: Part; package: string };

export type Told = Said & {
	/** It names the module. */
	module: boolean;
	/** To a child, in gateway mode: the task, and how many of its gateway's are in it. */
	children: readonly [task: number, count: number] | undefined;
};

export interface ModelPackage {
	readonly name: string;
	readonly version: string;
	/** Empty: from every version. */
	readonly sources: readonly string[];
}

export interface NewTask {
	part: Part;
	packages: readonly ModelPackage[];
	/** Names of devices, of which some may not exist; undefined: a group that is unknown. */
	targets: readonly string[] | undefined;
	gatewayMode: boolean;
	needConfirm: boolean;
	scheduleAt: number | undefined;
	retryCount: number;
	retryIntervalMs: number;
}

type Failure = readonly [code: string, text: string];

interface Exchange {
	phase: "await_online" | "await_version" | "delivered" | "verify_version";
	/** A query is out whose answer decides about repeating the notice. */
	asked: boolean;
	package?: ModelPackage | undefined;
	offeredAt?: number;
	expiresAt?: number;
	/** A repetition of the notice is due, which came too soon after the last one. */
	putOff?: boolean;
}

export interface ModelSubtask {
	readonly task: ModelTask;
	readonly target: string;
	/** Undefined: there never was such a device. */
	readonly device: ModelDevice | undefined;
	status: SubtaskStatus;
	/** Nobody has confirmed it by name. */
	held: boolean;
	/** Retries made by themselves. */
	attempt: number;
	exchange: Exchange | undefined;
	dueAt: number | undefined;
	progress: number | undefined;
	output: string | undefined;
	failure: Failure | undefined;
}

/** One whose exchange runs. */
type Running = ModelSubtask & { device: ModelDevice; exchange: Exchange };

export interface ModelTask extends NewTask {
	readonly index: number;
	status: TaskStatus;
	/** A reason for the whole task is given. */
	described: boolean;
	confirmed: boolean;
	deleted: boolean;
	subtasks: ModelSubtask[];
}

/** What an operation came to: refused as a whole, or for each target whether it was done. */
export type Outcome =
	| "unknown task"
	| "wrong status"
	| { target: string; done: boolean }[];

export interface ProgressReport {
	/** The module that it names. */
	about: string | undefined;
	resultCode: number;
	progress: number | undefined;
	version: string;
	description: string | undefined;
}

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const limits = {
	online: 25 * HOUR,
	version: 3 * MINUTE,
	upgrade: 24 * HOUR,
	resend: 10 * MINUTE,
};

const unfinished = ["Waitting", "Processing", "FailWaitRetry"] as const;
const retriable = ["Fail", "FailWaitRetry", "Stopped"] as const;

const SAME = "The current version is the same as the target version";
const UPGRADED = "The device reported the target version";
const other = (text: string): Failure => ["IOTDA.014979", text];
const late = (text: string): Failure => ["IOTDA.005010", text];
const conflict = other("Task Conflict");
const wrongVersion: Failure = [
	"IOTDA.005004",
	"Upgrade failed. The current version cannot be upgraded to the target version.",
];
const noResult = late("Wait for the device to report upgrade result timeout");

/** What result codes mean. Where the text is not fixed, the device's own words come before it. */
const meanings: Record<number, readonly [text: string, isFixed?: true]> = {
	1: ["Device in use"],
	2: ["Poor signal"],
	3: ["Already the latest version"],
	4: ["Low battery"],
	5: ["Not enough storage for the new firmware package", true],
	6: ["Waiting for device downloaded package timeout", true],
	7: ["Integrity check failure for new downloaded package", true],
	8: ["Unsupported package type", true],
	9: ["Out of memory during downloading process", true],
	10: ["Firmware update failed", true],
	255: ["Internal error"],
};

export class Model {
	now: number;
	readonly devices: ReadonlyMap<string, ModelDevice>;
	readonly tasks: ModelTask[] = [];
	/** Two upgrades of one device came due in one instant: which is first is open. */
	orderIsOpen = false;

	constructor(now: number, devices: readonly ModelDevice[]) {
		this.now = now;
		this.devices = new Map(devices.map((device) => [device.name, device]));
	}

	/** A device is in one upgrade at a time. */
	running(device: ModelDevice): Running | undefined {
		return this.#all(["Processing"]).find(
			(subtask) => subtask.device === device,
		) as Running | undefined;
	}

	// --- what operators do --------------------------------------------------------------

	create(input: NewTask): void {
		const task: ModelTask = {
			...input,
			index: this.tasks.length,
			status: "Processing",
			described: input.targets === undefined || input.targets.length === 0,
			confirmed: !input.needConfirm,
			deleted: false,
			subtasks: [],
		};
		this.tasks.push(task);
		for (const target of new Set(input.targets)) {
			const subtask: ModelSubtask = {
				...blank,
				task,
				target,
				device: this.devices.get(target),
				status: "Waitting",
				held: input.needConfirm,
				attempt: 0,
			};
			const refusal = this.#refusal(subtask);
			if (refusal) become(subtask, "Fail", { failure: refusal });
			task.subtasks.push(subtask);
		}
		if (some(task, ["Waitting"]) && !this.#mayBegin(task))
			task.status = "Waitting";
		else this.#begin(task);
	}

	confirm(task: ModelTask, targets?: readonly string[]): Outcome {
		const refused = refusalOf(task, !isFinished(task));
		if (refused) return refused;
		const waiting = named(task, targets, ["Waitting"]).filter(
			({ held }) => held && !task.confirmed,
		);
		const outcome = outcomeOf(waiting, targets);
		if (task.confirmed) return outcome;
		if (targets === undefined) task.confirmed = true;
		else for (const subtask of waiting) subtask.held = false;
		if (task.status === "Processing" || this.#mayBegin(task)) this.#begin(task);
		return outcome;
	}

	stop(task: ModelTask, targets?: readonly string[]): Outcome {
		const refused = refusalOf(task, !isFinished(task));
		if (refused) return refused;
		const stopped = named(task, targets, unfinished);
		for (const subtask of stopped) become(subtask, "Stopped");
		this.#conclude(task);
		if (targets === undefined) task.status = "Stopped";
		return outcomeOf(stopped, targets);
	}

	retry(task: ModelTask, targets?: readonly string[]): Outcome {
		const refused = refusalOf(
			task,
			["Processing", "Fail", "PartialSuccess"].includes(task.status),
		);
		if (refused) return refused;
		const again = named(task, targets, retriable);
		for (const subtask of again) {
			become(subtask, "Waitting");
			subtask.attempt = 0;
		}
		if (again.length > 0) this.#begin(task);
		return outcomeOf(again, targets);
	}

	delete(task: ModelTask): Outcome {
		const refused = refusalOf(task, isFinished(task));
		if (refused) return refused;
		task.deleted = true;
		return [];
	}

	deleteDevice(device: ModelDevice): void {
		device.exists = false;
		device.connected = false;
		for (const subtask of this.#all(unfinished)) {
			if (subtask.device !== device) continue;
			become(subtask, "Removed");
			this.#conclude(subtask.task);
		}
	}

	freeze(device: ModelDevice): void {
		device.frozen = true;
		device.connected = false;
	}

	// --- what devices do ----------------------------------------------------------------

	connect(device: ModelDevice): void {
		device.connected = true;
		for (const carried of this.devices.values()) {
			const running = this.running(carried);
			if (running && carried.link === device.name) this.#speakTo(running);
		}
	}

	drop(device: ModelDevice): void {
		device.connected = false;
	}

	reportVersions(
		device: ModelDevice,
		versions: Partial<Record<Part, string>>,
	): void {
		Object.assign(device.versions, versions);
		if (versions.module !== undefined) device.speaksModules = true;
		const running = this.running(device);
		const version = running && versions[running.task.part];
		if (running && version !== undefined) this.#heardVersion(running, version);
	}

	reportProgress(device: ModelDevice, report: ProgressReport): void {
		const { about, resultCode, progress, version, description } = report;
		if (about !== undefined) device.speaksModules = true;
		const running = this.running(device);
		// With nothing offered in this exchange it is an echo of an older one.
		if (!running?.exchange.package) return;
		const { task, exchange } = running;
		if (about !== undefined && (task.part !== "module" || about !== MODULE))
			return;
		const proven = version === targetOf(task);
		if (resultCode !== 0 && !(resultCode === 3 && proven)) {
			const [text, isFixed] = meanings[resultCode] ?? [];
			const failure: Failure =
				text === undefined
					? [
							"IOTDA.005009",
							`Upgrade failed. Invalid result_code ${resultCode}.`,
						]
					: ["IOTDA.005011", isFixed || !description ? text : description];
			this.#fail(running, failure);
		} else if (proven) {
			// Its word for the version that runs now is as good as a version report.
			device.versions[task.part] = version;
			this.#succeed(running, resultCode === 3 ? SAME : UPGRADED);
		} else if (progress !== undefined && (progress < 0 || progress > 100)) {
			const text = `Upgrade failed. Reported progress ${progress}% is invalid.`;
			this.#fail(running, ["IOTDA.005008", text]);
		} else if (exchange.phase === "delivered") {
			running.progress = progress ?? running.progress;
			// It is at work: a repetition that waited its turn is not needed.
			exchange.asked = false;
			exchange.putOff = false;
			running.dueAt = exchange.expiresAt;
		}
	}

	// --- what time does -----------------------------------------------------------------

	/** When something falls due next; undefined: never. */
	nextDue(): number | undefined {
		const times = this.tasks.flatMap(({ status, scheduleAt, subtasks }) => [
			...(status === "Waitting" && scheduleAt && scheduleAt > this.now
				? [scheduleAt]
				: []),
			...subtasks.flatMap(({ dueAt }) => dueAt ?? []),
		]);
		return times.length === 0 ? undefined : Math.min(...times);
	}

	/** Time goes on to this instant; whatever falls due until then happens at its time. */
	passTo(instant: number): void {
		for (
			let due = this.nextDue();
			due !== undefined && due <= instant;
			due = this.nextDue()
		) {
			this.now = Math.max(this.now, due);
			this.#happen();
		}
		this.now = instant;
	}

	/** The server was not there until this instant; devices have to connect again. */
	restart(instant: number): void {
		this.now = instant;
		for (const device of this.devices.values()) device.connected = false;
		// What ran out while nobody was there to listen is not the devices' fault.
		const grace = instant + limits.version;
		for (const subtask of this.#all(["Processing"]))
			if (!subtask.exchange?.putOff && (subtask.dueAt ?? grace) < grace)
				subtask.dueAt = grace;
		this.#happen();
	}

	/** The last instant for the end of a restart that leaves no device with two upgrades to begin. */
	latestRestart(instant: number): number {
		const begins = this.tasks.flatMap(({ status, scheduleAt = 0, subtasks }) =>
			status === "Waitting"
				? subtasks.map(({ target }) => ({ target, at: scheduleAt }))
				: subtasks.flatMap(({ target, status, dueAt: at = 0 }) =>
						status === "FailWaitRetry" ? [{ target, at }] : [],
					),
		);
		const seen = new Set<string>();
		for (const { target, at } of begins.sort((a, b) => a.at - b.at)) {
			if (at <= this.now) continue;
			if (seen.has(target)) return Math.min(instant, at - 1);
			seen.add(target);
		}
		return instant;
	}

	/** What is due now: first what runs out, then what begins. */
	#happen(): void {
		const due = ({ dueAt }: ModelSubtask) =>
			dueAt !== undefined && dueAt <= this.now;
		for (const subtask of this.#all(["Processing"]).filter(due))
			this.#runOut(subtask as Running);
		const tasks = this.tasks.filter(
			(task) => task.status === "Waitting" && this.#mayBegin(task),
		);
		const again = this.#all(["FailWaitRetry"]).filter(due);
		const begun = [...tasks.flatMap(({ subtasks }) => subtasks), ...again];
		if (new Set(begun.map(({ target }) => target)).size < begun.length)
			this.orderIsOpen = true;
		for (const task of tasks) this.#begin(task);
		for (const subtask of again) {
			subtask.attempt++;
			this.#start(subtask);
		}
	}

	#runOut(running: Running): void {
		const { task, exchange, device } = running;
		if (exchange.phase === "await_online") {
			this.#fail(running, late("Waiting for the device online timeout"));
		} else if (exchange.phase === "await_version") {
			const text = "Waiting for report device firmware version timeout";
			this.#fail(running, late(text));
		} else if (exchange.phase === "verify_version") {
			const text =
				"Updating timeout and query device version for check timeout";
			this.#fail(running, late(text));
		} else if (!this.#isOver(running)) {
			// A repetition that was put off. One that is not here is asked when it comes.
			if (this.#isHere(device)) this.#repeat(running);
			else {
				exchange.putOff = false;
				running.dueAt = exchange.expiresAt;
			}
		} else if (formOf(task, device) === "compatible") {
			this.#fail(running, noResult);
		} else {
			exchange.phase = "verify_version";
			exchange.putOff = false;
			running.dueAt = this.now + limits.version;
			this.#query(running);
		}
	}

	// --- a task -------------------------------------------------------------------------

	#mayBegin({ scheduleAt = 0, confirmed, subtasks }: ModelTask): boolean {
		const isConfirmed =
			confirmed ||
			subtasks.some(({ status, held }) => status === "Waitting" && !held);
		return scheduleAt <= this.now && isConfirmed;
	}

	#begin(task: ModelTask): void {
		task.status = "Processing";
		for (const subtask of named(task, undefined, ["Waitting"]))
			if (task.confirmed || !subtask.held) this.#start(subtask);
		this.#conclude(task);
	}

	/** A task in which nothing is unfinished any more has a result. */
	#conclude(task: ModelTask): void {
		if (some(task, unfinished)) return;
		const successes = named(task, undefined, ["Success"]).length;
		if (successes > 0)
			task.status =
				successes === task.subtasks.length ? "Success" : "PartialSuccess";
		else
			task.status =
				some(task, ["Stopped"]) && !some(task, ["Fail"]) ? "Stopped" : "Fail";
	}

	// --- one device in a task -----------------------------------------------------------

	/** Why the device cannot take part at all. */
	#refusal({ task, device }: ModelSubtask): Failure | undefined {
		if (!device?.exists) return other("The device does not exist.");
		if (!device.fits)
			return other("The device does not belong to the product of the package.");
		if (device.frozen) return other("The device is frozen.");
		if (formOf(task, device) === "none")
			return other("Unsupported package type");
		return undefined;
	}

	#start(subtask: ModelSubtask): void {
		const failure = this.#refusal(subtask);
		const device = subtask.device as ModelDevice;
		if (failure) {
			become(subtask, "Fail", { failure });
			this.#conclude(subtask.task);
		} else if (this.running(device)) {
			this.#fail(subtask, conflict);
		} else {
			const running = become(subtask, "Processing", {
				exchange: { phase: "await_online", asked: false },
				dueAt: this.now + limits.online,
			}) as Running;
			if (this.#isHere(device)) this.#speakTo(running);
		}
	}

	/** It has connected, or is connected when its turn comes. */
	#speakTo(running: Running): void {
		const { task, exchange, device } = running;
		const isCompatible = formOf(task, device) === "compatible";
		if (exchange.phase === "verify_version") {
			this.#query(running);
		} else if (exchange.phase === "delivered") {
			if (isCompatible) {
				this.#repeat(running);
			} else {
				exchange.asked = true;
				this.#query(running);
			}
		} else if (isCompatible) {
			// No query can ask for the module: what it last had counts.
			const { module } = device.versions;
			if (module === targetOf(task)) this.#succeed(running, SAME);
			else this.#offer(running, module);
		} else {
			exchange.phase = "await_version";
			running.dueAt = this.now + limits.version;
			this.#query(running);
		}
	}

	#heardVersion(running: Running, version: string): void {
		const { task, exchange } = running;
		const isTarget = version === targetOf(task);
		if (exchange.phase === "await_online") return;
		if (isTarget)
			this.#succeed(
				running,
				exchange.phase === "await_version" ? SAME : UPGRADED,
			);
		else if (exchange.phase === "await_version") this.#offer(running, version);
		else if (exchange.phase === "verify_version") this.#fail(running, noResult);
		else if (exchange.asked && this.#isOver(running))
			this.#fail(running, noResult);
		else if (exchange.asked) {
			// A report that nobody asked for says nothing: it may be downloading.
			exchange.package = packageFor(task, version);
			if (exchange.package) this.#repeat(running);
			else this.#fail(running, wrongVersion);
		}
	}

	/** The first notice; its 24 hours begin. */
	#offer(running: Running, version: string | undefined): void {
		const chosen = packageFor(running.task, version);
		if (!chosen) {
			this.#fail(running, wrongVersion);
			return;
		}
		running.dueAt = this.now + limits.upgrade;
		running.exchange = {
			phase: "delivered",
			asked: false,
			package: chosen,
			offeredAt: this.now,
			expiresAt: running.dueAt,
		};
		this.#notify(running, chosen);
	}

	/** After an outage it still has a moment to say how it went. */
	#isOver({ exchange: { expiresAt = 0 } }: Running): boolean {
		return expiresAt <= this.now;
	}

	/** The notice again, or as soon as ten minutes have passed since the last one. */
	#repeat(running: Running): void {
		const { exchange } = running;
		if (this.#isOver(running)) return;
		const { offeredAt = 0, expiresAt = 0 } = exchange;
		const allowedAt = offeredAt + limits.resend;
		exchange.asked = false;
		exchange.putOff = this.now < allowedAt && allowedAt < expiresAt;
		running.dueAt = exchange.putOff ? allowedAt : expiresAt;
		if (this.now < allowedAt) return;
		exchange.offeredAt = this.now;
		this.#notify(running, exchange.package as ModelPackage);
	}

	#fail(subtask: ModelSubtask, failure: Failure): void {
		const { task, attempt } = subtask;
		if (attempt < task.retryCount)
			become(subtask, "FailWaitRetry", {
				failure,
				dueAt: this.now + task.retryIntervalMs,
			});
		else become(subtask, "Fail", { failure });
		this.#conclude(task);
	}

	#succeed(running: Running, output: string): void {
		become(running, "Success", { output });
		this.#conclude(running.task);
	}

	// --- what devices are told ----------------------------------------------------------

	#query(running: Running): void {
		this.#tell(running, { kind: "version_query" });
	}

	#notify(running: Running, chosen: ModelPackage): void {
		const { task, device } = running;
		const isCompatible = formOf(task, device) === "compatible";
		this.#tell(running, {
			kind: "notice",
			form: isCompatible ? "firmware" : task.part,
			package: chosen.name,
		});
	}

	#tell({ task, device }: Running, what: Said): void {
		if (!this.#isHere(device)) return;
		const isChild = device.name !== device.link;
		device.told.push({
			...what,
			module: task.part === "module",
			children:
				task.gatewayMode && isChild
					? [task.index, task.subtasks.filter(behind(device.link)).length]
					: undefined,
		});
	}

	// --- looking things up --------------------------------------------------------------

	#isHere({ link }: ModelDevice): boolean {
		return this.devices.get(link)?.connected ?? false;
	}

	#all(statuses: readonly SubtaskStatus[]): ModelSubtask[] {
		return this.tasks.flatMap((task) => named(task, undefined, statuses));
	}
}

/** A subtask in which nothing runs and nothing has come about yet. */
const blank = {
	exchange: undefined,
	dueAt: undefined,
	progress: undefined,
	output: undefined,
	failure: undefined,
};

function become(
	subtask: ModelSubtask,
	status: SubtaskStatus,
	what: Partial<ModelSubtask> = {},
): ModelSubtask {
	return Object.assign(subtask, blank, what, { status });
}

export function isFinished({ status }: ModelTask): boolean {
	return status !== "Waitting" && status !== "Processing";
}

function targetOf({ packages }: ModelTask): string {
	return packages[0]?.version ?? "";
}

/** The subtasks that are named, or all, as far as they are in one of the statuses. */
function named(
	task: ModelTask,
	targets: readonly string[] | undefined,
	statuses: readonly SubtaskStatus[],
): ModelSubtask[] {
	return task.subtasks.filter(
		({ target, status }) =>
			statuses.includes(status) && (!targets || targets.includes(target)),
	);
}

function some(task: ModelTask, statuses: readonly SubtaskStatus[]): boolean {
	return named(task, undefined, statuses).length > 0;
}

function refusalOf({ deleted }: ModelTask, isAllowed: boolean) {
	if (deleted) return "unknown task";
	return isAllowed ? undefined : "wrong status";
}

/** For all of a task what is affected; for named targets each, once. */
function outcomeOf(
	affected: readonly ModelSubtask[],
	targets: readonly string[] | undefined,
): { target: string; done: boolean }[] {
	const done = new Set(affected.map(({ target }) => target));
	return [...new Set(targets ?? done)].map((target) => ({
		target,
		done: done.has(target),
	}));
}

function behind(gateway: string) {
	return ({ device }: ModelSubtask) =>
		device?.link === gateway && device.name !== gateway;
}

function formOf(
	{ part }: ModelTask,
	{ form, speaksModules }: ModelDevice,
): "classic" | ModuleForm {
	if (part !== "module") return "classic";
	return speaksModules ? "native" : form;
}

/** One whose list names the version, else one for every version. */
function packageFor(
	{ packages }: ModelTask,
	version: string | undefined,
): ModelPackage | undefined {
	return (
		packages.find(({ sources }) => sources.some((from) => from === version)) ??
		packages.find(({ sources }) => sources.length === 0)
	);
}
