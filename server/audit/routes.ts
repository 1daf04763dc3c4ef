import type { KeyObject } from "node:crypto";
import { Readable } from "node:stream";
import type { Static } from "typebox";
import {
	auditList,
	auditVerification,
	type ExportedAuditRow,
	exportAuditQuery,
	listAuditQuery,
	verifyAudit as verifyAuditBody,
	type AuditRow as WireRow,
} from "../../wire/audit.ts";
import { parseWireTime, withoutAbsent } from "../../wire/envelope.ts";
import { attachment } from "../../wire/headers.ts";
import type { Http } from "../access/route.ts";
import type { Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { ApiError, errors } from "../errors.ts";
import { type AuditRecord, chainedFields } from "./audit-chain.ts";
import {
	type AuditFilter,
	type ExportedRow,
	equalFields,
	exportAudit,
	searchAudit,
	stretchOf,
} from "./audit-search.ts";
import { verifyAudit } from "./audit-verification.ts";

const AUDIT = "/otaru/v1/audit";

export interface AuditRouteParts {
	db: Db;
	/** Of the chain. */
	auditKey: KeyObject;
}

export function auditRoutes(
	http: Http,
	{ db, auditKey }: AuditRouteParts,
): void {
	http.get(
		AUDIT,
		{
			config: {
				action: "cts:traces:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListAudit",
				tags: ["Audit"],
				summary: "List who did what, and who was refused it",
				querystring: listAuditQuery,
				response: { 200: auditList },
			},
		},
		async (request) => {
			const page = readPage(request.query);
			const result = await searchAudit(
				db,
				request.scope.accountId,
				readFilter(request.query),
				page,
			);
			return { audit: result.items.map(toWire), page: result.page };
		},
	);

	http.get(
		`${AUDIT}/export`,
		{
			config: {
				action: "cts:traces:export",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "ExportAudit",
				tags: ["Audit"],
				summary: "Export the audit trail as a file that can be checked offline",
				querystring: exportAuditQuery,
				produces: { 200: ["application/x-ndjson"] },
				answerHeaders: { 200: attachment },
			},
		},
		async (request, reply) => {
			const { accountId } = request.scope;
			const { after_seq: afterSeq = "0" } = request.query;
			const stretch = await stretchOf(db, readSpan(request.query));
			const pieces = exportAudit(db, {
				...stretch,
				after: Math.max(stretch.after, Number(afterSeq)),
			});
			return reply
				.headers({
					"content-type": "application/x-ndjson",
					"content-disposition": 'attachment; filename="audit.ndjson"',
				})
				.send(Readable.from(writeLines(pieces, accountId)));
		},
	);

	http.post(
		`${AUDIT}/verify`,
		{
			config: {
				action: "cts:traces:verify",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "VerifyAudit",
				tags: ["Audit"],
				summary: "Check that no row of the audit trail was changed or removed",
				body: verifyAuditBody,
				response: { 200: auditVerification },
			},
		},
		async (request, reply) => {
			const left = new AbortController();
			// Years of rows take longer than a connection may be silent.
			request.raw.socket.setTimeout(0);
			reply.raw.once("close", () => left.abort());
			const { intact, rows, firstSeq, head, fault } = await verifyAudit(
				db,
				auditKey,
				{ expect: request.body.expect, signal: left.signal },
			);
			return withoutAbsent({ intact, rows, first_seq: firstSeq, head, fault });
		},
	);
}

/** @throws 400 IOTDA.000006, IOTDA.000009, IOTDA.000010 */
function readFilter(query: Static<typeof listAuditQuery>): AuditFilter {
	const filter: AuditFilter = readSpan(query);
	for (const field of equalFields) {
		const wanted = query[field];
		if (wanted === undefined) continue;
		Object.assign(filter, {
			[field]: field === "status" ? Number(wanted) : wanted,
		});
	}
	return filter;
}

function readSpan(query: {
	start_time?: string;
	end_time?: string;
}): Pick<AuditFilter, "from" | "until"> {
	const from = readTime("start_time", query.start_time);
	const until = readTime("end_time", query.end_time);
	if (from && until && from >= until)
		throw new ApiError(errors.startNotBeforeEnd, {
			detail: "start_time must be earlier than end_time.",
		});
	return { from, until };
}

function readTime(field: string, text: string | undefined): Date | undefined {
	if (text === undefined) return undefined;
	const time = parseWireTime(text);
	if (!time)
		throw new ApiError(errors.invalidTime, {
			detail: `${field} must be a time such as 20230211T121212Z.`,
		});
	return time;
}

function toWire(row: AuditRecord): WireRow {
	return withoutAbsent(row);
}

async function* writeLines(
	pieces: AsyncIterable<ExportedRow[]>,
	accountId: string,
): AsyncGenerator<string> {
	for await (const rows of pieces)
		yield rows
			.map((row) => `${JSON.stringify(lineOf(row, accountId))}\n`)
			.join("");
}

/** In the order of the bytes that are hashed. */
function lineOf(
	{ row, previousHash }: ExportedRow,
	accountId: string,
): ExportedAuditRow {
	const { seq, hash } = row;
	if (row.account_id !== null && row.account_id !== accountId)
		return { seq, previous_hash: previousHash, hash };
	return {
		...(Object.fromEntries(
			chainedFields.map((field) => [field, row[field]]),
		) as unknown as AuditRecord),
		previous_hash: previousHash,
		hash,
	};
}
