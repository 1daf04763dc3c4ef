/** How tasks stand, as those who watch are told. */
import type { Selectable } from "kysely";
import { admits, type Scope } from "../access/permissions.ts";
import type { Db } from "../database/database.ts";
import type { UpgradeTaskRow } from "../database/tables.ts";
import { ApiError, errors } from "../errors.ts";

const shown = [
	"task_id",
	"project_id",
	"app_id",
	"task_name",
	"task_type",
	"status",
	"status_desc",
	"total",
	"waitting",
	"processing",
	"success",
	"fail",
	"fail_wait_retry",
	"stopped",
	"removed",
	"created_at",
] as const satisfies (keyof UpgradeTaskRow)[];

export type WatchedTask = Pick<
	Selectable<UpgradeTaskRow>,
	(typeof shown)[number]
>;

/** Those of the tasks that are there, by their ids: as cheap as it gets. */
export async function readTasks(
	db: Db,
	taskIds: readonly string[],
): Promise<WatchedTask[]> {
	if (taskIds.length === 0) return [];
	return db
		.selectFrom("upgrade_tasks")
		.select(shown)
		.where("task_id", "in", [...taskIds])
		.where("deleted_at", "is", null)
		.execute();
}

/** @throws 404 IOTDA.014970 when it is not there, or in another space than the one named */
export async function getWatchedTask(
	db: Db,
	scope: Scope,
	taskId: string,
	spaceId: string | undefined,
): Promise<WatchedTask> {
	const [task] = await readTasks(db, [taskId]);
	if (
		!task ||
		task.project_id !== scope.projectId ||
		(spaceId !== undefined && task.app_id !== spaceId) ||
		!admits(scope, task.app_id)
	)
		throw new ApiError(errors.unknownTask);
	return task;
}
