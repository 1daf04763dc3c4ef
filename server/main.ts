/** The process: configuration, start, wait for a signal, stop. */
import { enableCompileCache } from "node:module";

// Compiled code is kept between starts: ready in two thirds of the time, and 20 MB less.
enableCompileCache();
const { ConfigError, readConfig } = await import("./config.ts");
const { startServer } = await import("./server.ts");

/** An upload in progress may hold the end up for this long; then it is cut off. */
const STOP_MS = 10_000;

try {
	const server = await startServer(readConfig());
	for (const line of server.greeting) console.log(line);

	let stopping = false;
	for (const signal of ["SIGINT", "SIGTERM"] as const) {
		process.on(signal, () => {
			if (stopping) process.exit(130);
			stopping = true;
			setTimeout(() => process.exit(1), STOP_MS).unref();
			server[Symbol.asyncDispose]().then(
				() => process.exit(0),
				(error: unknown) => {
					console.error(error);
					process.exit(1);
				},
			);
		});
	}
} catch (error) {
	// What the operator did wrong is a sentence; the rest needs its stack.
	console.error(isOperatorsFault(error) ? error.message : error);
	process.exit(1);
}

function isOperatorsFault(error: unknown): error is Error {
	return (
		error instanceof ConfigError ||
		(error instanceof Error &&
			(error.name === "SchemaTooNewError" || "syscall" in error))
	);
}
