"""What tests of the feed do again and again: make something happen, and watch."""

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx

from ekoyka.database import Database
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import Tokens
from ekoyka.inpatient.queries import BedChange, publish_beds
from tests.servers import TOKEN_KEY, Server, Socket

FEED = """subscription ($id: ID!, $after: String) { bedAvailability(dispensaryId: $id, after: $after) {
  kind cursor changes { cursor change } counts { total free cleaning } } }"""
QUIET = {"EKOYKA_LAPSE_INTERVAL_S": "3600"}


def place_of(cursor: str) -> int:
    """The number in a cursor."""
    return int(base64.b64decode(cursor).split()[1])


async def counted(server: Server, *names: str) -> list[int]:
    """The present values of these metrics."""
    async with httpx.AsyncClient() as http:
        said = (await http.get(f"{server.url}/metrics")).text
    found = [re.search(rf"^ekoyka_{name}(?:_total)? (\S+)$", said, re.MULTILINE) for name in names]
    return [int(float(match[1])) if match else 0 for match in found]


async def until(question: Callable[[], Awaitable[bool]]) -> None:
    """Waits until it is so; a test that waits in vain fails after a while."""
    async with asyncio.timeout(30):
        while not await question():  # noqa: ASYNC110 -- the server tells nobody
            await asyncio.sleep(0.05)


async def is_open(server: Server, count: int) -> bool:
    """Whether so many subscriptions are under way."""
    return await counted(server, "subscriptions_open") == [count]


async def happen(database: Database, place: Any, bed: Any, count: int = 1) -> None:
    """So many changes of the bed, in one transaction."""
    async with database.transaction() as session:
        await publish_beds(session, place.id, *[(bed.id, BedChange.CORRECTED)] * count)


async def subscribed(
    stack: AsyncExitStack, server: Server, actor: Actor, query: str, **variables: Any
) -> Socket:
    """A socket with the subscription, which has had its beginning; its cursor is `last`'s."""
    watcher = await stack.enter_async_context(Socket.open(server, token(actor)))
    await watcher.acknowledged()
    await watcher.subscribe("1", query, **variables)
    watcher.last = await watcher.event("1")
    return watcher


def token(actor: Actor, *, ttl_s: int = 600) -> str:
    """An access token that the test's servers take."""
    return Tokens([TOKEN_KEY], issuer="ekoyka", ttl_s=ttl_s).issue(actor).text
