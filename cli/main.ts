/**
 * The `otaru` command: finds the subcommand, runs it, and turns whatever went wrong
 * into a sentence, the next step, and an exit code that scripts can trust.
 */
import { readFileSync } from "node:fs";
import type { Command } from "./command.ts";
import { CommandError, exitCodes, reportError } from "./errors.ts";
import { endWhenUnread, isBrokenPipe, wasUnread } from "./interrupt.ts";
import { columns } from "./output.ts";

/** Loaded when asked for, so that `otaru --help` answers at once. */
const commands: Readonly<
	Record<string, { summary: string; load: () => Promise<Command> }>
> = {
	access: {
		summary: "manage users, their keys, and what each may do",
		load: async () => (await import("./access.ts")).access,
	},
	admin: {
		summary:
			"on the server's machine: let an administrator in again when nobody can",
		load: async () => (await import("./admin.ts")).admin,
	},
	audit: {
		summary:
			"who did what on the server, and whether the record of it is whole",
		load: async () => (await import("./audit.ts")).audit,
	},
	demo: {
		summary: "a server and 200 devices, upgraded in front of you",
		load: async () => (await import("./demo.ts")).demo,
	},
	devices: {
		summary: "register the devices of a file, and write devices into one",
		load: async () => (await import("./devices.ts")).devices,
	},
	keys: {
		summary: "change the master key that stored secrets are encrypted under",
		load: async () => (await import("./keys.ts")).keys,
	},
	simulate: {
		summary:
			"connect simulated devices to a server, with faults to choose from",
		load: async () => (await import("./simulate.ts")).simulate,
	},
	tasks: {
		summary: "look at upgrade tasks, and watch one until it ends",
		load: async () => (await import("./tasks.ts")).tasks,
	},
};

const help = `otaru: over-the-air updates for devices made of several firmware modules

Usage
  otaru COMMAND [options]
  otaru COMMAND --help

Commands
${columns(Object.entries(commands).map(([name, { summary }]) => [name, summary]))}

The server itself starts with npm start.

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
`;

export async function main(args: string[]): Promise<number> {
	const [name, ...rest] = args;
	if (
		name === undefined ||
		name === "--help" ||
		name === "-h" ||
		name === "help"
	) {
		process.stdout.write(help);
		return name === undefined ? exitCodes.usage.code : exitCodes.ok.code;
	}
	if (name === "--version" || name === "-v") {
		process.stdout.write(`${version()}\n`);
		return exitCodes.ok.code;
	}
	const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
	if (!command) {
		throw new CommandError(
			`There is no command "${name}".`,
			"See otaru --help for the commands there are.",
			exitCodes.usage,
		);
	}
	const loaded = await command.load();
	if (rest.includes("--help") || rest.includes("-h")) {
		process.stdout.write(loaded.help);
		return exitCodes.ok.code;
	}
	return loaded.run(rest);
}

function version(): string {
	const file = new URL("../package.json", import.meta.url);
	return JSON.parse(readFileSync(file, "utf8")).version;
}

endWhenUnread();
const args = process.argv.slice(2);
try {
	const code = await main(args);
	process.exitCode = wasUnread() ? exitCodes.ok.code : code;
} catch (error) {
	process.exitCode =
		wasUnread() || isBrokenPipe(error)
			? exitCodes.ok.code
			: reportError(error, args[0]);
}
