/** Where a request comes from, behind proxies that write it in their own ways. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readSourceAddress } from "../server/http/source-address.ts";
import { grant, makeUser } from "./support/access.ts";
import { auditOf, lastAudit } from "./support/audit.ts";
import { HandClock } from "./support/clock.ts";
import { forEachEngine, sqlite } from "./support/engines.ts";
import { send, sendSigned } from "./support/raw-request.ts";
import { makeProduct } from "./support/seed.ts";
import { startServer } from "./support/server.ts";

test("an address is the same however it is written, and nothing else is one", () => {
	const table: [string, string | undefined][] = [
		["192.0.2.1", "192.0.2.1"],
		["192.0.2.1:65535", "192.0.2.1"],
		["::ffff:192.0.2.1", "192.0.2.1"],
		["::FFFF:c000:201", "192.0.2.1"],
		["[::ffff:192.0.2.1]:80", "192.0.2.1"],
		["2001:DB8:0:0::1", "2001:db8::1"],
		["[2001:db8::1]", "2001:db8::1"],
		["[2001:db8::1]:443", "2001:db8::1"],
		["fe80::1%eth0", "fe80::1"],
		["[fe80::1%eth0]:443", "fe80::1"],
		["", undefined],
		["unknown", undefined],
		["_hidden", undefined],
		["010.0.0.1", undefined],
		["10.0.0", undefined],
		["10.0.0.1:", undefined],
		["10.0.0.1:123456", undefined],
		["10.0.0.1:80:80", undefined],
		["10.0.0.1%1", undefined],
		["[2001:db8::1", undefined],
		["[2001:db8::1]x", undefined],
		["proxy.example", undefined],
		["10.0.0.1 ", undefined],
	];
	for (const [text, expected] of table)
		assert.equal(readSourceAddress(text), expected, text);
});

const PROXIES = { OTARU_TRUSTED_PROXIES: "127.0.0.1,10.9.0.0/16" };

forEachEngine((engine) => {
	test("a policy holds for the caller behind a proxy that writes ports, brackets or zones", async () => {
		await using server = await startServer(engine, { env: PROXIES });
		const { api, credentials } = server;
		const user = await makeUser(api);
		const Action = ["iotda:products:*"];
		const inside = ["192.0.2.0/24", "2001:db8:1::/48"];
		await grant(api, user, [
			{
				Effect: "Allow",
				Action,
				Condition: { NotIpAddress: { "g:SourceIp": ["198.51.100.0/24"] } },
			},
			{
				Effect: "Deny",
				Action,
				Condition: { IpAddress: { "g:SourceIp": inside } },
			},
		]);
		const path = `/v5/iot/${credentials.project_id}/products`;
		const from = async (address: string) =>
			(
				await sendSigned(server, {
					path,
					key: user.key,
					tamper: ({ headers }) => {
						headers["x-forwarded-for"] = address;
					},
				})
			).status;
		for (const address of [
			"192.0.2.7",
			"192.0.2.7:5123",
			"[::ffff:192.0.2.7]:5123",
			"[2001:db8:1::7]:5123",
			"2001:db8:1::7%eth0",
			"198.51.100.7:80",
			// Through two proxies, both of which write ports.
			"192.0.2.7:5123, 10.9.0.1:443",
			"203.0.113.1, 192.0.2.7:5123, 10.9.0.1:443",
		])
			assert.equal(await from(address), 403, address);
		for (const address of ["203.0.113.1", "192.0.2.7, 203.0.113.1:99"])
			assert.equal(await from(address), 200, address);
	});

	test("a caller whose proxy names no address is refused, and whatever it wrote is not kept", async () => {
		await using server = await startServer(engine, { env: PROXIES });
		const { api, credentials } = server;
		const path = `/v5/iot/${credentials.project_id}/products`;
		for (const address of ["unknown", "010.0.0.1", "192.0.2.1, \u009b2J"]) {
			const answer = await sendSigned(server, {
				method: "POST",
				path,
				body: "{}",
				tamper: ({ headers }) => {
					headers["x-forwarded-for"] = address;
				},
			});
			assert.equal(answer.status, 400, address);
			assert.equal(answer.json.error_code, "IOTDA.000006");
			assert.match(answer.json.error_msg, /X-Forwarded-For must name/);
			const row = await lastAudit(api);
			assert.deepEqual([row.status, row.address], [400, "127.0.0.1"]);
		}
		// From whom nobody is expected to forward anything it is not looked at.
		await using plain = await startServer(engine);
		await makeProduct(plain.api);
		const answer = await send(plain.url, {
			path: "/health/live",
			headers: { "x-forwarded-for": "unknown" },
		});
		assert.equal(answer.status, 200);
	});
});

test("ports are no addresses to the limits, and a signature over the header still fits", async () => {
	const { now } = new HandClock();
	await using server = await startServer(sqlite, { env: PROXIES, now });
	const path = `/v5/iot/${server.credentials.project_id}/apps`;
	const guess = (index: number) =>
		send(server.url, {
			path,
			headers: {
				"x-auth-token": `guess${index}`,
				"x-forwarded-for": `192.0.2.1:${1000 + index}`,
			},
		});
	for (let index = 0; index < 20; index++)
		assert.match((await guess(index)).json.error_msg, /decrypt token fail/);
	assert.match((await guess(20)).json.error_msg, /reach the limit/);
	const rows = await auditOf(server.api, { status: 401 });
	assert.deepEqual(
		new Set(rows.map(({ address }) => address)),
		new Set(["192.0.2.1"]),
	);
	const answer = await sendSigned(server, {
		path,
		date: now(),
		headers: { "x-forwarded-for": "203.0.113.1:5123" },
	});
	assert.equal(answer.status, 200, answer.text);
});
