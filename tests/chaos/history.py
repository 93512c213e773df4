"""What was asked of the servers and what they answered: every request, with its instants, in memory and in a file."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson

# The clock on the wall as it was at the start, carried on by one that is never set.
_OFFSET_S = time.time() - time.monotonic()


def now() -> float:
    """Seconds since 1970; differences are true even when the clock is set."""
    return time.monotonic() + _OFFSET_S


async def until(question: Callable[[], Awaitable[bool]] | Callable[[], bool], patience_s: float) -> bool:
    """Whether it has become so in this time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while True:
                answer = question()
                if answer if isinstance(answer, bool) else await answer:
                    return True
                await asyncio.sleep(0.02)
    return False


class Outcome(StrEnum):
    """What a client knows afterwards."""

    DONE = "done"
    REFUSED = "refused by name"
    NOT_DONE = "not done, retryable"
    UNKNOWN = "done or not, retryable"
    UNNAMED = "no named answer"


# The codes of errors after which the same request may be sent again, and what they say of the first.
RETRYABLE = {
    "SERVICE_UNAVAILABLE": Outcome.NOT_DONE,
    "RATE_LIMITED": Outcome.NOT_DONE,
    "TIMED_OUT": Outcome.UNKNOWN,
    "OUTCOME_UNKNOWN": Outcome.UNKNOWN,
}


@dataclasses.dataclass(slots=True)
class Request:
    """One request to one server, and what became of it."""

    id: str
    server: int
    field: str
    input: dict[str, Any]
    began: float
    ended: float = math.inf
    outcome: Outcome = Outcome.UNKNOWN
    code: str = ""
    answer: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> str | None:
        """Its idempotency key."""
        return self.input.get("idempotencyKey")


class History:
    """All requests, in the order in which they were sent."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def begin(self, id: str, server: int, field: str, input: dict[str, Any]) -> Request:
        """The request is about to be sent."""
        request = Request(id, server, field, input, now())
        self.requests.append(request)
        return request

    def outcomes(self) -> dict[tuple[str, str], int]:
        """How many requests of each field ended how: by outcome, with the code where there is one."""
        counted: dict[tuple[str, str], int] = {}
        for item in self.requests:
            key = (item.field, f"{item.outcome} {item.code}".strip())
            counted[key] = counted.get(key, 0) + 1
        return counted

    def keep(self, path: Path) -> None:
        """It stands in the file, a line each."""
        path.write_bytes(b"".join(orjson.dumps(dataclasses.asdict(item)) + b"\n" for item in self.requests))
