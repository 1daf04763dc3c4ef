/**
 * "Something became due": wakes whoever waits for rows, in this process or, on
 * PostgreSQL, in all of them. A signal may be lost (a connection breaks); nothing
 * may depend on it but speed.
 */

export type SignalListener = (payload: string) => void;

export interface Signal extends AsyncDisposable {
	/** Tells every process, this one included. At most 8,000 bytes. */
	send(payload: string): void;
	/** Also called with an empty payload after a gap, when signals may have been missed. */
	onSignal(listener: SignalListener): void;
}

export function openLocalSignal(): Signal {
	const listeners: SignalListener[] = [];
	let closed = false;
	return {
		send(payload) {
			setImmediate(() => {
				if (!closed) for (const listener of listeners) listener(payload);
			});
		},
		onSignal(listener) {
			listeners.push(listener);
		},
		async [Symbol.asyncDispose]() {
			closed = true;
		},
	};
}
