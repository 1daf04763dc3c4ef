/** What a caller says of a new device, in a body or in a line of a file, in our words. */
import type { Static } from "typebox";
import type { createDevice } from "../../wire/devices.ts";
import { invalidInput } from "../errors.ts";
import type { NewDevice } from "./devices.ts";

const EXTENSION_INFO_LIMIT_BYTES = 1024;

type Body = Static<typeof createDevice>;

/**
 * @param auth what it proves itself with, wherever that was said
 * @throws 400 IOTDA.000006 for what the schema cannot say
 */
export function readNewDevice(
	body: Body,
	auth: Body["auth_info"] = body.auth_info,
): NewDevice {
	return {
		deviceId: body.device_id,
		nodeId: body.node_id,
		productId: body.product_id,
		spaceId: body.app_id,
		gatewayId: body.gateway_id,
		deviceName: body.device_name || null,
		description: body.description || null,
		extensionInfo: body.extension_info
			? extensionInfoText(body.extension_info)
			: null,
		credentials: {
			authType: auth?.auth_type,
			secret: auth?.secret,
			fingerprint: auth?.fingerprint,
			secureAccess: auth?.secure_access,
			timeoutSeconds: auth?.timeout,
		},
	};
}

/** @throws 400 IOTDA.000006 */
export function extensionInfoText(info: Record<string, unknown>): string {
	const text = JSON.stringify(info);
	if (Buffer.byteLength(text) > EXTENSION_INFO_LIMIT_BYTES)
		throw invalidInput("extension_info", "must be at most 1 KB as JSON");
	return text;
}
