"""The outpatient clinic: schedules, slots, appointments, holds, the waiting list, notifications; the worker's queue.

Whose visit it is stands behind row-level security, as a stay does. That a slot is taken or offered is for everybody to
see who looks for one, so that stands in the slot, kept there by triggers.
"""

from pathlib import Path

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ekoyka.database import SERVER_ROLE, WARD_ROLE

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TABLES = (
    "schedule",
    "extra_hours",
    "slot",
    "time_off",
    "timetable",
    "appointment",
    "slot_hold",
    "working_hours",
    "waiting_entry",
    "slot_offer",
    "notification",
)

# The library's own migrations, which it only ever adds to: those up to this one make its schema of 3.4 to 3.10. What
# it adds later is the matter of a later migration here.
QUEUE_AT = "03.04.00_50"
DROP_QUEUE = """
    DO $$ DECLARE found record; BEGIN
        FOR found IN SELECT oid::regprocedure AS name FROM pg_proc WHERE starts_with(proname, 'procrastinate_') LOOP
            EXECUTE format('DROP FUNCTION %s CASCADE', found.name);
        END LOOP;
        DROP TABLE procrastinate_periodic_defers, procrastinate_events, procrastinate_jobs, procrastinate_workers;
        DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_event_type, procrastinate_job_status;
    END $$
"""

_CLINICIANS = "(SELECT actor_is_superadmin()) OR dispensary_id = ANY((SELECT actor_doctor_of())::bigint[])"
_OWN = "patient_id = ANY(ARRAY(SELECT patients_of_actor()))"
# As in 0007.
_PATIENT = (
    "(SELECT actor_is_superadmin()) OR known_in && (SELECT actor_doctor_of())::bigint[] OR EXISTS (SELECT FROM reservation k"
    " WHERE k.patient_id = patient.id AND k.ended_at IS NULL"
    " AND k.dispensary_id = ANY((SELECT actor_doctor_of())::bigint[]))"
)
_TREATED = f"{_CLINICIANS} OR {_OWN}"

# Table: which rows the actor sees, and which the actor's operations write. A slot that one cancels is offered to
# another, whom the operation tells: what it writes then is said by the waiting list.
POLICIES = {
    "appointment": (_TREATED, _TREATED),
    "waiting_entry": (_TREATED, _TREATED),
    "slot_offer": (
        _TREATED,
        "EXISTS (SELECT FROM waiting_entry w WHERE w.id = entry_id AND w.patient_id = slot_offer.patient_id"
        " AND w.dispensary_id = slot_offer.dispensary_id)",
    ),
    "notification": ("account_id = (SELECT actor_account())", "true"),
}
TRIGGERS = {
    "slot_is_taken": (
        "appointment",
        "AFTER INSERT OR DELETE OR UPDATE OF slot_id, status",
        """
        UPDATE slot s SET taken = kept.taken
        FROM (
            SELECT x.id, EXISTS (
                SELECT FROM appointment a WHERE a.slot_id = x.id AND a.status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR')
            ) AS taken
            FROM unnest(ARRAY[NEW.slot_id, OLD.slot_id]) AS x (id)
        ) kept
        WHERE s.id = kept.id AND s.taken <> kept.taken;
        UPDATE patient SET known_in = known_in || NEW.dispensary_id
            WHERE id = NEW.patient_id AND NEW.dispensary_id <> ALL (known_in);
        """,
    ),
    "slot_is_offered": (
        "slot_offer",
        "AFTER INSERT OR DELETE OR UPDATE OF until, ended_at",
        """
        UPDATE slot s SET offered_until = (
            SELECT o.until FROM slot_offer o WHERE o.slot_id = s.id AND o.ended_at IS NULL
        )
        WHERE s.id = coalesce(NEW.slot_id, OLD.slot_id);
        """,
    ),
}


def queue_migrations() -> list[Path]:
    """The library's migrations that make the queue's schema, first to last."""
    # Not whenever Alembic reads its versions.
    from procrastinate.schema import SchemaManager

    folder = Path(str(SchemaManager.get_migrations_path()))
    return sorted(path for path in folder.glob("*.sql") if path.name[: len(QUEUE_AT)] <= QUEUE_AT)


def upgrade() -> None:
    op.create_table(
        "schedule",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("horizon_days", sa.Integer(), nullable=False),
        sa.Column("made_on", sa.Date(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("horizon_days BETWEEN 0 AND 366", name=op.f("ck_schedule_horizon_days")),
        sa.ForeignKeyConstraint(["dispensary_id"], ["dispensary.id"], name=op.f("fk_schedule_dispensary_id")),
        sa.ForeignKeyConstraint(["doctor_id"], ["account.id"], name=op.f("fk_schedule_doctor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule")),
        sa.UniqueConstraint("doctor_id", "dispensary_id", name="uq_schedule_doctor_id_dispensary_id"),
        sa.UniqueConstraint("id", "dispensary_id", name="uq_schedule_id_dispensary_id"),
        sa.UniqueConstraint(
            "id", "doctor_id", "dispensary_id", name="uq_schedule_id_doctor_id_dispensary_id"
        ),
    )
    op.create_index("ix_schedule_dispensary_id", "schedule", ["dispensary_id", "id"], unique=False)
    op.create_table(
        "extra_hours",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("schedule_id", sa.BigInteger(), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("visit_minutes", sa.Integer(), nullable=True),
        sa.Column("added_by_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "added_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(doctor_id, doctor_id, '[]')"), "&&"),
            (sa.text("tstzrange(starts_at, ends_at)"), "&&"),
            using="gist",
            name="ex_extra_hours_overlap",
        ),
        sa.CheckConstraint(
            "mod(date_part('epoch', ends_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_extra_hours_ends_at"),
        ),
        sa.CheckConstraint(
            "mod(date_part('epoch', starts_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_extra_hours_starts_at"),
        ),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_extra_hours_interval")),
        sa.CheckConstraint("visit_minutes BETWEEN 5 AND 480", name=op.f("ck_extra_hours_visit_minutes")),
        sa.ForeignKeyConstraint(["added_by_id"], ["account.id"], name=op.f("fk_extra_hours_added_by_id")),
        sa.ForeignKeyConstraint(
            ["schedule_id", "doctor_id", "dispensary_id"],
            ["schedule.id", "schedule.doctor_id", "schedule.dispensary_id"],
            name=op.f("fk_extra_hours_schedule_id_doctor_id_dispensary_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_extra_hours")),
    )
    op.create_index("ix_extra_hours_schedule_id", "extra_hours", ["schedule_id", "ends_at"], unique=False)
    op.create_table(
        "slot",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("schedule_id", sa.BigInteger(), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("freed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("taken", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("offered_until", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("withdrawn_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        postgresql.ExcludeConstraint(
            (
                sa.text(
                    "box(point(doctor_id, date_part('epoch', starts_at - 'epoch'::timestamptz) / 60), point(doctor_id, date_part('epoch', ends_at - 'epoch'::timestamptz) / 60 - 0.5))"
                ),
                "&&",
            ),
            where=sa.text("withdrawn_at IS NULL"),
            using="gist",
            name="ex_slot_doctor_overlap",
        ),
        sa.CheckConstraint(
            "mod(date_part('epoch', ends_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_slot_ends_at"),
        ),
        sa.CheckConstraint(
            "mod(date_part('epoch', starts_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_slot_starts_at"),
        ),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_slot_interval")),
        sa.ForeignKeyConstraint(
            ["schedule_id", "doctor_id", "dispensary_id"],
            ["schedule.id", "schedule.doctor_id", "schedule.dispensary_id"],
            name=op.f("fk_slot_schedule_id_doctor_id_dispensary_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slot")),
        sa.UniqueConstraint(
            "doctor_id", "starts_at", "id", "dispensary_id", "ends_at", name="uq_slot_repeated"
        ),
    )
    op.create_index(
        "ix_slot_dispensary_id_starts_at",
        "slot",
        ["dispensary_id", "starts_at", "id"],
        unique=False,
        postgresql_where=sa.text("withdrawn_at IS NULL"),
    )
    op.create_index(
        "ix_slot_starts_at",
        "slot",
        ["starts_at", "id"],
        unique=False,
        postgresql_where=sa.text("withdrawn_at IS NULL"),
    )
    op.create_index(
        "ix_slot_freed",
        "slot",
        ["starts_at", "id"],
        unique=False,
        postgresql_where=sa.text("freed_at IS NOT NULL"),
    )
    op.create_index(
        "ix_slot_withdrawn_at",
        "slot",
        ["withdrawn_at"],
        unique=False,
        postgresql_where=sa.text("withdrawn_at IS NOT NULL"),
    )
    op.create_table(
        "time_off",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("schedule_id", sa.BigInteger(), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("starts_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("added_by_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "added_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("kind IN ('LEAVE', 'BREAK', 'OTHER')", name=op.f("ck_time_off_kind")),
        sa.CheckConstraint(
            "mod(date_part('epoch', ends_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_time_off_ends_at"),
        ),
        sa.CheckConstraint(
            "mod(date_part('epoch', starts_at - 'epoch'::timestamptz)::bigint, 60) = 0",
            name=op.f("ck_time_off_starts_at"),
        ),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_time_off_interval")),
        sa.ForeignKeyConstraint(["added_by_id"], ["account.id"], name=op.f("fk_time_off_added_by_id")),
        sa.ForeignKeyConstraint(
            ["schedule_id", "doctor_id", "dispensary_id"],
            ["schedule.id", "schedule.doctor_id", "schedule.dispensary_id"],
            name=op.f("fk_time_off_schedule_id_doctor_id_dispensary_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_time_off")),
    )
    op.create_index("ix_time_off_schedule_id", "time_off", ["schedule_id", "ends_at"], unique=False)
    op.create_table(
        "timetable",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("schedule_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("valid_until", sa.Date(), nullable=True),
        sa.Column("visit_minutes", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(schedule_id, schedule_id, '[]')"), "&&"),
            (sa.text("daterange(valid_from, valid_until, '[]')"), "&&"),
            using="gist",
            name="ex_timetable_validity",
        ),
        sa.CheckConstraint("valid_until >= valid_from", name=op.f("ck_timetable_validity")),
        sa.CheckConstraint("visit_minutes BETWEEN 5 AND 480", name=op.f("ck_timetable_visit_minutes")),
        sa.ForeignKeyConstraint(
            ["schedule_id", "dispensary_id"],
            ["schedule.id", "schedule.dispensary_id"],
            name=op.f("fk_timetable_schedule_id_dispensary_id"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_timetable")),
        sa.UniqueConstraint("id", "dispensary_id", name="uq_timetable_id_dispensary_id"),
    )
    op.create_index("ix_timetable_schedule_id", "timetable", ["schedule_id", "valid_from"], unique=False)
    op.create_table(
        "appointment",
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("slot_id", sa.BigInteger(), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("starts_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column(
            "booked_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("booked_by_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "placed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("arrived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("cancellation_reason", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(patient_id, patient_id, '[]')"), "&&"),
            (sa.text("tstzrange(starts_at, ends_at)"), "&&"),
            where=sa.text("status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR')"),
            using="gist",
            name="ex_appointment_patient_overlap",
        ),
        sa.CheckConstraint(
            "(status IN ('BOOKED', 'ARRIVED')) = (ended_at IS NULL)", name=op.f("ck_appointment_ended_at")
        ),
        sa.CheckConstraint(
            "status IN ('BOOKED', 'ARRIVED', 'FULFILLED', 'CANCELLED', 'NOSHOW', 'ENTERED_IN_ERROR')",
            name=op.f("ck_appointment_status"),
        ),
        sa.ForeignKeyConstraint(["booked_by_id"], ["account.id"], name=op.f("fk_appointment_booked_by_id")),
        sa.ForeignKeyConstraint(
            ["doctor_id", "starts_at", "slot_id", "dispensary_id", "ends_at"],
            ["slot.doctor_id", "slot.starts_at", "slot.id", "slot.dispensary_id", "slot.ends_at"],
            name="fk_appointment_slot",
        ),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_appointment_patient_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_appointment")),
    )
    op.create_index(
        "ix_appointment_dispensary_id_starts_at",
        "appointment",
        ["dispensary_id", "starts_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_appointment_doctor_id_starts_at", "appointment", ["doctor_id", "starts_at", "id"], unique=False
    )
    op.create_index(
        "ix_appointment_patient_id_starts_at", "appointment", ["patient_id", "starts_at", "id"], unique=False
    )
    op.create_index("ix_appointment_slot_id", "appointment", ["slot_id"], unique=False)
    op.create_index("ix_appointment_starts_at", "appointment", ["starts_at", "id"], unique=False)
    op.create_index(
        "uq_appointment_live_slot",
        "appointment",
        ["slot_id"],
        unique=True,
        postgresql_where=sa.text("status NOT IN ('CANCELLED', 'ENTERED_IN_ERROR')"),
    )
    op.create_table(
        "slot_hold",
        sa.Column("slot_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_slot_hold_account_id")),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_slot_hold_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name=op.f("fk_slot_hold_slot_id")),
        sa.PrimaryKeyConstraint("slot_id", name=op.f("pk_slot_hold")),
    )
    op.create_index("ix_slot_hold_until", "slot_hold", ["until"], unique=False)
    op.create_index("uq_slot_hold_account_id", "slot_hold", ["account_id"], unique=True)
    op.create_table(
        "working_hours",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("timetable_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("weekday", sa.Integer(), nullable=False),
        sa.Column("starts_minute", sa.Integer(), nullable=False),
        sa.Column("ends_minute", sa.Integer(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(timetable_id * 8 + weekday, timetable_id * 8 + weekday, '[]')"), "&&"),
            (sa.text("int4range(starts_minute, ends_minute)"), "&&"),
            using="gist",
            name="ex_working_hours_overlap",
        ),
        sa.CheckConstraint(
            "0 <= starts_minute AND starts_minute < ends_minute AND ends_minute <= 1440",
            name=op.f("ck_working_hours_interval"),
        ),
        sa.CheckConstraint("weekday BETWEEN 1 AND 7", name=op.f("ck_working_hours_weekday")),
        sa.ForeignKeyConstraint(
            ["timetable_id", "dispensary_id"],
            ["timetable.id", "timetable.dispensary_id"],
            name=op.f("fk_working_hours_timetable_id_dispensary_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_working_hours")),
    )
    op.create_index(
        "ix_working_hours_timetable_id",
        "working_hours",
        ["timetable_id", "weekday", "starts_minute"],
        unique=False,
    )
    op.create_table(
        "waiting_entry",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("doctor_id", sa.BigInteger(), nullable=True),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("appointment_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "joined_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("joined_by_id", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.CheckConstraint("outcome IN ('BOOKED', 'LEFT', 'CLOSED')", name=op.f("ck_waiting_entry_outcome")),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_waiting_entry_outcome_at_end")
        ),
        sa.ForeignKeyConstraint(
            ["appointment_id"], ["appointment.id"], name=op.f("fk_waiting_entry_appointment_id")
        ),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_waiting_entry_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["doctor_id"], ["account.id"], name=op.f("fk_waiting_entry_doctor_id")),
        sa.ForeignKeyConstraint(["joined_by_id"], ["account.id"], name=op.f("fk_waiting_entry_joined_by_id")),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_waiting_entry_patient_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_waiting_entry")),
    )
    op.create_index("ix_waiting_entry_appointment_id", "waiting_entry", ["appointment_id"], unique=False)
    op.create_index(
        "ix_waiting_entry_dispensary_id", "waiting_entry", ["dispensary_id", "joined_at", "id"], unique=False
    )
    op.create_index(
        "ix_waiting_entry_line",
        "waiting_entry",
        ["dispensary_id", "joined_at", "id"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("ix_waiting_entry_patient_id", "waiting_entry", ["patient_id", "joined_at"], unique=False)
    op.create_index(
        "uq_waiting_entry_open",
        "waiting_entry",
        ["patient_id", "dispensary_id", "doctor_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "slot_offer",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("entry_id", sa.BigInteger(), nullable=False),
        sa.Column("slot_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "offered_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('ACCEPTED', 'DECLINED', 'LAPSED', 'WITHDRAWN')", name=op.f("ck_slot_offer_outcome")
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_slot_offer_outcome_at_end")
        ),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_slot_offer_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["entry_id"], ["waiting_entry.id"], name=op.f("fk_slot_offer_entry_id")),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_slot_offer_patient_id")),
        sa.ForeignKeyConstraint(["slot_id"], ["slot.id"], name=op.f("fk_slot_offer_slot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slot_offer")),
    )
    op.create_index("ix_slot_offer_entry_id", "slot_offer", ["entry_id", "offered_at"], unique=False)
    op.create_index(
        "ix_slot_offer_open_until",
        "slot_offer",
        ["until"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("ix_slot_offer_patient_id", "slot_offer", ["patient_id", "offered_at"], unique=False)
    op.create_index(
        "uq_slot_offer_open_entry",
        "slot_offer",
        ["entry_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "uq_slot_offer_open_slot",
        "slot_offer",
        ["slot_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("uq_slot_offer_slot_id_entry_id", "slot_offer", ["slot_id", "entry_id"], unique=True)
    op.create_table(
        "notification",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("appointment_id", sa.BigInteger(), nullable=True),
        sa.Column("offer_id", sa.BigInteger(), nullable=True),
        sa.Column("occasion", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("read_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('BOOKED', 'MOVED', 'CANCELLED', 'LEAVE', 'OFFER', 'REMINDER_DAY', 'REMINDER_HOUR')",
            name=op.f("ck_notification_kind"),
        ),
        sa.CheckConstraint("num_nonnulls(appointment_id, offer_id) = 1", name=op.f("ck_notification_about")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_notification_account_id")),
        sa.ForeignKeyConstraint(
            ["appointment_id"], ["appointment.id"], name=op.f("fk_notification_appointment_id")
        ),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_notification_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["offer_id"], ["slot_offer.id"], name=op.f("fk_notification_offer_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification")),
    )
    op.create_index(
        "ix_notification_account_id", "notification", ["account_id", "created_at", "id"], unique=False
    )
    op.create_index("ix_notification_appointment_id", "notification", ["appointment_id"], unique=False)
    op.create_index(
        "ix_notification_unread",
        "notification",
        ["account_id"],
        unique=False,
        postgresql_where=sa.text("read_at IS NULL"),
    )
    op.create_index(
        "uq_notification_occasion",
        "notification",
        ["account_id", "kind", "appointment_id", "offer_id", "occasion"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    for name, (table, when, body) in TRIGGERS.items():
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$"
        )
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")
    for table, (seen, written) in POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY actor ON {table} FOR SELECT TO {SERVER_ROLE} USING ({seen})")
        op.execute(f"CREATE POLICY ward ON {table} TO {WARD_ROLE} USING (true) WITH CHECK ({written})")
    # Who books a visit for themself is known there from then on: their own record says so.
    op.execute(
        f"ALTER POLICY ward ON patient WITH CHECK ({_PATIENT} OR account_id = (SELECT actor_account()))"
    )
    # Many statements in one text: the driver takes them only where nothing is bound.
    connection = op.get_bind().connection.dbapi_connection
    for path in queue_migrations():
        text = path.read_text()
        connection.run_async(lambda driver, text=text: driver.execute(text))  # type: ignore[union-attr]  # asyncpg's own


def downgrade() -> None:
    op.execute(f"ALTER POLICY ward ON patient WITH CHECK ({_PATIENT})")
    op.execute(DROP_QUEUE)
    for table in reversed(TABLES):
        op.drop_table(table)
    for name in TRIGGERS:
        op.execute(f"DROP FUNCTION {name}()")
