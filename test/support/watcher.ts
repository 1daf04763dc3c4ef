/** Somebody who watches, and remembers what he was told. */
import type { Client } from "../../wire/client.ts";
import type { WatchEvent } from "../../wire/history.ts";
import { until } from "./device.ts";

export class Watcher implements AsyncDisposable {
	readonly told: WatchEvent[] = [];
	/** Where to go on. */
	lastId = "";
	/** Settles when the stream is over; with what ended it, if that was a failure. */
	readonly ended: Promise<unknown>;
	readonly #stop = new AbortController();

	/** Resolves when the stream stands. */
	static async open(
		api: Client,
		query: Parameters<Client["watch"]>[0] = {},
	): Promise<Watcher> {
		const watcher = new Watcher(api, query);
		const failed = watcher.ended.then((error) => {
			if (watcher.lastId === "") throw error;
		});
		await Promise.race([
			until(
				async () => watcher.lastId,
				(id) => id !== "",
			),
			failed,
		]);
		return watcher;
	}

	private constructor(api: Client, query: Parameters<Client["watch"]>[0]) {
		this.ended = this.#read(api, query).catch((error: unknown) => error);
	}

	async #read(
		api: Client,
		query: Parameters<Client["watch"]>[0],
	): Promise<void> {
		const events = api.watch(query, {
			signal: this.#stop.signal,
			onId: (id) => {
				this.lastId = id;
			},
		});
		for await (const event of events) this.told.push(event);
	}

	/** Only these. */
	of<T extends WatchEvent["type"]>(type: T) {
		return this.told.filter(
			(event): event is WatchEvent & { type: T } => event.type === type,
		);
	}

	/** `device/kind` of every subtask event. */
	get subtasks(): string[] {
		return this.of("subtask").map(
			({ data }) => `${data.device_id}/${data.kind}`,
		);
	}

	/** As soon as it holds. */
	async when(
		holds: (watcher: Watcher) => boolean,
		timeoutMs?: number,
	): Promise<this> {
		await until(
			async () => this.told,
			() => holds(this),
			timeoutMs,
		);
		return this;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#stop.abort();
		await this.ended;
	}
}
