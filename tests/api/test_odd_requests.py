"""Whatever is sent to whichever route, as raw bytes to a real server: a 4xx that says why, and no 5xx."""

import asyncio
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

from ekoyka.api.intake import PATIENCE_S
from ekoyka.settings import Settings
from tests.api.matrix import ROUTES
from tests.servers import Server, ready, running, start

FORM = b"content-type: application/x-www-form-urlencoded"
JSON = b"content-type: application/json"
PASSWORD = b"grant_type=password&username=a%40b.example&password="
AUTH = (b"/auth/token", b"/auth/refresh", b"/auth/revoke")

PATHS = (
    *(
        b"/verify/" + code
        for code in (b"%00", b"%ff%fe", b"%ED%A0%80", b"A" * 5000, b"a%2fb", b"%252f", b"%", b"%zz")
    ),
    *(b"/verify/" + code for code in (b"", b"a/b", b"\x00", b"\xd0\x96", b"A" * 70_000)),
    *(
        b"/static/" + name
        for name in (b"../../pyproject.toml", b"%2e%2e/%2e%2e/pyproject.toml", b"%00", b"%ff", b".")
    ),
    *(b"/static/" + name for name in (b"a" * 300, b"a/" * 3000, b"%ED%A0%80", b"\xff", b"explorer")),
    b"/certificates/%00.pdf",
    b"/certificates/" + b"9" * 19 + b"-999999999999-" + b"0" * 64 + b".pdf",
    b"/certificates/%D9%A1-%D9%A1-" + b"0" * 64 + b".pdf",
    b"/certificates/a%2f..%2fb.pdf",
    b"/graphql?" + b"a" * 9000,
    b"/graphql?%00=%ff",
    b"/graphql%00",
    b"/auth/token%00",
    b"/../etc/passwd",
    b"//",
    b"*",
    b"http://[::1/graphql",
    b"http://example.org/graphql",
    b"",
    b" ",
    b"/healthz?x=\xff",
)

FIELDS = {
    "a zero byte in a name": [b"x\x00y: 1"],
    "no colon": [b"nocolon"],
    "bytes that are no text": [b"authorization: Bearer \xff\xfe\x80"],
    "weights that are no numbers": [
        b"accept: application/json;q=nan, */*;q=-inf",
        b"accept-language: en;q=nan,ru;q=inf",
    ],
    "two lengths": [b"content-length: 5", b"content-length: 6"],
    "a length below nothing": [b"content-length: -1"],
    "a length beyond everything": [b"content-length: 99999999999999999999"],
    "a length and chunks": [b"transfer-encoding: chunked", b"content-length: 3"],
    "chunks in gzip": [b"transfer-encoding: gzip, chunked"],
    "a socket of no known version": [
        b"upgrade: websocket",
        b"connection: upgrade",
        b"sec-websocket-version: 99",
        b"sec-websocket-key: x",
    ],
    "an id of its own": [b"x-request-id: \xff<script>"],
    "cookies": [b"cookie: " + b"a=b; " * 5000],
    "proxies that are none": [b"x-forwarded-for: \xff,,,", b'forwarded: for="\xff'],
}

FORMS: dict[str, tuple[list[bytes], bytes]] = {
    "JSON": ([JSON], b'{"grant_type": "password"}'),
    "null": ([JSON], b"null"),
    "null in a form": ([FORM], b"null"),
    "a batch": ([JSON], b'[{"grant_type": "password"}]'),
    "text": ([b"content-type: text/plain"], PASSWORD),
    "no type": ([], PASSWORD),
    "almost a form": ([FORM + b"x"], PASSWORD),
    "a form with files": (
        [b"content-type: multipart/form-data; boundary=x"],
        b'--x\r\ncontent-disposition: form-data; name="grant_type"\r\n\r\npassword\r\n--x--\r\n',
    ),
    "another charset": ([FORM + b"; charset=utf-16"], PASSWORD),
    "gzip": ([FORM, b"content-encoding: gzip"], b"\x1f\x8b\x08"),
    "a coding that is none": ([FORM, b"content-encoding: nonsense"], PASSWORD),
    "bad UTF-8": ([FORM], b"grant_type=password&username=%ff%fe&password=%ff&token=%ff&refresh_token=%ff"),
    "raw bytes": ([FORM], b"grant_type=password&username=\xff\xfe&password=\xff&token=\xff"),
    "half a surrogate": (
        [FORM],
        b"grant_type=password&username=%ED%A0%80&password=%ED%A0%80&token=%ED%A0%80",
    ),
    "eleven parameters": ([FORM], b"&".join(b"a%d=1" % number for number in range(11))),
    "five thousand parameters": ([FORM], b"&".join(b"a%d=1" % number for number in range(5000))),
    "a parameter twice": ([FORM], b"grant_type=password&grant_type=password&token=a&token=b"),
    "nothing": ([FORM], b""),
    "only separators": ([FORM], b"&" * 3000),
    "only equals": ([FORM], b"=" * 3000),
    "a long name": ([FORM], b"a" * 60_000 + b"=1"),
    "brackets": ([FORM], b"grant_type[]=password&username[a][b]=c"),
}
# Which are well formed, and say nothing that anybody knows.
STRANGERS = {
    "zero bytes": b"grant_type=password&username=a%00%40b.example&password=%00%00%00%00%00%00%00%00%00%00%00",
    "5,000 digits": b"grant_type=refresh_token&refresh_token=" + b"9" * 5000,
    "a grant of 60,000 letters": b"grant_type=" + b"x" * 60_000,
    "a password of 60,000 letters": PASSWORD + b"x" * 60_000,
    "semicolons": b"grant_type=password;username=a;password=b",
    "a zero byte for a grant": b"grant_type=%00",
}


def request(method: bytes, path: bytes, fields: Iterable[bytes] = (), body: bytes = b"") -> bytes:
    """A request as it goes over the wire, which ends its connection."""
    head = [b"host: x", b"connection: close", *fields]
    if body or method == b"POST":
        head.append(b"content-length: %d" % len(body))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, path, b"\r\n".join(head), body)


async def send(server: Server, data: bytes, patience_s: float = 30) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer; 0 where the connection was closed without one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(data)
    try:
        answer = await asyncio.wait_for(reader.read(), patience_s)
    except ConnectionResetError:
        answer = b""
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head[9:12] or 0), head, body


async def test_odd_methods_paths_and_fields_have_named_answers_everywhere(
    settings: Settings, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = await start(settings, log=log)
    routes = {line.split()[1].translate({ord("{"): None, ord("}"): None}).encode() for line in ROUTES}
    routes = (routes - {b"/static"}) | {b"/static/x", b"/nowhere"}
    methods = (b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"FOO", b"get", b"\xff")
    asked = [request(method, path) for method in methods for path in sorted(routes)]
    asked += [request(b"GET", path) for path in PATHS]
    asked += [
        request(b"GET", path, fields)
        for path in (b"/verify/x", b"/static/x", b"/certificates/x.pdf")
        for fields in FIELDS.values()
    ]
    asked += [request(b"POST", path, [FORM], b"x" * 70_000) for path in sorted(routes)]
    try:
        await asyncio.wait_for(ready(server), 60)
        for sent in asked:
            status, _, body = await send(server, sent)
            assert 400 <= status < 500, (sent[:200], status, body[:200])
            assert b"pyproject" not in body
            assert b"root:" not in body
        assert (await send(server, request(b"GET", b"/healthz")))[0] == 200
    finally:
        await server.stop()

    assert "request_failed" not in log.read_text()


async def test_forms_that_are_none_are_refused_as_oauth_has_it(settings: Settings) -> None:
    async with running(settings) as [server]:
        for path in AUTH:
            for name, (fields, body) in FORMS.items():
                status, head, answer = await send(server, request(b"POST", path, fields, body))
                told = orjson.loads(answer)
                assert (status, told["error"]) == (400, "invalid_request"), (path, name, answer)
                assert told["error_description"].isascii()
                assert b"cache-control: no-store" in head.lower()
            for name, body in STRANGERS.items():
                status, _, answer = await send(server, request(b"POST", path, [FORM], body))
                assert status == 400, (path, name, answer)
                assert orjson.loads(answer)["error"] in (
                    "invalid_grant",
                    "invalid_request",
                    "unsupported_grant_type",
                )


@pytest.mark.parametrize("path", [b"/graphql", *AUTH])
async def test_a_body_beyond_the_bound_is_refused_however_it_comes(settings: Settings, path: bytes) -> None:
    kind = JSON if path == b"/graphql" else FORM
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    chunked = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n%b\r\ntransfer-encoding: chunked\r\n\r\n%b0\r\n\r\n"
    async with running(settings) as [server]:
        answers = [
            await send(server, request(b"POST", path, [kind], b"a" * 65_537)),
            await send(server, chunked % (path, kind, chunk * 3)),
            await send(server, request(b"POST", path, [kind, b"content-length: 99999999"])),
        ]

    for status, head, body in answers[:2]:
        assert status == 413
        assert b"connection: close" in head.lower()
        told: dict[str, Any] = orjson.loads(body)
        assert b"65536" in body
        assert (
            told.get("error") == "invalid_request"
            or told["errors"][0]["extensions"]["code"] == "CONTENT_TOO_LARGE"
        )
    assert answers[2][0] in (400, 413)  # two lengths


async def test_an_opening_of_a_socket_that_is_none_holds_no_connection(settings: Settings) -> None:
    opening = [
        b"upgrade: websocket",
        b"connection: upgrade",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: x",
    ]
    sent = b"POST /graphql HTTP/1.1\r\nhost: x\r\n" + b"\r\n".join(opening) + b"\r\n\r\n"
    async with running(settings) as [server]:
        began = time.monotonic()
        status, _, _ = await send(server, sent)

    assert status in (0, 400, 405)
    assert time.monotonic() - began < PATIENCE_S + 5
