import com.huaweicloud.sdk.iot.device.IoTDevice;
import com.huaweicloud.sdk.iot.device.ota.OTAListener;
import com.huaweicloud.sdk.iot.device.ota.OTAPackage;
import com.huaweicloud.sdk.iot.device.ota.OTAPackageV2;
import com.huaweicloud.sdk.iot.device.ota.OTAQueryInfo;
import com.huaweicloud.sdk.iot.device.ota.OTAService;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.security.DigestOutputStream;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.HexFormat;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/**
 * A device on the vendor's own Java device SDK that lets itself be upgraded once.
 *
 * <p>Signs in over TLS with its secret, answers version queries, takes a firmware notice in either form,
 * fetches the image over HTTPS trusting only the given authority, checks size and SHA-256, moves the image
 * into place and reports: first the finished download, still with the old version, then the new version.
 *
 * <p>It prints "installed VERSION SHA256 FORM" and stays connected until its standard input ends, as a real
 * device would stay; then it exits with 0. With another status when anything went wrong.
 */
public final class UpgradingDevice implements OTAListener {
	private final OTAService ota;
	private final HttpClient http;
	private final Path image;
	private final CompletableFuture<String> installed = new CompletableFuture<>();
	private volatile String version;

	private UpgradingDevice(IoTDevice device, HttpClient http, Path image, String version) {
		this.ota = device.getOtaService();
		this.http = http;
		this.image = image;
		this.version = version;
		ota.setOtaListener(this);
	}

	@Override
	public void onQueryVersion(OTAQueryInfo query) {
		ota.reportVersion(version);
	}

	/** The form with a token: the package lies with the platform. */
	@Override
	public void onNewPackage(OTAPackage notice) {
		upgrade(notice, notice.getToken());
	}

	/** The form with a signed address: the package lies in object storage. */
	@Override
	public void onNewPackageV2(OTAPackageV2 notice) {
		upgrade(notice, null);
	}

	private void upgrade(OTAPackageV2 notice, String token) {
		int fault = OTAService.OTA_CODE_DOWNLOAD_TIMEOUT;
		try {
			Path part = image.resolveSibling(image.getFileName() + ".part");
			String digest = download(notice.getUrl(), token, part);
			fault = OTAService.OTA_CODE_CHECK_FAIL;
			if (Files.size(part) != notice.getFileSize()) {
				throw new IOException("announced " + notice.getFileSize() + " bytes, got " + Files.size(part));
			}
			if (!digest.equalsIgnoreCase(notice.getSign())) {
				throw new IOException("announced SHA-256 " + notice.getSign() + ", got " + digest);
			}
			ota.reportOtaStatus(OTAService.OTA_CODE_SUCCESS, 100, version, null);
			fault = OTAService.OTA_CODE_INSTALL_FAIL;
			Files.move(part, image, StandardCopyOption.ATOMIC_MOVE);
			version = notice.getVersion();
			ota.reportOtaStatus(OTAService.OTA_CODE_SUCCESS, 100, version, "upgrade success");
			installed.complete("installed " + version + " " + digest + " " + (token == null ? "presigned" : "token"));
		} catch (IOException | InterruptedException | RuntimeException failure) {
			ota.reportOtaStatus(fault, 0, version, failure.toString());
			installed.completeExceptionally(failure);
		}
	}

	/** @return the SHA-256 of what was stored, lower-case hex */
	private String download(String url, String token, Path target) throws IOException, InterruptedException {
		HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url)).timeout(Duration.ofSeconds(30));
		if (token != null) {
			request.header("Authorization", "Bearer " + token);
		}
		HttpResponse<InputStream> answer = http.send(request.build(), HttpResponse.BodyHandlers.ofInputStream());
		try (InputStream body = answer.body();
				DigestOutputStream file = new DigestOutputStream(Files.newOutputStream(target), sha256())) {
			if (answer.statusCode() != 200) {
				throw new IOException("download answered " + answer.statusCode());
			}
			body.transferTo(file);
			return HexFormat.of().formatHex(file.getMessageDigest().digest());
		}
	}

	private static MessageDigest sha256() {
		try {
			return MessageDigest.getInstance("SHA-256");
		} catch (java.security.NoSuchAlgorithmException impossible) {
			throw new IllegalStateException(impossible);
		}
	}

	/** Trusts the given authority and nothing else, and checks the host's name against the certificate. */
	static HttpClient httpsTrusting(File authority) throws Exception {
		KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
		trusted.load(null, null);
		try (InputStream pem = Files.newInputStream(authority.toPath())) {
			trusted.setCertificateEntry("authority", CertificateFactory.getInstance("X.509").generateCertificate(pem));
		}
		TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
		trust.init(trusted);
		SSLContext tls = SSLContext.getInstance("TLS");
		tls.init(null, trust.getTrustManagers(), null);
		return HttpClient.newBuilder().sslContext(tls).connectTimeout(Duration.ofSeconds(10)).build();
	}

	static String variable(String name) {
		String value = System.getenv(name);
		if (value == null || value.isEmpty()) {
			throw new IllegalArgumentException(name + " is not set");
		}
		return value;
	}

	public static void main(String[] arguments) {
		int status = 1;
		try {
			File authority = new File(variable("DEVICE_CA_FILE"));
			IoTDevice device = new IoTDevice(
					variable("DEVICE_SERVER"), variable("DEVICE_ID"), variable("DEVICE_SECRET"), authority);
			UpgradingDevice upgrading = new UpgradingDevice(
					device, httpsTrusting(authority), Path.of(variable("DEVICE_IMAGE")), variable("DEVICE_VERSION"));
			if (device.init() != 0) {
				throw new IOException("no connection to " + variable("DEVICE_SERVER"));
			}
			System.out.println(upgrading.installed.get(60, TimeUnit.SECONDS));
			while (System.in.read() != -1) {
				// Whoever started the device ends it by closing its input.
			}
			device.getClient().close();
			status = 0;
		} catch (Exception failure) {
			failure.printStackTrace();
		}
		// The SDK's threads would keep the process alive.
		System.exit(status);
	}
}
