/**
 * How a device fetches a package: HTTPS with the server's authority, the SHA-256
 * computed on the way, and after every break on from the byte it had reached.
 */
import { createHash, type Hash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { type Agent, get } from "node:https";
import { setTimeout as pause } from "node:timers/promises";

/** Where the bytes are: a signed address, or an address and a token to show there. */
export interface PackageLink {
	url: string;
	token?: string;
}

export interface Download {
	/** The newest link: a notice that is repeated brings another one, also in the middle. */
	link: () => PackageLink;
	sizeBytes: number;
	/** 64 hex digits. */
	sha256: string;
	/** Epoch milliseconds after which the device gives up. */
	deadlineMs: number;
	agent: Agent;
	/** Absent: as fast as it comes. */
	bytesPerSecond?: number | undefined;
	/** Byte positions, ascending, at which the device itself loses the connection. */
	cutAt?: readonly number[];
	/** Milliseconds to wait before attempt 1, 2, … since the last byte that came. */
	retryAfterMs: (attempt: number) => number;
	signal: AbortSignal;
	onBytes?: (receivedBytes: number) => void;
	onInterrupted?: (reason: string, receivedBytes: number) => void;
}

/** A connection on which nothing moves for so long counts as broken. */
const IDLE_MS = 120_000;

/** A download that has failed for good, with the result code a device reports for it. */
export class DownloadFailure extends Error {
	override name = "DownloadFailure";
	readonly resultCode: number;

	constructor(resultCode: number, message: string) {
		super(message);
		this.resultCode = resultCode;
	}
}

/** A repeated notice may bring a link that works: not the end at once. */
class LinkRefused extends Error {
	override name = "LinkRefused";
}

/** Refusals in a row after which the device gives up. */
const REFUSALS = 8;

/**
 * Returns once exactly `sizeBytes` bytes with that hash have arrived; they are not kept.
 *
 * @throws DownloadFailure; or the signal's reason when it was aborted.
 */
export async function downloadPackage(download: Download): Promise<void> {
	const state = new Progress(download.cutAt ?? []);
	let attempt = 0;
	while (state.received < download.sizeBytes || download.sizeBytes === 0) {
		const before = state.received;
		try {
			await fetchRest(download, state);
			if (download.sizeBytes === 0) break;
		} catch (error) {
			download.signal.throwIfAborted();
			if (error instanceof DownloadFailure) throw error;
			attempt = state.received > before ? 1 : attempt + 1;
			if (error instanceof LinkRefused && attempt >= REFUSALS) {
				throw new DownloadFailure(6, error.message);
			}
			download.onInterrupted?.(String(error), state.received);
			const waitMs = download.retryAfterMs(attempt);
			if (Date.now() + waitMs > download.deadlineMs) {
				throw new DownloadFailure(6, "the download did not finish in time");
			}
			await pause(waitMs, undefined, { signal: download.signal });
		}
	}
	const sha256 = state.hash.digest("hex");
	if (sha256 !== download.sha256.toLowerCase()) {
		throw new DownloadFailure(7, `the package has the SHA-256 ${sha256}`);
	}
}

class Progress {
	received = 0;
	hash: Hash = createHash("sha256");
	readonly cuts: number[];

	constructor(cuts: readonly number[]) {
		this.cuts = [...cuts];
	}

	startAgain(): void {
		this.received = 0;
		this.hash = createHash("sha256");
	}

	/**
	 * Takes what comes before the next cut; the rest is lost with the connection, so that
	 * every cut is made however the bytes come in.
	 *
	 * @returns whether the connection is to be lost now.
	 */
	take(chunk: Uint8Array): boolean {
		const cut = this.cuts[0];
		const isCut = cut !== undefined && this.received + chunk.length >= cut;
		const kept = isCut
			? chunk.subarray(0, Math.max(0, cut - this.received))
			: chunk;
		this.received += kept.length;
		this.hash.update(kept);
		if (isCut) this.cuts.shift();
		return isCut;
	}
}

/** One request: to the last byte, or an error that says why it stopped earlier. */
async function fetchRest(download: Download, state: Progress): Promise<void> {
	const response = await request(download, state.received);
	try {
		acceptStatus(response, state);
		for await (const piece of response) {
			const chunk = piece as Buffer;
			if (state.received + chunk.length > download.sizeBytes) {
				throw new DownloadFailure(
					7,
					`the package is longer than the ${download.sizeBytes} bytes announced`,
				);
			}
			const lost = state.take(chunk);
			download.onBytes?.(state.received);
			if (lost) throw new Error("connection lost");
			if (download.bytesPerSecond) {
				const ms = (chunk.length / download.bytesPerSecond) * 1000;
				await pause(ms, undefined, { signal: download.signal });
			}
		}
		if (state.received < download.sizeBytes) {
			throw new Error(
				`the connection ended after ${state.received} of ${download.sizeBytes} bytes`,
			);
		}
	} finally {
		response.destroy();
	}
}

function request(download: Download, from: number): Promise<IncomingMessage> {
	const link = download.link();
	if (!URL.canParse(link.url) || !link.url.startsWith("https:")) {
		throw new DownloadFailure(255, `no https address: ${link.url}`);
	}
	const headers: Record<string, string> = {};
	if (link.token) headers.authorization = `Bearer ${link.token}`;
	if (from > 0) headers.range = `bytes=${from}-`;
	const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
	const { agent, signal } = download;
	const asked = get(link.url, { agent, headers, signal }, resolve);
	asked.on("error", reject);
	asked.setTimeout(IDLE_MS, () =>
		asked.destroy(new Error(`no byte for ${IDLE_MS / 1000} s`)),
	);
	return promise;
}

function acceptStatus(response: IncomingMessage, state: Progress): void {
	const { statusCode = 0 } = response;
	switch (statusCode) {
		case 200:
			// The whole package, also for a request of its rest.
			if (state.received > 0) state.startAgain();
			return;
		case 206: {
			const first = /^bytes (\d+)-/.exec(
				response.headers["content-range"] ?? "",
			)?.[1];
			if (Number(first) === state.received) return;
			throw new DownloadFailure(
				255,
				`asked for byte ${state.received}, got ${response.headers["content-range"]}`,
			);
		}
		case 401:
		case 403:
		case 404:
		case 410:
			throw new LinkRefused(
				`the download link does not work (status ${statusCode})`,
			);
		case 416:
			state.startAgain();
			throw new Error("the rest of the package is not to be had");
		default:
			throw new Error(`status ${statusCode}`);
	}
}
