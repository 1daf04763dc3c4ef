/**
 * The management listener: every route in one screen, and what holds for all of them.
 *
 * A request passes, in this order: route (404), caller (401), project and action (403),
 * JSON (400), shape (400), and then its handler.
 */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import type { AddressInfo, Socket } from "node:net";
import Fastify, {
	type FastifyInstance,
	type FastifyReply,
	type FastifyRequest,
	type FastifyServerOptions,
} from "fastify";
import { sql } from "kysely";
import { Type } from "typebox";
import { SigningKeys } from "../access/access-keys.ts";
import { grantRoutes } from "../access/grant-routes.ts";
import { KeyUses } from "../access/key-uses.ts";
import { managementRoutes } from "../access/management-routes.ts";
import {
	type MasterKeyRouteParts,
	masterKeyRoutes,
} from "../access/master-key-routes.ts";
import type { AccessLevel, Action } from "../access/permissions.ts";
import { RightsKeeper } from "../access/rights.ts";
import type { Http } from "../access/route.ts";
import { accessRoutes } from "../access/routes.ts";
import { ProofLimits } from "../access/sign-in-limits.ts";
import type { KnownAction } from "../access/simulation.ts";
import {
	type SimulationRouteParts,
	simulationRoutes,
} from "../access/simulation-routes.ts";
import type { DescribedRoute } from "../api-description/openapi.ts";
import { explorerRoutes } from "../api-description/routes.ts";
import { objectRoutes } from "../artifacts/routes.ts";
import type { AuditLog } from "../audit/audit-log.ts";
import { type AuditRouteParts, auditRoutes } from "../audit/routes.ts";
import { type Config, ConfigError } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { deviceGroupRoutes } from "../device-groups/routes.ts";
import { deviceImportRoutes } from "../device-imports/routes.ts";
import { getDevice } from "../devices/devices.ts";
import { deviceRoutes } from "../devices/routes.ts";
import { tagRoutes } from "../devices/tag-routes.ts";
import { asApiError, errorAnswer } from "../error-body.ts";
import { ApiError, errors } from "../errors.ts";
import type { Events } from "../events.ts";
import { historyRoutes } from "../history/routes.ts";
import { logger } from "../log.ts";
import { otaModuleRoutes } from "../ota-modules/routes.ts";
import { packageRoutes } from "../packages/routes.ts";
import { productRoutes } from "../products/routes.ts";
import { getResourceSpace } from "../resource-spaces/resource-spaces.ts";
import { resourceSpaceRoutes } from "../resource-spaces/routes.ts";
import type { Sealed } from "../secrets/sealed.ts";
import { upgradeTaskRoutes } from "../upgrade-tasks/routes.ts";
import { auditRequests } from "./audit-requests.ts";
import { authenticate } from "./authenticate.ts";
import { limitConnections } from "./connection-limits.ts";
import { crossOrigin } from "./cross-origin.ts";
import { drain, expectsContinue, readBody } from "./read-body.ts";
import { readJson } from "./read-json.ts";
import { RequestRates } from "./request-rate.ts";
import { answerSerializer, partChecker } from "./schemas.ts";
import { fixSourceAddress } from "./source-address.ts";

const log = logger("http");

/** What the routes of all folders need, each its own. */
type RouteParts = Parameters<typeof resourceSpaceRoutes>[1] &
	Parameters<typeof productRoutes>[1] &
	Parameters<typeof deviceRoutes>[1] &
	Parameters<typeof deviceGroupRoutes>[1] &
	Parameters<typeof tagRoutes>[1] &
	Parameters<typeof deviceImportRoutes>[1] &
	Parameters<typeof otaModuleRoutes>[1] &
	Parameters<typeof packageRoutes>[1] &
	Parameters<typeof upgradeTaskRoutes>[1] &
	Parameters<typeof objectRoutes>[1] &
	MasterKeyRouteParts &
	Pick<Parameters<typeof historyRoutes>[1], "watching">;

/** What is made here, out of the above. */
type MadeParts = Pick<SimulationRouteParts, "rights" | "actions"> & {
	proofLimits: ProofLimits;
};

export type HttpParts = RouteParts & {
	db: Db;
	sealed: Sealed;
	events: Events;
	now: Clock;
	audit: AuditLog;
	/** Of the chain of the audit trail. */
	auditKey: AuditRouteParts["auditKey"];
	/** Whether everything else of this process is up; the store is asked besides. */
	isReady: () => boolean;
	httpTimes?: Partial<HttpTimes>;
};

function registerRoutes(
	http: Http,
	config: Config,
	parts: HttpParts & MadeParts,
): void {
	accessRoutes(http, { ...parts, config });
	managementRoutes(http, { ...parts, config });
	grantRoutes(http, parts);
	simulationRoutes(http, parts);
	masterKeyRoutes(http, parts);
	auditRoutes(http, parts);
	resourceSpaceRoutes(http, parts);
	productRoutes(http, parts);
	deviceRoutes(http, parts);
	deviceGroupRoutes(http, parts);
	tagRoutes(http, parts);
	deviceImportRoutes(http, parts);
	otaModuleRoutes(http, parts);
	packageRoutes(http, parts);
	upgradeTaskRoutes(http, parts);
	objectRoutes(http, parts);
	historyRoutes(http, { ...parts, getDevice, getResourceSpace });
	operatorRoutes(http, parts);
}

/** A route as it declared itself. */
export interface DeclaredRoute extends DescribedRoute {
	action: Action | undefined;
	level: AccessLevel | undefined;
}

export interface HttpServer extends AsyncDisposable {
	readonly http: Http;
	readonly routes: readonly DeclaredRoute[];
	/** Accepts connections from now on; resolves to the port. */
	listen(): Promise<number>;
}

/** From strangers no more is read than a sign-in may need. */
const OPEN_BODY_LIMIT_BYTES = 64 * 1024;
/** Far more than any client has, and few enough to look at each. */
const HEADERS_LIMIT = 200;
const HEAD_LIMIT_BYTES = 16 * 1024;
const KEEP_ALIVE_MS = 72_000;

/** How long the management listener waits for its clients; a test does not wait that long. */
export interface HttpTimes {
	/** From the connection, or the answer before, to the end of a request's headers. */
	headersMs: number;
	/** The same for TLS. */
	handshakeMs: number;
	/** Neither side has said anything, or the client has taken nothing of an answer. */
	silenceMs: number;
	/** How often the first is looked at. */
	lookMs: number;
}

const httpTimes: HttpTimes = {
	headersMs: 20_000,
	handshakeMs: 20_000,
	silenceMs: 60_000,
	lookMs: 5_000,
};

export async function createHttpServer(
	config: Config,
	parts: HttpParts,
): Promise<HttpServer> {
	const http = openFastify(config, { ...httpTimes, ...parts.httpTimes });
	limitConnections(
		http.server,
		{
			total: config.http.maxConnections,
			perAddress: config.http.connectionsPerAddress,
			trustedProxies: config.http.trustedProxies,
		},
		parts.events,
	);
	const rates = new RequestRates(config.http.requestsPerSecond);
	const routes: DeclaredRoute[] = [];
	const keys = new SigningKeys(parts.sealed);
	const rights = new RightsKeeper(parts.db, config);
	const keyUses = new KeyUses(parts);
	const proofLimits = new ProofLimits(parts.now);
	const actions = new Map<Action, KnownAction>();
	const { events } = parts;

	http.addHook("onRoute", ({ method, url, config: declared, schema }) => {
		const { open = false, action, level, concerns } = declared ?? {};
		const { everyone = false, administratorsOnly = false } = declared ?? {};
		const named = `${method} ${url}`;
		if (!open && (action === undefined || level === undefined))
			throw new Error(`${named} declares no action and level.`);
		// Without a project there is no resource space that a handler could ask about.
		if (!open && !everyone && !concerns && !url.includes(":project_id"))
			throw new Error(
				`${named} declares neither everyone nor what it concerns.`,
			);
		const { hide, operationId, summary, tags } = schema ?? {};
		if (!hide && !(operationId && summary && tags))
			throw new Error(`${named} declares no operationId, summary and tags.`);
		const known = action && actions.get(action);
		if (known && (known.concerns !== concerns || known.everyone !== everyone))
			throw new Error(
				`${named} declares ${action} otherwise than another route.`,
			);
		if (action !== undefined && level !== undefined)
			actions.set(action, {
				level,
				concerns,
				everyone,
				administratorsOnly,
				inProject: url.includes(":project_id"),
			});
		for (const one of [method].flat())
			routes.push({
				...{ method: one, path: url, schema },
				...{ open, action, level, concerns, everyone, administratorsOnly },
			});
	});

	// Bodies are read and parsed below, where the bytes are still those that were signed.
	http.removeAllContentTypeParsers();
	http.addContentTypeParser("*", (request, _payload, done) =>
		done(null, request.body),
	);
	http.setSerializerCompiler(({ schema }) => answerSerializer(schema));
	http.setValidatorCompiler(({ schema, httpPart }) =>
		partChecker(schema, httpPart ?? "body"),
	);

	const asking = { ...parts, config, keys, rights, keyUses, proofLimits };
	http.addHook("onRequest", async (request, reply) => {
		reply.headers(STANDING_HEADERS);
		if (config.http.tls)
			reply.header("strict-transport-security", "max-age=31536000");
		reply.header("x-request-id", request.id);
		fixSourceAddress(request, config.http.trustedProxies.length > 0);
		if (request.raw.rawHeaders.length > 2 * HEADERS_LIMIT)
			throw new ApiError(errors.invalidFormat, {
				detail: `A request may have at most ${HEADERS_LIMIT} headers.`,
			});
		if (crossOrigin(config.http.corsOrigins, request, reply))
			return reply.code(204).send();
		if (request.is404 || hasEmptyName(request.params))
			throw new ApiError(errors.noSuchApi);
		const route = request.routeOptions.config;
		const bytes = route.open
			? await readBody(request.raw, reply.raw, OPEN_BODY_LIMIT_BYTES)
			: await authenticate(asking, request, reply, route);
		if (!route.open) rates.take(request.scope, reply);
		// The body of a GET counts for the signature only: an official SDK sends one.
		if (bytes === undefined || /^(GET|HEAD)$/.test(request.method)) return;
		const json = readJson(bytes);
		// No body where an object is expected: what is missing is named field by field.
		request.body = json === undefined ? {} : json;
	});

	http.addHook("onSend", async (_request, reply, payload) => {
		// Said as the vendor says it: its SDKs compare the whole of it.
		if (reply.getHeader("content-type") === "application/json; charset=utf-8")
			reply.header("content-type", "application/json");
		return payload;
	});

	auditRequests(http, parts);

	http.addHook("onResponse", async (request, reply) => {
		events.happened("http_answers", { status: String(reply.statusCode) });
		if (log.isLevelEnabled("debug"))
			log.debug({
				method: request.method,
				route: request.routeOptions.url,
				status: reply.statusCode,
				elapsedMs: Math.round(reply.elapsedTime),
				requestId: request.id,
			});
	});

	http.setNotFoundHandler(() => {
		throw new ApiError(errors.noSuchApi);
	});
	http.setErrorHandler((fault, request, reply) => {
		const error = asApiError(fault);
		if (error.kind.status >= 500)
			log.error(
				{ err: error.cause ?? error, requestId: request.id },
				"a request failed",
			);
		if (!request.raw.complete && request.raw.readableFlowing !== true)
			drain(request.raw);
		const { status, body } = errorAnswer(error, request.url, request.id);
		return reply
			.code(status)
			.removeHeader("content-length")
			.header("content-type", "application/json")
			.serializer(JSON.stringify)
			.send(body);
	});

	explorerRoutes(http, routes);
	registerRoutes(http, config, { ...parts, rights, proofLimits, actions });
	await http.ready();

	return {
		http,
		routes,
		async listen() {
			await http.listen({ host: config.http.host, port: config.http.port });
			return (http.server.address() as AddressInfo).port;
		},
		async [Symbol.asyncDispose]() {
			// A connection whose answer is just leaving is not idle when the listener
			// closes, and would hold it up for the whole of its keep-alive.
			const timer = setInterval(() => http.server.closeIdleConnections(), 50);
			try {
				await http.close();
			} finally {
				clearInterval(timer);
				await keyUses[Symbol.asyncDispose]();
			}
		},
	};
}

/** 32 hex digits; from the pool behind UUIDs, since fresh random bytes cost 10 µs. */
function newRequestId(): string {
	return randomUUID().replaceAll("-", "");
}

/** The router takes `/apps/` for an app without an id; it is no API. */
function hasEmptyName(params: unknown): boolean {
	for (const [name, value] of Object.entries(params ?? {}))
		if (value === "" && name !== "*") return true;
	return false;
}

/** For whoever embeds, sniffs or caches: there is nothing here for a browser to run. */
export const STANDING_HEADERS = {
	"cache-control": "no-store",
	"content-security-policy":
		"default-src 'none'; frame-ancestors 'none'; sandbox",
	"referrer-policy": "no-referrer",
	"x-content-type-options": "nosniff",
	"x-frame-options": "DENY",
};

function openFastify(config: Config, times: HttpTimes): Http {
	const { tls, trustedProxies } = config.http;
	const options: FastifyServerOptions = {
		logger: false,
		genReqId: newRequestId,
		requestIdHeader: false,
		trustProxy: trustedProxies.length > 0 ? [...trustedProxies] : false,
		exposeHeadRoutes: false,
		routerOptions: { maxParamLength: 16_384 },
		frameworkErrors: answerFrameworkError,
		clientErrorHandler: answerMalformedHttp,
		// Uploads may take hours, so a whole request has no limit; silence has.
		connectionTimeout: times.silenceMs,
		keepAliveTimeout: KEEP_ALIVE_MS,
		requestTimeout: 0,
	};
	const sockets = {
		headersTimeout: times.headersMs,
		connectionsCheckingInterval: times.lookMs,
		maxHeaderSize: HEAD_LIMIT_BYTES,
	};
	let app: FastifyInstance;
	try {
		const server = tls
			? {
					https: {
						...sockets,
						cert: readFileSync(tls.certFile),
						key: readFileSync(tls.keyFile),
						minVersion: "TLSv1.2",
						handshakeTimeout: times.handshakeMs,
					},
				}
			: { http: sockets };
		// Over TLS only the socket's type differs, which no route looks at.
		app = Fastify({ ...options, ...server } as FastifyServerOptions);
	} catch (error) {
		throw asConfigError(error, config);
	}
	// A caller who asks before he sends is told to go on only once his body is wanted.
	app.server.on("checkContinue", (request, response) => {
		expectsContinue(request);
		app.server.emit("request", request, response);
	});
	return app;
}

function asConfigError(error: unknown, config: Config): unknown {
	if (!(error instanceof Error)) return error;
	if (/invalid IP address|invalid range/.test(error.message))
		return new ConfigError(
			`OTARU_TRUSTED_PROXIES must list addresses or networks: ${error.message}.`,
		);
	if (config.http.tls)
		return new ConfigError(
			`OTARU_HTTP_TLS_CERT and OTARU_HTTP_TLS_KEY cannot be used: ${error.message}.`,
		);
	return error;
}

/** A path that is no text, before any route is found. */
function answerFrameworkError(
	fault: unknown,
	request: FastifyRequest,
	reply: FastifyReply,
): void {
	const { status, body } = errorAnswer(
		asApiError(fault),
		request.raw.url ?? "",
		request.id,
	);
	const text = JSON.stringify(body);
	reply.raw.writeHead(status, {
		...STANDING_HEADERS,
		"content-type": "application/json",
		"content-length": Buffer.byteLength(text),
		"x-request-id": request.id,
	});
	reply.raw.end(text);
}

/** What is no HTTP, or came too slowly: there is no request, so the answer is written by hand. */
function answerMalformedHttp(
	fault: Error & { code?: string },
	socket: Socket,
): void {
	// Where the handshake is not through nothing can be said, nor will it ever be said.
	const isTls = /^ERR_(SSL|TLS)_/.test(fault.code ?? "");
	if (
		isTls ||
		fault.code === "ECONNRESET" ||
		!socket.writable ||
		socket.destroyed
	) {
		socket.destroy();
		return;
	}
	const status =
		fault.code === "ERR_HTTP_REQUEST_TIMEOUT"
			? "408 Request Timeout"
			: fault.code === "HPE_HEADER_OVERFLOW"
				? "431 Request Header Fields Too Large"
				: "400 Bad Request";
	const body = JSON.stringify({
		error_code: errors.invalidFormat.code,
		error_msg: `${errors.invalidFormat.message} The request is not HTTP, too large in its headers, or too slow.`,
	});
	socket.end(
		`HTTP/1.1 ${status}\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\nX-Request-Id: ${newRequestId()}\r\nConnection: close\r\n\r\n${body}`,
		() => socket.destroy(),
	);
}

/** For operators and load balancers; open, like the port they are on. */
function operatorRoutes(http: Http, { db, events, isReady }: HttpParts): void {
	const tags = ["Operation"];
	const config = { open: true } as const;
	const status = Type.Object({ status: Type.String() });
	const live = {
		operationId: "ShowLiveness",
		summary: "Show whether the server runs",
		tags,
		response: { 200: status },
	};
	http.get("/health/live", { config, schema: live }, async () => ({
		status: "live",
	}));
	const ready = {
		operationId: "ShowReadiness",
		summary: "Show whether the server takes calls",
		tags,
		response: { 200: status },
		failures: [503],
	};
	http.get("/health/ready", { config, schema: ready }, async () => {
		if (!isReady()) throw new ApiError(errors.notReady);
		let timer: NodeJS.Timeout | undefined;
		const tooLate = new Promise<never>((_resolve, reject) => {
			timer = setTimeout(() => reject(new Error("no answer")), 2_000);
		});
		try {
			await Promise.race([sql`select 1`.execute(db), tooLate]);
		} catch (cause) {
			throw new ApiError(errors.notReady, {
				detail: "The store does not answer.",
				cause,
			});
		} finally {
			clearTimeout(timer);
		}
		return { status: "ready" };
	});
	const metrics = {
		operationId: "ShowMetrics",
		summary: "Show the server's metrics, in the form of Prometheus",
		tags,
		produces: { 200: ["text/plain"] },
	};
	http.get("/metrics", { config, schema: metrics }, async (_request, reply) =>
		reply
			.header("content-type", events.registry.contentType)
			.send(await events.registry.metrics()),
	);
}
