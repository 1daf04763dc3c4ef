/**
 * What is older than the setting says is removed, a piece at a time, so that nobody
 * waits for it. Every process does so for itself: whoever comes second finds nothing.
 */
import { setTimeout as pause } from "node:timers/promises";
import { type Clock, type Db, inTransaction } from "../database/database.ts";
import { settleForeignRows } from "../database/follow.ts";
import { sweepHourly } from "../database/hourly-sweep.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";

const log = logger("history");
/** A few milliseconds on SQLite, whose writes run on the main thread. */
const PIECE = 500;
const PAUSE_MS = 20;
const DAY_MS = 24 * 60 * 60_000;

/** Sweeps at once and every hour, until it is disposed of. */
export function keepHistoryShort(parts: {
	db: Db;
	now: Clock;
	/** 0: for ever. */
	keepDays: number;
}): AsyncDisposable {
	return sweepHourly({
		sweep: (signal) =>
			sweepHistory(parts.db, parts.now(), parts.keepDays, signal),
		what: "old history",
		log,
	});
}

/**
 * Removes what is older than `keepDays` days.
 *
 * @returns how many entries
 */
export async function sweepHistory(
	db: Db,
	now: Date,
	keepDays: number,
	signal?: AbortSignal,
): Promise<number> {
	while ((await settleForeignRows(db, "history", PIECE)) > 0)
		await pause(PAUSE_MS, undefined, { ...(signal && { signal }) });
	if (keepDays === 0) return 0;
	const before = instant(new Date(now.getTime() - keepDays * DAY_MS));
	let removed = 0;
	for (let after: number | undefined = 0; after !== undefined; ) {
		const piece = await removePiece(db, after, before, instant(now));
		removed += piece.removed;
		after = piece.goOnAfter;
		if (after !== undefined)
			await pause(PAUSE_MS, undefined, { ...(signal && { signal }) });
	}
	return removed;
}

/**
 * Looks at the next entries in the order of their numbers, which is that of time but for
 * clocks that were wrong: entries of a clock that was ahead stay, and are passed over.
 */
function removePiece(
	db: Db,
	after: number,
	before: string,
	now: string,
): Promise<{ removed: number; goOnAfter: number | undefined }> {
	return inTransaction(db, async (trx) => {
		const rows = await trx
			.selectFrom("history")
			.select(["seq", "tx", "at"])
			.where("seq", ">", after)
			.orderBy("seq")
			.limit(PIECE)
			.execute();
		const last = rows.at(-1);
		if (!last) return { removed: 0, goOnAfter: undefined };
		const old = rows.filter(({ at }) => at < before);
		if (old.length > 0) {
			await trx
				.deleteFrom("history")
				.where("seq", ">", after)
				.where("seq", "<=", last.seq)
				.where("at", "<", before)
				.execute();
			const { tx, seq } = old.reduce((a, b) =>
				b.tx > a.tx || (b.tx === a.tx && b.seq > a.seq) ? b : a,
			);
			await trx
				.updateTable("history_swept")
				.set({ tx, seq })
				.where((eb) =>
					eb.or([
						eb("tx", "<", tx),
						eb.and([eb("tx", "=", tx), eb("seq", "<", seq)]),
					]),
				)
				.execute();
		}
		const goesOn =
			rows.length === PIECE &&
			(old.length > 0 || rows.some(({ at }) => at > now));
		return {
			removed: old.length,
			goOnAfter: goesOn ? last.seq : undefined,
		};
	});
}
