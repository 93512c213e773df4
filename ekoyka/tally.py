"""How many of something there are at once, in all processes together: counts in PostgreSQL.

A process writes its own counts, and they count for as long as it says every few seconds that it is alive: what
a killed one leaves behind keeps nobody out for longer than a lease. All that has come and gone within some
milliseconds is written together, and before the others' counts are read: two processes that let somebody in at
the same moment may both refuse, but never pass a bound together. What is counted is known by a digest alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import asyncpg
import structlog
from sqlalchemy import Index, LargeBinary
from sqlmodel import Field, SQLModel

from ekoyka.columns import instant
from ekoyka.database import Database, DatabaseUnavailable

log = structlog.get_logger(__name__)

# A process that has said nothing for so long is dead, and what it counted with it.
LEASE_S = 30.0
BEAT_S = 8.0
# The shortest time from one writing to the next: what comes and goes meanwhile goes together.
PAUSE_S = 0.02
_RETRY_S, _LEAVE_S = 0.5, 1.0


class ServerProcess(SQLModel, table=True):
    """A process that counts, alive until then. Lost when PostgreSQL crashes; each writes its own anew."""

    __tablename__ = "server_process"
    __table_args__ = {"prefixes": ["UNLOGGED"]}
    id: uuid.UUID = Field(primary_key=True)
    until: datetime = instant()


class Tally(SQLModel, table=True):
    """How many of something one process has."""

    __table_args__ = (Index("ix_tally_process_id", "process_id"), {"prefixes": ["UNLOGGED"]})
    key: bytes = Field(sa_type=LargeBinary, primary_key=True)
    process_id: uuid.UUID = Field(primary_key=True, foreign_key="server_process.id", ondelete="CASCADE")
    number: int


@dataclass(frozen=True, slots=True)
class Bound:
    """So many of one kind may be somebody's at once."""

    kind: str
    who: str
    most: int

    @property
    def key(self) -> bytes:
        """What it is counted under."""
        return hashlib.sha256(f"{self.kind}\0{self.who}".encode("utf-8", "surrogatepass")).digest()


class Full(Exception):
    """There are as many as there may be."""

    def __init__(self, bound: Bound) -> None:
        super().__init__(bound.kind)
        self.bound = bound


_Entrant = tuple[asyncio.Future[Bound | None], tuple[Bound, ...]]


def _send_away(entrants: list[_Entrant]) -> None:
    for answer, _ in entrants:
        if not answer.done():
            answer.set_exception(DatabaseUnavailable())


# Whether the process was known still; where it was not, none of its counts is there any more.
_WRITE = """
WITH alive AS (
    INSERT INTO server_process (id, until) VALUES ($1, clock_timestamp() + make_interval(secs => $4))
    ON CONFLICT (id) DO UPDATE SET until = excluded.until
    RETURNING xmax <> 0 AS known
),
dead AS (
    DELETE FROM server_process WHERE id IN (
        SELECT id FROM server_process WHERE until < clock_timestamp() AND id <> $1 FOR UPDATE SKIP LOCKED)
),
gone AS (
    DELETE FROM tally USING unnest($2::bytea[], $3::int[]) own (key, number)
    WHERE tally.process_id = $1 AND tally.key = own.key AND own.number = 0
),
counted AS (
    INSERT INTO tally (key, process_id, number)
    SELECT key, $1, number FROM unnest($2::bytea[], $3::int[]) own (key, number) WHERE number > 0
    ON CONFLICT (key, process_id) DO UPDATE SET number = excluded.number
)
SELECT known FROM alive
"""
_TOTALS = """
SELECT t.key, sum(t.number)::int AS number FROM tally t JOIN server_process p ON p.id = t.process_id
WHERE t.key = ANY($1::bytea[]) AND p.until > clock_timestamp() GROUP BY t.key
"""
_LEAVE = "DELETE FROM server_process WHERE id = $1"


class Tallies:
    """One process's counts, and its word that it is alive."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._process = uuid.uuid4()
        self._own: Counter[bytes] = Counter()
        # Keys whose count differs from what was written, and who waits to be let in, in order.
        self._changed: set[bytes] = set()
        self._waiting: list[_Entrant] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._work(), name="tallies", context=contextvars.Context())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        _send_away(self._waiting)
        with contextlib.suppress(DatabaseUnavailable, asyncpg.PostgresError, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._database.fetch_aside(_LEAVE, self._process)

    async def enter(self, *bounds: Bound) -> None:
        """One more is counted under each of the bounds. Raises `Full`, `DatabaseUnavailable`; then it is not."""
        self._count(bounds, 1)
        answer: asyncio.Future[Bound | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((answer, bounds))
        try:
            full = await answer
            if full is not None:
                raise Full(full)
        except BaseException:
            self.leave(*bounds)
            raise

    def leave(self, *bounds: Bound) -> None:
        """One less is counted under each of the bounds."""
        self._count(bounds, -1)

    def _count(self, bounds: tuple[Bound, ...], change: int) -> None:
        for bound in bounds:
            self._own[bound.key] += change
            self._changed.add(bound.key)
        self._wanted.set()

    async def _work(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), BEAT_S)
            self._wanted.clear()
            if self._own:
                await self._round()
            await asyncio.sleep(PAUSE_S)

    async def _round(self) -> None:
        """What has changed is written, and who waits is let in or not."""
        waiting, self._waiting = self._waiting, []
        changed, self._changed = self._changed, set()
        try:
            if not await self._write(changed) and changed != self._own.keys():
                await self._write(set(self._own))
            totals = await self._totals({bound.key for _, bounds in waiting for bound in bounds})
        except Exception as error:  # whatever it was: it is owed still, and nobody waits for ever
            log.warning("tallies_delayed", kind=type(error).__name__)
            self._changed |= changed
            _send_away(waiting)
            await asyncio.sleep(_RETRY_S)
            return
        except asyncio.CancelledError:
            _send_away(waiting)
            raise
        for key in changed:
            if not self._own[key] and key not in self._changed:
                del self._own[key]
        # The last to come are the ones for whom there is no room.
        for answer, bounds in reversed(waiting):
            full = next((bound for bound in bounds if totals.get(bound.key, 0) > bound.most), None)
            if full is not None:
                for bound in bounds:
                    totals[bound.key] -= 1
            if not answer.done():
                answer.set_result(full)

    async def _write(self, keys: set[bytes]) -> bool:
        """These counts are written and the lease is renewed; whether it was one still."""
        own = [(key, self._own[key]) for key in keys]
        [row] = await self._database.fetch_aside(
            _WRITE, self._process, [key for key, _ in own], [number for _, number in own], LEASE_S
        )
        return bool(row[0])

    async def _totals(self, keys: set[bytes]) -> dict[bytes, int]:
        if not keys:
            return {}
        rows = await self._database.fetch_aside(_TOTALS, list(keys))
        return {row["key"]: row["number"] for row in rows}
