/** The versions that run on devices, as they report them: firmware, software, OTA modules. */
import { sql } from "kysely";
import { type Db, rowsTable } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { recordFromDevices } from "../history/history.ts";

export interface DeviceModule {
	moduleName: string;
	moduleVersion: string;
}

/** By name. A module that was deleted since keeps the version reported for it. */
export async function listDeviceModules(
	db: Db,
	deviceId: string,
): Promise<DeviceModule[]> {
	return db
		.selectFrom("device_modules")
		.select(["module_name as moduleName", "module_version as moduleVersion"])
		.where("device_id", "=", deviceId)
		.orderBy("module_name")
		.execute();
}

/** What a device, or a finished upgrade, says about the versions that run on it. */
export interface VersionsOfDevice {
	deviceId: string;
	firmware?: string;
	software?: string;
	sdk?: string;
	modules?: readonly { name: string; version: string }[];
	/** It has shown that it knows of modules. */
	speaksModules?: boolean;
}

/**
 * Stores versions, and in the timelines what has changed. One that is not given leaves
 * the stored one alone; modules that the product does not have are dropped.
 *
 * @returns how many versions of unknown modules were dropped
 */
export async function recordVersions(
	trx: Db,
	reports: readonly VersionsOfDevice[],
	now: Date,
): Promise<number> {
	const devices = new Map<string, DeviceVersions>();
	const modules = new Map<string, ModuleVersion>();
	// In the order they came: the last word of a device counts.
	for (const { deviceId, ...said } of reports) {
		const before = devices.get(deviceId);
		devices.set(deviceId, {
			device_id: deviceId,
			fw: said.firmware ?? before?.fw ?? null,
			sw: said.software ?? before?.sw ?? null,
			sdk: said.sdk ?? before?.sdk ?? null,
			speaks: said.speaksModules || before?.speaks ? 1 : 0,
		});
		for (const { name, version } of said.modules ?? []) {
			modules.set(`${deviceId}/${name}`, {
				device_id: deviceId,
				name,
				version,
			});
		}
	}
	const changes = new Map<string, VersionChanges>();
	await storeDevices(trx, [...devices.values()], changes);
	const dropped = await storeModules(trx, [...modules.values()], changes, now);
	await recordFromDevices(
		trx,
		[...changes.values()].map(({ projectId, spaceId, deviceId, changes }) => ({
			projectId,
			spaceId,
			deviceId,
			kind: "versions_reported",
			detail: { changes },
		})),
		now,
	);
	return dropped;
}

interface DeviceVersions {
	device_id: string;
	fw: string | null;
	sw: string | null;
	sdk: string | null;
	/** 1: it has shown that it knows of modules. */
	speaks: number;
}

interface ModuleVersion {
	device_id: string;
	name: string;
	version: string;
}

/** What has become another version on one device, for its timeline. */
interface VersionChanges {
	projectId: string;
	spaceId: string;
	deviceId: string;
	/** `old` is absent the first time. */
	changes: {
		part: "firmware" | "software" | "sdk" | "module";
		module_name?: string;
		old?: string;
		new: string;
	}[];
}

function noteChange(
	noted: Map<string, VersionChanges>,
	device: { device_id: string; project_id: string; app_id: string },
	change: Omit<VersionChanges["changes"][number], "old">,
	old: string | null,
): void {
	const { device_id: deviceId } = device;
	let entry = noted.get(deviceId);
	if (!entry) {
		entry = {
			projectId: device.project_id,
			spaceId: device.app_id,
			deviceId,
			changes: [],
		};
		noted.set(deviceId, entry);
	}
	const { new: fresh, ...what } = change;
	entry.changes.push({
		...what,
		...(old === null ? {} : { old }),
		new: fresh,
	});
}

async function storeDevices(
	trx: Db,
	devices: readonly DeviceVersions[],
	noted: Map<string, VersionChanges>,
): Promise<void> {
	if (devices.length === 0) return;
	const columns = {
		device_id: "text",
		fw: "text",
		sw: "text",
		sdk: "text",
		speaks: "integer",
	} as const;
	// Devices repeat themselves at every connection: what is new to none is only read.
	const { rows: changed } = await sql<
		DeviceVersions & {
			project_id: string;
			app_id: string;
			old_fw: string | null;
			old_sw: string | null;
			old_sdk: string | null;
		}
	>`
		select v.device_id, v.fw, v.sw, v.sdk, v.speaks, d.project_id, d.app_id,
			d.fw_version as old_fw, d.sw_version as old_sw, d.device_sdk_version as old_sdk
		from ${rowsTable(trx, columns, devices)} as v
		join devices as d on d.device_id = v.device_id
		where (v.fw is not null and (d.fw_version is null or d.fw_version <> v.fw))
			or (v.sw is not null and (d.sw_version is null or d.sw_version <> v.sw))
			or (v.sdk is not null and (d.device_sdk_version is null or d.device_sdk_version <> v.sdk))
			or (v.speaks = 1 and d.speaks_modules = 0)`.execute(trx);
	if (changed.length === 0) return;
	const rows = changed.map(({ device_id, fw, sw, sdk, speaks }) => ({
		device_id,
		fw,
		sw,
		sdk,
		speaks,
	}));
	await sql`
		update devices set
			fw_version = coalesce(v.fw, fw_version),
			sw_version = coalesce(v.sw, sw_version),
			device_sdk_version = coalesce(v.sdk, device_sdk_version),
			speaks_modules = case when v.speaks = 1 then 1 else speaks_modules end
		from ${rowsTable(trx, columns, rows)} as v
		where devices.device_id = v.device_id`.execute(trx);
	for (const row of changed) {
		for (const [part, fresh, old] of [
			["firmware", row.fw, row.old_fw],
			["software", row.sw, row.old_sw],
			["sdk", row.sdk, row.old_sdk],
		] as const)
			if (fresh !== null && fresh !== old)
				noteChange(noted, row, { part, new: fresh }, old);
	}
}

/** @returns how many there are of modules that the product does not have */
async function storeModules(
	trx: Db,
	modules: readonly ModuleVersion[],
	noted: Map<string, VersionChanges>,
	now: Date,
): Promise<number> {
	if (modules.length === 0) return 0;
	const columns = { device_id: "text", name: "text", version: "text" } as const;
	const { rows: known } = await sql<
		ModuleVersion & { project_id: string; app_id: string; old: string | null }
	>`
		select v.device_id, v.name, v.version, d.project_id, d.app_id, o.module_version as old
		from ${rowsTable(trx, columns, modules)} as v
		join devices as d on d.device_id = v.device_id
		join ota_modules as m on m.product_key = d.product_key and m.module_name = v.name
		left join device_modules as o on o.device_id = v.device_id and o.module_name = v.name`.execute(
		trx,
	);
	if (known.length > 0) {
		const rows = known.map(({ device_id, name, version }) => ({
			device_id,
			name,
			version,
		}));
		await sql`
			insert into device_modules (device_id, module_name, module_version, reported_at)
			select v.device_id, v.name, v.version, ${instant(now)}
			from ${rowsTable(trx, columns, rows)} as v
			join devices as d on d.device_id = v.device_id
			where true
			on conflict (device_id, module_name) do update
				set module_version = excluded.module_version, reported_at = excluded.reported_at`.execute(
			trx,
		);
	}
	for (const row of known)
		if (row.version !== row.old)
			noteChange(
				noted,
				row,
				{ part: "module", module_name: row.name, new: row.version },
				row.old,
			);
	return modules.length - known.length;
}
