"""The waiting list: a freed slot is offered to the first in line, and passes on when nobody takes it."""

import asyncio
from typing import Any

from ekoyka.database import Database
from ekoyka.errors import NotFound, Refusal
from ekoyka.inpatient.stays import NotADoctorThere
from ekoyka.outpatient import appointments, line, waiting
from ekoyka.outpatient.appointments import AppointmentEnded, NoPatientRecord
from ekoyka.outpatient.refusals import SlotTaken
from ekoyka.outpatient.waiting import AlreadyWaiting, OfferEnded, WaitingEnded
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.invariants import broken_invariants
from tests.outpatient.clinic import POLICY, Clinic, booked, clinic, heard, patient_of, status_of, told


async def joins(database: Database, here: Clinic, **more: Any) -> Any:
    return await answer(
        database,
        waiting.join,
        **{
            "actor": here.person,
            "dispensary_id": here.place.id,
            "doctor_id": here.doctor.account_id,
            **more,
        },
    )


async def frees(database: Database, here: Clinic, key: int) -> None:
    """The appointment is cancelled by the doctor."""
    version = await database.fetch_value("SELECT version FROM appointment WHERE id = $1", key)
    await run(
        database,
        appointments.cancel,
        actor=here.doctor,
        appointment_id=key,
        version=version,
        reason=None,
        policy=POLICY,
    )


async def offers(database: Database) -> list[tuple[int, int, str | None]]:
    rows = await database.fetch("SELECT patient_id, slot_id, outcome FROM slot_offer ORDER BY id")
    return [(row["patient_id"], row["slot_id"], row["outcome"]) for row in rows]


async def lapses(database: Database) -> tuple[int, int]:
    """The time of all offers is up, and a job looks."""
    await database.fetch("UPDATE slot_offer SET until = now() - interval '1 second' WHERE ended_at IS NULL")
    return await line.lapse(database, offer_s=POLICY.offer_s)


async def test_a_freed_slot_is_offered_to_the_first_in_line_and_kept_for_them(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    first, one = await patient_of(make, here.place)
    _, two = await patient_of(make, here.place)
    key = await booked(database, here)
    for person in (one, two):
        assert isinstance(await joins(database, here, actor=person), int)

    await frees(database, here, key)
    taken = await answer(database, appointments.book, actor=two, slot_id=here.slots[0].id, policy=POLICY)

    assert await offers(database) == [(first.id, here.slots[0].id, None)]
    assert isinstance(taken, SlotTaken)
    assert await told(database, one) == ["OFFER"]
    assert await heard(database, f"slots:{here.doctor.account_id}") == ["TAKEN", "FREED", "OFFERED"]


async def test_whoever_accepts_has_the_slot_and_leaves_the_line(database: Database, make: Factory) -> None:
    here = await clinic(make)
    _, one = await patient_of(make, here.place)
    key = await booked(database, here)
    entry = await joins(database, here, actor=one)
    await frees(database, here, key)
    offer = await database.fetch_value("SELECT id FROM slot_offer")

    made = await run(database, waiting.accept, actor=one, offer_id=offer, policy=POLICY)
    again = await answer(database, waiting.accept, actor=one, offer_id=offer, policy=POLICY)

    assert await status_of(database, made) == "BOOKED"
    assert (await offers(database))[0][2] == "ACCEPTED"
    assert await database.fetch_value("SELECT outcome FROM waiting_entry WHERE id = $1", entry) == "BOOKED"
    assert isinstance(again, OfferEnded)
    assert await broken_invariants(database) == []


async def test_who_waits_for_an_earlier_visit_is_moved_and_the_later_slot_passes_on(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    _, one = await patient_of(make, here.place)
    third, two = await patient_of(make, here.place)
    key = await booked(database, here, 0)
    later = await booked(database, here, 3, actor=one)
    await joins(database, here, actor=one, appointment_id=later)
    await joins(database, here, actor=two)
    await frees(database, here, key)
    offer = await database.fetch_value("SELECT id FROM slot_offer")

    moved = await run(database, waiting.accept, actor=one, offer_id=offer, policy=POLICY)

    assert moved == later
    assert (
        await database.fetch_value("SELECT slot_id FROM appointment WHERE id = $1", later) == here.slots[0].id
    )
    assert (await offers(database))[1] == (third.id, here.slots[3].id, None)


async def test_an_offer_passes_on_when_it_is_declined_or_lapses_and_each_is_asked_once(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    people = [await patient_of(make, here.place) for _ in range(3)]
    key = await booked(database, here)
    for _, person in people:
        await joins(database, here, actor=person)
    await frees(database, here, key)

    offer = await database.fetch_value("SELECT id FROM slot_offer")
    await run(database, waiting.decline, actor=people[0][1], offer_id=offer, policy=POLICY)
    passed = [await lapses(database), await lapses(database), await lapses(database)]

    slot = here.slots[0].id
    assert await offers(database) == [
        (people[0][0].id, slot, "DECLINED"),
        (people[1][0].id, slot, "LAPSED"),
        (people[2][0].id, slot, "LAPSED"),
    ]
    assert passed == [(1, 1), (1, 0), (0, 0)]
    # Nobody wants it: it is anybody's.
    await booked(database, here)


async def test_only_those_are_asked_whom_it_suits(database: Database, make: Factory) -> None:
    here = await clinic(make, 6)
    colleague, elsewhere = await clinic(make, 6, here.place), await clinic(make, 6)
    key = await booked(database, here, 2)
    # Earlier already; at that time elsewhere; another doctor's line; blocked; and then one for any doctor.
    _, early = await patient_of(make, here.place)
    await joins(database, here, actor=early, appointment_id=await booked(database, here, 1, actor=early))
    _, busy = await patient_of(make, here.place)
    await booked(database, elsewhere, 2, actor=busy)
    await joins(database, here, actor=busy)
    await joins(database, colleague, actor=colleague.person)
    _, blocked = await patient_of(make, here.place)
    await joins(database, here, actor=blocked)
    await database.fetch("UPDATE account SET blocked_at = now() WHERE id = $1", blocked.account_id)
    fitting, last = await patient_of(make, here.place)
    await joins(database, here, actor=last, doctor_id=None)

    await frees(database, here, key)

    assert await offers(database) == [(fitting.id, here.slots[2].id, None)]


async def test_a_slot_freed_while_its_offer_was_open_elsewhere_is_found_by_the_job(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    waiter, one = await patient_of(make, here.place)
    keys = [await booked(database, here, 0), await booked(database, here, 1)]
    await joins(database, here, actor=one)
    await frees(database, here, keys[0])
    await frees(database, here, keys[1])  # the only one in line has an offer already
    offer = await database.fetch_value("SELECT id FROM slot_offer")
    await run(database, waiting.decline, actor=one, offer_id=offer, policy=POLICY)

    done = await line.lapse(database, offer_s=POLICY.offer_s)

    assert done == (0, 1)
    assert (await offers(database))[1] == (waiter.id, here.slots[1].id, None)


async def test_who_leaves_the_line_gives_their_offer_to_the_next(database: Database, make: Factory) -> None:
    here = await clinic(make)
    people = [await patient_of(make, here.place) for _ in range(2)]
    key = await booked(database, here)
    entries = [await joins(database, here, actor=person) for _, person in people]
    await frees(database, here, key)

    await run(database, waiting.leave, actor=people[0][1], entry_id=entries[0], policy=POLICY)
    again = await answer(database, waiting.leave, actor=people[0][1], entry_id=entries[0], policy=POLICY)

    assert [outcome for *_, outcome in await offers(database)] == ["WITHDRAWN", None]
    assert isinstance(again, WaitingEnded)


async def test_who_waited_for_an_earlier_visit_does_not_when_it_is_cancelled(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    key = await booked(database, here, 3)
    entry = await joins(database, here, appointment_id=key)

    await frees(database, here, key)

    assert await database.fetch_value("SELECT outcome FROM waiting_entry WHERE id = $1", entry) == "CLOSED"


async def test_each_refusal_of_the_waiting_list_has_its_name(database: Database, make: Factory) -> None:
    here, there = await clinic(make), await clinic(make)
    nobody = await make.actor()
    key = await booked(database, here)
    await frees(database, here, key)
    foreign = await booked(database, there, 0)
    entry = await joins(database, here)

    assert isinstance(await joins(database, here), AlreadyWaiting)
    assert isinstance(await joins(database, here, actor=nobody), NoPatientRecord)
    assert isinstance(await joins(database, here, actor=nobody, patient_id=here.patient.id), NotFound)
    assert isinstance(await joins(database, here, actor=there.doctor, patient_id=here.patient.id), NotFound)
    assert isinstance(await joins(database, here, doctor_id=there.doctor.account_id), NotADoctorThere)
    assert isinstance(await joins(database, here, dispensary_id=10**9), NotFound)
    assert isinstance(await joins(database, here, doctor_id=None, appointment_id=foreign), NotFound)
    assert isinstance(await joins(database, here, doctor_id=None, appointment_id=key), AppointmentEnded)
    for actor in (nobody, there.doctor):
        refused = await answer(database, waiting.leave, actor=actor, entry_id=entry, policy=POLICY)
        assert isinstance(refused, NotFound)
        refused = await answer(database, waiting.decline, actor=actor, offer_id=10**9, policy=POLICY)
        assert isinstance(refused, NotFound)


async def test_several_workers_pass_each_slot_on_once(database: Database, make: Factory) -> None:
    here = await clinic(make, 6)
    keys = []
    for number in range(6):
        _, person = await patient_of(make, here.place)
        keys.append(await booked(database, here, number, actor=person))
    for _ in range(12):
        await joins(database, here, actor=(await patient_of(make, here.place))[1])
    for key in keys:
        await frees(database, here, key)
    await database.fetch("UPDATE slot_offer SET until = now() - interval '1 second'")

    done = await asyncio.gather(*(line.lapse(database, offer_s=POLICY.offer_s) for _ in range(6)))
    left = await line.lapse(database, offer_s=POLICY.offer_s)

    assert sum(lapsed for lapsed, _ in [*done, left]) == 6
    assert await database.fetch_value("SELECT count(*) FROM slot_offer WHERE ended_at IS NULL") == 6
    assert await broken_invariants(database) == []


async def test_accepting_and_lapsing_at_once_leave_one_end(database: Database, make: Factory) -> None:
    here = await clinic(make)
    people = [await patient_of(make, here.place) for _ in range(2)]
    key = await booked(database, here)
    for _, person in people:
        await joins(database, here, actor=person)
    await frees(database, here, key)
    offer = await database.fetch_value("SELECT id FROM slot_offer")
    await database.fetch("UPDATE slot_offer SET until = now() + interval '30 milliseconds'")

    async def soon() -> None:
        await asyncio.sleep(0.03)
        await line.lapse(database, offer_s=POLICY.offer_s)

    end, _ = await asyncio.gather(
        answer(database, waiting.accept, actor=people[0][1], offer_id=offer, policy=POLICY), soon()
    )
    await line.lapse(database, offer_s=POLICY.offer_s)

    [(_, _, first), *others] = await offers(database)
    assert (first, len(others)) == (("LAPSED", 1) if isinstance(end, Refusal) else ("ACCEPTED", 0))
    assert await broken_invariants(database) == []
