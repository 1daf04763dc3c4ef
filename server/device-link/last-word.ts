/** The end of a connection that is refused before it is anybody's. */
import type { Duplex } from "node:stream";

const LINGER_MS = 2_000;

/**
 * Says a last word and closes. The other side gets a moment to read it, since closing on
 * unread bytes would take the word with it; and no more than that, since one that does not
 * hang up itself would keep the connection half open for ever.
 */
export function closeWith(socket: Duplex, text: string): void {
	socket.end(text);
	socket.resume();
	const timer = setTimeout(() => socket.destroy(), LINGER_MS).unref();
	socket.once("close", () => clearTimeout(timer));
}
