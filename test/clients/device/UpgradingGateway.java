import com.huaweicloud.sdk.iot.device.client.requests.Command;
import com.huaweicloud.sdk.iot.device.client.requests.DeviceEvent;
import com.huaweicloud.sdk.iot.device.client.requests.DeviceMessage;
import com.huaweicloud.sdk.iot.device.client.requests.PropsGet;
import com.huaweicloud.sdk.iot.device.client.requests.PropsSet;
import com.huaweicloud.sdk.iot.device.gateway.AbstractGateway;
import com.huaweicloud.sdk.iot.device.gateway.SubDevicesPersistence;
import com.huaweicloud.sdk.iot.device.gateway.requests.DeviceInfo;
import com.huaweicloud.sdk.iot.device.gateway.requests.SubDevicesInfo;
import com.huaweicloud.sdk.iot.device.ota.OTAPackageV2;
import com.huaweicloud.sdk.iot.device.ota.OTAService;
import com.huaweicloud.sdk.iot.device.utils.IotUtil;
import com.huaweicloud.sdk.iot.device.utils.JsonUtil;
import java.io.File;
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.MessageDigest;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/**
 * A gateway on the vendor's own Java device SDK that upgrades the devices behind it.
 *
 * <p>The SDK asks for the gateway's children when it connects, and keeps its list as the vendor's sample
 * does: what is not newer than what it has is refused. Each child is reported as there. A package that
 * children of a task share is fetched once.
 *
 * <p>It prints "children COUNT VERSION" whenever its list grows, "installed CHILD VERSION SHA256 TASK COUNT"
 * for each child, and "downloads COUNT" when its standard input ends; then it exits with 0.
 */
public final class UpgradingGateway extends AbstractGateway {
	private final HttpClient http;
	private final Map<String, String> versions = new ConcurrentHashMap<>();
	private final Map<String, String> digests = new HashMap<>();
	private final String firstVersion;
	/** One after the other: the second child of a task finds what the first has fetched. */
	private final ExecutorService work = Executors.newSingleThreadExecutor();
	private volatile int downloads;

	private UpgradingGateway(Children children, String firstVersion, File authority) throws Exception {
		super(
				children,
				UpgradingDevice.variable("DEVICE_SERVER"),
				UpgradingDevice.variable("DEVICE_ID"),
				UpgradingDevice.variable("DEVICE_SECRET"),
				authority);
		this.firstVersion = firstVersion;
		this.http = UpgradingDevice.httpsTrusting(authority);
		children.gateway = this;
	}

	/** What the gateway keeps of its children, by node id. */
	private static final class Children implements SubDevicesPersistence {
		private final Map<String, DeviceInfo> known = new ConcurrentHashMap<>();
		private volatile long version;
		private UpgradingGateway gateway;

		@Override
		public DeviceInfo getSubDevice(String nodeId) {
			return known.get(nodeId);
		}

		@Override
		public synchronized int addSubDevices(SubDevicesInfo added) {
			if (added.getVersion() <= version) {
				return -1;
			}
			version = added.getVersion();
			for (DeviceInfo child : added.getDevices()) {
				known.put(child.getNodeId(), child);
				gateway.reportSubDeviceStatus(child.getDeviceId(), "ONLINE", null);
			}
			System.out.println("children " + known.size() + " " + version);
			return 0;
		}

		@Override
		public synchronized int deleteSubDevices(SubDevicesInfo deleted) {
			if (deleted.getVersion() <= version) {
				return -1;
			}
			version = deleted.getVersion();
			for (DeviceInfo child : deleted.getDevices()) {
				known.remove(child.getNodeId());
			}
			System.out.println("children " + known.size() + " " + version);
			return 0;
		}

		@Override
		public long getVersion() {
			return version;
		}
	}

	@Override
	public void onSubdevEvent(String deviceId, DeviceEvent event) {
		if (!"$ota".equals(event.getServiceId()) || getDeviceId().equals(deviceId)) {
			return;
		}
		switch (event.getEventType()) {
			case "version_query":
				report(deviceId, "version_report", Map.of("fw_version", versionOf(deviceId)));
				break;
			case "firmware_upgrade_v2":
				OTAPackageV2 notice = JsonUtil.convertMap2Object(event.getParas(), OTAPackageV2.class);
				work.submit(() -> upgrade(deviceId, notice));
				break;
			default:
				System.err.println("not for a child: " + event);
		}
	}

	private String versionOf(String deviceId) {
		return versions.getOrDefault(deviceId, firstVersion);
	}

	private void upgrade(String deviceId, OTAPackageV2 notice) {
		try {
			String digest = digests.get(notice.getTaskId());
			if (digest == null) {
				digest = download(notice.getUrl());
				digests.put(notice.getTaskId(), digest);
			}
			if (!digest.equalsIgnoreCase(notice.getSign())) {
				throw new IOException("announced SHA-256 " + notice.getSign() + ", got " + digest);
			}
			progress(deviceId, OTAService.OTA_CODE_SUCCESS, 100, versionOf(deviceId));
			versions.put(deviceId, notice.getVersion());
			progress(deviceId, OTAService.OTA_CODE_SUCCESS, 100, notice.getVersion());
			System.out.println("installed " + deviceId + " " + notice.getVersion() + " " + digest + " "
					+ notice.getTaskId() + " " + notice.getSubDeviceCount());
		} catch (Exception failure) {
			failure.printStackTrace();
			progress(deviceId, OTAService.OTA_CODE_DOWNLOAD_TIMEOUT, 0, versionOf(deviceId));
		}
	}

	private void progress(String deviceId, int resultCode, int progress, String version) {
		report(deviceId, "upgrade_progress_report",
				Map.of("result_code", resultCode, "progress", progress, "version", version));
	}

	private void report(String deviceId, String eventType, Map<String, Object> paras) {
		DeviceEvent event = new DeviceEvent();
		event.setServiceId("$ota");
		event.setEventType(eventType);
		event.setEventTime(IotUtil.getTimeStamp());
		event.setParas(paras);
		getClient().reportEvent(deviceId, event, null);
	}

	private String download(String url) throws Exception {
		downloads++;
		HttpResponse<byte[]> answer =
				http.send(HttpRequest.newBuilder(URI.create(url)).build(), HttpResponse.BodyHandlers.ofByteArray());
		if (answer.statusCode() != 200) {
			throw new IOException("download answered " + answer.statusCode());
		}
		return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(answer.body()));
	}

	@Override
	public void onSubdevCommand(String requestId, Command command) {
		// An update server sends none.
	}

	@Override
	public void onSubdevPropertiesSet(String requestId, PropsSet properties) {
		// An update server sends none.
	}

	@Override
	public void onSubdevPropertiesGet(String requestId, PropsGet properties) {
		// An update server sends none.
	}

	@Override
	public void onSubdevMessage(DeviceMessage message) {
		// An update server sends none.
	}

	public static void main(String[] arguments) {
		int status = 1;
		try {
			UpgradingGateway gateway = new UpgradingGateway(
					new Children(),
					UpgradingDevice.variable("DEVICE_VERSION"),
					new File(UpgradingDevice.variable("DEVICE_CA_FILE")));
			if (gateway.init() != 0) {
				throw new IOException("no connection to " + UpgradingDevice.variable("DEVICE_SERVER"));
			}
			while (System.in.read() != -1) {
				// Whoever started the gateway ends it by closing its input.
			}
			System.out.println("downloads " + gateway.downloads);
			gateway.getClient().close();
			status = 0;
		} catch (Exception failure) {
			failure.printStackTrace();
		}
		// The SDK's threads would keep the process alive.
		System.exit(status);
	}
}
