/** The large engine: PostgreSQL by `pg`, behind Kysely. */
import { createHash } from "node:crypto";
import { PostgresDialect } from "kysely";
import pg from "pg";
import { logger } from "../log.ts";
import type { Signal, SignalListener } from "./signal.ts";

const log = logger("database");

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

export function openDialect(url: string, connections: number): PostgresDialect {
	const pool = new pg.Pool({
		connectionString: url,
		max: connections,
		application_name: "otaru",
		connectionTimeoutMillis: 10_000,
		keepAlive: true,
		Client: NamingClient as unknown as typeof pg.Client,
	} as pg.PoolConfig);
	// A connection that breaks while idle is replaced by the pool; without a listener
	// the event would end the process.
	pool.on("error", () => {});
	return new PostgresDialect({ pool });
}

const CHANNEL = "otaru";

/** Signals to every process on the same database, by LISTEN and NOTIFY. */
export async function openPostgresSignal(url: string): Promise<Signal> {
	const listeners: SignalListener[] = [];
	let closed = false;
	let client: pg.Client | undefined;
	let sending: Promise<void> = Promise.resolve();

	const tell = (payload: string) => {
		for (const listener of listeners) listener(payload);
	};
	const connect = async () => {
		const fresh = new pg.Client({
			connectionString: url,
			application_name: "otaru signal",
			keepAlive: true,
		});
		fresh.on("notification", (message) => tell(message.payload ?? ""));
		fresh.on("error", () => {
			if (client !== fresh) return;
			client = undefined;
			void reconnect();
		});
		await fresh.connect();
		await fresh.query(`listen ${CHANNEL}`);
		if (closed) await fresh.end();
		else client = fresh;
	};
	const reconnect = async () => {
		while (!closed && !client) {
			await new Promise((resolve) => setTimeout(resolve, 1_000));
			if (closed) return;
			try {
				await connect();
				if (!closed) tell("");
			} catch (error) {
				log.warn({ err: error }, "cannot listen for signals; trying again");
			}
		}
	};
	await connect();
	return {
		send(payload) {
			// One after the other: a connection takes one statement at a time.
			sending = sending.then(async () => {
				try {
					await client?.query("select pg_notify($1, $2)", [CHANNEL, payload]);
				} catch (error) {
					log.warn(
						{ err: error },
						"a signal was not sent; the next tick finds the work",
					);
				}
			});
		},
		onSignal(listener) {
			listeners.push(listener);
		},
		async [Symbol.asyncDispose]() {
			closed = true;
			await sending;
			const last = client;
			client = undefined;
			await last?.end();
		},
	};
}
