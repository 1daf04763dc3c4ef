/** The lines of a file come out the same, however it comes in and wherever reading goes on. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
	asText,
	fromText,
	readCells,
	writeRecord,
} from "../server/device-imports/csv.ts";
import {
	type FilePosition,
	LINE_LIMIT_BYTES,
	LineSplitter,
} from "../server/device-imports/import-file.ts";

type Format = "csv" | "ndjson";
/** `[number, text or fault]` */
type Line = [number, string];

const start: FilePosition = { bytes: 0, lines: 0 };

/** The lines from `from` on, and where each of them ends; the file comes in such pieces. */
function split(
	format: Format,
	file: Buffer,
	pieceBytes: number[] = [file.length],
	from = start,
): { lines: Line[]; ends: FilePosition[] } {
	const splitter = new LineSplitter(format, from);
	const lines: Line[] = [];
	const ends: FilePosition[] = [];
	let at = from.bytes;
	for (let piece = 0; ; piece++) {
		for (let line = splitter.next(); line; line = splitter.next()) {
			lines.push([line.line, line.fault ?? line.bytes.toString()]);
			ends.push(splitter.position);
		}
		const room = splitter.room();
		const wanted = pieceBytes[piece % pieceBytes.length] ?? 1;
		const bytes = Math.min(wanted, room.length, file.length - at);
		file.copy(room, 0, at, at + bytes);
		splitter.filled(bytes);
		at += bytes;
		if (bytes > 0) continue;
		for (let line = splitter.next(); line; line = splitter.next()) {
			lines.push([line.line, line.fault ?? line.bytes.toString()]);
			ends.push(splitter.position);
		}
		return { lines, ends };
	}
}

const csv = (text: string) => split("csv", Buffer.from(text)).lines;
const ndjson = (text: string) => split("ndjson", Buffer.from(text)).lines;

describe("the lines of a file", () => {
	for (const [what, lines, expected] of [
		["nothing", csv(""), []],
		[
			"no line break at the end",
			csv("a\nb"),
			[
				[1, "a"],
				[2, "b"],
			],
		],
		[
			"Windows' line breaks",
			csv("a,b\r\n1,2\r\n"),
			[
				[1, "a,b"],
				[2, "1,2"],
			],
		],
		[
			"empty lines, which count",
			csv("a\n\n\r\nb\n"),
			[
				[1, "a"],
				[2, ""],
				[3, ""],
				[4, "b"],
			],
		],
		[
			"a byte order mark",
			csv("\ufeffa\nb"),
			[
				[1, "a"],
				[2, "b"],
			],
		],
		[
			"a byte order mark and a quote",
			csv('\ufeff"a\nb"\nc'),
			[
				[1, '"a\nb"'],
				[3, "c"],
			],
		],
		["nothing but a byte order mark", ndjson("\ufeff"), []],
		[
			"a line break in quotes",
			csv('1,"a\r\nb"\r\n2,c'),
			[
				[1, '1,"a\r\nb"'],
				[3, "2,c"],
			],
		],
		[
			"quotes written twice",
			csv('"a""\n""",b\n"",""\n'),
			[
				[1, '"a""\n""",b'],
				[3, '"",""'],
			],
		],
		["a quote at the very end", csv('a,"b"'), [[1, 'a,"b"']]],
		[
			"quotes that JSON may have anywhere",
			ndjson('{"a":\n"'),
			[
				[1, '{"a":'],
				[2, '"'],
			],
		],
	] as const) {
		test(what, () => {
			assert.deepEqual(lines, expected);
		});
	}

	for (const [what, broken] of [
		["a quote that is never closed", '2,"x'],
		["a quote in the middle of a cell", '2,5" wide'],
		["something after the closing quote", '2,"x"y'],
		["a carriage return after the closing quote", '2,"x"\ry'],
		["a quote too many", '2,""x""'],
	] as const) {
		test(`${what} spoils one line, and none of those that follow`, () => {
			const expected: Line[] = [
				[1, "1,a"],
				[2, "quotes"],
				[3, "3,b"],
				[4, '4,"c"'],
				[5, "5,d"],
			];
			assert.deepEqual(csv(`1,a\n${broken}\n3,b\n4,"c"\n5,d\n`), expected);
			assert.deepEqual(
				csv(`1,a\n${broken}\n3,b\n4,"c"\n5,d`),
				expected,
				"without a line break at the end",
			);
			assert.deepEqual(
				csv(`1,a\n${broken}`),
				expected.slice(0, 2),
				"at the end",
			);
		});
	}

	test("a quote that is never closed is given up after the longest line there may be", () => {
		const rest = Array.from(
			{ length: 10_000 },
			(_, n) => `${n + 2},aaaaaaaaaa`,
		);
		const lines = csv(`1,"x\n${rest.join("\n")}`);
		assert.deepEqual(lines[0], [1, "quotes"]);
		assert.deepEqual(
			lines.slice(1),
			rest.map((text, index) => [index + 2, text]),
		);
	});

	for (const format of ["csv", "ndjson"] as const) {
		test(`a line of ${LINE_LIMIT_BYTES} bytes is the longest, in ${format}`, () => {
			const longest = "x".repeat(LINE_LIMIT_BYTES);
			const lines = split(
				format,
				Buffer.from(
					`a\n${longest}\n${longest}y\nb\n${longest.repeat(20)}\nc\n${longest}z`,
				),
			).lines;
			assert.deepEqual(lines, [
				[1, "a"],
				[2, longest],
				[3, "too_long"],
				[4, "b"],
				[5, "too_long"],
				[6, "c"],
				[7, "too_long"],
			]);
		});
	}

	const fileText = fc
		.array(
			fc.oneof(
				fc.constantFrom(
					'"',
					'""',
					",",
					"\n",
					"\r\n",
					"\r",
					"a",
					"厅",
					"\ufeff",
				),
				fc.string({ maxLength: 5 }),
				fc.constantFrom("x".repeat(1_000), "x".repeat(LINE_LIMIT_BYTES - 500)),
			),
			{ maxLength: 60 },
		)
		.map((parts) => Buffer.from(parts.join("")));
	const format = fc.constantFrom<Format>("csv", "ndjson");

	test("it makes no difference in which pieces a file comes", () => {
		fc.assert(
			fc.property(
				format,
				fileText,
				fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }),
				(kind, file, pieces) => {
					const scale = file.length > 5_000 ? 997 : 1;
					assert.deepEqual(
						split(
							kind,
							file,
							pieces.map((bytes) => bytes * scale),
						),
						split(kind, file),
					);
				},
			),
			{ numRuns: 500 },
		);
	});

	test("reading can go on after any line", () => {
		fc.assert(
			fc.property(format, fileText, fc.nat(), (kind, file, pick) => {
				const { lines, ends } = split(kind, file);
				assert.deepEqual(
					ends.at(-1)?.bytes ?? 0,
					lines.length ? file.length : 0,
				);
				if (ends.length === 0) return;
				const index = pick % ends.length;
				assert.deepEqual(
					split(kind, file, [file.length], ends[index]).lines,
					lines.slice(index + 1),
				);
			}),
			{ numRuns: 500 },
		);
	});

	test("what is written as a record is read as the same cells", () => {
		fc.assert(
			fc.property(
				fc.array(
					fc.oneof(
						fc.string(),
						fc.constantFrom(
							'"',
							",",
							"\n",
							"\r",
							"=1+1",
							"'",
							"'-1",
							"''@a",
							"\ta",
						),
					),
					{ minLength: 1 },
				),
				(cells) => {
					const record = writeRecord(cells.map(asText));
					const [line, ...others] = split(
						"csv",
						Buffer.from(`#\n${record}`),
					).lines.slice(1);
					assert.deepEqual(others, []);
					assert.deepEqual(readCells(line?.[1] ?? "").map(fromText), cells);
				},
			),
			{ numRuns: 2_000 },
		);
	});

	test("no cell that is written is a formula", () => {
		for (const cell of [
			"=1+1",
			"+1",
			"-1",
			"@a",
			"\t=1",
			"\r=1",
			"'=1",
			"''-1",
		])
			assert.match(asText(cell), /^'/);
		for (const cell of ["a", "a=1", "'a", "", "1-1", '"=1'])
			assert.equal(asText(cell), cell);
	});
});
