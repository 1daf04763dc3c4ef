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
import type { DocumentedHeaders } from "../../wire/headers.ts";
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
	/** What the API's own description says of a route beside its schemas. */
	interface FastifySchema {
		/** The vendor's name of the operation where it has one; every route that is not hidden has one. */
		operationId?: string;
		summary?: string;
		description?: string;
		tags?: readonly string[];
		/** Left out of the description. */
		hide?: boolean;
		/** Media types of a request body that is no JSON. */
		consumes?: readonly string[];
		/** By status: media types of an answer that is no JSON. */
		produces?: Readonly<Record<number, readonly string[]>>;
		/** Statuses of refusals beyond those that every route of its kind may answer with. */
		failures?: readonly number[];
		/** Headers of the request that mean something to this route; checked by its handler. */
		requestHeaders?: DocumentedHeaders;
		/** By status: headers of the answer beside those that every answer has. */
		answerHeaders?: Readonly<Record<number, DocumentedHeaders>>;
	}
	interface FastifyContextConfig {
		/** Absent only on routes that are open to everyone, which say `open: true`. */
		action?: Action;
		level?: AccessLevel;
		open?: boolean;
		/** Absent: resource spaces, which the handler asks about one by one. */
		concerns?: "instance";
		/** No grant is enough. */
		administratorsOnly?: boolean;
		/** Whoever is signed in may call it, without a grant. */
		everyone?: boolean;
		/** Of a route that is open: the action under which the audit trail keeps its calls. */
		auditedAs?: Action;
		/** The handler reads the request as a stream; the body is neither read nor parsed before. */
		streams?: boolean;
	}
	interface FastifyRequest {
		/** What the audit trail should say where the request does not show it; set by handlers. */
		audited?: {
			/** Who it was, on a route that is open. */
			caller?: Pick<Caller, "accountId" | "userId" | "userName">;
			/** How he proved it, or tried to; never a secret. */
			credential?: string;
			appId?: string;
			/** The id of the thing concerned. */
			resource?: string;
		};
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
