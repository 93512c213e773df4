"""What every test stands on: a real PostgreSQL, one migrated template database, one clone of it per test."""

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from ekoyka import embedded, migrate
from ekoyka.database import WARD_ROLE, Database
from ekoyka.settings import Mode, Settings
from tests.client import Client, serving
from tests.factories import Factory

ADDRESS = "EKOYKA_TEST_DATABASE_URL"
_server: list[tuple[embedded.EmbeddedServer, tempfile.TemporaryDirectory[str]]] = []


def pytest_configure(config: pytest.Config) -> None:
    """One embedded PostgreSQL serves the whole run, all workers of it; another is used where the address says."""
    if not hasattr(config, "workerinput") and ADDRESS not in os.environ and not config.option.collectonly:
        folder = tempfile.TemporaryDirectory(prefix="ekoyka-tests-")
        server = embedded.start(Path(folder.name) / "data", durable=False)
        _server.append((server, folder))
        os.environ[ADDRESS] = server.url("postgres")
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        # Roles are all databases' own: made once, before the workers' databases are at once.
        asyncio.run(_make_roles())


async def _make_roles() -> None:
    database = Database(os.environ[ADDRESS], Settings(), pooled=False)
    async with database, database.engine.connect() as connection:
        await connection.run_sync(migrate.make_roles)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The embedded PostgreSQL ends with the run."""
    while _server:
        server, folder = _server.pop()
        embedded.stop(server)
        folder.cleanup()
        os.environ.pop(ADDRESS, None)


def address_of(name: str) -> str:
    """The address of another database on the test server."""
    head, _, tail = os.environ[ADDRESS].partition("?")
    return head.rpartition("/")[0] + "/" + name + ("?" + tail if tail else "")


async def administer(*statements: str) -> None:
    """The statements are executed on the server's maintenance database."""
    connection = await asyncpg.connect(os.environ[ADDRESS])
    try:
        for sql in statements:
            await connection.execute(sql)
    finally:
        await connection.close()


async def dropped(name: str) -> None:
    """The database is gone; PostgreSQL's own vacuum, which no login may end, is waited for."""
    async with asyncio.timeout(30):
        while True:
            try:
                await administer(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
                break
            except asyncpg.InsufficientPrivilegeError:
                await asyncio.sleep(0.1)


@pytest.fixture(scope="session")
def template() -> Iterator[str]:
    """The name of a migrated, empty database."""
    name = f"template_{uuid.uuid4().hex[:12]}"

    async def build() -> None:
        await administer(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' "
            "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
        )
        database = Database(address_of(name), Settings(), pooled=False)
        await migrate.upgrade(database)
        await database.close()

    asyncio.run(build())
    yield name
    asyncio.run(dropped(name))


@pytest.fixture
async def database_url(template: str) -> AsyncIterator[str]:
    """The address of a fresh clone of the template, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    await administer(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield address_of(name)
    await dropped(name)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings of a small, quick server on this test's database."""
    return Settings(
        mode=Mode.DEMO,
        database_url=database_url,
        data_dir=tmp_path / "data",
        password_hash_rounds=4,
        read_pool_size=5,
        write_pool_size=20,
        lapse_interval_s=3600,  # where a test counts statements or events, nothing happens by itself
        worker_inside=False,
        log_level="WARNING",
    )


@pytest.fixture
async def database(database_url: str, settings: Settings) -> AsyncIterator[Database]:
    """This test's database, all of it, as the software's own work sees it."""
    async with Database(database_url, settings, role=WARD_ROLE) as database:
        yield database


@pytest.fixture
async def owned(database_url: str, settings: Settings) -> AsyncIterator[Database]:
    """This test's database for who owns its tables: to change what they are."""
    async with Database(database_url, settings, pooled=False) as database:
        yield database


@pytest.fixture
def make(database: Database) -> Factory:
    """Rows for a test, committed at once."""
    return Factory(database)


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[Client]:
    """The application on this test's database."""
    async with serving(settings) as client:
        yield client
