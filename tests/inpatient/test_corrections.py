"""Correcting stays: every rule holds for what really happened, as it does for what happens."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import Database, Row
from ekoyka.errors import Invalid, NotFound, Refusal, VersionConflict
from ekoyka.facilities.tables import Bed
from ekoyka.inpatient import corrections, reservations, stays
from ekoyka.inpatient.availability import BedClosed, BedNotReady, BedOccupied, BedReserved, RoomSexMismatch
from ekoyka.inpatient.stays import CheckOutBeforeCheckIn, PatientAlreadyAdmitted
from ekoyka.inpatient.tables import Outcome, Stay
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.invariants import broken_invariants


def days_ago(count: float) -> datetime:
    return datetime.now(UTC) - timedelta(days=count)


async def test_an_open_stay_is_not_corrected_into_a_bed_it_could_not_have_been_checked_in_to(
    database: Database, make: Factory
) -> None:
    place, elsewhere = await make.dispensary(), await make.dispensary()
    actor = await make.actor(doctor_of=(place, elsewhere))
    stay = await make.stay(await make.patient(place), await make.bed(place), since=days_ago(2))
    taken, kept = await make.bed(place), await make.bed(place)
    await make.stay(await make.patient(place), taken, since=days_ago(1))
    until = datetime.now(UTC) + timedelta(hours=1)
    await run(database, reservations.reserve_bed, actor=actor, bed_id=kept.id, until=until, patient_id=None)
    cases: list[tuple[type[Refusal], Bed]] = [
        (BedOccupied, taken),
        (BedReserved, kept),
        (BedClosed, await make.bed(place, service_state="CLOSED")),
        (BedNotReady, await make.bed(place, service_state="CLEANING")),
        (RoomSexMismatch, await make.bed(place, await make.room(place, sex="FEMALE"))),
        (NotFound, await make.bed(place, archived_at=datetime.now(UTC))),
        (NotFound, await make.bed(elsewhere)),
    ]

    for refusal, bed in cases:
        with pytest.raises(refusal):
            await run(
                database,
                corrections.correct,
                actor=actor,
                stay_id=stay.id,
                version=1,
                reason="перепутаны койки",
                bed_id=bed.id,
            )

    assert await database.fetch_value("SELECT count(*) FROM stay_revision") == 0


async def test_an_ended_stay_may_have_been_in_a_bed_that_is_closed_or_archived_now(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    stay = await make.stay(
        await make.patient(place), await make.bed(place), since=days_ago(9), until=days_ago(2)
    )
    beds = [
        await make.bed(place, service_state="CLOSED"),
        await make.bed(place, archived_at=datetime.now(UTC)),
    ]

    for version, bed in enumerate(beds, start=1):
        await run(
            database,
            corrections.correct,
            actor=actor,
            stay_id=stay.id,
            version=version,
            reason="перепутаны койки",
            bed_id=bed.id,
        )

    assert await database.fetch_value("SELECT bed_id FROM bed_assignment") == beds[-1].id
    assert await database.fetch_value("SELECT count(*) FROM stay_revision") == 2


async def test_a_stay_with_a_transfer_keeps_its_assignments_in_order(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    first, second = await make.bed(place), await make.bed(place)
    actor = await make.actor(doctor_of=(place,))
    stay = await make.stay(await make.patient(place), first, since=days_ago(9))
    middle, end = days_ago(5), days_ago(1)
    arguments: dict[str, Any] = {"actor": actor, "stay_id": stay.id}
    await run(database, stays.transfer, **arguments, version=1, bed_id=second.id, at=middle)
    await run(database, stays.check_out, **arguments, version=2, outcome=Outcome.DISCHARGED, at=end)

    with pytest.raises(CheckOutBeforeCheckIn) as too_late:
        await run(
            database, corrections.correct, **arguments, version=3, reason="ошибка", checked_in_at=days_ago(4)
        )
    with pytest.raises(CheckOutBeforeCheckIn) as too_early:
        await run(
            database, corrections.correct, **arguments, version=3, reason="ошибка", checked_out_at=days_ago(6)
        )
    begin = days_ago(10)
    await run(
        database,
        corrections.correct,
        **arguments,
        version=3,
        reason="ошибка",
        checked_in_at=begin,
        bed_id=first.id,
    )

    rows = await database.fetch("SELECT bed_id, started_at, ended_at FROM bed_assignment ORDER BY id")
    assert [tuple(row) for row in rows] == [(first.id, begin, middle), (first.id, middle, end)]
    assert (too_late.value.path, too_early.value.path) == (("checkedInAt",), ("checkedOutAt",))
    assert await broken_invariants(database) == []


async def test_the_first_bed_of_a_transferred_stay_is_guarded_too(database: Database, make: Factory) -> None:
    place = await make.dispensary()
    first, second = await make.bed(place), await make.bed(place)
    actor = await make.actor(doctor_of=(place,))
    before = await make.stay(await make.patient(place), first, since=days_ago(20), until=days_ago(10))
    stay = await make.stay(await make.patient(place), first, since=days_ago(9))
    arguments: dict[str, Any] = {"actor": actor, "stay_id": stay.id}
    await run(database, stays.transfer, **arguments, version=1, bed_id=second.id)

    with pytest.raises(BedOccupied) as refused:
        await run(
            database, corrections.correct, **arguments, version=2, reason="ошибка", checked_in_at=days_ago(11)
        )

    fields = refused.value.fields
    assert (fields["bed_id"], fields["occupied_until"]) == (first.id, before.checked_out_at)


async def test_a_correction_and_a_check_in_of_one_patient_never_overlap(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary()
    actor = await make.actor(doctor_of=(place,))
    patient = await make.patient(place)
    stay = await make.stay(patient, await make.bed(place), since=days_ago(9), until=days_ago(5))
    beds = [await make.bed(place) for _ in range(5)]

    ends = await asyncio.gather(
        *(
            answer(
                database,
                stays.check_in,
                actor=actor,
                patient_id=patient.id,
                bed_id=bed.id,
                at=days_ago(4),
            )
            for bed in beds
        ),
        *(
            answer(
                database,
                corrections.correct,
                actor=actor,
                stay_id=stay.id,
                version=1,
                reason="ошибка",
                checked_out_at=days_ago(3),
            )
            for _ in range(5)
        ),
    )

    assert sum(not isinstance(end, Refusal) for end in ends) == 1
    assert {type(end) for end in ends} <= {Row, Stay, PatientAlreadyAdmitted, VersionConflict}
    # Refused under the locks, where all that the person needs is known, not by a constraint.
    assert all(end.fields for end in ends if isinstance(end, Refusal))
    assert await broken_invariants(database) == []


async def test_a_plan_before_the_check_in_is_refused_in_the_dispensarys_own_days(
    database: Database, make: Factory
) -> None:
    place = await make.dispensary(time_zone="Asia/Kamchatka")
    actor = await make.actor(doctor_of=(place,))
    # 23:30 of 30 April in UTC is 11:30 of 1 May on Kamchatka.
    since = datetime(2026, 4, 30, 23, 30, tzinfo=UTC)
    arguments = {"actor": actor, "bed_id": (await make.bed(place)).id, "at": since}
    patient = await make.patient(place)

    with pytest.raises(Invalid) as refused:
        await run(
            database,
            stays.check_in,
            **arguments,
            patient_id=patient.id,
            plan={"planned_check_out_on": date(2026, 4, 30)},
        )
    stay = await run(
        database,
        stays.check_in,
        **arguments,
        patient_id=patient.id,
        plan={"planned_check_out_on": date(2026, 5, 1)},
    )

    assert refused.value.path == ("plannedCheckOutOn",)
    assert stay.planned_check_out_on == date(2026, 5, 1)
