"""What a hundred sign-ins at once cost everybody else: `python -m benchmarks.signins`.

bcrypt at its production cost takes a quarter of a second of a core for each, on a server that is pinned to one.
Meanwhile queries are sent at a fixed rate, and their waits are counted from when they were due: a query that
waits makes the next ones late, too. The floor is the same without anybody signing in.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from urllib.parse import urlencode

import asyncpg
import bcrypt

from benchmarks import load
from benchmarks.environment import DATA, environment, token
from benchmarks.operations import TEXTS, variables
from benchmarks.servers import kinds, running

PASSWORD = "a horse for the benchmark"
AT_ONCE = 100
ALONE, BESIDE = "nobody signs in", f"{AT_ONCE} sign in at once"
_LINES = 8


@dataclass(frozen=True)
class Waits:
    """How long queries waited, in ascending order; how the sign-ins beside them ended, by status, and when all had."""

    queries_s: Sequence[float]
    statuses: Sequence[int]
    sign_ins_s: float

    def percentile_s(self, share: float) -> float:
        """The wait that this share of the queries did not exceed."""
        return self.queries_s[min(len(self.queries_s) - 1, int(share * len(self.queries_s)))]

    def __str__(self) -> str:
        times = ", ".join(
            f"{name} {self.percentile_s(share) * 1e3:.1f}"
            for name, share in (("p50", 0.5), ("p99", 0.99), ("worst", 1))
        )
        good = self.statuses.count(200)
        return f"{len(self.queries_s)} queries, ms: {times}" + (
            f"; {good} of {len(self.statuses)} signed in, in {self.sign_ins_s:.1f} s" if self.statuses else ""
        )


async def accounts(url: str, *, rounds: int) -> list[str]:
    """A hundred accounts that sign in with the password, and what was counted of their sign-ins is forgotten."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(rounds)).decode()
    emails = [f"sign-in-{number}@example.org" for number in range(AT_ONCE)]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(
            "INSERT INTO account (email, name, password_hash, language, auth_version, version) "
            "SELECT unnest($1::text[]), 'x', $2, 'ru', 1, 1 "
            "ON CONFLICT (email) DO UPDATE SET password_hash = excluded.password_hash",
            emails,
            hashed,
        )
        await connection.execute("DELETE FROM rate")
    finally:
        await connection.close()
    return emails


async def measure(
    port: int, queries: Sequence[bytes], emails: Sequence[str], *, rate: float = 200, least_s: float = 3
) -> Waits:
    """So many queries a second are sent while all of these sign in at once; for so long at least."""
    waits: list[float] = []
    over = asyncio.Event()
    lines = [
        asyncio.create_task(_line(port, queries, number, _LINES / rate, waits, over))
        for number in range(_LINES)
    ]
    await asyncio.sleep(0.5)
    waits.clear()
    began = perf_counter()
    statuses = await asyncio.gather(*(_sign_in(port, email) for email in emails))
    took_s = perf_counter() - began
    await asyncio.sleep(max(0.0, least_s - took_s))
    over.set()
    await asyncio.gather(*lines)
    return Waits(sorted(waits), statuses, took_s)


async def _line(
    port: int,
    queries: Sequence[bytes],
    number: int,
    every_s: float,
    waits: list[float],
    over: asyncio.Event,
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    due = perf_counter() + number * every_s / _LINES
    turn = number
    while not over.is_set():
        await asyncio.sleep(max(0.0, due - perf_counter()))
        writer.write(queries[turn % len(queries)])
        status = await _answered(reader)
        waits.append(perf_counter() - due)
        if status != 200:
            raise load.BadAnswer(f"a query was answered with {status}")
        due += every_s
        turn += 1
    writer.close()


async def _sign_in(port: int, email: str) -> int:
    body = urlencode({"grant_type": "password", "username": email, "password": PASSWORD})
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"POST /auth/token HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    status = await _answered(reader)
    writer.close()
    return status


async def _answered(reader: asyncio.StreamReader) -> int:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head[9:12])


def queries(port: int) -> list[bytes]:
    """One bed and the board, in turn, from all over the data."""
    return [
        load.request(
            port,
            json.dumps({"query": TEXTS[name], "variables": variables(name, turn)}).encode(),
            token(),
        )
        for turn in range(20)
        for name in ("point", "board")
    ]


def main() -> None:
    """The floor and the load, in turns."""
    rounds = 1 if os.environ.get("QUICK", "") not in ("", "0") else 3
    DATA.mkdir(parents=True, exist_ok=True)
    with environment(DATA) as where:
        url = where.database(1)
        with running(kinds()["ekoyka"], url, DATA) as server:
            for name, waits in compare(server.port, url, rounds=rounds).items():
                print(f"{name}: {waits}")


def compare(port: int, url: str, *, rounds: int) -> dict[str, Waits]:
    """The round of the median p99, without sign-ins and beside them."""
    found: dict[str, list[Waits]] = {ALONE: [], BESIDE: []}
    for _ in range(rounds):
        emails = asyncio.run(accounts(url, rounds=12))
        for name, who in zip(found, ([], emails), strict=True):
            found[name].append(asyncio.run(measure(port, queries(port), who)))
    return {
        name: sorted(several, key=lambda waits: waits.percentile_s(0.99))[len(several) // 2]
        for name, several in found.items()
    }


if __name__ == "__main__":
    main()
