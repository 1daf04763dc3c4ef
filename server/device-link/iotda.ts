/**
 * IoTDA events <-> what any device can say. The one place that knows the vendor's
 * event names and how its SDKs spell things.
 *
 * Modules are silent in the vendor's device protocol: the spelling here follows its
 * management API (docs/decisions/0004-modules-on-the-device-link.md).
 */

import {
	deviceTopics,
	otaService,
	sdkInfoService,
	timeSyncService,
	type UpgradeEventType,
	type UpgradeParas,
	type VersionQueryParas,
} from "../../wire/device-messages.ts";
import { wireTime } from "../../wire/envelope.ts";
import type { DownloadLinks } from "../artifacts/download-links.ts";
import type { DeviceReport, Notice } from "../upgrade-tasks/exchanges.ts";

export type Heard =
	| { kind: "report"; report: DeviceReport }
	| {
			kind: "time_sync";
			deviceSendTime: number | undefined;
			eventId: string | undefined;
	  }
	/** Understood and of no interest: other services of the platform. */
	| { kind: "ignored" }
	/** Not understood; nothing of it is acted on. */
	| { kind: "dropped"; reason: string };

export interface Message {
	topic: string;
	payload: string;
}

const VERSION = /^[A-Za-z0-9_.-]{1,256}$/;
const MODULE_NAME = /^[A-Za-z0-9_.-]{1,64}$/;
const DESCRIPTION_LIMIT = 1_024;
/** A product has ten; a device that lists more than this lists nonsense. */
const MODULES_LIMIT = 100;
/** What one message may weigh is bounded; this bounds what one message may cost. */
const SERVICES_LIMIT = 1_000;

/** Reads a payload of `events/up`. Never throws: what does not fit is dropped with a reason. */
export function readEvents(deviceId: string, payload: Uint8Array): Heard[] {
	let message: unknown;
	try {
		message = JSON.parse(
			new TextDecoder("utf-8", { fatal: true }).decode(payload),
		);
	} catch {
		return [dropped("not JSON")];
	}
	if (!isObject(message)) return [dropped("not an object")];
	const objectDeviceId = message.object_device_id;
	if (
		objectDeviceId !== undefined &&
		objectDeviceId !== null &&
		objectDeviceId !== "" &&
		objectDeviceId !== deviceId
	) {
		return [dropped("about another device")];
	}
	const { services } = message;
	if (services === undefined || services === null) return [];
	if (!Array.isArray(services)) return [dropped("services is not a list")];
	const heard = services.slice(0, SERVICES_LIMIT).flatMap(readEvent);
	return services.length > SERVICES_LIMIT
		? [...heard, dropped("too many services")]
		: heard;
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
			return service === otaService
				? [dropped("unknown $ota event")]
				: [{ kind: "ignored" }];
	}
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
				notice.deviceId,
				"version_query",
				versionQueryParas(notice.moduleName),
				now,
			);
		case "upgrade":
			return message(
				notice.deviceId,
				upgradeEventType(notice),
				upgradeParas(notice, links, now),
				now,
			);
		default:
			return notice satisfies never;
	}
}

function versionQueryParas(moduleName: string | undefined): VersionQueryParas {
	return moduleName === undefined ? {} : { module_name: moduleName };
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
	};
}

/** The answer to a device that sets its clock by ours; times are epoch milliseconds. */
export function timeSyncAnswer(
	deviceId: string,
	request: { deviceSendTime: number | undefined; eventId: string | undefined },
	receivedAt: Date,
	now: Date,
): Message {
	return message(
		deviceId,
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

/**
 * Always with `object_device_id` and `paras`: SDKs compare the first with their own
 * id and read the second without asking whether it is there.
 */
function message(
	deviceId: string,
	eventType: string,
	paras: object,
	now: Date,
	service: string = otaService,
	eventId?: string,
): Message {
	return {
		topic: deviceTopics(deviceId).eventsDown,
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

function dropped(reason: string): Heard {
	return { kind: "dropped", reason };
}

function isObject(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}

function hasNul(text: string): boolean {
	return text.includes("\u0000") || !text.isWellFormed();
}
