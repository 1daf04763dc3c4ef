/** The master keys that stored secrets are encrypted under, and how far a change of them is. */
import { type Static, Type } from "typebox";

export const masterKeyStatus = Type.Object({
	/** Where the keys come from: `master.key`, or OTARU_MASTER_KEY. */
	source: Type.Enum(["file", "setting"]),
	/**
	 * `running`: secrets are being encrypted again; `settling`: what was sealed under an old
	 * key just before is waited for.
	 */
	state: Type.Enum(["idle", "running", "settling"]),
	/** Of the key that encrypts: 8 hexadecimal digits that say nothing of the key. */
	key_id: Type.String(),
	keys: Type.Array(
		Type.Object({
			key_id: Type.String(),
			/** Secrets in the store that are encrypted under it. */
			secrets: Type.Integer(),
			/** Whether this server has it. */
			known: Type.Boolean(),
			/** False: it may be taken out of OTARU_MASTER_KEY; out of the file it goes by itself. */
			needed: Type.Boolean(),
		}),
	),
	/** Secrets that are not yet encrypted under `key_id`. */
	remaining: Type.Integer(),
	/** Secrets that cannot be read, under whatever key; the log names them. */
	unreadable: Type.Integer(),
});
export type MasterKeyStatus = Static<typeof masterKeyStatus>;
