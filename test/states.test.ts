import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { subtaskMoves } from "../server/upgrade-tasks/subtask.ts";
import { taskMoves } from "../server/upgrade-tasks/task.ts";

const page = readFileSync(
	new URL("../docs/states.md", import.meta.url),
	"utf8",
);

function tableAfter(marker: string): Record<string, string[]> {
	const begin = page.indexOf(`<!-- moves: ${marker} -->`);
	assert.ok(begin >= 0, `docs/states.md has no table of moves for ${marker}`);
	const moves: Record<string, string[]> = {};
	for (const line of page.slice(begin).split("\n").slice(3)) {
		if (!line.startsWith("|")) break;
		const [, from = "", to = ""] = line.split("|");
		const names = (text: string) =>
			[...text.matchAll(/`(\w+)`/g)].map((match) => match[1] ?? "");
		moves[names(from)[0] ?? ""] = names(to);
	}
	return moves;
}

test("docs/states.md draws the moves of a task as the code has them", () => {
	assert.deepEqual(tableAfter("task"), taskMoves);
});

test("docs/states.md draws the moves of a subtask as the code has them", () => {
	assert.deepEqual(tableAfter("subtask"), subtaskMoves);
});
