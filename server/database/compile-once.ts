/**
 * Queries of the hottest paths, compiled once: building and compiling one with Kysely
 * takes several times as long as the store takes to answer it.
 */
import type { Compilable, CompiledQuery } from "kysely";
import type { Db } from "./database.ts";

/** Answers a select with what is committed, at once. */
export type Reader = (
	sql: string,
	parameters: readonly unknown[],
) => readonly unknown[];

const readers = new WeakMap<Db, Reader>();

/**
 * Lets these queries go around Kysely, whose way to a connection takes longer than the
 * embedded store takes to answer.
 */
export function readDirectly(db: Db, reader: Reader): void {
	readers.set(db, reader);
}

/** Stands for the parameter of this number while the query is built; no value looks so. */
const placeholder = (index: number) => `\u0000parameter ${index}`;

/**
 * @param build gives the query; it must use each of its texts as a value, and make no
 * decision by them
 * @returns the query as a function of the values
 */
export function compileOnce<P extends readonly string[], O>(
	build: (db: Db, ...parameters: P) => Compilable<O>,
): (db: Db, ...parameters: P) => Promise<O[]> {
	const queries = new WeakMap<
		Db,
		{ query: CompiledQuery; sources: (number | undefined)[] }
	>();
	return async (db, ...parameters) => {
		let compiled = queries.get(db);
		if (!compiled) {
			const names = parameters.map((_, index) => placeholder(index));
			const query = build(db, ...(names as unknown as P)).compile();
			const sources = query.parameters.map((value) => {
				const index = names.indexOf(value as string);
				return index < 0 ? undefined : index;
			});
			compiled = { query, sources };
			queries.set(db, compiled);
		}
		const { query, sources } = compiled;
		const values = query.parameters.map((value, index) => {
			const source = sources[index];
			return source === undefined ? value : parameters[source];
		});
		const read = readers.get(db);
		if (read) return read(query.sql, values) as O[];
		const { rows } = await db.executeQuery<O>({ ...query, parameters: values });
		return rows;
	};
}
