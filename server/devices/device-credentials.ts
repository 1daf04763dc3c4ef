/** What a device proves itself with: a secret, or the fingerprint of a certificate. */
import type { Selectable } from "kysely";
import { randomHex } from "../database/ids.ts";
import type { Bit, DeviceRow } from "../database/tables.ts";
import type { Sealed } from "../secrets/sealed.ts";

export type AuthType = DeviceRow["auth_type"];
/** A device has two secrets, so that one can be changed while the other still works. */
export type SecretType = "PRIMARY" | "SECONDARY";

export interface NewCredentials {
	authType: AuthType | undefined;
	/** 8 to 32 characters; undefined: made here for a device that signs in by secret. */
	secret: string | undefined;
	/** 40 or 64 hex digits; undefined: that of the first certificate seen. */
	fingerprint: string | undefined;
	secureAccess: boolean | undefined;
	timeoutSeconds: number | undefined;
}

/** The stored form of a new device's credentials. */
export function credentialColumns(given: NewCredentials, sealed: Sealed) {
	const authType: AuthType = given.authType ?? "SECRET";
	const secret =
		given.secret ?? (authType === "SECRET" ? newSecret() : undefined);
	return {
		auth_type: authType,
		secret_sealed: secret === undefined ? null : sealed.seal(secret),
		secondary_secret_sealed: null,
		fingerprint: given.fingerprint ?? null,
		secondary_fingerprint: null,
		secure_access: ((given.secureAccess ?? true) ? 1 : 0) as Bit,
		timeout_seconds: given.timeoutSeconds ?? 0,
	};
}

export function newSecret(): string {
	return randomHex(16);
}

export interface Secrets {
	primary: string | undefined;
	secondary: string | undefined;
}

/** @throws when the secrets were sealed under another master key */
export function readSecrets(
	device: Pick<
		Selectable<DeviceRow>,
		"secret_sealed" | "secondary_secret_sealed"
	>,
	sealed: Sealed,
): Secrets {
	const open = (text: string | null) =>
		text === null ? undefined : sealed.open(text);
	return {
		primary: open(device.secret_sealed),
		secondary: open(device.secondary_secret_sealed),
	};
}
