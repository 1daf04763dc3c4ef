/**
 * Scope: the caller, the project, what he may do. Every operator's function takes
 * one, so a query without a project cannot be written by mistake.
 */
import { ApiError, errors } from "../errors.ts";

export type AccessLevel = "List" | "Read" | "Write" | "Tagging";
/** `service:type:operation`, such as `iotda:otamodules:create`. */
export type Action = `${string}:${string}:${string}`;

export interface Scope {
	accountId: string;
	userId: string;
	userName: string;
	/** Empty for calls that concern no project, such as the list of projects. */
	projectId: string;
	isAdministrator: boolean;
	/** The action of the route being served. */
	action: Action;
}

/**
 * The one place where an action is allowed or refused. The account's administrator
 * may do everything; nobody else can sign in yet.
 *
 * @param appId the resource space concerned; absent: is the action allowed for any
 * space at all?
 * @throws 403 IOTDA.000022
 */
export function requireAction(
	scope: Scope,
	action: Action,
	_appId?: string,
): void {
	if (!scope.isAdministrator) {
		throw new ApiError(errors.forbidden, { detail: `(${action})` });
	}
}

/** Whether lists show the objects of this space to the caller. */
export function maySee(scope: Scope, _appId: string): boolean {
	return scope.isAdministrator;
}
