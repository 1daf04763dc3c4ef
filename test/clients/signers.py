"""Requests made by the signers of the cloud SDK, sent as they are: each must be accepted,
and refused with one byte changed in anything that is signed.

The SDK signs; the plain HTTP client of the standard library sends, which tidies nothing up.
`OTARU_TEST_SEED` makes the same requests again, `OTARU_TEST_REQUESTS` says how many.
"""

import json
import os
import random
import re
import string
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from threading import local
from typing import Any
from urllib.parse import quote, unquote, urlparse

from cloud import Mismatch, Server, Signatures, expect, finish
from huaweicloudsdkcore.auth.credentials import DerivedCredentials
from huaweicloudsdkcore.sdk_request import SdkRequest

# Failures that an access key has at an address before it must wait; a success ends them.
REFUSALS_IN_A_ROW = 6

ASCII = [chr(code) for code in range(128)]
ALPHANUMERIC = list(string.ascii_letters + string.digits)
# The order of the signs before the emoji and of the emoji differs between code units and code points.
FOREIGN = [*"固件升级模块你堠éàßñж한かﷺ！～", "🚗", "👩🏽‍🔧", "𠀀"]

# What a path has a route for comes before any question of who calls.
PATHS = [
    ("ota-upgrades/modules", "GET POST"),
    ("ota-upgrades/modules/{id}", "GET PUT DELETE"),
    ("ota-upgrades/packages", "GET POST"),
    ("ota-upgrades/packages/{id}", "GET DELETE"),
    ("batchtasks", "GET POST"),
    ("batchtasks/{id}", "GET DELETE"),
    ("products", "GET POST"),
    ("products/{id}", "GET PUT DELETE"),
    ("devices", "GET POST"),
    ("devices/{id}", "GET PUT DELETE"),
    ("device-group", "GET POST"),
    ("apps", "GET POST"),
    ("apps/{id}", "GET PUT DELETE"),
]


@dataclass
class Sent:
    method: str
    target: str
    # Each byte of a value as one character.
    headers: dict[str, str]
    body: bytes


@dataclass
class Altered:
    part: str
    request: Sent
    # Whether it says the same as before in the canonical form.
    same: bool = False


class Maker:
    """Random requests of one signing algorithm, and what may be changed in them."""

    def __init__(self, server: Server, derived: bool, seed: str) -> None:
        self.random = random.Random(f"{seed} {derived}")
        self._address = urlparse(server.endpoint)
        self._algorithm = "V11-HMAC-SHA256" if derived else "SDK-HMAC-SHA256"
        self._credentials = server.credentials(server.secret_key, server.project_id)
        if derived:
            self._credentials.with_derived_predicate(DerivedCredentials.get_default_derived_predicate())
        # Tells the credentials the names of service and region.
        server.client(self._credentials, Signatures(self._algorithm, server.region))

    def _text(self, signs: list[str], least: int, most: int) -> str:
        return "".join(self.random.choices(signs, k=self.random.randint(least, most)))

    def _maybe(self, share: float) -> bool:
        return self.random.random() < share

    def make(self) -> tuple[Sent, list[Altered]]:
        is_object = self._maybe(0.1)
        if is_object:
            path, methods = "/otaru/v1/projects/{project_id}/objects/uploads/{id}", ["GET", "PUT", "DELETE"]
        else:
            end, listed = self.random.choice(PATHS)
            path, methods = f"/v5/iot/{{project_id}}/{end}", listed.split()
        method = self.random.choice(methods)
        headers, body = self._headers_and_body(method, is_object)
        request = SdkRequest(
            method=method,
            schema=self._address.scheme,
            host=self._address.netloc,
            resource_path=path.format(project_id=self._credentials.project_id, id=self._id()),
            query_params=self._query(),
            header_params=headers,
            body=body,
        )
        self._credentials.sign_request(request)
        sent = Sent(method, request.uri, request.header_params, request.body or b"")
        expect("algorithm", sent.headers["Authorization"].split(" ")[0], self._algorithm)
        return sent, self._alterations(sent, methods)

    def _id(self) -> str:
        """As the SDK's client puts it into a path; one letter at least, which is changed below."""
        signs = self.random.choice([[*ALPHANUMERIC, "-", "_"], [*ASCII[33:], *FOREIGN, " "]])
        some = self._text(signs, 0, 6) + self._text(ALPHANUMERIC, 1, 8) + self._text(signs, 0, 6)
        return quote(some, safe=self.random.choice(["", "", "!$&'()*+,;=:@|^`{}[]<>\""]))

    def _word(self, least: int) -> str:
        signs = self.random.choice([ALPHANUMERIC, ASCII, [*ASCII, *FOREIGN], FOREIGN])
        return self._text(signs, least, 8)

    def _query(self) -> list[tuple[str, Any]]:
        query: dict[str, Any] = {}
        if self._maybe(0.05):
            query = {f"{sign}name": [f"{sign}value", sign, ""] for sign in ASCII}
        elif self._maybe(0.7):
            for _ in range(self.random.randint(1, 5)):
                query[self._word(1)] = self.random.choice(
                    ["", 7, True, self._word(0), self._word(0), [self._word(0) for _ in range(3)]]
                )
        pairs = list(query.items())
        # A name may also be given twice.
        pairs += [(name, str(value)) for name, value in pairs if isinstance(value, str)][:1]
        self.random.shuffle(pairs)
        return pairs

    def _headers_and_body(self, method: str, is_object: bool) -> tuple[dict[str, str], Any]:
        headers = {"Content-Type": "application/json", "User-Agent": "huaweicloud-usdk-python/3.0"}
        if self._maybe(0.2):
            headers["Instance-Id"] = self._text(ALPHANUMERIC, 1, 36)
        if self._maybe(0.5):
            signs = [*ASCII[33:127], *(FOREIGN if self._maybe(0.5) else [])]
            for index in range(self.random.randint(1, 4)):
                name = f"X-{self._text([*ALPHANUMERIC, '-', '_', '.'], 1, 6)}z{index}"
                headers[name] = " ".join(self._text(signs, 1, 8) for _ in range(self.random.randint(1, 3)))
        others = ["application/octet-stream", "text/plain", "multipart/form-data; boundary=b"]
        if method in ("GET", "DELETE"):
            if self._maybe(0.2):
                headers["Content-Type"] = self.random.choice(others)
            return headers, None
        if is_object or self._maybe(0.15):
            headers["Content-Type"] = self.random.choice(others)
            return headers, self.random.randbytes(self.random.choice([0, 1, 200]))
        if self._maybe(0.1):
            return headers, self.random.choice([None, "", "{}"])
        value = {self._word(1): self._word(0), "alias_name": self._text([*ASCII, *FOREIGN], 0, 40)}
        return headers, json.dumps(value, ensure_ascii=self._maybe(0.7))

    def _exchanged(self, text: str, at: int, signs: list[str]) -> str:
        sign = self.random.choice([sign for sign in signs if sign != text[at]])
        return text[:at] + sign + text[at + 1 :]

    def _alterations(self, sent: Sent, methods: list[str]) -> list[Altered]:
        """The request with one byte changed, once in each part that is signed."""
        altered: list[Altered] = []
        is_object = sent.target.startswith("/otaru/")
        unsigned = "X-Sdk-Content-Sha256" in sent.headers

        # An upload without a word about its hash is refused for that, by anybody.
        others = [
            name
            for name in methods
            if name != sent.method and (name != "PUT" or unsigned or not is_object)
        ]
        altered.append(Altered("method", replace(sent, method=self.random.choice(others))))

        path, _, query = sent.target.partition("?")
        places = [
            place.start()
            for place in re.finditer("%[0-9A-Fa-f]{2}|[A-Za-z0-9]", path)
            if len(place[0]) == 1 and in_id(path, place.start())
        ]
        changed = self._exchanged(path, self.random.choice(places), ALPHANUMERIC)
        altered.append(Altered("path", replace(sent, target=changed + sent.target[len(path) :])))
        if query:
            signs = [*ALPHANUMERIC, *"-._~!'()*&=%+/:"]
            changed = self._exchanged(query, self.random.randrange(len(query)), signs)
            altered.append(
                Altered("query", replace(sent, target=f"{path}?{changed}"), meaning(query) == meaning(changed))
            )

        # It was signed as empty if it is empty, whatever was declared.
        if sent.body and not unsigned:
            body = bytearray(sent.body)
            body[self.random.randrange(len(body))] ^= 1 << self.random.randrange(8)
            altered.append(Altered("body", replace(sent, body=bytes(body))))

        names = {name.lower(): name for name in sent.headers}
        authorization = sent.headers["Authorization"]

        def in_header(part: str, name: str, at: int, signs: list[str]) -> None:
            value = self._exchanged(sent.headers[name], at, signs)
            altered.append(Altered(part, replace(sent, headers={**sent.headers, name: value})))

        signed = re.search("SignedHeaders=([^,]*)", authorization)
        assert signed
        for lower in signed[1].split(";"):
            name = names[lower]
            at = self.random.choice([i for i, sign in enumerate(sent.headers[name]) if sign != " "])
            in_header(
                f"header {name}", name, at, list(string.digits) if lower == "x-sdk-date" else ALPHANUMERIC
            )

        hexadecimal = list("0123456789abcdef")
        parts = [
            ("algorithm", "^([^ ]*)", ALPHANUMERIC),
            ("signature", "Signature=(.*)", hexadecimal),
            ("list of signed headers", "SignedHeaders=([^,]*)", [*ALPHANUMERIC, "-", ";"]),
            ("access key", "(?:Access|Credential)=([^,/]*)", ALPHANUMERIC),
        ]
        if self._algorithm.startswith("V11"):
            parts.append(("credential scope", "Credential=[^/]*/([^,]*)", ALPHANUMERIC))
        for part, pattern, signs in parts:
            found = re.search(pattern, authorization)
            assert found
            in_header(part, "Authorization", self.random.randrange(*found.span(1)), signs)
        return altered


def in_id(path: str, at: int) -> bool:
    """Whether this is the project or an id; a changed letter elsewhere is another route, or none."""
    words = path.split("/")
    own = words[1] == "otaru"
    segment = path[:at].count("/")
    first = 7 if own else 6 if words[4] == "ota-upgrades" else 5
    return segment == (4 if own else 3) or segment >= first


def meaning(query: str) -> list[tuple[str, str]]:
    """Names and values in any order; a name without a value has an empty one."""

    def text(written: str) -> str:
        spaced = written.replace("+", " ")
        if re.search("%(?![0-9A-Fa-f]{2})", spaced):
            return spaced
        try:
            return unquote(spaced, errors="strict")
        except UnicodeDecodeError:
            return spaced

    pairs = [part.partition("=") for part in query.split("&") if part]
    return sorted((text(name), text(value)) for name, _, value in pairs)


class Sender:
    """Keeps a connection per thread; every request comes from an address of its own."""

    def __init__(self, endpoint: str) -> None:
        self._address = urlparse(endpoint)
        self._kept = local()

    def send(self, sent: Sent, came_from: str) -> tuple[int, str]:
        if not hasattr(self._kept, "connection"):
            self._kept.connection = HTTPConnection(self._address.netloc, timeout=30)
        connection: HTTPConnection = self._kept.connection
        connection.putrequest(sent.method, sent.target, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.headers.items():
            connection.putheader(name, value)
        if sent.body or sent.method in ("POST", "PUT"):
            connection.putheader("Content-Length", str(len(sent.body)))
        connection.putheader("X-Forwarded-For", came_from)
        connection.endheaders(sent.body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Check:
    def __init__(self, server: Server, seed: str) -> None:
        self._sender = Sender(server.endpoint)
        self._seed = seed
        self.refused = 0
        self.same = 0
        self.statuses: dict[int, int] = {}

    def _mismatch(self, what: str, sent: Sent, answer: tuple[int, str]) -> Mismatch:
        headers = "\n".join(f"{name}: {value}" for name, value in sent.headers.items())
        return Mismatch(
            f"{what}\n{sent.method} {sent.target}\n{headers}\n{len(sent.body)} bytes: {sent.body[:300]!r}\n"
            f"answered with {answer[0]} {answer[1]}\nOTARU_TEST_SEED={self._seed}"
        )

    def _must_pass(self, what: str, sent: Sent, came_from: str) -> int:
        answer = self._sender.send(sent, came_from)
        if answer[0] in (401, 429) or answer[0] >= 500:
            raise self._mismatch(what, sent, answer)
        return answer[0]

    def run(self, case: tuple[str, tuple[Sent, list[Altered]]]) -> None:
        came_from, (sent, altered) = case
        status = self._must_pass("not accepted as it was sent", sent, came_from)
        self.statuses[status] = self.statuses.get(status, 0) + 1
        in_a_row = 0
        for other in altered:
            if other.same:
                self._must_pass("says the same", other.request, came_from)
                self.same += 1
                continue
            answer = self._sender.send(other.request, came_from)
            if answer[0] != 401 or '"APIGW.0301"' not in answer[1]:
                raise self._mismatch(f"altered in {other.part}", other.request, answer)
            self.refused += 1
            in_a_row += 1
            if in_a_row % REFUSALS_IN_A_ROW == 0:
                self._must_pass("not accepted again", sent, came_from)


def main() -> None:
    server = Server()
    seed = os.environ.get("OTARU_TEST_SEED") or str(random.randrange(2**31))
    count = int(os.environ.get("OTARU_TEST_REQUESTS") or 500)
    makers = [Maker(server, derived, seed) for derived in (False, True)]
    cases = [
        (f"10.1.{index // 256}.{index % 256}", makers[index % 2].make()) for index in range(count)
    ]
    check = Check(server, seed)
    with ThreadPoolExecutor(4) as pool:
        # The first failure is raised here.
        list(pool.map(check.run, cases))
    answers = ", ".join(f"{status} x {times}" for status, times in sorted(check.statuses.items()))
    print(f"{count} accepted ({answers}); altered: {check.refused} refused, {check.same} said the same")
    if check.refused < 8 * count:
        raise Mismatch(f"only {check.refused} altered requests of {count}")


if __name__ == "__main__":
    finish(main)
