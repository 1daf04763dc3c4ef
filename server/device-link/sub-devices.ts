/**
 * What `$sub_device_manager` means: a gateway learns which devices are behind it, says
 * which of them are there, and registers and deletes them where the operator lets it.
 *
 * A gateway is told of changes in pages, a few of them under way at a time: 50,000
 * children neither hold up the process nor fill the connection. Changes that come while
 * it is being told are told afterwards, together.
 */
import { randomUUID } from "node:crypto";
import type { Static } from "typebox";
import type {
	AddSubDeviceResponseParas,
	DeleteSubDeviceResponseParas,
	SubDeviceFailure,
	SubDeviceStatusResponseParas,
} from "../../wire/device-messages.ts";
import type { createDevice as createDeviceBody } from "../../wire/devices.ts";
import type { Clock, Db } from "../database/database.ts";
import {
	beginListAfter,
	CHILDREN_PER_VERSION,
	type Child,
	type ChildChange,
	type ChildStatus,
	forgetDeletions,
	type ListChange,
	listChanges,
	listVersion,
	numberChildren,
	recordChildStatuses,
} from "../devices/children.ts";
import {
	additionOf,
	createChild,
	type Device,
	deleteChild,
	findDeviceBehind,
	newDeviceId,
	type OnDeviceDeleted,
} from "../devices/devices.ts";
import { readNewDevice } from "../devices/new-device.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { logger } from "../log.ts";
import type { Sealed } from "../secrets/sealed.ts";
import type { DeviceReport } from "../upgrade-tasks/exchanges.ts";
import {
	CHANGES_LIMIT,
	isDeviceId,
	listChangeMessage,
	type Message,
	type NewChild,
	STATUSES_LIMIT,
	type SubDeviceRequest,
	subDeviceInfo,
	subDeviceMessage,
} from "./iotda.ts";
import type { DeviceConnection } from "./mqtt-session.ts";

const log = logger("device-link");
/**
 * Pages that a gateway has not acknowledged: notices share the connection with them.
 */
const PAGES_UNDER_WAY = 8;
/** A gateway that claims a higher version than this claims nonsense. */
const VERSION_LIMIT = 2_000_000_000;
/**
 * The C SDK takes one byte for each device that succeeded and writes a pointer into it:
 * more than three in one answer overrun its memory. It gives its status reports no event
 * id, so nobody waits for one answer to all.
 */
const SUCCESSES_IN_ANSWER = 3;

type DeviceBody = Static<typeof createDeviceBody>;

export interface SubDevicesParts {
	db: Db;
	sealed: Sealed;
	now: Clock;
	/** Whether gateways may register and delete the devices behind them. */
	mayRegister: boolean;
	/** Checks what the management API calls the body of a registration. */
	checkNewDevice: (body: unknown) => true | { error: ApiError };
	onDeviceDeleted: OnDeviceDeleted;
	/** Lets the gateway know, wherever it is connected. */
	changed: (change: ChildChange) => void;
	record: (deviceId: string, report: DeviceReport) => Promise<void>;
	/** Resolves true when the device acknowledged it; never rejects. */
	say: Say;
	/** The same for answers, of which fewer may wait. */
	answer: Say;
}

type Say = (
	connection: DeviceConnection,
	make: () => Message,
) => Promise<boolean>;

/** Of one gateway's connection. */
interface Telling {
	/** The version that the gateway has surely been told; undefined: it never asked. */
	told: number | undefined;
	/** It asked for everything after this version. */
	asked: number | undefined;
	/** Something changed after this version. */
	changedAfter: number | undefined;
	isRunning: boolean;
	/** Its list was begun anew: once is enough for a connection. */
	hasBegun: boolean;
	/** Its requests, one after the other. */
	requests: Promise<unknown>;
}

export class SubDevices implements AsyncDisposable {
	readonly #parts: SubDevicesParts;
	readonly #tellings = new WeakMap<DeviceConnection, Telling>();
	readonly #running = new Set<Promise<void>>();
	#closed = false;

	constructor(parts: SubDevicesParts) {
		this.#parts = parts;
	}

	/** Resolves when what the gateway said is stored; answers follow. */
	heard(
		connection: DeviceConnection,
		request: SubDeviceRequest,
		eventId: string | undefined,
	): Promise<void> {
		const telling = this.#tellingOf(connection);
		if (request.kind === "sync") {
			telling.asked = Math.min(telling.asked ?? Infinity, request.version);
			this.#tell(connection, telling);
			return Promise.resolve();
		}
		// In their order: the last word about a device counts.
		const handled = telling.requests.then(() =>
			this.#handle(connection, request, eventId),
		);
		telling.requests = handled.catch(() => undefined);
		return handled;
	}

	/** Something changed among the children of a gateway that is connected here. */
	changed(connection: DeviceConnection, after: number): void {
		const telling = this.#tellingOf(connection);
		telling.changedAfter = Math.min(telling.changedAfter ?? Infinity, after);
		this.#tell(connection, telling);
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#closed = true;
		await Promise.all(this.#running);
	}

	#tellingOf(connection: DeviceConnection): Telling {
		let telling = this.#tellings.get(connection);
		if (!telling) {
			telling = {
				told: undefined,
				asked: undefined,
				changedAfter: undefined,
				isRunning: false,
				hasBegun: false,
				requests: Promise.resolve(),
			};
			this.#tellings.set(connection, telling);
		}
		return telling;
	}

	// --- telling a gateway of its children --------------------------------------------

	#tell(connection: DeviceConnection, telling: Telling): void {
		if (telling.isRunning || this.#closed) return;
		telling.isRunning = true;
		const running = this.#tellAll(connection, telling)
			.catch((error: unknown) => {
				log.error(
					{ err: error, device_id: connection.deviceId },
					"a gateway could not be told of its children; it learns of them when it asks",
				);
			})
			.finally(() => this.#running.delete(running));
		this.#running.add(running);
	}

	async #tellAll(
		connection: DeviceConnection,
		telling: Telling,
	): Promise<void> {
		const { db } = this.#parts;
		const { deviceId: linkId } = connection;
		try {
			for (;;) {
				let after: number;
				if (telling.asked !== undefined) {
					const { asked } = telling;
					telling.asked = undefined;
					after = await this.#agree(linkId, telling, asked);
				} else if (telling.changedAfter !== undefined) {
					after = telling.told ?? telling.changedAfter;
				} else return;
				telling.changedAfter = undefined;
				await numberChildren(db, linkId);
				telling.told = after;
				if (!(await this.#tellAfter(connection, telling, after))) return;
			}
		} finally {
			// In the turn in which nothing was left: what comes next begins anew.
			telling.isRunning = false;
		}
	}

	/** What the gateway says it knows, as the version after which it is to be told. */
	async #agree(
		linkId: string,
		telling: Telling,
		known: number,
	): Promise<number> {
		const { db } = this.#parts;
		if (known === 0) return 0;
		if (known <= (await listVersion(db, linkId))) {
			await forgetDeletions(db, linkId, known);
			return known;
		}
		if (known > VERSION_LIMIT || telling.hasBegun) return 0;
		telling.hasBegun = true;
		await beginListAfter(db, linkId, known);
		return known;
	}

	/** Whether all of it reached the gateway. */
	async #tellAfter(
		connection: DeviceConnection,
		telling: Telling,
		after: number,
	): Promise<boolean> {
		const { db, now, say } = this.#parts;
		const { deviceId: linkId } = connection;
		const underWay: { version: number; delivered: Promise<boolean> }[] = [];
		/** Whether the oldest page, if there is one, reached the gateway. */
		const settleOldest = async (): Promise<boolean> => {
			const oldest = underWay.shift();
			if (!oldest) return true;
			if (!(await oldest.delivered)) return false;
			telling.told = oldest.version;
			return true;
		};
		for await (const page of pagesOf(listChanges(db, linkId, after))) {
			if (this.#closed) return false;
			if (underWay.length >= PAGES_UNDER_WAY && !(await settleOldest()))
				return false;
			const version = page.at(-1)?.version ?? after;
			underWay.push({
				version,
				delivered: say(connection, () =>
					listChangeMessage(linkId, page, version, now()),
				),
			});
		}
		while (underWay.length > 0) if (!(await settleOldest())) return false;
		return true;
	}

	// --- what a gateway asks for ------------------------------------------------------

	async #handle(
		connection: DeviceConnection,
		request: Exclude<SubDeviceRequest, { kind: "sync" }>,
		eventId: string | undefined,
	): Promise<void> {
		switch (request.kind) {
			case "statuses":
				return this.#statuses(connection, request.devices, eventId);
			case "add":
				return this.#add(connection, request.devices, eventId);
			case "delete":
				return this.#delete(connection, request.devices, eventId);
			default:
				return request satisfies never;
		}
	}

	async #statuses(
		connection: DeviceConnection,
		devices: readonly { deviceId: string; status: ChildStatus | undefined }[],
		eventId: string | undefined,
	): Promise<void> {
		const { db, now, record } = this.#parts;
		const statuses = new Map<string, ChildStatus>();
		const failed: SubDeviceStatusResponseParas["failed_devices"] = [];
		const fail = (deviceId: string, error: ApiError) =>
			failed.push({ device_id: deviceId, ...failureOf(error) });
		for (const [index, { deviceId, status }] of devices.entries()) {
			if (index >= STATUSES_LIMIT)
				fail(deviceId, tooMany("device_statuses", STATUSES_LIMIT));
			else if (status === undefined)
				fail(deviceId, invalidInput("status", "must be ONLINE or OFFLINE"));
			else if (!isDeviceId(deviceId))
				fail(deviceId, new ApiError(errors.unknownDevice));
			else statuses.set(deviceId, status);
		}
		const since = now();
		const { children, cameOnline } = await recordChildStatuses(
			db,
			connection.deviceId,
			statuses,
			since,
		);
		// To a child that comes back, what it may have missed is said again.
		await Promise.all(
			cameOnline.map((deviceId) =>
				record(deviceId, { kind: "connected", since }),
			),
		);
		const successful: SubDeviceStatusResponseParas["successful_devices"] = [];
		for (const [deviceId, status] of statuses) {
			if (children.has(deviceId))
				successful.push({ device_id: deviceId, status });
			else fail(deviceId, new ApiError(errors.unknownDevice));
		}
		const type = "sub_device_update_status_response";
		if (eventId !== undefined) {
			this.#answer(connection, type, eventId, {
				successful_devices: successful,
				failed_devices: failed,
			} satisfies SubDeviceStatusResponseParas);
			return;
		}
		const anyId = randomUUID();
		let rest = failed;
		for (
			let start = 0;
			start === 0 || start < successful.length;
			start += SUCCESSES_IN_ANSWER
		) {
			this.#answer(connection, type, anyId, {
				successful_devices: successful.slice(
					start,
					start + SUCCESSES_IN_ANSWER,
				),
				failed_devices: rest,
			} satisfies SubDeviceStatusResponseParas);
			rest = [];
		}
	}

	async #add(
		connection: DeviceConnection,
		devices: readonly NewChild[],
		eventId: string | undefined,
	): Promise<void> {
		const answer: AddSubDeviceResponseParas = {
			successful_devices: [],
			failed_devices: [],
		};
		let first: ChildChange | undefined;
		for (const [index, device] of devices.entries()) {
			try {
				if (index >= CHANGES_LIMIT) throw tooMany("devices", CHANGES_LIMIT);
				const added = await this.#addOne(connection.deviceId, device.body);
				first ??= additionOf(added);
				answer.successful_devices.push(subDeviceInfo(childOf(added)));
			} catch (error) {
				if (!(error instanceof ApiError)) throw error;
				answer.failed_devices.push({
					node_id: device.nodeId,
					product_id: device.productId,
					...failureOf(error),
				});
			}
		}
		this.#answer(
			connection,
			"add_sub_device_response",
			eventId ?? randomUUID(),
			answer,
		);
		if (first) this.#parts.changed(first);
	}

	async #addOne(
		linkId: string,
		body: Record<string, unknown>,
	): Promise<Device> {
		const { db, sealed, now, mayRegister, checkNewDevice } = this.#parts;
		if (!mayRegister) throw new ApiError(errors.gatewayMayNotRegister);
		const checked = checkNewDevice(body);
		if (checked !== true) throw checked.error;
		const input = readNewDevice(body as DeviceBody);
		try {
			return await createChild(db, linkId, input, sealed, now());
		} catch (error) {
			// Its first request was carried out, and the acknowledgement lost.
			if (!(error instanceof ApiError) || error.kind !== errors.deviceExists)
				throw error;
			const found = await findDeviceBehind(db, linkId, newDeviceId(input));
			if (
				found?.node_id !== input.nodeId ||
				found.product_id !== input.productId
			)
				throw error;
			return found;
		}
	}

	async #delete(
		connection: DeviceConnection,
		deviceIds: readonly string[],
		eventId: string | undefined,
	): Promise<void> {
		const { db, now, mayRegister, onDeviceDeleted } = this.#parts;
		const answer: DeleteSubDeviceResponseParas = {
			successful_devices: [],
			failed_devices: [],
		};
		let first: ChildChange | undefined;
		for (const [index, deviceId] of deviceIds.entries()) {
			try {
				if (index >= CHANGES_LIMIT) throw tooMany("devices", CHANGES_LIMIT);
				if (!mayRegister) throw new ApiError(errors.gatewayMayNotRegister);
				if (!isDeviceId(deviceId)) throw new ApiError(errors.unknownDevice);
				const change = await deleteChild(
					db,
					connection.deviceId,
					deviceId,
					onDeviceDeleted,
					now(),
				);
				first ??= change;
				answer.successful_devices.push(deviceId);
			} catch (error) {
				if (!(error instanceof ApiError)) throw error;
				answer.failed_devices.push({
					device_id: deviceId,
					...failureOf(error),
				});
			}
		}
		this.#answer(
			connection,
			"delete_sub_device_response",
			eventId ?? randomUUID(),
			answer,
		);
		if (first) this.#parts.changed(first);
	}

	#answer(
		connection: DeviceConnection,
		eventType: string,
		eventId: string,
		paras: object,
	): void {
		const { now, answer } = this.#parts;
		// Whether it arrives is the gateway's affair: it asks again.
		void answer(connection, () =>
			subDeviceMessage(connection.deviceId, eventType, paras, now(), eventId),
		);
	}
}

/**
 * Changes as messages: of one kind, as many as every SDK takes, and each with a higher
 * version than the one before, since gateways refuse what is not newer than what they
 * have. So what shares a version stays together.
 */
async function* pagesOf(
	changes: AsyncIterable<ListChange>,
): AsyncGenerator<ListChange[]> {
	let page: ListChange[] = [];
	let group: ListChange[] = [];
	for await (const change of changes) {
		const [first] = group;
		if (
			first &&
			(first.version !== change.version ||
				group.length === CHILDREN_PER_VERSION)
		) {
			if (!fits(page, group)) {
				yield page;
				page = [];
			}
			page.push(...group);
			group = [];
		}
		group.push(change);
	}
	if (!fits(page, group)) {
		yield page;
		page = [];
	}
	page.push(...group);
	if (page.length > 0) yield page;
}

function fits(page: readonly ListChange[], group: readonly ListChange[]) {
	return (
		page.length === 0 ||
		group.length === 0 ||
		(page[0]?.kind === group[0]?.kind &&
			page.length + group.length <= CHILDREN_PER_VERSION)
	);
}

function tooMany(field: string, limit: number): ApiError {
	return invalidInput(
		field,
		`must hold at most ${limit} devices: this one and those after it were not looked at`,
	);
}

function failureOf(error: ApiError): SubDeviceFailure {
	return { error_code: error.kind.code, error_msg: error.message };
}

function childOf(device: Device): Child {
	return {
		deviceId: device.device_id,
		nodeId: device.node_id,
		parentId: device.gateway_id ?? device.link_id,
		name: device.device_name,
		description: device.description,
		productId: device.product_id,
		firmware: device.fw_version,
		software: device.sw_version,
		reportedStatus: device.reported_status,
		extensionInfo: device.extension_info,
	};
}
