/**
 * Devices behind a gateway: what the gateway is to know of them, and what it says of them.
 *
 * A gateway's list of children has a version that counts its changes. A child carries the
 * version that added it; one that is deleted leaves a row with the version that took it
 * off. So a gateway that knows version n is told what came after n, and one of 50,000
 * children is not told all of them whenever it reconnects. Whoever registers children by
 * the thousand leaves them without a version: they are numbered when the gateway is told
 * of anything next.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import {
	type Db,
	inTransaction,
	listTable,
	lockForUpdate,
	rowsTable,
} from "../database/database.ts";
import { instant } from "../database/tables.ts";
import { recordHistory } from "../history/history.ts";

/** Among the devices behind this one, something has changed after that version of its list. */
export interface ChildChange {
	linkId: string;
	after: number;
}

export type ChildStatus = "ONLINE" | "OFFLINE";

export interface Child {
	deviceId: string;
	nodeId: string;
	/** The device it hangs on: the gateway, or another child. */
	parentId: string;
	name: string | null;
	description: string | null;
	productId: string;
	firmware: string | null;
	software: string | null;
	/** Null: nothing was ever said about it. */
	reportedStatus: ChildStatus | null;
	/** JSON. */
	extensionInfo: string | null;
}

export type ListChange =
	| { kind: "added"; version: number; child: Child }
	| {
			kind: "deleted";
			version: number;
			child: Pick<Child, "deviceId" | "nodeId" | "parentId">;
	  };

/** What some device SDKs take in one message, and so what shares a version. */
export const CHILDREN_PER_VERSION = 10;
/** Sorts after every record id, which are hexadecimal. */
const AFTER_ALL = "g";
/** Rows of one statement: they hold the event loop for a few milliseconds. */
const CHUNK = 200;
/** A child that comes and goes all the time is in its timeline once in this time. */
const NOTED_AGAIN_MS = 10 * 60_000;
/** Deletions older than so many changes are not told any more. */
const DELETIONS_KEPT = 50_000;

/**
 * One more change among the children: returns the version it makes, or undefined when
 * the gateway is gone. Holds the gateway, so its changes come one after the other.
 */
export async function countChange(
	trx: Db,
	linkId: string,
): Promise<number | undefined> {
	const gateway = await trx
		.updateTable("devices")
		.set((eb) => ({ children_version: eb("children_version", "+", 1) }))
		.where("device_id", "=", linkId)
		.returning("children_version")
		.executeTakeFirst();
	return gateway?.children_version;
}

/** Remembers a child that is about to be deleted, if its gateway may know of it. */
export async function rememberDeletion(
	trx: Db,
	child: {
		device_id: string;
		node_id: string;
		gateway_id: string;
		link_id: string;
		link_version: number | null;
	},
	version: number,
): Promise<void> {
	if (child.link_version === null) return;
	await trx
		.insertInto("deleted_children")
		.values({
			link_id: child.link_id,
			version,
			device_id: child.device_id,
			node_id: child.node_id,
			parent_device_id: child.gateway_id,
		})
		.execute();
	await forgetDeletions(trx, child.link_id, version - DELETIONS_KEPT);
}

/** Deletions up to this version are known to the gateway. */
export async function forgetDeletions(
	db: Db,
	linkId: string,
	upTo: number,
): Promise<void> {
	await db
		.deleteFrom("deleted_children")
		.where("link_id", "=", linkId)
		.where("version", "<=", upTo)
		.execute();
}

/** The version of the gateway's list; 0 when it never had a child, or does not exist. */
export async function listVersion(db: Db, linkId: string): Promise<number> {
	const gateway = await db
		.selectFrom("devices")
		.select("children_version")
		.where("device_id", "=", linkId)
		.executeTakeFirst();
	return gateway?.children_version ?? 0;
}

/**
 * The gateway holds a list of a version that was never given to it, such as that of the
 * cloud it comes from, and may refuse lower ones: its list goes on from there, and all
 * its children are to be told anew.
 */
export async function beginListAfter(
	db: Db,
	linkId: string,
	version: number,
): Promise<void> {
	await inTransaction(db, async (trx) => {
		await trx
			.updateTable("devices")
			.set({ children_version: version })
			.where("device_id", "=", linkId)
			.where("children_version", "<", version)
			.execute();
		await forgetDeletions(trx, linkId, version);
	});
	for (let reset = CHUNK; reset === CHUNK; await nextTurn()) {
		const { numUpdatedRows } = await db
			.updateTable("devices")
			.set({ link_version: null })
			.where("device_id", "in", (eb) =>
				eb
					.selectFrom("devices as child")
					.select("child.device_id")
					.where("child.link_id", "=", linkId)
					.where("child.depth", ">", sql.lit(0))
					.where("child.link_version", "<=", version)
					.limit(CHUNK),
			)
			.executeTakeFirst();
		reset = Number(numUpdatedRows);
	}
}

/** Gives versions to the children that have none. */
export async function numberChildren(db: Db, linkId: string): Promise<void> {
	const unnumbered = (from: Db, limit: number) =>
		from
			.selectFrom("devices")
			.select("device_id")
			.where("link_id", "=", linkId)
			.where("depth", ">", sql.lit(0))
			.where("link_version", "is", null)
			.orderBy("record_id")
			.limit(limit)
			.execute();
	while ((await unnumbered(db, 1)).length > 0) {
		await inTransaction(db, async (trx) => {
			const gateway = await lockForUpdate(
				trx,
				trx
					.selectFrom("devices")
					.select("children_version")
					.where("device_id", "=", linkId),
			).executeTakeFirst();
			if (!gateway) return;
			const children = await unnumbered(trx, CHUNK);
			const first = gateway.children_version + 1;
			const rows = children.map(({ device_id }, index) => ({
				device_id,
				version: first + Math.floor(index / CHILDREN_PER_VERSION),
			}));
			const last = rows.at(-1);
			if (!last) return;
			await sql`
				update devices set link_version = v.version
				from ${rowsTable(trx, { device_id: "text", version: "integer" }, rows)} as v
				where devices.device_id = v.device_id`.execute(trx);
			await trx
				.updateTable("devices")
				.set({ children_version: last.version })
				.where("device_id", "=", linkId)
				.execute();
		});
		await nextTurn();
	}
}

/** What has changed in the gateway's list since that version, in the order of the versions. */
export async function* listChanges(
	db: Db,
	linkId: string,
	after: number,
): AsyncGenerator<ListChange> {
	let addedAfter = { version: after, recordId: AFTER_ALL };
	let deletedAfter = after;
	for (;;) {
		const added = await readAdded(db, linkId, addedAfter);
		const deleted = await readDeleted(db, linkId, deletedAfter);
		// What was not read yet comes after both ends that a limit has set.
		const horizon = Math.min(
			added.length === CHUNK ? (added.at(-1)?.link_version ?? 0) : Infinity,
			deleted.length === CHUNK ? (deleted.at(-1)?.version ?? 0) : Infinity,
		);
		const changes: ListChange[] = [
			...added
				.filter((row) => row.link_version <= horizon)
				.map((row) => {
					addedAfter = { version: row.link_version, recordId: row.record_id };
					return {
						kind: "added" as const,
						version: row.link_version,
						child: childOf(row),
					};
				}),
			...deleted
				.filter((row) => row.version <= horizon)
				.map((row) => {
					deletedAfter = row.version;
					return {
						kind: "deleted" as const,
						version: row.version,
						child: {
							deviceId: row.device_id,
							nodeId: row.node_id,
							parentId: row.parent_device_id,
						},
					};
				}),
		];
		yield* changes.sort((a, b) => a.version - b.version);
		if (horizon === Infinity) return;
		await nextTurn();
	}
}

type AddedRow = Awaited<ReturnType<typeof readAdded>>[number];

async function readAdded(
	db: Db,
	linkId: string,
	after: { version: number; recordId: string },
) {
	const rows = await db
		.selectFrom("devices")
		.select([
			"device_id",
			"record_id",
			"node_id",
			"gateway_id",
			"device_name",
			"description",
			"fw_version",
			"sw_version",
			"reported_status",
			"extension_info",
			"link_version",
			sql<string>`(select p.product_id from products as p where p.product_key = devices.product_key)`.as(
				"product_id",
			),
		])
		.where("link_id", "=", linkId)
		.where("depth", ">", sql.lit(0))
		.where("link_version", ">=", after.version)
		.where((eb) =>
			eb.or([
				eb("link_version", ">", after.version),
				eb("record_id", ">", after.recordId),
			]),
		)
		.orderBy("link_version")
		.orderBy("record_id")
		.limit(CHUNK)
		.execute();
	return rows.flatMap(({ link_version, gateway_id, ...row }) =>
		link_version === null || gateway_id === null
			? []
			: [{ ...row, link_version, gateway_id }],
	);
}

function readDeleted(db: Db, linkId: string, after: number) {
	return db
		.selectFrom("deleted_children")
		.selectAll()
		.where("link_id", "=", linkId)
		.where("version", ">", after)
		.orderBy("version")
		.limit(CHUNK)
		.execute();
}

function childOf(row: AddedRow): Child {
	return {
		deviceId: row.device_id,
		nodeId: row.node_id,
		parentId: row.gateway_id,
		name: row.device_name,
		description: row.description,
		productId: row.product_id,
		firmware: row.fw_version,
		software: row.sw_version,
		reportedStatus: row.reported_status,
		extensionInfo: row.extension_info,
	};
}

/**
 * Which of these devices are behind the gateways named beside them, on whatever level.
 * One that nothing was ever said about counts as there from now on, since somebody
 * speaks for it.
 */
export async function meetChildren(
	db: Db,
	asked: readonly { linkId: string; deviceId: string }[],
	now: Date,
): Promise<{ linkId: string; deviceId: string }[]> {
	const pairs = asked.map(({ linkId, deviceId }) => ({
		link_id: linkId,
		device_id: deviceId,
	}));
	const { rows } = await sql<{
		link_id: string;
		device_id: string;
		reported_status: ChildStatus | null;
	}>`
		select d.link_id, d.device_id, d.reported_status
		from ${rowsTable(db, { link_id: "text", device_id: "text" }, pairs)} as v
		join devices d on d.device_id = v.device_id and d.link_id = v.link_id
		where d.depth > 0`.execute(db);
	const silent = rows.flatMap(({ device_id, reported_status }) =>
		reported_status === null ? [device_id] : [],
	);
	if (silent.length > 0)
		await inTransaction(db, async (trx) => {
			const at = instant(now);
			const { rows: came } = await sql<Came>`
				update devices set reported_status = 'ONLINE', reported_status_at = ${at},
					active_at = coalesce(active_at, ${at})
				where reported_status is null and depth > 0 and device_id in (
					select value from ${listTable(trx, sql`${JSON.stringify(silent)}`)} as silent)
				returning device_id, project_id, app_id, connection_noted_at`.execute(
				trx,
			);
			await noteConnected(trx, came, now);
		});
	return rows.map(({ link_id, device_id }) => ({
		linkId: link_id,
		deviceId: device_id,
	}));
}

/**
 * Stores what a gateway says about its children.
 *
 * @returns which of the devices are its children, and those of them that came online
 */
export async function recordChildStatuses(
	db: Db,
	linkId: string,
	statuses: ReadonlyMap<string, ChildStatus>,
	now: Date,
): Promise<{ children: Set<string>; cameOnline: string[] }> {
	if (statuses.size === 0) return { children: new Set(), cameOnline: [] };
	return inTransaction(db, async (trx) => {
		const children = await lockForUpdate(
			trx,
			trx
				.selectFrom("devices")
				.select([
					"device_id",
					"reported_status",
					"project_id",
					"app_id",
					"connection_noted_at",
				])
				.where("device_id", "in", [...statuses.keys()])
				.where("link_id", "=", linkId)
				.where("depth", ">", sql.lit(0))
				.orderBy("device_id"),
		).execute();
		const changed = children.flatMap(({ device_id, reported_status }) => {
			const status = statuses.get(device_id);
			return status === undefined || status === reported_status
				? []
				: [{ device_id, status }];
		});
		if (changed.length > 0) {
			const at = instant(now);
			await sql`
				update devices set reported_status = v.status, reported_status_at = ${at},
					active_at = case when v.status = 'ONLINE' then coalesce(devices.active_at, ${at}) else devices.active_at end
				from ${rowsTable(trx, { device_id: "text", status: "text" }, changed)} as v
				where devices.device_id = v.device_id`.execute(trx);
		}
		const cameOnline = new Set(
			changed.flatMap(({ device_id, status }) =>
				status === "ONLINE" ? [device_id] : [],
			),
		);
		await noteConnected(
			trx,
			children.filter(({ device_id }) => cameOnline.has(device_id)),
			now,
		);
		return {
			children: new Set(children.map(({ device_id }) => device_id)),
			cameOnline: [...cameOnline],
		};
	});
}

interface Came {
	device_id: string;
	project_id: string;
	app_id: string;
	connection_noted_at: string | null;
}

/** In the timelines of children, as presence does it for connections. */
async function noteConnected(
	trx: Db,
	children: readonly Came[],
	now: Date,
): Promise<void> {
	const at = instant(now);
	const quietSince = instant(new Date(now.getTime() - NOTED_AGAIN_MS));
	const noted = children.filter(
		({ connection_noted_at: before }) =>
			// A clock that was ahead does not silence it.
			before === null || before <= quietSince || before > at,
	);
	if (noted.length === 0) return;
	await trx
		.updateTable("devices")
		.set({ connection_noted_at: at })
		.where(
			"device_id",
			"in",
			noted.map(({ device_id }) => device_id),
		)
		.execute();
	await recordHistory(
		trx,
		noted.map(({ device_id, project_id, app_id }) => ({
			projectId: project_id,
			spaceId: app_id,
			deviceId: device_id,
			kind: "connected",
		})),
		now,
	);
}
