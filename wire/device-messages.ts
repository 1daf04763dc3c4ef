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
	/** The device it is about: on a gateway's topics it may be a device behind it. */
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
/** Some SDKs write it without the `$`. */
export const subDeviceService = "$sub_device_manager";

/** What both kinds of notice may carry beside their own. */
export interface NoticeParas {
	/** For a child, in a task of mode `GATEWAY`: the same for all children in the task. */
	task_id?: string;
	/** Beside `task_id`: how many of this gateway's children the task upgrades. */
	sub_device_count?: number;
	/** As it was given when the task was created. */
	task_ext_info?: Record<string, unknown>;
}

/** `paras` of a `version_query`; empty in the ordinary case. */
export interface VersionQueryParas extends NoticeParas {
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
export interface UpgradeParas extends NoticeParas {
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

// --- $sub_device_manager ------------------------------------------------------------

/** What a gateway is told of a device behind it. Null: there is none. */
export interface SubDeviceInfo {
	parent_device_id: string;
	node_id: string;
	device_id: string;
	name: string | null;
	description: string | null;
	manufacturer_id: string | null;
	model: string | null;
	product_id: string;
	fw_version: string | null;
	sw_version: string | null;
	status: string;
	extension_info: Record<string, unknown> | null;
}

/** `paras` of `add_sub_device_notify`. */
export interface AddSubDeviceParas {
	devices: SubDeviceInfo[];
	/** Of the gateway's list; grows with every message. */
	version: number;
}

/** `paras` of `delete_sub_device_notify`. */
export interface DeleteSubDeviceParas {
	devices: { parent_device_id: string; node_id: string; device_id: string }[];
	version: number;
}

/** `paras` of `sub_device_sync_request`. */
export interface SubDeviceSyncParas {
	/** The list that the gateway has; none, 0 or less: it has none. */
	version?: number;
}

/** `paras` of `sub_device_update_status`; at most 100 at a time. */
export interface SubDeviceStatusParas {
	device_statuses: { device_id: string; status: "ONLINE" | "OFFLINE" }[];
}

/** Why the answer to a request names a device among those that failed. */
export interface SubDeviceFailure {
	error_code: string;
	error_msg: string;
}

/** `paras` of `sub_device_update_status_response`. */
export interface SubDeviceStatusResponseParas {
	successful_devices: { device_id: string; status: "ONLINE" | "OFFLINE" }[];
	failed_devices: (SubDeviceFailure & { device_id: string })[];
}

/** `paras` of `add_sub_device_request`; at most 50 at a time. */
export interface AddSubDeviceRequestParas {
	devices: {
		/** The gateway itself when it is left out. */
		parent_device_id?: string;
		node_id: string;
		device_id?: string;
		name?: string;
		description?: string;
		product_id: string;
		extension_info?: Record<string, unknown>;
	}[];
}

/** `paras` of `add_sub_device_response`. */
export interface AddSubDeviceResponseParas {
	successful_devices: SubDeviceInfo[];
	failed_devices: (SubDeviceFailure & {
		node_id: string;
		product_id: string;
	})[];
}

/** `paras` of `delete_sub_device_request`: device ids, at most 50 at a time. */
export interface DeleteSubDeviceRequestParas {
	devices: string[];
}

/** `paras` of `delete_sub_device_response`. */
export interface DeleteSubDeviceResponseParas {
	successful_devices: string[];
	failed_devices: (SubDeviceFailure & { device_id: string })[];
}
