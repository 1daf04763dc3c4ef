/**
 * What a route is: the Fastify instance every `routes.ts` gets, and what each route
 * declares about itself so that permissions are decided in one place.
 */
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import type {
	FastifyBaseLogger,
	FastifyInstance,
	RawReplyDefaultExpression,
	RawRequestDefaultExpression,
	RawServerDefault,
} from "fastify";
import type { Caller } from "./accounts.ts";
import type { AccessLevel, Action, Scope } from "./permissions.ts";

export type Http = FastifyInstance<
	RawServerDefault,
	RawRequestDefaultExpression<RawServerDefault>,
	RawReplyDefaultExpression<RawServerDefault>,
	FastifyBaseLogger,
	TypeBoxTypeProvider
>;

declare module "fastify" {
	interface FastifyContextConfig {
		/** Absent only on routes that are open to everyone, which say `open: true`. */
		action?: Action;
		level?: AccessLevel;
		open?: boolean;
		/** The handler reads the request as a stream; the body is neither read nor parsed before. */
		streams?: boolean;
	}
	interface FastifyRequest {
		/** Set before any handler of a route that is not open. */
		scope: Scope;
		/** Who signed the request, with the names that the scope leaves out; set as `scope` is. */
		caller: Caller;
		/**
		 * On a route that `streams`: the SHA-256 in lower-case hex that the signature vouches
		 * for. The handler compares it before anything appears. Undefined: the signer left the
		 * body out.
		 */
		expectedSha256: string | undefined;
	}
}
