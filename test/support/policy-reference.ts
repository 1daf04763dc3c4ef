/**
 * A second, naive evaluation of policies, straight from the JSON of the documents and for
 * questions that leave nothing open: what the real one is compared with. It shares no
 * code with it, knows no errors and is in no hurry.
 */
export interface ReferenceGrant {
	document: {
		Version: string;
		Statement: ReferenceStatement[];
	};
	/** "all", "project:ID" or "enterprise_project:ID" */
	within: string;
}

export interface ReferenceStatement {
	Effect: string;
	Action?: string | string[];
	NotAction?: string | string[];
	Resource?: string | string[];
	NotResource?: string | string[];
	Condition?: Record<string, Record<string, unknown>>;
}

export interface ReferenceQuestion {
	action: string;
	projectId: string;
	/** Urns of what is asked for; no space: only the instance. */
	instanceUrn: string;
	spaceUrn: string | undefined;
	enterpriseProjectId: string;
	/** Condition keys in lower case, tag keys as they are; absent: no such member. */
	keys: Record<string, string | string[]>;
}

export function referenceDecision(
	grants: readonly ReferenceGrant[],
	question: ReferenceQuestion,
): "allowed" | "denied" | "no_statement" {
	const effects = new Set<string>();
	for (const { document, within } of grants) {
		const inScope =
			within === "all" ||
			within === `project:${question.projectId}` ||
			(question.spaceUrn !== undefined &&
				within === `enterprise_project:${question.enterpriseProjectId}`);
		if (!inScope) continue;
		for (const statement of document.Statement)
			if (applies(statement, question)) effects.add(statement.Effect);
	}
	if (effects.has("Deny")) return "denied";
	return effects.has("Allow") ? "allowed" : "no_statement";
}

const list = <T>(one: T | T[] | undefined): T[] =>
	one === undefined ? [] : Array.isArray(one) ? one : [one];

/** Recursion over both texts. */
export function referenceGlob(pattern: string, text: string): boolean {
	const [first, ...rest] = [...pattern];
	const [character, ...left] = [...text];
	if (first === undefined) return character === undefined;
	if (first === "*")
		return (
			referenceGlob(rest.join(""), text) ||
			(character !== undefined && referenceGlob(pattern, left.join("")))
		);
	if (character === undefined) return false;
	return (
		(first === "?" || first === character) &&
		referenceGlob(rest.join(""), left.join(""))
	);
}

function applies(
	statement: ReferenceStatement,
	question: ReferenceQuestion,
): boolean {
	const action = question.action.toLowerCase();
	const meets = (pattern: string) =>
		referenceGlob(pattern.toLowerCase(), action);
	if (statement.Action && !list(statement.Action).some(meets)) return false;
	if (statement.NotAction && list(statement.NotAction).some(meets))
		return false;
	const covers = (urn: string | undefined) => (pattern: string) =>
		urn !== undefined && coversUrn(pattern, urn);
	if (statement.Resource) {
		const patterns = list(statement.Resource);
		if (
			!patterns.some(covers(question.instanceUrn)) &&
			!patterns.some(covers(question.spaceUrn))
		)
			return false;
	}
	if (statement.NotResource) {
		const urn = question.spaceUrn ?? question.instanceUrn;
		if (list(statement.NotResource).some(covers(urn))) return false;
	}
	for (const [operator, keys] of Object.entries(statement.Condition ?? {}))
		for (const [key, values] of Object.entries(keys))
			if (!holds(operator, key, list(values as string[]).map(String), question))
				return false;
	return true;
}

function coversUrn(pattern: string, urn: string): boolean {
	if (pattern === "*") return true;
	const wanted = pattern.split(":");
	return urn.split(":").every((part, index) => {
		const piece = wanted[index] ?? "";
		if (index === 1 || index === 2)
			return piece === "" || referenceGlob(piece, part);
		if (index === 4) return referenceGlob(piece, part);
		return referenceGlob(piece.toLowerCase(), part.toLowerCase());
	});
}

function holds(
	operator: string,
	key: string,
	values: string[],
	question: ReferenceQuestion,
): boolean {
	const [name, tag] = key.split(/\/(.*)/s);
	const written = `${name?.toLowerCase()}${tag === undefined ? "" : `/${tag}`}`;
	const asked = Object.hasOwn(question.keys, written)
		? list(question.keys[written])
		: [];
	const prefix = /^(ForAnyValue:|ForAllValues:)?/.exec(operator)?.[0] ?? "";
	const ifExists = operator.endsWith("IfExists");
	const base = operator
		.slice(prefix.length)
		.replace(/IfExists$/, "")
		.replace("Not", "");
	const negated = /(String|Number|Date)Not|NotIpAddress/.test(operator);
	if (base === "Null") return values.includes(String(asked.length === 0));
	if (asked.length === 0) {
		if (ifExists) return true;
		if (prefix === "ForAllValues:") return true;
		return prefix === "" && negated;
	}
	const good = asked.map(
		(one) => values.some((value) => compare(base, one, value)) !== negated,
	);
	return prefix === "ForAllValues:"
		? good.every((one) => one)
		: good.some((one) => one);
}

function compare(operator: string, given: string, wanted: string): boolean {
	switch (operator) {
		case "StringEquals":
		case "Bool":
			return given === wanted;
		case "StringEqualsIgnoreCase":
			return given.toLowerCase() === wanted.toLowerCase();
		case "StringMatch":
			return referenceGlob(wanted, given);
		case "StringStartWith":
			return given.slice(0, wanted.length) === wanted;
		case "StringEndWith":
			return wanted === "" || given.slice(-wanted.length) === wanted;
		case "IpAddress": {
			const [network = "", bits = "32"] = wanted.split("/");
			return (
				inBits(given).slice(0, Number(bits)) ===
				inBits(network).slice(0, Number(bits))
			);
		}
	}
	const ordered = /^(Number|Date)(.*)$/.exec(operator);
	if (!ordered) throw new Error(`The reference does not know ${operator}.`);
	const read = ordered[1] === "Number" ? Number : Date.parse;
	const difference = given === "" ? Number.NaN : read(given) - read(wanted);
	switch (ordered[2]) {
		case "Equals":
			return difference === 0;
		case "LessThan":
			return difference < 0;
		case "LessThanEquals":
			return difference <= 0;
		case "GreaterThan":
			return difference > 0;
		case "GreaterThanEquals":
			return difference >= 0;
		default:
			throw new Error(`The reference does not know ${operator}.`);
	}
}

function inBits(address: string): string {
	return address
		.split(".")
		.map((byte) => Number(byte).toString(2).padStart(8, "0"))
		.join("");
}
