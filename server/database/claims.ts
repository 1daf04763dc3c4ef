/**
 * Due rows, taken so that no other process takes them. A claim is a lease: if its
 * holder dies, the row is due again when the lease has run out, so what follows a
 * claim must do no harm when it is done twice.
 */
import { sql } from "kysely";
import { type Db, engineOf } from "./database.ts";
import { instant } from "./tables.ts";

/**
 * Takes up to `limit` due tasks for `leaseMs`; fewer when others were faster. When
 * nothing is due, nothing is written.
 */
export async function claimDueTasks(
	db: Db,
	nodeId: string,
	now: Date,
	limit: number,
	leaseMs: number,
): Promise<string[]> {
	// A lease that ends further ahead than one lasts was given before the clock was put back;
	// and only a task that waits has its time ahead, all others were due when it was written.
	const isDue = sql`due_at is not null and (due_at <= ${instant(now)} or status <> 'Waitting')
		and (leased_until is null
		or leased_until <= ${instant(now)} or leased_until > ${leaseEnd(now, leaseMs)})`;
	const due =
		await sql`select 1 from upgrade_tasks where ${isDue} limit 1`.execute(db);
	if (due.rows.length === 0) return [];
	const skip =
		engineOf(db) === "postgres" ? sql`for update skip locked` : sql``;
	const { rows } = await sql<{ task_id: string }>`
		update upgrade_tasks set leased_until = ${leaseEnd(now, leaseMs)}, leased_by = ${nodeId}
		where task_id in (
			select task_id from upgrade_tasks where ${isDue}
			order by due_at limit ${sql.lit(limit)} ${skip}
		)
		returning task_id`.execute(db);
	return rows.map((row) => row.task_id);
}

/** A node that starts holds nothing: what its last run had claimed is due at once. */
export async function releaseClaims(db: Db, nodeId: string): Promise<void> {
	await db
		.updateTable("upgrade_tasks")
		.set({ leased_until: null, leased_by: null })
		.where("leased_by", "=", nodeId)
		.execute();
}

export function leaseEnd(now: Date, leaseMs: number): string {
	return instant(new Date(now.getTime() + leaseMs));
}
