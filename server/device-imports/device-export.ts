/** All devices as a file that an import takes back, with what they have reported besides. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { ImportFormat } from "../../wire/device-imports.ts";
import { wireTime, withoutAbsent } from "../../wire/envelope.ts";
import type { Scope } from "../access/permissions.ts";
import { type Db, listTable } from "../database/database.ts";
import { fromInstant } from "../database/tables.ts";
import { findTags, type Tag } from "../devices/device-tags.ts";
import { isOnline, statusOf } from "../devices/devices.ts";
import { findProductKeys } from "../products/products.ts";
import {
	getResourceSpace,
	listResourceSpaces,
} from "../resource-spaces/resource-spaces.ts";
import { asText, BYTE_ORDER_MARK, writeRecord } from "./csv.ts";

/** Devices read at once: a few milliseconds of the embedded store. */
const WINDOW_SIZE = 250;

export interface ExportFilter {
	/** The lines of one space do not name it, so that they fit into any other. */
	spaceId: string | undefined;
	productId: string | undefined;
}

/** A condition that an index answers in the order of the record ids. */
interface Series {
	column: "app_id" | "product_key";
	id: string;
}

/**
 * The file, piece by piece: devices in the order of their registration, each space
 * after the other, so a gateway always comes before its children. Nothing is held while
 * nobody reads; what is registered or changed meanwhile may be in it or not.
 *
 * Secrets are not in it.
 *
 * @throws before the first piece: 403 IOTDA.001000
 */
export async function exportDevices(
	db: Db,
	scope: Scope,
	filter: ExportFilter,
	format: ImportFormat,
): Promise<AsyncGenerator<string>> {
	const series = await seriesOf(db, scope, filter);
	return write(db, series, format, filter.spaceId === undefined);
}

async function seriesOf(
	db: Db,
	scope: Scope,
	{ spaceId, productId }: ExportFilter,
): Promise<Series[]> {
	const space =
		spaceId === undefined
			? undefined
			: await getResourceSpace(db, scope, spaceId);
	if (productId !== undefined) {
		const keys = await findProductKeys(db, scope, space?.app_id, productId);
		return keys.sort().map((id) => ({ column: "product_key", id }));
	}
	const spaces = space ? [space] : await listResourceSpaces(db, scope, {});
	return spaces
		.reverse()
		.map(({ app_id }) => ({ column: "app_id", id: app_id }));
}

async function* write(
	db: Db,
	series: readonly Series[],
	format: ImportFormat,
	withSpace: boolean,
): AsyncGenerator<string> {
	const columns = COLUMNS.filter((name) => withSpace || name !== "app_id");
	if (format === "csv") yield BYTE_ORDER_MARK + writeRecord(columns);
	for (const one of series) {
		let after = "";
		for (;;) {
			const devices = await devicesAfter(db, one, after);
			const last = devices.at(-1);
			if (!last) break;
			after = last.record_id;
			const ids = devices.map(({ device_id }) => device_id);
			const tags = await findTags(db, ids);
			const modules = await findModules(db, ids);
			let text = "";
			for (const device of devices) {
				const fields = fieldsOf(
					device,
					tags.get(device.device_id) ?? [],
					modules.get(device.device_id) ?? [],
					withSpace,
				);
				text +=
					format === "csv"
						? writeRecord(columns.map((name) => cellOf(fields[name])))
						: `${JSON.stringify(withoutAbsent(fields))}\n`;
			}
			yield text;
			await nextTurn();
		}
	}
}

type ExportedRow = Awaited<ReturnType<typeof devicesAfter>>[number];

function devicesAfter(db: Db, { column, id }: Series, after: string) {
	return db
		.selectFrom("devices")
		.select([
			"device_id",
			"record_id",
			"app_id",
			"node_id",
			"device_name",
			"description",
			"gateway_id",
			"depth",
			"reported_status",
			"auth_type",
			"fingerprint",
			"secure_access",
			"timeout_seconds",
			"extension_info",
			"frozen",
			"fw_version",
			"sw_version",
			"device_sdk_version",
			"active_at",
			"created_at",
			sql<string>`(select p.product_id from products as p where p.product_key = devices.product_key)`.as(
				"product_id",
			),
			isOnline.as("online"),
		])
		.where(`devices.${column}`, "=", id)
		.where("devices.record_id", ">", after)
		.orderBy("devices.record_id")
		.limit(WINDOW_SIZE)
		.execute();
}

interface Module {
	module_name: string;
	module_version: string;
}

async function findModules(
	db: Db,
	deviceIds: readonly string[],
): Promise<Map<string, Module[]>> {
	const ids = JSON.stringify(deviceIds);
	const { rows } = await sql<Module & { device_id: string }>`
		select device_id, module_name, module_version from device_modules
		where device_id in (select value from ${listTable(db, sql`${ids}`)} as ids)
		order by device_id, module_name`.execute(db);
	const modules = new Map<string, Module[]>();
	for (const { device_id, ...module } of rows) {
		const others = modules.get(device_id);
		if (others) others.push(module);
		else modules.set(device_id, [module]);
	}
	return modules;
}

const COLUMNS = [
	"device_id",
	"node_id",
	"product_id",
	"app_id",
	"device_name",
	"description",
	"gateway_id",
	"auth_type",
	"fingerprint",
	"secure_access",
	"timeout",
	"extension_info",
	"tags",
	"status",
	"fw_version",
	"sw_version",
	"device_sdk_version",
	"modules",
	"create_time",
] as const;
type Field =
	| string
	| number
	| boolean
	| null
	| Record<string, unknown>
	| { tag_key: string; tag_value: string }[]
	| Module[];

function fieldsOf(
	device: ExportedRow,
	tags: readonly Tag[],
	modules: Module[],
	withSpace: boolean,
): Record<(typeof COLUMNS)[number], Field> {
	return {
		device_id: device.device_id,
		node_id: device.node_id,
		product_id: device.product_id,
		app_id: withSpace ? device.app_id : null,
		device_name: device.device_name,
		description: device.description,
		gateway_id: device.gateway_id,
		auth_type: device.auth_type,
		fingerprint: device.fingerprint,
		secure_access: device.secure_access === 1,
		timeout: device.timeout_seconds,
		extension_info:
			device.extension_info === null
				? null
				: (JSON.parse(device.extension_info) as Record<string, unknown>),
		tags: tags.map(({ key, value }) => ({ tag_key: key, tag_value: value })),
		status: statusOf(device),
		fw_version: device.fw_version,
		sw_version: device.sw_version,
		device_sdk_version: device.device_sdk_version,
		modules,
		create_time: wireTime(fromInstant(device.created_at)),
	};
}

function cellOf(field: Field): string {
	if (field === null) return "";
	if (!Array.isArray(field))
		return asText(
			typeof field === "object" ? JSON.stringify(field) : String(field),
		);
	return asText(
		field
			.map((pair) =>
				"tag_key" in pair
					? pair.tag_key + (pair.tag_value && `=${pair.tag_value}`)
					: `${pair.module_name}=${pair.module_version}`,
			)
			.join(";"),
	);
}
