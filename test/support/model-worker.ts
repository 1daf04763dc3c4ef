/**
 * Lives through random sequences on one engine, in a thread of its own: the test runner
 * follows every promise that is made in its own thread, which takes a quarter of the time.
 */
import { parentPort, workerData } from "node:worker_threads";
import fc from "fast-check";
import { postgres, sqlite } from "./engines.ts";
import { sequence } from "./model-sequences.ts";
import { ModelServer } from "./model-world.ts";

export interface ModelRun {
	engine: "sqlite" | "postgres";
	sequences: number;
	/** Undefined: random. */
	seed: number | undefined;
	/** From a seed to one sequence; undefined: all of them. */
	path: string | undefined;
}

export interface ModelResult {
	/** What differed, how it came to that, and how to see it again. */
	failure: string | undefined;
	/** Sequences that ended early, because what followed was open. */
	cutShort: number;
}

async function run({
	engine,
	sequences,
	seed,
	path,
}: ModelRun): Promise<ModelResult> {
	await using server = await ModelServer.start(
		engine === "sqlite" ? sqlite : postgres,
	);
	let cutShort = 0;
	const details = await fc.check(
		fc.asyncProperty(sequence, async (steps) => {
			if (!(await server.play(steps))) cutShort++;
		}),
		{
			numRuns: sequences,
			...(seed === undefined ? {} : { seed }),
			...(path === undefined ? {} : { path }),
		},
	);
	if (!details.failed) return { failure: undefined, cutShort };
	const [steps = []] = details.counterexample ?? [];
	const failure = [
		details.errorInstance instanceof Error
			? details.errorInstance.message
			: String(details.errorInstance),
		`Sequence ${details.numRuns} failed; the shortest that does, after ${details.numShrinks} steps of shrinking:`,
		...steps.map((step) => JSON.stringify(step)),
		`Again: OTARU_TEST_SEED=${details.seed} OTARU_TEST_PATH=${details.counterexamplePath} node test/run.ts test/model.test.ts --name ${engine}`,
	].join("\n");
	return { failure, cutShort };
}

parentPort?.postMessage(await run(workerData as ModelRun));
