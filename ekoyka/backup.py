"""Backup and restore: one file in PostgreSQL's own format (pg_dump, custom), and a manifest that it is checked against.

The manifest stands beside the file, under its name and ``.json``: the file's digest, the schema's revision, and of
each table the number and digest of its rows, read in the very snapshot that was dumped. What is restored is compared
with it, row by row in effect, by one statement a table. Neither file holds a password; both are for their owner alone.

Refuses to overwrite a file, to restore into what is not empty or in use, and what a newer EKoyka has made.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
from pydantic import SecretStr

from ekoyka import migrate
from ekoyka.database import WARD_ROLE, Database, connect
from ekoyka.programs import Programs, find_programs
from ekoyka.settings import Settings

Say = Callable[[str], None]
# What is counted means nothing elsewhere: how often something was done, how many sockets are open.
NOT_KEPT = ("rate", "server_process", "tally")
_PATIENT = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
# How rows are written as text, whatever the server's own settings are.
_AS_TEXT = """
SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres';
SET LOCAL bytea_output = 'hex'; SET LOCAL extra_float_digits = 1
"""
_TABLES = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') "
    "AND relname <> ALL ($1::text[]) ORDER BY relname"
)


class BackupError(Exception):
    """Says in plain words what is wrong and how to mend it."""


@dataclass(frozen=True, slots=True)
class Table:
    """What a table holds: so many rows, and the sum of their digests, in which their order does not matter."""

    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds."""

    made_at: str
    revision: str
    postgresql: int
    size_bytes: int
    sha256: str
    tables: dict[str, Table]

    @property
    def rows(self) -> int:
        """In all tables together."""
        return sum(table.rows for table in self.tables.values())


# Backing up


async def back_up(settings: Settings, path: Path, *, replace: bool, say: Say) -> Manifest:
    """The database is in the file, which is read through once and on the disk; a file half written never has its name.

    Raises `BackupError`, `DatabaseUnfit`, `DatabaseUnavailable`.
    """
    _refuse_place(path, replace)
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    url = _address(settings)
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        async with _snapshot(settings) as (connection, snapshot):
            programs = find_programs(connection.get_server_version().major)
            say("копирование · dumping")
            role = await connection.fetchval("SELECT current_user")
            dumping = asyncio.create_task(_dump(programs, url, role, snapshot, partial))
            try:
                revision = await connection.fetchval("SELECT version_num FROM alembic_version")
                tables = await _contents(connection)
            finally:
                await dumping
        say("проверка · reading it through")
        await _refuse_unreadable(programs, partial, tables)
        sha256 = await asyncio.to_thread(_settled, partial)
        made = Manifest(
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            revision=revision,
            postgresql=connection.get_server_version().major,
            size_bytes=partial.stat().st_size,
            sha256=sha256,
            tables=tables,
        )
        _keep(made, path)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise BackupError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return made


def _refuse_place(path: Path, replace: bool) -> None:
    if not path.parent.is_dir():
        raise BackupError(f"There is no folder {path.parent}: make it, or name another file.")
    if path.exists() and not replace:
        raise BackupError(f"{path} is there already: name another file, or say --replace.")


@asynccontextmanager
async def _snapshot(settings: Settings) -> AsyncIterator[tuple[asyncpg.Connection[asyncpg.Record], str]]:
    """A connection in a snapshot of the database, and the name that others may share it by."""
    async with Database(_address(settings), settings, pooled=False) as database:
        await database.check_fit()
        if not await database.fetch_value("SELECT to_regclass('alembic_version') IS NOT NULL"):
            raise BackupError(
                "The database is empty: there is nothing to back up. See that DATABASE_URL is right."
            )
        # As who sees all rows, which their owner does not where there is row-level security.
        walled = await database.fetch_value(
            "SELECT bool_or(relforcerowsecurity) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        )
    role = {"role": WARD_ROLE} if walled else {}
    connection = await connect(_address(settings), settings, "ekoyka backup", **role, **_PATIENT)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection, await connection.fetchval("SELECT pg_export_snapshot()")
    finally:
        connection.terminate()


async def _dump(programs: Programs, url: str, role: str, snapshot: str, path: Path) -> None:
    await programs.run(
        "pg_dump",
        "--format=custom",
        # Who owns what, and who may do what, is said anew where it is restored.
        "--no-owner",
        "--no-acl",
        f"--role={role}",
        "--enable-row-security",
        f"--snapshot={snapshot}",
        "--lock-wait-timeout=30000",
        *(f"--exclude-table-data=public.{table}" for table in NOT_KEPT),
        f"--file={path}",
        url=url,
    )


async def _contents(connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, Table]:
    """What each table holds, in the connection's transaction."""
    await connection.execute(_AS_TEXT)
    found = {}
    for (name,) in await connection.fetch(_TABLES, list(NOT_KEPT)):
        [row] = await connection.fetch(
            f"SELECT count(*) AS rows, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text AS digest "
            f'FROM public."{name}" t'
        )
        found[name] = Table(row["rows"], row["digest"])
    return found


async def _refuse_unreadable(programs: Programs, path: Path, tables: dict[str, Table]) -> None:
    """All of the file can be read, and every table is in it. Raises `BackupError`."""
    listed = await programs.run("pg_restore", "--list", str(path))
    there = set(re.findall(r" TABLE DATA public (\S+)", listed))
    if missing := tables.keys() - there:
        raise BackupError(f"The backup lacks {', '.join(sorted(missing))}: it was not kept.")
    await programs.run("pg_restore", f"--file={os.devnull}", str(path))


def _settled(path: Path) -> str:
    """The digest of the file, which is on the disk now."""
    _sync(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest_of(path: Path) -> Path:
    """Where the file's manifest stands."""
    return path.with_name(f"{path.name}.json")


def _keep(made: Manifest, path: Path) -> None:
    """The manifest stands beside the file; before it, so that no file is ever without one."""
    partial = path.with_name(f".{path.name}.json.{uuid4().hex[:8]}.partial")
    try:
        handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(asdict(made), option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(manifest_of(path))
    finally:
        partial.unlink(missing_ok=True)


# Restoring


async def restore(settings: Settings, path: Path, *, replace: bool, say: Say) -> Manifest:
    """The database holds what the backup held, and its schema is the newest.

    All of it is restored, or nothing. Raises `BackupError`, `DatabaseUnfit`, `DatabaseUnavailable`.
    """
    made = await asyncio.to_thread(_read, path)
    async with Database(_address(settings), settings, pooled=False) as database:
        await database.check_fit()
        await _refuse_in_use(database)
        if not replace and await database.fetch_value(
            "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        ):
            raise BackupError(
                "The database is not empty: name an empty one in DATABASE_URL, or say --replace, and all that it "
                "holds is replaced."
            )
    await _restore_into(settings, path, made, replace=replace, say=say)
    return made


async def check(settings: Settings, path: Path, *, say: Say) -> Manifest:
    """The backup can be restored: it was, into a database of its own, which is gone again.

    Raises `BackupError`, `DatabaseUnfit`, `DatabaseUnavailable`.
    """
    made = await asyncio.to_thread(_read, path)
    name = f"ekoyka_check_{uuid4().hex[:12]}"
    maintenance = await connect(_address(settings), settings, "ekoyka check", **_PATIENT)
    try:
        try:
            await maintenance.execute(await _like_this_one(maintenance, name))
        except asyncpg.InsufficientPrivilegeError as error:
            raise BackupError(
                "To check a backup, a database is made and dropped again, and the role of DATABASE_URL may not do "
                "that: ALTER ROLE … CREATEDB, or check it on another server."
            ) from error
        url = _with_database(_address(settings), name)
        there = settings.model_copy(update={"database_url": SecretStr(url)})
        await _restore_into(there, path, made, replace=False, say=say)
    finally:
        await maintenance.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await maintenance.close()
    return made


async def _like_this_one(connection: asyncpg.Connection[asyncpg.Record], name: str) -> str:
    """The statement that makes an empty database with the locale of this one."""
    new = "datlocale" if connection.get_server_version().major >= 17 else "daticulocale"
    [row] = await connection.fetch(
        f"SELECT datlocprovider::text AS provider, {new} AS locale, datcollate, datctype FROM pg_database "
        "WHERE datname = current_database()"
    )
    provider = {"b": "builtin", "i": "icu", "c": "libc"}[row["provider"]]
    parts = [
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER {provider}",
        f"LC_COLLATE {_quoted(row['datcollate'])} LC_CTYPE {_quoted(row['datctype'])}",
    ]
    if provider != "libc":
        parts.append(f"{provider.upper()}_LOCALE {_quoted(row['locale'])}")
    return " ".join(parts)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _read(path: Path) -> Manifest:
    """The file's manifest; the file is the one that it describes. Raises `BackupError`."""
    beside = manifest_of(path)
    if not path.is_file():
        raise BackupError(f"There is no backup {path}.")
    try:
        said = orjson.loads(beside.read_bytes())
        made = Manifest(
            **{**said, "tables": {name: Table(**table) for name, table in said["tables"].items()}}
        )
    except FileNotFoundError as error:
        raise BackupError(
            f"There is no {beside.name} beside {path}: bring it along, it says what is in the backup. (pg_restore "
            "alone restores without it, and compares nothing.)"
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{beside} is damaged.") from error
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != made.sha256:
            raise BackupError(
                f"{path} is not what it was when it was made: it is damaged, or {beside.name} another's."
            )
    if not migrate.knows(made.revision):
        raise BackupError(
            f"The backup was made by a newer EKoyka: its schema is at revision {made.revision}, and this one knows "
            f"revisions up to {migrate.head()}. Install the newer one."
        )
    return made


async def _refuse_in_use(database: Database) -> None:
    others = await database.fetch_value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND application_name LIKE 'ekoyka %'"
    )
    if others:
        raise BackupError(f"A server is at work on this database ({others} connections): stop it first.")


async def _restore_into(settings: Settings, path: Path, made: Manifest, *, replace: bool, say: Say) -> None:
    """In one transaction; then compared, then migrated."""
    url = _address(settings)
    connection = await connect(url, settings, "ekoyka restore", **_PATIENT)
    try:
        major = connection.get_server_version().major
        if major < made.postgresql:
            raise BackupError(
                f"The backup is of PostgreSQL {made.postgresql}, and this server is older ({major}): restore it into "
                f"PostgreSQL {made.postgresql} or newer."
            )
        say("восстановление · restoring")
        async with Database(url, settings, pooled=False) as database:
            await migrate.prepare(database)
        await find_programs(major).run(
            "pg_restore",
            "--single-transaction",
            "--exit-on-error",
            "--no-owner",
            *(("--clean", "--if-exists") if replace else ()),
            f"--dbname={unquote(urlsplit(url).path.lstrip('/'))}",
            str(path),
            url=url,
        )
    finally:
        connection.terminate()
    say("сравнение · comparing")
    connection = await connect(url, settings, "ekoyka restore", **_PATIENT)
    try:
        await connection.execute(
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {WARD_ROLE}; SET ROLE {WARD_ROLE}"
        )
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            found = await _contents(connection)
    finally:
        connection.terminate()
    if wrong := [
        name for name in sorted(found.keys() | made.tables.keys()) if found.get(name) != made.tables.get(name)
    ]:
        raise BackupError(
            f"What was restored is not what was backed up: {', '.join(wrong)}. Do not use this database."
        )
    async with Database(url, settings, pooled=False) as database:
        say("миграции · migrations")
        await migrate.upgrade(database)
        await migrate.grant(database)


def _address(settings: Settings) -> str:
    assert settings.database_url is not None
    return settings.database_url.get_secret_value()


def _with_database(url: str, name: str) -> str:
    """The same server's address, with another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
