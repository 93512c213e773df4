"""Creating, editing and deleting dispensaries, rooms and beds.

What depends on who lies where (closing, cleaning, archiving) is `inpatient.availability`'s.
"""

from typing import Any, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import SQLModel

from ekoyka.database import constraint_name
from ekoyka.errors import Conflict, NotFound, VersionConflict
from ekoyka.facilities.tables import Bed, BedDetails, Dispensary, DispensaryDetails, Room, RoomDetails
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.validation import changed, validated

_Row = TypeVar("_Row", bound=Dispensary | Room | Bed)
STAFF_WHO_EDIT = (Role.SUPERADMIN, Role.DOCTOR)


class NumberTaken(Conflict):
    """Another room of the dispensary has this number."""

    code = "NUMBER_TAKEN"
    ru = "Палата с таким номером уже есть: возьмите другой номер или отправьте старую в архив."
    en = "Another room has this number: use another, or archive the old room."


class LabelTaken(Conflict):
    """Another bed of the room has this label."""

    code = "LABEL_TAKEN"
    ru = "Койка с таким обозначением в палате уже есть: возьмите другое."
    en = "Another bed of the room has this label: use another."


class HasHistory(Conflict):
    """Something refers to it, so that it can be archived but never deleted."""

    code = "HAS_HISTORY"
    ru = "За этой записью есть история, удалить её нельзя: отправьте её в архив."
    en = "There is history behind this record, so it cannot be deleted: archive it."


class Archived(Conflict):
    """It is archived, so nothing new can be put into it."""

    code = "ARCHIVED"
    ru = "Запись в архиве: сначала верните её."
    en = "The record is archived: bring it back first."


async def locked(
    session: AsyncSession, table: type[_Row], key: int, *, actor: Actor, version: int | None = None
) -> _Row:
    """The row, locked until the transaction ends. Raises `NotFound` outside the actor's scope, `VersionConflict`."""
    # NO KEY UPDATE: rows that refer to it can be written meanwhile, so that an edit holds up no check-in.
    row = await session.get(table, key, with_for_update={"key_share": True}, populate_existing=True)
    if row is None or not actor.works_in(
        row.id if isinstance(row, Dispensary) else row.dispensary_id, STAFF_WHO_EDIT
    ):
        raise NotFound(("id",))
    if version is not None and row.version != version:
        raise VersionConflict(
            ("version",), object_type=table.__name__, object_id=key, current_version=row.version
        )
    return row


def _apply(row: SQLModel, details: SQLModel) -> None:
    for name, value in details.model_dump().items():
        setattr(row, name, value)


async def _flush(session: AsyncSession) -> None:
    try:
        await session.flush()
    except IntegrityError as error:
        match constraint_name(error):
            case "uq_room_number":
                raise NumberTaken(("number",)) from error
            case "uq_bed_label":
                raise LabelTaken(("label",)) from error
            case str(name) if name.startswith("fk_") and "DELETE" in str(error.statement):
                raise HasHistory from error
            case _:
                raise


async def create_dispensary(
    session: AsyncSession, *, details: dict[str, Any], source_key: str | None = None
) -> Dispensary:
    """The dispensary is in the network. Raises `Invalid`."""
    row = Dispensary(**validated(DispensaryDetails, details).model_dump(), source_key=source_key)
    session.add(row)
    await _flush(session)
    return row


async def update_dispensary(
    session: AsyncSession, *, actor: Actor, dispensary_id: int, version: int, changes: dict[str, Any]
) -> Dispensary:
    """The dispensary is as changed. Raises `NotFound`, `VersionConflict`, `Invalid`."""
    row = await locked(session, Dispensary, dispensary_id, actor=actor, version=version)
    _apply(row, changed(row, DispensaryDetails, changes))
    row.version += 1
    await _flush(session)
    return row


async def create_room(
    session: AsyncSession, *, actor: Actor, dispensary_id: int, details: dict[str, Any]
) -> Room:
    """The dispensary has the room. Raises `NotFound`, `Archived`, `NumberTaken`, `Invalid`."""
    dispensary = await locked(session, Dispensary, dispensary_id, actor=actor)
    if dispensary.archived_at is not None:
        raise Archived(("dispensaryId",))
    row = Room(dispensary_id=dispensary_id, **validated(RoomDetails, details).model_dump())
    session.add(row)
    await _flush(session)
    return row


async def update_room(
    session: AsyncSession, *, actor: Actor, room_id: int, version: int, changes: dict[str, Any]
) -> Room:
    """The room is as changed. Raises `NotFound`, `VersionConflict`, `NumberTaken`, `Invalid`."""
    row = await locked(session, Room, room_id, actor=actor, version=version)
    _apply(row, changed(row, RoomDetails, changes))
    row.version += 1
    await _flush(session)
    return row


async def create_bed(session: AsyncSession, *, actor: Actor, room_id: int, details: dict[str, Any]) -> Bed:
    """The room has the bed. Raises `NotFound`, `Archived`, `LabelTaken`, `Invalid`."""
    room = await locked(session, Room, room_id, actor=actor)
    if room.archived_at is not None:
        raise Archived(("roomId",))
    row = Bed(
        dispensary_id=room.dispensary_id, room_id=room_id, **validated(BedDetails, details).model_dump()
    )
    session.add(row)
    await _flush(session)
    return row


async def update_bed(
    session: AsyncSession,
    *,
    actor: Actor,
    bed_id: int,
    version: int,
    changes: dict[str, Any],
    room_id: int | None = None,
) -> Bed:
    """The bed is as changed, in another room of its dispensary if one is given.

    Raises `NotFound`, `VersionConflict`, `Archived`, `LabelTaken`, `Invalid`.
    """
    row = await locked(session, Bed, bed_id, actor=actor, version=version)
    if room_id is not None and room_id != row.room_id:
        room = await session.get(Room, room_id, with_for_update={"key_share": True})
        if room is None or room.dispensary_id != row.dispensary_id:
            raise NotFound(("roomId",))
        if room.archived_at is not None:
            raise Archived(("roomId",))
        row.room_id = room_id
    _apply(row, changed(row, BedDetails, changes))
    row.version += 1
    await _flush(session)
    return row


async def delete(session: AsyncSession, table: type[_Row], *, actor: Actor, key: int, version: int) -> None:
    """The row is gone, as if it had never been. Raises `NotFound`, `VersionConflict`, `HasHistory`."""
    await session.delete(await locked(session, table, key, actor=actor, version=version))
    await _flush(session)
