"""Rows for tests: only what matters is said, the rest is made up. Committed at once."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlmodel import SQLModel

from ekoyka.database import Database
from ekoyka.facilities.tables import Bed, Dispensary, Room
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Account, Role, RoleGrant
from ekoyka.inpatient.tables import BedAssignment, Patient, Stay

_Row = TypeVar("_Row", bound=SQLModel)


class Factory:
    """Makes rows in one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._numbers = itertools.count(1)

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
