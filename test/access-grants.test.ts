/** Grants: a policy for a user or a group, everywhere, in a project or an enterprise project. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { CreateGrant } from "../wire/access-management.ts";
import { Client } from "../wire/client.ts";
import { forEachEngine } from "./support/engines.ts";
import { allowing, makeProgram } from "./support/people.ts";
import { makeProduct, refused, succeeded, unique } from "./support/seed.ts";
import { startBeside, startServer, type TestServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";
const INVALID = "IOTDA.000006";
const FORBIDDEN = "IOTDA.000022";

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	before(async () => {
		server = await startServer(engine);
		api = server.api;
	});
	after(() => server[Symbol.asyncDispose]());

	const makePolicy = (...actions: string[]) =>
		api.createPolicy({
			policy_name: unique("p"),
			document: allowing(...(actions.length ? actions : ["iotda:*:*"])),
		});

	test("a grant says whom, what and where by id and by name", async () => {
		const { user } = await makeProgram(api);
		const group = await api.createUserGroup({ group_name: unique("g") });
		const policy = await makePolicy();
		const project = await api.createProject({
			project_name: unique("project"),
		});
		const enterprise = await api.createEnterpriseProject({
			enterprise_project_name: unique("Brand"),
		});
		const principals = [
			{ type: "user", id: user.user_id, name: user.user_name },
			{ type: "group", id: group.group_id, name: group.group_name },
		] as const;
		const scopes = [
			{ type: "all" },
			{ type: "project", id: project.project_id, name: project.project_name },
			{
				type: "enterprise_project",
				id: enterprise.enterprise_project_id,
				name: enterprise.enterprise_project_name,
			},
			{ type: "enterprise_project", id: "0", name: "default" },
		] as const;
		for (const principal of principals)
			for (const scope of scopes) {
				const created = await api.createGrant({
					policy_id: policy.policy_id,
					principal: { type: principal.type, id: principal.id },
					scope: {
						type: scope.type,
						...("id" in scope ? { id: scope.id } : {}),
					},
				});
				assert.deepEqual(created, {
					grant_id: created.grant_id,
					policy_id: policy.policy_id,
					policy_name: policy.policy_name,
					principal,
					scope,
					create_time: created.create_time,
				});
				assert.deepEqual(await api.getGrant(created.grant_id), created);
			}
		const count = async (query: Parameters<Client["listGrants"]>[0]) =>
			(await api.listGrants({ policy_id: policy.policy_id, ...query })).page
				.count;
		assert.equal(await count({}), 8);
		assert.equal(await count({ principal_type: "user" }), 4);
		assert.equal(await count({ principal_id: group.group_id }), 4);
		assert.equal(await count({ scope_type: "enterprise_project" }), 4);
		assert.equal(await count({ scope_id: project.project_id }), 2);
		assert.equal(
			await count({ principal_type: "group", principal_id: user.user_id }),
			0,
		);
		const { grants, page } = await api.listGrants({ limit: 1 });
		assert.equal(grants[0]?.scope.name, "default");
		const next = await api.listGrants({ limit: 1, marker: page.marker ?? "" });
		assert.equal(
			next.grants[0]?.scope.name,
			enterprise.enterprise_project_name,
		);
		const [grant] = grants;
		assert.ok(grant);
		await api.deleteGrant(grant.grant_id);
		await refused(api.getGrant(grant.grant_id), 404, "IOTDA.015903");
		await refused(api.deleteGrant(grant.grant_id), 404, "IOTDA.015903");
	});

	test("a system policy can be granted", async () => {
		const { api: his, user } = await makeProgram(api);
		const { policies } = await api.listPolicies({
			policy_name: "IoTDA ReadOnlyAccess",
		});
		const policy_id = policies[0]?.policy_id ?? "";
		const { policy_name } = await api.createGrant({
			policy_id,
			principal: { type: "user", id: user.user_id },
			scope: { type: "all" },
		});
		assert.equal(policy_name, "IoTDA ReadOnlyAccess");
		await his.listProducts();
		await refused(makeProduct(his), 403, FORBIDDEN);
	});

	test("the same grant is there once, however many ask at once", async () => {
		const { user } = await makeProgram(api);
		const policy = await makePolicy();
		const grant: CreateGrant = {
			policy_id: policy.policy_id,
			principal: { type: "user", id: user.user_id },
			scope: { type: "all" },
		};
		assert.equal(
			await succeeded(
				Array.from({ length: 6 }, () => api.createGrant(grant)),
				400,
				"IOTDA.015911",
			),
			1,
		);
	});

	test("a grant reaches as far as it says: a project, an enterprise project, or all", async () => {
		const policy = await makePolicy("iotda:products:*");
		const project = await api.createProject({
			project_name: unique("project"),
		});
		const inOther = (
			client: Client,
			key: { accessKey: string; secretKey: string },
		) =>
			new Client({
				endpoint: client.endpoint,
				projectId: project.project_id,
				credentials: key,
			});
		const enterprise = await api.createEnterpriseProject({
			enterprise_project_name: unique("Brand"),
		});
		const space = await api.createResourceSpace({ app_name: "branded" });
		await api.setSpaceAccess(space.app_id, {
			enterprise_project_id: enterprise.enterprise_project_id,
		});
		const grantee = async (scope: CreateGrant["scope"]) => {
			const program = await makeProgram(api);
			await api.createGrant({
				policy_id: policy.policy_id,
				principal: { type: "user", id: program.user.user_id },
				scope,
			});
			return {
				here: program.api,
				there: inOther(program.api, program),
			};
		};
		const all = await grantee({ type: "all" });
		await makeProduct(all.here);
		await makeProduct(all.there);
		const there = await grantee({ type: "project", id: project.project_id });
		await makeProduct(there.there);
		await refused(makeProduct(there.here), 403, FORBIDDEN);
		const branded = await grantee({
			type: "enterprise_project",
			id: enterprise.enterprise_project_id,
		});
		await makeProduct(branded.here, { app_id: space.app_id });
		await refused(
			makeProduct(branded.here, { app_id: server.credentials.app_id }),
			403,
			FORBIDDEN,
		);
		// Moved out of the enterprise project, the space is out of reach at once.
		await api.setSpaceAccess(space.app_id, { enterprise_project_id: "0" });
		await refused(
			makeProduct(branded.here, { app_id: space.app_id }),
			403,
			FORBIDDEN,
		);
	});

	test("a grant counts at once, on every server of the store, and so does its end", async () => {
		await using beside =
			engine.name === "postgres" ? await startBeside(server) : undefined;
		const { user, accessKey, secretKey } = await makeProgram(api);
		const there = (beside ?? server).api.as({ accessKey, secretKey });
		const policy = await makePolicy("iotda:products:queryList");
		for (let round = 0; round < 5; round++) {
			await refused(there.listProducts(), 403, FORBIDDEN);
			const { grant_id } = await api.createGrant({
				policy_id: policy.policy_id,
				principal: { type: "user", id: user.user_id },
				scope: { type: "all" },
			});
			await there.listProducts();
			await api.deleteGrant(grant_id);
		}
		await refused(there.listProducts(), 403, FORBIDDEN);
	});

	test("bad input names the field", async () => {
		const { user } = await makeProgram(api);
		const policy = await makePolicy();
		const good = {
			policy_id: policy.policy_id,
			principal: { type: "user", id: user.user_id },
			scope: { type: "all" },
		};
		for (const [changes, words] of [
			[{ policy_id: undefined }, "policy_id is required"],
			[{ policy_id: "" }, "policy_id"],
			[{ policy_id: UNKNOWN }, "policy_id must name a policy"],
			[{ principal: undefined }, "principal is required"],
			[{ principal: "user" }, "principal must be an object"],
			[{ principal: { type: "user" } }, "principal.id is required"],
			[
				{ principal: { type: "robot", id: user.user_id } },
				"principal.type must be one of",
			],
			[
				{ principal: { type: "user", id: UNKNOWN } },
				"principal.id must name a user",
			],
			[
				{ principal: { type: "group", id: user.user_id } },
				"principal.id must name a user group",
			],
			[{ scope: undefined }, "scope is required"],
			[{ scope: { type: "space", id: "0" } }, "scope.type must be one of"],
			[{ scope: { type: "all", id: "0" } }, "scope.id must be left out"],
			[{ scope: { type: "project" } }, "scope.id is required"],
			[{ scope: { type: "project", id: "0" } }, "scope.id must name a project"],
			[
				{ scope: { type: "enterprise_project", id: UNKNOWN } },
				"scope.id must name an enterprise project",
			],
		] as const)
			await refused(
				api.call("POST", "/otaru/v1/access/grants", {
					json: { ...good, ...changes },
				}),
				400,
				INVALID,
				words,
			);
		assert.equal(
			(await api.listGrants({ principal_id: user.user_id })).page.count,
			0,
		);
		await refused(
			api.call("GET", "/otaru/v1/access/grants", {
				query: { scope_type: "planet" },
			}),
			400,
			INVALID,
			"scope_type",
		);
	});
});
