"""How many there are at once: in all processes together, and no longer than a process lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from ekoyka.database import Database, DatabaseUnavailable
from ekoyka.settings import Settings
from ekoyka.tally import LEASE_S, Bound, Full, Tallies

WARD, HOSPITAL = Bound("ward", "anna", 5), Bound("hospital", "anna", 8)


async def let_in(tallies: Tallies, *bounds: Bound) -> bool:
    """Whether one more was let in."""
    try:
        await tallies.enter(*bounds)
    except Full:
        return False
    return True


async def counted(database: Database) -> int:
    """The sum of all that processes have written."""
    return int(await database.fetch_value("SELECT coalesce(sum(number), 0) FROM tally"))


async def until_counted(database: Database, number: int) -> None:
    async with asyncio.timeout(20):
        while await counted(database) != number:  # noqa: ASYNC110 -- the database tells nobody
            await asyncio.sleep(0.02)


@asynccontextmanager
async def processes(database: Database, count: int) -> AsyncIterator[list[Tallies]]:
    """So many processes' counts; a process here is a `Tallies`."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Tallies(database)) for _ in range(count)]


async def test_so_many_are_let_in_one_after_the_other_and_when_one_leaves_the_next(
    database: Database,
) -> None:
    async with processes(database, 2) as (near, far):
        seen = [await let_in(near, WARD) for _ in range(3)] + [await let_in(far, WARD) for _ in range(4)]
        far.leave(WARD)
        await until_counted(database, 4)
        again = [await let_in(near, WARD), await let_in(far, WARD)]

    assert seen == [True] * 5 + [False] * 2
    assert again == [True, False]
    assert await counted(database) == 0


async def test_a_hundred_at_once_in_three_processes_are_never_more_than_there_may_be(
    database: Database,
) -> None:
    async with processes(database, 3) as all_:
        seen = await asyncio.gather(*(let_in(all_[number % 3], WARD) for number in range(100)))
        # Whoever was refused at the same moment may come again.
        later = [await let_in(all_[number % 3], WARD) for number in range(10)]
        await until_counted(database, 5)

    assert sum(seen) <= 5
    assert sum(seen) + sum(later) == 5


async def test_in_one_process_those_who_come_together_fill_all_places(database: Database) -> None:
    async with processes(database, 1) as (here,):
        seen = await asyncio.gather(*(let_in(here, WARD) for _ in range(20)))

    assert seen == [True] * 5 + [False] * 15


async def test_whoever_one_bound_refuses_is_counted_under_none(database: Database) -> None:
    others = Bound("ward", "boris", 5)
    async with processes(database, 1) as (here,):
        seen = [await let_in(here, HOSPITAL, WARD) for _ in range(7)]
        with pytest.raises(Full) as refused:
            await here.enter(HOSPITAL, WARD)
        seen += [await let_in(here, HOSPITAL, others) for _ in range(4)]
        await until_counted(database, 16)

    assert seen == [True] * 5 + [False] * 2 + [True] * 3 + [False]
    assert refused.value.bound == WARD


async def test_what_a_killed_process_had_counts_no_longer_than_its_lease(database: Database) -> None:
    dead = Tallies(database)
    await dead.__aenter__()
    for _ in range(5):
        await dead.enter(WARD)
    assert dead._task is not None
    dead._task.cancel()  # killed: it says nothing any more, and takes nothing back
    async with processes(database, 1) as (here,):
        before = await let_in(here, WARD)
        left_s = await database.fetch_value(
            "SELECT extract(epoch FROM until - now())::float FROM server_process WHERE id = $1", dead._process
        )
        await database.fetch(
            "UPDATE server_process SET until = until - make_interval(secs => $1) WHERE id = $2",
            LEASE_S,
            dead._process,
        )
        after = await let_in(here, WARD)
        await until_counted(database, 1)

    assert LEASE_S < 60
    assert left_s <= LEASE_S
    assert (before, after) == (False, True)


async def test_a_process_taken_for_dead_and_a_database_that_lost_all_get_the_counts_anew(
    database: Database,
) -> None:
    async with processes(database, 1) as (here,):
        for bound in (WARD, WARD, HOSPITAL):
            await here.enter(bound)
        await database.fetch("DELETE FROM server_process")
        gone = await counted(database)
        await here.enter(Bound("ward", "boris", 5))

        assert gone == 0
        assert await counted(database) == 4


async def test_without_the_database_nobody_is_let_in_and_nobody_waits_for_ever(
    database: Database, settings: Settings
) -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/x", settings)
    async with nowhere, Tallies(nowhere) as here:
        with pytest.raises(DatabaseUnavailable):
            await asyncio.wait_for(here.enter(WARD), 20)
        assert not any(here._own.values())


async def test_whoever_gives_up_waiting_is_not_counted(database: Database) -> None:
    async with processes(database, 1) as (here,):
        await here.enter(WARD)
        waiting = asyncio.create_task(here.enter(WARD))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await here.enter(HOSPITAL)
        await until_counted(database, 2)


async def test_no_address_is_kept(database: Database) -> None:
    async with processes(database, 1) as (here,):
        await here.enter(Bound("address", "192.0.2.77", 5))
        rows = await database.fetch("SELECT t::text FROM tally t")

    assert len(rows) == 1
    assert "192" not in rows[0][0]
