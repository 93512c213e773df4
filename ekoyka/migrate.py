"""Migrations: the schema is brought to Alembic's head under a lock, so that replicas may start at once.

Alembic is loaded when there is something to migrate: a server that finds its schema does without its 6 MiB.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, text
from sqlalchemy.exc import ProgrammingError
from sqlmodel import SQLModel

import ekoyka.certificates.tables
import ekoyka.documents
import ekoyka.facilities.tables
import ekoyka.feed
import ekoyka.identity.tables
import ekoyka.inpatient.tables
import ekoyka.outpatient.tables
import ekoyka.rates
import ekoyka.tally  # noqa: F401 -- each import adds its tables to the metadata
from ekoyka.database import SERVER_ROLE, WARD_ROLE, Database, DatabaseUnfit

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger(__name__)

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


def knows(revision: str) -> bool:
    """Whether this code can bring a schema at the revision to its own head."""
    return any((_folder() / "versions").glob(f"{revision}_*.py")) if revision.isalnum() else False


# The ward's role may do whatever a server's may. Roles belong to all databases of a PostgreSQL, so others may have
# made them already, or make them right now.
_ROLES = (
    (SERVER_ROLE, f"CREATE ROLE {SERVER_ROLE} NOLOGIN"),
    (WARD_ROLE, f"CREATE ROLE {WARD_ROLE} NOLOGIN IN ROLE {SERVER_ROLE}"),
)


def make_roles(connection: Connection) -> None:
    """The roles are there that servers work as, and the connection's login may take them on.

    Raises `DatabaseUnfit` where it may not make them.
    """
    for role, making in _ROLES:
        connection.execute(
            text(
                f"""
                DO $$ BEGIN
                    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN {making}; END IF;
                EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
                    WHEN insufficient_privilege THEN NULL;
                END $$
                """
            )
        )
        present = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
        taken = text("SELECT pg_has_role(:role, 'SET')")
        if not connection.scalar(present, {"role": role}):
            raise DatabaseUnfit(_roles_missing(connection))
        if not connection.scalar(taken, {"role": role}):
            # Without INHERIT: whoever migrates sees no patient either, unless as one of them.
            granting = text(f"GRANT {role} TO CURRENT_USER WITH INHERIT FALSE, SET TRUE")
            try:
                connection.execute(granting)
            except ProgrammingError:
                connection.rollback()
                raise DatabaseUnfit(_roles_missing(connection)) from None
    connection.commit()


# Nobody adds to what Alembic keeps, and nobody rewrites the access log.
_APPEND_ONLY = ("access_entry", "access_set", "access_seal")
_RIGHTS = (
    f"GRANT USAGE ON SCHEMA public TO {SERVER_ROLE}",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {SERVER_ROLE}",
    f"GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {SERVER_ROLE}",
    f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {SERVER_ROLE}",
    f"REVOKE UPDATE, DELETE ON {', '.join(_APPEND_ONLY)} FROM {SERVER_ROLE}",
    # Whoever is to own something in a schema must be allowed to make it there.
    f"GRANT CREATE ON SCHEMA public TO {WARD_ROLE}",
    # What finds rows without showing them does so as the role that sees all.
    f"""
    DO $$ DECLARE finder regprocedure; BEGIN
        FOR finder IN SELECT oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef
            AND proowner <> '{WARD_ROLE}'::regrole
        LOOP
            EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', finder);
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO {SERVER_ROLE}', finder);
            EXECUTE format('ALTER FUNCTION %s OWNER TO {WARD_ROLE}', finder);
        END LOOP;
    END $$
    """,
    f"REVOKE CREATE ON SCHEMA public FROM {WARD_ROLE}",
)


def grant_rights(connection: Connection) -> None:
    """The roles may do what servers and operations do, on a schema that is the newest, and nothing else."""
    for statement in _RIGHTS:
        connection.execute(text(statement))
    connection.commit()


def _roles_missing(connection: Connection) -> str:
    login = connection.scalar(text("SELECT quote_ident(current_user)"))
    made = "; ".join(making for _, making in _ROLES)
    return (
        "The database's login may not make the roles that EKoyka works as. Let an administrator of PostgreSQL do it: "
        f"{made}; GRANT {SERVER_ROLE}, {WARD_ROLE} TO {login} WITH INHERIT FALSE, SET TRUE, ADMIN TRUE;"
    )


def _upgrade(connection: Connection, revision: str) -> None:
    from alembic import command
    from alembic.migration import MigrationContext

    # Migrations may take longer than a request's statement may, and so may the wait for another's.
    connection.execute(text("SET statement_timeout = 0"))
    # A session lock: it outlives the migrations' own transactions and ends with the connection.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
    connection.commit()
    try:
        make_roles(connection)
        before = MigrationContext.configure(connection).get_current_revision()
        command.upgrade(_config(connection), revision)
        connection.commit()
        after = MigrationContext.configure(connection).get_current_revision()
        if after != before:
            log.info("migrated", before=before, after=after)
        if revision == "head":
            grant_rights(connection)
    finally:
        connection.rollback()
        connection.execute(text("RESET statement_timeout"))
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
        connection.commit()


async def upgrade(database: Database, revision: str = "head") -> None:
    """The schema is at the revision. Waits for a migration that another process is running.

    The database is opened without a role of its own: its login is the schema's owner. Raises `DatabaseUnfit`.
    """
    if revision == "head" and await at_head(database):
        return
    async with database.engine.connect() as connection:
        await connection.run_sync(_upgrade, revision)


async def prepare(database: Database) -> None:
    """The roles are there that a schema refers to. Raises `DatabaseUnfit`."""
    async with database.engine.connect() as connection:
        await connection.run_sync(make_roles)


async def grant(database: Database) -> None:
    """The roles may do on a restored schema what they may do on any."""
    async with database.engine.connect() as connection:
        await connection.run_sync(grant_rights)


async def downgrade(database: Database, revision: str) -> None:
    """The schema is back at an older revision."""
    from alembic import command

    def run(connection: Connection) -> None:
        command.downgrade(_config(connection), revision)
        connection.commit()

    async with database.engine.connect() as connection:
        await connection.run_sync(run)


# Rights are given after the last migration, all in one transaction.
_IS_AT = f"""
    SELECT version_num = $1 AND NOT EXISTS (
        SELECT FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
            AND has_table_privilege(to_regrole('{SERVER_ROLE}')::oid, c.oid, 'SELECT') IS NOT TRUE
    )
    FROM alembic_version
"""


async def at_head(database: Database) -> bool:
    """Whether the schema is the one this code was written for, and servers may use it."""
    readable = await database.fetch_value(
        "SELECT has_table_privilege(to_regclass('alembic_version')::oid, 'SELECT')"
    )
    return bool(readable and await database.fetch_value(_IS_AT, head()))


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
