/**
 * What every call shares: the error body, paging, the name alphabets, the two date
 * formats. Lengths are counted in Unicode code points.
 */
import {
	type Static,
	type TObject,
	type TProperties,
	type TSchema,
	Type,
} from "typebox";

/**
 * Where a check is elsewhere, since it has an error of its own or asks what a schema
 * cannot, the member `documented` of the schema says what the check admits, in words of
 * JSON Schema; a `rule` in it takes the place of the schema's own.
 */

export const errorBody = Type.Object({
	error_code: Type.String(),
	error_msg: Type.String(),
	/** Ours: what the vendor's sentence leaves open, such as the field. */
	error_detail: Type.Optional(Type.String()),
	request_id: Type.Optional(Type.String()),
});

/** The form of the vendor's IAM: under `/v3`. */
export const iamErrorBody = Type.Object({
	error: Type.Object({
		code: Type.Integer(),
		message: Type.String(),
		title: Type.String(),
	}),
});

// --- alphabets ------------------------------------------------------------------
// `rule` is the sentence a caller reads when the value does not fit. No pattern
// admits U+0000 or half a surrogate pair, which no store keeps. Patterns count as
// well: an open-ended one needs memory for every character it has matched, and a
// body of megabytes would exhaust the matcher's stack.

type Text = {
	pattern: string;
	minLength: number;
	maxLength: number;
	rule: string;
};
const CHINESE = "\\u4E00-\\u9FFF\\u3400-\\u4DBF";
const SIGNS = "_?'#().,&%@!\\-";

function text(alphabet: string, words: string, min: number, max: number): Text {
	return {
		pattern: `^[${alphabet}]{${min},${max}}$`,
		minLength: min,
		maxLength: max,
		rule: `must be ${min} to ${max} characters: ${words}`,
	};
}

export const id36 = () =>
	Type.String(text("A-Za-z0-9_\\-", "letters A-Z a-z, digits, _ and -", 1, 36));
export const otaName = () =>
	Type.String(
		text("A-Za-z0-9_.\\-", "letters A-Z a-z, digits, _, . and -", 1, 64),
	);
export const versionText = () =>
	Type.String(
		text("A-Za-z0-9_.\\-", "letters A-Z a-z, digits, _, . and -", 1, 256),
	);
export const deviceId = () =>
	Type.String(
		text("A-Za-z0-9_\\-", "letters A-Z a-z, digits, _ and -", 1, 128),
	);
/** Chinese characters, letters A-Z a-z, digits and the vendor's signs. */
export const plainText = (min: number, max: number) =>
	Type.String(
		text(
			`${CHINESE}A-Za-z0-9${SIGNS}`,
			"Chinese characters, letters A-Z a-z, digits and _?'#().,&%@!-",
			min,
			max,
		),
	);
/** As `plainText`, and blanks. */
export const spacedText = (min: number, max: number) =>
	Type.String(
		text(
			`${CHINESE}A-Za-z0-9${SIGNS} `,
			"Chinese characters, letters A-Z a-z, digits, blanks and _?'#().,&%@!-",
			min,
			max,
		),
	);
/** Keys and values of tags. */
export const tagText = (min: number, max: number) =>
	Type.String(
		text(
			`${CHINESE}A-Za-z0-9_.\\-`,
			"Chinese characters, letters A-Z a-z, digits, _, . and -",
			min,
			max,
		),
	);
export const plainTextDollar = (min: number, max: number) =>
	Type.String(
		text(
			`${CHINESE}A-Za-z0-9${SIGNS}$`,
			"Chinese characters, letters A-Z a-z, digits and _?'#().,&%@!-$",
			min,
			max,
		),
	);
export const descriptionText = (max: number) =>
	Type.String(
		text(
			`${CHINESE}A-Za-z0-9${SIGNS}\\s;/，、：；。`,
			"Chinese characters, letters A-Z a-z, digits, white space and _?'#().,&%@!-;/，、：；。",
			0,
			max,
		),
	);
/** Any characters but U+0000. */
export const anyText = (min: number, max: number) =>
	Type.String({
		pattern: `^[^\\u0000\\uD800-\\uDFFF]{${min},${max}}$`,
		minLength: min,
		maxLength: max,
		rule: `must be ${min} to ${max} characters without the NUL character`,
	});
/** An id in a path: anything is let through that could be one; what is unknown is a 404, what cannot be an id a 400. */
export const pathId = (max: number) =>
	Type.String(
		text("A-Za-z0-9_\\-", "letters A-Z a-z, digits, _ and -", 1, max),
	);

export const projectParams = Type.Object({ project_id: pathId(64) });

export const oneOf = <const V extends string[]>(values: readonly [...V]) =>
	Type.Enum(values, { rule: `must be one of ${values.join(", ")}` });
export const flag = () => Type.Boolean({ rule: "must be true or false" });
/** A flag in a query, where everything is text. */
export const queryFlag = () =>
	Type.Enum(["true", "false"], { rule: "must be true or false" });
/** An object whose keys are the caller's own. */
export const freeObject = () =>
	Type.Unsafe<Record<string, unknown>>({
		type: "object",
		additionalProperties: true,
		rule: "must be an object",
	});

/** An instant in the general date form, read with `parseWireTime`. */
export const timeText = () =>
	Type.String({
		documented: { pattern: "^[0-9]{8}T[0-9]{6}Z$" },
		rule: "must be a time such as 20230211T121212Z",
	});

// --- paging ---------------------------------------------------------------------

/** Query of every list: read with `readPage`, which gives the vendor's own error codes. */
export const pageQuery = {
	limit: Type.Optional(
		Type.String({
			documented: { type: "integer", minimum: 1, maximum: 50, default: 10 },
			description: "How many records at most.",
		}),
	),
	marker: Type.Optional(
		Type.String({
			documented: {
				pattern: "^[0-9a-fA-F]{24}$",
				default: "ffffffffffffffffffffffff",
			},
			description:
				"Only records older than this one: the marker of the page before.",
		}),
	),
	offset: Type.Optional(
		Type.String({
			documented: { type: "integer", minimum: 0, maximum: 500, default: 0 },
			description: "How many records to skip after the marker.",
		}),
	),
} satisfies TProperties;

export const pageInfo = Type.Object({
	/** All records that match the filter, whatever the page. */
	count: Type.Integer(),
	/** Id of the last record of this page; absent on an empty page. */
	marker: Type.Optional(Type.String()),
});
export type PageInfo = Static<typeof pageInfo>;

/** Of lists that may be endless: only their newest part is counted. */
export const countedToPageInfo = (records: number) =>
	Type.Object({
		...pageInfo.properties,
		count: Type.Integer({
			description: `How many of the newest ${records.toLocaleString("en")} records match the filter, whatever the page: what is older is not counted.`,
		}),
		marker: Type.Optional(
			Type.String({
				description:
					"Where the next page begins; also on a page that found too little in what it looked through. Absent: nothing is left.",
			}),
		),
	});

/** `{ "<key>": [item…], "page": {count, marker} }` */
export function pageOf<K extends string, T extends TSchema>(
	key: K,
	item: T,
	page: typeof pageInfo = pageInfo,
) {
	return Type.Object({ [key]: Type.Array(item), page } as {
		[P in K]: ReturnType<typeof Type.Array<T>>;
	} & {
		page: typeof pageInfo;
	});
}

export type { Static, TObject };

// --- dates ----------------------------------------------------------------------

/** `20230211T121212Z`: the general date form, UTC, whole seconds. */
export function wireTime(date: Date): string {
	return `${date.toISOString().slice(0, 19).replace(/[-:]/g, "")}Z`;
}

/** `2023-02-11T12:12:12.000Z`: the form of a device's connection times. */
export function wireTimeMs(date: Date): string {
	return date.toISOString();
}

/** Reads the general date form; undefined when the text is not a real instant in it. */
export function parseWireTime(text: string): Date | undefined {
	const match = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(text);
	if (!match) return undefined;
	const [, year, month, day, hour, minute, second] = match;
	const date = new Date(
		`${year}-${month}-${day}T${hour}:${minute}:${second}.000Z`,
	);
	// The calendar decides: 30 February parses to another day, not to an error.
	return Number.isNaN(date.getTime()) || wireTime(date) !== text
		? undefined
		: date;
}

// --- answers --------------------------------------------------------------------

type Absent = null | undefined;
type Present<T> = {
	[K in keyof T as Extract<T[K], Absent> extends never ? K : never]: T[K];
} & {
	[K in keyof T as Extract<T[K], Absent> extends never ? never : K]?: Exclude<
		T[K],
		Absent
	>;
};

/** Leaves out what has no value: the vendor's answers omit such keys and never say `null`. */
export function withoutAbsent<T extends object>(value: T): Present<T> {
	return Object.fromEntries(
		Object.entries(value).filter(([, v]) => v !== null && v !== undefined),
	) as Present<T>;
}
