/** What a line of an import says: a device to be registered, or why it cannot be one. */
import { type DeviceLine, deviceLine } from "../../wire/device-imports.ts";
import { deviceAuthInfo } from "../../wire/devices.ts";
import { checkTagCount, checkTags, type Tag } from "../devices/device-tags.ts";
import type { NewDevice } from "../devices/devices.ts";
import { readNewDevice } from "../devices/new-device.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { fromText, readCells } from "./csv.ts";
import { type FileLine, LINE_LIMIT_BYTES } from "./import-file.ts";

export type ImportLine = { line: number } & (
	| { device: NewDevice; tags: Tag[]; refusal?: undefined }
	| {
			refusal: ApiError;
			/** As far as the line names one. */
			deviceId: string | undefined;
	  }
);

/** How bodies are read and checked, so that lines are in the same way. */
export interface LineRules {
	/** @throws 400 IOTDA.000008 that begins with `what` */
	readJson(bytes: Uint8Array, what: string): unknown;
	/** By the schema of a line. */
	check(value: unknown): true | { error: ApiError };
}

/** Columns of an export that the server alone can say: they are read over. */
const REPORTED_COLUMNS = [
	"status",
	"fw_version",
	"sw_version",
	"device_sdk_version",
	"modules",
	"create_time",
] as const;
type Column = keyof DeviceLine | (typeof REPORTED_COLUMNS)[number];

const COLUMNS: ReadonlySet<string> = new Set([
	...Object.keys(deviceLine.properties).filter(
		(name) => name !== "auth_info" && name !== "shadow",
	),
	...REPORTED_COLUMNS,
]);
const REQUIRED_COLUMNS = ["node_id", "product_id"];
const FLAT_CREDENTIALS = Object.keys(deviceAuthInfo) as (keyof DeviceLine)[];
const LONGEST_NAME = 256;

const utf8 = new TextDecoder("utf-8", { fatal: true });

/** A CSV file that cannot be used, because its first line does not name its columns. */
export class UnusableHeader extends Error {
	override name = "UnusableHeader";
}

/** @throws UnusableHeader with a sentence */
export function readHeader(line: FileLine): string[] {
	const unusable = (reason: string) =>
		new UnusableHeader(`The first line must name the columns: ${reason}.`);
	if (line.fault !== undefined) throw unusable(faultText(line.fault));
	let names: string[];
	try {
		names = readCells(utf8.decode(line.bytes));
	} catch {
		throw unusable("it is not UTF-8");
	}
	const unknown = names.find((name) => !COLUMNS.has(name));
	if (unknown !== undefined)
		throw unusable(
			`${JSON.stringify(cut(unknown))} is none; known are ${[...COLUMNS].join(", ")}; columns are divided by commas`,
		);
	const twice = names.find((name, index) => names.indexOf(name) !== index);
	if (twice !== undefined) throw unusable(`${twice} occurs twice`);
	const missing = REQUIRED_COLUMNS.find((name) => !names.includes(name));
	if (missing !== undefined) throw unusable(`${missing} is missing`);
	return names;
}

/** Undefined for an empty line. @param header of a CSV file */
export function readLine(
	line: FileLine,
	header: readonly string[] | undefined,
	rules: LineRules,
): ImportLine | undefined {
	let value: unknown;
	try {
		if (line.fault !== undefined) throw malformed(faultText(line.fault));
		value = header
			? readRecord(line.bytes, header, rules)
			: readValue(line.bytes, rules);
		if (value === undefined) return undefined;
		const fits = rules.check(value);
		if (fits !== true) throw fits.error;
		return { line: line.line, ...readDevice(value as DeviceLine) };
	} catch (error) {
		if (!(error instanceof ApiError)) throw error;
		return { line: line.line, refusal: error, deviceId: namedDevice(value) };
	}
}

function readDevice(line: DeviceLine): { device: NewDevice; tags: Tag[] } {
	if (line.auth_info) {
		const beside = FLAT_CREDENTIALS.find((name) => line[name] !== undefined);
		if (beside !== undefined)
			throw invalidInput(beside, "must not be given beside auth_info");
	}
	const tags = (line.tags ?? []).map(({ tag_key, tag_value = "" }) => ({
		key: tag_key,
		value: tag_value,
	}));
	checkTags(tags);
	checkTagCount(tags.length);
	return { device: readNewDevice(line, line.auth_info ?? line), tags };
}

function readValue(bytes: Buffer, rules: LineRules): unknown {
	// What JSON takes for white space.
	if (bytes.every((byte) => byte === 0x20 || byte === 0x09 || byte === 0x0d))
		return undefined;
	return rules.readJson(bytes, "The line");
}

function readRecord(
	bytes: Buffer,
	header: readonly string[],
	rules: LineRules,
): Record<string, unknown> | undefined {
	if (bytes.length === 0) return undefined;
	let text: string;
	try {
		text = utf8.decode(bytes);
	} catch {
		throw malformed("The line is not UTF-8.");
	}
	const cells = readCells(text);
	if (cells.length !== header.length) {
		// Spreadsheets write rows that were emptied as commas alone.
		if (cells.every((cell) => cell === "")) return undefined;
		throw malformed(
			`The line has ${counted(cells.length, "cell")} where the header has ${counted(header.length, "column")}.`,
		);
	}
	const value: Record<string, unknown> = {};
	let empty = true;
	for (let index = 0; index < cells.length; index++) {
		const cell = cells[index] as string;
		if (cell === "") continue;
		empty = false;
		const name = header[index] as Column;
		value[name] = readCell(name, fromText(cell), rules);
	}
	return empty ? undefined : value;
}

/** What does not fit its column stays a text, which the schema then refuses by name. */
function readCell(column: Column, cell: string, rules: LineRules): unknown {
	switch (column) {
		case "secure_access":
			return cell === "true" ? true : cell === "false" ? false : cell;
		case "timeout":
			return /^\d{1,15}$/.test(cell) ? Number(cell) : cell;
		case "extension_info":
			return rules.readJson(Buffer.from(cell), "extension_info");
		case "tags":
			return cell.split(";").map((tag) => {
				const [tag_key, ...value] = tag.split("=");
				return value.length === 0
					? { tag_key }
					: { tag_key, tag_value: value.join("=") };
			});
		default:
			return cell;
	}
}

function faultText(fault: NonNullable<FileLine["fault"]>): string {
	switch (fault) {
		case "too_long":
			return `The line is longer than ${LINE_LIMIT_BYTES} bytes.`;
		case "quotes":
			return 'The quotes of the line do not fit: a cell that holds one must begin and end with one, and have it written twice ("a ""b"" c").';
		default:
			return fault satisfies never;
	}
}

function malformed(detail: string): ApiError {
	return new ApiError(errors.invalidFormat, { detail });
}

/** For the list of refusals: whatever it is, it must be a text that stores keep. */
function namedDevice(value: unknown): string | undefined {
	if (typeof value !== "object" || value === null) return undefined;
	const { device_id, product_id, node_id } = value as Record<string, unknown>;
	const name =
		typeof device_id === "string"
			? device_id
			: typeof product_id === "string" && typeof node_id === "string"
				? `${product_id}_${node_id}`
				: undefined;
	return name === undefined ? undefined : cut(name);
}

function cut(text: string): string {
	return (
		text
			.slice(0, LONGEST_NAME)
			.toWellFormed()
			// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is replaced
			.replaceAll(/[\u0000-\u001f\u007f]/g, "\ufffd")
	);
}

function counted(count: number, noun: string): string {
	return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
