"""Sessions that a person recognises, and an administrator's leave to set a new password."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def _instant(name: str, *, now: bool = False, nullable: bool = False) -> sa.Column[object]:
    default = sa.text("clock_timestamp()") if now else None
    return sa.Column(name, postgresql.TIMESTAMP(timezone=True), server_default=default, nullable=nullable)


def upgrade() -> None:
    op.add_column("session", _instant("last_used_at", now=True))
    op.execute("UPDATE session SET last_used_at = created_at")
    op.add_column("session", sa.Column("address", sa.String(), nullable=True))
    op.add_column("session", sa.Column("client", sa.String(), nullable=True))
    op.create_table(
        "password_reset",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("issued_by_id", sa.BigInteger(), nullable=False),
        _instant("issued_at", now=True),
        _instant("expires_at"),
        _instant("used_at", nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_password_reset_account_id")),
        sa.ForeignKeyConstraint(
            ["issued_by_id"], ["account.id"], name=op.f("fk_password_reset_issued_by_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_password_reset")),
    )
    op.create_index("ix_password_reset_account_id", "password_reset", ["account_id"], unique=False)
    op.create_index("uq_password_reset_hash", "password_reset", ["hash"], unique=True)


def downgrade() -> None:
    op.drop_table("password_reset")
    op.drop_column("session", "client")
    op.drop_column("session", "address")
    op.drop_column("session", "last_used_at")
