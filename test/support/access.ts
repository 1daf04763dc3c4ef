/** Users, and what they may do, for tests. */
import type { Client } from "../../wire/client.ts";
import { unique } from "./seed.ts";

export interface TestUser {
	userId: string;
	userName: string;
	password: string;
	key: { accessKey: string; secretKey: string };
	/** Signs as this user. */
	api: Client;
}

const ACCESS = "/otaru/v1/access";

/** Somebody without any grant, with a password of his own and an access key. */
export async function makeUser(api: Client): Promise<TestUser> {
	const userName = unique("user");
	const password = unique("A-long-password");
	const { user_id: userId } = await api.call<{ user_id: string }>(
		"POST",
		`${ACCESS}/users`,
		{ json: { user_name: userName, password, must_change_password: false } },
	);
	const { access_key: accessKey, secret_key: secretKey } = await api.call<{
		access_key: string;
		secret_key: string;
	}>("POST", `${ACCESS}/users/${userId}/access-keys`, { json: {} });
	const key = { accessKey, secretKey };
	return { userId, userName, password, key, api: api.as(key) };
}

export interface Statement {
	Effect: "Allow" | "Deny";
	Action?: string[];
	NotAction?: string[];
	Resource?: string[];
	Condition?: Record<string, Record<string, string[]>>;
}

/** An identity policy, granted to the user. */
export async function grant(
	api: Client,
	user: Pick<TestUser, "userId">,
	statements: Statement[],
	scope: { type: "all" | "project" | "enterprise_project"; id?: string } = {
		type: "all",
	},
): Promise<{ policyId: string; revoke(): Promise<void> }> {
	const { policy_id: policyId } = await api.call<{ policy_id: string }>(
		"POST",
		`${ACCESS}/policies`,
		{
			json: {
				policy_name: unique("policy"),
				document: { Version: "5.0", Statement: statements },
			},
		},
	);
	const grantId = await grantPolicy(api, user, policyId, scope);
	return {
		policyId,
		async revoke() {
			await api.call("DELETE", `${ACCESS}/grants/${grantId}`);
			await api.call("DELETE", `${ACCESS}/policies/${policyId}`);
		},
	};
}

/** @returns the id of the grant */
export async function grantPolicy(
	api: Client,
	user: Pick<TestUser, "userId">,
	policyId: string,
	scope: { type: "all" | "project" | "enterprise_project"; id?: string } = {
		type: "all",
	},
): Promise<string> {
	const { grant_id } = await api.call<{ grant_id: string }>(
		"POST",
		`${ACCESS}/grants`,
		{
			json: {
				policy_id: policyId,
				principal: { type: "user", id: user.userId },
				scope,
			},
		},
	);
	return grant_id;
}

/** As a resource of a policy. */
export const ofSpace = (appId: string) => `iotda:*:*:app:${appId}`;
