"""Whether beds can be used: service state, closing, editing, archiving.

Refuses whatever would take a bed from under the patient who lies in it or for whom it is kept. Every
operation locks the bed first; see `facts` for the order of locks.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.columns import Remark
from ekoyka.database import Statement
from ekoyka.errors import Conflict, NotFound
from ekoyka.facilities.operations import (
    STAFF_WHO_EDIT,
    create_bed,
    delete,
    locked,
    update_bed,
    update_room,
)
from ekoyka.facilities.tables import Bed, Dispensary, Room, RoomSex, ServiceState
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.facts import Facts, lock, look
from ekoyka.inpatient.queries import (
    BedChange,
    alternatives,
    bed_event,
    is_occupied,
    is_reserved,
    publish_beds,
    status_of,
)
from ekoyka.validation import validated


class BedOccupied(Conflict):
    """Somebody lies in the bed during that time."""

    code = "BED_OCCUPIED"
    ru = "Койка занята: выберите одну из предложенных."
    en = "The bed is occupied: choose one of those suggested."


class BedReserved(Conflict):
    """The bed is kept for somebody else."""

    code = "BED_RESERVED"
    ru = "Койка забронирована: выберите другую или снимите бронь."
    en = "The bed is reserved: choose another, or release the reservation."


class BedClosed(Conflict):
    """The bed is closed."""

    code = "BED_CLOSED"
    ru = "Койка закрыта: выберите другую или верните её в работу."
    en = "The bed is closed: choose another, or return it to service."


class BedNotReady(Conflict):
    """The bed is being cleaned, is contaminated or set apart."""

    code = "BED_NOT_READY"
    ru = "Койка не готова: дождитесь уборки или выберите другую."
    en = "The bed is not ready: wait for the cleaning, or choose another."


class RoomSexMismatch(Conflict):
    """The room does not take patients of this sex."""

    code = "ROOM_SEX_MISMATCH"
    ru = "Палата не для пациентов этого пола: выберите одну из предложенных коек."
    en = "The room does not take patients of this sex: choose one of the beds suggested."


class HasOpenStays(Conflict):
    """Somebody stays in it, so it cannot be archived."""

    code = "HAS_OPEN_STAYS"
    ru = "Здесь сейчас лежат пациенты: сначала переведите или выпишите их."
    en = "Patients stay here now: transfer or check them out first."


class _Reason(BaseModel):
    reason: Remark


def checked_reason(reason: str) -> str:
    """The reason, trimmed. Raises `Invalid`."""
    return validated(_Reason, {"reason": reason}).reason


async def now(session: AsyncSession) -> datetime:
    """The database's clock; after waiting for a lock it is later than whatever the holder wrote."""
    instant: datetime = (await session.execute(text("SELECT clock_timestamp()"))).scalar_one()
    return instant


async def _others(session: AsyncSession, seen: Facts) -> list[int]:
    """Beds of the dispensary that suit the patient instead."""
    assert seen.bed_id is not None
    assert seen.dispensary_id is not None
    return await alternatives(
        session, patient_id=seen.patient_id, dispensary_id=seen.dispensary_id, besides=seen.bed_id
    )


_CLOSURE = Statement("SELECT closed_at, reason FROM bed_closure WHERE bed_id = :bed AND reopened_at IS NULL")


async def refuse_unusable(session: AsyncSession, seen: Facts) -> None:
    """Raises `BedClosed` or `BedNotReady` with other beds, unless the bed is in service."""
    if seen.service_state == ServiceState.IN_SERVICE:
        return
    others = await _others(session, seen)
    if seen.service_state == ServiceState.CLOSED:
        closures = await _CLOSURE.rows(session, bed=seen.bed_id)
        raise BedClosed(
            ("bedId",),
            bed_id=seen.bed_id,
            closed_at=closures[0].closed_at if closures else None,
            reason=closures[0].reason if closures else None,
            alternative_ids=others,
        )
    raise BedNotReady(
        ("bedId",), bed_id=seen.bed_id, service_state=seen.service_state, alternative_ids=others
    )


async def refuse_occupied(session: AsyncSession, seen: Facts) -> None:
    """Raises `BedOccupied` when somebody lies in the bed at any time of the interval looked at."""
    if seen.occupied_since is not None:
        raise BedOccupied(
            ("bedId",),
            bed_id=seen.bed_id,
            occupied_since=seen.occupied_since,
            occupied_until=seen.occupied_until,
            expected_end_on=seen.expected_end_on,
            alternative_ids=await _others(session, seen),
        )


async def refuse_reserved(session: AsyncSession, seen: Facts) -> None:
    """Raises `BedReserved` when the bed is kept for anybody."""
    if seen.reservation_id is not None:
        raise BedReserved(
            ("bedId",),
            bed_id=seen.bed_id,
            reserved_until=seen.reserved_until,
            alternative_ids=await _others(session, seen),
        )


async def refuse_kept(session: AsyncSession, seen: Facts, named: int | None) -> None:
    """Raises `BedReserved` unless the reservation in force is the patient's, or nobody's and the one named."""
    theirs = seen.reserved_for_id == seen.patient_id
    on_the_way = seen.reserved_for_id is None and seen.reservation_id == named
    if not (theirs or on_the_way):
        await refuse_reserved(session, seen)


async def refuse_room(session: AsyncSession, seen: Facts) -> None:
    """Raises `RoomSexMismatch` when the bed's room does not take the patient."""
    if seen.room_sex not in (RoomSex.ANY, seen.patient_sex):
        raise RoomSexMismatch(
            ("bedId",),
            bed_id=seen.bed_id,
            room_id=seen.room_id,
            alternative_ids=await _others(session, seen),
        )


_STATUS_NOW = status_of(is_occupied("changed"), is_reserved("changed"), "service_state")
_SET_SERVICE_STATE = feed.Publication(
    f"""
    WITH reopened AS (
        UPDATE bed_closure SET reopened_at = :now
        WHERE bed_id = :bed AND reopened_at IS NULL AND CAST(:state AS text) <> 'CLOSED'
        RETURNING id
    ), closed AS (
        INSERT INTO bed_closure (bed_id, dispensary_id, closed_at, reason, closed_by_id)
        SELECT id, dispensary_id, :now, CAST(:reason AS text), CAST(:account AS bigint)
        FROM bed WHERE id = :bed AND CAST(:state AS text) = 'CLOSED'
        RETURNING id
    ), changed AS (
        UPDATE bed SET service_state = CAST(:state AS text), version = version + 1
        WHERE id = :bed RETURNING *
    ), event AS (
        {bed_event("dispensary_id", "id", "'SERVICE_STATE_CHANGED'", _STATUS_NOW)}
        FROM changed WHERE (SELECT count(*) FROM reopened) + (SELECT count(*) FROM closed) >= 0
    ), {feed.publishing("event")}
    SELECT {feed.PUBLISHED} FROM counted
    """
)


async def set_service_state(
    session: AsyncSession, *, actor: Actor, bed_id: int, state: ServiceState, reason: str | None = None
) -> None:
    """The bed is in this state; an open closure ends when it leaves CLOSED, and one begins when it enters it.

    Raises `NotFound`, `BedOccupied`, and for closing `Invalid` without a reason, `BedReserved`, `BedClosed`.
    """
    why = checked_reason(reason or "") if state is ServiceState.CLOSED else ""
    seen = await look(session, actor, locked=await lock(session, bed=bed_id), bed=bed_id)
    if seen.dispensary_id is None or not actor.works_in(seen.dispensary_id, STAFF_WHO_EDIT):
        raise NotFound(("id",))
    if state is not ServiceState.IN_SERVICE:
        await refuse_occupied(session, seen)
    if state is ServiceState.CLOSED:
        await refuse_reserved(session, seen)
        if seen.service_state == ServiceState.CLOSED:
            await refuse_unusable(session, seen)
    if seen.service_state != state:
        await _SET_SERVICE_STATE.row(
            session, bed=bed_id, state=state.value, now=seen.now, reason=why, account=actor.account_id
        )


async def archive(
    session: AsyncSession,
    table: type[Dispensary] | type[Room] | type[Bed],
    *,
    actor: Actor,
    key: int,
    version: int,
) -> None:
    """The dispensary, room or bed is archived, with all that is in it.

    Raises `NotFound`, `VersionConflict`, `HasOpenStays`, `BedReserved`.
    """
    column = {Dispensary: "dispensary_id", Room: "room_id", Bed: "id"}[table]
    # Beds first, as everywhere.
    await session.execute(
        text(f"SELECT id FROM bed WHERE {column} = :key AND archived_at IS NULL ORDER BY id FOR UPDATE"),
        {"key": key},
    )
    row = await locked(session, table, key, actor=actor, version=version)
    if row.archived_at is not None:
        return
    instant = await now(session)
    inside = {"key": key, "at": instant}
    row.archived_at = instant
    row.version += 1
    await session.flush()
    if table is Dispensary:
        await session.execute(
            text(
                "UPDATE room SET archived_at = :at, version = version + 1 "
                "WHERE dispensary_id = :key AND archived_at IS NULL"
            ),
            inside,
        )
    # A bed may have been put into the room while this waited for its row; from here on none can be.
    beds = [key] if table is Bed else []
    if table is not Bed:
        beds = list(
            await session.scalars(
                text(
                    "UPDATE bed SET archived_at = :at, version = version + 1 "
                    f"WHERE {column} = :key AND archived_at IS NULL RETURNING id"
                ),
                inside,
            )
        )
    # Asked last, when every bed is locked: a check-in that was under way is seen, and a later one finds none.
    taken = await session.scalar(
        text("SELECT count(*) FROM bed_assignment WHERE bed_id = ANY(:beds) AND ended_at IS NULL"),
        {"beds": beds},
    )
    if taken:
        raise HasOpenStays(("id",), open_stays=taken)
    kept = (
        await session.execute(
            text(
                "SELECT bed_id, until FROM reservation WHERE bed_id = ANY(:beds) AND ended_at IS NULL "
                "AND until > clock_timestamp() ORDER BY until LIMIT 1"
            ),
            {"beds": beds},
        )
    ).one_or_none()
    if kept is not None:
        raise BedReserved(("id",), bed_id=kept[0], reserved_until=kept[1], alternative_ids=[])
    if beds:
        dispensary_id = row.id if isinstance(row, Dispensary) else row.dispensary_id
        await publish_beds(session, dispensary_id, *((bed, BedChange.ARCHIVED) for bed in sorted(beds)))


async def add_bed(session: AsyncSession, *, actor: Actor, room_id: int, details: dict[str, Any]) -> Bed:
    """The room has the bed, and the feed tells of it. Raises as `facilities.operations.create_bed` does."""
    bed = await create_bed(session, actor=actor, room_id=room_id, details=details)
    await publish_beds(session, bed.dispensary_id, (bed.id, BedChange.CREATED))
    return bed


async def delete_bed(session: AsyncSession, *, actor: Actor, bed_id: int, version: int) -> None:
    """The bed is gone, and the feed tells of it. Raises as `facilities.operations.delete` does."""
    bed = await locked(session, Bed, bed_id, actor=actor, version=version)
    await delete(session, Bed, actor=actor, key=bed_id, version=version)
    await publish_beds(session, bed.dispensary_id, (bed_id, BedChange.DELETED))


_MISMATCHED = text(
    """
    SELECT b.id, r.id FROM room r JOIN bed b ON b.room_id = r.id
    JOIN bed_assignment a ON a.bed_id = b.id AND a.ended_at IS NULL
    JOIN stay s ON s.id = a.stay_id JOIN patient p ON p.id = s.patient_id
    WHERE r.id = :room AND r.sex NOT IN ('ANY', p.sex) ORDER BY b.id LIMIT 1
    """
)


async def refuse_mismatched(session: AsyncSession, room_id: int) -> None:
    """Raises `RoomSexMismatch` when somebody lies in the room whom, as it is now, it does not take."""
    await session.flush()
    found = (await session.execute(_MISMATCHED, {"room": room_id})).one_or_none()
    if found is not None:
        raise RoomSexMismatch(("sex",), bed_id=found[0], room_id=found[1], alternative_ids=[])


async def edit_room(
    session: AsyncSession, *, actor: Actor, room_id: int, version: int, changes: dict[str, Any]
) -> Room:
    """The room is as changed, and takes everybody who lies in it.

    Raises as `facilities.operations.update_room` does, and `RoomSexMismatch`.
    """
    room = await update_room(session, actor=actor, room_id=room_id, version=version, changes=changes)
    await refuse_mismatched(session, room_id)
    return room


async def edit_bed(
    session: AsyncSession,
    *,
    actor: Actor,
    bed_id: int,
    version: int,
    changes: dict[str, Any],
    room_id: int | None = None,
) -> Bed:
    """The bed is as changed, and its room takes whoever lies in it.

    Raises as `facilities.operations.update_bed` does, and `RoomSexMismatch`.
    """
    bed = await update_bed(
        session, actor=actor, bed_id=bed_id, version=version, changes=changes, room_id=room_id
    )
    await refuse_mismatched(session, bed.room_id)
    return bed
