/** Users beside the administrator, for tests: people with passwords and programs with keys. */
import type { CreateUser, Policy, User } from "../../wire/access-management.ts";
import type { Client } from "../../wire/client.ts";
import { unique } from "./seed.ts";
import type { TestServer } from "./server.ts";

/** Fits the rules for passwords, and differs every time. */
export function somePassword(): string {
	return unique("Vq7-treasure-map");
}

export interface Program {
	user: User;
	accessKey: string;
	secretKey: string;
	/** Signs as him. */
	api: Client;
}

/** A user without a password, and a client that signs with a key of his. */
export async function makeProgram(
	api: Client,
	fields: Partial<CreateUser> = {},
): Promise<Program> {
	const user = await api.createUser({
		user_name: unique("program"),
		password_sign_in: false,
		...fields,
	});
	const { access_key, secret_key } = await api.createAccessKey(user.user_id);
	const key = { accessKey: access_key, secretKey: secret_key };
	return { user, ...key, api: api.as(key) };
}

export interface Person {
	user: User;
	password: string;
}

/** A user who chose his password himself, as far as the server knows. */
export async function makePerson(
	api: Client,
	fields: Partial<CreateUser> = {},
): Promise<Person> {
	const password = somePassword();
	const user = await api.createUser({
		user_name: unique("person"),
		password,
		must_change_password: false,
		...fields,
	});
	return { user, password };
}

/** A client with a fresh token of his for the project of the server. */
export async function signIn(
	server: Pick<TestServer, "api" | "credentials">,
	person: { user: Pick<User, "user_name">; password: string },
): Promise<Client> {
	const { token } = await server.api.signIn({
		domainName: server.credentials.domain_name,
		userName: person.user.user_name,
		password: person.password,
	});
	return server.api.as({ token });
}

/** A policy that allows these actions, whatever they are asked on. */
export function allowing(...actions: string[]): Record<string, unknown> {
	return {
		Version: "5.0",
		Statement: [{ Effect: "Allow", Action: actions }],
	};
}

/** A policy with this document, granted to the user everywhere. */
export async function grantTo(
	api: Client,
	user: Pick<User, "user_id">,
	document: Record<string, unknown>,
): Promise<Policy> {
	const policy = await api.createPolicy({
		policy_name: unique("policy"),
		document,
	});
	await api.createGrant({
		policy_id: policy.policy_id,
		principal: { type: "user", id: user.user_id },
		scope: { type: "all" },
	});
	return policy;
}
