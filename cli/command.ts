/** What every subcommand of `otaru` is, and how its verbs take only options of theirs. */
import { CommandError, exitCodes } from "./errors.ts";

export interface Command {
	/** What it does, for the list of commands. */
	summary: string;
	help: string;
	/** @returns the exit code. */
	run: (args: string[]) => Promise<number>;
}

/**
 * An option that has no effect is refused: whoever wrote it expects one.
 *
 * @param tokens of `parseArgs`
 * @param allowed names of options
 * @param verb such as `users list`, of the command `command`
 * @throws CommandError
 */
export function refuseOtherOptions(
	tokens: readonly { kind: string; name?: string }[],
	allowed: readonly string[],
	{ command, verb }: { command: string; verb: string },
): void {
	for (const { kind, name } of tokens)
		if (kind === "option" && name !== undefined && !allowed.includes(name))
			throw new CommandError(
				`--${name} does not go with ${verb}.`,
				`otaru ${command} --help says which options go with which.`,
				exitCodes.usage,
			);
}
