/**
 * Registering many devices from one file, and all devices as such a file. Otaru's own;
 * a line has the fields of a device's registration, side by side.
 */
import { type Static, Type } from "typebox";
import { createDevice, deviceAuthInfo } from "./devices.ts";
import { id36, oneOf, pageOf, pageQuery, pathId } from "./envelope.ts";
import { tag } from "./tags.ts";

export const importFormat = () => oneOf(["csv", "ndjson"]);
export type ImportFormat = Static<ReturnType<typeof importFormat>>;

// --- a line of the file ----------------------------------------------------------

/** What `auth_info` holds may stand beside the other fields instead. */
export const deviceLine = Type.Object(
	{
		...createDevice.properties,
		...deviceAuthInfo,
		tags: Type.Optional(Type.Array(tag(), { rule: "must be a list" })),
	},
	{ rule: "must be an object" },
);
export type DeviceLine = Static<typeof deviceLine>;

// --- requests --------------------------------------------------------------------

export const importDevicesQuery = Type.Object({
	/** Absent: as Content-Type says. */
	format: Type.Optional(importFormat()),
	/** The resource space of lines that name none. */
	app_id: Type.Optional(id36()),
});

export const deviceImportParams = Type.Object({
	project_id: pathId(64),
	import_id: pathId(64),
});

export const listDeviceImportsQuery = Type.Object(pageQuery);

export const importRefusalsQuery = Type.Object({
	/** Absent: that of the imported file. */
	format: Type.Optional(importFormat()),
});

export const exportDevicesQuery = Type.Object({
	format: Type.Optional(importFormat()),
	/** Only this resource space; the lines then name none, so they fit into any. */
	app_id: Type.Optional(id36()),
	product_id: Type.Optional(id36()),
});

// --- answers ---------------------------------------------------------------------

export const deviceImport = Type.Object({
	import_id: Type.String(),
	/** The resource space of lines that name none. */
	app_id: Type.String(),
	status: oneOf(["Processing", "Success", "PartialSuccess", "Fail"]),
	status_desc: Type.Optional(Type.String()),
	format: importFormat(),
	total_bytes: Type.Integer(),
	/** How far the file is worked off, in bytes and in lines; header and empty lines count. */
	done_bytes: Type.Integer(),
	lines: Type.Integer(),
	created: Type.Integer(),
	/** Lines whose device was there already, with the same product and node id. */
	unchanged: Type.Integer(),
	refused: Type.Integer(),
	create_time: Type.String(),
	finish_time: Type.Optional(Type.String()),
});
export type DeviceImport = Static<typeof deviceImport>;

export const deviceImportList = pageOf("device_imports", deviceImport);

/** One line of the list of refusals. */
export const importRefusal = Type.Object({
	/** 1 for the first line of the file. */
	line: Type.Integer(),
	device_id: Type.Optional(Type.String()),
	error_code: Type.String(),
	error_msg: Type.String(),
});
export type ImportRefusal = Static<typeof importRefusal>;
