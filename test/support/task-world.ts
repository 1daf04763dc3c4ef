/** A product with a firmware package and devices, and what tests of tasks do with them. */
import assert from "node:assert/strict";
import type { Client } from "../../wire/client.ts";
import type { Device } from "../../wire/devices.ts";
import type { Product } from "../../wire/products.ts";
import type {
	CreateTask,
	Task,
	TaskDetail,
	TaskWithDetails,
} from "../../wire/tasks.ts";
import { ScriptedDevice, until } from "./device.ts";
import { makeDevice, makePackage, makeProduct } from "./seed.ts";
import type { TestServer } from "./server.ts";

/** What the packages of these worlds bring. */
export const TARGET_VERSION = "v2";

export interface TaskWorld {
	api: Client;
	product: Product;
	packageId: string;
	/** As they were registered, their secrets included. */
	devices: Device[];
	deviceIds: string[];
	/** A firmware task on all devices, or what `fields` say. */
	start(fields?: Partial<CreateTask>): Promise<Task>;
	connect(index: number): Promise<ScriptedDevice>;
}

/** @param appId the space; undefined: the default one */
export async function makeTaskWorld(
	server: TestServer,
	deviceCount: number,
	appId?: string,
): Promise<TaskWorld> {
	const { api } = server;
	const product = await makeProduct(api, appId ? { app_id: appId } : {});
	const { package_id: packageId } = await makePackage(api, product, {
		version: TARGET_VERSION,
	});
	const devices = await Promise.all(
		Array.from({ length: deviceCount }, () => makeDevice(api, product)),
	);
	const deviceIds = devices.map(({ device_id }) => device_id);
	return {
		api,
		product,
		packageId,
		devices,
		deviceIds,
		start: (fields = {}) =>
			api.createTask({
				...(appId ? { app_id: appId } : {}),
				task_name: "upgrade",
				task_type: "firmwareUpgrade",
				...(fields.targets_filter ? {} : { targets: deviceIds }),
				document: { package_ids: [packageId] },
				...fields,
			}),
		connect(index) {
			const device = devices[index];
			assert.ok(device);
			return ScriptedDevice.connect(server, device);
		},
	};
}

/** Many devices in one go, in the order of their ids; they do not sign in. */
export async function importDevices(
	api: Client,
	product: Product,
	count: number,
	more: (index: number) => Record<string, unknown> = () => ({}),
): Promise<string[]> {
	const nodes = Array.from({ length: count }, (_, index) =>
		String(index).padStart(6, "0"),
	);
	const lines = nodes.map((node_id, index) =>
		JSON.stringify({ node_id, product_id: product.product_id, ...more(index) }),
	);
	const { import_id } = await api.importDevices(lines.join("\n"), {
		format: "ndjson",
		appId: product.app_id,
	});
	const { status, created } = await until(
		() => api.getDeviceImport(import_id),
		({ status }) => status !== "Processing",
		60_000,
	);
	assert.deepEqual({ status, created }, { status: "Success", created: count });
	return nodes.map((node) => `${product.product_id}_${node}`);
}

/**
 * Rings for the rollout, which then looks at once at what is due, where it would have
 * within the second. The bell is a task that waits to be confirmed for ever.
 */
export async function makeBell(
	server: TestServer,
): Promise<() => Promise<void>> {
	const w = await makeTaskWorld(server, 1);
	const { task_id } = await w.start({ need_confirm: true });
	return async () => {
		await w.api.confirmTask(task_id, { targets: ["nobody"] });
	};
}

/** The task as soon as it has this status. */
export function taskWhen(
	api: Client,
	taskId: string,
	status: string,
	timeoutMs?: number,
): Promise<TaskWithDetails> {
	return until(
		() => api.getTask(taskId),
		({ batchtask }) => batchtask.status === status,
		timeoutMs,
	);
}

type Counter = Exclude<keyof Task["task_progress"], "total">;

/** All counters of a task: those not given are 0, and their sum is the total. */
export function counters(
	given: Partial<Record<Counter, number>>,
): Task["task_progress"] {
	const total = Object.values(given).reduce((sum, count) => sum + count, 0);
	return {
		total,
		processing: 0,
		success: 0,
		fail: 0,
		waitting: 0,
		fail_wait_retry: 0,
		stopped: 0,
		removed: 0,
		...given,
	};
}

/** The task as soon as its counters are these. */
export function countersWhen(
	api: Client,
	taskId: string,
	given: Partial<Record<Counter, number>>,
	timeoutMs?: number,
): Promise<TaskWithDetails> {
	const wanted = JSON.stringify(counters(given));
	return until(
		() => api.getTask(taskId),
		({ batchtask }) => JSON.stringify(batchtask.task_progress) === wanted,
		timeoutMs,
	);
}

/** The one subtask that `detailOf` names; fails when the task has none for this device. */
export async function detailOf(
	api: Client,
	taskId: string,
	deviceId: string,
): Promise<TaskDetail> {
	const { task_details } = await api.getTask(taskId, { target: deviceId });
	const [detail, ...others] = task_details;
	assert.ok(detail, `the task has no subtask for ${deviceId}`);
	assert.deepEqual(others, []);
	return detail;
}

/** The subtask of the device as soon as it has this status. */
export async function detailWhen(
	api: Client,
	taskId: string,
	deviceId: string,
	status: string,
): Promise<TaskDetail> {
	const { task_details } = await until(
		() => api.getTask(taskId, { target: deviceId }),
		({ task_details }) => task_details[0]?.status === status,
	);
	const [detail] = task_details;
	assert.ok(detail);
	return detail;
}

/** Asked for its version, the device has the new one: its subtask is a success. */
export async function succeed(device: ScriptedDevice): Promise<void> {
	await device.next("version_query");
	await device.reportFirmware(TARGET_VERSION);
}

/** Takes the notice, and fails to install it. @returns what the notice said */
export async function failInstalling(
	device: ScriptedDevice,
): Promise<Record<string, unknown>> {
	await device.next("version_query");
	await device.reportFirmware("v1");
	const { paras } = await device.next("firmware_upgrade_v2");
	await device.report(10, "v1");
	return paras;
}

/** What a result for each target says when the operation was carried out on all of them. */
export function allDone(targets: readonly string[]) {
	return targets.map((target) => ({ target, status: "success" }));
}

/** The result for a target whose status, or absence, does not allow the operation. */
export function notDone(target: string) {
	return {
		target,
		status: "failure",
		error_code: "IOTDA.014219",
		error_msg:
			"Invalid input. The target cannot be operated in its current status.",
	};
}
