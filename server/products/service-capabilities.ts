/**
 * What the schema cannot say about a product's model: names that must differ, and
 * the size of the whole. Upgrades do not read it; it is kept as given.
 */
import type { ServiceCapability } from "../../wire/products.ts";
import { type ApiError, invalidInput } from "../errors.ts";

const SIZE_LIMIT_BYTES = 500 * 1024;
const FIELD = "service_capabilities";

/**
 * The text to store.
 *
 * @throws 400 IOTDA.000006 naming the path of what does not fit
 */
export function serviceCapabilitiesText(
	services: readonly ServiceCapability[],
): string {
	const fault =
		repeated(services, FIELD, "service_id") ??
		first(services, (service, index) =>
			repeated(
				service.properties ?? [],
				`${FIELD}[${index}].properties`,
				"property_name",
			),
		) ??
		first(services, (service, index) =>
			repeated(
				service.commands ?? [],
				`${FIELD}[${index}].commands`,
				"command_name",
			),
		);
	if (fault) throw fault;
	const text = JSON.stringify(services);
	if (Buffer.byteLength(text) > SIZE_LIMIT_BYTES)
		throw invalidInput(FIELD, "must be at most 500 KB as JSON");
	return text;
}

function repeated<K extends string>(
	entries: readonly Record<K, string>[],
	path: string,
	key: K,
): ApiError | undefined {
	const seen = new Set<string>();
	for (const [index, entry] of entries.entries()) {
		if (seen.has(entry[key]))
			return invalidInput(`${path}[${index}].${key}`, "must not repeat");
		seen.add(entry[key]);
	}
	return undefined;
}

function first<T, R>(
	entries: readonly T[],
	look: (entry: T, index: number) => R | undefined,
): R | undefined {
	for (const [index, entry] of entries.entries()) {
		const found = look(entry, index);
		if (found !== undefined) return found;
	}
	return undefined;
}
