/** The body of a route that `streams`, as it comes. */
import type { IncomingMessage } from "node:http";
import { ApiError, errors } from "../errors.ts";

/**
 * Of a sender that is waited for this long altogether at least so much must have come
 * since. One that sends nothing at all is cut off by the socket's own limit before.
 */
const SLOW_MS = 60_000;
const SLOW_BYTES = 16 * 1024;

/**
 * The connection survives a body that is not read to its end.
 *
 * @param slowMs how long a sender may take for 16 KiB; what the reader does meanwhile
 * does not count.
 * @throws 400 IOTDA.014969 when it breaks off, or comes too slowly
 */
export async function* streamedBody(
	raw: IncomingMessage,
	slowMs = SLOW_MS,
): AsyncGenerator<Buffer> {
	let [waitedMs, sizeBytes] = [0, 0];
	let since = performance.now();
	try {
		for await (const chunk of raw.iterator({ destroyOnReturn: false })) {
			waitedMs += performance.now() - since;
			sizeBytes += chunk.length;
			if (sizeBytes >= SLOW_BYTES) [waitedMs, sizeBytes] = [0, 0];
			else if (waitedMs > slowMs) {
				raw.destroy();
				throw new Error("The body comes too slowly.");
			}
			yield chunk;
			since = performance.now();
		}
	} catch (cause) {
		throw new ApiError(errors.objectIncomplete, { cause });
	}
}

/** As announced; undefined when the sender did not say. */
export function announcedBytes(raw: IncomingMessage): number | undefined {
	// The parser has refused anything but digits.
	const announced = raw.headers["content-length"];
	return announced === undefined ? undefined : Number(announced);
}

/** How long the answer may take that a sender of too much is given before he is cut off. */
const LAST_WORD_MS = 5_000;

/**
 * Lets a refused sender finish: most clients read the answer only after their last
 * byte, and a connection closed before that shows them a broken pipe instead of the
 * reason. One that sends more than could ever be accepted is no longer listened to, and
 * cut off when the answer must have reached him.
 */
export function discardRest(raw: IncomingMessage, limitBytes: number): void {
	let left = limitBytes;
	raw.on("error", () => {});
	const onData = (chunk: Buffer) => {
		left -= chunk.length;
		if (left >= 0) return;
		raw.off("data", onData);
		raw.pause();
		const timer = setTimeout(() => {
			// If that was all of it, the connection is good for another call.
			if (raw.complete) raw.resume();
			else raw.destroy();
		}, LAST_WORD_MS).unref();
		raw.once("close", () => clearTimeout(timer));
	};
	raw.on("data", onData);
	raw.resume();
}
