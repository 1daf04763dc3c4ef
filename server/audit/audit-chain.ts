/**
 * How a row of the audit trail becomes bytes, and how rows hang together: nothing here
 * touches a store. docs/audit.md says the same to those who check an export by
 * themselves; what is written here must never change for rows that exist.
 *
 * The bytes of a row are its fields in the order of `chainedFields`, each as
 * `LENGTH:TEXT,` where LENGTH counts the bytes of the text in UTF-8, numbers are written
 * in decimal, and a field without a value is `-,`. So no two rows have the same bytes.
 * `hash = SHA-256(hash of the row before, 32 bytes || bytes of the row)`; before the
 * first row stand 32 zero bytes.
 */
import {
	createHash,
	createHmac,
	type KeyObject,
	timingSafeEqual,
} from "node:crypto";
import type { Selectable } from "kysely";
import type { AuditEndRow, AuditRow } from "../database/tables.ts";

export type AuditRecord = Selectable<AuditRow>;
/** A row before it has its place in the chain. */
export type AuditEntry = Omit<AuditRecord, "seq" | "hash">;
export type ChainEnd = Selectable<AuditEndRow>;
/** Where a row stands, and what it and all before it come to. */
export interface Link {
	seq: number;
	/** 64 hex digits. */
	hash: string;
}

/** Before the first row. */
export const BEGINNING: Link = { seq: 0, hash: "0".repeat(64) };

/** Everything but the hash itself, in the order of the bytes. */
export const chainedFields = [
	"seq",
	"at",
	"request_id",
	"account_id",
	"user_id",
	"user_name",
	"credential",
	"address",
	"method",
	"path",
	"action",
	"project_id",
	"app_id",
	"resource",
	"status",
	"decision",
	"reason",
	"error_code",
] as const satisfies readonly Exclude<keyof AuditRow, "hash">[];

export function canonicalBytes(
	row: Pick<AuditRecord, (typeof chainedFields)[number]>,
): Buffer {
	let text = "";
	for (const field of chainedFields) {
		const value = row[field];
		if (value === null) text += "-,";
		else {
			const written = String(value);
			text += `${Buffer.byteLength(written)}:${written},`;
		}
	}
	return Buffer.from(text);
}

/** @param previous the hash of the row before. */
export function chainHash(
	previous: string,
	row: Pick<AuditRecord, (typeof chainedFields)[number]>,
): string {
	return createHash("sha256")
		.update(Buffer.from(previous, "hex"))
		.update(canonicalBytes(row))
		.digest("hex");
}

/** What makes an end of the chain one that a server set: nobody else has the key. */
export function sealEnd(
	key: KeyObject,
	name: ChainEnd["name"],
	{ seq, hash }: Link,
): string {
	return createHmac("sha256", key)
		.update(`otaru audit ${name} ${seq} ${hash}`)
		.digest("hex");
}

export function isSealed(key: KeyObject, end: ChainEnd): boolean {
	const seal = Buffer.from(String(end.seal));
	const expected = Buffer.from(sealEnd(key, end.name, end));
	return seal.length === expected.length && timingSafeEqual(seal, expected);
}

/** Numbers and chains entries behind `last`. */
export function chain(last: Link, entries: readonly AuditEntry[]) {
	let link = last;
	const rows = entries.map((entry): AuditRecord => {
		const numbered = { ...entry, seq: link.seq + 1 };
		const hash = chainHash(link.hash, numbered);
		link = { seq: numbered.seq, hash };
		return { ...numbered, hash };
	});
	return { rows, last: link };
}

export interface Fault {
	/** The first row that is not as it was written. */
	seq: number;
	what: string;
}

/**
 * Follows `rows`, in the order of their numbers, from the link before them.
 *
 * @returns the last link that fits, and what is wrong with the row behind it.
 */
export function follow(
	before: Link,
	rows: readonly AuditRecord[],
): { last: Link; fault: Fault | undefined } {
	let last = before;
	for (const row of rows) {
		const seq = last.seq + 1;
		if (row.seq !== seq)
			return {
				last,
				fault: {
					seq,
					what:
						row.seq > seq
							? "the row is missing"
							: `a row numbered ${row.seq} stands in its place`,
				},
			};
		const hash = chainHash(last.hash, row);
		if (row.hash !== hash)
			return {
				last,
				fault: {
					seq,
					what: "the row is not the one that was written here",
				},
			};
		last = { seq, hash };
	}
	return { last, fault: undefined };
}

/**
 * What ends a line, moves a cursor or turns the order of reading around: a stranger writes
 * into the trail, and must not write what looks like another row. NUL no store keeps.
 */
const misleading = /[\p{Cc}\p{Bidi_Control}\u2028\u2029]/gu;

/** Text that reads as it was hashed, in one line, wherever it is shown. */
export function storable(text: string, maxLength: number): string {
	return text.slice(0, maxLength).toWellFormed().replace(misleading, "\uFFFD");
}
