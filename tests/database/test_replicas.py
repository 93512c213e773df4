"""Several servers that start at once, and a migration that is killed: the schema is made once, and whole."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from ekoyka import migrate
from ekoyka.database import SERVER_ROLE, Database
from ekoyka.settings import Settings
from tests.conftest import address_of, administer, dropped
from tests.servers import ready, start

REPLICAS = 8


@pytest.fixture
async def empty() -> AsyncIterator[str]:
    """The address of a database with nothing in it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    await administer(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
        "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    )
    yield address_of(name)
    await dropped(name)


async def test_of_eight_replicas_that_start_at_once_one_migrates_and_all_get_ready(
    empty: str, tmp_path: Path
) -> None:
    settings = Settings(database_url=empty)
    logs = [tmp_path / f"{number}.log" for number in range(REPLICAS)]
    servers = [
        await start(
            settings, log=log, EKOYKA_LOG_LEVEL="INFO", EKOYKA_READ_POOL_SIZE="2", EKOYKA_WRITE_POOL_SIZE="2"
        )
        for log in logs
    ]
    try:
        await asyncio.wait_for(asyncio.gather(*map(ready, servers)), 120)
    finally:
        codes = await asyncio.gather(*(server.stop() for server in servers))
    said = [
        [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")] for log in logs
    ]

    migrated = [item for lines in said for item in lines if item["event"] == "migrated"]
    assert [(item["before"], item["after"]) for item in migrated] == [(None, migrate.head())]
    # A listener that a busy machine keeps waiting is cut, and tries again.
    said = [[item for item in lines if item["event"] != "feed_cut"] for lines in said]
    assert not [item for lines in said for item in lines if item["level"] in ("warning", "error")]
    assert codes == [0] * REPLICAS
    async with Database(empty, settings, pooled=False) as database:
        assert await migrate.drift(database) == []


async def test_who_waits_for_anothers_migration_may_wait_longer_than_a_statement_may_run(empty: str) -> None:
    hasty = Settings(database_url=empty, statement_timeout_s=0.2)
    migrating = await asyncpg.connect(empty)
    try:
        await migrating.fetchval("SELECT pg_advisory_lock($1)", migrate._LOCK)
        async with Database(empty, hasty, pooled=False) as database:
            waiting = asyncio.create_task(migrate.upgrade(database))
            await asyncio.sleep(1)
            assert not waiting.done()
            await migrating.fetchval("SELECT pg_advisory_unlock($1)", migrate._LOCK)
            await waiting
            assert await migrate.at_head(database)
    finally:
        await migrating.close()


async def test_who_was_killed_before_servers_were_given_their_rights_gives_them_the_next_time(
    empty: str,
) -> None:
    async with Database(empty, Settings(database_url=empty), pooled=False) as database:
        await migrate.upgrade(database)
        await database.fetch(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {SERVER_ROLE}")
        assert not await migrate.at_head(database)

        await migrate.upgrade(database)

        assert await migrate.at_head(database)
        assert await database.fetch_value(f"SELECT has_table_privilege('{SERVER_ROLE}', 'bed', 'UPDATE')")


async def _killed_in_the_middle(
    address: str, revision: str | None, blocker: asyncpg.Connection[asyncpg.Record]
) -> None:
    """`ekoyka migrate` is killed when it has done the next revision's work and is about to say so."""
    log = asyncio.subprocess.DEVNULL
    async with blocker.transaction():
        # Its version is the last thing that a migration writes.
        await blocker.execute("LOCK TABLE alembic_version IN SHARE MODE")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ekoyka",
            "migrate",
            env={**os.environ, "DATABASE_URL": address},
            stdout=log,
            stderr=log,
        )
        async with asyncio.timeout(60):
            while not await blocker.fetchval(
                "SELECT true FROM pg_locks WHERE relation = 'alembic_version'::regclass AND NOT granted"
            ):
                assert process.returncode is None, revision
                await asyncio.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    async with asyncio.timeout(30):
        while await blocker.fetchval(  # noqa: ASYNC110 -- the database tells nobody
            "SELECT count(*) > 1 FROM pg_stat_activity WHERE datname = current_database()"
        ):
            await asyncio.sleep(0.05)


async def test_a_migration_killed_in_the_middle_leaves_nothing_and_runs_clean_the_next_time(
    empty: str,
) -> None:
    """From nothing, and from each revision to the next."""
    settings = Settings(database_url=empty)
    blocker = await asyncpg.connect(empty)
    try:
        await blocker.execute("CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)")
        for revision in (None, *_revisions()):
            async with Database(empty, settings, pooled=False) as database:
                if revision is not None:
                    await migrate.upgrade(database, revision)
                if revision == migrate.head():
                    break
            before = await _tables(blocker)
            await _killed_in_the_middle(empty, revision, blocker)

            assert await blocker.fetchval("SELECT version_num FROM alembic_version") == revision
            assert await _tables(blocker) == before
        async with Database(empty, settings, pooled=False) as database:
            await migrate.upgrade(database)
            assert await migrate.at_head(database)
            assert await migrate.drift(database) == []
    finally:
        await blocker.close()


def _revisions() -> list[str]:
    scripts = ScriptDirectory(str(migrate._folder()))
    return [script.revision for script in scripts.walk_revisions()][::-1]


async def _tables(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    rows = await connection.fetch(
        "SELECT relname || relkind::text AS name FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    return [row["name"] for row in rows]
