/** Brings a store's schema up to date, and refuses one that a newer server wrote. */
import { type Kysely, sql } from "kysely";
import { Migrator } from "kysely/migration";
import { migrations } from "./migrations/all.ts";
import type { Tables } from "./tables.ts";

export class SchemaTooNewError extends Error {
	override name = "SchemaTooNewError";
}

export async function migrate(db: Kysely<Tables>): Promise<void> {
	const known = new Set(Object.keys(migrations));
	const newer = (await appliedMigrations(db)).filter(
		(name) => !known.has(name),
	);
	if (newer.length > 0) {
		throw new SchemaTooNewError(
			`The store was written by a newer server (it has the schema changes ${newer.join(", ")}, unknown to this one). Start that version again, or restore a backup made before it.`,
		);
	}
	const migrator = new Migrator({
		db,
		provider: { getMigrations: async () => migrations },
	});
	const { error } = await migrator.migrateToLatest();
	if (error) throw error;
}

async function appliedMigrations(db: Kysely<Tables>): Promise<string[]> {
	const tables = await db.introspection.getTables({
		withInternalKyselyTables: true,
	});
	if (!tables.some((table) => table.name === "kysely_migration")) return [];
	const { rows } = await sql<{
		name: string;
	}>`select name from kysely_migration order by name`.execute(db);
	return rows.map((row) => row.name);
}
