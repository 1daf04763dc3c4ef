/** What must hold of every policy and every question, against a naive second evaluation. */
import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
	compileGrants,
	decide,
	type GrantedPolicy,
	type Question,
	type SpaceFacts,
} from "../server/policy-language/policy-decision.ts";
import { readPolicy } from "../server/policy-language/policy-document.ts";
import { compileWildcards } from "../server/policy-language/wildcards.ts";
import {
	type ReferenceGrant,
	type ReferenceQuestion,
	type ReferenceStatement,
	referenceDecision,
	referenceGlob,
} from "./support/policy-reference.ts";

const runs = { numRuns: 4_000 };
const of = <T>(...values: T[]) => fc.constantFrom(...values);
const few = <T>(one: fc.Arbitrary<T>) =>
	fc.oneof(one, fc.array(one, { minLength: 1, maxLength: 3 }));

const actions = [
	"iotda:otamodules:create",
	"iotda:otamodules:query",
	"iotda:otamodules:queryList",
	"iotda:batchtasks:create",
	"iam:users:create",
];
const actionPattern = of(
	...actions,
	"*",
	"*:*:*",
	"iotda:*:*",
	"IoTDA:OtaModules:*",
	"iotda:*:query*",
	"*:?????:*",
	"iotda:otamodules:query????",
	"iotda:*a*:*e",
);
const resourcePattern = of(
	"*",
	"iotda:*:*:app:*",
	"iotda:*:*:app:A",
	"iotda:*:*:app:a",
	"IoTDA:*:*:App:B",
	"iotda:::app:A*",
	"iotda:r1:*:app:?",
	"iotda:r2:*:app:*",
	"iotda:*:acc?unt:*:*",
	"iotda:*:account:instance:i1",
	"iotda:*:*:instance:*",
	"iotda:*:*:instance:i2",
	"iotda:*:*:*:*1*",
	"*:*:*:*:*",
	"io?d*:*:*:app:A1",
);

const names = of("alice", "Alice", "al*", "*ice", "a?ice", "bob", "b", "");
const texts = [
	"StringEquals",
	"StringNotEquals",
	"StringEqualsIgnoreCase",
	"StringNotEqualsIgnoreCase",
	"StringMatch",
	"StringNotMatch",
	"StringStartWith",
	"StringNotStartWith",
	"StringEndWith",
	"StringNotEndWith",
];
const orders = [
	"Equals",
	"NotEquals",
	"LessThan",
	"LessThanEquals",
	"GreaterThan",
	"GreaterThanEquals",
];
const operator = (
	bases: string[],
	prefixes = ["", "ForAnyValue:", "ForAllValues:"],
) =>
	fc
		.tuple(of(...prefixes), of(...bases), of("", "IfExists"))
		.map((parts) => parts.join(""));
/** One operator with one key. */
const clause = (
	operators: fc.Arbitrary<string>,
	keys: fc.Arbitrary<string>,
	values: fc.Arbitrary<unknown>,
) =>
	fc
		.tuple(operators, keys, few(values))
		.map(([name, key, value]) => ({ [name]: { [key]: value } }));
const tagKey = of(
	"g:ResourceTag/stage",
	"G:RESOURCETAG/Stage",
	"g:RequestTag/stage",
	"g:RequestTag/n",
	"g:RequestTag/constructor",
);
const condition = fc
	.array(
		fc.oneof(
			clause(
				operator(texts),
				of("g:UserName", "G:userid", "g:DomainName", "g:EnterpriseProjectId"),
				fc.oneof(names, of("0", "e1")),
			),
			clause(operator(texts), tagKey, names),
			clause(
				operator(texts, ["ForAnyValue:", "ForAllValues:"]),
				of("g:TagKeys"),
				of("stage", "n", "s*", "x"),
			),
			clause(
				operator(orders.map((order) => `Number${order}`)),
				tagKey,
				of<unknown>(1, 2, "2.5", "-1"),
			),
			clause(
				operator(orders.map((order) => `Date${order}`)),
				of("g:CurrentTime"),
				of(
					"2026-01-29",
					"2026-01-29T08:00:00Z",
					"2026-01-29T08:00:00.001+08:00",
				),
			),
			clause(
				operator(["Bool"]),
				of("g:MFAPresent", "g:SecureTransport", "g:RequestTag/n"),
				of<unknown>(true, false, "true"),
			),
			clause(
				operator(["IpAddress", "NotIpAddress"]),
				of("g:SourceIp"),
				of("10.0.0.0/8", "10.1.2.3", "0.0.0.0/0", "192.168.0.0/17"),
			),
			clause(
				of("Null", "ForAnyValue:Null"),
				fc.oneof(tagKey, of("g:TagKeys", "g:UserName", "g:SourceIp")),
				of<unknown>(true, "false"),
			),
		),
		{ maxLength: 3 },
	)
	.map(
		(clauses): Record<string, Record<string, unknown>> =>
			Object.assign({}, ...clauses),
	);

const statement: fc.Arbitrary<ReferenceStatement> = fc
	.record({
		// A Deny decides too much to be as frequent.
		Effect: of("Allow", "Allow", "Allow", "Deny"),
		action: few(actionPattern),
		not: of(false, false, false, true),
		resource: fc.option(few(resourcePattern), { nil: undefined }),
		notResource: of(false, false, true),
		Condition: fc.option(condition, { nil: undefined, freq: 1 }),
	})
	.map(({ Effect, action, not, resource, notResource, Condition }) => ({
		Effect,
		[not ? "NotAction" : "Action"]: action,
		...(resource
			? { [notResource ? "NotResource" : "Resource"]: resource }
			: {}),
		...(Condition ? { Condition } : {}),
	}));

const grant: fc.Arbitrary<ReferenceGrant> = fc.record({
	document: fc.record({
		Version: of("1.0", "1.1", "5.0"),
		Statement: fc.array(statement, { minLength: 1, maxLength: 4 }),
	}),
	within: of(
		"all",
		"all",
		"project:p1",
		"project:p2",
		"enterprise_project:0",
		"enterprise_project:e1",
	),
});
const grants = fc.array(grant, { minLength: 1, maxLength: 3 });

const tags = fc.dictionary(
	of("stage", "Stage", "n", "x"),
	of("alice", "Bob", "2", "true", ""),
	{
		maxKeys: 3,
		noNullPrototype: true,
	},
);
const space: fc.Arbitrary<SpaceFacts> = fc.record({
	appId: of("A", "B", "a", "A1"),
	enterpriseProjectId: of("0", "e1"),
	tags,
});
const question = fc.record({
	action: of(...actions, "IOTDA:otaModules:Create"),
	level: of("List", "Read", "Write"),
	projectId: of("p1", "p2", ""),
	accountId: of("account", "other"),
	region: of("r1", "r2"),
	instanceId: of("i1", "i2"),
	instanceEnterpriseProjectId: of("0", "e1"),
	space: fc.oneof(space, space, fc.constant("instance" as const)),
	context: fc.record(
		{
			userName: of("alice", "bob", "Alice"),
			userId: of("b", "alice"),
			accountName: of("alice", "bob"),
			sourceIp: of("10.1.2.3", "192.168.200.1", ""),
			now: of(
				new Date("2026-01-29T00:00:00Z"),
				new Date("2026-01-29T08:00:00Z"),
				new Date("2026-01-29T00:00:00.001Z"),
			),
			secureTransport: fc.boolean(),
			requestTags: tags,
		},
		{
			requiredKeys: [
				"userName",
				"userId",
				"accountName",
				"sourceIp",
				"now",
				"secureTransport",
			],
		},
	),
}) satisfies fc.Arbitrary<Question>;

function granted(references: readonly ReferenceGrant[]): GrantedPolicy[] {
	return references.map(({ document, within }, index) => {
		const [kind, id = ""] = within.split(":");
		return {
			policyId: `policy-${index}`,
			policyName: `Policy ${index}`,
			document: readPolicy(document),
			within:
				kind === "project"
					? { kind, projectId: id }
					: kind === "enterprise_project"
						? { kind, enterpriseProjectId: id }
						: { kind: "all" },
		};
	});
}

const decision = (references: readonly ReferenceGrant[], asked: Question) =>
	decide(compileGrants(granted(references)), asked);

function forReference(asked: Question): ReferenceQuestion {
	const { region, accountId, instanceId, context } = asked;
	assert.ok(asked.space !== "any" && asked.space !== "missing");
	const about = asked.space === "instance" ? undefined : asked.space;
	const enterpriseProjectId =
		about?.enterpriseProjectId ?? asked.instanceEnterpriseProjectId;
	const requestTags = (context.requestTags ?? {}) as Record<string, string>;
	const keys: ReferenceQuestion["keys"] = {
		"g:username": context.userName,
		"g:userid": context.userId,
		"g:domainname": context.accountName,
		"g:enterpriseprojectid": enterpriseProjectId,
		"g:currenttime": context.now.toISOString(),
		"g:mfapresent": "false",
		"g:securetransport": String(context.secureTransport),
		"g:tagkeys": Object.keys(requestTags),
	};
	if (context.sourceIp !== "") keys["g:sourceip"] = context.sourceIp;
	for (const [key, value] of Object.entries(requestTags))
		keys[`g:requesttag/${key}`] = value;
	for (const [key, value] of Object.entries(about?.tags ?? {}))
		keys[`g:resourcetag/${key}`] = value;
	const prefix = `iotda:${region}:${accountId}`;
	return {
		action: asked.action,
		projectId: asked.projectId,
		instanceUrn: `${prefix}:instance:${instanceId}`,
		spaceUrn: about && `${prefix}:app:${about.appId}`,
		enterpriseProjectId,
		keys,
	};
}

test("every decision is that of the naive evaluation", () => {
	const seen = { allowed: 0, denied: 0, no_statement: 0 };
	fc.assert(
		fc.property(grants, question, (references, asked) => {
			const { because, allowed } = decision(references, asked);
			assert.equal(because, referenceDecision(references, forReference(asked)));
			assert.equal(allowed, because === "allowed");
			seen[because] += 1;
		}),
		{ numRuns: 10_000 },
	);
	// Otherwise the policies above say too little to prove anything.
	for (const count of Object.values(seen))
		assert.ok(count > 500, String(count));
});

test("a set of grants decides the same when it has decided much else before", () => {
	fc.assert(
		fc.property(
			grants,
			fc.array(question, { minLength: 2, maxLength: 8 }),
			(references, questions) => {
				const compiled = compileGrants(granted(references));
				for (const asked of [...questions, ...questions])
					assert.deepEqual(
						decide(compiled, asked),
						decision(references, asked),
					);
			},
		),
		{ numRuns: 500 },
	);
});

test("the statement that is named does by itself what the decision says", () => {
	fc.assert(
		fc.property(grants, question, (references, asked) => {
			const { because, statement } = decision(references, asked);
			assert.equal(statement === undefined, because === "no_statement");
			if (!statement) return;
			const { document, within } =
				references[Number(statement.policyId.replace("policy-", ""))] ??
				assert.fail();
			const alone = document.Statement[statement.index] ?? assert.fail();
			assert.equal(
				decision(
					[{ document: { ...document, Statement: [alone] }, within }],
					asked,
				).because,
				because,
			);
		}),
		runs,
	);
});

/** Any question: of a space, of none, of one not known yet; with tags not known yet. */
const anyQuestion: fc.Arbitrary<Question> = fc
	.tuple(
		question,
		of("as it is", "any", "unknown tags", "any and unknown tags"),
	)
	.map(
		([asked, what]): Question => ({
			...asked,
			...(what.includes("any") ? { space: "any" } : {}),
			context: {
				...asked.context,
				...(what.includes("unknown") ? { requestTags: "unknown" } : {}),
			},
		}),
	);

test("another Deny never allows more", () => {
	fc.assert(
		fc.property(grants, grant, anyQuestion, (references, more, asked) => {
			const denying = {
				...more,
				document: {
					...more.document,
					Statement: more.document.Statement.map((one) => ({
						...one,
						Effect: "Deny",
					})),
				},
			};
			const before = decision(references, asked).allowed;
			const after = decision([...references, denying], asked).allowed;
			assert.ok(before || !after);
		}),
		runs,
	);
});

test("one Allow less never allows more", () => {
	fc.assert(
		fc.property(grants, fc.nat(), anyQuestion, (references, which, asked) => {
			const all = references.flatMap(({ document, within }) =>
				document.Statement.map((one) => ({
					document: { ...document, Statement: [one] },
					within,
				})),
			);
			const without = which % all.length;
			const fewer = all.filter(
				({ document }, index) =>
					index !== without || document.Statement[0]?.Effect === "Deny",
			);
			const before = decision(all, asked).allowed;
			assert.equal(before, decision(references, asked).allowed);
			assert.ok(before || !decision(fewer, asked).allowed);
		}),
		runs,
	);
});

test("the order of statements and grants never matters", () => {
	fc.assert(
		fc.property(
			grants.chain((references) =>
				fc.tuple(
					fc.constant(references),
					fc.shuffledSubarray(references, { minLength: references.length }),
				),
			),
			anyQuestion,
			([references, shuffled], asked) => {
				const turned = shuffled.map(({ document, within }) => ({
					document: {
						...document,
						Statement: document.Statement.toReversed(),
					},
					within,
				}));
				assert.equal(
					decision(turned, asked).because,
					decision(references, asked).because,
				);
			},
		),
		runs,
	);
});

test("what some space is allowed is allowed as long as the space is not known, and so with tags", () => {
	let allowed = 0;
	fc.assert(
		fc.property(grants, question, space, (references, asked, about) => {
			const known = { ...asked, space: about };
			if (!decision(references, known).allowed) return;
			allowed += 1;
			const { requestTags: _, ...context } = asked.context;
			const open: Question[] = [
				{ ...asked, space: "any" },
				{ ...asked, space: "any", context },
				{ ...known, context: { ...context, requestTags: "unknown" } },
				{
					...asked,
					space: "any",
					context: { ...context, requestTags: "unknown" },
				},
			];
			for (const one of open) assert.ok(decision(references, one).allowed);
		}),
		runs,
	);
	assert.ok(allowed > 500, String(allowed));
});

test("wildcards fit what the naive reading says they fit", () => {
	// Few letters, so that beginnings, ends and what is between often overlap.
	const piece = of("a", "a", "a", "b", "b", "ab", "😀", ".");
	const wild = fc
		.array(fc.oneof(piece, piece, of("*", "*", "?")), { maxLength: 6 })
		.map((parts) => parts.join(""));
	const text = fc.array(piece, { maxLength: 6 }).map((parts) => parts.join(""));
	fc.assert(
		fc.property(wild, text, (pattern, given) => {
			assert.equal(
				compileWildcards(pattern)(given),
				referenceGlob(pattern, given),
			);
		}),
		{ numRuns: 10_000 },
	);
});
