"""The demonstration's outpatient clinic: believable weeks of a few doctors, with visits behind and ahead of today."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.facilities.tables import Dispensary
from ekoyka.outpatient import slots
from ekoyka.outpatient.tables import (
    Appointment,
    AppointmentStatus,
    ExtraHours,
    Notification,
    NotificationKind,
    Schedule,
    Slot,
    TimeOff,
    TimeOffKind,
    Timetable,
    WaitingEntry,
    WorkingHours,
)

_AHEAD_DAYS = 14
_BEHIND_DAYS = 2 * _AHEAD_DAYS
_MOST_AHEAD = 2
_REASONS = (
    "первичная консультация",
    "осмотр после выписки",
    "подбор лечения",
    "продление рецепта",
    "беседа с родственниками",
    None,
)
_WHY_CANCELLED = ("по просьбе пациента", "пациент заболел", "по семейным обстоятельствам")


@dataclass(frozen=True, slots=True)
class _Week:
    """How long a visit lasts, and the hours of each weekday (Monday is 1), as clocks show them."""

    visit_minutes: int
    hours: dict[int, tuple[str, ...]]


# Of the first doctors of a dispensary; the others work in the wards alone.
_WEEKS = (
    _Week(30, {**dict.fromkeys(range(1, 5), ("09:00-13:00", "14:00-16:00")), 5: ("09:00-12:00",)}),
    _Week(20, {2: ("12:00-19:00",), 4: ("12:00-19:00",), 6: ("10:00-14:00",)}),
    _Week(30, dict.fromkeys((1, 3, 5), ("08:30-14:00",))),
)
_ON_LEAVE = 2  # whose colleagues are proposed for the visits that the leave touches


@dataclass(slots=True)
class Clinic:
    """One dispensary's clinic on its way into the database."""

    session: AsyncSession
    chance: random.Random
    now: datetime
    place: Dispensary
    doctors: Sequence[int]
    patients: Sequence[int]
    in_ward: Callable[[int, datetime], bool]
    """Whether a patient lies in a ward at a moment."""
    schedules: list[Schedule] = field(default_factory=list)
    visits: list[Appointment] = field(default_factory=list)
    _taken: set[tuple[int, date]] = field(default_factory=set)
    _ahead: Counter[int] = field(default_factory=Counter)

    async def open(self, guest: tuple[int, int] | None = None) -> None:
        """The clinic is there; the guest, a patient and their account, has a visit ahead and is told of it."""
        for doctor_id, week in zip(self.doctors, _WEEKS, strict=False):
            await self._add(doctor_id, week)
        await self._add_hours()
        keys = [schedule.id for schedule in self.schedules]
        for ago in range(_BEHIND_DAYS, -1, -_AHEAD_DAYS):
            await slots.make(self.session, keys, now=self.now - timedelta(days=ago))
        columns = Slot.__table__.c  # type: ignore[attr-defined]
        made = select(Slot).where(columns.schedule_id.in_(keys)).order_by(columns.starts_at, columns.id)
        found = list(await self.session.scalars(made))
        if guest is not None:
            await self._invite(found, *guest)
        for slot in found:
            self._fill(slot)
        self.session.add_all(self.visits)
        await self.session.flush()
        await self._free(found)
        await self._go_on_leave()
        await slots.make(self.session, keys, now=self.now)
        self._wait()
        await self.session.flush()

    def _clock(self, day: date, at: str) -> datetime:
        return datetime.combine(day, time.fromisoformat(at), ZoneInfo(self.place.time_zone))

    @property
    def _today(self) -> date:
        return self.now.astimezone(ZoneInfo(self.place.time_zone)).date()

    async def _add(self, doctor_id: int, week: _Week) -> None:
        schedule = Schedule(
            doctor_id=doctor_id,
            dispensary_id=self.place.id,
            horizon_days=_AHEAD_DAYS,
            created_at=self.now - timedelta(days=90),
        )
        self.session.add(schedule)
        await self.session.flush()
        timetable = Timetable(
            schedule_id=schedule.id,
            dispensary_id=self.place.id,
            valid_from=self._today - timedelta(days=90),
            visit_minutes=week.visit_minutes,
        )
        self.session.add(timetable)
        await self.session.flush()
        self.session.add_all(
            WorkingHours(
                timetable_id=timetable.id,
                dispensary_id=self.place.id,
                weekday=weekday,
                starts_minute=_minute(interval[:5]),
                ends_minute=_minute(interval[6:]),
            )
            for weekday, intervals in week.hours.items()
            for interval in intervals
        )
        self.schedules.append(schedule)

    async def _add_hours(self) -> None:
        """Once, on a Sunday, there is more to do than in a week's hours."""
        schedule = self.schedules[0]
        sunday = self._today + timedelta(days=7 - self._today.weekday() + 6)
        self.session.add(
            ExtraHours(
                **_of(schedule),
                starts_at=self._clock(sunday, "10:00"),
                ends_at=self._clock(sunday, "12:00"),
                added_by_id=schedule.doctor_id,
                added_at=self.now - timedelta(days=1),
            )
        )
        await self.session.flush()

    async def _invite(self, found: list[Slot], guest: int, account_id: int) -> None:
        slot = next(
            slot
            for slot in found
            if slot.doctor_id == self.doctors[0] and slot.starts_at > self.now + timedelta(days=2)
        )
        found.remove(slot)
        visit = self._visit(slot, guest, self.now - timedelta(hours=10))
        visit.reason = "осмотр после выписки"
        visit.booked_by_id = account_id
        self.session.add(visit)
        await self.session.flush()
        self.session.add(
            Notification(
                account_id=account_id,
                dispensary_id=self.place.id,
                kind=NotificationKind.BOOKED,
                appointment_id=visit.id,
                occasion=visit.version,
                created_at=visit.booked_at,
            )
        )

    def _fill(self, slot: Slot) -> None:
        """Somebody has the slot, or had it; the nearer it is, the likelier."""
        days = (slot.starts_at - self.now).days
        if self.chance.random() > (0.8 if days < 0 else 0.75 - 0.05 * days):
            return
        day = slot.starts_at.date()
        for patient in self.chance.sample(self.patients, 5):
            if (
                (patient, day) not in self._taken
                and (days < 0 or self._ahead[patient] < _MOST_AHEAD)
                and not self.in_ward(patient, slot.starts_at)
            ):
                break
        else:
            return
        before = timedelta(days=self.chance.randint(1, 12), minutes=5 * self.chance.randrange(36))
        self.visits.append(self._visit(slot, patient, min(slot.starts_at, self.now) - before))
        self._settle(self.visits[-1])

    def _visit(self, slot: Slot, patient: int, booked_at: datetime) -> Appointment:
        self._taken.add((patient, slot.starts_at.date()))
        self._ahead[patient] += slot.starts_at > self.now
        return Appointment(
            slot_id=slot.id,
            doctor_id=slot.doctor_id,
            dispensary_id=slot.dispensary_id,
            patient_id=patient,
            starts_at=slot.starts_at,
            ends_at=slot.ends_at,
            reason=self.chance.choice(_REASONS),
            booked_at=booked_at,
            booked_by_id=slot.doctor_id,
            placed_at=booked_at,
        )

    def _settle(self, visit: Appointment) -> None:
        """What has become of the visit until now."""
        chance = self.chance.random()
        if chance < 0.08:
            visit.status = AppointmentStatus.CANCELLED
            visit.ended_at = visit.booked_at + (min(visit.starts_at, self.now) - visit.booked_at) / 2
            visit.cancellation_reason = self.chance.choice(_WHY_CANCELLED)
            visit.version += 1
        elif visit.ends_at < self.now:
            came = chance < 0.9
            visit.status = AppointmentStatus.FULFILLED if came else AppointmentStatus.NOSHOW
            visit.arrived_at = (
                visit.starts_at - timedelta(minutes=self.chance.randrange(15)) if came else None
            )
            visit.ended_at = visit.ends_at
            visit.version += 1 + came

    async def _free(self, found: Sequence[Slot]) -> None:
        """Slots of which a visit was cancelled are offered to those who wait."""
        freed = {visit.slot_id for visit in self.visits if visit.status == AppointmentStatus.CANCELLED}
        ahead = [slot.id for slot in found if slot.id in freed and slot.starts_at > self.now]
        await self.session.execute(
            update(Slot).where(Slot.id.in_(ahead)).values(freed_at=self.now)  # type: ignore[attr-defined]
        )

    async def _go_on_leave(self) -> None:
        """From the week after this one on, though some visits are booked already."""
        schedule = self.schedules[_ON_LEAVE]
        monday = self._today + timedelta(days=7 - self._today.weekday())
        self.session.add(
            TimeOff(
                **_of(schedule),
                kind=TimeOffKind.LEAVE,
                reason="отпуск",
                starts_at=self._clock(monday, "00:00"),
                ends_at=self._clock(monday + timedelta(days=7), "00:00"),
                added_by_id=schedule.doctor_id,
                added_at=self.now - timedelta(hours=2),
            )
        )
        await self.session.flush()

    def _wait(self) -> None:
        """Two patients wait: one for any doctor, one for one of them."""
        waiting = [patient for patient in self.patients if not self._ahead[patient]][:2]
        self.session.add_all(
            WaitingEntry(
                dispensary_id=self.place.id,
                doctor_id=doctor_id,
                patient_id=patient,
                joined_at=self.now - timedelta(days=days),
                joined_by_id=self.doctors[0],
            )
            for patient, doctor_id, days in zip(waiting, (None, self.doctors[1]), (3, 1), strict=False)
        )


def _minute(clock: str) -> int:
    return int(clock[:2]) * 60 + int(clock[3:])


def _of(schedule: Schedule) -> dict[str, int]:
    return {
        "schedule_id": schedule.id,
        "doctor_id": schedule.doctor_id,
        "dispensary_id": schedule.dispensary_id,
    }
