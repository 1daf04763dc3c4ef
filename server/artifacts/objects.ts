/**
 * Objects: files under a bucket and a key. Rows say which artifact an object is; many
 * objects may be the same artifact, and an artifact goes when no object is it any more.
 */
import { createHash } from "node:crypto";
import type { Insertable, Selectable } from "kysely";
import type { Scope } from "../access/permissions.ts";
import {
	type Db,
	inTransaction,
	lockForShare,
	lockForUpdate,
} from "../database/database.ts";
import type { Page, PageResult } from "../database/paging.ts";
import { fromInstant, instant, type ObjectRow } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import { logger } from "../log.ts";
import type { ArtifactStore, StagedArtifact } from "./artifact-store.ts";

export interface StoredObject {
	projectId: string;
	bucketName: string;
	objectKey: string;
	sizeBytes: number;
	/** The three digests are hex, lower case. */
	sha256: string;
	sha1: string;
	md5: string;
	contentType: string;
	updatedAt: Date;
}

export interface NewObject {
	bucketName: string;
	objectKey: string;
	contentType: string;
	bytes: AsyncIterable<Uint8Array>;
	/** As announced; undefined when the sender did not say. */
	announcedBytes: number | undefined;
	/** Hex; undefined when the sender did not sign the body. */
	expectedSha256: string | undefined;
}

/** What package files may be: the two settings about them. */
export interface ObjectLimits {
	sizeLimitBytes: number;
	/** Lower case, each beginning with a dot. */
	suffixes: readonly string[];
}

const log = logger("artifacts");
const CHUNK_BYTES = 256 * 1024;
/** An artifact younger than this may still be waiting for its row. */
const SWEEP_AGE_MS = 60 * 60 * 1000;
const SWEEP_BATCH = 500;

/**
 * Keys are names, never paths: no segment may be empty, `.` or `..`, because clients
 * and proxies rewrite addresses that hold them. The limit counts bytes, as object
 * stores do: an index entry has to hold the key.
 *
 * @throws 400 IOTDA.000006 naming `object_key` and the rule.
 */
export function checkObjectKey(objectKey: string, limits: ObjectLimits): void {
	const bytes = Buffer.byteLength(objectKey);
	if (bytes < 1 || bytes > 1024) {
		throw invalidInput(
			"object_key",
			"must be 1 to 1024 characters, at most 1024 bytes in UTF-8",
		);
	}
	// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused
	if (/[\u0000-\u001f\u007f]/.test(objectKey) || !objectKey.isWellFormed()) {
		throw invalidInput("object_key", "must not contain control characters");
	}
	if (
		objectKey.split("/").some((part) => ["", ".", ".."].includes(part)) ||
		objectKey.includes("\\")
	) {
		throw invalidInput(
			"object_key",
			"must be names joined by single slashes; no part may be empty, . or .., and \\ is not allowed",
		);
	}
	const lower = objectKey.toLowerCase();
	if (!limits.suffixes.some((suffix) => lower.endsWith(suffix))) {
		throw invalidInput(
			"object_key",
			`must end in one of ${limits.suffixes.join(" ")}`,
		);
	}
}

export async function findObject(
	db: Db,
	projectId: string,
	bucketName: string,
	objectKey: string,
): Promise<StoredObject | undefined> {
	const row = await select(db, projectId, bucketName, objectKey)
		.selectAll()
		.executeTakeFirst();
	return row && fromRow(row);
}

/**
 * Like `findObject`, inside a transaction that is going to name the object: until it
 * ends nobody replaces or deletes the object.
 */
export async function holdObject(
	trx: Db,
	projectId: string,
	bucketName: string,
	objectKey: string,
): Promise<StoredObject | undefined> {
	const row = await lockForShare(
		trx,
		select(trx, projectId, bucketName, objectKey).selectAll(),
	).executeTakeFirst();
	return row && fromRow(row);
}

/** @throws 404 IOTDA.014965 */
export async function getObject(
	db: Db,
	scope: Scope,
	bucketName: string,
	objectKey: string,
): Promise<StoredObject> {
	const found = await findObject(db, scope.projectId, bucketName, objectKey);
	if (!found) throw new ApiError(errors.unknownObject);
	return found;
}

/**
 * One page of a bucket in the order of the keys, byte by byte. `marker` is the last
 * key of the page before; `count` is that of all objects with the prefix.
 */
export async function listObjects(
	db: Db,
	scope: Scope,
	bucketName: string,
	filter: { prefix: string; after: string | undefined },
	page: Pick<Page, "limit" | "offset">,
): Promise<PageResult<StoredObject>> {
	let query = db
		.selectFrom("objects")
		.where("project_id", "=", scope.projectId)
		.where("bucket_name", "=", bucketName);
	if (filter.prefix !== "") {
		query = query.where("object_key", ">=", filter.prefix);
		const end = afterPrefix(filter.prefix);
		if (end !== undefined) query = query.where("object_key", "<", end);
	}
	const { count } = await query
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.executeTakeFirstOrThrow();
	const { after } = filter;
	const rows = await query
		.$if(after !== undefined, (q) =>
			q.where("object_key", ">", after as string),
		)
		.selectAll()
		.orderBy("object_key")
		.limit(page.limit)
		.offset(page.offset)
		.execute();
	const last = rows.at(-1);
	return {
		items: rows.map(fromRow),
		page: {
			count: Number(count),
			...(last ? { marker: last.object_key } : {}),
		},
	};
}

/**
 * Stores the bytes and then lets the object be them, all or nothing.
 *
 * @throws 403 IOTDA.014966 while a package names an object of this key, 413
 * IOTDA.014967 above the size limit, 400 IOTDA.014968 or IOTDA.014969 for a body that
 * is not the announced one.
 */
export async function putObject(
	db: Db,
	store: ArtifactStore,
	scope: Scope,
	input: NewObject,
	limits: ObjectLimits,
	now: Date,
): Promise<{ object: StoredObject; created: boolean }> {
	const { bucketName, objectKey } = input;
	checkObjectKey(objectKey, limits);
	// Told before a gigabyte has travelled in vain; decided again at the end.
	if (await isInUse(db, scope.projectId, bucketName, objectKey)) {
		throw new ApiError(errors.objectInUse);
	}
	if ((input.announcedBytes ?? 0) > limits.sizeLimitBytes) {
		throw new ApiError(errors.objectTooLarge, {
			detail: `At most ${limits.sizeLimitBytes} bytes are accepted.`,
		});
	}
	await using staged = await store.stage(input.bytes, limits.sizeLimitBytes);
	checkBody(staged, input);
	const row: Insertable<ObjectRow> = {
		project_id: scope.projectId,
		bucket_name: bucketName,
		object_key: objectKey,
		size_bytes: staged.sizeBytes,
		sha256: staged.sha256,
		sha1: staged.sha1,
		md5: staged.md5,
		content_type: input.contentType,
		updated_at: instant(now),
	};
	const replaced = await store.exclusively(staged.sha256, async () => {
		await staged.keep();
		try {
			return await inTransaction(db, (trx) => replaceRow(trx, row));
		} catch (error) {
			// Should this fail as well, the sweep at the next start finds the bytes.
			await removeUnlessNamed(db, store, staged.sha256).catch(() => false);
			throw error;
		}
	});
	if (replaced !== undefined && replaced !== staged.sha256) {
		await dropUnnamed(db, store, replaced);
	}
	return { object: fromRow(row), created: replaced === undefined };
}

/** @throws 404 IOTDA.014965, 403 IOTDA.014966 while a package names the object. */
export async function deleteObject(
	db: Db,
	store: ArtifactStore,
	scope: Scope,
	bucketName: string,
	objectKey: string,
): Promise<void> {
	const { projectId } = scope;
	const sha256 = await inTransaction(db, async (trx) => {
		const found = await lockForUpdate(
			trx,
			select(trx, projectId, bucketName, objectKey).select("sha256"),
		).executeTakeFirst();
		if (!found) throw new ApiError(errors.unknownObject);
		if (await isInUse(trx, projectId, bucketName, objectKey)) {
			throw new ApiError(errors.objectInUse);
		}
		await trx
			.deleteFrom("objects")
			.where("project_id", "=", projectId)
			.where("bucket_name", "=", bucketName)
			.where("object_key", "=", objectKey)
			.execute();
		return found.sha256;
	});
	await dropUnnamed(db, store, sha256);
}

export type ArtifactCondition =
	| "sound"
	| "missing"
	| "wrong size"
	| "wrong bytes";

/** Whether the bytes are still there and still the same; reads all of them. */
export async function verifyObject(
	store: ArtifactStore,
	sha256: string,
	sizeBytes: number,
): Promise<ArtifactCondition> {
	await using artifact = await store.open(sha256);
	if (!artifact) return "missing";
	if (artifact.sizeBytes !== sizeBytes) return "wrong size";
	const digest = createHash("sha256");
	const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
	for (let position = 0; position < sizeBytes; ) {
		const read = await artifact.read(buffer, buffer.length, position);
		if (read === 0) return "wrong size";
		digest.update(buffer.subarray(0, read));
		position += read;
	}
	return digest.digest("hex") === sha256 ? "sound" : "wrong bytes";
}

/** The bytes of an object from `start` up to `end`, exclusive, in chunks. */
export async function* readObject(
	store: ArtifactStore,
	sha256: string,
	range: { start: number; end: number },
): AsyncGenerator<Buffer, void, undefined> {
	await using artifact = await store.open(sha256);
	if (!artifact) throw new Error(`The artifact ${sha256} is missing.`);
	for (let position = range.start; position < range.end; ) {
		const chunk = Buffer.allocUnsafeSlow(
			Math.min(CHUNK_BYTES, range.end - position),
		);
		const read = await artifact.read(chunk, chunk.length, position);
		if (read === 0) throw new Error(`The artifact ${sha256} is cut short.`);
		yield chunk.subarray(0, read);
		position += read;
	}
}

/**
 * Removes what killed processes left: half-written bytes, and artifacts that no object
 * is, for there is a moment between the bytes and the row. Whatever is younger than an
 * hour is spared, for it may be an upload of another process.
 *
 * @returns how many were removed.
 */
export async function sweepArtifacts(
	db: Db,
	store: ArtifactStore,
	now: Date,
): Promise<number> {
	const before = new Date(now.getTime() - SWEEP_AGE_MS);
	let removed = await store.dropUnfinished(before);
	let batch: string[] = [];
	const sweep = async () => {
		const named = await db
			.selectFrom("objects")
			.select("sha256")
			.where("sha256", "in", batch)
			.execute();
		const known = new Set(named.map((row) => row.sha256));
		for (const sha256 of batch) {
			if (known.has(sha256)) continue;
			if (await dropArtifact(db, store, sha256)) removed++;
		}
		batch = [];
	};
	for await (const artifact of store.list()) {
		if (artifact.keptAt >= before) continue;
		batch.push(artifact.sha256);
		if (batch.length === SWEEP_BATCH) await sweep();
	}
	if (batch.length > 0) await sweep();
	return removed;
}

function checkBody(staged: StagedArtifact, input: NewObject): void {
	const { announcedBytes, expectedSha256 } = input;
	if (announcedBytes !== undefined && staged.sizeBytes !== announcedBytes) {
		throw new ApiError(errors.objectIncomplete, {
			detail: `${staged.sizeBytes} of ${announcedBytes} bytes came.`,
		});
	}
	if (staged.sizeBytes === 0) throw invalidInput("body", "must not be empty");
	if (
		expectedSha256 !== undefined &&
		staged.sha256 !== expectedSha256.toLowerCase()
	) {
		throw new ApiError(errors.objectHashMismatch, {
			detail: `Its SHA-256 is ${staged.sha256}.`,
		});
	}
}

/** @returns the artifact that the object was before; undefined when it is new. */
async function replaceRow(
	trx: Db,
	row: Insertable<ObjectRow>,
): Promise<string | undefined> {
	const { project_id, bucket_name, object_key, ...rest } = row;
	for (;;) {
		const before = await lockForUpdate(
			trx,
			select(trx, project_id, bucket_name, object_key).select("sha256"),
		).executeTakeFirst();
		if (before) {
			if (await isInUse(trx, project_id, bucket_name, object_key)) {
				throw new ApiError(errors.objectInUse);
			}
			await trx
				.updateTable("objects")
				.set(rest)
				.where("project_id", "=", project_id)
				.where("bucket_name", "=", bucket_name)
				.where("object_key", "=", object_key)
				.execute();
			return before.sha256;
		}
		const { numInsertedOrUpdatedRows } = await trx
			.insertInto("objects")
			.values(row)
			.onConflict((conflict) => conflict.doNothing())
			.executeTakeFirstOrThrow();
		if (numInsertedOrUpdatedRows === 1n) return undefined;
		// Another upload of the key was faster, and a package may name it already.
	}
}

async function isInUse(
	db: Db,
	projectId: string,
	bucketName: string,
	objectKey: string,
): Promise<boolean> {
	const named = await db
		.selectFrom("packages")
		.select("package_id")
		.where("project_id", "=", projectId)
		.where("bucket_name", "=", bucketName)
		.where("object_key", "=", objectKey)
		.limit(1)
		.executeTakeFirst();
	return named !== undefined;
}

/** After the row is gone: the caller has got what it asked for, whatever happens here. */
async function dropUnnamed(
	db: Db,
	store: ArtifactStore,
	sha256: string,
): Promise<void> {
	try {
		await dropArtifact(db, store, sha256);
	} catch (error) {
		log.error({ err: error, sha256 }, "bytes of a removed object remain");
	}
}

function dropArtifact(
	db: Db,
	store: ArtifactStore,
	sha256: string,
): Promise<boolean> {
	return store.exclusively(sha256, () => removeUnlessNamed(db, store, sha256));
}

/** To be called while holding the artifact. */
async function removeUnlessNamed(
	db: Db,
	store: ArtifactStore,
	sha256: string,
): Promise<boolean> {
	const named = await db
		.selectFrom("objects")
		.select("sha256")
		.where("sha256", "=", sha256)
		.limit(1)
		.executeTakeFirst();
	if (named) return false;
	await store.remove(sha256);
	return true;
}

function select(
	db: Db,
	projectId: string,
	bucketName: string,
	objectKey: string,
) {
	return db
		.selectFrom("objects")
		.where("project_id", "=", projectId)
		.where("bucket_name", "=", bucketName)
		.where("object_key", "=", objectKey);
}

/**
 * The smallest text that comes after every text with this prefix, in the order of
 * UTF-8 bytes, which is that of code points.
 */
function afterPrefix(prefix: string): string | undefined {
	const points = [...prefix].map((character) => character.codePointAt(0) ?? 0);
	for (let last = points.pop(); last !== undefined; last = points.pop()) {
		if (last === 0x10ffff) continue;
		// Half a surrogate pair is no character; the next one is past the gap.
		const next = last === 0xd7ff ? 0xe000 : last + 1;
		return String.fromCodePoint(...points, next);
	}
	return undefined;
}

function fromRow(row: Selectable<ObjectRow>): StoredObject {
	return {
		projectId: row.project_id,
		bucketName: row.bucket_name,
		objectKey: row.object_key,
		sizeBytes: Number(row.size_bytes),
		sha256: row.sha256,
		sha1: row.sha1,
		md5: row.md5,
		contentType: row.content_type,
		updatedAt: fromInstant(row.updated_at),
	};
}
