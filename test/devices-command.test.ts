/** `otaru devices` registers the devices of a file and writes devices into one. */
import assert from "node:assert/strict";
import { exec } from "node:child_process";
import {
	existsSync,
	mkdtempSync,
	readFileSync,
	rmSync,
	writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { sqlite } from "./support/engines.ts";
import { csvLines } from "./support/imports.ts";
import { OtaruCommand } from "./support/otaru-command.ts";
import { makeProduct } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

const main = join(import.meta.dirname, "..", "cli", "main.ts");

describe("otaru devices", () => {
	let server: TestServer;
	let directory: string;
	before(async () => {
		directory = mkdtempSync(join(tmpdir(), "otaru-test-devices-"));
		server = await startServer(sqlite);
		await makeProduct(server.api, { product_id: "p" });
	});
	after(async () => {
		await server[Symbol.asyncDispose]();
		rmSync(directory, { recursive: true });
	});

	async function otaru(...args: string[]) {
		await using command = new OtaruCommand(
			["devices", ...args, "--data", server.config.dataDir],
			{ cwd: directory },
		);
		const code = await command.ended;
		return { code, stdout: command.stdout, stderr: command.stderr };
	}
	const write = (name: string, text: string) =>
		writeFileSync(join(directory, name), text);
	const read = (name: string) => readFileSync(join(directory, name), "utf8");

	test("import registers every line and sums up in plain lines", async () => {
		write("good.csv", `node_id,product_id\n${csvLines(3_000)}`);
		const { code, stdout, stderr } = await otaru("import", "good.csv");
		assert.equal(code, 0, stderr);
		assert.match(stdout, /^ {2}status +Success$/m);
		assert.match(stdout, /^ {2}registered +3000$/m);
		assert.match(stderr, /^100 % · 3,000 registered$/m);
		assert.ok(!(stdout + stderr).includes("\u001b"));
		assert.equal(
			(await server.api.listDevices({ limit: 1 })).page.count,
			3_000,
		);

		const again = await otaru("import", "good.csv", "--json");
		assert.equal(again.code, 0, again.stderr);
		const job = JSON.parse(again.stdout);
		assert.deepEqual([job.created, job.unchanged, job.refused], [0, 3_000, 0]);
		assert.match(again.stderr, /^100 % · 0 registered · 3,000 there already$/m);
	});

	test("import names the first refused lines and where the others are", async () => {
		const bad = Array.from({ length: 12 }, (_, n) =>
			JSON.stringify({ node_id: `a ${n}`, product_id: "p" }),
		);
		write(
			"bad.jsonl",
			`{"node_id":"x1","product_id":"p"}\n${bad.join("\n")}\nnonsense`,
		);
		const { code, stdout, stderr } = await otaru("import", "bad.jsonl");
		assert.equal(code, 1);
		assert.match(stdout, /^ {2}status +PartialSuccess$/m);
		assert.match(
			stderr,
			/^line 2 \(p_a 0\): Invalid input data\. node_id must be/m,
		);
		assert.match(stderr, /^line 11 /m);
		assert.doesNotMatch(stderr, /^line 12 /m);
		const importId = /^ {2}import +(\w+)$/m.exec(stdout)?.[1] ?? "";
		assert.ok(
			stderr.includes(
				`… and 3 more refused lines: otaru devices refusals ${importId} FILE`,
			),
		);

		const listed = await otaru("refusals", importId);
		assert.equal(listed.code, 0, listed.stderr);
		assert.equal(listed.stdout.split("\n").length, 14);
		assert.equal(JSON.parse(listed.stdout.split("\n")[12] ?? "").line, 14);
		const saved = await otaru("refusals", importId, "refused.csv");
		assert.equal(saved.code, 0, saved.stderr);
		assert.equal(saved.stdout, "");
		assert.match(
			read("refused.csv"),
			/^\ufeffline,device_id,error_code,error_msg\r\n2,p_a 0,/,
		);
	});

	test("import writes the refused lines where it is told", async () => {
		write("some.csv", "node_id,product_id\nx2,p\nx3,nobody\n");
		const { code, stderr } = await otaru(
			"import",
			"some.csv",
			"--refusals",
			"out.ndjson",
		);
		assert.equal(code, 1);
		assert.match(stderr, /^1 refused line: out\.ndjson$/m);
		assert.equal(JSON.parse(read("out.ndjson")).device_id, "nobody_x3");
		assert.ok(!existsSync(join(directory, "out.ndjson.part")));
	});

	test("import takes standard input", async () => {
		// Asynchronous: the server is in this process and has to answer meanwhile.
		const { stdout } = await promisify(exec)(
			`printf 'node_id,product_id\\nx4,p\\n' | '${process.execPath}' '${main}' devices import - --format csv --data '${server.config.dataDir}'`,
		);
		assert.match(stdout, /^ {2}registered +1$/m);
		await server.api.getDevice("p_x4");
	});

	test("a file that cannot be used ends with 1 and the reason", async () => {
		write("columns.csv", "a,b\n");
		const { code, stdout } = await otaru("import", "columns.csv");
		assert.equal(code, 1);
		assert.match(
			stdout,
			/^The first line must name the columns: "a" is none; known are /m,
		);
	});

	test("an import is watched over a restart of the server", async () => {
		write("long.csv", `node_id,product_id\n${csvLines(40_000, "long")}`);
		await using command = new OtaruCommand(
			["devices", "import", "long.csv", "--data", server.config.dataDir],
			{ cwd: directory },
		);
		const deadlineMs = Date.now() + 30_000;
		for (;;) {
			const { device_imports } = await server.api.listDeviceImports({
				limit: 1,
			});
			if (
				(device_imports[0]?.created ?? 0) > 0 &&
				device_imports[0]?.status === "Processing"
			)
				break;
			assert.ok(Date.now() < deadlineMs);
			await new Promise((resolve) => setTimeout(resolve, 10));
		}
		await server.restart();
		assert.equal(await command.ended, 0, command.stderr);
		assert.match(command.stdout, /^ {2}registered +40000$/m);
	});

	test("Ctrl-C ends the watching and says that the server goes on", async () => {
		write("more.csv", `node_id,product_id\n${csvLines(40_000, "more")}`);
		await using command = new OtaruCommand(
			["devices", "import", "more.csv", "--data", server.config.dataDir],
			{ cwd: directory },
		);
		let importId = "";
		for (const deadlineMs = Date.now() + 30_000; ; ) {
			const { device_imports } = await server.api.listDeviceImports({
				limit: 1,
			});
			const [newest] = device_imports;
			if (newest?.status === "Processing" && newest.created > 5_000) {
				importId = newest.import_id;
				break;
			}
			assert.ok(Date.now() < deadlineMs);
			await new Promise((resolve) => setTimeout(resolve, 10));
		}
		command.interrupt();
		assert.equal(await command.ended, 130, command.stderr);
		assert.ok(
			command.stderr.includes(`The server goes on with the import ${importId}`),
			command.stderr,
		);
		assert.equal(command.stdout, "");
		for (;;) {
			const job = await server.api.getDeviceImport(importId);
			if (job.status === "Processing") {
				await new Promise((resolve) => setTimeout(resolve, 50));
				continue;
			}
			assert.deepEqual([job.status, job.created], ["Success", 40_000]);
			break;
		}
	});

	test("export writes what import takes, into a file or to standard output", async () => {
		const toFile = await otaru("export", "all.ndjson", "--product", "p");
		assert.equal(toFile.code, 0, toFile.stderr);
		assert.equal(toFile.stdout, "");
		assert.match(toFile.stderr, /^all\.ndjson: [\d.]+ MiB$/m);
		const count = (await server.api.listDevices({ limit: 1 })).page.count;
		assert.equal(read("all.ndjson").split("\n").length, count + 1);
		assert.ok("app_id" in JSON.parse(read("all.ndjson").split("\n")[0] ?? ""));
		const toOutput = await otaru(
			"export",
			"--app-id",
			server.credentials.app_id,
		);
		assert.equal(toOutput.code, 0, toOutput.stderr);
		assert.match(
			toOutput.stdout,
			/^\ufeffdevice_id,node_id,product_id,device_name,/,
		);
		assert.equal(toOutput.stdout.split("\r\n").length, count + 2);
		const again = await otaru("import", "all.ndjson", "--json");
		assert.equal(JSON.parse(again.stdout).unchanged, count, again.stderr);
	});

	for (const [what, args, words] of [
		["nothing to do", [], "It is missing what to do"],
		[
			"an unknown thing to do",
			["delete"],
			'"delete" is nothing to do with devices',
		],
		["no file", ["import"], "otaru devices import FILE"],
		["two files", ["import", "a.csv", "b.csv"], '"b.csv" is one word too many'],
		[
			"a file that is not there",
			["import", "nowhere.csv"],
			"There is no file nowhere.csv",
		],
		[
			"a file of an unknown kind",
			["import", "devices.txt"],
			"--format is missing",
		],
		[
			"an unknown format",
			["import", "devices.csv", "--format", "xml"],
			"--format must be csv or ndjson",
		],
		["no import", ["refusals"], "refusals IMPORT_ID [FILE]"],
		[
			"two files to export to",
			["export", "a.csv", "b.csv"],
			'"b.csv" is one word too many',
		],
	] as const) {
		test(`${what} ends with 2, one sentence and the next step`, async () => {
			const { code, stdout, stderr } = await otaru(...args);
			assert.equal(code, 2, stderr);
			assert.equal(stdout, "");
			assert.ok(stderr.includes(words), stderr);
			assert.match(stderr, /\nSee otaru devices --help\.\n$/);
		});
	}

	test("an import that is not there ends with 3", async () => {
		const { code, stderr } = await otaru("refusals", "nobody");
		assert.equal(code, 3);
		assert.match(
			stderr,
			/404 IOTDA\.014990: The device import does not exist\./,
		);
	});
});
