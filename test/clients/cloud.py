"""What the programs on the vendor's cloud SDK share: its client, and what holds for every answer.

The SDK converts types silently while it reads, so each answer's JSON is also compared
with the types the model declares: the Java and Go SDKs refuse what Python forgives.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlparse

import requests
from huaweicloudsdkcore.auth.credentials import BasicCredentials, DerivedCredentials
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkcore.http.http_handler import HttpHandler
from huaweicloudsdkcore.region.region import Region
from huaweicloudsdkcore.sdk_request import SdkRequest
from huaweicloudsdkcore.signer.algorithm import SigningAlgorithm
from huaweicloudsdkiotda.v5 import IoTDAClient, model

GENERAL_TIME = re.compile(r"\d{8}T\d{6}Z")
MILLISECOND_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
# They succeed with 200, and there is nothing to say.
WITHOUT_ANSWER = {"create_or_delete_device_in_group", "tag_device", "untag_device"}


class Mismatch(Exception):
    """The server answered something else than the SDK's user may expect."""


def expect(what: str, actual: Any, wanted: Any) -> None:
    if actual != wanted or type(actual) is not type(wanted):
        raise Mismatch(f"{what}: wanted {wanted!r}, got {actual!r}")


def expect_match(what: str, actual: Any, pattern: "re.Pattern[str]") -> None:
    if not isinstance(actual, str) or not pattern.fullmatch(actual):
        raise Mismatch(f"{what}: wanted the form {pattern.pattern}, got {actual!r}")


def expect_fields(what: str, answer: Any, **fields: Any) -> None:
    for name, wanted in fields.items():
        expect(f"{what}.{name}", getattr(answer, name), wanted)


def expect_error(status: int, code: str, message: str, call: Callable[[], Any]) -> None:
    """The call is refused with this error, and the SDK finds the request id.

    After the sentence a server may say more about the case at hand.
    """
    try:
        call()
    except ClientRequestException as error:
        expect(f"status of {code}", error.status_code, status)
        expect("error_code", error.error_code, code)
        if error.error_msg != message and not error.error_msg.startswith(f"{message} "):
            raise Mismatch(f"error_msg: wanted {message!r}, got {error.error_msg!r}") from error
        if not error.request_id:
            raise Mismatch(f"{code} came without a request id") from error
        return
    raise Mismatch(f"wanted {status} {code}, but the call succeeded")


def fits(value: Any, declared: str, path: str) -> None:
    """Compares a JSON value with the type a model declares for it, all the way down."""
    listed = re.fullmatch(r"list\[(.*)\]", declared)
    mapped = re.fullmatch(r"dict\(str, (.*)\)", declared)
    if listed:
        if not isinstance(value, list):
            raise Mismatch(f"{path} should be a list, got {value!r}")
        for index, item in enumerate(value):
            fits(item, listed[1], f"{path}[{index}]")
    elif mapped:
        if not isinstance(value, dict):
            raise Mismatch(f"{path} should be an object, got {value!r}")
        for key, item in value.items():
            fits(item, mapped[1], f"{path}.{key}")
    elif declared == "object":
        if value is None:
            raise Mismatch(f"{path} is null")
    elif declared in ("str", "int", "bool"):
        if type(value).__name__ != declared:
            raise Mismatch(f"{path} should be {declared}, got {value!r}")
    else:
        if not isinstance(value, dict):
            raise Mismatch(f"{path} should be an object, got {value!r}")
        declaration = getattr(model, declared)
        for attribute, key in declaration.attribute_map.items():
            if key in value:
                fits(value[key], declaration.openapi_types[attribute], f"{path}.{key}")


class Cloud:
    """The SDK's client; every answer passes the checks that hold for all calls."""

    def __init__(self, client: IoTDAClient) -> None:
        self._client = client

    def call(self, operation: str, status: int, request: Any) -> Any:
        answer = getattr(self._client, operation)(request)
        expect(f"status of {operation}", answer.status_code, status)
        if status == 204 or operation in WITHOUT_ANSWER:
            expect(f"body of {operation}", answer.raw_content, b"")
        else:
            fits(json.loads(answer.raw_content), type(answer).__name__, operation)
        return answer


class Signatures:
    """Notes which signature each request carries, and how many there were."""

    def __init__(self, algorithm: str, region: str) -> None:
        self._start = f"{algorithm} "
        self._scope = f"/{region}/iotdm," if algorithm.startswith("V11") else ""
        self.count = 0

    def see(self, **sent: Any) -> None:
        authorization = sent["request"].header_params["Authorization"]
        if not authorization.startswith(self._start) or self._scope not in authorization:
            raise Mismatch(f"the SDK signed otherwise: {authorization.split(',')[0]}")
        self.count += 1


class OwnCalls:
    """Otaru's own calls, which the SDK has no methods for, signed by the SDK all the same.

    Its signer hashes a JSON body; for any other it says `UNSIGNED-PAYLOAD`.
    """

    def __init__(self, endpoint: str, credentials: BasicCredentials) -> None:
        self._address = urlparse(endpoint)
        self._credentials = credentials

    def put(self, path: str, content: bytes, content_type: str) -> None:
        request = SdkRequest(
            method="PUT",
            schema=self._address.scheme,
            host=self._address.netloc,
            resource_path=f"/otaru/v1/projects/{self._credentials.project_id}/{path}",
            query_params=[],
            body=content,
            header_params={"Content-Type": content_type},
            signing_algorithm=SigningAlgorithm.get_default(),
        )
        self._credentials.sign_request(request)
        unsigned = request.header_params.get("X-Sdk-Content-Sha256") == "UNSIGNED-PAYLOAD"
        expect(f"unsigned {content_type}", unsigned, content_type != "application/json")
        answer = requests.put(request.url, data=content, headers=request.header_params, timeout=30)
        if answer.status_code not in (200, 201):
            raise Mismatch(f"PUT {path}: {answer.status_code} {answer.text}")


def wait_for(what: str, seconds: float, look: Callable[[], Any | None]) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise Mismatch(f"{what} did not happen within {seconds:g} seconds")
        time.sleep(0.1)


class Server:
    """Where the server is and who signs, from seven variables of the environment.

    `OTARU_SIGNATURE` is `plain` or `derived`; the others name the server, the key pair,
    the project, the resource space and the region.
    """

    def __init__(self) -> None:
        def variable(name: str) -> str:
            return os.environ[f"OTARU_{name}"]

        self.endpoint = variable("ENDPOINT")
        self.secret_key = variable("SECRET_KEY")
        self.project_id = variable("PROJECT_ID")
        self.app_id = variable("APP_ID")
        self.region = variable("REGION")
        self.signature = variable("SIGNATURE")
        self._access_key = variable("ACCESS_KEY")
        self.algorithm = "V11-HMAC-SHA256" if self.signature == "derived" else "SDK-HMAC-SHA256"

    def credentials(self, secret_key: str, project_id: str) -> BasicCredentials:
        made = BasicCredentials(self._access_key, secret_key, project_id or None).with_iam_endpoint(
            self.endpoint
        )
        if self.signature == "derived":
            return made.with_derived_predicate(DerivedCredentials.get_default_derived_predicate())
        return made

    def owner(self) -> BasicCredentials:
        return self.credentials(self.secret_key, self.project_id)

    def client(self, who: BasicCredentials, signatures: Signatures) -> Cloud:
        return Cloud(
            IoTDAClient.new_builder()
            .with_credentials(who)
            .with_region(Region(self.region, self.endpoint))
            .with_http_handler(HttpHandler().add_request_handler(signatures.see))
            .build()
        )


def finish(main: Callable[[], None]) -> None:
    """Runs the program; what does not fit becomes its last words, and its exit status 1."""
    try:
        main()
    except Mismatch as mismatch:
        sys.exit(f"mismatch: {mismatch}")
