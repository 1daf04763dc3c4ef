/** Upgrade packages: a file with a version, for the firmware, the software or one module. */
import { type Static, Type } from "typebox";
import {
	anyText,
	id36,
	oneOf,
	otaName,
	pageOf,
	pageQuery,
	pathId,
	versionText,
} from "./envelope.ts";
import { dashId36 } from "./ota-modules.ts";

export const packageType = () =>
	oneOf(["firmwarePackage", "softwarePackage", "modulePackage"]);
const packageTypes = { enum: packageType().enum };

/** What an upload may be called; asked where the upload is. */
export const documentedObjectKey = {
	pattern: "^[^\\u0000-\\u001F\\u007F\\\\\\uD800-\\uDFFF]{1,1024}$",
	minLength: 1,
	maxLength: 1024,
	rule: "must be 1 to 1,024 bytes in UTF-8 without control characters and backslashes, and no part of it between slashes may be empty, one dot or two",
};

/** Where a package's file lies. `region_name` is kept and echoed, nothing more. */
export const obsLocation = Type.Object(
	{
		region_name: Type.String({
			pattern: "^[A-Za-z0-9\\-]{1,256}$",
			minLength: 1,
			maxLength: 256,
			rule: "must be 1 to 256 characters: letters A-Z a-z, digits and -",
		}),
		bucket_name: Type.String({
			pattern: "^[a-z0-9.\\-]{3,63}$",
			minLength: 3,
			maxLength: 63,
			rule: "must be 3 to 63 characters: lower-case letters a-z, digits, . and -",
		}),
		object_key: Type.String({
			...anyText(1, 1024),
			documented: documentedObjectKey,
		}),
		sign_method: Type.Optional(oneOf(["SHA256"])),
		sign: Type.Optional(
			Type.String({
				pattern: "^[0-9A-Fa-f]{64}$",
				rule: "must be the SHA-256 of the file as 64 hexadecimal digits",
			}),
		),
	},
	{ rule: "must be an object" },
);

/** The vendor's model makes `obs_location` optional; a package without a file is none. */
export const fileLocation = Type.Object(
	{ obs_location: obsLocation },
	{ rule: "must be an object" },
);

export const packageParams = Type.Object({
	project_id: pathId(64),
	package_id: dashId36(),
});

export const createPackage = Type.Object({
	app_id: id36(),
	package_type: packageType(),
	product_id: id36(),
	module_name: Type.Optional(otaName()),
	version: versionText(),
	support_source_versions: Type.Optional(
		Type.Array(versionText(), {
			maxItems: 20,
			uniqueItems: true,
			rule: "must be a list of at most 20 different versions",
		}),
	),
	description: Type.Optional(anyText(0, 1024)),
	custom_info: Type.Optional(anyText(0, 4096)),
	file_location: fileLocation,
});

export const listPackagesQuery = Type.Object({
	package_type: packageType(),
	app_id: Type.Optional(id36()),
	product_id: Type.Optional(id36()),
	version: Type.Optional(versionText()),
	...pageQuery,
});

const listed = {
	package_id: Type.String(),
	app_id: Type.String(),
	package_type: Type.String({ documented: packageTypes }),
	product_id: Type.String(),
	product_name: Type.String(),
	module_name: Type.Optional(Type.String()),
	version: Type.String(),
	support_source_versions: Type.Array(Type.String()),
	description: Type.Optional(Type.String()),
	custom_info: Type.Optional(Type.String()),
	create_time: Type.String(),
};

export const packageItem = Type.Object(listed);
export type PackageItem = Static<typeof packageItem>;

export const otaPackage = Type.Object({
	...listed,
	file_location: Type.Object({
		obs_location: Type.Object({
			region_name: Type.String(),
			bucket_name: Type.String(),
			object_key: Type.String(),
			sign_method: oneOf(["SHA256"]),
			sign: Type.String(),
		}),
	}),
});
export type OtaPackage = Static<typeof otaPackage>;

export const packageList = pageOf("packages", packageItem);
