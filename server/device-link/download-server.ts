/**
 * The HTTPS listener from which devices fetch packages.
 *
 * It stands apart from the management API because devices ask for other things: a
 * parser that takes the bare line feeds of the official C SDK, header names in the
 * exact spelling that SDK searches for, the head of an answer in one piece of its own,
 * a length and never chunks, no redirects, no cookies, no interim answers.
 *
 * Nothing here logs an address or a header: both may carry what opens the package.
 */
import { once } from "node:events";
import {
	type IncomingMessage,
	type OutgoingHttpHeaders,
	type ServerResponse,
	STATUS_CODES,
} from "node:http";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { Duplex } from "node:stream";
import type { TlsOptions } from "node:tls";
import { networkOf } from "../access/sign-in-limits.ts";
import type {
	ArtifactStore,
	OpenArtifact,
} from "../artifacts/artifact-store.ts";
import {
	type ByteRange,
	contentRange,
	readRange,
} from "../artifacts/byte-range.ts";
import { ByteSender } from "../artifacts/byte-sender.ts";
import {
	type DownloadLinks,
	type DownloadTarget,
	safeFileName,
} from "../artifacts/download-links.ts";
import type { DevicesConfig } from "../config.ts";
import type { Clock } from "../database/database.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import { closeWith } from "./last-word.ts";
import { type AttemptLimits, SignInAttempts } from "./sign-in-attempts.ts";

const log = logger("downloads");

/** What a subtask has to offer to its device. */
export interface OfferedDownload {
	/** Of the subtask; a package is handed out only while it is `Processing`. */
	status: string;
	packageId: string;
	fileName: string;
	offeredAt: Date;
	expiresAt: Date;
	sha256: string;
	sizeBytes: number;
}

export interface DeliveredPackage {
	taskId: string;
	/** Of the subtask. */
	position: number;
	packageId: string;
	/** Of the whole package, whatever of it came in this answer. */
	sizeBytes: number;
}

export interface DownloadServerOptions {
	config: {
		devices: Pick<
			DevicesConfig,
			"https" | "maxConnections" | "signInTimeoutMs"
		>;
	};
	/** Key and certificate, and whatever else connections on this port need. */
	tls: TlsOptions;
	links: DownloadLinks;
	/** Undefined when there is no such subtask or it has been offered nothing. */
	findDownload: (
		taskId: string,
		position: number,
	) => Promise<OfferedDownload | undefined>;
	store: ArtifactStore;
	events: Events;
	now: Clock;
	/** Takes over connections that ask to become WebSockets; without it they get a plain answer. */
	onUpgrade?: (request: IncomingMessage, socket: Duplex, head: Buffer) => void;
	/** How long a device may take nothing of what waits for it. */
	stallTimeoutMs?: number;
	/** What a device must take of it in a second, on the whole. */
	leastBytesPerSecond?: number;
	limits?: Partial<AttemptLimits>;
	/** Called, and not waited for, when the last byte of a package has been taken. */
	onDelivered?: (delivery: DeliveredPackage) => void;
}

/** An IoT module that loses its network for minutes goes on with the same connection. */
const STALL_TIMEOUT_MS = 5 * 60_000;
const REQUEST_TIMEOUT_MS = 20_000;
const KEEP_ALIVE_TIMEOUT_MS = 15_000;
const HEAD_LIMIT_BYTES = 8 * 1024;
/** Said to whoever has to wait; the shortest wait is shorter, the longest longer. */
const BLOCKED_SECONDS = 60;

type Outcome =
	| "served"
	| "served_part"
	| "aborted"
	| "unauthorized"
	| "blocked"
	| "not_found"
	| "bad_method"
	| "bad_range"
	| "damaged"
	| "failed";

/** Listens when this resolves. @throws what the operating system says about the address. */
export async function openDownloadServer(
	options: DownloadServerOptions,
): Promise<DownloadServer> {
	const server = new DownloadServer(options);
	await server.listen();
	return server;
}

export class DownloadServer implements AsyncDisposable {
	readonly #options: DownloadServerOptions;
	readonly #server: Server;
	readonly #sender: ByteSender;
	readonly #attempts: SignInAttempts;
	/** Upgraded ones too, which the HTTP server itself forgets. */
	readonly #connections = new Set<Duplex>();
	#running = 0;

	constructor(options: DownloadServerOptions) {
		this.#options = options;
		this.#sender = new ByteSender(
			options.stallTimeoutMs,
			options.leastBytesPerSecond,
		);
		this.#attempts = new SignInAttempts(options.limits);
		this.#server = createServer({
			...options.tls,
			minVersion: "TLSv1.2",
			ALPNProtocols: ["http/1.1"],
			handshakeTimeout: options.config.devices.signInTimeoutMs,
			// Lines that end in a bare line feed.
			insecureHTTPParser: true,
			requireHostHeader: false,
			maxHeaderSize: HEAD_LIMIT_BYTES,
			headersTimeout: REQUEST_TIMEOUT_MS,
			requestTimeout: REQUEST_TIMEOUT_MS,
			connectionsCheckingInterval: 5_000,
			keepAliveTimeout: KEEP_ALIVE_TIMEOUT_MS,
			noDelay: true,
			keepAlive: true,
			// A client that offers to speak HTTP/2 in the clear wants its answer all the same.
			shouldUpgradeCallback: (request) =>
				options.onUpgrade !== undefined &&
				request.headers.upgrade?.toLowerCase() === "websocket",
		});
		const server = this.#server;
		server.maxConnections = options.config.devices.maxConnections;
		server.timeout = options.stallTimeoutMs ?? STALL_TIMEOUT_MS;
		for (const event of ["connection", "secureConnection"] as const) {
			server.on(event, (socket: Duplex) => {
				this.#connections.add(socket);
				socket.once("close", () => this.#connections.delete(socket));
			});
		}
		const answer = (request: IncomingMessage, response: ServerResponse) =>
			void this.#answer(request, response);
		server.on("request", answer);
		// An interim answer would be taken for the answer: these get the final one at once.
		server.on("checkContinue", answer);
		server.on("checkExpectation", answer);
		server.on("clientError", (error: NodeJS.ErrnoException, socket: Duplex) =>
			this.#refuseNonsense(error, socket),
		);
		server.on("tlsClientError", (_error, socket) => {
			options.events.happened("download_connection_refused", { why: "tls" });
			// Nobody else does, when the handshake took too long.
			socket.destroy();
		});
		if (options.onUpgrade) server.on("upgrade", options.onUpgrade);
		options.events.gauge(
			"downloads_running",
			"Package downloads being sent",
			() => this.#running,
		);
	}

	async listen(): Promise<void> {
		const { host, port } = this.#options.config.devices.https;
		this.#server.listen({ host, port });
		await once(this.#server, "listening");
		this.#server.on("error", (error) => log.error({ err: error }, "listener"));
	}

	/** Connections from now on are shown this certificate. */
	renewCertificate(tls: { cert: string; key: string }): void {
		this.#server.setSecureContext({
			...this.#options.tls,
			minVersion: "TLSv1.2",
			...tls,
		});
	}

	/** The port it really has. */
	get port(): number {
		return (this.#server.address() as AddressInfo).port;
	}

	/** Ends every connection: devices come back to the next server and start again. */
	async [Symbol.asyncDispose](): Promise<void> {
		const closed = once(this.#server, "close");
		this.#server.close();
		for (const socket of this.#connections) socket.destroy();
		await closed;
	}

	async #answer(
		request: IncomingMessage,
		response: ServerResponse,
	): Promise<void> {
		const { links, events } = this.#options;
		const target = links.parse(request.url ?? "");
		let outcome: Outcome;
		let sentBytes = 0;
		// A request sent ahead waits until the answers before it are out. Should the
		// connection end first, this never goes on, and is collected with the connection.
		if (!response.socket) await once(response, "socket");
		this.#running++;
		try {
			({ outcome, sentBytes } = await this.#serve(request, response, target));
		} catch (error) {
			outcome = "failed";
			log.error({ err: error, ...subtaskOf(target) }, "download failed");
			// The device sees a body that ends early, never one that is wrong.
			if (response.headersSent) response.destroy();
			else refuse(response, 503, "temporarily unavailable");
		} finally {
			this.#running--;
		}
		events.happened(
			"download",
			{ form: target?.form ?? "none", outcome },
			{ ...subtaskOf(target), sentBytes },
		);
	}

	async #serve(
		request: IncomingMessage,
		response: ServerResponse,
		target: DownloadTarget | undefined,
	): Promise<{ outcome: Outcome; sentBytes: number }> {
		const { method } = request;
		const refused = (
			outcome: Outcome,
			status: number,
			text: string,
			headers?: OutgoingHttpHeaders,
		) => {
			refuse(response, status, text, headers, method === "HEAD");
			return { outcome, sentBytes: 0 };
		};
		if (method !== "GET" && method !== "HEAD") {
			return refused("bad_method", 405, "only GET and HEAD", {
				Allow: "GET, HEAD",
			});
		}
		if (!target) return refused("not_found", 404, "no such package");
		// Of one subtask from one address: whoever guesses from elsewhere keeps nobody out.
		const address = request.socket.remoteAddress ?? "";
		const guessed = `${target.taskId}.${target.position} ${networkOf(address)}`;
		if (!this.#attempts.mayTry(guessed, address)) {
			return refused("blocked", 429, "too many wrong proofs", {
				"Retry-After": BLOCKED_SECONDS,
			});
		}
		const found = await this.#find(target, request.headers.authorization);
		if (found === "wrong" || found === "not_found")
			this.#attempts.failed(guessed, address);
		else if (typeof found === "object")
			this.#attempts.succeeded(guessed, address);
		if (found === "wrong" || found === "missing" || found === "over") {
			return refused("unauthorized", 401, "missing, wrong or expired proof", {
				"WWW-Authenticate": "Bearer",
			});
		}
		if (found === "not_found") {
			return refused("not_found", 404, "no such package");
		}
		await using artifact = await this.#open(found, target);
		if (!artifact) return refused("damaged", 503, "the package is damaged");

		const tag = `"${found.sha256}"`;
		const condition = request.headers["if-range"];
		// A range means something for GET only (RFC 9110 section 14.2).
		const asked =
			method === "GET" && (condition === undefined || condition === tag)
				? readRange(request.headers.range, found.sizeBytes)
				: "whole";
		if (asked === "unsatisfiable") {
			return refused("bad_range", 416, "range outside the package", {
				"Content-Range": contentRange(undefined, found.sizeBytes),
			});
		}
		const partial = asked !== "whole";
		const range = partial ? asked : { start: 0, end: found.sizeBytes };
		response.writeHead(partial ? 206 : 200, {
			"Content-Type": "application/octet-stream",
			"Content-Length": range.end - range.start,
			"Content-Disposition": `attachment; filename=${safeFileName(found.fileName)}`,
			...(partial
				? { "Content-Range": contentRange(range, found.sizeBytes) }
				: {}),
			"Accept-Ranges": "bytes",
			ETag: tag,
		});
		// By itself, before the body: a device that reads both in one piece may count the
		// head as part of a small file.
		response.flushHeaders();
		if (method === "HEAD") {
			response.end();
			return { outcome: "served", sentBytes: 0 };
		}
		// Awaited here: the artifact is closed when this function ends.
		const sent = await this.#send(response, artifact, range, partial);
		if (sent.outcome !== "aborted" && range.end === found.sizeBytes) {
			const { taskId, position } = target;
			const { packageId, sizeBytes } = found;
			this.#options.onDelivered?.({ taskId, position, packageId, sizeBytes });
		}
		return sent;
	}

	async #send(
		response: ServerResponse,
		artifact: OpenArtifact,
		range: ByteRange,
		partial: boolean,
	): Promise<{ outcome: Outcome; sentBytes: number }> {
		const sentBytes = await this.#sender.send(artifact, range, response);
		if (sentBytes < range.end - range.start) {
			return { outcome: "aborted", sentBytes };
		}
		response.end();
		return { outcome: partial ? "served_part" : "served", sentBytes };
	}

	/** `over`: the proof is right, and the upgrade it is for has ended. */
	async #find(
		target: DownloadTarget,
		authorization: string | undefined,
	): Promise<OfferedDownload | "wrong" | "missing" | "over" | "not_found"> {
		const { links, findDownload, now } = this.#options;
		const token = /^Bearer[ \t]+([\x21-\x7e]{1,256})$/i.exec(
			authorization ?? "",
		)?.[1];
		// What can be refused without the store is refused without it.
		if (target.form === "presigned" && !links.isValid(target, now()))
			return "wrong";
		if (target.form === "token" && token === undefined) return "missing";
		const found = await findDownload(target.taskId, target.position);
		if (!found) return "not_found";
		switch (target.form) {
			case "presigned":
				if (found.packageId !== target.packageId) return "not_found";
				break;
			case "token":
				if (
					token === undefined ||
					!links.isToken(token, {
						taskId: target.taskId,
						position: target.position,
						packageId: found.packageId,
						expiresAt: found.expiresAt,
					})
				) {
					return "wrong";
				}
				break;
			default:
				return target satisfies never;
		}
		return found.status === "Processing" && now() < found.expiresAt
			? found
			: "over";
	}

	/** Undefined, and an error for the operator, when the store does not hold what was offered. */
	async #open(
		offered: OfferedDownload,
		target: DownloadTarget,
	): Promise<OpenArtifact | undefined> {
		const { store, events } = this.#options;
		const artifact = await store.open(offered.sha256);
		if (artifact?.sizeBytes === offered.sizeBytes) return artifact;
		await artifact?.[Symbol.asyncDispose]();
		events.happened(
			"artifact_damaged",
			{ how: artifact ? "wrong_size" : "missing" },
			{
				...subtaskOf(target),
				packageId: offered.packageId,
				sha256: offered.sha256,
				sizeBytes: offered.sizeBytes,
				foundBytes: artifact?.sizeBytes,
			},
			"error",
		);
		return undefined;
	}

	#refuseNonsense(error: NodeJS.ErrnoException, socket: Duplex): void {
		this.#options.events.happened("download_connection_refused", {
			why: error.code === "ERR_HTTP_REQUEST_TIMEOUT" ? "silence" : "nonsense",
		});
		// In the middle of an answer another one would become part of the package.
		const busy = "_httpMessage" in socket && socket._httpMessage;
		if (!socket.writable || busy) {
			socket.destroy();
			return;
		}
		const status =
			error.code === "HPE_HEADER_OVERFLOW"
				? 431
				: error.code === "ERR_HTTP_REQUEST_TIMEOUT"
					? 408
					: 400;
		closeWith(
			socket,
			`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`,
		);
	}
}

/** Some devices store whatever comes as the package: the body is one short line. */
function refuse(
	response: ServerResponse,
	status: number,
	text: string,
	headers: OutgoingHttpHeaders = {},
	headOnly = false,
): void {
	const body = `${text}\n`;
	response.writeHead(status, {
		"Content-Type": "text/plain",
		"Content-Length": Buffer.byteLength(body),
		...headers,
	});
	response.end(headOnly ? undefined : body);
}

function subtaskOf(target: DownloadTarget | undefined): {
	taskId?: string;
	position?: number;
} {
	return target ? { taskId: target.taskId, position: target.position } : {};
}
