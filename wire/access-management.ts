/**
 * Who there is and what each may do: users, access keys, user groups, policies, grants,
 * projects and enterprise projects.
 */
import { type Static, Type } from "typebox";
import {
	anyText,
	descriptionText,
	flag,
	freeObject,
	id36,
	oneOf,
	otaName,
	pageOf,
	pageQuery,
	pathId,
	queryFlag,
	spacedText,
	tagText,
} from "./envelope.ts";

const object = { rule: "must be an object" };

/** Without blanks: it stands in URNs, on command lines and in the audit trail. */
const userName = () =>
	Type.String({
		pattern: "^[A-Za-z0-9_.@\\-]{1,64}$",
		minLength: 1,
		maxLength: 64,
		rule: "must be 1 to 64 characters: letters A-Z a-z, digits, _, ., @ and -",
	});
const name = () => spacedText(1, 64);
const description = () => descriptionText(255);
/** What a password must be beyond that is said by the server's own rules. */
const password = () => anyText(1, 1024);
const newPassword = () =>
	Type.String({
		...password(),
		documented: {
			pattern: "^[^\\u0000\\uD800-\\uDFFF]{12,128}$",
			minLength: 12,
			maxLength: 128,
			rule: "must be 12 to 128 characters and hard to guess: without the user name, of at least 6 different characters, not of digits alone, and with at least 8 characters beside common words, runs such as 1234 and repetitions",
		},
	});
/** Of whatever kind; one that cannot be an id is 400, one that is unknown 404. */
const anyId = () => pathId(64);
/** Absent where nothing ever happened. */
const timeText = () => Type.Optional(Type.String());

// --- users ------------------------------------------------------------------------

export const userParams = Type.Object({ user_id: anyId() });

export const createUser = Type.Object({
	user_name: userName(),
	description: Type.Optional(description()),
	/** Absent: one is made up, and answered this once. */
	password: Type.Optional(newPassword()),
	/** false: a program, which signs with access keys only. */
	password_sign_in: Type.Optional(flag()),
	/** Absent: true, unless he has no password. */
	must_change_password: Type.Optional(flag()),
	is_administrator: Type.Optional(flag()),
});
export type CreateUser = Static<typeof createUser>;

/** What is missing stays; an empty description clears. */
export const updateUser = Type.Object({
	description: Type.Optional(description()),
	enabled: Type.Optional(flag()),
	is_administrator: Type.Optional(flag()),
	password: Type.Optional(newPassword()),
	/** true: a new password is made up, and answered this once. */
	generate_password: Type.Optional(flag()),
	/** false: takes the password away; only access keys are left. */
	password_sign_in: Type.Optional(flag()),
	/** Absent with a new password: true, unless it is the caller's own. */
	must_change_password: Type.Optional(flag()),
});
export type UpdateUser = Static<typeof updateUser>;

export const listUsersQuery = Type.Object({
	user_name: Type.Optional(userName()),
	enabled: Type.Optional(queryFlag()),
	...pageQuery,
});

const userFields = {
	user_id: Type.String(),
	user_name: Type.String(),
	description: Type.Optional(Type.String()),
	enabled: flag(),
	is_administrator: flag(),
	/** Whether he has a password at all. */
	password_sign_in: flag(),
	must_change_password: flag(),
	create_time: Type.String(),
	/** By password. */
	last_sign_in_time: timeText(),
};
export const user = Type.Object(userFields);
export type User = Static<typeof user>;
/** Where a password was made up, it is here and never again. */
export const userWithPassword = Type.Object({
	...userFields,
	password: Type.Optional(Type.String()),
});
export type UserWithPassword = Static<typeof userWithPassword>;
export const userList = pageOf("users", user);

// --- access keys --------------------------------------------------------------------

export const accessKeyParams = Type.Object({
	user_id: anyId(),
	access_key: anyId(),
});
export const ownAccessKeyParams = Type.Object({ access_key: anyId() });

export const createAccessKey = Type.Object({
	description: Type.Optional(description()),
});
/** What is missing stays; an empty description clears. */
export const updateAccessKey = Type.Object({
	description: Type.Optional(description()),
	enabled: Type.Optional(flag()),
});

const accessKeyFields = {
	access_key: Type.String(),
	description: Type.Optional(Type.String()),
	enabled: flag(),
	create_time: Type.String(),
	/** Within some minutes. */
	last_used_time: timeText(),
};
export const accessKey = Type.Object(accessKeyFields);
export type AccessKeyItem = Static<typeof accessKey>;
/** The secret key is answered this once. */
export const newAccessKey = Type.Object({
	...accessKeyFields,
	secret_key: Type.String(),
});
export type NewAccessKey = Static<typeof newAccessKey>;
/** All of them: a user has at most two. */
export const accessKeyList = Type.Object({
	access_keys: Type.Array(accessKey),
});

// --- user groups ----------------------------------------------------------------------

export const userGroupParams = Type.Object({ group_id: anyId() });
export const userGroupMemberParams = Type.Object({
	group_id: anyId(),
	user_id: anyId(),
});

export const createUserGroup = Type.Object({
	group_name: name(),
	description: Type.Optional(description()),
});
/** What is missing stays; an empty description clears. */
export const updateUserGroup = Type.Object({
	group_name: Type.Optional(name()),
	description: Type.Optional(description()),
});
export const listUserGroupsQuery = Type.Object({
	group_name: Type.Optional(name()),
	...pageQuery,
});
export const pagesQuery = Type.Object(pageQuery);

export const userGroup = Type.Object({
	group_id: Type.String(),
	group_name: Type.String(),
	description: Type.Optional(Type.String()),
	create_time: Type.String(),
});
export type UserGroup = Static<typeof userGroup>;
export const userGroupList = pageOf("groups", userGroup);

// --- policies ---------------------------------------------------------------------------

const policyType = () => oneOf(["system", "custom"]);

export const policyParams = Type.Object({ policy_id: anyId() });
export const createPolicy = Type.Object({
	policy_name: name(),
	description: Type.Optional(description()),
	/** What it may be is said with the place of what is wrong in it. */
	document: freeObject(),
});
/** What is missing stays; an empty description clears. */
export const updatePolicy = Type.Object({
	policy_name: Type.Optional(name()),
	description: Type.Optional(description()),
	document: Type.Optional(freeObject()),
});
export const listPoliciesQuery = Type.Object({
	/** Absent: both, the system's own after all others. */
	type: Type.Optional(policyType()),
	policy_name: Type.Optional(name()),
	...pageQuery,
});

const policyFields = {
	policy_id: Type.String(),
	policy_name: Type.String(),
	type: policyType(),
	description: Type.Optional(Type.String()),
	/** Of custom policies. */
	create_time: timeText(),
	update_time: timeText(),
};
export const policyItem = Type.Object(policyFields);
export type PolicyItem = Static<typeof policyItem>;
export const policy = Type.Object({
	...policyFields,
	document: freeObject(),
	/** What is allowed in a policy and probably a mistake, a sentence each. */
	warnings: Type.Optional(Type.Array(Type.String())),
});
export type Policy = Static<typeof policy>;
export const policyList = pageOf("policies", policyItem);

// --- grants -----------------------------------------------------------------------------

const principalType = () => oneOf(["user", "group"]);
const grantScopeType = () => oneOf(["all", "project", "enterprise_project"]);

export const grantParams = Type.Object({ grant_id: anyId() });
export const createGrant = Type.Object({
	policy_id: anyId(),
	principal: Type.Object({ type: principalType(), id: anyId() }, object),
	/** The id is left out for `all`. */
	scope: Type.Object(
		{ type: grantScopeType(), id: Type.Optional(anyId()) },
		{
			...object,
			documented: {
				if: { properties: { type: { const: "all" } }, required: ["type"] },
				else: { required: ["id"] },
			},
		},
	),
});
export type CreateGrant = Static<typeof createGrant>;
export const listGrantsQuery = Type.Object({
	policy_id: Type.Optional(anyId()),
	principal_type: Type.Optional(principalType()),
	principal_id: Type.Optional(anyId()),
	scope_type: Type.Optional(grantScopeType()),
	scope_id: Type.Optional(anyId()),
	...pageQuery,
});

export const grant = Type.Object({
	grant_id: Type.String(),
	policy_id: Type.String(),
	policy_name: Type.String(),
	principal: Type.Object({
		type: principalType(),
		id: Type.String(),
		name: Type.String(),
	}),
	scope: Type.Object({
		type: grantScopeType(),
		id: Type.Optional(Type.String()),
		name: Type.Optional(Type.String()),
	}),
	create_time: Type.String(),
});
export type Grant = Static<typeof grant>;
export const grantList = pageOf("grants", grant);

// --- projects and enterprise projects -----------------------------------------------------

/** Not `project_id`, which in a path says what the call is made in. */
export const managedProjectParams = Type.Object({
	managed_project_id: anyId(),
});
/** SDKs look their project up by this name, as that of a region. */
export const createProject = Type.Object({ project_name: otaName() });
export const updateProject = createProject;
export const managedProject = Type.Object({
	project_id: Type.String(),
	project_name: Type.String(),
	/** Of its default resource space. */
	default_app_id: Type.Optional(Type.String()),
	create_time: Type.String(),
});
export type ManagedProject = Static<typeof managedProject>;
/** All of them: an account has at most a hundred. Oldest first. */
export const managedProjectList = Type.Object({
	projects: Type.Array(managedProject),
});

export const enterpriseProjectParams = Type.Object({
	enterprise_project_id: anyId(),
});
export const createEnterpriseProject = Type.Object({
	enterprise_project_name: name(),
	description: Type.Optional(description()),
});
/** What is missing stays; an empty description clears. */
export const updateEnterpriseProject = Type.Object({
	enterprise_project_name: Type.Optional(name()),
	description: Type.Optional(description()),
});
export const enterpriseProject = Type.Object({
	enterprise_project_id: Type.String(),
	enterprise_project_name: Type.String(),
	description: Type.Optional(Type.String()),
	/** Absent for the default one, which was always there. */
	create_time: timeText(),
});
export type EnterpriseProject = Static<typeof enterpriseProject>;
export const enterpriseProjectList = pageOf(
	"enterprise_projects",
	enterpriseProject,
);

// --- what policies see of a resource space --------------------------------------------------

export const spaceAccessParams = Type.Object({
	project_id: pathId(64),
	app_id: id36(),
});

/** Keys and values as those of a device's tags, though fewer and shorter. */
const spaceTags = () => {
	const key = tagText(1, 36) as { rule?: string };
	return Type.Unsafe<Record<string, string>>({
		type: "object",
		maxProperties: 20,
		propertyNames: {
			...key,
			rule: key.rule?.replace("must be", "must have keys of"),
		},
		additionalProperties: tagText(0, 43),
		rule: "must be an object with at most 20 keys",
	});
};

/** What is missing stays; tags are replaced as a whole. */
export const setSpaceAccess = Type.Object({
	enterprise_project_id: Type.Optional(anyId()),
	tags: Type.Optional(spaceTags()),
});
export const spaceAccess = Type.Object({
	app_id: Type.String(),
	enterprise_project_id: Type.String(),
	enterprise_project_name: Type.String(),
	tags: spaceTags(),
});
export type SpaceAccess = Static<typeof spaceAccess>;

// --- who one is oneself -----------------------------------------------------------------------

export const me = Type.Object({
	...userFields,
	account_id: Type.String(),
	account_name: Type.String(),
	groups: Type.Array(
		Type.Object({ group_id: Type.String(), group_name: Type.String() }),
	),
	projects: Type.Array(
		Type.Object({ project_id: Type.String(), project_name: Type.String() }),
	),
});
export type Me = Static<typeof me>;

export const changeOwnPassword = Type.Object({
	/** The present one. */
	password: password(),
	new_password: newPassword(),
});
