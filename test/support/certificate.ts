/** A key and a certificate for a listener that a test opens by itself. */
import "reflect-metadata";
import { webcrypto } from "node:crypto";
import { X509CertificateGenerator } from "@peculiar/x509";

/** PEM texts of a self-signed P-256 certificate for `localhost`, valid for a day. */
export async function selfSignedCertificate(): Promise<{
	key: string;
	cert: string;
}> {
	const algorithm = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
	const keys = await webcrypto.subtle.generateKey(algorithm, true, [
		"sign",
		"verify",
	]);
	const certificate = await X509CertificateGenerator.createSelfSigned(
		{
			name: "CN=localhost",
			notBefore: new Date(Date.now() - 3_600_000),
			notAfter: new Date(Date.now() + 86_400_000),
			signingAlgorithm: algorithm,
			keys,
		},
		webcrypto as never,
	);
	const pkcs8 = await webcrypto.subtle.exportKey("pkcs8", keys.privateKey);
	const base64 = Buffer.from(pkcs8).toString("base64");
	return {
		key: `-----BEGIN PRIVATE KEY-----\n${base64.match(/.{1,64}/g)?.join("\n")}\n-----END PRIVATE KEY-----\n`,
		cert: certificate.toString("pem"),
	};
}
