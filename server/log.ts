/** One logger per subsystem, JSON lines on standard output. */
import { type Logger, pino } from "pino";

export type { Logger } from "pino";

const root = pino({
	name: "otaru",
	level: "info",
	timestamp: pino.stdTimeFunctions.isoTime,
	// Nothing that signs anybody in belongs in a log, whoever hands it to the logger.
	redact: {
		paths: [
			"authorization",
			"*.authorization",
			"password",
			"*.password",
			"secret",
			"*.secret",
			"token",
			"*.token",
			"access_token",
			"*.access_token",
		],
		censor: "[removed]",
	},
});

const children: Logger[] = [];

export function logger(subsystem: string): Logger {
	const child = root.child({ subsystem });
	child.level = root.level;
	children.push(child);
	return child;
}

export function setLogLevel(level: string): void {
	root.level = level;
	for (const child of children) child.level = level;
}
