/**
 * Who a device is: client id, user name, timed password, certificate.
 *
 * The client id is `{device_id}_{type}_{signature}_{timestamp}`, the user name the
 * device id, the password the HMAC of the device's secret under the timestamp's text.
 * The text is the key as it stands: one SDK counts the number up when a digest does not
 * suit it, so an hour of 24 is a correct one.
 */
import {
	createHmac,
	createSecretKey,
	type KeyObject,
	randomBytes,
	timingSafeEqual,
} from "node:crypto";
import type { Selectable } from "kysely";
import { compileOnce } from "../database/compile-once.ts";
import type { Clock, Db } from "../database/database.ts";
import type { DeviceRow } from "../database/tables.ts";
import type { Events } from "../events.ts";
import type { Sealed } from "../secrets/sealed.ts";
import { type AttemptLimits, SignInAttempts } from "./sign-in-attempts.ts";

/** The certificate a device proved to own in the TLS handshake. */
export interface DeviceCertificate {
	/** Lower-case hex without separators. */
	sha1: string;
	sha256: string;
	/** May be taken as a device's own when none is registered yet. */
	trusted: boolean;
}

export interface SignInAttempt {
	clientId: string;
	username: string | undefined;
	password: Buffer | undefined;
	certificate: DeviceCertificate | undefined;
	remoteAddress: string;
}

/**
 * identifier: the client id has a form this server does not know.
 * credentials: they are wrong. Some SDKs give up for good on this one.
 * not_authorized: they may be right, but this device may not connect, or not so.
 * unavailable: nobody can tell now; the device shall try again later.
 */
export type Refusal =
	| "identifier"
	| "credentials"
	| "not_authorized"
	| "unavailable";

export type SignInResult =
	| { ok: true; deviceId: string }
	| { ok: false; refused: Refusal };

/** Never rejects. */
export type SignIn = (attempt: SignInAttempt) => Promise<SignInResult>;

const CLIENT_ID_LIMIT = 256;
const HOUR_MS = 3_600_000;

type Signature = "0" | "1" | "2";

interface ClientId {
	deviceId: string;
	/** 0: SHA-256, any time; 1: SHA-256, time checked; 2: SM3, time checked. */
	signature: Signature;
	timestamp: string;
}

type Credentials = Pick<
	Selectable<DeviceRow>,
	| "device_id"
	| "gateway_id"
	| "auth_type"
	| "secret_sealed"
	| "secondary_secret_sealed"
	| "fingerprint"
	| "secondary_fingerprint"
	| "frozen"
>;

export function createSignIn({
	db,
	sealer,
	now,
	events,
	limits,
}: {
	db: Db;
	sealer: Sealed;
	now: Clock;
	events: Events;
	limits?: Partial<AttemptLimits>;
}): SignIn {
	const attempts = new SignInAttempts(limits);
	// Stands in for the secrets of an unknown device, so that finding out that it is
	// unknown takes as long as finding out that its password is wrong.
	const decoy = sealer.seal(randomBytes(16).toString("hex"));

	return async (attempt) => {
		const read = readClientId(attempt.clientId);
		if (typeof read === "string") return refused(read);
		const { deviceId, signature, timestamp } = read;
		if (attempt.username !== deviceId) return refused("not_authorized");
		if (signature !== "0" && !isTimely(timestamp, now()))
			return refused("credentials");
		if (!attempts.mayTry(deviceId, attempt.remoteAddress)) {
			// Not "credentials": they have not been looked at, and may be right.
			return refused("unavailable");
		}
		try {
			const [device] = await credentialsOf(db, deviceId);
			const proven =
				device?.auth_type === "CERTIFICATES"
					? await provesByCertificate(device, attempt.certificate)
					: provesBySecret(device, read, attempt.password);
			if (!device || !proven) {
				attempts.failed(deviceId, attempt.remoteAddress);
				return refused("credentials");
			}
			attempts.succeeded(deviceId, attempt.remoteAddress);
			// A child device speaks through its gateway.
			if (device.frozen === 1 || device.gateway_id !== null)
				return refused("not_authorized");
			return { ok: true, deviceId };
		} catch (error) {
			events.happened(
				"device_sign_in_errors",
				{},
				{ device_id: deviceId, err: error },
				"error",
			);
			return refused("unavailable");
		}
	};

	function provesBySecret(
		device: Credentials | undefined,
		{ signature, timestamp }: ClientId,
		password: Buffer | undefined,
	): boolean {
		// Always two, whichever exist: what a device has does not show in the time.
		const sealed = [
			device?.secret_sealed ?? null,
			device?.secondary_secret_sealed ?? null,
		];
		let proven = false;
		for (const secret of sealed) {
			const expected = passwordOf(
				sealer.open(secret ?? decoy),
				timestamp,
				signature,
			);
			if (equalText(password, expected) && secret !== null) proven = true;
		}
		return proven;
	}

	async function provesByCertificate(
		device: Credentials,
		certificate: DeviceCertificate | undefined,
	): Promise<boolean> {
		if (!certificate) return false;
		if (
			isFingerprint(device.fingerprint, certificate) ||
			isFingerprint(device.secondary_fingerprint, certificate)
		)
			return true;
		if (device.fingerprint !== null || !certificate.trusted) return false;
		if (device.frozen === 1 || device.gateway_id !== null) return true;
		// The first certificate becomes the device's own. Of two that come at once, one does.
		const taken = await db
			.updateTable("devices")
			.set({ fingerprint: certificate.sha256 })
			.where("device_id", "=", device.device_id)
			.where("auth_type", "=", "CERTIFICATES")
			.where("fingerprint", "is", null)
			.executeTakeFirst();
		if (taken.numUpdatedRows === 0n) {
			const [current] = await credentialsOf(db, device.device_id);
			return (
				current !== undefined && isFingerprint(current.fingerprint, certificate)
			);
		}
		events.happened(
			"device_certificates_taken",
			{},
			{ device_id: device.device_id, fingerprint: certificate.sha256 },
			"info",
		);
		return true;
	}
}

function refused(refusal: Refusal): SignInResult {
	return { ok: false, refused: refusal };
}

/** At thousands of connections a second building the query would be most of it. */
const credentialsOf = compileOnce((db, deviceId: string) =>
	db
		.selectFrom("devices")
		.select([
			"device_id",
			"gateway_id",
			"auth_type",
			"secret_sealed",
			"secondary_secret_sealed",
			"fingerprint",
			"secondary_fingerprint",
			"frozen",
		])
		.where("device_id", "=", deviceId),
);

/**
 * Takes a client id apart, from the right, since device ids hold underscores
 * themselves.
 *
 * @returns the refusal when it has another form: provisioning ids and ids by node are
 * not known here, bridges may not connect.
 */
export function readClientId(clientId: string): ClientId | Refusal {
	if (clientId.length > CLIENT_ID_LIMIT) return "identifier";
	const match = /^([A-Za-z0-9_-]+)_(\d)_(\d)_(\d{10})$/.exec(clientId);
	const [, deviceId, type, signature, timestamp] = match ?? [];
	if (!deviceId || !timestamp) return "identifier";
	if (type === "3") return "not_authorized";
	if (type !== "0") return "identifier";
	if (signature !== "0" && signature !== "1" && signature !== "2")
		return "identifier";
	return { deviceId, signature, timestamp };
}

/**
 * The password a device sends: lower-case hex of the HMAC, with the timestamp's text as
 * the key and the secret as the message.
 */
export function passwordOf(
	secret: string,
	timestamp: string,
	signature: Signature = "0",
): string {
	return createHmac(signature === "2" ? "sm3" : "sha256", keyOf(timestamp))
		.update(secret)
		.digest("hex");
}

// A fleet signs in with a handful of timestamps, and a key object makes the HMAC five
// times as fast.
const keys = new Map<string, KeyObject>();
const KEPT_KEYS = 256;

function keyOf(timestamp: string): KeyObject {
	let key = keys.get(timestamp);
	if (!key) {
		if (keys.size >= KEPT_KEYS) keys.clear();
		key = createSecretKey(timestamp, "utf8");
		keys.set(timestamp, key);
	}
	return key;
}

/**
 * Whether `YYYYMMDDHH`, read as a UTC day plus hours that may go beyond 23, names the
 * server's hour or one beside it: devices connect across a change of hour, and one SDK
 * counts the number up.
 */
export function isTimely(timestamp: string, now: Date): boolean {
	const [year, month, day, hour] = [
		timestamp.slice(0, 4),
		timestamp.slice(4, 6),
		timestamp.slice(6, 8),
		timestamp.slice(8),
	].map(Number) as [number, number, number, number];
	const midnight = new Date(0);
	midnight.setUTCFullYear(year, month - 1, day);
	if (midnight.getUTCMonth() !== month - 1 || midnight.getUTCDate() !== day)
		return false;
	const hours = midnight.getTime() / HOUR_MS + hour;
	return Math.abs(hours - Math.floor(now.getTime() / HOUR_MS)) <= 1;
}

function equalText(given: Buffer | undefined, expected: string): boolean {
	const wanted = Buffer.from(expected);
	// The length of a right password is no secret.
	return given?.length === wanted.length && timingSafeEqual(given, wanted);
}

function isFingerprint(
	registered: string | null,
	{ sha1, sha256 }: DeviceCertificate,
): boolean {
	if (registered === null) return false;
	const wanted = registered.toLowerCase();
	return (
		equalText(Buffer.from(sha1), wanted) ||
		equalText(Buffer.from(sha256), wanted)
	);
}
