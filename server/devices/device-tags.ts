/** Tags: a maker's own marks on devices, each a key with a value. */
import { type RawBuilder, type SqlBool, sql } from "kysely";
import type { Scope } from "../access/permissions.ts";
import { type Db, inTransaction, lockForUpdate } from "../database/database.ts";
import type { Page, PageResult } from "../database/paging.ts";
import { ApiError, errors, invalidInput, reservedTagKey } from "../errors.ts";
import {
	admitted,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import {
	countFitting,
	type DeviceSearch,
	findPage,
	type SlowCounts,
	thereIs,
} from "./device-windows.ts";

export interface Tag {
	key: string;
	/** Empty when none was given. */
	value: string;
}

const TAGS_PER_DEVICE = 10;
const RESERVED_PREFIX = "iot_";

/** The tags of each device that has some, by key. */
export async function findTags(
	db: Db,
	deviceIds: readonly string[],
): Promise<Map<string, Tag[]>> {
	const tags = new Map<string, Tag[]>();
	if (deviceIds.length === 0) return tags;
	const rows = await db
		.selectFrom("device_tags")
		.selectAll()
		.where("device_id", "in", [...deviceIds])
		.orderBy("device_id")
		.orderBy("tag_key")
		.execute();
	for (const { device_id, tag_key, tag_value } of rows) {
		const tag = { key: tag_key, value: tag_value };
		const others = tags.get(device_id);
		if (others) others.push(tag);
		else tags.set(device_id, [tag]);
	}
	return tags;
}

/**
 * Binds tags to a device; a key that is bound already gets the new value.
 *
 * @throws 400 IOTDA.000006 for a key given twice, 400 IOTDA.004002 for a reserved one,
 * 400 IOTDA.014000, 403 IOTDA.004900 when the device would have too many
 */
export async function bindTags(
	db: Db,
	scope: Scope,
	deviceId: string,
	tags: readonly Tag[],
): Promise<void> {
	checkTags(tags);
	const keys = tags.map(({ key }) => key);
	await inTransaction(db, async (trx) => {
		await holdDevice(trx, scope, deviceId);
		const bound = await trx
			.selectFrom("device_tags")
			.select("tag_key")
			.where("device_id", "=", deviceId)
			.execute();
		const all = new Set([...bound.map(({ tag_key }) => tag_key), ...keys]);
		checkTagCount(all.size);
		await trx
			.insertInto("device_tags")
			.values(
				tags.map(({ key, value }) => ({
					device_id: deviceId,
					tag_key: key,
					tag_value: value,
				})),
			)
			.onConflict((conflict) =>
				conflict.columns(["device_id", "tag_key"]).doUpdateSet((eb) => ({
					tag_value: eb.ref("excluded.tag_value"),
				})),
			)
			.execute();
	});
}

/**
 * All of them, or none.
 *
 * @throws 400 IOTDA.000006 for a key given twice, 400 IOTDA.014000, 400 IOTDA.004901 for
 * a key that is not bound
 */
export async function unbindTags(
	db: Db,
	scope: Scope,
	deviceId: string,
	keys: readonly string[],
): Promise<void> {
	refuseRepeated(keys, (index) => `tag_keys[${index}]`);
	await inTransaction(db, async (trx) => {
		await holdDevice(trx, scope, deviceId);
		const removed = await trx
			.deleteFrom("device_tags")
			.where("device_id", "=", deviceId)
			.where("tag_key", "in", [...keys])
			.returning("tag_key")
			.execute();
		const gone = new Set(removed.map(({ tag_key }) => tag_key));
		const index = keys.findIndex((key) => !gone.has(key));
		if (index >= 0)
			throw new ApiError(errors.tagNotBound, {
				detail: `tag_keys[${index}] names ${keys[index]}.`,
			});
	});
}

/** @throws 400 IOTDA.000006 for a key given twice, 400 IOTDA.004002 for a reserved one */
export function checkTags(tags: readonly Tag[]): void {
	const keys = tags.map(({ key }) => key);
	refuseRepeated(keys, (index) => `tags[${index}].tag_key`);
	const reserved = keys.find((key) => key.startsWith(RESERVED_PREFIX));
	if (reserved !== undefined) throw new ApiError(reservedTagKey(reserved));
}

/** @throws 403 IOTDA.004900 when a device would have too many */
export function checkTagCount(count: number): void {
	if (count > TAGS_PER_DEVICE)
		throw new ApiError(errors.tooManyTags, {
			detail: `The device would have ${count}; at most ${TAGS_PER_DEVICE} are allowed.`,
		});
}

function refuseRepeated(
	keys: readonly string[],
	fieldOf: (index: number) => string,
): void {
	const seen = new Set<string>();
	for (const [index, key] of keys.entries()) {
		if (seen.has(key))
			throw invalidInput(fieldOf(index), "must not occur twice in a request");
		seen.add(key);
	}
}

/** Locked, so that its tags are counted by one caller at a time. */
async function holdDevice(
	trx: Db,
	scope: Scope,
	deviceId: string,
): Promise<void> {
	const device = admitted(
		scope,
		await lockForUpdate(
			trx,
			trx
				.selectFrom("devices")
				.select("app_id")
				.where("device_id", "=", deviceId)
				.where("project_id", "=", scope.projectId),
		).executeTakeFirst(),
	);
	if (!device)
		throw new ApiError(errors.unknownDeviceNamed, {
			detail: "resource_id names no device.",
		});
}

// --- devices by their tags ------------------------------------------------------------

/** Tags whose devices are fetched all at once; of more, devices are looked through instead. */
const FEW_TAGS = 2_000;

interface TaggedDevice {
	device_id: string;
	record_id: string;
}

/**
 * The devices that have any of the tags. One without a value stands for its key, with
 * whatever value.
 */
export async function listTaggedDevices(
	db: Db,
	scope: Scope,
	counts: SlowCounts,
	tags: readonly { key: string; value: string | undefined }[],
	page: Page,
): Promise<PageResult<TaggedDevice>> {
	const visible = await visibleSpaceIds(db, scope);
	if (visible?.length === 0) return { items: [], page: { count: 0 } };
	const fitting = sql<SqlBool>`(${sql.join(
		tags.map(({ key, value }) =>
			value === undefined
				? sql`t.tag_key = ${key}`
				: sql`(t.tag_key = ${key} and t.tag_value = ${value})`,
		),
		sql` or `,
	)})`;
	const admittedSpaces = visible
		? sql<SqlBool>`devices.app_id in (${sql.join(visible)})`
		: sql<SqlBool>`1 = 1`;
	if (await areFew(db, fitting))
		return listFew(db, scope, fitting, admittedSpaces, page);
	const search: DeviceSearch = {
		candidates: { column: "project_id", id: scope.projectId },
		condition: sql`${admittedSpaces} and ${thereIs(sql`device_tags as t where t.device_id = devices.device_id and ${fitting}`)}`,
		lookUps: Math.ceil(tags.length / TAGS_PER_DEVICE),
	};
	const items = await findPage(db, search, page, (devices) =>
		devices.select(["devices.device_id", "devices.record_id"]),
	);
	const key = JSON.stringify([scope.projectId, visible, tags]);
	return pageOf(items, await counts.of(key, () => countFitting(db, search)));
}

async function areFew(db: Db, fitting: RawBuilder<SqlBool>): Promise<boolean> {
	const { rows } = await sql`
		select 1 from device_tags as t where ${fitting} limit 1 offset ${FEW_TAGS}`.execute(
		db,
	);
	return rows.length === 0;
}

async function listFew(
	db: Db,
	scope: Scope,
	fitting: RawBuilder<SqlBool>,
	admittedSpaces: RawBuilder<SqlBool>,
	page: Page,
): Promise<PageResult<TaggedDevice>> {
	// A cross join, since SQLite keeps its order: tags first, and not all of the project.
	const tagged = sql`
		(select distinct t.device_id from device_tags as t where ${fitting}) as tagged
		cross join devices
		where devices.device_id = tagged.device_id and devices.project_id = ${scope.projectId} and ${admittedSpaces}`;
	const items = await sql<TaggedDevice>`
		select devices.device_id, devices.record_id from ${tagged} and devices.record_id < ${page.marker}
		order by devices.record_id desc limit ${page.limit} offset ${page.offset}`.execute(
		db,
	);
	const counted = await sql<{ count: number }>`
		select count(*) as count from ${tagged}`.execute(db);
	return pageOf(items.rows, Number(counted.rows[0]?.count ?? 0));
}

function pageOf(
	items: TaggedDevice[],
	count: number,
): PageResult<TaggedDevice> {
	const last = items.at(-1);
	return {
		items,
		page: { count, ...(last ? { marker: last.record_id } : {}) },
	};
}
