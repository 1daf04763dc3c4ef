/**
 * How many connections the management listener takes, of all and of one address: one that
 * sends nothing is kept for some seconds, and a stranger must not take them all.
 */
import { BlockList, isIPv6, type Server, type Socket } from "node:net";
import { networkOf } from "../access/sign-in-limits.ts";
import type { Events } from "../events.ts";

export interface ConnectionLimits {
	/** Of all together. */
	total: number;
	/** Of one IPv4 address or IPv6 network; 0: no limit. Trusted proxies have none. */
	perAddress: number;
	/** Addresses, networks, or the names that Fastify knows for some of them. */
	trustedProxies: readonly string[];
}

export function limitConnections(
	server: Server,
	limits: ConnectionLimits,
	events: Events,
): void {
	const open = new Map<string, number>();
	const proxies = blockListOf(limits.trustedProxies);
	const refused = (reason: string) =>
		events.happened("http_connections_refused", { reason });
	server.maxConnections = limits.total;
	server.on("drop", () => refused("too_many"));
	if (limits.perAddress === 0) return;
	server.on("connection", (socket: Socket) => {
		const address = networkOf(socket.remoteAddress ?? "");
		const count = (open.get(address) ?? 0) + 1;
		if (count > limits.perAddress && !isIn(proxies, socket)) {
			refused("too_many_of_address");
			socket.destroy();
			return;
		}
		open.set(address, count);
		socket.once("close", () => {
			const left = (open.get(address) ?? 1) - 1;
			if (left === 0) open.delete(address);
			else open.set(address, left);
		});
	});
}

const named: Readonly<Record<string, readonly string[]>> = {
	loopback: ["127.0.0.0/8", "::1/128"],
	linklocal: ["169.254.0.0/16", "fe80::/10"],
	uniquelocal: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"],
};

/** What cannot be read has kept the server from starting before. */
function blockListOf(proxies: readonly string[]): BlockList {
	const list = new BlockList();
	for (const proxy of proxies.flatMap((text) => named[text] ?? [text])) {
		const [address = "", bits] = proxy.split("/");
		const type = isIPv6(address) ? "ipv6" : "ipv4";
		if (bits === undefined) list.addAddress(address, type);
		else if (/^\d+$/.test(bits)) list.addSubnet(address, Number(bits), type);
	}
	return list;
}

function isIn(list: BlockList, { remoteAddress = "" }: Socket): boolean {
	const address = remoteAddress.replace(/^::ffff:(?=\d+\.)/i, "");
	return (
		address !== "" && list.check(address, isIPv6(address) ? "ipv6" : "ipv4")
	);
}
