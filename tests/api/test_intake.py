"""What drips, or never ends, is cut off; raw bytes against a real server process."""

import asyncio
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
