/** Which topics are a device's own, and which filters it may subscribe to. */

const DEVICES = "$oc/devices/";
/** The vendor's longest own topic stays far below; characters. */
const TOPIC_LIMIT = 1024;
/** The vendor's texts say 50 and 100; the more generous one harms nobody. */
const SUBSCRIPTION_LIMIT = 100;

/** A name that may be published on: no wildcard, of bearable length; may be empty, for an alias. */
export function isTopicName(topic: string): boolean {
	return topic.length <= TOPIC_LIMIT && !/[+#]/.test(topic);
}

/** Whether it is this device's, another device's, or of a kind this server does not know. */
export function ownerOf(
	topic: string,
	deviceId: string,
): "own" | "foreign" | "unknown" {
	if (!topic.startsWith(DEVICES)) return "unknown";
	return topic[DEVICES.length + deviceId.length] === "/" &&
		topic.startsWith(deviceId, DEVICES.length)
		? "own"
		: "foreign";
}

/**
 * Why a subscription is refused, as the reason code of MQTT 5.0 section 3.9.3;
 * undefined when it is granted.
 *
 * @param subscribed the filters of this session so far
 */
export function subscriptionFault(
	filter: string,
	deviceId: string,
	subscribed: ReadonlySet<string> | undefined,
): number | undefined {
	if (filter.startsWith("$share/")) return 0x9e;
	// A wildcard is a whole level, and # the last one.
	if (
		filter === "" ||
		filter.length > TOPIC_LIMIT ||
		/[^/][+#]|\+[^/]|#./.test(filter)
	)
		return 0x8f;
	if (ownerOf(filter, deviceId) !== "own") return 0x87;
	return subscribed &&
		subscribed.size >= SUBSCRIPTION_LIMIT &&
		!subscribed.has(filter)
		? 0x97
		: undefined;
}
