/**
 * The policies that are there without anybody writing them, named as the vendor names
 * them. Two of them say something the language of policies has no word for: the level of
 * an action.
 */
import type { AccessLevel } from "./policy-decision.ts";
import { type PolicyDocument, readPolicy } from "./policy-document.ts";

export interface SystemPolicy {
	policyId: string;
	name: string;
	description: string;
	/**
	 * For people to read, and to start an own policy from: the policy itself or, where it
	 * goes by the level of actions, the nearest that their names can say, which never
	 * allows more.
	 */
	document: object;
	/** What it grants, of the actions of these levels; without levels: of all. */
	grants: PolicyDocument;
	levels?: readonly AccessLevel[];
}

const reading: readonly AccessLevel[] = ["List", "Read"];

/**
 * All but the management of permissions: who could move resource spaces between enterprise
 * projects, or change their tags, could lift the limits that were set to him.
 */
const using: readonly AccessLevel[] = ["List", "Read", "Write", "Tagging"];

const everythingButIdentities = {
	Version: "1.0",
	Statement: [
		{
			Effect: "Allow",
			NotAction: ["iam:*:*", "sts:*:*", "iotda:apps:setAccess"],
		},
	],
};
const everythingOfIotda = {
	Version: "1.1",
	Statement: [{ Effect: "Allow", Action: ["iotda:*:*", "otaru:objects:*"] }],
};
const readingOfIotda = [
	"iotda:*:query*",
	"otaru:objects:get*",
	"otaru:objects:list*",
];

export const systemPolicies: readonly SystemPolicy[] = [
	{
		policyId: "te_admin",
		name: "Tenant Administrator",
		description:
			"Everything in all services, except managing users and their permissions.",
		document: everythingButIdentities,
		grants: readPolicy(everythingButIdentities),
	},
	{
		policyId: "readonly",
		name: "Tenant Guest",
		description:
			"Looking at everything in all services, except at users and their permissions: every action of the level List or Read. The document names those actions as nearly as names can.",
		document: {
			Version: "1.0",
			Statement: [
				{
					Effect: "Allow",
					Action: [...readingOfIotda, "cts:*:list*", "sts:*:query*"],
				},
			],
		},
		grants: readPolicy({
			Version: "1.0",
			Statement: [{ Effect: "Allow", NotAction: ["iam:*:*"] }],
		}),
		levels: reading,
	},
	{
		policyId: "iotda_full_access",
		name: "IoTDA FullAccess",
		description:
			"Everything in IoTDA, including the files of upgrade packages, except assigning resource spaces to enterprise projects.",
		document: {
			...everythingOfIotda,
			Statement: [
				...everythingOfIotda.Statement,
				{ Effect: "Deny", Action: ["iotda:apps:setAccess"] },
			],
		},
		grants: readPolicy(everythingOfIotda),
		levels: using,
	},
	{
		policyId: "iotda_read_only_access",
		name: "IoTDA ReadOnlyAccess",
		description:
			"Looking at everything in IoTDA, including the files of upgrade packages: every action of the level List or Read. The document names those actions as nearly as names can.",
		document: {
			Version: "1.1",
			Statement: [{ Effect: "Allow", Action: readingOfIotda }],
		},
		grants: readPolicy(everythingOfIotda),
		levels: reading,
	},
];
