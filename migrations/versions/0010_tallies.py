"""How many of something there are at once, by process."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "server_process",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("until", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_server_process")),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "tally",
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("process_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key", "process_id", name=op.f("pk_tally")),
        sa.ForeignKeyConstraint(
            ["process_id"], ["server_process.id"], name=op.f("fk_tally_process_id"), ondelete="CASCADE"
        ),
        prefixes=["UNLOGGED"],
    )
    op.create_index("ix_tally_process_id", "tally", ["process_id"])


def downgrade() -> None:
    op.drop_table("tally")
    op.drop_table("server_process")
