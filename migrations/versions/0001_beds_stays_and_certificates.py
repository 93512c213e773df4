"""Beds, stays and certificates."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CONSTRAINTS = (
    """
    CREATE FUNCTION stay_has_its_assignment() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        key bigint;
    BEGIN
        IF TG_TABLE_NAME = 'stay' THEN
            key := NEW.id;
        ELSE
            key := coalesce(NEW.stay_id, OLD.stay_id);
        END IF;
        PERFORM FROM stay s WHERE s.id = key AND (s.checked_out_at IS NULL)
            IS DISTINCT FROM EXISTS (SELECT FROM bed_assignment a WHERE a.stay_id = s.id AND a.ended_at IS NULL);
        IF FOUND THEN
            RAISE EXCEPTION 'an open stay has exactly one open assignment, an ended one none'
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ck_stay_assignment';
        END IF;
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE CONSTRAINT TRIGGER ck_stay_assignment AFTER INSERT OR UPDATE OF checked_out_at ON stay
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stay_has_its_assignment()
    """,
    """
    CREATE CONSTRAINT TRIGGER ck_stay_assignment AFTER INSERT OR UPDATE OR DELETE ON bed_assignment
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION stay_has_its_assignment()
    """,
)


def upgrade() -> None:
    op.create_table(
        "account",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("position", sa.String(), nullable=True),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("auth_version", sa.Integer(), nullable=False),
        sa.Column("blocked_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("language IN ('ru', 'en')", name=op.f("ck_account_language")),
        sa.CheckConstraint("email = lower(email) AND length(email) <= 254", name=op.f("ck_account_email")),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name=op.f("ck_account_name")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
    )
    op.create_index("uq_account_email", "account", ["email"], unique=True)
    op.create_table(
        "dispensary",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("neutral_name", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("phone", sa.String(), nullable=True),
        sa.Column("latitude", sa.Float(), nullable=True),
        sa.Column("longitude", sa.Float(), nullable=True),
        sa.Column("time_zone", sa.String(), nullable=False),
        sa.Column("staffed_beds", sa.Integer(), nullable=True),
        sa.Column("cleaning_after_check_out", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("source_key", sa.String(), nullable=True),
        sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("length(address) BETWEEN 1 AND 200", name=op.f("ck_dispensary_address")),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 200", name=op.f("ck_dispensary_name")),
        sa.CheckConstraint("length(neutral_name) BETWEEN 1 AND 200", name=op.f("ck_dispensary_neutral_name")),
        sa.CheckConstraint("staffed_beds >= 0", name=op.f("ck_dispensary_staffed_beds")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dispensary")),
    )
    op.create_index("uq_dispensary_source_key", "dispensary", ["source_key"], unique=True)
    op.create_table(
        "feed_event",
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "occurred_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("topic", "cursor", name=op.f("pk_feed_event")),
    )
    op.create_index("ix_feed_event_occurred_at", "feed_event", ["occurred_at"], unique=False)
    op.create_table(
        "feed_topic",
        sa.Column("topic", sa.String(), nullable=False),
        sa.Column("last_cursor", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", name=op.f("pk_feed_topic")),
    )
    op.create_table(
        "certificate_counter",
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("year", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_number", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_certificate_counter_dispensary_id")
        ),
        sa.PrimaryKeyConstraint("dispensary_id", "year", name=op.f("pk_certificate_counter")),
    )
    op.create_table(
        "idempotency_key",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("mutation", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("input_hash", sa.LargeBinary(), nullable=False),
        sa.Column("result_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("length(key) BETWEEN 1 AND 200", name=op.f("ck_idempotency_key_key")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_idempotency_key_account_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("account_id", "mutation", "key", name=op.f("pk_idempotency_key")),
    )
    op.create_table(
        "patient",
        sa.Column("record_number", sa.String(), nullable=False),
        sa.Column("family_name", sa.String(), nullable=True),
        sa.Column("given_name", sa.String(), nullable=True),
        sa.Column("patronymic", sa.String(), nullable=True),
        sa.Column("code_name", sa.String(), nullable=True),
        sa.Column("birth_date", sa.Date(), nullable=True),
        sa.Column("phone", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("identity_document", sa.String(), nullable=True),
        sa.Column("needs_isolation", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=True),
        sa.Column("sex", sa.String(), nullable=False),
        sa.Column(
            "name_key",
            sa.Text(),
            sa.Computed(
                "lower(translate(coalesce(code_name, '') || coalesce(family_name, '') || ' ' || coalesce(given_name, '') || ' ' || coalesce(patronymic, ''), 'Ёё', 'Ее'))",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column(
            "search",
            postgresql.TSVECTOR(),
            sa.Computed(
                "to_tsvector('simple', lower(translate(coalesce(code_name, '') || coalesce(family_name, '') || ' ' || coalesce(given_name, '') || ' ' || coalesce(patronymic, ''), 'Ёё', 'Ее')) || ' ' || lower(record_number))",
                persisted=True,
            ),
            nullable=False,
        ),
        sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("sex IN ('MALE', 'FEMALE')", name=op.f("ck_patient_sex")),
        sa.CheckConstraint(
            "CASE WHEN code_name IS NULL THEN family_name IS NOT NULL AND given_name IS NOT NULL ELSE family_name IS NULL AND given_name IS NULL AND patronymic IS NULL END",
            name=op.f("ck_patient_named"),
        ),
        sa.CheckConstraint("length(code_name) BETWEEN 1 AND 100", name=op.f("ck_patient_code_name")),
        sa.CheckConstraint("length(family_name) BETWEEN 1 AND 100", name=op.f("ck_patient_family_name")),
        sa.CheckConstraint("length(given_name) BETWEEN 1 AND 100", name=op.f("ck_patient_given_name")),
        sa.CheckConstraint("length(patronymic) BETWEEN 1 AND 100", name=op.f("ck_patient_patronymic")),
        sa.CheckConstraint("length(record_number) BETWEEN 1 AND 40", name=op.f("ck_patient_record_number")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_patient_account_id")),
        sa.ForeignKeyConstraint(["dispensary_id"], ["dispensary.id"], name=op.f("fk_patient_dispensary_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_patient")),
    )
    op.create_index(
        "ix_patient_dispensary_id_name_key", "patient", ["dispensary_id", "name_key", "id"], unique=False
    )
    op.create_index("ix_patient_name_key", "patient", ["name_key", "id"], unique=False)
    op.create_index("ix_patient_search", "patient", ["search"], unique=False, postgresql_using="gin")
    op.create_index(
        "uq_patient_account_id",
        "patient",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("account_id IS NOT NULL"),
    )
    op.create_index("uq_patient_record_number", "patient", ["dispensary_id", "record_number"], unique=True)
    op.create_table(
        "role_grant",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=True),
        sa.Column("granted_by_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "granted_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint(
            "(role = 'SUPERADMIN') = (dispensary_id IS NULL)", name=op.f("ck_role_grant_dispensary")
        ),
        sa.CheckConstraint("role IN ('SUPERADMIN', 'DOCTOR', 'DISPATCHER')", name=op.f("ck_role_grant_role")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_role_grant_account_id")),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_role_grant_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["granted_by_id"], ["account.id"], name=op.f("fk_role_grant_granted_by_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_grant")),
    )
    op.create_index("ix_role_grant_dispensary_id", "role_grant", ["dispensary_id", "role"], unique=False)
    op.create_index(
        "uq_role_grant",
        "role_grant",
        ["account_id", "role", "dispensary_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "room",
        sa.Column("number", sa.String(), nullable=False),
        sa.Column("floor", sa.Integer(), nullable=True),
        sa.Column("isolation", sa.Boolean(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("sex", sa.String(), nullable=False),
        sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("sex IN ('MALE', 'FEMALE', 'ANY')", name=op.f("ck_room_sex")),
        sa.CheckConstraint("length(number) BETWEEN 1 AND 40", name=op.f("ck_room_number")),
        sa.ForeignKeyConstraint(["dispensary_id"], ["dispensary.id"], name=op.f("fk_room_dispensary_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_room")),
        sa.UniqueConstraint("id", "dispensary_id", name="uq_room_id_dispensary_id"),
    )
    op.create_index("ix_room_dispensary_id", "room", ["dispensary_id"], unique=False)
    op.create_index(
        "uq_room_number",
        "room",
        ["dispensary_id", "number"],
        unique=True,
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_table(
        "session",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_session_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_session")),
    )
    op.create_index("ix_session_account_id", "session", ["account_id"], unique=False)
    op.create_table(
        "access_entry",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("account_id", sa.BigInteger(), nullable=True),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=True),
        sa.Column("object_type", sa.String(), nullable=False),
        sa.Column("object_id", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("request_id", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_access_entry_account_id")),
        sa.ForeignKeyConstraint(
            ["dispensary_id"], ["dispensary.id"], name=op.f("fk_access_entry_dispensary_id")
        ),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_access_entry_patient_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_entry")),
    )
    op.create_index("ix_access_entry_patient_id", "access_entry", ["patient_id", "at"], unique=False)
    op.create_table(
        "bed",
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("profile", sa.String(), nullable=False),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("room_id", sa.BigInteger(), nullable=False),
        sa.Column("service_state", sa.String(), nullable=False),
        sa.Column("archived_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "service_state IN ('IN_SERVICE', 'CLEANING', 'CONTAMINATED', 'ISOLATED', 'CLOSED')",
            name=op.f("ck_bed_service_state"),
        ),
        sa.CheckConstraint("length(label) BETWEEN 1 AND 40", name=op.f("ck_bed_label")),
        sa.ForeignKeyConstraint(["dispensary_id"], ["dispensary.id"], name=op.f("fk_bed_dispensary_id")),
        sa.ForeignKeyConstraint(
            ["room_id", "dispensary_id"],
            ["room.id", "room.dispensary_id"],
            name="fk_bed_room_id_dispensary_id",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bed")),
        sa.UniqueConstraint("id", "dispensary_id", name="uq_bed_id_dispensary_id"),
    )
    op.create_index("ix_bed_dispensary_id", "bed", ["dispensary_id"], unique=False)
    op.create_index("ix_bed_room_id", "bed", ["room_id"], unique=False)
    op.create_index(
        "uq_bed_label",
        "bed",
        ["room_id", "label"],
        unique=True,
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_table(
        "refresh_token",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("used_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["session_id"], ["session.id"], name=op.f("fk_refresh_token_session_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refresh_token")),
    )
    op.create_index(op.f("ix_refresh_token_session_id"), "refresh_token", ["session_id"], unique=False)
    op.create_index("uq_refresh_token_hash", "refresh_token", ["hash"], unique=True)
    op.create_table(
        "stay",
        sa.Column("planned_check_out_on", sa.Date(), nullable=True),
        sa.Column("diagnosis_code", sa.String(), nullable=True),
        sa.Column("board_alias", sa.String(), nullable=True),
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("checked_in_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("checked_out_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("attending_doctor_id", sa.BigInteger(), nullable=True),
        sa.Column("source_key", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("version", sa.Integer(), nullable=False),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(patient_id, patient_id, '[]')"), "&&"),
            (sa.text("tstzrange(checked_in_at, checked_out_at)"), "&&"),
            using="gist",
            name="ex_stay_patient_overlap",
        ),
        sa.CheckConstraint(
            "outcome IN ('DISCHARGED', 'LEFT_AGAINST_ADVICE', 'TRANSFERRED', 'DIED')",
            name=op.f("ck_stay_outcome"),
        ),
        sa.CheckConstraint(
            "(checked_out_at IS NULL) = (outcome IS NULL)", name=op.f("ck_stay_outcome_at_end")
        ),
        sa.CheckConstraint("checked_out_at >= checked_in_at", name=op.f("ck_stay_interval")),
        sa.ForeignKeyConstraint(
            ["attending_doctor_id"], ["account.id"], name=op.f("fk_stay_attending_doctor_id")
        ),
        sa.ForeignKeyConstraint(["dispensary_id"], ["dispensary.id"], name=op.f("fk_stay_dispensary_id")),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_stay_patient_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stay")),
        sa.UniqueConstraint("id", "dispensary_id", name="uq_stay_id_dispensary_id"),
    )
    op.create_index("ix_stay_checked_in_at", "stay", ["checked_in_at", "id"], unique=False)
    op.create_index(
        "ix_stay_dispensary_id_checked_in_at", "stay", ["dispensary_id", "checked_in_at", "id"], unique=False
    )
    op.create_index(
        "ix_stay_dispensary_id_checked_out_at",
        "stay",
        ["dispensary_id", "checked_out_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_stay_open_dispensary_id",
        "stay",
        ["dispensary_id", "checked_in_at"],
        unique=False,
        postgresql_where=sa.text("checked_out_at IS NULL"),
    )
    op.create_index("ix_stay_patient_id", "stay", ["patient_id", "checked_in_at"], unique=False)
    op.create_index(
        "uq_stay_open_patient",
        "stay",
        ["patient_id"],
        unique=True,
        postgresql_where=sa.text("checked_out_at IS NULL"),
    )
    op.create_index("uq_stay_source_key", "stay", ["dispensary_id", "source_key"], unique=True)
    op.create_table(
        "bed_assignment",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("stay_id", sa.BigInteger(), nullable=False),
        sa.Column("bed_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        postgresql.ExcludeConstraint(
            (sa.text("int8range(bed_id, bed_id, '[]')"), "&&"),
            (sa.text("tstzrange(started_at, ended_at)"), "&&"),
            using="gist",
            name="ex_bed_assignment_bed_overlap",
        ),
        sa.CheckConstraint("ended_at >= started_at", name=op.f("ck_bed_assignment_interval")),
        sa.ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_bed_assignment_bed_id_dispensary_id",
        ),
        sa.ForeignKeyConstraint(
            ["stay_id", "dispensary_id"],
            ["stay.id", "stay.dispensary_id"],
            name="fk_bed_assignment_stay_id_dispensary_id",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bed_assignment")),
    )
    op.create_index("ix_bed_assignment_bed_id", "bed_assignment", ["bed_id", "started_at"], unique=False)
    op.create_index("ix_bed_assignment_stay_id", "bed_assignment", ["stay_id", "started_at"], unique=False)
    op.create_index(
        "uq_bed_assignment_open_bed",
        "bed_assignment",
        ["bed_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index(
        "uq_bed_assignment_open_stay",
        "bed_assignment",
        ["stay_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "bed_closure",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("bed_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "closed_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("reopened_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("closed_by_id", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("reopened_at >= closed_at", name=op.f("ck_bed_closure_interval")),
        sa.ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_bed_closure_bed_id_dispensary_id",
        ),
        sa.ForeignKeyConstraint(["closed_by_id"], ["account.id"], name=op.f("fk_bed_closure_closed_by_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bed_closure")),
    )
    op.create_index("ix_bed_closure_bed_id", "bed_closure", ["bed_id", "closed_at"], unique=False)
    op.create_index(
        "uq_bed_closure_open",
        "bed_closure",
        ["bed_id"],
        unique=True,
        postgresql_where=sa.text("reopened_at IS NULL"),
    )
    op.create_table(
        "certificate",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("stay_id", sa.BigInteger(), nullable=False),
        sa.Column("year", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("language", sa.String(), nullable=False),
        sa.Column("issued_on", sa.Date(), nullable=False),
        sa.Column(
            "issued_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("issued_by_id", sa.BigInteger(), nullable=False),
        sa.Column("with_diagnosis", sa.Boolean(), nullable=False),
        sa.Column("neutral_header", sa.Boolean(), nullable=False),
        sa.Column("verification_code", sa.String(), nullable=False),
        sa.Column("facts", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("pdf", sa.LargeBinary(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("annulled_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("annulled_by_id", sa.BigInteger(), nullable=True),
        sa.Column("annulment_reason", sa.String(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.CheckConstraint("language IN ('ru', 'en')", name=op.f("ck_certificate_language")),
        sa.CheckConstraint(
            "(annulled_at IS NULL) = (annulment_reason IS NULL)", name=op.f("ck_certificate_annulment")
        ),
        sa.CheckConstraint("(pdf IS NULL) = (sha256 IS NULL)", name=op.f("ck_certificate_pdf")),
        sa.CheckConstraint("number > 0", name=op.f("ck_certificate_number")),
        sa.ForeignKeyConstraint(
            ["annulled_by_id"], ["account.id"], name=op.f("fk_certificate_annulled_by_id")
        ),
        sa.ForeignKeyConstraint(["issued_by_id"], ["account.id"], name=op.f("fk_certificate_issued_by_id")),
        sa.ForeignKeyConstraint(
            ["stay_id", "dispensary_id"],
            ["stay.id", "stay.dispensary_id"],
            name="fk_certificate_stay_id_dispensary_id",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificate")),
    )
    op.create_index(
        "ix_certificate_dispensary_id", "certificate", ["dispensary_id", "issued_at", "id"], unique=False
    )
    op.create_index("ix_certificate_stay_id", "certificate", ["stay_id"], unique=False)
    op.create_index("uq_certificate_number", "certificate", ["dispensary_id", "year", "number"], unique=True)
    op.create_index("uq_certificate_verification_code", "certificate", ["verification_code"], unique=True)
    op.create_table(
        "reservation",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("bed_id", sa.BigInteger(), nullable=False),
        sa.Column("dispensary_id", sa.BigInteger(), nullable=False),
        sa.Column("patient_id", sa.BigInteger(), nullable=True),
        sa.Column("reserved_by_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "reserved_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('FULFILLED', 'RELEASED', 'LAPSED')", name=op.f("ck_reservation_outcome")
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (outcome IS NULL)", name=op.f("ck_reservation_outcome_at_end")
        ),
        sa.CheckConstraint("until > reserved_at", name=op.f("ck_reservation_until")),
        sa.ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_reservation_bed_id_dispensary_id",
        ),
        sa.ForeignKeyConstraint(["patient_id"], ["patient.id"], name=op.f("fk_reservation_patient_id")),
        sa.ForeignKeyConstraint(
            ["reserved_by_id"], ["account.id"], name=op.f("fk_reservation_reserved_by_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reservation")),
    )
    op.create_index("ix_reservation_bed_id", "reservation", ["bed_id", "reserved_at"], unique=False)
    op.create_index(
        "ix_reservation_dispensary_id", "reservation", ["dispensary_id", "reserved_at"], unique=False
    )
    op.create_index(
        "ix_reservation_open_until",
        "reservation",
        ["until"],
        unique=False,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_index("ix_reservation_patient_id", "reservation", ["patient_id"], unique=False)
    op.create_index(
        "uq_reservation_open_bed",
        "reservation",
        ["bed_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.create_table(
        "stay_revision",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("stay_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "revised_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("revised_by_id", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("former", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["revised_by_id"], ["account.id"], name=op.f("fk_stay_revision_revised_by_id")
        ),
        sa.ForeignKeyConstraint(["stay_id"], ["stay.id"], name=op.f("fk_stay_revision_stay_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stay_revision")),
    )
    op.create_index("ix_stay_revision_stay_id", "stay_revision", ["stay_id", "revised_at"], unique=False)
    op.create_table(
        "certificate_duplicate",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("certificate_id", sa.BigInteger(), nullable=False),
        sa.Column(
            "issued_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("issued_by_id", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["certificate_id"], ["certificate.id"], name=op.f("fk_certificate_duplicate_certificate_id")
        ),
        sa.ForeignKeyConstraint(
            ["issued_by_id"], ["account.id"], name=op.f("fk_certificate_duplicate_issued_by_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_certificate_duplicate")),
    )
    op.create_index(
        "ix_certificate_duplicate_certificate_id",
        "certificate_duplicate",
        ["certificate_id", "issued_at"],
        unique=False,
    )

    for statement in CONSTRAINTS:
        op.execute(statement)


def downgrade() -> None:
    op.drop_index("ix_certificate_duplicate_certificate_id", table_name="certificate_duplicate")
    op.drop_table("certificate_duplicate")
    op.drop_index("ix_stay_revision_stay_id", table_name="stay_revision")
    op.drop_table("stay_revision")
    op.drop_index(
        "uq_reservation_open_bed", table_name="reservation", postgresql_where=sa.text("ended_at IS NULL")
    )
    op.drop_index("ix_reservation_patient_id", table_name="reservation")
    op.drop_index(
        "ix_reservation_open_until", table_name="reservation", postgresql_where=sa.text("ended_at IS NULL")
    )
    op.drop_index("ix_reservation_dispensary_id", table_name="reservation")
    op.drop_index("ix_reservation_bed_id", table_name="reservation")
    op.drop_table("reservation")
    op.drop_index("uq_certificate_verification_code", table_name="certificate")
    op.drop_index("uq_certificate_number", table_name="certificate")
    op.drop_index("ix_certificate_stay_id", table_name="certificate")
    op.drop_index("ix_certificate_dispensary_id", table_name="certificate")
    op.drop_table("certificate")
    op.drop_index(
        "uq_bed_closure_open", table_name="bed_closure", postgresql_where=sa.text("reopened_at IS NULL")
    )
    op.drop_index("ix_bed_closure_bed_id", table_name="bed_closure")
    op.drop_table("bed_closure")
    op.drop_index(
        "uq_bed_assignment_open_stay",
        table_name="bed_assignment",
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.drop_index(
        "uq_bed_assignment_open_bed",
        table_name="bed_assignment",
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.drop_index("ix_bed_assignment_stay_id", table_name="bed_assignment")
    op.drop_index("ix_bed_assignment_bed_id", table_name="bed_assignment")
    op.drop_table("bed_assignment")
    op.drop_index("uq_stay_source_key", table_name="stay")
    op.drop_index(
        "uq_stay_open_patient", table_name="stay", postgresql_where=sa.text("checked_out_at IS NULL")
    )
    op.drop_index("ix_stay_patient_id", table_name="stay")
    op.drop_index(
        "ix_stay_open_dispensary_id", table_name="stay", postgresql_where=sa.text("checked_out_at IS NULL")
    )
    op.drop_index("ix_stay_dispensary_id_checked_out_at", table_name="stay")
    op.drop_index("ix_stay_dispensary_id_checked_in_at", table_name="stay")
    op.drop_index("ix_stay_checked_in_at", table_name="stay")
    op.drop_table("stay")
    op.drop_index("uq_refresh_token_hash", table_name="refresh_token")
    op.drop_index(op.f("ix_refresh_token_session_id"), table_name="refresh_token")
    op.drop_table("refresh_token")
    op.drop_index("uq_bed_label", table_name="bed", postgresql_where=sa.text("archived_at IS NULL"))
    op.drop_index("ix_bed_room_id", table_name="bed")
    op.drop_index("ix_bed_dispensary_id", table_name="bed")
    op.drop_table("bed")
    op.drop_index("ix_access_entry_patient_id", table_name="access_entry")
    op.drop_table("access_entry")
    op.drop_index("ix_session_account_id", table_name="session")
    op.drop_table("session")
    op.drop_index("uq_room_number", table_name="room", postgresql_where=sa.text("archived_at IS NULL"))
    op.drop_index("ix_room_dispensary_id", table_name="room")
    op.drop_table("room")
    op.drop_index("uq_role_grant", table_name="role_grant", postgresql_nulls_not_distinct=True)
    op.drop_index("ix_role_grant_dispensary_id", table_name="role_grant")
    op.drop_table("role_grant")
    op.drop_index("uq_patient_record_number", table_name="patient")
    op.drop_index(
        "uq_patient_account_id", table_name="patient", postgresql_where=sa.text("account_id IS NOT NULL")
    )
    op.drop_index("ix_patient_search", table_name="patient", postgresql_using="gin")
    op.drop_index("ix_patient_name_key", table_name="patient")
    op.drop_index("ix_patient_dispensary_id_name_key", table_name="patient")
    op.drop_table("patient")
    op.drop_table("idempotency_key")
    op.drop_table("certificate_counter")
    op.drop_table("feed_topic")
    op.drop_index("ix_feed_event_occurred_at", table_name="feed_event")
    op.drop_table("feed_event")
    op.drop_index("uq_dispensary_source_key", table_name="dispensary")
    op.drop_table("dispensary")
    op.drop_index("uq_account_email", table_name="account")
    op.drop_table("account")
    op.execute("DROP FUNCTION stay_has_its_assignment()")
