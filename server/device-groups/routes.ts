import { Type } from "typebox";
import {
	createGroup as createGroupBody,
	type GroupItem,
	groupActionQuery,
	group as groupAnswer,
	groupDevices,
	groupDevicesQuery,
	groupList,
	groupParams,
	groupsOfDevice,
	listGroupsQuery,
	updateGroup as updateGroupBody,
	type Group as WireGroup,
} from "../../wire/device-groups.ts";
import { deviceParams } from "../../wire/devices.ts";
import {
	parseWireTime,
	projectParams,
	withoutAbsent,
} from "../../wire/envelope.ts";
import type { Http } from "../access/route.ts";
import type { GroupLimits } from "../config.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { SlowCounts } from "../devices/device-windows.ts";
import { ApiError, errors } from "../errors.ts";
import {
	createDeviceGroup,
	type DeviceGroup,
	deleteDeviceGroup,
	getDeviceGroup,
	listDeviceGroups,
	updateDeviceGroup,
} from "./device-groups.ts";
import {
	addDeviceToGroup,
	listGroupDevices,
	listGroupsOfDevice,
	removeDeviceFromGroup,
} from "./group-members.ts";

const GROUPS = "/v5/iot/:project_id/device-group";
const GROUP = `${GROUPS}/:group_id`;

export function deviceGroupRoutes(
	http: Http,
	{ db, now, groupLimits }: { db: Db; now: Clock; groupLimits: GroupLimits },
): void {
	const counts = new SlowCounts();

	http.post(
		GROUPS,
		{
			config: { action: "iotda:group:create", level: "Write" },
			schema: {
				operationId: "AddDeviceGroup",
				summary: "Create a device group",
				tags: ["Device groups"],

				params: projectParams,
				body: createGroupBody,
				response: { 201: groupAnswer },
			},
		},
		async (request, reply) => {
			const { body } = request;
			const group = await createDeviceGroup(
				db,
				request.scope,
				groupLimits,
				{
					spaceId: body.app_id,
					name: body.name,
					description: body.description || null,
					type: body.group_type ?? "STATIC",
					superGroupId: body.super_group_id,
					rule: body.dynamic_group_rule || undefined,
				},
				now(),
			);
			return reply.code(201).send(toWire(group));
		},
	);

	http.get(
		GROUPS,
		{
			config: { action: "iotda:group:queryList", level: "List" },
			schema: {
				operationId: "ListDeviceGroups",
				summary: "List device groups",
				tags: ["Device groups"],

				params: projectParams,
				querystring: listGroupsQuery,
				response: { 200: groupList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listDeviceGroups(
				db,
				request.scope,
				{
					spaceId: query.app_id,
					name: query.name,
					type: query.group_type,
					changedAfter: readTime(query.last_modified_time),
				},
				readPage(query),
			);
			return { device_groups: items.map(toItem), page };
		},
	);

	http.get(
		GROUP,
		{
			config: { action: "iotda:group:query", level: "Read" },
			schema: {
				operationId: "ShowDeviceGroup",
				summary: "Show a device group",
				tags: ["Device groups"],
				params: groupParams,
				response: { 200: groupAnswer },
			},
		},
		async (request) =>
			toWire(await getDeviceGroup(db, request.scope, request.params.group_id)),
	);

	http.put(
		GROUP,
		{
			config: { action: "iotda:group:modify", level: "Write" },
			schema: {
				operationId: "UpdateDeviceGroup",
				summary: "Update a device group",
				tags: ["Device groups"],

				params: groupParams,
				body: updateGroupBody,
				response: { 200: groupAnswer },
			},
		},
		async (request) => {
			const { name, description } = request.body;
			const group = await updateDeviceGroup(
				db,
				request.scope,
				request.params.group_id,
				{
					...withoutAbsent({ name }),
					...(description !== undefined && {
						description: description || null,
					}),
				},
				now(),
			);
			return toWire(group);
		},
	);

	http.delete(
		GROUP,
		{
			config: { action: "iotda:group:delete", level: "Write" },
			schema: {
				operationId: "DeleteDeviceGroup",
				summary: "Delete a device group",
				tags: ["Device groups"],
				params: groupParams,
			},
		},
		async (request, reply) => {
			await deleteDeviceGroup(db, request.scope, request.params.group_id);
			return reply.code(204).send();
		},
	);

	http.post(
		`${GROUP}/action`,
		{
			config: { action: "iotda:group:addDevice", level: "Write" },
			schema: {
				operationId: "CreateOrDeleteDeviceInGroup",
				summary: "Add a device to a group, or remove it",
				tags: ["Device groups"],

				params: groupParams,
				querystring: groupActionQuery,
				response: { 200: Type.Null() },
			},
		},
		async (request, reply) => {
			const { scope } = request;
			const { group_id } = request.params;
			const { action_id, device_id } = request.query;
			switch (action_id) {
				case "addDevice":
					await addDeviceToGroup(db, scope, groupLimits, group_id, device_id);
					break;
				case "removeDevice":
					await removeDeviceFromGroup(db, scope, group_id, device_id);
					break;
				default:
					action_id satisfies never;
			}
			return reply.type("application/json").send(null);
		},
	);

	http.get(
		`${GROUP}/devices`,
		{
			config: { action: "iotda:group:query", level: "Read" },
			schema: {
				operationId: "ShowDevicesInGroup",
				summary: "List the devices of a group",
				tags: ["Device groups"],

				params: groupParams,
				querystring: groupDevicesQuery,
				response: { 200: groupDevices },
			},
		},
		async (request) => {
			const { items, page } = await listGroupDevices(
				db,
				request.scope,
				counts,
				request.params.group_id,
				readPage(request.query),
			);
			return { devices: items.map(withoutAbsent), page };
		},
	);

	http.post(
		"/v5/iot/:project_id/devices/:device_id/list-device-group",
		{
			config: { action: "iotda:group:queryList", level: "List" },
			schema: {
				operationId: "ListDeviceGroupsByDevice",
				summary: "List the groups of a device",
				tags: ["Device groups"],
				params: deviceParams,
				response: { 200: groupsOfDevice },
			},
		},
		async (request) => {
			const groups = await listGroupsOfDevice(
				db,
				request.scope,
				request.params.device_id,
			);
			return { device_groups: groups.map(toItem) };
		},
	);
}

function readTime(text: string | undefined): Date | undefined {
	if (text === undefined) return undefined;
	const time = parseWireTime(text);
	if (!time)
		throw new ApiError(errors.invalidTime, {
			detail: "last_modified_time must be a time such as 20230211T121212Z.",
		});
	return time;
}

function toItem(group: DeviceGroup): GroupItem {
	return withoutAbsent({
		group_id: group.group_id,
		name: group.name,
		description: group.description,
		super_group_id: group.super_group_id,
		group_type: group.group_type,
	});
}

function toWire(group: DeviceGroup): WireGroup {
	return withoutAbsent({ ...toItem(group), dynamic_group_rule: group.rule });
}
