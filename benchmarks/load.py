"""A closed load: so many connections, each with one request under way, for so long.

One thread around `epoll`, because the client shares the machine with what it measures: a request costs it
some ten microseconds.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from time import perf_counter

_RECEIVE_BYTES = 1 << 18


class BadAnswer(Exception):
    """A server answered with something else than 200 and data; the text is the beginning of its answer."""


@dataclass(frozen=True)
class Load:
    """What one round gave: ``latencies_s`` in ascending order."""

    seconds: float
    latencies_s: Sequence[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies_s) / self.seconds

    def percentile_s(self, share: float) -> float:
        """The latency that this share of the answers did not exceed."""
        return self.latencies_s[min(len(self.latencies_s) - 1, int(share * len(self.latencies_s)))]


def request(port: int, body: bytes, token: str | None) -> bytes:
    """One POST to /graphql as it goes over the wire."""
    head = [
        "POST /graphql HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Content-Type: application/json",
        "Accept: application/json",
        f"Content-Length: {len(body)}",
    ]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    return "\r\n".join([*head, "", ""]).encode() + body


class _Connection:
    """One connection and the answer that is coming in on it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self._got = b""
        self._missing = -1

    def send(self, what: bytes) -> None:
        self.sent_at = perf_counter()
        self._got, self._missing = b"", -1
        self.socket.sendall(what)

    def receive(self) -> bytes | None:
        """The answer's head and the beginning of its body once it is there whole; else None."""
        part = self.socket.recv(_RECEIVE_BYTES)
        if not part:
            raise BadAnswer(f"the connection was closed after {self._got[:200]!r}")
        if self._missing > 0:
            self._missing -= len(part)
            return self._got if self._missing == 0 else None
        self._got += part
        if self._missing == -1:
            head, separator, body = self._got.partition(b"\r\n\r\n")
            if not separator:
                return None
            lower = head.lower()
            place = lower.find(b"\r\ncontent-length:")
            if place >= 0:
                self._missing = int(lower[place + 17 :].split(b"\r\n", 1)[0]) - len(body)
            elif b"\r\ntransfer-encoding: chunked" in lower:
                self._missing = -2
            else:
                raise BadAnswer(f"neither a length nor chunks: {head[:200]!r}")
        if self._missing == -2:
            return self._got if self._got.endswith(b"\r\n0\r\n\r\n") else None
        return self._got if self._missing == 0 else None


def run(port: int, requests: Sequence[bytes], *, concurrency: int, seconds: float) -> Load:
    """The requests are sent in turn for so long; what is under way at the end is waited for.

    It is not counted, unless the server is so slow that fewer answers came in time than there are connections:
    then all of them count, and the time until the last. Raises `BadAnswer`.
    """
    return _run(port, cycle(requests), concurrency=concurrency, seconds=seconds)


def run_all(port: int, requests: Sequence[bytes], *, concurrency: int) -> Load:
    """Each request is sent once. Raises `BadAnswer`."""
    return _run(port, iter(requests), concurrency=concurrency, seconds=math.inf)


def _run(port: int, requests: Iterator[bytes], *, concurrency: int, seconds: float) -> Load:
    connections = [_Connection(port) for _ in range(concurrency)]
    poll = select.epoll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    latencies: list[float] = []
    late: list[float] = []
    started = perf_counter()
    ends = started + seconds
    for connection in connections:
        connection.send(next(requests))
    under_way = len(connections)
    while under_way:
        for number, _ in poll.poll(30):
            connection = by_number[number]
            answer = connection.receive()
            if answer is None:
                continue
            now = perf_counter()
            if not answer.startswith(b"HTTP/1.1 200") or b'"errors"' in answer[:2000]:
                raise BadAnswer(answer[:500].decode("utf-8", "replace"))
            if now < ends and (following := next(requests, None)) is not None:
                latencies.append(now - connection.sent_at)
                connection.send(following)
            else:
                late.append(now - connection.sent_at)
                under_way -= 1
                poll.unregister(number)  # its server may close what has nothing to do
    for connection in connections:
        connection.socket.close()
    if len(latencies) < concurrency or seconds == math.inf:
        return Load(perf_counter() - started, sorted([*latencies, *late]))
    return Load(seconds, sorted(latencies))
