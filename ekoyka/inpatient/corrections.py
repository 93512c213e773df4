"""Corrections: a stay says what really happened, held to every rule, and what it said before is kept."""

from datetime import datetime
from functools import partial

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ekoyka.errors import Invalid, NotFound
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.availability import (
    checked_reason,
    now,
    refuse_kept,
    refuse_occupied,
    refuse_room,
    refuse_unusable,
)
from ekoyka.inpatient.facts import lock, look
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.inpatient.stays import (
    CheckOutBeforeCheckIn,
    InFuture,
    constraints_by_name,
    record,
    refuse_admitted,
    refuse_stale,
)
from ekoyka.inpatient.tables import (
    BedAssignment,
    Outcome,
    Reservation,
    ReservationOutcome,
    Stay,
    StayRevision,
)

_ASSIGNMENTS = (
    select(BedAssignment)
    .where(col(BedAssignment.stay_id) == bindparam("stay"))
    .order_by(col(BedAssignment.started_at), col(BedAssignment.id))
    .execution_options(populate_existing=True)
)


async def correct(
    session: AsyncSession,
    *,
    actor: Actor,
    stay_id: int,
    version: int,
    reason: str,
    checked_in_at: datetime | None = None,
    checked_out_at: datetime | None = None,
    outcome: Outcome | None = None,
    bed_id: int | None = None,
) -> Stay:
    """The stay says what really happened; what it said before is kept, with the reason.

    ``checked_in_at`` moves the beginning of its first bed, ``checked_out_at`` the end of its last, and
    ``bed_id`` says which bed the last one really was. Raises `NotFound`, `VersionConflict`, `InFuture`,
    `CheckOutBeforeCheckIn`, `BedOccupied`, `PatientAlreadyAdmitted`, `RoomSexMismatch`, `Invalid`; while the
    patient is there, for another bed also `BedReserved`, `BedClosed`, `BedNotReady`.
    """
    why = checked_reason(reason)
    locked = await lock(session, bed=bed_id, stay=stay_id)
    look_at = partial(look, session, actor, locked=locked, stay=stay_id, besides=stay_id)
    refuse_stale(actor, await look_at(), version)
    stay = await session.get_one(Stay, stay_id, populate_existing=True)
    assignments = (await session.scalars(_ASSIGNMENTS, {"stay": stay_id})).all()
    instant = await now(session)
    for name, at in (("checkedInAt", checked_in_at), ("checkedOutAt", checked_out_at)):
        if at is not None and at > instant:
            raise InFuture((name,), now=instant)
    if (checked_out_at is not None or outcome is not None) and stay.checked_out_at is None:
        raise Invalid(
            ("checkedOutAt",),
            ru="Пациент ещё не выписан: выпишите его.",
            en="The stay is open: check the patient out.",
        )
    first, last = assignments[0], assignments[-1]
    begins, ends = checked_in_at or stay.checked_in_at, checked_out_at or stay.checked_out_at
    if begins > (first.ended_at if last is not first and first.ended_at else ends or instant):
        field = "checkedInAt" if checked_out_at is None else "checkedOutAt"
        raise CheckOutBeforeCheckIn((field,), stay_id=stay.id, checked_in_at=begins)
    if ends is not None and last is not first and ends < last.started_at:
        raise CheckOutBeforeCheckIn(("checkedOutAt",), stay_id=stay.id, checked_in_at=last.started_at)
    where = last.bed_id if bed_id is None else bed_id
    whole = await look_at(bed=where, since=begins, until=ends)
    refuse_admitted(actor, whole)
    if whole.dispensary_id != stay.dispensary_id:
        raise NotFound(("bedId",))
    if last is first:
        await refuse_occupied(session, whole)
    else:
        await refuse_occupied(session, await look_at(bed=where, since=last.started_at, until=ends))
        await refuse_occupied(session, await look_at(bed=first.bed_id, since=begins, until=first.ended_at))
    if where != last.bed_id:
        if ends is None:
            if whole.bed_archived:
                raise NotFound(("bedId",))
            await refuse_kept(session, whole, None)
            await refuse_unusable(session, whole)
            if whole.reservation_id is not None:
                kept = await session.get_one(Reservation, whole.reservation_id, populate_existing=True)
                kept.ended_at, kept.outcome = whole.now, ReservationOutcome.FULFILLED
        await refuse_room(session, whole)
    session.add(
        StayRevision(
            stay_id=stay.id,
            revised_by_id=actor.account_id,
            reason=why,
            former={
                "checked_in_at": stay.checked_in_at.isoformat(),
                "checked_out_at": stay.checked_out_at.isoformat() if stay.checked_out_at else None,
                "outcome": stay.outcome,
                "bed_id": last.bed_id,
            },
        )
    )
    touched = sorted({last.bed_id, where})
    stay.checked_in_at = first.started_at = begins
    stay.checked_out_at = last.ended_at = ends
    last.bed_id = where
    if outcome is not None:
        stay.outcome = outcome.value
    stay.version += 1
    with constraints_by_name():
        await session.flush()
    record(session, actor, "stay_correct", stay, why)
    await publish_beds(session, stay.dispensary_id, *((key, BedChange.CORRECTED) for key in touched))
    return stay
