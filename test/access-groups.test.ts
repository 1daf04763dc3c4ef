/** User groups: their members inherit what is granted to them. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Client } from "../wire/client.ts";
import { forEachEngine } from "./support/engines.ts";
import { allowing, makeProgram } from "./support/people.ts";
import { refused, succeeded, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";
const INVALID = "IOTDA.000006";

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	before(async () => {
		server = await startServer(engine);
		api = server.api;
	});
	after(() => server[Symbol.asyncDispose]());

	test("a group is created, shown, changed, listed and deleted", async () => {
		const group_name = unique("Nachtschicht");
		const created = await api.createUserGroup({
			group_name,
			description: "From ten to six",
		});
		assert.match(created.group_id, /^[0-9a-f]{32}$/);
		assert.deepEqual(created, {
			group_id: created.group_id,
			group_name,
			description: "From ten to six",
			create_time: created.create_time,
		});
		assert.deepEqual(await api.getUserGroup(created.group_id), created);
		assert.deepEqual(await api.updateUserGroup(created.group_id, {}), created);
		const renamed = await api.updateUserGroup(created.group_id, {
			group_name: `${group_name} 2`,
			description: "",
		});
		assert.deepEqual(renamed, {
			group_id: created.group_id,
			group_name: `${group_name} 2`,
			create_time: created.create_time,
		});
		const { groups } = await api.listUserGroups({
			group_name: `${group_name} 2`,
		});
		assert.deepEqual(groups, [renamed]);
		await api.deleteUserGroup(created.group_id);
		await refused(api.getUserGroup(created.group_id), 404, "IOTDA.015901");
	});

	test("a name is taken once, also by renaming, however close two come", async () => {
		const group_name = unique("crew");
		assert.equal(
			await succeeded(
				Array.from({ length: 5 }, () => api.createUserGroup({ group_name })),
				400,
				"IOTDA.015909",
			),
			1,
		);
		const other = await api.createUserGroup({ group_name: unique("crew") });
		await refused(
			api.updateUserGroup(other.group_id, { group_name }),
			400,
			"IOTDA.015909",
		);
	});

	test("members come and go, and are listed from both sides, in pages", async () => {
		const one = await api.createUserGroup({ group_name: unique("one") });
		const two = await api.createUserGroup({ group_name: unique("two") });
		const first = (await makeProgram(api)).user;
		const second = (await makeProgram(api)).user;
		for (const group of [one, two])
			for (const user of [first, second])
				await api.addUserToGroup(group.group_id, user.user_id);
		await api.addUserToGroup(one.group_id, first.user_id);

		const page1 = await api.listUsersOfGroup(one.group_id, { limit: 1 });
		assert.deepEqual(
			page1.users.map((user) => user.user_id),
			[second.user_id],
		);
		assert.equal(page1.page.count, 2);
		const page2 = await api.listUsersOfGroup(one.group_id, {
			marker: page1.page.marker ?? "",
		});
		assert.deepEqual(
			page2.users.map((user) => user.user_id),
			[first.user_id],
		);
		const groups = await api.listGroupsOfUser(first.user_id, { limit: 1 });
		assert.deepEqual(
			groups.groups.map((group) => group.group_id),
			[two.group_id],
		);
		assert.equal(groups.page.count, 2);

		await api.removeUserFromGroup(one.group_id, first.user_id);
		await refused(
			api.removeUserFromGroup(one.group_id, first.user_id),
			404,
			"IOTDA.015907",
		);
		await api.deleteUser(second.user_id);
		assert.deepEqual((await api.listUsersOfGroup(one.group_id)).users, []);
		await api.deleteUserGroup(two.group_id);
		assert.deepEqual((await api.listGroupsOfUser(first.user_id)).groups, []);
	});

	test("what a group is granted counts for its members, from the next call on", async () => {
		const { api: his, user } = await makeProgram(api);
		const group = await api.createUserGroup({ group_name: unique("g") });
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iotda:products:queryList"),
		});
		const { grant_id } = await api.createGrant({
			policy_id: policy.policy_id,
			principal: { type: "group", id: group.group_id },
			scope: { type: "all" },
		});
		await refused(his.listProducts(), 403, "IOTDA.000022");
		await api.addUserToGroup(group.group_id, user.user_id);
		await his.listProducts();
		await api.removeUserFromGroup(group.group_id, user.user_id);
		await refused(his.listProducts(), 403, "IOTDA.000022");
		await api.addUserToGroup(group.group_id, user.user_id);
		await api.deleteUserGroup(group.group_id);
		await refused(his.listProducts(), 403, "IOTDA.000022");
		await refused(api.getGrant(grant_id), 404, "IOTDA.015903");
	});

	test("somebody with the actions for groups manages them, and nobody else does", async () => {
		const clerk = await makeProgram(api);
		await refused(
			clerk.api.createUserGroup({ group_name: unique("g") }),
			403,
			"IOTDA.000022",
		);
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iam:groups:create", "iam:groups:list"),
		});
		await api.createGrant({
			policy_id: policy.policy_id,
			principal: { type: "user", id: clerk.user.user_id },
			scope: { type: "all" },
		});
		const group = await clerk.api.createUserGroup({ group_name: unique("g") });
		await clerk.api.listUserGroups();
		for (const call of [
			() => clerk.api.deleteUserGroup(group.group_id),
			() => clerk.api.addUserToGroup(group.group_id, clerk.user.user_id),
			() => clerk.api.listUsersOfGroup(group.group_id),
			() => clerk.api.listUsers(),
		])
			await refused(call(), 403, "IOTDA.000022");
	});

	test("bad input names the field", async () => {
		const { group_id } = await api.createUserGroup({ group_name: unique("g") });
		const { user } = await makeProgram(api);
		const groups = "/otaru/v1/access/groups";
		const send = (method: string, path: string, json: unknown) =>
			api.call(method, path, { json });
		for (const [json, words] of [
			[{}, "group_name is required"],
			[{ group_name: "" }, "group_name"],
			[{ group_name: "a".repeat(65) }, "group_name"],
			[{ group_name: "a;b" }, "group_name"],
			[{ group_name: 1 }, "group_name must be a string"],
			[{ group_name: "a", description: "a".repeat(256) }, "description"],
			[{ group_name: "a", description: [] }, "description"],
		] as const)
			await refused(send("POST", groups, json), 400, INVALID, words);
		for (const [json, words] of [
			[{ group_name: "" }, "group_name"],
			[{ description: 7 }, "description"],
		] as const)
			await refused(
				send("PUT", `${groups}/${group_id}`, json),
				400,
				INVALID,
				words,
			);
		for (const call of [
			() => api.getUserGroup(UNKNOWN),
			() => api.updateUserGroup(UNKNOWN, { group_name: "x" }),
			() => api.deleteUserGroup(UNKNOWN),
			() => api.listUsersOfGroup(UNKNOWN),
			() => api.addUserToGroup(UNKNOWN, user.user_id),
			() => api.removeUserFromGroup(UNKNOWN, user.user_id),
		])
			await refused(call(), 404, "IOTDA.015901");
		await refused(api.addUserToGroup(group_id, UNKNOWN), 404, "IOTDA.015900");
		await refused(
			api.removeUserFromGroup(group_id, UNKNOWN),
			404,
			"IOTDA.015900",
		);
		await refused(api.getUserGroup("a b"), 400, INVALID, "group_id");
		await refused(
			api.listUserGroups({ limit: 51 }),
			400,
			"IOTDA.000017",
			"limit",
		);
	});
});
