"""Reservations: a bed is kept until an instant, given free, or lapses by itself."""

from datetime import datetime, timedelta

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import constraint_name
from ekoyka.errors import Conflict, Forbidden, Invalid, NotFound
from ekoyka.facilities.operations import Archived
from ekoyka.facilities.tables import Bed
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.availability import (
    BedReserved,
    now,
    refuse_occupied,
    refuse_reserved,
    refuse_unusable,
    visible_patient,
)
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.inpatient.tables import Reservation, ReservationOutcome

LONGEST_RESERVATION = timedelta(days=30)
WHO_RESERVES = (Role.SUPERADMIN, Role.DOCTOR, Role.DISPATCHER)


class ReservationEnded(Conflict):
    """The reservation is over already."""

    code = "RESERVATION_ENDED"
    ru = "Бронь уже завершена."
    en = "The reservation has ended already."


async def reserve_bed(
    session: AsyncSession, *, actor: Actor, bed_id: int, until: datetime, patient_id: int | None
) -> Reservation:
    """The bed is kept until the instant, for the patient or for somebody on the way.

    Raises `NotFound`, `Forbidden` (a dispatcher names no patient), `Archived` (the patient's record),
    `Invalid`, `BedOccupied`, `BedReserved`, `BedClosed`, `BedNotReady`.
    """
    bed = await session.get(Bed, bed_id, with_for_update=True)
    if bed is None or bed.archived_at is not None or not actor.works_in(bed.dispensary_id, WHO_RESERVES):
        raise NotFound(("bedId",))
    if patient_id is not None:
        if not actor.works_in(bed.dispensary_id, (Role.SUPERADMIN, Role.DOCTOR)):
            raise Forbidden(("patientId",))
        patient = await visible_patient(session, actor=actor, patient_id=patient_id)
        if patient.archived_at is not None:
            raise Archived(("patientId",))
    instant = await now(session)
    if until <= instant:
        raise Invalid(
            ("until",), ru="Бронь должна заканчиваться в будущем.", en="A reservation ends in the future."
        )
    if until - instant > LONGEST_RESERVATION:
        raise Invalid(("until",), ru="Бронь — не дольше 30 дней.", en="A reservation lasts at most 30 days.")
    await refuse_occupied(session, bed, since=instant, patient_id=patient_id)
    await refuse_reserved(session, bed, patient_id=patient_id)
    await refuse_unusable(session, bed, patient_id=patient_id)
    lapsed = await session.scalar(
        text(
            "UPDATE reservation SET ended_at = until, outcome = 'LAPSED' "
            "WHERE bed_id = :bed AND ended_at IS NULL RETURNING id"
        ),
        {"bed": bed_id},
    )
    reservation = Reservation(
        bed_id=bed_id,
        dispensary_id=bed.dispensary_id,
        patient_id=patient_id,
        reserved_by_id=actor.account_id,
        reserved_at=instant,
        until=until,
    )
    session.add(reservation)
    try:
        await session.flush()
    except IntegrityError as error:
        if constraint_name(error) == "uq_reservation_open_bed":
            raise BedReserved(("bedId",), bed_id=bed_id) from error
        raise
    access_log.record(
        session,
        actor,
        "bed_reserve",
        "Reservation",
        reservation.id,
        patient_id=patient_id,
        dispensary_id=bed.dispensary_id,
    )
    earlier = [(bed_id, BedChange.RESERVATION_LAPSED)] if lapsed else []
    await publish_beds(session, bed.dispensary_id, *earlier, (bed_id, BedChange.RESERVED))
    return reservation


async def release_reservation(session: AsyncSession, *, actor: Actor, reservation_id: int) -> Reservation:
    """The bed is not kept any more. Raises `NotFound`, `ReservationEnded`."""
    bed_id = await session.scalar(
        text("SELECT bed_id FROM reservation WHERE id = :id"), {"id": reservation_id}
    )
    bed = await session.get(Bed, bed_id, with_for_update=True) if bed_id is not None else None
    if bed is None or not actor.works_in(bed.dispensary_id, WHO_RESERVES):
        raise NotFound(("id",))
    reservation = await session.get(Reservation, reservation_id, with_for_update=True)
    assert reservation is not None
    instant = await now(session)
    if reservation.ended_at is not None or reservation.until <= instant:
        raise ReservationEnded(("id",))
    reservation.ended_at = instant
    reservation.outcome = ReservationOutcome.RELEASED
    access_log.record(
        session,
        actor,
        "reservation_release",
        "Reservation",
        reservation.id,
        patient_id=reservation.patient_id,
        dispensary_id=bed.dispensary_id,
    )
    await publish_beds(session, bed.dispensary_id, (bed.id, BedChange.RESERVATION_RELEASED))
    return reservation


_LAPSE = text(
    """
    WITH due AS (
        SELECT id FROM reservation WHERE ended_at IS NULL AND until <= clock_timestamp()
        ORDER BY dispensary_id, bed_id LIMIT 500 FOR UPDATE SKIP LOCKED
    )
    UPDATE reservation r SET ended_at = r.until, outcome = 'LAPSED' FROM due WHERE r.id = due.id
    RETURNING r.dispensary_id, r.bed_id
    """
)


async def lapse_reservations(session: AsyncSession) -> int:
    """Reservations whose time has run out are ended, and their feeds told; how many there were.

    Several processes may call it at once: each takes what the others have not.
    """
    lapsed: dict[int, list[int]] = {}
    for dispensary_id, bed_id in (await session.execute(_LAPSE)).all():
        lapsed.setdefault(dispensary_id, []).append(bed_id)
    for dispensary_id in sorted(lapsed):
        await publish_beds(
            session, dispensary_id, *((bed, BedChange.RESERVATION_LAPSED) for bed in lapsed[dispensary_id])
        )
    return sum(map(len, lapsed.values()))
