/**
 * Device groups: static ones, whose members are put in one by one, and dynamic ones,
 * whose members are the devices of the space that fit a rule at the moment of asking.
 */
import { randomUUID } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import {
	type RawBuilder,
	type Selectable,
	type SqlBool,
	sql,
	type Updateable,
} from "kysely";
import type { Scope } from "../access/permissions.ts";
import type { GroupLimits } from "../config.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type DeviceGroupRow,
	type GroupType,
	instant,
} from "../database/tables.ts";
import {
	type Candidates,
	candidatesWithin,
	type DeviceQuery,
	endOfWindow,
	lastOf,
	windowSize,
} from "../devices/device-windows.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import {
	admitted,
	getResourceSpace,
	getSpaceOrDefault,
	lockProject,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import {
	groupsNamedIn,
	lookUpsOf,
	parseRule,
	type Rule,
	RuleError,
} from "./group-rule.ts";
import { ruleCondition } from "./group-rule-sql.ts";

export type DeviceGroup = Selectable<DeviceGroupRow>;

// --- groups -----------------------------------------------------------------------

/**
 * @throws 400 IOTDA.000006 for a rule that is none, 400 IOTDA.014980 for a parent that
 * the space does not have, 400 IOTDA.014984 when the space has a group of this name, 403
 * IOTDA.014985 when the project has too many groups, 403 IOTDA.014986 when the parent is
 * on the lowest level
 */
export async function createDeviceGroup(
	db: Db,
	scope: Scope,
	limits: GroupLimits,
	input: {
		spaceId: string | undefined;
		name: string;
		description: string | null;
		type: GroupType;
		/** Of a static group: the one it stands below. */
		superGroupId: string | undefined;
		/** Of a dynamic group, and there required. */
		rule: string | undefined;
	},
	now: Date,
): Promise<DeviceGroup> {
	const rule = readRuleOf(input);
	return orNameTaken(() =>
		inTransaction(db, async (trx) => {
			const space = await getSpaceOrDefault(trx, scope, input.spaceId);
			await lockProject(trx, scope.projectId);
			const parent =
				input.superGroupId === undefined
					? undefined
					: await holdParent(trx, space.app_id, input.superGroupId);
			if (rule) await refuseDynamicGroups(trx, space.app_id, rule);
			const same = await trx
				.selectFrom("device_groups")
				.select("group_id")
				.where("app_id", "=", space.app_id)
				.where("name", "=", input.name)
				.executeTakeFirst();
			if (same) throw new ApiError(errors.groupExists);
			const { count } = await trx
				.selectFrom("device_groups")
				.select((eb) => eb.fn.countAll<number>().as("count"))
				.where("project_id", "=", scope.projectId)
				.executeTakeFirstOrThrow();
			if (Number(count) >= limits.groupsPerProject)
				throw new ApiError(errors.tooManyGroups, {
					detail: `At most ${limits.groupsPerProject} are allowed.`,
				});
			const depth = parent ? parent.depth + 1 : 1;
			if (depth > limits.depth)
				throw new ApiError(errors.groupTooDeep, {
					detail: `super_group_id names a group of level ${depth - 1}; at most ${limits.depth} levels are allowed.`,
				});
			return trx
				.insertInto("device_groups")
				.values({
					group_id: randomUUID(),
					record_id: newRecordId(now),
					project_id: scope.projectId,
					app_id: space.app_id,
					name: input.name,
					description: input.description,
					super_group_id: parent?.group_id ?? null,
					depth,
					group_type: input.type,
					rule: input.rule ?? null,
					created_at: instant(now),
					updated_at: instant(now),
				})
				.returningAll()
				.executeTakeFirstOrThrow();
		}),
	);
}

/** The rule of a dynamic group; undefined for a static one. What does not go together is refused. */
function readRuleOf(input: {
	type: GroupType;
	superGroupId: string | undefined;
	rule: string | undefined;
}): Rule | undefined {
	switch (input.type) {
		case "STATIC":
			if (input.rule !== undefined)
				throw invalidInput("dynamic_group_rule", "is for dynamic groups only");
			return undefined;
		case "DYNAMIC":
			if (input.superGroupId !== undefined)
				throw invalidInput("super_group_id", "is for static groups only");
			if (input.rule === undefined)
				throw invalidInput(
					"dynamic_group_rule",
					"is required for a dynamic group",
				);
			try {
				return parseRule(input.rule);
			} catch (error) {
				if (!(error instanceof RuleError)) throw error;
				throw invalidInput(
					"dynamic_group_rule",
					`is wrong at character ${error.position}: ${error.reason}`,
				);
			}
		default:
			return input.type satisfies never;
	}
}

async function orNameTaken<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (isUniqueViolation(error, "device_groups_name"))
			throw new ApiError(errors.groupExists, { cause: error });
		throw error;
	}
}

/** Keeps the parent from being deleted until the transaction ends. */
async function holdParent(
	trx: Db,
	spaceId: string,
	groupId: string,
): Promise<{ group_id: string; depth: number }> {
	const parent = await lockForShare(
		trx,
		trx
			.selectFrom("device_groups")
			.select(["group_id", "depth", "group_type"])
			.where("group_id", "=", groupId)
			.where("app_id", "=", spaceId),
	).executeTakeFirst();
	if (!parent)
		throw new ApiError(errors.unknownGroupNamed, {
			detail: "super_group_id names no group of the resource space.",
		});
	if (parent.group_type !== "STATIC")
		throw invalidInput("super_group_id", "must name a static group");
	return parent;
}

/** A rule that asks for members of a dynamic group would find nobody: it has no rows. */
async function refuseDynamicGroups(
	trx: Db,
	spaceId: string,
	rule: Rule,
): Promise<void> {
	const groups = await findGroups(trx, spaceId, groupsNamedIn(rule));
	const dynamic = groups.find(({ type }) => type === "DYNAMIC");
	if (dynamic)
		throw invalidInput(
			"dynamic_group_rule",
			`names the dynamic group ${dynamic.groupId}: group_id is about static groups`,
		);
}

/** @throws 404 IOTDA.014980 */
export async function getDeviceGroup(
	db: Db,
	scope: Scope,
	groupId: string,
): Promise<DeviceGroup> {
	const group = admitted(
		scope,
		await db
			.selectFrom("device_groups")
			.selectAll()
			.where("group_id", "=", groupId)
			.where("project_id", "=", scope.projectId)
			.executeTakeFirst(),
	);
	if (!group) throw new ApiError(errors.unknownGroup);
	return group;
}

export async function listDeviceGroups(
	db: Db,
	scope: Scope,
	filter: {
		spaceId: string | undefined;
		name: string | undefined;
		type: GroupType | undefined;
		/** Created or updated after this. */
		changedAfter: Date | undefined;
	},
	page: Page,
): Promise<PageResult<DeviceGroup>> {
	let query = db
		.selectFrom("device_groups")
		.selectAll()
		.where("project_id", "=", scope.projectId);
	if (filter.spaceId !== undefined) {
		const space = await getResourceSpace(db, scope, filter.spaceId);
		query = query.where("app_id", "=", space.app_id);
	} else {
		const visible = await visibleSpaceIds(db, scope);
		if (visible?.length === 0) return { items: [], page: { count: 0 } };
		if (visible) query = query.where("app_id", "in", visible);
	}
	if (filter.name !== undefined) query = query.where("name", "=", filter.name);
	if (filter.type !== undefined)
		query = query.where("group_type", "=", filter.type);
	if (filter.changedAfter)
		query = query.where("updated_at", ">", instant(filter.changedAfter));
	return listPage(query, "device_groups.record_id", page);
}

/**
 * What is missing stays, null clears.
 *
 * @throws 404 IOTDA.014980, 400 IOTDA.014984 when another group of the space has the name
 */
export async function updateDeviceGroup(
	db: Db,
	scope: Scope,
	groupId: string,
	changes: { name?: string; description?: string | null },
	now: Date,
): Promise<DeviceGroup> {
	const columns: Updateable<DeviceGroupRow> = {};
	if (changes.name !== undefined) columns.name = changes.name;
	if (changes.description !== undefined)
		columns.description = changes.description;
	return orNameTaken(() =>
		inTransaction(db, async (trx) => {
			const group = await getDeviceGroup(trx, scope, groupId);
			if (Object.keys(columns).length === 0) return group;
			const row = await trx
				.updateTable("device_groups")
				.set({ ...columns, updated_at: instant(now) })
				.where("group_id", "=", groupId)
				.returningAll()
				.executeTakeFirst();
			if (!row) throw new ApiError(errors.unknownGroup);
			return row;
		}),
	);
}

/** @throws 404 IOTDA.014980, 403 IOTDA.014981 while it has members or groups below it */
export async function deleteDeviceGroup(
	db: Db,
	scope: Scope,
	groupId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await getDeviceGroup(trx, scope, groupId);
		// Who puts a device or a group into it holds the same row, and is seen here.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("device_groups")
				.select("group_id")
				.where("group_id", "=", groupId),
		).execute();
		const child = await trx
			.selectFrom("device_groups")
			.select("group_id")
			.where("super_group_id", "=", groupId)
			.limit(1)
			.executeTakeFirst();
		if (child)
			throw new ApiError(errors.groupNotEmpty, {
				detail: "There are groups below it.",
			});
		const member = await trx
			.selectFrom("device_group_members")
			.select("device_id")
			.where("group_id", "=", groupId)
			.limit(1)
			.executeTakeFirst();
		if (member)
			throw new ApiError(errors.groupNotEmpty, {
				detail: "There are devices in it.",
			});
		const { numDeletedRows } = await trx
			.deleteFrom("device_groups")
			.where("group_id", "=", groupId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.unknownGroup);
	});
}

// --- for those who work through a group ---------------------------------------------

export interface GroupSnapshot {
	groupId: string;
	spaceId: string;
	type: GroupType;
	/** Of a dynamic group. */
	rule: string | null;
}

export function snapshotOf(row: DeviceGroup): GroupSnapshot {
	return {
		groupId: row.group_id,
		spaceId: row.app_id,
		type: row.group_type,
		rule: row.rule,
	};
}

/** All devices of its space come into question for a dynamic group. */
export function spaceOf(group: GroupSnapshot): Candidates {
	return { column: "app_id", id: group.spaceId };
}

/** The groups with these ids in the space, in no order; unknown ones are missing. */
export async function findGroups(
	db: Db,
	spaceId: string,
	groupIds: readonly string[],
): Promise<GroupSnapshot[]> {
	if (groupIds.length === 0) return [];
	const rows = await db
		.selectFrom("device_groups")
		.selectAll()
		.where("app_id", "=", spaceId)
		.where("group_id", "in", [...groupIds])
		.execute();
	return rows.map(snapshotOf);
}

/**
 * The order in which the devices of a group are walked through. A table that is written
 * in the order of device ids, and found by them, is written twice as fast by a walk in
 * that order; a small space among many is found faster by its own devices.
 */
export type Walk = "device_id" | "record_id";

/** Which walk is the faster one. Counts a space among others, in steps. */
export async function walkOf(db: Db, group: GroupSnapshot): Promise<Walk> {
	if (group.rule === null) return "record_id";
	const { rows } = await sql<{ first: string | null; last: string | null }>`
		select (select min(app_id) from devices) as first, (select max(app_id) from devices) as last`.execute(
		db,
	);
	const [spaces] = rows;
	if (spaces?.first === group.spaceId && spaces.last === group.spaceId)
		return "device_id";
	const inSpace = await countInSteps(
		db,
		(after) =>
			sql`select record_id as id from devices where app_id = ${group.spaceId} and record_id > ${after}`,
	);
	const all = await countInSteps(
		db,
		(after) =>
			sql`select device_id as id from devices where device_id > ${after}`,
	);
	return inSpace * 4 >= all ? "device_id" : "record_id";
}

const COUNT_STEP = 20_000;

/** About how many rows there are, to the step. */
async function countInSteps(
	db: Db,
	idsAfter: (after: string) => RawBuilder<unknown>,
): Promise<number> {
	let count = 0;
	for (let after = ""; ; await nextTurn()) {
		const { rows } = await sql<{ id: string }>`
			${idsAfter(after)} order by id limit 1 offset ${COUNT_STEP - 1}`.execute(
			db,
		);
		const [last] = rows;
		if (!last) return count;
		count += COUNT_STEP;
		after = last.id;
	}
}

/**
 * The id that ends the next window of at most `size` candidates after `after` (empty:
 * from the start), in the order of the walk; undefined: there are no more. Walks an
 * index and nothing else, however few devices fit the rule.
 */
export async function nextWindow(
	db: Db,
	group: GroupSnapshot,
	walk: Walk,
	after: string,
	size: number,
): Promise<string | undefined> {
	if (group.rule === null)
		return lastOf(
			db,
			sql`select device_record_id as record_id from device_group_members where group_id = ${group.groupId} and device_record_id > ${after}`,
			size,
		);
	const few = windowSize(lookUpsOf(parseRule(group.rule)), size);
	return walk === "record_id"
		? endOfWindow(db, spaceOf(group), after, few)
		: lastOf(
				db,
				sql`select device_id as record_id from devices where device_id > ${after}`,
				few,
			);
}

/**
 * The devices of the group in the window that ends with `until`, as a query over
 * `devices` of which nothing is selected yet.
 */
export function windowDevices(
	db: Db,
	group: GroupSnapshot,
	walk: Walk,
	after: string,
	until: string,
): DeviceQuery {
	if (group.rule === null)
		return db
			.selectFrom("devices")
			.where("devices.device_id", "in", (eb) =>
				eb
					.selectFrom("device_group_members as member")
					.select("member.device_id")
					.where("member.group_id", "=", group.groupId)
					.where("member.device_record_id", ">", after)
					.where("member.device_record_id", "<=", until),
			);
	const window =
		walk === "record_id"
			? candidatesWithin(db, spaceOf(group), after, until)
			: db
					.selectFrom("devices")
					.where("devices.device_id", ">", after)
					.where("devices.device_id", "<=", until)
					// An expression, lest the index of spaces is taken: it would be walked through
					// whole for every window.
					.where(sql<SqlBool>`(devices.app_id || '') = ${group.spaceId}`);
	return window.where(ruleCondition(db, parseRule(group.rule), group.spaceId));
}
