/**
 * The rule of a dynamic group: from text to a syntax tree and back. The grammar is that
 * of docs/group-rules.md: the vendor's device search, and what we add to it. What a rule
 * says of one device is in group-rule-fits.ts, what of all in group-rule-sql.ts.
 */

/** Characters, counted as code points. */
export const RULE_LENGTH_LIMIT = 4_000;
/** How deep parentheses and `not` may stand inside each other. */
export const RULE_DEPTH_LIMIT = 32;
/** Comparisons; those with a list count as one. Each may cost a look-up for every device. */
export const RULE_CONDITION_LIMIT = 30;
/** Percent signs in one pattern: each is tried at every place of a text. */
export const PATTERN_LIMIT = 10;

export type Rule =
	| { kind: "and" | "or"; rules: Rule[] }
	| { kind: "not"; rule: Rule }
	| { kind: "field"; field: FieldName; test: Test }
	/** The value of the tag with this key. */
	| { kind: "tag"; key: string; test: Test }
	/** The version last reported for the module of this name. */
	| { kind: "module"; name: string; test: Test }
	/** `tag_key` and `tag_value`: of any tag; both together are about one and the same. */
	| { kind: "any_tag"; key?: Test; value?: Test };

export type Test =
	| { op: "=" | "!=" | "<" | "<=" | ">" | ">="; value: string }
	| { op: "in" | "not in"; values: string[] }
	/** What stands between the percent signs: `abc%` is `["abc", ""]`. */
	| { op: "like" | "not like"; parts: string[] }
	| { op: "is null" | "is not null" };

type Operator = Test["op"];

export type FieldName =
	| "app_id"
	| "device_id"
	| "device_name"
	| "gateway_id"
	| "node_id"
	| "node_type"
	| "product_id"
	| "product_name"
	| "status"
	| "fw_version"
	| "sw_version"
	| "group_id"
	| "create_time"
	| "active_time"
	| "marker";

interface Field {
	/** `like` is understood. */
	like?: boolean;
	/** Has an order: `<` and its kin are understood. */
	ordered?: boolean;
	/** May have no value: `is null` is understood. */
	nullable?: boolean;
	/** The empty text is a value it can have. */
	empty?: boolean;
	/** The value as it is stored, or undefined when it can never be one. */
	read?: (value: string) => string | undefined;
	/** What such a value must be, in words. */
	values?: string;
}

const oneOf = (...values: string[]): Field => ({
	read: (value) => (values.includes(value) ? value : undefined),
	values: `one of ${values.map((value) => `'${value}'`).join(", ")}`,
});
const time = {
	ordered: true,
	read: readTime,
	values: "a time such as '2026-01-29T08:00:00.000Z'",
};
const version = { like: true, nullable: true };

const fields: Record<FieldName, Field> = {
	app_id: {},
	device_id: { like: true },
	device_name: { like: true, nullable: true },
	gateway_id: {},
	node_id: { like: true },
	node_type: oneOf("GATEWAY", "ENDPOINT"),
	product_id: {},
	product_name: { like: true },
	status: oneOf("ONLINE", "OFFLINE", "ABNORMAL", "INACTIVE", "FROZEN"),
	fw_version: version,
	sw_version: version,
	group_id: {},
	create_time: time,
	active_time: { ...time, nullable: true },
	marker: {
		ordered: true,
		read: (value) =>
			/^[0-9a-fA-F]{24}$/.test(value) ? value.toLowerCase() : undefined,
		values: "24 hexadecimal digits",
	},
};
const anyTagField: Field = { like: true, empty: true };
const tagField: Field = { like: true, nullable: true, empty: true };
const moduleField: Field = version;

/** Both date forms of the API; stored is the longer one. */
function readTime(text: string): string | undefined {
	const match =
		/^(\d{4})-?(\d\d)-?(\d\d)T(\d\d):?(\d\d):?(\d\d)(\.\d{3})?Z$/.exec(text);
	if (!match) return undefined;
	const [, year, month, day, hour, minute, second, ms = ".000"] = match;
	const stored = `${year}-${month}-${day}T${hour}:${minute}:${second}${ms}Z`;
	const date = new Date(stored);
	return Number.isNaN(date.getTime()) || date.toISOString() !== stored
		? undefined
		: stored;
}

/** A text that is no rule. */
export class RuleError extends Error {
	override name = "RuleError";
	/** The character where it goes wrong; 1 is the first. */
	readonly position: number;
	/** What is wrong there. */
	readonly reason: string;

	constructor(position: number, reason: string) {
		super(`character ${position}: ${reason}`);
		this.position = position;
		this.reason = reason;
	}
}

// --- words ------------------------------------------------------------------------

interface Token {
	kind: "word" | "text" | "sign" | "end";
	/** A text without its quotes, anything else as it stands. */
	value: string;
	/** Index into the rule. */
	at: number;
}

/** Names of fields, tags and modules, and keywords. No sign of the grammar is among these. */
const WORD = /[A-Za-z0-9_.\-\u3400-\u4DBF\u4E00-\u9FFF]+/y;
const BLANK = /[\s\u3000]+/y;
const SIGN = /!=|<=|>=|[=<>(),]/y;
/** Up to the next quote that is not doubled. */
const TEXT = /'((?:[^']|'')*)'(?!')/y;

const keywords = ["and", "or", "not", "in", "like", "is", "null"] as const;
type Keyword = (typeof keywords)[number];

class Reader {
	/** How many conditions were read. */
	conditions = 0;
	readonly #text: string;
	#at = 0;
	#next: Token;

	constructor(text: string) {
		this.#text = text;
		this.#next = this.#read();
	}

	get next(): Token {
		return this.#next;
	}

	take(): Token {
		const taken = this.#next;
		this.#next = this.#read();
		return taken;
	}

	/** Takes the keyword if it comes next; keywords are written in any case. */
	takeKeyword(keyword: Keyword): boolean {
		const { kind, value } = this.#next;
		if (kind !== "word" || value.toLowerCase() !== keyword) return false;
		this.take();
		return true;
	}

	takeSign(sign: string): boolean {
		if (this.#next.kind !== "sign" || this.#next.value !== sign) return false;
		this.take();
		return true;
	}

	fail(reason: string, at = this.#next.at): RuleError {
		return new RuleError(countCharacters(this.#text.slice(0, at)) + 1, reason);
	}

	/** Says what was expected instead of what comes next. */
	expected(what: string): RuleError {
		const { kind, value } = this.#next;
		const found =
			kind === "end"
				? "the end of the rule"
				: kind === "text"
					? `the text '${shortened(value)}'`
					: shortened(value);
		return this.fail(`expected ${what}, found ${found}`);
	}

	#read(): Token {
		this.#match(BLANK);
		const at = this.#at;
		if (at >= this.#text.length) return { kind: "end", value: "", at };
		const word = this.#match(WORD);
		if (word) return { kind: "word", value: word[0], at };
		const sign = this.#match(SIGN);
		if (sign) return { kind: "sign", value: sign[0], at };
		const text = this.#match(TEXT);
		if (text)
			return { kind: "text", value: (text[1] ?? "").replaceAll("''", "'"), at };
		if (this.#text[at] === "'")
			throw this.fail("the text that begins here has no closing quote", at);
		if (this.#text[at] === '"')
			throw this.fail("texts are written in single quotes", at);
		const character = String.fromCodePoint(this.#text.codePointAt(at) ?? 0);
		throw this.fail(
			`${/[\p{C}\p{Z}]/u.test(character) ? "a character that is not printed" : character} has no meaning here`,
			at,
		);
	}

	#match(pattern: RegExp): RegExpExecArray | null {
		pattern.lastIndex = this.#at;
		const match = pattern.exec(this.#text);
		if (match) this.#at = pattern.lastIndex;
		return match;
	}
}

function countCharacters(text: string): number {
	let count = 0;
	for (const _ of text) count++;
	return count;
}

function shortened(text: string): string {
	const characters = [...text];
	return characters.length > 40
		? `${characters.slice(0, 40).join("")}…`
		: characters.join("");
}

// --- from text --------------------------------------------------------------------

/** @throws RuleError, and nothing else, for whatever is no rule */
export function parseRule(text: string): Rule {
	if (countCharacters(text) > RULE_LENGTH_LIMIT)
		throw new RuleError(
			RULE_LENGTH_LIMIT + 1,
			`a rule has at most ${RULE_LENGTH_LIMIT} characters`,
		);
	// No store keeps these.
	const unfit = /\0|\p{Surrogate}/u.exec(text);
	if (unfit)
		throw new RuleError(
			countCharacters(text.slice(0, unfit.index)) + 1,
			"U+0000 and halves of surrogate pairs are not allowed",
		);
	const reader = new Reader(text);
	const rule = readOr(reader, 0);
	if (reader.next.kind !== "end")
		throw reader.expected("and, or, or the end of the rule");
	return rule;
}

function readOr(reader: Reader, depth: number): Rule {
	const rules = [readAnd(reader, depth)];
	while (reader.takeKeyword("or")) rules.push(readAnd(reader, depth));
	return joined("or", rules);
}

function readAnd(reader: Reader, depth: number): Rule {
	const rules = [readTerm(reader, depth)];
	while (reader.takeKeyword("and")) rules.push(readTerm(reader, depth));
	return joined("and", withPairs(rules));
}

function joined(kind: "and" | "or", rules: Rule[]): Rule {
	const [only] = rules;
	return rules.length === 1 && only ? only : { kind, rules };
}

/**
 * A condition on `tag_key` and one on `tag_value` that stand side by side are about the
 * same tag: that is what who writes `tag_key = 'site' and tag_value = 'Berlin'` means.
 */
function withPairs(rules: readonly Rule[]): Rule[] {
	const paired: Rule[] = [];
	for (const rule of rules) {
		const last = paired.at(-1);
		if (last?.kind === "any_tag" && rule.kind === "any_tag") {
			const both = { ...last, ...rule };
			if (
				both.key !== undefined &&
				both.value !== undefined &&
				Object.keys(last).length + Object.keys(rule).length === 4
			) {
				paired[paired.length - 1] = both;
				continue;
			}
		}
		paired.push(rule);
	}
	return paired;
}

function readTerm(reader: Reader, depth: number): Rule {
	const { at } = reader.next;
	const deeper = () => {
		if (depth >= RULE_DEPTH_LIMIT)
			throw reader.fail(
				`parentheses and not may be nested ${RULE_DEPTH_LIMIT} deep at most`,
				at,
			);
		return depth + 1;
	};
	if (reader.takeKeyword("not"))
		return { kind: "not", rule: readTerm(reader, deeper()) };
	if (reader.takeSign("(")) {
		const rule = readOr(reader, deeper());
		if (!reader.takeSign(")")) throw reader.expected("and, or, or )");
		return rule;
	}
	return readCondition(reader);
}

function readCondition(reader: Reader): Rule {
	const { kind, value: name, at } = reader.next;
	if (kind !== "word" || isKeyword(name))
		throw reader.expected("the name of a field, not, or (");
	if (++reader.conditions > RULE_CONDITION_LIMIT)
		throw reader.fail(
			`a rule has at most ${RULE_CONDITION_LIMIT} conditions; in compares with many values at once`,
		);
	reader.take();
	if (name === "tag_key")
		return { kind: "any_tag", key: readTest(reader, name, anyTagField) };
	if (name === "tag_value")
		return { kind: "any_tag", value: readTest(reader, name, anyTagField) };
	if (name.startsWith("tag.") && fits(name.slice(4), 64))
		return {
			kind: "tag",
			key: name.slice(4),
			test: readTest(reader, name, tagField),
		};
	if (
		name.startsWith("module.") &&
		/^[A-Za-z0-9_.-]{1,64}$/.test(name.slice(7))
	)
		return {
			kind: "module",
			name: name.slice(7),
			test: readTest(reader, name, moduleField),
		};
	if (!isField(name))
		throw reader.fail(
			`there is no field ${shortened(name)}; fields are ${Object.keys(fields).join(", ")}, tag_key, tag_value, tag.KEY and module.NAME`,
			at,
		);
	return {
		kind: "field",
		field: name,
		test: readTest(reader, name, fields[name]),
	};
}

function fits(key: string, limit: number): boolean {
	return key.length > 0 && key.length <= limit;
}

function isField(name: string): name is FieldName {
	return Object.hasOwn(fields, name);
}

function isKeyword(word: string): boolean {
	return (keywords as readonly string[]).includes(word.toLowerCase());
}

function readTest(reader: Reader, name: string, field: Field): Test {
	const { at } = reader.next;
	const op = readOperator(reader);
	const understood =
		op === "like" || op === "not like"
			? field.like
			: op === "is null" || op === "is not null"
				? field.nullable
				: op === "=" || op === "!=" || op === "in" || op === "not in"
					? true
					: field.ordered;
	if (!understood)
		throw reader.fail(
			`${shortened(name)} cannot be asked with ${op}; ${operatorsOf(field)}`,
			at,
		);
	switch (op) {
		case "is null":
		case "is not null":
			return { op };
		case "like":
		case "not like":
			return { op, parts: readPattern(reader) };
		case "in":
		case "not in":
			return { op, values: readList(reader, field) };
		default:
			return { op, value: readValue(reader, field) };
	}
}

function operatorsOf(field: Field): string {
	const known = ["=", "!=", "in"];
	if (field.ordered) known.push("<", "<=", ">", ">=");
	if (field.like) known.push("like");
	if (field.nullable) known.push("is null");
	return `it understands ${known.join(", ")}`;
}

function readOperator(reader: Reader): Operator {
	for (const sign of ["=", "!=", "<=", ">=", "<", ">"] as const)
		if (reader.takeSign(sign)) return sign;
	if (reader.takeKeyword("like")) return "like";
	if (reader.takeKeyword("in")) return "in";
	if (reader.takeKeyword("not")) {
		if (reader.takeKeyword("like")) return "not like";
		if (reader.takeKeyword("in")) return "not in";
		throw reader.expected("like or in");
	}
	if (reader.takeKeyword("is")) {
		const op = reader.takeKeyword("not") ? "is not null" : "is null";
		if (!reader.takeKeyword("null")) throw reader.expected("null");
		return op;
	}
	throw reader.expected("=, !=, <, <=, >, >=, like, in, not, or is");
}

function readList(reader: Reader, field: Field): string[] {
	if (!reader.takeSign("(")) throw reader.expected("(");
	const values = [readValue(reader, field)];
	while (reader.takeSign(",")) values.push(readValue(reader, field));
	if (!reader.takeSign(")")) throw reader.expected(", or )");
	return values;
}

function takeText(reader: Reader): Token {
	if (reader.next.kind !== "text")
		throw reader.expected("a text in single quotes");
	return reader.take();
}

function readValue(reader: Reader, field: Field): string {
	const { value, at } = takeText(reader);
	if (value === "" && !field.empty)
		throw reader.fail(
			`an empty text is never a value${field.nullable ? "; is null asks for what has none" : ""}`,
			at,
		);
	if (!field.read) return value;
	const stored = field.read(value);
	if (stored === undefined)
		throw reader.fail(`the value must be ${field.values}`, at);
	return stored;
}

/** `%` stands for any characters; `\%` and `\\` for a percent sign and a backslash. */
function readPattern(reader: Reader): string[] {
	const { value, at } = takeText(reader);
	if (value === "") throw reader.fail("an empty pattern fits nothing", at);
	const parts = [""];
	for (let i = 0; i < value.length; i++) {
		let character = value.charAt(i);
		if (character === "%") {
			parts.push("");
			continue;
		}
		if (character === "\\") {
			character = value.charAt(++i);
			if (character !== "%" && character !== "\\")
				throw reader.fail(
					"in a pattern a backslash stands before % or another backslash",
					at,
				);
		}
		parts[parts.length - 1] += character;
	}
	if (parts.length > PATTERN_LIMIT + 1)
		throw reader.fail(
			`a pattern has at most ${PATTERN_LIMIT} percent signs`,
			at,
		);
	return parts;
}

// --- to text ------------------------------------------------------------------------

/** The rule as text; parsing it gives the same tree. */
export function printRule(rule: Rule): string {
	switch (rule.kind) {
		case "or":
			return rule.rules
				.map((part) =>
					part.kind === "or" ? `(${printRule(part)})` : printRule(part),
				)
				.join(" or ");
		case "and":
			return rule.rules
				.map((part) =>
					isJoined(part) ? `(${printRule(part)})` : printRule(part),
				)
				.join(" and ");
		case "not":
			return isJoined(rule.rule)
				? `not (${printRule(rule.rule)})`
				: `not ${printRule(rule.rule)}`;
		case "field":
			return printTest(rule.field, rule.test);
		case "tag":
			return printTest(`tag.${rule.key}`, rule.test);
		case "module":
			return printTest(`module.${rule.name}`, rule.test);
		case "any_tag":
			return [
				...(rule.key ? [printTest("tag_key", rule.key)] : []),
				...(rule.value ? [printTest("tag_value", rule.value)] : []),
			].join(" and ");
		default:
			return rule satisfies never;
	}
}

/** Has an `and` or `or` of its own. */
function isJoined(rule: Rule): boolean {
	return (
		rule.kind === "and" ||
		rule.kind === "or" ||
		(rule.kind === "any_tag" &&
			rule.key !== undefined &&
			rule.value !== undefined)
	);
}

function printTest(name: string, test: Test): string {
	return `${name} ${test.op}${printOperand(test)}`;
}

function printOperand(test: Test): string {
	if ("value" in test) return ` ${quoted(test.value)}`;
	if ("values" in test) return ` (${test.values.map(quoted).join(", ")})`;
	if ("parts" in test)
		return ` ${quoted(test.parts.map((part) => part.replaceAll(/[\\%]/g, "\\$&")).join("%"))}`;
	return "";
}

function quoted(text: string): string {
	return `'${text.replaceAll("'", "''")}'`;
}

// --- about a rule -------------------------------------------------------------------

/** A test without its "not", and whether it had one. What has no value fits every "not". */
export function affirmative(test: Test): { denied: boolean; test: Test } {
	switch (test.op) {
		case "!=":
			return { denied: true, test: { op: "=", value: test.value } };
		case "not in":
			return { denied: true, test: { op: "in", values: test.values } };
		case "not like":
			return { denied: true, test: { op: "like", parts: test.parts } };
		case "is null":
			return { denied: true, test: { op: "is not null" } };
		default:
			return { denied: false, test };
	}
}

type Condition = Exclude<Rule, { kind: "and" | "or" } | { kind: "not" }>;

/** Every condition of the rule. */
function* conditionsOf(rule: Rule): Generator<Condition> {
	switch (rule.kind) {
		case "and":
		case "or":
			for (const part of rule.rules) yield* conditionsOf(part);
			break;
		case "not":
			yield* conditionsOf(rule.rule);
			break;
		default:
			yield rule;
	}
}

/** The groups that the rule names. */
export function groupsNamedIn(rule: Rule): string[] {
	const named = new Set<string>();
	for (const condition of conditionsOf(rule)) {
		if (condition.kind !== "field" || condition.field !== "group_id") continue;
		const { test } = condition;
		if ("value" in test) named.add(test.value);
		if ("values" in test) for (const value of test.values) named.add(value);
	}
	return [...named];
}

/** How many look-ups in other tables it may take to decide about one device. */
export function lookUpsOf(rule: Rule): number {
	let count = 0;
	for (const condition of conditionsOf(rule))
		if (
			condition.kind !== "field" ||
			condition.field === "group_id" ||
			condition.field === "status"
		)
			count++;
	return count;
}
