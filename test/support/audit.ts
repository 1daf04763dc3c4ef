/** The audit trail as tests look at it: through the API, the store, and by hand. */
import assert from "node:assert/strict";
import { createHash, type KeyObject } from "node:crypto";
import { openChain } from "../../server/audit/audit-ends.ts";
import { openSealed } from "../../server/secrets/master-key.ts";
import type { AuditRow, ExportedAuditRow } from "../../wire/audit.ts";
import type { Client } from "../../wire/client.ts";
import type { TestServer } from "./server.ts";

/** All that fits the filter, newest first. */
export async function auditOf(
	api: Client,
	filter: Parameters<Client["listAudit"]>[0] = {},
): Promise<AuditRow[]> {
	const rows: AuditRow[] = [];
	for (let marker: string | undefined; ; ) {
		const { audit, page } = await api.listAudit({
			limit: 50,
			...filter,
			...(marker === undefined ? {} : { marker }),
		});
		rows.push(...audit);
		marker = page.marker;
		if (marker === undefined) return rows;
	}
}

/** The newest row that fits. */
export async function lastAudit(
	api: Client,
	filter: Parameters<Client["listAudit"]>[0] = {},
): Promise<AuditRow> {
	const { audit } = await api.listAudit({ limit: 1, ...filter });
	assert.ok(audit[0], `no row fits ${JSON.stringify(filter)}`);
	return audit[0];
}

export async function exportedRows(
	api: Client,
	query?: Parameters<Client["exportAudit"]>[0],
): Promise<ExportedAuditRow[]> {
	const text = await (await api.exportAudit(query)).text();
	return text
		.split("\n")
		.filter(Boolean)
		.map((line) => JSON.parse(line) as ExportedAuditRow);
}

/** The key of the chain, as the server has it. */
export async function chainKey({
	config,
	server: { db },
}: Pick<TestServer, "config" | "server">): Promise<KeyObject> {
	const now = () => new Date();
	return openChain(db, await openSealed(config, db, now), now);
}

/**
 * What docs/audit.md tells a stranger to do with an export, and nothing of the server's.
 *
 * @returns the first line that does not fit; undefined: all of them do.
 */
export function checkExport(
	lines: readonly ExportedAuditRow[],
): number | undefined {
	let previous: string | undefined;
	for (const [index, line] of lines.entries()) {
		if (previous !== undefined && line.previous_hash !== previous) return index;
		previous = line.hash;
		const { previous_hash: before, hash, ...fields } = line;
		if (Object.keys(fields).length === 1) continue;
		const bytes = Object.values(fields)
			.map((value) =>
				value === null ? "-," : `${Buffer.byteLength(String(value))}:${value},`,
			)
			.join("");
		const computed = createHash("sha256")
			.update(Buffer.from(before, "hex"))
			.update(bytes)
			.digest("hex");
		if (computed !== hash) return index;
	}
	return undefined;
}
