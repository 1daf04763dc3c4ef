/**
 * Conditions of policy statements: which operators and keys there are, what their values
 * may be, and what they come to for one request (pure).
 *
 * Several values of a key are joined by or, several keys and operators by and. A negated
 * operator is true when none of its values fits. What is not known yet makes a condition
 * neither true nor false.
 */
import { BlockList, isIPv4, isIPv6, SocketAddress } from "node:net";
import { compileWildcards, POLICY_TEXT_LIMIT } from "./wildcards.ts";

// --- operators ----------------------------------------------------------------------

/** What an operator compares. */
export type Family =
	| "String"
	| "Number"
	| "Date"
	| "Bool"
	| "IpAddress"
	| "Null";

type Comparison =
	| "Equals"
	| "EqualsIgnoreCase"
	| "Match"
	| "StartWith"
	| "EndWith"
	| "LessThan"
	| "LessThanEquals"
	| "GreaterThan"
	| "GreaterThanEquals"
	| "Within";

interface OperatorKind {
	family: Family;
	comparison: Comparison;
	negated: boolean;
}

const operatorKinds: ReadonlyMap<string, OperatorKind> = new Map([
	...(
		["Equals", "EqualsIgnoreCase", "Match", "StartWith", "EndWith"] as const
	).flatMap((comparison) => [
		operator(`String${comparison}`, "String", comparison),
		operator(`StringNot${comparison}`, "String", comparison, true),
	]),
	...(["Number", "Date"] as const).flatMap((family) => [
		operator(`${family}Equals`, family, "Equals"),
		operator(`${family}NotEquals`, family, "Equals", true),
		operator(`${family}LessThan`, family, "LessThan"),
		operator(`${family}LessThanEquals`, family, "LessThanEquals"),
		operator(`${family}GreaterThan`, family, "GreaterThan"),
		operator(`${family}GreaterThanEquals`, family, "GreaterThanEquals"),
	]),
	operator("Bool", "Bool", "Equals"),
	operator("IpAddress", "IpAddress", "Within"),
	operator("NotIpAddress", "IpAddress", "Within", true),
	operator("Null", "Null", "Equals"),
]);

function operator(
	name: string,
	family: Family,
	comparison: Comparison,
	negated = false,
): [string, OperatorKind] {
	return [name, { family, comparison, negated }];
}

/** The names of all operators, without prefix and suffix. */
export const operatorNames: readonly string[] = [...operatorKinds.keys()];

/** `one`: without a prefix; the others are `ForAnyValue:` and `ForAllValues:`. */
export type Quantifier = "one" | "any" | "all";

export interface Operator extends OperatorKind {
	quantifier: Quantifier;
	ifExists: boolean;
}

const IF_EXISTS = "IfExists";

/** Reads `[ForAnyValue:|ForAllValues:]name[IfExists]`; `Null` takes no `IfExists`. */
export function findOperator(text: string): Operator | undefined {
	let name = text;
	let quantifier: Quantifier = "one";
	if (name.startsWith("ForAnyValue:")) quantifier = "any";
	else if (name.startsWith("ForAllValues:")) quantifier = "all";
	if (quantifier !== "one") name = name.slice(name.indexOf(":") + 1);
	const ifExists = name.endsWith(IF_EXISTS);
	if (ifExists) name = name.slice(0, -IF_EXISTS.length);
	const kind = operatorKinds.get(name);
	if (!kind || (ifExists && kind.family === "Null")) return undefined;
	return { ...kind, quantifier, ifExists };
}

// --- keys ---------------------------------------------------------------------------

type PlainKeyName =
	| "g:EnterpriseProjectId"
	| "g:UserName"
	| "g:UserId"
	| "g:DomainName"
	| "g:SourceIp"
	| "g:CurrentTime"
	| "g:MFAPresent"
	| "g:SecureTransport"
	| "g:TagKeys";
type TagKeyName = "g:RequestTag" | "g:ResourceTag";

export type ConditionKey =
	| { name: PlainKeyName }
	/** The value of the tag with this key. */
	| { name: TagKeyName; tag: string };

/** What the value of a key is; the value of a tag is text that may mean anything. */
const plainKeys: Record<PlainKeyName, Family> = {
	"g:EnterpriseProjectId": "String",
	"g:UserName": "String",
	"g:UserId": "String",
	"g:DomainName": "String",
	"g:SourceIp": "IpAddress",
	"g:CurrentTime": "Date",
	"g:MFAPresent": "Bool",
	"g:SecureTransport": "Bool",
	"g:TagKeys": "String",
};
const tagKeys: readonly TagKeyName[] = ["g:RequestTag", "g:ResourceTag"];

/** All keys, as people write them. */
export const conditionKeyNames: readonly string[] = [
	...Object.keys(plainKeys),
	...tagKeys.map((name) => `${name}/<tag key>`),
];

const plainKeysByLowerCase: ReadonlyMap<string, PlainKeyName> = new Map(
	(Object.keys(plainKeys) as PlainKeyName[]).map((name) => [
		name.toLowerCase(),
		name,
	]),
);

/** Letter case counts in the key of a tag only. */
export function findConditionKey(text: string): ConditionKey | undefined {
	const slash = text.indexOf("/");
	if (slash < 0) {
		const name = plainKeysByLowerCase.get(text.toLowerCase());
		return name && { name };
	}
	const prefix = text.slice(0, slash).toLowerCase();
	const name = tagKeys.find((key) => key.toLowerCase() === prefix);
	const tag = text.slice(slash + 1);
	return name && tag !== "" ? { name, tag } : undefined;
}

/**
 * Why this operator says nothing about this key, as a rule of the key; undefined when it
 * does.
 */
export function misfit(
	{ family, quantifier }: Operator,
	key: ConditionKey,
): string | undefined {
	if (family === "Null" || "tag" in key) return undefined;
	const expected = plainKeys[key.name];
	if (family !== expected)
		return `must be compared by an operator of the kind ${expected}, or by Null`;
	if (key.name === "g:TagKeys" && quantifier === "one")
		return "has several values: the operator must begin with ForAnyValue: or ForAllValues:";
	return undefined;
}

// --- values -------------------------------------------------------------------------

/** Instants are milliseconds since 1970. */
export type Operand = string | number | boolean;

/** What a value of each kind of operator must be. */
export const operandRules: Record<Family, string> = {
	String: `must be text of at most ${POLICY_TEXT_LIMIT} characters`,
	Number: "must be a number such as 10 or -2.5",
	Date: "must be a time such as 2026-01-29T08:00:00Z or 2026-01-29, or whole seconds since 1970, up to the year 9999",
	Bool: "must be true or false",
	IpAddress:
		"must be an IPv4 or IPv6 address or a range of them such as 192.0.2.0/24 or 2001:db8::/32",
	Null: "must be true or false",
};

/** @returns undefined when the value breaks the rule of the family. */
export function readOperand(
	family: Family,
	value: unknown,
): Operand | undefined {
	switch (family) {
		case "String":
			return typeof value === "string" &&
				value.length <= POLICY_TEXT_LIMIT &&
				value.isWellFormed()
				? value
				: undefined;
		case "Number":
			if (typeof value === "number")
				return Number.isFinite(value) ? value : undefined;
			return typeof value === "string" ? readNumber(value) : undefined;
		case "Date":
			if (typeof value === "number") return readSeconds(value);
			return typeof value === "string" ? readInstant(value) : undefined;
		case "Bool":
		case "Null":
			if (typeof value === "boolean") return value;
			return typeof value === "string" ? readBool(value) : undefined;
		case "IpAddress":
			return typeof value === "string" && readRange(value) ? value : undefined;
		default:
			return family satisfies never;
	}
}

/** No number and no time that people write is longer. */
const WRITTEN_VALUE_LIMIT = 40;

function readNumber(text: string): number | undefined {
	if (text.length > WRITTEN_VALUE_LIMIT) return undefined;
	if (!/^[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?$/.test(text)) return undefined;
	const number = Number(text);
	return Number.isFinite(number) ? number : undefined;
}

function readBool(text: string): boolean | undefined {
	return text === "true" ? true : text === "false" ? false : undefined;
}

const LAST_SECOND = 253_402_300_799;

function readSeconds(seconds: number): number | undefined {
	return Number.isInteger(seconds) && seconds >= 0 && seconds <= LAST_SECOND
		? seconds * 1_000
		: undefined;
}

const WRITTEN_TIME =
	/^(?<year>\d{4})-?(?<month>\d\d)-?(?<day>\d\d)(?:T(?<hour>\d\d):?(?<minute>\d\d)(?::?(?<second>\d\d)(?:\.(?<fraction>\d{1,9}))?)?(?:Z|(?<sign>[+-])(?<ahead>\d\d):?(?<aheadMinutes>\d\d)))?$/;

/** A date alone is its midnight in UTC; a time needs its distance from UTC. */
function readInstant(text: string): number | undefined {
	if (text.length > WRITTEN_VALUE_LIMIT) return undefined;
	if (/^\d+$/.test(text)) return readSeconds(Number(text));
	const written = WRITTEN_TIME.exec(text)?.groups;
	if (!written) return undefined;
	const { year, month, day, sign } = written;
	const { hour = "00", minute = "00", second = "00", fraction = "" } = written;
	const milliseconds = fraction.padEnd(3, "0").slice(0, 3);
	const inUtc = `${year}-${month}-${day}T${hour}:${minute}:${second}.${milliseconds}Z`;
	const date = new Date(inUtc);
	// What does not come out as it went in is no day of the calendar, such as 30 February.
	if (Number.isNaN(date.getTime()) || date.toISOString() !== inUtc)
		return undefined;
	const ahead = Number(written.ahead ?? "0");
	const aheadMinutes = Number(written.aheadMinutes ?? "0");
	if (ahead > 23 || aheadMinutes > 59) return undefined;
	const aheadMs = (ahead * 60 + aheadMinutes) * 60_000;
	return date.getTime() + (sign === "-" ? aheadMs : -aheadMs);
}

interface AddressRange {
	address: string;
	family: "ipv4" | "ipv6";
	prefixBits: number;
}

function readRange(text: string): AddressRange | undefined {
	if (text.length > 2 * WRITTEN_VALUE_LIMIT) return undefined;
	const [address = "", bits, ...more] = text.split("/");
	if (more.length > 0 || address.includes("%")) return undefined;
	const family = familyOf(address);
	if (!family) return undefined;
	const most = family === "ipv4" ? 32 : 128;
	if (bits === undefined) return { address, family, prefixBits: most };
	if (!/^\d{1,3}$/.test(bits) || Number(bits) > most) return undefined;
	return { address, family, prefixBits: Number(bits) };
}

function familyOf(address: string): "ipv4" | "ipv6" | undefined {
	return isIPv4(address) ? "ipv4" : isIPv6(address) ? "ipv6" : undefined;
}

// --- what a condition comes to ------------------------------------------------------

export interface Condition {
	operator: Operator;
	key: ConditionKey;
	/** At least one, each of the operator's family. */
	values: readonly Operand[];
}

export type Tags = Readonly<Record<string, string>>;

/** What there is to ask about one request. */
export interface Facts {
	userName: string;
	userId: string;
	accountName: string;
	/** Empty when there is none; what is no address is held against the caller. */
	sourceIp: string;
	now: Date;
	secureTransport: boolean;
	/** Of what the request is about. */
	resource: { enterpriseProjectId: string; tags: Tags } | "unknown";
	requestTags: Tags | "unknown";
}

export type Truth = boolean | "unknown";
export type CompiledCondition = (facts: Facts) => Truth;

/**
 * And: false wins over unknown, unknown over true.
 *
 * @param effect of the statement: a source address that cannot be read is within every
 * range and outside of it for a Deny, and neither for an Allow.
 */
export function compileConditions(
	conditions: readonly Condition[],
	effect: "Allow" | "Deny",
): CompiledCondition {
	const compiled = conditions.map((condition) =>
		compileCondition(condition, effect),
	);
	return (facts) => {
		let all: Truth = true;
		for (const condition of compiled) {
			const truth = condition(facts);
			if (truth === false) return false;
			if (truth === "unknown") all = "unknown";
		}
		return all;
	};
}

function compileCondition(
	{
		operator: { family, comparison, negated, quantifier, ifExists },
		key,
		values,
	}: Condition,
	effect: "Allow" | "Deny",
): CompiledCondition {
	const ask = compileKey(key);
	if (family === "Null") {
		const whenAbsent = values.includes(true);
		const whenPresent = values.includes(false);
		return (facts) => {
			const asked = ask(facts);
			if (asked === unknown) return "unknown";
			return asked === undefined ? whenAbsent : whenPresent;
		};
	}
	const fits = compileComparison(family, comparison, values);
	const holds = (value: Operand) => fits(value) !== negated;
	// Nothing is equal to what is not there, so a negated operator is content with it.
	const whenAbsent =
		ifExists || quantifier === "all" || (quantifier === "one" && negated);
	return (facts) => {
		const asked = ask(facts);
		if (asked === unknown) return "unknown";
		if (asked === undefined) return whenAbsent;
		if (key.name === "g:SourceIp" && !readAddress(facts.sourceIp))
			return effect === "Deny";
		if (typeof asked !== "object") return holds(asked);
		return quantifier === "all" ? asked.every(holds) : asked.some(holds);
	};
}

const unknown = Symbol("not known yet");
/** The value or values that a request has for a key; undefined when the key is absent. */
type Asked = Operand | readonly Operand[] | undefined | typeof unknown;

function compileKey(key: ConditionKey): (facts: Facts) => Asked {
	switch (key.name) {
		case "g:EnterpriseProjectId":
			return ({ resource }) =>
				resource === "unknown" ? unknown : resource.enterpriseProjectId;
		case "g:UserName":
			return (facts) => facts.userName;
		case "g:UserId":
			return (facts) => facts.userId;
		case "g:DomainName":
			return (facts) => facts.accountName;
		case "g:SourceIp":
			return ({ sourceIp }) => (sourceIp === "" ? undefined : sourceIp);
		case "g:CurrentTime":
			return (facts) => facts.now.getTime();
		case "g:MFAPresent":
			// There is no second factor to sign in with.
			return () => false;
		case "g:SecureTransport":
			return (facts) => facts.secureTransport;
		case "g:TagKeys":
			return ({ requestTags }) => {
				if (requestTags === "unknown") return unknown;
				const keys = Object.keys(requestTags);
				return keys.length === 0 ? undefined : keys;
			};
		case "g:RequestTag": {
			const { tag } = key;
			return ({ requestTags }) => tagOf(requestTags, tag);
		}
		case "g:ResourceTag": {
			const { tag } = key;
			return ({ resource }) =>
				tagOf(resource === "unknown" ? resource : resource.tags, tag);
		}
		default:
			return key satisfies never;
	}
}

function tagOf(tags: Tags | "unknown", tag: string): Asked {
	if (tags === "unknown") return unknown;
	return Object.hasOwn(tags, tag) ? tags[tag] : undefined;
}

type Fits = (value: Operand) => boolean;

function compileComparison(
	family: Exclude<Family, "Null">,
	comparison: Comparison,
	operands: readonly Operand[],
): Fits {
	switch (family) {
		case "String":
			return compileText(comparison, operands.map(String));
		case "Bool":
			return compileOrder(comparison, operands, (text) => readBool(text));
		case "Number":
			return compileOrder(comparison, operands, readNumber);
		case "Date":
			return compileOrder(comparison, operands, readInstant);
		case "IpAddress":
			return compileRanges(operands.map(String));
		default:
			return family satisfies never;
	}
}

function compileText(
	comparison: Comparison,
	operands: readonly string[],
): Fits {
	switch (comparison) {
		case "Equals": {
			const wanted = new Set<Operand>(operands);
			return (value) => wanted.has(value);
		}
		case "EqualsIgnoreCase": {
			const wanted = new Set(operands.map((operand) => operand.toLowerCase()));
			return (value) => wanted.has(String(value).toLowerCase());
		}
		case "Match": {
			const matchers = operands.map(compileWildcards);
			return (value) => matchers.some((matches) => matches(String(value)));
		}
		case "StartWith":
			return (value) =>
				operands.some((start) => String(value).startsWith(start));
		case "EndWith":
			return (value) => operands.some((end) => String(value).endsWith(end));
		default:
			throw new TypeError(`Texts are not compared by ${comparison}.`);
	}
}

/** @param read the value of a tag; what it cannot be read as fits nothing */
function compileOrder(
	comparison: Comparison,
	operands: readonly Operand[],
	read: (text: string) => Operand | undefined,
): Fits {
	const fits = order(comparison);
	return (value) => {
		const given = typeof value === "string" ? read(value) : value;
		return (
			given !== undefined && operands.some((operand) => fits(given, operand))
		);
	};
}

function order(comparison: Comparison): (a: Operand, b: Operand) => boolean {
	switch (comparison) {
		case "Equals":
			return (a, b) => a === b;
		case "LessThan":
			return (a, b) => a < b;
		case "LessThanEquals":
			return (a, b) => a <= b;
		case "GreaterThan":
			return (a, b) => a > b;
		case "GreaterThanEquals":
			return (a, b) => a >= b;
		default:
			throw new TypeError(`Values have no order ${comparison}.`);
	}
}

/** An IPv4 address and its form inside IPv6 (`::ffff:192.0.2.1`) are the same address. */
function compileRanges(ranges: readonly string[]): Fits {
	const list = new BlockList();
	for (const text of ranges) {
		const range = readRange(text);
		if (range) list.addSubnet(range.address, range.prefixBits, range.family);
	}
	return (value) => {
		const address = readAddress(String(value));
		return address !== undefined && list.check(address);
	};
}

/** Many conditions of one decision ask for the same address. */
let lastRead: { text: string; address: SocketAddress | undefined } | undefined;

/** @param text may name a zone (`fe80::1%eth0`), which does not count */
function readAddress(text: string): SocketAddress | undefined {
	if (lastRead?.text === text) return lastRead.address;
	const [address = ""] = text.split("%", 1);
	const family = familyOf(address);
	lastRead = {
		text,
		address: family && new SocketAddress({ address, family }),
	};
	return lastRead.address;
}
