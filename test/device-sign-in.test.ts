import assert from "node:assert/strict";
import { createHmac, randomBytes, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { after, before, describe, test } from "node:test";
import { connect as connectTls } from "node:tls";
import { WebSocket } from "ws";
import { networkOf } from "../server/access/sign-in-limits.ts";
import { openStore } from "../server/database/database.ts";
import {
	createSignIn,
	type DeviceCertificate,
	isTimely,
	type SignIn,
	type SignInAttempt,
	type SignInResult,
} from "../server/device-link/sign-in.ts";
import {
	type AttemptLimits,
	SignInAttempts,
} from "../server/device-link/sign-in-attempts.ts";
import { Events } from "../server/events.ts";
import { openSealed } from "../server/secrets/master-key.ts";
import { sealedUnder } from "../server/secrets/sealed.ts";
import type { Device } from "../wire/devices.ts";
import { selfSignedCertificate } from "./support/certificate.ts";
import { HandClock } from "./support/clock.ts";
import { until } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { bytesOf, connectPacket, RawClient } from "./support/mqtt-listener.ts";
import { makeDevice, makeProduct, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const SECRET = "12345678";
const NOW = new Date("2026-11-22T23:30:00.000Z");
const HOUR = "2026112223";
const ADDRESS = "192.0.2.1";

function password(
	secret = SECRET,
	timestamp = HOUR,
	algorithm = "sha256",
): Buffer {
	return Buffer.from(
		createHmac(algorithm, timestamp).update(secret).digest("hex"),
	);
}

/** A device's attempt that is right in everything that is not given. */
function attempt(
	deviceId: string,
	given: Partial<SignInAttempt> & {
		timestamp?: string;
		signature?: string;
		type?: string;
	} = {},
): SignInAttempt {
	const { timestamp = HOUR, signature = "0", type = "0", ...rest } = given;
	return {
		clientId: `${deviceId}_${type}_${signature}_${timestamp}`,
		username: deviceId,
		password: password(SECRET, timestamp, signature === "2" ? "sm3" : "sha256"),
		certificate: undefined,
		remoteAddress: ADDRESS,
		...rest,
	};
}

const ok = (deviceId: string): SignInResult => ({ ok: true, deviceId });
const identifier: SignInResult = { ok: false, refused: "identifier" };
const credentials: SignInResult = { ok: false, refused: "credentials" };
const notAuthorized: SignInResult = { ok: false, refused: "not_authorized" };
const unavailable: SignInResult = { ok: false, refused: "unavailable" };

function certificateOf(name: string, trusted = true): DeviceCertificate {
	return {
		sha1: Buffer.from(name.padEnd(20, "1").slice(0, 20)).toString("hex"),
		sha256: Buffer.from(name.padEnd(32, "2").slice(0, 32)).toString("hex"),
		trusted,
	};
}

// --- without a store ------------------------------------------------------------------

for (const [timestamp, isAllowed] of [
	["2026112223", true],
	["2026112222", true],
	["2026112221", false],
	// Counted up by an SDK, or the next hour.
	["2026112224", true],
	["2026112300", true],
	["2026112225", false],
	["2026112301", false],
	["2025112223", false],
	["2026102223", false],
	["2026112123", false],
	// The same hour, counted from the day before.
	["2026112147", true],
	["2026112149", false],
	["2026132223", false],
	["2026002223", false],
	["2026113123", false],
	["0000000000", false],
	["9999999999", false],
] as const) {
	test(`at half past 23 on 22 November 2026 the hour ${timestamp} is ${isAllowed ? "near" : "too far away"}`, () => {
		assert.equal(isTimely(timestamp, NOW), isAllowed);
	});
}

for (const [address, network] of [
	["192.0.2.1", "192.0.2.1"],
	["::ffff:192.0.2.1", "192.0.2.1"],
	["2001:db8:1:2:3:4:5:6", "2001:db8:1:2"],
	["2001:db8:1:2::6", "2001:db8:1:2"],
	["2001:db8::6", "2001:db8:0:0"],
	["::1", "0:0:0:0"],
	["fe80::", "fe80:0:0:0"],
	["", ""],
] as const) {
	test(`wrong attempts from "${address}" count for "${network}"`, () => {
		assert.equal(networkOf(address), network);
	});
}

test("the devices and addresses that are remembered have a limit", () => {
	const attempts = new SignInAttempts({ perDevice: 1, remembered: 100 });
	for (let index = 0; index < 1_000; index++)
		attempts.failed(`d${index}`, `10.0.${index >> 8}.${index & 255}`);
	assert.equal(attempts.mayTry("d999", "10.9.9.9"), false);
	assert.equal(attempts.mayTry("d0", "10.9.9.9"), true);
});

// --- with one ---------------------------------------------------------------------------

forEachEngine((engine) => {
	describe("devices sign in", () => {
		let server: TestServer;
		let device: Device;
		let open: (limits?: Partial<AttemptLimits>) => Promise<SignIn>;
		const clock = new HandClock(NOW);
		/** Every device here has the secret `SECRET` unless a test says otherwise. */
		const register = async (
			fields: Parameters<typeof makeDevice>[2] = {},
		): Promise<string> => {
			const product = await makeProduct(server.api);
			const made = await makeDevice(server.api, product, {
				auth_info: { secret: SECRET },
				...fields,
			});
			return made.device_id ?? "";
		};
		let deviceId = "";

		before(async () => {
			server = await startServer(engine);
			const product = await makeProduct(server.api);
			device = await makeDevice(server.api, product, {
				auth_info: { secret: SECRET },
			});
			deviceId = device.device_id ?? "";
			const { db } = server.server;
			const sealer = await openSealed(server.config, db, clock.now);
			open = async (limits) =>
				createSignIn({
					db,
					sealer,
					now: clock.now,
					events: new Events(),
					...(limits ? { limits } : {}),
				});
		});
		after(() => server[Symbol.asyncDispose]());

		test("a right password is accepted whatever the time when the signature does not check it", async () => {
			const signIn = await open();
			for (const timestamp of [HOUR, "2026112224", "1999010100", "9999999999"])
				assert.deepEqual(
					await signIn(attempt(deviceId, { timestamp })),
					ok(deviceId),
				);
		});

		test("with signature type 1 the time is checked before the password", async () => {
			const signIn = await open();
			for (const [timestamp, result] of [
				[HOUR, ok(deviceId)],
				["2026112224", ok(deviceId)],
				["2026112222", ok(deviceId)],
				["2026112220", credentials],
			] as const)
				assert.deepEqual(
					await signIn(attempt(deviceId, { signature: "1", timestamp })),
					result,
				);
		});

		test("signature type 2 is the same with SM3", async () => {
			const signIn = await open();
			assert.deepEqual(
				await signIn(attempt(deviceId, { signature: "2" })),
				ok(deviceId),
			);
			assert.deepEqual(
				await signIn(
					attempt(deviceId, { signature: "2", password: password() }),
				),
				credentials,
			);
			assert.deepEqual(
				await signIn(
					attempt(deviceId, { signature: "2", timestamp: "2026112220" }),
				),
				credentials,
			);
		});

		test("a device id may hold underscores and look like the rest of a client id", async () => {
			const signIn = await open();
			for (const name of ["a_b__c_", "x_0_1_2026010100", "-", "0_0"]) {
				const id = `${unique("d")}_${name}`;
				await register({ device_id: id });
				assert.deepEqual(await signIn(attempt(id)), ok(id));
			}
		});

		test("a wrong password is a wrong password", async () => {
			const signIn = await open({ perDevice: 100 });
			const right = password();
			for (const wrong of [
				undefined,
				Buffer.alloc(0),
				password("12345679"),
				password(SECRET, "2026112224"),
				Buffer.from(right.toString().toUpperCase()),
				right.subarray(0, 63),
				Buffer.concat([right, Buffer.from("0")]),
				Buffer.from(SECRET),
				Buffer.alloc(64),
				randomBytes(64),
			])
				assert.deepEqual(
					await signIn(attempt(deviceId, { password: wrong })),
					credentials,
				);
			assert.deepEqual(await signIn(attempt(deviceId)), ok(deviceId));
		});

		test("an unknown device is answered like a wrong password, and as slowly", async () => {
			const signIn = await open({ perDevice: 1e6, perAddress: 1e6 });
			const wrong = attempt(deviceId, { password: password("wrong-one") });
			const unknown = attempt("no_such_device");
			const times: [number[], number[]] = [[], []];
			for (let round = 0; round < 400; round++) {
				for (const [index, tried] of [wrong, unknown].entries()) {
					const since = performance.now();
					assert.deepEqual(await signIn(tried), credentials);
					times[index as 0 | 1].push(performance.now() - since);
				}
			}
			const [known, other] = times.map(
				(list) => list.sort((a, b) => a - b)[200] ?? 0,
			) as [number, number];
			assert.ok(
				known < other * 1.8 && other < known * 1.8,
				`${known} ms when it is known, ${other} ms when it is not`,
			);
		});

		test("a user name that is not the device's id is not authorised", async () => {
			const signIn = await open();
			for (const username of [undefined, "", `${deviceId}x`, "other"])
				assert.deepEqual(
					await signIn(attempt(deviceId, { username })),
					notAuthorized,
				);
		});

		for (const [what, clientId, result] of [
			["an empty one", "", identifier],
			["a bare device id", "prod1_dev1", identifier],
			["a provisioning id with a certificate", "dev1_0_scope1", identifier],
			[
				"a provisioning id with a group secret",
				"dev1_0_scope1_0_2026112223",
				identifier,
			],
			["an id by node", "dev1_2_0_2026112223", identifier],
			["a type nobody knows", "dev1_9_0_2026112223", identifier],
			["a signature nobody knows", "dev1_0_3_2026112223", identifier],
			["a bridge", "dev1_3_0_2026112223", notAuthorized],
			["a timestamp of nine digits", "dev1_0_0_202611222", identifier],
			["a timestamp with letters", "dev1_0_0_20261122ab", identifier],
			["no device id", "_0_0_2026112223", identifier],
			["a device id with a slash", "a/b_0_0_2026112223", identifier],
			["a device id with U+0000", "a\0b_0_0_2026112223", identifier],
			["a line break at the end", "dev1_0_0_2026112223\n", identifier],
			[
				"more than 256 characters",
				`${"d".repeat(250)}_0_0_2026112223`,
				identifier,
			],
		] as const) {
			test(`a client id that is ${what} is refused for its ${result.ok ? "" : result.refused}`, async () => {
				const signIn = await open();
				assert.deepEqual(
					await signIn({ ...attempt("dev1"), clientId }),
					result,
				);
			});
		}

		test("a frozen device may not connect, and only whoever knows its secret learns that", async () => {
			const signIn = await open();
			const id = await register();
			await server.api.freezeDevice(id);
			assert.deepEqual(await signIn(attempt(id)), notAuthorized);
			assert.deepEqual(
				await signIn(attempt(id, { password: password("wrong-one") })),
				credentials,
			);
			await server.api.unfreezeDevice(id);
			assert.deepEqual(await signIn(attempt(id)), ok(id));
		});

		test("a child device does not connect by itself", async () => {
			const signIn = await open();
			const id = await register({ gateway_id: deviceId });
			assert.deepEqual(await signIn(attempt(id)), notAuthorized);
		});

		test("either of two secrets opens, and an old one does not", async () => {
			const signIn = await open();
			const id = await register();
			await server.api.resetDeviceSecret(id, {
				secret: "second-secret",
				secret_type: "SECONDARY",
			});
			const second = attempt(id, { password: password("second-secret") });
			assert.deepEqual(await signIn(attempt(id)), ok(id));
			assert.deepEqual(await signIn(second), ok(id));
			await server.api.resetDeviceSecret(id, { secret: "third-secret" });
			assert.deepEqual(await signIn(attempt(id)), credentials);
			assert.deepEqual(await signIn(second), ok(id));
		});

		test("a certificate does not stand in for the secret of a device that has one", async () => {
			const signIn = await open();
			assert.deepEqual(
				await signIn(
					attempt(deviceId, {
						password: undefined,
						certificate: certificateOf("any"),
					}),
				),
				credentials,
			);
		});

		for (const [what, fingerprint] of [
			["SHA-1", certificateOf("own").sha1],
			["SHA-256", certificateOf("own").sha256],
			["SHA-256 in capitals", certificateOf("own").sha256.toUpperCase()],
		] as const) {
			test(`a device registered with a ${what} fingerprint signs in with that certificate only`, async () => {
				const signIn = await open({ perDevice: 100 });
				const id = await register({
					auth_info: { auth_type: "CERTIFICATES", fingerprint },
				});
				const withCertificate = (certificate?: DeviceCertificate) =>
					signIn(attempt(id, { certificate, password: undefined }));
				assert.deepEqual(
					await withCertificate(certificateOf("own", false)),
					ok(id),
				);
				assert.deepEqual(
					await withCertificate(certificateOf("other")),
					credentials,
				);
				assert.deepEqual(await withCertificate(), credentials);
				// One SDK sends a password all the same.
				assert.deepEqual(
					await signIn(
						attempt(id, {
							certificate: certificateOf("own"),
							password: Buffer.from("anything"),
						}),
					),
					ok(id),
				);
			});
		}

		test("the second fingerprint of a device is accepted like the first", async () => {
			const signIn = await open();
			const id = await register({
				auth_info: {
					auth_type: "CERTIFICATES",
					fingerprint: certificateOf("first").sha256,
				},
			});
			await server.server.db
				.updateTable("devices")
				.set({ secondary_fingerprint: certificateOf("second").sha1 })
				.where("device_id", "=", id)
				.execute();
			for (const name of ["first", "second"])
				assert.deepEqual(
					await signIn(attempt(id, { certificate: certificateOf(name) })),
					ok(id),
				);
		});

		test("without a fingerprint the first trusted certificate becomes the device's own", async () => {
			const signIn = await open({ perDevice: 100 });
			const id = await register({ auth_info: { auth_type: "CERTIFICATES" } });
			const come = (certificate: DeviceCertificate) =>
				signIn(attempt(id, { certificate }));
			assert.deepEqual(
				await come(certificateOf("foreign", false)),
				credentials,
			);
			assert.deepEqual(await come(certificateOf("first")), ok(id));
			assert.deepEqual(await come(certificateOf("second")), credentials);
			assert.deepEqual(await come(certificateOf("first")), ok(id));
			const shown = await server.api.getDevice(id);
			assert.equal(shown.auth_info?.fingerprint, certificateOf("first").sha256);
		});

		test("a frozen device's first certificate is not taken", async () => {
			const signIn = await open();
			const id = await register({ auth_info: { auth_type: "CERTIFICATES" } });
			await server.api.freezeDevice(id);
			assert.deepEqual(
				await signIn(attempt(id, { certificate: certificateOf("first") })),
				notAuthorized,
			);
			const shown = await server.api.getDevice(id);
			assert.equal(shown.auth_info?.fingerprint ?? undefined, undefined);
		});

		test("of certificates that come first at once, one is taken, as often as it came", async () => {
			const signIn = await open({ perDevice: 100 });
			for (let round = 0; round < 10; round++) {
				const id = await register({ auth_info: { auth_type: "CERTIFICATES" } });
				const names = ["one", "two", "one", "two", "one", "two"];
				const results = await Promise.all(
					names.map((name) =>
						signIn(attempt(id, { certificate: certificateOf(name) })),
					),
				);
				const winners = new Set(
					names.filter((_, index) => results[index]?.ok === true),
				);
				assert.equal(winners.size, 1);
				assert.equal(results.filter(({ ok: isOk }) => isOk).length, 3);
			}
		});

		test("a store that does not answer is the server's trouble, not a wrong password", async () => {
			const fresh = await engine.fresh();
			const store = await openStore(
				fresh.env.OTARU_DATABASE_URL
					? {
							kind: "postgres",
							url: fresh.env.OTARU_DATABASE_URL,
							connections: 2,
						}
					: { kind: "sqlite", file: `${fresh.env.OTARU_DATA}/otaru.db` },
			);
			const signIn = createSignIn({
				db: store.db,
				sealer: sealedUnder(randomBytes(32)),
				now: clock.now,
				events: new Events(),
			});
			await store[Symbol.asyncDispose]();
			assert.deepEqual(await signIn(attempt("dev1")), unavailable);
			await fresh.dispose();
		});

		test("a secret that cannot be read is the server's trouble as well", async () => {
			const signIn = createSignIn({
				db: server.server.db,
				sealer: sealedUnder(randomBytes(32)),
				now: clock.now,
				events: new Events(),
			});
			assert.deepEqual(await signIn(attempt(deviceId)), unavailable);
		});

		// --- too many wrong ones -----------------------------------------------------------

		const wrong = (id: string, remoteAddress = ADDRESS) =>
			attempt(id, { password: password("wrong-one"), remoteAddress });

		test("a device with a wrong password has to wait after ten attempts, its neighbours do not", async () => {
			const signIn = await open();
			const [bad, ...good] = await Promise.all([
				register(),
				register(),
				register(),
			]);
			for (let count = 0; count < 10; count++)
				assert.deepEqual(await signIn(wrong(bad)), credentials);
			// A thousand more are answered without being looked at, and do not count for
			// the address.
			for (let count = 0; count < 1_000; count++)
				assert.deepEqual(await signIn(wrong(bad)), unavailable);
			assert.deepEqual(await signIn(attempt(bad)), unavailable);
			for (const id of good)
				assert.deepEqual(await signIn(attempt(id)), ok(id));
		});

		test("what is forgiven after a while may be tried again", async () => {
			const signIn = await open({ perDevice: 3, forgivenMs: 600 });
			for (let count = 0; count < 3; count++)
				assert.deepEqual(await signIn(wrong(deviceId)), credentials);
			assert.deepEqual(await signIn(attempt(deviceId)), unavailable);
			await until(
				() => signIn(attempt(deviceId)),
				(result) => result.ok,
				5_000,
			);
		});

		test("whoever guesses at a device from afar does not keep it out where it lives", async () => {
			const signIn = await open({ perDevice: 5 });
			assert.deepEqual(await signIn(attempt(deviceId)), ok(deviceId));
			for (let count = 0; count < 20; count++)
				await signIn(wrong(deviceId, "198.51.100.7"));
			assert.deepEqual(
				await signIn(wrong(deviceId, "198.51.100.7")),
				unavailable,
			);
			assert.deepEqual(
				await signIn(attempt(deviceId, { remoteAddress: "203.0.113.9" })),
				unavailable,
			);
			assert.deepEqual(await signIn(attempt(deviceId)), ok(deviceId));
			// At home too there is an end to it.
			for (let count = 0; count < 5; count++)
				assert.deepEqual(await signIn(wrong(deviceId)), credentials);
			assert.deepEqual(await signIn(attempt(deviceId)), unavailable);
		});

		test("where much fails, ids that failed have to wait, devices that did not come in", async () => {
			const signIn = await open({ perAddress: 20 });
			const resident = await register();
			assert.deepEqual(await signIn(attempt(resident)), ok(resident));
			for (let count = 0; count < 20; count++)
				assert.deepEqual(await signIn(wrong(`guess_${count}`)), credentials);
			assert.deepEqual(await signIn(wrong("guess_0")), unavailable);
			assert.deepEqual(await signIn(attempt(resident)), ok(resident));
			// A fleet that comes back at once, after a restart that forgot who lives where.
			assert.deepEqual(await signIn(attempt(deviceId)), ok(deviceId));
			const clumsy = await register();
			assert.deepEqual(await signIn(wrong(clumsy)), credentials);
			assert.deepEqual(await signIn(attempt(clumsy)), unavailable);
			assert.deepEqual(
				await signIn(attempt(clumsy, { remoteAddress: "203.0.113.9" })),
				ok(clumsy),
			);
		});
	});

	// --- over the whole server --------------------------------------------------------------

	describe("over the whole server", () => {
		let server: TestServer;
		before(async () => {
			server = await startServer(engine);
		});
		after(() => server[Symbol.asyncDispose]());

		const register = async (fields: Parameters<typeof makeDevice>[2] = {}) =>
			makeDevice(server.api, await makeProduct(server.api), fields);
		const packetOf = (device: Device, secret = device.auth_info?.secret) =>
			connectPacket({
				clientId: `${device.device_id}_0_0_${HOUR}`,
				username: device.device_id ?? "",
				password: password(secret),
			});
		const connect = async (device: Device, secret?: string) => {
			const client = await RawClient.open(server.server.ports.mqtt ?? 0);
			client.send(packetOf(device, secret ?? device.auth_info?.secret));
			const { returnCode } = await client.next("connack");
			return { client, returnCode };
		};
		const shows = (device: Device, status: string) =>
			until(
				() => server.api.getDevice(device.device_id ?? ""),
				(shown) => shown.status === status,
			);

		test("a device is INACTIVE, ONLINE while it is connected, and OFFLINE afterwards", async () => {
			const device = await register();
			await shows(device, "INACTIVE");
			const { client, returnCode } = await connect(device);
			assert.equal(returnCode, 0);
			const online = await shows(device, "ONLINE");
			assert.match(online.active_time ?? "", /^\d{4}-.*\.\d{3}Z$/);
			assert.equal(online.active_time, online.connection_status_update_time);
			client[Symbol.dispose]();
			const offline = await shows(device, "OFFLINE");
			assert.equal(offline.active_time, online.active_time);
			assert.ok(
				(offline.connection_status_update_time ?? "") >
					(online.connection_status_update_time ?? ""),
			);
		});

		test("a device whose connection was replaced stays ONLINE", async () => {
			const device = await register();
			const first = await connect(device);
			const second = await connect(device);
			await first.client.closed;
			await shows(device, "ONLINE");
			await new Promise((resolve) => setTimeout(resolve, 200));
			await shows(device, "ONLINE");
			second.client[Symbol.dispose]();
			await shows(device, "OFFLINE");
		});

		test("a wrong password is answered 4, a frozen device 5", async () => {
			const device = await register();
			assert.equal((await connect(device, "wrong-one")).returnCode, 4);
			await server.api.freezeDevice(device.device_id ?? "");
			assert.equal((await connect(device)).returnCode, 5);
		});

		test("a device that is frozen or deleted while it is connected is cut off", async () => {
			for (const end of ["freezeDevice", "deleteDevice"] as const) {
				const device = await register();
				const { client } = await connect(device);
				await shows(device, "ONLINE");
				await server.api[end](device.device_id ?? "");
				await client.closed;
				assert.equal(
					(await connect(device)).returnCode,
					end === "freezeDevice" ? 5 : 4,
				);
			}
		});

		test("a device signs in by its certificate over TLS, and nobody else does as it", async () => {
			const own = await selfSignedCertificate();
			const device = await register({
				auth_info: {
					auth_type: "CERTIFICATES",
					fingerprint: new X509Certificate(own.cert).fingerprint256
						.replaceAll(":", "")
						.toLowerCase(),
				},
			});
			for (const [pair, code] of [
				[own, 0],
				[await selfSignedCertificate(), 4],
				[{}, 4],
			] as const) {
				const socket = connectTls({
					host: "127.0.0.1",
					port: server.server.ports.mqtts,
					ca: readFileSync(server.credentials.ca_file),
					checkServerIdentity: () => undefined,
					...pair,
				});
				using client = new RawClient(socket, 4);
				client.send(packetOf(device, ""));
				assert.equal((await client.next("connack")).returnCode, code);
			}
		});

		test("a device connects over WebSocket on the device HTTPS listener", async () => {
			const device = await register();
			const socket = new WebSocket(
				`wss://127.0.0.1:${server.server.ports.device}/mqtt`,
				"mqtt",
				{
					ca: readFileSync(server.credentials.ca_file),
					checkServerIdentity: () => undefined,
				} as object,
			);
			const answer = new Promise<Buffer>((resolve, reject) => {
				socket.once("message", (data) => resolve(data as Buffer));
				socket.once("error", reject);
			});
			await new Promise((resolve) => socket.once("open", resolve));
			socket.send(bytesOf(packetOf(device)));
			assert.equal((await answer).toString("hex"), "20020000");
			await shows(device, "ONLINE");
			socket.terminate();
			await shows(device, "OFFLINE");
		});
	});
});
