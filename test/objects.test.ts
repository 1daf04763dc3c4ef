import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
	appendFile,
	mkdir,
	mkdtemp,
	readdir,
	rm,
	truncate,
	writeFile,
} from "node:fs/promises";
import { request } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { openDisk } from "../server/artifacts/disk.ts";
import { verifyObject } from "../server/artifacts/objects.ts";
import { UNSIGNED_PAYLOAD } from "../wire/client.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import { send, sendSigned, signed } from "./support/raw-request.ts";
import { makePackage, makeProduct, refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const BUCKET = "firmware";
const sha256 = (bytes: Uint8Array) =>
	createHash("sha256").update(bytes).digest("hex");

function pathOf(server: TestServer, key: string): string {
	return `/otaru/v1/projects/${server.credentials.project_id}/objects/${BUCKET}/${key}`;
}

function locationOf(objectKey: string) {
	return {
		obs_location: {
			region_name: "otaru",
			bucket_name: BUCKET,
			object_key: objectKey,
		},
	};
}

/** What lies in the directory of the artifacts: hashes, and what is half there. */
async function onDisk(
	server: TestServer,
): Promise<{ artifacts: string[]; unfinished: string[] }> {
	const directory = server.config.artifactsDir;
	const artifacts: string[] = [];
	let unfinished: string[] = [];
	for (const name of await readdir(directory)) {
		const names = await readdir(join(directory, name));
		if (name === "tmp") unfinished = names;
		else artifacts.push(...names);
	}
	return { artifacts: artifacts.sort(), unfinished };
}

async function eventually(
	holds: () => Promise<boolean>,
	words: string,
): Promise<void> {
	for (let tries = 0; tries < 200; tries++) {
		if (await holds()) return;
		await pause(25);
	}
	assert.fail(words);
}

forEachEngine((engine) => {
	test("a file goes in and comes out unchanged, with its three digests", async () => {
		await using server = await startServer(engine);
		const bytes = randomBytes(1_500_000);
		const answer = await server.api.send(
			"PUT",
			pathOf(server, "a/fw-1.0.bin"),
			{ body: bytes, headers: { "content-type": "application/x-firmware" } },
		);
		assert.equal(answer.status, 201);
		const stored = (await answer.json()) as Record<string, unknown>;
		const { update_time, ...rest } = stored;
		assert.match(String(update_time), /^\d{8}T\d{6}Z$/);
		assert.deepEqual(rest, {
			bucket_name: BUCKET,
			object_key: "a/fw-1.0.bin",
			size: bytes.length,
			content_type: "application/x-firmware",
			sha256: sha256(bytes),
			sha1: createHash("sha1").update(bytes).digest("hex"),
			md5: createHash("md5").update(bytes).digest("hex"),
		});
		const got = await server.api.getObject(BUCKET, "a/fw-1.0.bin");
		assert.equal(got.status, 200);
		assert.equal(got.headers.get("content-type"), "application/x-firmware");
		assert.equal(got.headers.get("content-length"), String(bytes.length));
		assert.equal(got.headers.get("content-disposition"), "attachment");
		assert.equal(got.headers.get("etag"), `"${sha256(bytes)}"`);
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), bytes);
		const head = await server.api.headObject(BUCKET, "a/fw-1.0.bin");
		assert.equal(head.headers.get("content-length"), String(bytes.length));
		assert.equal(head.headers.get("etag"), `"${sha256(bytes)}"`);
		assert.equal((await head.arrayBuffer()).byteLength, 0);
	});

	test("the same key again replaces the object and its bytes", async () => {
		await using server = await startServer(engine);
		const [first, second] = [randomBytes(1000), randomBytes(2000)];
		await server.api.putObject(BUCKET, "fw.bin", first);
		const answer = await server.api.send("PUT", pathOf(server, "fw.bin"), {
			body: second,
		});
		assert.equal(answer.status, 200);
		const got = await server.api.getObject(BUCKET, "fw.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), second);
		assert.deepEqual(await onDisk(server), {
			artifacts: [sha256(second)],
			unfinished: [],
		});
		await server.api.putObject(BUCKET, "fw.bin", second);
		assert.deepEqual((await onDisk(server)).artifacts, [sha256(second)]);
	});

	test("the same bytes under two keys lie on disk once, until the last key is gone", async () => {
		await using server = await startServer(engine);
		const bytes = randomBytes(1000);
		await server.api.putObject(BUCKET, "a.bin", bytes);
		await server.api.putObject("other-bucket", "b.bin", bytes);
		assert.deepEqual((await onDisk(server)).artifacts, [sha256(bytes)]);
		await server.api.deleteObject(BUCKET, "a.bin");
		assert.deepEqual((await onDisk(server)).artifacts, [sha256(bytes)]);
		const got = await server.api.getObject("other-bucket", "b.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), bytes);
		await server.api.deleteObject("other-bucket", "b.bin");
		assert.deepEqual((await onDisk(server)).artifacts, []);
	});

	test("an object that is not there is a 404 for every call", async () => {
		await using server = await startServer(engine);
		await refused(
			server.api.getObject(BUCKET, "no.bin"),
			404,
			"IOTDA.014965",
			"The object does not exist",
		);
		await refused(
			server.api.deleteObject(BUCKET, "no.bin"),
			404,
			"IOTDA.014965",
		);
		const head = await server.api.send("HEAD", pathOf(server, "no.bin"));
		assert.equal(head.status, 404);
	});

	test("keys may hold blanks, signs and any script, and are never paths", async () => {
		await using server = await startServer(engine);
		const keys = [
			"a b.bin",
			"100%.bin",
			"a%2Fb.bin",
			"a?b#c&d=e+f;g.bin",
			"固件/版本-1.2.bin",
			"emoji 🚀.tar.gz",
			"quote\"'<>.bin",
			"...bin",
			"..a/b..bin",
			`${"k".repeat(1020)}.bin`,
			"UPPER.BIN",
			"tmp/x.bin",
		];
		for (const [index, key] of keys.entries()) {
			const bytes = Buffer.from(`bytes ${index}`);
			const stored = await server.api.putObject(BUCKET, key, bytes);
			assert.equal(stored.object_key, key);
			const got = await server.api.getObject(BUCKET, key);
			assert.equal(await got.text(), `bytes ${index}`, key);
		}
		const { artifacts, unfinished } = await onDisk(server);
		assert.equal(artifacts.length, keys.length);
		assert.ok(artifacts.every((name) => /^[0-9a-f]{64}$/.test(name)));
		assert.deepEqual(unfinished, []);
	});

	test("a slash may come encoded: it is the same key", async () => {
		await using server = await startServer(engine);
		const key = "a%2fb.bin";
		const put = await sendSigned(server, {
			method: "PUT",
			path: pathOf(server, key),
			body: "x",
			headers: { "x-sdk-content-sha256": sha256(Buffer.from("x")) },
		});
		assert.equal(put.status, 201, put.text);
		assert.equal(put.json.object_key, "a/b.bin");
		assert.equal((await server.api.getObject(BUCKET, "a/b.bin")).status, 200);
	});

	test("what cannot be a key or a bucket is refused with the field and the rule", async () => {
		await using server = await startServer(engine);
		const objects = `/otaru/v1/projects/${server.credentials.project_id}/objects`;
		// With a token: a signing client tidies up its paths before it signs.
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const headers = { "x-auth-token": token };
		const cases: [path: string, status: number, words: string][] = [
			[`${objects}/${BUCKET}/`, 400, "object_key must be 1 to 1024"],
			[
				`${objects}/${BUCKET}/${"k".repeat(1021)}.bin`,
				400,
				"object_key must be 1 to 1024",
			],
			[
				`${objects}/${BUCKET}/${"%E5%9B%BA".repeat(341)}.bin`,
				400,
				"object_key must be 1 to 1024 characters, at most 1024 bytes",
			],
			[`${objects}/${BUCKET}/a%00b.bin`, 400, "object_key must not contain"],
			[`${objects}/${BUCKET}/a%0Ab.bin`, 400, "object_key must not contain"],
			[`${objects}/${BUCKET}/../x.bin`, 400, "object_key must be names"],
			[
				`${objects}/${BUCKET}/..%2f..%2fetc%2fpasswd.bin`,
				400,
				"object_key must be names",
			],
			[`${objects}/${BUCKET}/%2e%2e/x.bin`, 400, "object_key must be names"],
			[`${objects}/${BUCKET}/a/./x.bin`, 400, "object_key must be names"],
			[`${objects}/${BUCKET}//x.bin`, 400, "object_key must be names"],
			[`${objects}/${BUCKET}/a%5Cx.bin`, 400, "object_key must be names"],
			[`${objects}/${BUCKET}/x.txt`, 400, "object_key must end in one of .bin"],
			[`${objects}/${BUCKET}/bin`, 400, "object_key must end in one of"],
			[`${objects}/ab/x.bin`, 400, "bucket_name must be 3 to 63"],
			[`${objects}/UPPER/x.bin`, 400, "bucket_name must be 3 to 63"],
			[`${objects}/a%2Fb/x.bin`, 400, "bucket_name must be 3 to 63"],
			[
				`${objects}/${"b".repeat(64)}/x.bin`,
				400,
				"bucket_name must be 3 to 63",
			],
		];
		for (const [path, status, words] of cases) {
			const answer = await send(server.url, {
				method: "PUT",
				path,
				body: "x",
				headers,
			});
			assert.equal(answer.status, status, `${path}: ${answer.text}`);
			assert.equal(answer.json.error_code, "IOTDA.000006", path);
			assert.ok(
				answer.json.error_msg.includes(words),
				`${path}: ${answer.json.error_msg}`,
			);
		}
		// Bytes that are no text are no path at all.
		const noText = await send(server.url, {
			method: "PUT",
			path: `${objects}/${BUCKET}/a%ff.bin`,
			body: "x",
			headers,
		});
		assert.equal(noText.status, 404, noText.text);
		assert.deepEqual(await onDisk(server), { artifacts: [], unfinished: [] });
	});

	test("an upload whose hash, length or size is wrong is refused and leaves nothing behind", async () => {
		await using server = await startServer(engine, {
			env: { OTARU_PACKAGE_SIZE_LIMIT: "100000" },
		});
		const before = randomBytes(500);
		await server.api.putObject(BUCKET, "fw.bin", before);
		const put = (
			bytes: Buffer,
			hash: string,
			options: { chunked?: boolean } = {},
		) =>
			sendSigned(server, {
				method: "PUT",
				path: pathOf(server, "fw.bin"),
				body: bytes,
				headers: {
					"x-sdk-content-sha256": hash,
					...(options.chunked ? { "transfer-encoding": "chunked" } : {}),
				},
				payloadHash: hash,
			});
		const wrong = await put(randomBytes(1000), sha256(randomBytes(1)));
		assert.equal(wrong.status, 400);
		assert.equal(wrong.json.error_code, "IOTDA.014968");
		const large = await put(randomBytes(100_001), UNSIGNED_PAYLOAD);
		assert.equal(large.status, 413);
		assert.equal(large.json.error_code, "IOTDA.014967");
		assert.match(large.json.error_msg, /At most 100000 bytes/);
		const empty = await put(Buffer.alloc(0), UNSIGNED_PAYLOAD);
		assert.equal(empty.status, 400);
		assert.match(empty.json.error_msg, /body must not be empty/);
		const exact = randomBytes(100_000);
		assert.equal((await put(exact, sha256(exact))).status, 200);
		await server.api.putObject(BUCKET, "fw.bin", before);
		const got = await server.api.getObject(BUCKET, "fw.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), before);
		assert.deepEqual(await onDisk(server), {
			artifacts: [sha256(before)],
			unfinished: [],
		});
	});

	test("an upload without a length is cut where the limit is, and the sender reads why", async () => {
		await using server = await startServer(engine, {
			env: { OTARU_PACKAGE_SIZE_LIMIT: "100000" },
		});
		const { path, headers } = await signed(server, {
			method: "PUT",
			path: pathOf(server, "fw.bin"),
			headers: { "x-sdk-content-sha256": UNSIGNED_PAYLOAD },
			payloadHash: UNSIGNED_PAYLOAD,
		});
		const upload = (sizeBytes: number) =>
			new Promise<number>((resolve, reject) => {
				const outgoing = request(
					new URL(path, server.url),
					{ method: "PUT", headers, agent: false },
					(answer) => {
						answer.resume();
						resolve(answer.statusCode ?? 0);
					},
				);
				outgoing.on("error", reject);
				for (let sent = 0; sent < sizeBytes; sent += 10_000)
					outgoing.write(randomBytes(10_000));
				outgoing.end();
			});
		assert.equal(await upload(150_000), 413);
		assert.deepEqual(await onDisk(server), { artifacts: [], unfinished: [] });
		assert.equal(await upload(100_000), 201);
	});

	test("an upload that is cut off leaves nothing behind and the old object untouched", async () => {
		await using server = await startServer(engine);
		const before = randomBytes(500);
		await server.api.putObject(BUCKET, "fw.bin", before);
		const { path, headers } = await signed(server, {
			method: "PUT",
			path: pathOf(server, "fw.bin"),
			headers: { "x-sdk-content-sha256": UNSIGNED_PAYLOAD },
			payloadHash: UNSIGNED_PAYLOAD,
		});
		const lines = Object.entries(headers).map(
			([name, text]) => `${name}: ${text}`,
		);
		for (const [framing, body] of [
			["Content-Length: 1000000", Buffer.alloc(300_000, 1)],
			["Transfer-Encoding: chunked", Buffer.from("5\r\nhello\r\n5\r\nwor")],
		] as const) {
			const socket = connect(Number(new URL(server.url).port), "127.0.0.1");
			socket.on("error", () => {});
			socket.write(
				`PUT ${path} HTTP/1.1\r\n${lines.join("\r\n")}\r\n${framing}\r\n\r\n`,
			);
			socket.write(body);
			await eventually(
				async () => (await onDisk(server)).unfinished.length === 1,
				"the upload never began",
			);
			socket.destroy();
			await eventually(
				async () => (await onDisk(server)).unfinished.length === 0,
				"the half upload stayed",
			);
		}
		const got = await server.api.getObject(BUCKET, "fw.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), before);
		assert.deepEqual((await onDisk(server)).artifacts, [sha256(before)]);
	});

	test("a signed upload that does not say what it hashes is refused, naming the header", async () => {
		await using server = await startServer(engine);
		const answer = await sendSigned(server, {
			method: "PUT",
			path: pathOf(server, "fw.bin"),
			body: "hello",
		});
		assert.ok([400, 401].includes(answer.status));
		assert.match(answer.text, /X-Sdk-Content-Sha256/);
		assert.deepEqual(await onDisk(server), { artifacts: [], unfinished: [] });
	});

	test("an upload with a token needs no hash", async () => {
		await using server = await startServer(engine);
		const { token } = await server.api.signIn({
			domainName: server.credentials.domain_name,
			userName: server.credentials.user_name,
			password: server.credentials.password,
		});
		const answer = await send(server.url, {
			method: "PUT",
			path: pathOf(server, "fw.bin"),
			body: "hello",
			headers: { "x-auth-token": token },
		});
		assert.equal(answer.status, 201, answer.text);
	});

	test("a content type that is no header text is refused", async () => {
		await using server = await startServer(engine);
		await refused(
			server.api.putObject(BUCKET, "fw.bin", Buffer.from("x"), {
				contentType: `application/${"x".repeat(250)}`,
			}),
			400,
			"IOTDA.000006",
			"Content-Type must be",
		);
	});

	test("a range comes back as 206, one outside as 416, nonsense as the whole", async () => {
		await using server = await startServer(engine);
		const bytes = randomBytes(700_000);
		await server.api.putObject(BUCKET, "fw.bin", bytes);
		const part = await server.api.getObject(
			BUCKET,
			"fw.bin",
			"bytes=100-600099",
		);
		assert.equal(part.status, 206);
		assert.equal(part.headers.get("content-range"), "bytes 100-600099/700000");
		assert.deepEqual(
			Buffer.from(await part.arrayBuffer()),
			bytes.subarray(100, 600_100),
		);
		await refused(
			server.api.getObject(BUCKET, "fw.bin", "bytes=700000-"),
			416,
			"IOTDA.014959",
		);
		for (const range of ["bytes=0-1,3-4", "bytes=2-1", "nonsense"]) {
			const whole = await server.api.getObject(BUCKET, "fw.bin", range);
			assert.equal(whole.status, 200, range);
			assert.deepEqual(Buffer.from(await whole.arrayBuffer()), bytes);
		}
	});

	test("who has the object already is told so, and a range of another one is not served", async () => {
		await using server = await startServer(engine);
		const bytes = randomBytes(1000);
		await server.api.putObject(BUCKET, "fw.bin", bytes);
		const tag = `"${sha256(bytes)}"`;
		const path = pathOf(server, "fw.bin");
		const same = await server.api.send("GET", path, {
			headers: { "if-none-match": `"x", W/${tag}` },
		});
		assert.equal(same.status, 304);
		const part = await server.api.send("GET", path, {
			headers: { range: "bytes=0-9", "if-range": tag },
		});
		assert.equal(part.status, 206);
		const other = await server.api.send("GET", path, {
			headers: { range: "bytes=0-9", "if-range": '"other"' },
		});
		assert.equal(other.status, 200);
		assert.equal((await other.arrayBuffer()).byteLength, 1000);
	});

	test("a list is in the order of the keys, filtered by prefix and paged by the last key", async () => {
		await using server = await startServer(engine);
		const keys = [
			"B.bin",
			"a/1.bin",
			"a/10.bin",
			"a/2.bin",
			"a0.bin",
			"a_b.bin",
			"b%.bin",
			"固/1.bin",
			"固/2.bin",
			"固件.bin",
			"🚀.bin",
		];
		for (const key of [...keys].reverse())
			await server.api.putObject(BUCKET, key, Buffer.from(key));
		await server.api.putObject("other-bucket", "a/3.bin", Buffer.from("x"));
		const keysOf = async (
			query: Parameters<typeof server.api.listObjects>[1],
		) => {
			const { objects, page } = await server.api.listObjects(BUCKET, query);
			return { keys: objects.map((object) => object.object_key), page };
		};
		assert.deepEqual(await keysOf({ limit: 50 }), {
			keys,
			page: { count: 11, marker: "🚀.bin" },
		});
		assert.deepEqual((await keysOf({ prefix: "a" })).keys, keys.slice(1, 6));
		assert.deepEqual((await keysOf({ prefix: "a/" })).keys, keys.slice(1, 4));
		assert.deepEqual((await keysOf({ prefix: "a_" })).keys, ["a_b.bin"]);
		assert.deepEqual((await keysOf({ prefix: "b%" })).keys, ["b%.bin"]);
		assert.deepEqual((await keysOf({ prefix: "固" })).keys, keys.slice(7, 10));
		assert.deepEqual((await keysOf({ prefix: "🚀" })).keys, ["🚀.bin"]);
		assert.deepEqual(await keysOf({ prefix: "zzz" }), {
			keys: [],
			page: { count: 0 },
		});
		const paged: string[] = [];
		let marker: string | undefined;
		do {
			const answer = await keysOf({
				limit: 4,
				...(marker === undefined ? {} : { marker }),
			});
			paged.push(...answer.keys);
			assert.equal(answer.page.count, 11);
			marker = answer.page.marker;
		} while (marker !== undefined);
		assert.deepEqual(paged, keys);
		assert.deepEqual(
			(await keysOf({ offset: 9, limit: 50 })).keys,
			keys.slice(9),
		);
		for (const limit of [0, 51])
			await refused(
				server.api.listObjects(BUCKET, { limit }),
				400,
				"IOTDA.000017",
			);
		await refused(
			server.api.listObjects(BUCKET, { prefix: "a\u0000" }),
			400,
			"IOTDA.000006",
			"prefix",
		);
	});

	test("while a package uses an object it is neither replaced nor deleted", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const bytes = randomBytes(100);
		await api.putObject(BUCKET, "fw.bin", bytes);
		const made = await makePackage(api, product, {
			file_location: locationOf("fw.bin"),
		});
		await refused(
			api.putObject(BUCKET, "fw.bin", randomBytes(100)),
			403,
			"IOTDA.014966",
		);
		await refused(api.deleteObject(BUCKET, "fw.bin"), 403, "IOTDA.014966");
		assert.deepEqual(await onDisk(server), {
			artifacts: [sha256(bytes)],
			unfinished: [],
		});
		await api.deletePackage(made.package_id);
		await api.putObject(BUCKET, "fw.bin", randomBytes(100));
		await api.deleteObject(BUCKET, "fw.bin");
		assert.deepEqual((await onDisk(server)).artifacts, []);
	});

	test("an upload that outlasts the creation of a package does not replace its file", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const bytes = randomBytes(100);
		await api.putObject(BUCKET, "fw.bin", bytes);
		let finish: () => void = () => {};
		const finished = new Promise<void>((resolve) => {
			finish = resolve;
		});
		const slow = api.putObject(
			BUCKET,
			"fw.bin",
			new ReadableStream<Uint8Array<ArrayBuffer>>({
				async start(controller) {
					controller.enqueue(randomBytes(100));
					await finished;
					controller.enqueue(randomBytes(100));
					controller.close();
				},
			}),
		);
		await eventually(
			async () => (await onDisk(server)).unfinished.length === 1,
			"the upload never began",
		);
		await makePackage(api, product, { file_location: locationOf("fw.bin") });
		finish();
		await refused(slow, 403, "IOTDA.014966");
		const got = await api.getObject(BUCKET, "fw.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), bytes);
	});

	test("a package never names an object that was deleted or replaced at the same moment", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		for (let round = 0; round < 25; round++) {
			const key = `race-${round}.bin`;
			const bytes = randomBytes(50);
			await api.putObject(BUCKET, key, bytes);
			const other = randomBytes(50);
			const change =
				round % 2 === 0
					? api.deleteObject(BUCKET, key)
					: api.putObject(BUCKET, key, other);
			const [made, changed] = await Promise.allSettled([
				makePackage(api, product, {
					version: `v${round}`,
					file_location: locationOf(key),
				}),
				change,
			]);
			if (made.status === "rejected") {
				// Deleted before: nothing names the object.
				await refused(Promise.reject(made.reason), 400, "IOTDA.014962");
				assert.equal(changed.status, "fulfilled");
				continue;
			}
			const got = await api.getObject(BUCKET, key);
			const signOf = made.value.file_location.obs_location.sign;
			assert.equal(sha256(Buffer.from(await got.arrayBuffer())), signOf);
			if (changed.status === "rejected")
				await refused(Promise.reject(changed.reason), 403, "IOTDA.014966");
		}
	});

	test("uploads and removals of the same bytes at once never lose bytes that an object needs", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const contents = [randomBytes(2000), randomBytes(2000)];
		const worker = async (name: string) => {
			for (let round = 0; round < 15; round++) {
				const bytes = contents[round % 2] ?? Buffer.alloc(0);
				await api.putObject(BUCKET, `${name}.bin`, bytes);
				const got = await api.getObject(BUCKET, `${name}.bin`);
				assert.deepEqual(Buffer.from(await got.arrayBuffer()), bytes);
				if (round % 3 !== 0) await api.deleteObject(BUCKET, `${name}.bin`);
			}
			await api.putObject(
				BUCKET,
				`${name}.bin`,
				contents[0] ?? Buffer.alloc(0),
			);
		};
		await Promise.all(["a", "b", "c", "d", "e"].map(worker));
		assert.deepEqual(await onDisk(server), {
			artifacts: contents.slice(0, 1).map(sha256),
			unfinished: [],
		});
	});

	test("two uploads of one new key at once end as one object, whole", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const contents = Array.from({ length: 6 }, () => randomBytes(5000));
		const stored = await Promise.all(
			contents.map((bytes) =>
				api.send("PUT", pathOf(server, "fw.bin"), { body: bytes }),
			),
		);
		assert.deepEqual(
			stored.map(({ status }) => status).sort(),
			[200, 200, 200, 200, 200, 201],
		);
		const got = await api.getObject(BUCKET, "fw.bin");
		const bytes = Buffer.from(await got.arrayBuffer());
		assert.ok(contents.some((content) => content.equals(bytes)));
		assert.deepEqual((await onDisk(server)).artifacts, [sha256(bytes)]);
	});

	test("what a killed process left half done is gone an hour later, after the next start", async () => {
		let now = new Date();
		await using server = await startServer(engine, { now: () => now });
		const kept = randomBytes(100);
		await server.api.putObject(BUCKET, "fw.bin", kept);
		const directory = server.config.artifactsDir;
		await writeFile(join(directory, "tmp", "half"), "half an upload");
		const store = await openDisk(join(directory, "..", "aside"));
		const orphan = await store.stage([Buffer.from("orphan")] as never, 100);
		await writeFile(join(directory, "README"), "not ours");
		const shard = join(directory, orphan.sha256.slice(0, 2));
		await mkdir(shard, { recursive: true });
		await writeFile(join(shard, orphan.sha256), "orphan");
		await server.restart();
		// Young: its row might be about to appear, its bytes might still be coming.
		await pause(200);
		assert.ok((await readdir(shard)).includes(orphan.sha256));
		assert.deepEqual(await readdir(join(directory, "tmp")), ["half"]);
		now = new Date(Date.now() + 2 * 3_600_000);
		await server.restart();
		await eventually(
			async () => !(await readdir(shard)).includes(orphan.sha256),
			"the orphan stayed",
		);
		assert.deepEqual(await readdir(join(directory, "tmp")), []);
		now = new Date();
		const got = await server.api.getObject(BUCKET, "fw.bin");
		assert.deepEqual(Buffer.from(await got.arrayBuffer()), kept);
	});

	test("objects of another project are out of reach", async () => {
		await using server = await startServer(engine);
		const path = `/otaru/v1/projects/${"0".repeat(32)}/objects/${BUCKET}/x.bin`;
		for (const method of ["GET", "PUT", "DELETE"]) {
			const answer = await sendSigned(server, {
				method,
				path,
				...(method === "PUT"
					? {
							body: "x",
							headers: { "x-sdk-content-sha256": UNSIGNED_PAYLOAD },
							payloadHash: UNSIGNED_PAYLOAD,
						}
					: {}),
			});
			assert.equal(answer.status, 403, method);
		}
		const nobody = await send(server.url, { path: pathOf(server, "x.bin") });
		assert.equal(nobody.status, 401);
	});
});

test("a refused sender that goes on sending still reads the reason", async () => {
	await using server = await startServer(sqlite, {
		env: { OTARU_PACKAGE_SIZE_LIMIT: "50000000" },
	});
	const { api } = server;
	const product = await makeProduct(api);
	await api.putObject(BUCKET, "fw.bin", randomBytes(100));
	await makePackage(api, product, { file_location: locationOf("fw.bin") });
	// Larger than every buffer between here and there, and written to its end first.
	const answer = await sendSigned(server, {
		method: "PUT",
		path: pathOf(server, "fw.bin"),
		body: randomBytes(40_000_000),
		headers: { "x-sdk-content-sha256": UNSIGNED_PAYLOAD },
		payloadHash: UNSIGNED_PAYLOAD,
	});
	assert.equal(answer.status, 403);
	assert.equal(answer.json.error_code, "IOTDA.014966");
});

test("verification tells sound bytes from missing, shorter and changed ones", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-verify-"));
	try {
		const store = await openDisk(directory);
		const bytes = randomBytes(1_000_000);
		const keep = async () => {
			await using staged = await store.stage([bytes] as never, 1e9);
			await staged.keep();
			return staged.sha256;
		};
		const hash = await keep();
		const file = join(directory, hash.slice(0, 2), hash);
		assert.equal(await verifyObject(store, hash, bytes.length), "sound");
		assert.equal(await verifyObject(store, hash, 5), "wrong size");
		assert.equal(
			await verifyObject(store, "0".repeat(64), bytes.length),
			"missing",
		);
		await truncate(file, bytes.length - 1);
		assert.equal(await verifyObject(store, hash, bytes.length), "wrong size");
		await appendFile(file, Buffer.from([(bytes.at(-1) ?? 0) ^ 1]));
		assert.equal(await verifyObject(store, hash, bytes.length), "wrong bytes");
		// The same upload again puts the bytes right.
		await keep();
		assert.equal(await verifyObject(store, hash, bytes.length), "sound");
		await store.remove(hash);
		assert.equal(await verifyObject(store, hash, bytes.length), "missing");
	} finally {
		await rm(directory, { recursive: true });
	}
});

test("an artifact that is removed while it is read stays readable to the end, and its name is free", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-open-"));
	try {
		const store = await openDisk(directory);
		await using staged = await store.stage([Buffer.from("hello")] as never, 10);
		await staged.keep();
		const { sha256: hash } = staged;
		await using reader = await store.open(hash);
		await using second = await store.open(hash);
		await store.remove(hash);
		assert.equal(await store.open(hash), undefined);
		assert.equal(await store.stat(hash), undefined);
		const buffer = Buffer.alloc(10);
		for (const open of [reader, second]) {
			assert.equal(await open?.read(buffer, 10, 1), 4);
			assert.equal(buffer.toString("latin1", 0, 4), "ello");
		}
	} finally {
		await rm(directory, { recursive: true });
	}
});

test("a file that cannot be written to its end leaves nothing in the directory", async () => {
	const directory = await mkdtemp(join(tmpdir(), "otaru-stage-"));
	try {
		const store = await openDisk(directory);
		async function* failing() {
			yield Buffer.from("some");
			throw new Error("cut off");
		}
		await assert.rejects(store.stage(failing(), 100), /cut off/);
		await assert.rejects(
			store.stage([Buffer.alloc(60), Buffer.alloc(60)] as never, 100),
			/At most 100 bytes/,
		);
		const dropped = await store.stage([Buffer.from("x")] as never, 100);
		await dropped[Symbol.asyncDispose]();
		assert.deepEqual(await readdir(directory), ["tmp"]);
		assert.deepEqual(await readdir(join(directory, "tmp")), []);
	} finally {
		await rm(directory, { recursive: true });
	}
});
