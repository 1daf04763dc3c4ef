/** Who is in a device group: put in by hand, or found by a rule. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { Scope } from "../access/permissions.ts";
import type { GroupLimits } from "../config.ts";
import { type Db, inTransaction, lockForUpdate } from "../database/database.ts";
import type { Page, PageResult } from "../database/paging.ts";
import { findTags } from "../devices/device-tags.ts";
import { listDeviceModules } from "../devices/device-versions.ts";
import {
	countFitting,
	type DeviceSearch,
	findPage,
	type SlowCounts,
} from "../devices/device-windows.ts";
import { type Device, getDevice, statusOf } from "../devices/devices.ts";
import { ApiError, errors } from "../errors.ts";
import { admitted } from "../resource-spaces/resource-spaces.ts";
import {
	type DeviceGroup,
	type GroupSnapshot,
	getDeviceGroup,
	snapshotOf,
	spaceOf,
} from "./device-groups.ts";
import { lookUpsOf, parseRule } from "./group-rule.ts";
import { type DeviceFacts, deviceFits } from "./group-rule-fits.ts";
import { ruleCondition } from "./group-rule-sql.ts";

/**
 * Puts a device into a static group; one that is in it already stays.
 *
 * @throws 404 IOTDA.014980 and IOTDA.014000, 403 IOTDA.014983 for a device of another
 * space, IOTDA.014989 for a dynamic group, IOTDA.014987 when the group and IOTDA.014988
 * when the device can take no more
 */
export async function addDeviceToGroup(
	db: Db,
	scope: Scope,
	limits: GroupLimits,
	groupId: string,
	deviceId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const device = await holdMembership(trx, scope, groupId, deviceId);
		const groups = await trx
			.selectFrom("device_group_members")
			.select("group_id")
			.where("device_id", "=", deviceId)
			.execute();
		if (groups.some((group) => group.group_id === groupId)) return;
		// Skipped and not counted: the index is walked no further than to the limit.
		const last = await trx
			.selectFrom("device_group_members")
			.select("device_record_id")
			.where("group_id", "=", groupId)
			.orderBy("device_record_id")
			.limit(1)
			.offset(limits.devicesPerGroup - 1)
			.executeTakeFirst();
		if (last)
			throw new ApiError(errors.groupFull, {
				detail: `At most ${limits.devicesPerGroup} are allowed.`,
			});
		if (groups.length >= limits.groupsPerDevice)
			throw new ApiError(errors.tooManyGroupsOfDevice, {
				detail: `At most ${limits.groupsPerDevice} are allowed.`,
			});
		await trx
			.insertInto("device_group_members")
			.values({
				group_id: groupId,
				device_record_id: device.record_id,
				device_id: deviceId,
			})
			.execute();
	});
}

/**
 * @throws 404 IOTDA.014980 and IOTDA.014000, 403 IOTDA.014982 for a device that is not
 * in the group, IOTDA.014983 for one of another space, IOTDA.014989 for a dynamic group
 */
export async function removeDeviceFromGroup(
	db: Db,
	scope: Scope,
	groupId: string,
	deviceId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const device = await holdMembership(trx, scope, groupId, deviceId);
		const { numDeletedRows } = await trx
			.deleteFrom("device_group_members")
			.where("group_id", "=", groupId)
			.where("device_record_id", "=", device.record_id)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.notInGroup);
	});
}

/** Locks the group and then the device, so that what each may have is counted by one caller at a time. */
async function holdMembership(
	trx: Db,
	scope: Scope,
	groupId: string,
	deviceId: string,
): Promise<{ record_id: string }> {
	const group = await getDeviceGroup(trx, scope, groupId);
	if (group.group_type === "DYNAMIC") throw new ApiError(errors.groupIsDynamic);
	const heldGroup = await lockForUpdate(
		trx,
		trx
			.selectFrom("device_groups")
			.select("group_id")
			.where("group_id", "=", groupId),
	).executeTakeFirst();
	if (!heldGroup) throw new ApiError(errors.unknownGroup);
	const device = admitted(
		scope,
		await lockForUpdate(
			trx,
			trx
				.selectFrom("devices")
				.select(["record_id", "app_id"])
				.where("device_id", "=", deviceId)
				.where("project_id", "=", scope.projectId),
		).executeTakeFirst(),
	);
	if (!device) throw new ApiError(errors.unknownDevice);
	if (device.app_id !== group.app_id)
		throw new ApiError(errors.deviceOfOtherSpace);
	return device;
}

export interface GroupDevice {
	device_id: string;
	record_id: string;
	node_id: string;
	device_name: string | null;
	product_id: string;
}

const productId = sql<string>`(select p.product_id from products as p where p.product_key = devices.product_key)`;

/** The devices that are in the group now. */
export async function listGroupDevices(
	db: Db,
	scope: Scope,
	counts: SlowCounts,
	groupId: string,
	page: Page,
): Promise<PageResult<GroupDevice>> {
	const row = await getDeviceGroup(db, scope, groupId);
	const group = snapshotOf(row);
	const items = await findGroupPage(db, group, page);
	const last = items.at(-1);
	return {
		items,
		page: {
			count: await countGroupDevices(db, counts, group),
			...(last ? { marker: last.record_id } : {}),
		},
	};
}

async function findGroupPage(
	db: Db,
	group: GroupSnapshot,
	page: Page,
): Promise<GroupDevice[]> {
	if (group.rule !== null)
		return findPage(db, searchOf(db, group, group.rule), page, (devices) =>
			devices.select([
				"devices.device_id",
				"devices.record_id",
				"devices.node_id",
				"devices.device_name",
				productId.as("product_id"),
			]),
		);
	return db
		.selectFrom("device_group_members as member")
		.innerJoin("devices", "devices.device_id", "member.device_id")
		.select([
			"devices.device_id",
			"devices.record_id",
			"devices.node_id",
			"devices.device_name",
			productId.as("product_id"),
		])
		.where("member.group_id", "=", group.groupId)
		.where("member.device_record_id", "<", page.marker)
		.orderBy("member.device_record_id", "desc")
		.limit(page.limit)
		.offset(page.offset)
		.execute();
}

async function countGroupDevices(
	db: Db,
	counts: SlowCounts,
	group: GroupSnapshot,
): Promise<number> {
	const { rule } = group;
	if (rule !== null)
		return counts.of(group.groupId, () =>
			countFitting(db, searchOf(db, group, rule)),
		);
	const { count } = await db
		.selectFrom("device_group_members")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("group_id", "=", group.groupId)
		.executeTakeFirstOrThrow();
	return Number(count);
}

function searchOf(db: Db, group: GroupSnapshot, rule: string): DeviceSearch {
	const tree = parseRule(rule);
	return {
		candidates: spaceOf(group),
		condition: ruleCondition(db, tree, group.spaceId),
		lookUps: lookUpsOf(tree),
	};
}

/** Rules that are read and asked before others get a turn. */
const RULES_PER_TURN = 25;

/**
 * The groups that a device is in, static and dynamic, newest first.
 *
 * @throws 404 IOTDA.014000
 */
export async function listGroupsOfDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
): Promise<DeviceGroup[]> {
	const device = await getDevice(db, scope, deviceId);
	const groups = await db
		.selectFrom("device_groups")
		.selectAll()
		.where("group_id", "in", (eb) =>
			eb
				.selectFrom("device_group_members")
				.select("group_id")
				.where("device_id", "=", deviceId),
		)
		.execute();
	const facts = await factsOf(db, device, groups);
	for (let after = ""; ; await nextTurn()) {
		const dynamic = await db
			.selectFrom("device_groups")
			.selectAll()
			.where("project_id", "=", scope.projectId)
			.where("record_id", ">", after)
			.where("app_id", "=", device.app_id)
			.where("group_type", "=", "DYNAMIC")
			.orderBy("record_id")
			.limit(RULES_PER_TURN)
			.execute();
		for (const group of dynamic)
			if (group.rule !== null && deviceFits(parseRule(group.rule), facts))
				groups.push(group);
		const last = dynamic.at(-1);
		if (!last || dynamic.length < RULES_PER_TURN) break;
		after = last.record_id;
	}
	return groups.sort((a, b) => (a.record_id < b.record_id ? 1 : -1));
}

/** What rules may ask about a device, in memory: a thousand of them are asked at once. */
async function factsOf(
	db: Db,
	device: Device,
	staticGroups: readonly DeviceGroup[],
): Promise<DeviceFacts> {
	const modules = await listDeviceModules(db, device.device_id);
	const tags = await findTags(db, [device.device_id]);
	return {
		fields: {
			app_id: device.app_id,
			device_id: device.device_id,
			device_name: device.device_name,
			gateway_id: device.gateway_id ?? device.device_id,
			node_id: device.node_id,
			node_type: device.gateway_id === null ? "GATEWAY" : "ENDPOINT",
			product_id: device.product_id,
			product_name: device.product_name,
			status: statusOf(device),
			fw_version: device.fw_version,
			sw_version: device.sw_version,
			create_time: device.created_at,
			active_time: device.active_at,
			marker: device.record_id,
		},
		groupIds: new Set(staticGroups.map(({ group_id }) => group_id)),
		tags: new Map(
			(tags.get(device.device_id) ?? []).map(({ key, value }) => [key, value]),
		),
		modules: new Map(
			modules.map(({ moduleName, moduleVersion }) => [
				moduleName,
				moduleVersion,
			]),
		),
	};
}
