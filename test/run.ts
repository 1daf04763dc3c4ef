/**
 * Runs the tests: `node test/run.ts [file…] [--name PATTERN]`.
 *
 * Starts one PostgreSQL cluster for the whole run from the binaries of an npm
 * package, unless OTARU_TEST_DATABASE_URL names a server whose user may create
 * databases; every test server gets a fresh database in it.
 */
import { globSync } from "node:fs";
import { join } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { parseArgs } from "node:util";
import { startPostgres } from "./support/postgres.ts";

const { positionals, values } = parseArgs({
	allowPositionals: true,
	options: { name: { type: "string" } },
});
const root = join(import.meta.dirname, "..");
const files =
	positionals.length > 0
		? positionals
		: globSync("test/*.test.ts", { cwd: root }).sort();

const postgres = process.env.OTARU_TEST_DATABASE_URL
	? undefined
	: await startPostgres();
if (postgres) process.env.OTARU_TEST_DATABASE_URL = postgres.url;

const stream = run({
	files: files.map((file) => join(root, file)),
	concurrency: 2,
	timeout: 600_000,
	...(values.name ? { testNamePatterns: [values.name] } : {}),
});
stream.on("test:fail", () => {
	process.exitCode = 1;
});
stream.compose(new spec()).pipe(process.stdout);
stream.on("end", () => void postgres?.stop());
for (const signal of ["SIGINT", "SIGTERM"] as const) {
	process.on(signal, () => {
		void postgres?.stop().then(() => process.exit(1));
	});
}
