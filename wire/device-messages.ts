/** IoTDA topics and payloads: what a device sends and receives by MQTT. */

/** Topics of one device. The last three levels are the vendor's. */
export function deviceTopics(deviceId: string) {
	const own = `$oc/devices/${deviceId}/`;
	return {
		own,
		eventsUp: `${own}sys/events/up`,
		eventsDown: `${own}sys/events/down`,
	};
}

/** The envelope of `events/up` and `events/down`. */
export interface DeviceEvents {
	object_device_id?: string;
	services: ServiceEvent[];
}

export interface ServiceEvent {
	service_id: string;
	event_type: string;
	/** `yyyyMMdd'T'HHmmss'Z'`, UTC. Devices get it wrong in many ways; nothing depends on it. */
	event_time?: string;
	event_id?: string;
	paras: Record<string, unknown>;
}

export const otaService = "$ota";
export const sdkInfoService = "$sdk_info";
export const timeSyncService = "$time_sync";

/** `paras` of a `version_query`; empty unless it is about a module. */
export interface VersionQueryParas {
	module_name?: string;
}

/** `paras` of `version_report`. Null says that the device does not know. */
export interface VersionReportParas {
	fw_version?: string | null;
	sw_version?: string | null;
	modules?: { module_name: string; module_version: string }[];
}

export type UpgradeEventType =
	| "firmware_upgrade"
	| "software_upgrade"
	| "module_upgrade"
	| "firmware_upgrade_v2"
	| "software_upgrade_v2"
	| "module_upgrade_v2";

/** `paras` of the upgrade events; the `_v2` ones carry a signed address and no token. */
export interface UpgradeParas {
	version: string;
	url: string;
	/** Bytes; below 2 GiB, since SDKs keep it in 32 bits. */
	file_size: number;
	file_name: string;
	access_token?: string;
	/** Seconds from now that the token or the address is good for. */
	expires: number;
	/** SHA-256 of the file, hex. */
	sign: string;
	custom_info?: string;
	module_name?: string;
}

/** `paras` of `upgrade_progress_report`. */
export interface ProgressReportParas {
	result_code: number;
	progress?: number;
	version: string;
	description?: string;
	module_name?: string;
}
