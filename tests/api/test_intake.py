"""What drips, or never ends, is cut off; raw bytes against a real server process."""

import asyncio
import time

import pytest

from ekoyka.api.intake import LARGEST_HEAD_BYTES, PATIENCE_S
from ekoyka.settings import Settings
from tests.servers import Server, running

_HEAD = b"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def _drip(server: Server, first: bytes, drop: bytes) -> tuple[bytes, float]:
    """What comes back for bytes that are sent one by one, and after how many seconds the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    began = time.monotonic()
    writer.write(first)
    answer = asyncio.ensure_future(reader.read())
    while not answer.done():
        if not writer.is_closing():
            writer.write(drop)
        await asyncio.wait([answer], timeout=0.5)
    writer.close()
    return answer.result(), time.monotonic() - began


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (_HEAD, b"x-more: 1\r\n"),
        (_HEAD + b"content-length: 1000\r\n\r\n", b" "),
        (_HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    ],
    ids=["nothing at all", "header fields", "a body", "chunks"],
)
async def test_a_request_that_drips_is_cut_off(settings: Settings, first: bytes, drop: bytes) -> None:
    async with running(settings) as [server]:
        answer, took_s = await _drip(server, first, drop)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"REQUEST_TIMEOUT"' in answer
    assert PATIENCE_S - 1 < took_s < PATIENCE_S + 5


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
