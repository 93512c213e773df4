"""Slots as the rules give them: the six of a morning, clock changes, changes of the rules, several workers."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import WARD_ROLE, Database
from ekoyka.outpatient import slots
from ekoyka.outpatient.slots import Made
from ekoyka.outpatient.tables import Appointment, Schedule, SlotHold
from ekoyka.settings import Settings
from tests.factories import Factory, Hours
from tests.outpatient.clinic import at, extra, made, off, read_on_clock, slots_of

MORNING: Hours = {day: [(11 * 60, 13 * 60)] for day in range(1, 8)}
NIGHT: Hours = {day: [(60, 5 * 60)] for day in range(1, 8)}


async def schedule_in(make: Factory, zone: str, hours: Hours, **more: Any) -> Schedule:
    place = await make.dispensary(time_zone=zone)
    return await make.schedule(
        await make.account(doctor_of=(place,)), place, hours, **{"horizon_days": 0, **more}
    )


async def test_eleven_to_one_with_twenty_minutes_gives_exactly_the_six(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "Europe/Moscow", MORNING, visit_minutes=20)

    done = await made(database, schedule, now=at("2026-03-03 00:00", "Europe/Moscow"))

    assert done == Made(6, 0)
    assert await read_on_clock(database, schedule, "Europe/Moscow") == [
        f"03-03 {time}" for time in ("11:00", "11:20", "11:40", "12:00", "12:20", "12:40")
    ]
    assert {ends - starts for starts, ends in await slots_of(database, schedule)} == {timedelta(minutes=20)}


async def test_a_visit_that_does_not_fit_is_not_made(database: Database, make: Factory) -> None:
    schedule = await schedule_in(make, "Europe/Moscow", {2: [(540, 590), (600, 610)]}, visit_minutes=20)

    await made(database, schedule, now=at("2026-03-03 00:00"))

    assert await read_on_clock(database, schedule, "Europe/Moscow") == ["03-03 09:00", "03-03 09:20"]


async def test_slots_are_made_for_today_and_the_days_of_the_horizon_and_never_in_the_past(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "Asia/Vladivostok", MORNING, visit_minutes=60, horizon_days=7)

    # Tuesday at noon in Vladivostok, where it is still Monday elsewhere.
    await made(database, schedule, now=at("2026-03-03 12:00", "Asia/Vladivostok"))

    days = [f"03-{day:02}" for day in range(4, 11)]
    assert await read_on_clock(database, schedule, "Asia/Vladivostok") == [
        f"{day} {time}" for day in days for time in ("11:00", "12:00")
    ]


@pytest.mark.parametrize(
    ("zone", "day", "expected"),
    [
        # The hour from two to three does not exist.
        ("Europe/Berlin", "2026-03-29", "01:00 01:30 03:00 03:30 04:00 04:30"),
        ("America/New_York", "2026-03-08", "01:00 01:30 03:00 03:30 04:00 04:30"),
        # It comes twice, and is worked once.
        ("Europe/Berlin", "2026-10-25", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
        ("America/New_York", "2026-11-01", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
        # Half an hour at a time.
        ("Australia/Lord_Howe", "2026-10-04", "01:00 01:30 02:30 03:00 03:30 04:00 04:30"),
        ("Australia/Lord_Howe", "2026-04-05", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
        # No clock of Russia's changes any more.
        ("Europe/Moscow", "2026-03-29", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
        ("Asia/Yekaterinburg", "2026-10-25", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
        ("Europe/Kaliningrad", "2026-10-25", "01:00 01:30 02:00 02:30 03:00 03:30 04:00 04:30"),
    ],
)
async def test_on_the_day_of_a_clock_change_no_slot_is_lost_doubled_or_shifted(
    database: Database, make: Factory, zone: str, day: str, expected: str
) -> None:
    schedule = await schedule_in(make, zone, NIGHT, visit_minutes=30)

    await made(database, schedule, now=at(f"{day} 00:00", zone))

    assert await read_on_clock(database, schedule, zone) == [f"{day[5:]} {time}" for time in expected.split()]
    assert {ends - starts for starts, ends in await slots_of(database, schedule)} == {timedelta(minutes=30)}


async def test_of_an_hour_that_comes_twice_the_second_is_worked(database: Database, make: Factory) -> None:
    schedule = await schedule_in(make, "Europe/Berlin", {7: [(120, 180)]}, visit_minutes=20)

    await made(database, schedule, now=at("2026-10-25 00:00", "Europe/Berlin"))

    # 02:00 to 03:00 by winter time.
    assert [starts for starts, _ in await slots_of(database, schedule)] == [
        at(f"2026-10-25 01:{minute:02}") for minute in (0, 20, 40)
    ]


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        ([(150, 240)], ["03:00", "03:30"]),  # from 02:30, which does not exist, to 04:00
        ([(60, 150)], ["01:00", "01:30"]),  # until 02:30
        ([(130, 170)], []),  # within the hour that does not exist
        ([(0, 150), (150, 240)], ["00:00", "00:30", "01:00", "01:30", "03:00", "03:30"]),
    ],
)
async def test_hours_that_begin_or_end_in_an_hour_that_does_not_exist_end_where_it_would_begin(
    database: Database, make: Factory, hours: list[tuple[int, int]], expected: list[str]
) -> None:
    schedule = await schedule_in(make, "Europe/Berlin", {7: hours}, visit_minutes=30, horizon_days=1)

    await made(database, schedule, now=at("2026-03-28 12:00"))

    assert await read_on_clock(database, schedule, "Europe/Berlin") == [f"03-29 {time}" for time in expected]


async def test_clocks_that_change_at_midnight_lose_nothing(database: Database, make: Factory) -> None:
    """In Beirut the day of the change begins at one o'clock, and in autumn the last hour before it comes twice."""
    spring = await schedule_in(make, "Asia/Beirut", {7: [(0, 180)]}, visit_minutes=60, horizon_days=1)
    autumn = await schedule_in(
        make, "Asia/Beirut", {6: [(1320, 1440)], 7: [(0, 60)]}, visit_minutes=60, horizon_days=1
    )

    await made(database, spring, now=at("2026-03-28 12:00"))
    await made(database, autumn, now=at("2026-10-24 12:00"))

    assert await read_on_clock(database, spring, "Asia/Beirut") == ["03-29 01:00", "03-29 02:00"]
    assert await read_on_clock(database, autumn, "Asia/Beirut") == [
        "10-24 22:00",
        "10-24 23:00",
        "10-25 00:00",
    ]


async def test_breaks_are_left_out_and_do_not_move_the_visits_after_them(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "UTC", MORNING, visit_minutes=20)
    await off(make, schedule, at("2026-03-03 11:25"), at("2026-03-03 11:35"))

    await made(database, schedule, now=at("2026-03-03 00:00"))

    assert await read_on_clock(database, schedule, "UTC") == [
        f"03-03 {time}" for time in ("11:00", "11:40", "12:00", "12:20", "12:40")
    ]


async def test_where_keeping_to_the_beat_would_cost_a_visit_it_begins_when_the_break_ends(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "UTC", MORNING, visit_minutes=20)
    await off(make, schedule, at("2026-03-03 11:00"), at("2026-03-03 11:10"))
    await off(make, schedule, at("2026-03-03 11:30"), at("2026-03-03 12:30"))

    await made(database, schedule, now=at("2026-03-03 00:00"))

    assert await read_on_clock(database, schedule, "UTC") == ["03-03 11:10", "03-03 12:40"]


async def test_extra_hours_are_added_once_and_leave_out_the_weeks_own(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "UTC", {2: [(660, 720)]}, visit_minutes=20, horizon_days=14)
    await extra(make, schedule, at("2026-03-03 11:30"), at("2026-03-03 12:40"))
    await extra(make, schedule, at("2026-03-07 10:00"), at("2026-03-07 11:00"), visit_minutes=30)

    await made(database, schedule, now=at("2026-03-03 00:00"))

    assert await read_on_clock(database, schedule, "UTC") == [
        *(f"03-03 {time}" for time in ("11:00", "11:20", "11:40", "12:00", "12:20")),
        *(f"03-07 {time}" for time in ("10:00", "10:30")),
        *(f"03-10 {time}" for time in ("11:00", "11:20", "11:40")),
        *(f"03-17 {time}" for time in ("11:00", "11:20", "11:40")),
    ]


async def test_a_change_of_habits_begins_on_its_day(database: Database, make: Factory) -> None:
    schedule = await schedule_in(
        make, "UTC", {2: [(600, 660)]}, visit_minutes=60, valid_until=date(2026, 3, 9), horizon_days=14
    )
    await make.timetable(schedule, {2: [(900, 960)]}, visit_minutes=30, valid_from=date(2026, 3, 10))

    await made(database, schedule, now=at("2026-03-03 00:00"))

    assert await read_on_clock(database, schedule, "UTC") == [
        "03-03 10:00",
        *(f"03-{day} {time}" for day in (10, 17) for time in ("15:00", "15:30")),
    ]


async def test_making_slots_again_changes_nothing_and_tells_nobody(database: Database, make: Factory) -> None:
    schedule = await schedule_in(make, "Europe/Moscow", MORNING, visit_minutes=20, horizon_days=3)
    now = at("2026-03-03 00:00")
    first = await made(database, schedule, now=now)
    before = await database.fetch("SELECT * FROM slot ORDER BY id")
    told = await database.fetch("SELECT * FROM feed_event")

    again = await made(database, schedule, now=now)

    assert (first, again) == (Made(24, 0), Made(0, 0))
    assert await database.fetch("SELECT * FROM slot ORDER BY id") == before
    assert [row["topic"] for row in told] == [f"slots:{schedule.doctor_id}"]
    assert await database.fetch("SELECT * FROM feed_event") == told


async def test_what_is_booked_or_held_stays_when_the_rules_no_longer_give_it(
    database: Database, make: Factory
) -> None:
    now = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    schedule = await schedule_in(make, "UTC", MORNING, visit_minutes=20)
    await made(database, schedule, now=now)
    rows = await database.fetch("SELECT * FROM slot ORDER BY starts_at")
    patient = await make.patient(await make.dispensary())
    booked, held, lapsed = rows[1], rows[3], rows[5]
    await make.keep(
        Appointment(
            patient_id=patient.id,
            slot_id=booked["id"],
            **{name: booked[name] for name in ("doctor_id", "dispensary_id", "starts_at", "ends_at")},
        )
    )
    for slot, minutes in ((held, 5), (lapsed, -5)):
        await make.keep(
            SlotHold(
                slot_id=slot["id"],
                dispensary_id=slot["dispensary_id"],
                account_id=(await make.account()).id,
                until=datetime.now(UTC) + timedelta(minutes=minutes),
            )
        )
    await database.fetch("UPDATE timetable SET visit_minutes = 30 WHERE schedule_id = $1", schedule.id)

    done = await made(database, schedule, now=now)

    # 11:20 is booked and 12:00 held: what would lie across them is not made.
    assert await read_on_clock(database, schedule, "UTC") == [
        f"{now:%m-%d} {time}" for time in ("11:20", "12:00", "12:30")
    ]
    assert done == Made(1, 4)
    assert await made(database, schedule, now=now) == Made(0, 0)


async def test_a_doctors_slots_never_overlap_over_all_dispensaries(database: Database, make: Factory) -> None:
    here, there = await make.dispensary(time_zone="UTC"), await make.dispensary(time_zone="UTC")
    doctor = await make.account(doctor_of=(here, there))
    first = await make.schedule(doctor, here, {2: [(600, 720)]}, visit_minutes=60, horizon_days=0)
    second = await make.schedule(doctor, there, {2: [(630, 780)]}, visit_minutes=30, horizon_days=0)
    now = at("2026-03-03 00:00")

    await made(database, first, now=now)
    await made(database, second, now=now)
    await made(database, first, second, now=now)

    assert await read_on_clock(database, first, "UTC") == ["03-03 10:00", "03-03 11:00"]
    assert await read_on_clock(database, second, "UTC") == ["03-03 12:00", "03-03 12:30"]


async def test_who_does_not_work_there_any_more_gets_no_slots(database: Database, make: Factory) -> None:
    schedule = await schedule_in(make, "UTC", MORNING, visit_minutes=20)
    now = at("2026-03-03 00:00")
    await made(database, schedule, now=now)
    await database.fetch("DELETE FROM role_grant")

    assert await made(database, schedule, now=now) == Made(0, 6)


async def test_several_workers_at_once_make_each_slot_once(
    database_url: str, database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary(time_zone="UTC")
    for _ in range(12):
        await make.schedule(await make.account(doctor_of=(place,)), place, MORNING, visit_minutes=20)
    now = at("2026-03-03 00:00")

    async with Database(database_url, settings, role=WARD_ROLE) as other:
        done = await asyncio.gather(
            *(slots.make_all((database, other)[number % 2], now=now) for number in range(8))
        )

    assert sum(item.made for item in done) == await database.fetch_value("SELECT count(*) FROM slot")
    assert await slots.make_all(database, now=now) == Made(0, 0)
    assert await database.fetch_value("SELECT count(*) FROM slot") == 12 * 8 * 6


async def test_only_schedules_whose_day_has_changed_are_due(database: Database, make: Factory) -> None:
    east = await schedule_in(make, "Asia/Vladivostok", MORNING, visit_minutes=60)
    west = await schedule_in(make, "Europe/Kaliningrad", MORNING, visit_minutes=60)
    await slots.make_all(database, due=True, now=at("2026-03-03 12:00"))
    before = {row["id"]: row["made_on"] for row in await database.fetch("SELECT id, made_on FROM schedule")}

    # Midnight in Vladivostok is afternoon in Kaliningrad.
    done = await slots.make_all(database, due=True, now=at("2026-03-03 14:30"))

    after = {row["id"]: row["made_on"] for row in await database.fetch("SELECT id, made_on FROM schedule")}
    assert before == {east.id: date(2026, 3, 3), west.id: date(2026, 3, 3)}
    assert after == {east.id: date(2026, 3, 4), west.id: date(2026, 3, 3)}
    assert done == Made(2, 0)


async def test_withdrawn_slots_are_forgotten_unless_something_refers_to_them(
    database: Database, make: Factory
) -> None:
    schedule = await schedule_in(make, "UTC", MORNING, visit_minutes=60)
    kept, gone, fresh = [await make.slot(schedule) for _ in range(3)]
    patient = await make.patient(await make.dispensary())
    await make.keep(
        Appointment(
            patient_id=patient.id,
            slot_id=kept.id,
            doctor_id=kept.doctor_id,
            dispensary_id=kept.dispensary_id,
            starts_at=kept.starts_at,
            ends_at=kept.ends_at,
            status="CANCELLED",
            ended_at=datetime.now(UTC),
        )
    )
    await database.fetch(
        "UPDATE slot SET withdrawn_at = now() - CASE WHEN id = $1 THEN interval '1 hour' ELSE interval '2 days' END",
        fresh.id,
    )

    await slots.forget_withdrawn(database)

    assert [row["id"] for row in await database.fetch("SELECT id FROM slot ORDER BY id")] == [
        kept.id,
        fresh.id,
    ]
    assert gone.id not in (kept.id, fresh.id)
