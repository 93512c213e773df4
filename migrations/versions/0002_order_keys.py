"""What pages are ordered by is kept, and indexed, in the very form that they compare."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NATURAL = (
    "coalesce(lpad(substring({0} FROM '^[0-9]{{1,9}}'), 9, '0'), '~') || lower(translate({0}, 'Ёё', 'Ее'))"
)
KEYS = (
    ("dispensary", "name_key", "lower(translate(name, 'Ёё', 'Ее'))"),
    ("room", "number_key", NATURAL.format("number")),
    ("bed", "label_key", NATURAL.format("label")),
)


def upgrade() -> None:
    for table, name, sql in KEYS:
        op.add_column(table, sa.Column(name, sa.Text(), sa.Computed(sql, persisted=True), nullable=False))
    op.create_index("ix_dispensary_name_key", "dispensary", ["name_key", "id"])
    op.drop_index("ix_room_dispensary_id", table_name="room")
    op.create_index("ix_room_dispensary_id_number_key", "room", ["dispensary_id", "number_key", "id"])
    op.drop_index("ix_bed_room_id", table_name="bed")
    op.create_index("ix_bed_room_id_label_key", "bed", ["room_id", "label_key", "id"])
    op.drop_index("ix_bed_dispensary_id", table_name="bed")
    op.create_index(
        "ix_bed_dispensary_id",
        "bed",
        ["dispensary_id", "id", "service_state"],
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_index(
        "ix_bed_assignment_open_dispensary_id",
        "bed_assignment",
        ["dispensary_id", "bed_id"],
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    op.drop_index("ix_stay_dispensary_id_checked_out_at", table_name="stay")
    op.create_index(
        "ix_stay_dispensary_id_ended_at",
        "stay",
        [
            "dispensary_id",
            sa.text("coalesce(checked_out_at, '9999-12-31 00:00:00+00'::timestamptz)"),
            "id",
        ],
    )


def downgrade() -> None:
    op.drop_index("ix_stay_dispensary_id_ended_at", table_name="stay")
    op.create_index("ix_stay_dispensary_id_checked_out_at", "stay", ["dispensary_id", "checked_out_at", "id"])
    op.drop_index("ix_bed_dispensary_id", table_name="bed")
    op.create_index("ix_bed_dispensary_id", "bed", ["dispensary_id"])
    op.drop_index("ix_bed_assignment_open_dispensary_id", table_name="bed_assignment")
    op.drop_index("ix_bed_room_id_label_key", table_name="bed")
    op.create_index("ix_bed_room_id", "bed", ["room_id"])
    op.drop_index("ix_room_dispensary_id_number_key", table_name="room")
    op.create_index("ix_room_dispensary_id", "room", ["dispensary_id"])
    op.drop_index("ix_dispensary_name_key", table_name="dispensary")
    for table, name, _ in KEYS:
        op.drop_column(table, name)
