"""How often something may be done: counters in PostgreSQL, shared by all processes.

Each attempt is counted before it is made, by one statement, so that a hundred at once are a hundred. What is
counted is known by a digest alone: no e-mail address and no network address is kept. Of the libraries for
rates none keeps its counters in PostgreSQL, and there is no other server here.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from math import ceil

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel

from ekoyka.cache import Cache
from ekoyka.columns import instant
from ekoyka.database import Database

# Of attempts that get slower: the first wait, which doubles, and the longest.
FIRST_WAIT_S, LONGEST_WAIT_S = 60, 900
PURSES_KEPT = 10_000


class Rate(SQLModel, table=True):
    """A counter. Lost when PostgreSQL crashes, and then everybody begins anew."""

    __table_args__ = {"prefixes": ["UNLOGGED"]}
    key: bytes = Field(sa_type=LargeBinary, primary_key=True)
    free: int
    window_s: int
    slower: bool
    attempts: int
    at: datetime = instant()
    until: datetime | None = instant(nullable=True)
    refused: bool = False


class RateLimited(Exception):
    """It was done too often; it may be done again after so many seconds."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("too often")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Limit:
    """So many attempts of one kind by one somebody are free.

    The next ones wait until a window of so many seconds is over; or, ``slower``, each waits twice as long as
    the one before, and all is forgotten after a window without any. An attempt counts as many as its ``weight``;
    with none it only asks whether there may be one.
    """

    kind: str
    who: str
    free: int
    window_s: int
    slower: bool = False
    weight: int = 1

    @property
    def key(self) -> bytes:
        """What it is counted under."""
        return hashlib.sha256(f"{self.kind}\0{self.who}".encode("utf-8", "surrogatepass")).digest()


def _step(number: int) -> str:
    """SQL that counts under the limit of this number, unless one before has refused."""
    key, free, window_s, slower, weight = (
        f"${5 * number + place}::{kind}"
        for place, kind in enumerate(("bytea", "int", "int", "boolean", "int"), start=1)
    )
    earlier = " AND ".join(f"NOT EXISTS (SELECT FROM l{n} WHERE wait_s IS NOT NULL)" for n in range(number))
    return f"""
l{number} AS (
    INSERT INTO rate AS r (key, free, window_s, slower, attempts, at, until, refused)
    SELECT {key}, {free}, {window_s}, {slower}, {weight}, now, CASE WHEN {weight} >= {free} THEN
        now + make_interval(secs => CASE WHEN {slower} THEN {FIRST_WAIT_S} ELSE {window_s} END) END, false
    FROM clock WHERE {earlier or "true"}
    ON CONFLICT (key) DO UPDATE SET (attempts, at, until, refused) = (
        SELECT n, since, CASE WHEN held OR asked THEN r.until WHEN n < r.free THEN NULL
            WHEN r.slower
            THEN excluded.at + make_interval(secs => least({LONGEST_WAIT_S}, {FIRST_WAIT_S} * 2 ^ (n - r.free)))
            ELSE since + make_interval(secs => r.window_s) END, held
        FROM (SELECT coalesce(r.until > excluded.at, false) AS held, excluded.attempts = 0 AS asked,
                     r.at < excluded.at - make_interval(secs => r.window_s) AS over) state,
        LATERAL (SELECT CASE WHEN held THEN r.attempts WHEN over THEN excluded.attempts
                             ELSE r.attempts + excluded.attempts END AS n,
                        CASE WHEN NOT held AND (over OR r.slower AND NOT asked) THEN excluded.at
                             ELSE r.at END AS since) next
    )
    RETURNING CASE WHEN refused THEN extract(epoch FROM until - clock_timestamp()) END AS wait_s
)"""


@cache
def _count(limits: int) -> str:
    steps = ",".join(_step(number) for number in range(limits))
    waits = " UNION ALL ".join(f"SELECT wait_s FROM l{number}" for number in range(limits))
    return f"WITH clock AS (SELECT clock_timestamp() AS now),{steps} {waits}"


async def attempt(database: Database, *limits: Limit) -> None:
    """An attempt is counted under each of the limits, up to the first that is used up.

    Name the narrow ones first: what one of them refuses must not use up those that are everybody's. Raises
    `RateLimited`.
    """
    rows = await database.fetch(
        _count(len(limits)),
        *(
            value
            for limit in limits
            for value in (limit.key, limit.free, limit.window_s, limit.slower, limit.weight)
        ),
    )
    waits = [row["wait_s"] for row in rows if row["wait_s"] is not None]
    if waits:
        raise RateLimited(max(1, ceil(max(waits))))


async def forgive(database: Database, *limits: Limit) -> None:
    """What was counted under these limits is forgotten."""
    await database.fetch("DELETE FROM rate WHERE key = ANY($1::bytea[])", [limit.key for limit in limits])


@dataclass(slots=True)
class _Held:
    """What somebody has left of what was fetched for them, and until when they were refused more."""

    left: int = 0
    refused_until_s: float = 0.0
    fetching: asyncio.Lock = field(default_factory=asyncio.Lock)


class Purses:
    """What one process may spend on behalf of many, of limits that it shares with others.

    Fetched from the counters in portions, so that most of what is spent costs no statement. What is left of a
    portion stays good: a process holds at most one of each.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: Cache[str, _Held] = Cache(PURSES_KEPT)

    async def spend(self, who: str, amount: int, *limits: Limit) -> None:
        """So much is spent; each limit's weight is the portion. Raises `RateLimited`."""
        held = self._held.get(who)
        if held is None:
            held = _Held()
            self._held.put(who, held)
        async with held.fetching:
            while held.left < amount:
                now = time.monotonic()
                if held.refused_until_s > now:
                    raise RateLimited(ceil(held.refused_until_s - now))
                try:
                    await attempt(self._database, *limits)
                except RateLimited as limited:
                    held.refused_until_s = now + limited.retry_after_s
                    raise
                held.left += limits[0].weight
            held.left -= amount


async def sweep(database: Database) -> None:
    """Counters that mean nothing any more are gone."""
    await database.fetch(
        "DELETE FROM rate WHERE at < clock_timestamp() - make_interval(secs => window_s) "
        "AND coalesce(until < clock_timestamp(), true)"
    )
