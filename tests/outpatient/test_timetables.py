"""Changing a doctor's rules: from today on, never the past, and the slots follow in the same transaction."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ekoyka.database import Database
from ekoyka.errors import Invalid, NotFound, Refusal, VersionConflict
from ekoyka.facilities.operations import Archived
from ekoyka.facilities.tables import Dispensary
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.stays import NotADoctorThere
from ekoyka.outpatient import leave, timetables
from ekoyka.outpatient.leave import ExtraHoursOverlap, IntervalOver
from ekoyka.outpatient.tables import TimeOffKind
from ekoyka.outpatient.timetables import Hours, HoursOverlap, TimetablesOverlap
from tests.factories import Factory
from tests.identity.transactions import answer, run
from tests.outpatient.clinic import clinic, noon

EVERY_DAY = [Hours(day, 600, 720) for day in range(1, 8)]
TODAY = datetime.now(UTC).date()


def days(count: int) -> date:
    return TODAY + timedelta(days=count)


async def place_and_doctor(make: Factory) -> tuple[Dispensary, Actor]:
    place = await make.dispensary(time_zone="UTC")
    return place, await make.actor(doctor_of=(place,))


def wish(place: Dispensary, doctor: Actor, **more: Any) -> dict[str, Any]:
    return {
        "actor": doctor,
        "doctor_id": doctor.account_id,
        "dispensary_id": place.id,
        "visit_minutes": 60,
        "hours": EVERY_DAY,
        "valid_from": days(1),
        **more,
    }


async def valid(database: Database) -> list[tuple[date, date | None, int]]:
    """From when until when which length of a visit is valid."""
    rows = await database.fetch(
        "SELECT valid_from, valid_until, visit_minutes FROM timetable ORDER BY valid_from"
    )
    return [(row["valid_from"], row["valid_until"], row["visit_minutes"]) for row in rows]


async def starts(database: Database, day: date) -> list[str]:
    """When slots begin on a day."""
    rows = await database.fetch(
        "SELECT to_char(starts_at AT TIME ZONE 'UTC', 'HH24:MI') AS start FROM slot WHERE withdrawn_at IS NULL "
        "AND CAST(starts_at AT TIME ZONE 'UTC' AS date) = $1 ORDER BY starts_at",
        day,
    )
    return [row["start"] for row in rows]


async def test_a_new_timetable_has_its_slots_at_once(database: Database, make: Factory) -> None:
    place, doctor = await place_and_doctor(make)

    await run(database, timetables.set_timetable, **wish(place, doctor))

    assert await starts(database, days(1)) == ["10:00", "11:00"]
    assert await database.fetch_value("SELECT count(*) FROM slot") == 14
    assert await valid(database) == [(days(1), None, 60)]


async def test_a_later_timetable_cuts_the_one_before_and_the_past_stays(
    database: Database, make: Factory
) -> None:
    place, doctor = await place_and_doctor(make)
    await run(database, timetables.set_timetable, **wish(place, doctor))

    await run(database, timetables.set_timetable, **wish(place, doctor, valid_from=days(3), visit_minutes=30))

    assert await valid(database) == [(days(1), days(2), 60), (days(3), None, 30)]
    assert await starts(database, days(2)) == ["10:00", "11:00"]
    assert await starts(database, days(3)) == ["10:00", "10:30", "11:00", "11:30"]


async def test_a_timetable_for_some_days_lets_the_usual_one_go_on_behind_it(
    database: Database, make: Factory
) -> None:
    place, doctor = await place_and_doctor(make)
    await run(database, timetables.set_timetable, **wish(place, doctor))

    some = wish(place, doctor, valid_from=days(3), valid_until=days(4), visit_minutes=120)
    await run(database, timetables.set_timetable, **some)
    await run(database, timetables.set_timetable, **{**some, "valid_from": days(4), "valid_until": days(5)})

    assert await valid(database) == [
        (days(1), days(2), 60),
        (days(3), days(3), 120),
        (days(4), days(5), 120),
        (days(6), None, 60),
    ]
    assert [await starts(database, days(number)) for number in (2, 5, 6)] == [
        ["10:00", "11:00"],
        ["10:00"],
        ["10:00", "11:00"],
    ]


async def test_a_timetable_under_way_is_changed_from_today_on(database: Database, make: Factory) -> None:
    place, doctor = await place_and_doctor(make)
    schedule = await make.schedule(
        doctor, place, {day: [(600, 720)] for day in range(1, 8)}, valid_from=date(2020, 1, 1)
    )
    old = await database.fetch_value("SELECT id FROM timetable")

    new = await run(
        database,
        timetables.update_timetable,
        actor=doctor,
        timetable_id=old,
        version=1,
        changes={"hours": [Hours(day, 900, 960) for day in range(1, 8)]},
    )

    assert new != old
    assert await valid(database) == [(date(2020, 1, 1), days(-1), 60), (days(0), None, 60)]
    assert await starts(database, days(1)) == ["15:00"]
    assert schedule.id


async def test_a_timetable_that_has_not_begun_is_edited_as_it_is_and_goes_without_a_trace(
    database: Database, make: Factory
) -> None:
    place, doctor = await place_and_doctor(make)
    key = await run(database, timetables.set_timetable, **wish(place, doctor))
    the_table: dict[str, Any] = {"actor": doctor, "timetable_id": key}

    same = await run(
        database,
        timetables.update_timetable,
        **the_table,
        version=1,
        changes={"visit_minutes": 40, "valid_until": days(2)},
    )
    edited = (await valid(database), await starts(database, days(1)), await starts(database, days(3)))
    await run(database, timetables.delete_timetable, **the_table, version=2)

    assert same == key
    assert edited == ([(days(1), days(2), 40)], ["10:00", "10:40", "11:20"], [])
    assert (await valid(database), await starts(database, days(1))) == ([], [])


async def test_a_timetable_under_way_that_is_deleted_was_valid_until_yesterday(
    database: Database, make: Factory
) -> None:
    place, doctor = await place_and_doctor(make)
    await make.schedule(doctor, place)
    key = await database.fetch_value("SELECT id FROM timetable")

    await run(database, timetables.delete_timetable, actor=doctor, timetable_id=key, version=1)

    assert await valid(database) == [(date(2020, 1, 1), days(-1), 60)]


async def test_the_horizon_is_followed_at_once_both_ways(database: Database, make: Factory) -> None:
    place, doctor = await place_and_doctor(make)
    await run(database, timetables.set_timetable, **wish(place, doctor))
    schedule = await database.fetch_value("SELECT id FROM schedule")
    counted = []

    for version, horizon in enumerate((30, 2), 1):
        await run(
            database,
            timetables.update_schedule,
            actor=doctor,
            schedule_id=schedule,
            version=version,
            horizon_days=horizon,
        )
        counted.append(await database.fetch_value("SELECT count(*) FROM slot WHERE withdrawn_at IS NULL"))

    assert counted == [60, 4]


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"visit_minutes": 4}, "visitMinutes"),
        ({"visit_minutes": 481}, "visitMinutes"),
        ({"visit_minutes": 121}, "hours"),
        ({"hours": [Hours(1, 720, 600)]}, "hours"),
        ({"hours": EVERY_DAY * 11}, "hours"),
        ({"valid_from": days(-2)}, "validFrom"),
        ({"valid_until": days(-1)}, "validUntil"),
    ],
)
async def test_rules_that_cannot_be_meant_are_refused_by_the_fields_name(
    database: Database, make: Factory, more: dict[str, Any], path: str
) -> None:
    place, doctor = await place_and_doctor(make)

    refused = await answer(database, timetables.set_timetable, **wish(place, doctor, **more))

    assert isinstance(refused, Invalid)
    assert refused.path == (path,)


async def test_each_other_refusal_of_a_rule_has_its_name(database: Database, make: Factory) -> None:
    (place, doctor), (other, _) = await place_and_doctor(make), await place_and_doctor(make)
    archived = await make.dispensary(archived_at=datetime.now(UTC))
    admin, nobody = await make.actor(superadmin=True), await make.actor()
    first = await run(database, timetables.set_timetable, **wish(place, doctor, valid_until=days(3)))
    await run(database, timetables.set_timetable, **wish(place, doctor, valid_from=days(5)))

    async def setting(**more: Any) -> Refusal:
        refused: Refusal = await answer(database, timetables.set_timetable, **{**wish(place, doctor), **more})
        return refused

    async def updating(version: int, **more: Any) -> Refusal:
        refused: Refusal = await answer(
            database,
            timetables.update_timetable,
            **{"actor": doctor, "timetable_id": first, "version": version, **more},
        )
        return refused

    overlapping = [Hours(1, 600, 720), Hours(1, 660, 780)]
    assert isinstance(await setting(hours=overlapping), HoursOverlap)
    assert isinstance(await setting(dispensary_id=other.id), NotFound)
    assert isinstance(await setting(actor=admin, dispensary_id=other.id), NotADoctorThere)
    assert isinstance(await setting(actor=admin, dispensary_id=archived.id), Archived)
    assert isinstance(await setting(actor=admin, dispensary_id=10**9), NotFound)
    assert isinstance(await setting(actor=nobody), NotFound)
    assert isinstance(await updating(7, changes={}), VersionConflict)
    assert isinstance(await updating(1, changes={"valid_until": days(5)}), TimetablesOverlap)
    assert isinstance(await updating(1, changes={"valid_until": days(-5)}), Invalid)
    assert isinstance(await updating(1, changes={"hours": overlapping}), HoursOverlap)
    assert isinstance(await updating(1, changes={}, actor=nobody), NotFound)


async def test_extra_hours_have_their_slots_at_once_and_lose_them_when_they_are_removed(
    database: Database, make: Factory
) -> None:
    here = await clinic(make, 0)
    hours: dict[str, Any] = {"actor": here.doctor, "schedule_id": here.schedule.id}

    none = await answer(database, leave.add_extra_hours, **hours, starts_at=noon(), ends_at=noon(60))
    row = await run(
        database, leave.add_extra_hours, **hours, starts_at=noon(), ends_at=noon(60), visit_minutes=30
    )
    made = await starts(database, noon().date())
    twice = await answer(
        database, leave.add_extra_hours, **hours, starts_at=noon(30), ends_at=noon(90), visit_minutes=30
    )
    await run(database, leave.remove_extra_hours, actor=here.doctor, extra_hours_id=row.id)

    assert isinstance(none, Invalid)
    assert made == ["12:00", "12:30"]
    assert isinstance(twice, ExtraHoursOverlap)
    assert await starts(database, noon().date()) == []


async def test_time_off_under_way_ends_now_and_what_is_over_stays(database: Database, make: Factory) -> None:
    here = await clinic(make, 0)
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    row = await run(
        database,
        leave.add_time_off,
        actor=here.doctor,
        schedule_id=here.schedule.id,
        kind=TimeOffKind.BREAK,
        reason="обед",
        starts_at=now - timedelta(hours=1),
        ends_at=now + timedelta(hours=1),
    )

    await run(database, leave.remove_time_off, actor=here.doctor, time_off_id=row.id)
    ends: datetime = await database.fetch_value("SELECT ends_at FROM time_off")
    await database.fetch("UPDATE time_off SET ends_at = ends_at - interval '10 minutes'")
    over = await answer(database, leave.remove_time_off, actor=here.doctor, time_off_id=row.id)

    assert timedelta(0) <= ends - now <= timedelta(minutes=2)
    assert isinstance(over, IntervalOver)


async def test_two_who_change_one_schedule_at_once_leave_one_valid_timetable_a_day(
    database: Database, make: Factory
) -> None:
    place, doctor = await place_and_doctor(make)

    ends = await asyncio.gather(
        *(
            answer(database, timetables.set_timetable, **wish(place, doctor, visit_minutes=minutes))
            for minutes in (20, 30, 40, 60)
        )
    )

    assert [end for end in ends if isinstance(end, Refusal)] == []
    assert len(await valid(database)) == 1
    assert await database.fetch_value("SELECT count(*) FROM schedule") == 1
