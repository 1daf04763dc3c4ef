/**
 * An upgrade task's states and moves. Pure.
 *
 * - Initializing: created; its targets become subtasks, chunk by chunk.
 * - Waitting: expanded; its time has not come, or nothing of it is confirmed yet.
 * - Processing: subtasks are being started or run.
 * - Stopping: a stop was asked for; what is unfinished is being stopped.
 * - Success, Fail, PartialSuccess, Stopped: over, by what its subtasks came to. A retry
 *   brings Fail and PartialSuccess back to Processing.
 */
import type { SubtaskStatus, TaskStatus } from "../database/tables.ts";

/** The drawn moves; docs/states.md shows the same table. */
export const taskMoves: Readonly<Record<TaskStatus, readonly TaskStatus[]>> = {
	Initializing: ["Waitting", "Processing", "Fail", "Stopping"],
	Waitting: ["Processing", "Fail", "Stopping", "Stopped"],
	Processing: ["Success", "Fail", "PartialSuccess", "Stopping", "Stopped"],
	Stopping: ["Stopped"],
	Success: [],
	Fail: ["Processing"],
	PartialSuccess: ["Processing"],
	Stopped: [],
};

export type FinishedStatus = "Success" | "Fail" | "PartialSuccess" | "Stopped";
export const finishedStatuses = [
	"Success",
	"Fail",
	"PartialSuccess",
	"Stopped",
] as const satisfies TaskStatus[];

export function isFinished(status: TaskStatus): status is FinishedStatus {
	return (finishedStatuses as readonly TaskStatus[]).includes(status);
}

/** How many subtasks stand where. Their sum is `total`. */
export interface Counters {
	waitting: number;
	processing: number;
	success: number;
	fail: number;
	fail_wait_retry: number;
	stopped: number;
	removed: number;
}

export type CounterName = keyof Counters;

export const counterNames = [
	"waitting",
	"processing",
	"success",
	"fail",
	"fail_wait_retry",
	"stopped",
	"removed",
] as const satisfies CounterName[];

export const counterOf: Readonly<Record<SubtaskStatus, CounterName>> = {
	Waitting: "waitting",
	Processing: "processing",
	Success: "success",
	Fail: "fail",
	FailWaitRetry: "fail_wait_retry",
	Stopped: "stopped",
	Removed: "removed",
};

export function canDelete(status: TaskStatus): boolean {
	return isFinished(status);
}

export function canStop(status: TaskStatus): boolean {
	return !isFinished(status) && status !== "Stopping";
}

export function canRetry(status: TaskStatus): boolean {
	return (
		status === "Processing" || status === "Fail" || status === "PartialSuccess"
	);
}

export function canConfirm(status: TaskStatus): boolean {
	return canStop(status);
}

/**
 * What a task came to once nothing in it is unfinished; undefined while something is.
 * All good: Success. None good: Fail, or Stopped when nothing failed but something
 * was stopped. Mixed: PartialSuccess.
 */
export function resultOf(counters: Counters): FinishedStatus | undefined {
	if (counters.waitting + counters.processing + counters.fail_wait_retry > 0)
		return undefined;
	const bad = counters.fail + counters.stopped + counters.removed;
	if (bad === 0) return "Success";
	if (counters.success > 0) return "PartialSuccess";
	return counters.fail === 0 && counters.stopped > 0 ? "Stopped" : "Fail";
}
