/** Makes small worlds for tests, and asks for refusals. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { ApiFailure, type Client } from "../../wire/client.ts";
import type { Device } from "../../wire/devices.ts";
import type { OtaModule } from "../../wire/ota-modules.ts";
import type { OtaPackage } from "../../wire/packages.ts";
import type { Product } from "../../wire/products.ts";

/** A name nobody else has, of letters, digits and `-`. */
export function unique(prefix: string): string {
	return `${prefix}-${randomBytes(5).toString("hex")}`;
}

/** Fails unless the call is refused with this status and code, and a message with these words. */
export async function refused(
	call: Promise<unknown>,
	status: number,
	code: string,
	words = "",
): Promise<void> {
	const outcome = await call.then(
		(answer) => answer ?? "an empty answer",
		(error: unknown) => error,
	);
	assert.ok(
		outcome instanceof ApiFailure,
		`expected ${status} ${code}, not ${JSON.stringify(outcome)} ${outcome}`,
	);
	assert.deepEqual(
		{ status: outcome.status, code: outcome.code },
		{ status, code },
		outcome.message,
	);
	assert.ok(
		outcome.message.includes(words),
		`"${outcome.message}" does not say "${words}"`,
	);
}

/** How many of the calls succeeded; the rest must be refused with this status and code. */
export async function succeeded(
	calls: Promise<unknown>[],
	status: number,
	code: string,
): Promise<number> {
	const outcomes = await Promise.allSettled(calls);
	let count = 0;
	for (const outcome of outcomes) {
		if (outcome.status === "fulfilled") count++;
		else await refused(Promise.reject(outcome.reason), status, code);
	}
	return count;
}

type ProductFields = Partial<Parameters<Client["createProduct"]>[0]>;

export function makeProduct(
	api: Client,
	fields: ProductFields = {},
): Promise<Product> {
	return api.createProduct({
		name: "Thermometer",
		device_type: "Thermometer",
		protocol_type: "MQTT",
		data_format: "json",
		service_capabilities: [],
		...fields,
	});
}

export function makeModule(
	api: Client,
	product: Product,
	moduleName: string,
): Promise<OtaModule> {
	return api.createOtaModule({
		app_id: product.app_id,
		product_id: product.product_id,
		module_name: moduleName,
	});
}

export const BUCKET = "firmware";

/** @returns where it lies, as a package names it */
export async function upload(
	api: Client,
	objectKey = `${unique("file")}.bin`,
	bytes: Uint8Array<ArrayBuffer> = randomBytes(1024),
) {
	await api.putObject(BUCKET, objectKey, bytes);
	return {
		obs_location: {
			region_name: "otaru",
			bucket_name: BUCKET,
			object_key: objectKey,
		},
	};
}

type PackageFields = Partial<Parameters<Client["createPackage"]>[0]>;

/** A firmware package with a file of its own, or what `fields` say. */
export async function makePackage(
	api: Client,
	product: Product,
	fields: PackageFields = {},
): Promise<OtaPackage> {
	return api.createPackage({
		app_id: product.app_id,
		product_id: product.product_id,
		package_type: "firmwarePackage",
		version: "v1.1",
		file_location: fields.file_location ?? (await upload(api)),
		...fields,
	});
}

type DeviceFields = Partial<Parameters<Client["createDevice"]>[0]>;

export function makeDevice(
	api: Client,
	product: Product,
	fields: DeviceFields = {},
): Promise<Device> {
	return api.createDevice({
		app_id: product.app_id,
		product_id: product.product_id,
		node_id: unique("node"),
		...fields,
	});
}
