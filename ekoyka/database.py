"""The two ways to PostgreSQL: sessions for changes, a few of the driver's own connections for reads.

Changes go through SQLAlchemy sessions, one transaction per mutation; what is changed all day is written as
a `Statement`, which runs in the session's transaction without SQLAlchemy's work for each. Reads are single
statements that already come as JSON, so they go around SQLAlchemy (`readers`). Both are opened lazily: a
database that is down at the start, or goes away later, is an answer to a request (`DatabaseUnavailable`),
never a dead server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
from sqlalchemy import URL, NullPool, event
from sqlalchemy.exc import DBAPIError, DisconnectionError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from ekoyka.notices import Notices
from ekoyka.readers import Readers
from ekoyka.settings import Settings
from ekoyka.silence import Silence

OLDEST_VERSION = 160000
REFUSED_BY_CONSTRAINT = (IntegrityError, asyncpg.IntegrityConstraintViolationError)
"""What a constraint's refusal is raised as: by SQLAlchemy, and by a `Statement`; see `constraint_name`."""

SERVER_ROLE, WARD_ROLE = "ekoyka_server", "ekoyka_ward"
"""PostgreSQL's roles for the work of servers, neither of which owns anything. The first sees the clinical rows of
the actor whom a statement names, and none without one; the second, whom a transaction takes on for an operation,
sees all of them and writes those that the actor may (see the migration of row-level security)."""
ACTOR = "ekoyka.actor"
"""The setting that names the actor to PostgreSQL: account, ``on`` for a superadministrator, and the dispensaries
in which they are a doctor and a dispatcher, as `identity.queries.named` puts it."""
NETWORK = "|on||"
"""The actor of what the software does by itself: lapses, imports, renderings."""

CHANNEL = "ekoyka"
"""The channel of PostgreSQL's that committed changes are told on: a name and a number, a space between."""
NOTICES = "notices"

_Driver: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_GONE = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    # No room on the disk or in memory, no connection left; an error of the disk or the file system.
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    # A replica that does not know yet that it has been promoted, or a primary that has been demoted.
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InvalidCatalogNameError,
    # What the driver says of a connection that was cut while it was about to be used.
    asyncpg.InternalClientError,
)
# To undo a transaction takes no time; a connection that does not say that it has done so is not waited for.
_ROLL_BACK_S = 2.0
_NAMED = re.compile(r"(?<!:):([a-z_]+)")


class DatabaseUnavailable(Exception):
    """PostgreSQL cannot do it now, and nothing was changed; the same request may succeed later."""


class OutcomeUnknown(DatabaseUnavailable):
    """The connection was lost while a change was being committed: it was made, or it was not."""


class NotProvided(Exception):
    """What a transaction was to begin with is not so."""


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


def _connect_arguments(settings: Settings, application: str, **more: str) -> dict[str, Any]:
    return {
        "timeout": settings.connect_timeout_s,
        # Every statement is prepared once for each connection, however long it is.
        "statement_cache_size": 1024,
        "max_cached_statement_lifetime": 0,
        "max_cacheable_statement_size": 0,
        "server_settings": {
            "application_name": application,
            "timezone": "UTC",
            "statement_timeout": str(int(settings.statement_timeout_s * 1000)),
            "idle_in_transaction_session_timeout": "30000",
            "jit": "off",
            # One plan serves all values and is made once: making one takes longer than most statements run, and
            # what a plan cannot know of its values must not matter (see `graph.Filter.first`).
            "plan_cache_mode": "force_generic_plan",
            **more,
        },
    }


async def connect(
    url: str, settings: Settings, application: str, **more: str
) -> asyncpg.Connection[asyncpg.Record]:
    """A connection of the driver's own: for reads, or for what lives as long as the process.

    ``more`` are settings of PostgreSQL's for the session.
    """
    return await asyncpg.connect(url, **_connect_arguments(settings, application, **more))


class Row(asyncpg.Record):
    """A row of a `Statement`: its columns are its attributes."""

    id: int

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Statement:
    """A statement with ``:named`` parameters, run in a session's transaction by the driver alone.

    For what operations do all day: SQLAlchemy's own execution takes the server five times as long.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names = tuple(dict.fromkeys(_NAMED.findall(text)))
        self.sql = _NAMED.sub(lambda found: f"${self.names.index(found[1]) + 1}", text)

    async def rows(self, session: AsyncSession, **values: Any) -> list[Row]:
        """Its rows. What the session has changed is written before."""
        assert values.keys() == set(self.names)
        driver = await _driver_of(session)
        return await driver.fetch(self.sql, *(values[name] for name in self.names), record_class=Row)

    async def row(self, session: AsyncSession, **values: Any) -> Row:
        """Its only row."""
        [row] = await self.rows(session, **values)
        return row


async def _flush(session: AsyncSession) -> None:
    """What the session has changed is written; where it has changed nothing, that is asked no further."""
    if session.new or session.dirty or session.deleted:
        await session.flush()


async def _driver_of(session: AsyncSession) -> _Driver:
    """The connection of the session's transaction, about to be sent a statement."""
    await _flush(session)
    session.info["count"]()
    driver: _Driver = session.info["driver"]
    return driver


class Database:
    """One process's connections to one database."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        pooled: bool = True,
        role: str | None = None,
        on_statement: Callable[[], None] = lambda: None,
    ) -> None:
        """``role`` is PostgreSQL's, for all that is done; without one, the address's own login, which migrates.

        As the ward's role it is the software's own work, over the whole network.
        """
        self._on_statement = on_statement
        self.url = url
        self.settings = settings
        self._as_role = {"role": role} if role else {}
        if role == WARD_ROLE:
            self._as_role[ACTOR] = NETWORK
        self._takes_ward_role = role == SERVER_ROLE
        pool: dict[str, Any] = (
            {
                "pool_size": settings.write_pool_size,
                "max_overflow": 0,
                "pool_timeout": settings.pool_timeout_s,
            }
            if pooled
            else {"poolclass": NullPool}
        )
        self.engine: AsyncEngine = create_async_engine(
            driver_url(url),
            connect_args=_connect_arguments(settings, "ekoyka write", **self._as_role),
            **pool,
        )
        # The transaction is `transaction`'s own: SQLAlchemy would begin it with its first statement, which
        # may not be the first, and in a round trip of its own.
        self._sessions = async_sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"),
            expire_on_commit=False,
            info={"count": self._count},
        )
        self.silence = Silence()
        self._readers = self._reading(settings.read_pool_size)
        # What answers wait for does not wait in line with other reads.
        self._recorder = self._reading(1)
        self.notices = Notices(self._notify)
        self.statements = 0
        event.listen(self.engine.sync_engine, "before_cursor_execute", self._count)
        event.listen(self.engine.sync_engine, "checkout", _refuse_unusable)

    def _reading(self, size: int) -> Readers:
        return Readers(
            self._connect,
            size,
            patience_s=self.settings.pool_timeout_s,
            longest_s=self.settings.statement_timeout_s + _ROLL_BACK_S,
            silence=self.silence,
        )

    def _count(self, *_: object) -> None:
        self.statements += 1
        self._on_statement()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Both pools are closed; statements under way get a moment to end, and notices to be sent."""
        await self.notices.close(1)
        await self._readers.close(5)
        await self._recorder.close(1)
        await self.engine.dispose()

    @asynccontextmanager
    async def transaction(
        self, *, provided: str | None = None, ward: str | None = None
    ) -> AsyncIterator[AsyncSession]:
        """A session in one transaction: committed when the block ends, rolled back when it raises.

        ``ward`` names the actor of an operation on clinical rows (see `ACTOR`); without one there are none.

        What stands under `NOTICES` in the session's ``info``, numbers by name, is told on `CHANNEL` after that.
        ``provided`` is a SELECT without parameters that must find a row; it goes with the BEGIN, in one round
        trip. Raises `NotProvided`, `DatabaseUnavailable` when the connection fails or none is free in time, and
        `OutcomeUnknown` when it fails at the very end.
        """
        try:
            session, driver, found = await self._begin(self._opening(provided, ward))
            try:
                if found == "SELECT 0":
                    raise NotProvided
                begun = session.get_transaction()
                yield session
                await _flush(session)
                # A session that was rolled back inside the block takes everything along.
                ending = "COMMIT" if begun is not None and begun.is_active else "ROLLBACK"
                if await _end(driver, ending) != ending:
                    raise RuntimeError("an error was passed over, so PostgreSQL has undone the transaction")
                if ending == "COMMIT":
                    self.notices.add(session.info.get(NOTICES, {}))
            except BaseException:
                await self._roll_back(driver)
                raise
            finally:
                self.silence.ends(driver)
                await session.close()
        except (*_GONE, PoolTimeoutError) as error:
            raise DatabaseUnavailable from error
        except (DBAPIError, asyncpg.InterfaceError) as error:
            if _is_outage(error):
                raise DatabaseUnavailable from error
            raise

    def _opening(self, provided: str | None, ward: str | None) -> str:
        opening = ["BEGIN"]
        if ward is not None:
            if self._takes_ward_role:
                opening.append(f"SET LOCAL ROLE {WARD_ROLE}")
            opening.append(f"SET LOCAL {ACTOR} = '{ward}'")
        return "; ".join([*opening, provided] if provided else opening)

    async def _begin(self, opening: str) -> tuple[AsyncSession, _Driver, str]:
        """A session in a transaction, its connection, and what the last statement of the opening said.

        A connection that was cut while it lay in the pool is found out here, before anything is done; another
        takes its place. After a restart of the database all of them may have been cut.
        """
        for left in range(self.settings.write_pool_size, -1, -1):
            session = self._sessions()
            driver: Any = None
            try:
                pooled = await (await session.connection()).get_raw_connection()
                driver = pooled.driver_connection
                session.info["driver"] = driver
                self.silence.begins(driver)
                try:
                    return session, driver, await driver.execute(opening)
                except (*_GONE, asyncpg.InterfaceError):
                    self.silence.abandon(driver)
                    self.silence.ends(driver)
                    if not left:
                        raise
                await session.invalidate()
            except BaseException:
                if driver is not None:
                    # Closed at once: to be closed in order it would have to answer first.
                    self.silence.abandon(driver)
                    self.silence.ends(driver)
                await session.invalidate()
                raise
        raise AssertionError("unreachable")

    async def _roll_back(self, driver: _Driver) -> None:
        """The transaction is undone; a connection that cannot say so in time is closed, which undoes it too."""
        try:
            if driver.is_in_transaction():
                async with asyncio.timeout(_ROLL_BACK_S):
                    await driver.execute("ROLLBACK")
        except BaseException as error:
            self.silence.abandon(driver)
            if not isinstance(error, Exception):
                raise

    async def fetch_value(self, sql: str, *arguments: Any) -> Any:
        """The single value of a read that is one statement. Raises `DatabaseUnavailable` as `transaction`."""
        return await self._read("fetchval", sql, arguments)

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """The rows of a read that is one statement. Raises `DatabaseUnavailable` as `transaction` does."""
        rows: list[asyncpg.Record] = await self._read("fetch", sql, arguments)
        return rows

    async def write_down(self, sql: str, *arguments: Any) -> None:
        """What was read is written down, on a connection of its own; it belongs to no single operation.

        Raises `DatabaseUnavailable`.
        """
        try:
            await self._recorder.read("execute", sql, arguments)
        except (*_GONE, TimeoutError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable from error

    async def fetch_aside(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        """As `fetch`, for what belongs to no operation: it is not counted."""
        rows: list[asyncpg.Record] = await self._read("fetch", sql, arguments, counted=False)
        return rows

    async def _read(self, method: str, sql: str, arguments: tuple[Any, ...], *, counted: bool = True) -> Any:
        if counted:
            self._count()
        try:
            return await self._readers.read(method, sql, arguments)
        except (*_GONE, TimeoutError, asyncpg.InterfaceError) as error:
            raise DatabaseUnavailable from error

    async def fetch_value_in(self, session: AsyncSession, sql: str, *arguments: Any) -> Any:
        """As `fetch_value`, on the session's connection: sees what its transaction has changed."""
        return await (await _driver_of(session)).fetchval(sql, *arguments)

    @property
    def pool_use(self) -> dict[str, tuple[int, int]]:
        """(busy, size) of each pool, by name."""
        reading = (self._readers.busy, self._readers.size)
        writing = getattr(self.engine.pool, "checkedout", lambda: 0)()
        return {"read": reading, "write": (writing, self.settings.write_pool_size)}

    async def _connect(self) -> asyncpg.Connection[asyncpg.Record]:
        # What is written on these connections, a notification for one, need not outlive PostgreSQL.
        return await connect(
            self.url, self.settings, "ekoyka read", synchronous_commit="off", **self._as_role
        )

    async def _notify(self, notices: Mapping[str, int]) -> None:
        # Not counted: it belongs to no operation.
        await self._readers.read(
            "execute",
            f"SELECT pg_notify('{CHANNEL}', name || ' ' || number) "
            "FROM unnest($1::text[], $2::bigint[]) notice (name, number)",
            (list(notices), list(notices.values())),
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


def _refuse_unusable(connection: Any, *_: object) -> None:
    """A pooled connection that is closed, or was left amid a transaction, is replaced by another."""
    driver: _Driver = connection.driver_connection
    if driver.is_closed() or driver.is_in_transaction():
        raise DisconnectionError


async def _end(driver: _Driver, ending: str) -> str:
    """What PostgreSQL says to this end of a transaction. Raises `OutcomeUnknown` where that was not heard."""
    try:
        return await driver.execute(ending)
    except Exception as error:
        # An ERROR is said instead of committing; after all else, the end of the connection included, who knows.
        if ending == "COMMIT" and getattr(error, "severity_en", None) != "ERROR":
            raise OutcomeUnknown from error
        raise


def _is_outage(error: DBAPIError | asyncpg.InterfaceError) -> bool:
    """Whether the database went away, as opposed to refusing a statement."""
    if isinstance(error, asyncpg.InterfaceError):
        return not isinstance(error, ValueError)  # as which the driver refuses values
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    state = getattr(error.orig, "sqlstate", None) or ""
    # 08 connection exceptions, 53 no room or no connection left, 57P0x shutdown and recovery, 58 errors of the
    # system, 25006 only for reading, 25P03 idle for too long, 3D000 no database
    return (
        state.startswith(("08", "53", "57P0", "58"))
        or state in ("25006", "25P03", "3D000")
        or (isinstance(error, OperationalError) and not state)
    )


def constraint_name(error: BaseException) -> str | None:
    """The name of the constraint that refused a row, or None when it was something else."""
    refused = getattr(error, "orig", error)
    name: str | None = getattr(getattr(refused, "__cause__", None) or refused, "constraint_name", None)
    return name
