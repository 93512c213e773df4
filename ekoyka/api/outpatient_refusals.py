"""The GraphQL types of the outpatient clinic's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.mutations import refusal
from ekoyka.api.permissions import CLINICAL_OR_OWN, SIGNED_IN
from ekoyka.errors import Refusal
from ekoyka.graph import declare as graph
from ekoyka.outpatient.appointments import (
    AppointmentEnded,
    CancellationTooLate,
    NoPatientRecord,
    SameSlot,
)
from ekoyka.outpatient.leave import ExtraHoursOverlap, IntervalOver
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
from ekoyka.outpatient.timetables import HoursOverlap, TimetablesOverlap
from ekoyka.outpatient.waiting import AlreadyWaiting, OfferEnded, WaitingEnded

if TYPE_CHECKING:
    from ekoyka.api.outpatient import Appointment, Slot


def _slot_refusal(cls: type[Refusal], description: str) -> None:
    class Body:
        alternatives: list[Slot] = graph.listing(
            lambda row, child, names: f"{child}.id = ANY({row}.alternative_ids)",
            "Up to three free slots nearest to it: the doctor's own, then those of colleagues there.",
            order=lambda row, child: f"array_position({row}.alternative_ids, {child}.id)",
            roles=SIGNED_IN,
        )

    refusal(cls, description, {"slot_id": "bigint", "alternative_ids": "bigint[]"})(Body)


_slot_refusal(SlotTaken, "Somebody else has the slot, or it is kept for them.")
_slot_refusal(SlotInPast, "The slot has begun already.")
_slot_refusal(SlotWithdrawn, "The doctor's hours have changed, and there is no such slot any more.")
_slot_refusal(DoctorBlocked, "The doctor takes no visits there now.")
_slot_refusal(DoctorOnLeave, "The doctor sees nobody at that time.")


@refusal(
    PatientAlreadyBooked,
    "The patient has another appointment at that time. Which is told only to whoever may know.",
    {"appointment_id": "bigint"},
)
class _PatientAlreadyBooked:
    appointment: Appointment | None = graph.one(
        "appointment_id", "The appointment, if the actor may know of it.", roles=CLINICAL_OR_OWN
    )


@refusal(
    TooManyAppointments,
    "The patient has as many appointments ahead as one may have.",
    {"open": "int", "most": "int"},
)
class _TooManyAppointments:
    open: int = graph.column("How many they have.")
    most: int = graph.column("How many one may have.")


@refusal(
    AppointmentEnded, "The appointment is over: completed, cancelled or missed.", {"appointment_id": "bigint"}
)
class _AppointmentEnded:
    appointment: Appointment | None = graph.one("appointment_id", "The appointment.", roles=CLINICAL_OR_OWN)


@refusal(
    CancellationTooLate,
    "It is too late for the patient to cancel or move the appointment; the dispensary still can.",
    {"appointment_id": "bigint", "before_s": "int"},
)
class _CancellationTooLate:
    appointment: Appointment | None = graph.one("appointment_id", "The appointment.", roles=CLINICAL_OR_OWN)
    before_s: int = graph.column("So many seconds before a visit it could have been done.")


def _plain() -> type:
    return type("Plain", (), {})


for _cls, _text in {
    NoPatientRecord: "No patient's record is linked to the actor's account.",
    SameSlot: "The appointment has this slot already.",
    PatientBlocked: "The patient's account is blocked, so nothing can be booked for them.",
    AlreadyWaiting: "The patient is in this line already.",
    WaitingEnded: "The patient is no longer in this line.",
    OfferEnded: "The offer was answered or has lapsed.",
    TimetablesOverlap: "Another timetable of the schedule is valid on some of these days.",
    HoursOverlap: "Two intervals of a day overlap.",
    ExtraHoursOverlap: "The doctor has other extra hours at that time.",
    IntervalOver: "It is over, and the past stays as it was.",
}.items():
    refusal(_cls, _text)(_plain())
