/** The body of a route that `streams`, as it comes. */
import type { IncomingMessage } from "node:http";
import { ApiError, errors } from "../errors.ts";

/**
 * The connection survives a body that is not read to its end.
 *
 * @throws 400 IOTDA.014969 when it breaks off
 */
export async function* streamedBody(
	raw: IncomingMessage,
): AsyncGenerator<Buffer> {
	try {
		yield* raw.iterator({ destroyOnReturn: false });
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

/**
 * Lets a refused sender finish: most clients read the answer only after their last
 * byte, and a connection closed before that shows them a broken pipe instead of the
 * reason. One that sends more than could ever be accepted is cut off.
 */
export function discardRest(raw: IncomingMessage, limitBytes: number): void {
	let left = limitBytes;
	raw.on("error", () => {});
	raw.on("data", (chunk: Buffer) => {
		left -= chunk.length;
		if (left < 0) raw.destroy();
	});
	raw.resume();
}
