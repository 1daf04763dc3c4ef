/** Where the chain begins and ends in the store, and the key that both are sealed with. */
import { createSecretKey, type KeyObject, randomBytes } from "node:crypto";
import {
	type Clock,
	type Db,
	inTransaction,
	lockForUpdate,
} from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";
import type { Sealed } from "../secrets/sealed.ts";
import {
	BEGINNING,
	type ChainEnd,
	isSealed,
	type Link,
	sealEnd,
} from "./audit-chain.ts";

const log = logger("audit");
const KEY_NAME = "audit-chain";

/** The store does not hold the chain that a server wrote: nothing can be added to it. */
export class BrokenChain extends Error {
	override name = "BrokenChain";
}

/**
 * The key of the chain: made once, kept encrypted, the same for every process. With it,
 * and never again, the ends of an empty chain are set: whoever empties the tables does
 * not get a fresh chain from the next start.
 */
export async function openChain(
	db: Db,
	sealed: Sealed,
	now: Clock,
): Promise<KeyObject> {
	const made = await inTransaction(db, async (trx) => {
		const bytes = randomBytes(32);
		const { numInsertedOrUpdatedRows } = await trx
			.insertInto("server_secrets")
			.values({
				name: KEY_NAME,
				sealed: sealed.seal(bytes.toString("base64")),
				created_at: instant(now()),
			})
			.onConflict((conflict) => conflict.column("name").doNothing())
			.executeTakeFirstOrThrow();
		if (!numInsertedOrUpdatedRows) return true;
		const left =
			(await trx.selectFrom("audit").select("seq").limit(1).execute()).length +
			(await trx.selectFrom("audit_ends").select("name").execute()).length;
		if (left > 0) return false;
		const key = createSecretKey(bytes);
		await trx
			.insertInto("audit_ends")
			.values(
				(["tail", "head"] as const).map((name) => ({
					name,
					...BEGINNING,
					seal: sealEnd(key, name, BEGINNING),
				})),
			)
			.execute();
		return true;
	});
	if (!made)
		log.error(
			"the key of the audit trail is gone from the store, and the trail is not: docs/audit.md says what to do",
		);
	const row = await db
		.selectFrom("server_secrets")
		.select("sealed")
		.where("name", "=", KEY_NAME)
		.executeTakeFirstOrThrow();
	return createSecretKey(Buffer.from(sealed.open(row.sealed), "base64"));
}

/**
 * Locks an end until the transaction is over.
 *
 * @throws BrokenChain when no server set it: whatever were built on it would be sealed.
 */
export async function lockEnd(
	trx: Db,
	key: KeyObject,
	name: ChainEnd["name"],
): Promise<Link> {
	const end = await lockForUpdate(
		trx,
		trx.selectFrom("audit_ends").selectAll().where("name", "=", name),
	).executeTakeFirst();
	if (!end || !isSealed(key, end))
		throw new BrokenChain(
			`The ${name} of the audit trail is ${end ? "not the one that was sealed" : "missing"}.`,
		);
	return { seq: end.seq, hash: end.hash };
}

/** In the transaction that locked it. */
export async function moveEnd(
	trx: Db,
	key: KeyObject,
	name: ChainEnd["name"],
	to: Link,
): Promise<void> {
	await trx
		.updateTable("audit_ends")
		.set({ ...to, seal: sealEnd(key, name, to) })
		.where("name", "=", name)
		.execute();
}
