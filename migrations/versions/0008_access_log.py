"""The access log holds reads too, in sets; it can be added to and not rewritten; seals chain its entries.

It refers to rows of other tables by number alone: evidence neither waits for them nor keeps them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ekoyka.database import SERVER_ROLE, WARD_ROLE

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

REFERENCES = ("account", "dispensary", "patient")
_TABLES = ("access_entry", "access_set", "access_seal")
_SETS_OF_ACTOR = "SELECT digest FROM access_set WHERE patients && ARRAY(SELECT id FROM patient WHERE account_id = actor_account())"
# What a seal chains of an entry: all that is known of it, in one form for ever.
TEXT = """
    SELECT jsonb_build_array(
        e.id, extract(epoch FROM e.at), e.account_id, e.role, e.action, e.field, e.patient_id,
        encode(e.patients, 'hex'), e.dispensary_id, e.object_type, e.object_id, e.reason, e.request_id, e.address
    )::text
"""


def upgrade() -> None:
    for target in REFERENCES:
        op.drop_constraint(op.f(f"fk_access_entry_{target}_id"), "access_entry", type_="foreignkey")
    for name in ("role", "field", "address"):
        op.add_column("access_entry", sa.Column(name, sa.String(), nullable=True))
    op.add_column("access_entry", sa.Column("patients", sa.LargeBinary(), nullable=True))
    op.alter_column("access_entry", "object_type", nullable=True)
    op.alter_column("access_entry", "object_id", nullable=True)
    op.create_table(
        "access_set",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("patients", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_access_set")),
    )
    op.create_index("ix_access_set_patients", "access_set", ["patients"], postgresql_using="gin")
    op.create_table(
        "access_seal",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("entries", postgresql.INT8MULTIRANGE(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_access_seal")),
    )
    op.create_index("ix_access_seal_at", "access_seal", ["at"])
    op.drop_index("ix_access_entry_patient_id", table_name="access_entry")
    op.create_index(
        "ix_access_entry_patient_id",
        "access_entry",
        ["patient_id", "at", "id"],
        postgresql_where=sa.text("patient_id IS NOT NULL"),
    )
    op.create_index(
        "ix_access_entry_patients",
        "access_entry",
        ["patients"],
        postgresql_where=sa.text("patients IS NOT NULL"),
    )
    op.create_index("ix_access_entry_account_id", "access_entry", ["account_id", "at", "id"])
    op.create_index("ix_access_entry_at", "access_entry", ["at", "id"])

    op.execute(
        f"CREATE FUNCTION access_text(e access_entry) RETURNS text LANGUAGE sql STABLE AS $$ {TEXT} $$"
    )
    op.execute(
        f"CREATE FUNCTION access_sets_of_actor() RETURNS SETOF bytea LANGUAGE sql STABLE SECURITY DEFINER "
        f"SET search_path = public, pg_temp AS $$ {_SETS_OF_ACTOR} $$"
    )
    seen = {
        "access_entry": "patient_id = ANY(ARRAY(SELECT patients_of_actor())) "
        "OR patients = ANY(ARRAY(SELECT access_sets_of_actor()))",
        "access_set": "digest = ANY(ARRAY(SELECT access_sets_of_actor()))",
        "access_seal": "false",
    }
    for table in _TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(
            f"CREATE POLICY actor ON {table} FOR SELECT TO {SERVER_ROLE} "
            f"USING ((SELECT actor_is_superadmin()) OR {seen[table]})"
        )
        op.execute(f"CREATE POLICY entry ON {table} FOR INSERT TO {SERVER_ROLE} WITH CHECK (true)")
        op.execute(f"CREATE POLICY ward ON {table} FOR SELECT TO {WARD_ROLE} USING (true)")

    # Whose paper it is, for the log.
    op.execute("DROP FUNCTION certificate_verified")
    op.execute(
        "CREATE FUNCTION certificate_verified(code text) RETURNS TABLE (id bigint, number int, year int, "
        "issued_on date, facts jsonb, annulled_at timestamptz, patient_id bigint) LANGUAGE sql STABLE "
        "SECURITY DEFINER SET search_path = public, pg_temp AS $$ "
        "SELECT c.id, c.number, c.year, c.issued_on, c.facts, c.annulled_at, s.patient_id "
        "FROM certificate c JOIN stay s ON s.id = c.stay_id WHERE c.verification_code = code $$"
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION certificate_verified")
    op.execute(
        "CREATE FUNCTION certificate_verified(code text) RETURNS SETOF certificate LANGUAGE sql STABLE "
        "SECURITY DEFINER SET search_path = public, pg_temp AS $$ "
        "SELECT * FROM certificate WHERE verification_code = code $$"
    )
    for table in _TABLES:
        for policy in ("actor", "entry", "ward"):
            op.execute(f"DROP POLICY {policy} ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    op.execute("DROP FUNCTION access_sets_of_actor")
    op.execute("DROP FUNCTION access_text")
    op.drop_table("access_seal")
    op.drop_table("access_set")
    # The former log has no place for reads.
    op.execute("DELETE FROM access_entry WHERE object_type IS NULL")
    op.drop_index("ix_access_entry_at", table_name="access_entry")
    op.drop_index("ix_access_entry_account_id", table_name="access_entry")
    op.drop_index("ix_access_entry_patients", table_name="access_entry")
    op.drop_index("ix_access_entry_patient_id", table_name="access_entry")
    op.create_index("ix_access_entry_patient_id", "access_entry", ["patient_id", "at"])
    op.alter_column("access_entry", "object_id", nullable=False)
    op.alter_column("access_entry", "object_type", nullable=False)
    for name in ("patients", "address", "field", "role"):
        op.drop_column("access_entry", name)
    # The owner, who looks whether it holds, must see what is referred to.
    op.execute("ALTER TABLE patient NO FORCE ROW LEVEL SECURITY")
    for target in REFERENCES:
        op.create_foreign_key(
            op.f(f"fk_access_entry_{target}_id"), "access_entry", target, [f"{target}_id"], ["id"]
        )
    op.execute("ALTER TABLE patient FORCE ROW LEVEL SECURITY")
