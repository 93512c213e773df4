"""The chain over the access log: an entry that is removed, altered or slipped in afterwards does not fit it.

Entries are written by many at once, in no order; every few seconds one process seals those that are not sealed
yet. A seal names its entries and holds the SHA-256 of the seal before it and of their texts. Whoever rewrote the
whole chain could still be found out: the last seal is told to the log of the server, which leaves the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database, Statement

log = structlog.get_logger(__name__)

SEAL_EVERY_S = 5.0
# A seal is told of to the log no more often than this, and the entries of one are no more.
TELL_EVERY_S = 60
MOST = 20_000
# Longer than any transaction of ours: an entry that was not sealed by then has been slipped in.
LATEST_S = 600

# Any constant of ours, for one sealer at a time.
_LOCK = 0x656B7365616C
_DIGEST = (
    "sha256(coalesce({before}, '') || convert_to(string_agg(access_text(e), E'\\n' ORDER BY e.id), 'UTF8'))"
)

_SEAL = Statement(
    f"""
    WITH last AS (SELECT number, digest FROM access_seal ORDER BY number DESC LIMIT 1),
    recent AS (
        SELECT coalesce(range_agg(part), '{{}}') AS entries
        FROM access_seal s, unnest(s.entries) part WHERE s.at > now() - interval '{LATEST_S} s'
    ), past AS (
        SELECT coalesce(max(upper(entries)), 0) AS reached
        FROM access_seal WHERE at <= now() - interval '{LATEST_S} s'
    ), fresh AS (
        SELECT e.* FROM access_entry e, recent, past
        WHERE e.id >= past.reached AND NOT e.id <@ recent.entries ORDER BY e.id LIMIT {MOST}
    )
    INSERT INTO access_seal (number, entries, size, digest)
    SELECT coalesce((SELECT number FROM last), 0) + 1, range_agg(int8range(e.id, e.id, '[]')), count(*),
        {_DIGEST.format(before="(SELECT digest FROM last)")}
    FROM fresh e HAVING count(*) > 0
    RETURNING number, size, encode(digest, 'hex') AS digest
    """
)


@dataclass(frozen=True, slots=True)
class Seal:
    """A seal as it is told of; ``digest`` in hexadecimal."""

    number: int
    size: int
    digest: str


async def seal(session: AsyncSession) -> Seal | None:
    """What was not sealed yet is; None where that is nothing, or another process is at it."""
    if not (await _TRY.row(session, key=_LOCK)).mine:
        return None
    made = await _SEAL.rows(session)
    return Seal(made[0].number, made[0].size, made[0].digest) if made else None


_TRY = Statement("SELECT pg_try_advisory_xact_lock(CAST(:key AS bigint)) AS mine")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an inspection found: each number is of what is not as it should be, but for the last seal."""

    broken_seals: list[int]
    missing_seals: int
    unsealed: int
    altered_sets: int
    last: Seal | None

    @property
    def whole(self) -> bool:
        """Whether nothing was removed, altered or slipped in."""
        return not (self.broken_seals or self.missing_seals or self.unsealed or self.altered_sets)


_BROKEN = f"""
    WITH chain AS (SELECT s.*, lag(s.digest) OVER (ORDER BY s.number) AS before FROM access_seal s)
    SELECT c.number FROM chain c LEFT JOIN LATERAL (
        SELECT count(*) AS size, {_DIGEST.format(before="c.before")} AS digest
        FROM unnest(c.entries) part JOIN access_entry e ON e.id >= lower(part) AND e.id < upper(part)
    ) found ON true
    WHERE found.size <> c.size OR found.digest IS DISTINCT FROM c.digest
    ORDER BY c.number LIMIT 20
"""
_REST = f"""
    SELECT (SELECT coalesce(max(number), 0) - count(*) FROM access_seal) AS missing,
        (SELECT count(*) FROM access_entry e WHERE e.at < now() - interval '{LATEST_S} s' AND NOT e.id <@
            (SELECT coalesce(range_agg(part), '{{}}') FROM access_seal s, unnest(s.entries) part)) AS unsealed,
        (SELECT count(*) FROM access_set
            WHERE digest <> sha256(convert_to(array_to_string(patients, ','), 'UTF8'))) AS altered
"""
_LAST = "SELECT number, size, encode(digest, 'hex') AS digest FROM access_seal ORDER BY number DESC LIMIT 1"


async def inspect(database: Database) -> Verdict:
    """Every seal and set is computed anew and compared; as the ward's role, which sees all entries."""
    broken = await database.fetch(_BROKEN)
    [rest] = await database.fetch(_REST)
    last = await database.fetch(_LAST)
    return Verdict(
        broken_seals=[row["number"] for row in broken],
        missing_seals=rest["missing"],
        unsealed=rest["unsealed"],
        altered_sets=rest["altered"],
        last=Seal(**dict(last[0])) if last else None,
    )


class Sealer:
    """One process's turns at sealing."""

    def __init__(self, database: Database, ward: str) -> None:
        self._database = database
        self._ward = ward
        self._told_at = 0.0

    async def turn(self, now: float) -> None:
        """What is not sealed yet is, if no other process is at it; now and then the log is told."""
        try:
            async with self._database.transaction(ward=self._ward) as session:
                made = await seal(session)
        except asyncpg.UniqueViolationError:
            return  # another process was quicker by a moment
        if made is not None and now - self._told_at >= TELL_EVERY_S:
            self._told_at = now
            log.info("access_log_sealed", number=made.number, digest=made.digest)
