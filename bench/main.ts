/**
 * `npm run bench [-- api|reports|tasks|fleet|import]`: how fast the hot paths are, each against a
 * reference from the same run. Every measurement ends within minutes.
 */
import { parseArgs } from "node:util";
import { benchApi } from "./api.ts";
import { benchFleet } from "./fleet.ts";
import { benchImport } from "./import.ts";
import { benchReports } from "./reports.ts";
import { benchTasks } from "./tasks.ts";

const help = `Usage: npm run bench [-- MEASUREMENT…] [options]

Measurements (all of them unless named)
  api                  what signature and permission add to a management call
  reports              durable device reports per second through MQTT
  tasks                a task on 30,000 listed devices
  fleet                a task on a million devices of a dynamic group
  import               a million devices from one file

Options
  --milliseconds N     how long each figure of api is taken (2000)
  --connections N      devices that report (500)
  --devices N          devices of the task (30000)
  --fleet N            devices of the dynamic group (1000000)
  --lines N            devices in the imported file (1000000)

The figures go to bench/results.md.
`;

const { positionals, values } = parseArgs({
	allowPositionals: true,
	options: {
		milliseconds: { type: "string", default: "2000" },
		connections: { type: "string", default: "500" },
		devices: { type: "string", default: "30000" },
		fleet: { type: "string", default: "1000000" },
		lines: { type: "string", default: "1000000" },
		help: { type: "boolean", short: "h", default: false },
	},
});

const say = (text: string) => process.stderr.write(`  ${text}\n`);

const measurements: Readonly<Record<string, () => Promise<void>>> = {
	api: () =>
		benchApi(
			{ elapsedMs: count("--milliseconds", values.milliseconds, 60_000) },
			say,
		),
	reports: () =>
		benchReports(
			{ connections: count("--connections", values.connections, 5_000) },
			say,
		),
	tasks: () =>
		benchTasks({ devices: count("--devices", values.devices, 30_000) }, say),
	fleet: () =>
		benchFleet({ devices: count("--fleet", values.fleet, 10_000_000) }, say),
	import: () =>
		benchImport({ devices: count("--lines", values.lines, 10_000_000) }, say),
};

function count(option: string, text: string, max: number): number {
	const value = /^\d+$/.test(text) ? Number(text) : 0;
	if (value >= 1 && value <= max) return value;
	process.stderr.write(`${option} must be a whole number from 1 to ${max}.\n`);
	process.exit(2);
}

if (values.help) {
	process.stdout.write(help);
} else {
	const names =
		positionals.length > 0 ? positionals : Object.keys(measurements);
	for (const name of names) {
		if (!Object.hasOwn(measurements, name)) {
			process.stderr.write(`There is no measurement "${name}".\n\n${help}`);
			process.exit(2);
		}
	}
	for (const name of names) {
		process.stderr.write(`${name}\n`);
		await measurements[name]?.();
	}
}
