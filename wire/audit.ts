/**
 * The audit trail: who did what, when, from where, on what, and whether he might. Not the
 * vendor's: its cloud has a service of its own for that.
 */
import { type Static, Type } from "typebox";
import {
	anyText,
	countedToPageInfo,
	oneOf,
	pageOf,
	pageQuery,
	pathId,
	timeText,
} from "./envelope.ts";

export const auditDecisions = ["allowed", "refused"] as const;

const optionalText = () =>
	Type.Optional(
		Type.Union([Type.String(), Type.Null()], {
			// The list leaves out what has no value; only an export has it as null.
			documented: { type: "string", anyOf: undefined },
		}),
	);

/** A row of the trail. An export has all fields, with `null` for what has no value. */
export const auditRow = Type.Object({
	/** 1, 2, 3 … without a gap. */
	seq: Type.Integer(),
	/** When the answer was given: `2023-02-11T12:12:12.000Z`. */
	at: Type.String(),
	request_id: Type.String(),
	/** Absent where nobody proved who he is. */
	account_id: optionalText(),
	user_id: optionalText(),
	user_name: optionalText(),
	/** The access key, `token` or `password`: how he proved it, or tried to. */
	credential: optionalText(),
	address: Type.String(),
	method: Type.String(),
	/** Without the query. */
	path: Type.String(),
	action: optionalText(),
	project_id: optionalText(),
	app_id: optionalText(),
	/** The id of the thing concerned. */
	resource: optionalText(),
	/** Of the answer. */
	status: Type.Integer(),
	decision: oneOf(auditDecisions),
	/** Of a decision: the statement behind it, or why nobody was let in. */
	reason: optionalText(),
	error_code: optionalText(),
	/** 64 hex digits; see docs/audit.md. */
	hash: Type.String(),
});
export type AuditRow = Static<typeof auditRow>;
/** A list counts no further: a trail of years has millions of rows. */
export const AUDIT_COUNTED_ROWS = 10_000;
export const auditPageInfo = countedToPageInfo(AUDIT_COUNTED_ROWS);
export const auditList = pageOf("audit", auditRow, auditPageInfo);

/** A line of an export. */
export type ExportedAuditRow =
	| (AuditRow & { previous_hash: string })
	/** Of another account: only what the chain needs. */
	| { seq: number; hash: string; previous_hash: string };

const time = () => Type.Optional(timeText());

export const listAuditQuery = Type.Object({
	user_id: Type.Optional(pathId(64)),
	user_name: Type.Optional(anyText(1, 64)),
	credential: Type.Optional(anyText(1, 64)),
	action: Type.Optional(anyText(1, 128)),
	project_id: Type.Optional(pathId(64)),
	app_id: Type.Optional(pathId(64)),
	resource: Type.Optional(anyText(1, 256)),
	address: Type.Optional(anyText(1, 64)),
	decision: Type.Optional(oneOf(auditDecisions)),
	status: Type.Optional(
		Type.String({
			pattern: "^[1-5][0-9]{2}$",
			rule: "must be an HTTP status such as 403",
		}),
	),
	/** At or after: `20230211T121212Z`. */
	start_time: time(),
	/** Before. */
	end_time: time(),
	...pageQuery,
});

const seqText = () =>
	Type.String({
		pattern: "^[0-9]{1,15}$",
		rule: "must be the number of a row",
	});

export const exportAuditQuery = Type.Object({
	start_time: time(),
	end_time: time(),
	/** Only rows with a larger number. */
	after_seq: Type.Optional(seqText()),
});

const link = Type.Object({
	seq: Type.Integer({
		minimum: 0,
		maximum: Number.MAX_SAFE_INTEGER,
		rule: "must be the number of a row",
	}),
	hash: Type.String({
		pattern: "^[0-9a-f]{64}$",
		rule: "must be 64 of the digits 0-9 and a-f",
	}),
});
export type AuditLink = Static<typeof link>;

export const verifyAudit = Type.Object({
	/** A head that was noted earlier: the trail must still contain it. */
	expect: Type.Optional(link),
});

export const auditVerification = Type.Object({
	intact: Type.Boolean(),
	/** Rows that were gone through. */
	rows: Type.Integer(),
	/** The oldest one that is kept. */
	first_seq: Type.Integer(),
	/** The newest row: worth noting elsewhere. */
	head: Type.Optional(
		Type.Object({ seq: Type.Integer(), hash: Type.String() }),
	),
	fault: Type.Optional(
		Type.Object({
			/** The first row that is not as it was written. */
			seq: Type.Integer(),
			what: Type.String(),
		}),
	),
});
export type AuditVerification = Static<typeof auditVerification>;
