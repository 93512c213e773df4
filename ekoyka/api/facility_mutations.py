"""Changing dispensaries, rooms and beds."""

from __future__ import annotations

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run
from ekoyka.api.enums import RoomSex, ServiceState
from ekoyka.api.mutations import KEY_TEXT, VERSION_TEXT, Made, given, key, mutation
from ekoyka.api.permissions import ADMIN, CLINICAL, STAFF
from ekoyka.api.scalars import ID, DateTime, Phone, TimeZone
from ekoyka.errors import Forbidden
from ekoyka.facilities import operations
from ekoyka.facilities.operations import Archived, HasHistory, LabelTaken, NumberTaken
from ekoyka.facilities.tables import Bed, Dispensary, Room
from ekoyka.graph import declare as graph
from ekoyka.inpatient import availability, reservations
from ekoyka.inpatient.availability import (
    BedClosed,
    BedNotReady,
    BedOccupied,
    BedReserved,
    HasOpenStays,
    RoomSexMismatch,
)
from ekoyka.inpatient.reservations import ReservationEnded

field = strawberry.field


@graph.type_(
    description="What was deleted.",
    columns={"type_name": "text", "key": "bigint"},
)
class Deleted:
    """A deletion."""

    id: ID = graph.expression(
        lambda row, names: f"encode(convert_to({row}.type_name || ':' || {row}.key, 'UTF8'), 'base64')",
        "The id that names nothing any more.",
    )


@strawberry.input(description="A new dispensary.")
class DispensaryCreateInput:
    name: str = field(description="Its name, 1 to 200 characters.")
    neutral_name: str = field(
        description="A legal name that does not tell what it treats, 1 to 200 characters."
    )
    address: str = field(description="Its address, 1 to 200 characters.")
    time_zone: TimeZone = field(description="Its time zone.")
    phone: Phone | None = field(description="Its phone.", default=None)
    latitude: float | None = field(description="Degrees north, WGS 84.", default=None)
    longitude: float | None = field(description="Degrees east, WGS 84.", default=None)
    staffed_beds: int | None = field(description="How many beds it has staff for; null: all.", default=None)
    cleaning_after_check_out: bool = field(
        description="Whether a bed goes to cleaning when its patient leaves.", default=False
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "dispensaryCreate", returns="Dispensary", roles=ADMIN, description="A dispensary joins the network."
)
async def dispensary_create(run: Run, session: AsyncSession, input: DispensaryCreateInput) -> int:
    return (await operations.create_dispensary(session, details=given(input))).id


@strawberry.input(description="Changes of a dispensary; what is not given stays.")
class DispensaryUpdateInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    name: str | None = field(description="Its name.", default=UNSET)
    neutral_name: str | None = field(description="Its neutral name.", default=UNSET)
    address: str | None = field(description="Its address.", default=UNSET)
    time_zone: TimeZone | None = field(description="Its time zone.", default=UNSET)
    phone: Phone | None = field(description="Its phone.", default=UNSET)
    latitude: float | None = field(description="Degrees north, WGS 84.", default=UNSET)
    longitude: float | None = field(description="Degrees east, WGS 84.", default=UNSET)
    staffed_beds: int | None = field(description="How many beds it has staff for; null: all.", default=UNSET)
    cleaning_after_check_out: bool | None = field(
        description="Whether a bed goes to cleaning when its patient leaves.", default=UNSET
    )


@mutation("dispensaryUpdate", returns="Dispensary", roles=CLINICAL, description="A dispensary is edited.")
async def dispensary_update(run: Run, session: AsyncSession, input: DispensaryUpdateInput) -> int:
    row = await operations.update_dispensary(
        session,
        actor=run.known_actor,
        dispensary_id=key("Dispensary", input.id, "id"),
        version=input.version,
        changes=given(input),
    )
    return row.id


@strawberry.input(description="Which record, as it was read.")
class RecordInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)


async def _archive(
    run: Run, session: AsyncSession, table: type[Dispensary] | type[Room] | type[Bed], input: RecordInput
) -> int:
    row = key(table.__name__, input.id, "id")
    await availability.archive(session, table, actor=run.known_actor, key=row, version=input.version)
    return row


async def _delete(
    run: Run, session: AsyncSession, table: type[Dispensary] | type[Room], input: RecordInput
) -> Made:
    row = key(table.__name__, input.id, "id")
    await operations.delete(session, table, actor=run.known_actor, key=row, version=input.version)
    return {"type_name": table.__name__, "key": row}


@mutation(
    "dispensaryArchive",
    returns="Dispensary",
    roles=ADMIN,
    refusals=(HasOpenStays, BedReserved),
    description="A dispensary is archived with its rooms and beds.",
)
async def dispensary_archive(run: Run, session: AsyncSession, input: RecordInput) -> int:
    return await _archive(run, session, Dispensary, input)


@mutation(
    "dispensaryDelete",
    returns="Deleted",
    roles=ADMIN,
    refusals=(HasHistory,),
    description="A dispensary that nothing refers to is deleted.",
)
async def dispensary_delete(run: Run, session: AsyncSession, input: RecordInput) -> Made:
    return await _delete(run, session, Dispensary, input)


@strawberry.input(description="A new room.")
class RoomCreateInput:
    dispensary_id: strawberry.ID = field(description="Where.")
    number: str = field(description="Its number or name, 1 to 40 characters, unique in the dispensary.")
    floor: int | None = field(description="The floor, -10 to 200.", default=None)
    sex: RoomSex = field(description="Whom it takes.", default=RoomSex.ANY)
    isolation: bool = field(description="Whether it is for patients who must be apart.", default=False)
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "roomCreate",
    returns="Room",
    roles=ADMIN,
    refusals=(NumberTaken, Archived),
    description="A dispensary gets a room.",
)
async def room_create(run: Run, session: AsyncSession, input: RoomCreateInput) -> int:
    row = await operations.create_room(
        session,
        actor=run.known_actor,
        dispensary_id=key("Dispensary", input.dispensary_id, "dispensaryId"),
        details=given(input, without={"dispensary_id"}),
    )
    return row.id


@strawberry.input(description="Changes of a room; what is not given stays.")
class RoomUpdateInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    number: str | None = field(description="Its number or name.", default=UNSET)
    floor: int | None = field(description="The floor.", default=UNSET)
    sex: RoomSex | None = field(description="Whom it takes.", default=UNSET)
    isolation: bool | None = field(description="Whether it is for patients who must be apart.", default=UNSET)


@mutation(
    "roomUpdate",
    returns="Room",
    roles=CLINICAL,
    refusals=(NumberTaken, RoomSexMismatch),
    description="A room is edited.",
)
async def room_update(run: Run, session: AsyncSession, input: RoomUpdateInput) -> int:
    row = await availability.edit_room(
        session,
        actor=run.known_actor,
        room_id=key("Room", input.id, "id"),
        version=input.version,
        changes=given(input),
    )
    return row.id


@mutation(
    "roomArchive",
    returns="Room",
    roles=ADMIN,
    refusals=(HasOpenStays, BedReserved),
    description="A room is archived with its beds.",
)
async def room_archive(run: Run, session: AsyncSession, input: RecordInput) -> int:
    return await _archive(run, session, Room, input)


@mutation(
    "roomDelete",
    returns="Deleted",
    roles=ADMIN,
    refusals=(HasHistory,),
    description="A room that nothing refers to is deleted.",
)
async def room_delete(run: Run, session: AsyncSession, input: RecordInput) -> Made:
    return await _delete(run, session, Room, input)


@strawberry.input(description="A new bed.")
class BedCreateInput:
    room_id: strawberry.ID = field(description="The room it stands in.")
    label: str = field(description="Its label, 1 to 40 characters, unique in the room.")
    profile: str = field(description="What it is for, 1 to 100 characters.", default="наркологическая")
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "bedCreate", returns="Bed", roles=ADMIN, refusals=(LabelTaken, Archived), description="A room gets a bed."
)
async def bed_create(run: Run, session: AsyncSession, input: BedCreateInput) -> int:
    row = await availability.add_bed(
        session,
        actor=run.known_actor,
        room_id=key("Room", input.room_id, "roomId"),
        details=given(input, without={"room_id"}),
    )
    return row.id


@strawberry.input(description="Changes of a bed; what is not given stays.")
class BedUpdateInput:
    id: strawberry.ID = field(description="Which.")
    version: int = field(description=VERSION_TEXT)
    label: str | None = field(description="Its label.", default=UNSET)
    profile: str | None = field(description="What it is for.", default=UNSET)
    room_id: strawberry.ID | None = field(
        description="Another room of the dispensary to stand in.", default=UNSET
    )


@mutation(
    "bedUpdate",
    returns="Bed",
    roles=CLINICAL,
    refusals=(LabelTaken, Archived, RoomSexMismatch),
    description="A bed is edited or moved.",
)
async def bed_update(run: Run, session: AsyncSession, input: BedUpdateInput) -> int:
    row = await availability.edit_bed(
        session,
        actor=run.known_actor,
        bed_id=key("Bed", input.id, "id"),
        version=input.version,
        room_id=key("Room", input.room_id, "roomId") if input.room_id else None,
        changes=given(input, without={"room_id"}),
    )
    return row.id


@mutation(
    "bedArchive",
    returns="Bed",
    roles=ADMIN,
    refusals=(HasOpenStays, BedReserved),
    description="A bed is archived.",
)
async def bed_archive(run: Run, session: AsyncSession, input: RecordInput) -> int:
    return await _archive(run, session, Bed, input)


@mutation(
    "bedDelete",
    returns="Deleted",
    roles=ADMIN,
    refusals=(HasHistory,),
    description="A bed that nothing refers to is deleted.",
)
async def bed_delete(run: Run, session: AsyncSession, input: RecordInput) -> Made:
    bed = key("Bed", input.id, "id")
    await availability.delete_bed(session, actor=run.known_actor, bed_id=bed, version=input.version)
    return {"type_name": "Bed", "key": bed}


@strawberry.input(description="A bed's service state.")
class BedSetServiceStateInput:
    id: strawberry.ID = field(description="Which bed.")
    state: ServiceState = field(description="What it is to be in; to close a bed, use `bedClose`.")


@mutation(
    "bedSetServiceState",
    returns="Bed",
    roles=CLINICAL,
    refusals=(BedOccupied,),
    description="A bed goes to cleaning, is found contaminated or set apart, or returns to service, "
    "which also ends its closure.",
)
async def bed_set_service_state(run: Run, session: AsyncSession, input: BedSetServiceStateInput) -> int:
    return await _set_service_state(run, session, input.id, ServiceState(input.state), "")


async def _set_service_state(
    run: Run, session: AsyncSession, bed: str, state: ServiceState, reason: str
) -> int:
    row = key("Bed", bed, "id")
    await availability.set_service_state(
        session, actor=run.known_actor, bed_id=row, state=state, reason=reason
    )
    return row


@strawberry.input(description="Closing a bed.")
class BedCloseInput:
    id: strawberry.ID = field(description="Which bed.")
    reason: str = field(description="Why, 1 to 1000 characters; the closure's days are counted by it.")


@mutation(
    "bedClose",
    returns="Bed",
    roles=CLINICAL,
    refusals=(BedOccupied, BedReserved, BedClosed),
    description="An empty bed is closed, with a reason; `bedSetServiceState` returns it to service.",
)
async def bed_close(run: Run, session: AsyncSession, input: BedCloseInput) -> int:
    return await _set_service_state(run, session, input.id, ServiceState.CLOSED, input.reason)


@strawberry.input(description="A reservation.")
class BedReserveInput:
    bed_id: strawberry.ID = field(description="Which bed.")
    until: DateTime = field(
        description="Until when it is kept; at most 30 days ahead. Then it lapses by itself."
    )
    patient_id: strawberry.ID | None = field(
        description="For whom; null: for somebody on the way. Dispatchers name nobody.", default=None
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "bedReserve",
    returns="Reservation",
    roles=STAFF,
    refusals=(BedOccupied, BedReserved, BedClosed, BedNotReady, Archived, Forbidden),
    description="A bed is kept until an instant.",
)
async def bed_reserve(run: Run, session: AsyncSession, input: BedReserveInput) -> int:
    row = await reservations.reserve_bed(
        session,
        actor=run.known_actor,
        bed_id=key("Bed", input.bed_id, "bedId"),
        until=input.until,
        patient_id=key("Patient", input.patient_id, "patientId") if input.patient_id else None,
    )
    return row.id


@strawberry.input(description="Which reservation.")
class ReservationReleaseInput:
    id: strawberry.ID = field(description="Which.")


@mutation(
    "reservationRelease",
    returns="Reservation",
    roles=STAFF,
    refusals=(ReservationEnded,),
    description="A reserved bed is given free.",
)
async def reservation_release(run: Run, session: AsyncSession, input: ReservationReleaseInput) -> int:
    row = await reservations.release_reservation(
        session, actor=run.known_actor, reservation_id=key("Reservation", input.id, "id")
    )
    return row.id
