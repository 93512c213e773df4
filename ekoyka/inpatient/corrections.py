"""Corrections: a stay says what really happened, held to every rule, and what it said before is kept."""

from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.errors import Invalid, NotFound
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.availability import checked_reason, now, refuse_occupied, refuse_unusable
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.inpatient.stays import (
    CheckOutBeforeCheckIn,
    InFuture,
    flush,
    locked_stay,
    record,
    refuse_admitted,
    refuse_room,
    take_reservation,
)
from ekoyka.inpatient.tables import Outcome, Patient, Stay, StayRevision


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
    stay, assignments, beds = await locked_stay(
        session, actor=actor, stay_id=stay_id, version=version, beds=(bed_id,) if bed_id is not None else ()
    )
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
    await refuse_admitted(
        session, actor=actor, patient_id=stay.patient_id, since=begins, until=ends, besides=stay.id
    )
    bed = beds.get(last.bed_id if bed_id is None else bed_id)
    if bed is None or bed.dispensary_id != stay.dispensary_id:
        raise NotFound(("bedId",))
    await refuse_occupied(
        session,
        bed,
        since=begins if last is first else last.started_at,
        until=ends,
        patient_id=stay.patient_id,
        besides_stay=stay.id,
    )
    if last is not first:
        await refuse_occupied(
            session,
            beds[first.bed_id],
            since=begins,
            until=first.ended_at,
            patient_id=stay.patient_id,
            besides_stay=stay.id,
        )
    if bed.id != last.bed_id:
        patient = await session.get(Patient, stay.patient_id)
        assert patient is not None
        if ends is None:
            if bed.archived_at is not None:
                raise NotFound(("bedId",))
            await take_reservation(session, bed, patient, None)
            await refuse_unusable(session, bed, patient_id=patient.id)
        await refuse_room(session, bed, patient)
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
    touched = sorted({last.bed_id, bed.id})
    stay.checked_in_at = first.started_at = begins
    stay.checked_out_at = last.ended_at = ends
    last.bed_id = bed.id
    if outcome is not None:
        stay.outcome = outcome.value
    stay.version += 1
    await flush(session)
    record(session, actor, "stay_correct", stay, why)
    await publish_beds(session, stay.dispensary_id, *((key, BedChange.CORRECTED) for key in touched))
    return stay
