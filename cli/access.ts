/** `otaru access`: users, user groups, access keys, policies, grants and projects in the terminal. */
import { parseArgs } from "node:util";
import type {
	AccessKeyItem,
	CreateGrant,
	EnterpriseProject,
	Grant,
	ManagedProject,
	NewAccessKey,
	PolicyItem,
	SpaceAccess,
	User,
	UserGroup,
} from "../wire/access-management.ts";
import type { AccessSimulation } from "../wire/access-simulation.ts";
import { ApiFailure, type Client } from "../wire/client.ts";
import { type Command, refuseOtherOptions } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { columns, oneLine, tableLines } from "./output.ts";
import {
	openSession,
	type Proof,
	serverHelp,
	serverOptions,
} from "./session.ts";
import {
	askHidden,
	canAsk,
	confirm,
	readInput,
	readPassword,
} from "./terminal.ts";

const options = {
	...serverOptions,
	description: { type: "string" },
	administrator: { type: "boolean", default: false },
	"no-password": { type: "boolean", default: false },
	"password-file": { type: "string" },
	"new-password-file": { type: "string" },
	"must-change-password": { type: "string" },
	user: { type: "string" },
	group: { type: "string" },
	policy: { type: "string" },
	project: { type: "string" },
	"enterprise-project": { type: "string" },
	tag: { type: "string", multiple: true },
	"no-tags": { type: "boolean", default: false },
	"source-ip": { type: "string" },
	at: { type: "string" },
	yes: { type: "boolean", default: false },
	json: { type: "boolean", default: false },
} as const;

type Values = ReturnType<
	typeof parseArgs<{ options: typeof options }>
>["values"];

interface Call {
	client: Client;
	proof: Proof;
	values: Values;
	/** The words after the verb; as many as its usage names. */
	words: readonly string[];
	say: Speaker;
}

interface Verb {
	/** Its words, such as `USER [FILE]`. */
	words: string;
	does: string;
	/** That go with it, beside --json and those of the server. */
	options?: readonly Exclude<keyof typeof options, "json">[];
	/** Its calls lie in a project. */
	inProject?: boolean;
	run: (call: Call) => Promise<number | undefined>;
}

// --- what can be said ----------------------------------------------------------------

const subjects: Readonly<Record<string, Readonly<Record<string, Verb>>>> = {
	users: {
		list: {
			words: "",
			does: "all users",
			run: async ({ client, say }) =>
				say.list(await usersOf(client), userRow, "There are no users."),
		},
		show: {
			words: "USER",
			does: "one user, with his groups",
			run: async ({ client, words, say }) => {
				const user = await findUser(client, words[0]);
				// Whoever may look at users need not be allowed to look at groups.
				const groups = await everyPage((query) =>
					client
						.listGroupsOfUser(user.user_id, query)
						.then(({ groups, page }) => ({ items: groups, page })),
				).catch(orNone([403], undefined));
				say.one({ ...user, ...(groups && { groups }) }, [
					...userLines(user),
					[
						"groups",
						groups === undefined
							? "(not for you to see)"
							: groups.map((group) => group.group_name).join(", ") || "–",
					],
				]);
			},
		},
		create: {
			words: "NAME",
			does: "a new user; his password is made up, unless --password-file or --no-password is given",
			options: [
				...(["description", "administrator", "no-password"] as const),
				...(["password-file", "must-change-password"] as const),
			],
			run: async ({ client, words, values, say }) => {
				const user = await client.createUser({
					user_name: words[0] ?? "",
					...described(values),
					...passwordFrom(values),
					...mustChangeFrom(values),
					...(values["no-password"] && { password_sign_in: false }),
					...(values.administrator && { is_administrator: true }),
				});
				say.one(user, [...userLines(user), ...passwordLine(user)]);
				say.hint(firstSteps(client.endpoint, user));
			},
		},
		update: {
			words: "USER",
			does: "changes what the options say; his name stays for good",
			options: ["description", "must-change-password"],
			run: (call) => {
				const changes = {
					...described(call.values),
					...mustChangeFrom(call.values),
				};
				if (Object.keys(changes).length === 0)
					throw usage(
						"It is missing what to change: --description or --must-change-password.",
					);
				return changeUser(call, changes);
			},
		},
		describe: {
			words: "USER TEXT",
			does: "sets his description",
			run: (call) => changeUser(call, { description: call.words[1] ?? "" }),
		},
		enable: {
			words: "USER",
			does: "lets him sign in again",
			run: (call) => changeUser(call, { enabled: true }),
		},
		disable: {
			words: "USER",
			does: "ends his tokens, and lets neither password nor keys sign in",
			options: ["yes"],
			run: async (call) => {
				await warnOfOneself(call, "you end your own way in");
				return changeUser(call, { enabled: false });
			},
		},
		promote: {
			words: "USER",
			does: "makes him an administrator",
			run: (call) => changeUser(call, { is_administrator: true }),
		},
		demote: {
			words: "USER",
			does: "takes that back",
			options: ["yes"],
			run: async (call) => {
				await warnOfOneself(
					call,
					"you may then do only what is granted to you",
				);
				return changeUser(call, { is_administrator: false });
			},
		},
		"reset-password": {
			words: "USER",
			does: "a new password, made up or from --password-file; --no-password takes it away",
			options: ["password-file", "no-password", "must-change-password"],
			run: (call) => {
				const { values } = call;
				const given = passwordFrom(values);
				return changeUser(call, {
					...given,
					...mustChangeFrom(values),
					...(values["no-password"]
						? { password_sign_in: false }
						: given.password === undefined && { generate_password: true }),
				});
			},
		},
		delete: {
			words: "USER",
			does: "with his keys and grants",
			options: ["yes"],
			run: async (call) => {
				const { client, words, say } = call;
				const user = await findUser(client, words[0]);
				await warnOfOneself(call, "you end your own way in", user);
				await client.deleteUser(user.user_id);
				say.done(`The user ${user.user_name} is deleted.`);
			},
		},
	},
	groups: {
		list: {
			words: "",
			does: "all user groups",
			run: async ({ client, say }) =>
				say.list(await groupsOf(client), groupRow, "There are no user groups."),
		},
		create: {
			words: "NAME",
			does: "a new user group",
			options: ["description"],
			run: async ({ client, words, values, say }) => {
				const group = await client.createUserGroup({
					group_name: words[0] ?? "",
					...described(values),
				});
				say.one(group, groupLines(group));
			},
		},
		rename: {
			words: "GROUP NAME",
			does: "gives it another name",
			run: async ({ client, words, say }) => {
				const { group_id } = await findGroup(client, words[0]);
				const group = await client.updateUserGroup(group_id, {
					group_name: words[1] ?? "",
				});
				say.one(group, groupLines(group));
			},
		},
		members: {
			words: "GROUP",
			does: "the users in it",
			run: async ({ client, words, say }) => {
				const { group_id } = await findGroup(client, words[0]);
				const users = await everyPage((query) =>
					client
						.listUsersOfGroup(group_id, query)
						.then(({ users, page }) => ({ items: users, page })),
				);
				say.list(users, userRow, "Nobody is in it.");
			},
		},
		add: {
			words: "GROUP USER",
			does: "puts a user into it",
			run: async ({ client, words, say }) => {
				const group = await findGroup(client, words[0]);
				const user = await findUser(client, words[1]);
				await client.addUserToGroup(group.group_id, user.user_id);
				say.done(`${user.user_name} is in ${group.group_name}.`);
			},
		},
		remove: {
			words: "GROUP USER",
			does: "takes him out of it",
			run: async ({ client, words, say }) => {
				const group = await findGroup(client, words[0]);
				const user = await findUser(client, words[1]);
				await client.removeUserFromGroup(group.group_id, user.user_id);
				say.done(`${user.user_name} is no longer in ${group.group_name}.`);
			},
		},
		delete: {
			words: "GROUP",
			does: "with its grants",
			run: async ({ client, words, say }) => {
				const group = await findGroup(client, words[0]);
				await client.deleteUserGroup(group.group_id);
				say.done(`The user group ${group.group_name} is deleted.`);
			},
		},
	},
	keys: {
		list: {
			words: "USER",
			does: "his access keys",
			run: async ({ client, words, say }) => {
				const { user_id } = await findUser(client, words[0]);
				const { access_keys } = await client.listAccessKeys(user_id);
				say.list(access_keys, keyRow, "He has no access keys.");
			},
		},
		create: {
			words: "USER",
			does: "a new one; its secret is shown this once",
			options: ["description"],
			run: async ({ client, words, values, say }) => {
				const { user_id } = await findUser(client, words[0]);
				const key = await client.createAccessKey(user_id, described(values));
				say.one(key, newKeyLines(key));
			},
		},
		enable: {
			words: "USER KEY",
			does: "lets it sign again",
			run: (call) => switchKey(call, true),
		},
		disable: {
			words: "USER KEY",
			does: "refuses it from now on",
			options: ["yes"],
			run: (call) => switchKey(call, false),
		},
		delete: {
			words: "USER KEY",
			does: "for good",
			options: ["yes"],
			run: async (call) => {
				const [user, key = ""] = call.words;
				const { user_id } = await findUser(call.client, user);
				await warnOfKey(call, key);
				await call.client
					.deleteAccessKey(user_id, key)
					.catch(ifUnknown("access key", key, `keys list ${user}`));
				call.say.done(`The access key ${key} is deleted.`);
			},
		},
	},
	policies: {
		list: {
			words: "",
			does: "all policies",
			run: async ({ client, say }) =>
				say.list(await policiesOf(client), policyRow, "There are no policies."),
		},
		show: {
			words: "POLICY",
			does: "its document",
			run: async ({ client, words, values }) => {
				const { policy_id } = await findPolicy(client, words[0]);
				const policy = await client.getPolicy(policy_id);
				process.stdout.write(
					values.json
						? `${JSON.stringify(policy)}\n`
						: `${JSON.stringify(policy.document, null, 2)}\n`,
				);
				return undefined;
			},
		},
		create: {
			words: "NAME FILE",
			does: "a new one from a JSON document (- for standard input)",
			options: ["description"],
			run: async ({ client, words, values, say }) => {
				const policy = await client.createPolicy({
					policy_name: words[0] ?? "",
					document: readDocument(words[1] ?? ""),
					...described(values),
				});
				say.one(policy, policyLines(policy));
			},
		},
		update: {
			words: "POLICY FILE",
			does: "another document for it",
			options: ["description"],
			run: async ({ client, words, values, say }) => {
				const document = readDocument(words[1] ?? "");
				const { policy_id } = await findPolicy(client, words[0]);
				const policy = await client.updatePolicy(policy_id, {
					document,
					...described(values),
				});
				say.one(policy, policyLines(policy));
			},
		},
		delete: {
			words: "POLICY",
			does: "one that nobody is granted",
			run: async ({ client, words, say }) => {
				const policy = await findPolicy(client, words[0]);
				await client.deletePolicy(policy.policy_id);
				say.done(`The policy ${policy.policy_name} is deleted.`);
			},
		},
	},
	grants: {
		list: {
			words: "",
			does: "all grants, or those of --user, --group or --policy",
			options: ["user", "group", "policy"],
			run: async ({ client, values, say }) => {
				const principal = await principalOf(client, values);
				const policy =
					values.policy === undefined
						? undefined
						: await findPolicy(client, values.policy);
				const grants = await everyPage((query) =>
					client
						.listGrants({
							...query,
							...(principal && {
								principal_type: principal.type,
								principal_id: principal.id,
							}),
							...(policy && { policy_id: policy.policy_id }),
						})
						.then(({ grants, page }) => ({ items: grants, page })),
				);
				say.list(grants, grantRow, "There are no such grants.");
			},
		},
		create: {
			words: "POLICY",
			does: "to --user or --group, everywhere or in --project or --enterprise-project",
			options: ["user", "group", "project", "enterprise-project"],
			run: async ({ client, words, values, say }) => {
				const principal = await principalOf(client, values);
				if (!principal)
					throw usage("It is missing to whom: --user or --group.");
				const policy = await findPolicy(client, words[0]);
				const grant = await client.createGrant({
					policy_id: policy.policy_id,
					principal,
					scope: await grantScopeOf(client, values),
				});
				say.one(grant, [
					["grant", grant.grant_id],
					["policy", grant.policy_name],
					["to", principalText(grant)],
					["in", scopeText(grant)],
				]);
			},
		},
		delete: {
			words: "GRANT_ID",
			does: "takes it back",
			run: async ({ client, words, say }) => {
				const [id = ""] = words;
				await client
					.deleteGrant(id)
					.catch(ifUnknown("grant", id, "grants list"));
				say.done(`The grant ${id} is deleted.`);
			},
		},
	},
	projects: {
		list: {
			words: "",
			does: "all projects",
			run: async ({ client, say }) =>
				say.list(
					(await client.listManagedProjects()).projects,
					projectRow,
					"There are no projects.",
				),
		},
		create: {
			words: "NAME",
			does: "a new project with a default resource space",
			run: async ({ client, words, say }) => {
				const project = await client.createProject({
					project_name: words[0] ?? "",
				});
				say.one(project, projectLines(project));
			},
		},
		rename: {
			words: "PROJECT NAME",
			does: "gives it another name",
			run: async ({ client, words, say }) => {
				const { project_id } = await findProject(client, words[0]);
				const project = await client.renameProject(project_id, {
					project_name: words[1] ?? "",
				});
				say.one(project, projectLines(project));
			},
		},
		delete: {
			words: "PROJECT",
			does: "an empty one",
			run: async ({ client, words, say }) => {
				const project = await findProject(client, words[0]);
				await client.deleteProject(project.project_id);
				say.done(`The project ${project.project_name} is deleted.`);
			},
		},
	},
	"enterprise-projects": {
		list: {
			words: "",
			does: "all enterprise projects",
			run: async ({ client, say }) =>
				say.list(
					await enterpriseProjectsOf(client),
					enterpriseProjectRow,
					"There are none.",
				),
		},
		create: {
			words: "NAME",
			does: "a new enterprise project",
			options: ["description"],
			run: async ({ client, words, values, say }) => {
				const project = await client.createEnterpriseProject({
					enterprise_project_name: words[0] ?? "",
					...described(values),
				});
				say.one(project, enterpriseProjectLines(project));
			},
		},
		rename: {
			words: "ENTERPRISE_PROJECT NAME",
			does: "gives it another name",
			run: async ({ client, words, say }) => {
				const found = await findEnterpriseProject(client, words[0]);
				const project = await client.updateEnterpriseProject(
					found.enterprise_project_id,
					{ enterprise_project_name: words[1] ?? "" },
				);
				say.one(project, enterpriseProjectLines(project));
			},
		},
		delete: {
			words: "ENTERPRISE_PROJECT",
			does: "one that nothing uses",
			run: async ({ client, words, say }) => {
				const project = await findEnterpriseProject(client, words[0]);
				await client.deleteEnterpriseProject(project.enterprise_project_id);
				say.done(
					`The enterprise project ${project.enterprise_project_name} is deleted.`,
				);
			},
		},
	},
	spaces: {
		show: {
			words: "APP_ID",
			does: "what policies see of a resource space",
			inProject: true,
			run: async ({ client, words, say }) => {
				const [id = ""] = words;
				const space = await client
					.getSpaceAccess(id)
					.catch(ifUnknown("resource space", id));
				say.one(space, spaceLines(space));
			},
		},
		set: {
			words: "APP_ID",
			does: "its --enterprise-project, and its tags: --tag KEY=VALUE … or --no-tags",
			options: ["enterprise-project", "tag", "no-tags"],
			inProject: true,
			run: async ({ client, words, values, say }) => {
				const tags = tagsFrom(values);
				const wanted = values["enterprise-project"];
				const enterprise =
					wanted === undefined
						? undefined
						: await findEnterpriseProject(client, wanted);
				if (!tags && !enterprise)
					throw usage(
						"It is missing what to set: --enterprise-project, --tag or --no-tags.",
					);
				const [id = ""] = words;
				const space = await client
					.setSpaceAccess(id, {
						...(enterprise && {
							enterprise_project_id: enterprise.enterprise_project_id,
						}),
						...(tags && { tags }),
					})
					.catch(ifUnknown("resource space", id));
				say.one(space, spaceLines(space));
			},
		},
	},
	me: {
		"": {
			words: "",
			does: "who you are to the server",
			run: async ({ client, say }) => {
				const me = await client.getMe();
				say.one(me, [
					...userLines(me),
					["account", me.account_name],
					[
						"groups",
						me.groups.map((group) => group.group_name).join(", ") || "–",
					],
					[
						"projects",
						me.projects
							.map((one) => `${one.project_name} (${one.project_id})`)
							.join(", ") || "–",
					],
				]);
			},
		},
		password: {
			words: "",
			does: "another password of yours; all your tokens end",
			options: ["password-file", "new-password-file"],
			run: async ({ client, proof, values, say }) => {
				await client.changeOwnPassword({
					password: await presentPassword(values, proof),
					new_password: await newPassword(values),
				});
				say.done(
					"The password is changed, and all tokens of yours have ended.",
				);
			},
		},
		"keys list": {
			words: "",
			does: "your access keys",
			run: async ({ client, say }) => {
				const { access_keys } = await client.listOwnAccessKeys();
				say.list(access_keys, keyRow, "You have no access keys.");
			},
		},
		"keys create": {
			words: "",
			does: "a new one; its secret is shown this once",
			options: ["description"],
			run: async ({ client, values, say }) => {
				const key = await client.createOwnAccessKey(described(values));
				say.one(key, newKeyLines(key));
			},
		},
		"keys enable": {
			words: "KEY",
			does: "lets it sign again",
			run: (call) => switchOwnKey(call, true),
		},
		"keys disable": {
			words: "KEY",
			does: "refuses it from now on",
			options: ["yes"],
			run: (call) => switchOwnKey(call, false),
		},
		"keys delete": {
			words: "KEY",
			does: "for good",
			options: ["yes"],
			run: async (call) => {
				const [key = ""] = call.words;
				await warnOfKey(call, key);
				await call.client
					.deleteOwnAccessKey(key)
					.catch(ifUnknown("access key", key, "me keys list"));
				call.say.done(`The access key ${key} is deleted.`);
			},
		},
	},
};

/** Subjects that are their own verb. */
const single: Readonly<Record<string, Verb>> = {
	can: {
		words: "USER ACTION [RESOURCE]",
		does: "may he? RESOURCE is app:APP_ID, project:PROJECT_ID or * (anything)",
		options: ["source-ip", "at", "tag"],
		run: async ({ client, words, values, say }) => {
			const [name = "", action = "", resource = "*"] = words;
			const user = await findUser(client, name);
			const tags = tagsFrom(values);
			const answer = await client.simulateAccess({
				user_id: user.user_id,
				action,
				...resourceFrom(resource),
				...(values["source-ip"] !== undefined && {
					source_ip: values["source-ip"],
				}),
				...(values.at !== undefined && { at: values.at }),
				...(tags && { request_tags: tags }),
			});
			say.sentence(answer, decisionText(user.user_name, action, answer));
			return answer.allowed ? undefined : exitCodes.failed.code;
		},
	},
};

/** What a verb is called with, and below it the options that go with it. */
function usageOf(verbs: Readonly<Record<string, Verb>>): string {
	return columns(
		Object.entries(verbs).flatMap(([name, { words, does, options = [] }]) => {
			const named = options.map((option) => `--${option}`).join(" ");
			return [
				[[name, words].filter(Boolean).join(" ") || "(alone)", does] as const,
				...(named ? [["", `  ${named}`] as const] : []),
			];
		}),
	);
}

const help = `otaru access: who there is, and what each may do

Usage
  otaru access SUBJECT VERB [words] [options]

${Object.entries(subjects)
	.map(([subject, verbs]) => `${subject}\n${usageOf(verbs)}`)
	.join("\n\n")}

Besides
${usageOf(single)}

  Users, groups, policies and projects are named by name or by id. Below each verb stand
  the options that go with it; --json goes with all.

Options
  --description TEXT   of what is created or changed
  --administrator      makes him an administrator
  --no-password        only access keys sign in
  --password-file FILE the password (- for standard input); me password: the present one
  --new-password-file FILE
                       me password: the new one; without it a terminal asks for both
  --must-change-password yes|no
                       whether he must choose another one before anything else (yes)
  --json               JSON; of lists, one entry in a line
  --yes                no question before you lock yourself out

Options of grants
  --user USER, --group GROUP
                       whom
  --policy POLICY      only grants of this policy
  --project PROJECT, --enterprise-project PROJECT
                       where; without them everywhere

Options of spaces
  --enterprise-project PROJECT
                       which one the resource space belongs to
  --tag KEY=VALUE      a tag, as often as there are any; they replace those it has
  --no-tags            takes all tags away

Options of can
  --source-ip ADDRESS  from where
  --at TIME            when, such as 20260129T080000Z
  --tag KEY=VALUE      a tag that the call would bind

Server
${serverHelp}

Examples
  otaru access users create olga
  otaru access me password --as olga
  otaru access grants create "IoTDA ReadOnlyAccess" --user olga
  otaru access can olga iotda:otamodules:create app:7d1c0f4e9a2b4c6d8e0f1a2b3c4d5e6f

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
  can ends with 0 when he may, with 1 when he may not.
`;

async function run(args: string[]): Promise<number> {
	const { values, positionals, tokens } = parseArgs({
		args,
		options,
		allowPositionals: true,
		tokens: true,
	});
	const { verb, name, words } = readWords(positionals);
	refuseOtherOptions(
		tokens,
		[...Object.keys(serverOptions), "json", ...(verb.options ?? [])],
		{ command: "access", verb: name },
	);
	const { client, proof } = await openSession(
		values,
		verb.inProject ? "project" : "account",
	);
	const say = new Speaker(values.json);
	return (
		(await verb.run({ client, proof, values, words, say })) ?? exitCodes.ok.code
	);
}

/** The command line is judged before a server is looked for. */
function readWords(positionals: readonly string[]): {
	verb: Verb;
	/** As it was said, such as `users list`. */
	name: string;
	words: readonly string[];
} {
	const [subject, ...rest] = positionals;
	if (subject === undefined)
		throw usage(
			`It is missing what about: ${[...Object.keys(subjects), ...Object.keys(single)].join(", ")}.`,
		);
	if (Object.hasOwn(single, subject))
		return checked(single[subject] as Verb, subject, rest);
	const verbs = Object.hasOwn(subjects, subject)
		? subjects[subject]
		: undefined;
	if (!verbs)
		throw usage(
			`"${subject}" is nothing of access: ${[...Object.keys(subjects), ...Object.keys(single)].join(", ")} are.`,
		);
	// Some verbs are two words, and one is none.
	const taken = [2, 1, 0].find(
		(count) =>
			Object.hasOwn(verbs, rest.slice(0, count).join(" ")) &&
			(count > 0 || rest.length === 0),
	);
	if (taken === undefined) {
		const known = Object.keys(verbs).filter(Boolean).join(", ");
		throw usage(
			rest.length === 0
				? `It is missing what to do with ${subject}: ${known}.`
				: `"${rest[0]}" is nothing to do with ${subject}: ${known} are.`,
		);
	}
	const name = rest.slice(0, taken).join(" ");
	return checked(
		verbs[name] as Verb,
		`${subject} ${name}`.trimEnd(),
		rest.slice(taken),
	);
}

function checked(verb: Verb, form: string, words: readonly string[]) {
	const names = verb.words === "" ? [] : verb.words.split(" ");
	const least = names.filter((name) => !name.startsWith("[")).length;
	if (words.length < least)
		throw usage(
			`Something is missing: otaru access ${form} ${verb.words}.`.trimEnd(),
		);
	const extra = words[names.length];
	if (extra !== undefined) throw usage(`"${extra}" is one word too many.`);
	return { verb, name: form, words };
}

// --- how things are named ----------------------------------------------------------------

type PageOf<T> = { items: T[]; page: { marker?: string } };

async function everyPage<T>(
	read: (query: { limit: number; marker?: string }) => Promise<PageOf<T>>,
): Promise<T[]> {
	const all: T[] = [];
	let marker: string | undefined;
	for (;;) {
		const { items, page } = await read({
			limit: 50,
			...(marker === undefined ? {} : { marker }),
		});
		all.push(...items);
		marker = page.marker;
		if (items.length < 50 || marker === undefined) return all;
	}
}

const usersOf = (client: Client, user_name?: string) =>
	everyPage((query) =>
		client
			.listUsers({
				...query,
				...(user_name === undefined ? {} : { user_name }),
			})
			.then(({ users, page }) => ({ items: users, page })),
	);
const groupsOf = (client: Client, group_name?: string) =>
	everyPage((query) =>
		client
			.listUserGroups({
				...query,
				...(group_name === undefined ? {} : { group_name }),
			})
			.then(({ groups, page }) => ({ items: groups, page })),
	);
const policiesOf = (client: Client, policy_name?: string) =>
	everyPage((query) =>
		client
			.listPolicies({
				...query,
				...(policy_name === undefined ? {} : { policy_name }),
			})
			.then(({ policies, page }) => ({ items: policies, page })),
	);
const enterpriseProjectsOf = (client: Client) =>
	everyPage((query) =>
		client
			.listEnterpriseProjects(query)
			.then(({ enterprise_projects, page }) => ({
				items: enterprise_projects,
				page,
			})),
	);

/** By name, else by id. */
async function find<T>(
	what: string,
	subject: keyof typeof subjects,
	named: string | undefined,
	byName: (name: string) => Promise<T[]>,
	byId: (id: string) => Promise<T>,
): Promise<T> {
	const name = named ?? "";
	// 400: it cannot be a name, but may be an id, or the other way round. 403: whoever may
	// not see them all may still be allowed to look at one.
	let refusal: unknown;
	const [found] = await byName(name).catch((error) => {
		if (error instanceof ApiFailure && error.status === 403) refusal = error;
		return orNone([400, 403], [])(error);
	});
	const one =
		found ??
		(name === ""
			? undefined
			: await byId(name).catch(
					orNone(refusal ? [400, 403, 404] : [400, 404], undefined),
				));
	if (one !== undefined) return one;
	if (refusal) throw refusal;
	throw unknown(what, name, `${subject} list`);
}

/** @param list what shows those there are, behind `otaru access`. */
function unknown(what: string, name: string, list?: string): CommandError {
	return new CommandError(
		`There is no ${what} "${name}".`,
		list === undefined
			? "GET /v5/iot/{project_id}/apps lists those of a project."
			: `otaru access ${list} shows which there are.`,
		exitCodes.usage,
	);
}

/** For a call whose id is the only thing that may be unknown, or no id at all. */
function ifUnknown(what: string, name: string, list?: string) {
	return (error: unknown): never => {
		const isUnknown =
			error instanceof ApiFailure &&
			(error.status === 404 ||
				error.code === "IOTDA.001000" ||
				(error.status === 400 &&
					/\b(access_key|grant_id|app_id) must\b/.test(error.message)));
		throw isUnknown ? unknown(what, name, list) : error;
	};
}

function orNone<T>(statuses: readonly number[], none: T) {
	return (error: unknown): T => {
		if (error instanceof ApiFailure && statuses.includes(error.status))
			return none;
		throw error;
	};
}

const findUser = (client: Client, named: string | undefined): Promise<User> =>
	find(
		"user",
		"users",
		named,
		(name) => usersOf(client, name),
		(id) => client.getUser(id),
	);
const findGroup = (
	client: Client,
	named: string | undefined,
): Promise<UserGroup> =>
	find(
		"user group",
		"groups",
		named,
		(name) => groupsOf(client, name),
		(id) => client.getUserGroup(id),
	);
const findPolicy = (
	client: Client,
	named: string | undefined,
): Promise<PolicyItem> =>
	find<PolicyItem>(
		"policy",
		"policies",
		named,
		(name) => policiesOf(client, name),
		(id) => client.getPolicy(id),
	);
const findProject = (
	client: Client,
	named: string | undefined,
): Promise<ManagedProject> =>
	find(
		"project",
		"projects",
		named,
		async (name) =>
			(await client.listManagedProjects()).projects.filter(
				(project) => project.project_name === name,
			),
		(id) => client.getManagedProject(id),
	);
const findEnterpriseProject = (
	client: Client,
	named: string | undefined,
): Promise<EnterpriseProject> =>
	find(
		"enterprise project",
		"enterprise-projects",
		named,
		async (name) =>
			(await enterpriseProjectsOf(client)).filter(
				(project) => project.enterprise_project_name === name,
			),
		(id) => client.getEnterpriseProject(id),
	);

// --- what options mean --------------------------------------------------------------------

function described({ description }: Values): { description?: string } {
	return description === undefined ? {} : { description };
}

function passwordFrom(values: Values): { password?: string } {
	const file = values["password-file"];
	if (file === undefined) return {};
	if (values["no-password"])
		throw usage("--password-file and --no-password exclude each other.");
	return { password: readPassword(file, "--password-file") };
}

function mustChangeFrom(values: Values): { must_change_password?: boolean } {
	const text = values["must-change-password"];
	if (text === undefined) return {};
	if (text !== "yes" && text !== "no")
		throw usage(`--must-change-password must be yes or no, not "${text}".`);
	return { must_change_password: text === "yes" };
}

async function presentPassword(values: Values, proof: Proof): Promise<string> {
	const file = values["password-file"];
	if (file !== undefined) return readPassword(file, "--password-file");
	if (proof.kind === "password") return proof.password;
	if (canAsk()) return askHidden("Present password: ");
	throw usage(
		"The present password is missing: --password-file or a terminal to ask for it.",
	);
}

async function newPassword(values: Values): Promise<string> {
	const file = values["new-password-file"];
	if (file !== undefined) return readPassword(file, "--new-password-file");
	if (!canAsk())
		throw usage(
			"The new password is missing: --new-password-file or a terminal to ask for it.",
		);
	const password = await askHidden("New password: ");
	if ((await askHidden("Once more: ")) === password) return password;
	throw new CommandError(
		"The two were not the same.",
		"The password is what it was; try again.",
		exitCodes.failed,
	);
}

function readDocument(file: string): Record<string, unknown> {
	const text = readInput(file, "FILE");
	let value: unknown;
	try {
		value = JSON.parse(text);
	} catch (error) {
		throw usage(
			`${file} is not JSON: ${error instanceof Error ? error.message : error}.`,
		);
	}
	if (typeof value !== "object" || value === null || Array.isArray(value))
		throw usage(`${file} is no policy: it must be a JSON object.`);
	return value as Record<string, unknown>;
}

async function principalOf(
	client: Client,
	{ user, group }: Values,
): Promise<CreateGrant["principal"] | undefined> {
	if (user !== undefined && group !== undefined)
		throw usage("--user and --group exclude each other.");
	if (user !== undefined)
		return { type: "user", id: (await findUser(client, user)).user_id };
	if (group !== undefined)
		return { type: "group", id: (await findGroup(client, group)).group_id };
	return undefined;
}

async function grantScopeOf(
	client: Client,
	values: Values,
): Promise<CreateGrant["scope"]> {
	const { project, "enterprise-project": enterprise } = values;
	if (project !== undefined && enterprise !== undefined)
		throw usage("--project and --enterprise-project exclude each other.");
	if (project !== undefined)
		return {
			type: "project",
			id: (await findProject(client, project)).project_id,
		};
	if (enterprise !== undefined)
		return {
			type: "enterprise_project",
			id: (await findEnterpriseProject(client, enterprise))
				.enterprise_project_id,
		};
	return { type: "all" };
}

/** Undefined: nothing is said of tags. */
function tagsFrom(values: Values): Record<string, string> | undefined {
	const { tag, "no-tags": none } = values;
	if (none) {
		if (tag) throw usage("--tag and --no-tags exclude each other.");
		return {};
	}
	if (!tag) return undefined;
	return Object.fromEntries(
		tag.map((one) => {
			const at = one.indexOf("=");
			if (at < 1) throw usage(`--tag must be KEY=VALUE, not "${one}".`);
			return [one.slice(0, at), one.slice(at + 1)];
		}),
	);
}

function resourceFrom(resource: string): {
	project_id?: string;
	app_id?: string;
} {
	if (resource === "*") return {};
	const [, type, id] = /^(app|project):(.+)$/.exec(resource) ?? [];
	if (id === undefined)
		throw usage(
			`RESOURCE must be app:APP_ID, project:PROJECT_ID or *, not "${resource}".`,
		);
	return type === "app" ? { app_id: id } : { project_id: id };
}

async function changeUser(
	{ client, words, say }: Call,
	changes: Parameters<Client["updateUser"]>[1],
): Promise<undefined> {
	const { user_id } = await findUser(client, words[0]);
	const user = await client.updateUser(user_id, changes);
	say.one(user, [...userLines(user), ...passwordLine(user)]);
}

async function switchKey(call: Call, enabled: boolean): Promise<undefined> {
	const [user, name = ""] = call.words;
	const { user_id } = await findUser(call.client, user);
	if (!enabled) await warnOfKey(call, name);
	const key = await call.client
		.updateAccessKey(user_id, name, { enabled })
		.catch(ifUnknown("access key", name, `keys list ${user}`));
	call.say.one(key, keyLines(key));
}

async function switchOwnKey(call: Call, enabled: boolean): Promise<undefined> {
	const [name = ""] = call.words;
	if (!enabled) await warnOfKey(call, name);
	const key = await call.client
		.updateOwnAccessKey(name, { enabled })
		.catch(ifUnknown("access key", name, "me keys list"));
	call.say.one(key, keyLines(key));
}

// --- before somebody locks himself out ----------------------------------------------------

async function warnOfKey({ proof, values }: Call, key: string): Promise<void> {
	if (proof.kind === "key" && proof.accessKey === key)
		await confirm(
			`Warning: this very call is signed with ${key}; no later one can be.`,
			values.yes,
		);
}

/** @param what follows for the caller, if it is about himself. */
async function warnOfOneself(
	{ client, words, values }: Call,
	what: string,
	found?: User,
): Promise<void> {
	const { user_id } = found ?? (await findUser(client, words[0]));
	const me = await client.getMe();
	if (me.user_id === user_id)
		await confirm(`Warning: ${me.user_name} is you, and ${what}.`, values.yes);
}

// --- what people read ------------------------------------------------------------------------

type Line = readonly [string, string];

/** The answer for programs as JSON, or for people as lines: on standard output. */
class Speaker {
	readonly #asJson: boolean;

	constructor(asJson: boolean) {
		this.#asJson = asJson;
	}

	one(value: object, lines: readonly Line[]): void {
		this.sentence(value, columns(lines, ""));
	}

	sentence(value: object, text: string): void {
		process.stdout.write(
			this.#asJson ? `${JSON.stringify(value)}\n` : `${text}\n`,
		);
	}

	/** Nothing for programs: the exit code says it. */
	done(text: string): void {
		if (!this.#asJson) process.stdout.write(`${text}\n`);
	}

	/** What to do next: nothing for programs. */
	hint(lines: readonly string[]): void {
		if (!this.#asJson) process.stdout.write(`\n${lines.join("\n")}\n`);
	}

	/** @param row the cells of an item by the headings of their columns. */
	list<T extends object>(
		items: readonly T[],
		row: (item: T) => Record<string, string>,
		none: string,
	): undefined {
		if (this.#asJson)
			for (const item of items)
				process.stdout.write(`${JSON.stringify(item)}\n`);
		else
			process.stdout.write(
				items.length === 0
					? `${none}\n`
					: `${tableLines(items.map(row)).join("\n")}\n`,
			);
	}
}

/** What the person who was just made a user does next. */
function firstSteps(endpoint: string, user: User): string[] {
	const { user_name: name } = user;
	if (!user.password_sign_in)
		return [
			"It signs with an access key. To make one:",
			`  otaru access keys create ${name}`,
		];
	return [
		`Tell ${name} the password on a safe way, and what comes next:`,
		`  in a browser     ${endpoint}/explorer`,
		user.must_change_password
			? `  choose another   otaru access me password --endpoint ${endpoint} --as ${name}`
			: `  who am I         otaru access me --endpoint ${endpoint} --as ${name}`,
		"So far nothing is granted: otaru access grants create POLICY --user or --group.",
	];
}

function userLines(user: User): Line[] {
	return [
		["user", user.user_id],
		["name", user.user_name],
		["status", statusText(user)],
		...(user.description ? [["description", user.description] as const] : []),
		["created", user.create_time],
		["last sign-in", user.last_sign_in_time ?? "never"],
	];
}

function statusText(user: User): string {
	return [
		user.enabled ? "enabled" : "disabled",
		...(user.is_administrator ? ["administrator"] : []),
		...(user.password_sign_in ? [] : ["access keys only"]),
		...(user.must_change_password ? ["must change the password"] : []),
	].join(", ");
}

function passwordLine({ password }: { password?: string }): Line[] {
	return password === undefined ? [] : [["password", password]];
}

const userRow = (user: User) => ({
	NAME: user.user_name,
	ID: user.user_id,
	"LAST SIGN-IN": user.last_sign_in_time ?? "never",
	STATUS: statusText(user),
});

const groupLines = (group: UserGroup): Line[] => [
	["group", group.group_id],
	["name", group.group_name],
];
const groupRow = (group: UserGroup) => ({
	NAME: group.group_name,
	ID: group.group_id,
	DESCRIPTION: group.description ?? "",
});

const keyLines = (key: AccessKeyItem): Line[] => [
	["access key", key.access_key],
	["status", key.enabled ? "enabled" : "disabled"],
];
const newKeyLines = (key: NewAccessKey): Line[] => [
	["access key", key.access_key],
	["secret key", key.secret_key],
];
const keyRow = (key: AccessKeyItem) => ({
	"ACCESS KEY": key.access_key,
	STATUS: key.enabled ? "enabled" : "disabled",
	CREATED: key.create_time,
	"LAST USED": key.last_used_time ?? "never",
	DESCRIPTION: key.description ?? "",
});

const policyLines = (policy: PolicyItem): Line[] => [
	["policy", policy.policy_id],
	["name", policy.policy_name],
];
const policyRow = (policy: PolicyItem) => ({
	NAME: policy.policy_name,
	ID: policy.policy_id,
	TYPE: policy.type,
	DESCRIPTION: policy.description ?? "",
});

const principalText = ({ principal }: Grant): string =>
	`${principal.type} ${principal.name}`;
const scopeText = ({ scope }: Grant): string =>
	scope.type === "all"
		? "everything"
		: `${scope.type.replace("_", " ")} ${scope.name}`;
const grantRow = (grant: Grant) => ({
	ID: grant.grant_id,
	POLICY: grant.policy_name,
	TO: principalText(grant),
	IN: scopeText(grant),
});

const projectLines = (project: ManagedProject): Line[] => [
	["project", project.project_id],
	["name", project.project_name],
	["default resource space", project.default_app_id ?? "–"],
];
const projectRow = (project: ManagedProject) => ({
	NAME: project.project_name,
	ID: project.project_id,
	"DEFAULT RESOURCE SPACE": project.default_app_id ?? "–",
});

const enterpriseProjectLines = (project: EnterpriseProject): Line[] => [
	["enterprise project", project.enterprise_project_id],
	["name", project.enterprise_project_name],
];
const enterpriseProjectRow = (project: EnterpriseProject) => ({
	NAME: project.enterprise_project_name,
	ID: project.enterprise_project_id,
	DESCRIPTION: project.description ?? "",
});

const spaceLines = (space: SpaceAccess): Line[] => [
	["resource space", space.app_id],
	[
		"enterprise project",
		`${space.enterprise_project_name} (${space.enterprise_project_id})`,
	],
	[
		"tags",
		Object.entries(space.tags)
			.map(([key, value]) => `${key}=${value}`)
			.join(", ") || "–",
	],
];

function decisionText(
	userName: string,
	action: string,
	{ allowed, because, statement }: AccessSimulation,
): string {
	const may = `${oneLine(userName)} ${allowed ? "may" : "may not"} ${action}: `;
	const by = statement
		? `statement ${statement.index + 1}${statement.sid === undefined ? "" : ` (${statement.sid})`} of the policy ${statement.policy_name}`
		: undefined;
	switch (because) {
		case "account":
			return `${may}he is an administrator.`;
		case "allowed":
			return `${may}${by ?? "everybody"} allows it.`;
		case "denied":
			return `${may}${by ?? "a policy"} denies it.`;
		case "no_statement":
			return `${may}nothing that is granted to him allows it.`;
		case "administrators_only":
			return `${may}only administrators may, whatever is granted.`;
		case "disabled":
			return `${may}he is disabled.`;
		default:
			return because satisfies never;
	}
}

function usage(message: string): CommandError {
	return new CommandError(message, "See otaru access --help.", exitCodes.usage);
}

export const access: Command = {
	summary: "manage users, their keys, and what each may do",
	help,
	run,
};
