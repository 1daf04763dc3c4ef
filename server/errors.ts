/**
 * Every error a caller of the management API can meet: code, status, sentence.
 *
 * The vendor answers a duplicate with 400, a wrong state or a quota with 403 and an
 * unknown resource with 404. Numbers with a `9xx` tail are placeholders: the vendor's
 * own are not public (docs/differences.md).
 */
export interface ErrorKind {
	readonly status: number;
	readonly code: string;
	readonly message: string;
}

const kind = (status: number, code: string, message: string): ErrorKind => ({
	status,
	code,
	message,
});

export const errors = {
	// common
	unauthenticated: kind(
		401,
		"APIGW.0301",
		// Always with a detail; which part of a signature failed is only logged.
		"Incorrect IAM authentication information:",
	),
	noSuchApi: kind(
		404,
		"APIGW.0101",
		"The API does not exist or has not been published in the environment",
	),
	invalidInput: kind(400, "IOTDA.000006", "Invalid input data."),
	invalidFormat: kind(
		400,
		"IOTDA.000008",
		"Invalid input. The request format is invalid. For details, see the error message.",
	),
	invalidTime: kind(400, "IOTDA.000009", "Invalid input. Invalid time format."),
	startNotBeforeEnd: kind(
		400,
		"IOTDA.000010",
		"Invalid input. The start time must be earlier than the end time.",
	),
	limitOutOfRange: kind(
		400,
		"IOTDA.000017",
		"Invalid input. The specified parameter 'limit' is out of range.",
	),
	markerOutOfRange: kind(
		400,
		"IOTDA.000018",
		"Invalid input. The specified parameter 'marker' is out of range.",
	),
	forbidden: kind(
		403,
		"IOTDA.000022",
		"Operation not allowed. The user does not have the permission",
	),
	bodyTooLarge: kind(
		413,
		"IOTDA.000923",
		"Invalid input. The request body exceeds the upper limit.",
	),
	notReady: kind(503, "IOTDA.000924", "The server is not ready."),
	tooManyWatchers: kind(503, "IOTDA.000926", "Too many clients are watching."),
	storageFull: kind(
		507,
		"IOTDA.000925",
		"The server has no room left for files.",
	),
	internal: kind(500, "IOTDA.000901", "Internal server error."),

	// signing in; the wire carries only status and sentence
	wrongPassword: kind(401, "IAM.401", "The username or password is wrong."),
	tooManySignIns: kind(
		429,
		"IAM.429",
		"Too many failed sign-ins of this user or from this address.",
	),
	unknownScope: kind(
		400,
		"IAM.400",
		"The project or account named as scope does not exist.",
	),
	unknownToken: kind(404, "IAM.404", "The token is unknown or has expired."),
	forbiddenByIam: kind(
		403,
		"IAM.403",
		"You are not authorized to perform the requested action.",
	),

	// resource spaces
	unknownSpace: kind(403, "IOTDA.001000", "The application does not exist."),
	spaceNotEmpty: kind(
		403,
		"IOTDA.001900",
		"Operation not allowed. The application has products.",
	),
	defaultSpace: kind(
		403,
		"IOTDA.001901",
		"Operation not allowed. The default application cannot be deleted.",
	),
	tooManySpaces: kind(
		403,
		"IOTDA.001902",
		"Operation not allowed. The number of applications exceeds the upper limit.",
	),

	// products
	unknownProduct: kind(404, "IOTDA.013900", "The product does not exist."),
	unknownProductNamed: kind(
		400,
		"IOTDA.013900",
		"Invalid input. The product does not exist.",
	),
	productHasDevices: kind(
		403,
		"IOTDA.013901",
		"Operation not allowed. The product has devices.",
	),
	productExists: kind(
		400,
		"IOTDA.013902",
		"Invalid input. The product already exists.",
	),
	tooManyProducts: kind(
		403,
		"IOTDA.013903",
		"Operation not allowed. The number of products exceeds the upper limit.",
	),
	productInTask: kind(
		403,
		"IOTDA.013904",
		"Operation not allowed. An unfinished task uses the product.",
	),
	protocolFixed: kind(
		403,
		"IOTDA.013905",
		"Operation not allowed. The protocol type cannot be changed to CoAP.",
	),

	// devices
	unknownDevice: kind(404, "IOTDA.014000", "The device does not exist."),
	unknownDeviceNamed: kind(
		400,
		"IOTDA.014000",
		"Invalid input. The device does not exist.",
	),
	deviceHasChildren: kind(
		403,
		"IOTDA.014024",
		"Operation not allowed. The device already has endpoint.",
	),
	deviceExists: kind(
		400,
		"IOTDA.014031",
		"Invalid input. The device already exists.",
	),
	childNotFreezable: kind(
		403,
		"IOTDA.014038",
		"Operation not allowed. It is not allowed to freeze sub-devices, only gateways or directly connected devices can be frozen.",
	),
	deviceAlreadyFrozen: kind(
		403,
		"IOTDA.014039",
		"Operation not allowed. The device is already frozen.",
	),
	deviceNotFrozen: kind(
		403,
		"IOTDA.014040",
		"Operation not allowed. The device is not frozen, can not unfreeze.",
	),
	tooManyChildren: kind(
		403,
		"IOTDA.014900",
		"Operation not allowed. The gateway has too many sub-devices or too many levels of them.",
	),

	// device groups
	unknownGroup: kind(404, "IOTDA.014980", "The device group does not exist."),
	unknownGroupNamed: kind(
		400,
		"IOTDA.014980",
		"Invalid input. The device group does not exist.",
	),
	groupNotEmpty: kind(
		403,
		"IOTDA.014981",
		"Operation not allowed. The device group is not empty.",
	),
	notInGroup: kind(
		403,
		"IOTDA.014982",
		"Operation not allowed. The device is not in the device group.",
	),
	deviceOfOtherSpace: kind(
		403,
		"IOTDA.014983",
		"Operation not allowed. The device belongs to another application.",
	),
	groupExists: kind(
		400,
		"IOTDA.014984",
		"Invalid input. The device group name already exists.",
	),
	tooManyGroups: kind(
		403,
		"IOTDA.014985",
		"Operation not allowed. The number of device groups exceeds the upper limit.",
	),
	groupTooDeep: kind(
		403,
		"IOTDA.014986",
		"Operation not allowed. The device group has too many levels above it.",
	),
	groupFull: kind(
		403,
		"IOTDA.014987",
		"Operation not allowed. The number of devices in the device group exceeds the upper limit.",
	),
	tooManyGroupsOfDevice: kind(
		403,
		"IOTDA.014988",
		"Operation not allowed. The number of device groups of the device exceeds the upper limit.",
	),
	groupIsDynamic: kind(
		403,
		"IOTDA.014989",
		"Operation not allowed. The devices of a dynamic device group follow its rule.",
	),

	// tags
	tooManyTags: kind(
		403,
		"IOTDA.004900",
		"Operation not allowed. The number of tags exceeds the upper limit.",
	),
	tagNotBound: kind(
		400,
		"IOTDA.004901",
		"Invalid input. The tag_key is not bound.",
	),
	gatewayMayNotRegister: kind(
		403,
		"IOTDA.014901",
		"Operation not allowed. Gateways may not register or delete sub-devices.",
	),

	unknownImport: kind(404, "IOTDA.014990", "The device import does not exist."),

	// OTA modules
	unknownModule: kind(404, "IOTDA.014950", "The OTA module does not exist."),
	unknownModuleNamed: kind(
		400,
		"IOTDA.014950",
		"The OTA module does not exist.",
	),
	moduleExists: kind(
		400,
		"IOTDA.014951",
		"Invalid input. The OTA module name already exists.",
	),
	tooManyModules: kind(
		403,
		"IOTDA.014952",
		"Operation not allowed. The number of OTA modules of the product exceeds the upper limit.",
	),
	moduleInUse: kind(
		403,
		"IOTDA.014953",
		"Operation not allowed. The OTA module is used by upgrade packages.",
	),

	// upgrade packages and their files
	unknownPackage: kind(
		404,
		"IOTDA.014960",
		"The upgrade package does not exist.",
	),
	unknownPackageNamed: kind(
		400,
		"IOTDA.014960",
		"The upgrade package does not exist.",
	),
	packageExists: kind(
		400,
		"IOTDA.014961",
		"Invalid input. The upgrade package already exists.",
	),
	packageFileMissing: kind(
		400,
		"IOTDA.014962",
		"Invalid input. The file of the upgrade package does not exist.",
	),
	signMismatch: kind(
		400,
		"IOTDA.014963",
		"Invalid input. The sign does not match the file.",
	),
	packageInTask: kind(
		403,
		"IOTDA.014964",
		"Operation not allowed. The upgrade package is used by an unfinished task.",
	),
	unknownObject: kind(404, "IOTDA.014965", "The object does not exist."),
	objectInUse: kind(
		403,
		"IOTDA.014966",
		"Operation not allowed. The object is used by an upgrade package.",
	),
	objectTooLarge: kind(
		413,
		"IOTDA.014967",
		"Invalid input. The size of the object exceeds the upper limit.",
	),
	objectHashMismatch: kind(
		400,
		"IOTDA.014968",
		"Invalid input. The body does not match its hash.",
	),
	objectIncomplete: kind(
		400,
		"IOTDA.014969",
		"Invalid input. The body ended before its announced length.",
	),
	rangeNotSatisfiable: kind(
		416,
		"IOTDA.014959",
		"Invalid input. The range cannot be satisfied.",
	),

	// batch tasks
	unknownTask: kind(404, "IOTDA.014970", "The batch task does not exist."),
	taskStatus: kind(
		403,
		"IOTDA.014971",
		"Operation not allowed. The status of the batch task does not allow it.",
	),
	taskType: kind(
		403,
		"IOTDA.014972",
		"Operation not allowed. The task type is not supported.",
	),
	targetStatus: kind(
		400,
		"IOTDA.014219",
		"Invalid input. The target cannot be operated in its current status.",
	),

	// identities
	unknownUser: kind(404, "IOTDA.015900", "The user does not exist."),
	unknownUserGroup: kind(404, "IOTDA.015901", "The user group does not exist."),
	unknownPolicy: kind(404, "IOTDA.015902", "The policy does not exist."),
	unknownGrant: kind(404, "IOTDA.015903", "The grant does not exist."),
	unknownAccessKey: kind(404, "IOTDA.015904", "The access key does not exist."),
	unknownProject: kind(404, "IOTDA.015905", "The project does not exist."),
	unknownEnterpriseProject: kind(
		404,
		"IOTDA.015906",
		"The enterprise project does not exist.",
	),
	notInUserGroup: kind(
		404,
		"IOTDA.015907",
		"The user is not in the user group.",
	),
	userExists: kind(
		400,
		"IOTDA.015908",
		"Invalid input. The user name already exists.",
	),
	userGroupExists: kind(
		400,
		"IOTDA.015909",
		"Invalid input. The user group name already exists.",
	),
	policyExists: kind(
		400,
		"IOTDA.015910",
		"Invalid input. The policy name already exists.",
	),
	grantExists: kind(
		400,
		"IOTDA.015911",
		"Invalid input. The grant already exists.",
	),
	projectExists: kind(
		400,
		"IOTDA.015912",
		"Invalid input. The project name already exists.",
	),
	enterpriseProjectExists: kind(
		400,
		"IOTDA.015913",
		"Invalid input. The enterprise project name already exists.",
	),
	lastAdministrator: kind(
		403,
		"IOTDA.015914",
		"Operation not allowed. No administrator who can sign in would be left.",
	),
	tooManyAccessKeys: kind(
		403,
		"IOTDA.015915",
		"Operation not allowed. The number of access keys of the user exceeds the upper limit.",
	),
	systemPolicy: kind(
		403,
		"IOTDA.015916",
		"Operation not allowed. System policies cannot be changed or deleted.",
	),
	policyGranted: kind(
		403,
		"IOTDA.015917",
		"Operation not allowed. The policy is granted.",
	),
	lastProject: kind(
		403,
		"IOTDA.015918",
		"Operation not allowed. The last project cannot be deleted.",
	),
	projectNotEmpty: kind(
		403,
		"IOTDA.015919",
		"Operation not allowed. The project is not empty.",
	),
	tooManyProjects: kind(
		403,
		"IOTDA.015920",
		"Operation not allowed. The number of projects exceeds the upper limit.",
	),
	defaultEnterpriseProject: kind(
		403,
		"IOTDA.015921",
		"Operation not allowed. The default enterprise project cannot be changed or deleted.",
	),
	enterpriseProjectInUse: kind(
		403,
		"IOTDA.015922",
		"Operation not allowed. The enterprise project is in use.",
	),
	wrongOwnPassword: kind(
		403,
		"IOTDA.015923",
		"Operation not allowed. The password is not the present one.",
	),
	passwordMustChange: kind(
		403,
		"IOTDA.015924",
		"Operation not allowed. The password must be changed first.",
	),
	tooManyPasswords: kind(
		429,
		"IOTDA.015925",
		"Too many passwords are being set or checked.",
	),

	// protection
	tooManyRequests: kind(
		429,
		"APIGW.0308",
		"The throttling threshold has been reached:",
	),
	rotationUnderWay: kind(
		403,
		"IOTDA.015940",
		"Operation not allowed. The master key is being changed already.",
	),
	noOtherMasterKey: kind(
		403,
		"IOTDA.015941",
		"Operation not allowed. OTARU_MASTER_KEY lists one key only.",
	),
	foreignMasterKey: kind(
		403,
		"IOTDA.015942",
		"Operation not allowed. master.key does not hold the key that the server has.",
	),
} as const;

/** The vendor puts the key into the sentence. */
export function reservedTagKey(key: string): ErrorKind {
	return kind(
		400,
		"IOTDA.004002",
		`Invalid input. The tag_key ${key} cannot start with 'iot_'.`,
	);
}

/**
 * Sentences that go on with what is wrong: those the vendor means to, and ours. All
 * others are the vendor's to the letter: programs compare them, and what there is to
 * add stands beside them.
 */
const goesOn: ReadonlySet<ErrorKind> = new Set<ErrorKind>([
	errors.unauthenticated,
	errors.invalidInput,
	errors.invalidFormat,
	errors.invalidTime,
	errors.bodyTooLarge,
	errors.objectTooLarge,
	errors.objectHashMismatch,
	errors.objectIncomplete,
	errors.rangeNotSatisfiable,
]);

/** An answer other than success: thrown anywhere, turned into the vendor's body at the edge. */
export class ApiError extends Error {
	override name = "ApiError";
	readonly kind: ErrorKind;
	/** The sentence of the answer. */
	readonly sentence: string;
	/** What is added beside it; names the field and the rule. */
	readonly detail: string | undefined;

	constructor(
		kind: ErrorKind,
		options: { detail?: string; cause?: unknown } = {},
	) {
		const { detail } = options;
		const whole = detail ? `${kind.message} ${detail}` : kind.message;
		super(whole, { cause: options.cause });
		this.kind = kind;
		this.sentence = goesOn.has(kind) ? whole : kind.message;
		this.detail = goesOn.has(kind) ? undefined : detail;
	}
}

/** 400 for one field: `invalidInput("alias_name", "must be at most 64 characters")`. */
export function invalidInput(field: string, rule: string): ApiError {
	return new ApiError(errors.invalidInput, { detail: `${field} ${rule}.` });
}
