/**
 * Callers who have not shown who they are cost nothing to be, and could fill the disk
 * with refusals: after some in a minute those of one address are only counted, and a
 * summary is kept of them. What is remembered is bounded, too.
 */
import type { Clock } from "../database/database.ts";
import { instant } from "../database/tables.ts";
import type { AuditEntry } from "./audit-chain.ts";

export interface FloodLimits {
	/** Rows of one address in a minute. */
	perAddress: number;
	/** Addresses that are told apart in a minute; all others count as one. */
	addresses: number;
}

const defaults: FloodLimits = { perAddress: 20, addresses: 1_000 };
const MINUTE_MS = 60_000;
const CHECK_MS = 1_000;
/** In place of an address: all that were too many to be told apart. */
export const OTHER_ADDRESSES = "*";

interface Counted {
	kept: number;
	dropped: number;
	/** The last one that was dropped. */
	last: AuditEntry | undefined;
}

export class AnonymousFlood implements AsyncDisposable {
	readonly #now: Clock;
	readonly #limits: FloodLimits;
	readonly #append: (entry: AuditEntry) => Promise<void>;
	readonly #onFailure: (error: unknown) => void;
	readonly #timer: NodeJS.Timeout;
	#addresses = new Map<string, Counted>();
	#minute = 0;
	#saying: Promise<void> = Promise.resolve();

	/** @param parts.append keeps a summary. */
	constructor(parts: {
		now: Clock;
		append: (entry: AuditEntry) => Promise<void>;
		onFailure: (error: unknown) => void;
		limits?: Partial<FloodLimits>;
	}) {
		this.#now = parts.now;
		this.#append = parts.append;
		this.#onFailure = parts.onFailure;
		this.#limits = { ...defaults, ...parts.limits };
		this.#timer = setInterval(() => this.#turn(), CHECK_MS).unref();
	}

	/**
	 * @param address or network: what is counted together.
	 * @returns whether the entry is to be kept; else it is in the summary.
	 */
	admits(address: string, entry: AuditEntry): boolean {
		this.#turn();
		const { perAddress, addresses } = this.#limits;
		const known = this.#addresses.has(address);
		const name =
			known || this.#addresses.size < addresses ? address : OTHER_ADDRESSES;
		let counted = this.#addresses.get(name);
		if (!counted) {
			counted = { kept: 0, dropped: 0, last: undefined };
			this.#addresses.set(name, counted);
		}
		if (counted.kept < perAddress) {
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
		const addresses = this.#addresses;
		this.#addresses = new Map();
		for (const [address, { dropped, last }] of addresses) {
			if (!last) continue;
			const said = this.#append({
				...last,
				at: instant(this.#now()),
				address,
				// Each may have named another one.
				credential: null,
				action: null,
				project_id: null,
				app_id: null,
				resource: null,
				reason: `and ${dropped} more in a minute; this is the last of them`,
			}).catch(this.#onFailure);
			this.#saying = Promise.all([this.#saying, said]).then(() => {});
		}
	}
}
