/**
 * Policy documents, from JSON to what the decision is made from (pure). Both languages of
 * the vendor: versions 1.0 and 1.1 of the role and policy model, version 5.0 of identity
 * policies. They are read by one grammar; what the older pages do not name (Sid,
 * NotAction, NotResource, `?`) means in them what it means in 5.0.
 *
 * Nothing that is not understood is passed over: a misspelt "Resourse" would otherwise
 * open everything.
 */
import {
	type Condition,
	conditionKeyNames,
	findConditionKey,
	findOperator,
	misfit,
	type Operator,
	operandRules,
	operatorNames,
	readOperand,
} from "./policy-conditions.ts";
import { compileWildcards, POLICY_TEXT_LIMIT } from "./wildcards.ts";

/** The caller's to check, before it parses. */
export const POLICY_DOCUMENT_LIMIT_BYTES = 32 * 1_024;
export const STATEMENT_LIMIT = 100;
/** Members of one list of actions, resources or values. */
export const POLICY_LIST_LIMIT = 500;
export const SID_LIMIT = 128;

const versions = ["1.0", "1.1", "5.0"] as const;
export type PolicyVersion = (typeof versions)[number];

export interface PolicyDocument {
	version: PolicyVersion;
	statements: readonly PolicyStatement[];
}

export interface PolicyStatement {
	sid?: string;
	effect: "Allow" | "Deny";
	/** Patterns in lower case, of `service:type:operation` or `*`. */
	actions: Listed<string>;
	/** Absent: everything. */
	resources?: Listed<ResourcePattern>;
	conditions: readonly Condition[];
}

/** `except`: everything but what is listed (NotAction, NotResource). */
export interface Listed<T> {
	except: boolean;
	listed: readonly T[];
}

/** `*`, or a URN whose parts are patterns; service and type are in lower case. */
export type ResourcePattern =
	| "*"
	| {
			service: string;
			/** Empty: any. */
			region: string;
			/** Empty: any. */
			account: string;
			type: string;
			id: string;
	  };

/** The types of resources that there are, all of the service `iotda`. */
export const resourceService = "iotda";
export const resourceTypes = ["instance", "app"] as const;

/** A document that is no policy. */
export class PolicyFault extends Error {
	override name = "PolicyFault";
	/** Where, as a JSON pointer (RFC 6901); empty for the document as a whole. */
	readonly pointer: string;
	/** What is demanded there: goes on after the name of the place, "must be …". */
	readonly rule: string;

	constructor(pointer: string, rule: string) {
		super(`${pointer === "" ? "The document" : pointer} ${rule}`);
		this.pointer = pointer;
		this.rule = rule;
	}
}

/**
 * Reads a parsed JSON document.
 *
 * @throws PolicyFault at the first fault: of each object first a member that is unknown,
 * then its members in the order of the vendor's pages. A member that is missing is
 * pointed to as if it were there.
 */
export function readPolicy(document: unknown): PolicyDocument {
	const whole = { value: document, pointer: "" };
	requireMembers(whole, ["Version", "Statement"]);
	const version = member(whole, "Version");
	const known = versions.find((one) => one === version.value);
	if (known === undefined)
		throw fault(version, 'must be "1.0", "1.1" or "5.0", as text');
	const statement = member(whole, "Statement");
	if (!Array.isArray(statement.value))
		throw fault(statement, "must be a list of statements");
	if (statement.value.length < 1 || statement.value.length > STATEMENT_LIMIT)
		throw fault(statement, `must have 1 to ${STATEMENT_LIMIT} statements`);
	return { version: known, statements: items(statement).map(readStatement) };
}

// --- places -------------------------------------------------------------------------

/** A value and where in the document it stands. */
interface Place {
	value: unknown;
	pointer: string;
}

function fault(place: Place, rule: string): PolicyFault {
	return new PolicyFault(place.pointer, rule);
}

function at(place: Place, name: string | number, value: unknown): Place {
	const step = String(name).replaceAll("~", "~0").replaceAll("/", "~1");
	return { value, pointer: `${place.pointer}/${step}` };
}

function member(place: Place, name: string): Place {
	return at(place, name, (place.value as Record<string, unknown>)[name]);
}

function members(place: Place): { name: string; place: Place }[] {
	return Object.entries(place.value as object).map(([name, value]) => ({
		name,
		place: at(place, name, value),
	}));
}

function items(place: Place): Place[] {
	return Array.from(place.value as unknown[], (value, index) =>
		at(place, index, value),
	);
}

function isObject(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}

function requireMembers(place: Place, known: readonly string[]): void {
	if (!isObject(place.value)) throw fault(place, "must be an object");
	for (const name of Object.keys(place.value)) {
		if (!known.includes(name))
			throw fault(
				member(place, name),
				`is not known here: there are ${known.join(", ")}`,
			);
	}
}

/** A text, or a list of texts. */
function texts(place: Place): Place[] {
	if (!Array.isArray(place.value)) return [place];
	if (place.value.length < 1 || place.value.length > POLICY_LIST_LIMIT)
		throw fault(place, `must have 1 to ${POLICY_LIST_LIMIT} members`);
	return items(place);
}

function isText(value: unknown, limit = POLICY_TEXT_LIMIT): value is string {
	return (
		typeof value === "string" &&
		value !== "" &&
		value.length <= limit &&
		value.isWellFormed()
	);
}

// --- statements ---------------------------------------------------------------------

const statementMembers = [
	"Sid",
	"Effect",
	"Action",
	"NotAction",
	"Resource",
	"NotResource",
	"Condition",
];

function readStatement(place: Place): PolicyStatement {
	requireMembers(place, statementMembers);
	const sid = member(place, "Sid");
	if (sid.value !== undefined && !isText(sid.value, SID_LIMIT))
		throw fault(sid, `must be text of 1 to ${SID_LIMIT} characters`);
	const effect = member(place, "Effect");
	if (effect.value !== "Allow" && effect.value !== "Deny")
		throw fault(effect, 'must be "Allow" or "Deny"');
	const actions = oneOf(place, "Action", "NotAction", readAction);
	if (!actions)
		throw fault(
			member(place, "Action"),
			"must be given, or else NotAction: what the statement is about",
		);
	const resources = oneOf(place, "Resource", "NotResource", readResource);
	return {
		...(sid.value === undefined ? {} : { sid: sid.value }),
		effect: effect.value,
		actions,
		...(resources ? { resources } : {}),
		conditions: readConditions(member(place, "Condition")),
	};
}

/** What is listed under the one name, or all but what is listed under the other. */
function oneOf<T>(
	place: Place,
	name: string,
	otherName: string,
	read: (place: Place) => T,
): Listed<T> | undefined {
	const plain = member(place, name);
	const other = member(place, otherName);
	if (plain.value !== undefined && other.value !== undefined)
		throw fault(other, `must not be given together with ${name}`);
	const given = plain.value === undefined ? other : plain;
	if (given.value === undefined) return undefined;
	return { except: given === other, listed: texts(given).map(read) };
}

function readAction(place: Place): string {
	const text = place.value;
	if (!isText(text)) throw fault(place, ACTION_RULE);
	if (text !== "*" && !ACTION.test(text)) throw fault(place, ACTION_RULE);
	return text.toLowerCase();
}

const ACTION = /^[\w*?-]+:[\w*?-]+:[\w*?-]+$/;
const ACTION_RULE =
	'must be "*" or three parts, service:type:operation, of letters, digits, "-", "_" and the wildcards "*" and "?"';

function readResource(place: Place): ResourcePattern {
	const text = place.value;
	if (text === "*") return text;
	if (!isText(text)) throw fault(place, RESOURCE_RULE);
	const [service = "", region = "", account = "", type = "", id, ...more] =
		text.split(":");
	if (id === undefined || more.length > 0 || !service || !type || !id)
		throw fault(place, RESOURCE_RULE);
	const pattern = {
		service: service.toLowerCase(),
		region,
		account,
		type: type.toLowerCase(),
		id,
	};
	// It would cover nothing: a Deny that is misspelt would deny nothing.
	if (!compileWildcards(pattern.service)(resourceService))
		throw fault(
			place,
			`must have "${resourceService}" or a wildcard for it as its first part: there are no resources of other services`,
		);
	if (!resourceTypes.some(compileWildcards(pattern.type)))
		throw fault(
			place,
			`must have "instance" or "app" as its fourth part: ${resourceService} has no other types of resources`,
		);
	return pattern;
}

const RESOURCE_RULE =
	'must be "*" or five parts, service:region:account:type:id, such as "iotda:*:*:app:61f7e74d036aca5be29e1ed4"; region and account may be empty';

// --- conditions ---------------------------------------------------------------------

function readConditions(place: Place): Condition[] {
	if (place.value === undefined) return [];
	if (!isObject(place.value))
		throw fault(place, "must be an object of operators");
	return members(place).flatMap(({ name, place: operatorPlace }) => {
		const operator = findOperator(name);
		if (!operator) throw fault(operatorPlace, OPERATOR_RULE);
		if (!isObject(operatorPlace.value))
			throw fault(operatorPlace, "must be an object of condition keys");
		const keys = members(operatorPlace);
		// Would be true of everything.
		if (keys.length === 0)
			throw fault(operatorPlace, "must have at least one condition key");
		return keys.map((key) => readCondition(operator, key.name, key.place));
	});
}

const OPERATOR_RULE = `is no operator: there are ${operatorNames.join(", ")}, all but Null also with IfExists behind, all also with ForAnyValue: or ForAllValues: before`;

function readCondition(
	operator: Operator,
	name: string,
	place: Place,
): Condition {
	const key =
		name.length <= POLICY_TEXT_LIMIT && name.isWellFormed()
			? findConditionKey(name)
			: undefined;
	if (!key)
		throw fault(
			place,
			`is no condition key: there are ${conditionKeyNames.join(", ")}`,
		);
	const reason = misfit(operator, key);
	if (reason !== undefined) throw fault(place, reason);
	const values = texts(place).map((value) => {
		const operand = readOperand(operator.family, value.value);
		if (operand === undefined)
			throw fault(value, operandRules[operator.family]);
		return operand;
	});
	return { operator, key, values };
}
