/**
 * The files of the explorer's page, made ready in a thread of its own: the reference is
 * 5 MB of script, which a server that nobody asks for it never loads, and one that has
 * been asked keeps only compressed.
 */
import { readFileSync } from "node:fs";
import { stripTypeScriptTypes } from "node:module";
import { parentPort } from "node:worker_threads";
import { gzipSync } from "node:zlib";
import reference from "@scalar/fastify-api-reference";
import Fastify from "fastify";

/** By address. */
export type ExplorerFiles = Record<string, { type: string; gzip: Uint8Array }>;

const read = (path: string) =>
	readFileSync(new URL(path, import.meta.url), "utf8");

/** Its script is to be had from the plugin only by asking for it. */
async function referenceScript(): Promise<string> {
	await using app = Fastify();
	await app.register(reference, {
		routePrefix: "/explorer",
		configuration: { url: "/openapi.json" },
	});
	const { statusCode, body } = await app.inject("/explorer/js/scalar.js");
	if (statusCode !== 200) throw new Error("The reference has no script.");
	return body;
}

const javaScript = "text/javascript; charset=utf-8";
const texts: [address: string, type: string, text: string][] = [
	["/explorer", "text/html; charset=utf-8", read("explorer/page.html")],
	["/explorer/page.css", "text/css; charset=utf-8", read("explorer/page.css")],
	["/explorer/page.js", javaScript, read("explorer/page.js")],
	[
		"/explorer/sign-request.js",
		javaScript,
		stripTypeScriptTypes(read("../../wire/sign-request.ts")),
	],
	["/explorer/scalar.js", javaScript, await referenceScript()],
];
parentPort?.postMessage(
	Object.fromEntries(
		texts.map(([address, type, text]) => [
			address,
			{ type, gzip: gzipSync(text) },
		]),
	) satisfies ExplorerFiles,
);
