import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import {
	existsSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	statSync,
	writeFileSync,
} from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { hostname, tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { connect } from "node:tls";
import { openDeviceCertificate, serverNames } from "../server/certificates.ts";
import { ConfigError, readConfig } from "../server/config.ts";
import { sealedUnder } from "../server/secrets/sealed.ts";
import { type Server, startServer } from "../server/server.ts";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import { type Engine, forEachEngine, postgres } from "./support/engines.ts";
import { freePorts } from "./support/server-process.ts";

const settings = {
	OTARU_HTTP_PORT: "0",
	OTARU_MQTT_PORT: "0",
	OTARU_MQTTS_PORT: "0",
	OTARU_DEVICE_PORT: "0",
	OTARU_DEVICE_HOST: "127.0.0.1",
	OTARU_DEVICE_PUBLIC_HOST: "127.0.0.1",
	OTARU_DATABASE_CONNECTIONS: "4",
	OTARU_LOG_LEVEL: "silent",
};
const KEYS = [
	"endpoint",
	"device_endpoint",
	"mqtt_endpoint",
	"mqtts_endpoint",
	"ca_file",
	"domain_name",
	"user_name",
	"password",
	"access_key",
	"secret_key",
	"project_id",
	"project_name",
	"app_id",
];

type Env = Record<string, string>;

const start = (env: Env) => startServer(readConfig({ ...settings, ...env }));
const fileIn = (directory: string) => join(directory, "credentials.json");
const modeOf = (file: string) => (statSync(file).mode & 0o777).toString(8);
function readFileOf(directory: string): CredentialsFile {
	return JSON.parse(readFileSync(fileIn(directory), "utf8"));
}
function clientOf(file: CredentialsFile): Client {
	return new Client({
		endpoint: file.endpoint,
		projectId: file.project_id,
		credentials: { accessKey: file.access_key, secretKey: file.secret_key },
	});
}
async function withStore(
	engine: Engine,
	work: (env: Env & { OTARU_DATA: string }) => Promise<void>,
): Promise<void> {
	const fresh = await engine.fresh();
	try {
		await work(fresh.env);
	} finally {
		await fresh.dispose();
	}
}
async function counts({ db }: Server) {
	const count = async (
		table:
			| "accounts"
			| "users"
			| "access_keys"
			| "projects"
			| "resource_spaces",
	) => (await db.selectFrom(table).selectAll().execute()).length;
	return [
		await count("accounts"),
		await count("users"),
		await count("access_keys"),
		await count("projects"),
		await count("resource_spaces"),
	];
}

forEachEngine((engine) => {
	test("the first start sets an empty store up and says how to sign in, in a file for its owner alone", () =>
		withStore(engine, async (env) => {
			await using server = await start({ ...env, OTARU_REGIONS: "east,west" });
			assert.deepEqual(await counts(server), [1, 1, 1, 1, 1]);
			const file = readFileOf(env.OTARU_DATA);
			assert.deepEqual(Object.keys(file), KEYS);
			const { ports } = server;
			assert.equal(file.endpoint, `http://127.0.0.1:${ports.http}`);
			assert.equal(file.device_endpoint, `https://127.0.0.1:${ports.device}`);
			assert.equal(file.mqtt_endpoint, `mqtt://127.0.0.1:${ports.mqtt}`);
			assert.equal(file.mqtts_endpoint, `mqtts://127.0.0.1:${ports.mqtts}`);
			assert.equal(file.ca_file, join(env.OTARU_DATA, "tls", "ca.pem"));
			assert.equal(file.project_name, "east");
			assert.match(file.access_key, /^[A-Z0-9]{20}$/);
			assert.match(file.secret_key, /^[A-Za-z0-9]{40}$/);
			assert.match(file.password, /^[A-Za-z0-9]{24}$/);
			for (const name of [
				"credentials.json",
				"master.key",
				"tls/ca.key",
				"tls/server.key",
			])
				assert.equal(modeOf(join(env.OTARU_DATA, name)), "600", name);

			const { applications } = await clientOf(file).listResourceSpaces();
			assert.deepEqual(
				applications.map((space) => [space.app_id, space.default_app]),
				[[file.app_id, true]],
			);
			// SDKs look the project up by the region they were given.
			for (const [name, ids] of [
				["east", [file.project_id]],
				["west", [file.project_id]],
				["north", []],
			] as const) {
				const { projects } = await clientOf(file).listProjects({ name });
				assert.deepEqual(
					projects.map(({ id }) => id),
					ids,
					name,
				);
			}
			const { token } = await clientOf(file).signIn({
				domainName: file.domain_name,
				userName: file.user_name,
				password: file.password,
			});
			assert.ok(token);
			const said = server.greeting.join("\n");
			for (const shown of [
				file.endpoint,
				file.project_id,
				file.user_name,
				fileIn(env.OTARU_DATA),
			])
				assert.ok(said.includes(shown), `"${said}" does not say ${shown}`);
			for (const secret of [file.password, file.secret_key, file.access_key])
				assert.equal(said.includes(secret), false);
		}));

	test("a later start changes nothing but the addresses, and only when they changed", () =>
		withStore(engine, async (env) => {
			let first: CredentialsFile;
			{
				await using server = await start(env);
				first = readFileOf(env.OTARU_DATA);
				assert.ok(server);
			}
			const [http = 0, mqtts = 0] = await freePorts(2);
			const fixed = {
				...env,
				OTARU_HTTP_PORT: String(http),
				OTARU_MQTTS_PORT: String(mqtts),
				OTARU_MQTT_PORT: "off",
				OTARU_DEVICE_PUBLIC_HOST: "localhost",
			};
			let changed: CredentialsFile;
			{
				await using server = await start(fixed);
				assert.deepEqual(await counts(server), [1, 1, 1, 1, 1]);
				changed = readFileOf(env.OTARU_DATA);
				assert.deepEqual(changed, {
					...first,
					endpoint: `http://127.0.0.1:${http}`,
					device_endpoint: `https://localhost:${server.ports.device}`,
					mqtt_endpoint: "",
					mqtts_endpoint: `mqtts://localhost:${mqtts}`,
				});
				assert.deepEqual(Object.keys(changed), KEYS);
				assert.equal(modeOf(fileIn(env.OTARU_DATA)), "600");
				await clientOf(changed).listResourceSpaces();
				assert.equal(server.greeting.join().includes(first.password), false);
			}
			const device = new URL(changed.device_endpoint).port;
			const before = statSync(fileIn(env.OTARU_DATA));
			{
				await using again = await start({
					...fixed,
					OTARU_DEVICE_PORT: device,
				});
				assert.ok(again);
			}
			const after = statSync(fileIn(env.OTARU_DATA));
			assert.deepEqual(
				[after.mtimeMs, after.ino],
				[before.mtimeMs, before.ino],
				"the file was written without need",
			);
		}));

	test("a file that was removed is not made again", () =>
		withStore(engine, async (env) => {
			await (await start(env))[Symbol.asyncDispose]();
			rmSync(fileIn(env.OTARU_DATA));
			await using server = await start(env);
			assert.equal(existsSync(fileIn(env.OTARU_DATA)), false);
			assert.equal(server.greeting.join().includes("credentials.json"), false);
		}));

	test("a process that died before the file had its name loses nothing", () =>
		withStore(engine, async (env) => {
			await (await start(env))[Symbol.asyncDispose]();
			const file = readFileOf(env.OTARU_DATA);
			// What the process leaves between the store's commit and its listeners.
			const draft = join(env.OTARU_DATA, `credentials-${file.access_key}.new`);
			renameSync(fileIn(env.OTARU_DATA), draft);
			// And one from before its commit, of an attempt that never was.
			const stale = join(env.OTARU_DATA, "credentials-NEVERCOMMITTED.new");
			writeFileSync(
				stale,
				JSON.stringify({ ...file, access_key: "NEVERCOMMITTED" }),
			);
			await using server = await start(env);
			const found = readFileOf(env.OTARU_DATA);
			assert.equal(found.secret_key, file.secret_key);
			await clientOf(found).listResourceSpaces();
			assert.equal(existsSync(draft), false);
			assert.deepEqual(await counts(server), [1, 1, 1, 1, 1]);
		}));

	test("a key that is not the store's, or none, keeps the server from starting, in a sentence", () =>
		withStore(engine, async (env) => {
			await (await start(env))[Symbol.asyncDispose]();
			const keyFile = join(env.OTARU_DATA, "master.key");
			const key = readFileSync(keyFile, "utf8");
			const refusedWith = (more: Env, words: RegExp) =>
				assert.rejects(start({ ...env, ...more }), (error) => {
					assert.ok(error instanceof ConfigError, String(error));
					assert.match(error.message, words);
					return true;
				});
			await refusedWith(
				{ OTARU_MASTER_KEY: "ab".repeat(32) },
				/The key in the setting OTARU_MASTER_KEY is not the one/,
			);
			await refusedWith(
				{ OTARU_MASTER_KEY: "too short" },
				/OTARU_MASTER_KEY must be 32 bytes/,
			);
			writeFileSync(keyFile, `${"cd".repeat(32)}\n`);
			await refusedWith({}, /The key in .*master\.key is not the one/);
			rmSync(keyFile);
			await refusedWith({}, /the key is missing: put it back as .*master\.key/);
			assert.equal(existsSync(keyFile), false);
			// The right one by setting, in either notation.
			for (const text of [
				key.trim(),
				Buffer.from(key.trim(), "hex").toString("base64"),
			])
				await (await start({ ...env, OTARU_MASTER_KEY: text }))[
					Symbol.asyncDispose
				]();
		}));
});

describe("two servers that start at once on one store", () => {
	const together = async (a: Env, b: Env) => {
		const started = await Promise.allSettled([start(a), start(b)]);
		const servers = started.flatMap((outcome) =>
			outcome.status === "fulfilled" ? [outcome.value] : [],
		);
		const failures = started.flatMap((outcome) =>
			outcome.status === "rejected" ? [outcome.reason] : [],
		);
		return {
			servers,
			failures,
			async [Symbol.asyncDispose]() {
				for (const server of servers) await server[Symbol.asyncDispose]();
			},
		};
	};

	test("with one key and a directory each: one of them sets it up, both serve", () =>
		withStore(postgres, async (env) => {
			const other = await mkdtemp(join(tmpdir(), "otaru-test-"));
			try {
				const shared = { ...env, OTARU_MASTER_KEY: "0f".repeat(32) };
				await using both = await together(shared, {
					...shared,
					OTARU_DATA: other,
				});
				assert.deepEqual(both.failures, []);
				const [a, b] = both.servers;
				assert.ok(a && b);
				assert.deepEqual(await counts(a), [1, 1, 1, 1, 1]);
				const owners = [env.OTARU_DATA, other].filter((directory) =>
					existsSync(fileIn(directory)),
				);
				assert.equal(owners.length, 1);
				const file = readFileOf(owners[0] ?? "");
				for (const { ports } of both.servers)
					await clientOf({
						...file,
						endpoint: `http://127.0.0.1:${ports.http}`,
					}).listResourceSpaces();
				for (const directory of [env.OTARU_DATA, other])
					assert.deepEqual(
						readdirSync(directory).filter((name) => name.endsWith(".new")),
						[],
					);
			} finally {
				rmSync(other, { recursive: true, force: true });
			}
		}));

	test("in one directory: one key, one file", () =>
		withStore(postgres, async (env) => {
			await using both = await together(env, env);
			assert.deepEqual(both.failures, []);
			const [a] = both.servers;
			assert.ok(a);
			assert.deepEqual(await counts(a), [1, 1, 1, 1, 1]);
			await clientOf(readFileOf(env.OTARU_DATA)).listResourceSpaces();
		}));

	test("with a key each: the second is told that it needs the first's, and leaves no key behind", () =>
		withStore(postgres, async (env) => {
			const other = await mkdtemp(join(tmpdir(), "otaru-test-"));
			try {
				await using both = await together(env, { ...env, OTARU_DATA: other });
				assert.equal(both.servers.length, 1);
				const [failure] = both.failures;
				assert.ok(failure instanceof ConfigError, String(failure));
				assert.match(
					failure.message,
					/same OTARU_MASTER_KEY|key of the other servers/,
				);
				const keys = [env.OTARU_DATA, other].filter((directory) =>
					existsSync(join(directory, "master.key")),
				);
				assert.equal(keys.length, 1);
			} finally {
				rmSync(other, { recursive: true, force: true });
			}
		}));
});

test("a directory that served another store keeps that store's credentials", () =>
	withStore(postgres, (first) =>
		withStore(postgres, async (second) => {
			await (await start(first))[Symbol.asyncDispose]();
			const old = readFileOf(first.OTARU_DATA);
			await (await start({ ...second, OTARU_DATA: first.OTARU_DATA }))[
				Symbol.asyncDispose
			]();
			const fresh = readFileOf(first.OTARU_DATA);
			assert.notEqual(fresh.project_id, old.project_id);
			const kept = join(first.OTARU_DATA, `credentials-${old.project_id}.json`);
			assert.deepEqual(JSON.parse(readFileSync(kept, "utf8")), old);
			assert.equal(modeOf(kept), "600");
			// Back on the old store, the newer file is not its business.
			await (await start(first))[Symbol.asyncDispose]();
			assert.equal(readFileOf(first.OTARU_DATA).project_id, fresh.project_id);
		}),
	));

describe("sealed secrets", () => {
	const sealed = sealedUnder(Buffer.alloc(32, 7));

	test("open to the same text, are never twice the same, and hide it", () => {
		for (const secret of ["", "a", "geheim ☃", "x".repeat(10_000)]) {
			const one = sealed.seal(secret);
			assert.notEqual(one, sealed.seal(secret));
			assert.equal(sealed.open(one), secret);
			if (secret.length > 5) assert.equal(one.includes(secret), false);
		}
	});

	test("do not open when altered, cut off or sealed under another key", () => {
		const text = sealed.seal("secret");
		const [form, id, bytes = ""] = text.split(".");
		for (let index = 0; index < bytes.length; index++) {
			const digit = bytes[index] === "A" ? "B" : "A";
			const other = bytes.slice(0, index) + digit + bytes.slice(index + 1);
			// The last digit of base64 may carry bits that mean nothing.
			const same = Buffer.from(other, "base64url").equals(
				Buffer.from(bytes, "base64url"),
			);
			if (same) continue;
			const altered = `${form}.${id}.${other}`;
			assert.throws(() => sealed.open(altered), Error, altered);
		}
		for (const bad of [
			"",
			"v1",
			`${form}.${id}.`,
			`v2.${id}.${bytes}`,
			"secret",
		])
			assert.throws(() => sealed.open(bad), Error, bad);
		assert.throws(
			() => sealed.open(sealedUnder(Buffer.alloc(32, 8)).seal("secret")),
			/another master key/,
		);
	});
});

describe("the certificate of the device listeners", () => {
	const open = (env: Env, now = new Date()) =>
		openDeviceCertificate(readConfig({ ...settings, ...env }), () => now);
	const withDirectory = async (work: (env: Env) => Promise<void>) => {
		const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
		try {
			await work({ OTARU_DATA: directory });
		} finally {
			rmSync(directory, { recursive: true, force: true });
		}
	};
	const DAY_MS = 86_400_000;

	test("names the machine in every way devices may reach it, and ends in the authority they trust", () =>
		withDirectory(async (env) => {
			const { cert, caFile, issued } = await open({
				...env,
				OTARU_DEVICE_PUBLIC_HOST: "ota.maker.example",
			});
			assert.equal(issued, true);
			const certificate = new X509Certificate(cert);
			const ca = new X509Certificate(readFileSync(caFile ?? ""));
			for (const address of ["127.0.0.1", "::1"])
				assert.ok(certificate.checkIP(address), address);
			for (const name of ["localhost", hostname(), "ota.maker.example"])
				assert.ok(certificate.checkHost(name), name);
			assert.equal(certificate.checkHost("other.example"), undefined);
			assert.ok(certificate.checkIssued(ca));
			assert.ok(certificate.verify(ca.publicKey));
			assert.equal(certificate.ca, false);
			assert.equal(ca.ca, true);
			assert.ok(ca.validToDate.getTime() > Date.now() + 10 * 365 * DAY_MS);
			assert.equal(certificate.publicKey.asymmetricKeyType, "ec");
			assert.ok(serverNames("::1").every((name) => name !== ""));
		}));

	test("serves a client that knows TLS 1.2 and that authority alone", async () => {
		const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
		try {
			await using server = await start({ OTARU_DATA: directory });
			const { ca_file } = readFileOf(directory);
			for (const port of [server.ports.mqtts, server.ports.device]) {
				const socket = connect({
					host: "127.0.0.1",
					port,
					ca: readFileSync(ca_file),
					minVersion: "TLSv1.2",
					maxVersion: "TLSv1.2",
					// What the official C SDK asks its OpenSSL for.
					ciphers: "TLSv1.2",
				});
				await once(socket, "secureConnect");
				assert.equal(socket.authorized, true);
				assert.equal(socket.getProtocol(), "TLSv1.2");
				socket.destroy();
			}
		} finally {
			rmSync(directory, { recursive: true, force: true });
		}
	});

	test("is kept while it is good, and issued anew for other names or near its end by the same authority", () =>
		withDirectory(async (env) => {
			const first = await open(env);
			const again = await open(env);
			assert.deepEqual(again, { ...first, issued: false });
			const ca = readFileSync(first.caFile ?? "", "utf8");

			const renamed = await open({
				...env,
				OTARU_DEVICE_PUBLIC_HOST: "new.maker.example",
			});
			assert.equal(renamed.issued, true);
			assert.ok(
				new X509Certificate(renamed.cert).checkHost("new.maker.example"),
			);
			assert.equal(renamed.key, first.key);
			const back = await open(env);
			assert.equal(back.issued, true);

			const end = new X509Certificate(back.cert).validToDate.getTime();
			const early = await open(env, new Date(end - 31 * DAY_MS));
			assert.equal(early.issued, false);
			const late = await open(env, new Date(end - 29 * DAY_MS));
			assert.equal(late.issued, true);
			assert.ok(
				new X509Certificate(late.cert).validToDate.getTime() > end + DAY_MS,
			);
			assert.equal(readFileSync(first.caFile ?? "", "utf8"), ca);

			writeFileSync(join(env.OTARU_DATA ?? "", "tls", "server.pem"), "damaged");
			assert.equal((await open(env)).issued, true);
		}));

	test("a lost or foreign key of the authority is a sentence, never another authority", () =>
		withDirectory(async (env) => {
			await open(env);
			const keyFile = join(env.OTARU_DATA ?? "", "tls", "ca.key");
			const serverKey = join(env.OTARU_DATA ?? "", "tls", "server.key");
			writeFileSync(keyFile, readFileSync(serverKey));
			await assert.rejects(open(env), /ca\.key does not belong to .*ca\.pem/);
			rmSync(keyFile);
			await assert.rejects(open(env), /ca\.key is missing/);
			assert.equal(existsSync(keyFile), false);
		}));

	test("may be the operator's own", () =>
		withDirectory(async (env) => {
			const own = join(env.OTARU_DATA ?? "", "own.pem");
			writeFileSync(own, "certificate");
			const set = {
				...env,
				OTARU_DEVICE_TLS_CERT: own,
				OTARU_DEVICE_TLS_KEY: own,
			};
			assert.deepEqual(await open(set), {
				cert: "certificate",
				key: "certificate",
				caFile: undefined,
				issued: false,
			});
			rmSync(own);
			await assert.rejects(
				open(set),
				/OTARU_DEVICE_TLS_CERT: .*own\.pem cannot be read/,
			);
		}));
});

test("a process prints and logs no secret, at the first start or at a later one", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
	const said: string[] = [];
	const run = async (work: (file: CredentialsFile) => Promise<void>) => {
		const child = spawn(
			process.execPath,
			[join(import.meta.dirname, "..", "server", "main.ts")],
			{
				env: {
					PATH: process.env.PATH,
					...settings,
					OTARU_LOG_LEVEL: "debug",
					OTARU_DATA: directory,
				},
			},
		);
		child.stdout.on("data", (chunk) => said.push(String(chunk)));
		child.stderr.on("data", (chunk) => said.push(String(chunk)));
		try {
			await untilSaid(child, said, "Otaru is ready at");
			await work(readFileOf(directory));
		} finally {
			child.kill("SIGTERM");
			await once(child, "exit");
		}
	};
	try {
		const secrets = new Set<string>();
		const use = async (file: CredentialsFile) => {
			secrets.add(file.password).add(file.secret_key);
			const api = clientOf(file);
			const user = {
				domainName: file.domain_name,
				userName: file.user_name,
				password: file.password,
			};
			const { token } = await api.signIn(user);
			secrets.add(token);
			await api.as({ token }).listResourceSpaces();
			await assert.rejects(api.signIn({ ...user, password: "WrongPassword1" }));
			await assert.rejects(
				api
					.as({ accessKey: file.access_key, secretKey: "WrongSecret1" })
					.listResourceSpaces(),
			);
			await assert.rejects(
				api.as({ token: "WrongToken1" }).listResourceSpaces(),
			);
			for (const wrong of ["WrongPassword1", "WrongSecret1", "WrongToken1"])
				secrets.add(wrong);
		};
		await run(use);
		said.push("\n--- again ---\n");
		await run(use);
		const text = said.join("");
		assert.equal(text.match(/Otaru is ready at/g)?.length, 2);
		// The reasons that callers are not told are there for the operator.
		for (const reason of [
			"the signature does not fit",
			"unknown token",
			"wrong user or password",
		])
			assert.ok(text.includes(reason), reason);
		for (const secret of secrets)
			assert.equal(text.includes(secret), false, `the log says ${secret}`);
		assert.doesNotMatch(text, /Signature=[0-9a-f]/);
	} finally {
		rmSync(directory, { recursive: true, force: true });
	}
});

async function untilSaid(
	child: ChildProcess,
	said: string[],
	words: string,
): Promise<void> {
	const from = said.length;
	for (let attempt = 0; attempt < 600; attempt++) {
		if (said.slice(from).join("").includes(words)) return;
		assert.equal(child.exitCode, null, said.join(""));
		await pause(50);
	}
	assert.fail(`not said within 30 s: ${said.join("")}`);
}
