/** What the rule of a dynamic group says of one device; `ruleCondition` says it in SQL. */
import {
	affirmative,
	type FieldName,
	type Rule,
	type Test,
} from "./group-rule.ts";

export interface DeviceFacts {
	/** `group_id` is in `groupIds` instead. */
	fields: Record<Exclude<FieldName, "group_id">, string | null>;
	/** Static groups the device was put into. */
	groupIds: ReadonlySet<string>;
	tags: ReadonlyMap<string, string>;
	modules: ReadonlyMap<string, string>;
}

/** Whether a device fits; what `ruleCondition` finds in the store. */
export function deviceFits(rule: Rule, device: DeviceFacts): boolean {
	switch (rule.kind) {
		case "and":
			return rule.rules.every((part) => deviceFits(part, device));
		case "or":
			return rule.rules.some((part) => deviceFits(part, device));
		case "not":
			return !deviceFits(rule.rule, device);
		case "field":
			return rule.field === "group_id"
				? someFits(rule.test, [...device.groupIds])
				: valueFits(rule.test, device.fields[rule.field]);
		case "tag":
			return valueFits(rule.test, device.tags.get(rule.key) ?? null);
		case "module":
			return valueFits(rule.test, device.modules.get(rule.name) ?? null);
		case "any_tag": {
			const { key, value } = rule;
			if (key && value)
				return [...device.tags].some(
					([tagKey, tagValue]) =>
						valueFits(key, tagKey) && valueFits(value, tagValue),
				);
			if (key) return someFits(key, [...device.tags.keys()]);
			if (value) return someFits(value, [...device.tags.values()]);
			return false;
		}
		default:
			return rule satisfies never;
	}
}

/** Of several values: one fits; for a test that says "not": none fits what it denies. */
function someFits(test: Test, values: readonly string[]): boolean {
	const { denied, test: affirmed } = affirmative(test);
	return values.some((value) => valueFits(affirmed, value)) !== denied;
}

function valueFits(test: Test, value: string | null): boolean {
	switch (test.op) {
		case "=":
			return value === test.value;
		case "<":
			return value !== null && value < test.value;
		case "<=":
			return value !== null && value <= test.value;
		case ">":
			return value !== null && value > test.value;
		case ">=":
			return value !== null && value >= test.value;
		case "in":
			return value !== null && test.values.includes(value);
		case "like":
			return value !== null && patternFits(test.parts, value);
		case "is not null":
			return value !== null;
		case "!=":
		case "not in":
		case "not like":
		case "is null":
			return !valueFits(affirmative(test).test, value);
		default:
			return test satisfies never;
	}
}

function patternFits(parts: readonly string[], value: string): boolean {
	const first = parts.at(0) ?? "";
	const last = parts.at(-1) ?? "";
	if (parts.length === 1) return value === first;
	if (
		value.length < first.length + last.length ||
		!value.startsWith(first) ||
		!value.endsWith(last)
	)
		return false;
	// Each part as early as it goes: if any places fit, these do.
	let at = first.length;
	for (const part of parts.slice(1, -1)) {
		const found = value.indexOf(part, at);
		if (found < 0) return false;
		at = found + part.length;
	}
	return at <= value.length - last.length;
}
