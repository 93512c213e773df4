"""Reservations: a bed is kept until an instant, given free, or lapses by itself."""

from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, Statement, constraint_name
from ekoyka.errors import Conflict, Forbidden, Invalid, NotFound
from ekoyka.facilities.operations import Archived
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.availability import BedReserved, refuse_occupied, refuse_reserved, refuse_unusable
from ekoyka.inpatient.facts import lock, look
from ekoyka.inpatient.queries import BedChange, bed_event, is_occupied, publish_beds, status_of

LONGEST_RESERVATION = timedelta(days=30)
WHO_RESERVES = (Role.SUPERADMIN, Role.DOCTOR, Role.DISPATCHER)


class ReservationEnded(Conflict):
    """The reservation is over already."""

    code = "RESERVATION_ENDED"
    ru = "Бронь уже завершена."
    en = "The reservation has ended already."


# The bed's former reservation, which ran out unnoticed, must end before the next can be.
_RESERVE = feed.Publication(
    f"""
    WITH lapsed AS (
        UPDATE reservation SET ended_at = until, outcome = 'LAPSED'
        WHERE bed_id = :bed AND ended_at IS NULL
        RETURNING id, bed_id, dispensary_id
    ), made AS (
        INSERT INTO reservation (bed_id, dispensary_id, patient_id, reserved_by_id, reserved_at, until)
        SELECT id, dispensary_id, CAST(:patient AS bigint), CAST(:account AS bigint),
            CAST(:now AS timestamptz), CAST(:until AS timestamptz)
        FROM bed WHERE id = :bed AND (SELECT count(*) FROM lapsed) >= 0
        RETURNING *
    ), logged AS (
        {access_log.entry("bed_reserve", "Reservation", "made")}
    ), event AS (
        {bed_event("dispensary_id", "bed_id", "'RESERVATION_LAPSED'", "'RESERVED'")}
        FROM lapsed
        UNION ALL
        {bed_event("dispensary_id", "bed_id", "'RESERVED'", "'RESERVED'", "1 + (SELECT count(*) FROM lapsed)")}
        FROM made
    ), {feed.publishing("event")}
    SELECT made.*, {feed.PUBLISHED} FROM made, counted
    """
)


async def reserve_bed(
    session: AsyncSession, *, actor: Actor, bed_id: int, until: datetime, patient_id: int | None
) -> Row:
    """The bed is kept until the instant, for the patient or for somebody on the way.

    Raises `NotFound`, `Forbidden` (a dispatcher names no patient), `Archived` (the patient's record),
    `Invalid`, `BedOccupied`, `BedReserved`, `BedClosed`, `BedNotReady`.
    """
    locked = await lock(session, bed=bed_id, patient=patient_id)
    seen = await look(session, actor, locked=locked, bed=bed_id, patient=patient_id)
    place = seen.dispensary_id
    if place is None or seen.bed_archived or not actor.works_in(place, WHO_RESERVES):
        raise NotFound(("bedId",))
    if patient_id is not None:
        if not actor.works_in(place, (Role.SUPERADMIN, Role.DOCTOR)):
            raise Forbidden(("patientId",))
        if seen.patient_id is None:
            raise NotFound(("patientId",))
        if seen.patient_archived:
            raise Archived(("patientId",))
    if until <= seen.now:
        raise Invalid(
            ("until",), ru="Бронь должна заканчиваться в будущем.", en="A reservation ends in the future."
        )
    if until - seen.now > LONGEST_RESERVATION:
        raise Invalid(("until",), ru="Бронь — не дольше 30 дней.", en="A reservation lasts at most 30 days.")
    await refuse_occupied(session, seen)
    await refuse_reserved(session, seen)
    await refuse_unusable(session, seen)
    try:
        return await _RESERVE.row(
            session, bed=bed_id, patient=patient_id, now=seen.now, until=until, **access_log.bound(actor)
        )
    except REFUSED_BY_CONSTRAINT as error:
        if constraint_name(error) == "uq_reservation_open_bed":
            raise BedReserved(("bedId",), bed_id=bed_id) from error
        raise


_RESERVATION = Statement(
    "SELECT dispensary_id, bed_id, ended_at IS NULL AND until > clock_timestamp() AS in_force "
    "FROM reservation WHERE id = :reservation"
)
_STATUS_NOW = status_of(is_occupied("b"), "false", "b.service_state")
_RELEASE = feed.Publication(
    f"""
    WITH released AS (
        UPDATE reservation SET ended_at = clock_timestamp(), outcome = 'RELEASED'
        WHERE id = :reservation AND ended_at IS NULL
        RETURNING *
    ), logged AS (
        {access_log.entry("reservation_release", "Reservation", "released")}
    ), event AS (
        {bed_event("b.dispensary_id", "b.id", "'RESERVATION_RELEASED'", _STATUS_NOW)}
        FROM released JOIN bed b ON b.id = released.bed_id
    ), {feed.publishing("event")}
    SELECT released.*, {feed.PUBLISHED} FROM released, counted
    """
)


async def release_reservation(session: AsyncSession, *, actor: Actor, reservation_id: int) -> Row:
    """The bed is not kept any more. Raises `NotFound`, `ReservationEnded`."""
    await lock(session, reservation=reservation_id)
    found = await _RESERVATION.rows(session, reservation=reservation_id)
    if not found or not actor.works_in(found[0].dispensary_id, WHO_RESERVES):
        raise NotFound(("id",))
    if not found[0].in_force:
        raise ReservationEnded(("id",))
    return await _RELEASE.row(session, reservation=reservation_id, **access_log.bound(actor))


# With its bed, which nobody changes meanwhile: the status that is told stays true until the commit.
_LAPSE = Statement(
    """
    WITH due AS (
        SELECT r.id FROM reservation r JOIN bed b ON b.id = r.bed_id
        WHERE r.ended_at IS NULL AND r.until <= clock_timestamp()
        ORDER BY r.dispensary_id, r.bed_id LIMIT 500 FOR UPDATE SKIP LOCKED
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
    for dispensary_id, bed_id in await _LAPSE.rows(session):
        lapsed.setdefault(dispensary_id, []).append(bed_id)
    for dispensary_id in sorted(lapsed):
        await publish_beds(
            session, dispensary_id, *((bed, BedChange.RESERVATION_LAPSED) for bed in lapsed[dispensary_id])
        )
    return sum(map(len, lapsed.values()))
