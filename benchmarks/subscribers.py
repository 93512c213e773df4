"""Subscribers: from a commit to the last of thousands of deliveries, and what an idle subscriber weighs.

    python -m benchmarks.subscribers deliver --database postgresql://… 100 1000 3000
    python -m benchmarks.subscribers memory --database postgresql://… 3000

The floor is a bare server of the same kind (uvicorn, uvloop, one process) that writes one ready frame, as long
as ours, to each of as many WebSockets when it is told to: nothing that reads anything can be faster. A peer that
speaks graphql-transport-ws elsewhere is measured with `feed_client.deliver`, given a plan of `graphql` and a
change such as `emitting`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from benchmarks.feed_client import Change, Plan, allow_files, deliver, emitting, graphql, subscribed
from ekoyka.api.outlets import text_frame
from ekoyka.graph.ids import encode
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import Tokens

TOKEN_KEY = "benchmark-" * 5
QUERY = (
    "subscription ($id: ID!) { bedAvailability(dispensaryId: $id) "
    "{ kind cursor changes { change status bed { id label } } counts { total free available occupied } } }"
)
# The text of our frame for one change, whose length the floor's has.
FRAME_BYTES = 290


def _serve_floor(port: int, core: int | None) -> None:
    """The floor: on any datagram on its port, one ready frame is written to each socket that is open."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    allow_files(20_000)
    frame = text_frame(b"x" * FRAME_BYTES)
    transports: dict[Any, Any] = {}

    class Protocol(WebSocketsSansIOProtocol):
        def handle_connect(self, event: Any) -> None:
            super().handle_connect(event)
            transports[self] = self.transport

        def connection_lost(self, exc: Exception | None) -> None:
            transports.pop(self, None)
            super().connection_lost(exc)

    class Trigger(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            for transport in transports.values():
                transport.write(frame)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            await asyncio.get_running_loop().create_datagram_endpoint(Trigger, local_addr=("127.0.0.1", port))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept", "subprotocol": "graphql-transport-ws"})
            while (await receive())["type"] != "websocket.disconnect":
                await send({"type": "websocket.send", "text": "{}"})

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        ws=Protocol,
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
    )


@dataclass(frozen=True)
class Running:
    """A server process under measurement."""

    port: int
    pid: int

    def own_bytes(self) -> int:
        """Its memory that is resident and of no file: what its objects take."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise LookupError("RssAnon")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until_it_listens(port: int, *, ready: bool) -> None:
    for _ in range(600):
        await asyncio.sleep(0.1)
        try:
            if not ready:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return
            async with httpx.AsyncClient() as http:
                if (await http.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                    return
        except (OSError, httpx.TransportError):
            continue
    raise TimeoutError("the server did not start")


def _core() -> int | None:
    cores = sorted(os.sched_getaffinity(0))
    return cores[0] if len(cores) > 1 else None


@asynccontextmanager
async def floor() -> AsyncIterator[Running]:
    """The floor's server runs."""
    port = _free_port()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve_floor, args=(port, _core()), daemon=True)
    process.start()
    assert process.pid is not None
    try:
        await _until_it_listens(port, ready=False)
        yield Running(port, process.pid)
    finally:
        process.kill()
        process.join()


@asynccontextmanager
async def ekoyka(database: str) -> AsyncIterator[Running]:
    """EKoyka runs on the database, in one process."""
    allow_files(20_000)
    port = _free_port()
    core = _core()
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ekoyka",
            "serve",
            env={
                **os.environ,
                "DATABASE_URL": database,
                "EKOYKA_PORT": str(port),
                "EKOYKA_TOKEN_KEYS": TOKEN_KEY,
                "EKOYKA_LOG_LEVEL": "WARNING",
                "EKOYKA_ACCESS_TOKEN_TTL_S": "3600",
                "EKOYKA_COST_PER_MINUTE": "0",
                # All of them are one account's, from one address.
                "EKOYKA_SOCKETS_PER_ACCOUNT": "100000",
                "EKOYKA_SOCKETS_PER_ADDRESS": "100000",
                "EKOYKA_DATA_DIR": folder,
            },
            preexec_fn=(lambda: os.sched_setaffinity(0, {core})) if core is not None else None,
        )
        try:
            await _until_it_listens(port, ready=True)
            yield Running(port, process.pid)
        finally:
            process.terminate()
            await process.wait()


async def floor_change(port: int) -> float:
    """The floor's change: the instant at which it is told to write."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trigger:
        told = time.monotonic()
        trigger.sendto(b"!", ("127.0.0.1", port))
    return told


_PUBLISH = """
    WITH counted AS (
        UPDATE feed_topic SET last_cursor = last_cursor + 1 WHERE topic = $1 RETURNING last_cursor
    ), written AS (
        INSERT INTO feed_event (topic, cursor, payload, occurred_at)
        SELECT $1, last_cursor, jsonb_build_object('bed', $2::bigint, 'change', 'CORRECTED', 'status', 'FREE'),
            clock_timestamp() FROM counted
    )
    SELECT pg_notify('ekoyka', $1 || ' ' || last_cursor) FROM counted
"""


@asynccontextmanager
async def changing(database: str) -> AsyncIterator[tuple[int, Change]]:
    """A dispensary with beds, and a way to publish a change of one of them."""
    connection = await asyncpg.connect(database)
    try:
        row = await connection.fetchrow(
            "SELECT dispensary_id, min(id) AS bed FROM bed WHERE archived_at IS NULL "
            "GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
        )
        assert row is not None, "the database has no beds"
        topic = f"beds:{row['dispensary_id']}"
        await connection.execute(
            "INSERT INTO feed_topic (topic, last_cursor) VALUES ($1, 0) ON CONFLICT DO NOTHING", topic
        )

        async def change() -> float:
            transaction = connection.transaction()
            await transaction.start()
            await connection.fetchval(_PUBLISH, topic, row["bed"])
            # From here on the commit may be seen: whatever it takes itself is counted.
            committing = time.monotonic()
            await transaction.commit()
            return committing

        yield row["dispensary_id"], change
    finally:
        await connection.close()


async def tokens(database: str, count: int) -> list[str]:
    """Tokens of so many superadministrators, who are made for this."""
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch(
            "WITH made AS (INSERT INTO account (email, name, password_hash, auth_version, version, language) "
            "SELECT $1 || n || '@example.org', $1, '-', 1, 1, 'ru' FROM generate_series(1, $2) n RETURNING id) "
            "INSERT INTO role_grant (account_id, role) SELECT id, 'SUPERADMIN' FROM made RETURNING account_id",
            secrets.token_hex(6),
            count,
        )
    finally:
        await connection.close()
    issued = Tokens([TOKEN_KEY], issuer="ekoyka", ttl_s=3600)
    return [
        issued.issue(Actor(account_id=row["account_id"], auth_version=1, superadmin=True)).text
        for row in rows
    ]


def _ours(port: int, dispensary: int, access: list[str], subscribers: int) -> Plan:
    variables = {"id": encode("Dispensary", dispensary)}
    return graphql(f"ws://127.0.0.1:{port}/graphql", access, QUERY, variables, subscribers)


def _bare(port: int, subscribers: int) -> Plan:
    return Plan(f"ws://127.0.0.1:{port}/", subscribers, (b"{}",), (b"{}",))


@dataclass(frozen=True)
class Delivery:
    """Medians of seconds from a commit to the last of so many deliveries: the floor's, ours, and a peer's."""

    subscribers: int
    floor_s: float
    ours_s: float
    peer_s: float | None

    def __str__(self) -> str:
        peer = "" if self.peer_s is None else f", graphql-ws {self.peer_s * 1000:.1f} ms"
        return (
            f"{self.subscribers:>6} subscribers, last delivery: floor {self.floor_s * 1000:.1f} ms, "
            f"ekoyka {self.ours_s * 1000:.1f} ms ({self.ours_s / self.floor_s:.2f} times){peer}"
        )


async def compare(
    database: str, count: int, *, rounds: int, accounts: int = 1, peer_port: int | None = None
) -> Delivery:
    """One change for so many subscribers; a peer on that port speaks graphql-transport-ws and takes POST /emit."""
    async with floor() as server:
        bare = await deliver(_bare(server.port, count), partial(floor_change, server.port), rounds=rounds)
    async with ekoyka(database) as server, changing(database) as (dispensary, change):
        access = await tokens(database, min(accounts, count))
        ours = await deliver(_ours(server.port, dispensary, access, count), change, rounds=rounds)
    theirs = None
    if peer_port is not None:
        plan = _ours(peer_port, dispensary, [], count)
        emit = partial(emitting, f"http://127.0.0.1:{peer_port}/emit")
        theirs = statistics.median(await deliver(plan, emit, rounds=rounds))
    return Delivery(count, statistics.median(bare), statistics.median(ours), theirs)


async def growth(server: Running, plan: Plan) -> float:
    """Bytes of memory that each idle subscriber adds, once the server has seen a few."""
    with subscribed(replace(plan, subscribers=50)):
        pass
    await asyncio.sleep(1)
    before = server.own_bytes()
    with subscribed(plan):
        await asyncio.sleep(1)
        return (server.own_bytes() - before) / plan.subscribers


async def weigh(database: str, subscribers: int, *, accounts: int = 1) -> tuple[float, float]:
    """Bytes that each idle subscriber takes: of a bare WebSocket of the same server, and of ours."""
    async with floor() as server:
        bare = await growth(server, _bare(server.port, subscribers))
    async with ekoyka(database) as server, changing(database) as (dispensary, _):
        access = await tokens(database, min(accounts, subscribers))
        ours = await growth(server, _ours(server.port, dispensary, access, subscribers))
    return bare, ours


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("deliver", "memory"))
    parser.add_argument("--database", required=True, help="a migrated database with data; events are added")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--accounts", type=int, default=1, help="so many people share the subscriptions")
    parser.add_argument("subscribers", type=int, nargs="+")
    given = parser.parse_args()
    for count in given.subscribers:
        if given.what == "deliver":
            found = compare(given.database, count, rounds=given.rounds, accounts=given.accounts)
            print(asyncio.run(found), flush=True)
        else:
            bare, ours = asyncio.run(weigh(given.database, count, accounts=given.accounts))
            print(
                f"{count:>6} idle: a bare WebSocket {bare / 1024:.1f} KiB, a subscriber {ours / 1024:.1f} KiB"
            )


if __name__ == "__main__":
    main()
