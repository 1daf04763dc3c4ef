/**
 * Whether a caller may: from the policies granted to him and the question at hand to a
 * decision (pure). Any Deny that matches refuses; else any Allow that matches allows;
 * else it is refused.
 *
 * A question may leave open which resource space it is about ("any") and which tags the
 * request brings. Whatever depends on that counts in the caller's favour: the same
 * question is put again when the answer is known.
 */
import {
	type CompiledCondition,
	compileConditions,
	type Facts,
	type Tags,
	type Truth,
} from "./policy-conditions.ts";
import {
	type Listed,
	type PolicyDocument,
	type PolicyStatement,
	type ResourcePattern,
	resourceService,
} from "./policy-document.ts";
import type { SystemPolicy } from "./system-policies.ts";
import { compileWildcards, isAnything, type Matcher } from "./wildcards.ts";

/** What an operation does, as the vendor sorts its actions. */
export type AccessLevel =
	| "List"
	| "Read"
	| "Write"
	| "Tagging"
	| "Permission_management";

export interface GrantedPolicy {
	policyId: string;
	policyName: string;
	document: PolicyDocument | SystemPolicy;
	within:
		| { kind: "all" }
		| { kind: "project"; projectId: string }
		| { kind: "enterprise_project"; enterpriseProjectId: string };
	grantId?: string;
}

export interface SpaceFacts {
	appId: string;
	enterpriseProjectId: string;
	tags: Tags;
}

export interface Question {
	/** `service:type:operation`; letter case does not count. */
	action: string;
	level: AccessLevel;
	/** Empty for calls that concern no project. */
	projectId: string;
	accountId: string;
	region: string;
	instanceId: string;
	/** "0" unless the instance was assigned to another. */
	instanceEnterpriseProjectId: string;
	/**
	 * The resource space concerned. "instance": the request concerns none. "any": it is not
	 * known yet; could any space be allowed?
	 */
	space: SpaceFacts | "instance" | "any" | "missing";
	context: {
		userName: string;
		userId: string;
		accountName: string;
		/** Empty when there is none. */
		sourceIp: string;
		now: Date;
		secureTransport: boolean;
		/** Absent: not known yet when the space is "any", otherwise none. */
		requestTags?: Tags | "unknown";
	};
}

export interface Decision {
	readonly allowed: boolean;
	readonly because: "allowed" | "denied" | "no_statement";
	/** The first statement, in the order of the grants, that brought the decision about. */
	readonly statement?: StatementReference;
}

export interface StatementReference {
	readonly policyId: string;
	readonly policyName: string;
	/** Within the policy; 0 is the first. */
	readonly index: number;
	readonly sid?: string;
	readonly grantId?: string;
}

/** Made by `compileGrants`, used by `decide`; remembers which statements an action meets. */
export interface CompiledGrants {
	readonly statements: readonly CompiledStatement[];
	readonly byLevel: Map<AccessLevel, Map<string, Applicable>>;
	readonly distinct: Map<string, Applicable>;
}

interface CompiledStatement {
	effect: PolicyStatement["effect"];
	/** Of an action in lower case. */
	matchesAction: (action: string, level: AccessLevel) => boolean;
	within: GrantedPolicy["within"];
	/** Absent: everything. */
	covers?: (question: Question) => Truth;
	/** Absent: without condition. */
	holds?: CompiledCondition;
	/** What follows when it matches. */
	decision: Decision;
}

/** The statements that an action meets. */
interface Applicable {
	denies: readonly CompiledStatement[];
	allows: readonly CompiledStatement[];
}

/** Actions remembered per set of grants and level: more than there are routes. */
const REMEMBERED_ACTIONS = 256;
const REMEMBERED_ACTION_LENGTH = 128;

export function compileGrants(
	grants: readonly GrantedPolicy[],
): CompiledGrants {
	return {
		statements: grants.flatMap(compilePolicy),
		byLevel: new Map(),
		distinct: new Map(),
	};
}

export function decide(compiled: CompiledGrants, question: Question): Decision {
	const { denies, allows } = applicable(compiled, question);
	const facts = lazyFacts(question);
	// Of a space that is missing nothing is to be learnt: whatever could refuse it does.
	const doubt = question.space === "missing" ? "Deny" : "Allow";
	for (const statement of denies) {
		const match = matches(statement, question, facts);
		if (match === true || (match === "unknown" && doubt === "Deny"))
			return statement.decision;
	}
	for (const statement of allows) {
		const match = matches(statement, question, facts);
		if (match === true || (match === "unknown" && doubt === "Allow"))
			return statement.decision;
	}
	return noStatement;
}

const noStatement: Decision = Object.freeze({
	allowed: false,
	because: "no_statement",
});

// --- statements ---------------------------------------------------------------------

function compilePolicy(granted: GrantedPolicy): CompiledStatement[] {
	const { policyId, policyName, document, within, grantId } = granted;
	const { statements, levels } =
		"grants" in document
			? { statements: document.grants.statements, levels: document.levels }
			: { statements: document.statements, levels: undefined };
	return statements.map((statement, index) => {
		const { effect, sid, actions, resources, conditions } = statement;
		const matchesAction = compileActions(actions);
		return {
			effect,
			matchesAction: levels
				? (action, level) => levels.includes(level) && matchesAction(action)
				: matchesAction,
			within,
			...(resources ? { covers: compileResources(resources) } : {}),
			...(conditions.length > 0
				? { holds: compileConditions(conditions, effect) }
				: {}),
			decision: Object.freeze({
				allowed: effect === "Allow",
				because: effect === "Allow" ? "allowed" : "denied",
				statement: Object.freeze({
					policyId,
					policyName,
					index,
					...(sid === undefined ? {} : { sid }),
					...(grantId === undefined ? {} : { grantId }),
				}),
			}),
		};
	});
}

function compileActions({ except, listed }: Listed<string>): Matcher {
	const exact = new Set(listed.filter((pattern) => !/[*?]/.test(pattern)));
	const matchers = listed
		.filter((pattern) => !exact.has(pattern))
		.map(compileWildcards);
	return (action) =>
		(exact.has(action) || matchers.some((fits) => fits(action))) !== except;
}

/** And: false wins over unknown, unknown over true. */
function matches(
	{ within, covers, holds }: CompiledStatement,
	question: Question,
	facts: () => Facts,
): Truth {
	const inScope = isWithin(within, question);
	if (inScope === false) return false;
	const covered = covers ? covers(question) : true;
	if (covered === false) return false;
	const held = holds ? holds(facts()) : true;
	if (held === false) return false;
	return inScope === true && covered === true && held === true
		? true
		: "unknown";
}

function isWithin(
	within: GrantedPolicy["within"],
	{ space, projectId }: Question,
): Truth {
	switch (within.kind) {
		case "all":
			return true;
		case "project":
			return within.projectId === projectId;
		case "enterprise_project":
			// It holds resource spaces. What is the server's own, such as users and the files
			// of packages, is in none.
			if (space === "instance") return false;
			if (typeof space === "string") return "unknown";
			return within.enterpriseProjectId === space.enterpriseProjectId;
		default:
			return within satisfies never;
	}
}

function lazyFacts(question: Question): () => Facts {
	let facts: Facts | undefined;
	return () => {
		facts ??= factsOf(question);
		return facts;
	};
}

function factsOf({
	space,
	context,
	instanceEnterpriseProjectId,
}: Question): Facts {
	return {
		userName: context.userName,
		userId: context.userId,
		accountName: context.accountName,
		sourceIp: context.sourceIp,
		now: context.now,
		secureTransport: context.secureTransport,
		resource:
			space === "any" || space === "missing"
				? "unknown"
				: space === "instance"
					? { enterpriseProjectId: instanceEnterpriseProjectId, tags: {} }
					: space,
		requestTags: context.requestTags ?? (space === "any" ? "unknown" : {}),
	};
}

// --- actions ------------------------------------------------------------------------

function applicable(
	{ statements, byLevel, distinct }: CompiledGrants,
	{ action, level }: Question,
): Applicable {
	let byAction = byLevel.get(level);
	const remembered = byAction?.get(action);
	if (remembered) return remembered;
	if (!byAction) {
		byAction = new Map();
		byLevel.set(level, byAction);
	}
	const lowerCase = action.toLowerCase();
	const indexes: number[] = [];
	statements.forEach((statement, index) => {
		if (statement.matchesAction(lowerCase, level)) indexes.push(index);
	});
	// Most actions meet the same statements; they share them.
	const key = indexes.join();
	let found = distinct.get(key);
	if (!found) {
		const met = indexes.flatMap((index) => statements[index] ?? []);
		found = {
			denies: met.filter(({ effect }) => effect === "Deny"),
			allows: met.filter(({ effect }) => effect === "Allow"),
		};
	}
	if (action.length <= REMEMBERED_ACTION_LENGTH) {
		// Only someone who invents actions ever gets here; the routes' own come back soon.
		if (byAction.size >= REMEMBERED_ACTIONS) byAction.clear();
		if (distinct.size >= REMEMBERED_ACTIONS) distinct.clear();
		byAction.set(action, found);
		distinct.set(key, found);
	}
	return found;
}

// --- resources ----------------------------------------------------------------------

/**
 * Resource: covers what is asked for when it covers the resource space concerned or the
 * instance that all spaces are in. NotResource: covers all that is not listed, of the
 * space concerned or, where none is, of the instance.
 */
function compileResources({
	except,
	listed,
}: Listed<ResourcePattern>): (question: Question) => Truth {
	if (listed.includes("*")) return () => !except;
	const patterns = listed.filter((pattern) => pattern !== "*");
	const spaces = compileUrns("app", patterns);
	const instances = compileUrns("instance", patterns);
	const ofInstance = (question: Question) =>
		instances.list(question, question.instanceId);
	const ofSpace = (question: Question): Truth =>
		question.space === "any" || question.space === "missing"
			? spaces.listAny(question)
			: question.space !== "instance" &&
				spaces.list(question, question.space.appId);
	if (!except) return (question) => ofInstance(question) || ofSpace(question);
	return (question) =>
		question.space === "instance"
			? !ofInstance(question)
			: not(ofSpace(question));
}

function not(truth: Truth): Truth {
	return truth === "unknown" ? truth : !truth;
}

interface Urns {
	/** Whether the resource with this id is listed. */
	list(question: Question, id: string): boolean;
	/** Whether any resource of this type is, true only if all are. */
	listAny(question: Question): Truth;
}

interface UrnPattern {
	inRegion: Matcher;
	inAccount: Matcher;
	hasId: Matcher;
	hasAnyId: boolean;
}

type WrittenUrn = Exclude<ResourcePattern, "*">;

/** Those of the patterns that can be of a resource of this type. */
function compileUrns(
	type: "app" | "instance",
	written: readonly WrittenUrn[],
): Urns {
	// By far the most are of this kind: one space, whatever region and account.
	const exactIds = new Set<string>();
	const patterns: UrnPattern[] = [];
	for (const urn of written) {
		if (!compileWildcards(urn.service)(resourceService)) continue;
		if (!compileWildcards(urn.type)(type)) continue;
		const anywhere = isAnyPlace(urn.region) && isAnyPlace(urn.account);
		if (anywhere && !/[*?]/.test(urn.id)) exactIds.add(urn.id);
		else
			patterns.push({
				inRegion: compilePlace(urn.region),
				inAccount: compilePlace(urn.account),
				hasId: compileWildcards(urn.id),
				hasAnyId: isAnything(urn.id),
			});
	}
	const fitsPlace = (
		{ inRegion, inAccount }: UrnPattern,
		{ region, accountId }: Question,
	) => inRegion(region) && inAccount(accountId);
	return {
		list: (question, id) =>
			exactIds.has(id) ||
			patterns.some(
				(pattern) => fitsPlace(pattern, question) && pattern.hasId(id),
			),
		listAny: (question) => {
			let listed: Truth = exactIds.size > 0 ? "unknown" : false;
			for (const pattern of patterns) {
				if (!fitsPlace(pattern, question)) continue;
				if (pattern.hasAnyId) return true;
				listed = "unknown";
			}
			return listed;
		},
	};
}

function isAnyPlace(pattern: string): boolean {
	return pattern === "" || isAnything(pattern);
}

function compilePlace(pattern: string): Matcher {
	return compileWildcards(pattern === "" ? "*" : pattern);
}
