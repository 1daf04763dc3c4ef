/**
 * Every unique constraint that code waits for, by name. SQLite names the columns in
 * its refusal and PostgreSQL the index: this list lets both be asked the same way.
 */
export const uniqueIndexes = {
	users_name: ["users", ["account_id", "name"]],
	projects_name: ["projects", ["account_id", "name"]],
	user_groups_name: ["user_groups", ["account_id", "name"]],
	policies_name: ["policies", ["account_id", "name"]],
	grants_identity: [
		"grants",
		[
			"account_id",
			"principal_type",
			"principal_id",
			"policy_id",
			"scope_type",
			"scope_id",
		],
	],
	enterprise_projects_name: ["enterprise_projects", ["account_id", "name"]],
	products_space_product_id: ["products", ["app_id", "product_id"]],
	ota_modules_name: ["ota_modules", ["product_key", "module_name"]],
	ota_modules_slot: ["ota_modules", ["product_key", "slot"]],
	packages_identity: [
		"packages",
		[
			"product_key",
			"package_type",
			"module_name",
			"version",
			"source_version_set",
		],
	],
	subtasks_device: ["subtasks", ["task_id", "device_id"]],
	/** Partial: only rows in `Processing`. At most one running exchange per device. */
	subtasks_one_exchange: ["subtasks", ["device_id"]],
	device_groups_name: ["device_groups", ["app_id", "name"]],
} as const satisfies Record<
	string,
	readonly [table: string, columns: readonly string[]]
>;

const primaryKeys = {
	devices_pkey: ["devices", ["device_id"]],
	objects_pkey: ["objects", ["project_id", "bucket_name", "object_key"]],
	accounts_pkey: ["accounts", ["account_id"]],
	nodes_pkey: ["nodes", ["node_id"]],
	server_secrets_pkey: ["server_secrets", ["name"]],
} as const satisfies Record<
	string,
	readonly [table: string, columns: readonly string[]]
>;

export type UniqueName = keyof typeof uniqueIndexes | keyof typeof primaryKeys;

/** Whether the error says that this constraint refused a row. */
export function isUniqueViolation(error: unknown, name: UniqueName): boolean {
	if (!(error instanceof Error)) return false;
	if ("constraint" in error)
		return (
			"code" in error && error.code === "23505" && error.constraint === name
		);
	const [table, columns] = { ...uniqueIndexes, ...primaryKeys }[name];
	return (
		error.message ===
		`UNIQUE constraint failed: ${columns.map((column) => `${table}.${column}`).join(", ")}`
	);
}
