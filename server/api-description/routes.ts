/**
 * `/openapi.json`, the API's own description, and `/explorer`, the page to read it and to
 * make calls. Nothing of either is made before somebody asks.
 */
import { hash } from "node:crypto";
import { once } from "node:events";
import { promisify } from "node:util";
import { Worker } from "node:worker_threads";
import { gunzip, gzip } from "node:zlib";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Http } from "../access/route.ts";
import type { ExplorerFiles } from "./explorer-assets.ts";
import type { DescribedRoute } from "./openapi.ts";

const addresses = [
	"/explorer",
	"/explorer/page.css",
	"/explorer/page.js",
	"/explorer/sign-request.js",
	"/explorer/scalar.js",
] as const;

/** Its own files and calls to its own server, and nothing else. Styles are made by the reference. */
const PAGE_POLICY = [
	"default-src 'none'",
	"script-src 'self'",
	"style-src 'self' 'unsafe-inline'",
	"img-src 'self' data:",
	"connect-src 'self'",
	"font-src 'self' data:",
	"frame-ancestors 'none'",
	"base-uri 'none'",
	"form-action 'none'",
].join("; ");

interface Compressed {
	type: string;
	gzip: Uint8Array;
}

/** @param routes complete once all routes are registered. */
export function explorerRoutes(
	http: Http,
	routes: readonly DescribedRoute[],
): void {
	const config = { open: true } as const;
	const schema = { hide: true };

	const description = onceAsked(async () => {
		const { describeApi } = await import("./openapi.ts");
		const text = JSON.stringify(describeApi(routes));
		return {
			type: "application/json",
			gzip: await promisify(gzip)(text),
		} satisfies Compressed;
	});
	http.route({
		// Whoever asks for the headers alone gets those of the whole.
		method: ["GET", "HEAD"],
		url: "/openapi.json",
		config,
		schema,
		handler: async (request, reply) =>
			send(request, reply, await description()),
	});

	const files = onceAsked(makeFiles);
	for (const address of addresses) {
		http.get(address, { config, schema }, async (request, reply) => {
			const file = (await files())[address];
			if (!file) throw new Error(`The explorer has no ${address}.`);
			if (address === "/explorer")
				reply.header("content-security-policy", PAGE_POLICY);
			return send(request, reply, file);
		});
	}
}

async function makeFiles(): Promise<ExplorerFiles> {
	const worker = new Worker(new URL("./explorer-assets.ts", import.meta.url), {
		// Types are stripped by a function of Node.js that says it may change.
		execArgv: ["--disable-warning=ExperimentalWarning"],
	});
	try {
		const [files] = (await once(worker, "message")) as [ExplorerFiles];
		return files;
	} finally {
		await worker.terminate();
	}
}

/** All who ask get the outcome of one attempt; one that failed is made anew. */
function onceAsked<T>(make: () => Promise<T>): () => Promise<T> {
	let attempt: Promise<T> | undefined;
	return () => {
		attempt ??= make().catch((error: unknown) => {
			attempt = undefined;
			throw error;
		});
		return attempt;
	};
}

async function send(
	request: FastifyRequest,
	reply: FastifyReply,
	{ type, gzip }: Compressed,
): Promise<FastifyReply> {
	const tag = `"${hash("sha256", gzip).slice(0, 32)}"`;
	reply.headers({
		"cache-control": "no-cache",
		etag: tag,
		vary: "accept-encoding",
	});
	const known = request.headers["if-none-match"] ?? "";
	if (known.split(",").some((one) => one.trim().replace(/^W\//, "") === tag))
		return reply.code(304).send();
	const takesGzip = /\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))/i.test(
		String(request.headers["accept-encoding"] ?? ""),
	);
	reply.header("content-type", type);
	return takesGzip
		? reply.header("content-encoding", "gzip").send(gzip)
		: reply.send(await promisify(gunzip)(gzip));
}
