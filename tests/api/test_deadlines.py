"""Nothing runs for ever: a statement, a wait for a lock or a connection, an operation; and nothing is left behind.

Each bound is proved for reads, changes and the beginning of a subscription, over HTTP and over the socket: more
are asked at once than there are connections, each ends by name, and the connections come back.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from ekoyka import links
from ekoyka.database import Database
from ekoyka.settings import Settings
from tests.client import gid, serving
from tests.factories import Factory
from tests.feed import FEED, token
from tests.servers import Server, Socket, inside

CHECK_IN = """mutation ($p: ID!, $b: ID!) { stayCheckIn(input: {patientId: $p, bedId: $b}) {
  __typename ... on Refusal { code } } }"""
PLACE = "query ($id: ID!) { dispensary(id: $id) { name } }"
# Small pools, and of the bounds one that is reached long before the others.
SMALL: dict[str, Any] = {
    "write_pool_size": 2,
    "read_pool_size": 2,
    "operation_timeout_s": 60.0,
    "statement_timeout_s": 60.0,
    "pool_timeout_s": 60.0,
}
BOUNDS = {
    "operation": ({"operation_timeout_s": 1.0}, {"TIMED_OUT"}),
    "statement": ({"statement_timeout_s": 1.0}, {"TIMED_OUT"}),
    # Two wait for the database, the others for their connections; those two until the database lets them.
    "pool": ({"pool_timeout_s": 1.0}, {"SERVICE_UNAVAILABLE"}),
}


@asynccontextmanager
async def _held(database: Database, sql: str) -> AsyncIterator[None]:
    """What a transaction of ours has locked stays so while the block lasts."""
    async with database.transaction() as session:
        await session.execute(text(sql))
        yield


def _codes(answer: Any) -> set[str]:
    """The codes of an answer over HTTP, or of a frame."""
    if isinstance(answer, httpx.Response):
        errors = answer.json().get("errors", [])
    else:
        errors = answer["payload"] if answer["type"] == "error" else answer["payload"].get("errors", [])
    return {error["extensions"]["code"] for error in errors}


async def _asked(
    stack: AsyncExitStack, server: Server, kind: str, access: str, payloads: list[dict[str, Any]]
) -> list[asyncio.Task[Any]]:
    """All of it is asked at once: over HTTP, or on a socket."""
    if kind == "http":
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {access}"}, timeout=60)
        )
        return [asyncio.create_task(http.post("/graphql", json=payload)) for payload in payloads]
    socket = await stack.enter_async_context(Socket.open(server, access))
    await socket.acknowledged()
    return [asyncio.create_task(socket.answer(str(key), payload)) for key, payload in enumerate(payloads)]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("change", "http"),
        ("change", "socket"),
        ("read", "http"),
        ("read", "socket"),
        ("subscription", "socket"),
    ],
)
async def test_what_waits_too_long_ends_by_name_and_its_connection_comes_back(
    settings: Settings, database: Database, make: Factory, what: str, kind: str, bound: str
) -> None:
    place = await make.dispensary()
    bed, patient, boss = (
        await make.bed(place),
        await make.patient(place),
        await make.actor(superadmin=True),
    )
    dispensary = {"id": gid("Dispensary", place)}
    query, variables, lock = {
        "change": (
            CHECK_IN,
            {"p": gid("Patient", patient), "b": gid("Bed", bed)},
            f"SELECT 1 FROM bed WHERE id = {bed.id} FOR UPDATE",
        ),
        "read": (PLACE, dispensary, "LOCK TABLE dispensary IN ACCESS EXCLUSIVE MODE"),
        "subscription": (
            FEED,
            dispensary,
            "LOCK TABLE feed_topic IN ACCESS EXCLUSIVE MODE",
        ),
    }[what]
    # Of subscribers who ask the same thing one reads for all: so each asks something else.
    payloads = [
        {"query": query.replace("bedAvailability", f"a{number}: bedAvailability"), "variables": variables}
        for number in range(6)
    ]
    narrow, expected = BOUNDS[bound]
    pool = "write" if what == "change" else "read"
    async with inside(settings.model_copy(update=SMALL | narrow)) as server, AsyncExitStack() as stack:
        async with _held(database, lock):
            asking = await _asked(stack, server, kind, token(boss), payloads)
            if bound == "pool":
                ended = await _first(asking, 4)
            else:
                ended = [await answer for answer in asking]
        last = [await answer for answer in asking]
        after = await _asked(stack, server, kind, token(boss), payloads[:1])

        assert [_codes(answer) for answer in ended] == [expected] * len(ended)
        assert [_codes(answer) for answer in last if answer not in ended] == [set()] * (6 - len(ended))
        assert _codes(await after[0]) == set()
        async with asyncio.timeout(10):
            while server.services.database.pool_use[pool] != (0, 2):  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.05)
        if isinstance(ended[0], httpx.Response):
            assert (ended[0].status_code, ended[0].headers["retry-after"]) == (503, "1")
            assert "data" not in ended[0].json()


async def _first(tasks: list[asyncio.Task[Any]], count: int) -> list[Any]:
    """The results of the first so many that end."""
    async with asyncio.timeout(20):
        while sum(task.done() for task in tasks) < count:  # noqa: ASYNC110 -- whichever they are
            await asyncio.sleep(0.05)
    return [task.result() for task in tasks if task.done()]


async def test_pages_and_forms_that_take_too_long_say_nothing_but_that(
    settings: Settings, owned: Database
) -> None:
    """Above all not that there is no such certificate."""
    narrow = settings.model_copy(update={"operation_timeout_s": 0.5, "statement_timeout_s": 0.3})
    form = {"grant_type": "password", "username": "anna@example.org", "password": "a long enough password"}
    async with serving(narrow) as hasty, owned.transaction() as session:
        file = links.name(hasty.services.download_keys[0], "1", 2**33)
        await session.execute(text("LOCK TABLE certificate, account, rate IN ACCESS EXCLUSIVE MODE"))
        answers = [
            await hasty.http.get("/verify/0123456789"),
            await hasty.http.get(f"/certificates/{file}.pdf"),
            await hasty.http.post("/auth/token", data=form),
            await hasty.http.post("/auth/refresh", data={"refresh_token": "x"}),
        ]
        await session.execute(text("LOCK TABLE bed, alembic_version IN ACCESS EXCLUSIVE MODE"))
        ready, metrics = await hasty.http.get("/readyz"), await hasty.http.get("/metrics")

    assert [answer.status_code for answer in answers[:3]] == [503] * 3
    assert all(answer.headers["retry-after"] for answer in answers[:3])
    assert answers[3].status_code == 400  # which asks none of these
    assert (ready.status_code, ready.json()["database"]) == (503, False)
    assert metrics.status_code == 200
