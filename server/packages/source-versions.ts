/** The versions a package can upgrade from. None named: it upgrades from every version. */
import { createHash } from "node:crypto";

/**
 * One text for one set of versions, whatever their order: how two packages are seen
 * to be for the same devices. A digest, because twenty versions of 256 characters
 * are more than PostgreSQL puts into an index.
 */
export function sourceVersionSet(versions: readonly string[]): string {
	if (versions.length === 0) return "";
	// No version contains a line feed.
	return createHash("sha256")
		.update([...versions].sort().join("\n"))
		.digest("hex");
}

export function sourceVersionsText(versions: readonly string[]): string | null {
	return versions.length === 0 ? null : JSON.stringify(versions);
}

/** The versions in the order they were given. */
export function readSourceVersions(stored: string | null): string[] {
	return stored === null ? [] : (JSON.parse(stored) as string[]);
}
