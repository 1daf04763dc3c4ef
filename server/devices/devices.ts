/** Devices: registered by the maker, reached over the device link. */
import {
	type Selectable,
	type SelectQueryBuilder,
	sql,
	type Updateable,
} from "kysely";
import type { Scope } from "../access/permissions.ts";
import type { Sealed } from "../access/sealed.ts";
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
	instant,
	type ModuleForm,
	type Tables,
} from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import { findProductKeys, holdProductNamed } from "../products/products.ts";
import {
	admitted,
	getResourceSpace,
	getSpaceOrDefault,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";
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
	/** 1 while a connection stands. */
	online: number;
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
			// A CASE and not the bare EXISTS: PostgreSQL would answer with a boolean.
			sql<number>`case when exists (select 1 from presence where presence.device_id = devices.device_id) then 1 else 0 end`.as(
				"online",
			),
		]);
}

export function statusOf(device: Device): DeviceStatus {
	if (device.frozen) return "FROZEN";
	if (device.online) return "ONLINE";
	return device.active_at === null ? "INACTIVE" : "OFFLINE";
}

/**
 * @throws 400 IOTDA.013900 for a product and IOTDA.014000 for a gateway that the space
 * does not have, 400 IOTDA.014031 when a device has this id already, 403 IOTDA.014900
 * when the gateway can take no more
 */
export async function createDevice(
	db: Db,
	scope: Scope,
	input: NewDevice,
	sealed: Sealed,
	now: Date,
): Promise<Device> {
	const deviceId = input.deviceId ?? `${input.productId}_${input.nodeId}`;
	const credentials = credentialColumns(input.credentials, sealed);
	try {
		return await inTransaction(db, async (trx) => {
			const space = await getSpaceOrDefault(trx, scope, input.spaceId);
			const product = await holdProductNamed(
				trx,
				space.app_id,
				input.productId,
			);
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
			if (gateway) await requireRoomBelow(trx, gateway);
			const row = await trx
				.insertInto("devices")
				.values({
					device_id: deviceId,
					record_id: newRecordId(now),
					project_id: scope.projectId,
					app_id: space.app_id,
					product_key: product.product_key,
					node_id: input.nodeId,
					device_name: input.deviceName,
					description: input.description,
					gateway_id: gateway?.device_id ?? null,
					depth: gateway ? gateway.depth + 1 : 0,
					...credentials,
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
				})
				.returningAll()
				.executeTakeFirstOrThrow();
			return {
				...row,
				app_name: space.name,
				product_id: product.product_id,
				product_name: product.name,
				online: 0,
			};
		});
	} catch (error) {
		if (isUniqueViolation(error, "devices_pkey"))
			throw new ApiError(errors.deviceExists, { cause: error });
		throw error;
	}
}

type Gateway = Pick<Selectable<DeviceRow>, "device_id" | "depth">;

/** Locked, so that its children can be counted and it is not deleted meanwhile. */
async function holdGatewayNamed(
	trx: Db,
	spaceId: string,
	gatewayId: string,
): Promise<Gateway> {
	const gateway = await lockForUpdate(
		trx,
		trx
			.selectFrom("devices")
			.select(["device_id", "depth"])
			.where("device_id", "=", gatewayId)
			.where("app_id", "=", spaceId),
	).executeTakeFirst();
	if (!gateway)
		throw new ApiError(errors.unknownDeviceNamed, {
			detail: "gateway_id names no device of the application.",
		});
	return gateway;
}

async function requireRoomBelow(trx: Db, gateway: Gateway): Promise<void> {
	if (gateway.depth >= DEPTH_LIMIT)
		throw new ApiError(errors.tooManyChildren, {
			detail: `gateway_id names a device that is ${DEPTH_LIMIT} levels below its gateway; no more are allowed.`,
		});
	const { count } = await trx
		.selectFrom("devices")
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.where("gateway_id", "=", gateway.device_id)
		.executeTakeFirstOrThrow();
	if (Number(count) >= CHILDREN_PER_GATEWAY)
		throw new ApiError(errors.tooManyChildren, {
			detail: `gateway_id names a device that has ${CHILDREN_PER_GATEWAY} sub-devices; no more are allowed.`,
		});
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
 * @throws 404 IOTDA.014000, 403 IOTDA.014024 while other devices connect through it
 */
export async function deleteDevice(
	db: Db,
	scope: Scope,
	deviceId: string,
	onDeviceDeleted: OnDeviceDeleted,
	now: Date,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await getDevice(trx, scope, deviceId);
		// Who registers a child locks the same row first.
		await lockForUpdate(
			trx,
			trx
				.selectFrom("devices")
				.select("device_id")
				.where("device_id", "=", deviceId),
		).execute();
		const child = await trx
			.selectFrom("devices")
			.select("device_id")
			.where("gateway_id", "=", deviceId)
			.limit(1)
			.executeTakeFirst();
		if (child) throw new ApiError(errors.deviceHasChildren);
		await onDeviceDeleted(trx, deviceId, now);
		const { numDeletedRows } = await trx
			.deleteFrom("devices")
			.where("device_id", "=", deviceId)
			.executeTakeFirst();
		if (numDeletedRows === 0n) throw new ApiError(errors.unknownDevice);
	});
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
