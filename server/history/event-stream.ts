/**
 * Server-sent events over one answer (the HTML standard's chapter of that name). Nothing
 * is buffered beyond the piece being sent: who takes nothing for a while is cut off, and
 * comes back with the id of the last event he has got.
 */
import type { ServerResponse } from "node:http";

export interface EventText {
	/** Where a client goes on that has lost the connection after it. */
	id?: string;
	event?: string;
	/** One line. */
	data?: string;
}

/** An event in the form of the wire; without data it only sets the id. */
export function eventText({ id, event, data }: EventText): string {
	return `${id === undefined ? "" : `id: ${id}\n`}${event === undefined ? "" : `event: ${event}\n`}${data === undefined ? "" : `data: ${data}\n`}\n`;
}

/** Milliseconds after which a browser comes back. */
const RETRY_MS = 1_000;
/** Texts are sent in pieces of about this size. */
const PIECE_CHARACTERS = 32 * 1024;

export class EventStream {
	readonly #response: ServerResponse;
	readonly #stallMs: number;
	readonly #closing: AbortController;

	/** Begins the answer. `closing` is aborted from either side when it is over. */
	constructor(
		response: ServerResponse,
		headers: Record<string, string | string[] | number | undefined>,
		closing: AbortController,
		stallMs: number,
	) {
		this.#response = response;
		this.#stallMs = stallMs;
		this.#closing = closing;
		// The socket tells of its end in `close`; the error alone would end the process.
		response.on("error", () => {});
		for (const [name, value] of Object.entries(headers))
			if (value !== undefined) response.setHeader(name, value);
		response.writeHead(200, {
			"content-type": "text/event-stream",
			"cache-control": "no-store",
			// nginx and its like would wait for more before they pass anything on.
			"x-accel-buffering": "no",
		});
		response.write(`retry: ${RETRY_MS}\n`);
	}

	/** Resolves to false when the client has taken nothing for too long, or is gone. */
	async send(texts: Iterable<string>): Promise<boolean> {
		let piece = "";
		for (const text of texts) {
			piece += text;
			if (piece.length < PIECE_CHARACTERS) continue;
			if (!(await this.#write(piece))) return false;
			piece = "";
		}
		return piece === "" || (await this.#write(piece));
	}

	/** Lets what was sent go out, unless the client does not take it. */
	end(): void {
		if (this.#response.writableNeedDrain) this.#response.destroy();
		else this.#response.end();
	}

	#write(text: string): Promise<boolean> | boolean {
		const response = this.#response;
		if (response.destroyed || this.#closing.signal.aborted) return false;
		if (response.write(text)) return true;
		const { signal } = this.#closing;
		return new Promise((resolve) => {
			const done = (taken: boolean) => {
				clearTimeout(timer);
				response.off("drain", drained);
				signal.removeEventListener("abort", aborted);
				resolve(taken);
			};
			const drained = () => done(true);
			const aborted = () => done(false);
			const timer = setTimeout(done, this.#stallMs, false);
			response.on("drain", drained);
			signal.addEventListener("abort", aborted);
		});
	}
}
