"""Schedules with their hours, slots, appointments, holds, the waiting list with its offers, notifications."""

from datetime import date, datetime
from enum import StrEnum

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlmodel import Field, SQLModel

from ekoyka.columns import Remark, identity, instant, reference


class Weekday(StrEnum):
    """A day of the week; kept by its number, Monday is 1."""

    MONDAY = "MONDAY"
    TUESDAY = "TUESDAY"
    WEDNESDAY = "WEDNESDAY"
    THURSDAY = "THURSDAY"
    FRIDAY = "FRIDAY"
    SATURDAY = "SATURDAY"
    SUNDAY = "SUNDAY"


class SlotChange(StrEnum):
    """What happened to a doctor's slots."""

    TAKEN = "TAKEN"
    FREED = "FREED"
    HELD = "HELD"
    OFFERED = "OFFERED"
    RELEASED = "RELEASED"
    RULES = "RULES"


class AppointmentChange(StrEnum):
    """What happened to an appointment."""

    BOOKED = "BOOKED"
    MOVED = "MOVED"
    ARRIVED = "ARRIVED"
    FULFILLED = "FULFILLED"
    CANCELLED = "CANCELLED"
    NOSHOW = "NOSHOW"
    ENTERED_IN_ERROR = "ENTERED_IN_ERROR"
    LEAVE = "LEAVE"
    UPDATED = "UPDATED"


class TimeOffKind(StrEnum):
    """Why a doctor sees nobody."""

    LEAVE = "LEAVE"
    BREAK = "BREAK"
    OTHER = "OTHER"


class SlotStatus(StrEnum):
    """Whether a slot can be booked (FHIR R5, SlotStatus); derived, never stored."""

    FREE = "FREE"
    BUSY = "BUSY"
    BUSY_TENTATIVE = "BUSY_TENTATIVE"
    BUSY_UNAVAILABLE = "BUSY_UNAVAILABLE"
    ENTERED_IN_ERROR = "ENTERED_IN_ERROR"


class AppointmentStatus(StrEnum):
    """What has become of an appointment (FHIR R5, AppointmentStatus)."""

    BOOKED = "BOOKED"
    ARRIVED = "ARRIVED"
    FULFILLED = "FULFILLED"
    CANCELLED = "CANCELLED"
    NOSHOW = "NOSHOW"
    ENTERED_IN_ERROR = "ENTERED_IN_ERROR"


class WaitingOutcome(StrEnum):
    """How somebody's waiting for a visit ended."""

    BOOKED = "BOOKED"
    LEFT = "LEFT"
    CLOSED = "CLOSED"


class OfferOutcome(StrEnum):
    """How an offer of a freed slot ended."""

    ACCEPTED = "ACCEPTED"
    DECLINED = "DECLINED"
    LAPSED = "LAPSED"
    WITHDRAWN = "WITHDRAWN"


class NotificationKind(StrEnum):
    """What somebody is told."""

    BOOKED = "BOOKED"
    MOVED = "MOVED"
    CANCELLED = "CANCELLED"
    LEAVE = "LEAVE"
    OFFER = "OFFER"
    REMINDER_DAY = "REMINDER_DAY"
    REMINDER_HOUR = "REMINDER_HOUR"


SHORTEST_VISIT, LONGEST_VISIT = 5, 480
LONGEST_HORIZON = 366

# Of an appointment that holds its slot; the indexes below keep this very expression.
LIVE = "{row}status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR')"


# What a doctor's slot takes up, in minutes; half a minute less, since boxes that touch overlap. Of the core's
# classes for GiST this is the one that takes half a million rows in seconds; ranges take two or three times as long.
_BOX = (
    "box(point(doctor_id, date_part('epoch', starts_at - 'epoch'::timestamptz) / 60), "
    "point(doctor_id, date_part('epoch', ends_at - 'epoch'::timestamptz) / 60 - 0.5))"
)


def _interval() -> tuple[CheckConstraint, ...]:
    """An interval is not empty and its ends are whole minutes, as those of the slots between them are."""
    whole = (
        CheckConstraint(f"mod(date_part('epoch', {name} - 'epoch'::timestamptz)::bigint, 60) = 0", name=name)
        for name in ("starts_at", "ends_at")
    )
    return (CheckConstraint("ends_at > starts_at", "interval"), *whole)


def _of_schedule() -> ForeignKeyConstraint:
    """The row is of the schedule's own doctor and dispensary."""
    return ForeignKeyConstraint(
        ["schedule_id", "doctor_id", "dispensary_id"],
        ["schedule.id", "schedule.doctor_id", "schedule.dispensary_id"],
    )


class Schedule(SQLModel, table=True):
    """A doctor's visits in one dispensary (график приёма; FHIR Schedule): what all their hours hang on.

    Whoever changes the hours or makes slots of them locks this row; whoever books a slot shares it.
    """

    __table_args__ = (
        CheckConstraint(f"horizon_days BETWEEN 0 AND {LONGEST_HORIZON}", "horizon_days"),
        UniqueConstraint("doctor_id", "dispensary_id", name="uq_schedule_doctor_id_dispensary_id"),
        UniqueConstraint("id", "doctor_id", "dispensary_id", name="uq_schedule_id_doctor_id_dispensary_id"),
        UniqueConstraint("id", "dispensary_id", name="uq_schedule_id_dispensary_id"),
        Index("ix_schedule_dispensary_id", "dispensary_id", "id"),
    )
    id: int = identity()
    doctor_id: int = reference("account.id")
    dispensary_id: int = reference("dispensary.id")
    # Slots are made for today and so many days more.
    horizon_days: int = 7
    # The day there on which its slots were last made.
    made_on: date | None = None
    created_at: datetime = instant(now=True)
    version: int = 1


class Timetable(SQLModel, table=True):
    """Weekly working hours and the length of a visit, from one day to another, both included."""

    __table_args__ = (
        CheckConstraint("valid_until >= valid_from", "validity"),
        CheckConstraint(f"visit_minutes BETWEEN {SHORTEST_VISIT} AND {LONGEST_VISIT}", "visit_minutes"),
        UniqueConstraint("id", "dispensary_id", name="uq_timetable_id_dispensary_id"),
        ForeignKeyConstraint(["schedule_id", "dispensary_id"], ["schedule.id", "schedule.dispensary_id"]),
        ExcludeConstraint(
            (text("int8range(schedule_id, schedule_id, '[]')"), "&&"),
            (text("daterange(valid_from, valid_until, '[]')"), "&&"),
            name="ex_timetable_validity",
            using="gist",
        ),
        Index("ix_timetable_schedule_id", "schedule_id", "valid_from"),
    )
    id: int = identity()
    schedule_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    valid_from: date
    valid_until: date | None = None
    visit_minutes: int
    version: int = 1


class WorkingHours(SQLModel, table=True):
    """One interval of a weekday, in minutes from the local midnight."""

    __tablename__ = "working_hours"
    __table_args__ = (
        CheckConstraint("weekday BETWEEN 1 AND 7", "weekday"),
        CheckConstraint(
            "0 <= starts_minute AND starts_minute < ends_minute AND ends_minute <= 1440", "interval"
        ),
        ForeignKeyConstraint(
            ["timetable_id", "dispensary_id"],
            ["timetable.id", "timetable.dispensary_id"],
            ondelete="CASCADE",
        ),
        ExcludeConstraint(
            (text("int8range(timetable_id * 8 + weekday, timetable_id * 8 + weekday, '[]')"), "&&"),
            (text("int4range(starts_minute, ends_minute)"), "&&"),
            name="ex_working_hours_overlap",
            using="gist",
        ),
        Index("ix_working_hours_timetable_id", "timetable_id", "weekday", "starts_minute"),
    )
    id: int = identity()
    timetable_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    # Monday is 1 (ISO 8601).
    weekday: int
    starts_minute: int
    ends_minute: int


class TimeOffDetails(SQLModel):
    """What is said about time off."""

    reason: Remark


class TimeOff(TimeOffDetails, table=True):
    """When a doctor sees nobody in the dispensary, and why: leave, a break, anything else."""

    __tablename__ = "time_off"
    __table_args__ = (
        *_interval(),
        CheckConstraint("kind IN ('LEAVE', 'BREAK', 'OTHER')", "kind"),
        _of_schedule(),
        Index("ix_time_off_schedule_id", "schedule_id", "ends_at"),
    )
    id: int = identity()
    schedule_id: int = Field(sa_type=BigInteger)
    doctor_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    kind: str
    starts_at: datetime = instant()
    ends_at: datetime = instant()
    added_by_id: int | None = reference("account.id", nullable=True)
    added_at: datetime = instant(now=True)


class ExtraHours(SQLModel, table=True):
    """Hours beside the week's, once. Without a length of their own, visits last as on that day."""

    __tablename__ = "extra_hours"
    __table_args__ = (
        *_interval(),
        CheckConstraint(f"visit_minutes BETWEEN {SHORTEST_VISIT} AND {LONGEST_VISIT}", "visit_minutes"),
        _of_schedule(),
        ExcludeConstraint(
            (text("int8range(doctor_id, doctor_id, '[]')"), "&&"),
            (text("tstzrange(starts_at, ends_at)"), "&&"),
            name="ex_extra_hours_overlap",
            using="gist",
        ),
        Index("ix_extra_hours_schedule_id", "schedule_id", "ends_at"),
    )
    id: int = identity()
    schedule_id: int = Field(sa_type=BigInteger)
    doctor_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    starts_at: datetime = instant()
    ends_at: datetime = instant()
    visit_minutes: int | None = None
    added_by_id: int | None = reference("account.id", nullable=True)
    added_at: datetime = instant(now=True)


class Slot(SQLModel, table=True):
    """A time in which one patient can be seen (FHIR Slot). Its times never change.

    A slot that the rules no longer give is withdrawn, so that whoever still has it on the screen is told
    why; one that was never booked is deleted some time later.
    """

    __table_args__ = (
        *_interval(),
        _of_schedule(),
        ExcludeConstraint(
            (text(_BOX), "&&"),
            name="ex_slot_doctor_overlap",
            using="gist",
            where=text("withdrawn_at IS NULL"),
        ),
        # A doctor's slots in order; and what appointments repeat of their slot, they repeat truly.
        UniqueConstraint("doctor_id", "starts_at", "id", "dispensary_id", "ends_at", name="uq_slot_repeated"),
        Index(
            "ix_slot_dispensary_id_starts_at",
            "dispensary_id",
            "starts_at",
            "id",
            postgresql_where=text("withdrawn_at IS NULL"),
        ),
        Index("ix_slot_starts_at", "starts_at", "id", postgresql_where=text("withdrawn_at IS NULL")),
        Index("ix_slot_freed", "starts_at", "id", postgresql_where=text("freed_at IS NOT NULL")),
        Index("ix_slot_withdrawn_at", "withdrawn_at", postgresql_where=text("withdrawn_at IS NOT NULL")),
    )
    id: int = identity()
    schedule_id: int = Field(sa_type=BigInteger)
    doctor_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    starts_at: datetime = instant()
    ends_at: datetime = instant()
    # Since when it is free again after it was booked: then it is offered to those who wait.
    freed_at: datetime | None = instant(nullable=True)
    # Whether an appointment holds it, and until when it is offered: whose and to whom is not for everybody to see
    # who looks for a slot. PostgreSQL keeps both, by triggers of the appointments and the offers.
    taken: bool = Field(default=False, sa_column_kwargs={"server_default": text("false")})
    offered_until: datetime | None = instant(nullable=True)
    withdrawn_at: datetime | None = instant(nullable=True)


class AppointmentDetails(SQLModel):
    """What is said about an appointment."""

    reason: Remark | None = None


class Appointment(AppointmentDetails, table=True):
    """A patient's visit to a doctor (запись на приём; FHIR Appointment), in the slot that it holds."""

    __table_args__ = (
        CheckConstraint(
            "status IN ('BOOKED', 'ARRIVED', 'FULFILLED', 'CANCELLED', 'NOSHOW', 'ENTERED_IN_ERROR')",
            "status",
        ),
        CheckConstraint("(status IN ('BOOKED', 'ARRIVED')) = (ended_at IS NULL)", "ended_at"),
        ForeignKeyConstraint(
            ["doctor_id", "starts_at", "slot_id", "dispensary_id", "ends_at"],
            ["slot.doctor_id", "slot.starts_at", "slot.id", "slot.dispensary_id", "slot.ends_at"],
            name="fk_appointment_slot",
        ),
        Index(
            "uq_appointment_live_slot",
            "slot_id",
            unique=True,
            postgresql_where=text(LIVE.format(row="")),
        ),
        ExcludeConstraint(
            (text("int8range(patient_id, patient_id, '[]')"), "&&"),
            (text("tstzrange(starts_at, ends_at)"), "&&"),
            name="ex_appointment_patient_overlap",
            using="gist",
            where=text(LIVE.format(row="")),
        ),
        Index("ix_appointment_slot_id", "slot_id"),
        Index("ix_appointment_patient_id_starts_at", "patient_id", "starts_at", "id"),
        Index("ix_appointment_doctor_id_starts_at", "doctor_id", "starts_at", "id"),
        Index("ix_appointment_dispensary_id_starts_at", "dispensary_id", "starts_at", "id"),
        Index("ix_appointment_starts_at", "starts_at", "id"),
    )
    id: int = identity()
    slot_id: int = Field(sa_type=BigInteger)
    doctor_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    patient_id: int = reference("patient.id")
    starts_at: datetime = instant()
    ends_at: datetime = instant()
    status: str = AppointmentStatus.BOOKED
    booked_at: datetime = instant(now=True)
    booked_by_id: int | None = reference("account.id", nullable=True)
    # When it came into this slot; reminders of what was booked later than that are none.
    placed_at: datetime = instant(now=True)
    arrived_at: datetime | None = instant(nullable=True)
    # When it was completed, cancelled, marked as missed or as an error.
    ended_at: datetime | None = instant(nullable=True)
    cancellation_reason: Remark | None = None
    version: int = 1


class SlotHold(SQLModel, table=True):
    """A slot kept for the minutes in which somebody fills in a form; one a person."""

    __tablename__ = "slot_hold"
    __table_args__ = (
        Index("uq_slot_hold_account_id", "account_id", unique=True),
        Index("ix_slot_hold_until", "until"),
    )
    slot_id: int = Field(sa_column=Column(BigInteger, ForeignKey("slot.id"), primary_key=True))
    dispensary_id: int = reference("dispensary.id")
    account_id: int = reference("account.id")
    until: datetime = instant()


class WaitingEntry(SQLModel, table=True):
    """A patient's place in the line for freed slots, of one doctor or of any in the dispensary.

    With an appointment they wait for an earlier one in its place.
    """

    __tablename__ = "waiting_entry"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", "outcome_at_end"),
        CheckConstraint("outcome IN ('BOOKED', 'LEFT', 'CLOSED')", "outcome"),
        Index(
            "uq_waiting_entry_open",
            "patient_id",
            "dispensary_id",
            "doctor_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index(
            "ix_waiting_entry_line",
            "dispensary_id",
            "joined_at",
            "id",
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_waiting_entry_dispensary_id", "dispensary_id", "joined_at", "id"),
        Index("ix_waiting_entry_patient_id", "patient_id", "joined_at"),
        Index("ix_waiting_entry_appointment_id", "appointment_id"),
    )
    id: int = identity()
    dispensary_id: int = reference("dispensary.id")
    doctor_id: int | None = reference("account.id", nullable=True)
    patient_id: int = reference("patient.id")
    appointment_id: int | None = reference("appointment.id", nullable=True)
    joined_at: datetime = instant(now=True)
    joined_by_id: int | None = reference("account.id", nullable=True)
    ended_at: datetime | None = instant(nullable=True)
    outcome: str | None = None


class SlotOffer(SQLModel, table=True):
    """A freed slot kept for who is first in the line, until they answer or the time is up."""

    __tablename__ = "slot_offer"
    __table_args__ = (
        CheckConstraint("(ended_at IS NULL) = (outcome IS NULL)", "outcome_at_end"),
        CheckConstraint("outcome IN ('ACCEPTED', 'DECLINED', 'LAPSED', 'WITHDRAWN')", "outcome"),
        Index("uq_slot_offer_open_slot", "slot_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        Index("uq_slot_offer_open_entry", "entry_id", unique=True, postgresql_where=text("ended_at IS NULL")),
        # Nobody is offered the same slot twice.
        Index("uq_slot_offer_slot_id_entry_id", "slot_id", "entry_id", unique=True),
        Index("ix_slot_offer_entry_id", "entry_id", "offered_at"),
        Index("ix_slot_offer_patient_id", "patient_id", "offered_at"),
        Index("ix_slot_offer_open_until", "until", postgresql_where=text("ended_at IS NULL")),
    )
    id: int = identity()
    entry_id: int = reference("waiting_entry.id")
    slot_id: int = reference("slot.id")
    dispensary_id: int = reference("dispensary.id")
    patient_id: int = reference("patient.id")
    offered_at: datetime = instant(now=True)
    until: datetime = instant()
    ended_at: datetime | None = instant(nullable=True)
    outcome: str | None = None


class Notification(SQLModel, table=True):
    """Something that an account is told in the application: keys and codes; its text is made when it is read.

    There is one for each occasion, however often a job or an operation comes to it: the appointment's version,
    the leave, the instant reminded of.
    """

    __table_args__ = (
        CheckConstraint(
            "kind IN ('BOOKED', 'MOVED', 'CANCELLED', 'LEAVE', 'OFFER', 'REMINDER_DAY', 'REMINDER_HOUR')",
            "kind",
        ),
        CheckConstraint("num_nonnulls(appointment_id, offer_id) = 1", "about"),
        Index(
            "uq_notification_occasion",
            "account_id",
            "kind",
            "appointment_id",
            "offer_id",
            "occasion",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        Index("ix_notification_account_id", "account_id", "created_at", "id"),
        Index("ix_notification_unread", "account_id", postgresql_where=text("read_at IS NULL")),
        Index("ix_notification_appointment_id", "appointment_id"),
    )
    id: int = identity()
    account_id: int = reference("account.id")
    dispensary_id: int = reference("dispensary.id")
    kind: str
    appointment_id: int | None = reference("appointment.id", nullable=True)
    offer_id: int | None = reference("slot_offer.id", nullable=True)
    occasion: int = Field(sa_type=BigInteger)
    created_at: datetime = instant(now=True)
    read_at: datetime | None = instant(nullable=True)
