/**
 * How processes learn that what they remember of anybody's rights is out of date: a
 * number in the store, which every signed-in request reads along with the caller.
 */
import { sql } from "kysely";
import { compileOnce } from "../database/compile-once.ts";
import { type Db, inTransaction, lockForUpdate } from "../database/database.ts";

export async function readAccessVersion(db: Db): Promise<number> {
	const [row] = await version(db);
	if (!row) throw new Error("The store has no access_version.");
	return row.version;
}

const version = compileOnce((db) =>
	db.selectFrom("access_version").select("version"),
);

/** The number, as one more column of whatever is selected. */
export const accessVersion =
	sql<number>`(select version from access_version)`.as("accessVersion");

/**
 * To be called in the transaction that changes users, keys, groups, policies, grants,
 * enterprise projects, or what policies see of a resource space.
 */
export async function accessChanged(trx: Db): Promise<void> {
	await trx
		.updateTable("access_version")
		.set({ version: sql`version + 1` })
		.execute();
}

/**
 * A change to who there is in an account or to what anybody may do in it. One at a time:
 * what is counted and looked up for it stays true until it is committed.
 */
export async function changeAccess<T>(
	db: Db,
	accountId: string,
	work: (trx: Db) => Promise<T>,
): Promise<T> {
	return inTransaction(db, async (trx) => {
		await lockForUpdate(
			trx,
			trx
				.selectFrom("accounts")
				.select("account_id")
				.where("account_id", "=", accountId),
		).execute();
		const result = await work(trx);
		// Last, since all accounts and all resource spaces share this one row.
		await accessChanged(trx);
		return result;
	});
}
