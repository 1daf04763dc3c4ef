/** The versions that devices reported for their OTA modules. */
import type { Db } from "../database/database.ts";

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
