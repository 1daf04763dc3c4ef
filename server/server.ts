/**
 * The composition root: opens every part, joins them, closes in reverse. Read from top
 * to bottom it is the order of the start.
 */
import { createSecretKey, randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { deviceLine } from "../wire/device-imports.ts";
import { createDevice } from "../wire/devices.ts";
import { RightsKeeper } from "./access/rights.ts";
import type { ArtifactStore } from "./artifacts/artifact-store.ts";
import { openDisk } from "./artifacts/disk.ts";
import {
	createDownloadLinks,
	downloadBase,
} from "./artifacts/download-links.ts";
import { sweepArtifacts } from "./artifacts/objects.ts";
import { openChain } from "./audit/audit-ends.ts";
import { AuditLog } from "./audit/audit-log.ts";
import { keepAuditShort } from "./audit/audit-retention.ts";
import { openDeviceCertificate } from "./certificates.ts";
import type { Config } from "./config.ts";
import { type Clock, type Db, openStore } from "./database/database.ts";
import { randomHex } from "./database/ids.ts";
import { instant } from "./database/tables.ts";
import { openImportSpool } from "./device-imports/import-spool.ts";
import { ImportWorker } from "./device-imports/import-worker.ts";
import { ChildLookup } from "./device-link/child-lookup.ts";
import { DeviceLink } from "./device-link/device-link.ts";
import {
	type DownloadServer,
	openDownloadServer,
} from "./device-link/download-server.ts";
import {
	deviceTls,
	type MqttServer,
	openMqttServer,
} from "./device-link/mqtt-server.ts";
import { findElsewhere, openPresence } from "./device-link/presence.ts";
import { createSignIn } from "./device-link/sign-in.ts";
import { SubDevices } from "./device-link/sub-devices.ts";
import { findConnectable } from "./devices/devices.ts";
import { Events } from "./events.ts";
import { firstStart, type ListenerPorts } from "./first-start.ts";
import { Deliveries } from "./history/deliveries.ts";
import { keepHistoryShort } from "./history/retention.ts";
import { Watching, type WatchLimits } from "./history/watching.ts";
import {
	createHttpServer,
	type DeclaredRoute,
	type HttpTimes,
} from "./http/http-server.ts";
import { readJson } from "./http/read-json.ts";
import { partChecker } from "./http/schemas.ts";
import { logger, setLogLevel } from "./log.ts";
import { KeyRotation, type RotationLimits } from "./secrets/key-rotation.ts";
import { MasterKeyFile, openSealed } from "./secrets/master-key.ts";
import type { Sealed } from "./secrets/sealed.ts";
import { Exchanges } from "./upgrade-tasks/exchanges.ts";
import { Rollout } from "./upgrade-tasks/rollout.ts";
import { removeDeviceFromTasks } from "./upgrade-tasks/task-operations.ts";
import { findDownload } from "./upgrade-tasks/task-rows.ts";

/** What a test may put in place of the real thing. */
export interface Overrides {
	now?: Clock;
	watching?: Partial<WatchLimits>;
	rotation?: Partial<RotationLimits>;
	httpTimes?: Partial<HttpTimes>;
}

export interface Server extends AsyncDisposable {
	readonly db: Db;
	readonly ports: ListenerPorts;
	readonly routes: readonly DeclaredRoute[];
	/** For the person who started it: addresses and where the credentials lie, no secrets. */
	readonly greeting: readonly string[];
	/**
	 * Resolves once everything that is due has been done, and what follows from what
	 * devices said. Tests turn the clock by hand and ask for this afterwards.
	 */
	quiet(): Promise<void>;
}

const log = logger("server");
const RENEWAL_CHECK_MS = 24 * 60 * 60 * 1000;

/** Starts everything; when a part fails, what was opened before it is closed again. */
export async function startServer(
	config: Config,
	overrides: Overrides = {},
): Promise<Server> {
	await using opened = new AsyncDisposableStack();
	setLogLevel(config.logLevel);
	mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });

	const now = overrides.now ?? (() => new Date());
	const events = new Events();
	const { db, signal } = opened.use(await openStore(config.database));
	const sealed = await openSealed(config, db, now);
	const rotation = opened.use(
		new KeyRotation({
			db,
			ring: sealed,
			file:
				config.masterKey === undefined
					? new MasterKeyFile(config.dataDir)
					: undefined,
			now,
			limits: overrides.rotation ?? {},
		}),
	);
	const artifacts = opened.use(await openDisk(config.artifactsDir));
	const start = await firstStart(config, { db, sealed, now });
	const auditKey = await openChain(db, sealed, now);
	const audit = opened.use(new AuditLog({ db, key: auditKey }));
	const { cert, key, caFile } = await openDeviceCertificate(config, now);
	const nodeId = nodeIdOf(config);

	const links = createDownloadLinks({
		key: await linkKey(db, sealed, now),
		base: () => downloadBase(config.devices, downloads.port),
	});
	const exchanges = opened.use(
		new Exchanges({
			db,
			now,
			times: config.times,
			events,
			notify: (notice) => link.notify(notice),
		}),
	);
	const presence = opened.use(
		await openPresence({
			db,
			nodeId,
			now,
			events,
			onReplaced: (deviceId, connectionId) =>
				link.replaced(deviceId, connectionId),
		}),
	);
	const subDevices = opened.use(
		new SubDevices({
			db,
			sealed,
			now,
			mayRegister: config.devices.gatewaysRegister,
			checkNewDevice: partChecker(createDevice, "device"),
			onDeviceDeleted: removeDeviceFromTasks,
			changed: (change) => link.childrenChanged(change),
			record: (deviceId, report) => exchanges.record(deviceId, report),
			say: (connection, make) => link.say(connection, make),
			answer: (connection, make) => link.answer(connection, make),
		}),
	);
	const link = new DeviceLink({
		nodeId,
		children: new ChildLookup({ db, now }),
		subDevices,
		findConnectable: (deviceIds) => findConnectable(db, deviceIds),
		findElsewhere: (deviceIds) => findElsewhere(db, nodeId, deviceIds),
		hangUp: (deviceId, reason) => mqtt.disconnect(deviceId, reason),
		exchanges,
		presence,
		links,
		signal,
		times: config.times,
		events,
		now,
	});
	const rollout = opened.use(
		new Rollout({
			db,
			signal,
			now,
			times: config.times,
			artifacts,
			exchanges,
			events,
			nodeId,
			isHere: (deviceId) => link.isHere(deviceId),
			devicesHere: () => link.devicesHere(),
		}),
	);

	const mqtt: MqttServer = opened.use(
		await openMqttServer({
			config: config.devices,
			tls: { cert, key, clientCa: readClientCa(config) },
			signIn: createSignIn({ db, sealer: sealed, now, events }),
			ears: link,
			events,
		}),
	);
	const deliveries = opened.use(new Deliveries({ db, now }));
	const downloads: DownloadServer = opened.use(
		await openDownloadServer({
			config,
			tls: { cert, key, ...deviceTls },
			links,
			findDownload: (taskId, position) => findDownload(db, taskId, position),
			store: artifacts,
			events,
			now,
			onUpgrade: (request, socket, head) =>
				mqtt.handleUpgrade(request, socket, head),
			onDelivered: (delivery) => deliveries.record(delivery),
		}),
	);

	const watching = opened.use(
		new Watching({ db, events, limits: overrides.watching ?? {} }),
	);
	const { imports } = config;
	const spool = await openImportSpool(
		imports.directory,
		imports.sizeLimitBytes,
	);
	const importWorker = opened.use(
		new ImportWorker({
			db,
			signal,
			spool,
			nodeId,
			sealed,
			rights: new RightsKeeper(db, config),
			rules: { readJson, check: partChecker(deviceLine, "the line") },
			events,
			now,
		}),
	);
	await importWorker.tidyUp();

	let ready = false;
	const http = opened.use(
		await createHttpServer(config, {
			db,
			sealed,
			rotation,
			artifacts,
			signal,
			events,
			now,
			limits: config.packages,
			taskLimits: config.tasks,
			spool,
			nodeId,
			groupLimits: config.groups,
			watching,
			audit,
			auditKey,
			isReady: () => ready,
			httpTimes: overrides.httpTimes ?? {},
			onDeviceDeleted: removeDeviceFromTasks,
			disconnectDevice: (deviceId, reason) => link.disconnect(deviceId, reason),
			childrenChanged: (change) => link.childrenChanged(change),
		}),
	);
	const ports: ListenerPorts = {
		http: await http.listen(),
		device: downloads.port,
		mqtts: mqtt.tlsPort ?? config.devices.mqtts.port,
		mqtt: mqtt.port,
	};
	await rollout.start();
	importWorker.start();
	await rotation.start();
	ready = true;
	void removeOrphans(db, artifacts, now());
	opened.use(
		keepAuditShort({ db, key: auditKey, now, keepDays: config.audit.keepDays }),
	);
	opened.use(keepHistoryShort({ db, now, keepDays: config.history.keepDays }));
	opened.use(renewCertificate(config, now, [mqtt, downloads]));

	const closing = opened.move();
	return {
		db,
		ports,
		routes: http.routes,
		greeting: start.publish(ports, caFile),
		async quiet() {
			await exchanges.quiet();
			await rollout.quiet();
		},
		[Symbol.asyncDispose]: () => closing.disposeAsync(),
	};
}

/** The key that proves download links: made once, kept encrypted, the same for every process. */
async function linkKey(db: Db, sealed: Sealed, now: Clock) {
	const name = "download-links";
	await db
		.insertInto("server_secrets")
		.values({
			name,
			sealed: sealed.seal(randomBytes(32).toString("base64")),
			created_at: instant(now()),
		})
		.onConflict((conflict) => conflict.column("name").doNothing())
		.execute();
	const row = await db
		.selectFrom("server_secrets")
		.select("sealed")
		.where("name", "=", name)
		.executeTakeFirstOrThrow();
	return createSecretKey(Buffer.from(sealed.open(row.sealed), "base64"));
}

/** Keeps its value over a restart, so that what the last run left is recognised. */
function nodeIdOf(config: Config): string {
	if (config.database.kind === "sqlite") return "embedded";
	const file = join(config.dataDir, "node-id");
	if (!existsSync(file))
		writeFileSync(file, randomHex(8), { flag: "wx", mode: 0o600 });
	return readFileSync(file, "utf8").trim();
}

function readClientCa(config: Config): Buffer | undefined {
	return config.devices.clientCaFile === undefined
		? undefined
		: readFileSync(config.devices.clientCaFile);
}

interface Listener {
	renewCertificate(tls: { cert: string; key: string }): void;
}

/** A server that runs for years outlives its certificate: looked at every day. */
function renewCertificate(
	config: Config,
	now: Clock,
	listeners: readonly Listener[],
): Disposable {
	const timer = setInterval(() => {
		openDeviceCertificate(config, now)
			.then(({ cert, key, issued }) => {
				if (!issued) return;
				for (const listener of listeners)
					listener.renewCertificate({ cert, key });
				log.info("the device listeners have a new certificate");
			})
			.catch((error: unknown) => {
				log.error({ err: error }, "the certificate could not be looked at");
			});
	}, RENEWAL_CHECK_MS);
	timer.unref();
	return { [Symbol.dispose]: () => clearInterval(timer) };
}

/** Files that a process killed in the middle of an upload left without a name. */
async function removeOrphans(
	db: Db,
	artifacts: ArtifactStore,
	now: Date,
): Promise<void> {
	try {
		const removed = await sweepArtifacts(db, artifacts, now);
		if (removed > 0)
			log.info({ removed }, "removed files that no object names");
	} catch (error) {
		log.warn({ err: error }, "could not look for files that no object names");
	}
}
