import assert from "node:assert/strict";
import { createSecretKey, randomBytes } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import {
	createDownloadLinks,
	type Download,
	downloadBase,
	type PresignedTarget,
	safeFileName,
} from "../server/artifacts/download-links.ts";

const BASE = "https://10.1.1.1:8943";
const key = createSecretKey(randomBytes(32));
const links = createDownloadLinks({ key, base: () => BASE });
const offeredAt = new Date("2026-01-29T08:00:00.123Z");
const expiresAt = new Date("2026-01-30T08:00:00.123Z");
const download: Download = {
	taskId: "5c8ba99030344005c02316ad",
	position: 30_000,
	packageId: "28f61af50fc9452aa0ed5ea2",
	fileName: "fw.bin",
	offeredAt,
	expiresAt,
};

function parsePresigned(url: string): PresignedTarget {
	const target = links.parse(url.slice(BASE.length));
	assert.equal(target?.form, "presigned");
	return target;
}

test("a pre-signed link names its port, ends its path with the file name and carries a query", () => {
	const url = new URL(links.presigned(download));
	assert.equal(url.port, "8943");
	assert.equal(
		url.pathname,
		"/iodm/v1/5c8ba99030344005c02316ad/30000/28f61af50fc9452aa0ed5ea2/fw.bin",
	);
	assert.deepEqual(
		[...url.searchParams.keys()],
		["AccessKeyId", "Expires", "Signature"],
	);
	assert.match(url.searchParams.get("Signature") ?? "", /^[0-9a-f]{64}$/);
});

test("a pre-signed link is good until its expiry and not a second longer", () => {
	const target = parsePresigned(links.presigned(download));
	assert.equal(links.isValid(target, offeredAt), true);
	assert.equal(links.isValid(target, expiresAt), true);
	assert.equal(
		links.isValid(target, new Date("2026-01-30T08:00:01.000Z")),
		false,
	);
});

test("a pre-signed link loses its worth when any part of it is changed", () => {
	const url = links.presigned(download);
	const changes: [string, string][] = [
		["5c8ba99030344005c02316ad", "5c8ba99030344005c02316ae"],
		["/30000/", "/30001/"],
		["28f61af50fc9452aa0ed5ea2", "28f61af50fc9452aa0ed5ea3"],
		["fw.bin", "fx.bin"],
		["Expires=1", "Expires=2"],
		["AccessKeyId=otaru", "AccessKeyId=other"],
		["Signature=", "Signature=0"],
		["&Signature=", "&Nothing="],
	];
	for (const [from, to] of changes) {
		assert.ok(url.includes(from), from);
		const target = parsePresigned(url.replace(from, to));
		assert.equal(links.isValid(target, offeredAt), false, `${from} -> ${to}`);
	}
	const signature = /Signature=([0-9a-f]+)/.exec(url)?.[1] ?? "";
	for (let digit = 0; digit < signature.length; digit++) {
		const other = signature[digit] === "0" ? "1" : "0";
		const changed =
			signature.slice(0, digit) + other + signature.slice(digit + 1);
		assert.equal(
			links.isValid(parsePresigned(url.replace(signature, changed)), offeredAt),
			false,
		);
	}
});

test("links of one key are worth nothing under another", () => {
	const others = createDownloadLinks({
		key: createSecretKey(randomBytes(32)),
		base: () => BASE,
	});
	assert.equal(
		links.isValid(parsePresigned(others.presigned(download)), offeredAt),
		false,
	);
	assert.equal(
		links.isToken(others.token(download).accessToken, download),
		false,
	);
});

test("a token is 32 hex digits and its address names task and position", () => {
	const { url, accessToken } = links.token(download);
	assert.equal(
		url,
		`${BASE}/iodm/inner/v1.3.0/firmwarefiles/5c8ba99030344005c02316ad-7530`,
	);
	assert.match(accessToken, /^[0-9a-f]{32}$/);
	assert.deepEqual(links.parse(url.slice(BASE.length)), {
		form: "token",
		taskId: download.taskId,
		position: 30_000,
	});
	assert.equal(links.isToken(accessToken, download), true);
});

test("each notice has a token of its own, and a repeated notice does not end the one before", () => {
	const later = {
		...download,
		offeredAt: new Date(offeredAt.getTime() + 600_000),
	};
	const first = links.token(download).accessToken;
	const second = links.token(later).accessToken;
	assert.notEqual(first, second);
	assert.equal(links.isToken(first, later), true);
	assert.equal(links.isToken(second, later), true);
});

test("a token is good for nothing but its own offer of its own package", () => {
	const { accessToken } = links.token(download);
	for (const other of [
		{ expiresAt: new Date(download.expiresAt.getTime() + 1) },
		{ position: 1 },
		{ taskId: "5c8ba99030344005c02316ae" },
		{ packageId: "another" },
	]) {
		assert.equal(links.isToken(accessToken, { ...download, ...other }), false);
	}
	assert.equal(links.isToken("", download), false);
	assert.equal(links.isToken(accessToken.toUpperCase(), download), false);
});

test("a whole URL as request target and the path of a public address are understood", () => {
	const proxied = createDownloadLinks({
		key,
		base: () => "https://ota.example.com:443/devices",
	});
	const url = proxied.presigned(download);
	assert.ok(url.startsWith("https://ota.example.com:443/devices/iodm/v1/"));
	const path = url.slice("https://ota.example.com:443".length);
	for (const target of [url, path, path.slice("/devices".length)]) {
		const parsed = proxied.parse(target);
		assert.equal(parsed?.form, "presigned", target);
		assert.equal(proxied.isValid(parsed, offeredAt), true, target);
	}
});

test("what is no download address is told from one", () => {
	for (const target of [
		"",
		"/",
		"*",
		"/iodm/v1/",
		"/iodm/v1/5c8b/0/p/fw.bin?x=1",
		"/iodm/v1/5c8b/1/p/../fw.bin",
		"/iodm/v1/5c8b/1/p/a%2Fb",
		"/iodm/inner/v1.3.0/firmwarefiles/5c8b",
		"/iodm/inner/v1.3.0/firmwarefiles/5c8b-0",
		"/iodm/inner/v1.3.0/firmwarefiles/5c8b-1-1",
		"/iodm/inner/v1.3.0/firmwarefiles/5C8B-1",
		"/elsewhere/iodm/v1/5c8b/1/p/fw.bin",
	]) {
		assert.equal(links.parse(target), undefined, target);
	}
});

test("nothing a stranger writes as an address passes for a signed one", () => {
	fc.assert(
		fc.property(
			fc.oneof(
				fc.string({ unit: "binary" }),
				fc.string().map((text) => `/iodm/v1/5c8b/1/p/fw.bin?${text}`),
			),
			(text) => {
				const target = links.parse(text);
				return (
					target?.form !== "presigned" || !links.isValid(target, offeredAt)
				);
			},
		),
		{ numRuns: 2000 },
	);
});

test("file names become safe and keep their suffix", () => {
	const cases: [string, string][] = [
		["fw.bin", "fw.bin"],
		["images/2026/fw v1.tar.gz", "fw_v1.tar.gz"],
		["固件-1.2.bin", "_-1.2.bin"],
		['a";b=c\r\nX: y.bin', "a_b_c_X_y.bin"],
		["../../etc/passwd", "passwd"],
		["..", "package.bin"],
		["", "package.bin"],
		["固件", "package.bin"],
		[".hidden.bin", "hidden.bin"],
		["--force.bin", "force.bin"],
		[`${"a".repeat(300)}.tar.gz`, `${"a".repeat(121)}.tar.gz`],
	];
	for (const [name, safe] of cases) assert.equal(safeFileName(name), safe);
	fc.assert(
		fc.property(fc.string({ unit: "binary", maxLength: 400 }), (name) => {
			const safe = safeFileName(name);
			return (
				/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/.test(safe) &&
				safeFileName(safe) === safe
			);
		}),
	);
});

test("a link made with any file name can be read back", () => {
	fc.assert(
		fc.property(fc.string({ unit: "binary", maxLength: 300 }), (fileName) => {
			const target = parsePresigned(links.presigned({ ...download, fileName }));
			return links.isValid(target, offeredAt);
		}),
	);
});

test("the base of links always has a port", () => {
	const devices = { publicHost: "10.1.1.1", publicUrl: undefined };
	assert.equal(downloadBase(devices, 443), "https://10.1.1.1:443");
	assert.equal(
		downloadBase({ ...devices, publicHost: "2001:db8::1" }, 8943),
		"https://[2001:db8::1]:8943",
	);
	assert.equal(
		downloadBase({ ...devices, publicUrl: "https://ota.example.com:8443" }, 1),
		"https://ota.example.com:8443",
	);
});
