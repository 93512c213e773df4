"""Strawberry as its documentation teaches it: types with resolvers, ORM entities, a DataLoader for every edge.

The entities are EKoyka's own tables; one session and one set of loaders serve each request.
"""

from __future__ import annotations

import base64
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime
from enum import StrEnum
from typing import Any, cast

import strawberry
import uvicorn
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlmodel import col
from starlette.applications import Starlette
from strawberry.asgi import GraphQL
from strawberry.dataloader import DataLoader

import ekoyka.migrate  # noqa: F401 -- all tables are known
from ekoyka.database import driver_url
from ekoyka.facilities import tables as facilities
from ekoyka.inpatient import tables as inpatient


def _id(type_name: str, key: int) -> strawberry.ID:
    return strawberry.ID(base64.b64encode(f"{type_name}:{key}".encode()).decode())


def _key(value: str) -> int:
    return int(base64.b64decode(value).decode().partition(":")[2])


class Loaders:
    """The loaders of one request. A session runs one statement at a time, so each batch opens its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.dispensary = self._one(facilities.Dispensary, "id")
        self.room = self._one(facilities.Room, "id")
        self.bed = self._one(facilities.Bed, "id")
        self.stay = self._one(inpatient.Stay, "id")
        self.patient = self._one(inpatient.Patient, "id")
        assignment, reservation = inpatient.BedAssignment, inpatient.Reservation
        self.assignment_of = self._one(assignment, "bed_id", col(assignment.ended_at).is_(None))
        self.reservation_of = self._one(
            reservation, "bed_id", col(reservation.ended_at).is_(None), col(reservation.until) > func.now()
        )
        room, bed = facilities.Room, facilities.Bed
        self.rooms_of = self._many(
            room, "dispensary_id", ("number_key", "id"), col(room.archived_at).is_(None)
        )
        self.beds_of = self._many(bed, "room_id", ("label_key", "id"), col(bed.archived_at).is_(None))
        self.beds_in = self._many(bed, "dispensary_id", ("id",), col(bed.archived_at).is_(None))
        self.assignments_of = self._many(assignment, "stay_id", ("started_at", "id"))

    async def all(self, statement: Any) -> Sequence[Any]:
        """The entities that a statement selects."""
        async with AsyncSession(self.engine) as session:
            return (await session.scalars(statement)).all()

    def _one(self, table: Any, column: str, *conditions: Any) -> DataLoader[int, Any]:
        async def load(keys: list[int]) -> list[Any]:
            rows = await self.all(select(table).where(getattr(table, column).in_(keys), *conditions))
            found = {getattr(row, column): row for row in rows}
            return [found.get(key) for key in keys]

        return DataLoader(load_fn=cast("Callable[[list[int]], Awaitable[Any]]", load))

    def _many(
        self, table: Any, column: str, order: tuple[str, ...], *conditions: Any
    ) -> DataLoader[int, Any]:
        async def load(keys: list[int]) -> list[list[Any]]:
            rows = await self.all(
                select(table)
                .where(getattr(table, column).in_(keys), *conditions)
                .order_by(*(getattr(table, name) for name in order))
            )
            found = defaultdict(list)
            for row in rows:
                found[getattr(row, column)].append(row)
            return [found[key] for key in keys]

        return DataLoader(load_fn=cast("Callable[[list[int]], Awaitable[Any]]", load))


Info = strawberry.Info[dict[str, Any], None]


def _loaders(info: Info) -> Loaders:
    return cast("Loaders", info.context["loaders"])


@strawberry.type
class PageInfo:
    has_next_page: bool


@strawberry.type
class BedCounts:
    total: int
    free: int


@strawberry.type
class Dispensary:
    row: strawberry.Private[Any]
    name: str
    address: str

    @classmethod
    def of(cls, row: Any) -> Dispensary:
        return cls(row=row, name=row.name, address=row.address)

    @strawberry.field
    def id(self) -> strawberry.ID:
        return _id("Dispensary", self.row.id)

    @strawberry.field
    async def bed_counts(self, info: Info) -> BedCounts:
        beds = [Bed.of(row) for row in await _loaders(info).beds_in.load(self.row.id)]
        # All are asked for at once, so that the loaders see them together.
        keys = [bed.row.id for bed in beds]
        assignments = await _loaders(info).assignment_of.load_many(keys)
        reservations = await _loaders(info).reservation_of.load_many(keys)
        free = sum(
            assignment is None and reservation is None and bed.row.service_state == "IN_SERVICE"
            for bed, assignment, reservation in zip(beds, assignments, reservations, strict=True)
        )
        return BedCounts(total=len(beds), free=free)

    @strawberry.field
    async def rooms(self, info: Info, first: int = 20) -> RoomConnection:
        rows = await _loaders(info).rooms_of.load(self.row.id)
        return RoomConnection(edges=[RoomEdge(node=Room.of(row)) for row in rows[:first]])


@strawberry.type
class DispensaryEdge:
    node: Dispensary


@strawberry.type
class DispensaryConnection:
    edges: list[DispensaryEdge]


@strawberry.type
class Room:
    row: strawberry.Private[Any]
    number: str
    floor: int | None
    sex: str

    @classmethod
    def of(cls, row: Any) -> Room:
        return cls(row=row, number=row.number, floor=row.floor, sex=row.sex)

    @strawberry.field
    def id(self) -> strawberry.ID:
        return _id("Room", self.row.id)

    @strawberry.field
    async def beds(self, info: Info, first: int = 20) -> BedConnection:
        rows = await _loaders(info).beds_of.load(self.row.id)
        return BedConnection(edges=[BedEdge(node=Bed.of(row)) for row in rows[:first]])


@strawberry.type
class RoomEdge:
    node: Room


@strawberry.type
class RoomConnection:
    edges: list[RoomEdge]


@strawberry.type
class Bed:
    row: strawberry.Private[Any]
    label: str

    @classmethod
    def of(cls, row: Any) -> Bed:
        return cls(row=row, label=row.label)

    @strawberry.field
    def id(self) -> strawberry.ID:
        return _id("Bed", self.row.id)

    @strawberry.field
    async def status(self, info: Info) -> str:
        if await _loaders(info).assignment_of.load(self.row.id):
            return "OCCUPIED"
        if await _loaders(info).reservation_of.load(self.row.id):
            return "RESERVED"
        return "FREE" if self.row.service_state == "IN_SERVICE" else str(self.row.service_state)

    @strawberry.field
    async def room(self, info: Info) -> Room:
        return Room.of(await _loaders(info).room.load(self.row.room_id))

    @strawberry.field
    async def dispensary(self, info: Info) -> Dispensary:
        return Dispensary.of(await _loaders(info).dispensary.load(self.row.dispensary_id))

    @strawberry.field
    async def current_assignment(self, info: Info) -> BedAssignment | None:
        row = await _loaders(info).assignment_of.load(self.row.id)
        return BedAssignment.of(row) if row else None


@strawberry.type
class BedEdge:
    node: Bed


@strawberry.type
class BedConnection:
    edges: list[BedEdge]


@strawberry.type
class BedAssignment:
    row: strawberry.Private[Any]
    started_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, row: Any) -> BedAssignment:
        return cls(row=row, started_at=row.started_at, ended_at=row.ended_at)

    @strawberry.field
    async def stay(self, info: Info) -> Stay:
        return Stay.of(await _loaders(info).stay.load(self.row.stay_id))

    @strawberry.field
    async def bed(self, info: Info) -> Bed:
        return Bed.of(await _loaders(info).bed.load(self.row.bed_id))


@strawberry.type
class Stay:
    row: strawberry.Private[Any]
    checked_in_at: datetime
    checked_out_at: datetime | None
    outcome: str | None
    diagnosis_code: str | None
    planned_check_out_on: date | None

    @classmethod
    def of(cls, row: Any) -> Stay:
        return cls(
            row=row,
            checked_in_at=row.checked_in_at,
            checked_out_at=row.checked_out_at,
            outcome=row.outcome,
            diagnosis_code=row.diagnosis_code,
            planned_check_out_on=row.planned_check_out_on,
        )

    @strawberry.field
    def id(self) -> strawberry.ID:
        return _id("Stay", self.row.id)

    @strawberry.field
    async def patient(self, info: Info) -> Patient:
        return Patient.of(await _loaders(info).patient.load(self.row.patient_id))

    @strawberry.field
    async def assignments(self, info: Info) -> list[BedAssignment]:
        return [BedAssignment.of(row) for row in await _loaders(info).assignments_of.load(self.row.id)]


@strawberry.type
class StayEdge:
    node: Stay


@strawberry.type
class StayConnection:
    edges: list[StayEdge]
    page_info: PageInfo

    @classmethod
    def of(cls, rows: Sequence[Any], first: int) -> StayConnection:
        edges = [StayEdge(node=Stay.of(row)) for row in rows[:first]]
        return cls(edges=edges, page_info=PageInfo(has_next_page=len(rows) > first))


@strawberry.type
class Patient:
    row: strawberry.Private[Any]
    record_number: str
    family_name: str | None
    given_name: str | None
    patronymic: str | None
    birth_date: date | None

    @classmethod
    def of(cls, row: Any) -> Patient:
        return cls(
            row=row,
            record_number=row.record_number,
            family_name=row.family_name,
            given_name=row.given_name,
            patronymic=row.patronymic,
            birth_date=row.birth_date,
        )

    @strawberry.field
    def id(self) -> strawberry.ID:
        return _id("Patient", self.row.id)

    @strawberry.field
    async def stays(self, info: Info, first: int = 20) -> StayConnection:
        stay = inpatient.Stay
        rows = await _loaders(info).all(
            select(stay)
            .where(col(stay.patient_id) == self.row.id)
            .order_by(col(stay.checked_in_at).desc(), col(stay.id).desc())
            .limit(first + 1)
        )
        return StayConnection.of(rows, first)


@strawberry.type
class PatientEdge:
    node: Patient


@strawberry.type
class PatientConnection:
    edges: list[PatientEdge]
    page_info: PageInfo


@strawberry.enum
class StayOrderField(StrEnum):
    CHECKED_IN_AT = "CHECKED_IN_AT"
    CHECKED_OUT_AT = "CHECKED_OUT_AT"


@strawberry.enum
class OrderDirection(StrEnum):
    ASC = "ASC"
    DESC = "DESC"


@strawberry.input
class StayOrder:
    field: StayOrderField
    direction: OrderDirection


@strawberry.input
class StayWhere:
    dispensary_id: strawberry.ID
    open: bool
    until: datetime
    from_: datetime = strawberry.field(name="from")


@strawberry.input
class PatientWhere:
    search: str


@strawberry.type
class Query:
    @strawberry.field
    async def dispensary(self, info: Info, id: strawberry.ID) -> Dispensary | None:
        row = await _loaders(info).dispensary.load(_key(id))
        return Dispensary.of(row) if row else None

    @strawberry.field
    async def dispensaries(self, info: Info, first: int = 20) -> DispensaryConnection:
        place = facilities.Dispensary
        rows = await _loaders(info).all(
            select(place)
            .where(col(place.archived_at).is_(None))
            .order_by(place.name_key, place.id)  # type: ignore[arg-type]  # columns
            .limit(first)
        )
        return DispensaryConnection(edges=[DispensaryEdge(node=Dispensary.of(row)) for row in rows])

    @strawberry.field
    async def bed(self, info: Info, id: strawberry.ID) -> Bed | None:
        row = await _loaders(info).bed.load(_key(id))
        return Bed.of(row) if row else None

    @strawberry.field
    async def patient(self, info: Info, id: strawberry.ID) -> Patient | None:
        row = await _loaders(info).patient.load(_key(id))
        return Patient.of(row) if row else None

    @strawberry.field
    async def patients(self, info: Info, where: PatientWhere, first: int = 20) -> PatientConnection:
        patient = inpatient.Patient
        words = " & ".join(f"{word}:*" for word in where.search.lower().replace("ё", "е").split())
        rows = await _loaders(info).all(
            select(patient)
            .where(
                text("patient.search @@ CAST(CAST(:words AS text) AS tsquery)").bindparams(words=words),
                col(patient.archived_at).is_(None),
            )
            .order_by(patient.name_key, patient.id)  # type: ignore[arg-type]  # columns
            .limit(first + 1)
        )
        edges = [PatientEdge(node=Patient.of(row)) for row in rows[:first]]
        return PatientConnection(edges=edges, page_info=PageInfo(has_next_page=len(rows) > first))

    @strawberry.field
    async def stays(
        self, info: Info, where: StayWhere, order_by: list[StayOrder], first: int = 20
    ) -> StayConnection:
        stay = inpatient.Stay
        rows = await _loaders(info).all(
            select(stay)
            .where(
                col(stay.dispensary_id) == _key(where.dispensary_id),
                col(stay.checked_out_at).is_not(None),
                col(stay.checked_out_at) > where.from_,
                col(stay.checked_in_at) < where.until,
            )
            .order_by(col(stay.ended_at).desc(), col(stay.id).desc())
            .limit(first + 1)
        )
        return StayConnection.of(rows, first)


class Server(GraphQL[dict[str, Any], None]):
    async def get_context(self, request: Any, response: Any) -> dict[str, Any]:
        return {"loaders": Loaders(request.app.state.engine)}


def app() -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.engine = create_async_engine(
            driver_url(os.environ["DATABASE_URL"]), pool_size=10, max_overflow=0
        )
        print("ready", flush=True)
        yield
        await app.state.engine.dispose()

    server = Starlette(lifespan=lifespan)
    server.add_route("/graphql", Server(strawberry.Schema(Query), graphql_ide=None))  # type: ignore[arg-type]
    return server


if __name__ == "__main__":
    uvicorn.run(
        app(),
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
    )
