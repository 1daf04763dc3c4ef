/** Reads what a server sends a device on `events/down`, as a careful device would. */
import { otaService } from "../wire/device-messages.ts";
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
}

export type Downlink =
	| { kind: "version_query" }
	| { kind: "notice"; notice: Notice }
	| { kind: "misunderstood"; reason: string };

/**
 * The events of one message that concern upgrades of this device, in order; events of
 * other services and types it does not know are left out.
 */
export function readDownlink(payload: Buffer, deviceId: string): Downlink[] {
	let message: unknown;
	try {
		message = JSON.parse(payload.toString("utf8"));
	} catch (error) {
		return [{ kind: "misunderstood", reason: String(error) }];
	}
	if (!isRecord(message) || !Array.isArray(message.services))
		return [{ kind: "misunderstood", reason: "no services" }];
	// As the vendor's Python and Java devices do: a message for another is dropped.
	if (message.object_device_id !== deviceId)
		return [
			{ kind: "misunderstood", reason: `for ${message.object_device_id}` },
		];
	const said: Downlink[] = [];
	for (const event of message.services as unknown[]) {
		if (!isRecord(event) || event.service_id !== otaService) continue;
		const type = String(event.event_type);
		if (type === "version_query") {
			said.push({ kind: "version_query" });
			continue;
		}
		const form = /^(firmware|software|module)_upgrade(_v2)?$/.exec(type);
		if (!form) continue;
		const paras = isRecord(event.paras) ? event.paras : {};
		const notice = readNotice(form[1] ?? "", form[2] !== undefined, paras);
		said.push(
			typeof notice === "string"
				? { kind: "misunderstood", reason: `${type}: ${notice}` }
				: { kind: "notice", notice },
		);
	}
	return said;
}

/** @returns what is wrong with it, when something is. */
function readNotice(
	kind: string,
	signedAddress: boolean,
	paras: Record<string, unknown>,
): Notice | string {
	const { version, url, access_token, file_size, sign, expires, module_name } =
		paras;
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
	};
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}
