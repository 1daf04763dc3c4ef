/**
 * What any device can say, and what follows: "I am here", "these are my versions",
 * "this is my progress", "I failed because". One meaning, whatever the protocol.
 */
import { deviceTopics } from "../../wire/device-messages.ts";
import type { DownloadLinks } from "../artifacts/download-links.ts";
import type { UpgradeTimes } from "../config.ts";
import type { Clock } from "../database/database.ts";
import type { Signal } from "../database/signal.ts";
import type { ChildChange } from "../devices/children.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Exchanges, Notice } from "../upgrade-tasks/exchanges.ts";
import type { ChildLookup } from "./child-lookup.ts";
import {
	type Addressee,
	type Heard,
	type Message,
	messageOf,
	readEvents,
	timeSyncAnswer,
} from "./iotda.ts";
import type {
	CloseReason,
	DeviceConnection,
	DeviceEars,
} from "./mqtt-session.ts";
import { Outbox, WAITING_LIMIT } from "./outbox.ts";
import type { Presence } from "./presence.ts";
import type { SubDevices } from "./sub-devices.ts";

const log = logger("device-link");
const RECHECKED_AT_ONCE = 500;
/** Longer than a connection takes to be entered in the store. */
const GATHER_CHANGES_MS = 50;
/** Answers to a device that asks and does not take them. */
const ANSWERS_WAITING = 1_000;

/** What one process tells the others: whoever has this device, or this connection, hangs up. */
interface Disconnect {
	disconnect: string;
	reason: CloseReason;
	/** Only this one: the device has connected elsewhere. */
	connection?: string;
	/** The node that says so, and has done so itself. */
	from: string;
}

/** What one process tells the others: whoever has this gateway lets it know of its children. */
interface ChildrenChanged {
	children: string;
	after: number;
}

export interface DeviceLinkParts {
	signal: Signal;
	nodeId: string;
	/** Ends the device's connection to this process, and a sign-in being decided. */
	hangUp: (deviceId: string, reason: CloseReason) => void;
	/** Those of the devices that exist and are not frozen. */
	findConnectable: (deviceIds: readonly string[]) => Promise<Set<string>>;
	/** Those of the devices that are connected to another process. */
	findElsewhere: (deviceIds: readonly string[]) => Promise<string[]>;
	exchanges: Exchanges;
	children: ChildLookup;
	subDevices: SubDevices;
	presence: Presence;
	links: DownloadLinks;
	times: Pick<UpgradeTimes, "connectPauseMs">;
	events: Events;
	now: Clock;
}

export class DeviceLink implements DeviceEars {
	readonly #parts: DeviceLinkParts;
	readonly #connections = new Map<string, DeviceConnection>();
	readonly #dropped = new WeakSet<DeviceConnection>();
	/** Gateways that are not connected here, and after which version of their lists something changed. */
	readonly #changedElsewhere = new Map<string, number>();
	/** Of those that have something unacknowledged. */
	readonly #outboxes = new Map<DeviceConnection, Outbox>();
	/**
	 * Those whose pause after connecting is over. Before, the rollout does not begin with
	 * them: what a device tells about itself on connecting, such as that it knows of
	 * modules, decides how it is spoken to.
	 */
	readonly #settled = new Set<DeviceConnection>();

	constructor(parts: DeviceLinkParts) {
		this.#parts = parts;
		parts.signal.onSignal((payload) => this.#onSignal(payload));
	}

	/** Connected to this process, and to be spoken to. */
	isHere(deviceId: string): boolean {
		const connection = this.#connections.get(deviceId);
		return connection !== undefined && this.#settled.has(connection);
	}

	*devicesHere(): Iterable<string> {
		for (const { deviceId } of this.#settled) yield deviceId;
	}

	/** Ends the device's connection, to whichever process it is connected. */
	disconnect(deviceId: string, reason: CloseReason): void {
		this.#tell({ disconnect: deviceId, reason });
	}

	/** The device has connected to this process and left that connection behind elsewhere. */
	replaced(deviceId: string, connectionId: string): void {
		this.#tell({
			disconnect: deviceId,
			reason: "replaced",
			connection: connectionId,
		});
	}

	/** Lets a gateway know that its children changed, to whichever process it is connected. */
	childrenChanged({ linkId, after }: ChildChange): void {
		const connection = this.#connections.get(linkId);
		if (connection) {
			this.#parts.subDevices.changed(connection, after);
			return;
		}
		// Most gateways of which something is registered are not there yet, and whoever
		// registers registers many: a signal for each would hold up those that are needed.
		if (this.#changedElsewhere.size === 0)
			setTimeout(() => void this.#signalChanges(), GATHER_CHANGES_MS).unref();
		const known = this.#changedElsewhere.get(linkId) ?? Infinity;
		this.#changedElsewhere.set(linkId, Math.min(known, after));
	}

	async #signalChanges(): Promise<void> {
		const changes = [...this.#changedElsewhere];
		this.#changedElsewhere.clear();
		try {
			while (changes.length > 0) {
				const some = new Map(changes.splice(0, RECHECKED_AT_ONCE));
				for (const children of await this.#parts.findElsewhere([
					...some.keys(),
				])) {
					const after = some.get(children);
					if (after !== undefined)
						this.#parts.signal.send(
							JSON.stringify({ children, after } satisfies ChildrenChanged),
						);
				}
			}
		} catch (error) {
			log.warn(
				{ err: error },
				"gateways of other processes were not told of their children; they learn of them when they ask",
			);
		}
	}

	#tell(what: Omit<Disconnect, "from">): void {
		const { nodeId, signal } = this.#parts;
		const message = { ...what, from: nodeId } satisfies Disconnect;
		this.#hangUp(message);
		signal.send(JSON.stringify(message));
	}

	#hangUp({ disconnect, reason, connection }: Disconnect): void {
		if (connection === undefined) {
			this.#parts.hangUp(disconnect, reason);
			return;
		}
		const here = this.#connections.get(disconnect);
		if (here?.connectionId === connection) here.close(reason);
	}

	#onSignal(payload: string): void {
		if (payload === "") {
			void this.#recheck();
			return;
		}
		if (payload.startsWith('{"children"')) {
			const { children, after } = JSON.parse(payload) as ChildrenChanged;
			const connection = this.#connections.get(children);
			if (connection) this.#parts.subDevices.changed(connection, after);
			return;
		}
		if (!payload.startsWith('{"disconnect"')) return;
		const message = JSON.parse(payload) as Disconnect;
		if (message.from !== this.#parts.nodeId) this.#hangUp(message);
	}

	/** Signals may have been missed: whoever may not be connected any more hangs up. */
	async #recheck(): Promise<void> {
		try {
			const here = [...this.#connections.keys()];
			for (let start = 0; start < here.length; start += RECHECKED_AT_ONCE) {
				const some = here.slice(start, start + RECHECKED_AT_ONCE);
				const connectable = await this.#parts.findConnectable(some);
				for (const deviceId of some)
					if (!connectable.has(deviceId))
						this.#parts.hangUp(deviceId, "frozen");
			}
		} catch (error) {
			log.error({ err: error }, "could not look who may still be connected");
		}
	}

	connected(connection: DeviceConnection): void {
		const { deviceId } = connection;
		const since = this.#parts.now();
		this.#connections.set(deviceId, connection);
		void this.#parts.presence.online(deviceId, connection.connectionId);
		this.#parts.events.happened(
			"device_connected",
			{},
			{ device_id: deviceId },
		);
		// Two of the SDKs subscribe after the connection; they need not, but it costs
		// nothing to let them finish.
		setTimeout(() => {
			if (this.#connections.get(deviceId) !== connection) return;
			this.#settled.add(connection);
			this.#parts.exchanges
				.record(deviceId, { kind: "connected", since })
				.catch((error: unknown) => {
					log.error(
						{ err: error, device_id: deviceId },
						"could not go on with a connected device; the next sweep does",
					);
				});
		}, this.#parts.times.connectPauseMs);
	}

	closed(connection: DeviceConnection): void {
		const { deviceId, connectionId } = connection;
		// A replaced connection's close may come after its successor's arrival.
		if (this.#connections.get(deviceId) === connection)
			this.#connections.delete(deviceId);
		this.#settled.delete(connection);
		this.#outboxes.get(connection)?.close();
		this.#outboxes.delete(connection);
		void this.#parts.presence.offline(deviceId, connectionId);
		this.#parts.events.happened(
			"device_disconnected",
			{},
			{ device_id: deviceId },
		);
	}

	/** Resolves when what the device said is stored. */
	async heard(
		connection: DeviceConnection,
		topic: string,
		payload: Buffer,
	): Promise<void> {
		const { deviceId } = connection;
		if (topic !== deviceTopics(deviceId).eventsUp) {
			// Properties, messages, shadows: not what this server is for.
			this.#parts.events.happened(
				"uplink_ignored",
				{},
				{ device_id: deviceId, topic },
			);
			return;
		}
		const receivedAt = this.#parts.now();
		const { about, events } = readEvents(payload);
		const from = { linkId: deviceId, deviceId: about ?? deviceId };
		if (
			from.deviceId !== deviceId &&
			!(await this.#parts.children.isBehind(deviceId, from.deviceId))
		) {
			this.#drop(connection, "about another device");
			return;
		}
		await Promise.all(
			events.map((heard) =>
				this.#heardOne(connection, from, heard, receivedAt),
			),
		);
	}

	async #heardOne(
		connection: DeviceConnection,
		from: Addressee,
		heard: Heard,
		receivedAt: Date,
	): Promise<void> {
		const { exchanges, subDevices, events, now } = this.#parts;
		switch (heard.kind) {
			case "report":
				return exchanges.record(from.deviceId, heard.report);
			case "sub_devices":
				if (from.deviceId === from.linkId)
					return subDevices.heard(connection, heard.request, heard.eventId);
				this.#drop(connection, "a sub-device is no gateway");
				return;
			case "time_sync":
				void this.answer(connection, () =>
					timeSyncAnswer(from, heard, receivedAt, now()),
				);
				return;
			case "ignored":
				events.happened("uplink_ignored", {}, { device_id: from.deviceId });
				return;
			case "dropped":
				this.#drop(connection, heard.reason);
				return;
			default:
				heard satisfies never;
		}
	}

	#drop(connection: DeviceConnection, reason: string): void {
		this.#parts.events.happened(
			"uplink_dropped",
			{ reason },
			{ device_id: connection.deviceId },
			this.#firstDrop(connection) ? "info" : "debug",
		);
	}

	/** One line a connection tells the operator; a device that talks nonsense does so all day. */
	#firstDrop(connection: DeviceConnection): boolean {
		if (this.#dropped.has(connection)) return false;
		this.#dropped.add(connection);
		return true;
	}

	/**
	 * Sends a notice to the device, or the gateway it is behind, if that is connected here;
	 * else its next connection brings it up again.
	 */
	notify(notice: Notice): void {
		const { events, links, now } = this.#parts;
		const connection = this.#connections.get(notice.linkId);
		events.happened(
			connection ? "notice_sent" : "notice_unsent",
			{ kind: notice.kind },
			{ device_id: notice.deviceId },
		);
		if (connection)
			void this.say(connection, () => messageOf(notice, links, now()));
	}

	/**
	 * Says something when its turn has come. Resolves true when the device acknowledged
	 * it; never rejects.
	 */
	say(connection: DeviceConnection, make: () => Message): Promise<boolean> {
		return this.#say(connection, make, WAITING_LIMIT);
	}

	/** As `say`; what is asked for again when it is not answered is not kept without end. */
	answer(connection: DeviceConnection, make: () => Message): Promise<boolean> {
		return this.#say(connection, make, ANSWERS_WAITING);
	}

	async #say(
		connection: DeviceConnection,
		make: () => Message,
		most: number,
	): Promise<boolean> {
		if (this.#connections.get(connection.deviceId) !== connection) return false;
		let outbox = this.#outboxes.get(connection);
		if (!outbox) {
			outbox = new Outbox(connection);
			this.#outboxes.set(connection, outbox);
		}
		try {
			const delivered = await outbox.send(make, most);
			// Undelivered because the connection ended: the next one brings it up again.
			if (
				!delivered &&
				this.#connections.get(connection.deviceId) === connection
			)
				this.#parts.events.happened(
					"message_refused",
					{},
					{ device_id: connection.deviceId },
					"warn",
				);
			return delivered;
		} catch (error) {
			log.error(
				{ err: error, device_id: connection.deviceId },
				"a message could not be sent",
			);
			return false;
		} finally {
			if (outbox.isEmpty && this.#outboxes.get(connection) === outbox)
				this.#outboxes.delete(connection);
		}
	}
}
