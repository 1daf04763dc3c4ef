import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { readConfig } from "../server/config.ts";
import { ApiError } from "../server/errors.ts";
import { RequestRates } from "../server/http/request-rate.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import { send, sendSigned } from "./support/raw-request.ts";
import { startServer } from "./support/server.ts";

const silent = { header: () => silent } as never;

/** How many calls in a row are taken. */
function burst(rates: RequestRates, projectId: string, tries = 1_000): number {
	for (let count = 0; count < tries; count++) {
		try {
			rates.take({ projectId, accountId: "account" }, silent);
		} catch (error) {
			assert.ok(error instanceof ApiError);
			return count;
		}
	}
	return tries;
}

test("a bucket holds what one second brings, and fills at that rate", () => {
	let nowMs = 0;
	const rates = new RequestRates(10, () => nowMs);
	assert.equal(burst(rates, "p"), 10);
	assert.equal(burst(rates, "p"), 0);
	nowMs += 100;
	assert.equal(burst(rates, "p"), 1);
	nowMs += 550;
	assert.equal(burst(rates, "p"), 5);
	// Never more than a second's worth.
	nowMs += 3_600_000;
	assert.equal(burst(rates, "p"), 10);
});

test("each project has its own, and calls about none count for the account", () => {
	const rates = new RequestRates(3, () => 0);
	assert.equal(burst(rates, "one"), 3);
	assert.equal(burst(rates, "two"), 3);
	assert.equal(burst(rates, ""), 3);
});

test("0 is no limit", () => {
	assert.equal(burst(new RequestRates(0), "p"), 1_000);
});

forEachEngine((engine) => {
	describe("the server", () => {
		test("answers whoever calls too often in the vendor's form and says when to come back", async () => {
			await using server = await startServer(engine, {
				env: { OTARU_REQUESTS_PER_SECOND: "5" },
			});
			const path = `/v5/iot/${server.credentials.project_id}/apps`;
			const answers = await Promise.all(
				Array.from({ length: 30 }, () => sendSigned(server, { path })),
			);
			const refused = answers.filter(({ status }) => status === 429);
			assert.ok(refused.length >= 10, `${refused.length} refused`);
			assert.ok(answers.filter(({ status }) => status === 200).length >= 5);
			for (const { headers, json } of refused) {
				assert.deepEqual(json, {
					error_code: "APIGW.0308",
					error_msg:
						"The throttling threshold has been reached: policy project over ratelimit,limit:5,time:1 second",
					request_id: headers["x-request-id"],
				});
				assert.equal(headers["retry-after"], "1");
			}
			// Calls about no project, and those of strangers, are not the project's.
			assert.equal(
				(await sendSigned(server, { path: "/v3/projects" })).status,
				200,
			);
			await new Promise((resolve) => setTimeout(resolve, 1_050));
			for (let count = 0; count < 10; count++)
				assert.equal((await send(server.url, { path })).status, 401);
			assert.equal((await sendSigned(server, { path })).status, 200);
		});
	});
});

test("without the setting nobody is refused", async () => {
	await using server = await startServer(sqlite);
	const path = `/v5/iot/${server.credentials.project_id}/apps`;
	for (let round = 0; round < 5; round++)
		for (const { status } of await Promise.all(
			Array.from({ length: 40 }, () => sendSigned(server, { path })),
		))
			assert.equal(status, 200);
});

test("the rate is a whole number", () => {
	for (const text of ["-1", "1.5", "many"])
		assert.throws(
			() => readConfig({ OTARU_REQUESTS_PER_SECOND: text }),
			/OTARU_REQUESTS_PER_SECOND must be a whole number/,
		);
});
