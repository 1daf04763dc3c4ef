/** Policies: the system's own, and those that an account writes for itself. */
import type { Selectable, Updateable } from "kysely";
import { type Db, isUniqueViolation } from "../database/database.ts";
import { newRecordId, randomHex } from "../database/ids.ts";
import { listPage, type Page, type PageResult } from "../database/paging.ts";
import { fromInstant, instant, type PolicyRow } from "../database/tables.ts";
import { ApiError, errors, invalidInput } from "../errors.ts";
import {
	POLICY_DOCUMENT_LIMIT_BYTES,
	PolicyFault,
	readPolicy,
} from "../policy-language/policy-document.ts";
import {
	type SystemPolicy,
	systemPolicies,
} from "../policy-language/system-policies.ts";
import { compileWildcards } from "../policy-language/wildcards.ts";
import { changeAccess } from "./access-version.ts";
import type { Scope } from "./permissions.ts";
import { endTokens } from "./tokens.ts";
import { memberIds } from "./user-groups.ts";

export type PolicyType = "system" | "custom";

export interface Policy {
	policyId: string;
	name: string;
	type: PolicyType;
	description: string | null;
	/** As it was given. */
	document: Record<string, unknown>;
	/** Undefined for the system's own. */
	createdAt: Date | undefined;
	updatedAt: Date | undefined;
}

/** @throws 404 IOTDA.015902 */
export async function getPolicy(
	db: Db,
	scope: Scope,
	policyId: string,
): Promise<Policy> {
	const system = findSystemPolicy(policyId);
	return system
		? fromSystem(system)
		: fromRow(await getRow(db, scope, policyId));
}

export function findSystemPolicy(policyId: string): SystemPolicy | undefined {
	return systemPolicies.find((policy) => policy.policyId === policyId);
}

async function getRow(
	db: Db,
	scope: Scope,
	policyId: string,
): Promise<Selectable<PolicyRow>> {
	const row = await db
		.selectFrom("policies")
		.selectAll()
		.where("policy_id", "=", policyId)
		.where("account_id", "=", scope.accountId)
		.executeTakeFirst();
	if (!row) throw new ApiError(errors.unknownPolicy);
	return row;
}

/** Newest first; the system's own, which were always there, come last. */
export async function listPolicies(
	db: Db,
	scope: Scope,
	filter: { type?: PolicyType | undefined; name?: string | undefined },
	page: Page,
): Promise<PageResult<Policy>> {
	const system =
		filter.type === "custom"
			? []
			: systemPolicies
					.map((policy, index) => ({ policy, recordId: systemRecordId(index) }))
					.filter(
						({ policy }) =>
							filter.name === undefined || policy.name === filter.name,
					);
	let query = db
		.selectFrom("policies")
		.selectAll()
		.where("account_id", "=", scope.accountId);
	if (filter.name !== undefined) query = query.where("name", "=", filter.name);
	const custom: PageResult<Selectable<PolicyRow>> =
		filter.type === "system"
			? { items: [], page: { count: 0 } }
			: await listPage(query, "policies.record_id", page);
	// How many of the offset the store's rows after the marker have used up.
	const { after } =
		filter.type === "system"
			? { after: 0 }
			: await query
					.clearSelect()
					.select((eb) => eb.fn.countAll<number>().as("after"))
					.where("record_id", "<", page.marker)
					.executeTakeFirstOrThrow();
	const rest = system
		.filter(({ recordId }) => recordId < page.marker)
		.slice(Math.max(0, page.offset - Number(after)))
		.slice(0, page.limit - custom.items.length);
	const marker = rest.at(-1)?.recordId ?? custom.page.marker;
	return {
		items: [
			...custom.items.map(fromRow),
			...rest.map(({ policy }) => fromSystem(policy)),
		],
		page: {
			count: custom.page.count + system.length,
			...(marker === undefined ? {} : { marker }),
		},
	};
}

/** Below that of every row, and descending like theirs. */
function systemRecordId(index: number): string {
	return (systemPolicies.length - index).toString(16).padStart(24, "0");
}

/**
 * @throws 400 IOTDA.000006 naming the place in the document by its JSON pointer, 400
 * IOTDA.015910 when the name is taken, also by one of the system's own
 */
export async function createPolicy(
	db: Db,
	scope: Scope,
	input: {
		name: string;
		description: string | null;
		document: Record<string, unknown>;
	},
	now: Date,
): Promise<Policy> {
	const document = checkedText(input.document);
	refuseSystemName(input.name);
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) =>
			fromRow(
				await trx
					.insertInto("policies")
					.values({
						policy_id: randomHex(16),
						record_id: newRecordId(now),
						account_id: scope.accountId,
						name: input.name,
						description: input.description,
						document,
						created_at: instant(now),
						updated_at: instant(now),
					})
					.returningAll()
					.executeTakeFirstOrThrow(),
			),
		),
	);
}

/**
 * What is missing stays. Another document counts from the next request on, and signs out
 * whoever has the policy.
 *
 * @throws 404 IOTDA.015902, 403 IOTDA.015916, and as `createPolicy`
 */
export async function updatePolicy(
	db: Db,
	scope: Scope,
	policyId: string,
	changes: {
		name?: string;
		description?: string | null;
		document?: Record<string, unknown>;
	},
	now: Date,
): Promise<Policy> {
	refuseSystemPolicy(policyId);
	const columns: Updateable<PolicyRow> = {};
	if (changes.name !== undefined) columns.name = changes.name;
	if (changes.description !== undefined)
		columns.description = changes.description;
	if (changes.document !== undefined)
		columns.document = checkedText(changes.document);
	if (changes.name !== undefined) refuseSystemName(changes.name);
	return orNameTaken(() =>
		changeAccess(db, scope.accountId, async (trx) => {
			const before = await getRow(trx, scope, policyId);
			if (Object.keys(columns).length === 0) return fromRow(before);
			const after = await trx
				.updateTable("policies")
				.set({ ...columns, updated_at: instant(now) })
				.where("policy_id", "=", policyId)
				.returningAll()
				.executeTakeFirstOrThrow();
			if (after.document !== before.document)
				await endTokens(trx, await holdersOf(trx, scope, policyId));
			return fromRow(after);
		}),
	);
}

/** @throws 404 IOTDA.015902, 403 IOTDA.015916, 403 IOTDA.015917 while it is granted */
export async function deletePolicy(
	db: Db,
	scope: Scope,
	policyId: string,
): Promise<void> {
	refuseSystemPolicy(policyId);
	await changeAccess(db, scope.accountId, async (trx) => {
		await getRow(trx, scope, policyId);
		const { count } = await trx
			.selectFrom("grants")
			.select((eb) => eb.fn.countAll<number>().as("count"))
			.where("account_id", "=", scope.accountId)
			.where("policy_id", "=", policyId)
			.executeTakeFirstOrThrow();
		if (Number(count) > 0)
			throw new ApiError(errors.policyGranted, {
				detail: `${Number(count) === 1 ? "1 grant uses" : `${count} grants use`} it; delete them first.`,
			});
		await trx
			.deleteFrom("policies")
			.where("policy_id", "=", policyId)
			.execute();
	});
}

async function holdersOf(
	trx: Db,
	scope: Scope,
	policyId: string,
): Promise<string[]> {
	const principals = await trx
		.selectFrom("grants")
		.select(["principal_type", "principal_id"])
		.distinct()
		.where("account_id", "=", scope.accountId)
		.where("policy_id", "=", policyId)
		.execute();
	const holders = new Set<string>();
	for (const { principal_type, principal_id } of principals)
		if (principal_type === "user") holders.add(principal_id);
		else
			for (const userId of await memberIds(trx, principal_id))
				holders.add(userId);
	return [...holders];
}

/** @throws 400 IOTDA.000006 */
function checkedText(document: Record<string, unknown>): string {
	const text = JSON.stringify(document);
	if (Buffer.byteLength(text) > POLICY_DOCUMENT_LIMIT_BYTES)
		throw invalidInput(
			"document",
			`must have at most ${POLICY_DOCUMENT_LIMIT_BYTES} bytes as JSON`,
		);
	try {
		readPolicy(document);
	} catch (error) {
		if (error instanceof PolicyFault)
			throw invalidInput(`document${error.pointer}`, error.rule);
		throw error;
	}
	return text;
}

function refuseSystemPolicy(policyId: string): void {
	if (findSystemPolicy(policyId)) throw new ApiError(errors.systemPolicy);
}

/** Two policies of one name would be told apart by nobody. */
function refuseSystemName(name: string): void {
	if (systemPolicies.some((policy) => policy.name === name))
		throw new ApiError(errors.policyExists, {
			detail: "A system policy has this name.",
		});
}

async function orNameTaken<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (isUniqueViolation(error, "policies_name"))
			throw new ApiError(errors.policyExists, { cause: error });
		throw error;
	}
}

function fromRow(row: Selectable<PolicyRow>): Policy {
	return {
		policyId: row.policy_id,
		name: row.name,
		type: "custom",
		description: row.description,
		document: JSON.parse(row.document) as Record<string, unknown>,
		createdAt: fromInstant(row.created_at),
		updatedAt: fromInstant(row.updated_at),
	};
}

function fromSystem(policy: SystemPolicy): Policy {
	return {
		policyId: policy.policyId,
		name: policy.name,
		type: "system",
		description: policy.description,
		document: { ...policy.document },
		createdAt: undefined,
		updatedAt: undefined,
	};
}

/**
 * What a policy says that is probably a mistake. Policies of the vendor's cloud may name
 * what this server does not do, so it is no fault.
 *
 * @param actions of this server
 */
export function warningsOf(
	{ type, document }: Pick<Policy, "type" | "document">,
	actions: Iterable<string>,
): string[] {
	if (type === "system") return [];
	const known = [...actions].map((action) => action.toLowerCase());
	return readPolicy(document).statements.flatMap((statement, index) =>
		statement.actions.listed
			.filter((pattern) => !known.some(compileWildcards(pattern)))
			.map(
				(pattern) =>
					`/Statement/${index}: no action of this server fits ${pattern}`,
			),
	);
}
