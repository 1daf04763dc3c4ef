/** When a task runs, and what follows a failure. Pure. */

/** How far ahead a task may be scheduled: seven days. */
export const SCHEDULE_HORIZON_MS = 7 * 24 * 60 * 60 * 1000;

export interface TaskPolicy {
	/** Undefined: at once. */
	scheduleAt: Date | undefined;
	/** Retries that follow a failure by themselves; 0: none. */
	retryCount: number;
	retryIntervalMinutes: number;
}

export type RetryPolicy = Pick<
	TaskPolicy,
	"retryCount" | "retryIntervalMinutes"
>;

/** When a subtask that failed after `attempt` retries is tried again; undefined: it has failed. */
export function retryAt(
	{ retryCount, retryIntervalMinutes }: RetryPolicy,
	attempt: number,
	now: Date,
): Date | undefined {
	return attempt < retryCount
		? new Date(now.getTime() + retryIntervalMinutes * 60_000)
		: undefined;
}

/** Whether the time a task was scheduled for has come. */
export function isTime(scheduleAt: Date | undefined, now: Date): boolean {
	return scheduleAt === undefined || scheduleAt <= now;
}
