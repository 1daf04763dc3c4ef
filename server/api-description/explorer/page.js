/**
 * The page around the API reference: signs a person in, and proves every call that the
 * reference makes. A token is kept for this tab, where the console keeps it too; an
 * access key is kept nowhere, and forgotten with the page.
 */
import { sha256Hex, signRequest } from "./sign-request.js";

const TOKEN = "otaru.token";
const USER = "otaru.user";
const PROJECT = "otaru.project_id";

const byId = (id) => document.getElementById(id);
const api = (path) => new URL(path, document.baseURI);
const SESSION_ENDED = "The session has ended. Sign in again.";

/** Set while calls are signed. */
let accessKey;
let reference;
const described = fetch(api("openapi.json")).then((answer) => answer.json());

// --- proving calls ----------------------------------------------------------------

/** What the reference sends its calls with. */
async function provenFetch(input, init) {
	const request = new Request(input, init);
	if (new URL(request.url).origin !== location.origin)
		throw new Error("The explorer calls no server but its own.");
	const token = sessionStorage.getItem(TOKEN);
	if (accessKey) return fetch(await signed(request));
	if (token === null) return fetch(request);
	const answer = await fetch(withHeaders(request, { "x-auth-token": token }));
	if (answer.status === 401) {
		forget();
		show(SESSION_ENDED);
	}
	return answer;
}

async function signed(request) {
	const bytes = new Uint8Array(await request.clone().arrayBuffer());
	const payloadHash = await sha256Hex(bytes);
	const url = new URL(request.url);
	const type = request.headers.get("content-type");
	const headers = {
		host: url.host,
		"x-sdk-content-sha256": payloadHash,
		...(type === null ? {} : { "content-type": type }),
	};
	const { host: _, ...sent } = headers;
	const proof = await signRequest(
		{ method: request.method, url, headers, payloadHash, date: new Date() },
		accessKey,
	);
	return withHeaders(request, { ...sent, ...proof });
}

function withHeaders(request, headers) {
	const all = new Headers(request.headers);
	for (const [name, value] of Object.entries(headers)) all.set(name, value);
	return new Request(request, { headers: all });
}

/** @throws Error with the server's sentence. */
async function successOf(answer) {
	if (answer.ok) return answer;
	const body = await answer.json().catch(() => ({}));
	throw new Error(
		body.error?.message ??
			body.error_msg ??
			`The server answered ${answer.status}.`,
	);
}

// --- signing in -------------------------------------------------------------------

async function issueToken({ user, account, password }, project) {
	const identity = {
		methods: ["password"],
		password: { user: { name: user, password, domain: { name: account } } },
	};
	const scope = project
		? { project: { id: project } }
		: { domain: { name: account } };
	const answer = await successOf(
		await fetch(api("v3/auth/tokens?nocatalog=true"), {
			method: "POST",
			headers: { "content-type": "application/json" },
			body: JSON.stringify({ auth: { identity, scope } }),
		}),
	);
	return answer.headers.get("x-subject-token");
}

/** The caller's only project; calls are proven already. */
async function onlyProject() {
	const answer = await successOf(await provenFetch(api("v3/projects")));
	const { projects } = await answer.json();
	if (projects.length === 1) return projects[0].id;
	throw new Error(
		projects.length === 0
			? "There is no project that you may use."
			: `Say which project: ${projects.map(({ id, name }) => `${name} is ${id}`).join(", ")}.`,
	);
}

/** Undefined for a caller who may not see it: then he fills in one of his own. */
async function defaultSpace(project) {
	const answer = await provenFetch(
		api(`v5/iot/${encodeURIComponent(project)}/apps?default_app=true`),
	);
	if (!answer.ok) return undefined;
	return (await answer.json()).applications[0]?.app_id;
}

async function signInByPassword(form) {
	const { project, ...who } = Object.fromEntries(new FormData(form));
	let projectId = project.trim();
	if (!projectId) {
		sessionStorage.setItem(TOKEN, await issueToken(who, ""));
		projectId = await onlyProject();
	}
	sessionStorage.setItem(TOKEN, await issueToken(who, projectId));
	remember(who.user, projectId);
}

async function signInByKey(form) {
	if (!globalThis.crypto?.subtle)
		throw new Error(
			"A browser signs only on pages that come over HTTPS or from this machine.",
		);
	const given = Object.fromEntries(new FormData(form));
	accessKey = {
		accessKey: given["access-key"].trim(),
		secretKey: given["secret-key"].trim(),
	};
	const answer = await successOf(await provenFetch(api("v5/caller-identity")));
	const { principal_urn: urn } = await answer.json();
	remember(
		`${urn.slice(urn.lastIndexOf(":") + 1)} (access key)`,
		given.project.trim() || (await onlyProject()),
	);
}

/** A session that began elsewhere, in the console: whose it is, and for which project. */
async function takeUpSession() {
	const token = sessionStorage.getItem(TOKEN);
	if (token === null || sessionStorage.getItem(PROJECT) !== null) return;
	const answer = await fetch(api("v3/auth/tokens?nocatalog=true"), {
		headers: { "x-auth-token": token, "x-subject-token": token },
	});
	if (answer.status === 401) {
		forget();
		show(SESSION_ENDED);
	}
	if (!answer.ok) return;
	const { user, project } = (await answer.json()).token;
	sessionStorage.setItem(USER, user.name);
	if (project) sessionStorage.setItem(PROJECT, project.id);
}

function remember(user, project) {
	sessionStorage.setItem(USER, user);
	sessionStorage.setItem(PROJECT, project);
}

function forget() {
	accessKey = undefined;
	for (const key of [TOKEN, USER, PROJECT]) sessionStorage.removeItem(key);
	showSession();
}

// --- the page ---------------------------------------------------------------------

function show(message) {
	byId("message").textContent = message;
}

function showSession() {
	const isSignedIn =
		accessKey !== undefined || sessionStorage.getItem(TOKEN) !== null;
	byId("who").textContent = isSignedIn
		? `Signed in${sessionStorage.getItem(USER) ? ` as ${sessionStorage.getItem(USER)}` : ""}`
		: "Not signed in";
	byId("by-password").hidden = isSignedIn;
	byId("with-key").hidden = isSignedIn;
	byId("sign-out").hidden = !isSignedIn;
}

function onSubmit(id, signIn) {
	byId(id).addEventListener("submit", async (event) => {
		event.preventDefault();
		const form = event.target;
		const button = form.querySelector("button");
		button.disabled = true;
		show("");
		try {
			forget();
			await signIn(form);
			form.reset();
			await describe();
			showSession();
		} catch (error) {
			forget();
			show(error.message);
		} finally {
			button.disabled = false;
		}
	});
}

/** The description with the caller's own ids in it, and without what proves a call: the page does. */
async function describe() {
	const original = await described;
	const { project_id, app_id } = original["x-otaru-example-ids"];
	let text = JSON.stringify(original);
	const project = sessionStorage.getItem(PROJECT);
	if (project) {
		text = text.replaceAll(project_id, project);
		const space = await defaultSpace(project);
		if (space) text = text.replaceAll(app_id, space);
	}
	const content = JSON.parse(text);
	for (const operation of Object.values(content.paths).flatMap(Object.values))
		delete operation.security;
	delete content.security;
	delete content.components.securitySchemes;
	const configuration = {
		content,
		customFetch: provenFetch,
		telemetry: false,
		withDefaultFonts: false,
		agent: { disabled: true },
		mcp: { disabled: true },
		hideClientButton: true,
		showDeveloperTools: "never",
		documentDownloadType: "none",
		hiddenClients: true,
		orderSchemaPropertiesBy: "preserve",
		orderRequiredPropertiesFirst: true,
		showOperationId: true,
		persistAuth: false,
	};
	if (reference) reference.updateConfiguration(configuration);
	else
		reference = globalThis.Scalar.createApiReference(
			"#reference",
			configuration,
		);
}

onSubmit("by-password", signInByPassword);
onSubmit("by-key", signInByKey);
byId("sign-out").addEventListener("click", () => {
	forget();
	show("");
});
try {
	await takeUpSession();
	showSession();
	await describe();
} catch (error) {
	show(error.message);
}
