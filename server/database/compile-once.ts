/**
 * Queries of the hottest paths, compiled once: building and compiling one with Kysely
 * takes several times as long as the store takes to answer it.
 */
import type { Compilable, CompiledQuery } from "kysely";
import type { Db } from "./database.ts";

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
		const { rows } = await db.executeQuery<O>({
			...query,
			parameters: query.parameters.map((value, index) => {
				const source = sources[index];
				return source === undefined ? value : parameters[source];
			}),
		});
		return rows;
	};
}
