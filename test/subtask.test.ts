import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ExchangePhase } from "../server/database/tables.ts";
import {
	after,
	type Consequence,
	type Exchange,
	type ExchangeForm,
	type Goal,
	type Happening,
	packageFor,
	startedExchange,
} from "../server/upgrade-tasks/subtask.ts";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const limits = {
	versionTimeoutMs: 3 * MINUTE,
	upgradeTimeoutMs: 24 * HOUR,
	resendIntervalMs: 10 * MINUTE,
};
const start = new Date("2026-01-29T08:00:00.000Z");
const at = (minutes: number) => new Date(start.getTime() + minutes * MINUTE);

const goal = (
	form: ExchangeForm = "classic",
	currentVersion?: string,
): Goal => ({
	version: "v2",
	form,
	packages: [{ packageId: "full", sourceVersions: [] }],
	currentVersion,
});

/** An exchange in the phase, whose notice went out at `start`. */
function inPhase(
	phase: ExchangePhase,
	change: Partial<Exchange> = {},
): Exchange {
	const offered =
		phase === "delivered" ||
		phase === "reporting" ||
		phase === "verify_version";
	return {
		phase,
		asked: false,
		packageId: offered ? "full" : undefined,
		offeredAt: offered ? start : undefined,
		expiresAt: offered ? at(24 * 60) : undefined,
		dueAt: offered ? at(24 * 60) : at(3),
		progress: undefined,
		...change,
	};
}

const connected: Happening = {
	kind: "connected",
	since: new Date(8_640_000_000_000_000),
};
const present: Happening = { kind: "present" };
const due: Happening = { kind: "due", isHere: true };
const dueElsewhere: Happening = { kind: "due", isHere: false };
const version = (text: string): Happening => ({
	kind: "version",
	version: text,
});
const progress = (
	resultCode: number,
	text: string,
	percent?: number,
	description?: string,
): Happening => ({
	kind: "progress",
	resultCode,
	progress: percent,
	version: text,
	description,
});

function summary(consequence: Consequence): string {
	switch (consequence.kind) {
		case "nothing":
			return "nothing";
		case "goes_on":
			return (
				consequence.exchange.phase +
				(consequence.send ? ` + ${consequence.send}` : "")
			);
		case "succeeded":
			return `Success: ${consequence.output}`;
		case "failed":
			return `Fail ${consequence.failure.code}: ${consequence.failure.message}`;
		default:
			return consequence satisfies never;
	}
}

const SAME = "Success: The current version is the same as the target version";
const UPGRADED = "Success: The device reported the target version";

const cases: [
	title: string,
	Exchange,
	Goal,
	Happening,
	minutes: number,
	expected: string,
][] = [
	[
		"a device that connects is asked for its version",
		inPhase("await_online"),
		goal(),
		connected,
		1,
		"await_version + version_query",
	],
	[
		"a device that is connected already is asked for its version",
		inPhase("await_online"),
		goal(),
		present,
		1,
		"await_version + version_query",
	],
	[
		"a device that was asked is not asked again because the rollout came by",
		inPhase("await_version"),
		goal(),
		present,
		2,
		"nothing",
	],
	[
		"a device that connects again before it answered is asked again",
		inPhase("await_version"),
		goal(),
		connected,
		2,
		"await_version + version_query",
	],
	[
		"a device that never connects fails",
		inPhase("await_online"),
		goal(),
		due,
		25 * 60,
		"Fail IOTDA.005010: Waiting for the device online timeout",
	],
	[
		"a device that does not answer the query fails",
		inPhase("await_version"),
		goal(),
		due,
		3,
		"Fail IOTDA.005010: Waiting for report device firmware version timeout",
	],
	[
		"a version reported before the query is not an answer",
		inPhase("await_online"),
		goal(),
		version("v2"),
		0,
		"nothing",
	],
	[
		"a device that has the version already succeeds without a notice",
		inPhase("await_version"),
		goal(),
		version("v2"),
		1,
		SAME,
	],
	[
		"a device with another version gets the notice",
		inPhase("await_version"),
		goal(),
		version("v1"),
		1,
		"delivered + notice",
	],
	[
		"a downgrade is allowed",
		inPhase("await_version"),
		{ ...goal(), version: "v0" },
		version("v1"),
		1,
		"delivered + notice",
	],
	[
		"a version that no package can upgrade from fails",
		inPhase("await_version"),
		{
			...goal(),
			packages: [{ packageId: "diff", sourceVersions: ["v0", "v1.5"] }],
		},
		version("v1"),
		1,
		"Fail IOTDA.005004: Upgrade failed. The current version cannot be upgraded to the target version.",
	],
	[
		"a report before anything was offered is an echo",
		inPhase("await_version"),
		goal(),
		progress(0, "v2", 100),
		1,
		"nothing",
	],
	[
		"progress is kept",
		inPhase("delivered"),
		goal(),
		progress(0, "v1", 40),
		5,
		"reporting",
	],
	[
		"progress 100 with the old version is not the end",
		inPhase("reporting"),
		goal(),
		progress(0, "v1", 100),
		5,
		"reporting",
	],
	[
		"result 0 with the target version is a success",
		inPhase("reporting"),
		goal(),
		progress(0, "v2", 100),
		9,
		UPGRADED,
	],
	[
		"result 0 with the target version succeeds without progress",
		inPhase("delivered"),
		goal(),
		progress(0, "v2"),
		9,
		UPGRADED,
	],
	[
		"a spontaneous version report of the target is a success",
		inPhase("reporting"),
		goal(),
		version("v2"),
		9,
		UPGRADED,
	],
	[
		"a spontaneous report of the old version says nothing",
		inPhase("reporting"),
		goal(),
		version("v1"),
		9,
		"nothing",
	],
	[
		"a failure with the new version is a failure",
		inPhase("reporting"),
		goal(),
		progress(1, "v2", 100),
		9,
		"Fail IOTDA.005011: Device in use",
	],
	[
		"already the latest, with the target version, is a success",
		inPhase("delivered"),
		goal(),
		progress(3, "v2"),
		9,
		SAME,
	],
	[
		"already the latest, with another version, is a failure",
		inPhase("delivered"),
		goal(),
		progress(3, "v1"),
		9,
		"Fail IOTDA.005011: Already the latest version",
	],
	[
		"a failure without a version is a failure",
		inPhase("delivered"),
		goal(),
		progress(6, ""),
		9,
		"Fail IOTDA.005011: Waiting for device downloaded package timeout",
	],
	[
		"no room: the vendor's text",
		inPhase("delivered"),
		goal(),
		progress(5, "v1", 0, "disk full"),
		9,
		"Fail IOTDA.005011: Not enough storage for the new firmware package",
	],
	[
		"a damaged file: the vendor's text",
		inPhase("reporting"),
		goal(),
		progress(7, "v1"),
		9,
		"Fail IOTDA.005011: Integrity check failure for new downloaded package",
	],
	[
		"internal error: the device's own words",
		inPhase("reporting"),
		goal(),
		progress(255, "v1", 3, "flash worn out"),
		9,
		"Fail IOTDA.005011: flash worn out",
	],
	[
		"a result code outside the table is a failure",
		inPhase("reporting"),
		goal(),
		progress(77, "v1"),
		9,
		"Fail IOTDA.005009: Upgrade failed. Invalid result_code 77.",
	],
	[
		"progress above 100 is a failure",
		inPhase("reporting"),
		goal(),
		progress(0, "v1", 150),
		9,
		"Fail IOTDA.005008: Upgrade failed. Reported progress 150% is invalid.",
	],
	[
		"progress below 0 is a failure",
		inPhase("reporting"),
		goal(),
		progress(0, "v1", -1),
		9,
		"Fail IOTDA.005008: Upgrade failed. Reported progress -1% is invalid.",
	],
	[
		"a device that connects again is asked what it runs now",
		inPhase("reporting"),
		goal(),
		connected,
		9,
		"reporting + version_query",
	],
	[
		"the new version after a reboot is a success",
		inPhase("delivered", { asked: true }),
		goal(),
		version("v2"),
		9,
		UPGRADED,
	],
	[
		"the old version after a reboot, long after the notice: the notice again",
		inPhase("reporting", { asked: true }),
		goal(),
		version("v1"),
		10,
		"delivered + notice",
	],
	[
		"the old version after a reboot, soon after the notice: later",
		inPhase("delivered", { asked: true }),
		goal(),
		version("v1"),
		9,
		"delivered",
	],
	[
		"the put-off repetition goes to a device that is here",
		inPhase("delivered", { dueAt: at(10) }),
		goal(),
		due,
		10,
		"delivered + notice",
	],
	[
		"the put-off repetition waits for a device that is not here",
		inPhase("delivered", { dueAt: at(10) }),
		goal(),
		dueElsewhere,
		10,
		"delivered",
	],
	[
		"a device that comes back with a version no package fits fails",
		inPhase("delivered", { asked: true }),
		{ ...goal(), packages: [{ packageId: "diff", sourceVersions: ["v1"] }] },
		version("v5"),
		11,
		"Fail IOTDA.005004: Upgrade failed. The current version cannot be upgraded to the target version.",
	],
	[
		"after 24 hours the device is asked once more",
		inPhase("reporting"),
		goal(),
		due,
		24 * 60,
		"verify_version + version_query",
	],
	[
		"the last answer may be the new version",
		inPhase("verify_version"),
		goal(),
		version("v2"),
		24 * 60 + 1,
		UPGRADED,
	],
	[
		"the last answer may be the old version",
		inPhase("verify_version"),
		goal(),
		version("v1"),
		24 * 60 + 1,
		"Fail IOTDA.005010: Wait for the device to report upgrade result timeout",
	],
	[
		"a success report still counts while verifying",
		inPhase("verify_version"),
		goal(),
		progress(0, "v2", 100),
		24 * 60 + 1,
		UPGRADED,
	],
	[
		"progress without proof does not help while verifying",
		inPhase("verify_version"),
		goal(),
		progress(0, "v1", 99),
		24 * 60 + 1,
		"nothing",
	],
	[
		"a device that connects while verifying is asked again",
		inPhase("verify_version"),
		goal(),
		connected,
		24 * 60 + 1,
		"verify_version + version_query",
	],
	[
		"a notice that came before the greeting on the same connection is not doubted",
		inPhase("delivered", { offeredAt: at(2) }),
		goal(),
		{ kind: "connected", since: at(1) },
		3,
		"nothing",
	],
	[
		"no answer while verifying is a failure",
		inPhase("verify_version"),
		goal(),
		due,
		24 * 60 + 3,
		"Fail IOTDA.005010: Updating timeout and query device version for check timeout",
	],
	[
		"a native module is asked for",
		inPhase("await_online"),
		goal("native"),
		connected,
		1,
		"await_version + version_query",
	],
	[
		"a device that does not know of modules fails",
		inPhase("await_online"),
		goal("none"),
		connected,
		1,
		"Fail IOTDA.014979: Unsupported package type",
	],
	[
		"a module dressed as firmware is offered at once",
		inPhase("await_online"),
		goal("compatible", "v1"),
		connected,
		1,
		"delivered + notice",
	],
	[
		"a module dressed as firmware that is known to be current succeeds",
		inPhase("await_online"),
		goal("compatible", "v2"),
		connected,
		1,
		SAME,
	],
	[
		"a module dressed as firmware is offered again after a while",
		inPhase("delivered"),
		goal("compatible", "v1"),
		connected,
		10,
		"delivered + notice",
	],
	[
		"a module dressed as firmware is not offered again at once",
		inPhase("delivered"),
		goal("compatible", "v1"),
		connected,
		9,
		"delivered",
	],
	[
		"a module dressed as firmware cannot be verified by a query",
		inPhase("reporting"),
		goal("compatible", "v1"),
		due,
		24 * 60,
		"Fail IOTDA.005010: Wait for the device to report upgrade result timeout",
	],
];

describe("a subtask", () => {
	for (const [title, exchange, wanted, happening, minutes, expected] of cases) {
		test(title, () =>
			assert.equal(
				summary(after(exchange, wanted, happening, limits, at(minutes))),
				expected,
			),
		);
	}

	test("a repetition that is put off is due when it is allowed, and the life of the offer does not grow", () => {
		const putOff = after(
			inPhase("delivered", { asked: true }),
			goal(),
			version("v1"),
			limits,
			at(4),
		);
		assert.ok(putOff.kind === "goes_on");
		assert.deepEqual(putOff.exchange.dueAt, at(10));
		const again = after(putOff.exchange, goal(), due, limits, at(11));
		assert.ok(again.kind === "goes_on" && again.send === "notice");
		assert.deepEqual(again.exchange.offeredAt, at(11));
		assert.deepEqual(again.exchange.expiresAt, at(24 * 60));
		assert.deepEqual(again.exchange.dueAt, at(24 * 60));
	});

	test("progress calls off a repetition that was put off", () => {
		const working = after(
			inPhase("delivered", { dueAt: at(10) }),
			goal(),
			progress(0, "v1", 10),
			limits,
			at(5),
		);
		assert.ok(working.kind === "goes_on");
		assert.deepEqual(working.exchange.dueAt, at(24 * 60));
	});

	test("the package is the one whose sources name the version, else one for every version", () => {
		const packages = [
			{ packageId: "full", sourceVersions: [] },
			{ packageId: "diff", sourceVersions: ["v1"] },
		];
		assert.equal(packageFor(packages, "v1")?.packageId, "diff");
		assert.equal(packageFor(packages, "v0")?.packageId, "full");
		assert.equal(packageFor(packages, undefined)?.packageId, "full");
		assert.equal(packageFor(packages.slice(1), undefined), undefined);
		assert.equal(packageFor(packages.slice(1), "V1"), undefined);
	});
});

// --- whatever a device says ------------------------------------------------------

const anyVersion = fc.constantFrom("v1", "v2", "", "v1.5");
const anyHappening: fc.Arbitrary<Happening> = fc.oneof(
	fc.constant(connected),
	fc.constant(present),
	fc.constantFrom(due, dueElsewhere),
	anyVersion.filter((text) => text !== "").map(version),
	fc
		.tuple(
			fc.constantFrom(0, 0, 0, 1, 3, 5, 77, -1),
			anyVersion,
			fc.option(fc.integer({ min: -5, max: 120 }), { nil: undefined }),
		)
		.map(([code, text, percent]) => progress(code, text, percent)),
);
const anyForm = fc.constantFrom<ExchangeForm>(
	"classic",
	"native",
	"compatible",
);

/** Runs a history; returns every step with what followed. */
function live(
	form: ExchangeForm,
	history: { happening: Happening; wait: number }[],
) {
	let exchange = startedExchange(start, 25 * HOUR);
	let now = start;
	const steps: {
		happening: Happening;
		now: Date;
		before: Exchange;
		consequence: Consequence;
	}[] = [];
	for (const { happening, wait } of history) {
		now = new Date(now.getTime() + wait * MINUTE);
		if (
			happening.kind === "due" &&
			(exchange.dueAt === undefined || now < exchange.dueAt)
		)
			continue;
		const consequence = after(
			exchange,
			goal(form, "v1"),
			happening,
			limits,
			now,
		);
		steps.push({ happening, now, before: exchange, consequence });
		if (consequence.kind === "succeeded" || consequence.kind === "failed")
			break;
		if (consequence.kind === "goes_on") exchange = consequence.exchange;
	}
	return { steps, exchange };
}

const anyHistory = fc.array(
	fc.record({
		happening: anyHappening,
		wait: fc.integer({ min: 0, max: 600 }),
	}),
	{ maxLength: 40 },
);

test("success is believed only with the target version in the report that brought it", () => {
	fc.assert(
		fc.property(anyForm, anyHistory, (form, history) => {
			const last = live(form, history).steps.at(-1);
			if (last?.consequence.kind !== "succeeded") return;
			const { happening } = last;
			assert.ok(
				(happening.kind === "version" || happening.kind === "progress") &&
					happening.version === "v2",
			);
			if (happening.kind === "progress")
				assert.ok(happening.resultCode === 0 || happening.resultCode === 3);
		}),
		{ numRuns: 2_000 },
	);
});

test("whatever happens, an unfinished exchange has a time limit, and notices keep their distance", () => {
	fc.assert(
		fc.property(anyForm, anyHistory, (form, history) => {
			const { steps, exchange } = live(form, history);
			assert.ok(exchange.dueAt !== undefined);
			const notices = steps.filter(
				({ consequence }) =>
					consequence.kind === "goes_on" && consequence.send === "notice",
			);
			for (const [index, notice] of notices.entries()) {
				const previous = notices[index - 1];
				if (previous)
					assert.ok(
						notice.now.getTime() - previous.now.getTime() >=
							limits.resendIntervalMs,
					);
				assert.ok(
					notice.consequence.kind === "goes_on" &&
						notice.consequence.exchange.packageId === "full",
				);
			}
		}),
		{ numRuns: 2_000 },
	);
});

test("a report told twice changes nothing the second time", () => {
	fc.assert(
		fc.property(anyForm, anyHistory, (form, history) => {
			for (const { happening, now, consequence } of live(form, history).steps) {
				if (happening.kind !== "progress" || consequence.kind !== "goes_on")
					continue;
				const again = after(
					consequence.exchange,
					goal(form, "v1"),
					happening,
					limits,
					now,
				);
				assert.deepEqual(again, {
					kind: "goes_on",
					exchange: consequence.exchange,
				});
			}
		}),
		{ numRuns: 2_000 },
	);
});
