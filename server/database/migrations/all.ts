/** Every schema change in order. Names are kept for ever: stores remember them. */
import type { Migration } from "kysely/migration";
import { first } from "./0001-first.ts";
import { wholeTasks } from "./0002-whole-tasks.ts";

export const migrations: Record<string, Migration> = {
	"0001-first": first,
	"0002-whole-tasks": wholeTasks,
};
