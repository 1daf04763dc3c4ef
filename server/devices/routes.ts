import type { Static } from "typebox";
import {
	createDevice as createDeviceBody,
	type DeviceItem,
	type DeviceOtaProfile,
	deviceActionQuery,
	device as deviceAnswer,
	deviceList,
	deviceOtaProfile,
	deviceParams,
	listDevicesQuery,
	resetSecretAnswer,
	resetSecret as resetSecretBody,
	updateDevice as updateDeviceBody,
	updateDeviceOtaProfile,
	type Device as WireDevice,
} from "../../wire/devices.ts";
import {
	parseWireTime,
	projectParams,
	wireTime,
	wireTimeMs,
	withoutAbsent,
} from "../../wire/envelope.ts";
import { mayAlso, type Scope } from "../access/permissions.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant, optionalInstant } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";
import type { Sealed } from "../secrets/sealed.ts";
import type { ChildChange } from "./children.ts";
import { readSecrets } from "./device-credentials.ts";
import { findTags, type Tag } from "./device-tags.ts";
import { type DeviceModule, listDeviceModules } from "./device-versions.ts";
import {
	additionOf,
	createDevice,
	type Device,
	type DeviceFilter,
	deleteDevice,
	freezeDevice,
	getDevice,
	listDevices,
	type OnDeviceDeleted,
	resetSecret,
	statusChangedAt,
	statusOf,
	unfreezeDevice,
	updateDevice,
} from "./devices.ts";
import { extensionInfoText, readNewDevice } from "./new-device.ts";

const DEVICES = "/v5/iot/:project_id/devices";
const OTA_PROFILE =
	"/otaru/v1/projects/:project_id/devices/:device_id/ota-profile";

export interface DeviceRouteParts {
	db: Db;
	now: Clock;
	sealed: Sealed;
	onDeviceDeleted: OnDeviceDeleted;
	/** Ends the device's connection, to whichever process it is connected. */
	disconnectDevice: (
		deviceId: string,
		reason: "frozen" | "deleted" | "secret_changed",
	) => void;
	/** Lets a gateway know that devices behind it were registered or deleted. */
	childrenChanged: (change: ChildChange) => void;
}

export function deviceRoutes(http: Http, parts: DeviceRouteParts): void {
	const { db, now, sealed } = parts;

	const answer = async (scope: Scope, device: Device) => {
		const { device_id } = device;
		const modules = await listDeviceModules(db, device_id);
		const tags = (await findTags(db, [device_id])).get(device_id) ?? [];
		return toWire(
			device,
			modules,
			tags,
			// Whoever may give it another one could find it out anyway.
			mayAlso(scope, "iotda:devices:resetSecret", "Write", {
				appId: device.app_id,
			})
				? readSecrets(device, sealed)
				: {},
		);
	};

	http.post(
		DEVICES,
		{
			config: { action: "iotda:devices:register", level: "Write" },
			schema: {
				operationId: "AddDevice",
				summary: "Register a device",
				tags: ["Devices"],

				params: projectParams,
				body: createDeviceBody,
				response: { 201: deviceAnswer },
			},
		},
		async (request, reply) => {
			const device = await createDevice(
				db,
				request.scope,
				readNewDevice(request.body),
				sealed,
				now(),
			);
			const change = additionOf(device);
			if (change) parts.childrenChanged(change);
			return reply
				.code(201)
				.send(toWire(device, [], [], readSecrets(device, sealed)));
		},
	);

	http.get(
		DEVICES,
		{
			config: { action: "iotda:devices:queryList", level: "List" },
			schema: {
				operationId: "ListDevices",
				summary: "List devices",
				tags: ["Devices"],

				params: projectParams,
				querystring: listDevicesQuery,
				response: { 200: deviceList },
			},
		},
		async (request) => {
			const { items, page } = await listDevices(
				db,
				request.scope,
				readFilter(request.query),
				readPage(request.query),
			);
			const tags = await findTags(
				db,
				items.map((device) => device.device_id),
			);
			return {
				devices: items.map((device) =>
					toItem(device, tags.get(device.device_id) ?? []),
				),
				page,
			};
		},
	);

	http.get(
		`${DEVICES}/:device_id`,
		{
			config: { action: "iotda:devices:query", level: "Read" },
			schema: {
				operationId: "ShowDevice",
				summary: "Show a device",
				tags: ["Devices"],
				params: deviceParams,
				response: { 200: deviceAnswer },
			},
		},
		async (request) =>
			answer(
				request.scope,
				await getDevice(db, request.scope, request.params.device_id),
			),
	);

	http.put(
		`${DEVICES}/:device_id`,
		{
			config: { action: "iotda:devices:modify", level: "Write" },
			schema: {
				operationId: "UpdateDevice",
				summary: "Update a device",
				tags: ["Devices"],

				params: deviceParams,
				body: updateDeviceBody,
				response: { 200: deviceAnswer },
			},
		},
		async (request) => {
			const { device_name, description, extension_info, auth_info } =
				request.body;
			const device = await updateDevice(
				db,
				request.scope,
				request.params.device_id,
				{
					...(device_name !== undefined && { deviceName: device_name || null }),
					...(description !== undefined && {
						description: description || null,
					}),
					...withoutAbsent({
						extensionInfo: extension_info && extensionInfoText(extension_info),
						secureAccess: auth_info?.secure_access,
						timeoutSeconds: auth_info?.timeout,
					}),
				},
			);
			return answer(request.scope, device);
		},
	);

	http.delete(
		`${DEVICES}/:device_id`,
		{
			config: { action: "iotda:devices:delete", level: "Write" },
			schema: {
				operationId: "DeleteDevice",
				summary: "Delete a device",
				tags: ["Devices"],
				params: deviceParams,
			},
		},
		async (request, reply) => {
			const { device_id } = request.params;
			const change = await deleteDevice(
				db,
				request.scope,
				device_id,
				parts.onDeviceDeleted,
				now(),
			);
			parts.disconnectDevice(device_id, "deleted");
			if (change) parts.childrenChanged(change);
			return reply.code(204).send();
		},
	);

	http.post(
		`${DEVICES}/:device_id/action`,
		{
			config: { action: "iotda:devices:resetSecret", level: "Write" },
			schema: {
				operationId: "ResetDeviceSecret",
				summary: "Give a device a new secret",
				tags: ["Devices"],

				params: deviceParams,
				querystring: deviceActionQuery,
				body: resetSecretBody,
				response: { 200: resetSecretAnswer },
			},
		},
		async (request) => {
			const { device_id } = request.params;
			const { body } = request;
			const secretType = body.secret_type ?? "PRIMARY";
			const secret = await resetSecret(
				db,
				request.scope,
				device_id,
				{ secret: body.secret, secretType },
				sealed,
			);
			if (body.force_disconnect)
				parts.disconnectDevice(device_id, "secret_changed");
			return { device_id, secret, secret_type: secretType };
		},
	);

	http.post(
		`${DEVICES}/:device_id/freeze`,
		{
			config: { action: "iotda:devices:freeze", level: "Write" },
			schema: {
				operationId: "FreezeDevice",
				summary: "Freeze a device",
				tags: ["Devices"],
				params: deviceParams,
			},
		},
		async (request, reply) => {
			const { device_id } = request.params;
			await freezeDevice(db, request.scope, device_id);
			parts.disconnectDevice(device_id, "frozen");
			return reply.code(204).send();
		},
	);

	http.post(
		`${DEVICES}/:device_id/unfreeze`,
		{
			config: { action: "iotda:devices:unfreeze", level: "Write" },
			schema: {
				operationId: "UnfreezeDevice",
				summary: "Unfreeze a device",
				tags: ["Devices"],
				params: deviceParams,
			},
		},
		async (request, reply) => {
			await unfreezeDevice(db, request.scope, request.params.device_id);
			return reply.code(204).send();
		},
	);

	http.get(
		OTA_PROFILE,
		{
			config: { action: "iotda:devices:query", level: "Read" },
			schema: {
				operationId: "ShowDeviceOtaProfile",
				summary: "Show how a device takes module upgrades",
				tags: ["Devices"],
				params: deviceParams,
				response: { 200: deviceOtaProfile },
			},
		},
		async (request) =>
			profileOf(await getDevice(db, request.scope, request.params.device_id)),
	);

	http.put(
		OTA_PROFILE,
		{
			config: { action: "iotda:devices:modify", level: "Write" },
			schema: {
				operationId: "UpdateDeviceOtaProfile",
				summary: "Change how a device takes module upgrades",
				tags: ["Devices"],

				params: deviceParams,
				body: updateDeviceOtaProfile,
				response: { 200: deviceOtaProfile },
			},
		},
		async (request) => {
			const device = await updateDevice(
				db,
				request.scope,
				request.params.device_id,
				{ moduleForm: request.body.module_form },
			);
			return profileOf(device);
		},
	);
}

function readFilter(query: Static<typeof listDevicesQuery>): DeviceFilter {
	const from = readTime("start_time", query.start_time);
	const until = readTime("end_time", query.end_time);
	if (from && until && from >= until)
		throw new ApiError(errors.startNotBeforeEnd, {
			detail: "start_time must be earlier than end_time.",
		});
	return {
		spaceId: query.app_id,
		productId: query.product_id,
		gatewayId: query.gateway_id,
		cascade: query.is_cascade_query === "true",
		nodeId: query.node_id,
		deviceName: query.device_name,
		from,
		until,
	};
}

function readTime(field: string, text: string | undefined): Date | undefined {
	if (text === undefined) return undefined;
	const time = parseWireTime(text);
	if (!time)
		throw new ApiError(errors.invalidTime, {
			detail: `${field} must be a time such as 20230211T121212Z.`,
		});
	return time;
}

function toItem(device: Device, tags: readonly Tag[]): DeviceItem {
	return withoutAbsent({
		app_id: device.app_id,
		app_name: device.app_name,
		device_id: device.device_id,
		node_id: device.node_id,
		gateway_id: device.gateway_id ?? device.device_id,
		device_name: device.device_name,
		node_type: device.gateway_id === null ? "GATEWAY" : "ENDPOINT",
		description: device.description,
		fw_version: device.fw_version,
		sw_version: device.sw_version,
		device_sdk_version: device.device_sdk_version,
		product_id: device.product_id,
		product_name: device.product_name,
		status: statusOf(device),
		tags: tags.map(({ key, value }) => ({ tag_key: key, tag_value: value })),
	});
}

function toWire(
	device: Device,
	modules: readonly DeviceModule[],
	tags: readonly Tag[],
	{ primary, secondary }: Partial<ReturnType<typeof readSecrets>>,
): WireDevice {
	const changedAt = optionalInstant(statusChangedAt(device));
	const activeAt = optionalInstant(device.active_at);
	return {
		...toItem(device, tags),
		modules: modules.map(({ moduleName, moduleVersion }) => ({
			module_name: moduleName,
			module_version: moduleVersion,
		})),
		auth_info: withoutAbsent({
			auth_type: device.auth_type,
			secret: primary,
			secondary_secret: secondary,
			fingerprint: device.fingerprint,
			secondary_fingerprint: device.secondary_fingerprint,
			secure_access: device.secure_access === 1,
			timeout: device.timeout_seconds,
		}),
		create_time: wireTime(fromInstant(device.created_at)),
		...withoutAbsent({
			connection_status_update_time: changedAt && wireTimeMs(changedAt),
			active_time: activeAt && wireTimeMs(activeAt),
			extension_info:
				device.extension_info === null
					? undefined
					: (JSON.parse(device.extension_info) as Record<string, unknown>),
		}),
	};
}

function profileOf(device: Device): DeviceOtaProfile {
	return {
		module_form: device.module_form,
		speaks_modules: device.speaks_modules === 1,
	};
}
