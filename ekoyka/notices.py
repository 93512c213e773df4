"""Notifications sent once a change is committed: many at a time, on a connection that changes nothing.

PostgreSQL lets transactions that NOTIFY commit one after the other, each waiting for the other's write to the
disk. So changes do not notify; they leave word here, and it is sent when they are committed. What a process that
dies takes along unsent is found by whoever listens when it next looks for itself (`feed.Feed`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Mapping

import structlog

log = structlog.get_logger(__name__)

# The shortest time from one sending to the next: what is committed meanwhile goes together.
PAUSE_S = 0.01
_RETRY_S = (0.1, 1.0)


class Notices:
    """What one process has committed and told nobody yet: the last number by name."""

    def __init__(self, send: Callable[[Mapping[str, int]], Awaitable[object]]) -> None:
        self._send = send
        self._unsent: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, notices: Mapping[str, int]) -> None:
        """They are sent soon; of a name, the highest number alone."""
        for name, number in notices.items():
            self._unsent[name] = max(number, self._unsent.get(name, number))
        if self._task is None and self._unsent:
            # An empty context: what is logged is no single request's.
            self._task = asyncio.get_running_loop().create_task(
                self._send_all(), name="notices", context=contextvars.Context()
            )

    async def close(self, patience_s: float) -> None:
        """What can be sent in this time has been."""
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._task, patience_s)

    async def _send_all(self) -> None:
        retry, longest = _RETRY_S
        try:
            while self._unsent:
                sending, self._unsent = self._unsent, {}
                try:
                    await self._send(sending)
                except Exception as error:  # whatever it was: they are owed still
                    log.warning("notices_delayed", kind=type(error).__name__)
                    self._unsent = sending | self._unsent
                    await asyncio.sleep(retry)
                    retry = min(retry * 2, longest)
                else:
                    retry = _RETRY_S[0]
                    await asyncio.sleep(PAUSE_S)
        finally:
            self._task = None
