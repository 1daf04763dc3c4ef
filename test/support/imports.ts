/** Imports files of devices, and waits for what comes of it. */
import type { Client, Payload } from "../../wire/client.ts";
import type {
	DeviceImport,
	ImportFormat,
	ImportRefusal,
} from "../../wire/device-imports.ts";
import { until } from "./device.ts";

export interface ImportOptions {
	format?: ImportFormat;
	appId?: string;
}

/** As soon as the server has the file; a text with braces is NDJSON unless said otherwise. */
export function beginImport(
	api: Client,
	file: Payload,
	{ format, appId }: ImportOptions = {},
): Promise<DeviceImport> {
	return api.importDevices(file, {
		format:
			format ??
			(typeof file === "string" && file.startsWith("{") ? "ndjson" : "csv"),
		appId,
	});
}

export function importEnd(
	api: Client,
	{ import_id }: Pick<DeviceImport, "import_id">,
): Promise<DeviceImport> {
	return until(
		() => api.getDeviceImport(import_id),
		({ status }) => status !== "Processing",
		120_000,
	);
}

export interface Imported {
	job: DeviceImport;
	/** How many lines were registered, were there already, were refused. */
	counts: [created: number, unchanged: number, refused: number];
	refusals: ImportRefusal[];
}

export async function importFile(
	api: Client,
	file: Payload,
	options?: ImportOptions,
): Promise<Imported> {
	const job = await importEnd(api, await beginImport(api, file, options));
	return {
		job,
		counts: [job.created, job.unchanged, job.refused],
		refusals: await readRefusals(api, job),
	};
}

export async function readRefusals(
	api: Client,
	{ import_id }: Pick<DeviceImport, "import_id">,
): Promise<ImportRefusal[]> {
	const answer = await api.getImportRefusals(import_id, { format: "ndjson" });
	return (await answer.text())
		.split("\n")
		.filter(Boolean)
		.map((line) => JSON.parse(line) as ImportRefusal);
}

/** `count` lines of a CSV file without its header, of the product `p`. */
export function csvLines(count: number, prefix = "n"): string {
	return Array.from({ length: count }, (_, n) => `${prefix}${n},p\n`).join("");
}
export const CSV_HEADER = "node_id,product_id\n";
