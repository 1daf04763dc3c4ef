import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { readConfig } from "../server/config.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import {
	type Answer,
	type RawRequest,
	send,
	sendSigned,
} from "./support/raw-request.ts";
import { startServer, type TestServer } from "./support/server.ts";

const ORIGIN = "https://ota.example.com";
const OTHER = "http://localhost:5173";

const corsHeaders = ({ headers }: Answer) =>
	Object.entries(headers).filter(
		([name]) => name.startsWith("access-control-") || name === "vary",
	);
const preflight = (
	origin: string,
	path: string,
	asked = "authorization,x-sdk-date",
): RawRequest => ({
	method: "OPTIONS",
	path,
	headers: {
		origin,
		"access-control-request-method": "POST",
		"access-control-request-headers": asked,
	},
});
const appsOf = ({ credentials }: TestServer) =>
	`/v5/iot/${credentials.project_id}/apps`;
const tokenBody = ({ credentials }: TestServer) =>
	JSON.stringify({
		auth: {
			identity: {
				methods: ["password"],
				password: {
					user: {
						name: credentials.user_name,
						password: credentials.password,
						domain: { name: credentials.domain_name },
					},
				},
			},
		},
	});

test("without the setting nothing is said to pages of other origins, and a preflight is no API", async () => {
	await using server = await startServer(sqlite);
	const answers = [
		await send(server.url, preflight(ORIGIN, appsOf(server))),
		await send(server.url, {
			path: "/health/live",
			headers: { origin: ORIGIN },
		}),
		await sendSigned(server, {
			path: appsOf(server),
			headers: { origin: ORIGIN },
		}),
	];
	assert.deepEqual(
		answers.map(({ status }) => status),
		[404, 200, 200],
	);
	for (const answer of answers) assert.deepEqual(corsHeaders(answer), []);
});

forEachEngine((engine) => {
	describe("with two origins in the setting", () => {
		test("their pages may call and read, others not, and nobody without signing in", async () => {
			await using server = await startServer(engine, {
				env: { OTARU_CORS_ORIGINS: `${ORIGIN}, ${OTHER}` },
			});
			const path = appsOf(server);
			for (const origin of [ORIGIN, OTHER]) {
				const asked = await send(server.url, preflight(origin, path));
				assert.equal(asked.status, 204);
				assert.equal(asked.text, "");
				assert.deepEqual(Object.fromEntries(corsHeaders(asked)), {
					vary: "Origin",
					"access-control-allow-origin": origin,
					"access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE",
					"access-control-allow-headers": "authorization,x-sdk-date",
					"access-control-expose-headers":
						"X-Request-Id, X-Subject-Token, Retry-After, Content-Disposition",
					"access-control-max-age": "600",
				});
				const read = await sendSigned(server, { path, headers: { origin } });
				assert.equal(read.status, 200);
				assert.equal(read.headers["access-control-allow-origin"], origin);
				assert.equal(
					read.headers["access-control-allow-credentials"],
					undefined,
				);
				// Also what went wrong can be read.
				const unsigned = await send(server.url, { path, headers: { origin } });
				assert.equal(unsigned.status, 401);
				assert.equal(unsigned.headers["access-control-allow-origin"], origin);
			}
			for (const origin of [
				"https://evil.example.com",
				"http://ota.example.com",
				`${ORIGIN}:8443`,
				`${ORIGIN}.evil.example.com`,
				"null",
				"",
			]) {
				const refused = await send(server.url, preflight(origin, path));
				assert.equal(refused.status, 404, origin);
				assert.deepEqual(corsHeaders(refused), [["vary", "Origin"]]);
				const read = await sendSigned(server, { path, headers: { origin } });
				assert.deepEqual(corsHeaders(read), [["vary", "Origin"]]);
			}
		});
	});
});

test("the token of a sign-in can be read, and a preflight brings nothing into the answer that is no name", async () => {
	await using server = await startServer(sqlite, {
		env: { OTARU_CORS_ORIGINS: ORIGIN },
	});
	const answer = await send(server.url, {
		method: "POST",
		path: "/v3/auth/tokens",
		headers: { origin: ORIGIN, "content-type": "application/json" },
		body: tokenBody(server),
	});
	assert.equal(answer.status, 201);
	assert.ok(answer.headers["x-subject-token"]);
	assert.match(
		answer.headers["access-control-expose-headers"] ?? "",
		/X-Request-Id, X-Subject-Token/,
	);
	const odd = await send(
		server.url,
		preflight(ORIGIN, appsOf(server), "x-a, <script>"),
	);
	assert.equal(odd.status, 204);
	assert.equal(odd.headers["access-control-allow-headers"], undefined);
	// Not a preflight: a request of a method that no route has.
	const plain = await send(server.url, {
		method: "OPTIONS",
		path: appsOf(server),
		headers: { origin: ORIGIN },
	});
	assert.equal(plain.status, 404);
});

test("an event stream can be followed from a page that may", async () => {
	await using server = await startServer(sqlite, {
		env: { OTARU_CORS_ORIGINS: ORIGIN },
	});
	const asked = new AbortController();
	const { project_id } = server.credentials;
	const answer = await server.api.send(
		"GET",
		`/otaru/v1/projects/${project_id}/events`,
		{ headers: { origin: ORIGIN }, signal: asked.signal },
	);
	assert.equal(answer.status, 200);
	assert.equal(answer.headers.get("access-control-allow-origin"), ORIGIN);
	asked.abort();
});

for (const origin of [
	"*",
	"https://*.example.com",
	"ota.example.com",
	"https://ota.example.com/",
	"https://ota.example.com/page",
	"https://OTA.example.com",
	"https://ota.example.com:443",
	"ftp://ota.example.com",
	"null",
]) {
	test(`"${origin}" is no origin to be listed`, () => {
		assert.throws(
			() => readConfig({ OTARU_CORS_ORIGINS: origin }),
			/OTARU_CORS_ORIGINS: .* must be an origin such as/,
		);
	});
}
