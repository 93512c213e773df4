"""A small network with everything in it, and actors of every kind."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.api.context import Run
from ekoyka.certificates.operations import annul, issue, reprint
from ekoyka.graph.limits import MOST
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.corrections import correct
from ekoyka.inpatient.patients import link_account
from ekoyka.inpatient.reservations import reserve_bed
from tests.client import Client, context, gid
from tests.factories import Factory
from tests.outpatient.clinic import one_of_each


@dataclass
class World:
    """The network, its actors, and the global ids of all its rows by type."""

    client: Client
    actors: dict[str, Actor | None]
    ids: dict[str, list[str]]

    def run(self, actor: str, *, compiled: bool) -> Run:
        """A context for this actor."""
        return context(self.client, self.actors[actor], compiled=compiled)


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents may be as long and ask for as much as they like: what is tested is that they are answered rightly."""
    monkeypatch.setattr("ekoyka.graph.plan.MAX_COST", 10**12)
    monkeypatch.setattr("ekoyka.api.context.EXPENSIVE", 10**12)
    monkeypatch.setattr("ekoyka.graph.plan.MAX_TOKENS", 10**6)
    for what in MOST:
        monkeypatch.setitem(MOST, what, 10**6)


@pytest.fixture
async def world(client: Client, make: Factory) -> World:
    now = datetime.now(UTC)
    here = await make.dispensary(name="Ёлочка", staffed_beds=3, latitude=55.75, longitude=37.61)
    there = await make.dispensary(name="Енисей", time_zone="Asia/Krasnoyarsk", cleaning_after_check_out=True)
    actors: dict[str, Actor | None] = {
        "nobody": None,
        "superadmin": await make.actor(superadmin=True),
        "doctor": await make.actor(doctor_of=(here,)),
        "dispatcher": await make.actor(dispatcher_of=(there,)),
        "both": await make.actor(doctor_of=(here,), dispatcher_of=(there,)),
        "user": await make.actor(),
    }
    beds, patients, stays = [], [], []
    for place in (here, there):
        room = await make.room(place, number="2", floor=1)
        women = await make.room(place, number="10", sex="FEMALE", isolation=True)
        own = [await make.bed(place, room) for _ in range(3)] + [
            await make.bed(place, women, service_state="CLEANING"),
            await make.bed(place, women, archived_at=now),
        ]
        people = [
            await make.patient(
                place, family_name="Фёдоров", given_name="Семён", birth_date=date(1980, 2, 29)
            ),
            await make.patient(
                place, family_name="Фёдорова", given_name="Анна", sex="FEMALE", patronymic="Ёвна"
            ),
            await make.patient(place, code_name="Берёза", needs_isolation=True),
        ]
        stays.append(
            await make.stay(people[0], own[0], diagnosis_code="F10.2", planned_check_out_on=date(2020, 1, 1))
        )
        stays.append(
            await make.stay(people[1], own[1], since=now - timedelta(days=40), until=now - timedelta(days=30))
        )
        beds += own
        patients += people
    admin, doctor, user = actors["superadmin"], actors["doctor"], actors["user"]
    assert admin is not None
    assert doctor is not None
    assert user is not None
    async with make.database.transaction() as session:
        await link_account(
            session, actor=admin, patient_id=patients[1].id, version=1, account_id=user.account_id
        )
        await reserve_bed(
            session,
            actor=doctor,
            bed_id=beds[2].id,
            until=now + timedelta(hours=3),
            patient_id=patients[2].id,
        )
    async with make.database.transaction() as session:
        await correct(
            session,
            actor=admin,
            stay_id=stays[1].id,
            version=1,
            reason="уточнение",
            checked_out_at=now - timedelta(days=29),
        )
        papers = [
            await issue(
                session, actor=admin, stay_id=stays[1].id, request={"language": language}, base_url="http://t"
            )
            for language in ("ru", "en")
        ]
        await reprint(session, actor=admin, certificate_id=papers[0].id, reason=None)
        await annul(session, actor=admin, certificate_id=papers[1].id, version=1, reason="опечатка")
    patients[1].account_id = user.account_id  # as it was linked above
    clinics = [
        await one_of_each(make, here, doctor, patients[1], "жалоба"),
        await one_of_each(make, there, await make.account(doctor_of=(there,)), patients[4], "жалоба"),
    ]
    rows: dict[str, list[Any]] = {
        "Dispensary": [here, there],
        "Bed": beds,
        "Patient": patients,
        "Stay": stays,
        "Certificate": papers,
    }
    ids = {name: [gid(name, row) for row in found] for name, found in rows.items()}
    ids["Room"] = [gid("Room", bed.room_id) for bed in beds[::3]]
    ids["Account"] = [gid("Account", actor.account_id) for actor in actors.values() if actor]
    ids["Reservation"] = [gid("Reservation", 1)]
    ids["BedAssignment"] = [gid("BedAssignment", 1)]
    ids["AccessEntry"] = [gid("AccessEntry", 1)]
    for kind in clinics[0]:
        ids[kind] = [gid(kind, clinic[kind]) for clinic in clinics]
    return World(client, actors, ids)
