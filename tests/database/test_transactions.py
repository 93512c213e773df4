"""Transactions: begun, committed and undone as a whole, also when the connection or the caller goes away."""

import asyncio
import contextlib

import pytest
from sqlalchemy.exc import IntegrityError

from ekoyka.database import (
    REFUSED_BY_CONSTRAINT,
    Database,
    DatabaseUnavailable,
    NotProvided,
    Statement,
    constraint_name,
)
from ekoyka.facilities.tables import Room
from tests.conftest import administer
from tests.factories import Factory

NAMED = Statement("UPDATE dispensary SET name = :name WHERE id = :id RETURNING name")


async def names(database: Database) -> list[str]:
    return [row["name"] for row in await database.fetch("SELECT name FROM dispensary ORDER BY id")]


async def cut_all(database: Database) -> None:
    """Every connection to the database is ended by the server, as in a restart."""
    name = await database.fetch_value("SELECT current_database()")
    await administer(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


async def test_a_statement_sees_and_undoes_together_with_what_the_session_changed(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(name="Первый")

    with contextlib.suppress(LookupError):
        async with database.transaction() as session:
            session.add(Room(dispensary_id=place.id, number="1"))
            rooms = await Statement("SELECT number FROM room").rows(session)
            assert [room.number for room in rooms] == ["1"]
            assert (await NAMED.row(session, name="Второй", id=place.id)).name == "Второй"
            raise LookupError
    async with database.transaction() as session:
        await NAMED.row(session, name="Третий", id=place.id)
        await session.rollback()

    assert await names(database) == ["Первый"]
    assert await database.fetch_value("SELECT count(*) FROM room") == 0


async def test_a_transaction_begins_only_where_its_condition_holds(database: Database) -> None:
    async with database.transaction(provided="SELECT WHERE true"):
        pass
    with pytest.raises(NotProvided):
        async with database.transaction(provided="SELECT WHERE false"):
            raise AssertionError("never begun")
    async with database.transaction(provided="SELECT WHERE true"):
        pass


async def test_a_constraint_is_known_by_its_name_whoever_ran_into_it(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    await make.room(place, number="1")
    insert = Statement(
        "INSERT INTO room (dispensary_id, number, sex, isolation, version) VALUES (:place, '1', 'ANY', false, 1)"
    )

    with pytest.raises(REFUSED_BY_CONSTRAINT) as by_statement:
        async with database.transaction() as session:
            await insert.rows(session, place=place.id)
    with pytest.raises(IntegrityError) as by_session:
        await make.room(place, number="1")

    assert constraint_name(by_statement.value) == constraint_name(by_session.value) == "uq_room_number"


async def test_a_restart_of_the_database_is_harmless(database: Database, make: Factory) -> None:
    place = await make.dispensary(name="Первый")

    async def several_at_once() -> None:
        async with database.transaction(), database.transaction(), database.transaction():
            pass

    await several_at_once()
    await cut_all(database)
    await several_at_once()
    async with database.transaction() as session:
        await NAMED.row(session, name="Второй", id=place.id)

    assert await names(database) == ["Второй"]


async def test_a_connection_cut_in_the_middle_is_an_outage_and_changes_nothing(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(name="Первый")

    async def cut() -> None:
        async with database.transaction() as session:
            await NAMED.row(session, name="Второй", id=place.id)
            await cut_all(database)
            await NAMED.row(session, name="Третий", id=place.id)

    with pytest.raises(DatabaseUnavailable):
        await cut()
    async with database.transaction() as session:
        await NAMED.row(session, name="Четвёртый", id=place.id)

    assert await names(database) == ["Четвёртый"]


async def test_who_goes_away_in_the_middle_leaves_a_good_connection(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(name="Первый")

    async def slow() -> None:
        async with database.transaction() as session:
            await NAMED.row(session, name="Второй", id=place.id)
            await Statement("SELECT pg_sleep(20)").rows(session)

    for _ in range(3):
        task = asyncio.create_task(slow())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    async with database.transaction() as session:
        await NAMED.row(session, name="Третий", id=place.id)

    assert await names(database) == ["Третий"]
    assert database.pool_use["write"][0] == 0


async def test_an_error_that_was_passed_over_is_not_taken_for_a_commit(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(name="Первый")

    async def pass_over() -> None:
        async with database.transaction() as session:
            await NAMED.row(session, name="Второй", id=place.id)
            with contextlib.suppress(REFUSED_BY_CONSTRAINT[1]):
                await Statement("UPDATE dispensary SET name = ''").rows(session)

    with pytest.raises(RuntimeError):
        await pass_over()

    assert await names(database) == ["Первый"]
