/**
 * The management API as typed calls, for the command line, the tests and browsers:
 * `fetch` and Web Crypto are all it needs.
 */
import type { Static, TSchema } from "typebox";
import type {
	CallerIdentity,
	CreateToken,
	DomainList,
	listProjectsQuery,
	ProjectList,
	RegionList,
	Token,
} from "./access.ts";
import type {
	AccessKeyItem,
	accessKeyList,
	CreateGrant,
	CreateUser,
	changeOwnPassword,
	createAccessKey,
	createEnterpriseProject,
	createPolicy,
	createProject,
	createUserGroup,
	EnterpriseProject,
	enterpriseProjectList,
	Grant,
	grantList,
	listGrantsQuery,
	listPoliciesQuery,
	listUserGroupsQuery,
	listUsersQuery,
	ManagedProject,
	Me,
	managedProjectList,
	NewAccessKey,
	Policy,
	pagesQuery,
	policyList,
	SpaceAccess,
	setSpaceAccess,
	UpdateUser,
	User,
	UserGroup,
	UserWithPassword,
	updateAccessKey,
	updateEnterpriseProject,
	updatePolicy,
	updateUserGroup,
	userGroupList,
	userList,
} from "./access-management.ts";
import type { AccessSimulation, SimulateAccess } from "./access-simulation.ts";
import type {
	AuditLink,
	AuditVerification,
	auditList,
	exportAuditQuery,
	listAuditQuery,
} from "./audit.ts";
import type {
	createGroup,
	Group,
	groupActionQuery,
	groupDevices,
	groupDevicesQuery,
	groupList,
	groupsOfDevice,
	listGroupsQuery,
	updateGroup,
} from "./device-groups.ts";
import type {
	DeviceImport,
	deviceImportList,
	exportDevicesQuery,
	ImportFormat,
	importRefusalsQuery,
	listDeviceImportsQuery,
} from "./device-imports.ts";
import type {
	createDevice,
	Device,
	DeviceOtaProfile,
	deviceList,
	listDevicesQuery,
	resetSecret,
	resetSecretAnswer,
	updateDevice,
	updateDeviceOtaProfile,
} from "./devices.ts";
import { readEventStream } from "./event-stream.ts";
import type {
	deviceEventList,
	listDeviceEventsQuery,
	WatchEvent,
	watchQuery,
} from "./history.ts";
import type { MasterKeyStatus } from "./master-key.ts";
import type { listObjectsQuery, objectList, StoredObject } from "./objects.ts";
import type {
	createOtaModule,
	listOtaModulesQuery,
	OtaModule,
	otaModuleList,
	updateOtaModule,
} from "./ota-modules.ts";
import type {
	createPackage,
	listPackagesQuery,
	OtaPackage,
	packageList,
} from "./packages.ts";
import type {
	createProduct,
	listProductsQuery,
	Product,
	ProductOtaProfile,
	productList,
	productQuery,
	updateProduct,
	updateProductOtaProfile,
} from "./products.ts";
import type {
	App,
	appList,
	createApp,
	listAppsQuery,
	updateApp,
} from "./resource-spaces.ts";
import {
	type AccessKey,
	canonicalQuery,
	encodeText,
	sha256Hex,
	signRequest,
	UNSIGNED_PAYLOAD,
	utf8,
} from "./sign-request.ts";
import type {
	bindTags,
	queryTagged,
	queryTaggedPage,
	taggedResources,
	unbindTags,
} from "./tags.ts";
import type {
	CreateTask,
	listTasksQuery,
	showTaskQuery,
	someTargets,
	Task,
	TaskWithDetails,
	targetResults,
	taskList,
	Why,
} from "./tasks.ts";

export type { AccessKey, RequestToSign } from "./sign-request.ts";
export { sha256Hex, signRequest, UNSIGNED_PAYLOAD } from "./sign-request.ts";

/** How a caller proves who he is. */
export type Credentials = AccessKey | { token: string };

// --- calls --------------------------------------------------------------------------

/** An answer other than success. */
export class ApiFailure extends Error {
	override name = "ApiFailure";
	readonly status: number;
	/** Such as `IOTDA.014000`; for the token calls the status as text. */
	readonly code: string;
	/** Under which the server logged it; empty when the answer had none. */
	readonly requestId: string;
	/** Of somebody who has to wait; undefined where trying again at once is as good. */
	readonly retryAfterSeconds: number | undefined;

	constructor(
		status: number,
		code: string,
		message: string,
		requestId: string,
		retryAfterSeconds?: number,
	) {
		super(message);
		this.status = status;
		this.code = code;
		this.requestId = requestId;
		this.retryAfterSeconds = retryAfterSeconds;
	}
}

/** A stream of events has been silent for so long that its connection must be dead. */
export class StreamSilence extends Error {
	override name = "StreamSilence";
	override message = "nothing was heard for too long";
}

/** Three signs of life of the server. */
const SILENCE_MS = 45_000;

export interface ClientOptions {
	/** Such as `http://127.0.0.1:8080`, without a path. */
	endpoint: string;
	projectId: string;
	/** Absent: calls go out unsigned. */
	credentials?: Credentials;
	fetch?: typeof fetch;
	now?: () => Date;
}

/** What a body may be, beside JSON; a stream or Blob goes out while it is read. */
export type Payload =
	| string
	| Uint8Array<ArrayBuffer>
	| Blob
	| ReadableStream<Uint8Array>;
export type Query = Record<string, string | number | boolean | undefined>;

export interface CallOptions {
	query?: Query | undefined;
	/** Sent as JSON. */
	json?: unknown;
	/** Sent as it is; a stream goes out while it is read. */
	body?: Payload;
	/** Of `body`: what is signed in its place. Absent: computed for texts and bytes, left out of the signature for the rest. */
	sha256?: string;
	headers?: Record<string, string>;
	signal?: AbortSignal;
}

/** A schema's type with its texts of numbers and flags loosened: what is put into a query. */
type QueryOf<T extends TSchema> = {
	[K in keyof Static<T>]:
		| Static<T>[K]
		| (string extends Static<T>[K] ? number : never);
};

/**
 * Every management call of the server. What fails is thrown as `ApiFailure`; what
 * never reached the server as whatever `fetch` throws.
 */
export class Client {
	readonly endpoint: string;
	readonly projectId: string;
	readonly #credentials: Credentials | undefined;
	readonly #fetch: typeof fetch;
	readonly #now: () => Date;

	constructor(options: ClientOptions) {
		this.endpoint = options.endpoint.replace(/\/+$/, "");
		this.projectId = options.projectId;
		this.#credentials = options.credentials;
		this.#fetch = options.fetch ?? ((...args) => fetch(...args));
		this.#now = options.now ?? (() => new Date());
	}

	/** The same server and project, called by somebody else. */
	as(credentials: Credentials | undefined): Client {
		return new Client({
			endpoint: this.endpoint,
			projectId: this.projectId,
			fetch: this.#fetch,
			now: this.#now,
			...(credentials ? { credentials } : {}),
		});
	}

	// Calls of any path.

	/** Signs and sends; the answer as it comes, whatever its status. */
	async send(
		method: string,
		path: string,
		options: CallOptions = {},
	): Promise<Response> {
		const url = new URL(this.endpoint + path);
		for (const [name, value] of Object.entries(options.query ?? {}))
			if (value !== undefined) url.searchParams.append(name, String(value));
		// Blanks as %20: the one form that everybody between here and there reads alike.
		url.search = canonicalQuery(url.searchParams);
		const body =
			options.json === undefined ? options.body : JSON.stringify(options.json);
		const headers: Record<string, string> = { ...options.headers };
		if (options.json !== undefined)
			headers["content-type"] ??= "application/json";
		if (path.includes(`/${this.projectId}/`))
			headers["x-project-id"] ??= this.projectId;
		await this.#prove(method, url, headers, body, options.sha256);
		return this.#fetch(url, {
			method,
			headers,
			...(body === undefined ? {} : { body, duplex: "half" }),
			...(options.signal ? { signal: options.signal } : {}),
		} as RequestInit);
	}

	/** @throws ApiFailure */
	async call<T>(
		method: string,
		path: string,
		options: CallOptions = {},
	): Promise<T> {
		const answer = await this.send(method, path, options);
		if (!answer.ok) throw await readFailure(answer);
		const text = await answer.text();
		return (text === "" ? undefined : JSON.parse(text)) as T;
	}

	async #prove(
		method: string,
		url: URL,
		headers: Record<string, string>,
		body: Payload | undefined,
		sha256: string | undefined,
	): Promise<void> {
		const credentials = this.#credentials;
		const declared =
			sha256 ??
			(body === undefined || typeof body === "string" || isBytes(body)
				? undefined
				: UNSIGNED_PAYLOAD);
		if (declared !== undefined) headers["x-sdk-content-sha256"] = declared;
		if (credentials === undefined) return;
		if ("token" in credentials) {
			headers["x-auth-token"] = credentials.token;
			return;
		}
		const bytes =
			typeof body === "string"
				? utf8.encode(body)
				: isBytes(body)
					? body
					: utf8.encode("");
		const payloadHash = declared ?? (await sha256Hex(bytes));
		if (body !== undefined) headers["x-sdk-content-sha256"] = payloadHash;
		Object.assign(
			headers,
			await signRequest(
				{
					method,
					url,
					// fetch sets this one itself, to the same.
					headers: { ...headers, host: url.host },
					payloadHash,
					date: this.#now(),
				},
				credentials,
			),
		);
	}

	#v5(rest: string): string {
		return `/v5/iot/${this.projectId}/${rest}`;
	}

	#otaru(rest: string): string {
		return `/otaru/v1/projects/${this.projectId}/${rest}`;
	}

	// Resource spaces.

	createResourceSpace(json: Static<typeof createApp>): Promise<App> {
		return this.call("POST", this.#v5("apps"), { json });
	}
	listResourceSpaces(
		query?: QueryOf<typeof listAppsQuery>,
	): Promise<Static<typeof appList>> {
		return this.call("GET", this.#v5("apps"), { query });
	}
	getResourceSpace(appId: string): Promise<App> {
		return this.call("GET", this.#v5(`apps/${encodeText(appId)}`));
	}
	updateResourceSpace(
		appId: string,
		json: Static<typeof updateApp>,
	): Promise<App> {
		return this.call("PUT", this.#v5(`apps/${encodeText(appId)}`), { json });
	}
	deleteResourceSpace(appId: string): Promise<void> {
		return this.call("DELETE", this.#v5(`apps/${encodeText(appId)}`));
	}

	// Products.

	createProduct(json: Static<typeof createProduct>): Promise<Product> {
		return this.call("POST", this.#v5("products"), { json });
	}
	listProducts(
		query?: QueryOf<typeof listProductsQuery>,
	): Promise<Static<typeof productList>> {
		return this.call("GET", this.#v5("products"), { query });
	}
	getProduct(
		productId: string,
		query?: QueryOf<typeof productQuery>,
	): Promise<Product> {
		return this.call("GET", this.#v5(`products/${encodeText(productId)}`), {
			query,
		});
	}
	updateProduct(
		productId: string,
		json: Static<typeof updateProduct>,
	): Promise<Product> {
		return this.call("PUT", this.#v5(`products/${encodeText(productId)}`), {
			json,
		});
	}
	deleteProduct(
		productId: string,
		query?: QueryOf<typeof productQuery>,
	): Promise<void> {
		return this.call("DELETE", this.#v5(`products/${encodeText(productId)}`), {
			query,
		});
	}
	getProductOtaProfile(
		productId: string,
		query?: QueryOf<typeof productQuery>,
	): Promise<ProductOtaProfile> {
		const path = this.#otaru(`products/${encodeText(productId)}/ota-profile`);
		return this.call("GET", path, { query });
	}
	updateProductOtaProfile(
		productId: string,
		json: Static<typeof updateProductOtaProfile>,
		query?: QueryOf<typeof productQuery>,
	): Promise<ProductOtaProfile> {
		const path = this.#otaru(`products/${encodeText(productId)}/ota-profile`);
		return this.call("PUT", path, { json, query });
	}

	// OTA modules.

	createOtaModule(json: Static<typeof createOtaModule>): Promise<OtaModule> {
		return this.call("POST", this.#v5("ota-upgrades/modules"), { json });
	}
	listOtaModules(
		query: QueryOf<typeof listOtaModulesQuery>,
	): Promise<Static<typeof otaModuleList>> {
		return this.call("GET", this.#v5("ota-upgrades/modules"), { query });
	}
	getOtaModule(moduleId: string): Promise<OtaModule> {
		return this.call(
			"GET",
			this.#v5(`ota-upgrades/modules/${encodeText(moduleId)}`),
		);
	}
	updateOtaModule(
		moduleId: string,
		json: Static<typeof updateOtaModule>,
	): Promise<OtaModule> {
		return this.call(
			"PUT",
			this.#v5(`ota-upgrades/modules/${encodeText(moduleId)}`),
			{ json },
		);
	}
	deleteOtaModule(moduleId: string): Promise<void> {
		return this.call(
			"DELETE",
			this.#v5(`ota-upgrades/modules/${encodeText(moduleId)}`),
		);
	}

	// Upgrade packages and their files.

	createPackage(json: Static<typeof createPackage>): Promise<OtaPackage> {
		return this.call("POST", this.#v5("ota-upgrades/packages"), { json });
	}
	listPackages(
		query: QueryOf<typeof listPackagesQuery>,
	): Promise<Static<typeof packageList>> {
		return this.call("GET", this.#v5("ota-upgrades/packages"), { query });
	}
	getPackage(packageId: string): Promise<OtaPackage> {
		return this.call(
			"GET",
			this.#v5(`ota-upgrades/packages/${encodeText(packageId)}`),
		);
	}
	deletePackage(packageId: string): Promise<void> {
		return this.call(
			"DELETE",
			this.#v5(`ota-upgrades/packages/${encodeText(packageId)}`),
		);
	}

	/**
	 * @param body a Blob or stream is sent while it is read.
	 * @param options.sha256 hex: signed, and compared by the server before the object appears.
	 */
	putObject(
		bucketName: string,
		objectKey: string,
		body: Payload,
		options: {
			sha256?: string;
			contentType?: string;
			signal?: AbortSignal;
		} = {},
	): Promise<StoredObject> {
		return this.call("PUT", this.#objectPath(bucketName, objectKey), {
			body,
			headers: {
				"content-type": options.contentType ?? "application/octet-stream",
			},
			...(options.sha256 === undefined ? {} : { sha256: options.sha256 }),
			...(options.signal ? { signal: options.signal } : {}),
		});
	}
	/** @param range such as `bytes=0-99`. */
	async getObject(
		bucketName: string,
		objectKey: string,
		range?: string,
	): Promise<Response> {
		const answer = await this.send(
			"GET",
			this.#objectPath(bucketName, objectKey),
			range === undefined ? {} : { headers: { range } },
		);
		if (!answer.ok) throw await readFailure(answer);
		return answer;
	}
	/** The answer has headers only. */
	async headObject(bucketName: string, objectKey: string): Promise<Response> {
		const answer = await this.send(
			"HEAD",
			this.#objectPath(bucketName, objectKey),
		);
		if (!answer.ok) throw await readFailure(answer);
		return answer;
	}
	deleteObject(bucketName: string, objectKey: string): Promise<void> {
		return this.call("DELETE", this.#objectPath(bucketName, objectKey));
	}
	listObjects(
		bucketName: string,
		query?: QueryOf<typeof listObjectsQuery>,
	): Promise<Static<typeof objectList>> {
		return this.call("GET", this.#otaru(`objects/${encodeText(bucketName)}`), {
			query,
		});
	}
	#objectPath(bucketName: string, objectKey: string): string {
		const key = objectKey.split("/").map(encodeText).join("/");
		return this.#otaru(`objects/${encodeText(bucketName)}/${key}`);
	}

	// Devices.

	createDevice(json: Static<typeof createDevice>): Promise<Device> {
		return this.call("POST", this.#v5("devices"), { json });
	}
	listDevices(
		query?: QueryOf<typeof listDevicesQuery>,
	): Promise<Static<typeof deviceList>> {
		return this.call("GET", this.#v5("devices"), { query });
	}
	getDevice(deviceId: string): Promise<Device> {
		return this.call("GET", this.#v5(`devices/${encodeText(deviceId)}`));
	}
	updateDevice(
		deviceId: string,
		json: Static<typeof updateDevice>,
	): Promise<Device> {
		return this.call("PUT", this.#v5(`devices/${encodeText(deviceId)}`), {
			json,
		});
	}
	deleteDevice(deviceId: string): Promise<void> {
		return this.call("DELETE", this.#v5(`devices/${encodeText(deviceId)}`));
	}
	resetDeviceSecret(
		deviceId: string,
		json: Static<typeof resetSecret> = {},
	): Promise<Static<typeof resetSecretAnswer>> {
		return this.call(
			"POST",
			this.#v5(`devices/${encodeText(deviceId)}/action`),
			{ query: { action_id: "resetSecret" }, json },
		);
	}
	freezeDevice(deviceId: string): Promise<void> {
		return this.call(
			"POST",
			this.#v5(`devices/${encodeText(deviceId)}/freeze`),
		);
	}
	unfreezeDevice(deviceId: string): Promise<void> {
		return this.call(
			"POST",
			this.#v5(`devices/${encodeText(deviceId)}/unfreeze`),
		);
	}
	/** The timeline, newest first. */
	listDeviceEvents(
		deviceId: string,
		query?: QueryOf<typeof listDeviceEventsQuery>,
	): Promise<Static<typeof deviceEventList>> {
		return this.call(
			"GET",
			this.#otaru(`devices/${encodeText(deviceId)}/events`),
			{ query },
		);
	}
	getDeviceOtaProfile(deviceId: string): Promise<DeviceOtaProfile> {
		return this.call(
			"GET",
			this.#otaru(`devices/${encodeText(deviceId)}/ota-profile`),
		);
	}
	updateDeviceOtaProfile(
		deviceId: string,
		json: Static<typeof updateDeviceOtaProfile>,
	): Promise<DeviceOtaProfile> {
		return this.call(
			"PUT",
			this.#otaru(`devices/${encodeText(deviceId)}/ota-profile`),
			{ json },
		);
	}

	// Device groups and tags.

	createDeviceGroup(json: Static<typeof createGroup>): Promise<Group> {
		return this.call("POST", this.#v5("device-group"), { json });
	}
	listDeviceGroups(
		query?: QueryOf<typeof listGroupsQuery>,
	): Promise<Static<typeof groupList>> {
		return this.call("GET", this.#v5("device-group"), { query });
	}
	getDeviceGroup(groupId: string): Promise<Group> {
		return this.call("GET", this.#v5(`device-group/${encodeText(groupId)}`));
	}
	updateDeviceGroup(
		groupId: string,
		json: Static<typeof updateGroup>,
	): Promise<Group> {
		return this.call("PUT", this.#v5(`device-group/${encodeText(groupId)}`), {
			json,
		});
	}
	deleteDeviceGroup(groupId: string): Promise<void> {
		return this.call("DELETE", this.#v5(`device-group/${encodeText(groupId)}`));
	}
	changeDeviceGroup(
		groupId: string,
		query: QueryOf<typeof groupActionQuery>,
	): Promise<void> {
		return this.call(
			"POST",
			this.#v5(`device-group/${encodeText(groupId)}/action`),
			{ query },
		);
	}
	listGroupDevices(
		groupId: string,
		query?: QueryOf<typeof groupDevicesQuery>,
	): Promise<Static<typeof groupDevices>> {
		return this.call(
			"GET",
			this.#v5(`device-group/${encodeText(groupId)}/devices`),
			{ query },
		);
	}
	listGroupsOfDevice(deviceId: string): Promise<Static<typeof groupsOfDevice>> {
		return this.call(
			"POST",
			this.#v5(`devices/${encodeText(deviceId)}/list-device-group`),
		);
	}
	bindTags(json: Static<typeof bindTags>): Promise<void> {
		return this.call("POST", this.#v5("tags/bind-resource"), { json });
	}
	unbindTags(json: Static<typeof unbindTags>): Promise<void> {
		return this.call("POST", this.#v5("tags/unbind-resource"), { json });
	}
	queryTagged(
		json: Static<typeof queryTagged>,
		query?: QueryOf<typeof queryTaggedPage>,
	): Promise<Static<typeof taggedResources>> {
		return this.call("POST", this.#v5("tags/query-resources"), { json, query });
	}

	// Many devices at once.

	/**
	 * @param body a Blob or stream is sent while it is read.
	 * @param options.appId the resource space of lines that name none.
	 * @param options.sha256 hex: signed, and compared by the server before it takes the file.
	 */
	importDevices(
		body: Payload,
		options: {
			format: ImportFormat;
			appId?: string | undefined;
			sha256?: string;
			signal?: AbortSignal;
		},
	): Promise<DeviceImport> {
		const { format, appId, sha256, signal } = options;
		return this.call("POST", this.#otaru("devices:import"), {
			query: { format, app_id: appId },
			body,
			headers: {
				"content-type": format === "csv" ? "text/csv" : "application/x-ndjson",
			},
			...(sha256 === undefined ? {} : { sha256 }),
			...(signal ? { signal } : {}),
		});
	}
	listDeviceImports(
		query?: QueryOf<typeof listDeviceImportsQuery>,
	): Promise<Static<typeof deviceImportList>> {
		return this.call("GET", this.#otaru("device-imports"), { query });
	}
	getDeviceImport(importId: string): Promise<DeviceImport> {
		return this.call("GET", this.#deviceImport(importId));
	}
	/** One that still runs ends; what it has registered stays. */
	deleteDeviceImport(importId: string): Promise<void> {
		return this.call("DELETE", this.#deviceImport(importId));
	}
	/** The list as a file. Without a format in that of the imported one. */
	getImportRefusals(
		importId: string,
		query?: QueryOf<typeof importRefusalsQuery>,
	): Promise<Response> {
		return this.#download(`${this.#deviceImport(importId)}/refusals`, query);
	}
	/** All devices as a file that `importDevices` takes. */
	exportDevices(query?: QueryOf<typeof exportDevicesQuery>): Promise<Response> {
		return this.#download(this.#otaru("devices:export"), query);
	}
	#deviceImport(importId: string): string {
		return this.#otaru(`device-imports/${encodeText(importId)}`);
	}
	async #download(path: string, query: Query | undefined): Promise<Response> {
		const answer = await this.send("GET", path, { query });
		if (!answer.ok) throw await readFailure(answer);
		return answer;
	}

	// Upgrade tasks; the wire calls them batch tasks.

	createTask(json: CreateTask): Promise<Task> {
		return this.call("POST", this.#v5("batchtasks"), { json });
	}
	listTasks(
		query: QueryOf<typeof listTasksQuery>,
	): Promise<Static<typeof taskList>> {
		return this.call("GET", this.#v5("batchtasks"), { query });
	}
	getTask(
		taskId: string,
		query?: QueryOf<typeof showTaskQuery>,
	): Promise<TaskWithDetails> {
		return this.call("GET", this.#v5(`batchtasks/${encodeText(taskId)}`), {
			query,
		});
	}
	/** Without targets the whole task. */
	stopTask(
		taskId: string,
		json: Static<typeof someTargets> = {},
	): Promise<Static<typeof targetResults>> {
		return this.call(
			"POST",
			this.#v5(`batchtasks/${encodeText(taskId)}/stop`),
			{ json },
		);
	}
	/** What failed, waits for another attempt or was stopped. Without targets the whole task. */
	retryTask(
		taskId: string,
		json: Static<typeof someTargets> = {},
	): Promise<Static<typeof targetResults>> {
		return this.call(
			"POST",
			this.#v5(`batchtasks/${encodeText(taskId)}/retry`),
			{ json },
		);
	}
	/** What waits to be confirmed. Without targets the whole task. */
	confirmTask(
		taskId: string,
		json: Static<typeof someTargets> = {},
	): Promise<Static<typeof targetResults>> {
		return this.call(
			"POST",
			this.#v5(`batchtasks/${encodeText(taskId)}/confirm`),
			{ json },
		);
	}
	/** Why a device has not got, or did not get, the package of a task. */
	explainTarget(taskId: string, deviceId: string): Promise<Why> {
		return this.call(
			"GET",
			this.#otaru(
				`batchtasks/${encodeText(taskId)}/targets/${encodeText(deviceId)}/why`,
			),
		);
	}
	deleteTask(taskId: string): Promise<void> {
		return this.call("DELETE", this.#v5(`batchtasks/${encodeText(taskId)}`));
	}

	/**
	 * What happens to tasks and to devices in them, as it happens, until the server ends
	 * the stream, which it does within a quarter of an hour: call again with the id that
	 * came last. `onId` is told every id, also those that come without an event.
	 *
	 * @throws ApiFailure; `StreamSilence` when not even a sign of life comes any more
	 */
	async *watch(
		query: QueryOf<typeof watchQuery> = {},
		options: {
			signal?: AbortSignal;
			onId?: (id: string) => void;
			silenceMs?: number;
		} = {},
	): AsyncGenerator<WatchEvent> {
		const silence = new AbortController();
		const { signal, onId, silenceMs = SILENCE_MS } = options;
		const heard = () => {
			clearTimeout(timer);
			timer = setTimeout(() => silence.abort(new StreamSilence()), silenceMs);
		};
		let timer: ReturnType<typeof setTimeout> | undefined;
		heard();
		try {
			const answer = await this.send("GET", this.#otaru("events"), {
				query,
				headers: { accept: "text/event-stream" },
				signal: signal
					? AbortSignal.any([signal, silence.signal])
					: silence.signal,
			});
			if (!answer.ok) throw await readFailure(answer);
			if (!answer.body) return;
			for await (const { lastEventId, ...received } of readEventStream(
				answer.body,
			)) {
				heard();
				if (lastEventId !== "") onId?.(lastEventId);
				if (received.event === undefined) continue;
				yield {
					type: received.event,
					id: lastEventId || undefined,
					data: JSON.parse(received.data),
				} as WatchEvent;
			}
		} finally {
			clearTimeout(timer);
		}
	}

	// The audit trail.

	/** Newest first. A page that is not full may have a marker all the same: go on from it. */
	listAudit(
		query?: QueryOf<typeof listAuditQuery>,
	): Promise<Static<typeof auditList>> {
		return this.call("GET", "/otaru/v1/audit", { query });
	}
	/** Lines of JSON, oldest first: `ExportedAuditRow`. */
	exportAudit(query?: QueryOf<typeof exportAuditQuery>): Promise<Response> {
		return this.#download("/otaru/v1/audit/export", query);
	}
	/** @param expect a head noted earlier, which must still be part of the chain. */
	verifyAudit(expect?: AuditLink): Promise<AuditVerification> {
		return this.call("POST", "/otaru/v1/audit/verify", { json: { expect } });
	}

	// Users, access keys and user groups.

	createUser(json: CreateUser): Promise<UserWithPassword> {
		return this.call("POST", managed("users"), { json });
	}
	listUsers(
		query?: QueryOf<typeof listUsersQuery>,
	): Promise<Static<typeof userList>> {
		return this.call("GET", managed("users"), { query });
	}
	getUser(userId: string): Promise<User> {
		return this.call("GET", managed("users", userId));
	}
	updateUser(userId: string, json: UpdateUser): Promise<UserWithPassword> {
		return this.call("PUT", managed("users", userId), { json });
	}
	deleteUser(userId: string): Promise<void> {
		return this.call("DELETE", managed("users", userId));
	}
	listGroupsOfUser(
		userId: string,
		query?: QueryOf<typeof pagesQuery>,
	): Promise<Static<typeof userGroupList>> {
		return this.call("GET", managed("users", userId, "groups"), { query });
	}
	createAccessKey(
		userId: string,
		json: Static<typeof createAccessKey> = {},
	): Promise<NewAccessKey> {
		return this.call("POST", managed("users", userId, "access-keys"), { json });
	}
	listAccessKeys(userId: string): Promise<Static<typeof accessKeyList>> {
		return this.call("GET", managed("users", userId, "access-keys"));
	}
	updateAccessKey(
		userId: string,
		accessKey: string,
		json: Static<typeof updateAccessKey>,
	): Promise<AccessKeyItem> {
		return this.call(
			"PUT",
			managed("users", userId, "access-keys", accessKey),
			{
				json,
			},
		);
	}
	deleteAccessKey(userId: string, accessKey: string): Promise<void> {
		return this.call(
			"DELETE",
			managed("users", userId, "access-keys", accessKey),
		);
	}
	createUserGroup(json: Static<typeof createUserGroup>): Promise<UserGroup> {
		return this.call("POST", managed("groups"), { json });
	}
	listUserGroups(
		query?: QueryOf<typeof listUserGroupsQuery>,
	): Promise<Static<typeof userGroupList>> {
		return this.call("GET", managed("groups"), { query });
	}
	getUserGroup(groupId: string): Promise<UserGroup> {
		return this.call("GET", managed("groups", groupId));
	}
	updateUserGroup(
		groupId: string,
		json: Static<typeof updateUserGroup>,
	): Promise<UserGroup> {
		return this.call("PUT", managed("groups", groupId), { json });
	}
	deleteUserGroup(groupId: string): Promise<void> {
		return this.call("DELETE", managed("groups", groupId));
	}
	listUsersOfGroup(
		groupId: string,
		query?: QueryOf<typeof pagesQuery>,
	): Promise<Static<typeof userList>> {
		return this.call("GET", managed("groups", groupId, "users"), { query });
	}
	addUserToGroup(groupId: string, userId: string): Promise<void> {
		return this.call("PUT", managed("groups", groupId, "users", userId));
	}
	removeUserFromGroup(groupId: string, userId: string): Promise<void> {
		return this.call("DELETE", managed("groups", groupId, "users", userId));
	}

	// Policies and grants.

	createPolicy(json: Static<typeof createPolicy>): Promise<Policy> {
		return this.call("POST", managed("policies"), { json });
	}
	listPolicies(
		query?: QueryOf<typeof listPoliciesQuery>,
	): Promise<Static<typeof policyList>> {
		return this.call("GET", managed("policies"), { query });
	}
	getPolicy(policyId: string): Promise<Policy> {
		return this.call("GET", managed("policies", policyId));
	}
	updatePolicy(
		policyId: string,
		json: Static<typeof updatePolicy>,
	): Promise<Policy> {
		return this.call("PUT", managed("policies", policyId), { json });
	}
	deletePolicy(policyId: string): Promise<void> {
		return this.call("DELETE", managed("policies", policyId));
	}
	createGrant(json: CreateGrant): Promise<Grant> {
		return this.call("POST", managed("grants"), { json });
	}
	listGrants(
		query?: QueryOf<typeof listGrantsQuery>,
	): Promise<Static<typeof grantList>> {
		return this.call("GET", managed("grants"), { query });
	}
	getGrant(grantId: string): Promise<Grant> {
		return this.call("GET", managed("grants", grantId));
	}
	deleteGrant(grantId: string): Promise<void> {
		return this.call("DELETE", managed("grants", grantId));
	}

	/** Would a user be allowed to? */
	simulateAccess(json: SimulateAccess): Promise<AccessSimulation> {
		return this.call("POST", managed("simulate"), { json });
	}

	// Projects and enterprise projects, and what policies see of a resource space.

	createProject(json: Static<typeof createProject>): Promise<ManagedProject> {
		return this.call("POST", managed("projects"), { json });
	}
	listManagedProjects(): Promise<Static<typeof managedProjectList>> {
		return this.call("GET", managed("projects"));
	}
	getManagedProject(projectId: string): Promise<ManagedProject> {
		return this.call("GET", managed("projects", projectId));
	}
	renameProject(
		projectId: string,
		json: Static<typeof createProject>,
	): Promise<ManagedProject> {
		return this.call("PUT", managed("projects", projectId), { json });
	}
	deleteProject(projectId: string): Promise<void> {
		return this.call("DELETE", managed("projects", projectId));
	}
	createEnterpriseProject(
		json: Static<typeof createEnterpriseProject>,
	): Promise<EnterpriseProject> {
		return this.call("POST", managed("enterprise-projects"), { json });
	}
	listEnterpriseProjects(
		query?: QueryOf<typeof pagesQuery>,
	): Promise<Static<typeof enterpriseProjectList>> {
		return this.call("GET", managed("enterprise-projects"), { query });
	}
	getEnterpriseProject(
		enterpriseProjectId: string,
	): Promise<EnterpriseProject> {
		return this.call(
			"GET",
			managed("enterprise-projects", enterpriseProjectId),
		);
	}
	updateEnterpriseProject(
		enterpriseProjectId: string,
		json: Static<typeof updateEnterpriseProject>,
	): Promise<EnterpriseProject> {
		return this.call(
			"PUT",
			managed("enterprise-projects", enterpriseProjectId),
			{ json },
		);
	}
	deleteEnterpriseProject(enterpriseProjectId: string): Promise<void> {
		return this.call(
			"DELETE",
			managed("enterprise-projects", enterpriseProjectId),
		);
	}
	getSpaceAccess(appId: string): Promise<SpaceAccess> {
		return this.call("GET", this.#otaru(`apps/${encodeText(appId)}/access`));
	}
	setSpaceAccess(
		appId: string,
		json: Static<typeof setSpaceAccess>,
	): Promise<SpaceAccess> {
		return this.call("PUT", this.#otaru(`apps/${encodeText(appId)}/access`), {
			json,
		});
	}

	// Oneself.

	getMe(): Promise<Me> {
		return this.call("GET", managed("me"));
	}
	/** Ends all tokens of the caller, also this client's. */
	changeOwnPassword(json: Static<typeof changeOwnPassword>): Promise<void> {
		return this.call("PUT", managed("me", "password"), { json });
	}
	listOwnAccessKeys(): Promise<Static<typeof accessKeyList>> {
		return this.call("GET", managed("me", "access-keys"));
	}
	createOwnAccessKey(
		json: Static<typeof createAccessKey> = {},
	): Promise<NewAccessKey> {
		return this.call("POST", managed("me", "access-keys"), { json });
	}
	updateOwnAccessKey(
		accessKey: string,
		json: Static<typeof updateAccessKey>,
	): Promise<AccessKeyItem> {
		return this.call("PUT", managed("me", "access-keys", accessKey), { json });
	}
	deleteOwnAccessKey(accessKey: string): Promise<void> {
		return this.call("DELETE", managed("me", "access-keys", accessKey));
	}

	// Accounts, projects and tokens.

	listProjects(
		query?: QueryOf<typeof listProjectsQuery>,
	): Promise<ProjectList> {
		return this.call("GET", "/v3/projects", { query });
	}
	listRegions(): Promise<RegionList> {
		return this.call("GET", "/v3/regions");
	}
	listDomains(): Promise<DomainList> {
		return this.call("GET", "/v3/auth/domains");
	}
	/** Begins to encrypt every stored secret under a new master key. */
	rotateMasterKey(): Promise<MasterKeyStatus> {
		return this.call("POST", "/otaru/v1/access/master-key/rotate");
	}
	getMasterKeyStatus(): Promise<MasterKeyStatus> {
		return this.call("GET", "/otaru/v1/access/master-key/rotate");
	}

	getCallerIdentity(): Promise<CallerIdentity> {
		return this.call("GET", "/v5/caller-identity");
	}
	/** Whose token it is and how long it lasts. */
	describeToken(token: string): Promise<Token> {
		return this.call("GET", "/v3/auth/tokens", {
			headers: { "x-subject-token": token },
		});
	}
	/** @returns a token for this client's project, to be used with `as`. */
	async signIn(user: {
		domainName: string;
		userName: string;
		password: string;
	}): Promise<{ token: string; expiresAt: Date }> {
		const json: CreateToken = {
			auth: {
				identity: {
					methods: ["password"],
					password: {
						user: {
							name: user.userName,
							password: user.password,
							domain: { name: user.domainName },
						},
					},
				},
				scope: { project: { id: this.projectId } },
			},
		};
		const answer = await this.as(undefined).send("POST", "/v3/auth/tokens", {
			json,
			query: { nocatalog: true },
		});
		if (!answer.ok) throw await readFailure(answer);
		const { token } = (await answer.json()) as Token;
		return {
			token: answer.headers.get("x-subject-token") ?? "",
			expiresAt: new Date(token.expires_at),
		};
	}
}

/** A path of the management of access, which belongs to no project. */
function managed(...parts: string[]): string {
	return `/otaru/v1/access/${parts.map(encodeText).join("/")}`;
}

function isBytes(body: unknown): body is Uint8Array<ArrayBuffer> {
	return body instanceof Uint8Array;
}

/** Reads the body in each of the vendor's forms; one in none of them is quoted. */
export async function readFailure(answer: Response): Promise<ApiFailure> {
	const text = await answer.text();
	const body = parseObject(text);
	const inner =
		typeof body?.error === "object" && body.error !== null
			? (body.error as Record<string, unknown>)
			: undefined;
	const code = body?.error_code ?? inner?.code ?? answer.status;
	const message =
		body?.error_msg ??
		inner?.message ??
		(text.slice(0, 500) || answer.statusText);
	return new ApiFailure(
		answer.status,
		String(code),
		body?.error_detail === undefined
			? String(message)
			: `${message} ${body.error_detail}`,
		answer.headers.get("x-request-id") ?? "",
		Number(answer.headers.get("retry-after")) || undefined,
	);
}

function parseObject(text: string): Record<string, unknown> | undefined {
	try {
		const value: unknown = JSON.parse(text);
		return typeof value === "object" && value !== null
			? (value as Record<string, unknown>)
			: undefined;
	} catch {
		return undefined;
	}
}
