"""Schedules and their rules in the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.enums import TimeOffKind, Weekday
from ekoyka.api.outpatient import FROM, OF_DISPENSARY, OF_DOCTOR, STARTS_AT, UNTIL
from ekoyka.api.permissions import CLINICAL, clinicians_of
from ekoyka.graph import declare as graph
from ekoyka.outpatient.leave import is_affected, proposals

if TYPE_CHECKING:
    from ekoyka.api.facilities import Dispensary
    from ekoyka.api.identity import Practitioner
    from ekoyka.api.outpatient import Appointment, Slot
    from ekoyka.api.scalars import Date, DateTime, Time

_WEEKDAYS = "ARRAY[" + ", ".join(f"'{day}'" for day in Weekday) + "]"


def _clock(minutes: str) -> str:
    """SQL of a time of the day, given SQL of its minutes; the day ends at 24:00."""
    return f"to_char(make_interval(mins => {minutes}), 'HH24:MI')"


@graph.type_(table="working_hours", description="One interval of a weekday in which a doctor sees patients.")
class WorkingHours:
    """An interval."""

    weekday: Weekday = graph.expression(
        lambda row, names: f"({_WEEKDAYS})[{row}.weekday]", "On which day of the week."
    )
    starts_at: Time = graph.expression(
        lambda row, names: _clock(f"{row}.starts_minute"), "From when, on the dispensary's clocks."
    )
    ends_at: Time = graph.expression(
        lambda row, names: _clock(f"{row}.ends_minute"), "Until when; 24:00 is the end of the day."
    )


@graph.type_(
    table="timetable",
    node=True,
    scope=clinicians_of(),
    description="Weekly working hours and the length of a visit, from one day to another.",
    where={"dispensary_id": OF_DISPENSARY},
    orders={
        "valid_from": graph.Order(
            sql=lambda row: f"{row}.valid_from", pg="date", description="The first day of its validity."
        )
    },
    default_order=(("valid_from", "ASC"),),
)
class Timetable:
    """A timetable."""

    valid_from: Date = graph.column("The first day on which it is valid.")
    valid_until: Date | None = graph.column("The last day; null: until further notice.")
    visit_minutes: int = graph.column("How long a visit lasts, 5 to 480 minutes.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    hours: list[WorkingHours] = graph.listing(
        lambda row, child, names: f"{child}.timetable_id = {row}.id",
        "The working hours, from Monday on.",
        order=lambda row, child: f"{child}.weekday, {child}.starts_minute",
    )
    schedule: Schedule = graph.one("schedule_id", "Whose it is.", same_scope=True)


@graph.type_(
    table="appointment",
    description="An appointment that lies in its doctor's time off.",
    person=lambda row, names: f"{row}.patient_id",
    person_by="appointment",
)
class AffectedAppointment:
    """What somebody has to decide about."""

    appointment: Appointment = graph.one(
        lambda row, child, names: f"{child}.id = {row}.id",
        "The appointment, which stays until somebody decides.",
    )
    proposals: list[Slot] = graph.listing(
        lambda row, child, names: f"{child}.id IN (SELECT o.id FROM {proposals(row)} o)",
        "Up to three free slots of colleagues, the nearest first, in which the patient has nothing else.",
        order=lambda row, child: f"abs(extract(epoch FROM {child}.starts_at - {row}.starts_at)), {child}.id",
    )


@graph.type_(
    table="time_off",
    node=True,
    scope=clinicians_of(),
    description="When a doctor sees nobody in the dispensary, and why.",
    where={"from_": FROM, "until": UNTIL, "doctor_id": OF_DOCTOR, "dispensary_id": OF_DISPENSARY},
    orders={"starts_at": STARTS_AT},
    default_order=(("starts_at", "ASC"),),
)
class TimeOff:
    """Time off."""

    kind: TimeOffKind = graph.column("Leave, a break, or anything else.")
    reason: str = graph.column("Why, 1 to 1000 characters.")
    starts_at: DateTime = graph.column("From when.")
    ends_at: DateTime = graph.column("Until when.")
    added_at: DateTime = graph.column("When it was entered.")
    added_by: Practitioner | None = graph.one("added_by_id", "Who entered it.")
    schedule: Schedule = graph.one("schedule_id", "Whose it is.", same_scope=True)
    affected_appointments: list[AffectedAppointment] = graph.listing(
        lambda row, child, names: is_affected(child, row),
        "Appointments that lie in it and are to be moved or cancelled, earliest first.",
        order=lambda row, child: f"{child}.starts_at, {child}.id",
    )


@graph.type_(
    table="extra_hours",
    node=True,
    scope=clinicians_of(),
    description="Hours beside the week's, once.",
    where={"from_": FROM, "until": UNTIL, "doctor_id": OF_DOCTOR, "dispensary_id": OF_DISPENSARY},
    orders={"starts_at": STARTS_AT},
    default_order=(("starts_at", "ASC"),),
)
class ExtraHours:
    """Extra hours."""

    starts_at: DateTime = graph.column("From when.")
    ends_at: DateTime = graph.column("Until when.")
    visit_minutes: int | None = graph.column("How long a visit lasts; null: as on that day.")
    added_at: DateTime = graph.column("When they were entered.")
    added_by: Practitioner | None = graph.one("added_by_id", "Who entered them.")
    schedule: Schedule = graph.one("schedule_id", "Whose they are.", same_scope=True)


@graph.type_(
    table="schedule",
    node=True,
    scope=clinicians_of(),
    description="A doctor's visits in one dispensary (график приёма; FHIR Schedule).",
    where={"doctor_id": OF_DOCTOR, "dispensary_id": OF_DISPENSARY},
    orders={
        "created_at": graph.Order(
            sql=lambda row: f"{row}.created_at", pg="timestamptz", description="When it was made."
        )
    },
    default_order=(("created_at", "ASC"),),
)
class Schedule:
    """A schedule."""

    horizon_days: int = graph.column("Slots are made for today and so many days more, 0 to 366.")
    created_at: DateTime = graph.column("When it was made.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    doctor: Practitioner = graph.one("doctor_id", "Whose it is.")
    dispensary: Dispensary = graph.one("dispensary_id", "Where.", same_scope=True)
    timetables: list[Timetable] = graph.listing(
        lambda row, child, names: f"{child}.schedule_id = {row}.id",
        "The timetables, former ones too, in the order of their days.",
        order=lambda row, child: f"{child}.valid_from",
        same_scope=True,
    )
    time_off: graph.Connection[TimeOff] = graph.many("schedule_id", "Time off.", same_scope=True)
    extra_hours: graph.Connection[ExtraHours] = graph.many("schedule_id", "Extra hours.", same_scope=True)
    slots: graph.Connection[Slot] = graph.many(
        "schedule_id", "Its slots, in whatever status.", same_scope=True
    )


@graph.type_(
    description="What making a schedule's slots came to.",
    columns={"made": "int", "withdrawn": "int", "schedule_id": "bigint"},
)
class SlotsMade:
    """How many slots there are more and less."""

    made: int = graph.column("How many slots were made.")
    withdrawn: int = graph.column("How many free slots were withdrawn, since the rules no longer give them.")
    schedule: Schedule = graph.one("schedule_id", "The schedule.")


class Queries:
    """Root fields about schedules."""

    schedule: Schedule | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One schedule.",
        args={"id": graph.key("Schedule", "Its id.")},
        roles=CLINICAL,
    )
    schedules: graph.Connection[Schedule] = graph.many(
        lambda row, child, names: "true", "Doctors' schedules.", roles=CLINICAL
    )
    time_off: TimeOff | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One time off, with the appointments that it touches.",
        args={"id": graph.key("TimeOff", "Its id.")},
        roles=CLINICAL,
    )
