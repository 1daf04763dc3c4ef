/** `otaru tasks`: upgrade tasks in the terminal, above all to watch one until it ends. */
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { ApiFailure, type Client } from "../wire/client.ts";
import type { SubtaskEvent, TaskState, WatchEvent } from "../wire/history.ts";
import { otaTaskTypes, type Task, taskStatuses } from "../wire/tasks.ts";
import { type Command, refuseOtherOptions } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { untilInterrupted } from "./interrupt.ts";
import { bytesText, columns, Output } from "./output.ts";
import { openSession, serverHelp, serverOptions } from "./session.ts";

const help = `otaru tasks: look at upgrade tasks and watch them

Usage
  otaru tasks list [--status S] [--limit N] [--app-id ID] [--json] [server]
  otaru tasks show ID [--json] [server]
  otaru tasks watch ID [--json] [server]

  list    the newest tasks and how they stand
  show    one task, and its devices that have not succeeded
  watch   what happens in one task, until it ends. On a terminal it shows the progress
          and the failures; into a file or a pipe it writes a line for everything that
          happens. It goes on by itself when the connection breaks.

Options
  --status S           list: only tasks in this status: ${taskStatuses.join(", ")}
  --app-id ID          list: only tasks of this resource space
  --limit N            list: how many, 1 to 50 (20)
  --json               JSON; of watch, one event in a line

Server
${serverHelp}

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
  Watching ends with 0 when the task ends as Success, with 1 when it ends as
  PartialSuccess, Fail or Stopped, or is deleted, and with 130 after Ctrl-C.
`;

const options = {
	...serverOptions,
	"app-id": { type: "string" },
	status: { type: "string" },
	limit: { type: "string", default: "20" },
	json: { type: "boolean", default: false },
} as const;

async function run(args: string[]): Promise<number> {
	const { values, positionals, tokens } = parseArgs({
		args,
		options,
		allowPositionals: true,
		tokens: true,
	});
	const [action, id, ...rest] = positionals;
	const verb = checkedVerb(action, id, rest);
	refuseOtherOptions(
		tokens,
		[
			...Object.keys(serverOptions),
			...(verb === "list" ? ["status", "limit", "app-id", "json"] : ["json"]),
		],
		{ command: "tasks", verb },
	);
	const { client } = await openSession(values);
	switch (verb) {
		case "watch":
			return watch(client, id ?? "", values.json);
		case "show":
			return show(client, id ?? "", values.json);
		default:
			return list(client, values);
	}
}

type Values = ReturnType<
	typeof parseArgs<{ options: typeof options }>
>["values"];

/** The command line is judged before a server is looked for. */
function checkedVerb(
	action: string | undefined,
	id: string | undefined,
	rest: readonly string[],
): "list" | "show" | "watch" {
	if (action !== "list" && action !== "show" && action !== "watch")
		throw usage(
			action === undefined
				? "It is missing what to do: list, show or watch."
				: `"${action}" is nothing to do with tasks: list, show and watch are.`,
		);
	if (action !== "list" && id === undefined)
		throw usage(`The id of a task is missing: otaru tasks ${action} ID.`);
	const extra = action === "list" ? id : rest[0];
	if (extra !== undefined) throw usage(`"${extra}" is one word too many.`);
	return action;
}

// --- watch -----------------------------------------------------------------------

/** After a connection that broke: soon, then seldom. */
const WAITS_MS = [200, 1_000, 2_000, 5_000, 10_000] as const;

async function watch(
	client: Client,
	taskId: string,
	asJson: boolean,
): Promise<number> {
	const stop = untilInterrupted();
	const screen = new WatchScreen(asJson);
	let lastId: string | undefined;
	let failures = 0;
	while (!stop.signal.aborted) {
		try {
			const events = client.watch(
				{
					task_id: taskId,
					...(lastId === undefined ? {} : { last_event_id: lastId }),
				},
				{
					signal: stop.signal,
					onId: (id) => {
						lastId = id;
						failures = 0;
						screen.connected();
					},
				},
			);
			for await (const event of events) {
				screen.show(event);
				const code = endOf(event);
				if (code === undefined) continue;
				screen.end();
				return code;
			}
		} catch (error) {
			if (stop.signal.aborted) break;
			// The first call shows whether there is anything to watch.
			if (lastId === undefined) throw error;
			if (error instanceof ApiFailure && error.status < 500) {
				if (error.status !== 404) throw error;
				screen.gone();
				return exitCodes.failed.code;
			}
			failures++;
			screen.lost(error);
		}
		const waitMs = WAITS_MS[Math.min(failures, WAITS_MS.length - 1)];
		await pause(waitMs, undefined, { signal: stop.signal }).catch(() => {});
	}
	return exitCodes.interrupted.code;
}

/** The exit code that an event calls for; undefined: it goes on. */
function endOf(event: WatchEvent): number | undefined {
	if (event.type === "task_change")
		return event.data.kind === "task_deleted"
			? exitCodes.failed.code
			: undefined;
	if (event.type !== "task") return undefined;
	switch (event.data.status) {
		case "Success":
			return exitCodes.ok.code;
		case "PartialSuccess":
		case "Fail":
		case "Stopped":
			return exitCodes.failed.code;
		default:
			return undefined;
	}
}

class WatchScreen {
	readonly #asJson: boolean;
	readonly #out = new Output();
	#state: TaskState | undefined;
	#isLost = false;

	constructor(asJson: boolean) {
		this.#asJson = asJson;
	}

	show(event: WatchEvent): void {
		if (this.#asJson) {
			process.stdout.write(`${JSON.stringify(event)}\n`);
			return;
		}
		const out = this.#out;
		switch (event.type) {
			case "subtask": {
				const { kind, time, device_id } = event.data;
				const isBad = kind === "failed" || kind === "retry_scheduled";
				// A fleet's successes would push everything else off the screen.
				if (out.isTerminal && !isBad) return;
				const line = `${time}  ${device_id}  ${subtaskText(event.data)}`;
				out.line(isBad ? out.paint("red", line) : line);
				break;
			}
			case "task_change": {
				const { kind, time, detail } = event.data;
				if (kind === "task_deleted") this.gone();
				else if (!out.isTerminal && kind === "task_status")
					out.line(`${time}  the task is ${detail?.status ?? "changed"}`);
				break;
			}
			case "task": {
				const before = this.#state?.status;
				this.#state = event.data;
				// A pipe is told now and then how it goes, and at once what it has come to.
				if (!out.isTerminal && event.data.status !== before)
					out.settle(this.#lines(event.data));
				break;
			}
			case "reset":
				out.line("Something that happened in between is not known any more.");
				break;
			default:
				event satisfies never;
		}
		if (this.#state) out.live(this.#lines(this.#state));
	}

	end(): void {
		if (!this.#asJson && this.#state)
			this.#out.settle(this.#lines(this.#state));
	}

	gone(): void {
		if (!this.#asJson) this.#out.line("The task was deleted.");
	}

	lost(error: unknown): void {
		if (this.#isLost) return;
		this.#isLost = true;
		const cause =
			error instanceof Error && error.cause instanceof Error
				? error.cause
				: error;
		const why = cause instanceof Error ? cause.message : String(cause);
		process.stderr.write(`The connection is lost (${why}); trying again.\n`);
	}

	connected(): void {
		if (this.#isLost) process.stderr.write("The connection is back.\n");
		this.#isLost = false;
	}

	#lines(state: TaskState): string[] {
		const out = this.#out;
		const { total, success, fail, stopped, removed, ...open } =
			state.task_progress;
		const done = success + fail + stopped + removed;
		const parts = [
			`${state.task_name}: ${state.status}`,
			`${out.bar(done, total)}${out.isTerminal ? " " : ""}${done}/${total}`,
			`${success} succeeded`,
		];
		for (const [count, word, isBad] of [
			[fail, "failed", true],
			[open.fail_wait_retry, "to be tried again", true],
			[stopped, "stopped", false],
			[removed, "removed", false],
			[open.processing, "under way", false],
			[open.waitting, "waiting", false],
		] as const)
			if (count > 0) {
				const text = `${count} ${word}`;
				parts.push(isBad ? out.paint("red", text) : text);
			}
		const lines = [parts.join(out.paint("dim", " · "))];
		if (state.status_desc) lines.push(state.status_desc);
		return lines;
	}
}

function subtaskText({ kind, detail = {} }: SubtaskEvent): string {
	const reason = `${detail.error_code} ${detail.error_msg}`;
	switch (kind) {
		case "offered":
			return `offered ${detail.version}`;
		case "downloaded":
			return typeof detail.bytes === "number"
				? `downloaded ${bytesText(detail.bytes)}`
				: kind;
		case "succeeded":
			return `succeeded: ${detail.version}`;
		case "failed":
			return `failed: ${reason}`;
		case "retry_scheduled":
			return `failed: ${reason}; try ${detail.attempt} of ${detail.of} at ${detail.due_at}`;
		case "registered":
		case "deleted":
		case "connected":
		case "versions_reported":
		case "stopped":
		case "removed":
			return kind;
		default:
			return kind satisfies never;
	}
}

// --- list and show ---------------------------------------------------------------

async function list(
	client: Client,
	{ status, limit, json, "app-id": appId }: Values,
): Promise<number> {
	const wanted = taskStatuses.find((known) => known === status);
	if (status !== undefined && wanted === undefined)
		throw usage(`--status must be one of ${taskStatuses.join(", ")}.`);
	const count = /^\d+$/.test(limit) ? Number(limit) : 0;
	if (count < 1 || count > 50)
		throw usage(`--limit must be a whole number from 1 to 50, not "${limit}".`);
	const lists = await Promise.all(
		otaTaskTypes.map((task_type) =>
			client.listTasks({
				task_type,
				limit: count,
				...(appId === undefined ? {} : { app_id: appId }),
				...(wanted === undefined ? {} : { status: wanted }),
			}),
		),
	);
	const tasks = lists
		.flatMap(({ batchtasks }) => batchtasks)
		// The ids are in the order of creation.
		.sort((a, b) => (a.task_id < b.task_id ? 1 : -1))
		.slice(0, count);
	if (json)
		for (const task of tasks) process.stdout.write(`${JSON.stringify(task)}\n`);
	else if (tasks.length === 0) process.stdout.write("There are no tasks.\n");
	else
		process.stdout.write(
			`${columns(
				tasks.map((task) => [task.task_id, taskText(task)]),
				"",
			)}\n`,
		);
	return exitCodes.ok.code;
}

async function show(
	client: Client,
	taskId: string,
	asJson: boolean,
): Promise<number> {
	const { batchtask: task } = await client.getTask(taskId, { limit: 1 });
	const lists = await Promise.all(
		(["Fail", "FailWaitRetry"] as const).map((task_detail_status) =>
			client.getTask(taskId, { task_detail_status, limit: 50 }),
		),
	);
	const failed = lists.flatMap(({ task_details }) => task_details);
	if (asJson) {
		process.stdout.write(
			`${JSON.stringify({ ...task, failed_details: failed })}\n`,
		);
		return exitCodes.ok.code;
	}
	process.stdout.write(`${task.task_id}  ${taskText(task)}\n`);
	if (task.status_desc) process.stdout.write(`${task.status_desc}\n`);
	if (failed.length > 0)
		process.stdout.write(
			`${columns(
				failed.map(({ target, error }) => [
					target,
					`${error?.error_code} ${error?.error_msg}`,
				]),
			)}\n`,
		);
	return exitCodes.ok.code;
}

function taskText(task: Task): string {
	const { total, success, fail } = task.task_progress;
	return `${task.create_time}  ${task.status.padEnd(14)}  ${success}/${total} succeeded, ${fail} failed  ${task.task_name}`;
}

function usage(message: string): CommandError {
	return new CommandError(message, "See otaru tasks --help.", exitCodes.usage);
}

export const tasks: Command = {
	summary: "look at upgrade tasks, and watch one until it ends",
	help,
	run,
};
