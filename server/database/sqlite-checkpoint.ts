/** The thread that copies SQLite's write-ahead log back into the file; see `sqlite.ts`. */
import { DatabaseSync } from "node:sqlite";
import { parentPort, workerData } from "node:worker_threads";

const database = new DatabaseSync((workerData as { file: string }).file, {
	timeout: 1_000,
});
database.exec("pragma synchronous=full");

parentPort?.on("message", () => {
	try {
		// Passive never makes a writer wait; the log starts over at its beginning once
		// everything in it was copied.
		database.exec("pragma wal_checkpoint(passive)");
	} finally {
		parentPort?.postMessage("done");
	}
});
