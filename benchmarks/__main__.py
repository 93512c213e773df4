"""`make bench`: everything side by side in one run, and what is reached. Exits with 1 if anything falls short.

QUICK=1 makes fewer and shorter rounds and leaves out the tenfold data.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from statistics import median

from benchmarks import changes, documents, reaches, reads, signins, slots, subscribers
from benchmarks.environment import (
    DATA,
    Environment,
    doctors_token,
    environment,
    install_node_peers,
    token,
    versions,
)
from benchmarks.operations import READS
from benchmarks.servers import NODE_PEERS, Kind, NotStarted, Server, kinds, running

QUICK = os.environ.get("QUICK", "") not in ("", "0")
FEED_PEER = Kind("graphql-ws", ("node", str(NODE_PEERS / "feed.mjs")), {"NODE_ENV": "production"})
ROUNDS, SECONDS = (3, 0.4) if QUICK else (5, 2.0)


def main() -> int:
    started = time.monotonic()
    DATA.mkdir(parents=True, exist_ok=True)
    node = install_node_peers()
    print(f"· {versions()}")
    found: list[reaches.Reach] = []
    with environment(DATA) as where:
        print(f"· PostgreSQL {where.server.version}; the server has core 0, the others share what is left")
        found += _reads(where, kinds(), node=node)
        found += _guards(where, kinds()[reaches.OURS])
        found += _changes(where, kinds(), node=node)
        found += _watching(where, node=node)
        found += _signing_in(where)
        found += _growth(where)
        found += _slots(where)
        found += _documents()
    print()
    for reach in found:
        print(reach)
    print(f"\n{time.monotonic() - started:.0f} s in all")
    short = [reach for reach in found if reach.holds is False]
    return 1 if short else 0


def _start(stack: ExitStack, kind: Kind, url: str) -> Server:
    server = stack.enter_context(running(kind, url, DATA))
    print(f"· {kind.name} answers after {server.ready_after_s:.2f} s")
    return server


def _reads(where: Environment, known: dict[str, Kind], *, node: bool) -> list[reaches.Reach]:
    url = where.database(1)
    mine = token()
    with ExitStack() as stack:
        servers = []
        for kind in known.values():
            if kind.command[0].endswith("node") and not node:
                continue
            servers.append(_start(stack, kind, url))
        ours, others = servers[0], servers[1:]
        compared = reads.verify(ours, others, READS, mine)
        print(f"· {compared} answers of {len(others)} servers hold the same data as EKoyka's")
        results = reads.measure(
            servers,
            READS,
            concurrencies=(1, 32),
            rounds=ROUNDS,
            seconds=SECONDS,
            postmaster=where.postmaster,
            token=mine,
        )
        names = [server.kind.name for server in servers]
        for concurrency in (1, 32):
            print("\n" + reads.table(results, READS, names, concurrency))
        peaks = {server.kind.name: server.peak_bytes() for server in servers}
        print(
            "\npeak memory, MiB: " + ", ".join(f"{name} {peak / 2**20:.0f}" for name, peak in peaks.items())
        )
    return [*reaches.of_reads(results), *reaches.of_memory(peaks)]


def _guards(where: Environment, kind: Kind) -> list[reaches.Reach]:
    """A doctor's board, with and without the access log and row-level security."""
    url = where.database(1)
    print()
    with ExitStack() as stack:
        servers = [_start(stack, kind, url)]
        for name in (reaches.WITHOUT_LOG, reaches.WITHOUT_WALL):
            command = (kind.command[0], "-m", "benchmarks.without", name.rpartition(" ")[2])
            servers.append(_start(stack, replace(kind, name=name, command=command), url))
        results = reads.measure(
            servers,
            ("board", "point"),
            concurrencies=(1, 32),
            rounds=ROUNDS,
            seconds=SECONDS,
            postmaster=where.postmaster,
            token=doctors_token(),
        )
        for concurrency in (1, 32):
            print(
                "\n" + reads.table(results, ("board", "point"), [s.kind.name for s in servers], concurrency)
            )
    return reaches.of_guards(results)


def _changes(where: Environment, known: dict[str, Kind], *, node: bool) -> list[reaches.Reach]:
    """Check-ins per second, into different beds of all dispensaries."""
    url = where.database(1)
    print()
    with ExitStack() as stack:
        names = (reaches.OURS, *(("Mercurius", "Apollo") if node else ()))
        rates = changes.measure(
            [_start(stack, known[name], url) for name in names],
            url,
            where.programs,
            DATA,
            rounds=2 if QUICK else 5,
            each=100 if QUICK else 300,
        )
    print("check-ins a second: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    return reaches.of_changes(rates)


def _watching(where: Environment, *, node: bool) -> list[reaches.Reach]:
    """From a commit to the last of many deliveries, and what an idle subscriber weighs."""
    url = where.database(1)
    print()
    with ExitStack() as stack:
        peer = _start(stack, FEED_PEER, url).port if node else None
        for count in (100, 1000, 3000):
            delivery = asyncio.run(subscribers.compare(url, count, rounds=3 if QUICK else 9, peer_port=peer))
            print(delivery)
    bare, ours = asyncio.run(subscribers.weigh(url, 1000))
    print(f"an idle WebSocket takes {bare / 1024:.1f} KiB, an idle subscriber {ours / 1024:.1f} KiB")
    return reaches.of_watching(delivery, bare, ours)


def _signing_in(where: Environment) -> list[reaches.Reach]:
    """What a hundred sign-ins at once cost everybody else."""
    url = where.database(1)
    print()
    with ExitStack() as stack:
        server = _start(stack, kinds()[reaches.OURS], url)
        found = signins.compare(server.port, url, rounds=1 if QUICK else 3)
    for name, waits in found.items():
        print(f"{name}: {waits}")
    return reaches.of_sign_ins(found[signins.BESIDE].percentile_s(0.99))


def _growth(where: Environment) -> list[reaches.Reach]:
    """The same at a tenth and at ten times the data."""
    sizes = (
        {"ekoyka x0.1": 0.1, "ekoyka": 1.0}
        if QUICK
        else {"ekoyka x0.1": 0.1, "ekoyka": 1.0, "ekoyka x10": 10.0}
    )
    kind = kinds()["ekoyka"]
    some = ("board", "list", "point", "history")
    with ExitStack() as stack:
        servers = [
            _start(stack, replace(kind, name=name), where.database(scale)) for name, scale in sizes.items()
        ]
        results = reads.measure(
            servers,
            some,
            concurrencies=(32,),
            rounds=ROUNDS,
            seconds=SECONDS,
            postmaster=where.postmaster,
            token=token(),
        )
        print("\n" + reads.table(results, some, list(sizes), 32))
        print(f"start-up: {median(server.ready_after_s for server in servers):.2f} s")
    return reaches.of_growth(results, results)


def _slots(where: Environment) -> list[reaches.Reach]:
    """The outpatient doctors' slots of a month."""
    figures = asyncio.run(slots.measure(where))
    print(f"\n{figures}")
    return [
        reaches.Reach(
            f"slots of {slots.DOCTORS} doctors for {slots.DAYS} days: made", figures.made_s, 20, False, "s"
        )
    ]


def _documents() -> list[reaches.Reach]:
    return [
        reaches.Reach(
            "the board's document, never seen before", documents.unseen_board_s() * 1e3, 3, False, "ms"
        )
    ]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (NotStarted, reads.Differs) as error:
        sys.exit(str(error))
