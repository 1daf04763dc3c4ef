/** `otaru audit`: who did what on the server, and whether the record of it is whole. */
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { parseArgs } from "node:util";
import { type AuditRow, auditDecisions } from "../wire/audit.ts";
import type { Client } from "../wire/client.ts";
import { type Command, refuseOtherOptions } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { columns, counted, Output, tableLines } from "./output.ts";
import { openSession, serverHelp, serverOptions } from "./session.ts";

const help = `otaru audit: who did what, and whether the record of it is whole

Usage
  otaru audit list [filters] [--limit N] [--json] [server]
  otaru audit export [--from T] [--until T] [--after-seq N] [server]
  otaru audit verify [--expect SEQ:HASH] [--json] [server]

  list    the newest calls that wrote something or were refused
  export  all of them, oldest first, as lines of JSON on standard output; docs/audit.md
          says how to check such a file without the server
  verify  goes through the whole chain of rows, and prints where it ends: note that
          SEQ:HASH somewhere else, and expect it the next time

Filters of list
  --user NAME          who
  --user-id ID
  --credential ID      access key, token or password
  --action A           such as iotda:otapackages:delete
  --resource ID        what it was done to
  --address IP         from where
  --decision D         ${auditDecisions.join(" or ")}
  --status N           status of the answer
  --project ID         which project the call was for
  --app-id ID          which resource space
  --from T, --until T  time such as 20260129T080000Z; also of export

Options
  --limit N            list: how many, 1 to 1000 (20)
  --after-seq N        export: only rows behind this one
  --expect SEQ:HASH    verify: the chain must still contain this row
  --json               list, verify: JSON; of list, one row in a line

Server
${serverHelp}

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
  verify ends with 1 when a row was changed, removed or put in.
`;

const options = {
	...serverOptions,
	"app-id": { type: "string" },
	user: { type: "string" },
	"user-id": { type: "string" },
	credential: { type: "string" },
	action: { type: "string" },
	resource: { type: "string" },
	address: { type: "string" },
	decision: { type: "string" },
	status: { type: "string" },
	project: { type: "string" },
	from: { type: "string" },
	until: { type: "string" },
	limit: { type: "string", default: "20" },
	"after-seq": { type: "string" },
	expect: { type: "string" },
	json: { type: "boolean", default: false },
} as const;

type Values = ReturnType<
	typeof parseArgs<{ options: typeof options }>
>["values"];

interface Verb {
	options: readonly (keyof typeof options)[];
	run: (values: Values) => Promise<number>;
}

const verbs: Readonly<Record<string, Verb>> = {
	list: {
		options: [
			...(["user", "user-id", "credential", "action", "resource"] as const),
			...(["address", "decision", "status", "project", "app-id"] as const),
			...(["from", "until", "limit", "json"] as const),
		],
		run: list,
	},
	export: { options: ["from", "until", "after-seq"], run: exportRows },
	verify: { options: ["expect", "json"], run: verify },
};

async function run(args: string[]): Promise<number> {
	const { values, positionals, tokens } = parseArgs({
		args,
		options,
		allowPositionals: true,
		tokens: true,
	});
	const [action, ...rest] = positionals;
	if (action === undefined)
		throw usage("It is missing what to do: list, export or verify.");
	const verb = Object.hasOwn(verbs, action) ? verbs[action] : undefined;
	if (!verb)
		throw usage(
			`"${action}" is nothing to do with the audit trail: list, export and verify are.`,
		);
	if (rest[0] !== undefined) throw usage(`"${rest[0]}" is one word too many.`);
	refuseOtherOptions(tokens, [...Object.keys(serverOptions), ...verb.options], {
		command: "audit",
		verb: action,
	});
	return verb.run(values);
}

const PAGE = 50;

async function list(values: Values): Promise<number> {
	const count = /^\d+$/.test(values.limit) ? Number(values.limit) : 0;
	if (count < 1 || count > 1_000)
		throw usage(
			`--limit must be a whole number from 1 to 1000, not "${values.limit}".`,
		);
	const filter = filterOf(values);
	const { client } = await openSession(values, "account");
	const rows: AuditRow[] = [];
	let marker: string | undefined;
	do {
		// A page that is not full may have more behind it.
		const { audit, page } = await client.listAudit({
			...filter,
			limit: Math.min(PAGE, count - rows.length),
			...(marker === undefined ? {} : { marker }),
		});
		rows.push(...audit);
		marker = page.marker;
	} while (marker !== undefined && rows.length < count);
	const out = new Output();
	if (values.json)
		for (const row of rows) process.stdout.write(`${JSON.stringify(row)}\n`);
	else if (rows.length === 0) out.line("There are no such calls.");
	// Above the first row stand the headings.
	else
		for (const [index, line] of tableLines(rows.map(cellsOf)).entries())
			out.line(
				rows[index - 1]?.decision === "refused" ? out.paint("red", line) : line,
			);
	return exitCodes.ok.code;
}

function filterOf(
	values: Values,
): NonNullable<Parameters<Client["listAudit"]>[0]> {
	const decision = auditDecisions.find((known) => known === values.decision);
	if (values.decision !== undefined && decision === undefined)
		throw usage(`--decision must be ${auditDecisions.join(" or ")}.`);
	const given = {
		user_name: values.user,
		user_id: values["user-id"],
		credential: values.credential,
		action: values.action,
		resource: values.resource,
		address: values.address,
		decision,
		status: values.status,
		project_id: values.project,
		app_id: values["app-id"],
		start_time: values.from,
		end_time: values.until,
	};
	return Object.fromEntries(
		Object.entries(given).filter(([, value]) => value !== undefined),
	);
}

function cellsOf(row: AuditRow): Record<string, string> {
	return {
		SEQ: String(row.seq),
		TIME: row.at,
		ADDRESS: row.address,
		WHO: row.user_name ?? row.credential ?? "somebody",
		ACTION: row.action ?? `${row.method} ${row.path}`,
		RESOURCE: row.resource ?? "–",
		STATUS: String(row.status),
		REFUSED:
			row.decision === "refused"
				? (row.reason ?? row.error_code ?? "for no known reason")
				: "",
	};
}

async function exportRows(values: Values): Promise<number> {
	const { client } = await openSession(values, "account");
	const answer = await client.exportAudit({
		...(values.from === undefined ? {} : { start_time: values.from }),
		...(values.until === undefined ? {} : { end_time: values.until }),
		...(values["after-seq"] === undefined
			? {}
			: { after_seq: values["after-seq"] }),
	});
	if (answer.body)
		await pipeline(
			Readable.fromWeb(
				answer.body as Parameters<(typeof Readable)["fromWeb"]>[0],
			),
			process.stdout,
			{ end: false },
		);
	return exitCodes.ok.code;
}

async function verify(values: Values): Promise<number> {
	const expect = /^(\d{1,15}):([0-9a-f]{64})$/.exec(values.expect ?? "");
	if (values.expect !== undefined && !expect)
		throw usage("--expect must be SEQ:HASH, as an earlier verify printed it.");
	const { client } = await openSession(values, "account");
	const found = await client.verifyAudit(
		expect ? { seq: Number(expect[1]), hash: expect[2] as string } : undefined,
	);
	const out = new Output();
	if (values.json) process.stdout.write(`${JSON.stringify(found)}\n`);
	else {
		const { intact, rows, first_seq: first, head, fault } = found;
		if (intact)
			out.line(
				out.paint(
					"green",
					`The audit trail is intact: ${counted(rows, "row")} from ${first} on.`,
				),
			);
		else
			out.line(
				out.paint(
					"red",
					`The audit trail is not the one that was written: row ${fault?.seq}: ${fault?.what}.`,
				),
			);
		if (head) out.line(`head ${head.seq}:${head.hash}`);
	}
	return found.intact ? exitCodes.ok.code : exitCodes.failed.code;
}

function usage(message: string): CommandError {
	return new CommandError(message, "See otaru audit --help.", exitCodes.usage);
}

export const audit: Command = {
	summary: "who did what on the server, and whether the record of it is whole",
	help,
	run,
};
