/**
 * Where a request comes from, as one address in one form: policies, limits and the audit
 * trail all compare it as text.
 */
import { isIPv4, isIPv6, SocketAddress } from "node:net";
import type { FastifyRequest } from "fastify";
import { ApiError, errors, invalidInput } from "../errors.ts";

const HEADER = "x-forwarded-for";

/**
 * Fixes `request.ip`, to be called before anything asks for it.
 *
 * What a trusted proxy writes besides an address (a port, brackets, a zone) is taken off.
 * What is then no address refuses the request: the proxy's own address in its place could
 * be one that a policy allows, and would make all such callers one to the limits.
 *
 * @throws 400 IOTDA.000006 naming X-Forwarded-For
 */
export function fixSourceAddress(
	request: FastifyRequest,
	isBehindProxies: boolean,
): void {
	const own = readSourceAddress(request.raw.socket.remoteAddress ?? "");
	const address =
		own !== undefined && isBehindProxies ? forwardedAddress(request) : own;
	// Also of a request that is refused something is written down.
	Object.defineProperty(request, "ip", { value: address ?? own ?? "" });
	if (address !== undefined) return;
	throw own === undefined
		? new ApiError(errors.invalidFormat, {
				detail: "The connection ended before its address was known.",
			})
		: invalidInput(
				"X-Forwarded-For",
				"must name the caller by an IPv4 or IPv6 address",
			);
}

/**
 * The last address of the header that is no trusted proxy's. The framework knows those, and
 * looks at the header itself: so it is shown plain addresses, and the header then put back,
 * since a signature may cover it.
 */
function forwardedAddress(request: FastifyRequest): string | undefined {
	const { headers } = request.raw;
	const sent = headers[HEADER];
	if (typeof sent !== "string") return readSourceAddress(request.ip);
	headers[HEADER] = sent
		.split(",")
		.map((part) => readSourceAddress(part.trim()) ?? part)
		.join(",");
	try {
		return readSourceAddress(request.ip);
	} finally {
		headers[HEADER] = sent;
	}
}

/**
 * @param text an address, perhaps as `address:port`, `[address]:port` or with a zone.
 * @returns in its shortest form, IPv4 inside IPv6 as IPv4; undefined for no address, also
 * for IPv4 with leading zeros, which some read as octal.
 */
export function readSourceAddress(text: string): string | undefined {
	const bare =
		/^\[([^[\]]*)\](?::\d{1,5})?$/.exec(text)?.[1] ??
		/^([\d.]+):\d{1,5}$/.exec(text)?.[1] ??
		text;
	if (isIPv4(bare)) return bare;
	const [address = ""] = bare.split("%", 1);
	if (!isIPv6(address)) return undefined;
	const plain = new SocketAddress({ address, family: "ipv6" }).address;
	return /^::ffff:(\d+\.\d+\.\d+\.\d+)$/.exec(plain)?.[1] ?? plain;
}
