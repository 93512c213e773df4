"""Holding, booking, moving, cancelling and ending appointments: success, each refusal by its name, races."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import WARD_ROLE, Database
from ekoyka.errors import Invalid, NotFound, Refusal, VersionConflict
from ekoyka.identity import operations as identity
from ekoyka.inpatient.stays import InFuture, PatientIsArchived
from ekoyka.outpatient import appointments, facts, slots, visits
from ekoyka.outpatient.appointments import (
    AppointmentEnded,
    CancellationTooLate,
    NoPatientRecord,
    SameSlot,
)
from ekoyka.outpatient.refusals import (
    DoctorBlocked,
    DoctorOnLeave,
    PatientAlreadyBooked,
    PatientBlocked,
    SlotInPast,
    SlotTaken,
    SlotWithdrawn,
    TooManyAppointments,
)
from ekoyka.outpatient.tables import AppointmentStatus, SlotHold
from ekoyka.settings import Settings
from tests.factories import Factory
from tests.identity.transactions import answer, run, until_one_waits
from tests.invariants import broken_invariants
from tests.outpatient.clinic import (
    POLICY,
    Clinic,
    booked,
    clinic,
    heard,
    off,
    patient_of,
    status_of,
    told,
)


async def refusal(database: Database, verb: Any, **arguments: Any) -> Refusal:
    end = await answer(database, verb, **arguments)
    assert isinstance(end, Refusal), end
    return end


def ask(here: Clinic, number: int = 0, **more: Any) -> dict[str, Any]:
    """What the clinic's patient asks for."""
    return {"actor": here.person, "slot_id": here.slots[number].id, "policy": POLICY, **more}


async def test_a_patient_books_a_free_slot_and_everybody_concerned_is_told(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)

    key = await booked(database, here, 1, reason=" бессонница ")

    row = (await database.fetch("SELECT * FROM appointment"))[0]
    slot = here.slots[1]
    assert (row["id"], row["slot_id"], row["doctor_id"]) == (key, slot.id, here.doctor.account_id)
    assert (row["starts_at"], row["ends_at"]) == (slot.starts_at, slot.ends_at)
    assert (row["status"], row["reason"], row["booked_by_id"]) == (
        "BOOKED",
        "бессонница",
        here.person.account_id,
    )
    assert await told(database, here.person) == ["BOOKED"]
    assert await told(database, here.doctor) == ["BOOKED"]
    assert await heard(database, f"slots:{here.doctor.account_id}") == ["TAKEN"]
    assert await heard(database, f"person:{here.person.account_id}") == ["BOOKED", "notification"]
    entry = (await database.fetch("SELECT * FROM access_entry"))[0]
    assert (entry["action"], entry["patient_id"], entry["object_id"]) == (
        "appointment_book",
        here.patient.id,
        key,
    )


async def test_a_doctor_books_for_a_patient_and_only_the_patient_is_notified(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)

    await booked(database, here, actor=here.doctor, patient_id=here.patient.id)

    assert await told(database, here.person) == ["BOOKED"]
    assert await told(database, here.doctor) == []


async def test_a_patient_may_book_in_any_dispensary_and_is_known_there_from_then_on(
    database: Database, make: Factory
) -> None:
    here, there = await clinic(make), await clinic(make)
    before = await refusal(
        database, appointments.book, **ask(there, 0, actor=there.doctor, patient_id=here.patient.id)
    )

    await run(database, appointments.book, **ask(there, 0, actor=here.person))
    key = await run(
        database, appointments.book, **ask(there, 1, actor=there.doctor, patient_id=here.patient.id)
    )

    assert isinstance(before, NotFound)
    assert before.path == ("patientId",)
    assert key.id


async def test_a_taken_slot_is_refused_with_the_three_nearest_free_ones(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 6)
    colleague = await clinic(make, 1, here.place)
    _, other = await patient_of(make, here.place)
    await booked(database, here, 2)
    await booked(database, here, 5, actor=other)

    taken = await refusal(database, appointments.book, **ask(here, 2, actor=other))

    assert isinstance(taken, SlotTaken)
    assert taken.fields["slot_id"] == here.slots[2].id
    # Both neighbours, which are equally near, and the next one; the doctor's own before a colleague's.
    assert taken.fields["alternative_ids"] == [here.slots[number].id for number in (1, 3, 0)]
    assert colleague.slots[0].id not in taken.fields["alternative_ids"]


async def test_where_the_doctor_has_none_left_colleagues_slots_are_proposed(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 1)
    colleague, elsewhere = await clinic(make, 4, here.place), await clinic(make, 4)
    _, other = await patient_of(make, here.place)
    await booked(database, here)

    taken = await refusal(database, appointments.book, **ask(here, 0, actor=other))

    assert taken.fields["alternative_ids"] == [slot.id for slot in colleague.slots[:3]]
    assert elsewhere.slots[0].id not in taken.fields["alternative_ids"]


async def test_each_refusal_of_a_booking_has_its_name(database: Database, make: Factory) -> None:
    here, there = await clinic(make, 8), await clinic(make, 8)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    past = await make.slot(here.schedule, now - timedelta(minutes=10))
    await off(make, here.schedule, here.slots[0].starts_at, here.slots[1].starts_at)
    await database.fetch("UPDATE slot SET withdrawn_at = now() WHERE id = $1", here.slots[1].id)
    nobody = await make.actor()
    archived, _ = await patient_of(make, here.place)
    await database.fetch("UPDATE patient SET archived_at = now() WHERE id = $1", archived.id)
    blocked, account = await patient_of(make, here.place)
    await database.fetch("UPDATE account SET blocked_at = now() WHERE id = $1", account.account_id)

    async def book(slot: int, **more: Any) -> Refusal:
        return await refusal(database, appointments.book, **{**ask(here), "slot_id": slot, **more})

    for_patient = {"actor": here.doctor, "patient_id": here.patient.id}
    assert isinstance(await book(past.id), SlotInPast)
    assert isinstance(await book(here.slots[0].id), DoctorOnLeave)
    assert isinstance(await book(here.slots[1].id), SlotWithdrawn)
    assert isinstance(await book(10**9), NotFound)
    assert isinstance(await book(here.slots[2].id, actor=nobody), NoPatientRecord)
    assert isinstance(await book(here.slots[2].id, actor=nobody, patient_id=here.patient.id), NotFound)
    assert isinstance(await book(there.slots[2].id, **for_patient), NotFound)
    assert isinstance(
        await book(here.slots[2].id, actor=here.doctor, patient_id=archived.id), PatientIsArchived
    )
    assert isinstance(await book(here.slots[2].id, actor=here.doctor, patient_id=blocked.id), PatientBlocked)
    assert isinstance(await book(here.slots[2].id, reason="x" * 1001), Invalid)
    # At the same time elsewhere; then the third appointment is the last that one may have.
    await booked(database, there, 2, actor=here.person)
    clash = await book(here.slots[2].id)
    assert isinstance(clash, PatientAlreadyBooked)
    assert clash.fields["appointment_id"] is not None
    hidden = await book(here.slots[2].id, **for_patient)
    assert isinstance(hidden, PatientAlreadyBooked)
    assert hidden.fields["appointment_id"] is None
    await booked(database, here, 3)
    await booked(database, here, 4)
    many = await book(here.slots[5].id)
    assert isinstance(many, TooManyAppointments)
    assert many.fields == {"open": 3, "most": 3}
    assert "3" in many.message("en")
    # Blocked, or no doctor there any more.
    await database.fetch("UPDATE account SET blocked_at = now() WHERE id = $1", here.doctor.account_id)
    assert isinstance(await book(here.slots[6].id), DoctorBlocked)
    await database.fetch("UPDATE account SET blocked_at = NULL WHERE id = $1", here.doctor.account_id)
    await database.fetch("DELETE FROM role_grant WHERE account_id = $1", here.doctor.account_id)
    assert isinstance(await book(here.slots[6].id), DoctorBlocked)
    assert await database.fetch_value("SELECT count(*) FROM appointment") == 3


async def test_the_constraints_refuse_by_name_what_the_locks_keep_away(
    database: Database, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With neither locks nor a look at who has the slot, all the same."""
    here = await clinic(make)
    there = await clinic(make, place=here.place)
    _, other = await patient_of(make, here.place)
    await booked(database, here)
    real = facts.look

    async def blind(*arguments: Any, **named: Any) -> Any:
        seen = await real(*arguments, **named)
        return type("Seen", (), {**dict(seen), "taken": False, "clash_id": None})()

    monkeypatch.setattr(appointments, "look", blind)

    assert isinstance(await refusal(database, appointments.book, **ask(here, 0, actor=other)), SlotTaken)
    clash = await refusal(database, appointments.book, **ask(there, 0, actor=here.person))
    assert isinstance(clash, PatientAlreadyBooked)


async def test_of_fifty_who_book_one_slot_one_has_it_and_the_others_are_refused_by_name(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    here = await clinic(make)
    people = [(await patient_of(make, here.place))[1] for _ in range(50)]
    roomy = settings.model_copy(update={"write_pool_size": 15, "pool_timeout_s": 120.0})

    async with (
        Database(database_url, roomy, role=WARD_ROLE) as one,
        Database(database_url, roomy, role=WARD_ROLE) as other,
    ):
        ends = await asyncio.gather(
            *(
                answer((one, other)[number % 2], appointments.book, **ask(here, 0, actor=person))
                for number, person in enumerate(people)
            )
        )

    codes = Counter(end.code if isinstance(end, Refusal) else "done" for end in ends)
    assert codes == {"done": 1, "SLOT_TAKEN": 49}
    assert await broken_invariants(database) == []


async def test_of_one_patient_who_books_two_slots_at_one_time_at_once_one_is_refused(
    database: Database, make: Factory
) -> None:
    here, there = await clinic(make), await clinic(make)

    ends = await asyncio.gather(
        *(answer(database, appointments.book, **ask(place, 0, actor=here.person)) for place in (here, there))
    )

    assert sorted(end.code if isinstance(end, Refusal) else "done" for end in ends) == [
        "PATIENT_ALREADY_BOOKED",
        "done",
    ]


async def test_a_doctor_who_is_being_blocked_is_not_booked(database: Database, make: Factory) -> None:
    here, admin = await clinic(make), await make.actor(superadmin=True)

    async with database.transaction() as session:
        await identity.block_account(session, actor=admin, account_id=here.doctor.account_id)
        booking = asyncio.create_task(answer(database, appointments.book, **ask(here)))
        await until_one_waits(database)

    assert isinstance(await booking, DoctorBlocked)


async def test_a_slot_that_is_being_booked_is_not_withdrawn(database: Database, make: Factory) -> None:
    here = await clinic(make)

    async with database.transaction() as session:
        row = await appointments.book(session, **ask(here))
        # A job takes what others have not; who asks for it by name waits.
        assert await slots.make_all(database) == slots.Made(0, 0)
    done = await slots.make_all(database)

    assert done == slots.Made(0, 3)
    assert await status_of(database, row.id) == "BOOKED"
    assert await broken_invariants(database) == []


async def test_a_held_slot_is_the_holders_alone_for_some_minutes(database: Database, make: Factory) -> None:
    here = await clinic(make)
    _, other = await patient_of(make, here.place)

    await run(database, appointments.hold, **ask(here))
    refused = [
        await refusal(database, verb, **ask(here, 0, actor=other))
        for verb in (appointments.hold, appointments.book)
    ]
    await run(database, appointments.hold, **ask(here))
    await booked(database, here)

    assert [type(end) for end in refused] == [SlotTaken, SlotTaken]
    assert await database.fetch_value("SELECT count(*) FROM slot_hold") == 0
    assert await heard(database, f"slots:{here.doctor.account_id}") == ["HELD", "HELD", "TAKEN"]


async def test_a_hold_that_has_run_out_holds_nothing(database: Database, make: Factory) -> None:
    here = await clinic(make)
    _, other = await patient_of(make, here.place)
    await make.keep(
        SlotHold(
            slot_id=here.slots[0].id,
            dispensary_id=here.place.id,
            account_id=here.person.account_id,
            until=datetime.now(UTC) - timedelta(seconds=1),
        )
    )

    await run(database, appointments.hold, **ask(here, 0, actor=other))
    await booked(database, here, 0, actor=other)


async def test_one_holds_one_slot_and_lets_it_go(database: Database, make: Factory) -> None:
    here = await clinic(make)
    await run(database, appointments.hold, **ask(here, 0))

    await run(database, appointments.hold, **ask(here, 1))
    held = [row["slot_id"] for row in await database.fetch("SELECT slot_id FROM slot_hold")]
    await run(database, appointments.release, **ask(here, 1))

    assert held == [here.slots[1].id]
    assert await database.fetch_value("SELECT count(*) FROM slot_hold") == 0
    assert isinstance(await refusal(database, appointments.release, **ask(here, 1)), NotFound)
    assert Counter(await heard(database, f"slots:{here.doctor.account_id}")) == {"HELD": 2, "RELEASED": 2}


def change(here: Clinic, key: int, version: int = 1, **more: Any) -> dict[str, Any]:
    return {"actor": here.person, "appointment_id": key, "version": version, "policy": POLICY, **more}


async def test_an_appointment_moves_in_one_step_and_its_former_slot_is_free_at_once(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    there = await clinic(make, place=here.place)
    key = await booked(database, here)

    await run(database, appointments.move, **change(here, key, slot_id=there.slots[1].id))

    row = (await database.fetch("SELECT * FROM appointment"))[0]
    assert (row["id"], row["slot_id"], row["doctor_id"], row["version"]) == (
        key,
        there.slots[1].id,
        there.doctor.account_id,
        2,
    )
    assert row["starts_at"] == there.slots[1].starts_at
    assert await told(database, here.person) == ["BOOKED", "MOVED"]
    # The doctor who had it is told that it is gone, and the other that it has come.
    assert await told(database, here.doctor) == ["BOOKED", "MOVED"]
    assert await told(database, there.doctor) == ["MOVED"]
    assert await heard(database, f"slots:{here.doctor.account_id}") == ["TAKEN", "FREED"]
    assert await heard(database, f"slots:{there.doctor.account_id}") == ["TAKEN"]
    _, other = await patient_of(make, here.place)
    await booked(database, here, 0, actor=other)


async def test_each_refusal_of_a_move_has_its_name(database: Database, make: Factory) -> None:
    here = await clinic(make)
    there = await clinic(make)
    _, other = await patient_of(make, here.place)
    soon = await make.slot(
        here.schedule, datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=30)
    )
    key = await booked(database, here)
    await booked(database, here, 1, actor=other)

    async def move(slot: int, **more: Any) -> Refusal:
        return await refusal(database, appointments.move, **{**change(here, key, slot_id=slot), **more})

    assert isinstance(await move(here.slots[0].id), SameSlot)
    assert isinstance(await move(here.slots[1].id), SlotTaken)
    assert isinstance(await move(here.slots[2].id, version=7), VersionConflict)
    assert isinstance(await move(here.slots[2].id, actor=other), NotFound)
    assert isinstance(await move(here.slots[2].id, actor=there.doctor), NotFound)
    assert isinstance(await move(there.slots[2].id, actor=here.doctor), NotFound)
    assert isinstance(await move(10**9), NotFound)
    await run(database, appointments.move, **change(here, key, slot_id=soon.id))
    assert isinstance(await move(here.slots[2].id, version=2), CancellationTooLate)
    await run(
        database, appointments.move, **change(here, key, 2, slot_id=here.slots[2].id, actor=here.doctor)
    )
    await run(database, appointments.cancel, **change(here, key, 3, reason=None))
    assert isinstance(await move(here.slots[3].id, version=4), AppointmentEnded)


async def test_two_who_move_into_each_others_slots_do_not_wait_in_a_circle(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    other = Clinic(here.place, here.doctor, here.schedule, here.slots, *(await patient_of(make, here.place)))
    for _ in range(5):
        await database.fetch("DELETE FROM notification")
        await database.fetch("DELETE FROM appointment")
        keys = [await booked(database, here, 0), await booked(database, other, 1)]

        ends = await asyncio.gather(
            answer(database, appointments.move, **change(here, keys[0], slot_id=here.slots[1].id)),
            answer(database, appointments.move, **change(other, keys[1], slot_id=here.slots[0].id)),
        )

        assert {type(end) for end in ends} == {SlotTaken}


async def test_a_cancelled_slot_is_free_again_at_once(database: Database, make: Factory) -> None:
    here = await clinic(make)
    _, other = await patient_of(make, here.place)
    key = await booked(database, here)

    await run(database, appointments.cancel, **change(here, key, reason="выздоровел"))
    await booked(database, here, 0, actor=other)

    row = (await database.fetch("SELECT * FROM appointment WHERE id = $1", key))[0]
    assert (row["status"], row["cancellation_reason"]) == ("CANCELLED", "выздоровел")
    assert row["ended_at"] is not None
    assert await told(database, here.person) == ["BOOKED", "CANCELLED"]
    again = await refusal(database, appointments.cancel, **change(here, key, 2, reason=None))
    assert isinstance(again, AppointmentEnded)


async def test_a_patient_cancels_in_time_and_the_dispensary_at_any_time(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    soon = [await make.slot(here.schedule, now + timedelta(minutes=20 * n)) for n in (1, 2)]
    keys = [(await run(database, appointments.book, **{**ask(here), "slot_id": slot.id})).id for slot in soon]

    late = await refusal(database, appointments.cancel, **change(here, keys[0], reason=None))
    await run(database, appointments.cancel, **change(here, keys[0], reason=None, actor=here.doctor))
    # Where it is the doctor who is away, the patient is free to go.
    await off(make, here.schedule, soon[1].starts_at, soon[1].ends_at)
    await run(database, appointments.cancel, **change(here, keys[1], reason=None))

    assert isinstance(late, CancellationTooLate)
    assert late.fields["before_s"] == POLICY.cancel_before_s


async def test_visits_are_marked_as_arrived_completed_or_missed_in_their_time(
    database: Database, make: Factory
) -> None:
    # Where it is noon: an hour ago was today, and the slots are tomorrow's, whenever the test runs.
    hour = datetime.now(UTC).hour
    here = await clinic(make, place=await make.dispensary(time_zone=f"Etc/GMT{hour - 12:+}"))
    keys = [await booked(database, here, number) for number in range(3)]
    doctor = {"actor": here.doctor}

    async def settle(key: int, version: int, status: AppointmentStatus, **more: Any) -> Any:
        return await answer(
            database, visits.settle, **{**change(here, key, version, status=status), **doctor, **more}
        )

    early = [
        await settle(keys[0], 1, status)
        for status in (AppointmentStatus.ARRIVED, AppointmentStatus.FULFILLED)
    ]
    # They were an hour ago.
    for number, key in enumerate(keys):
        begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=60 + 20 * number)
        past = await make.slot(here.schedule, begin)
        await database.fetch(
            "UPDATE appointment SET slot_id = $2, starts_at = $3, ends_at = $4 WHERE id = $1",
            key,
            past.id,
            past.starts_at,
            past.ends_at,
        )
    await settle(keys[0], 1, AppointmentStatus.ARRIVED)
    await settle(keys[0], 2, AppointmentStatus.FULFILLED)
    await settle(keys[1], 1, AppointmentStatus.NOSHOW)
    own = await settle(keys[2], 1, AppointmentStatus.NOSHOW, actor=here.person)
    ended = await settle(keys[1], 2, AppointmentStatus.ARRIVED)
    late = await answer(database, appointments.cancel, **change(here, keys[2], reason=None))

    assert [type(end) for end in early] == [InFuture, InFuture]
    assert [await status_of(database, key) for key in keys] == ["FULFILLED", "NOSHOW", "BOOKED"]
    assert isinstance(own, NotFound)
    assert isinstance(ended, AppointmentEnded)
    assert isinstance(late, CancellationTooLate)
    assert await heard(database, f"person:{here.doctor.account_id}") == [
        *["BOOKED", "notification"] * 3,
        "ARRIVED",
        "FULFILLED",
        "NOSHOW",
    ]


async def test_a_doctor_writes_a_reason_and_the_patient_cannot(database: Database, make: Factory) -> None:
    here = await clinic(make)
    key = await booked(database, here)
    edit: dict[str, Any] = {"appointment_id": key, "version": 1, "changes": {"reason": "контроль"}}

    own = await refusal(database, visits.update_appointment, actor=here.person, **edit)
    await run(database, visits.update_appointment, actor=here.doctor, **edit)

    assert isinstance(own, NotFound)
    row = (await database.fetch("SELECT reason, version FROM appointment"))[0]
    assert tuple(row) == ("контроль", 2)


async def test_an_appointment_entered_in_error_gives_its_slot_back(database: Database, make: Factory) -> None:
    here = await clinic(make)
    key = await booked(database, here)

    await run(
        database,
        visits.settle,
        **change(here, key, status=AppointmentStatus.ENTERED_IN_ERROR, actor=here.doctor),
    )

    assert await status_of(database, key) == "ENTERED_IN_ERROR"
    await booked(database, here)
