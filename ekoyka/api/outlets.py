"""Ready WebSocket frames, written straight to a socket.

What is sent to thousands at once must cost each of them next to nothing: the frame is made once, and goes
to the transport without a task switch. A server that does not offer this (`Protocol` does, under uvicorn)
is sent messages the usual way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import lru_cache
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ekoyka.observability import CLOSED_WITH

EXTENSION = "ekoyka.outlet"
# How long a socket that we close may take to read what it was sent, and the close frame behind it.
GRACE_S = 2.0
_TEXT = 0x81  # a whole text message in one frame (RFC 6455, 5.2); a server masks nothing


def text_frame(*parts: bytes) -> bytes:
    """The frame of a text message, given in parts, as a server sends it."""
    return b"".join((_head(sum(map(len, parts))), *parts))


@lru_cache(1024)
def _head(size: int) -> bytes:
    if size < 126:
        return bytes((_TEXT, size))
    if size < 1 << 16:
        return bytes((_TEXT, 126)) + size.to_bytes(2)
    return bytes((_TEXT, 127)) + size.to_bytes(8)


def text_of(frame: bytes) -> str:
    """The message of such a frame."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :].decode()


class Outlet(Protocol):
    """One socket's way out: all that is said on it goes through here, in the order in which it is said."""

    def write(self, frame: bytes) -> None:
        """The frame is on its way, after all that was written before; nothing happens once the socket is closed."""

    def backlog(self) -> int:
        """How many bytes the client has yet to take."""

    async def drained(self) -> None:
        """Waits while there is much that the client has yet to take, for whoever can wait."""

    def end(self, code: int, reason: str) -> None:
        """The socket is closed, and is cut off where the client does not take what it was sent in time."""


class DirectProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which is also its application's `Outlet`.

    uvicorn keeps nothing back: what is sent the usual way (the handshake, pings, the close frame) is written
    to the transport at once too, so nothing that was sent earlier can be overtaken.
    """

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # not where the handshake was refused
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = {"outlet": self}

    def write(self, frame: bytes) -> None:
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame)

    def backlog(self) -> int:
        return self.transport.get_write_buffer_size()

    async def drained(self) -> None:
        await self.writable.wait()

    def end(self, code: int, reason: str) -> None:
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return
        self.scope[CLOSED_WITH] = code  # type: ignore[literal-required]
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(GRACE_S, self.transport.abort)


class QueuedOutlet:
    """A socket under any other server: a task sends what is queued, so that nobody waits for a slow reader.

    What is still queued when the socket is closed is not sent. Only the server could cut off a client that
    takes nothing at all.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing: tuple[int, str] | None = None
        self._task: asyncio.Task[None] | None = None

    def write(self, frame: bytes) -> None:
        if self._closing is None:
            self._queue.append(frame)
            self._bytes += len(frame)
            self._empty.clear()
            self._go_on()

    def backlog(self) -> int:
        return self._bytes

    async def drained(self) -> None:
        await self._empty.wait()

    def end(self, code: int, reason: str) -> None:
        if self._closing is None:
            self._closing = (code, reason)
            self._queue.clear()
            self._bytes = 0
            self._go_on()

    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._send())

    async def _send(self) -> None:
        # These are raised where the client has gone, or the socket was closed meanwhile.
        with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
            while self._queue:
                frame = self._queue[0]
                await self._websocket.send_text(text_of(frame))
                if self._closing is None:
                    self._queue.popleft()
                    self._bytes -= len(frame)
            if self._closing is not None:
                await self._websocket.close(*self._closing)
        self._task = None
        self._empty.set()


def outlet_of(websocket: WebSocket) -> Outlet:
    """The socket's way out: the server's own, where it offers one."""
    offered = websocket.scope.get("extensions", {}).get(EXTENSION)
    outlet: Outlet = offered["outlet"] if offered else QueuedOutlet(websocket)
    return outlet
