"""Backup and restore: what comes back is what went in, to the row; and what might not be is refused."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import orjson
import pytest
from pydantic import SecretStr

from ekoyka import backup, migrate
from ekoyka.backup import BackupError, manifest_of
from ekoyka.database import WARD_ROLE, Database
from ekoyka.inpatient import stays
from ekoyka.inpatient.tables import Outcome
from ekoyka.programs import ProgramFailed, Programs, find_programs
from ekoyka.settings import Settings
from tests.client import gid
from tests.conftest import address_of, administer, dropped
from tests.factories import Factory
from tests.feed import token
from tests.filled import fill
from tests.identity.transactions import run
from tests.invariants import broken_invariants
from tests.servers import running


@pytest.fixture
async def empty(settings: Settings) -> AsyncIterator[Settings]:
    """Another, empty database on the same server."""
    name = f"restored_{uuid.uuid4().hex[:12]}"
    await administer(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
        "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    )
    yield settings.model_copy(update={"database_url": SecretStr(address_of(name))})
    await dropped(name)


def url_of(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def files_in(folder: Path) -> dict[str, bytes]:
    """What lies there, hidden files too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def silent(_: str) -> None:
    """Nobody watches."""


def ekoyka(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line on this database."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")}
    return subprocess.run(
        [sys.executable, "-m", "ekoyka", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**environment, "DATABASE_URL": url_of(settings)},
    )


async def rows_of(settings: Settings) -> dict[str, list[str]]:
    """Every row of every table but the counters."""
    connection = await asyncpg.connect(url_of(settings), server_settings={"role": WARD_ROLE})
    try:
        return {
            table: [row[0] for row in await connection.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")]
            for table in migrate.METADATA.tables
            if table not in backup.NOT_KEPT
        }
    finally:
        await connection.close()


async def test_a_network_that_was_backed_up_and_restored_is_the_same_to_the_row_and_serves(
    database: Database, settings: Settings, empty: Settings, tmp_path: Path
) -> None:
    await fill(database)
    file = tmp_path / "сеть.dump"

    saved = await asyncio.to_thread(ekoyka, settings, "backup", str(file))
    restored = await asyncio.to_thread(ekoyka, empty, "restore", str(file))

    assert (saved.returncode, restored.returncode) == (0, 0), saved.stderr + restored.stderr
    assert files_in(tmp_path).keys() == {"сеть.dump", "сеть.dump.json"}
    assert [stat.S_IMODE(path.stat().st_mode) for path in (file, manifest_of(file))] == [0o600] * 2
    before, after = await rows_of(settings), await rows_of(empty)
    assert {table: len(rows) for table, rows in before.items()} == {
        table: len(rows) for table, rows in after.items()
    }
    assert [table for table in before if before[table] != after[table]] == []
    assert all(before.values())
    async with Database(url_of(empty), empty, pooled=False) as there:
        assert await migrate.at_head(there)
        assert await migrate.drift(there) == []
        assert await there.fetch_value("SELECT count(*) FROM rate") == 0
    async with Database(url_of(empty), empty, pooled=False, role=WARD_ROLE) as there:
        make = Factory(there)
        boss = await make.actor(superadmin=True)
        place = await make.dispensary()
        order = {
            "patientId": gid("Patient", await make.patient(place)),
            "bedId": gid("Bed", await make.bed(place)),
        }
    async with running(empty, 1) as (server,), httpx.AsyncClient(timeout=30) as http:
        answer = await http.post(
            f"{server.url}/graphql",
            json={
                "query": "mutation ($i: StayCheckInInput!) { stayCheckIn(input: $i) { ... on Stay { version } } }",
                "variables": {"i": order},
            },
            headers={"authorization": f"Bearer {token(boss)}"},
        )
    assert answer.json()["data"] == {"stayCheckIn": {"version": 1}}


async def test_a_backup_is_of_one_moment_while_the_ward_goes_on(
    database: Database, settings: Settings, empty: Settings, make: Factory, tmp_path: Path
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    stopped = asyncio.Event()

    async def come_and_go() -> int:
        bed, patient, count = await make.bed(place), await make.patient(place), 0
        while not stopped.is_set():
            stay = await run(database, stays.check_in, actor=doctor, patient_id=patient.id, bed_id=bed.id)
            leaves = {"stay_id": stay.id, "version": 1, "outcome": Outcome.DISCHARGED}
            await run(database, stays.check_out, actor=doctor, **leaves)
            count += 1
        return count

    people = [asyncio.create_task(come_and_go()) for _ in range(4)]
    made = await backup.back_up(settings, tmp_path / "a.dump", replace=False, say=silent)
    stopped.set()
    total = sum(await asyncio.gather(*people))
    await backup.restore(empty, tmp_path / "a.dump", replace=False, say=silent)

    assert total > made.tables["stay"].rows
    async with Database(url_of(empty), empty, pooled=False, role=WARD_ROLE) as there:
        assert await broken_invariants(there) == []


async def test_what_is_there_is_neither_overwritten_nor_replaced_unless_it_is_said(
    settings: Settings, empty: Settings, make: Factory, database: Database, tmp_path: Path
) -> None:
    file = tmp_path / "a.dump"
    await make.dispensary(name="Первый")
    await database.close()
    await backup.back_up(settings, file, replace=False, say=silent)
    with pytest.raises(BackupError, match="there already"):
        await backup.back_up(settings, file, replace=False, say=silent)
    await backup.restore(empty, file, replace=False, say=silent)
    with pytest.raises(BackupError, match="not empty"):
        await backup.restore(empty, file, replace=False, say=silent)

    async with Database(url_of(empty), empty, pooled=False, role=WARD_ROLE) as there:
        await Factory(there).dispensary(name="Второй")
        await there.fetch("SELECT 1")
        with pytest.raises(BackupError, match="stop it first"):
            await backup.restore(empty, file, replace=True, say=silent)
    await backup.restore(empty, file, replace=True, say=silent)
    await backup.back_up(empty, file, replace=True, say=silent)

    assert await rows_of(empty) == await rows_of(settings)


async def test_a_file_that_is_not_what_it_was_is_not_restored(
    settings: Settings, empty: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "a.dump"
    await backup.back_up(settings, file, replace=False, say=silent)
    whole, said = file.read_bytes(), manifest_of(file).read_bytes()

    async def refused(match: str) -> None:
        with pytest.raises(BackupError, match=match):
            await backup.restore(empty, file, replace=False, say=silent)

    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    await refused("not what it was")
    file.write_bytes(whole[: len(whole) // 2])
    await refused("not what it was")
    file.write_bytes(whole)
    manifest_of(file).write_bytes(said[:-10])
    await refused("damaged")
    manifest_of(file).write_bytes(orjson.dumps({**orjson.loads(said), "revision": "9999"}))
    await refused("newer EKoyka")
    manifest_of(file).write_bytes(orjson.dumps({**orjson.loads(said), "postgresql": 99}))
    await refused("PostgreSQL 99")
    manifest_of(file).unlink()
    await refused("bring it along")
    file.unlink()
    await refused("no backup")
    async with Database(url_of(empty), empty, pooled=False) as there:
        assert (
            await there.fetch_value(
                "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
            )
            == 0
        )


async def test_a_check_restores_elsewhere_finds_what_differs_and_leaves_nothing_behind(
    settings: Settings, make: Factory, tmp_path: Path
) -> None:
    file = tmp_path / "a.dump"
    await make.dispensary()
    await backup.back_up(settings, file, replace=False, say=silent)
    await backup.check(settings, file, say=silent)

    said = orjson.loads(manifest_of(file).read_bytes())
    said["tables"]["dispensary"]["digest"] = "1"
    manifest_of(file).write_bytes(orjson.dumps(said))
    with pytest.raises(BackupError, match=r"not what was backed up: dispensary\."):
        await backup.check(settings, file, say=silent)

    connection = await asyncpg.connect(url_of(settings))
    left = await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname LIKE 'ekoyka_check%'")
    await connection.close()
    assert left == 0


async def test_a_backup_of_an_older_schema_is_brought_to_the_newest(
    settings: Settings,
    empty: Settings,
    make: Factory,
    database: Database,
    owned: Database,
    tmp_path: Path,
) -> None:
    file = tmp_path / "a.dump"
    await make.dispensary(name="Старый")
    await migrate.downgrade(owned, "0003")
    await database.close()
    made = await backup.back_up(settings, file, replace=False, say=silent)

    await backup.restore(empty, file, replace=False, say=silent)

    assert made.revision == "0003"
    async with Database(url_of(empty), empty, pooled=False) as there:
        assert await migrate.drift(there) == []
        assert await there.fetch_value("SELECT name FROM dispensary") == "Старый"


async def test_an_empty_database_is_not_backed_up(empty: Settings, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="is empty"):
        await backup.back_up(empty, tmp_path / "a.dump", replace=False, say=silent)

    assert files_in(tmp_path) == {}


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


async def test_a_dump_that_fails_leaves_the_last_one_as_it_was(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.dump"
    await backup.back_up(settings, file, replace=False, say=silent)
    program(tmp_path, "pg_dump", 'echo "pg_dump: error: no space left on device" >&2; exit 1')
    before = files_in(tmp_path)
    monkeypatch.setattr(backup, "find_programs", lambda major: Programs(tmp_path, major))

    with pytest.raises(ProgramFailed, match="no space left"):
        await backup.back_up(settings, file, replace=True, say=silent)

    assert files_in(tmp_path) == before


async def test_programs_that_are_missing_or_too_old_are_asked_for_by_name(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="postgresql-client-18"):
        find_programs(18, [tmp_path])
    for name in "pg_dump", "pg_restore":
        program(tmp_path, name, f'echo "{name} (PostgreSQL) 17.2 (Debian 17.2-1)"')
    with pytest.raises(ProgramFailed, match=r"found was: 17 in"):
        find_programs(18, [tmp_path])

    assert find_programs(16, [tmp_path]) == Programs(tmp_path, 17)
    # Of the installed ones the nearest to the server: a newer one may say what an older server does not know.
    assert find_programs(16).major == 16
    assert find_programs(18).major == 18


async def test_no_password_and_none_of_our_secrets_is_on_a_programs_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EKOYKA_TOKEN_KEYS", "t" * 40)
    monkeypatch.setenv("DATABASE_URL", "postgresql://a:b@c/d")
    program(tmp_path, "pg_dump", 'echo "$@"; env')

    said = await Programs(tmp_path, 18).run(
        "pg_dump",
        "--format=custom",
        url="postgresql://us%40er:se%2Fcret@db.example:5433/ekoyka?sslmode=require",
    )

    arguments, *environment = said.splitlines()
    assert arguments == "--format=custom"
    assert {
        "PGUSER=us@er",
        "PGPASSWORD=se/cret",
        "PGHOST=db.example",
        "PGPORT=5433",
        "PGDATABASE=ekoyka",
        "PGSSLMODE=require",
    } <= set(environment)
    assert [line for line in environment if line.startswith(("EKOYKA_", "DATABASE_URL"))] == []
