/** Many devices are registered from one file, each by the rules of one. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { grant, makeUser, ofSpace, type Statement } from "./support/access.ts";
import { until } from "./support/device.ts";
import { forEachEngine, postgres } from "./support/engines.ts";
import {
	beginImport,
	CSV_HEADER,
	csvLines,
	importEnd,
	importFile,
	readRefusals,
} from "./support/imports.ts";
import { sendSigned } from "./support/raw-request.ts";
import { makeDevice, makeProduct, refused } from "./support/seed.ts";
import { startBeside, startServer, type TestServer } from "./support/server.ts";

const INPUT = "Invalid input data.";
const FORMAT =
	"Invalid input. The request format is invalid. For details, see the error message.";
const JSON_LINE = `${FORMAT} The line is not JSON`;
const NO_PRODUCT =
	"Invalid input. The product does not exist. product_id names no product of the application.";
const NO_GATEWAY =
	"Invalid input. The device does not exist. gateway_id names no device of the application.";
const EXISTS = "Invalid input. The device already exists.";
const QUOTES =
	'The quotes of the line do not fit: a cell that holds one must begin and end with one, and have it written twice ("a ""b"" c").';

/** SQLite's rows have no prototype. */
function plain<T extends object>(rows: readonly T[]): T[] {
	return rows.map((row) => ({ ...row }));
}

async function countDevices({
	server,
}: Pick<TestServer, "server">): Promise<number> {
	const { count } = await server.db
		.selectFrom("devices")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.executeTakeFirstOrThrow();
	return Number(count);
}

function spooled(server: Pick<TestServer, "config">): string[] {
	return readdirSync(join(server.config.dataDir, "imports"));
}

forEachEngine((engine) => {
	describe("a line", () => {
		let server: TestServer;
		before(async () => {
			server = await startServer(engine);
			await makeProduct(server.api, { product_id: "p" });
			await makeProduct(server.api, { product_id: "q" });
			await importFile(server.api, `${CSV_HEADER}there,p\n`);
		});
		after(() => server[Symbol.asyncDispose]());

		test("may say all that a registration may, in both formats", async () => {
			const { api } = server;
			const { app_id } = await api.createResourceSpace({ app_name: "other" });
			await makeProduct(api, { product_id: "p", app_id });
			const csv = [
				"node_id,product_id,app_id,device_id,device_name,description,auth_type,secret,fingerprint,secure_access,timeout,extension_info,tags",
				`sn-1,p,${app_id},csv-1,厅#1,in-the-hall,SECRET,3b935a250c50dc2c,${"Ab".repeat(20)},false,300,"{""a"":{""名"":[1,null]}}",site=厅;row`,
			].join("\r\n");
			const line = {
				node_id: "sn-1",
				product_id: "p",
				app_id,
				device_name: "厅#1",
				description: "in-the-hall",
				extension_info: { a: { 名: [1, null] } },
				tags: [{ tag_key: "site", tag_value: "厅" }, { tag_key: "row" }],
			};
			const auth = {
				auth_type: "SECRET",
				secret: "3b935a250c50dc2c",
				fingerprint: "Ab".repeat(20),
				secure_access: false,
				timeout: 300,
			};
			const ndjson = [
				{ ...line, device_id: "nd-1", ...auth },
				{ ...line, device_id: "nd-2", auth_info: auth, unknown: [1] },
			]
				.map((value) => JSON.stringify(value))
				.join("\n");
			assert.deepEqual((await importFile(api, csv)).counts, [1, 0, 0]);
			assert.deepEqual((await importFile(api, ndjson)).counts, [2, 0, 0]);
			for (const device_id of ["csv-1", "nd-1", "nd-2"]) {
				const {
					create_time: _,
					app_name: __,
					product_name: ___,
					...device
				} = await api.getDevice(device_id);
				assert.deepEqual(device, {
					device_id,
					app_id,
					node_id: "sn-1",
					gateway_id: device_id,
					node_type: "GATEWAY",
					product_id: "p",
					device_name: "厅#1",
					description: "in-the-hall",
					status: "INACTIVE",
					tags: [
						{ tag_key: "row", tag_value: "" },
						{ tag_key: "site", tag_value: "厅" },
					],
					modules: [],
					auth_info: auth,
					extension_info: { a: { 名: [1, null] } },
				});
			}
		});

		test("needs to say no more than product and node id", async () => {
			const { api } = server;
			await importFile(api, `${CSV_HEADER}least,p\n`);
			const { device_id, app_id, auth_info } = await api.getDevice("p_least");
			assert.equal(device_id, "p_least");
			assert.equal(app_id, server.credentials.app_id);
			assert.match(auth_info.secret ?? "", /^[0-9a-f]{32}$/);
			assert.deepEqual(auth_info, {
				auth_type: "SECRET",
				secret: auth_info.secret,
				secure_access: true,
				timeout: 0,
			});
			await importFile(
				api,
				"node_id,product_id,auth_type\ncertified,p,CERTIFICATES\n",
			);
			assert.deepEqual((await api.getDevice("p_certified")).auth_info, {
				auth_type: "CERTIFICATES",
				secure_access: true,
				timeout: 0,
			});
		});

		test("without a resource space means that of the import", async () => {
			const { api } = server;
			const { app_id } = await api.createResourceSpace({ app_name: "third" });
			await makeProduct(api, { product_id: "third", app_id });
			const { job } = await importFile(
				api,
				'{"node_id":"a","product_id":"third"}\n{"node_id":"b","product_id":"p","app_id":"' +
					`${server.credentials.app_id}"}`,
				{ appId: app_id },
			);
			assert.equal(job.app_id, app_id);
			assert.equal((await api.getDevice("third_a")).app_id, app_id);
			assert.equal(
				(await api.getDevice("p_b")).app_id,
				server.credentials.app_id,
			);
		});

		test("is written in the device's timeline with the import", async () => {
			const { job } = await importFile(server.api, `${CSV_HEADER}timed,p\n`);
			const entries = await server.server.db
				.selectFrom("history")
				.select(["kind", "detail"])
				.where("device_id", "=", "p_timed")
				.execute();
			assert.deepEqual(plain(entries), [
				{
					kind: "registered",
					detail: JSON.stringify({ import_id: job.import_id }),
				},
			]);
		});

		test("names a gateway that is there, or comes earlier in the file", async () => {
			const { api } = server;
			await importFile(api, `${CSV_HEADER}gw0,p\n`);
			const { counts, refusals } = await importFile(
				api,
				[
					"node_id,product_id,gateway_id",
					"c1,p,p_gw0",
					"c2,p,p_gw1",
					"gw1,p,",
					"c3,p,p_gw1",
					"c4,p,p_c3",
					"c5,p,p_c4",
					"c6,p,p_c6",
				].join("\n"),
			);
			assert.deepEqual(counts, [4, 0, 3]);
			assert.deepEqual(refusals, [
				{
					line: 3,
					device_id: "p_c2",
					error_code: "IOTDA.014000",
					error_msg: NO_GATEWAY,
				},
				{
					line: 7,
					device_id: "p_c5",
					error_code: "IOTDA.014900",
					error_msg:
						"Operation not allowed. The gateway has too many sub-devices or too many levels of them. gateway_id names a device that is 2 levels below its gateway; no more are allowed.",
				},
				{
					line: 8,
					device_id: "p_c6",
					error_code: "IOTDA.014000",
					error_msg: NO_GATEWAY,
				},
			]);
			const rows = await server.server.db
				.selectFrom("devices")
				.select(["device_id", "gateway_id", "depth", "link_id"])
				.where("device_id", "in", ["p_c1", "p_gw1", "p_c3", "p_c4"])
				.orderBy("record_id")
				.execute();
			assert.deepEqual(plain(rows), [
				{ device_id: "p_c1", gateway_id: "p_gw0", depth: 1, link_id: "p_gw0" },
				{ device_id: "p_gw1", gateway_id: null, depth: 0, link_id: "p_gw1" },
				{ device_id: "p_c3", gateway_id: "p_gw1", depth: 1, link_id: "p_gw1" },
				{ device_id: "p_c4", gateway_id: "p_c3", depth: 2, link_id: "p_gw1" },
			]);
		});

		test("names no gateway of another resource space", async () => {
			const { api } = server;
			const { app_id } = await api.createResourceSpace({ app_name: "fourth" });
			await makeProduct(api, { product_id: "p", app_id });
			await importFile(api, `${CSV_HEADER}gw2,p\n`);
			const { refusals } = await importFile(
				api,
				`node_id,product_id,device_id,gateway_id\nx,p,apart,p_gw2\n`,
				{ appId: app_id },
			);
			assert.deepEqual(
				refusals.map(({ error_msg }) => error_msg),
				[NO_GATEWAY],
			);
		});

		for (const [what, line, code, message, deviceId] of [
			[
				"a node id with a blank",
				"a b,p",
				"000006",
				`${INPUT} node_id must be 1 to 64 characters: letters A-Z a-z, digits, _ and -.`,
				"p_a b",
			],
			[
				"a node id with U+0000",
				"a\u0000b,p",
				"000006",
				`${INPUT} node_id must be 1 to 64 characters: letters A-Z a-z, digits, _ and -.`,
				"p_a\ufffdb",
			],
			["no node id", ",p", "000006", `${INPUT} node_id is required.`],
			["no product id", "n,", "000006", `${INPUT} product_id is required.`],
			[
				"a product that is not there",
				"n,nobody",
				"013900",
				NO_PRODUCT,
				"nobody_n",
			],
			[
				"a resource space that is not there",
				"n,p,nobody",
				"001000",
				"The application does not exist.",
				"p_n",
			],
			[
				"a name with a blank",
				"n,p,,a b",
				"000006",
				`${INPUT} device_name must be 0 to 256 characters: Chinese characters, letters A-Z a-z, digits and _?'#().,&%@!-.`,
				"p_n",
			],
			[
				"a gateway that is not there",
				"n,p,,,nobody",
				"014000",
				NO_GATEWAY,
				"p_n",
			],
			[
				"an unknown kind of proof",
				"n,p,,,,NONE",
				"000006",
				`${INPUT} auth_type must be one of SECRET, CERTIFICATES.`,
				"p_n",
			],
			[
				"a secret of seven characters",
				"n,p,,,,,1234567",
				"000006",
				`${INPUT} secret must be 8 to 32 characters: letters A-Z a-z, digits, _ and -.`,
				"p_n",
			],
			[
				"a fingerprint that is none",
				"n,p,,,,,,abc",
				"000006",
				`${INPUT} fingerprint must be 40 or 64 hexadecimal digits.`,
				"p_n",
			],
			[
				"a flag that is none",
				"n,p,,,,,,,yes",
				"000006",
				`${INPUT} secure_access must be true or false.`,
				"p_n",
			],
			[
				"a time limit that is none",
				"n,p,,,,,,,,1.5",
				"000006",
				`${INPUT} timeout must be a whole number.`,
				"p_n",
			],
			[
				"a time limit that is too long",
				"n,p,,,,,,,,2147483648",
				"000006",
				`${INPUT} timeout must be a whole number from 0 to 2147483647.`,
				"p_n",
			],
			[
				"information that is no JSON",
				"n,p,,,,,,,,,{a",
				"000008",
				`${FORMAT} extension_info is not JSON (at position 1).`,
			],
			[
				"information that is no object",
				"n,p,,,,,,,,,[]",
				"000006",
				`${INPUT} extension_info must be an object.`,
				"p_n",
			],
			[
				"too much information",
				`n,p,,,,,,,,,"{""a"":""${"x".repeat(1_024)}""}"`,
				"000006",
				`${INPUT} extension_info must be at most 1 KB as JSON.`,
				"p_n",
			],
			[
				"a tag without a key",
				"n,p,,,,,,,,,,=v",
				"000006",
				`${INPUT} tags[0].tag_key must be 1 to 64 characters: Chinese characters, letters A-Z a-z, digits, _, . and -.`,
				"p_n",
			],
			[
				"a tag with a sign",
				"n,p,,,,,,,,,,a=b=c",
				"000006",
				`${INPUT} tags[0].tag_value must be 0 to 128 characters: Chinese characters, letters A-Z a-z, digits, _, . and -.`,
				"p_n",
			],
			[
				"a tag twice",
				"n,p,,,,,,,,,,a=1;a=2",
				"000006",
				`${INPUT} tags[1].tag_key must not occur twice in a request.`,
				"p_n",
			],
			[
				"a reserved tag",
				"n,p,,,,,,,,,,iot_a=1",
				"004002",
				"Invalid input. The tag_key iot_a cannot start with 'iot_'.",
				"p_n",
			],
			[
				"eleven tags",
				"n,p,,,,,,,,,,1;2;3;4;5;6;7;8;9;10;11",
				"004900",
				"The device would have 11; at most 10 are allowed.",
				"p_n",
			],
			[
				"too few cells",
				"n,p",
				"000008",
				`${FORMAT} The line has 2 cells where the header has 12 columns.`,
			],
			[
				"too many cells",
				"n,p,,,,,,,,,,,",
				"000008",
				`${FORMAT} The line has 13 cells where the header has 12 columns.`,
			],
			[
				"a quote inside a cell",
				'n,p,,5",,,,,,,,',
				"000008",
				`${FORMAT} ${QUOTES}`,
			],
			[
				"a quote that is not closed",
				'n,p,,"5,,,,,,,,',
				"000008",
				`${FORMAT} ${QUOTES}`,
			],
			[
				"bytes that are no text",
				Buffer.from([0x6e, 0xff, 0x2c, 0x70]),
				"000008",
				`${FORMAT} The line is not UTF-8.`,
			],
			[
				"more than 64 KB",
				`n,p,,${"x".repeat(65_536)}`,
				"000008",
				`${FORMAT} The line is longer than 65536 bytes.`,
			],
		] as const) {
			test(`with ${what} is refused, and those beside it are not`, async () => {
				const { api } = server;
				const columns =
					"node_id,product_id,app_id,device_name,gateway_id,auth_type,secret,fingerprint,secure_access,timeout,extension_info,tags";
				const filled =
					typeof line === "string" && !/cells|quote|64 KB/.test(what)
						? line + ",".repeat(11 - commasIn(line))
						: line;
				const good = (node: string) => `${node},p${",".repeat(10)}\n`;
				const { job, counts, refusals } = await importFile(
					api,
					new Uint8Array(
						Buffer.concat([
							Buffer.from(`${columns}\n${good("good1")}`),
							Buffer.from(filled),
							Buffer.from(`\n${good("good2")}`),
						]),
					),
				);
				assert.equal(counts[2], 1, JSON.stringify(refusals));
				assert.equal(counts[0] + counts[1], 2);
				assert.equal(job.status, "PartialSuccess");
				const [refusal] = refusals;
				assert.equal(refusal?.line, 3);
				assert.equal(refusal?.error_code, `IOTDA.${code}`);
				if (code === "004900") assert.ok(refusal?.error_msg.endsWith(message));
				else assert.equal(refusal?.error_msg, message);
				assert.equal(refusal?.device_id, deviceId);
				await api.getDevice("p_good2");
			});
		}

		for (const [what, line, code, message, deviceId] of [
			["no JSON", '{"node_id":"n",', "000008", JSON_LINE],
			[
				"two values",
				'{"node_id":"n","product_id":"p"} {}',
				"000008",
				JSON_LINE,
			],
			["a list", '["n","p"]', "000006", `${INPUT} the line must be an object.`],
			[
				"nothing but null",
				"null",
				"000006",
				`${INPUT} the line must be an object.`,
			],
			[
				"a key twice",
				'{"node_id":"n","node_id":"m","product_id":"p"}',
				"000008",
				`${FORMAT} The key "node_id" occurs twice in one object.`,
			],
			[
				"half a character",
				'{"node_id":"n","product_id":"p","device_name":"\\ud800"}',
				"000008",
				`${FORMAT} The line has a text with half a surrogate pair.`,
			],
			[
				"nesting without end",
				`{"a":${"[".repeat(200)}${"]".repeat(200)}}`,
				"000008",
				`${FORMAT} The line is nested deeper than 100 levels.`,
			],
			[
				"a number for a text",
				'{"node_id":1,"product_id":"p"}',
				"000006",
				`${INPUT} node_id must be a string.`,
			],
			[
				"null for a text",
				'{"node_id":"n","product_id":"p","device_name":null}',
				"000006",
				`${INPUT} device_name must be a string.`,
				"p_n",
			],
			[
				"a text for a flag",
				'{"node_id":"n","product_id":"p","auth_info":{"secure_access":"true"}}',
				"000006",
				`${INPUT} auth_info.secure_access must be true or false.`,
				"p_n",
			],
			[
				"a short secret",
				'{"node_id":"n","product_id":"p","auth_info":{"secret":"x"}}',
				"000006",
				`${INPUT} auth_info.secret must be 8 to 32 characters: letters A-Z a-z, digits, _ and -.`,
				"p_n",
			],
			[
				"its proof in two places",
				'{"node_id":"n","product_id":"p","auth_info":{},"secret":"12345678"}',
				"000006",
				`${INPUT} secret must not be given beside auth_info.`,
				"p_n",
			],
			[
				"tags that are no list",
				'{"node_id":"n","product_id":"p","tags":{}}',
				"000006",
				`${INPUT} tags must be a list.`,
				"p_n",
			],
			[
				"a shadow that is none",
				'{"node_id":"n","product_id":"p","shadow":[{}]}',
				"000006",
				`${INPUT} shadow[0].service_id is required.`,
				"p_n",
			],
			[
				"a very long id",
				`{"node_id":"n","product_id":"p","device_id":"${"x".repeat(5_000)}"}`,
				"000006",
				`${INPUT} device_id must be 1 to 128 characters: letters A-Z a-z, digits, _ and -.`,
				"x".repeat(256),
			],
		] as const) {
			test(`of NDJSON with ${what} is refused, and those beside it are not`, async () => {
				const good = (node_id: string) =>
					JSON.stringify({ node_id, product_id: "p" });
				const { counts, refusals } = await importFile(
					server.api,
					`${good("good1")}\n${line}\n${good("good2")}`,
				);
				assert.equal(counts[2], 1, JSON.stringify(refusals));
				const [refusal] = refusals;
				assert.equal(refusal?.line, 2);
				assert.equal(refusal?.error_code, `IOTDA.${code}`);
				if (message === JSON_LINE)
					assert.ok(refusal?.error_msg.startsWith(message), refusal?.error_msg);
				else assert.equal(refusal?.error_msg, message);
				assert.equal(refusal?.device_id, deviceId);
			});
		}

		test("that is empty is passed over, and counted", async () => {
			const { api } = server;
			const csv = await importFile(
				api,
				'\ufeffnode_id,product_id,device_name\r\n\r\ne1,p,\r\n,,\r\n""\r\n\n"e2","p","a,b"\r\n',
			);
			assert.deepEqual(csv.counts, [2, 0, 0]);
			assert.equal(csv.job.lines, 7);
			const ndjson = await importFile(
				api,
				'\n \t\r\n{"node_id":"e3","product_id":"p"}\r\n',
				{ format: "ndjson" },
			);
			assert.deepEqual(ndjson.counts, [1, 0, 0]);
			assert.equal(ndjson.job.lines, 3);
		});
	});

	describe("a device that is there already", () => {
		test("is left as it is when the file is imported again", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const file =
				"node_id,product_id,gateway_id,tags\ngw,p,,a=1\nc1,p,p_gw,\nc2,p,p_gw,\n";
			assert.deepEqual((await importFile(api, file)).counts, [3, 0, 0]);
			const before = await Promise.all(
				["p_gw", "p_c1", "p_c2"].map((id) => api.getDevice(id)),
			);
			const again = await importFile(
				api,
				file.replace("a=1", "b=2").replace("gateway_id", "device_name"),
			);
			assert.deepEqual(again.counts, [0, 3, 0]);
			assert.equal(again.job.status, "Success");
			assert.deepEqual(
				await Promise.all(
					before.map(({ device_id }) => api.getDevice(device_id)),
				),
				before,
			);
		});

		test("with another product, node id or project is refused", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			const product = await makeProduct(api, { product_id: "p" });
			const { app_id } = await api.createResourceSpace({ app_name: "other" });
			await makeProduct(api, { product_id: "q" });
			await makeProduct(api, { product_id: "p", app_id });
			await makeDevice(api, product, { device_id: "d", node_id: "n" });
			const { counts, refusals } = await importFile(
				api,
				[
					"device_id,node_id,product_id,app_id",
					"d,n,p,",
					"d,m,p,",
					"d,n,q,",
					`d,n,p,${app_id}`,
				].join("\n"),
			);
			assert.deepEqual(counts, [0, 1, 3]);
			assert.deepEqual(
				refusals,
				[3, 4, 5].map((line) => ({
					line,
					device_id: "d",
					error_code: "IOTDA.014031",
					error_msg: EXISTS,
				})),
			);
		});

		test("because the file has it twice counts as there, unless it differs", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const { counts, refusals } = await importFile(
				api,
				"device_id,node_id,product_id,device_name\nd,n,p,first\nd,n,p,second\nd,m,p,\n",
			);
			assert.deepEqual(counts, [1, 1, 1]);
			assert.deepEqual(
				refusals.map(({ line, error_msg }) => [line, error_msg]),
				[[4, EXISTS]],
			);
			assert.equal((await api.getDevice("d")).device_name, "first");
		});

		test("may be registered by two imports at once, but only once", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const count = 4_000;
			const numbers = Array.from({ length: count }, (_, n) => n);
			const file = (order: number[]) =>
				CSV_HEADER + order.map((n) => `n${n},p\n`).join("");
			const jobs = await Promise.all(
				[numbers, numbers.toReversed(), numbers].map((order) =>
					importFile(api, file(order)),
				),
			);
			const created = jobs.reduce((sum, { counts }) => sum + counts[0], 0);
			assert.equal(created, count);
			for (const { counts, job } of jobs) {
				assert.equal(counts[0] + counts[1], count);
				assert.equal(job.status, "Success");
			}
			assert.equal(await countDevices(server), count);
			const entries = await server.server.db
				.selectFrom("history")
				.select((eb) => eb.fn.countAll<number>().as("count"))
				.where("kind", "=", "registered")
				.executeTakeFirstOrThrow();
			assert.equal(Number(entries.count), count);
		});
	});

	describe("a sender who may not do everything", () => {
		let server: TestServer;
		before(async () => {
			server = await startServer(engine);
			await makeProduct(server.api, { product_id: "p" });
		});
		after(() => server[Symbol.asyncDispose]());

		const columns = "node_id,product_id,tags\n";
		const register: Statement = {
			Effect: "Allow",
			Action: ["iotda:devices:*"],
		};
		const bind: Statement = { Effect: "Allow", Action: ["iotda:tags:bind"] };
		const tagsOf = async (deviceId: string) =>
			(await server.api.getDevice(deviceId)).tags;

		test("registers what has no tags, and binds none without iotda:tags:bind", async () => {
			const user = await makeUser(server.api);
			await grant(server.api, user, [register]);
			const { counts, refusals } = await importFile(
				user.api,
				`${columns}u1,p,\nu2,p,site=north;row=4\nu3,p,\n`,
			);
			assert.deepEqual(counts, [2, 0, 1]);
			assert.deepEqual(
				refusals.map(({ line, error_code }) => [line, error_code]),
				[[3, "IOTDA.000022"]],
			);
			assert.match(refusals[0]?.error_msg ?? "", /iotda:tags:bind: site=north/);
			await refused(server.api.getDevice("p_u2"), 404, "IOTDA.014000");
			// What is there already is left as it is: nothing is bound.
			await importFile(server.api, `${columns}u2,p,site=south\n`);
			const again = await importFile(user.api, `${columns}u2,p,site=north\n`);
			assert.deepEqual(again.counts, [0, 1, 0]);
			assert.deepEqual(await tagsOf("p_u2"), [
				{ tag_key: "site", tag_value: "south" },
			]);
		});

		test("binds the tags that the conditions of his policies let him bind, and no others", async () => {
			const user = await makeUser(server.api);
			const { app_id } = await server.api.createResourceSpace({
				app_name: "tagged",
			});
			await makeProduct(server.api, { product_id: "p", app_id });
			await grant(server.api, user, [
				register,
				{ ...bind, Resource: [ofSpace(server.credentials.app_id)] },
				{
					Effect: "Deny",
					Action: ["*"],
					Condition: {
						"ForAnyValue:StringEquals": { "g:TagKeys": ["prod"] },
					},
				},
				{
					Effect: "Deny",
					Action: ["iotda:tags:bind"],
					Condition: {
						StringEquals: {
							"g:RequestTag/a": ["1"],
							"g:RequestTag/b": ["2"],
						},
					},
				},
			]);
			const { counts, refusals } = await importFile(
				user.api,
				[
					"node_id,product_id,device_id,app_id,tags",
					"1,p,t1,,site=x",
					"2,p,t2,,site=x;prod=2",
					"3,p,t3,,a=1;b=1",
					"4,p,t4,,a=1;b=2",
					`5,p,t5,${app_id},site=x`,
					`6,p,t6,${app_id},`,
					"7,p,t7,,site=x",
				].join("\n"),
			);
			assert.deepEqual(counts, [4, 0, 3]);
			const named = refusals.map(({ device_id, error_code, error_msg }) => [
				device_id,
				error_code,
				/\((.*)\)/.exec(error_msg)?.[1],
			]);
			assert.deepEqual(named, [
				["t2", "IOTDA.000022", "iotda:tags:bind: prod=2"],
				["t4", "IOTDA.000022", "iotda:tags:bind: a=1, b=2"],
				["t5", "IOTDA.000022", "iotda:tags:bind: site=x"],
			]);
			assert.deepEqual(await tagsOf("t7"), [
				{ tag_key: "site", tag_value: "x" },
			]);
			assert.deepEqual(await tagsOf("t6"), []);
		});

		test("is judged by the address that he sent the file from", async () => {
			const user = await makeUser(server.api);
			await grant(server.api, user, [
				{
					...register,
					Condition: {
						IpAddress: { "g:SourceIp": ["127.0.0.1/32", "::1/128"] },
						Bool: { "g:SecureTransport": ["false"] },
					},
				},
			]);
			const { counts } = await importFile(user.api, `${CSV_HEADER}addr,p\n`);
			assert.deepEqual(counts, [1, 0, 0]);
		});

		for (const [what, change] of [
			["loses the right", "revoke"],
			["is disabled", "disable"],
			["is deleted", "delete"],
			["may no longer bind tags", "unbind"],
		] as const)
			test(`who ${what} while his file is worked off registers no more of it`, async () => {
				const { api } = server;
				const user = await makeUser(api);
				const { revoke } = await grant(api, user, [
					change === "unbind" ? bind : register,
				]);
				if (change === "unbind") await grant(api, user, [register]);
				const prefix = `${change}-`;
				const lines = 20_000;
				const job = await beginImport(
					user.api,
					columns +
						Array.from(
							{ length: lines },
							(_, n) => `${prefix}${n},p,${change === "unbind" ? "k=v" : ""}\n`,
						).join(""),
				);
				await until(
					() => api.getDeviceImport(job.import_id),
					({ created }) => created > 0,
				);
				if (change === "disable")
					await api.updateUser(user.userId, { enabled: false });
				else if (change === "delete") await api.deleteUser(user.userId);
				else await revoke();
				const at = await api.getDeviceImport(job.import_id);
				const end = await importEnd(api, job);
				assert.equal(end.status, "PartialSuccess");
				assert.equal(end.created + end.refused, lines);
				// The batches that were under way when it was asked how far it is.
				assert.ok(end.created <= at.created + 1_000, `${end.created}`);
				assert.ok(end.refused > 0);
				const refusals = await readRefusals(api, job);
				assert.deepEqual(
					[...new Set(refusals.map(({ error_code }) => error_code))],
					["IOTDA.000022"],
				);
				assert.equal(
					refusals.at(-1)?.error_msg.includes("iotda:tags:bind: k=v"),
					change === "unbind",
				);
			});
	});

	describe("a file", () => {
		let server: TestServer;
		before(async () => {
			server = await startServer(engine, {
				env: { OTARU_IMPORT_SIZE_LIMIT: "2000000" },
			});
			await makeProduct(server.api, { product_id: "p" });
		});
		after(() => server[Symbol.asyncDispose]());

		for (const [format, broken] of [
			["csv", '"broken,p'],
			["csv", "broken,p,p,p"],
			["ndjson", '{"node_id":"broken"'],
			["ndjson", "\u0000\u0001"],
		] as const) {
			test(`of 20,000 lines is registered but for ${JSON.stringify(broken)} in the middle (${format})`, async () => {
				const { api } = server;
				const prefix = `big${broken.length}`;
				const lines = Array.from({ length: 20_000 }, (_, n) =>
					format === "csv"
						? `${prefix}-${n},p`
						: JSON.stringify({ node_id: `${prefix}-${n}`, product_id: "p" }),
				);
				lines.splice(10_000, 0, broken);
				const { job, counts, refusals } = await importFile(
					api,
					(format === "csv" ? CSV_HEADER : "") + lines.join("\n"),
					{ format },
				);
				assert.deepEqual(counts, [20_000, 0, 1]);
				assert.equal(job.status, "PartialSuccess");
				const first = format === "csv" ? 2 : 1;
				assert.equal(job.lines, 20_000 + first);
				assert.equal(job.done_bytes, job.total_bytes);
				assert.deepEqual(
					refusals.map(({ line }) => line),
					[10_000 + first],
				);
				await api.getDevice(`p_${prefix}-19999`);
			});
		}

		for (const [what, file, reason] of [
			[
				"no node id among its columns",
				"product_id\np\n",
				"The first line must name the columns: node_id is missing.",
			],
			[
				"no product id among its columns",
				"node_id\nn\n",
				"The first line must name the columns: product_id is missing.",
			],
			[
				"a column twice",
				"node_id,product_id,node_id\n",
				"The first line must name the columns: node_id occurs twice.",
			],
			[
				"semicolons",
				"node_id;product_id\nn;p\n",
				'The first line must name the columns: "node_id;product_id" is none; known are device_id, node_id, device_name, product_id, description, gateway_id, app_id, extension_info, auth_type, secret, fingerprint, secure_access, timeout, tags, status, fw_version, sw_version, device_sdk_version, modules, create_time; columns are divided by commas.',
			],
			[
				"a header that is no text",
				"\xff\xfen\0o\0",
				"The first line must name the columns: it is not UTF-8.",
			],
			[
				"a header without an end",
				`node_id,"${"x".repeat(70_000)}`,
				"The first line must name the columns: The line is longer than 65536 bytes.",
			],
			[
				"a header with a quote too many",
				'node_id,"product_id\nn,p\n',
				`The first line must name the columns: ${QUOTES}`,
			],
			[
				"nothing but a byte order mark",
				"\xef\xbb\xbf",
				"The first line must name the columns: the file is empty.",
			],
		] as const) {
			test(`with ${what} fails as a whole and says why`, async () => {
				const { job, counts } = await importFile(
					server.api,
					new Uint8Array(Buffer.from(file, "latin1")),
				);
				assert.equal(job.status, "Fail");
				assert.equal(job.status_desc?.replace(/\.\.$/, "."), reason);
				assert.deepEqual(counts, [0, 0, 0]);
				assert.match(job.finish_time ?? "", /^\d{8}T\d{6}Z$/);
				await untilSpoolIsEmpty(server);
			});
		}

		test("of which every line is refused fails and keeps them", async () => {
			const { job, refusals } = await importFile(
				server.api,
				`${CSV_HEADER}a b,p\nc d,p\n`,
			);
			assert.equal(job.status, "Fail");
			assert.equal(job.status_desc, "Every line was refused.");
			assert.equal(refusals.length, 2);
		});

		test("with nothing but a header is a success without devices", async () => {
			const { job, counts } = await importFile(server.api, CSV_HEADER);
			assert.equal(job.status, "Success");
			assert.deepEqual(counts, [0, 0, 0]);
		});

		const path = () =>
			`/otaru/v1/projects/${server.api.projectId}/devices:import`;
		for (const [what, request, status, code, words] of [
			[
				"of an unknown format",
				{ query: "?format=xml" },
				400,
				"IOTDA.000006",
				"format must be one of csv, ndjson.",
			],
			[
				"without a format",
				{ type: "application/json" },
				400,
				"IOTDA.000006",
				"format must be csv or ndjson, unless Content-Type is text/csv or application/x-ndjson.",
			],
			[
				"in another charset",
				{ type: "text/csv; charset=GBK" },
				400,
				"IOTDA.000006",
				"Content-Type must name no charset but utf-8.",
			],
			[
				"compressed",
				{ headers: { "content-encoding": "gzip" } },
				400,
				"IOTDA.000006",
				"Content-Encoding must not be given",
			],
			[
				"for a space that is not there",
				{ query: "?app_id=nobody" },
				403,
				"IOTDA.001000",
				"The application does not exist.",
			],
			[
				"for a space that cannot be",
				{ query: "?app_id=a%20b" },
				400,
				"IOTDA.000006",
				"app_id must be 1 to 36 characters",
			],
			[
				"that is empty",
				{ body: "" },
				400,
				"IOTDA.000006",
				"the body must be a file with devices.",
			],
			[
				"that is too large",
				{ body: "x".repeat(2_000_001) },
				413,
				"IOTDA.000923",
				"It may have 2000000 bytes.",
			],
			[
				"that is not what was signed",
				{ payloadHash: "a".repeat(64) },
				400,
				"IOTDA.014968",
				"The body does not match its hash.",
			],
			[
				"whose hash is none",
				{ payloadHash: "abc" },
				401,
				"APIGW.0301",
				"verify aksk signature fail",
			],
		] as const) {
			test(`${what} is refused, and not kept`, async () => {
				const {
					query = "",
					type = "text/csv",
					headers = {},
					body = `${CSV_HEADER}z,p\n`,
					payloadHash = "UNSIGNED-PAYLOAD",
				} = request as {
					query?: string;
					type?: string;
					headers?: Record<string, string>;
					body?: string;
					payloadHash?: string;
				};
				const answer = await sendSigned(server, {
					method: "POST",
					path: path() + query,
					headers: {
						"content-type": type,
						"x-sdk-content-sha256": payloadHash,
						...headers,
					},
					body,
					payloadHash,
				});
				assert.equal(answer.status, status, answer.text);
				assert.equal(answer.json.error_code, code);
				assert.ok(answer.json.error_msg.includes(words), answer.text);
				assert.deepEqual(spooled(server), []);
			});
		}

		test("that is too large is refused as well when nobody said so before", async () => {
			let sent = 0;
			const endless = new ReadableStream<Uint8Array>({
				pull(controller) {
					sent += 65_536;
					if (sent > 3_000_000) controller.close();
					else controller.enqueue(new Uint8Array(65_536).fill(0x0a));
				},
			});
			await refused(
				beginImport(server.api, endless),
				413,
				"IOTDA.000923",
				"It may have 2000000 bytes.",
			);
			assert.deepEqual(spooled(server), []);
		});

		test("whose sender hangs up in the middle is not kept", async () => {
			const before = (await server.api.listDeviceImports()).page.count;
			const stop = new AbortController();
			const stuck = new ReadableStream<Uint8Array>({
				pull(controller) {
					// fetch goes on reading after it was stopped.
					if (stop.signal.aborted) return controller.close();
					controller.enqueue(new Uint8Array(1_000).fill(0x0a));
					return new Promise((resolve) => setTimeout(resolve, 20));
				},
			});
			const call = server.api.importDevices(stuck, {
				format: "csv",
				signal: stop.signal,
			});
			await until(
				async () => spooled(server),
				(files) => files.length === 1,
			);
			stop.abort();
			await assert.rejects(call);
			await untilSpoolIsEmpty(server);
			assert.equal((await server.api.listDeviceImports()).page.count, before);
		});

		test("may be signed, named by its content type, or sent with a token", async () => {
			const body = `${CSV_HEADER}signed,p\n`;
			for (const type of ["text/csv; charset=UTF-8", "Application/X-NDJSON"]) {
				const answer = await sendSigned(server, {
					method: "POST",
					path: path(),
					headers: {
						"content-type": type,
						"x-sdk-content-sha256": sha256(body),
					},
					body,
					payloadHash: sha256(body),
				});
				assert.equal(answer.status, 202, answer.text);
				assert.equal(answer.json.format, /csv/.test(type) ? "csv" : "ndjson");
				assert.equal(answer.json.status, "Processing");
				assert.equal(answer.json.total_bytes, body.length);
			}
			const { domain_name, user_name, password } = server.credentials;
			const { token } = await server.api.signIn({
				domainName: domain_name,
				userName: user_name,
				password,
			});
			const { counts } = await importFile(server.api.as({ token }), body);
			assert.equal(counts[2], 0);
		});
	});

	describe("an import", () => {
		test("is listed, newest first, and found by its id", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const ids: string[] = [];
			for (let n = 0; n < 3; n++)
				ids.unshift(
					(await importFile(api, `${CSV_HEADER}n${n},p\n`)).job.import_id,
				);
			const first = await api.listDeviceImports({ limit: 2 });
			assert.deepEqual(
				first.device_imports.map(({ import_id }) => import_id),
				ids.slice(0, 2),
			);
			assert.deepEqual(first.page, { count: 3, marker: ids[1] });
			const second = await api.listDeviceImports({
				limit: 2,
				marker: ids[1] as string,
			});
			assert.deepEqual(
				second.device_imports.map(({ import_id }) => import_id),
				ids.slice(2),
			);
			for (const call of [
				() => api.getDeviceImport("nobody"),
				() => api.getImportRefusals("nobody"),
				() => api.deleteDeviceImport("nobody"),
			])
				await refused(
					call(),
					404,
					"IOTDA.014990",
					"The device import does not exist.",
				);
			for (const call of [
				() => api.getDeviceImport("a b"),
				() => api.deleteDeviceImport("a.b"),
				() =>
					api.getImportRefusals(ids[0] as string, { format: "xml" as "csv" }),
			])
				await refused(call(), 400, "IOTDA.000006", "must be");
			await refused(api.listDeviceImports({ limit: 51 }), 400, "IOTDA.000017");
		});

		test("gives its refused lines as CSV and as NDJSON", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const bad = Array.from({ length: 2_500 }, (_, n) => `=bad ${n},p\n`);
			const { job } = await importFile(api, CSV_HEADER + bad.join(""));
			assert.equal(job.refused, 2_500);
			const asCsv = await api.getImportRefusals(job.import_id);
			assert.equal(
				asCsv.headers.get("content-type"),
				"text/csv; charset=utf-8",
			);
			assert.equal(
				asCsv.headers.get("content-disposition"),
				`attachment; filename="refusals-${job.import_id}.csv"`,
			);
			const bytes = Buffer.from(await asCsv.arrayBuffer());
			const message = `${INPUT} node_id must be 1 to 64 characters: letters A-Z a-z, digits, _ and -.`;
			const lines = bytes.toString().split("\r\n");
			assert.equal(lines.length, 2_502);
			assert.equal(lines[0], "\ufeffline,device_id,error_code,error_msg");
			assert.equal(lines[1], `2,p_=bad 0,IOTDA.000006,"${message}"`);
			assert.equal(lines[2_500], `2501,p_=bad 2499,IOTDA.000006,"${message}"`);
			const refusals = await readRefusals(api, job);
			assert.equal(refusals.length, 2_500);
			assert.deepEqual(refusals[2_499], {
				line: 2_501,
				device_id: "p_=bad 2499",
				error_code: "IOTDA.000006",
				error_msg: message,
			});
		});

		test("that is deleted is gone with its refused lines; its devices stay", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const { job } = await importFile(
				api,
				`${CSV_HEADER}n,p\n${"a b,p\n".repeat(5_000)}`,
			);
			await api.deleteDeviceImport(job.import_id);
			await refused(api.getDeviceImport(job.import_id), 404, "IOTDA.014990");
			await refused(api.getImportRefusals(job.import_id), 404, "IOTDA.014990");
			await refused(api.deleteDeviceImport(job.import_id), 404, "IOTDA.014990");
			assert.deepEqual((await api.listDeviceImports()).device_imports, []);
			await api.getDevice("p_n");
			await untilNothingIsLeft(server);
		});

		test("that is deleted while it runs ends, and what it has registered stays", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const job = await beginImport(api, CSV_HEADER + csvLines(20_000));
			await until(
				() => api.getDeviceImport(job.import_id),
				({ created }) => created > 0,
			);
			await api.deleteDeviceImport(job.import_id);
			await refused(api.getDeviceImport(job.import_id), 404, "IOTDA.014990");
			await untilNothingIsLeft(server);
			const count = await countDevices(server);
			assert.ok(count > 0 && count < 20_000, `${count} devices`);
			await new Promise((resolve) => setTimeout(resolve, 300));
			assert.equal(await countDevices(server), count);
			// And the same file again registers the rest.
			const again = await importFile(api, CSV_HEADER + csvLines(20_000));
			assert.deepEqual(again.counts, [20_000 - count, count, 0]);
		});

		test("goes on after a restart where it was", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const count = 20_000;
			const lines = csvLines(count).split("\n");
			// Refused lines, and a cell over several lines, so that all counts must be kept.
			for (let n = 100; n < count; n += 1_000)
				lines.splice(n, 0, "a b,p", '"a\nb",p');
			const job = await beginImport(api, CSV_HEADER + lines.join("\n"));
			for (let created = 0, restarts = 0; restarts < 4; restarts++) {
				const now = await until(
					() => api.getDeviceImport(job.import_id),
					(state) => state.created > created || state.status !== "Processing",
				);
				({ created } = now);
				await server.restart();
			}
			const done = await importEnd(api, job);
			const bad = Math.floor((count - 101) / 1_000 + 1) * 2;
			assert.deepEqual(
				[done.created, done.unchanged, done.refused],
				[count, 0, bad],
			);
			const refusals = await readRefusals(api, job);
			assert.equal(new Set(refusals.map(({ line }) => line)).size, bad);
			assert.equal(refusals[0]?.line, 102);
			assert.equal(refusals[1]?.line, 103);
			assert.equal(refusals[2]?.line, 102 + 1_000 + 1);
			assert.equal(await countDevices(server), count);
			await untilSpoolIsEmpty(server);
		});

		test("whose file is gone after a restart fails and says so", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const job = await beginImport(api, CSV_HEADER + csvLines(20_000));
			await server.restart(() => {
				rmSync(join(server.config.dataDir, "imports", job.import_id));
				writeFileSync(join(server.config.dataDir, "imports", "stray"), "x");
			});
			const done = await importEnd(api, job);
			assert.equal(done.status, "Fail");
			assert.equal(done.status_desc, "The file is not on the server any more.");
			assert.ok(!existsSync(join(server.config.dataDir, "imports", "stray")));
		});

		test("puts at most 50,000 devices behind one gateway", async () => {
			await using server = await startServer(engine);
			const { api } = server;
			await makeProduct(api, { product_id: "p" });
			const header = "node_id,product_id,gateway_id\n";
			const children = (from: number, to: number) =>
				Array.from(
					{ length: to - from },
					(_, n) => `c${from + n},p,p_gw\n`,
				).join("");
			const first = await importFile(
				api,
				`${header}gw,p,\n${children(0, 49_990)}`,
			);
			assert.deepEqual(first.counts, [49_991, 0, 0]);
			const second = await importFile(api, header + children(49_980, 50_002));
			assert.deepEqual(second.counts, [10, 10, 2]);
			assert.deepEqual(
				second.refusals.map(({ line, error_code }) => [line, error_code]),
				[
					[22, "IOTDA.014900"],
					[23, "IOTDA.014900"],
				],
			);
		});
	});
});

test("one process sees, and ends, the import that another works off", async () => {
	await using one = await startServer(postgres);
	await using two = await startBeside(one);
	const { api } = two;
	await makeProduct(api, { product_id: "p" });
	const count = 20_000;
	const job = await beginImport(one.api, CSV_HEADER + csvLines(count));
	await until(
		() => api.getDeviceImport(job.import_id),
		({ created }) => created > 0,
	);
	assert.deepEqual(spooled(two), []);
	await api.deleteDeviceImport(job.import_id);
	await untilNothingIsLeft(one);
	const created = await countDevices(one);
	assert.ok(created < count, `${created} devices`);

	// Both at once, each from its own end, with the same devices.
	const lines = csvLines(count).trimEnd().split("\n");
	const ends = await Promise.all([
		importFile(one.api, CSV_HEADER + lines.join("\n")),
		importFile(api, CSV_HEADER + lines.reverse().join("\n")),
	]);
	for (const { counts, job } of ends) {
		assert.equal(job.status, "Success");
		assert.equal(counts[0] + counts[1], count);
	}
	assert.equal(
		created + ends.reduce((sum, { counts }) => sum + counts[0], 0),
		count,
	);
	assert.equal(await countDevices(two), count);
});

async function untilSpoolIsEmpty(server: TestServer): Promise<void> {
	await until(
		async () => spooled(server),
		(files) => files.length === 0,
	);
}

async function untilNothingIsLeft(server: TestServer): Promise<void> {
	const { db } = server.server;
	await until(
		async () => [
			...(await db.selectFrom("device_imports").select("import_id").execute()),
			...(await db
				.selectFrom("device_import_refusals")
				.select("line")
				.limit(1)
				.execute()),
			...spooled(server),
		],
		(left) => left.length === 0,
	);
}

function commasIn(line: string): number {
	// Those in quotes divide nothing.
	return line.replaceAll(/"(?:[^"]|"")*"/g, "").split(",").length - 1;
}

function sha256(text: string): string {
	return createHash("sha256").update(text).digest("hex");
}
