/** Tags on resources; the only resources that can have them are devices. */
import { type TSchema, Type } from "typebox";
import { deviceId, oneOf, pageOf, pageQuery, tagText } from "./envelope.ts";

/** More than any device may have, so that its own limit is what a caller meets. */
const TAGS_PER_REQUEST = 50;

const someOf = <T extends TSchema>(item: T) =>
	Type.Array(item, {
		minItems: 1,
		maxItems: TAGS_PER_REQUEST,
		rule: `must be a list of 1 to ${TAGS_PER_REQUEST}`,
	});

export const tag = () =>
	Type.Object(
		{
			tag_key: tagText(1, 64),
			tag_value: Type.Optional(tagText(0, 128)),
		},
		{ rule: "must be an object" },
	);

const resource = {
	resource_type: oneOf(["device"]),
	resource_id: deviceId(),
};

/** A key that is bound already gets the new value. */
export const bindTags = Type.Object({ ...resource, tags: someOf(tag()) });

export const unbindTags = Type.Object({
	...resource,
	tag_keys: someOf(tagText(1, 64)),
});

/** Resources that have any of the tags; one without a value stands for any value. */
export const queryTagged = Type.Object({
	resource_type: oneOf(["device"]),
	tags: someOf(tag()),
});
export const queryTaggedPage = Type.Object(pageQuery);

export const taggedResources = pageOf(
	"resources",
	Type.Object({ resource_id: Type.String() }),
);
