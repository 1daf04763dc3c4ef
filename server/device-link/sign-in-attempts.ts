/**
 * Wrong sign-ins, counted per device and per address, in memory and bounded. Whoever has
 * used up his attempts waits, twice as long every time. Guessing becomes hopeless, and a
 * device with a wrong secret cheap to answer; neither somebody who guesses at a device
 * from afar nor one bad device behind a shared address may keep the rightful ones out.
 */
import { Recent } from "../access/recent.ts";
import { networkOf } from "../access/sign-in-limits.ts";

export interface AttemptLimits {
	/** Wrong sign-ins in a row of one device before it has to wait. */
	perDevice: number;
	/** The same of one address, where a whole fleet may live. */
	perAddress: number;
	/** The same, before even devices that have not failed themselves have to wait. */
	perAddressAtAll: number;
	/** How long until all of them are forgiven; one after the other. */
	forgivenMs: number;
	/** The longest that a device or an address has to wait for its next attempt. */
	longestDelayMs: number;
	/** Devices and addresses remembered. */
	remembered: number;
}

const defaults: AttemptLimits = {
	perDevice: 10,
	perAddress: 200,
	perAddressAtAll: 10_000,
	forgivenMs: 60_000,
	longestDelayMs: 5 * 60_000,
	remembered: 50_000,
};

export class SignInAttempts {
	readonly #devices: Buckets;
	/** Of devices at their own address, counted apart from those elsewhere. */
	readonly #atHome: Buckets;
	readonly #addresses: Buckets;
	readonly #crowds: Buckets;
	/** Where each device last signed in from: it is let in from there whoever else fails. */
	readonly #homes: Recent<string>;

	constructor(limits: Partial<AttemptLimits> = {}) {
		const all = { ...defaults, ...limits };
		this.#homes = new Recent(all.remembered);
		this.#devices = new Buckets(all.perDevice, all);
		this.#addresses = new Buckets(all.perAddress, all);
		// A neighbour may guess in a device's name, and a fleet may live behind the address
		// of one that does: the wait stays that for one attempt to be forgiven.
		const steady = { ...all, longestDelayMs: 0 };
		this.#atHome = new Buckets(all.perDevice, steady);
		this.#crowds = new Buckets(all.perAddressAtAll, steady);
	}

	/** Cheap: answered before the store is asked. */
	mayTry(deviceId: string, address: string): boolean {
		const network = networkOf(address);
		if (this.#homes.get(deviceId) === network)
			return !this.#atHome.isFull(deviceId);
		return (
			!this.#devices.isFull(deviceId) &&
			// Where too much fails, whoever has not failed himself may still try: behind one
			// address may live a fleet that comes back all at once.
			(!this.#addresses.isFull(network) ||
				(!this.#devices.isCounting(deviceId) && !this.#crowds.isFull(network)))
		);
	}

	failed(deviceId: string, address: string): void {
		const network = networkOf(address);
		const atHome = this.#homes.get(deviceId) === network;
		(atHome ? this.#atHome : this.#devices).add(deviceId);
		this.#addresses.add(network);
		this.#crowds.add(network);
	}

	succeeded(deviceId: string, address: string): void {
		// Again too: whoever keeps coming stays known.
		this.#homes.set(deviceId, networkOf(address));
	}
}

/** How long a bucket must have been empty until it is as if it had never been full. */
const STRIKES_KEPT_MS = 60 * 60_000;

interface Bucket {
	/** On the clock of `performance.now()`, milliseconds. */
	emptyAtMs: number;
	/** How often it has been full. */
	strikes: number;
}

/** Counters that run empty by themselves, the slower the more often they have been full. */
class Buckets {
	readonly #buckets: Recent<Bucket>;
	readonly #eachMs: number;
	readonly #fullMs: number;
	readonly #longestDelayMs: number;

	constructor(
		size: number,
		limits: Pick<AttemptLimits, "forgivenMs" | "longestDelayMs" | "remembered">,
	) {
		this.#eachMs = limits.forgivenMs / size;
		this.#fullMs = limits.forgivenMs - this.#eachMs;
		this.#longestDelayMs = Math.max(limits.longestDelayMs, this.#eachMs);
		this.#buckets = new Recent(limits.remembered);
	}

	isFull(key: string): boolean {
		const bucket = this.#buckets.get(key);
		if (bucket === undefined) return false;
		return bucket.emptyAtMs - performance.now() > this.#fullMs;
	}

	/** Whether a failure is not forgiven yet. */
	isCounting(key: string): boolean {
		return (this.#buckets.get(key)?.emptyAtMs ?? 0) > performance.now();
	}

	add(key: string): void {
		const nowMs = performance.now();
		const before = this.#buckets.get(key);
		let emptyAtMs = Math.max(before?.emptyAtMs ?? nowMs, nowMs) + this.#eachMs;
		let strikes =
			before && nowMs - before.emptyAtMs < STRIKES_KEPT_MS ? before.strikes : 0;
		if (emptyAtMs - nowMs > this.#fullMs) {
			const delayMs = Math.min(
				this.#eachMs * 2 ** strikes,
				this.#longestDelayMs,
			);
			emptyAtMs = nowMs + this.#fullMs + delayMs;
			strikes++;
		}
		this.#buckets.set(key, { emptyAtMs, strikes });
	}
}
