import {
	createEnterpriseProject as createEnterpriseProjectBody,
	createGrant as createGrantBody,
	createPolicy as createPolicyBody,
	createProject as createProjectBody,
	enterpriseProject,
	enterpriseProjectList,
	enterpriseProjectParams,
	grant,
	grantList,
	grantParams,
	listGrantsQuery,
	listPoliciesQuery,
	managedProject,
	managedProjectList,
	managedProjectParams,
	pagesQuery,
	policyList,
	policyParams,
	setSpaceAccess as setSpaceAccessBody,
	spaceAccess,
	spaceAccessParams,
	updateEnterpriseProject as updateEnterpriseProjectBody,
	updatePolicy as updatePolicyBody,
	updateProject as updateProjectBody,
	type EnterpriseProject as WireEnterpriseProject,
	type Grant as WireGrant,
	type ManagedProject as WireManagedProject,
	type Policy as WirePolicy,
	type SpaceAccess as WireSpaceAccess,
	policy as wirePolicy,
} from "../../wire/access-management.ts";
import { wireTime, withoutAbsent } from "../../wire/envelope.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant } from "../database/tables.ts";
import {
	createEnterpriseProject,
	deleteEnterpriseProject,
	type EnterpriseProject,
	getEnterpriseProject,
	getSpaceAccess,
	listEnterpriseProjects,
	type SpaceAccess,
	setSpaceAccess,
	updateEnterpriseProject,
} from "./enterprise-projects.ts";
import {
	createGrant,
	deleteGrant,
	type Grant,
	getGrant,
	listGrants,
} from "./grants.ts";
import {
	createPolicy,
	deletePolicy,
	getPolicy,
	listPolicies,
	type Policy,
	updatePolicy,
	warningsOf,
} from "./policies.ts";
import {
	createProject,
	deleteProject,
	getManagedProject,
	listManagedProjects,
	type ManagedProject,
	renameProject,
} from "./projects.ts";
import type { Http } from "./route.ts";

const POLICIES = "/otaru/v1/access/policies";
const POLICY = `${POLICIES}/:policy_id`;
const GRANTS = "/otaru/v1/access/grants";
const GRANT = `${GRANTS}/:grant_id`;
const PROJECTS = "/otaru/v1/access/projects";
const PROJECT = `${PROJECTS}/:managed_project_id`;
const ENTERPRISE_PROJECTS = "/otaru/v1/access/enterprise-projects";
const ENTERPRISE_PROJECT = `${ENTERPRISE_PROJECTS}/:enterprise_project_id`;
const SPACE_ACCESS = "/otaru/v1/projects/:project_id/apps/:app_id/access";

export interface GrantRouteParts {
	db: Db;
	now: Clock;
	/** Of this server; complete once all routes are registered. */
	actions: ReadonlyMap<string, unknown>;
}

/** Policies and grants, and the projects and enterprise projects that grants are about. */
export function grantRoutes(http: Http, parts: GrantRouteParts): void {
	policyRoutes(http, parts);
	bindingRoutes(http, parts);
	projectRoutes(http, parts);
	enterpriseProjectRoutes(http, parts);
	spaceAccessRoutes(http, parts);
}

// --- policies -------------------------------------------------------------------------

function policyRoutes(http: Http, { db, now, actions }: GrantRouteParts): void {
	const withWarnings = (policy: Policy): WirePolicy => {
		const warnings = warningsOf(policy, actions.keys());
		return {
			...policyToWire(policy),
			...(warnings.length > 0 && { warnings }),
		};
	};

	http.post(
		POLICIES,
		{
			config: {
				action: "iam:policies:create",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "CreatePolicy",
				summary: "Create a policy",
				description:
					"A document that is no policy is refused with the JSON pointer of its fault.",
				tags: ["Policies"],
				body: createPolicyBody,
				response: { 201: wirePolicy },
			},
		},
		async (request, reply) => {
			const { policy_name, description, document } = request.body;
			const policy = await createPolicy(
				db,
				request.scope,
				{ name: policy_name, description: description || null, document },
				now(),
			);
			return reply.code(201).send(withWarnings(policy));
		},
	);

	http.get(
		POLICIES,
		{
			config: {
				action: "iam:policies:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListPolicies",
				summary: "List policies",
				description: "The system's own come after all others.",
				tags: ["Policies"],
				querystring: listPoliciesQuery,
				response: { 200: policyList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listPolicies(
				db,
				request.scope,
				{ type: query.type, name: query.policy_name },
				readPage(query),
			);
			return { policies: items.map(policyToWire), page };
		},
	);

	http.get(
		POLICY,
		{
			config: {
				action: "iam:policies:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "ShowPolicy",
				summary: "Show a policy with its document",
				tags: ["Policies"],
				params: policyParams,
				response: { 200: wirePolicy },
			},
		},
		async (request) =>
			withWarnings(
				await getPolicy(db, request.scope, request.params.policy_id),
			),
	);

	http.put(
		POLICY,
		{
			config: {
				action: "iam:policies:update",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdatePolicy",
				summary: "Change a policy",
				description:
					"Another document counts from the next request on, and signs out whoever has the policy.",
				tags: ["Policies"],
				params: policyParams,
				body: updatePolicyBody,
				response: { 200: wirePolicy },
			},
		},
		async (request) => {
			const { policy_name, description, document } = request.body;
			return withWarnings(
				await updatePolicy(
					db,
					request.scope,
					request.params.policy_id,
					{
						...withoutAbsent({ name: policy_name, document }),
						...described(description),
					},
					now(),
				),
			);
		},
	);

	http.delete(
		POLICY,
		{
			config: {
				action: "iam:policies:delete",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "DeletePolicy",
				summary: "Delete a policy that nobody is granted",
				tags: ["Policies"],
				params: policyParams,
			},
		},
		async (request, reply) => {
			await deletePolicy(db, request.scope, request.params.policy_id);
			return reply.code(204).send();
		},
	);
}

// --- grants -------------------------------------------------------------------------------

function bindingRoutes(http: Http, { db, now }: GrantRouteParts): void {
	http.post(
		GRANTS,
		{
			config: {
				action: "iam:grants:create",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateGrant",
				summary: "Grant a policy to a user or a user group",
				description:
					"Everywhere, in a project, or in an enterprise project. Whom it concerns is signed out.",
				tags: ["Grants"],
				body: createGrantBody,
				response: { 201: grant },
			},
		},
		async (request, reply) => {
			const { policy_id, principal, scope } = request.body;
			const created = await createGrant(
				db,
				request.scope,
				{
					policyId: policy_id,
					principalType: principal.type,
					principalId: principal.id,
					scopeType: scope.type,
					scopeId: scope.id,
				},
				now(),
			);
			return reply.code(201).send(grantToWire(created));
		},
	);

	http.get(
		GRANTS,
		{
			config: {
				action: "iam:grants:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListGrants",
				summary: "List grants",
				tags: ["Grants"],
				querystring: listGrantsQuery,
				response: { 200: grantList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listGrants(
				db,
				request.scope,
				{
					policyId: query.policy_id,
					principalType: query.principal_type,
					principalId: query.principal_id,
					scopeType: query.scope_type,
					scopeId: query.scope_id,
				},
				readPage(query),
			);
			return { grants: items.map(grantToWire), page };
		},
	);

	http.get(
		GRANT,
		{
			config: { action: "iam:grants:get", level: "Read", concerns: "instance" },
			schema: {
				operationId: "ShowGrant",
				summary: "Show a grant",
				tags: ["Grants"],
				params: grantParams,
				response: { 200: grant },
			},
		},
		async (request) =>
			grantToWire(await getGrant(db, request.scope, request.params.grant_id)),
	);

	http.delete(
		GRANT,
		{
			config: {
				action: "iam:grants:delete",
				level: "Permission_management",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteGrant",
				summary: "Take a grant back",
				description: "Whom it concerned is signed out.",
				tags: ["Grants"],
				params: grantParams,
			},
		},
		async (request, reply) => {
			await deleteGrant(db, request.scope, request.params.grant_id);
			return reply.code(204).send();
		},
	);
}

// --- projects -------------------------------------------------------------------------------

function projectRoutes(http: Http, { db, now }: GrantRouteParts): void {
	http.post(
		PROJECTS,
		{
			config: {
				action: "iam:projects:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateProject",
				summary: "Create a project with a default resource space",
				tags: ["Projects"],
				body: createProjectBody,
				response: { 201: managedProject },
			},
		},
		async (request, reply) => {
			const project = await createProject(
				db,
				request.scope,
				{ name: request.body.project_name },
				now(),
			);
			return reply.code(201).send(projectToWire(project));
		},
	);

	http.get(
		PROJECTS,
		{
			config: {
				action: "iam:projects:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListProjects",
				summary: "List all projects of the account",
				tags: ["Projects"],
				response: { 200: managedProjectList },
			},
		},
		async (request) => ({
			projects: (await listManagedProjects(db, request.scope)).map(
				projectToWire,
			),
		}),
	);

	http.get(
		PROJECT,
		{
			config: {
				action: "iam:projects:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "ShowProject",
				summary: "Show a project",
				tags: ["Projects"],
				params: managedProjectParams,
				response: { 200: managedProject },
			},
		},
		async (request) =>
			projectToWire(
				await getManagedProject(
					db,
					request.scope,
					request.params.managed_project_id,
				),
			),
	);

	http.put(
		PROJECT,
		{
			config: {
				action: "iam:projects:update",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdateProject",
				summary: "Rename a project",
				tags: ["Projects"],
				params: managedProjectParams,
				body: updateProjectBody,
				response: { 200: managedProject },
			},
		},
		async (request) =>
			projectToWire(
				await renameProject(
					db,
					request.scope,
					request.params.managed_project_id,
					request.body.project_name,
				),
			),
	);

	http.delete(
		PROJECT,
		{
			config: {
				action: "iam:projects:delete",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteProject",
				summary: "Delete an empty project with its resource spaces and grants",
				tags: ["Projects"],
				params: managedProjectParams,
			},
		},
		async (request, reply) => {
			await deleteProject(db, request.scope, request.params.managed_project_id);
			return reply.code(204).send();
		},
	);
}

// --- enterprise projects ------------------------------------------------------------------------

function enterpriseProjectRoutes(
	http: Http,
	{ db, now }: GrantRouteParts,
): void {
	http.post(
		ENTERPRISE_PROJECTS,
		{
			config: {
				action: "iam:enterpriseProjects:create",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "CreateEnterpriseProject",
				summary: "Create an enterprise project",
				tags: ["Enterprise projects"],
				body: createEnterpriseProjectBody,
				response: { 201: enterpriseProject },
			},
		},
		async (request, reply) => {
			const { enterprise_project_name, description } = request.body;
			const created = await createEnterpriseProject(
				db,
				request.scope,
				{ name: enterprise_project_name, description: description || null },
				now(),
			);
			return reply.code(201).send(enterpriseProjectToWire(created));
		},
	);

	http.get(
		ENTERPRISE_PROJECTS,
		{
			config: {
				action: "iam:enterpriseProjects:list",
				level: "List",
				concerns: "instance",
			},
			schema: {
				operationId: "ListEnterpriseProjects",
				summary: "List enterprise projects",
				description: "The default one comes last.",
				tags: ["Enterprise projects"],
				querystring: pagesQuery,
				response: { 200: enterpriseProjectList },
			},
		},
		async (request) => {
			const { items, page } = await listEnterpriseProjects(
				db,
				request.scope,
				readPage(request.query),
			);
			return { enterprise_projects: items.map(enterpriseProjectToWire), page };
		},
	);

	http.get(
		ENTERPRISE_PROJECT,
		{
			config: {
				action: "iam:enterpriseProjects:get",
				level: "Read",
				concerns: "instance",
			},
			schema: {
				operationId: "ShowEnterpriseProject",
				summary: "Show an enterprise project",
				tags: ["Enterprise projects"],
				params: enterpriseProjectParams,
				response: { 200: enterpriseProject },
			},
		},
		async (request) =>
			enterpriseProjectToWire(
				await getEnterpriseProject(
					db,
					request.scope,
					request.params.enterprise_project_id,
				),
			),
	);

	http.put(
		ENTERPRISE_PROJECT,
		{
			config: {
				action: "iam:enterpriseProjects:update",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "UpdateEnterpriseProject",
				summary: "Rename or describe an enterprise project",
				tags: ["Enterprise projects"],
				params: enterpriseProjectParams,
				body: updateEnterpriseProjectBody,
				response: { 200: enterpriseProject },
			},
		},
		async (request) =>
			enterpriseProjectToWire(
				await updateEnterpriseProject(
					db,
					request.scope,
					request.params.enterprise_project_id,
					{
						...withoutAbsent({ name: request.body.enterprise_project_name }),
						...described(request.body.description),
					},
				),
			),
	);

	http.delete(
		ENTERPRISE_PROJECT,
		{
			config: {
				action: "iam:enterpriseProjects:delete",
				level: "Write",
				concerns: "instance",
			},
			schema: {
				operationId: "DeleteEnterpriseProject",
				summary: "Delete an enterprise project that nothing uses",
				tags: ["Enterprise projects"],
				params: enterpriseProjectParams,
			},
		},
		async (request, reply) => {
			await deleteEnterpriseProject(
				db,
				request.scope,
				request.params.enterprise_project_id,
			);
			return reply.code(204).send();
		},
	);
}

// --- what policies see of a resource space ----------------------------------------------------

function spaceAccessRoutes(http: Http, { db }: GrantRouteParts): void {
	http.get(
		SPACE_ACCESS,
		{
			config: { action: "iotda:apps:query", level: "Read" },
			schema: {
				operationId: "ShowApplicationAccess",
				summary: "Show what policies see of a resource space",
				tags: ["Resource spaces"],
				params: spaceAccessParams,
				response: { 200: spaceAccess },
			},
		},
		async (request) =>
			spaceAccessToWire(
				await getSpaceAccess(db, request.scope, request.params.app_id),
			),
	);

	http.put(
		SPACE_ACCESS,
		{
			config: {
				action: "iotda:apps:setAccess",
				level: "Permission_management",
			},
			schema: {
				operationId: "SetApplicationAccess",
				summary: "Set the enterprise project and the tags of a resource space",
				description: "Policies can ask for both. Tags are replaced as a whole.",
				tags: ["Resource spaces"],
				params: spaceAccessParams,
				body: setSpaceAccessBody,
				response: { 200: spaceAccess },
			},
		},
		async (request) => {
			const { enterprise_project_id, tags } = request.body;
			return spaceAccessToWire(
				await setSpaceAccess(
					db,
					request.scope,
					request.params.app_id,
					withoutAbsent({ enterpriseProjectId: enterprise_project_id, tags }),
				),
			);
		},
	);
}

// --- the wire's words ---------------------------------------------------------------------------

/** An empty description clears, a missing one changes nothing. */
function described(description: string | undefined): {
	description?: string | null;
} {
	return description === undefined ? {} : { description: description || null };
}

function timeOf(time: Date | undefined): string | undefined {
	return time && wireTime(time);
}

function policyToWire(policy: Policy): WirePolicy {
	return withoutAbsent({
		policy_id: policy.policyId,
		policy_name: policy.name,
		type: policy.type,
		description: policy.description,
		document: policy.document,
		create_time: timeOf(policy.createdAt),
		update_time: timeOf(policy.updatedAt),
	});
}

function grantToWire(granted: Grant): WireGrant {
	return {
		grant_id: granted.grant_id,
		policy_id: granted.policy_id,
		policy_name: granted.policyName,
		principal: {
			type: granted.principal_type,
			id: granted.principal_id,
			name: granted.principalName,
		},
		scope: {
			type: granted.scope_type,
			...withoutAbsent({
				id: granted.scope_id || undefined,
				name: granted.scopeName,
			}),
		},
		create_time: wireTime(fromInstant(granted.created_at)),
	};
}

function projectToWire(project: ManagedProject): WireManagedProject {
	return withoutAbsent({
		project_id: project.projectId,
		project_name: project.name,
		default_app_id: project.defaultSpaceId,
		create_time: wireTime(project.createdAt),
	});
}

function enterpriseProjectToWire(
	project: EnterpriseProject,
): WireEnterpriseProject {
	return withoutAbsent({
		enterprise_project_id: project.enterpriseProjectId,
		enterprise_project_name: project.name,
		description: project.description,
		create_time: timeOf(project.createdAt),
	});
}

function spaceAccessToWire(access: SpaceAccess): WireSpaceAccess {
	return {
		app_id: access.spaceId,
		enterprise_project_id: access.enterpriseProject.enterpriseProjectId,
		enterprise_project_name: access.enterpriseProject.name,
		tags: access.tags,
	};
}
