import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { test } from "node:test";
import type { Client } from "../wire/client.ts";
import type { Product } from "../wire/products.ts";
import { forEachEngine } from "./support/engines.ts";
import {
	BUCKET,
	makeDevice,
	makeModule,
	makePackage,
	makeProduct,
	refused,
	succeeded,
	upload,
} from "./support/seed.ts";
import { startServer } from "./support/server.ts";

const UNKNOWN = "0123456789abcdef01234567";

forEachEngine((engine) => {
	test("a package is answered whole, with the sign taken from its file, and listed without the file", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		await makeModule(api, product, "MCU");
		const bytes = randomBytes(5000);
		const { obs_location } = await upload(api, "a/b/Firmware v1.tar.xz", bytes);
		const created = await api.createPackage({
			app_id: product.app_id,
			product_id: product.product_id,
			package_type: "modulePackage",
			module_name: "MCU",
			version: "V1.0_rc-2",
			support_source_versions: ["v0.9", "v0.8"],
			description: "first 固件\nrelease",
			custom_info: '{"reboot":true}',
			file_location: { obs_location },
		});
		const { package_id, create_time, ...rest } = created;
		assert.match(package_id, /^[0-9a-f]{24}$/);
		assert.match(create_time, /^\d{8}T\d{6}Z$/);
		assert.deepEqual(rest, {
			app_id: product.app_id,
			package_type: "modulePackage",
			product_id: product.product_id,
			product_name: product.name,
			module_name: "MCU",
			version: "V1.0_rc-2",
			support_source_versions: ["v0.9", "v0.8"],
			description: "first 固件\nrelease",
			custom_info: '{"reboot":true}',
			file_location: {
				obs_location: {
					...obs_location,
					sign_method: "SHA256",
					sign: createHash("sha256").update(bytes).digest("hex"),
				},
			},
		});
		assert.deepEqual(await api.getPackage(package_id), created);
		const { file_location: _, ...item } = created;
		assert.deepEqual(
			(await api.listPackages({ package_type: "modulePackage" })).packages,
			[item],
		);
	});

	test("a package with the least there is leaves out what it does not have", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const created = await makePackage(api, product, {
			description: "",
			custom_info: "",
		});
		assert.deepEqual(Object.keys(created).sort(), [
			"app_id",
			"create_time",
			"file_location",
			"package_id",
			"package_type",
			"product_id",
			"product_name",
			"support_source_versions",
			"version",
		]);
		assert.deepEqual(created.support_source_versions, []);
	});

	test("a sign must be that of the file, in digits of either case, and stays as given", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const bytes = randomBytes(100);
		const { obs_location } = await upload(api, "a.bin", bytes);
		const sign = createHash("sha256").update(bytes).digest("hex");
		const make = (sign: string) =>
			makePackage(api, product, {
				file_location: { obs_location: { ...obs_location, sign } },
			});
		await refused(make("0".repeat(64)), 400, "IOTDA.014963", "sign");
		const created = await make(sign.toUpperCase());
		assert.equal(created.file_location.obs_location.sign, sign.toUpperCase());
	});

	test("the file must be there, of an accepted kind and size", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const make = (object_key: string, bucket_name = BUCKET) =>
			makePackage(api, product, {
				file_location: {
					obs_location: { region_name: "any", bucket_name, object_key },
				},
			});
		await upload(api, "a.bin");
		await refused(make("b.bin"), 400, "IOTDA.014962", "object_key");
		await refused(make("a.bin", "elsewhere"), 400, "IOTDA.014962");
		await refused(make("A.bin"), 400, "IOTDA.014962");
		for (const key of ["a.txt", "a", "abin", "a.bin/", "a.bin.sig"])
			await refused(
				make(key),
				400,
				"IOTDA.000006",
				"file_location.obs_location.object_key must end in one of",
			);
		await upload(api, "B.BIN");
		await make("B.BIN");
	});

	test("a file larger than the limit is refused, however it came to be there", async () => {
		const env: Record<string, string> = {};
		await using server = await startServer(engine, { env });
		const { api } = server;
		const product = await makeProduct(api);
		const small = await upload(api, "small.bin", randomBytes(1000));
		const large = await upload(api, "large.bin", randomBytes(1001));
		env.OTARU_PACKAGE_SIZE_LIMIT = "1000";
		await server.restart();
		// The client finds out now that its kept connection is gone.
		await api.listResourceSpaces().catch(() => {});
		await makePackage(api, product, { file_location: small });
		await refused(
			makePackage(api, product, { version: "v2", file_location: large }),
			400,
			"IOTDA.000006",
			"file_location.obs_location.object_key must name a file of at most 1000 bytes",
		);
	});

	test("the module is named by module packages and by no other", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const other = await makeProduct(api);
		await makeModule(api, product, "MCU");
		const file_location = await upload(api);
		const make = (package_type: string, module_name?: string) =>
			makePackage(api, product, {
				package_type: package_type as "modulePackage",
				...(module_name !== undefined && { module_name }),
				file_location,
			});
		await refused(
			make("modulePackage"),
			400,
			"IOTDA.000006",
			"module_name is required",
		);
		for (const type of ["firmwarePackage", "softwarePackage"])
			await refused(
				make(type, "MCU"),
				400,
				"IOTDA.000006",
				"module_name is allowed only",
			);
		await refused(
			make("modulePackage", "mcu"),
			400,
			"IOTDA.014950",
			"module_name",
		);
		await refused(
			makePackage(api, other, {
				package_type: "modulePackage",
				module_name: "MCU",
				file_location,
			}),
			400,
			"IOTDA.014950",
		);
		await make("modulePackage", "MCU");
	});

	test("only an exact repeat is refused: same product, type, module, version and set of source versions", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const other = await makeProduct(api);
		await makeModule(api, product, "MCU");
		await makeModule(api, product, "Modem");
		const file_location = await upload(api);
		const make = (fields: Partial<Parameters<Client["createPackage"]>[0]>) =>
			makePackage(api, product, { file_location, ...fields });
		const module = (module_name: string) =>
			({ package_type: "modulePackage", module_name }) as const;

		await make({});
		await refused(make({}), 400, "IOTDA.014961", "already exists");
		await refused(
			make({ support_source_versions: [], file_location: await upload(api) }),
			400,
			"IOTDA.014961",
		);
		await make({ version: "V1.1" });
		await make({ package_type: "softwarePackage" });
		await make({ support_source_versions: ["a", "b"] });
		await refused(
			make({ support_source_versions: ["b", "a"] }),
			400,
			"IOTDA.014961",
		);
		await make({ support_source_versions: ["a"] });
		await make({ support_source_versions: ["a", "b", "c"] });
		await make(module("MCU"));
		await make(module("Modem"));
		await refused(make(module("MCU")), 400, "IOTDA.014961");
		await makePackage(api, other, { file_location });
	});

	test("of the same package created ten times at once one exists", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const file_location = await upload(api);
		assert.equal(
			await succeeded(
				Array.from({ length: 10 }, () =>
					makePackage(api, product, { file_location }),
				),
				400,
				"IOTDA.014961",
			),
			1,
		);
	});

	test("twenty source versions of 256 characters are taken, and compared as a set", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const file_location = await upload(api);
		const versions = Array.from({ length: 20 }, () =>
			randomBytes(128).toString("hex"),
		);
		const version = "v".repeat(256);
		const created = await makePackage(api, product, {
			version,
			support_source_versions: versions,
			file_location,
		});
		assert.deepEqual(created.support_source_versions, versions);
		await refused(
			makePackage(api, product, {
				version,
				support_source_versions: versions.toReversed(),
				file_location,
			}),
			400,
			"IOTDA.014961",
		);
	});

	test("the list is filtered by type, space, product and version", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const a = await makeProduct(api, { product_id: "a" });
		const b = await makeProduct(api, { product_id: "b" });
		const far = await makeProduct(api, {
			product_id: "a",
			app_id: space.app_id,
		});
		const file_location = await upload(api);
		const make = (product: Product, version: string) =>
			makePackage(api, product, { version, file_location });
		await make(a, "1");
		await make(a, "2");
		await make(b, "1");
		await make(far, "1");
		await makePackage(api, a, {
			version: "1",
			package_type: "softwarePackage",
			file_location,
		});
		const found = async (
			query: Partial<Parameters<Client["listPackages"]>[0]>,
		) => {
			const { packages, page } = await api.listPackages({
				package_type: "firmwarePackage",
				...query,
			});
			assert.equal(page.count, packages.length);
			return packages.map(
				(p) =>
					`${p.app_id === space.app_id ? "far " : ""}${p.product_id} ${p.version}`,
			);
		};
		assert.deepEqual(await found({}), ["far a 1", "b 1", "a 2", "a 1"]);
		assert.deepEqual(await found({ app_id: a.app_id }), ["b 1", "a 2", "a 1"]);
		assert.deepEqual(await found({ product_id: "a" }), [
			"far a 1",
			"a 2",
			"a 1",
		]);
		assert.deepEqual(await found({ version: "1" }), ["far a 1", "b 1", "a 1"]);
		assert.deepEqual(
			await found({ app_id: a.app_id, product_id: "a", version: "2" }),
			["a 2"],
		);
		assert.deepEqual(await found({ package_type: "softwarePackage" }), ["a 1"]);
		assert.deepEqual(await found({ package_type: "modulePackage" }), []);
		assert.deepEqual(await found({ product_id: "c" }), []);
	});

	test("a product that the space does not have is refused with 400", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const space = await api.createResourceSpace({ app_name: "other" });
		const product = await makeProduct(api);
		const file_location = await upload(api);
		for (const wrong of [{ product_id: UNKNOWN }, { app_id: space.app_id }])
			await refused(
				makePackage(api, product, { ...wrong, file_location }),
				400,
				"IOTDA.013900",
				"product_id",
			);
	});

	test("an unknown package is refused with 404, and so is one just deleted, whose file stays", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const file_location = await upload(api, "stays.bin");
		const created = await makePackage(api, product, { file_location });
		await api.deletePackage(created.package_id);
		for (const id of [UNKNOWN, created.package_id]) {
			await refused(api.getPackage(id), 404, "IOTDA.014960");
			await refused(api.deletePackage(id), 404, "IOTDA.014960");
		}
		assert.equal((await api.headObject(BUCKET, "stays.bin")).status, 200);
		await makePackage(api, product, { file_location });
	});

	test("a package stays while an unfinished task uses it", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const used = await makePackage(api, product);
		const unused = await makePackage(api, product, { version: "v2" });
		const device = await makeDevice(api, product);
		const task = await api.createTask({
			app_id: product.app_id,
			task_name: "rollout",
			task_type: "firmwareUpgrade",
			targets: [device.device_id],
			document: { package_ids: [used.package_id] },
		});
		await refused(
			api.deletePackage(used.package_id),
			403,
			"IOTDA.014964",
			"unfinished task",
		);
		await api.deletePackage(unused.package_id);
		await api.stopTask(task.task_id);
		for (let attempt = 0; ; attempt++) {
			const { batchtask } = await api.getTask(task.task_id);
			if (batchtask.status === "Stopped") break;
			assert.ok(attempt < 100, `still ${batchtask.status}`);
			await new Promise((resolve) => setTimeout(resolve, 50));
		}
		await api.deletePackage(used.package_id);
	});

	test("a package deleted while a task is made of it: one of the two gives way", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		const device = await makeDevice(api, product);
		const file_location = await upload(api);
		for (let round = 0; round < 10; round++) {
			const { package_id } = await makePackage(api, product, {
				version: `v${round}`,
				file_location,
			});
			const [made, removed] = await Promise.allSettled([
				api.createTask({
					app_id: product.app_id,
					task_name: "rollout",
					task_type: "firmwareUpgrade",
					targets: [device.device_id],
					document: { package_ids: [package_id] },
				}),
				api.deletePackage(package_id),
			]);
			assert.notEqual(made.status, removed.status);
			if (made.status === "rejected")
				await refused(Promise.reject(made.reason), 400, "IOTDA.014960");
			else {
				await refused(
					Promise.reject((removed as PromiseRejectedResult).reason),
					403,
					"IOTDA.014964",
				);
				await api.stopTask(made.value.task_id);
			}
		}
	});

	test("a file deleted or replaced while a package is made of it: one of the two gives way", async () => {
		await using server = await startServer(engine);
		const { api } = server;
		const product = await makeProduct(api);
		for (let round = 0; round < 10; round++) {
			const key = `race${round}.bin`;
			const replace = round % 2 === 0;
			const file_location = await upload(api, key);
			const [made, touched] = await Promise.allSettled([
				makePackage(api, product, { version: `v${round}`, file_location }),
				replace
					? api.putObject(BUCKET, key, randomBytes(64))
					: api.deleteObject(BUCKET, key),
			]);
			if (touched.status === "rejected")
				await refused(Promise.reject(touched.reason), 403, "IOTDA.014966");
			if (made.status === "rejected") {
				await refused(Promise.reject(made.reason), 400, "IOTDA.014962");
				assert.equal(touched.status, "fulfilled");
				continue;
			}
			const object = await api.getObject(BUCKET, key);
			const sha256 = createHash("sha256")
				.update(Buffer.from(await object.arrayBuffer()))
				.digest("hex");
			assert.equal(made.value.file_location.obs_location.sign, sha256);
		}
	});
});
