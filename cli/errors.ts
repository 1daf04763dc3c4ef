/** How a command ends badly: what happened, what to do next, and an exit code. */
import { styleText } from "node:util";
import { ApiFailure } from "../wire/client.ts";

export const exitCodes = {
	ok: { code: 0, meaning: "done, or ended by Ctrl-C after its work" },
	failed: { code: 1, meaning: "the work was not done, or not on every device" },
	usage: { code: 2, meaning: "the command line was not understood" },
	server: { code: 3, meaning: "the server was not reached or refused" },
	interrupted: { code: 130, meaning: "interrupted before the work was done" },
} as const;

type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

export class CommandError extends Error {
	override name = "CommandError";
	readonly nextStep: string;
	readonly exit: ExitCode;

	constructor(message: string, nextStep: string, exit: ExitCode) {
		super(message);
		this.nextStep = nextStep;
		this.exit = exit;
	}
}

/** Says on standard error what went wrong. @returns the exit code. */
export function reportError(error: unknown): number {
	const known = explain(error);
	const name = styleText("red", "otaru:", { stream: process.stderr });
	if (!known) {
		process.stderr.write(
			`${name} ${error instanceof Error ? error.stack : String(error)}\n`,
		);
		return exitCodes.failed.code;
	}
	process.stderr.write(`${name} ${known.message}\n${known.nextStep}\n`);
	return known.exit.code;
}

function explain(error: unknown): CommandError | undefined {
	if (error instanceof CommandError) return error;
	if (error instanceof ApiFailure) {
		const next =
			error.status === 401
				? "The access key is not one of this server's: credentials.json in its data directory has one."
				: `The server's log has more under request ${error.requestId || "id unknown"}.`;
		return new CommandError(
			`The server answers ${error.status} ${error.code}: ${error.message}`,
			next,
			exitCodes.server,
		);
	}
	if (!(error instanceof Error)) return undefined;
	const code = "code" in error ? String(error.code) : "";
	if (code.startsWith("ERR_PARSE_ARGS_")) {
		return new CommandError(
			error.message,
			"The command with --help lists its options.",
			exitCodes.usage,
		);
	}
	// What fetch throws when nothing answers: the reason is in the cause.
	if (error instanceof TypeError && error.message === "fetch failed") {
		const cause = error.cause instanceof Error ? error.cause.message : "";
		return new CommandError(
			`The server cannot be reached: ${cause || "no reason given"}.`,
			"Is it running? npm start starts it; --endpoint or --data names another.",
			exitCodes.server,
		);
	}
	return undefined;
}
