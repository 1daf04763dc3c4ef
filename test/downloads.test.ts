import assert from "node:assert/strict";
import { createHash, createSecretKey, randomBytes } from "node:crypto";
import { once } from "node:events";
import {
	mkdtemp,
	readdir,
	readFile,
	readlink,
	rm,
	truncate,
	writeFile,
} from "node:fs/promises";
import type { IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { connect as connectTcp } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Duplex } from "node:stream";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { connect, type TLSSocket } from "node:tls";
import { openDisk } from "../server/artifacts/disk.ts";
import {
	createDownloadLinks,
	type Download,
} from "../server/artifacts/download-links.ts";
import {
	type OfferedDownload,
	openDownloadServer,
} from "../server/device-link/download-server.ts";
import type { AttemptLimits } from "../server/device-link/sign-in-attempts.ts";
import { Events } from "../server/events.ts";
import { setLogLevel } from "../server/log.ts";
import { Client } from "../wire/client.ts";
import { selfSignedCertificate } from "./support/certificate.ts";
import { download, ScriptedDevice, until } from "./support/device.ts";
import { type Engine, forEachEngine, sqlite } from "./support/engines.ts";
import {
	makeDevice,
	makePackage,
	makeProduct,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";
import { ServerProcess } from "./support/server-process.ts";

setLogLevel("silent");
const tls = await selfSignedCertificate();
const TASK = "5c8ba99030344005c02316ad";

/** A listener over a real port, with one package offered to one device. */
async function openWorld(
	options: {
		bytes?: Buffer;
		stallTimeoutMs?: number;
		handshakeTimeoutMs?: number;
		limits?: Partial<AttemptLimits>;
		onUpgrade?: (
			request: IncomingMessage,
			socket: Duplex,
			head: Buffer,
		) => void;
	} = {},
) {
	const {
		bytes = randomBytes(100_000),
		handshakeTimeoutMs = 20_000,
		...server
	} = options;
	const directory = await mkdtemp(join(tmpdir(), "otaru-downloads-"));
	const store = await openDisk(directory);
	const staged = await store.stage([bytes] as never, 1e9);
	await staged.keep();
	let now = new Date("2026-01-29T08:00:00.000Z");
	const offered: OfferedDownload & { fileName: string } = {
		status: "Processing",
		packageId: "28f61af50fc9452aa0ed5ea2",
		fileName: "fw.bin",
		offeredAt: now,
		expiresAt: new Date("2026-01-30T08:00:00.000Z"),
		sha256: staged.sha256,
		sizeBytes: bytes.length,
	};
	const events = new Events();
	let port = 0;
	let lookUp = async (taskId: string, position: number) =>
		taskId === TASK && position === 1 ? { ...offered } : undefined;
	const links = createDownloadLinks({
		key: createSecretKey(randomBytes(32)),
		base: () => `https://127.0.0.1:${port}`,
	});
	const listener = await openDownloadServer({
		config: {
			devices: {
				https: { host: "127.0.0.1", port: 0 },
				maxConnections: 1000,
				signInTimeoutMs: handshakeTimeoutMs,
			},
		},
		tls,
		links,
		findDownload: (taskId, position) => lookUp(taskId, position),
		store,
		events,
		now: () => now,
		...server,
	});
	port = listener.port;
	const download = (): Download => ({
		taskId: TASK,
		position: 1,
		packageId: offered.packageId,
		fileName: offered.fileName,
		offeredAt: offered.offeredAt,
		expiresAt: offered.expiresAt,
	});
	return {
		bytes,
		directory,
		store,
		port,
		offered,
		events,
		artifactFile: join(directory, staged.sha256.slice(0, 2), staged.sha256),
		setNow: (date: string) => {
			now = new Date(date);
		},
		setLookUp: (find: typeof lookUp) => {
			lookUp = find;
		},
		links,
		presignedPath: () =>
			links.presigned(download()).slice(`https://127.0.0.1:${port}`.length),
		token() {
			const { url, accessToken } = links.token(download());
			return {
				path: url.slice(`https://127.0.0.1:${port}`.length),
				accessToken,
			};
		},
		/** Resolves when the metric has this value: it may change just after the last byte. */
		async counts(name: string, labels: Record<string, string>, value: number) {
			await until(
				() => this.count(name, labels),
				(count) => count === value,
			);
		},
		async count(name: string, labels: Record<string, string>) {
			const text = await events.registry.metrics();
			const wanted = Object.entries(labels).map(([k, v]) => `${k}="${v}"`);
			for (const line of text.split("\n")) {
				if (
					line.startsWith(`otaru_${name}`) &&
					wanted.every((label) => line.includes(label))
				)
					return Number(line.slice(line.lastIndexOf(" ") + 1));
			}
			return 0;
		},
		async [Symbol.asyncDispose]() {
			await listener[Symbol.asyncDispose]();
			await rm(directory, { recursive: true });
		},
	};
}

async function connectDevice(port: number): Promise<TLSSocket> {
	const socket = connect({
		host: "127.0.0.1",
		port,
		rejectUnauthorized: false,
		ALPNProtocols: ["http/1.1"],
	});
	socket.on("error", () => {});
	await once(socket, "secureConnect");
	return socket;
}

interface RawAnswer {
	status: number;
	head: string;
	body: Buffer;
	/** What came in the first piece. */
	first: Buffer;
}

/** Speaks to the listener byte by byte, as the C SDK does. */
async function ask(
	port: number,
	requestText: string,
	options: { headOnly?: boolean } = {},
): Promise<RawAnswer> {
	const socket = await connectDevice(port);
	socket.write(requestText);
	const chunks: Buffer[] = [];
	let received = 0;
	let expected = Number.POSITIVE_INFINITY;
	for await (const chunk of socket as AsyncIterable<Buffer>) {
		chunks.push(chunk);
		received += chunk.length;
		if (expected === Number.POSITIVE_INFINITY) {
			const text = Buffer.concat(chunks).toString("latin1");
			const end = text.indexOf("\r\n\r\n") + 4;
			if (end === 3) continue;
			const length = /Content-Length: (\d+)/.exec(text.slice(0, end))?.[1];
			expected = end + (options.headOnly ? 0 : Number(length));
		}
		if (received >= expected) break;
	}
	socket.destroy();
	const all = Buffer.concat(chunks);
	const end = all.indexOf("\r\n\r\n") + 4;
	const head = all.subarray(0, end).toString("latin1");
	return {
		status: Number(head.slice(9, 12)),
		head,
		body: all.subarray(end),
		first: chunks[0] ?? Buffer.alloc(0),
	};
}

function get(path: string, ...headers: string[]): string {
	return `${["GET", path, "HTTP/1.1"].join(" ")}\r\n${["Host: x", ...headers].join("\r\n")}\r\n\r\n`;
}

test("a package comes whole by its pre-signed address", async () => {
	await using world = await openWorld();
	const answer = await ask(world.port, get(world.presignedPath()));
	assert.equal(answer.status, 200);
	assert.deepEqual(answer.body, world.bytes);
	await world.counts(
		"download_total",
		{
			form: "presigned",
			outcome: "served",
		},
		1,
	);
});

test("the bare line feeds of the C SDK are understood, with a token and without", async () => {
	await using world = await openWorld();
	const { path, accessToken } = world.token();
	const withToken = await ask(
		world.port,
		`GET ${path} HTTP/1.1\nHost: 127.0.0.1\nContent-Type: application/json\nAuthorization:Bearer ${accessToken}\r\n\r\n`,
	);
	assert.equal(withToken.status, 200);
	assert.deepEqual(withToken.body, world.bytes);
	const presigned = await ask(
		world.port,
		`GET ${world.presignedPath()} HTTP/1.1\nHost: 127.0.0.1\r\n\r\n`,
	);
	assert.equal(presigned.status, 200);
	assert.deepEqual(presigned.body, world.bytes);
});

test("the head comes in one piece of its own, spelled as the C SDK searches for it", async () => {
	await using world = await openWorld();
	const { path, accessToken } = world.token();
	const answer = await ask(
		world.port,
		get(path, `Authorization: Bearer ${accessToken}`),
	);
	assert.equal(answer.first.toString("latin1"), answer.head);
	assert.ok(answer.first.length <= 4095);
	assert.match(answer.head, /^HTTP\/1\.1 200 OK\r\n/);
	assert.match(answer.head, /\r\nContent-Type: application\/octet-stream\r\n/);
	assert.match(answer.head, /\r\nContent-Length: 100000\r\n/);
	assert.match(
		answer.head,
		/\r\nContent-Disposition: attachment; filename=fw\.bin\r\n/,
	);
	assert.doesNotMatch(
		answer.head,
		/Transfer-Encoding|Set-Cookie|Location|Content-Encoding/i,
	);
});

test("a client that waits to be told to go on gets the answer itself and nothing before it", async () => {
	await using world = await openWorld();
	for (const expectation of ["100-continue", "something else"]) {
		const answer = await ask(
			world.port,
			get(world.presignedPath(), `Expect: ${expectation}`),
		);
		assert.match(answer.head, /^HTTP\/1\.1 200 OK\r\n/);
		assert.deepEqual(answer.body, world.bytes);
	}
});

test("a file name that would break the head or the device is made safe", async () => {
	await using world = await openWorld();
	world.offered.fileName = 'images/固件";\r\nX-Evil: 1/v 1.tar.gz';
	const answer = await ask(world.port, get(world.presignedPath()));
	assert.equal(answer.status, 200);
	assert.match(answer.head, /filename=v_1\.tar\.gz\r\n/);
	assert.doesNotMatch(answer.head, /X-Evil/);
});

test("HEAD answers as GET would, without the bytes", async () => {
	await using world = await openWorld();
	const text = get(world.presignedPath()).replace("GET", "HEAD");
	const answer = await ask(world.port, text, { headOnly: true });
	assert.equal(answer.status, 200);
	assert.match(answer.head, /\r\nContent-Length: 100000\r\n/);
	assert.equal(answer.body.length, 0);
	const refused = await ask(
		world.port,
		"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
		{ headOnly: true },
	);
	assert.equal(refused.status, 404);
	assert.equal(refused.body.length, 0);
});

test("a single range is answered with 206 and exactly those bytes; HEAD knows no ranges", async () => {
	await using world = await openWorld();
	const cases: [string, number, number][] = [
		["bytes=0-0", 0, 1],
		["bytes=0-99999", 0, 100_000],
		["bytes=10-19", 10, 20],
		["bytes=99990-", 99_990, 100_000],
		["bytes=99990-200000", 99_990, 100_000],
		["bytes=-5", 99_995, 100_000],
		["bytes=-200000", 0, 100_000],
		["Bytes=5-6", 5, 7],
	];
	for (const [range, start, end] of cases) {
		const answer = await ask(
			world.port,
			get(world.presignedPath(), `Range: ${range}`),
		);
		assert.equal(answer.status, 206, range);
		assert.ok(
			answer.head.includes(
				`\r\nContent-Range: bytes ${start}-${end - 1}/100000\r\n`,
			),
			range,
		);
		assert.deepEqual(answer.body, world.bytes.subarray(start, end), range);
	}
	const head = await ask(
		world.port,
		get(world.presignedPath(), "Range: bytes=10-19").replace("GET", "HEAD"),
		{ headOnly: true },
	);
	assert.equal(head.status, 200);
	assert.match(head.head, /\r\nContent-Length: 100000\r\n/);
});

test("several ranges, another unit and nonsense get the whole package", async () => {
	await using world = await openWorld();
	for (const range of [
		"bytes=0-1,5-6",
		"bytes=5-2",
		"bytes=-",
		"bytes=a-b",
		"bytes=1-2-3",
		"items=0-1",
		"0-1",
		"bytes=99999999999999999999-",
	]) {
		const answer = await ask(
			world.port,
			get(world.presignedPath(), `Range: ${range}`),
		);
		assert.equal(answer.status, 200, range);
		assert.deepEqual(answer.body, world.bytes, range);
	}
});

test("a range outside the package is answered with 416 and the true size", async () => {
	await using world = await openWorld();
	for (const range of ["bytes=100000-", "bytes=100000-100001", "bytes=-0"]) {
		const answer = await ask(
			world.port,
			get(world.presignedPath(), `Range: ${range}`),
		);
		assert.equal(answer.status, 416, range);
		assert.match(answer.head, /\r\nContent-Range: bytes \*\/100000\r\n/);
		assert.ok(answer.body.length < 100);
	}
});

test("a range of another version of the package is not served as a part of this one", async () => {
	await using world = await openWorld();
	const tag = `"${world.offered.sha256}"`;
	const same = await ask(
		world.port,
		get(world.presignedPath(), "Range: bytes=1-2", `If-Range: ${tag}`),
	);
	assert.equal(same.status, 206);
	assert.ok(same.head.includes(`\r\nETag: ${tag}\r\n`));
	const other = await ask(
		world.port,
		get(world.presignedPath(), "Range: bytes=1-2", 'If-Range: "0"'),
	);
	assert.equal(other.status, 200);
	assert.deepEqual(other.body, world.bytes);
});

test("a missing, wrong or foreign proof is answered with 401 and a short body", async () => {
	await using world = await openWorld();
	const { path, accessToken } = world.token();
	const wrong = `${accessToken.slice(0, -1)}${accessToken.endsWith("0") ? "1" : "0"}`;
	const presigned = world.presignedPath();
	for (const text of [
		get(path),
		get(path, "Authorization: Bearer"),
		get(path, "Authorization: Bearer "),
		get(path, `Authorization: Bearer ${wrong}`),
		get(path, `Authorization: Bearer ${accessToken}x`),
		get(path, `Authorization: Basic ${accessToken}`),
		get(path, `Authorization: Bearer ${"x".repeat(4000)}`),
		get(presigned.slice(0, presigned.indexOf("?"))),
		get(presigned.replace("Signature=", "Signature=f")),
		get(presigned.replace("Expires=", "Expires=9")),
	]) {
		const answer = await ask(world.port, text);
		assert.equal(answer.status, 401, text);
		assert.ok(answer.body.length < 100);
		assert.match(answer.head, /\r\nContent-Length: /);
	}
});

test("whoever shows wrong proofs too often is answered 429 without a look, and nobody else is", async () => {
	await using world = await openWorld({
		limits: { perDevice: 5, forgivenMs: 2_000 },
	});
	let looked = 0;
	world.setLookUp(async (taskId, position) => {
		looked++;
		return taskId === TASK && position <= 2 ? { ...world.offered } : undefined;
	});
	const { path, accessToken } = world.token();
	const wrong = get(path, `Authorization: Bearer ${"0".repeat(64)}`);
	const right = get(path, `Authorization: Bearer ${accessToken}`);
	// What proves nothing, and what is over, is no guess.
	world.offered.status = "Stopped";
	for (let count = 0; count < 8; count++) {
		assert.equal((await ask(world.port, get(path))).status, 401);
		assert.equal((await ask(world.port, right)).status, 401);
	}
	world.offered.status = "Processing";
	for (let count = 0; count < 5; count++)
		assert.equal((await ask(world.port, wrong)).status, 401);
	looked = 0;
	for (const text of [wrong, right]) {
		const blocked = await ask(world.port, text);
		assert.equal(blocked.status, 429);
		assert.match(blocked.head, /\r\nRetry-After: \d+\r\n/);
		assert.ok(blocked.body.length < 100);
	}
	assert.equal(looked, 0);
	await world.counts("download_total", { outcome: "blocked" }, 2);
	// The device beside it has not failed.
	const beside = world.links.token({
		...world.offered,
		taskId: TASK,
		position: 2,
	});
	const besidePath = beside.url.slice(beside.url.indexOf("/iodm"));
	const answer = await ask(
		world.port,
		get(besidePath, `Authorization: Bearer ${beside.accessToken}`),
	);
	assert.equal(answer.status, 200);
	await until(
		() => ask(world.port, right),
		({ status }) => status === 200,
	);
	// Known from here by now: guesses keep it waiting for one of them at most.
	for (let count = 0; count < 20; count++) await ask(world.port, wrong);
	const begin = performance.now();
	await until(
		() => ask(world.port, right),
		({ status }) => status === 200,
	);
	assert.ok(performance.now() - begin < 1_500);
});

test("a link is dead when its time is over, when the upgrade ends, and for a token when another offer was made", async () => {
	await using world = await openWorld();
	const { path, accessToken } = world.token();
	const presigned = world.presignedPath();
	const ask2 = async () => [
		(await ask(world.port, get(presigned))).status,
		(await ask(world.port, get(path, `Authorization: Bearer ${accessToken}`)))
			.status,
	];
	assert.deepEqual(await ask2(), [200, 200]);
	world.setNow("2026-01-30T07:59:59.999Z");
	assert.deepEqual(await ask2(), [200, 200]);
	world.setNow("2026-01-30T08:00:00.000Z");
	assert.deepEqual(await ask2(), [401, 401]);
	world.setNow("2026-01-29T09:00:00.000Z");
	for (const status of [
		"Waitting",
		"Success",
		"Fail",
		"FailWaitRetry",
		"Stopped",
		"Removed",
	]) {
		world.offered.status = status;
		assert.deepEqual(await ask2(), [401, 401], status);
	}
	world.offered.status = "Processing";
	world.offered.offeredAt = new Date("2026-01-29T08:30:00.000Z");
	assert.deepEqual(await ask2(), [200, 200], "the notice was repeated");
	world.offered.expiresAt = new Date("2026-01-30T08:30:00.000Z");
	assert.deepEqual(await ask2(), [200, 401], "another offer");
	world.offered.packageId = "another";
	assert.deepEqual(await ask2(), [404, 401]);
});

test("connections that never finish their handshake are closed and leave nothing open", async () => {
	await using world = await openWorld({ handshakeTimeoutMs: 300 });
	const closed = Array.from({ length: 50 }, (_, index) => {
		const socket = connectTcp(world.port, "127.0.0.1");
		socket.on("error", () => {});
		// Half of them begin one.
		if (index % 2) socket.write(Buffer.from([0x16, 3, 1, 2, 0, 1, 0]));
		return once(socket, "close");
	});
	await Promise.race([
		Promise.all(closed),
		new Promise((_, reject) =>
			setTimeout(() => reject(new Error("some are still open")), 5_000),
		),
	]);
});

test("what there is not is answered with 404", async () => {
	await using world = await openWorld();
	const gone = world.links.token({
		taskId: TASK,
		position: 2,
		packageId: "x",
		fileName: "x.bin",
		offeredAt: new Date(),
		expiresAt: new Date(),
	});
	for (const text of [
		get("/"),
		get("/iodm/inner/v1.3.0/firmwarefiles/nothing"),
		get(
			gone.url.slice(gone.url.indexOf("/iodm")),
			`Authorization: Bearer ${gone.accessToken}`,
		),
	]) {
		const answer = await ask(world.port, text);
		assert.equal(answer.status, 404, text);
		assert.ok(answer.body.length < 100);
	}
});

test("other methods are refused, and a body that comes along does no harm", async () => {
	await using world = await openWorld();
	const post = await ask(
		world.port,
		`POST ${world.presignedPath()} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello`,
	);
	assert.equal(post.status, 405);
	assert.match(post.head, /\r\nAllow: GET, HEAD\r\n/);
	const withBody = await ask(
		world.port,
		get(world.presignedPath(), "Content-Length: 2").concat("{}"),
	);
	assert.equal(withBody.status, 200);
});

test("nonsense is answered with 400 and a closed connection, and the listener lives on", async () => {
	await using world = await openWorld();
	for (const text of [
		"hello\r\n\r\n",
		"GET\r\n\r\n",
		"\u0000\u0001\u0002\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	]) {
		const answer = await ask(world.port, text);
		assert.equal(answer.status, 400, JSON.stringify(text));
		assert.match(answer.head, /Connection: close/);
	}
	const long = await ask(world.port, get("/", `X: ${"y".repeat(20_000)}`));
	assert.equal(long.status, 431);
	const plain = connectTcp(world.port, "127.0.0.1");
	plain.on("error", () => {});
	plain.write("GET / HTTP/1.1\r\n\r\n");
	await once(plain, "close");
	assert.equal((await ask(world.port, get(world.presignedPath()))).status, 200);
});

test("a package that is gone or has another size is never half delivered: 503, and the operator is told", async () => {
	await using world = await openWorld();
	await truncate(world.artifactFile, 99_999);
	const short = await ask(world.port, get(world.presignedPath()));
	assert.equal(short.status, 503);
	assert.ok(short.body.length < 100);
	await world.counts("artifact_damaged_total", { how: "wrong_size" }, 1);
	await rm(world.artifactFile);
	assert.equal((await ask(world.port, get(world.presignedPath()))).status, 503);
	await world.counts("artifact_damaged_total", { how: "missing" }, 1);
	await writeFile(world.artifactFile, world.bytes);
	assert.equal((await ask(world.port, get(world.presignedPath()))).status, 200);
});

test("a store that fails is answered with 503, and the next request with the package", async () => {
	await using world = await openWorld();
	const offered = { ...world.offered };
	world.setLookUp(() => Promise.reject(new Error("the store is away")));
	assert.equal((await ask(world.port, get(world.presignedPath()))).status, 503);
	world.setLookUp(async () => offered);
	assert.equal((await ask(world.port, get(world.presignedPath()))).status, 200);
});

test("a package that becomes shorter while it is sent ends in a broken connection, not in wrong bytes", async () => {
	await using world = await openWorld({ bytes: randomBytes(40_000_000) });
	const socket = await connectDevice(world.port);
	socket.write(get(world.presignedPath()));
	await once(socket, "data");
	socket.pause();
	await pause(100);
	await truncate(world.artifactFile, 1000);
	let received = 0;
	socket.on("data", (chunk: Buffer) => {
		received += chunk.length;
	});
	socket.resume();
	await once(socket, "close");
	assert.ok(received < world.bytes.length);
	await world.counts(
		"download_total",
		{
			form: "presigned",
			outcome: "failed",
		},
		1,
	);
});

test("requests sent ahead on one connection are answered in order", async () => {
	await using world = await openWorld({ bytes: randomBytes(600_000) });
	const socket = await connectDevice(world.port);
	const path = world.presignedPath();
	socket.write(
		get(path, "Range: bytes=0-599999") +
			get("/nothing") +
			get(path, "Range: bytes=7-8", "Connection: close"),
	);
	const all = Buffer.concat(
		await Array.fromAsync(socket as AsyncIterable<Buffer>),
	);
	const bodyStart = all.indexOf("\r\n\r\n") + 4;
	assert.deepEqual(all.subarray(bodyStart, bodyStart + 600_000), world.bytes);
	const rest = all.subarray(bodyStart + 600_000);
	assert.match(rest.toString("latin1"), /^HTTP\/1\.1 404 /);
	assert.deepEqual(rest.subarray(-2), world.bytes.subarray(7, 9));
});

test("devices that go away in the middle leave nothing running behind", async () => {
	await using world = await openWorld({ bytes: randomBytes(30_000_000) });
	const sockets = await Promise.all(
		Array.from({ length: 20 }, () => connectDevice(world.port)),
	);
	for (const [index, socket] of sockets.entries()) {
		// Some with requests sent ahead, which never get their turn.
		socket.write(get(world.presignedPath()).repeat(1 + (index % 3)));
	}
	await Promise.all(sockets.map((socket) => once(socket, "data")));
	for (const socket of sockets) socket.pause();
	await world.counts("downloads_running", {}, 20);
	for (const socket of sockets) socket.destroy();
	await world.counts("downloads_running", {}, 0);
	await world.counts(
		"download_total",
		{
			form: "presigned",
			outcome: "aborted",
		},
		20,
	);
	// The file can be removed and its space comes back: nobody holds it open.
	const open = await openFiles(world.artifactFile);
	assert.equal(open, 0);
});

test("a device that takes nothing for too long is dropped", async () => {
	await using world = await openWorld({
		bytes: randomBytes(30_000_000),
		stallTimeoutMs: 300,
	});
	const socket = await connectDevice(world.port);
	socket.write(get(world.presignedPath()));
	await once(socket, "data");
	socket.pause();
	await world.counts("downloads_running", {}, 0);
	socket.destroy();
});

test("a slow device that keeps taking bytes is served to the end", async () => {
	await using world = await openWorld({
		bytes: randomBytes(20_000_000),
		stallTimeoutMs: 1_500,
	});
	const socket = await connectDevice(world.port);
	const digest = createHash("sha256");
	const begun = performance.now();
	socket.write(get(world.presignedPath(), "Connection: close"));
	let head = true;
	for await (const chunk of socket as AsyncIterable<Buffer>) {
		digest.update(head ? chunk.subarray(chunk.indexOf("\r\n\r\n") + 4) : chunk);
		head = false;
		await pause(8);
	}
	// Longer than the limit on taking nothing, which is no limit on the whole.
	assert.ok(performance.now() - begun > 1_500);
	assert.equal(digest.digest("hex"), world.offered.sha256);
});

test("many devices fetch one package at once and all get the right bytes", async () => {
	await using world = await openWorld({ bytes: randomBytes(3_000_000) });
	const hashes = await Promise.all(
		Array.from({ length: 100 }, async () => {
			const { body } = await ask(world.port, get(world.presignedPath()));
			return createHash("sha256").update(body).digest("hex");
		}),
	);
	assert.deepEqual([...new Set(hashes)], [world.offered.sha256]);
});

test("an ordinary HTTPS client gets the package, with TLS 1.2 and 1.3", async () => {
	await using world = await openWorld();
	for (const version of ["TLSv1.2", "TLSv1.3"] as const) {
		const request = httpsRequest({
			host: "127.0.0.1",
			port: world.port,
			path: world.presignedPath(),
			rejectUnauthorized: false,
			minVersion: version,
			maxVersion: version,
			agent: false,
		});
		request.end();
		const [response] = (await once(request, "response")) as [IncomingMessage];
		const body = Buffer.concat(await Array.fromAsync(response));
		assert.equal(response.statusCode, 200);
		assert.deepEqual(body, world.bytes);
	}
	const old = connect({
		host: "127.0.0.1",
		port: world.port,
		rejectUnauthorized: false,
		maxVersion: "TLSv1.1",
		minVersion: "TLSv1",
		ciphers: "DEFAULT@SECLEVEL=0",
	});
	await assert.rejects(once(old, "secureConnect"));
});

test("only a request to become a WebSocket is handed on", async () => {
	const seen: (string | undefined)[] = [];
	await using world = await openWorld({
		onUpgrade(request, socket) {
			seen.push(request.url);
			socket.end("HTTP/1.1 101 Switching Protocols\r\n\r\n");
		},
	});
	const socket = await connectDevice(world.port);
	socket.write(get("/mqtt", "Connection: Upgrade", "Upgrade: websocket"));
	const [first] = (await once(socket, "data")) as [Buffer];
	assert.match(first.toString(), /^HTTP\/1\.1 101 /);
	socket.destroy();
	assert.deepEqual(seen, ["/mqtt"]);
	const other = await ask(
		world.port,
		get(world.presignedPath(), "Connection: Upgrade", "Upgrade: h2c"),
	);
	assert.equal(other.status, 200);
	assert.deepEqual(seen, ["/mqtt"]);
});

test("closing the listener ends what is being sent", async () => {
	const world = await openWorld({ bytes: randomBytes(30_000_000) });
	const socket = await connectDevice(world.port);
	socket.write(get(world.presignedPath()));
	await once(socket, "data");
	const closed = once(socket, "close");
	await world[Symbol.asyncDispose]();
	await closed;
});

/** A whole server with a device that has just been offered a package. */
async function offer(
	server: Pick<TestServer, "api" | "credentials">,
	downloadForm: "presigned" | "token",
) {
	const { api } = server;
	const product = await makeProduct(api);
	await api.updateProductOtaProfile(product.product_id, {
		download_form: downloadForm,
	});
	const bytes = randomBytes(300_000);
	const made = await makePackage(api, product, {
		version: "v2",
		file_location: await upload(api, `${unique("fw")}.tar.gz`, bytes),
	});
	const device = await makeDevice(api, product);
	const connected = await ScriptedDevice.connect(server as TestServer, device);
	const task = await api.createTask({
		task_name: "upgrade",
		task_type: "firmwareUpgrade",
		targets: [device.device_id ?? ""],
		document: { package_ids: [made.package_id] },
	});
	await connected.next("version_query");
	await connected.reportFirmware("v1");
	const { paras } = await connected.next(
		downloadForm === "token" ? "firmware_upgrade" : "firmware_upgrade_v2",
	);
	return { bytes, task, paras, device: connected };
}

forEachEngine((engine: Engine) => {
	for (const form of ["presigned", "token"] as const) {
		test(`an offered package can be fetched whole, in parts and again while the upgrade runs (${form})`, async () => {
			await using server = await startServer(engine);
			const { bytes, task, paras, device } = await offer(server, form);
			await using _ = device;
			assert.match(
				String(paras.url),
				/^https:\/\/127\.0\.0\.1:\d+\/[^?]+(\?|$)/,
			);
			const whole = await download(server, paras);
			assert.equal(whole.status, 200);
			assert.ok(whole.bytes.equals(bytes));
			const first = await download(server, paras, { range: "bytes=0-99999" });
			const rest = await download(server, paras, { range: "bytes=100000-" });
			assert.deepEqual([first.status, rest.status], [206, 206]);
			assert.ok(Buffer.concat([first.bytes, rest.bytes]).equals(bytes));
			await server.restart();
			assert.equal((await download(server, paras)).status, 200);
			await server.api.stopTask(task.task_id);
			assert.equal((await download(server, paras)).status, 401);
			await server.api.deleteTask(task.task_id);
			// Its rows go after the answer.
			await until(
				() => download(server, paras),
				({ status }) => status === 404,
			);
		});
	}

	test("a package whose file has been damaged since it was offered is not delivered", async () => {
		await using server = await startServer(engine);
		const { paras, device } = await offer(server, "presigned");
		await using _ = device;
		const sign = String(paras.sign);
		await truncate(
			join(server.config.artifactsDir, sign.slice(0, 2), sign),
			10,
		);
		assert.equal((await download(server, paras)).status, 503);
		const metrics = await (await fetch(`${server.url}/metrics`)).text();
		assert.match(metrics, /otaru_artifact_damaged_total\{how="wrong_size"\} 1/);
	});
});

test("nothing that opens a package is ever logged, at any level", async () => {
	const fresh = await sqlite.fresh();
	await using stack = new AsyncDisposableStack();
	stack.defer(() => fresh.dispose());
	const dataDir = fresh.env.OTARU_DATA;
	// Standard output of the process belongs to the test: preloaded code sends it on.
	const keepOutput = `data:text/javascript,${encodeURIComponent(
		`import fs from "node:fs"; const fd = fs.openSync(${JSON.stringify(join(dataDir, "log.txt"))}, "a"); const write = fs.write, writeSync = fs.writeSync; fs.write = (to, ...rest) => write(to === 1 ? fd : to, ...rest); fs.writeSync = (to, ...rest) => writeSync(to === 1 ? fd : to, ...rest); import("node:module").then((m) => m.syncBuiltinESMExports());`,
	)}`;
	await using server = await ServerProcess.start({
		dataDir,
		env: { OTARU_LOG_LEVEL: "debug" },
		nodeArguments: ["--import", keepOutput],
	});
	const credentials = JSON.parse(
		await readFile(join(dataDir, "credentials.json"), "utf8"),
	);
	const api = new Client({
		endpoint: server.url,
		projectId: credentials.project_id,
		credentials: {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	});
	const secrets: string[] = [];
	for (const form of ["presigned", "token"] as const) {
		const { paras, device } = await offer({ api, credentials }, form);
		await using _ = device;
		secrets.push(
			form === "token"
				? String(paras.access_token)
				: String(new URL(String(paras.url)).searchParams.get("Signature")),
		);
		const fetched = await download({ credentials } as TestServer, paras);
		assert.equal(fetched.status, 200);
		// Refused ones and broken ones are logged as well.
		const url = new URL(String(paras.url));
		for (const method of ["POST", "GET"])
			await ask(
				server.ports.https,
				`${method} ${url.pathname}${url.search}x HTTP/1.1\r\nHost: x\r\nAuthorization: Basic ${paras.access_token}\r\n\r\n`,
			);
		await ask(
			server.ports.https,
			`GET ${url.pathname}${url.search} HTTP/1.1\r\nAuthorization: Bearer ${paras.access_token}\r\n no header\u0000\r\n\r\n`,
		);
	}
	await server.stop();
	const log = await readFile(join(dataDir, "log.txt"), "utf8");
	assert.match(log, /"event":"download","form":"token","outcome":"served"/);
	for (const secret of secrets) {
		assert.match(secret, /^[0-9a-f]{32,64}$/);
		assert.equal(log.includes(secret), false);
		assert.equal(server.stderr.includes(secret), false);
	}
});

async function openFiles(path: string): Promise<number> {
	let count = 0;
	for (const descriptor of await readdir("/proc/self/fd").catch(() => [])) {
		const target = await readlink(`/proc/self/fd/${descriptor}`).catch(
			() => "",
		);
		if (target === path) count++;
	}
	return count;
}
