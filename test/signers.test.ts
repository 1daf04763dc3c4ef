/**
 * Requests made by the vendor's own Node.js SDK core, its signers and its HTTP client, as
 * they are on the wire: the server must accept every one of them, and must refuse it with
 * one byte changed in anything that is signed.
 *
 * A failure prints the request and the seed. OTARU_TEST_SEED makes the same requests again,
 * OTARU_TEST_REQUESTS says how many there are.
 */
import assert from "node:assert/strict";
import { randomInt } from "node:crypto";
import { after, before, describe, test } from "node:test";
import { BasicCredentials } from "@huaweicloud/huaweicloud-sdk-core/auth/BasicCredentials.js";
import { ClientBuilder } from "@huaweicloud/huaweicloud-sdk-core/ClientBuilder.js";
import type { HcClient } from "@huaweicloud/huaweicloud-sdk-core/HcClient.js";
import { randomStream } from "../simulator/random.ts";
import { sqlite } from "./support/engines.ts";
import {
	type RecordedRequest,
	Recorder,
	Replayer,
} from "./support/recorder.ts";
import { startServer, type TestServer } from "./support/server.ts";

const total = Number(process.env.OTARU_TEST_REQUESTS ?? 500);
const seed = Number(process.env.OTARU_TEST_SEED ?? randomInt(2 ** 31));

/** Failures that an access key has at an address before it must wait; a success ends them. */
const REFUSALS_IN_A_ROW = 6;

const ASCII = Array.from({ length: 128 }, (_, code) =>
	String.fromCharCode(code),
);
const LETTERS = [..."ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"];
const ALPHANUMERIC = [...LETTERS, ..."0123456789"];
/** The last two are those whose order differs between code units and code points. */
const FOREIGN = [..."固件升级模块你堠éßñж한かﷺ！～", "🚗", "👩🏽‍🔧", "𠀀"];
/** What a path may hold for this SDK; `?` and `#` end it, `\` becomes `/`. */
const PATH_SIGNS = [..."-._~!$&'()*+,;=:@|^`{}[]<>\" "];

type Algorithm = "SDK-HMAC-SHA256" | "V11-HMAC-SHA256";
type Chance = ReturnType<typeof chanceOf>;

function chanceOf(random: () => number) {
	const below = (limit: number) => Math.floor(random() * limit);
	const oneOf = <T>(choices: readonly T[]): T => {
		const choice = choices[below(choices.length)];
		if (choice === undefined) throw new Error("nothing to choose from");
		return choice;
	};
	const text = (signs: readonly string[], min: number, max: number) =>
		Array.from({ length: min + below(max - min + 1) }, () => oneOf(signs)).join(
			"",
		);
	return { below, oneOf, text, maybe: (share: number) => random() < share };
}

/** Methods that a path has a route for: they come before any question of who calls. */
const PATHS: readonly { path: string; methods: readonly string[] }[] = [
	{ path: "ota-upgrades/modules", methods: ["GET", "POST"] },
	{ path: "ota-upgrades/modules/{id}", methods: ["GET", "PUT", "DELETE"] },
	{ path: "ota-upgrades/packages", methods: ["GET", "POST"] },
	{ path: "ota-upgrades/packages/{id}", methods: ["GET", "DELETE"] },
	{ path: "batchtasks", methods: ["GET", "POST"] },
	{ path: "batchtasks/{id}", methods: ["GET", "DELETE"] },
	{ path: "products", methods: ["GET", "POST"] },
	{ path: "products/{id}", methods: ["GET", "PUT", "DELETE"] },
	{ path: "devices", methods: ["GET", "POST"] },
	{ path: "devices/{id}", methods: ["GET", "PUT", "DELETE"] },
	{ path: "device-group", methods: ["GET", "POST"] },
	{ path: "apps", methods: ["GET", "POST"] },
	{ path: "apps/{id}", methods: ["GET", "PUT", "DELETE"] },
].map(({ path, methods }) => ({
	path: `/v5/iot/{project_id}/${path}`,
	methods,
}));
/** Takes bytes. */
const OBJECT = {
	path: "/otaru/v1/projects/{project_id}/objects/uploads/{id}",
	methods: ["GET", "PUT", "DELETE"],
};

type Call = Parameters<HcClient["sendRequest"]>[0];

interface Wanted {
	/** Of the path. */
	methods: readonly string[];
	call: Call;
}

function wantedRequest(chance: Chance): Wanted {
	const isObject = chance.maybe(0.1);
	const { path, methods } = isObject ? OBJECT : chance.oneOf(PATHS);
	const method = chance.oneOf(methods);
	const query: Record<string, unknown> = {};
	if (chance.maybe(0.7))
		for (let left = chance.below(5); left >= 0; left--)
			query[queryText(chance, 1)] = queryValue(chance);
	return {
		methods,
		call: {
			method,
			url: path,
			pathParams: path.includes("{id}") ? { id: idText(chance) } : {},
			queryParams: query,
			headers: extraHeaders(chance),
			...bodyOf(chance, method, isObject),
		},
	};
}

/** As applications hold them: an id of the vendor's, anything encoded, or anything at all. */
function idText(chance: Chance): string {
	// One letter at least: it is changed below, and a path of dots alone is rewritten.
	const some = (signs: readonly string[]) =>
		chance.text(signs, 0, 6) +
		chance.text(ALPHANUMERIC, 1, 8) +
		chance.text(signs, 0, 6);
	if (chance.maybe(0.5)) return some([...ALPHANUMERIC, "-", "_"]);
	if (chance.maybe(0.4))
		return encodeURIComponent(some([...ASCII.slice(33), ...FOREIGN]));
	// A blank at the end of an address is cut off.
	return `${some([...PATH_SIGNS, ...FOREIGN])}x`;
}

function queryText(chance: Chance, min: number): string {
	const signs = chance.oneOf([
		ALPHANUMERIC,
		ASCII,
		[...ASCII, ...FOREIGN],
		FOREIGN,
	]);
	return chance.text(signs, min, 8);
}

function queryValue(chance: Chance): unknown {
	if (chance.maybe(0.15)) return "";
	if (chance.maybe(0.1)) return chance.below(1000);
	if (chance.maybe(0.1)) return chance.maybe(0.5);
	if (chance.maybe(0.2))
		return Array.from({ length: 1 + chance.below(4) }, () =>
			queryText(chance, 0),
		);
	return queryText(chance, 0);
}

function extraHeaders(chance: Chance): Record<string, string> {
	const headers: Record<string, string> = {};
	if (chance.maybe(0.2))
		headers["Instance-Id"] = chance.text(ALPHANUMERIC, 1, 36);
	if (chance.maybe(0.5)) return headers;
	// From "!" to "~", and of Latin-1 what is a letter: more no HTTP client of Node's sends.
	const signs = ASCII.slice(33, 127).concat(
		chance.maybe(0.3) ? [..."äöüßéèñÀÿ×"] : [],
	);
	for (let left = chance.below(4); left >= 0; left--) {
		// The last sign differs: names that only differ in capitals are one name.
		const name = `X-${chance.text([...ALPHANUMERIC, "-", "_", "."], 1, 6)}z${left}`;
		const words = Array.from({ length: 1 + chance.below(3) }, () =>
			chance.text(signs, 1, 8),
		);
		headers[name] = words.join(" ");
	}
	return headers;
}

function bodyOf(
	chance: Chance,
	method: string,
	isObject: boolean,
): Pick<Call, "contentType" | "data"> {
	const json = "application/json";
	const bytes = (count: number) =>
		Buffer.from(Array.from({ length: count }, () => chance.below(256)));
	if (method === "GET" || method === "DELETE") {
		// As the SDK itself looks up its project.
		if (chance.maybe(0.2) && method === "GET")
			return { contentType: json, data: {} };
		return { contentType: chance.oneOf([json, json, "text/plain"]) };
	}
	if (isObject || chance.maybe(0.15)) {
		const contentType = chance.oneOf([
			"application/octet-stream",
			"text/plain",
			"multipart/form-data",
		]);
		// A form says itself where its parts end.
		const getHeaders = () => ({
			"content-type": "multipart/form-data; boundary=b",
		});
		const data = bytes(1 + chance.below(200));
		return { contentType, data: Object.assign(data, { getHeaders }) };
	}
	if (chance.maybe(0.1)) return { contentType: json };
	if (chance.maybe(0.1)) return { contentType: json, data: {} };
	const data: Record<string, unknown> = {
		[queryText(chance, 1)]: queryText(chance, 0),
		alias_name: chance.text([...ASCII, ...FOREIGN], 0, 40),
		count: chance.below(1000),
		flags: [chance.maybe(0.5), null],
	};
	return {
		contentType: chance.oneOf([json, "application/json;charset=UTF-8"]),
		data,
	};
}

// --- what may be changed ------------------------------------------------------------

interface Altered {
	part: string;
	request: RecordedRequest;
	/** Whether it says the same as before in the canonical form. */
	same: boolean;
}

/** The request with one byte changed, once in each part that is signed. */
function alterations(
	request: RecordedRequest,
	methods: readonly string[],
	chance: Chance,
): Altered[] {
	const altered: Altered[] = [];
	const add = (
		part: string,
		changes: Partial<RecordedRequest>,
		same = false,
	) => {
		altered.push({ part, request: { ...request, ...changes }, same });
	};

	const others = methods.filter(
		(method) =>
			method !== request.method &&
			// An upload without a word about its hash is refused for that, by anybody.
			(!request.target.startsWith("/otaru/") ||
				method !== "PUT" ||
				valueIn(request, "x-sdk-content-sha256") !== ""),
	);
	add("method", { method: chance.oneOf(others) });

	const [path = "", query = ""] = split(request.target, "?");
	// Of an id: another letter elsewhere is another route, or none.
	const ids = [...path.matchAll(/%[0-9A-Fa-f]{2}|[A-Za-z0-9]/g)].filter(
		({ 0: sign, index }) =>
			sign.length === 1 && isInId(path, index, request.target),
	);
	const { index: inPath } = chance.oneOf(ids);
	const newPath = exchanged(path, inPath, ALPHANUMERIC, chance);
	add("path", { target: query === "" ? newPath : `${newPath}?${query}` });

	if (query !== "") {
		const signs = [...ALPHANUMERIC, ..."-._~!'()*&=%+/:"];
		const newQuery = exchanged(
			query,
			chance.below(query.length),
			signs,
			chance,
		);
		add(
			"query",
			{ target: `${path}?${newQuery}` },
			meaningOf(query) === meaningOf(newQuery),
		);
	}

	const authorization = valueIn(request, "authorization");
	const names = partOf(authorization, "SignedHeaders");
	for (const name of names.text.split(";"))
		add(`header ${name}`, {
			headers: withValue(request, name, (value) =>
				exchanged(value, changeable(value, chance), digitsFor(name), chance),
			),
		});

	if (valueIn(request, "x-sdk-content-sha256") === "" && request.body.length) {
		const body = Buffer.from(request.body);
		const at = chance.below(body.length);
		body[at] = (body[at] ?? 0) ^ (1 << chance.below(8));
		add("body", { body });
	}

	const inAuthorization = (
		part: string,
		{ at, text }: { at: number; text: string },
		signs: readonly string[],
	) => {
		const where = at + chance.below(text.length);
		add(part, {
			headers: withValue(request, "authorization", (value) =>
				exchanged(value, where, signs, chance),
			),
		});
	};
	const [algorithm = ""] = authorization.split(" ");
	inAuthorization("algorithm", { at: 0, text: algorithm }, ALPHANUMERIC);
	inAuthorization("signature", partOf(authorization, "Signature"), [
		..."0123456789abcdef",
	]);
	inAuthorization("list of signed headers", names, [...ALPHANUMERIC, "-", ";"]);
	if (algorithm.startsWith("SDK")) {
		inAuthorization(
			"access key",
			partOf(authorization, "Access"),
			ALPHANUMERIC,
		);
	} else {
		const { at, text } = partOf(authorization, "Credential");
		const [key = "", scope = ""] = split(text, "/");
		inAuthorization("access key", { at, text: key }, ALPHANUMERIC);
		inAuthorization(
			"credential scope",
			{ at: at + key.length + 1, text: scope },
			ALPHANUMERIC,
		);
	}
	return altered;
}

/** One byte replaced by another one of these. */
function exchanged(
	text: string,
	at: number,
	signs: readonly string[],
	chance: Chance,
): string {
	const sign = chance.oneOf(signs.filter((sign) => sign !== text[at]));
	return text.slice(0, at) + sign + text.slice(at + 1);
}

/** Not a blank: two of them in a row, or one at an end, would be another question. */
function changeable(value: string, chance: Chance): number {
	const places = [...value].flatMap((sign, at) => (sign === " " ? [] : [at]));
	return chance.oneOf(places);
}

function digitsFor(name: string): readonly string[] {
	return name === "x-sdk-date" ? [..."0123456789"] : ALPHANUMERIC;
}

/** The project, or what follows the last word of the route. */
function isInId(path: string, index: number, target: string): boolean {
	const segments = path.slice(0, index).split("/").length - 1;
	const isOtaru = target.startsWith("/otaru/");
	return segments === (isOtaru ? 4 : 3) || segments >= idSegment(path);
}

/** Where in the path the id stands, counted in slashes before it. */
function idSegment(path: string): number {
	const words = path.split("/");
	if (words[1] === "otaru") return 7;
	return words[4] === "ota-upgrades" ? 6 : 5;
}

/** What a query says: names and values in any order. Names without a value have an empty one. */
function meaningOf(query: string): string {
	const pairs = query
		.split("&")
		.filter((part) => part !== "")
		.map((part) =>
			split(part, "=").map((text = "") => {
				const spaced = text.replaceAll("+", " ");
				try {
					return decodeURIComponent(spaced);
				} catch {
					return spaced;
				}
			}),
		);
	return JSON.stringify(
		pairs.map(([name, value = ""]) => JSON.stringify([name, value])).sort(),
	);
}

/** At the first separator only. */
function split(text: string, separator: string): [string, string?] {
	const at = text.indexOf(separator);
	return at === -1 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}

function valueIn({ headers }: RecordedRequest, name: string): string {
	return headers.find(([other]) => other.toLowerCase() === name)?.[1] ?? "";
}

function withValue(
	{ headers }: RecordedRequest,
	name: string,
	change: (value: string) => string,
): [string, string][] {
	return headers.map(([other, value]) => [
		other,
		other.toLowerCase() === name ? change(value) : value,
	]);
}

/** `name=text` within the header. */
function partOf(
	authorization: string,
	name: string,
): { at: number; text: string } {
	const start = authorization.indexOf(`${name}=`);
	assert.notEqual(start, -1, authorization);
	const at = start + name.length + 1;
	return { at, text: authorization.slice(at).split(",", 1)[0] ?? "" };
}

// --- the tests ----------------------------------------------------------------------

describe("requests of the vendor's Node.js SDK core", () => {
	let server: TestServer;
	let recorder: Recorder;
	let replayer: Replayer;
	before(async () => {
		server = await startServer(sqlite, {
			// So that each request can come from an address of its own.
			env: { OTARU_TRUSTED_PROXIES: "127.0.0.1" },
		});
		recorder = await Recorder.open();
		replayer = new Replayer(server.url);
	});
	after(async () => {
		replayer[Symbol.dispose]();
		await recorder[Symbol.asyncDispose]();
		await server[Symbol.asyncDispose]();
	});

	/** What the SDK puts on the wire for this call. */
	const made = async (
		call: Call,
		algorithm: Algorithm,
	): Promise<RecordedRequest> => {
		const { credentials } = server;
		const signer = new BasicCredentials({
			ak: credentials.access_key,
			sk: credentials.secret_key,
			projectId: credentials.project_id,
		}).withRegionId(credentials.project_name);
		if (algorithm === "V11-HMAC-SHA256")
			signer.withDerivedPredicate((request) =>
				BasicCredentials.getDefaultDerivedPredicate(request),
			);
		await new ClientBuilder((client) => client)
			.withCredential(signer)
			.withEndpoint(recorder.url)
			.withDerivedAuthServiceName("iotdm")
			.build()
			.sendRequest(call);
		const recorded = recorder.take();
		assert.match(
			valueIn(recorded, "authorization"),
			new RegExp(`^${algorithm} `),
		);
		return recorded;
	};
	const forwardedFor = (index: number): [string, string][] => [
		[
			"X-Forwarded-For",
			`10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`,
		],
	];
	const describeRequest = (
		{ method, target, headers, body }: RecordedRequest,
		{ status, text }: { status: number; text: string },
	) =>
		[
			`${method} ${target}`,
			...headers.map((header) => header.join(": ")),
			`${body.length} bytes: ${body.toString("latin1").slice(0, 400)}`,
			`answered with ${status} ${text}`,
			`OTARU_TEST_SEED=${seed}`,
		].join("\n");

	const mustPass = async (
		request: RecordedRequest,
		from: [string, string][],
		what: string,
	): Promise<number> => {
		const answer = await replayer.send(request, from);
		assert.ok(
			![401, 429].includes(answer.status) && answer.status < 500,
			`${what}\n${describeRequest(request, answer)}`,
		);
		return answer.status;
	};
	const mustFail = async (
		request: RecordedRequest,
		from: [string, string][],
		what: string,
	): Promise<void> => {
		const answer = await replayer.send(request, from);
		assert.ok(
			answer.status === 401 && answer.text.includes('"APIGW.0301"'),
			`${what}\n${describeRequest(request, answer)}`,
		);
	};

	const count = Math.ceil(total / 2);
	for (const algorithm of ["SDK-HMAC-SHA256", "V11-HMAC-SHA256"] as const) {
		test(`${count} requests signed with ${algorithm} are accepted, and refused with a byte changed`, async (context) => {
			const chance = chanceOf(randomStream(seed, algorithm));
			const cases: { request: RecordedRequest; altered: Altered[] }[] = [];
			while (cases.length < count) {
				const { call, methods } = wantedRequest(chance);
				const request = await made(call, algorithm);
				cases.push({ request, altered: alterations(request, methods, chance) });
			}

			const statuses = new Map<number, number>();
			let refused = 0;
			let same = 0;
			const waiting = cases.entries();
			const lane = async () => {
				for (const [index, { request, altered }] of waiting) {
					const from = forwardedFor(index);
					const status = await mustPass(
						request,
						from,
						"not accepted as it was sent",
					);
					statuses.set(status, (statuses.get(status) ?? 0) + 1);
					let inARow = 0;
					for (const other of altered) {
						if (other.same) {
							await mustPass(other.request, from, "says the same");
							same++;
							continue;
						}
						await mustFail(other.request, from, `altered in ${other.part}`);
						refused++;
						if (++inARow < REFUSALS_IN_A_ROW) continue;
						inARow = 0;
						await mustPass(request, from, "not accepted again");
					}
				}
			};
			await Promise.all(Array.from({ length: 8 }, lane));

			context.diagnostic(
				`${refused} altered requests were refused, ${same} said the same; answers: ${[
					...statuses,
				]
					.map(([status, times]) => `${status} × ${times}`)
					.join(", ")}`,
			);
			assert.ok(refused > count * 5);
		});

		test(`${algorithm}: every ASCII character may stand in a query`, async () => {
			const queryParams: Record<string, string | string[]> = {};
			for (const sign of ASCII)
				queryParams[`${sign}name`] = [`${sign}value`, sign, ""];
			const request = await made(
				{
					method: "GET",
					url: "/v5/iot/{project_id}/apps",
					pathParams: {},
					queryParams,
					headers: {},
					contentType: "application/json",
				},
				algorithm,
			);
			await mustPass(request, forwardedFor(count), "not accepted");
		});

		test(`${algorithm}: what says the same is accepted, what looks alike is not`, async () => {
			const request = await made(
				{
					method: "GET",
					url: "/v5/iot/{project_id}/ota-upgrades/modules/{id}",
					pathParams: { id: "abc" },
					queryParams: { many: ["b", "a"], none: "", text: "x y-主" },
					headers: { "X-Words": "some words" },
					contentType: "application/json",
				},
				algorithm,
			);
			const from = forwardedFor(count + 1);
			const query = "many=b&many=a&none=&text=x%20y-%E4%B8%BB";
			const [path = "", sent = ""] = split(request.target, "?");
			// The SDK sorts the list that it was given.
			assert.equal(meaningOf(sent), meaningOf(query));
			const withTarget = (target: string) => ({ ...request, target });
			const withHeader = (name: string, value: string) => ({
				...request,
				headers: withValue(request, name, () => value),
			});
			const alike: Record<string, RecordedRequest> = {
				"parameters in another order": withTarget(
					`${path}?text=x%20y-%E4%B8%BB&none=&many=a&many=b`,
				),
				"an escape in small letters": withTarget(
					`${path}?many=b&many=a&none=&text=x%20y-%e4%b8%bb`,
				),
				"a letter that is escaped": withTarget(
					`${path}?m%61ny=b&many=a&none=&text=x%20y%2D%E4%B8%BB`,
				),
				"a blank as a plus sign": withTarget(
					`${path}?many=b&many=a&none=&text=x+y-%E4%B8%BB`,
				),
				"no equals sign before nothing": withTarget(
					`${path}?many=b&many=a&none&text=x%20y-%E4%B8%BB`,
				),
				"nothing between two ampersands": withTarget(
					`${path}?&many=b&many=a&&none=&text=x%20y-%E4%B8%BB&`,
				),
				"a letter of the path that is escaped": withTarget(
					`${path.replace(/abc$/, "%61bc")}?${query}`,
				),
				"blanks around a header": withHeader("x-words", " \t some words \t "),
				"names of headers in capitals": {
					...request,
					headers: request.headers.map(([name, value]) => [
						name.toUpperCase(),
						value,
					]),
				},
				"headers in another order": {
					...request,
					headers: request.headers.toReversed(),
				},
				"a header that is not signed": {
					...request,
					headers: [...request.headers, ["x-more", "1"]],
				},
			};
			for (const [what, other] of Object.entries(alike))
				await mustPass(other, from, what);
			const different: Record<string, RecordedRequest> = {
				"a value less": withTarget(`${path}?many=a&none=&text=x%20y-%E4%B8%BB`),
				"a value twice": withTarget(
					`${path}?many=b&many=a&many=a&none=&text=x%20y-%E4%B8%BB`,
				),
				"a parameter without its empty value": withTarget(
					`${path}?many=b&many=a&text=x%20y-%E4%B8%BB`,
				),
				"a letter as a capital": withTarget(
					`${path}?many=B&many=a&none=&text=x%20y-%E4%B8%BB`,
				),
				"an escape escaped": withTarget(
					`${path}?many=b&many=a&none=&text=x%2520y-%E4%B8%BB`,
				),
				"a blank more within a header": withHeader("x-words", "some  words"),
				"a header twice": {
					...request,
					headers: [...request.headers, ["x-words", "some words"]],
				},
			};
			let inARow = 0;
			for (const [what, other] of Object.entries(different)) {
				await mustFail(other, from, what);
				if (++inARow % REFUSALS_IN_A_ROW === 0)
					await mustPass(request, from, "not accepted again");
			}
		});
	}
});
