"""What is told after a commit: told once for many, never of what was not committed, and found even if untold."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

import asyncpg
import pytest
from sqlalchemy import text

from ekoyka import feed
from ekoyka.database import CHANNEL, Database
from ekoyka.feed import Feed
from ekoyka.notices import Notices


@pytest.fixture
async def heard(database_url: str) -> AsyncIterator["asyncio.Queue[str]"]:
    """What is told on the channel."""
    told: asyncio.Queue[str] = asyncio.Queue()
    connection = await asyncpg.connect(database_url)
    await connection.add_listener(CHANNEL, lambda *call: told.put_nowait(str(call[3])))
    yield told
    await connection.close()


async def test_what_is_committed_while_one_is_told_is_told_together(database: Database) -> None:
    sent: list[dict[str, int]] = []
    telling = asyncio.Event()

    async def send(notices: Mapping[str, int]) -> None:
        sent.append(dict(notices))
        await telling.wait()

    notices = Notices(send)
    notices.add({"one": 1})
    await asyncio.sleep(0)
    for number in range(2, 100):
        notices.add({"one": number, "two": 200 - number})
    telling.set()
    await notices.close(5)

    assert sent == [{"one": 1}, {"one": 99, "two": 198}]


async def test_what_could_not_be_told_is_told_again() -> None:
    sent: list[dict[str, int]] = []

    async def send(notices: Mapping[str, int]) -> None:
        sent.append(dict(notices))
        if len(sent) == 1:
            raise ConnectionError

    notices = Notices(send)
    notices.add({"one": 1})
    await asyncio.sleep(0.01)
    notices.add({"two": 2})
    await notices.close(5)

    assert sent == [{"one": 1}, {"one": 1, "two": 2}]


async def test_a_commit_is_told_and_a_rollback_is_not(
    database: Database, heard: "asyncio.Queue[str]"
) -> None:
    with contextlib.suppress(ZeroDivisionError):
        async with database.transaction() as session:
            await feed.publish(session, "undone", {})
            raise ZeroDivisionError
    async with database.transaction() as session:
        await feed.publish(session, "done", {}, {})
        await session.execute(text("SELECT pg_sleep(0.05)"))
        assert heard.empty()

    assert await asyncio.wait_for(heard.get(), 5) == "done 2"
    assert heard.empty()


async def test_a_process_that_ends_in_order_has_told_what_it_committed(
    database_url: str, database: Database, heard: "asyncio.Queue[str]"
) -> None:
    async with Database(database_url, database.settings) as other, other.transaction() as session:
        await feed.publish(session, "last words", {})

    assert await asyncio.wait_for(heard.get(), 5) == "last words 1"


async def test_what_a_dead_process_left_untold_is_found_at_the_next_heartbeat(
    database: Database, database_url: str
) -> None:
    rung: asyncio.Queue[int | None] = asyncio.Queue()
    async with Feed(database, heartbeat_s=0.1) as listener:
        listener.follow("ward", rung.put_nowait)
        assert await asyncio.wait_for(rung.get(), 5) is None  # from its beginning on, nothing goes unheard

        # As a process that is killed between its commit and the telling.
        connection = await asyncpg.connect(database_url)
        await connection.execute("INSERT INTO feed_topic VALUES ('ward', 7), ('nobody follows', 7)")
        await connection.close()

        assert await asyncio.wait_for(rung.get(), 5) == 7
        await asyncio.sleep(0.3)
        assert rung.empty()  # it is rung for once
