"""Time off and extra hours; and the appointments that a leave touches, which stay until somebody decides."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, Statement, constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound
from ekoyka.identity.actors import Actor
from ekoyka.outpatient.appointments import move_all
from ekoyka.outpatient.facts import Policy, lock
from ekoyka.outpatient.notifications import notification_event
from ekoyka.outpatient.queries import PERSON, is_free, nearest_slots
from ekoyka.outpatient.refusals import CLINICIANS
from ekoyka.outpatient.slots import make
from ekoyka.outpatient.tables import (
    LIVE,
    LONGEST_VISIT,
    SHORTEST_VISIT,
    ExtraHours,
    NotificationKind,
    TimeOff,
    TimeOffDetails,
    TimeOffKind,
)
from ekoyka.outpatient.timetables import locked, record
from ekoyka.validation import validated

LONGEST_DAYS = 366
MOST_MOVED = 200


class ExtraHoursOverlap(Conflict):
    """The doctor has other extra hours at that time."""

    code = "EXTRA_HOURS_OVERLAP"
    ru = "На это время у врача уже есть дополнительные часы."
    en = "The doctor has other extra hours at that time."


class IntervalOver(Conflict):
    """It is over, and the past stays as it was."""

    code = "INTERVAL_OVER"
    ru = "Это уже прошло, и прошлое не меняется."
    en = "It is over, and the past stays as it was."


def is_affected(appointment: str, time_off: str) -> str:
    """SQL of whether an appointment row waits for a decision, as a time-off row lies over it."""
    return (
        f"{appointment}.doctor_id = {time_off}.doctor_id AND {appointment}.dispensary_id = {time_off}.dispensary_id "
        f"AND {appointment}.status = 'BOOKED' AND {appointment}.starts_at > now() "
        f"AND {appointment}.starts_at < {time_off}.ends_at AND {appointment}.ends_at > {time_off}.starts_at"
    )


def proposals(appointment: str, *, but: str | None = None, count: int = 3) -> str:
    """A SELECT of colleagues' free slots (id, distance) nearest to an appointment row, in which its patient has no
    other appointment; without those of an array ``but``."""

    def fits(slot: str) -> str:
        besides = f" AND {slot}.id <> ALL ({but})" if but else ""
        return (
            f"{slot}.doctor_id <> {appointment}.doctor_id{besides} AND NOT EXISTS (SELECT FROM appointment n "
            f"WHERE n.patient_id = {appointment}.patient_id AND n.id <> {appointment}.id AND {LIVE.format(row='n.')} "
            f"AND n.starts_at < {slot}.ends_at AND n.ends_at > {slot}.starts_at)"
        )

    near = nearest_slots(
        dispensary=f"{appointment}.dispensary_id", at=f"{appointment}.starts_at", where=fits, count=count
    )
    return f"(SELECT n.id, n.distance FROM ({near}) n ORDER BY n.distance, n.id LIMIT {count})"


def _check(starts_at: datetime, ends_at: datetime) -> None:
    """Raises `Invalid` unless it is an interval of whole minutes, no longer than a year."""
    for name, value in (("startsAt", starts_at), ("endsAt", ends_at)):
        if value.second or value.microsecond:
            raise Invalid((name,), ru="Укажите время с точностью до минуты.", en="Give whole minutes.")
    if ends_at <= starts_at:
        raise Invalid(("endsAt",), ru="Конец раньше начала.", en="It ends before it begins.")
    if (ends_at - starts_at).days > LONGEST_DAYS:
        raise Invalid(
            ("endsAt",), ru=f"Не дольше {LONGEST_DAYS} дней.", en=f"No longer than {LONGEST_DAYS} days."
        )


_TELL = feed.Publication(
    f"""
    WITH told AS (
        INSERT INTO notification (account_id, dispensary_id, kind, appointment_id, occasion)
        SELECT p.account_id, a.dispensary_id, '{NotificationKind.LEAVE}', a.id, o.id
        FROM time_off o JOIN appointment a ON {is_affected("a", "o")} JOIN patient p ON p.id = a.patient_id
        WHERE o.id = :id AND p.account_id IS NOT NULL ORDER BY p.account_id, a.id
        ON CONFLICT DO NOTHING RETURNING id, account_id, appointment_id
    ), event AS (
        {notification_event("told")}
        UNION ALL
        SELECT '{PERSON}:' || account_id, 1, jsonb_build_object('appointment', appointment_id, 'change', 'LEAVE')
        FROM told
    ), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM told) AS told, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def add_time_off(
    session: AsyncSession,
    *,
    actor: Actor,
    schedule_id: int,
    kind: TimeOffKind,
    reason: str,
    starts_at: datetime,
    ends_at: datetime,
) -> TimeOff:
    """The doctor sees nobody then. Free slots are withdrawn; booked ones stay, and their patients are told.

    Raises `NotFound`, `IntervalOver`, `Invalid`.
    """
    _check(starts_at, ends_at)
    details = validated(TimeOffDetails, {"reason": reason})
    schedule = await locked(session, actor, schedule_id, "scheduleId")
    if ends_at <= schedule.now:
        raise IntervalOver(("endsAt",))
    row = TimeOff(
        **_of(schedule, actor),
        **details.model_dump(),
        kind=kind.value,
        starts_at=starts_at,
        ends_at=ends_at,
    )
    session.add(row)
    await session.flush()
    record(session, actor, "time_off_add", "TimeOff", row.id, schedule)
    await make(session, [schedule.id])
    await _TELL.rows(session, id=row.id)
    return row


def _of(schedule: Row, actor: Actor) -> dict[str, Any]:
    return {
        "schedule_id": schedule.id,
        "doctor_id": schedule.doctor_id,
        "dispensary_id": schedule.dispensary_id,
        "added_by_id": actor.account_id,
    }


_TIMETABLE_ON = Statement(
    "SELECT id FROM timetable WHERE schedule_id = :schedule AND daterange(valid_from, valid_until, '[]') "
    "@> CAST(CAST(:at AS timestamptz) AT TIME ZONE :zone AS date)"
)


async def add_extra_hours(
    session: AsyncSession,
    *,
    actor: Actor,
    schedule_id: int,
    starts_at: datetime,
    ends_at: datetime,
    visit_minutes: int | None = None,
) -> ExtraHours:
    """The doctor sees patients then, too; visits last as on that day, unless it is said how long.

    Raises `NotFound`, `IntervalOver`, `ExtraHoursOverlap`, `Invalid`.
    """
    _check(starts_at, ends_at)
    if visit_minutes is not None and not SHORTEST_VISIT <= visit_minutes <= LONGEST_VISIT:
        raise Invalid(
            ("visitMinutes",),
            ru=f"Приём длится от {SHORTEST_VISIT} до {LONGEST_VISIT} минут.",
            en=f"A visit lasts from {SHORTEST_VISIT} to {LONGEST_VISIT} minutes.",
        )
    schedule = await locked(session, actor, schedule_id, "scheduleId")
    if ends_at <= schedule.now:
        raise IntervalOver(("endsAt",))
    if visit_minutes is None and not await _TIMETABLE_ON.rows(
        session, schedule=schedule.id, at=starts_at, zone=schedule.time_zone
    ):
        raise Invalid(
            ("visitMinutes",),
            ru="На этот день расписания нет: укажите, сколько длится приём.",
            en="No timetable is valid on that day: say how long a visit lasts.",
        )
    row = ExtraHours(
        **_of(schedule, actor), starts_at=starts_at, ends_at=ends_at, visit_minutes=visit_minutes
    )
    session.add(row)
    try:
        await session.flush()
    except REFUSED_BY_CONSTRAINT as error:
        if constraint_name(error) == "ex_extra_hours_overlap":
            raise ExtraHoursOverlap(("startsAt",)) from error
        raise
    record(session, actor, "extra_hours_add", "ExtraHours", row.id, schedule)
    await make(session, [schedule.id])
    return row


async def _remove(
    session: AsyncSession, actor: Actor, table: type[TimeOff] | type[ExtraHours], key: int
) -> int:
    row: TimeOff | ExtraHours | None = await session.get(table, key)
    if row is None:
        raise NotFound(("id",))
    schedule = await locked(session, actor, row.schedule_id, "id")
    row = await session.get(table, key, populate_existing=True)
    if row is None:
        raise NotFound(("id",))
    if row.ends_at <= schedule.now:
        raise IntervalOver(("id",))
    if row.starts_at < schedule.now:
        # The minute under way is of the past, too.
        begun = (schedule.now - row.starts_at).total_seconds()
        row.ends_at = min(row.ends_at, row.starts_at + timedelta(minutes=-(-begun // 60)))
    else:
        await session.delete(row)
    await session.flush()
    action = "time_off_remove" if table is TimeOff else "extra_hours_remove"
    record(session, actor, action, table.__name__, key, schedule)
    await make(session, [schedule.id])
    scheduled: int = schedule.id
    return scheduled


async def remove_time_off(session: AsyncSession, *, actor: Actor, time_off_id: int) -> int:
    """The doctor sees patients again; time off under way ends now. The schedule's key.

    Raises `NotFound`, `IntervalOver`.
    """
    return await _remove(session, actor, TimeOff, time_off_id)


async def remove_extra_hours(session: AsyncSession, *, actor: Actor, extra_hours_id: int) -> int:
    """The hours are none any more; those under way end now. The schedule's key. Raises `NotFound`, `IntervalOver`."""
    return await _remove(session, actor, ExtraHours, extra_hours_id)


# One after the other, each the nearest slot that is left: nobody is given another's.
_CHOOSE = Statement(
    f"""
    WITH RECURSIVE affected AS MATERIALIZED (
        SELECT a.*, row_number() OVER (ORDER BY a.starts_at, a.id) AS place
        FROM time_off o JOIN appointment a ON {is_affected("a", "o")} WHERE o.id = :id
        ORDER BY a.starts_at, a.id LIMIT {MOST_MOVED}
    ), chosen AS (
        SELECT CAST(0 AS bigint) AS place, CAST(NULL AS bigint) AS appointment_id, CAST(NULL AS bigint) AS slot_id,
            CAST('{{}}' AS bigint[]) AS used
        UNION ALL
        SELECT a.place, a.id, s.id, c.used || s.id
        FROM chosen c JOIN affected a ON a.place = c.place + 1
        LEFT JOIN LATERAL {proposals("a", but="array_remove(c.used, NULL)", count=1)} s ON true
    )
    SELECT appointment_id, slot_id FROM chosen WHERE slot_id IS NOT NULL
    """
)


async def move_affected(
    session: AsyncSession,
    *,
    actor: Actor,
    time_off_id: int,
    policy: Policy,
    pairs: dict[int, int] | None = None,
) -> list[int]:
    """The appointments that the time off touches are in colleagues' slots: in those given by appointment, or each in
    the nearest. Which were moved; the others stay until somebody decides. Raises `NotFound`.
    """
    time_off = await session.get(TimeOff, time_off_id)
    if time_off is None or not actor.works_in(time_off.dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    if pairs is None:
        pairs = {row.appointment_id: row.slot_id for row in await _CHOOSE.rows(session, id=time_off_id)}
    await lock(session, actor, slots=list(pairs.values()), appointments=list(pairs))
    meant = await _MEANT.rows(session, id=time_off_id, appointments=list(pairs), slots=list(pairs.values()))
    if not meant:
        return []
    return await move_all(
        session, actor=actor, pairs={row.appointment_id: row.slot_id for row in meant}, policy=policy
    )


# Of the pairs that were asked for, those of this time off, in slots of this dispensary; behind the locks.
_MEANT = Statement(
    f"""
    SELECT x.appointment_id, x.slot_id
    FROM unnest(CAST(:appointments AS bigint[]), CAST(:slots AS bigint[])) AS x (appointment_id, slot_id)
    JOIN time_off o ON o.id = :id JOIN appointment a ON a.id = x.appointment_id AND {is_affected("a", "o")}
    JOIN slot s ON s.id = x.slot_id AND s.dispensary_id = o.dispensary_id AND {is_free("s")}
    """
)
