"""Row-level security: what PostgreSQL itself shows to whom, whatever a statement asks for."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from graphql.execution.values import VariableValues
from sqlalchemy.exc import DBAPIError

from ekoyka.database import ACTOR, SERVER_ROLE, Database, Statement
from ekoyka.graph.compile import Compiler
from ekoyka.graph.model import TYPES
from ekoyka.identity.actors import Actor
from ekoyka.identity.queries import named
from ekoyka.inpatient.stays import check_in
from ekoyka.migrate import METADATA
from ekoyka.settings import Settings
from tests.factories import Factory
from tests.graph.conftest import World

# Tables of which each row belongs to somebody's record, or tells of one.
CLINICAL = {
    "access_entry",
    "access_seal",
    "access_set",
    "appointment",
    "bed_assignment",
    "certificate",
    "certificate_duplicate",
    "notification",
    "patient",
    "reservation",
    "slot_offer",
    "stay",
    "stay_revision",
    "waiting_entry",
}
_LEADS_TO_SOMEBODY = {"patient_id", "stay_id", "certificate_id", "appointment_id", "entry_id", "patients"}


@pytest.fixture
async def walled(database_url: str, settings: Settings) -> Any:
    """This test's database as a server sees it."""
    async with Database(database_url, settings, role=SERVER_ROLE) as found:
        yield found


def test_every_table_that_leads_to_somebody_is_behind_the_wall() -> None:
    leading = {
        name
        for name, table in METADATA.tables.items()
        if name == "patient" or not _LEADS_TO_SOMEBODY.isdisjoint(table.columns.keys())
    }

    assert leading <= CLINICAL


async def test_the_wall_holds_for_the_tables_owner_too(owned: Database) -> None:
    rows = await owned.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relrowsecurity AND relforcerowsecurity"
    )

    assert {row["relname"] for row in rows} == CLINICAL


async def test_with_no_actor_no_clinical_row_is_there(
    world: World, walled: Database, owned: Database
) -> None:
    for table in CLINICAL:
        assert await walled.fetch_value(f"SELECT count(*) FROM {table}") == 0, table
        assert await owned.fetch_value(f"SELECT count(*) FROM {table}") == 0, f"{table}, to its owner"
        async with walled.transaction() as session:
            assert (await Statement(f"SELECT count(*) AS n FROM {table}").row(session)).n == 0, table


@pytest.mark.parametrize("who", ["superadmin", "doctor", "dispatcher", "both", "user"])
async def test_policies_and_scopes_agree_on_who_sees_what(
    world: World,
    walled: Database,
    database: Database,
    who: str,
) -> None:
    """Two rules, written apart: what the scope shows is what the wall lets through, but for who lies where."""
    actor = world.actors[who]
    assert actor is not None
    run = world.run(who, compiled=True)
    compared = 0
    for decl in TYPES.values():
        if decl.source not in CLINICAL or decl.scope is None:
            continue
        compiler = Compiler(run.planner.schema, {}, VariableValues({}, {}), run.actor_shape())
        scope = compiler.scope(decl, "p")
        statement = compiler.statement(
            f"(SELECT coalesce(array_agg(p.id ORDER BY p.id), '{{}}')::text FROM {decl.source} p WHERE {scope})",
            guarded=False,
        )
        by_scope = await database.fetch_value(
            statement.sql, *statement.bind(run.actor_values(), VariableValues({}, {}))
        )
        by_wall = await walled.fetch_value(
            f"SELECT CASE WHEN set_config('{ACTOR}', $1, true) IS NOT NULL THEN convert_to("
            f"(SELECT coalesce(array_agg(p.id ORDER BY p.id), '{{}}')::text FROM {decl.source} p), 'UTF8') END",
            named(actor),
        )
        seen, let_through = [
            {int(key) for key in found.strip(b"{}").split(b",") if key} for found in (by_scope, by_wall)
        ]
        if decl.name == "BedAssignment" and actor.dispatcher_of:
            assert seen <= let_through  # a dispatcher is told that a bed is taken
        else:
            assert seen == let_through, (who, decl.name)
        compared += len(let_through)
    assert compared


async def test_an_operation_writes_only_where_its_actor_works(
    walled: Database, make: Factory, database: Database
) -> None:
    """The operation's own rule left out, PostgreSQL still refuses."""
    here, there = await make.dispensary(), await make.dispensary()
    doctor = await make.actor(doctor_of=(here,))
    pretending = Actor(account_id=doctor.account_id, auth_version=1, doctor_of=frozenset({there.id}))
    bed, patient = await make.bed(there), await make.patient(there)

    with pytest.raises((DBAPIError, asyncpg.InsufficientPrivilegeError)):
        async with walled.transaction(ward=named(doctor)) as session:
            await check_in(session, actor=pretending, patient_id=patient.id, bed_id=bed.id)
    async with walled.transaction(ward=named(pretending)) as session:
        await check_in(session, actor=pretending, patient_id=patient.id, bed_id=bed.id)

    assert await database.fetch_value("SELECT count(*) FROM stay") == 1


async def test_a_patient_stays_known_where_they_were_registered_and_where_they_stayed(
    database: Database, make: Factory
) -> None:
    registered, stayed = await make.dispensary(), await make.dispensary()
    patient, bed = await make.patient(registered), await make.bed(stayed)
    await make.stay(patient, bed)

    known = await database.fetch_value("SELECT known_in FROM patient WHERE id = $1", patient.id)

    assert known == [registered.id, stayed.id]
