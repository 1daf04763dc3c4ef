/**
 * The files of packages, as objects in buckets. The vendor keeps them in a service of
 * its own; here they have an address beside the management API.
 */
import { type Static, Type } from "typebox";
import { anyText, pageOf, pageQuery, pathId } from "./envelope.ts";
import { documentedObjectKey, obsLocation } from "./packages.ts";

export const bucketParams = Type.Object({
	project_id: pathId(64),
	bucket_name: obsLocation.properties.bucket_name,
});

/** `*` is the object key: all that follows the bucket, slashes included. */
export const objectParams = Type.Object({
	...bucketParams.properties,
	"*": Type.String({
		description:
			"The name of the file in its bucket. Its slashes may be sent as they are or as %2F. An upload must end in one of the suffixes that the server admits.",
		documented: documentedObjectKey,
	}),
});

export const listObjectsQuery = Type.Object({
	/** Only objects whose key begins with it. */
	prefix: Type.Optional(anyText(0, 1024)),
	...pageQuery,
	/** Only objects whose key comes after it: the last key of the page before. */
	marker: Type.Optional(anyText(1, 1024)),
});

export const storedObject = Type.Object({
	bucket_name: Type.String(),
	object_key: Type.String(),
	/** Bytes. */
	size: Type.Integer(),
	content_type: Type.String(),
	sha256: Type.String(),
	sha1: Type.String(),
	md5: Type.String(),
	update_time: Type.String(),
});
export type StoredObject = Static<typeof storedObject>;

export const objectList = pageOf("objects", storedObject);
