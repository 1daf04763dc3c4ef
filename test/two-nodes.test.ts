/**
 * Two servers on one PostgreSQL store: 2,000 devices behind a balancer, tasks created,
 * stopped and retried at random through either of them, and one of them killed again
 * and again.
 */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { Agent } from "node:https";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import pg from "pg";
import { registerDevices } from "../cli/registry.ts";
import {
	Connection,
	type DeviceIdentity,
	otaReport,
	type Surroundings,
} from "../simulator/connection.ts";
import { randomStream } from "../simulator/random.ts";
import { Client } from "../wire/client.ts";
import type { DeviceEvents, UpgradeParas } from "../wire/device-messages.ts";
import { Balancer } from "./support/balancer.ts";
import { postgres } from "./support/engines.ts";
import { makePackage, makeProduct, upload } from "./support/seed.ts";
import { ServerProcess } from "./support/server-process.ts";

const DEVICES = 2_000;
const TASKS = 14;
const DEVICES_PER_TASK = 500;
const KILLS = 8;

/** Reports what it is asked for, and installs what it is offered; no file is fetched. */
class Device implements AsyncDisposable {
	readonly deviceId: string;
	firmware = "v0";
	/** The connections so far. */
	connections = 0;
	/** Notices by connection and file: what must never be two. */
	readonly notices = new Map<string, number>();
	readonly #connection: Connection;
	readonly #random: () => number;
	#timer: NodeJS.Timeout | undefined;

	constructor(
		identity: DeviceIdentity,
		surroundings: Surroundings,
		random: () => number,
	) {
		this.deviceId = identity.deviceId;
		this.#random = random;
		this.#connection = new Connection({
			identity,
			surroundings,
			random,
			onMessage: (payload) => this.#hear(payload),
			onEvent: ({ kind }) => {
				if (kind === "connected") this.connections++;
			},
		});
		this.#connection.connectIn(random() * 3_000);
	}

	#hear(payload: Buffer): void {
		const { services } = JSON.parse(payload.toString()) as DeviceEvents;
		for (const { event_type, paras } of services) {
			if (event_type === "version_query")
				this.#say("version_report", {
					fw_version: this.firmware,
					sw_version: "1",
				});
			else this.#install(paras as unknown as UpgradeParas);
		}
	}

	#install({ url, version }: UpgradeParas): void {
		const offer = `${this.connections} ${new URL(url).pathname}`;
		this.notices.set(offer, (this.notices.get(offer) ?? 0) + 1);
		clearTimeout(this.#timer);
		const fate = this.#random();
		this.#timer = setTimeout(() => {
			if (fate < 0.1) {
				this.#progress(10, 100, this.firmware);
				return;
			}
			this.#progress(0, 50, this.firmware);
			this.#timer = setTimeout(
				() => {
					this.firmware = version;
					// Some tell nothing and come back with the new version instead.
					if (fate < 0.3) this.#connection.lose();
					else this.#progress(0, 100, version);
				},
				100 + this.#random() * 1_500,
			);
		}, this.#random() * 300);
	}

	#progress(result_code: number, progress: number, version: string): void {
		this.#say("upgrade_progress_report", { result_code, progress, version });
	}

	#say(eventType: string, paras: object): void {
		this.#connection.say(
			`${eventType} ${JSON.stringify(paras)}`,
			otaReport(this.deviceId, eventType, paras),
		);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		clearTimeout(this.#timer);
		await this.#connection[Symbol.asyncDispose]();
	}
}

test(`two servers on one store, killed ${KILLS} times, forget no device and tell none twice`, async (t) => {
	const seed = Number(process.env.OTARU_TEST_SEED ?? randomInt(1, 1_000_000));
	t.diagnostic(`seed ${seed}: OTARU_TEST_SEED=${seed} repeats the choices`);
	const random = randomStream(seed, "nodes");
	const chance = <T>(items: readonly T[]): T =>
		items[Math.floor(random() * items.length)] as T;

	await using cleanup = new AsyncDisposableStack();
	const store = await postgres.fresh();
	cleanup.defer(() => store.dispose());
	const { OTARU_DATA: firstData, OTARU_DATABASE_URL = "" } = store.env;
	const env = {
		OTARU_DATABASE_URL,
		OTARU_ARTIFACTS: join(firstData, "artifacts"),
		OTARU_MASTER_KEY: "0f".repeat(32),
		OTARU_RESEND_INTERVAL_SECONDS: "1",
		OTARU_CONNECT_PAUSE_MS: "50",
		OTARU_DATABASE_CONNECTIONS: "8",
	};
	const first = cleanup.use(
		await ServerProcess.start({ dataDir: firstData, env }),
	);
	const secondData = mkdtempSync(join(tmpdir(), "otaru-test-"));
	cleanup.defer(() => rmSync(secondData, { recursive: true, force: true }));
	const second = cleanup.use(
		await ServerProcess.start({ dataDir: secondData, env }),
	);
	const nodes = [first, second];
	const credentials = JSON.parse(
		readFileSync(join(firstData, "credentials.json"), "utf8"),
	);
	const clients = nodes.map(
		({ url }) =>
			new Client({
				endpoint: url,
				projectId: credentials.project_id,
				credentials: {
					accessKey: credentials.access_key,
					secretKey: credentials.secret_key,
				},
			}),
	);
	const api = clients[0] as Client;
	/** Through either of them; one that is down lets the other answer. */
	const anyhow = async <T>(
		call: (client: Client) => Promise<T>,
	): Promise<T> => {
		for (let attempt = 1; ; attempt++) {
			try {
				return await call(chance(clients));
			} catch (error) {
				if (attempt >= 100 || !isUnreachable(error)) throw error;
				await pause(100);
			}
		}
	};

	const product = await makeProduct(api);
	const location = await upload(api, "fw.bin", Buffer.alloc(1_000, 7));
	const packages = await Promise.all(
		Array.from({ length: TASKS }, (_, index) =>
			makePackage(api, product, {
				version: `v${index + 1}`,
				file_location: location,
			}),
		),
	);
	const identities = await registerDevices(
		api,
		{ appId: product.app_id, productId: product.product_id },
		{ count: DEVICES, prefix: "node" },
	);
	const balancer = cleanup.use(
		await Balancer.open(
			nodes.map(({ ports }) => ports.mqtt),
			random,
		),
	);
	const surroundings: Surroundings = {
		broker: {
			protocol: "mqtt",
			host: "127.0.0.1",
			port: balancer.port,
			protocolVersion: 4,
		},
		agent: new Agent(),
		seed,
		backoffMs: { min: 100, max: 1_000 },
		installMs: 100,
	};
	const devices = identities.map(
		(identity) =>
			new Device(identity, surroundings, randomStream(seed, identity.deviceId)),
	);
	cleanup.defer(async () => {
		await Promise.all(devices.map((device) => device[Symbol.asyncDispose]()));
	});
	while (devices.filter(({ connections }) => connections > 0).length < DEVICES)
		await pause(50);

	const taskIds: string[] = [];
	const stopped = new Set<string>();
	/** Of these a device is rightly told again. */
	const retried = new Set<string>();
	const create = async () => {
		const chosen = new Set<string>();
		while (chosen.size < DEVICES_PER_TASK)
			chosen.add(chance(identities).deviceId);
		const { package_id } = packages[taskIds.length] as { package_id: string };
		const { task_id } = await anyhow((client) =>
			client.createTask({
				task_name: `task_${taskIds.length}`,
				task_type: "firmwareUpgrade",
				targets: [...chosen],
				document: { package_ids: [package_id] },
			}),
		);
		taskIds.push(task_id);
	};
	const meddle = async () => {
		if (taskIds.length === 0) return;
		const taskId = chance(taskIds);
		const choice = random();
		try {
			if (choice < 0.4) {
				const { task_details } = await anyhow((client) =>
					client.getTask(taskId, { limit: 50 }),
				);
				const targets = task_details.map(({ target }) => target);
				await anyhow((client) => client.stopTask(taskId, { targets }));
			} else if (choice < 0.7) {
				if (taskIds.indexOf(taskId) % 3 !== 0) return;
				retried.add(taskId);
				await anyhow((client) => client.retryTask(taskId));
			} else if (stopped.size < TASKS / 4) {
				await anyhow((client) => client.stopTask(taskId));
				stopped.add(taskId);
			}
		} catch (error) {
			// The task may have ended meanwhile, or a killed server may have done it already.
			if (!isRefusal(error)) throw error;
		}
	};

	for (let kill = 0; kill < KILLS; kill++) {
		const victim = nodes[kill % 2] as ServerProcess;
		for (let step = 0; step < 2 && taskIds.length < TASKS; step++) {
			await create();
			await pause(random() * 500);
			await meddle();
		}
		await pause(random() * 1_000);
		await victim.kill();
		await pause(random() * 500);
		await meddle();
		await victim.start();
	}
	while (taskIds.length < TASKS) await create();

	const deadlineMs = Date.now() + 90_000;
	for (const taskId of taskIds) {
		for (;;) {
			const { batchtask } = await api.getTask(taskId, { limit: 1 });
			if (/^(Success|Fail|PartialSuccess|Stopped)$/.test(batchtask.status))
				break;
			assert.ok(
				Date.now() < deadlineMs,
				`${taskId} goes on for ever: ${JSON.stringify(batchtask.task_progress)}`,
			);
			await pause(100);
		}
	}

	for (const device of devices)
		for (const [offer, count] of device.notices)
			if (![...retried].some((taskId) => offer.includes(taskId)))
				assert.equal(count, 1, `${device.deviceId} was told twice: ${offer}`);

	const store_ = new pg.Client({ connectionString: OTARU_DATABASE_URL });
	await store_.connect();
	cleanup.defer(() => store_.end());
	const counted = await store_.query(`
		select t.task_id, t.total, t.waitting, t.processing, t.success, t.fail, t.fail_wait_retry, t.stopped, t.removed,
			count(*)::int as rows,
			count(*) filter (where s.status = 'Success')::int as successes,
			count(*) filter (where s.status = 'Fail')::int as fails,
			count(*) filter (where s.status = 'Stopped')::int as stops,
			count(*) filter (where s.status in ('Waitting', 'Processing', 'FailWaitRetry'))::int as unfinished
		from upgrade_tasks t join subtasks s on s.task_id = t.task_id group by t.task_id`);
	assert.equal(counted.rows.length, TASKS);
	for (const row of counted.rows) {
		assert.deepEqual(
			{
				total: row.total,
				success: row.success,
				fail: row.fail,
				stopped: row.stopped,
				unfinished: row.waitting + row.processing + row.fail_wait_retry,
				removed: row.removed,
			},
			{
				total: row.rows,
				success: row.successes,
				fail: row.fails,
				stopped: row.stops,
				unfinished: row.unfinished,
				removed: 0,
			},
			`the counters of ${row.task_id} are not its rows`,
		);
		assert.equal(row.rows, DEVICES_PER_TASK);
		assert.equal(row.unfinished, 0);
	}
	// A device that was forgotten would have run into a time limit.
	const reasons = await store_.query(
		"select error_msg, count(*)::int as count from subtasks where status = 'Fail' group by error_msg order by error_msg",
	);
	t.diagnostic(JSON.stringify(reasons.rows));
	assert.deepEqual(
		reasons.rows
			.map(({ error_msg }) => String(error_msg))
			.filter(
				(text) => text !== "Firmware update failed" && text !== "Task Conflict",
			),
		[],
	);
	const successes = counted.rows.reduce((sum, row) => sum + row.success, 0);
	assert.ok(successes > DEVICES, `only ${successes} upgrades succeeded`);
	for (const node of nodes) assert.equal(await node.stop(), 0, node.stderr);
});

function isUnreachable(error: unknown): boolean {
	return error instanceof TypeError || /fetch failed/.test(String(error));
}

function isRefusal(error: unknown): boolean {
	return error instanceof Error && "status" in error && error.status === 403;
}
