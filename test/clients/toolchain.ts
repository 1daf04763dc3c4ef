/**
 * What the clients need on this machine: Python with the cloud SDK, Java with the
 * device SDK, a firmware image. Fetched once into a cache outside version control,
 * through each tool's own configuration; missing tools come from Debian's packages.
 */
import { type ExecFileOptions, execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";

const here = import.meta.dirname;
const cacheDir = join(here, "../../node_modules/.cache/otaru-clients");
const execute = promisify(execFile);

/** A client could not even start: the message says what is missing and why. */
export class NotRun extends Error {
	override name = "NotRun";
}

/** Where Python lies that can import the cloud SDK, in the versions of requirements.txt. */
export const preparePython = shared(async () => ({
	python: join(
		await pythonWith(
			"requirements.txt",
			"cloud-sdk",
			"pip could not fetch the cloud SDK for Python",
		),
		"bin/python",
	),
}));

/** The fuzzer that makes calls from an API's description. */
export const prepareFuzzer = shared(async () => ({
	schemathesis: join(
		await pythonWith(
			"requirements-fuzz.txt",
			"fuzzer",
			"pip could not fetch the fuzzer",
		),
		"bin/schemathesis",
	),
}));

/** @returns the directory of a Python that has what the file lists. */
async function pythonWith(
	file: string,
	name: string,
	otherwise: string,
): Promise<string> {
	await needDebianPackage("python3-venv", "python3", [
		"-c",
		"import ensurepip, venv",
	]);
	const requirements = join(here, file);
	const version = await run("python3", ["--version"]);
	const inputs = [version, await readFile(requirements, "utf8")];
	return cached(name, inputs, async (dir) => {
		await run("python3", ["-m", "venv", dir]);
		await run(join(dir, "bin/python"), [
			..."-m pip install --quiet --no-input --disable-pip-version-check".split(
				" ",
			),
			...["--requirement", requirements],
		]).catch(notRun(otherwise));
	});
}

/** The class path with the device SDK and what we compiled on it: a device and a gateway. */
export const prepareJava = shared(async () => {
	await needDebianPackage("default-jdk-headless", "javac", ["-version"]);
	const pom = join(here, "device/pom.xml");
	const sources = ["UpgradingDevice", "UpgradingGateway"].map((name) =>
		join(here, "device", `${name}.java`),
	);
	const version = await run("java", ["-version"]);
	const inputs = await Promise.all(
		[pom, ...sources].map((f) => readFile(f, "utf8")),
	);
	const dir = await cached("device-sdk", [version, ...inputs], async (dir) => {
		await needDebianPackage("maven", "mvn", ["--version"]);
		await run("mvn", [
			...["--batch-mode", "--quiet", "-Dstyle.color=never", "--file", pom],
			"dependency:copy-dependencies",
			...["-DincludeScope=runtime", `-DoutputDirectory=${join(dir, "lib")}`],
		]).catch(notRun("Maven could not fetch the device SDK for Java"));
		await run("javac", [
			...["--class-path", join(dir, "lib/*"), "-d", join(dir, "classes")],
			...sources,
		]);
	});
	return {
		classPath: [join(dir, "classes"), join(dir, "lib/*")].join(delimiter),
	};
});

/** A real image as a maker would ship it: Debian's U-Boot for an ARM board, about 1 MB. */
export const prepareFirmware = shared(async () => {
	const dir = await cached("firmware", [], async (dir) => {
		await needTool("apt-get", "the firmware image is a Debian package");
		await debian(async () => {
			await updatePackageLists();
			await run("apt-get", ["--quiet", "download", "u-boot-qemu"], {
				cwd: dir,
			});
		}).catch(notRun("apt-get could not fetch the firmware image"));
		await run("sh", ["-c", "dpkg-deb --extract u-boot-qemu_*.deb ."], {
			cwd: dir,
		});
	});
	return { image: join(dir, "usr/lib/u-boot/qemu_arm64/u-boot.bin") };
});

/** All who ask get the outcome of one attempt. */
function shared<T>(prepare: () => Promise<T>): () => Promise<T> {
	let attempt: Promise<T> | undefined;
	return () => {
		attempt ??= prepare();
		return attempt;
	};
}

/**
 * A directory in the cache whose name carries a hash of what it was made from. One
 * that was not finished is made anew.
 */
async function cached(
	name: string,
	inputs: string[],
	make: (dir: string) => Promise<void>,
): Promise<string> {
	const hash = createHash("sha256").update(JSON.stringify(inputs));
	const dir = join(cacheDir, `${name}-${hash.digest("hex").slice(0, 12)}`);
	const complete = join(dir, ".complete");
	if (!existsSync(complete)) {
		await rm(dir, { recursive: true, force: true });
		await mkdir(dir, { recursive: true });
		await make(dir);
		await writeFile(complete, "");
	}
	return dir;
}

/** Installs a Debian package unless the tool it brings already answers. */
async function needDebianPackage(
	packageName: string,
	tool: string,
	probe: string[],
): Promise<void> {
	const works = () =>
		run(tool, probe).then(
			() => true,
			() => false,
		);
	if (await works()) return;
	await needTool("apt-get", `${packageName} is missing`);
	if (process.getuid?.() !== 0) {
		throw new NotRun(
			`${packageName} is missing, and only root can install it: apt-get install ${packageName}`,
		);
	}
	await debian(async () => {
		await updatePackageLists();
		await run(
			"apt-get",
			[
				..."--quiet --yes --no-install-recommends install".split(" "),
				packageName,
			],
			{ env: { ...process.env, DEBIAN_FRONTEND: "noninteractive" } },
		);
	}).catch(notRun(`apt-get could not install ${packageName}`));
	if (!(await works())) {
		throw new NotRun(`${packageName} is installed, but ${tool} does not work`);
	}
}

async function needTool(tool: string, why: string): Promise<void> {
	await run(tool, ["--version"]).catch(
		notRun(`${why}, and ${tool} is not there to fetch it`),
	);
}

/** apt-get runs one at a time: its lock refuses a second one. */
let aptQueue: Promise<unknown> = Promise.resolve();
function debian<T>(work: () => Promise<T>): Promise<T> {
	const result = aptQueue.then(work);
	aptQueue = result.catch(() => undefined);
	return result;
}

let listsUpdated = false;
/** Once a run, and only as root: others use the lists that are there. */
async function updatePackageLists(): Promise<void> {
	if (listsUpdated || process.getuid?.() !== 0) return;
	await run("apt-get", ["--quiet", "update"]);
	listsUpdated = true;
}

/**
 * Runs a tool to its end, within three minutes.
 * @returns what it printed, standard output first.
 * @throws Error with the end of what it printed.
 */
async function run(
	tool: string,
	args: string[],
	options: ExecFileOptions = {},
): Promise<string> {
	try {
		const { stdout, stderr } = await execute(tool, args, {
			timeout: 180_000,
			maxBuffer: 1 << 26,
			...options,
			encoding: "utf8",
		});
		return stdout + stderr;
	} catch (error) {
		const failure = error as Error & { stdout?: string; stderr?: string };
		const said = `${failure.stdout ?? ""}${failure.stderr ?? ""}`.trim();
		const end = said.split("\n").slice(-8).join("\n");
		throw new Error(`${tool}: ${end || failure.message}`, { cause: error });
	}
}

function notRun(what: string): (cause: Error) => never {
	return (cause) => {
		throw cause instanceof NotRun
			? cause
			: new NotRun(`${what}: ${cause.message}`, { cause });
	};
}
