"""What has become of appointments, by the dispensary's doctors: arrived, completed, missed; their reasons; errors."""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.database import Row
from ekoyka.errors import NotFound
from ekoyka.identity import access_log
from ekoyka.identity.actors import Actor
from ekoyka.inpatient.stays import InFuture
from ekoyka.outpatient.appointments import AppointmentEnded, end, refuse_stale
from ekoyka.outpatient.facts import Policy, lock, look
from ekoyka.outpatient.refusals import CLINICIANS
from ekoyka.outpatient.tables import Appointment, AppointmentDetails, AppointmentStatus
from ekoyka.validation import changed

_BEFORE = {
    AppointmentStatus.ARRIVED: {AppointmentStatus.BOOKED},
    AppointmentStatus.FULFILLED: {AppointmentStatus.BOOKED, AppointmentStatus.ARRIVED},
    AppointmentStatus.NOSHOW: {AppointmentStatus.BOOKED},
    AppointmentStatus.ENTERED_IN_ERROR: set(AppointmentStatus) - {AppointmentStatus.ENTERED_IN_ERROR},
}


async def _seen(session: AsyncSession, actor: Actor, appointment_id: int, version: int) -> Row:
    """The appointment, locked, if the actor is of its dispensary. Raises `NotFound`, `VersionConflict`."""
    await lock(session, actor, appointments=[appointment_id])
    seen = await look(session, actor, appointment=appointment_id)
    refuse_stale(actor, seen, version)
    if not actor.works_in(seen.former_dispensary_id, CLINICIANS):
        raise NotFound(("id",))
    return seen


async def settle(
    session: AsyncSession,
    *,
    actor: Actor,
    appointment_id: int,
    version: int,
    status: AppointmentStatus,
    policy: Policy,
) -> int:
    """The patient has arrived, on the day; the visit is completed, or was missed, once it has begun; or the
    appointment was an error, which a superadministrator says.

    Raises `NotFound`, `VersionConflict`, `AppointmentEnded`, `InFuture`.
    """
    seen = await _seen(session, actor, appointment_id, version)
    if seen.status not in _BEFORE[status]:
        raise AppointmentEnded(("id",), appointment_id=appointment_id)
    too_early = seen.another_day if status is AppointmentStatus.ARRIVED else seen.former_starts_at > seen.now
    if too_early and status is not AppointmentStatus.ENTERED_IN_ERROR:
        raise InFuture(("id",), now=seen.now)
    return await end(session, actor, seen, status, reason=None, policy=policy)


async def update_appointment(
    session: AsyncSession, *, actor: Actor, appointment_id: int, version: int, changes: dict[str, Any]
) -> Appointment:
    """The appointment says this. Raises `NotFound`, `VersionConflict`, `Invalid`."""
    await _seen(session, actor, appointment_id, version)
    row = await session.get_one(Appointment, appointment_id)
    row.reason = changed(row, AppointmentDetails, changes).reason
    row.version += 1
    access_log.record(
        session,
        actor,
        "appointment_update",
        "Appointment",
        appointment_id,
        patient_id=row.patient_id,
        dispensary_id=row.dispensary_id,
    )
    return row
