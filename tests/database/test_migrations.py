"""Every migration goes up and down on a filled database, and keeps what there is."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from alembic.script import ScriptDirectory

from ekoyka import migrate
from ekoyka.database import WARD_ROLE, Database
from ekoyka.settings import Settings
from tests.conftest import address_of, administer, dropped
from tests.filled import fill

# All of the schema that PostgreSQL can tell, a line each; the order of columns is nobody's business.
STRUCTURE = """
SELECT concat_ws(' ', 'table', c.relname, c.relkind, c.relpersistence, c.relrowsecurity, c.relforcerowsecurity,
    array_to_string(c.relacl, ' '))
FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'v', 'm', 'p', 'S')
UNION ALL
SELECT concat_ws(' ', 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
    a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT concat_ws(' ', 'index', pg_get_indexdef(indexrelid)) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(oid)) FROM pg_trigger WHERE NOT tgisinternal
UNION ALL
SELECT concat_ws(' ', 'function', pg_get_functiondef(oid)) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
UNION ALL
SELECT concat_ws(' ', 'policy', p.*::text) FROM pg_policies p WHERE schemaname = 'public'
"""
COLUMNS = """
SELECT table_name AS table, array_agg(column_name::text ORDER BY column_name) AS columns
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name <> 'alembic_version' AND is_generated = 'NEVER' GROUP BY 1
"""
Contents = dict[tuple[str, str], tuple[int, str]]
"""How many values each column holds, by table and column, and their digest, row by row."""


def revisions() -> list[str]:
    """All of them, oldest first."""
    return [item.revision for item in ScriptDirectory(str(migrate._folder())).walk_revisions()][::-1]


@asynccontextmanager
async def connected(name: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(address_of(name), server_settings={"role": WARD_ROLE})
    try:
        yield connection
    finally:
        await connection.close()


async def structure(name: str) -> list[str]:
    async with connected(name) as connection:
        return sorted(row[0] for row in await connection.fetch(STRUCTURE))


async def contents(name: str) -> Contents:
    """Each column with its row's key, so that a value in another row is noticed."""
    found: Contents = {}
    async with connected(name) as connection:
        for table in await connection.fetch(COLUMNS):
            key = await connection.fetchval(
                "SELECT string_agg(a.attname, ',') FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid "
                "AND a.attnum = ANY(i.indkey) WHERE i.indisprimary AND i.indrelid = $1::regclass",
                table["table"],
            )
            for column in table["columns"]:
                [(count, digest)] = await connection.fetch(
                    f"SELECT count(*), md5(string_agg(row::text, chr(10) ORDER BY row::text)) "
                    f'FROM (SELECT ROW({key}, "{column}") AS row FROM "{table["table"]}") t'
                )
                found[table["table"], column] = count, digest
    return found


def kept(before: Contents, after: Contents) -> list[tuple[str, str]]:
    """Columns that both have and that hold something else now."""
    return [place for place in before.keys() & after.keys() if before[place] != after[place]]


async def to(name: str, settings: Settings, revision: str) -> None:
    """The database is at the revision, which may be older or newer; no connection is left."""
    async with Database(address_of(name), settings, pooled=False) as database:
        async with connected(name) as connection:
            now = await connection.fetchval("SELECT version_num FROM alembic_version")
        if revision == "base" or (now is not None and revision < now):
            await migrate.downgrade(database, revision)
        else:
            await migrate.upgrade(database, revision)


async def test_every_migration_goes_down_and_up_on_a_filled_database_and_keeps_what_is_there(
    template: str, settings: Settings
) -> None:
    names = {revision: f"at_{revision}_{uuid.uuid4().hex[:8]}" for revision in revisions()}
    *_, head = names
    assert head == migrate.head()
    newest = await structure(template)
    await administer(f"CREATE DATABASE {names[head]} TEMPLATE {template}")
    try:
        async with Database(address_of(names[head]), settings, pooled=False, role=WARD_ROLE) as database:
            await fill(database)
        # Down, step by step; a copy is left at each.
        before, above = await contents(names[head]), head
        assert {table for table, _ in before if migrate.is_ours(table, "table", {})} == set(
            migrate.METADATA.tables
        )
        for revision in reversed([item for item in names if item != head]):
            await administer(f"CREATE DATABASE {names[revision]} TEMPLATE {names[above]}")
            await to(names[revision], settings, revision)
            after = await contents(names[revision])
            assert kept(before, after) == [], f"down to {revision}"
            assert after.keys() != before.keys() or await structure(names[revision]) != await structure(
                names[above]
            ), f"{above} changes nothing"
            before, above = after, revision
        # Up from each, with what was there.
        for revision, name in names.items():
            there = await contents(name)
            await to(name, settings, "head")
            assert kept(there, await contents(name)) == [], f"up from {revision}"
            assert await structure(name) == newest, f"up from {revision}"
            async with Database(address_of(name), settings, pooled=False) as database:
                assert await migrate.drift(database) == []
        # And all the way down: nothing is left.
        await to(names[head], settings, "base")
        assert [line for line in await structure(names[head]) if "alembic_version" not in line] == []
        await to(names[head], settings, "head")
        assert await structure(names[head]) == newest
    finally:
        for name in names.values():
            await dropped(name)
