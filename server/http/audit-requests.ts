/**
 * What of a call goes into the audit trail: every write, every sign-in, and whatever was
 * refused. The row is on disk before the answer leaves; where it cannot be kept the
 * answer is 500, whatever was done.
 */
import type { FastifyReply, FastifyRequest } from "fastify";
import { asAccessKey } from "../access/access-keys.ts";
import type { Http } from "../access/route.ts";
import { networkOf } from "../access/sign-in-limits.ts";
import { type AuditEntry, storable } from "../audit/audit-chain.ts";
import type { AuditLog } from "../audit/audit-log.ts";
import { ofAddress, ofUser, RefusalFlood } from "../audit/refusal-flood.ts";
import type { Clock } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { asApiError, errorAnswer } from "../error-body.ts";
import { ApiError, errors } from "../errors.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Decision } from "../policy-language/policy-decision.ts";
import { Refusal } from "./authenticate.ts";
import { shownProof } from "./proof-attempts.ts";

const log = logger("audit");
const TEXT_LIMIT = 256;
const PATH_LIMIT = 512;
const ID = /^[A-Za-z0-9_-]{1,64}$/;
/** Of what an answer to a creation may name, the thing that was created comes first. */
const createdIds = [
	"access_key",
	"task_id",
	"package_id",
	"module_id",
	"import_id",
	"grant_id",
	"policy_id",
	"device_id",
	"group_id",
	"enterprise_project_id",
	"user_id",
	"product_id",
	"app_id",
	"project_id",
] as const;

export interface AuditRequestsParts {
	audit: AuditLog;
	now: Clock;
	events: Events;
}

interface Seen {
	error?: ApiError;
	/** The id of what was created, and the resource space it lies in, as the answer says. */
	created?: string;
	createdIn?: string;
	/** Once is enough: a fault of the answer itself leads to another one. */
	isDone?: boolean;
}

/** Adds the hooks; to be called behind all others that touch the answer. */
export function auditRequests(http: Http, parts: AuditRequestsParts): void {
	const { audit, now, events } = parts;
	const seen = new WeakMap<FastifyRequest, Seen>();
	const seenOf = (request: FastifyRequest): Seen => {
		let one = seen.get(request);
		if (!one) {
			one = {};
			seen.set(request, one);
		}
		return one;
	};
	const failed = (error: unknown, requestId?: string) => {
		events.happened("audit_failed");
		log.error(
			{ err: error, requestId },
			"a call could not be written into the audit trail",
		);
	};
	events.gauge(
		"audit_waiting",
		"audit rows that are not on disk yet",
		() => audit.waiting,
	);
	const append = (entry: AuditEntry) => audit.append(entry);
	const strangers = new RefusalFlood(ofAddress, {
		now,
		append,
		onFailure: failed,
	});
	const users = new RefusalFlood(ofUser, { now, append, onFailure: failed });
	http.addHook("onClose", async () => {
		await strangers[Symbol.asyncDispose]();
		await users[Symbol.asyncDispose]();
	});
	const isKept = (request: FastifyRequest, entry: AuditEntry): boolean => {
		if (entry.user_id === null)
			return strangers.admits(networkOf(request.ip), entry);
		return !isFruitless(request, entry) || users.admits(entry.user_id, entry);
	};

	http.addHook("onError", async (request, _reply, error) => {
		seenOf(request).error = asApiError(error);
	});

	http.addHook("preSerialization", async (request, reply, payload) => {
		if (isWrite(request) && reply.statusCode < 300) {
			const answer = payload as Record<string, unknown> | null;
			const one = seenOf(request);
			const name = createdIds.find((id) => isId(answer?.[id]));
			if (name) one.created = answer?.[name] as string;
			if (isId(answer?.app_id)) one.createdIn = answer.app_id;
		}
		return payload;
	});

	http.addHook("onSend", async (request, reply, payload) => {
		if (!isAudited(request, reply)) return payload;
		const one = seenOf(request);
		if (one.isDone) return payload;
		one.isDone = true;
		const entry = entryOf(request, reply, one, now());
		if (!isKept(request, entry)) return payload;
		try {
			await audit.append(entry);
			return payload;
		} catch (error) {
			failed(error, request.id);
			return answerInstead(request, reply, payload);
		}
	});
}

/**
 * Whether nothing was done, and no grant was needed to ask: somebody without rights could
 * do it all day. What a grant allowed is always kept, also where it then failed.
 */
function isFruitless(request: FastifyRequest, entry: AuditEntry): boolean {
	const { everyone = false } = request.routeOptions.config;
	return (
		entry.decision === "refused" ||
		(everyone && entry.status >= 400 && entry.status < 500)
	);
}

function isWrite(request: FastifyRequest): boolean {
	const { level, auditedAs } = request.routeOptions.config;
	switch (level) {
		case undefined:
			return auditedAs !== undefined;
		case "Write":
		case "Tagging":
		case "Permission_management":
			return true;
		case "List":
		case "Read":
			return false;
		default:
			return level satisfies never;
	}
}

function isAudited(request: FastifyRequest, reply: FastifyReply): boolean {
	const { statusCode } = reply;
	return statusCode === 401 || statusCode === 403 || isWrite(request);
}

function entryOf(
	request: FastifyRequest,
	reply: FastifyReply,
	{ error, created, createdIn }: Seen,
	now: Date,
): AuditEntry {
	const { audited = {}, scope } = request;
	const { action, auditedAs } = request.routeOptions.config;
	const caller = audited.caller ?? request.caller;
	const { params, path } = withoutSecret(request);
	const status = reply.statusCode;
	// 429: he was not even listened to.
	const isRefused = status === 401 || status === 403 || status === 429;
	const decision = scope?.rights.last;
	return {
		at: instant(now),
		request_id: request.id,
		account_id: caller?.accountId ?? null,
		user_id: caller?.userId ?? null,
		user_name: optional(caller?.userName),
		credential: audited.credential ?? request.provenBy ?? credentialOf(request),
		address: storable(request.ip, 64),
		method: request.method,
		path: storable(path, PATH_LIMIT),
		action: action ?? auditedAs ?? null,
		project_id: idIn(params.project_id),
		app_id:
			audited.appId ??
			idIn(params.app_id) ??
			scope?.rights.appId ??
			createdIn ??
			appIdIn(request.body) ??
			appIdIn(request.query),
		resource: optional(
			audited.resource ??
				(status < 300 ? created : undefined) ??
				named(params) ??
				resourceIdIn(request.body),
		),
		status,
		decision: isRefused ? "refused" : "allowed",
		reason: optional(
			isRefused
				? [error && reasonOf(error), decision && statementOf(decision)]
						.filter(Boolean)
						.join(" ")
				: decision && statementOf(decision),
		),
		error_code: error?.kind.code ?? null,
	};
}

function optional(text: string | undefined): string | null {
	return text ? storable(text, TEXT_LIMIT) : null;
}

/**
 * What the path names. Whoever puts his secret key where the access key belongs finds
 * neither in the trail.
 */
function withoutSecret(request: FastifyRequest): {
	params: Record<string, string>;
	path: string;
} {
	const params = (request.params ?? {}) as Record<string, string>;
	const [path = ""] = request.url.split("?", 1);
	const { access_key: accessKey, ...others } = params;
	if (accessKey === undefined || asAccessKey(accessKey) !== undefined)
		return { params, path };
	return {
		params: others,
		path: (request.routeOptions.url ?? "").replace(/:(\w+)/g, (name, param) => {
			const value = others[param];
			return value === undefined ? name : encodeURIComponent(value);
		}),
	};
}

/** The part of the path that names the thing itself: the last one. */
function named(params: Record<string, string>): string | undefined {
	const { project_id: _, "*": key, bucket_name: bucket, ...ids } = params;
	if (key !== undefined && bucket !== undefined) return `${bucket}/${key}`;
	return Object.values(ids).at(-1) ?? bucket;
}

/** What was only tried: the access key, or that it was a token. Never a secret. */
function credentialOf({ headers }: FastifyRequest): string | null {
	const proof = shownProof(headers);
	if (!proof) return null;
	return "token" in proof ? "token" : (asAccessKey(proof.accessKey) ?? null);
}

/** What the log says of a refused sign-in rather than what its caller is told. */
function reasonOf(error: ApiError): string {
	if (error.cause instanceof Refusal) return error.cause.message;
	return error.detail ?? error.sentence;
}

function statementOf({ because, statement }: Decision): string {
	if (!statement)
		return because === "no_statement" ? "no statement allows it" : "";
	const { policyName, sid, index } = statement;
	return `${because} by ${sid ?? `statement ${index}`} of ${policyName}`;
}

function isId(value: unknown): value is string {
	return typeof value === "string" && /^[A-Za-z0-9_-]{1,128}$/.test(value);
}

function idIn(value: unknown): string | null {
	return typeof value === "string" && ID.test(value) ? value : null;
}

function appIdIn(part: unknown): string | null {
	return typeof part === "object" && part !== null && "app_id" in part
		? idIn(part.app_id)
		: null;
}

function resourceIdIn(part: unknown): string | undefined {
	return typeof part === "object" &&
		part !== null &&
		"resource_id" in part &&
		isId(part.resource_id)
		? part.resource_id
		: undefined;
}

/** Headers that are the server's own and not of the answer that is held back. */
const standing =
	/^(x-request-id|cache-control|content-security-policy|referrer-policy|x-content-type-options|x-frame-options|strict-transport-security|access-control-.*|vary)$/;

/** Nothing of the answer leaves: what was done must not be acknowledged. */
function answerInstead(
	request: FastifyRequest,
	reply: FastifyReply,
	payload: unknown,
): string {
	if (
		typeof payload === "object" &&
		payload !== null &&
		"destroy" in payload &&
		typeof payload.destroy === "function"
	)
		payload.destroy();
	for (const name of Object.keys(reply.getHeaders()))
		if (!standing.test(name)) reply.removeHeader(name);
	const { status, body } = errorAnswer(
		new ApiError(errors.internal),
		request.url,
		request.id,
	);
	reply.code(status).header("content-type", "application/json");
	return JSON.stringify(body);
}
