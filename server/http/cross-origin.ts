/**
 * Web pages of other origins (CORS): none may read an answer unless OTARU_CORS_ORIGINS
 * lists its origin. Callers prove themselves in headers, never by a cookie, so credentials
 * of the browser are not asked for.
 */
import type { FastifyReply, FastifyRequest } from "fastify";

const PREFLIGHT_KEPT_SECONDS = 600;

/**
 * Says on the answer that this page may read it.
 *
 * @returns whether the request is a preflight, which is answered by this alone: browsers
 * send it without any proof of who is calling.
 */
export function crossOrigin(
	origins: readonly string[],
	{ headers, method }: FastifyRequest,
	{ raw }: FastifyReply,
): boolean {
	if (origins.length === 0) return false;
	// A cache must not show one origin what was said to another.
	raw.setHeader("vary", "Origin");
	const { origin } = headers;
	if (origin === undefined || !origins.includes(origin)) return false;
	// On the answer itself, since event streams are written past the framework.
	raw.setHeader("access-control-allow-origin", origin);
	raw.setHeader(
		"access-control-expose-headers",
		"X-Request-Id, X-Subject-Token, Retry-After, Content-Disposition",
	);
	if (
		method !== "OPTIONS" ||
		headers["access-control-request-method"] === undefined
	)
		return false;
	raw.setHeader("access-control-allow-methods", "GET, HEAD, POST, PUT, DELETE");
	const asked = headers["access-control-request-headers"];
	// SDKs sign what they like: which headers matter is known when the call comes.
	if (asked !== undefined && /^[\w!#$%&'*+.^`|~, -]{1,2048}$/.test(asked))
		raw.setHeader("access-control-allow-headers", asked);
	raw.setHeader("access-control-max-age", PREFLIGHT_KEPT_SECONDS);
	return true;
}
