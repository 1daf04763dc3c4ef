/**
 * The server's own certificate authority, and the certificate of the device listeners
 * that it issues.
 *
 * ECDSA on P-256: the official C SDK asks OpenSSL for the cipher list `TLSv1.2`, which
 * holds the ECDHE-ECDSA suites, and the curve is in the default configuration of
 * mbedTLS, as it is in Go, Java, Python and .NET. A handshake costs the server a
 * fifteenth of what it costs with RSA-2048, which counts when a fleet reconnects at
 * once, and small devices get a chain of half the size. Who has devices that know RSA
 * alone sets a certificate of his own.
 */
import {
	createPrivateKey,
	createPublicKey,
	generateKeyPairSync,
	type webcrypto,
	X509Certificate,
} from "node:crypto";
import {
	existsSync,
	linkSync,
	mkdirSync,
	readFileSync,
	renameSync,
	rmSync,
	writeFileSync,
} from "node:fs";
import { isIP } from "node:net";
import { hostname, networkInterfaces } from "node:os";
import { join } from "node:path";
import { type Config, ConfigError } from "./config.ts";
import type { Clock } from "./database/database.ts";
import { randomHex } from "./database/ids.ts";

export interface DeviceCertificate {
	/** PEM. */
	cert: string;
	/** PEM. */
	key: string;
	/** What devices have to trust; undefined for a certificate that the operator set. */
	caFile: string | undefined;
	/** Whether this call issued it. */
	issued: boolean;
}

const DAY_MS = 24 * 60 * 60 * 1000;
const CA_LIFE_MS = 20 * 365 * DAY_MS;
const LIFE_MS = 825 * DAY_MS;
const RENEW_BEFORE_MS = 30 * DAY_MS;
/** Long past: the clock of a device that just woke may still show the day it was built. */
const NOT_BEFORE = new Date("2020-01-01T00:00:00Z");
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };

/**
 * The certificate of the device listeners: the one the operator set, else the one in
 * `tls` of the data directory, issued anew when the machine's names have changed or it
 * ends within 30 days. May be called again at any time.
 *
 * @throws ConfigError when files are missing or do not belong together.
 */
export async function openDeviceCertificate(
	config: Pick<Config, "dataDir" | "devices">,
	now: Clock,
): Promise<DeviceCertificate> {
	const { tls } = config.devices;
	if (tls) {
		return {
			cert: readSetting("OTARU_DEVICE_TLS_CERT", tls.certFile),
			key: readSetting("OTARU_DEVICE_TLS_KEY", tls.keyFile),
			caFile: undefined,
			issued: false,
		};
	}
	const directory = join(config.dataDir, "tls");
	mkdirSync(directory, { recursive: true, mode: 0o700 });
	const authority = await openAuthority(directory, now());
	const key = keepOrMake(join(directory, "server.key"), newKey);
	const certFile = join(directory, "server.pem");
	const names = serverNames(config.devices.publicHost);
	if (existsSync(certFile)) {
		const cert = readFileSync(certFile, "utf8");
		if (isGood(cert, key, authority.cert, names, now()))
			return { cert, key, caFile: authority.certFile, issued: false };
	}
	const cert = await issue(authority, key, names, now());
	const draft = `${certFile}.${process.pid}.new`;
	writeFileSync(draft, cert, { mode: 0o644, flush: true });
	renameSync(draft, certFile);
	return { cert, key, caFile: authority.certFile, issued: true };
}

interface Authority {
	certFile: string;
	/** PEM, both. */
	cert: string;
	key: string;
}

async function openAuthority(directory: string, now: Date): Promise<Authority> {
	const certFile = join(directory, "ca.pem");
	const keyFile = join(directory, "ca.key");
	// Another authority in its place would lock out every device that trusts this one.
	if (existsSync(certFile) && !existsSync(keyFile))
		throw new ConfigError(
			`${keyFile} is missing, and with it the authority that devices trust by ${certFile}: restore it, or remove both and give the devices the new ca.pem.`,
		);
	const key = keepOrMake(keyFile, newKey);
	if (!existsSync(certFile)) {
		const cert = await selfSign(key, now);
		keepOrMake(certFile, () => cert, 0o644);
	}
	const cert = readFileSync(certFile, "utf8");
	if (!keyFits(cert, key))
		throw new ConfigError(
			`${keyFile} does not belong to ${certFile}: restore the right one.`,
		);
	return { certFile, cert, key };
}

/** DNS names and addresses that devices may reach this machine by, sorted. */
export function serverNames(publicHost: string): string[] {
	const names = new Set([
		"localhost",
		"127.0.0.1",
		"::1",
		hostname().toLowerCase(),
		publicHost.toLowerCase().replace(/^\[|\]$/g, ""),
	]);
	for (const addresses of Object.values(networkInterfaces()))
		for (const { family, address } of addresses ?? [])
			if (family === "IPv4") names.add(address);
	return [...names].filter((name) => name !== "").sort();
}

function isGood(
	cert: string,
	key: string,
	caCert: string,
	names: readonly string[],
	now: Date,
): boolean {
	try {
		const certificate = new X509Certificate(cert);
		const ca = new X509Certificate(caCert);
		const certified = (certificate.subjectAltName ?? "")
			.split(", ")
			.filter(Boolean).length;
		return (
			keyFits(cert, key) &&
			certificate.verify(ca.publicKey) &&
			certificate.validToDate.getTime() - now.getTime() > RENEW_BEFORE_MS &&
			certified === names.length &&
			names.every((name) =>
				isIP(name)
					? certificate.checkIP(name) !== undefined
					: certificate.checkHost(name) !== undefined,
			)
		);
	} catch {
		// What cannot be read is replaced.
		return false;
	}
}

function keyFits(cert: string, key: string): boolean {
	try {
		return new X509Certificate(cert).checkPrivateKey(createPrivateKey(key));
	} catch {
		return false;
	}
}

function newKey(): string {
	return generateKeyPairSync("ec", {
		namedCurve: "P-256",
		privateKeyEncoding: { type: "pkcs8", format: "pem" },
		publicKeyEncoding: { type: "spki", format: "pem" },
	}).privateKey;
}

/** Reads the file, or makes it whole; of two processes that make it at once one wins. */
function keepOrMake(file: string, make: () => string, mode = 0o600): string {
	if (existsSync(file)) return readFileSync(file, "utf8");
	const draft = `${file}.${process.pid}.${randomHex(4)}.new`;
	writeFileSync(draft, make(), { mode, flush: true });
	try {
		linkSync(draft, file);
	} catch (error) {
		if (!existsSync(file)) throw error;
	} finally {
		rmSync(draft, { force: true });
	}
	return readFileSync(file, "utf8");
}

// Loaded only where something is issued: most starts do without.
async function loadX509() {
	await import("reflect-metadata");
	return import("@peculiar/x509");
}

async function selfSign(key: string, now: Date): Promise<string> {
	const x509 = await loadX509();
	const keys = await importKeys(key);
	const certificate = await x509.X509CertificateGenerator.createSelfSigned({
		serialNumber: randomHex(16),
		name: `CN=Otaru device authority ${randomHex(4)}`,
		notBefore: NOT_BEFORE,
		notAfter: new Date(now.getTime() + CA_LIFE_MS),
		signingAlgorithm: ALGORITHM,
		keys,
		extensions: [
			new x509.BasicConstraintsExtension(true, 0, true),
			new x509.KeyUsagesExtension(
				x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign,
				true,
			),
			await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
		],
	});
	return `${certificate.toString("pem")}\n`;
}

async function issue(
	authority: Authority,
	key: string,
	names: readonly string[],
	now: Date,
): Promise<string> {
	const x509 = await loadX509();
	const ca = new x509.X509Certificate(authority.cert);
	const caKeys = await importKeys(authority.key);
	const { publicKey } = await importKeys(key);
	const notAfter = new Date(
		Math.min(now.getTime() + LIFE_MS, ca.notAfter.getTime()),
	);
	const certificate = await x509.X509CertificateGenerator.create({
		serialNumber: randomHex(16),
		subject: "CN=Otaru device listeners",
		issuer: ca.subject,
		notBefore: NOT_BEFORE,
		notAfter,
		signingAlgorithm: ALGORITHM,
		publicKey,
		signingKey: caKeys.privateKey,
		extensions: [
			new x509.BasicConstraintsExtension(false, undefined, true),
			new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
			new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
			new x509.SubjectAlternativeNameExtension(
				names.map((name) => ({
					type: isIP(name) ? ("ip" as const) : ("dns" as const),
					value: name,
				})),
			),
			await x509.AuthorityKeyIdentifierExtension.create(caKeys.publicKey),
			await x509.SubjectKeyIdentifierExtension.create(publicKey),
		],
	});
	return `${certificate.toString("pem")}\n`;
}

async function importKeys(pem: string): Promise<webcrypto.CryptoKeyPair> {
	const privateKey = createPrivateKey(pem);
	const publicKey = createPublicKey(privateKey);
	return {
		privateKey: await crypto.subtle.importKey(
			"pkcs8",
			privateKey.export({ type: "pkcs8", format: "der" }),
			ALGORITHM,
			false,
			["sign"],
		),
		publicKey: await crypto.subtle.importKey(
			"spki",
			publicKey.export({ type: "spki", format: "der" }),
			ALGORITHM,
			true,
			["verify"],
		),
	};
}

function readSetting(name: string, file: string): string {
	try {
		return readFileSync(file, "utf8");
	} catch (cause) {
		throw new ConfigError(`${name}: ${file} cannot be read.`, { cause });
	}
}
