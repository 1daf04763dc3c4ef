/** Headers that mean something to single calls, as the API's own description has them. */

export interface DocumentedHeader {
	description: string;
	/** Of a request: whether it is refused without it. */
	required?: true;
	/** In words of JSON Schema. */
	schema: { type: "string" | "integer"; [word: string]: unknown };
}
/** By name. */
export type DocumentedHeaders = Readonly<Record<string, DocumentedHeader>>;

const text = { type: "string" } as const;

/** Of calls whose body is a file: it goes from the network to the disk as it comes. */
export const streamedBodyHeaders: DocumentedHeaders = {
	"X-Sdk-Content-Sha256": {
		description:
			"The SHA-256 of the body as 64 hexadecimal digits: the server compares it before anything is kept. A signed call must have it, since the signature is checked before the body is there; `UNSIGNED-PAYLOAD` leaves the body out of the signature.",
		schema: { ...text, pattern: "^([0-9A-Fa-f]{64}|UNSIGNED-PAYLOAD)$" },
	},
};

/** What a download may be limited to (RFC 9110 sections 13 and 14). */
export const downloadHeaders: DocumentedHeaders = {
	Range: {
		description:
			"One part of the file, such as `bytes=0-1023`: answered with 206. What is no such range is passed over, as HTTP wants it.",
		schema: text,
	},
	"If-None-Match": {
		description:
			"The ETag that is known already: while the file has it, the answer is 304.",
		schema: text,
	},
	"If-Range": {
		description:
			"The ETag that the Range is about; a file that has changed since is sent whole, with 200.",
		schema: text,
	},
};

/** What an answer says of a file. */
export const fileHeaders: DocumentedHeaders = {
	ETag: { description: "The SHA-256 of the file in quotes.", schema: text },
	"Last-Modified": {
		description: "When the file was uploaded, in the form of HTTP.",
		schema: text,
	},
	"Accept-Ranges": { description: "Always `bytes`.", schema: text },
	"Content-Disposition": {
		description: "Always `attachment`: no browser is to show the file.",
		schema: text,
	},
};

export const contentRange: DocumentedHeaders = {
	"Content-Range": {
		description:
			"Which part this is, and of how many bytes: `bytes 0-1023/4096`; without a part where none could be sent: `bytes */4096`.",
		schema: text,
	},
};

/** Of an answer that a browser is to keep as a file. */
export const attachment: DocumentedHeaders = {
	"Content-Disposition": {
		description: "`attachment`, with a name for the file.",
		schema: text,
	},
};

export const lastEventId: DocumentedHeaders = {
	"Last-Event-ID": {
		description:
			"The id of the last event that was received: what came after it is sent first. Goes before `last_event_id`.",
		schema: { ...text, pattern: "^[0-9]{1,15}-[0-9]{1,15}$" },
	},
};

/** Of the calls about tokens. */
export const issuedToken: DocumentedHeaders = {
	"X-Subject-Token": {
		description:
			"The token: what later calls send as X-Auth-Token. It is in no body.",
		schema: text,
	},
};
export const tokenToValidate: DocumentedHeaders = {
	"X-Subject-Token": {
		description: "The token to look at; it may be the caller's own.",
		required: true,
		schema: { ...text, minLength: 1 },
	},
};
export const validatedToken: DocumentedHeaders = {
	"X-Subject-Token": {
		description: "The token that was looked at.",
		schema: text,
	},
};
