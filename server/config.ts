/**
 * Environment -> checked, typed configuration. Names in one place, read once,
 * refused early: a server with a setting that makes no sense does not start.
 */
import { networkInterfaces } from "node:os";
import { join, resolve } from "node:path";

export interface Config {
	/** Absolute path of the data directory. */
	dataDir: string;
	database: DatabaseConfig;
	/** Absolute path of the directory that holds the bytes of packages. */
	artifactsDir: string;
	/**
	 * Base64 or hex of 32 bytes, or several of them separated by commas; absent:
	 * `master.key` in the data directory, made at first start.
	 */
	masterKey: string | undefined;
	logLevel: LogLevel;
	http: HttpConfig;
	devices: DevicesConfig;
	packages: PackagesConfig;
	imports: ImportsConfig;
	groups: GroupLimits;
	tasks: TasksConfig;
	times: UpgradeTimes;
	history: HistoryConfig;
	audit: AuditConfig;
	/** Regions that a V11 signature may name, beside `globe`; the first is the project's name. */
	regions: readonly string[];
	/** When set, a request whose `Instance-Id` differs is refused. */
	instanceId: string | undefined;
}

export type DatabaseConfig =
	| { kind: "sqlite"; file: string }
	| { kind: "postgres"; url: string; connections: number };

export interface HttpConfig {
	host: string;
	/** 0 takes a free port. */
	port: number;
	tls: { certFile: string; keyFile: string } | undefined;
	/** How people and SDKs reach the management API from outside; absent: host and port. */
	publicUrl: string | undefined;
	/** Addresses or CIDR blocks whose `X-Forwarded-*` headers are believed. */
	trustedProxies: readonly string[];
	/** Bytes of a JSON body. */
	bodyLimitBytes: number;
	/** Connections at once. */
	maxConnections: number;
	/** The same of one address; 0: no limit. */
	connectionsPerAddress: number;
	/** Calls of one project, or of one account about no project, in this process; 0: no limit. */
	requestsPerSecond: number;
	/** Of web pages that may read answers; none: no page of another origin. */
	corsOrigins: readonly string[];
}

export interface DevicesConfig {
	/** Host name or address under which devices reach this server; in download links. */
	publicHost: string;
	mqtt: Listener | undefined;
	mqtts: Listener;
	https: Listener;
	/** Full base of download links when a proxy stands in front; absent: public host and HTTPS port. */
	publicUrl: string | undefined;
	/** Own certificate for the device listeners; absent: one issued by the server's own authority. */
	tls: { certFile: string; keyFile: string } | undefined;
	/** PEM file of authorities whose device certificates are accepted, beside fingerprints. */
	clientCaFile: string | undefined;
	/** How long a connection may take from accept to a complete CONNECT. */
	signInTimeoutMs: number;
	keepAliveMinSeconds: number;
	keepAliveMaxSeconds: number;
	/** Largest PUBLISH, bytes. */
	messageLimitBytes: number;
	/** Uplink messages per second of one connection before reading is slowed; 0: no limit. */
	messagesPerSecond: number;
	/** Uplink bytes per second of one connection before reading is slowed; 0: no limit. */
	bytesPerSecond: number;
	maxConnections: number;
	/** Whether gateways may register and delete the devices behind them. */
	gatewaysRegister: boolean;
}

export interface Listener {
	host: string;
	port: number;
}

export interface ImportsConfig {
	/** Absolute path of the directory that holds files while they are imported. */
	directory: string;
	/** Largest file. */
	sizeLimitBytes: number;
}

export interface PackagesConfig {
	/** Largest package file. */
	sizeLimitBytes: number;
	/** Lower case, each beginning with a dot. */
	suffixes: readonly string[];
}

export interface GroupLimits {
	groupsPerProject: number;
	/** Of a static group; a dynamic one may have any number. */
	devicesPerGroup: number;
	/** Static ones. */
	groupsPerDevice: number;
	/** Levels of groups, one below the other. */
	depth: number;
}

export interface TasksConfig {
	/** The most devices that one task may list. */
	targets: number;
}

export interface HistoryConfig {
	/** How long what happened is remembered; 0: for ever. */
	keepDays: number;
}

export interface AuditConfig {
	/** How long it is remembered who did what; 0: for ever. */
	keepDays: number;
}

/** The limits on each step of an upgrade; the vendor's values are the defaults. */
export interface UpgradeTimes {
	/** An offline device is waited for this long. */
	onlineTimeoutMs: number;
	/** Time to answer a version query. */
	versionTimeoutMs: number;
	/** Download, installation and report together; also the life of a download link. */
	upgradeTimeoutMs: number;
	/** A notice is repeated to a reconnecting device at most this often. */
	resendIntervalMs: number;
	/** Pause between a device's connection and the first word to it. */
	connectPauseMs: number;
}

export type LogLevel = "debug" | "info" | "warn" | "error" | "silent";
type Env = Record<string, string | undefined>;

/** A setting that keeps the server from starting; the message names the variable. */
export class ConfigError extends Error {
	override name = "ConfigError";
}

/** Every setting with its default and meaning, for the README's table and `otaru settings`. */
export const settings = {
	OTARU_DATA: [
		"./data",
		"directory of the store, the package files and the keys",
	],
	OTARU_DATABASE_URL: [
		"",
		"postgres://… ; empty: the embedded SQLite store in OTARU_DATA",
	],
	OTARU_DATABASE_CONNECTIONS: ["16", "size of the PostgreSQL connection pool"],
	OTARU_ARTIFACTS: [
		"",
		"directory of the package files; empty: artifacts in OTARU_DATA",
	],
	OTARU_MASTER_KEY: [
		"",
		"32 bytes as hex or base64 that encrypt stored secrets; of several, separated by commas, the first; empty: master.key in OTARU_DATA",
	],
	OTARU_LOG_LEVEL: ["info", "debug, info, warn, error or silent"],
	OTARU_HTTP_HOST: ["127.0.0.1", "address of the management API"],
	OTARU_HTTP_PORT: ["8080", "its port; 0 takes a free one"],
	OTARU_HTTP_TLS_CERT: [
		"",
		"PEM certificate of the management API; empty: plain HTTP",
	],
	OTARU_HTTP_TLS_KEY: ["", "PEM key that belongs to it"],
	OTARU_HTTP_PUBLIC_URL: [
		"",
		"how people reach the management API when a proxy stands in front",
	],
	OTARU_TRUSTED_PROXIES: [
		"",
		"addresses or networks whose forwarded headers are believed, separated by commas",
	],
	OTARU_HTTP_BODY_LIMIT: ["12582912", "largest JSON body, bytes"],
	OTARU_HTTP_MAX_CONNECTIONS: [
		"10000",
		"connections to the management API of this process",
	],
	OTARU_HTTP_CONNECTIONS_PER_ADDRESS: [
		"1000",
		"the same of one address that is no trusted proxy; 0: no limit",
	],
	OTARU_REQUESTS_PER_SECOND: [
		"0",
		"calls of one project to this process before they are answered 429; 0: no limit",
	],
	OTARU_CORS_ORIGINS: [
		"",
		"origins of web pages that may call the management API, such as https://ota.example.com, separated by commas",
	],
	OTARU_DEVICE_PUBLIC_HOST: [
		"",
		"host devices reach this server by; empty: OTARU_DEVICE_HOST, or the first IPv4 address of the machine",
	],
	OTARU_DEVICE_PUBLIC_URL: [
		"",
		"base of download links when a proxy stands in front; needs https and a port",
	],
	OTARU_DEVICE_HOST: ["0.0.0.0", "address of the device listeners with TLS"],
	OTARU_MQTTS_PORT: ["8883", "MQTT over TLS"],
	OTARU_DEVICE_PORT: [
		"8943",
		"HTTPS for package downloads, and MQTT over WebSocket at /mqtt",
	],
	OTARU_MQTT_HOST: ["127.0.0.1", "address of plain MQTT"],
	OTARU_MQTT_PORT: ["1883", "plain MQTT; off closes it"],
	OTARU_DEVICE_TLS_CERT: [
		"",
		"PEM certificate of the device listeners; empty: issued by the server's own authority",
	],
	OTARU_DEVICE_TLS_KEY: ["", "PEM key that belongs to it"],
	OTARU_DEVICE_CLIENT_CA: ["", "PEM authorities of device certificates"],
	OTARU_DEVICE_SIGN_IN_SECONDS: [
		"20",
		"a connection that has not signed in by then is closed",
	],
	OTARU_DEVICE_KEEP_ALIVE_MIN: [
		"30",
		"shortest keep-alive a device may ask for, seconds",
	],
	OTARU_DEVICE_KEEP_ALIVE_MAX: ["1200", "longest one, seconds"],
	OTARU_DEVICE_MESSAGE_LIMIT: ["1048576", "largest MQTT message, bytes"],
	OTARU_DEVICE_MESSAGES_PER_SECOND: [
		"50",
		"uplink rate of one device before it is slowed; 0: no limit",
	],
	OTARU_DEVICE_BYTES_PER_SECOND: [
		"125000",
		"uplink bytes of one device before it is slowed; 0: no limit",
	],
	OTARU_DEVICE_MAX_CONNECTIONS: [
		"100000",
		"device connections of this process",
	],
	OTARU_GATEWAYS_REGISTER: [
		"off",
		"on: gateways may register and delete the devices behind them",
	],
	OTARU_IMPORT_SIZE_LIMIT: [
		"1073741824",
		"largest file of devices to be imported, bytes",
	],
	OTARU_PACKAGE_SIZE_LIMIT: ["1073741824", "largest package file, bytes"],
	OTARU_PACKAGE_SUFFIXES: [
		".bin,.dav,.tar,.gz,.zip,.gzip,.apk,.tar.gz,.tar.xz,.pack,.exe,.bat,.img",
		"file name endings of packages, separated by commas",
	],
	OTARU_GROUPS_LIMIT: ["1000", "device groups of one project"],
	OTARU_GROUP_DEPTH_LIMIT: ["5", "levels of device groups below each other"],
	OTARU_GROUP_DEVICES_LIMIT: [
		"20000",
		"devices of one static group; dynamic groups know no such limit",
	],
	OTARU_DEVICE_GROUPS_LIMIT: ["10", "static groups of one device"],
	OTARU_TASK_TARGETS_LIMIT: [
		"30000",
		"most devices that one task may list; groups know no such limit",
	],
	OTARU_ONLINE_TIMEOUT_SECONDS: [
		"90000",
		"how long a task waits for an offline device (25 h)",
	],
	OTARU_VERSION_TIMEOUT_SECONDS: ["180", "time to answer a version query"],
	OTARU_UPGRADE_TIMEOUT_SECONDS: [
		"86400",
		"download, installation and report together (24 h)",
	],
	OTARU_RESEND_INTERVAL_SECONDS: [
		"600",
		"a notice is repeated to a reconnecting device at most this often",
	],
	OTARU_CONNECT_PAUSE_MS: [
		"500",
		"pause between a device's connection and the first word to it",
	],
	OTARU_HISTORY_DAYS: [
		"90",
		"days that the timelines of devices reach back; 0: for ever",
	],
	OTARU_AUDIT_DAYS: [
		"365",
		"days that the audit trail reaches back; 0: for ever",
	],
	OTARU_REGIONS: [
		"otaru",
		"region names that signatures may carry, separated by commas; the first names the project",
	],
	OTARU_INSTANCE_ID: [
		"",
		"when set, requests with another Instance-Id are refused",
	],
} as const satisfies Record<
	string,
	readonly [defaultValue: string, meaning: string]
>;

type Setting = keyof typeof settings;

/** What the `otaru` command and the samples read; a shell may have set them for those. */
const ofTheCommandLine = [
	"OTARU_ENDPOINT",
	"OTARU_PROJECT_ID",
	"OTARU_PASSWORD",
	"OTARU_TOKEN",
];

/** @throws ConfigError naming the variable and the rule. */
export function readConfig(env: Env = process.env): Config {
	for (const name of Object.keys(env)) {
		if (
			name.startsWith("OTARU_") &&
			!(name in settings) &&
			!ofTheCommandLine.includes(name) &&
			!name.startsWith("OTARU_TEST_")
		) {
			throw new ConfigError(
				`${name} is not a setting of this server; see the table in README.md.`,
			);
		}
	}
	const text = (name: Setting) => (env[name] ?? "").trim() || settings[name][0];
	const optional = (name: Setting) => text(name) || undefined;
	const list = (name: Setting) =>
		text(name)
			.split(",")
			.map((item) => item.trim())
			.filter(Boolean);
	const integer = (name: Setting, min: number, max: number) => {
		const value = Number(text(name));
		if (!Number.isInteger(value) || value < min || value > max) {
			throw new ConfigError(
				`${name} must be a whole number from ${min} to ${max}, not "${text(name)}".`,
			);
		}
		return value;
	};
	const seconds = (name: Setting) => {
		const value = Number(text(name));
		if (!Number.isFinite(value) || value <= 0 || value > 31_536_000) {
			throw new ConfigError(
				`${name} must be a number of seconds above 0 and within a year, not "${text(name)}".`,
			);
		}
		return Math.round(value * 1000);
	};
	const isOn = (name: Setting) => {
		const value = text(name);
		if (value !== "on" && value !== "off")
			throw new ConfigError(`${name} must be on or off, not "${value}".`);
		return value === "on";
	};
	const pair = (cert: Setting, key: Setting) => {
		const certFile = optional(cert);
		const keyFile = optional(key);
		if (certFile && keyFile)
			return { certFile: resolve(certFile), keyFile: resolve(keyFile) };
		if (certFile || keyFile)
			throw new ConfigError(
				`${cert} and ${key} belong together: set both or neither.`,
			);
		return undefined;
	};
	const url = (name: Setting, check: (url: URL) => string | undefined) => {
		const value = optional(name);
		if (value === undefined) return undefined;
		const parsed = URL.parse(value);
		const fault = parsed ? check(parsed) : "must be an absolute URL";
		if (fault) throw new ConfigError(`${name} ${fault}, not "${value}".`);
		return value.replace(/\/+$/, "");
	};

	const dataDir = resolve(text("OTARU_DATA"));
	const artifacts = optional("OTARU_ARTIFACTS");
	if (artifacts?.includes("://")) {
		throw new ConfigError(
			"OTARU_ARTIFACTS must be a directory: buckets are not supported by this version.",
		);
	}
	const logLevel = text("OTARU_LOG_LEVEL");
	if (!isLogLevel(logLevel)) {
		throw new ConfigError(
			`OTARU_LOG_LEVEL must be debug, info, warn, error or silent, not "${logLevel}".`,
		);
	}
	const keepAliveMinSeconds = integer("OTARU_DEVICE_KEEP_ALIVE_MIN", 1, 65535);
	const keepAliveMaxSeconds = integer("OTARU_DEVICE_KEEP_ALIVE_MAX", 1, 65535);
	if (keepAliveMinSeconds > keepAliveMaxSeconds) {
		throw new ConfigError(
			"OTARU_DEVICE_KEEP_ALIVE_MIN is larger than OTARU_DEVICE_KEEP_ALIVE_MAX.",
		);
	}
	const plainMqtt = text("OTARU_MQTT_PORT");
	const deviceHost = text("OTARU_DEVICE_HOST");
	const publicUrl = url("OTARU_DEVICE_PUBLIC_URL", (u) =>
		u.protocol !== "https:"
			? "must begin with https://"
			: !/:\d+$/.test(u.origin) &&
					!/:\d+/.test(text("OTARU_DEVICE_PUBLIC_URL").slice(8))
				? "must name its port, since some devices cannot do without"
				: undefined,
	);
	if (publicUrl && optional("OTARU_DEVICE_PUBLIC_HOST")) {
		throw new ConfigError(
			"OTARU_DEVICE_PUBLIC_URL and OTARU_DEVICE_PUBLIC_HOST contradict each other: set one of them.",
		);
	}
	return {
		dataDir,
		database: readDatabase(
			env,
			dataDir,
			integer("OTARU_DATABASE_CONNECTIONS", 2, 500),
		),
		artifactsDir: artifacts ? resolve(artifacts) : join(dataDir, "artifacts"),
		masterKey: optional("OTARU_MASTER_KEY"),
		logLevel,
		http: {
			host: text("OTARU_HTTP_HOST"),
			port: integer("OTARU_HTTP_PORT", 0, 65535),
			tls: pair("OTARU_HTTP_TLS_CERT", "OTARU_HTTP_TLS_KEY"),
			publicUrl: url("OTARU_HTTP_PUBLIC_URL", (u) =>
				u.protocol === "https:" || u.protocol === "http:"
					? undefined
					: "must begin with http:// or https://",
			),
			trustedProxies: list("OTARU_TRUSTED_PROXIES"),
			bodyLimitBytes: integer("OTARU_HTTP_BODY_LIMIT", 1024, 1 << 30),
			maxConnections: integer("OTARU_HTTP_MAX_CONNECTIONS", 1, 1_000_000),
			connectionsPerAddress: integer(
				"OTARU_HTTP_CONNECTIONS_PER_ADDRESS",
				0,
				1_000_000,
			),
			requestsPerSecond: integer("OTARU_REQUESTS_PER_SECOND", 0, 1_000_000),
			corsOrigins: readOrigins(list("OTARU_CORS_ORIGINS")),
		},
		devices: {
			publicHost: publicUrl
				? new URL(publicUrl).hostname
				: (optional("OTARU_DEVICE_PUBLIC_HOST") ?? reachableHost(deviceHost)),
			mqtt:
				plainMqtt === "off"
					? undefined
					: {
							host: text("OTARU_MQTT_HOST"),
							port: integer("OTARU_MQTT_PORT", 0, 65535),
						},
			mqtts: { host: deviceHost, port: integer("OTARU_MQTTS_PORT", 0, 65535) },
			https: { host: deviceHost, port: integer("OTARU_DEVICE_PORT", 0, 65535) },
			publicUrl,
			tls: pair("OTARU_DEVICE_TLS_CERT", "OTARU_DEVICE_TLS_KEY"),
			clientCaFile: optional("OTARU_DEVICE_CLIENT_CA"),
			signInTimeoutMs: seconds("OTARU_DEVICE_SIGN_IN_SECONDS"),
			keepAliveMinSeconds,
			keepAliveMaxSeconds,
			messageLimitBytes: integer("OTARU_DEVICE_MESSAGE_LIMIT", 1024, 1 << 28),
			messagesPerSecond: integer(
				"OTARU_DEVICE_MESSAGES_PER_SECOND",
				0,
				1_000_000,
			),
			bytesPerSecond: integer("OTARU_DEVICE_BYTES_PER_SECOND", 0, 1 << 30),
			maxConnections: integer("OTARU_DEVICE_MAX_CONNECTIONS", 1, 10_000_000),
			gatewaysRegister: isOn("OTARU_GATEWAYS_REGISTER"),
		},
		imports: {
			directory: join(dataDir, "imports"),
			sizeLimitBytes: integer("OTARU_IMPORT_SIZE_LIMIT", 1, 2 ** 31 - 1),
		},
		packages: {
			sizeLimitBytes: integer("OTARU_PACKAGE_SIZE_LIMIT", 1, 2 ** 31 - 1),
			suffixes: readSuffixes(list("OTARU_PACKAGE_SUFFIXES")),
		},
		groups: {
			groupsPerProject: integer("OTARU_GROUPS_LIMIT", 1, 100_000),
			devicesPerGroup: integer("OTARU_GROUP_DEVICES_LIMIT", 1, 250_000),
			groupsPerDevice: integer("OTARU_DEVICE_GROUPS_LIMIT", 1, 1_000),
			depth: integer("OTARU_GROUP_DEPTH_LIMIT", 1, 100),
		},
		tasks: {
			targets: integer("OTARU_TASK_TARGETS_LIMIT", 1, 1_000_000),
		},
		times: {
			onlineTimeoutMs: seconds("OTARU_ONLINE_TIMEOUT_SECONDS"),
			versionTimeoutMs: seconds("OTARU_VERSION_TIMEOUT_SECONDS"),
			upgradeTimeoutMs: seconds("OTARU_UPGRADE_TIMEOUT_SECONDS"),
			resendIntervalMs: seconds("OTARU_RESEND_INTERVAL_SECONDS"),
			connectPauseMs: integer("OTARU_CONNECT_PAUSE_MS", 0, 60_000),
		},
		history: { keepDays: integer("OTARU_HISTORY_DAYS", 0, 36_500) },
		audit: { keepDays: integer("OTARU_AUDIT_DAYS", 0, 36_500) },
		regions: list("OTARU_REGIONS"),
		instanceId: optional("OTARU_INSTANCE_ID"),
	};
}

function readDatabase(
	env: Env,
	dataDir: string,
	connections: number,
): DatabaseConfig {
	const value = (env.OTARU_DATABASE_URL ?? "").trim();
	if (value === "") return { kind: "sqlite", file: join(dataDir, "otaru.db") };
	if (!/^postgres(ql)?:\/\//.test(value)) {
		throw new ConfigError(
			"OTARU_DATABASE_URL must begin with postgres:// or be empty for the embedded store.",
		);
	}
	return { kind: "postgres", url: value, connections };
}

/** As browsers write them: scheme, host and port, and nothing behind. */
function readOrigins(origins: string[]): string[] {
	for (const origin of origins) {
		if (
			!/^https?:\/\//.test(origin) ||
			origin.includes("*") ||
			URL.parse(origin)?.origin !== origin
		) {
			throw new ConfigError(
				`OTARU_CORS_ORIGINS: "${origin}" must be an origin such as https://ota.example.com, in lower case, without a path and without *.`,
			);
		}
	}
	return origins;
}

function readSuffixes(suffixes: string[]): string[] {
	for (const suffix of suffixes) {
		if (!/^(\.[A-Za-z0-9]+)+$/.test(suffix)) {
			throw new ConfigError(
				`OTARU_PACKAGE_SUFFIXES: "${suffix}" must be a dot followed by letters and digits.`,
			);
		}
	}
	return suffixes.map((suffix) => suffix.toLowerCase());
}

function isLogLevel(text: string): text is LogLevel {
	return ["debug", "info", "warn", "error", "silent"].includes(text);
}

/** An address under which a listener bound to `host` can be reached. */
function reachableHost(host: string): string {
	if (host !== "0.0.0.0" && host !== "::") return host;
	for (const addresses of Object.values(networkInterfaces())) {
		for (const address of addresses ?? []) {
			if (address.family === "IPv4" && !address.internal)
				return address.address;
		}
	}
	return "127.0.0.1";
}
