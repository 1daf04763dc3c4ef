/**
 * Who may do what, and who did what: groups of users, policies and grants, enterprise
 * projects of resource spaces, and the audit trail.
 */
import { type ColumnDefinitionBuilder, type Kysely, sql } from "kysely";
import type { Migration } from "kysely/migration";
import { idText, uniqueIndex } from "../schema.ts";

type Schema = Kysely<unknown>;

export const access: Migration = {
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
		const index = (name: string, on: string, columns: string[]) =>
			db.schema.createIndex(name).on(on).columns(columns).execute();

		// One row: counts the changes to anything that a permission depends on, so that
		// every process knows whether what it remembers is still true.
		await table("access_version")
			.addColumn("one", "integer", (c) => c.notNull().primaryKey())
			.addColumn("version", "bigint", (c) => c.notNull())
			.execute();
		await sql`insert into access_version (one, version) values (1, 1)`.execute(
			db,
		);

		await addColumn("users", "record_id", id, (c) => c.notNull().defaultTo(""));
		await sql`update users set record_id = substr(user_id, 1, 24)`.execute(db);
		await addColumn("users", "description", "text");
		await addColumn("users", "enabled", "integer", (c) =>
			c.notNull().defaultTo(1),
		);
		// 1: he must choose a password of his own before anything else.
		await addColumn("users", "must_change_password", "integer", (c) =>
			c.notNull().defaultTo(0),
		);
		await addColumn("users", "last_sign_in_at", id);
		await addColumn("access_keys", "description", "text");
		await addColumn("access_keys", "enabled", "integer", (c) =>
			c.notNull().defaultTo(1),
		);
		await addColumn("access_keys", "last_used_at", id);
		await index("access_keys_by_user", "access_keys", ["user_id"]);
		await index("tokens_by_user", "tokens", ["user_id"]);

		await table("user_groups")
			.addColumn("group_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("description", "text")
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("user_groups_pkey", ["group_id"])
			.execute();
		await uniqueIndex(db, "user_groups_name");
		await table("user_group_members")
			.addColumn("group_id", id, (c) =>
				c.notNull().references("user_groups.group_id").onDelete("cascade"),
			)
			.addColumn("user_id", id, (c) =>
				c.notNull().references("users.user_id").onDelete("cascade"),
			)
			.addPrimaryKeyConstraint("user_group_members_pkey", [
				"group_id",
				"user_id",
			])
			.execute();
		await index("user_group_members_by_user", "user_group_members", [
			"user_id",
		]);

		await table("policies")
			.addColumn("policy_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("description", "text")
			.addColumn("document", "text", (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addColumn("updated_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("policies_pkey", ["policy_id"])
			.execute();
		await uniqueIndex(db, "policies_name");

		await table("grants")
			.addColumn("grant_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			// A policy's id, or the name of a system policy.
			.addColumn("policy_id", id, (c) => c.notNull())
			.addColumn("principal_type", "text", (c) => c.notNull())
			.addColumn("principal_id", id, (c) => c.notNull())
			.addColumn("scope_type", "text", (c) => c.notNull())
			// Empty for a grant on everything.
			.addColumn("scope_id", id, (c) => c.notNull())
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("grants_pkey", ["grant_id"])
			.execute();
		await uniqueIndex(db, "grants_identity");
		await index("grants_by_policy", "grants", ["policy_id"]);

		await table("enterprise_projects")
			.addColumn("enterprise_project_id", id, (c) => c.notNull())
			.addColumn("record_id", id, (c) => c.notNull())
			.addColumn("account_id", id, (c) =>
				c.notNull().references("accounts.account_id"),
			)
			.addColumn("name", "text", (c) => c.notNull())
			.addColumn("description", "text")
			.addColumn("created_at", id, (c) => c.notNull())
			.addPrimaryKeyConstraint("enterprise_projects_pkey", [
				"enterprise_project_id",
			])
			.execute();
		await uniqueIndex(db, "enterprise_projects_name");
		// "0" is the one that every account has, without a row.
		await addColumn("resource_spaces", "enterprise_project_id", id, (c) =>
			c.notNull().defaultTo("0"),
		);
		// JSON object of the tags that policies can ask for.
		await addColumn("resource_spaces", "tags", "text", (c) =>
			c.notNull().defaultTo("{}"),
		);

		await table("audit")
			.addColumn("seq", "bigint", (c) => c.notNull().primaryKey())
			.addColumn("at", id, (c) => c.notNull())
			.addColumn("request_id", id, (c) => c.notNull())
			.addColumn("account_id", id)
			.addColumn("user_id", id)
			.addColumn("user_name", "text")
			.addColumn("credential", id)
			.addColumn("address", "text", (c) => c.notNull())
			.addColumn("method", "text", (c) => c.notNull())
			.addColumn("path", "text", (c) => c.notNull())
			.addColumn("action", id)
			.addColumn("project_id", id)
			.addColumn("app_id", id)
			.addColumn("resource", id)
			.addColumn("status", "integer", (c) => c.notNull())
			.addColumn("decision", "text", (c) => c.notNull())
			.addColumn("reason", "text")
			.addColumn("error_code", "text")
			.addColumn("hash", "text", (c) => c.notNull())
			.execute();
		await index("audit_by_user", "audit", ["user_id", "seq"]);
		await index("audit_by_action", "audit", ["action", "seq"]);
		await index("audit_by_resource", "audit", ["resource", "seq"]);
		await index("audit_by_time", "audit", ["at", "seq"]);
		// Two rows: where the chain begins ("tail", what retention has removed last) and ends ("head").
		await table("audit_ends")
			.addColumn("name", id, (c) => c.notNull().primaryKey())
			.addColumn("seq", "bigint", (c) => c.notNull())
			.addColumn("hash", "text", (c) => c.notNull())
			.addColumn("seal", "text", (c) => c.notNull())
			.execute();
	},
};
