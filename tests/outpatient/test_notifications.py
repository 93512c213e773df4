"""Reminders and what is read: each exactly once, however often and by however many it is done."""

import asyncio
from datetime import UTC, datetime, timedelta

from ekoyka.database import Database
from ekoyka.errors import NotFound
from ekoyka.outpatient import appointments, notifications
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.outpatient.clinic import POLICY, Clinic, booked, clinic, heard, patient_of, told


async def happens_in(database: Database, make: Factory, here: Clinic, key: int, minutes: int) -> None:
    """The appointment, which was booked days ago, is so many minutes ahead."""
    colleague = await clinic(make, 0, here.place)
    slot = await make.slot(
        colleague.schedule, datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=minutes)
    )
    await database.fetch(
        "UPDATE appointment SET slot_id = $2, starts_at = $3, ends_at = $4, doctor_id = $5, "
        "placed_at = now() - interval '9 days' WHERE id = $1",
        key,
        slot.id,
        slot.starts_at,
        slot.ends_at,
        slot.doctor_id,
    )


async def test_a_reminder_comes_a_day_and_an_hour_ahead_once_however_often_a_job_runs(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    key = await booked(database, here)

    await happens_in(database, make, here, key, 25 * 60)
    early = await notifications.remind(database)
    await happens_in(database, make, here, key, 23 * 60)
    day = await asyncio.gather(*(notifications.remind(database) for _ in range(6)))
    await happens_in(database, make, here, key, 55)
    hour = await asyncio.gather(*(notifications.remind(database) for _ in range(6)))
    await happens_in(database, make, here, key, -5)
    late = await notifications.remind(database)

    assert (early, sum(day), sum(hour), late) == (0, 1, 1, 0)
    assert await told(database, here.person) == ["BOOKED", "REMINDER_DAY", "REMINDER_HOUR"]
    assert await heard(database, f"person:{here.person.account_id}") == [
        "BOOKED",
        *["notification"] * 3,
    ]


async def test_what_was_booked_within_the_day_is_not_reminded_of_a_day_ahead(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    key = await booked(database, here)
    await happens_in(database, make, here, key, 5 * 60)
    await database.fetch("UPDATE appointment SET placed_at = now()")

    assert await notifications.remind(database) == 0


async def test_a_moved_visit_is_reminded_of_anew_and_a_cancelled_one_not_at_all(
    database: Database, make: Factory
) -> None:
    here = await clinic(make)
    keys = [await booked(database, here, 0), await booked(database, here, 1)]
    await happens_in(database, make, here, keys[0], 22 * 60)
    await notifications.remind(database)
    await happens_in(database, make, here, keys[0], 23 * 60)
    await happens_in(database, make, here, keys[1], 21 * 60)
    await run(
        database,
        appointments.cancel,
        actor=here.person,
        appointment_id=keys[1],
        version=1,
        reason=None,
        policy=POLICY,
    )

    assert await notifications.remind(database) == 1


async def test_one_marks_ones_own_notifications_as_read(database: Database, make: Factory) -> None:
    here = await clinic(make)
    _, other = await patient_of(make, here.place)
    for number in range(3):
        await booked(database, here, number)
    keys = [
        row["id"]
        for row in await database.fetch(
            "SELECT id FROM notification WHERE account_id = $1 ORDER BY id", here.person.account_id
        )
    ]

    one = await run(database, notifications.mark_read, actor=here.person, notification_id=keys[0])
    again = await run(database, notifications.mark_read, actor=here.person, notification_id=keys[0])
    foreign = await answer(database, notifications.mark_read, actor=other, notification_id=keys[1])
    rest = await run(database, notifications.mark_read, actor=here.person, notification_id=None)

    assert (one, again, rest) == (1, 0, 2)
    assert isinstance(foreign, NotFound)
    unread = await database.fetch("SELECT account_id FROM notification WHERE read_at IS NULL")
    assert {row["account_id"] for row in unread} == {here.doctor.account_id}
