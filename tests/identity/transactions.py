"""Running operations as the API does, and seeing one transaction wait for another."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ekoyka.database import Database
from ekoyka.errors import Refusal


async def run(database: Database, verb: Callable[..., Awaitable[Any]], *values: Any, **arguments: Any) -> Any:
    """One operation in one transaction, as the API runs it."""
    async with database.transaction() as session:
        return await verb(session, *values, **arguments)


async def answer(
    database: Database, verb: Callable[..., Awaitable[Any]], *values: Any, **arguments: Any
) -> Any:
    """As `run`; a refusal is returned."""
    try:
        return await run(database, verb, *values, **arguments)
    except Refusal as refusal:
        return refusal


async def until_one_waits(database: Database) -> None:
    """Some transaction of this database is waiting for another's lock."""
    question = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    # Whom others wait for is told to their own login alone.
    async with Database(database.url, database.settings) as login, asyncio.timeout(10):
        while not await login.fetch_value(question):  # noqa: ASYNC110 -- PostgreSQL tells nobody who waits
            await asyncio.sleep(0.01)
