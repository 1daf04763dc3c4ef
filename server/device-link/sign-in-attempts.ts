/**
 * Wrong sign-ins, counted per device and per address, in memory and bounded. Guessing
 * becomes hopeless, and a device with a wrong secret cheap to answer; neither somebody
 * who guesses at a device from afar nor one bad device behind a shared address may keep
 * the rightful ones out.
 */

export interface AttemptLimits {
	/** Wrong sign-ins in a row of one device before it has to wait. */
	perDevice: number;
	/** The same of one address, where a whole fleet may live. */
	perAddress: number;
	/** The same, before even devices that have not failed themselves have to wait. */
	perAddressAtAll: number;
	/** How long until all of them are forgiven; one after the other. */
	forgivenMs: number;
	/** Devices and addresses remembered. */
	remembered: number;
}

const defaults: AttemptLimits = {
	perDevice: 10,
	perAddress: 200,
	perAddressAtAll: 10_000,
	forgivenMs: 60_000,
	remembered: 50_000,
};

export class SignInAttempts {
	readonly #devices: Buckets;
	readonly #addresses: Buckets;
	readonly #crowds: Buckets;
	/** Where each device last signed in from: it is let in from there whoever else fails. */
	readonly #homes = new Map<string, string>();
	readonly #remembered: number;

	constructor(limits: Partial<AttemptLimits> = {}) {
		const all = { ...defaults, ...limits };
		this.#remembered = all.remembered;
		this.#devices = new Buckets(all.perDevice, all.forgivenMs, all.remembered);
		this.#addresses = new Buckets(
			all.perAddress,
			all.forgivenMs,
			all.remembered,
		);
		this.#crowds = new Buckets(
			all.perAddressAtAll,
			all.forgivenMs,
			all.remembered,
		);
	}

	/** Cheap: answered before the store is asked. */
	mayTry(deviceId: string, address: string): boolean {
		const network = networkOf(address);
		const atHome = this.#homes.get(deviceId) === network;
		return (
			!this.#devices.isFull(atHome ? homeKey(deviceId) : deviceId) &&
			// Where too much fails, whoever has not failed himself may still try: behind one
			// address may live a fleet that comes back all at once.
			(atHome ||
				!this.#addresses.isFull(network) ||
				(!this.#devices.isCounting(deviceId) && !this.#crowds.isFull(network)))
		);
	}

	failed(deviceId: string, address: string): void {
		const network = networkOf(address);
		const atHome = this.#homes.get(deviceId) === network;
		this.#devices.add(atHome ? homeKey(deviceId) : deviceId);
		this.#addresses.add(network);
		this.#crowds.add(network);
	}

	succeeded(deviceId: string, address: string): void {
		const network = networkOf(address);
		if (this.#homes.get(deviceId) === network) return;
		this.#homes.delete(deviceId);
		if (this.#homes.size >= this.#remembered) forgetOldest(this.#homes);
		this.#homes.set(deviceId, network);
	}
}

/** Failures at a device's own address are counted apart from those elsewhere. */
function homeKey(deviceId: string): string {
	// No device id holds a space.
	return `${deviceId} home`;
}

/** Counters that run empty by themselves: one number each, the time at which it is empty. */
class Buckets {
	readonly #emptyAt = new Map<string, number>();
	readonly #eachMs: number;
	readonly #fullMs: number;
	readonly #remembered: number;

	constructor(size: number, forgivenMs: number, remembered: number) {
		this.#eachMs = forgivenMs / size;
		this.#fullMs = forgivenMs - this.#eachMs;
		this.#remembered = remembered;
	}

	isFull(key: string): boolean {
		const emptyAt = this.#emptyAt.get(key);
		if (emptyAt === undefined) return false;
		return emptyAt - performance.now() > this.#fullMs;
	}

	/** Whether a failure is not forgiven yet. */
	isCounting(key: string): boolean {
		return (this.#emptyAt.get(key) ?? 0) > performance.now();
	}

	add(key: string): void {
		const now = performance.now();
		const emptyAt = Math.max(this.#emptyAt.get(key) ?? now, now);
		// Put at the end again: the one that failed longest ago is forgotten first.
		this.#emptyAt.delete(key);
		if (this.#emptyAt.size >= this.#remembered) forgetOldest(this.#emptyAt);
		this.#emptyAt.set(key, emptyAt + this.#eachMs);
	}
}

function forgetOldest(map: Map<string, unknown>): void {
	for (const key of map.keys()) {
		map.delete(key);
		return;
	}
}

/** An IPv4 address as it is; of an IPv6 address the network a customer is given, its first 64 bits. */
export function networkOf(address: string): string {
	const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address);
	if (mapped?.[1]) return mapped[1];
	if (!address.includes(":")) return address;
	const [head = "", tail] = address.split("::");
	const groups = head === "" ? [] : head.split(":");
	if (tail !== undefined) {
		const last = tail === "" ? [] : tail.split(":");
		while (groups.length + last.length < 8) groups.push("0");
	}
	return groups.slice(0, 4).join(":");
}
