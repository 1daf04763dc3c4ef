/** Ctrl-C: the first asks for an orderly end, the second insists. */
export function untilInterrupted(): AbortController {
	const asked = new AbortController();
	const onSignal = () => {
		if (asked.signal.aborted) process.exit(130);
		asked.abort();
	};
	process.on("SIGINT", onSignal);
	process.on("SIGTERM", onSignal);
	// A terminal that was closed is no reason to leave things behind either.
	process.on("SIGHUP", onSignal);
	return asked;
}
