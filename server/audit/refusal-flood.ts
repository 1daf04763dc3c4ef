/**
 * To be refused costs nothing, and could fill the disk: after some refusals in a minute
 * those of one source, a stranger's address or a user, are only counted, and a summary is
 * kept of them. What is remembered is bounded, too.
 */
import type { Clock } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import type { AuditEntry } from "./audit-chain.ts";

export interface FloodLimits {
	/** Rows of one source in a minute. */
	perSource: number;
	/** Sources that are told apart in a minute; all others count as one. */
	sources: number;
}

/** Who is counted together, and what a summary of him says. */
export interface FloodKind {
	limits: FloodLimits;
	/** In place of what differs from row to row. */
	summary(source: string): Partial<AuditEntry>;
}

const MINUTE_MS = 60_000;
const CHECK_MS = 1_000;
/** All that were too many to be told apart. */
const OTHERS = "*";
/** Each may have named another one. */
const differing = {
	action: null,
	project_id: null,
	app_id: null,
	resource: null,
} as const;

/** Callers who have not shown who they are, by address or network. */
export const ofAddress: FloodKind = {
	limits: { perSource: 20, sources: 1_000 },
	summary: (address) => ({ ...differing, address, credential: null }),
};

/** Callers who have, by the id of the user. */
export const ofUser: FloodKind = {
	limits: { perSource: 60, sources: 10_000 },
	summary: (userId) =>
		userId === OTHERS
			? {
					...differing,
					address: OTHERS,
					credential: null,
					account_id: null,
					user_id: null,
					user_name: null,
				}
			: differing,
};

interface Counted {
	kept: number;
	dropped: number;
	/** The last one that was dropped. */
	last: AuditEntry | undefined;
}

export class RefusalFlood implements AsyncDisposable {
	readonly #kind: FloodKind;
	readonly #now: Clock;
	readonly #limits: FloodLimits;
	readonly #append: (entry: AuditEntry) => Promise<void>;
	readonly #onFailure: (error: unknown) => void;
	readonly #timer: NodeJS.Timeout;
	#sources = new Map<string, Counted>();
	#minute = 0;
	#saying: Promise<void> = Promise.resolve();

	/** @param parts.append keeps a summary. */
	constructor(
		kind: FloodKind,
		parts: {
			now: Clock;
			append: (entry: AuditEntry) => Promise<void>;
			onFailure: (error: unknown) => void;
			limits?: Partial<FloodLimits>;
		},
	) {
		this.#kind = kind;
		this.#now = parts.now;
		this.#append = parts.append;
		this.#onFailure = parts.onFailure;
		this.#limits = { ...kind.limits, ...parts.limits };
		this.#timer = setInterval(() => this.#turn(), CHECK_MS).unref();
	}

	/**
	 * @param source what is counted together.
	 * @returns whether the entry is to be kept; else it is in the summary.
	 */
	admits(source: string, entry: AuditEntry): boolean {
		this.#turn();
		const { perSource, sources } = this.#limits;
		const name =
			this.#sources.has(source) || this.#sources.size < sources
				? source
				: OTHERS;
		let counted = this.#sources.get(name);
		if (!counted) {
			counted = { kept: 0, dropped: 0, last: undefined };
			this.#sources.set(name, counted);
		}
		if (counted.kept < perSource) {
			counted.kept++;
			return true;
		}
		counted.dropped++;
		counted.last = entry;
		return false;
	}

	/** Says what was counted up to now. */
	async [Symbol.asyncDispose](): Promise<void> {
		clearInterval(this.#timer);
		this.#minute = -1;
		this.#say();
		await this.#saying;
	}

	#turn(): void {
		const minute = Math.floor(this.#now().getTime() / MINUTE_MS);
		if (minute === this.#minute) return;
		this.#minute = minute;
		this.#say();
	}

	#say(): void {
		const sources = this.#sources;
		this.#sources = new Map();
		for (const [source, { dropped, last }] of sources) {
			if (!last) continue;
			const said = this.#append({
				...last,
				at: instant(this.#now()),
				...this.#kind.summary(source),
				reason: `and ${dropped} more in a minute; this is the last of them`,
			}).catch(this.#onFailure);
			this.#saying = Promise.all([this.#saying, said]).then(() => {});
		}
	}
}
