/** Tags: bound to devices, shown with them, and what devices are found by. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Client } from "../wire/client.ts";
import { forEachEngine } from "./support/engines.ts";
import { makeDevice, makeProduct, refused, succeeded } from "./support/seed.ts";
import { startServer } from "./support/server.ts";

/** `"key=value"`, or `"key"` alone. */
function tagOf(text: string): { tag_key: string; tag_value?: string } {
	const [tag_key = "", tag_value] = text.split("=");
	return tag_value === undefined ? { tag_key } : { tag_key, tag_value };
}

const bind = (api: Client, deviceId: string, ...tags: string[]) =>
	api.bindTags({
		resource_type: "device",
		resource_id: deviceId,
		tags: tags.map(tagOf),
	});
const unbind = (api: Client, deviceId: string, ...keys: string[]) =>
	api.unbindTags({
		resource_type: "device",
		resource_id: deviceId,
		tag_keys: keys,
	});
const tagsOf = async (api: Client, deviceId: string) =>
	(await api.getDevice(deviceId)).tags.map(
		({ tag_key, tag_value }) => `${tag_key}=${tag_value}`,
	);

forEachEngine((engine) => {
	test("tags are bound, overwritten and unbound, and shown with their device", async () => {
		await using server = await startServer(engine);
		const { api, credentials } = server;
		const product = await makeProduct(api);
		const { device_id: a } = await makeDevice(api, product);
		const { device_id: b } = await makeDevice(api, product);
		assert.equal(await bind(api, a, "site=柏林", "b.c-d_1", "A=x"), undefined);
		assert.deepEqual(await tagsOf(api, a), ["A=x", "b.c-d_1=", "site=柏林"]);
		await bind(api, a, "site=Rome", "a=y");
		assert.deepEqual(await tagsOf(api, a), [
			"A=x",
			"a=y",
			"b.c-d_1=",
			"site=Rome",
		]);
		await bind(api, b, "site=Rome");
		assert.deepEqual(
			(await api.listDevices()).devices.map((device) => device.tags),
			[
				[{ tag_key: "site", tag_value: "Rome" }],
				[
					{ tag_key: "A", tag_value: "x" },
					{ tag_key: "a", tag_value: "y" },
					{ tag_key: "b.c-d_1", tag_value: "" },
					{ tag_key: "site", tag_value: "Rome" },
				],
			],
		);
		assert.deepEqual((await api.updateDevice(b, { device_name: "b" })).tags, [
			{ tag_key: "site", tag_value: "Rome" },
		]);

		const answer = await api.send(
			"POST",
			`/v5/iot/${credentials.project_id}/tags/unbind-resource`,
			{
				json: {
					resource_type: "device",
					resource_id: a,
					tag_keys: ["A", "site"],
				},
			},
		);
		assert.equal(answer.status, 200);
		assert.equal(answer.headers.get("content-type"), "application/json");
		assert.equal(await answer.text(), "");
		assert.deepEqual(await tagsOf(api, a), ["a=y", "b.c-d_1="]);
		assert.deepEqual(await tagsOf(api, b), ["site=Rome"]);
	});

	test("a device has ten tags at most, however many come at once", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const { device_id: id } = await makeDevice(api, product);
		const ten = Array.from({ length: 10 }, (_, index) => `k${index}=0`);
		await refused(
			bind(api, id, ...ten, "more"),
			403,
			"IOTDA.004900",
			"at most 10 are allowed",
		);
		assert.deepEqual(await tagsOf(api, id), []);
		await bind(api, id, ...ten);
		await refused(bind(api, id, "more"), 403, "IOTDA.004900");
		await refused(bind(api, id, "k0=1", "more"), 403, "IOTDA.004900");
		assert.deepEqual((await tagsOf(api, id))[0], "k0=0");
		await bind(api, id, "k0=1", "k9=1");
		assert.deepEqual((await tagsOf(api, id))[9], "k9=1");

		// More than once: a store that has just started has few connections yet.
		for (let round = 0; round < 3; round++) {
			const { device_id } = await makeDevice(api, product);
			await bind(api, device_id, ...ten.slice(3));
			assert.equal(
				await succeeded(
					Array.from({ length: 20 }, (_, index) =>
						bind(api, device_id, `n${index}`),
					),
					403,
					"IOTDA.004900",
				),
				3,
			);
			assert.equal((await tagsOf(api, device_id)).length, 10);
		}
	});

	test("unbinding takes all of the keys or none", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { device_id: id } = await makeDevice(api, await makeProduct(api));
		await bind(api, id, "a", "b");
		await refused(
			unbind(api, id, "a", "c", "d"),
			400,
			"IOTDA.004901",
			"tag_keys[1] names c",
		);
		await refused(unbind(api, id, "A"), 400, "IOTDA.004901");
		assert.deepEqual(await tagsOf(api, id), ["a=", "b="]);
		await unbind(api, id, "b", "a");
		assert.deepEqual(await tagsOf(api, id), []);
	});

	test("keys of the platform are reserved", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { device_id: id } = await makeDevice(api, await makeProduct(api));
		await refused(
			bind(api, id, "a", "iot_x=1"),
			400,
			"IOTDA.004002",
			"Invalid input. The tag_key iot_x cannot start with 'iot_'.",
		);
		await bind(api, id, "iot", "IOT_x", "x_iot_");
		assert.deepEqual(await tagsOf(api, id), ["IOT_x=", "iot=", "x_iot_="]);
		await refused(unbind(api, id, "iot_x"), 400, "IOTDA.004901");
	});

	test("devices are found by any of the tags asked for", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		const far = await makeProduct(api, { app_id: space.app_id });
		for (const device_id of ["1", "2", "3", "4"])
			await makeDevice(api, product, { device_id });
		await makeDevice(api, far, { device_id: "5" });
		await bind(api, "1", "site=Rome", "line=a");
		await bind(api, "2", "site=rome");
		await bind(api, "3", "line=b", "站点=罗马");
		await bind(api, "4", "site");
		await bind(api, "5", "site=Rome");
		const found = async (
			tags: string[],
			query?: Parameters<Client["queryTagged"]>[1],
		) => {
			const { resources, page } = await api.queryTagged(
				{ resource_type: "device", tags: tags.map(tagOf) },
				query,
			);
			if (!query) assert.equal(page.count, resources.length);
			return resources.map(({ resource_id }) => resource_id).join("");
		};
		assert.equal(await found(["site=Rome"]), "51");
		assert.equal(await found(["site"]), "5421");
		assert.equal(await found(["site="]), "4");
		assert.equal(await found(["line=a", "line=b"]), "31");
		assert.equal(await found(["站点=罗马", "site=Rome", "line"]), "531");
		assert.equal(await found(["Site"]), "");
		assert.equal(await found(["site=Ro"]), "");
		assert.equal(await found(["iot_x"]), "");
		await api.deleteDevice("5");
		assert.equal(await found(["site=Rome"]), "1");

		const first = await api.queryTagged(
			{ resource_type: "device", tags: [{ tag_key: "site" }] },
			{ limit: 2 },
		);
		assert.equal(first.page.count, 3);
		const { marker } = first.page;
		assert.ok(marker);
		assert.equal(await found(["site"], { limit: 2, marker }), "1");
		assert.equal(await found(["site"], { offset: 1, limit: 1 }), "2");
		assert.deepEqual(
			await api.queryTagged(
				{ resource_type: "device", tags: [{ tag_key: "site" }] },
				{ offset: 3 },
			),
			{ resources: [], page: { count: 3 } },
		);
	});

	test("devices are found the same way when a tag is everywhere", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { db } = server.server;
		const product = await makeProduct(api);
		const { device_id } = await makeDevice(api, product);
		const row = await db
			.selectFrom("devices")
			.selectAll()
			.where("device_id", "=", device_id)
			.executeTakeFirstOrThrow();
		const count = 7_000;
		const idOf = (index: number) => `device-${index}`;
		for (let made = 0; made < count; made += 500) {
			const some = Array.from({ length: 500 }, (_, index) => made + index);
			await db
				.insertInto("devices")
				.values(
					some.map((index) => ({
						...row,
						device_id: idOf(index),
						link_id: idOf(index),
						record_id: index.toString(16).padStart(24, "0"),
					})),
				)
				.execute();
			await db
				.insertInto("device_tags")
				.values(
					some.flatMap((index) => [
						{
							device_id: idOf(index),
							tag_key: "site",
							tag_value: index % 2 === 0 ? "Rome" : "Oslo",
						},
						...(index % 1_000 === 0
							? [{ device_id: idOf(index), tag_key: "rare", tag_value: "" }]
							: []),
					]),
				)
				.execute();
		}
		const query = (
			tags: string[],
			paging?: Parameters<Client["queryTagged"]>[1],
		) =>
			api.queryTagged(
				{ resource_type: "device", tags: tags.map(tagOf) },
				paging,
			);
		const rome = await query(["site=Rome"], { limit: 3 });
		assert.equal(rome.page.count, 3_500);
		assert.deepEqual(
			rome.resources.map(({ resource_id }) => resource_id),
			[idOf(6_998), idOf(6_996), idOf(6_994)],
		);
		const both = await query(["rare", "site=Oslo"], { limit: 50 });
		assert.equal(both.page.count, 3_507);
		const { marker } = both.page;
		assert.ok(marker);
		const next = await query(["site=Oslo", "rare"], { limit: 1, marker });
		const last = Number(both.resources.at(-1)?.resource_id.slice(7));
		assert.equal(next.resources[0]?.resource_id, idOf(last - 2));
		assert.equal((await query(["rare"])).page.count, 7);
	});

	test("what does not fit is refused by field and rule", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const { device_id } = await makeDevice(api, await makeProduct(api));
		await bind(api, device_id, "there=1");
		const device = { resource_type: "device", resource_id: device_id };
		const resources: [object, string][] = [
			[{}, "resource_type is required"],
			[
				{ ...device, resource_type: "Device" },
				"resource_type must be one of device",
			],
			[
				{ ...device, resource_type: null },
				"resource_type must be one of device",
			],
			[{ ...device, resource_id: "" }, "resource_id must be 1 to 128"],
			[{ ...device, resource_id: "a b" }, "resource_id must be 1 to 128"],
			[{ ...device, resource_id: 7 }, "resource_id must be a string"],
			[{ resource_type: "device" }, "resource_id is required"],
		];
		const many = Array.from({ length: 51 }, (_, index) => `k${index}`);
		const tags: [unknown, string][] = [
			[undefined, "tags is required"],
			[null, "tags must be a list"],
			[{}, "tags must be a list"],
			[[], "tags must be a list of 1 to 50"],
			[many.map(tagOf), "tags must be a list of 1 to 50"],
			[["a"], "tags[0] must be an object"],
			[[{}], "tags[0].tag_key is required"],
			[[{ tag_key: "" }], "tags[0].tag_key must be 1 to 64"],
			[
				[{ tag_key: "a" }, { tag_key: "a b" }],
				"tags[1].tag_key must be 1 to 64",
			],
			[[{ tag_key: "中".repeat(65) }], "tags[0].tag_key must be 1 to 64"],
			[[{ tag_key: 7 }], "tags[0].tag_key must be a string"],
			[
				[{ tag_key: "a", tag_value: "b'" }],
				"tags[0].tag_value must be 0 to 128",
			],
			[
				[{ tag_key: "a", tag_value: "a".repeat(129) }],
				"tags[0].tag_value must be 0 to 128",
			],
			[
				[{ tag_key: "a", tag_value: null }],
				"tags[0].tag_value must be a string",
			],
		];
		const keys: [unknown, string][] = [
			[undefined, "tag_keys is required"],
			[[], "tag_keys must be a list of 1 to 50"],
			[many, "tag_keys must be a list of 1 to 50"],
			["a", "tag_keys must be a list"],
			[[7], "tag_keys[0] must be a string"],
			[["a/b"], "tag_keys[0] must be 1 to 64"],
			[["there", "there"], "tag_keys[1] must not occur twice"],
		];
		const good = { tags: [{ tag_key: "a" }], tag_keys: ["there"] };
		for (const [body, words] of resources) {
			await refused(
				api.bindTags({ ...good, ...body } as never),
				400,
				"IOTDA.000006",
				words,
			);
			await refused(
				api.unbindTags({ ...good, ...body } as never),
				400,
				"IOTDA.000006",
				words,
			);
		}
		for (const [value, words] of tags) {
			const body = { ...device, tags: value } as never;
			await refused(api.bindTags(body), 400, "IOTDA.000006", words);
			await refused(api.queryTagged(body), 400, "IOTDA.000006", words);
		}
		await refused(
			bind(api, device_id, "a=1", "b", "a=2"),
			400,
			"IOTDA.000006",
			"tags[2].tag_key must not occur twice",
		);
		for (const [value, words] of keys)
			await refused(
				api.unbindTags({ ...device, tag_keys: value } as never),
				400,
				"IOTDA.000006",
				words,
			);
		for (const type of ["x", undefined])
			await refused(
				api.queryTagged({ ...good, resource_type: type } as never),
				400,
				"IOTDA.000006",
				"resource_type",
			);
		for (const [query, code] of [
			[{ limit: "0" }, "IOTDA.000017"],
			[{ marker: "1" }, "IOTDA.000018"],
			[{ offset: "-1" }, "IOTDA.000006"],
		] as const)
			await refused(
				api.queryTagged(
					{ resource_type: "device", tags: [{ tag_key: "a" }] },
					query as never,
				),
				400,
				code,
			);
		for (const call of [bind(api, "nobody", "a"), unbind(api, "nobody", "a")])
			await refused(call, 400, "IOTDA.014000", "resource_id names no device");
		assert.deepEqual(await tagsOf(api, device_id), ["there=1"]);
		// What just fits is taken.
		await bind(api, device_id, `${"中".repeat(64)}=${"a".repeat(128)}`);
	});
});
