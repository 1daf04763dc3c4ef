/**
 * The real server beside the model of `model.ts`: each step is done to both, and then
 * everything that can be seen of the server must be what the model says. Nothing here
 * waits for a while and looks: the clock stands still until the server says that it has
 * nothing left to do.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Static } from "typebox";
import { ApiFailure } from "../../wire/client.ts";
import { wireTime } from "../../wire/envelope.ts";
import type { Product } from "../../wire/products.ts";
import type { targetResult } from "../../wire/tasks.ts";
import { HandClock } from "./clock.ts";
import {
	DeviceLink,
	type HeardEvent,
	type LinkedDevice,
} from "./device-link.ts";
import type { Engine } from "./engines.ts";
import {
	isFinished,
	MODULE,
	Model,
	type ModelDevice,
	type ModelPackage,
	type ModelTask,
	type Outcome,
	type Part,
	type SubtaskStatus,
	type Told,
} from "./model.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./seed.ts";
import { startServer, type TestServer } from "./server.ts";

export const parts = ["firmware", "software", "module"] as const;

/** What a task may bring: one or two packages of one version, with and without sources. */
const packageSets = [
	["v2-any"],
	["v2-from-v1"],
	["v2-from-v1", "v2-any"],
	["v2-from-v1", "v2-from-v3"],
	["v3-any"],
] as const;
const QUIET_WITHIN_MS = 30_000;
export const PACKAGE_SETS = packageSets.length;

const packageFields: Record<string, Omit<ModelPackage, "name">> = {
	"v2-any": { version: "v2", sources: [] },
	"v2-from-v1": { version: "v2", sources: ["v1"] },
	"v2-from-v3": { version: "v2", sources: ["v3"] },
	"v3-any": { version: "v3", sources: [] },
};

/**
 * The devices of every sequence: one with two children, one that knows of modules only
 * once it has named one, one for which modules are dressed as firmware.
 */
export const deviceNames = ["gateway", "child", "second", "plain", "dressed"];
/** Of another product. */
export const STRANGER = "stranger";
/** Does not exist. */
export const NOBODY = "nobody";

/** Picks one by a number: of those for which the step means something, or of `any`. */
export interface Pick {
	n: number;
	any: boolean;
}

export type Step =
	| {
			do: "create";
			part: Part;
			packages: number;
			/** Names of devices. */
			targets: readonly string[];
			by: "list" | "static" | "dynamic" | "unknown group";
			gatewayMode: boolean;
			needConfirm: boolean;
			scheduleMs: number | undefined;
			retry: { count: number; minutes: number } | undefined;
	  }
	| Operation
	| { do: "delete"; task: Pick }
	| { do: "connect"; device: Pick }
	/** `again`: and connects again at once. */
	| { do: "drop"; device: Pick; politely: boolean; again: boolean }
	| { do: "report"; device: Pick; versions: Partial<Record<Part, string>> }
	| {
			do: "progress";
			device: Pick;
			about: string | undefined;
			resultCode: number;
			progress: number | undefined;
			version: string;
			description: string | undefined;
	  }
	| { do: "pass"; ms: number }
	/** To the instant when something falls due, or to the last one before it. */
	| { do: "pass to due"; shy: boolean }
	| { do: "restart"; downMs: number }
	| {
			do: "delete device" | "freeze" | "unfreeze" | "leave group";
			device: Pick;
	  };

type DeviceStep = Extract<Step, { device: Pick }>;

interface Operation {
	do: "confirm" | "stop" | "retry";
	task: Pick;
	/** Some of its devices; undefined: all of the task. */
	targets: readonly Pick[] | undefined;
}

/** What the sequences of one server share. */
export class ModelServer implements AsyncDisposable {
	readonly server: TestServer;
	readonly clock: HandClock;
	readonly product: Product;
	readonly otherProduct: Product;
	readonly packageIds: ReadonlyMap<string, string>;
	/** What is seen in a notice: the file. */
	readonly packageOfFile: ReadonlyMap<string, string>;

	static async start(engine: Engine): Promise<ModelServer> {
		const clock = new HandClock();
		const server = await startServer(inMemory(engine), {
			now: clock.now,
			env: {
				OTARU_DEVICE_MESSAGES_PER_SECOND: "0",
				// Every sequence may make some, and none is deleted.
				OTARU_GROUPS_LIMIT: "100000",
			},
		});
		const { api } = server;
		const product = await makeProduct(api);
		const otherProduct = await makeProduct(api);
		await makeModule(api, product, MODULE);
		const packageIds = new Map<string, string>();
		const packageOfFile = new Map<string, string>();
		for (const part of parts)
			for (const [name, { version, sources }] of Object.entries(
				packageFields,
			)) {
				const file = `${part}-${unique(name)}.bin`;
				const made = await makePackage(api, product, {
					package_type: `${part}Package`,
					version,
					...(sources.length > 0
						? { support_source_versions: [...sources] }
						: {}),
					...(part === "module" ? { module_name: MODULE } : {}),
					file_location: await upload(api, file),
				});
				packageIds.set(`${part}/${name}`, made.package_id);
				packageOfFile.set(file, name);
			}
		return new ModelServer(
			server,
			clock,
			product,
			otherProduct,
			packageIds,
			packageOfFile,
		);
	}

	private constructor(
		server: TestServer,
		clock: HandClock,
		product: Product,
		otherProduct: Product,
		packageIds: ReadonlyMap<string, string>,
		packageOfFile: ReadonlyMap<string, string>,
	) {
		this.server = server;
		this.clock = clock;
		this.product = product;
		this.otherProduct = otherProduct;
		this.packageIds = packageIds;
		this.packageOfFile = packageOfFile;
	}

	/**
	 * Lives through the steps.
	 *
	 * @returns false when it had to end early because what follows is open
	 * @throws when the server and the model differ; the message tells the story until there
	 */
	async play(steps: readonly Step[]): Promise<boolean> {
		const world = await World.make(this);
		try {
			const isWhole = await world.live(steps);
			await world.leave();
			return isWhole;
		} catch (error) {
			await world.leave().catch(() => undefined);
			throw new Error(
				`${error instanceof Error ? error.message : String(error)}\n\n${world.story.join("\n")}\n`,
				{ cause: error },
			);
		}
	}

	/** @throws when the server finds no rest */
	async quiet(): Promise<void> {
		const { promise, reject } = Promise.withResolvers<never>();
		const timer = setTimeout(
			() => reject(new Error("the server always finds something to do")),
			QUIET_WITHIN_MS,
		);
		try {
			await Promise.race([this.server.server.quiet(), promise]);
		} finally {
			clearTimeout(timer);
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.server[Symbol.asyncDispose]();
	}
}

/** The directory in memory where there is one: not losing power is what other tests are about. */
function inMemory(engine: Engine): Engine {
	const memory = "/dev/shm";
	if (!existsSync(memory)) return engine;
	return {
		name: engine.name,
		async fresh() {
			const { env, dispose } = await engine.fresh();
			const directory = await mkdtemp(join(memory, "otaru-test-"));
			return {
				env: { ...env, OTARU_DATA: directory },
				async dispose() {
					await dispose();
					await rm(directory, { recursive: true, force: true });
				},
			};
		},
	};
}

interface RealDevice extends LinkedDevice {
	link: DeviceLink | undefined;
}

class World {
	/** What was done, for whoever has to understand a difference. */
	readonly story: string[] = [];
	readonly #bench: ModelServer;
	readonly #model: Model;
	readonly #devices: ReadonlyMap<string, RealDevice>;
	readonly #nameOf: ReadonlyMap<string, string>;
	/** In the order of the model's tasks. */
	readonly #taskIds: string[] = [];
	readonly #groups: { id: string; members: Set<string> }[] = [];
	readonly #nodePrefix: string;
	#steps = 0;
	#childGone = false;
	/** As each task was when it was last compared. */
	readonly #seen = new Map<ModelTask, string>();
	readonly #spoke = new Set<ModelDevice>();

	static async make(bench: ModelServer): Promise<World> {
		const { api } = bench.server;
		const prefix = unique("n");
		const register = async (name: string, gateway?: string) => {
			const made = await makeDevice(
				api,
				name === STRANGER ? bench.otherProduct : bench.product,
				{
					node_id: `${prefix}-${name}`,
					...(gateway ? { gateway_id: gateway } : {}),
				},
			);
			const secret = made.auth_info.secret ?? "";
			const device: RealDevice = {
				id: made.device_id,
				secret,
				heard: [],
				link: undefined,
			};
			return [name, device] as const;
		};
		const gateway = await register("gateway");
		const rest = await Promise.all([
			register("plain"),
			register("child", gateway[1].id),
			register("second", gateway[1].id),
			register("dressed"),
			register(STRANGER),
		]);
		const devices = new Map<string, RealDevice>([gateway, ...rest]);
		const forms = { gateway: "native", child: "native", dressed: "compatible" };
		await Promise.all(
			Object.entries(forms).map(([name, module_form]) =>
				api.updateDeviceOtaProfile(devices.get(name)?.id ?? "", {
					module_form: module_form as "native" | "compatible",
				}),
			),
		);
		const modelled = [...devices.keys()].map(
			(name): ModelDevice => ({
				name,
				link: name === "child" || name === "second" ? "gateway" : name,
				fits: name !== STRANGER,
				form:
					(forms as Record<string, "native" | "compatible">)[name] ?? "none",
				speaksModules: false,
				exists: true,
				frozen: false,
				connected: false,
				versions: {},
				told: [],
			}),
		);
		const model = new Model(bench.clock.now().getTime(), modelled);
		return new World(bench, model, devices, prefix);
	}

	private constructor(
		bench: ModelServer,
		model: Model,
		devices: ReadonlyMap<string, RealDevice>,
		nodePrefix: string,
	) {
		this.#bench = bench;
		this.#model = model;
		this.#devices = devices;
		this.#nodePrefix = nodePrefix;
		this.#nameOf = new Map(
			[...devices].map(([name, { id }]) => [id, name] as const),
		);
	}

	get #api() {
		return this.#bench.server.api;
	}

	/** False: what came next was open, so that was the end. */
	async live(steps: readonly Step[]): Promise<boolean> {
		for (const step of steps) if (!(await this.#take(step))) return false;
		await this.#compareEverything();
		return true;
	}

	/** Does the step to both, and compares. */
	async #take(step: Step): Promise<boolean> {
		await this.#passTo(this.#nextSlot(this.#model.now + 1));
		if (this.#model.orderIsOpen) return false;
		await this.#do(step);
		this.#model.passTo(this.#model.now);
		await this.#bench.quiet();
		if (this.#model.orderIsOpen) return false;
		await this.#compare();
		return true;
	}

	/**
	 * Everything that falls due does so a whole number of minutes after a step, so two
	 * upgrades of a device never come due in one instant as long as every step has its own
	 * place in the minute; schedules, which know only whole seconds, have theirs.
	 */
	#nextSlot(from: number): number {
		const place = (this.#steps % 59) * 1_000 + 250;
		const inMinute = (((from - place) % 60_000) + 60_000) % 60_000;
		return inMinute === 0 ? from : from + 60_000 - inMinute;
	}

	async #passTo(instant: number): Promise<void> {
		const { clock } = this.#bench;
		for (;;) {
			const due = this.#model.nextDue();
			const next = due === undefined || due > instant ? instant : due;
			clock.pass({ seconds: (next - this.#model.now) / 1_000 });
			this.#model.passTo(next);
			if (this.#model.orderIsOpen || (due ?? Infinity) > instant) return;
			await this.#bench.quiet();
		}
	}

	#tell(text: string): void {
		const minutes = (this.#model.now / 60_000).toFixed(4);
		this.story.push(`${minutes} ${text}`);
	}

	// --- steps --------------------------------------------------------------------------

	async #do(step: Step): Promise<void> {
		this.#steps++;
		const model = this.#model;
		switch (step.do) {
			case "create":
				return this.#create(step);
			case "confirm":
			case "stop":
			case "retry":
				return this.#operate(step);
			case "delete": {
				const task = picked(step.task, model.tasks, isFinished);
				if (!task) return;
				this.#tell(`delete task ${task.index}`);
				const outcome = await outcomeOf(async () => {
					await this.#api.deleteTask(this.#idOf(task));
					return [];
				});
				assert.deepEqual(outcome, model.delete(task), "delete");
				return;
			}
			case "pass":
				this.#tell(`${step.ms / 1_000} s pass`);
				return this.#passTo(model.now + step.ms);
			case "pass to due": {
				const due = model.nextDue();
				if (due === undefined) return;
				this.#tell(step.shy ? "nothing is due yet" : "something is due");
				return this.#passTo(step.shy ? Math.max(due - 1, model.now) : due);
			}
			case "restart":
				return this.#restart(step.downMs);
			default: {
				const device = this.#pick(step);
				const real = device && this.#devices.get(device.name);
				if (device && real) await this.#doWith(step, device, real);
			}
		}
	}

	/** A device that can do the step, rather one for which it means something now. */
	#pick(step: DeviceStep): ModelDevice | undefined {
		const model = this.#model;
		const exchange = (device: ModelDevice) => model.running(device)?.exchange;
		const all = [...model.devices.values()].filter(({ exists }) => exists);
		const direct = all.filter(({ name, link }) => name === link);
		switch (step.do) {
			case "connect":
				return picked(
					step.device,
					direct.filter(({ connected, frozen }) => !connected && !frozen),
					({ name }) => all.some((one) => one.link === name && exchange(one)),
				);
			case "drop":
				return picked(
					step.device,
					direct.filter(({ connected }) => connected),
					({ name }) =>
						all.some((one) => one.link === name && exchange(one)?.package),
				);
			case "report":
				return picked(
					step.device,
					all.filter(({ link }) => model.devices.get(link)?.connected),
					(device) => {
						const { phase, asked } = exchange(device) ?? {};
						return (
							phase === "await_version" || phase === "verify_version" || asked
						);
					},
				);
			case "progress":
				return picked(
					step.device,
					all.filter(({ link }) => model.devices.get(link)?.connected),
					(device) => exchange(device)?.package,
				);
			case "delete device":
				return picked(
					step.device,
					all.filter(({ name }) => name !== "gateway"),
					({ name }) =>
						model.tasks.some(({ subtasks }) =>
							subtasks.some(
								({ target, status }) =>
									target === name &&
									(status === "FailWaitRetry" || status === "Waitting"),
							),
						),
				);
			case "freeze":
				return picked(
					step.device,
					direct.filter(({ frozen }) => !frozen),
					exchange,
				);
			case "unfreeze":
				return picked(
					step.device,
					all.filter(({ frozen }) => frozen),
				);
			case "leave group":
				return picked(
					step.device,
					all.filter(({ name }) => this.#groups.at(-1)?.members.has(name)),
				);
			default:
				return step satisfies never;
		}
	}

	async #doWith(
		step: DeviceStep,
		device: ModelDevice,
		real: RealDevice,
	): Promise<void> {
		const model = this.#model;
		switch (step.do) {
			case "connect":
				this.#tell(`${device.name} connects`);
				return this.#connect(device, real);
			case "drop":
				this.#tell(
					`${device.name} drops${step.again ? " and connects again" : ""}`,
				);
				model.drop(device);
				await real.link?.close(step.politely);
				return step.again ? this.#connect(device, real) : undefined;
			case "report": {
				const { firmware, software, module } = step.versions;
				this.#tell(`${device.name} has ${JSON.stringify(step.versions)}`);
				model.reportVersions(device, this.#known(device, step.versions));
				return this.#say(device, "version_report", {
					...(firmware === undefined ? {} : { fw_version: firmware }),
					...(software === undefined ? {} : { sw_version: software }),
					...(module === undefined
						? {}
						: { modules: [{ module_name: MODULE, module_version: module }] }),
				});
			}
			case "progress": {
				const { about, resultCode, progress, version, description } = step;
				this.#tell(
					`${device.name} reports ${resultCode}, ${progress}%, ${version}${about ? ` of ${about}` : ""}`,
				);
				model.reportProgress(device, step);
				return this.#say(device, "upgrade_progress_report", {
					result_code: resultCode,
					version,
					...(about === undefined ? {} : { module_name: about }),
					...(progress === undefined ? {} : { progress }),
					...(description === undefined ? {} : { description }),
				});
			}
			case "delete device":
				this.#tell(`${device.name} is deleted`);
				if (device.name !== device.link) this.#childGone = true;
				model.deleteDevice(device);
				for (const { members } of this.#groups) members.delete(device.name);
				await this.#api.deleteDevice(real.id);
				return real.link?.closed;
			case "freeze":
				this.#tell(`${device.name} is frozen`);
				model.freeze(device);
				await this.#api.freezeDevice(real.id);
				await real.link?.closed;
				// A task that is younger than a minute need not look at its devices again.
				return this.#passTo(model.now + 61_000);
			case "unfreeze":
				this.#tell(`${device.name} is frozen no more`);
				device.frozen = false;
				return this.#api.unfreezeDevice(real.id);
			case "leave group": {
				const group = this.#groups.at(-1);
				this.#tell(`${device.name} leaves the group`);
				group?.members.delete(device.name);
				return this.#api.changeDeviceGroup(group?.id ?? "", {
					action_id: "removeDevice",
					device_id: real.id,
				});
			}
			default:
				return step satisfies never;
		}
	}

	async #connect(device: ModelDevice, real: RealDevice): Promise<void> {
		this.#model.connect(device);
		real.link = await DeviceLink.open(this.#bench.server, real);
		// The server gives a device such a moment before it speaks; timers of the same
		// length end in the order they began in.
		await new Promise((resolve) => setTimeout(resolve, 1));
	}

	async #create(step: Step & { do: "create" }): Promise<void> {
		const { part, by, targets, needConfirm, gatewayMode } = step;
		const packages = packageSets[step.packages % PACKAGE_SETS] ?? [];
		const now = this.#model.now;
		// A place of its own in the minute, on a whole second.
		const scheduleAt =
			step.scheduleMs === undefined
				? undefined
				: Math.floor((now + step.scheduleMs) / 60_000) * 60_000 +
					(this.#steps % 59) * 1_000;
		const { listed, sent } = await this.#targets(by, targets);
		this.#tell(
			`create task ${this.#taskIds.length}: ${part} ${packages.join(" ")} for ${listed?.join(" ")}` +
				` by ${by}${needConfirm ? ", to be confirmed" : ""}${gatewayMode ? ", gateway mode" : ""}` +
				`${scheduleAt === undefined ? "" : `, at ${(scheduleAt / 60_000).toFixed(4)}`}` +
				`${step.retry ? `, ${step.retry.count} retries in ${step.retry.minutes} min` : ""}`,
		);
		const task_policy = {
			...(scheduleAt === undefined
				? {}
				: { schedule_time: wireTime(new Date(scheduleAt)) }),
			...(step.retry
				? {
						retry_count: step.retry.count,
						retry_interval: step.retry.minutes,
					}
				: {}),
		};
		const made = await this.#api.createTask({
			task_name: "model",
			task_type: `${part}Upgrade`,
			...sent,
			document: {
				package_ids: packages.map(
					(name) => this.#bench.packageIds.get(`${part}/${name}`) ?? "",
				),
			},
			...(needConfirm ? { need_confirm: true } : {}),
			...(gatewayMode ? { task_mode: "GATEWAY" as const } : {}),
			...(Object.keys(task_policy).length > 0 ? { task_policy } : {}),
		});
		this.#taskIds.push(made.task_id);
		this.#model.create({
			part,
			packages: packages.map((name) => ({
				name,
				...(packageFields[name] as Omit<ModelPackage, "name">),
			})),
			targets: listed,
			gatewayMode,
			needConfirm,
			scheduleAt:
				scheduleAt !== undefined && scheduleAt > now ? scheduleAt : undefined,
			retryCount: step.retry?.count ?? 0,
			retryIntervalMs: (step.retry?.minutes ?? 0) * 60_000,
		});
	}

	/** The devices that a task is for, as the model and as the server are told. */
	async #targets(
		by: (Step & { do: "create" })["by"],
		names: readonly string[],
	) {
		const idOf = (name: string) => this.#devices.get(name)?.id ?? NOBODY;
		const exist = names.filter((name) => this.#model.devices.get(name)?.exists);
		switch (by) {
			case "list":
				// Twice is once.
				return {
					listed: names,
					sent: { targets: [...names, ...names.slice(0, 1)].map(idOf) },
				};
			case "unknown group":
				return {
					listed: undefined,
					sent: {
						targets_filter: {
							group_ids: ["00000000-0000-0000-0000-000000000000"],
						},
					},
				};
			case "static": {
				const group = await this.#api.createDeviceGroup({ name: unique("g") });
				await Promise.all(
					exist.map((name) =>
						this.#api.changeDeviceGroup(group.group_id, {
							action_id: "addDevice",
							device_id: idOf(name),
						}),
					),
				);
				this.#groups.push({ id: group.group_id, members: new Set(exist) });
				return {
					listed: exist,
					sent: { targets_filter: { group_ids: [group.group_id] } },
				};
			}
			case "dynamic": {
				const nodes = exist.map((name) => `'${this.#nodePrefix}-${name}'`);
				const group = await this.#api.createDeviceGroup({
					name: unique("g"),
					group_type: "DYNAMIC",
					dynamic_group_rule:
						nodes.length > 0
							? `node_id in (${nodes.join(", ")})`
							: "node_id = 'none'",
				});
				return {
					listed: exist,
					sent: { targets_filter: { group_ids: [group.group_id] } },
				};
			}
			default:
				return by satisfies never;
		}
	}

	async #operate({ do: operation, ...step }: Operation): Promise<void> {
		const affected = {
			confirm: ["Waitting"],
			stop: ["Waitting", "Processing", "FailWaitRetry"],
			retry: ["Fail", "FailWaitRetry", "Stopped"],
		}[operation];
		// Rather those that have used up some of their retries.
		const isTried = this.#model.tasks.some(({ subtasks }) =>
			subtasks.some(
				({ status, attempt }) => attempt > 0 && affected.includes(status),
			),
		);
		const isAffected = ({ status, attempt }: typeof stranger) =>
			affected.includes(status) && (attempt > 0 || !isTried);
		const task = picked(
			step.task,
			this.#model.tasks,
			({ status, subtasks, confirmed }) =>
				subtasks.some(isAffected) &&
				!(operation === "confirm" && confirmed) &&
				!(operation === "retry" && status === "Stopped"),
		);
		if (!task) return;
		const targets = step.targets?.map(
			(pick) =>
				picked(pick, [...task.subtasks, stranger], isAffected)?.target ?? "",
		);
		this.#tell(
			`${operation} ${targets?.join(" ") ?? "all"} of task ${task.index}`,
		);
		const some = targets && {
			targets: targets.map((target) => this.#devices.get(target)?.id ?? NOBODY),
		};
		const taskId = this.#idOf(task);
		const calls = {
			confirm: () => this.#api.confirmTask(taskId, some),
			stop: () => this.#api.stopTask(taskId, some),
			retry: () => this.#api.retryTask(taskId, some),
		};
		const seen = await outcomeOf(async () =>
			(await calls[operation]()).targets.map((result) =>
				this.#readResult(result),
			),
		);
		const expected = this.#model[operation](task, targets);
		assert.deepEqual(
			seen,
			Array.isArray(expected) ? expected.sort(byTarget) : expected,
			operation,
		);
	}

	#readResult({ target, status, error_code }: Static<typeof targetResult>) {
		assert.equal(error_code, status === "failure" ? "IOTDA.014219" : undefined);
		return {
			target: this.#nameOf.get(target) ?? target,
			done: status === "success",
		};
	}

	async #restart(downMs: number): Promise<void> {
		const { server, clock } = this.#bench;
		const model = this.#model;
		const until = this.#nextSlot(
			Math.max(model.now + 1, model.latestRestart(model.now + downMs) - 60_000),
		);
		this.#tell(`restart after ${(until - model.now) / 1_000} s`);
		await server.restart(() => {
			clock.pass({ seconds: (until - model.now) / 1_000 });
			model.restart(until);
		});
		for (const { link } of this.#devices.values()) await link?.closed;
	}

	// --- devices ------------------------------------------------------------------------

	/** Versions of modules that a product does not have are dropped. */
	#known(
		{ fits }: ModelDevice,
		{ module, ...others }: Partial<Record<Part, string>>,
	) {
		return module === undefined || !fits ? others : { ...others, module };
	}

	async #say(device: ModelDevice, eventType: string, paras: object) {
		this.#spoke.add(device);
		const link = this.#devices.get(device.link);
		await link?.link?.say(
			JSON.stringify({
				...(device.link === device.name
					? {}
					: { object_device_id: this.#devices.get(device.name)?.id }),
				services: [{ service_id: "$ota", event_type: eventType, paras }],
			}),
		);
	}

	#idOf(task: ModelTask): string {
		return this.#taskIds[task.index] ?? "";
	}

	// --- comparing ----------------------------------------------------------------------

	async #compare(): Promise<void> {
		await this.#compareTold();
		const changed = this.#model.tasks.filter((task) => {
			const before = this.#seen.get(task);
			const now = JSON.stringify(expectedOf(task));
			this.#seen.set(task, now);
			// What is over and has not changed is looked at once more in the end.
			return !isFinished(task) || now !== before;
		});
		await Promise.all(changed.map((task) => this.#compareTask(task)));
	}

	/** All of it once more, and what the server keeps of the devices. */
	async #compareEverything(): Promise<void> {
		await Promise.all([
			...this.#model.tasks.map((task) => this.#compareTask(task)),
			...[...this.#model.devices.values()].map((device) =>
				this.#compareVersions(device),
			),
		]);
	}

	async #compareTask(task: ModelTask): Promise<void> {
		if (task.deleted) return;
		const { batchtask, task_details } = await this.#api.getTask(
			this.#idOf(task),
			{ limit: 50 },
		);
		const seen = {
			status: batchtask.status,
			described: batchtask.status_desc !== undefined,
			subtasks: task_details
				.map(({ target, ...rest }) => ({
					target: this.#nameOf.get(target) ?? target,
					...rest,
				}))
				.sort(byTarget),
			progress: batchtask.task_progress,
		};
		assert.deepEqual(seen, expectedOf(task), `task ${task.index}`);
	}

	async #compareTold(): Promise<void> {
		const seen = new Map<string, Told[]>();
		const collect = () => {
			for (const { heard } of this.#devices.values())
				for (const { about, ...told } of heard.splice(0)) {
					const name = this.#nameOf.get(about) ?? about;
					seen.set(name, [...(seen.get(name) ?? []), this.#readTold(told)]);
				}
		};
		const expected = new Map<string, Told[]>();
		for (const device of this.#model.devices.values()) {
			if (device.told.length > 0)
				expected.set(
					device.name,
					device.told.map((told) =>
						this.#childGone ? { ...told, children: undefined } : told,
					),
				);
			device.told = [];
		}
		const arrived = (told: Map<string, Told[]>) =>
			[...told.values()].reduce((sum, { length }) => sum + length, 0);
		collect();
		if (arrived(seen) < arrived(expected)) {
			// Sent, but perhaps not read yet.
			await Promise.all(
				[...this.#devices.values()].map(({ link }) => link?.ping()),
			);
			collect();
		}
		const sorted = (told: Map<string, Told[]>) =>
			[...told].sort(([a], [b]) => (a < b ? -1 : 1));
		assert.deepEqual(sorted(seen), sorted(expected), "what devices were told");
	}

	#readTold({ type, paras }: Omit<HeardEvent, "about">): Told {
		const module = paras.module_name !== undefined;
		const taskId = paras.task_id as string | undefined;
		const children =
			taskId === undefined || this.#childGone
				? undefined
				: ([
						this.#taskIds.indexOf(taskId),
						Number(paras.sub_device_count),
					] as const);
		if (type === "version_query")
			return { kind: "version_query", module, children };
		const [form] = type.split("_");
		return {
			kind: "notice",
			form: form as Part,
			module,
			package: this.#bench.packageOfFile.get(String(paras.file_name)) ?? "",
			children,
		};
	}

	async #compareVersions(device: ModelDevice): Promise<void> {
		if (!device.exists || !this.#spoke.has(device)) return;
		const { fw_version, sw_version, modules } = await this.#api.getDevice(
			this.#devices.get(device.name)?.id ?? "",
		);
		const seen = {
			firmware: fw_version,
			software: sw_version,
			module: modules.find(({ module_name }) => module_name === MODULE)
				?.module_version,
		};
		const { firmware, software, module } = device.versions;
		assert.deepEqual(
			seen,
			{ firmware, software, module },
			`versions of ${device.name}`,
		);
	}

	/** Leaves nothing behind that could fall due in the next sequence. */
	async leave(): Promise<void> {
		for (const { link } of this.#devices.values()) link?.destroy();
		await Promise.all(
			this.#model.tasks
				.filter((task) => !isFinished(task) || this.#model.orderIsOpen)
				.map((task) => this.#api.stopTask(this.#idOf(task)).catch(() => {})),
		);
		for (const { link } of this.#devices.values()) await link?.closed;
		await this.#bench.quiet();
	}
}

/** What must be seen of the task. */
function expectedOf({ status, described, subtasks }: ModelTask) {
	const count = (counted: SubtaskStatus) =>
		subtasks.filter((subtask) => subtask.status === counted).length;
	return {
		status,
		described,
		subtasks: subtasks
			.map(({ target, status, progress, output, failure }) => {
				const said =
					status === "Processing" && progress !== undefined
						? `${progress}%`
						: output;
				return {
					target,
					status,
					...(said === undefined ? {} : { output: said }),
					...(failure && {
						error: { error_code: failure[0], error_msg: failure[1] },
					}),
				};
			})
			.sort(byTarget),
		progress: {
			total: subtasks.length,
			processing: count("Processing"),
			success: count("Success"),
			fail: count("Fail"),
			waitting: count("Waitting"),
			fail_wait_retry: count("FailWaitRetry"),
			stopped: count("Stopped"),
			removed: count("Removed"),
		},
	};
}

/** Is in every task that names it, and in others where it is not. */
const stranger = {
	target: STRANGER,
	status: "Fail" as SubtaskStatus,
	attempt: 0,
};

/** The newest are picked by the smallest numbers. */
function picked<T>(
	{ n, any }: Pick,
	all: readonly T[],
	isWanted: (one: T) => unknown = () => true,
): T | undefined {
	const wanted = all.filter(isWanted);
	const some = any || wanted.length === 0 ? all : wanted;
	return some[some.length - 1 - (n % some.length)];
}

const byTarget = (a: { target: string }, b: { target: string }) =>
	a.target < b.target ? -1 : 1;

async function outcomeOf(
	call: () => Promise<Exclude<Outcome, string>>,
): Promise<Outcome> {
	try {
		return (await call()).sort(byTarget);
	} catch (error) {
		if (!(error instanceof ApiFailure)) throw error;
		if (error.code === "IOTDA.014970") return "unknown task";
		if (error.code === "IOTDA.014971") return "wrong status";
		throw error;
	}
}
