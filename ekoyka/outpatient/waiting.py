"""The waiting list: joining and leaving it, and answering the offers that it brings."""

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, Statement, constraint_name
from ekoyka.errors import Conflict, NotFound
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.stays import NotADoctorThere
from ekoyka.outpatient.appointments import AppointmentEnded, NoPatientRecord, book, move
from ekoyka.outpatient.facts import Policy, lock, look
from ekoyka.outpatient.line import pass_on
from ekoyka.outpatient.notifications import slot_event
from ekoyka.outpatient.refusals import CLINICIANS, refuse_patient
from ekoyka.outpatient.tables import AppointmentStatus


class AlreadyWaiting(Conflict):
    """The patient waits there for this doctor, or for any, already."""

    code = "ALREADY_WAITING"
    ru = "Пациент уже в этой очереди."
    en = "The patient is in this line already."


class WaitingEnded(Conflict):
    """The patient does not wait there any more."""

    code = "WAITING_ENDED"
    ru = "Эта очередь для пациента уже закончилась."
    en = "The patient is no longer in this line."


class OfferEnded(Conflict):
    """The offer was answered or has lapsed."""

    code = "OFFER_ENDED"
    ru = "Предложение уже не действует."
    en = "The offer is over."


_WHERE = Statement(
    """
    SELECT d.id, CAST(:doctor AS bigint) IS NULL OR EXISTS (
        SELECT FROM role_grant g JOIN account x ON x.id = g.account_id AND x.blocked_at IS NULL
        WHERE g.account_id = CAST(:doctor AS bigint) AND g.role = 'DOCTOR' AND g.dispensary_id = d.id
    ) AS doctor_there
    FROM dispensary d WHERE d.id = :dispensary AND d.archived_at IS NULL
    """
)
_JOIN = Statement(
    f"""
    WITH joined AS (
        INSERT INTO waiting_entry (dispensary_id, doctor_id, patient_id, appointment_id, joined_at, joined_by_id)
        VALUES (:dispensary, CAST(:doctor AS bigint), :patient, CAST(:appointment AS bigint), :now,
            CAST(:account AS bigint))
        RETURNING *
    ), logged AS (
        {access_log.entry("waiting_list_join", "WaitingEntry", "joined")}
    )
    SELECT id FROM joined
    """
)


async def join(
    session: AsyncSession,
    *,
    actor: Actor,
    dispensary_id: int,
    doctor_id: int | None,
    patient_id: int | None = None,
    appointment_id: int | None = None,
) -> int:
    """The patient is last in the line for freed slots of the doctor, or of any there; without one named, the actor.

    With an appointment they wait for an earlier one in its place. Raises `NotFound`, `NoPatientRecord`,
    `NotADoctorThere`, `PatientIsArchived`, `PatientBlocked`, `AppointmentEnded`, `AlreadyWaiting`.
    """
    own = patient_id is None
    await lock(
        session, actor, patient=patient_id, own=own, appointments=[appointment_id] if appointment_id else []
    )
    seen = await look(session, actor, patient=patient_id, own=own)
    places = await _WHERE.rows(session, dispensary=dispensary_id, doctor=doctor_id)
    if not places:
        raise NotFound(("dispensaryId",))
    if seen.patient_id is None:
        raise NoPatientRecord(("patientId",)) if own else NotFound(("patientId",))
    if not seen.own and not (actor.works_in(dispensary_id, CLINICIANS) and seen.patient_known):
        raise NotFound(("patientId",))
    if not places[0].doctor_there:
        raise NotADoctorThere(("doctorId",))
    refuse_patient(actor, seen)
    if appointment_id is not None:
        found = await look(session, actor, appointment=appointment_id)
        if found.appointment_id is None or (found.patient_id, found.former_dispensary_id) != (
            seen.patient_id,
            dispensary_id,
        ):
            raise NotFound(("appointmentId",))
        if found.status != AppointmentStatus.BOOKED:
            raise AppointmentEnded(("appointmentId",), appointment_id=appointment_id)
    try:
        row = await _JOIN.row(
            session,
            dispensary=dispensary_id,
            doctor=doctor_id,
            patient=seen.patient_id,
            appointment=appointment_id,
            now=seen.now,
            **access_log.bound(actor),
        )
    except REFUSED_BY_CONSTRAINT as error:
        if constraint_name(error) == "uq_waiting_entry_open":
            raise AlreadyWaiting(("dispensaryId",)) from error
        raise
    return row.id


_ENTRY = Statement(
    """
    SELECT w.id, w.patient_id, w.dispensary_id, w.appointment_id, w.ended_at IS NOT NULL AS ended,
        p.account_id = CAST(:account AS bigint) AS own,
        (SELECT o.slot_id FROM slot_offer o WHERE o.entry_id = w.id AND o.ended_at IS NULL) AS offered_slot_id
    FROM waiting_entry w JOIN patient p ON p.id = w.patient_id WHERE w.id = :entry
    """
)
# An entry that is over leaves no offer behind.
_CLOSE = feed.Publication(
    f"""
    WITH over AS (
        UPDATE waiting_entry SET ended_at = clock_timestamp(), outcome = :outcome
        WHERE id = :entry AND ended_at IS NULL RETURNING *
    ), answered AS (
        UPDATE slot_offer SET ended_at = clock_timestamp(), outcome = :answer
        WHERE entry_id = :entry AND ended_at IS NULL RETURNING slot_id
    ), logged AS (
        {access_log.entry("waiting_list_end", "WaitingEntry", "over")}
    ), touched AS (
        SELECT s.doctor_id, s.id AS slot_id, 'RELEASED' AS change FROM answered JOIN slot s ON s.id = answered.slot_id
        WHERE :answer = 'WITHDRAWN'
    ), event AS ({slot_event("touched")}), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM over) AS closed, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def _entry(session: AsyncSession, actor: Actor, entry_id: int) -> Row:
    """The entry, if it is the actor's own or of a dispensary in which they are a doctor. Raises `NotFound`."""
    found = await _ENTRY.rows(session, entry=entry_id, account=actor.account_id)
    if not found or not (found[0].own or actor.works_in(found[0].dispensary_id, CLINICIANS)):
        raise NotFound(("entryId",))
    return found[0]


async def leave(session: AsyncSession, *, actor: Actor, entry_id: int, policy: Policy) -> int:
    """The patient does not wait any more; what was offered to them passes on. Raises `NotFound`, `WaitingEnded`."""
    seen = await _entry(session, actor, entry_id)
    slots = [seen.offered_slot_id] if seen.offered_slot_id else []
    await lock(session, actor, slots=slots, patient=seen.patient_id)
    done = await _CLOSE.row(
        session, entry=entry_id, outcome="LEFT", answer="WITHDRAWN", **access_log.bound(actor)
    )
    if not done.closed:
        raise WaitingEnded(("entryId",))
    await pass_on(session, slots, offer_s=policy.offer_s)
    return entry_id


_OFFER = Statement(
    """
    SELECT o.entry_id, o.slot_id, o.patient_id, o.dispensary_id, w.appointment_id,
        a.status AS appointment_status, a.version AS appointment_version,
        p.account_id = CAST(:account AS bigint) AS own,
        o.ended_at IS NULL AND o.until > clock_timestamp() AS in_force
    FROM slot_offer o JOIN waiting_entry w ON w.id = o.entry_id JOIN patient p ON p.id = o.patient_id
    LEFT JOIN appointment a ON a.id = w.appointment_id
    WHERE o.id = :offer
    """
)


async def _offer(session: AsyncSession, actor: Actor, offer_id: int) -> Row:
    """The offer as it is behind its locks. Raises `NotFound`, `OfferEnded`."""
    found = await _OFFER.rows(session, offer=offer_id, account=actor.account_id)
    if not found or not (found[0].own or actor.works_in(found[0].dispensary_id, CLINICIANS)):
        raise NotFound(("id",))
    seen = found[0]
    appointments = [seen.appointment_id] if seen.appointment_id else []
    await lock(session, actor, slots=[seen.slot_id], appointments=appointments, patient=seen.patient_id)
    seen = await _OFFER.row(session, offer=offer_id, account=actor.account_id)
    if not seen.in_force:
        raise OfferEnded(("id",))
    return seen


async def accept(session: AsyncSession, *, actor: Actor, offer_id: int, policy: Policy) -> int:
    """The patient has an appointment in the slot that was offered, in place of the one they had; its key.

    Raises as `appointments.book` and `move` do, and `OfferEnded`.
    """
    seen = await _offer(session, actor, offer_id)
    if seen.appointment_status == AppointmentStatus.BOOKED:
        key = await move(
            session,
            actor=actor,
            appointment_id=seen.appointment_id,
            version=seen.appointment_version,
            slot_id=seen.slot_id,
            # A slot that was offered may be taken at any time.
            policy=policy.at_any_time(),
            offer_id=offer_id,
        )
    else:
        row = await book(
            session,
            actor=actor,
            slot_id=seen.slot_id,
            patient_id=seen.patient_id,
            policy=policy,
            offer_id=offer_id,
        )
        key = row.id
    await _CLOSE.row(
        session, entry=seen.entry_id, outcome="BOOKED", answer="ACCEPTED", **access_log.bound(actor)
    )
    return key


_DECLINE = feed.Publication(
    f"""
    WITH answered AS (
        UPDATE slot_offer SET ended_at = clock_timestamp(), outcome = 'DECLINED' WHERE id = :offer RETURNING slot_id
    ), touched AS (
        SELECT s.doctor_id, s.id AS slot_id, 'RELEASED' AS change FROM answered JOIN slot s ON s.id = answered.slot_id
    ), event AS ({slot_event("touched")}), {feed.publishing("event")}
    SELECT {feed.PUBLISHED} FROM counted
    """
)


async def decline(session: AsyncSession, *, actor: Actor, offer_id: int, policy: Policy) -> int:
    """The slot passes on to the next in line; the patient keeps their place. Raises `NotFound`, `OfferEnded`."""
    seen = await _offer(session, actor, offer_id)
    await _DECLINE.row(session, offer=offer_id)
    await pass_on(session, [seen.slot_id], offer_s=policy.offer_s)
    return offer_id
