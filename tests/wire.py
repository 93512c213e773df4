"""A WebSocket by the byte: for what no library would send."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import orjson

from tests.servers import Server

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
NO_CODE = 1006


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bool = True, size: int | None = None
) -> bytes:
    """A client's frame, masked with zeros; it may claim another size than its payload's."""
    size = len(payload) if size is None else size
    length = (
        bytes((size,))
        if size < 126
        else bytes((126,)) + size.to_bytes(2)
        if size < 1 << 16
        else bytes((127,)) + size.to_bytes(8)
    )
    head = bytes((opcode | (0x80 if fin else 0), length[0] | (0x80 if mask else 0))) + length[1:]
    return head + (bytes(4) if mask else b"") + payload


def message(value: Any) -> bytes:
    """The frame of a message; text and bytes as they are, all else as JSON."""
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogatepass")
    return frame(TEXT, value if isinstance(value, bytes) else orjson.dumps(value))


@dataclass
class Wire:
    """A client's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    heard: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, server: Server, *, protocol: str | None = "graphql-transport-ws", address: str = "127.0.0.1"
    ) -> AsyncIterator[Self]:
        """A socket, from this address of the machine's own, with little room for what it has not read."""
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connected.setblocking(False)
        connected.bind((address, 0))
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", server.port))
        reader, writer = await asyncio.open_connection(sock=connected)
        wire = cls(reader, writer)
        try:
            writer.write(
                b"GET /graphql HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Key: "
                + base64.b64encode(b"k" * 16)
                + b"\r\nSec-WebSocket-Version: 13\r\n"
                + (f"Sec-WebSocket-Protocol: {protocol}\r\n".encode() if protocol else b"")
                + b"\r\n"
            )
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            yield wire
        finally:
            writer.transport.abort()

    async def send(self, *parts: bytes, pause_s: float = 0) -> None:
        """The bytes are sent, with a pause behind each part; not what the server does not take any more."""
        for part in parts:
            if self.writer.is_closing():
                return
            self.writer.write(part)
            if pause_s:
                await asyncio.sleep(pause_s)

    def stop_reading(self) -> None:
        """What the server sends from now on is not taken."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def begin(self, token: str | None = None) -> None:
        """The socket is introduced and acknowledged."""
        payload = {"authorization": f"Bearer {token}"} if token else {}
        await self.send(message({"type": "connection_init", "payload": payload}))
        said = await self.hear()
        assert said == {"type": "connection_ack"}, said

    async def frame(self) -> tuple[int, bytes]:
        """The server's next frame."""
        head = await self.reader.readexactly(2)
        size = head[1]
        if size > 125:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
        return head[0] & 0x0F, await self.reader.readexactly(size)

    async def hear(self) -> Any:
        """The server's next message."""
        while True:
            opcode, payload = await asyncio.wait_for(self.frame(), 30)
            if opcode == TEXT:
                return orjson.loads(payload)
            assert opcode != CLOSE, (int.from_bytes(payload[:2]), payload[2:])

    async def closed(self, timeout_s: float = 60) -> int:
        """The code of the server's close frame; `NO_CODE` where the connection ended without one."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    opcode, payload = await self.frame()
                    if opcode == CLOSE:
                        self.reason = payload[2:].decode()
                        return int.from_bytes(payload[:2])
        except (asyncio.IncompleteReadError, ConnectionError):
            return NO_CODE
