/** The MQTT listeners: accept, TLS, WebSocket, and which connection is which device's. */
import type { IncomingMessage } from "node:http";
import {
	type AddressInfo,
	createServer,
	type Server as NetServer,
	type Socket,
} from "node:net";
import type { Duplex } from "node:stream";
import {
	createServer as createTlsServer,
	TLSSocket,
	type Server as TlsServer,
} from "node:tls";
import { writeToStream } from "mqtt-packet";
import { createWebSocketStream, type WebSocket, WebSocketServer } from "ws";
import type { DevicesConfig } from "../config.ts";
import type { Events } from "../events.ts";
import { type DeadlineEntry, Deadlines } from "./deadlines.ts";
import { closeWith } from "./last-word.ts";
import { PacketReader } from "./mqtt-packets.ts";
import {
	type CloseReason,
	type DeviceConnection,
	type DeviceEars,
	type KeptSession,
	MqttSession,
	type SessionHost,
} from "./mqtt-session.ts";
import type { DeviceCertificate, SignIn } from "./sign-in.ts";

export interface MqttServerTls {
	/** PEM, the server's certificate with its chain. */
	cert: string | Buffer;
	key: string | Buffer;
	/** PEM of the authorities whose certificates may become a device's own at its first connection; absent: any may. */
	clientCa?: string | Buffer | undefined;
}

export interface MqttServerParts {
	config: Pick<
		DevicesConfig,
		| "mqtt"
		| "mqtts"
		| "signInTimeoutMs"
		| "keepAliveMinSeconds"
		| "keepAliveMaxSeconds"
		| "messageLimitBytes"
		| "messagesPerSecond"
		| "bytesPerSecond"
		| "maxConnections"
	>;
	tls: MqttServerTls;
	signIn: SignIn;
	ears: DeviceEars;
	events: Events;
}

/**
 * TLS 1.2 and 1.3. The embedded SDKs ask for ECDHE with AES, some of them in CBC mode
 * only; nothing without forward secrecy is offered.
 */
export const deviceTls = {
	minVersion: "TLSv1.2",
	maxVersion: "TLSv1.3",
	ciphers: [
		"TLS_AES_128_GCM_SHA256",
		"TLS_AES_256_GCM_SHA384",
		"TLS_CHACHA20_POLY1305_SHA256",
		"ECDHE-ECDSA-AES128-GCM-SHA256",
		"ECDHE-RSA-AES128-GCM-SHA256",
		"ECDHE-ECDSA-AES256-GCM-SHA384",
		"ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-AES128-SHA",
		"ECDHE-RSA-AES128-SHA",
		"ECDHE-ECDSA-AES256-SHA",
		"ECDHE-RSA-AES256-SHA",
	].join(":"),
	honorCipherOrder: true,
	// Without the post-quantum hybrid: OpenSSL keeps its 10 KB key for as long as the
	// connection lasts, a fifth of what an idle one weighs, and no device SDK offers it.
	ecdhCurve: "X25519:P-256:P-384",
} as const;

function secureContext({ cert, key, clientCa }: MqttServerTls) {
	// An empty list keeps the public authorities out: none of them speaks for a device.
	return { ...deviceTls, cert, key, ca: clientCa ?? [] };
}

const WEBSOCKET_PATH = "/mqtt";
/** Chosen in this order; the second is what clients of MQTT 3.1 call it. */
const WEBSOCKET_PROTOCOLS = ["mqtt", "mqttv3.1"];
/** How long a closing server waits for its devices to hang up. */
const CLOSE_MS = 1_000;

/**
 * Opens the listeners of `config` and returns when they accept connections.
 *
 * @throws when a port is taken or the certificate cannot be used.
 */
export async function openMqttServer(
	parts: MqttServerParts,
): Promise<MqttServer> {
	const server = new MqttServer(parts);
	try {
		await server.listen();
	} catch (error) {
		await server.close();
		throw error;
	}
	return server;
}

export class MqttServer implements AsyncDisposable {
	readonly #parts: MqttServerParts;
	readonly #host: SessionHost;
	readonly #deadlines = new Deadlines();
	readonly #webSockets: WebSocketServer;
	#plain: NetServer | undefined;
	#tlsAccept: NetServer | undefined;
	#tls: TlsServer | undefined;
	/** Accepted, the TLS handshake not finished. */
	readonly #handshakes = new Map<string, Handshake>();
	readonly #sessions = new Set<MqttSession>();
	readonly #signingIn = new Set<MqttSession>();
	readonly #connections = new Map<string, MqttSession>();
	readonly #kept = new Map<string, Kept>();
	#keptSweep: NodeJS.Timeout | undefined;
	#closing: Promise<void> | undefined;

	constructor(parts: MqttServerParts) {
		this.#parts = parts;
		const { config, events, signIn, ears } = parts;
		this.#webSockets = new WebSocketServer({
			noServer: true,
			clientTracking: false,
			perMessageDeflate: false,
			// Room for the largest message in one frame; what a packet may weigh is checked
			// by the session, whatever frames it comes in.
			maxPayload: config.messageLimitBytes + 64 * 1024,
			handleProtocols: (offered) =>
				WEBSOCKET_PROTOCOLS.find((protocol) => offered.has(protocol)) ?? false,
		});
		this.#host = {
			limits: config,
			reader: new PacketReader(),
			deadlines: this.#deadlines,
			signIn,
			ears,
			events,
			signingIn: (session) => this.#signingIn.add(session),
			admit: (session, clean) => this.#admit(session, clean),
			left: (session, kept) => this.#left(session, kept),
			gone: (session) => this.#sessions.delete(session),
		};
		events.gauge(
			"device_connections",
			"open MQTT connections, signed in or not",
			() => this.#sessions.size + this.#handshakes.size,
		);
		events.gauge(
			"devices_connected",
			"devices signed in by MQTT",
			() => this.#connections.size,
		);
	}

	/** The real port of the plain listener; undefined when it is off. */
	get port(): number | undefined {
		return portOf(this.#plain);
	}

	/** The real port of the TLS listener. */
	get tlsPort(): number | undefined {
		return portOf(this.#tlsAccept);
	}

	async listen(): Promise<void> {
		const { config, tls } = this.#parts;
		// It would make a buffer for each of the 65,536 packet ids in advance, some 10 MB.
		writeToStream.cacheNumbers = false;
		this.#keptSweep = setInterval(() => this.#forgetKept(), 60_000).unref();

		this.#tls = createTlsServer({
			...secureContext(tls),
			// Whether a certificate is the device's is decided at sign-in, by fingerprint.
			requestCert: true,
			rejectUnauthorized: false,
			// The time to sign in covers the handshake.
			handshakeTimeout: config.signInTimeoutMs + 10_000,
		});
		this.#tls.on("secureConnection", (socket) => this.#secured(socket));
		this.#tls.on("tlsClientError", (_error, socket) => socket.destroy());
		this.#tlsAccept = createServer({ noDelay: true }, (socket) =>
			this.#handshake(socket),
		);
		await listen(this.#tlsAccept, config.mqtts);

		if (config.mqtt) {
			this.#plain = createServer({ noDelay: true }, (socket) => {
				if (this.#isFull(socket)) return;
				this.#start(
					socket,
					socket.remoteAddress ?? "",
					undefined,
					config.signInTimeoutMs,
				);
			});
			await listen(this.#plain, config.mqtt);
		}
	}

	/** The device's connection to this process, once it is accepted. */
	connectionOf(deviceId: string): DeviceConnection | undefined {
		return this.#connections.get(deviceId);
	}

	connections(): Iterable<DeviceConnection> {
		return this.#connections.values();
	}

	/**
	 * Ends the device's connection, and a sign-in that is being decided on what may be
	 * out of date by now. To be called after the change (frozen, deleted, another
	 * secret) is stored. What was kept for its next connection is dropped as well.
	 */
	disconnect(deviceId: string, reason: CloseReason): void {
		for (const session of this.#signingIn) {
			if (session.deviceId === deviceId) session.interruptSignIn();
		}
		this.#connections.get(deviceId)?.close(reason);
		this.#kept.delete(deviceId);
	}

	/** Connections from now on are shown this certificate; those that stand stay. */
	renewCertificate(tls: Pick<MqttServerTls, "cert" | "key">): void {
		this.#tls?.setSecureContext(secureContext({ ...this.#parts.tls, ...tls }));
	}

	/**
	 * MQTT over WebSocket: give this the `upgrade` events of an HTTP(S) server. Requests
	 * for another path or without the `mqtt` subprotocol are answered and closed.
	 */
	handleUpgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
		socket.on("error", () => socket.destroy());
		const path = (request.url ?? "").split("?", 1)[0];
		if (path !== WEBSOCKET_PATH) {
			refuseUpgrade(socket, "404 Not Found");
			return;
		}
		const offered = (request.headers["sec-websocket-protocol"] ?? "")
			.split(",")
			.map((protocol) => protocol.trim());
		if (!WEBSOCKET_PROTOCOLS.some((protocol) => offered.includes(protocol))) {
			refuseUpgrade(socket, "400 Bad Request");
			return;
		}
		if (this.#closing || this.#isFull(socket)) {
			socket.destroy();
			return;
		}
		this.#webSockets.handleUpgrade(request, socket, head, (webSocket) =>
			this.#startWebSocket(webSocket, request),
		);
	}

	/** Says good-bye to every device, then closes; devices that do not hang up are cut off. */
	close(): Promise<void> {
		this.#closing ??= this.#close();
		return this.#closing;
	}

	[Symbol.asyncDispose](): Promise<void> {
		return this.close();
	}

	async #close(): Promise<void> {
		clearInterval(this.#keptSweep);
		const closed = [this.#plain, this.#tlsAccept].map(stop);
		for (const { raw } of this.#handshakes.values()) raw.destroy();
		for (const session of [...this.#sessions]) session.close("shutdown");
		const until = performance.now() + CLOSE_MS;
		while (this.#sessions.size > 0 && performance.now() < until)
			await new Promise((resolve) => setTimeout(resolve, 10));
		for (const session of [...this.#sessions]) session.destroy();
		await Promise.all(closed);
		this.#webSockets.close();
		this.#deadlines.close();
	}

	// --- accepting --------------------------------------------------------------------

	#isFull(socket: Duplex): boolean {
		if (
			this.#sessions.size + this.#handshakes.size <
			this.#parts.config.maxConnections
		)
			return false;
		this.#parts.events.happened("device_connections_refused", {
			reason: "too_many",
		});
		socket.destroy();
		return true;
	}

	#handshake(raw: Socket): void {
		if (this.#isFull(raw)) return;
		const key = connectionKey(raw);
		const handshake = new Handshake(raw, () => {
			this.#deadlines.clear(handshake);
			if (this.#handshakes.get(key) === handshake) this.#handshakes.delete(key);
		});
		this.#handshakes.set(key, handshake);
		this.#deadlines.set(handshake, this.#parts.config.signInTimeoutMs);
		this.#tls?.emit("connection", raw);
	}

	#secured(socket: TLSSocket): void {
		const handshake = this.#handshakes.get(connectionKey(socket));
		if (!handshake) {
			socket.destroy();
			return;
		}
		const leftMs = Math.max(0, handshake.dueAtMs - this.#deadlines.nowMs);
		handshake.finish();
		// Renegotiation is of no use to a device and of much to somebody who wants to
		// keep the server busy.
		socket.disableRenegotiation();
		this.#start(
			socket,
			handshake.remoteAddress,
			this.#certificateOf(socket),
			leftMs,
		);
	}

	#certificateOf(socket: TLSSocket): DeviceCertificate | undefined {
		const certificate = socket.getPeerX509Certificate();
		if (!certificate) return undefined;
		return {
			sha1: plainHex(certificate.fingerprint),
			sha256: plainHex(certificate.fingerprint256),
			trusted: this.#parts.tls.clientCa === undefined || socket.authorized,
		};
	}

	#startWebSocket(webSocket: WebSocket, request: IncomingMessage): void {
		const socket = createWebSocketStream(webSocket);
		// MQTT is carried in binary frames only.
		webSocket.on("message", (_data, isBinary) => {
			if (!isBinary) webSocket.terminate();
		});
		// The stream does not close by itself when the other side has gone.
		socket.on("end", () => socket.destroy());
		this.#start(
			socket,
			request.socket.remoteAddress ?? "",
			request.socket instanceof TLSSocket
				? this.#certificateOf(request.socket)
				: undefined,
			this.#parts.config.signInTimeoutMs,
		);
	}

	#start(
		socket: Duplex,
		remoteAddress: string,
		certificate: DeviceCertificate | undefined,
		deadlineMs: number,
	): void {
		this.#sessions.add(
			new MqttSession(
				this.#host,
				socket,
				{ remoteAddress, certificate },
				deadlineMs,
			),
		);
	}

	// --- which connection is which device's ---------------------------------------------

	#admit(session: MqttSession, clean: boolean): KeptSession | undefined {
		this.#signingIn.delete(session);
		const { deviceId } = session;
		this.#connections.get(deviceId)?.close("replaced");
		this.#connections.set(deviceId, session);
		const kept = this.#kept.get(deviceId);
		this.#kept.delete(deviceId);
		return clean || !kept || kept.untilMs <= this.#deadlines.nowMs
			? undefined
			: kept.session;
	}

	#left(session: MqttSession, kept: KeptSession | undefined): void {
		this.#signingIn.delete(session);
		const { deviceId } = session;
		if (this.#connections.get(deviceId) !== session) return;
		this.#connections.delete(deviceId);
		if (!kept) return;
		this.#kept.delete(deviceId);
		if (this.#kept.size >= this.#parts.config.maxConnections) {
			// The one that was left longest ago.
			const oldest = this.#kept.keys().next();
			if (!oldest.done) this.#kept.delete(oldest.value);
		}
		this.#kept.set(deviceId, {
			session: kept,
			untilMs: this.#deadlines.nowMs + kept.keepMs,
		});
	}

	#forgetKept(): void {
		for (const [deviceId, { untilMs }] of this.#kept) {
			if (untilMs <= this.#deadlines.nowMs) this.#kept.delete(deviceId);
		}
	}
}

interface Kept {
	session: KeptSession;
	untilMs: number;
}

/** A connection whose TLS handshake is under way. */
class Handshake implements DeadlineEntry {
	dueAtMs = 0;
	nextEntry: DeadlineEntry | undefined = undefined;
	previousEntry: DeadlineEntry | undefined = undefined;
	readonly raw: Socket;
	readonly remoteAddress: string;
	readonly #over: () => void;

	constructor(raw: Socket, over: () => void) {
		this.raw = raw;
		this.remoteAddress = raw.remoteAddress ?? "";
		this.#over = over;
		raw.on("close", over);
		raw.on("error", ignore);
	}

	/** The session takes over. */
	finish(): void {
		this.raw.off("close", this.#over);
		this.#over();
	}

	deadlinePassed(): void {
		this.raw.destroy();
	}
}

function ignore(): void {
	// "close" follows.
}

/** What tells a connection of the TLS listener from all others, before and after the handshake. */
function connectionKey(socket: Socket): string {
	return `${socket.localAddress} ${socket.remoteAddress} ${socket.remotePort}`;
}

function plainHex(fingerprint: string): string {
	return fingerprint.replaceAll(":", "").toLowerCase();
}

function refuseUpgrade(socket: Duplex, status: string): void {
	closeWith(
		socket,
		`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`,
	);
}

function listen(
	server: NetServer,
	{ host, port }: { host: string; port: number },
): Promise<void> {
	return new Promise((resolve, reject) => {
		server.once("error", reject);
		server.listen({ host, port, backlog: 4096 }, () => {
			server.off("error", reject);
			// Such as too many open files: the listener goes on when there are some again.
			server.on("error", ignore);
			resolve();
		});
	});
}

function stop(server: NetServer | undefined): Promise<void> {
	return new Promise((resolve) => {
		if (server?.listening) server.close(() => resolve());
		else resolve();
	});
}

function portOf(server: NetServer | undefined): number | undefined {
	const address: AddressInfo | string | null | undefined = server?.address();
	return typeof address === "object" ? address?.port : undefined;
}
