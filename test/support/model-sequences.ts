/** Random sequences of what can happen to upgrade tasks, as steps of model-world.ts. */
import fc from "fast-check";
import { MODULE } from "./model.ts";
import {
	deviceNames,
	NOBODY,
	PACKAGE_SETS,
	type Pick,
	parts,
	STRANGER,
	type Step,
} from "./model-world.ts";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const oneOf = <const T>(...values: readonly T[]) => fc.constantFrom(...values);
const mostly = <const T>(usual: T, ...others: readonly T[]) =>
	oneOf(usual, usual, usual, usual, ...others);

const version = mostly("v1", "v2", "v2", "v3");
const pick: fc.Arbitrary<Pick> = fc.record({
	n: fc.nat(9),
	any: mostly(false, false, true),
});
const targets = fc
	.tuple(
		fc.subarray(deviceNames, { minLength: 1, maxLength: 4 }),
		mostly<readonly string[]>([], [STRANGER], [NOBODY]),
	)
	.map(([some, more]) => [...some, ...more]);

const create: fc.Arbitrary<Step> = fc.record({
	do: oneOf("create"),
	part: mostly(...parts),
	packages: fc.nat(PACKAGE_SETS - 1),
	targets,
	by: mostly("list", "static", "dynamic", "unknown group"),
	gatewayMode: mostly(false, true),
	needConfirm: mostly(false, true, true),
	scheduleMs: mostly(
		undefined,
		undefined,
		undefined,
		90 * SECOND,
		20 * MINUTE,
		2 * HOUR,
		7 * DAY - 2 * MINUTE,
		-10 * MINUTE,
	),
	retry: fc.option(
		fc.record({
			count: mostly(1, 2, 3, 5),
			minutes: mostly(1, 2, 5, 30, 1_440),
		}),
		{ nil: undefined, freq: 3 },
	),
});

const operation = fc.record({
	do: oneOf("confirm", "stop", "retry", "retry"),
	task: pick,
	targets: fc.option(fc.array(pick, { minLength: 1, maxLength: 3 }), {
		nil: undefined,
		freq: 2,
	}),
});

const connect: fc.Arbitrary<Step> = fc.record({
	do: oneOf("connect"),
	device: pick,
});

/** Mostly to come again at once: rebooted, or its network was away. */
const drop: fc.Arbitrary<Step> = fc.record({
	do: oneOf("drop"),
	device: pick,
	politely: fc.boolean(),
	again: mostly(true, false, false),
});

const pass: fc.Arbitrary<Step> = fc.record({
	do: oneOf("pass"),
	ms: mostly(
		SECOND,
		SECOND,
		SECOND,
		SECOND,
		2 * MINUTE,
		9 * MINUTE,
		11 * MINUTE,
		HOUR,
		DAY,
		3 * DAY,
	),
});

const report: fc.Arbitrary<Step> = fc.record({
	do: oneOf("report"),
	device: pick,
	versions: fc.oneof(
		// All the same: whatever was asked for is answered.
		{
			weight: 4,
			arbitrary: version.map((each) => ({
				firmware: each,
				software: each,
				module: each,
			})),
		},
		{
			weight: 1,
			arbitrary: fc.record(
				{ firmware: version, software: version, module: version },
				{ requiredKeys: [] },
			),
		},
	),
});

const progress = fc.record({
	do: oneOf("progress"),
	device: pick,
	about: mostly(undefined, undefined, undefined, MODULE, "other"),
	resultCode: mostly(0, 0, 1, 3, 5, 10, 99),
	progress: mostly(50, undefined, 0, 100, 101, -1),
	version,
	description: mostly(undefined, "out of luck"),
});

const step: fc.Arbitrary<Step> = fc.oneof(
	{ weight: 8, arbitrary: create },
	{ weight: 16, arbitrary: operation },
	{
		weight: 2,
		arbitrary: fc.record({ do: oneOf("delete"), task: pick }),
	},
	{ weight: 20, arbitrary: connect },
	{ weight: 8, arbitrary: drop },
	{ weight: 34, arbitrary: report },
	{ weight: 20, arbitrary: progress },
	{ weight: 7, arbitrary: pass },
	{
		weight: 6,
		arbitrary: fc.record({ do: oneOf("pass to due"), shy: fc.boolean() }),
	},
	{
		weight: 1,
		arbitrary: fc.record({
			do: oneOf("restart"),
			downMs: oneOf(0, MINUTE, 5 * MINUTE, 20 * MINUTE, 25 * HOUR),
		}),
	},
	{
		weight: 4,
		arbitrary: fc.record({
			do: oneOf("delete device", "freeze", "unfreeze", "leave group"),
			device: pick,
		}),
	},
);

const wait: fc.Arbitrary<Step> = fc.record({
	do: oneOf("pass"),
	ms: oneOf(SECOND, 9 * MINUTE, 11 * MINUTE),
});

const work: fc.Arbitrary<Step> = progress.map((said) => ({
	...said,
	about: undefined,
	resultCode: 0,
	progress: 50,
	version: "v1",
}));

const failure: fc.Arbitrary<Step> = progress.map((said) => ({
	...said,
	about: undefined,
	resultCode: 10,
}));

const comesDue: fc.Arbitrary<Step> = fc.constant({
	do: "pass to due",
	shy: false,
});

const retry: fc.Arbitrary<Step> = operation.map((step) => ({
	...step,
	do: "retry",
}));

/** What often comes one after the other, so that enough sequences come that far. */
const course: fc.Arbitrary<Step[]> = fc.oneof(
	{ weight: 4, arbitrary: fc.tuple(connect, report) },
	{ weight: 4, arbitrary: fc.tuple(report, progress) },
	{ weight: 3, arbitrary: fc.tuple(report, wait, drop, report) },
	{ weight: 2, arbitrary: fc.tuple(drop, report, work, comesDue) },
	{ weight: 2, arbitrary: fc.tuple(report, failure, comesDue) },
	{ weight: 2, arbitrary: fc.tuple(report, failure, retry) },
);

export const sequence: fc.Arbitrary<Step[]> = fc
	.tuple(
		fc.array(connect, { maxLength: 3, size: "max" }),
		create,
		fc.array(
			fc.oneof(
				{ weight: 2, arbitrary: step.map((one) => [one]) },
				{ weight: 1, arbitrary: course },
			),
			{ maxLength: 18, size: "max" },
		),
	)
	.map(([before, first, rest]) => [...before, first, ...rest.flat()]);
