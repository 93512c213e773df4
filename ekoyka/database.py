"""The two ways to PostgreSQL: sessions for changes, the driver's own pool for reads.

Changes go through SQLAlchemy sessions, one transaction per mutation. Reads are single statements that
already come as JSON, so they go around SQLAlchemy on a pool of asyncpg's. Both are opened lazily: a
database that is down at the start, or goes away later, is an answer to a request (`DatabaseUnavailable`),
never a dead server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from sqlalchemy import URL, NullPool, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from ekoyka.settings import Settings

OLDEST_VERSION = 160000


class DatabaseUnavailable(Exception):
    """PostgreSQL cannot be reached now; the same request may succeed later."""


class DatabaseUnfit(Exception):
    """PostgreSQL answers but EKoyka cannot work on it; the text says why and how to mend it."""


def driver_url(url: str) -> URL:
    """SQLAlchemy's form of a ``postgresql://`` address, with the asyncpg driver.

    Understands a socket folder as ``?host=/folder``, as libpq does.
    """
    parts = urlsplit(url)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if sslmode := query.pop("sslmode", None):
        query["ssl"] = sslmode
    return URL.create(
        "postgresql+asyncpg",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        host=parts.hostname,
        port=parts.port,
        database=unquote(parts.path.lstrip("/")) or None,
        query=query,
    )


def _connect_arguments(settings: Settings, application: str) -> dict[str, Any]:
    return {
        "timeout": settings.connect_timeout_s,
        "server_settings": {
            "application_name": application,
            "timezone": "UTC",
            "statement_timeout": str(int(settings.statement_timeout_s * 1000)),
            "idle_in_transaction_session_timeout": "30000",
            "jit": "off",
        },
    }


async def connect(url: str, settings: Settings, application: str) -> asyncpg.Connection[asyncpg.Record]:
    """A connection outside the pools, for what lives as long as the process (the feed's listener)."""
    return await asyncpg.connect(url, **_connect_arguments(settings, application))


class Database:
    """One process's connections to one database."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        pooled: bool = True,
        on_statement: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_statement = on_statement
        self.url = url
        self.settings = settings
        pool: dict[str, Any] = (
            {
                "pool_size": settings.write_pool_size,
                "max_overflow": 0,
                "pool_timeout": settings.pool_timeout_s,
                "pool_pre_ping": True,
            }
            if pooled
            else {"poolclass": NullPool}
        )
        self.engine: AsyncEngine = create_async_engine(
            driver_url(url), connect_args=_connect_arguments(settings, "ekoyka write"), **pool
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self.statements = 0
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._count)

    def _count(self, *_: object) -> None:
        self.statements += 1
        self._on_statement()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Both pools are closed; statements under way get a moment to end."""
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), 5)
            except TimeoutError:
                self._pool.terminate()
        await self.engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed when the block ends, rolled back when it raises.

        Raises `DatabaseUnavailable` when the connection fails or none is free in time.
        """
        try:
            async with self._sessions() as session, session.begin():
                yield session
        except (OSError, PoolTimeoutError, asyncpg.PostgresConnectionError) as error:
            raise DatabaseUnavailable from error
        except DBAPIError as error:
            if _is_outage(error):
                raise DatabaseUnavailable from error
            raise

    @asynccontextmanager
    async def reader(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]:
        """A pooled connection for reads. Raises `DatabaseUnavailable` as `transaction` does."""
        try:
            pool = self._pool or await self._open_pool()
            async with pool.acquire(timeout=self.settings.pool_timeout_s) as connection:
                yield connection
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresConnectionError,
            asyncpg.InterfaceError,
            asyncpg.CannotConnectNowError,
            asyncpg.TooManyConnectionsError,
            asyncpg.AdminShutdownError,
            asyncpg.CrashShutdownError,
            asyncpg.InvalidCatalogNameError,
        ) as error:
            raise DatabaseUnavailable from error

    async def fetch_value(self, sql: str, *arguments: Any) -> Any:
        """The single value of a read that is one statement."""
        async with self.reader() as connection:
            self._count()
            return await connection.fetchval(sql, *arguments)

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a read that is one statement."""
        async with self.reader() as connection:
            self._count()
            return await connection.fetch(sql, *arguments)

    async def fetch_value_in(self, session: AsyncSession, sql: str, *arguments: Any) -> Any:
        """As `fetch_value`, on the session's connection: sees what its transaction has changed."""
        await session.flush()
        raw = await (await session.connection()).get_raw_connection()
        self._count()
        driver = raw.driver_connection
        assert driver is not None
        return await driver.fetchval(sql, *arguments)

    @property
    def pool_use(self) -> dict[str, tuple[int, int]]:
        """(busy, size) of each pool, by name."""
        reading = (
            (self._pool.get_size() - self._pool.get_idle_size(), self._pool.get_max_size())
            if self._pool
            else (0, self.settings.read_pool_size)
        )
        writing = getattr(self.engine.pool, "checkedout", lambda: 0)()
        return {"read": reading, "write": (writing, self.settings.write_pool_size)}

    async def _open_pool(self) -> asyncpg.Pool[asyncpg.Record]:
        async with self._opening:
            if self._pool is None:
                # min_size=0: the pool is there even while the database is not.
                self._pool = await asyncpg.create_pool(
                    self.url,
                    min_size=0,
                    max_size=self.settings.read_pool_size,
                    statement_cache_size=1024,
                    max_cached_statement_lifetime=0,
                    max_cacheable_statement_size=0,
                    **_connect_arguments(self.settings, "ekoyka read"),
                )
            return self._pool

    async def check_fit(self) -> None:
        """PostgreSQL is new enough, speaks UTF-8 and knows Cyrillic letters.

        Raises `DatabaseUnfit`, `DatabaseUnavailable`.
        """
        row = (
            await self.fetch(
                "SELECT current_setting('server_version_num')::int AS version,"
                " current_setting('server_encoding') AS encoding,"
                " lower('ЁЖ') = 'ёж' AND 'Ёж' ILIKE 'ёЖ' AS cyrillic"
            )
        )[0]
        if row["version"] < OLDEST_VERSION:
            raise DatabaseUnfit(
                f"PostgreSQL 16 or newer is needed; this one says {row['version']}. "
                "Upgrade it or point DATABASE_URL at another."
            )
        if row["encoding"] != "UTF8" or not row["cyrillic"]:
            raise DatabaseUnfit(
                "The database's locale does not know Cyrillic letters, so that searches would miss names. "
                "Create it with: CREATE DATABASE ekoyka TEMPLATE template0 ENCODING 'UTF8' "
                "LOCALE_PROVIDER icu ICU_LOCALE 'ru-RU' (or, from PostgreSQL 17, "
                "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8')."
            )


def _is_outage(error: DBAPIError) -> bool:
    """Whether the database went away, as opposed to refusing a statement."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    # 08 connection exceptions, 53300 too many connections, 57P0x shutdown and recovery, 3D000 no database
    return (
        state.startswith(("08", "57P0"))
        or state in ("53300", "3D000")
        or (isinstance(error, OperationalError) and not state)
    )


def constraint_name(error: DBAPIError) -> str | None:
    """The name of the constraint that refused a row, or None when it was something else."""
    cause = getattr(error.orig, "__cause__", None) or error.orig
    name: str | None = getattr(cause, "constraint_name", None)
    return name
