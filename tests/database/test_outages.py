"""When the way to PostgreSQL breaks: what is told, what was done, and that it mends by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Database, DatabaseUnavailable, OutcomeUnknown, Statement, connect
from ekoyka.feed import Feed
from ekoyka.settings import Settings
from tests.chaos.wire import Wire
from tests.client import gid, serving
from tests.factories import Factory
from tests.feed import until

RENAME = Statement("UPDATE dispensary SET name = :name RETURNING name")
FAIL = Statement("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{}'; END $$")
CHECK_IN = """mutation ($input: StayCheckInInput!) { stayCheckIn(input: $input) {
  __typename ... on Stay { id } ... on Refusal { code } } }"""


@asynccontextmanager
async def wired(settings: Settings) -> AsyncIterator[tuple[Wire, Settings]]:
    """A wire to the test's database, and the settings of who uses it."""
    assert settings.database_url is not None
    parts = urlsplit(settings.database_url.get_secret_value())
    query = parse_qs(parts.query)
    target: Path | tuple[str, int] = (
        Path(query["host"][0]) / f".s.PGSQL.{query.get('port', ['5432'])[0]}"
        if "host" in query
        else (parts.hostname or "127.0.0.1", parts.port or 5432)
    )
    async with Wire.laid(target) as wire:
        user = parts.netloc.rpartition("@")[0]
        url = f"postgresql://{user}@127.0.0.1:{wire.port}{parts.path}"
        yield wire, settings.model_copy(update={"database_url": SecretStr(url)})


@asynccontextmanager
async def through(settings: Settings) -> AsyncIterator[tuple[Wire, Database]]:
    """The test's database, at the end of a wire."""
    async with wired(settings) as (wire, own):
        assert own.database_url is not None
        async with Database(own.database_url.get_secret_value(), own) as database:
            yield wire, database


async def name_of(database: Database) -> str:
    name: str = await database.fetch_value("SELECT name FROM dispensary")
    return name


async def test_a_commit_whose_answer_is_lost_may_have_been_made_and_is_told_so(
    settings: Settings, database: Database, make: Factory
) -> None:
    await make.dispensary(name="Первый")

    async def commit(wire: Wire, far: Database) -> None:
        async with far.transaction() as session:
            await RENAME.rows(session, name="Второй")
            wire.drop_answers()
            asyncio.get_running_loop().call_later(0.5, wire.cut)

    async with through(settings) as (wire, far):
        with pytest.raises(OutcomeUnknown):
            await commit(wire, far)

    assert await name_of(database) == "Второй"


async def test_what_is_cut_before_its_commit_was_not_done_and_is_told_so(
    settings: Settings, database: Database, make: Factory
) -> None:
    await make.dispensary(name="Первый")

    async def cut(wire: Wire, far: Database) -> None:
        async with far.transaction() as session:
            await RENAME.rows(session, name="Второй")
            wire.cut()
            await RENAME.rows(session, name="Третий")

    async with through(settings) as (wire, far):
        with pytest.raises(DatabaseUnavailable) as raised:
            await cut(wire, far)

    assert not isinstance(raised.value, OutcomeUnknown)
    assert await name_of(database) == "Первый"


async def test_a_commit_that_postgresql_refuses_is_no_unknown_outcome(
    settings: Settings, database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place), await make.patient(place)
    stay = await make.stay(patient, bed)

    async def leave_the_stay_without_a_bed() -> None:
        async with database.transaction() as session:
            await Statement("DELETE FROM bed_assignment WHERE stay_id = :id").rows(session, id=stay.id)

    # A constraint that is asked about at the end.
    with pytest.raises(asyncpg.PostgresError) as raised:
        await leave_the_stay_without_a_bed()

    assert not isinstance(raised.value, DatabaseUnavailable)
    assert await database.fetch_value("SELECT count(*) FROM bed_assignment") == 1


@pytest.mark.parametrize(
    "state",
    ["53100", "53200", "53300", "53400", "57P01", "57P02", "57P03", "58030", "58P01", "25006", "08006"],
)
async def test_what_postgresql_cannot_do_now_is_an_outage_and_no_error_of_ours(
    database: Database, state: str
) -> None:
    """No room on the disk, no memory, no connection left, a shutdown, a broken disk, a server for reading only."""
    sql = FAIL.text.format(state)

    with pytest.raises(DatabaseUnavailable):
        await database.fetch(sql)
    for run in (lambda session: Statement(sql).rows(session), lambda session: session.execute(text(sql))):
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as session:
                await run(session)

    assert await database.fetch_value("SELECT 1") == 1


async def test_a_change_whose_answer_is_lost_is_answered_by_name_and_found_again_by_its_key(
    settings: Settings, database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place), await make.patient(place)
    doctor = await make.actor(doctor_of=(place,))
    order = {"patientId": gid("Patient", patient), "bedId": gid("Bed", bed), "idempotencyKey": "раз"}
    async with wired(settings) as (wire, own), serving(own) as client:
        headers = {"authorization": f"Bearer {client.token(doctor)}"}
        body = {"query": CHECK_IN, "variables": {"input": order}}
        wire.unheard = b"COMMIT"
        asking = asyncio.create_task(client.http.post("/graphql", json=body, headers=headers))
        while not await database.fetch_value("SELECT count(*) FROM stay"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        wire.unheard = None
        wire.cut()
        lost = await asking
        again = await client.http.post("/graphql", json=body, headers=headers)

    [error] = lost.json()["errors"]
    assert (lost.status_code, lost.headers["retry-after"]) == (503, "1")
    assert error["extensions"]["code"] == "OUTCOME_UNKNOWN"
    assert "idempotencyKey" in error["message"]
    assert again.json()["data"]["stayCheckIn"]["__typename"] == "Stay"
    assert await database.fetch_value("SELECT count(*) FROM stay") == 1


async def test_a_certificate_whose_paper_cannot_be_kept_is_issued_all_the_same(
    settings: Settings, database: Database, owned: Database, make: Factory
) -> None:
    """What comes after the commit may fail: the answer is that it was done."""
    place = await make.dispensary()
    ended = datetime.now(UTC) - timedelta(days=1)
    stay = await make.stay(await make.patient(place), await make.bed(place), until=ended)
    doctor = await make.actor(doctor_of=(place,))
    async with serving(settings) as client:
        await owned.fetch("ALTER TABLE certificate ADD CONSTRAINT no_paper CHECK (pdf IS NULL)")
        made = await client.mutate(
            "certificateIssue", "... on Certificate { number sha256 }", {"stayId": gid("Stay", stay)}, doctor
        )

    assert made["number"].startswith("1/")
    assert made["sha256"] is None
    assert await database.fetch_value("SELECT count(*) FROM certificate") == 1


@asynccontextmanager
async def listening(database: Database) -> AsyncIterator[None]:
    """As in a server's process: the feed is heard, and looks after the other connections."""
    async with Feed(database, heartbeat_s=0.2, patience_s=1) as feed:
        async with asyncio.timeout(10):
            while not feed.connected:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.02)
        yield


async def test_connections_that_fall_silent_are_ended_on_both_sides_and_others_take_their_place(
    settings: Settings, database: Database, make: Factory
) -> None:
    await make.dispensary(name="Первый")

    async def change(far: Database, name: str, wire: Wire | None = None) -> None:
        async with far.transaction() as session:
            await RENAME.rows(session, name=name)
            if wire is not None:
                wire.lose()
            await RENAME.rows(session, name=name)

    async with through(settings) as (wire, far), listening(far):
        await asyncio.gather(*(far.fetch_value("SELECT pg_sleep(0.1)") for _ in range(3)))
        async with asyncio.timeout(20):
            ends = await asyncio.gather(
                change(far, "Второй", wire), far.fetch_value("SELECT pg_sleep(1)"), return_exceptions=True
            )
            # What the silent one had locked is free, and no connection of its age is used.
            await asyncio.gather(*(far.fetch_value("SELECT 1") for _ in range(3)))
            await change(far, "Третий")

    assert [isinstance(end, DatabaseUnavailable) for end in ends] == [True, True], ends
    assert await name_of(database) == "Третий"


async def all_wait(database: Database, count: int) -> bool:
    waiting = await database.fetch_value("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(waiting == count)


async def test_those_that_wait_in_line_for_what_silent_ones_have_locked_are_found_out_one_after_the_other(
    settings: Settings, database: Database, make: Factory
) -> None:
    """Each is given the lock when the one before is ended, and can tell nobody: a second or two for each are many."""
    await make.dispensary(name="Первый")

    async def change(far: Database) -> None:
        async with far.transaction() as session:
            await RENAME.rows(session, name="Второй")
            await Statement("SELECT pg_sleep(0.5)").rows(session)

    async with through(settings) as (wire, far), listening(far):
        lost = [asyncio.create_task(change(far)) for _ in range(6)]
        await until(lambda: all_wait(database, len(lost) - 1))
        wire.lose()
        async with asyncio.timeout(10), database.transaction() as session:
            await RENAME.rows(session, name="Третий")
        ends = await asyncio.gather(*lost, return_exceptions=True)

    assert [type(end) for end in ends] == [DatabaseUnavailable] * len(lost)
    assert await name_of(database) == "Третий"


async def test_the_feed_is_heard_again_whatever_the_driver_says_of_a_lost_connection(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Exception] = [
        asyncpg.InternalClientError("got result for unknown protocol state"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        ConnectionResetError(),
        ValueError(),
    ]

    async def failing(*arguments: Any) -> asyncpg.Connection[asyncpg.Record]:
        if said:
            raise said.pop()
        return await connect(*arguments)

    monkeypatch.setattr("ekoyka.feed.connect", failing)
    async with listening(database):
        assert said == []


async def test_a_slow_statement_is_not_taken_for_a_silent_connection(
    settings: Settings, make: Factory
) -> None:
    await make.dispensary(name="Первый")
    async with through(settings) as (_, far), listening(far):

        async def slow_change() -> None:
            async with far.transaction() as session:
                await Statement("SELECT pg_sleep(3)").rows(session)
                await RENAME.rows(session, name="Второй")

        await asyncio.gather(slow_change(), far.fetch_value("SELECT pg_sleep(3)"))

        assert await name_of(far) == "Второй"


async def by_the_driver(session: AsyncSession) -> None:
    await RENAME.rows(session, name="Третий")


async def by_sqlalchemy(session: AsyncSession) -> None:
    """Which closes the connection itself when it is given up."""
    await session.execute(text("UPDATE dispensary SET name = 'Третий'"))


async def give_up(
    wire: Wire, far: Database, change: Callable[[AsyncSession], Awaitable[None]] = by_the_driver
) -> None:
    """A change whose connection is lost, by somebody who does not wait long."""
    async with asyncio.timeout(0.5), far.transaction() as session:
        await RENAME.rows(session, name="Второй")
        wire.lose()
        await change(session)


async def test_to_undo_a_transaction_on_a_silent_connection_takes_no_longer_than_a_moment(
    settings: Settings, make: Factory
) -> None:
    """Whoever gives up waiting is not made to wait for the undoing."""
    await make.dispensary(name="Первый")
    async with through(settings) as (wire, far):
        async with asyncio.timeout(10):
            with pytest.raises(TimeoutError):
                await give_up(wire, far)
        assert far.pool_use["write"][0] == 0
        wire.cut()
        assert await name_of(far) == "Первый"


@pytest.mark.parametrize("change", [by_the_driver, by_sqlalchemy])
async def test_what_was_given_up_on_a_silent_connection_holds_no_lock_for_long(
    settings: Settings,
    database: Database,
    make: Factory,
    change: Callable[[AsyncSession], Awaitable[None]],
) -> None:
    await make.dispensary(name="Первый")
    async with through(settings) as (wire, far), listening(far):
        with pytest.raises(TimeoutError):
            await give_up(wire, far, change)
        # PostgreSQL, which nobody has told that its client is gone, would keep it for half a minute.
        async with asyncio.timeout(10), database.transaction() as session:
            await RENAME.rows(session, name="Четвёртый")

    assert await name_of(database) == "Четвёртый"
