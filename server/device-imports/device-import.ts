/** The devices of many lines, registered at once: each by the rules that hold for one. */
import { setImmediate as nextTurn } from "node:timers/promises";
import { sql } from "kysely";
import type { Scope } from "../access/permissions.ts";
import {
	type Db,
	listTable,
	lockForUpdate,
	type RowColumns,
	type RowOf,
	rowsTable,
} from "../database/database.ts";
import type { Tag } from "../devices/device-tags.ts";
import {
	countChildren,
	type NewDevice,
	newDeviceId,
	newDeviceRow,
	type ParentDevice,
	requireRoomBelow,
	unknownGatewayNamed,
} from "../devices/devices.ts";
import { ApiError, errors } from "../errors.ts";
import { recordHistory } from "../history/history.ts";
import { holdProductNamed } from "../products/products.ts";
import { getResourceSpace } from "../resource-spaces/resource-spaces.ts";
import type { Sealed } from "../secrets/sealed.ts";
import type { ImportLine } from "./import-lines.ts";

/** Statements of which each takes the store less than a millisecond, between two turns. */
const SHORT_STATEMENTS = 32;
/** Gateways whose children, 50,000 at most, are counted between two turns. */
const GATEWAYS_AT_ONCE = 8;

const BIND = "iotda:tags:bind";

export interface LineCounts {
	created: number;
	unchanged: number;
	refused: number;
}

/** Somebody else registered one of the devices at the same moment: look again. */
export class Overtaken extends Error {
	override name = "Overtaken";
}

/** A product in its resource space. */
interface Place {
	project_id: string;
	app_id: string;
	product_key: string;
}

interface Wanted {
	line: number;
	deviceId: string;
	device: NewDevice;
	tags: readonly Tag[];
	place: Place;
}

type NewRow = ReturnType<typeof newDeviceRow>;
type Parent = ParentDevice & { app_id: string; childCount: number };

/**
 * Registers what can be, notes what is refused and why. A device that is there already
 * with the same project, product and node id is left as it is.
 *
 * Gives the event loop a turn between its statements.
 *
 * @throws Overtaken when the transaction must be tried again
 */
export async function registerLines(
	trx: Db,
	job: { importId: string; scope: Scope; spaceId: string },
	lines: readonly ImportLine[],
	sealed: Sealed,
	now: Date,
): Promise<LineCounts> {
	const refusals: { line: number; deviceId?: string; error: ApiError }[] = [];
	const wanted: Wanted[] = [];
	const bindings = new Bindings(job.scope);
	const places = new Places(trx, job.scope, job.spaceId);
	for (const line of lines) {
		if (line.refusal) {
			const { deviceId } = line;
			refusals.push({
				line: line.line,
				error: line.refusal,
				...(deviceId === undefined ? {} : { deviceId }),
			});
			continue;
		}
		const deviceId = newDeviceId(line.device);
		const place = await places.of(line.device);
		if (place instanceof ApiError)
			refusals.push({ line: line.line, deviceId, error: place });
		else wanted.push({ ...line, deviceId, place });
	}
	const there = await findThere(trx, wanted);
	const missing = wanted.filter(({ deviceId }) => !there.has(deviceId));
	const parents = await holdParents(trx, missing);
	const parentIds = new Set(wanted.map(({ device }) => device.gatewayId));

	const rows: NewRow[] = [];
	const tags: RowOf<typeof TAG_COLUMNS>[] = [];
	let unchanged = 0;
	for (const { line, deviceId, device, tags: own, place } of wanted) {
		const same = there.get(deviceId);
		if (same !== undefined && isSame(same, place, device)) {
			unchanged++;
			continue;
		}
		try {
			const gateway = parentOf(device, place, parents);
			if (same) throw new ApiError(errors.deviceExists);
			bindings.require(place.app_id, own);
			if (gateway) requireRoomBelow(gateway, gateway.childCount++);
			const row = newDeviceRow(device, { ...place, gateway }, sealed, now);
			rows.push(row);
			there.set(deviceId, row);
			if (parentIds.has(deviceId))
				parents.set(deviceId, { ...row, childCount: 0 });
			for (const { key, value } of own)
				tags.push({ device_id: deviceId, tag_key: key, tag_value: value });
		} catch (error) {
			if (!(error instanceof ApiError)) throw error;
			refusals.push({ line, deviceId, error });
		}
	}
	await nextTurn();
	await insertDevices(trx, rows);
	if (tags.length > 0) {
		await nextTurn();
		await insertRows(trx, "device_tags", TAG_COLUMNS, tags);
	}
	await nextTurn();
	await recordHistory(
		trx,
		rows.map((row) => ({
			projectId: row.project_id,
			spaceId: row.app_id,
			deviceId: row.device_id,
			kind: "registered",
			detail: { import_id: job.importId },
		})),
		now,
	);
	await insertRows(
		trx,
		"device_import_refusals",
		REFUSAL_COLUMNS,
		refusals.map(({ line, deviceId, error }) => ({
			import_id: job.importId,
			line,
			device_id: deviceId ?? null,
			error_code: error.kind.code,
			error_msg: error.message,
		})),
	);
	return { created: rows.length, unchanged, refused: refusals.length };
}

/** Where the lines of one batch want their devices; each place is looked up, and held, once. */
class Places {
	readonly #trx: Db;
	readonly #scope: Scope;
	readonly #defaultSpaceId: string;
	readonly #spaces = new Map<string, Promise<string | ApiError>>();
	readonly #places = new Map<string, Promise<Place | ApiError>>();

	constructor(trx: Db, scope: Scope, defaultSpaceId: string) {
		this.#trx = trx;
		this.#scope = scope;
		this.#defaultSpaceId = defaultSpaceId;
	}

	of({ spaceId = this.#defaultSpaceId, productId }: NewDevice) {
		const key = `${spaceId}/${productId}`;
		let place = this.#places.get(key);
		if (!place) {
			place = orRefusal(this.#find(spaceId, productId));
			this.#places.set(key, place);
		}
		return place;
	}

	async #find(spaceId: string, productId: string): Promise<Place> {
		if (this.#places.size % SHORT_STATEMENTS === 0) await nextTurn();
		let space = this.#spaces.get(spaceId);
		if (!space) {
			space = orRefusal(
				getResourceSpace(this.#trx, this.#scope, spaceId).then(
					({ app_id }) => app_id,
				),
			);
			this.#spaces.set(spaceId, space);
		}
		const found = await space;
		if (found instanceof ApiError) throw found;
		return holdProductNamed(this.#trx, found, productId);
	}
}

/** Which tags the sender may bind; each set of them is decided once for a space. */
class Bindings {
	readonly #scope: Scope;
	readonly #refusals = new Map<string, ApiError | undefined>();

	constructor(scope: Scope) {
		this.#scope = scope;
	}

	/** @throws 403 IOTDA.000022 naming the tag */
	require(appId: string, tags: readonly Tag[]): void {
		if (tags.length === 0) return;
		const key = JSON.stringify([
			appId,
			...tags.map(({ key, value }) => [key, value]),
		]);
		if (!this.#refusals.has(key))
			this.#refusals.set(key, this.#decide(appId, tags));
		const refusal = this.#refusals.get(key);
		if (refusal) throw refusal;
	}

	#decide(appId: string, tags: readonly Tag[]): ApiError | undefined {
		if (this.#mayBind(appId, tags)) return undefined;
		// A policy may also forbid together what it allows one by one.
		const culprit = tags.find((tag) => !this.#mayBind(appId, [tag]));
		const named = (culprit ? [culprit] : tags)
			.map(({ key, value }) => `${key}=${value}`)
			.join(", ");
		return new ApiError(errors.forbidden, { detail: `(${BIND}: ${named})` });
	}

	#mayBind(appId: string, tags: readonly Tag[]): boolean {
		const requestTags = Object.fromEntries(
			tags.map(({ key, value }) => [key, value]),
		);
		return this.#scope.rights.decide(BIND, "Tagging", { appId }, requestTags)
			.allowed;
	}
}

async function orRefusal<T>(work: Promise<T>): Promise<T | ApiError> {
	try {
		return await work;
	} catch (error) {
		if (error instanceof ApiError) return error;
		throw error;
	}
}

type There = Pick<NewRow, "project_id" | "product_key" | "node_id">;

async function findThere(
	trx: Db,
	wanted: readonly Wanted[],
): Promise<Map<string, There>> {
	if (wanted.length === 0) return new Map();
	const ids = JSON.stringify(wanted.map(({ deviceId }) => deviceId));
	const { rows } = await sql<There & { device_id: string }>`
		select device_id, project_id, product_key, node_id from devices
		where device_id in (select value from ${listTable(trx, sql`${ids}`)} as ids)`.execute(
		trx,
	);
	return new Map(rows.map((row) => [row.device_id, row]));
}

function isSame(there: There, place: Place, device: NewDevice): boolean {
	return (
		there.project_id === place.project_id &&
		there.product_key === place.product_key &&
		there.node_id === device.nodeId
	);
}

/**
 * The devices that are named as gateways and are there, by id; held, so that their
 * children can be counted and none is deleted meanwhile.
 */
async function holdParents(
	trx: Db,
	wanted: readonly Wanted[],
): Promise<Map<string, Parent>> {
	const parents = new Map<string, Parent>();
	const named = new Set(wanted.flatMap(({ device }) => device.gatewayId ?? []));
	if (named.size === 0) return parents;
	const ids = JSON.stringify([...named]);
	const found = await lockForUpdate(
		trx,
		trx
			.selectFrom("devices")
			.select(["device_id", "app_id", "depth", "link_id"])
			.where(
				sql<string>`device_id`,
				"in",
				sql<string>`(select value from ${listTable(trx, sql`${ids}`)} as ids)`,
			)
			// Two who hold several hold them in the same order.
			.orderBy("device_id"),
	).execute();
	for (let from = 0; from < found.length; from += GATEWAYS_AT_ONCE) {
		const some = found.slice(from, from + GATEWAYS_AT_ONCE);
		const counts = await countChildren(
			trx,
			some.map(({ device_id }) => device_id),
		);
		for (const row of some)
			parents.set(row.device_id, {
				...row,
				childCount: counts.get(row.device_id) ?? 0,
			});
		await nextTurn();
	}
	return parents;
}

/** @throws 400 IOTDA.014000 */
function parentOf(
	{ gatewayId }: NewDevice,
	place: Place,
	parents: ReadonlyMap<string, Parent>,
): Parent | undefined {
	if (gatewayId === undefined) return undefined;
	const parent = parents.get(gatewayId);
	if (parent?.app_id !== place.app_id) throw unknownGatewayNamed();
	return parent;
}

/** @throws Overtaken */
async function insertDevices(trx: Db, rows: readonly NewRow[]): Promise<void> {
	const [first] = rows;
	if (!first) return;
	// Two who insert the same devices wait for each other in the same order.
	const sorted = [...rows].sort((a, b) => (a.device_id < b.device_id ? -1 : 1));
	// What all have in common is said once: it costs a third of the statement otherwise.
	const varying: Record<string, "text" | "integer"> = { device_id: "text" };
	const common: [column: string, value: string | number][] = [];
	for (const column of Object.keys(first) as (keyof NewRow)[]) {
		const value = first[column];
		if (rows.some((row) => row[column] !== value))
			varying[column] = rows.some((row) => typeof row[column] === "number")
				? "integer"
				: "text";
		else if (value !== null && column !== "device_id")
			common.push([column, value]);
	}
	const names = Object.keys(varying) as (keyof NewRow)[];
	const columns = [...names, ...common.map(([name]) => name)];
	const values = [
		...names.map((name) => sql.ref(`v.${name}`)),
		...common.map(([, value]) =>
			typeof value === "number" ? sql.lit(value) : sql`${value}`,
		),
	];
	const { numAffectedRows } = await sql`
		insert into devices (${sql.join(columns.map((name) => sql.ref(name)))})
		select ${sql.join(values)} from ${rowsTable(trx, varying, sorted as object[] as RowOf<RowColumns>[])} as v
		where true on conflict (device_id) do nothing`.execute(trx);
	if (Number(numAffectedRows) !== rows.length) throw new Overtaken();
}

const TAG_COLUMNS = {
	device_id: "text",
	tag_key: "text",
	tag_value: "text",
} as const;
const REFUSAL_COLUMNS = {
	import_id: "text",
	line: "integer",
	device_id: "text",
	error_code: "text",
	error_msg: "text",
} as const;

async function insertRows<C extends RowColumns>(
	trx: Db,
	table: "device_tags" | "device_import_refusals",
	columns: C,
	rows: readonly RowOf<C>[],
): Promise<void> {
	if (rows.length === 0) return;
	const names = Object.keys(columns);
	await sql`
		insert into ${sql.table(table)} (${sql.join(names.map((name) => sql.ref(name)))})
		select ${sql.join(names.map((name) => sql.ref(`v.${name}`)))}
		from ${rowsTable(trx, columns, rows)} as v`.execute(trx);
}
