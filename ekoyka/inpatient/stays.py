"""Check in, transfer, check out, and editing stays; `corrections` says what really happened.

Locks are always taken in this order: beds by id, then the patient, then the stay, then the feed's topic. So
a burst on one bed queues up on its row and each in turn sees what the one before it wrote; the constraints
stand behind it, whatever the code does.
"""

from datetime import date, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from ekoyka.database import constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, VersionConflict
from ekoyka.facilities.tables import Bed, Dispensary, Room, RoomSex, ServiceState
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.availability import (
    BedOccupied,
    BedReserved,
    RoomSexMismatch,
    now,
    open_reservation,
    refuse_occupied,
    refuse_unusable,
    visible_patient,
)
from ekoyka.inpatient.queries import BedChange, alternatives, publish_beds
from ekoyka.inpatient.tables import (
    BedAssignment,
    Outcome,
    Patient,
    ReservationOutcome,
    Stay,
    StayPlan,
)
from ekoyka.validation import changed, validated

CLINICIANS = (Role.SUPERADMIN, Role.DOCTOR)


class PatientAlreadyAdmitted(Conflict):
    """The patient stays somewhere at that time; where is told only to whoever may know."""

    code = "PATIENT_ALREADY_ADMITTED"
    ru = "Пациент уже госпитализирован на это время: сначала завершите ту госпитализацию."
    en = "The patient is admitted already at that time: end that stay first."


class PatientIsArchived(Conflict):
    """The patient's record is archived."""

    code = "PATIENT_ARCHIVED"
    ru = "Карта пациента в архиве: сначала верните её."
    en = "The patient's record is archived: bring it back first."


class StayAlreadyEnded(Conflict):
    """The stay is over."""

    code = "STAY_ALREADY_ENDED"
    ru = "Госпитализация уже завершена."
    en = "The stay has ended already."


class CheckOutBeforeCheckIn(Conflict):
    """The instant lies before the stay, or its present bed, began."""

    code = "CHECK_OUT_BEFORE_CHECK_IN"
    ru = "Это раньше, чем началось пребывание: проверьте время."
    en = "This is before the stay began: check the time."


class InFuture(Conflict):
    """The instant is in the future; what has not happened is not recorded."""

    code = "IN_FUTURE"
    ru = "Это время ещё не наступило."
    en = "This time has not come yet."


class SameBed(Conflict):
    """The patient lies in this bed already."""

    code = "SAME_BED"
    ru = "Пациент уже лежит на этой койке."
    en = "The patient lies in this bed already."


class NotADoctorThere(Conflict):
    """The attending doctor does not work in the dispensary."""

    code = "NOT_A_DOCTOR_THERE"
    ru = "Этот человек не работает врачом в диспансере."
    en = "This person is not a doctor of the dispensary."


async def _locked_beds(session: AsyncSession, *keys: int) -> dict[int, Bed]:
    """The beds, locked in the order of their ids."""
    beds = {}
    for key in sorted(set(keys)):
        bed = await session.get(Bed, key, with_for_update=True, populate_existing=True)
        if bed is not None:
            beds[key] = bed
    return beds


async def refuse_room(session: AsyncSession, bed: Bed, patient: Patient) -> None:
    # Shared with other check-ins; whoever changes the room's rule waits for them, and they for it.
    room = await session.get(Room, bed.room_id, with_for_update={"read": True}, populate_existing=True)
    assert room is not None
    if room.sex not in (RoomSex.ANY, patient.sex):
        raise RoomSexMismatch(
            ("bedId",),
            bed_id=bed.id,
            room_id=room.id,
            alternative_ids=await alternatives(
                session, patient_id=patient.id, dispensary_id=bed.dispensary_id, besides=bed.id
            ),
        )


async def take_reservation(
    session: AsyncSession, bed: Bed, patient: Patient, reservation_id: int | None
) -> None:
    """A reservation for the patient, or the one that the actor names, is fulfilled; another stands in the way."""
    kept = await open_reservation(session, bed.id)
    if kept is None:
        return
    if kept.patient_id != patient.id and not (kept.patient_id is None and kept.id == reservation_id):
        raise BedReserved(
            ("bedId",),
            bed_id=bed.id,
            reserved_until=kept.until,
            alternative_ids=await alternatives(
                session, patient_id=patient.id, dispensary_id=bed.dispensary_id, besides=bed.id
            ),
        )
    kept.ended_at = await now(session)
    kept.outcome = ReservationOutcome.FULFILLED


async def refuse_admitted(
    session: AsyncSession,
    *,
    actor: Actor,
    patient_id: int,
    since: datetime,
    until: datetime | None = None,
    besides: int | None = None,
) -> None:
    row = (
        await session.execute(
            text(
                "SELECT id, dispensary_id, checked_in_at, checked_out_at FROM stay WHERE patient_id = :patient "
                "AND id IS DISTINCT FROM CAST(:besides AS bigint) "
                "AND tstzrange(checked_in_at, checked_out_at) && "
                "tstzrange(CAST(:since AS timestamptz), CAST(:until AS timestamptz)) "
                "ORDER BY checked_out_at IS NULL DESC, checked_in_at LIMIT 1"
            ),
            {"patient": patient_id, "since": since, "until": until, "besides": besides},
        )
    ).one_or_none()
    if row is not None:
        may_know = actor.works_in(row.dispensary_id, CLINICIANS)
        raise PatientAlreadyAdmitted(
            ("patientId",),
            patient_id=patient_id,
            stay_id=row.id if may_know else None,
            since=row.checked_in_at if may_know else None,
            until=row.checked_out_at if may_know else None,
        )


async def _refuse_doctor(session: AsyncSession, dispensary_id: int, account_id: int | None) -> None:
    if account_id is not None and not await session.scalar(
        text(
            "SELECT true FROM role_grant "
            "WHERE account_id = :account AND role = 'DOCTOR' AND dispensary_id = :dispensary"
        ),
        {"account": account_id, "dispensary": dispensary_id},
    ):
        raise NotADoctorThere(("attendingDoctorId",))


async def flush(session: AsyncSession) -> None:
    """Flushes; what the locks should have kept away is refused by the constraints all the same."""
    try:
        await session.flush()
    except IntegrityError as error:
        match constraint_name(error):
            case "uq_bed_assignment_open_bed" | "ex_bed_assignment_bed_overlap":
                raise BedOccupied(("bedId",)) from error
            case "uq_stay_open_patient" | "ex_stay_patient_overlap":
                raise PatientAlreadyAdmitted(("patientId",)) from error
            case "ck_stay_interval" | "ck_bed_assignment_interval":
                raise CheckOutBeforeCheckIn(("at",)) from error
            case _:
                raise


async def check_in(
    session: AsyncSession,
    *,
    actor: Actor,
    patient_id: int,
    bed_id: int,
    at: datetime | None = None,
    plan: dict[str, Any] | None = None,
    attending_doctor_id: int | None = None,
    reservation_id: int | None = None,
    source_key: str | None = None,
) -> Stay:
    """The patient lies in the bed from ``at`` (by default now) on.

    A reservation for the patient, or the one named, is fulfilled. Raises `NotFound`, `InFuture`,
    `PatientIsArchived`, `PatientAlreadyAdmitted`, `BedOccupied`, `BedReserved`, `BedClosed`, `BedNotReady`,
    `RoomSexMismatch`, `NotADoctorThere`, `Invalid`.
    """
    details = validated(StayPlan, plan or {})
    bed = (await _locked_beds(session, bed_id)).get(bed_id)
    if bed is None or bed.archived_at is not None or not actor.works_in(bed.dispensary_id, CLINICIANS):
        raise NotFound(("bedId",))
    patient = await visible_patient(session, actor=actor, patient_id=patient_id)
    instant = await now(session)
    if at is not None and at > instant:
        raise InFuture(("checkedInAt",), now=instant)
    since = at or instant
    if patient.archived_at is not None:
        raise PatientIsArchived(("patientId",), patient_id=patient.id)
    await refuse_admitted(session, actor=actor, patient_id=patient.id, since=since)
    await refuse_occupied(session, bed, since=since, patient_id=patient.id)
    await take_reservation(session, bed, patient, reservation_id)
    await refuse_unusable(session, bed, patient_id=patient.id)
    await refuse_room(session, bed, patient)
    await _refuse_doctor(session, bed.dispensary_id, attending_doctor_id)
    await _refuse_plan(session, bed.dispensary_id, since, details.planned_check_out_on)
    stay = Stay(
        patient_id=patient.id,
        dispensary_id=bed.dispensary_id,
        checked_in_at=since,
        attending_doctor_id=attending_doctor_id,
        source_key=source_key,
        **details.model_dump(),
    )
    session.add(stay)
    await flush(session)
    session.add(
        BedAssignment(stay_id=stay.id, bed_id=bed.id, dispensary_id=bed.dispensary_id, started_at=since)
    )
    await flush(session)
    record(session, actor, "stay_check_in", stay)
    await publish_beds(session, bed.dispensary_id, (bed.id, BedChange.CHECKED_IN))
    return stay


def record(session: AsyncSession, actor: Actor, action: str, stay: Stay, reason: str | None = None) -> None:
    access_log.record(
        session,
        actor,
        action,
        "Stay",
        stay.id,
        patient_id=stay.patient_id,
        dispensary_id=stay.dispensary_id,
        reason=reason,
    )


_ASSIGNMENTS = text("SELECT id, bed_id FROM bed_assignment WHERE stay_id = :stay ORDER BY started_at, id")


async def locked_stay(
    session: AsyncSession, *, actor: Actor, stay_id: int, version: int, beds: tuple[int, ...] = ()
) -> tuple[Stay, list[BedAssignment], dict[int, Bed]]:
    """The stay, its assignments in order, and their beds with the other beds; beds, patient and stay locked.

    Raises `NotFound`, `VersionConflict` (which a transfer in the meantime is).
    """
    stay = await session.get(Stay, stay_id)
    if stay is None or not actor.works_in(stay.dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    before = (await session.execute(_ASSIGNMENTS, {"stay": stay_id})).all()
    locked = await _locked_beds(session, *beds, *(row.bed_id for row in before))
    await session.get(Patient, stay.patient_id, with_for_update={"key_share": True})
    await session.refresh(stay, with_for_update=True)
    if stay.version != version or (await session.execute(_ASSIGNMENTS, {"stay": stay_id})).all() != before:
        raise VersionConflict(
            ("version",), object_type="Stay", object_id=stay_id, current_version=stay.version
        )
    keys = [row.id for row in before]
    rows = await session.scalars(select(BedAssignment).where(col(BedAssignment.id).in_(keys)))
    return stay, sorted(rows, key=lambda row: keys.index(row.id)), locked


async def _ending(
    session: AsyncSession, stay: Stay, assignment: BedAssignment, at: datetime | None
) -> datetime:
    """The instant at which the present assignment ends."""
    if stay.checked_out_at is not None:
        raise StayAlreadyEnded(("id",), stay_id=stay.id, ended_at=stay.checked_out_at)
    instant = await now(session)
    if at is not None and at > instant:
        raise InFuture(("at",), now=instant)
    end = at or instant
    if end < assignment.started_at:
        raise CheckOutBeforeCheckIn(("at",), stay_id=stay.id, checked_in_at=assignment.started_at)
    return end


async def transfer(
    session: AsyncSession,
    *,
    actor: Actor,
    stay_id: int,
    version: int,
    bed_id: int,
    at: datetime | None = None,
    reservation_id: int | None = None,
) -> Stay:
    """The patient lies in the other bed from ``at`` (by default now) on, and in the former one until then.

    Raises as `check_in` does, and `VersionConflict`, `StayAlreadyEnded`, `SameBed`, `CheckOutBeforeCheckIn`.
    """
    stay, assignments, beds = await locked_stay(
        session, actor=actor, stay_id=stay_id, version=version, beds=(bed_id,)
    )
    assignment = assignments[-1]
    bed = beds.get(bed_id)
    if bed is None or bed.archived_at is not None or bed.dispensary_id != stay.dispensary_id:
        raise NotFound(("bedId",))
    patient = await session.get(Patient, stay.patient_id)
    assert patient is not None
    end = await _ending(session, stay, assignment, at)
    if assignment.bed_id == bed_id:
        raise SameBed(("bedId",), bed_id=bed_id)
    await refuse_occupied(session, bed, since=end, patient_id=patient.id)
    await take_reservation(session, bed, patient, reservation_id)
    await refuse_unusable(session, bed, patient_id=patient.id)
    await refuse_room(session, bed, patient)
    assignment.ended_at = end
    await flush(session)
    session.add(
        BedAssignment(stay_id=stay.id, bed_id=bed.id, dispensary_id=bed.dispensary_id, started_at=end)
    )
    stay.version += 1
    await _leave(session, beds[assignment.bed_id])
    await flush(session)
    record(session, actor, "stay_transfer", stay)
    await publish_beds(
        session,
        stay.dispensary_id,
        (assignment.bed_id, BedChange.TRANSFERRED_OUT),
        (bed.id, BedChange.TRANSFERRED_IN),
    )
    return stay


async def _leave(session: AsyncSession, bed: Bed) -> None:
    """The bed goes to cleaning, where the dispensary wishes it so."""
    dispensary = await session.get(Dispensary, bed.dispensary_id)
    assert dispensary is not None
    if dispensary.cleaning_after_check_out and bed.service_state == ServiceState.IN_SERVICE:
        bed.service_state = ServiceState.CLEANING
        bed.version += 1


async def check_out(
    session: AsyncSession,
    *,
    actor: Actor,
    stay_id: int,
    version: int,
    outcome: Outcome,
    at: datetime | None = None,
) -> Stay:
    """The patient has left, at ``at`` (by default now), and the bed is theirs no more.

    Raises `NotFound`, `VersionConflict`, `StayAlreadyEnded`, `InFuture`, `CheckOutBeforeCheckIn`.
    """
    stay, assignments, beds = await locked_stay(session, actor=actor, stay_id=stay_id, version=version)
    assignment = assignments[-1]
    end = await _ending(session, stay, assignment, at)
    assignment.ended_at = end
    stay.checked_out_at = end
    stay.outcome = outcome.value
    stay.version += 1
    await _leave(session, beds[assignment.bed_id])
    await flush(session)
    record(session, actor, "stay_check_out", stay)
    await publish_beds(session, stay.dispensary_id, (assignment.bed_id, BedChange.CHECKED_OUT))
    return stay


async def update_stay(
    session: AsyncSession, *, actor: Actor, stay_id: int, version: int, changes: dict[str, Any]
) -> Stay:
    """The stay's plan, diagnosis, alias or attending doctor are as changed.

    Raises `NotFound`, `VersionConflict`, `NotADoctorThere`, `Invalid`.
    """
    stay = await session.get(Stay, stay_id, with_for_update=True, populate_existing=True)
    if stay is None or not actor.works_in(stay.dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    if stay.version != version:
        raise VersionConflict(
            ("version",), object_type="Stay", object_id=stay_id, current_version=stay.version
        )
    if "attending_doctor_id" in changes:
        await _refuse_doctor(session, stay.dispensary_id, changes["attending_doctor_id"])
        stay.attending_doctor_id = changes["attending_doctor_id"]
    plan = {name: value for name, value in changes.items() if name != "attending_doctor_id"}
    details = changed(stay, StayPlan, plan)
    if "planned_check_out_on" in plan:
        await _refuse_plan(session, stay.dispensary_id, stay.checked_in_at, details.planned_check_out_on)
    for name, value in details.model_dump().items():
        setattr(stay, name, value)
    stay.version += 1
    await session.flush()
    record(session, actor, "stay_update", stay)
    return stay


async def _refuse_plan(
    session: AsyncSession, dispensary_id: int, checked_in_at: datetime, planned: date | None
) -> None:
    if planned is None:
        return
    first_day = await session.scalar(
        text(
            "SELECT (CAST(:at AS timestamptz) AT TIME ZONE time_zone)::date FROM dispensary WHERE id = :dispensary"
        ),
        {"at": checked_in_at, "dispensary": dispensary_id},
    )
    assert first_day is not None
    if planned < first_day:
        raise Invalid(
            ("plannedCheckOutOn",),
            ru="Планируемая выписка раньше поступления.",
            en="The planned check-out is before the check-in.",
        )
