/** The thread that copies SQLite's write-ahead log back into the file; see `sqlite.ts`. */
import { DatabaseSync } from "node:sqlite";
import { parentPort, workerData } from "node:worker_threads";

const database = new DatabaseSync((workerData as { file: string }).file, {
	timeout: 1_000,
});
database.exec("pragma synchronous=full");

/** Passive never makes a writer wait; truncate is asked for when nobody writes. */
parentPort?.on("message", (mode: "passive" | "truncate") => {
	try {
		database.exec(`pragma wal_checkpoint(${mode})`);
	} finally {
		parentPort?.postMessage("done");
	}
});
