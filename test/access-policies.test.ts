/** Policies: the system's own, and those that an account writes for itself. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Client } from "../wire/client.ts";
import { forEachEngine } from "./support/engines.ts";
import { allowing, makePerson, makeProgram, signIn } from "./support/people.ts";
import { refused, succeeded, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef0123456789abcdef";
const INVALID = "IOTDA.000006";
const document = allowing("iotda:products:*");

forEachEngine((engine) => {
	let server: TestServer;
	let api: Client;
	before(async () => {
		server = await startServer(engine);
		api = server.api;
	});
	after(() => server[Symbol.asyncDispose]());

	const system = async () => {
		const { policies } = await api.listPolicies({ type: "system", limit: 50 });
		return policies;
	};

	test("a policy is created, shown as it was given, changed and deleted", async () => {
		const policy_name = unique("Products");
		const odd = {
			Statement: [
				{
					Sid: "all",
					Effect: "Deny",
					NotAction: ["iotda:*:query*"],
					Resource: ["iotda:*:*:app:*"],
					Condition: { StringEquals: { "g:UserName": ["olga"] } },
				},
			],
			Version: "5.0",
		};
		const created = await api.createPolicy({
			policy_name,
			description: "Whatever products need",
			document: odd,
		});
		assert.match(created.policy_id, /^[0-9a-f]{32}$/);
		assert.deepEqual(created, {
			policy_id: created.policy_id,
			policy_name,
			type: "custom",
			description: "Whatever products need",
			document: odd,
			create_time: created.create_time,
			update_time: created.create_time,
		});
		assert.deepEqual(await api.getPolicy(created.policy_id), created);
		const changed = await api.updatePolicy(created.policy_id, {
			description: "",
			document,
		});
		assert.deepEqual(changed.document, document);
		assert.equal("description" in changed, false);
		assert.equal(changed.policy_name, policy_name);
		await api.deletePolicy(created.policy_id);
		await refused(api.getPolicy(created.policy_id), 404, "IOTDA.015902");
	});

	test("a name is taken once, also from the system's own, however close two come", async () => {
		const policy_name = unique("p");
		assert.equal(
			await succeeded(
				Array.from({ length: 5 }, () =>
					api.createPolicy({ policy_name, document }),
				),
				400,
				"IOTDA.015910",
			),
			1,
		);
		const [first] = await system();
		assert.ok(first);
		await refused(
			api.createPolicy({ policy_name: first.policy_name, document }),
			400,
			"IOTDA.015910",
		);
		const other = await api.createPolicy({
			policy_name: unique("p"),
			document,
		});
		for (const name of [policy_name, first.policy_name])
			await refused(
				api.updatePolicy(other.policy_id, { policy_name: name }),
				400,
				"IOTDA.015910",
			);
	});

	test("the system's policies are listed, shown, and cannot be changed or deleted", async () => {
		const policies = await system();
		assert.deepEqual(policies.map((policy) => policy.policy_name).sort(), [
			"IoTDA FullAccess",
			"IoTDA ReadOnlyAccess",
			"Tenant Administrator",
			"Tenant Guest",
		]);
		for (const { policy_id } of policies) {
			const shown = await api.getPolicy(policy_id);
			assert.equal(shown.type, "system");
			assert.ok(shown.document.Version);
			await refused(
				api.updatePolicy(policy_id, { description: "mine" }),
				403,
				"IOTDA.015916",
			);
			await refused(api.deletePolicy(policy_id), 403, "IOTDA.015916");
		}
	});

	test("every way through the pages shows every policy once, the system's own last", async () => {
		await using own = await startServer(engine);
		const mine: string[] = [];
		for (let index = 0; index < 5; index++)
			mine.unshift(
				(
					await own.api.createPolicy({
						policy_name: `policy ${index}`,
						document,
					})
				).policy_id,
			);
		const idsOf = async (query: Parameters<Client["listPolicies"]>[0]) => {
			const { policies, page } = await own.api.listPolicies(query);
			return { ids: policies.map((policy) => policy.policy_id), page };
		};
		const all = await idsOf({ limit: 50 });
		assert.deepEqual(all.ids.slice(0, 5), mine);
		assert.equal(all.page.count, all.ids.length);
		assert.equal(all.ids.length, 9);
		for (const limit of [1, 2, 3, 4, 8]) {
			const byMarker: string[] = [];
			let marker: string | undefined;
			for (;;) {
				const { ids, page } = await idsOf({
					limit,
					...(marker === undefined ? {} : { marker }),
				});
				if (ids.length === 0) break;
				byMarker.push(...ids);
				marker = page.marker;
				assert.equal(page.count, 9);
			}
			assert.deepEqual(byMarker, all.ids, `pages of ${limit} by marker`);
			const byOffset: string[] = [];
			for (let offset = 0; offset < 12; offset += limit)
				byOffset.push(...(await idsOf({ limit, offset })).ids);
			assert.deepEqual(byOffset, all.ids, `pages of ${limit} by offset`);
		}
		const custom = await idsOf({ type: "custom", limit: 50 });
		assert.deepEqual(custom.ids, mine);
		assert.equal(custom.page.count, 5);
		const named = await idsOf({ policy_name: "IoTDA FullAccess" });
		assert.equal(named.page.count, 1);
		assert.deepEqual(
			named.ids,
			all.ids.filter((id) => id === named.ids[0]),
		);
	});

	test("a document that is no policy is refused with the place of its fault, and changes nothing", async () => {
		const { policy_id } = await api.createPolicy({
			policy_name: unique("p"),
			document,
		});
		const allow = { Effect: "Allow", Action: ["iotda:*:*"] };
		for (const [faulty, words] of [
			[{}, "document/Version"],
			[{ Version: "9.9", Statement: [allow] }, "document/Version must be"],
			[{ Version: "5.0" }, "document/Statement"],
			[{ Version: "5.0", Statement: [] }, "document/Statement must have"],
			[
				{ Version: "5.0", Statement: [allow, { ...allow, Effect: "Maybe" }] },
				"document/Statement/1/Effect",
			],
			[
				{ Version: "5.0", Statement: [{ Effect: "Allow", Action: ["x"] }] },
				"document/Statement/0/Action/0",
			],
			[
				{
					Version: "5.0",
					Statement: [
						{ ...allow, Condition: { Sounds: { "g:UserName": ["a"] } } },
					],
				},
				"document/Statement/0/Condition/Sounds",
			],
			[{ ...document, Extra: 1 }, "document/Extra"],
		] as const) {
			await refused(
				api.createPolicy({ policy_name: unique("p"), document: faulty }),
				400,
				INVALID,
				words,
			);
			await refused(
				api.updatePolicy(policy_id, { document: faulty }),
				400,
				INVALID,
				words,
			);
		}
		const long = {
			Version: "5.0",
			Statement: Array.from({ length: 90 }, (_, index) => ({
				Sid: `s${index}`,
				Effect: "Allow",
				Action: [`iotda:products:${"a".repeat(400)}`],
			})),
		};
		await refused(
			api.createPolicy({ policy_name: unique("p"), document: long }),
			400,
			INVALID,
			"32768 bytes",
		);
		assert.deepEqual((await api.getPolicy(policy_id)).document, document);
	});

	test("a policy in use stays, and says how many grants use it", async () => {
		const { policy_id } = await api.createPolicy({
			policy_name: unique("p"),
			document,
		});
		const grants: string[] = [];
		for (let index = 0; index < 2; index++) {
			const { user } = await makeProgram(api);
			const { grant_id } = await api.createGrant({
				policy_id,
				principal: { type: "user", id: user.user_id },
				scope: { type: "all" },
			});
			grants.push(grant_id);
		}
		await refused(
			api.deletePolicy(policy_id),
			403,
			"IOTDA.015917",
			"2 grants use it",
		);
		await api.deleteGrant(grants[0] ?? "");
		await refused(
			api.deletePolicy(policy_id),
			403,
			"IOTDA.015917",
			"1 grant uses it",
		);
		await api.deleteGrant(grants[1] ?? "");
		await api.deletePolicy(policy_id);
	});

	test("either a policy goes or it is granted, however close the two come", async () => {
		const { user } = await makeProgram(api);
		for (let round = 0; round < 6; round++) {
			const { policy_id } = await api.createPolicy({
				policy_name: unique("p"),
				document,
			});
			const [granted, deleted] = await Promise.allSettled([
				api.createGrant({
					policy_id,
					principal: { type: "user", id: user.user_id },
					scope: { type: "all" },
				}),
				api.deletePolicy(policy_id),
			]);
			assert.notEqual(granted.status, deleted.status);
			if (granted.status === "rejected")
				await refused(
					Promise.reject(granted.reason),
					400,
					INVALID,
					"policy_id must name a policy",
				);
		}
	});

	test("another document counts from the next call on, and signs out whoever has it", async () => {
		const { api: his, user } = await makeProgram(api);
		const person = await makePerson(api);
		const { policy_id } = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iotda:products:queryList"),
		});
		for (const { user_id } of [user, person.user])
			await api.createGrant({
				policy_id,
				principal: { type: "user", id: user_id },
				scope: { type: "all" },
			});
		const byToken = await signIn(server, person);
		await his.listProducts();
		await byToken.listProducts();
		await api.updatePolicy(policy_id, { description: "the same rights" });
		await byToken.listProducts();
		await api.updatePolicy(policy_id, {
			document: allowing("iotda:products:create"),
		});
		await refused(his.listProducts(), 403, "IOTDA.000022");
		await refused(byToken.listProducts(), 401, "APIGW.0301");
	});

	test("bad input names the field", async () => {
		const policies = "/otaru/v1/access/policies";
		for (const [json, words] of [
			[{ document }, "policy_name is required"],
			[{ policy_name: "a" }, "document is required"],
			[{ policy_name: "", document }, "policy_name"],
			[{ policy_name: "a".repeat(65), document }, "policy_name"],
			[{ policy_name: 1, document }, "policy_name"],
			[{ policy_name: "a", document: "{}" }, "document must be an object"],
			[{ policy_name: "a", document: [] }, "document must be an object"],
			[{ policy_name: "a", document, description: 1 }, "description"],
		] as const)
			await refused(api.call("POST", policies, { json }), 400, INVALID, words);
		for (const call of [
			() => api.getPolicy(UNKNOWN),
			() => api.updatePolicy(UNKNOWN, { description: "x" }),
			() => api.deletePolicy(UNKNOWN),
		])
			await refused(call(), 404, "IOTDA.015902");
		await refused(
			api.call("GET", policies, { query: { type: "other" } }),
			400,
			INVALID,
			"type must be one of",
		);
	});
});
