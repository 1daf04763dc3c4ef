/** The large engine: PostgreSQL by `pg`, behind Kysely. */
import { createHash } from "node:crypto";
import { PostgresDialect } from "kysely";
import pg from "pg";

// Counts and sizes are bigint in the store and stay below 2^53.
pg.types.setTypeParser(pg.types.builtins.INT8, Number);

/** Statements that come often are named, so that the server plans them once. */
const NAME_AFTER_USES = 3;
const NAMED_STATEMENTS = 500;
/** No statement of ours takes a tenth of this: bulk work goes in chunks. */
const QUERY_DEADLINE_MS = 30_000;

class NamingClient extends pg.Client {
	readonly #seen = new Map<string, number>();

	constructor(config?: pg.ClientConfig) {
		super(config);
		// A connection that breaks rejects what runs on it; without a listener of its own
		// the event would end the process.
		this.on("error", () => {});
	}

	// `pg` overloads query in five ways; only the one Kysely uses is rewritten.
	override query(...args: unknown[]): never {
		const [text, values] = args;
		if (typeof text !== "string" || args.length > 2)
			return super.query(...(args as [string])) as never;
		const named = Array.isArray(values) && this.#isFrequent(text);
		return this.#withDeadline(
			super.query({
				text,
				...(Array.isArray(values) ? { values } : {}),
				...(named ? { name: nameOf(text) } : {}),
			}),
		) as never;
	}

	#isFrequent(text: string): boolean {
		const uses = (this.#seen.get(text) ?? 0) + 1;
		if (uses > 1 || this.#seen.size < NAMED_STATEMENTS * 4)
			this.#seen.set(text, uses);
		return uses >= NAME_AFTER_USES && this.#seen.size < NAMED_STATEMENTS;
	}

	/**
	 * A peer that vanished without a word would be waited for until the kernel gives up,
	 * a quarter of an hour or for ever: the connection is cut instead, which rejects the
	 * query and lets the pool open another.
	 */
	#withDeadline<T>(answer: Promise<T>): Promise<T> {
		const timer = setTimeout(
			() =>
				(
					this as unknown as { connection: { stream: { destroy(): void } } }
				).connection.stream.destroy(),
			QUERY_DEADLINE_MS,
		);
		return answer.finally(() => clearTimeout(timer));
	}
}

const names = new Map<string, string>();
function nameOf(text: string): string {
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
		keepAlive: true,
		Client: NamingClient as unknown as typeof pg.Client,
	} as pg.PoolConfig);
}

export function postgresDialect(pool: pg.Pool): PostgresDialect {
	return new PostgresDialect({ pool });
}
