"""The two ways to PostgreSQL: sessions for changes, a few of the driver's own connections for reads.

Changes go through SQLAlchemy sessions, one transaction per mutation. Reads are single statements that
already come as JSON, so they go around SQLAlchemy. Both are opened lazily: a
database that is down at the start, or goes away later, is an answer to a request (`DatabaseUnavailable`),
never a dead server.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
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


class Readers:
    """Connections for reads, so many and no more; whoever finds none free waits in line, but not for ever.

    A read leaves nothing behind in its session, so nothing is reset between two; a connection on which
    something else than a refused statement happened is not used again.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection[asyncpg.Record]]],
        size: int,
        patience_s: float,
    ) -> None:
        self._connect = connect
        self._patience_s = patience_s
        self._idle: list[asyncpg.Connection[asyncpg.Record]] = []
        self._left = size
        self._line: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._sweep: asyncio.TimerHandle | None = None
        self.size = size

    @property
    def busy(self) -> int:
        """How many are at work."""
        return self.size - self._left

    async def read(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        """What the connection's method gives for the statement. Raises `TimeoutError` when none gets free."""
        if self._left:
            self._left -= 1
        else:
            await self._turn()
        connection = None
        try:
            while connection is None and self._idle:
                connection = self._idle.pop()
                if connection.is_closed():
                    connection = None
            if connection is None:
                connection = await self._connect()
            try:
                value = await getattr(connection, method)(sql, *arguments)
            except asyncpg.PostgresError:
                self._idle.append(connection)
                raise
            except BaseException:
                connection.terminate()
                raise
            self._idle.append(connection)
            return value
        finally:
            self._pass_on()

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._line.append((loop.time() + self._patience_s, turn))
        if self._sweep is None:
            self._sweep = loop.call_later(self._patience_s, self._give_up)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """The next in line has the turn, or one more is free."""
        while self._line:
            _, turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._left += 1

    def _give_up(self) -> None:
        """One timer for the whole line: who has waited too long is told so."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        while self._line and self._line[0][0] <= loop.time():
            _, turn = self._line.popleft()
            if not turn.done():
                turn.set_exception(TimeoutError())
        if self._line:
            self._sweep = loop.call_at(self._line[0][0], self._give_up)

    async def close(self, patience_s: float) -> None:
        """Every connection is closed; statements under way get a moment to end."""
        ends = asyncio.get_running_loop().time() + patience_s
        while self.busy and asyncio.get_running_loop().time() < ends:  # noqa: ASYNC110 -- once, at the end
            await asyncio.sleep(0.01)
        if self._sweep is not None:
            self._sweep.cancel()
        while self._idle:
            self._idle.pop().terminate()


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
        self._readers = Readers(self._connect, settings.read_pool_size, settings.pool_timeout_s)
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
        await self._readers.close(5)
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

    async def fetch_value(self, sql: str, *arguments: Any) -> Any:
        """The single value of a read that is one statement. Raises `DatabaseUnavailable` as `transaction`."""
        return await self._read("fetchval", sql, arguments)

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a read that is one statement. Raises `DatabaseUnavailable` as `transaction` does."""
        rows: list[asyncpg.Record] = await self._read("fetch", sql, arguments)
        return rows

    async def _read(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        self._count()
        try:
            return await self._readers.read(method, sql, arguments)
        except _OUTAGES as error:
            raise DatabaseUnavailable from error

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
        reading = (self._readers.busy, self._readers.size)
        writing = getattr(self.engine.pool, "checkedout", lambda: 0)()
        return {"read": reading, "write": (writing, self.settings.write_pool_size)}

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(
            self.url,
            # Every statement is prepared once per connection.
            statement_cache_size=1024,
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            **_connect_arguments(self.settings, "ekoyka read"),
        )

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


_OUTAGES = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InvalidCatalogNameError,
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
