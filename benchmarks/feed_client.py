"""A client of feeds: thousands of WebSockets in one process, and the instant at which the last was told.

One thread around `epoll`, with frames read by hand, because the client shares the machine with what it
measures. Its clock is the machine's (`time.monotonic`), as is that of whoever makes the change.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import multiprocessing
import os
import resource
import secrets
import select
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

Change = Callable[[], Awaitable[float]]
"""Commits one change; gives the instant of the commit by `time.monotonic`."""


class Unexpected(Exception):
    """A server said something else than it should; the text is the beginning of it."""


@dataclass(frozen=True)
class Plan:
    """What a client process does: where, how often, and what each socket says and hears before all is quiet.

    Each opens with one of the ``greetings``, in turn, and sends one of the ``questions`` once that was
    answered; with ``answers`` messages heard in all, it has its beginning.
    """

    url: str
    subscribers: int
    greetings: tuple[bytes, ...]
    questions: tuple[bytes, ...]
    answers: int = 2


def _masked(text: bytes) -> bytes:
    """A text message's frame as a client sends it, with a mask of zeros (RFC 6455, 5.3)."""
    size = len(text)
    length = (
        bytes((0x80 | size,))
        if size < 126
        else b"\xfe" + size.to_bytes(2)
        if size < 1 << 16
        else b"\xff" + size.to_bytes(8)
    )
    return b"\x81" + length + b"\0\0\0\0" + text


class _Reader:
    """Counts whole messages in what a socket receives."""

    __slots__ = ("got", "messages", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.got = b""
        self.messages = 0

    def read(self) -> None:
        part = self.socket.recv(1 << 16)
        if not part:
            raise Unexpected("a socket was closed")
        got = self.got + part
        at = 0
        while len(got) - at >= 2:
            length, head = got[at + 1] & 0x7F, 2
            if length == 126:
                length, head = int.from_bytes(got[at + 2 : at + 4]), 4
            elif length == 127:
                length, head = int.from_bytes(got[at + 2 : at + 10]), 10
            if len(got) - at < head + length:
                break
            kind = got[at] & 0x0F
            body = got[at + head : at + head + length]
            if kind == 1:
                if b'"type":"error"' in body[:200] or b'"errors"' in body[:200]:
                    raise Unexpected(body[:300].decode())
                self.messages += 1
            elif kind == 9:
                self.socket.sendall(b"\x8a" + bytes((0x80 | length,)) + b"\0\0\0\0" + body)
            elif kind == 8:
                raise Unexpected(f"closed with {int.from_bytes(body[:2])}")
            at += head + length
        self.got = got[at:]


def _open(url: str, first: bytes) -> _Reader:
    parts = urlsplit(url)
    made = socket.create_connection((parts.hostname, parts.port), timeout=30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    made.sendall(
        (
            f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
        ).encode()
    )
    got = b""
    while b"\r\n\r\n" not in got:
        part = made.recv(4096)
        if not part:
            raise Unexpected(got.decode("latin-1"))
        got += part
    head, _, rest = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101"):
        raise Unexpected(head.decode("latin-1"))
    reader = _Reader(made)
    reader.got = rest
    made.sendall(first)
    return reader


def _wait_for(readers: list[_Reader], poll: select.epoll, messages: int) -> float:
    """Reads until every socket has so many messages; the instant of the last."""
    by_number = {reader.socket.fileno(): reader for reader in readers}
    missing = sum(reader.messages < messages for reader in readers)
    last = time.monotonic()
    while missing:
        ready = poll.poll(60, 512)
        if not ready:
            raise Unexpected(f"{missing} sockets were told nothing for a minute")
        for number, _ in ready:
            reader = by_number[number]
            before = reader.messages
            reader.read()
            if before < messages <= reader.messages:
                missing -= 1
                last = time.monotonic()
    return last


def _client(pipe: Connection, plan: Plan) -> None:
    """The client process: says True once all are subscribed, then the instant of the last of each delivery."""
    if len(cores := sorted(os.sched_getaffinity(0))) > 1:
        os.sched_setaffinity(0, {cores[-1]})
    allow_files(plan.subscribers + 100)
    readers: list[_Reader] = []
    poll = select.epoll()
    greetings = itertools.cycle(map(_masked, plan.greetings))
    questions = itertools.cycle(map(_masked, plan.questions))
    for start in range(0, plan.subscribers, 200):
        fresh = [_open(plan.url, next(greetings)) for _ in range(min(200, plan.subscribers - start))]
        for reader in fresh:
            poll.register(reader.socket.fileno(), select.EPOLLIN)
        readers += fresh
        _wait_for(readers, poll, 1)
        for reader in fresh:
            reader.socket.sendall(next(questions))
        _wait_for(readers, poll, plan.answers)
    expected = plan.answers
    pipe.send(True)
    while pipe.recv():
        expected += 1
        pipe.send(_wait_for(readers, poll, expected))
        # Whatever else comes belongs to this change: nothing of it may be counted for the next.
        while ready := poll.poll(0.05):
            for number, _ in ready:
                next(reader for reader in readers if reader.socket.fileno() == number).read()
        expected = max(expected, max(reader.messages for reader in readers))
    for reader in readers:
        reader.socket.close()


def allow_files(count: int) -> None:
    """So many files may be open, as far as the machine lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


@contextmanager
def subscribed(plan: Plan) -> Iterator[Connection]:
    """So many subscribers are connected and have their beginning, in a process of their own.

    Send True before each change: the instant of the last delivery comes back.
    """
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_client, args=(theirs, plan))
    process.start()
    theirs.close()
    try:
        ours.recv()
        yield ours
        ours.send(False)
    finally:
        process.join(10)
        process.kill()


def graphql(url: str, tokens: Sequence[str], query: str, variables: dict[str, Any], subscribers: int) -> Plan:
    """The plan of graphql-transport-ws clients, who sign in with these tokens in turn, or with none.

    Each gives its operation another id, as the usual client library does.
    """
    payloads = [{"Authorization": f"Bearer {token}"} for token in tokens] or [{}]
    ask = {"query": query, "variables": variables}
    return Plan(
        url,
        subscribers,
        tuple(orjson.dumps({"type": "connection_init", "payload": payload}) for payload in payloads),
        tuple(
            orjson.dumps({"id": str(uuid.uuid4()), "type": "subscribe", "payload": ask})
            for _ in range(subscribers)
        ),
    )


async def deliver(plan: Plan, change: Change, *, rounds: int = 5) -> list[float]:
    """Seconds from each commit to the last subscriber's delivery, with all of them idle before."""
    loop = asyncio.get_running_loop()
    seconds = []
    with subscribed(plan) as client:
        for _ in range(rounds):
            client.send(True)
            await asyncio.sleep(0.3)
            committed = await change()
            seconds.append(await loop.run_in_executor(None, client.recv) - committed)
    return seconds


async def emitting(url: str) -> float:
    """A change of a peer's: POST /emit; the instant at which it was asked for."""
    async with httpx.AsyncClient(timeout=60) as http:
        asked = time.monotonic()
        (await http.post(url)).raise_for_status()
    return asked
