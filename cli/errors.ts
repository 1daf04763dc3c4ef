/** How a command ends badly: what happened, what to do next, and an exit code. */
import { styleText } from "node:util";
import { ApiFailure } from "../wire/client.ts";
import { counted, oneLine } from "./output.ts";

export const exitCodes = {
	ok: { code: 0, meaning: "done, or ended by Ctrl-C after its work" },
	failed: { code: 1, meaning: "the work was not done, or not on every device" },
	usage: {
		code: 2,
		meaning: "the command line was not understood, or names what is not there",
	},
	server: { code: 3, meaning: "the server was not reached or refused" },
	interrupted: { code: 130, meaning: "interrupted before the work was done" },
} as const;

type ExitCode = (typeof exitCodes)[keyof typeof exitCodes];

export class CommandError extends Error {
	override name = "CommandError";
	readonly nextStep: string;
	readonly exit: ExitCode;

	/** @param nextStep empty: there is nothing to advise. */
	constructor(message: string, nextStep: string, exit: ExitCode) {
		super(message);
		this.nextStep = nextStep;
		this.exit = exit;
	}
}

let advice401 =
	"Sign in with an access key, or with --as and a password; --help says how.";

/** What to say when the server does not believe who is calling: how he proved it, and from where that came. */
export function adviseOnRefusedProof(text: string): void {
	advice401 = text;
}

/**
 * Says on standard error what went wrong.
 *
 * @param command the subcommand it happened in
 * @returns the exit code.
 */
export function reportError(error: unknown, command?: string): number {
	const known = explain(error, command);
	const name = styleText("red", "otaru:", { stream: process.stderr });
	if (!known) {
		process.stderr.write(
			`${name} ${error instanceof Error ? error.stack : String(error)}\n`,
		);
		return exitCodes.failed.code;
	}
	process.stderr.write(
		`${name} ${known.message}\n${known.nextStep && `${known.nextStep}\n`}`,
	);
	return known.exit.code;
}

function explain(error: unknown, command = ""): CommandError | undefined {
	if (error instanceof CommandError) return error;
	if (error instanceof ApiFailure) return explainFailure(error, command);
	if (!(error instanceof Error)) return undefined;
	const code = "code" in error ? String(error.code) : "";
	if (code.startsWith("ERR_PARSE_ARGS_")) {
		return new CommandError(
			error.message,
			`otaru ${command} --help lists its options.`.replace("  ", " "),
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

/** The vendor's text for a key that failed too often. */
const LOCKED_OUT = "AK access failed to reach the limit";

function explainFailure(failure: ApiFailure, command: string): CommandError {
	const { status, code, retryAfterSeconds: wait } = failure;
	const again =
		wait === undefined
			? "Try again in some minutes."
			: `Try again in ${counted(wait, "second")}.`;
	if (failure.message.includes(LOCKED_OUT))
		return new CommandError(
			`The server listens to this key, or to this address, no more for now: too many calls from it proved nothing (${status} ${code}).`,
			`${again} Find what keeps calling with a wrong key; otaru audit list --status 401 shows it.`,
			exitCodes.server,
		);
	return new CommandError(
		oneLine(`The server answers ${status} ${code}: ${failure.message}`),
		nextStepOf(failure, command, again),
		exitCodes.server,
	);
}

function nextStepOf(
	{ status, code, message, requestId }: ApiFailure,
	command: string,
	again: string,
): string {
	if (status >= 500)
		return `The server's log has more under request ${requestId || "id unknown"}.`;
	if (code === "IOTDA.015924")
		return "otaru access me password chooses a password of your own.";
	switch (status) {
		case 400:
			return `otaru ${command} --help says what it takes.`;
		case 401:
			return advice401;
		case 403: {
			// Other codes of 403 are no matter of permissions, and say what they are.
			if (code !== "IOTDA.000022") return "";
			const action = /\((\w+:\w+:\w+)\)/.exec(message)?.[1] ?? "ACTION";
			return `otaru access can USER ${action} and otaru audit list --decision refused say why, to those who may ask.`;
		}
		case 429:
			return again;
		default:
			return "";
	}
}
