/** The versions that run on devices, as they report them: firmware, software, OTA modules. */
import { sql } from "kysely";
import { type Db, rowsTable } from "../database/database.ts";
import { instant } from "../database/tables.ts";

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
 * Stores versions. One that is not given leaves the stored one alone; modules that the
 * product does not have are dropped.
 *
 * @returns how many versions of unknown modules were dropped
 */
export async function recordVersions(
	trx: Db,
	reports: readonly VersionsOfDevice[],
	now: Date,
): Promise<number> {
	const devices = new Map<
		string,
		{
			device_id: string;
			fw: string | null;
			sw: string | null;
			sdk: string | null;
			speaks: number;
		}
	>();
	const modules = new Map<
		string,
		{ device_id: string; name: string; version: string }
	>();
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
	if (devices.size > 0) {
		// Only rows that would change are written: devices repeat themselves at every connection.
		await sql`
			update devices set
				fw_version = coalesce(v.fw, fw_version),
				sw_version = coalesce(v.sw, sw_version),
				device_sdk_version = coalesce(v.sdk, device_sdk_version),
				speaks_modules = case when v.speaks = 1 then 1 else speaks_modules end
			from ${rowsTable(trx, { device_id: "text", fw: "text", sw: "text", sdk: "text", speaks: "integer" }, [...devices.values()])} as v
			where devices.device_id = v.device_id and (
				(v.fw is not null and (fw_version is null or fw_version <> v.fw)) or
				(v.sw is not null and (sw_version is null or sw_version <> v.sw)) or
				(v.sdk is not null and (device_sdk_version is null or device_sdk_version <> v.sdk)) or
				(v.speaks = 1 and speaks_modules = 0))`.execute(trx);
	}
	if (modules.size === 0) return 0;
	const stored = await sql`
		insert into device_modules (device_id, module_name, module_version, reported_at)
		select v.device_id, v.name, v.version, ${instant(now)}
		from ${rowsTable(trx, { device_id: "text", name: "text", version: "text" }, [...modules.values()])} as v
		join devices d on d.device_id = v.device_id
		join ota_modules m on m.product_key = d.product_key and m.module_name = v.name
		where true
		on conflict (device_id, module_name) do update
			set module_version = excluded.module_version, reported_at = excluded.reported_at`.execute(
		trx,
	);
	return modules.size - Number(stored.numAffectedRows ?? 0);
}
