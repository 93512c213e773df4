"""Registering, editing, archiving and linking patients: success, every refusal, races."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Invalid, NotFound, VersionConflict
from ekoyka.facilities.operations import Archived
from ekoyka.inpatient import patients
from ekoyka.inpatient.availability import HasOpenStays
from ekoyka.inpatient.patients import AccountLinked, RecordNumberTaken
from ekoyka.inpatient.tables import Patient, Reservation
from tests.factories import Factory
from tests.identity.transactions import answer, run

DETAILS = {"record_number": "12/26", "family_name": " Лебедев ", "given_name": "Пётр", "sex": "MALE"}


async def test_a_patient_is_registered_and_it_is_in_the_access_log(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))

    patient = await run(
        database, patients.register_patient, actor=actor, dispensary_id=place.id, details=DETAILS
    )

    assert (patient.family_name, patient.name_key.strip()) == ("Лебедев", "лебедев петр")
    entry = (await database.fetch("SELECT account_id, action, patient_id FROM access_entry"))[0]
    assert tuple(entry) == (actor.account_id, "patient_register", patient.id)


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        ({"family_name": None}, ()),
        ({"code_name": "Север"}, ()),
        ({"family_name": "   "}, ("familyName",)),
        ({"family_name": "ж" * 101}, ("familyName",)),
        ({"record_number": "9" * 41}, ("recordNumber",)),
        ({"record_number": ""}, ("recordNumber",)),
        ({"birth_date": date(1879, 12, 31)}, ("birthDate",)),
        ({"birth_date": date(2999, 1, 1)}, ("birthDate",)),
        ({"sex": "OTHER"}, ("sex",)),
        ({"phone": "12"}, ("phone",)),
    ],
)
async def test_a_patient_with_a_wrong_value_is_refused_by_the_fields_name(
    database: Database, make: Factory, wrong: dict[str, Any], path: tuple[str, ...]
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))

    with pytest.raises(Invalid) as refused:
        await run(
            database,
            patients.register_patient,
            actor=actor,
            dispensary_id=place.id,
            details={**DETAILS, **wrong},
        )

    assert refused.value.path == path
    for said in (value for value in wrong.values() if isinstance(value, str) and value.strip()):
        assert said not in refused.value.message("en") + refused.value.message("ru")


async def test_a_patient_under_a_code_name_has_no_other(database: Database, make: Factory) -> None:
    place = await make.dispensary()

    patient = await run(
        database,
        patients.register_patient,
        actor=await make.actor(doctor_of=(place,)),
        dispensary_id=place.id,
        details={"record_number": "A-1", "code_name": "Север", "sex": "FEMALE"},
    )

    assert (patient.code_name, patient.family_name, patient.name_key.strip()) == ("Север", None, "север")


async def test_of_many_registrations_under_one_number_one_succeeds(database: Database, make: Factory) -> None:
    place, other = await make.dispensary(), await make.dispensary()
    actor = await make.actor(doctor_of=(place, other))

    ends = await asyncio.gather(
        *(
            answer(database, patients.register_patient, actor=actor, dispensary_id=place.id, details=DETAILS)
            for _ in range(10)
        )
    )
    elsewhere = await run(
        database, patients.register_patient, actor=actor, dispensary_id=other.id, details=DETAILS
    )

    assert sum(isinstance(end, Patient) for end in ends) == 1
    assert sum(isinstance(end, RecordNumberTaken) for end in ends) == 9
    assert elsewhere.record_number == "12/26"


async def test_registration_needs_a_living_dispensary_of_ones_own(database: Database, make: Factory) -> None:
    archived, foreign = await make.dispensary(archived_at=datetime.now(UTC)), await make.dispensary()
    actor = await make.actor(doctor_of=(archived,), dispatcher_of=(foreign,))

    with pytest.raises(Archived):
        await run(
            database, patients.register_patient, actor=actor, dispensary_id=archived.id, details=DETAILS
        )
    with pytest.raises(NotFound):
        await run(database, patients.register_patient, actor=actor, dispensary_id=foreign.id, details=DETAILS)


async def test_update_edits_and_a_stale_version_is_refused(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    patient, actor = await make.patient(place), await make.actor(doctor_of=(place,))
    taken = await make.patient(place)
    arguments: dict[str, Any] = {"actor": actor, "patient_id": patient.id}

    edited = await run(
        database, patients.update_patient, **arguments, version=1, changes={"patronymic": "Ильич"}
    )
    with pytest.raises(VersionConflict) as stale:
        await run(database, patients.update_patient, **arguments, version=1, changes={})
    with pytest.raises(RecordNumberTaken):
        await run(
            database,
            patients.update_patient,
            **arguments,
            version=2,
            changes={"record_number": taken.record_number},
        )
    with pytest.raises(Invalid):
        await run(database, patients.update_patient, **arguments, version=2, changes={"given_name": None})

    assert (edited.patronymic, edited.given_name, edited.version) == ("Ильич", patient.given_name, 2)
    assert stale.value.fields["current_version"] == 2


async def test_a_patient_is_known_where_registered_staying_or_expected(
    database: Database, make: Factory
) -> None:
    home, stayed, expected, elsewhere = [await make.dispensary() for _ in range(4)]
    patient = await make.patient(home)
    since = datetime.now(UTC) - timedelta(days=9)
    await make.stay(patient, await make.bed(stayed), since=since, until=since + timedelta(days=1))
    kept = await make.bed(expected)
    await make.keep(
        Reservation(
            bed_id=kept.id,
            dispensary_id=expected.id,
            patient_id=patient.id,
            until=datetime.now(UTC) + timedelta(hours=1),
        )
    )

    for version, actor in enumerate(
        [
            await make.actor(doctor_of=(home,)),
            await make.actor(doctor_of=(stayed,)),
            await make.actor(doctor_of=(expected,)),
            await make.actor(superadmin=True),
        ],
        start=1,
    ):
        await run(
            database,
            patients.update_patient,
            actor=actor,
            patient_id=patient.id,
            version=version,
            changes={},
        )
    for stranger in (await make.actor(doctor_of=(elsewhere,)), await make.actor(dispatcher_of=(home,))):
        with pytest.raises(NotFound):
            await run(
                database,
                patients.update_patient,
                actor=stranger,
                patient_id=patient.id,
                version=5,
                changes={},
            )


async def test_a_record_is_archived_and_brought_back_but_not_while_the_patient_stays(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    gone, here = await make.patient(place), await make.patient(place)
    await make.stay(here, await make.bed(place))

    archived = await run(
        database, patients.set_archived, actor=actor, patient_id=gone.id, version=1, archived=True
    )
    back = await run(
        database, patients.set_archived, actor=actor, patient_id=gone.id, version=2, archived=False
    )
    with pytest.raises(HasOpenStays) as refused:
        await run(database, patients.set_archived, actor=actor, patient_id=here.id, version=1, archived=True)

    assert archived.archived_at is not None
    assert (back.archived_at, back.version) == (None, 3)
    assert refused.value.fields == {"open_stays": 1}


async def test_an_account_is_linked_to_one_record_and_unlinked(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    actor, account = await make.actor(doctor_of=(place,)), await make.account()
    first, second = await make.patient(place), await make.patient(place)

    async def link(patient: Patient, version: int, account_id: int | None) -> Patient:
        linked: Patient = await run(
            database,
            patients.link_account,
            actor=actor,
            patient_id=patient.id,
            version=version,
            account_id=account_id,
        )
        return linked

    linked = await link(first, 1, account.id)
    with pytest.raises(AccountLinked):
        await link(second, 1, account.id)
    with pytest.raises(NotFound):
        await link(second, 1, 10**12)
    await link(first, 2, None)
    moved = await link(second, 1, account.id)

    assert (linked.account_id, moved.account_id) == (account.id, account.id)
