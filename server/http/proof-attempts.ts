/**
 * What a request shows to prove who sends it, held against the limits of failed attempts
 * before anything is looked up, and the answer to whoever has failed too often.
 */
import type { IncomingHttpHeaders } from "node:http";
import type { FastifyReply, FastifyRequest } from "fastify";
import {
	readAuthorization,
	SignatureFault,
} from "../access/request-signature.ts";
import {
	type Proof,
	type ProofAttempt,
	type ProofLimits,
	SignInBlocked,
} from "../access/sign-in-limits.ts";
import { ApiError, errors } from "../errors.ts";
import type { Events } from "../events.ts";

/**
 * @returns undefined when the request shows nothing, which costs nothing to refuse.
 * @throws 401 APIGW.0301 with the vendor's text for it, and `Retry-After` on the answer.
 */
export function beginProof(
	limits: ProofLimits,
	request: FastifyRequest,
	reply: FastifyReply,
	events: Events,
): ProofAttempt | undefined {
	const proof = shownProof(request.headers);
	if (!proof) return undefined;
	try {
		return limits.begin(proof, request.ip);
	} catch (cause) {
		if (!(cause instanceof SignInBlocked)) throw cause;
		// Not a warning each: whoever caused them has been warned of.
		events.happened("sign_in_blocked", {}, { address: request.ip });
		reply.header("retry-after", cause.retryAfterSeconds);
		throw new ApiError(errors.unauthenticated, {
			detail: "AK access failed to reach the limit,forbidden",
			cause,
		});
	}
}

/**
 * What will be looked at, and nothing else that the headers may say; undefined when there
 * is nothing that could be right.
 */
export function shownProof(headers: IncomingHttpHeaders): Proof | undefined {
	if (isByToken(headers)) {
		const token = headers["x-auth-token"];
		return typeof token === "string" && token !== "" ? { token } : undefined;
	}
	try {
		const { accessKey } = readAuthorization(headers.authorization ?? "");
		return accessKey === "" ? undefined : { accessKey };
	} catch (error) {
		if (error instanceof SignatureFault) return undefined;
		throw error;
	}
}

/** A token, unless there is a signature: what a proxy adds is neither. */
export function isByToken(headers: IncomingHttpHeaders): boolean {
	const { authorization } = headers;
	if (authorization === undefined || authorization === "") return true;
	return (
		headers["x-auth-token"] !== undefined &&
		/^(basic|bearer|digest|negotiate)\b/i.test(authorization)
	);
}
