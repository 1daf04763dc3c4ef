/**
 * Programs that make a call, complete and as they would be run: for the vendor's calls
 * with the vendor's SDKs, for Otaru's own with what each language brings along. Who
 * calls, and which server, comes from the environment.
 */
import type { Operation, Parameter } from "./openapi.ts";
import { sdkModels, sdkOperations } from "./sdk-models.ts";

export interface CodeSample {
	lang: string;
	label: string;
	source: string;
}

export function codeSamples(operation: Operation): CodeSample[] {
	const sample = (lang: string, label: string, source: string) => ({
		lang,
		label,
		source,
	});
	const curl = sample("Shell", "curl", curlSample(operation));
	if (operation.operationId in sdkOperations)
		return [
			sample("Python", "Python SDK", pythonSdkSample(operation)),
			sample("Java", "Java SDK", javaSdkSample(operation)),
			sample("Go", "Go SDK", goSdkSample(operation)),
			sample("JavaScript", "Node.js SDK", nodeSdkSample(operation)),
			curl,
		];
	return [
		curl,
		sample("Python", "Python (requests)", pythonSample(operation)),
		sample("JavaScript", "Node.js (fetch)", nodeSample(operation)),
	];
}

// --- common ---------------------------------------------------------------------

/** What the samples set: the required parameters and those that have an example. */
function given(operation: Operation): Parameter[] {
	return operation.parameters.filter(
		({ name, in: place, example }) =>
			name !== "project_id" && place !== "header" && example !== undefined,
	);
}

function inQuery(operation: Operation): Parameter[] {
	return given(operation).filter((parameter) => parameter.in === "query");
}

/** The path with the example's values; the project is what `project` says. */
function filledPath(operation: Operation, project: string): string {
	return operation.path.replace(/\{(\w+)\}/g, (_, name: string) => {
		if (name === "project_id") return project;
		const value = given(operation).find((one) => one.name === name)?.example;
		return String(value).split("/").map(encodeURIComponent).join("/");
	});
}

function queryText(operation: Operation): string {
	const pairs = inQuery(operation).map(
		({ name, example }) =>
			`${encodeURIComponent(name)}=${encodeURIComponent(String(example))}`,
	);
	return pairs.length === 0 ? "" : `?${pairs.join("&")}`;
}

function camelCase(name: string): string {
	return name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase());
}

function pascalCase(name: string): string {
	const camel = camelCase(name);
	return camel.slice(0, 1).toUpperCase() + camel.slice(1);
}

function snakeCase(name: string): string {
	return name
		.replace(/([A-Z])/g, "_$1")
		.toLowerCase()
		.replace(/^_/, "");
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Lines within brackets, each with a comma after it; nothing within stays on one line. */
function block(
	open: string,
	items: readonly string[],
	close: string,
	step: string,
): string {
	if (items.length === 0) return open + close;
	const inner = items.map((item) => `${indented(item, step)},`).join("\n");
	return `${open}\n${inner}\n${close}`;
}

function indented(text: string, step: string): string {
	return text.replace(/^(?=.)/gm, step);
}

/** Of a field of a model: `[]ServiceProperty` is a list of a class. */
function classOf(type: string): string | undefined {
	const name = type.replace("[]", "").replace("?", "");
	return name in sdkModels ? name : undefined;
}

function typesOf(className: string): Readonly<Record<string, string>> {
	const model = sdkModels[className];
	if (!model) throw new Error(`The SDKs have no class ${className}.`);
	return model;
}

function bodyClassOf({ operationId, body }: Operation): string | undefined {
	return body === undefined
		? undefined
		: (sdkOperations[operationId] ?? undefined);
}

/** Every class that the body's value is made of, outermost first. */
function classesIn(value: unknown, className: string): string[] {
	const found = new Set([className]);
	for (const [field, inner] of Object.entries(value as object)) {
		const innerClass = classOf(typesOf(className)[field] ?? "");
		if (!innerClass) continue;
		for (const one of [inner].flat())
			for (const name of classesIn(one, innerClass)) found.add(name);
	}
	return [...found];
}

// --- curl -------------------------------------------------------------------------

function curlSample(operation: Operation): string {
	const { method, body, bodyType, answer } = operation;
	const address = `"$OTARU_ENDPOINT${filledPath(operation, "$OTARU_PROJECT_ID")}${queryText(operation)}"`;
	const options = [
		method === "HEAD" ? "--head" : `--request ${method}`,
		...(operation.open ? [] : ['--header "X-Auth-Token: $OTARU_TOKEN"']),
		...(operation.operationId === "KeystoneValidateToken"
			? ['--header "X-Subject-Token: $OTARU_TOKEN"']
			: []),
	];
	if (body !== undefined) {
		const text =
			bodyType === undefined ? JSON.stringify(body, null, 2) : String(body);
		options.push(`--header "Content-Type: ${bodyType ?? "application/json"}"`);
		options.push(`--data-binary '${text.replaceAll("'", "'\\''")}'`);
	}
	const fail =
		operation.operationId === "KeystoneCreateUserTokenByPassword"
			? "--fail-with-body --silent --show-error --include"
			: `--fail-with-body --silent --show-error${answer === "stream" ? " --no-buffer" : ""}`;
	return `curl ${[fail, ...options, address].join(" \\\n  ")}\n`;
}

// --- Python -----------------------------------------------------------------------

function pythonValue(value: unknown): string {
	if (value === null) return "None";
	if (value === true) return "True";
	if (value === false) return "False";
	if (Array.isArray(value))
		return block("[", value.map(pythonValue), "]", "    ");
	if (isRecord(value))
		return block(
			"{",
			Object.entries(value).map(
				([key, inner]) => `${JSON.stringify(key)}: ${pythonValue(inner)}`,
			),
			"}",
			"    ",
		);
	return JSON.stringify(value);
}

function pythonModel(value: unknown, className: string): string {
	const types = typesOf(className);
	return block(
		`${className}(`,
		Object.entries(value as object).map(([field, inner]) => {
			const innerClass = classOf(types[field] ?? "");
			return `${field}=${
				innerClass === undefined
					? pythonValue(inner)
					: Array.isArray(inner)
						? block(
								"[",
								inner.map((one) => pythonModel(one, innerClass)),
								"]",
								"    ",
							)
						: pythonModel(inner, innerClass)
			}`;
		}),
		")",
		"    ",
	);
}

function pythonSdkSample(operation: Operation): string {
	const { operationId, body } = operation;
	const bodyClass = bodyClassOf(operation);
	const names = [
		"IoTDAClient",
		`${operationId}Request`,
		...(bodyClass === undefined ? [] : classesIn(body, bodyClass)),
	].sort();
	const fields = given(operation).map(
		({ name, example }) => `${name}=${pythonValue(example)}`,
	);
	if (bodyClass !== undefined)
		fields.push(`body=${pythonModel(body, bodyClass)}`);
	return `import os

from huaweicloudsdkcore.auth.credentials import BasicCredentials
from huaweicloudsdkiotda.v5 import (
${names.map((name) => `    ${name},\n`).join("")})

credentials = BasicCredentials(
    os.environ["HUAWEICLOUD_SDK_AK"],
    os.environ["HUAWEICLOUD_SDK_SK"],
    os.environ["OTARU_PROJECT_ID"],
)
client = (
    IoTDAClient.new_builder()
    .with_credentials(credentials)
    .with_endpoint(os.environ["OTARU_ENDPOINT"])
    .build()
)
request = ${block(`${operationId}Request(`, fields, ")", "    ")}
print(client.${snakeCase(operationId)}(request))
`;
}

function pythonSample(operation: Operation): string {
	const { method, body, bodyType, answer, open, operationId } = operation;
	const needsProject = operation.path.includes("{project_id}");
	const address = `os.environ["OTARU_ENDPOINT"] + ${needsProject ? "f" : ""}"${filledPath(operation, "{project_id}")}"`;
	const query = inQuery(operation);
	const headers = [
		...(open ? [] : ['"X-Auth-Token": os.environ["OTARU_TOKEN"]']),
		...(operationId === "KeystoneValidateToken"
			? ['"X-Subject-Token": os.environ["OTARU_TOKEN"]']
			: []),
		...(bodyType === undefined ? [] : [`"Content-Type": "${bodyType}"`]),
	];
	const options = [
		`"${method}"`,
		address,
		...(headers.length === 0
			? []
			: [`headers=${block("{", headers, "}", "    ")}`]),
		...(query.length === 0
			? []
			: [
					`params=${pythonValue(
						Object.fromEntries(
							query.map(({ name, example }) => [
								name,
								typeof example === "boolean" ? String(example) : example,
							]),
						),
					)}`,
				]),
		...(body === undefined
			? []
			: [
					bodyType === undefined
						? `json=${pythonValue(body)}`
						: `data=${JSON.stringify(body)}.encode()`,
				]),
		...(answer === "stream" ? ["stream=True"] : []),
		`timeout=${answer === "stream" ? "60" : "30"}`,
	];
	const print =
		operationId === "KeystoneCreateUserTokenByPassword"
			? 'print(response.headers["X-Subject-Token"])\nprint(response.json())'
			: answer === "stream"
				? "for line in response.iter_lines(decode_unicode=True):\n    print(line)"
				: answer === "json"
					? "print(response.json())"
					: answer === "file"
						? "print(response.text)"
						: method === "HEAD"
							? "print(response.headers)"
							: "print(response.status_code)";
	return `import os

import requests

${needsProject ? 'project_id = os.environ["OTARU_PROJECT_ID"]\n' : ""}response = ${block("requests.request(", options, ")", "    ")}
response.raise_for_status()
${print}
`;
}

// --- Java -------------------------------------------------------------------------

function javaValue(value: unknown, type: string): string {
	const innerClass = classOf(type);
	if (Array.isArray(value))
		return value.length === 0
			? "new ArrayList<>()"
			: `Arrays.asList(\n${value
					.map((one) =>
						indented(javaValue(one, type.replace("[]", "")), "    "),
					)
					.join(",\n")}\n)`;
	if (innerClass !== undefined) return javaModel(value, innerClass);
	if (isRecord(value)) {
		const puts = Object.entries(value).map(
			([key, inner]) =>
				`put(${JSON.stringify(key)}, ${javaValue(inner, "any")});`,
		);
		return `new HashMap<String, Object>() {{\n${puts.map((put) => indented(put, "    ")).join("\n")}\n}}`;
	}
	return type.startsWith("float64")
		? Number(value).toFixed(1)
		: JSON.stringify(value);
}

function javaModel(value: unknown, className: string): string {
	const types = typesOf(className);
	return `new ${className}()${Object.entries(value as object)
		.map(([field, inner]) =>
			indented(
				`\n.with${pascalCase(field)}(${javaValue(inner, types[field] ?? "any")})`,
				"    ",
			),
		)
		.join("")}`;
}

function javaSdkSample(operation: Operation): string {
	const { operationId, body } = operation;
	const bodyClass = bodyClassOf(operation);
	const setters = given(operation).map(
		({ name, example }) =>
			`\n.with${pascalCase(name)}(${javaValue(example, "any")})`,
	);
	if (bodyClass !== undefined)
		setters.push(`\n.withBody(${javaModel(body, bodyClass)})`);
	const request = `${operationId}Request request = new ${operationId}Request()${setters
		.map((setter) => indented(setter, "    "))
		.join("")};`;
	const models = [
		`${operationId}Request`,
		...(bodyClass === undefined ? [] : classesIn(body, bodyClass)),
	].sort();
	const utilities = ["ArrayList", "Arrays", "HashMap"].filter((name) =>
		new RegExp(`\\b${name}\\b`).test(request),
	);
	return `import com.huaweicloud.sdk.core.auth.BasicCredentials;
import com.huaweicloud.sdk.iotda.v5.IoTDAClient;
${models.map((name) => `import com.huaweicloud.sdk.iotda.v5.model.${name};\n`).join("")}${utilities.map((name) => `import java.util.${name};\n`).join("")}
public class ${operationId}Sample {
    public static void main(String[] args) {
        BasicCredentials credentials = new BasicCredentials()
            .withAk(System.getenv("HUAWEICLOUD_SDK_AK"))
            .withSk(System.getenv("HUAWEICLOUD_SDK_SK"))
            .withProjectId(System.getenv("OTARU_PROJECT_ID"));
        IoTDAClient client = IoTDAClient.newBuilder()
            .withCredential(credentials)
            .withEndpoint(System.getenv("OTARU_ENDPOINT"))
            .build();
${indented(request, "        ")}
        System.out.println(client.${operationId.slice(0, 1).toLowerCase()}${operationId.slice(1)}(request));
    }
}
`;
}

// --- Go ---------------------------------------------------------------------------

function goName(className: string): string {
	return className.replace(/DTO$/, "Dto");
}

/** Of anything, as it stands in a map. */
function goAny(value: unknown): string {
	if (Array.isArray(value)) return block("[]any{", value.map(goAny), "}", "\t");
	if (isRecord(value))
		return block(
			"map[string]any{",
			Object.entries(value).map(
				([key, inner]) => `${JSON.stringify(key)}: ${goAny(inner)}`,
			),
			"}",
			"\t",
		);
	return JSON.stringify(value);
}

function goValue(value: unknown, type: string): string {
	if (type === "any") return `pointer[any](${goAny(value)})`;
	if (type === "map") return goAny(value);
	const bare = type.replace("[]", "").replace("?", "");
	const innerClass = classOf(type);
	if (type.startsWith("[]")) {
		const items = (value as unknown[]).map((one) =>
			innerClass === undefined
				? JSON.stringify(one)
				: goModel(one, innerClass).replace(/^&model\.\w+/, ""),
		);
		const list = block(
			`[]${innerClass === undefined ? bare : `model.${goName(bare)}`}{`,
			items,
			"}",
			"\t",
		);
		return type.endsWith("?") ? `&${list}` : list;
	}
	if (innerClass !== undefined) return goModel(value, innerClass);
	return type.endsWith("?")
		? `pointer[${bare}](${JSON.stringify(value)})`
		: JSON.stringify(value);
}

function goModel(value: unknown, className: string): string {
	const types = typesOf(className);
	return block(
		`&model.${goName(className)}{`,
		Object.entries(value as object).map(
			([field, inner]) =>
				`${pascalCase(field)}: ${goValue(inner, types[field] ?? "any")}`,
		),
		"}",
		"\t",
	);
}

function goTypeOf({ required, schema }: Parameter): string {
	const type =
		schema.type === "integer"
			? "int32"
			: schema.type === "boolean"
				? "bool"
				: "string";
	return required ? type : `${type}?`;
}

function goSdkSample(operation: Operation): string {
	const { operationId, body } = operation;
	const bodyClass = bodyClassOf(operation);
	const fields = given(operation).map(
		(parameter) =>
			`${pascalCase(parameter.name)}: ${goValue(parameter.example, goTypeOf(parameter))}`,
	);
	if (bodyClass !== undefined) fields.push(`Body: ${goModel(body, bodyClass)}`);
	const request = block(`&model.${operationId}Request{`, fields, "}", "\t");
	const helper = request.includes("pointer[")
		? "func pointer[T any](value T) *T { return &value }\n\n"
		: "";
	return `package main

import (
	"fmt"
	"log"
	"os"

	"github.com/huaweicloud/huaweicloud-sdk-go-v3/core/auth/basic"
	iotda "github.com/huaweicloud/huaweicloud-sdk-go-v3/services/iotda/v5"
	"github.com/huaweicloud/huaweicloud-sdk-go-v3/services/iotda/v5/model"
)

${helper}func main() {
	credentials, err := basic.NewCredentialsBuilder().
		WithAk(os.Getenv("HUAWEICLOUD_SDK_AK")).
		WithSk(os.Getenv("HUAWEICLOUD_SDK_SK")).
		WithProjectId(os.Getenv("OTARU_PROJECT_ID")).
		SafeBuild()
	if err != nil {
		log.Fatal(err)
	}
	http, err := iotda.IoTDAClientBuilder().
		WithEndpoints([]string{os.Getenv("OTARU_ENDPOINT")}).
		WithCredential(credentials).
		SafeBuild()
	if err != nil {
		log.Fatal(err)
	}
	response, err := iotda.NewIoTDAClient(http).${operationId}(${indented(request, "\t").trimStart()})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(response)
}
`;
}

// --- Node.js ----------------------------------------------------------------------

function nodeValue(value: unknown): string {
	if (Array.isArray(value)) return block("[", value.map(nodeValue), "]", "  ");
	if (isRecord(value))
		return block(
			"{",
			Object.entries(value).map(
				([key, inner]) =>
					`${/^[A-Za-z_]\w*$/.test(key) ? key : JSON.stringify(key)}: ${nodeValue(inner)}`,
			),
			"}",
			"  ",
		);
	return JSON.stringify(value);
}

function nodeModel(value: unknown, className: string): string {
	const types = typesOf(className);
	return `new iotda.${className}()${Object.entries(value as object)
		.map(([field, inner]) => {
			const innerClass = classOf(types[field] ?? "");
			const text =
				innerClass === undefined
					? nodeValue(inner)
					: Array.isArray(inner)
						? block(
								"[",
								inner.map((one) => nodeModel(one, innerClass)),
								"]",
								"  ",
							)
						: nodeModel(inner, innerClass);
			return indented(`\n.with${pascalCase(field)}(${text})`, "  ");
		})
		.join("")}`;
}

function nodeSdkSample(operation: Operation): string {
	const { operationId, body } = operation;
	const bodyClass = bodyClassOf(operation);
	const setters = given(operation).map(
		({ name, example }) => `\n.with${pascalCase(name)}(${nodeValue(example)})`,
	);
	if (bodyClass !== undefined)
		setters.push(`\n.withBody(${nodeModel(body, bodyClass)})`);
	return `const core = require("@huaweicloud/huaweicloud-sdk-core");
const iotda = require("@huaweicloud/huaweicloud-sdk-iotda/v5/public-api");

const credentials = new core.BasicCredentials()
  .withAk(process.env.HUAWEICLOUD_SDK_AK)
  .withSk(process.env.HUAWEICLOUD_SDK_SK)
  .withProjectId(process.env.OTARU_PROJECT_ID);
const client = iotda.IoTDAClient.newBuilder()
  .withCredential(credentials)
  .withEndpoint(process.env.OTARU_ENDPOINT)
  .build();
const request = new iotda.${operationId}Request()${setters
		.map((setter) => indented(setter, "  "))
		.join("")};
client.${operationId.slice(0, 1).toLowerCase()}${operationId.slice(1)}(request).then(console.log, (error) => {
  console.error(error);
  process.exitCode = 1;
});
`;
}

function nodeSample(operation: Operation): string {
	const { method, body, bodyType, answer, open, operationId } = operation;
	const project = ["$", "{process.env.OTARU_PROJECT_ID}"].join("");
	const endpoint = ["$", "{process.env.OTARU_ENDPOINT}"].join("");
	const address = `\`${endpoint}${filledPath(operation, project)}${queryText(operation)}\``;
	const headers = [
		...(open ? [] : ['"X-Auth-Token": process.env.OTARU_TOKEN']),
		...(operationId === "KeystoneValidateToken"
			? ['"X-Subject-Token": process.env.OTARU_TOKEN']
			: []),
		...(body === undefined
			? []
			: [`"Content-Type": "${bodyType ?? "application/json"}"`]),
	];
	const options = [
		`method: "${method}"`,
		...(headers.length === 0
			? []
			: [`headers: ${block("{", headers, "}", "  ")}`]),
		...(body === undefined
			? []
			: [
					bodyType === undefined
						? `body: JSON.stringify(${nodeValue(body)})`
						: `body: ${JSON.stringify(body)}`,
				]),
	];
	const print =
		operationId === "KeystoneCreateUserTokenByPassword"
			? 'console.log(response.headers.get("x-subject-token"));\nconsole.log(await response.json());'
			: answer === "stream"
				? "for await (const piece of response.body.pipeThrough(new TextDecoderStream()))\n  console.log(piece);"
				: answer === "json"
					? "console.log(await response.json());"
					: answer === "file"
						? "console.log(await response.text());"
						: method === "HEAD"
							? "console.log(response.headers);"
							: "console.log(response.status);";
	return `const response = await fetch(${address}, ${block("{", options, "}", "  ")});
if (!response.ok) throw new Error(\`\${response.status} \${await response.text()}\`);
${print}
`;
}
