/** Who may import whom: the table in ARCHITECTURE.md, as data. */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { test } from "node:test";

const root = join(import.meta.dirname, "..");

/** A folder imports those before it, never those after it. */
const order = [
	"policy-language",
	"database",
	"secrets",
	"access",
	"audit",
	"history",
	"resource-spaces",
	"products",
	"devices",
	"device-groups",
	"device-imports",
	"ota-modules",
	"artifacts",
	"packages",
	"upgrade-tasks",
	"device-link",
	"api-description",
	"http",
];
/** Importable everywhere in server/. */
const everywhere = [
	"config.ts",
	"errors.ts",
	"error-body.ts",
	"log.ts",
	"events.ts",
];
/** Pure: types and each other. */
const pure = [
	...["task.ts", "subtask.ts", "task-policy.ts", "failures.ts"].map(
		(file) => `server/upgrade-tasks/${file}`,
	),
	...[
		"policy-document.ts",
		"policy-conditions.ts",
		"policy-decision.ts",
		"system-policies.ts",
	].map((file) => `server/policy-language/${file}`),
	"server/policy-language/wildcards.ts",
	...["group-rule.ts", "group-rule-fits.ts"].map(
		(file) => `server/device-groups/${file}`,
	),
];
const sources = globSync("{wire,server,cli,simulator,bench}/**/*.ts", {
	cwd: root,
}).map((file) => file.replaceAll("\\", "/"));

function importsOf(
	file: string,
): { target: string; line: string; typeOnly: boolean }[] {
	const text = readFileSync(join(root, file), "utf8");
	return [
		...text.matchAll(
			/^(?:import|export)\s[^;]*?from\s+"(\.[^"]+)"|^import\s+"(\.[^"]+)"/gm,
		),
	].map((match) => ({
		target: relative(
			root,
			join(root, dirname(file), match[1] ?? match[2] ?? ""),
		).replaceAll("\\", "/"),
		line: match[0].replaceAll(/\s+/g, " "),
		typeOnly: match[0].startsWith("import type"),
	}));
}

function mayImport(file: string, target: string): boolean {
	const [area = "", folder = ""] = file.split("/");
	const [targetArea = "", targetFolder = ""] = target.split("/");
	if (area === "wire") return targetArea === "wire";
	if (area === "simulator")
		return targetArea === "simulator" || targetArea === "wire";
	if (area === "bench") return true;
	if (area === "cli") {
		if (
			targetArea === "cli" ||
			targetArea === "wire" ||
			targetArea === "simulator"
		)
			return true;
		return (
			targetArea === "server" &&
			(file === "cli/admin.ts" || file === "cli/demo.ts")
		);
	}
	if (targetArea === "wire") return true;
	if (targetArea !== "server") return false;
	if (everywhere.includes(targetFolder)) return true;
	if (file === "server/server.ts") return true;
	if (file === "server/main.ts") return targetFolder === "server.ts";
	if (!order.includes(folder))
		return ["database", "secrets", "access"].includes(targetFolder);
	if (target.endsWith("routes.ts") && folder !== "http") return false;
	return (
		order.indexOf(targetFolder) >= 0 &&
		order.indexOf(targetFolder) <= order.indexOf(folder)
	);
}

test("imports follow the order of the folders", () => {
	assert.ok(sources.length > 40, "the sources were not found");
	const wrong = sources.flatMap((file) =>
		importsOf(file)
			.filter(({ target }) => !mayImport(file, target))
			.map(({ line }) => `${file}: ${line}`),
	);
	assert.deepEqual(wrong, []);
});

test("what is pure imports only types and what is pure", () => {
	for (const file of pure) {
		for (const { target, line, typeOnly } of importsOf(file)) {
			assert.ok(typeOnly || pure.includes(target), `${file}: ${line}`);
		}
		const text = readFileSync(join(root, file), "utf8");
		assert.doesNotMatch(
			text,
			// Of `node:net` the arithmetic of addresses.
			/new Date\(\)|Date\.now|Math\.random|from "node:(?!net")/,
			file,
		);
	}
});

test("every source file says in a sentence what it is for, or is a list of routes", () => {
	const silent = sources.filter(
		(file) =>
			!file.endsWith("routes.ts") &&
			!/^(#!.*\n)?\/\*\*/.test(readFileSync(join(root, file), "utf8")),
	);
	assert.deepEqual(silent, []);
});

test("nothing but the store knows which engine runs, nothing but the MQTT files knows packets", () => {
	for (const file of sources.filter((name) => name.startsWith("server/"))) {
		const text = readFileSync(join(root, file), "utf8");
		if (!file.startsWith("server/database/"))
			assert.doesNotMatch(text, /from "(pg|node:sqlite)"/, file);
		if (!file.startsWith("server/device-link/mqtt-"))
			assert.doesNotMatch(text, /from "mqtt-packet"/, file);
	}
});
