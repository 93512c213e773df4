"""Patients, stays, bed assignments and reservations in the graph."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ekoyka.api.access import about
from ekoyka.api.enums import BedObstacle, Outcome, ReservationOutcome, Sex
from ekoyka.api.facilities import ARCHIVED
from ekoyka.api.permissions import (
    CLINICAL,
    CLINICAL_OR_OWN,
    PATIENTS,
    STAFF,
    clinicians_and_patient,
    staff_of,
)
from ekoyka.graph import declare as graph
from ekoyka.graph.ids import BadInput
from ekoyka.inpatient.queries import bed_options
from ekoyka.outpatient.queries import follow_ups

if TYPE_CHECKING:
    from ekoyka.api.access import AccessEntry
    from ekoyka.api.certificates import Certificate
    from ekoyka.api.facilities import Bed, Dispensary
    from ekoyka.api.identity import Practitioner
    from ekoyka.api.outpatient import Slot
    from ekoyka.api.scalars import Date, DateTime, Phone


def words(text: str) -> str:
    """A tsquery of all words as prefixes; letters and digits only, so nothing in it is an operator."""
    words = re.findall(r"\w+", text[:200].lower().replace("ё", "е").replace("_", " "))
    if not words:
        raise BadInput("A search needs at least one letter or digit.")
    return " & ".join(f"{word}:*" for word in words[:10])


SEARCH_TEXT = (
    "Words of the name or record number, each from its beginning, in any letter case, ё as е: "
    "«Семен пет» finds «Петров Семён»."
)


@graph.type_(
    table="patient",
    node=True,
    scope=PATIENTS,
    person=lambda row, names: f"{row}.id",
    description="A patient (пациент).",
    where={
        "search": graph.Filter(
            type="str | None",
            pg="text::tsquery",
            description=SEARCH_TEXT,
            decode=words,
            sql=lambda row, value: f"{row}.id = ANY(ARRAY(SELECT patients_found({value})))",
            first=True,
            cost=graph.SEARCH_COST,
        ),
        "birth_date": graph.Filter(
            type="Date | None",
            pg="date",
            description="Born on this day.",
            sql=lambda row, value: f"{row}.birth_date = {value}",
            first=True,
        ),
        "record_number": graph.Filter(
            type="str | None",
            pg="text",
            description="Exactly this medical record number.",
            sql=lambda row, value: f"{row}.record_number = {value}",
            first=True,
        ),
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Registered by this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "admitted": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only those who stay somewhere now, or only those who do not.",
            sql=lambda row, value: (
                f"EXISTS (SELECT FROM stay now WHERE now.patient_id = {row}.id "
                f"AND now.checked_out_at IS NULL) = {value}"
            ),
        ),
        "archived": ARCHIVED,
    },
    orders={
        "name": graph.Order(sql=lambda row: f"{row}.name_key", pg="text", description="The name, ё as е."),
        "created_at": graph.Order(
            sql=lambda row: f"{row}.created_at", pg="timestamptz", description="When they were registered."
        ),
    },
    default_order=(("name", "ASC"),),
)
class Patient:
    """A patient."""

    record_number: str = graph.column("Medical record number (номер карты), unique in the dispensary.")
    family_name: str | None = graph.column("Family name; null under a code name.")
    given_name: str | None = graph.column("Given name; null under a code name.")
    patronymic: str | None = graph.column("Patronymic (отчество).")
    code_name: str | None = graph.column("The code name of anonymous treatment (анонимное лечение).")
    sex: Sex = graph.column("Administrative sex.")
    birth_date: Date | None = graph.column("Birth date.")
    phone: Phone | None = graph.column("Phone.")
    address: str | None = graph.column("Address.")
    identity_document: str | None = graph.column("Identity document, as written in it.")
    needs_isolation: bool = graph.column("Whether the patient must be apart from others.")
    archived_at: DateTime | None = graph.column("Since when the record is archived.")
    created_at: DateTime = graph.column("When the record was made.")
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    dispensary: Dispensary | None = graph.one("dispensary_id", "Where the patient was registered.")
    current_stay: Stay | None = graph.one(
        lambda row, child, names: f"{child}.patient_id = {row}.id AND {child}.checked_out_at IS NULL",
        "The stay that is open now, where the actor may know of it.",
    )
    stays: graph.Connection[Stay] = graph.many("patient_id", "Stays that the actor may know of.")
    access_entries: graph.Connection[AccessEntry] = graph.many(
        lambda row, child, names: about(child, f"{row}.id"),
        "Who has read or changed this record: for the patient and for superadministrators.",
    )


@graph.type_(
    table="stay",
    node=True,
    scope=clinicians_and_patient("{row}.patient_id"),
    person=lambda row, names: f"{row}.patient_id",
    person_by="patient",
    description="A stay (госпитализация; FHIR Encounter of class inpatient).",
    where={
        "open": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only current stays, or only ended ones.",
            sql=lambda row, value: f"({row}.checked_out_at IS NULL) = {value}",
        ),
        "overdue": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only open stays past their planned check-out date, or only the others.",
            sql=lambda row, value: f"({overdue(row)}) = {value}",
        ),
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only in this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
        "patient_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Patient",
            description="Only of this patient.",
            sql=lambda row, value: f"{row}.patient_id = {value}",
        ),
        "patient_search": graph.Filter(
            type="str | None",
            pg="text::tsquery",
            description=SEARCH_TEXT,
            decode=words,
            sql=lambda row, value: f"{row}.patient_id = ANY(ARRAY(SELECT patients_found({value})))",
            cost=graph.SEARCH_COST,
        ),
        "patient_birth_date": graph.Filter(
            type="Date | None",
            pg="date",
            description="Only of patients born on this day.",
            sql=lambda row, value: (
                f"{row}.patient_id = ANY(ARRAY(SELECT f.id FROM patient f WHERE f.birth_date = {value}))"
            ),
        ),
        "patient_record_number": graph.Filter(
            type="str | None",
            pg="text",
            description="Only of the patient with this medical record number.",
            sql=lambda row, value: (
                f"{row}.patient_id = ANY(ARRAY(SELECT f.id FROM patient f WHERE f.record_number = {value}))"
            ),
        ),
        "from_": graph.Filter(
            type="DateTime | None",
            pg="timestamptz",
            description="Only stays that had not ended before this instant.",
            sql=lambda row, value: f"{row}.ended_at > {value}",
        ),
        "until": graph.Filter(
            type="DateTime | None",
            pg="timestamptz",
            description="Only stays that had begun before this instant.",
            sql=lambda row, value: f"{row}.checked_in_at < {value}",
        ),
        "diagnosis": graph.Filter(
            type="str | None",
            pg="text",
            description="Diagnosis codes that begin with this, such as F10.",
            sql=lambda row, value: f"starts_with({row}.diagnosis_code, upper({value}))",
            cost=graph.SEARCH_COST,
        ),
    },
    orders={
        "checked_in_at": graph.Order(
            sql=lambda row: f"{row}.checked_in_at", pg="timestamptz", description="When it began."
        ),
        "checked_out_at": graph.Order(
            sql=lambda row: f"{row}.ended_at",
            pg="timestamptz",
            description="When it ended; open ones are the latest.",
        ),
        "patient_name": graph.Order(
            sql=lambda row: f"(SELECT o.name_key FROM patient o WHERE o.id = {row}.patient_id)",
            pg="text",
            description="The patient's name, ё as е.",
            cost=graph.SEARCH_COST,
        ),
    },
    default_order=(("checked_in_at", "DESC"),),
)
class Stay:
    """A stay."""

    checked_in_at: DateTime = graph.column("When it began.")
    planned_check_out_on: Date | None = graph.column("The day on which it is planned to end, in local time.")
    checked_out_at: DateTime | None = graph.column("When it ended; null while it is open.")
    outcome: Outcome | None = graph.column("How it ended.")
    overdue: bool = graph.expression(
        lambda row, names: overdue(row), "Whether it is open past its planned check-out date."
    )
    bed_days: int = graph.expression(
        lambda row, names: bed_days(row),
        "Bed-days (койко-дни) so far, in local days: the day of check-in and that of check-out are one.",
    )
    diagnosis_code: str | None = graph.column("ICD-10 code, such as F10.2.", roles=CLINICAL_OR_OWN)
    board_alias: str | None = graph.column(
        "What a public board may show in place of the name.", roles=CLINICAL
    )
    version: int = graph.column("Grows with every change; updates pass the one they read.")
    patient: Patient = graph.one("patient_id", "Who stays.", same_scope=True)
    dispensary: Dispensary = graph.one("dispensary_id", "Where.", same_scope=True)
    attending_doctor: Practitioner | None = graph.one("attending_doctor_id", "Who attends (лечащий врач).")
    current_bed: Bed | None = graph.one(
        lambda row, child, names: (
            f"{child}.id = (SELECT a.bed_id FROM bed_assignment a WHERE a.stay_id = {row}.id AND a.ended_at IS NULL)"
        ),
        "The bed the patient lies in now.",
        roles=CLINICAL,
        same_scope=True,
    )
    assignments: list[BedAssignment] | None = graph.listing(
        lambda row, child, names: f"{child}.stay_id = {row}.id",
        "The beds, first to last.",
        order=lambda row, child: f"{child}.started_at, {child}.id",
        roles=CLINICAL,
        same_scope=True,
    )
    certificates: list[Certificate] = graph.listing(
        lambda row, child, names: f"{child}.stay_id = {row}.id",
        "Its certificates, first to last.",
        order=lambda row, child: f"{child}.issued_at, {child}.id",
    )
    follow_up_slots: list[Slot] | None = graph.listing(
        lambda row, child, names: f"{child}.id IN {follow_ups(row)}",
        "The next free slots of the dispensary's doctors within a week of the stay's end, the earliest first; at most "
        "10. `stayCheckOut` books one in the same breath.",
        order=lambda row, child: f"{child}.starts_at, {child}.id",
        roles=CLINICAL,
    )
    revisions: list[StayRevision] | None = graph.listing(
        lambda row, child, names: f"{child}.stay_id = {row}.id",
        "What it said before it was corrected, latest first.",
        order=lambda row, child: f"{child}.revised_at DESC, {child}.id DESC",
        roles=CLINICAL,
    )


def _local_day(row: str, instant: str) -> str:
    return f"({instant} AT TIME ZONE (SELECT z.time_zone FROM dispensary z WHERE z.id = {row}.dispensary_id))::date"


def overdue(row: str) -> str:
    """SQL of whether a stay is past its planned check-out date, in the dispensary's own days."""
    today = _local_day(row, "now()")
    return f"coalesce({row}.checked_out_at IS NULL AND {row}.planned_check_out_on < {today}, false)"


def bed_days(row: str) -> str:
    """SQL of a stay's bed-days: the day of check-in counts and that of check-out does not, at least one."""
    end = f"coalesce({row}.checked_out_at, now())"
    return f"greatest(1, {_local_day(row, end)} - {_local_day(row, f'{row}.checked_in_at')})"


@graph.type_(
    table="bed_assignment",
    node=True,
    scope=clinicians_and_patient("(SELECT y.patient_id FROM stay y WHERE y.id = {row}.stay_id)"),
    person=lambda row, names: f"SELECT y.patient_id FROM stay y WHERE y.id = {row}.stay_id",
    person_by="stay",
    description="Which bed a stay occupied during which time.",
    orders={
        "started_at": graph.Order(
            sql=lambda row: f"{row}.started_at", pg="timestamptz", description="When it began."
        )
    },
    where={
        "open": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only the current one, or only ended ones.",
            sql=lambda row, value: f"({row}.ended_at IS NULL) = {value}",
        )
    },
    default_order=(("started_at", "DESC"),),
)
class BedAssignment:
    """An assignment."""

    started_at: DateTime = graph.column("From when.")
    ended_at: DateTime | None = graph.column("Until when; null while it lasts.")
    bed: Bed | None = graph.one("bed_id", "The bed.", roles=CLINICAL, same_scope=True)
    stay: Stay = graph.one("stay_id", "The stay.", same_scope=True)


@graph.type_(
    table="reservation",
    node=True,
    scope=staff_of(),
    description="A bed kept until an instant (бронь).",
    where={
        "open": graph.Filter(
            type="bool | None",
            pg="boolean",
            description="Only those in force, or only ended ones.",
            sql=lambda row, value: f"({row}.ended_at IS NULL AND {row}.until > now()) = {value}",
        ),
        "dispensary_id": graph.Filter(
            type="ID | None",
            pg="bigint",
            key_of="Dispensary",
            description="Only in this dispensary.",
            sql=lambda row, value: f"{row}.dispensary_id = {value}",
        ),
    },
    orders={
        "reserved_at": graph.Order(
            sql=lambda row: f"{row}.reserved_at", pg="timestamptz", description="When it was made."
        ),
        "until": graph.Order(sql=lambda row: f"{row}.until", pg="timestamptz", description="When it lapses."),
    },
    default_order=(("reserved_at", "DESC"),),
)
class Reservation:
    """A reservation."""

    reserved_at: DateTime = graph.column("When it was made.")
    until: DateTime = graph.column("When it lapses by itself.")
    ended_at: DateTime | None = graph.column("When it ended; null while nobody has ended it.")
    outcome: ReservationOutcome | None = graph.column("How it ended.")
    bed: Bed = graph.one("bed_id", "The bed.", same_scope=True)
    patient: Patient | None = graph.one(
        "patient_id", "For whom; null: for somebody on the way.", roles=CLINICAL
    )
    reserved_by: Practitioner | None = graph.one("reserved_by_id", "Who made it.")


@graph.type_(
    table="stay_revision",
    description="What a stay said before a correction.",
)
class StayRevision:
    """A former version."""

    revised_at: DateTime = graph.column("When it was corrected.")
    revised_by: Practitioner | None = graph.one("revised_by_id", "Who corrected it.")
    reason: str = graph.column("Why.")
    checked_in_at: DateTime | None = graph.expression(
        lambda row, names: f"({row}.former->>'checked_in_at')::timestamptz", "When it was said to have begun."
    )
    checked_out_at: DateTime | None = graph.expression(
        lambda row, names: f"({row}.former->>'checked_out_at')::timestamptz",
        "When it was said to have ended.",
    )
    outcome: Outcome | None = graph.expression(
        lambda row, names: f"{row}.former->>'outcome'", "How it was said to have ended."
    )


@graph.type_(description="A bed as seen for one patient.", person=lambda row, names: f"{row}.patient_id")
class BedOption:
    """A bed and what stands against it."""

    suits: bool = graph.column("Whether nothing stands against it.")
    obstacles: list[BedObstacle] = graph.column("What stands against it; empty when it suits.")
    bed: Bed = graph.one("bed_id", "The bed.")


class Queries:
    """Root fields about patients and stays."""

    patient: Patient | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One patient.",
        args={"id": graph.key("Patient", "Their id.")},
        roles=CLINICAL_OR_OWN,
    )
    patients: graph.Connection[Patient] = graph.many(
        lambda row, child, names: "true", "Patients.", roles=CLINICAL_OR_OWN
    )
    stay: Stay | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One stay.",
        args={"id": graph.key("Stay", "Its id.")},
        roles=CLINICAL_OR_OWN,
    )
    stays: graph.Connection[Stay] = graph.many(
        lambda row, child, names: "true",
        "Stays: current ones with `where: {open: true}`, the history of discharged ones with `{open: false}`.",
        roles=CLINICAL_OR_OWN,
    )
    reservation: Reservation | None = graph.one(
        lambda row, child, names: f"{child}.id = {names.arg('id')}",
        "One reservation.",
        args={"id": graph.key("Reservation", "Its id.")},
        roles=STAFF,
    )
    reservations: graph.Connection[Reservation] = graph.many(
        lambda row, child, names: "true", "Reservations.", roles=STAFF
    )
    bed_options: list[BedOption] = graph.listing(
        lambda row, child, names: (
            f"EXISTS (SELECT FROM patient v WHERE v.id = {names.arg('patient_id')} AND {names.scope('Patient', 'v')})"
            f" AND EXISTS (SELECT FROM dispensary v WHERE v.id = {names.arg('dispensary_id')}"
            f" AND {names.scope('Dispensary', 'v')})"
        ),
        "A dispensary's beds for a patient, best first; those that do not suit come last, with the reasons. "
        "Empty where the actor may not see the patient or the dispensary.",
        source=lambda row, names: bed_options(names.arg("patient_id"), names.arg("dispensary_id")),
        order=lambda row, child: f"{child}.place",
        usual=200,
        args={
            "patient_id": graph.key("Patient", "For whom."),
            "dispensary_id": graph.key("Dispensary", "Where."),
        },
        roles=CLINICAL,
    )
