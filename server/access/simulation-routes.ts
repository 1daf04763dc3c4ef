import {
	accessSimulation,
	simulateAccess as simulateAccessBody,
} from "../../wire/access-simulation.ts";
import type { Clock, Db } from "../database/database.ts";
import type { Action } from "./permissions.ts";
import type { RightsKeeper } from "./rights.ts";
import type { Http } from "./route.ts";
import { type KnownAction, simulateAccess } from "./simulation.ts";

export interface SimulationRouteParts {
	db: Db;
	now: Clock;
	rights: RightsKeeper;
	/** Complete once all routes are registered. */
	actions: ReadonlyMap<Action, KnownAction>;
}

export function simulationRoutes(
	http: Http,
	{ db, now, rights, actions }: SimulationRouteParts,
): void {
	http.post(
		"/otaru/v1/access/simulate",
		{
			config: {
				action: "iam:policies:simulate",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "SimulateAccess",
				summary: "Show whether a user would be allowed to do something",
				tags: ["Policies"],
				body: simulateAccessBody,
				response: { 200: accessSimulation },
			},
		},
		async (request) =>
			simulateAccess(
				db,
				request.scope,
				{
					rights,
					actions,
					address: request.ip,
					secureTransport: request.protocol === "https",
					now: now(),
				},
				request.body,
			),
	);
}
