"""The wire between one server and PostgreSQL: a TCP proxy that cuts, stalls and loses connections when it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

_CHUNK = 1 << 16
# Closing then sends a reset.
_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One connection: the server's end and PostgreSQL's."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    # Never set again where what was under way is lost for good.
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    # Whether the server hears PostgreSQL's answers.
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    # Whether the server hears of it when PostgreSQL's end is closed.
    tells: bool = True


class Wire:
    """A port of 127.0.0.1 that leads to PostgreSQL, as long as nothing is done to it."""

    def __init__(self, target: Path | tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self._open = True
        self._stalled = False
        # The answers to what holds this are lost.
        self.unheard: bytes | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def laid(cls, target: Path | tuple[str, int]) -> AsyncIterator[Wire]:
        """The wire, for as long as the block lasts."""
        wire = cls(target)
        server = await asyncio.start_server(wire._connected, "127.0.0.1", 0)
        wire.port = server.sockets[0].getsockname()[1]
        try:
            yield wire
        finally:
            server.close()
            wire.cut()
            tasks = list(wire._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # What may be done to it

    def cut(self) -> None:
        """Every connection is reset."""
        for link in list(self._links):
            _reset(link.near)
            _reset(link.far)

    def close(self) -> None:
        """Every connection is reset, and new ones are, too."""
        self._open = False
        self.cut()

    def open(self) -> None:
        """New connections get through."""
        self._open = True

    def stall(self) -> None:
        """Nothing gets through, in either direction, and nobody is told; new connections are taken and left alone."""
        self._stalled = True
        for link in self._links:
            link.flows.clear()

    def flow(self) -> None:
        """What was held back gets through."""
        self._stalled = False
        for link in self._links:
            if not link.lost:
                link.flows.set()

    def lose(self) -> None:
        """Of the connections that there are, nothing gets through any more, for good, and neither end is told."""
        for link in self._links:
            link.lost = True
            link.flows.clear()

    def drop_answers(self) -> None:
        """What the server asks gets through, on the connections that there are, and no answer comes back."""
        for link in self._links:
            link.answers.clear()

    def hang_up_on_postgresql(self) -> None:
        """PostgreSQL sees all its clients go; the server is told nothing."""
        for link in self._links:
            link.tells = False
            if link.far is not None:
                link.far.close()

    # How it works

    async def _connected(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link = _Link(near)
        link.answers.set()
        if not self._stalled:
            link.flows.set()
        self._links.add(link)
        try:
            if self._open:
                await link.flows.wait()
                await self._carry(link, reader)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            _reset(near)
            _reset(link.far)
            self._links.discard(link)
            self._tasks.discard(task)

    async def _carry(self, link: _Link, reader: asyncio.StreamReader) -> None:
        """What either end says is passed on, until one of them is closed."""
        far_reader, link.far = (
            await asyncio.open_unix_connection(str(self.target))
            if isinstance(self.target, Path)
            else await asyncio.open_connection(*self.target)
        )
        there = asyncio.create_task(self._pump(link, reader, link.far))
        back = asyncio.create_task(self._pump(link, far_reader, link.near))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
            if not link.tells:
                await there
        finally:
            there.cancel()
            back.cancel()
            await asyncio.gather(there, back, return_exceptions=True)

    async def _pump(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await link.flows.wait()
                if writer is link.near:
                    await link.answers.wait()
                elif self.unheard is not None and self.unheard in data:
                    link.answers.clear()
                # Where PostgreSQL has gone and the server was not told, it goes on talking to nobody.
                if writer is link.near or link.tells:
                    writer.write(data)
                    await writer.drain()
        # An end, too, is held back where nothing gets through.
        await link.flows.wait()


def _reset(writer: asyncio.StreamWriter | None) -> None:
    """The connection is closed with a reset, and whatever was not sent is forgotten."""
    if writer is None:
        return
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    writer.transport.abort()
