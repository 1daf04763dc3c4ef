/**
 * What each caller may do, remembered between requests. Whatever it depends on raises
 * the number in `access_version`, which is read with the caller of every request: what
 * is remembered under another number is read again, on every process, at once.
 */
import type { Selectable } from "kysely";
import type { Config } from "../config.ts";
import type { Db } from "../database/database.ts";
import type { GrantRow } from "../database/tables.ts";
import {
	type CompiledGrants,
	compileGrants,
	type Decision,
	decide,
	type GrantedPolicy,
	type Question,
	type SpaceFacts,
} from "../policy-language/policy-decision.ts";
import { PolicyFault, readPolicy } from "../policy-language/policy-document.ts";
import { systemPolicies } from "../policy-language/system-policies.ts";
import { accessVersion, readAccessVersion } from "./access-version.ts";
import { type Caller, grantedTo } from "./accounts.ts";
import {
	type AccessLevel,
	type Concern,
	everything,
	type RequestTags,
	type Rights,
	type Scope,
} from "./permissions.ts";

const KEPT_USERS = 10_000;
const KEPT_PROJECTS = 1_000;
const KEPT_SCOPE_MS = 1_000;
/** Enterprise project of whatever was assigned to no other. */
export const DEFAULT_ENTERPRISE_PROJECT = "0";

export type RightsConfig = Pick<Config, "regions" | "instanceId">;
/** The circumstances of a request. */
export type Circumstances = Question["context"];
/** What of them stays true when the request is over. */
export type KeptCircumstances = Pick<
	Circumstances,
	"sourceIp" | "secureTransport"
>;
type KeptScope = Pick<
	Scope,
	"accountId" | "userId" | "userName" | "projectId" | "action" | "level"
> &
	// Calls that an older version accepted have none.
	Partial<KeptCircumstances>;
type Spaces = ReadonlyMap<string, SpaceFacts>;

interface Remembered<T> {
	version: number;
	value: Promise<T>;
}

/**
 * Who asked for what, and from where, as text: for work that goes on after his call.
 * What he may do is not kept, so what is taken from him meanwhile counts.
 */
export function keepScope(
	{ accountId, userId, userName, projectId, action, level }: Scope,
	{ sourceIp, secureTransport }: KeptCircumstances,
): string {
	const kept: KeptScope = {
		accountId,
		userId,
		userName,
		projectId,
		action,
		level,
		sourceIp,
		secureTransport,
	};
	return JSON.stringify(kept);
}

export class RightsKeeper {
	readonly #db: Db;
	readonly #config: RightsConfig;
	readonly #grants = new Map<string, Remembered<CompiledGrants>>();
	readonly #spaces = new Map<string, Remembered<Spaces>>();
	#lastKept:
		| { text: string; version: number; at: number; scope: Scope }
		| undefined;

	constructor(db: Db, config: RightsConfig) {
		this.#db = db;
		this.#config = config;
	}

	/**
	 * @param version the number in `access_version`, read before or together with the caller
	 * @param projectId empty for a call that concerns no project
	 */
	async rightsOf(
		user: Pick<Caller, "accountId" | "userId">,
		version: number,
		projectId: string,
		context: Circumstances,
	): Promise<Rights> {
		const [grants, spaces] = await Promise.all([
			remembered(this.#grants, KEPT_USERS, user.userId, version, () =>
				this.#readGrants(user),
			),
			remembered(this.#spaces, KEPT_PROJECTS, projectId, version, () =>
				this.#readSpaces(projectId),
			),
		]);
		const { regions, instanceId } = this.#config;
		return new GrantedRights(grants, spaces, {
			projectId,
			accountId: user.accountId,
			region: regions[0] ?? "",
			instanceId: instanceId ?? "",
			instanceEnterpriseProjectId: DEFAULT_ENTERPRISE_PROJECT,
			context,
		});
	}

	/**
	 * The scope of somebody whose call was accepted earlier, with the rights he has by now:
	 * none if he is disabled or gone. Conditions on the address and the like are judged by
	 * the call that he made.
	 *
	 * @param text what `keepScope` wrote
	 */
	async keptScope(text: string, now: Date): Promise<Scope> {
		// An import asks for each of thousands of batches: read anew when anything changed,
		// and for conditions on the time once a second.
		const version = await readAccessVersion(this.#db);
		const last = this.#lastKept;
		if (
			last?.text === text &&
			last.version === version &&
			Math.abs(now.getTime() - last.at) < KEPT_SCOPE_MS
		)
			return last.scope;
		const scope = await this.#readKeptScope(text, now);
		this.#lastKept = { text, version, at: now.getTime(), scope };
		return scope;
	}

	async #readKeptScope(text: string, now: Date): Promise<Scope> {
		const kept = JSON.parse(text) as KeptScope;
		const { accountId, userId, projectId, action, level } = kept;
		const user = await this.#db
			.selectFrom("users")
			.innerJoin("accounts", "accounts.account_id", "users.account_id")
			.select([
				"users.name as userName",
				"users.is_administrator",
				"accounts.name as accountName",
				accessVersion,
			])
			.where("users.user_id", "=", userId)
			.where("users.account_id", "=", accountId)
			.where("users.enabled", "=", 1)
			.executeTakeFirst();
		const isAdministrator = user?.is_administrator === 1;
		const userName = user?.userName ?? kept.userName;
		return {
			accountId,
			userId,
			userName,
			projectId,
			isAdministrator,
			action,
			level,
			rights: !user
				? nothing()
				: isAdministrator
					? everything()
					: await this.rightsOf(kept, user.accessVersion, projectId, {
							userName,
							userId,
							accountName: user.accountName,
							sourceIp: kept.sourceIp ?? "",
							now,
							secureTransport: kept.secureTransport ?? false,
						}),
		};
	}

	async #readGrants(
		user: Pick<Caller, "accountId" | "userId">,
	): Promise<CompiledGrants> {
		const rows = await this.#db
			.selectFrom("grants")
			.leftJoin("policies", "policies.policy_id", "grants.policy_id")
			.select([
				"grants.grant_id",
				"grants.policy_id",
				"grants.scope_type",
				"grants.scope_id",
				"policies.name",
				"policies.document",
			])
			.where(grantedTo(user))
			.orderBy("grants.record_id")
			.execute();
		return compileGrants(
			rows.map(({ grant_id, policy_id, name, document, ...scope }) => ({
				grantId: grant_id,
				policyId: policy_id,
				within: withinOf(scope),
				...readGranted(policy_id, name, document),
			})),
		);
	}

	async #readSpaces(projectId: string): Promise<Spaces> {
		if (projectId === "") return new Map();
		const rows = await this.#db
			.selectFrom("resource_spaces")
			.select(["app_id", "enterprise_project_id", "tags"])
			.where("project_id", "=", projectId)
			.execute();
		return new Map(
			rows.map(({ app_id, enterprise_project_id, tags }) => [
				app_id,
				{
					appId: app_id,
					enterpriseProjectId: enterprise_project_id,
					tags: JSON.parse(tags) as Record<string, string>,
				},
			]),
		);
	}
}

function readGranted(
	policyId: string,
	name: string | null,
	document: string | null,
): Pick<GrantedPolicy, "policyName" | "document"> {
	const system = systemPolicies.find((policy) => policy.policyId === policyId);
	if (system) return { policyName: system.name, document: system };
	try {
		return {
			policyName: name ?? policyId,
			document: readPolicy(JSON.parse(document ?? "null")),
		};
	} catch (error) {
		// It was checked when it was saved. To leave it out could mean to leave out a Deny.
		if (error instanceof PolicyFault || error instanceof SyntaxError)
			throw new Error(`The policy ${policyId} in the store cannot be read.`, {
				cause: error,
			});
		throw error;
	}
}

function withinOf(
	scope: Pick<Selectable<GrantRow>, "scope_type" | "scope_id">,
): GrantedPolicy["within"] {
	switch (scope.scope_type) {
		case "all":
			return { kind: "all" };
		case "project":
			return { kind: "project", projectId: scope.scope_id };
		case "enterprise_project":
			return {
				kind: "enterprise_project",
				enterpriseProjectId: scope.scope_id,
			};
		default:
			return scope.scope_type satisfies never;
	}
}

class GrantedRights implements Rights {
	readonly #grants: CompiledGrants;
	readonly #spaces: Spaces;
	readonly #about: Omit<Question, "action" | "level" | "space">;
	last: Decision | undefined;
	appId?: string;

	constructor(
		grants: CompiledGrants,
		spaces: Spaces,
		about: Omit<Question, "action" | "level" | "space">,
	) {
		this.#grants = grants;
		this.#spaces = spaces;
		this.#about = about;
	}

	decide(
		action: string,
		level: AccessLevel,
		concern: Concern,
		requestTags?: RequestTags,
	): Decision {
		const about = this.#about;
		this.last = decide(this.#grants, {
			...about,
			action,
			level,
			space: typeof concern === "string" ? concern : this.#factsOf(concern),
			context:
				requestTags === undefined
					? about.context
					: { ...about.context, requestTags },
		});
		return this.last;
	}

	#factsOf({ appId, as }: Exclude<Concern, string>): SpaceFacts | "missing" {
		const facts = this.#spaces.get(appId);
		return facts ? { ...facts, ...as } : "missing";
	}
}

/** Of somebody who is disabled or gone. */
function nothing(): Rights {
	return {
		decide: () => ({ allowed: false, because: "no_statement" }),
		last: undefined,
	};
}

/** Read once for all who ask at a time; a failure is not remembered. */
function remembered<T>(
	map: Map<string, Remembered<T>>,
	kept: number,
	key: string,
	version: number,
	read: () => Promise<T>,
): Promise<T> {
	const found = map.get(key);
	if (found?.version === version) return found.value;
	const value = read();
	const entry = { version, value };
	map.delete(key);
	map.set(key, entry);
	value.catch(() => {
		if (map.get(key) === entry) map.delete(key);
	});
	if (map.size > kept) {
		// Maps keep insertion order: the oldest goes.
		for (const oldest of map.keys()) {
			map.delete(oldest);
			break;
		}
	}
	return value;
}
