"""Holding, booking, moving and cancelling: by patients for themselves, by the dispensary's doctors for them.

Each locks, looks, asks the rules, and writes in one statement, which tells everybody concerned, too. The constraints
stand behind the locks, whatever the code does.
"""

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import Row
from ekoyka.errors import Conflict, NotFound, VersionConflict
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.outpatient.facts import Policy, lock, look
from ekoyka.outpatient.line import pass_on
from ekoyka.outpatient.notifications import people, slot_event, telling
from ekoyka.outpatient.queries import is_free
from ekoyka.outpatient.refusals import (
    CLINICIANS,
    TooManyAppointments,
    constraints_by_name,
    refuse_patient,
    refuse_slot,
)
from ekoyka.outpatient.tables import (
    LIVE,
    Appointment,
    AppointmentDetails,
    AppointmentStatus,
    NotificationKind,
)
from ekoyka.validation import validated


class NoPatientRecord(Conflict):
    """No patient's record is linked to the actor's account."""

    code = "NO_PATIENT_RECORD"
    ru = "Ваша учётная запись не связана с картой пациента: обратитесь в диспансер."
    en = "No patient's record is linked to your account: ask the dispensary."


class AppointmentEnded(Conflict):
    """The appointment is over: it was completed, cancelled or missed."""

    code = "APPOINTMENT_ENDED"
    ru = "Эта запись уже завершена или отменена."
    en = "This appointment is over or was cancelled."


class CancellationTooLate(Conflict):
    """It is too late for the patient to cancel or move the appointment; the dispensary still can."""

    code = "CANCELLATION_TOO_LATE"
    ru = "Отменить или перенести запись уже нельзя: позвоните в диспансер."
    en = "It is too late to cancel or move the appointment: telephone the dispensary."


class SameSlot(Conflict):
    """The appointment has this slot already."""

    code = "SAME_SLOT"
    ru = "Запись и так на это время."
    en = "The appointment has this slot already."


# One hold a person: holding another slot lets the former go.
_HOLD = feed.Publication(
    f"""
    WITH let_go AS (
        DELETE FROM slot_hold WHERE account_id = :account AND slot_id <> :slot RETURNING slot_id
    ), held AS (
        INSERT INTO slot_hold (slot_id, dispensary_id, account_id, until)
        SELECT id, dispensary_id, :account, least(CAST(:now AS timestamptz) + make_interval(secs => :hold_s), starts_at)
        FROM slot WHERE id = :slot AND (SELECT count(*) FROM let_go) >= 0
        ON CONFLICT (slot_id) DO UPDATE SET account_id = excluded.account_id, until = excluded.until
        RETURNING slot_id
    ), touched AS (
        SELECT s.doctor_id, s.id AS slot_id, 'HELD' AS change FROM held JOIN slot s ON s.id = held.slot_id
        UNION ALL
        SELECT s.doctor_id, s.id, 'RELEASED' FROM let_go JOIN slot s ON s.id = let_go.slot_id
    ), event AS ({slot_event("touched")}), {feed.publishing("event")}
    SELECT {feed.PUBLISHED} FROM counted
    """
)


async def hold(session: AsyncSession, *, actor: Actor, slot_id: int, policy: Policy) -> int:
    """The slot is kept for the actor for some minutes; another one that they held is not any more.

    Raises `NotFound`, `SlotInPast`, `DoctorBlocked`, `DoctorOnLeave`, `SlotTaken`, `SlotWithdrawn`.
    """
    await lock(session, actor, slots=[slot_id])
    seen = await look(session, actor, slot=slot_id)
    await refuse_slot(session, seen)
    await _HOLD.row(
        session, account=actor.account_id, slot=slot_id, now=seen.now, hold_s=float(policy.hold_s)
    )
    return slot_id


_RELEASE = feed.Publication(
    f"""
    WITH let_go AS (
        DELETE FROM slot_hold WHERE account_id = :account AND slot_id = :slot RETURNING slot_id
    ), touched AS (
        SELECT s.doctor_id, s.id AS slot_id, 'RELEASED' AS change FROM let_go JOIN slot s ON s.id = let_go.slot_id
    ), event AS ({slot_event("touched")}), {feed.publishing("event")}
    SELECT (SELECT count(*) FROM let_go) AS released, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def release(session: AsyncSession, *, actor: Actor, slot_id: int, policy: Policy) -> int:
    """The slot is not kept for the actor any more. Raises `NotFound` where it was not."""
    await lock(session, actor, slots=[slot_id])
    if not (await _RELEASE.row(session, account=actor.account_id, slot=slot_id)).released:
        raise NotFound(("slotId",))
    await pass_on(session, [slot_id], offer_s=policy.offer_s)
    return slot_id


_BOOK = feed.Publication(
    f"""
    WITH let_go AS (
        DELETE FROM slot_hold WHERE slot_id = :slot RETURNING slot_id
    ), changed AS (
        INSERT INTO appointment (
            slot_id, doctor_id, dispensary_id, patient_id, starts_at, ends_at, status, reason,
            booked_at, booked_by_id, placed_at, version
        )
        SELECT id, doctor_id, dispensary_id, :patient, starts_at, ends_at, 'BOOKED', CAST(:reason AS text),
            CAST(:now AS timestamptz), CAST(:account AS bigint), CAST(:now AS timestamptz), 1
        FROM slot WHERE id = :slot AND (SELECT count(*) FROM let_go) >= 0
        RETURNING *
    ), settled AS (
        UPDATE slot SET freed_at = NULL WHERE id = :slot AND freed_at IS NOT NULL
    ), logged AS (
        {access_log.entry("appointment_book", "Appointment", "changed")}
    ), people AS MATERIALIZED ({people("changed")}), touched AS (
        SELECT doctor_id, slot_id, 'TAKEN' AS change FROM changed
    ), {telling("BOOKED", NotificationKind.BOOKED)}
    SELECT changed.id, {feed.PUBLISHED} FROM changed, counted
    """
)


async def book(
    session: AsyncSession,
    *,
    actor: Actor,
    slot_id: int,
    patient_id: int | None = None,
    reason: str | None = None,
    policy: Policy,
    offer_id: int | None = None,
) -> Row:
    """The patient has an appointment in the slot; without one named, the patient is the actor.

    Raises `NotFound`, `NoPatientRecord`, `SlotInPast`, `DoctorBlocked`, `DoctorOnLeave`, `SlotTaken`,
    `SlotWithdrawn`, `PatientIsArchived`, `PatientBlocked`, `PatientAlreadyBooked`, `TooManyAppointments`, `Invalid`.
    """
    details = validated(AppointmentDetails, {"reason": reason})
    own = patient_id is None
    await lock(session, actor, slots=[slot_id], patient=patient_id, own=own)
    seen = await look(session, actor, slot=slot_id, patient=patient_id, own=own)
    if seen.slot_id is None:
        raise NotFound(("slotId",))
    if seen.patient_id is None:
        raise NoPatientRecord(("patientId",)) if own else NotFound(("patientId",))
    if not seen.own:
        if not seen.patient_known:
            raise NotFound(("patientId",))
        if not actor.works_in(seen.dispensary_id, CLINICIANS):
            raise NotFound(("slotId",))
    await refuse_slot(session, seen, offer_id=offer_id)
    refuse_patient(actor, seen)
    if seen.open_appointments >= policy.most_open:
        raise TooManyAppointments(("patientId",), open=seen.open_appointments, most=policy.most_open)
    with constraints_by_name():
        return await _BOOK.row(
            session,
            slot=slot_id,
            patient=seen.patient_id,
            reason=details.reason,
            now=seen.now,
            **access_log.bound(actor),
        )


def refuse_stale(actor: Actor, seen: Row, version: int) -> None:
    """Raises `NotFound` (also for whoever may not change it), `VersionConflict`, `AppointmentEnded`."""
    if seen.appointment_id is None or not (seen.own or actor.works_in(seen.former_dispensary_id, CLINICIANS)):
        raise NotFound(("id",))
    if seen.version != version:
        raise VersionConflict(
            ("version",),
            object_type=Appointment.__name__,
            object_id=seen.appointment_id,
            current_version=seen.version,
        )


def _refuse_late(actor: Actor, seen: Row, policy: Policy) -> None:
    """A patient leaves a slot in time, unless it is the doctor who is away."""
    if actor.works_in(seen.former_dispensary_id, CLINICIANS) or seen.former_off:
        return
    left_s = (seen.former_starts_at - seen.now).total_seconds()
    if left_s < policy.cancel_before_s:
        raise CancellationTooLate(
            ("id",), appointment_id=seen.appointment_id, before_s=policy.cancel_before_s
        )


# For however many appointments, each into its slot. Where nobody has looked at each of them (``carefully``), those
# whose slot or patient is not free any more stay where they are.
_MOVE = feed.Publication(
    f"""
    WITH pair AS (
        SELECT * FROM unnest(CAST(:appointments AS bigint[]), CAST(:slots AS bigint[])) AS x (appointment_id, slot_id)
    ), former AS MATERIALIZED (
        SELECT a.*, s.id AS to_id, s.doctor_id AS to_doctor_id, s.dispensary_id AS to_dispensary_id,
            s.starts_at AS since, s.ends_at AS until
        FROM pair x JOIN appointment a ON a.id = x.appointment_id JOIN slot s ON s.id = x.slot_id
        WHERE a.status = 'BOOKED' AND (NOT CAST(:carefully AS boolean) OR (
            {is_free("s", "clock_timestamp()")} AND NOT EXISTS (
                SELECT FROM appointment n WHERE n.patient_id = a.patient_id AND n.id <> a.id
                    AND {LIVE.format(row="n.")} AND n.starts_at < s.ends_at AND n.ends_at > s.starts_at
            )
        ))
    ), let_go AS (
        DELETE FROM slot_hold WHERE slot_id IN (SELECT to_id FROM former) RETURNING slot_id
    ), changed AS (
        UPDATE appointment a SET slot_id = f.to_id, doctor_id = f.to_doctor_id, dispensary_id = f.to_dispensary_id,
            starts_at = f.since, ends_at = f.until, placed_at = clock_timestamp(), version = a.version + 1
        FROM former f WHERE a.id = f.id AND (SELECT count(*) FROM let_go) >= 0
        RETURNING a.*
    ), settled AS (
        UPDATE slot s SET freed_at = CASE WHEN s.id IN (SELECT to_id FROM former) THEN NULL ELSE clock_timestamp() END
        WHERE s.id IN (SELECT to_id FROM former UNION SELECT slot_id FROM former)
    ), logged AS (
        {access_log.entry("appointment_move", "Appointment", "changed")}
    ), people AS MATERIALIZED ({people("changed")} UNION {people("former")}), touched AS (
        SELECT doctor_id, slot_id, 'FREED' AS change FROM former
        UNION ALL SELECT doctor_id, slot_id, 'TAKEN' FROM changed
    ), {telling("MOVED", NotificationKind.MOVED)}
    SELECT ARRAY(SELECT id FROM changed) AS moved, ARRAY(SELECT slot_id FROM former) AS freed, {feed.PUBLISHED}
    FROM (VALUES (true)) AS one LEFT JOIN counted ON true
    """
)


async def move(
    session: AsyncSession,
    *,
    actor: Actor,
    appointment_id: int,
    version: int,
    slot_id: int,
    policy: Policy,
    offer_id: int | None = None,
) -> int:
    """The appointment is in the other slot, and its former one is free for others.

    Raises as `book` does, and `VersionConflict`, `AppointmentEnded`, `SameSlot`, `CancellationTooLate`.
    """
    locked = await lock(session, actor, slots=[slot_id], appointments=[appointment_id])
    seen = await look(session, actor, slot=slot_id, appointment=appointment_id)
    # One that was moved while its slot was waited for has another version by now.
    refuse_stale(actor, seen, version)
    if seen.status != AppointmentStatus.BOOKED or seen.former_slot_id not in locked:
        raise AppointmentEnded(("id",), appointment_id=appointment_id)
    if seen.slot_id is None or not (seen.own or actor.works_in(seen.dispensary_id, CLINICIANS)):
        raise NotFound(("slotId",))
    if seen.former_slot_id == slot_id:
        raise SameSlot(("slotId",))
    _refuse_late(actor, seen, policy)
    await refuse_slot(session, seen, offer_id=offer_id)
    refuse_patient(actor, seen)
    await move_all(session, actor=actor, pairs={appointment_id: slot_id}, policy=policy, carefully=False)
    return appointment_id


async def move_all(
    session: AsyncSession, *, actor: Actor, pairs: dict[int, int], policy: Policy, carefully: bool = True
) -> list[int]:
    """The appointments are in their new slots, and their former ones passed on; which were moved.

    Call it with all of them locked. ``carefully``: those that cannot be moved are left where they are.
    """
    with constraints_by_name():
        done = await _MOVE.row(
            session,
            appointments=list(pairs),
            slots=list(pairs.values()),
            carefully=carefully,
            **access_log.bound(actor),
        )
    await pass_on(session, done.freed, offer_s=policy.offer_s)
    moved: list[int] = done.moved
    return moved


def _ending(status: AppointmentStatus, action: str, kind: NotificationKind | None = None) -> feed.Publication:
    """A statement with which an appointment gets a status; what waits for an earlier one in its place is over."""
    return feed.Publication(
        f"""
        WITH former AS MATERIALIZED (SELECT * FROM appointment WHERE id = :appointment), changed AS (
            UPDATE appointment SET status = '{status}', version = version + 1,
                cancellation_reason = coalesce(CAST(:reason AS text), cancellation_reason),
                arrived_at = CASE WHEN '{status}' = 'ARRIVED' THEN CAST(:now AS timestamptz) ELSE arrived_at END,
                ended_at = CASE WHEN '{status}' = 'ARRIVED' THEN NULL ELSE CAST(:now AS timestamptz) END
            WHERE id = :appointment RETURNING *
        ), freed AS (
            UPDATE slot SET freed_at = CAST(:now AS timestamptz)
            WHERE id IN (
                SELECT slot_id FROM former f WHERE {LIVE.format(row="f.")}
                    AND NOT EXISTS (SELECT FROM changed c WHERE {LIVE.format(row="c.")})
            )
            RETURNING id, doctor_id
        ), closed AS (
            UPDATE waiting_entry SET ended_at = CAST(:now AS timestamptz), outcome = 'CLOSED'
            WHERE appointment_id = :appointment AND ended_at IS NULL AND '{status}' <> 'ARRIVED' RETURNING id
        ), withdrawn AS (
            UPDATE slot_offer SET ended_at = CAST(:now AS timestamptz), outcome = 'WITHDRAWN'
            WHERE entry_id IN (SELECT id FROM closed) AND ended_at IS NULL RETURNING slot_id
        ), logged AS (
            {access_log.entry(action, "Appointment", "changed")}
        ), people AS MATERIALIZED ({people("changed")}), touched AS (
            SELECT doctor_id, id AS slot_id, 'FREED' AS change FROM freed
            UNION ALL
            SELECT s.doctor_id, s.id, 'RELEASED' FROM withdrawn JOIN slot s ON s.id = withdrawn.slot_id
        ), {telling(status, kind)}
        SELECT ARRAY(SELECT id FROM freed) AS freed, {feed.PUBLISHED} FROM counted
        """
    )


ENDINGS = {
    AppointmentStatus.ARRIVED: _ending(AppointmentStatus.ARRIVED, "appointment_arrive"),
    AppointmentStatus.FULFILLED: _ending(AppointmentStatus.FULFILLED, "appointment_complete"),
    AppointmentStatus.NOSHOW: _ending(AppointmentStatus.NOSHOW, "appointment_no_show"),
    AppointmentStatus.CANCELLED: _ending(
        AppointmentStatus.CANCELLED, "appointment_cancel", NotificationKind.CANCELLED
    ),
    AppointmentStatus.ENTERED_IN_ERROR: _ending(
        AppointmentStatus.ENTERED_IN_ERROR, "appointment_delete", NotificationKind.CANCELLED
    ),
}


async def end(
    session: AsyncSession,
    actor: Actor,
    seen: Row,
    status: AppointmentStatus,
    *,
    reason: str | None,
    policy: Policy,
) -> int:
    """The appointment looked at has the status; a slot that it leaves is passed on."""
    done = await ENDINGS[status].row(
        session, appointment=seen.appointment_id, reason=reason, now=seen.now, **access_log.bound(actor)
    )
    await pass_on(session, done.freed, offer_s=policy.offer_s)
    key: int = seen.appointment_id
    return key


async def cancel(
    session: AsyncSession,
    *,
    actor: Actor,
    appointment_id: int,
    version: int,
    reason: str | None,
    policy: Policy,
) -> int:
    """The appointment is cancelled, and its slot free at once.

    Raises `NotFound`, `VersionConflict`, `AppointmentEnded`, `CancellationTooLate`, `Invalid`.
    """
    details = validated(AppointmentDetails, {"reason": reason})
    locked = await lock(session, actor, appointments=[appointment_id])
    seen = await look(session, actor, appointment=appointment_id)
    refuse_stale(actor, seen, version)
    if seen.status != AppointmentStatus.BOOKED or seen.former_slot_id not in locked:
        raise AppointmentEnded(("id",), appointment_id=appointment_id)
    _refuse_late(actor, seen, policy)
    return await end(session, actor, seen, AppointmentStatus.CANCELLED, reason=details.reason, policy=policy)
