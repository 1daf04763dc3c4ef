import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { request } from "node:http";
import { after, before, describe, test } from "node:test";
import { openSealed } from "../server/secrets/master-key.ts";
import { Client, signRequest } from "../wire/client.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import {
	type Answer,
	type RawRequest,
	type SignedOptions,
	send,
	sendSigned,
	signed,
} from "./support/raw-request.ts";
import { refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const sha256 = (body: string | Uint8Array) =>
	createHash("sha256").update(body).digest("hex");

const REFUSAL =
	"Incorrect IAM authentication information: verify aksk signature fail";

function assertRefused(answer: Answer, message = REFUSAL): void {
	const requestId = answer.headers["x-request-id"];
	assert.equal(answer.status, 401, answer.text);
	assert.equal(answer.headers["content-type"], "application/json");
	assert.match(String(requestId), /^[0-9a-f]{32}$/);
	assert.deepEqual(answer.json, {
		error_code: "APIGW.0301",
		error_msg: message,
		request_id: requestId,
	});
}

forEachEngine((engine) => {
	let server: TestServer;
	let apps: string;
	before(async () => {
		server = await startServer(engine);
		apps = `/v5/iot/${server.credentials.project_id}/apps`;
	});
	after(() => server[Symbol.asyncDispose]());
	const key = () => ({
		accessKey: server.credentials.access_key,
		secretKey: server.credentials.secret_key,
	});

	test("both forms of signature sign the administrator in", async () => {
		for (const derivedForRegion of [undefined, "otaru", "globe"]) {
			const answer = await sendSigned(server, {
				path: apps,
				key: {
					...key(),
					...(derivedForRegion ? { derivedForRegion } : {}),
				},
			});
			assert.equal(answer.status, 200, answer.text);
			assert.equal(answer.json.applications.length, 1);
		}
	});

	test("the calls of IAM take both forms too, and a GET with a body", async () => {
		for (const path of [
			"/v3/projects?name=otaru",
			"/v3/regions",
			"/v3/auth/domains",
			"/v5/caller-identity",
		]) {
			for (const derivedForRegion of [undefined, "otaru"]) {
				const answer = await sendSigned(server, {
					path,
					key: {
						...key(),
						...(derivedForRegion ? { derivedForRegion } : {}),
					},
					headers: { "content-type": "application/json" },
					body: "{}",
				});
				assert.equal(answer.status, 200, answer.text);
			}
		}
	});

	test("the bytes of the body are signed, however the JSON is written", async () => {
		for (const body of [
			'{"app_name":"compact"}',
			'{ "app_name" : "with blanks" , "x":1 }'.replace(" blanks", "_blanks"),
			'{"app_name":"\\u7a7a\\u9593"}',
			'{"app_name":"空間"}',
			'{"app_name":"line_feed"}\n',
		]) {
			const request: SignedOptions = {
				method: "POST",
				path: apps,
				headers: { "content-type": "application/json" },
				body,
			};
			const answer = await sendSigned(server, request);
			assert.equal(answer.status, 201, answer.text);
			await server.api.deleteResourceSpace(answer.json.app_id);
			assertRefused(
				await sendSigned(server, {
					...request,
					tamper: (sent) => {
						sent.body = body.replace("}", " }");
					},
				}),
			);
		}
	});

	test("an empty body may carry the content type of JSON", async () => {
		for (const headers of [
			{ "content-type": "application/json" },
			{ "content-type": "application/json", "content-length": "0" },
		]) {
			const answer = await sendSigned(server, { path: apps, headers });
			assert.equal(answer.status, 200, answer.text);
		}
	});

	test("no header but the date need be signed", async () => {
		// As the Go SDK does: without Host and Content-Type.
		const proof = await signRequest(
			{
				method: "GET",
				url: new URL(apps, server.url),
				headers: { "x-project-id": server.credentials.project_id },
				payloadHash: sha256(""),
				date: new Date(),
			},
			key(),
		);
		const answer = await send(server.url, {
			path: apps,
			headers: { "x-project-id": server.credentials.project_id, ...proof },
		});
		assert.equal(answer.status, 200, answer.text);
	});

	test("every refused signature reads the same to the caller", async () => {
		const alterations: Record<string, SignedOptions> = {
			"wrong secret key": {
				path: apps,
				key: { ...key(), secretKey: "not it" },
			},
			"unknown access key": {
				path: apps,
				key: { ...key(), accessKey: "UNKNOWN" },
			},
			"another service's region": {
				path: apps,
				key: { ...key(), derivedForRegion: "elsewhere" },
			},
			"16 minutes early": {
				path: apps,
				date: new Date(Date.now() - 16 * 60_000),
			},
			"16 minutes late": {
				path: apps,
				date: new Date(Date.now() + 16 * 60_000),
			},
			"altered path": {
				path: apps,
				tamper: (sent) => {
					sent.path = `${apps}/x`;
				},
			},
			"altered query": {
				path: `${apps}?default_app=true`,
				tamper: (sent) => {
					sent.path = `${apps}?default_app=false`;
				},
			},
			"altered method": {
				path: `${apps}/x`,
				tamper: (sent) => {
					sent.method = "DELETE";
				},
			},
			"altered header": {
				path: apps,
				headers: { "x-any": "1" },
				tamper: (sent) => {
					sent.headers["x-any"] = "2";
				},
			},
			"missing header": {
				path: apps,
				headers: { "x-any": "1" },
				tamper: (sent) => {
					delete sent.headers["x-any"];
				},
			},
			"a body where none was signed": {
				path: apps,
				tamper: (sent) => {
					sent.body = "{}";
				},
			},
		};
		for (const [name, request] of Object.entries(alterations)) {
			await test(name, async () =>
				assertRefused(await sendSigned(server, request)),
			);
		}
	});

	test("a malformed Authorization header is refused, whatever is wrong with it", async () => {
		const good = await signed(server, { path: apps });
		const header = good.headers.authorization ?? "";
		const mangled = [
			header.replace(/Signature=.*/, "Signature="),
			header.replace(/Signature=.*/, "Signature=zz"),
			header.replace(/, Signature=.*/, ""),
			header.replace(/SignedHeaders=[^,]*/, "SignedHeaders="),
			header.replace(/SignedHeaders=[^,]*/, "SignedHeaders=host"),
			header.replace(/SignedHeaders=/, "SignedHeaders=x-sdk-date;"),
			header.replace(
				/SignedHeaders=/,
				`SignedHeaders=${"a;".repeat(200)}x-sdk-date;`,
			),
			header.replace(/SignedHeaders=/, "SignedHeaders=absent;"),
			header.replace(/SignedHeaders=/, "SignedHeaders=__proto__;"),
			header.replace(/Access=[^,]*/, "Access="),
			header.replace(/Access=[^,]*, /, ""),
			header.replace("Access=", "Access=other, Access="),
			header.replace("Access=", "Credential=other, Access="),
			`${header}, Access=other`,
			`${header}, Credential=other`,
			`${header}, Signature=${"0".repeat(64)}`,
			header.replace("SDK-", "V11-"),
			"SDK-HMAC-SHA256 ",
			"SDK-HMAC-SHA256 , , =,=",
			`SDK-HMAC-SHA256 ${"=,".repeat(5000)}`,
			"V11-HMAC-SHA256 Credential=a/b/c/d/e, SignedHeaders=x-sdk-date, Signature=00",
		];
		for (const authorization of mangled) {
			assert.notEqual(authorization, header);
			assertRefused(
				await send(server.url, {
					path: apps,
					headers: { ...good.headers, authorization },
				}),
			);
		}
		for (const date of ["", "now", "20260229T250000Z", "2026-01-29T08:00:00Z"])
			assertRefused(
				await send(server.url, {
					path: apps,
					headers: { ...good.headers, "x-sdk-date": date },
				}),
			);
	});

	test("an algorithm that is not offered is named as such", async () => {
		for (const authorization of [
			"SDK-HMAC-SM3 Access=a, SignedHeaders=x-sdk-date, Signature=00",
			"SDK-ECDSA-P256-SHA256 Access=a",
			"Basic YTpi",
			"Bearer abc",
			"nonsense",
		])
			assertRefused(
				await send(server.url, { path: apps, headers: { authorization } }),
				"Incorrect IAM authentication information: the algorithm is not supported, use SDK-HMAC-SHA256 or V11-HMAC-SHA256",
			);
	});

	test("without signature and token nobody is let in", async () => {
		for (const headers of [{}, { "x-auth-token": "" }])
			assertRefused(
				await send(server.url, { path: apps, headers }),
				"Incorrect IAM authentication information: the request has neither a signature nor X-Auth-Token",
			);
	});

	test("beside a signature a token counts for nothing", async () => {
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const bad = await sendSigned(server, {
			path: apps,
			headers: { "x-auth-token": token },
			key: { ...key(), secretKey: "not it" },
		});
		assertRefused(bad);
		const good = await sendSigned(server, {
			path: apps,
			headers: { "x-auth-token": "garbage" },
		});
		assert.equal(good.status, 200, good.text);
	});

	test("the declared hash of the body is compared with it", async () => {
		const body = '{"app_name":"hashed"}';
		const request = (declared: string): SignedOptions => ({
			method: "POST",
			path: apps,
			headers: {
				"content-type": "application/json",
				"x-sdk-content-sha256": declared,
			},
			payloadHash: declared,
			body,
		});
		for (const declared of [sha256(body), "UNSIGNED-PAYLOAD"]) {
			const answer = await sendSigned(server, request(declared));
			assert.equal(answer.status, 201, answer.text);
			await server.api.deleteResourceSpace(answer.json.app_id);
		}
		for (const declared of [sha256("other"), "UNSIGNED", "", "STREAMING"])
			assertRefused(await sendSigned(server, request(declared)));
	});

	test("a call without a body may declare its payload unsigned and sign the hash of nothing", async () => {
		const declared = { "x-sdk-content-sha256": "UNSIGNED-PAYLOAD" };
		for (const payloadHash of ["UNSIGNED-PAYLOAD", sha256("")]) {
			const answer = await sendSigned(server, {
				path: apps,
				headers: declared,
				payloadHash,
			});
			assert.equal(answer.status, 200, answer.text);
		}
		const withBody = await sendSigned(server, {
			method: "POST",
			path: apps,
			headers: { ...declared, "content-type": "application/json" },
			payloadHash: sha256(""),
			body: '{"app_name":"smuggled"}',
		});
		assertRefused(withBody);
	});

	test("an upload is taken only with the hash it was signed with", async () => {
		const body = randomBytes(100_000);
		const path = `/otaru/v1/projects/${server.credentials.project_id}/objects/uploads/a%20b/file.bin`;
		const put = (declared: string | undefined, sent: Uint8Array) =>
			sendSigned(server, {
				method: "PUT",
				path,
				headers:
					declared === undefined ? {} : { "x-sdk-content-sha256": declared },
				payloadHash: declared ?? sha256(body),
				body: sent,
			});
		const altered = Buffer.from(body);
		altered[50_000] = (altered[50_000] ?? 0) ^ 1;
		const mismatch = await put(sha256(body), altered);
		assert.deepEqual(
			[mismatch.status, mismatch.json.error_code],
			[400, "IOTDA.014968"],
		);
		await refused(
			server.api.getObject("uploads", "a b/file.bin"),
			404,
			"IOTDA.014965",
		);
		const undeclared = await put(undefined, body);
		assert.equal(undeclared.status, 400, undeclared.text);
		assert.match(
			undeclared.json.error_msg,
			/^Invalid input data\. X-Sdk-Content-Sha256 must be given/,
		);
		assert.equal((await put(sha256(body), body)).status, 201);
		const stored = await server.api.getObject("uploads", "a b/file.bin");
		assert.deepEqual(Buffer.from(await stored.arrayBuffer()), body);
		// Left out of the signature by the signer's own choice.
		assert.equal((await put("UNSIGNED-PAYLOAD", altered)).status, 200);
	});

	test("with a token the declared hash of an upload is compared too", async () => {
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const put = (declared: string) =>
			send(server.url, {
				method: "PUT",
				path: `/otaru/v1/projects/${server.credentials.project_id}/objects/uploads/token.bin`,
				headers: { "x-auth-token": token, "x-sdk-content-sha256": declared },
				body: "bytes",
			});
		const malformed = await put("nonsense");
		assert.deepEqual(
			[malformed.status, malformed.json.error_msg],
			[
				400,
				"Invalid input data. X-Sdk-Content-Sha256 must be 64 hexadecimal digits or UNSIGNED-PAYLOAD.",
			],
		);
		assert.equal((await put(sha256("other"))).status, 400);
		assert.equal((await put(sha256("bytes").toUpperCase())).status, 201);
	});

	test("a stream goes out unsigned and arrives", async () => {
		const parts = [randomBytes(10_000), randomBytes(20_000)];
		const stored = await server.api.putObject(
			"uploads",
			"stream.bin",
			new ReadableStream({
				start(controller) {
					for (const part of parts) controller.enqueue(part);
					controller.close();
				},
			}),
		);
		assert.equal(stored.sha256, sha256(Buffer.concat(parts)));
	});

	test("a refusal by the headers does not wait for the body", async () => {
		const request: RawRequest = {
			method: "POST",
			path: apps,
			body: "",
			contentLength: 12_000_000,
		};
		assertRefused(
			await send(server.url, request),
			"Incorrect IAM authentication information: the request has neither a signature nor X-Auth-Token",
		);
		for (const options of [
			{ key: { ...key(), accessKey: "UNKNOWN" } },
			{ date: new Date(Date.now() - 16 * 60_000) },
		])
			assertRefused(
				await send(
					server.url,
					await signed(server, { ...request, ...options }),
				),
			);
	});

	test("a caller who asks before he sends is told to go on only when he may", async () => {
		const ask = async (options: SignedOptions) => {
			const prepared = await signed(server, options);
			return new Promise<{ continued: boolean; status: number }>(
				(resolve, reject) => {
					let continued = false;
					const outgoing = request(
						new URL(prepared.path, server.url),
						{
							method: "POST",
							agent: false,
							headers: {
								...prepared.headers,
								expect: "100-continue",
								"content-length": Buffer.byteLength(
									(prepared.body as string) ?? "",
								),
							},
						},
						(incoming) => {
							incoming.resume();
							incoming.on("end", () => {
								resolve({ continued, status: incoming.statusCode ?? 0 });
								outgoing.destroy();
							});
						},
					);
					outgoing.on("continue", () => {
						continued = true;
						outgoing.end(prepared.body);
					});
					outgoing.on("error", reject);
					outgoing.flushHeaders();
				},
			);
		};
		const asked: SignedOptions = {
			method: "POST",
			path: apps,
			headers: { "content-type": "application/json" },
			body: '{"app_name":"asked"}',
		};
		assert.deepEqual(await ask(asked), { continued: true, status: 201 });
		assert.deepEqual(
			await ask({ ...asked, key: { ...key(), accessKey: "UNKNOWN" } }),
			{ continued: false, status: 401 },
		);
	});

	test("the project of the path must be the caller's, and X-Project-Id the same", async () => {
		const forbidden = async (options: SignedOptions, words: string) => {
			const answer = await sendSigned(server, options);
			assert.equal(answer.status, 403, answer.text);
			assert.equal(answer.json.error_code, "IOTDA.000022");
			assert.equal(
				answer.json.error_msg,
				"Operation not allowed. The user does not have the permission",
			);
			assert.ok(answer.json.error_detail.includes(words), answer.text);
		};
		await forbidden(
			{ path: "/v5/iot/0a1b2c3d4e5f60718293a4b5c6d7e8f9/apps" },
			"the project of the path",
		);
		await forbidden(
			{
				path: apps,
				headers: { "x-project-id": "0a1b2c3d4e5f60718293a4b5c6d7e8f9" },
			},
			"X-Project-Id",
		);
		// Without a configured instance any name of one will do.
		const answer = await sendSigned(server, {
			path: apps,
			headers: { "instance-id": "any" },
		});
		assert.equal(answer.status, 200);
	});

	test("what a proxy puts into Authorization does not stand in the way of a token", async () => {
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const headers = { "x-auth-token": token };
		for (const authorization of ["", "Basic Zm9vOmJhcg==", "Bearer abc"]) {
			const answer = await fetch(server.url + apps, {
				headers: { ...headers, authorization },
			});
			assert.equal(answer.status, 200, authorization);
		}
		const wrong = await fetch(server.url + apps, {
			headers: { ...headers, authorization: "SDK-HMAC-SHA256 Access=x" },
		});
		assert.equal(wrong.status, 401);
	});

	test("a key that is changed or removed counts no more, at once", async () => {
		const { db, config } = { db: server.server.db, config: server.config };
		const sealed = await openSealed(config, db, () => new Date());
		const access_key = "SPAREKEYSPAREKEY0001";
		const user = await db
			.selectFrom("users")
			.select("user_id")
			.executeTakeFirstOrThrow();
		await db
			.insertInto("access_keys")
			.values({
				access_key,
				user_id: user.user_id,
				secret_sealed: sealed.seal("first"),
				created_at: new Date().toISOString(),
			})
			.execute();
		const callWith = (secretKey: string) =>
			new Client({
				endpoint: server.url,
				projectId: server.credentials.project_id,
				credentials: { accessKey: access_key, secretKey },
			}).listResourceSpaces();
		await callWith("first");
		await db
			.updateTable("access_keys")
			.set({ secret_sealed: sealed.seal("second") })
			.where("access_key", "=", access_key)
			.execute();
		await refused(callWith("first"), 401, "APIGW.0301");
		await callWith("second");
		await db
			.deleteFrom("access_keys")
			.where("access_key", "=", access_key)
			.execute();
		await refused(callWith("second"), 401, "APIGW.0301");
	});

	test("secret keys and passwords are not readable in the store", async () => {
		const rows = [
			...(await server.server.db
				.selectFrom("access_keys")
				.selectAll()
				.execute()),
			...(await server.server.db.selectFrom("users").selectAll().execute()),
		];
		const text = JSON.stringify(rows);
		assert.equal(text.includes(server.credentials.secret_key), false);
		assert.equal(text.includes(server.credentials.password), false);
	});
});

describe("with an instance id configured", () => {
	test("another one is refused, the same and none are accepted", async () => {
		await using server = await startServer(sqlite, {
			env: { OTARU_INSTANCE_ID: "mine" },
		});
		const path = `/v5/iot/${server.credentials.project_id}/apps`;
		const status = async (headers: Record<string, string>) =>
			(await sendSigned(server, { path, headers })).status;
		assert.equal(await status({}), 200);
		assert.equal(await status({ "instance-id": "mine" }), 200);
		assert.equal(await status({ "instance-id": "other" }), 403);
	});
});
