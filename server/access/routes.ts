/** Signing in, projects and accounts: what the vendor's SDKs ask its IAM for. */
import type { FastifyRequest } from "fastify";
import type { Static } from "typebox";
import {
	type CreateToken,
	callerIdentity,
	createToken,
	createTokenQuery,
	domainList,
	iamTime,
	listProjectsQuery,
	projectList,
	regionList,
	SUBJECT_TOKEN,
	type Token,
	token,
} from "../../wire/access.ts";
import {
	issuedToken,
	tokenToValidate,
	validatedToken,
} from "../../wire/headers.ts";
import type { Config } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import type { Events } from "../events.ts";
import {
	type Caller,
	findProject,
	findUser,
	listProjectsOf,
	type Project,
	type UserQuery,
} from "./accounts.ts";
import { TooManyPasswordChecks } from "./passwords.ts";
import type { Http } from "./route.ts";
import {
	type ProofLimits,
	SignInBlocked,
	SignInLimits,
} from "./sign-in-limits.ts";
import {
	findSigner,
	findTokenHolder,
	issueToken,
	type Signer,
} from "./tokens.ts";

export interface AccessRouteParts {
	db: Db;
	now: Clock;
	events: Events;
	config: Pick<Config, "regions" | "http">;
	proofLimits: Pick<ProofLimits, "vouch">;
}

export function accessRoutes(http: Http, parts: AccessRouteParts): void {
	const { db, now, events, config } = parts;
	const limits = new SignInLimits(now);
	const baseOf = (request: FastifyRequest) =>
		config.http.publicUrl ?? `${request.protocol}://${request.host}`;
	const selfOf = (request: FastifyRequest) => ({
		self: `${baseOf(request)}${request.url.split("?", 1)[0]}`,
	});

	http.post(
		"/v3/auth/tokens",
		{
			config: { open: true, auditedAs: "iam:tokens:create" },
			schema: {
				operationId: "KeystoneCreateUserTokenByPassword",
				summary: "Sign in by password",
				tags: ["Identity"],
				failures: [401, 403, 429],
				answerHeaders: { 201: issuedToken },

				querystring: createTokenQuery,
				body: createToken,
				response: { 201: token },
			},
		},
		async (request, reply) => {
			const { identity, scope } = request.body.auth;
			const { user } = identity.password;
			request.audited = { credential: "password" };
			const signIn = readUser(user);
			if (scope?.project && scope.domain)
				throw invalidInput("auth.scope", "must be a project or a domain");
			let caller: Signer | undefined;
			try {
				caller = await findSigner(
					db,
					limits,
					signIn,
					user.password,
					request.ip,
				);
			} catch (error) {
				if (error instanceof SignInBlocked) {
					reply.header("retry-after", error.retryAfterSeconds);
					throw new ApiError(errors.tooManySignIns, {
						detail: error.advice,
					});
				}
				if (error instanceof TooManyPasswordChecks) {
					reply.header("retry-after", 5);
					throw new ApiError(errors.tooManySignIns, {
						detail: "Try again in 5 seconds.",
					});
				}
				throw error;
			}
			if (!caller) {
				events.happened(
					"sign_in_refused",
					{},
					{
						reason: "wrong user or password",
						address: request.ip,
						requestId: request.id,
					},
					"warn",
				);
				// Whose password was guessed at; a name that nobody has may be one itself.
				const tried = await findUser(db, signIn);
				if (tried) request.audited.resource = tried.userId;
				throw new ApiError(errors.wrongPassword);
			}
			request.audited.caller = caller;
			const project = await readScope(db, caller, scope, config.regions);
			const issued = await issueToken(db, caller, project?.projectId, now);
			if (!issued) throw new ApiError(errors.wrongPassword);
			// Whatever others behind the same address have guessed.
			parts.proofLimits.vouch({ token: issued.token }, request.ip);
			events.happened("token_issued");
			return reply
				.code(201)
				.header(SUBJECT_TOKEN, issued.token)
				.send(
					describeToken(caller, project, issued, {
						baseUrl: baseOf(request),
						region: config.regions[0] ?? "",
						withCatalog: !request.query.nocatalog,
					}),
				);
		},
	);

	http.get(
		"/v3/auth/tokens",
		{
			config: {
				action: "iam:tokens:validate",
				level: "Read",
				everyone: true,
			},
			schema: {
				operationId: "KeystoneValidateToken",
				summary: "Validate a token",
				tags: ["Identity"],
				failures: [404],
				requestHeaders: tokenToValidate,
				answerHeaders: { 200: validatedToken },
				querystring: createTokenQuery,
				response: { 200: token },
			},
		},
		async (request, reply) => {
			const subject = request.headers[SUBJECT_TOKEN];
			if (typeof subject !== "string" || subject === "")
				throw invalidInput("X-Subject-Token", "is required");
			const holder = await findTokenHolder(db, subject);
			// Another account's token is none of the caller's business.
			if (
				!holder ||
				holder.expiresAt <= now() ||
				holder.accountId !== request.caller.accountId
			)
				throw new ApiError(errors.unknownToken);
			return reply.header(SUBJECT_TOKEN, subject).send(
				describeToken(holder, holder.project, holder, {
					baseUrl: baseOf(request),
					region: config.regions[0] ?? "",
					withCatalog: !request.query.nocatalog,
				}),
			);
		},
	);

	http.get(
		"/v3/projects",
		{
			config: {
				action: "iam:projects:listForUser",
				level: "List",
				everyone: true,
			},
			schema: {
				operationId: "KeystoneListProjects",
				summary: "List projects",
				tags: ["Identity"],

				querystring: listProjectsQuery,
				response: { 200: projectList },
			},
		},
		async (request) => {
			const { caller, query } = request;
			const projects = await listProjectsOf(db, caller, {
				name: query.name,
				regions: config.regions,
			});
			const links = selfOf(request);
			return {
				projects: projects.map((project) => ({
					id: project.projectId,
					name: project.name,
					domain_id: project.accountId,
					parent_id: project.accountId,
					is_domain: false,
					enabled: true,
					description: "",
					links: { self: `${links.self}/${project.projectId}` },
				})),
				links,
			};
		},
	);

	http.post(
		"/v3/projects",
		{
			config: {
				action: "iam:projects:createForUser",
				level: "Write",
				everyone: true,
			},
			schema: { hide: true },
		},
		async () => {
			// An SDK asks for this when it finds no project of its region's name.
			throw new ApiError(errors.forbiddenByIam);
		},
	);

	http.get(
		"/v3/regions",
		{
			config: { action: "iam:regions:list", level: "List", everyone: true },
			schema: {
				operationId: "KeystoneListRegions",
				summary: "List regions",
				tags: ["Identity"],
				response: { 200: regionList },
			},
		},
		async (request) => {
			const links = selfOf(request);
			return {
				regions: config.regions.map((region) => ({
					id: region,
					// The Node.js SDK looks at no other type.
					type: "public",
					description: "",
					links: { self: `${links.self}/${region}` },
				})),
				links,
			};
		},
	);

	http.get(
		"/v3/auth/domains",
		{
			config: { action: "iam:domains:list", level: "List", everyone: true },
			schema: {
				operationId: "KeystoneListAuthDomains",
				summary: "List the accounts of the caller",
				tags: ["Identity"],
				response: { 200: domainList },
			},
		},
		async (request) => {
			const { accountId, accountName } = request.caller;
			const links = selfOf(request);
			return {
				domains: [
					{
						id: accountId,
						name: accountName,
						enabled: true,
						description: "",
						links: { self: `${baseOf(request)}/v3/domains/${accountId}` },
					},
				],
				links,
			};
		},
	);

	http.get(
		"/v5/caller-identity",
		{
			config: {
				action: "sts:callerIdentity:query",
				level: "Read",
				everyone: true,
			},
			schema: {
				operationId: "GetCallerIdentity",
				summary: "Show who is calling",
				tags: ["Identity"],
				response: { 200: callerIdentity },
			},
		},
		async ({ caller }) => ({
			account_id: caller.accountId,
			principal_id: caller.userId,
			principal_urn: `iam::${caller.accountId}:user:${caller.userName}`,
		}),
	);
}

type SignInUser = CreateToken["auth"]["identity"]["password"]["user"];
/** Of a project in which nothing is granted to him, a caller learns no more than he knows. */
async function findScopeProject(
	db: Db,
	caller: Caller,
	projectId: string,
): Promise<Project | undefined> {
	const own = await listProjectsOf(db, caller, { regions: [] });
	const project = await findProject(db, caller.accountId, projectId);
	return project && own.every((one) => one.projectId !== projectId)
		? { ...project, name: project.projectId }
		: project;
}

type TokenScope = CreateToken["auth"]["scope"];

function readUser(user: SignInUser): UserQuery {
	const field = "auth.identity.password.user";
	const { id, name, domain } = user;
	if (id !== undefined) return { user: { id }, account: undefined };
	if (name === undefined)
		throw invalidInput(`${field}.name`, "is required without an id");
	if (domain?.id !== undefined)
		return { user: { name }, account: { id: domain.id } };
	if (domain?.name !== undefined)
		return { user: { name }, account: { name: domain.name } };
	throw invalidInput(`${field}.domain.name`, "is required");
}

/** The project of the scope; undefined: the whole account. */
async function readScope(
	db: Db,
	caller: Caller,
	scope: TokenScope,
	regions: readonly string[],
): Promise<Project | undefined> {
	if (scope?.project) {
		const { id, name } = scope.project;
		if (id === undefined && name === undefined)
			throw invalidInput("auth.scope.project", "must have a name or an id");
		const project =
			id !== undefined
				? await findScopeProject(db, caller, id)
				: (await listProjectsOf(db, caller, { name: name ?? "", regions }))[0];
		if (!project) throw new ApiError(errors.unknownScope);
		return project;
	}
	const { id, name } = scope?.domain ?? {};
	if (
		(id !== undefined && id !== caller.accountId) ||
		(name !== undefined && name !== caller.accountName)
	)
		throw new ApiError(errors.unknownScope);
	return undefined;
}

function describeToken(
	caller: Caller,
	project: Project | undefined,
	life: { issuedAt: Date; expiresAt: Date },
	server: { baseUrl: string; region: string; withCatalog: boolean },
): Token {
	const domain = { id: caller.accountId, name: caller.accountName };
	const service = (
		id: string,
		path: string,
	): Static<typeof token>["token"]["catalog"][number] => ({
		id,
		name: id,
		type: id,
		endpoints: [
			{
				id: `${id}-public`,
				interface: "public",
				region: server.region,
				region_id: server.region,
				url: `${server.baseUrl}${path}`,
			},
		],
	});
	return {
		token: {
			methods: ["password"],
			issued_at: iamTime(life.issuedAt),
			expires_at: iamTime(life.expiresAt),
			user: {
				id: caller.userId,
				name: caller.userName,
				domain,
				password_expires_at: "",
			},
			...(project
				? {
						project: { id: project.projectId, name: project.name, domain },
					}
				: { domain }),
			roles: caller.isAdministrator ? [{ id: "0", name: "te_admin" }] : [],
			catalog: server.withCatalog
				? [
						service("iam", "/v3"),
						service("iotda", project ? `/v5/iot/${project.projectId}` : "/v5"),
					]
				: [],
		},
	};
}
