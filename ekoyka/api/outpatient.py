"""The outpatient clinic in the graph: slots, appointments, the waiting list, notifications."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ekoyka.api.calendars import address
from ekoyka.api.enums import (
    AppointmentStatus,
    NotificationKind,
    OfferOutcome,
    SlotStatus,
    WaitingOutcome,
)
from ekoyka.api.inpatient import SEARCH_TEXT, words
from ekoyka.api.permissions import (
    CLINICAL,
    CLINICAL_OR_OWN,
    NOTIFICATIONS,
    SIGNED_IN,
    SLOTS,
    clinicians_and_patient,
)
from ekoyka.graph import declare as graph
from ekoyka.outpatient.queries import is_free, slot_status
from ekoyka.outpatient.tables import LIVE
from ekoyka.outpatient.texts import message

if TYPE_CHECKING:
    from ekoyka.api.facilities import Dispensary
    from ekoyka.api.identity import Practitioner
    from ekoyka.api.inpatient import Patient
    from ekoyka.api.scalars import ID, DateTime, Phone, TimeZone

FROM = graph.Filter(
    type="DateTime | None",
    pg="timestamptz",
    description="Only what begins at this instant or later.",
    sql=lambda row, value: f"{row}.starts_at >= {value}",
)
UNTIL = graph.Filter(
    type="DateTime | None",
    pg="timestamptz",
    description="Only what begins before this instant.",
    sql=lambda row, value: f"{row}.starts_at < {value}",
)
OF_DOCTOR = graph.Filter(
    type="ID | None",
    pg="bigint",
    key_of="Account",
    description="Only of this doctor, by their account's id.",
    sql=lambda row, value: f"{row}.doctor_id = {value}",
)
OF_DISPENSARY = graph.Filter(
    type="ID | None",
    pg="bigint",
    key_of="Dispensary",
    description="Only in this dispensary.",
    sql=lambda row, value: f"{row}.dispensary_id = {value}",
)
OF_PATIENT = graph.Filter(
    type="ID | None",
    pg="bigint",
    key_of="Patient",
    description="Only of this patient.",
    sql=lambda row, value: f"{row}.patient_id = {value}",
)
STARTS_AT = graph.Order(sql=lambda row: f"{row}.starts_at", pg="timestamptz", description="When it begins.")


@graph.type_(table="dispensary", description="A dispensary as anybody who looks for a visit sees it.")
class Clinic:
    """A place to go to."""

    dispensary_id: ID = graph.key_of("Dispensary", lambda row: f"{row}.id", "The dispensary's id.")
    name: str = graph.column("Its name.")
    address: str = graph.column("Its address.")
    phone: Phone | None = graph.column("Its phone.")
    time_zone: TimeZone = graph.column("Its time zone.")


@graph.type_(
    table="slot",
    node=True,
    scope=SLOTS,
    description="A time in which a doctor can see one patient (FHIR Slot). Patients see those that are free.",
    where={
        "from_": FROM,
        "until": UNTIL,
        "doctor_id": OF_DOCTOR,
        "dispensary_id": OF_DISPENSARY,
        "status": graph.Filter(
            type="list[SlotStatus] | None",
            pg="text[]",
            description="Only in one of these statuses; without it, those that were withdrawn are left out.",
            sql=lambda row, value: f"({slot_status(row)}) = ANY({value})",
            absent=lambda row: f"{row}.withdrawn_at IS NULL",
        ),
    },
    orders={"starts_at": STARTS_AT},
    default_order=(("starts_at", "ASC"),),
)
class Slot:
    """A slot."""

    starts_at: DateTime = graph.column("When it begins.")
    ends_at: DateTime = graph.column("When it ends; the next one may begin then.")
    status: SlotStatus = graph.expression(lambda row, names: slot_status(row), "Whether it can be booked.")
    held_until: DateTime | None = graph.expression(
        lambda row, names: (
            f"(SELECT h.until FROM slot_hold h WHERE h.slot_id = {row}.id "
            f"AND h.account_id = {names.actor('account')} AND h.until > now())"
        ),
        "Until when it is held for the actor; null where it is not.",
    )
    doctor: Practitioner = graph.one("doctor_id", "Whose it is.")
    clinic: Clinic = graph.one("dispensary_id", "Where.")
    appointment: Appointment | None = graph.one(
        lambda row, child, names: f"{child}.slot_id = {row}.id AND {LIVE.format(row=f'{child}.')}",
        "Who has it.",
        roles=CLINICAL,
        same_scope=True,
    )


@graph.type_(
    table="appointment",
    node=True,
    scope=clinicians_and_patient("{row}.patient_id"),
    person=lambda row, names: f"{row}.patient_id",
    person_by="patient",
    description="A patient's visit to a doctor (запись на приём; FHIR Appointment).",
    where={
        "from_": FROM,
        "until": UNTIL,
        "doctor_id": OF_DOCTOR,
        "dispensary_id": OF_DISPENSARY,
        "patient_id": OF_PATIENT,
        "patient_search": graph.Filter(
            type="str | None",
            pg="text::tsquery",
            description=SEARCH_TEXT,
            decode=words,
            sql=lambda row, value: (
                f"{row}.patient_id = ANY(ARRAY(SELECT f.id FROM patient f WHERE f.search @@ {value}))"
            ),
        ),
        "status": graph.Filter(
            type="list[AppointmentStatus] | None",
            pg="text[]",
            description="Only in one of these statuses.",
            sql=lambda row, value: f"{row}.status = ANY({value})",
        ),
    },
    orders={
        "starts_at": STARTS_AT,
        "booked_at": graph.Order(
            sql=lambda row: f"{row}.booked_at", pg="timestamptz", description="When it was booked."
        ),
    },
    default_order=(("starts_at", "ASC"),),
)
class Appointment:
    """An appointment."""

    starts_at: DateTime = graph.column("When it begins.")
    ends_at: DateTime = graph.column("When it ends.")
    status: AppointmentStatus = graph.column("What has become of it.")
    reason: str | None = graph.column("What it is about, 1 to 1000 characters.")
    booked_at: DateTime = graph.column("When it was booked.")
    arrived_at: DateTime | None = graph.column("When the patient came.")
    ended_at: DateTime | None = graph.column("When it was completed, cancelled, or marked as missed.")
    cancellation_reason: str | None = graph.column("Why it was cancelled.")
    calendar_url: str = graph.expression(
        lambda row, names: address(f"('a' || {row}.id)", names),
        "Where it can be fetched as a calendar file (iCalendar, RFC 5545) during the next minutes.",
    )
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    doctor: Practitioner = graph.one("doctor_id", "Whom it is with.")
    clinic: Clinic = graph.one("dispensary_id", "Where.")
    dispensary: Dispensary = graph.one("dispensary_id", "The dispensary.", same_scope=True)
    patient: Patient = graph.one("patient_id", "Whose it is.", same_scope=True)
    booked_by: Practitioner | None = graph.one("booked_by_id", "Who booked it.", roles=CLINICAL)
    slot: Slot | None = graph.one("slot_id", "The slot that it holds.", roles=CLINICAL, same_scope=True)


@graph.type_(
    table="waiting_entry",
    node=True,
    scope=clinicians_and_patient("{row}.patient_id"),
    person=lambda row, names: f"{row}.patient_id",
    person_by="patient",
    description="A patient's place in the line for freed slots (лист ожидания).",
    where={
        "open": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only those who wait, or only those who do not any more.",
            sql=lambda row, value: f"({row}.ended_at IS NULL) = {value}",
        ),
        "doctor_id": OF_DOCTOR,
        "dispensary_id": OF_DISPENSARY,
        "patient_id": OF_PATIENT,
    },
    orders={
        "joined_at": graph.Order(
            sql=lambda row: f"{row}.joined_at", pg="timestamptz", description="Since when they wait."
        )
    },
    default_order=(("joined_at", "ASC"),),
)
class WaitingEntry:
    """A place in the line."""

    joined_at: DateTime = graph.column("Since when they wait.")
    ended_at: DateTime | None = graph.column("When it ended; null while they wait.")
    outcome: WaitingOutcome | None = graph.column("How it ended.")
    doctor: Practitioner | None = graph.one("doctor_id", "For whom; null: for any doctor there.")
    clinic: Clinic = graph.one("dispensary_id", "Where.")
    patient: Patient = graph.one("patient_id", "Who waits.")
    appointment: Appointment | None = graph.one(
        "appointment_id", "The appointment in whose place an earlier one is wanted."
    )
    offers: list[Offer] = graph.listing(
        lambda row, child, names: f"{child}.entry_id = {row}.id",
        "What they were offered, first to last.",
        order=lambda row, child: f"{child}.offered_at, {child}.id",
        same_scope=True,
    )


def _of_slot(column: str) -> graph.RowSql:
    return lambda row, names: f"(SELECT s.{column} FROM slot s WHERE s.id = {row}.slot_id)"


@graph.type_(
    table="slot_offer",
    node=True,
    scope=clinicians_and_patient("{row}.patient_id"),
    person=lambda row, names: f"{row}.patient_id",
    person_by="patient",
    description="A freed slot, kept for one who waits until they answer or the time is up.",
    where={
        "open": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only those that can be answered, or only those that are over.",
            sql=lambda row, value: f"({row}.ended_at IS NULL AND {row}.until > now()) = {value}",
        ),
        "dispensary_id": OF_DISPENSARY,
        "patient_id": OF_PATIENT,
    },
    orders={
        "created_at": graph.Order(
            sql=lambda row: f"{row}.offered_at", pg="timestamptz", description="When it was made."
        )
    },
    default_order=(("created_at", "DESC"),),
)
class Offer:
    """An offer."""

    starts_at: DateTime = graph.expression(_of_slot("starts_at"), "When the slot begins.")
    ends_at: DateTime = graph.expression(_of_slot("ends_at"), "When it ends.")
    created_at: DateTime = graph.column("When it was made.", name="offered_at")
    until: DateTime = graph.column("Until when it can be answered.")
    ended_at: DateTime | None = graph.column("When it was answered, or lapsed.")
    outcome: OfferOutcome | None = graph.column("How it ended.")
    doctor: Practitioner = graph.one(
        lambda row, child, names: f"{child}.id = (SELECT s.doctor_id FROM slot s WHERE s.id = {row}.slot_id)",
        "Whose slot it is.",
    )
    clinic: Clinic = graph.one("dispensary_id", "Where.")
    patient: Patient = graph.one("patient_id", "To whom.")


@graph.type_(
    table="notification",
    node=True,
    scope=NOTIFICATIONS,
    person=lambda row, names: (
        f"SELECT a.patient_id FROM appointment a WHERE a.id = {row}.appointment_id "
        f"UNION ALL SELECT o.patient_id FROM slot_offer o WHERE o.id = {row}.offer_id"
    ),
    description="Something that the account is told in the application.",
    where={
        "unread": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only those that were not read, or only the others.",
            sql=lambda row, value: f"({row}.read_at IS NULL) = {value}",
        )
    },
    orders={
        "created_at": graph.Order(
            sql=lambda row: f"{row}.created_at", pg="timestamptz", description="When it was made."
        )
    },
    default_order=(("created_at", "DESC"),),
)
class Notification:
    """A notification."""

    kind: NotificationKind = graph.column("What it tells.")
    message: str = graph.expression(
        lambda row, names: message(row),
        "What to show, in the account's language; it names neither place nor treatment.",
    )
    created_at: DateTime = graph.column("When it was made.")
    read_at: DateTime | None = graph.column("When it was read; null until it is.")
    appointment: Appointment | None = graph.one("appointment_id", "The appointment it is about.")
    offer: Offer | None = graph.one("offer_id", "The offer it is about.")


class Queries:
    """Root fields about slots and appointments."""

    free_slots: graph.Connection[Slot] = graph.many(
        lambda row, child, names: is_free(child),
        "Slots that can be booked, the earliest first: of one doctor, in one dispensary, in a period, or all.",
        roles=SIGNED_IN,
    )
    slot: Slot | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One slot.",
        args={"id": graph.key("Slot", "Its id.")},
        roles=SIGNED_IN,
    )
    slots: graph.Connection[Slot] = graph.many(
        lambda row, child, names: "true", "A dispensary's slots, in whatever status.", roles=CLINICAL
    )
    appointment: Appointment | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One appointment.",
        args={"id": graph.key("Appointment", "Its id.")},
        roles=CLINICAL_OR_OWN,
    )
    appointments: graph.Connection[Appointment] = graph.many(
        lambda row, child, names: "true", "Appointments.", roles=CLINICAL_OR_OWN
    )
    waiting_entries: graph.Connection[WaitingEntry] = graph.many(
        lambda row, child, names: "true",
        "The waiting list, those who wait longest first.",
        roles=CLINICAL_OR_OWN,
    )
    offers: graph.Connection[Offer] = graph.many(
        lambda row, child, names: "true", "Offers of freed slots.", roles=CLINICAL_OR_OWN
    )
    notifications: graph.Connection[Notification] = graph.many(
        lambda row, child, names: "true", "One's own notifications, latest first.", roles=SIGNED_IN
    )
