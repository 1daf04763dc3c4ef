/** The password vectors of the protocol's documentation and of a real device SDK. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { passwordOf, readClientId } from "../server/device-link/sign-in.ts";

interface Vector {
	id: string;
	secret: string;
	timestamp: string;
	password: string;
	client_id: string;
	username: string;
}

const { vectors } = JSON.parse(
	readFileSync(
		join(import.meta.dirname, "vectors", "device-password.json"),
		"utf8",
	),
) as { vectors: Vector[] };

test("there are vectors", () => {
	assert.ok(vectors.length >= 3);
});

for (const vector of vectors) {
	test(`the password of vector ${vector.id} is computed as the device does`, () => {
		assert.equal(passwordOf(vector.secret, vector.timestamp), vector.password);
	});

	test(`the client id of vector ${vector.id} is understood`, () => {
		assert.deepEqual(readClientId(vector.client_id), {
			deviceId: vector.username,
			signature: "0",
			timestamp: vector.timestamp,
		});
	});
}
