/** Users, their passwords and their access keys. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { KeyUses } from "../server/access/key-uses.ts";
import { passwordFault } from "../server/access/password-policy.ts";
import type { Client } from "../wire/client.ts";
import { HandClock } from "./support/clock.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import {
	allowing,
	grantTo,
	makePerson,
	makeProgram,
	signIn,
	somePassword,
} from "./support/people.ts";
import { refused, succeeded, unique } from "./support/seed.ts";
import { startBeside, startServer, type TestServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";
const LAST = "IOTDA.015914";
const FORBIDDEN = "IOTDA.000022";
const INVALID = "IOTDA.000006";
const UNAUTHENTICATED = "APIGW.0301";

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	before(async () => {
		server = await startServer(engine);
		api = server.api;
	});
	after(() => server[Symbol.asyncDispose]());

	const idOfAdmin = async () => {
		const { users } = await api.listUsers({
			user_name: server.credentials.user_name,
		});
		assert.ok(users[0]);
		return users[0].user_id;
	};

	test("a user is created, shown, changed, listed and deleted", async () => {
		const name = unique("olga.ivanova@maker");
		const created = await api.createUser({
			user_name: name,
			description: "Night shift",
			password: somePassword(),
		});
		assert.match(created.user_id, /^[0-9a-f]{32}$/);
		assert.match(created.create_time, /^\d{8}T\d{6}Z$/);
		assert.deepEqual(created, {
			user_id: created.user_id,
			user_name: name,
			description: "Night shift",
			enabled: true,
			is_administrator: false,
			password_sign_in: true,
			must_change_password: true,
			create_time: created.create_time,
		});
		assert.deepEqual(await api.getUser(created.user_id), created);
		assert.deepEqual(await api.updateUser(created.user_id, {}), created);

		const { description: _, ...plain } = created;
		assert.deepEqual(
			await api.updateUser(created.user_id, {
				description: "",
				enabled: false,
				must_change_password: false,
			}),
			{ ...plain, enabled: false, must_change_password: false },
		);
		const { users, page } = await api.listUsers({ user_name: name });
		assert.deepEqual([users.length, page.count], [1, 1]);
		await api.deleteUser(created.user_id);
		await refused(api.getUser(created.user_id), 404, "IOTDA.015900");
		await refused(api.deleteUser(created.user_id), 404, "IOTDA.015900");
	});

	test("lists come newest first, in pages, by name and by whether a user is enabled", async () => {
		const names = ["a", "b", "c"].map((letter) => unique(letter));
		const ids: string[] = [];
		for (const user_name of names)
			ids.push(
				(await api.createUser({ user_name, password_sign_in: false })).user_id,
			);
		await api.updateUser(ids[1] ?? "", { enabled: false });
		const first = await api.listUsers({ limit: 2 });
		assert.deepEqual(
			first.users.map((user) => user.user_id),
			[ids[2], ids[1]],
		);
		const second = await api.listUsers({
			limit: 1,
			marker: first.page.marker ?? "",
		});
		assert.equal(second.users[0]?.user_id, ids[0]);
		assert.equal(second.page.count, first.page.count);
		const disabled = await api.listUsers({ enabled: "false", limit: 1 });
		assert.equal(disabled.users[0]?.user_id, ids[1]);
	});

	test("a name is taken once, however close two come", async () => {
		const user_name = unique("twin");
		assert.equal(
			await succeeded(
				Array.from({ length: 6 }, () =>
					api.createUser({ user_name, password_sign_in: false }),
				),
				400,
				"IOTDA.015908",
			),
			1,
		);
	});

	test("a password that is left out is made up, answered once, and signs in", async () => {
		const created = await api.createUser({ user_name: unique("made") });
		assert.match(created.password ?? "", /^[A-Za-z0-9]{24}$/);
		assert.equal("password" in (await api.getUser(created.user_id)), false);
		await signIn(server, { user: created, password: created.password ?? "" });
		const shown = await api.getUser(created.user_id);
		assert.match(shown.last_sign_in_time ?? "", /^\d{8}T\d{6}Z$/);

		const reset = await api.updateUser(created.user_id, {
			generate_password: true,
		});
		assert.notEqual(reset.password, created.password);
		await signIn(server, { user: created, password: reset.password ?? "" });
	});

	test("a user without a password cannot sign in with one", async () => {
		const { user } = await makeProgram(api);
		assert.equal(user.password_sign_in, false);
		assert.equal(user.must_change_password, false);
		for (const password of ["none", "", "x"])
			await refused(
				server.api.signIn({
					domainName: server.credentials.domain_name,
					userName: user.user_name,
					password: password || " ",
				}),
				401,
				"401",
			);
	});

	describe("what is refused", () => {
		const cases: [
			what: string,
			body: Record<string, unknown>,
			words: string,
		][] = [
			["no name", {}, "user_name is required"],
			["an empty name", { user_name: "" }, "user_name must be 1 to 64"],
			["a blank in the name", { user_name: "a b" }, "user_name"],
			["a slash in the name", { user_name: "a/b" }, "user_name"],
			["a long name", { user_name: "a".repeat(65) }, "user_name"],
			["a number as name", { user_name: 7 }, "user_name must be a string"],
			["a long description", { description: "a".repeat(256) }, "description"],
			["a NUL in the description", { description: "\u0000" }, "description"],
			["a short password", { password: "short-4-you" }, "12 to 128"],
			["a long password", { password: "aB3-".repeat(33) }, "12 to 128"],
			["a number as password", { password: 123456789012 }, "password"],
			["no flag", { is_administrator: "true" }, "is_administrator"],
			[
				"a password for a program",
				{ password: "Vq7-treasure-map-x", password_sign_in: false },
				"password_sign_in",
			],
			[
				"a program that must change its password",
				{ must_change_password: true, password_sign_in: false },
				"must_change_password",
			],
		];
		for (const [what, body, words] of cases)
			test(what, async () => {
				await refused(
					api.call("POST", "/otaru/v1/access/users", {
						json:
							"user_name" in body || what === "no name"
								? body
								: { user_name: unique("bad"), ...body },
					}),
					400,
					INVALID,
					words,
				);
			});

		test("a bad change of a user", async () => {
			const { user } = await makePerson(api);
			for (const [body, words] of [
				[{ enabled: "yes" }, "enabled"],
				[{ description: 7 }, "description"],
				[{ password: "short" }, "password"],
				[{ password: user.user_name + user.user_name }, "user name"],
				[
					{ password: somePassword(), generate_password: true },
					"generate_password",
				],
				[{ password: somePassword(), password_sign_in: false }, "password"],
				[{ generate_password: true, password_sign_in: false }, "password"],
			] as const)
				await refused(
					api.call("PUT", `/otaru/v1/access/users/${user.user_id}`, {
						json: body,
					}),
					400,
					INVALID,
					words,
				);
			const { user: program } = await makeProgram(api);
			for (const body of [
				{ must_change_password: true },
				{ password_sign_in: true },
			])
				await refused(api.updateUser(program.user_id, body), 400, INVALID);
			assert.deepEqual(await api.getUser(program.user_id), program);
		});

		test("ids that nobody has, and ids that are none", async () => {
			const person = await makePerson(api);
			for (const call of [
				() => api.getUser(UNKNOWN),
				() => api.updateUser(UNKNOWN, { enabled: false }),
				() => api.deleteUser(UNKNOWN),
				() => api.createAccessKey(UNKNOWN),
				() => api.listAccessKeys(UNKNOWN),
				() => api.updateAccessKey(UNKNOWN, "K", {}),
				() => api.deleteAccessKey(UNKNOWN, "K"),
				() => api.listGroupsOfUser(UNKNOWN),
			])
				await refused(call(), 404, "IOTDA.015900");
			await refused(
				api.updateAccessKey(person.user.user_id, "K", { enabled: true }),
				404,
				"IOTDA.015904",
			);
			await refused(
				api.deleteAccessKey(person.user.user_id, "K"),
				404,
				"IOTDA.015904",
			);
			for (const id of ["a b", "é", "x".repeat(65)])
				await refused(api.getUser(id), 400, INVALID, "user_id");
			await refused(
				api.call("GET", "/otaru/v1/access/users", {
					query: { enabled: "maybe" },
				}),
				400,
				INVALID,
				"enabled",
			);
		});
	});

	// --- what ends tokens ----------------------------------------------------------

	test("tokens end at once when the user, his password, a key or his rights change", async () => {
		const person = await makePerson(api, { is_administrator: true });
		const { user_id } = person.user;
		const group = await api.createUserGroup({ group_name: unique("g") });
		const key = await api.createAccessKey(user_id);
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iotda:products:query"),
		});
		let grantId = "";
		const changes: [string, () => Promise<unknown>][] = [
			[
				"a key is disabled",
				() => api.updateAccessKey(user_id, key.access_key, { enabled: false }),
			],
			["a key is deleted", () => api.deleteAccessKey(user_id, key.access_key)],
			["he joins a group", () => api.addUserToGroup(group.group_id, user_id)],
			[
				"his group gets a grant",
				async () => {
					({ grant_id: grantId } = await api.createGrant({
						policy_id: policy.policy_id,
						principal: { type: "group", id: group.group_id },
						scope: { type: "all" },
					}));
				},
			],
			[
				"a policy of his changes",
				() =>
					api.updatePolicy(policy.policy_id, {
						document: allowing("iotda:products:create"),
					}),
			],
			["his group loses a grant", () => api.deleteGrant(grantId)],
			[
				"he leaves the group",
				() => api.removeUserFromGroup(group.group_id, user_id),
			],
			[
				"he stops being an administrator",
				() => api.updateUser(user_id, { is_administrator: false }),
			],
			["he is disabled", () => api.updateUser(user_id, { enabled: false })],
		];
		for (const [what, change] of changes) {
			const his = await signIn(server, person);
			assert.equal((await his.getMe()).user_id, user_id, what);
			await change();
			await refused(his.getMe(), 401, UNAUTHENTICATED);
		}
		await refused(signIn(server, person), 401, "401");
		await api.updateUser(user_id, { enabled: true });
		const his = await signIn(server, person);
		await api.updateUser(user_id, { description: "nothing that matters" });
		await api.createAccessKey(user_id);
		assert.equal(
			(await his.getMe()).user_id,
			user_id,
			"a new key or description ends nothing",
		);
		await api.updateUser(user_id, { password: somePassword() });
		await refused(his.getMe(), 401, UNAUTHENTICATED);
	});

	test("a deleted user's token and key are worth nothing any more", async () => {
		const person = await makePerson(api);
		const key = await api.createAccessKey(person.user.user_id);
		const byKey = api.as({
			accessKey: key.access_key,
			secretKey: key.secret_key,
		});
		const byToken = await signIn(server, person);
		await byKey.getMe();
		await byToken.getMe();
		await api.deleteUser(person.user.user_id);
		await refused(byToken.getMe(), 401, UNAUTHENTICATED);
		await refused(byKey.getMe(), 401, UNAUTHENTICATED);
		await refused(signIn(server, person), 401, "401");
	});

	test("who signs in while his password changes has no token afterwards", async () => {
		for (let round = 0; round < 4; round++) {
			const person = await makePerson(api);
			const [his] = await Promise.allSettled([
				signIn(server, person),
				api.updateUser(person.user.user_id, { password: somePassword() }),
			]);
			if (his.status === "fulfilled")
				await refused(his.value.getMe(), 401, UNAUTHENTICATED);
			else await refused(Promise.reject(his.reason), 401, "401");
		}
	});

	// --- access keys --------------------------------------------------------------

	test("an access key signs until it is disabled, and its secret is shown once", async () => {
		const { user } = await makePerson(api);
		const key = await api.createAccessKey(user.user_id, {
			description: "build server",
		});
		const { secret_key, ...shown } = key;
		assert.match(key.access_key, /^[A-Z0-9]{20}$/);
		assert.match(secret_key, /^[A-Za-z0-9]{40}$/);
		assert.deepEqual(shown, {
			access_key: key.access_key,
			description: "build server",
			enabled: true,
			create_time: key.create_time,
		});
		assert.deepEqual(await api.listAccessKeys(user.user_id), {
			access_keys: [shown],
		});
		const his = api.as({ accessKey: key.access_key, secretKey: secret_key });
		assert.equal((await his.getMe()).user_id, user.user_id);

		const disabled = await api.updateAccessKey(user.user_id, key.access_key, {
			enabled: false,
			description: "",
		});
		assert.equal(disabled.enabled, false);
		assert.equal("description" in disabled, false);
		await refused(his.getMe(), 401, UNAUTHENTICATED);
		await api.updateAccessKey(user.user_id, key.access_key, { enabled: true });
		await his.getMe();
		await api.updateUser(user.user_id, { enabled: false });
		await refused(his.getMe(), 401, UNAUTHENTICATED);
		await api.updateUser(user.user_id, { enabled: true });
		await his.getMe();
		await api.deleteAccessKey(user.user_id, key.access_key);
		await refused(his.getMe(), 401, UNAUTHENTICATED);
	});

	test("a user has at most two keys, however many ask at once", async () => {
		const { user } = await makePerson(api);
		assert.equal(
			await succeeded(
				Array.from({ length: 8 }, () => api.createAccessKey(user.user_id)),
				403,
				"IOTDA.015915",
			),
			2,
		);
		const { access_keys } = await api.listAccessKeys(user.user_id);
		assert.equal(access_keys.length, 2);
		const [first] = access_keys;
		assert.ok(first);
		await api.updateAccessKey(user.user_id, first.access_key, {
			enabled: false,
		});
		await refused(api.createAccessKey(user.user_id), 403, "IOTDA.015915");
		await api.deleteAccessKey(user.user_id, first.access_key);
		await api.createAccessKey(user.user_id);
	});

	test("another user's key is not found among one's own", async () => {
		const one = await makeProgram(api);
		const other = await makeProgram(api);
		await refused(
			api.deleteAccessKey(one.user.user_id, other.accessKey),
			404,
			"IOTDA.015904",
		);
		await refused(
			one.api.deleteOwnAccessKey(other.accessKey),
			404,
			"IOTDA.015904",
		);
		await other.api.getMe();
	});

	test("when a key was last used is known after a while, and costs one write in five minutes", async () => {
		const clock = new HandClock();
		await using own = await startServer(engine, { now: clock.now });
		const { user, accessKey } = await makeProgram(own.api);
		const lastUsed = async () =>
			(await own.api.listAccessKeys(user.user_id)).access_keys[0]
				?.last_used_time;
		assert.equal(await lastUsed(), undefined);
		const uses = new KeyUses({ db: own.server.db, now: clock.now });
		uses.note(accessKey);
		await uses.flush();
		const first = await lastUsed();
		assert.ok(first);
		clock.pass({ minutes: 4 });
		uses.note(accessKey);
		await uses.flush();
		assert.equal(await lastUsed(), first);
		clock.pass({ minutes: 2 });
		uses.note(accessKey);
		uses.note("SOMEBODYELSESKEY0000");
		await uses[Symbol.asyncDispose]();
		assert.notEqual(await lastUsed(), first);
	});

	test("a signed call counts as a use of its key", async () => {
		await using own = await startServer(engine);
		const program = await makeProgram(own.api);
		await program.api.getMe();
		await own.restart();
		const { access_keys } = await own.api.listAccessKeys(program.user.user_id);
		assert.match(access_keys[0]?.last_used_time ?? "", /^\d{8}T\d{6}Z$/);
	});

	// --- administrators ---------------------------------------------------------------

	test("the last administrator can be neither disabled nor demoted nor deleted nor left without a way in", async () => {
		await using own = await startServer(engine);
		const { users } = await own.api.listUsers({});
		const [admin] = users;
		assert.ok(admin);
		const { user_id } = admin;
		const [key] = (await own.api.listAccessKeys(user_id)).access_keys;
		assert.ok(key);
		for (const call of [
			() => own.api.updateUser(user_id, { enabled: false }),
			() => own.api.updateUser(user_id, { is_administrator: false }),
			() => own.api.deleteUser(user_id),
		])
			await refused(call(), 403, LAST);
		// One of the two ways in may go, but not both.
		await own.api.updateUser(user_id, { password_sign_in: false });
		await refused(
			own.api.updateAccessKey(user_id, key.access_key, { enabled: false }),
			403,
			LAST,
		);
		await refused(own.api.deleteAccessKey(user_id, key.access_key), 403, LAST);
		// Somebody who cannot sign in, or is disabled, is no help.
		const other = await own.api.createUser({
			user_name: "other",
			is_administrator: true,
			password_sign_in: false,
		});
		await refused(own.api.deleteUser(user_id), 403, LAST);
		await own.api.createAccessKey(other.user_id);
		await own.api.updateUser(other.user_id, { enabled: false });
		await refused(own.api.deleteUser(user_id), 403, LAST);
		await own.api.updateUser(other.user_id, { enabled: true });
		await own.api.deleteUser(user_id);
	});

	test("of two administrators who step back at the same moment one stays", async () => {
		await using own = await startServer(engine);
		await using beside =
			engine.name === "postgres" ? await startBeside(own) : undefined;
		const second = await makeProgram(own.api, { is_administrator: true });
		const {
			users: [, first],
		} = await own.api.listUsers({});
		assert.ok(first);
		let firstApi = own.api;
		let secondApi = (beside ?? own).api.as({
			accessKey: second.accessKey,
			secretKey: second.secretKey,
		});
		const steps: ((api: Client, id: string) => Promise<unknown>)[] = [
			(his, id) => his.updateUser(id, { is_administrator: false }),
			(his, id) => his.updateUser(id, { enabled: false }),
			(his, id) => his.updateUser(id, { is_administrator: false }),
			(his, id) => his.updateUser(id, { enabled: false }),
			(his, id) => his.updateUser(id, { is_administrator: false }),
		];
		for (const step of steps) {
			const [one, two] = await Promise.allSettled([
				step(firstApi, first.user_id),
				step(secondApi, second.user.user_id),
			]);
			assert.notEqual(one.status, two.status);
			const lost = one.status === "rejected" ? one : two;
			assert.ok(lost.status === "rejected");
			await refused(Promise.reject(lost.reason), 403, LAST);
			const left: Client = lost === one ? firstApi : secondApi;
			const gone = lost === one ? second.user.user_id : first.user_id;
			await left.updateUser(gone, { is_administrator: true, enabled: true });
			if ((await left.listAccessKeys(gone)).access_keys.length > 0) continue;
			const { access_key, secret_key } = await left.createAccessKey(gone);
			const signer = { accessKey: access_key, secretKey: secret_key };
			if (lost === one) secondApi = (beside ?? own).api.as(signer);
			else firstApi = own.api.as(signer);
		}
	});

	test("whoever may manage users becomes no administrator by it", async () => {
		const clerk = await makeProgram(api);
		await grantTo(api, clerk.user, allowing("iam:users:*", "iam:accessKeys:*"));
		const admin = await makePerson(api, { is_administrator: true });
		const adminKey = await api.createAccessKey(admin.user.user_id);
		const adminId = admin.user.user_id;
		for (const call of [
			() =>
				clerk.api.createUser({
					user_name: unique("sly"),
					is_administrator: true,
				}),
			() =>
				clerk.api.updateUser(clerk.user.user_id, { is_administrator: true }),
			() => clerk.api.updateUser(adminId, { description: "x" }),
			() => clerk.api.updateUser(adminId, { password: somePassword() }),
			() => clerk.api.updateUser(adminId, { enabled: false }),
			() => clerk.api.updateUser(adminId, { is_administrator: false }),
			() => clerk.api.deleteUser(adminId),
			() => clerk.api.createAccessKey(adminId),
			() =>
				clerk.api.updateAccessKey(adminId, adminKey.access_key, {
					description: "x",
				}),
			() => clerk.api.deleteAccessKey(adminId, adminKey.access_key),
		])
			await refused(call(), 403, FORBIDDEN);
		assert.deepEqual(await api.getUser(adminId), admin.user);
		const { user } = await makePerson(clerk.api);
		await clerk.api.updateUser(user.user_id, { generate_password: true });
		await clerk.api.createAccessKey(user.user_id);
		await clerk.api.deleteUser(user.user_id);
	});

	describe("whoever becomes an administrator", () => {
		test("loses the keys, the password and the tokens that others may have", async () => {
			const clerk = await makeProgram(api);
			await grantTo(
				api,
				clerk.user,
				allowing("iam:users:*", "iam:accessKeys:*"),
			);
			const { user } = await makePerson(api);
			const { user_id } = user;
			const keys = [
				await clerk.api.createAccessKey(user_id),
				await clerk.api.createAccessKey(user_id),
			];
			const [enabled, disabled] = keys;
			assert.ok(enabled && disabled);
			await clerk.api.updateAccessKey(user_id, disabled.access_key, {
				enabled: false,
			});
			const password = somePassword();
			await clerk.api.updateUser(user_id, {
				password,
				must_change_password: false,
			});
			const byKey = api.as({
				accessKey: enabled.access_key,
				secretKey: enabled.secret_key,
			});
			const byToken = await signIn(server, { user, password });
			await byKey.getMe();
			await byToken.getMe();

			const promoted = await api.updateUser(user_id, {
				is_administrator: true,
			});
			assert.match(promoted.password ?? "", /^[A-Za-z0-9]{24}$/);
			assert.equal(promoted.must_change_password, true);
			assert.equal("password" in (await api.getUser(user_id)), false);
			await refused(byKey.getMe(), 401, UNAUTHENTICATED);
			await refused(byToken.getMe(), 401, UNAUTHENTICATED);
			await refused(signIn(server, { user, password }), 401, "401");
			assert.deepEqual(await api.listAccessKeys(user_id), { access_keys: [] });
			await refused(
				clerk.api.updateAccessKey(user_id, disabled.access_key, {
					enabled: true,
				}),
				403,
				FORBIDDEN,
			);

			const his = await signIn(server, {
				user,
				password: promoted.password ?? "",
			});
			await refused(his.listUsers({}), 403, "IOTDA.015924");
			const own = somePassword();
			await his.changeOwnPassword({
				password: promoted.password ?? "",
				new_password: own,
			});
			await (await signIn(server, { user, password: own })).listUsers({});
			// He is one already: nothing is taken from him.
			const again = await api.updateUser(user_id, { is_administrator: true });
			assert.equal(again.password, undefined);
			assert.equal(again.must_change_password, false);
			await signIn(server, { user, password: own });
		});

		test("has the password that the same call gives him, and no other", async () => {
			const { user, password } = await makePerson(api);
			const next = somePassword();
			const promoted = await api.updateUser(user.user_id, {
				is_administrator: true,
				password: next,
				must_change_password: false,
			});
			assert.equal(promoted.password, undefined);
			await refused(signIn(server, { user, password }), 401, "401");
			await (await signIn(server, { user, password: next })).listUsers({});

			const other = await makePerson(api);
			const withoutOne = await api.updateUser(other.user.user_id, {
				is_administrator: true,
				password_sign_in: false,
			});
			assert.equal(withoutOne.password, undefined);
			assert.equal(withoutOne.password_sign_in, false);
			await refused(signIn(server, other), 401, "401");
		});

		test("gets no password when he had none, and loses his keys", async () => {
			const { user, api: his } = await makeProgram(api);
			const promoted = await api.updateUser(user.user_id, {
				is_administrator: true,
			});
			assert.equal(promoted.password, undefined);
			assert.equal(promoted.password_sign_in, false);
			assert.equal(promoted.must_change_password, false);
			await refused(his.getMe(), 401, UNAUTHENTICATED);
		});

		test("again, after it was taken back, loses what he was given meanwhile", async () => {
			const clerk = await makeProgram(api);
			await grantTo(api, clerk.user, allowing("iam:accessKeys:create"));
			const { user } = await makePerson(api, { is_administrator: true });
			await api.updateUser(user.user_id, {
				is_administrator: false,
				enabled: false,
			});
			const key = await clerk.api.createAccessKey(user.user_id);
			await api.updateUser(user.user_id, {
				is_administrator: true,
				enabled: true,
			});
			await refused(
				api
					.as({ accessKey: key.access_key, secretKey: key.secret_key })
					.getMe(),
				401,
				UNAUTHENTICATED,
			);
		});

		test("is left no key by somebody who makes one at the same moment", async () => {
			const clerk = await makeProgram(api);
			await grantTo(api, clerk.user, allowing("iam:accessKeys:create"));
			for (let round = 0; round < 4; round++) {
				const { user_id } = (await makePerson(api)).user;
				await Promise.allSettled([
					clerk.api.createAccessKey(user_id),
					api.updateUser(user_id, { is_administrator: true }),
					clerk.api.createAccessKey(user_id),
				]);
				const { access_keys } = await api.listAccessKeys(user_id);
				assert.deepEqual(access_keys, []);
			}
		});
	});

	test("without a grant a user manages nobody, and sees nobody", async () => {
		const { api: his, user } = await makeProgram(api);
		const admin = await idOfAdmin();
		for (const call of [
			() => his.listUsers({}),
			() => his.getUser(admin),
			() => his.getUser(UNKNOWN),
			() => his.getUser(user.user_id),
			() => his.createUser({ user_name: "" }),
			() => his.deleteUser(UNKNOWN),
			() => his.listAccessKeys(admin),
			() => his.createAccessKey(user.user_id),
		])
			await refused(call(), 403, FORBIDDEN);
	});

	// --- oneself ---------------------------------------------------------------------

	test("everybody can ask who he is", async () => {
		const mine = await api.getMe();
		assert.equal(mine.user_name, server.credentials.user_name);
		assert.equal(mine.account_name, server.credentials.domain_name);
		assert.equal(mine.is_administrator, true);
		assert.deepEqual(mine.groups, []);
		assert.ok(
			mine.projects.some(
				(project) => project.project_id === server.credentials.project_id,
			),
		);
		const { api: his, user } = await makeProgram(api);
		const group = await api.createUserGroup({ group_name: unique("crew") });
		await api.addUserToGroup(group.group_id, user.user_id);
		const me = await his.getMe();
		assert.equal(me.is_administrator, false);
		assert.deepEqual(me.groups, [
			{ group_id: group.group_id, group_name: group.group_name },
		]);
	});

	test("a password that somebody else chose must be changed before anything else", async () => {
		const password = somePassword();
		const user = await api.createUser({
			user_name: unique("new"),
			password,
			is_administrator: true,
		});
		const his = await signIn(server, { user, password });
		assert.equal((await his.getMe()).must_change_password, true);
		await refused(his.listProducts(), 403, "IOTDA.015924");
		await refused(his.listUsers({}), 403, "IOTDA.015924");
		await refused(his.createOwnAccessKey(), 403, "IOTDA.015924");

		const next = somePassword();
		await refused(
			his.changeOwnPassword({ password: next, new_password: next }),
			403,
			"IOTDA.015923",
		);
		await refused(
			his.changeOwnPassword({ password, new_password: password }),
			400,
			INVALID,
			"new_password must differ",
		);
		await refused(
			his.changeOwnPassword({ password, new_password: "too short" }),
			400,
			INVALID,
			"new_password",
		);
		await his.changeOwnPassword({ password, new_password: next });
		await refused(his.getMe(), 401, UNAUTHENTICATED);
		await refused(signIn(server, { user, password }), 401, "401");
		const again = await signIn(server, { user, password: next });
		assert.equal((await again.getMe()).must_change_password, false);
		await again.listProducts();
	});

	test("everybody manages his own keys, and keeps to two", async () => {
		const { api: his, user } = await makeProgram(api);
		const second = await his.createOwnAccessKey({ description: "spare" });
		await refused(his.createOwnAccessKey(), 403, "IOTDA.015915");
		const spare = api.as({
			accessKey: second.access_key,
			secretKey: second.secret_key,
		});
		assert.equal((await spare.getMe()).user_id, user.user_id);
		const changed = await his.updateOwnAccessKey(second.access_key, {
			enabled: false,
		});
		assert.equal(changed.enabled, false);
		await refused(spare.getMe(), 401, UNAUTHENTICATED);
		await his.deleteOwnAccessKey(second.access_key);
		assert.equal((await his.listOwnAccessKeys()).access_keys.length, 1);
	});

	test("a Deny keeps a user from making keys of his own, and from nothing that he needs", async () => {
		const person = await makePerson(api);
		const { user_id } = person.user;
		const { access_key, secret_key } = await api.createAccessKey(user_id);
		const his = api.as({ accessKey: access_key, secretKey: secret_key });
		const simulated = (action: string) =>
			api.call<{ allowed: boolean; because: string; statement?: object }>(
				"POST",
				"/otaru/v1/access/simulate",
				{ json: { user_id, action } },
			);
		const actions = {
			"iam:me:createAccessKey": () => his.createOwnAccessKey(),
			"iam:me:updateAccessKey": () =>
				his.updateOwnAccessKey(access_key, { description: "x" }),
			"iam:me:deleteAccessKey": () => his.deleteOwnAccessKey(access_key),
		};
		for (const action of Object.keys(actions))
			assert.deepEqual(await simulated(action), {
				allowed: true,
				because: "allowed",
			});
		const denying = (statement: object) =>
			grantTo(api, person.user, {
				Version: "5.0",
				Statement: [{ Effect: "Deny", Action: ["*"], ...statement }],
			});
		// Neither an address he comes from, nor a resource space, nor something else.
		await denying({
			Condition: { IpAddress: { "g:SourceIp": ["203.0.113.0/24"] } },
		});
		await denying({ Resource: ["iotda:*:*:app:*"] });
		await denying({ Action: ["iotda:*:*"] });
		await his.updateOwnAccessKey(access_key, { description: "still his" });
		await denying({
			Sid: "not-from-here",
			Condition: { NotIpAddress: { "g:SourceIp": ["203.0.113.0/24"] } },
		});
		for (const [action, call] of Object.entries(actions)) {
			await refused(call(), 403, FORBIDDEN, action);
			const { allowed, because, statement } = await simulated(action);
			assert.deepEqual([allowed, because], [false, "denied"]);
			assert.equal((statement as { sid?: string }).sid, "not-from-here");
		}
		const { access_keys } = await his.listOwnAccessKeys();
		assert.deepEqual(
			access_keys.map((key) => [key.access_key, key.description]),
			[[access_key, "still his"]],
		);
		await his.getMe();
		for (const action of ["iam:me:get", "iam:me:changePassword"])
			assert.equal((await simulated(action)).allowed, true);
		const byToken = await signIn(server, person);
		await refused(byToken.createOwnAccessKey(), 403, FORBIDDEN);
		await byToken.changeOwnPassword({
			password: person.password,
			new_password: somePassword(),
		});
	});
});

test("a wrong present password is tried a few times, and then has to wait", async () => {
	// It stands still: on a busy machine a guess takes as long as the first wait.
	const clock = new HandClock();
	await using server = await startServer(sqlite, { now: clock.now });
	const person = await makePerson(server.api);
	const his = await signIn(server, person);
	const guess = () =>
		his.changeOwnPassword({
			password: somePassword(),
			new_password: somePassword(),
		});
	for (let attempt = 0; attempt < 5; attempt++)
		await refused(guess(), 403, "IOTDA.015923");
	await refused(guess(), 429, "IOTDA.015925", "Try again in");
	clock.pass({ minutes: 5 });
	const newPassword = somePassword();
	await his.changeOwnPassword({
		password: person.password,
		new_password: newPassword,
	});
	await signIn(server, { user: person.user, password: newPassword });
});

describe("passwords", () => {
	for (const [password, words] of [
		["short-4-you", "12 to 128"],
		["🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀🚀", "12 to 128"],
		["aB3-".repeat(33), "12 to 128"],
		["aaaaaaaaaaaaaaa", "different"],
		["ababababababab", "different"],
		["82736459102834", "digits"],
		["i-am-olga-2026-x", "user name"],
		["OLGA-is-my-first-name", "user name"],
		["password12345", "common words"],
		["P4ssw0rd!P4ssw0rd!", "common words"],
		["qwertyuiop123", "common words"],
		["Welcome2026!!", "common words"],
		["abcdefghijklm", "common words"],
		["administrator1", "common words"],
		["ｐａｓｓｗｏｒｄ１２３４５", "common words"],
	] as const)
		test(`"${password}" is refused`, () => {
			assert.ok(
				passwordFault(password, "olga")?.includes(words),
				`${passwordFault(password, "olga")}`,
			);
		});
	for (const password of [
		"correct horse battery staple",
		"Vq7-treasure-map",
		"жёлтый самосвал у реки",
		"kx2Tq9LmZr4w",
	])
		test(`"${password}" is taken`, () => {
			assert.equal(passwordFault(password, "olga"), undefined);
		});
});
