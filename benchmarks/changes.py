"""Check-ins per second into different beds: the server, the peers on node, and the bare transaction under pgbench."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from benchmarks import checkins, load
from benchmarks.servers import TOKEN_KEY, Server
from ekoyka.database import WARD_ROLE, Database
from ekoyka.feed import Feed, publishing
from ekoyka.identity.credentials import Tokens
from ekoyka.notices import PAUSE_S
from ekoyka.settings import Mode, Settings

CONNECTIONS = 10
BARE, TOLD, UNFED = "pgbench", "pgbench while a server tells of it", "pgbench without the feed"
PEER_MUTATION = """mutation CheckIn($input: StayCheckInInput!) { stayCheckIn(input: $input) {
  __typename
  ... on Stay { id version checkedInAt currentBed { id label status } patient { id } }
  ... on BedOccupied { message }
} }"""
_TPS = re.compile(r"^tps = ([0-9.]+)", re.M)


def measure(
    servers: Sequence[Server], url: str, programs: Path, folder: Path, *, rounds: int, each: int
) -> Mapping[str, float]:
    """Medians of check-ins per second by server, in turns; each of the connections makes so many a round."""
    count = CONNECTIONS * each
    ground = asyncio.run(checkins.prepare(url, count))
    settings = Settings(
        mode=Mode.PRODUCTION,
        database_url=url,
        token_keys=TOKEN_KEY,
        data_dir=folder / "data",
        log_level="WARNING",
    )
    script = asyncio.run(checkins.pgbench_script(settings, ground))
    asyncio.run(checkins.reset(url))
    (folder / "check-in.sql").write_text(script)
    unfed = script.replace(
        " ".join(publishing("event").split()), "counted AS (SELECT topic, 1 AS last_cursor FROM event)"
    )
    assert unfed != script
    (folder / "check-in-unfed.sql").write_text(unfed)
    token = Tokens([TOKEN_KEY], issuer="ekoyka", ttl_s=7200).issue(ground.actor).text
    rates: dict[str, list[float]] = {}
    try:
        for _ in range(rounds):
            for server in servers:
                rates.setdefault(server.kind.name, []).append(_served(server, ground, token))
                _check(url, count)
            for name, file in ((BARE, "check-in.sql"), (TOLD, "check-in.sql"), (UNFED, "check-in-unfed.sql")):
                with _telling(url, settings) if name == TOLD else nullcontext():
                    rates.setdefault(name, []).append(_bare(programs, folder / file, url, each))
                _check(url, count)
    finally:
        asyncio.run(checkins.remove(url))
    return {name: median(found) for name, found in rates.items()}


@contextmanager
def _telling(url: str, settings: Settings) -> Iterator[None]:
    """A process's feed, of which somebody follows every dispensary, and which has always something to tell."""

    async def tell() -> None:
        async with (
            Database(url, settings, role=WARD_ROLE) as database,
            Feed(database) as feed,
        ):
            topics = [row["topic"] for row in await database.fetch("SELECT topic FROM feed_topic")]
            for topic in topics:
                feed.follow(topic, lambda _: None)
            number = 0
            while not ended.is_set():
                number += 1
                database.notices.add(dict.fromkeys(topics, number))
                await asyncio.sleep(PAUSE_S)

    ended = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(tell()))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _check(url: str, count: int) -> None:
    """All of them are in their beds; then nobody ever was."""
    made = asyncio.run(checkins.check_ins(url))
    assert made == count, f"{made} of {count} check-ins were made"
    asyncio.run(checkins.reset(url))


def _served(server: Server, ground: checkins.Ground, token: str) -> float:
    ours = server.kind.name == "ekoyka"
    wire = []
    for number in range(ground.count):
        request = ground.request(number)
        if not ours:
            request["query"] = PEER_MUTATION
        wire.append(load.request(server.port, json.dumps(request).encode(), token if ours else None))
    return load.run_all(server.port, wire, concurrency=32).rate


def _bare(programs: Path, script: Path, url: str, each: int) -> float:
    pgbench = shutil.which("pgbench", path=str(programs))
    assert pgbench is not None, f"no pgbench in {programs}"
    done = subprocess.run(
        [
            pgbench,
            *("-n", "-M", "prepared", "-c", str(CONNECTIONS), "-j", "1", "-t", str(each)),
            *("-D", f"each={each}", "-D", "n=-1", "-f", str(script), url),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = _TPS.search(done.stdout)
    assert found is not None, done.stdout + done.stderr
    return float(found[1])
