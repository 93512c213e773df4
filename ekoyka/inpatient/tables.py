"""Patients, stays, bed assignments, reservations, and the former versions of corrected stays."""

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import StringConstraints, field_validator, model_validator
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP, TSVECTOR, ExcludeConstraint
from sqlmodel import Field, SQLModel

from ekoyka.columns import (
    Line,
    Name,
    Phone,
    Remark,
    Title,
    computed,
    folded,
    identity,
    instant,
    reference,
)


class Sex(StrEnum):
    """A patient's administrative sex, as far as the rooms' rule needs it."""

    MALE = "MALE"
    FEMALE = "FEMALE"


class Outcome(StrEnum):
    """How a stay ended (FHIR Encounter, discharge disposition, in the ward's words)."""

    DISCHARGED = "DISCHARGED"
    LEFT_AGAINST_ADVICE = "LEFT_AGAINST_ADVICE"
    TRANSFERRED = "TRANSFERRED"
    DIED = "DIED"


class ReservationOutcome(StrEnum):
    """How a reservation ended."""

    FULFILLED = "FULFILLED"
    RELEASED = "RELEASED"
    LAPSED = "LAPSED"


# ICD-10: a letter, two digits, and up to two more after a dot (F10.20; WHO, volume 2, 2.4.1).
DiagnosisCode = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_upper=True, pattern=r"^[A-Za-z][0-9][0-9A-Za-z](\.[0-9A-Za-z]{1,4})?$"
    ),
]
RecordNumber = Annotated[Line, StringConstraints(max_length=40)]

_FOLDED_NAMES = folded(
    "coalesce(code_name, '') || coalesce(family_name, '') || ' ' || coalesce(given_name, '')"
    " || ' ' || coalesce(patronymic, '')"
)


class PatientDetails(SQLModel):
    """What is said about a patient: names, or a code name for anonymous treatment."""

    record_number: RecordNumber
    family_name: Name | None = None
    given_name: Name | None = None
    patronymic: Name | None = None
    code_name: Name | None = None
    sex: Sex
    birth_date: date | None = None
    phone: Phone | None = None
    address: Title | None = None
    identity_document: Title | None = None
    needs_isolation: bool = False

    @model_validator(mode="after")
    def _named(self) -> "PatientDetails":
        if (self.code_name is None) == (self.family_name is None or self.given_name is None):
            raise ValueError("either a family and a given name, or a code name alone")
        if self.code_name is not None and (self.family_name or self.given_name or self.patronymic):
            raise ValueError("either a family and a given name, or a code name alone")
        return self

    @field_validator("birth_date")
    @classmethod
    def _plausible(cls, value: date | None) -> date | None:
        if value is not None and value.year < 1880:
            raise ValueError("a birth date before 1880")
        return value


class Patient(PatientDetails, table=True):
    """A patient, registered by a dispensary."""

    __table_args__ = (
        CheckConstraint(
            "CASE WHEN code_name IS NULL THEN family_name IS NOT NULL AND given_name IS NOT NULL"
            " ELSE family_name IS NULL AND given_name IS NULL AND patronymic IS NULL END",
            "named",
        ),
        CheckConstraint("length(family_name) BETWEEN 1 AND 100", "family_name"),
        CheckConstraint("length(given_name) BETWEEN 1 AND 100", "given_name"),
        CheckConstraint("length(patronymic) BETWEEN 1 AND 100", "patronymic"),
        CheckConstraint("length(code_name) BETWEEN 1 AND 100", "code_name"),
        CheckConstraint("length(record_number) BETWEEN 1 AND 40", "record_number"),
        CheckConstraint("sex IN ('MALE', 'FEMALE')", "sex"),
        Index("uq_patient_record_number", "dispensary_id", "record_number", unique=True),
        Index(
            "uq_patient_account_id",
            "account_id",
            unique=True,
            postgresql_where=text("account_id IS NOT NULL"),
        ),
        Index("ix_patient_search", "search", postgresql_using="gin"),
        Index("ix_patient_birth_date", "birth_date"),
        Index("ix_patient_record_number", "record_number"),
        Index("ix_patient_name_key", "name_key", "id"),
        Index("ix_patient_dispensary_id_name_key", "dispensary_id", "name_key", "id"),
    )
    id: int = identity()
    dispensary_id: int = reference("dispensary.id")
    account_id: int | None = reference("account.id", nullable=True)
    sex: str  # type: ignore[assignment]  # stored as text, refused by CHECK
    name_key: str = computed(_FOLDED_NAMES)
    search: Any = Field(
        default=None,
        sa_column=Column(
            TSVECTOR,
            Computed(
                f"to_tsvector('simple', {_FOLDED_NAMES} || ' ' || lower(record_number))", persisted=True
            ),
            nullable=False,
        ),
    )
    # Where the patient is registered or has ever stayed; PostgreSQL sees to it.
    known_in: list[int] = Field(
        default=None, sa_column=Column(ARRAY(BigInteger), server_default=text("'{}'"), nullable=False)
    )
    archived_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant(now=True)
    version: int = 1


class StayPlan(SQLModel):
    """What a doctor may edit while and after a patient stays."""

    planned_check_out_on: date | None = None
    diagnosis_code: DiagnosisCode | None = None
    board_alias: Name | None = None


class Stay(StayPlan, table=True):
    """A patient's stay (госпитализация; FHIR Encounter of class inpatient)."""

    __table_args__ = (
        CheckConstraint("checked_out_at >= checked_in_at", "interval"),
        CheckConstraint("(checked_out_at IS NULL) = (outcome IS NULL)", "outcome_at_end"),
        CheckConstraint("outcome IN ('DISCHARGED', 'LEFT_AGAINST_ADVICE', 'TRANSFERRED', 'DIED')", "outcome"),
        UniqueConstraint("id", "dispensary_id", name="uq_stay_id_dispensary_id"),
        Index(
            "uq_stay_open_patient", "patient_id", unique=True, postgresql_where=text("checked_out_at IS NULL")
        ),
        ExcludeConstraint(
            (text("int8range(patient_id, patient_id, '[]')"), "&&"),
            (text("tstzrange(checked_in_at, checked_out_at)"), "&&"),
            name="ex_stay_patient_overlap",
            using="gist",
        ),
        Index("ix_stay_patient_id", "patient_id", "checked_in_at"),
        Index(
            "ix_stay_open_dispensary_id",
            "dispensary_id",
            "checked_in_at",
            postgresql_where=text("checked_out_at IS NULL"),
        ),
        Index("ix_stay_dispensary_id_checked_in_at", "dispensary_id", "checked_in_at", "id"),
        Index("ix_stay_dispensary_id_ended_at", "dispensary_id", "ended_at", "id"),
        Index("ix_stay_checked_in_at", "checked_in_at", "id"),
        Index("uq_stay_source_key", "dispensary_id", "source_key", unique=True),
    )
    id: int = identity()
    patient_id: int = reference("patient.id")
    dispensary_id: int = reference("dispensary.id")
    checked_in_at: datetime = instant()
    checked_out_at: datetime | None = instant(nullable=True)
    # For an order: open ones are the latest. A column, since PostgreSQL uses an index of an expression for rows
    # behind a policy only where it knows that asking it tells nothing of the others.
    ended_at: datetime = Field(
        default=None,
        sa_column=Column(
            TIMESTAMP(timezone=True),
            Computed("coalesce(checked_out_at, '9999-12-31 00:00:00+00'::timestamptz)", persisted=True),
            nullable=False,
        ),
    )
    outcome: str | None = None
    attending_doctor_id: int | None = reference("account.id", nullable=True)
    # The key of the source it was imported from; repeating the import finds it again.
    source_key: str | None = None
    created_at: datetime = instant(now=True)
    version: int = 1


class BedAssignment(SQLModel, table=True):
    """Which bed a stay occupies during which time; a transfer ends one and begins the next at one instant."""

    __tablename__ = "bed_assignment"
    __table_args__ = (
        CheckConstraint("ended_at >= started_at", "interval"),
        ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_bed_assignment_bed_id_dispensary_id",
        ),
        ForeignKeyConstraint(
            ["stay_id", "dispensary_id"],
            ["stay.id", "stay.dispensary_id"],
            name="fk_bed_assignment_stay_id_dispensary_id",
        ),
        # With all that a board asks of the row, which need not be looked up then.
        Index(
            "uq_bed_assignment_open_bed",
            "bed_id",
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
            postgresql_include=["id", "stay_id", "dispensary_id", "started_at"],
        ),
        Index(
            "uq_bed_assignment_open_stay", "stay_id", unique=True, postgresql_where=text("ended_at IS NULL")
        ),
        ExcludeConstraint(
            (text("int8range(bed_id, bed_id, '[]')"), "&&"),
            (text("tstzrange(started_at, ended_at)"), "&&"),
            name="ex_bed_assignment_bed_overlap",
            using="gist",
        ),
        Index(
            "ix_bed_assignment_open_dispensary_id",
            "dispensary_id",
            "bed_id",
            postgresql_where=text("ended_at IS NULL"),
            # All that the row's policy asks, which need not be looked up then.
            postgresql_include=["stay_id"],
        ),
        Index("ix_bed_assignment_stay_id", "stay_id", "started_at"),
        Index("ix_bed_assignment_bed_id", "bed_id", "started_at"),
    )
    id: int = identity()
    stay_id: int = Field(sa_type=BigInteger)
    bed_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    started_at: datetime = instant()
    ended_at: datetime | None = instant(nullable=True)


class Reservation(SQLModel, table=True):
    """A bed kept until an instant, for a patient or for somebody on the way."""

    __table_args__ = (
        CheckConstraint("until > reserved_at", "until"),
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", "outcome_at_end"),
        CheckConstraint("outcome IN ('FULFILLED', 'RELEASED', 'LAPSED')", "outcome"),
        ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_reservation_bed_id_dispensary_id",
        ),
        Index("uq_reservation_open_bed", "bed_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("ix_reservation_open_until", "until", postgresql_where=text("ended_at IS NULL")),
        Index("ix_reservation_bed_id", "bed_id", "reserved_at"),
        Index("ix_reservation_patient_id", "patient_id"),
        Index("ix_reservation_dispensary_id", "dispensary_id", "reserved_at"),
    )
    id: int = identity()
    bed_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    patient_id: int | None = reference("patient.id", nullable=True)
    reserved_by_id: int | None = reference("account.id", nullable=True)
    reserved_at: datetime = instant(now=True)
    until: datetime = instant()
    ended_at: datetime | None = instant(nullable=True)
    outcome: str | None = None


class StayRevision(SQLModel, table=True):
    """What a stay said before it was corrected, by whom and why."""

    __tablename__ = "stay_revision"
    __table_args__ = (Index("ix_stay_revision_stay_id", "stay_id", "revised_at"),)
    id: int = identity()
    stay_id: int = reference("stay.id")
    revised_at: datetime = instant(now=True)
    revised_by_id: int | None = reference("account.id", nullable=True)
    reason: Remark
    former: dict[str, Any] = Field(sa_type=JSONB)
