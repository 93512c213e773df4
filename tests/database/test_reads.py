"""Connections for reads: so many and no more, bounded waits, nothing lost by cancelling or a broken one."""

import asyncio
import contextlib

import asyncpg
import pytest

from ekoyka.database import Database, DatabaseUnavailable
from ekoyka.settings import Settings


@pytest.fixture
async def narrow(settings: Settings) -> Database:
    return Database(
        str(settings.database_url.get_secret_value()) if settings.database_url else "",
        settings.model_copy(update={"read_pool_size": 2, "pool_timeout_s": 0.3}),
    )


async def test_no_more_connections_are_opened_than_the_setting_says(narrow: Database) -> None:
    async with narrow:
        pids = await asyncio.gather(
            *(narrow.fetch_value("SELECT pg_backend_pid() FROM pg_sleep(0.005)") for _ in range(40))
        )

        assert len(set(pids)) == 2
        assert narrow.pool_use["read"] == (0, 2)


async def test_whoever_waits_too_long_for_a_connection_is_told_so_and_the_others_go_on(
    narrow: Database,
) -> None:
    async with narrow:
        slow = [asyncio.create_task(narrow.fetch_value("SELECT pg_sleep(1) IS NULL")) for _ in range(2)]
        await asyncio.sleep(0.05)

        with pytest.raises(DatabaseUnavailable):
            await narrow.fetch_value("SELECT 1")

        assert await asyncio.gather(*slow) == [False, False]
        assert await narrow.fetch_value("SELECT 1") == 1
        assert narrow.pool_use["read"] == (0, 2)


async def test_a_cancelled_read_and_a_cancelled_wait_give_their_place_back(narrow: Database) -> None:
    async with narrow:
        reads = [asyncio.create_task(narrow.fetch_value("SELECT pg_sleep(5)")) for _ in range(2)]
        waits = [asyncio.create_task(narrow.fetch_value("SELECT 1")) for _ in range(3)]
        await asyncio.sleep(0.1)
        for task in (waits[0], *reads):
            task.cancel()
        for task in (waits[0], *reads):
            with contextlib.suppress(asyncio.CancelledError):
                await task

        assert await asyncio.gather(*waits[1:]) == [1, 1]
        assert narrow.pool_use["read"] == (0, 2)


async def test_a_refused_statement_keeps_its_connection_and_a_cut_one_is_replaced(narrow: Database) -> None:
    async with narrow:
        before = await narrow.fetch_value("SELECT pg_backend_pid()")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await narrow.fetch_value("SELECT 1 / 0")
        assert await narrow.fetch_value("SELECT pg_backend_pid()") == before

        other = Database(narrow.url, narrow.settings)
        async with other:
            await other.fetch_value("SELECT pg_terminate_backend($1)", before)
        await asyncio.sleep(0.1)

        assert await narrow.fetch_value("SELECT pg_backend_pid()") != before
        assert narrow.pool_use["read"] == (0, 2)


async def test_a_statement_is_prepared_once_per_connection(narrow: Database) -> None:
    async with narrow:
        for number in range(5):
            assert await narrow.fetch_value("SELECT $1::int + 41", number) == number + 41

        prepared = await narrow.fetch(
            "SELECT count(*) AS times FROM pg_prepared_statements WHERE statement = 'SELECT $1::int + 41'"
        )
        assert prepared[0]["times"] == 1
