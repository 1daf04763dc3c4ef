/** Policy documents: what is read, and how exactly a fault is pointed at. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
	conditionKeyNames,
	findOperator,
	operatorNames,
} from "../server/policy-language/policy-conditions.ts";
import {
	PolicyFault,
	readPolicy,
	STATEMENT_LIMIT,
} from "../server/policy-language/policy-document.ts";
import { systemPolicies } from "../server/policy-language/system-policies.ts";

const APP = "iotda:*:*:app:61f7e74d036aca5be29e1ed4";
const allow = { Effect: "Allow", Action: ["iotda:otamodules:create"] };
const document = (...Statement: unknown[]) => ({ Version: "5.0", Statement });
const withCondition = (Condition: unknown) => document({ ...allow, Condition });

function faultOf(read: unknown): PolicyFault {
	try {
		readPolicy(read);
	} catch (error) {
		assert.ok(error instanceof PolicyFault, `threw ${String(error)}`);
		return error;
	}
	throw new assert.AssertionError({
		message: `was read: ${JSON.stringify(read)}`,
	});
}

const long = "x".repeat(1_025);
const many = (count: number) => Array.from({ length: count }, (_, i) => `${i}`);

/** What is wrong, where that is, and a word of the rule. */
const faults: [string, unknown, string, RegExp][] = [
	["no document", null, "", /object/],
	["a text", "{}", "", /object/],
	["a list", [allow], "", /object/],
	["an empty object", {}, "/Version", /"5.0"/],
	["no version", { Statement: [allow] }, "/Version", /"1.1"/],
	[
		"a version as a number",
		{ Version: 5, Statement: [allow] },
		"/Version",
		/text/,
	],
	[
		"a version of others",
		{ Version: "2012-10-17", Statement: [allow] },
		"/Version",
		/"1.0"/,
	],
	[
		"a version with a blank",
		{ Version: "5.0 ", Statement: [allow] },
		"/Version",
		/must be/,
	],
	["no statement", { Version: "5.0" }, "/Statement", /list/],
	[
		"one statement without a list",
		{ Version: "5.0", Statement: allow },
		"/Statement",
		/list/,
	],
	["an empty list of statements", document(), "/Statement", /1 to 100/],
	[
		"too many statements",
		document(...Array(101).fill(allow)),
		"/Statement",
		/1 to 100/,
	],
	[
		"an unknown member of the document",
		{ ...document(allow), Id: "x" },
		"/Id",
		/Version, Statement/,
	],
	[
		"a member in lower case",
		{ Version: "5.0", statement: [allow] },
		"/statement",
		/not known/,
	],
	[
		"a member with a slash",
		{ ...document(allow), "a/b": 1 },
		"/a~1b",
		/not known/,
	],
	[
		"a member with a tilde",
		{ ...document(allow), "a~1b": 1 },
		"/a~01b",
		/not known/,
	],
	[
		"an empty name of a member",
		{ ...document(allow), "": 1 },
		"/",
		/not known/,
	],
	[
		"a prototype",
		JSON.parse('{"__proto__":{"Version":"5.0"},"Statement":[]}'),
		"/__proto__",
		/not known/,
	],
	["a statement that is null", document(null), "/Statement/0", /object/],
	[
		"a statement that is text",
		document(allow, "Allow"),
		"/Statement/1",
		/object/,
	],
	["a statement in a list", document([allow]), "/Statement/0", /object/],
	[
		"a misspelt Resource",
		document({ ...allow, Resourse: ["*"] }),
		"/Statement/0/Resourse",
		/Resource, NotResource/,
	],
	[
		"a misspelt Condition",
		document(allow, { ...allow, Conditions: {} }),
		"/Statement/1/Conditions",
		/Condition/,
	],
	[
		"a Principal",
		document({ ...allow, Principal: "*" }),
		"/Statement/0/Principal",
		/not known/,
	],
	[
		"an empty Sid",
		document({ ...allow, Sid: "" }),
		"/Statement/0/Sid",
		/1 to 128/,
	],
	[
		"a Sid that is too long",
		document({ ...allow, Sid: "x".repeat(129) }),
		"/Statement/0/Sid",
		/1 to 128/,
	],
	[
		"a Sid that is a number",
		document({ ...allow, Sid: 1 }),
		"/Statement/0/Sid",
		/text/,
	],
	[
		"a Sid that is null",
		document({ ...allow, Sid: null }),
		"/Statement/0/Sid",
		/text/,
	],
	["no effect", document({ Action: "*" }), "/Statement/0/Effect", /"Deny"/],
	[
		"an effect in lower case",
		document({ ...allow, Effect: "allow" }),
		"/Statement/0/Effect",
		/"Allow"/,
	],
	[
		"an effect in a list",
		document({ ...allow, Effect: ["Allow"] }),
		"/Statement/0/Effect",
		/"Allow"/,
	],
	[
		"no action",
		document({ Effect: "Deny" }),
		"/Statement/0/Action",
		/NotAction/,
	],
	[
		"Action and NotAction",
		document({ ...allow, NotAction: "*" }),
		"/Statement/0/NotAction",
		/together with Action/,
	],
	[
		"an empty list of actions",
		document({ ...allow, Action: [] }),
		"/Statement/0/Action",
		/1 to 500/,
	],
	[
		"too many actions",
		document({ ...allow, Action: many(501) }),
		"/Statement/0/Action",
		/1 to 500/,
	],
	[
		"an action that is null",
		document({ ...allow, Action: null }),
		"/Statement/0/Action",
		/service:type:operation/,
	],
	[
		"an action that is an object",
		document({ ...allow, Action: {} }),
		"/Statement/0/Action",
		/service:type:operation/,
	],
	[
		"an empty action",
		document({ ...allow, Action: "" }),
		"/Statement/0/Action",
		/three parts/,
	],
	[
		"an action of two parts",
		document({ ...allow, Action: "iotda:*" }),
		"/Statement/0/Action",
		/three parts/,
	],
	[
		"an action of four parts",
		document({ ...allow, Action: ["a:b:c", "a:b:c:d"] }),
		"/Statement/0/Action/1",
		/three parts/,
	],
	[
		"an action with an empty part",
		document({ ...allow, Action: ["iotda::create"] }),
		"/Statement/0/Action/0",
		/three parts/,
	],
	[
		"an action with a blank",
		document({ ...allow, Action: ["iotda:otamodules: create"] }),
		"/Statement/0/Action/0",
		/letters/,
	],
	[
		"an action that is too long",
		document({ ...allow, Action: `a:b:${long}` }),
		"/Statement/0/Action",
		/three parts/,
	],
	[
		"an action among actions that is a list",
		document({ ...allow, Action: [["a:b:c"]] }),
		"/Statement/0/Action/0",
		/three parts/,
	],
	[
		"a bad NotAction",
		document({ Effect: "Deny", NotAction: ["iotda"] }),
		"/Statement/0/NotAction/0",
		/three parts/,
	],
	[
		"Resource and NotResource",
		document({ ...allow, Resource: "*", NotResource: "*" }),
		"/Statement/0/NotResource",
		/together with Resource/,
	],
	[
		"an empty list of resources",
		document({ ...allow, Resource: [] }),
		"/Statement/0/Resource",
		/1 to 500/,
	],
	[
		"a resource that is null",
		document({ ...allow, Resource: null }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource that is an object",
		document({ ...allow, Resource: { uri: ["x"] } }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource that is a number",
		document({ ...allow, Resource: [APP, 1] }),
		"/Statement/0/Resource/1",
		/five parts/,
	],
	[
		"an id alone as resource",
		document({ ...allow, Resource: ["61f7e74d036aca5be29e1ed4"] }),
		"/Statement/0/Resource/0",
		/five parts/,
	],
	[
		"a resource of four parts",
		document({ ...allow, Resource: "iotda:*:*:app" }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource of six parts",
		document({ ...allow, Resource: `${APP}:x` }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource without service",
		document({ ...allow, Resource: ":*:*:app:x" }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource without type",
		document({ ...allow, Resource: "iotda:*:*::x" }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource without id",
		document({ ...allow, Resource: "iotda:*:*:app:" }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a type of resource that there is not",
		document({ ...allow, Resource: ["iotda:*:*:device:x"] }),
		"/Statement/0/Resource/0",
		/"instance" or "app"/,
	],
	[
		"such a type behind a wildcard service",
		document({ ...allow, Resource: ["*:*:*:apps:x"] }),
		"/Statement/0/Resource/0",
		/"instance" or "app"/,
	],
	[
		"the resources of another service",
		document({ ...allow, Resource: "obs:::bucket:a" }),
		"/Statement/0/Resource",
		/first part/,
	],
	[
		"a misspelt service of a resource",
		document({ ...allow, Effect: "Deny", Resource: [APP, "iodta:*:*:app:*"] }),
		"/Statement/0/Resource/1",
		/"iotda"/,
	],
	[
		"a service with an i that has no dot",
		document({ ...allow, NotResource: ["\u0131otda:*:*:app:*"] }),
		"/Statement/0/NotResource/0",
		/"iotda"/,
	],
	[
		"a wildcard that cannot stand for the service",
		document({ ...allow, Resource: ["iodt*:*:*:app:*"] }),
		"/Statement/0/Resource/0",
		/"iotda"/,
	],
	[
		"a resource that is too long",
		document({ ...allow, Resource: `iotda:*:*:app:${long}` }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a resource with half a character",
		document({ ...allow, Resource: "iotda:*:*:app:\ud800" }),
		"/Statement/0/Resource",
		/five parts/,
	],
	[
		"a bad NotResource",
		document({ ...allow, NotResource: [APP, "x"] }),
		"/Statement/0/NotResource/1",
		/five parts/,
	],
	[
		"a condition that is a list",
		withCondition([]),
		"/Statement/0/Condition",
		/object of operators/,
	],
	[
		"a condition that is null",
		withCondition(null),
		"/Statement/0/Condition",
		/object of operators/,
	],
	[
		"a misspelt operator",
		withCondition({ StringEqualz: { "g:UserName": ["x"] } }),
		"/Statement/0/Condition/StringEqualz",
		/StringEquals/,
	],
	[
		"an operator in lower case",
		withCondition({ stringequals: { "g:UserName": ["x"] } }),
		"/Statement/0/Condition/stringequals",
		/no operator/,
	],
	[
		"an operator of others",
		withCondition({ StringLike: { "g:UserName": ["x"] } }),
		"/Statement/0/Condition/StringLike",
		/StringMatch/,
	],
	[
		"an inherited name as operator",
		withCondition({ constructor: { "g:UserName": ["x"] } }),
		"/Statement/0/Condition/constructor",
		/no operator/,
	],
	[
		"IfExists behind Null",
		withCondition({ NullIfExists: { "g:UserName": [true] } }),
		"/Statement/0/Condition/NullIfExists",
		/all but Null/,
	],
	[
		"IfExists twice",
		withCondition({ BoolIfExistsIfExists: { "g:MFAPresent": true } }),
		"/Statement/0/Condition/BoolIfExistsIfExists",
		/no operator/,
	],
	[
		"an unknown prefix",
		withCondition({ "ForEachValue:StringEquals": { "g:TagKeys": ["x"] } }),
		"/Statement/0/Condition/ForEachValue:StringEquals",
		/ForAnyValue:/,
	],
	[
		"two prefixes",
		withCondition({
			"ForAnyValue:ForAnyValue:StringEquals": { "g:TagKeys": ["x"] },
		}),
		"/Statement/0/Condition/ForAnyValue:ForAnyValue:StringEquals",
		/no operator/,
	],
	[
		"a prefix alone",
		withCondition({ "ForAnyValue:": { "g:TagKeys": ["x"] } }),
		"/Statement/0/Condition/ForAnyValue:",
		/no operator/,
	],
	[
		"an operator without keys",
		withCondition({ StringEquals: {} }),
		"/Statement/0/Condition/StringEquals",
		/at least one/,
	],
	[
		"an operator with a list",
		withCondition({ StringEquals: ["g:UserName"] }),
		"/Statement/0/Condition/StringEquals",
		/object of condition keys/,
	],
	[
		"an unknown global key",
		withCondition({ StringEquals: { "g:Username2": ["x"] } }),
		"/Statement/0/Condition/StringEquals/g:Username2",
		/g:UserName/,
	],
	[
		"a key of a service",
		withCondition({ StringEquals: { "iotda:AppId": ["x"] } }),
		"/Statement/0/Condition/StringEquals/iotda:AppId",
		/g:ResourceTag/,
	],
	[
		"a key without its prefix",
		withCondition({ StringEquals: { UserName: ["x"] } }),
		"/Statement/0/Condition/StringEquals/UserName",
		/no condition key/,
	],
	[
		"a tag without its key",
		withCondition({ StringEquals: { "g:RequestTag/": ["x"] } }),
		"/Statement/0/Condition/StringEquals/g:RequestTag~1",
		/tag key/,
	],
	[
		"all tags at once",
		withCondition({ StringEquals: { "g:ResourceTag": ["x"] } }),
		"/Statement/0/Condition/StringEquals/g:ResourceTag",
		/tag key/,
	],
	[
		"a tag of something else",
		withCondition({ StringEquals: { "g:UserName/a": ["x"] } }),
		"/Statement/0/Condition/StringEquals/g:UserName~1a",
		/no condition key/,
	],
	[
		"a second key that is bad",
		withCondition({ StringEquals: { "g:UserName": "x", "g:Nothing": "x" } }),
		"/Statement/0/Condition/StringEquals/g:Nothing",
		/no condition key/,
	],
	[
		"no values",
		withCondition({ StringEquals: { "g:UserName": [] } }),
		"/Statement/0/Condition/StringEquals/g:UserName",
		/1 to 500/,
	],
	[
		"too many values",
		withCondition({ StringEquals: { "g:UserName": many(501) } }),
		"/Statement/0/Condition/StringEquals/g:UserName",
		/1 to 500/,
	],
	[
		"a value that is null",
		withCondition({ StringEquals: { "g:UserName": null } }),
		"/Statement/0/Condition/StringEquals/g:UserName",
		/text/,
	],
	[
		"a number as text",
		withCondition({ StringEquals: { "g:EnterpriseProjectId": ["a", 0] } }),
		"/Statement/0/Condition/StringEquals/g:EnterpriseProjectId/1",
		/text/,
	],
	[
		"a value that is too long",
		withCondition({ StringEquals: { "g:UserName": [long] } }),
		"/Statement/0/Condition/StringEquals/g:UserName/0",
		/1024/,
	],
	[
		"text as a number",
		withCondition({ NumberEquals: { "g:ResourceTag/a/b": ["ten"] } }),
		"/Statement/0/Condition/NumberEquals/g:ResourceTag~1a~1b/0",
		/number/,
	],
	[
		"a number with a comma",
		withCondition({ NumberLessThan: { "g:ResourceTag/n": "1,5" } }),
		"/Statement/0/Condition/NumberLessThan/g:ResourceTag~1n",
		/-2.5/,
	],
	[
		"a number without end",
		withCondition({ NumberLessThan: { "g:ResourceTag/n": ["1e999"] } }),
		"/Statement/0/Condition/NumberLessThan/g:ResourceTag~1n/0",
		/number/,
	],
	[
		"an empty number",
		withCondition({ NumberLessThan: { "g:ResourceTag/n": [""] } }),
		"/Statement/0/Condition/NumberLessThan/g:ResourceTag~1n/0",
		/number/,
	],
	[
		"a number for Bool",
		withCondition({ Bool: { "g:MFAPresent": [1] } }),
		"/Statement/0/Condition/Bool/g:MFAPresent/0",
		/true or false/,
	],
	[
		"a yes for Bool",
		withCondition({ BoolIfExists: { "g:SecureTransport": "yes" } }),
		"/Statement/0/Condition/BoolIfExists/g:SecureTransport",
		/true or false/,
	],
	[
		"a value for Null",
		withCondition({ Null: { "g:UserName": ["alice"] } }),
		"/Statement/0/Condition/Null/g:UserName/0",
		/true or false/,
	],
	[
		"a day that is not in the calendar",
		withCondition({ DateLessThan: { "g:CurrentTime": ["2026-02-30"] } }),
		"/Statement/0/Condition/DateLessThan/g:CurrentTime/0",
		/time/,
	],
	[
		"a time without its zone",
		withCondition({
			DateLessThan: { "g:CurrentTime": ["2026-01-29T08:00:00"] },
		}),
		"/Statement/0/Condition/DateLessThan/g:CurrentTime/0",
		/08:00:00Z/,
	],
	[
		"the 25th hour",
		withCondition({
			DateEquals: { "g:CurrentTime": ["2026-01-29T25:00:00Z"] },
		}),
		"/Statement/0/Condition/DateEquals/g:CurrentTime/0",
		/time/,
	],
	[
		"a zone that there is not",
		withCondition({
			DateEquals: { "g:CurrentTime": ["2026-01-29T08:00:00+08:60"] },
		}),
		"/Statement/0/Condition/DateEquals/g:CurrentTime/0",
		/time/,
	],
	[
		"milliseconds since 1970",
		withCondition({ DateEquals: { "g:CurrentTime": [1_769_673_600_000] } }),
		"/Statement/0/Condition/DateEquals/g:CurrentTime/0",
		/seconds/,
	],
	[
		"a negative time",
		withCondition({ DateEquals: { "g:CurrentTime": -1 } }),
		"/Statement/0/Condition/DateEquals/g:CurrentTime",
		/seconds/,
	],
	[
		"a date in words",
		withCondition({ DateEquals: { "g:CurrentTime": "January 29, 2026" } }),
		"/Statement/0/Condition/DateEquals/g:CurrentTime",
		/time/,
	],
	[
		"an address with 300",
		withCondition({ IpAddress: { "g:SourceIp": ["10.0.0.300"] } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp/0",
		/IPv4/,
	],
	[
		"a range of 33 bits",
		withCondition({ IpAddress: { "g:SourceIp": ["10.0.0.0/33"] } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp/0",
		/192.0.2.0\/24/,
	],
	[
		"a range of 129 bits",
		withCondition({ NotIpAddress: { "g:SourceIp": "2001:db8::/129" } }),
		"/Statement/0/Condition/NotIpAddress/g:SourceIp",
		/2001:db8/,
	],
	[
		"a range without bits",
		withCondition({ IpAddress: { "g:SourceIp": ["10.0.0.0/"] } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp/0",
		/range/,
	],
	[
		"a range by its mask",
		withCondition({ IpAddress: { "g:SourceIp": ["10.0.0.0/255.0.0.0"] } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp/0",
		/range/,
	],
	[
		"two ranges in one text",
		withCondition({ IpAddress: { "g:SourceIp": "10.0.0.0/8/8" } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp",
		/range/,
	],
	[
		"an address with a zone",
		withCondition({ IpAddress: { "g:SourceIp": "fe80::1%eth0" } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp",
		/IPv6/,
	],
	[
		"a host name",
		withCondition({ IpAddress: { "g:SourceIp": "localhost" } }),
		"/Statement/0/Condition/IpAddress/g:SourceIp",
		/IPv4/,
	],
	[
		"text of an address",
		withCondition({ StringEquals: { "g:SourceIp": ["10.0.0.1"] } }),
		"/Statement/0/Condition/StringEquals/g:SourceIp",
		/IpAddress/,
	],
	[
		"an address of a name",
		withCondition({ IpAddress: { "g:UserName": ["10.0.0.1"] } }),
		"/Statement/0/Condition/IpAddress/g:UserName",
		/String/,
	],
	[
		"text of a time",
		withCondition({ StringEquals: { "g:CurrentTime": ["2026-01-29"] } }),
		"/Statement/0/Condition/StringEquals/g:CurrentTime",
		/Date/,
	],
	[
		"a number of a truth",
		withCondition({ NumberEquals: { "g:MFAPresent": [1] } }),
		"/Statement/0/Condition/NumberEquals/g:MFAPresent",
		/Bool/,
	],
	[
		"several values without a prefix",
		withCondition({ StringEquals: { "g:TagKeys": ["x"] } }),
		"/Statement/0/Condition/StringEquals/g:TagKeys",
		/ForAnyValue:/,
	],
	[
		"the same with IfExists",
		withCondition({ StringMatchIfExists: { "g:TagKeys": ["x"] } }),
		"/Statement/0/Condition/StringMatchIfExists/g:TagKeys",
		/ForAllValues:/,
	],
];

for (const [what, read, pointer, rule] of faults) {
	test(`${what} is refused at "${pointer}"`, () => {
		const fault = faultOf(read);
		assert.equal(fault.pointer, pointer);
		assert.match(fault.rule, rule);
		assert.equal(
			fault.message,
			`${pointer === "" ? "The document" : pointer} ${fault.rule}`,
		);
	});
}

test("faults are looked for in an order: unknown members, then the known ones", () => {
	assert.equal(
		faultOf(document({ Effect: "x", Action: 1, Nope: 1 })).pointer,
		"/Statement/0/Nope",
	);
	assert.equal(
		faultOf(document({ Action: 1, Effect: "x" })).pointer,
		"/Statement/0/Effect",
	);
	assert.equal(faultOf({ Version: "9", Statement: 1 }).pointer, "/Version");
});

test("the vendor's policy of version 1.1 is read", () => {
	assert.deepEqual(
		readPolicy({
			Version: "1.1",
			Statement: [
				{
					Effect: "Allow",
					Action: ["iotda:*:*"],
					Resource: ["IoTDA:*:*:app:*", "IoTDA:*:*:instance:instanceId1"],
				},
			],
		}),
		{
			version: "1.1",
			statements: [
				{
					effect: "Allow",
					actions: { except: false, listed: ["iotda:*:*"] },
					resources: {
						except: false,
						listed: [
							{
								service: "iotda",
								region: "*",
								account: "*",
								type: "app",
								id: "*",
							},
							{
								service: "iotda",
								region: "*",
								account: "*",
								type: "instance",
								id: "instanceId1",
							},
						],
					},
					conditions: [],
				},
			],
		},
	);
});

test("the vendor's identity policy of version 5.0 is read", () => {
	assert.deepEqual(
		readPolicy({
			Version: "5.0",
			Statement: [
				{
					Sid: "modules",
					Effect: "Allow",
					Action: ["iotda:otamodules:create", "iotda:otamodules:query*"],
					Resource: [APP],
					Condition: { StringEquals: { "g:EnterpriseProjectId": ["0"] } },
				},
			],
		}),
		{
			version: "5.0",
			statements: [
				{
					sid: "modules",
					effect: "Allow",
					actions: {
						except: false,
						listed: ["iotda:otamodules:create", "iotda:otamodules:query*"],
					},
					resources: {
						except: false,
						listed: [
							{
								service: "iotda",
								region: "*",
								account: "*",
								type: "app",
								id: "61f7e74d036aca5be29e1ed4",
							},
						],
					},
					conditions: [
						{
							operator: {
								family: "String",
								comparison: "Equals",
								negated: false,
								quantifier: "one",
								ifExists: false,
							},
							key: { name: "g:EnterpriseProjectId" },
							values: ["0"],
						},
					],
				},
			],
		},
	);
});

const readable: [string, unknown][] = [
	["a role of version 1.0", { Version: "1.0", Statement: [allow] }],
	["one action without a list", document({ ...allow, Action: "a:b:c" })],
	["everything by one star", document({ Effect: "Allow", Action: "*" })],
	[
		"NotAction with Deny",
		document({ Effect: "Deny", NotAction: ["iotda:*:query*", "*"] }),
	],
	[
		"as many statements as there may be",
		document(...Array(STATEMENT_LIMIT).fill(allow)),
	],
	["one resource without a list", document({ ...allow, Resource: APP })],
	["a star for resources", document({ ...allow, Resource: "*" })],
	["a star among resources", document({ ...allow, Resource: [APP, "*"] })],
	[
		"NotResource",
		document({ Effect: "Deny", Action: "*", NotResource: [APP] }),
	],
	[
		"empty region and account",
		document({ ...allow, Resource: "iotda:::app:x" }),
	],
	[
		"wildcards in every part",
		document({ ...allow, Resource: "io?d*:cn-*:a?*:*:6*" }),
	],
	["an empty condition", withCondition({})],
	[
		"a value without a list",
		withCondition({ Bool: { "g:MFAPresent": "true" } }),
	],
	[
		"the vendor's two conditions",
		withCondition({
			StringEndWithIfExists: { "g:UserName": ["specialCharacter"] },
			Bool: { "g:MFAPresent": ["true"] },
		}),
	],
	[
		"keys in any case",
		withCondition({
			StringEquals: { "G:USERNAME": "x", "g:resourcetag/Stage": "x" },
		}),
	],
	[
		"tag keys with slashes",
		withCondition({ StringEquals: { "g:RequestTag/a/b": "x" } }),
	],
	[
		"times of every kind",
		withCondition({
			DateLessThan: {
				"g:CurrentTime": [
					"2026-01-29",
					"2026-01-29T08:00Z",
					"2026-01-29T08:00:00.5+08:00",
					"20260129T080000Z",
					"2026-01-29T08:00:00-0330",
					1769673600,
					"1769673600",
					0,
				],
			},
		}),
	],
	[
		"numbers of every kind",
		withCondition({
			NumberGreaterThan: { "g:ResourceTag/n": [1, -2.5, "10", "+1.5e3", "-0"] },
		}),
	],
	[
		"addresses of every kind",
		withCondition({
			NotIpAddress: {
				"g:SourceIp": [
					"10.0.0.1",
					"0.0.0.0/0",
					"2001:db8::/32",
					"::ffff:10.0.0.0/104",
					"::1",
				],
			},
		}),
	],
	[
		"truths of every kind",
		withCondition({
			Bool: { "g:SecureTransport": [true, "false"] },
			Null: { "g:RequestTag/a": "true", "g:TagKeys": false },
		}),
	],
	[
		"variables as what they are: text",
		withCondition({ StringEquals: { "g:UserName": "\u0024{g:UserName}" } }),
	],
];

for (const [what, read] of readable) {
	test(`${what} can be written`, () => {
		assert.ok(readPolicy(read).statements.length > 0);
	});
}

test("every operator is read with every prefix, and all but Null with IfExists", () => {
	assert.equal(operatorNames.length, 26);
	for (const name of operatorNames) {
		for (const prefix of ["", "ForAnyValue:", "ForAllValues:"]) {
			assert.ok(findOperator(`${prefix}${name}`), name);
			assert.equal(
				findOperator(`${prefix}${name}IfExists`) !== undefined,
				name !== "Null",
				name,
			);
		}
	}
});

test("the rule for an unknown key names every key there is", () => {
	const { rule } = faultOf(withCondition({ StringEquals: { "g:Foo": "x" } }));
	for (const name of conditionKeyNames) assert.ok(rule.includes(name), name);
});

test("the documents of the system policies can be read as policies", () => {
	assert.deepEqual(
		systemPolicies.map(({ policyId, name }) => [policyId, name]),
		[
			["te_admin", "Tenant Administrator"],
			["readonly", "Tenant Guest"],
			["iotda_full_access", "IoTDA FullAccess"],
			["iotda_read_only_access", "IoTDA ReadOnlyAccess"],
		],
	);
	for (const { document } of systemPolicies)
		assert.ok(readPolicy(document).statements.length > 0);
});

/** JSON that often comes close to a policy. */
const nearlyPolicy = fc.letrec((tie) => ({
	value: fc.oneof(
		{ maxDepth: 6 },
		fc.constantFrom(
			"*",
			"Allow",
			"5.0",
			"1.1",
			APP,
			"iotda:a:b",
			"true",
			"",
			"10.0.0.0/8",
		),
		fc.jsonValue({ maxDepth: 2 }) as fc.Arbitrary<unknown>,
		fc.array(tie("value"), { maxLength: 3 }),
		fc.dictionary(
			fc.oneof(
				fc.constantFrom(
					"Version",
					"Statement",
					"Sid",
					"Effect",
					"Action",
					"NotAction",
				),
				fc.constantFrom("Resource", "NotResource", "Condition", "__proto__"),
				fc.constantFrom(...operatorNames),
				fc.constantFrom(
					"g:UserName",
					"g:SourceIp",
					"g:RequestTag/a",
					"g:TagKeys",
				),
				fc.string(),
			),
			tie("value"),
			{ maxKeys: 4 },
		),
	),
}));
const nearlyStatement = fc.record(
	{
		Effect: fc.constantFrom("Allow", "Deny"),
		Action: fc.oneof(fc.constant("*"), nearlyPolicy.value),
		Resource: nearlyPolicy.value,
		Condition: fc.dictionary(
			fc.constantFrom(...operatorNames),
			fc.dictionary(
				fc.constantFrom(
					"g:UserName",
					"g:SourceIp",
					"g:RequestTag/a",
					"g:CurrentTime",
				),
				nearlyPolicy.value,
			),
		),
	},
	{ requiredKeys: ["Effect", "Action"] },
);

test("whatever JSON is read, it is a policy or a fault whose pointer leads as far as the document goes", () => {
	fc.assert(
		fc.property(
			fc.oneof(
				fc.jsonValue() as fc.Arbitrary<unknown>,
				nearlyPolicy.value,
				fc.record({
					Version: fc.constantFrom("1.0", "1.1", "5.0"),
					Statement: fc.array(nearlyStatement, { minLength: 1, maxLength: 3 }),
				}),
			),
			(read) => {
				try {
					readPolicy(read);
				} catch (error) {
					assert.ok(error instanceof PolicyFault, String(error));
					// Only the last step may lead to something that is missing.
					let value: unknown = read;
					const steps = error.pointer.split("/").slice(1);
					for (const [index, step] of steps.entries()) {
						assert.ok(typeof value === "object" && value !== null);
						const name = step.replaceAll("~1", "/").replaceAll("~0", "~");
						if (index < steps.length - 1) assert.ok(Object.hasOwn(value, name));
						value = Reflect.get(value, name);
					}
				}
			},
		),
		{ numRuns: 3_000 },
	);
});

test("hostile documents are refused, not worked through", () => {
	let deep: unknown = "x";
	for (let i = 0; i < 100_000; i++) deep = [deep];
	assert.equal(faultOf(deep).pointer, "");
	assert.equal(
		faultOf(document({ ...allow, Action: deep })).pointer,
		"/Statement/0/Action/0",
	);
	assert.equal(
		faultOf(withCondition({ StringEquals: { "g:UserName": deep } })).pointer,
		"/Statement/0/Condition/StringEquals/g:UserName/0",
	);
	const megabyte = "a:".repeat(500_000);
	for (const [member, pointer] of [
		["Sid", "/Statement/0/Sid"],
		["Action", "/Statement/0/Action"],
		["Resource", "/Statement/0/Resource"],
	] as const)
		assert.equal(
			faultOf(document({ ...allow, [member]: megabyte })).pointer,
			pointer,
		);
	for (const [operator, key] of [
		["StringMatch", "g:UserName"],
		["NumberEquals", "g:ResourceTag/a"],
		["DateEquals", "g:CurrentTime"],
		["IpAddress", "g:SourceIp"],
		["Bool", "g:MFAPresent"],
	] as const)
		assert.match(
			faultOf(withCondition({ [operator]: { [key]: "9".repeat(1_000_000) } }))
				.pointer,
			/^\/Statement\/0\/Condition\//,
		);
	assert.match(
		faultOf(
			withCondition({ StringEquals: { [`g:RequestTag/${megabyte}`]: "x" } }),
		).rule,
		/no condition key/,
	);
	assert.match(
		faultOf(document({ ...allow, Action: Array(1_000_000).fill("*") })).rule,
		/1 to 500/,
	);
});
