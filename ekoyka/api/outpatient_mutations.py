"""Booking visits and what becomes of them; the waiting list; what has been read."""

from __future__ import annotations

import strawberry
from sqlalchemy.ext.asyncio import AsyncSession
from strawberry import UNSET

from ekoyka.api.context import Run
from ekoyka.api.mutations import KEY_TEXT, VERSION_TEXT, Made, given, key, mutation
from ekoyka.api.permissions import ADMIN, CLINICAL, CLINICAL_OR_OWN, SIGNED_IN
from ekoyka.graph import declare as graph
from ekoyka.inpatient.stays import InFuture, NotADoctorThere, PatientIsArchived
from ekoyka.outpatient import appointments, notifications, visits, waiting
from ekoyka.outpatient.appointments import (
    AppointmentEnded,
    CancellationTooLate,
    NoPatientRecord,
    SameSlot,
)
from ekoyka.outpatient.facts import Policy
from ekoyka.outpatient.refusals import (
    DoctorBlocked,
    DoctorOnLeave,
    PatientAlreadyBooked,
    PatientBlocked,
    SlotInPast,
    SlotTaken,
    SlotWithdrawn,
    TooManyAppointments,
)
from ekoyka.outpatient.tables import AppointmentStatus
from ekoyka.outpatient.waiting import AlreadyWaiting, OfferEnded, WaitingEnded

field = strawberry.field

_FOR_WHOM = "For whom; null: for oneself, by the record that is linked to one's account."
OF_SLOT = (SlotTaken, SlotInPast, SlotWithdrawn, DoctorBlocked, DoctorOnLeave)
_OF_PATIENT = (PatientAlreadyBooked, PatientBlocked, PatientIsArchived)
TO_BOOK = (*OF_SLOT, *_OF_PATIENT, TooManyAppointments)


@graph.type_(description="What marking as read came to.", columns={"read": "int"})
class NotificationsRead:
    """How many were not read before."""

    read: int = graph.column("How many notifications were marked now.")


def policy(run: Run) -> Policy:
    """What this deployment decides about appointments."""
    return Policy.of(run.services.settings)


@strawberry.input(description="A slot to hold.")
class SlotHoldInput:
    slot_id: strawberry.ID = field(description="Which.")


@mutation(
    "slotHold",
    returns="Slot",
    roles=SIGNED_IN,
    refusals=OF_SLOT,
    description="A free slot is kept for the actor for some minutes (`EKOYKA_HOLD_S`), while they fill in a form. One "
    "holds one slot: holding another lets the former go.",
)
async def slot_hold(run: Run, session: AsyncSession, input: SlotHoldInput) -> int:
    return await appointments.hold(
        session, actor=run.known_actor, slot_id=key("Slot", input.slot_id, "slotId"), policy=policy(run)
    )


@strawberry.input(description="A slot that need not be held.")
class SlotReleaseInput:
    slot_id: strawberry.ID = field(description="Which.")


@mutation(
    "slotRelease",
    returns="Slot",
    roles=SIGNED_IN,
    description="A slot is not kept for the actor any more.",
)
async def slot_release(run: Run, session: AsyncSession, input: SlotReleaseInput) -> int:
    return await appointments.release(
        session, actor=run.known_actor, slot_id=key("Slot", input.slot_id, "slotId"), policy=policy(run)
    )


@strawberry.input(description="A visit to book.")
class AppointmentBookInput:
    slot_id: strawberry.ID = field(description="In which slot.")
    patient_id: strawberry.ID | None = field(description=_FOR_WHOM, default=None)
    reason: str | None = field(description="What it is about, 1 to 1000 characters.", default=None)
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "appointmentBook",
    returns="Appointment",
    roles=CLINICAL_OR_OWN,
    refusals=(*TO_BOOK, NoPatientRecord),
    description="A visit is booked: by a patient for themself, or by a doctor of the slot's dispensary for a patient.",
)
async def appointment_book(run: Run, session: AsyncSession, input: AppointmentBookInput) -> int:
    row = await appointments.book(
        session,
        actor=run.known_actor,
        slot_id=key("Slot", input.slot_id, "slotId"),
        patient_id=key("Patient", input.patient_id, "patientId") if input.patient_id else None,
        reason=input.reason,
        policy=policy(run),
    )
    return row.id


@strawberry.input(description="A visit to move.")
class AppointmentMoveInput:
    id: strawberry.ID = field(description="Which appointment.")
    version: int = field(description=VERSION_TEXT)
    slot_id: strawberry.ID = field(description="Into which slot.")


@mutation(
    "appointmentMove",
    returns="Appointment",
    roles=CLINICAL_OR_OWN,
    refusals=(*OF_SLOT, *_OF_PATIENT, SameSlot, AppointmentEnded, CancellationTooLate),
    description="A visit is moved to another slot in one step; its former slot is free at once.",
)
async def appointment_move(run: Run, session: AsyncSession, input: AppointmentMoveInput) -> int:
    return await appointments.move(
        session,
        actor=run.known_actor,
        appointment_id=key("Appointment", input.id, "id"),
        version=input.version,
        slot_id=key("Slot", input.slot_id, "slotId"),
        policy=policy(run),
    )


@strawberry.input(description="A visit to cancel.")
class AppointmentCancelInput:
    id: strawberry.ID = field(description="Which appointment.")
    version: int = field(description=VERSION_TEXT)
    reason: str | None = field(description="Why, 1 to 1000 characters.", default=None)


@mutation(
    "appointmentCancel",
    returns="Appointment",
    roles=CLINICAL_OR_OWN,
    refusals=(AppointmentEnded, CancellationTooLate),
    description="A visit is cancelled; its slot is free at once. Patients do so until so long before it as the server "
    "is set to (`EKOYKA_CANCEL_BEFORE_S`).",
)
async def appointment_cancel(run: Run, session: AsyncSession, input: AppointmentCancelInput) -> int:
    return await appointments.cancel(
        session,
        actor=run.known_actor,
        appointment_id=key("Appointment", input.id, "id"),
        version=input.version,
        reason=input.reason,
        policy=policy(run),
    )


@strawberry.input(description="An appointment of which something has become.")
class AppointmentSettleInput:
    id: strawberry.ID = field(description="Which appointment.")
    version: int = field(description=VERSION_TEXT)


async def _settle(
    run: Run, session: AsyncSession, input: AppointmentSettleInput, status: AppointmentStatus
) -> int:
    return await visits.settle(
        session,
        actor=run.known_actor,
        appointment_id=key("Appointment", input.id, "id"),
        version=input.version,
        status=status,
        policy=policy(run),
    )


@mutation(
    "appointmentArrive",
    returns="Appointment",
    roles=CLINICAL,
    refusals=(AppointmentEnded, InFuture),
    description="The patient has come, on the day of the visit.",
)
async def appointment_arrive(run: Run, session: AsyncSession, input: AppointmentSettleInput) -> int:
    return await _settle(run, session, input, AppointmentStatus.ARRIVED)


@mutation(
    "appointmentComplete",
    returns="Appointment",
    roles=CLINICAL,
    refusals=(AppointmentEnded, InFuture),
    description="The visit took place.",
)
async def appointment_complete(run: Run, session: AsyncSession, input: AppointmentSettleInput) -> int:
    return await _settle(run, session, input, AppointmentStatus.FULFILLED)


@mutation(
    "appointmentNoShow",
    returns="Appointment",
    roles=CLINICAL,
    refusals=(AppointmentEnded, InFuture),
    description="The patient did not come.",
)
async def appointment_no_show(run: Run, session: AsyncSession, input: AppointmentSettleInput) -> int:
    return await _settle(run, session, input, AppointmentStatus.NOSHOW)


@mutation(
    "appointmentDelete",
    returns="Appointment",
    roles=ADMIN,
    refusals=(AppointmentEnded, InFuture),
    description="An appointment never should have been there: it is marked as an error, and its slot is free. The row "
    "stays, as the access log refers to it.",
)
async def appointment_delete(run: Run, session: AsyncSession, input: AppointmentSettleInput) -> int:
    return await _settle(run, session, input, AppointmentStatus.ENTERED_IN_ERROR)


@strawberry.input(description="Changes of an appointment; what is not given stays.")
class AppointmentUpdateInput:
    id: strawberry.ID = field(description="Which appointment.")
    version: int = field(description=VERSION_TEXT)
    reason: str | None = field(description="What it is about, 1 to 1000 characters.", default=UNSET)


@mutation(
    "appointmentUpdate",
    returns="Appointment",
    roles=CLINICAL,
    description="A doctor writes what an appointment is about.",
)
async def appointment_update(run: Run, session: AsyncSession, input: AppointmentUpdateInput) -> int:
    row = await visits.update_appointment(
        session,
        actor=run.known_actor,
        appointment_id=key("Appointment", input.id, "id"),
        version=input.version,
        changes=given(input),
    )
    return row.id


@strawberry.input(description="Somebody who waits for a visit.")
class WaitingListJoinInput:
    dispensary_id: strawberry.ID = field(description="Where.")
    doctor_id: strawberry.ID | None = field(
        description="With which doctor, by their account's id; null: with any there.", default=None
    )
    patient_id: strawberry.ID | None = field(description=_FOR_WHOM, default=None)
    appointment_id: strawberry.ID | None = field(
        description="The appointment in whose place an earlier one is wanted; null: any visit is.",
        default=None,
    )
    idempotency_key: str | None = field(description=KEY_TEXT, default=None)


@mutation(
    "waitingListJoin",
    returns="WaitingEntry",
    roles=CLINICAL_OR_OWN,
    refusals=(NoPatientRecord, NotADoctorThere, AlreadyWaiting, AppointmentEnded, *_OF_PATIENT),
    description="A patient waits for a slot that becomes free: the first in line is offered it.",
)
async def waiting_list_join(run: Run, session: AsyncSession, input: WaitingListJoinInput) -> int:
    return await waiting.join(
        session,
        actor=run.known_actor,
        dispensary_id=key("Dispensary", input.dispensary_id, "dispensaryId"),
        doctor_id=key("Account", input.doctor_id, "doctorId") if input.doctor_id else None,
        patient_id=key("Patient", input.patient_id, "patientId") if input.patient_id else None,
        appointment_id=key("Appointment", input.appointment_id, "appointmentId")
        if input.appointment_id
        else None,
    )


@strawberry.input(description="Somebody who does not wait any more.")
class WaitingListLeaveInput:
    entry_id: strawberry.ID = field(description="Which place in the line.")


@mutation(
    "waitingListLeave",
    returns="WaitingEntry",
    roles=CLINICAL_OR_OWN,
    refusals=(WaitingEnded,),
    description="A patient does not wait any more; what was offered to them passes on.",
)
async def waiting_list_leave(run: Run, session: AsyncSession, input: WaitingListLeaveInput) -> int:
    return await waiting.leave(
        session,
        actor=run.known_actor,
        entry_id=key("WaitingEntry", input.entry_id, "entryId"),
        policy=policy(run),
    )


@strawberry.input(description="An offer to answer.")
class OfferAnswerInput:
    id: strawberry.ID = field(description="Which offer.")


@mutation(
    "offerAccept",
    returns="Appointment",
    roles=CLINICAL_OR_OWN,
    refusals=(*TO_BOOK, OfferEnded, SameSlot, AppointmentEnded, CancellationTooLate),
    description="The patient has the slot that was offered, in place of the appointment they had, if any.",
)
async def offer_accept(run: Run, session: AsyncSession, input: OfferAnswerInput) -> int:
    return await waiting.accept(
        session, actor=run.known_actor, offer_id=key("Offer", input.id, "id"), policy=policy(run)
    )


@mutation(
    "offerDecline",
    returns="Offer",
    roles=CLINICAL_OR_OWN,
    refusals=(OfferEnded,),
    description="The slot passes on to the next in line; the patient keeps their place.",
)
async def offer_decline(run: Run, session: AsyncSession, input: OfferAnswerInput) -> int:
    return await waiting.decline(
        session, actor=run.known_actor, offer_id=key("Offer", input.id, "id"), policy=policy(run)
    )


@strawberry.input(description="What has been read.")
class NotificationReadInput:
    id: strawberry.ID | None = field(description="Which notification; null: all of them.", default=None)


@mutation(
    "notificationRead",
    returns="NotificationsRead",
    roles=SIGNED_IN,
    description="One's own notification is marked as read, or all of them.",
)
async def notification_read(run: Run, session: AsyncSession, input: NotificationReadInput) -> Made:
    read = await notifications.mark_read(
        session,
        actor=run.known_actor,
        notification_id=key("Notification", input.id, "id") if input.id else None,
    )
    return {"read": read}
