/** SQLite's write-ahead log, brought to the disk off the event loop; see `sqlite.ts`. */
import { close, fdatasync, open } from "node:fs";
import { promisify } from "node:util";

export interface Committer {
	resolve: () => void;
	reject: (error: unknown) => void;
}

export interface LogSyncOptions {
	/** Brings everything written to the descriptor to the disk. */
	sync?: (fd: number) => Promise<void>;
	/**
	 * What the log holds on disk is unknown after a failure, and asking again may be
	 * answered with a success that means nothing: the process must end, and the next one
	 * reads what is really there.
	 */
	fail?: (error: Error) => void;
}

/** One at a time; whoever commits while one runs is served by the next. */
export class LogSync {
	readonly #file: string;
	readonly #sync: (fd: number) => Promise<void>;
	readonly #fail: (error: Error) => void;
	#fd: number | undefined;
	#waiting: Committer[] = [];
	#running: Promise<void> | undefined;
	/** Called whenever nothing is left to do. */
	onIdle: () => void = () => {};

	constructor(file: string, options: LogSyncOptions = {}) {
		this.#file = file;
		this.#sync = options.sync ?? promisify(fdatasync);
		this.#fail = options.fail ?? endProcess;
	}

	get running(): boolean {
		return this.#running !== undefined;
	}

	/** Answers `committers` once what they committed is on disk. */
	after(committers: readonly Committer[]): void {
		this.#waiting.push(...committers);
		if (this.#waiting.length > 0) this.#running ??= this.#run();
	}

	async #run(): Promise<void> {
		try {
			// SQLite's locks are on the database file, never on its log: opening and closing
			// the log once more takes none of them away.
			this.#fd ??= await promisify(open)(this.#file, "r+");
			while (this.#waiting.length > 0) {
				const served = this.#waiting;
				this.#waiting = [];
				await this.#sync(this.#fd);
				for (const { resolve } of served) resolve();
			}
		} catch (cause) {
			// Nobody is answered: what became of his change is not known.
			this.#fail(
				new Error(
					`The disk failed to keep ${this.#file}; check the disk, then start again.`,
					{ cause },
				),
			);
			return;
		}
		this.#running = undefined;
		this.onIdle();
	}

	/** Waits for what is under way. */
	async close(): Promise<void> {
		await this.#running;
		if (this.#fd !== undefined) await promisify(close)(this.#fd);
		this.#fd = undefined;
	}
}

function endProcess(error: Error): void {
	console.error(error);
	process.exit(1);
}
