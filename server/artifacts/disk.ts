/**
 * Artifacts in a directory: `ab/abcdef…` under their SHA-256, `tmp/` for what is still
 * arriving. Several processes may share the directory: no name is taken by two, and
 * nobody tidies up what is young.
 */
import { createHash } from "node:crypto";
import {
	type FileHandle,
	mkdir,
	open,
	readdir,
	rename,
	rm,
	stat,
} from "node:fs/promises";
import { join } from "node:path";
import { randomHex } from "../database/ids.ts";
import { ApiError, errors } from "../errors.ts";
import {
	type ArtifactStore,
	KeyedLock,
	type OpenArtifact,
	type StagedArtifact,
	type StoredArtifact,
} from "./artifact-store.ts";

const SHA256 = /^[0-9a-f]{64}$/;
const SHARD = /^[0-9a-f]{2}$/;

/** Opens the directory and makes it when it is missing. */
export async function openDisk(directory: string): Promise<ArtifactStore> {
	const tmp = join(directory, "tmp");
	await mkdir(tmp, { recursive: true, mode: 0o700 });
	await syncDirectory(directory);
	return new Disk(directory, tmp);
}

/** One open file for all who read it: thousands of devices fetch the same package at once. */
interface SharedFile {
	readonly file: FileHandle;
	readonly sizeBytes: number;
	readers: number;
}

class Disk implements ArtifactStore {
	readonly #directory: string;
	readonly #tmp: string;
	readonly #locks = new KeyedLock();
	readonly #shared = new Map<string, Promise<SharedFile | undefined>>();

	constructor(directory: string, tmp: string) {
		this.#directory = directory;
		this.#tmp = tmp;
	}

	async stage(
		bytes: AsyncIterable<Uint8Array>,
		limitBytes: number,
	): Promise<StagedArtifact> {
		const path = join(this.#tmp, randomHex(16));
		const digests = {
			sha256: createHash("sha256"),
			sha1: createHash("sha1"),
			md5: createHash("md5"),
		};
		let sizeBytes = 0;
		const file = await open(path, "wx", 0o600);
		try {
			for await (const chunk of bytes) {
				if (sizeBytes + chunk.length > limitBytes) {
					throw new ApiError(errors.objectTooLarge, {
						detail: `At most ${limitBytes} bytes are accepted.`,
					});
				}
				// The digests are computed while the kernel takes the bytes.
				const written = writeAll(file, chunk, sizeBytes);
				for (const digest of Object.values(digests)) digest.update(chunk);
				await written;
				sizeBytes += chunk.length;
			}
			await file.sync();
			await file.close();
		} catch (error) {
			await file.close().catch(() => {});
			await rm(path, { force: true });
			throw isFull(error)
				? new ApiError(errors.storageFull, { cause: error })
				: error;
		}
		const sha256 = digests.sha256.digest("hex");
		return {
			sha256,
			sha1: digests.sha1.digest("hex"),
			md5: digests.md5.digest("hex"),
			sizeBytes,
			keep: () => this.#keep(path, sha256),
			// After `keep` the file has another name and this finds nothing.
			[Symbol.asyncDispose]: () => rm(path, { force: true }),
		};
	}

	/** The same bytes may be there already: replacing them heals what has been damaged since. */
	async #keep(path: string, sha256: string): Promise<void> {
		const shard = join(this.#directory, sha256.slice(0, 2));
		const made = await mkdir(shard, { recursive: true, mode: 0o700 });
		if (made !== undefined) await syncDirectory(this.#directory);
		await rename(path, join(shard, sha256));
		this.#shared.delete(sha256);
		await syncDirectory(shard);
	}

	async open(sha256: string): Promise<OpenArtifact | undefined> {
		let shared = this.#shared.get(sha256);
		if (!shared) {
			shared = this.#openShared(sha256);
			this.#shared.set(sha256, shared);
		}
		let opened: SharedFile | undefined;
		try {
			opened = await shared;
		} catch (error) {
			this.#forget(sha256, shared);
			throw error;
		}
		if (!opened) {
			this.#forget(sha256, shared);
			return undefined;
		}
		// The last reader may have left and closed the file while this one waited.
		if (opened.readers < 0) return this.open(sha256);
		const { file, sizeBytes } = opened;
		opened.readers++;
		let open = true;
		return {
			sizeBytes,
			async read(into, length, position) {
				return (await file.read(into, 0, length, position)).bytesRead;
			},
			[Symbol.asyncDispose]: async () => {
				if (!open) return;
				open = false;
				if (--opened.readers > 0) return;
				opened.readers = -1;
				this.#forget(sha256, shared);
				await file.close();
			},
		};
	}

	async #openShared(sha256: string): Promise<SharedFile | undefined> {
		let file: FileHandle;
		try {
			file = await open(this.#path(sha256), "r");
		} catch (error) {
			if (isMissing(error)) return undefined;
			throw error;
		}
		try {
			return { file, sizeBytes: (await file.stat()).size, readers: 0 };
		} catch (error) {
			await file.close();
			throw error;
		}
	}

	#forget(sha256: string, shared: Promise<SharedFile | undefined>): void {
		if (this.#shared.get(sha256) === shared) this.#shared.delete(sha256);
	}

	async stat(sha256: string): Promise<StoredArtifact | undefined> {
		try {
			const found = await stat(this.#path(sha256));
			// The time of the last rename: writing had ended before that.
			return { sha256, sizeBytes: found.size, keptAt: found.ctime };
		} catch (error) {
			if (isMissing(error)) return undefined;
			throw error;
		}
	}

	async remove(sha256: string): Promise<void> {
		await rm(this.#path(sha256), { force: true });
		this.#shared.delete(sha256);
	}

	async *list(): AsyncIterable<StoredArtifact> {
		for (const shard of await readdir(this.#directory)) {
			if (!SHARD.test(shard)) continue;
			for (const name of await readdir(join(this.#directory, shard))) {
				if (!SHA256.test(name)) continue;
				const found = await this.stat(name);
				if (found) yield found;
			}
		}
	}

	async dropUnfinished(before: Date): Promise<number> {
		let dropped = 0;
		for (const name of await readdir(this.#tmp)) {
			const path = join(this.#tmp, name);
			try {
				// An upload that still runs wrote a moment ago.
				if ((await stat(path)).mtime >= before) continue;
			} catch (error) {
				if (isMissing(error)) continue;
				throw error;
			}
			await rm(path, { recursive: true, force: true });
			dropped++;
		}
		return dropped;
	}

	exclusively<T>(sha256: string, work: () => Promise<T>): Promise<T> {
		return this.#locks.run(sha256, work);
	}

	/** Readers keep their open files until they are done; there is nothing else to close. */
	async [Symbol.asyncDispose](): Promise<void> {}

	#path(sha256: string): string {
		if (!SHA256.test(sha256)) {
			throw new Error("An artifact is named by 64 lower-case hex digits.");
		}
		return join(this.#directory, sha256.slice(0, 2), sha256);
	}
}

async function writeAll(
	file: FileHandle,
	chunk: Uint8Array,
	position: number,
): Promise<void> {
	for (let done = 0; done < chunk.length; ) {
		const { bytesWritten } = await file.write(
			chunk,
			done,
			chunk.length - done,
			position + done,
		);
		done += bytesWritten;
	}
}

/** A new name is durable only when the directory that holds it is. */
async function syncDirectory(directory: string): Promise<void> {
	// Windows cannot open a directory, and orders these changes by itself.
	if (process.platform === "win32") return;
	const handle = await open(directory, "r");
	try {
		await handle.sync();
	} finally {
		await handle.close();
	}
}

function isMissing(error: unknown): boolean {
	return error instanceof Error && "code" in error && error.code === "ENOENT";
}

/** No room, or none that this user may have. */
function isFull(error: unknown): boolean {
	return (
		error instanceof Error &&
		"code" in error &&
		(error.code === "ENOSPC" || error.code === "EDQUOT")
	);
}
