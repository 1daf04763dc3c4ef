/**
 * Those who watch: how many, for how long, and what each is sent.
 *
 * A stream lasts a quarter of an hour at the most, and ends as soon as anybody's rights
 * change. Its client comes back by itself, goes on where it was, and proves anew who it
 * is: a key that was taken away watches for some seconds more, a token that ran out no
 * longer than the stream.
 */
import type { ServerResponse } from "node:http";
import { readAccessVersion } from "../access/access-version.ts";
import type { Db } from "../database/database.ts";
import type { Position } from "../database/follow.ts";
import { ApiError, errors } from "../errors.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import { EventStream, eventText } from "./event-stream.ts";
import { HistoryTail, type Told, type Watch } from "./tail.ts";
import { readTasks } from "./watched-tasks.ts";

const log = logger("history");

export interface WatchLimits {
	/** Streams of this process. */
	streams: number;
	/** From one sign of life to the next. */
	quietMs: number;
	/** How long a client may take nothing. */
	stallMs: number;
	/** How long a stream lasts. */
	lifeMs: number;
	/** How often is asked whether rights have changed. */
	rightsMs: number;
}

export const watchLimits: WatchLimits = {
	streams: 500,
	quietMs: 15_000,
	stallMs: 30_000,
	lifeMs: 15 * 60_000,
	rightsMs: 2_000,
};

export interface Watcher {
	watch: Watch;
	/** Where to go on; undefined: from now on. */
	after: Position | undefined;
	/** The number in `access_version` under which he was let in. */
	accessVersion: number;
	/** What was told as an event; undefined: not for this caller. */
	textOf: (told: Told) => string | undefined;
}

export class Watching implements AsyncDisposable {
	readonly #db: Db;
	readonly #events: Events;
	readonly #limits: WatchLimits;
	readonly #tail: HistoryTail;
	readonly #streams = new Map<
		AbortController,
		{ running: Promise<void>; accessVersion: number }
	>();
	#closed = false;
	#rightsTimer: NodeJS.Timeout | undefined;

	constructor(parts: {
		db: Db;
		events: Events;
		limits?: Partial<WatchLimits>;
	}) {
		this.#db = parts.db;
		this.#events = parts.events;
		this.#limits = { ...watchLimits, ...parts.limits };
		this.#tail = new HistoryTail(parts.db);
		parts.events.gauge(
			"watchers",
			"Clients that watch tasks and devices",
			() => this.#streams.size,
		);
	}

	/**
	 * Sends events until the client leaves or the stream's time is over.
	 *
	 * @param begin called when it is certain that there will be a stream; gives the answer
	 * and the headers that it has already
	 * @throws 503 IOTDA.000926 when there are too many, 503 IOTDA.000924 when the server is
	 * stopping, and whatever the store throws; all before `begin`
	 */
	async serve(
		watcher: Watcher,
		response: ServerResponse,
		begin: () => Record<string, string | string[] | number | undefined>,
	): Promise<void> {
		if (this.#closed) throw new ApiError(errors.notReady);
		if (this.#streams.size >= this.#limits.streams)
			throw new ApiError(errors.tooManyWatchers, {
				detail: `At most ${this.#limits.streams} can be open.`,
			});
		const closing = new AbortController();
		const running = Promise.withResolvers<void>();
		this.#streams.set(closing, {
			running: running.promise,
			accessVersion: watcher.accessVersion,
		});
		this.#rightsTimer ??= setInterval(
			() => void this.#endWhenRightsChange(),
			this.#limits.rightsMs,
		).unref();
		const close = () => closing.abort();
		response.on("close", close);
		const timer = setTimeout(close, this.#lifeMs());
		try {
			await this.#serve(watcher, response, begin, closing);
		} finally {
			clearTimeout(timer);
			response.off("close", close);
			this.#streams.delete(closing);
			running.resolve();
			if (this.#streams.size === 0) {
				clearInterval(this.#rightsTimer);
				this.#rightsTimer = undefined;
			}
		}
	}

	/** Whose rights changed is not asked: to come back costs a client next to nothing. */
	async #endWhenRightsChange(): Promise<void> {
		let version: number;
		try {
			version = await readAccessVersion(this.#db);
		} catch (error) {
			log.error({ err: error }, "whether rights have changed cannot be read");
			return;
		}
		for (const [closing, { accessVersion }] of this.#streams)
			if (accessVersion !== version) closing.abort();
	}

	/** Ends every stream, and lets no other begin. */
	async end(): Promise<void> {
		this.#closed = true;
		for (const closing of this.#streams.keys()) closing.abort();
		await Promise.all(
			[...this.#streams.values()].map(({ running }) => running),
		);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.end();
		await this.#tail[Symbol.asyncDispose]();
	}

	async #serve(
		{ watch, after, textOf }: Watcher,
		response: ServerResponse,
		begin: () => Record<string, string | string[] | number | undefined>,
		closing: AbortController,
	): Promise<void> {
		const { quietMs, stallMs } = this.#limits;
		const steps = this.#tail.follow(watch, after, {
			quietMs,
			signal: closing.signal,
		});
		const first = await steps.next();
		if (first.done) return;
		const stream = new EventStream(response, begin(), closing, stallMs);
		/** Of the only task: the same is not said twice. */
		let lastTask: string | undefined;
		const taskText = (told: Told & { kind: "task" }) => {
			const text = textOf(told);
			if (watch.taskId === undefined) return text;
			if (text === lastTask) return undefined;
			lastTask = text;
			return text;
		};
		const start = first.value.position;
		let said = idOf(start);
		let taken = await stream.send([eventText({ id: said })]);
		try {
			if (after === undefined && watch.taskId !== undefined) {
				const [task] = await readTasks(this.#db, [watch.taskId]);
				const text = task && taskText({ kind: "task", position: start, task });
				if (taken && text !== undefined) taken = await stream.send([text]);
			}
			if (taken) {
				for await (const step of steps) {
					const id = idOf(step.position);
					switch (step.kind) {
						case "start":
							break;
						case "told":
							taken = await stream.send(
								step.told
									.map((told) =>
										told.kind === "task" ? taskText(told) : textOf(told),
									)
									.filter((text) => text !== undefined),
							);
							break;
						case "reset":
							lastTask = undefined;
							said = id;
							taken = await stream.send([
								eventText({ id, event: "reset", data: RESET }),
							]);
							break;
						case "quiet":
							// The id moves on with what others are told, so that a client that
							// comes back need not be led through all of it.
							taken = await stream.send([
								id === said ? ":\n\n" : `:\n${eventText({ id })}`,
							]);
							said = id;
							break;
						default:
							step satisfies never;
					}
					if (!taken) break;
				}
			}
			if (!taken && !closing.signal.aborted) {
				this.#events.happened("watcher_cut_off");
				response.destroy();
			}
		} catch (error) {
			// The client comes back to a store that answers again.
			log.error({ err: error }, "a stream of events broke off");
		} finally {
			await steps.return(undefined);
			stream.end();
		}
	}

	/** Those that began together do not all come back together. */
	#lifeMs(): number {
		return this.#limits.lifeMs * (0.8 + Math.random() * 0.2);
	}
}

const RESET = JSON.stringify({
	reason:
		"What happened after the last event is not kept any more; read the state anew.",
});

export function idOf({ tx, seq }: Position): string {
	return `${tx}-${seq}`;
}

/** Undefined for what no stream has ever sent. */
export function positionOf(id: string): Position | undefined {
	const match = /^(\d{1,15})-(\d{1,15})$/.exec(id);
	return match ? { tx: Number(match[1]), seq: Number(match[2]) } : undefined;
}
