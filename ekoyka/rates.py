"""How often something may be done: counters in PostgreSQL, shared by all processes.

Each attempt is counted before it is made, by one statement, so that a hundred at once are a hundred. What is
counted is known by a digest alone: no e-mail address and no network address is kept. Of the libraries for
rates none keeps its counters in PostgreSQL, and there is no other server here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from math import ceil

from sqlalchemy import LargeBinary
from sqlmodel import Field, SQLModel

from ekoyka.columns import instant
from ekoyka.database import Database

# Of attempts that get slower: the first wait, which doubles, and the longest.
FIRST_WAIT_S, LONGEST_WAIT_S = 60, 900


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
    the one before, and all is forgotten after a window without any.
    """

    kind: str
    who: str
    free: int
    window_s: int
    slower: bool = False

    @property
    def key(self) -> bytes:
        """What it is counted under."""
        return hashlib.sha256(f"{self.kind}\0{self.who}".encode("utf-8", "surrogatepass")).digest()


_COUNT = f"""
WITH clock AS (SELECT clock_timestamp() AS now)
INSERT INTO rate AS r (key, free, window_s, slower, attempts, at, refused)
SELECT key, free, window_s, slower, 1, now, false
FROM clock, unnest($1::bytea[], $2::int[], $3::int[], $4::boolean[]) asked (key, free, window_s, slower)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET (attempts, at, until, refused) = (
    SELECT n, since, CASE WHEN held THEN r.until WHEN n < r.free THEN NULL
        WHEN r.slower
        THEN excluded.at + make_interval(secs => least({LONGEST_WAIT_S}, {FIRST_WAIT_S} * 2 ^ (n - r.free)))
        ELSE since + make_interval(secs => r.window_s) END, held
    FROM (SELECT coalesce(r.until > excluded.at, false) AS held,
                 r.at < excluded.at - make_interval(secs => r.window_s) AS over) state,
    LATERAL (SELECT CASE WHEN held THEN r.attempts WHEN over THEN 1 ELSE r.attempts + 1 END AS n,
                    CASE WHEN held THEN r.at WHEN over OR r.slower THEN excluded.at ELSE r.at END AS since) next
)
RETURNING CASE WHEN refused THEN extract(epoch FROM until - clock_timestamp()) END AS wait_s
"""


async def attempt(database: Database, *limits: Limit) -> None:
    """An attempt is counted under each of the limits. Raises `RateLimited` where one of them is used up."""
    rows = await database.fetch(
        _COUNT,
        [limit.key for limit in limits],
        [limit.free for limit in limits],
        [limit.window_s for limit in limits],
        [limit.slower for limit in limits],
    )
    waits = [row["wait_s"] for row in rows if row["wait_s"] is not None]
    if waits:
        raise RateLimited(max(1, ceil(max(waits))))


async def forgive(database: Database, *limits: Limit) -> None:
    """What was counted under these limits is forgotten."""
    await database.fetch("DELETE FROM rate WHERE key = ANY($1::bytea[])", [limit.key for limit in limits])


async def sweep(database: Database) -> None:
    """Counters that mean nothing any more are gone."""
    await database.fetch(
        "DELETE FROM rate WHERE at < clock_timestamp() - make_interval(secs => window_s) "
        "AND coalesce(until < clock_timestamp(), true)"
    )
