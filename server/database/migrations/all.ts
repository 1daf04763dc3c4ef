/** Every schema change in order. Names are kept for ever: stores remember them. */
import type { Migration } from "kysely/migration";
import { first } from "./0001-first.ts";
import { wholeTasks } from "./0002-whole-tasks.ts";
import { access } from "./0003-access.ts";

export const migrations: Record<string, Migration> = {
	"0001-first": first,
	"0002-whole-tasks": wholeTasks,
	"0003-access": access,
};
