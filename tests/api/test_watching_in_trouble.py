"""Subscribers when something goes wrong: the database, a read, the server, one of them."""

import asyncio
import base64
import socket
from contextlib import AsyncExitStack
from typing import Any

import orjson
from sqlalchemy import text

from ekoyka import feed
from ekoyka.api.outlets import text_frame
from ekoyka.database import Database
from ekoyka.inpatient.queries import BedChange, beds_topic, publish_beds
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import FEED, QUIET, counted, happen, is_open, place_of, subscribed, token, until
from tests.servers import Server, running


async def test_a_read_that_fails_ends_its_subscriptions_by_name_and_they_may_begin_again(
    database: Database, owned: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        watchers = [
            await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place)) for _ in range(3)
        ]
        await owned.fetch("ALTER TABLE reservation RENAME TO hidden")
        await happen_blindly(database, place, bed)
        failed = [await watcher.next("1") for watcher in watchers]
        open_ = await counted(server, "subscriptions_open")
        await owned.fetch("ALTER TABLE hidden RENAME TO reservation")
        for watcher in watchers:
            await watcher.subscribe("1", FEED, id=gid("Dispensary", place))
            assert (await watcher.event("1"))["kind"] == "SNAPSHOT"
        await happen(database, place, bed)
        for watcher in watchers:
            await watcher.told("1", 1)

    assert [(frame["type"], frame["payload"][0]["extensions"]["code"]) for frame in failed] == [
        ("error", "INTERNAL")
    ] * 3
    assert open_ == [0]


async def test_an_outage_of_the_database_delays_events_and_loses_none(
    database: Database, owned: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        watchers = [
            await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place)) for _ in range(3)
        ]
        async with owned.transaction() as session:
            await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                    "AND application_name LIKE 'ekoyka %' AND pid <> pg_backend_pid()"
                )
            )
            await publish_beds(session, place.id, *[(bed.id, BedChange.CORRECTED)] * 3)
        await happen(database, place, bed)

        seen = []
        for watcher in watchers:
            cursors: list[int] = []
            kinds: list[str] = []
            while len(cursors) < 4 or "SNAPSHOT" not in kinds:
                event = await watcher.event("1")
                kinds.append(event["kind"])
                cursors += [place_of(item["cursor"]) for item in event["changes"]]
            seen.append(cursors)

    assert seen == [[1, 2, 3, 4]] * 3


async def test_what_happens_while_the_feed_is_cut_again_and_again_is_told_in_order_and_once(
    database: Database, owned: Database, settings: Settings, make: Factory
) -> None:
    """The present state, which comes after a cut, jumps over nothing."""
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    cuts, count = 5, 0
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        watcher = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        told: list[int] = []
        snapshots: list[tuple[int, int]] = []
        while len(snapshots) < cuts:
            await owned.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name = 'ekoyka feed'"
            )
            seen = len(snapshots)
            while len(snapshots) == seen:
                await happen(database, place, bed, 3)
                count += 3
                while not watcher.frames["1"].empty() or len(told) < count - 30:
                    event = await watcher.event("1")
                    told += [place_of(item["cursor"]) for item in event["changes"]]
                    if event["kind"] == "SNAPSHOT":
                        snapshots.append((place_of(event["cursor"]), told[-1] if told else 0))
        while len(told) < count:
            event = await watcher.event("1")
            told += [place_of(item["cursor"]) for item in event["changes"]]

    assert told == list(range(1, count + 1))
    assert [at for at, after in snapshots if at != after] == []


async def test_a_server_that_stops_tells_its_subscribers_to_come_back(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    async with running(settings, 1, EKOYKA_WORKERS="2", **QUIET) as (server,), AsyncExitStack() as stack:
        watchers = [
            await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place)) for _ in range(4)
        ]
        await happen(database, place, bed)
        for watcher in watchers:
            await watcher.told("1", 1)
        status = await server.stop()
        codes = [await watcher.closed() for watcher in watchers]

    assert (status, codes) == (0, [1012] * 4)


async def happen_blindly(database: Database, place: Any, bed: Any) -> None:
    """A change, published without a look at the bed."""
    async with database.transaction() as session:
        await feed.publish(
            session, beds_topic(place.id), {"bed": bed.id, "change": "CORRECTED", "status": "FREE"}
        )


def _silent(server: Server, access: str, query: str, variables: dict[str, Any]) -> socket.socket:
    """A client that subscribes and then reads nothing, with as little room for what it is sent as may be."""
    silent = socket.socket()
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    silent.connect(("127.0.0.1", server.port))
    silent.settimeout(30)
    silent.sendall(
        b"GET /graphql HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: " + base64.b64encode(b"k" * 16) + b"\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Protocol: graphql-transport-ws\r\n\r\n"
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += silent.recv(1)
    for message in (
        {"type": "connection_init", "payload": {"Authorization": f"Bearer {access}"}},
        {"id": "1", "type": "subscribe", "payload": {"query": query, "variables": variables}},
    ):
        frame = text_frame(orjson.dumps(message))
        head = len(frame) - len(orjson.dumps(message))
        # A client's frames are masked; here with zeros.
        silent.sendall(frame[:1] + bytes((frame[1] | 0x80,)) + frame[2:head] + bytes(4) + frame[head:])
    return silent


async def test_a_client_that_does_not_read_is_dropped_and_the_others_notice_nothing(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    room, doctor = await make.room(place), await make.actor(doctor_of=(place,))
    beds = [await make.bed(place, room, profile="x" * 100) for _ in range(100)]
    query = """subscription ($id: ID!) { bedAvailability(dispensaryId: $id) { kind cursor changes { cursor }
      dispensary { beds(first: 100) { edges { node { id label profile a: profile b: profile c: profile } } } } } }"""
    variables = {"id": gid("Dispensary", place)}
    async with (
        running(settings, 1, EKOYKA_FEED_BUFFER_BYTES="65536", **QUIET) as (server,),
        AsyncExitStack() as stack,
    ):
        reading = await subscribed(stack, server, doctor, query, **variables)
        slow = await asyncio.to_thread(_silent, server, token(doctor), query, variables)
        with slow:
            await until(lambda: is_open(server, 2))
            count = 0
            while await counted(server, "feed_dropped") == [0]:
                assert count < 2000
                for _ in range(20):
                    await happen(database, place, beds[0])
                    await reading.told("1", 1)
                count += 20
            await until(lambda: is_open(server, 1))
            await happen(database, place, beds[0])
            last = await reading.told("1", 1)
            ended = await asyncio.to_thread(_rest, slow)
        dropped = await counted(server, "feed_dropped")

    assert place_of(last[0]["cursor"]) == count + 1
    assert dropped == [1]
    # The close frame is there to be read, unless the client took longer than it was given.
    assert ended.endswith(b"\x11\x3dThe client reads too slowly.") or ended == b"reset"


def _rest(silent: socket.socket) -> bytes:
    """The end of what the server sent, once it has closed."""
    tail = b""
    try:
        while part := silent.recv(1 << 16):
            tail = (tail + part)[-200:]
            if tail.endswith(b"slowly."):
                return tail
    except ConnectionResetError:
        pass
    return b"reset"
