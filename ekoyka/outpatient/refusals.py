"""Why a slot cannot be had: the refusals that holding, booking and moving share, and how each comes about."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import REFUSED_BY_CONSTRAINT, Row, Statement, constraint_name
from ekoyka.errors import Conflict, NotFound
from ekoyka.identity.actors import Actor
from ekoyka.identity.tables import Role
from ekoyka.inpatient.stays import PatientIsArchived
from ekoyka.outpatient.queries import nearest_slots

CLINICIANS = (Role.SUPERADMIN, Role.DOCTOR)


class SlotTaken(Conflict):
    """Somebody else has the slot, or it is kept for them."""

    code = "SLOT_TAKEN"
    ru = "Это время уже занято: выберите другое."
    en = "This slot is taken: choose another."


class SlotInPast(Conflict):
    """The slot has begun already."""

    code = "SLOT_IN_PAST"
    ru = "Это время уже прошло: выберите другое."
    en = "This slot is in the past: choose another."


class SlotWithdrawn(Conflict):
    """The doctor's hours have changed, and there is no such slot any more."""

    code = "SLOT_WITHDRAWN"
    ru = "Часы приёма изменились, и такого времени больше нет: выберите другое."
    en = "The doctor's hours have changed and this slot is no more: choose another."


class DoctorBlocked(Conflict):
    """The doctor's account is blocked, or they do not work in the dispensary any more."""

    code = "DOCTOR_BLOCKED"
    ru = "Этот врач сейчас не принимает: выберите другого."
    en = "This doctor takes no visits now: choose another."


class DoctorOnLeave(Conflict):
    """The doctor sees nobody at that time."""

    code = "DOCTOR_ON_LEAVE"
    ru = "В это время врач не принимает: выберите другое время или другого врача."
    en = "The doctor is away at that time: choose another time, or another doctor."


class PatientAlreadyBooked(Conflict):
    """The patient has another appointment at that time; which is told only to whoever may know."""

    code = "PATIENT_ALREADY_BOOKED"
    ru = "У пациента уже есть запись на это время."
    en = "The patient has another appointment at that time."


class PatientBlocked(Conflict):
    """The patient's account is blocked, so nothing can be booked for them."""

    code = "PATIENT_BLOCKED"
    ru = "Учётная запись пациента заблокирована: записать его нельзя."
    en = "The patient's account is blocked: nothing can be booked for them."


class TooManyAppointments(Conflict):
    """The patient has as many appointments ahead as one may have."""

    code = "TOO_MANY_APPOINTMENTS"
    ru = "У пациента уже есть предстоящие записи: {open}, больше {most} нельзя. Отмените одну из них."
    en = "The patient has {open} appointments ahead, and {most} are the most: cancel one of them."


def _near(rank: int, doctor: str) -> str:
    near = nearest_slots(
        dispensary="CAST(:dispensary AS bigint)",
        at="CAST(:at AS timestamptz)",
        where=lambda slot: f"{slot}.doctor_id {doctor} :doctor",
    )
    return f"SELECT n.id, n.distance, {rank} AS rank FROM ({near}) n"


_ALTERNATIVES = Statement(
    f"SELECT id FROM ({_near(1, '=')} UNION ALL {_near(2, '<>')}) x ORDER BY rank, distance, id LIMIT 3"
)


async def alternatives(session: AsyncSession, seen: Row) -> list[int]:
    """Up to three free slots nearest to the one looked at: the doctor's own, then those of colleagues."""
    rows = await _ALTERNATIVES.rows(
        session, dispensary=seen.dispensary_id, doctor=seen.doctor_id, at=seen.starts_at
    )
    return [row.id for row in rows]


async def refuse_slot(session: AsyncSession, seen: Row, *, offer_id: int | None = None) -> None:
    """Raises unless the slot can be had now by whoever looked, to whom it may have been offered."""
    if seen.slot_id is None:
        raise NotFound(("slotId",))
    kind: type[Conflict] | None = None
    if seen.starts_at <= seen.now:
        kind = SlotInPast
    elif seen.doctor_gone:
        kind = DoctorBlocked
    elif seen.off:
        kind = DoctorOnLeave
    elif seen.taken or seen.held or seen.offer_id not in (None, offer_id):
        kind = SlotTaken
    elif seen.withdrawn:
        kind = SlotWithdrawn
    if kind is not None:
        raise kind(("slotId",), slot_id=seen.slot_id, alternative_ids=await alternatives(session, seen))


def refuse_patient(actor: Actor, seen: Row) -> None:
    """Raises unless the patient can have an appointment in the slot looked at."""
    if seen.patient_archived:
        raise PatientIsArchived(("patientId",), patient_id=seen.patient_id)
    if seen.patient_blocked:
        raise PatientBlocked(("patientId",))
    if seen.clash_id is not None:
        may_know = seen.own or actor.works_in(seen.clash_dispensary_id, CLINICIANS)
        raise PatientAlreadyBooked(("patientId",), appointment_id=seen.clash_id if may_know else None)


@contextmanager
def constraints_by_name() -> Iterator[None]:
    """What the locks should have kept away is refused by the constraints all the same."""
    try:
        yield
    except REFUSED_BY_CONSTRAINT as error:
        match constraint_name(error):
            case "uq_appointment_live_slot":
                raise SlotTaken(("slotId",)) from error
            case "ex_appointment_patient_overlap":
                raise PatientAlreadyBooked(("patientId",)) from error
            case _:
                raise
