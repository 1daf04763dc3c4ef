/**
 * The reference of the report benchmark: what the embedded engine does when nothing
 * but durable inserts is asked of it, in a process of its own, with so many rows per
 * commit. Arguments: database file, rows per commit, milliseconds.
 */
import { DatabaseSync } from "node:sqlite";
import { setImmediate as turn } from "node:timers/promises";

const [file = "", rowsPerCommitText = "", durationText = ""] =
	process.argv.slice(2);
const rowsPerCommit = Number(rowsPerCommitText);
const durationMs = Number(durationText);

const database = new DatabaseSync(file);
database.exec(
	"pragma journal_mode=wal; pragma synchronous=full; pragma wal_autocheckpoint=10000; create table reports (device_id text, progress integer, version text, at text)",
);
const insert = database.prepare("insert into reports values (?, ?, ?, ?)");
const begin = database.prepare("begin immediate");
const commit = database.prepare("commit");

let rows = 0;
const startedAtMs = performance.now();
while (performance.now() - startedAtMs < durationMs) {
	begin.run();
	for (let i = 0; i < rowsPerCommit; i++) {
		insert.run(
			`product_device-${rows % 1000}`,
			rows % 100,
			"1.0.0",
			"2026-01-29T08:00:00.000Z",
		);
		rows++;
	}
	commit.run();
	// As a server would: the event loop turns between two commits.
	await turn();
}
const elapsedMs = performance.now() - startedAtMs;
database.close();
process.stdout.write(JSON.stringify({ rows, elapsedMs }));
