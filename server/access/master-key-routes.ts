/** The master key: changing it, and how far that is. For administrators only, whatever policies say. */
import { masterKeyStatus } from "../../wire/master-key.ts";
import type { KeyRotation } from "../secrets/key-rotation.ts";
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
				administratorsOnly: true,
			},
			schema: {
				operationId: "RotateMasterKey",
				summary: "Change the master key",
				description:
					"Makes a new master key, or takes the first of the setting, and encrypts every stored secret again under it, while the server serves.",
				tags: ["Master key"],
				response: { 202: masterKeyStatus },
			},
		},
		async (_request, reply) => {
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
				administratorsOnly: true,
			},
			schema: {
				operationId: "ShowMasterKeyRotation",
				summary: "Show the master keys and how far a change of them is",
				description: "Which master keys stored secrets are encrypted under.",
				tags: ["Master key"],
				response: { 200: masterKeyStatus },
			},
		},
		async () => rotation.status(),
	);
}
