/**
 * Goes through the whole chain and says whether it is the one that was written. Whoever
 * cuts rows off at the end and puts an older head back cannot be told from a server that
 * wrote no more: that shows only against a head that was noted elsewhere.
 */
import type { KeyObject } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { Db } from "../database/database.ts";
import {
	type ChainEnd,
	type Fault,
	follow,
	isSealed,
	type Link,
} from "./audit-chain.ts";

/** Some milliseconds on SQLite, whose reads run on the main thread. */
const PIECE = 500;

export interface Verification {
	intact: boolean;
	/** Rows that were gone through. */
	rows: number;
	/** The oldest row that is kept; of an empty chain the one that will come next. */
	firstSeq: number;
	/** As the store says; undefined when it says nothing. */
	head: Link | undefined;
	fault: Fault | undefined;
}

/**
 * What others append meanwhile is left out; what the retention removes meanwhile is
 * passed over.
 *
 * @param expect a head noted earlier: the chain must still contain it.
 */
export async function verifyAudit(
	db: Db,
	key: KeyObject,
	options: { expect?: Link | undefined; signal?: AbortSignal } = {},
): Promise<Verification> {
	const { expect, signal } = options;
	const { head, tail, first, last } = await readChain(db);
	const verdict = (
		rows: number,
		fault: Fault | undefined,
		firstSeq = (tail?.seq ?? 0) + 1,
	): Verification => ({
		intact: fault === undefined,
		rows,
		firstSeq,
		head: head && { seq: head.seq, hash: head.hash },
		fault,
	});
	if (!tail || !isSealed(key, tail))
		return verdict(0, {
			seq: tail?.seq ?? 0,
			what: `the sealed beginning of the chain ${tail ? "was changed" : "is missing"}`,
		});
	if (first !== null && !(first > tail.seq))
		return verdict(0, {
			seq: first,
			what: "the row stands before the sealed beginning of the chain",
		});
	// What comes after the sealed end is looked at last: the first fault is named.
	const headFault = faultOfHead(key, head, tail, last);
	const endSeq = head ? head.seq : Number.MAX_SAFE_INTEGER;

	let link: Link = tail;
	let start: Link = tail;
	let rows = 0;
	let found: string | undefined =
		expect?.seq === tail.seq ? tail.hash : undefined;
	while (link.seq < endSeq) {
		signal?.throwIfAborted();
		const piece = await db
			.selectFrom("audit")
			.selectAll()
			.where("seq", ">", link.seq)
			.where("seq", "<=", endSeq)
			.orderBy("seq")
			.limit(PIECE)
			.execute();
		const { last: reached, fault } = follow(link, piece);
		if (fault || piece.length === 0) {
			const moved = await movedTail(db, key, reached);
			if (moved) {
				link = start = moved;
				rows = 0;
				continue;
			}
			if (fault) return verdict(rows, fault, start.seq + 1);
			break;
		}
		const named = piece.find(({ seq }) => seq === expect?.seq);
		if (named) found = named.hash;
		rows += piece.length;
		link = reached;
		await nextTurn();
	}
	const firstSeq = start.seq + 1;
	if (headFault) return verdict(rows, headFault, firstSeq);
	if (head && link.seq < head.seq)
		return verdict(
			rows,
			{ seq: link.seq + 1, what: "the row is missing" },
			firstSeq,
		);
	if (head && link.seq === head.seq && link.hash !== head.hash)
		return verdict(
			rows,
			{
				seq: head.seq,
				what: "the rows fit each other but not the sealed end: from some row on they were all made anew",
			},
			firstSeq,
		);
	return verdict(
		rows,
		expect && faultOfExpected(expect, found, start),
		firstSeq,
	);
}

function faultOfHead(
	key: KeyObject,
	head: ChainEnd | undefined,
	tail: Link,
	last: number | null,
): Fault | undefined {
	if (!head || !isSealed(key, head))
		return {
			seq: head?.seq ?? last ?? tail.seq,
			what: `the sealed end of the chain ${head ? "was changed" : "is missing"}`,
		};
	if (last !== null && !(last <= head.seq))
		return {
			seq: head.seq + 1,
			what: "a row stands behind the sealed end of the chain",
		};
	return undefined;
}

function faultOfExpected(
	expect: Link,
	found: string | undefined,
	start: Link,
): Fault | undefined {
	if (found === expect.hash) return undefined;
	const what =
		found !== undefined
			? "the chain has another row here than the expected one"
			: expect.seq < start.seq
				? "the expected row is older than what is kept, so it cannot be compared: expect a newer one"
				: "the chain ends before the expected row";
	return { seq: expect.seq, what };
}

/** In one statement: what is appended moves the head along. */
async function readChain(db: Db): Promise<{
	head: ChainEnd | undefined;
	tail: ChainEnd | undefined;
	first: number | null;
	last: number | null;
}> {
	const { rows } = await sql<
		Partial<ChainEnd> & { first: number | null; last: number | null }
	>`
		select e.name, e.seq, e.hash, e.seal, b.first, b.last
		from (select (select min(seq) from audit) as first, (select max(seq) from audit) as last) as b
		left join audit_ends as e on 1 = 1`.execute(db);
	const end = (name: ChainEnd["name"]) =>
		rows.find((row) => row.name === name) as ChainEnd | undefined;
	return {
		head: end("head"),
		tail: end("tail"),
		first: rows[0]?.first ?? null,
		last: rows[0]?.last ?? null,
	};
}

/** The tail, when the retention has moved it past `link` meanwhile. */
async function movedTail(
	db: Db,
	key: KeyObject,
	link: Link,
): Promise<Link | undefined> {
	const tail = await db
		.selectFrom("audit_ends")
		.selectAll()
		.where("name", "=", "tail")
		.executeTakeFirst();
	return tail && isSealed(key, tail) && tail.seq > link.seq
		? { seq: tail.seq, hash: tail.hash }
		: undefined;
}
