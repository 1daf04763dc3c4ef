import assert from "node:assert/strict";
import { test } from "node:test";
import type { Client } from "../wire/client.ts";
import type { PageInfo } from "../wire/envelope.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	upload,
} from "./support/seed.ts";
import { startServer } from "./support/server.ts";

interface Paging {
	limit?: number | string;
	marker?: string;
	offset?: number | string;
}

/** Every list with pages; each makes its own records and tells them by one text. */
const lists: Record<
	string,
	{
		/** Makes `count` records one after the other. */
		fill: (api: Client, appId: string, count: number) => Promise<string[]>;
		read: (
			api: Client,
			appId: string,
			paging: Paging,
		) => Promise<{ names: string[]; page: PageInfo }>;
	}
> = {
	products: {
		async fill(api, _appId, count) {
			const names: string[] = [];
			for (let index = 0; index < count; index++)
				names.push((await makeProduct(api)).product_id);
			return names;
		},
		async read(api, _appId, paging) {
			const { products, page } = await api.listProducts(paging as never);
			return { names: products.map((product) => product.product_id), page };
		},
	},
	modules: {
		async fill(api, appId, count) {
			const names: string[] = [];
			for (let index = 0; index < count; index++) {
				const product = await makeProduct(api, { app_id: appId });
				names.push((await makeModule(api, product, "MCU")).module_id);
			}
			return names;
		},
		async read(api, appId, paging) {
			const { modules, page } = await api.listOtaModules({
				app_id: appId,
				...paging,
			} as never);
			return { names: modules.map((module) => module.module_id), page };
		},
	},
	packages: {
		async fill(api, appId, count) {
			const product = await makeProduct(api, { app_id: appId });
			const file_location = await upload(api);
			const names: string[] = [];
			for (let index = 0; index < count; index++) {
				const made = await makePackage(api, product, {
					version: `v${index}`,
					file_location,
				});
				names.push(made.package_id);
			}
			return names;
		},
		async read(api, _appId, paging) {
			const { packages, page } = await api.listPackages({
				package_type: "firmwarePackage",
				...paging,
			} as never);
			return { names: packages.map((row) => row.package_id), page };
		},
	},
	devices: {
		async fill(api, appId, count) {
			const product = await makeProduct(api, { app_id: appId });
			const names: string[] = [];
			for (let index = 0; index < count; index++)
				names.push((await makeDevice(api, product)).device_id);
			return names;
		},
		async read(api, _appId, paging) {
			const { devices, page } = await api.listDevices(paging as never);
			return { names: devices.map((device) => device.device_id), page };
		},
	},
};

forEachEngine((engine) => {
	for (const [name, list] of Object.entries(lists)) {
		test(`${name}: pages follow each other by marker and by offset, newest first, and count all`, async () => {
			await using server = await startServer(engine);
			const { api, credentials } = server;
			const appId = credentials.app_id;
			const read = (paging: Paging = {}) => list.read(api, appId, paging);

			assert.deepEqual(await read(), { names: [], page: { count: 0 } });
			const newestFirst = (await list.fill(api, appId, 23)).toReversed();

			const first = await read();
			assert.deepEqual(first.names, newestFirst.slice(0, 10));
			assert.equal(first.page.count, 23);
			assert.match(first.page.marker ?? "", /^[0-9a-f]{24}$/);
			assert.deepEqual(
				await read({ limit: 10, marker: "f".repeat(24), offset: 0 }),
				first,
				"these are the defaults",
			);

			const byMarker: string[] = [];
			for (let marker: string | undefined; ; ) {
				const { names, page } = await read({
					limit: 7,
					...(marker !== undefined && { marker }),
				});
				assert.equal(page.count, 23, "the count does not depend on the page");
				if (names.length === 0) {
					assert.equal("marker" in page, false);
					break;
				}
				byMarker.push(...names);
				marker = page.marker;
			}
			assert.deepEqual(byMarker, newestFirst);

			const byOffset: string[] = [];
			for (let offset = 0; ; offset += 6) {
				const { names } = await read({ limit: 6, offset });
				if (names.length === 0) break;
				byOffset.push(...names);
			}
			assert.deepEqual(byOffset, newestFirst);

			const { marker } = first.page;
			assert.ok(marker);
			assert.deepEqual(
				(await read({ marker, offset: 3, limit: 2 })).names,
				newestFirst.slice(13, 15),
				"the offset counts from the marker",
			);
			assert.deepEqual(
				(await read({ marker: marker.toUpperCase() })).names,
				newestFirst.slice(10, 20),
			);

			const [newest = ""] = await list.fill(api, appId, 1);
			assert.deepEqual(
				(await read({ marker })).names,
				newestFirst.slice(10, 20),
				"what is new comes before the marker",
			);
			assert.deepEqual((await read({ limit: 1 })).names, [newest]);
			assert.equal((await read({ limit: 50 })).names.length, 24);
			assert.deepEqual((await read({ offset: 500 })).names, []);
			assert.deepEqual((await read({ marker: "0".repeat(24) })).names, []);
		});

		test(`${name}: a limit, marker or offset out of range is refused by its own code`, async () => {
			await using server = await startServer(engine);
			const { api, credentials } = server;
			const read = (paging: Paging) =>
				list.read(api, credentials.app_id, paging);
			for (const limit of [
				"0",
				"51",
				"-1",
				"1.5",
				"ten",
				"",
				"1e1",
				" 1",
				"9".repeat(40),
			])
				await refused(read({ limit }), 400, "IOTDA.000017", "'limit'");
			for (const marker of [
				"",
				"f",
				"f".repeat(23),
				"f".repeat(25),
				"g".repeat(24),
				"'".repeat(24),
			])
				await refused(read({ marker }), 400, "IOTDA.000018", "'marker'");
			for (const offset of ["-1", "501", "1.5", "x", "", "9".repeat(40)])
				await refused(read({ offset }), 400, "IOTDA.000006", "offset");
		});
	}
});
