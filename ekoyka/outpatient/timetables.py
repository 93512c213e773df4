"""A doctor's rules: the weekly hours and the length of a visit, from a day on, and how far ahead slots are made.

Whatever changes them has the schedule alone, never touches the past, and makes the slots anew in the same
transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, Statement, constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, VersionConflict
from ekoyka.facilities.operations import Archived
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.stays import NotADoctorThere
from ekoyka.outpatient.refusals import CLINICIANS
from ekoyka.outpatient.slots import Made, make
from ekoyka.outpatient.tables import LONGEST_HORIZON, LONGEST_VISIT, SHORTEST_VISIT

MOST_INTERVALS = 70


@dataclass(frozen=True, slots=True)
class Hours:
    """One interval of a weekday (Monday is 1), in minutes from the local midnight."""

    weekday: int
    starts_minute: int
    ends_minute: int


class TimetablesOverlap(Conflict):
    """Another timetable of the schedule is valid on some of these days."""

    code = "TIMETABLES_OVERLAP"
    ru = "На часть этих дней уже действует другое расписание."
    en = "Another timetable is valid on some of these days."


class HoursOverlap(Conflict):
    """Two intervals of a day overlap."""

    code = "HOURS_OVERLAP"
    ru = "Часы приёма одного дня пересекаются."
    en = "Two intervals of a day overlap."


_ENSURE = Statement(
    """
    WITH place AS (
        SELECT d.id, d.archived_at IS NOT NULL AS archived, EXISTS (
            SELECT FROM role_grant g JOIN account x ON x.id = g.account_id
            WHERE g.account_id = :doctor AND g.role = 'DOCTOR' AND g.dispensary_id = d.id
        ) AS doctor_there
        FROM dispensary d WHERE d.id = :dispensary
    ), made AS (
        INSERT INTO schedule (doctor_id, dispensary_id, horizon_days, version)
        SELECT :doctor, id, 7, 1 FROM place WHERE doctor_there AND NOT archived
        ON CONFLICT DO NOTHING
    )
    SELECT * FROM place
    """
)
_KEY = Statement("SELECT id FROM schedule WHERE doctor_id = :doctor AND dispensary_id = :dispensary")
_LOCK = Statement(
    """
    WITH schedules AS MATERIALIZED (SELECT id FROM schedule WHERE id = :schedule FOR UPDATE)
    SELECT id FROM account WHERE id = :account AND (SELECT count(*) FROM schedules) >= 0 FOR KEY SHARE
    """
)
_SCHEDULE = Statement(
    """
    SELECT s.id, s.doctor_id, s.dispensary_id, s.version, d.time_zone, clock_timestamp() AS now,
        CAST(clock_timestamp() AT TIME ZONE d.time_zone AS date) AS today
    FROM schedule s JOIN dispensary d ON d.id = s.dispensary_id WHERE s.id = :schedule
    """
)


async def locked(session: AsyncSession, actor: Actor, schedule_id: int, *path: str) -> Row:
    """The schedule, which is the transaction's alone from now on. Raises `NotFound`."""
    found = await _SCHEDULE.rows(session, schedule=schedule_id)
    if not found or not actor.works_in(found[0].dispensary_id, CLINICIANS):
        raise NotFound(path)
    await _LOCK.rows(session, schedule=schedule_id, account=actor.account_id)
    return await _SCHEDULE.row(session, schedule=schedule_id)


async def schedule_of(session: AsyncSession, actor: Actor, *, doctor_id: int, dispensary_id: int) -> Row:
    """The doctor's schedule in the dispensary, locked; a new one where there was none.

    Raises `NotFound`, `Archived`, `NotADoctorThere`.
    """
    if not actor.works_in(dispensary_id, CLINICIANS):
        raise NotFound(("dispensaryId",))
    places = await _ENSURE.rows(session, doctor=doctor_id, dispensary=dispensary_id)
    if not places:
        raise NotFound(("dispensaryId",))
    if places[0].archived:
        raise Archived(("dispensaryId",))
    if not places[0].doctor_there:
        raise NotADoctorThere(("doctorId",))
    key = (await _KEY.row(session, doctor=doctor_id, dispensary=dispensary_id)).id
    return await locked(session, actor, key, "doctorId")


def record(
    session: AsyncSession, actor: Actor, action: str, object_type: str, key: int, schedule: Row
) -> None:
    """The change of a schedule's rules stands in the access log."""
    access_log.record(session, actor, action, object_type, key, dispensary_id=schedule.dispensary_id)


def _check(visit_minutes: int, hours: Sequence[Hours]) -> None:
    """Raises `Invalid` unless the length is one of a visit, and fits into each interval."""
    if not SHORTEST_VISIT <= visit_minutes <= LONGEST_VISIT:
        raise Invalid(
            ("visitMinutes",),
            ru=f"Приём длится от {SHORTEST_VISIT} до {LONGEST_VISIT} минут.",
            en=f"A visit lasts from {SHORTEST_VISIT} to {LONGEST_VISIT} minutes.",
        )
    if len(hours) > MOST_INTERVALS:
        raise Invalid(
            ("hours",),
            ru=f"Не больше {MOST_INTERVALS} интервалов в неделю.",
            en=f"At most {MOST_INTERVALS} intervals a week.",
        )
    for item in hours:
        if item.ends_minute - item.starts_minute < visit_minutes:
            raise Invalid(
                ("hours",),
                ru="Приём не помещается в один из интервалов.",
                en="A visit does not fit into one of the intervals.",
            )


# What lies within the new timetable's days is gone, what reaches into them is cut; what reaches over them is told,
# so that it can go on behind them.
_CUT = Statement(
    """
    WITH met AS MATERIALIZED (
        SELECT * FROM timetable
        WHERE schedule_id = :schedule
            AND daterange(valid_from, valid_until, '[]') && daterange(:since, CAST(:until AS date), '[]')
    ), gone AS (
        DELETE FROM timetable t USING met m
        WHERE t.id = m.id AND m.valid_from >= :since
            AND (CAST(:until AS date) IS NULL OR m.valid_until <= CAST(:until AS date))
    ), cut AS (
        UPDATE timetable t SET version = t.version + 1,
            valid_until = CASE WHEN m.valid_from < :since THEN :since - 1 ELSE m.valid_until END,
            valid_from = CASE WHEN m.valid_from < :since THEN m.valid_from ELSE CAST(:until AS date) + 1 END
        FROM met m
        WHERE t.id = m.id AND (m.valid_from < :since OR (
            CAST(:until AS date) IS NOT NULL AND coalesce(m.valid_until > CAST(:until AS date), true)
        ))
    )
    SELECT id, valid_until, visit_minutes FROM met
    WHERE valid_from < :since AND CAST(:until AS date) IS NOT NULL
        AND coalesce(valid_until > CAST(:until AS date), true)
    """
)
_ADD = Statement(
    """
    WITH added AS (
        INSERT INTO timetable (schedule_id, dispensary_id, valid_from, valid_until, visit_minutes, version)
        VALUES (:schedule, :dispensary, :since, CAST(:until AS date), :visit_minutes, 1)
        RETURNING id, dispensary_id
    ), hours AS (
        INSERT INTO working_hours (timetable_id, dispensary_id, weekday, starts_minute, ends_minute)
        SELECT added.id, added.dispensary_id, h.weekday, h.starts, h.ends
        FROM added, unnest(CAST(:weekdays AS int[]), CAST(:starts AS int[]), CAST(:ends AS int[]))
            AS h (weekday, starts, ends)
        UNION ALL
        SELECT added.id, added.dispensary_id, h.weekday, h.starts_minute, h.ends_minute
        FROM added, working_hours h WHERE h.timetable_id = CAST(:as_in AS bigint)
    )
    SELECT id FROM added
    """
)


def _columns(hours: Sequence[Hours]) -> dict[str, list[int]]:
    return {
        "weekdays": [item.weekday for item in hours],
        "starts": [item.starts_minute for item in hours],
        "ends": [item.ends_minute for item in hours],
    }


async def _add(
    session: AsyncSession,
    schedule: Row,
    since: date,
    until: date | None,
    visit_minutes: int,
    hours: Sequence[Hours],
    as_in: int | None = None,
) -> int:
    row = await _ADD.row(
        session,
        schedule=schedule.id,
        dispensary=schedule.dispensary_id,
        since=since,
        until=until,
        visit_minutes=visit_minutes,
        as_in=as_in,
        **_columns(hours),
    )
    key: int = row.id
    return key


async def _place(
    session: AsyncSession,
    schedule: Row,
    since: date,
    until: date | None,
    visit_minutes: int,
    hours: Sequence[Hours],
    as_in: int | None = None,
) -> int:
    """The timetable is valid on these days, and no other is: the others give way, and go on behind it."""
    over = await _CUT.rows(session, schedule=schedule.id, since=since, until=until)
    try:
        key = await _add(session, schedule, since, until, visit_minutes, hours, as_in)
    except REFUSED_BY_CONSTRAINT as error:
        if constraint_name(error) == "ex_working_hours_overlap":
            raise HoursOverlap(("hours",)) from error
        raise
    for other in over:  # one at most
        assert until is not None
        await _add(
            session, schedule, until + timedelta(days=1), other.valid_until, other.visit_minutes, (), other.id
        )
    return key


def _check_days(schedule: Row, since: date, until: date | None) -> None:
    if since < schedule.today:
        raise Invalid(
            ("validFrom",),
            ru="Расписание не меняет прошлого: начните его с сегодняшнего дня или позже.",
            en="A timetable does not rewrite the past: let it begin today or later.",
        )
    if until is not None and until < since:
        raise Invalid(
            ("validUntil",), ru="Последний день раньше первого.", en="The last day is before the first."
        )


async def set_timetable(
    session: AsyncSession,
    *,
    actor: Actor,
    doctor_id: int,
    dispensary_id: int,
    visit_minutes: int,
    hours: Sequence[Hours],
    valid_from: date | None = None,
    valid_until: date | None = None,
) -> int:
    """The doctor works there by these hours, from the day on (by default today) and until the other one, if any.

    Raises `NotFound`, `Archived`, `NotADoctorThere`, `HoursOverlap`, `Invalid`.
    """
    _check(visit_minutes, hours)
    schedule = await schedule_of(session, actor, doctor_id=doctor_id, dispensary_id=dispensary_id)
    since = valid_from or schedule.today
    _check_days(schedule, since, valid_until)
    key = await _place(session, schedule, since, valid_until, visit_minutes, hours)
    record(session, actor, "timetable_set", "Timetable", key, schedule)
    await make(session, [schedule.id])
    return key


_TIMETABLE = Statement("SELECT * FROM timetable WHERE id = :id")
_HOURS = Statement(
    "SELECT weekday, starts_minute, ends_minute FROM working_hours WHERE timetable_id = :id ORDER BY id"
)
_EDIT = Statement(
    """
    WITH gone AS (
        DELETE FROM working_hours WHERE timetable_id = :id RETURNING id
    ), edited AS (
        UPDATE timetable SET valid_until = CAST(:until AS date), visit_minutes = :visit_minutes, version = version + 1
        WHERE id = :id RETURNING id, dispensary_id
    )
    INSERT INTO working_hours (timetable_id, dispensary_id, weekday, starts_minute, ends_minute)
    SELECT edited.id, edited.dispensary_id, h.weekday, h.starts, h.ends
    FROM edited, unnest(CAST(:weekdays AS int[]), CAST(:starts AS int[]), CAST(:ends AS int[]))
        AS h (weekday, starts, ends)
    WHERE (SELECT count(*) FROM gone) >= 0
    """
)
_UNTIL = Statement("UPDATE timetable SET valid_until = :until, version = version + 1 WHERE id = :id")


async def _found(session: AsyncSession, actor: Actor, timetable_id: int, version: int) -> tuple[Row, Row]:
    """The timetable and its schedule, locked. Raises `NotFound`, `VersionConflict`."""
    found = await _TIMETABLE.rows(session, id=timetable_id)
    if not found:
        raise NotFound(("id",))
    schedule = await locked(session, actor, found[0].schedule_id, "id")
    found = await _TIMETABLE.rows(session, id=timetable_id)
    if not found:
        raise NotFound(("id",))
    if found[0].version != version:
        raise VersionConflict(
            ("version",),
            object_type="Timetable",
            object_id=timetable_id,
            current_version=found[0].version,
        )
    return found[0], schedule


async def update_timetable(
    session: AsyncSession, *, actor: Actor, timetable_id: int, version: int, changes: dict[str, Any]
) -> int:
    """The timetable is as changed from today on: one that began earlier ends yesterday, and another goes on.

    The key of the one that is valid. ``changes``: valid_until, visit_minutes, hours. Raises `NotFound`,
    `VersionConflict`, `TimetablesOverlap`, `HoursOverlap`, `Invalid`.
    """
    table, schedule = await _found(session, actor, timetable_id, version)
    until = changes.get("valid_until", table.valid_until)
    visit_minutes = changes.get("visit_minutes", table.visit_minutes)
    hours: list[Hours] | None = changes.get("hours")
    if hours is None:
        hours = [Hours(*row) for row in await _HOURS.rows(session, id=timetable_id)]
    _check(visit_minutes, hours)
    if until is not None and until < max(table.valid_from, schedule.today - timedelta(days=1)):
        raise Invalid(
            ("validUntil",),
            ru="Расписание не меняет прошлого: последний день — вчера или позже.",
            en="A timetable does not rewrite the past: its last day is yesterday or later.",
        )
    yesterday = schedule.today - timedelta(days=1)
    goes_on = until is None or until > yesterday
    anew = bool(changes.keys() & {"visit_minutes", "hours"})
    key = timetable_id
    try:
        if anew and goes_on and table.valid_from <= yesterday:
            await _UNTIL.rows(session, id=timetable_id, until=yesterday)
            key = await _add(session, schedule, schedule.today, until, visit_minutes, hours)
        elif anew and goes_on:
            await _EDIT.rows(
                session, id=timetable_id, until=until, visit_minutes=visit_minutes, **_columns(hours)
            )
        else:
            await _UNTIL.rows(session, id=timetable_id, until=until)
    except REFUSED_BY_CONSTRAINT as error:
        match constraint_name(error):
            case "ex_timetable_validity":
                raise TimetablesOverlap(("validUntil",)) from error
            case "ex_working_hours_overlap":
                raise HoursOverlap(("hours",)) from error
            case _:
                raise
    record(session, actor, "timetable_update", "Timetable", key, schedule)
    await make(session, [schedule.id])
    return key


_END = Statement(
    """
    WITH gone AS (
        DELETE FROM timetable WHERE id = :id AND valid_from >= :today
    )
    UPDATE timetable SET valid_until = :today - 1, version = version + 1
    WHERE id = :id AND valid_from < :today AND coalesce(valid_until >= :today, true)
    """
)


async def delete_timetable(session: AsyncSession, *, actor: Actor, timetable_id: int, version: int) -> int:
    """The timetable is not valid from today on; one that had not begun is gone. The schedule's key.

    Raises `NotFound`, `VersionConflict`.
    """
    _, schedule = await _found(session, actor, timetable_id, version)
    await _END.rows(session, id=timetable_id, today=schedule.today)
    record(session, actor, "timetable_delete", "Timetable", timetable_id, schedule)
    await make(session, [schedule.id])
    key: int = schedule.id
    return key


_HORIZON = Statement(
    "UPDATE schedule SET horizon_days = :days, version = version + 1 WHERE id = :schedule RETURNING id"
)


async def update_schedule(
    session: AsyncSession, *, actor: Actor, schedule_id: int, version: int, horizon_days: int
) -> int:
    """Slots are made for so many days ahead, beside today. Raises `NotFound`, `VersionConflict`, `Invalid`."""
    if not 0 <= horizon_days <= LONGEST_HORIZON:
        raise Invalid(
            ("horizonDays",),
            ru=f"От 0 до {LONGEST_HORIZON} дней.",
            en=f"From 0 to {LONGEST_HORIZON} days.",
        )
    schedule = await locked(session, actor, schedule_id, "id")
    if schedule.version != version:
        raise VersionConflict(
            ("version",), object_type="Schedule", object_id=schedule_id, current_version=schedule.version
        )
    await _HORIZON.rows(session, schedule=schedule_id, days=horizon_days)
    record(session, actor, "schedule_update", "Schedule", schedule_id, schedule)
    await make(session, [schedule_id])
    return schedule_id


async def generate(session: AsyncSession, *, actor: Actor, schedule_id: int) -> Made:
    """The schedule's slots are what its rules give, now. Raises `NotFound`."""
    await locked(session, actor, schedule_id, "scheduleId")
    return await make(session, [schedule_id])
