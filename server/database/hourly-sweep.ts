/** The removal of what has become old, at once and every hour. */
import type { Logger } from "../log.ts";

const SWEEP_MS = 60 * 60_000;

/**
 * Sweeps until it is disposed of; never twice at a time.
 *
 * @param parts.sweep gives how many rows it removed; ends early when it is told to
 * @param parts.what is removed, for the log: "old history"
 */
export function sweepHourly({
	sweep,
	what,
	log,
}: {
	sweep: (signal: AbortSignal) => Promise<number>;
	what: string;
	log: Logger;
}): AsyncDisposable {
	const stop = new AbortController();
	const sweepOnce = async () => {
		try {
			const removed = await sweep(stop.signal);
			if (removed > 0) log.info({ removed }, `removed ${what}`);
		} catch (error) {
			if (!stop.signal.aborted)
				log.error({ err: error }, `could not remove ${what}`);
		}
	};
	let running = sweepOnce();
	const timer = setInterval(() => {
		running = running.then(sweepOnce);
	}, SWEEP_MS);
	timer.unref();
	return {
		async [Symbol.asyncDispose]() {
			clearInterval(timer);
			stop.abort();
			await running;
		},
	};
}
