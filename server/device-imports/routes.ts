import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { setImmediate as nextTurn } from "node:timers/promises";
import { Type } from "typebox";
import {
	deviceImport as deviceImportAnswer,
	deviceImportList,
	deviceImportParams,
	exportDevicesQuery,
	type ImportFormat,
	type ImportRefusal,
	importDevicesQuery,
	importRefusalsQuery,
	listDeviceImportsQuery,
	type DeviceImport as WireImport,
} from "../../wire/device-imports.ts";
import { projectParams, wireTime, withoutAbsent } from "../../wire/envelope.ts";
import { attachment, streamedBodyHeaders } from "../../wire/headers.ts";
import type { Http } from "../access/route.ts";
import {
	announcedBytes,
	discardRest,
	streamedBody,
} from "../access/streamed-body.ts";
import type { Clock, Db } from "../database/database.ts";
import { newRecordId } from "../database/ids.ts";
import { readPage } from "../database/paging.ts";
import type { Signal } from "../database/signal.ts";
import { fromInstant, optionalInstant } from "../database/tables.ts";
import { invalidInput } from "../errors.ts";
import type { Events } from "../events.ts";
import { getSpaceOrDefault } from "../resource-spaces/resource-spaces.ts";
import { asText, BYTE_ORDER_MARK, writeRecord } from "./csv.ts";
import { exportDevices } from "./device-export.ts";
import {
	createImport,
	deleteImport,
	findRefusals,
	getImport,
	type ImportJob,
	listImports,
	type RefusedLine,
} from "./import-jobs.ts";
import { type ImportSpool, importTooLarge } from "./import-spool.ts";
import { wakeImports } from "./import-worker.ts";

const PROJECT = "/otaru/v1/projects/:project_id";
const IMPORTS = `${PROJECT}/device-imports`;
const IMPORT = `${IMPORTS}/:import_id`;
/** Refusals read at once. */
const WINDOW_SIZE = 1_000;

const contentTypes: Readonly<Record<ImportFormat, string>> = {
	csv: "text/csv; charset=utf-8",
	ndjson: "application/x-ndjson",
};

export interface ImportRouteParts {
	db: Db;
	signal: Signal;
	spool: ImportSpool;
	/** This process. */
	nodeId: string;
	events: Events;
	now: Clock;
}

export function deviceImportRoutes(http: Http, parts: ImportRouteParts): void {
	const { db, signal, spool, nodeId, events, now } = parts;

	http.post(
		// Two colons are how the router writes one.
		`${PROJECT}/devices::import`,
		{
			config: {
				action: "iotda:devices:register",
				level: "Write",
				streams: true,
			},
			schema: {
				operationId: "ImportDevices",
				summary: "Register many devices from a file",
				tags: ["Device imports"],
				consumes: ["text/csv", "application/x-ndjson"],
				failures: [507],
				requestHeaders: streamedBodyHeaders,

				params: projectParams,
				querystring: importDevicesQuery,
				response: { 202: deviceImportAnswer },
			},
		},
		async (request, reply) => {
			const { raw, scope, query } = request;
			try {
				const format = query.format ?? formatOf(raw);
				checkEncoding(raw);
				const space = await getSpaceOrDefault(db, scope, query.app_id);
				if ((announcedBytes(raw) ?? 0) > spool.limitBytes)
					throw importTooLarge(spool.limitBytes);
				const importId = newRecordId(now());
				const totalBytes = await spool.receive(
					importId,
					streamedBody(raw),
					request.expectedSha256,
				);
				let job: ImportJob;
				try {
					if (totalBytes === 0)
						throw invalidInput("the body", "must be a file with devices");
					job = await createImport(
						db,
						scope,
						{
							importId,
							spaceId: space.app_id,
							nodeId,
							format,
							totalBytes,
							circumstances: {
								sourceIp: request.ip,
								secureTransport: request.protocol === "https",
							},
						},
						now(),
					);
				} catch (error) {
					await spool.remove(importId);
					throw error;
				}
				wakeImports(signal);
				events.happened("device_import_accepted", { format });
				return reply.code(202).send(toWire(job));
			} catch (error) {
				events.happened("device_import_refused");
				discardRest(raw, spool.limitBytes);
				throw error;
			}
		},
	);

	http.get(
		IMPORTS,
		{
			config: { action: "iotda:devices:queryList", level: "List" },
			schema: {
				operationId: "ListDeviceImports",
				summary: "List imports",
				tags: ["Device imports"],

				params: projectParams,
				querystring: listDeviceImportsQuery,
				response: { 200: deviceImportList },
			},
		},
		async (request) => {
			const { items, page } = await listImports(
				db,
				request.scope,
				readPage(request.query),
			);
			return { device_imports: items.map(toWire), page };
		},
	);

	http.get(
		IMPORT,
		{
			config: { action: "iotda:devices:query", level: "Read" },
			schema: {
				operationId: "ShowDeviceImport",
				summary: "Show how far an import is",
				tags: ["Device imports"],

				params: deviceImportParams,
				response: { 200: deviceImportAnswer },
			},
		},
		async (request) =>
			toWire(await getImport(db, request.scope, request.params.import_id)),
	);

	http.get(
		`${IMPORT}/refusals`,
		{
			config: { action: "iotda:devices:query", level: "Read" },
			schema: {
				operationId: "ListImportRefusals",
				summary: "Download the refused lines of an import",
				tags: ["Device imports"],
				produces: { 200: ["text/csv", "application/x-ndjson"] },
				answerHeaders: { 200: attachment },
				params: deviceImportParams,
				querystring: importRefusalsQuery,
			},
		},
		async (request, reply) => {
			const job = await getImport(db, request.scope, request.params.import_id);
			const format = request.query.format ?? job.format;
			return reply
				.headers(fileHeaders(`refusals-${job.import_id}`, format))
				.send(Readable.from(writeRefusals(db, job.import_id, format)));
		},
	);

	http.delete(
		IMPORT,
		{
			config: { action: "iotda:devices:register", level: "Write" },
			schema: {
				operationId: "DeleteDeviceImport",
				summary: "Delete an import",
				tags: ["Device imports"],
				params: deviceImportParams,
				response: { 204: Type.Null() },
			},
		},
		async (request, reply) => {
			await deleteImport(db, request.scope, request.params.import_id, now());
			wakeImports(signal);
			return reply.code(204).send(null);
		},
	);

	http.get(
		`${PROJECT}/devices::export`,
		{
			config: { action: "iotda:devices:queryList", level: "List" },
			schema: {
				operationId: "ExportDevices",
				summary: "Download all devices as a file",
				tags: ["Device imports"],
				produces: { 200: ["text/csv", "application/x-ndjson"] },
				answerHeaders: { 200: attachment },
				params: projectParams,
				querystring: exportDevicesQuery,
			},
		},
		async (request, reply) => {
			const { format = "csv", app_id, product_id } = request.query;
			const pieces = await exportDevices(
				db,
				request.scope,
				{ spaceId: app_id, productId: product_id },
				format,
			);
			return reply
				.headers(fileHeaders("devices", format))
				.send(Readable.from(pieces));
		},
	);
}

/** @throws 400 IOTDA.000006 */
function formatOf(raw: IncomingMessage): ImportFormat {
	const [type = ""] = (raw.headers["content-type"] ?? "").split(";");
	switch (type.trim().toLowerCase()) {
		case "text/csv":
			return "csv";
		case "application/x-ndjson":
		case "application/ndjson":
			return "ndjson";
		default:
			throw invalidInput(
				"format",
				"must be csv or ndjson, unless Content-Type is text/csv or application/x-ndjson",
			);
	}
}

/** @throws 400 IOTDA.000006 */
function checkEncoding({ headers }: IncomingMessage): void {
	const charset = /;\s*charset="?([^";\s]+)/i.exec(
		headers["content-type"] ?? "",
	)?.[1];
	if (charset !== undefined && !/^(utf-?8|us-ascii)$/i.test(charset))
		throw invalidInput("Content-Type", "must name no charset but utf-8");
	const encoding = headers["content-encoding"];
	if (encoding !== undefined && encoding.toLowerCase() !== "identity")
		throw invalidInput(
			"Content-Encoding",
			"must not be given: the file is taken as it is",
		);
}

function fileHeaders(name: string, format: ImportFormat) {
	return {
		"content-type": contentTypes[format],
		"content-disposition": `attachment; filename="${name}.${format}"`,
	};
}

async function* writeRefusals(
	db: Db,
	importId: string,
	format: ImportFormat,
): AsyncGenerator<string> {
	if (format === "csv")
		yield BYTE_ORDER_MARK +
			writeRecord(["line", "device_id", "error_code", "error_msg"]);
	for (let line = 0; ; await nextTurn()) {
		const refusals = await findRefusals(db, importId, line, WINDOW_SIZE);
		const last = refusals.at(-1);
		if (!last) return;
		line = last.line;
		yield refusals.map((refusal) => writeRefusal(refusal, format)).join("");
	}
}

function writeRefusal(refused: RefusedLine, format: ImportFormat): string {
	const { line, device_id, error_code, error_msg } = refused;
	if (format === "csv")
		return writeRecord([
			String(line),
			asText(device_id ?? ""),
			error_code,
			asText(error_msg),
		]);
	const refusal: ImportRefusal = withoutAbsent({
		line,
		device_id,
		error_code,
		error_msg,
	});
	return `${JSON.stringify(refusal)}\n`;
}

function toWire(job: ImportJob): WireImport {
	const finishedAt = optionalInstant(job.finished_at);
	return withoutAbsent({
		import_id: job.import_id,
		app_id: job.app_id,
		status: job.status,
		status_desc: job.status_desc,
		format: job.format,
		total_bytes: Number(job.total_bytes),
		done_bytes: Number(job.done_bytes),
		lines: job.done_lines,
		created: job.created,
		unchanged: job.unchanged,
		refused: job.refused,
		create_time: wireTime(fromInstant(job.created_at)),
		finish_time: finishedAt && wireTime(finishedAt),
	});
}
