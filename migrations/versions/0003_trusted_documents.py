"""The operations of client builds, registered beforehand."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trusted_document",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("client", sa.String(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column(
            "registered_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("length(client) BETWEEN 1 AND 100", name=op.f("ck_trusted_document_client")),
        sa.PrimaryKeyConstraint("id", "client", name=op.f("pk_trusted_document")),
    )
    op.create_index("ix_trusted_document_client", "trusted_document", ["client"])


def downgrade() -> None:
    op.drop_table("trusted_document")
