/**
 * Reads a request's body whole, as the bytes that came: signatures are over these.
 * What a caller is refused before its end is read is drained, within limits, so that
 * he can read the answer.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import { ApiError, errors } from "../errors.ts";

const NOTHING = Buffer.alloc(0);
/** Bounds those who send a byte now and then; the silent are closed by the socket's own limit. */
const TIME_LIMIT_MS = 120_000;
const DRAIN_LIMIT_BYTES = 32 * 1024 * 1024;
const DRAIN_TIME_MS = 15_000;

/** Requests that asked with `Expect: 100-continue` and were not told to go on yet. */
const waitingToContinue = new WeakSet<IncomingMessage>();

export function expectsContinue(raw: IncomingMessage): void {
	waitingToContinue.add(raw);
}

/** Tells a caller who asked first that his body is wanted. */
export function askForBody(raw: IncomingMessage, answer: ServerResponse): void {
	if (waitingToContinue.delete(raw)) answer.writeContinue();
}

export function hasBody(raw: IncomingMessage): boolean {
	const length = raw.headers["content-length"];
	return (
		raw.headers["transfer-encoding"] !== undefined ||
		(length !== undefined && length !== "0")
	);
}

/** @throws 413 before reading when the length says so, else as soon as it is known. */
export async function readBody(
	raw: IncomingMessage,
	answer: ServerResponse,
	limitBytes: number,
	timeLimitMs = TIME_LIMIT_MS,
): Promise<Buffer> {
	if (!hasBody(raw)) return NOTHING;
	const tooLarge = () =>
		new ApiError(errors.bodyTooLarge, {
			detail: `It may have ${limitBytes} bytes.`,
		});
	if (Number(raw.headers["content-length"]) > limitBytes) throw tooLarge();
	askForBody(raw, answer);
	return new Promise((resolve, reject) => {
		const chunks: Buffer[] = [];
		let sizeBytes = 0;
		const timer = setTimeout(() => raw.destroy(), timeLimitMs);
		const leave = () => {
			clearTimeout(timer);
			raw.off("data", onData).off("end", onEnd).off("close", onClose);
			// Late faults of the connection concern nobody any more.
			raw.on("error", () => {});
		};
		const onData = (chunk: Buffer) => {
			sizeBytes += chunk.length;
			if (sizeBytes > limitBytes) {
				leave();
				drain(raw);
				reject(tooLarge());
				return;
			}
			chunks.push(chunk);
		};
		const onEnd = () => {
			leave();
			const [only] = chunks;
			resolve(
				chunks.length === 1 && only ? only : Buffer.concat(chunks, sizeBytes),
			);
		};
		const onClose = () => {
			leave();
			reject(
				new ApiError(errors.invalidFormat, {
					detail: "The body ended before its announced length.",
				}),
			);
		};
		raw.on("data", onData).on("end", onEnd).on("close", onClose);
		raw.on("error", onClose);
	});
}

/**
 * Lets the rest of a refused body run into nothing: a connection closed over unread
 * bytes is reset, and the caller never sees why he was refused.
 */
export function drain(raw: IncomingMessage): void {
	if (raw.complete || raw.destroyed) return;
	let sizeBytes = 0;
	const giveUp = () => raw.socket.destroy();
	const timer = setTimeout(giveUp, DRAIN_TIME_MS).unref();
	const done = () => clearTimeout(timer);
	raw.on("data", (chunk: Buffer) => {
		sizeBytes += chunk.length;
		if (sizeBytes > DRAIN_LIMIT_BYTES) giveUp();
	});
	raw.on("error", () => {});
	raw.on("end", done).on("close", done);
	raw.resume();
}
