/**
 * The addresses from which devices fetch packages: what they look like, and what
 * proves that this server gave them out. Nothing about a link is stored; the proof is
 * an HMAC over what it is good for, so any process with the same key can check it.
 *
 * - Pre-signed: the proof is in the query. Good for one package until its expiry.
 * - With a token: the proof is in the `Authorization` header. Good for one offer of one
 *   package; each notice of the offer has a token of its own.
 *
 * Whether the upgrade is still running is not decided here.
 */
import { createHmac, type KeyObject, timingSafeEqual } from "node:crypto";
import type { DevicesConfig } from "../config.ts";

export interface Download {
	taskId: string;
	/** Of the subtask in its task. */
	position: number;
	packageId: string;
	/** As the package's file is called; made safe for devices on the way out. */
	fileName: string;
	/** When the notice that carries the link was made. */
	offeredAt: Date;
	expiresAt: Date;
}

/** What a token is good for; `expiresAt` tells one offer of a package from the next. */
type Offered = Pick<
	Download,
	"taskId" | "position" | "packageId" | "expiresAt"
>;

/** What a request asks for, before anything of it is believed. */
export type DownloadTarget = PresignedTarget | TokenTarget;

export interface PresignedTarget {
	form: "presigned";
	taskId: string;
	position: number;
	packageId: string;
	fileName: string;
	/** Absent when the query does not carry a complete proof. */
	proof: { expiresSeconds: number; signature: string } | undefined;
}

export interface TokenTarget {
	form: "token";
	taskId: string;
	position: number;
}

export interface DownloadLinks {
	presigned(download: Download): string;
	token(download: Download): { url: string; accessToken: string };
	/** Undefined when the request target is no download address at all. */
	parse(requestTarget: string): DownloadTarget | undefined;
	/** Whether this server signed the address, and it has not expired. */
	isValid(target: PresignedTarget, now: Date): boolean;
	/** Whether the token came with a notice of this very offer. */
	isToken(accessToken: string, download: Offered): boolean;
}

const PRESIGNED =
	/^\/iodm\/v1\/([0-9a-f]{1,64})\/([1-9][0-9]{0,8})\/([A-Za-z0-9-]{1,36})\/([A-Za-z0-9._-]{1,128})$/;
const TOKEN =
	/^\/iodm\/inner\/v1\.3\.0\/firmwarefiles\/([0-9a-f]{1,64})-([1-9a-f][0-9a-f]{0,7})$/;

/**
 * @param base answers with scheme, host, port and perhaps a path, without a slash at
 * the end; asked each time, since the port may be known only once the listener is open.
 */
export function createDownloadLinks(options: {
	key: KeyObject;
	base: () => string;
}): DownloadLinks {
	const { key, base } = options;
	const hmac = (...parts: (string | number)[]) =>
		createHmac("sha256", key).update(parts.join("\n")).digest("hex");
	// The method is part of what is signed; a HEAD asks for less than the GET it names.
	const sign = (path: string, expiresSeconds: number) =>
		hmac("GET", path, expiresSeconds);
	// When it was issued, in the clear, and the proof: every notice has a token of its
	// own, and one that was given out stays good while its time runs, so that a notice
	// repeated behind a device's back does not end the download it is in.
	const tokenOf = (download: Offered, issuedSeconds: string) =>
		issuedSeconds +
		hmac(
			"token",
			download.taskId,
			download.position,
			download.packageId,
			download.expiresAt.getTime(),
			issuedSeconds,
		).slice(0, 24);

	return {
		presigned(download) {
			const path = presignedPath({
				...download,
				fileName: safeFileName(download.fileName),
			});
			const expires = Math.ceil(download.expiresAt.getTime() / 1000);
			return `${base()}${path}?AccessKeyId=otaru&Expires=${expires}&Signature=${sign(path, expires)}`;
		},

		token(download) {
			return {
				url: `${base()}/iodm/inner/v1.3.0/firmwarefiles/${download.taskId}-${download.position.toString(16)}`,
				accessToken: tokenOf(download, hexSeconds(download.offeredAt)),
			};
		},

		parse(requestTarget) {
			const { path, query } = split(requestTarget, base());
			const presigned = PRESIGNED.exec(path);
			if (presigned) {
				const [, taskId = "", position, packageId = "", fileName = ""] =
					presigned;
				return {
					form: "presigned",
					taskId,
					position: Number(position),
					packageId,
					fileName,
					proof: readProof(query),
				};
			}
			const token = TOKEN.exec(path);
			if (token) {
				const [, taskId = "", position = ""] = token;
				return {
					form: "token",
					taskId,
					position: Number.parseInt(position, 16),
				};
			}
			return undefined;
		},

		isValid(target, now) {
			if (!target.proof) return false;
			const { expiresSeconds, signature } = target.proof;
			return (
				equals(signature, sign(presignedPath(target), expiresSeconds)) &&
				now.getTime() < expiresSeconds * 1000
			);
		},

		isToken(accessToken, download) {
			return equals(accessToken, tokenOf(download, accessToken.slice(0, 8)));
		},
	};
}

function hexSeconds(date: Date): string {
	return Math.floor(date.getTime() / 1000)
		.toString(16)
		.padStart(8, "0");
}

/** Where devices reach the download listener; `port` is the one it really has. */
export function downloadBase(
	devices: Pick<DevicesConfig, "publicUrl" | "publicHost">,
	port: number,
): string {
	if (devices.publicUrl !== undefined) return devices.publicUrl;
	const { publicHost } = devices;
	const host = publicHost.includes(":") ? `[${publicHost}]` : publicHost;
	// The port is always written out: the official C device SDK cannot do without.
	return `https://${host}:${port}`;
}

/**
 * A name that every device can use as a file name: letters, digits, `.`, `_` and `-`,
 * at most 128 characters, the suffix kept. The official C device SDK writes a file of
 * exactly this name into its working directory.
 */
export function safeFileName(name: string): string {
	const safe = name
		.slice(name.lastIndexOf("/") + 1)
		.replace(/[^A-Za-z0-9._-]+/gu, "_")
		.replace(/^[.-]+/, "");
	if (safe === "" || /^[._-]+$/.test(safe)) return "package.bin";
	if (safe.length <= 128) return safe;
	const suffix = /(\.[A-Za-z0-9]{1,16}){1,2}$/.exec(safe)?.[0] ?? "";
	return safe.slice(0, 128 - suffix.length) + suffix;
}

function presignedPath(
	d: Pick<Download, "taskId" | "position" | "packageId" | "fileName">,
): string {
	return `/iodm/v1/${d.taskId}/${d.position}/${d.packageId}/${d.fileName}`;
}

/**
 * Path and query of a request target, which may be a whole URL (RFC 9112 section
 * 3.2.2) and may still carry the path of the public address.
 */
function split(
	requestTarget: string,
	base: string,
): { path: string; query: string } {
	const target = requestTarget.replace(/^https?:\/\/[^/?#]*/i, "");
	const end = target.indexOf("?");
	let path = end === -1 ? target : target.slice(0, end);
	const prefix = base.replace(/^https?:\/\/[^/?#]*/i, "");
	if (prefix !== "" && path.startsWith(`${prefix}/`)) {
		path = path.slice(prefix.length);
	}
	return { path, query: end === -1 ? "" : target.slice(end + 1) };
}

function readProof(query: string): PresignedTarget["proof"] {
	const fields = new URLSearchParams(query);
	const expires = fields.get("Expires") ?? "";
	const signature = fields.get("Signature") ?? "";
	return fields.get("AccessKeyId") === "otaru" &&
		/^[0-9]{1,12}$/.test(expires) &&
		/^[0-9a-f]{64}$/.test(signature)
		? { expiresSeconds: Number(expires), signature }
		: undefined;
}

/** In constant time for texts of one length; the lengths are no secret. */
function equals(given: string, expected: string): boolean {
	const a = Buffer.from(given);
	const b = Buffer.from(expected);
	return a.length === b.length && timingSafeEqual(a, b);
}
