/**
 * An example of every call and its answer, by the name of the operation: water gauges
 * made of a microcontroller and a radio, one of which gets new firmware. The values fit
 * together, so that the calls could be made one after the other.
 */

export interface OperationExample {
	/** Beside `project_id`, which is the same everywhere. */
	path?: Readonly<Record<string, string>>;
	query?: Readonly<Record<string, string | number | boolean>>;
	/** JSON; a text where the call takes a file. */
	body?: unknown;
	/** Of the first success; a text where the answer is a file. Absent: it has no body. */
	response?: unknown;
}

export const exampleProjectId = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";
export const exampleAppId = "7d1c0f4e9a2b4c6d8e0f1a2b3c4d5e6f";

const accountId = "5e0c2a6b9d8f4713a2c4e6f8091b3d57";
const accountName = "waterworks";
const userId = "b7d93f10c5a84e62908d1f3a5c7e9b24";
const userName = "olga";
const domain = { id: accountId, name: accountName };
const projectName = "otaru";
const appId = exampleAppId;
const productId = "66b1f04e8a7c2d9e5f301b42";
const moduleId = "3f9a5c1e7b2d4f60a8c6e4b29d1f7053";
const packageId = "66b1f2a08a7c2d9e5f301b77";
const taskId = "66b1f4c18a7c2d9e5f301c05";
const groupId = "2f6e9d54-1c3b-4a87-9e05-d7b8c6a41f32";
const importId = "66b1f31d8a7c2d9e5f301b9a";
const eventId = "000000000000000000001a2f";
const deviceId = `${productId}_gauge-0001`;
const sha256 =
	"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
const page = (marker: string) => ({ count: 1, marker });
const markerOf = {
	product: "66b1f04e8a7c2d9e5f301b43",
	module: "66b1f0908a7c2d9e5f301b51",
	group: "66b1f2e08a7c2d9e5f301b90",
	device: "66b1f2c48a7c2d9e5f301b85",
};
const base = "https://otaru.example";

const project = {
	id: exampleProjectId,
	name: projectName,
	domain_id: accountId,
	parent_id: accountId,
	is_domain: false,
	enabled: true,
	description: "",
	links: { self: `${base}/v3/projects/${exampleProjectId}` },
};

const token = {
	token: {
		methods: ["password"],
		issued_at: "2026-01-29T08:00:00.000000Z",
		expires_at: "2026-01-30T08:00:00.000000Z",
		user: { id: userId, name: userName, domain, password_expires_at: "" },
		project: { id: exampleProjectId, name: projectName, domain },
		roles: [],
		catalog: [],
	},
};

const app = {
	app_id: appId,
	app_name: "Waterworks",
	create_time: "20260129T075500Z",
	default_app: false,
};

const serviceCapabilities = [
	{
		service_id: "Level",
		service_type: "Level",
		properties: [
			{
				property_name: "level",
				data_type: "int",
				method: "R",
				required: false,
				min: "0",
				max: "100",
				unit: "cm",
			},
		],
		option: "Optional",
	},
];
const productItem = {
	app_id: appId,
	app_name: "Waterworks",
	product_id: productId,
	name: "Gauge",
	device_type: "Gauge",
	protocol_type: "MQTT",
	data_format: "json",
	manufacturer_name: "Hydrotec",
	industry: "water",
	description: "Level gauge, made of a microcontroller and a radio.",
	create_time: "20260129T080230Z",
};
const product = { ...productItem, service_capabilities: serviceCapabilities };
const productProfile = { module_form: "native", download_form: "presigned" };

const otaModule = {
	module_id: moduleId,
	app_id: appId,
	product_id: productId,
	product_name: "Gauge",
	module_name: "MCU",
	alias_name: "Micro Controller Unit",
	description: "Reads the sensor and talks to the radio.",
	create_time: "20260129T080336Z",
};

const obsLocation = {
	region_name: projectName,
	bucket_name: "firmware",
	object_key: "gauge/mcu-2.0.0.bin",
	sign_method: "SHA256",
};
const packageItem = {
	package_id: packageId,
	app_id: appId,
	package_type: "modulePackage",
	product_id: productId,
	product_name: "Gauge",
	module_name: "MCU",
	version: "2.0.0",
	support_source_versions: ["1.0.0", "1.1.0"],
	description: "Filters the ripple of passing boats.",
	custom_info: '{"slot": "b"}',
	create_time: "20260129T081216Z",
};
const otaPackage = {
	...packageItem,
	file_location: { obs_location: { ...obsLocation, sign: sha256 } },
};
const storedObject = {
	bucket_name: obsLocation.bucket_name,
	object_key: obsLocation.object_key,
	size: 4,
	content_type: "application/octet-stream",
	sha256,
	sha1: "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3",
	md5: "098f6bcd4621d373cade4e832627b4f6",
	update_time: "20260129T081140Z",
};
const objectPath = {
	bucket_name: obsLocation.bucket_name,
	object_key: obsLocation.object_key,
};

const deviceItem = {
	app_id: appId,
	app_name: "Waterworks",
	device_id: deviceId,
	node_id: "gauge-0001",
	gateway_id: deviceId,
	device_name: "Gauge-at-the-weir",
	node_type: "GATEWAY",
	description: "Left-bank",
	fw_version: "1.0.0",
	product_id: productId,
	product_name: "Gauge",
	status: "ONLINE",
	tags: [{ tag_key: "river", tag_value: "Elbe" }],
};
const device = {
	...deviceItem,
	modules: [{ module_name: "MCU", module_version: "1.1.0" }],
	auth_info: {
		auth_type: "SECRET",
		secret: "Kq3v9ZxT7mB2wYfR",
		secure_access: true,
		timeout: 0,
	},
	create_time: "20260129T081320Z",
	connection_status_update_time: "2026-01-29T08:14:02.125Z",
	active_time: "2026-01-29T08:14:02.125Z",
	extension_info: { shelf: 7 },
};
const {
	fw_version: _version,
	status: _status,
	tags: _tags,
	...unseenItem
} = deviceItem;
const newDevice = {
	...unseenItem,
	status: "INACTIVE",
	tags: [],
	modules: [],
	auth_info: device.auth_info,
	create_time: device.create_time,
	extension_info: device.extension_info,
};

const groupItem = {
	group_id: groupId,
	name: "Gauges at the Elbe",
	description: "First ones to get anything new",
	group_type: "STATIC",
};

const importFile = `product_id,node_id,device_name\n${productId},gauge-0002,Gauge-at-the-lock\n${productId},,\n`;
const deviceImport = {
	import_id: importId,
	app_id: appId,
	status: "Processing",
	format: "csv",
	total_bytes: importFile.length,
	done_bytes: 0,
	lines: 0,
	created: 0,
	unchanged: 0,
	refused: 0,
	create_time: "20260129T081405Z",
};
const finishedImport = {
	...deviceImport,
	status: "PartialSuccess",
	done_bytes: importFile.length,
	lines: 3,
	created: 1,
	refused: 1,
	finish_time: "20260129T081406Z",
};

const newTask = {
	app_id: appId,
	task_name: "gauges_mcu_2",
	task_type: "moduleUpgrade",
	targets: [deviceId],
	document: { package_ids: [packageId] },
	task_policy: { retry_count: 2, retry_interval: 10 },
};
const progress = {
	total: 1,
	processing: 0,
	success: 0,
	fail: 0,
	waitting: 0,
	fail_wait_retry: 0,
	stopped: 0,
	removed: 0,
};
const task = {
	task_id: taskId,
	task_name: newTask.task_name,
	task_type: newTask.task_type,
	need_confirm: false,
	targets: newTask.targets,
	task_policy: newTask.task_policy,
	document: newTask.document,
	status: "Initializing",
	task_progress: { ...progress, waitting: 1 },
	create_time: "20260129T082111Z",
};
const runningTask = {
	...task,
	status: "Processing",
	task_progress: { ...progress, processing: 1 },
};
const targetDone = { targets: [{ target: deviceId, status: "success" }] };

const moduleEvent = {
	event_id: eventId,
	kind: "succeeded",
	time: "2026-01-29T08:23:40.310Z",
	task_id: taskId,
};

// --- who may do what ---

const secondUserId = "c2e84a1f7b6d4950837e2f1a9d0c5b68";
const user = {
	user_id: secondUserId,
	user_name: "igor",
	description: "Builds the firmware",
	enabled: true,
	is_administrator: false,
	password_sign_in: true,
	must_change_password: true,
	create_time: "20260129T083000Z",
};
const accessKey = {
	access_key: "OTARUK7Q2M9X4B6T1V8Z",
	description: "Build machine",
	enabled: true,
	create_time: "20260129T083100Z",
};
const newAccessKey = {
	...accessKey,
	secret_key: "nJ4tq8Wc1sPz6LbYv0RkXe3UhGfD5AoM7iTn2KwQ",
};
const userGroup = {
	group_id: "8d05e7c39b1f4a62b4c8d6e0f2a1735e",
	group_name: "Firmware",
	description: "Everybody who builds firmware",
	create_time: "20260129T083200Z",
};
const policyItem = {
	policy_id: "f1a7c4d2e9b84630a5d8c7b6e4f3021d",
	policy_name: "Modules of the waterworks",
	type: "custom",
	description: "Modules may be made and looked at",
	create_time: "20260129T083300Z",
	update_time: "20260129T083300Z",
};
const policyDocument = {
	Version: "5.0",
	Statement: [
		{
			Sid: "modules",
			Effect: "Allow",
			Action: ["iotda:otamodules:create", "iotda:otamodules:query*"],
			Resource: [`iotda:*:*:app:${appId}`],
		},
	],
};
const policy = { ...policyItem, document: policyDocument };
const grant = {
	grant_id: "0b9e8d7c6f5a41328c7b6a5f4e3d2c1b",
	policy_id: policyItem.policy_id,
	policy_name: policyItem.policy_name,
	principal: {
		type: "group",
		id: userGroup.group_id,
		name: userGroup.group_name,
	},
	scope: { type: "project", id: exampleProjectId, name: projectName },
	create_time: "20260129T083400Z",
};
const managedProject = {
	project_id: exampleProjectId,
	project_name: projectName,
	default_app_id: appId,
	create_time: "20260129T075400Z",
};
const enterpriseProject = {
	enterprise_project_id: "4c6a8e0b-2d1f-4735-9b8a-7c6d5e4f3a21",
	enterprise_project_name: "North",
	description: "Everything north of the canal",
	create_time: "20260129T083500Z",
};
const spaceAccess = {
	app_id: appId,
	enterprise_project_id: enterpriseProject.enterprise_project_id,
	enterprise_project_name: enterpriseProject.enterprise_project_name,
	tags: { owner: "waterworks" },
};
const masterKey = {
	source: "file",
	state: "running",
	key_id: "5f3a9c1e",
	keys: [
		{ key_id: "5f3a9c1e", secrets: 12, known: true, needed: true },
		{ key_id: "b27d40e8", secrets: 3, known: true, needed: true },
	],
	remaining: 3,
	unreadable: 0,
};
const auditRow = {
	seq: 42,
	at: "2026-01-29T08:03:36.021Z",
	request_id: "4f2a9c7e1b3d5f608a7c9e1b3d5f7092",
	account_id: accountId,
	user_id: userId,
	user_name: userName,
	credential: "token",
	address: "192.0.2.17",
	method: "POST",
	path: `/v5/iot/${exampleProjectId}/ota-upgrades/modules`,
	action: "iotda:otamodules:create",
	project_id: exampleProjectId,
	app_id: appId,
	resource: moduleId,
	status: 201,
	decision: "allowed",
	reason: "account",
	hash: sha256,
};

const ofUser = { path: { user_id: secondUserId } };
const ofKey = {
	path: { user_id: secondUserId, access_key: accessKey.access_key },
};
const ofOwnKey = { path: { access_key: accessKey.access_key } };
const ofUserGroup = { path: { group_id: userGroup.group_id } };
const ofMember = {
	path: { group_id: userGroup.group_id, user_id: secondUserId },
};
const ofPolicy = { path: { policy_id: policyItem.policy_id } };
const ofGrant = { path: { grant_id: grant.grant_id } };
const ofProject = { path: { managed_project_id: exampleProjectId } };
const ofEnterpriseProject = {
	path: {
		enterprise_project_id: enterpriseProject.enterprise_project_id,
	},
};

const ofSpace = { path: { app_id: appId } };
const ofProduct = { path: { product_id: productId } };
const ofModule = { path: { module_id: moduleId } };
const ofPackage = { path: { package_id: packageId } };
const ofDevice = { path: { device_id: deviceId } };
const ofGroup = { path: { group_id: groupId } };
const ofImport = { path: { import_id: importId } };
const ofTask = { path: { task_id: taskId } };

export const examples: Readonly<Record<string, OperationExample>> = {
	// --- identity -------------------------------------------------------------------

	KeystoneCreateUserTokenByPassword: {
		body: {
			auth: {
				identity: {
					methods: ["password"],
					password: {
						user: {
							name: userName,
							password: "correct horse battery staple",
							domain: { name: accountName },
						},
					},
				},
				scope: { project: { id: exampleProjectId } },
			},
		},
		query: { nocatalog: "true" },
		response: token,
	},
	KeystoneValidateToken: { query: { nocatalog: "true" }, response: token },
	KeystoneListProjects: {
		query: { name: projectName },
		response: {
			projects: [project],
			links: { self: `${base}/v3/projects` },
		},
	},
	KeystoneListRegions: {
		response: {
			regions: [
				{
					id: projectName,
					type: "public",
					description: "",
					links: { self: `${base}/v3/regions/${projectName}` },
				},
			],
			links: { self: `${base}/v3/regions` },
		},
	},
	KeystoneListAuthDomains: {
		response: {
			domains: [
				{
					id: accountId,
					name: accountName,
					enabled: true,
					description: "",
					links: { self: `${base}/v3/domains/${accountId}` },
				},
			],
			links: { self: `${base}/v3/auth/domains` },
		},
	},
	GetCallerIdentity: {
		response: {
			account_id: accountId,
			principal_id: userId,
			principal_urn: `iam::${accountId}:user:${userName}`,
		},
	},

	// --- who may do what --------------------------------------------------------------

	CreateUser: {
		body: { user_name: user.user_name, description: user.description },
		response: { ...user, password: "Tide-Lantern-Quartz-58" },
	},
	ListUsers: {
		query: { enabled: true, limit: 10 },
		response: { users: [user], page: page("66b1f6d08a7c2d9e5f301d11") },
	},
	ShowUser: { ...ofUser, response: user },
	UpdateUser: {
		...ofUser,
		body: { enabled: false },
		response: { ...user, enabled: false },
	},
	DeleteUser: ofUser,
	ListGroupsOfUser: {
		...ofUser,
		query: { limit: 10 },
		response: { groups: [userGroup], page: page("66b1f7488a7c2d9e5f301d1c") },
	},
	CreateAccessKey: {
		...ofUser,
		body: { description: accessKey.description },
		response: newAccessKey,
	},
	ListAccessKeys: { ...ofUser, response: { access_keys: [accessKey] } },
	UpdateAccessKey: {
		...ofKey,
		body: { enabled: false },
		response: { ...accessKey, enabled: false },
	},
	DeleteAccessKey: ofKey,
	CreateUserGroup: {
		body: {
			group_name: userGroup.group_name,
			description: userGroup.description,
		},
		response: userGroup,
	},
	ListUserGroups: {
		query: { limit: 10 },
		response: { groups: [userGroup], page: page("66b1f7488a7c2d9e5f301d1c") },
	},
	ShowUserGroup: { ...ofUserGroup, response: userGroup },
	UpdateUserGroup: {
		...ofUserGroup,
		body: { group_name: "Firmware builders" },
		response: { ...userGroup, group_name: "Firmware builders" },
	},
	DeleteUserGroup: ofUserGroup,
	ListUsersOfGroup: {
		...ofUserGroup,
		query: { limit: 10 },
		response: { users: [user], page: page("66b1f6d08a7c2d9e5f301d11") },
	},
	AddUserToGroup: ofMember,
	RemoveUserFromGroup: ofMember,
	CreatePolicy: {
		body: {
			policy_name: policyItem.policy_name,
			description: policyItem.description,
			document: policyDocument,
		},
		response: policy,
	},
	ListPolicies: {
		query: { type: "custom", limit: 10 },
		response: {
			policies: [policyItem],
			page: page("66b1f7848a7c2d9e5f301d20"),
		},
	},
	ShowPolicy: { ...ofPolicy, response: policy },
	UpdatePolicy: {
		...ofPolicy,
		body: { description: "Modules of one space" },
		response: { ...policy, description: "Modules of one space" },
	},
	DeletePolicy: ofPolicy,
	CreateGrant: {
		body: {
			policy_id: policyItem.policy_id,
			principal: { type: "group", id: userGroup.group_id },
			scope: { type: "project", id: exampleProjectId },
		},
		response: grant,
	},
	ListGrants: {
		query: { principal_type: "group", limit: 10 },
		response: { grants: [grant], page: page("66b1f7c08a7c2d9e5f301d24") },
	},
	ShowGrant: { ...ofGrant, response: grant },
	DeleteGrant: ofGrant,
	SimulateAccess: {
		body: {
			user_name: user.user_name,
			action: "iotda:otamodules:create",
			project_id: exampleProjectId,
			app_id: appId,
		},
		response: {
			allowed: true,
			because: "allowed",
			statement: {
				policy_id: policyItem.policy_id,
				policy_name: policyItem.policy_name,
				index: 0,
				sid: "modules",
			},
		},
	},
	CreateProject: {
		body: { project_name: projectName },
		response: managedProject,
	},
	ListProjects: { response: { projects: [managedProject] } },
	ShowProject: { ...ofProject, response: managedProject },
	UpdateProject: {
		...ofProject,
		body: { project_name: "otaru-north" },
		response: { ...managedProject, project_name: "otaru-north" },
	},
	DeleteProject: ofProject,
	CreateEnterpriseProject: {
		body: {
			enterprise_project_name: enterpriseProject.enterprise_project_name,
			description: enterpriseProject.description,
		},
		response: enterpriseProject,
	},
	ListEnterpriseProjects: {
		query: { limit: 10 },
		response: {
			enterprise_projects: [enterpriseProject],
			page: page("66b1f7fc8a7c2d9e5f301d28"),
		},
	},
	ShowEnterpriseProject: {
		...ofEnterpriseProject,
		response: enterpriseProject,
	},
	UpdateEnterpriseProject: {
		...ofEnterpriseProject,
		body: { description: "North of the canal" },
		response: { ...enterpriseProject, description: "North of the canal" },
	},
	DeleteEnterpriseProject: ofEnterpriseProject,
	ShowApplicationAccess: { ...ofSpace, response: spaceAccess },
	SetApplicationAccess: {
		...ofSpace,
		body: {
			enterprise_project_id: spaceAccess.enterprise_project_id,
			tags: spaceAccess.tags,
		},
		response: spaceAccess,
	},
	ShowMe: {
		response: {
			...user,
			account_id: accountId,
			account_name: accountName,
			groups: [
				{
					group_id: userGroup.group_id,
					group_name: userGroup.group_name,
				},
			],
			projects: [{ project_id: exampleProjectId, project_name: projectName }],
		},
	},
	ChangeOwnPassword: {
		body: {
			password: "Tide-Lantern-Quartz-58",
			new_password: "correct horse battery staple",
		},
	},
	ListOwnAccessKeys: { response: { access_keys: [accessKey] } },
	CreateOwnAccessKey: {
		body: { description: accessKey.description },
		response: newAccessKey,
	},
	UpdateOwnAccessKey: {
		...ofOwnKey,
		body: { description: "Build machine 2" },
		response: { ...accessKey, description: "Build machine 2" },
	},
	DeleteOwnAccessKey: ofOwnKey,
	RotateMasterKey: { response: masterKey },
	ShowMasterKeyRotation: { response: masterKey },

	// --- audit ------------------------------------------------------------------------

	ListAudit: {
		query: { action: "iotda:otamodules:create", limit: 10 },
		response: { audit: [auditRow], page: page("00000000000000000000002a") },
	},
	ExportAudit: {
		query: { start_time: "20260129T000000Z" },
		response: `${JSON.stringify({ ...auditRow, error_code: null, previous_hash: sha256 })}\n`,
	},
	VerifyAudit: {
		body: { expect: { seq: 42, hash: sha256 } },
		response: {
			intact: true,
			rows: 42,
			first_seq: 1,
			head: { seq: 42, hash: sha256 },
		},
	},

	// --- resource spaces ------------------------------------------------------------

	AddApplication: { body: { app_name: "Waterworks" }, response: app },
	ShowApplications: {
		query: { default_app: false },
		response: { applications: [app] },
	},
	ShowApplication: { ...ofSpace, response: app },
	UpdateApplication: {
		...ofSpace,
		body: { app_name: "Waterworks-North" },
		response: { ...app, app_name: "Waterworks-North" },
	},
	DeleteApplication: ofSpace,

	// --- products -------------------------------------------------------------------

	CreateProduct: {
		body: {
			app_id: appId,
			name: product.name,
			device_type: product.device_type,
			protocol_type: product.protocol_type,
			data_format: product.data_format,
			manufacturer_name: product.manufacturer_name,
			industry: product.industry,
			description: product.description,
			service_capabilities: serviceCapabilities,
		},
		response: product,
	},
	ListProducts: {
		query: { app_id: appId, limit: 10 },
		response: { products: [productItem], page: page(markerOf.product) },
	},
	ShowProduct: { ...ofProduct, query: { app_id: appId }, response: product },
	UpdateProduct: {
		...ofProduct,
		body: { app_id: appId, description: "Level gauge, second edition." },
		response: { ...product, description: "Level gauge, second edition." },
	},
	DeleteProduct: { ...ofProduct, query: { app_id: appId } },
	ShowProductOtaProfile: {
		...ofProduct,
		query: { app_id: appId },
		response: productProfile,
	},
	UpdateProductOtaProfile: {
		...ofProduct,
		query: { app_id: appId },
		body: { module_form: "native" },
		response: productProfile,
	},

	// --- OTA modules ----------------------------------------------------------------

	CreateOtaModule: {
		body: {
			app_id: appId,
			product_id: productId,
			module_name: otaModule.module_name,
			alias_name: otaModule.alias_name,
			description: otaModule.description,
		},
		response: otaModule,
	},
	ListOtaModules: {
		query: { app_id: appId, product_id: productId, limit: 10 },
		response: { modules: [otaModule], page: page(markerOf.module) },
	},
	ShowOtaModule: { ...ofModule, response: otaModule },
	UpdateOtaModule: {
		...ofModule,
		body: { alias_name: "Main controller" },
		response: { ...otaModule, alias_name: "Main controller" },
	},
	DeleteOtaModule: ofModule,

	// --- files and packages -----------------------------------------------------------

	PutObject: { path: objectPath, body: "test", response: storedObject },
	GetObject: { path: objectPath, response: "test" },
	HeadObject: { path: objectPath },
	DeleteObject: { path: objectPath },
	ListObjects: {
		path: { bucket_name: obsLocation.bucket_name },
		query: { prefix: "gauge/", limit: 10 },
		response: {
			objects: [storedObject],
			page: { count: 1, marker: obsLocation.object_key },
		},
	},
	CreateOtaPackage: {
		body: {
			app_id: appId,
			product_id: productId,
			package_type: packageItem.package_type,
			module_name: packageItem.module_name,
			version: packageItem.version,
			support_source_versions: packageItem.support_source_versions,
			description: packageItem.description,
			custom_info: packageItem.custom_info,
			file_location: { obs_location: obsLocation },
		},
		response: otaPackage,
	},
	ListOtaPackageInfo: {
		query: {
			package_type: packageItem.package_type,
			app_id: appId,
			product_id: productId,
			limit: 10,
		},
		response: { packages: [packageItem], page: page(packageId) },
	},
	ShowOtaPackage: { ...ofPackage, response: otaPackage },
	DeleteOtaPackage: ofPackage,

	// --- devices --------------------------------------------------------------------

	AddDevice: {
		body: {
			app_id: appId,
			product_id: productId,
			node_id: deviceItem.node_id,
			device_name: deviceItem.device_name,
			description: deviceItem.description,
			auth_info: { auth_type: "SECRET", secure_access: true, timeout: 0 },
			extension_info: device.extension_info,
		},
		response: newDevice,
	},
	ListDevices: {
		query: { app_id: appId, product_id: productId, limit: 10 },
		response: { devices: [deviceItem], page: page(markerOf.device) },
	},
	ShowDevice: { ...ofDevice, response: device },
	UpdateDevice: {
		...ofDevice,
		body: { description: "Right-bank", extension_info: { shelf: 8 } },
		response: {
			...device,
			description: "Right-bank",
			extension_info: { shelf: 8 },
		},
	},
	DeleteDevice: ofDevice,
	ResetDeviceSecret: {
		...ofDevice,
		query: { action_id: "resetSecret" },
		body: { secret_type: "PRIMARY", force_disconnect: true },
		response: {
			device_id: deviceId,
			secret: "w8NcD4hJ6sLpV2qE",
			secret_type: "PRIMARY",
		},
	},
	FreezeDevice: ofDevice,
	UnfreezeDevice: ofDevice,
	ShowDeviceOtaProfile: {
		...ofDevice,
		response: { module_form: null, speaks_modules: true },
	},
	UpdateDeviceOtaProfile: {
		...ofDevice,
		body: { module_form: "native" },
		response: { module_form: "native", speaks_modules: true },
	},
	TagDevice: {
		body: {
			resource_type: "device",
			resource_id: deviceId,
			tags: [{ tag_key: "river", tag_value: "Elbe" }],
		},
	},
	UntagDevice: {
		body: {
			resource_type: "device",
			resource_id: deviceId,
			tag_keys: ["river"],
		},
	},
	ListResourcesByTags: {
		query: { limit: 10 },
		body: {
			resource_type: "device",
			tags: [{ tag_key: "river", tag_value: "Elbe" }],
		},
		response: {
			resources: [{ resource_id: deviceId }],
			page: page(markerOf.device),
		},
	},

	// --- device groups ----------------------------------------------------------------

	AddDeviceGroup: {
		body: {
			app_id: appId,
			name: groupItem.name,
			description: groupItem.description,
			group_type: groupItem.group_type,
		},
		response: groupItem,
	},
	ListDeviceGroups: {
		query: { app_id: appId, group_type: "STATIC", limit: 10 },
		response: { device_groups: [groupItem], page: page(markerOf.group) },
	},
	ShowDeviceGroup: { ...ofGroup, response: groupItem },
	UpdateDeviceGroup: {
		...ofGroup,
		body: { description: "Pilot" },
		response: { ...groupItem, description: "Pilot" },
	},
	DeleteDeviceGroup: ofGroup,
	CreateOrDeleteDeviceInGroup: {
		...ofGroup,
		query: { action_id: "addDevice", device_id: deviceId },
	},
	ShowDevicesInGroup: {
		...ofGroup,
		query: { limit: 10 },
		response: {
			devices: [
				{
					device_id: deviceId,
					node_id: deviceItem.node_id,
					device_name: deviceItem.device_name,
					product_id: productId,
				},
			],
			page: page(markerOf.device),
		},
	},
	ListDeviceGroupsByDevice: {
		...ofDevice,
		response: { device_groups: [groupItem] },
	},

	// --- files of devices -------------------------------------------------------------

	ImportDevices: {
		query: { format: "csv", app_id: appId },
		body: importFile,
		response: deviceImport,
	},
	ListDeviceImports: {
		query: { limit: 10 },
		response: { device_imports: [finishedImport], page: page(importId) },
	},
	ShowDeviceImport: { ...ofImport, response: finishedImport },
	ListImportRefusals: {
		...ofImport,
		query: { format: "csv" },
		response:
			"line,device_id,error_code,error_msg\r\n3,,IOTDA.000006,Invalid input data. node_id is required.\r\n",
	},
	DeleteDeviceImport: ofImport,
	ExportDevices: {
		query: { format: "csv", app_id: appId },
		response: `device_id,node_id,product_id\r\n${deviceId},gauge-0001,${productId}\r\n`,
	},

	// --- upgrade tasks ----------------------------------------------------------------

	CreateBatchTask: { body: newTask, response: task },
	ListBatchTasks: {
		query: { task_type: "moduleUpgrade", app_id: appId, limit: 10 },
		response: { batchtasks: [runningTask], page: page(taskId) },
	},
	ShowBatchTask: {
		...ofTask,
		query: { limit: 10 },
		response: {
			batchtask: runningTask,
			task_details: [{ target: deviceId, status: "Processing", output: "40%" }],
			page: page("66b1f4c18a7c2d9e5f301c06"),
		},
	},
	DeleteBatchTask: ofTask,
	RetryBatchTask: {
		...ofTask,
		body: { targets: [deviceId] },
		response: targetDone,
	},
	StopBatchTask: {
		...ofTask,
		body: { targets: [deviceId] },
		response: targetDone,
	},
	ConfirmBatchTask: {
		...ofTask,
		body: { targets: [deviceId] },
		response: targetDone,
	},
	ExplainBatchTaskTarget: {
		path: { task_id: taskId, device_id: deviceId },
		response: {
			task_id: taskId,
			target: deviceId,
			task_status: "Processing",
			status: "Processing",
			reasons: [
				{
					code: "DEVICE_OFFLINE",
					message: "The device is not connected.",
					since: "2026-01-29T08:20:00.000Z",
				},
			],
			retries: 0,
			retry_count: 2,
		},
	},

	// --- history ----------------------------------------------------------------------

	ListDeviceEvents: {
		...ofDevice,
		query: { kind: "succeeded", limit: 10 },
		response: { events: [moduleEvent], page: page(eventId) },
	},
	WatchEvents: {
		query: { task_id: taskId },
		response: `id: 0-17\nevent: subtask\ndata: ${JSON.stringify({ ...moduleEvent, device_id: deviceId })}\n\n`,
	},

	// --- for operators of the server ----------------------------------------------------

	ShowLiveness: { response: { status: "live" } },
	ShowReadiness: { response: { status: "ready" } },
	ShowMetrics: {
		response:
			"# TYPE otaru_http_answers_total counter\notaru_http_answers_total 1\n",
	},
};
