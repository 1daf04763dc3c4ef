/** Takes down what a foreign client sends, byte for byte, so that it can be sent again, also altered. */
import { once } from "node:events";
import { Agent, createServer, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";

export interface RecordedRequest {
	method: string;
	/** Path and query as on the wire. */
	target: string;
	/** In their order; each byte of a value as one character. */
	headers: [name: string, value: string][];
	body: Buffer;
}

/** A listener that says yes to everything and remembers what came last. */
export class Recorder implements AsyncDisposable {
	readonly #server: Server;
	#last: RecordedRequest | undefined;

	static async open(): Promise<Recorder> {
		const recorder = new Recorder();
		recorder.#server.listen(0, "127.0.0.1");
		await once(recorder.#server, "listening");
		return recorder;
	}

	private constructor() {
		this.#server = createServer((incoming, answer) => {
			const chunks: Buffer[] = [];
			incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
			incoming.on("end", () => {
				const { method = "", url = "", rawHeaders } = incoming;
				const headers: [string, string][] = [];
				for (let i = 0; i < rawHeaders.length; i += 2)
					headers.push([rawHeaders[i] ?? "", rawHeaders[i + 1] ?? ""]);
				this.#last = {
					method,
					target: url,
					// About the connection, not the request.
					headers: headers.filter(([name]) => !/^connection$/i.test(name)),
					body: Buffer.concat(chunks),
				};
				answer.setHeader("content-type", "application/json");
				answer.end("{}");
			});
		});
	}

	get url(): string {
		return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
	}

	/** What came since this was last asked. */
	take(): RecordedRequest {
		const last = this.#last;
		this.#last = undefined;
		if (!last) throw new Error("Nothing was sent to the recorder.");
		return last;
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#server.close();
		this.#server.closeAllConnections();
		await once(this.#server, "close");
	}
}

/** Sends recorded requests to a server, over connections that are kept. */
export class Replayer implements Disposable {
	readonly #url: URL;
	readonly #agent = new Agent({ keepAlive: true });

	constructor(url: string) {
		this.#url = new URL(url);
	}

	/** @param extra headers that were not recorded, and are not signed. */
	send(
		recorded: RecordedRequest,
		extra: [name: string, value: string][] = [],
	): Promise<{ status: number; text: string }> {
		return new Promise((resolve, reject) => {
			const outgoing = request(
				{
					host: this.#url.hostname,
					port: this.#url.port,
					agent: this.#agent,
					setHost: false,
					method: recorded.method,
					path: recorded.target,
					headers: [...recorded.headers, ...extra].flat(),
				},
				(incoming) => {
					const chunks: Buffer[] = [];
					incoming.on("data", (chunk: Buffer) => chunks.push(chunk));
					incoming.on("error", reject);
					incoming.on("end", () =>
						resolve({
							status: incoming.statusCode ?? 0,
							text: Buffer.concat(chunks).toString("utf8"),
						}),
					);
				},
			);
			outgoing.on("error", reject);
			outgoing.end(recorded.body);
		});
	}

	[Symbol.dispose](): void {
		this.#agent.destroy();
	}
}
