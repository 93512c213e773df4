"""Changing schedules: timetables, time off, extra hours, and making slots on demand."""

from __future__ import annotations

from typing import Any

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run
from ekoyka.api.enums import TimeOffKind, Weekday
from ekoyka.api.mutations import KEY_TEXT, VERSION_TEXT, Made, given, key, mutation
from ekoyka.api.permissions import CLINICAL
from ekoyka.api.scalars import Date, DateTime, Time
from ekoyka.facilities.operations import Archived
from ekoyka.inpatient.stays import NotADoctorThere
from ekoyka.outpatient import leave, timetables
from ekoyka.outpatient.facts import Policy
from ekoyka.outpatient.leave import ExtraHoursOverlap, IntervalOver
from ekoyka.outpatient.timetables import Hours, HoursOverlap, TimetablesOverlap

field = strawberry.field
_DAYS = list(Weekday)


@strawberry.input(description="One interval of a weekday, on the dispensary's clocks.")
class WorkingHoursInput:
    weekday: Weekday = field(description="On which day of the week.")
    starts_at: Time = field(description="From when.")
    ends_at: Time = field(description="Until when; 24:00 is the end of the day.")


def _hours(items: list[WorkingHoursInput]) -> list[Hours]:
    return [Hours(_DAYS.index(item.weekday) + 1, int(item.starts_at), int(item.ends_at)) for item in items]


@strawberry.input(description="The weekly hours of a doctor in a dispensary, from a day on.")
class TimetableSetInput:
    doctor_id: strawberry.ID = field(description="Whose, by their account's id.")
    dispensary_id: strawberry.ID = field(description="Where.")
    visit_minutes: int = field(
        description="How long a visit lasts, 5 to 480 minutes; it must fit into each interval."
    )
    hours: list[WorkingHoursInput] = field(
        description="The working hours: several intervals a day or none, at most 70 a week."
    )
    valid_from: Date | None = field(
        description="The first day, today or later; null: today. What was valid then ends the day before.",
        default=None,
    )
    valid_until: Date | None = field(
        description="The last day; what was valid before goes on behind it. Null: until further notice.",
        default=None,
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "timetableSet",
    returns="Timetable",
    roles=CLINICAL,
    refusals=(NotADoctorThere, Archived, HoursOverlap),
    description="A doctor works by these hours from a day on; the slots follow at once, what is booked stays.",
)
async def timetable_set(run: Run, session: AsyncSession, input: TimetableSetInput) -> int:
    return await timetables.set_timetable(
        session,
        actor=run.known_actor,
        doctor_id=key("Account", input.doctor_id, "doctorId"),
        dispensary_id=key("Dispensary", input.dispensary_id, "dispensaryId"),
        visit_minutes=input.visit_minutes,
        hours=_hours(input.hours),
        valid_from=input.valid_from,
        valid_until=input.valid_until,
    )


@strawberry.input(description="Changes of a timetable; what is not given stays.")
class TimetableUpdateInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    visit_minutes: int | None = field(description="How long a visit lasts.", default=UNSET)
    hours: list[WorkingHoursInput] | None = field(description="The working hours.", default=UNSET)
    valid_until: Date | None = field(description="The last day; null: until further notice.", default=UNSET)


@mutation(
    "timetableUpdate",
    returns="Timetable",
    roles=CLINICAL,
    refusals=(TimetablesOverlap, HoursOverlap),
    description="A timetable changes from today on. One that began earlier ends yesterday, and another goes on.",
)
async def timetable_update(run: Run, session: AsyncSession, input: TimetableUpdateInput) -> int:
    changes: dict[str, Any] = {
        name: value for name, value in given(input).items() if value is not None or name == "valid_until"
    }
    if "hours" in changes:
        changes["hours"] = _hours(changes["hours"])
    return await timetables.update_timetable(
        session,
        actor=run.known_actor,
        timetable_id=key("Timetable", input.id, "id"),
        version=input.version,
        changes=changes,
    )


@strawberry.input(description="A timetable that is not to be valid any more.")
class TimetableDeleteInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)


@mutation(
    "timetableDelete",
    returns="Schedule",
    roles=CLINICAL,
    description="A timetable is not valid from today on; one that has not begun is gone.",
)
async def timetable_delete(run: Run, session: AsyncSession, input: TimetableDeleteInput) -> int:
    return await timetables.delete_timetable(
        session,
        actor=run.known_actor,
        timetable_id=key("Timetable", input.id, "id"),
        version=input.version,
    )


@strawberry.input(description="Changes of a schedule.")
class ScheduleUpdateInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    horizon_days: int = field(description="Slots are made for today and so many days more, 0 to 366.")


@mutation(
    "scheduleUpdate",
    returns="Schedule",
    roles=CLINICAL,
    description="A doctor's slots are made so many days ahead.",
)
async def schedule_update(run: Run, session: AsyncSession, input: ScheduleUpdateInput) -> int:
    return await timetables.update_schedule(
        session,
        actor=run.known_actor,
        schedule_id=key("Schedule", input.id, "id"),
        version=input.version,
        horizon_days=input.horizon_days,
    )


@strawberry.input(description="Whose slots are to be made.")
class SlotsGenerateInput:
    schedule_id: strawberry.ID = field(description="Of which schedule.")


@mutation(
    "slotsGenerate",
    returns="SlotsMade",
    roles=CLINICAL,
    description="A schedule's slots are made of its rules now; the worker does it by itself, too.",
)
async def slots_generate(run: Run, session: AsyncSession, input: SlotsGenerateInput) -> Made:
    schedule = key("Schedule", input.schedule_id, "scheduleId")
    done = await timetables.generate(session, actor=run.known_actor, schedule_id=schedule)
    return {"made": done.made, "withdrawn": done.withdrawn, "schedule_id": schedule}


@strawberry.input(description="When a doctor sees nobody.")
class TimeOffAddInput:
    schedule_id: strawberry.ID = field(description="Of which schedule.")
    kind: TimeOffKind = field(description="Leave, a break, or anything else.")
    reason: str = field(description="Why, 1 to 1000 characters.")
    starts_at: DateTime = field(description="From when, a whole minute.")
    ends_at: DateTime = field(description="Until when, a whole minute; at most 366 days later.")
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "timeOffAdd",
    returns="TimeOff",
    roles=CLINICAL,
    refusals=(IntervalOver,),
    description="A doctor sees nobody then. Free slots are withdrawn; appointments stay until somebody decides, their "
    "patients are told, and `affectedAppointments` proposes colleagues' slots.",
)
async def time_off_add(run: Run, session: AsyncSession, input: TimeOffAddInput) -> int:
    row = await leave.add_time_off(
        session,
        actor=run.known_actor,
        schedule_id=key("Schedule", input.schedule_id, "scheduleId"),
        kind=TimeOffKind(input.kind),
        reason=input.reason,
        starts_at=input.starts_at,
        ends_at=input.ends_at,
    )
    return row.id


@strawberry.input(description="Time off that is none any more.")
class TimeOffRemoveInput:
    id: strawberry.ID = field(description="Which.")


@mutation(
    "timeOffRemove",
    returns="Schedule",
    roles=CLINICAL,
    refusals=(IntervalOver,),
    description="A doctor sees patients again; time off under way ends now.",
)
async def time_off_remove(run: Run, session: AsyncSession, input: TimeOffRemoveInput) -> int:
    return await leave.remove_time_off(
        session, actor=run.known_actor, time_off_id=key("TimeOff", input.id, "id")
    )


@strawberry.input(description="One appointment and the slot that it is to have.")
class AppointmentPlacementInput:
    appointment_id: strawberry.ID = field(description="Which appointment.")
    slot_id: strawberry.ID = field(description="A free slot of the same dispensary.")


@strawberry.input(description="What becomes of the appointments that lie in a doctor's time off.")
class TimeOffMoveAppointmentsInput:
    id: strawberry.ID = field(description="Which time off.")
    placements: list[AppointmentPlacementInput] | None = field(
        description="Who goes where; null: each to the nearest free slot of a colleague.", default=None
    )


@mutation(
    "timeOffMoveAppointments",
    returns="TimeOff",
    roles=CLINICAL,
    description="The appointments in a doctor's time off are moved in one step, and their patients told. Those for "
    "which there is no slot (any more) stay among `affectedAppointments`.",
)
async def time_off_move_appointments(
    run: Run, session: AsyncSession, input: TimeOffMoveAppointmentsInput
) -> int:
    time_off = key("TimeOff", input.id, "id")
    pairs = None
    if input.placements is not None:
        pairs = {
            key("Appointment", item.appointment_id, "placements"): key("Slot", item.slot_id, "placements")
            for item in input.placements
        }
    await leave.move_affected(
        session,
        actor=run.known_actor,
        time_off_id=time_off,
        policy=Policy.of(run.services.settings),
        pairs=pairs,
    )
    return time_off


@strawberry.input(description="Hours beside the week's, once.")
class ExtraHoursAddInput:
    schedule_id: strawberry.ID = field(description="Of which schedule.")
    starts_at: DateTime = field(description="From when, a whole minute.")
    ends_at: DateTime = field(description="Until when, a whole minute.")
    visit_minutes: int | None = field(
        description="How long a visit lasts, 5 to 480 minutes; null: as the timetable of that day has it.",
        default=None,
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "extraHoursAdd",
    returns="ExtraHours",
    roles=CLINICAL,
    refusals=(ExtraHoursOverlap, IntervalOver),
    description="A doctor sees patients then, too; the slots are there at once.",
)
async def extra_hours_add(run: Run, session: AsyncSession, input: ExtraHoursAddInput) -> int:
    row = await leave.add_extra_hours(
        session,
        actor=run.known_actor,
        schedule_id=key("Schedule", input.schedule_id, "scheduleId"),
        starts_at=input.starts_at,
        ends_at=input.ends_at,
        visit_minutes=input.visit_minutes,
    )
    return row.id


@strawberry.input(description="Extra hours that are none any more.")
class ExtraHoursRemoveInput:
    id: strawberry.ID = field(description="Which.")


@mutation(
    "extraHoursRemove",
    returns="Schedule",
    roles=CLINICAL,
    refusals=(IntervalOver,),
    description="Extra hours are none any more; those under way end now. What is booked stays.",
)
async def extra_hours_remove(run: Run, session: AsyncSession, input: ExtraHoursRemoveInput) -> int:
    return await leave.remove_extra_hours(
        session, actor=run.known_actor, extra_hours_id=key("ExtraHours", input.id, "id")
    )
