"""Migrations: the schema is brought to Alembic's head under a lock, so that replicas may start at once."""

from pathlib import Path

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlmodel import SQLModel

import ekoyka.certificates.tables
import ekoyka.documents
import ekoyka.facilities.tables
import ekoyka.feed
import ekoyka.identity.tables
import ekoyka.inpatient.tables  # noqa: F401 -- each import adds its tables to the metadata
from ekoyka.database import Database

METADATA = SQLModel.metadata

# Any constant of ours; PostgreSQL only compares it.
_LOCK = 0x656B6F796B61


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    # Beside the package in a checkout, inside it in an installed wheel.
    inside, beside = Path(__file__).parent / "_migrations", Path(__file__).parent.parent / "migrations"
    config.set_main_option("script_location", str(inside if inside.is_dir() else beside).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest migration that this code knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None
    return revision


def _upgrade(connection: Connection, revision: str) -> None:
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
    async with database.engine.connect() as connection:
        await connection.run_sync(_upgrade, revision)


async def downgrade(database: Database, revision: str) -> None:
    """The schema is back at an older revision."""

    def run(connection: Connection) -> None:
        command.downgrade(_config(connection), revision)
        connection.commit()

    async with database.engine.connect() as connection:
        await connection.run_sync(run)


async def at_head(database: Database) -> bool:
    """Whether the schema is the one this code was written for."""
    exists = await database.fetch_value("SELECT to_regclass('alembic_version') IS NOT NULL")
    return bool(exists) and await database.fetch_value("SELECT version_num FROM alembic_version") == head()


async def drift(database: Database) -> list[object]:
    """What differs between the tables as declared and the schema as migrated; empty when nothing does."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(
            lambda sync: list(compare_metadata(MigrationContext.configure(sync), METADATA))
        )
