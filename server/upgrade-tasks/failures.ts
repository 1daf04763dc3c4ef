/**
 * Why a subtask failed: the code and the text that the management API shows. One
 * table, because the vendor publishes only part of the numbers (docs/differences.md).
 */
export interface Failure {
	code: string;
	message: string;
}

const other = (message: string): Failure => ({ code: "IOTDA.014979", message });
const timeout = (message: string): Failure => ({
	code: "IOTDA.005010",
	message,
});
const reported = (message: string): Failure => ({
	code: "IOTDA.005011",
	message,
});

export const failures = {
	unknownDevice: other("The device does not exist."),
	otherProduct: other(
		"The device does not belong to the product of the package.",
	),
	frozenDevice: other("The device is frozen."),
	conflict: other("Task Conflict"),
	unsupportedPackageType: other("Unsupported package type"),
	noPackageForVersion: {
		code: "IOTDA.005004",
		message:
			"Upgrade failed. The current version cannot be upgraded to the target version.",
	},
	onlineTimeout: timeout("Waiting for the device online timeout"),
	versionTimeout: timeout("Waiting for report device firmware version timeout"),
	resultTimeout: timeout(
		"Wait for the device to report upgrade result timeout",
	),
	checkTimeout: timeout(
		"Updating timeout and query device version for check timeout",
	),
} as const satisfies Record<string, Failure>;

export function invalidProgress(progress: number): Failure {
	return {
		code: "IOTDA.005008",
		message: `Upgrade failed. Reported progress ${progress}% is invalid.`,
	};
}

export function invalidResultCode(resultCode: number): Failure {
	return {
		code: "IOTDA.005009",
		message: `Upgrade failed. Invalid result_code ${resultCode}.`,
	};
}

/** What a device means by a result code other than 0. */
const resultCodes: Readonly<Record<number, string>> = {
	1: "Device in use",
	2: "Poor signal",
	3: "Already the latest version",
	4: "Low battery",
	5: "Not enough storage for the new firmware package",
	6: "Waiting for device downloaded package timeout",
	7: "Integrity check failure for new downloaded package",
	8: "Unsupported package type",
	9: "Out of memory during downloading process",
	10: "Firmware update failed",
	255: "Internal error",
};

/** Codes that have one text; for the others the device's own description says more. */
const fixedTexts = new Set([5, 6, 7, 8, 9, 10]);
const DESCRIPTION_LIMIT = 512;

export function failureOfResultCode(
	resultCode: number,
	description: string | undefined,
): Failure {
	const text = resultCodes[resultCode];
	if (text === undefined) return invalidResultCode(resultCode);
	return reported(
		fixedTexts.has(resultCode) || !description
			? text
			: description.slice(0, DESCRIPTION_LIMIT).toWellFormed(),
	);
}
