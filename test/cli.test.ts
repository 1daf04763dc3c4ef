/** The `otaru` command says what it does, what was wrong and what to do next. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { exitCodes } from "../cli/errors.ts";
import {
	bytesText,
	cutToWidth,
	displayWidth,
	durationText,
	tableLines,
} from "../cli/output.ts";
import { askHidden, type HiddenInput } from "../cli/terminal.ts";
import { sqlite } from "./support/engines.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { makeModule, makeProduct } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const root = join(import.meta.dirname, "..");

async function otaru(...args: string[]) {
	const directory = mkdtempSync(join(tmpdir(), "otaru-test-cli-"));
	try {
		await using command = new OtaruCommand(args, { cwd: directory });
		const code = await command.ended;
		return { code, stdout: command.stdout, stderr: command.stderr };
	} finally {
		rmSync(directory, { recursive: true });
	}
}

describe("the command line", () => {
	test("--help lists the commands and the exit codes", async () => {
		const { code, stdout } = await otaru("--help");
		assert.equal(code, 0);
		assert.match(stdout, /^ {2}demo {2,}\S/m);
		assert.match(stdout, /^ {2}simulate {2,}\S/m);
		assert.match(
			stdout,
			/^ {2}2 {2,}the command line was not understood, or names/m,
		);
	});

	test("each command explains itself and its exit codes", async () => {
		for (const name of [
			...["access", "admin", "audit", "demo", "devices", "keys"],
			...["simulate", "tasks"],
		]) {
			const { code, stdout } = await otaru(name, "--help");
			assert.equal(code, 0);
			assert.ok(stdout.startsWith(`otaru ${name}: `), stdout);
			assert.match(stdout, /^Exit codes$/m);
		}
	});

	test("--version is the version of the package", async () => {
		const { version } = JSON.parse(
			readFileSync(join(root, "package.json"), "utf8"),
		);
		assert.deepEqual(await otaru("--version"), {
			code: 0,
			stdout: `${version}\n`,
			stderr: "",
		});
	});

	test("without a command it prints the help and ends with 2", async () => {
		const { code, stdout } = await otaru();
		assert.equal(code, 2);
		assert.match(stdout, /^Usage$/m);
	});

	for (const [what, args, words] of [
		["an unknown command", ["upgrade"], 'no command "upgrade"'],
		["a command named like an object's property", ["toString"], "no command"],
		["an unknown option", ["simulate", "--colour"], "--colour"],
		["an option without its value", ["simulate", "--product"], "--product"],
		["no product", ["simulate"], "--product is missing"],
		[
			"a count that is none",
			["simulate", "--product", "p", "--count", "0"],
			"--count must be a whole number from 1",
		],
		[
			"a fault that does not exist",
			["simulate", "--product", "p", "--fault", "explode=1"],
			"slow, drop, fail",
		],
		[
			"a module without version",
			["simulate", "--product", "p", "--module", "MCU"],
			"NAME=VERSION",
		],
		[
			"a prefix with a blank",
			["simulate", "--product", "p", "--prefix", "a b"],
			"--prefix must be",
		],
		[
			"no server that is known",
			["simulate", "--product", "p"],
			"not known which server",
		],
		[
			"a directory without credentials",
			["simulate", "--product", "p", "--data", "/nowhere"],
			"/nowhere/credentials.json",
		],
		[
			"an address that is none",
			["tasks", "list", "--endpoint", "nonsense"],
			'--endpoint must be http:// or https:// with a host and no path, not "nonsense"',
		],
		[
			"an address with a path",
			["tasks", "list", "--endpoint", "http://127.0.0.1:8080/v5"],
			"no path",
		],
		...[
			["audit", "export", "--user", "x"],
			["audit", "export", "--json"],
			["audit", "verify", "--limit", "3"],
			["audit", "list", "--expect", "x"],
			["audit", "list", "--after-seq", "1"],
			["keys", "status", "--wait"],
			["tasks", "show", "x", "--status", "Fail"],
			["tasks", "watch", "x", "--app-id", "y"],
			["devices", "refusals", "x", "--product", "y"],
			["devices", "import", "x", "--product", "y"],
			["devices", "export", "--refusals", "y"],
		].map(
			(args) =>
				[
					`an option that is not of ${args[0]} ${args[1]} (${args.at(-2)})`,
					args,
					"does not go with",
				] as const,
		),
		[
			"an unknown option of audit",
			["audit", "list", "--broker", "x"],
			"--broker",
		],
		["an unknown admin", ["admin", "dance"], "reset-administrator"],
		[
			"too many devices for a demo",
			["demo", "--devices", "100000"],
			"--devices must be",
		],
	] as const) {
		test(`${what} ends with 2, one sentence and the next step`, async () => {
			const { code, stdout, stderr } = await otaru(...args);
			assert.equal(code, 2, stderr);
			assert.equal(stdout, "");
			assert.ok(stderr.includes(words), stderr);
			assert.match(stderr, /^otaru: .+\n.+/s);
			assert.doesNotMatch(stderr, /\n {4}at /);
		});
	}

	test("a server that is not there ends with 3 and says how to start one", async () => {
		const { code, stderr } = await otaru(
			...["simulate", "--product", "p", "--endpoint", "http://127.0.0.1:9"],
			...["--access-key", "a", "--secret-key", "b", "--project-id", "c"],
			...["--broker", "mqtt://127.0.0.1:9"],
		);
		assert.equal(code, 3);
		assert.match(stderr, /cannot be reached/);
		assert.match(stderr, /npm start/);
	});

	test("whoever stops reading the output is no failure", async () => {
		await using server = await startServer(sqlite);
		const at = ["--data", server.config.dataDir];
		for (const args of [
			["--help"],
			["access", "users", "list", ...at],
			["audit", "list", "--json", ...at],
			["audit", "export", ...at],
			["devices", "export", ...at],
		]) {
			await using command = new OtaruCommand(args);
			command.hangUp();
			assert.equal(await command.ended, 0, args.join(" "));
			assert.equal(command.stderr, "", args.join(" "));
		}
	});

	test("a refused request sends nobody to the log, a wrong one to the help", async () => {
		await using server = await startServer(sqlite);
		const list = async (...args: string[]) =>
			otaru("audit", "list", "--data", server.config.dataDir, ...args);
		const { code, stderr } = await list("--status", "7");
		assert.equal(code, 3);
		assert.match(stderr, /400 IOTDA\.000006.*\notaru audit --help says/);
	});

	test("an older Node hands over to the one that came with the package", async () => {
		const directory = mkdtempSync(join(tmpdir(), "otaru-test-cli-"));
		try {
			const pretend = join(directory, "pretend.mjs");
			writeFileSync(
				pretend,
				'Object.defineProperty(process.versions, "node", { value: "20.0.0" })',
			);
			const launcher = join(root, "cli", "otaru.mjs");
			for (const program of [[launcher], ["--import", pretend, launcher]]) {
				await using good = new OtaruCommand(["--version"], { program });
				assert.equal(await good.ended, 0, good.stderr);
				assert.match(good.stdout, /^\d+\.\d+\.\d+\n$/);
				await using bad = new OtaruCommand(["nonsense"], { program });
				assert.equal(await bad.ended, 2);
			}
		} finally {
			rmSync(directory, { recursive: true });
		}
	});
});

describe("otaru simulate", () => {
	test("registers what is missing, connects, and sums up as JSON", async () => {
		await using server = await startServer(sqlite);
		const product = await makeProduct(server.api, { name: "Pump" });
		await makeModule(server.api, product, "MCU");
		const args = (...more: string[]) => [
			...["simulate", "--data", server.config.dataDir, "--product", "Pump"],
			...["--for", "3", "--seed", "4", "--json", ...more],
		];
		const first = await otaru(...args("--count", "3", "--module", "MCU=7.1"));
		assert.equal(first.code, 0, first.stderr);
		const summary = JSON.parse(first.stdout);
		assert.equal(summary.devices, 3);
		assert.equal(summary.connected, 3);
		assert.equal(summary.seed, 4);
		const ids = await simulatedDevices(server);
		assert.equal(ids.length, 3);
		const { modules } = await server.api.getDevice(ids[0] ?? "");
		assert.deepEqual(modules, [{ module_name: "MCU", module_version: "7.1" }]);

		// Again, with more devices: those that are registered are used.
		const second = await otaru(...args("--count", "5", "--transport", "mixed"));
		assert.equal(second.code, 0, second.stderr);
		assert.equal(JSON.parse(second.stdout).connected, 5);
		assert.equal((await simulatedDevices(server)).length, 5);
	});

	test("stays until Ctrl-C and then sums up", async () => {
		await using server = await startServer(sqlite);
		await makeProduct(server.api, { product_id: "pump" });
		await using command = new OtaruCommand([
			...["simulate", "--data", server.config.dataDir],
			...["--product", "pump", "--count", "2"],
		]);
		const online = async () => {
			const { devices } = await server.api.listDevices({ product_id: "pump" });
			return devices.filter(({ status }) => status === "ONLINE").length;
		};
		const deadlineMs = Date.now() + 20_000;
		while ((await online()) < 2 && Date.now() < deadlineMs) await pause(50);
		command.interrupt();
		assert.equal(await command.ended, 0, command.stderr);
		assert.match(command.stdout, /^ {2}connected at the end +2$/m);
		assert.ok(!(command.stdout + command.stderr).includes("\u001b"));
	});

	test("names what there is when product or module are unknown", async () => {
		await using server = await startServer(sqlite);
		const product = await makeProduct(server.api, { name: "Pump" });
		await makeModule(server.api, product, "MCU");
		const simulate = (...more: string[]) =>
			otaru("simulate", "--data", server.config.dataDir, ...more);
		const unknownProduct = await simulate("--product", "Pmup");
		assert.equal(unknownProduct.code, 2);
		assert.match(unknownProduct.stderr, /no product "Pmup".*Pump/s);
		const unknownModule = await simulate(
			...["--product", "Pump", "--module", "MUC=1"],
		);
		assert.equal(unknownModule.code, 2);
		assert.match(unknownModule.stderr, /no module "MUC".*MCU/s);
		assert.equal((await simulatedDevices(server)).length, 0);
	});

	test("a wrong key ends with 3 and says where to find a right one", async () => {
		await using server = await startServer(sqlite);
		const { code, stderr } = await otaru(
			...["simulate", "--data", server.config.dataDir, "--product", "p"],
			...["--secret-key", "wrong"],
		);
		assert.equal(code, 3);
		assert.match(stderr, /401 APIGW\.0301.*credentials\.json/s);
	});
});

async function simulatedDevices({ api }: TestServer): Promise<string[]> {
	const { devices } = await api.listDevices({ limit: 50 });
	return devices.map(({ device_id }) => device_id);
}

describe("output", () => {
	test("sizes and times are short", () => {
		assert.equal(bytesText(0), "0 B");
		assert.equal(bytesText(1023), "1023 B");
		assert.equal(bytesText(384 * 1024), "384 KiB");
		assert.equal(bytesText(1.25 * 1024 ** 3), "1.3 GiB");
		assert.equal(durationText(430), "0.4 s");
		assert.equal(durationText(9_960), "10 s");
		assert.equal(durationText(185_000), "3 min 05 s");
	});

	test("a table is aligned by what is seen, and no cell leaves its place", () => {
		assert.equal(displayWidth("abc"), 3);
		assert.equal(displayWidth("模块 1"), 6);
		assert.equal(displayWidth("ﾓｼﾞｭｰﾙ"), 6);
		assert.equal(displayWidth("e\u0301"), 1);
		assert.equal(displayWidth("ok ✅"), 5);
		assert.deepEqual(
			tableLines([
				{ NAME: "模块", NOTE: "a\r\nb" },
				{ NAME: "x\u001b[31m", NOTE: "c\t" },
				{ NAME: "\u202eabc", NOTE: "" },
			]),
			["NAME    NOTE", "模块    a  b", "x [31m  c", " abc"],
		);
		assert.deepEqual(tableLines([]), []);
	});

	test("a password is asked for without being shown", async () => {
		const raw: boolean[] = [];
		const input = Object.assign(new PassThrough(), {
			setRawMode: (isRaw: boolean) => raw.push(isRaw),
		}) as PassThrough & HiddenInput;
		const output = new PassThrough();
		const asked = askHidden("Password: ", input, output);
		input.write("secrex");
		input.write("\u007ft\rnext\n");
		assert.equal(await asked, "secret");
		assert.equal(await askHidden("Again: ", input, output), "next");
		assert.equal(String(output.read()), "Password: \nAgain: \n");
		assert.deepEqual(raw, [true, false, true, false]);
		const interrupted = askHidden("Password: ", input, output);
		input.write("\u0003");
		await assert.rejects(interrupted, { exit: exitCodes.interrupted });
	});

	test("a line is cut by what is seen of it, not by its colours", () => {
		assert.equal(
			cutToWidth("\u001b[31mabc\u001b[39md", 2),
			"\u001b[31mab\u001b[39m",
		);
		assert.equal(cutToWidth("äöü█", 4), "äöü█");
	});
});
