/**
 * Random sequences of everything that can happen to upgrade tasks, lived through by the
 * server and by the small model in support/model.ts: they must agree on all that can be
 * seen, after every step.
 *
 * A failure prints the seed, the shortest sequence that was found to fail, and how to run
 * it again. OTARU_TEST_SEQUENCES says how many sequences there are, OTARU_TEST_SEED which.
 */
import assert from "node:assert/strict";
import { once } from "node:events";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import type { ModelResult, ModelRun } from "./support/model-worker.ts";

const total = Number(process.env.OTARU_TEST_SEQUENCES ?? 2_000);
const seed = process.env.OTARU_TEST_SEED;
const path = process.env.OTARU_TEST_PATH;

function sequencesAgree(engine: ModelRun["engine"], sequences: number): void {
	describe(engine, () => {
		test(`whatever happens in ${sequences} sequences, the server does what the model says`, async (context) => {
			const worker = new Worker(
				new URL("support/model-worker.ts", import.meta.url),
				{
					workerData: {
						engine,
						sequences,
						seed: seed === undefined ? undefined : Number(seed),
						path,
					} satisfies ModelRun,
				},
			);
			const [result] = (await Promise.race([
				once(worker, "message"),
				once(worker, "exit"),
			])) as [ModelResult | number];
			assert.ok(typeof result === "object", `the thread ended with ${result}`);
			const { failure, cutShort } = result;
			await worker.terminate();
			if (cutShort > 0)
				context.diagnostic(
					`${cutShort} sequences ended early: two upgrades of a device were due in one instant`,
				);
			assert.ok(failure === undefined, failure);
		});
	});
}

describe("upgrade tasks", { concurrency: true }, () => {
	sequencesAgree("sqlite", Math.ceil(total * 0.75));
	sequencesAgree("postgres", Math.floor(total * 0.25));
});
