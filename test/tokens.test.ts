import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { after, before, describe, test } from "node:test";
import type { CreateToken } from "../wire/access.ts";
import { Client } from "../wire/client.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import { type Answer, send } from "./support/raw-request.ts";
import { refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

type Scope = CreateToken["auth"]["scope"];

function requestOf(
	{ credentials }: Pick<TestServer, "credentials">,
	scope?: Scope,
	changes: Record<string, unknown> = {},
) {
	return {
		auth: {
			identity: {
				methods: ["password"],
				password: {
					user: {
						name: credentials.user_name,
						password: credentials.password,
						domain: { name: credentials.domain_name },
						...changes,
					},
				},
			},
			...(scope ? { scope } : {}),
		},
	};
}

function ask(
	server: Pick<TestServer, "url">,
	body: unknown,
	path = "/v3/auth/tokens",
): Promise<Answer> {
	return send(server.url, {
		method: "POST",
		path,
		headers: { "content-type": "application/json;charset=utf8" },
		body: typeof body === "string" ? body : JSON.stringify(body),
	});
}

function iamError(status: number, message: string, title: string) {
	return { error: { code: status, message, title } };
}

const WRONG = iamError(
	401,
	"The username or password is wrong.",
	"Unauthorized",
);

forEachEngine((engine) => {
	let server: TestServer;
	let apps: string;
	before(async () => {
		server = await startServer(engine);
		apps = `/v5/iot/${server.credentials.project_id}/apps`;
	});
	after(() => server[Symbol.asyncDispose]());

	const listApps = (token: string) =>
		send(server.url, { path: apps, headers: { "x-auth-token": token } });

	test("a password gives a token that signs calls for a day", async () => {
		const { credentials } = server;
		const answer = await ask(
			server,
			requestOf(server, { project: { name: credentials.project_name } }),
		);
		assert.equal(answer.status, 201, answer.text);
		const token = String(answer.headers["x-subject-token"]);
		assert.match(token, /^[A-Za-z0-9_-]{64}$/);
		assert.equal(answer.text.includes(token), false);
		const { issued_at, expires_at, user, catalog, ...rest } = answer.json.token;
		assert.match(issued_at, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/);
		assert.equal(Date.parse(expires_at) - Date.parse(issued_at), 86_400_000);
		const domain = { id: user.domain.id, name: "otaru" };
		assert.deepEqual(user, {
			id: user.id,
			name: "admin",
			domain,
			password_expires_at: "",
		});
		assert.deepEqual(rest, {
			methods: ["password"],
			project: { id: credentials.project_id, name: "otaru", domain },
			roles: [{ id: "0", name: "te_admin" }],
		});
		assert.deepEqual(
			catalog.map((service: { type: string; endpoints: { url: string }[] }) => [
				service.type,
				service.endpoints[0]?.url,
			]),
			[
				["iam", `${server.url}/v3`],
				["iotda", `${server.url}/v5/iot/${credentials.project_id}`],
			],
		);
		const used = await listApps(token);
		assert.equal(used.status, 200, used.text);
	});

	test("nocatalog leaves the catalog empty", async () => {
		const answer = await ask(
			server,
			requestOf(server),
			"/v3/auth/tokens?nocatalog=true",
		);
		assert.equal(answer.status, 201);
		assert.deepEqual(answer.json.token.catalog, []);
	});

	test("the scope is a project by name or id, or the account, which is also what no scope means", async () => {
		const { project_id, project_name, domain_name } = server.credentials;
		for (const scope of [
			{ project: { name: project_name } },
			{ project: { id: project_id } },
		]) {
			const answer = await ask(server, requestOf(server, scope));
			assert.equal(answer.json.token.project.id, project_id);
			assert.equal("domain" in answer.json.token, false);
		}
		for (const scope of [
			undefined,
			{},
			{ domain: { name: domain_name } },
		] satisfies (Scope | undefined)[]) {
			const answer = await ask(server, requestOf(server, scope));
			assert.equal(answer.json.token.domain.name, domain_name);
			assert.equal("project" in answer.json.token, false);
		}
	});

	test("a token of the account opens the account's calls, not a project's", async () => {
		const answer = await ask(server, requestOf(server));
		const token = String(answer.headers["x-subject-token"]);
		const api = server.api.as({ token });
		assert.equal((await api.listProjects()).projects.length, 1);
		await refused(api.listResourceSpaces(), 403, "IOTDA.000022");
	});

	test("a user may sign in by his id", async () => {
		const first = await ask(server, requestOf(server));
		const { id } = first.json.token.user;
		const byId = await ask(server, {
			auth: {
				identity: {
					methods: ["password"],
					password: { user: { id, password: server.credentials.password } },
				},
			},
		});
		assert.equal(byId.status, 201, byId.text);
		const byDomainId = await ask(
			server,
			requestOf(server, undefined, {
				domain: { id: first.json.token.user.domain.id },
			}),
		);
		assert.equal(byDomainId.status, 201, byDomainId.text);
	});

	test("wrong password, unknown user and unknown account read the same", async () => {
		for (const changes of [
			{ password: "wrong" },
			{ name: "nobody" },
			{ domain: { name: "elsewhere" } },
		]) {
			const answer = await ask(server, requestOf(server, undefined, changes));
			assert.equal(answer.status, 401);
			assert.deepEqual(answer.json, WRONG);
			assert.match(String(answer.headers["x-request-id"]), /^[0-9a-f]{32}$/);
			assert.equal(answer.headers["x-subject-token"], undefined);
		}
	});

	test("a scope that is not the account's is refused", async () => {
		for (const scope of [
			{ project: { name: "nowhere" } },
			{ project: { id: "0a1b2c3d4e5f60718293a4b5c6d7e8f9" } },
			{ domain: { name: "elsewhere" } },
		]) {
			const answer = await ask(server, requestOf(server, scope));
			assert.equal(answer.status, 400, answer.text);
			assert.equal(answer.json.error.title, "Bad Request");
		}
	});

	test("what is malformed is refused, naming the field, in the form of IAM", async () => {
		const user = "auth.identity.password.user";
		const good = requestOf(server);
		const cases: [body: unknown, words: string][] = [
			["", "auth is required"],
			["{", "not JSON"],
			["[]", "body must be an object"],
			['{"auth":null}', "auth must be an object"],
			['{"auth":{}}', "auth.identity is required"],
			['{"auth":{},"auth":{}}', 'The key "auth" occurs twice'],
			[
				requestOf(server, undefined, { password: 1 }),
				`${user}.password must be a string`,
			],
			[
				requestOf(server, undefined, { password: "" }),
				`${user}.password must be 1 to 1024 characters`,
			],
			[
				requestOf(server, undefined, { password: "x".repeat(1025) }),
				`${user}.password must be 1 to 1024 characters`,
			],
			[
				requestOf(server, undefined, { name: "a\u0000b" }),
				`${user}.name must be 1 to 256 characters`,
			],
			[
				requestOf(server, undefined, { name: undefined }),
				`${user}.name is required without an id`,
			],
			[
				requestOf(server, undefined, { domain: undefined }),
				`${user}.domain.name is required`,
			],
			[
				{
					auth: {
						...good.auth,
						identity: { ...good.auth.identity, methods: ["totp"] },
					},
				},
				"auth.identity.methods[0] must be",
			],
			[
				{
					auth: {
						...good.auth,
						identity: { ...good.auth.identity, methods: [] },
					},
				},
				'auth.identity.methods must be ["password"]',
			],
			[requestOf(server, { project: {} }), "auth.scope.project must have"],
			[
				requestOf(server, { project: { name: "a" }, domain: { name: "b" } }),
				"auth.scope must be a project or a domain",
			],
		];
		for (const [body, words] of cases) {
			const answer = await ask(server, body);
			assert.equal(answer.status, 400, answer.text);
			assert.equal(answer.json.error.code, 400);
			assert.equal(answer.json.error.title, "Bad Request");
			assert.ok(
				answer.json.error.message.includes(words),
				`"${answer.json.error.message}" does not say "${words}"`,
			);
		}
	});

	test("no more is read from a stranger than a sign-in needs", async () => {
		const answer = await ask(server, {
			...requestOf(server),
			padding: "x".repeat(65_536),
		});
		assert.equal(answer.status, 413);
		assert.deepEqual(
			answer.json,
			iamError(
				413,
				"Invalid input. The request body exceeds the upper limit. It may have 65536 bytes.",
				"Payload Too Large",
			),
		);
	});

	test("a token can be asked about by whoever is signed in", async () => {
		const answer = await ask(
			server,
			requestOf(server, { project: { id: server.credentials.project_id } }),
		);
		const token = String(answer.headers["x-subject-token"]);
		assert.deepEqual(await server.api.describeToken(token), answer.json);
		await refused(server.api.describeToken("unknown"), 404, "404");
		await refused(
			server.api.call("GET", "/v3/auth/tokens"),
			400,
			"400",
			"X-Subject-Token is required",
		);
		await refused(
			server.api.as(undefined).describeToken(token),
			401,
			"APIGW.0301",
		);
	});

	test("an unknown token is refused, and a token is nowhere in the store", async () => {
		const answer = await listApps("unknown");
		assert.equal(answer.status, 401);
		assert.deepEqual(answer.json, {
			error_code: "APIGW.0301",
			error_msg: "Incorrect IAM authentication information: decrypt token fail",
			request_id: answer.headers["x-request-id"],
		});
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const rows = await server.server.db
			.selectFrom("tokens")
			.selectAll()
			.execute();
		assert.equal(JSON.stringify(rows).includes(token), false);
		const hash = createHash("sha256").update(token).digest("hex");
		assert.ok(rows.some((row) => row.token_hash === hash));
		await server.server.db
			.deleteFrom("tokens")
			.where("token_hash", "=", hash)
			.execute();
		assert.equal((await listApps(token)).status, 401);
	});

	test("the calls by which the SDKs find their project answer as they expect", async () => {
		const { project_id, project_name } = server.credentials;
		const named = await server.api.listProjects({ name: project_name });
		assert.equal(named.projects.length, 1);
		const [project] = named.projects;
		assert.equal(project?.id, project_id);
		assert.equal(project?.name, project_name);
		assert.equal(project?.enabled, true);
		assert.equal(project?.is_domain, false);
		assert.equal(project?.parent_id, project?.domain_id);
		assert.equal(
			project?.links.self,
			`${server.url}/v3/projects/${project_id}`,
		);
		assert.deepEqual(
			(await server.api.listProjects({ name: "elsewhere" })).projects,
			[],
		);
		const { domains } = await server.api.listDomains();
		assert.deepEqual(
			domains.map(({ id, name, enabled }) => ({ id, name, enabled })),
			[{ id: project?.domain_id, name: "otaru", enabled: true }],
		);
		const identity = await server.api.getCallerIdentity();
		assert.equal(identity.account_id, project?.domain_id);
		assert.equal(
			identity.principal_urn,
			`iam::${identity.account_id}:user:admin`,
		);
		const { regions } = await server.api.listRegions();
		assert.deepEqual(
			regions.map(({ id, type }) => ({ id, type })),
			[{ id: project_name, type: "public" }],
		);
		const created = await server.api.send("POST", "/v3/projects", {
			json: { project: { name: "new", domain_id: project?.domain_id } },
		});
		assert.equal(created.status, 403);
		assert.deepEqual(
			await created.json(),
			iamError(
				403,
				"You are not authorized to perform the requested action.",
				"Forbidden",
			),
		);
	});
});

describe("with a clock at hand", () => {
	let server: TestServer;
	let nowMs = Date.parse("2026-01-29T08:00:00Z");
	const pass = (seconds: number) => {
		nowMs += seconds * 1000;
	};
	before(async () => {
		server = await startServer(sqlite, { now: () => new Date(nowMs) });
	});
	after(() => server[Symbol.asyncDispose]());

	test("a token ends after 24 hours, and says so for a while", async () => {
		const { token } = await server.api.signIn({
			domainName: "otaru",
			userName: "admin",
			password: server.credentials.password,
		});
		const api = server.api.as({ token });
		pass(86_399);
		await api.listResourceSpaces();
		pass(1);
		await refused(
			api.listResourceSpaces(),
			401,
			"APIGW.0301",
			"The token must be updated",
		);
		await refused(server.api.describeToken(token), 404, "404");
		// Later ones sweep away what expired a day before.
		pass(86_401);
		await server.api.signIn({
			domainName: "otaru",
			userName: "admin",
			password: server.credentials.password,
		});
		await refused(
			api.listResourceSpaces(),
			401,
			"APIGW.0301",
			"decrypt token fail",
		);
	});

	test("failed sign-ins wait longer and longer, and others' failures do not lock a known user out", async () => {
		// From an address that never signed in as this user.
		const attempt = (name: string, password = "wrong") =>
			ask(server, requestOf(server, undefined, { name, password }));
		for (let failure = 1; failure <= 5; failure++)
			assert.equal((await attempt("mallory")).status, 401);
		for (const seconds of [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]) {
			const early = await attempt("mallory");
			assert.equal(early.status, 429);
			assert.equal(early.headers["retry-after"], String(seconds));
			assert.deepEqual(
				early.json,
				iamError(
					429,
					`Too many failed sign-ins of this user or from this address. Try again in ${seconds} ${seconds === 1 ? "second" : "seconds"}.`,
					"Too Many Requests",
				),
			);
			pass(seconds);
			assert.equal((await attempt("mallory")).status, 401);
		}
		// The administrator signed in from here before: only the address may hold him up.
		for (let failure = 1; failure <= 3; failure++)
			assert.equal((await attempt("admin")).status, 401);
		assert.equal(
			(await attempt("admin", server.credentials.password)).status,
			201,
		);
		pass(3_600);
		assert.equal((await attempt("mallory")).status, 401);
	});

	test("one address that tries many names is held up as well", async () => {
		pass(7_200);
		const statuses: number[] = [];
		for (let index = 0; index < 21; index++) {
			const answer = await ask(
				server,
				requestOf(server, undefined, {
					name: `user${index}`,
					password: "wrong",
				}),
			);
			statuses.push(answer.status);
		}
		assert.deepEqual(statuses, [...Array(20).fill(401), 429]);
	});
});

test("a hundred attempts at once are no way around the limit", async () => {
	// The clock stands still, however long the password checks take.
	const at = new Date();
	await using server = await startServer(sqlite, { now: () => at });
	const answers = await Promise.all(
		Array.from({ length: 100 }, (_, index) =>
			ask(
				server,
				requestOf(server, undefined, {
					name: "mallory",
					password: `p${index}`,
				}),
			),
		),
	);
	const refusedAtOnce = answers.filter(({ status }) => status === 429).length;
	assert.equal(refusedAtOnce, 95);
	assert.equal(answers.filter(({ status }) => status === 401).length, 5);
});

test("a token opens no more than its user may do at that moment", async () => {
	await using server = await startServer(sqlite);
	const { db } = server.server;
	const [admin] = await db.selectFrom("users").selectAll().execute();
	assert.ok(admin);
	await db
		.insertInto("users")
		.values({ ...admin, user_id: "second", name: "second" })
		.execute();
	const { token } = await server.api.signIn({
		domainName: "otaru",
		userName: "second",
		password: server.credentials.password,
	});
	const api = new Client({
		endpoint: server.url,
		projectId: server.credentials.project_id,
		credentials: { token },
	});
	await api.listResourceSpaces();
	await db
		.updateTable("users")
		.set({ is_administrator: 0 })
		.where("user_id", "=", "second")
		.execute();
	await refused(api.listResourceSpaces(), 403, "IOTDA.000022");
});
