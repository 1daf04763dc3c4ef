/**
 * The row type of every table: the schema on one page.
 *
 * Conventions: ids are text; instants are UTC text of fixed width
 * (`2026-01-29T08:00:00.000Z`), so they sort; booleans are 0 or 1; JSON is text,
 * read and written by the folder that owns the table. `record_id` is the
 * time-ordered 24-hex id behind paging, separate from the id a caller sees.
 */
import type { ColumnType, Generated } from "kysely";

export type Bit = 0 | 1;
/** UTC text of fixed width, as `Date.toISOString()` writes it. */
export type InstantText = string;
/** A column that is set once, at insert. */
type Fixed<T> = ColumnType<T, T, never>;

export function instant(date: Date): InstantText {
	return date.toISOString();
}

export function fromInstant(text: InstantText): Date {
	return new Date(text);
}

export function optionalInstant(text: InstantText | null): Date | undefined {
	return text === null ? undefined : new Date(text);
}

export interface Tables {
	accounts: AccountRow;
	users: UserRow;
	access_keys: AccessKeyRow;
	tokens: TokenRow;
	projects: ProjectRow;
	user_groups: UserGroupRow;
	user_group_members: UserGroupMemberRow;
	policies: PolicyRow;
	grants: GrantRow;
	enterprise_projects: EnterpriseProjectRow;
	access_version: AccessVersionRow;
	audit: AuditRow;
	audit_ends: AuditEndRow;
	server_secrets: ServerSecretRow;
	resource_spaces: ResourceSpaceRow;
	products: ProductRow;
	ota_modules: OtaModuleRow;
	objects: ObjectRow;
	packages: PackageRow;
	devices: DeviceRow;
	device_modules: DeviceModuleRow;
	deleted_children: DeletedChildRow;
	presence: PresenceRow;
	nodes: NodeRow;
	upgrade_tasks: UpgradeTaskRow;
	upgrade_task_targets: UpgradeTaskTargetsRow;
	upgrade_task_packages: UpgradeTaskPackageRow;
	upgrade_task_groups: UpgradeTaskGroupRow;
	subtasks: SubtaskRow;
	device_groups: DeviceGroupRow;
	device_group_members: DeviceGroupMemberRow;
	device_tags: DeviceTagRow;
	device_imports: DeviceImportRow;
	device_import_refusals: DeviceImportRefusalRow;
	history: HistoryRow;
	history_swept: HistorySweptRow;
}

// --- access -----------------------------------------------------------------

export interface AccountRow {
	account_id: Fixed<string>;
	name: string;
	created_at: Fixed<InstantText>;
}

export interface UserRow {
	user_id: Fixed<string>;
	account_id: Fixed<string>;
	name: string;
	/** scrypt, in the form `access/passwords.ts` writes. */
	password_hash: string;
	/** 1: of the account itself, to whom everything is allowed. */
	is_administrator: Bit;
	record_id: Fixed<string>;
	description: string | null;
	/** 0: neither his password nor his keys sign in. */
	enabled: Generated<Bit>;
	/** 1: he must choose a password of his own before anything else. */
	must_change_password: Generated<Bit>;
	/** By password. */
	last_sign_in_at: InstantText | null;
	created_at: Fixed<InstantText>;
}

export interface AccessKeyRow {
	access_key: Fixed<string>;
	user_id: Fixed<string>;
	/** The secret key, encrypted under the master key. */
	secret_sealed: string;
	description: string | null;
	enabled: Generated<Bit>;
	/** Within some minutes. */
	last_used_at: InstantText | null;
	created_at: Fixed<InstantText>;
}

export interface TokenRow {
	/** SHA-256 of the token, hex. The token itself is stored nowhere. */
	token_hash: Fixed<string>;
	user_id: Fixed<string>;
	/** Null for a token of the whole account. */
	project_id: Fixed<string | null>;
	created_at: Fixed<InstantText>;
	expires_at: Fixed<InstantText>;
}

export interface ProjectRow {
	project_id: Fixed<string>;
	account_id: Fixed<string>;
	name: string;
	created_at: Fixed<InstantText>;
}

export interface UserGroupRow {
	group_id: Fixed<string>;
	record_id: Fixed<string>;
	account_id: Fixed<string>;
	name: string;
	description: string | null;
	created_at: Fixed<InstantText>;
}

export interface UserGroupMemberRow {
	group_id: Fixed<string>;
	user_id: Fixed<string>;
}

export interface PolicyRow {
	policy_id: Fixed<string>;
	record_id: Fixed<string>;
	account_id: Fixed<string>;
	name: string;
	description: string | null;
	/** JSON, as given. */
	document: string;
	created_at: Fixed<InstantText>;
	updated_at: InstantText;
}

export type PrincipalType = "user" | "group";
export type GrantScopeType = "all" | "project" | "enterprise_project";

/** Binds a policy to a user or a group. */
export interface GrantRow {
	grant_id: Fixed<string>;
	record_id: Fixed<string>;
	account_id: Fixed<string>;
	/** Of the table of policies, or the id of a system policy. */
	policy_id: Fixed<string>;
	principal_type: Fixed<PrincipalType>;
	principal_id: Fixed<string>;
	scope_type: Fixed<GrantScopeType>;
	/** Empty for `all`. */
	scope_id: Fixed<string>;
	created_at: Fixed<InstantText>;
}

/** Beside "0", which every account has without a row. */
export interface EnterpriseProjectRow {
	enterprise_project_id: Fixed<string>;
	record_id: Fixed<string>;
	account_id: Fixed<string>;
	name: string;
	description: string | null;
	created_at: Fixed<InstantText>;
}

/** One row: counts the changes to anything that a permission depends on. */
export interface AccessVersionRow {
	one: Fixed<1>;
	version: number;
}

/** Who did what, or was refused it; each row is chained to the one before by its hash. */
export interface AuditRow {
	/** 1, 2, 3 … without a gap. */
	seq: Fixed<number>;
	at: Fixed<InstantText>;
	request_id: Fixed<string>;
	/** Null where nobody proved who he is. */
	account_id: Fixed<string | null>;
	user_id: Fixed<string | null>;
	user_name: Fixed<string | null>;
	/** The access key's id, or "token" or "password"; never a secret. */
	credential: Fixed<string | null>;
	address: Fixed<string>;
	method: Fixed<string>;
	/** Without the query. */
	path: Fixed<string>;
	action: Fixed<string | null>;
	project_id: Fixed<string | null>;
	app_id: Fixed<string | null>;
	/** The id of the thing concerned, when the path or the answer names it. */
	resource: Fixed<string | null>;
	status: Fixed<number>;
	decision: Fixed<"allowed" | "refused">;
	/** The statement that decided, or why nobody was signed in. */
	reason: Fixed<string | null>;
	error_code: Fixed<string | null>;
	hash: Fixed<string>;
}

/** Where the chain begins and ends, sealed with a key that is not in the store. */
export interface AuditEndRow {
	name: Fixed<"tail" | "head">;
	seq: number;
	hash: string;
	seal: string;
}

/** Secrets the server keeps for itself, such as the key that signs download links. */
export interface ServerSecretRow {
	name: Fixed<string>;
	/** Encrypted under the master key. */
	sealed: string;
	created_at: Fixed<InstantText>;
}

// --- what a maker registers ---------------------------------------------------

export interface ResourceSpaceRow {
	app_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	name: string;
	is_default: Fixed<Bit>;
	enterprise_project_id: Generated<string>;
	/** JSON object: what policies can ask for as `g:ResourceTag/…`. */
	tags: Generated<string>;
	created_at: Fixed<InstantText>;
}

/** How module tasks reach devices that have not shown that they speak of modules. */
export type ModuleForm = "none" | "native" | "compatible";
/** Whether a device fetches a package by a signed address or with a bearer token. */
export type DownloadForm = "presigned" | "token";

export interface ProductRow {
	/** Ours, and the record id of paging: `product_id` is unique only inside its space. */
	product_key: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	product_id: Fixed<string>;
	name: string;
	device_type: string;
	protocol_type: string;
	data_format: string;
	manufacturer_name: string | null;
	industry: string | null;
	description: string | null;
	/** JSON, as given. */
	service_capabilities: string;
	module_form: ModuleForm;
	download_form: DownloadForm;
	created_at: Fixed<InstantText>;
}

export interface OtaModuleRow {
	module_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	product_key: Fixed<string>;
	module_name: Fixed<string>;
	alias_name: string | null;
	description: string | null;
	/** 1 to 10, unique in the product: how the store itself refuses an eleventh module. */
	slot: Fixed<number>;
	created_at: Fixed<InstantText>;
}

export interface ObjectRow {
	project_id: Fixed<string>;
	bucket_name: Fixed<string>;
	object_key: Fixed<string>;
	size_bytes: number;
	/** Hex, lower case; also where the bytes lie in the artifact store. */
	sha256: string;
	sha1: string;
	md5: string;
	content_type: string;
	updated_at: InstantText;
}

export type PackageType =
	| "firmwarePackage"
	| "softwarePackage"
	| "modulePackage";

export interface PackageRow {
	package_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	product_key: Fixed<string>;
	package_type: Fixed<PackageType>;
	/** Empty for firmware and software. */
	module_name: Fixed<string>;
	version: Fixed<string>;
	/** JSON list as given, or null when none was given. */
	source_versions: Fixed<string | null>;
	/** Digest of the list as a set, so that a unique index can compare sets; empty for none. */
	source_version_set: Fixed<string>;
	description: string | null;
	custom_info: string | null;
	region_name: Fixed<string>;
	bucket_name: Fixed<string>;
	object_key: Fixed<string>;
	sign: Fixed<string>;
	/** Of the object at creation: checked again at the start of a task. */
	sha256: Fixed<string>;
	size_bytes: Fixed<number>;
	created_at: Fixed<InstantText>;
}

// --- devices --------------------------------------------------------------------

export interface DeviceRow {
	device_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	product_key: Fixed<string>;
	node_id: Fixed<string>;
	device_name: string | null;
	description: string | null;
	/** Null for a device that connects by itself. */
	gateway_id: string | null;
	/** 0 direct, 1 child, 2 child of a child. */
	depth: Fixed<number>;
	/** Whose connection carries it: its own id, or that of the gateway at the root. */
	link_id: Fixed<string>;
	/** What the gateway last said about a child: it may be off while the gateway is on. */
	reported_status: "ONLINE" | "OFFLINE" | null;
	reported_status_at: InstantText | null;
	/** Of a child: the version of its gateway's list that added it; null: not numbered yet. */
	link_version: number | null;
	/** Of a gateway: counts the changes among the devices behind it. */
	children_version: Generated<number>;
	auth_type: "SECRET" | "CERTIFICATES";
	secret_sealed: string | null;
	secondary_secret_sealed: string | null;
	fingerprint: string | null;
	secondary_fingerprint: string | null;
	secure_access: Bit;
	timeout_seconds: number;
	/** JSON, as given. */
	extension_info: string | null;
	frozen: Bit;
	fw_version: string | null;
	sw_version: string | null;
	device_sdk_version: string | null;
	/** 1 once the device itself has named a module: it understands module events. */
	speaks_modules: Bit;
	/** The operator's mark on this device alone; null: as the product says. */
	module_form: ModuleForm | null;
	/** First connection ever. */
	active_at: InstantText | null;
	connection_status_at: InstantText | null;
	/** The last connection that its timeline tells of. */
	connection_noted_at: ColumnType<
		InstantText | null,
		InstantText | null | undefined,
		InstantText | null
	>;
	created_at: Fixed<InstantText>;
}

/** The last version a device reported for each of its modules. */
export interface DeviceModuleRow {
	device_id: Fixed<string>;
	module_name: Fixed<string>;
	module_version: string;
	reported_at: InstantText;
}

/** A child that its gateway may still know of. */
export interface DeletedChildRow {
	link_id: Fixed<string>;
	/** Of the gateway's list; see `devices.children_version`. */
	version: Fixed<number>;
	device_id: Fixed<string>;
	node_id: Fixed<string>;
	parent_device_id: Fixed<string>;
}

/** Who is connected, and to which node. No row: offline. */
export interface PresenceRow {
	device_id: Fixed<string>;
	node_id: string;
	/** Tells a replaced connection's late close from the newer connection. */
	connection_id: string;
	connected_at: InstantText;
}

export interface NodeRow {
	node_id: Fixed<string>;
	started_at: InstantText;
	heartbeat_at: InstantText;
}

// --- groups, tags, imports -------------------------------------------------------

export type GroupType = "STATIC" | "DYNAMIC";

export interface DeviceGroupRow {
	group_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	name: string;
	description: string | null;
	super_group_id: Fixed<string | null>;
	/** 1 for a group without a parent. */
	depth: Fixed<number>;
	group_type: Fixed<GroupType>;
	/** Of a dynamic group: the condition as it was given. */
	rule: Fixed<string | null>;
	created_at: Fixed<InstantText>;
	updated_at: InstantText;
}

/** Members of static groups. */
export interface DeviceGroupMemberRow {
	group_id: Fixed<string>;
	/** The record id of the device: what members are ordered by. */
	device_record_id: Fixed<string>;
	device_id: Fixed<string>;
}

export interface DeviceTagRow {
	device_id: Fixed<string>;
	tag_key: Fixed<string>;
	/** Empty when none was given. */
	tag_value: string;
}

export type ImportStatus = "Processing" | "Success" | "PartialSuccess" | "Fail";

/** The registration of many devices from one file. `import_id` is its record id too. */
export interface DeviceImportRow {
	import_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	/** The node that received the file, and works it off. */
	node_id: Fixed<string>;
	/** JSON: who asked. Lines may name other resource spaces, in which he must be allowed to register. */
	scope: Fixed<string>;
	format: Fixed<"csv" | "ndjson">;
	status: ImportStatus;
	status_desc: string | null;
	total_bytes: Fixed<number>;
	/** Where to go on after a restart: bytes and lines that are worked off. */
	done_bytes: number;
	done_lines: number;
	created: number;
	/** Lines whose device existed already with the same product and node id. */
	unchanged: number;
	refused: number;
	/** CSV: JSON list of the column names. */
	header: string | null;
	created_at: Fixed<InstantText>;
	finished_at: InstantText | null;
	/** Gone for every caller; its node is removing what is left of it. */
	deleted_at: InstantText | null;
}

export interface DeviceImportRefusalRow {
	import_id: Fixed<string>;
	/** 1 for the first line of the file. */
	line: Fixed<number>;
	device_id: Fixed<string | null>;
	error_code: Fixed<string>;
	error_msg: Fixed<string>;
}

// --- history ----------------------------------------------------------------------

/** What happened, for the timeline of a device and for those who watch. */
export interface HistoryRow {
	/** In the order of insertion. */
	seq: Generated<number>;
	/** The transaction that wrote it; see follow.ts. */
	tx: Generated<number>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	device_id: Fixed<string | null>;
	task_id: Fixed<string | null>;
	kind: Fixed<string>;
	/** JSON object. */
	detail: Fixed<string | null>;
	at: Fixed<InstantText>;
}

/** One row: the last entry, in the order of following, that the retention has removed. */
export interface HistorySweptRow {
	tx: number;
	seq: number;
}

// --- upgrade tasks ----------------------------------------------------------------

export type TaskType = "firmwareUpgrade" | "softwareUpgrade" | "moduleUpgrade";
export type TaskStatus =
	| "Initializing"
	| "Waitting"
	| "Processing"
	| "Success"
	| "Fail"
	| "PartialSuccess"
	| "Stopping"
	| "Stopped";
export type SubtaskStatus =
	| "Waitting"
	| "Processing"
	| "Success"
	| "Fail"
	| "FailWaitRetry"
	| "Stopped"
	| "Removed";
/** Where inside `Processing` a subtask stands. */
export type ExchangePhase =
	| "await_online"
	| "await_version"
	| "delivered"
	| "reporting"
	| "verify_version";

export interface UpgradeTaskRow {
	task_id: Fixed<string>;
	record_id: Fixed<string>;
	project_id: Fixed<string>;
	app_id: Fixed<string>;
	product_key: Fixed<string>;
	task_name: string;
	task_type: Fixed<TaskType>;
	/** Empty unless `moduleUpgrade`. */
	module_name: Fixed<string>;
	target_version: Fixed<string>;
	/** JSON, as the caller sent it: echoed in every answer. */
	document: Fixed<string>;
	status: TaskStatus;
	status_desc: string | null;
	total: number;
	waitting: number;
	processing: number;
	success: number;
	fail: number;
	fail_wait_retry: number;
	stopped: number;
	removed: number;
	/** JSON, as the caller sent them. */
	targets_filter: Fixed<string | null>;
	task_policy: Fixed<string | null>;
	task_ext_info: Fixed<string | null>;
	task_mode: Fixed<"GATEWAY" | null>;
	/** 1: a subtask is started only once it is confirmed. */
	need_confirm: Fixed<Bit>;
	/** 1: all of it is confirmed, whatever the subtasks say. */
	confirmed: Bit;
	/** Null: at once. */
	schedule_at: Fixed<InstantText | null>;
	/** Retries that follow a failure by themselves; 0: none. */
	retry_count: Fixed<number>;
	retry_interval_minutes: Fixed<number>;
	/** Parts (chunks of listed targets, or groups) that are subtasks already, of `part_count`. */
	expanded_parts: number;
	part_count: Fixed<number>;
	/** Inside a group: the id of the last device looked at, as its walk has it; empty: none yet. */
	expanded_after: string;
	/** The highest position that is taken. */
	last_position: number;
	/** Every subtask up to this position has been started, or waits for a confirmation. */
	started_position: number;
	/** How far a retry of everything has come; null: none is under way. */
	swept_position: number | null;
	/** When the rollout must look at this task again; null: never. */
	due_at: InstantText | null;
	/** Until when other processes leave this task alone. */
	leased_until: InstantText | null;
	/** The node that moves it on. */
	leased_by: string | null;
	created_at: Fixed<InstantText>;
	finished_at: InstantText | null;
	/** Gone for every caller; its rows are being removed. */
	deleted_at: InstantText | null;
}

/** The targets as submitted, in chunks: read for expansion and to answer `targets`. */
export interface UpgradeTaskTargetsRow {
	task_id: Fixed<string>;
	chunk: Fixed<number>;
	/** JSON list of device ids, in the order given, each once. */
	device_ids: Fixed<string>;
}

export interface UpgradeTaskPackageRow {
	task_id: Fixed<string>;
	package_id: Fixed<string>;
}

/** The groups of a task as they were when it was created, in the order named. */
export interface UpgradeTaskGroupRow {
	task_id: Fixed<string>;
	part: Fixed<number>;
	group_id: Fixed<string>;
	group_type: Fixed<GroupType>;
	rule: Fixed<string | null>;
	/** The order in which its devices are walked through; null: not begun. */
	walk: "device_id" | "record_id" | null;
}

export interface SubtaskRow {
	task_id: Fixed<string>;
	/** 1, 2, … in the order of the targets; as 24 hex digits the paging marker. */
	position: Fixed<number>;
	device_id: Fixed<string>;
	status: SubtaskStatus;
	phase: ExchangePhase | null;
	/** Counts every write: a move is written only over the revision it was decided on. */
	revision: Generated<number>;
	/** Retries made by themselves since it was last started by somebody. */
	attempt: Generated<number>;
	/** 1: waits to be confirmed. */
	held: Generated<Bit>;
	/** 1 while a version query is out whose answer decides about repeating the notice. */
	asked: Bit;
	/** Null until chosen by the version the device reported. */
	package_id: string | null;
	/** When the time limit of the phase runs out, or a notice is to be repeated. */
	due_at: InstantText | null;
	/** When the newest notice was issued: what a download token is bound to. */
	offered_at: InstantText | null;
	/** The end of the 24 hours that began with the first notice. */
	expires_at: InstantText | null;
	progress: number | null;
	output: string | null;
	error_code: string | null;
	error_msg: string | null;
	updated_at: InstantText;
}
