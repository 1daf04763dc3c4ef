/** Signing in by password, projects and accounts: the calls of the vendor's IAM. */
import { type Static, Type } from "typebox";
import { anyText } from "./envelope.ts";

/** A thing by its name or by its id. */
const named = () =>
	Type.Object(
		{
			name: Type.Optional(anyText(1, 256)),
			id: Type.Optional(anyText(1, 64)),
		},
		{ rule: "must be an object" },
	);

const object = { rule: "must be an object" };

// --- tokens -----------------------------------------------------------------------

export const createToken = Type.Object({
	auth: Type.Object(
		{
			identity: Type.Object(
				{
					methods: Type.Array(Type.Enum(["password"]), {
						minItems: 1,
						maxItems: 1,
						rule: 'must be ["password"]',
					}),
					password: Type.Object(
						{
							user: Type.Object(
								{
									name: Type.Optional(anyText(1, 256)),
									id: Type.Optional(anyText(1, 64)),
									password: anyText(1, 1024),
									domain: Type.Optional(named()),
								},
								object,
							),
						},
						object,
					),
				},
				object,
			),
			/** Absent: the whole account. */
			scope: Type.Optional(
				Type.Object(
					{
						project: Type.Optional(named()),
						domain: Type.Optional(named()),
					},
					object,
				),
			),
		},
		object,
	),
});
export type CreateToken = Static<typeof createToken>;

/** Any value that is not empty leaves the catalog out. */
export const createTokenQuery = Type.Object({
	nocatalog: Type.Optional(Type.String()),
});

const idAndName = Type.Object({ id: Type.String(), name: Type.String() });

export const token = Type.Object({
	token: Type.Object({
		methods: Type.Array(Type.String()),
		/** `2026-01-30T08:00:00.000000Z` */
		issued_at: Type.String(),
		expires_at: Type.String(),
		user: Type.Object({
			id: Type.String(),
			name: Type.String(),
			domain: idAndName,
			/** Empty: the password does not expire. */
			password_expires_at: Type.String(),
		}),
		/** Either a project or the whole account. */
		project: Type.Optional(
			Type.Object({
				id: Type.String(),
				name: Type.String(),
				domain: idAndName,
			}),
		),
		domain: Type.Optional(idAndName),
		roles: Type.Array(idAndName),
		catalog: Type.Array(
			Type.Object({
				id: Type.String(),
				name: Type.String(),
				type: Type.String(),
				endpoints: Type.Array(
					Type.Object({
						id: Type.String(),
						interface: Type.String(),
						region: Type.String(),
						region_id: Type.String(),
						url: Type.String(),
					}),
				),
			}),
		),
	}),
});
export type Token = Static<typeof token>;

/** The header that carries a token to or from the caller of the token calls. */
export const SUBJECT_TOKEN = "x-subject-token";

// --- projects, regions, accounts ----------------------------------------------------

const selfLink = Type.Object({ self: Type.String() });

export const listProjectsQuery = Type.Object({
	name: Type.Optional(anyText(0, 256)),
});

export const project = Type.Object({
	id: Type.String(),
	name: Type.String(),
	domain_id: Type.String(),
	parent_id: Type.String(),
	is_domain: Type.Boolean(),
	enabled: Type.Boolean(),
	description: Type.String(),
	links: selfLink,
});
export const projectList = Type.Object({
	projects: Type.Array(project),
	links: selfLink,
});
export type ProjectList = Static<typeof projectList>;

export const regionList = Type.Object({
	regions: Type.Array(
		Type.Object({
			id: Type.String(),
			type: Type.String(),
			description: Type.String(),
			links: selfLink,
		}),
	),
	links: selfLink,
});
export type RegionList = Static<typeof regionList>;

export const domainList = Type.Object({
	domains: Type.Array(
		Type.Object({
			id: Type.String(),
			name: Type.String(),
			enabled: Type.Boolean(),
			description: Type.String(),
			links: selfLink,
		}),
	),
	links: selfLink,
});
export type DomainList = Static<typeof domainList>;

export const callerIdentity = Type.Object({
	account_id: Type.String(),
	principal_id: Type.String(),
	principal_urn: Type.String(),
});
export type CallerIdentity = Static<typeof callerIdentity>;

/** IAM's instants, in microseconds. */
export function iamTime(date: Date): string {
	return date.toISOString().replace("Z", "000Z");
}
