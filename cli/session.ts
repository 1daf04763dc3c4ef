/**
 * Which server a command talks to, and as whom: from options, else from the environment,
 * else from the server's own data directory.
 */
import { existsSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import type { CreateToken } from "../wire/access.ts";
import { Client, readFailure } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import { adviseOnRefusedProof, CommandError, exitCodes } from "./errors.ts";
import { columns } from "./output.ts";
import { askHidden, canAsk, readPassword } from "./terminal.ts";

/** The options of every command that talks to a server. */
export const serverOptions = {
	data: { type: "string" },
	endpoint: { type: "string" },
	"project-id": { type: "string" },
	"access-key": { type: "string" },
	"secret-key": { type: "string" },
	as: { type: "string" },
	domain: { type: "string" },
	"as-password-file": { type: "string" },
} as const;

/** The options of a command that also lets devices connect. */
export const sessionOptions = {
	...serverOptions,
	"app-id": { type: "string" },
	broker: { type: "string" },
	"ca-file": { type: "string" },
} as const;

export const serverHelp = `  --data DIR           data directory of the server, whose credentials.json tells the
                       rest (./data, or what OTARU_DATA says)
  --endpoint URL       management API, such as http://127.0.0.1:8080
  --project-id ID      project (the one of credentials.json, or the only one there is)
  --access-key KEY, --secret-key SECRET
                       who you are: an access key,
  --as NAME            or a user with his password, which is asked for on a terminal
  --as-password-file FILE
                       the password (- for standard input)
  --domain NAME        the account of that user (otaru)

  What no option says is taken from the environment: OTARU_ENDPOINT, OTARU_PROJECT_ID,
  HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK, and with --as OTARU_PASSWORD; then from
  credentials.json. With --data the environment names no server and no key.`;

export const sessionHelp = `${serverHelp}
  --app-id ID          resource space (the default one)
  --broker URL         where devices connect: mqtts://host:8883
  --ca-file FILE       PEM of the authority behind the server's certificate`;

export type Transport = "mqtt" | "mqtts" | "wss";

/** How the caller proves who he is. */
export type Proof =
	| { kind: "key"; accessKey: string; secretKey: string }
	| {
			kind: "password";
			userName: string;
			domainName: string;
			password: string;
	  };

export interface Session {
	client: Client;
	proof: Proof;
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

/** A server, and what the data directory knows of it. */
interface Place {
	endpoint: string;
	file: string;
	/** The content of that file; undefined: there is none, or it is another server's. */
	stored: CredentialsFile | undefined;
	/** What named another server than the file. */
	namedElsewhere: string | undefined;
}

/**
 * @param needs `account`: the calls concern no project, so none need be known.
 * @throws CommandError when it stays unknown where the server is or who is calling.
 */
export async function openSession(
	values: Values,
	needs: "account" | "project" = "project",
): Promise<Session> {
	const place = findPlace(values);
	const proof = await findProof(values, place);
	const projectId =
		values["project-id"] ??
		environment(values, "OTARU_PROJECT_ID") ??
		place.stored?.project_id;
	const client = await openClient(place.endpoint, proof, projectId, needs);
	const { stored } = place;
	const caFile = values["ca-file"] ?? (stored?.ca_file || undefined);
	return {
		client,
		proof,
		appId: values["app-id"] ?? stored?.app_id,
		ca: caFile === undefined ? undefined : readText(caFile, "--ca-file"),
		brokers: (transport) =>
			values.broker === undefined
				? brokersOf(stored, transport)
				: [checkBroker(values.broker)],
	};
}

// --- where -------------------------------------------------------------------------

function findPlace(values: Values): Place {
	const file = credentialsFile(values.data);
	const stored = existsSync(file) ? readCredentials(file) : undefined;
	const fromEnvironment = environment(values, "OTARU_ENDPOINT");
	const [named, from] =
		values.endpoint !== undefined
			? [values.endpoint, "--endpoint"]
			: fromEnvironment !== undefined
				? [fromEnvironment, "OTARU_ENDPOINT"]
				: [stored?.endpoint, file];
	if (named === undefined)
		throw new CommandError(
			`It is not known which server to talk to: there is no ${file}, and --endpoint is not given.`,
			"Start a server with npm start, name its directory with --data, or give --endpoint, --access-key, --secret-key and --project-id.",
			exitCodes.usage,
		);
	const endpoint = checkEndpoint(named, from);
	const isSame =
		stored !== undefined && URL.parse(stored.endpoint)?.origin === endpoint;
	return {
		endpoint,
		file,
		stored: isSame ? stored : undefined,
		namedElsewhere: stored && !isSame ? from : undefined,
	};
}

function checkEndpoint(text: string, from: string): string {
	const url = URL.parse(text);
	if (
		url &&
		/^https?:$/.test(url.protocol) &&
		url.pathname === "/" &&
		url.search + url.hash + url.username + url.password === ""
	)
		return url.origin;
	throw new CommandError(
		`${from} must be http:// or https:// with a host and no path, not "${text}".`,
		"For example http://127.0.0.1:8080.",
		exitCodes.usage,
	);
}

/** An option that names a directory is about the server there, whatever else is set. */
function environment(values: Values, name: string): string | undefined {
	if (values.data !== undefined) return undefined;
	return process.env[name]?.trim() || undefined;
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

// --- who ---------------------------------------------------------------------------

async function findProof(values: Values, place: Place): Promise<Proof> {
	if (values.as !== undefined) return findPassword(values, values.as, place);
	for (const name of ["domain", "as-password-file"] as const)
		if (values[name] !== undefined) throw usage(`--${name} goes with --as.`);
	return findKey(values, place);
}

async function findPassword(
	values: Values,
	userName: string,
	{ stored }: Place,
): Promise<Proof> {
	for (const name of ["access-key", "secret-key"] as const)
		if (values[name] !== undefined)
			throw usage(`--as and --${name} exclude each other.`);
	const domainName = values.domain ?? stored?.domain_name ?? "otaru";
	adviseOnRefusedProof(
		`The password of ${userName} is wrong, there is no such user in the account ${domainName}, or he is disabled. An administrator resets it: otaru access users reset-password ${userName}.`,
	);
	const file = values["as-password-file"];
	const password =
		file !== undefined
			? readPassword(file, "--as-password-file")
			: process.env.OTARU_PASSWORD ||
				(canAsk() ? await askHidden(`Password of ${userName}: `) : undefined);
	if (!password)
		throw usage(
			"The password is missing: --as-password-file, OTARU_PASSWORD or a terminal to ask for it.",
		);
	return { kind: "password", userName, domainName, password };
}

/** A key is taken with the secret that lies beside it. */
function findKey(values: Values, place: Place): Proof {
	const { stored, file, namedElsewhere } = place;
	const secretOption = values["secret-key"];
	const sources = [
		{
			accessKey: values["access-key"],
			accessFrom: "--access-key",
			secretKey: secretOption,
			secretFrom: "--secret-key",
		},
		{
			accessKey: environment(values, "HUAWEICLOUD_SDK_AK"),
			accessFrom: "HUAWEICLOUD_SDK_AK",
			secretKey: environment(values, "HUAWEICLOUD_SDK_SK"),
			secretFrom: "HUAWEICLOUD_SDK_SK",
		},
		{
			accessKey: stored?.access_key,
			accessFrom: file,
			secretKey: stored?.secret_key,
			secretFrom: file,
		},
	];
	const found = sources.find(({ accessKey }) => accessKey !== undefined);
	if (found?.accessKey === undefined)
		throw new CommandError(
			namedElsewhere === undefined
				? `It is not known who is calling: there is no ${file}, and --access-key is not given.`
				: `${namedElsewhere} names another server than ${file}, so --access-key, --secret-key and --project-id are needed too.`,
			"Give the access key, set HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK, or sign in by password with --as NAME.",
			exitCodes.usage,
		);
	const { accessKey, accessFrom } = found;
	const beside = sources.find(
		(source) =>
			source.accessKey === accessKey && source.secretKey !== undefined,
	);
	const secretKey = secretOption ?? beside?.secretKey;
	if (secretKey === undefined)
		throw usage(`${found.secretFrom} is missing beside ${accessFrom}.`);
	const secretFrom =
		secretOption === undefined ? beside?.secretFrom : "--secret-key";
	const whence =
		secretFrom === accessFrom
			? `Both came from ${accessFrom}.`
			: `The key came from ${accessFrom}, the secret from ${secretFrom}.`;
	adviseOnRefusedProof(
		`The key ${accessKey} is unknown or disabled, its secret is wrong, or its user is disabled. ${whence}`,
	);
	return { kind: "key", accessKey, secretKey };
}

async function openClient(
	endpoint: string,
	proof: Proof,
	projectId: string | undefined,
	needs: "account" | "project",
): Promise<Client> {
	if (needs === "account" || projectId !== undefined) {
		const nobody = new Client({ endpoint, projectId: projectId ?? "" });
		const scope =
			needs === "account" || projectId === undefined ? undefined : projectId;
		return nobody.as(await credentialsFor(nobody, proof, scope));
	}
	const nobody = new Client({ endpoint, projectId: "" });
	const { projects } = await nobody
		.as(await credentialsFor(nobody, proof, undefined))
		.listProjects();
	const [only, ...others] = projects;
	if (!only)
		throw new CommandError(
			"There is no project that anything is granted to you in.",
			"An administrator grants: otaru access grants create POLICY --user NAME.",
			exitCodes.server,
		);
	if (others.length > 0)
		throw new CommandError(
			"It is not known in which project: --project-id is missing.",
			columns(projects.map(({ id, name }) => [id, name])),
			exitCodes.usage,
		);
	return openClient(endpoint, proof, only.id, needs);
}

/** @param projectId undefined: for the account as a whole. */
async function credentialsFor(
	nobody: Client,
	proof: Proof,
	projectId: string | undefined,
) {
	if (proof.kind === "key")
		return { accessKey: proof.accessKey, secretKey: proof.secretKey };
	const { userName: name, domainName, password } = proof;
	const json: CreateToken = {
		auth: {
			identity: {
				methods: ["password"],
				password: { user: { name, password, domain: { name: domainName } } },
			},
			...(projectId !== undefined && { scope: { project: { id: projectId } } }),
		},
	};
	const answer = await nobody.send("POST", "/v3/auth/tokens", {
		json,
		query: { nocatalog: true },
	});
	if (!answer.ok) throw await readFailure(answer);
	return { token: answer.headers.get("x-subject-token") ?? "" };
}

function usage(message: string): CommandError {
	return new CommandError(
		message,
		"The command with --help says who you can be.",
		exitCodes.usage,
	);
}

// --- files and listeners ---------------------------------------------------------------

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
