/**
 * The first schema. An older server does not exist, so nothing older may run on it.
 *
 * What must never be false is a constraint here: a module name once per product, at
 * most ten modules (ten slots, each taken once), one running exchange per device.
 */
import { type ColumnDefinitionBuilder, type Kysely, sql } from "kysely";
import type { Migration } from "kysely/migration";
import { idText, partialIndex, uniqueIndex } from "../schema.ts";

type Schema = Kysely<unknown>;

export const first: Migration = {
	async up(db: Schema) {
		const id = idText(db);
		const table = (name: string) => db.schema.createTable(name);

		await table("accounts")
			.addColumn("account_id", id, (c) => c.notNull())
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("accounts_pkey", ["account_id"])
			.execute();

		await table("users")
			.addColumn("user_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("password_hash", "text", (c) => c.notNull())
			.addColumn("is_administrator", "integer", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("users_pkey", ["user_id"])
			.execute();
		await uniqueIndex(db, "users_name");

		await table("access_keys")
			.addColumn("access_key", id, (c) => c.notNull())
			.addColumn("user_id", id, (c) => c.notNull().references("users.user_id"))
			.addColumn("secret_sealed", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("access_keys_pkey", ["access_key"])
			.execute();

		await table("projects")
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("projects_pkey", ["project_id"])
			.execute();
		await uniqueIndex(db, "projects_name");

		await table("tokens")
			.addColumn("token_hash", id, (c) => c.notNull())
			.addColumn("user_id", id, (c) => c.notNull().references("users.user_id"))
			.addColumn("project_id", id)
			.addColumn("created_at", id, (c) => c.notNull())
			.addColumn("expires_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("tokens_pkey", ["token_hash"])
			.execute();
		await db.schema
			.createIndex("tokens_expires_at")
			.on("tokens")
			.column("expires_at")
			.execute();

		await table("server_secrets")
			.addColumn("name", id, (c) => c.notNull())
			.addColumn("sealed", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("server_secrets_pkey", ["name"])
			.execute();

		await table("resource_spaces")
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) =>
				c.notNull().references("projects.project_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("is_default", "integer", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("resource_spaces_pkey", ["app_id"])
			.execute();
		await db.schema
			.createIndex("resource_spaces_project")
			.on("resource_spaces")
			.columns(["project_id", "record_id"])
			.unique()
			.execute();

		await table("products")
			.addColumn("product_key", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) =>
				c.notNull().references("resource_spaces.app_id"),
			)
			.addColumn("product_id", id, (c) => c.notNull())
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("device_type", "text", (c) => c.notNull())
			.addColumn("protocol_type", "text", (c) => c.notNull())
			.addColumn("data_format", "text", (c) => c.notNull())
			.addColumn("manufacturer_name", "text")
			.addColumn("industry", "text")
			.addColumn("description", "text")
			.addColumn("service_capabilities", "text", (c) => c.notNull())
			.addColumn("module_form", "text", (c) => c.notNull())
			.addColumn("download_form", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("products_pkey", ["product_key"])
			.execute();
		await uniqueIndex(db, "products_space_product_id");
		await db.schema
			.createIndex("products_project")
			.on("products")
			.columns(["project_id", "product_key"])
			.execute();

		await table("ota_modules")
			.addColumn("module_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("product_key", id, (c) =>
				c.notNull().references("products.product_key"),
			)
			.addColumn("module_name", id, (c) => c.notNull())
			.addColumn("alias_name", "text")
			.addColumn("description", "text")
			.addColumn("slot", "integer", (c) =>
				c.notNull().check(sql`slot between 1 and 10`),
			)
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("ota_modules_pkey", ["module_id"])
			.execute();
		await uniqueIndex(db, "ota_modules_name");
		await uniqueIndex(db, "ota_modules_slot");
		await db.schema
			.createIndex("ota_modules_space")
			.on("ota_modules")
			.columns(["app_id", "record_id"])
			.execute();

		await table("objects")
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("bucket_name", id, (c) => c.notNull())
			.addColumn("object_key", id, (c) => c.notNull())
			.addColumn("size_bytes", "bigint", (c) => c.notNull())
			.addColumn("sha256", id, (c) => c.notNull())
			.addColumn("sha1", id, (c) => c.notNull())
			.addColumn("md5", id, (c) => c.notNull())
			.addColumn("content_type", "text", (c) => c.notNull())
			.addColumn("updated_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("objects_pkey", [
				"project_id",
				"bucket_name",
				"object_key",
			])
			.execute();
		await db.schema
			.createIndex("objects_sha256")
			.on("objects")
			.column("sha256")
			.execute();

		await table("packages")
			.addColumn("package_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("product_key", id, (c) =>
				c.notNull().references("products.product_key"),
			)
			.addColumn("package_type", "text", (c) => c.notNull())
			.addColumn("module_name", id, (c) => c.notNull())
			.addColumn("version", id, (c) => c.notNull())
			.addColumn("source_versions", "text")
			.addColumn("source_version_set", "text", (c) => c.notNull())
			.addColumn("description", "text")
			.addColumn("custom_info", "text")
			.addColumn("region_name", "text", (c) => c.notNull())
			.addColumn("bucket_name", id, (c) => c.notNull())
			.addColumn("object_key", id, (c) => c.notNull())
			.addColumn("sign", id, (c) => c.notNull())
			.addColumn("sha256", id, (c) => c.notNull())
			.addColumn("size_bytes", "bigint", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("packages_pkey", ["package_id"])
			.execute();
		await uniqueIndex(db, "packages_identity");
		await db.schema
			.createIndex("packages_list")
			.on("packages")
			.columns(["project_id", "package_type", "record_id"])
			.execute();
		await db.schema
			.createIndex("packages_object")
			.on("packages")
			.columns(["project_id", "bucket_name", "object_key"])
			.execute();

		await table("devices")
			.addColumn("device_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("product_key", id, (c) =>
				c.notNull().references("products.product_key"),
			)
			.addColumn("node_id", id, (c) => c.notNull())
			.addColumn("device_name", "text")
			.addColumn("description", "text")
			.addColumn("gateway_id", id)
			.addColumn("depth", "integer", (c) => c.notNull())
			.addColumn("auth_type", "text", (c) => c.notNull())
			.addColumn("secret_sealed", "text")
			.addColumn("secondary_secret_sealed", "text")
			.addColumn("fingerprint", "text")
			.addColumn("secondary_fingerprint", "text")
			.addColumn("secure_access", "integer", (c) => c.notNull())
			.addColumn("timeout_seconds", "integer", (c) => c.notNull())
			.addColumn("extension_info", "text")
			.addColumn("frozen", "integer", (c) => c.notNull())
			.addColumn("fw_version", "text")
			.addColumn("sw_version", "text")
			.addColumn("device_sdk_version", "text")
			.addColumn("speaks_modules", "integer", (c) => c.notNull())
			.addColumn("module_form", "text")
			.addColumn("active_at", id)
			.addColumn("connection_status_at", id)
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("devices_pkey", ["device_id"])
			.execute();
		for (const column of [
			"project_id",
			"app_id",
			"product_key",
			"gateway_id",
			"node_id",
		]) {
			await db.schema
				.createIndex(`devices_by_${column}`)
				.on("devices")
				.columns([column, "record_id"])
				.execute();
		}

		await table("device_modules")
			.addColumn("device_id", id, (c) =>
				c.notNull().references("devices.device_id").onDelete("cascade"),
			)
			.addColumn("module_name", id, (c) => c.notNull())
			.addColumn("module_version", "text", (c) => c.notNull())
			.addColumn("reported_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("device_modules_pkey", [
				"device_id",
				"module_name",
			])
			.execute();

		await table("presence")
			.addColumn("device_id", id, (c) =>
				c.notNull().references("devices.device_id").onDelete("cascade"),
			)
			.addColumn("node_id", id, (c) => c.notNull())
			.addColumn("connection_id", id, (c) => c.notNull())
			.addColumn("connected_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("presence_pkey", ["device_id"])
			.execute();
		await db.schema
			.createIndex("presence_node")
			.on("presence")
			.columns(["node_id", "device_id"])
			.execute();

		await table("nodes")
			.addColumn("node_id", id, (c) => c.notNull())
			.addColumn("started_at", id, (c) => c.notNull())
			.addColumn("heartbeat_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("nodes_pkey", ["node_id"])
			.execute();

		await table("upgrade_tasks")
			.addColumn("task_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("product_key", id, (c) => c.notNull())
			.addColumn("task_name", "text", (c) => c.notNull())
			.addColumn("task_type", "text", (c) => c.notNull())
			.addColumn("module_name", id, (c) => c.notNull())
			.addColumn("target_version", id, (c) => c.notNull())
			.addColumn("document", "text", (c) => c.notNull())
			.addColumn("status", "text", (c) => c.notNull())
			.addColumn("status_desc", "text")
			.addColumn("total", "integer", counter)
			.addColumn("waitting", "integer", counter)
			.addColumn("processing", "integer", counter)
			.addColumn("success", "integer", counter)
			.addColumn("fail", "integer", counter)
			.addColumn("fail_wait_retry", "integer", counter)
			.addColumn("stopped", "integer", counter)
			.addColumn("removed", "integer", counter)
			.addColumn("expanded_chunks", "integer", (c) => c.notNull())
			.addColumn("chunk_count", "integer", (c) => c.notNull())
			.addColumn("started_position", "integer", (c) => c.notNull())
			.addColumn("due_at", id)
			.addColumn("leased_until", id)
			.addColumn("leased_by", id)
			.addColumn("created_at", id, (c) => c.notNull())
			.addColumn("finished_at", id)
			.addColumn("deleted_at", id)
			.addPrimaryKeyConstraint("upgrade_tasks_pkey", ["task_id"])
			.execute();
		await db.schema
			.createIndex("upgrade_tasks_list")
			.on("upgrade_tasks")
			.columns(["project_id", "task_type", "record_id"])
			.execute();
		await partialIndex(
			db,
			"upgrade_tasks_due",
			"upgrade_tasks",
			["due_at"],
			"due_at is not null",
		);

		await table("upgrade_task_targets")
			.addColumn("task_id", id, (c) => c.notNull())
			.addColumn("chunk", "integer", (c) => c.notNull())
			.addColumn("device_ids", "text", (c) => c.notNull())
			.addPrimaryKeyConstraint("upgrade_task_targets_pkey", [
				"task_id",
				"chunk",
			])
			.execute();

		await table("upgrade_task_packages")
			.addColumn("task_id", id, (c) => c.notNull())
			.addColumn("package_id", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("upgrade_task_packages_pkey", [
				"task_id",
				"package_id",
			])
			.execute();
		await db.schema
			.createIndex("upgrade_task_packages_package")
			.on("upgrade_task_packages")
			.column("package_id")
			.execute();

		// No foreign keys: a task of a million devices is written in bulk, and its rows
		// are removed with it in chunks.
		await table("subtasks")
			.addColumn("task_id", id, (c) => c.notNull())
			.addColumn("position", "integer", (c) => c.notNull())
			.addColumn("device_id", id, (c) => c.notNull())
			.addColumn("status", id, (c) => c.notNull())
			.addColumn("phase", id)
			.addColumn("revision", "integer", (c) => c.notNull().defaultTo(0))
			.addColumn("asked", "integer", counter)
			.addColumn("package_id", id)
			.addColumn("due_at", id)
			.addColumn("offered_at", id)
			.addColumn("expires_at", id)
			.addColumn("progress", "integer")
			.addColumn("output", "text")
			.addColumn("error_code", "text")
			.addColumn("error_msg", "text")
			.addColumn("updated_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("subtasks_pkey", ["task_id", "position"])
			.execute();
		await uniqueIndex(db, "subtasks_device");
		await uniqueIndex(db, "subtasks_one_exchange", "status = 'Processing'");
		await db.schema
			.createIndex("subtasks_status")
			.on("subtasks")
			.columns(["task_id", "status", "position"])
			.execute();
		await partialIndex(
			db,
			"subtasks_due",
			"subtasks",
			["due_at"],
			"due_at is not null",
		);
		await partialIndex(
			db,
			"subtasks_open",
			"subtasks",
			["device_id", "task_id"],
			"status in ('Waitting', 'FailWaitRetry')",
		);
	},
};

function counter(column: ColumnDefinitionBuilder): ColumnDefinitionBuilder {
	return column.notNull().defaultTo(0);
}
