import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import {
	existsSync,
	readFileSync,
	statSync,
	utimesSync,
	writeFileSync,
} from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { sql } from "kysely";
import { ConfigError, readConfig } from "../server/config.ts";
import type { Db } from "../server/database/database.ts";
import { KeyRotation, sealedColumns } from "../server/secrets/key-rotation.ts";
import { MasterKeyFile, parseKeys } from "../server/secrets/master-key.ts";
import {
	KeyRing,
	keyIdOf,
	masterKeyId,
	sealedUnder,
	UnknownMasterKey,
} from "../server/secrets/sealed.ts";
import { startServer as start } from "../server/server.ts";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import { DeviceLink, type LinkedDevice } from "./support/device-link.ts";
import { forEachEngine, postgres, sqlite } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { makeDevice, makeProduct, refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import { ServerProcess } from "./support/server-process.ts";

const newKey = () => randomBytes(32);
const hex = (...keys: Buffer[]) =>
	keys.map((key) => key.toString("hex")).join(",");
const keysOf = (server: TestServer) =>
	readFileSync(join(server.config.dataDir, "master.key"), "utf8")
		.trim()
		.split("\n");
const settled = async (api: Client) => {
	for (;;) {
		const status = await api.getMasterKeyStatus();
		if (status.state === "idle") return status;
		await pause(20);
	}
};

async function manyDevices(
	server: TestServer,
	count: number,
): Promise<LinkedDevice[]> {
	const product = await makeProduct(server.api);
	return Promise.all(
		Array.from({ length: count }, async () => {
			const device = await makeDevice(server.api, product);
			return {
				id: device.device_id ?? "",
				secret: device.auth_info?.secret ?? "",
				heard: [],
			};
		}),
	);
}

async function signsIn(
	server: TestServer,
	device: LinkedDevice,
): Promise<void> {
	const link = await DeviceLink.open(server, device);
	await link.close(true);
}

/** Of every sealed text in the store. */
async function sealedWith(db: Db): Promise<Set<string>> {
	const found = new Set<string>();
	for (const { table, column } of sealedColumns) {
		const { rows } = await sql<{ sealed: string | null }>`
			select ${sql.ref(column)} as sealed from ${sql.table(table)}`.execute(db);
		for (const { sealed } of rows)
			if (sealed !== null) found.add(keyIdOf(sealed));
	}
	return found;
}

// --- the ring -------------------------------------------------------------------------

test("the first key of a ring seals, every key opens, an unknown one is named", () => {
	const [old, fresh] = [newKey(), newKey()];
	const before = sealedUnder(old).seal("secret");
	const ring = new KeyRing([fresh, old]);
	assert.equal(ring.open(before), "secret");
	assert.equal(ring.isCurrent(before), false);
	const after = ring.seal("secret");
	assert.equal(keyIdOf(after), masterKeyId(fresh));
	assert.throws(
		() => sealedUnder(old).open(after),
		(error) =>
			error instanceof UnknownMasterKey &&
			error.message.includes(masterKeyId(fresh)) &&
			error.message.includes(masterKeyId(old)),
	);
});

test("what is left in memory still opens after its key has left the ring", () => {
	const [old, fresh] = [newKey(), newKey()];
	const ring = new KeyRing([fresh, old]);
	const before = sealedUnder(old).seal("secret");
	ring.replace([fresh]);
	assert.equal(ring.open(before), "secret");
	assert.deepEqual(ring.keyIds, [masterKeyId(fresh)]);
});

test("keys are read apart by commas and line ends, and refused when one is none or is there twice", () => {
	const [one, two] = [newKey(), newKey()];
	for (const text of [
		hex(one, two),
		`${hex(one)}\n${two.toString("base64")}\n`,
		` ${hex(one)} ,\n ${hex(two)}`,
	])
		assert.deepEqual(parseKeys(text, "it"), [one, two]);
	for (const [text, words] of [
		["", /must be 32 bytes/],
		[`${hex(one)},abcd`, /must be 32 bytes/],
		[hex(one, one), /lists one master key twice/],
	] as const)
		assert.throws(() => parseKeys(text, "it"), words);
});

test("a server on the same directory takes note of a key that another one put first", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
	try {
		const [mine, theirs] = [
			new MasterKeyFile(directory),
			new MasterKeyFile(directory),
		];
		assert.equal(mine.make(), true);
		assert.equal(theirs.make(), false);
		const ring = new KeyRing(mine.read(), (isUrgent) =>
			mine.readIfChanged(isUrgent),
		);
		const fresh = newKey();
		const keys = await theirs.change((before) => [fresh, ...before]);
		// Read at once, whenever the file was looked at last.
		assert.equal(ring.open(new KeyRing(keys).seal("secret")), "secret");
		assert.equal(keyIdOf(ring.seal("secret")), masterKeyId(fresh));
		assert.equal(statSync(mine.path).mode & 0o777, 0o600);
		assert.equal(existsSync(`${mine.path}.lock`), false);
	} finally {
		await rm(directory, { recursive: true, force: true });
	}
});

test("keys that are not those of the ring are not sealed under until they are proven", async () => {
	const [old, foreign, fresh] = [newKey(), newKey(), newKey()];
	let found: Buffer[] | undefined;
	let isProven = false;
	const asked: string[][] = [];
	const ring = new KeyRing(
		[old],
		() => {
			const keys = found;
			found = undefined;
			return keys;
		},
		async (keys) => {
			asked.push(keys.map(masterKeyId));
			return isProven;
		},
	);
	found = [foreign];
	assert.equal(keyIdOf(ring.seal("secret")), masterKeyId(old));
	await pause(1);
	assert.equal(keyIdOf(ring.seal("secret")), masterKeyId(old));
	assert.deepEqual(asked, [[masterKeyId(foreign)]]);
	// A text of the store that only such a key opens is opened all the same.
	isProven = true;
	found = [fresh];
	assert.equal(ring.open(sealedUnder(fresh).seal("secret")), "secret");
	assert.throws(
		() => ring.open(`v1.${masterKeyId(foreign)}.AAAA`),
		UnknownMasterKey,
	);
	await pause(1);
	assert.deepEqual(ring.keyIds, [masterKeyId(fresh)]);
	// What a proof says of a list that is not the last one any more is nothing.
	found = [foreign];
	ring.refresh();
	found = [fresh];
	ring.refresh();
	await pause(1);
	assert.deepEqual(ring.keyIds, [masterKeyId(fresh)]);
});

test("two that change the file at once lose no key, and a lock left behind is no end", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
	try {
		const file = new MasterKeyFile(directory);
		file.make();
		const keys = Array.from({ length: 5 }, newKey);
		await Promise.all(
			keys.map((key) =>
				new MasterKeyFile(directory).change((before) => [key, ...before]),
			),
		);
		// Of a process that was killed while it held it.
		const lock = `${file.path}.lock`;
		writeFileSync(lock, "");
		const longAgo = new Date(Date.now() - 60_000);
		utimesSync(lock, longAgo, longAgo);
		await file.change((before) => before);
		assert.equal(existsSync(lock), false);
		assert.equal(file.read().length, 6);
		assert.deepEqual(
			new Set(file.read().slice(0, 5).map(masterKeyId)),
			new Set(keys.map(masterKeyId)),
		);
	} finally {
		await rm(directory, { recursive: true, force: true });
	}
});

test("every column of the store that holds something sealed is known to the rotation", async () => {
	await using server = await startServer(sqlite);
	const { rows } = await sql<{ table: string; column: string }>`
		select m.name as "table", p.name as "column"
		from sqlite_master as m join pragma_table_info(m.name) as p
		where m.type = 'table' and p.name like '%sealed%'
		order by 1, 2`.execute(server.server.db);
	assert.deepEqual(
		rows,
		sealedColumns.map(({ table, column }) => ({ table, column })),
	);
});

// --- with the file ----------------------------------------------------------------------

forEachEngine((engine) => {
	describe("the master key in the file", () => {
		test("is changed while signed calls and sign-ins of devices go on, and the old one goes", async () => {
			await using server = await startServer(engine, {
				rotation: { batch: 7, settleMs: 2_000 },
			});
			const { api } = server;
			const devices = await manyDevices(server, 60);
			const [oldKey = ""] = keysOf(server);
			const oldId = masterKeyId(Buffer.from(oldKey, "hex"));
			assert.equal((await api.getMasterKeyStatus()).key_id, oldId);

			let isOver = false;
			let [calls, signIns, resets] = [0, 0, 0];
			const load = Promise.all([
				(async () => {
					while (!isOver) {
						await api.getDevice(devices[calls++ % 60]?.id ?? "");
					}
				})(),
				(async () => {
					for (let at = 0; !isOver; at = (at + 1) % 40) {
						await signsIn(server, devices[at] as LinkedDevice);
						signIns++;
					}
				})(),
				(async () => {
					// A secret that is reset meanwhile wins.
					for (let at = 40; !isOver; at = 40 + ((at + 1) % 20)) {
						const device = {
							...(devices[at] as LinkedDevice),
							secret: randomBytes(8).toString("hex"),
						};
						devices[at] = device;
						await api.resetDeviceSecret(device.id, { secret: device.secret });
						await signsIn(server, device);
						resets++;
					}
				})(),
			]);
			const started = await api.rotateMasterKey();
			assert.notEqual(started.key_id, oldId);
			assert.notEqual(started.state, "idle");
			assert.equal(keysOf(server).length, 2);
			assert.equal(keysOf(server)[1], oldKey);
			await refused(api.rotateMasterKey(), 403, "IOTDA.015940");
			const status = await settled(api);
			isOver = true;
			await load;
			assert.ok(
				calls > 20 && signIns > 5 && resets > 5,
				`${calls} calls, ${signIns} sign-ins, ${resets} resets`,
			);

			assert.equal(status.key_id, started.key_id);
			assert.equal(status.remaining, 0);
			assert.equal(status.unreadable, 0);
			assert.deepEqual(
				status.keys.map(({ key_id, needed }) => [key_id, needed]),
				[[started.key_id, true]],
			);
			assert.equal(keysOf(server).length, 1);
			assert.notEqual(keysOf(server)[0], oldKey);
			assert.equal(
				statSync(join(server.config.dataDir, "master.key")).mode & 0o777,
				0o600,
			);
			assert.deepEqual(
				await sealedWith(server.server.db),
				new Set([started.key_id]),
			);
			for (const device of devices) await signsIn(server, device);
			// A process that knows nothing of the old key.
			await server.restart();
			await api.listResourceSpaces();
			for (const device of devices.slice(30, 50)) await signsIn(server, device);
			assert.equal((await api.getMasterKeyStatus()).state, "idle");
			// And once more.
			await api.rotateMasterKey();
			assert.notEqual((await settled(api)).key_id, started.key_id);
		});

		test("in place of which somebody puts another one is kept, and nothing is lost", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const { path } = new MasterKeyFile(server.config.dataDir);
			const good = readFileSync(path, "utf8");
			const { key_id } = await api.getMasterKeyStatus();
			const [before] = await manyDevices(server, 1);
			for (const keys of [`${hex(newKey())}\n`, "damaged\n"]) {
				writeFileSync(path, keys);
				// Longer than the file is trusted without a look.
				await pause(1_200);
				await manyDevices(server, 1);
				await pause(300);
				const [device] = await manyDevices(server, 1);
				assert.ok(before && device);
				await signsIn(server, before);
				await signsIn(server, device);
				assert.equal((await api.getMasterKeyStatus()).key_id, key_id);
				assert.deepEqual(await sealedWith(server.server.db), new Set([key_id]));
			}
			writeFileSync(path, `${hex(newKey())}\n`);
			const foreign = readFileSync(path, "utf8");
			await refused(api.rotateMasterKey(), 403, "IOTDA.015942", key_id);
			assert.equal(readFileSync(path, "utf8"), foreign);
			writeFileSync(path, good);
			await server.restart();
			await api.listResourceSpaces();
			const [device] = await manyDevices(server, 1);
			assert.ok(before && device);
			await signsIn(server, before);
			await signsIn(server, device);
		});

		test("is taken from the file when another process has finished changing it", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const { db } = server.server;
			const file = new MasterKeyFile(server.config.dataDir);
			const [old = newKey()] = file.read();
			const { key_id } = await api.getMasterKeyStatus();
			// What a change by somebody else leaves, of which this process saw nothing.
			const fresh = newKey();
			const both = new KeyRing([fresh, old]);
			const elsewhere = new KeyRotation({
				db,
				ring: both,
				file,
				now: () => new Date(),
				limits: { settleMs: 10 },
			});
			await file.change(() => [fresh, old]);
			await elsewhere.start();
			while (file.read().length > 1) await pause(10);
			await elsewhere[Symbol.asyncDispose]();
			for (;;) {
				if ((await api.getMasterKeyStatus()).key_id !== key_id) break;
				await pause(100);
			}
			await manyDevices(server, 1);
			assert.deepEqual(await sealedWith(db), new Set([masterKeyId(fresh)]));
		});

		test("a change that was broken off in the middle goes on at the next start", async () => {
			const limits = { batch: 5, settleMs: 60_000, retryMs: 10 };
			await using server = await startServer(engine, { rotation: limits });
			const { api } = server;
			const devices = await manyDevices(server, 40);
			const [oldKey = ""] = keysOf(server);
			const { key_id } = await api.rotateMasterKey();
			await server.restart(() => {
				limits.settleMs = 100;
			});
			assert.equal(keysOf(server)[1] ?? oldKey, oldKey);
			const status = await settled(api);
			assert.equal(status.key_id, key_id);
			assert.deepEqual(await sealedWith(server.server.db), new Set([key_id]));
			assert.equal(keysOf(server).length, 1);
			for (const device of devices) await signsIn(server, device);
		});

		test("a secret that nobody can read keeps the old key, until it is reset", async () => {
			await using server = await startServer(engine, {
				rotation: { settleMs: 20, retryMs: 50 },
			});
			const { api } = server;
			const [device] = await manyDevices(server, 1);
			assert.ok(device);
			const { db } = server.server;
			const row = await db
				.selectFrom("devices")
				.select("secret_sealed")
				.executeTakeFirstOrThrow();
			await db
				.updateTable("devices")
				.set({ secret_sealed: `${row.secret_sealed?.slice(0, -3)}AAA` })
				.execute();
			await api.rotateMasterKey();
			for (;;) {
				const { unreadable, state } = await api.getMasterKeyStatus();
				if (unreadable === 1 && state === "settling") break;
				await pause(20);
			}
			assert.equal(keysOf(server).length, 2);
			await api.resetDeviceSecret(device.id, { secret: "a-new-secret" });
			const status = await settled(api);
			assert.equal(status.unreadable, 0);
			assert.equal(keysOf(server).length, 1);
		});

		test("is nothing for anybody but administrators, whatever they are granted", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const { db } = server.server;
			const { user_id, account_id, created_at } = await db
				.selectFrom("users")
				.selectAll()
				.executeTakeFirstOrThrow();
			await db
				.insertInto("policies")
				.values({
					policy_id: "p".repeat(32),
					record_id: "1".repeat(24),
					account_id,
					name: "everything",
					description: null,
					document: JSON.stringify({
						Version: "5.0",
						Statement: [{ Effect: "Allow", Action: ["*:*:*", "iam:*:*"] }],
					}),
					created_at,
					updated_at: created_at,
				})
				.execute();
			await db
				.insertInto("grants")
				.values({
					grant_id: "g".repeat(32),
					record_id: "2".repeat(24),
					account_id,
					policy_id: "p".repeat(32),
					principal_type: "user",
					principal_id: user_id,
					scope_type: "all",
					scope_id: "",
					created_at,
				})
				.execute();
			await db.updateTable("users").set({ is_administrator: 0 }).execute();
			await db
				.updateTable("access_version")
				.set({ version: sql`version + 1` })
				.execute();
			await refused(
				api.rotateMasterKey(),
				403,
				"IOTDA.000022",
				"only for administrators",
			);
			await refused(
				api.getMasterKeyStatus(),
				403,
				"IOTDA.000022",
				"only for administrators",
			);
			assert.equal(keysOf(server).length, 1);
		});
	});
});

test("a server killed while it changes the key serves everybody after its next start, and ends the change", async () => {
	const dataDir = await mkdtemp(join(tmpdir(), "otaru-test-"));
	try {
		const server = await ServerProcess.start({ dataDir });
		await using _stopped = server;
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
		const as = { api, credentials } as unknown as TestServer;
		const devices = await manyDevices(as, 600);
		const { key_id } = await api.rotateMasterKey();
		await server.kill();
		await server.start();
		const status = await api.getMasterKeyStatus();
		assert.equal(status.key_id, key_id);
		assert.notEqual(status.state, "idle");
		assert.equal(status.keys.length, 2);
		for (const device of devices.filter((_device, index) => index % 60 === 0))
			await signsIn(as, device);
		await server.stop();
		// In this process, where nobody waits half a minute for it to settle.
		const config = readConfig({ ...here, OTARU_DATA: dataDir });
		await using ended = await start(config, { rotation: { settleMs: 50 } });
		const settledHere = new Client({
			endpoint: `http://127.0.0.1:${ended.ports.http}`,
			projectId: credentials.project_id,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		assert.equal((await settled(settledHere)).remaining, 0);
		assert.deepEqual(await sealedWith(ended.db), new Set([key_id]));
	} finally {
		await rm(dataDir, { recursive: true, force: true });
	}
});

test("otaru keys tells of the keys and changes them", async () => {
	await using server = await startServer(sqlite, {
		rotation: { settleMs: 200 },
	});
	const run = async (...args: string[]) => {
		await using command = new OtaruCommand([
			"keys",
			...args,
			"--data",
			server.config.dataDir,
		]);
		const code = await command.ended;
		return { code, stdout: command.stdout, stderr: command.stderr };
	};
	const before = await run("status");
	assert.equal(before.code, 0, before.stderr);
	assert.match(before.stdout, /[0-9a-f]{8} +\d+ secrets; encrypts/);
	assert.match(before.stdout, /No change is under way/);
	const rotated = await run("rotate", "--wait", "--json");
	assert.equal(rotated.code, 0, rotated.stderr);
	const status = JSON.parse(rotated.stdout);
	assert.equal(status.state, "idle");
	assert.equal(before.stdout.includes(status.key_id), false);
	for (const [args, words] of [
		[[], "status or rotate"],
		[["turn"], '"turn" is nothing'],
		[["status", "--wait"], "--wait does not go with status"],
	] as const) {
		const { code, stderr } = await run(...args);
		assert.equal(code, 2);
		assert.ok(stderr.includes(words), stderr);
	}
});

// --- with the setting -------------------------------------------------------------------

const here = {
	OTARU_HTTP_PORT: "0",
	OTARU_MQTT_PORT: "0",
	OTARU_MQTTS_PORT: "0",
	OTARU_DEVICE_PORT: "0",
	OTARU_DEVICE_HOST: "127.0.0.1",
	OTARU_DEVICE_PUBLIC_HOST: "127.0.0.1",
	OTARU_DATABASE_CONNECTIONS: "4",
	OTARU_CONNECT_PAUSE_MS: "0",
	OTARU_LOG_LEVEL: "silent",
};

describe("the master key in the setting", () => {
	/** A node of its own directory on the store, with these keys. */
	async function node(env: Record<string, string>, keys: string) {
		const directory = await mkdtemp(join(tmpdir(), "otaru-test-"));
		const config = readConfig({
			...here,
			...env,
			OTARU_DATA: directory,
			OTARU_MASTER_KEY: keys,
		});
		const remove = () => rm(directory, { recursive: true, force: true });
		try {
			const server = await start(config, {
				rotation: { settleMs: 2_000, retryMs: 50, batch: 3 },
			});
			return {
				server,
				directory,
				api: (credentials: CredentialsFile) =>
					new Client({
						endpoint: `http://127.0.0.1:${server.ports.http}`,
						projectId: credentials.project_id,
						credentials: {
							accessKey: credentials.access_key,
							secretKey: credentials.secret_key,
						},
					}),
				async [Symbol.asyncDispose]() {
					await server[Symbol.asyncDispose]();
					await remove();
				},
			};
		} catch (error) {
			await remove();
			throw error;
		}
	}
	const refusedToStart = (env: Record<string, string>, keys: string) =>
		assert.rejects(node(env, keys), (error) => {
			assert.ok(error instanceof ConfigError, String(error));
			assert.match(error.message, /otaru keys status says/);
			return true;
		});

	test("is changed on two nodes in the documented order, with no call refused", async () => {
		const fresh = await postgres.fresh();
		const env = { OTARU_DATABASE_URL: fresh.env.OTARU_DATABASE_URL ?? "" };
		const [old, next] = [newKey(), newKey()];
		try {
			let credentials: CredentialsFile;
			const secrets = new Map<string, string>();
			{
				await using one = await node(env, hex(old));
				credentials = JSON.parse(
					readFileSync(join(one.directory, "credentials.json"), "utf8"),
				);
				const api = one.api(credentials);
				// Too early: there is nothing to change to.
				await refused(api.rotateMasterKey(), 403, "IOTDA.015941", "second");
				const product = await makeProduct(api);
				for (let count = 0; count < 10; count++) {
					const device = await makeDevice(api, product);
					secrets.set(device.device_id ?? "", device.auth_info?.secret ?? "");
				}
			}
			const reads = async (api: Client) => {
				for (const [id, secret] of secrets)
					assert.equal((await api.getDevice(id)).auth_info?.secret, secret);
			};
			const makes = async (api: Client) => {
				const product = await makeProduct(api);
				const device = await makeDevice(api, product);
				secrets.set(device.device_id ?? "", device.auth_info?.secret ?? "");
			};
			{
				// Second everywhere, then first everywhere: at no step is a node behind.
				await using one = await node(env, hex(old, next));
				await using two = await node(env, hex(next, old));
				for (const { api } of [one, two]) await makes(api(credentials));
				for (const { api } of [one, two]) await reads(api(credentials));
				// Not everything is under the new one.
				await refusedToStart(env, hex(next));
			}
			{
				await using one = await node(env, hex(next, old));
				await using two = await node(env, hex(next, old));
				const idle = await two.api(credentials).getMasterKeyStatus();
				assert.equal(idle.source, "setting");
				assert.ok(idle.remaining > 0);
				assert.ok(idle.keys.every(({ needed }) => needed));
				await one.api(credentials).rotateMasterKey();
				// The other one knows that it is under way.
				const elsewhere = await two.api(credentials).getMasterKeyStatus();
				assert.notEqual(elsewhere.state, "idle");
				const seen = reads(two.api(credentials));
				const status = await settled(two.api(credentials));
				await seen;
				assert.equal(status.remaining, 0);
				assert.deepEqual(
					status.keys.map(({ key_id, needed }) => [key_id, needed]),
					[
						[masterKeyId(next), true],
						[masterKeyId(old), false],
					],
				);
				for (const { api } of [one, two]) await reads(api(credentials));
			}
			await using one = await node(env, hex(next));
			await reads(one.api(credentials));
			await refusedToStart(env, hex(old));
		} finally {
			await fresh.dispose();
		}
	});

	test("a node that has not been given the new key says which key it lacks", async () => {
		const fresh = await postgres.fresh();
		const env = { OTARU_DATABASE_URL: fresh.env.OTARU_DATABASE_URL ?? "" };
		const [old, next] = [newKey(), newKey()];
		try {
			await using behind = await node(env, hex(old));
			const credentials: CredentialsFile = JSON.parse(
				readFileSync(join(behind.directory, "credentials.json"), "utf8"),
			);
			await using hasty = await node(env, hex(next, old));
			const product = await makeProduct(hasty.api(credentials));
			await makeDevice(hasty.api(credentials), product);
			const status = await behind.api(credentials).getMasterKeyStatus();
			assert.deepEqual(
				status.keys.find(({ known }) => !known)?.key_id,
				masterKeyId(next),
			);
			assert.equal(status.remaining, 1);
		} finally {
			await fresh.dispose();
		}
	});

	test("a change that was broken off goes on at the next start, of whichever node", async () => {
		const fresh = await sqlite.fresh();
		const [old, next] = [newKey(), newKey()];
		const run = (keys: string, limits: object) =>
			start(readConfig({ ...here, ...fresh.env, OTARU_MASTER_KEY: keys }), {
				rotation: limits,
			});
		try {
			{
				await using server = await run(hex(old), {});
				assert.equal(
					existsSync(join(fresh.env.OTARU_DATA, "master.key")),
					false,
				);
				assert.deepEqual(
					await sealedWith(server.db),
					new Set([masterKeyId(old)]),
				);
			}
			{
				await using server = await run(hex(next, old), { settleMs: 60_000 });
				const rotation = new KeyRotation({
					db: server.db,
					ring: new KeyRing([next, old]),
					file: undefined,
					now: () => new Date(),
					limits: { settleMs: 60_000 },
				});
				await rotation.rotate();
				await rotation[Symbol.asyncDispose]();
			}
			await using server = await run(hex(next, old), { settleMs: 20 });
			for (;;) {
				const found = await sealedWith(server.db);
				if (found.size === 1 && found.has(masterKeyId(next))) break;
				await pause(20);
			}
		} finally {
			await fresh.dispose();
		}
	});

	test("a file with several keys is read like the setting with several", async () => {
		const fresh = await sqlite.fresh();
		const [old, next] = [newKey(), newKey()];
		const file = join(fresh.env.OTARU_DATA, "master.key");
		try {
			writeFileSync(file, `${hex(next)}\n${hex(old)}\n`, { mode: 0o600 });
			await using server = await start(readConfig({ ...here, ...fresh.env }), {
				rotation: { settleMs: 20 },
			});
			while (readFileSync(file, "utf8") !== `${hex(next)}\n`) await pause(20);
			assert.deepEqual(
				await sealedWith(server.db),
				new Set([masterKeyId(next)]),
			);
		} finally {
			await fresh.dispose();
		}
	});
});
