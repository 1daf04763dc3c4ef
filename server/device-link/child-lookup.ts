/**
 * Whether a device is behind the gateway that speaks for it. Asked of the store for every
 * message, since devices are deleted and registered elsewhere meanwhile; all who ask
 * within one turn share a query, and are answered in the order in which they asked, so
 * that what is said about one device stays in its order.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Clock, Db } from "../database/database.ts";
import { meetChildren } from "../devices/children.ts";

const BATCH = 500;

interface Asked {
	linkId: string;
	deviceId: string;
	resolve: (isBehind: boolean) => void;
	reject: (error: unknown) => void;
}

export class ChildLookup {
	readonly #db: Db;
	readonly #now: Clock;
	#asked: Asked[] = [];
	#answering: Promise<void> | undefined;

	constructor(parts: { db: Db; now: Clock }) {
		this.#db = parts.db;
		this.#now = parts.now;
	}

	/** On whatever level. @throws when the store failed. */
	isBehind(linkId: string, deviceId: string): Promise<boolean> {
		return new Promise((resolve, reject) => {
			this.#asked.push({ linkId, deviceId, resolve, reject });
			this.#answering ??= nextTurn().then(() => this.#answerAll());
		});
	}

	async #answerAll(): Promise<void> {
		while (this.#asked.length > 0) {
			await this.#answer(this.#asked.splice(0, BATCH));
			if (this.#asked.length > 0) await nextTurn();
		}
		this.#answering = undefined;
	}

	async #answer(batch: readonly Asked[]): Promise<void> {
		try {
			const found = await meetChildren(this.#db, batch, this.#now());
			const key = (linkId: string, deviceId: string) => `${linkId}/${deviceId}`;
			const behind = new Set(
				found.map(({ linkId, deviceId }) => key(linkId, deviceId)),
			);
			for (const { linkId, deviceId, resolve } of batch)
				resolve(behind.has(key(linkId, deviceId)));
		} catch (error) {
			for (const { reject } of batch) reject(error);
		}
	}
}
