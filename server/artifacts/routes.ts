/** Upload, download, list and removal of the files of packages. */
import type { IncomingMessage } from "node:http";
import { Readable } from "node:stream";
import { Type } from "typebox";
import { wireTime } from "../../wire/envelope.ts";
import {
	contentRange as contentRangeHeader,
	downloadHeaders,
	fileHeaders,
	streamedBodyHeaders,
} from "../../wire/headers.ts";
import {
	bucketParams,
	listObjectsQuery,
	objectList,
	objectParams,
	storedObject,
	type StoredObject as WireObject,
} from "../../wire/objects.ts";
import type { Http } from "../access/route.ts";
import {
	announcedBytes,
	discardRest,
	streamedBody,
} from "../access/streamed-body.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import type { Events } from "../events.ts";
import type { ArtifactStore } from "./artifact-store.ts";
import { contentRange, readRange } from "./byte-range.ts";
import {
	deleteObject,
	getObject,
	listObjects,
	type ObjectLimits,
	putObject,
	readObject,
	type StoredObject,
} from "./objects.ts";

const OBJECTS = "/otaru/v1/projects/:project_id/objects/:bucket_name";
const OBJECT = `${OBJECTS}/*`;

export function objectRoutes(
	http: Http,
	parts: {
		db: Db;
		artifacts: ArtifactStore;
		events: Events;
		now: Clock;
		limits: ObjectLimits;
	},
): void {
	const { db, artifacts, events, now, limits } = parts;

	http.put(
		OBJECT,
		{
			config: {
				action: "otaru:objects:put",
				level: "Write",
				concerns: "instance",
				streams: true,
			},
			schema: {
				operationId: "PutObject",
				summary: "Upload a file",
				tags: ["Package files"],
				consumes: ["application/octet-stream"],
				failures: [507],
				requestHeaders: streamedBodyHeaders,

				params: objectParams,
				response: { 200: storedObject, 201: storedObject },
			},
		},
		async (request, reply) => {
			const { bucket_name: bucketName, "*": objectKey } = request.params;
			const { raw } = request;
			try {
				const { object, created } = await putObject(
					db,
					artifacts,
					request.scope,
					{
						bucketName,
						objectKey,
						contentType: readContentType(raw),
						bytes: streamedBody(raw),
						announcedBytes: announcedBytes(raw),
						expectedSha256: request.expectedSha256,
					},
					limits,
					now(),
				);
				events.happened("object_stored", {
					kind: created ? "new" : "replaced",
				});
				return reply.code(created ? 201 : 200).send(toWire(object));
			} catch (error) {
				events.happened("object_refused");
				discardRest(raw, limits.sizeLimitBytes);
				throw error;
			}
		},
	);

	http.get(
		OBJECT,
		{
			config: {
				action: "otaru:objects:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "GetObject",
				summary: "Download a file",
				tags: ["Package files"],
				produces: {
					200: ["application/octet-stream"],
					206: ["application/octet-stream"],
					304: [],
				},
				failures: [416],
				requestHeaders: downloadHeaders,
				answerHeaders: {
					200: fileHeaders,
					206: { ...fileHeaders, ...contentRangeHeader },
					304: fileHeaders,
					416: { ...fileHeaders, ...contentRangeHeader },
				},
				params: objectParams,
			},
		},
		async (request, reply) => {
			const { bucket_name: bucketName, "*": objectKey } = request.params;
			const object = await getObject(db, request.scope, bucketName, objectKey);
			const { sizeBytes } = object;
			reply.headers(describe(object));
			const match = request.headers["if-none-match"];
			if (match !== undefined && namesTag(match, object)) {
				return reply.code(304).send();
			}
			// A range of a file that has changed since is of no use (RFC 9110 section 13.1.5).
			const condition = request.headers["if-range"];
			const asked =
				condition === undefined || condition === entityTag(object)
					? readRange(request.headers.range, sizeBytes)
					: "whole";
			if (asked === "unsatisfiable") {
				reply.header("Content-Range", contentRange(undefined, sizeBytes));
				throw new ApiError(errors.rangeNotSatisfiable, {
					detail: `The object has ${sizeBytes} bytes.`,
				});
			}
			const range = asked === "whole" ? { start: 0, end: sizeBytes } : asked;
			if (asked !== "whole") {
				reply.code(206).header("Content-Range", contentRange(range, sizeBytes));
			}
			reply.header("Content-Length", range.end - range.start);
			return reply.send(
				Readable.from(readObject(artifacts, object.sha256, range), {
					objectMode: false,
				}),
			);
		},
	);

	http.head(
		OBJECT,
		{
			config: {
				action: "otaru:objects:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "HeadObject",
				summary: "Look at a file without its bytes",
				tags: ["Package files"],
				produces: { 200: [] },
				answerHeaders: { 200: fileHeaders },
				params: objectParams,
			},
		},
		async (request, reply) => {
			const { bucket_name: bucketName, "*": objectKey } = request.params;
			const object = await getObject(db, request.scope, bucketName, objectKey);
			return reply
				.headers(describe(object))
				.header("Content-Length", object.sizeBytes)
				.send();
		},
	);

	http.delete(
		OBJECT,
		{
			config: {
				action: "otaru:objects:delete",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteObject",
				summary: "Delete a file",
				tags: ["Package files"],
				params: objectParams,
				response: { 204: Type.Null() },
			},
		},
		async (request, reply) => {
			const { bucket_name: bucketName, "*": objectKey } = request.params;
			await deleteObject(db, artifacts, request.scope, bucketName, objectKey);
			events.happened("object_deleted");
			return reply.code(204).send(null);
		},
	);

	http.get(
		OBJECTS,
		{
			config: {
				action: "otaru:objects:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListObjects",
				summary: "List files",
				tags: ["Package files"],

				params: bucketParams,
				querystring: listObjectsQuery,
				response: { 200: objectList },
			},
		},
		async (request) => {
			const { prefix = "", marker, ...paging } = request.query;
			const { items, page } = await listObjects(
				db,
				request.scope,
				request.params.bucket_name,
				{ prefix, after: marker },
				readPage(paging),
			);
			return { objects: items.map(toWire), page };
		},
	);
}

function readContentType(raw: IncomingMessage): string {
	const given = raw.headers["content-type"] ?? "application/octet-stream";
	if (!/^[\x20-\x7e]{1,255}$/.test(given)) {
		throw invalidInput("Content-Type", "must be 1 to 255 printable characters");
	}
	return given;
}

function describe(object: StoredObject): Record<string, string> {
	return {
		"Content-Type": object.contentType,
		ETag: entityTag(object),
		"Last-Modified": object.updatedAt.toUTCString(),
		"Accept-Ranges": "bytes",
		// Whatever a maker uploads, a browser is not to show it under our address.
		"Content-Disposition": "attachment",
	};
}

function entityTag(object: StoredObject): string {
	return `"${object.sha256}"`;
}

function namesTag(header: string, object: StoredObject): boolean {
	return header
		.split(",")
		.map((tag) => tag.trim().replace(/^W\//, ""))
		.some((tag) => tag === "*" || tag === entityTag(object));
}

function toWire(object: StoredObject): WireObject {
	return {
		bucket_name: object.bucketName,
		object_key: object.objectKey,
		size: object.sizeBytes,
		content_type: object.contentType,
		sha256: object.sha256,
		sha1: object.sha1,
		md5: object.md5,
		update_time: wireTime(object.updatedAt),
	};
}
