/** What the documentation says of the code is compared with the code. */
import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { settings } from "../server/config.ts";

const root = join(import.meta.dirname, "..");
const read = (file: string) => readFileSync(join(root, file), "utf8");

test("README's table of settings is the server's", () => {
	const readme = read("README.md");
	const begin = readme.indexOf("<!-- settings -->");
	const documented = new Map<string, { byDefault: string; meaning: string }>();
	for (const line of readme.slice(begin).split("\n").slice(3)) {
		if (!line.startsWith("|")) break;
		const [, name = "", byDefault = "", meaning = ""] = line
			.split("|")
			.map((cell) => cell.trim().replaceAll("`", ""));
		documented.set(name, {
			byDefault: byDefault.replaceAll(", ", ","),
			meaning,
		});
	}
	const actual = new Map(
		Object.entries(settings).map(([name, [byDefault, meaning]]) => [
			name,
			{ byDefault, meaning },
		]),
	);
	assert.deepEqual(documented, actual);
});

test("ARCHITECTURE.md names every folder and file of the server that is there, and none that is not", () => {
	const architecture = read("ARCHITECTURE.md");
	const begin = architecture.indexOf("<!-- map -->");
	const end = architecture.indexOf("<!-- /map -->");
	const drawn = new Set(
		[...architecture.slice(begin, end).matchAll(/[a-z0-9-]+\.(?:ts|mjs)/g)].map(
			(match) => match[0],
		),
	);
	const there = new Set(
		globSync("{wire,server,cli,simulator}/**/*.{ts,mjs}", { cwd: root })
			.filter((file) => !file.includes("migrations"))
			.map((file) => file.slice(file.lastIndexOf("/") + 1)),
	);
	assert.deepEqual([...drawn].sort(), [...there].sort());
});

test("links between the pages of the documentation lead somewhere", () => {
	for (const page of globSync("{*.md,docs/**/*.md}", { cwd: root })) {
		for (const [, link = ""] of read(page).matchAll(
			/\]\((?!https?:)([^)#]+)/g,
		)) {
			assert.ok(
				globSync(join(root, page, "..", link)).length === 1,
				`${page} links to ${link}`,
			);
		}
	}
});
