/** Requests that `fetch` will not send: a GET with a body, headers of one's own, a body cut off. */
import { createHash } from "node:crypto";
import { type IncomingHttpHeaders, request } from "node:http";
import { connect } from "node:net";
import { type AccessKey, signRequest } from "../../wire/client.ts";
import type { TestServer } from "./server.ts";

export interface Answer {
	status: number;
	headers: IncomingHttpHeaders;
	text: string;
	/** The body, if it is JSON. */
	// biome-ignore lint/suspicious/noExplicitAny: tests look into it field by field.
	json: any;
}

export interface RawRequest {
	method?: string;
	path: string;
	headers?: Record<string, string>;
	body?: string | Uint8Array;
	/** Announced instead of the body's own length. */
	contentLength?: number;
}

/** Sends as given and resolves with the answer, whether or not the body was taken. */
export function send(url: string, raw: RawRequest): Promise<Answer> {
	return new Promise((resolve, reject) => {
		const body = raw.body === undefined ? undefined : Buffer.from(raw.body);
		const outgoing = request(
			new URL(raw.path, url),
			{
				method: raw.method ?? "GET",
				// The path as written: a URL object would tidy it up.
				path: raw.path,
				agent: false,
				headers: {
					...(body === undefined
						? {}
						: { "content-length": raw.contentLength ?? body.length }),
					...raw.headers,
				},
			},
			(incoming) => {
				const chunks: Buffer[] = [];
				incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
				incoming.on("error", reject);
				incoming.on("end", () => {
					const text = Buffer.concat(chunks).toString("utf8");
					let json: unknown;
					try {
						json = JSON.parse(text);
					} catch {
						json = undefined;
					}
					resolve({
						status: incoming.statusCode ?? 0,
						headers: incoming.headers,
						text,
						json,
					});
					outgoing.destroy();
				});
			},
		);
		outgoing.on("error", reject);
		if (raw.contentLength !== undefined) {
			outgoing.flushHeaders();
			if (body?.length) outgoing.write(body);
		} else {
			outgoing.end(body);
		}
	});
}

export interface SignedOptions extends RawRequest {
	key?: AccessKey;
	date?: Date;
	/** Changes the request after it was signed. */
	tamper?: (request: RawRequest & { headers: Record<string, string> }) => void;
	/** Instead of the hash of the body. */
	payloadHash?: string;
}

/** The request with the administrator's signature, or that of `key`, over all its headers. */
export async function signed(
	{ url, credentials }: Pick<TestServer, "url" | "credentials">,
	options: SignedOptions,
): Promise<RawRequest & { headers: Record<string, string> }> {
	const { key, date, tamper, payloadHash, ...raw } = options;
	const address = new URL(raw.path, url);
	const headers: Record<string, string> = {
		host: address.host,
		...raw.headers,
	};
	const proof = await signRequest(
		{
			method: raw.method ?? "GET",
			url: address,
			headers,
			payloadHash:
				payloadHash ??
				createHash("sha256")
					.update(raw.body ?? "")
					.digest("hex"),
			date: date ?? new Date(),
		},
		key ?? {
			accessKey: credentials.access_key,
			secretKey: credentials.secret_key,
		},
	);
	const request = { ...raw, headers: { ...headers, ...proof } };
	tamper?.(request);
	return request;
}

export async function sendSigned(
	server: Pick<TestServer, "url" | "credentials">,
	options: SignedOptions,
): Promise<Answer> {
	return send(server.url, await signed(server, options));
}

/** Writes the bytes to a fresh connection and resolves with all that comes back until it closes. */
export function sendBytes(
	url: string,
	bytes: string | Uint8Array,
	timeoutMs = 10_000,
): Promise<string> {
	return new Promise((resolve, reject) => {
		const { hostname, port } = new URL(url);
		const socket = connect(Number(port), hostname);
		let text = "";
		const timer = setTimeout(() => {
			socket.destroy();
			reject(new Error(`no end within ${timeoutMs} ms; so far: ${text}`));
		}, timeoutMs);
		socket.setEncoding("latin1");
		socket.on("data", (chunk) => {
			text += chunk;
		});
		socket.on("error", () => {});
		socket.on("close", () => {
			clearTimeout(timer);
			resolve(text);
		});
		socket.write(bytes);
	});
}
