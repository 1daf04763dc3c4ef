/** What the server would decide if a user asked for something. */
import { isIP } from "node:net";
import type {
	AccessSimulation,
	SimulateAccess,
} from "../../wire/access-simulation.ts";
import { parseWireTime } from "../../wire/envelope.ts";
import type { Db } from "../database/database.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import type { Decision } from "../policy-language/policy-decision.ts";
import { readAccessVersion } from "./access-version.ts";
import { listProjects } from "./accounts.ts";
import type { AccessLevel, Action, Scope } from "./permissions.ts";
import type { RightsKeeper } from "./rights.ts";
import { heedsDenials } from "./user-access-keys.ts";

/** What the routes of this server declare about their actions. */
export interface KnownAction {
	level: AccessLevel;
	concerns: "instance" | undefined;
	everyone: boolean;
	administratorsOnly: boolean;
	/** Whether its calls are made in a project; the others are the whole account's. */
	inProject: boolean;
}

/** @throws 400 IOTDA.000006 naming the field */
export async function simulateAccess(
	db: Db,
	scope: Scope,
	parts: {
		rights: RightsKeeper;
		actions: ReadonlyMap<Action, KnownAction>;
		/** Of the caller. */
		address: string;
		secureTransport: boolean;
		now: Date;
	},
	input: SimulateAccess,
): Promise<AccessSimulation> {
	const { user_id, user_name, app_id } = input;
	const action = parts.actions.get(input.action as Action);
	if (!action) throw invalidInput("action", "must be an action of this server");
	const asked = { action: input.action as Action, level: action.level };
	if ((user_id === undefined) === (user_name === undefined))
		throw invalidInput("user_id", "or user_name must be given, and not both");
	const at = input.at === undefined ? parts.now : parseWireTime(input.at);
	if (!at)
		throw new ApiError(errors.invalidTime, {
			detail: "at must be a time such as 20260129T080000Z.",
		});
	const sourceIp = input.source_ip ?? parts.address;
	if (isIP(sourceIp) === 0)
		throw invalidInput("source_ip", "must be an IPv4 or IPv6 address");
	const requestTags = readTags(input.request_tags);
	const version = await readAccessVersion(db);
	const user = await findUser(db, scope.accountId, input);
	if (!user.enabled) return { allowed: false, because: "disabled" };
	if (user.isAdministrator) return { allowed: true, because: "account" };
	const projectIds = await readProjects(db, scope.accountId, input);
	if (action.administratorsOnly)
		return { allowed: false, because: "administrators_only" };
	const isFree = action.everyone && !heedsDenials(asked);
	if (isFree) return { allowed: true, because: "allowed" };
	const context = {
		userName: user.userName,
		userId: user.userId,
		accountName: user.accountName,
		sourceIp,
		now: at,
		secureTransport: input.secure_transport ?? parts.secureTransport,
	};
	const concern = action.everyone
		? "instance"
		: (action.concerns ?? (app_id === undefined ? "any" : { appId: app_id }));
	let decision: Decision | undefined;
	for (const projectId of action.inProject ? projectIds : [""]) {
		const rights = await parts.rights.rightsOf(
			user,
			version,
			projectId,
			context,
		);
		decision = rights.decide(
			input.action,
			action.level,
			concern,
			requestTags ?? "unknown",
		);
		if (decision.allowed) break;
	}
	// It needs no grant: only a Deny counts.
	if (action.everyone && decision?.because !== "denied")
		return { allowed: true, because: "allowed" };
	return toWire(decision ?? { allowed: false, because: "no_statement" });
}

async function findUser(
	db: Db,
	accountId: string,
	{ user_id, user_name }: Pick<SimulateAccess, "user_id" | "user_name">,
) {
	const row = await db
		.selectFrom("users")
		.innerJoin("accounts", "accounts.account_id", "users.account_id")
		.select([
			"users.user_id as userId",
			"users.name as userName",
			"users.account_id as accountId",
			"accounts.name as accountName",
			"users.is_administrator",
			"users.enabled",
		])
		.where("users.account_id", "=", accountId)
		.where((eb) =>
			user_id === undefined
				? eb("users.name", "=", user_name ?? "")
				: eb("users.user_id", "=", user_id),
		)
		.executeTakeFirst();
	if (!row)
		throw invalidInput(
			user_id === undefined ? "user_name" : "user_id",
			"must name a user of the account",
		);
	const { is_administrator, enabled, ...user } = row;
	return {
		...user,
		isAdministrator: is_administrator === 1,
		enabled: enabled === 1,
	};
}

/** The project named, that of the resource space named, or all of the account. */
async function readProjects(
	db: Db,
	accountId: string,
	{ project_id, app_id }: Pick<SimulateAccess, "project_id" | "app_id">,
): Promise<string[]> {
	const projects = (await listProjects(db, accountId))
		.map(({ projectId }) => projectId)
		.filter((id) => project_id === undefined || id === project_id);
	if (projects.length === 0)
		throw invalidInput("project_id", "must name a project of the account");
	if (app_id === undefined) return projects;
	const space = await db
		.selectFrom("resource_spaces")
		.select("project_id")
		.where("app_id", "=", app_id)
		.where("project_id", "in", projects)
		.executeTakeFirst();
	if (!space)
		throw invalidInput(
			"app_id",
			project_id === undefined
				? "must name a resource space of the account"
				: "must name a resource space of the project",
		);
	return [space.project_id];
}

function readTags(
	tags: Record<string, unknown> | undefined,
): Record<string, string> | undefined {
	for (const [key, value] of Object.entries(tags ?? {}))
		if (typeof value !== "string")
			throw invalidInput(`request_tags.${key}`, "must be text");
	return tags as Record<string, string> | undefined;
}

function toWire({ allowed, because, statement }: Decision): AccessSimulation {
	return {
		allowed,
		because,
		...(statement && {
			statement: {
				policy_id: statement.policyId,
				policy_name: statement.policyName,
				index: statement.index,
				...(statement.sid !== undefined && { sid: statement.sid }),
				...(statement.grantId !== undefined && {
					grant_id: statement.grantId,
				}),
			},
		}),
	};
}
