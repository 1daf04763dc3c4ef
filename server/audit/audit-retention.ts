/**
 * What is older than the setting says is removed from the beginning of the chain, a piece
 * at a time. Several processes do so in turn: whoever holds the row of the tail.
 */
import type { KeyObject } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { type Clock, type Db, inTransaction } from "../database/database.ts";
import { sweepHourly } from "../database/hourly-sweep.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";
import { type AuditRecord, follow } from "./audit-chain.ts";
import { BrokenChain, lockEnd, moveEnd } from "./audit-ends.ts";

const log = logger("audit");
const PIECE = 500;
const PAUSE_MS = 20;
const DAY_MS = 24 * 60 * 60_000;

/** Sweeps at once and every hour, until it is disposed of. */
export function keepAuditShort(parts: {
	db: Db;
	key: KeyObject;
	now: Clock;
	/** 0: for ever. */
	keepDays: number;
}): AsyncDisposable {
	const { db, key, now, keepDays } = parts;
	if (keepDays === 0) return { async [Symbol.asyncDispose]() {} };
	return sweepHourly({
		sweep: (signal) => sweepAudit(db, key, now(), keepDays, signal),
		what: "old audit rows",
		log,
	});
}

/**
 * Removes what is older than `keepDays` days, up to the first row that is not.
 *
 * @returns how many rows
 * @throws BrokenChain when a row to be removed is not the one that was written: what
 * shows that somebody was at the store is not removed.
 */
export async function sweepAudit(
	db: Db,
	key: KeyObject,
	now: Date,
	keepDays: number,
	signal?: AbortSignal,
): Promise<number> {
	const before = instant(new Date(now.getTime() - keepDays * DAY_MS));
	for (let removed = 0; ; ) {
		const piece = await removePiece(db, key, before, instant(now));
		removed += piece;
		if (piece === 0) return removed;
		await pause(PAUSE_MS, undefined, { ...(signal && { signal }) });
	}
}

function removePiece(
	db: Db,
	key: KeyObject,
	before: string,
	now: string,
): Promise<number> {
	return inTransaction(db, async (trx) => {
		const tail = await lockEnd(trx, key, "tail");
		const rows = await trx
			.selectFrom("audit")
			.selectAll()
			.where("seq", ">", tail.seq)
			.orderBy("seq")
			.limit(PIECE)
			.execute();
		const old = rows.slice(0, countOld(rows, before, now));
		if (old.length === 0) return 0;
		const { last, fault } = follow(tail, old);
		if (fault)
			throw new BrokenChain(
				`Row ${fault.seq} of the audit trail: ${fault.what}.`,
			);
		await trx.deleteFrom("audit").where("seq", "<=", last.seq).execute();
		await moveEnd(trx, key, "tail", last);
		return old.length;
	});
}

/** A row whose clock was ahead goes with the old one that follows it. */
function countOld(
	rows: readonly AuditRecord[],
	before: string,
	now: string,
): number {
	let count = 0;
	for (const [index, { at }] of rows.entries()) {
		if (at < before) count = index + 1;
		else if (at <= now) break;
	}
	return count;
}
