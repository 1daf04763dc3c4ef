/**
 * "Something became due": wakes whoever waits for rows, in this process or, on
 * PostgreSQL, in all of them. A signal may be lost (a connection breaks); nothing
 * may depend on it but speed.
 */
import pg from "pg";
import { logger } from "../log.ts";

export type SignalListener = (payload: string) => void;

export interface Signal extends AsyncDisposable {
	/** Tells every process, this one included. At most 8,000 bytes. */
	send(payload: string): void;
	/** Also called with an empty payload after a gap, when signals may have been missed. */
	onSignal(listener: SignalListener): void;
}

const CHANNEL = "otaru";
const log = logger("database");

export function openLocalSignal(): Signal {
	const listeners: SignalListener[] = [];
	let closed = false;
	return {
		send(payload) {
			setImmediate(() => {
				if (!closed) for (const listener of listeners) listener(payload);
			});
		},
		onSignal(listener) {
			listeners.push(listener);
		},
		async [Symbol.asyncDispose]() {
			closed = true;
		},
	};
}

export async function openPostgresSignal(url: string): Promise<Signal> {
	const listeners: SignalListener[] = [];
	let closed = false;
	let client: pg.Client | undefined;

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
		client = fresh;
	};
	const reconnect = async () => {
		while (!closed && !client) {
			await new Promise((resolve) => setTimeout(resolve, 1_000));
			try {
				await connect();
				tell("");
			} catch (error) {
				log.warn({ err: error }, "cannot listen for signals; trying again");
			}
		}
	};
	await connect();
	return {
		send(payload) {
			client
				?.query("select pg_notify($1, $2)", [CHANNEL, payload])
				.catch((error) => {
					log.warn(
						{ err: error },
						"a signal was not sent; the next tick finds the work",
					);
				});
		},
		onSignal(listener) {
			listeners.push(listener);
		},
		async [Symbol.asyncDispose]() {
			closed = true;
			const last = client;
			client = undefined;
			await last?.end();
		},
	};
}
