/**
 * What any device can say, and what follows: "I am here", "these are my versions",
 * "this is my progress", "I failed because". One meaning, whatever the protocol.
 */
import { deviceTopics } from "../../wire/device-messages.ts";
import type { DownloadLinks } from "../artifacts/download-links.ts";
import type { UpgradeTimes } from "../config.ts";
import type { Clock } from "../database/database.ts";
import type { Signal } from "../database/signal.ts";
import type { Events } from "../events.ts";
import { logger } from "../log.ts";
import type { Exchanges, Notice } from "../upgrade-tasks/exchanges.ts";
import {
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
import type { Presence } from "./presence.ts";

const log = logger("device-link");
const RECHECKED_AT_ONCE = 500;

/** What one process tells the others: whoever has this device, or this connection, hangs up. */
interface Disconnect {
	disconnect: string;
	reason: CloseReason;
	/** Only this one: the device has connected elsewhere. */
	connection?: string;
	/** The node that says so, and has done so itself. */
	from: string;
}

export interface DeviceLinkParts {
	signal: Signal;
	nodeId: string;
	/** Ends the device's connection to this process, and a sign-in being decided. */
	hangUp: (deviceId: string, reason: CloseReason) => void;
	/** Those of the devices that exist and are not frozen. */
	findConnectable: (deviceIds: readonly string[]) => Promise<Set<string>>;
	exchanges: Exchanges;
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
				.record(deviceId, { kind: "connected" })
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
		const stored: Promise<void>[] = [];
		for (const heard of readEvents(deviceId, payload)) {
			switch (heard.kind) {
				case "report":
					stored.push(this.#parts.exchanges.record(deviceId, heard.report));
					break;
				case "time_sync":
					this.#send(
						connection,
						timeSyncAnswer(deviceId, heard, receivedAt, this.#parts.now()),
					);
					break;
				case "ignored":
					this.#parts.events.happened(
						"uplink_ignored",
						{},
						{ device_id: deviceId, topic },
					);
					break;
				case "dropped":
					this.#parts.events.happened(
						"uplink_dropped",
						{ reason: heard.reason },
						{ device_id: deviceId },
						this.#firstDrop(connection) ? "info" : "debug",
					);
					break;
				default:
					heard satisfies never;
			}
		}
		await Promise.all(stored);
	}

	/** One line a connection tells the operator; a device that talks nonsense does so all day. */
	#firstDrop(connection: DeviceConnection): boolean {
		if (this.#dropped.has(connection)) return false;
		this.#dropped.add(connection);
		return true;
	}

	/** Sends a notice to the device if it is connected here; else its next connection brings it up again. */
	notify(notice: Notice): void {
		const connection = this.#connections.get(notice.deviceId);
		if (!connection) {
			this.#parts.events.happened(
				"notice_unsent",
				{ kind: notice.kind },
				{ device_id: notice.deviceId },
			);
			return;
		}
		this.#parts.events.happened(
			"notice_sent",
			{ kind: notice.kind },
			{ device_id: notice.deviceId },
		);
		this.#send(
			connection,
			messageOf(notice, this.#parts.links, this.#parts.now()),
		);
	}

	#send(connection: DeviceConnection, { topic, payload }: Message): void {
		const sent = connection.send(topic, payload).then((delivered) => {
			// Undelivered because the connection ended: the next one brings it up again.
			if (
				delivered ||
				this.#connections.get(connection.deviceId) !== connection
			)
				return;
			this.#parts.events.happened(
				"message_refused",
				{},
				{ device_id: connection.deviceId, bytes: payload.length },
				"warn",
			);
		});
		sent.catch((error: unknown) => {
			log.error(
				{ err: error, device_id: connection.deviceId },
				"a message could not be sent",
			);
		});
	}
}
