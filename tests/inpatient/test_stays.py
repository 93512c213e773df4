"""Check in, transfer, check out and corrections: success, every refusal, races."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import REFUSED_BY_CONSTRAINT, Database, constraint_name
from ekoyka.errors import Invalid, NotFound, Refusal, VersionConflict
from ekoyka.inpatient import availability, corrections, reservations, stays
from ekoyka.inpatient.availability import BedClosed, BedNotReady, BedOccupied, BedReserved, RoomSexMismatch
from ekoyka.inpatient.stays import (
    CheckOutBeforeCheckIn,
    InFuture,
    NotADoctorThere,
    PatientAlreadyAdmitted,
    PatientIsArchived,
    SameBed,
    StayAlreadyEnded,
)
from ekoyka.inpatient.tables import Outcome, Stay
from tests.factories import Factory
from tests.invariants import broken_invariants


async def run(database: Database, verb: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
    """One operation in one transaction, as the API runs it."""
    async with database.transaction() as session:
        return await verb(session, **arguments)


def days_ago(count: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=count)


async def test_check_in_lays_the_patient_into_the_bed(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, patient, actor = (
        await make.bed(place),
        await make.patient(place),
        await make.actor(doctor_of=(place,)),
    )

    stay = await run(
        database,
        stays.check_in,
        actor=actor,
        patient_id=patient.id,
        bed_id=bed.id,
        plan={"diagnosis_code": " f10.2 ", "planned_check_out_on": date(2030, 1, 1)},
        attending_doctor_id=actor.account_id,
    )

    assert stay.diagnosis_code == "F10.2"
    rows = await database.fetch(
        "SELECT bed_id, started_at, ended_at FROM bed_assignment WHERE stay_id = $1", stay.id
    )
    assert [(row["bed_id"], row["started_at"], row["ended_at"]) for row in rows] == [
        (bed.id, stay.checked_in_at, None)
    ]
    entries = await database.fetch("SELECT action, patient_id FROM access_entry")
    assert [tuple(row) for row in entries] == [("stay_check_in", patient.id)]
    assert await broken_invariants(database) == []


async def test_check_in_refuses_an_occupied_bed_with_beds_that_suit_instead(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room = await make.room(place, number="1", sex="MALE")
    women = await make.room(place, number="2", sex="FEMALE")
    taken, free = await make.bed(place, room), await make.bed(place, room)
    await make.bed(place, women)
    there = await make.stay(await make.patient(place), taken, planned_check_out_on=date(2030, 1, 1))
    patient, actor = await make.patient(place), await make.actor(doctor_of=(place,))

    with pytest.raises(BedOccupied) as refused:
        await run(database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=taken.id)

    assert refused.value.fields == {
        "bed_id": taken.id,
        "occupied_since": there.checked_in_at,
        "occupied_until": None,
        "expected_end_on": date(2030, 1, 1),
        "alternative_ids": [free.id],
    }


async def test_check_in_in_the_past_refuses_an_interval_that_collides(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(doctor_of=(place,))
    await make.stay(await make.patient(place), bed, since=days_ago(9), until=days_ago(7))

    with pytest.raises(BedOccupied) as refused:
        await run(
            database,
            stays.check_in,
            actor=actor,
            patient_id=(await make.patient(place)).id,
            bed_id=bed.id,
            at=days_ago(8),
        )

    assert refused.value.fields["occupied_until"] is not None


async def test_one_stay_may_begin_at_the_instant_the_other_ends(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, actor, instant = await make.bed(place), await make.actor(doctor_of=(place,)), days_ago(2)
    await make.stay(await make.patient(place), bed, since=days_ago(5), until=instant)

    await run(
        database,
        stays.check_in,
        actor=actor,
        patient_id=(await make.patient(place)).id,
        bed_id=bed.id,
        at=instant,
    )

    assert await broken_invariants(database) == []


@pytest.mark.parametrize(
    ("state", "refusal"), [("CLOSED", BedClosed), ("CLEANING", BedNotReady), ("CONTAMINATED", BedNotReady)]
)
async def test_check_in_refuses_a_bed_that_is_out_of_service(
    database: Database, make: Factory, state: str, refusal: type[Refusal]
) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place, service_state=state), await make.patient(place)

    with pytest.raises(refusal):
        await run(
            database,
            stays.check_in,
            actor=await make.actor(doctor_of=(place,)),
            patient_id=patient.id,
            bed_id=bed.id,
        )


async def test_check_in_refuses_a_bed_kept_for_somebody_else_and_fulfils_ones_own(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(doctor_of=(place,))
    expected, other = await make.patient(place), await make.patient(place)
    until = datetime.now(UTC) + timedelta(hours=2)
    kept = await run(
        database, reservations.reserve_bed, actor=actor, bed_id=bed.id, until=until, patient_id=expected.id
    )

    with pytest.raises(BedReserved) as refused:
        await run(database, stays.check_in, actor=actor, patient_id=other.id, bed_id=bed.id)
    await run(database, stays.check_in, actor=actor, patient_id=expected.id, bed_id=bed.id)

    assert refused.value.fields["reserved_until"] == until
    assert await database.fetch_value("SELECT outcome FROM reservation WHERE id = $1", kept.id) == "FULFILLED"


async def test_a_reservation_for_nobody_is_fulfilled_by_whoever_names_it(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, actor, patient = (
        await make.bed(place),
        await make.actor(doctor_of=(place,)),
        await make.patient(place),
    )
    kept = await run(
        database,
        reservations.reserve_bed,
        actor=actor,
        bed_id=bed.id,
        until=datetime.now(UTC) + timedelta(hours=2),
        patient_id=None,
    )

    with pytest.raises(BedReserved):
        await run(database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=bed.id)
    await run(
        database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=bed.id, reservation_id=kept.id
    )

    assert await database.fetch_value("SELECT outcome FROM reservation WHERE id = $1", kept.id) == "FULFILLED"


async def test_check_in_refuses_a_room_for_the_other_sex(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed = await make.bed(place, await make.room(place, sex="FEMALE"))

    with pytest.raises(RoomSexMismatch):
        await run(
            database,
            stays.check_in,
            actor=await make.actor(doctor_of=(place,)),
            patient_id=(await make.patient(place, sex="MALE")).id,
            bed_id=bed.id,
        )


async def test_a_room_and_a_bed_are_not_changed_under_a_patient_whom_they_would_not_take(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    room, women = await make.room(place, sex="MALE"), await make.room(place, sex="FEMALE")
    bed, actor = await make.bed(place, room), await make.actor(doctor_of=(place,))
    await make.stay(await make.patient(place, sex="MALE"), bed)

    with pytest.raises(RoomSexMismatch):
        await run(
            database,
            availability.edit_room,
            actor=actor,
            room_id=room.id,
            version=1,
            changes={"sex": "FEMALE"},
        )
    with pytest.raises(RoomSexMismatch):
        await run(
            database,
            availability.edit_bed,
            actor=actor,
            bed_id=bed.id,
            version=1,
            changes={},
            room_id=women.id,
        )
    await run(
        database, availability.edit_room, actor=actor, room_id=room.id, version=1, changes={"sex": "ANY"}
    )

    assert await database.fetch_value("SELECT sex FROM room WHERE id = $1", room.id) == "ANY"


async def test_check_in_tells_where_an_admitted_patient_is_only_to_who_may_know(
    database: Database, make: Factory
) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    patient = await make.patient(here)
    stay = await make.stay(patient, await make.bed(there))
    bed = await make.bed(here)

    with pytest.raises(PatientAlreadyAdmitted) as stranger:
        await run(
            database,
            stays.check_in,
            actor=await make.actor(doctor_of=(here,)),
            patient_id=patient.id,
            bed_id=bed.id,
        )
    with pytest.raises(PatientAlreadyAdmitted) as colleague:
        await run(
            database,
            stays.check_in,
            actor=await make.actor(doctor_of=(here, there)),
            patient_id=patient.id,
            bed_id=bed.id,
        )

    assert (stranger.value.fields["stay_id"], stranger.value.fields["since"]) == (None, None)
    assert colleague.value.fields["stay_id"] == stay.id


async def test_check_in_refuses_the_future_an_archived_patient_and_a_doctor_from_elsewhere(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    bed, patient, actor = (
        await make.bed(place),
        await make.patient(place),
        await make.actor(doctor_of=(place,)),
    )
    archived = await make.patient(place, archived_at=datetime.now(UTC))
    arguments = {"actor": actor, "patient_id": patient.id, "bed_id": bed.id}

    with pytest.raises(InFuture):
        await run(database, stays.check_in, **arguments, at=datetime.now(UTC) + timedelta(minutes=5))
    with pytest.raises(PatientIsArchived):
        await run(database, stays.check_in, **{**arguments, "patient_id": archived.id})
    with pytest.raises(NotADoctorThere):
        await run(
            database,
            stays.check_in,
            **arguments,
            attending_doctor_id=(await make.account()).id,
        )
    with pytest.raises(Invalid) as refused:
        await run(database, stays.check_in, **arguments, plan={"diagnosis_code": "nonsense"})

    assert refused.value.path == ("diagnosisCode",)
    assert await database.fetch_value("SELECT count(*) FROM stay") == 0


async def test_outside_the_scope_nothing_exists(database: Database, make: Factory) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    stranger = await make.actor(doctor_of=(there,))
    bed, patient = await make.bed(here), await make.patient(here)
    own_bed, own_patient = await make.bed(there), await make.patient(there)
    stay = await make.stay(patient, bed)

    for attempt in (
        run(database, stays.check_in, actor=stranger, patient_id=own_patient.id, bed_id=bed.id),
        run(database, stays.check_in, actor=stranger, patient_id=patient.id, bed_id=own_bed.id),
        run(database, stays.check_in, actor=stranger, patient_id=own_patient.id, bed_id=10**9),
        run(database, stays.transfer, actor=stranger, stay_id=stay.id, version=1, bed_id=own_bed.id),
        run(
            database,
            stays.check_out,
            actor=stranger,
            stay_id=stay.id,
            version=1,
            outcome=Outcome.DISCHARGED,
        ),
        run(database, stays.update_stay, actor=stranger, stay_id=stay.id, version=1, changes={}),
        run(database, corrections.correct, actor=stranger, stay_id=stay.id, version=1, reason="x"),
    ):
        with pytest.raises(NotFound):
            await attempt


async def test_transfer_ends_one_assignment_and_begins_the_next_at_one_instant(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(cleaning_after_check_out=True)
    first, second = await make.bed(place), await make.bed(place)
    stay = await make.stay(await make.patient(place), first)
    actor, instant = await make.actor(doctor_of=(place,)), days_ago(1)

    await run(database, stays.transfer, actor=actor, stay_id=stay.id, version=1, bed_id=second.id, at=instant)

    rows = await database.fetch(
        "SELECT bed_id, started_at, ended_at FROM bed_assignment WHERE stay_id = $1 ORDER BY id", stay.id
    )
    assert [tuple(row) for row in rows] == [
        (first.id, stay.checked_in_at, instant),
        (second.id, instant, None),
    ]
    assert await database.fetch_value("SELECT service_state FROM bed WHERE id = $1", first.id) == "CLEANING"
    assert await broken_invariants(database) == []


async def test_transfer_refuses_the_same_bed_an_occupied_one_and_a_stale_version(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    first, taken = await make.bed(place), await make.bed(place)
    stay = await make.stay(await make.patient(place), first)
    await make.stay(await make.patient(place), taken)
    actor = await make.actor(doctor_of=(place,))
    arguments = {"actor": actor, "stay_id": stay.id}

    with pytest.raises(SameBed):
        await run(database, stays.transfer, **arguments, version=1, bed_id=first.id)
    with pytest.raises(BedOccupied):
        await run(database, stays.transfer, **arguments, version=1, bed_id=taken.id)
    with pytest.raises(VersionConflict) as stale:
        await run(database, stays.transfer, **arguments, version=7, bed_id=taken.id)
    with pytest.raises(CheckOutBeforeCheckIn):
        await run(
            database,
            stays.transfer,
            **arguments,
            version=1,
            bed_id=(await make.bed(place)).id,
            at=days_ago(50),
        )

    assert stale.value.fields == {"object_type": "Stay", "object_id": stay.id, "current_version": 1}


@pytest.mark.parametrize(("wish", "state"), [(True, "CLEANING"), (False, "IN_SERVICE")])
async def test_check_out_frees_the_bed_as_the_dispensary_wishes(
    database: Database, make: Factory, wish: bool, state: str
) -> None:
    place = await make.dispensary(cleaning_after_check_out=wish)
    bed = await make.bed(place)
    stay = await make.stay(await make.patient(place), bed)

    done = await run(
        database,
        stays.check_out,
        actor=await make.actor(doctor_of=(place,)),
        stay_id=stay.id,
        version=1,
        outcome=Outcome.LEFT_AGAINST_ADVICE,
    )

    assert (done.outcome, done.version) == ("LEFT_AGAINST_ADVICE", 2)
    assert await database.fetch_value("SELECT service_state FROM bed WHERE id = $1", bed.id) == state
    assert await broken_invariants(database) == []


async def test_check_out_refuses_an_ended_stay_the_future_and_a_time_before_the_check_in(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    ended = await make.stay(
        await make.patient(place), await make.bed(place), since=days_ago(5), until=days_ago(4)
    )
    stay = await make.stay(await make.patient(place), await make.bed(place))

    async def attempt(key: int, **more: Any) -> None:
        await run(
            database, stays.check_out, actor=actor, stay_id=key, version=1, outcome=Outcome.DISCHARGED, **more
        )

    with pytest.raises(StayAlreadyEnded):
        await attempt(ended.id)
    with pytest.raises(InFuture):
        await attempt(stay.id, at=datetime.now(UTC) + timedelta(hours=1))
    with pytest.raises(CheckOutBeforeCheckIn):
        await attempt(stay.id, at=days_ago(30))


async def test_update_edits_the_plan_and_refuses_a_plan_before_the_check_in(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    stay = await make.stay(await make.patient(place), await make.bed(place), diagnosis_code="F10.2")

    edited = await run(
        database,
        stays.update_stay,
        actor=actor,
        stay_id=stay.id,
        version=1,
        changes={"attending_doctor_id": actor.account_id, "planned_check_out_on": date(2031, 1, 1)},
    )
    with pytest.raises(Invalid) as refused:
        await run(
            database,
            stays.update_stay,
            actor=actor,
            stay_id=stay.id,
            version=2,
            changes={"planned_check_out_on": date(2001, 1, 1)},
        )

    assert (edited.attending_doctor_id, edited.diagnosis_code) == (actor.account_id, "F10.2")
    assert refused.value.path == ("plannedCheckOutOn",)


async def test_correct_moves_the_facts_and_keeps_the_former_version(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    wrong, right = await make.bed(place), await make.bed(place)
    stay = await make.stay(await make.patient(place), wrong, since=days_ago(5), until=days_ago(1))
    begin = days_ago(6)

    corrected = await run(
        database,
        corrections.correct,
        actor=await make.actor(doctor_of=(place,)),
        stay_id=stay.id,
        version=1,
        reason="перепутаны койки",
        checked_in_at=begin,
        bed_id=right.id,
        outcome=Outcome.TRANSFERRED,
    )

    assert (corrected.checked_in_at, corrected.outcome) == (begin, "TRANSFERRED")
    row = (await database.fetch("SELECT bed_id, started_at FROM bed_assignment WHERE stay_id = $1", stay.id))[
        0
    ]
    assert tuple(row) == (right.id, begin)
    former = await database.fetch_value(
        "SELECT former->>'bed_id' FROM stay_revision WHERE stay_id = $1", stay.id
    )
    assert former == str(wrong.id)
    assert await broken_invariants(database) == []


async def test_correct_is_held_to_every_rule(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place), await make.patient(place)
    await make.stay(await make.patient(place), bed, since=days_ago(20), until=days_ago(10))
    await make.stay(patient, await make.bed(place), since=days_ago(40), until=days_ago(30))
    stay = await make.stay(patient, bed, since=days_ago(5))
    actor = await make.actor(doctor_of=(place,))
    arguments = {"actor": actor, "stay_id": stay.id, "version": 1, "reason": "ошибка"}

    with pytest.raises(BedOccupied):
        await run(database, corrections.correct, **arguments, checked_in_at=days_ago(15))
    with pytest.raises(PatientAlreadyAdmitted):
        await run(database, corrections.correct, **arguments, checked_in_at=days_ago(35))
    with pytest.raises(InFuture):
        await run(
            database, corrections.correct, **arguments, checked_in_at=datetime.now(UTC) + timedelta(hours=1)
        )
    with pytest.raises(Invalid):
        await run(database, corrections.correct, **{**arguments, "reason": " "})
    with pytest.raises(Invalid):
        await run(database, corrections.correct, **arguments, outcome=Outcome.DIED)

    assert await database.fetch_value("SELECT count(*) FROM stay_revision") == 0


async def refusals_of(attempts: list[Awaitable[Stay]]) -> list[str]:
    """How each of the concurrent attempts ended: a refusal's code, or «done»."""
    results = await asyncio.gather(*attempts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, Refusal):
            raise result
    return sorted(result.code if isinstance(result, Refusal) else "done" for result in results)


async def test_forty_check_ins_into_one_bed_leave_one_winner(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, actor = await make.bed(place), await make.actor(doctor_of=(place,))
    patients = [await make.patient(place) for _ in range(40)]

    ends = await refusals_of(
        [run(database, stays.check_in, actor=actor, patient_id=item.id, bed_id=bed.id) for item in patients]
    )

    assert ends == ["BED_OCCUPIED"] * 39 + ["done"]
    assert await broken_invariants(database) == []


async def test_one_patient_into_forty_beds_gets_one(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    patient, actor = await make.patient(place), await make.actor(doctor_of=(place,))
    room = await make.room(place)
    beds = [await make.bed(place, room) for _ in range(40)]

    ends = await refusals_of(
        [run(database, stays.check_in, actor=actor, patient_id=patient.id, bed_id=item.id) for item in beds]
    )

    assert ends == ["PATIENT_ALREADY_ADMITTED"] * 39 + ["done"]
    assert await broken_invariants(database) == []


async def test_crossing_transfers_never_deadlock(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    room = await make.room(place)
    beds = [await make.bed(place, room) for _ in range(6)]
    there = [await make.stay(await make.patient(place), bed) for bed in beds[:4]]
    actor = await make.actor(doctor_of=(place,))

    ends = await refusals_of(
        [
            run(database, stays.transfer, actor=actor, stay_id=stay.id, version=1, bed_id=bed.id)
            for stay in there
            for bed in reversed(beds)
        ]
    )

    assert set(ends) <= {"done", "BED_OCCUPIED", "SAME_BED", "VERSION_CONFLICT"}
    assert 1 <= ends.count("done") <= 4
    assert await broken_invariants(database) == []


async def test_the_constraints_hold_whatever_the_code_does(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    bed, patient = await make.bed(place), await make.patient(place)
    stay = await make.stay(patient, bed)
    values = f"{place.id}, now() - interval '1 hour'"
    attempts = {
        "ex_bed_assignment_bed_overlap": (
            "INSERT INTO bed_assignment (stay_id, bed_id, dispensary_id, started_at, ended_at) "
            f"VALUES ({stay.id}, {bed.id}, {values}, now())"
        ),
        "ex_stay_patient_overlap": (
            "INSERT INTO stay (patient_id, dispensary_id, checked_in_at, checked_out_at, outcome, version) "
            f"VALUES ({patient.id}, {values}, now(), 'DIED', 1)"
        ),
        "ck_stay_interval": (
            "UPDATE stay SET checked_out_at = checked_in_at - interval '1 s', outcome = 'DIED' "
            f"WHERE id = {stay.id}"
        ),
        "ck_stay_assignment": f"DELETE FROM bed_assignment WHERE stay_id = {stay.id}",
    }

    for constraint, statement in attempts.items():
        with pytest.raises(REFUSED_BY_CONSTRAINT) as refused:
            await run(database, _execute, sql=statement)
        assert constraint_name(refused.value) == constraint


async def _execute(session: AsyncSession, *, sql: str) -> None:
    await (await session.connection()).exec_driver_sql(sql)
