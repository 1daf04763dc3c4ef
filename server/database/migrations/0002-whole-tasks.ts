/**
 * Tasks with schedules, retries, confirmation, groups and gateways; groups and tags;
 * the import of many devices; the history of devices.
 */
import { type ColumnDefinitionBuilder, type Kysely, sql } from "kysely";
import type { Migration } from "kysely/migration";
import {
	followingIndex,
	idText,
	numberedRow,
	partialIndex,
	transactionNumber,
	uniqueIndex,
} from "../schema.ts";

type Schema = Kysely<unknown>;

export const wholeTasks: Migration = {
	async up(db: Schema) {
		const id = idText(db);
		const table = (name: string) => db.schema.createTable(name);
		const addColumn = (
			to: string,
			name: string,
			type: Parameters<ReturnType<typeof db.schema.alterTable>["addColumn"]>[1],
			build: (column: ColumnDefinitionBuilder) => ColumnDefinitionBuilder = (
				column,
			) => column,
		) => db.schema.alterTable(to).addColumn(name, type, build).execute();

		// Whose connection carries a device: its own, or that of the gateway at the root.
		await addColumn("devices", "link_id", id, (c) => c.notNull().defaultTo(""));
		await addColumn("devices", "reported_status", "text");
		await addColumn("devices", "reported_status_at", id);
		await addColumn("devices", "connection_noted_at", id);
		await sql`update devices set link_id = device_id where depth = 0`.execute(
			db,
		);
		await sql`update devices set link_id = gateway_id where depth = 1`.execute(
			db,
		);
		await sql`
			update devices set link_id = (
				select parent.gateway_id from devices as parent where parent.device_id = devices.gateway_id)
			where depth = 2`.execute(db);
		await partialIndex(
			db,
			"devices_by_link",
			"devices",
			["link_id", "record_id"],
			"depth > 0",
		);
		// In which version of its list of children a gateway was told of this one.
		await addColumn("devices", "link_version", "integer");
		await addColumn("devices", "children_version", "integer", counter);
		await partialIndex(
			db,
			"devices_by_link_version",
			"devices",
			["link_id", "link_version", "record_id"],
			"depth > 0",
		);
		await table("deleted_children")
			.addColumn("link_id", id, (c) =>
				c.notNull().references("devices.device_id").onDelete("cascade"),
			)
			.addColumn("version", "integer", (c) => c.notNull())
			.addColumn("device_id", id, (c) => c.notNull())
			.addColumn("node_id", id, (c) => c.notNull())
			.addColumn("parent_device_id", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("deleted_children_pkey", [
				"link_id",
				"version",
				"device_id",
			])
			.execute();

		for (const [from, to] of [
			["chunk_count", "part_count"],
			["expanded_chunks", "expanded_parts"],
		] as const)
			await db.schema
				.alterTable("upgrade_tasks")
				.renameColumn(from, to)
				.execute();
		await addColumn("upgrade_tasks", "expanded_after", id, (c) =>
			c.notNull().defaultTo(""),
		);
		await addColumn("upgrade_tasks", "last_position", "integer", counter);
		await sql`update upgrade_tasks set last_position = part_count * 5000`.execute(
			db,
		);
		for (const name of [
			"targets_filter",
			"task_policy",
			"task_mode",
			"task_ext_info",
		])
			await addColumn("upgrade_tasks", name, "text");
		await addColumn("upgrade_tasks", "need_confirm", "integer", counter);
		await addColumn("upgrade_tasks", "confirmed", "integer", counter);
		await addColumn("upgrade_tasks", "schedule_at", id);
		await addColumn("upgrade_tasks", "retry_count", "integer", counter);
		await addColumn(
			"upgrade_tasks",
			"retry_interval_minutes",
			"integer",
			counter,
		);
		await addColumn("upgrade_tasks", "swept_position", "integer");

		await table("upgrade_task_groups")
			.addColumn("task_id", id, (c) => c.notNull())
			.addColumn("part", "integer", (c) => c.notNull())
			.addColumn("group_id", id, (c) => c.notNull())
			.addColumn("group_type", "text", (c) => c.notNull())
			.addColumn("rule", "text")
			.addColumn("walk", "text")
			.addPrimaryKeyConstraint("upgrade_task_groups_pkey", ["task_id", "part"])
			.execute();

		await addColumn("subtasks", "attempt", "integer", counter);
		await addColumn("subtasks", "held", "integer", counter);

		await table("device_groups")
			.addColumn("group_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			// A space without products has no devices; what groups it has go with it.
			.addColumn("app_id", id, (c) =>
				c.notNull().references("resource_spaces.app_id").onDelete("cascade"),
			)
			.addColumn("name", id, (c) => c.notNull())
			.addColumn("description", "text")
			.addColumn("super_group_id", id)
			.addColumn("depth", "integer", (c) => c.notNull())
			.addColumn("group_type", "text", (c) => c.notNull())
			.addColumn("rule", "text")
			.addColumn("created_at", id, (c) => c.notNull())
			.addColumn("updated_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("device_groups_pkey", ["group_id"])
			.execute();
		await uniqueIndex(db, "device_groups_name");
		await db.schema
			.createIndex("device_groups_list")
			.on("device_groups")
			.columns(["project_id", "record_id"])
			.execute();
		await db.schema
			.createIndex("device_groups_super")
			.on("device_groups")
			.column("super_group_id")
			.execute();

		await table("device_group_members")
			.addColumn("group_id", id, (c) => c.notNull())
			// Members are paged and expanded in the order of their devices.
			.addColumn("device_record_id", id, (c) => c.notNull())
			.addColumn("device_id", id, (c) =>
				c.notNull().references("devices.device_id").onDelete("cascade"),
			)
			.addPrimaryKeyConstraint("device_group_members_pkey", [
				"group_id",
				"device_record_id",
			])
			.execute();
		await db.schema
			.createIndex("device_group_members_device")
			.on("device_group_members")
			.column("device_id")
			.execute();

		await table("device_tags")
			.addColumn("device_id", id, (c) =>
				c.notNull().references("devices.device_id").onDelete("cascade"),
			)
			.addColumn("tag_key", id, (c) => c.notNull())
			.addColumn("tag_value", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("device_tags_pkey", ["device_id", "tag_key"])
			.execute();
		await db.schema
			.createIndex("device_tags_tag")
			.on("device_tags")
			.columns(["tag_key", "tag_value", "device_id"])
			.execute();

		await table("device_imports")
			.addColumn("import_id", id, (c) => c.notNull())
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("node_id", id, (c) => c.notNull())
			.addColumn("scope", "text", (c) => c.notNull())
			.addColumn("format", "text", (c) => c.notNull())
			.addColumn("status", "text", (c) => c.notNull())
			.addColumn("status_desc", "text")
			.addColumn("total_bytes", "bigint", (c) => c.notNull())
			.addColumn("done_bytes", "bigint", (c) => c.notNull())
			.addColumn("done_lines", "integer", counter)
			.addColumn("created", "integer", counter)
			.addColumn("unchanged", "integer", counter)
			.addColumn("refused", "integer", counter)
			.addColumn("header", "text")
			.addColumn("created_at", id, (c) => c.notNull())
			.addColumn("finished_at", id)
			.addColumn("deleted_at", id)
			.addPrimaryKeyConstraint("device_imports_pkey", ["import_id"])
			.execute();
		await db.schema
			.createIndex("device_imports_list")
			.on("device_imports")
			.columns(["project_id", "import_id"])
			.execute();

		await table("device_import_refusals")
			.addColumn("import_id", id, (c) => c.notNull())
			.addColumn("line", "integer", (c) => c.notNull())
			.addColumn("device_id", "text")
			.addColumn("error_code", "text", (c) => c.notNull())
			.addColumn("error_msg", "text", (c) => c.notNull())
			.addPrimaryKeyConstraint("device_import_refusals_pkey", [
				"import_id",
				"line",
			])
			.execute();

		await numberedRow(db, table("history"), "seq")
			.addColumn("tx", "bigint", transactionNumber(db))
			.addColumn("project_id", id, (c) => c.notNull())
			.addColumn("app_id", id, (c) => c.notNull())
			.addColumn("device_id", id)
			.addColumn("task_id", id)
			.addColumn("kind", "text", (c) => c.notNull())
			.addColumn("detail", "text")
			.addColumn("at", id, (c) => c.notNull())
			.execute();
		await partialIndex(
			db,
			"history_device",
			"history",
			["device_id", "seq"],
			"device_id is not null",
		);
		await followingIndex(db, "history_order", "history");
		// One row: up to where the retention has removed entries.
		await table("history_swept")
			.addColumn("tx", "bigint", (c) => c.notNull())
			.addColumn("seq", "bigint", (c) => c.notNull())
			.execute();
		await sql`insert into history_swept (tx, seq) values (0, 0)`.execute(db);
	},
};

function counter(column: ColumnDefinitionBuilder): ColumnDefinitionBuilder {
	return column.notNull().defaultTo(0);
}
