/** `bench/results.md`: the last figures of each measurement, with the machine they are from. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";

export interface Result {
	/** Heading: the name of the measurement. */
	name: string;
	/** What was done, in a sentence. */
	what: string;
	rows: Row[];
}

export interface Row {
	figure: string;
	value: string;
	goal?: string;
}

const file = join(import.meta.dirname, "results.md");

/** Prints it and puts it in place of the last one of that name. */
export function keepResult(result: Result): void {
	process.stdout.write(`\n${table(result)}\n`);
	const sections = new Map<string, string>();
	if (existsSync(file)) {
		for (const section of readFileSync(file, "utf8").split(/^(?=## )/m)) {
			const name = /^## (.*)$/m.exec(section)?.[1];
			if (name !== undefined) sections.set(name, section.trimEnd());
		}
	}
	sections.set(
		result.name,
		`## ${result.name}\n\n${machine()}. ${result.what}\n\n${table(result)}`,
	);
	const ordered = [...sections].sort(([a], [b]) => (a < b ? -1 : 1));
	writeFileSync(
		file,
		`# Measurements\n\nWritten by \`npm run bench\`: figures of one run on one machine. The ratios compare with a\nreference measured in the same run, and travel better than the absolute figures.\n\n${ordered.map(([, text]) => text).join("\n\n")}\n`,
	);
}

function table({ rows }: Result): string {
	const cells = [
		["Figure", "Measured", "Goal"],
		...rows.map(({ figure, value, goal }) => [figure, value, goal ?? ""]),
	];
	const widths = [0, 1, 2].map((column) =>
		Math.max(...cells.map((row) => (row[column] ?? "").length)),
	);
	const line = (row: string[]) =>
		`| ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join(" | ")} |`;
	const [head = [], ...body] = cells;
	const rule = widths.map((width) => "-".repeat(width));
	return [line(head), line(rule), ...body.map(line)].join("\n");
}

function machine(): string {
	const model = cpus()[0]?.model.trim() || "unknown processor";
	const memory = Math.round(totalmem() / 1024 ** 3);
	const day = new Date().toISOString().slice(0, 10);
	return `${day}, ${cpus().length} cores (${model}), ${memory} GiB, Node ${process.versions.node}`;
}
