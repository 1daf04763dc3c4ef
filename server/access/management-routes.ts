import {
	accessKeyList,
	accessKeyParams,
	changeOwnPassword as changeOwnPasswordBody,
	createAccessKey,
	createUser as createUserBody,
	createUserGroup as createUserGroupBody,
	listUserGroupsQuery,
	listUsersQuery,
	type Me,
	me,
	newAccessKey,
	ownAccessKeyParams,
	pagesQuery,
	updateAccessKey,
	updateUser as updateUserBody,
	updateUserGroup as updateUserGroupBody,
	userGroup,
	userGroupList,
	userGroupMemberParams,
	userGroupParams,
	userList,
	userParams,
	userWithPassword,
	accessKey as wireAccessKey,
	user as wireUser,
} from "../../wire/access-management.ts";
import { wireTime, withoutAbsent } from "../../wire/envelope.ts";
import type { Config } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant, optionalInstant } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import type { Sealed } from "../secrets/sealed.ts";
import { listProjectsOf, NO_PASSWORD } from "./accounts.ts";
import type { Http } from "./route.ts";
import { SignInBlocked, SignInLimits } from "./sign-in-limits.ts";
import {
	createUserAccessKey,
	deleteUserAccessKey,
	listUserAccessKeys,
	refuseDenied,
	type UserAccessKey,
	updateUserAccessKey,
} from "./user-access-keys.ts";
import {
	addUserToGroup,
	createUserGroup,
	deleteUserGroup,
	getUserGroup,
	groupsOfUser,
	listGroupsOfUser,
	listGroupUsers,
	listUserGroups,
	removeUserFromGroup,
	type UserGroup,
	updateUserGroup,
} from "./user-groups.ts";
import {
	changeOwnPassword,
	createUser,
	deleteUser,
	getUser,
	listUsers,
	type User,
	updateUser,
} from "./users.ts";

const USERS = "/otaru/v1/access/users";
const USER = `${USERS}/:user_id`;
const KEYS = `${USER}/access-keys`;
const GROUPS = "/otaru/v1/access/groups";
const GROUP = `${GROUPS}/:group_id`;
const ME = "/otaru/v1/access/me";

export interface ManagementRouteParts {
	db: Db;
	sealed: Sealed;
	now: Clock;
	config: Pick<Config, "regions">;
}

/** Users, their access keys, user groups, and what anybody may do to himself. */
export function managementRoutes(
	http: Http,
	parts: ManagementRouteParts,
): void {
	userRoutes(http, parts);
	accessKeyRoutes(http, parts);
	userGroupRoutes(http, parts);
	ownRoutes(http, parts);
}

// --- users --------------------------------------------------------------------------

function userRoutes(http: Http, { db, now }: ManagementRouteParts): void {
	http.post(
		USERS,
		{
			config: {
				action: "iam:users:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateUser",
				summary: "Create a user",
				description:
					"Without a password one is made up and answered this once. Only an administrator can create an administrator.",
				tags: ["Users"],
				body: createUserBody,
				response: { 201: userWithPassword },
				failures: [429],
			},
		},
		async (request, reply) => {
			const { body } = request;
			const user = await createUser(
				db,
				request.scope,
				{
					name: body.user_name,
					description: body.description || null,
					password: body.password,
					hasPassword: body.password_sign_in ?? true,
					mustChangePassword: body.must_change_password,
					isAdministrator: body.is_administrator ?? false,
				},
				now(),
			);
			return reply
				.code(201)
				.send({ ...userToWire(user), ...withoutAbsent(passwordOf(user)) });
		},
	);

	http.get(
		USERS,
		{
			config: { action: "iam:users:list", level: "List", concerns: "instance" },
			schema: {
				operationId: "ListUsers",
				summary: "List users",
				tags: ["Users"],
				querystring: listUsersQuery,
				response: { 200: userList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listUsers(
				db,
				request.scope,
				{
					name: query.user_name,
					enabled:
						query.enabled === undefined ? undefined : query.enabled === "true",
				},
				readPage(query),
			);
			return { users: items.map(userToWire), page };
		},
	);

	http.get(
		USER,
		{
			config: { action: "iam:users:get", level: "Read", concerns: "instance" },
			schema: {
				operationId: "ShowUser",
				summary: "Show a user",
				tags: ["Users"],
				params: userParams,
				response: { 200: wireUser },
			},
		},
		async (request) =>
			userToWire(await getUser(db, request.scope, request.params.user_id)),
	);

	http.put(
		USER,
		{
			config: {
				action: "iam:users:update",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdateUser",
				summary: "Change, disable or enable a user, or reset his password",
				description:
					"Only an administrator can change an administrator or make one. Whoever becomes one loses his access keys, and his password is replaced by one that is made up and answered this once, unless the call gives or takes one. One administrator who can sign in is always left.",
				tags: ["Users"],
				params: userParams,
				body: updateUserBody,
				response: { 200: userWithPassword },
				failures: [429],
			},
		},
		async (request) => {
			const { body } = request;
			const user = await updateUser(db, request.scope, request.params.user_id, {
				...described(body.description),
				...withoutAbsent({
					isEnabled: body.enabled,
					isAdministrator: body.is_administrator,
					password: body.password,
					makesPassword: body.generate_password,
					hasPassword: body.password_sign_in,
					mustChangePassword: body.must_change_password,
				}),
			});
			return { ...userToWire(user), ...withoutAbsent(passwordOf(user)) };
		},
	);

	http.delete(
		USER,
		{
			config: {
				action: "iam:users:delete",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteUser",
				summary: "Delete a user with his access keys and grants",
				tags: ["Users"],
				params: userParams,
			},
		},
		async (request, reply) => {
			await deleteUser(db, request.scope, request.params.user_id);
			return reply.code(204).send();
		},
	);

	http.get(
		`${USER}/groups`,
		{
			config: {
				action: "iam:groups:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListGroupsOfUser",
				summary: "List the user groups that a user is in",
				tags: ["User groups"],
				params: userParams,
				querystring: pagesQuery,
				response: { 200: userGroupList },
			},
		},
		async (request) => {
			const { items, page } = await listGroupsOfUser(
				db,
				request.scope,
				request.params.user_id,
				readPage(request.query),
			);
			return { groups: items.map(groupToWire), page };
		},
	);
}

// --- access keys ------------------------------------------------------------------------

function accessKeyRoutes(
	http: Http,
	{ db, sealed, now }: ManagementRouteParts,
): void {
	http.post(
		KEYS,
		{
			config: {
				action: "iam:accessKeys:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateAccessKey",
				summary: "Create an access key of a user",
				description:
					"The secret key is answered this once. A user has at most two keys.",
				tags: ["Access keys"],
				params: userParams,
				body: createAccessKey,
				response: { 201: newAccessKey },
			},
		},
		async (request, reply) => {
			const key = await createUserAccessKey(
				db,
				request.scope,
				sealed,
				request.params.user_id,
				{ description: request.body.description || null },
				now,
			);
			return reply
				.code(201)
				.send({ ...keyToWire(key), secret_key: key.secretKey });
		},
	);

	http.get(
		KEYS,
		{
			config: {
				action: "iam:accessKeys:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListAccessKeys",
				summary: "List the access keys of a user",
				tags: ["Access keys"],
				params: userParams,
				response: { 200: accessKeyList },
			},
		},
		async (request) => {
			const keys = await listUserAccessKeys(
				db,
				request.scope,
				request.params.user_id,
			);
			return { access_keys: keys.map(keyToWire) };
		},
	);

	http.put(
		`${KEYS}/:access_key`,
		{
			config: {
				action: "iam:accessKeys:update",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdateAccessKey",
				summary: "Disable, enable or describe an access key",
				tags: ["Access keys"],
				params: accessKeyParams,
				body: updateAccessKey,
				response: { 200: wireAccessKey },
			},
		},
		async (request) =>
			keyToWire(
				await updateUserAccessKey(
					db,
					request.scope,
					request.params.user_id,
					request.params.access_key,
					keyChanges(request.body),
				),
			),
	);

	http.delete(
		`${KEYS}/:access_key`,
		{
			config: {
				action: "iam:accessKeys:delete",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteAccessKey",
				summary: "Delete an access key",
				tags: ["Access keys"],
				params: accessKeyParams,
			},
		},
		async (request, reply) => {
			await deleteUserAccessKey(
				db,
				request.scope,
				request.params.user_id,
				request.params.access_key,
			);
			return reply.code(204).send();
		},
	);
}

// --- user groups --------------------------------------------------------------------------

function userGroupRoutes(http: Http, { db, now }: ManagementRouteParts): void {
	http.post(
		GROUPS,
		{
			config: {
				action: "iam:groups:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateUserGroup",
				summary: "Create a user group",
				tags: ["User groups"],
				body: createUserGroupBody,
				response: { 201: userGroup },
			},
		},
		async (request, reply) => {
			const { group_name, description } = request.body;
			const group = await createUserGroup(
				db,
				request.scope,
				{ name: group_name, description: description || null },
				now(),
			);
			return reply.code(201).send(groupToWire(group));
		},
	);

	http.get(
		GROUPS,
		{
			config: {
				action: "iam:groups:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListUserGroups",
				summary: "List user groups",
				tags: ["User groups"],
				querystring: listUserGroupsQuery,
				response: { 200: userGroupList },
			},
		},
		async (request) => {
			const { items, page } = await listUserGroups(
				db,
				request.scope,
				{ name: request.query.group_name },
				readPage(request.query),
			);
			return { groups: items.map(groupToWire), page };
		},
	);

	http.get(
		GROUP,
		{
			config: { action: "iam:groups:get", level: "Read", concerns: "instance" },
			schema: {
				operationId: "ShowUserGroup",
				summary: "Show a user group",
				tags: ["User groups"],
				params: userGroupParams,
				response: { 200: userGroup },
			},
		},
		async (request) =>
			groupToWire(
				await getUserGroup(db, request.scope, request.params.group_id),
			),
	);

	http.put(
		GROUP,
		{
			config: {
				action: "iam:groups:update",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdateUserGroup",
				summary: "Rename or describe a user group",
				tags: ["User groups"],
				params: userGroupParams,
				body: updateUserGroupBody,
				response: { 200: userGroup },
			},
		},
		async (request) =>
			groupToWire(
				await updateUserGroup(db, request.scope, request.params.group_id, {
					...withoutAbsent({ name: request.body.group_name }),
					...described(request.body.description),
				}),
			),
	);

	http.delete(
		GROUP,
		{
			config: {
				action: "iam:groups:delete",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteUserGroup",
				summary: "Delete a user group with its grants",
				tags: ["User groups"],
				params: userGroupParams,
			},
		},
		async (request, reply) => {
			await deleteUserGroup(db, request.scope, request.params.group_id);
			return reply.code(204).send();
		},
	);

	http.get(
		`${GROUP}/users`,
		{
			config: { action: "iam:users:list", level: "List", concerns: "instance" },
			schema: {
				operationId: "ListUsersOfGroup",
				summary: "List the users in a user group",
				tags: ["User groups"],
				params: userGroupParams,
				querystring: pagesQuery,
				response: { 200: userList },
			},
		},
		async (request) => {
			const { items, page } = await listGroupUsers(
				db,
				request.scope,
				request.params.group_id,
				readPage(request.query),
			);
			return { users: items.map(userToWire), page };
		},
	);

	http.put(
		`${GROUP}/users/:user_id`,
		{
			config: {
				action: "iam:groups:addUser",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "AddUserToGroup",
				summary: "Put a user into a user group",
				tags: ["User groups"],
				params: userGroupMemberParams,
			},
		},
		async (request, reply) => {
			const { group_id, user_id } = request.params;
			await addUserToGroup(db, request.scope, group_id, user_id);
			return reply.code(204).send();
		},
	);

	http.delete(
		`${GROUP}/users/:user_id`,
		{
			config: {
				action: "iam:groups:removeUser",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "RemoveUserFromGroup",
				summary: "Take a user out of a user group",
				tags: ["User groups"],
				params: userGroupMemberParams,
			},
		},
		async (request, reply) => {
			const { group_id, user_id } = request.params;
			await removeUserFromGroup(db, request.scope, group_id, user_id);
			return reply.code(204).send();
		},
	);
}

// --- oneself --------------------------------------------------------------------------------

function ownRoutes(
	http: Http,
	{ db, sealed, now, config }: ManagementRouteParts,
): void {
	const limits = new SignInLimits(now);

	http.get(
		ME,
		{
			config: { action: "iam:me:get", level: "Read", everyone: true },
			schema: {
				operationId: "ShowMe",
				summary: "Show who is calling",
				tags: ["Oneself"],
				response: { 200: me },
			},
		},
		async ({ scope, caller }): Promise<Me> => {
			const groups = await groupsOfUser(db, scope.userId);
			const projects = await listProjectsOf(db, caller, config);
			return {
				...userToWire(await getUser(db, scope, scope.userId)),
				account_id: caller.accountId,
				account_name: caller.accountName,
				groups: groups.map(({ group_id, name }) => ({
					group_id,
					group_name: name,
				})),
				projects: projects.map(({ projectId, name }) => ({
					project_id: projectId,
					project_name: name,
				})),
			};
		},
	);

	http.put(
		`${ME}/password`,
		{
			config: {
				action: "iam:me:changePassword",
				level: "Write",
				everyone: true,
			},
			schema: {
				operationId: "ChangeOwnPassword",
				summary: "Change one's own password",
				description:
					"Needs the present one. Ends all tokens of the caller, also the one that made this call.",
				tags: ["Oneself"],
				body: changeOwnPasswordBody,
				failures: [429],
			},
		},
		async (request, reply) => {
			const { scope, body } = request;
			// Whoever has got hold of a token must not find the password by trying.
			let attempt: ReturnType<SignInLimits["begin"]>;
			try {
				attempt = limits.begin(scope.userId, request.ip);
			} catch (error) {
				if (!(error instanceof SignInBlocked)) throw error;
				reply.header("retry-after", error.retryAfterSeconds);
				throw new ApiError(errors.tooManyPasswords, {
					detail: error.advice,
				});
			}
			try {
				await changeOwnPassword(db, scope, {
					password: body.password,
					newPassword: body.new_password,
				});
			} catch (error) {
				if (
					!(error instanceof ApiError && error.kind === errors.wrongOwnPassword)
				)
					attempt.forget();
				throw error;
			}
			attempt.forget();
			return reply.code(204).send();
		},
	);

	http.get(
		`${ME}/access-keys`,
		{
			config: {
				action: "iam:me:listAccessKeys",
				level: "List",
				everyone: true,
			},
			schema: {
				operationId: "ListOwnAccessKeys",
				summary: "List one's own access keys",
				tags: ["Oneself"],
				response: { 200: accessKeyList },
			},
		},
		async ({ scope }) => {
			const keys = await listUserAccessKeys(db, scope, scope.userId);
			return { access_keys: keys.map(keyToWire) };
		},
	);

	http.post(
		`${ME}/access-keys`,
		{
			config: {
				action: "iam:me:createAccessKey",
				level: "Write",
				everyone: true,
			},
			schema: {
				operationId: "CreateOwnAccessKey",
				summary: "Create an access key for oneself",
				description:
					"The secret key is answered this once. A user has at most two keys.",
				tags: ["Oneself"],
				body: createAccessKey,
				response: { 201: newAccessKey },
			},
		},
		async ({ scope, body }, reply) => {
			refuseDenied(scope);
			const key = await createUserAccessKey(
				db,
				scope,
				sealed,
				scope.userId,
				{ description: body.description || null },
				now,
			);
			return reply
				.code(201)
				.send({ ...keyToWire(key), secret_key: key.secretKey });
		},
	);

	http.put(
		`${ME}/access-keys/:access_key`,
		{
			config: {
				action: "iam:me:updateAccessKey",
				level: "Write",
				everyone: true,
			},
			schema: {
				operationId: "UpdateOwnAccessKey",
				summary: "Disable, enable or describe an access key of one's own",
				tags: ["Oneself"],
				params: ownAccessKeyParams,
				body: updateAccessKey,
				response: { 200: wireAccessKey },
			},
		},
		async ({ scope, params, body }) => {
			refuseDenied(scope);
			return keyToWire(
				await updateUserAccessKey(
					db,
					scope,
					scope.userId,
					params.access_key,
					keyChanges(body),
				),
			);
		},
	);

	http.delete(
		`${ME}/access-keys/:access_key`,
		{
			config: {
				action: "iam:me:deleteAccessKey",
				level: "Write",
				everyone: true,
			},
			schema: {
				operationId: "DeleteOwnAccessKey",
				summary: "Delete an access key of one's own",
				tags: ["Oneself"],
				params: ownAccessKeyParams,
			},
		},
		async ({ scope, params }, reply) => {
			refuseDenied(scope);
			await deleteUserAccessKey(db, scope, scope.userId, params.access_key);
			return reply.code(204).send();
		},
	);
}

// --- the wire's words -------------------------------------------------------------------------

/** An empty description clears, a missing one changes nothing. */
function described(description: string | undefined): {
	description?: string | null;
} {
	return description === undefined ? {} : { description: description || null };
}

function keyChanges(body: {
	description?: string;
	enabled?: boolean;
}): Parameters<typeof updateUserAccessKey>[4] {
	return {
		...described(body.description),
		...withoutAbsent({ isEnabled: body.enabled }),
	};
}

function passwordOf(user: { password?: string }): {
	password: string | undefined;
} {
	return { password: user.password };
}

function timeOf(text: string | null): string | undefined {
	const time = optionalInstant(text);
	return time && wireTime(time);
}

function userToWire(user: User) {
	return withoutAbsent({
		user_id: user.user_id,
		user_name: user.name,
		description: user.description,
		enabled: user.enabled === 1,
		is_administrator: user.is_administrator === 1,
		password_sign_in: user.password_hash !== NO_PASSWORD,
		must_change_password: user.must_change_password === 1,
		create_time: wireTime(fromInstant(user.created_at)),
		last_sign_in_time: timeOf(user.last_sign_in_at),
	});
}

function keyToWire(key: UserAccessKey) {
	return withoutAbsent({
		access_key: key.access_key,
		description: key.description,
		enabled: key.enabled === 1,
		create_time: wireTime(fromInstant(key.created_at)),
		last_used_time: timeOf(key.last_used_at),
	});
}

function groupToWire(group: UserGroup) {
	return withoutAbsent({
		group_id: group.group_id,
		group_name: group.name,
		description: group.description,
		create_time: wireTime(fromInstant(group.created_at)),
	});
}
