"""The worker: it makes slots by itself, alone or inside the server, and ends in order whatever it is doing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from procrastinate.schema import SchemaManager
from psycopg import OperationalError

from ekoyka import worker
from ekoyka.database import Database
from ekoyka.settings import Settings
from ekoyka.worker import QueueConnection, Worker
from tests.conftest import address_of, administer, dropped
from tests.database.test_migrations import structure
from tests.database.test_outages import wired
from tests.factories import Factory
from tests.feed import until
from tests.servers import running, start_worker


@asynccontextmanager
async def working(database_url: str, log: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of `ekoyka worker`; killed at the end if it has not stopped."""
    process = await start_worker(database_url, log)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def slots_there(database: Database) -> bool:
    return bool(await database.fetch_value("SELECT count(*) > 0 FROM slot"))


async def queue(database: Database) -> list[tuple[str, str]]:
    """The jobs in the queue that make slots, with their status."""
    rows = await database.fetch(
        "SELECT task_name, status FROM procrastinate_jobs WHERE task_name LIKE 'slots%' ORDER BY id"
    )
    return [(row["task_name"], row["status"]) for row in rows]


async def is_doing(database: Database) -> bool:
    return "doing" in {status for _, status in await queue(database)}


@asynccontextmanager
async def held_up(database_url: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """Nobody can make slots while the block lasts, or until the connection's transaction is ended."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("BEGIN; LOCK TABLE slot IN EXCLUSIVE MODE")
        yield connection
    finally:
        await connection.close()


async def one_schedule(make: Factory) -> None:
    place = await make.dispensary()
    await make.schedule(await make.account(doctor_of=(place,)), place)


async def test_a_worker_makes_slots_by_itself_and_stops_when_it_is_told(
    database_url: str, database: Database, make: Factory, tmp_path: Path
) -> None:
    await one_schedule(make)
    log = tmp_path / "worker.log"

    async with working(database_url, log) as process:
        await until(lambda: slots_there(database))
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 30)

    assert code == 0
    assert '"event": "job_done"' in log.read_text()
    assert "Traceback" not in log.read_text()
    # Workers that have stopped in order are no longer known.
    assert await database.fetch_value("SELECT count(*) FROM procrastinate_workers") == 0


async def test_a_job_under_way_is_finished_before_the_worker_stops(
    database_url: str, database: Database, make: Factory
) -> None:
    await one_schedule(make)

    async with working(database_url) as process, held_up(database_url) as obstacle:
        await until(lambda: is_doing(database))
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert process.returncode is None
        await obstacle.execute("COMMIT")
        code = await asyncio.wait_for(process.wait(), 30)

    assert code == 0
    assert not await is_doing(database)
    assert await slots_there(database)


async def test_a_job_that_takes_too_long_is_put_back_and_done_by_another_worker(
    database_url: str, database: Database, settings: Settings, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_schedule(make)
    monkeypatch.setattr(worker, "GRACE_S", 0.2)

    async with held_up(database_url):
        work = asyncio.create_task(Worker(database, settings).run())
        await until(lambda: is_doing(database))
        work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(work, 20)
        left = await queue(database)
        made = await slots_there(database)
    async with working(database_url):
        await until(lambda: slots_there(database))

    assert ("slots_of_the_day", "todo") in left
    assert not made


async def test_a_job_of_a_worker_that_was_killed_is_done_again(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    await one_schedule(make)
    async with held_up(database_url), working(database_url) as process:
        await until(lambda: is_doing(database))
        process.kill()
        await process.wait()
    await database.fetch("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '1 hour'")

    async with Worker(database, settings)._queue().open_async() as opened:
        await opened.job_manager.prune_stalled_workers(30)
        before = await queue(database)
        await worker._revive(opened.job_manager)

    assert ("slots_of_the_day", "doing") in before
    assert ("slots_of_the_day", "todo") in await queue(database)


async def test_what_goes_wrong_in_a_job_is_logged_without_values_and_tried_again(
    database_url: str, database: Database, owned: Database, make: Factory, tmp_path: Path
) -> None:
    await one_schedule(make)
    # A value of the row that is refused would stand in PostgreSQL's message.
    await owned.fetch("ALTER TABLE slot ADD CONSTRAINT nonsense CHECK (schedule_id < 0)")
    log = tmp_path / "worker.log"

    async with working(database_url, log):
        await until(lambda: failed(log))
        await owned.fetch("ALTER TABLE slot DROP CONSTRAINT nonsense")
        await until(lambda: slots_there(database))

    said = log.read_text()
    assert '"kind": "CheckViolationError"' in said
    assert "Failing row" not in said
    assert "Traceback" not in said


async def test_the_queue_does_not_wait_for_a_connection_that_says_nothing_any_more(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SILENCE_S", 0.5)
    async with wired(settings) as (wire, own):
        assert own.database_url is not None
        url = own.database_url.get_secret_value()
        asking, listening = [await QueueConnection.connect(url, autocommit=True) for _ in range(2)]
        await listening.execute("LISTEN here")
        # It was quiet for longer than anybody waits for an answer, which is no harm to those who listen.
        assert [said async for said in listening.notifies()] == []
        await asking.execute("NOTIFY here")
        assert [said.channel async for said in listening.notifies(stop_after=1)] == ["here"]

        wire.stall()
        for connection in asking, listening:
            with pytest.raises(OperationalError):
                await asyncio.wait_for(connection.execute("SELECT"), 30)
            assert connection.closed


async def failed(log: Path) -> bool:
    return '"event": "job_failed"' in await asyncio.to_thread(log.read_text)


async def test_a_small_installations_server_does_the_workers_work(
    database: Database, settings: Settings, make: Factory
) -> None:
    await one_schedule(make)

    async with running(settings, 2, EKOYKA_WORKER_INSIDE="true") as servers:
        await until(lambda: slots_there(database))
        codes = [await asyncio.wait_for(server.stop(), 30) for server in servers]

    assert codes == [0, 0]
    assert await database.fetch_value("SELECT count(*) FROM procrastinate_workers") == 0


async def test_the_queues_schema_is_the_librarys(template: str) -> None:
    """Where this fails, the library has a new schema: a migration of ours takes its changes over."""
    name = f"queue_{uuid4().hex[:8]}"
    await administer(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        owner = await asyncpg.connect(address_of(name))
        await owner.execute(SchemaManager.get_schema())
        await owner.close()
        whole, ours = [
            # Whose rights on the tables differ: here servers have some.
            [
                line
                for line in await structure(database)
                if "procrastinate" in line and not line.startswith("table")
            ]
            for database in (name, template)
        ]
    finally:
        await dropped(name)

    assert len(whole) > 50
    assert ours == whole
