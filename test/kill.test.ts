/**
 * A server that dies at any moment goes on where it was: 500 devices are being upgraded
 * while the server is killed and started again, twenty times.
 */
import assert from "node:assert/strict";
import { randomBytes, randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import pg from "pg";
import { registerDevices } from "../cli/registry.ts";
import { parseFault } from "../simulator/faults.ts";
import { Fleet } from "../simulator/fleet.ts";
import { randomStream } from "../simulator/random.ts";
import { Client } from "../wire/client.ts";
import type { Task } from "../wire/tasks.ts";
import { type FreshStore, forEachEngine } from "./support/engines.ts";
import {
	makeModule,
	makePackage,
	makeProduct,
	upload,
} from "./support/seed.ts";
import { ServerProcess } from "./support/server-process.ts";

const DEVICES = 500;
const KILLS = 20;
const PACKAGE_BYTES = 128 * 1024;

forEachEngine((engine) => {
	test(`${DEVICES} devices are upgraded, each once, by a server killed ${KILLS} times`, async (t) => {
		const seed = Number(process.env.OTARU_TEST_SEED ?? randomInt(1, 1_000_000));
		t.diagnostic(`seed ${seed}: OTARU_TEST_SEED=${seed} repeats the moments`);
		const random = randomStream(seed, "kills");

		await using cleanup = new AsyncDisposableStack();
		const store = await engine.fresh();
		cleanup.defer(() => store.dispose());
		const { OTARU_DATA: dataDir, ...database } = store.env;
		const server = cleanup.use(
			await ServerProcess.start({
				dataDir,
				env: { ...database, OTARU_RESEND_INTERVAL_SECONDS: "1" },
			}),
		);
		const credentials = JSON.parse(
			readFileSync(join(dataDir, "credentials.json"), "utf8"),
		);
		const api = new Client({
			endpoint: server.url,
			projectId: credentials.project_id,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		// Also for the devices that first connect after the task was created.
		await api.updateProductOtaProfile(product.product_id, {
			module_form: "native",
		});
		const { package_id } = await makePackage(api, product, {
			package_type: "modulePackage",
			module_name: "MCU",
			version: "2.0.0",
			file_location: await upload(api, "mcu.bin", randomBytes(PACKAGE_BYTES)),
		});
		const identities = await registerDevices(
			api,
			{ appId: product.app_id, productId: product.product_id },
			{ count: DEVICES, prefix: "kill" },
		);

		// Slow, late and rebooting ones, so that every kill finds devices in every phase.
		const { mqtt, mqtts } = server.ports;
		const fleet = cleanup.use(
			new Fleet({
				members: identities.map((identity, index) => ({
					identity,
					versions: { firmware: "1", software: "1", modules: { MCU: "1.0.0" } },
					brokerUrl:
						index % 10 === 0
							? `mqtts://127.0.0.1:${mqtts}`
							: `mqtt://127.0.0.1:${mqtt}`,
				})),
				ca: readFileSync(credentials.ca_file, "utf8"),
				faults: [
					"slow:12=0.3",
					"slow:6=0.2",
					"drop=0.1",
					"reboot:3=0.2",
					"offline:4=0.1",
					"offline:10=0.1",
					"offline:18=0.1",
				].map(parseFault),
				seed,
				backoffMs: { min: 100, max: 1000 },
				connectsPerSecond: 1000,
			}),
		);
		fleet.start();
		while (fleet.counts.connected < DEVICES * 0.6) await pause(50);

		const { task_id } = await api.createTask({
			task_name: "under_fire",
			task_type: "moduleUpgrade",
			targets: identities.map(({ deviceId }) => deviceId),
			document: { package_ids: [package_id] },
		});
		const killedAt: string[] = [];
		for (let kill = 1; kill <= KILLS; kill++) {
			// The first moments find the task still being laid out.
			await pause(random() * (kill <= 3 ? 40 : 1000));
			await server.kill();
			killedAt.push(`${fleet.counts.downloads}/${fleet.counts.installs}`);
			await pause(random() * 300);
			await server.start();
		}
		t.diagnostic(
			`downloads/installations at each kill: ${killedAt.join(" ")}; ${fleet.counts.interruptions} downloads resumed`,
		);
		assert.ok(
			killedAt.some((text) => {
				const installs = Number(text.split("/")[1]);
				return installs > 0 && installs < DEVICES;
			}),
			"no kill came in the middle of the upgrade",
		);

		const task = await untilOver(api, task_id, 90_000);
		assert.equal(task.status, "Success", await failuresOf(api, task_id));
		assert.deepEqual(task.task_progress, {
			total: DEVICES,
			success: DEVICES,
			processing: 0,
			fail: 0,
			waitting: 0,
			fail_wait_retry: 0,
			stopped: 0,
			removed: 0,
		});
		const target = { kind: "module", moduleName: "MCU" } as const;
		for (const device of fleet.devices) {
			assert.equal(device.version(target), "2.0.0", device.deviceId);
			assert.equal(device.installs, 1, `${device.deviceId} installed again`);
			const { modules } = await api.getDevice(device.deviceId);
			assert.deepEqual(modules, [
				{ module_name: "MCU", module_version: "2.0.0" },
			]);
		}

		assert.equal(await server.stop(), 0, server.stderr);
		const rows = await readStore(store);
		assert.deepEqual(rows.subtasks, [{ status: "Success", count: DEVICES }]);
		assert.deepEqual(rows.counters, {
			total: DEVICES,
			waitting: 0,
			processing: 0,
			success: DEVICES,
			fail: 0,
			fail_wait_retry: 0,
			stopped: 0,
			removed: 0,
		});
		assert.equal(rows.integrity, "ok");
	});
});

async function untilOver(
	api: Client,
	taskId: string,
	timeoutMs: number,
): Promise<Task> {
	const deadlineMs = Date.now() + timeoutMs;
	for (;;) {
		const { batchtask } = await api.getTask(taskId, { limit: 1 });
		const { waitting, processing, fail_wait_retry } = batchtask.task_progress;
		const open = waitting + processing + fail_wait_retry;
		const over = !["Initializing", "Waitting", "Processing"].includes(
			batchtask.status,
		);
		if ((over && open === 0) || Date.now() > deadlineMs) return batchtask;
		await pause(200);
	}
}

/** What the first failed subtasks say, for the person who reads the test's output. */
async function failuresOf(api: Client, taskId: string): Promise<string> {
	const { batchtask, task_details } = await api.getTask(taskId, {
		task_detail_status: "Fail",
		limit: 50,
	});
	const texts = new Set(task_details.map(({ error }) => error?.error_msg));
	return JSON.stringify([batchtask.task_progress, ...texts]);
}

const counterColumns =
	"total, waitting, processing, success, fail, fail_wait_retry, stopped, removed";
const subtaskCounts =
	"select status, count(*) as count from subtasks group by status order by status";

/** What the store itself says, without the server. */
async function readStore({ env }: FreshStore): Promise<{
	subtasks: unknown[];
	counters: unknown;
	integrity: unknown;
}> {
	const counters = `select ${counterColumns} from upgrade_tasks`;
	if (env.OTARU_DATABASE_URL === undefined) {
		using database = new DatabaseSync(join(env.OTARU_DATA, "otaru.db"), {
			readOnly: true,
		});
		return {
			subtasks: database.prepare(subtaskCounts).all().map(plain),
			counters: plain(database.prepare(counters).get()),
			integrity: database.prepare("pragma integrity_check").get()
				?.integrity_check,
		};
	}
	const client = new pg.Client({ connectionString: env.OTARU_DATABASE_URL });
	await client.connect();
	try {
		const subtasks = await client.query(subtaskCounts);
		return {
			subtasks: subtasks.rows.map(({ status, count }) => ({
				status,
				count: Number(count),
			})),
			counters: (await client.query(counters)).rows[0],
			// PostgreSQL keeps its own files whole; nothing of ours writes them.
			integrity: "ok",
		};
	} finally {
		await client.end();
	}
}

function plain(row: unknown): unknown {
	return { ...(row as object) };
}
