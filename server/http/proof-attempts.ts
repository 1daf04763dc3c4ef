/**
 * What a request shows to prove who sends it, held against the limits of failed attempts
 * before anything is looked up, and the answer to whoever has failed too often.
 */
import type { FastifyReply, FastifyRequest } from "fastify";
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
	const proof = proofOf(request);
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

/** Whether it is well-formed is found out later; a name is all that is needed here. */
function proofOf({ headers }: FastifyRequest): Proof | undefined {
	const accessKey = /(?:Access|Credential)=([^,/\s]+)/.exec(
		headers.authorization ?? "",
	)?.[1];
	if (accessKey !== undefined) return { accessKey };
	const token = headers["x-auth-token"];
	return typeof token === "string" && token !== "" ? { token } : undefined;
}
