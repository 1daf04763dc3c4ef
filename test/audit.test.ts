/** Who did what, when, from where, on what, and whether he might: all writes and all refusals. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import type { AuditEntry } from "../server/audit/audit-chain.ts";
import { AuditLog } from "../server/audit/audit-log.ts";
import {
	type FloodKind,
	ofAddress,
	ofUser,
	RefusalFlood,
} from "../server/audit/refusal-flood.ts";
import { Client } from "../wire/client.ts";
import { makeUser } from "./support/access.ts";
import {
	auditOf,
	chainKey,
	checkExport,
	exportedRows,
	lastAudit,
} from "./support/audit.ts";
import { HandClock } from "./support/clock.ts";
import { forEachEngine, postgres } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { send, sendSigned } from "./support/raw-request.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	upload,
} from "./support/seed.ts";
import { startBeside, startServer, type TestServer } from "./support/server.ts";
import { ServerProcess } from "./support/server-process.ts";

async function otaru(server: TestServer, ...args: string[]) {
	await using command = new OtaruCommand([
		"audit",
		...args,
		"--data",
		server.config.dataDir,
	]);
	const code = await command.ended;
	return { code, out: command.stdout, err: command.stderr };
}

function entry(fields: Partial<AuditEntry> = {}): AuditEntry {
	return {
		at: new Date().toISOString(),
		request_id: randomBytes(16).toString("hex"),
		account_id: null,
		user_id: null,
		user_name: null,
		credential: null,
		address: "192.0.2.1",
		method: "POST",
		path: "/",
		action: null,
		project_id: null,
		app_id: null,
		resource: null,
		status: 401,
		decision: "refused",
		reason: null,
		error_code: null,
		...fields,
	};
}

forEachEngine((engine) => {
	test("a write is kept with who, when, from where, on what, and how it went", async () => {
		await using server = await startServer(engine);
		const { api, credentials, server: running } = server;
		const before = Date.now();
		const product = await makeProduct(api);
		const row = await lastAudit(api);
		const user = await running.db
			.selectFrom("users")
			.select(["user_id", "account_id"])
			.executeTakeFirstOrThrow();
		const { seq, at, request_id, hash, ...rest } = row;
		assert.deepEqual(rest, {
			...user,
			user_name: credentials.user_name,
			credential: credentials.access_key,
			address: "127.0.0.1",
			method: "POST",
			path: `/v5/iot/${credentials.project_id}/products`,
			action: "iotda:products:create",
			project_id: credentials.project_id,
			app_id: product.app_id,
			resource: product.product_id,
			status: 201,
			decision: "allowed",
		});
		assert.equal(seq, 1);
		assert.match(hash, /^[0-9a-f]{64}$/);
		assert.match(request_id, /^[0-9a-f]{32}$/);
		assert.ok(Math.abs(new Date(at).getTime() - before) < 10_000, at);

		// What only looks is not kept, whatever its method.
		await api.listProducts();
		await api.queryTagged({
			resource_type: "device",
			tags: [{ tag_key: "k", tag_value: "v" }],
		});
		await api.verifyAudit();
		assert.equal((await lastAudit(api)).seq, 1);
	});

	test("the thing concerned is named, by the path or by the answer", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const app_id = product.app_id;
		const said = async (
			call: Promise<unknown>,
			expected: { action: string; resource: string; app_id?: string },
			status = 200,
		) => {
			await call;
			const {
				action,
				resource,
				app_id: spaceId,
				...row
			} = await lastAudit(api);
			assert.deepEqual(
				{
					action,
					resource,
					status: row.status,
					...(expected.app_id && { app_id: spaceId }),
				},
				{ ...expected, status },
			);
		};
		await said(api.updateProduct(product.product_id, { name: "Other" }), {
			action: "iotda:products:modify",
			resource: product.product_id,
			app_id,
		});
		const module = await makeModule(api, product, "MCU");
		assert.equal((await lastAudit(api)).resource, module.module_id);
		const file = await upload(api, "a/b.bin", randomBytes(10));
		const put = await lastAudit(api);
		assert.deepEqual(
			[put.action, put.resource, put.method, put.status],
			["otaru:objects:put", "firmware/a/b.bin", "PUT", 201],
		);
		const { package_id } = await makePackage(api, product, {
			package_type: "modulePackage",
			module_name: "MCU",
			version: "2",
			file_location: file,
		});
		assert.equal((await lastAudit(api)).resource, package_id);
		await api.updateProductOtaProfile(product.product_id, {
			module_form: "native",
		});
		const device = await makeDevice(api, product);
		assert.equal((await lastAudit(api)).resource, device.device_id);
		await said(
			api.freezeDevice(device.device_id),
			{ action: "iotda:devices:freeze", resource: device.device_id },
			204,
		);
		await api.unfreezeDevice(device.device_id);
		await said(
			api.bindTags({
				resource_type: "device",
				resource_id: device.device_id,
				tags: [{ tag_key: "k", tag_value: "v" }],
			}),
			{ action: "iotda:tags:bind", resource: device.device_id },
		);
		const group = await api.createDeviceGroup({ app_id, name: "g" });
		assert.equal((await lastAudit(api)).resource, group.group_id);
		// Its answer is a stream.
		const task = await api.createTask({
			task_name: "t",
			task_type: "moduleUpgrade",
			targets: [device.device_id],
			document: { package_ids: [package_id] },
			need_confirm: true,
		});
		const created = await lastAudit(api);
		assert.deepEqual(
			[created.resource, created.app_id],
			[task.task_id, app_id],
		);
		await said(api.stopTask(task.task_id), {
			action: "iotda:batchtasks:stop",
			resource: task.task_id,
		});
		const started = await api.importDevices(
			`{"product_id":"${product.product_id}","node_id":"n1"}\n`,
			{ format: "ndjson" },
		);
		const imported = await lastAudit(api);
		assert.deepEqual(
			[imported.resource, imported.status],
			[started.import_id, 202],
		);
	});

	test("what was allowed and went wrong says so by its status", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		await refused(api.deleteProduct("unknown"), 404, "IOTDA.013900");
		const unknown = await lastAudit(api);
		assert.deepEqual(
			[unknown.status, unknown.decision, unknown.error_code, unknown.resource],
			[404, "allowed", "IOTDA.013900", "unknown"],
		);
		await refused(
			api.createProduct({} as Parameters<Client["createProduct"]>[0]),
			400,
			"IOTDA.000006",
		);
		assert.equal((await lastAudit(api)).status, 400);
		// A rule of the service is no refusal of the caller, but has its status.
		const { applications } = await api.listResourceSpaces();
		const standard = applications[0]?.app_id ?? "";
		await refused(api.deleteResourceSpace(standard), 403, "IOTDA.001901");
		const rule = await lastAudit(api);
		assert.deepEqual(
			[rule.status, rule.decision, rule.error_code, rule.app_id],
			[403, "refused", "IOTDA.001901", standard],
		);
	});

	test("whoever cannot prove who he is leaves what he showed, and nothing secret", async () => {
		await using server = await startServer(engine);
		const { api, url, credentials } = server;
		const path = `/v5/iot/${credentials.project_id}/products`;
		const refusal = async (expected: Record<string, unknown>) => {
			const row = await lastAudit(api, { decision: "refused" });
			assert.deepEqual(
				Object.fromEntries(
					Object.keys(expected).map((key) => [key, row[key as "reason"]]),
				),
				expected,
			);
			assert.equal(row.status, 401);
			assert.equal(row.error_code, "APIGW.0301");
			assert.equal(row.user_id, undefined);
			assert.equal(row.account_id, undefined);
		};
		assert.equal((await send(url, { path })).status, 401);
		await refusal({
			credential: undefined,
			method: "GET",
			path,
			action: "iotda:products:queryList",
			reason: "neither signature nor token",
		});
		await send(url, {
			path: `${path}?access_token=s`,
			headers: { "x-auth-token": "s3cret" },
		});
		await refusal({ credential: "token", path, reason: "unknown token" });
		await sendSigned(server, {
			path,
			tamper: (request) => {
				request.headers.authorization = `${request.headers.authorization?.slice(0, -4)}0000`;
			},
		});
		await refusal({ credential: credentials.access_key });
		await sendSigned(server, {
			path,
			key: { accessKey: "NOSUCHACCESSKEY00001", secretKey: "x" },
		});
		await refusal({
			credential: "NOSUCHACCESSKEY00001",
			reason: "unknown access key",
		});
		// The two parts of a key, the wrong way round.
		await sendSigned(server, {
			path,
			key: {
				accessKey: credentials.secret_key,
				secretKey: credentials.access_key,
			},
		});
		await refusal({ credential: undefined });
	});

	test("sign-ins are kept, whether or not the password fits", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const user = {
			domainName: credentials.domain_name,
			userName: credentials.user_name,
			password: credentials.password,
		};
		const { token } = await api.signIn(user);
		const issued = await lastAudit(api);
		assert.deepEqual(
			[
				issued.action,
				issued.status,
				issued.decision,
				issued.credential,
				issued.user_name,
				issued.path,
			],
			[
				"iam:tokens:create",
				201,
				"allowed",
				"password",
				user.userName,
				"/v3/auth/tokens",
			],
		);
		const byToken = await api
			.as({ token })
			.createResourceSpace({ app_name: "s" });
		const created = await lastAudit(api);
		assert.deepEqual(
			[created.credential, created.user_id, created.resource],
			["token", issued.user_id, byToken.app_id],
		);

		await assert.rejects(api.signIn({ ...user, password: "Wrong-1234" }));
		const wrong = await lastAudit(api);
		assert.deepEqual(
			[
				wrong.status,
				wrong.decision,
				wrong.credential,
				wrong.user_name,
				wrong.resource,
				wrong.error_code,
			],
			[401, "refused", "password", undefined, issued.user_id, "IAM.401"],
		);
		// What nobody is called may be a password, typed into the wrong field.
		await assert.rejects(api.signIn({ ...user, userName: user.password }));
		const nobody = await lastAudit(api);
		assert.deepEqual([nobody.status, nobody.resource], [401, undefined]);
	});

	test("a signed call that is refused names its caller", async () => {
		await using server = await startServer(engine);
		const { api, url, credentials } = server;
		const elsewhere = new Client({
			endpoint: url,
			projectId: "0".repeat(32),
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		await refused(elsewhere.listProducts(), 403, "IOTDA.000022");
		const row = await lastAudit(api);
		assert.deepEqual(
			[
				row.status,
				row.decision,
				row.method,
				row.user_name,
				row.project_id,
				row.reason,
			],
			[
				403,
				"refused",
				"GET",
				credentials.user_name,
				"0".repeat(32),
				"(the project of the path is not the caller's)",
			],
		);
	});

	test("the list is filtered by each of its fields, and paged", async () => {
		await using server = await startServer(engine);
		const { api, server: running } = server;
		await using log = new AuditLog({
			db: running.db,
			key: await chainKey(server),
		});
		const values = {
			user_id: "u-1",
			user_name: "Zoë",
			credential: "AK1",
			action: "a:b:c",
			project_id: "p-1",
			app_id: "s-1",
			resource: "firmware/a b",
			address: "2001:db8::1",
			decision: "allowed",
			status: 207,
		} as const;
		for (const [field, value] of Object.entries(values))
			await log.append(entry({ [field]: value }));
		for (const [field, value] of Object.entries(values)) {
			const found = await auditOf(api, { [field]: String(value) });
			assert.equal(found.length, 1, field);
			assert.equal(found[0]?.[field as "status"], value);
		}
		assert.deepEqual(await auditOf(api, { user_id: "u-1", status: "207" }), []);

		const all = await auditOf(api);
		assert.deepEqual(
			all.map(({ seq }) => seq),
			[10, 9, 8, 7, 6, 5, 4, 3, 2, 1],
		);
		const first = await api.listAudit({ limit: 3, offset: 1 });
		assert.deepEqual(
			first.audit.map(({ seq }) => seq),
			[9, 8, 7],
		);
		assert.deepEqual(first.page, {
			count: 10,
			marker: "000000000000000000000007",
		});
		const second = await api.listAudit({
			limit: 3,
			marker: first.page.marker ?? "",
		});
		assert.deepEqual(
			second.audit.map(({ seq }) => seq),
			[6, 5, 4],
		);

		for (const [query, code] of [
			[{ status: "7" }, "IOTDA.000006"],
			[{ decision: "maybe" as "allowed" }, "IOTDA.000006"],
			[{ start_time: "yesterday" }, "IOTDA.000009"],
			[
				{ start_time: "20260102T000000Z", end_time: "20260101T000000Z" },
				"IOTDA.000010",
			],
			[{ limit: 51 }, "IOTDA.000017"],
			[{ marker: "x" }, "IOTDA.000018"],
		] as const)
			await refused(api.listAudit(query), 400, code);
	});

	test("a span of time is found in a long trail, and no page goes through all of it", async () => {
		await using server = await startServer(engine);
		const { api, server: running } = server;
		await using log = new AuditLog({
			db: running.db,
			key: await chainKey(server),
		});
		const minute = (number: number) =>
			new Date(Date.UTC(2026, 0, 1, 0, number));
		const ROWS = 25_000;
		await Promise.all(
			Array.from({ length: ROWS }, (_, index) =>
				log.append(
					entry({
						at: minute(Math.floor(index / 10)).toISOString(),
						user_id: index === 77 ? "rare" : "often",
						credential: index === 42 ? "one" : "other",
					}),
				),
			),
		);
		const within = {
			start_time: "20260101T010000Z",
			end_time: "20260101T010200Z",
		};
		const found = await auditOf(api, within);
		assert.deepEqual(
			found.map(({ seq }) => seq),
			Array.from({ length: 20 }, (_, index) => 620 - index),
		);
		assert.equal((await api.listAudit({ ...within, limit: 5 })).page.count, 20);
		const lines = await exportedRows(api, within);
		assert.deepEqual(
			lines.map(({ seq }) => seq),
			Array.from({ length: 20 }, (_, index) => 601 + index),
		);
		assert.equal(checkExport(lines), undefined);
		assert.deepEqual(
			await exportedRows(api, { start_time: "20300101T000000Z" }),
			[],
		);
		assert.deepEqual(
			await exportedRows(api, { end_time: "20200101T000000Z" }),
			[],
		);

		// By an index, and without one; the count knows the newest rows only.
		const byIndex = await api.listAudit({ user_id: "rare" });
		assert.deepEqual(
			[byIndex.audit.map(({ seq }) => seq), byIndex.page.count],
			[[78], 1],
		);
		const searched = await api.listAudit({ credential: "one" });
		assert.deepEqual(
			[searched.audit.map(({ seq }) => seq), searched.page.count],
			[[43], 0],
		);
		assert.equal((await api.listAudit({ limit: 1 })).page.count, 10_000);
		assert.equal((await api.verifyAudit()).rows, ROWS);
	});

	test("an export holds the whole chain, and a stranger can check it", async () => {
		await using server = await startServer(engine);
		const { api, server: running } = server;
		await makeProduct(api);
		await using log = new AuditLog({
			db: running.db,
			key: await chainKey(server),
		});
		await log.append(entry({ account_id: "another", user_name: "Somebody" }));
		await Promise.all(
			Array.from({ length: 1_500 }, (_, index) =>
				log.append(entry({ resource: `"${index}\\ 模块`, reason: "a\nb" })),
			),
		);
		const lines = await exportedRows(api);
		assert.equal(lines.length, 1_502);
		assert.deepEqual(Object.keys(lines[1] ?? {}), [
			"seq",
			"previous_hash",
			"hash",
		]);
		assert.deepEqual(await auditOf(api, { user_name: "Somebody" }), []);
		assert.equal(checkExport(lines), undefined);
		const { head } = await api.verifyAudit();
		const last = lines.at(-1);
		assert.deepEqual({ seq: last?.seq, hash: last?.hash }, head);
		const changed = structuredClone(lines);
		Object.assign(changed[700] ?? {}, { address: "192.0.2.2" });
		assert.equal(checkExport(changed), 700);
		assert.equal(checkExport(lines.toSpliced(1, 1)), 1);

		const rest = await exportedRows(api, { after_seq: 1_400 });
		assert.deepEqual(rest, lines.slice(1_400));
		await refused(api.exportAudit({ after_seq: "x" }), 400, "IOTDA.000006");
	});

	test("the chain is verified by API and command, and a fault is an exit code", async () => {
		await using server = await startServer(engine);
		const { api, server: running } = server;
		await makeProduct(api);
		await makeProduct(api, { name: "Other" });
		const { head, ...verified } = await api.verifyAudit();
		assert.deepEqual(verified, { intact: true, rows: 2, first_seq: 1 });
		assert.ok(head);
		const note = `${head.seq}:${head.hash}`;
		const good = await otaru(server, "verify", "--expect", note);
		assert.deepEqual(good, {
			code: 0,
			out: `The audit trail is intact: 2 rows from 1 on.\nhead ${note}\n`,
			err: "",
		});
		const listed = await otaru(
			server,
			"list",
			"--action",
			"iotda:products:create",
			"--limit",
			"1",
		);
		assert.match(
			listed.out,
			/^SEQ {2}TIME +ADDRESS +WHO +ACTION +RESOURCE +STATUS +REFUSED\n2 {4}\S+ {2}127\.0\.0\.1 {2}admin {2}iotda:products:create {2}\S+ {2}201\n$/,
		);
		const asJson = await otaru(server, "list", "--json");
		assert.deepEqual(
			asJson.out
				.trim()
				.split("\n")
				.map((line) => JSON.parse(line)),
			await auditOf(api),
		);
		const exported = await otaru(server, "export", "--after-seq", "1");
		assert.deepEqual(JSON.parse(exported.out), (await exportedRows(api))[1]);
		assert.equal((await otaru(server, "verify", "--expect", "7")).code, 2);
		assert.equal((await otaru(server, "burn")).code, 2);
		const gone = await otaru(
			server,
			"verify",
			"--json",
			"--expect",
			`9:${head.hash}`,
		);
		assert.equal(gone.code, 1);
		assert.equal(JSON.parse(gone.out).fault.seq, 9);

		await running.db
			.updateTable("audit")
			.set({ address: "192.0.2.1" } as never)
			.where("seq", "=", 1)
			.execute();
		const { fault, intact } = await api.verifyAudit(head);
		assert.deepEqual(
			{ fault, intact },
			{
				fault: {
					seq: 1,
					what: "the row is not the one that was written here",
				},
				intact: false,
			},
		);
		const bad = await otaru(server, "verify");
		assert.equal(bad.code, 1);
		assert.match(bad.out, /not the one that was written: row 1/);
	});

	test("a call that cannot be kept is not acknowledged, and gives nothing away", async () => {
		await using server = await startServer(engine);
		const { api, server: running, url, credentials } = server;
		const product = await makeProduct(api);
		const known = await makeDevice(api, product);
		const { package_id } = await makePackage(api, product);
		const head = await running.db
			.selectFrom("audit_ends")
			.select("seal")
			.where("name", "=", "head")
			.executeTakeFirstOrThrow();
		const setSeal = (seal: string) =>
			running.db
				.updateTable("audit_ends")
				.set({ seal })
				.where("name", "=", "head")
				.execute();
		await setSeal("forged");
		await refused(makeProduct(api, { name: "Other" }), 500, "IOTDA.000901");
		await refused(api.deleteProduct(product.product_id), 500, "IOTDA.000901");
		const device = makeDevice(api, product).catch((error: Error) => error);
		assert.doesNotMatch(String(await device), /secret/);
		const signIn = await send(url, {
			method: "POST",
			path: "/v3/auth/tokens",
			body: JSON.stringify({
				auth: {
					identity: {
						methods: ["password"],
						password: {
							user: {
								name: credentials.user_name,
								password: credentials.password,
								domain: { name: credentials.domain_name },
							},
						},
					},
				},
			}),
		});
		assert.equal(signIn.status, 500);
		assert.equal(signIn.headers["x-subject-token"], undefined);
		assert.deepEqual(signIn.json, {
			error: {
				code: 500,
				message: "Internal server error.",
				title: "Internal Server Error",
			},
		});
		// A stream that was to be the answer.
		const task = api.createTask({
			task_name: "t",
			task_type: "firmwareUpgrade",
			targets: [known.device_id],
			document: { package_ids: [package_id] },
		});
		await refused(task, 500, "IOTDA.000901");
		assert.equal(
			(await send(url, { path: `/v5/iot/${credentials.project_id}/apps` }))
				.status,
			500,
		);
		// Who only looks is served.
		await api.listProducts();
		assert.equal((await api.verifyAudit()).intact, false);

		await setSeal(head.seal);
		await makeProduct(api, { name: "Third" });
		assert.equal((await api.verifyAudit()).intact, true);
	});

	test("a flood of strangers leaves some rows and a number", async () => {
		const clock = new HandClock(new Date("2026-02-03T10:00:10Z"));
		await using server = await startServer(engine, { now: clock.now });
		const { api, url, credentials } = server;
		const path = `/v5/iot/${credentials.project_id}/products`;
		for (let round = 0; round < 10; round++)
			await Promise.all(Array.from({ length: 30 }, () => send(url, { path })));
		assert.equal((await auditOf(api)).length, 20);
		// Those who are known are kept one by one.
		for (let index = 0; index < 25; index++)
			await refused(api.deleteProduct(`p${index}`), 404, "IOTDA.013900");
		assert.equal((await auditOf(api)).length, 45);

		clock.pass({ minutes: 1 });
		assert.equal((await send(url, { path })).status, 401);
		let rows = await auditOf(api, { decision: "refused" });
		for (let tries = 0; rows.length < 22 && tries < 100; tries++) {
			await pause(20);
			rows = await auditOf(api, { decision: "refused" });
		}
		assert.equal(rows.length, 22);
		const summary = rows.find(({ reason }) => reason?.startsWith("and "));
		assert.match(summary?.reason ?? "", /^and 280 more in a minute/);
		assert.deepEqual(
			[summary?.address, summary?.status, summary?.decision],
			["127.0.0.1", 401, "refused"],
		);
		assert.equal((await api.verifyAudit()).intact, true);
	});

	test("what a user is refused all the time leaves some rows and a number, what he may do every row", async () => {
		const clock = new HandClock(new Date("2026-02-03T10:00:10Z"));
		await using server = await startServer(engine, { now: clock.now });
		const { api } = server;
		const user = await makeUser(api);
		const other = await makeUser(api);
		const rowsOf = (userId: string) => auditOf(api, { user_id: userId });
		const me = "/otaru/v1/access/me";
		// Nothing is done, neither by what is refused nor by what fails without a grant.
		for (let index = 0; index < 50; index++)
			await refused(user.api.deleteProduct("p"), 403, "IOTDA.000022");
		for (let index = 0; index < 50; index++)
			await refused(
				user.api.call("DELETE", `${me}/access-keys/NOSUCHKEY${index}`),
				404,
				"IOTDA.015904",
			);
		assert.equal((await rowsOf(user.userId)).length, 60);
		// Others are others, and what was done is kept.
		await refused(other.api.deleteProduct("p"), 403, "IOTDA.000022");
		assert.equal((await rowsOf(other.userId)).length, 1);
		for (let index = 0; index < 5; index++)
			await user.api.call("PUT", `${me}/access-keys/${user.key.accessKey}`, {
				json: { description: `d${index}` },
			});
		assert.equal((await rowsOf(user.userId)).length, 65);

		clock.pass({ minutes: 1 });
		await refused(user.api.deleteProduct("p"), 403, "IOTDA.000022");
		let rows = await rowsOf(user.userId);
		for (let tries = 0; rows.length < 67 && tries < 100; tries++) {
			await pause(20);
			rows = await rowsOf(user.userId);
		}
		assert.equal(rows.length, 67);
		const summary = rows.find(({ reason }) => reason?.startsWith("and "));
		assert.match(summary?.reason ?? "", /^and 40 more in a minute/);
		assert.equal(summary?.user_name, user.userName);
		assert.equal((await api.verifyAudit()).intact, true);
	});

	test("nobody writes a line of his own, or anything that moves a cursor, into the trail", async () => {
		await using server = await startServer(engine);
		const { api, credentials, url } = server;
		const signs = ["\n", "\r", "\x1b", "\x00", "\x7f", "\x9b", "\u2028"];
		signs.push("\u2029", "\u202e", "\u2066", "\u200f", "\u061c", "\t");
		for (const sign of signs) {
			const { status } = await send(url, {
				path: `/v5/iot/${credentials.project_id}/devices/x${encodeURIComponent(sign)}y`,
			});
			assert.equal(status, 401);
			const row = await lastAudit(api);
			assert.equal(row.resource, "x\uFFFDy", JSON.stringify(sign));
			assert.ok(row.path.endsWith(`/x${encodeURIComponent(sign)}y`));
		}
		const { status } = await send(url, {
			path: `/v5/iot/${credentials.project_id}/devices/${encodeURIComponent("gerät-設備")}`,
		});
		assert.equal(status, 401);
		assert.equal((await lastAudit(api)).resource, "gerät-設備");
		assert.equal((await api.verifyAudit()).intact, true);
		assert.equal(checkExport(await exportedRows(api)), undefined);
	});

	test("a secret key in the place of the access key is not kept, the rest of the path is", async () => {
		await using server = await startServer(engine);
		const { api, url } = server;
		const user = await makeUser(api);
		const me = "/otaru/v1/access/me/access-keys";
		const own = `/otaru/v1/access/users/${user.userId}/access-keys`;
		const secrets = [user.key.secretKey, `%4e${user.key.secretKey}`];
		for (const secret of secrets) {
			await api.call("DELETE", `${me}/${secret}`).catch(() => undefined);
			const mine = await lastAudit(api);
			assert.equal(mine.path, `${me}/:access_key`);
			assert.equal(mine.resource, undefined);
			await api
				.call("PUT", `${own}/${secret}`, { json: { enabled: true } })
				.catch(() => undefined);
			const his = await lastAudit(api);
			assert.equal(his.path, `${own}/:access_key`);
			assert.equal(his.resource, user.userId);
			await send(url, { method: "DELETE", path: `${me}/${secret}` });
			assert.equal((await lastAudit(api)).path, `${me}/:access_key`);
		}
		const kept = JSON.stringify(await exportedRows(api));
		assert.ok(!kept.includes(user.key.secretKey));
		await api.call("DELETE", `${own}/${user.key.accessKey}`);
		const last = await lastAudit(api);
		assert.equal(last.path, `${own}/${user.key.accessKey}`);
		assert.equal(last.resource, user.key.accessKey);
	});

	test("what is older than the setting says is gone after the next sweep", async () => {
		const clock = new HandClock(new Date("2026-02-03T10:00:00Z"));
		await using server = await startServer(engine, {
			now: clock.now,
			env: { OTARU_AUDIT_DAYS: "30" },
		});
		const { api } = server;
		await makeProduct(api);
		clock.pass({ hours: 24 * 20 });
		await makeProduct(api, { name: "Other" });
		const { head } = await api.verifyAudit();
		clock.pass({ hours: 24 * 11 });
		await server.restart();
		let verified = await api.verifyAudit(head);
		for (let tries = 0; verified.first_seq === 1 && tries < 100; tries++) {
			await pause(20);
			verified = await api.verifyAudit(head);
		}
		assert.deepEqual(verified, {
			intact: true,
			rows: 1,
			first_seq: 2,
			head: head,
		});
		const [line] = await exportedRows(api);
		assert.equal(checkExport(line ? [line] : []), undefined);
		assert.match(line?.previous_hash ?? "", /^[0-9a-f]{64}$/);
	});

	test("a server killed while it writes leaves a whole chain with all it acknowledged", async () => {
		await using cleanup = new AsyncDisposableStack();
		const store = await engine.fresh();
		cleanup.defer(() => store.dispose());
		const { OTARU_DATA: dataDir, ...database } = store.env;
		const server = cleanup.use(
			await ServerProcess.start({ dataDir, env: database }),
		);
		const file = join(dataDir, "credentials.json");
		assert.ok(existsSync(file));
		const credentials = JSON.parse(readFileSync(file, "utf8"));
		const api = new Client({
			endpoint: server.url,
			projectId: credentials.project_id,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		const acknowledged: string[] = [];
		for (let kill = 0; kill < 5; kill++) {
			let isKilled = false;
			const writers = Array.from({ length: 8 }, async (_, writer) => {
				for (let number = 0; !isKilled; number++) {
					try {
						const { product_id } = await makeProduct(api, {
							name: `p${kill}-${writer}-${number}`,
						});
						acknowledged.push(product_id);
					} catch (error) {
						if (
							!isKilled &&
							error instanceof Error &&
							error.name === "ApiFailure"
						)
							throw error;
						if (!isKilled) return;
					}
				}
			});
			await pause(150 + kill * 70);
			const killed = server.kill();
			isKilled = true;
			await Promise.all([killed, ...writers]);
			await server.start();
		}
		const verified = await api.verifyAudit();
		assert.equal(verified.intact, true, JSON.stringify(verified));
		assert.ok(acknowledged.length > 50, `only ${acknowledged.length} writes`);
		const kept = new Set(
			(await exportedRows(api)).map((line) =>
				"resource" in line ? line.resource : undefined,
			),
		);
		for (const productId of acknowledged)
			assert.ok(kept.has(productId), `${productId} is not in the trail`);
		assert.equal(await server.stop(), 0, server.stderr);
	});
});

test("two servers that write at once make one chain", async () => {
	await using first = await startServer(postgres);
	await using second = await startBeside(first);
	const WRITES = 150;
	const named = await Promise.all(
		Array.from({ length: WRITES }, (_, index) =>
			makeProduct((index % 2 ? first : second).api, { name: `p${index}` }),
		),
	);
	const verified = await second.api.verifyAudit();
	assert.deepEqual(
		[verified.intact, verified.rows, verified.head?.seq],
		[true, WRITES, WRITES],
	);
	const lines = await exportedRows(first.api);
	assert.equal(checkExport(lines), undefined);
	assert.deepEqual(
		new Set(lines.map((line) => ("resource" in line ? line.resource : ""))),
		new Set(named.map(({ product_id }) => product_id)),
	);
});

describe("refusals", () => {
	function makeFlood(
		limits: { perSource: number; sources: number },
		kind: FloodKind = ofAddress,
	) {
		const clock = new HandClock(new Date("2026-02-03T10:00:10Z"));
		const said: AuditEntry[] = [];
		const flood = new RefusalFlood(kind, {
			now: clock.now,
			limits,
			onFailure: (error) => assert.fail(String(error)),
			append: async (one) => {
				said.push(one);
			},
		});
		return { clock, said, flood };
	}

	test("from however many addresses leave a bounded number of rows", async () => {
		const { clock, said, flood } = makeFlood({ perSource: 2, sources: 10 });
		let kept = 0;
		for (let index = 0; index < 100_000; index++) {
			const address = `10.${index % 250}.${index % 83}.1`;
			if (flood.admits(address, entry({ address }))) kept++;
		}
		assert.equal(kept, 22);
		clock.pass({ minutes: 1 });
		assert.equal(flood.admits("10.0.0.1", entry()), true);
		assert.equal(said.length, 11);
		const counts = said.map(({ reason }) =>
			Number(/^and (\d+) more/.exec(reason ?? "")?.[1]),
		);
		assert.equal(
			counts.reduce((sum, count) => sum + count, kept),
			100_000,
		);
		assert.ok(said.some(({ address }) => address === "*"));
		await flood[Symbol.asyncDispose]();
	});

	test("are summed up when the server stops", async () => {
		const { said, flood } = makeFlood({ perSource: 1, sources: 10 });
		for (let index = 0; index < 4; index++)
			flood.admits("192.0.2.1", entry({ credential: `AK${index}` }));
		await flood[Symbol.asyncDispose]();
		assert.equal(said.length, 1);
		assert.match(said[0]?.reason ?? "", /^and 3 more/);
		assert.equal(said[0]?.credential, null);
	});

	test("of a user are summed up in his name, and of too many users in nobody's", async () => {
		const { said, flood } = makeFlood({ perSource: 1, sources: 1 }, ofUser);
		const by = (user_id: string) =>
			flood.admits(
				user_id,
				entry({ user_id, user_name: user_id, account_id: "a", resource: "r" }),
			);
		assert.deepEqual(["u1", "u1", "u1", "u2", "u3", "u4"].map(by), [
			true,
			false,
			false,
			true,
			false,
			false,
		]);
		await flood[Symbol.asyncDispose]();
		assert.deepEqual(
			said.map(({ user_id, user_name, account_id, address, resource }) => ({
				...{ user_id, user_name, account_id, address, resource },
			})),
			[
				{
					user_id: "u1",
					user_name: "u1",
					account_id: "a",
					address: "192.0.2.1",
					resource: null,
				},
				{
					user_id: null,
					user_name: null,
					account_id: null,
					address: "*",
					resource: null,
				},
			],
		);
	});
});
