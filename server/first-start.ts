/**
 * The first start on an empty store: an account, its administrator, a project and a
 * resource space, and the one file that says how to sign in.
 *
 * The secrets exist in full only in that file. So it is written before the store is,
 * under another name, and gets its name when the listeners are up: whenever the
 * process dies in between, the next start finds either an empty store or the file.
 */
import {
	existsSync,
	mkdirSync,
	readdirSync,
	readFileSync,
	renameSync,
	rmSync,
	writeFileSync,
} from "node:fs";
import { join } from "node:path";
import type { CredentialsFile } from "../wire/credentials.ts";
import {
	addAccessKey,
	newAccessKeyPair,
	newPassword,
} from "./access/access-keys.ts";
import { hashPassword } from "./access/passwords.ts";
import type { Config } from "./config.ts";
import { type Clock, type Db, inTransaction } from "./database/database.ts";
import { newRecordId, randomHex } from "./database/ids.ts";
import { instant } from "./database/tables.ts";
import type { Sealed } from "./secrets/sealed.ts";

/** The part of the file that follows the settings at every start. */
export type Endpoints = Pick<
	CredentialsFile,
	| "endpoint"
	| "device_endpoint"
	| "mqtt_endpoint"
	| "mqtts_endpoint"
	| "ca_file"
>;

/** The ports the listeners got. */
export interface ListenerPorts {
	http: number;
	device: number;
	mqtts: number;
	/** Undefined while plain MQTT is off. */
	mqtt: number | undefined;
}

export interface FirstStart {
	/** Whether this process set the store up just now. */
	isFirst: boolean;
	projectId: string;
	/** The default resource space. */
	appId: string;
	/**
	 * Writes the file at a first start, follows changed endpoints at a later one.
	 *
	 * @returns what to print for the person who started the server; no secrets.
	 */
	publish(ports: ListenerPorts, caFile: string | undefined): string[];
}

const DOMAIN_NAME = "otaru";
const USER_NAME = "admin";
const MARK = "first-start";
const FILE = "credentials.json";

/**
 * Sets an empty store up; leaves any other as it is. Of two processes that start at
 * once on one store exactly one does it, and the other waits.
 */
export async function firstStart(
	config: Config,
	{ db, sealed, now }: { db: Db; sealed: Sealed; now: Clock },
): Promise<FirstStart> {
	mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
	const isFirst =
		!(await isSetUp(db)) && (await setUp(config, db, sealed, now));
	const place = await db
		.selectFrom("resource_spaces")
		.innerJoin("projects", "projects.project_id", "resource_spaces.project_id")
		.select(["projects.project_id as projectId", "app_id as appId"])
		.where("is_default", "=", 1)
		.orderBy("projects.created_at")
		.orderBy("projects.project_id")
		.executeTakeFirstOrThrow();
	const draft = await findDraft(config.dataDir, db);
	return {
		isFirst,
		...place,
		publish(ports, caFile) {
			const endpoints = endpointsOf(config, ports, caFile);
			const written = draft
				? publishDraft(config.dataDir, draft, endpoints)
				: followEndpoints(config.dataDir, place.projectId, endpoints);
			return describe(config, place.projectId, written, endpoints);
		},
	};
}

async function isSetUp(db: Db): Promise<boolean> {
	const row = await db
		.selectFrom("server_secrets")
		.select("name")
		.where("name", "=", MARK)
		.executeTakeFirst();
	return row !== undefined;
}

/** @returns false when another process was faster. */
async function setUp(
	config: Config,
	db: Db,
	sealed: Sealed,
	now: Clock,
): Promise<boolean> {
	const pair = newAccessKeyPair();
	const password = newPassword();
	const passwordHash = await hashPassword(password);
	const ids = {
		account: randomHex(16),
		user: randomHex(16),
		project: randomHex(16),
		space: randomHex(16),
	};
	const projectName = config.regions[0] ?? DOMAIN_NAME;
	const file: CredentialsFile = {
		...NO_ENDPOINTS,
		domain_name: DOMAIN_NAME,
		user_name: USER_NAME,
		password,
		access_key: pair.accessKey,
		secret_key: pair.secretKey,
		project_id: ids.project,
		project_name: projectName,
		app_id: ids.space,
	};
	const draft = draftFile(config.dataDir, pair.accessKey);
	writeWhole(draft, file);
	const created_at = instant(now());
	const done = await inTransaction(db, async (trx) => {
		// The others wait here until this transaction ends, and then find the row.
		const mark = await trx
			.insertInto("server_secrets")
			.values({ name: MARK, sealed: sealed.seal(ids.account), created_at })
			.onConflict((conflict) => conflict.column("name").doNothing())
			.executeTakeFirst();
		if (!mark.numInsertedOrUpdatedRows) return false;
		await trx
			.insertInto("accounts")
			.values({ account_id: ids.account, name: DOMAIN_NAME, created_at })
			.execute();
		await trx
			.insertInto("users")
			.values({
				user_id: ids.user,
				account_id: ids.account,
				name: USER_NAME,
				password_hash: passwordHash,
				is_administrator: 1,
				record_id: newRecordId(now()),
				created_at,
			})
			.execute();
		await addAccessKey(trx, sealed, ids.user, pair, now);
		await trx
			.insertInto("projects")
			.values({
				project_id: ids.project,
				account_id: ids.account,
				name: projectName,
				created_at,
			})
			.execute();
		await trx
			.insertInto("resource_spaces")
			.values({
				app_id: ids.space,
				record_id: newRecordId(now()),
				project_id: ids.project,
				name: "DefaultApp",
				is_default: 1,
				created_at,
			})
			.execute();
		return true;
	});
	if (!done) rmSync(draft, { force: true });
	return done;
}

// --- the file ---------------------------------------------------------------------

const NO_ENDPOINTS: Endpoints = {
	endpoint: "",
	device_endpoint: "",
	mqtt_endpoint: "",
	mqtts_endpoint: "",
	ca_file: "",
};

function draftFile(dataDir: string, accessKey: string): string {
	return join(dataDir, `credentials-${accessKey}.new`);
}

/** A draft whose key the store knows: from just now, or from a process that died before its name. */
async function findDraft(
	dataDir: string,
	db: Db,
): Promise<{ path: string; content: CredentialsFile } | undefined> {
	for (const name of readdirSync(dataDir)) {
		const accessKey = /^credentials-([A-Z0-9]+)\.new$/.exec(name)?.[1];
		if (accessKey === undefined) continue;
		const known = await db
			.selectFrom("access_keys")
			.select("access_key")
			.where("access_key", "=", accessKey)
			.executeTakeFirst();
		const path = join(dataDir, name);
		const content = readCredentials(path);
		if (known && content) return { path, content };
	}
	return undefined;
}

function publishDraft(
	dataDir: string,
	draft: { path: string; content: CredentialsFile },
	endpoints: Endpoints,
): boolean {
	const file = join(dataDir, FILE);
	const before = readCredentials(file);
	// Of another store, used with this directory before: nobody else has its secrets.
	if (before && before.project_id !== draft.content.project_id)
		renameSync(file, join(dataDir, `credentials-${before.project_id}.json`));
	writeWhole(file, { ...draft.content, ...endpoints });
	rmSync(draft.path, { force: true });
	return true;
}

/** @returns whether the file is there and is this store's. */
function followEndpoints(
	dataDir: string,
	projectId: string,
	endpoints: Endpoints,
): boolean {
	const file = join(dataDir, FILE);
	const before = readCredentials(file);
	if (before?.project_id !== projectId) return false;
	const after = { ...before, ...endpoints };
	if (JSON.stringify(after) !== JSON.stringify(before)) writeWhole(file, after);
	return true;
}

/** Undefined when it is not there or no such file. */
function readCredentials(file: string): CredentialsFile | undefined {
	if (!existsSync(file)) return undefined;
	try {
		const value: unknown = JSON.parse(readFileSync(file, "utf8"));
		return typeof value === "object" &&
			value !== null &&
			"project_id" in value &&
			typeof value.project_id === "string"
			? (value as CredentialsFile)
			: undefined;
	} catch {
		return undefined;
	}
}

/** For its owner's eyes only; never seen half written. */
function writeWhole(file: string, content: CredentialsFile): void {
	const draft = `${file}.${process.pid}.part`;
	writeFileSync(draft, `${JSON.stringify(content, null, 2)}\n`, {
		mode: 0o600,
		flush: true,
	});
	renameSync(draft, file);
}

// --- addresses and words ------------------------------------------------------------

function endpointsOf(
	config: Config,
	ports: ListenerPorts,
	caFile: string | undefined,
): Endpoints {
	const { http, devices } = config;
	const device = inUrl(devices.publicHost);
	return {
		endpoint:
			http.publicUrl ??
			`${http.tls ? "https" : "http"}://${inUrl(reachable(http.host, "127.0.0.1"))}:${ports.http}`,
		device_endpoint: devices.publicUrl ?? `https://${device}:${ports.device}`,
		mqtt_endpoint:
			devices.mqtt && ports.mqtt !== undefined
				? `mqtt://${inUrl(reachable(devices.mqtt.host, devices.publicHost))}:${ports.mqtt}`
				: "",
		mqtts_endpoint: `mqtts://${device}:${ports.mqtts}`,
		ca_file: caFile ?? "",
	};
}

/** A listener on all addresses is reached by one of them. */
function reachable(host: string, instead: string): string {
	return host === "0.0.0.0" || host === "::" ? instead : host;
}

function inUrl(host: string): string {
	return host.includes(":") && !host.startsWith("[") ? `[${host}]` : host;
}

function describe(
	config: Config,
	projectId: string,
	hasFile: boolean,
	endpoints: Endpoints,
): string[] {
	const { endpoint } = endpoints;
	const file = join(config.dataDir, FILE);
	const lines = [
		`Otaru is ready at ${endpoint}`,
		`  project      ${projectId}`,
		`  devices      ${[endpoints.mqtts_endpoint, endpoints.mqtt_endpoint, endpoints.device_endpoint].filter(Boolean).join("  ")}`,
	];
	if (endpoints.ca_file) lines.push(`  devices trust ${endpoints.ca_file}`);
	if (!hasFile) return lines;
	const credential = (key: keyof CredentialsFile) =>
		`$(sed -n 's/.*"${key}": "\\(.*\\)".*/\\1/p' ${shellText(file)})`;
	lines.push(
		`  user         ${USER_NAME} of ${DOMAIN_NAME}; password and access key are in ${file}`,
		"",
		"Try it:",
		`  token=$(curl -s -D - -o /dev/null ${endpoint}/v3/auth/tokens -d '{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"${USER_NAME}","domain":{"name":"${DOMAIN_NAME}"},"password":"'"${credential("password")}"'"}}},"scope":{"project":{"id":"${projectId}"}}}}' | tr -d '\\r' | awk 'tolower($1) == "x-subject-token:" {print $2}')`,
		`  curl -s -H "X-Auth-Token: $token" ${endpoint}/v5/iot/${projectId}/apps`,
	);
	return lines;
}

function shellText(text: string): string {
	return /^[A-Za-z0-9_./-]+$/.test(text)
		? text
		: `'${text.replaceAll("'", "'\\''")}'`;
}
