"""A second wall behind the scopes: clinical rows are there for the actor alone whom a statement names.

The rules are those of the row scopes in `ekoyka/api/permissions.py`, kept apart from them on purpose. A role
without an actor sees no clinical row; nor does the tables' owner. `ekoyka.migrate` makes the roles and says what they
may do.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ekoyka.database import ACTOR, SERVER_ROLE, WARD_ROLE

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def _part(number: int) -> str:
    return f"split_part(current_setting('{ACTOR}', true), '|', {number})"


# Each is asked once for a statement, where a policy calls it in a subquery.
ACTORS = {
    "actor_account": ("bigint", f"nullif({_part(1)}, '')::bigint"),
    "actor_is_superadmin": ("boolean", f"coalesce({_part(2)} = 'on', false)"),
    "actor_doctor_of": ("bigint[]", f"string_to_array({_part(3)}, ',')::bigint[]"),
    "actor_dispatcher_of": ("bigint[]", f"string_to_array({_part(4)}, ',')::bigint[]"),
}
# What is found without being seen, by the role that sees all: keys, and what anybody may know who holds a code.
FINDERS = {
    "patients_of_actor()": (
        "SETOF bigint",
        "SELECT id FROM patient WHERE account_id = actor_account()",
    ),
    # A policy hides rows before a search could use its index.
    "patients_found(words tsquery)": ("SETOF bigint", "SELECT id FROM patient WHERE search @@ words"),
    "certificate_verified(code text)": (
        "SETOF certificate",
        "SELECT * FROM certificate WHERE verification_code = code",
    ),
}

_SUPERADMIN = "(SELECT actor_is_superadmin())"
_DOCTOR_OF = "(SELECT actor_doctor_of())::bigint[]"
_DOCTOR = f"dispensary_id = ANY({_DOCTOR_OF})"
_DISPATCHER = "dispensary_id = ANY((SELECT actor_dispatcher_of())::bigint[])"
_OWN = "patient_id = ANY(ARRAY(SELECT patients_of_actor()))"
_EXPECTED = (
    "EXISTS (SELECT FROM reservation k WHERE k.patient_id = patient.id AND k.ended_at IS NULL"
    f" AND k.dispensary_id = ANY({_DOCTOR_OF}))"
)
_CLINICIANS = f"{_SUPERADMIN} OR {_DOCTOR}"
_STAFF = f"{_CLINICIANS} OR {_DISPATCHER}"
_OF_STAY = "EXISTS (SELECT FROM stay k WHERE k.id = stay_id)"
_OF_CERTIFICATE = "EXISTS (SELECT FROM certificate k WHERE k.id = certificate_id)"
_PATIENT = f"{_SUPERADMIN} OR known_in && {_DOCTOR_OF}"

# Table: which rows the actor sees, and which the actor's operations write.
POLICIES = {
    "patient": (
        f"{_PATIENT} OR account_id = (SELECT actor_account()) OR {_EXPECTED}",
        f"{_PATIENT} OR {_EXPECTED}",
    ),
    "stay": (f"{_CLINICIANS} OR {_OWN}", _CLINICIANS),
    # That somebody lies in a bed is a dispatcher's business; who, is not.
    "bed_assignment": (f"{_STAFF} OR {_OF_STAY}", _CLINICIANS),
    "reservation": (_STAFF, _STAFF),
    "stay_revision": (_OF_STAY, _OF_STAY),
    "certificate": (f"{_CLINICIANS} OR {_OF_STAY}", _CLINICIANS),
    "certificate_duplicate": (_OF_CERTIFICATE, _OF_CERTIFICATE),
}

KNOWN = (
    """
    CREATE FUNCTION patient_is_known() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_TABLE_NAME = 'patient' THEN
            NEW.known_in := ARRAY[NEW.dispensary_id];
            RETURN NEW;
        END IF;
        UPDATE patient SET known_in = known_in || NEW.dispensary_id
            WHERE id = NEW.patient_id AND NEW.dispensary_id <> ALL (known_in);
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER patient_is_known BEFORE INSERT ON patient
        FOR EACH ROW EXECUTE FUNCTION patient_is_known()
    """,
    """
    CREATE TRIGGER patient_is_known AFTER INSERT ON stay
        FOR EACH ROW EXECUTE FUNCTION patient_is_known()
    """,
)
ENDED_AT = "coalesce(checked_out_at, '9999-12-31 00:00:00+00'::timestamptz)"


def _index_taken(included: list[str]) -> None:
    op.drop_index("ix_bed_assignment_open_dispensary_id", table_name="bed_assignment")
    op.create_index(
        "ix_bed_assignment_open_dispensary_id",
        "bed_assignment",
        ["dispensary_id", "bed_id"],
        postgresql_where=sa.text("ended_at IS NULL"),
        postgresql_include=included,
    )


def upgrade() -> None:
    op.add_column(
        "patient",
        sa.Column(
            "known_in", postgresql.ARRAY(sa.BigInteger()), server_default=sa.text("'{}'"), nullable=False
        ),
    )
    op.execute(
        "UPDATE patient p SET known_in = ARRAY(SELECT p.dispensary_id UNION "
        "SELECT s.dispensary_id FROM stay s WHERE s.patient_id = p.id)"
    )
    for statement in KNOWN:
        op.execute(statement)
    op.drop_index("ix_stay_dispensary_id_ended_at", table_name="stay")
    op.add_column(
        "stay",
        sa.Column(
            "ended_at",
            postgresql.TIMESTAMP(timezone=True),
            sa.Computed(ENDED_AT, persisted=True),
            nullable=False,
        ),
    )
    op.create_index("ix_stay_dispensary_id_ended_at", "stay", ["dispensary_id", "ended_at", "id"])

    _index_taken(["stay_id"])

    for name, (kind, sql) in ACTORS.items():
        op.execute(f"CREATE FUNCTION {name}() RETURNS {kind} LANGUAGE sql STABLE AS $$ SELECT {sql} $$")
    for signature, (kind, sql) in FINDERS.items():
        op.execute(
            f"CREATE FUNCTION {signature} RETURNS {kind} LANGUAGE sql STABLE SECURITY DEFINER "
            f"SET search_path = public, pg_temp AS $$ {sql} $$"
        )

    for table, (seen, written) in POLICIES.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY actor ON {table} FOR SELECT TO {SERVER_ROLE} USING ({seen})")
        op.execute(f"CREATE POLICY ward ON {table} TO {WARD_ROLE} USING (true) WITH CHECK ({written})")


def downgrade() -> None:
    for table in POLICIES:
        op.execute(f"DROP POLICY ward ON {table}")
        op.execute(f"DROP POLICY actor ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    for signature in FINDERS:
        op.execute(f"DROP FUNCTION {signature.partition('(')[0]}")
    for name in ACTORS:
        op.execute(f"DROP FUNCTION {name}()")
    op.drop_index("ix_stay_dispensary_id_ended_at", table_name="stay")
    op.create_index(
        "ix_stay_dispensary_id_ended_at", "stay", ["dispensary_id", sa.text(f"({ENDED_AT})"), "id"]
    )
    op.drop_column("stay", "ended_at")
    _index_taken([])
    op.execute("DROP TRIGGER patient_is_known ON stay")
    op.execute("DROP TRIGGER patient_is_known ON patient")
    op.execute("DROP FUNCTION patient_is_known()")
    op.drop_column("patient", "known_in")
