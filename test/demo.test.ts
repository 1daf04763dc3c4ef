/** The first minute with the product: `npm run demo`. */
import assert from "node:assert/strict";
import { once } from "node:events";
import {
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { OtaruCommand } from "./support/otaru-command.ts";

/** A place of its own for the demo's temporary files, to see that none is left. */
function temporary() {
	const directory = mkdtempSync(join(tmpdir(), "otaru-test-demo-"));
	return {
		directory,
		[Symbol.dispose]: () => rmSync(directory, { recursive: true }),
	};
}

test("demo --exit upgrades both modules of every device, checks it, and leaves nothing behind", async () => {
	using temp = temporary();
	await using demo = new OtaruCommand(["demo", "--exit", "--devices", "40"], {
		env: { TMPDIR: temp.directory },
	});
	assert.equal(await demo.ended, 0, demo.stdout + demo.stderr);
	assert.equal(demo.stderr, "");
	assert.match(demo.stdout, /40 of 40 devices on the new version/);
	assert.match(demo.stdout, /30 over MQTT, 10 over MQTT with TLS/);
	assert.match(demo.stdout, /^ {4}MCU 1\.0\.0 → 1\.1\.0 +40\/40 /m);
	assert.match(demo.stdout, /^ {4}Modem 2\.0\.0 → 2\.1\.0 +40\/40 /m);
	assert.match(demo.stdout, /80 downloads, 25 MiB over HTTPS/);
	// Piped: plain lines, no colours, no cursor movements.
	assert.ok(!demo.stdout.includes("\u001b"));
	assert.deepEqual(readdirSync(temp.directory), []);
});

test("the demo stays up with working commands to copy, until Ctrl-C, on other ports when its own are taken", async () => {
	using temp = temporary();
	const occupant = createServer().listen(8080, "127.0.0.1");
	// Somebody else may have it already: taken is taken.
	await Promise.race([once(occupant, "listening"), once(occupant, "error")]);
	try {
		await using demo = new OtaruCommand(["demo", "--devices", "4"], {
			env: { TMPDIR: temp.directory },
		});
		const deadlineMs = Date.now() + 60_000;
		while (!demo.stdout.includes("Ctrl-C") && Date.now() < deadlineMs)
			await pause(50);
		assert.match(demo.stdout, /4 of 4 devices on the new version/);
		assert.match(demo.stdout, /port 8080 is taken/);

		const token = /TOKEN=(\S+)/.exec(demo.stdout)?.[1] ?? "";
		const api = /API=(\S+)/.exec(demo.stdout)?.[1] ?? "";
		const call = async (path: string, body?: string) => {
			const headers = {
				"x-auth-token": token,
				"content-type": "application/json",
			};
			const response = await fetch(api + path, {
				headers,
				...(body === undefined ? {} : { method: "POST", body }),
			});
			// biome-ignore lint/suspicious/noExplicitAny: each answer is looked at below.
			const answer: any = await response.json();
			return { status: response.status, body: answer };
		};
		const paths = [...demo.stdout.matchAll(/curl .*"\$API(\/[^"]+)"$/gm)];
		assert.equal(paths.length, 2);
		for (const [, path = ""] of paths)
			assert.equal((await call(path)).status, 200, path);

		const [, args = ""] = /npm run otaru -- (.*)/.exec(demo.stdout) ?? [];
		await using rehearsal = new OtaruCommand(`${args} --seed 1`.split(" "));
		await pause(3000);
		const [, path = "", body = ""] =
			/curl .*"\$API(\/batchtasks)" -d '(.*)'/.exec(demo.stdout) ?? [];
		const created = await call(path, body);
		assert.equal(created.status, 201);
		const ended = async () => {
			const { body } = await call(`${path}/${created.body.task_id}`);
			return body.batchtask;
		};
		const isOver = ({ status }: { status: string }) =>
			status !== "Initializing" && status !== "Processing";
		while (!isOver(await ended())) {
			assert.ok(Date.now() < deadlineMs, JSON.stringify(await ended()));
			await pause(100);
		}
		// Three devices, of which 0.4 fail: one.
		assert.equal((await ended()).status, "PartialSuccess");
		assert.equal((await ended()).task_progress.fail, 1);
		rehearsal.interrupt();
		assert.equal(await rehearsal.ended, 0, rehearsal.stderr);

		demo.interrupt();
		assert.equal(await demo.ended, 0, demo.stderr);
		assert.equal(demo.stderr, "");
		assert.deepEqual(readdirSync(temp.directory), []);
	} finally {
		occupant.close();
	}
});

test("demo --data keeps the data, and refuses a directory that is not empty", async () => {
	using temp = temporary();
	const dataDir = join(temp.directory, "data");
	const args = ["demo", "--exit", "--devices", "1", "--data", dataDir];
	await using first = new OtaruCommand(args);
	assert.equal(await first.ended, 0, first.stdout + first.stderr);
	assert.match(first.stdout, /1 of 1 device on the new version/);
	JSON.parse(readFileSync(join(dataDir, "credentials.json"), "utf8"));

	writeFileSync(join(dataDir, "mine.txt"), "mine");
	await using second = new OtaruCommand(args);
	assert.equal(await second.ended, 2);
	assert.match(second.stderr, /is not empty/);
	assert.equal(readFileSync(join(dataDir, "mine.txt"), "utf8"), "mine");
});
