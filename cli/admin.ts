/**
 * `otaru admin`: what is done to the store itself, on the machine that has it, when
 * nobody can sign in to ask the server for it.
 */
import { existsSync } from "node:fs";
import { hostname, userInfo } from "node:os";
import { parseArgs } from "node:util";
import {
	addAccessKey,
	newAccessKeyPair,
	newPassword,
} from "../server/access/access-keys.ts";
import { changeAccess } from "../server/access/access-version.ts";
import { passwordFault } from "../server/access/password-policy.ts";
import { hashPassword } from "../server/access/passwords.ts";
import { endTokens } from "../server/access/tokens.ts";
import { storable } from "../server/audit/audit-chain.ts";
import { BrokenChain, openChain } from "../server/audit/audit-ends.ts";
import { AuditLog } from "../server/audit/audit-log.ts";
import { type Config, ConfigError, readConfig } from "../server/config.ts";
import { type Db, openStore } from "../server/database/database.ts";
import { newRecordId, randomHex } from "../server/database/ids.ts";
import { instant } from "../server/database/tables.ts";
import { setLogLevel } from "../server/log.ts";
import { openSealed } from "../server/secrets/master-key.ts";
import type { Sealed } from "../server/secrets/sealed.ts";
import type { Command } from "./command.ts";
import { CommandError, exitCodes } from "./errors.ts";
import { columns } from "./output.ts";

const help = `otaru admin: what is done to the store itself when nobody can sign in any more

Usage
  otaru admin reset-administrator [--user NAME] [--replace-keys] [--data DIR] [--json]

  reset-administrator  makes the user NAME an enabled administrator who signs in with a
           new password, which he has to change, and a new access key. Both are printed
           this once. All his tokens end. It is written into the audit trail.

It opens the store as the server does, so it takes the server's settings from the
environment (OTARU_DATA, OTARU_DATABASE_URL, OTARU_MASTER_KEY). Run it as the user of the
server. The server may run meanwhile or not.

Options
  --user NAME      who (the first administrator there was, else admin); made if missing
  --replace-keys   deletes the access keys he has. Without it those of an administrator
                   stay; as more than two are not allowed, a disabled one gives way, or
                   no new one is made. Whoever was no administrator loses his in any case.
  --data DIR       data directory of the server (OTARU_DATA, else ./data)
  --json           JSON

Exit codes
${columns(Object.values(exitCodes).map(({ code, meaning }) => [String(code), meaning]))}
`;

async function run(args: string[]): Promise<number> {
	const { values, positionals } = parseArgs({
		args,
		options: {
			user: { type: "string" },
			"replace-keys": { type: "boolean", default: false },
			data: { type: "string" },
			json: { type: "boolean", default: false },
		},
		allowPositionals: true,
	});
	const [action, extra] = positionals;
	if (action !== "reset-administrator")
		throw usage(
			action === undefined
				? "It is missing what to do: reset-administrator."
				: `"${action}" is nothing for an admin: reset-administrator is.`,
		);
	if (extra !== undefined) throw usage(`"${extra}" is one word too many.`);
	if (values.user !== undefined && !/^[A-Za-z0-9_.@-]{1,64}$/.test(values.user))
		throw usage(
			"--user must be 1 to 64 characters: letters, digits, _, ., @ and -.",
		);
	const reset = await asOperator(() =>
		resetAdministrator(configFor(values.data), {
			userName: values.user,
			replacesKeys: values["replace-keys"],
		}),
	);
	process.stdout.write(
		values.json ? `${JSON.stringify(reset)}\n` : `${textOf(reset)}\n`,
	);
	return exitCodes.ok.code;
}

function configFor(dataDir: string | undefined): Config {
	// The log is the server's; here it would stand between the lines for people.
	setLogLevel("silent");
	return readConfig({
		...process.env,
		...(dataDir === undefined ? {} : { OTARU_DATA: dataDir }),
	});
}

/** What an operator did wrong, or can put right, is a sentence. */
async function asOperator<T>(work: () => Promise<T>): Promise<T> {
	try {
		return await work();
	} catch (error) {
		if (error instanceof BrokenChain)
			throw new CommandError(
				`Nothing was changed, since it could not be noted: ${error.message}`,
				"docs/audit.md says what to do when the chain is broken.",
				exitCodes.failed,
			);
		if (
			error instanceof ConfigError ||
			(error instanceof Error &&
				(error.name === "SchemaTooNewError" ||
					// Of a file, or of a database that cannot be reached.
					"syscall" in error ||
					"severity" in error ||
					("code" in error && error.code === "ERR_SQLITE_ERROR")))
		)
			throw new CommandError(
				error.message || "The database cannot be reached.",
				"Run it as the user of the server, with the settings of the server.",
				exitCodes.failed,
			);
		throw error;
	}
}

// --- the work ------------------------------------------------------------------------

interface Reset {
	account_name: string;
	user_name: string;
	user_id: string;
	/** Whether there was no such user before. */
	created: boolean;
	password: string;
	/** Absent when he has as many as are allowed. */
	access_key?: string;
	secret_key?: string;
}

const KEYS_PER_USER = 2;

async function resetAdministrator(
	config: Config,
	wish: { userName: string | undefined; replacesKeys: boolean },
): Promise<Reset> {
	const { database } = config;
	// A wrong directory must not become a new store.
	if (database.kind === "sqlite" && !existsSync(database.file))
		throw noStore(`there is no ${database.file}`);
	await using store = await openStore(database);
	const { db } = store;
	const account = await db
		.selectFrom("accounts")
		.select(["account_id", "name"])
		.orderBy("created_at")
		.limit(1)
		.executeTakeFirst();
	if (!account) throw noStore("no server has been started on this store yet");
	const now = () => new Date();
	const sealed = await openSealed(config, db, now);
	const chainKey = await openChain(db, sealed, now);
	const userName =
		wish.userName ??
		(await firstAdministrator(db, account.account_id)) ??
		"admin";
	let password = newPassword();
	// One in millions has the user's short name in it.
	while (passwordFault(password, userName) !== undefined)
		password = newPassword();
	// Slow, so not while a running server waits for this change.
	const passwordHash = await hashPassword(password);
	// Awaited here: the store must not be closed before it is done.
	return await changeAccess(db, account.account_id, async (trx) => {
		const { userId, isNew, wasOne } = await putAdministrator(trx, {
			accountId: account.account_id,
			userName,
			passwordHash,
		});
		await endTokens(trx, [userId]);
		// As with every new administrator: who made a key for him would be one by it.
		const replacesKeys = wish.replacesKeys || !wasOne;
		const key = await newKey(trx, sealed, userId, replacesKeys);
		// Both are kept, or neither is: nobody gets in by this without a row.
		await using audit = new AuditLog({ db: trx, key: chainKey });
		await audit.append({
			at: instant(now()),
			request_id: randomHex(16),
			account_id: account.account_id,
			user_id: null,
			user_name: null,
			credential: "store",
			address: "store",
			method: "COMMAND",
			path: "otaru admin reset-administrator",
			action: "iam:users:resetAdministrator",
			project_id: null,
			app_id: null,
			resource: userId,
			status: 200,
			decision: "allowed",
			reason: storable(
				`${userName}, by ${userInfo().username} of ${hostname()}`,
				256,
			),
			error_code: null,
		});
		return {
			account_name: account.name,
			user_name: userName,
			user_id: userId,
			created: isNew,
			password,
			...(key && { access_key: key.accessKey, secret_key: key.secretKey }),
		};
	});
}

async function firstAdministrator(
	db: Db,
	accountId: string,
): Promise<string | undefined> {
	const first = await db
		.selectFrom("users")
		.select("name")
		.where("account_id", "=", accountId)
		.where("is_administrator", "=", 1)
		.orderBy("record_id")
		.limit(1)
		.executeTakeFirst();
	return first?.name;
}

async function putAdministrator(
	trx: Db,
	user: { accountId: string; userName: string; passwordHash: string },
): Promise<{ userId: string; isNew: boolean; wasOne: boolean }> {
	const columns = {
		password_hash: user.passwordHash,
		must_change_password: 1,
		is_administrator: 1,
		enabled: 1,
	} as const;
	const known = await trx
		.selectFrom("users")
		.select(["user_id", "is_administrator"])
		.where("account_id", "=", user.accountId)
		.where("name", "=", user.userName)
		.executeTakeFirst();
	if (known) {
		await trx
			.updateTable("users")
			.set(columns)
			.where("user_id", "=", known.user_id)
			.execute();
		return {
			userId: known.user_id,
			isNew: false,
			wasOne: known.is_administrator === 1,
		};
	}
	const now = new Date();
	const userId = randomHex(16);
	await trx
		.insertInto("users")
		.values({
			...columns,
			user_id: userId,
			record_id: newRecordId(now),
			account_id: user.accountId,
			name: user.userName,
			created_at: instant(now),
		})
		.execute();
	return { userId, isNew: true, wasOne: false };
}

/** Undefined: he has as many as are allowed, and keeps them. */
async function newKey(
	trx: Db,
	sealed: Sealed,
	userId: string,
	replacesKeys: boolean,
) {
	const keys = await trx
		.selectFrom("access_keys")
		.select(["access_key", "enabled"])
		.where("user_id", "=", userId)
		.orderBy("created_at")
		.execute();
	const disabled = keys.find(({ enabled }) => enabled === 0);
	const given = replacesKeys
		? keys
		: keys.length >= KEYS_PER_USER && disabled
			? [disabled]
			: [];
	if (keys.length - given.length >= KEYS_PER_USER) return undefined;
	for (const { access_key } of given)
		await trx
			.deleteFrom("access_keys")
			.where("access_key", "=", access_key)
			.execute();
	const pair = newAccessKeyPair();
	await addAccessKey(
		trx,
		sealed,
		userId,
		pair,
		() => new Date(),
		"otaru admin reset-administrator",
	);
	return pair;
}

// --- what people read ------------------------------------------------------------------

function textOf(reset: Reset): string {
	const { user_name: name, account_name: account } = reset;
	const lines = columns(
		[
			["administrator", name],
			["account", account],
			["password", reset.password],
			...(reset.access_key === undefined || reset.secret_key === undefined
				? []
				: ([
						["access key", reset.access_key],
						["secret key", reset.secret_key],
					] as const)),
		],
		"",
	);
	return [
		lines,
		...(reset.access_key === undefined
			? [
					"",
					`${name} has ${KEYS_PER_USER} access keys already, which still work; with --replace-keys they are deleted and a new one is made.`,
				]
			: []),
		"",
		"This is shown once. When the server runs, choose a password of your own:",
		`  otaru access me password --as ${name}`,
		"What credentials.json says of this user's password, and after --replace-keys of his key,",
		"is out of date.",
	].join("\n");
}

function noStore(reason: string): CommandError {
	return new CommandError(
		`There is no store to open: ${reason}.`,
		"Name the server's directory with --data or OTARU_DATA, or its database with OTARU_DATABASE_URL.",
		exitCodes.usage,
	);
}

function usage(message: string): CommandError {
	return new CommandError(message, "See otaru admin --help.", exitCodes.usage);
}

export const admin: Command = {
	summary:
		"on the server's machine: let an administrator in again when nobody can",
	help,
	run,
};
