/**
 * Who is connected, and to which node.
 *
 * Devices come and go by the thousand when a site's network does. What arrives within
 * one turn of the event loop is written in one transaction, the next one a moment after
 * that with whatever has gathered meanwhile: one commit per connection would let in a
 * tenth of the devices a second. A store that does not answer is tried again until it
 * does: a connection lasts for days, and must not be missing for days.
 *
 * A node proves that it lives by its heartbeat. When it stops, any other node takes
 * its devices off the list; should it come back, it finds itself gone and enters its
 * devices again.
 */
import { type RawBuilder, sql } from "kysely";
import {
	type Clock,
	type Db,
	inTransaction,
	rowsTable,
} from "../database/database.ts";
import { instant } from "../database/tables.ts";
import type { Events } from "../events.ts";
import { recordHistory } from "../history/history.ts";

const HEARTBEAT_MS = 10_000;
const SILENT_MS = 60_000;
/** Devices in one transaction: what the event loop is held for stays in the milliseconds. */
const BATCH = 500;
const RETRY_MS = 1_000;
/** From one write to the next. */
const GATHER_MS = 25;
/** A device that comes and goes all the time is in its timeline once in this time. */
const NOTED_AGAIN_MS = 10 * 60_000;

/** Whether a timeline tells of a connection; a clock that was ahead does not silence it. */
function isToBeNoted(devices: string): RawBuilder<unknown> {
	const notedAt = sql.ref(`${devices}.connection_noted_at`);
	return sql`(${notedAt} is null or ${notedAt} <= v.quiet_since or ${notedAt} > v.at)`;
}

export interface PresenceParts {
	db: Db;
	/** Keeps its value over a restart, so that what the last run left is recognised. */
	nodeId: string;
	now: Clock;
	events: Events;
	/**
	 * Called when a device has connected here while another node still lists a connection
	 * of it: a device has one connection, so that one must be told to hang up.
	 */
	onReplaced?: (deviceId: string, connectionId: string) => void;
}

/** What became of one device since the last write. */
interface Change {
	/** The connection to be entered; undefined when the device is gone again. */
	connectionId: string | undefined;
	/** Connections that ended; only rows that still name one of them are removed. */
	ended: string[];
	/** Came online at least once since; otherwise it only is entered again. */
	cameOnline: boolean;
	at: Date;
}

/** Those of the devices that are connected to another node. */
export async function findElsewhere(
	db: Db,
	nodeId: string,
	deviceIds: readonly string[],
): Promise<string[]> {
	const rows = await db
		.selectFrom("presence")
		.select("device_id")
		.where("device_id", "in", [...deviceIds])
		.where("node_id", "!=", nodeId)
		.execute();
	return rows.map(({ device_id }) => device_id);
}

/** Clears what an earlier run of this node left, and enters the node. */
export async function openPresence(parts: PresenceParts): Promise<Presence> {
	const presence = new Presence(parts);
	await presence.enterNode();
	return presence;
}

export class Presence implements AsyncDisposable {
	readonly #parts: PresenceParts;
	readonly #online = new Map<string, string>();
	#changes = new Map<string, Change>();
	#gathering = Promise.withResolvers<void>();
	#writing: Promise<void> | undefined;
	#scheduled = false;
	#startedWritingAt = Number.NEGATIVE_INFINITY;
	#closed = false;
	readonly #startedAt: Date;
	readonly #timer: NodeJS.Timeout;
	#beating: Promise<void> = Promise.resolve();

	constructor(parts: PresenceParts) {
		this.#parts = parts;
		this.#startedAt = parts.now();
		this.#timer = setInterval(() => {
			this.#beating = this.#beating.then(() => this.beat());
		}, HEARTBEAT_MS);
		this.#timer.unref();
	}

	/** Resolves when it is stored, or when presence is closed before. Never rejects. */
	online(deviceId: string, connectionId: string): Promise<void> {
		this.#online.set(deviceId, connectionId);
		const change = this.#change(deviceId);
		change.connectionId = connectionId;
		change.cameOnline = true;
		return this.#schedule();
	}

	/**
	 * The connection ended. Does nothing to a device whose newer connection is entered
	 * already, here or by another node. Resolves like `online`.
	 */
	offline(deviceId: string, connectionId: string): Promise<void> {
		if (this.#online.get(deviceId) === connectionId)
			this.#online.delete(deviceId);
		const change = this.#change(deviceId);
		if (change.connectionId === connectionId) change.connectionId = undefined;
		change.ended.push(connectionId);
		return this.#schedule();
	}

	/** Resolves when everything said so far is stored, or presence is closed. */
	async flush(): Promise<void> {
		if (this.#changes.size > 0) await this.#schedule();
		else await this.#writing;
	}

	/** Writes what is left, and takes the node and its devices off the list. */
	async close(): Promise<void> {
		if (this.#closed) return;
		this.#closed = true;
		clearInterval(this.#timer);
		await this.#beating;
		await this.#writing;
		try {
			await this.#writeUntilStored(this.#changes);
			await this.#removeNode(this.#parts.nodeId);
		} catch (error) {
			this.#failed(error);
		}
		this.#gathering.resolve();
	}

	[Symbol.asyncDispose](): Promise<void> {
		return this.close();
	}

	// --- batches ------------------------------------------------------------------------

	#change(deviceId: string): Change {
		let change = this.#changes.get(deviceId);
		if (!change) {
			change = {
				connectionId: undefined,
				ended: [],
				cameOnline: false,
				at: this.#parts.now(),
			};
			this.#changes.set(deviceId, change);
		}
		change.at = this.#parts.now();
		return change;
	}

	#schedule(): Promise<void> {
		if (!this.#scheduled && !this.#closed) {
			this.#scheduled = true;
			if (!this.#writing) this.#startSoon();
		}
		return this.#closed ? Promise.resolve() : this.#gathering.promise;
	}

	#startSoon(): void {
		if (!this.#scheduled) return;
		const waitMs = this.#startedWritingAt + GATHER_MS - performance.now();
		if (waitMs <= 0) setImmediate(() => this.#start());
		else setTimeout(() => this.#start(), waitMs);
	}

	#start(): void {
		if (this.#closed || !this.#scheduled) return;
		this.#scheduled = false;
		this.#startedWritingAt = performance.now();
		const changes = this.#changes;
		const gathered = this.#gathering;
		this.#changes = new Map();
		this.#gathering = Promise.withResolvers();
		this.#writing = this.#writeUntilStored(changes).then(() => {
			gathered.resolve();
			this.#writing = undefined;
			this.#startSoon();
		});
	}

	async #writeUntilStored(changes: Map<string, Change>): Promise<void> {
		while (changes.size > 0) {
			const batch = new Map([...changes].slice(0, BATCH));
			try {
				await this.#write(batch);
				for (const deviceId of batch.keys()) changes.delete(deviceId);
			} catch (error) {
				this.#failed(error);
				if (this.#closed) return;
				await new Promise((resolve) => setTimeout(resolve, RETRY_MS).unref());
			}
		}
	}

	#failed(error: unknown): void {
		this.#parts.events.happened(
			"presence_write_failures",
			{},
			{ err: error },
			"error",
		);
	}

	async #write(changes: Map<string, Change>): Promise<void> {
		const { db, nodeId, now, onReplaced } = this.#parts;
		// One order for all nodes, so that two that share devices do not wait for each other.
		const sorted = [...changes].sort(([a], [b]) => (a < b ? -1 : 1));
		const ended = sorted.flatMap(([device_id, change]) =>
			change.ended.map((connection_id) => ({
				device_id,
				connection_id,
				at: instant(change.at),
			})),
		);
		const entered = sorted.flatMap(([device_id, { connectionId, at }]) =>
			connectionId === undefined
				? []
				: [
						{
							device_id,
							connection_id: connectionId,
							at: instant(at),
						},
					],
		);
		const came = sorted.flatMap(([device_id, { cameOnline, at }]) =>
			cameOnline
				? [
						{
							device_id,
							at: instant(at),
							quiet_since: instant(new Date(at.getTime() - NOTED_AGAIN_MS)),
						},
					]
				: [],
		);
		const connections = {
			device_id: "text",
			connection_id: "text",
			at: "text",
		} as const;
		const replaced = await inTransaction(db, async (trx) => {
			if (ended.length > 0) {
				// Only who really was on the list went offline now.
				const { rows: removed } = await sql<{ device_id: string }>`
					delete from presence
					where (device_id, connection_id) in (
						select v.device_id, v.connection_id from ${rowsTable(trx, connections, ended)} as v
					)
					returning device_id
				`.execute(trx);
				const left = new Map(
					removed.map(({ device_id }) => [
						device_id,
						instant((changes.get(device_id) as Change).at),
					]),
				);
				for (const { device_id } of came) left.delete(device_id);
				if (left.size > 0) {
					const rows = [...left].map(([device_id, at]) => ({ device_id, at }));
					await sql`
						update devices set connection_status_at = v.at
						from ${rowsTable(trx, { device_id: "text", at: "text" }, rows)} as v
						where devices.device_id = v.device_id
					`.execute(trx);
				}
			}
			if (came.length > 0) {
				const comings = rowsTable(
					trx,
					{ device_id: "text", at: "text", quiet_since: "text" },
					came,
				);
				const { rows: noted } = await sql<{
					device_id: string;
					project_id: string;
					app_id: string;
				}>`
					select d.device_id, d.project_id, d.app_id
					from ${comings} as v join devices as d on d.device_id = v.device_id
					where ${isToBeNoted("d")}
				`.execute(trx);
				await sql`
					update devices set
						connection_status_at = v.at,
						active_at = coalesce(devices.active_at, v.at),
						connection_noted_at = case when ${isToBeNoted("devices")} then v.at else devices.connection_noted_at end
					from ${comings} as v
					where devices.device_id = v.device_id
				`.execute(trx);
				await recordHistory(
					trx,
					noted.map(({ device_id, project_id, app_id }) => ({
						projectId: project_id,
						spaceId: app_id,
						deviceId: device_id,
						kind: "connected",
					})),
					now(),
				);
			}
			if (entered.length === 0) return [];
			const rows = rowsTable(trx, connections, entered);
			const { rows: elsewhere } = await sql<{
				device_id: string;
				connection_id: string;
			}>`
				select p.device_id, p.connection_id
				from presence as p join ${rows} as v on v.device_id = p.device_id
				where p.node_id <> ${nodeId}
			`.execute(trx);
			const taken = new Set(elsewhere.map(({ device_id }) => device_id));
			const entering = entered.filter(
				({ device_id }) =>
					!taken.has(device_id) || changes.get(device_id)?.cameOnline,
			);
			// By way of devices: one that was deleted meanwhile must not fail the others.
			await sql`
				insert into presence (device_id, node_id, connection_id, connected_at)
				select d.device_id, ${nodeId}, v.connection_id, v.at
				from ${rowsTable(trx, connections, entering)} as v
				join devices as d on d.device_id = v.device_id
				where true
				on conflict (device_id) do update set
					node_id = excluded.node_id,
					connection_id = excluded.connection_id,
					connected_at = excluded.connected_at
			`.execute(trx);
			return elsewhere.filter(
				({ device_id }) => changes.get(device_id)?.cameOnline,
			);
		});
		for (const { device_id, connection_id } of replaced)
			onReplaced?.(device_id, connection_id);
	}

	// --- nodes --------------------------------------------------------------------------

	/** Enters this node; whatever is listed under its name is of an earlier run. */
	async enterNode(): Promise<void> {
		await this.#removeNode(this.#parts.nodeId);
		await this.#insertNode();
	}

	async #insertNode(): Promise<void> {
		const { db, nodeId, now } = this.#parts;
		const heartbeat_at = instant(now());
		await db
			.insertInto("nodes")
			.values({
				node_id: nodeId,
				started_at: instant(this.#startedAt),
				heartbeat_at,
			})
			.onConflict((conflict) =>
				conflict.column("node_id").doUpdateSet({ heartbeat_at }),
			)
			.execute();
	}

	/**
	 * Says that this node lives and clears up after nodes that do not; done by itself
	 * every ten seconds. Never rejects.
	 */
	async beat(): Promise<void> {
		const { db, nodeId, now, events } = this.#parts;
		try {
			const silentBefore = instant(new Date(now().getTime() - SILENT_MS));
			const { numUpdatedRows } = await db
				.updateTable("nodes")
				.set({ heartbeat_at: instant(now()) })
				.where("node_id", "=", nodeId)
				.where("heartbeat_at", ">=", silentBefore)
				.executeTakeFirst();
			if (numUpdatedRows === 0n) {
				// Stopped, or cut off from the store, for so long that others may have taken
				// this node for dead. From here on they see that it is not.
				await this.#insertNode();
				for (const [deviceId, connectionId] of this.#online) {
					// Not as newly come: a device that went to another node meanwhile stays there.
					this.#change(deviceId).connectionId ??= connectionId;
					void this.#schedule();
				}
			}
			const silent = await db
				.selectFrom("nodes")
				.select("node_id")
				.where("heartbeat_at", "<", silentBefore)
				.where("node_id", "!=", nodeId)
				.execute();
			for (const { node_id } of silent) {
				events.happened("silent_nodes_removed", {}, { node_id }, "warn");
				await this.#removeNode(node_id, silentBefore);
			}
		} catch (error) {
			this.#failed(error);
		}
	}

	/**
	 * Takes a node and its devices off the list, in pieces, since it may have had a
	 * hundred thousand.
	 *
	 * @param silentBefore stop as soon as the node shows a heartbeat from then or later.
	 */
	async #removeNode(nodeId: string, silentBefore?: string): Promise<void> {
		const { db, now } = this.#parts;
		const at = instant(now());
		for (let removed = BATCH; removed === BATCH; ) {
			removed = await inTransaction(db, async (trx) => {
				if (silentBefore !== undefined && !(await isSilent(trx))) return 0;
				const devices = trx
					.selectFrom("presence")
					.select("device_id")
					.where("node_id", "=", nodeId)
					.orderBy("device_id")
					.limit(BATCH);
				const { rows } = await sql<{ device_id: string }>`
					delete from presence
					where node_id = ${nodeId} and device_id in (${devices})
					returning device_id
				`.execute(trx);
				if (rows.length > 0) {
					await trx
						.updateTable("devices")
						.set({ connection_status_at: at })
						.where(
							"device_id",
							"in",
							rows.map(({ device_id }) => device_id),
						)
						.execute();
				}
				return rows.length;
			});
		}
		await db
			.deleteFrom("nodes")
			.where("node_id", "=", nodeId)
			.$if(silentBefore !== undefined, (query) =>
				query.where("heartbeat_at", "<", silentBefore ?? ""),
			)
			.execute();

		// Writes the row to hold it: the node's own heartbeat waits until this piece is
		// done, and what it enters afterwards is not removed any more.
		async function isSilent(trx: Db): Promise<boolean> {
			const { numUpdatedRows } = await trx
				.updateTable("nodes")
				.set((row) => ({ heartbeat_at: row.ref("heartbeat_at") }))
				.where("node_id", "=", nodeId)
				.where("heartbeat_at", "<", silentBefore ?? "")
				.executeTakeFirst();
			return numUpdatedRows > 0n;
		}
	}
}
