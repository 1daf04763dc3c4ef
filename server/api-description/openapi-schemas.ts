/**
 * The schemas of `wire/` as an OpenAPI document has them: the server's own marks gone,
 * its sentences as descriptions, what several operations share as named components.
 */
import { enumNames, fieldWords } from "./openapi-words.ts";

export interface JsonSchema {
	type?: string | string[];
	properties?: Record<string, JsonSchema>;
	required?: string[];
	items?: JsonSchema;
	anyOf?: JsonSchema[];
	enum?: readonly unknown[];
	additionalProperties?: unknown;
	description?: string;
	/** The sentence of a refusal: "must be 1 to 36 characters". */
	rule?: string;
	/** What a check elsewhere admits (`wire/envelope.ts`). */
	documented?: { rule?: string; enum?: readonly unknown[] };
	[word: string]: unknown;
}

/** Where a schema stands, which says what it means. */
interface Place {
	/** The name that it has there. */
	field?: string;
	/** The operation or component that it belongs to, or the field that holds it. */
	owner?: string;
}

/** Collects the components of one document while schemas are written for it. */
export class SchemaWriter {
	/** By name, written. */
	readonly components: Record<string, object> = {};
	/** The name of each shared schema, by its text. */
	readonly #names = new Map<string, string>();

	/**
	 * @param modules the files of `wire/` by name; each of their schemas of objects that
	 * is met becomes a component, with the name of its constant.
	 */
	constructor(modules: Readonly<Record<string, object>>) {
		const taken = new Map<string, string>();
		for (const [file, exported] of Object.entries(modules)) {
			for (const [constant, schema] of Object.entries(exported)) {
				if (!isObjectSchema(schema)) continue;
				const text = JSON.stringify(schema);
				if (this.#names.has(text)) continue;
				const plain = capitalised(constant);
				const name = taken.has(plain)
					? `${plain}Of${capitalised(file.replace(/-(\w)/g, (_, letter) => letter.toUpperCase()))}`
					: plain;
				taken.set(name, text);
				this.#names.set(text, name);
			}
		}
	}

	write(given: object, place: Place = {}): object {
		const schema = given as JsonSchema;
		const name = schema.properties && this.#names.get(JSON.stringify(schema));
		if (!name) return this.#inline(schema, place);
		// The name is taken before what is inside: a schema may contain itself.
		if (!(name in this.components)) {
			this.components[name] = {};
			this.components[name] = this.#inline(schema, { owner: name });
		}
		return referenceTo(name, meaningOf({}, place));
	}

	#inline(schema: JsonSchema, place: Place): object {
		const { rule, documented, description, ...words } = schema;
		const { rule: documentedRule = rule, ...documentedWords } =
			documented ?? {};
		const meaning = meaningOf(schema, place);
		const values = documented?.enum ?? schema.enum;
		const enumName = values && this.#enumComponent(values, place);
		if (enumName !== undefined) return referenceTo(enumName, meaning);

		const written: Record<string, unknown> = { ...words, ...documentedWords };
		if (values) Object.assign(written, typeOfEnum(values));
		const within = place.field ?? place.owner;
		const owner = within === undefined ? {} : { owner: within };
		if (schema.properties)
			written.properties = Object.fromEntries(
				Object.entries(schema.properties).map(([field, value]) => [
					field,
					this.write(value, { field, ...owner }),
				]),
			);
		if (schema.items) written.items = this.write(schema.items, owner);
		for (const word of ["additionalProperties", "propertyNames"]) {
			const inner = schema[word];
			if (typeof inner === "object" && inner !== null)
				written[word] = this.write(inner);
		}
		if (schema.anyOf && !("anyOf" in documentedWords))
			written.anyOf = schema.anyOf.map((option) => this.write(option, owner));
		const sentences = [
			meaning,
			documentedRule === undefined ||
			saidByType.test(documentedRule) ||
			(values && documentedRule.startsWith("must be one of "))
				? undefined
				: `${capitalised(documentedRule)}.`,
		].filter((sentence) => sentence !== undefined);
		if (sentences.length > 0) written.description = sentences.join(" ");
		return written;
	}

	/**
	 * A choice that several calls offer is one type to whoever makes a client of it.
	 *
	 * @returns its name; undefined for one that has none.
	 */
	#enumComponent(values: readonly unknown[], place: Place): string | undefined {
		const name = lookUp(enumNames, place);
		if (name === undefined) return undefined;
		const written = { type: "string", enum: values };
		const known = this.components[name];
		if (known && JSON.stringify(known) !== JSON.stringify(written))
			throw new Error(`${name} names two different choices.`);
		this.components[name] = written;
		return name;
	}
}

function referenceTo(name: string, description: string | undefined): object {
	return {
		$ref: `#/components/schemas/${name}`,
		...(description === undefined ? {} : { description }),
	};
}

/** What the type says already is not said again. */
const saidByType = /^must be (an object|a list|true or false|a number)$/;

function meaningOf(schema: JsonSchema, place: Place): string | undefined {
	return schema.description ?? lookUp(fieldWords, place);
}

/** `User.status` before `status`. */
function lookUp(
	words: Readonly<Record<string, string>>,
	{ field, owner }: Place,
): string | undefined {
	if (field === undefined) return undefined;
	return words[`${owner}.${field}`] ?? words[field];
}

function typeOfEnum(values: readonly unknown[]): object {
	// A flag of a query is text to the server, since all of a query is.
	if (values.length === 2 && values[0] === "true" && values[1] === "false")
		return { enum: undefined, type: "boolean" };
	const texts = values.filter((value) => typeof value === "string");
	if (texts.length === values.length) return { type: "string" };
	return texts.length + 1 === values.length && values.includes(null)
		? { type: ["string", "null"] }
		: {};
}

function isObjectSchema(value: unknown): value is JsonSchema {
	return (
		typeof value === "object" &&
		value !== null &&
		(value as JsonSchema).type === "object" &&
		Object.keys((value as JsonSchema).properties ?? {}).length > 0
	);
}

function capitalised(text: string): string {
	return text.slice(0, 1).toUpperCase() + text.slice(1);
}
