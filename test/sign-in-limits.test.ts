import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import {
	type Proof,
	ProofLimits,
	SignInBlocked,
	SignInLimits,
} from "../server/access/sign-in-limits.ts";
import { SignInAttempts } from "../server/device-link/sign-in-attempts.ts";
import { shownProof } from "../server/http/proof-attempts.ts";
import { Client } from "../wire/client.ts";
import { makeUser } from "./support/access.ts";
import { auditOf, lastAudit } from "./support/audit.ts";
import { HandClock } from "./support/clock.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import {
	type Answer,
	type SignedOptions,
	send,
	sendSigned,
} from "./support/raw-request.ts";
import { startServer, type TestServer } from "./support/server.ts";

const HOME = "192.0.2.1";
const AWAY = "198.51.100.7";
const KEY: Proof = { accessKey: "EXAMPLEACCESSKEY0001" };

setFlagsFromString("--expose-gc");
const collectGarbage = runInNewContext("gc") as () => void;

function heapBytes(): number {
	collectGarbage();
	return process.memoryUsage().heapUsed;
}

/** How long whoever comes now is told to wait; 0: he may try. */
function waitOf(limits: ProofLimits, proof: Proof, address: string): number {
	try {
		limits.begin(proof, address);
		return 0;
	} catch (error) {
		assert.ok(error instanceof SignInBlocked);
		return error.retryAfterSeconds;
	}
}

function fail(limits: ProofLimits, proof: Proof, address: string, times = 1) {
	for (let count = 0; count < times; count++)
		limits.begin(proof, address).failed();
}

describe("wrong signatures", () => {
	test("of a key make the next one wait, twice as long each time, five minutes at most", () => {
		const clock = new HandClock();
		const limits = new ProofLimits(clock.now);
		// From an address each, so that none of them is counted for long.
		for (let count = 0; count < 10; count++)
			fail(limits, KEY, `10.0.0.${count}`);
		const waits: number[] = [];
		for (let count = 0; count < 12; count++) {
			const seconds = waitOf(limits, KEY, `10.0.1.${count}`);
			waits.push(seconds);
			clock.pass({ seconds });
			fail(limits, KEY, `10.0.1.${count}`);
		}
		assert.deepEqual(waits, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
		// Another key is another matter.
		assert.equal(waitOf(limits, { accessKey: "OTHER" }, AWAY), 0);
	});

	test("of an address make everybody wait who has not been right there before", () => {
		const clock = new HandClock();
		const limits = new ProofLimits(clock.now);
		limits.begin(KEY, HOME).succeeded();
		for (let count = 0; count < 20; count++)
			fail(limits, { accessKey: `GUESS${count}` }, HOME);
		assert.equal(waitOf(limits, { accessKey: "GUESS20" }, HOME), 1);
		assert.equal(waitOf(limits, { token: "some token" }, HOME), 1);
		assert.equal(waitOf(limits, { accessKey: "GUESS20" }, AWAY), 0);
		assert.equal(waitOf(limits, KEY, HOME), 0);
	});

	test("in a key's name from elsewhere do not lock it out where it has been right", () => {
		const limits = new ProofLimits(new HandClock().now);
		limits.begin(KEY, HOME).succeeded();
		fail(limits, KEY, AWAY, 10);
		assert.ok(waitOf(limits, KEY, AWAY) > 0);
		assert.ok(waitOf(limits, KEY, "203.0.113.9") > 0);
		assert.equal(waitOf(limits, KEY, HOME), 0);
	});

	test("where the key has been right count by themselves, and one success ends them", () => {
		const limits = new ProofLimits(new HandClock().now);
		limits.begin(KEY, HOME).succeeded();
		for (let round = 0; round < 5; round++) {
			fail(limits, KEY, HOME, 9);
			limits.begin(KEY, HOME).succeeded();
		}
		fail(limits, KEY, HOME, 10);
		assert.equal(waitOf(limits, KEY, HOME), 1);
		// The neighbours have nothing to do with it.
		assert.equal(waitOf(limits, { accessKey: "OTHER" }, HOME), 0);
	});

	test("are forgotten after an hour, and a clock that is put back makes nobody wait for it", () => {
		const clock = new HandClock();
		const limits = new ProofLimits(clock.now);
		fail(limits, KEY, HOME, 10);
		clock.pass({ hours: -24 });
		assert.equal(waitOf(limits, KEY, HOME), 1);
		clock.pass({ seconds: 1 });
		assert.equal(waitOf(limits, KEY, HOME), 0);
		fail(limits, KEY, HOME);
		assert.equal(waitOf(limits, KEY, HOME), 2);
		clock.pass({ hours: 1 });
		fail(limits, KEY, HOME, 9);
		assert.equal(waitOf(limits, KEY, HOME), 0);
	});

	test("from all over one customer's IPv6 network are from one address", () => {
		const limits = new ProofLimits(new HandClock().now);
		for (let count = 0; count < 20; count++)
			fail(limits, { accessKey: `G${count}` }, `2001:db8:1:2::${count}`);
		assert.equal(waitOf(limits, KEY, "2001:db8:1:2:ffff::1"), 1);
		assert.equal(waitOf(limits, KEY, "2001:db8:1:3::1"), 0);
	});

	test("of a hundred thousand names from as many addresses take no more room than some of them", () => {
		const limits = new ProofLimits(new HandClock().now);
		const before = heapBytes();
		for (let count = 0; count < 100_000; count++) {
			// As it comes: a piece of a long header.
			const header = `Access=${`${count}`.padEnd(8_000, "x")}, Signature=1`;
			const address = `10.${count >> 16}.${(count >> 8) & 255}.${count & 255}`;
			fail(limits, { accessKey: header.slice(7, 8_007) }, address);
		}
		const grownBy = heapBytes() - before;
		assert.ok(grownBy < 15_000_000, String(grownBy));
		// Still in use, and not all of it forgotten.
		assert.equal(limits.begin(KEY, HOME) !== undefined, true);
	});

	test("while one has to wait cost next to nothing", () => {
		const limits = new ProofLimits(new HandClock().now);
		fail(limits, KEY, HOME, 10);
		const begin = performance.now();
		for (let count = 0; count < 10_000; count++) waitOf(limits, KEY, HOME);
		const eachMs = (performance.now() - begin) / 10_000;
		assert.ok(eachMs < 0.2, `${eachMs} ms`);
		// None of them counts.
		assert.equal(waitOf(limits, KEY, HOME), 1);
	});
});

test("a hundred calls at once with a right key do not stand in each other's way", () => {
	const limits = new ProofLimits(new HandClock().now);
	const attempts = Array.from({ length: 100 }, () => limits.begin(KEY, HOME));
	for (const attempt of attempts) attempt.succeeded();
	assert.equal(waitOf(limits, KEY, HOME), 0);
});

test("a token that has been good from an address is not kept out there by guesses, until it is not good any more", () => {
	const limits = new ProofLimits(new HandClock().now);
	const good: Proof = { token: "good" };
	limits.begin(good, HOME).succeeded();
	for (let count = 0; count < 20; count++)
		fail(limits, { token: `guess ${count}` }, HOME);
	assert.equal(waitOf(limits, { token: "guess" }, HOME), 1);
	assert.equal(waitOf(limits, good, HOME), 0);
	fail(limits, good, HOME, 10);
	assert.equal(waitOf(limits, good, HOME), 1);
});

test("a program that tries its old token or its wrong key all day does not make its neighbours wait", () => {
	const clock = new HandClock();
	const limits = new ProofLimits(clock.now);
	for (const proof of [{ token: "old" }, { accessKey: "WRONG" }]) {
		for (let count = 0; count < 100; count++) {
			const seconds = waitOf(limits, proof, HOME);
			clock.pass({ seconds });
			fail(limits, proof, HOME);
		}
		assert.equal(waitOf(limits, proof, HOME), 300);
	}
	assert.equal(waitOf(limits, { token: "new" }, HOME), 0);
	assert.equal(waitOf(limits, KEY, HOME), 0);
});

test("a token that was given out to an address is good there, whatever others have guessed", () => {
	const limits = new ProofLimits(new HandClock().now);
	for (let count = 0; count < 20; count++)
		fail(limits, { token: `guess ${count}` }, HOME);
	const fresh: Proof = { token: "fresh" };
	assert.equal(waitOf(limits, fresh, HOME), 1);
	limits.vouch(fresh, HOME);
	assert.equal(waitOf(limits, fresh, HOME), 0);
	assert.equal(waitOf(limits, { token: "guess" }, HOME), 1);
});

test("a password's user is not kept waiting by a clock that was put back either", () => {
	const clock = new HandClock();
	const limits = new SignInLimits(clock.now);
	for (let count = 0; count < 5; count++) limits.begin("user", HOME);
	clock.pass({ hours: -48 });
	assert.throws(() => limits.begin("user", AWAY), SignInBlocked);
	clock.pass({ seconds: 2 });
	limits.begin("user", AWAY);
});

describe("wrong passwords", () => {
	const isHeldUp = (limits: SignInLimits, user: string, address: string) => {
		try {
			limits.begin(user, address).forget();
			return false;
		} catch (error) {
			assert.ok(error instanceof SignInBlocked);
			return true;
		}
	};

	test("of neighbours and from elsewhere do not keep a user out where he has signed in", () => {
		const limits = new SignInLimits(new HandClock().now);
		limits.begin("alice", HOME).succeeded();
		for (let count = 0; count < 20; count++) limits.begin(`u${count}`, HOME);
		for (let count = 0; count < 5; count++) limits.begin("alice", AWAY);
		assert.equal(isHeldUp(limits, "bob", HOME), true);
		assert.equal(isHeldUp(limits, "alice", AWAY), true);
		assert.equal(isHeldUp(limits, "alice", HOME), false);
	});

	test("in his name where he has signed in are counted all the same, and by themselves", () => {
		const limits = new SignInLimits(new HandClock().now);
		limits.begin("alice", HOME).succeeded();
		for (let count = 0; count < 20; count++) limits.begin("alice", HOME);
		assert.equal(isHeldUp(limits, "alice", HOME), true);
		assert.equal(isHeldUp(limits, "alice", AWAY), false);
		assert.equal(isHeldUp(limits, "bob", HOME), false);
	});
});

test("what is counted is what will be looked at, and nothing else that the headers say", () => {
	const SDK = "SDK-HMAC-SHA256";
	const V11 = "V11-HMAC-SHA256";
	const token = { "x-auth-token": "T" };
	const table: [Record<string, string>, Proof | undefined][] = [
		[{ authorization: `${SDK} Access=A, Signature=0` }, { accessKey: "A" }],
		[{ authorization: `${SDK} Signature=0,Access=A` }, { accessKey: "A" }],
		[{ authorization: `${V11} Credential=A/1/r/s` }, { accessKey: "A" }],
		[{ authorization: `${SDK} Access=A`, ...token }, { accessKey: "A" }],
		[{ authorization: `${SDK} XAccess=D, Access=A` }, { accessKey: "A" }],
		[{ authorization: `${SDK} X=Access=D, Access=A` }, { accessKey: "A" }],
		[{ authorization: `${SDK} Credential=D, Access=A` }, undefined],
		[{ authorization: `${V11} Credential=A/1/r/s, Access=D` }, undefined],
		[{ authorization: `${SDK} Access=D, Access=A` }, undefined],
		[{ authorization: `${SDK} Credential=D` }, undefined],
		[{ authorization: `${V11} Access=D` }, undefined],
		[{ authorization: "Bearer Access=D", ...token }, { token: "T" }],
		[{ authorization: "", ...token }, { token: "T" }],
		[{ authorization: "Other Access=D", ...token }, undefined],
		[{ authorization: "Bearer Access=D" }, undefined],
		[token, { token: "T" }],
		[{ "x-auth-token": "" }, undefined],
		[{}, undefined],
	];
	for (const [headers, expected] of table)
		assert.deepEqual(shownProof(headers), expected, JSON.stringify(headers));
});

describe("wrong sign-ins of devices", () => {
	const limits = { perDevice: 3, forgivenMs: 300, longestDelayMs: 60_000 };
	const wait = (ms: number) =>
		new Promise((resolve) => setTimeout(resolve, ms));
	/** How long it takes until the next may be made. */
	async function waited(
		attempts: SignInAttempts,
		deviceId: string,
		address: string,
	): Promise<number> {
		const begin = performance.now();
		while (!attempts.mayTry(deviceId, address)) await wait(5);
		return performance.now() - begin;
	}

	test("make the next one wait longer every time", async () => {
		const attempts = new SignInAttempts(limits);
		for (let count = 0; count < 3; count++) attempts.failed("d", AWAY);
		const waits: number[] = [];
		for (let count = 0; count < 4; count++) {
			waits.push(await waited(attempts, "d", AWAY));
			attempts.failed("d", AWAY);
		}
		// 100, 200, 400, 800 ms.
		for (const [index, ms] of waits.entries())
			assert.ok(
				ms > 80 * 2 ** index && ms < 100 * 2 ** index + 100,
				waits.join(),
			);
	});

	test("where the device lives never make it wait longer than for one to be forgiven", async () => {
		const attempts = new SignInAttempts(limits);
		attempts.succeeded("d", HOME);
		for (let round = 0; round < 30; round++) attempts.failed("d", HOME);
		const ms = await waited(attempts, "d", HOME);
		assert.ok(ms < 250, `${ms} ms`);
	});

	test("from elsewhere, however many, never keep it out where it lives", () => {
		const attempts = new SignInAttempts();
		attempts.succeeded("d", HOME);
		for (let count = 0; count < 50_000; count++) {
			const address = `10.${count >> 16}.${(count >> 8) & 255}.${count & 255}`;
			attempts.failed("d", address);
			attempts.failed(`guess_${count}`, HOME);
		}
		assert.equal(attempts.mayTry("d", "203.0.113.9"), false);
		assert.equal(attempts.mayTry("d", HOME), true);
	});
});

// --- over the whole server ----------------------------------------------------------------

const LIMIT_TEXT =
	"Incorrect IAM authentication information: AK access failed to reach the limit,forbidden";

/** Behind a proxy that is trusted: so a test can come from any address. */
const env = { OTARU_TRUSTED_PROXIES: "127.0.0.1" };

function isBlocked(answer: Answer): boolean {
	if (!answer.json?.error_msg?.includes("AK access failed")) return false;
	assert.equal(answer.status, 401);
	assert.deepEqual(answer.json, {
		error_code: "APIGW.0301",
		error_msg: LIMIT_TEXT,
		request_id: answer.headers["x-request-id"],
	});
	assert.match(answer.headers["retry-after"] ?? "", /^[1-9]\d*$/);
	return true;
}

forEachEngine((engine) => {
	describe("the management API", () => {
		const withServer = async (
			work: (world: {
				server: TestServer;
				clock: HandClock;
				/** A signed call from an address; `secretKey` in place of the right one. */
				call: (
					address: string,
					options?: { secretKey?: string; accessKey?: string } & Pick<
						SignedOptions,
						"tamper"
					>,
				) => Promise<Answer>;
				byToken: (token: string, address: string) => Promise<Answer>;
			}) => Promise<void>,
		) => {
			const clock = new HandClock();
			await using server = await startServer(engine, { env, now: clock.now });
			const { credentials } = server;
			const path = `/v5/iot/${credentials.project_id}/apps`;
			await work({
				server,
				clock,
				call: (address, { secretKey, accessKey, ...more } = {}) =>
					sendSigned(server, {
						path,
						date: clock.now(),
						key: {
							accessKey: accessKey ?? credentials.access_key,
							secretKey: secretKey ?? credentials.secret_key,
						},
						...more,
						tamper: (request) => {
							// As the proxy adds it, which signs nothing.
							request.headers["x-forwarded-for"] = address;
							more.tamper?.(request);
						},
					}),
				byToken: (token, address) =>
					send(server.url, {
						path,
						headers: { "x-auth-token": token, "x-forwarded-for": address },
					}),
			});
		};

		test("does not look at signatures of a key that failed too often, but where it has been right", () =>
			withServer(async ({ call, clock }) => {
				assert.equal((await call(HOME)).status, 200);
				const wrong = { secretKey: "x".repeat(40) };
				for (let count = 0; count < 10; count++) {
					const answer = await call(AWAY, wrong);
					assert.equal(answer.status, 401);
					assert.equal(isBlocked(answer), false);
				}
				assert.ok(isBlocked(await call(AWAY, wrong)));
				// Also a right one is not looked at, from wherever.
				assert.ok(isBlocked(await call(AWAY)));
				assert.ok(isBlocked(await call("203.0.113.9")));
				assert.equal((await call(HOME)).status, 200);
				clock.pass({ seconds: 2 });
				assert.equal((await call(AWAY)).status, 200);
				// One that was right ends the wait for where it came from.
				assert.equal((await call(AWAY, wrong)).status, 401);
				assert.equal((await call(AWAY)).status, 200);
			}));

		test("counts guesses at a token as such, whatever else stands in the headers, and keeps them so", () =>
			withServer(async ({ byToken, server }) => {
				const { token } = await server.api.signIn({
					domainName: server.credentials.domain_name,
					userName: server.credentials.user_name,
					password: server.credentials.password,
				});
				const path = `/v5/iot/${server.credentials.project_id}/apps`;
				const withDecoy = (given: string) =>
					send(server.url, {
						path,
						headers: {
							"x-auth-token": given,
							authorization: "Bearer Access=DECOY",
							"x-forwarded-for": AWAY,
						},
					});
				let served = 0;
				for (let count = 0; count < 40; count++) {
					// Who is right with the decoy must not make it trusted.
					if (count % 5 === 0)
						assert.equal((await withDecoy(token)).status, 200);
					if (!isBlocked(await withDecoy(`guess${count}`))) served++;
				}
				assert.equal(served, 20);
				assert.ok(isBlocked(await byToken("guess", AWAY)));
				const [row] = await auditOf(server.api, { status: 401 });
				assert.equal(row?.credential, "token");
			}));

		test("keeps a call as that of the key that signed it, and takes none that names two", () =>
			withServer(async ({ server, clock }) => {
				const other = await makeUser(server.api);
				const path = `/v5/iot/${server.credentials.project_id}/apps`;
				const call = (change: (authorization: string) => string) =>
					sendSigned(server, {
						path,
						date: clock.now(),
						key: other.key,
						tamper: ({ headers }) => {
							headers.authorization = change(headers.authorization ?? "");
						},
					});
				const victim = server.credentials.access_key;
				for (const first of [`Credential=${victim}`, `Access=${victim}`]) {
					const answer = await call((text) =>
						text.replace("Access=", `${first}, Access=`),
					);
					assert.equal(answer.status, 401);
					const row = await lastAudit(server.api);
					assert.equal(row.status, 401);
					assert.equal(row.credential, undefined);
				}
				const odd = await call((text) =>
					text.replace("Access=", `X=Access=${victim}, Access=`),
				);
				assert.equal(odd.status, 403);
				const row = await lastAudit(server.api);
				assert.deepEqual(
					[row.status, row.credential, row.user_id],
					[403, other.key.accessKey, other.userId],
				);
			}));

		test("counts wrong passwords of a user together, however he is named", () =>
			withServer(async ({ server }) => {
				const victim = await makeUser(server.api);
				const { domain_name } = server.credentials;
				const { account_id } = await server.server.db
					.selectFrom("accounts")
					.select("account_id")
					.executeTakeFirstOrThrow();
				const namings = (name: string, id: string) => [
					{ name, domain: { name: domain_name } },
					{ name, domain: { id: account_id } },
					{ id },
				];
				const statusOf = async (user: object, index: number) => {
					const answer = await send(server.url, {
						method: "POST",
						path: "/v3/auth/tokens",
						headers: {
							"content-type": "application/json",
							"x-forwarded-for": `192.0.2.${index}`,
						},
						body: JSON.stringify({
							auth: {
								identity: {
									methods: ["password"],
									password: { user: { ...user, password: "A-wrong-one-1" } },
								},
							},
						}),
					});
					return answer.status;
				};
				const asked = async (users: object[]) => {
					const statuses: number[] = [];
					for (let index = 0; index < 9; index++) {
						const user = users[index % users.length] ?? {};
						statuses.push(await statusOf(user, index));
					}
					return statuses;
				};
				const expected = [...Array(5).fill(401), ...Array(4).fill(429)];
				assert.deepEqual(
					await asked(namings(victim.userName, victim.userId)),
					expected,
				);
				// Of nobody the names in an account are one too: else it would show who is there.
				assert.deepEqual(
					await asked(namings("nobody", "unused").slice(0, 2)),
					expected,
				);
			}));

		test("counts unknown keys and unknown tokens by their address, and what cannot be proven otherwise not at all", () =>
			withServer(async ({ call, byToken, server, clock }) => {
				assert.equal((await call(HOME)).status, 200);
				const { token } = await new Client({
					endpoint: server.url,
					projectId: server.credentials.project_id,
				}).signIn({
					domainName: server.credentials.domain_name,
					userName: server.credentials.user_name,
					password: server.credentials.password,
				});
				assert.equal((await byToken(token, HOME)).status, 200);
				// A wrong clock is no guess.
				for (let count = 0; count < 30; count++) {
					const late = await call(HOME, {
						accessKey: "SOMEBODY",
						tamper: ({ headers }) => {
							headers["x-sdk-date"] = "20200101T000000Z";
						},
					});
					assert.equal(late.status, 401);
					assert.equal(isBlocked(late), false);
				}
				for (let count = 0; count < 10; count++) {
					assert.equal(isBlocked(await byToken(`guess${count}`, HOME)), false);
					assert.equal(
						isBlocked(await call(HOME, { accessKey: `GUESS${count}` })),
						false,
					);
				}
				assert.ok(isBlocked(await byToken("guess", HOME)));
				assert.ok(isBlocked(await call(HOME, { accessKey: "GUESS" })));
				assert.equal((await byToken(token, HOME)).status, 200);
				assert.equal((await call(HOME)).status, 200);
				assert.ok(!isBlocked(await byToken("guess", AWAY)));
				// Without any proof there is nothing to guess.
				for (let count = 0; count < 30; count++) {
					const answer = await send(server.url, {
						path: `/v5/iot/${server.credentials.project_id}/apps`,
						headers: { "x-forwarded-for": "203.0.113.77" },
					});
					assert.equal(isBlocked(answer), false);
				}
				// A token that is over is told so, however often it comes.
				clock.pass({ hours: 25 });
				for (let count = 0; count < 15; count++) {
					const over = await byToken(token, HOME);
					assert.match(over.json.error_msg, /The token must be updated/);
				}
			}));
	});
});

test("a blocked attempt asks nothing of the store, once the audit trail has enough of them", async () => {
	const { now } = new HandClock();
	await using server = await startServer(sqlite, { now });
	const path = `/v5/iot/${server.credentials.project_id}/apps`;
	const wrong = {
		path,
		date: now(),
		key: { accessKey: "NOBODY", secretKey: "x".repeat(40) },
	};
	for (let count = 0; count < 10; count++)
		assert.equal(isBlocked(await sendSigned(server, wrong)), false);
	for (let count = 0; count < 15; count++)
		assert.ok(isBlocked(await sendSigned(server, wrong)));
	// Without a store only what asks it fails.
	await server.server.db.destroy();
	assert.ok(isBlocked(await sendSigned(server, wrong)));
	const other = await sendSigned(server, {
		...wrong,
		key: { accessKey: "SOMEBODY", secretKey: "x".repeat(40) },
	});
	assert.equal(other.status, 500);
});

test("whoever has to wait is told for how long in a sentence that counts right", () => {
	assert.equal(new SignInBlocked(400).advice, "Try again in 1 second.");
	assert.equal(new SignInBlocked(1_001).advice, "Try again in 2 seconds.");
});
