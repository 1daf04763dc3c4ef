/** Device groups: static ones and, by a rule, dynamic ones. */
import { type Static, Type } from "typebox";
import {
	deviceId,
	id36,
	oneOf,
	pageOf,
	pageQuery,
	pathId,
	spacedText,
	timeText,
} from "./envelope.ts";

const groupType = () => oneOf(["STATIC", "DYNAMIC"]);

// --- requests -------------------------------------------------------------------

export const groupParams = Type.Object({
	project_id: pathId(64),
	group_id: pathId(36),
});

export const createGroup = Type.Object({
	name: spacedText(1, 64),
	description: Type.Optional(spacedText(0, 64)),
	super_group_id: Type.Optional(id36()),
	app_id: Type.Optional(id36()),
	group_type: Type.Optional(groupType()),
	/** What a rule may be is said with the position of what is wrong in it. */
	dynamic_group_rule: Type.Optional(
		Type.String({
			documented: {
				maxLength: 4000,
				rule: "must be at most 4,000 characters with at most 30 conditions, parentheses and not at most 32 deep, and at most 10 percent signs in a pattern",
			},
		}),
	),
});

/** What is missing stays; an empty description clears. */
export const updateGroup = Type.Object({
	name: Type.Optional(spacedText(1, 64)),
	description: Type.Optional(spacedText(0, 64)),
});

export const listGroupsQuery = Type.Object({
	app_id: Type.Optional(id36()),
	name: Type.Optional(spacedText(1, 64)),
	group_type: Type.Optional(groupType()),
	/** Created or updated after this; general date form. */
	last_modified_time: Type.Optional(timeText()),
	...pageQuery,
});

export const groupActionQuery = Type.Object({
	action_id: oneOf(["addDevice", "removeDevice"]),
	device_id: deviceId(),
});

export const groupDevicesQuery = Type.Object(pageQuery);

// --- answers --------------------------------------------------------------------

const listed = {
	group_id: Type.String(),
	name: Type.String(),
	description: Type.Optional(Type.String()),
	super_group_id: Type.Optional(Type.String()),
	group_type: groupType(),
};

export const groupItem = Type.Object(listed);
export type GroupItem = Static<typeof groupItem>;

export const group = Type.Object({
	...listed,
	dynamic_group_rule: Type.Optional(Type.String()),
});
export type Group = Static<typeof group>;

export const groupList = pageOf("device_groups", groupItem);

/** All of them: a device is in few. */
export const groupsOfDevice = Type.Object({
	device_groups: Type.Array(groupItem),
});

export const groupDevices = pageOf(
	"devices",
	Type.Object({
		device_id: Type.String(),
		node_id: Type.String(),
		device_name: Type.Optional(Type.String()),
		product_id: Type.String(),
	}),
);
