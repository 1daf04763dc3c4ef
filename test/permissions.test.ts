/** What users may do, through the front door: both models, conditions, scopes of grants. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import type { App } from "../wire/resource-spaces.ts";
import {
	grant,
	grantPolicy,
	makeUser,
	ofSpace,
	type TestUser,
} from "./support/access.ts";
import { forEachEngine, postgres } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	unique,
	upload,
} from "./support/seed.ts";
import { startBeside, startServer, type TestServer } from "./support/server.ts";

const FORBIDDEN = [403, "IOTDA.000022"] as const;

async function makeSpace(server: TestServer): Promise<App> {
	return server.api.createResourceSpace({ app_name: unique("space") });
}

/** What policies see of a resource space. */
function place(
	{ api, credentials }: TestServer,
	appId: string,
	json: { enterprise_project_id?: string; tags?: Record<string, string> },
): Promise<unknown> {
	return api.call(
		"PUT",
		`/otaru/v1/projects/${credentials.project_id}/apps/${appId}/access`,
		{ json },
	);
}

async function makeEnterpriseProject({ api }: TestServer): Promise<string> {
	const { enterprise_project_id } = await api.call<{
		enterprise_project_id: string;
	}>("POST", "/otaru/v1/access/enterprise-projects", {
		json: { enterprise_project_name: unique("enterprise") },
	});
	return enterprise_project_id;
}

forEachEngine((engine) => {
	describe("permissions", () => {
		test("a user who may only create modules, in one resource space of one enterprise project", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const [here, there] = [await makeSpace(server), await makeSpace(server)];
			const products = [
				await makeProduct(api, { app_id: here.app_id }),
				await makeProduct(api, { app_id: there.app_id }),
			] as const;
			const user = await makeUser(api);
			await grant(api, user, [
				{
					Effect: "Allow",
					Action: ["iotda:otamodules:create"],
					Resource: [ofSpace(here.app_id)],
					Condition: { StringEquals: { "g:EnterpriseProjectId": ["0"] } },
				},
			]);
			const module = await makeModule(user.api, products[0], "MCU");
			assert.equal(module.module_name, "MCU");

			await refused(makeModule(user.api, products[1], "MCU"), ...FORBIDDEN);
			await refused(user.api.getOtaModule(module.module_id), ...FORBIDDEN);
			await refused(
				user.api.listOtaModules({ app_id: here.app_id }),
				...FORBIDDEN,
			);
			await refused(
				user.api.updateOtaModule(module.module_id, {}),
				...FORBIDDEN,
			);
			await refused(user.api.deleteOtaModule(module.module_id), ...FORBIDDEN);
			await refused(user.api.listProducts(), ...FORBIDDEN);
			await refused(user.api.listResourceSpaces(), ...FORBIDDEN);
			await refused(
				user.api.listTasks({ task_type: "moduleUpgrade" }),
				...FORBIDDEN,
			);
			await refused(
				makeModule(
					user.api.as({ ...user.key, secretKey: "y".repeat(40) }),
					products[0],
					"Modem",
				),
				401,
				"APIGW.0301",
			);

			// Moved to another enterprise project, the condition is no longer true.
			await place(server, here.app_id, {
				enterprise_project_id: await makeEnterpriseProject(server),
			});
			await refused(makeModule(user.api, products[0], "Modem"), ...FORBIDDEN);
			await place(server, here.app_id, { enterprise_project_id: "0" });
			await makeModule(user.api, products[0], "Modem");
		});

		test("what one may not see answers like what is not there; what one sees but may not change is refused", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const [here, there] = [await makeSpace(server), await makeSpace(server)];
			const seen = await makeModule(
				api,
				await makeProduct(api, { app_id: here.app_id }),
				"seen",
			);
			const hidden = await makeModule(
				api,
				await makeProduct(api, { app_id: there.app_id }),
				"hidden",
			);
			const user = await makeUser(api);
			await grant(api, user, [
				{
					Effect: "Allow",
					Action: ["iotda:otamodules:*"],
					Resource: [ofSpace(here.app_id)],
				},
				{ Effect: "Deny", Action: ["iotda:otamodules:delete"] },
			]);
			await refused(user.api.deleteOtaModule(seen.module_id), ...FORBIDDEN);
			const answers = await Promise.all(
				[hidden.module_id, "0123456789abcdef01234567"].map((moduleId) =>
					user.api.getOtaModule(moduleId).catch((error) => error),
				),
			);
			assert.deepEqual(
				answers.map(({ status, code, message }) => ({ status, code, message })),
				Array(2).fill({
					status: 404,
					code: "IOTDA.014950",
					message: answers[0].message,
				}),
			);
		});

		test("the four system policies do what their names say", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const space = await makeSpace(server);
			const product = await makeProduct(api, { app_id: space.app_id });
			await makeDevice(api, product);
			const read = (user: TestUser) =>
				Promise.all([
					user.api.listProducts(),
					user.api.listDevices(),
					user.api.getProduct(product.product_id),
					user.api.listObjects("firmware"),
				]);
			const users: Record<string, TestUser> = {};
			for (const policy of [
				"te_admin",
				"readonly",
				"iotda_full_access",
				"iotda_read_only_access",
			]) {
				const user = await makeUser(api);
				await grantPolicy(api, user, policy);
				users[policy] = user;
				const [products] = await read(user);
				assert.equal(products.products.length, 1, policy);
				// Whoever manages users could give himself everything.
				await refused(
					user.api.call("GET", "/otaru/v1/access/users"),
					...FORBIDDEN,
				);
			}
			for (const policy of ["te_admin", "iotda_full_access"]) {
				const user = users[policy] as TestUser;
				const made = await makeProduct(user.api, { app_id: space.app_id });
				await makePackage(user.api, made);
			}
			for (const policy of ["readonly", "iotda_read_only_access"]) {
				const user = users[policy] as TestUser;
				await refused(makeProduct(user.api), ...FORBIDDEN);
				await refused(
					user.api.putObject("firmware", "x.bin", "x"),
					...FORBIDDEN,
				);
			}
		});

		test("a grant within a project or an enterprise project reaches no further", async () => {
			await using server = await startServer(engine);
			const { api, credentials } = server;
			const enterprise = await makeEnterpriseProject(server);
			const [here, there] = [await makeSpace(server), await makeSpace(server)];
			await place(server, here.app_id, { enterprise_project_id: enterprise });
			const user = await makeUser(api);
			const within = await grant(
				api,
				user,
				[{ Effect: "Allow", Action: ["iotda:*:*"] }],
				{ type: "enterprise_project", id: enterprise },
			);
			await makeProduct(user.api, { app_id: here.app_id });
			await refused(
				makeProduct(user.api, { app_id: there.app_id }),
				...FORBIDDEN,
			);
			const { applications = [] } = await user.api.listResourceSpaces();
			assert.deepEqual(
				applications.map(({ app_id }) => app_id),
				[here.app_id],
			);
			await within.revoke();
			await refused(user.api.listResourceSpaces(), ...FORBIDDEN);

			const other = await api.call<{ project_id: string }>(
				"POST",
				"/otaru/v1/access/projects",
				{ json: { project_name: unique("project") } },
			);
			await grant(api, user, [{ Effect: "Allow", Action: ["iotda:*:*"] }], {
				type: "project",
				id: other.project_id,
			});
			await refused(user.api.listResourceSpaces(), ...FORBIDDEN);
			const elsewhere = await user.api.call<{ applications: App[] }>(
				"GET",
				`/v5/iot/${other.project_id}/apps`,
			);
			assert.equal(elsewhere.applications.length, 1);
			// What SDKs look their project up by shows him the one he may enter.
			const { projects } = await user.api.call<{
				projects: { id: string }[];
			}>("GET", "/v3/projects");
			assert.deepEqual(
				projects.map(({ id }) => id),
				[other.project_id],
			);
			assert.notEqual(other.project_id, credentials.project_id);
		});

		test("groups pass their grants on, and everything counts at once", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const user = await makeUser(api);
			const { group_id } = await api.call<{ group_id: string }>(
				"POST",
				"/otaru/v1/access/groups",
				{ json: { group_name: unique("group") } },
			);
			await api.call("POST", "/otaru/v1/access/grants", {
				json: {
					policy_id: "iotda_read_only_access",
					principal: { type: "group", id: group_id },
					scope: { type: "all" },
				},
			});
			const membership = `/otaru/v1/access/groups/${group_id}/users/${user.userId}`;
			for (let round = 0; round < 3; round++) {
				await refused(user.api.listProducts(), ...FORBIDDEN);
				await api.call("PUT", membership);
				await user.api.listProducts();
				await api.call("DELETE", membership);
			}
			const { policyId } = await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:products:*"] },
			]);
			await user.api.listProducts();
			const policy = await api.call<object>(
				"GET",
				`/otaru/v1/access/policies/${policyId}`,
			);
			await api.call("PUT", `/otaru/v1/access/policies/${policyId}`, {
				json: {
					document: {
						Version: "1.1",
						Statement: [{ Effect: "Deny", Action: ["iotda:products:query*"] }],
					},
				},
			});
			await refused(user.api.listProducts(), ...FORBIDDEN);
			assert.ok(policy);
		});

		test("conditions on address, time, name and tags", async () => {
			let time = new Date("2026-01-29T08:00:00Z");
			await using server = await startServer(engine, { now: () => time });
			const { api } = server;
			const user = await makeUser(api);
			const tries: [
				condition: Record<string, Record<string, string[]>>,
				allowed: boolean,
			][] = [
				[{ IpAddress: { "g:SourceIp": ["127.0.0.0/8", "::1"] } }, true],
				[{ NotIpAddress: { "g:SourceIp": ["127.0.0.0/8", "::1"] } }, false],
				[{ StringEquals: { "g:UserName": [user.userName] } }, true],
				[{ StringEquals: { "g:UserName": ["somebody"] } }, false],
				[{ DateLessThan: { "g:CurrentTime": ["2026-01-29T08:00:01Z"] } }, true],
				[
					{ DateLessThan: { "g:CurrentTime": ["2026-01-29T08:00:00Z"] } },
					false,
				],
				[{ Bool: { "g:SecureTransport": ["false"] } }, true],
				[{ Bool: { "g:MFAPresent": ["true"] } }, false],
			];
			for (const [Condition, allowed] of tries) {
				const { revoke } = await grant(api, user, [
					{ Effect: "Allow", Action: ["iotda:products:queryList"], Condition },
				]);
				const words = JSON.stringify(Condition);
				if (allowed)
					await user.api.listProducts().catch((error) => {
						throw new Error(`${words}: ${error}`);
					});
				else await refused(user.api.listProducts(), ...FORBIDDEN);
				await revoke();
			}

			const working = await grant(api, user, [
				{
					Effect: "Allow",
					Action: ["iotda:products:queryList"],
					Condition: {
						DateLessThan: { "g:CurrentTime": ["2026-01-29T09:00:00Z"] },
					},
				},
			]);
			await user.api.listProducts();
			time = new Date("2026-01-29T09:00:00Z");
			await refused(user.api.listProducts(), ...FORBIDDEN);
			await working.revoke();

			const space = await makeSpace(server);
			await grant(api, user, [
				{
					Effect: "Allow",
					Action: ["iotda:products:create"],
					Condition: { StringEquals: { "g:ResourceTag/stage": ["test"] } },
				},
				{
					Effect: "Allow",
					Action: ["iotda:tags:bind"],
					Condition: { StringEquals: { "g:RequestTag/owner": ["me", "us"] } },
				},
			]);
			const make = () => makeProduct(user.api, { app_id: space.app_id });
			await refused(make(), ...FORBIDDEN);
			await place(server, space.app_id, { tags: { stage: "test" } });
			const product = await make();
			await place(server, space.app_id, { tags: { stage: "live" } });
			await refused(make(), ...FORBIDDEN);

			const { device_id } = await makeDevice(api, product);
			const bind = (tag_key: string, tag_value: string) =>
				user.api.bindTags({
					resource_type: "device",
					resource_id: device_id,
					tags: [{ tag_key, tag_value }],
				});
			await bind("owner", "us");
			await assert.rejects(bind("owner", "them"));
			await assert.rejects(bind("other", "me"));
		});

		test("lines of an import that name a space where its sender may not register are refused", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const [here, there] = [await makeSpace(server), await makeSpace(server)];
			const products = [
				await makeProduct(api, { app_id: here.app_id }),
				await makeProduct(api, { app_id: there.app_id }),
			] as const;
			const user = await makeUser(api);
			await grant(api, user, [
				{
					Effect: "Allow",
					Action: ["iotda:devices:register", "iotda:devices:query"],
					Resource: [ofSpace(here.app_id)],
				},
			]);
			const lines = products.map((product) =>
				JSON.stringify({
					app_id: product.app_id,
					product_id: product.product_id,
					node_id: unique("node"),
				}),
			);
			let job = await user.api.importDevices(`${lines.join("\n")}\n`, {
				format: "ndjson",
				appId: here.app_id,
			});
			while (job.status === "Processing") {
				await new Promise((resolve) => setTimeout(resolve, 20));
				job = await user.api.getDeviceImport(job.import_id);
			}
			assert.deepEqual(
				{ status: job.status, created: job.created, refused: job.refused },
				{ status: "PartialSuccess", created: 1, refused: 1 },
			);
			const refusals = await (
				await user.api.getImportRefusals(job.import_id)
			).text();
			assert.match(refusals, /IOTDA\.000022/);
		});

		test("a stream ends when rights change, and is not given again to whoever lost his", async () => {
			await using server = await startServer(engine);
			const { api, credentials } = server;
			const user = await makeUser(api);
			const { revoke } = await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:batchtasks:query"] },
			]);
			const path = `/otaru/v1/projects/${credentials.project_id}/events`;
			const stream = await user.api.send("GET", path);
			assert.equal(stream.status, 200);
			const ended = stream.text();
			await revoke();
			await Promise.race([
				ended,
				new Promise((_, reject) =>
					setTimeout(() => reject(new Error("it goes on")), 8_000),
				),
			]);
			assert.equal((await user.api.send("GET", path)).status, 403);
		});

		test("the simulator says what the server does, and which statement decided", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const space = await makeSpace(server);
			const user = await makeUser(api);
			const ask = (json: object) =>
				api.call<{
					allowed: boolean;
					because: string;
					statement?: { policy_id: string; index: number };
				}>("POST", "/otaru/v1/access/simulate", {
					json: { user_name: user.userName, ...json },
				});
			const action = "iotda:products:create";
			assert.deepEqual(await ask({ action }), {
				allowed: false,
				because: "no_statement",
			});
			const { policyId } = await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:devices:*"] },
				{
					Effect: "Allow",
					Action: ["iotda:products:*"],
					Resource: [ofSpace(space.app_id)],
					Condition: { IpAddress: { "g:SourceIp": ["10.0.0.0/8"] } },
				},
			]);
			const from = { action, app_id: space.app_id, source_ip: "10.1.2.3" };
			const yes = await ask(from);
			assert.equal(yes.allowed, true);
			assert.deepEqual(
				[yes.statement?.policy_id, yes.statement?.index],
				[policyId, 1],
			);
			assert.equal(
				(await ask({ ...from, source_ip: "11.1.2.3" })).allowed,
				false,
			);
			assert.equal(
				(await ask({ ...from, app_id: server.credentials.app_id })).allowed,
				false,
			);
			const deny = await grant(api, user, [
				{ Effect: "Deny", Action: ["iotda:products:create"] },
			]);
			const no = await ask(from);
			assert.deepEqual(
				[no.allowed, no.because, no.statement?.policy_id],
				[false, "denied", deny.policyId],
			);
			assert.deepEqual(
				await ask({ action, user_name: server.credentials.user_name }),
				{ allowed: true, because: "account" },
			);
			for (const [json, words] of [
				[{ action: "iotda:products:fly" }, "action"],
				[{ action, user_name: "nobody-here" }, "user_name"],
				[{ action, user_id: "x" }, "user_id"],
				[{ action, project_id: "elsewhere" }, "project_id"],
				[{ action, app_id: "elsewhere" }, "app_id"],
				[{ action, source_ip: "here" }, "source_ip"],
				[{ action, at: "now" }, "at must be"],
				[{ action, request_tags: { a: 1 } }, "request_tags.a"],
			] as const)
				await assert.rejects(
					ask(json),
					(error: Error & { status?: number }) =>
						error.status === 400 && error.message.includes(words),
					words,
				);
		});

		test("the simulator and the server agree, whatever the grant reaches", async () => {
			await using server = await startServer(engine);
			const { api, credentials } = server;
			const space = await makeSpace(server);
			const other = await api.call<{ project_id: string }>(
				"POST",
				"/otaru/v1/access/projects",
				{ json: { project_name: unique("project") } },
			);
			const user = await makeUser(api);
			const project = `/v5/iot/${credentials.project_id}`;
			/** Each with the call that the server is asked for. */
			const questions: [question: object, method: string, path: string][] = [
				[{ action: "iam:users:list" }, "GET", "/otaru/v1/access/users"],
				[{ action: "cts:traces:list" }, "GET", "/otaru/v1/audit"],
				[
					{ action: "iam:masterKey:get" },
					"GET",
					"/otaru/v1/access/master-key/rotate",
				],
				[{ action: "iam:me:get" }, "GET", "/otaru/v1/access/me"],
				[
					{ action: "otaru:objects:list", app_id: space.app_id },
					"GET",
					`/otaru/v1/projects/${credentials.project_id}/objects/bucket`,
				],
				[
					{
						action: "iotda:products:queryList",
						project_id: credentials.project_id,
					},
					"GET",
					`${project}/products`,
				],
				[
					{ action: "iotda:apps:query", app_id: space.app_id },
					"GET",
					`${project}/apps/${space.app_id}`,
				],
				[
					{
						action: "iotda:products:queryList",
						project_id: other.project_id,
					},
					"GET",
					`/v5/iot/${other.project_id}/products`,
				],
			];
			const all: Parameters<typeof grant>[2] = [
				{ Effect: "Allow", Action: ["*"] },
			];
			const grants: [
				words: string,
				...(Parameters<typeof grant> extends [unknown, unknown, ...infer G]
					? G
					: never),
			][] = [
				["everything", all],
				["a project", all, { type: "project", id: credentials.project_id }],
				["another project", all, { type: "project", id: other.project_id }],
				["an enterprise project", all, { type: "enterprise_project", id: "0" }],
				[
					"one space",
					[
						{
							Effect: "Allow",
							Action: ["*"],
							Resource: [ofSpace(space.app_id)],
						},
					],
				],
				[
					"by TLS",
					[
						{
							Effect: "Allow",
							Action: ["*"],
							Condition: { Bool: { "g:SecureTransport": ["true"] } },
						},
					],
				],
			];
			for (const [words, ...granted] of grants) {
				const { revoke } = await grant(api, user, ...granted);
				for (const [question, method, path] of questions) {
					const { allowed } = await api.call<{ allowed: boolean }>(
						"POST",
						"/otaru/v1/access/simulate",
						{ json: { user_id: user.userId, ...question } },
					);
					const { status } = await user.api.send(method, path);
					assert.equal(
						allowed,
						status === 200,
						`${words}, ${JSON.stringify(question)}: ${allowed}, but ${status}`,
					);
				}
				await revoke();
			}
		});

		test("the secret of a device is for those who may give it another one", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const { device_id } = await makeDevice(api, await makeProduct(api));
			const user = await makeUser(api);
			await grantPolicy(api, user, "iotda_read_only_access");
			const secretOf = async () =>
				(await user.api.getDevice(device_id)).auth_info?.secret;
			assert.equal(await secretOf(), undefined);
			await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:devices:resetSecret"] },
			]);
			const secret = await secretOf();
			assert.ok(secret);
			assert.equal((await api.getDevice(device_id)).auth_info?.secret, secret);
		});

		test("rights on one resource space reach nothing that lies outside of it", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const [here, there] = [await makeSpace(server), await makeSpace(server)];
			const own = await makeProduct(api, { app_id: here.app_id });
			const foreign = await makeDevice(
				api,
				await makeProduct(api, { app_id: there.app_id }),
			);
			const bytes = Buffer.from("the firmware of another space");
			const { obs_location } = await upload(api, "secret.bin", bytes);
			const user = await makeUser(api);
			await grant(api, user, [
				{ Effect: "Allow", Action: ["*"], Resource: [ofSpace(here.app_id)] },
			]);

			// A file is known by who may read files, or by who has its bytes.
			const pack = (object_key: string, sign?: string) =>
				user.api.createPackage({
					app_id: here.app_id,
					product_id: own.product_id,
					package_type: "firmwarePackage",
					version: unique("v"),
					file_location: {
						obs_location: {
							...obs_location,
							object_key,
							...(sign && { sign }),
						},
					},
				});
			const wrong = "0".repeat(64);
			for (const key of ["secret.bin", "nothing.bin"])
				for (const sign of [undefined, wrong])
					await refused(pack(key, sign), 400, "IOTDA.014962");
			const sign = createHash("sha256").update(bytes).digest("hex");
			const { package_id } = await pack("secret.bin", sign);

			// A device of another space is no device.
			const { task_id } = await user.api.createTask({
				app_id: here.app_id,
				task_name: "foreign",
				task_type: "firmwareUpgrade",
				targets: [foreign.device_id, "nobody"],
				document: { package_ids: [package_id ?? ""] },
			});
			let details: { status?: string; error_code?: string }[] = [];
			while (details.length < 2 || details.some((one) => one.status !== "Fail"))
				({ task_details: details = [] } = await user.api.getTask(task_id));
			assert.equal(new Set(details.map((one) => one.error_code)).size, 1);

			for (const path of ["/otaru/v1/audit", "/otaru/v1/audit/export"])
				assert.equal((await user.api.send("GET", path)).status, 403, path);
			await refused(
				user.api.call("POST", "/otaru/v1/audit/verify", { json: {} }),
				...FORBIDDEN,
			);
			await refused(user.api.listObjects("firmware"), ...FORBIDDEN);
		});

		test("a grant in an enterprise project reaches its resource spaces, not the files of the project", async () => {
			await using server = await startServer(engine);
			const user = await makeUser(server.api);
			await grantPolicy(server.api, user, "iotda_full_access", {
				type: "enterprise_project",
				id: "0",
			});
			await user.api.listProducts();
			await refused(user.api.listObjects("firmware"), ...FORBIDDEN);
			await refused(
				user.api.createResourceSpace({ app_name: unique("space") }),
				...FORBIDDEN,
			);
		});

		test("conditions on tags hold for unbinding as for binding", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const { device_id } = await makeDevice(api, await makeProduct(api));
			const user = await makeUser(api);
			await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:*:*"] },
				{
					Effect: "Deny",
					Action: ["iotda:tags:*"],
					Condition: {
						"ForAnyValue:StringEquals": { "g:TagKeys": ["prod"] },
					},
				},
			]);
			const about = {
				resource_type: "device",
				resource_id: device_id,
			} as const;
			const both = ["mine", "prod"].map((tag_key) => ({ tag_key }));
			await api.bindTags({ ...about, tags: both });
			await user.api.unbindTags({ ...about, tag_keys: ["mine"] });
			await refused(
				user.api.unbindTags({ ...about, tag_keys: ["prod"] }),
				...FORBIDDEN,
			);
		});

		test("nobody moves a resource space out of the limits that are set to him", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const space = await makeSpace(server);
			await place(server, space.app_id, { tags: { stage: "live" } });
			const enterprise = await makeEnterpriseProject(server);
			const path = `/otaru/v1/projects/${server.credentials.project_id}/apps/${space.app_id}/access`;
			const user = await makeUser(api);
			for (const policy of ["te_admin", "iotda_full_access"]) {
				const grantId = await grantPolicy(api, user, policy);
				await refused(
					user.api.call("PUT", path, { json: { tags: {} } }),
					...FORBIDDEN,
				);
				await api.call("DELETE", `/otaru/v1/access/grants/${grantId}`);
			}
			await grant(
				api,
				user,
				[{ Effect: "Allow", Action: ["iotda:apps:setAccess"] }],
				{ type: "enterprise_project", id: "0" },
			);
			await user.api.call("PUT", path, { json: { tags: { stage: "test" } } });
			await refused(
				user.api.call("PUT", path, {
					json: { enterprise_project_id: enterprise },
				}),
				...FORBIDDEN,
			);
		});

		test("a space that is denied by its tags answers like one that is missing", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const space = await makeSpace(server);
			await place(server, space.app_id, { tags: { stage: "hidden" } });
			const user = await makeUser(api);
			await grant(api, user, [
				{ Effect: "Allow", Action: ["iotda:*:*"] },
				{
					Effect: "Deny",
					Action: ["*"],
					Condition: { StringEquals: { "g:ResourceTag/stage": ["hidden"] } },
				},
			]);
			for (const appId of [space.app_id, "0".repeat(32)])
				await refused(user.api.getResourceSpace(appId), ...FORBIDDEN);
		});

		test("an action that this server does not have is kept in a policy, with a warning", async () => {
			await using server = await startServer(engine);
			const policies = "/otaru/v1/access/policies";
			const document = {
				Version: "5.0",
				Statement: [
					{ Effect: "Allow", Action: ["iotda:otamodules:*"] },
					{
						Effect: "Deny",
						Action: ["iotda:otapackage:create", "IOTDA:otaPackages:CREATE"],
					},
				],
			};
			const made = await server.api.call<{
				policy_id: string;
				warnings?: string[];
			}>("POST", policies, { json: { policy_name: unique("p"), document } });
			assert.deepEqual(made.warnings, [
				"/Statement/1: no action of this server fits iotda:otapackage:create",
			]);
			const fixed = await server.api.call<{ warnings?: string[] }>(
				"PUT",
				`${policies}/${made.policy_id}`,
				{
					json: {
						document: { ...document, Statement: [document.Statement[0]] },
					},
				},
			);
			assert.equal(fixed.warnings, undefined);
		});
	});
});

test("a change of rights counts at once on every process", async () => {
	await using server = await startServer(postgres);
	await using second = await startBeside(server);
	const user = await makeUser(server.api);
	const there = second.api.as(user.key);
	for (let round = 0; round < 5; round++) {
		await refused(there.listProducts(), ...FORBIDDEN);
		const { revoke } = await grant(server.api, user, [
			{ Effect: "Allow", Action: ["iotda:products:queryList"] },
		]);
		await there.listProducts();
		await revoke();
	}
});
