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
import {
	asAccessKey,
	findKeyHolder,
	type SigningKeys,
} from "../access/access-keys.ts";
import type { Caller } from "../access/accounts.ts";
import type { KeyUses } from "../access/key-uses.ts";
import { everything, requireAction } from "../access/permissions.ts";
import {
	type RequestSignature,
	readSignature,
	SignatureFault,
	verifySignature,
} from "../access/request-signature.ts";
import type { RightsKeeper } from "../access/rights.ts";
import type { ProofLimits } from "../access/sign-in-limits.ts";
import { findTokenHolder } from "../access/tokens.ts";
import type { Config } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import type { Events } from "../events.ts";
import { beginProof, isByToken } from "./proof-attempts.ts";
import { askForBody, hasBody, readBody } from "./read-body.ts";

export interface AuthenticateParts {
	config: Pick<Config, "http" | "regions" | "instanceId">;
	db: Db;
	keys: SigningKeys;
	rights: RightsKeeper;
	keyUses: KeyUses;
	proofLimits: ProofLimits;
	now: Clock;
	events: Events;
}

type RouteConfig = FastifyContextConfig;

declare module "fastify" {
	interface FastifyRequest {
		/** Set as `caller` is: the access key of the signature that fitted, or `token`. */
		provenBy?: string;
	}
}

/** A refusal with status 401: `reason` goes into the log, `detail` to the caller. */
export class Refusal extends Error {
	override name = "Refusal";
	readonly detail: string;
	readonly accessKey: string | undefined;
	/** Whether what was shown was found wrong, and not only malformed or over. */
	readonly isWrong: boolean;

	constructor(
		reason: string,
		detail: string,
		{ accessKey, isWrong }: { accessKey?: string; isWrong: boolean },
	) {
		super(reason);
		this.detail = detail;
		this.accessKey = accessKey;
		this.isWrong = isWrong;
	}
}

const UNSIGNED = "UNSIGNED-PAYLOAD";
const BAD_SIGNATURE = "verify aksk signature fail";
/** Whatever else the path holds is no project, and nothing to ask a store for. */
const PROJECT_ID = /^[A-Za-z0-9_-]{1,64}$/;
/** What is open to somebody who has yet to choose a password of his own. */
const OWN_AFFAIRS = "/otaru/v1/access/me";
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
	const { project_id: projectId } = request.params as { project_id?: string };
	const takeBody = async () => {
		if (!route.streams)
			return readBody(request.raw, reply.raw, parts.config.http.bodyLimitBytes);
		askForBody(request.raw, reply.raw);
		return undefined;
	};
	const attempt = beginProof(parts.proofLimits, request, reply, parts.events);
	let proven: Proven;
	try {
		proven = isByToken(request.headers)
			? await byToken(parts, request, projectId, takeBody)
			: await bySignature(parts, request, route, projectId, takeBody);
	} catch (error) {
		if (!(error instanceof Refusal)) throw error;
		if (error.isWrong) attempt?.failed();
		parts.events.happened(
			"sign_in_refused",
			{},
			{
				reason: error.message,
				accessKey: asAccessKey(error.accessKey),
				address: request.ip,
				requestId: request.id,
			},
			"warn",
		);
		throw new ApiError(errors.unauthenticated, {
			detail: error.detail,
			cause: error,
		});
	}
	attempt?.succeeded();
	request.caller = proven.caller;
	request.provenBy = proven.by;
	request.expectedSha256 =
		proven.declaredHash === UNSIGNED
			? undefined
			: proven.declaredHash?.toLowerCase();
	await authorize(parts, request, route, projectId, proven.hasProject);
	return proven.body;
}

interface Proven {
	caller: Caller;
	by: string;
	/** Whether the project of the path is the caller's, or the one his token is for. */
	hasProject: boolean;
	/** What `X-Sdk-Content-Sha256` says of the body. */
	declaredHash: string | undefined;
	body: Buffer | undefined;
}

async function byToken(
	parts: AuthenticateParts,
	request: FastifyRequest,
	projectId: string | undefined,
	takeBody: () => Promise<Buffer | undefined>,
): Promise<Proven> {
	const token = request.headers["x-auth-token"];
	if (typeof token !== "string" || token === "")
		throw new Refusal(
			"neither signature nor token",
			"the request has neither a signature nor X-Auth-Token",
			{ isWrong: false },
		);
	const holder = await findTokenHolder(parts.db, token);
	if (!holder)
		throw new Refusal("unknown token", "decrypt token fail", { isWrong: true });
	if (holder.expiresAt <= parts.now())
		throw new Refusal("expired token", "The token must be updated", {
			isWrong: false,
		});
	const declaredHash = declaredHashOf(request);
	if (declaredHash === "malformed")
		throw invalidInput(
			"X-Sdk-Content-Sha256",
			"must be 64 hexadecimal digits or UNSIGNED-PAYLOAD",
		);
	return {
		caller: holder,
		by: "token",
		hasProject: holder.project?.projectId === projectId,
		declaredHash,
		body: await takeBody(),
	};
}

async function bySignature(
	parts: AuthenticateParts,
	request: FastifyRequest,
	route: RouteConfig,
	projectId: string | undefined,
	takeBody: () => Promise<Buffer | undefined>,
): Promise<Proven> {
	const { caller, hasProject, signature, key } = await signerOf(
		parts,
		request,
		projectId,
	);
	const fail = (reason: string, detail = BAD_SIGNATURE): never => {
		const { accessKey } = signature;
		throw new Refusal(reason, detail, { accessKey, isWrong: true });
	};
	const check = (...payloadHashes: string[]) => {
		const { method, headers, raw } = request;
		const fits = payloadHashes.some((payloadHash) =>
			verifySignature(
				{ method, target: raw.url ?? "", headers, payloadHash },
				signature,
				key,
			),
		);
		if (!fits) fail("the signature does not fit");
	};
	const declaredHash = declaredHashOf(request);
	if (declaredHash === "malformed") fail("X-Sdk-Content-Sha256 is malformed");
	const proven = { caller, by: signature.accessKey, hasProject, declaredHash };
	// The Python SDK declares UNSIGNED-PAYLOAD for a call of another content type without
	// a body, and signs the hash of nothing all the same.
	const checkDeclared = (isEmpty: boolean, bodyHash: string) =>
		declaredHash === UNSIGNED && isEmpty
			? check(UNSIGNED, EMPTY_SHA256)
			: check(declaredHash ?? bodyHash);
	if (route.streams) {
		if (declaredHash === undefined && hasBody(request.raw))
			// The signature covers the hash, which would be known only after the upload.
			throw invalidInput(
				"X-Sdk-Content-Sha256",
				"must be given with an upload: the SHA-256 of its body, or UNSIGNED-PAYLOAD",
			);
		checkDeclared(!hasBody(request.raw), EMPTY_SHA256);
		parts.keyUses.note(signature.accessKey);
		return { ...proven, body: await takeBody() };
	}
	const body = await takeBody();
	const bodyHash = body?.length ? hash("sha256", body) : EMPTY_SHA256;
	if (
		declaredHash !== undefined &&
		declaredHash !== UNSIGNED &&
		declaredHash.toLowerCase() !== bodyHash
	)
		fail("X-Sdk-Content-Sha256 does not fit the body");
	checkDeclared(!body?.length, bodyHash);
	parts.keyUses.note(signature.accessKey);
	return { ...proven, body };
}

/** As sent, since it is part of what is signed. */
function declaredHashOf(request: FastifyRequest): string | undefined {
	const value = request.headers["x-sdk-content-sha256"];
	if (value === undefined) return undefined;
	return typeof value === "string" &&
		(value === UNSIGNED || /^[0-9a-fA-F]{64}$/.test(value))
		? value
		: "malformed";
}

async function signerOf(
	parts: AuthenticateParts,
	request: FastifyRequest,
	projectId: string | undefined,
): Promise<{
	caller: Caller;
	hasProject: boolean;
	signature: RequestSignature;
	key: KeyObject;
}> {
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
			{ isWrong: false },
		);
	}
	const holder = await findKeyHolder(
		parts.db,
		signature.accessKey,
		projectId !== undefined && PROJECT_ID.test(projectId)
			? projectId
			: undefined,
	);
	if (!holder)
		throw new Refusal("unknown access key", BAD_SIGNATURE, {
			accessKey: signature.accessKey.slice(0, 64),
			isWrong: true,
		});
	const { secretSealed, hasProject, ...caller } = holder;
	return {
		caller,
		hasProject,
		signature,
		key: parts.keys.get(secretSealed, signature.accessKey, signature.info),
	};
}

/** @param hasProject whether the project of the path, if there is one, is the caller's. */
async function authorize(
	parts: AuthenticateParts,
	request: FastifyRequest,
	route: RouteConfig,
	projectId: string | undefined,
	hasProject: boolean,
): Promise<void> {
	const { caller, headers } = request;
	if (route.action === undefined || route.level === undefined)
		throw new Error(
			`${request.method} ${request.url} declares no action and level.`,
		);
	const { instanceId } = parts.config;
	if (projectId !== undefined) {
		if (!hasProject)
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
		level: route.level,
		rights: caller.isAdministrator
			? everything()
			: await parts.rights.rightsOf(
					caller,
					caller.accessVersion,
					projectId ?? "",
					{
						userName: caller.userName,
						userId: caller.userId,
						accountName: caller.accountName,
						sourceIp: request.ip,
						now: parts.now(),
						secureTransport: request.protocol === "https",
					},
				),
		// They are in the body, which is not read as JSON yet.
		...(route.level === "Tagging" && { requestTags: "unknown" }),
	};
	if (
		caller.mustChangePassword &&
		!request.routeOptions.url?.startsWith(OWN_AFFAIRS)
	)
		throw new ApiError(errors.passwordMustChange);
	if (route.administratorsOnly && !caller.isAdministrator)
		throw new ApiError(errors.forbidden, {
			detail: "(only for administrators)",
		});
	if (!route.everyone) requireAction(request.scope, route.concerns ?? "any");
}
