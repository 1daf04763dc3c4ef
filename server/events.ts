/**
 * What happened: the metric and the log line in one call, so that neither is
 * forgotten and both have one name.
 */
import { Counter, collectDefaultMetrics, Gauge, Registry } from "prom-client";
import { logger } from "./log.ts";

const log = logger("events");

export class Events {
	readonly registry = new Registry();
	readonly #counters = new Map<string, Counter>();
	readonly #gauges = new Map<string, Gauge>();

	constructor() {
		collectDefaultMetrics({ register: this.registry, prefix: "otaru_" });
	}

	/**
	 * Counts `otaru_{name}_total` with the labels and logs at debug level, or at the
	 * level given. Labels must be few: never a device id; that goes into `detail`,
	 * which is only logged.
	 */
	happened(
		name: string,
		labels: Record<string, string> = {},
		detail: Record<string, unknown> = {},
		level: "debug" | "info" | "warn" | "error" = "debug",
	): void {
		let counter = this.#counters.get(name);
		if (!counter) {
			counter = new Counter({
				name: `otaru_${name}_total`,
				help: name.replaceAll("_", " "),
				labelNames: Object.keys(labels),
				registers: [this.registry],
			});
			this.#counters.set(name, counter);
		}
		counter.inc(labels);
		if (log.isLevelEnabled(level))
			log[level]({ event: name, ...labels, ...detail });
	}

	/** A value read whenever metrics are asked for. */
	gauge(name: string, help: string, read: () => number): void {
		if (this.#gauges.has(name)) return;
		this.#gauges.set(
			name,
			new Gauge({
				name: `otaru_${name}`,
				help,
				registers: [this.registry],
				collect() {
					this.set(read());
				},
			}),
		);
	}
}
