"""The server's intake: a request must arrive within a time and a size, whoever sends it.

uvicorn waits as long as a client cares to drip its header fields or its body, and keeps as many as are sent.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# From a connection's beginning, or a later request's first byte, to the last byte of the body.
PATIENCE_S = 10.0
# Of a head that has not arrived whole: what one read of the socket brings is taken as it is.
LARGEST_HEAD_BYTES = 64 * 1024

_ANSWERS = {
    408: (
        b"408 Request Timeout",
        b"REQUEST_TIMEOUT",
        b"The request took too long to arrive: send it in one go.",
    ),
    431: (
        b"431 Request Header Fields Too Large",
        b"HEADERS_TOO_LARGE",
        b"The address and header fields hold at most 64 KiB.",
    ),
}


class Intake(HttpToolsProtocol):
    """uvicorn's HTTP, of which nobody can hold a connection open by sending slowly."""

    _cut: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES:
                self._refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._cut is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._arrived()
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        # Once it is open the socket has its own patience; what is no opening of one is never answered.
        self._arrived()
        super().handle_websocket_upgrade()
        self.loop.call_later(PATIENCE_S, self._cut_unopened)

    def _cut_unopened(self) -> None:
        socket: Any = self.transport.get_protocol()
        if not self.transport.is_closing() and not getattr(socket, "handshake_complete", True):
            self.transport.close()

    def _wait(self) -> None:
        self._cut = self.loop.call_later(PATIENCE_S, self._refuse, 408)

    def _arrived(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None

    def _refuse(self, status: int) -> None:
        """The connection is closed, with an answer where none has begun."""
        self._arrived()
        if self.transport.is_closing():
            return
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            line, code, message = _ANSWERS[status]
            body = b'{"errors":[{"message":"%b","extensions":{"code":"%b"}}]}' % (message, code)
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (line, len(body), body)
            )
        self.transport.close()
