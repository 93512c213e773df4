"""Indexes: a bed's open assignment with what a board asks of it; patients by birth date and by record number."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NAME = "uq_bed_assignment_open_bed"


def _make(name: str, *include: str) -> None:
    op.create_index(
        name,
        "bed_assignment",
        ["bed_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
        postgresql_include=list(include),
    )


# The one is made before the other goes: no two open assignments of a bed at any moment.
def upgrade() -> None:
    _make("uq_bed_assignment_open_bed_new", "id", "stay_id", "dispensary_id", "started_at")
    op.drop_index(_NAME, table_name="bed_assignment")
    op.execute(f"ALTER INDEX uq_bed_assignment_open_bed_new RENAME TO {_NAME}")
    op.create_index("ix_patient_birth_date", "patient", ["birth_date"])
    op.create_index("ix_patient_record_number", "patient", ["record_number"])


def downgrade() -> None:
    op.drop_index("ix_patient_record_number", table_name="patient")
    op.drop_index("ix_patient_birth_date", table_name="patient")
    _make("uq_bed_assignment_open_bed_new")
    op.drop_index(_NAME, table_name="bed_assignment")
    op.execute(f"ALTER INDEX uq_bed_assignment_open_bed_new RENAME TO {_NAME}")
