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
import { findProject, listProjects } from "./accounts.ts";
import type { AccessLevel, Action, Scope } from "./permissions.ts";
import type { RightsKeeper } from "./rights.ts";

/** What the routes of this server declare about their actions. */
export interface KnownAction {
	level: AccessLevel;
	concerns: "instance" | undefined;
	everyone: boolean;
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
		now: Date;
	},
	input: SimulateAccess,
): Promise<AccessSimulation> {
	const { user_id, user_name, app_id } = input;
	const action = parts.actions.get(input.action as Action);
	if (!action) throw invalidInput("action", "must be an action of this server");
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
	if (action.everyone) return { allowed: true, because: "allowed" };
	const projectId = await readProject(db, scope.accountId, input);
	const rights = await parts.rights.rightsOf(user, version, projectId, {
		userName: user.userName,
		userId: user.userId,
		accountName: user.accountName,
		sourceIp,
		now: at,
		secureTransport: true,
	});
	return toWire(
		rights.decide(
			input.action,
			action.level,
			app_id === undefined ? (action.concerns ?? "any") : { appId: app_id },
			requestTags,
		),
	);
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

async function readProject(
	db: Db,
	accountId: string,
	{ project_id }: Pick<SimulateAccess, "project_id">,
): Promise<string> {
	const project =
		project_id === undefined
			? (await listProjects(db, accountId))[0]
			: await findProject(db, accountId, project_id);
	if (!project)
		throw invalidInput("project_id", "must name a project of the account");
	return project.projectId;
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
			},
		}),
	};
}
