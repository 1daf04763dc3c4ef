import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { sql } from "kysely";
import type { Db } from "../server/database/database.ts";
import { openPresence, type Presence } from "../server/device-link/presence.ts";
import { Events } from "../server/events.ts";
import { HandClock } from "./support/clock.ts";
import { forEachEngine } from "./support/engines.ts";
import { makeDevice, makeProduct, unique } from "./support/seed.ts";
import { startServer, type TestServer } from "./support/server.ts";

forEachEngine((engine) => {
	describe("who is connected, and where", () => {
		let server: TestServer;
		let db: Db;
		let devices: string[];
		const clock = new HandClock();

		before(async () => {
			server = await startServer(engine);
			db = server.server.db;
			const product = await makeProduct(server.api);
			devices = await Promise.all(
				Array.from({ length: 40 }, async () => {
					const { device_id } = await makeDevice(server.api, product);
					return device_id ?? "";
				}),
			);
		});
		after(() => server[Symbol.asyncDispose]());

		/** A device no other test speaks of. */
		const device = () => devices.pop() ?? assert.fail("too few devices");
		const open = (
			nodeId: string,
			onReplaced: (deviceId: string, connectionId: string) => void = () => {},
		): Promise<Presence> =>
			openPresence({
				db,
				nodeId,
				now: clock.now,
				events: new Events(),
				onReplaced,
			});
		const rowOf = (deviceId: string) =>
			db
				.selectFrom("presence")
				.select(["node_id", "connection_id", "connected_at"])
				.where("device_id", "=", deviceId)
				.executeTakeFirst();
		const timesOf = async (deviceId: string) => ({
			...(await db
				.selectFrom("devices")
				.select(["active_at", "connection_status_at"])
				.where("device_id", "=", deviceId)
				.executeTakeFirstOrThrow()),
		});
		const nodeIds = async () =>
			(await db.selectFrom("nodes").select("node_id").execute()).map(
				({ node_id }) => node_id,
			);

		test("a device is on the list while it is connected, and its times say since when", async () => {
			await using presence = await open(unique("node"));
			const id = device();
			assert.deepEqual(await timesOf(id), {
				active_at: null,
				connection_status_at: null,
			});
			const came = clock.now().toISOString();
			await presence.online(id, "c1");
			assert.equal((await rowOf(id))?.connection_id, "c1");
			assert.equal((await rowOf(id))?.connected_at, came);
			assert.deepEqual(await timesOf(id), {
				active_at: came,
				connection_status_at: came,
			});
			clock.pass({ minutes: 1 });
			const left = clock.now().toISOString();
			await presence.offline(id, "c1");
			assert.equal(await rowOf(id), undefined);
			assert.deepEqual(await timesOf(id), {
				active_at: came,
				connection_status_at: left,
			});
			clock.pass({ minutes: 1 });
			await presence.online(id, "c2");
			assert.equal((await timesOf(id)).active_at, came);
		});

		test("the late end of a replaced connection changes nothing", async () => {
			await using presence = await open(unique("node"));
			const id = device();
			await presence.online(id, "c1");
			await presence.online(id, "c2");
			const before = await timesOf(id);
			clock.pass({ minutes: 1 });
			await presence.offline(id, "c1");
			assert.equal((await rowOf(id))?.connection_id, "c2");
			assert.deepEqual(await timesOf(id), before);
		});

		test("the end of a connection here does not touch a newer one on another node", async () => {
			await using here = await open(unique("node"));
			const otherId = unique("node");
			await using other = await open(otherId);
			const id = device();
			await here.online(id, "c1");
			await other.online(id, "c2");
			await here.offline(id, "c1");
			assert.deepEqual(
				[(await rowOf(id))?.node_id, (await rowOf(id))?.connection_id],
				[otherId, "c2"],
			);
		});

		test("a node learns which connection of another node its own has replaced", async () => {
			const replaced: string[] = [];
			const note = (deviceId: string, connectionId: string) =>
				replaced.push(`${deviceId} ${connectionId}`);
			await using here = await open(unique("node"), note);
			await using other = await open(unique("node"), note);
			const [moving, staying] = [device(), device()];
			await here.online(moving, "c1");
			await here.online(staying, "s1");
			await here.online(staying, "s2");
			await other.online(moving, "c2");
			await here.online(moving, "c3");
			await here.offline(moving, "c3");
			await other.online(moving, "c4");
			assert.deepEqual(replaced, [`${moving} c1`, `${moving} c2`]);
		});

		test("what happens within one turn ends as it ended, in whatever order it was said", async () => {
			await using presence = await open(unique("node"));
			const [replaced, gone, back, twice] = [
				device(),
				device(),
				device(),
				device(),
			];
			await presence.online(back, "b0");
			void presence.online(replaced, "r1");
			void presence.online(replaced, "r2");
			void presence.offline(replaced, "r1");
			void presence.online(gone, "g1");
			void presence.offline(gone, "g1");
			void presence.offline(back, "b0");
			void presence.online(back, "b1");
			void presence.online(twice, "t1");
			void presence.offline(twice, "t1");
			void presence.online(twice, "t2");
			void presence.offline(twice, "t2");
			await presence.flush();
			assert.equal((await rowOf(replaced))?.connection_id, "r2");
			assert.equal(await rowOf(gone), undefined);
			assert.notEqual((await timesOf(gone)).active_at, null);
			assert.equal((await rowOf(back))?.connection_id, "b1");
			assert.equal(await rowOf(twice), undefined);
		});

		test("a device that is not registered any more does not keep the others off the list", async () => {
			await using presence = await open(unique("node"));
			const id = device();
			void presence.online(unique("never-registered"), "x1");
			void presence.online(id, "c1");
			void presence.offline(unique("never-registered"), "x2");
			await presence.flush();
			assert.equal((await rowOf(id))?.connection_id, "c1");
		});

		test("thousands that come at once and go at once are all written", async () => {
			await using presence = await open(unique("node"));
			const product = await makeProduct(server.api);
			const template = await db
				.selectFrom("devices")
				.selectAll()
				.where(
					"device_id",
					"=",
					(await makeDevice(server.api, product)).device_id ?? "",
				)
				.executeTakeFirstOrThrow();
			const ids = Array.from({ length: 1_300 }, (_, index) =>
				unique(`many${index}`),
			);
			for (let at = 0; at < ids.length; at += 100)
				await db
					.insertInto("devices")
					.values(
						ids
							.slice(at, at + 100)
							.map((id) => ({ ...template, device_id: id, record_id: id })),
					)
					.execute();
			const count = async () => {
				const { listed } = await db
					.selectFrom("presence")
					.select((row) => row.fn.countAll<number>().as("listed"))
					.where("connection_id", "like", "many%")
					.executeTakeFirstOrThrow();
				return Number(listed);
			};
			for (const id of ids) void presence.online(id, `many-${id}`);
			await presence.flush();
			assert.equal(await count(), 1_300);
			for (const id of ids) void presence.offline(id, `many-${id}`);
			await presence.flush();
			assert.equal(await count(), 0);
		});

		test("a store that fails for a while is told afterwards", async () => {
			await using presence = await open(unique("node"));
			const [first, second] = [device(), device()];
			await sql`alter table presence rename to presence_away`.execute(db);
			void presence.online(first, "c1");
			await pause(100);
			void presence.online(second, "c2");
			await sql`alter table presence_away rename to presence`.execute(db);
			await presence.flush();
			assert.equal((await rowOf(first))?.connection_id, "c1");
			assert.equal((await rowOf(second))?.connection_id, "c2");
		});

		test("what an earlier run of this node left is cleared at its start, and nobody else's", async () => {
			const nodeId = unique("node");
			const [left, others] = [device(), device()];
			await using other = await open(unique("node"));
			await other.online(others, "o1");
			const crashed = await open(nodeId);
			await crashed.online(left, "c1");
			clock.pass({ minutes: 1 });
			await using again = await open(nodeId);
			assert.equal(await rowOf(left), undefined);
			assert.equal(
				(await timesOf(left)).connection_status_at,
				clock.now().toISOString(),
			);
			assert.equal((await rowOf(others))?.connection_id, "o1");
			assert.ok((await nodeIds()).includes(nodeId));
			await again.online(left, "c2");
			// Nothing of the crashed run's end reaches the new one.
			await crashed.offline(left, "c1");
			assert.equal((await rowOf(left))?.connection_id, "c2");
			await crashed.close();
		});

		test("a node that closes takes itself and its devices off the list", async () => {
			const nodeId = unique("node");
			const presence = await open(nodeId);
			const [written, waiting] = [device(), device()];
			await presence.online(written, "c1");
			void presence.online(waiting, "c2");
			await presence.close();
			assert.equal(await rowOf(written), undefined);
			assert.equal(await rowOf(waiting), undefined);
			assert.notEqual((await timesOf(waiting)).active_at, null);
			assert.equal((await nodeIds()).includes(nodeId), false);
			await presence.online(written, "c3");
			assert.equal(await rowOf(written), undefined);
		});

		test("another node takes a silent node's devices off the list, and it enters them again when it wakes", async () => {
			const [livingId, silentId] = [unique("node"), unique("node")];
			await using living = await open(livingId);
			await using silent = await open(silentId);
			const [mine, theirs, moved] = [device(), device(), device()];
			await living.online(mine, "m1");
			await silent.online(theirs, "t1");
			await silent.online(moved, "t2");
			clock.pass({ seconds: 50 });
			await living.beat();
			assert.equal((await rowOf(theirs))?.connection_id, "t1");
			clock.pass({ seconds: 11 });
			await living.beat();
			assert.equal(await rowOf(theirs), undefined);
			assert.equal(
				(await timesOf(theirs)).connection_status_at,
				clock.now().toISOString(),
			);
			assert.equal((await nodeIds()).includes(silentId), false);
			assert.equal((await rowOf(mine))?.connection_id, "m1");

			await living.online(moved, "m2");
			await silent.beat();
			await silent.flush();
			assert.equal((await rowOf(theirs))?.connection_id, "t1");
			assert.equal((await rowOf(moved))?.connection_id, "m2");
			assert.ok((await nodeIds()).includes(silentId));
			await living.beat();
			assert.equal((await rowOf(theirs))?.connection_id, "t1");
		});
	});
});
