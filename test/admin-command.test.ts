/** `otaru admin` lets an administrator in again when nobody can sign in. */
import assert from "node:assert/strict";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { lastAudit } from "./support/audit.ts";
import { forEachEngine } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { makePerson, signIn, somePassword } from "./support/people.ts";
import { refused } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

async function admin(env: Record<string, string>, ...args: string[]) {
	await using command = new OtaruCommand(["admin", ...args], { env });
	const code = await command.ended;
	return { code, stdout: command.stdout, stderr: command.stderr };
}

function settingsOf({ config }: TestServer): Record<string, string> {
	return {
		OTARU_DATA: config.dataDir,
		// Of a shell in which the other commands are used as well.
		OTARU_ENDPOINT: "http://127.0.0.1:9",
		OTARU_PROJECT_ID: "x",
		OTARU_PASSWORD: "x",
		...(config.database.kind === "postgres" && {
			OTARU_DATABASE_URL: config.database.url,
		}),
	};
}

/** The outcome, once it has succeeded. */
async function reset(server: TestServer, ...args: string[]) {
	const { code, stdout, stderr } = await admin(
		settingsOf(server),
		...["reset-administrator", "--json", ...args],
	);
	assert.equal(code, 0, stderr);
	assert.equal(stderr, "");
	return JSON.parse(stdout) as {
		user_name: string;
		user_id: string;
		created: boolean;
		password: string;
		access_key?: string;
		secret_key?: string;
	};
}

function clientOf(server: TestServer, made: Awaited<ReturnType<typeof reset>>) {
	const { access_key: accessKey = "", secret_key: secretKey = "" } = made;
	return server.api.as({ accessKey, secretKey });
}

forEachEngine((engine) => {
	test("while the server runs, a disabled administrator without password and keys gets in again", async () => {
		await using server = await startServer(engine);
		const { db } = server.server;
		await db.deleteFrom("access_keys").execute();
		await db
			.updateTable("users")
			.set({ enabled: 0, password_hash: "none" })
			.execute();
		await refused(server.api.getMe(), 401, "APIGW.0301");

		const made = await reset(server);
		assert.equal(made.user_name, "admin");
		assert.equal(made.created, false);
		const api = clientOf(server, made);
		const me = await api.getMe();
		assert.deepEqual(
			[me.user_name, me.is_administrator, me.must_change_password],
			["admin", true, true],
		);
		const user = { user_name: "admin" };
		const held = await signIn(server, { user, password: made.password });
		await refused(held.listUsers(), 403, "IOTDA.015924");
		const password = somePassword();
		await held.changeOwnPassword({
			password: made.password,
			new_password: password,
		});
		const free = await signIn(server, { user, password });
		assert.equal((await free.listUsers()).users.length, 1);

		const row = await lastAudit(api, {
			action: "iam:users:resetAdministrator",
		});
		assert.deepEqual(
			[row.credential, row.resource, row.status, row.decision, row.user_id],
			["store", made.user_id, 200, "allowed", undefined],
		);
		assert.match(row.reason ?? "", /^admin, by \S+ of \S+$/);
		const { intact } = await api.verifyAudit();
		assert.equal(intact, true);
		assert.equal(
			JSON.stringify(row).includes(made.password) ||
				JSON.stringify(row).includes(made.secret_key ?? "?"),
			false,
		);
	});

	test("while it is stopped, too; another user becomes one, or is made", async () => {
		await using server = await startServer(engine);
		const person = await makePerson(server.api);
		const { user_id } = person.user;
		const { access_key } = await server.api.createAccessKey(user_id);
		let promoted: Awaited<ReturnType<typeof reset>> | undefined;
		let made: Awaited<ReturnType<typeof reset>> | undefined;
		await server.restart(async () => {
			promoted = await reset(server, "--user", person.user.user_name);
			made = await reset(server, "--user", "rescue");
		});
		assert.ok(promoted && made);
		assert.equal(promoted.user_id, person.user.user_id);
		assert.deepEqual([promoted.created, made.created], [false, true]);
		for (const one of [promoted, made])
			assert.equal(
				(await clientOf(server, one).getMe()).is_administrator,
				true,
			);
		await refused(signIn(server, person), 401, "401");
		// Whoever made it for him would be an administrator by it now.
		const { access_keys } = await server.api.listAccessKeys(user_id);
		assert.deepEqual(
			access_keys.map((key) => key.access_key),
			[promoted.access_key],
		);
		assert.notEqual(promoted.access_key, access_key);
		const { users } = await server.api.listUsers();
		assert.deepEqual(
			users.map(({ user_name }) => user_name).sort(),
			["admin", person.user.user_name, "rescue"].sort(),
		);
		assert.equal((await server.api.verifyAudit()).intact, true);
	});

	test("no key that works is taken away unasked, and no third one is made", async () => {
		await using server = await startServer(engine);
		const { access_key: first } = server.credentials;
		const second = await reset(server);
		assert.ok(second.access_key);
		const full = await admin(settingsOf(server), "reset-administrator");
		assert.equal(full.code, 0, full.stderr);
		assert.doesNotMatch(full.stdout, /^access key/m);
		assert.match(full.stdout, /2 access keys already.*--replace-keys/);
		assert.match(full.stdout, /^password +[A-Za-z0-9]{24}$/m);
		assert.match(full.stdout, /^ {2}otaru access me password --as admin$/m);

		const api = clientOf(server, second);
		await api.updateAccessKey(second.user_id, first, { enabled: false });
		const third = await reset(server);
		const keysOf = async (made: typeof third) =>
			(await clientOf(server, made).listOwnAccessKeys()).access_keys
				.map(({ access_key }) => access_key)
				.sort();
		assert.deepEqual(
			await keysOf(third),
			[second.access_key, third.access_key].sort(),
		);
		const only = await reset(server, "--replace-keys");
		assert.deepEqual(await keysOf(only), [only.access_key]);
		await refused(api.getMe(), 401, "APIGW.0301");
	});

	test("where the row cannot be kept nothing is changed", async () => {
		await using server = await startServer(engine);
		const { db } = server.server;
		await db.updateTable("audit_ends").set({ seal: "forged" }).execute();
		const before = await db.selectFrom("users").selectAll().execute();
		const { code, stdout, stderr } = await admin(
			settingsOf(server),
			...["reset-administrator", "--user", "rescue"],
		);
		assert.equal(code, 1, stderr);
		assert.equal(stdout, "");
		assert.match(stderr, /^otaru: Nothing was changed.*\n.*docs\/audit\.md/);
		assert.deepEqual(
			await db.selectFrom("users").selectAll().execute(),
			before,
		);
	});
});

describe("what is not the server's store", () => {
	test("a directory without one stays as it is", async () => {
		const directory = mkdtempSync(join(tmpdir(), "otaru-test-admin-"));
		try {
			const dataDir = join(directory, "elsewhere");
			const { code, stderr } = await admin(
				{},
				...["reset-administrator", "--data", dataDir],
			);
			assert.equal(code, 2);
			assert.match(
				stderr,
				/^otaru: There is no store to open: .*\n.*OTARU_DATA/,
			);
			assert.equal(existsSync(dataDir), false);
		} finally {
			rmSync(directory, { recursive: true });
		}
	});

	for (const [what, env, words] of [
		[
			"a database that does not answer",
			{ OTARU_DATABASE_URL: "postgres://127.0.0.1:9/nothing" },
			/ECONNREFUSED|cannot be reached/,
		],
		["a setting that is none", { OTARU_DATABSE: "x" }, /OTARU_DATABSE is not/],
	] as const)
		test(`${what} is a sentence`, async () => {
			const { code, stderr } = await admin(env, "reset-administrator");
			assert.equal(code, 1, stderr);
			assert.match(stderr, words);
			assert.equal(stderr.trim().split("\n").length, 2, stderr);
		});

	for (const args of [
		[],
		["dance"],
		["reset-administrator", "admin"],
		["reset-administrator", "--user", "a b"],
		["reset-administrator", "--endpoint", "x"],
	])
		test(`"admin ${args.join(" ")}" ends with 2`, async () => {
			const { code, stderr } = await admin({}, ...args);
			assert.equal(code, 2, stderr);
			assert.match(stderr, /^otaru: .+\n.+\n$/);
		});
});
