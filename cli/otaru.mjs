#!/usr/bin/env node
// The `otaru` command on whatever Node a machine has. The program itself is TypeScript
// that Node 24 runs as it stands; an older Node hands over to the one that came with
// this package.
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";

const program = fileURLToPath(new URL("main.ts", import.meta.url));

if (Number(process.versions.node.split(".")[0]) >= 24) {
	await import("./main.ts");
} else {
	const require = createRequire(import.meta.url);
	let node;
	try {
		node = require.resolve("node/bin/node");
	} catch {
		process.stderr.write(
			`otaru needs Node 24 or newer, this is ${process.version}. Run "npm ci" where otaru lies: it brings its own.\n`,
		);
		process.exit(1);
	}
	const child = spawn(node, [program, ...process.argv.slice(2)], {
		stdio: "inherit",
	});
	// Ctrl-C reaches the child as well; this process only waits for what it says.
	process.on("SIGINT", () => {});
	process.on("SIGTERM", () => child.kill("SIGTERM"));
	child.on("exit", (code, signal) => {
		process.exitCode = signal ? 128 + constants.signals[signal] : code;
	});
}
