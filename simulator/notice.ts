/** Reads what a server sends a device on `events/down`, as a careful device would. */
import { otaService, subDeviceService } from "../wire/device-messages.ts";
import type { PackageLink } from "./download.ts";

export type Target =
	| { kind: "firmware" }
	| { kind: "software" }
	| { kind: "module"; moduleName: string };

/** "There is a package for you." */
export interface Notice {
	target: Target;
	/** Came as a module event, not as a firmware upgrade that names a module. */
	moduleEvent: boolean;
	version: string;
	link: PackageLink;
	sizeBytes: number;
	/** 64 hex digits. */
	sha256: string;
	/** Life of the link. */
	expiresSeconds: number;
	/** The same for all devices of a gateway that share a package: it is fetched once. */
	taskId: string | undefined;
	/** Beside `taskId`: how many they are. */
	subDeviceCount: number | undefined;
}

export type Downlink =
	| { kind: "version_query" }
	| { kind: "notice"; notice: Notice }
	| { kind: "misunderstood"; reason: string };

/** What a gateway is told about the devices behind it. */
export type ListNews = {
	/** Of the list, after this. */
	version: number;
} & (
	| { kind: "added"; children: { deviceId: string }[] }
	| { kind: "deleted"; children: { deviceId: string }[] }
);

/**
 * The events of one message that concern upgrades of this device, in order; events of
 * other services and types it does not know are left out.
 */
export function readDownlink(payload: Buffer, deviceId: string): Downlink[] {
	const message = readMessage(payload);
	if (typeof message === "string")
		return [{ kind: "misunderstood", reason: message }];
	// As the vendor's Python and Java devices do: a message for another is dropped.
	if (message.about !== deviceId)
		return [{ kind: "misunderstood", reason: `for ${message.about}` }];
	return message.events.flatMap(readUpgradeEvent);
}

/** As `readDownlink`, for a gateway: with the device it is for, which may be behind it. */
export function readGatewayDownlink(payload: Buffer): {
	about: string;
	said: (Downlink | ListNews)[];
} {
	const message = readMessage(payload);
	if (typeof message === "string")
		return {
			about: "",
			said: [{ kind: "misunderstood", reason: message }],
		};
	return {
		about: message.about,
		said: message.events.flatMap((event) =>
			event.service_id === subDeviceService
				? readListNews(event)
				: readUpgradeEvent(event),
		),
	};
}

/** @returns what is wrong with it, when something is. */
function readMessage(
	payload: Buffer,
): { about: string; events: Record<string, unknown>[] } | string {
	let message: unknown;
	try {
		message = JSON.parse(payload.toString("utf8"));
	} catch (error) {
		return String(error);
	}
	if (!isRecord(message) || !Array.isArray(message.services))
		return "no services";
	return {
		about: String(message.object_device_id),
		events: message.services.filter(isRecord),
	};
}

function readUpgradeEvent(event: Record<string, unknown>): Downlink[] {
	if (event.service_id !== otaService) return [];
	const type = String(event.event_type);
	if (type === "version_query") return [{ kind: "version_query" }];
	const form = /^(firmware|software|module)_upgrade(_v2)?$/.exec(type);
	if (!form) return [];
	const paras = isRecord(event.paras) ? event.paras : {};
	const notice = readNotice(form[1] ?? "", form[2] !== undefined, paras);
	return [
		typeof notice === "string"
			? { kind: "misunderstood", reason: `${type}: ${notice}` }
			: { kind: "notice", notice },
	];
}

function readListNews(event: Record<string, unknown>): (Downlink | ListNews)[] {
	const kind =
		event.event_type === "add_sub_device_notify"
			? "added"
			: event.event_type === "delete_sub_device_notify"
				? "deleted"
				: undefined;
	// The answers to its own requests: a gateway that gets none asks again.
	if (!kind) return [];
	const paras = isRecord(event.paras) ? event.paras : {};
	const { devices, version } = paras;
	if (!Array.isArray(devices) || typeof version !== "number")
		return [{ kind: "misunderstood", reason: `${event.event_type}` }];
	const children = devices.flatMap((device: unknown) =>
		isRecord(device) && typeof device.device_id === "string"
			? [{ deviceId: device.device_id }]
			: [],
	);
	return [{ kind, version, children }];
}

/** @returns what is wrong with it, when something is. */
function readNotice(
	kind: string,
	signedAddress: boolean,
	paras: Record<string, unknown>,
): Notice | string {
	const { version, url, access_token, file_size, sign, expires, module_name } =
		paras;
	const { task_id, sub_device_count } = paras;
	if (typeof version !== "string" || version === "") return "no version";
	if (typeof url !== "string") return "no url";
	if (typeof file_size !== "number" || !Number.isSafeInteger(file_size))
		return "no file_size";
	if (typeof sign !== "string" || !/^[0-9a-f]{64}$/i.test(sign))
		return "no sign";
	if (!signedAddress && typeof access_token !== "string")
		return "no access_token";
	let target: Target;
	if (typeof module_name === "string") {
		target = { kind: "module", moduleName: module_name };
	} else if (kind === "module") {
		return "no module_name";
	} else {
		target = { kind: kind === "software" ? "software" : "firmware" };
	}
	return {
		target,
		moduleEvent: kind === "module",
		version,
		link:
			signedAddress || typeof access_token !== "string"
				? { url }
				: { url, token: access_token },
		sizeBytes: file_size,
		sha256: sign,
		expiresSeconds: typeof expires === "number" && expires > 0 ? expires : 3600,
		taskId: typeof task_id === "string" ? task_id : undefined,
		subDeviceCount:
			typeof sub_device_count === "number" ? sub_device_count : undefined,
	};
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
