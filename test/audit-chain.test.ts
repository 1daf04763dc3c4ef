/** Whoever writes into the store without the key is found out: by every way to do it. */
import assert from "node:assert/strict";
import { createHash, type KeyObject, randomBytes } from "node:crypto";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
	type AuditEntry,
	type AuditRecord,
	type ChainEnd,
	canonicalBytes,
	chain,
	chainHash,
	storable,
} from "../server/audit/audit-chain.ts";
import { BrokenChain, openChain } from "../server/audit/audit-ends.ts";
import { AuditLog } from "../server/audit/audit-log.ts";
import { sweepAudit } from "../server/audit/audit-retention.ts";
import { exportAudit } from "../server/audit/audit-search.ts";
import { verifyAudit } from "../server/audit/audit-verification.ts";
import { readConfig } from "../server/config.ts";
import { type Db, openStore } from "../server/database/database.ts";
import { sealedUnder } from "../server/secrets/sealed.ts";
import { type Engine, forEachEngine } from "./support/engines.ts";

const ROWS = 30;
const now = () => new Date();

function entry(fields: Partial<AuditEntry> = {}): AuditEntry {
	return {
		at: new Date().toISOString(),
		request_id: randomBytes(16).toString("hex"),
		account_id: "account",
		user_id: "user",
		user_name: "Zoë, 管理员",
		credential: "EXAMPLEACCESSKEY0001",
		address: "127.0.0.1",
		method: "POST",
		path: "/v5/iot/p/products",
		action: "iotda:products:create",
		project_id: "p",
		app_id: null,
		resource: "",
		status: 201,
		decision: "allowed",
		reason: null,
		error_code: null,
		...fields,
	};
}

/** An empty store with the key of its chain. */
async function withChain(
	engine: Engine,
	work: (db: Db, key: KeyObject) => Promise<void>,
): Promise<void> {
	const fresh = await engine.fresh();
	try {
		await using store = await openStore(readConfig(fresh.env).database);
		const key = await openChain(store.db, sealedUnder(randomBytes(32)), now);
		await work(store.db, key);
	} finally {
		await fresh.dispose();
	}
}

async function append(
	db: Db,
	key: KeyObject,
	...entries: AuditEntry[]
): Promise<void> {
	await using log = new AuditLog({ db, key });
	await Promise.all(entries.map((one) => log.append(one)));
}

interface State {
	rows: AuditRecord[];
	ends: ChainEnd[];
}

async function readState(db: Db): Promise<State> {
	return {
		rows: await db.selectFrom("audit").selectAll().orderBy("seq").execute(),
		ends: await db.selectFrom("audit_ends").selectAll().execute(),
	};
}

/** As somebody does who may write everything in the store. */
async function writeState(db: Db, { rows, ends }: State): Promise<void> {
	await db.deleteFrom("audit").execute();
	await db.deleteFrom("audit_ends").execute();
	if (rows.length > 0) await db.insertInto("audit").values(rows).execute();
	if (ends.length > 0) await db.insertInto("audit_ends").values(ends).execute();
}

const copyOf = (state: State): State => structuredClone(state);
const endOf = (state: State, name: ChainEnd["name"]): ChainEnd => {
	const end = state.ends.find((one) => one.name === name);
	assert.ok(end);
	return end;
};

/** The rows from `index` on, numbered and hashed anew behind those before. */
function rechain(rows: AuditRecord[], index: number): AuditRecord[] {
	const before = rows[index - 1] ?? { seq: 0, hash: "0".repeat(64) };
	return [
		...rows.slice(0, index),
		...chain(
			before,
			rows.slice(index).map(({ seq: _seq, hash: _hash, ...rest }) => rest),
		).rows,
	];
}

describe("the bytes of a row", () => {
	test("a row comes to the bytes and the hash that the documentation shows", () => {
		const row = {
			...entry({
				at: "2026-01-29T08:00:00.000Z",
				request_id: "0123456789abcdef0123456789abcdef",
			}),
			seq: 1,
		};
		const bytes =
			"1:1,24:2026-01-29T08:00:00.000Z,32:0123456789abcdef0123456789abcdef,7:account,4:user,15:Zoë, 管理员,20:EXAMPLEACCESSKEY0001,9:127.0.0.1,4:POST,18:/v5/iot/p/products,21:iotda:products:create,1:p,-,0:,3:201,7:allowed,-,-,";
		assert.equal(canonicalBytes(row).toString(), bytes);
		assert.equal(
			chainHash("0".repeat(64), row),
			createHash("sha256")
				.update(Buffer.alloc(32))
				.update(bytes, "utf8")
				.digest("hex"),
		);
	});

	test("rows that differ in any field have different bytes", () => {
		const text = fc.option(fc.string({ maxLength: 6, unit: "binary" }));
		const someRow = fc.record({
			credential: text,
			reason: text,
			resource: text,
			app_id: text,
		});
		fc.assert(
			fc.property(someRow, someRow, (a, b) => {
				const bytes = (fields: Partial<AuditEntry>) =>
					canonicalBytes({
						...entry({ at: "", request_id: "", ...fields }),
						seq: 1,
					}).toString("hex");
				const same = JSON.stringify(a) === JSON.stringify(b);
				assert.equal(bytes(a) === bytes(b), same);
			}),
		);
	});

	test("text that no store keeps is replaced and cut", () => {
		assert.equal(storable("a\0b\uD800c", 10), "a\uFFFDb\uFFFDc");
		assert.equal(storable("😀😀", 3), "😀\uFFFD");
	});
});

forEachEngine((engine) => {
	test("rows that came at once stand in one chain, and read as they were given", () =>
		withChain(engine, async (db, key) => {
			const given = Array.from({ length: 1_200 }, (_, index) =>
				entry({
					resource: String(index),
					reason: storable(`\0\u0001${index}"'\\`, 99),
				}),
			);
			await append(db, key, ...given);
			const { rows } = await readState(db);
			assert.deepEqual(
				rows.map(({ seq: _seq, hash: _hash, ...rest }) => rest),
				given,
			);
			const verified = await verifyAudit(db, key);
			assert.deepEqual(verified, {
				intact: true,
				rows: 1_200,
				firstSeq: 1,
				head: { seq: 1_200, hash: rows.at(-1)?.hash },
				fault: undefined,
			});
		}));

	test("whatever is changed, removed, inserted or moved in the store is found and named", (t) =>
		withChain(engine, async (db, key) => {
			await append(db, key, ...Array.from({ length: ROWS }, () => entry()));
			const intact = await readState(db);
			assert.equal((await verifyAudit(db, key)).intact, true);
			const index = fc.nat(ROWS - 1);
			const fields = Object.keys(entry()) as (keyof AuditEntry)[];
			/** Does it, and says which row is to be named. */
			type Deed = (state: State) => number;
			const deed: fc.Arbitrary<Deed> = fc.oneof(
				fc.tuple(index, fc.constantFrom(...fields)).map(
					([i, field]): Deed =>
						({ rows }) => {
							const row = rows[i] as AuditRecord;
							Object.assign(row, {
								[field]: field === "status" ? row.status + 1 : `${row[field]}x`,
							});
							return i + 1;
						},
				),
				index.map(
					(i): Deed =>
						({ rows }) => {
							Object.assign(rows[i] as AuditRecord, { hash: "a".repeat(64) });
							return i + 1;
						},
				),
				index.map(
					(i): Deed =>
						({ rows }) => {
							rows.splice(i, 1);
							return i + 1;
						},
				),
				fc
					.tuple(index, index)
					.filter(([i, j]) => i < j)
					.map(
						([i, j]): Deed =>
							({ rows }) => {
								const [a, b] = [rows[i] as AuditRecord, rows[j] as AuditRecord];
								[rows[i], rows[j]] = [
									{ ...b, seq: a.seq },
									{ ...a, seq: b.seq },
								];
								return i + 1;
							},
					),
				index.map(
					(i): Deed =>
						(state) => {
							// The others move up to make room for it, each with its own hash.
							state.rows.splice(i, 0, {
								...entry(),
								seq: 0,
								hash: "b".repeat(64),
							});
							for (const [at, row] of state.rows.entries())
								Object.assign(row, { seq: at + 1 });
							return i + 1;
						},
				),
				// From here on he has recomputed every hash: only the sealed end betrays it.
				fc.tuple(index, fc.boolean()).map(
					([i, withHead]): Deed =>
						(state) => {
							Object.assign(state.rows[i] as AuditRecord, {
								user_name: "nobody",
							});
							state.rows = rechain(state.rows, i);
							if (withHead)
								Object.assign(endOf(state, "head"), {
									hash: state.rows.at(-1)?.hash,
								});
							return ROWS;
						},
				),
				fc.nat(ROWS - 2).map(
					(i): Deed =>
						(state) => {
							state.rows.splice(i, 1);
							state.rows = rechain(state.rows, i);
							// The number that is missing now is the last one.
							return ROWS;
						},
				),
				// Cut off at the end, with the seal as it was, or with a head of his own.
				index.map(
					(i): Deed =>
						(state) => {
							state.rows.splice(i);
							return i + 1;
						},
				),
				fc.integer({ min: 1, max: ROWS - 1 }).map(
					(i): Deed =>
						(state) => {
							state.rows.splice(i);
							const last = state.rows.at(-1) as AuditRecord;
							Object.assign(endOf(state, "head"), {
								seq: last.seq,
								hash: last.hash,
							});
							return i;
						},
				),
				fc.constant<Deed>((state) => {
					state.rows = chain({ seq: 0, hash: "0".repeat(64) }, [
						...state.rows,
						entry(),
					]).rows;
					return ROWS + 1;
				}),
				// Cut off at the beginning, with a tail of his own, or with the head's seal.
				fc.tuple(fc.integer({ min: 1, max: ROWS }), fc.boolean()).map(
					([count, withSeal]): Deed =>
						(state) => {
							const [last] = state.rows.splice(0, count).slice(-1);
							const { seal } = endOf(state, withSeal ? "head" : "tail");
							Object.assign(endOf(state, "tail"), {
								seq: last?.seq,
								hash: last?.hash,
								seal,
							});
							return count;
						},
				),
				fc.constantFrom("head" as const, "tail" as const).map(
					(name): Deed =>
						(state) => {
							state.ends = state.ends.filter((end) => end.name !== name);
							return name === "tail" ? 0 : ROWS;
						},
				),
				fc.constant<Deed>((state) => {
					state.rows = [];
					state.ends = [];
					return 0;
				}),
			);
			let named = 0;
			await fc.assert(
				fc.asyncProperty(deed, async (does) => {
					const state = copyOf(intact);
					const seq = does(state);
					await writeState(db, state);
					const { intact: isIntact, fault } = await verifyAudit(db, key);
					assert.equal(isIntact, false);
					assert.equal(fault?.seq, seq, fault?.what);
					named++;
				}),
				{ numRuns: engine.name === "sqlite" ? 250 : 120 },
			);
			t.diagnostic(`${named} deeds were found`);
			await writeState(db, intact);
			assert.equal((await verifyAudit(db, key)).intact, true);
		}));

	test("an older end put back shows only against a head noted elsewhere", () =>
		withChain(engine, async (db, key) => {
			await append(db, key, entry(), entry(), entry());
			const older = await readState(db);
			await append(db, key, entry(), entry());
			const { head } = await verifyAudit(db, key);
			assert.ok(head);
			assert.equal((await verifyAudit(db, key, { expect: head })).intact, true);

			await writeState(db, older);
			assert.equal((await verifyAudit(db, key)).intact, true);
			const cut = await verifyAudit(db, key, { expect: head });
			assert.deepEqual(cut.fault, {
				seq: 5,
				what: "the chain ends before the expected row",
			});
			// And going on from there does not hide it.
			await append(db, key, entry(), entry(), entry());
			const forked = await verifyAudit(db, key, { expect: head });
			assert.deepEqual(forked.fault, {
				seq: 5,
				what: "the chain has another row here than the expected one",
			});
			const noted = { seq: 2, hash: older.rows[1]?.hash ?? "" };
			assert.equal(
				(await verifyAudit(db, key, { expect: noted })).intact,
				true,
			);
		}));

	test("nothing is sealed behind an end that no server set", () =>
		withChain(engine, async (db, key) => {
			await append(db, key, entry(), entry());
			const intact = await readState(db);
			const forged = copyOf(intact);
			forged.rows = chain({ seq: 0, hash: "0".repeat(64) }, [
				entry({ user_name: "nobody" }),
				entry(),
			]).rows;
			Object.assign(endOf(forged, "head"), {
				hash: forged.rows.at(-1)?.hash,
			});
			await writeState(db, forged);
			await assert.rejects(append(db, key, entry()), BrokenChain);
			assert.deepEqual(await readState(db), forged);

			await writeState(db, { rows: [], ends: [] });
			await assert.rejects(append(db, key, entry()), BrokenChain);
			await writeState(db, intact);
			await append(db, key, entry());
			assert.equal((await verifyAudit(db, key)).intact, true);
		}));

	test("a start does not begin a new chain where one was", async () => {
		const fresh = await engine.fresh();
		try {
			await using store = await openStore(readConfig(fresh.env).database);
			const { db } = store;
			const sealed = sealedUnder(randomBytes(32));
			const key = await openChain(db, sealed, now);
			await append(db, key, entry());
			const again = await openChain(db, sealed, now);
			assert.ok(again.equals(key));
			await writeState(db, { rows: [], ends: [] });
			await openChain(db, sealed, now);
			assert.equal(
				(await verifyAudit(db, key)).fault?.what,
				"the sealed beginning of the chain is missing",
			);

			// Nor does one whose key was taken away.
			await append(db, key).catch(() => {});
			await writeState(db, {
				rows: [{ ...entry(), seq: 1, hash: "" }],
				ends: [],
			});
			await db
				.deleteFrom("server_secrets")
				.where("name", "=", "audit-chain")
				.execute();
			const other = await openChain(db, sealed, now);
			assert.equal((await verifyAudit(db, other)).intact, false);
			await assert.rejects(append(db, other, entry()), BrokenChain);
		} finally {
			await fresh.dispose();
		}
	});

	test("what is older than the setting says goes from the beginning, and the rest stays a chain", () =>
		withChain(engine, async (db, key) => {
			const day = (number: number) =>
				new Date(Date.UTC(2026, 0, number, 12)).toISOString();
			await append(
				db,
				key,
				...Array.from({ length: 1_100 }, () => entry({ at: day(1) })),
				// Its clock was ahead.
				entry({ at: day(400) }),
				entry({ at: day(2) }),
				entry({ at: day(9) }),
				// Its clock was behind: it stands behind one that stays.
				entry({ at: day(1) }),
				entry({ at: day(10) }),
			);
			const { head } = await verifyAudit(db, key);
			const at = (number: number) => new Date(day(number));
			assert.equal(await sweepAudit(db, key, at(10), 30), 0);
			assert.equal(await sweepAudit(db, key, at(10), 5), 1_102);
			const verified = await verifyAudit(db, key, { expect: head });
			assert.deepEqual(
				[verified.intact, verified.rows, verified.firstSeq, verified.head],
				[true, 3, 1_103, head],
			);
			const tail = endOf(await readState(db), "tail");
			assert.equal((await verifyAudit(db, key, { expect: tail })).intact, true);
			assert.match(
				(await verifyAudit(db, key, { expect: { seq: 7, hash: tail.hash } }))
					.fault?.what ?? "",
				/older than what is kept/,
			);

			assert.equal(await sweepAudit(db, key, at(100), 5), 3);
			const empty = await verifyAudit(db, key);
			assert.deepEqual(
				[empty.intact, empty.rows, empty.firstSeq, empty.head],
				[true, 0, 1_106, head],
			);
			await append(db, key, entry());
			assert.equal((await verifyAudit(db, key, { expect: head })).intact, true);
		}));

	test("the retention leaves rows where they are that somebody has changed", () =>
		withChain(engine, async (db, key) => {
			const old = { at: "2020-01-01T00:00:00.000Z" };
			await append(db, key, entry(old), entry(old), entry());
			const changed = await readState(db);
			// Made old, so that it goes.
			Object.assign(changed.rows[2] as AuditRecord, old);
			await writeState(db, changed);
			await assert.rejects(sweepAudit(db, key, new Date(), 365), BrokenChain);
			assert.deepEqual(await readState(db), changed);
			assert.equal((await verifyAudit(db, key)).fault?.seq, 3);
		}));

	test("the chain is found intact while it grows at one end and is removed at the other", () =>
		withChain(engine, async (db, key) => {
			const old = { at: "2020-01-01T00:00:00.000Z" };
			await append(db, key, ...Array.from({ length: 3_000 }, () => entry(old)));
			await using log = new AuditLog({ db, key });
			const [, , ...found] = await Promise.all([
				sweepAudit(db, key, new Date(), 365),
				Promise.all(Array.from({ length: 1_500 }, () => log.append(entry()))),
				...Array.from({ length: 4 }, () => verifyAudit(db, key)),
			]);
			for (const { intact, fault } of found)
				assert.ok(intact, JSON.stringify(fault));
			const lines: number[] = [];
			for await (const piece of exportAudit(db, { after: 0, until: 1e15 }))
				lines.push(...piece.map(({ row }) => row.seq));
			assert.deepEqual(
				lines,
				Array.from({ length: 1_500 }, (_, index) => 3_001 + index),
			);
		}));

	test("those for whom there is no room wait, and all of them are written", () =>
		withChain(engine, async (db, key) => {
			await using log = new AuditLog({ db, key, waitingLimit: 10 });
			let most = 0;
			await Promise.all(
				Array.from({ length: 300 }, async (_, index) => {
					const written = log.append(entry({ resource: String(index) }));
					most = Math.max(most, log.waiting);
					await written;
				}),
			);
			assert.equal(most, 10);
			const { rows } = await readState(db);
			assert.equal(new Set(rows.map(({ resource }) => resource)).size, 300);
			assert.equal((await verifyAudit(db, key)).intact, true);
		}));
});
