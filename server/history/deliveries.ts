/**
 * Remembers which packages were delivered to the last byte. The download does not wait
 * for it and never fails by it: what cannot be stored is logged and forgotten.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import { type Clock, type Db, rowsTable } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { logger } from "../log.ts";
import { notFlooding } from "./history.ts";

export interface Delivery {
	taskId: string;
	/** Of the subtask. */
	position: number;
	packageId: string;
	/** Of the whole package. */
	sizeBytes: number;
}

const log = logger("history");
/** In one statement. */
const BATCH = 200;
/** A store that does not answer while a fleet downloads must not fill the memory. */
const WAITING_LIMIT = 20_000;

export class Deliveries implements AsyncDisposable {
	readonly #db: Db;
	readonly #now: Clock;
	#waiting: Delivery[] = [];
	#writing: Promise<void> | undefined;

	constructor({ db, now }: { db: Db; now: Clock }) {
		this.#db = db;
		this.#now = now;
	}

	/** What comes in one turn is written together. */
	record(delivery: Delivery): void {
		if (this.#waiting.length >= WAITING_LIMIT) {
			log.error({ task_id: delivery.taskId }, "a delivery was not recorded");
			return;
		}
		this.#waiting.push(delivery);
		this.#writing ??= this.#write();
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await this.#writing;
	}

	async #write(): Promise<void> {
		await nextTurn();
		while (this.#waiting.length > 0) {
			const batch = this.#waiting.splice(0, BATCH);
			try {
				await recordDeliveries(this.#db, batch, this.#now());
			} catch (error) {
				log.error(
					{ err: error, deliveries: batch.length },
					"deliveries could not be recorded",
				);
			}
		}
		this.#writing = undefined;
	}
}

/**
 * A device that fetches a package again, with nothing in between, has one entry: many
 * begin anew when they have checked the file, or ask for the last piece twice.
 */
async function recordDeliveries(
	db: Db,
	deliveries: readonly Delivery[],
	now: Date,
): Promise<void> {
	const rows = new Map(
		deliveries.map(({ taskId, position, packageId, sizeBytes }) => [
			`${taskId}/${position}`,
			{
				task_id: taskId,
				position,
				// As JSON, since the store's own way to write one differs by engine.
				detail: JSON.stringify({ package_id: packageId, bytes: sizeBytes }),
			},
		]),
	);
	const columns = {
		task_id: "text",
		position: "integer",
		detail: "text",
	} as const;
	await sql`
		insert into history (project_id, app_id, device_id, task_id, kind, detail, at)
		select t.project_id, t.app_id, s.device_id, s.task_id, 'downloaded', v.detail, ${instant(now)}
		from ${rowsTable(db, columns, [...rows.values()])} as v
		join subtasks as s on s.task_id = v.task_id and s.position = v.position
		join upgrade_tasks as t on t.task_id = s.task_id
		where ${notFlooding(sql`s.device_id`, now)} and not exists (
			select 1 from (
				select last.kind, last.task_id, last.detail from history as last
				where last.device_id = s.device_id order by last.seq desc limit 1
			) as newest
			where newest.kind = 'downloaded' and newest.task_id = s.task_id and newest.detail = v.detail
		)`.execute(db);
}
