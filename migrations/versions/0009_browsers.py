"""Browsers' sessions have a CSRF token; accounts are linked to those of an OpenID Connect provider."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("session", sa.Column("csrf_hash", sa.LargeBinary(), nullable=True))
    op.create_table(
        "external_identity",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("issuer", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column(
            "linked_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("length(subject) BETWEEN 1 AND 255", name=op.f("ck_external_identity_subject")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_external_identity_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_external_identity")),
    )
    op.create_index("uq_external_identity_subject", "external_identity", ["issuer", "subject"], unique=True)
    op.create_index(
        "uq_external_identity_account", "external_identity", ["account_id", "issuer"], unique=True
    )


def downgrade() -> None:
    op.drop_table("external_identity")
    op.drop_column("session", "csrf_hash")
