/** Resource spaces; the wire calls them applications and their id `app_id`. */
import { type Static, Type } from "typebox";
import { flag, id36, pathId, plainText, queryFlag } from "./envelope.ts";

export const appParams = Type.Object({
	project_id: pathId(64),
	app_id: id36(),
});

export const createApp = Type.Object({ app_name: plainText(1, 64) });
export const updateApp = Type.Object({
	app_name: Type.Optional(plainText(1, 64)),
});
/** `true`: only the default space, `false`: only the others. */
export const listAppsQuery = Type.Object({
	default_app: Type.Optional(queryFlag()),
});

export const app = Type.Object({
	app_id: Type.String(),
	app_name: Type.String(),
	create_time: Type.String(),
	default_app: flag(),
});
export type App = Static<typeof app>;

/** Not paged: a project has at most ten. */
export const appList = Type.Object({ applications: Type.Array(app) });
