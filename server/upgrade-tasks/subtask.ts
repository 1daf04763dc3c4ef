/**
 * One device's upgrade. Pure: what happened goes in, what becomes of it comes out;
 * no clock, no store, no socket.
 *
 * The states, and what ends each:
 * - Waitting: stands in a task that has not reached it yet, or waits to be confirmed.
 *   Started by the rollout.
 * - Processing: an exchange with the device runs; its phase says how far it is.
 *   - await_online: the device is not connected, or was not spoken to yet. Ends when
 *     it connects, or with the online time limit.
 *   - await_version: a version query is out. Ends with the version report, or with
 *     the time limit for it; a new connection asks again and starts the limit anew.
 *   - delivered: the notice is out. Ends like reporting.
 *   - reporting: the device reported progress. Both end with a success or failure
 *     report, with a version report that proves the new version, or after the time
 *     limit in verify_version. A device that connects again is asked for its version
 *     and, when that is still the old one, gets the notice again, not too often.
 *   - verify_version: time is up and the device is asked once more. Ends with the
 *     version report or a short time limit.
 * - FailWaitRetry: failed with retries left; the next attempt begins when it is due.
 * - Success, Fail, Stopped, Removed: over. Nothing a device says changes them; a retry
 *   asked for by an operator brings Fail and Stopped back to Waitting.
 *
 * A success is believed only with the new version in the report. A result code other
 * than 0 decides before the version does: devices in the field report a failure and
 * the new version in one message. Result 0 with progress 100 and the old version is
 * not the end: devices send that after the download and install afterwards.
 */
import type { ExchangePhase, SubtaskStatus } from "../database/tables.ts";
import {
	type Failure,
	failureOfResultCode,
	failures,
	invalidProgress,
} from "./failures.ts";

/** The drawn moves; docs/states.md shows the same table. */
export const subtaskMoves: Readonly<
	Record<SubtaskStatus, readonly SubtaskStatus[]>
> = {
	Waitting: ["Processing", "Fail", "FailWaitRetry", "Stopped", "Removed"],
	Processing: ["Success", "Fail", "FailWaitRetry", "Stopped", "Removed"],
	FailWaitRetry: ["Waitting", "Processing", "Fail", "Stopped", "Removed"],
	Success: [],
	Fail: ["Waitting"],
	Stopped: ["Waitting"],
	Removed: [],
};

export const unfinishedStatuses = [
	"Waitting",
	"Processing",
	"FailWaitRetry",
] as const satisfies SubtaskStatus[];

/** What a retry asked for by an operator takes up again. */
export const retriableStatuses = [
	"Fail",
	"FailWaitRetry",
	"Stopped",
] as const satisfies SubtaskStatus[];

/** How the device is spoken to about this task's part. */
export type ExchangeForm =
	/** Firmware or software, as every SDK knows it. */
	| "classic"
	/** A module, in messages that name it. */
	| "native"
	/** A module, dressed as firmware for an unmodified SDK, which cannot report its version. */
	| "compatible"
	/** A module, and the device has not shown that it knows of modules. */
	| "none";

export interface Exchange {
	phase: ExchangePhase;
	/** A version query is out whose answer decides about repeating the notice. */
	asked: boolean;
	packageId: string | undefined;
	/** When the newest notice was issued. */
	offeredAt: Date | undefined;
	/** The end of the time that began with the first notice. */
	expiresAt: Date | undefined;
	dueAt: Date | undefined;
	progress: number | undefined;
}

export interface Goal {
	version: string;
	form: ExchangeForm;
	packages: readonly { packageId: string; sourceVersions: readonly string[] }[];
	/** The version last reported for this part of the device. */
	currentVersion: string | undefined;
}

export interface Limits {
	versionTimeoutMs: number;
	upgradeTimeoutMs: number;
	resendIntervalMs: number;
}

export type Happening =
	/** The device has connected, at that time. */
	| { kind: "connected"; since: Date }
	/** The device was connected before the rollout reached it. */
	| { kind: "present" }
	/** The device reported the version of the part this task is about. */
	| { kind: "version"; version: string }
	| {
			kind: "progress";
			resultCode: number;
			progress: number | undefined;
			/** The version running now; empty when the device gave none. */
			version: string;
			description: string | undefined;
	  }
	/** `dueAt` has come. */
	| { kind: "due"; isHere: boolean };

export type Send = "version_query" | "notice";

export type Consequence =
	| { kind: "nothing" }
	| { kind: "goes_on"; exchange: Exchange; send?: Send }
	| { kind: "succeeded"; output: string }
	| { kind: "failed"; failure: Failure };

export const SAME_VERSION =
	"The current version is the same as the target version";
export const UPGRADED = "The device reported the target version";

const nothing: Consequence = { kind: "nothing" };
const failed = (failure: Failure): Consequence => ({ kind: "failed", failure });
const succeeded = (output: string): Consequence => ({
	kind: "succeeded",
	output,
});

/** How an exchange begins once the rollout has started it. */
export function startedExchange(now: Date, onlineTimeoutMs: number): Exchange {
	return {
		phase: "await_online",
		asked: false,
		packageId: undefined,
		offeredAt: undefined,
		expiresAt: undefined,
		dueAt: later(now, onlineTimeoutMs),
		progress: undefined,
	};
}

export function after(
	exchange: Exchange,
	goal: Goal,
	happening: Happening,
	limits: Limits,
	now: Date,
): Consequence {
	switch (happening.kind) {
		case "connected":
			// What it says before it is greeted may have brought it a notice already.
			// One that lies ahead is of the time before the clock was put back.
			return exchange.offeredAt &&
				exchange.offeredAt > happening.since &&
				exchange.offeredAt <= now
				? nothing
				: afterConnected(exchange, goal, limits, now);
		case "present":
			// In any later phase its connection has been answered to already.
			return exchange.phase === "await_online"
				? afterConnected(exchange, goal, limits, now)
				: nothing;
		case "version":
			return afterVersion(exchange, goal, happening.version, limits, now);
		case "progress":
			return afterProgress(exchange, goal, happening);
		case "due":
			return afterDue(exchange, goal, happening.isHere, limits, now);
		default:
			return happening satisfies never;
	}
}

function afterConnected(
	exchange: Exchange,
	goal: Goal,
	limits: Limits,
	now: Date,
): Consequence {
	switch (exchange.phase) {
		case "await_online":
		case "await_version":
			if (goal.form === "none") return failed(failures.unsupportedPackageType);
			if (goal.form === "compatible") {
				// No query can ask for the module: what was last reported or installed counts.
				return goal.currentVersion === goal.version
					? succeeded(SAME_VERSION)
					: offer(exchange, goal, goal.currentVersion, limits, now);
			}
			return {
				kind: "goes_on",
				exchange: {
					...exchange,
					phase: "await_version",
					dueAt: later(now, limits.versionTimeoutMs),
				},
				send: "version_query",
			};
		case "delivered":
		case "reporting":
			// It may have rebooted into the new version, or have lost its download.
			if (goal.form === "compatible") return repeat(exchange, limits, now);
			return {
				kind: "goes_on",
				exchange: { ...exchange, asked: true },
				send: "version_query",
			};
		case "verify_version":
			return { kind: "goes_on", exchange, send: "version_query" };
		default:
			return exchange.phase satisfies never;
	}
}

function afterVersion(
	exchange: Exchange,
	goal: Goal,
	version: string,
	limits: Limits,
	now: Date,
): Consequence {
	switch (exchange.phase) {
		case "await_online":
			// Not asked yet: the query that follows the connection decides.
			return nothing;
		case "await_version":
			return version === goal.version
				? succeeded(SAME_VERSION)
				: offer(exchange, goal, version, limits, now);
		case "delivered":
		case "reporting":
			if (version === goal.version) return succeeded(UPGRADED);
			// A spontaneous report of the old version says nothing: it may be downloading.
			if (!exchange.asked) return nothing;
			return repeatFor(exchange, goal, version, limits, now);
		case "verify_version":
			return version === goal.version
				? succeeded(UPGRADED)
				: failed(failures.resultTimeout);
		default:
			return exchange.phase satisfies never;
	}
}

function afterProgress(
	exchange: Exchange,
	goal: Goal,
	report: Happening & { kind: "progress" },
): Consequence {
	switch (exchange.phase) {
		case "await_online":
		case "await_version":
			// Nothing was offered in this exchange: an echo of an older one.
			return nothing;
		case "delivered":
		case "reporting":
		case "verify_version":
			break;
		default:
			return exchange.phase satisfies never;
	}
	const { resultCode, progress, version, description } = report;
	const proven = version === goal.version;
	if (resultCode !== 0) {
		if (resultCode === 3 && proven) return succeeded(SAME_VERSION);
		return failed(failureOfResultCode(resultCode, description));
	}
	if (proven) return succeeded(UPGRADED);
	if (progress !== undefined && (progress < 0 || progress > 100))
		return failed(invalidProgress(progress));
	if (exchange.phase === "verify_version") return nothing;
	return {
		kind: "goes_on",
		exchange: {
			...exchange,
			phase: "reporting",
			progress: progress ?? exchange.progress,
			// It is at work: a repetition that was waiting its turn is not needed.
			asked: false,
			dueAt: exchange.expiresAt,
		},
	};
}

function afterDue(
	exchange: Exchange,
	goal: Goal,
	isHere: boolean,
	limits: Limits,
	now: Date,
): Consequence {
	switch (exchange.phase) {
		case "await_online":
			return failed(failures.onlineTimeout);
		case "await_version":
			return failed(failures.versionTimeout);
		case "delivered":
		case "reporting":
			if (exchange.expiresAt !== undefined && now < exchange.expiresAt) {
				// A repetition that was put off. One that is not here is asked when it comes.
				return isHere
					? repeat(exchange, limits, now)
					: {
							kind: "goes_on",
							exchange: { ...exchange, dueAt: exchange.expiresAt },
						};
			}
			if (goal.form === "compatible") return failed(failures.resultTimeout);
			return {
				kind: "goes_on",
				exchange: {
					...exchange,
					phase: "verify_version",
					asked: true,
					dueAt: later(now, limits.versionTimeoutMs),
				},
				send: "version_query",
			};
		case "verify_version":
			return failed(failures.checkTimeout);
		default:
			return exchange.phase satisfies never;
	}
}

/** The first notice: chooses the package by the version the device has. */
function offer(
	exchange: Exchange,
	goal: Goal,
	version: string | undefined,
	limits: Limits,
	now: Date,
): Consequence {
	const chosen = packageFor(goal.packages, version);
	if (!chosen) return failed(failures.noPackageForVersion);
	const expiresAt = later(now, limits.upgradeTimeoutMs);
	return {
		kind: "goes_on",
		exchange: {
			...exchange,
			phase: "delivered",
			asked: false,
			packageId: chosen.packageId,
			offeredAt: now,
			expiresAt,
			dueAt: expiresAt,
			progress: undefined,
		},
		send: "notice",
	};
}

/** The same notice again with a fresh token, or later when the last one is too recent. */
function repeat(exchange: Exchange, limits: Limits, now: Date): Consequence {
	if (isOver(exchange, now)) return nothing;
	const allowedAt = exchange.offeredAt
		? later(exchange.offeredAt, limits.resendIntervalMs)
		: now;
	if (now < allowedAt) {
		const dueAt =
			exchange.expiresAt && exchange.expiresAt < allowedAt
				? exchange.expiresAt
				: allowedAt;
		return { kind: "goes_on", exchange: { ...exchange, asked: false, dueAt } };
	}
	return {
		kind: "goes_on",
		exchange: {
			...exchange,
			phase: "delivered",
			asked: false,
			offeredAt: now,
			dueAt: exchange.expiresAt,
		},
		send: "notice",
	};
}

/** Its time is up; after an outage it gets a moment to say how it went, and no more. */
function isOver({ expiresAt }: Exchange, now: Date): boolean {
	return expiresAt !== undefined && expiresAt <= now;
}

/** The notice again for a device that came back with this version, which need not be the one it had. */
function repeatFor(
	exchange: Exchange,
	goal: Goal,
	version: string,
	limits: Limits,
	now: Date,
): Consequence {
	if (isOver(exchange, now)) return failed(failures.resultTimeout);
	const chosen = packageFor(goal.packages, version);
	if (!chosen) return failed(failures.noPackageForVersion);
	return repeat({ ...exchange, packageId: chosen.packageId }, limits, now);
}

/**
 * The package whose source list names the version, else one for every version, else
 * none. A device whose version is unknown takes only the latter.
 */
export function packageFor<P extends { sourceVersions: readonly string[] }>(
	packages: readonly P[],
	version: string | undefined,
): P | undefined {
	return (
		packages.find(
			({ sourceVersions }) =>
				version !== undefined && sourceVersions.includes(version),
		) ?? packages.find(({ sourceVersions }) => sourceVersions.length === 0)
	);
}

function later(now: Date, ms: number): Date {
	return new Date(now.getTime() + ms);
}
