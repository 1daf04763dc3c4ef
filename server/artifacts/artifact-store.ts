/**
 * Where the bytes of packages are. An artifact is known by the SHA-256 of its bytes and
 * by nothing else: what a caller names it never reaches the store.
 */

/** Bytes that have arrived and are on disk, but that nobody can find yet. */
export interface StagedArtifact extends AsyncDisposable {
	/** The three digests are hex, lower case. */
	readonly sha256: string;
	readonly sha1: string;
	readonly md5: string;
	readonly sizeBytes: number;
	/** From now on the artifact can be opened; durable when this resolves. */
	keep(): Promise<void>;
	/** Leaves nothing behind, unless the artifact was kept. */
	[Symbol.asyncDispose](): Promise<void>;
}

export interface OpenArtifact extends AsyncDisposable {
	readonly sizeBytes: number;
	/**
	 * Reads up to `length` bytes that begin at `position` into the front of `into`.
	 *
	 * @returns how many were read: fewer than asked for is possible, 0 means the end.
	 */
	read(into: Uint8Array, length: number, position: number): Promise<number>;
}

export interface StoredArtifact {
	sha256: string;
	sizeBytes: number;
	/** When it was kept. */
	keptAt: Date;
}

export interface ArtifactStore extends AsyncDisposable {
	/**
	 * Takes bytes in as they come, never more than a chunk in memory.
	 *
	 * @throws 413 IOTDA.014967 as soon as more than `limitBytes` have come, and
	 * whatever `bytes` throws; nothing is left behind then.
	 */
	stage(
		bytes: AsyncIterable<Uint8Array>,
		limitBytes: number,
	): Promise<StagedArtifact>;
	/** Undefined when there is no such artifact. One that is removed meanwhile stays readable. */
	open(sha256: string): Promise<OpenArtifact | undefined>;
	stat(sha256: string): Promise<StoredArtifact | undefined>;
	/** Removing what is not there is no error. */
	remove(sha256: string): Promise<void>;
	/** Every artifact, in no order. */
	list(): AsyncIterable<StoredArtifact>;
	/**
	 * Drops what a killed process left half-written: staged bytes to which nothing was
	 * added since `before`.
	 *
	 * @returns how many were dropped.
	 */
	dropUnfinished(before: Date): Promise<number>;
	/**
	 * Runs `work` while no other work on the same artifact runs in this process: the
	 * bytes and the rows that name them change together.
	 */
	exclusively<T>(sha256: string, work: () => Promise<T>): Promise<T>;
}

/** One piece of work at a time for each key. */
export class KeyedLock {
	readonly #last = new Map<string, Promise<unknown>>();

	async run<T>(key: string, work: () => Promise<T>): Promise<T> {
		const before = this.#last.get(key) ?? Promise.resolve();
		// Whether the work before succeeded is its own caller's business.
		const mine = before.then(work, work);
		this.#last.set(key, mine);
		try {
			return await mine;
		} finally {
			if (this.#last.get(key) === mine) this.#last.delete(key);
		}
	}
}
