"""Many subscribers of one feed: what they share, what none of them may miss, and what one cannot do to the others."""

import asyncio
import base64
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import orjson
from sqlalchemy import text

from ekoyka.api.watching import PAUSE_S
from ekoyka.database import Database
from ekoyka.feed import BATCH
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import FEED, QUIET, counted, happen, is_open, place_of, subscribed, token, until
from tests.servers import Server, Socket, running


async def test_fifty_who_ask_the_same_cost_what_one_does(
    database: Database, settings: Settings, make: Factory
) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    bed = await make.bed(here)
    # The same scope, whoever they are; the dispensary's own fields tell them apart no more than the feed does.
    doctors = [await make.actor(doctor_of=(here,)) for _ in range(2)]
    both, admin = await make.actor(doctor_of=(here, there)), await make.actor(superadmin=True)
    query = FEED.replace("kind", "kind dispensary { name }")
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:

        async def cost(watchers: list[Socket]) -> tuple[int, int]:
            before = await counted(server, "feed_reads", "statements")
            await happen(database, here, bed)
            for watcher in watchers:
                await watcher.told("1", 1)
            after = await counted(server, "feed_reads", "statements")
            # Asking for the metrics is a statement itself.
            return after[0] - before[0], after[1] - before[1] - 1

        one = [await subscribed(stack, server, doctors[0], query, id=gid("Dispensary", here))]
        alone = await cost(one)
        same = one + [
            await subscribed(stack, server, doctors[number % 2], query, id=gid("Dispensary", here))
            for number in range(49)
        ]
        together = await cost(same)
        # Another scope, and another document; a feed that nothing happens on costs nothing.
        others = [
            await subscribed(stack, server, both, query, id=gid("Dispensary", here)),
            await subscribed(stack, server, admin, query, id=gid("Dispensary", here)),
            await subscribed(stack, server, doctors[0], FEED, id=gid("Dispensary", here)),
        ]
        await subscribed(stack, server, admin, query, id=gid("Dispensary", there))
        apart = await cost(same + others)
        [frames, open_] = await counted(server, "feed_frames", "subscriptions_open")

    assert alone == together == (1, 1)
    assert apart == (4, 4)
    assert (frames, open_) == (54 + 1 + 50 + 53, 54)


async def test_whoever_joins_during_a_burst_misses_nothing_and_sees_nothing_twice(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    over = asyncio.Event()

    async def burst() -> None:
        for _ in range(30):
            await asyncio.gather(*(happen(database, place, bed) for _ in range(5)))
            await asyncio.sleep(0.01)
        over.set()

    async def watch(stack: AsyncExitStack, server: Server, number: int) -> list[int]:
        await asyncio.sleep(0.02 * number)
        watcher = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        assert watcher.last["kind"] == "SNAPSHOT"
        seen = [place_of(watcher.last["cursor"])]
        while seen[-1] < 150:
            event = await watcher.event("1")
            assert event["kind"] == "CHANGE"
            seen += [place_of(item["cursor"]) for item in event["changes"]]
            assert place_of(event["cursor"]) == seen[-1]
        return seen

    async with running(settings, 2, **QUIET) as servers, AsyncExitStack() as stack:
        bursting = asyncio.create_task(burst())
        seen = await asyncio.gather(*(watch(stack, servers[number % 2], number) for number in range(40)))
        await bursting

    assert any(1 < places[0] < 150 for places in seen), "nobody joined while it happened"
    for places in seen:
        assert places == list(range(places[0], 151))


async def test_a_client_far_behind_gets_all_of_it_in_order_and_one_too_far_behind_the_present_state(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, other = await make.bed(place), await make.bed(place)
    doctor = await make.actor(doctor_of=(place,))
    narrow = """subscription ($id: ID!, $after: String) { bedChanged(bedId: $id, after: $after) {
      kind cursor changes { cursor } } }"""
    count = 2 * BATCH + 10
    await happen(database, place, bed)
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        first = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        await happen(database, place, bed, count)
        told = await first.told("1", count)
        last = first.last["cursor"]
        back = await subscribed(
            stack, server, doctor, FEED, id=gid("Dispensary", place), after=told[0]["cursor"]
        )
        again = [*back.last["changes"], *await back.told("1", count - 1 - len(back.last["changes"]))]

        # Of the watched bed nothing has happened: nothing is told, until something has.
        await back.subscribe("2", narrow, id=gid("Bed", other), after=told[0]["cursor"])
        await back.subscribe("3", narrow, id=gid("Bed", other), after=last)
        await until(lambda: is_open(server, 4))
        await happen(database, place, bed)
        await happen(database, place, other)
        quiet = [await back.told(key, 1) for key in ("2", "3")]

        async with database.transaction() as session:
            await session.execute(text("DELETE FROM feed_event WHERE cursor <= 2"))
        too_far = await subscribed(
            stack, server, doctor, FEED, id=gid("Dispensary", place), after=_cursor(place, 1)
        )
        ahead = await subscribed(
            stack, server, doctor, FEED, id=gid("Dispensary", place), after=_cursor(place, 10**6)
        )

    assert again == told[1:]
    assert [place_of(item["cursor"]) for item in told] == list(range(2, count + 2))
    assert [[place_of(item["cursor"]) for item in changes] for changes in quiet] == [[count + 3]] * 2
    assert (too_far.last["kind"], ahead.last["kind"]) == ("SNAPSHOT", "SNAPSHOT")


def _cursor(place: Any, number: int) -> str:
    return base64.b64encode(f"beds:{place.id} {number}".encode()).decode()


async def test_a_hundred_changes_at_once_are_few_reads_and_the_last_state_arrives(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    room, doctor = await make.room(place), await make.actor(doctor_of=(place,))
    beds = [await make.bed(place, room) for _ in range(100)]

    async def clean(bed: Any) -> None:
        async with database.transaction() as session:
            await session.execute(
                text("UPDATE bed SET service_state = 'CLEANING' WHERE id = :id"), {"id": bed.id}
            )
            await publish_beds(session, place.id, (bed.id, BedChange.SERVICE_STATE_CHANGED))

    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        watcher = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        before = await counted(server, "feed_reads", "statements")
        began = perf_counter()
        await asyncio.gather(*map(clean, beds))
        told = await watcher.told("1", 100)
        took_s = perf_counter() - began
        after = await counted(server, "feed_reads", "statements")

    reads, statements = after[0] - before[0], after[1] - before[1] - 1
    assert len(told) == 100
    assert watcher.last["counts"] == {"total": 100, "free": 0, "cleaning": 100}
    # However slow the machine: no more than one read for each pause that there was time for.
    assert reads == statements <= took_s / PAUSE_S + 2


async def test_a_blocked_accounts_subscriber_is_told_nothing_more_while_others_are(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed = await make.bed(place)
    first, second = await make.actor(doctor_of=(place,)), await make.actor(doctor_of=(place,))
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        blocked = await subscribed(stack, server, first, FEED, id=gid("Dispensary", place))
        other = await subscribed(stack, server, second, FEED, id=gid("Dispensary", place))
        before = await counted(server, "feed_reads")
        # Nothing tells of this: only the event itself can find it out.
        async with database.transaction() as session:
            await session.execute(
                text("UPDATE account SET blocked_at = now() WHERE id = :id"), {"id": first.account_id}
            )
        await happen(database, place, bed)
        await other.told("1", 1)
        code = await blocked.closed()
        reads = (await counted(server, "feed_reads"))[0] - before[0]
        async with Socket.open(server, token(first)) as late:
            await late.acknowledged()
            await late.subscribe("1", FEED, id=gid("Dispensary", place))
            late_code = await late.closed()

    assert (code, late_code, reads) == (4403, 4403, 1)
    assert blocked.frames["1"].empty()
    assert late.frames["1"].empty()


async def test_a_socket_whose_token_ends_is_told_nothing_more(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        staying = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        ending = await stack.enter_async_context(Socket.open(server, token(doctor, ttl_s=4)))
        await ending.acknowledged()
        await ending.subscribe("1", FEED, id=gid("Dispensary", place))
        await ending.event("1")
        code = await ending.closed()
        await happen(database, place, bed)
        await staying.told("1", 1)
        await until(lambda: is_open(server, 1))

    assert code == 4401
    assert ending.frames["1"].empty()


async def test_operations_of_one_socket_come_and_go_and_the_last_to_leave_ends_the_reading(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    other = FEED.replace("kind", "kind __typename")
    async with running(settings, 1, **QUIET) as (server,), AsyncExitStack() as stack:
        watcher = await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place))
        await watcher.subscribe("2", FEED, id=gid("Dispensary", place))
        await watcher.event("2")
        await watcher.subscribe("3", other, id=gid("Dispensary", place))
        await watcher.event("3")
        await happen(database, place, bed)
        for key in ("1", "2", "3"):
            await watcher.told(key, 1)

        await watcher.complete("1")
        await watcher.subscribe("1", FEED, id=gid("Dispensary", place), after=watcher.last["cursor"])
        await watcher.subscribe("4", "{ __typename }")
        assert (await watcher.next("4"))["payload"] == {"data": {"__typename": "Query"}}
        assert (await watcher.next("4"))["type"] == "complete"
        await until(lambda: is_open(server, 3))
        await happen(database, place, bed)
        for key in ("1", "2", "3"):
            await watcher.told(key, 1)

        await watcher.complete("1")
        await watcher.complete("2")
        await until(lambda: is_open(server, 1))
        before = await counted(server, "feed_reads")
        await happen(database, place, bed)
        await watcher.told("3", 1)
        reads = (await counted(server, "feed_reads"))[0] - before[0]
        left = [watcher.frames[key].qsize() for key in ("1", "2")]

    assert reads == 1
    assert left == [0, 0]


async def test_variables_aliases_fragments_and_directives_mean_what_they_do_in_queries(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    query = """subscription Named($id: ID!, $with: Boolean!) {
      board: bedAvailability(dispensaryId: $id) { __typename what: kind ...rest @include(if: $with) } }
    fragment rest on BedEvent { counts { total @skip(if: $with) free } changes { __typename } }
    query Other { __typename }"""
    async with running(settings, 1, **QUIET) as (server,), Socket.open(server, token(doctor)) as watcher:
        await watcher.acknowledged()

        async def ask(key: str, query: str, **payload: Any) -> dict[str, Any]:
            watcher.frames[key] = asyncio.Queue()
            body = {"id": key, "type": "subscribe", "payload": {"query": query, **payload}}
            await watcher.connection.send(orjson.dumps(body).decode())
            return await watcher.next(key)

        variables = {"id": gid("Dispensary", place), "with": True}
        named = await ask("a", query, operationName="Named", variables=variables)
        await happen(database, place, bed)
        change = await watcher.next("a")
        unnamed = await ask("b", query, variables=variables)
        two = await ask(
            "c",
            "subscription ($id: ID!) { a: bedAvailability(dispensaryId: $id) { kind } "
            "b: bedAvailability(dispensaryId: $id) { kind } }",
            variables=variables,
        )
        none = await ask(
            "d", "subscription { bedAvailability(dispensaryId: 1) @skip(if: true) { kind } }", variables=None
        )
        wrong = await ask("e", "subscription { bedAvailability(dispensaryId: 1) { kind } }")
        unparsed = await ask("f", "subscription {")
        missing = await ask("g", query, operationName="Named")

    assert named["payload"] == {
        "data": {
            "board": {"__typename": "BedEvent", "what": "SNAPSHOT", "counts": {"free": 1}, "changes": []}
        }
    }
    assert change["payload"]["data"]["board"]["changes"] == [{"__typename": "BedChanged"}]
    assert [
        (frame["type"], frame["payload"][0]["extensions"]["code"])
        for frame in (unnamed, two, none, wrong, unparsed, missing)
    ] == [
        ("error", "BAD_USER_INPUT"),
        ("error", "GRAPHQL_VALIDATION_FAILED"),
        ("error", "GRAPHQL_VALIDATION_FAILED"),
        ("error", "BAD_USER_INPUT"),
        ("error", "GRAPHQL_PARSE_FAILED"),
        ("error", "BAD_USER_INPUT"),
    ]
