/** All devices are written into a file that another server can import. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { readCells } from "../server/device-imports/csv.ts";
import type { Client, Query } from "../wire/client.ts";
import { ScriptedDevice } from "./support/device.ts";
import { type Engine, forEachEngine } from "./support/engines.ts";
import { CSV_HEADER, csvLines, importFile } from "./support/imports.ts";
import {
	makeDevice,
	makeModule,
	makeProduct,
	refused,
} from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const COLUMNS =
	"device_id,node_id,product_id,app_id,device_name,description,gateway_id,auth_type,fingerprint,secure_access,timeout,extension_info,tags,status,fw_version,sw_version,device_sdk_version,modules,create_time";

async function exported(api: Client, query: Query = {}): Promise<string> {
	// Not as text: that would lose the byte order mark.
	const bytes = await (await api.exportDevices(query)).arrayBuffer();
	return Buffer.from(bytes).toString();
}

/** The records without the header, as objects; no cell here has a line break. */
function parse(csv: string): Record<string, string>[] {
	const [head = "", ...records] = csv.replace("\ufeff", "").split("\r\n");
	assert.equal(records.pop(), "");
	const names = readCells(head);
	return records.map((record) =>
		Object.fromEntries(
			readCells(record).map((cell, index) => [names[index], cell]),
		),
	);
}

/** Devices of every kind that an export has to tell apart. */
async function makeFleet(server: TestServer): Promise<string> {
	const { api } = server;
	const { app_id } = await api.createResourceSpace({ app_name: "fleet" });
	const product = await makeProduct(api, { product_id: "p", app_id });
	await makeProduct(api, { product_id: "q", app_id });
	await makeModule(api, product, "MCU");
	await makeModule(api, product, "Modem");
	const file = [
		{
			node_id: "-gw",
			product_id: "p",
			device_name: "@厅'#1",
			secret: "geheim_geheim",
		},
		{ node_id: "c1", product_id: "q", gateway_id: "p_-gw", device_id: "-1" },
		{
			node_id: "c2",
			product_id: "q",
			gateway_id: "-1",
			description: "'-a,(b)",
		},
		{
			node_id: "cert",
			product_id: "p",
			auth_type: "CERTIFICATES",
			fingerprint: "ab".repeat(32),
			secure_access: false,
			timeout: 60,
			extension_info: { floor: 1, 名: ['=1+1"', null] },
			tags: [{ tag_key: "-site", tag_value: "厅" }, { tag_key: "row" }],
		},
	];
	const { counts } = await importFile(
		api,
		file.map((line) => JSON.stringify(line)).join("\n"),
		{ appId: app_id },
	);
	assert.deepEqual(counts, [4, 0, 0]);
	return app_id;
}

/** What an import can bring over, of every device. */
async function fleetOf(api: Client) {
	const { devices } = await api.listDevices({ limit: 50 });
	return Promise.all(
		devices.map(async ({ device_id }) => {
			const {
				app_id: _,
				app_name: __,
				create_time: ___,
				auth_info,
				...device
			} = await api.getDevice(device_id);
			const { secret: ____, ...auth } = auth_info;
			return { ...device, auth };
		}),
	);
}

forEachEngine((engine: Engine) => {
	test("what one server exports another imports, in both formats", async () => {
		await using server = await startServer(engine);
		const app_id = await makeFleet(server);
		const fleet = await fleetOf(server.api);
		assert.equal(fleet.length, 4);
		for (const format of ["csv", "ndjson"] as const) {
			const file = await exported(server.api, { format, app_id });
			await using other = await startServer(engine);
			await makeProduct(other.api, { product_id: "p" });
			await makeProduct(other.api, { product_id: "q" });
			const { counts, refusals } = await importFile(other.api, file, {
				format,
			});
			assert.deepEqual(counts, [4, 0, 0], JSON.stringify(refusals));
			assert.deepEqual(await fleetOf(other.api), fleet);
			// And it comes out again as it went in, but for the time.
			const { app_id: otherId } = other.credentials;
			const again = await exported(other.api, { format, app_id: otherId });
			const untimed = (text: string) => text.replaceAll(/\d{8}T\d{6}Z/g, "T");
			assert.equal(untimed(again), untimed(file));
		}
	});

	test("without a resource space the lines name theirs, and import again into the same", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const app_id = await makeFleet(server);
		await makeDevice(api, await makeProduct(api, { product_id: "p" }), {
			device_id: "elsewhere",
		});
		for (const format of ["csv", "ndjson"] as const) {
			const file = await exported(api, { format });
			const { counts, refusals } = await importFile(api, file, { format });
			assert.deepEqual(counts, [0, 5, 0], JSON.stringify(refusals));
		}
		const spaces = parse(await exported(api)).map((device) => device.app_id);
		assert.deepEqual(spaces, [credentials.app_id, ...Array(4).fill(app_id)]);
	});

	test("what devices have reported is told, their secrets are not", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		await makeFleet(server);
		{
			const gateway = await api.getDevice("p_-gw");
			await using device = await ScriptedDevice.connect(server, gateway);
			await device.say("version_report", {
				fw_version: "v1-f",
				sw_version: "-s",
				modules: [
					{ module_name: "Modem", module_version: "2" },
					{ module_name: "MCU", module_version: "1.0" },
				],
			});
			await api.freezeDevice("p_cert");
			const csv = await exported(api);
			assert.ok(csv.startsWith(`\ufeff${COLUMNS}\r\n`));
			const [first, second, , fourth] = parse(csv);
			assert.deepEqual(
				[first?.status, first?.fw_version, first?.sw_version, first?.modules],
				["ONLINE", "v1-f", "'-s", "MCU=1.0;Modem=2"],
			);
			assert.match(first?.create_time ?? "", /^\d{8}T\d{6}Z$/);
			assert.equal(second?.status, "INACTIVE");
			assert.equal(fourth?.status, "FROZEN");
			const [line = ""] = (await exported(api, { format: "ndjson" })).split(
				"\n",
			);
			const { modules, sw_version, status } = JSON.parse(line);
			assert.deepEqual(modules, [
				{ module_name: "MCU", module_version: "1.0" },
				{ module_name: "Modem", module_version: "2" },
			]);
			assert.deepEqual([sw_version, status], ["-s", "ONLINE"]);
			for (const text of [csv, line]) {
				assert.ok(!text.includes("geheim"));
				assert.ok(!text.includes("secret"));
			}
		}
	});

	test("no cell of a CSV file is a formula", async () => {
		await using server = await startServer(engine);
		await makeFleet(server);
		const records = parse(await exported(server.api));
		for (const record of records)
			for (const cell of Object.values(record))
				assert.doesNotMatch(cell, /^[=+\-@\t\r]/);
		assert.deepEqual(
			records.map((record) => [record.device_id, record.node_id]),
			[
				["p_-gw", "'-gw"],
				["'-1", "c1"],
				["q_c2", "c2"],
				["p_cert", "cert"],
			],
		);
		assert.equal(records[0]?.device_name, "'@厅'#1");
		assert.equal(records[2]?.description, "''-a,(b)");
		assert.equal(records[3]?.tags, "'-site=厅;row");
	});

	test("devices come in the order of their registration, window by window", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		await makeProduct(api, { product_id: "p" });
		await importFile(api, CSV_HEADER + csvLines(2_600));
		const nodes = parse(await exported(api)).map(({ node_id }) => node_id);
		assert.deepEqual(
			nodes,
			Array.from({ length: 2_600 }, (_, n) => `n${n}`),
		);
		const answer = await api.exportDevices({ format: "ndjson" });
		assert.equal(answer.headers.get("content-type"), "application/x-ndjson");
		assert.equal(
			answer.headers.get("content-disposition"),
			'attachment; filename="devices.ndjson"',
		);
		assert.equal((await answer.text()).split("\n").length, 2_601);
		// Whoever stops reading ends it; the server goes on.
		await (await api.exportDevices()).body?.cancel();
		await api.getDevice("p_n2599");
	});

	test("an export may be of one product, or of one resource space", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const app_id = await makeFleet(server);
		await makeDevice(api, await makeProduct(api, { product_id: "p" }), {
			device_id: "elsewhere",
		});
		const ids = async (query: Query) =>
			parse(await exported(api, query)).map(({ device_id }) => device_id);
		assert.deepEqual(await ids({ product_id: "q" }), ["'-1", "q_c2"]);
		assert.deepEqual(await ids({ product_id: "p" }), [
			"p_-gw",
			"p_cert",
			"elsewhere",
		]);
		assert.deepEqual(await ids({ product_id: "p", app_id }), [
			"p_-gw",
			"p_cert",
		]);
		assert.deepEqual(await ids({ app_id: credentials.app_id }), ["elsewhere"]);
		assert.deepEqual(await ids({ product_id: "nobody" }), []);
		assert.equal(
			await exported(api, { product_id: "nobody", format: "ndjson" }),
			"",
		);
		await refused(api.exportDevices({ app_id: "nobody" }), 403, "IOTDA.001000");
		for (const query of [
			{ app_id: "a b" },
			{ product_id: "" },
			{ format: "xml" as "csv" },
		])
			await refused(api.exportDevices(query), 400, "IOTDA.000006", "must be");
	});
});
