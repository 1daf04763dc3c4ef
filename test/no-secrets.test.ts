/**
 * Nothing that lets anybody in is ever written down: a session that uses every kind of
 * secret, on a server that logs all it can, and then a look through everything it wrote.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Client } from "../wire/client.ts";
import type { Device } from "../wire/devices.ts";
import { grant, makeUser } from "./support/access.ts";
import { exportedRows } from "./support/audit.ts";
import { download, ScriptedDevice, signIn } from "./support/device.ts";
import { forEachEngine } from "./support/engines.ts";
import { send } from "./support/raw-request.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	unique,
} from "./support/seed.ts";
import type { TestServer } from "./support/server.ts";
import { ServerProcess } from "./support/server-process.ts";

forEachEngine((engine) => {
	test("no password, key, secret, token or signature is in the log or in the audit trail", async (t) => {
		await using cleanup = new AsyncDisposableStack();
		const store = await engine.fresh();
		cleanup.defer(() => store.dispose());
		const { OTARU_DATA: dataDir, ...database } = store.env;
		const running = cleanup.use(
			await ServerProcess.start({
				dataDir,
				keepStdout: true,
				env: {
					...database,
					OTARU_LOG_LEVEL: "debug",
					OTARU_CONNECT_PAUSE_MS: "0",
				},
			}),
		);
		const credentials = JSON.parse(
			readFileSync(join(dataDir, "credentials.json"), "utf8"),
		);
		const secrets = new Map<string, string>([
			[credentials.password, "the administrator's password"],
			[credentials.secret_key, "the administrator's secret key"],
			[
				readFileSync(join(dataDir, "master.key"), "utf8").trim(),
				"the master key",
			],
		]);
		const secret = <T>(name: string, value: T): T => {
			assert.ok(typeof value === "string" && value.length >= 8, name);
			secrets.set(value, name);
			return value;
		};
		/** Notes every signature that goes out. */
		const listening: typeof fetch = (url, init) => {
			const { authorization = "" } = (init?.headers ?? {}) as Record<
				string,
				string
			>;
			const signature = /Signature=(\w+)/.exec(authorization)?.[1];
			if (signature !== undefined) secret("a signature", signature);
			return fetch(url, init);
		};
		const api = new Client({
			endpoint: running.url,
			projectId: credentials.project_id,
			fetch: listening,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		const server = { url: running.url, credentials } as TestServer;
		const path = `/v5/iot/${credentials.project_id}/apps`;

		// People: passwords right and wrong, tokens, keys, and all of it in the wrong place.
		const signer = {
			domainName: credentials.domain_name,
			userName: credentials.user_name,
			password: credentials.password,
		};
		const { token } = await api.signIn(signer);
		secret("a token", token);
		await api.as({ token }).createResourceSpace({ app_name: unique("space") });
		await api.describeToken(token);
		const wrong = secret("a wrong password", unique("Wrong-password"));
		await assert.rejects(api.signIn({ ...signer, password: wrong }));
		await assert.rejects(
			api.signIn({
				...signer,
				userName: credentials.password,
				password: wrong,
			}),
		);
		const noToken = secret("an unknown token", randomBytes(30).toString("hex"));
		await assert.rejects(api.as({ token: noToken }).listResourceSpaces());
		await assert.rejects(api.describeToken(noToken));
		await assert.rejects(
			api
				.as({
					accessKey: credentials.secret_key,
					secretKey: credentials.access_key,
				})
				.listResourceSpaces(),
		);
		await assert.rejects(
			api
				.as({
					accessKey: credentials.access_key,
					secretKey: secret("a wrong secret key", "x".repeat(40)),
				})
				.listResourceSpaces(),
		);
		await api
			.as({
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
				derivedForRegion: "otaru",
			})
			.listResourceSpaces();
		await send(running.url, {
			method: "POST",
			path: `${path}?token=${token}&password=${credentials.password}`,
			headers: {
				authorization: `Bearer ${token}`,
				cookie: `session=${token}`,
			},
			body: JSON.stringify({ password: credentials.password }),
		});
		await send(running.url, {
			path,
			headers: {
				authorization: `SDK-HMAC-SHA256 Credential=${credentials.secret_key} Signature=${noToken}`,
			},
		});
		const user = await makeUser(api);
		secret("a user's password", user.password);
		secret("a user's secret key", user.key.secretKey);
		await assert.rejects(user.api.createResourceSpace({ app_name: "no" }));
		await grant(api, user, [{ Effect: "Allow", Action: ["iotda:apps:*"] }]);
		await user.api.listResourceSpaces();

		// Devices: secrets given and made up, reset, wrong; links and tokens of downloads.
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		const given = secret("a device's secret", randomBytes(12).toString("hex"));
		const withSecret = await makeDevice(api, product, {
			auth_info: { auth_type: "SECRET", secret: given },
		} as Parameters<typeof makeDevice>[2]);
		const reset = await api.resetDeviceSecret(withSecret.device_id, {
			secret: secret("a reset secret", randomBytes(12).toString("hex")),
		});
		assert.ok(reset);
		const device = await makeDevice(api, product);
		secret("a made up device secret", device.auth_info?.secret);
		secret("a device's sign-in", signIn(device).options.password);
		const impostor: Device = {
			...device,
			auth_info: { ...device.auth_info, secret: "0".repeat(32) },
		} as Device;
		secret("a wrong device sign-in", signIn(impostor).options.password);
		await assert.rejects(ScriptedDevice.connect(server, impostor));
		for (const form of ["token", "presigned"] as const) {
			await api.updateProductOtaProfile(product.product_id ?? "", {
				download_form: form,
			});
			const version = `v-${form}`;
			const { package_id } = await makePackage(api, product, { version });
			const { task_id } = await api.createTask({
				task_name: "upgrade",
				task_type: "firmwareUpgrade",
				targets: [device.device_id],
				document: { package_ids: [package_id] },
			});
			await using connected = await ScriptedDevice.connect(server, device);
			await connected.next("version_query");
			await connected.reportFirmware("v0");
			const { paras } = await connected.next(
				form === "token" ? "firmware_upgrade" : "firmware_upgrade_v2",
			);
			if (form === "token") secret("a download token", paras.access_token);
			else
				for (const [name, value] of new URL(String(paras.url)).searchParams)
					if (value.length >= 16) secret(`${name} of a download link`, value);
			assert.equal((await download(server, paras)).status, 200);
			const tampered = new URL(String(paras.url));
			tampered.search = `?x=${noToken}`;
			await download(server, {
				...paras,
				url: tampered.href,
				...(form === "token" && { access_token: noToken }),
			});
			await connected.report(0, version);
			for (let tries = 0; tries < 100; tries++)
				if ((await api.getTask(task_id)).batchtask.status === "Success") break;
		}

		const rows = await exportedRows(api);
		const trail = rows.map((row) => JSON.stringify(row)).join("\n");
		assert.equal(await running.stop(), 0, running.stderr);
		const written = {
			"the log": running.stdout,
			"standard error": running.stderr,
			"the audit trail": trail,
		};
		assert.ok(running.stdout.split("\n").length > 50, "the log is not there");
		assert.ok(rows.length > 15, `${rows.length} rows`);
		t.diagnostic(
			`${secrets.size} secrets, ${running.stdout.length} bytes of log, ${rows.length} rows`,
		);
		assert.ok(secrets.size > 20);
		const found = new Set<string>();
		for (const [value, name] of secrets)
			for (const [where, text] of Object.entries(written))
				for (const form of [
					value,
					encodeURIComponent(value),
					Buffer.from(value).toString("base64").slice(0, 20),
					createHash("md5").update(value).digest("hex"),
				])
					if (text.includes(form)) found.add(`${name} is in ${where}`);
		assert.deepEqual([...found], []);
	});
});
