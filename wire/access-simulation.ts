/** Would a user be allowed to? Asked without doing anything. */
import { type Static, Type } from "typebox";
import { anyText, freeObject, id36, oneOf } from "./envelope.ts";

export const simulateAccess = Type.Object({
	/** One of the two. */
	user_id: Type.Optional(anyText(1, 64)),
	user_name: Type.Optional(anyText(1, 256)),
	/** Such as `iotda:otamodules:create`. */
	action: anyText(1, 128),
	/** Absent: the oldest project. */
	project_id: Type.Optional(anyText(1, 64)),
	/** Absent: is there any resource space in which he may? */
	app_id: Type.Optional(id36()),
	/** Absent: the address of the caller. */
	source_ip: Type.Optional(anyText(1, 64)),
	/** When; absent: now. `20260129T080000Z` */
	at: Type.Optional(anyText(1, 32)),
	/** The tags that the request would bind. */
	request_tags: Type.Optional(freeObject()),
});
export type SimulateAccess = Static<typeof simulateAccess>;

export const accessSimulation = Type.Object({
	allowed: Type.Boolean(),
	/** `account`: he is an administrator; `no_statement`: nothing allows it. */
	because: oneOf(["account", "allowed", "denied", "no_statement", "disabled"]),
	/** The one that decided. */
	statement: Type.Optional(
		Type.Object({
			policy_id: Type.String(),
			policy_name: Type.String(),
			/** Place in the policy, from 0. */
			index: Type.Integer(),
			sid: Type.Optional(Type.String()),
		}),
	),
});
export type AccessSimulation = Static<typeof accessSimulation>;
