/** What a fleet needs on the server before it can connect: a product, and registered devices. */
import type { DeviceIdentity } from "../simulator/connection.ts";
import { ApiFailure, type Client } from "../wire/client.ts";
import type { ProductItem } from "../wire/products.ts";
import { CommandError, exitCodes } from "./errors.ts";

/** Calls in flight at once: enough to keep a server busy, few enough to leave it room. */
const PARALLEL_CALLS = 16;

export interface FoundProduct {
	appId: string;
	productId: string;
	name: string;
	moduleNames: string[];
}

/**
 * By id, else by name; with the names of its modules.
 *
 * @throws CommandError when there is none.
 */
export async function findProduct(
	client: Client,
	appId: string | undefined,
	idOrName: string,
): Promise<FoundProduct> {
	const inSpace = appId === undefined ? {} : { app_id: appId };
	let product: ProductItem | undefined;
	try {
		product = await client.getProduct(idOrName, inSpace);
	} catch (error) {
		// 400: it cannot be an id, but may be a name.
		if (!(error instanceof ApiFailure) || ![400, 404].includes(error.status))
			throw error;
		const named = await client
			.listProducts({ ...inSpace, product_name: idOrName, limit: 1 })
			.catch((failure) => {
				if (failure instanceof ApiFailure && failure.status === 400)
					return undefined;
				throw failure;
			});
		product = named?.products[0];
	}
	if (!product) {
		const { products } = await client.listProducts({ ...inSpace, limit: 50 });
		const known = products.map(
			({ product_id, name }) => `${name} (${product_id})`,
		);
		throw new CommandError(
			`There is no product "${idOrName}".`,
			known.length > 0
				? `There is ${known.join(", ")}.`
				: "Create one first: POST /v5/iot/{project_id}/products.",
			exitCodes.usage,
		);
	}
	// A product has at most ten modules: one page holds them.
	const { modules } = await client.listOtaModules({
		app_id: product.app_id,
		product_id: product.product_id,
		limit: 50,
	});
	return {
		appId: product.app_id,
		productId: product.product_id,
		name: product.name,
		moduleNames: modules.map(({ module_name }) => module_name).reverse(),
	};
}

export interface Registration {
	count: number;
	/** Node ids are `{prefix}-0001`, … */
	prefix: string;
	signal?: AbortSignal;
	onProgress?: (done: number) => void;
}

/** Registers the devices that are missing; returns what each signs in with, in order. */
export async function registerDevices(
	client: Client,
	product: Pick<FoundProduct, "appId" | "productId">,
	registration: Registration,
): Promise<DeviceIdentity[]> {
	const { count, prefix, signal, onProgress } = registration;
	const digits = Math.max(4, String(count).length);
	let done = 0;
	return inParallel(count, PARALLEL_CALLS, async (index) => {
		signal?.throwIfAborted();
		const nodeId = `${prefix}-${String(index + 1).padStart(digits, "0")}`;
		const deviceId = `${product.productId}_${nodeId}`;
		const device = await createOrGet(client, product, deviceId, nodeId);
		onProgress?.(++done);
		const secret = device.auth_info?.secret;
		if (!secret) {
			throw new CommandError(
				`The device ${deviceId} signs in without a secret.`,
				"Choose another --prefix for the simulated devices.",
				exitCodes.failed,
			);
		}
		return { deviceId, secret };
	});
}

async function createOrGet(
	client: Client,
	product: Pick<FoundProduct, "appId" | "productId">,
	deviceId: string,
	nodeId: string,
) {
	try {
		return await client.createDevice({
			app_id: product.appId,
			product_id: product.productId,
			device_id: deviceId,
			node_id: nodeId,
		});
	} catch (error) {
		if (error instanceof ApiFailure && error.code === "IOTDA.014031")
			return client.getDevice(deviceId);
		throw error;
	}
}

/** Results in order of the index; the first failure ends it. */
export async function inParallel<T>(
	count: number,
	limit: number,
	work: (index: number) => Promise<T>,
): Promise<T[]> {
	const results: T[] = [];
	let next = 0;
	const worker = async () => {
		while (next < count) {
			const index = next++;
			results[index] = await work(index);
		}
	};
	try {
		await Promise.all(
			Array.from({ length: Math.min(limit, count) }, () => worker()),
		);
	} catch (error) {
		next = count;
		throw error;
	}
	return results;
}
