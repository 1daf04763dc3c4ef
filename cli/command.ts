/** What every subcommand of `otaru` is. */
export interface Command {
	/** What it does, for the list of commands. */
	summary: string;
	help: string;
	/** @returns the exit code. */
	run: (args: string[]) => Promise<number>;
}
