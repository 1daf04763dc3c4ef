/** OTA modules: the separately upgradable parts of a product's devices. */
import { type Static, Type } from "typebox";
import {
	anyText,
	id36,
	otaName,
	pageOf,
	pageQuery,
	pathId,
} from "./envelope.ts";

/** Ids of modules and packages have no underscore. */
export const dashId36 = () =>
	Type.String({
		pattern: "^[A-Za-z0-9\\-]{1,36}$",
		minLength: 1,
		maxLength: 36,
		rule: "must be 1 to 36 characters: letters A-Z a-z, digits and -",
	});

/**
 * The vendor's page allows letters A-Z a-z, digits, `_`, `-` and `.`; its own example has
 * blanks, and its SDK allows Chinese characters as well. Empty: no alias.
 */
const ALIAS = "A-Za-z0-9_.\\-\\u4E00-\\u9FFF\\u3400-\\u4DBF";
const aliasName = () =>
	Type.String({
		pattern: `^(?:[${ALIAS}](?:[${ALIAS} ]{0,62}[${ALIAS}])?)?$`,
		maxLength: 64,
		rule: "must be at most 64 characters: Chinese characters, letters A-Z a-z, digits, _, ., - and blanks between them",
	});

export const otaModuleParams = Type.Object({
	project_id: pathId(64),
	module_id: dashId36(),
});

export const createOtaModule = Type.Object({
	app_id: id36(),
	product_id: id36(),
	module_name: otaName(),
	alias_name: Type.Optional(aliasName()),
	description: Type.Optional(anyText(0, 1024)),
});

/** What is missing stays; an empty text clears. */
export const updateOtaModule = Type.Object({
	alias_name: Type.Optional(aliasName()),
	description: Type.Optional(anyText(0, 1024)),
});

export const listOtaModulesQuery = Type.Object({
	app_id: id36(),
	product_id: Type.Optional(id36()),
	...pageQuery,
});

export const otaModule = Type.Object({
	module_id: Type.String(),
	app_id: Type.String(),
	product_id: Type.String(),
	product_name: Type.String(),
	module_name: Type.String(),
	alias_name: Type.Optional(Type.String()),
	description: Type.Optional(Type.String()),
	create_time: Type.String(),
});
export type OtaModule = Static<typeof otaModule>;

export const otaModuleList = pageOf("modules", otaModule);
