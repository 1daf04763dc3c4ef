/**
 * The rule of a dynamic group as a condition over `devices`. No word of the rule becomes
 * SQL: columns are ours, and what the rule compares with is bound.
 */
import { type RawBuilder, type SqlBool, sql } from "kysely";
import { type Db, textFits } from "../database/database.ts";
import { thereIs } from "../devices/device-windows.ts";
import { isOnline } from "../devices/devices.ts";
import {
	affirmative,
	type FieldName,
	type Rule,
	type Test,
} from "./group-rule.ts";

type Condition = RawBuilder<SqlBool>;
type Value = RawBuilder<unknown>;

/**
 * True, or not true, for every row of `devices`, and the same as `deviceFits` says. What
 * a device lacks differs from every value, so a denial is carried down to the single
 * tests, where null is spoken of: SQL's own `not` would leave it undecided.
 *
 * @param spaceId the resource space that the devices are in
 */
export function ruleCondition(db: Db, rule: Rule, spaceId: string): Condition {
	return condition(rule, false);

	function condition(rule: Rule, denied: boolean): Condition {
		switch (rule.kind) {
			case "and":
			case "or":
				return sql`(${sql.join(
					rule.rules.map((part) => condition(part, denied)),
					(rule.kind === "and") === denied ? sql` or ` : sql` and `,
				)})`;
			case "not":
				return condition(rule.rule, !denied);
			case "field":
				return fieldCondition(rule.field, rule.test, denied);
			case "tag":
				return exists(rule.test, denied, (test) => [
					sql`device_tags as t where t.device_id = devices.device_id and t.tag_key = ${rule.key}`,
					holds(sql`t.tag_value`, test),
				]);
			case "module":
				return exists(rule.test, denied, (test) => [
					sql`device_modules as m where m.device_id = devices.device_id and m.module_name = ${rule.name}`,
					holds(sql`m.module_version`, test),
				]);
			case "any_tag": {
				const tags = sql`device_tags as t where t.device_id = devices.device_id`;
				const { key, value } = rule;
				if (key && value)
					return sql`${negation(denied)}${thereIs(sql`${tags} and ${holds(sql`t.tag_key`, key)} and ${holds(sql`t.tag_value`, value)}`)}`;
				if (key)
					return exists(key, denied, (test) => [
						tags,
						holds(sql`t.tag_key`, test),
					]);
				if (value)
					return exists(value, denied, (test) => [
						tags,
						holds(sql`t.tag_value`, test),
					]);
				throw new Error("A condition on tags has a key, a value or both.");
			}
			default:
				return rule satisfies never;
		}
	}

	function fieldCondition(
		field: FieldName,
		test: Test,
		denied: boolean,
	): Condition {
		switch (field) {
			case "app_id":
			case "node_id":
				return compared(unindexed(field), test, denied);
			case "device_id":
			case "device_name":
			case "fw_version":
			case "sw_version":
				return compared(sql.ref(`devices.${field}`), test, denied);
			case "create_time":
				return compared(sql.ref("devices.created_at"), test, denied);
			case "active_time":
				return compared(sql.ref("devices.active_at"), test, denied);
			case "marker":
				return compared(sql.ref("devices.record_id"), test, denied);
			case "gateway_id":
				return compared(
					sql`coalesce(devices.gateway_id, devices.device_id)`,
					test,
					denied,
				);
			case "node_type":
				return compared(
					sql`case when devices.gateway_id is null then 'GATEWAY' else 'ENDPOINT' end`,
					test,
					denied,
				);
			case "status":
				return compared(deviceStatus, test, denied);
			case "product_id":
				return ofProduct(sql`p.product_id`, test, denied);
			case "product_name":
				return ofProduct(sql`p.name`, test, denied);
			case "group_id":
				return exists(test, denied, (affirmed) => [
					sql`device_group_members as g where g.device_record_id = devices.record_id`,
					holds(sql`g.group_id`, affirmed),
				]);
			default:
				return field satisfies never;
		}
	}

	/** Products are few and looked up once, not for each device. */
	function ofProduct(column: Value, test: Test, denied: boolean): Condition {
		const said = affirmative(test);
		return sql`${unindexed("product_key")} ${negation(denied !== said.denied)}in (select p.product_key from products as p where p.app_id = ${spaceId} and ${holds(column, said.test)})`;
	}

	function compared(value: Value, test: Test, denied: boolean): Condition {
		const said = affirmative(test);
		const affirmed = holds(value, said.test);
		return denied === said.denied
			? affirmed
			: sql`(${value} is null or not (${affirmed}))`;
	}

	function exists(
		test: Test,
		denied: boolean,
		rows: (affirmed: Test) => [Value, Condition],
	): Condition {
		const said = affirmative(test);
		const [from, where] = rows(said.test);
		return sql`${negation(denied !== said.denied)}${thereIs(sql`${from} and ${where}`)}`;
	}

	/** A test on a value that is there; undecided where it is null. */
	function holds(value: Value, test: Test): Condition {
		switch (test.op) {
			case "=":
				return sql`${value} = ${test.value}`;
			case "<":
			case "<=":
			case ">":
			case ">=":
				return sql`${value} ${sql.raw(test.op)} ${test.value}`;
			case "in":
				return sql`${value} in (${sql.join(test.values)})`;
			case "like":
				return textFits(db, value, test.parts);
			case "is not null":
				return sql`${value} is not null`;
			case "!=":
			case "not in":
			case "not like":
			case "is null":
				return sql`not (${holds(value, affirmative(test).test)})`;
			default:
				return test satisfies never;
		}
	}
}

/**
 * As an expression, so that no index serves it: devices are looked through in windows of
 * an index that was chosen, and one of these would be walked through whole for each.
 */
function unindexed(column: "app_id" | "node_id" | "product_key"): Value {
	return sql`(${sql.ref(`devices.${column}`)} || '')`;
}

function negation(denied: boolean): RawBuilder<unknown> {
	return denied ? sql`not ` : sql``;
}

/** What `statusOf` in devices.ts says, for the row at hand. */
const deviceStatus = sql`case
	when devices.frozen = 1 then 'FROZEN'
	when devices.depth > 0 and coalesce(devices.reported_status, '') <> 'ONLINE' then coalesce(devices.reported_status, 'INACTIVE')
	when ${isOnline} = 1 then 'ONLINE'
	when devices.active_at is null then 'INACTIVE'
	else 'OFFLINE' end`;
