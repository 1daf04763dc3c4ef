/** The large engine: PostgreSQL by `pg`, behind Kysely. */
import { createHash } from "node:crypto";
import { PostgresDialect } from "kysely";
import pg from "pg";

// Counts and sizes are bigint in the store and stay below 2^53.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

/** Statements that come often are named, so that the server plans them once. */
const NAME_AFTER_USES = 3;
const NAMED_STATEMENTS = 500;

class NamingClient extends pg.Client {
	readonly #seen = new Map<string, number>();

	// `pg` overloads query in five ways; only the one Kysely uses is rewritten.
	override query(...args: unknown[]): never {
		const [text, values] = args;
		if (
			typeof text === "string" &&
			Array.isArray(values) &&
			values.length > 0
		) {
			const uses = (this.#seen.get(text) ?? 0) + 1;
			if (uses > 1 || this.#seen.size < NAMED_STATEMENTS * 4)
				this.#seen.set(text, uses);
			if (uses >= NAME_AFTER_USES && this.#seen.size < NAMED_STATEMENTS) {
				const name = createName(text);
				return super.query(
					{ name, text, values },
					...(args.slice(2) as []),
				) as never;
			}
		}
		return super.query(...(args as [string])) as never;
	}
}

const names = new Map<string, string>();
function createName(text: string): string {
	let name = names.get(text);
	if (!name) {
		name = `otaru_${createHash("sha256").update(text).digest("hex").slice(0, 24)}`;
		names.set(text, name);
	}
	return name;
}

export function openPool(url: string, connections: number): pg.Pool {
	return new pg.Pool({
		connectionString: url,
		max: connections,
		application_name: "otaru",
		connectionTimeoutMillis: 10_000,
		Client: NamingClient as unknown as typeof pg.Client,
	} as pg.PoolConfig);
}

export function postgresDialect(pool: pg.Pool): PostgresDialect {
	return new PostgresDialect({ pool });
}
