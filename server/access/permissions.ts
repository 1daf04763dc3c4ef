/**
 * Scope: the caller, the project, what he may do. Every operator's function takes
 * one, so a query without a project cannot be written by mistake, and permissions are
 * asked of it and of nothing else.
 */
import { ApiError, errors } from "../errors.ts";
import type {
	AccessLevel,
	Decision,
	SpaceFacts,
} from "../policy-language/policy-decision.ts";

export type { AccessLevel };
/** `service:type:operation`, such as `iotda:otamodules:create`. */
export type Action = `${string}:${string}:${string}`;

export interface Scope {
	accountId: string;
	userId: string;
	userName: string;
	/** Empty for calls that concern no project, such as the list of projects. */
	projectId: string;
	isAdministrator: boolean;
	/** Of the route being served. */
	action: Action;
	level: AccessLevel;
	rights: Rights;
	/** The tags that the request would bind, for policies that ask for them. */
	requestTags?: RequestTags;
}

export type RequestTags = Readonly<Record<string, string>> | "unknown";

/** What a decision is about: one resource space, none, or one that is not known yet. */
export type Concern =
	| {
			appId: string;
			/** As it would be after the call. */
			as?: Partial<Pick<SpaceFacts, "enterpriseProjectId" | "tags">>;
	  }
	| "instance"
	| "any";

/** What the grants of a caller come to, in the circumstances of one request. */
export interface Rights {
	decide(
		action: string,
		level: AccessLevel,
		concern: Concern,
		requestTags?: RequestTags,
	): Decision;
	/** The last decision that was asked for: what the audit trail tells of a call. */
	last: Decision | undefined;
	/** The resource space that the call turned out to be about, for the audit trail too. */
	appId?: string;
}

/** Of the account itself, which may call everything. */
export function everything(): Rights {
	return {
		decide: () => ({ allowed: true, because: "allowed" }),
		last: undefined,
	};
}

/**
 * The one place where an action is refused.
 *
 * @param concern the resource space that the request names or that its object lies in
 * @throws 403 IOTDA.000022
 */
export function requireAction(scope: Scope, concern: Concern): void {
	if (typeof concern !== "string") scope.rights.appId = concern.appId;
	if (!mayDo(scope, concern))
		throw new ApiError(errors.forbidden, { detail: `(${scope.action})` });
}

function mayDo(scope: Scope, concern: Concern): boolean {
	const { action, level, rights, requestTags } = scope;
	return rights.decide(action, level, concern, requestTags).allowed;
}

/** Whether he may do something else as well to what the call is about. */
export function mayAlso(
	{ rights }: Scope,
	action: Action,
	level: AccessLevel,
	concern: Concern,
): boolean {
	const { last } = rights;
	const { allowed } = rights.decide(action, level, concern);
	rights.last = last;
	return allowed;
}

/** Whether lists and streams show the objects of this space to the caller. */
export function maySee(scope: Scope, appId: string): boolean {
	return mayDo(scope, { appId });
}

/**
 * Whether an object that was found by its own id is there for the caller: he may do to it
 * what he asks for, or may at least look at such objects of its space.
 *
 * @throws 403 IOTDA.000022 when he sees it but may not do this
 */
export function admits(scope: Scope, appId: string): boolean {
	scope.rights.appId = appId;
	if (mayDo(scope, { appId })) return true;
	const { action, rights } = scope;
	const query = action.replace(/[^:]*$/, "query");
	if (!rights.decide(query, "Read", { appId }).allowed) return false;
	throw new ApiError(errors.forbidden, { detail: `(${action})` });
}
