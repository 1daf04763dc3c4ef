/** `otaru keys`: the master key that stored secrets are encrypted under, and changing it. */
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { MasterKeyStatus } from "../wire/master-key.ts";
import { type Command, refuseOtherOptions } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { untilInterrupted } from "./interrupt.ts";
import { columns, counted, Output } from "./output.ts";
import { openSession, serverHelp, serverOptions } from "./session.ts";

const help = `otaru keys: the master key that the server's stored secrets are encrypted under

Usage
  otaru keys status [--json] [server]
  otaru keys rotate [--wait] [--json] [server]

  status   the keys, how many secrets each of them encrypts, and how far a change is
  rotate   changes the key while the server serves. With master.key in the data
           directory the server makes a new key and drops the old one when nothing needs
           it any more. With OTARU_MASTER_KEY it encrypts everything under the first key
           of that list, and status says which of the others may go.

Options
  --wait               rotate: returns only when it is done
  --json               JSON

Server
${serverHelp}

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
`;

const options = {
	...serverOptions,
	wait: { type: "boolean", default: false },
	json: { type: "boolean", default: false },
} as const;

const POLL_MS = 1_000;

async function run(args: string[]): Promise<number> {
	const { values, positionals, tokens } = parseArgs({
		args,
		options,
		allowPositionals: true,
		tokens: true,
	});
	const [action, ...rest] = positionals;
	if (action !== "status" && action !== "rotate")
		throw usage(
			action === undefined
				? "It is missing what to do: status or rotate."
				: `"${action}" is nothing to do with keys: status and rotate are.`,
		);
	if (rest.length > 0) throw usage(`"${rest[0]}" is one word too many.`);
	refuseOtherOptions(
		tokens,
		[
			...Object.keys(serverOptions),
			...(action === "rotate" ? ["wait", "json"] : ["json"]),
		],
		{ command: "keys", verb: action },
	);
	const { client } = await openSession(values, "account");
	const output = new Output();
	let status =
		action === "rotate"
			? await client.rotateMasterKey()
			: await client.getMasterKeyStatus();
	if (values.wait) {
		const { signal } = untilInterrupted();
		while (status.state !== "idle") {
			if (!values.json) output.live([progressOf(status)]);
			await pause(POLL_MS, undefined, { signal }).catch(() => {});
			if (signal.aborted) {
				output.line(
					"The server goes on: otaru keys status shows how far it is.",
				);
				return exitCodes.interrupted.code;
			}
			status = await client.getMasterKeyStatus();
		}
	}
	if (values.json) output.line(JSON.stringify(status));
	else for (const line of linesOf(status)) output.line(line);
	return exitCodes.ok.code;
}

function progressOf({ state, remaining }: MasterKeyStatus): string {
	return state === "settling"
		? "Everything is encrypted again; the old key is kept until what was under way is through."
		: `${remaining} secrets are still to be encrypted again.`;
}

function linesOf(status: MasterKeyStatus): string[] {
	const { keys, source, state, key_id, unreadable } = status;
	const rows = keys.map((key) => {
		const what =
			key.key_id === key_id
				? "encrypts"
				: !key.known
					? "is not known to this server: put it into OTARU_MASTER_KEY"
					: key.needed
						? "is still needed"
						: "is not needed: it may leave OTARU_MASTER_KEY, on every server";
		return [key.key_id, `${counted(key.secrets, "secret")}; ${what}`] as const;
	});
	return [
		columns(rows),
		...(unreadable > 0
			? [
					`${unreadable} secrets cannot be read; the server's log names them. Reset them.`,
				]
			: []),
		state === "idle"
			? `The keys come from the ${source}. No change is under way.`
			: `The keys come from the ${source}. ${progressOf(status)}`,
	];
}

function usage(message: string): CommandError {
	return new CommandError(message, "See otaru keys --help.", exitCodes.usage);
}

export const keys: Command = {
	summary: "change the master key that stored secrets are encrypted under",
	help,
	run,
};
