/** An import goes on where it was after the server was killed, and registers nothing twice. */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { randomStream } from "../simulator/random.ts";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import { until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { beginImport, importEnd, readRefusals } from "./support/imports.ts";
import { makeProduct } from "./support/seed.ts";
import { ServerProcess } from "./support/server-process.ts";

const DEVICES = 30_000;
const KILLS = 8;

forEachEngine((engine) => {
	test(`${DEVICES} devices are registered, each once, by a server killed ${KILLS} times`, async (t) => {
		const seed = Number(process.env.OTARU_TEST_SEED ?? randomInt(1, 1_000_000));
		t.diagnostic(`seed ${seed}: OTARU_TEST_SEED=${seed} repeats the moments`);
		const random = randomStream(seed, "kills");
		await using cleanup = new AsyncDisposableStack();
		const store = await engine.fresh();
		cleanup.defer(() => store.dispose());
		const { OTARU_DATA: dataDir, ...database } = store.env;
		const server = cleanup.use(
			await ServerProcess.start({ dataDir, env: database }),
		);
		const credentials = JSON.parse(
			readFileSync(join(dataDir, "credentials.json"), "utf8"),
		) as CredentialsFile;
		const api = new Client({
			endpoint: server.url,
			projectId: credentials.project_id,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		await makeProduct(api, { product_id: "p" });
		// A gateway, its children, and a wrong line now and then.
		const lines = Array.from({ length: DEVICES }, (_, n) =>
			n % 10 === 0 ? `n${n},p,` : `n${n},p,p_n${n - (n % 10)}`,
		);
		const bad: number[] = [];
		for (let n = 500; n < lines.length; n += 1_000) {
			lines.splice(n, 0, `"wrong,p,`);
			bad.push(n + 2);
		}
		const job = await beginImport(
			api,
			`node_id,product_id,gateway_id\n${lines.join("\n")}\n`,
		);
		let kills = 0;
		for (; kills < KILLS; kills++) {
			await pause(20 + random() * 200);
			if ((await api.getDeviceImport(job.import_id)).status !== "Processing")
				break;
			await server.kill();
			await server.start();
		}
		assert.ok(kills > 1, "it was over before it could be killed");
		const done = await importEnd(api, job);
		assert.deepEqual(
			[done.created, done.unchanged, done.refused, done.status],
			[DEVICES, 0, bad.length, "PartialSuccess"],
		);
		assert.equal(done.done_bytes, done.total_bytes);
		assert.deepEqual(
			(await readRefusals(api, job)).map(({ line }) => line),
			bad,
		);
		const { page } = await api.listDevices({ limit: 1 });
		assert.equal(page.count, DEVICES);
		const children = await api.listDevices({
			gateway_id: "p_n29990",
			limit: 1,
		});
		assert.equal(children.page.count, 9);
		await until(
			async () => readdirSync(join(dataDir, "imports")),
			(files) => files.length === 0,
		);
	});
});
