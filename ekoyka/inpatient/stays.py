"""Check in, transfer, check out, and editing stays; `corrections` says what really happened.

Each is one look at the facts behind the locks (`facts`), the rules, and one statement that writes all of it.
The constraints stand behind the locks, whatever the code does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka import feed
from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, constraint_name
from ekoyka.errors import Conflict, Invalid, NotFound, VersionConflict
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.availability import (
    BedOccupied,
    refuse_kept,
    refuse_occupied,
    refuse_room,
    refuse_unusable,
)
from ekoyka.inpatient.facts import Facts, lock, look
from ekoyka.inpatient.queries import bed_event, is_reserved, status_of
from ekoyka.inpatient.tables import Outcome, Stay, StayPlan
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


def refuse_admitted(actor: Actor, seen: Facts) -> None:
    """Raises `PatientAlreadyAdmitted` when the patient stays somewhere at any time of the interval looked at."""
    if seen.other_stay_id is not None:
        assert seen.other_dispensary_id is not None
        may_know = actor.works_in(seen.other_dispensary_id, CLINICIANS)
        raise PatientAlreadyAdmitted(
            ("patientId",),
            patient_id=seen.patient_id,
            stay_id=seen.other_stay_id if may_know else None,
            since=seen.other_since if may_know else None,
            until=seen.other_until if may_know else None,
        )


def _refuse_doctor(seen: Facts, account_id: int | None) -> None:
    if account_id is not None and not seen.doctor_there:
        raise NotADoctorThere(("attendingDoctorId",))


def _refuse_plan(seen: Facts, planned: date | None) -> None:
    assert seen.first_day is not None
    if planned is not None and planned < seen.first_day:
        raise Invalid(
            ("plannedCheckOutOn",),
            ru="Планируемая выписка раньше поступления.",
            en="The planned check-out is before the check-in.",
        )


@contextmanager
def constraints_by_name() -> Iterator[None]:
    """What the locks should have kept away is refused by the constraints all the same."""
    try:
        yield
    except REFUSED_BY_CONSTRAINT as error:
        match constraint_name(error):
            case "uq_bed_assignment_open_bed" | "ex_bed_assignment_bed_overlap":
                raise BedOccupied(("bedId",)) from error
            case "uq_stay_open_patient" | "ex_stay_patient_overlap":
                raise PatientAlreadyAdmitted(("patientId",)) from error
            case "ck_stay_interval" | "ck_bed_assignment_interval":
                raise CheckOutBeforeCheckIn(("at",)) from error
            case _:
                raise


# The parts of the statements below that several of them have.
_FULFIL = """
        UPDATE reservation SET ended_at = :now, outcome = 'FULFILLED'
        WHERE id = CAST(:reservation AS bigint) AND ended_at IS NULL
        RETURNING id
"""
_END = """
        UPDATE bed_assignment SET ended_at = :at WHERE id = :assignment
        RETURNING stay_id, bed_id, dispensary_id, ended_at
"""
# The bed goes to cleaning, where the dispensary wishes it so.
_LEAVE = """
        UPDATE bed b SET service_state = 'CLEANING', version = b.version + 1
        FROM ended JOIN dispensary d ON d.id = ended.dispensary_id
        WHERE b.id = ended.bed_id AND b.service_state = 'IN_SERVICE' AND d.cleaning_after_check_out
        RETURNING b.service_state
"""
_STATUS_LEFT = status_of(
    "false", is_reserved("b"), "coalesce((SELECT service_state FROM emptied), b.service_state)"
)

CHECK_IN = feed.Publication(
    f"""
    WITH fulfilled AS ({_FULFIL}), admitted AS (
        INSERT INTO stay (
            patient_id, dispensary_id, checked_in_at, planned_check_out_on, diagnosis_code, board_alias,
            attending_doctor_id, source_key, version
        )
        VALUES (
            :patient, :dispensary, :at, :planned_check_out_on, :diagnosis_code, :board_alias,
            :doctor, :source_key, 1
        )
        RETURNING *
    ), begun AS (
        INSERT INTO bed_assignment (stay_id, bed_id, dispensary_id, started_at)
        SELECT id, :bed, dispensary_id, checked_in_at FROM admitted
        RETURNING bed_id, dispensary_id
    ), logged AS (
        {access_log.entry("stay_check_in", "Stay", "admitted")}
    ), event AS (
        {bed_event("dispensary_id", "bed_id", "'CHECKED_IN'", "'OCCUPIED'")}
        FROM begun WHERE (SELECT count(*) FROM fulfilled) >= 0
    ), {feed.publishing("event")}
    SELECT admitted.*, {feed.PUBLISHED} FROM admitted, counted
    """
)


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
) -> Row:
    """The patient lies in the bed from ``at`` (by default now) on.

    A reservation for the patient, or the one named, is fulfilled. Raises `NotFound`, `InFuture`,
    `PatientIsArchived`, `PatientAlreadyAdmitted`, `BedOccupied`, `BedReserved`, `BedClosed`, `BedNotReady`,
    `RoomSexMismatch`, `NotADoctorThere`, `Invalid`.
    """
    details = validated(StayPlan, plan or {})
    seen = await look(
        session,
        actor,
        locked=await lock(session, bed=bed_id, patient=patient_id),
        bed=bed_id,
        patient=patient_id,
        since=at,
        doctor=attending_doctor_id,
    )
    if seen.dispensary_id is None or seen.bed_archived or not actor.works_in(seen.dispensary_id, CLINICIANS):
        raise NotFound(("bedId",))
    if seen.patient_id is None:
        raise NotFound(("patientId",))
    if at is not None and at > seen.now:
        raise InFuture(("checkedInAt",), now=seen.now)
    if seen.patient_archived:
        raise PatientIsArchived(("patientId",), patient_id=patient_id)
    refuse_admitted(actor, seen)
    await refuse_occupied(session, seen)
    await refuse_kept(session, seen, reservation_id)
    await refuse_unusable(session, seen)
    await refuse_room(session, seen)
    _refuse_doctor(seen, attending_doctor_id)
    _refuse_plan(seen, details.planned_check_out_on)
    with constraints_by_name():
        return await CHECK_IN.row(
            session,
            patient=patient_id,
            bed=bed_id,
            dispensary=seen.dispensary_id,
            at=seen.since,
            doctor=attending_doctor_id,
            source_key=source_key,
            reservation=seen.reservation_id,
            now=seen.now,
            **details.model_dump(),
            **access_log.bound(actor),
        )


def refuse_stale(actor: Actor, seen: Facts, version: int) -> None:
    """Raises `NotFound`, `VersionConflict` (which a transfer in the meantime is)."""
    if seen.stay_dispensary_id is None or not actor.works_in(seen.stay_dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    if seen.stay_version != version or seen.moved_meanwhile:
        raise VersionConflict(
            ("version",), object_type="Stay", object_id=seen.stay_id, current_version=seen.stay_version
        )


def _refuse_ending(seen: Facts, at: datetime | None) -> None:
    """Raises unless the stay's present assignment can end at the instant looked at."""
    if seen.checked_out_at is not None:
        raise StayAlreadyEnded(("id",), stay_id=seen.stay_id, ended_at=seen.checked_out_at)
    if at is not None and at > seen.now:
        raise InFuture(("at",), now=seen.now)
    assert seen.present_since is not None
    if seen.since < seen.present_since:
        raise CheckOutBeforeCheckIn(("at",), stay_id=seen.stay_id, checked_in_at=seen.present_since)


_TRANSFER = feed.Publication(
    f"""
    WITH fulfilled AS ({_FULFIL}), ended AS ({_END}), begun AS (
        INSERT INTO bed_assignment (stay_id, bed_id, dispensary_id, started_at)
        SELECT stay_id, :bed, dispensary_id, ended_at FROM ended
        RETURNING bed_id, dispensary_id
    ), emptied AS ({_LEAVE}), moved AS (
        UPDATE stay SET version = version + 1 WHERE id = :stay RETURNING *
    ), logged AS (
        {access_log.entry("stay_transfer", "Stay", "moved")}
    ), event AS (
        {bed_event("b.dispensary_id", "b.id", "'TRANSFERRED_OUT'", _STATUS_LEFT)}
        FROM ended JOIN bed b ON b.id = ended.bed_id
        UNION ALL
        {bed_event("dispensary_id", "bed_id", "'TRANSFERRED_IN'", "'OCCUPIED'", "2")}
        FROM begun WHERE (SELECT count(*) FROM fulfilled) >= 0
    ), {feed.publishing("event")}
    SELECT moved.*, {feed.PUBLISHED} FROM moved, counted
    """
)


async def transfer(
    session: AsyncSession,
    *,
    actor: Actor,
    stay_id: int,
    version: int,
    bed_id: int,
    at: datetime | None = None,
    reservation_id: int | None = None,
) -> Row:
    """The patient lies in the other bed from ``at`` (by default now) on, and in the former one until then.

    Raises as `check_in` does, and `VersionConflict`, `StayAlreadyEnded`, `SameBed`, `CheckOutBeforeCheckIn`.
    """
    locked = await lock(session, bed=bed_id, stay=stay_id)
    seen = await look(session, actor, locked=locked, bed=bed_id, stay=stay_id, since=at)
    refuse_stale(actor, seen, version)
    if seen.bed_archived or seen.dispensary_id != seen.stay_dispensary_id:
        raise NotFound(("bedId",))
    _refuse_ending(seen, at)
    if seen.present_bed_id == bed_id:
        raise SameBed(("bedId",), bed_id=bed_id)
    await refuse_occupied(session, seen)
    await refuse_kept(session, seen, reservation_id)
    await refuse_unusable(session, seen)
    await refuse_room(session, seen)
    with constraints_by_name():
        return await _TRANSFER.row(
            session,
            stay=stay_id,
            assignment=seen.assignment_id,
            bed=bed_id,
            at=seen.since,
            reservation=seen.reservation_id,
            now=seen.now,
            **access_log.bound(actor),
        )


_CHECK_OUT = feed.Publication(
    f"""
    WITH ended AS ({_END}), emptied AS ({_LEAVE}), discharged AS (
        UPDATE stay SET checked_out_at = :at, outcome = CAST(:outcome AS text), version = version + 1
        WHERE id = :stay RETURNING *
    ), logged AS (
        {access_log.entry("stay_check_out", "Stay", "discharged")}
    ), event AS (
        {bed_event("b.dispensary_id", "b.id", "'CHECKED_OUT'", _STATUS_LEFT)}
        FROM ended JOIN bed b ON b.id = ended.bed_id
    ), {feed.publishing("event")}
    SELECT discharged.*, {feed.PUBLISHED} FROM discharged, counted
    """
)


async def check_out(
    session: AsyncSession,
    *,
    actor: Actor,
    stay_id: int,
    version: int,
    outcome: Outcome,
    at: datetime | None = None,
) -> Row:
    """The patient has left, at ``at`` (by default now), and the bed is theirs no more.

    Raises `NotFound`, `VersionConflict`, `StayAlreadyEnded`, `InFuture`, `CheckOutBeforeCheckIn`.
    """
    seen = await look(session, actor, locked=await lock(session, stay=stay_id), stay=stay_id, since=at)
    refuse_stale(actor, seen, version)
    _refuse_ending(seen, at)
    with constraints_by_name():
        return await _CHECK_OUT.row(
            session,
            stay=stay_id,
            assignment=seen.assignment_id,
            at=seen.since,
            outcome=outcome.value,
            **access_log.bound(actor),
        )


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
    doctor = changes.get("attending_doctor_id")
    seen = await look(session, actor, locked=[], stay=stay_id, since=stay.checked_in_at, doctor=doctor)
    if "attending_doctor_id" in changes:
        _refuse_doctor(seen, doctor)
        stay.attending_doctor_id = doctor
    plan = {name: value for name, value in changes.items() if name != "attending_doctor_id"}
    details = changed(stay, StayPlan, plan)
    if "planned_check_out_on" in plan:
        _refuse_plan(seen, details.planned_check_out_on)
    for name, value in details.model_dump().items():
        setattr(stay, name, value)
    stay.version += 1
    await session.flush()
    record(session, actor, "stay_update", stay)
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
