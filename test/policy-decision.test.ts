/** What policies come to: operators, resources, wildcards, Deny over Allow, open questions. */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { AccessLevel } from "../server/access/permissions.ts";
import { operatorNames } from "../server/policy-language/policy-conditions.ts";
import {
	compileGrants,
	type Decision,
	decide,
	type GrantedPolicy,
	type Question,
	type SpaceFacts,
} from "../server/policy-language/policy-decision.ts";
import { readPolicy } from "../server/policy-language/policy-document.ts";
import { systemPolicies } from "../server/policy-language/system-policies.ts";

const APP = "61f7e74d036aca5be29e1ed4";
const OTHER = "71f7e74d036aca5be29e1ed4";
const space: SpaceFacts = {
	appId: APP,
	enterpriseProjectId: "0",
	tags: {
		stage: "prod",
		size: "12",
		until: "2026-06-01",
		open: "true",
		from: "10.0.0.9",
	},
};
const question: Question = {
	action: "iotda:otamodules:create",
	level: "Write",
	projectId: "project-1",
	accountId: "account-1",
	region: "cn-north-4",
	instanceId: "instance-1",
	instanceEnterpriseProjectId: "0",
	space,
	context: {
		userName: "alice",
		userId: "user-1",
		accountName: "acme",
		sourceIp: "10.1.2.3",
		now: new Date("2026-01-29T08:00:00Z"),
		secureTransport: true,
		requestTags: { owner: "Alice", team: "red" },
	},
};

type Statement = Record<string, unknown>;

function policy(
	Statement: Statement[],
	more: Partial<GrantedPolicy> = {},
	Version = "5.0",
): GrantedPolicy {
	return {
		policyId: "policy-1",
		policyName: "Policy",
		document: readPolicy({ Version, Statement }),
		within: { kind: "all" },
		...more,
	};
}

function because(
	statements: Statement[],
	asked: Partial<Question> = {},
	version?: string,
): Decision["because"] {
	return decide(compileGrants([policy(statements, {}, version)]), {
		...question,
		...asked,
	}).because;
}

const allowed = (...rest: Parameters<typeof because>) =>
	because(...rest) === "allowed";
const allow = (more: Statement = {}) => ({
	Effect: "Allow",
	Action: "*",
	...more,
});
const deny = (more: Statement = {}) => ({
	Effect: "Deny",
	Action: "*",
	...more,
});

// --- conditions ---------------------------------------------------------------------

function holds(
	operator: string,
	key: string,
	values: unknown,
	context: Partial<Question["context"]> = {},
	asked: Partial<Question> = {},
): boolean {
	return allowed([allow({ Condition: { [operator]: { [key]: values } } })], {
		...asked,
		context: { ...question.context, ...context },
	});
}

/** Operator, key, values, and whether that is so of the question above. */
const comparisons: [string, string, unknown, boolean][] = [
	["StringEquals", "g:UserName", "alice", true],
	["StringEquals", "g:UserName", ["bob", "alice"], true],
	["StringEquals", "g:UserName", "Alice", false],
	["StringEquals", "g:UserName", "al*", false],
	["StringEquals", "g:ResourceTag/size", "12", true],
	["StringNotEquals", "g:UserName", "bob", true],
	["StringNotEquals", "g:UserName", ["bob", "alice"], false],
	["StringEqualsIgnoreCase", "g:UserName", "ALICE", true],
	["StringEqualsIgnoreCase", "g:UserName", "ALICES", false],
	["StringNotEqualsIgnoreCase", "g:UserName", "ALICE", false],
	["StringNotEqualsIgnoreCase", "g:UserName", "BOB", true],
	["StringMatch", "g:UserName", "al*e", true],
	["StringMatch", "g:UserName", "a?ice", true],
	["StringMatch", "g:UserName", "A*", false],
	["StringMatch", "g:UserName", "alice?", false],
	["StringNotMatch", "g:UserName", ["b*", "*ice"], false],
	["StringNotMatch", "g:UserName", ["b*", "*x"], true],
	["StringStartWith", "g:UserName", "ali", true],
	["StringStartWith", "g:UserName", "*ice", false],
	["StringNotStartWith", "g:UserName", "ali", false],
	["StringNotStartWith", "g:UserName", "bo", true],
	["StringEndWith", "g:UserName", "ice", true],
	["StringEndWith", "g:UserName", "ali", false],
	["StringNotEndWith", "g:UserName", "ice", false],
	["StringNotEndWith", "g:UserName", "ali", true],
	["NumberEquals", "g:ResourceTag/size", 12, true],
	["NumberEquals", "g:ResourceTag/size", "12.0", true],
	["NumberEquals", "g:ResourceTag/size", [11, 13], false],
	["NumberNotEquals", "g:ResourceTag/size", 12, false],
	["NumberNotEquals", "g:ResourceTag/size", 13, true],
	["NumberNotEquals", "g:ResourceTag/stage", 13, true],
	["NumberLessThan", "g:ResourceTag/size", 12, false],
	["NumberLessThan", "g:ResourceTag/size", 12.5, true],
	["NumberLessThan", "g:ResourceTag/stage", 12.5, false],
	["NumberLessThanEquals", "g:ResourceTag/size", 12, true],
	["NumberLessThanEquals", "g:ResourceTag/size", 11, false],
	["NumberGreaterThan", "g:ResourceTag/size", 9, true],
	["NumberGreaterThan", "g:ResourceTag/size", 12, false],
	["NumberGreaterThanEquals", "g:ResourceTag/size", 12, true],
	["NumberGreaterThanEquals", "g:ResourceTag/size", 13, false],
	["DateEquals", "g:CurrentTime", "2026-01-29T16:00:00+08:00", true],
	["DateEquals", "g:CurrentTime", "20260129T080000Z", true],
	["DateEquals", "g:CurrentTime", 1_769_673_600, true],
	["DateEquals", "g:CurrentTime", "2026-01-29", false],
	["DateNotEquals", "g:CurrentTime", "2026-01-29T08:00:00.000Z", false],
	["DateNotEquals", "g:CurrentTime", "2026-01-29", true],
	["DateLessThan", "g:CurrentTime", "2026-01-29T08:00:00Z", false],
	["DateLessThan", "g:CurrentTime", "2026-01-29T08:00:00.001Z", true],
	["DateLessThan", "g:CurrentTime", "2026-01-29T04:31:00-03:30", true],
	["DateLessThanEquals", "g:CurrentTime", "1769673600", true],
	["DateLessThanEquals", "g:CurrentTime", "2026-01-29", false],
	["DateGreaterThan", "g:CurrentTime", "2026-01-29", true],
	["DateGreaterThan", "g:CurrentTime", "2026-01-29T08:00:00Z", false],
	["DateGreaterThanEquals", "g:CurrentTime", "2026-01-29T08:00Z", true],
	["DateGreaterThanEquals", "g:CurrentTime", "2026-01-30", false],
	["DateGreaterThan", "g:ResourceTag/until", "2026-05-31T23:59:59Z", true],
	["DateGreaterThan", "g:ResourceTag/stage", "2026-05-31T23:59:59Z", false],
	["Bool", "g:SecureTransport", true, true],
	["Bool", "g:SecureTransport", "false", false],
	["Bool", "g:MFAPresent", "true", false],
	["Bool", "g:MFAPresent", [false], true],
	["Bool", "g:ResourceTag/open", true, true],
	["Bool", "g:ResourceTag/stage", [true, false], false],
	["IpAddress", "g:SourceIp", "10.0.0.0/8", true],
	["IpAddress", "g:SourceIp", ["192.0.2.0/24", "10.1.2.3"], true],
	["IpAddress", "g:SourceIp", "10.1.2.4/31", false],
	["IpAddress", "g:SourceIp", "::ffff:10.1.0.0/112", true],
	["IpAddress", "g:SourceIp", "0.0.0.0/0", true],
	["IpAddress", "g:SourceIp", "2001:db8::/32", false],
	["IpAddress", "g:ResourceTag/from", "10.0.0.0/24", true],
	["IpAddress", "g:ResourceTag/stage", "0.0.0.0/0", false],
	["NotIpAddress", "g:SourceIp", "10.0.0.0/8", false],
	["NotIpAddress", "g:SourceIp", ["192.0.2.0/24", "2001:db8::/32"], true],
	["Null", "g:ResourceTag/stage", false, true],
	["Null", "g:ResourceTag/stage", "true", false],
	["Null", "g:ResourceTag/none", true, true],
	["Null", "g:ResourceTag/none", ["false"], false],
	["Null", "g:ResourceTag/none", [true, false], true],
	["StringEquals", "g:UserId", "user-1", true],
	["StringEquals", "g:DomainName", "acme", true],
	["StringEquals", "g:EnterpriseProjectId", "0", true],
	["StringEquals", "G:enterpriseprojectID", "1", false],
	["StringEquals", "g:RequestTag/owner", "Alice", true],
	["StringEquals", "g:REQUESTTAG/owner", "Alice", true],
];

test("each operator compares as its name says", () => {
	for (const [operator, key, values, expected] of comparisons) {
		const what = `${operator} ${key} ${JSON.stringify(values)}`;
		assert.equal(holds(operator, key, values), expected, what);
		// All keys are there, but for those of Null: IfExists changes nothing.
		if (operator !== "Null")
			assert.equal(
				holds(`${operator}IfExists`, key, values),
				expected,
				`with IfExists: ${what}`,
			);
	}
});

test("the table above knows every operator", () => {
	assert.deepEqual(
		new Set(comparisons.map(([operator]) => operator)),
		new Set(operatorNames),
	);
});

/** A value that each kind of operator takes. */
const sample = (operator: string): unknown =>
	/^(Bool|Null)/.test(operator)
		? true
		: operator.includes("Ip")
			? "10.0.0.0/8"
			: /^(Number|Date)/.test(operator)
				? 12
				: "x";

test("without the key only negated operators hold, and with IfExists all", () => {
	for (const operator of operatorNames.filter((name) => name !== "Null")) {
		const of = (name: string) =>
			holds(name, "g:RequestTag/none", sample(operator));
		const negated = operator.includes("Not");
		assert.equal(of(operator), negated, operator);
		assert.equal(of(`${operator}IfExists`), true, operator);
		assert.equal(of(`ForAnyValue:${operator}`), false, operator);
		assert.equal(of(`ForAnyValue:${operator}IfExists`), true, operator);
		assert.equal(of(`ForAllValues:${operator}`), true, operator);
		assert.equal(of(`ForAllValues:${operator}IfExists`), true, operator);
	}
});

test("ForAnyValue wants one value of the request to hold, ForAllValues each", () => {
	const table: [string, unknown, boolean][] = [
		["ForAnyValue:StringEquals", ["owner"], true],
		["ForAnyValue:StringEquals", ["x", "y"], false],
		["ForAnyValue:StringNotEquals", ["owner"], true],
		["ForAnyValue:StringNotEquals", ["owner", "team"], false],
		["ForAllValues:StringEquals", ["owner"], false],
		["ForAllValues:StringEquals", ["owner", "team", "x"], true],
		["ForAllValues:StringNotEquals", ["owner"], false],
		["ForAllValues:StringNotEquals", ["x"], true],
		["ForAllValues:StringMatch", ["*e*"], true],
		["ForAnyValue:StringStartWithIfExists", ["te"], true],
		["ForAllValues:StringStartWithIfExists", ["te"], false],
		["Null", [false], true],
	];
	for (const [operator, values, expected] of table)
		assert.equal(holds(operator, "g:TagKeys", values), expected, operator);
	// The keys of no tags are no values.
	for (const requestTags of [{}, undefined]) {
		const { requestTags: _, ...context } = question.context;
		const none = (operator: string, values: unknown) =>
			allowed([allow({ Condition: { [operator]: { "g:TagKeys": values } } })], {
				context: { ...context, ...(requestTags ? { requestTags } : {}) },
			});
		assert.equal(none("ForAnyValue:StringNotEquals", "x"), false);
		assert.equal(none("ForAllValues:StringEquals", "x"), true);
		assert.equal(none("Null", true), true);
		assert.equal(none("ForAllValues:Null", false), false);
	}
	// One value is a set of one.
	assert.equal(holds("ForAnyValue:StringEquals", "g:UserName", "alice"), true);
	assert.equal(holds("ForAllValues:StringEquals", "g:UserName", "bob"), false);
});

test("an IPv4 address is the same in IPv6's clothes, a zone does not count, and no address is absent", () => {
	const from = (sourceIp: string, operator: string, range: string) =>
		holds(operator, "g:SourceIp", range, { sourceIp });
	assert.equal(from("::ffff:10.1.2.3", "IpAddress", "10.0.0.0/8"), true);
	assert.equal(from("::ffff:a01:203", "IpAddress", "10.0.0.0/8"), true);
	assert.equal(from("::ffff:11.1.2.3", "IpAddress", "10.0.0.0/8"), false);
	assert.equal(from("2001:db8::1", "IpAddress", "2001:DB8:0::/32"), true);
	assert.equal(from("fe80::1%eth0", "IpAddress", "fe80::/10"), true);
	assert.equal(from("", "IpAddress", "0.0.0.0/0"), false);
	assert.equal(from("", "NotIpAddress", "0.0.0.0/0"), true);
	assert.equal(from("", "Null", "true"), true);
});

test("an address that cannot be read is held against the caller, whatever is asked of it", () => {
	for (const sourceIp of ["nonsense", "unknown", "10.1.2.3:443", "010.1.2.3"])
		for (const operator of [
			"IpAddress",
			"NotIpAddress",
			"IpAddressIfExists",
			"ForAllValues:NotIpAddress",
		]) {
			const Condition = { [operator]: { "g:SourceIp": "10.0.0.0/8" } };
			const asked = { context: { ...question.context, sourceIp } };
			const named = `${operator} ${sourceIp}`;
			assert.equal(
				because([allow({ Condition })], asked),
				"no_statement",
				named,
			);
			assert.equal(
				because([allow(), deny({ Condition })], asked),
				"denied",
				named,
			);
		}
	assert.equal(
		holds("Null", "g:SourceIp", "false", { sourceIp: "nonsense" }),
		true,
	);
});

test("several keys and several operators must all hold", () => {
	const both = (userName: string, stage: string) =>
		allowed([
			allow({
				Condition: {
					StringEquals: {
						"g:UserName": userName,
						"g:ResourceTag/stage": stage,
					},
					Bool: { "g:SecureTransport": true },
				},
			}),
		]);
	assert.equal(both("alice", "prod"), true);
	assert.equal(both("alice", "test"), false);
	assert.equal(both("bob", "prod"), false);
	assert.equal(
		allowed([
			allow({
				Condition: {
					StringEquals: { "g:UserName": "alice" },
					Bool: { "g:SecureTransport": false },
				},
			}),
		]),
		false,
	);
	assert.equal(allowed([allow({ Condition: {} })]), true);
});

test("a tag is only what was set as a tag, letter case and all", () => {
	assert.equal(holds("StringEquals", "g:RequestTag/Owner", "Alice"), false);
	assert.equal(holds("StringEquals", "g:ResourceTag/owner", "Alice"), false);
	assert.equal(holds("Null", "g:ResourceTag/constructor", true), true);
	assert.equal(holds("Null", "g:RequestTag/toString", true), true);
	assert.equal(
		holds("Null", "g:ResourceTag/stage", true, {}, { space: "instance" }),
		true,
	);
});

// --- actions ------------------------------------------------------------------------

test("actions are compared without letter case, star and question mark stand for characters", () => {
	const table: [string | string[], boolean][] = [
		["iotda:otamodules:create", true],
		["IOTDA:OtaModules:CREATE", true],
		["iotda:otamodules:creat", false],
		["iotda:otamodules:creat?", true],
		["iotda:otamodules:create?", false],
		["iotda:otamodules:create*", true],
		["iotda:*:*", true],
		["*:*:*", true],
		["*", true],
		["iotda:ota*:c*e", true],
		["io*:*modules:*", true],
		["iam:*:*", false],
		["iotda:otapackages:*", false],
		["?????:??????????:??????", true],
		["????:??????????:??????", false],
		[["iam:*:*", "iotda:otamodules:create"], true],
		[["iam:*:*", "cts:*:*"], false],
	];
	for (const [Action, expected] of table) {
		assert.equal(allowed([allow({ Action })]), expected, `${Action}`);
		assert.equal(
			allowed([{ Effect: "Allow", NotAction: Action }]),
			!expected,
			`not ${Action}`,
		);
		assert.equal(
			because([allow(), { Effect: "Deny", NotAction: Action }]),
			expected ? "allowed" : "denied",
			`deny all but ${Action}`,
		);
	}
	assert.equal(
		allowed([allow({ Action: "iotda:otamodules:create" })], {
			action: "IoTDA:otaModules:Create",
		}),
		true,
	);
});

// --- resources ----------------------------------------------------------------------

test("Resource covers the space concerned or the instance around it, in both versions", () => {
	/** Of a request on the space, on none, on one not known yet. */
	const table: [string | string[], boolean, boolean, boolean][] = [
		["*", true, true, true],
		[`iotda:*:*:app:${APP}`, true, false, true],
		[`IoTDA:*:*:App:${APP}`, true, false, true],
		[`iotda:*:*:app:${APP.toUpperCase()}`, false, false, true],
		[`iotda:*:*:app:${OTHER}`, false, false, true],
		[["iotda:*:*:app:x", `iotda:*:*:app:${APP}`], true, false, true],
		["iotda:*:*:app:*", true, false, true],
		["iotda:*:*:app:61f7*", true, false, true],
		["iotda:*:*:app:71f7*", false, false, true],
		[`iotda:*:*:app:?${APP.slice(1)}`, true, false, true],
		[`iotda:*:*:app:?${APP}`, false, false, true],
		[`iotda:::app:${APP}`, true, false, true],
		[`iotda:cn-north-4:account-1:app:${APP}`, true, false, true],
		[`iotda:cn-*:account-?:app:${APP}`, true, false, true],
		[`iotda:cn-south-1:*:app:${APP}`, false, false, false],
		[`iotda:CN-north-4:*:app:${APP}`, false, false, false],
		[`iotda:*:account-2:app:${APP}`, false, false, false],
		["iotda:*:*:instance:instance-1", true, true, true],
		["iotda:*:*:instance:*", true, true, true],
		["iotda:*:*:instance:instance-2", false, false, false],
		["iotda:*:*:*:*", true, true, true],
		[`*:*:*:*:${APP}`, true, false, true],
		["*:*:*:*:*", true, true, true],
		["iot?a:*:*:a*:*", true, false, true],
		[["iotda:*:*:app:a", "*"], true, true, true],
	];
	for (const [Resource, onSpace, onInstance, onAny] of table) {
		for (const version of ["1.0", "1.1", "5.0"]) {
			const of = (asked: Question["space"]) =>
				allowed([allow({ Resource })], { space: asked }, version);
			assert.equal(of(space), onSpace, `space: ${Resource}`);
			assert.equal(of("instance"), onInstance, `instance: ${Resource}`);
			assert.equal(of("any"), onAny, `any: ${Resource}`);
		}
	}
});

test("NotResource covers whatever is not listed, of the space or, without one, of the instance", () => {
	const table: [string | string[], boolean, boolean, boolean][] = [
		["*", false, false, false],
		[`iotda:*:*:app:${APP}`, false, true, true],
		[`iotda:*:*:app:${OTHER}`, true, true, true],
		[["iotda:*:*:app:a", `iotda:*:*:app:${APP}`], false, true, true],
		["iotda:*:*:app:*", false, true, false],
		["iotda:*:*:instance:*", true, false, true],
		["iotda:*:*:*:*", false, false, false],
	];
	for (const [NotResource, onSpace, onInstance, onAny] of table) {
		const of = (asked: Question["space"]) =>
			allowed([allow({ NotResource })], { space: asked });
		assert.equal(of(space), onSpace, `space: ${NotResource}`);
		assert.equal(of("instance"), onInstance, `instance: ${NotResource}`);
		assert.equal(of("any"), onAny, `any: ${NotResource}`);
	}
});

test("a Deny on a space denies that space, one on the instance everything", () => {
	const other: SpaceFacts = { ...space, appId: OTHER };
	/** Denied on the space, on another one, on none, and on one not known yet. */
	const table: [Statement, boolean, boolean, boolean, boolean][] = [
		[{}, true, true, true, true],
		[{ Resource: `iotda:*:*:app:${APP}` }, true, false, false, false],
		[{ Resource: "iotda:*:*:app:61*" }, true, false, false, false],
		[{ Resource: "iotda:*:*:app:*" }, true, true, false, true],
		[{ Resource: "iotda:*:*:instance:*" }, true, true, true, true],
		[{ Resource: "iotda:*:*:instance:instance-2" }, false, false, false, false],
		[{ NotResource: `iotda:*:*:app:${APP}` }, false, true, true, false],
		[{ NotResource: "iotda:*:*:app:*" }, false, false, true, false],
		[{ NotResource: "iotda:*:*:instance:*" }, true, true, false, true],
		[{ Action: "iotda:otapackages:*" }, false, false, false, false],
		[
			{ Condition: { Bool: { "g:SecureTransport": true } } },
			true,
			true,
			true,
			true,
		],
		[
			{ Condition: { StringEquals: { "g:ResourceTag/stage": "prod" } } },
			true,
			true,
			false,
			false,
		],
		[
			{ Condition: { StringEquals: { "g:EnterpriseProjectId": "0" } } },
			true,
			true,
			true,
			false,
		],
		[
			{ Condition: { StringEquals: { "g:EnterpriseProjectId": "1" } } },
			false,
			false,
			false,
			false,
		],
		[
			{
				Resource: `iotda:*:*:app:${APP}`,
				Condition: { StringEquals: { "g:UserName": "bob" } },
			},
			false,
			false,
			false,
			false,
		],
	];
	for (const [more, onSpace, onOther, onInstance, onAny] of table) {
		const what = JSON.stringify(more);
		const of = (asked: Question["space"]) =>
			because([allow(), deny(more)], { space: asked });
		const expected = (denied: boolean) => (denied ? "denied" : "allowed");
		assert.equal(of(space), expected(onSpace), `space: ${what}`);
		assert.equal(of(other), expected(onOther), `other: ${what}`);
		assert.equal(of("instance"), expected(onInstance), `instance: ${what}`);
		assert.equal(of("any"), expected(onAny), `any: ${what}`);
	}
});

// --- what is not known yet ----------------------------------------------------------

test("what depends on a space or on tags not known yet counts in the caller's favour", () => {
	const { requestTags: _, ...context } = question.context;
	const open = { ...context, requestTags: "unknown" } as const;
	const condition = (operator: string, key: string) => ({
		Condition: { [operator]: { [key]: "x" } },
	});
	/** What is not known, and the question in which it is not. */
	const table: [string, Partial<Question>][] = [
		["g:ResourceTag/stage", { space: "any" }],
		["g:EnterpriseProjectId", { space: "any" }],
		["g:RequestTag/owner", { context: open }],
		["g:RequestTag/owner", { space: "any", context }],
		["g:RequestTag/owner", { space: "instance", context: open }],
	];
	for (const [key, asked] of table) {
		for (const operator of [
			"StringEquals",
			"StringNotEquals",
			"ForAllValues:StringEquals",
		]) {
			assert.equal(
				because([allow(condition(operator, key))], asked),
				"allowed",
			);
			assert.equal(
				because([allow(), deny(condition(operator, key))], asked),
				"allowed",
			);
		}
	}
	const keys = {
		Condition: { "ForAnyValue:StringEquals": { "g:TagKeys": "x" } },
	};
	assert.equal(because([allow(keys)], { context: open }), "allowed");
	assert.equal(because([allow(keys)], { context }), "no_statement");
	const isNull = { Condition: { Null: { "g:RequestTag/owner": false } } };
	assert.equal(because([allow(isNull)], { context: open }), "allowed");
	// Whatever the space turns out to be, this is false, or that certain.
	assert.equal(
		because(
			[
				allow({
					Condition: {
						StringEquals: { "g:ResourceTag/stage": "x", "g:UserName": "bob" },
					},
				}),
			],
			{ space: "any" },
		),
		"no_statement",
	);
	assert.equal(
		because([allow(), deny(condition("StringNotEquals", "g:UserName"))], {
			space: "any",
		}),
		"denied",
	);
});

// --- grants -------------------------------------------------------------------------

test("a grant reaches as far as it was given", () => {
	const of = (within: GrantedPolicy["within"], asked: Partial<Question> = {}) =>
		decide(compileGrants([policy([allow()], { within })]), {
			...question,
			...asked,
		}).allowed;
	const inProject = { kind: "project", projectId: "project-1" } as const;
	assert.equal(of(inProject), true);
	assert.equal(of(inProject, { projectId: "project-2" }), false);
	assert.equal(of(inProject, { projectId: "" }), false);
	assert.equal(of(inProject, { space: "any" }), true);
	const inEnterprise = {
		kind: "enterprise_project",
		enterpriseProjectId: "e1",
	} as const;
	const moved: SpaceFacts = { ...space, enterpriseProjectId: "e1" };
	assert.equal(of(inEnterprise), false);
	assert.equal(of(inEnterprise, { space: moved }), true);
	assert.equal(of(inEnterprise, { space: "any" }), true);
	assert.equal(of(inEnterprise, { space: "instance" }), false);
	// What is in no resource space is in no enterprise project either.
	assert.equal(
		of(inEnterprise, { space: "instance", instanceEnterpriseProjectId: "e1" }),
		false,
	);
	assert.equal(of(inProject, { space: "missing" }), true);
	assert.equal(of(inEnterprise, { space: "missing" }), false);
	// The same of a Deny: not certain as long as the space is not known.
	const denying = (asked: Partial<Question>) =>
		decide(
			compileGrants([
				policy([allow()]),
				policy([deny()], { within: inEnterprise }),
			]),
			{ ...question, ...asked },
		).because;
	assert.equal(denying({ space: moved }), "denied");
	assert.equal(denying({}), "allowed");
	assert.equal(denying({ space: "any" }), "allowed");
	// Of one that is missing: like one that is denied, so that nobody can tell them apart.
	assert.equal(denying({ space: "missing" }), "denied");
});

test("a Deny wins over every Allow, in any policy of either version, and is named", () => {
	const grants = [
		policy([allow()], { policyId: "all", policyName: "All" }, "1.1"),
		policy(
			[
				allow({ Action: "iotda:otamodules:create" }),
				deny({ Action: "iotda:otapackages:*", Sid: "packages" }),
				deny({ Action: "iotda:*:create", Sid: "nothing new" }),
			],
			{ policyId: "limits", policyName: "Limits", grantId: "grant-7" },
		),
	];
	for (const order of [grants, grants.toReversed()])
		assert.deepEqual(decide(compileGrants(order), question), {
			allowed: false,
			because: "denied",
			statement: {
				policyId: "limits",
				policyName: "Limits",
				index: 2,
				sid: "nothing new",
				grantId: "grant-7",
			},
		});
	assert.deepEqual(
		decide(compileGrants(grants), {
			...question,
			action: "iotda:otamodules:query",
		}),
		{
			allowed: true,
			because: "allowed",
			statement: { policyId: "all", policyName: "All", index: 0 },
		},
	);
});

test("without a statement that allows it, everything is refused", () => {
	assert.deepEqual(decide(compileGrants([]), question), {
		allowed: false,
		because: "no_statement",
	});
	assert.equal(because([deny({ Action: "iam:*:*" })]), "no_statement");
	assert.equal(
		because([allow({ Action: "iotda:otamodules:query" })]),
		"no_statement",
	);
});

test("the vendor's own policies decide what their pages say", () => {
	const one: Statement[] = [
		{
			Sid: "modules",
			Effect: "Allow",
			Action: ["iotda:otamodules:create", "iotda:otamodules:query*"],
			Resource: [`iotda:*:*:app:${APP}`],
			Condition: { StringEquals: { "g:EnterpriseProjectId": ["0"] } },
		},
	];
	assert.equal(allowed(one), true);
	assert.equal(allowed(one, { action: "iotda:otamodules:queryList" }), true);
	assert.equal(allowed(one, { action: "iotda:otamodules:delete" }), false);
	assert.equal(allowed(one, { space: { ...space, appId: OTHER } }), false);
	assert.equal(
		allowed(one, { space: { ...space, enterpriseProjectId: "e1" } }),
		false,
	);
	const old: Statement[] = [
		{
			Effect: "Allow",
			Action: ["iotda:*:*"],
			Resource: ["IoTDA:*:*:app:*", "IoTDA:*:*:instance:instanceId1"],
		},
	];
	assert.equal(allowed(old, {}, "1.1"), true);
	assert.equal(allowed(old, { space: "instance" }, "1.1"), false);
	assert.equal(
		allowed(old, { space: "instance", instanceId: "instanceId1" }, "1.1"),
		true,
	);
	assert.equal(allowed(old, { action: "iam:users:list" }, "1.1"), false);
});

test("many actions, invented ones too, do not confuse what is remembered of them", () => {
	const compiled = compileGrants([
		policy([allow({ Action: "iotda:*:*1" }), deny({ Action: "iotda:*:*11" })]),
	]);
	for (let round = 0; round < 2; round++) {
		for (let i = 0; i < 1_000; i++) {
			const { because } = decide(compiled, {
				...question,
				action: `iotda:a:${i}`,
			});
			const text = String(i);
			assert.equal(
				because,
				text.endsWith("11")
					? "denied"
					: text.endsWith("1")
						? "allowed"
						: "no_statement",
			);
		}
	}
	assert.equal(
		decide(compiled, { ...question, action: `iotda:${"a".repeat(100_000)}:1` })
			.because,
		"allowed",
	);
});

test("patterns of nothing but wildcards are matched in reasonable time", () => {
	// One that tries all ways to spread the stars would not come back from these.
	const statements = [];
	for (const piece of ["*a", "?*a", "*a?", "*aa"]) {
		const pattern = piece.repeat(1_000 / piece.length);
		statements.push(
			deny({
				Action: `iotda:${pattern}:b`,
				Resource: `iotda:${pattern}b:*:app:*`,
			}),
			deny({
				Condition: {
					StringMatch: { "g:UserName": [`${pattern}b`, `${pattern}?b`] },
				},
			}),
		);
	}
	assert.equal(
		because([allow(), ...statements], {
			action: `iotda:${"a".repeat(20_000)}:c`,
			region: "a".repeat(20_000),
			context: { ...question.context, userName: "a".repeat(20_000) },
		}),
		"allowed",
	);
});

// --- system policies ----------------------------------------------------------------

const levels: AccessLevel[] = [
	"List",
	"Read",
	"Write",
	"Tagging",
	"Permission_management",
];

function systemAllows(
	policyId: string,
	action: string,
	level: AccessLevel,
): boolean {
	const document =
		systemPolicies.find((one) => one.policyId === policyId) ??
		assert.fail(policyId);
	return decide(
		compileGrants([
			{
				policyId,
				policyName: document.name,
				document,
				within: { kind: "all" },
			},
		]),
		{ ...question, action, level },
	).allowed;
}

test("the system policies allow services and levels as their names say", () => {
	const every = levels.join();
	const reading = "List,Read";
	const table: [string, string, string][] = [
		["te_admin", "iotda:devices:delete", every],
		["te_admin", "otaru:objects:put", every],
		["te_admin", "cts:traces:list", every],
		["te_admin", "iotda:apps:setAccess", ""],
		["te_admin", "iam:users:list", ""],
		["te_admin", "IAM:users:list", ""],
		["te_admin", "sts:callerIdentity:query", ""],
		["readonly", "iotda:devices:delete", reading],
		["readonly", "cts:traces:list", reading],
		["readonly", "sts:callerIdentity:query", reading],
		["readonly", "iam:users:list", ""],
		["iotda_full_access", "iotda:devices:delete", "List,Read,Write,Tagging"],
		["iotda_full_access", "otaru:objects:put", "List,Read,Write,Tagging"],
		["iotda_full_access", "otaru:other:put", ""],
		["iotda_full_access", "cts:traces:list", ""],
		["iotda_full_access", "iam:users:list", ""],
		["iotda_read_only_access", "iotda:devices:query", reading],
		["iotda_read_only_access", "otaru:objects:list", reading],
		["iotda_read_only_access", "cts:traces:list", ""],
		["iotda_read_only_access", "iam:users:list", ""],
	];
	for (const [policyId, action, expected] of table)
		assert.equal(
			levels.filter((level) => systemAllows(policyId, action, level)).join(),
			expected,
			`${policyId} ${action}`,
		);
});

test("the document shown of a system policy never allows more than the policy, on any route, and for IoTDA just as much", () => {
	const root = join(import.meta.dirname, "..");
	const routes = globSync("server/**/*routes.ts", { cwd: root }).flatMap(
		(file) => [
			...readFileSync(join(root, file), "utf8").matchAll(
				/action:\s*"([^"]+)",\s*level:\s*"(\w+)"/g,
			),
		],
	);
	assert.ok(routes.length > 40, `only ${routes.length} routes were found`);
	for (const { policyId, name, document } of systemPolicies) {
		const shown = compileGrants([
			{
				policyId,
				policyName: name,
				document: readPolicy(document),
				within: { kind: "all" },
			},
		]);
		for (const [, action = "", written = ""] of routes) {
			const level =
				levels.find((one) => one === written) ?? assert.fail(written);
			const itself = systemAllows(policyId, action, level);
			const { allowed } = decide(shown, { ...question, action, level });
			const what = `the document in system-policies.ts of ${name}: ${action} (${level})`;
			assert.ok(itself || !allowed, what);
			if (/^(iotda|otaru):/.test(action)) assert.equal(allowed, itself, what);
		}
	}
});
