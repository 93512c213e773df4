"""Migrations: the schema is brought to Alembic's head under a lock, so that replicas may start at once.

Alembic is loaded when there is something to migrate: a server that finds its schema does without its 6 MiB.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import ekoyka.certificates.tables
import ekoyka.documents
import ekoyka.facilities.tables
import ekoyka.feed
import ekoyka.identity.tables
import ekoyka.inpatient.tables
import ekoyka.outpatient.tables
import ekoyka.rates  # noqa: F401 -- each import adds its tables to the metadata
from ekoyka.database import Database

if TYPE_CHECKING:
    from alembic.config import Config

METADATA = SQLModel.metadata

# Any constant of ours; PostgreSQL only compares it.
_LOCK = 0x656B6F796B61


def _folder() -> Path:
    # Beside the package in a checkout, inside it in an installed wheel.
    inside, beside = Path(__file__).parent / "_migrations", Path(__file__).parent.parent / "migrations"
    return inside if inside.is_dir() else beside


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def head() -> str:
    """The newest migration that this code knows: their files are named by number."""
    return max(path.stem for path in (_folder() / "versions").glob("[0-9]*.py"))[:4]


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command

    # A session lock: it outlives the migrations' own transactions and ends with the connection.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    connection.commit()
    try:
        # Migrations may take longer than a request's statement may.
        connection.execute(text("SET statement_timeout = 0"))
        connection.commit()
        command.upgrade(_config(connection), revision)
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("RESET statement_timeout"))
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
        connection.commit()


async def upgrade(database: Database, revision: str = "head") -> None:
    """The schema is at the revision. Waits for a migration that another process is running."""
    if revision == "head" and await at_head(database):
        return
    async with database.engine.connect() as connection:
        await connection.run_sync(_upgrade, revision)


async def downgrade(database: Database, revision: str) -> None:
    """The schema is back at an older revision."""
    from alembic import command

    def run(connection: Connection) -> None:
        command.downgrade(_config(connection), revision)
        connection.commit()

    async with database.engine.connect() as connection:
        await connection.run_sync(run)


async def at_head(database: Database) -> bool:
    """Whether the schema is the one this code was written for."""
    exists = await database.fetch_value("SELECT to_regclass('alembic_version') IS NOT NULL")
    return bool(exists) and await database.fetch_value("SELECT version_num FROM alembic_version") == head()


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether a table is declared here: those of the worker's queue are procrastinate's."""
    return kind != "table" or not (name or "").startswith("procrastinate_")


async def drift(database: Database) -> list[object]:
    """What differs between the tables as declared and the schema as migrated; empty when nothing does."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    async with database.engine.connect() as connection:
        return await connection.run_sync(
            lambda sync: list(
                compare_metadata(MigrationContext.configure(sync, opts={"include_name": is_ours}), METADATA)
            )
        )
