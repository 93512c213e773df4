"""Whether beds can be used: service state, closing, editing, archiving.

Refuses whatever would take a bed from under the patient who lies in it or for whom it is kept. Every
operation locks the bed first; see `stays` for the order of locks.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.columns import Remark
from ekoyka.errors import Conflict, NotFound
from ekoyka.facilities.operations import create_bed, delete, locked, update_bed, update_room
from ekoyka.facilities.tables import Bed, BedClosure, Dispensary, Room, ServiceState
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.queries import BedChange, alternatives, collision, patient_in_dispensaries, publish_beds
from ekoyka.inpatient.tables import Patient, Reservation
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


async def open_reservation(session: AsyncSession, bed_id: int) -> Reservation | None:
    """The reservation in force on a bed."""
    found = await session.execute(
        text(
            "SELECT id FROM reservation WHERE bed_id = :bed AND ended_at IS NULL AND until > clock_timestamp()"
        ),
        {"bed": bed_id},
    )
    key = found.scalar()
    return await session.get(Reservation, key, with_for_update=True) if key is not None else None


async def refuse_unusable(session: AsyncSession, bed: Bed, *, patient_id: int | None) -> None:
    """Raises `BedClosed` or `BedNotReady` with other beds, unless the bed is in service."""
    if bed.service_state == ServiceState.IN_SERVICE:
        return
    others = await alternatives(
        session, patient_id=patient_id, dispensary_id=bed.dispensary_id, besides=bed.id
    )
    if bed.service_state == ServiceState.CLOSED:
        closure = (
            await session.execute(
                text("SELECT closed_at, reason FROM bed_closure WHERE bed_id = :bed AND reopened_at IS NULL"),
                {"bed": bed.id},
            )
        ).one_or_none()
        raise BedClosed(
            ("bedId",),
            bed_id=bed.id,
            closed_at=closure[0] if closure else None,
            reason=closure[1] if closure else None,
            alternative_ids=others,
        )
    raise BedNotReady(("bedId",), bed_id=bed.id, service_state=bed.service_state, alternative_ids=others)


async def refuse_occupied(
    session: AsyncSession,
    bed: Bed,
    *,
    since: datetime,
    until: datetime | None = None,
    patient_id: int | None = None,
    besides_stay: int | None = None,
) -> None:
    """Raises `BedOccupied` when somebody lies in the bed at any time from then on, or until the instant."""
    inside = await collision(session, bed_id=bed.id, since=since, until=until, besides_stay=besides_stay)
    if inside is not None:
        raise BedOccupied(
            ("bedId",),
            bed_id=bed.id,
            occupied_since=inside.started_at,
            occupied_until=inside.ended_at,
            expected_end_on=inside.expected_end_on if inside.ended_at is None else None,
            alternative_ids=await alternatives(
                session, patient_id=patient_id, dispensary_id=bed.dispensary_id, besides=bed.id
            ),
        )


async def refuse_reserved(session: AsyncSession, bed: Bed, *, patient_id: int | None = None) -> None:
    """Raises `BedReserved` when the bed is kept for anybody."""
    kept = await open_reservation(session, bed.id)
    if kept is not None:
        raise BedReserved(
            ("bedId",),
            bed_id=bed.id,
            reserved_until=kept.until,
            alternative_ids=await alternatives(
                session, patient_id=patient_id, dispensary_id=bed.dispensary_id, besides=bed.id
            ),
        )


async def set_service_state(
    session: AsyncSession, *, actor: Actor, bed_id: int, state: ServiceState, reason: str | None = None
) -> Bed:
    """The bed is in this state; an open closure ends when it leaves CLOSED, and one begins when it enters it.

    Raises `NotFound`, `BedOccupied`, and for closing `Invalid` without a reason, `BedReserved`, `BedClosed`.
    """
    why = checked_reason(reason or "") if state is ServiceState.CLOSED else ""
    bed = await locked(session, Bed, bed_id, actor=actor)
    instant = await now(session)
    if state is not ServiceState.IN_SERVICE:
        await refuse_occupied(session, bed, since=instant)
    if state is ServiceState.CLOSED:
        await refuse_reserved(session, bed)
        if bed.service_state == ServiceState.CLOSED:
            await refuse_unusable(session, bed, patient_id=None)
        session.add(
            BedClosure(
                bed_id=bed.id,
                dispensary_id=bed.dispensary_id,
                closed_at=instant,
                reason=why,
                closed_by_id=actor.account_id,
            )
        )
    elif bed.service_state == ServiceState.CLOSED:
        await session.execute(
            text("UPDATE bed_closure SET reopened_at = :at WHERE bed_id = :bed AND reopened_at IS NULL"),
            {"at": instant, "bed": bed.id},
        )
    if bed.service_state != state:
        bed.service_state = state.value
        bed.version += 1
        await publish_beds(session, bed.dispensary_id, (bed.id, BedChange.SERVICE_STATE_CHANGED))
    return bed


async def visible_patient(
    session: AsyncSession, *, actor: Actor, patient_id: int, lock: bool = True
) -> Patient:
    """The patient, locked, if the actor may know of them as a superadministrator or doctor. Raises `NotFound`."""
    known = await session.scalar(
        text(
            "SELECT true FROM patient p WHERE p.id = :id AND (:everywhere OR "
            f"{patient_in_dispensaries('p', 'CAST(:ids AS bigint[])')})"
            + (" FOR NO KEY UPDATE OF p" if lock else "")
        ),
        {"id": patient_id, "everywhere": actor.superadmin, "ids": sorted(actor.doctor_of)},
    )
    patient = await session.get(Patient, patient_id, populate_existing=True) if known else None
    if patient is None:
        raise NotFound(("patientId",))
    return patient


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
