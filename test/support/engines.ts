/** The store's engines: a test that says `forEachEngine` runs on every one. */
import { randomBytes } from "node:crypto";
import { rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe } from "node:test";
import pg from "pg";

export interface Engine {
	name: "sqlite" | "postgres";
	/** An empty store of its own and a data directory; both are gone after `dispose`. */
	fresh(): Promise<FreshStore>;
}

export interface FreshStore {
	/** Settings that point a server at it. */
	env: { OTARU_DATA: string; OTARU_DATABASE_URL?: string };
	dispose(): Promise<void>;
}

async function freshDirectory(): Promise<string> {
	return mkdtemp(join(tmpdir(), "otaru-test-"));
}

export const sqlite: Engine = {
	name: "sqlite",
	async fresh() {
		const directory = await freshDirectory();
		return {
			env: { OTARU_DATA: directory },
			dispose: async () => rmSync(directory, { recursive: true, force: true }),
		};
	},
};

export const postgres: Engine = {
	name: "postgres",
	async fresh() {
		const directory = await freshDirectory();
		const name = `otaru_test_${randomBytes(6).toString("hex")}`;
		await administer(`create database ${name}`);
		const url = new URL(clusterUrl());
		url.pathname = `/${name}`;
		return {
			env: { OTARU_DATA: directory, OTARU_DATABASE_URL: url.href },
			async dispose() {
				await administer(`drop database if exists ${name} with (force)`);
				rmSync(directory, { recursive: true, force: true });
			},
		};
	},
};

export function forEachEngine(define: (engine: Engine) => void): void {
	for (const engine of [sqlite, postgres])
		describe(engine.name, () => define(engine));
}

async function administer(statement: string): Promise<void> {
	const client = new pg.Client({ connectionString: clusterUrl() });
	await client.connect();
	try {
		await client.query(statement);
	} finally {
		await client.end();
	}
}

function clusterUrl(): string {
	const url = process.env.OTARU_TEST_DATABASE_URL;
	if (!url) {
		throw new Error(
			"No PostgreSQL: run the tests with `npm test` or `node test/run.ts FILE`, or set OTARU_TEST_DATABASE_URL.",
		);
	}
	return url;
}
