/** Devices: registered by the maker, reached over the device link. */
import {
	type Insertable,
	type Selectable,
	type SelectQueryBuilder,
	sql,
	type Updateable,
} from "kysely";
import type { Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	isUniqueViolation,
	lockForUpdate,
} from "../database/database.ts";
import { newRecordId } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type DeviceRow,
	type InstantText,
	instant,
	type ModuleForm,
	type Tables,
} from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { type HistoryEntry, recordHistory } from "../history/history.ts";
import { findProductKeys, holdProductNamed } from "../products/products.ts";
import {
	admitted,
	getResourceSpace,
	getSpaceOrDefault,
	type ResourceSpace,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
import type { Sealed } from "../secrets/sealed.ts";
import { type ChildChange, countChange, rememberDeletion } from "./children.ts";
import {
	credentialColumns,
	type NewCredentials,
	newSecret,
	type SecretType,
} from "./device-credentials.ts";

export type Device = Selectable<DeviceRow> & {
	app_name: string;
	product_id: string;
	product_name: string;
	/** 1 while a connection stands: its own, or that of the gateway at the root. */
	online: number;
	/** Of a child: when the gateway at the root last connected or left. */
	link_status_at: InstantText | null;
};

export type DeviceStatus = "ONLINE" | "OFFLINE" | "INACTIVE" | "FROZEN";

/** Children of children have none. */
const DEPTH_LIMIT = 2;
const CHILDREN_PER_GATEWAY = 50_000;

export interface NewDevice {
	/** Unique among all devices; undefined: product id, `_`, node id. */
	deviceId: string | undefined;
	nodeId: string;
	productId: string;
	spaceId: string | undefined;
	/** The device it connects through; undefined: it connects by itself. */
	gatewayId: string | undefined;
	deviceName: string | null;
	description: string | null;
	/** JSON. */
	extensionInfo: string | null;
	credentials: NewCredentials;
}

/** 1 while a connection carries the device. A CASE: PostgreSQL's EXISTS is a boolean. */
export const isOnline = sql<number>`case when exists (select 1 from presence where presence.device_id = devices.link_id) then 1 else 0 end`;

/**
 * Sub-selects and no joins: a list counts what it filters, and counting a million
 * devices takes SQLite four times as long when two joins come along.
 */
function selectDevices(db: Db): SelectQueryBuilder<Tables, "devices", Device> {
	return db
		.selectFrom("devices")
		.selectAll("devices")
		.select([
			sql<string>`(select s.name from resource_spaces as s where s.app_id = devices.app_id)`.as(
				"app_name",
			),
			sql<string>`(select p.product_id from products as p where p.product_key = devices.product_key)`.as(
				"product_id",
			),
			sql<string>`(select p.name from products as p where p.product_key = devices.product_key)`.as(
				"product_name",
			),
			isOnline.as("online"),
			sql<
				string | null
			>`case when devices.depth > 0 then (select link.connection_status_at from devices as link where link.device_id = devices.link_id) end`.as(
				"link_status_at",
			),
		]);
}

/** A child is as its gateway last said, as long as the gateway is there. */
export function statusOf(
	device: Pick<
		Device,
		"frozen" | "depth" | "online" | "reported_status" | "active_at"
	>,
): DeviceStatus {
	if (device.frozen) return "FROZEN";
	if (device.depth > 0 && device.reported_status !== "ONLINE")
		return device.reported_status ?? "INACTIVE";
	if (device.online) return "ONLINE";
	return device.active_at === null ? "INACTIVE" : "OFFLINE";
}

/** When its status last changed; null: it is as it was registered. */
export function statusChangedAt(device: Device): InstantText | null {
	if (device.depth === 0) return device.connection_status_at;
	const { reported_status, reported_status_at, link_status_at } = device;
	// One that is off does not care whether its gateway comes or goes.
	return reported_status === "ONLINE" &&
		link_status_at !== null &&
		(reported_status_at === null || link_status_at > reported_status_at)
		? link_status_at
		: reported_status_at;
}

/**
 * @throws 400 IOTDA.013900 for a product and IOTDA.014000 for a gateway that the space
 * does not have, 400 IOTDA.014031 when a device has this id already, 403 IOTDA.014900
 * when the gateway can take no more
 */
export function createDevice(
	db: Db,
	scope: Scope,
	input: NewDevice,
	sealed: Sealed,
	now: Date,
): Promise<Device> {
	return registration(db, async (trx) => {
		const space = await getSpaceOrDefault(trx, scope, input.spaceId);
		return register(trx, space, input, sealed, now);
	});
}

/**
 * A gateway registers a device behind itself: in its own resource space, below itself
 * unless the input names a device behind it.
 *
 * @throws as `createDevice`, and 400 IOTDA.014000 for a parent that is not behind the gateway
 */
export function createChild(
	db: Db,
	linkId: string,
	input: Omit<NewDevice, "spaceId">,
	sealed: Sealed,
	now: Date,
): Promise<Device> {
	return registration(db, async (trx) => {
		const gatewayId = input.gatewayId ?? linkId;
		const space = await trx
			.selectFrom("devices as parent")
			.innerJoin("resource_spaces as s", "s.app_id", "parent.app_id")
			.selectAll("s")
			.where("parent.device_id", "=", gatewayId)
			.where("parent.link_id", "=", linkId)
			.executeTakeFirst();
		if (!space) throw unknownGatewayNamed();
		return register(
			trx,
			space,
			{ ...input, gatewayId, spaceId: space.app_id },
			sealed,
			now,
		);
	});
}

async function registration(
	db: Db,
	work: (trx: Db) => Promise<Device>,
): Promise<Device> {
	try {
		return await inTransaction(db, work);
	} catch (error) {
		if (isUniqueViolation(error, "devices_pkey"))
			throw new ApiError(errors.deviceExists, { cause: error });
		throw error;
	}
}

async function register(
	trx: Db,
	space: ResourceSpace,
	input: NewDevice,
	sealed: Sealed,
	now: Date,
): Promise<Device> {
	const deviceId = newDeviceId(input);
	const product = await holdProductNamed(trx, space.app_id, input.productId);
	const gateway =
		input.gatewayId === undefined
			? undefined
			: await holdGatewayNamed(trx, space.app_id, input.gatewayId);
	const same = await trx
		.selectFrom("devices")
		.select("device_id")
		.where("device_id", "=", deviceId)
		.executeTakeFirst();
	if (same) throw new ApiError(errors.deviceExists);
	if (gateway) {
		const children = await countChildren(trx, [gateway.device_id]);
		requireRoomBelow(gateway, children.get(gateway.device_id) ?? 0);
	}
	const row = await trx
		.insertInto("devices")
		.values({
			...newDeviceRow(
				input,
				{ ...space, product_key: product.product_key, gateway },
				sealed,
				now,
			),
			link_version: gateway?.version ?? null,
		})
		.returningAll()
		.executeTakeFirstOrThrow();
	await recordHistory(trx, [registeredEntry(row, product.product_id)], now);
	return {
		...row,
		app_name: space.name,
		product_id: product.product_id,
		product_name: product.name,
		online: 0,
		link_status_at: null,
	};
}

/** How the timeline of a device begins. */
function registeredEntry(
	device: Pick<
		Selectable<DeviceRow>,
		"device_id" | "node_id" | "project_id" | "app_id" | "gateway_id"
	>,
	productId: string,
): HistoryEntry {
	const { gateway_id } = device;
	return {
		projectId: device.project_id,
		spaceId: device.app_id,
		deviceId: device.device_id,
		kind: "registered",
		detail: {
			product_id: productId,
			node_id: device.node_id,
			...(gateway_id === null ? {} : { gateway_id }),
		},
	};
}

export function newDeviceId(
	input: Pick<NewDevice, "deviceId" | "productId" | "nodeId">,
): string {
	return input.deviceId ?? `${input.productId}_${input.nodeId}`;
}

/** A device that connects by itself or through a gateway, and was never heard of. */
export function newDeviceRow(
	input: NewDevice,
	place: {
		project_id: string;
		app_id: string;
		product_key: string;
		gateway: ParentDevice | undefined;
	},
	sealed: Sealed,
	now: Date,
) {
	const deviceId = newDeviceId(input);
	const { gateway } = place;
	return {
		device_id: deviceId,
		record_id: newRecordId(now),
		project_id: place.project_id,
		app_id: place.app_id,
		product_key: place.product_key,
		node_id: input.nodeId,
		device_name: input.deviceName,
		description: input.description,
		gateway_id: gateway?.device_id ?? null,
		depth: gateway ? gateway.depth + 1 : 0,
		link_id: gateway?.link_id ?? deviceId,
		link_version: null,
		reported_status: null,
		reported_status_at: null,
		...credentialColumns(input.credentials, sealed),
		extension_info: input.extensionInfo,
		frozen: 0,
		fw_version: null,
		sw_version: null,
		device_sdk_version: null,
		speaks_modules: 0,
		module_form: null,
		active_at: null,
		connection_status_at: null,
		created_at: instant(now),
	} satisfies Insertable<DeviceRow>;
}

/** What the registration of this device changes for a gateway; undefined for one without. */
export function additionOf(device: Device): ChildChange | undefined {
	return device.link_version === null
		? undefined
		: { linkId: device.link_id, after: device.link_version - 1 };
}

/** What is asked of a device that others are to be registered below. */
export type ParentDevice = Pick<
	Selectable<DeviceRow>,
	"device_id" | "depth" | "link_id"
>;

interface Gateway extends ParentDevice {
	/** Of the list of children of the gateway at the root, with the new child. */
	version: number;
}

/**
 * Held, so that its children can be counted and it is not deleted meanwhile. First the
 * gateway at the root, like whoever deletes one of its children: two who hold two
 * devices hold them in the same order.
 */
async function holdGatewayNamed(
	trx: Db,
	spaceId: string,
	gatewayId: string,
): Promise<Gateway> {
	const named = trx
		.selectFrom("devices")
		.select(["device_id", "depth", "link_id"])
		.where("device_id", "=", gatewayId)
		.where("app_id", "=", spaceId);
	const found = await named.executeTakeFirst();
	if (!found) throw unknownGatewayNamed();
	const version = await countChange(trx, found.link_id);
	const gateway = await lockForUpdate(trx, named).executeTakeFirst();
	// Deleted meanwhile, and perhaps registered again elsewhere.
	if (version === undefined || gateway?.link_id !== found.link_id)
		throw unknownGatewayNamed();
	return { ...gateway, version };
}

export function unknownGatewayNamed(): ApiError {
	return new ApiError(errors.unknownDeviceNamed, {
		detail: "gateway_id names no device of the application.",
	});
}

/** @throws 403 IOTDA.014900 when the device, with so many children, can take no more */
export function requireRoomBelow(
	gateway: Pick<ParentDevice, "depth">,
	childCount: number,
): void {
	if (gateway.depth >= DEPTH_LIMIT)
		throw new ApiError(errors.tooManyChildren, {
			detail: `gateway_id names a device that is ${DEPTH_LIMIT} levels below its gateway; no more are allowed.`,
		});
	if (childCount >= CHILDREN_PER_GATEWAY)
		throw new ApiError(errors.tooManyChildren, {
			detail: `gateway_id names a device that has ${CHILDREN_PER_GATEWAY} sub-devices; no more are allowed.`,
		});
}

/** By device; those without children are not in it. */
export async function countChildren(
	db: Db,
	gatewayIds: readonly string[],
): Promise<Map<string, number>> {
	const rows = await db
		.selectFrom("devices")
		.select((eb) => ["gateway_id", eb.fn.countAll<number>().as("count")])
		.where("gateway_id", "in", [...gatewayIds])
		.groupBy("gateway_id")
		.execute();
	return new Map(
		rows.map((row) => [row.gateway_id as string, Number(row.count)]),
	);
}

/** @throws 404 IOTDA.014000 */
export async function getDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
): Promise<Device> {
	const device = admitted(
		scope,
		await selectDevices(db)
			.where("devices.device_id", "=", deviceId)
			.where("devices.project_id", "=", scope.projectId)
			.executeTakeFirst(),
	);
	if (!device) throw new ApiError(errors.unknownDevice);
	return device;
}

/** For a gateway, which sees what is behind it and nothing else. */
export async function findDeviceBehind(
	db: Db,
	linkId: string,
	deviceId: string,
): Promise<Device | undefined> {
	return selectDevices(db)
		.where("devices.device_id", "=", deviceId)
		.where("devices.link_id", "=", linkId)
		.where("devices.gateway_id", "is not", null)
		.executeTakeFirst();
}

export interface DeviceFilter {
	spaceId: string | undefined;
	productId: string | undefined;
	/** The devices below this one: its children, or with `cascade` also theirs. */
	gatewayId: string | undefined;
	cascade: boolean;
	nodeId: string | undefined;
	deviceName: string | undefined;
	/** Registered at or after. */
	from: Date | undefined;
	/** Registered before. */
	until: Date | undefined;
}

export async function listDevices(
	db: Db,
	scope: Scope,
	filter: DeviceFilter,
	page: Page,
): Promise<PageResult<Device>> {
	const none = { items: [], page: { count: 0 } };
	const space =
		filter.spaceId === undefined
			? undefined
			: await getResourceSpace(db, scope, filter.spaceId);
	let query = selectDevices(db);
	// What narrows the list most comes alone: with the space or the project beside it,
	// SQLite would walk through all of their devices.
	if (filter.gatewayId !== undefined) {
		const gateway = await findGateway(db, scope, filter.gatewayId);
		if (!gateway || (space && space.app_id !== gateway.app_id)) return none;
		query = below(query, filter.gatewayId, filter.cascade);
	}
	if (filter.productId !== undefined) {
		const keys = await findProductKeys(
			db,
			scope,
			space?.app_id,
			filter.productId,
		);
		const [only] = keys;
		if (only === undefined) return none;
		query =
			keys.length === 1
				? query.where("devices.product_key", "=", only)
				: query.where("devices.product_key", "in", keys);
	}
	if (filter.gatewayId === undefined && filter.productId === undefined) {
		if (space) query = query.where("devices.app_id", "=", space.app_id);
		else {
			query = query.where("devices.project_id", "=", scope.projectId);
			const visible = await visibleSpaceIds(db, scope);
			if (visible?.length === 0) return none;
			if (visible) query = query.where("devices.app_id", "in", visible);
		}
	}
	if (filter.nodeId !== undefined)
		query = query.where("devices.node_id", "=", filter.nodeId);
	if (filter.deviceName !== undefined)
		query = query.where("devices.device_name", "=", filter.deviceName);
	if (filter.from)
		query = query.where("devices.created_at", ">=", instant(filter.from));
	if (filter.until)
		query = query.where("devices.created_at", "<", instant(filter.until));
	return listPage(query, "devices.record_id", page);
}

/** A gateway and all below it are in one space. */
async function findGateway(
	db: Db,
	scope: Scope,
	gatewayId: string,
): Promise<{ app_id: string } | undefined> {
	return admitted(
		scope,
		await db
			.selectFrom("devices")
			.select("app_id")
			.where("device_id", "=", gatewayId)
			.where("project_id", "=", scope.projectId)
			.executeTakeFirst(),
	);
}

function below(
	query: SelectQueryBuilder<Tables, "devices", Device>,
	gatewayId: string,
	cascade: boolean,
): SelectQueryBuilder<Tables, "devices", Device> {
	if (!cascade) return query.where("devices.gateway_id", "=", gatewayId);
	return query.where("devices.device_id", "in", (eb) =>
		eb
			.selectFrom("devices as child")
			.select("child.device_id")
			.where("child.gateway_id", "=", gatewayId)
			.unionAll(
				eb
					.selectFrom("devices as child")
					.innerJoin(
						"devices as grandchild",
						"grandchild.gateway_id",
						"child.device_id",
					)
					.select("grandchild.device_id")
					.where("child.gateway_id", "=", gatewayId),
			),
	);
}

/**
 * What is missing stays, null clears.
 *
 * @throws 404 IOTDA.014000
 */
export async function updateDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
	changes: {
		deviceName?: string | null;
		description?: string | null;
		extensionInfo?: string;
		secureAccess?: boolean;
		timeoutSeconds?: number;
		/** Null: as the product says. */
		moduleForm?: ModuleForm | null;
	},
): Promise<Device> {
	const columns: Updateable<DeviceRow> = {};
	if (changes.deviceName !== undefined)
		columns.device_name = changes.deviceName;
	if (changes.description !== undefined)
		columns.description = changes.description;
	if (changes.extensionInfo !== undefined)
		columns.extension_info = changes.extensionInfo;
	if (changes.secureAccess !== undefined)
		columns.secure_access = changes.secureAccess ? 1 : 0;
	if (changes.timeoutSeconds !== undefined)
		columns.timeout_seconds = changes.timeoutSeconds;
	if (changes.moduleForm !== undefined)
		columns.module_form = changes.moduleForm;
	return inTransaction(db, async (trx) => {
		const device = await getDevice(trx, scope, deviceId);
		if (Object.keys(columns).length === 0) return device;
		await change(trx, deviceId, columns);
		return { ...device, ...columns } as Device;
	});
}

async function change(
	trx: Db,
	deviceId: string,
	columns: Updateable<DeviceRow>,
): Promise<void> {
	const { numUpdatedRows } = await trx
		.updateTable("devices")
		.set(columns)
		.where("device_id", "=", deviceId)
		.executeTakeFirst();
	if (numUpdatedRows === 0n) throw new ApiError(errors.unknownDevice);
}

/** Told, inside the transaction, that a device is about to be gone. */
export type OnDeviceDeleted = (
	trx: Db,
	deviceId: string,
	now: Date,
) => void | Promise<void>;

/**
 * Its reported versions and its presence go with it; `onDeviceDeleted` settles what
 * else refers to it, before it is gone.
 *
 * @returns what it changes for the gateway it was behind
 * @throws 404 IOTDA.014000, 403 IOTDA.014024 while other devices connect through it
 */
export function deleteDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
	onDeviceDeleted: OnDeviceDeleted,
	now: Date,
): Promise<ChildChange | undefined> {
	return inTransaction(db, async (trx) =>
		remove(trx, await getDevice(trx, scope, deviceId), onDeviceDeleted, now),
	);
}

/**
 * A gateway deletes a device behind itself.
 *
 * @throws 404 IOTDA.014000 for a device that is not behind it, otherwise as `deleteDevice`
 */
export function deleteChild(
	db: Db,
	linkId: string,
	deviceId: string,
	onDeviceDeleted: OnDeviceDeleted,
	now: Date,
): Promise<ChildChange | undefined> {
	return inTransaction(db, async (trx) => {
		const child = await trx
			.selectFrom("devices")
			.select(["device_id", "link_id", "gateway_id"])
			.where("device_id", "=", deviceId)
			.where("link_id", "=", linkId)
			.where("gateway_id", "is not", null)
			.executeTakeFirst();
		if (!child) throw new ApiError(errors.unknownDevice);
		return remove(trx, child, onDeviceDeleted, now);
	});
}

async function remove(
	trx: Db,
	device: Pick<Selectable<DeviceRow>, "device_id" | "link_id" | "gateway_id">,
	onDeviceDeleted: OnDeviceDeleted,
	now: Date,
): Promise<ChildChange | undefined> {
	const { device_id: deviceId, link_id: linkId } = device;
	const version =
		device.gateway_id === null ? undefined : await countChange(trx, linkId);
	// Who registers a child locks the same row first.
	const held = await lockForUpdate(
		trx,
		trx
			.selectFrom("devices")
			.select(["device_id", "node_id", "gateway_id", "link_id", "link_version"])
			.select(["project_id", "app_id"])
			.where("device_id", "=", deviceId)
			.where("link_id", "=", linkId),
	).executeTakeFirst();
	if (!held) throw new ApiError(errors.unknownDevice);
	const child = await trx
		.selectFrom("devices")
		.select("device_id")
		.where("gateway_id", "=", deviceId)
		.limit(1)
		.executeTakeFirst();
	if (child) throw new ApiError(errors.deviceHasChildren);
	await onDeviceDeleted(trx, deviceId, now);
	await trx.deleteFrom("devices").where("device_id", "=", deviceId).execute();
	const { project_id: projectId, app_id: spaceId } = held;
	await recordHistory(
		trx,
		[{ projectId, spaceId, deviceId, kind: "deleted" }],
		now,
	);
	if (version === undefined || held.gateway_id === null) return undefined;
	await rememberDeletion(
		trx,
		{ ...held, gateway_id: held.gateway_id },
		version,
	);
	return { linkId, after: version - 1 };
}

/**
 * Replaces one of the device's two secrets; the other stays valid.
 *
 * @returns the new secret
 * @throws 404 IOTDA.014000
 */
export async function resetSecret(
	db: Db,
	scope: Scope,
	deviceId: string,
	input: { secret: string | undefined; secretType: SecretType },
	sealed: Sealed,
): Promise<string> {
	const secret = input.secret ?? newSecret();
	const column =
		input.secretType === "PRIMARY"
			? "secret_sealed"
			: "secondary_secret_sealed";
	await inTransaction(db, async (trx) => {
		await getDevice(trx, scope, deviceId);
		await change(trx, deviceId, { [column]: sealed.seal(secret) });
	});
	return secret;
}

/**
 * A frozen device cannot sign in.
 *
 * @throws 404 IOTDA.014000, 403 IOTDA.014038 for a device that connects through
 * another, 403 IOTDA.014039 when it is frozen
 */
export async function freezeDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		const device = await getDevice(trx, scope, deviceId);
		if (device.gateway_id !== null)
			throw new ApiError(errors.childNotFreezable);
		if (!(await setFrozen(trx, deviceId, 1)))
			throw new ApiError(errors.deviceAlreadyFrozen);
	});
}

/** @throws 404 IOTDA.014000, 403 IOTDA.014040 when it is not frozen */
export async function unfreezeDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await getDevice(trx, scope, deviceId);
		if (!(await setFrozen(trx, deviceId, 0)))
			throw new ApiError(errors.deviceNotFrozen);
	});
}

/** Whether this call changed it. */
async function setFrozen(
	trx: Db,
	deviceId: string,
	frozen: 0 | 1,
): Promise<boolean> {
	const { numUpdatedRows } = await trx
		.updateTable("devices")
		.set({ frozen })
		.where("device_id", "=", deviceId)
		.where("frozen", "!=", frozen)
		.executeTakeFirst();
	return numUpdatedRows > 0n;
}

/** Those of the devices that exist and are not frozen. */
export async function findConnectable(
	db: Db,
	deviceIds: readonly string[],
): Promise<Set<string>> {
	const rows = await db
		.selectFrom("devices")
		.select("device_id")
		.where("device_id", "in", [...deviceIds])
		.where("frozen", "=", 0)
		.execute();
	return new Set(rows.map((row) => row.device_id));
}
