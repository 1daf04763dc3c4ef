/**
 * What can go wrong with a device, by name, so that an operator can rehearse it: each
 * fault befalls a share of the fleet, and one device may have several.
 */
import { shuffledIndexes } from "./random.ts";

export type FaultName =
	| "slow"
	| "drop"
	| "fail"
	| "silent"
	| "mute"
	| "stale"
	| "reboot"
	| "offline";

export interface FaultSpec {
	name: FaultName;
	/** In the unit of the fault, see `faultCatalogue`. */
	value: number;
	/** Of the fleet, 0 to 1. */
	share: number;
}

/** How one device departs from the well-behaved one; absent means it does not. */
export interface Behaviour {
	/** Bytes of the package per second. */
	downloadBytesPerSecond?: number;
	/** How many times its connection breaks in the middle of a download. */
	downloadDrops?: number;
	/** Every upgrade ends with this result code. */
	failCode?: number;
	/** Takes packages, never reports on them. */
	silent?: boolean;
	/** Does not even answer when asked for its versions. */
	mute?: boolean;
	/** Reports success with the version it had before. */
	stale?: boolean;
	/** Disconnects after the installation and comes back after so many milliseconds. */
	rebootMs?: number;
	/** First connects after so many milliseconds. */
	connectAfterMs?: number;
}

interface Fault {
	meaning: string;
	/** What the number after the colon counts; absent: there is none. */
	unit?: string;
	default: number;
	min: number;
	max: number;
	apply: (value: number) => Behaviour;
}

const flag = { default: 0, min: 0, max: 0 };

export const faultCatalogue: Readonly<Record<FaultName, Fault>> = {
	slow: {
		meaning: "downloads slowly",
		unit: "KiB/s",
		default: 32,
		min: 1,
		max: 1_000_000,
		apply: (value) => ({ downloadBytesPerSecond: value * 1024 }),
	},
	drop: {
		meaning:
			"loses its connections in the middle of the download, then resumes",
		unit: "times",
		default: 1,
		min: 1,
		max: 1000,
		apply: (value) => ({ downloadDrops: value }),
	},
	fail: {
		meaning: "reports failure with a result code",
		unit: "result code",
		default: 10,
		min: 1,
		max: 65_535,
		apply: (value) => ({ failCode: value }),
	},
	silent: {
		meaning: "takes the package and never reports",
		...flag,
		apply: () => ({ silent: true }),
	},
	mute: {
		meaning: "does not answer when asked for its versions",
		...flag,
		apply: () => ({ mute: true }),
	},
	stale: {
		meaning: "reports success with its old version",
		...flag,
		apply: () => ({ stale: true }),
	},
	reboot: {
		meaning: "disconnects after the installation and comes back",
		unit: "seconds away",
		default: 2,
		min: 0,
		max: 3600,
		apply: (value) => ({ rebootMs: value * 1000 }),
	},
	offline: {
		meaning: "connects late",
		unit: "seconds late",
		default: 30,
		min: 0,
		max: 86_400,
		apply: (value) => ({ connectAfterMs: value * 1000 }),
	},
};

/** A fault that was not understood; the message says how it is written. */
export class FaultError extends Error {
	override name = "FaultError";
}

/**
 * Reads `drop=0.1`, `fail:10=0.05` (result code 10) or `slow` (the whole fleet):
 * name, optional value after a colon, optional share after an equals sign.
 *
 * @throws FaultError
 */
export function parseFault(text: string): FaultSpec {
	const match = /^([a-z]+)(?::([^=]*))?(?:=(.*))?$/.exec(text);
	const name = match?.[1] ?? "";
	if (!match || !isFaultName(name)) {
		throw new FaultError(
			`There is no fault "${text}". Faults are ${Object.keys(faultCatalogue).join(", ")}; for example drop=0.1 for a tenth of the fleet.`,
		);
	}
	const fault = faultCatalogue[name];
	let value = fault.default;
	if (match[2] !== undefined) {
		if (!fault.unit)
			throw new FaultError(
				`The fault ${name} takes no value: write ${name}=0.1 for a tenth of the fleet.`,
			);
		value = readNumber(match[2]);
		if (
			!(value >= fault.min && value <= fault.max) ||
			(name !== "slow" && !Number.isInteger(value))
		) {
			throw new FaultError(
				`The value of ${name} (${fault.unit}) must be from ${fault.min} to ${fault.max}, not "${match[2]}".`,
			);
		}
	}
	const share = match[3] === undefined ? 1 : readNumber(match[3]);
	if (!(share >= 0 && share <= 1)) {
		const hint = fault.unit
			? ` A value (${fault.unit}) goes after a colon: ${name}:${fault.default}=0.1.`
			: "";
		throw new FaultError(
			`The share of ${name} must be from 0 to 1, not "${match[3]}".${hint}`,
		);
	}
	return { name, value, share };
}

/**
 * The behaviour of each of `count` devices. Each fault gets exactly its share,
 * rounded; which devices it befalls follows from the seed, independently of the
 * other faults.
 */
export function assignFaults(
	specs: readonly FaultSpec[],
	count: number,
	seed: number,
): Behaviour[] {
	const behaviours: Behaviour[] = Array.from({ length: count }, () => ({}));
	// Two faults of one name, such as fail:5 and fail:10, befall different devices
	// as long as their shares do not add up to more than the fleet.
	const used = new Map<FaultName, number>();
	for (const spec of specs) {
		const behaviour = faultCatalogue[spec.name].apply(spec.value);
		const order = shuffledIndexes(count, seed, spec.name);
		const from = used.get(spec.name) ?? 0;
		const to = from + Math.round(spec.share * count);
		used.set(spec.name, to);
		for (let i = from; i < to; i++) {
			Object.assign(behaviours[order[i % count] as number] ?? {}, behaviour);
		}
	}
	return behaviours;
}

function isFaultName(name: string): name is FaultName {
	return Object.hasOwn(faultCatalogue, name);
}

/** NaN when the text is no plain decimal number. */
function readNumber(text: string): number {
	return /^\d+(\.\d+)?$/.test(text) ? Number(text) : Number.NaN;
}
