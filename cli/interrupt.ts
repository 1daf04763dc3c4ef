/** Ctrl-C: the first asks for an orderly end, a later one insists. */

/** npm hands on the signal that the terminal has sent already: the same key press. */
const SAME_PRESS_MS = 500;

/** Aborted when the user, or whoever supervises the process, asks for its end. */
export function untilInterrupted(): AbortController {
	const asked = new AbortController();
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
