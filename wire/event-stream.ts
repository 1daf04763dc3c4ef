/** Server-sent events as they come off the wire (the HTML standard's chapter of that name). */

export interface ReceivedEvent {
	/** `message` when it was not named. */
	event: string;
	data: string;
	/** The last one sent: with this event or before. Empty: none yet. */
	lastEventId: string;
}

/** A piece of the stream that is no event: a sign of life, or another id. */
export interface SignOfLife {
	event: undefined;
	lastEventId: string;
}

/** Reads a body to its end. What is cut off in the middle of an event is left out. */
export async function* readEventStream(
	body: ReadableStream<Uint8Array>,
): AsyncGenerator<ReceivedEvent | SignOfLife> {
	let rest = "";
	let lastEventId = "";
	let event = "";
	let data: string[] = [];
	const decoder = new TextDecoder();
	const reader = body.getReader();
	try {
		for (;;) {
			const { done, value } = await reader.read();
			if (done) return;
			rest += decoder.decode(value, { stream: true });
			const lines = rest.split(/\r\n|\n|\r(?!$)/);
			rest = lines.pop() ?? "";
			for (const line of lines) {
				if (line === "") {
					yield data.length > 0
						? {
								event: event || "message",
								data: data.join("\n"),
								lastEventId,
							}
						: { event: undefined, lastEventId };
					event = "";
					data = [];
					continue;
				}
				const [, field = "", text = ""] =
					/^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
				if (field === "event") event = text;
				else if (field === "data") data.push(text);
				else if (field === "id" && !text.includes("\0")) lastEventId = text;
			}
		}
	} finally {
		await reader.cancel().catch(() => {});
	}
}
