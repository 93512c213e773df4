"""Connections that have fallen silent: PostgreSQL was asked something, and no answer nor end of it will come.

What stands between (a firewall, a proxy, a host that is gone) can lose what is under way and tell neither side.
The driver would wait for ever, and PostgreSQL would keep what the transaction has locked. So whoever has waited for
a while is asked about on another connection: where PostgreSQL does nothing for it, it is ended, on both sides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeAlias
from weakref import WeakKeyDictionary

import asyncpg
import structlog

log = structlog.get_logger(__name__)

# Nearly all statements are answered in a hundredth of this.
SUSPICIOUS_S = 1.0
# PostgreSQL has had nothing to do for a second, and has not after this long either: whoever was only held up, here or
# there, by too much work, has said something in the meantime.
_MOMENT_S = 1.0
# Where some have fallen silent, others have with them, and less is needed to tell. Those that waited in PostgreSQL for
# what the first had locked are found out one after the other.
_SOON_S = 0.2
# Nor is the connection waited for longer that is asked about the others.
PATIENCE_S = 1.5
# The first column guards against what gives connections numbers of its own, as poolers do. Of what may not be seen
# nothing is believed.
_IDLE = """
SELECT pg_backend_pid() = $2 AS by_number, ARRAY(
    SELECT asked FROM unnest($1::int[]) asked WHERE NOT EXISTS (
        SELECT FROM pg_stat_activity a WHERE a.pid = asked AND (
            a.state LIKE 'idle%' AND a.state_change < clock_timestamp() - make_interval(secs => $3)
        ) IS NOT TRUE)) AS idle
"""
# A process that began since then has only got the number of one that is gone.
_END = """
SELECT pg_terminate_backend(a.pid) FROM unnest($1::int[], $2::float8[]) gone (pid, ago)
JOIN pg_stat_activity a ON a.pid = gone.pid AND a.backend_start < clock_timestamp() - make_interval(secs => ago)
WHERE pg_backend_pid() = $3 AND pg_has_role(a.usename, 'USAGE') AND a.application_name LIKE 'ekoyka %'
"""

Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Silence:
    """One process's connections, and since when each of those at work has been."""

    def __init__(self) -> None:
        # By the number of PostgreSQL's process, which one that is closed does not tell any more.
        self._known: WeakKeyDictionary[Driver, int] = WeakKeyDictionary()
        self._at_work: dict[Driver, float] = {}
        # What PostgreSQL may not have heard: whom it works for no more, by its process's number, and since when.
        self._abandoned: dict[int, float] = {}

    def begins(self, driver: Driver) -> None:
        """The connection is about to be asked something."""
        self._known[driver] = driver.get_server_pid()
        self._at_work[driver] = asyncio.get_running_loop().time()

    def ends(self, driver: Driver) -> None:
        """Nobody waits for the connection any more."""
        self._at_work.pop(driver, None)

    def abandon(self, driver: Driver) -> None:
        """The connection is closed amid its work; should PostgreSQL not hear of it, it is told on another one.

        So it is where somebody else has closed it: SQLAlchemy closes those that are given up while they work for it.
        """
        self._abandoned[self._known[driver]] = asyncio.get_running_loop().time()
        if not driver.is_closed():
            driver.terminate()

    def distrust(self) -> None:
        """Connections that nobody uses right now are closed: they were there when another one fell silent."""
        for driver in list(self._known):
            if driver not in self._at_work:
                if not driver.is_closed():
                    self.abandon(driver)
                self._known.pop(driver, None)

    async def listen(self, asking: Driver) -> None:
        """The connections that have fallen silent are ended, as this one says, which is none of them.

        Raises `TimeoutError` where it is one itself.
        """
        await self._end_abandoned(asking)
        moment_s = _MOMENT_S
        while await self._end_silent(asking, moment_s):
            moment_s = _SOON_S
            await asyncio.sleep(2 * moment_s)

    async def _end_silent(self, asking: Driver, moment_s: float) -> bool:
        """Those that have been silent for this long, and are for as long again, are ended; whether there were any."""
        suspects = self._waiting()
        idle = await _idle(asking, suspects, moment_s) if suspects else set()
        if idle:
            await asyncio.sleep(moment_s)
            idle = await _idle(asking, idle & self._waiting().keys(), moment_s)
        silent = [driver for pid, driver in self._waiting().items() if pid in idle]
        if not silent:
            return False
        log.warning("connections_silent", count=len(silent))
        for driver in silent:
            self.abandon(driver)
        self.distrust()
        await self._end_abandoned(asking)
        return True

    async def _end_abandoned(self, asking: Driver) -> None:
        """What they have locked is free."""
        if not self._abandoned:
            return
        now, told = asyncio.get_running_loop().time(), dict(self._abandoned)
        ago = [now - since for since in told.values()]
        await asking.fetch(_END, list(told), ago, asking.get_server_pid(), timeout=PATIENCE_S)
        for pid, since in told.items():
            if self._abandoned.get(pid) == since:
                del self._abandoned[pid]

    def _waiting(self) -> dict[int, Driver]:
        """Who has waited for so long that something may be wrong, by the number of PostgreSQL's process."""
        since = asyncio.get_running_loop().time() - SUSPICIOUS_S
        return {
            driver.get_server_pid(): driver
            for driver, began in self._at_work.items()
            if began < since and not driver.is_closed()
        }


async def _idle(asking: Driver, pids: Iterable[int], moment_s: float) -> set[int]:
    """Those of PostgreSQL's processes that have had nothing to do for this long, or are not there."""
    row = await asking.fetchrow(_IDLE, list(pids), asking.get_server_pid(), moment_s, timeout=PATIENCE_S)
    return set(row["idle"]) if row is not None and row["by_number"] else set()
