/** What is made of what devices say: nothing of it throws, and one odd field loses nothing else. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
	type Heard,
	readEvents,
	type SubDeviceRequest,
} from "../server/device-link/iotda.ts";

const DEVICE = "prod1_dev1";

function say(event_type: string, paras: unknown, service_id = "$ota"): Heard[] {
	return readEvents(
		Buffer.from(
			JSON.stringify({ services: [{ service_id, event_type, paras }] }),
		),
	).events;
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
	const { about, events: heard } = readEvents(
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
	assert.equal(about, DEVICE);
	assert.deepEqual(
		heard.map(({ kind }) => kind),
		["report", "ignored", "dropped", "report"],
	);
});

test("the device that a message is about is the sender unless a device id says otherwise", () => {
	const readAbout = (object_device_id: unknown) =>
		readEvents(Buffer.from(JSON.stringify({ object_device_id, services: [] })));
	for (const none of [undefined, null, ""])
		assert.deepEqual(readAbout(none), { about: undefined, events: [] });
	assert.deepEqual(readAbout("child_1"), { about: "child_1", events: [] });
	for (const nonsense of [
		5,
		true,
		{},
		["child_1"],
		"a\u0000b",
		"a b",
		"x".repeat(129),
	])
		assert.deepEqual(readAbout(nonsense), {
			about: undefined,
			events: [{ kind: "dropped", reason: "object_device_id is no device id" }],
		});
});

describe("a request of a gateway about its children", () => {
	const requests: [
		title: string,
		type: string,
		paras: unknown,
		expected: SubDeviceRequest | "dropped" | "ignored",
	][] = [
		[
			"a sync names the version of its list",
			"sub_device_sync_request",
			{ version: 7 },
			{ kind: "sync", version: 7 },
		],
		...[undefined, {}, { version: -1 }, { version: "x" }, { version: 1.5 }].map(
			(paras) =>
				[
					`a sync with ${JSON.stringify(paras)} has no list`,
					"sub_device_sync_request",
					paras,
					{ kind: "sync", version: 0 },
				] as const satisfies [string, string, unknown, SubDeviceRequest],
		),
		[
			"statuses, and nonsense between them",
			"sub_device_update_status",
			{
				device_statuses: [
					{ device_id: "a", status: "ONLINE" },
					{ device_id: 5, status: "OFFLINE" },
					{ device_id: "b", status: "online" },
					null,
				],
			},
			{
				kind: "statuses",
				devices: [
					{ deviceId: "a", status: "ONLINE" },
					{ deviceId: "", status: "OFFLINE" },
					{ deviceId: "b", status: undefined },
					{ deviceId: "", status: undefined },
				],
			},
		],
		[
			"no list of statuses",
			"sub_device_update_status",
			{ device_statuses: { device_id: "a" } },
			"dropped",
		],
		[
			"devices to add, without what says nothing",
			"add_sub_device_request",
			{
				devices: [
					{
						node_id: "n",
						product_id: "p",
						name: "",
						description: null,
						parent_device_id: "g",
						extension_info: '{"a":1}',
						more: 1,
					},
					7,
				],
			},
			{
				kind: "add",
				devices: [
					{
						nodeId: "n",
						productId: "p",
						body: {
							node_id: "n",
							product_id: "p",
							gateway_id: "g",
							extension_info: { a: 1 },
						},
					},
					{ nodeId: "", productId: "", body: {} },
				],
			},
		],
		["no list of devices to add", "add_sub_device_request", {}, "dropped"],
		[
			"devices to delete",
			"delete_sub_device_request",
			{ devices: ["a", 5, null] },
			{ kind: "delete", devices: ["a", "", ""] },
		],
		[
			"no list of devices to delete",
			"delete_sub_device_request",
			{ devices: "a" },
			"dropped",
		],
		["what is not known", "scan_result", {}, "ignored"],
	];
	for (const service of ["$sub_device_manager", "sub_device_manager"]) {
		for (const [title, type, paras, expected] of requests)
			test(`${service}: ${title}`, () => {
				const [heard, ...more] = say(type, paras, service);
				assert.deepEqual(more, []);
				if (typeof expected === "string")
					return assert.equal(heard?.kind, expected);
				assert.deepEqual(heard, {
					kind: "sub_devices",
					request: expected,
					eventId: undefined,
				});
			});
	}

	test("an event id is said back, unless it is empty or none", () => {
		for (const [event_id, expected] of [
			["e1", "e1"],
			["", undefined],
			[null, undefined],
			[5, undefined],
			["\ud800", "\ufffd"],
		]) {
			const { events } = readEvents(
				Buffer.from(
					JSON.stringify({
						services: [
							{
								service_id: "$sub_device_manager",
								event_type: "sub_device_sync_request",
								event_id,
							},
						],
					}),
				),
			);
			assert.ok(events[0]?.kind === "sub_devices");
			assert.equal(events[0].eventId, expected);
		}
	});

	test("a list of 10,000 is not read to its end", () => {
		const many = Array.from({ length: 10_000 }, (_, index) => `d${index}`);
		const [heard] = say(
			"delete_sub_device_request",
			{ devices: many },
			"$sub_device_manager",
		);
		assert.ok(heard?.kind === "sub_devices" && heard.request.kind === "delete");
		assert.equal(heard.request.devices.length, 51);
	});
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
			"device_statuses",
			"devices",
		),
		fc.jsonValue(),
	);
	const event = fc.record({
		service_id: fc.oneof(
			fc.constantFrom("$ota", "$time_sync", "$sdk_info", "$sub_device_manager"),
			fc.jsonValue(),
		),
		event_type: fc.oneof(
			fc.constantFrom(
				"version_report",
				"upgrade_progress_report",
				"time_sync_request",
				"sdk_info_report",
				"sub_device_sync_request",
				"sub_device_update_status",
				"add_sub_device_request",
				"delete_sub_device_request",
			),
			fc.jsonValue(),
		),
		paras: fc.oneof(paras, fc.jsonValue()),
	});
	fc.assert(
		fc.property(
			fc.oneof(fc.record({ services: fc.array(event) }), fc.jsonValue()),
			(message) => {
				readEvents(Buffer.from(JSON.stringify(message)));
			},
		),
		{ numRuns: 3_000 },
	);
	fc.assert(
		fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
			assert.equal(dropped(readEvents(bytes).events) <= 1, true);
		}),
	);
	assert.equal(dropped(readEvents(Buffer.from("[".repeat(500_000))).events), 1);
});
