/** The explorer's page in a real browser: signing in, calls, and that nothing leaves the server. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import chromium from "@sparticuz/chromium";
import {
	type Browser,
	type Page,
	chromium as playwright,
	type Response,
} from "playwright-core";
import { examples } from "../wire/examples.ts";
import { sqlite } from "./support/engines.ts";
import { startServer, type TestServer } from "./support/server.ts";

const CREATE = "POST/v5/iot/{project_id}/ota-upgrades/modules";
const LIST = "GET/v5/iot/{project_id}/ota-upgrades/modules";
const example = examples.CreateOtaModule as {
	body: { product_id: string; module_name: string };
};

let server: TestServer;
let browser: Browser;
before(async () => {
	server = await startServer(sqlite);
	browser = await playwright.launch({
		// A browser for machines that have none; it is for Linux on x64.
		executablePath:
			process.env.OTARU_TEST_BROWSER ?? (await chromium.executablePath()),
		args: ["--no-sandbox"],
	});
	// The product of the example, so that the example's call goes through as it stands.
	await server.api.createProduct({
		app_id: server.credentials.app_id,
		product_id: example.body.product_id,
		name: "Gauge",
		device_type: "Gauge",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
	});
});
after(async () => {
	await browser?.close();
	await server?.[Symbol.asyncDispose]();
});

/** A fresh tab at an operation, with what it asked for and what it complained of. */
async function open(operation: string, storage: Record<string, string> = {}) {
	const context = await browser.newContext({
		viewport: { width: 1400, height: 1000 },
	});
	await context.addInitScript((entries) => {
		for (const [key, value] of Object.entries(entries))
			if (sessionStorage.getItem(key) === null)
				sessionStorage.setItem(key, value);
	}, storage);
	const page = await context.newPage();
	page.setDefaultTimeout(30_000);
	const requests: string[] = [];
	const complaints: string[] = [];
	page.on("request", (request) => requests.push(request.url()));
	page.on("console", (message) => {
		if (["error", "warning"].includes(message.type()))
			complaints.push(message.text());
	});
	page.on("pageerror", (error) => complaints.push(error.message));
	await page.goto(`${server.url}/explorer#tag/ota-modules/${operation}`);
	return {
		page,
		requests,
		complaints,
		[Symbol.asyncDispose]: () => context.close(),
	};
}

async function signInByPassword(page: Page, password: string): Promise<void> {
	const form = page.locator("#by-password");
	await form.getByLabel("User").fill(server.credentials.user_name);
	await form.getByLabel("Account").fill(server.credentials.domain_name);
	await form.getByLabel("Password").fill(password);
	await form.getByRole("button", { name: "Sign in" }).click();
}

/** Opens the operation's form and sends it as it is filled in. */
async function tryIt(page: Page, operation: string): Promise<Response> {
	const [method = ""] = operation.split("/", 1);
	const path = operation.slice(method.length);
	await page
		.getByRole("button", {
			name: `Test Request (${method.toLowerCase()} ${path})`,
		})
		.click();
	const answered = page.waitForResponse(
		(response) =>
			response.request().method() === method &&
			response.url().includes("/ota-upgrades/modules"),
	);
	await page
		.getByRole("dialog")
		.getByRole("button", { name: /^Send/ })
		.first()
		.click();
	return answered;
}

function assertAtHome(requests: readonly string[]): void {
	const elsewhere = requests.filter(
		(url) =>
			!url.startsWith(`${server.url}/`) && !/^(data|blob|about):/.test(url),
	);
	assert.deepEqual(elsewhere, []);
}

test("a person signs in by password and creates a module from the page; no request leaves the server", async () => {
	await using tab = await open(CREATE);
	await signInByPassword(tab.page, server.credentials.password);
	await tab.page.getByText("Signed in as").waitFor();
	const answer = await tryIt(tab.page, CREATE);
	assert.equal(answer.status(), 201);
	const created = (await answer.json()) as { module_name: string };
	assert.equal(created.module_name, example.body.module_name);
	const { modules } = await server.api.listOtaModules({
		app_id: server.credentials.app_id,
	});
	assert.deepEqual(
		modules.map((module) => module.module_name),
		[example.body.module_name],
	);
	await tab.page.getByText("201 Created").first().waitFor();
	assert.deepEqual(tab.complaints, []);
	assertAtHome(tab.requests);
	assert.ok(tab.requests.length >= 10);
});

test("with an access key the page signs each call itself", async () => {
	await using tab = await open(LIST);
	await tab.page.getByText("or with an access key").click();
	const form = tab.page.locator("#by-key");
	const { access_key, secret_key } = server.credentials;
	await form.getByLabel("Access key").fill(access_key);
	await form.getByLabel("Secret key").fill(secret_key);
	await form.getByRole("button", { name: "Sign each call" }).click();
	await tab.page.getByText("Signed in as").waitFor();
	const answer = await tryIt(tab.page, LIST);
	assert.notEqual(answer.status(), 401);
	const sent = await answer.request().allHeaders();
	assert.match(sent.authorization ?? "", /^SDK-HMAC-SHA256 Access=/);
	assert.equal(sent["x-auth-token"], undefined);
	assert.equal(answer.status(), 200);
	assert.deepEqual(tab.complaints, []);
	assertAtHome(tab.requests);
	const kept = await tab.page.evaluate(() =>
		JSON.stringify([{ ...sessionStorage }, { ...localStorage }]),
	);
	assert.ok(!kept.includes(secret_key), "the secret key was kept");
});

test("a session of this tab is taken up, and one that has ended is said to have", async () => {
	const answer = await fetch(`${server.url}/v3/auth/tokens?nocatalog=true`, {
		method: "POST",
		headers: { "content-type": "application/json" },
		body: JSON.stringify({
			auth: {
				identity: {
					methods: ["password"],
					password: {
						user: {
							name: server.credentials.user_name,
							password: server.credentials.password,
							domain: { name: server.credentials.domain_name },
						},
					},
				},
				scope: { project: { id: server.credentials.project_id } },
			},
		}),
	});
	const token = answer.headers.get("x-subject-token") ?? "";
	await using tab = await open(LIST, { "otaru.token": token });
	await tab.page
		.getByText(`Signed in as ${server.credentials.user_name}`)
		.waitFor();
	assert.equal((await tryIt(tab.page, LIST)).status(), 200);

	await tab.page.evaluate(() =>
		sessionStorage.setItem("otaru.token", "that has ended"),
	);
	const again = tab.page.waitForResponse((response) =>
		response.url().includes("/ota-upgrades/modules"),
	);
	await tab.page
		.getByRole("dialog")
		.getByRole("button", { name: /^Send/ })
		.first()
		.click();
	assert.equal((await again).status(), 401);
	await tab.page.getByText("The session has ended. Sign in again.").waitFor();
	assert.equal(
		await tab.page.evaluate(() => sessionStorage.getItem("otaru.token")),
		null,
	);
});

test("a wrong password is answered with the server's sentence", async () => {
	await using tab = await open(LIST);
	await signInByPassword(tab.page, "not the password");
	await tab.page.getByText("The username or password is wrong.").waitFor();
	await tab.page.getByText("Not signed in").waitFor();
});

test("the page has a policy of its own, everything else the strict one", async () => {
	const policyOf = async (path: string) => {
		const answer = await fetch(server.url + path);
		await answer.arrayBuffer();
		return answer.headers.get("content-security-policy");
	};
	assert.equal(
		await policyOf("/explorer"),
		"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
	);
	for (const path of ["/explorer/page.js", "/openapi.json", "/health/live"])
		assert.equal(
			await policyOf(path),
			"default-src 'none'; frame-ancestors 'none'; sandbox",
			path,
		);
});

test("the files of the page are compressed, and not sent to whoever has them", async () => {
	const url = `${server.url}/explorer/page.js`;
	const plain = await fetch(url, {
		headers: { "accept-encoding": "identity" },
	});
	assert.equal(plain.headers.get("content-encoding"), null);
	const text = await plain.text();
	const tag = plain.headers.get("etag") ?? "";
	const known = await fetch(url, { headers: { "if-none-match": tag } });
	assert.equal(known.status, 304);
	assert.equal(await known.text(), "");
	const zipped = await fetch(url, {
		headers: { "accept-encoding": "gzip, br" },
	});
	assert.equal(zipped.headers.get("content-encoding"), "gzip");
	assert.equal(await zipped.text(), text);
});
