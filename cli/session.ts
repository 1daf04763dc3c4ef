/** Which server a command talks to, and as whom: from options, else from the server's own data directory. */
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Client } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import { CommandError, exitCodes } from "./errors.ts";

/** The options of every command that talks to a server. */
export const sessionOptions = {
	data: { type: "string" },
	endpoint: { type: "string" },
	"access-key": { type: "string" },
	"secret-key": { type: "string" },
	"project-id": { type: "string" },
	"app-id": { type: "string" },
	broker: { type: "string" },
	"ca-file": { type: "string" },
} as const;

export const sessionHelp = `  --data DIR           data directory of the server, whose credentials.json tells the
                       rest (./data, or what OTARU_DATA says)
  --endpoint URL       management API, such as http://127.0.0.1:8080
  --access-key, --secret-key, --project-id
                       who you are there
  --app-id ID          resource space (the default one)
  --broker URL         where devices connect: mqtts://host:8883
  --ca-file FILE       PEM of the authority behind the server's certificate`;

export type Transport = "mqtt" | "mqtts" | "wss";

export interface Session {
	client: Client;
	/** Undefined: the server's default space. */
	appId: string | undefined;
	/** PEM, for the device listeners. */
	ca: string | undefined;
	/**
	 * Where devices connect: one address, or several to be used in turn for `mixed`.
	 *
	 * @throws CommandError when the server has no such listener.
	 */
	brokers(transport: string): string[];
}

type Values = { [K in keyof typeof sessionOptions]?: string | undefined };

/** @throws CommandError when it stays unknown where the server is or who is calling. */
export function openSession(values: Values): Session {
	const file = credentialsFile(values.data);
	const stored = existsSync(file) ? readCredentials(file) : undefined;
	const need = (name: keyof Values, fallback: string | undefined): string => {
		const value = values[name] ?? fallback;
		if (value !== undefined) return value;
		throw new CommandError(
			`It is not known which server to talk to: there is no ${file}, and --${name} is not given.`,
			"Start a server with npm start, name its directory with --data, or give --endpoint, --access-key, --secret-key and --project-id.",
			exitCodes.usage,
		);
	};
	// A key belongs to the server it was found with.
	const same = values.endpoint === undefined ? stored : undefined;
	const client = new Client({
		endpoint: need("endpoint", stored?.endpoint),
		projectId: need("project-id", same?.project_id),
		credentials: {
			accessKey: need("access-key", same?.access_key),
			secretKey: need("secret-key", same?.secret_key),
		},
	});
	const caFile = values["ca-file"] ?? (same?.ca_file || undefined);
	return {
		client,
		appId: values["app-id"] ?? same?.app_id,
		ca: caFile === undefined ? undefined : readText(caFile, "--ca-file"),
		brokers: (transport) =>
			values.broker === undefined
				? brokersOf(same, transport)
				: [checkBroker(values.broker)],
	};
}

function credentialsFile(directory: string | undefined): string {
	const data = directory ?? (process.env.OTARU_DATA?.trim() || "data");
	return join(resolve(data), "credentials.json");
}

function readCredentials(file: string): CredentialsFile {
	try {
		return JSON.parse(readText(file, "--data")) as CredentialsFile;
	} catch (error) {
		if (error instanceof CommandError) throw error;
		throw new CommandError(
			`${file} is not readable as JSON.`,
			"Name the server with --endpoint, --access-key, --secret-key and --project-id instead.",
			exitCodes.usage,
		);
	}
}

function readText(file: string, option: string): string {
	try {
		return readFileSync(file, "utf8");
	} catch (error) {
		const reason = error instanceof Error ? error.message : String(error);
		throw new CommandError(
			`A file cannot be read: ${reason}.`,
			`Run the command as the user of the server, or name another with ${option}.`,
			exitCodes.usage,
		);
	}
}

function brokersOf(
	stored: CredentialsFile | undefined,
	transport: string,
): string[] {
	if (!isTransport(transport) && transport !== "mixed") {
		throw new CommandError(
			`--transport must be mqtt, mqtts, wss or mixed, not "${transport}".`,
			"See otaru simulate --help.",
			exitCodes.usage,
		);
	}
	if (!stored) {
		throw new CommandError(
			"It is not known where devices connect: --broker is missing.",
			"Give it as mqtts://host:8883, with --ca-file for its certificate.",
			exitCodes.usage,
		);
	}
	const addresses: Record<Transport, string | undefined> = {
		mqtt: stored.mqtt_endpoint
			? brokerUrl("mqtt", stored.mqtt_endpoint)
			: undefined,
		mqtts: brokerUrl("mqtts", stored.mqtts_endpoint),
		wss: `${brokerUrl("wss", stored.device_endpoint)}/mqtt`,
	};
	const wanted: readonly Transport[] =
		transport === "mixed" ? ["mqtt", "mqtts", "wss"] : [transport];
	const found = wanted
		.map((name) => addresses[name])
		.filter((address) => address !== undefined);
	if (found.length > 0) return found;
	throw new CommandError(
		"This server has no listener for plain MQTT.",
		"Use --transport mqtts.",
		exitCodes.usage,
	);
}

/** The address of a listener with the scheme its devices use, without a path. */
export function brokerUrl(transport: Transport, endpoint: string): string {
	const bare = endpoint.replace(/^[a-z]+:\/\//, "").replace(/\/.*$/, "");
	return `${transport}://${bare}`;
}

function checkBroker(broker: string): string {
	const url = URL.parse(broker);
	if (url && /^(mqtts?|wss):$/.test(url.protocol) && url.port !== "")
		return broker;
	throw new CommandError(
		`--broker must be mqtt://, mqtts:// or wss:// with host and port, not "${broker}".`,
		"For example mqtts://127.0.0.1:8883 or wss://127.0.0.1:8943/mqtt.",
		exitCodes.usage,
	);
}

function isTransport(text: string): text is Transport {
	return text === "mqtt" || text === "mqtts" || text === "wss";
}
