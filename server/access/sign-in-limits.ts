/**
 * Failed sign-ins at the management API, counted in memory and bounded: per user and
 * address for passwords, per access key and address for signatures and tokens. After a
 * few failures each next attempt has to wait, twice as long every time, five minutes at
 * most. What is counted is lost with the process, which does no harm: a guess at a
 * secret of 40 characters stays hopeless, and one at a password costs its hash.
 */
import { hash } from "node:crypto";
import type { Clock } from "../database/database.ts";
import { Recent } from "./recent.ts";

/** Too many failed attempts: try again after `retryAfterSeconds`. */
export class SignInBlocked extends Error {
	override name = "SignInBlocked";
	readonly retryAfterSeconds: number;

	constructor(waitMs: number) {
		super("too many failed sign-ins");
		this.retryAfterSeconds = Math.ceil(waitMs / 1000);
	}

	/** What whoever has to wait is told. */
	get advice(): string {
		const seconds = this.retryAfterSeconds;
		return `Try again in ${seconds} second${seconds === 1 ? "" : "s"}.`;
	}
}

const FREE_ATTEMPTS_OF_USER = 5;
/** More than of a user: a program may have been given a wrong key. */
const FREE_ATTEMPTS_OF_KEY = 10;
/** More still, since a whole office may share one address. */
const FREE_ATTEMPTS_OF_ADDRESS = 20;
/** Of a user where he has signed in: his programs may all sign in at once. */
const FREE_ATTEMPTS_AT_HOME = 20;
const MAX_DELAY_MS = 5 * 60 * 1000;
const FORGET_AFTER_MS = 60 * 60 * 1000;
const MAX_REMEMBERED = 10_000;
/** An access key has 20 characters; what is longer is cut, so that nobody fills the memory. */
const NAME_LIMIT = 64;

/**
 * Failed sign-ins by password. An attempt counts as failed while it runs, so a hundred
 * at once gain nothing. Where a user has signed in before, only failures in his name from
 * there count: neither guesses from elsewhere nor a neighbour behind the same address who
 * tries other names lock him out.
 */
export class SignInLimits {
	readonly #users: Failures;
	readonly #addresses: Failures;
	/** Of users where they have signed in before. */
	readonly #homes: Failures;
	readonly #known = new Places();

	constructor(now: Clock) {
		this.#homes = new Failures(FREE_ATTEMPTS_AT_HOME, now);
		this.#users = new Failures(FREE_ATTEMPTS_OF_USER, now);
		this.#addresses = new Failures(FREE_ATTEMPTS_OF_ADDRESS, now);
	}

	/**
	 * @param user always the same for one user, however the caller names him.
	 * @throws SignInBlocked
	 */
	begin(user: string, from: string): { succeeded(): void; forget(): void } {
		const address = networkOf(from);
		const counters: [Failures, string][] = this.#known.has(user, address)
			? [[this.#homes, placeOf(user, address)]]
			: [
					[this.#addresses, address],
					[this.#users, user],
				];
		const waitMs = Math.max(
			...counters.map(([failures, key]) => failures.waitMs(key)),
		);
		if (waitMs > 0) throw new SignInBlocked(waitMs);
		for (const [failures, key] of counters) failures.add(key, 1);
		const forget = () => {
			for (const [failures, key] of counters) failures.add(key, -1);
		};
		return {
			forget,
			succeeded: () => {
				forget();
				this.#users.clear(user);
				this.#known.add(user, address);
			},
		};
	}
}

/** What a request proves itself with: the access key of its signature, or its token. */
export type Proof = { accessKey: string } | { token: string };

/**
 * Failed signatures and unknown tokens. Only what was found wrong counts: a program may
 * have a hundred calls under way at once. Where a key or a token has been right before,
 * only its own failures from there count, and one success ends them: neither guesses from
 * elsewhere nor a neighbour behind the same address lock its holder out.
 */
export class ProofLimits {
	readonly #keys: Failures;
	/** Of each address the different keys and tokens that were wrong. */
	readonly #addresses: Failures;
	/** Of keys and tokens by the address they came from. */
	readonly #places: Failures;
	readonly #known = new Places();

	constructor(now: Clock) {
		this.#keys = new Failures(FREE_ATTEMPTS_OF_KEY, now);
		this.#addresses = new Failures(FREE_ATTEMPTS_OF_ADDRESS, now);
		this.#places = new Failures(FREE_ATTEMPTS_OF_KEY, now);
	}

	/** The proof was given out to this address. */
	vouch(proof: Proof, from: string): void {
		this.#known.add(nameOf(proof), networkOf(from));
	}

	/**
	 * To be called before anything is looked up or computed.
	 *
	 * @throws SignInBlocked
	 */
	begin(proof: Proof, from: string): ProofAttempt {
		const name = nameOf(proof);
		const address = networkOf(from);
		const isKnown = this.#known.has(name, address);
		const waitMs = Math.max(
			this.#places.waitMs(placeOf(name, address)),
			isKnown ? 0 : this.#addresses.waitMs(address),
			isKnown || "token" in proof ? 0 : this.#keys.waitMs(name),
		);
		if (waitMs > 0) throw new SignInBlocked(waitMs);
		return {
			succeeded: () => {
				this.#known.add(name, address);
				this.#places.clear(placeOf(name, address));
			},
			failed: () => {
				const isFirst = this.#places.add(placeOf(name, address), 1) === 1;
				if (this.#known.has(name, address)) return;
				// A program with a wrong key or an old token tries it all day, and must not
				// make its neighbours wait.
				if (isFirst) this.#addresses.add(address, 1);
				if ("accessKey" in proof) this.#keys.add(name, 1);
			},
		};
	}
}

/** Neither is called when it stays open whether the proof is right. */
export interface ProofAttempt {
	succeeded(): void;
	failed(): void;
}

/** Tokens are kept nowhere, also not in memory. */
function nameOf(proof: Proof): string {
	if ("token" in proof) return hash("sha256", proof.token, "base64url");
	// A copy: a piece of a header would keep all of the header, signature included.
	return Buffer.from(proof.accessKey.slice(0, NAME_LIMIT)).toString();
}

function placeOf(name: string, address: string): string {
	// No address holds a space.
	return `${address} ${name}`;
}

/** Where somebody has signed in before; only the latest are remembered. */
class Places {
	readonly #places = new Recent<true>(MAX_REMEMBERED);

	has(name: string, address: string): boolean {
		return this.#places.get(placeOf(name, address)) === true;
	}

	/** Again too: whoever keeps coming stays known. */
	add(name: string, address: string): void {
		this.#places.set(placeOf(name, address), true);
	}
}

/** Counts, and how long whoever has reached his free attempts must wait. */
class Failures {
	readonly #counts = new Recent<{ count: number; lastAtMs: number }>(
		MAX_REMEMBERED,
	);
	readonly #free: number;
	readonly #now: Clock;

	constructor(free: number, now: Clock) {
		this.#free = free;
		this.#now = now;
	}

	/** 0: the next attempt may be made. */
	waitMs(key: string): number {
		const failures = this.#counts.get(key);
		if (!failures || failures.count < this.#free) return 0;
		const nowMs = this.#now().getTime();
		// A clock that was put back must not make anybody wait for it.
		if (failures.lastAtMs > nowMs) failures.lastAtMs = nowMs;
		const delayMs = Math.min(
			1_000 * 2 ** (failures.count - this.#free),
			MAX_DELAY_MS,
		);
		return Math.max(0, failures.lastAtMs + delayMs - nowMs);
	}

	/** @returns how many they are now. */
	add(key: string, by: 1 | -1): number {
		const nowMs = this.#now().getTime();
		const before = this.#counts.get(key);
		const kept =
			before && nowMs - before.lastAtMs < FORGET_AFTER_MS ? before.count : 0;
		const count = Math.max(0, kept + by);
		this.#counts.set(key, { count, lastAtMs: nowMs });
		return count;
	}

	clear(key: string): void {
		this.#counts.delete(key);
	}
}

/** An IPv4 address as it is; of an IPv6 address the network a customer is given, its first 64 bits. */
export function networkOf(address: string): string {
	if (!address.includes(":")) return address;
	const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
	if (mapped?.[1]) return mapped[1];
	const [head = "", tail] = address.split("::");
	const groups = head === "" ? [] : head.split(":");
	if (tail !== undefined) {
		const last = tail === "" ? [] : tail.split(":");
		while (groups.length + last.length < 8) groups.push("0");
	}
	return groups.slice(0, 4).join(":");
}
