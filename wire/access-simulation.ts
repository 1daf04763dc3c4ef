/** Would a user be allowed to? Asked without doing anything. */
import { type Static, Type } from "typebox";
import { anyText, flag, freeObject, id36, oneOf } from "./envelope.ts";

export const simulateAccess = Type.Object({
	/** Who would ask: exactly one of `user_id` and `user_name`. */
	user_id: Type.Optional(anyText(1, 64)),
	/** Who would ask: exactly one of `user_id` and `user_name`. */
	user_name: Type.Optional(anyText(1, 256)),
	/** What he would do, such as `iotda:otamodules:create`: an action of this server. */
	action: anyText(1, 128),
	/** Where; absent: the project of the resource space, or any project. */
	project_id: Type.Optional(anyText(1, 64)),
	/** The resource space concerned; absent: is there any in which he may? */
	app_id: Type.Optional(id36()),
	/** From which IPv4 or IPv6 address; absent: the address of this call. */
	source_ip: Type.Optional(anyText(1, 64)),
	/** Whether by TLS; absent: as this call came. */
	secure_transport: Type.Optional(flag()),
	/** When, such as `20260129T080000Z`; absent: now. */
	at: Type.Optional(anyText(1, 32)),
	/** The tags that the call would bind, each value a text; absent: any. */
	request_tags: Type.Optional(freeObject()),
});
export type SimulateAccess = Static<typeof simulateAccess>;

export const accessSimulation = Type.Object({
	/** Whether the server would let him. */
	allowed: Type.Boolean(),
	/**
	 * `account`: he is an administrator; `allowed` and `denied`: the statement says so;
	 * `no_statement`: nothing allows it; `administrators_only`: no grant is enough;
	 * `disabled`: he cannot sign in.
	 */
	because: oneOf([
		"account",
		"allowed",
		"denied",
		"no_statement",
		"administrators_only",
		"disabled",
	]),
	/** The statement that decided. */
	statement: Type.Optional(
		Type.Object({
			policy_id: Type.String(),
			policy_name: Type.String(),
			/** Place in the policy, from 0. */
			index: Type.Integer(),
			/** Its name in the policy. */
			sid: Type.Optional(Type.String()),
			/** By which the policy reaches the user. */
			grant_id: Type.Optional(Type.String()),
		}),
	),
});
export type AccessSimulation = Static<typeof accessSimulation>;
