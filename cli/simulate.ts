/** `otaru simulate`: a fleet that behaves as badly as you ask, to rehearse a rollout. */
import { randomInt } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import {
	FaultError,
	type FaultSpec,
	faultCatalogue,
	parseFault,
} from "../simulator/faults.ts";
import { Fleet, type FleetCounts } from "../simulator/fleet.ts";
import type { Command } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { untilInterrupted } from "./interrupt.ts";
import { bytesText, columns, counted, durationText, Output } from "./output.ts";
import { findProduct, registerDevices } from "./registry.ts";
import { openSession, sessionHelp, sessionOptions } from "./session.ts";

const help = `otaru simulate: connect simulated devices to a running server

They speak the official device protocol over real sockets, download and check real
packages, and report. Devices that are not registered yet are registered.

Usage
  otaru simulate --product ID [options]

Fleet
  --product ID         product id or name (required)
  --count N            devices (10)
  --prefix TEXT        node ids are TEXT-0001, TEXT-0002, … (sim)
  --module NAME=V      a module and its version; repeatable (the modules of the
                       product, each at 1.0.0)
  --firmware V         firmware version (1.0.0)
  --software V         software version (1.0.0)
  --classic            devices that know nothing of modules: they take a module's
                       package as a firmware upgrade that names the module
  --transport T        mqtt, mqtts, wss, or mixed (mqtts)
  --fault F            what goes wrong, and for which share; repeatable
  --seed N             the same seed, the same faults for the same devices (random)
  --for SECONDS        end by itself (until Ctrl-C)
  --json               the summary as JSON

Faults
${columns(
	Object.entries(faultCatalogue).map(([name, fault]) => [
		fault.unit ? `${name}[:${fault.default}]` : name,
		fault.unit ? `${fault.meaning} (${fault.unit})` : fault.meaning,
	]),
)}
  Written NAME=SHARE or NAME:VALUE=SHARE: drop=0.1 befalls a tenth of the fleet,
  fail:5=0.02 makes two devices in a hundred report result code 5.

Server
${sessionHelp}

Example
  otaru simulate --product thermostat --count 200 --fault drop=0.1 --fault fail:10=0.05

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
`;

const options = {
	...sessionOptions,
	product: { type: "string" },
	count: { type: "string", default: "10" },
	prefix: { type: "string", default: "sim" },
	module: { type: "string", multiple: true },
	firmware: { type: "string", default: "1.0.0" },
	software: { type: "string", default: "1.0.0" },
	classic: { type: "boolean", default: false },
	transport: { type: "string", default: "mqtts" },
	fault: { type: "string", multiple: true },
	seed: { type: "string" },
	for: { type: "string" },
	json: { type: "boolean", default: false },
} as const;

async function run(args: string[]): Promise<number> {
	const { values } = parseArgs({ args, options });
	if (!values.product)
		throw usage("--product is missing: the id or name of a product.");
	const count = wholeNumber("--count", values.count, 1, 100_000);
	const seed =
		values.seed === undefined
			? randomInt(1, 1_000_000)
			: wholeNumber("--seed", values.seed, 0, 4_294_967_295);
	const seconds =
		values.for === undefined
			? undefined
			: wholeNumber("--for", values.for, 1, 31_536_000);
	if (!/^[A-Za-z0-9_-]{1,40}$/.test(values.prefix))
		throw usage(
			"--prefix must be 1 to 40 characters: letters, digits, _ and -.",
		);
	const faults = readFaults(values.fault ?? []);
	const given = readModules(values.module ?? []);

	const session = await openSession(values);
	const brokers = session.brokers(values.transport);
	const product = await findProduct(
		session.client,
		session.appId,
		values.product,
	);
	const unknown = [...given.keys()].find(
		(name) => !product.moduleNames.includes(name),
	);
	if (unknown !== undefined) {
		throw new CommandError(
			`The product ${product.name} has no module "${unknown}".`,
			product.moduleNames.length > 0
				? `Its modules are ${product.moduleNames.join(", ")}.`
				: "Create it first: POST /v5/iot/{project_id}/ota-upgrades/modules.",
			exitCodes.usage,
		);
	}
	const modules = Object.fromEntries(
		product.moduleNames.map((name) => [name, given.get(name) ?? "1.0.0"]),
	);

	// The summary goes to standard output, what changes on the way to standard error.
	const out = new Output(process.stderr);
	const stop = untilInterrupted();
	const identities = await registerDevices(session.client, product, {
		count,
		prefix: values.prefix,
		signal: stop.signal,
		onProgress: (done) =>
			out.live([
				`registering devices ${done}/${count} ${out.bar(done, count)}`,
			]),
	}).catch((error) => {
		if (stop.signal.aborted) return undefined;
		throw error;
	});
	if (!identities) return exitCodes.interrupted.code;
	out.settle([
		`${counted(count, "device")} of ${product.name}, seed ${seed}${values.for ? "" : "; Ctrl-C ends"}`,
	]);

	const startedAtMs = Date.now();
	await using fleet = new Fleet({
		members: identities.map((identity, index) => ({
			identity,
			versions: {
				firmware: values.firmware,
				software: values.software,
				modules,
			},
			brokerUrl: brokers[index % brokers.length] as string,
		})),
		ca: session.ca,
		faults,
		seed,
		speaksModules: !values.classic,
	});
	fleet.start();
	while (!stop.signal.aborted) {
		const elapsedMs = Date.now() - startedAtMs;
		if (seconds !== undefined && elapsedMs >= seconds * 1000) break;
		out.live(liveLines(out, fleet, elapsedMs));
		await pause(250, undefined, { signal: stop.signal }).catch(() => {});
	}
	out.settle(liveLines(out, fleet, Date.now() - startedAtMs));
	const summary = {
		seed,
		elapsed_ms: Date.now() - startedAtMs,
		...snake(fleet.counts),
	};
	process.stdout.write(
		values.json ? `${JSON.stringify(summary)}\n` : summaryText(fleet.counts),
	);
	return exitCodes.ok.code;
}

function liveLines(out: Output, fleet: Fleet, elapsedMs: number): string[] {
	const { counts } = fleet;
	const parts = [
		`${durationText(elapsedMs).padStart(6)}`,
		`${counts.connected}/${counts.devices} connected`,
		`${counts.notices} notices`,
		`${counts.downloads} downloads (${bytesText(counts.downloadedBytes)})`,
		`${counts.installs} installed`,
	];
	if (counts.interruptions > 0)
		parts.push(`${counts.interruptions} interrupted`);
	if (counts.failures > 0)
		parts.push(out.paint("red", `${counts.failures} failed`));
	const lines = [parts.join(out.paint("dim", " · "))];
	if (fleet.lastTrouble) lines.push(out.paint("yellow", fleet.lastTrouble));
	return lines;
}

function summaryText(counts: FleetCounts): string {
	return `${columns([
		["devices", String(counts.devices)],
		["connected at the end", String(counts.connected)],
		["upgrade notices taken", String(counts.notices)],
		[
			"packages downloaded",
			`${counts.downloads}, ${bytesText(counts.downloadedBytes)}`,
		],
		["downloads interrupted", String(counts.interruptions)],
		["packages installed", String(counts.installs)],
		["failures reported", String(counts.failures)],
		["connections ended", String(counts.disconnects)],
		["sign-ins refused", String(counts.refused)],
	])}\n`;
}

function snake(counts: FleetCounts): Record<string, number> {
	return Object.fromEntries(
		Object.entries(counts).map(([name, value]) => [
			name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
			value,
		]),
	);
}

function readFaults(texts: readonly string[]): FaultSpec[] {
	try {
		return texts.map(parseFault);
	} catch (error) {
		if (error instanceof FaultError) throw usage(error.message);
		throw error;
	}
}

function readModules(texts: readonly string[]): Map<string, string> {
	const modules = new Map<string, string>();
	for (const text of texts) {
		const match = /^([A-Za-z0-9_.-]{1,64})=([A-Za-z0-9_.-]{1,256})$/.exec(text);
		if (!match)
			throw usage(
				`--module is written NAME=VERSION, such as MCU=1.0.0, not "${text}".`,
			);
		modules.set(match[1] as string, match[2] as string);
	}
	return modules;
}

function wholeNumber(
	name: string,
	text: string,
	min: number,
	max: number,
): number {
	const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
	if (!(value >= min && value <= max))
		throw usage(
			`${name} must be a whole number from ${min} to ${max}, not "${text}".`,
		);
	return value;
}

function usage(message: string): CommandError {
	return new CommandError(
		message,
		"See otaru simulate --help.",
		exitCodes.usage,
	);
}

export const simulate: Command = {
	summary: "connect simulated devices to a server, with faults to choose from",
	help,
	run,
};
