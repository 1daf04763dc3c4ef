/** Devices, their credentials, and what they have reported about themselves. */
import { type Static, Type } from "typebox";
import {
	anyText,
	deviceId,
	flag,
	freeObject,
	id36,
	oneOf,
	pageOf,
	pageQuery,
	pathId,
	plainText,
	queryFlag,
	timeText,
} from "./envelope.ts";

const nodeId = () =>
	Type.String({
		pattern: "^[A-Za-z0-9_\\-]{1,64}$",
		minLength: 1,
		maxLength: 64,
		rule: "must be 1 to 64 characters: letters A-Z a-z, digits, _ and -",
	});

const secret = () =>
	Type.String({
		pattern: "^[A-Za-z0-9_\\-]{8,32}$",
		minLength: 8,
		maxLength: 32,
		rule: "must be 8 to 32 characters: letters A-Z a-z, digits, _ and -",
	});

/** SHA-1 or SHA-256 of a certificate. */
const fingerprint = () =>
	Type.String({
		pattern: "^(?:[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$",
		rule: "must be 40 or 64 hexadecimal digits",
	});

/** Seconds; 0: a device that never connects is kept for ever. */
const timeout = () =>
	Type.Integer({
		minimum: 0,
		maximum: 2147483647,
		rule: "must be a whole number from 0 to 2147483647",
	});

// --- requests -------------------------------------------------------------------

export const deviceParams = Type.Object({
	project_id: pathId(64),
	device_id: deviceId(),
});

/** What a new device proves itself with. */
export const deviceAuthInfo = {
	auth_type: Type.Optional(oneOf(["SECRET", "CERTIFICATES"])),
	secret: Type.Optional(secret()),
	fingerprint: Type.Optional(fingerprint()),
	secure_access: Type.Optional(flag()),
	timeout: Type.Optional(timeout()),
};

export const createDevice = Type.Object({
	device_id: Type.Optional(deviceId()),
	node_id: nodeId(),
	device_name: Type.Optional(plainText(0, 256)),
	product_id: id36(),
	auth_info: Type.Optional(
		Type.Object(deviceAuthInfo, { rule: "must be an object" }),
	),
	description: Type.Optional(plainText(0, 2048)),
	gateway_id: Type.Optional(deviceId()),
	app_id: Type.Optional(id36()),
	extension_info: Type.Optional(freeObject()),
	shadow: Type.Optional(
		Type.Array(
			Type.Object(
				{ service_id: anyText(1, 32), desired: freeObject() },
				{ rule: "must be an object" },
			),
			{ rule: "must be a list" },
		),
	),
});

/** What is missing stays; an empty text clears. */
export const updateDevice = Type.Object({
	device_name: Type.Optional(plainText(0, 256)),
	description: Type.Optional(plainText(0, 2048)),
	extension_info: Type.Optional(freeObject()),
	auth_info: Type.Optional(
		Type.Object(
			{
				secure_access: Type.Optional(flag()),
				timeout: Type.Optional(timeout()),
			},
			{ rule: "must be an object" },
		),
	),
});

export const listDevicesQuery = Type.Object({
	app_id: Type.Optional(id36()),
	product_id: Type.Optional(id36()),
	/** The devices below this one: its children, with `is_cascade_query` also theirs. */
	gateway_id: Type.Optional(deviceId()),
	is_cascade_query: Type.Optional(queryFlag()),
	node_id: Type.Optional(nodeId()),
	device_name: Type.Optional(plainText(1, 256)),
	/** Registered at or after this, and before `end_time`; general date form. */
	start_time: Type.Optional(timeText()),
	end_time: Type.Optional(timeText()),
	...pageQuery,
});

export const deviceActionQuery = Type.Object({
	action_id: oneOf(["resetSecret"]),
});
export const secretType = () => oneOf(["PRIMARY", "SECONDARY"]);
export const resetSecret = Type.Object({
	secret: Type.Optional(secret()),
	force_disconnect: Type.Optional(flag()),
	secret_type: Type.Optional(secretType()),
});

// --- answers --------------------------------------------------------------------

const listed = {
	app_id: Type.String(),
	app_name: Type.String(),
	device_id: Type.String(),
	node_id: Type.String(),
	/** Its own id for a device that connects by itself. */
	gateway_id: Type.String(),
	device_name: Type.Optional(Type.String()),
	/** `GATEWAY`: connects by itself; `ENDPOINT`: through another. */
	node_type: Type.String({ documented: { enum: ["GATEWAY", "ENDPOINT"] } }),
	description: Type.Optional(Type.String()),
	fw_version: Type.Optional(Type.String()),
	sw_version: Type.Optional(Type.String()),
	device_sdk_version: Type.Optional(Type.String()),
	product_id: Type.String(),
	product_name: Type.String(),
	status: Type.String({
		documented: { enum: ["ONLINE", "OFFLINE", "INACTIVE", "FROZEN"] },
	}),
	tags: Type.Array(
		Type.Object({ tag_key: Type.String(), tag_value: Type.String() }),
	),
};

export const deviceItem = Type.Object(listed);
export type DeviceItem = Static<typeof deviceItem>;

export const device = Type.Object({
	...listed,
	modules: Type.Array(
		Type.Object({ module_name: Type.String(), module_version: Type.String() }),
	),
	auth_info: Type.Object({
		auth_type: Type.String({
			documented: { enum: ["SECRET", "CERTIFICATES"] },
		}),
		secret: Type.Optional(Type.String()),
		secondary_secret: Type.Optional(Type.String()),
		fingerprint: Type.Optional(Type.String()),
		secondary_fingerprint: Type.Optional(Type.String()),
		secure_access: Type.Boolean(),
		timeout: Type.Integer(),
	}),
	create_time: Type.String(),
	connection_status_update_time: Type.Optional(Type.String()),
	active_time: Type.Optional(Type.String()),
	extension_info: Type.Optional(freeObject()),
});
export type Device = Static<typeof device>;

export const deviceList = pageOf("devices", deviceItem);

export const resetSecretAnswer = Type.Object({
	device_id: Type.String(),
	secret: Type.String(),
	secret_type: secretType(),
});

// --- how one device takes module upgrades: Otaru's own --------------------------

/** Null: as the device's product says. */
const deviceModuleForm = () =>
	Type.Unsafe<"none" | "native" | "compatible" | null>({
		enum: ["none", "native", "compatible", null],
		rule: "must be one of none, native, compatible, or null",
	});
export const updateDeviceOtaProfile = Type.Object({
	module_form: deviceModuleForm(),
});
export const deviceOtaProfile = Type.Object({
	module_form: deviceModuleForm(),
	/** The device has named a module itself, so it understands module events. */
	speaks_modules: Type.Boolean(),
});
export type DeviceOtaProfile = Static<typeof deviceOtaProfile>;
