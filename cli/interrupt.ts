/** Ctrl-C, and a reader that goes away: the first asks for an orderly end, a later one insists. */

/** npm hands on the signal that the terminal has sent already: the same key press. */
const SAME_PRESS_MS = 500;

let isOrderly = false;
let isUnread = false;

/** Aborted when the user, or whoever supervises the process, asks for its end. */
export function untilInterrupted(): AbortController {
	const asked = new AbortController();
	isOrderly = true;
	let askedAtMs = 0;
	const onSignal = () => {
		if (!asked.signal.aborted) {
			askedAtMs = Date.now();
			asked.abort();
		} else if (Date.now() - askedAtMs > SAME_PRESS_MS) {
			process.exit(130);
		}
	};
	// A terminal that was closed, or a reader that went away, is no reason to leave
	// things behind either.
	for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const)
		process.on(signal, onSignal);
	for (const stream of [process.stdout, process.stderr])
		stream.on("error", onSignal);
	return asked;
}

/**
 * `otaru … | head -1` is no failure: when nobody reads the output any more the process
 * ends with 0, at once unless it wants an orderly end.
 */
export function endWhenUnread(): void {
	process.stdout.on("error", (error) => {
		if (!isBrokenPipe(error)) throw error;
		isUnread = true;
		if (!isOrderly) process.exit(0);
	});
	// Nobody is left to be told.
	process.stderr.on("error", () => {});
}

/** Whether the reader of the output went away. */
export function wasUnread(): boolean {
	return isUnread;
}

export function isBrokenPipe(error: unknown): boolean {
	return error instanceof Error && "code" in error && error.code === "EPIPE";
}
