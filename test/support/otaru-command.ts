/** The `otaru` command in a process of its own, with its words caught. */
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";

const root = join(import.meta.dirname, "..", "..");

export interface CommandOptions {
	env?: Record<string, string>;
	cwd?: string;
	/** What runs it; absent: this Node with the TypeScript program. */
	program?: readonly string[];
}

export class OtaruCommand {
	stdout = "";
	stderr = "";
	/** The exit code, or the signal that ended it. */
	readonly ended: Promise<number | NodeJS.Signals | null>;
	readonly #child: ChildProcess;

	constructor(args: readonly string[], options: CommandOptions = {}) {
		const program = options.program ?? [join(root, "cli", "main.ts")];
		// Nothing of the surroundings configures it, and nobody colours its output.
		const env = Object.fromEntries(
			Object.entries(process.env).filter(
				([name]) =>
					!/^(OTARU_|HUAWEICLOUD_SDK_|NO_COLOR|FORCE_COLOR|NODE_TEST)/.test(
						name,
					),
			),
		);
		const child = spawn(process.execPath, [...program, ...args], {
			cwd: options.cwd ?? root,
			env: { ...env, ...options.env },
			stdio: ["ignore", "pipe", "pipe"],
		});
		this.#child = child;
		child.stdout.setEncoding("utf8").on("data", (text: string) => {
			this.stdout += text;
		});
		child.stderr.setEncoding("utf8").on("data", (text: string) => {
			this.stderr += text;
		});
		this.ended = new Promise((resolve) =>
			child.on("close", (code, signal) => resolve(code ?? signal)),
		);
	}

	/** As `| head -0` does. */
	hangUp(): void {
		this.#child.stdout?.destroy();
	}

	/** As Ctrl-C does. */
	interrupt(): void {
		this.#child.kill("SIGINT");
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#child.kill("SIGKILL");
		await this.ended;
	}
}
