/**
 * IoTDA events <-> what any device can say. The one place that knows the vendor's
 * event names and how its SDKs spell things.
 *
 * Modules are silent in the vendor's device protocol: the spelling here follows its
 * management API (docs/decisions/0004-modules-on-the-device-link.md).
 */

import {
	type AddSubDeviceParas,
	type DeleteSubDeviceParas,
	deviceTopics,
	type NoticeParas,
	otaService,
	type SubDeviceInfo,
	sdkInfoService,
	subDeviceService,
	timeSyncService,
	type UpgradeEventType,
	type UpgradeParas,
	type VersionQueryParas,
} from "../../wire/device-messages.ts";
import { wireTime } from "../../wire/envelope.ts";
import type { DownloadLinks } from "../artifacts/download-links.ts";
import type { Child, ChildStatus, ListChange } from "../devices/children.ts";
import type { DeviceReport, Notice } from "../upgrade-tasks/exchanges.ts";

export type Heard =
	| { kind: "report"; report: DeviceReport }
	| {
			kind: "time_sync";
			deviceSendTime: number | undefined;
			eventId: string | undefined;
	  }
	| {
			kind: "sub_devices";
			request: SubDeviceRequest;
			eventId: string | undefined;
	  }
	/** Understood and of no interest: other services of the platform. */
	| { kind: "ignored" }
	/** Not understood; nothing of it is acted on. */
	| { kind: "dropped"; reason: string };

/** What a gateway asks or says of the devices behind it. */
export type SubDeviceRequest =
	/** To be told what changed since that version of its list; 0: it has none. */
	| { kind: "sync"; version: number }
	| {
			kind: "statuses";
			devices: { deviceId: string; status: ChildStatus | undefined }[];
	  }
	| { kind: "add"; devices: NewChild[] }
	| { kind: "delete"; devices: string[] };

export interface NewChild {
	/** As they were given, to name the device in the answer. */
	nodeId: string;
	productId: string;
	/** In the words of the management API, not looked at yet. */
	body: Record<string, unknown>;
}

/** A payload of `events/up`. */
export interface Uplink {
	/** The device behind the gateway that all of it is about; undefined: whoever sent it. */
	about: string | undefined;
	events: Heard[];
}

export interface Message {
	topic: string;
	payload: string;
}

const VERSION = /^[A-Za-z0-9_.-]{1,256}$/;
const MODULE_NAME = /^[A-Za-z0-9_.-]{1,64}$/;
const DEVICE_ID = /^[A-Za-z0-9_-]{1,128}$/;
const DESCRIPTION_LIMIT = 1_024;
/** A product has ten; a device that lists more than this lists nonsense. */
const MODULES_LIMIT = 100;
/** Statuses of children in one request, as the vendor has it. */
export const STATUSES_LIMIT = 100;
/** Devices in one request to add or delete children, as the vendor has it. */
export const CHANGES_LIMIT = 50;
/** What one message may weigh is bounded; this bounds what one message may cost. */
const SERVICES_LIMIT = 1_000;

/** Reads a payload of `events/up`. Never throws: what does not fit is dropped with a reason. */
export function readEvents(payload: Uint8Array): Uplink {
	const nothing = (reason: string): Uplink => ({
		about: undefined,
		events: [dropped(reason)],
	});
	let message: unknown;
	try {
		message = JSON.parse(
			new TextDecoder("utf-8", { fatal: true }).decode(payload),
		);
	} catch {
		return nothing("not JSON");
	}
	if (!isObject(message)) return nothing("not an object");
	const about = message.object_device_id ?? "";
	if (about !== "" && (typeof about !== "string" || !isDeviceId(about)))
		return nothing("object_device_id is no device id");
	const { services } = message;
	if (services === undefined || services === null)
		return { about: about || undefined, events: [] };
	if (!Array.isArray(services)) return nothing("services is not a list");
	const events = services.slice(0, SERVICES_LIMIT).flatMap(readEvent);
	if (services.length > SERVICES_LIMIT)
		events.push(dropped("too many services"));
	return { about: about || undefined, events };
}

function readEvent(event: unknown): Heard[] {
	if (!isObject(event)) return [dropped("a service event is not an object")];
	const { service_id: service, event_type: type, event_id: eventId } = event;
	if (typeof service !== "string" || typeof type !== "string")
		return [dropped("a service event has no name")];
	const paras = isObject(event.paras) ? event.paras : {};
	switch (`${service}/${type}`) {
		case `${otaService}/version_report`:
			return readVersions(paras);
		case `${sdkInfoService}/sdk_info_report`:
			return readSdkInfo(paras);
		case `${otaService}/upgrade_progress_report`:
			return [readProgress(paras)];
		case `${timeSyncService}/time_sync_request`:
			return [
				{
					kind: "time_sync",
					deviceSendTime: readNumber(paras.device_send_time),
					eventId: typeof eventId === "string" ? eventId : undefined,
				},
			];
		default:
			if (`$${service}` === subDeviceService || service === subDeviceService)
				return [readSubDevices(type, paras, readEventId(eventId))];
			return service === otaService
				? [dropped("unknown $ota event")]
				: [{ kind: "ignored" }];
	}
}

function readSubDevices(
	type: string,
	paras: Record<string, unknown>,
	eventId: string | undefined,
): Heard {
	const heard = (request: SubDeviceRequest): Heard => ({
		kind: "sub_devices",
		request,
		eventId,
	});
	/** One more than is taken, so that it can be said that there were too many. */
	const list = (value: unknown, limit: number): unknown[] | undefined =>
		Array.isArray(value) ? value.slice(0, limit + 1) : undefined;
	switch (type) {
		case "sub_device_sync_request": {
			const version = readNumber(paras.version);
			return heard({
				kind: "sync",
				version:
					version !== undefined && Number.isSafeInteger(version) && version > 0
						? version
						: 0,
			});
		}
		case "sub_device_update_status": {
			const statuses = list(paras.device_statuses, STATUSES_LIMIT);
			if (!statuses) return dropped("device_statuses is not a list");
			return heard({
				kind: "statuses",
				devices: statuses.map((given) => {
					const { device_id, status } = isObject(given) ? given : {};
					return {
						deviceId: echo(device_id),
						status:
							status === "ONLINE" || status === "OFFLINE" ? status : undefined,
					};
				}),
			});
		}
		case "add_sub_device_request": {
			const devices = list(paras.devices, CHANGES_LIMIT);
			if (!devices) return dropped("devices is not a list");
			return heard({ kind: "add", devices: devices.map(readNewChild) });
		}
		case "delete_sub_device_request": {
			const devices = list(paras.devices, CHANGES_LIMIT);
			if (!devices) return dropped("devices is not a list");
			return heard({ kind: "delete", devices: devices.map(echo) });
		}
		default:
			return { kind: "ignored" };
	}
}

function readNewChild(given: unknown): NewChild {
	const said = isObject(given) ? given : {};
	let { extension_info: extensionInfo } = said;
	// One SDK knows it only as text.
	if (typeof extensionInfo === "string" && extensionInfo !== "") {
		try {
			extensionInfo = JSON.parse(extensionInfo);
		} catch {
			// Stays what it is, and is refused as no object.
		}
	}
	const fields = {
		device_id: said.device_id,
		node_id: said.node_id,
		product_id: said.product_id,
		gateway_id: said.parent_device_id,
		device_name: said.name,
		description: said.description,
		extension_info: extensionInfo,
	};
	return {
		nodeId: echo(said.node_id),
		productId: echo(said.product_id),
		body: Object.fromEntries(
			Object.entries(fields).filter(
				([, value]) => value !== undefined && value !== null && value !== "",
			),
		),
	};
}

/** A device's own word, as far as it can be said back to it. */
function echo(value: unknown): string {
	return typeof value === "string" ? value.slice(0, 256).toWellFormed() : "";
}

/** Undefined when there is none to be said back. */
function readEventId(value: unknown): string | undefined {
	return typeof value === "string" && value !== "" ? echo(value) : undefined;
}

/** What fits is taken; what does not is dropped by itself and takes nothing along. */
function readVersions(paras: Record<string, unknown>): Heard[] {
	const faults: Heard[] = [];
	const version = (value: unknown): string | undefined => {
		// Several SDKs say "unknown" with null or an empty text.
		if (value === undefined || value === null || value === "") return undefined;
		if (typeof value === "string" && VERSION.test(value)) return value;
		faults.push(dropped("a version does not fit"));
		return undefined;
	};
	const firmware = version(paras.fw_version);
	const software = version(paras.sw_version);
	const modules = modulesOf(paras)?.flatMap((item) => {
		const name = isObject(item) ? item.module_name : undefined;
		if (
			!isObject(item) ||
			typeof name !== "string" ||
			!MODULE_NAME.test(name)
		) {
			faults.push(dropped("a module does not fit"));
			return [];
		}
		const found = version(item.module_version ?? item.version);
		return found === undefined ? [] : [{ name, version: found }];
	});
	return [
		{
			kind: "report",
			report: {
				kind: "versions",
				...(firmware === undefined ? {} : { firmware }),
				...(software === undefined ? {} : { software }),
				...(modules === undefined ? {} : { modules }),
			},
		},
		...faults,
	];
}

/** `modules: [{module_name, module_version}]`, or a single `module_name` with `module_version` or `version`. */
function modulesOf(paras: Record<string, unknown>): unknown[] | undefined {
	const { modules } = paras;
	if (Array.isArray(modules)) return modules.slice(0, MODULES_LIMIT);
	return typeof paras.module_name === "string" && paras.module_name !== ""
		? [paras]
		: undefined;
}

function readSdkInfo(paras: Record<string, unknown>): Heard[] {
	const { device_sdk_version: sdk } = paras;
	const heard = readVersions({
		fw_version: paras.fw_version,
		sw_version: paras.sw_version,
	});
	if (typeof sdk !== "string" || sdk === "" || sdk.length > 256 || hasNul(sdk))
		return heard;
	return [...heard, { kind: "report", report: { kind: "versions", sdk } }];
}

/**
 * The result code decides, then the version; a side field that does not fit is as if
 * it had not been sent, so that a failure or a success is never lost over it.
 */
function readProgress(paras: Record<string, unknown>): Heard {
	const resultCode = readNumber(paras.result_code);
	if (resultCode === undefined || !Number.isInteger(resultCode))
		return dropped("result_code is not an integer");
	const progress = readNumber(paras.progress);
	const { version, description, module_name: moduleName } = paras;
	return {
		kind: "report",
		report: {
			kind: "progress",
			resultCode,
			progress: progress === undefined ? undefined : Math.floor(progress),
			// A failure may come with an empty version: some SDKs know none then.
			version:
				typeof version === "string" && VERSION.test(version) ? version : "",
			description:
				typeof description === "string" && description !== ""
					? description
							.slice(0, DESCRIPTION_LIMIT)
							.replaceAll("\u0000", "")
							.toWellFormed()
					: undefined,
			moduleName:
				typeof moduleName === "string" && MODULE_NAME.test(moduleName)
					? moduleName
					: undefined,
		},
	};
}

/** A number, also one that a device wrote as text. */
function readNumber(value: unknown): number | undefined {
	const number =
		typeof value === "string" && /^-?\d{1,9}$/.test(value)
			? Number(value)
			: value;
	return typeof number === "number" && Number.isFinite(number)
		? number
		: undefined;
}

// --- what the server says -----------------------------------------------------------

/** The message that carries a notice. */
export function messageOf(
	notice: Notice,
	links: DownloadLinks,
	now: Date,
): Message {
	switch (notice.kind) {
		case "version_query":
			return message(
				notice,
				"version_query",
				{
					...(notice.moduleName === undefined
						? {}
						: { module_name: notice.moduleName }),
					...noticeParas(notice),
				} satisfies VersionQueryParas,
				now,
			);
		case "upgrade":
			return message(
				notice,
				upgradeEventType(notice),
				upgradeParas(notice, links, now),
				now,
			);
		default:
			return notice satisfies never;
	}
}

function noticeParas({ gateway, taskExtInfo }: Notice): NoticeParas {
	return {
		...(gateway === undefined
			? {}
			: {
					task_id: gateway.taskId,
					sub_device_count: gateway.subDeviceCount,
				}),
		...(taskExtInfo === undefined ? {} : { task_ext_info: taskExtInfo }),
	};
}

type UpgradeNotice = Notice & { kind: "upgrade" };

function upgradeEventType({
	part,
	form,
	downloadForm,
}: UpgradeNotice): UpgradeEventType {
	// Dressed as firmware for devices whose SDK knows nothing else.
	const spoken = part === "module" && form === "compatible" ? "firmware" : part;
	return downloadForm === "presigned"
		? `${spoken}_upgrade_v2`
		: `${spoken}_upgrade`;
}

function upgradeParas(
	notice: UpgradeNotice,
	links: DownloadLinks,
	now: Date,
): UpgradeParas {
	const link =
		notice.downloadForm === "presigned"
			? { url: links.presigned(notice) }
			: links.token(notice);
	return {
		version: notice.version,
		url: link.url,
		file_size: notice.sizeBytes,
		file_name: notice.fileName,
		...("accessToken" in link ? { access_token: link.accessToken } : {}),
		expires: Math.max(
			1,
			Math.floor((notice.expiresAt.getTime() - now.getTime()) / 1_000),
		),
		sign: notice.sign,
		...(notice.customInfo === undefined
			? {}
			: { custom_info: notice.customInfo }),
		...(notice.moduleName === undefined
			? {}
			: { module_name: notice.moduleName }),
		...noticeParas(notice),
	};
}

/** The answer to a device that sets its clock by ours; times are epoch milliseconds. */
export function timeSyncAnswer(
	to: Addressee,
	request: { deviceSendTime: number | undefined; eventId: string | undefined },
	receivedAt: Date,
	now: Date,
): Message {
	return message(
		to,
		"time_sync_response",
		{
			device_send_time: request.deviceSendTime,
			server_recv_time: receivedAt.getTime(),
			server_send_time: now.getTime(),
		},
		now,
		timeSyncService,
		request.eventId,
	);
}

/** Tells a gateway of children that were added, or deleted: all of one kind. */
export function listChangeMessage(
	linkId: string,
	changes: readonly ListChange[],
	version: number,
	now: Date,
): Message {
	const added = changes.flatMap((change) =>
		change.kind === "added" ? [subDeviceInfo(change.child)] : [],
	);
	if (added.length > 0) {
		const paras: AddSubDeviceParas = { devices: added, version };
		return subDeviceMessage(linkId, "add_sub_device_notify", paras, now);
	}
	const paras: DeleteSubDeviceParas = {
		devices: changes.map(({ child }) => ({
			parent_device_id: child.parentId,
			node_id: child.nodeId,
			device_id: child.deviceId,
		})),
		version,
	};
	return subDeviceMessage(linkId, "delete_sub_device_notify", paras, now);
}

/** A child as the gateway that it is behind, and that is connected, is to see it. */
export function subDeviceInfo(child: Child): SubDeviceInfo {
	return {
		parent_device_id: child.parentId,
		node_id: child.nodeId,
		device_id: child.deviceId,
		name: child.name,
		description: child.description,
		// Words of an older platform for what a product id says.
		manufacturer_id: null,
		model: null,
		product_id: child.productId,
		fw_version: child.firmware,
		sw_version: child.software,
		status: child.reportedStatus ?? "INACTIVE",
		extension_info:
			child.extensionInfo === null
				? null
				: (JSON.parse(child.extensionInfo) as Record<string, unknown>),
	};
}

/** A message of `$sub_device_manager`; `eventId` is that of the request it answers. */
export function subDeviceMessage(
	linkId: string,
	eventType: string,
	paras: object,
	now: Date,
	eventId?: string,
): Message {
	return message(
		{ linkId, deviceId: linkId },
		eventType,
		paras,
		now,
		subDeviceService,
		eventId,
	);
}

/** The device that a message is for, and the one whose connection carries it. */
export interface Addressee {
	linkId: string;
	deviceId: string;
}

/**
 * Always with `object_device_id` and `paras`: SDKs compare the first with their own
 * id and read the second without asking whether it is there.
 */
function message(
	{ linkId, deviceId }: Addressee,
	eventType: string,
	paras: object,
	now: Date,
	service: string = otaService,
	eventId?: string,
): Message {
	return {
		topic: deviceTopics(linkId).eventsDown,
		payload: JSON.stringify({
			object_device_id: deviceId,
			services: [
				{
					service_id: service,
					event_type: eventType,
					event_time: wireTime(now),
					...(eventId === undefined ? {} : { event_id: eventId }),
					paras,
				},
			],
		}),
	};
}

/** Whether a device could have this id: whatever else a device says is not asked of the store. */
export function isDeviceId(text: string): boolean {
	return DEVICE_ID.test(text);
}

function dropped(reason: string): Heard {
	return { kind: "dropped", reason };
}

function isObject(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}

function hasNul(text: string): boolean {
	return text.includes("\u0000") || !text.isWellFormed();
}
