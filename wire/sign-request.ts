/**
 * Signing a request with an access key: `SDK-HMAC-SHA256`, and `V11-HMAC-SHA256` with a
 * derived key. Web Crypto is all it needs, and it imports nothing: the explorer's page is
 * served this very file.
 */

export interface AccessKey {
	accessKey: string;
	secretKey: string;
	/** Signs with a derived key (`V11-HMAC-SHA256`) for this region. */
	derivedForRegion?: string;
}

export interface RequestToSign {
	method: string;
	url: URL;
	/** Lower-case names; all of them are signed, but those with `_`. */
	headers: Record<string, string>;
	/** SHA-256 of the body in hex, or `UNSIGNED-PAYLOAD`. */
	payloadHash: string;
	date: Date;
}

/** The service name in the scope of a derived key. */
const SERVICE = "iotdm";
export const UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD";

/** @returns `x-sdk-date` and `authorization`, to be sent with the headers given. */
export async function signRequest(
	request: RequestToSign,
	{ accessKey, secretKey, derivedForRegion }: AccessKey,
): Promise<{ "x-sdk-date": string; authorization: string }> {
	const date = `${request.date.toISOString().slice(0, 19).replace(/[-:]/g, "")}Z`;
	const headers: Record<string, string> = {
		...request.headers,
		"x-sdk-date": date,
	};
	const names = Object.keys(headers)
		.filter((name) => !name.includes("_"))
		.sort();
	const signedHeaders = names.join(";");
	const canonical = [
		request.method,
		canonicalPath(request.url.pathname),
		canonicalQuery(request.url.searchParams),
		...names.map((name) => `${name}:${headers[name]?.trim()}`),
		"",
		signedHeaders,
		request.payloadHash,
	].join("\n");
	const canonicalHash = await sha256Hex(utf8.encode(canonical));
	if (derivedForRegion === undefined) {
		const signature = await hmacHex(
			secretKey,
			`SDK-HMAC-SHA256\n${date}\n${canonicalHash}`,
		);
		return {
			"x-sdk-date": date,
			authorization: `SDK-HMAC-SHA256 Access=${accessKey}, SignedHeaders=${signedHeaders}, Signature=${signature}`,
		};
	}
	const info = `${date.slice(0, 8)}/${derivedForRegion}/${SERVICE}`;
	const signature = await hmacHex(
		await derivedKeyHex(accessKey, secretKey, info),
		`V11-HMAC-SHA256\n${date}\n${info}\n${canonicalHash}`,
	);
	return {
		"x-sdk-date": date,
		authorization: `V11-HMAC-SHA256 Credential=${accessKey}/${info}, SignedHeaders=${signedHeaders}, Signature=${signature}`,
	};
}

export const utf8 = new TextEncoder();

/** Everything but `A-Z a-z 0-9 - _ . ~` as `%XX` in upper case. */
export function encodeText(text: string): string {
	return encodeURIComponent(text).replace(
		/[!'()*]/g,
		(sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
	);
}

function canonicalPath(pathname: string): string {
	const path = pathname
		.split("/")
		.map((segment) => encodeText(decodeURIComponent(segment)))
		.join("/");
	return path.endsWith("/") ? path : `${path}/`;
}

export function canonicalQuery(parameters: URLSearchParams): string {
	return [...parameters]
		.sort(([name, value], [otherName, otherValue]) =>
			name === otherName
				? compare(value, otherValue)
				: compare(name, otherName),
		)
		.map(([name, value]) => `${encodeText(name)}=${encodeText(value)}`)
		.join("&");
}

function compare(a: string, b: string): number {
	return a < b ? -1 : a > b ? 1 : 0;
}

/** HKDF (RFC 5869) for 32 bytes, as the hex text that is then the key. */
async function derivedKeyHex(
	accessKey: string,
	secretKey: string,
	info: string,
): Promise<string> {
	const key = await crypto.subtle.importKey(
		"raw",
		utf8.encode(secretKey),
		"HKDF",
		false,
		["deriveBits"],
	);
	const bits = await crypto.subtle.deriveBits(
		{
			name: "HKDF",
			hash: "SHA-256",
			salt: utf8.encode(accessKey),
			info: utf8.encode(info),
		},
		key,
		256,
	);
	return hex(bits);
}

async function hmacHex(key: string, text: string): Promise<string> {
	const imported = await crypto.subtle.importKey(
		"raw",
		utf8.encode(key),
		{ name: "HMAC", hash: "SHA-256" },
		false,
		["sign"],
	);
	return hex(await crypto.subtle.sign("HMAC", imported, utf8.encode(text)));
}

export async function sha256Hex(
	bytes: Uint8Array<ArrayBuffer>,
): Promise<string> {
	return hex(await crypto.subtle.digest("SHA-256", bytes));
}

function hex(bytes: ArrayBuffer): string {
	return Array.from(new Uint8Array(bytes), (byte) =>
		byte.toString(16).padStart(2, "0"),
	).join("");
}
