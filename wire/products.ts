/** Products: what all devices of one model have in common. */
import { type Static, Type } from "typebox";
import {
	anyText,
	descriptionText,
	flag,
	id36,
	oneOf,
	pageOf,
	pageQuery,
	pathId,
	plainText,
	plainTextDollar,
} from "./envelope.ts";

const protocolType = () =>
	oneOf([
		"MQTT",
		"CoAP",
		"HTTP",
		"HTTPS",
		"Modbus",
		"ONVIF",
		"OPC-UA",
		"OPC-DA",
		"Other",
		"TCP",
		"UDP",
	]);
const dataFormat = () => oneOf(["json", "binary"]);

// --- the model of a product: what its devices can say --------------------------

const anObject = { rule: "must be an object" };
const listOf = <T extends Parameters<typeof Type.Array>[0]>(
	item: T,
	maxItems?: number,
) =>
	maxItems === undefined
		? Type.Array(item, { rule: "must be a list" })
		: Type.Array(item, {
				maxItems,
				rule: `must be a list of at most ${maxItems} entries`,
			});

const dataType = () =>
	oneOf([
		"int",
		"long",
		"decimal",
		"string",
		"DateTime",
		"jsonObject",
		"enum",
		"boolean",
		"string list",
	]);

const valueLimits = {
	required: Type.Optional(flag()),
	enum_list: Type.Optional(
		Type.Array(anyText(0, 1024), { rule: "must be a list of texts" }),
	),
	min: Type.Optional(anyText(1, 16)),
	max: Type.Optional(anyText(1, 16)),
	max_length: Type.Optional(
		Type.Integer({
			minimum: 0,
			maximum: 2147483647,
			rule: "must be a whole number from 0 to 2147483647",
		}),
	),
	step: Type.Optional(Type.Number({ rule: "must be a number" })),
	unit: Type.Optional(anyText(0, 16)),
	description: Type.Optional(descriptionText(128)),
};

const parameter = Type.Object(
	{ para_name: anyText(1, 32), data_type: dataType(), ...valueLimits },
	anObject,
);

const serviceCapability = Type.Object(
	{
		service_id: plainTextDollar(1, 64),
		service_type: plainTextDollar(1, 64),
		properties: Type.Optional(
			listOf(
				Type.Object(
					{
						property_name: plainText(1, 64),
						data_type: dataType(),
						method: oneOf(["R", "W", "E", "RW", "RE", "WE", "RWE"]),
						...valueLimits,
						default_value: Type.Optional(Type.Unknown()),
					},
					anObject,
				),
				500,
			),
		),
		commands: Type.Optional(
			listOf(
				Type.Object(
					{
						command_name: plainText(1, 64),
						paras: Type.Optional(listOf(parameter)),
						responses: Type.Optional(
							listOf(
								Type.Object(
									{
										response_name: anyText(1, 128),
										paras: Type.Optional(listOf(parameter)),
									},
									anObject,
								),
							),
						),
					},
					anObject,
				),
				500,
			),
		),
		events: Type.Optional(
			listOf(
				Type.Object(
					{
						event_type: anyText(1, 32),
						paras: Type.Optional(listOf(parameter)),
					},
					anObject,
				),
				500,
			),
		),
		description: Type.Optional(descriptionText(128)),
		option: Type.Optional(oneOf(["Master", "Mandatory", "Optional"])),
	},
	anObject,
);

/** Checked in its mandatory keys, lengths and values; kept as given, further keys included. */
export const serviceCapabilities = listOf(serviceCapability, 500);
export type ServiceCapability = Static<typeof serviceCapability>;

// --- requests -------------------------------------------------------------------

export const productParams = Type.Object({
	project_id: pathId(64),
	product_id: id36(),
});
/** Absent: the product of this id in the default space, else the oldest of any space. */
export const productQuery = Type.Object({ app_id: Type.Optional(id36()) });

export const createProduct = Type.Object({
	product_id: Type.Optional(id36()),
	name: plainText(1, 64),
	device_type: plainText(1, 32),
	protocol_type: protocolType(),
	data_format: dataFormat(),
	service_capabilities: serviceCapabilities,
	manufacturer_name: Type.Optional(plainText(0, 32)),
	industry: Type.Optional(plainText(0, 64)),
	description: Type.Optional(descriptionText(128)),
	app_id: Type.Optional(id36()),
});

/** What is missing stays; an empty text clears where a text may be absent. */
export const updateProduct = Type.Object({
	app_id: Type.Optional(id36()),
	name: Type.Optional(plainText(1, 64)),
	device_type: Type.Optional(plainText(1, 32)),
	protocol_type: Type.Optional(protocolType()),
	data_format: Type.Optional(dataFormat()),
	service_capabilities: Type.Optional(serviceCapabilities),
	manufacturer_name: Type.Optional(plainText(0, 32)),
	industry: Type.Optional(plainText(0, 64)),
	description: Type.Optional(descriptionText(128)),
});

export const listProductsQuery = Type.Object({
	app_id: Type.Optional(id36()),
	product_name: Type.Optional(plainText(1, 64)),
	...pageQuery,
});

// --- answers --------------------------------------------------------------------

const listed = {
	app_id: Type.String(),
	app_name: Type.String(),
	product_id: Type.String(),
	name: Type.String(),
	device_type: Type.String(),
	protocol_type: Type.String({ documented: { enum: protocolType().enum } }),
	data_format: Type.String({ documented: { enum: dataFormat().enum } }),
	manufacturer_name: Type.Optional(Type.String()),
	industry: Type.Optional(Type.String()),
	description: Type.Optional(Type.String()),
	create_time: Type.String(),
};

export const productItem = Type.Object(listed);
export type ProductItem = Static<typeof productItem>;

export const product = Type.Object({
	...listed,
	service_capabilities: Type.Array(Type.Unknown()),
});
export type Product = Static<typeof product>;

export const productList = pageOf("products", productItem);

// --- how a product's devices take upgrades: Otaru's own -------------------------

/**
 * `none`: module upgrades fail unless the device itself has spoken of modules;
 * `native`: they go out as module events; `compatible`: as firmware events that
 * an unmodified device SDK understands.
 */
export const moduleForm = () => oneOf(["none", "native", "compatible"]);
/** Whether a device fetches a package by a signed address or with a bearer token. */
export const downloadForm = () => oneOf(["presigned", "token"]);

export const updateProductOtaProfile = Type.Object({
	module_form: Type.Optional(moduleForm()),
	download_form: Type.Optional(downloadForm()),
});
export const productOtaProfile = Type.Object({
	module_form: moduleForm(),
	download_form: downloadForm(),
});
export type ProductOtaProfile = Static<typeof productOtaProfile>;
