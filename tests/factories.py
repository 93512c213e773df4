"""Rows for tests: only what matters is said, the rest is made up. Committed at once."""

import itertools
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

from sqlmodel import SQLModel

from ekoyka.database import Database
from ekoyka.facilities.tables import Bed, Dispensary, Room
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Account, Role, RoleGrant
from ekoyka.inpatient.tables import BedAssignment, Patient, Stay
from ekoyka.outpatient.tables import Schedule, Slot, Timetable, WorkingHours

_Row = TypeVar("_Row", bound=SQLModel)
Hours = Mapping[int, Iterable[tuple[int, int]]]
"""Intervals by weekday, Monday 1, in minutes from midnight."""
ROUND_THE_CLOCK: Hours = {day: [(0, 1440)] for day in range(1, 8)}


class Factory:
    """Makes rows in one database; ``first`` is the number in the names of the first."""

    def __init__(self, database: Database, *, first: int = 1) -> None:
        self.database = database
        self._numbers = itertools.count(first)

    async def keep(self, row: _Row) -> _Row:
        """The row is in the database, with its key."""
        async with self.database.transaction() as session:
            session.add(row)
            await session.flush()
            await session.refresh(row)
        return row

    async def dispensary(self, **values: Any) -> Dispensary:
        number = next(self._numbers)
        usual = {
            "name": f"Диспансер {number}",
            "neutral_name": f"Больница {number}",
            "address": "Москва, Лесная, 5",
            "time_zone": "Europe/Moscow",
        }
        return await self.keep(Dispensary(**{**usual, **values}))

    async def room(self, dispensary: Dispensary, **values: Any) -> Room:
        usual = {"dispensary_id": dispensary.id, "number": str(next(self._numbers))}
        return await self.keep(Room(**{**usual, **values}))

    async def bed(self, dispensary: Dispensary, room: Room | None = None, **values: Any) -> Bed:
        room = room or await self.room(dispensary)
        usual = {"dispensary_id": dispensary.id, "room_id": room.id, "label": str(next(self._numbers))}
        return await self.keep(Bed(**{**usual, **values}))

    async def patient(self, dispensary: Dispensary, **values: Any) -> Patient:
        number = next(self._numbers)
        usual = {
            "dispensary_id": dispensary.id,
            "record_number": f"K-{number}",
            "sex": "MALE",
            **({} if "code_name" in values else {"family_name": f"Пациентов{number}", "given_name": "Иван"}),
        }
        return await self.keep(Patient(**{**usual, **values}))

    async def account(
        self,
        *,
        superadmin: bool = False,
        doctor_of: tuple[Dispensary, ...] = (),
        dispatcher_of: tuple[Dispensary, ...] = (),
        **values: Any,
    ) -> Account:
        """An account with roles; nobody knows its password unless a hash is given."""
        usual = {"email": f"a{next(self._numbers)}@example.org", "name": "Иванова Анна", "password_hash": "-"}
        account = await self.keep(Account(**{**usual, **values}))
        grants: list[tuple[Role, int | None]] = [(Role.SUPERADMIN, None)] if superadmin else []
        grants += [(Role.DOCTOR, place.id) for place in doctor_of]
        grants += [(Role.DISPATCHER, place.id) for place in dispatcher_of]
        for role, dispensary_id in grants:
            await self.keep(RoleGrant(account_id=account.id, role=role.value, dispensary_id=dispensary_id))
        return account

    async def actor(
        self,
        *,
        superadmin: bool = False,
        doctor_of: tuple[Dispensary, ...] = (),
        dispatcher_of: tuple[Dispensary, ...] = (),
    ) -> Actor:
        """A new account, as an actor."""
        account = await self.account(superadmin=superadmin, doctor_of=doctor_of, dispatcher_of=dispatcher_of)
        return Actor(
            account_id=account.id,
            auth_version=account.auth_version,
            superadmin=superadmin,
            doctor_of=frozenset(place.id for place in doctor_of),
            dispatcher_of=frozenset(place.id for place in dispatcher_of),
        )

    async def stay(
        self,
        patient: Patient,
        bed: Bed,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        **values: Any,
    ) -> Stay:
        """A stay in one bed: open, or ended as DISCHARGED."""
        begin = since or datetime.now(UTC) - timedelta(days=3)
        async with self.database.transaction() as session:
            stay = Stay(
                patient_id=patient.id,
                dispensary_id=bed.dispensary_id,
                checked_in_at=begin,
                checked_out_at=until,
                outcome="DISCHARGED" if until else None,
                **values,
            )
            session.add(stay)
            await session.flush()
            session.add(
                BedAssignment(
                    stay_id=stay.id,
                    bed_id=bed.id,
                    dispensary_id=bed.dispensary_id,
                    started_at=begin,
                    ended_at=until,
                )
            )
            await session.flush()
            await session.refresh(stay)
        return stay

    async def schedule(
        self,
        doctor: Account | Actor,
        dispensary: Dispensary,
        hours: Hours = ROUND_THE_CLOCK,
        *,
        visit_minutes: int = 60,
        valid_from: date = date(2020, 1, 1),
        valid_until: date | None = None,
        **values: Any,
    ) -> Schedule:
        """A doctor's schedule with one timetable; without hours none. Its slots are not made yet."""
        doctor_id = doctor.id if isinstance(doctor, Account) else doctor.account_id
        schedule = await self.keep(Schedule(doctor_id=doctor_id, dispensary_id=dispensary.id, **values))
        if hours:
            await self.timetable(
                schedule, hours, visit_minutes=visit_minutes, valid_from=valid_from, valid_until=valid_until
            )
        return schedule

    async def timetable(self, schedule: Schedule, hours: Hours, **values: Any) -> Timetable:
        timetable = await self.keep(
            Timetable(schedule_id=schedule.id, dispensary_id=schedule.dispensary_id, **values)
        )
        async with self.database.transaction() as session:
            session.add_all(
                WorkingHours(
                    timetable_id=timetable.id,
                    dispensary_id=schedule.dispensary_id,
                    weekday=weekday,
                    starts_minute=starts,
                    ends_minute=ends,
                )
                for weekday, intervals in hours.items()
                for starts, ends in intervals
            )
        return timetable

    async def slot(self, schedule: Schedule, starts_at: datetime | None = None, minutes: int = 20) -> Slot:
        """A free slot that no rule gives; by default the next after those made before, from tomorrow noon on."""
        begin = starts_at or (
            datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
            + timedelta(days=1, minutes=minutes * next(self._numbers))
        )
        return await self.keep(
            Slot(
                schedule_id=schedule.id,
                doctor_id=schedule.doctor_id,
                dispensary_id=schedule.dispensary_id,
                starts_at=begin,
                ends_at=begin + timedelta(minutes=minutes),
            )
        )
