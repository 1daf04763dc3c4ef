/**
 * Works imports off: the lines of a file, some hundred in a transaction that also says
 * how far it came. A server that is killed goes on there, and registers nothing twice.
 */
import type { FileHandle } from "node:fs/promises";
import {
	setImmediate as nextTurn,
	setTimeout as pause,
} from "node:timers/promises";
import type { Updateable } from "kysely";
import type { RightsKeeper } from "../access/rights.ts";
import {
	type Clock,
	type Db,
	inTransaction,
	lockForUpdate,
} from "../database/database.ts";
import type { Signal } from "../database/signal.ts";
import { type DeviceImportRow, instant } from "../database/tables.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Sealed } from "../secrets/sealed.ts";
import { Overtaken, registerLines } from "./device-import.ts";
import { type FilePosition, LineSplitter } from "./import-file.ts";
import type { ImportJob } from "./import-jobs.ts";
import {
	type ImportLine,
	type LineRules,
	readHeader,
	readLine,
	UnusableHeader,
} from "./import-lines.ts";
import type { ImportSpool } from "./import-spool.ts";

const IMPORTS_AT_ONCE = 4;
/** In case a wake-up was lost. */
const LOOK_MS = 60_000;
const RETRY_MS = 1_000;
/**
 * Of one transaction. More would not be faster, and hold the event loop longer; a
 * thousand make the heap twice as large, since they outlive its young generation.
 */
const BATCH_LINES = 250;
const BATCH_BYTES = 256 * 1024;
/** Lines read between two turns of the event loop, should all of them be empty. */
const LINES_PER_TURN = 4_096;
/** Whoever gets so many wrong has sent the wrong file; the list of them must end somewhere. */
const REFUSALS_LIMIT = 1_000_000;
const REMOVED_AT_ONCE = 2_000;

const log = logger("imports");

export interface ImportWorkerParts {
	db: Db;
	signal: Signal;
	spool: ImportSpool;
	/** This process: it works off the files that it received. */
	nodeId: string;
	sealed: Sealed;
	rights: RightsKeeper;
	rules: LineRules;
	events: Events;
	now: Clock;
}

/** Tells the worker of every process that there is something to do. */
export function wakeImports(signal: Signal): void {
	signal.send(WAKE);
}
const WAKE = JSON.stringify({ wake: "imports" });

export class ImportWorker implements AsyncDisposable {
	readonly #parts: ImportWorkerParts;
	readonly #running = new Map<string, Promise<void>>();
	readonly #closing = new AbortController();
	#loop: Promise<void> = Promise.resolve();
	#wake: (() => void) | undefined;
	#woken = false;

	constructor(parts: ImportWorkerParts) {
		this.#parts = parts;
		parts.signal.onSignal((payload) => {
			if (payload === "" || payload === WAKE) this.#wakeUp();
		});
	}

	/** To be called while no file is being received: those that no import has are removed. */
	async tidyUp(): Promise<void> {
		const { db, spool, nodeId } = this.#parts;
		const unfinished = await db
			.selectFrom("device_imports")
			.select("import_id")
			.where("node_id", "=", nodeId)
			.where("status", "=", "Processing")
			.execute();
		await spool.removeAllBut(new Set(unfinished.map((row) => row.import_id)));
	}

	start(): void {
		this.#loop = this.#run();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closing.abort();
		this.#wakeUp();
		await this.#loop;
		await Promise.all(this.#running.values());
	}

	async #run(): Promise<void> {
		const { signal } = this.#closing;
		while (!signal.aborted) {
			this.#woken = false;
			try {
				await this.#takeUp();
			} catch (error) {
				// The store may be away for a while; what there is to do stays to be done.
				log.error({ err: error }, "could not look for imports");
				await pause(RETRY_MS, undefined, { signal }).catch(() => {});
				continue;
			}
			await this.#rest();
		}
	}

	async #takeUp(): Promise<void> {
		const { db, nodeId } = this.#parts;
		const jobs = await db
			.selectFrom("device_imports")
			.select("import_id")
			.where("node_id", "=", nodeId)
			.where((eb) =>
				eb.or([
					eb("status", "=", "Processing"),
					eb("deleted_at", "is not", null),
				]),
			)
			.orderBy("import_id")
			.limit(IMPORTS_AT_ONCE)
			.execute();
		for (const { import_id } of jobs) {
			if (this.#running.has(import_id)) continue;
			this.#running.set(
				import_id,
				this.#work(import_id).finally(() => {
					this.#running.delete(import_id);
					this.#wakeUp();
				}),
			);
		}
	}

	#rest(): Promise<void> {
		return new Promise((resolve) => {
			if (this.#woken || this.#closing.signal.aborted) {
				resolve();
				return;
			}
			const timer = setTimeout(resolve, LOOK_MS);
			this.#wake = () => {
				clearTimeout(timer);
				resolve();
			};
		});
	}

	#wakeUp(): void {
		this.#woken = true;
		this.#wake?.();
	}

	async #work(importId: string): Promise<void> {
		const { db, spool, events } = this.#parts;
		const { signal } = this.#closing;
		try {
			const job = await db
				.selectFrom("device_imports")
				.selectAll()
				.where("import_id", "=", importId)
				.executeTakeFirst();
			if (!job) return;
			if (job.deleted_at === null) {
				if (await this.#import(job)) await spool.remove(importId);
			} else {
				await spool.remove(importId);
				await removeRows(db, importId, signal);
			}
		} catch (error) {
			// Where it stands is stored, so it goes on there when the store is back.
			log.error(
				{ err: error, import_id: importId },
				"an import could not go on; it is tried again",
			);
			events.happened("device_import_faltered");
			await pause(RETRY_MS, undefined, { signal }).catch(() => {});
		}
	}

	/** @returns whether the import is over; else this process is. */
	async #import(job: ImportJob): Promise<boolean> {
		const { spool } = this.#parts;
		const file = await spool.open(job.import_id);
		if (!file) {
			await this.#end(job, "The file is not on the server any more.");
			return true;
		}
		try {
			const reader = new BatchReader(file, job, this.#parts.rules);
			let from = { bytes: job.done_bytes, lines: job.done_lines };
			while (!this.#closing.signal.aborted) {
				const batch = await reader.next();
				await nextTurn();
				if (await this.#register(job, from, batch)) return true;
				from = batch.position;
			}
			return false;
		} catch (error) {
			if (!(error instanceof UnusableHeader)) throw error;
			await this.#end(job, error.message);
			return true;
		} finally {
			await file.close();
		}
	}

	/** @returns whether the import is over. */
	async #register(
		job: ImportJob,
		from: FilePosition,
		batch: Batch,
	): Promise<boolean> {
		const { db, sealed, rights, now } = this.#parts;
		// Anew for each batch: what is taken from the sender meanwhile ends what is left.
		const scope = await rights.keptScope(job.scope, now());
		for (;;) {
			try {
				const ended = await inTransaction(db, async (trx) => {
					const held = await holdUnfinished(trx, job.import_id);
					if (!held) return "deleted";
					if (held.done_bytes !== from.bytes)
						throw new Error("Somebody else works on this import.");
					const at = now();
					const counts = await registerLines(
						trx,
						{ importId: job.import_id, scope, spaceId: job.app_id },
						batch.lines,
						sealed,
						at,
					);
					const after = {
						created: held.created + counts.created,
						unchanged: held.unchanged + counts.unchanged,
						refused: held.refused + counts.refused,
					};
					const end = endOf(batch, after);
					await change(trx, job.import_id, {
						...after,
						done_bytes: batch.position.bytes,
						done_lines: batch.position.lines,
						header:
							batch.header === undefined ? null : JSON.stringify(batch.header),
						...(end && { ...end, finished_at: instant(at) }),
					});
					return end;
				});
				if (typeof ended === "object") this.#ended(job, ended);
				return ended !== undefined;
			} catch (error) {
				if (!(error instanceof Overtaken)) throw error;
			}
		}
	}

	/** Nothing of the file can be used any more. */
	async #end(job: ImportJob, reason: string): Promise<void> {
		const { db, now } = this.#parts;
		const end = { status: "Fail", status_desc: reason } as const;
		await inTransaction(db, async (trx) => {
			if (!(await holdUnfinished(trx, job.import_id))) return;
			await change(trx, job.import_id, {
				...end,
				finished_at: instant(now()),
			});
		});
		this.#ended(job, end);
	}

	#ended(job: ImportJob, end: End): void {
		this.#parts.events.happened(
			"device_import_ended",
			{ status: end.status },
			{ import_id: job.import_id, reason: end.status_desc },
			"info",
		);
	}
}

interface Batch {
	lines: ImportLine[];
	/** After its lines. */
	position: FilePosition;
	header: readonly string[] | undefined;
	/** The file has no more. */
	last: boolean;
}

/** Takes the lines out of the file, in batches for a transaction each. */
class BatchReader {
	readonly #file: FileHandle;
	readonly #splitter: LineSplitter;
	readonly #rules: LineRules;
	readonly #isCsv: boolean;
	#readBytes: number;
	#atEnd = false;
	#header: readonly string[] | undefined;

	constructor(file: FileHandle, job: ImportJob, rules: LineRules) {
		this.#file = file;
		this.#rules = rules;
		this.#isCsv = job.format === "csv";
		this.#readBytes = job.done_bytes;
		this.#header =
			job.header === null ? undefined : (JSON.parse(job.header) as string[]);
		this.#splitter = new LineSplitter(job.format, {
			bytes: job.done_bytes,
			lines: job.done_lines,
		});
	}

	/** @throws UnusableHeader */
	async next(): Promise<Batch> {
		const lines: ImportLine[] = [];
		const start = this.#splitter.position.bytes;
		let last = false;
		for (let seen = 1; lines.length < BATCH_LINES; seen++) {
			if (seen % LINES_PER_TURN === 0) await nextTurn();
			const piece = this.#splitter.next();
			if (!piece) {
				last = this.#atEnd;
				if (last) break;
				await this.#fill();
				continue;
			}
			if (this.#isCsv && this.#header === undefined) {
				this.#header = readHeader(piece);
				continue;
			}
			const line = readLine(piece, this.#header, this.#rules);
			if (line) lines.push(line);
			if (this.#splitter.position.bytes - start >= BATCH_BYTES) break;
		}
		if (last && this.#isCsv && this.#header === undefined)
			throw new UnusableHeader(
				"The first line must name the columns: the file is empty.",
			);
		return {
			lines,
			position: this.#splitter.position,
			header: this.#header,
			last,
		};
	}

	async #fill(): Promise<void> {
		const room = this.#splitter.room();
		const { bytesRead } = await this.#file.read(
			room,
			0,
			room.length,
			this.#readBytes,
		);
		this.#readBytes += bytesRead;
		this.#atEnd = bytesRead === 0;
		this.#splitter.filled(bytesRead);
	}
}

type End = Pick<ImportJob, "status" | "status_desc">;

function endOf(
	batch: Batch,
	counts: Pick<ImportJob, "created" | "unchanged" | "refused">,
): End | undefined {
	const { created, unchanged, refused } = counts;
	const tooMany = refused >= REFUSALS_LIMIT && !batch.last;
	if (!batch.last && !tooMany) return undefined;
	const taken = created + unchanged > 0;
	return {
		status: refused === 0 ? "Success" : taken ? "PartialSuccess" : "Fail",
		status_desc: tooMany
			? `Given up after line ${batch.position.lines}: ${refused} lines were refused.`
			: refused > 0 && !taken
				? "Every line was refused."
				: null,
	};
}

function holdUnfinished(
	trx: Db,
	importId: string,
): Promise<ImportJob | undefined> {
	return lockForUpdate(
		trx,
		trx
			.selectFrom("device_imports")
			.selectAll()
			.where("import_id", "=", importId)
			.where("status", "=", "Processing")
			.where("deleted_at", "is", null),
	).executeTakeFirst();
}

async function change(
	trx: Db,
	importId: string,
	columns: Updateable<DeviceImportRow>,
): Promise<void> {
	await trx
		.updateTable("device_imports")
		.set(columns)
		.where("import_id", "=", importId)
		.execute();
}

/** The row of the import goes last: until then it is taken up again. */
async function removeRows(
	db: Db,
	importId: string,
	signal: AbortSignal,
): Promise<void> {
	for (;;) {
		if (signal.aborted) return;
		const { numDeletedRows } = await db
			.deleteFrom("device_import_refusals")
			.where("import_id", "=", importId)
			.where("line", "<=", (eb) =>
				eb
					.selectFrom(
						eb
							.selectFrom("device_import_refusals")
							.select("line")
							.where("import_id", "=", importId)
							.orderBy("line")
							.limit(REMOVED_AT_ONCE)
							.as("some"),
					)
					.select((max) => max.fn.max("some.line").as("line")),
			)
			.executeTakeFirst();
		if (numDeletedRows === 0n) break;
		await nextTurn();
	}
	await db
		.deleteFrom("device_imports")
		.where("import_id", "=", importId)
		.execute();
}
