"""The server's intake: a request must arrive within a time and a size, whoever sends it.

uvicorn waits as long as a client cares to drip its header fields or its body, and keeps as many as are sent. It also
closes a connection outright when it has answered: where the client was still sending, the reset overtakes the answer.
Here the server then ends its own side, and throws away what comes until the client closes (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ekoyka.api.headers import ALWAYS

# From a connection's beginning, or a later request's first byte, to the last byte of the body.
PATIENCE_S = 10.0
# So long what comes after a refusal is thrown away, for the client to see the answer.
LINGER_S = 2.0
# Of a server that stops: so long a request that was just being sent may still arrive.
LAST_S = 0.5
# Of a head that has not arrived whole: what one read of the socket brings is taken as it is.
LARGEST_HEAD_BYTES = 64 * 1024

_ANSWERS = {
    400: (b"400 Bad Request", b"BAD_REQUEST", b"This is not HTTP/1.1."),
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
    503: (
        b"503 Service Unavailable",
        b"SERVICE_UNAVAILABLE",
        b"The server stops: send the request again.",
    ),
}


_FIELDS = b"".join(b"%b: %b\r\n" % field for field in ALWAYS)


class Intake(HttpToolsProtocol):
    """uvicorn's HTTP, of which nobody can hold a connection open by sending slowly."""

    _cut: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0
    _upgraded = False
    _last = False
    _ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # The transport as answers see it.
        self._output: Any = SimpleNamespace(
            write=transport.write,
            is_closing=lambda: self._ended or transport.is_closing(),
            close=self._answered,
        )
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        idle = self.timeout_keep_alive_task is not None
        super().data_received(data)
        if idle and self._cut is None and not self._upgraded and self.cycle.response_complete:
            self._wait()  # empty lines are no request yet
        if self._in_head and not self._ended:
            self._head_bytes += len(data)
            if self._head_bytes > LARGEST_HEAD_BYTES:
                self._refuse(431)

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        if self._cut is None:
            self._wait()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._output
            self.cycle.keep_alive = self.cycle.keep_alive and not self._last

    def on_message_complete(self) -> None:
        self._arrived()
        super().on_message_complete()
        if self.cycle is not None:
            self.cycle.more_body = False  # which uvicorn forgets where the answer came first

    def on_response_complete(self) -> None:
        if not self._ended:
            super().on_response_complete()

    def _answered(self) -> None:
        """An answer was the connection's last, though its request may still be arriving, in the time that it has."""
        if self._cut is None:
            self.transport.close()
        else:
            self._end(self._cut.when())

    def handle_websocket_upgrade(self) -> None:
        if self._last:
            self._refuse(503)
            return
        # Once it is open the socket has its own patience; what is no opening of one is never answered.
        self._arrived()
        self._upgraded = True
        super().handle_websocket_upgrade()
        self.loop.call_later(PATIENCE_S, self._cut_unopened)

    def _cut_unopened(self) -> None:
        socket: Any = self.transport.get_protocol()
        if not self.transport.is_closing() and not getattr(socket, "handshake_complete", True):
            self.transport.close()

    def shutdown(self) -> None:
        """The server stops: the request that is under way, or just arriving, is the connection's last."""
        self._last = True
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
        else:
            self._unset_keepalive_if_required()
            self._arrived()
            self._cut = self.loop.call_later(LAST_S, self._stop)

    def _stop(self) -> None:
        asked = self._in_head or (self.cycle is not None and not self.cycle.response_complete)
        if asked and not self._ended:
            self._refuse(503)
        else:
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
        if self._output.is_closing():
            return
        cycle: Any = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if self.pipeline or (answering and cycle.response_started):
            self.transport.close()
            return
        if answering or cycle is None or not cycle.more_body:  # else what still comes has been answered
            line, code, message = _ANSWERS[status]
            body = b'{"errors":[{"message":"%b","extensions":{"code":"%b"}}]}' % (message, code)
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%b"
                b"connection: close\r\n\r\n%b" % (line, len(body), _FIELDS, body)
            )
        if answering:
            cycle.disconnected = True
            cycle.message_event.set()
        self._end(self.loop.time() + LINGER_S)

    def _end(self, until: float) -> None:
        """Nothing more is said; what still comes is thrown away until the client closes, or the time is over."""
        if self._output.is_closing():
            return
        self._ended = True
        self._arrived()
        self._cut = self.loop.call_at(until, self.transport.close)
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS has no half of a connection
            self.transport.write_eof()
