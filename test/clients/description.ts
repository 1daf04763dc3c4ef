/**
 * What `/openapi.json` promises, taken at its word: its Python samples of modules and
 * packages are run as they stand, and a fuzzer makes thousands of calls out of its
 * schemas, none of which may find a fault of the server or an answer it does not
 * describe.
 */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { sql } from "kysely";
import { Client } from "../../wire/client.ts";
import type { CredentialsFile } from "../../wire/credentials.ts";
import { sqlite } from "../support/engines.ts";
import { startServer } from "../support/server.ts";
import { ServerProcess } from "../support/server-process.ts";
import { prepareFuzzer, preparePython } from "./toolchain.ts";

const execute = promisify(execFile);

interface Operation {
	operationId: string;
	tags: string[];
	security?: object[];
	parameters?: {
		name: string;
		in: string;
		schema: object;
		example?: unknown;
	}[];
	responses: Record<
		string,
		{ content?: Record<string, { example?: Record<string, unknown> }> }
	>;
	"x-codeSamples"?: { label: string; source: string }[];
}
interface Description {
	paths: Record<string, Record<string, Operation>>;
	security?: object[];
	components: { securitySchemes?: object };
	"x-otaru-example-ids": { project_id: string; app_id: string };
}

async function describedBy(url: string): Promise<Description> {
	const answer = await fetch(`${url}/openapi.json`);
	if (!answer.ok) throw new Error(`/openapi.json: ${answer.status}`);
	return (await answer.json()) as Description;
}

function operationsOf({ paths }: Description): Operation[] {
	return Object.values(paths).flatMap((item) => Object.values(item));
}

// --- samples ----------------------------------------------------------------------

/** In an order in which each finds what it needs. */
const sampled = [
	...["CreateOtaModule", "ListOtaModules", "ShowOtaModule", "UpdateOtaModule"],
	...["CreateOtaPackage", "ListOtaPackageInfo", "ShowOtaPackage"],
	...["DeleteOtaPackage", "DeleteOtaModule"],
];

/** The ids of the samples are those of the examples, so the store is given them. */
export async function runSamples(): Promise<void> {
	const { python } = await preparePython();
	await using server = await startServer(sqlite);
	const { api, credentials } = server;
	const description = await describedBy(server.url);
	const operations = operationsOf(description);
	const promised = operations.filter(({ tags }) =>
		tags.some((tag) => tag === "OTA modules" || tag === "Upgrade packages"),
	);
	const missing = promised
		.map(({ operationId }) => operationId)
		.filter((name) => !sampled.includes(name));
	if (missing.length > 0) throw new Error(`never run: ${missing.join(", ")}`);
	const exampleOf = (operationId: string) =>
		Object.values(
			operations.find((one) => one.operationId === operationId)?.responses ??
				{},
		)[0]?.content?.["application/json"]?.example ?? {};
	const { app_id } = description["x-otaru-example-ids"];
	const { db } = server.server;
	await sql`update resource_spaces set app_id = ${app_id} where app_id = ${credentials.app_id}`.execute(
		db,
	);
	const product = exampleOf("CreateProduct");
	await api.createProduct({
		app_id,
		product_id: String(product.product_id),
		name: String(product.name),
		device_type: "Gauge",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
	});
	await api.putObject("firmware", "gauge/mcu-2.0.0.bin", "image");

	const dir = await mkdtemp(join(tmpdir(), "otaru-samples-"));
	try {
		for (const operationId of sampled) {
			const operation = operations.find(
				(one) => one.operationId === operationId,
			);
			const source = operation?.["x-codeSamples"]?.find(
				({ label }) => label === "Python SDK",
			)?.source;
			if (source === undefined)
				throw new Error(`${operationId} has no sample for the Python SDK`);
			const file = join(dir, `${operationId}.py`);
			await writeFile(file, source);
			await execute(python, ["-B", file], {
				timeout: 60_000,
				env: {
					...process.env,
					// The SDK leaves a file in the home directory.
					HOME: dir,
					NO_PROXY: "127.0.0.1",
					HUAWEICLOUD_SDK_AK: credentials.access_key,
					HUAWEICLOUD_SDK_SK: credentials.secret_key,
					OTARU_ENDPOINT: server.url,
					OTARU_PROJECT_ID: credentials.project_id,
				},
			}).catch((error: Error & { stderr?: string }) => {
				throw new Error(
					`the sample of ${operationId}: ${error.stderr?.trim() || error.message}`,
				);
			});
			if (operationId === "CreateOtaModule")
				await sql`update ota_modules set module_id = ${exampleOf(operationId).module_id}`.execute(
					db,
				);
			if (operationId === "CreateOtaPackage")
				await sql`update packages set package_id = ${exampleOf(operationId).package_id}`.execute(
					db,
				);
		}
	} finally {
		await rm(dir, { recursive: true, force: true });
	}
	const left = await db.selectFrom("ota_modules").select("module_id").execute();
	if (left.length > 0) throw new Error("the last sample deleted no module");
}

// --- calls out of the schemas -------------------------------------------------------

const CALLS_AT_LEAST = 5_000;
const FUZZER_TIMEOUT_MS = 300_000;

/** Left out, each for a reason. */
const excludedOperations: Readonly<Record<string, string>> = {
	WatchEvents: "its answer has no end",
	RotateMasterKey: "every call makes one more key, and a file",
	DeleteProject: "ends the token that the calls are made with",
	ChangeOwnPassword: "ends it too",
	UpdateOwnAccessKey: "ends it too",
	DeleteOwnAccessKey: "ends it too",
};

const excludedChecks: Readonly<Record<string, string>> = {
	positive_data_acceptance:
		"what a schema admits may still name things that do not exist, or not go together: 400, as the vendor answers it",
	unsupported_method:
		"an unknown method is an unknown API to the vendor: 404, not 405",
	ignored_auth:
		"the description that the fuzzer gets has no security, so that it adds no signature of its own",
};

/** @throws Error with what it found. */
export async function fuzz(): Promise<void> {
	const { schemathesis } = await prepareFuzzer();
	const dir = await mkdtemp(join(tmpdir(), "otaru-fuzz-"));
	try {
		await using server = await ServerProcess.start({ dataDir: dir });
		const credentials = JSON.parse(
			await readFile(join(dir, "credentials.json"), "utf8"),
		) as CredentialsFile;
		const api = new Client({
			endpoint: server.url,
			projectId: credentials.project_id,
			credentials: {
				accessKey: credentials.access_key,
				secretKey: credentials.secret_key,
			},
		});
		const file = join(dir, "openapi.json");
		const { user_id } = await api.call<{ user_id: string }>(
			"POST",
			"/otaru/v1/access/users",
			{ json: { user_name: "fuzzed" } },
		);
		await writeFile(
			file,
			JSON.stringify(
				withRealIds(await describedBy(server.url), credentials, user_id),
			),
		);
		const said = await execute(
			schemathesis,
			[
				...["run", file, "--url", server.url],
				...["--header", `X-Auth-Token: ${await tokenFor(credentials)}`],
				...["--max-examples", "6", "--seed", "1", "--workers", "1"],
				...["--continue-on-failure", "--no-shrink", "--no-color"],
				...["--exclude-checks", Object.keys(excludedChecks).join(",")],
				...Object.keys(excludedOperations).flatMap((name) => [
					"--exclude-operation-id",
					name,
				]),
			],
			{
				cwd: dir,
				timeout: FUZZER_TIMEOUT_MS,
				maxBuffer: 1 << 26,
				env: { ...process.env, HOME: dir, NO_PROXY: "127.0.0.1" },
			},
		).catch((error: Error & { stdout?: string }) => {
			throw new Error(findingsIn(error.stdout ?? "") || error.message);
		});
		const calls = Number(/(\d+) generated/.exec(said.stdout)?.[1]);
		if (!(calls >= CALLS_AT_LEAST))
			throw new Error(`wanted ${CALLS_AT_LEAST} calls, got ${calls}`);
		if ((await fetch(`${server.url}/health/ready`)).status !== 200)
			throw new Error("the server is not well afterwards");
		// A token that had ended would have made all of it a test of 401.
		if (/401 Unauthorized \((?!1 operation)/.test(said.stdout))
			throw new Error(
				`the token ended on the way:\n${said.stdout.slice(-4000)}`,
			);
	} finally {
		await rm(dir, { recursive: true, force: true });
	}
}

/** A project or user out of thin air would be refused before anything else is looked at. */
function withRealIds(
	description: Description,
	{ project_id, app_id }: CredentialsFile,
	userId: string,
): Description {
	const imagined = description["x-otaru-example-ids"];
	const real = JSON.parse(
		JSON.stringify(description)
			.replaceAll(imagined.project_id, project_id)
			.replaceAll(imagined.app_id, app_id),
	) as Description;
	const known: Record<string, string> = { project_id, user_id: userId };
	delete real.security;
	delete real.components.securitySchemes;
	for (const operation of operationsOf(real)) {
		delete operation.security;
		delete operation["x-codeSamples"];
		for (const parameter of operation.parameters ?? []) {
			const id = known[parameter.name];
			if (parameter.in !== "path" || id === undefined) continue;
			parameter.schema = { type: "string", enum: [id] };
			parameter.example = id;
		}
	}
	return real;
}

async function tokenFor(credentials: CredentialsFile): Promise<string> {
	const { user_name, password, domain_name, project_id } = credentials;
	const answer = await fetch(
		`${credentials.endpoint}/v3/auth/tokens?nocatalog=true`,
		{
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({
				auth: {
					identity: {
						methods: ["password"],
						password: {
							user: {
								name: user_name,
								password,
								domain: { name: domain_name },
							},
						},
					},
					scope: { project: { id: project_id } },
				},
			}),
		},
	);
	const token = answer.headers.get("x-subject-token");
	if (token === null) throw new Error(`no token: ${await answer.text()}`);
	return token;
}

function findingsIn(output: string): string {
	return [
		...output.matchAll(/={3,} (?:ERRORS|FAILURES) ={3,}.*?(?=\n={3,} )/gs),
	]
		.map(([section]) => section.slice(0, 6000))
		.join("\n");
}
