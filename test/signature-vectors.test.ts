import assert from "node:assert/strict";
import { createHash, createHmac, createSecretKey } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import {
	canonicalRequests,
	derivedKey,
	type RequestSignature,
	readSignature,
	SignatureFault,
	type SignedRequest,
	stringToSign,
	verifySignature,
} from "../server/access/request-signature.ts";
import { signRequest } from "../wire/client.ts";
import { parseWireTime } from "../wire/envelope.ts";

interface Vector {
	id: string;
	access_key: string;
	secret_key: string;
	request: {
		method: string;
		target: string;
		headers: Record<string, string>;
		body: string;
	};
	scope: { region: string; service: string } | null;
	expected: {
		canonical_request: string;
		canonical_request_sha256: string;
		payload_hash: string;
		signed_headers: string;
		string_to_sign: string;
		signature: string;
		authorization: string;
		info?: string;
		derived_key_hex?: string;
	};
}

const file = JSON.parse(
	readFileSync(join(import.meta.dirname, "vectors/signing.json"), "utf8"),
) as {
	vectors: Vector[];
	published_vectors: Vector[];
	negative_cases: { base: string; change: string; expect: string }[];
};

function requestOf({ request }: Vector): SignedRequest {
	return {
		method: request.method,
		target: request.target,
		headers: request.headers,
		payloadHash:
			request.headers["x-sdk-content-sha256"] ??
			createHash("sha256").update(request.body).digest("hex"),
	};
}

function keyOf(vector: Vector) {
	const secretKey = createSecretKey(vector.secret_key, "utf8");
	return vector.expected.info === undefined
		? secretKey
		: derivedKey(secretKey, vector.access_key, vector.expected.info);
}

function signatureOf(vector: Vector): RequestSignature {
	const { info, signed_headers, signature } = vector.expected;
	return {
		algorithm: info === undefined ? "SDK-HMAC-SHA256" : "V11-HMAC-SHA256",
		accessKey: vector.access_key,
		date: vector.request.headers["x-sdk-date"] ?? "",
		signedHeaders: signed_headers,
		signature,
		info,
	};
}

function dateOf(vector: Vector): Date {
	const date = parseWireTime(vector.request.headers["x-sdk-date"] ?? "");
	assert.ok(date);
	return date;
}

const all = [...file.vectors, ...file.published_vectors];

describe("every vector", () => {
	assert.equal(all.length, 19);
	for (const vector of all) {
		const { expected } = vector;

		test(`${vector.id}: the server rebuilds each intermediate value`, () => {
			const canonical = canonicalRequests(
				requestOf(vector),
				expected.signed_headers,
			);
			assert.ok(
				canonical.includes(expected.canonical_request),
				canonical.join("\n---\n"),
			);
			assert.equal(
				stringToSign(signatureOf(vector), expected.canonical_request_sha256),
				expected.string_to_sign,
			);
			assert.equal(
				createHash("sha256").update(expected.canonical_request).digest("hex"),
				expected.canonical_request_sha256,
			);
			if (expected.derived_key_hex !== undefined)
				assert.equal(
					keyOf(vector).export().toString("utf8"),
					expected.derived_key_hex,
				);
		});

		test(`${vector.id}: the server accepts the signature, and it alone`, () => {
			const signature = signatureOf(vector);
			const key = keyOf(vector);
			assert.equal(verifySignature(requestOf(vector), signature, key), true);
			const altered =
				(signature.signature[0] === "0" ? "1" : "0") +
				signature.signature.slice(1);
			assert.equal(
				verifySignature(
					requestOf(vector),
					{ ...signature, signature: altered },
					key,
				),
				false,
			);
		});

		test(`${vector.id}: the header is read as it was written`, () => {
			const headers = {
				...vector.request.headers,
				authorization: expected.authorization,
			};
			const read = () =>
				readSignature(
					headers,
					dateOf(vector),
					vector.scope ? [vector.scope.region] : [],
				);
			if (vector.scope && vector.scope.service !== "iotdm")
				assert.throws(read, SignatureFault);
			else assert.deepEqual(read(), signatureOf(vector));
		});
	}
});

describe("the client signs as the SDKs do", () => {
	// Its list of signed headers is its own: all that it sends.
	const own = all.filter(
		(vector) =>
			vector.expected.signed_headers ===
				Object.keys(vector.request.headers).sort().join(";") &&
			(vector.scope === null || vector.scope.service === "iotdm"),
	);
	assert.ok(own.length >= 14, `only ${own.length} comparable vectors`);
	for (const vector of own) {
		test(vector.id, async () => {
			const headers = { ...vector.request.headers };
			delete headers["x-sdk-date"];
			const signed = await signRequest(
				{
					method: vector.request.method,
					url: new URL(vector.request.target, "http://any.example"),
					headers,
					payloadHash: vector.expected.payload_hash,
					date: dateOf(vector),
				},
				{
					accessKey: vector.access_key,
					secretKey: vector.secret_key,
					...(vector.scope ? { derivedForRegion: vector.scope.region } : {}),
				},
			);
			assert.equal(signed.authorization, vector.expected.authorization);
		});
	}
});

describe("every negative case", () => {
	const base = (id: string) => {
		const vector = file.vectors.find((candidate) => candidate.id === id);
		assert.ok(vector);
		return structuredClone(vector);
	};
	const accepted = (vector: Vector, now = dateOf(vector)): boolean => {
		try {
			const signature = readSignature(
				{
					...vector.request.headers,
					authorization: vector.expected.authorization,
				},
				now,
				["cn-north-4"],
			);
			return verifySignature(requestOf(vector), signature, keyOf(vector));
		} catch (error) {
			if (error instanceof SignatureFault) return false;
			throw error;
		}
	};
	const cases: Record<string, (vector: Vector) => boolean> = {
		"one byte of the body altered after signing": (vector) => {
			vector.request.body = vector.request.body.replace("MCU", "MCV");
			return accepted(vector);
		},
		"clock of the verifier more than 15 minutes away from X-Sdk-Date": (
			vector,
		) => {
			const at = (seconds: number) =>
				new Date(dateOf(vector).getTime() + seconds * 1000);
			assert.equal(accepted(vector, at(900)), true);
			assert.equal(accepted(vector, at(-900)), true);
			return accepted(vector, at(901)) || accepted(vector, at(-901));
		},
		"signed header x-project-id removed or altered": (vector) => {
			const altered = structuredClone(vector);
			altered.request.headers["x-project-id"] = "another";
			delete vector.request.headers["x-project-id"];
			return accepted(vector) || accepted(altered);
		},
		"service name in the credential scope replaced by another one": (
			vector,
		) => {
			vector.expected.authorization = vector.expected.authorization.replace(
				"/iotdm,",
				"/iam,",
			);
			return accepted(vector);
		},
		"date in the credential scope differs from the day of X-Sdk-Date": (
			vector,
		) => {
			vector.expected.authorization = vector.expected.authorization.replace(
				"/20260129/",
				"/20260128/",
			);
			return accepted(vector);
		},
		"order of query parameters on the wire changed": (vector) => {
			const [path, query] = vector.request.target.split("?");
			vector.request.target = `${path}?${query?.split("&").reverse().join("&")}`;
			return accepted(vector);
		},
		"query value altered": (vector) => {
			vector.request.target = vector.request.target.replace(
				"limit=10",
				"limit=11",
			);
			return accepted(vector);
		},
	};
	for (const { base: id, change, expect } of file.negative_cases) {
		// Which keys there are is the store's to say: test/sign-in.test.ts.
		if (change === "unknown access key") continue;
		test(`${id}: ${change}`, () => {
			const run = cases[change];
			assert.ok(run, "a case without a test");
			assert.equal(accepted(base(id)), true);
			assert.equal(run(base(id)), expect === "still valid");
		});
	}
});

describe("a path with a percent sign", () => {
	const key = createSecretKey("secret", "utf8");
	const headers = { "x-sdk-date": "20260129T080000Z" };
	const sign = (canonicalPath: string) => {
		const canonical = `PUT\n${canonicalPath}/\n\nx-sdk-date:20260129T080000Z\n\nx-sdk-date\nUNSIGNED-PAYLOAD`;
		return createHmac("sha256", key)
			.update(
				`SDK-HMAC-SHA256\n20260129T080000Z\n${createHash("sha256").update(canonical).digest("hex")}`,
			)
			.digest("hex");
	};
	const fits = (target: string, canonicalPath: string) =>
		verifySignature(
			{ method: "PUT", target, headers, payloadHash: "UNSIGNED-PAYLOAD" },
			{
				algorithm: "SDK-HMAC-SHA256",
				accessKey: "key",
				date: "20260129T080000Z",
				signedHeaders: "x-sdk-date",
				signature: sign(canonicalPath),
				info: undefined,
			},
			key,
		);

	test("may be signed as it is on the wire, or decoded and encoded again", () => {
		assert.equal(fits("/a%20b/c", "/a%2520b/c"), true);
		assert.equal(fits("/a%20b/c", "/a%20b/c"), true);
		assert.equal(fits("/a%2fb/c", "/a%2Fb/c"), true);
		assert.equal(fits("/a%2fb/c", "/a/b/c"), true);
		assert.equal(fits("/a%20b/c", "/a+b/c"), false);
	});

	test("that is no UTF-8 is taken as it is", () => {
		assert.equal(fits("/%ff/c", "/%25ff/c"), true);
	});
});

describe("where the official clients differ, the form of each is known", () => {
	const date = "20260129T080000Z";
	const hash = "UNSIGNED-PAYLOAD";
	const forms = (
		target: string,
		signedHeaders = "x-sdk-date",
		headers: Record<string, string> = {},
	) =>
		canonicalRequests(
			{
				method: "GET",
				target,
				headers: { "x-sdk-date": date, ...headers },
				payloadHash: hash,
			},
			signedHeaders,
		);
	const form = (
		path: string,
		query = "",
		headers = "",
		signedHeaders = "x-sdk-date",
	) =>
		`GET\n${path}/\n${query}\n${headers}x-sdk-date:${date}\n\n${signedHeaders}\n${hash}`;

	test("a plain call has one form only", () => {
		assert.deepEqual(forms("/v5/iot/p-1/modules?limit=10"), [
			form("/v5/iot/p-1/modules", "limit=10"),
		]);
	});

	test("signs in a path that the Node.js SDK escapes before it signs, beside letters that it does not", () => {
		for (const [onWire, signed] of [
			["/a'b|c", "/a%2527b%257Cc"],
			["/a%E4%B8%BB'", "/a%25E4%25B8%25BB%2527"],
			["/a%20%E4%B8%BB", "/a%2520%E4%B8%BB"],
			["/%7B%E4%B8%BB'%22", "/%257B%E4%B8%BB%2527%2522"],
			["/a!(b)*", "/a%21%28b%29%2A"],
		] as const)
			assert.ok(forms(onWire).includes(form(signed)), onWire);
	});

	test("parameters in the order of code units, of Node.js, or of code points, of Python and Go", () => {
		const [wide, emoji] = ["%EF%BC%81", "%F0%9F%9A%97"];
		for (const query of [
			`${emoji}=&${wide}=`,
			`${wide}=&${emoji}=`,
			`a=${emoji}&a=${wide}`,
			`a=${wide}&a=${emoji}`,
		])
			assert.ok(forms(`/a?${query}`).includes(form("/a", query)), query);
	});

	test("headers in the order of their names in the list, or of words", () => {
		const list = "x-a-b;x-a_b;x-sdk-date";
		const headers = { "x-a-b": "1", "x-a_b": "2" };
		for (const lines of ["x-a-b:1\nx-a_b:2\n", "x-a_b:2\nx-a-b:1\n"])
			assert.ok(
				forms("/a", list, headers).includes(form("/a", "", lines, list)),
				lines,
			);
	});

	test("headers that are no ASCII as bytes, or as characters that are sent as one byte", () => {
		const list = "x-a;x-sdk-date";
		const sent = (text: string) => ({
			"x-a": Buffer.from(text).toString("latin1"),
		});
		// The last of the bytes of some letters looks like a blank.
		for (const text of ["你", "à", "é ü"])
			assert.ok(
				forms("/a", list, sent(` ${text}\t`)).includes(
					form("/a", "", `x-a:${text}\n`, list),
				),
				text,
			);
		assert.ok(
			forms("/a", list, { "x-a": "é" }).includes(
				form("/a", "", "x-a:é\n", list),
			),
		);
	});
});
