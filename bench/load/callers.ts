/**
 * Who calls in the measurement of calls, in a process of its own: bare sockets, and
 * requests that were signed before, so that what is measured is the server.
 */
import { connect, type Socket } from "node:net";

export interface CallPlan {
	host: string;
	port: number;
	/** Whole requests without a body; they are sent in turn. */
	requests: string[];
	/** Each has one call under way. */
	connections: number;
	elapsedMs: number;
}

export type FromCallers =
	| {
			kind: "done";
			calls: number;
			elapsedMs: number;
			p50Us: number;
			/** Of the last answer. */
			body: string;
	  }
	| { kind: "failed"; reason: string };

function fail(reason: string): never {
	process.send?.({ kind: "failed", reason } satisfies FromCallers);
	throw new Error(reason);
}

class Caller {
	readonly #socket: Socket;
	readonly #next: () => string | undefined;
	readonly #answered: (us: number, body: string) => void;
	#received = "";
	#sentAtMs = 0;
	readonly ended: Promise<void>;

	constructor(
		plan: CallPlan,
		next: () => string | undefined,
		answered: (us: number, body: string) => void,
	) {
		this.#next = next;
		this.#answered = answered;
		this.#socket = connect({ host: plan.host, port: plan.port, noDelay: true });
		this.#socket.setEncoding("latin1");
		this.ended = new Promise((resolve) => {
			this.#socket.on("close", () => resolve());
		});
		this.#socket.on("error", (error) => fail(error.message));
		this.#socket.on("connect", () => this.#call());
		this.#socket.on("data", (text: string) => this.#receive(text));
	}

	#call(): void {
		const request = this.#next();
		if (request === undefined) {
			this.#socket.destroy();
			return;
		}
		this.#sentAtMs = performance.now();
		this.#socket.write(request);
	}

	#receive(text: string): void {
		this.#received += text;
		const end = this.#received.indexOf("\r\n\r\n");
		if (end === -1) return;
		const head = this.#received.slice(0, end);
		const length = /\r\ncontent-length: (\d+)/i.exec(head)?.[1];
		if (!head.startsWith("HTTP/1.1 200 ") || length === undefined)
			fail(`A call was answered with:\n${this.#received}`);
		if (this.#received.length < end + 4 + Number(length)) return;
		const body = this.#received.slice(end + 4);
		this.#received = "";
		this.#answered((performance.now() - this.#sentAtMs) * 1000, body);
		this.#call();
	}
}

process.on("message", async (plan: CallPlan) => {
	const startedAtMs = performance.now();
	const tookUs: number[] = [];
	let last = "";
	let sent = 0;
	const next = () =>
		performance.now() - startedAtMs < plan.elapsedMs
			? plan.requests[sent++ % plan.requests.length]
			: undefined;
	const callers = Array.from(
		{ length: plan.connections },
		() =>
			new Caller(plan, next, (us, body) => {
				tookUs.push(us);
				last = body;
			}),
	);
	await Promise.all(callers.map(({ ended }) => ended));
	const elapsedMs = performance.now() - startedAtMs;
	tookUs.sort((a, b) => a - b);
	process.send?.({
		kind: "done",
		calls: tookUs.length,
		elapsedMs,
		p50Us: tookUs[tookUs.length >> 1] ?? 0,
		body: Buffer.from(last, "latin1").toString("utf8"),
	} satisfies FromCallers);
});
