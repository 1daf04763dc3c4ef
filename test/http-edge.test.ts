import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { request as requestByTls } from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { selfSignedCertificate } from "./support/certificate.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import {
	type Answer,
	send,
	sendBytes,
	sendSigned,
	signed,
} from "./support/raw-request.ts";
import { startServer, type TestServer } from "./support/server.ts";

const JSON_TYPE = { "content-type": "application/json" };

forEachEngine((engine) => {
	let server: TestServer;
	let apps: string;
	before(async () => {
		server = await startServer(engine);
		apps = `/v5/iot/${server.credentials.project_id}/apps`;
	});
	after(() => server[Symbol.asyncDispose]());

	const post = (body: string | Uint8Array, path = apps) =>
		sendSigned(server, { method: "POST", path, headers: JSON_TYPE, body });
	const assertFailed = (
		answer: Answer,
		status: number,
		code: string,
		words = "",
	) => {
		assert.deepEqual(
			[answer.status, answer.json?.error_code],
			[status, code],
			answer.text,
		);
		assert.ok(
			answer.json.error_msg.includes(words),
			`"${answer.json.error_msg}" does not say "${words}"`,
		);
		assert.match(String(answer.headers["x-request-id"]), /^[0-9a-f]{32}$/);
		assert.equal(answer.headers["content-type"], "application/json");
	};
	const spaces = async () =>
		(await server.api.listResourceSpaces()).applications.length;

	test("an unknown path and a wrong method answer alike, before anybody is asked who he is", async () => {
		const { project_id } = server.credentials;
		for (const [method, path] of [
			["GET", "/"],
			["GET", "/nothing"],
			["GET", `${apps}/`],
			["PATCH", apps],
			["OPTIONS", apps],
			["DELETE", apps],
			["PROPFIND", apps],
			["GET", `/v5/iot//apps`],
			["GET", `/V5/iot/${project_id}/apps`],
			["POST", "/v3.0/OS-CREDENTIAL/securitytokens"],
			["POST", "/v3.0/OS-AUTH/id-token/tokens"],
			["GET", "/%zz"],
			["GET", `/v5/iot/%ff/apps`],
			["GET", `/v5/iot/${"p".repeat(15_000)}/apps/${"q".repeat(300)}/r`],
		] as const) {
			const answer = await send(server.url, { method, path });
			assertFailed(answer, 404, "APIGW.0101", "The API does not exist");
			assert.equal(answer.json.request_id, answer.headers["x-request-id"]);
		}
		const head = await send(server.url, { method: "HEAD", path: "/nothing" });
		assert.equal(head.status, 404);
		assert.ok(head.headers["x-request-id"]);
	});

	test("each check comes before the next: caller, project, JSON, shape", async () => {
		const wrong = {
			method: "POST",
			headers: { ...JSON_TYPE, "x-project-id": "other" },
			body: "{",
		};
		const foreign = "/v5/iot/0a1b2c3d4e5f60718293a4b5c6d7e8f9/apps";
		assertFailed(
			await send(server.url, { ...wrong, path: foreign }),
			401,
			"APIGW.0301",
		);
		assertFailed(
			await sendSigned(server, { ...wrong, path: foreign }),
			403,
			"IOTDA.000022",
		);
		assertFailed(
			await sendSigned(server, { ...wrong, path: apps }),
			403,
			"IOTDA.000022",
		);
		assertFailed(await post("{"), 400, "IOTDA.000008");
		assertFailed(await post("{}"), 400, "IOTDA.000006", "app_name is required");
		assertFailed(
			await sendSigned(server, {
				method: "PUT",
				path: `${apps}/unknown`,
				headers: JSON_TYPE,
				body: '{"app_name":""}',
			}),
			400,
			"IOTDA.000006",
		);
		assertFailed(
			await sendSigned(server, { path: `${apps}/unknown` }),
			403,
			"IOTDA.001000",
		);
	});

	test("what is not JSON is refused with its reason, and nothing is stored", async () => {
		const before = await spaces();
		const cases: [body: string | Uint8Array, words: string][] = [
			["{", "The body is not JSON"],
			["nonsense", "The body is not JSON"],
			['{"app_name":"a"} x', "The body is not JSON"],
			["{'app_name':'a'}", "The body is not JSON"],
			['{"app_name":"a",}', "The body is not JSON"],
			['{"app_name":"a\nb"}', "The body is not JSON"],
			['{"app_name":NaN}', "The body is not JSON"],
			[Buffer.from('{"app_name":"\xff"}', "latin1"), "not UTF-8"],
			[Buffer.from('{"app_name":"\xc0\xaf"}', "latin1"), "not UTF-8"],
			[Buffer.from('{"app_name":"\xed\xa0\x80"}', "latin1"), "not UTF-8"],
			[Buffer.from('\ufeff{"app_name":"a"}', "utf16le"), "not UTF-8"],
			['{"app_name":"\\ud800"}', "half a surrogate pair"],
			['{"x":[{"\\udc00":1}],"app_name":"a"}', "half a surrogate pair"],
			['{"app_name":"a","app_name":"b"}', 'The key "app_name" occurs twice'],
			['{"app_name":"a","app\\u005fname":"b"}', 'The key "app_name"'],
			['{"app_name":"a","x":{"y":[{"z":1,"z":2}]}}', 'The key "z"'],
			['{"app_name":"a","\\"\\\\":1,"\\"\\\\":2}', "occurs twice"],
			[`{"app_name":"a","x":${"[".repeat(101)}${"]".repeat(101)}}`, "deeper"],
			["[".repeat(1_000_000), "deeper than 100 levels"],
			['{"a":'.repeat(500_000), "deeper than 100 levels"],
			[randomBytes(1_000), ""],
		];
		for (const [body, words] of cases)
			assertFailed(await post(body), 400, "IOTDA.000008", words);
		assert.equal(await spaces(), before);
	});

	test("JSON of a wrong shape is refused, naming field and rule", async () => {
		const before = await spaces();
		const packages = `/v5/iot/${server.credentials.project_id}/ota-upgrades/packages`;
		const tasks = `/v5/iot/${server.credentials.project_id}/batchtasks`;
		const location = (fields: object) =>
			JSON.stringify({
				app_id: "a",
				package_type: "firmwarePackage",
				product_id: "p",
				version: "1",
				file_location: { obs_location: fields },
			});
		const rule = "app_name must be 1 to 64 characters";
		const cases: [body: string, words: string, path?: string][] = [
			["null", "body must be an object"],
			["[]", "body must be an object"],
			['"text"', "body must be an object"],
			["1", "body must be an object"],
			['{"app_name":null}', "app_name must be a string"],
			['{"app_name":1}', "app_name must be a string"],
			['{"app_name":["a"]}', "app_name must be a string"],
			['{"app_name":{}}', "app_name must be a string"],
			['{"app_name":""}', rule],
			['{"app_name":"\\u0000"}', rule],
			['{"app_name":"a b"}', rule],
			[`{"app_name":"${"a".repeat(65)}"}`, rule],
			['{"App_Name":"a"}', "app_name is required"],
			[
				location({ region_name: "r", object_key: "k" }),
				"file_location.obs_location.bucket_name is required",
				packages,
			],
			[
				location({ region_name: "r", bucket_name: "UPPER", object_key: "k" }),
				"file_location.obs_location.bucket_name must be 3 to 63 characters",
				packages,
			],
			[
				JSON.stringify({
					task_name: "t",
					task_type: "firmwareUpgrade",
					targets: ["a", "b", "c", "d!"],
				}),
				"targets[3] must be 1 to 128 characters",
				tasks,
			],
			[
				JSON.stringify({
					task_name: "t",
					task_type: "firmwareUpgrade",
					targets: ["a", null],
				}),
				"targets[1] must be a string",
				tasks,
			],
		];
		for (const [body, words, path] of cases)
			assertFailed(await post(body, path), 400, "IOTDA.000006", words);
		assert.equal(await spaces(), before);
	});

	test("lengths are counted in characters, not in bytes or halves", async () => {
		const name = "箱".repeat(64);
		const answer = await post(JSON.stringify({ app_name: name }));
		assert.equal(answer.status, 201, answer.text);
		assert.equal(answer.json.app_name, name);
		await server.api.deleteResourceSpace(answer.json.app_id);
		assertFailed(
			await post(JSON.stringify({ app_name: `${name}箱` })),
			400,
			"IOTDA.000006",
		);
	});

	test("unknown keys are ignored, also those that objects know", async () => {
		const answer = await post(
			'{"__proto__":{"app_name":"x","isAdmin":true},"constructor":{"prototype":{"y":1}},"toString":1,"z":null,"app_name":"plain"}',
		);
		assert.equal(answer.status, 201, answer.text);
		assert.equal(answer.json.app_name, "plain");
		assert.equal(({} as Record<string, unknown>).isAdmin, undefined);
		await server.api.deleteResourceSpace(answer.json.app_id);
		assertFailed(
			await post('{"__proto__":{"app_name":"inherited"}}'),
			400,
			"IOTDA.000006",
			"app_name is required",
		);
	});

	test("queries are texts, each once, and out of range they have codes of their own", async () => {
		const modules = `/v5/iot/${server.credentials.project_id}/ota-upgrades/modules`;
		const cases: [query: string, code: string, words: string][] = [
			["", "IOTDA.000006", "app_id is required"],
			["?app_id=", "IOTDA.000006", "app_id must be 1 to 36"],
			["?app_id=a&app_id=b", "IOTDA.000006", "app_id must be a string"],
			["?app_id=%00", "IOTDA.000006", "app_id must be 1 to 36"],
			["?app_id=a&limit=0", "IOTDA.000017", "limit"],
			["?app_id=a&limit=51", "IOTDA.000017", "limit"],
			["?app_id=a&limit=1e1", "IOTDA.000017", "limit"],
			["?app_id=a&limit=1&limit=2", "IOTDA.000006", "limit must be a string"],
			["?app_id=a&marker=xyz", "IOTDA.000018", "marker"],
			["?app_id=a&offset=501", "IOTDA.000006", "offset"],
			["?app_id=a&offset=-1", "IOTDA.000006", "offset"],
		];
		for (const [query, code, words] of cases)
			assertFailed(
				await sendSigned(server, { path: modules + query }),
				400,
				code,
				words,
			);
		assertFailed(
			await sendSigned(server, { path: `${apps}?default_app=1` }),
			400,
			"IOTDA.000006",
			"default_app must be true or false",
		);
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		assertFailed(
			await send(server.url, {
				path: `${modules}?app_id=%ff`,
				headers: { "x-auth-token": token },
			}),
			400,
			"IOTDA.000006",
			"app_id must be 1 to 36",
		);
		const sorted = await sendSigned(server, {
			path: `${apps}?zzz=1&default_app=true&zzz=2&=&&a`,
		});
		assert.equal(sorted.status, 200, sorted.text);
	});

	test("ids in paths that cannot be ids are refused", async () => {
		for (const id of ["a%20b", "%00", "%E7%AE%B1", "a".repeat(129), "a%2Fb"])
			assertFailed(
				await sendSigned(server, { path: `${apps}/${id}` }),
				400,
				"IOTDA.000006",
				"app_id must be 1 to 36",
			);
		for (const id of ["%00", "%E7%AE%B1", "a".repeat(200), "a%2Fb"])
			assertFailed(
				await sendSigned(server, { path: `/v5/iot/${id}/apps` }),
				403,
				"IOTDA.000022",
			);
	});

	test("a name looked up by IAM may be anything but what no store holds", async () => {
		for (const name of ["%00", "a".repeat(257)]) {
			const answer = await sendSigned(server, {
				path: `/v3/projects?name=${name}`,
			});
			assert.equal(answer.status, 400, answer.text);
			assert.ok(answer.json.error.message.includes("name must be"));
		}
	});

	test("the content type does not matter, unless it is none", async () => {
		const body = '{"app_name":"typed"}';
		for (const type of [
			"application/json",
			"application/json;charset=utf8",
			"APPLICATION/JSON",
			"text/plain",
			"application/x-www-form-urlencoded",
			undefined,
		]) {
			const answer = await sendSigned(server, {
				method: "POST",
				path: apps,
				headers: type === undefined ? {} : { "content-type": type },
				body,
			});
			assert.equal(answer.status, 201, `${type}: ${answer.text}`);
			await server.api.deleteResourceSpace(answer.json.app_id);
		}
		assertFailed(
			await sendSigned(server, {
				method: "POST",
				path: apps,
				headers: { "content-type": ";;;" },
				body,
			}),
			400,
			"IOTDA.000008",
			"Content-Type",
		);
	});

	test("a POST without a body is taken as one without fields", async () => {
		for (const headers of [JSON_TYPE, {}])
			assertFailed(
				await sendSigned(server, { method: "POST", path: apps, headers }),
				400,
				"IOTDA.000006",
				"app_name is required",
			);
	});

	test("a DELETE may carry a body, which is signed as well", async () => {
		const space = await server.api.createResourceSpace({ app_name: "gone" });
		const request = {
			method: "DELETE",
			path: `${apps}/${space.app_id}`,
			headers: JSON_TYPE,
			body: "{}",
		};
		assertFailed(
			await sendSigned(server, {
				...request,
				tamper: (sent) => {
					sent.body = "[]";
				},
			}),
			401,
			"APIGW.0301",
		);
		const answer = await sendSigned(server, request);
		assert.equal(answer.status, 204, answer.text);
		assert.equal(answer.text, "");
		assert.ok(answer.headers["x-request-id"]);
	});

	test("a body of 12 MB is taken, one byte more is not, and the connection goes on", async () => {
		const padded = (size: number) =>
			`{"app_name":"big","x":"${"x".repeat(size - 25)}"}`;
		const most = padded(12_582_912);
		assert.equal(most.length, 12_582_912);
		const answer = await post(most);
		assert.equal(answer.status, 201, answer.text.slice(0, 300));
		await server.api.deleteResourceSpace(answer.json.app_id);

		const tooMuch = padded(12_582_913);
		assertFailed(
			await post(tooMuch),
			413,
			"IOTDA.000923",
			"It may have 12582912 bytes.",
		);
		// Without a length beforehand, as chunks, and with another request behind it.
		const request = await signed(server, {
			method: "POST",
			path: apps,
			headers: JSON_TYPE,
			body: tooMuch,
		});
		const lines = Object.entries(request.headers)
			.map(([name, value]) => `${name}: ${value}\r\n`)
			.join("");
		const text = await sendBytes(
			server.url,
			`POST ${apps} HTTP/1.1\r\n${lines}transfer-encoding: chunked\r\n\r\n` +
				`${tooMuch.length.toString(16)}\r\n${tooMuch}\r\n0\r\n\r\n` +
				"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
		);
		assert.match(text, /^HTTP\/1\.1 413 /);
		assert.match(text, /HTTP\/1\.1 200 OK[\s\S]*\{"status":"live"\}/);
	});

	test("a body cut off leaves nothing behind and nobody hanging", async () => {
		const before = await spaces();
		const request = await signed(server, {
			method: "POST",
			path: apps,
			headers: JSON_TYPE,
			body: '{"app_name":"half"}',
		});
		const { hostname, port } = new URL(server.url);
		const socket = connect(Number(port), hostname);
		const lines = Object.entries(request.headers)
			.map(([name, value]) => `${name}: ${value}\r\n`)
			.join("");
		socket.write(
			`POST ${apps} HTTP/1.1\r\n${lines}content-length: 19\r\n\r\n{"app_name"`,
		);
		await once(socket, "connect");
		socket.destroy();
		await once(socket, "close");
		assert.equal(await spaces(), before);
	});

	test("every answer has a request id of its own and is not for keeping", async () => {
		const ids = new Set<unknown>();
		for (const [method, path] of [
			["GET", "/nothing"],
			["GET", apps],
			["GET", "/health/live"],
			["GET", "/metrics"],
			["POST", "/v3/auth/tokens"],
			["GET", "/%zz"],
		] as const) {
			const answer = await send(server.url, {
				method,
				path,
				headers: { "x-request-id": "mine" },
			});
			ids.add(answer.headers["x-request-id"]);
			assert.equal(answer.headers["cache-control"], "no-store", path);
			assert.equal(answer.headers["x-content-type-options"], "nosniff", path);
			assert.equal(answer.headers["x-frame-options"], "DENY", path);
			assert.match(
				String(answer.headers["content-security-policy"]),
				/default-src 'none'/,
			);
		}
		assert.equal(ids.size, 6);
		for (const id of ids) assert.match(String(id), /^[0-9a-f]{32}$/);
	});

	test("whatever bytes come as a body, the answer is no 500", async () => {
		await fc.assert(
			fc.asyncProperty(
				fc.oneof(
					fc.uint8Array({ maxLength: 200 }),
					fc.json().map((text) => Buffer.from(text)),
					fc
						.record({ app_name: fc.anything(), x: fc.anything() })
						.map((value) => Buffer.from(JSON.stringify(value) ?? "")),
				),
				async (body) => {
					const answer = await post(body);
					assert.ok(
						[201, 400].includes(answer.status),
						`${answer.status} ${answer.text}`,
					);
					if (answer.status === 201)
						await server.api.deleteResourceSpace(answer.json.app_id);
				},
			),
			{ numRuns: 150 },
		);
	});

	test("health and metrics need no signature", async () => {
		const live = await send(server.url, { path: "/health/live" });
		assert.deepEqual([live.status, live.json], [200, { status: "live" }]);
		const ready = await send(server.url, { path: "/health/ready" });
		assert.deepEqual([ready.status, ready.json], [200, { status: "ready" }]);
		const metrics = await send(server.url, { path: "/metrics" });
		assert.equal(metrics.status, 200);
		assert.match(String(metrics.headers["content-type"]), /^text\/plain/);
		assert.match(metrics.text, /otaru_http_answers_total\{status="200"\} \d+/);
		assert.match(metrics.text, /otaru_sign_in_refused_total \d+/);
	});
});

describe("HTTP itself", () => {
	let server: TestServer;
	before(async () => {
		server = await startServer(sqlite);
	});
	after(() => server[Symbol.asyncDispose]());

	test("what is not HTTP gets an answer in JSON and the connection's end", async () => {
		for (const [bytes, status] of [
			["nonsense\r\n\r\n", "400 Bad Request"],
			["GET / HTTP/9.9\r\n\r\n", "400 Bad Request"],
			["GET / HTTP/1.1\r\nbad header\r\n\r\n", "400 Bad Request"],
			[
				"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
				"400 Bad Request",
			],
			[
				"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
				"400 Bad Request",
			],
			[
				`GET / HTTP/1.1\r\nhost: x\r\na: ${"a".repeat(20_000)}\r\n\r\n`,
				"431 Request Header Fields Too Large",
			],
			[
				Buffer.from([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00]),
				"400 Bad Request",
			],
		] as const) {
			const text = await sendBytes(server.url, bytes);
			assert.ok(text.startsWith(`HTTP/1.1 ${status}\r\n`), text);
			assert.match(text, /X-Request-Id: [0-9a-f]{32}\r\n/);
			const body = JSON.parse(text.slice(text.indexOf("\r\n\r\n")));
			assert.equal(body.error_code, "IOTDA.000008");
		}
		assert.equal(
			(await send(server.url, { path: "/health/live" })).status,
			200,
		);
	});

	test("requests behind each other on one connection are answered in order", async () => {
		const text = await sendBytes(
			server.url,
			"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\nGET /nothing HTTP/1.1\r\nhost: x\r\n\r\nGET /health/ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
		);
		assert.deepEqual(
			[...text.matchAll(/HTTP\/1\.1 (\d+)/g)].map((match) => match[1]),
			["200", "404", "200"],
		);
	});

	test("every route declares what it needs, or that it is open to everyone", () => {
		const { routes } = server.server;
		assert.ok(routes.length > 40, `only ${routes.length} routes`);
		// The vendor asks these two with a POST.
		const questions = [
			"POST /v5/iot/:project_id/devices/:device_id/list-device-group",
			"POST /v5/iot/:project_id/tags/query-resources",
			"POST /otaru/v1/audit/verify",
			"POST /otaru/v1/access/simulate",
		];
		for (const route of routes) {
			const name = `${route.method} ${route.path}`;
			if (route.open) {
				assert.equal(route.action, undefined, name);
				continue;
			}
			assert.match(route.action ?? "", /^[a-z]+:[a-zA-Z]+:[a-zA-Z]+$/, name);
			assert.ok(
				["List", "Read", "Write", "Tagging", "Permission_management"].includes(
					route.level ?? "",
				),
				name,
			);
			assert.equal(
				["GET", "HEAD"].includes(route.method) || questions.includes(name),
				route.level === "List" || route.level === "Read",
				name,
			);
		}
		assert.deepEqual(
			routes
				.filter(({ open }) => open)
				.map(({ method, path }) => `${method} ${path}`)
				.sort(),
			[
				"GET /explorer",
				"GET /explorer/page.css",
				"GET /explorer/page.js",
				"GET /explorer/scalar.js",
				"GET /explorer/sign-request.js",
				"GET /health/live",
				"GET /health/ready",
				"GET /metrics",
				"GET /openapi.json",
				"HEAD /openapi.json",
				"POST /v3/auth/tokens",
			],
		);
	});

	test("every route but the open ones refuses a stranger, before reading what he sends", async () => {
		for (const { method, path, open } of server.server.routes) {
			if (open) continue;
			const answer = await send(server.url, {
				method,
				// A colon that begins no parameter is written twice.
				path: path.replaceAll(/(?<!:):\w+|\*/g, "x").replaceAll("::", ":"),
				...(method === "GET" || method === "HEAD" ? {} : { body: "{" }),
			});
			assert.equal(answer.status, 401, `${method} ${path}`);
		}
	});
});

describe("settings of the listener", () => {
	test("forwarded headers are believed only from the proxies named", async () => {
		const self = async (env: Record<string, string>) => {
			await using server = await startServer(sqlite, { env });
			const answer = await sendSigned(server, {
				path: "/v3/projects",
				headers: {
					"x-forwarded-proto": "https",
					"x-forwarded-host": "iot.example",
				},
			});
			return [answer.json.links.self, `${server.url}/v3/projects`];
		};
		const [untrusted, own] = await self({});
		assert.equal(untrusted, own);
		const [trusted] = await self({ OTARU_TRUSTED_PROXIES: "127.0.0.0/8" });
		assert.equal(trusted, "https://iot.example/v3/projects");
		const [other, plain] = await self({ OTARU_TRUSTED_PROXIES: "10.1.2.3" });
		assert.equal(other, plain);
		await assert.rejects(
			startServer(sqlite, { env: { OTARU_TRUSTED_PROXIES: "my-proxy" } }),
			/OTARU_TRUSTED_PROXIES must list addresses or networks/,
		);
	});

	test("with a certificate the API speaks TLS", async () => {
		const directory = await mkdtemp(join(tmpdir(), "otaru-tls-"));
		try {
			const { key, cert } = await selfSignedCertificate();
			const env = {
				OTARU_HTTP_TLS_CERT: join(directory, "cert.pem"),
				OTARU_HTTP_TLS_KEY: join(directory, "key.pem"),
			};
			await writeFile(env.OTARU_HTTP_TLS_CERT, cert);
			await writeFile(env.OTARU_HTTP_TLS_KEY, key);
			await using server = await startServer(sqlite, { env });
			assert.match(server.url, /^https:/);
			const outgoing = requestByTls(new URL("/health/ready", server.url), {
				ca: cert,
				servername: "localhost",
				agent: false,
			}).end();
			const [incoming] = await once(outgoing, "response");
			assert.equal(incoming.statusCode, 200);
			assert.equal(
				incoming.headers["strict-transport-security"],
				"max-age=31536000",
			);
			incoming.resume();
			await once(incoming, "end");
			await writeFile(env.OTARU_HTTP_TLS_CERT, "not a certificate");
			await assert.rejects(
				startServer(sqlite, { env }),
				/OTARU_HTTP_TLS_CERT and OTARU_HTTP_TLS_KEY cannot be used/,
			);
		} finally {
			await rm(directory, { recursive: true, force: true });
		}
	});

	test("a store that does not answer makes the server not ready", async () => {
		const server = await startServer(sqlite);
		try {
			await server.server.db.destroy();
			const answer = await send(server.url, { path: "/health/ready" });
			assert.equal(answer.status, 503);
			assert.equal(answer.json.error_code, "IOTDA.000924");
			assert.equal(
				(await send(server.url, { path: "/health/live" })).status,
				200,
			);
		} finally {
			await Promise.allSettled([server[Symbol.asyncDispose]()]);
		}
	});
});
