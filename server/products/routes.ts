import type { Static } from "typebox";
import { projectParams, wireTime, withoutAbsent } from "../../wire/envelope.ts";
import {
	createProduct as createProductBody,
	listProductsQuery,
	type ProductItem,
	type ProductOtaProfile,
	product as productAnswer,
	productList,
	productOtaProfile,
	productParams,
	productQuery,
	updateProduct as updateProductBody,
	updateProductOtaProfile,
	type Product as WireProduct,
} from "../../wire/products.ts";
import type { Http } from "../access/route.ts";
import type { Clock, Db } from "../database/database.ts";
import { readPage } from "../database/paging.ts";
import { fromInstant } from "../database/tables.ts";
import {
	createProduct,
	deleteProduct,
	getProduct,
	listProducts,
	type Product,
	type ProductName,
	type ProductTexts,
	updateOtaProfile,
	updateProduct,
} from "./products.ts";
import { serviceCapabilitiesText } from "./service-capabilities.ts";

const PRODUCTS = "/v5/iot/:project_id/products";
const OTA_PROFILE =
	"/otaru/v1/projects/:project_id/products/:product_id/ota-profile";

export function productRoutes(
	http: Http,
	{ db, now }: { db: Db; now: Clock },
): void {
	http.post(
		PRODUCTS,
		{
			config: { action: "iotda:products:create", level: "Write" },
			schema: {
				operationId: "CreateProduct",
				summary: "Create a product",
				tags: ["Products"],

				params: projectParams,
				body: createProductBody,
				response: { 201: productAnswer },
			},
		},
		async (request, reply) => {
			const { body } = request;
			const product = await createProduct(
				db,
				request.scope,
				{
					spaceId: body.app_id,
					productId: body.product_id,
					name: body.name,
					deviceType: body.device_type,
					protocolType: body.protocol_type,
					dataFormat: body.data_format,
					manufacturerName: body.manufacturer_name || null,
					industry: body.industry || null,
					description: body.description || null,
					serviceCapabilities: serviceCapabilitiesText(
						body.service_capabilities,
					),
				},
				now(),
			);
			return reply.code(201).send(toWire(product));
		},
	);

	http.get(
		PRODUCTS,
		{
			config: { action: "iotda:products:queryList", level: "List" },
			schema: {
				operationId: "ListProducts",
				summary: "List products",
				tags: ["Products"],

				params: projectParams,
				querystring: listProductsQuery,
				response: { 200: productList },
			},
		},
		async (request) => {
			const { query } = request;
			const { items, page } = await listProducts(
				db,
				request.scope,
				{ spaceId: query.app_id, name: query.product_name },
				readPage(query),
			);
			return { products: items.map(toItem), page };
		},
	);

	http.get(
		`${PRODUCTS}/:product_id`,
		{
			config: { action: "iotda:products:query", level: "Read" },
			schema: {
				operationId: "ShowProduct",
				summary: "Show a product",
				tags: ["Products"],

				params: productParams,
				querystring: productQuery,
				response: { 200: productAnswer },
			},
		},
		async (request) =>
			toWire(await getProduct(db, request.scope, nameIn(request))),
	);

	http.put(
		`${PRODUCTS}/:product_id`,
		{
			config: { action: "iotda:products:modify", level: "Write" },
			schema: {
				operationId: "UpdateProduct",
				summary: "Update a product",
				tags: ["Products"],

				params: productParams,
				body: updateProductBody,
				response: { 200: productAnswer },
			},
		},
		async (request) => {
			const product = await updateProduct(
				db,
				request.scope,
				{
					spaceId: request.body.app_id,
					productId: request.params.product_id,
				},
				changesIn(request.body),
			);
			return toWire(product);
		},
	);

	http.delete(
		`${PRODUCTS}/:product_id`,
		{
			config: { action: "iotda:products:delete", level: "Write" },
			schema: {
				operationId: "DeleteProduct",
				summary: "Delete a product",
				tags: ["Products"],
				params: productParams,
				querystring: productQuery,
			},
		},
		async (request, reply) => {
			await deleteProduct(db, request.scope, nameIn(request));
			return reply.code(204).send();
		},
	);

	http.get(
		OTA_PROFILE,
		{
			config: { action: "iotda:products:query", level: "Read" },
			schema: {
				operationId: "ShowProductOtaProfile",
				summary: "Show how the devices of a product take upgrades",
				tags: ["Products"],

				params: productParams,
				querystring: productQuery,
				response: { 200: productOtaProfile },
			},
		},
		async (request) =>
			profileOf(await getProduct(db, request.scope, nameIn(request))),
	);

	http.put(
		OTA_PROFILE,
		{
			config: { action: "iotda:products:modify", level: "Write" },
			schema: {
				operationId: "UpdateProductOtaProfile",
				summary: "Change how the devices of a product take upgrades",
				tags: ["Products"],

				params: productParams,
				querystring: productQuery,
				body: updateProductOtaProfile,
				response: { 200: productOtaProfile },
			},
		},
		async (request) => {
			const { module_form, download_form } = request.body;
			const product = await updateOtaProfile(
				db,
				request.scope,
				nameIn(request),
				withoutAbsent({ moduleForm: module_form, downloadForm: download_form }),
			);
			return profileOf(product);
		},
	);
}

function nameIn(request: {
	params: Static<typeof productParams>;
	query: Static<typeof productQuery>;
}): ProductName {
	return {
		spaceId: request.query.app_id,
		productId: request.params.product_id,
	};
}

function changesIn(
	body: Static<typeof updateProductBody>,
): Partial<ProductTexts> {
	const { service_capabilities } = body;
	return {
		...withoutAbsent({
			name: body.name,
			deviceType: body.device_type,
			protocolType: body.protocol_type,
			dataFormat: body.data_format,
			serviceCapabilities:
				service_capabilities && serviceCapabilitiesText(service_capabilities),
		}),
		...cleared("manufacturerName", body.manufacturer_name),
		...cleared("industry", body.industry),
		...cleared("description", body.description),
	};
}

/** Missing: no change; empty: no text any more. */
function cleared<K extends string>(key: K, text: string | undefined) {
	return (text === undefined ? {} : { [key]: text || null }) as {
		[P in K]?: string | null;
	};
}

function toItem(product: Product): ProductItem {
	return withoutAbsent({
		app_id: product.app_id,
		app_name: product.app_name,
		product_id: product.product_id,
		name: product.name,
		device_type: product.device_type,
		protocol_type: product.protocol_type,
		data_format: product.data_format,
		manufacturer_name: product.manufacturer_name,
		industry: product.industry,
		description: product.description,
		create_time: wireTime(fromInstant(product.created_at)),
	});
}

function toWire(product: Product): WireProduct {
	return {
		...toItem(product),
		service_capabilities: JSON.parse(product.service_capabilities) as unknown[],
	};
}

function profileOf(product: Product): ProductOtaProfile {
	return {
		module_form: product.module_form,
		download_form: product.download_form,
	};
}
