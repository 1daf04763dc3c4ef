/** The rules of dynamic groups: what is one, what it says, and that SQL says the same. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { readConfig } from "../server/config.ts";
import { openStore, type Store } from "../server/database/database.ts";
import {
	type FieldName,
	parseRule,
	printRule,
	RULE_CONDITION_LIMIT,
	RULE_DEPTH_LIMIT,
	RULE_LENGTH_LIMIT,
	type Rule,
	RuleError,
	type Test,
} from "../server/device-groups/group-rule.ts";
import {
	type DeviceFacts,
	deviceFits,
} from "../server/device-groups/group-rule-fits.ts";
import { ruleCondition } from "../server/device-groups/group-rule-sql.ts";
import { statusOf } from "../server/devices/devices.ts";
import { type FreshStore, forEachEngine } from "./support/engines.ts";

// --- rules that are some ------------------------------------------------------------

const equals = (field: FieldName, value: string): Rule => ({
	kind: "field",
	field,
	test: { op: "=", value },
});

test("a rule is read as it is meant", () => {
	const a = equals("node_id", "a");
	const b = equals("node_id", "b");
	const c = equals("node_id", "c");
	const cases: [string, Rule][] = [
		["node_id = 'a'", a],
		["  node_id='a'\t\n", a],
		["node_id = 'it''s'", equals("node_id", "it's")],
		["device_name = '客厅 厨房'", equals("device_name", "客厅 厨房")],
		[
			"node_id = 'a' or node_id = 'b' and node_id = 'c'",
			{ kind: "or", rules: [a, { kind: "and", rules: [b, c] }] },
		],
		[
			"(node_id = 'a' or node_id = 'b') and node_id = 'c'",
			{ kind: "and", rules: [{ kind: "or", rules: [a, b] }, c] },
		],
		[
			"NOT node_id = 'a' AnD node_id = 'b'",
			{ kind: "and", rules: [{ kind: "not", rule: a }, b] },
		],
		["((node_id = 'a'))", a],
		[
			"node_id NOT IN ('a', 'b')",
			{
				kind: "field",
				field: "node_id",
				test: { op: "not in", values: ["a", "b"] },
			},
		],
		[
			"node_id not like 'a%b\\%\\\\'",
			{
				kind: "field",
				field: "node_id",
				test: { op: "not like", parts: ["a", "b%\\"] },
			},
		],
		[
			"fw_version is not null",
			{ kind: "field", field: "fw_version", test: { op: "is not null" } },
		],
		[
			"module.MCU-2.a != '2.0'",
			{ kind: "module", name: "MCU-2.a", test: { op: "!=", value: "2.0" } },
		],
		[
			"tag.站点 = ''",
			{ kind: "tag", key: "站点", test: { op: "=", value: "" } },
		],
		// Words of the grammar are no keywords behind a dot.
		["tag.not is null", { kind: "tag", key: "not", test: { op: "is null" } }],
		[
			"create_time > '20260129T080000Z'",
			{
				kind: "field",
				field: "create_time",
				test: { op: ">", value: "2026-01-29T08:00:00.000Z" },
			},
		],
		[
			"marker = 'ABCDEF0123456789abcdef01'",
			equals("marker", "abcdef0123456789abcdef01"),
		],
		[
			"tag_key = 'k' and tag_value = 'v' and tag_value = 'w'",
			{
				kind: "and",
				rules: [
					{
						kind: "any_tag",
						key: { op: "=", value: "k" },
						value: { op: "=", value: "v" },
					},
					{ kind: "any_tag", value: { op: "=", value: "w" } },
				],
			},
		],
		[
			"tag_value like 'v%' and tag_key != 'k'",
			{
				kind: "any_tag",
				key: { op: "!=", value: "k" },
				value: { op: "like", parts: ["v", ""] },
			},
		],
		[
			"tag_key = 'k' or tag_value = 'v'",
			{
				kind: "or",
				rules: [
					{ kind: "any_tag", key: { op: "=", value: "k" } },
					{ kind: "any_tag", value: { op: "=", value: "v" } },
				],
			},
		],
	];
	for (const [text, rule] of cases)
		assert.deepEqual(parseRule(text), rule, text);
});

test("every operator of the vendor's device search is understood where the vendor has it", () => {
	const values: Partial<Record<string, string>> = {
		status: "ONLINE",
		node_type: "GATEWAY",
		create_time: "2015-06-06T12:10:10.000Z",
		marker: "f".repeat(24),
	};
	const fields =
		"app_id device_id gateway_id product_id device_name node_id status node_type tag_key tag_value sw_version fw_version group_id create_time marker".split(
			" ",
		);
	for (const field of fields) {
		const value = values[field] ?? "abcd";
		const operators = ["=", "!="];
		if (field === "create_time" || field === "marker") operators.push("<", ">");
		if (/^(device_name|node_id|tag_key|tag_value)$/.test(field))
			operators.push("like");
		for (const operator of operators)
			parseRule(`${field} ${operator} '${value}'`);
		if (!field.startsWith("tag_"))
			for (const operator of ["in", "not in"])
				parseRule(`${field} ${operator} ('${value}', '${value}')`);
	}
});

test("what is no rule is refused with the place and what is wrong there", () => {
	const cases: [rule: string, position: number, words: string][] = [
		["", 1, "found the end of the rule"],
		["   ", 4, "found the end of the rule"],
		["node_id", 8, "expected =, !=, <, <=, >, >=, like, in, not, or is"],
		["node_id =", 10, "expected a text in single quotes"],
		["node_id = a", 11, "expected a text in single quotes, found a"],
		["node_id = 5", 11, "expected a text in single quotes, found 5"],
		['node_id = "a"', 11, "single quotes"],
		["node_id = 'a", 11, "no closing quote"],
		["node_id = 'a''", 11, "no closing quote"],
		["node_id = '名' and x = 'b'", 19, "there is no field x"],
		["device_name = '🚀🚀' nor", 20, "expected and, or, or the end"],
		["'a' = node_id", 1, "expected the name of a field"],
		["Node_id = 'a'", 1, "there is no field Node_id"],
		["not = 'a'", 5, "expected the name of a field, not, or ("],
		["node_id = 'a' and", 18, "found the end of the rule"],
		["and node_id = 'a'", 1, "found and"],
		["node_id = 'a' node_id = 'b'", 15, "expected and, or"],
		["(node_id = 'a'", 15, "expected and, or, or )"],
		["node_id = 'a')", 14, "found )"],
		["()", 2, "found )"],
		["node_id == 'a'", 10, "found ="],
		["node_id <> 'a'", 9, "cannot be asked with <"],
		["node_id ~ 'a'", 9, "~ has no meaning here"],
		["node_id = 'a';", 14, "; has no meaning here"],
		["node_id = 'a' -- x", 15, "expected and, or"],
		["node_id = 'a'\u0007", 14, "a character that is not printed"],
		["node_id = 'a\u0000'", 13, "U+0000"],
		["node_id = '\ud800'", 12, "surrogate"],
		["node_id in 'a'", 12, "expected ("],
		["node_id in ()", 13, "expected a text"],
		["node_id in ('a',)", 17, "expected a text"],
		["node_id in ('a' 'b')", 17, "expected , or )"],
		["node_id not 'a'", 13, "expected like or in"],
		["node_id is 'a'", 12, "expected null"],
		["node_id is not", 15, "expected null"],
		["node_id is null", 9, "cannot be asked with is null"],
		["node_id < 'a'", 9, "it understands =, !=, in, like"],
		["fw_version >= '2'", 12, "cannot be asked with >="],
		["module.MCU > '1.0'", 12, "cannot be asked with >"],
		["product_id like 'a%'", 12, "cannot be asked with like"],
		["node_id = ''", 11, "an empty text is never a value"],
		["device_name = ''", 15, "is null asks for what has none"],
		["node_id like ''", 14, "empty pattern"],
		["node_id like 'a\\b'", 14, "backslash"],
		["node_id like 'a\\'", 14, "backslash"],
		["status = 'online'", 10, "one of 'ONLINE'"],
		["node_type in ('GATEWAY', 'X')", 26, "one of 'GATEWAY', 'ENDPOINT'"],
		["create_time > '2026-02-30T00:00:00.000Z'", 15, "a time such as"],
		["create_time > 'yesterday'", 15, "a time such as"],
		["marker < 'xyz'", 10, "24 hexadecimal digits"],
		["tag. = 'a'", 1, "there is no field tag."],
		[`tag.${"a".repeat(65)} = 'a'`, 1, "there is no field"],
		["module.名 = 'a'", 1, "there is no field module.名"],
		["__proto__ = 'a'", 1, "there is no field __proto__"],
		["constructor = 'a'", 1, "there is no field constructor"],
		[`node_id = '${"a".repeat(RULE_LENGTH_LIMIT)}'`, 4001, "at most 4000"],
		["x".repeat(10_000), 4001, "at most 4000"],
		["(".repeat(5_000), 4001, "at most 4000"],
		[
			Array.from({ length: 31 }, () => "node_id = 'a'").join(" or "),
			511,
			"at most 30 conditions",
		],
		[`node_id like '${"%a".repeat(11)}'`, 14, "at most 10 percent signs"],
		["(".repeat(3_999), 33, "nested 32 deep"],
		["not ".repeat(900), 129, "nested 32 deep"],
	];
	for (const [rule, position, words] of cases) {
		assert.throws(
			() => parseRule(rule),
			(error: unknown) => {
				assert.ok(error instanceof RuleError, rule);
				assert.deepEqual(
					{ rule, position: error.position },
					{ rule, position },
					error.reason,
				);
				assert.ok(error.reason.includes(words), `${rule}: ${error.reason}`);
				return true;
			},
		);
	}
});

test("a rule may be as long and as deep as the limits say", () => {
	const filler = RULE_LENGTH_LIMIT - "node_id = ''".length;
	parseRule(`node_id = '${"🚀".repeat(filler)}'`);
	const nested = (depth: number) =>
		`${"(".repeat(depth)}node_id = 'a'${")".repeat(depth)}`;
	parseRule(nested(RULE_DEPTH_LIMIT));
	assert.throws(() => parseRule(nested(RULE_DEPTH_LIMIT + 1)), RuleError);
});

test("a pattern fits what it says, each part in a place of its own", () => {
	const device = (name: string) => ({
		fields: { device_name: name } as DeviceFacts["fields"],
		groupIds: new Set<string>(),
		tags: new Map<string, string>(),
		modules: new Map<string, string>(),
	});
	const cases: [pattern: string, fits: string[], misfits: string[]][] = [
		["a", ["a"], ["A", "aa", "ba"]],
		["a%", ["a", "ab"], ["ba", "Ab"]],
		["%a", ["a", "ba"], ["ab"]],
		["a%a", ["aa", "aba"], ["a", "ab"]],
		["a%ba%a", ["abaa", "acbaca"], ["aba", "aab"]],
		["%ab%ab%", ["abab", "xabxabx"], ["ab", "aab"]],
		["%", ["a", "中"], []],
		["_%", ["_", "_a"], ["a"]],
		["100\\%", ["100%"], ["100", "100x"]],
		["a\\\\%", ["a\\", "a\\b"], ["a", "ab"]],
		["[a]*%?", ["[a]*?", "[a]*b?"], ["a*b?", "[a]b?"]],
	];
	for (const [pattern, fits, misfits] of cases) {
		const rule = parseRule(`device_name like '${pattern}'`);
		for (const name of fits) assert.ok(deviceFits(rule, device(name)), name);
		for (const name of misfits)
			assert.ok(!deviceFits(rule, device(name)), `${pattern}: ${name}`);
	}
});

// --- rules at random ------------------------------------------------------------------

/** Few enough to meet, and each with something that one engine may take for another. */
const texts = [
	..."aA中%_*?[]^-\\'é🚀 ",
	"ab",
	"aB",
	"aba",
	"abab",
	"a_b",
	"axb",
	"a%b",
	"a*b",
	"[a]",
	"[^a]",
	"中文",
	"''",
	"\\%",
	"a\nb",
];
const keys = ["a", "A", "a.b", "中", "and"];
const names = ["MCU", "mcu", "a-b", "null"];
const times = [
	"2026-01-29T08:00:00.000Z",
	"2026-01-29T08:00:00.001Z",
	"2026-02-01T00:00:00.000Z",
];
const markers = ["0", "1", "a", "f"].map((digit) => digit.repeat(24));
const productIds = ["thermometer", "Thermometer"];
const groupIds = ["group-1", "group-2"];
const deviceIds = Array.from({ length: 40 }, (_, index) => `device-${index}`);
const spaceId = "space";

/** Plain objects, as the parser makes them. */
const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
	fc.record<T>(model, { noNullPrototype: true });

const textArb = fc.constantFrom(...texts);
const like: fc.Arbitrary<Test> = record({
	op: fc.constantFrom("like", "not like"),
	parts: fc
		.array(fc.oneof(textArb, fc.constantFrom("", "a", "b", "ba")), {
			minLength: 1,
			maxLength: 4,
		})
		.filter((parts) => parts.length > 1 || parts[0] !== ""),
});
const isNull: fc.Arbitrary<Test> = record({
	op: fc.constantFrom("is null", "is not null"),
});
const equalTo = (values: fc.Arbitrary<string>): fc.Arbitrary<Test> =>
	fc.oneof(
		record({ op: fc.constantFrom("=", "!="), value: values }),
		record({
			op: fc.constantFrom("in", "not in"),
			values: fc.array(values, { minLength: 1, maxLength: 3 }),
		}),
	);
const inOrder = (values: fc.Arbitrary<string>): fc.Arbitrary<Test> =>
	record({ op: fc.constantFrom("<", "<=", ">", ">="), value: values });
const field = (
	name: FieldName,
	...tests: fc.Arbitrary<Test>[]
): fc.Arbitrary<Rule> =>
	record({
		kind: fc.constant("field"),
		field: fc.constant(name),
		test: fc.oneof(...tests),
	});
const emptyToo = fc.oneof(textArb, fc.constant(""));
const timeArb = fc.constantFrom(...times);
const markerArb = fc.constantFrom(...markers);
const statusArb = fc.constantFrom(
	"ONLINE",
	"OFFLINE",
	"ABNORMAL",
	"INACTIVE",
	"FROZEN",
);
const tagTest = fc.oneof(equalTo(emptyToo), like);
const keyTest = fc.oneof(equalTo(fc.constantFrom(...keys)), like);

const condition: fc.Arbitrary<Rule> = fc.oneof(
	field("app_id", equalTo(fc.constantFrom(spaceId, "other"))),
	field("device_id", equalTo(fc.constantFrom(...deviceIds)), like),
	field("device_name", equalTo(textArb), like, isNull),
	field("gateway_id", equalTo(fc.constantFrom(...deviceIds))),
	field("node_id", equalTo(textArb), like),
	field("node_type", equalTo(fc.constantFrom("GATEWAY", "ENDPOINT"))),
	field("product_id", equalTo(fc.constantFrom(...productIds, "none"))),
	field("product_name", equalTo(textArb), like),
	field("status", equalTo(statusArb)),
	field("fw_version", equalTo(textArb), like, isNull),
	field("sw_version", equalTo(textArb), like, isNull),
	field("group_id", equalTo(fc.constantFrom(...groupIds, "none"))),
	field("create_time", equalTo(timeArb), inOrder(timeArb)),
	field("active_time", equalTo(timeArb), inOrder(timeArb), isNull),
	field("marker", equalTo(markerArb), inOrder(markerArb)),
	record({
		kind: fc.constant("tag"),
		key: fc.constantFrom(...keys),
		test: fc.oneof(tagTest, isNull),
	}),
	record({
		kind: fc.constant("module"),
		name: fc.constantFrom(...names),
		test: fc.oneof(equalTo(textArb), like, isNull),
	}),
	record({ kind: fc.constant("any_tag"), key: keyTest }),
	record({ kind: fc.constant("any_tag"), value: tagTest }),
	record({ kind: fc.constant("any_tag"), key: keyTest, value: tagTest }),
) as fc.Arbitrary<Rule>;

/** Comparisons, as the limit counts them. */
function conditionsIn(rule: Rule): number {
	switch (rule.kind) {
		case "and":
		case "or":
			return rule.rules.reduce((sum, part) => sum + conditionsIn(part), 0);
		case "not":
			return conditionsIn(rule.rule);
		case "any_tag":
			return rule.key && rule.value ? 2 : 1;
		default:
			return 1;
	}
}

const ruleArb: fc.Arbitrary<Rule> = fc
	.letrec<{ rule: Rule }>((tie) => ({
		rule: fc.oneof(
			{ maxDepth: 4, withCrossShrink: true },
			condition,
			record({
				kind: fc.constantFrom("and", "or"),
				rules: fc.array(tie("rule"), { minLength: 2, maxLength: 3 }),
			})
				// Side by side they would be read as one.
				.filter(({ kind, rules }) => kind === "or" || !haveHalves(rules)),
			record({ kind: fc.constant("not"), rule: tie("rule") }),
		) as fc.Arbitrary<Rule>,
	}))
	.rule.filter((rule) => conditionsIn(rule) <= RULE_CONDITION_LIMIT);

function haveHalves(rules: readonly Rule[]): boolean {
	return rules.some((rule, index) => {
		const next = rules[index + 1];
		if (rule.kind !== "any_tag" || next?.kind !== "any_tag") return false;
		return (
			(rule.key === undefined) !== (next.key === undefined) &&
			(rule.value === undefined) !== (next.value === undefined)
		);
	});
}

test("a rule that is printed and read again is the same", () => {
	fc.assert(
		fc.property(ruleArb, (rule) => {
			assert.deepEqual(parseRule(printRule(rule)), rule);
		}),
		{ numRuns: 2_000 },
	);
});

test("whatever text is given, it is a rule or a RuleError", () => {
	const soup = fc
		.array(
			fc.constantFrom(
				..."and or not in like is null ( ) , = != < <= > >= 'a' 'a%' '' node_id status tag.a module.M tag_key tag_value create_time '2026-01-29T08:00:00.000Z' 'ONLINE' ' \" 中 🚀".split(
					" ",
				),
			),
			{ maxLength: 30 },
		)
		.map((words) => words.join(" "));
	const garbage = fc.oneof(
		fc.string({ unit: "binary", maxLength: 200 }),
		fc.string({ maxLength: 200 }),
		soup,
		ruleArb
			.map(printRule)
			.chain((text) =>
				fc
					.tuple(fc.nat(text.length), fc.nat(text.length))
					.map(([a, b]) => text.slice(0, a) + text.slice(b)),
			),
	);
	let read = 0;
	fc.assert(
		fc.property(garbage, (text) => {
			let rule: Rule;
			try {
				rule = parseRule(text);
			} catch (error) {
				assert.ok(error instanceof RuleError, `${error}`);
				assert.ok(
					error.position >= 1 && error.position <= [...text].length + 1,
				);
				return;
			}
			read++;
			assert.deepEqual(parseRule(printRule(rule)), rule);
		}),
		{ numRuns: 4_000 },
	);
	assert.ok(read > 0, "no text was a rule");
});

// --- rules over devices -----------------------------------------------------------------

interface SomeDevice {
	name: string | null;
	nodeId: string;
	/** Index of another device, or undefined for one that connects by itself. */
	parent: number | undefined;
	product: number;
	frozen: boolean;
	online: boolean;
	reported: "ONLINE" | "OFFLINE" | null;
	firmware: string | null;
	software: string | null;
	createdAt: string;
	activeAt: string | null;
	groups: string[];
	tags: [string, string][];
	modules: [string, string][];
}

const productNames = ["[a]", "中%"];
const maybeText = fc.option(textArb);
const someDevice: fc.Arbitrary<SomeDevice> = record({
	name: maybeText,
	nodeId: textArb,
	parent: fc.option(fc.nat(4), { nil: undefined }),
	product: fc.nat(1),
	frozen: fc.boolean(),
	online: fc.boolean(),
	reported: fc.constantFrom("ONLINE", "OFFLINE", null),
	firmware: maybeText,
	software: maybeText,
	createdAt: timeArb,
	activeAt: fc.option(timeArb),
	groups: fc.uniqueArray(fc.constantFrom(...groupIds)),
	tags: fc.uniqueArray(fc.tuple(fc.constantFrom(...keys), emptyToo), {
		selector: ([key]) => key,
		maxLength: 3,
	}),
	modules: fc.uniqueArray(fc.tuple(fc.constantFrom(...names), textArb), {
		selector: ([name]) => name,
		maxLength: 2,
	}),
});
const fleet = fc.array(someDevice, {
	minLength: deviceIds.length,
	maxLength: deviceIds.length,
});

/** The first five connect by themselves, so that the others can be behind them. */
function parentOf(device: SomeDevice, index: number): string | null {
	return index < 5 || device.parent === undefined
		? null
		: (deviceIds[device.parent] ?? null);
}

function recordIdOf(index: number): string {
	return markers[index] ?? index.toString(16).padStart(24, "0");
}

function factsOf(
	devices: readonly SomeDevice[],
	index: number,
): DeviceFacts & { deviceId: string } {
	const device = devices[index];
	const deviceId = deviceIds[index];
	assert.ok(device && deviceId);
	const parent = parentOf(device, index);
	const link = parent === null ? index : deviceIds.indexOf(parent);
	return {
		deviceId,
		fields: {
			app_id: spaceId,
			device_id: deviceId,
			device_name: device.name,
			gateway_id: parent ?? deviceId,
			node_id: device.nodeId,
			node_type: parent === null ? "GATEWAY" : "ENDPOINT",
			product_id: productIds[device.product] ?? "",
			product_name: productNames[device.product] ?? "",
			status: statusOf({
				frozen: device.frozen ? 1 : 0,
				depth: parent === null ? 0 : 1,
				online: devices[link]?.online ? 1 : 0,
				reported_status: parent === null ? null : device.reported,
				active_at: device.activeAt,
			}),
			fw_version: device.firmware,
			sw_version: device.software,
			create_time: device.createdAt,
			active_time: device.activeAt,
			marker: recordIdOf(index),
		},
		groupIds: new Set(device.groups),
		tags: new Map(device.tags),
		modules: new Map(device.modules),
	};
}

async function fill(
	{ db }: Store,
	devices: readonly SomeDevice[],
): Promise<void> {
	const at = times[0] ?? "";
	const project = { project_id: "project", app_id: spaceId, created_at: at };
	await db
		.insertInto("accounts")
		.values({ account_id: "account", name: "account", created_at: at })
		.execute();
	await db
		.insertInto("projects")
		.values({
			project_id: "project",
			account_id: "account",
			name: "project",
			created_at: at,
		})
		.execute();
	await db
		.insertInto("resource_spaces")
		.values({ ...project, record_id: "1", name: "space", is_default: 1 })
		.execute();
	await db
		.insertInto("products")
		.values(
			productIds.map((product_id, index) => ({
				...project,
				product_key: `key-${index}`,
				product_id,
				name: productNames[index] ?? "",
				device_type: "",
				protocol_type: "MQTT",
				data_format: "json",
				manufacturer_name: null,
				industry: null,
				description: null,
				service_capabilities: "[]",
				module_form: "none" as const,
				download_form: "presigned" as const,
			})),
		)
		.execute();
	for (const [index, device] of devices.entries()) {
		const device_id = deviceIds[index] ?? "";
		const record_id = recordIdOf(index);
		const parent = parentOf(device, index);
		await db
			.insertInto("devices")
			.values({
				...project,
				device_id,
				record_id,
				product_key: `key-${device.product}`,
				node_id: device.nodeId,
				device_name: device.name,
				gateway_id: parent,
				depth: parent === null ? 0 : 1,
				link_id: parent ?? device_id,
				reported_status: parent === null ? null : device.reported,
				auth_type: "SECRET",
				secure_access: 1,
				timeout_seconds: 0,
				frozen: device.frozen ? 1 : 0,
				fw_version: device.firmware,
				sw_version: device.software,
				speaks_modules: 0,
				active_at: device.activeAt,
				created_at: device.createdAt,
				// What is left out has a default, or may be null.
			} as never)
			.execute();
		if (device.online)
			await db
				.insertInto("presence")
				.values({
					device_id,
					node_id: "node",
					connection_id: "connection",
					connected_at: at,
				})
				.execute();
		for (const group_id of device.groups)
			await db
				.insertInto("device_group_members")
				.values({ group_id, device_record_id: record_id, device_id })
				.execute();
		for (const [tag_key, tag_value] of device.tags)
			await db
				.insertInto("device_tags")
				.values({ device_id, tag_key, tag_value })
				.execute();
		for (const [module_name, module_version] of device.modules)
			await db
				.insertInto("device_modules")
				.values({ device_id, module_name, module_version, reported_at: at })
				.execute();
	}
}

forEachEngine((engine) => {
	describe("in the store", () => {
		let fresh: FreshStore;
		let store: Store;
		let facts: (DeviceFacts & { deviceId: string })[];
		let seed: number;

		before(async () => {
			fresh = await engine.fresh();
			store = await openStore(readConfig(fresh.env).database);
			seed = Math.floor(Math.random() * 2 ** 31);
			const [devices = []] = fc.sample(fleet, { seed, numRuns: 1 });
			await fill(store, devices);
			facts = devices.map((_, index) => factsOf(devices, index));
		});
		after(async () => {
			await store?.[Symbol.asyncDispose]();
			await fresh?.dispose();
		});

		const found = async (rule: Rule) => {
			const rows = await store.db
				.selectFrom("devices")
				.select("device_id")
				.where(ruleCondition(store.db, rule, spaceId))
				.execute();
			return rows.map((row) => row.device_id).sort();
		};
		const fitting = (rule: Rule) =>
			facts
				.filter((device) => deviceFits(rule, device))
				.map(({ deviceId }) => deviceId)
				.sort();

		test("SQL finds the devices that fit", async () => {
			await fc.assert(
				fc.asyncProperty(ruleArb, async (rule) => {
					const text = `${printRule(rule)} (devices of seed ${seed})`;
					assert.deepEqual(await found(rule), fitting(rule), text);
				}),
				{ numRuns: 500 },
			);
		});

		test("a denial finds exactly the others", async () => {
			await fc.assert(
				fc.asyncProperty(ruleArb, async (rule) => {
					const all = [
						...(await found(rule)),
						...(await found({ kind: "not", rule })),
					];
					assert.deepEqual(all.sort(), [...deviceIds].sort(), printRule(rule));
				}),
				{ numRuns: 200 },
			);
		});

		test("what a rule compares with is data, whatever it looks like", async () => {
			const evil = "x'' or 1=1; drop table devices; --";
			for (const rule of [
				`device_name = '${evil}'`,
				`device_name like '%${evil}%'`,
				`node_id in ('${evil}')`,
				`tag.a = '${evil}'`,
				`module.MCU = '${evil}'`,
				`product_id = '${evil}'`,
				`group_id = '${evil}'`,
			])
				assert.deepEqual(await found(parseRule(rule)), [], rule);
			assert.equal((await found(parseRule("app_id = 'space'"))).length, 40);
		});

		test("the longest rules are decided", async () => {
			const many = (part: (index: number) => string, between: string) =>
				Array.from({ length: RULE_CONDITION_LIMIT }, (_, i) => part(i)).join(
					between,
				);
			for (const text of [
				many((index) => `module.M='${index}'`, " or "),
				many((index) => `tag.${index} is null`, " and "),
				many((index) => `tag_value != '${index}'`, " or "),
				many(() => "not node_id='1'", " and "),
				`node_id in (${Array.from({ length: 990 }, () => "'a'").join(",")})`,
				`device_name like '${"%a".repeat(10)}'`,
				`${"(".repeat(29)}node_id='a'${" or node_id='b')".repeat(29)}`,
			]) {
				const rule = parseRule(text);
				assert.deepEqual(await found(rule), fitting(rule));
			}
		});
	});
});
