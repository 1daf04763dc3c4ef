/**
 * What it costs to know who calls and whether he may: management calls over kept
 * connections, signed or with a token, against the same routes on the same store in a
 * process that asks nobody who he is.
 */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
	compileGrants,
	decide,
	type Question,
} from "../server/policy-language/policy-decision.ts";
import { readPolicy } from "../server/policy-language/policy-document.ts";
import {
	grant,
	makeUser,
	ofSpace,
	type Statement,
} from "../test/support/access.ts";
import { makeModule, makeProduct } from "../test/support/seed.ts";
import { ServerProcess } from "../test/support/server-process.ts";
import { type AccessKey, Client, signRequest } from "../wire/client.ts";
import type { CredentialsFile } from "../wire/credentials.ts";
import type { BareApiCpu, BareApiListens } from "./load/bare-api.ts";
import type { CallPlan, FromCallers } from "./load/callers.ts";
import { keepResult, type Row } from "./results.ts";

const GOAL_ADDED_US = 150;
const GOAL_DECISION_US = 20;
const MODULES = 10;
const STATEMENTS = 50;
const ROUNDS = 3;
const CONNECTIONS = 16;
/** Signatures that are sent in turn. */
const SIGNATURES = 64;
const NOBODY = "nobody is asked";

/** One way to prove who calls: what goes into the request beside the rest. */
interface Caller {
	name: string;
	prove: AccessKey | { token: string } | undefined;
}

/** Somewhere that answers: the server, or the reference. */
interface Place {
	port: number;
	cpuMs(): Promise<number>;
}

interface Taken {
	/** By the clock, of all who call at a time. */
	usPerCall: number;
	/** Processor time of the answering process, all its threads. */
	cpuUsPerCall: number;
	p50Us: number;
	body: string;
}

/** @param elapsedMs how long each figure is taken */
export async function benchApi(
	{ elapsedMs }: { elapsedMs: number },
	say: (text: string) => void,
): Promise<void> {
	await using cleanup = new AsyncDisposableStack();
	const dir = mkdtempSync(join(tmpdir(), "otaru-bench-"));
	cleanup.defer(() => rmSync(dir, { recursive: true, force: true }));
	const dataDir = join(dir, "server");
	mkdirSync(dataDir);
	const server = cleanup.use(await ServerProcess.start({ dataDir }));
	const { api, appId, moduleId, callers } = await makeWorld(server);
	const projectId = api.projectId;

	// A copy of the store as it is when it was closed: it has one process at a time.
	await server.stop();
	cpSync(dataDir, join(dir, "reference"), { recursive: true });
	await server.start();
	const reference = cleanup.use(
		await BareApi.start(join(dir, "reference", "otaru.db"), projectId),
	);
	const port = server.ports.http;
	const authenticating: Place = { port, cpuMs: () => cpuMsOf(server) };

	const modules = `/v5/iot/${projectId}/ota-upgrades/modules`;
	const calls = [
		{ name: "ListOtaModules", target: `${modules}?app_id=${appId}` },
		{ name: "ShowOtaModule", target: `${modules}/${moduleId}` },
	];
	const load = cleanup.use(new Load());
	const rows: Row[] = [];
	for (const { name, target } of calls) {
		const take = async (
			caller: Caller,
			connections: number,
			forMs = elapsedMs,
		): Promise<Taken> => {
			const place = caller.prove ? authenticating : reference;
			const cpuBeforeMs = await place.cpuMs();
			const done = await load.run({
				host: "127.0.0.1",
				port: place.port,
				requests: await requestsOf(caller, place.port, projectId, target),
				connections,
				elapsedMs: forMs,
			});
			const cpuMs = (await place.cpuMs()) - cpuBeforeMs;
			return {
				usPerCall: (done.elapsedMs * 1000) / done.calls,
				cpuUsPerCall: (cpuMs * 1000) / done.calls,
				p50Us: done.p50Us,
				body: done.body,
			};
		};
		const everyone: Caller[] = [{ name: NOBODY, prove: undefined }, ...callers];
		const bodies = new Set<string>();
		for (const caller of everyone)
			bodies.add((await take(caller, CONNECTIONS)).body);
		if (bodies.size !== 1)
			throw new Error(
				`${name} was not answered alike:\n${[...bodies].join("\n")}`,
			);
		say(`${name}: warmed up, all answers are alike`);

		// By turns, so that whatever else the machine does falls upon all of them.
		const rounds: Map<string, Taken>[] = [];
		for (let round = 1; round <= ROUNDS; round++) {
			const taken = new Map<string, Taken>();
			for (const caller of everyone)
				taken.set(caller.name, await take(caller, CONNECTIONS));
			rounds.push(taken);
			say(`${name}: round ${round} of ${ROUNDS}`);
		}
		const alone = new Map<string, Taken>();
		for (const caller of everyone)
			alone.set(caller.name, await take(caller, 1));

		const of = (taken: Map<string, Taken>, caller: string): Taken => {
			const found = taken.get(caller);
			if (!found) throw new Error(`Nothing was measured of ${caller}.`);
			return found;
		};
		const inRounds = (figure: (taken: Map<string, Taken>) => number) =>
			median(rounds.map(figure));
		const clock = (caller: string) => (taken: Map<string, Taken>) =>
			of(taken, caller).usPerCall;
		const cpu = (caller: string) => (taken: Map<string, Taken>) =>
			of(taken, caller).cpuUsPerCall;
		rows.push({
			figure: `${name}, ${NOBODY}: a call, ${CONNECTIONS} at a time`,
			value: `${us(inRounds(clock(NOBODY)))}, ${us(inRounds(cpu(NOBODY)))} of processor time`,
		});
		for (const caller of callers) {
			const added = (figure: typeof clock) =>
				`${us(inRounds((taken) => figure(caller.name)(taken) - figure(NOBODY)(taken)))} (of ${us(inRounds(figure(caller.name)))})`;
			rows.push(
				{
					figure: `— ${caller.name}: added to it`,
					value: added(clock),
					goal: `≤ ${GOAL_ADDED_US} µs`,
				},
				{ figure: "— — in processor time", value: added(cpu) },
			);
		}
		const firstP50Us = of(alone, NOBODY).p50Us;
		rows.push({
			figure: `${name}, ${NOBODY}: from call to answer, one at a time, p50`,
			value: us(firstP50Us),
		});
		for (const caller of callers)
			rows.push({
				figure: `— ${caller.name}: added to it`,
				value: us(of(alone, caller.name).p50Us - firstP50Us),
			});
	}
	rows.push(...decisionRows(appId));
	keepResult({
		name: "api",
		what: `Management calls in a space with ${MODULES} modules, embedded store, over kept connections; each figure taken for ${elapsedMs} ms, ${CONNECTIONS} at a time the median of ${ROUNDS} rounds. The reference is a bare Fastify in a process of its own, with the same routes on a copy of the store. The calls come from a third process on the same machine, signed before`,
		rows,
	});
}

/** Modules, a user with a policy, tokens. */
async function makeWorld(server: ServerProcess) {
	const credentials = JSON.parse(
		readFileSync(join(server.dataDir, "credentials.json"), "utf8"),
	) as CredentialsFile;
	const administrator: AccessKey = {
		accessKey: credentials.access_key,
		secretKey: credentials.secret_key,
	};
	const api = new Client({
		endpoint: server.url,
		projectId: credentials.project_id,
		credentials: administrator,
	});
	const product = await makeProduct(api);
	let moduleId = "";
	for (let i = 1; i <= MODULES; i++)
		({ module_id: moduleId } = await makeModule(api, product, `module-${i}`));
	const user = await makeUser(api);
	await grant(api, user, statementsFor(product.app_id, user.userName));
	const { token } = await api.signIn({
		domainName: credentials.domain_name,
		userName: user.userName,
		password: user.password,
	});
	const callers: Caller[] = [
		{
			name: `a user with ${STATEMENTS} statements, by key`,
			prove: user.key,
		},
		{ name: "the administrator, by key", prove: administrator },
		{
			name: `a user with ${STATEMENTS} statements, by token`,
			prove: { token },
		},
	];
	return { api, appId: product.app_id, moduleId, callers };
}

/**
 * Statements that all are about this action: some deny, some allow, and each but the last
 * has to be looked at to find that its resource or its condition does not fit.
 */
function statementsFor(appId: string, userName: string): Statement[] {
	const statements = Array.from({ length: STATEMENTS - 1 }, (_, i) => {
		const other = i.toString(16).padStart(24, "0");
		const statement: Statement = {
			Effect: i % 3 === 0 ? "Deny" : "Allow",
			Action: ["iotda:otamodules:*", "iotda:products:query*"],
			Resource: [i % 2 === 0 ? ofSpace(other) : ofSpace("*")],
			Condition: {
				StringEquals: { "g:UserName": [`${userName}-${i}`, `other-${i}`] },
				NotIpAddress: { "g:SourceIp": ["10.0.0.0/8", "192.168.0.0/16"] },
			},
		};
		return statement;
	});
	return [
		...statements,
		{
			Effect: "Allow",
			Action: ["iotda:otamodules:query", "iotda:otamodules:queryList"],
			Resource: [ofSpace(appId)],
			Condition: {
				StringEquals: { "g:UserName": [userName] },
				IpAddress: { "g:SourceIp": ["127.0.0.0/8"] },
				DateGreaterThan: { "g:CurrentTime": ["2020-01-01T00:00:00Z"] },
			},
		},
	];
}

/** As a client sends them who keeps to what the vendor's SDKs sign. */
async function requestsOf(
	{ prove }: Caller,
	port: number,
	projectId: string,
	target: string,
): Promise<string[]> {
	const headers: Record<string, string> = {
		host: `127.0.0.1:${port}`,
		"content-type": "application/json",
		"x-project-id": projectId,
	};
	const text = (more: Record<string, string>) =>
		`GET ${target} HTTP/1.1\r\n${Object.entries({ ...headers, ...more })
			.map(([name, value]) => `${name}: ${value}\r\n`)
			.join("")}\r\n`;
	if (prove === undefined) return [text({})];
	if ("token" in prove) return [text({ "x-auth-token": prove.token })];
	const nowMs = Date.now();
	return Promise.all(
		Array.from({ length: SIGNATURES }, async (_, i) =>
			text(
				await signRequest(
					{
						method: "GET",
						url: new URL(target, `http://${headers.host}`),
						headers,
						payloadHash: EMPTY_SHA256,
						date: new Date(nowMs - i * 1000),
					},
					prove,
				),
			),
		),
	);
}

const EMPTY_SHA256 =
	"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/** One decision by itself, without what is around it. */
function decisionRows(appId: string): Row[] {
	const userName = "user";
	const document = readPolicy({
		Version: "5.0",
		Statement: statementsFor(appId, userName),
	});
	const compile = () =>
		compileGrants([
			{
				policyId: "policy",
				policyName: "policy",
				document,
				within: { kind: "all" },
			},
		]);
	const question = (spaceId: string): Question => ({
		action: "iotda:otamodules:queryList",
		level: "List",
		projectId: "project",
		accountId: "account",
		region: "otaru",
		instanceId: "",
		instanceEnterpriseProjectId: "0",
		space: { appId: spaceId, enterpriseProjectId: "0", tags: {} },
		context: {
			userName,
			userId: "id",
			accountName: "account",
			sourceIp: "127.0.0.1",
			now: new Date(),
			secureTransport: false,
		},
	});
	const compiled = compile();
	const decisionUs = (asked: () => Question, allowed: boolean): number => {
		const count = 20_000;
		const batch = () => {
			const startedAtMs = performance.now();
			for (let i = 0; i < count; i++)
				if (decide(compiled, asked()).allowed !== allowed)
					throw new Error("A decision is wrong.");
			return ((performance.now() - startedAtMs) * 1000) / count;
		};
		batch();
		return median([batch(), batch(), batch()]);
	};
	const fresh = Array.from({ length: 300 }, compile);
	const firstUs = median(
		fresh.map((grants) => {
			const startedAtMs = performance.now();
			decide(grants, question(appId));
			return (performance.now() - startedAtMs) * 1000;
		}),
	);
	const goal = `≤ ${GOAL_DECISION_US} µs`;
	return [
		{
			figure: `one decision with ${STATEMENTS} statements, allowed by the last`,
			value: us(
				decisionUs(() => question(appId), true),
				2,
			),
			goal,
		},
		{
			figure: "— refused, since none fits",
			value: us(
				decisionUs(() => question("another"), false),
				2,
			),
			goal,
		},
		{
			figure: "— the first about an action after a change",
			value: us(firstUs, 2),
		},
	];
}

function median(values: readonly number[]): number {
	return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

function us(value: number, digits = 0): string {
	return `${value.toFixed(digits)} µs`;
}

async function cpuMsOf(server: ServerProcess): Promise<number> {
	const metrics = await (await fetch(`${server.url}/metrics`)).text();
	const seconds = /^otaru_process_cpu_seconds_total (\S+)$/m.exec(metrics)?.[1];
	if (seconds === undefined)
		throw new Error("The server's metrics do not tell its processor time.");
	return Number(seconds) * 1000;
}

/** The process that asks nobody who he is. */
class BareApi implements Place, AsyncDisposable {
	readonly #child: ChildProcess;
	readonly port: number;

	static async start(file: string, projectId: string): Promise<BareApi> {
		const child = fork(
			join(import.meta.dirname, "load", "bare-api.ts"),
			[file, projectId],
			{ execArgv: startFlags() },
		);
		const listens = (await said(child)) as BareApiListens;
		return new BareApi(child, listens.port);
	}

	private constructor(child: ChildProcess, port: number) {
		this.#child = child;
		this.port = port;
	}

	async cpuMs(): Promise<number> {
		this.#child.send("cpu");
		return ((await said(this.#child)) as BareApiCpu).cpuMs;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await end(this.#child);
	}
}

/** What `npm start` gives to Node: the reference has the same. */
function startFlags(): string[] {
	const { scripts } = JSON.parse(
		readFileSync(join(import.meta.dirname, "..", "package.json"), "utf8"),
	) as { scripts: { start: string } };
	return scripts.start.split(" ").filter((word) => word.startsWith("-"));
}

/** The process that calls. */
class Load implements AsyncDisposable {
	readonly #child = fork(join(import.meta.dirname, "load", "callers.ts"));

	async run(plan: CallPlan): Promise<FromCallers & { kind: "done" }> {
		this.#child.send(plan);
		const answer = (await said(this.#child)) as FromCallers;
		if (answer.kind === "failed") throw new Error(answer.reason);
		return answer;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		await end(this.#child);
	}
}

/** @throws when the process ends instead, or says nothing for a minute. */
async function said(child: ChildProcess): Promise<unknown> {
	const gone = new AbortController();
	const timer = setTimeout(() => gone.abort(), 60_000);
	const onExit = () => gone.abort();
	child.once("exit", onExit);
	try {
		const [message] = await once(child, "message", { signal: gone.signal });
		return message;
	} catch (cause) {
		throw new Error("A process of the measurement ended, or went silent.", {
			cause,
		});
	} finally {
		clearTimeout(timer);
		child.off("exit", onExit);
	}
}

async function end(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return;
	const gone = once(child, "exit");
	child.kill("SIGKILL");
	await gone;
}
