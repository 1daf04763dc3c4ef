/** The files that are being imported: a directory, each under the id of its import. */
import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { ApiError, errors } from "../errors.ts";

export interface ImportSpool {
	readonly limitBytes: number;
	/**
	 * Keeps what comes: when this resolves with its size, it is on disk. What was not
	 * taken whole leaves nothing behind.
	 *
	 * @param expectedSha256 hex; undefined when the sender did not sign the body
	 * @throws 413 IOTDA.000923, 400 IOTDA.014968 for another hash, 507 IOTDA.000925
	 */
	receive(
		importId: string,
		bytes: AsyncIterable<Uint8Array>,
		expectedSha256: string | undefined,
	): Promise<number>;
	/** Undefined: there is no such file. */
	open(importId: string): Promise<FileHandle | undefined>;
	remove(importId: string): Promise<void>;
	/** Removes the files of all other imports. */
	removeAllBut(importIds: ReadonlySet<string>): Promise<void>;
}

/** Opens the directory and makes it when it is missing. */
export async function openImportSpool(
	directory: string,
	limitBytes: number,
): Promise<ImportSpool> {
	await mkdir(directory, { recursive: true, mode: 0o700 });
	const pathOf = (importId: string) => join(directory, importId);
	return {
		limitBytes,
		async receive(importId, bytes, expectedSha256) {
			try {
				const { sizeBytes, sha256 } = await write(
					pathOf(importId),
					bytes,
					limitBytes,
				);
				if (expectedSha256 !== undefined && expectedSha256 !== sha256)
					throw new ApiError(errors.objectHashMismatch);
				await syncDirectory(directory);
				return sizeBytes;
			} catch (error) {
				await rm(pathOf(importId), { force: true });
				const code = codeOf(error);
				throw code === "ENOSPC" || code === "EDQUOT"
					? new ApiError(errors.storageFull, { cause: error })
					: error;
			}
		},
		async open(importId) {
			try {
				return await open(pathOf(importId), "r");
			} catch (error) {
				if (codeOf(error) === "ENOENT") return undefined;
				throw error;
			}
		},
		remove: (importId) => rm(pathOf(importId), { force: true }),
		async removeAllBut(importIds) {
			for (const name of await readdir(directory))
				if (!importIds.has(name)) await rm(pathOf(name), { force: true });
		},
	};
}

async function write(
	path: string,
	bytes: AsyncIterable<Uint8Array>,
	limitBytes: number,
): Promise<{ sizeBytes: number; sha256: string }> {
	const hash = createHash("sha256");
	let sizeBytes = 0;
	await using file = await open(path, "wx", 0o600);
	for await (const chunk of bytes) {
		sizeBytes += chunk.length;
		if (sizeBytes > limitBytes) throw importTooLarge(limitBytes);
		// The hash is computed while the kernel takes the bytes.
		const written = file.appendFile(chunk);
		hash.update(chunk);
		await written;
	}
	await file.sync();
	return { sizeBytes, sha256: hash.digest("hex") };
}

export function importTooLarge(limitBytes: number): ApiError {
	return new ApiError(errors.bodyTooLarge, {
		detail: `It may have ${limitBytes} bytes.`,
	});
}

/** A new name is durable only when the directory that holds it is. */
async function syncDirectory(directory: string): Promise<void> {
	// Windows cannot open a directory, and orders these changes by itself.
	if (process.platform === "win32") return;
	await using handle = await open(directory, "r");
	await handle.sync();
}

function codeOf(error: unknown): unknown {
	return error instanceof Error && "code" in error ? error.code : undefined;
}
