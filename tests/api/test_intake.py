"""What drips, or never ends, is cut off; raw bytes against a real server process."""

import asyncio
import socket
import time

import httpx

from ekoyka.api.intake import LARGEST_HEAD_BYTES, PATIENCE_S
from ekoyka.settings import Settings
from tests.servers import Server, running

_HEAD = b"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


_ALIVE = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
_DRIPS = {
    "nothing at all": (b"", b""),
    "header fields": (_HEAD, b"x-more: 1\r\n"),
    "a body": (_HEAD + b"content-length: 1000\r\n\r\n", b" "),
    "chunks": (_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "empty lines": (b"", b"\r\n"),
    "header fields of a second request": (_ALIVE + _HEAD, b"x-more: 1\r\n"),
    "a second request's body": (_ALIVE + _HEAD + b"content-length: 1000\r\n\r\n", b" "),
    "empty lines after a request": (_ALIVE, b"\r\n"),
    "the head of a socket": (b"GET /graphql HTTP/1.1\r\nupgrade: websocket\r\n", b"x-more: 1\r\n"),
}


async def _drip(server: Server, first: bytes, drop: bytes) -> tuple[bytes, float]:
    """What comes back for bytes that are sent one by one, and after how many seconds the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    began = time.monotonic()
    writer.write(first)
    before = b""
    if first.startswith(_ALIVE):
        before = await reader.readuntil(b'{"alive":true}')
    answer = asyncio.ensure_future(reader.read())
    while not answer.done():
        if not writer.is_closing():
            writer.write(drop)
        await asyncio.wait([answer], timeout=0.5)
    writer.close()
    assert before.startswith(b"HTTP/1.1 200 ") == bool(before)
    return answer.result(), time.monotonic() - began


async def test_hundreds_of_requests_that_drip_are_cut_off_and_hold_up_nobody(settings: Settings) -> None:
    asked: list[float] = []

    async def usual(http: httpx.AsyncClient) -> None:
        while True:
            began = time.monotonic()
            answer = await http.post("/graphql", json={"query": "{ __typename }"})
            assert answer.status_code == 200
            asked.append(time.monotonic() - began)
            await asyncio.sleep(0.1)

    names = [*_DRIPS] * 30
    async with running(settings) as [server], httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        working = asyncio.create_task(usual(http))
        ended = await asyncio.gather(*(_drip(server, *_DRIPS[name]) for name in names))
        assert not working.done(), working.result()
        working.cancel()

    for name, (answer, took_s) in zip(names, ended, strict=True):
        assert answer.startswith(b"HTTP/1.1 408 "), (name, answer)
        assert b'"code":"REQUEST_TIMEOUT"' in answer
        assert PATIENCE_S - 1 < took_s < PATIENCE_S + 8, name
    assert len(asked) > 20
    assert sorted(asked)[len(asked) // 2] < 1


async def test_a_head_without_end_is_refused_long_before(settings: Settings) -> None:
    async with running(settings) as [server]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(_HEAD + b"x: " + b"y" * LARGEST_HEAD_BYTES)
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()

    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_connection_that_is_kept_open_serves_one_request_after_another(settings: Settings) -> None:
    async with running(settings) as [server]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(3):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b'{"alive":true}'), 5)).startswith(
                b"HTTP/1.1 200 "
            )
            await asyncio.sleep(0.1)
        writer.close()


_MUCH = b"x" * (16 * 1024 * 1024)
_CLOSE = _HEAD + b"connection: close\r\n"
_REFUSED_EARLY = {
    "too long a body": (_CLOSE + b"content-length: %d\r\n\r\n" % len(_MUCH), 413),
    "too long a body of HTTP/1.0": (
        _CLOSE.replace(b"1.1", b"1.0") + b"content-length: %d\r\n\r\n" % len(_MUCH),
        413,
    ),
    "too long a head": (_HEAD + b"x: ", 431),
    "no HTTP": (b"EHLO x\r\n\r\n", 400),
    "chunks that are none": (_CLOSE + b"transfer-encoding: chunked\r\n\r\nnone\r\n", 400),
}


def _sent_whole_first(port: int, data: bytes) -> bytes:
    """What is answered to a client that reads nothing before it has sent everything, as most are."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    return answer


async def test_a_refusal_is_heard_by_those_who_send_everything_first(settings: Settings) -> None:
    async with running(settings) as [server]:
        for name, (head, status) in _REFUSED_EARLY.items():
            for _ in range(5):
                answer = await asyncio.to_thread(_sent_whole_first, server.port, head + _MUCH)
                assert answer.startswith(b"HTTP/1.1 %d " % status), (name, answer[:200])
                assert answer.count(b"HTTP/1.1 ") == 1


async def test_who_never_stops_sending_is_closed_all_the_same(settings: Settings) -> None:
    async def send(head: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            writer.write(head + _MUCH[: LARGEST_HEAD_BYTES + 1])
            while True:
                writer.write(_MUCH[:1000])
                await writer.drain()
                await asyncio.sleep(0.1)
        finally:
            writer.close()

    async with running(settings) as [server]:
        sending = [send(head) for head, _ in _REFUSED_EARLY.values()]
        ended = await asyncio.wait_for(asyncio.gather(*sending, return_exceptions=True), 3 * PATIENCE_S)

    assert [type(error) for error in ended if not isinstance(error, ConnectionError)] == []


async def test_a_request_is_answered_once_also_where_its_body_never_ends(settings: Settings) -> None:
    async with running(settings) as [server]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(_HEAD.replace(b"/graphql", b"/nowhere") + b"content-length: 1000\r\n\r\n")
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b" ")
            await asyncio.wait([answer], timeout=0.5)
        writer.close()

    assert answer.result().startswith(b"HTTP/1.1 404 ")
    assert answer.result().count(b"HTTP/1.1 ") == 1
