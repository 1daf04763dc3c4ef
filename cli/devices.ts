/** `otaru devices`: registers the devices of a file, and writes all devices into one. */
import { createHash } from "node:crypto";
import { createReadStream, createWriteStream, existsSync } from "node:fs";
import { rename, rm, stat } from "node:fs/promises";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { ApiFailure, type Client } from "../wire/client.ts";
import type {
	DeviceImport,
	ImportFormat,
	ImportRefusal,
} from "../wire/device-imports.ts";
import { type Command, refuseOtherOptions } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { untilInterrupted } from "./interrupt.ts";
import { bytesText, columns, counted, Output } from "./output.ts";
import { openSession, serverHelp, serverOptions } from "./session.ts";

const help = `otaru devices: register many devices from a file, and write devices into one

Usage
  otaru devices import FILE [--format F] [--app-id ID] [--refusals FILE] [--json] [server]
  otaru devices refusals IMPORT_ID [FILE] [--format F] [server]
  otaru devices export [FILE] [--format F] [--app-id ID] [--product ID] [server]

  import    registers every line of FILE (- for standard input). What is there already
            stays as it is, so a file can be imported again.
  refusals  the lines that an import refused, and why
  export    all devices, in a form that import takes. Secrets are not in it.

Options
  --format F           csv or ndjson (as the name of FILE ends)
  --app-id ID          import: the resource space of lines that name none (the default one)
                       export: only this one, and not named in the lines
  --product ID         export: only the devices of this product
  --refusals FILE      import: where to write the refused lines, if there are any
  --json               import: the outcome as JSON

Server
${serverHelp}

Example
  otaru devices import factory-batch-7.csv --refusals refused.csv

The columns of a file are described in docs/importing-devices.md.

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
  An import ends with 0 when no line was refused, else with 1. Ctrl-C ends the upload, but
  not the work of a server that has the whole file.
`;

const options = {
	...serverOptions,
	"app-id": { type: "string" },
	format: { type: "string" },
	product: { type: "string" },
	refusals: { type: "string" },
	json: { type: "boolean", default: false },
} as const;

type Values = ReturnType<
	typeof parseArgs<{ options: typeof options }>
>["values"];

const optionsOf: Readonly<Record<string, readonly (keyof typeof options)[]>> = {
	import: ["format", "app-id", "refusals", "json"],
	refusals: ["format"],
	export: ["format", "app-id", "product"],
};

async function run(args: string[]): Promise<number> {
	const { values, positionals, tokens } = parseArgs({
		args,
		options,
		allowPositionals: true,
		tokens: true,
	});
	const [action, ...names] = positionals;
	if (action !== undefined && Object.hasOwn(optionsOf, action))
		refuseOtherOptions(
			tokens,
			[...Object.keys(serverOptions), ...(optionsOf[action] ?? [])],
			{ command: "devices", verb: action },
		);
	switch (action) {
		case "import":
			return importFile(oneOf(names, 1, "import FILE"), values);
		case "refusals":
			return saveRefusals(
				oneOf(names, 2, "refusals IMPORT_ID [FILE]"),
				names[1],
				values,
			);
		case "export":
			if (names.length > 1) throw usage(`"${names[1]}" is one word too many.`);
			return exportFile(names[0], values);
		default:
			throw usage(
				action === undefined
					? "It is missing what to do: import, refusals or export."
					: `"${action}" is nothing to do with devices: import, refusals and export are.`,
			);
	}
}

function oneOf(names: readonly string[], most: number, form: string): string {
	const [first] = names;
	if (first === undefined)
		throw usage(`Something is missing: otaru devices ${form}.`);
	if (names.length > most)
		throw usage(`"${names[most]}" is one word too many.`);
	return first;
}

// --- import ------------------------------------------------------------------------

const POLL_MS = 300;
/** A server that is started again is waited for. */
const PATIENCE_MS = 300_000;
const SHOWN_REFUSALS = 10;

async function importFile(file: string, values: Values): Promise<number> {
	const format = formatOf(values.format, file);
	if (format === undefined)
		throw usage(`--format is missing: "${file}" does not tell what it is.`);
	if (file !== "-" && !existsSync(file))
		throw usage(`There is no file ${file}.`);
	const { client } = await openSession(values);
	const out = new Output(process.stderr);
	const stop = untilInterrupted();
	const accepted = await upload(client, file, format, values, out, stop.signal);
	if (!accepted) return exitCodes.interrupted.code;
	const job = await watch(client, accepted, out, stop.signal);
	if (job.status === "Processing") {
		out.line(
			`The server goes on with the import ${job.import_id}; otaru devices refusals ${job.import_id} lists what it refuses.`,
		);
		return exitCodes.interrupted.code;
	}
	process.stdout.write(
		values.json ? `${JSON.stringify(job)}\n` : `${summary(job)}\n`,
	);
	if (job.status === "Success") return exitCodes.ok.code;
	if (job.refused > 0)
		await tellRefusals(client, job, values.refusals, out, stop.signal);
	return exitCodes.failed.code;
}

/** Undefined: interrupted. */
async function upload(
	client: Client,
	file: string,
	format: ImportFormat,
	values: Values,
	out: Output,
	signal: AbortSignal,
): Promise<DeviceImport | undefined> {
	try {
		// What comes through a pipe cannot be read twice, so it is not signed.
		const sha256 = file === "-" ? undefined : await hashOf(file, signal);
		const totalBytes = file === "-" ? undefined : (await stat(file)).size;
		let sentBytes = 0;
		const source = file === "-" ? process.stdin : createReadStream(file);
		const show = nowAndThen(out);
		// fetch goes on reading after it was stopped.
		signal.addEventListener("abort", () => source.destroy());
		const body = Readable.from(
			(async function* () {
				for await (const chunk of source) {
					sentBytes += chunk.length;
					show(() => uploadLine(out, sentBytes, totalBytes));
					yield chunk;
				}
			})(),
			{ objectMode: false },
		);
		return await client.importDevices(
			Readable.toWeb(body) as ReadableStream<Uint8Array>,
			{
				format,
				appId: values["app-id"],
				signal,
				...(sha256 === undefined ? {} : { sha256 }),
			},
		);
	} catch (error) {
		if (signal.aborted) return undefined;
		throw error;
	}
}

async function hashOf(file: string, signal: AbortSignal): Promise<string> {
	const hash = createHash("sha256");
	for await (const chunk of createReadStream(file, { signal }))
		hash.update(chunk);
	return hash.digest("hex");
}

function uploadLine(
	out: Output,
	sentBytes: number,
	totalBytes: number | undefined,
): string {
	const sent = `sending ${bytesText(sentBytes)}`;
	return totalBytes === undefined
		? sent
		: `${sent} of ${bytesText(totalBytes)} ${out.bar(sentBytes, totalBytes)}`;
}

/** Until the import ends, or its watcher is interrupted. */
async function watch(
	client: Client,
	accepted: DeviceImport,
	out: Output,
	signal: AbortSignal,
): Promise<DeviceImport> {
	let job = accepted;
	let heardMs = Date.now();
	let isLost = false;
	while (job.status === "Processing" && !signal.aborted) {
		out.live([progressLine(out, job)]);
		await pause(POLL_MS, undefined, { signal }).catch(() => {});
		try {
			job = await client.getDeviceImport(job.import_id);
			heardMs = Date.now();
			if (isLost) out.line("The connection is back.");
			isLost = false;
		} catch (error) {
			if (error instanceof ApiFailure && error.status === 404)
				throw new CommandError(
					`The import ${job.import_id} was deleted.`,
					"What it has registered until then is there; import the file again for the rest.",
					exitCodes.failed,
				);
			const mayPass = !(error instanceof ApiFailure) || error.status >= 500;
			if (!mayPass || Date.now() - heardMs > PATIENCE_MS) throw error;
			if (!isLost) out.line("The connection is lost; trying again.");
			isLost = true;
		}
	}
	out.settle([progressLine(out, job)]);
	return job;
}

function progressLine(out: Output, job: DeviceImport): string {
	const { done_bytes, total_bytes, created, unchanged, refused } = job;
	const percent =
		total_bytes === 0 ? 100 : Math.floor((done_bytes / total_bytes) * 100);
	const parts = [
		`${out.bar(done_bytes, total_bytes)}${out.isTerminal ? " " : ""}${percent} %`,
		`${created.toLocaleString("en-GB")} registered`,
	];
	if (unchanged > 0)
		parts.push(`${unchanged.toLocaleString("en-GB")} there already`);
	if (refused > 0)
		parts.push(out.paint("red", `${refused.toLocaleString("en-GB")} refused`));
	return parts.join(out.paint("dim", " · "));
}

function summary(job: DeviceImport): string {
	const lines = columns([
		["import", job.import_id],
		["status", job.status],
		["registered", String(job.created)],
		["there already", String(job.unchanged)],
		["refused", String(job.refused)],
	]);
	return job.status_desc === undefined ? lines : `${lines}\n${job.status_desc}`;
}

async function tellRefusals(
	client: Client,
	job: DeviceImport,
	file: string | undefined,
	out: Output,
	signal: AbortSignal,
): Promise<void> {
	if (file !== undefined) {
		const answer = await client.getImportRefusals(job.import_id, {
			format: formatOf(undefined, file) ?? job.format,
		});
		await save(answer, file, signal);
		out.line(`${counted(job.refused, "refused line")}: ${file}`);
		return;
	}
	for await (const { line, device_id, error_msg } of firstRefusals(client, job))
		out.line(
			`line ${line}${device_id === undefined ? "" : ` (${device_id})`}: ${error_msg}`,
		);
	if (job.refused > SHOWN_REFUSALS)
		out.line(
			`… and ${counted(job.refused - SHOWN_REFUSALS, "more refused line")}: otaru devices refusals ${job.import_id} FILE`,
		);
}

async function* firstRefusals(
	client: Client,
	job: DeviceImport,
): AsyncGenerator<ImportRefusal> {
	const answer = await client.getImportRefusals(job.import_id, {
		format: "ndjson",
	});
	if (!answer.body) return;
	let rest = "";
	let shown = 0;
	for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
		const lines = (rest + text).split("\n");
		rest = lines.pop() ?? "";
		for (const line of lines) {
			yield JSON.parse(line) as ImportRefusal;
			// Leaving ends the download.
			if (++shown === SHOWN_REFUSALS) return;
		}
	}
}

// --- what is downloaded ----------------------------------------------------------------

async function saveRefusals(
	importId: string,
	file: string | undefined,
	values: Values,
): Promise<number> {
	const format = formatOf(values.format, file);
	const { client } = await openSession(values);
	const answer = await client.getImportRefusals(
		importId,
		format === undefined ? {} : { format },
	);
	return save(answer, file, untilInterrupted().signal);
}

async function exportFile(
	file: string | undefined,
	values: Values,
): Promise<number> {
	const format = formatOf(values.format, file) ?? "csv";
	const { client } = await openSession(values);
	const answer = await client.exportDevices({
		format,
		...(values["app-id"] === undefined ? {} : { app_id: values["app-id"] }),
		...(values.product === undefined ? {} : { product_id: values.product }),
	});
	return save(answer, file, untilInterrupted().signal);
}

/** Whole, or not at all. @returns the exit code */
async function save(
	answer: Response,
	file: string | undefined,
	signal: AbortSignal,
): Promise<number> {
	const toFile = file !== undefined && file !== "-";
	const draft = `${file}.part`;
	let receivedBytes = 0;
	const out = new Output(process.stderr);
	const show = nowAndThen(out);
	try {
		await pipeline(
			async function* () {
				for await (const chunk of answer.body ?? []) {
					receivedBytes += chunk.length;
					if (toFile) show(() => `receiving ${bytesText(receivedBytes)}`);
					yield chunk;
				}
			},
			toFile ? createWriteStream(draft) : process.stdout,
			{ signal, end: toFile },
		);
		if (toFile) {
			await rename(draft, file);
			out.settle([`${file}: ${bytesText(receivedBytes)}`]);
		}
		return exitCodes.ok.code;
	} catch (error) {
		if (toFile) await rm(draft, { force: true });
		if (signal.aborted) return exitCodes.interrupted.code;
		// What fetch throws when the other side hangs up in the middle.
		if (error instanceof TypeError)
			throw new CommandError(
				`The connection ended after ${bytesText(receivedBytes)}, before all was there.`,
				toFile ? `${file} was not written; try again.` : "Try again.",
				exitCodes.server,
			);
		throw error;
	}
}

/** A gigabyte comes in thousands of pieces; nobody reads that fast. */
function nowAndThen(out: Output): (line: () => string) => void {
	let shownMs = 0;
	return (line) => {
		if (Date.now() - shownMs < 100) return;
		shownMs = Date.now();
		out.live([line()]);
	};
}

/** As said, else as the name of the file ends; undefined: neither tells. */
function formatOf(
	said: string | undefined,
	file: string | undefined,
): ImportFormat | undefined {
	if (said === "csv" || said === "ndjson") return said;
	if (said !== undefined)
		throw usage(`--format must be csv or ndjson, not "${said}".`);
	if (/\.csv$/i.test(file ?? "")) return "csv";
	return /\.(ndjson|jsonl)$/i.test(file ?? "") ? "ndjson" : undefined;
}

function usage(message: string): CommandError {
	return new CommandError(
		message,
		"See otaru devices --help.",
		exitCodes.usage,
	);
}

export const devices: Command = {
	summary: "register the devices of a file, and write devices into one",
	help,
	run,
};
