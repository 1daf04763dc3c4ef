/**
 * The vendor's paging as queries: newest first, `limit`, `marker` (only records with
 * a smaller record id) and `offset` (skip after the marker).
 */
import type { ReferenceExpression, SelectQueryBuilder } from "kysely";
import { ApiError, errors, invalidInput } from "../errors.ts";

export interface Page {
	/** 1 to 50. */
	limit: number;
	/** 24 hex digits. */
	marker: string;
	/** 0 to 500. */
	offset: number;
}

const LAST = "f".repeat(24);

/**
 * @throws 400 IOTDA.000017 for a limit, IOTDA.000018 for a marker, IOTDA.000006 for
 * an offset out of range.
 */
export function readPage(query: {
	limit?: string;
	marker?: string;
	offset?: string;
}): Page {
	const limit = query.limit ?? "10";
	if (!/^\d{1,2}$/.test(limit) || Number(limit) < 1 || Number(limit) > 50) {
		throw new ApiError(errors.limitOutOfRange, {
			detail: "limit must be a whole number from 1 to 50.",
		});
	}
	const marker = query.marker ?? LAST;
	if (!/^[0-9a-fA-F]{24}$/.test(marker)) {
		throw new ApiError(errors.markerOutOfRange, {
			detail: "marker must be 24 hexadecimal digits.",
		});
	}
	const offset = query.offset ?? "0";
	if (!/^\d{1,3}$/.test(offset) || Number(offset) > 500) {
		throw invalidInput("offset", "must be a whole number from 0 to 500");
	}
	return {
		limit: Number(limit),
		marker: marker.toLowerCase(),
		offset: Number(offset),
	};
}

export interface PageResult<T> {
	items: T[];
	page: { count: number; marker?: string };
}

/**
 * One page of `query`, which carries the filters and the columns. `recordId` is the
 * qualified column of the record id. The count is that of the filters alone.
 */
export async function listPage<DB, TB extends keyof DB, O>(
	query: SelectQueryBuilder<DB, TB, O>,
	recordId: ReferenceExpression<DB, TB> & string,
	page: Page,
): Promise<PageResult<O>> {
	const rows = await query
		.select((eb) => eb.ref(recordId as never).as("page_record_id"))
		.where(recordId, "<", page.marker as never)
		.orderBy(recordId as never, "desc")
		.limit(page.limit)
		.offset(page.offset)
		.execute();
	const counted = await query
		.clearSelect()
		.select((eb) => eb.fn.countAll<number>().as("count"))
		.executeTakeFirstOrThrow();
	const last = rows.at(-1) as { page_record_id: string } | undefined;
	return {
		items: rows as O[],
		page: {
			count: Number((counted as { count: number }).count),
			...(last ? { marker: last.page_record_id } : {}),
		},
	};
}
