/** What stands in front of several servers: hands each connection to one that lives. */
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

export class Balancer implements AsyncDisposable {
	readonly #server: Server;
	readonly #sockets = new Set<Socket>();
	readonly #backends: readonly number[];
	readonly #random: () => number;

	/** @param backends ports on the loopback address */
	static async open(
		backends: readonly number[],
		random: () => number,
	): Promise<Balancer> {
		const balancer = new Balancer(backends, random);
		balancer.#server.listen(0, "127.0.0.1");
		await once(balancer.#server, "listening");
		return balancer;
	}

	private constructor(backends: readonly number[], random: () => number) {
		this.#backends = backends;
		this.#random = random;
		this.#server = createServer((socket) => this.#forward(socket));
	}

	get port(): number {
		const address = this.#server.address();
		if (address === null || typeof address === "string")
			throw new Error("The balancer does not listen.");
		return address.port;
	}

	#forward(front: Socket): void {
		const back = connect({
			host: "127.0.0.1",
			port:
				this.#backends[Math.floor(this.#random() * this.#backends.length)] ?? 0,
		});
		for (const [one, other] of [
			[front, back],
			[back, front],
		] as const) {
			this.#sockets.add(one);
			// A server that is down makes the caller try again, and perhaps find another.
			one.on("error", () => other.destroy());
			one.on("close", () => {
				this.#sockets.delete(one);
				other.destroy();
			});
			one.pipe(other);
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		this.#server.close();
		for (const socket of this.#sockets) socket.destroy();
		await once(this.#server, "close");
	}
}
