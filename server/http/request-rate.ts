/**
 * How many calls a project may make in a second: a bucket of tokens for each, which holds
 * as many as come back in a second. Each process counts by itself.
 */
import type { FastifyReply } from "fastify";
import { ApiError, errors } from "../errors.ts";

interface Bucket {
	tokens: number;
	/** When they were counted last, in milliseconds of the monotonic clock. */
	atMs: number;
}

export class RequestRates {
	readonly #perSecond: number;
	readonly #nowMs: () => number;
	/** Only of callers who are who they say: as many as there are projects and accounts. */
	readonly #buckets = new Map<string, Bucket>();

	/** @param perSecond 0: no limit. */
	constructor(perSecond: number, nowMs = () => performance.now()) {
		this.#perSecond = perSecond;
		this.#nowMs = nowMs;
	}

	/**
	 * One call of a project; of the account, when it is about no project.
	 *
	 * @throws 429 APIGW.0308, with `Retry-After` on the answer.
	 */
	take(
		{ projectId, accountId }: { projectId: string; accountId: string },
		reply: Pick<FastifyReply, "header">,
	): void {
		if (this.#perSecond === 0) return;
		const waitMs = this.#take(projectId || accountId);
		if (waitMs === 0) return;
		reply.header("retry-after", Math.ceil(waitMs / 1000));
		throw new ApiError(errors.tooManyRequests, {
			detail: `policy project over ratelimit,limit:${this.#perSecond},time:1 second`,
		});
	}

	/** @returns how long until there is a token; 0: this one was there. */
	#take(key: string): number {
		const nowMs = this.#nowMs();
		const full = this.#perSecond;
		const bucket = this.#buckets.get(key) ?? { tokens: full, atMs: nowMs };
		const earned = ((nowMs - bucket.atMs) * full) / 1000;
		bucket.tokens = Math.min(full, bucket.tokens + earned);
		bucket.atMs = nowMs;
		this.#buckets.set(key, bucket);
		if (bucket.tokens < 1) return ((1 - bucket.tokens) * 1000) / full;
		bucket.tokens--;
		return 0;
	}
}
