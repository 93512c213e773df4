"""A leave over booked slots: it tells whom it touches, proposes colleagues' slots, and moves everybody in one call."""

import asyncio
from typing import Any

from ekoyka.database import Database
from ekoyka.errors import NotFound
from ekoyka.outpatient import appointments, leave
from ekoyka.outpatient.tables import TimeOff, TimeOffKind
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.invariants import broken_invariants
from tests.outpatient.clinic import POLICY, Clinic, booked, clinic, noon, patient_of, status_of, told


async def away(database: Database, here: Clinic, since: int = 0, until: int = 80) -> TimeOff:
    row: TimeOff = await run(
        database,
        leave.add_time_off,
        actor=here.doctor,
        schedule_id=here.schedule.id,
        kind=TimeOffKind.LEAVE,
        reason="отпуск",
        starts_at=noon(since),
        ends_at=noon(until),
    )
    return row


async def everybody_books(
    database: Database, make: Factory, here: Clinic, count: int
) -> list[tuple[int, Any]]:
    """The first slots are taken by so many patients; appointments and their people."""
    found = []
    for number in range(count):
        _, person = await patient_of(make, here.place)
        found.append((await booked(database, here, number, actor=person), person))
    return found


async def proposed(database: Database, appointment_id: int) -> list[int]:
    rows = await database.fetch(
        f"SELECT p.id FROM appointment a CROSS JOIN LATERAL {leave.proposals('a')} p WHERE a.id = $1 "
        "ORDER BY p.distance, p.id",
        appointment_id,
    )
    return [row["id"] for row in rows]


async def test_a_leave_keeps_what_is_booked_and_tells_whom_it_touches(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 4)
    [(first, one), (_, two)] = await everybody_books(database, make, here, 2)

    row = await away(database, here, 0, 40)

    assert await status_of(database, first) == "BOOKED"
    assert await told(database, one) == await told(database, two) == ["BOOKED", "LEAVE"]
    touched = await database.fetch(
        f"SELECT a.id FROM time_off o JOIN appointment a ON {leave.is_affected('a', 'o')} WHERE o.id = $1",
        row.id,
    )
    assert len(touched) == 2


async def test_colleagues_nearest_free_slots_are_proposed(database: Database, make: Factory) -> None:
    here, elsewhere = await clinic(make, 4), await clinic(make, 4)
    colleague, another = await clinic(make, 4, here.place), await clinic(make, 1, here.place)
    [(first, person)] = await everybody_books(database, make, here, 1)
    # One of them is taken; at the time of another the patient has something else.
    await booked(database, another, 0, actor=another.person)
    await booked(database, elsewhere, 2, actor=person)

    await away(database, here)

    assert await proposed(database, first) == [colleague.slots[number].id for number in (0, 1, 3)]


async def test_moving_everybody_is_one_call_and_nobody_gets_anothers_slot(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 4)
    colleague = await clinic(make, 3, here.place)
    people = await everybody_books(database, make, here, 4)
    row = await away(database, here)

    moved = await run(database, leave.move_affected, actor=here.doctor, time_off_id=row.id, policy=POLICY)

    # There were three slots for four.
    assert sorted(moved) == sorted(key for key, _ in people[:3])
    slots = await database.fetch("SELECT slot_id, doctor_id FROM appointment WHERE id = ANY($1)", moved)
    assert {item["slot_id"] for item in slots} == {slot.id for slot in colleague.slots}
    assert {item["doctor_id"] for item in slots} == {colleague.doctor.account_id}
    assert await told(database, people[0][1]) == ["BOOKED", "LEAVE", "MOVED"]
    assert await told(database, people[3][1]) == ["BOOKED", "LEAVE"]
    assert await broken_invariants(database) == []
    # What is free under a leave is nobody's to book.
    refused = await answer(
        database, appointments.book, actor=here.person, slot_id=here.slots[0].id, policy=POLICY
    )
    assert refused.code == "DOCTOR_ON_LEAVE"


async def test_who_decides_otherwise_says_who_goes_where(database: Database, make: Factory) -> None:
    here = await clinic(make, 2)
    colleague, elsewhere = await clinic(make, 3, here.place), await clinic(make, 3)
    [(first, _), (second, _)] = await everybody_books(database, make, here, 2)
    row = await away(database, here, 0, 20)

    moved = await run(
        database,
        leave.move_affected,
        actor=here.doctor,
        time_off_id=row.id,
        policy=POLICY,
        # The second is not touched by the leave.
        pairs={first: colleague.slots[2].id, second: colleague.slots[1].id},
    )
    outside = await run(
        database,
        leave.move_affected,
        actor=here.doctor,
        time_off_id=row.id,
        policy=POLICY,
        pairs={first: elsewhere.slots[0].id},
    )

    assert (moved, outside) == ([first], [])
    assert (
        await database.fetch_value("SELECT slot_id FROM appointment WHERE id = $1", first)
        == colleague.slots[2].id
    )


async def test_others_leaves_are_not_there(database: Database, make: Factory) -> None:
    here, there = await clinic(make), await clinic(make)
    row = await away(database, here)

    for actor in (there.doctor, here.person):
        refused = await answer(database, leave.move_affected, actor=actor, time_off_id=row.id, policy=POLICY)
        assert isinstance(refused, NotFound)


async def test_patients_who_book_while_everybody_is_moved_take_nobodys_place(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 4)
    colleague = await clinic(make, 6, here.place)
    await everybody_books(database, make, here, 4)
    others = [(await patient_of(make, here.place))[1] for _ in range(6)]
    row = await away(database, here)

    await asyncio.gather(
        run(database, leave.move_affected, actor=here.doctor, time_off_id=row.id, policy=POLICY),
        *(
            answer(database, appointments.book, actor=person, slot_id=slot.id, policy=POLICY)
            for person, slot in zip(others, colleague.slots, strict=True)
        ),
    )

    assert await broken_invariants(database) == []
    assert await database.fetch_value("SELECT count(*) FROM appointment WHERE status = 'BOOKED'") >= 6
