/** Projects, enterprise projects, and what policies see of a resource space. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Client } from "../wire/client.ts";
import { forEachEngine } from "./support/engines.ts";
import { allowing, makePerson, makeProgram, signIn } from "./support/people.ts";
import {
	makeProduct,
	refused,
	succeeded,
	unique,
	upload,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

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

	/** The administrator in another project. */
	const within = (projectId: string) =>
		new Client({
			endpoint: server.url,
			projectId,
			credentials: {
				accessKey: server.credentials.access_key,
				secretKey: server.credentials.secret_key,
			},
		});

	// --- projects ------------------------------------------------------------------

	test("a project comes with a default resource space, is found by its name, renamed and deleted", async () => {
		const project_name = unique("cn-north");
		const created = await api.createProject({ project_name });
		assert.match(created.project_id, /^[0-9a-f]{32}$/);
		const inside = within(created.project_id);
		const { applications } = await inside.listResourceSpaces();
		assert.deepEqual(
			applications.map(({ app_id, default_app }) => [app_id, default_app]),
			[[created.default_app_id, true]],
		);
		assert.deepEqual(await api.getManagedProject(created.project_id), created);
		const { projects } = await api.listManagedProjects();
		assert.equal(projects[0]?.project_id, server.credentials.project_id);
		assert.deepEqual(projects.at(-1), created);
		const found = await api.listProjects({ name: project_name });
		assert.deepEqual(
			found.projects.map((project) => project.id),
			[created.project_id],
		);
		const renamed = await api.renameProject(created.project_id, {
			project_name: `${project_name}-2`,
		});
		assert.deepEqual(renamed, {
			...created,
			project_name: `${project_name}-2`,
		});
		await api.deleteProject(created.project_id);
		await refused(
			api.getManagedProject(created.project_id),
			404,
			"IOTDA.015905",
		);
		await refused(inside.listResourceSpaces(), 403, FORBIDDEN);
	});

	test("a name is taken once, however close two come", async () => {
		const project_name = unique("name");
		assert.equal(
			await succeeded(
				Array.from({ length: 5 }, () => api.createProject({ project_name })),
				400,
				"IOTDA.015912",
			),
			1,
		);
		const other = await api.createProject({ project_name: unique("name") });
		await refused(
			api.renameProject(other.project_id, { project_name }),
			400,
			"IOTDA.015912",
		);
	});

	test("a project with something in it stays, and says what", async () => {
		const project = await api.createProject({ project_name: unique("full") });
		const inside = within(project.project_id);
		const product = await makeProduct(inside);
		const { obs_location } = await upload(inside);
		await inside.createResourceSpace({ app_name: "empty" });
		await refused(
			api.deleteProject(project.project_id),
			403,
			"IOTDA.015919",
			"products: 1, files: 1",
		);
		await inside.deleteProduct(product.product_id, {});
		await refused(
			api.deleteProject(project.project_id),
			403,
			"IOTDA.015919",
			"files: 1",
		);
		await inside.deleteObject(
			obs_location.bucket_name,
			obs_location.object_key,
		);
		await api.deleteProject(project.project_id);
	});

	test("either something is made in a project or it goes, however close the two come", async () => {
		for (let round = 0; round < 6; round++) {
			const project = await api.createProject({ project_name: unique("race") });
			const inside = within(project.project_id);
			const [made, deleted, space] = await Promise.allSettled([
				makeProduct(inside),
				api.deleteProject(project.project_id),
				inside.createResourceSpace({ app_name: "late" }),
			]);
			assert.notEqual(made.status, deleted.status);
			for (const outcome of [made, space])
				if (outcome.status === "rejected")
					assert.equal(outcome.reason.status, 403, String(outcome.reason));
			if (deleted.status === "rejected")
				await refused(Promise.reject(deleted.reason), 403, "IOTDA.015919");
		}
	});

	test("the last project stays", async () => {
		await using own = await startServer(engine);
		const { project_id } = own.credentials;
		await refused(own.api.deleteProject(project_id), 403, "IOTDA.015918");
		const other = await own.api.createProject({ project_name: "other" });
		const outcomes = await Promise.allSettled([
			own.api.deleteProject(project_id),
			own.api.deleteProject(other.project_id),
		]);
		assert.equal(
			outcomes.filter(({ status }) => status === "fulfilled").length,
			1,
		);
	});

	test("with a project go its grants, and the tokens for it", async () => {
		const project = await api.createProject({ project_name: unique("gone") });
		const person = await makePerson(api);
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iotda:*:*"),
		});
		const { grant_id } = await api.createGrant({
			policy_id: policy.policy_id,
			principal: { type: "user", id: person.user.user_id },
			scope: { type: "project", id: project.project_id },
		});
		const { token } = await within(project.project_id).signIn({
			domainName: server.credentials.domain_name,
			userName: person.user.user_name,
			password: person.password,
		});
		const his = within(project.project_id).as({ token });
		await his.listProducts();
		await api.deleteProject(project.project_id);
		await refused(his.getMe(), 401, "APIGW.0301");
		await refused(api.getGrant(grant_id), 404, "IOTDA.015903");
	});

	test("an account has at most a hundred projects", async () => {
		await using own = await startServer(engine);
		for (let index = 1; index < 100; index++)
			await own.api.createProject({ project_name: `p${index}` });
		await refused(
			own.api.createProject({ project_name: "p100" }),
			403,
			"IOTDA.015920",
		);
		assert.equal((await own.api.listManagedProjects()).projects.length, 100);
	});

	// --- enterprise projects --------------------------------------------------------

	test("an enterprise project is created, changed and deleted; the default one is always there", async () => {
		const name = unique("Brand");
		const created = await api.createEnterpriseProject({
			enterprise_project_name: name,
			description: "Sold in the north",
		});
		assert.match(created.enterprise_project_id, /^[0-9a-f-]{36}$/);
		assert.deepEqual(
			await api.getEnterpriseProject(created.enterprise_project_id),
			created,
		);
		const changed = await api.updateEnterpriseProject(
			created.enterprise_project_id,
			{ enterprise_project_name: `${name} 2`, description: "" },
		);
		assert.deepEqual(changed, {
			enterprise_project_id: created.enterprise_project_id,
			enterprise_project_name: `${name} 2`,
			create_time: created.create_time,
		});
		await refused(
			api.createEnterpriseProject({ enterprise_project_name: `${name} 2` }),
			400,
			"IOTDA.015913",
		);
		await api.deleteEnterpriseProject(created.enterprise_project_id);
		await refused(
			api.getEnterpriseProject(created.enterprise_project_id),
			404,
			"IOTDA.015906",
		);

		assert.deepEqual(await api.getEnterpriseProject("0"), {
			enterprise_project_id: "0",
			enterprise_project_name: "default",
		});
		await refused(
			api.updateEnterpriseProject("0", { enterprise_project_name: "mine" }),
			403,
			"IOTDA.015921",
		);
		await refused(api.deleteEnterpriseProject("0"), 403, "IOTDA.015921");
		await refused(
			api.createEnterpriseProject({ enterprise_project_name: "default" }),
			400,
			"IOTDA.015913",
		);
	});

	test("every way through the pages shows every enterprise project once", async () => {
		await using own = await startServer(engine);
		const ids = ["0"];
		for (let index = 0; index < 3; index++) {
			const created = await own.api.createEnterpriseProject({
				enterprise_project_name: `brand ${index}`,
			});
			ids.unshift(created.enterprise_project_id);
		}
		for (const limit of [1, 2, 3, 4, 5]) {
			const byMarker: string[] = [];
			let marker: string | undefined;
			for (;;) {
				const { enterprise_projects, page } =
					await own.api.listEnterpriseProjects({
						limit,
						...(marker === undefined ? {} : { marker }),
					});
				assert.equal(page.count, 4);
				if (enterprise_projects.length === 0) break;
				byMarker.push(
					...enterprise_projects.map((one) => one.enterprise_project_id),
				);
				marker = page.marker;
			}
			assert.deepEqual(byMarker, ids);
			const byOffset: string[] = [];
			for (let offset = 0; offset < 8; offset += limit)
				byOffset.push(
					...(
						await own.api.listEnterpriseProjects({ limit, offset })
					).enterprise_projects.map((one) => one.enterprise_project_id),
				);
			assert.deepEqual(byOffset, ids);
		}
	});

	test("an enterprise project in use stays, and says by what", async () => {
		const { enterprise_project_id } = await api.createEnterpriseProject({
			enterprise_project_name: unique("Brand"),
		});
		const space = await api.createResourceSpace({ app_name: "branded" });
		await api.setSpaceAccess(space.app_id, { enterprise_project_id });
		const { user } = await makeProgram(api);
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: allowing("iotda:*:*"),
		});
		const { grant_id } = await api.createGrant({
			policy_id: policy.policy_id,
			principal: { type: "user", id: user.user_id },
			scope: { type: "enterprise_project", id: enterprise_project_id },
		});
		await refused(
			api.deleteEnterpriseProject(enterprise_project_id),
			403,
			"IOTDA.015922",
			"Resource spaces in it: 1; grants on it: 1.",
		);
		await api.deleteGrant(grant_id);
		await refused(
			api.deleteEnterpriseProject(enterprise_project_id),
			403,
			"IOTDA.015922",
		);
		await api.deleteResourceSpace(space.app_id);
		await api.deleteEnterpriseProject(enterprise_project_id);
	});

	// --- what policies see of a resource space -----------------------------------------

	test("a resource space is in the default enterprise project, without tags, until somebody says otherwise", async () => {
		const { app_id } = await api.createResourceSpace({ app_name: "space" });
		assert.deepEqual(await api.getSpaceAccess(app_id), {
			app_id,
			enterprise_project_id: "0",
			enterprise_project_name: "default",
			tags: {},
		});
		const brand = await api.createEnterpriseProject({
			enterprise_project_name: unique("Brand"),
		});
		const tags = { team: "north", 颜色: "红", empty: "" };
		const set = await api.setSpaceAccess(app_id, {
			enterprise_project_id: brand.enterprise_project_id,
			tags,
		});
		assert.deepEqual(set, {
			app_id,
			enterprise_project_id: brand.enterprise_project_id,
			enterprise_project_name: brand.enterprise_project_name,
			tags,
		});
		assert.deepEqual(await api.setSpaceAccess(app_id, {}), set);
		assert.deepEqual(
			await api.setSpaceAccess(app_id, { tags: { team: "south" } }),
			{ ...set, tags: { team: "south" } },
		);
		await api.setSpaceAccess(app_id, {
			enterprise_project_id: "0",
			tags: {},
		});
		await api.deleteResourceSpace(app_id);
		await refused(api.getSpaceAccess(app_id), 403, "IOTDA.001000");
		await refused(
			api.setSpaceAccess(app_id, { tags: {} }),
			403,
			"IOTDA.001000",
		);
	});

	test("policies that ask for a tag follow it at once", async () => {
		const { app_id } = await api.createResourceSpace({ app_name: "tagged" });
		const { api: his, user } = await makeProgram(api);
		const policy = await api.createPolicy({
			policy_name: unique("p"),
			document: {
				Version: "5.0",
				Statement: [
					{
						Effect: "Allow",
						Action: ["iotda:products:create", "iotda:apps:setAccess"],
						Condition: { StringEquals: { "g:ResourceTag/team": ["north"] } },
					},
				],
			},
		});
		await api.createGrant({
			policy_id: policy.policy_id,
			principal: { type: "user", id: user.user_id },
			scope: { type: "all" },
		});
		await refused(makeProduct(his, { app_id }), 403, FORBIDDEN);
		await refused(
			his.setSpaceAccess(app_id, { tags: { team: "north" } }),
			403,
			FORBIDDEN,
		);
		await api.setSpaceAccess(app_id, { tags: { team: "north" } });
		await makeProduct(his, { app_id });
		// He may keep it in his reach, and not put it out of it.
		await his.setSpaceAccess(app_id, { tags: { team: "north", a: "b" } });
		await refused(
			his.setSpaceAccess(app_id, { tags: { team: "south" } }),
			403,
			FORBIDDEN,
		);
		await api.setSpaceAccess(app_id, { tags: { team: "south" } });
		await refused(makeProduct(his, { app_id }), 403, FORBIDDEN);
	});

	test("bad input names the field", async () => {
		const { app_id } = await api.createResourceSpace({ app_name: "bad" });
		const access = `/otaru/v1/projects/${api.projectId}/apps/${app_id}/access`;
		const many = Object.fromEntries(
			Array.from({ length: 21 }, (_, index) => [`k${index}`, ""]),
		);
		const projects = "/otaru/v1/access/projects";
		const enterprises = "/otaru/v1/access/enterprise-projects";
		for (const [method, path, json, words] of [
			[
				"PUT",
				access,
				{ enterprise_project_id: UNKNOWN },
				"enterprise_project_id must name",
			],
			["PUT", access, { enterprise_project_id: "" }, "enterprise_project_id"],
			["PUT", access, { tags: [] }, "tags must be an object"],
			["PUT", access, { tags: many }, "tags must be an object with at most 20"],
			["PUT", access, { tags: { "": "a" } }, "tags must have keys of 1 to 36"],
			["PUT", access, { tags: { "a b": "a" } }, "tags must have keys of"],
			[
				"PUT",
				access,
				{ tags: { [`${"a".repeat(37)}`]: "" } },
				"tags must have keys of",
			],
			[
				"PUT",
				access,
				{ tags: { a: "b".repeat(44) } },
				"tags.a must be 0 to 43",
			],
			["PUT", access, { tags: { a: 1 } }, "tags.a must be a string"],
			["POST", projects, {}, "project_name is required"],
			["POST", projects, { project_name: "a b" }, "project_name"],
			["POST", projects, { project_name: "a".repeat(65) }, "project_name"],
			["PUT", `${projects}/${api.projectId}`, {}, "project_name is required"],
			["POST", enterprises, {}, "enterprise_project_name is required"],
			[
				"POST",
				enterprises,
				{ enterprise_project_name: "" },
				"enterprise_project_name",
			],
			[
				"POST",
				enterprises,
				{ enterprise_project_name: "a", description: 1 },
				"description",
			],
		] as const)
			await refused(api.call(method, path, { json }), 400, INVALID, words);
		for (const call of [
			() => api.getManagedProject(UNKNOWN),
			() => api.renameProject(UNKNOWN, { project_name: "x" }),
			() => api.deleteProject(UNKNOWN),
		])
			await refused(call(), 404, "IOTDA.015905");
		for (const call of [
			() => api.getEnterpriseProject(UNKNOWN),
			() =>
				api.updateEnterpriseProject(UNKNOWN, { enterprise_project_name: "x" }),
			() => api.deleteEnterpriseProject(UNKNOWN),
		])
			await refused(call(), 404, "IOTDA.015906");
		assert.deepEqual((await api.getSpaceAccess(app_id)).tags, {});
	});

	test("without a grant nobody manages projects", async () => {
		const { api: his } = await makeProgram(api);
		for (const call of [
			() => his.createProject({ project_name: unique("p") }),
			() => his.listManagedProjects(),
			() => his.deleteProject(api.projectId),
			() => his.listEnterpriseProjects(),
			() => his.getSpaceAccess(server.credentials.app_id),
			() => his.setSpaceAccess(server.credentials.app_id, { tags: {} }),
		])
			await refused(call(), 403, FORBIDDEN);
		const person = await makePerson(api);
		const byToken = await signIn(server, person);
		assert.deepEqual((await byToken.getMe()).projects, []);
	});
});
