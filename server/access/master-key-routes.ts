/** The master key: changing it, and how far that is. For administrators only, whatever policies say. */
import { masterKeyStatus } from "../../wire/master-key.ts";
import { ApiError, errors } from "../errors.ts";
import type { KeyRotation } from "../secrets/key-rotation.ts";
import type { Scope } from "./permissions.ts";
import type { Http } from "./route.ts";

export interface MasterKeyRouteParts {
	rotation: KeyRotation;
}

const PATH = "/otaru/v1/access/master-key/rotate";

export function masterKeyRoutes(
	http: Http,
	{ rotation }: MasterKeyRouteParts,
): void {
	http.post(
		PATH,
		{
			config: {
				action: "iam:masterKey:rotate",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "RotateMasterKey",
				summary: "Change the master key",
				description:
					"Makes a new master key, or takes the first of the setting, and encrypts every stored secret again under it, while the server serves. Only for administrators.",
				tags: ["Master key"],
				response: { 202: masterKeyStatus },
			},
		},
		async ({ scope }, reply) => {
			requireAdministrator(scope);
			await rotation.rotate();
			return reply.code(202).send(await rotation.status());
		},
	);

	http.get(
		PATH,
		{
			config: {
				action: "iam:masterKey:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "ShowMasterKeyRotation",
				summary: "Show the master keys and how far a change of them is",
				description:
					"Which master keys stored secrets are encrypted under. Only for administrators.",
				tags: ["Master key"],
				response: { 200: masterKeyStatus },
			},
		},
		async ({ scope }) => {
			requireAdministrator(scope);
			return rotation.status();
		},
	);
}

function requireAdministrator(scope: Scope): void {
	if (!scope.isAdministrator)
		throw new ApiError(errors.forbidden, {
			detail: "(only for administrators)",
		});
}
