/** Imports as rows: what each has come to, and which lines it refused. */
import type { Selectable } from "kysely";
import type { Scope } from "../access/permissions.ts";
import { type KeptCircumstances, keepScope } from "../access/rights.ts";
import { type Db, inTransaction } from "../database/database.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import {
	type DeviceImportRefusalRow,
	type DeviceImportRow,
	instant,
} from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import {
	admitted,
	visibleSpaceIds,
} from "../resource-spaces/resource-spaces.ts";

export type ImportJob = Selectable<DeviceImportRow>;
export type RefusedLine = Selectable<DeviceImportRefusalRow>;

export interface NewImport {
	importId: string;
	/** Of lines that name none. */
	spaceId: string;
	/** Where the file is. */
	nodeId: string;
	format: ImportJob["format"];
	totalBytes: number;
	/** Of the call that brought the file. */
	circumstances: KeptCircumstances;
}

export async function createImport(
	db: Db,
	scope: Scope,
	input: NewImport,
	now: Date,
): Promise<ImportJob> {
	return db
		.insertInto("device_imports")
		.values({
			import_id: input.importId,
			project_id: scope.projectId,
			app_id: input.spaceId,
			node_id: input.nodeId,
			scope: keepScope(scope, input.circumstances),
			format: input.format,
			status: "Processing",
			status_desc: null,
			total_bytes: input.totalBytes,
			done_bytes: 0,
			done_lines: 0,
			created: 0,
			unchanged: 0,
			refused: 0,
			header: null,
			created_at: instant(now),
			finished_at: null,
			deleted_at: null,
		})
		.returningAll()
		.executeTakeFirstOrThrow();
}

/** @throws 404 IOTDA.014990 */
export async function getImport(
	db: Db,
	scope: Scope,
	importId: string,
): Promise<ImportJob> {
	const job = admitted(
		scope,
		await db
			.selectFrom("device_imports")
			.selectAll()
			.where("import_id", "=", importId)
			.where("project_id", "=", scope.projectId)
			.where("deleted_at", "is", null)
			.executeTakeFirst(),
	);
	if (!job) throw new ApiError(errors.unknownImport);
	return job;
}

export async function listImports(
	db: Db,
	scope: Scope,
	page: Page,
): Promise<PageResult<ImportJob>> {
	const visible = await visibleSpaceIds(db, scope);
	if (visible?.length === 0) return { items: [], page: { count: 0 } };
	let query = db
		.selectFrom("device_imports")
		.selectAll()
		.where("project_id", "=", scope.projectId)
		.where("deleted_at", "is", null);
	if (visible) query = query.where("app_id", "in", visible);
	return listPage(query, "device_imports.import_id", page);
}

/**
 * Gone at once for every caller; one that still runs ends before its next lines, and
 * what it has registered stays.
 *
 * @throws 404 IOTDA.014990
 */
export async function deleteImport(
	db: Db,
	scope: Scope,
	importId: string,
	now: Date,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await getImport(trx, scope, importId);
		const { numUpdatedRows } = await trx
			.updateTable("device_imports")
			.set({ deleted_at: instant(now) })
			.where("import_id", "=", importId)
			.where("deleted_at", "is", null)
			.executeTakeFirst();
		if (numUpdatedRows === 0n) throw new ApiError(errors.unknownImport);
	});
}

/** Those in the order of the lines after `line`. */
export function findRefusals(
	db: Db,
	importId: string,
	line: number,
	limit: number,
): Promise<RefusedLine[]> {
	return db
		.selectFrom("device_import_refusals")
		.selectAll()
		.where("import_id", "=", importId)
		.where("line", ">", line)
		.orderBy("line")
		.limit(limit)
		.execute();
}
