/** What a command is told beside its command line: files, standard input, and whoever sits at the terminal. */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import { CommandError, exitCodes } from "./errors.ts";

/**
 * @param file `-`: standard input
 * @param name of the option or word that names it
 * @throws CommandError
 */
export function readInput(file: string, name: string): string {
	try {
		return readFileSync(file === "-" ? 0 : file, "utf8");
	} catch (error) {
		throw new CommandError(
			`${name} cannot be read: ${error instanceof Error ? error.message : error}.`,
			"Name a file that this user may read, or - for standard input.",
			exitCodes.usage,
		);
	}
}

/** The only line of a file. An editor ends it; that is no part of the password. */
export function readPassword(file: string, option: string): string {
	return readInput(file, option).replace(/\r?\n$/, "");
}

/** Whether somebody sits there who can be asked. */
export function canAsk(): boolean {
	return process.stdin.isTTY === true && process.stderr.isTTY === true;
}

/** What is needed of a terminal to read from it without echo. */
export interface HiddenInput extends NodeJS.ReadableStream {
	setRawMode(raw: boolean): unknown;
}

/**
 * Asks for something that must not show on the screen.
 *
 * @throws CommandError after Ctrl-C
 */
export async function askHidden(
	question: string,
	input: HiddenInput = process.stdin,
	output: NodeJS.WritableStream = process.stderr,
): Promise<string> {
	output.write(question);
	input.setRawMode(true);
	input.setEncoding("utf8");
	try {
		return await new Promise<string>((resolve, reject) => {
			const typed: string[] = [];
			const onData = (chunk: string | Buffer) => {
				const signs = [...String(chunk)];
				for (const [index, sign] of signs.entries()) {
					if (sign === "\r" || sign === "\n" || sign === "\u0004") {
						input.off("data", onData);
						input.pause();
						// What was pasted behind it answers the next question.
						const rest = signs.slice(index + 1).join("");
						if (rest !== "") input.unshift(rest);
						return resolve(typed.join(""));
					}
					if (sign === "\u0003") {
						input.off("data", onData);
						input.pause();
						return reject(
							new CommandError(
								"Interrupted.",
								"Nothing was done.",
								exitCodes.interrupted,
							),
						);
					}
					if (sign === "\u007F" || sign === "\b") typed.pop();
					else if (sign >= " ") typed.push(sign);
				}
			};
			input.on("data", onData);
			input.resume();
		});
	} finally {
		input.setRawMode(false);
		output.write("\n");
	}
}

/**
 * Warns of what may lock the caller out, and on a terminal asks whether he means it.
 *
 * @param isSure no question
 * @throws CommandError when he does not
 */
export async function confirm(warning: string, isSure: boolean): Promise<void> {
	process.stderr.write(`${warning}\n`);
	if (isSure || !canAsk()) return;
	const terminal = createInterface({
		input: process.stdin,
		output: process.stderr,
	});
	try {
		const answer = await terminal.question("Go on? (yes or no) ");
		if (/^\s*y(es)?\s*$/i.test(answer)) return;
	} finally {
		terminal.close();
	}
	throw new CommandError(
		"Nothing was done.",
		"With --yes there is no question.",
		exitCodes.failed,
	);
}
