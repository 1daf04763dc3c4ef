/** `otaru access` manages users, their keys, and what each may do. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { sqlite } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import {
	allowing,
	grantTo,
	makePerson,
	makeProgram,
	type Program,
	signIn,
	somePassword,
} from "./support/people.ts";
import { refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

describe("otaru access", () => {
	let server: TestServer;
	let directory: string;
	before(async () => {
		directory = mkdtempSync(join(tmpdir(), "otaru-test-access-"));
		server = await startServer(sqlite);
	});
	after(async () => {
		await server[Symbol.asyncDispose]();
		rmSync(directory, { recursive: true });
	});

	async function otaru(...args: string[]) {
		await using command = new OtaruCommand(
			["access", ...args, "--data", server.config.dataDir],
			{ cwd: directory },
		);
		const code = await command.ended;
		return { code, stdout: command.stdout, stderr: command.stderr };
	}
	/** Without a data directory: as somebody on another machine. */
	async function elsewhere(
		env: Record<string, string>,
		...args: string[]
	): Promise<{ code: unknown; stdout: string; stderr: string }> {
		await using command = new OtaruCommand(["access", ...args], {
			cwd: directory,
			env,
		});
		const code = await command.ended;
		return { code, stdout: command.stdout, stderr: command.stderr };
	}
	const signedBy = ({ accessKey, secretKey }: Program) => ({
		OTARU_ENDPOINT: server.url,
		HUAWEICLOUD_SDK_AK: accessKey,
		HUAWEICLOUD_SDK_SK: secretKey,
	});
	/** What it says, once it has succeeded. */
	async function said(...args: string[]): Promise<string> {
		const { code, stdout, stderr } = await otaru(...args);
		assert.equal(code, 0, stderr);
		assert.equal(stderr, "");
		return stdout;
	}
	const answered = async (...args: string[]) =>
		JSON.parse(await said(...args, "--json"));
	const field = (text: string, name: string): string =>
		new RegExp(`^${name} +(.+)$`, "m").exec(text)?.[1] ?? "";
	const write = (name: string, text: string) => {
		writeFileSync(join(directory, name), text);
		return name;
	};

	test("a user is created with a password that is shown once and signs in", async () => {
		const created = await said("users", "create", "olga", "--description", "x");
		const password = field(created, "password");
		assert.match(password, /^[A-Za-z0-9]{24}$/);
		await signIn(server, { user: { user_name: "olga" }, password });
		const shown = await said("users", "show", "olga");
		assert.equal(shown.includes(password), false);
		assert.match(shown, /^status +enabled, must change the password$/m);
		assert.match(shown, /^groups +–$/m);
		const list = await said("users", "list");
		assert.match(list, /^NAME +ID +LAST SIGN-IN +STATUS$/m);
		assert.match(list, /^olga {2,}[0-9a-f]{32} /m);
		const lines = (await said("users", "list", "--json")).trim().split("\n");
		assert.deepEqual(
			lines.map((line) => JSON.parse(line).user_name),
			["olga", "admin"],
		);
	});

	test("a password can come from a file, be reset, and be taken away", async () => {
		const password = somePassword();
		const file = write("password", `${password}\n`);
		const user = await answered(
			...["users", "create", "ivan", "--password-file", file],
		);
		assert.equal("password" in user, false);
		await signIn(server, { user, password });
		const reset = await answered("users", "reset-password", "ivan");
		await refused(signIn(server, { user, password }), 401, "401");
		await signIn(server, { user, password: reset.password });
		await said("users", "reset-password", "ivan", "--no-password");
		assert.match(
			await said("users", "show", user.user_id),
			/^status +enabled, access keys only$/m,
		);
	});

	test("a user is disabled, enabled, promoted, demoted and deleted", async () => {
		await said("users", "create", "petra", "--administrator");
		const status = async (verb: string) =>
			field(await said("users", verb, "petra"), "status");
		assert.match(await status("disable"), /^disabled, administrator/);
		assert.match(await status("enable"), /^enabled, administrator/);
		assert.match(await status("demote"), /^enabled, must/);
		assert.match(await status("promote"), /^enabled, administrator/);
		assert.equal(
			await said("users", "delete", "petra"),
			"The user petra is deleted.\n",
		);
		const { code, stderr } = await otaru("users", "delete", "admin");
		assert.equal(code, 3);
		assert.match(stderr, /No administrator who can sign in would be left/);
	});

	test("keys are created with the secret shown once, disabled and deleted", async () => {
		await said("users", "create", "robot", "--no-password");
		const created = await said("keys", "create", "robot");
		const accessKey = field(created, "access key");
		const secretKey = field(created, "secret key");
		const his = server.api.as({ accessKey, secretKey });
		assert.equal((await his.getMe()).user_name, "robot");
		const list = await said("keys", "list", "robot");
		assert.match(list, new RegExp(`^${accessKey} +enabled`, "m"));
		assert.equal(list.includes(secretKey), false);
		await said("keys", "disable", "robot", accessKey);
		await refused(his.getMe(), 401, "APIGW.0301");
		await said("keys", "enable", "robot", accessKey);
		await his.getMe();
		await said("keys", "delete", "robot", accessKey);
		assert.equal(
			await said("keys", "list", "robot"),
			"He has no access keys.\n",
		);
	});

	test("from a policy in a file to a decision, with names all the way", async () => {
		await said("users", "create", "dora", "--no-password");
		await said("groups", "create", "Firmware");
		await said("groups", "add", "Firmware", "dora");
		assert.match(await said("groups", "members", "Firmware"), /^dora /m);
		const file = write(
			"policy.json",
			JSON.stringify(allowing("iotda:otamodules:create")),
		);
		await said("policies", "create", "Module makers", file);
		const space = `app:${server.credentials.app_id}`;
		const before = await otaru("can", "dora", "iotda:otamodules:create", space);
		assert.equal(before.code, 1);
		assert.match(before.stdout, /^dora may not .* nothing that is granted/);

		const grant = await answered(
			...["grants", "create", "Module makers", "--group", "Firmware"],
			...["--project", server.credentials.project_name],
		);
		assert.equal(
			await said("can", "dora", "iotda:otamodules:create", space),
			"dora may iotda:otamodules:create: statement 1 of the policy Module makers allows it.\n",
		);
		const other = await otaru("can", "dora", "iotda:otamodules:delete", space);
		assert.equal(other.code, 1);
		assert.equal(
			await said("can", "admin", "iotda:otamodules:delete"),
			"admin may iotda:otamodules:delete: he is an administrator.\n",
		);
		const grants = await said("grants", "list", "--policy", "Module makers");
		assert.match(grants, /Module makers {2,}group Firmware {2,}project \S+$/m);
		assert.equal(
			await said("grants", "list", "--user", "dora"),
			"There are no such grants.\n",
		);
		const inUse = await otaru("policies", "delete", "Module makers");
		assert.equal(inUse.code, 3);
		assert.match(inUse.stderr, /1 grant uses it/);
		await said("grants", "delete", grant.grant_id);
		await said("policies", "update", "Module makers", file);
		assert.deepEqual(
			JSON.parse(await said("policies", "show", "Module makers")),
			allowing("iotda:otamodules:create"),
		);
		await said("policies", "delete", "Module makers");
		await said("groups", "remove", "Firmware", "dora");
		await said("groups", "rename", "Firmware", "Gauges");
		await said("groups", "delete", "Gauges");
		assert.match(
			await said("policies", "list"),
			/^IoTDA ReadOnlyAccess +\S+ +system /m,
		);
	});

	test("projects, enterprise projects and resource spaces", async () => {
		await said("projects", "create", "north");
		await said("projects", "rename", "north", "south");
		assert.match(await said("projects", "list"), /^south +[0-9a-f]{32} /m);
		await said("projects", "delete", "south");
		await said("enterprise-projects", "create", "Brand");
		const { app_id } = server.credentials;
		const set = await said(
			...["spaces", "set", app_id, "--enterprise-project", "Brand"],
			...["--tag", "team=north", "--tag", "note="],
		);
		assert.match(set, /^enterprise project +Brand \(/m);
		assert.match(set, /^tags +team=north, note=$/m);
		assert.match(
			await said("spaces", "set", app_id, "--no-tags"),
			/^tags +–$/m,
		);
		await said("spaces", "set", app_id, "--enterprise-project", "default");
		await said("enterprise-projects", "rename", "Brand", "Other");
		assert.match(
			await said("enterprise-projects", "list"),
			/^Other .*\n?^default +0$/m,
		);
		await said("enterprise-projects", "delete", "Other");
		assert.match(await said("me"), /^name +admin$/m);
	});

	test("a new user is told where to go, and gets there with nothing but the password", async () => {
		const created = await said("users", "create", "nadja");
		const password = field(created, "password");
		assert.ok(created.includes(`${server.url}/explorer`), created);
		const [, words = ""] =
			/otaru access (me password .*)$/m.exec(created) ?? [];
		const next = somePassword();
		const env = { OTARU_PASSWORD: password };
		const who = ["--as", "nadja", "--endpoint", server.url];
		assert.equal(words, `me password --endpoint ${server.url} --as nadja`);
		const held = await elsewhere(env, "me", "keys", "create", ...who);
		assert.equal(held.code, 3);
		assert.match(held.stderr, /\notaru access me password chooses/);
		const changed = await elsewhere(
			env,
			...words.split(" "),
			...["--new-password-file", write("new", `${next}\n`)],
		);
		assert.equal(changed.code, 0, changed.stderr);
		const old = await elsewhere(env, "me", ...who);
		assert.equal(old.code, 3);
		assert.match(old.stderr, /\nThe password of nadja is wrong, there is no/);

		const file = ["--as-password-file", write("new", next)];
		const made = await elsewhere({}, "me", "keys", "create", ...who, ...file);
		assert.equal(made.code, 0, made.stderr);
		const key = {
			HUAWEICLOUD_SDK_AK: field(made.stdout, "access key"),
			HUAWEICLOUD_SDK_SK: field(made.stdout, "secret key"),
			OTARU_ENDPOINT: server.url,
		};
		const me = await elsewhere(key, "me");
		assert.match(me.stdout, /^name +nadja$/m);
		assert.match(
			(await elsewhere(key, "me", "keys", "list")).stdout,
			new RegExp(`^${key.HUAWEICLOUD_SDK_AK} +enabled`, "m"),
		);
		// In a project that anybody who calls has to name, or that is the only one.
		const { app_id } = server.credentials;
		const space = await elsewhere(key, "spaces", "show", app_id);
		assert.equal(space.code, 3);
		assert.match(space.stderr, /no project that anything is granted to you/);
		await said("grants", "create", "IoTDA FullAccess", "--user", "nadja");
		const shown = await elsewhere(
			{},
			"spaces",
			"show",
			app_id,
			...who,
			...file,
		);
		assert.equal(shown.code, 0, shown.stderr);
		assert.match(shown.stdout, new RegExp(`^resource space +${app_id}$`, "m"));
	});

	test("the key that signs the call is taken away with a warning, and so is oneself", async () => {
		const program = await makeProgram(server.api);
		const { accessKey } = program;
		const env = signedBy(program);
		const own = await elsewhere(env, "me", "keys", "disable", accessKey);
		assert.equal(own.code, 0, own.stderr);
		assert.match(own.stderr, /^Warning: this very call is signed with \w+; no/);
		const refusal = await elsewhere(env, "me");
		assert.equal(refusal.code, 3);
		assert.match(
			refusal.stderr,
			new RegExp(
				`\nThe key ${accessKey} is unknown or disabled, its secret is wrong, or its user is disabled\\. The key came from HUAWEICLOUD_SDK_AK, the secret from HUAWEICLOUD_SDK_SK\\.\n`,
			),
		);
		for (const verb of ["demote", "disable", "delete"]) {
			const one = await makeProgram(server.api, { is_administrator: true });
			const { code, stderr } = await elsewhere(
				signedBy(one),
				...["users", verb, one.user.user_name, "--yes"],
			);
			assert.equal(code, 0, stderr);
			assert.match(stderr, /^Warning: \S+ is you, and /);
		}
		const other = await makePerson(server.api);
		assert.match(
			await said("users", "disable", other.user.user_name),
			/^status +disabled$/m,
		);
	});

	test("whoever may look at a user by his id can do so with the id alone", async () => {
		const { user } = await makePerson(server.api);
		const looker = await makeProgram(server.api);
		await grantTo(
			server.api,
			looker.user,
			allowing("iam:users:get", "iam:policies:simulate"),
		);
		const env = signedBy(looker);
		const shown = await elsewhere(env, "users", "show", user.user_id);
		assert.equal(shown.code, 0, shown.stderr);
		assert.match(shown.stdout, new RegExp(`^name +${user.user_name}$`, "m"));
		assert.match(shown.stdout, /^groups +\(not for you to see\)$/m);
		const can = ["can", user.user_id, "iotda:apps:query"];
		const asked = await elsewhere(env, ...can);
		assert.equal(asked.code, 1, asked.stderr);
		assert.match(asked.stdout, / may not iotda:apps:query: nothing/);
		const byName = await elsewhere(env, "users", "show", user.user_name);
		assert.equal(byName.code, 3);
		assert.match(
			byName.stderr,
			/403 IOTDA\.000022.*\notaru access can USER iam:users:list and otaru audit list --decision refused say why/,
		);
	});

	test("whether a user must change his password is an option, and his name is for good", async () => {
		const file = write("password", somePassword());
		const status = async (...args: string[]) =>
			field(await said("users", ...args), "status");
		assert.equal(
			await status(
				...["create", "vera", "--password-file", file],
				...["--must-change-password", "no"],
			),
			"enabled",
		);
		assert.equal(
			await status("update", "vera", "--must-change-password", "yes"),
			"enabled, must change the password",
		);
		assert.match(
			await said("users", "update", "vera", "--description", "on leave"),
			/^description +on leave$/m,
		);
	});

	test("what people wrote stays in its cell of a table, whatever it is", async () => {
		await said("groups", "create", "固件组", "--description", "a\n\tb");
		await said("groups", "create", "Zzz", "--description", "c");
		const [, zzz = "", chinese = ""] = (await said("groups", "list"))
			.split("\n")
			.filter((line) => /NAME|固件组|Zzz/.test(line));
		assert.match(chinese, /^固件组 {2}[0-9a-f]{32} {2}a {2}b$/);
		assert.match(zzz, /^Zzz {5}[0-9a-f]{32} {2}c$/);
	});

	test("the policies to copy from docs/access.md allow what they say, where they say", async () => {
		const page = readFileSync(
			join(import.meta.dirname, "..", "docs", "access.md"),
			"utf8",
		);
		const here = server.credentials.app_id;
		const there = (await server.api.createResourceSpace({ app_name: "There" }))
			.app_id;
		const documents = [...page.matchAll(/```json\n(.*?)```/gs)].map(
			([, text]) =>
				JSON.parse((text ?? "").replaceAll(/app:[0-9a-f]{32}/g, `app:${here}`)),
		);
		assert.equal(documents.length, 3);
		const everybody = ["iotda:devices:query", "iotda:batchtasks:queryList"];
		for (const [index, may, mayNot] of [
			[
				0,
				["otaru:objects:put", "iotda:otapackages:create"],
				["iotda:devices:freeze", "iotda:otapackages:delete"],
			],
			[
				1,
				["iotda:devices:freeze", "iotda:devices:unfreeze"],
				["iotda:batchtasks:create", "otaru:objects:put"],
			],
			[
				2,
				["iotda:otapackages:queryList"],
				["iotda:devices:freeze", "iotda:tags:bind"],
			],
		] as const) {
			const { user } = await makeProgram(server.api);
			await grantTo(server.api, user, documents[index]);
			const may_ = async (action: string, app_id: string) =>
				(
					await server.api.simulateAccess({
						user_id: user.user_id,
						action,
						app_id,
					})
				).allowed;
			for (const action of [...may, ...everybody]) {
				assert.equal(await may_(action, here), true, `${index} ${action}`);
				if (action.startsWith("iotda:"))
					assert.equal(await may_(action, there), false, `${index} ${action}`);
			}
			for (const action of mayNot)
				assert.equal(await may_(action, here), false, `${index} ${action}`);
		}
	});

	test("the server named once more is the same server, and another one needs a key", async () => {
		const { dataDir } = server.config;
		assert.match(
			await said("me", "--endpoint", `${server.url}/`),
			/^name +admin$/m,
		);
		const other = await otaru("me", "--endpoint", "http://127.0.0.1:9");
		assert.equal(other.code, 2);
		assert.ok(
			other.stderr.startsWith(
				`otaru: --endpoint names another server than ${dataDir}/credentials.json, so --access-key, --secret-key and --project-id are needed too.\n`,
			),
			other.stderr,
		);
	});

	test("the environment names server and key, options beat it, and it beats the file", async () => {
		const program = await makeProgram(server.api);
		const env = signedBy(program);
		const name = async (
			surroundings: Record<string, string>,
			...args: string[]
		) => {
			const said = await elsewhere(surroundings, "me", ...args);
			return field(said.stdout, "name") || said.stderr;
		};
		const { dataDir } = server.config;
		assert.equal(await name(env), program.user.user_name);
		assert.equal(
			await name({ ...env, OTARU_DATA: dataDir, OTARU_ENDPOINT: "" }),
			program.user.user_name,
		);
		assert.equal(await name({ OTARU_DATA: dataDir }), "admin");
		assert.equal(await name(env, "--data", dataDir), "admin");
		const { access_key, secret_key } = server.credentials;
		assert.equal(
			await name(env, "--access-key", access_key, "--secret-key", secret_key),
			"admin",
		);
		assert.match(
			await name({ ...env, HUAWEICLOUD_SDK_SK: "" }),
			/HUAWEICLOUD_SDK_SK is missing beside HUAWEICLOUD_SDK_AK/,
		);
		assert.match(
			await name(env, "--access-key", access_key),
			/--secret-key is missing beside --access-key/,
		);
		assert.match(
			await name({ OTARU_ENDPOINT: "nonsense" }),
			/OTARU_ENDPOINT must be http/,
		);
	});

	for (const [what, args] of [
		["a user", ["users", "show", "nobody"]],
		["a user group", ["groups", "members", "nobody"]],
		["a policy", ["policies", "show", "nothing"]],
		["a project", ["projects", "delete", "nowhere"]],
		["an enterprise project", ["enterprise-projects", "delete", "nothing"]],
		["a user's key", ["keys", "disable", "admin", "NOKEY"]],
		["a user's key", ["keys", "delete", "admin", "no key"]],
		["one's own key", ["me", "keys", "enable", "NOKEY"]],
		["one's own key", ["me", "keys", "delete", "NOKEY"]],
		["a grant", ["grants", "delete", "0".repeat(32)]],
		["a resource space", ["spaces", "show", "nowhere"]],
		["a resource space", ["spaces", "set", "nowhere", "--no-tags"]],
	] as const)
		test(`${what} that is not there (${args.slice(0, 2).join(" ")}) ends with 2`, async () => {
			const { code, stdout, stderr } = await otaru(...args);
			assert.equal(code, 2, stderr);
			assert.equal(stdout, "");
			assert.match(stderr, /^otaru: There is no .+\n.+\n$/);
		});

	test("every verb is in the help with the options that go with it, and takes no other", async () => {
		const help = await said("--help");
		assert.match(help, /^ {2}rename GROUP NAME .*\n {2}members GROUP/m);
		assert.match(
			help,
			/^ {2}create NAME .*\n +--description\n {2}rename GROUP/m,
		);
		for (const args of [
			["users", "list", "--description", "x"],
			["users", "show", "admin", "--administrator"],
			["groups", "rename", "a", "b", "--description", "x"],
			["projects", "create", "x", "--description", "x"],
			["grants", "list", "--project", "x"],
			["grants", "create", "x", "--user", "a", "--policy", "b"],
			["me", "--description", "x"],
			["me", "keys", "list", "--yes"],
			["can", "admin", "iotda:apps:query", "--project", "x"],
		]) {
			const { code, stderr } = await otaru(...args);
			assert.equal(code, 2, args.join(" "));
			assert.match(
				stderr,
				/^otaru: --\S+ does not go with .+\.\notaru access --help says which/,
			);
		}
	});

	test("a key that failed too often is told when to try again", async () => {
		await using other = await startServer(sqlite);
		const { endpoint, project_id } = other.credentials;
		const guess = ["me", "--endpoint", endpoint, "--project-id", project_id];
		const wrong = other.api.as({ accessKey: "NOBODY", secretKey: "x" });
		for (let attempt = 0; attempt < 12; attempt++)
			await wrong.getMe().catch(() => {});
		const { code, stderr } = await elsewhere(
			{ HUAWEICLOUD_SDK_AK: "NOBODY", HUAWEICLOUD_SDK_SK: "x" },
			...guess,
		);
		assert.equal(code, 3);
		assert.match(
			stderr,
			/^otaru: The server listens to this key, or to this address, no more for now.*\nTry again in \d+ seconds?\. /,
		);
	});

	test("credentials.json stays as it is, whatever the commands do", () => {
		assert.deepEqual(
			JSON.parse(
				readFileSync(join(server.config.dataDir, "credentials.json"), "utf8"),
			),
			server.credentials,
		);
	});

	for (const [what, args, words] of [
		[
			"a server that is no address",
			["users", "list", "--endpoint", "nonsense"],
			"--endpoint must be http:// or https://",
		],
		["a name without a password", ["me", "--as", "olga"], "OTARU_PASSWORD"],
		[
			"a key and a name",
			["me", "--as", "olga", "--access-key", "x"],
			"exclude each other",
		],
		[
			"an account of nobody",
			["me", "--domain", "x"],
			"--domain goes with --as",
		],
		["no new password", ["me", "password"], "present password is missing"],
		[
			"neither yes nor no",
			["users", "create", "x", "--must-change-password", "maybe"],
			"must be yes or no",
		],
		[
			"nothing to change",
			["users", "update", "admin"],
			"missing what to change",
		],
		["nothing to do with me", ["me", "dance"], '"dance" is nothing to do with'],
		["nothing", [], "missing what about"],
		["a subject that is none", ["robots"], '"robots" is nothing of access'],
		["a subject like an object's property", ["toString"], "is nothing of"],
		["no verb", ["users"], "missing what to do with users"],
		["a verb that is none", ["users", "dance"], '"dance" is nothing to do'],
		["a missing word", ["keys", "disable", "olga"], "keys disable USER KEY"],
		["a word too many", ["users", "list", "all"], '"all" is one word too many'],
		["an unknown option", ["users", "list", "--colour"], "--colour"],
		[
			"a grant to nobody",
			["grants", "create", "IoTDA FullAccess"],
			"--user or --group",
		],
		[
			"a grant to two",
			["grants", "list", "--user", "a", "--group", "b"],
			"exclude each other",
		],
		[
			"a user that is not there",
			["users", "show", "nobody"],
			'no user "nobody"',
		],
		["a name that is none", ["users", "show", "a b"], 'no user "a b"'],
		[
			"a policy that is not there",
			["policies", "show", "nothing"],
			"otaru access policies list",
		],
		[
			"a file that is not there",
			["policies", "create", "x", "no-such-file"],
			"FILE cannot be read",
		],
		[
			"a file that is no JSON",
			["policies", "create", "x", "bad.json"],
			"bad.json is not JSON",
		],
		[
			"nothing to set",
			["spaces", "set", "x"],
			"--enterprise-project, --tag or --no-tags",
		],
		[
			"a tag without a value",
			["spaces", "set", "x", "--tag", "a"],
			"KEY=VALUE",
		],
		[
			"a resource that is none",
			["can", "admin", "iotda:apps:query", "7"],
			"RESOURCE must be",
		],
	] as const)
		test(`${what}: a sentence, what to do, and the exit code 2`, async () => {
			write("bad.json", "{");
			const { code, stdout, stderr } = await otaru(...args);
			assert.equal(code, 2, stderr);
			assert.equal(stdout, "");
			assert.ok(stderr.includes(words), stderr);
			assert.equal(stderr.trim().split("\n").length, 2, stderr);
		});
});
