/** `otaru access` manages users, their keys, and what each may do. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { sqlite } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { allowing, signIn, somePassword } from "./support/people.ts";
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

	for (const [what, args, words] of [
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
