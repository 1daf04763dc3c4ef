/**
 * The schemas of `wire/` as an OpenAPI document has them: the server's own marks gone,
 * its sentences as descriptions, what several operations share as named components.
 */
import { fieldWords } from "./openapi-words.ts";

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
	documented?: object;
	[word: string]: unknown;
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

	/** @param field the name it has where it stands, which says what it means. */
	write(given: object, field?: string): object {
		const schema = given as JsonSchema;
		const name = schema.properties && this.#names.get(JSON.stringify(schema));
		if (!name) return this.#inline(schema, field);
		// The name is taken before what is inside: a schema may contain itself.
		if (!(name in this.components)) {
			this.components[name] = {};
			this.components[name] = this.#inline(schema);
		}
		return { $ref: `#/components/schemas/${name}` };
	}

	#inline(schema: JsonSchema, field?: string): object {
		const { rule, documented, description, ...words } = schema;
		const written: Record<string, unknown> = { ...words, ...documented };
		if (schema.enum) Object.assign(written, enumOf(schema.enum));
		if (schema.properties)
			written.properties = Object.fromEntries(
				Object.entries(schema.properties).map(([key, value]) => [
					key,
					this.write(value, key),
				]),
			);
		if (schema.items) written.items = this.write(schema.items);
		for (const word of ["additionalProperties", "propertyNames"]) {
			const inner = schema[word];
			if (typeof inner === "object" && inner !== null)
				written[word] = this.write(inner);
		}
		if (schema.anyOf)
			written.anyOf = schema.anyOf.map((option) => this.write(option));
		const sentences = [
			description ?? (field === undefined ? undefined : fieldWords[field]),
			rule === undefined ||
			/^must be (an object|a list|true or false)$/.test(rule)
				? undefined
				: `${capitalised(rule)}.`,
		].filter((sentence) => sentence !== undefined);
		if (sentences.length > 0) written.description = sentences.join(" ");
		return written;
	}
}

/** A flag of a query is text to the server, since all of a query is. */
function enumOf(values: readonly unknown[]): object {
	if (values.length === 2 && values[0] === "true" && values[1] === "false")
		return { enum: undefined, type: "boolean" };
	return values.every((value) => typeof value === "string")
		? { type: "string" }
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
