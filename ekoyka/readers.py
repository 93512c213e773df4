"""Connections for reads: a handful of the driver's own, taken and given back at next to no cost."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg

from ekoyka.silence import Silence


class Readers:
    """Connections for reads, so many and no more; whoever finds none free waits in line, but not for ever.

    A read leaves nothing behind in its session, so nothing is reset between two; a connection on which
    something else than a refused statement happened is not used again.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
        size: int,
        patience_s: float,
        longest_s: float,
        silence: Silence,
    ) -> None:
        self._connect = connect
        self._patience_s = patience_s
        # PostgreSQL ends a statement sooner by itself; if it is not heard of even then, it never will be.
        self._longest_s = longest_s
        self._silence = silence
        self._idle: list[asyncpg.Connection[asyncpg.Record]] = []
        self._left = size
        self._line: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self.size = size

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self.size - self._left

    async def read(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        """What the connection's method gives for the statement. Raises `TimeoutError` when none gets free."""
        if self._left:
            self._left -= 1
        else:
            await self._turn()
        connection = None
        try:
            while connection is None and self._idle:
                connection = self._idle.pop()
                if connection.is_closed():
                    connection = None
            if connection is None:
                connection = await self._connect()
            self._silence.begins(connection)
            try:
                value = await getattr(connection, method)(sql, *arguments, timeout=self._longest_s)
            except asyncpg.PostgresError:
                self._idle.append(connection)
                raise
            except BaseException:
                self._silence.abandon(connection)
                raise
            self._idle.append(connection)
            return value
        finally:
            if connection is not None:
                self._silence.ends(connection)
            self._pass_on()

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._line.append((loop.time() + self._patience_s, turn))
        if self._sweep is None:
            self._sweep = loop.call_later(self._patience_s, self._give_up)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The next in line has the turn, or one more is free."""
        while self._line:
            _, turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._left += 1

    def _give_up(self) -> None:
        """One timer for the whole line: who has waited too long is told so."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        while self._line and self._line[0][0] <= loop.time():
            _, turn = self._line.popleft()
            if not turn.done():
                turn.set_exception(TimeoutError())
        if self._line:
            self._sweep = loop.call_at(self._line[0][0], self._give_up)

    async def close(self, patience_s: float) -> None:
        """Every connection is closed; statements under way get a moment to end."""
        ends = asyncio.get_running_loop().time() + patience_s
        while self.busy and asyncio.get_running_loop().time() < ends:  # noqa: ASYNC110 -- once, at the end
            await asyncio.sleep(0.01)
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.pop().terminate()
