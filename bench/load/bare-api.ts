/**
 * The reference of the measurement of calls: the same routes on the same store, in a
 * process of its own, answering whoever comes with the same headers, counted and noted as
 * the server does. What the server has beyond this is what it does to know who calls, and
 * whether he may.
 *
 * Arguments: the store's file, the project's id.
 */
import { randomUUID } from "node:crypto";
import type { AddressInfo } from "node:net";
import type { TypeBoxTypeProvider } from "@fastify/type-provider-typebox";
import Fastify from "fastify";
import { everything, type Scope } from "../../server/access/permissions.ts";
import type { Http } from "../../server/access/route.ts";
import type { AuditLog } from "../../server/audit/audit-log.ts";
import { openStore } from "../../server/database/database.ts";
import { Events } from "../../server/events.ts";
import { auditRequests } from "../../server/http/audit-requests.ts";
import { STANDING_HEADERS } from "../../server/http/http-server.ts";
import { answerSerializer, partChecker } from "../../server/http/schemas.ts";
import { otaModuleRoutes } from "../../server/ota-modules/routes.ts";

/** Sent once it listens. */
export interface BareApiListens {
	port: number;
}

/** Sent when it is asked: the processor time that it has used. */
export interface BareApiCpu {
	cpuMs: number;
}

const [file = "", projectId = ""] = process.argv.slice(2);
const { db } = await openStore({ kind: "sqlite", file });
const scope: Scope = {
	accountId: "",
	userId: "",
	userName: "",
	projectId,
	isAdministrator: true,
	action: "iotda:otamodules:query",
	level: "Read",
	rights: everything(),
};
const http: Http = Fastify({
	logger: false,
	genReqId: () => randomUUID().replaceAll("-", ""),
}).withTypeProvider<TypeBoxTypeProvider>();
http.setValidatorCompiler(({ schema, httpPart }) =>
	partChecker(schema, httpPart ?? "body"),
);
http.setSerializerCompiler(({ schema }) => answerSerializer(schema));
http.decorateRequest("scope", { getter: () => scope });
const events = new Events();
http.addHook("onRequest", async (request, reply) => {
	reply.headers(STANDING_HEADERS);
	reply.header("x-request-id", request.id);
});
http.addHook("onSend", async (_request, reply, payload) => {
	if (reply.getHeader("content-type") === "application/json; charset=utf-8")
		reply.header("content-type", "application/json");
	return payload;
});
// Of reads that are allowed nothing is kept, but each is looked at.
auditRequests(http, {
	audit: { append: async () => {}, waiting: 0 } as unknown as AuditLog,
	now: () => new Date(),
	events,
});
http.addHook("onResponse", async (_request, reply) => {
	events.happened("http_answers", { status: String(reply.statusCode) });
});
otaModuleRoutes(http, { db, now: () => new Date() });
await http.listen({ host: "127.0.0.1", port: 0 });
const { port } = http.server.address() as AddressInfo;
process.send?.({ port } satisfies BareApiListens);
process.on("message", () => {
	const { user, system } = process.cpuUsage();
	process.send?.({ cpuMs: (user + system) / 1000 } satisfies BareApiCpu);
});
process.on("disconnect", () => process.exit());
