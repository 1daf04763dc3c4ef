/**
 * The two signatures of a management call, `SDK-HMAC-SHA256` and the form with a
 * derived key, `V11-HMAC-SHA256`: read, rebuilt from what came over the wire, and
 * compared. Nothing here knows a store or a clock.
 */
import {
	createHmac,
	createSecretKey,
	hash,
	type KeyObject,
	timingSafeEqual,
} from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import { parseWireTime } from "../../wire/envelope.ts";

export type SignatureAlgorithm = "SDK-HMAC-SHA256" | "V11-HMAC-SHA256";

export interface RequestSignature {
	algorithm: SignatureAlgorithm;
	accessKey: string;
	/** `X-Sdk-Date` as sent. */
	date: string;
	/** The list as sent: it is part of what was signed. */
	signedHeaders: string;
	/** 64 lower-case hex digits. */
	signature: string;
	/** `{day}/{region}/{service}` of the derived form. */
	info: string | undefined;
}

/** What was signed, as the wire carried it. */
export interface SignedRequest {
	method: string;
	/** Path and query, undecoded. */
	target: string;
	headers: IncomingHttpHeaders;
	/** SHA-256 of the body in hex, or what `X-Sdk-Content-Sha256` says. */
	payloadHash: string;
}

/** Why a signature was refused: for the log. The caller is never told which part. */
export class SignatureFault extends Error {
	override name = "SignatureFault";
	/** A form this server does not take at all, which the caller may be told. */
	readonly unsupported: boolean;

	constructor(reason: string, unsupported = false) {
		super(reason);
		this.unsupported = unsupported;
	}
}

/** How far the caller's clock may be off, either way. */
export const CLOCK_TOLERANCE_MS = 15 * 60 * 1000;
/** The service name every IoTDA client signs with, for IAM calls too. */
const SERVICE = "iotdm";
const MAX_SIGNED_HEADERS = 100;

/** What an Authorization header says, in one of the two forms that are taken. */
export interface SignatureHeader {
	algorithm: SignatureAlgorithm;
	/** Whose signature it says it is; empty when it says nothing. */
	accessKey: string;
	fields: ReadonlyMap<string, string>;
}

/**
 * The only reading there is of the header: whoever counts attempts or writes down who
 * tried asks here too, so that nobody is one caller to them and another to the signature.
 *
 * @throws SignatureFault also for what could be read in two ways
 */
export function readAuthorization(authorization: string): SignatureHeader {
	const [algorithm = ""] = authorization.split(" ", 1);
	if (algorithm !== "SDK-HMAC-SHA256" && algorithm !== "V11-HMAC-SHA256")
		throw new SignatureFault("unknown algorithm", true);
	const fields = readFields(authorization.slice(algorithm.length));
	if (fields.has("Access") && fields.has("Credential"))
		throw new SignatureFault("both Access and Credential are given");
	const [accessKey = ""] =
		algorithm === "SDK-HMAC-SHA256"
			? [fields.get("Access")]
			: (fields.get("Credential") ?? "").split("/", 1);
	return { algorithm, accessKey, fields };
}

/**
 * Reads the headers and checks everything that needs neither key nor body.
 *
 * @param regions names that the derived form may carry, beside `globe`.
 * @throws SignatureFault
 */
export function readSignature(
	headers: IncomingHttpHeaders,
	now: Date,
	regions: readonly string[],
): RequestSignature {
	const { algorithm, accessKey, fields } = readAuthorization(
		headers.authorization ?? "",
	);
	const signedHeaders = fields.get("SignedHeaders") ?? "";
	const signature = fields.get("Signature") ?? "";
	if (!/^[0-9a-f]{64}$/.test(signature))
		throw new SignatureFault("the signature is not 64 hexadecimal digits");
	const names = signedHeaders.split(";");
	if (
		names.length > MAX_SIGNED_HEADERS ||
		new Set(names).size !== names.length ||
		names.some((name) => !/^[!#$%&'*+\-.^_`|~0-9a-z]+$/.test(name))
	)
		throw new SignatureFault("the list of signed headers is malformed");
	if (!names.includes("x-sdk-date"))
		throw new SignatureFault("x-sdk-date is not among the signed headers");
	// Own keys only: a header may be called like something every object has.
	const absent = names.find((name) => !Object.hasOwn(headers, name));
	if (absent !== undefined)
		throw new SignatureFault(`the signed header ${absent} is absent`);

	const date = headers["x-sdk-date"];
	const sentAt = typeof date === "string" ? parseWireTime(date) : undefined;
	if (typeof date !== "string" || sentAt === undefined)
		throw new SignatureFault("X-Sdk-Date is malformed");
	if (Math.abs(now.getTime() - sentAt.getTime()) > CLOCK_TOLERANCE_MS)
		throw new SignatureFault("X-Sdk-Date is too far from the server's clock");

	if (algorithm === "SDK-HMAC-SHA256") {
		if (accessKey === "") throw new SignatureFault("no access key is named");
		return {
			algorithm,
			accessKey,
			date,
			signedHeaders,
			signature,
			info: undefined,
		};
	}
	const [, day, region, service, ...more] = (
		fields.get("Credential") ?? ""
	).split("/");
	if (!accessKey || more.length > 0)
		throw new SignatureFault("the credential is malformed");
	if (day !== date.slice(0, 8))
		throw new SignatureFault("the credential is for another day");
	if (service !== SERVICE)
		throw new SignatureFault("the credential is for another service");
	if (region === undefined || (region !== "globe" && !regions.includes(region)))
		throw new SignatureFault("the credential is for another region");
	return {
		algorithm,
		accessKey,
		date,
		signedHeaders,
		signature,
		info: `${day}/${region}/${service}`,
	};
}

/**
 * Whether the signature fits the request.
 *
 * @param key the secret key, or for the derived form what `derivedKey` made of it.
 */
export function verifySignature(
	request: SignedRequest,
	signature: RequestSignature,
	key: KeyObject,
): boolean {
	const given = Buffer.from(signature.signature);
	for (const canonical of canonicalRequests(request, signature.signedHeaders)) {
		const expected = Buffer.from(
			createHmac("sha256", key)
				.update(stringToSign(signature, hash("sha256", canonical)))
				.digest("hex"),
		);
		if (timingSafeEqual(given, expected)) return true;
	}
	return false;
}

/** HKDF (RFC 5869) of the secret key, as text: the text is the key of the HMAC. */
export function derivedKey(
	secretKey: KeyObject,
	accessKey: string,
	info: string,
): KeyObject {
	const pseudoRandomKey = createHmac("sha256", accessKey)
		.update(secretKey.export())
		.digest();
	// 32 bytes are one block of HKDF's expansion.
	const text = createHmac("sha256", pseudoRandomKey)
		.update(`${info}\x01`)
		.digest("hex");
	return createSecretKey(text, "utf8");
}

/** @param canonicalHash SHA-256 of the canonical request, hex. */
export function stringToSign(
	signature: Pick<RequestSignature, "algorithm" | "date" | "info">,
	canonicalHash: string,
): string {
	return signature.info === undefined
		? `${signature.algorithm}\n${signature.date}\n${canonicalHash}`
		: `${signature.algorithm}\n${signature.date}\n${signature.info}\n${canonicalHash}`;
}

/**
 * The canonical request in each form that an official client may have signed. There is
 * more than one only where the clients differ: for a path of other characters than ids
 * have, a query with an emoji or the like, a header that is not ASCII or whose name holds
 * another sign than `-`.
 */
export function canonicalRequests(
	request: SignedRequest,
	signedHeaders: string,
): string[] {
	const question = request.target.indexOf("?");
	const path =
		question === -1 ? request.target : request.target.slice(0, question);
	const query = question === -1 ? "" : request.target.slice(question + 1);
	const queries = canonicalQueries(query);
	const headers = canonicalHeaders(request.headers, signedHeaders);
	return canonicalPaths(path).flatMap((canonicalPath) =>
		queries.flatMap((canonicalQuery) =>
			headers.map(
				(canonicalHeader) =>
					`${request.method}\n${canonicalPath}\n${canonicalQuery}\n${canonicalHeader}\n${signedHeaders}\n${request.payloadHash}`,
			),
		),
	);
}

function canonicalPaths(path: string): string[] {
	const segments = path.split("/");
	const readings = new Set([
		segments.map(encodeText).join("/"),
		...(/^[A-Za-z0-9\-_.~/]*$/.test(path)
			? []
			: [
					// A client that holds unencoded segments and encodes them once.
					segments.map((segment) => encodeText(decodeText(segment))).join("/"),
					// A client that decodes the path as one text first.
					decodeText(path).split("/").map(encodeText).join("/"),
					...[
						nodeEscapes(segments),
						nodeEscapes(segments).map(unescapeLetters),
					].map((escaped) => escaped.map(encodeText).join("/")),
				]),
	]);
	return [...readings].map((reading) =>
		reading.endsWith("/") ? reading : `${reading}/`,
	);
}

/**
 * The Node.js SDK signs what `url.parse` makes of an address, and sends what `URL` makes
 * of it. The former escapes a few signs, of which the latter leaves two as they are; ...
 */
function nodeEscapes(segments: readonly string[]): string[] {
	return segments.map((segment) =>
		segment.replace(
			/[ "'<>^`{|}]/g,
			(sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
		),
	);
}

/** ... the latter escapes all letters beyond ASCII, which the former does not. */
function unescapeLetters(segment: string): string {
	return segment.replace(/(?:%[89A-F][0-9A-F])+/gi, decodeText);
}

type Compare = (a: string, b: string) => number;

function canonicalQueries(query: string): string[] {
	if (query === "") return [""];
	const parameters: [name: string, value: string][] = [];
	for (const part of query.split("&")) {
		if (part === "") continue;
		const equals = part.indexOf("=");
		parameters.push(
			equals === -1
				? [decodeQueryText(part), ""]
				: [
						decodeQueryText(part.slice(0, equals)),
						decodeQueryText(part.slice(equals + 1)),
					],
		);
	}
	const sorted = (compare: Compare) =>
		parameters
			.sort(([name, value], [otherName, otherValue]) =>
				name === otherName
					? compare(value, otherValue)
					: compare(name, otherName),
			)
			.map(([name, value]) => `${encodeText(name)}=${encodeText(value)}`)
			.join("&");
	// By the unencoded texts: Node.js by code unit, Python and Go by code point. Only the
	// four-byte characters, whose escapes begin with F, stand elsewhere.
	return /%F/i.test(query)
		? [sorted(byCodeUnit), sorted(byCodePoint)]
		: [sorted(byCodeUnit)];
}

function canonicalHeaders(
	headers: IncomingHttpHeaders,
	signedHeaders: string,
): string[] {
	const names = signedHeaders.split(";");
	const values = new Map<string, string>();
	let isAscii = true;
	for (const name of names) {
		const value = headers[name];
		const trimmed = withoutOuterBlanks(
			Array.isArray(value) ? value.join(", ") : (value ?? ""),
		);
		values.set(name, trimmed);
		// biome-ignore lint/suspicious/noControlCharactersInRegex: the question is whether there is anything but ASCII.
		isAscii &&= /^[\x00-\x7f]*$/.test(trimmed);
	}
	const written = (order: readonly string[], read: (value: string) => string) =>
		order.map((name) => `${name}:${read(values.get(name) ?? "")}\n`).join("");
	const orders = [names];
	// The Node.js SDK sorts the headers as words are, and their names in the list as codes.
	if (!/^[a-z0-9\-;]*$/.test(signedHeaders))
		orders.push(names.toSorted(wordOrder));
	const asGiven = (value: string) => value;
	return orders.flatMap((order) =>
		isAscii
			? [written(order, asGiven)]
			: // Node reads a byte as a character, and sends a character as a byte: its SDK
				// signs the character, the others the bytes.
				[written(order, asUtf8), written(order, asGiven)],
	);
}

/** Not `trim()`, which takes the last byte of some letters for a blank. */
function withoutOuterBlanks(value: string): string {
	const isBlank = (at: number) => value[at] === " " || value[at] === "\t";
	let start = 0;
	let end = value.length;
	while (start < end && isBlank(start)) start++;
	while (end > start && isBlank(end - 1)) end--;
	return value.slice(start, end);
}

const wordOrder: Compare = new Intl.Collator("en").compare;

function asUtf8(value: string): string {
	return Buffer.from(value, "latin1").toString("utf8");
}

function byCodeUnit(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}

function byCodePoint(a: string, b: string): number {
	const length = Math.min(a.length, b.length);
	for (let i = 0; i < length; i++) {
		const [one, other] = [a.charCodeAt(i), b.charCodeAt(i)];
		if (one === other) continue;
		// A half of a pair stands for a code point above all that have one unit.
		return isHalf(one) === isHalf(other) ? one - other : isHalf(one) ? 1 : -1;
	}
	return a.length - b.length;
}

function isHalf(codeUnit: number): boolean {
	return codeUnit >= 0xd800 && codeUnit <= 0xdfff;
}

function decodeText(text: string): string {
	if (!text.includes("%")) return text;
	try {
		return decodeURIComponent(text);
	} catch {
		return text;
	}
}

/** In a query, as the Go SDK writes it and the server reads it, `+` is a blank. */
function decodeQueryText(text: string): string {
	return decodeText(text.includes("+") ? text.replaceAll("+", " ") : text);
}

/** Everything but `A-Z a-z 0-9 - _ . ~` as upper-case `%XX`. */
export function encodeText(text: string): string {
	if (/^[A-Za-z0-9\-_.~]*$/.test(text)) return text;
	return encodeURIComponent(text.toWellFormed()).replace(
		/[!'()*]/g,
		(sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
	);
}

/** `name=value, name=value`, each name once. */
function readFields(text: string): Map<string, string> {
	const fields = new Map<string, string>();
	for (const part of text.split(",")) {
		const equals = part.indexOf("=");
		if (equals === -1) continue;
		const name = part.slice(0, equals).trim();
		if (fields.has(name))
			throw new SignatureFault("a field of Authorization is given twice");
		fields.set(name, part.slice(equals + 1).trim());
	}
	return fields;
}
