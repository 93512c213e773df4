"""WebSockets at the level of frames: what is written straight to them, and what they take from nobody.

What is sent to thousands at once must cost each of them next to nothing: the frame is made once, and goes
to the transport without a task switch. A server that does not offer this (`DirectProtocol` does, under uvicorn)
is sent messages the usual way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Generator
from functools import lru_cache
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.streams import StreamReader

from ekoyka.api.intake import PATIENCE_S
from ekoyka.observability import CLOSED_WITH

EXTENSION = "ekoyka.outlet"
# How long a socket that we close may take to read what it was sent, and the close frame behind it.
GRACE_S = 2.0
NOT_UTF8, COME_BACK, TOO_LATE, TOO_MANY = 1007, 1012, 4408, 4429
# So many frames in so many seconds are a flood: a client that subscribes and asks sends a few.
FLOOD_FRAMES, FLOOD_S = 2000, 10.0
# So much is looked at before it is asked whether that was enough: it may hold hundreds of empty frames.
_SLICE_BYTES = 4096
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

    stopping: bool
    """Whether the server stops: nothing more is heard, and what has begun may still be answered."""

    def closed(self) -> bool:
        """Whether it was closed, by either side."""

    def write(self, frame: bytes) -> None:
        """The frame is on its way, after all that was written before; nothing happens once the socket is closed."""

    def backlog(self) -> int:
        """How many bytes the client has yet to take."""

    async def drained(self) -> None:
        """Waits while there is much that the client has yet to take, for whoever can wait."""

    def end(self, code: int, reason: str) -> None:
        """The socket is closed, and is cut off where the client does not take what it was sent in time."""


class _Reader(StreamReader):
    """Knows whether it stands between two frames, as opposed to amid one that has not arrived whole."""

    between = False

    def at_eof(self) -> Generator[None, None, bool]:
        self.between = True
        ended = yield from super().at_eof()
        self.between = False
        return ended


class DirectProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which is also its application's `Outlet`, and which nobody can hold open or stuff.

    uvicorn keeps nothing back: what is sent the usual way (the handshake, pings, the close frame) is written
    to the transport at once too, so nothing that was sent earlier can be overtaken. Whatever ends a socket has
    a code, and ends it within `GRACE_S`, whether or not the client takes part.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.stopping = False
        self._reader = self.conn.reader = _Reader()
        self.conn.parser = self.conn.parse()
        next(self.conn.parser)
        self._cut: asyncio.TimerHandle | None = None
        self._frames, self._frames_until = 0, 0.0
        self._deaf = False

    # What comes in

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):  # not where the handshake was refused
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = {"outlet": self}

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE_BYTES):
            if not self._deaf:
                super().data_received(data[start : start + _SLICE_BYTES])
                if self.conn.handshake_exc is not None and not self.handshake_initiated:
                    self._refuse()
        # A message that has begun has so long to arrive, whether in one frame or in many.
        arriving = self.conn.current_size is not None or not self._reader.between
        if not arriving:
            self._arrived()
        elif self._cut is None:
            self._cut = self.loop.call_later(PATIENCE_S, self._too_late)

    def _refuse(self) -> None:
        """A handshake that is none is answered as the library would; uvicorn leaves it without an answer."""
        self._deaf = True
        said = b"".join(self.conn.data_to_send())
        self.transport.write(said or self.conn.reject(400, "This opens no WebSocket.\n").serialize())
        self.transport.close()

    def handle_events(self) -> None:
        if self.loop.time() > self._frames_until:
            self._frames, self._frames_until = 0, self.loop.time() + FLOOD_S
        self._frames += len(self.conn.events)
        super().handle_events()
        if self._frames > FLOOD_FRAMES:
            self.end(TOO_MANY, "Too many messages at once.")
            if not self.transport.is_closing():
                self._deaf = True
                self.transport.pause_reading()

    def send_receive_event_to_app(self) -> None:
        self._arrived()
        if self.curr_msg_data_type == "text":
            self.frames = [b"".join(self.frames)]
            try:
                self.frames[0].decode()
            except UnicodeDecodeError:
                self.frames = []
                self.end(NOT_UTF8, "Text is UTF-8.")
                return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        answer = b"".join(self.conn.data_to_send())
        # Whoever does not read the answers is owed none.
        if self.writable.is_set():
            self.transport.write(answer)

    def handle_parser_exception(self) -> None:
        """What is no frame ends the socket, with the library's code; its rest is read, or the code would be lost."""
        if self.close_sent or self.conn.close_sent is None or self.transport.is_closing():
            return
        self._close(self.conn.close_sent.code, self.conn.close_sent.reason)
        self.transport.write_eof()

    def handle_close(self, event: Any) -> None:
        super().handle_close(event)
        if self.close_timer is None:  # the client may not take what it was sent before
            self.close_timer = self.loop.call_later(GRACE_S, self.transport.abort)

    def keepalive_timeout(self) -> None:
        self.pong_timer = None
        self.end(TOO_LATE, "No answer to a ping.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def _arrived(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _too_late(self) -> None:
        self._cut = None
        if self.read_paused:  # it is we who do not read
            self._cut = self.loop.call_later(PATIENCE_S, self._too_late)
        else:
            self.end(TOO_LATE, "The message took too long to arrive.")

    # What goes out

    def closed(self) -> bool:
        return self.close_sent or self.transport.is_closing()

    def write(self, frame: bytes) -> None:
        if self.handshake_complete and not self.close_sent and not self.transport.is_closing():
            self.transport.write(frame)

    def backlog(self) -> int:
        return self.transport.get_write_buffer_size()

    async def drained(self) -> None:
        await self.writable.wait()

    def end(self, code: int, reason: str) -> None:
        if self.handshake_complete and not self.closed():
            self.conn.send_close(code, reason)
            self._close(code, reason)

    def _close(self, code: int, reason: str) -> None:
        """The close frame is sent, and the application told; the client has a moment to read it and answer."""
        self.stop_keepalive()
        self.scope[CLOSED_WITH] = code  # type: ignore[literal-required]
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(GRACE_S, self.transport.abort)

    def shutdown(self) -> None:
        """The server stops. The application answers what has begun, and ends the socket with `COME_BACK`."""
        if not self.handshake_complete:
            response = self.conn.reject(503, "The server stops: come back.\n")
            self.conn.send_response(response)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.transport.close()
        elif not self.writable.is_set():
            self.end(COME_BACK, "The server stops: come back.")
        elif not self.closed():
            self.stopping = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": COME_BACK})


class QueuedOutlet:
    """A socket under any other server: a task sends what is queued, so that nobody waits for a slow reader.

    What is still queued when the socket is closed is not sent. Only the server could cut off a client that
    takes nothing at all.
    """

    stopping = False

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._closing: tuple[int, str] | None = None
        self._task: asyncio.Task[None] | None = None

    def closed(self) -> bool:
        return self._closing is not None

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
            self._empty.clear()
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
