/** What is made of what devices say: nothing of it throws, and one odd field loses nothing else. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { type Heard, readEvents } from "../server/device-link/iotda.ts";

const DEVICE = "prod1_dev1";

function say(event_type: string, paras: unknown, service_id = "$ota"): Heard[] {
	return readEvents(
		DEVICE,
		Buffer.from(
			JSON.stringify({ services: [{ service_id, event_type, paras }] }),
		),
	);
}
const reports = (heard: Heard[]) =>
	heard.flatMap((one) => (one.kind === "report" ? [one.report] : []));
const dropped = (heard: Heard[]) =>
	heard.filter(({ kind }) => kind === "dropped").length;

const versionReports: [
	title: string,
	paras: unknown,
	expected: object,
	dropped: number,
][] = [
	[
		"both versions",
		{ fw_version: "v1", sw_version: "v2" },
		{ firmware: "v1", software: "v2" },
		0,
	],
	[
		"null says nothing",
		{ fw_version: null, sw_version: "v2" },
		{ software: "v2" },
		0,
	],
	[
		"an empty text says nothing",
		{ fw_version: "", sw_version: "v2" },
		{ software: "v2" },
		0,
	],
	[
		"a number is no version, the other counts",
		{ fw_version: 5, sw_version: "s1" },
		{ software: "s1" },
		1,
	],
	["a version with a blank is none", { fw_version: "v 1" }, {}, 1],
	[
		"a version of 257 characters is none",
		{ fw_version: "x".repeat(257) },
		{},
		1,
	],
	[
		"modules",
		{ modules: [{ module_name: "MCU", module_version: "a" }] },
		{ modules: [{ name: "MCU", version: "a" }] },
		0,
	],
	[
		"a module without a version, the other counts",
		{
			modules: [
				{ module_name: "MCU", module_version: null },
				{ module_name: "Modem", module_version: "c" },
			],
		},
		{ modules: [{ name: "Modem", version: "c" }] },
		0,
	],
	[
		"a module that is null, the rest counts",
		{
			fw_version: "f4",
			modules: [null, { module_name: "Modem", version: "e" }],
		},
		{ firmware: "f4", modules: [{ name: "Modem", version: "e" }] },
		1,
	],
	[
		"modules that are no list",
		{ fw_version: "f5", modules: {} },
		{ firmware: "f5" },
		0,
	],
	[
		"a single module",
		{ module_name: "MCU", module_version: "b" },
		{ modules: [{ name: "MCU", version: "b" }] },
		0,
	],
	[
		"a single module with version",
		{ module_name: "MCU", version: "b" },
		{ modules: [{ name: "MCU", version: "b" }] },
		0,
	],
	["nothing", {}, {}, 0],
];

const progressReports: [
	title: string,
	paras: object,
	expected: object | undefined,
][] = [
	[
		"a whole report",
		{ result_code: 0, progress: 40, version: "v1", description: "on" },
		{ resultCode: 0, progress: 40, version: "v1", description: "on" },
	],
	[
		"numbers as text",
		{ result_code: "0", progress: "40", version: "v1" },
		{ resultCode: 0, progress: 40, version: "v1" },
	],
	[
		"no progress",
		{ result_code: 7, version: "v1" },
		{ resultCode: 7, progress: undefined, version: "v1" },
	],
	[
		"a progress that is none",
		{ result_code: 5, progress: "abc" },
		{ resultCode: 5, progress: undefined },
	],
	[
		"a progress with a fraction",
		{ result_code: 0, progress: 99.5, version: "T2" },
		{ progress: 99, version: "T2" },
	],
	[
		"a huge progress",
		{ result_code: 0, progress: 1e15, version: "v1" },
		{ progress: 1e15 },
	],
	[
		"a version that is an object",
		{ result_code: 10, version: {} },
		{ resultCode: 10, version: "" },
	],
	[
		"a version that is a number",
		{ result_code: 5, version: 7 },
		{ resultCode: 5, version: "" },
	],
	[
		"a version of 300 characters",
		{ result_code: 5, version: "x".repeat(300) },
		{ resultCode: 5, version: "" },
	],
	[
		"an empty module name",
		{ result_code: 10, module_name: "" },
		{ resultCode: 10, moduleName: undefined },
	],
	[
		"a huge result code",
		{ result_code: 2_147_483_648 },
		{ resultCode: 2_147_483_648 },
	],
	["no result code", { progress: 3, version: "v2" }, undefined],
	[
		"a result code with a fraction",
		{ result_code: 0.5, version: "v2" },
		undefined,
	],
	[
		"a result code that is null",
		{ result_code: null, version: "v2" },
		undefined,
	],
];

describe("a version report", () => {
	for (const [title, paras, expected, faults] of versionReports) {
		test(title, () => {
			const heard = say("version_report", paras);
			assert.deepEqual(reports(heard), [{ kind: "versions", ...expected }]);
			assert.equal(dropped(heard), faults);
		});
	}
});

describe("a progress report", () => {
	for (const [title, paras, expected] of progressReports) {
		test(title, () => {
			const [report] = reports(say("upgrade_progress_report", paras));
			if (!expected) return assert.equal(report, undefined);
			assert.ok(report?.kind === "progress");
			for (const [field, value] of Object.entries(expected))
				assert.equal(report[field as keyof typeof report], value, field);
		});
	}
});

test("an SDK that knows only its own version is kept, and loses nothing", () => {
	const heard = say(
		"sdk_info_report",
		{ device_sdk_version: "Java_v1.2.1", sw_version: null, fw_version: "v1" },
		"$sdk_info",
	);
	assert.deepEqual(reports(heard), [
		{ kind: "versions", firmware: "v1" },
		{ kind: "versions", sdk: "Java_v1.2.1" },
	]);
});

test("several events of one message are heard in their order", () => {
	const heard = readEvents(
		DEVICE,
		Buffer.from(
			JSON.stringify({
				object_device_id: DEVICE,
				services: [
					{
						service_id: "$ota",
						event_type: "version_report",
						paras: { fw_version: "v1" },
					},
					{ service_id: "$log", event_type: "log_report", paras: {} },
					{ service_id: "$ota", event_type: "brand_new", paras: {} },
					{
						service_id: "$ota",
						event_type: "upgrade_progress_report",
						paras: { result_code: 0 },
					},
				],
			}),
		),
	);
	assert.deepEqual(
		heard.map(({ kind }) => kind),
		["report", "ignored", "dropped", "report"],
	);
});

test("what is about another device is not acted on", () => {
	const heard = readEvents(
		DEVICE,
		Buffer.from(
			JSON.stringify({
				object_device_id: "somebody_else",
				services: [
					{
						service_id: "$ota",
						event_type: "version_report",
						paras: { fw_version: "v1" },
					},
				],
			}),
		),
	);
	assert.deepEqual(heard, [
		{ kind: "dropped", reason: "about another device" },
	]);
});

test("no payload whatever makes the reader throw", () => {
	const paras = fc.dictionary(
		fc.constantFrom(
			"result_code",
			"progress",
			"version",
			"description",
			"modules",
			"module_name",
			"fw_version",
			"device_send_time",
		),
		fc.jsonValue(),
	);
	const event = fc.record({
		service_id: fc.oneof(
			fc.constantFrom("$ota", "$time_sync", "$sdk_info"),
			fc.jsonValue(),
		),
		event_type: fc.oneof(
			fc.constantFrom(
				"version_report",
				"upgrade_progress_report",
				"time_sync_request",
				"sdk_info_report",
			),
			fc.jsonValue(),
		),
		paras: fc.oneof(paras, fc.jsonValue()),
	});
	fc.assert(
		fc.property(
			fc.oneof(fc.record({ services: fc.array(event) }), fc.jsonValue()),
			(message) => {
				readEvents(DEVICE, Buffer.from(JSON.stringify(message)));
			},
		),
		{ numRuns: 3_000 },
	);
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
			assert.equal(dropped(readEvents(DEVICE, bytes)) <= 1, true);
		}),
	);
	assert.equal(
		dropped(readEvents(DEVICE, Buffer.from("[".repeat(500_000)))),
		1,
	);
});
