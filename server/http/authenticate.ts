/**
 * Who is calling, and may he? In the order that tells a stranger nothing: the headers
 * are judged before the body is read, the signature before anything is said about
 * project, permission or input.
 */
import { hash, type KeyObject } from "node:crypto";
import type {
	FastifyContextConfig,
	FastifyReply,
	FastifyRequest,
} from "fastify";
import { findKeyHolder, type SigningKeys } from "../access/access-keys.ts";
import { type Caller, findProject } from "../access/accounts.ts";
import { requireAction } from "../access/permissions.ts";
import {
	type RequestSignature,
	readSignature,
	SignatureFault,
	verifySignature,
} from "../access/request-signature.ts";
import { findTokenHolder } from "../access/tokens.ts";
import type { Config } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { ApiError, errors } from "../errors.ts";
import type { Events } from "../events.ts";
import { askForBody, hasBody, readBody } from "./read-body.ts";

export interface AuthenticateParts {
	config: Pick<Config, "http" | "regions" | "instanceId">;
	db: Db;
	keys: SigningKeys;
	now: Clock;
	events: Events;
}

type RouteConfig = FastifyContextConfig;

/** A refusal with status 401: `reason` goes into the log, `detail` to the caller. */
class Refusal extends Error {
	override name = "Refusal";
	readonly detail: string;
	readonly accessKey: string | undefined;

	constructor(reason: string, detail: string, accessKey?: string) {
		super(reason);
		this.detail = detail;
		this.accessKey = accessKey;
	}
}

const BAD_SIGNATURE = "verify aksk signature fail";
/** Whatever else the path holds is no project, and nothing to ask a store for. */
const PROJECT_ID = /^[A-Za-z0-9_-]{1,64}$/;
const EMPTY_SHA256 = hash("sha256", "");

/**
 * Proves the caller, sets `caller`, `scope` and `expectedSha256` of the request, and
 * checks project and action.
 *
 * @returns the body's bytes; none for a route that streams.
 * @throws 401 APIGW.0301, 403 IOTDA.000022, 413
 */
export async function authenticate(
	parts: AuthenticateParts,
	request: FastifyRequest,
	reply: FastifyReply,
	route: RouteConfig,
): Promise<Buffer | undefined> {
	let body: Buffer | undefined;
	let tokenProjectId: string | undefined;
	const readUnlessStreamed = async () => {
		if (route.streams) askForBody(request.raw, reply.raw);
		else
			body = await readBody(
				request.raw,
				reply.raw,
				parts.config.http.bodyLimitBytes,
			);
	};
	try {
		if (request.headers.authorization !== undefined) {
			const { caller, signature, key } = await signerOf(parts, request);
			const declaredHash = payloadHashOf(request);
			if (route.streams) {
				if (declaredHash === undefined && hasBody(request.raw))
					throw new Refusal(
						"an upload without X-Sdk-Content-Sha256",
						"an upload must carry X-Sdk-Content-Sha256, the hash of its body or UNSIGNED-PAYLOAD",
						signature.accessKey,
					);
				checkSignature(request, signature, key, declaredHash ?? EMPTY_SHA256);
				await readUnlessStreamed();
			} else {
				await readUnlessStreamed();
				const bodyHash = body?.length ? hash("sha256", body) : EMPTY_SHA256;
				if (
					declaredHash !== undefined &&
					declaredHash !== UNSIGNED &&
					declaredHash.toLowerCase() !== bodyHash
				)
					throw new Refusal(
						"X-Sdk-Content-Sha256 does not fit the body",
						BAD_SIGNATURE,
						signature.accessKey,
					);
				checkSignature(request, signature, key, declaredHash ?? bodyHash);
			}
			request.caller = caller;
		} else {
			const holder = await tokenHolderOf(parts, request);
			await readUnlessStreamed();
			request.caller = holder;
			tokenProjectId = holder.projectId ?? "";
		}
	} catch (error) {
		if (!(error instanceof Refusal)) throw error;
		parts.events.happened(
			"sign_in_refused",
			{},
			{
				reason: error.message,
				accessKey: error.accessKey,
				address: request.ip,
				requestId: request.id,
			},
			"warn",
		);
		throw new ApiError(errors.unauthenticated, { detail: error.detail });
	}
	const declared = payloadHashOf(request);
	request.expectedSha256 =
		declared === undefined || declared === UNSIGNED
			? undefined
			: declared.toLowerCase();
	await authorize(parts, request, route, tokenProjectId);
	return body;
}

const UNSIGNED = "UNSIGNED-PAYLOAD";

function payloadHashOf(request: FastifyRequest): string | undefined {
	const value = request.headers["x-sdk-content-sha256"];
	if (value === undefined) return undefined;
	if (
		typeof value !== "string" ||
		(value !== UNSIGNED && !/^[0-9a-fA-F]{64}$/.test(value))
	)
		throw new Refusal("X-Sdk-Content-Sha256 is malformed", BAD_SIGNATURE);
	return value;
}

async function signerOf(
	parts: AuthenticateParts,
	request: FastifyRequest,
): Promise<{ caller: Caller; signature: RequestSignature; key: KeyObject }> {
	let signature: RequestSignature;
	try {
		signature = readSignature(
			request.headers,
			parts.now(),
			parts.config.regions,
		);
	} catch (error) {
		if (!(error instanceof SignatureFault)) throw error;
		throw new Refusal(
			error.message,
			error.unsupported
				? "the algorithm is not supported, use SDK-HMAC-SHA256 or V11-HMAC-SHA256"
				: BAD_SIGNATURE,
		);
	}
	const holder = await findKeyHolder(parts.db, signature.accessKey);
	if (!holder)
		throw new Refusal(
			"unknown access key",
			BAD_SIGNATURE,
			signature.accessKey.slice(0, 64),
		);
	const { secretSealed, ...caller } = holder;
	return {
		caller,
		signature,
		key: parts.keys.get(secretSealed, signature.accessKey, signature.info),
	};
}

function checkSignature(
	request: FastifyRequest,
	signature: RequestSignature,
	key: KeyObject,
	payloadHash: string,
): void {
	const fits = verifySignature(
		{
			method: request.method,
			target: request.raw.url ?? "",
			headers: request.headers,
			payloadHash,
		},
		signature,
		key,
	);
	if (!fits)
		throw new Refusal(
			"the signature does not fit",
			BAD_SIGNATURE,
			signature.accessKey,
		);
}

async function tokenHolderOf(
	parts: AuthenticateParts,
	request: FastifyRequest,
): Promise<Caller & { projectId: string | undefined }> {
	const token = request.headers["x-auth-token"];
	if (typeof token !== "string" || token === "")
		throw new Refusal(
			"neither signature nor token",
			"the request has neither a signature nor X-Auth-Token",
		);
	const holder = await findTokenHolder(parts.db, token);
	if (!holder) throw new Refusal("unknown token", "decrypt token fail");
	if (holder.expiresAt <= parts.now())
		throw new Refusal("expired token", "The token must be updated");
	return holder;
}

/** @param tokenProjectId undefined for a signature, empty for a token of the whole account. */
async function authorize(
	parts: AuthenticateParts,
	request: FastifyRequest,
	route: RouteConfig,
	tokenProjectId: string | undefined,
): Promise<void> {
	const { caller, headers } = request;
	if (route.action === undefined)
		throw new Error(`${request.method} ${request.url} declares no action.`);
	const { instanceId } = parts.config;
	const projectId = (request.params as { project_id?: string }).project_id;
	if (projectId !== undefined) {
		if (
			(tokenProjectId !== undefined && tokenProjectId !== projectId) ||
			!PROJECT_ID.test(projectId) ||
			!(await findProject(parts.db, caller.accountId, projectId))
		)
			throw new ApiError(errors.forbidden, {
				detail: "(the project of the path is not the caller's)",
			});
		const named = headers["x-project-id"];
		if (named !== undefined && named !== projectId)
			throw new ApiError(errors.forbidden, {
				detail: "(X-Project-Id is not the project of the path)",
			});
	}
	const instance = headers["instance-id"];
	if (
		instanceId !== undefined &&
		instance !== undefined &&
		instance !== instanceId
	)
		throw new ApiError(errors.forbidden, {
			detail: "(Instance-Id is not the one of this server)",
		});
	request.scope = {
		accountId: caller.accountId,
		userId: caller.userId,
		userName: caller.userName,
		projectId: projectId ?? "",
		isAdministrator: caller.isAdministrator,
		action: route.action,
	};
	requireAction(request.scope, route.action);
}
