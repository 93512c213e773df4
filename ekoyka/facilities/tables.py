"""Dispensaries, rooms, beds and the closures of beds."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from zoneinfo import available_timezones

from pydantic import AfterValidator
from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Index, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from ekoyka.columns import (
    Line,
    Name,
    Phone,
    Remark,
    Title,
    computed,
    folded,
    identity,
    instant,
    natural,
    reference,
)

_TIME_ZONES = frozenset(available_timezones())


class RoomSex(StrEnum):
    """Whom a room takes."""

    MALE = "MALE"
    FEMALE = "FEMALE"
    ANY = "ANY"


class ServiceState(StrEnum):
    """Whether a bed can be used, whoever lies in it: HL7 table 0116's H, K, I and C, or in service."""

    IN_SERVICE = "IN_SERVICE"
    CLEANING = "CLEANING"
    CONTAMINATED = "CONTAMINATED"
    ISOLATED = "ISOLATED"
    CLOSED = "CLOSED"


def _known_time_zone(value: str) -> str:
    if value not in _TIME_ZONES:
        raise ValueError("unknown IANA time zone")
    return value


TimeZoneName = Annotated[str, AfterValidator(_known_time_zone)]


class DispensaryDetails(SQLModel):
    """What is said about a dispensary."""

    name: Title
    neutral_name: Title
    address: Title
    phone: Phone | None = None
    latitude: float | None = Field(default=None, ge=-90, le=90)
    longitude: float | None = Field(default=None, ge=-180, le=180)
    time_zone: TimeZoneName
    staffed_beds: int | None = Field(default=None, ge=0, le=100_000)
    cleaning_after_check_out: bool = False


class Dispensary(DispensaryDetails, table=True):
    """A narcology dispensary (нарко-диспансер)."""

    __table_args__ = (
        CheckConstraint("length(name) BETWEEN 1 AND 200", "name"),
        CheckConstraint("length(neutral_name) BETWEEN 1 AND 200", "neutral_name"),
        CheckConstraint("length(address) BETWEEN 1 AND 200", "address"),
        CheckConstraint("staffed_beds >= 0", "staffed_beds"),
        Index("uq_dispensary_source_key", "source_key", unique=True),
        Index("ix_dispensary_name_key", "name_key", "id"),
    )
    id: int = identity()
    name_key: str = computed(folded("name"))
    # The key of the register it was imported from; repeating the import finds it again.
    source_key: str | None = None
    archived_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant(now=True)
    version: int = 1


class RoomDetails(SQLModel):
    """What is said about a room."""

    number: Annotated[Line, Field(max_length=40)]
    floor: int | None = Field(default=None, ge=-10, le=200)
    sex: RoomSex = RoomSex.ANY
    isolation: bool = False


class Room(RoomDetails, table=True):
    """A room (палата) of a dispensary."""

    __table_args__ = (
        CheckConstraint("length(number) BETWEEN 1 AND 40", "number"),
        CheckConstraint("sex IN ('MALE', 'FEMALE', 'ANY')", "sex"),
        UniqueConstraint("id", "dispensary_id", name="uq_room_id_dispensary_id"),
        Index(
            "uq_room_number",
            "dispensary_id",
            "number",
            unique=True,
            postgresql_where=text("archived_at IS NULL"),
        ),
        Index("ix_room_dispensary_id_number_key", "dispensary_id", "number_key", "id"),
    )
    id: int = identity()
    number_key: str = computed(natural("number"))
    dispensary_id: int = reference("dispensary.id")
    sex: str = RoomSex.ANY  # type: ignore[assignment]  # stored as text, refused by CHECK
    archived_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant(now=True)
    version: int = 1


class BedDetails(SQLModel):
    """What is said about a bed."""

    label: Annotated[Line, Field(max_length=40)]
    profile: Name = "наркологическая"


class Bed(BedDetails, table=True):
    """A bed (койка). Whether somebody lies in it is never stored here: it follows from the assignments."""

    __table_args__ = (
        CheckConstraint("length(label) BETWEEN 1 AND 40", "label"),
        CheckConstraint(
            "service_state IN ('IN_SERVICE', 'CLEANING', 'CONTAMINATED', 'ISOLATED', 'CLOSED')",
            "service_state",
        ),
        UniqueConstraint("id", "dispensary_id", name="uq_bed_id_dispensary_id"),
        ForeignKeyConstraint(
            ["room_id", "dispensary_id"],
            ["room.id", "room.dispensary_id"],
            name="fk_bed_room_id_dispensary_id",
        ),
        Index("uq_bed_label", "room_id", "label", unique=True, postgresql_where=text("archived_at IS NULL")),
        # Holds all that the counts need.
        Index(
            "ix_bed_dispensary_id",
            "dispensary_id",
            "id",
            "service_state",
            postgresql_where=text("archived_at IS NULL"),
        ),
        Index("ix_bed_room_id_label_key", "room_id", "label_key", "id"),
    )
    id: int = identity()
    label_key: str = computed(natural("label"))
    dispensary_id: int = reference("dispensary.id")
    room_id: int = Field(sa_type=BigInteger)
    service_state: str = ServiceState.IN_SERVICE
    archived_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant(now=True)
    version: int = 1


class BedClosure(SQLModel, table=True):
    """A dated interval in which a bed was closed, and why: the ministry counts its days."""

    __tablename__ = "bed_closure"
    __table_args__ = (
        CheckConstraint("reopened_at >= closed_at", "interval"),
        Index("uq_bed_closure_open", "bed_id", unique=True, postgresql_where=text("reopened_at IS NULL")),
        Index("ix_bed_closure_bed_id", "bed_id", "closed_at"),
        ForeignKeyConstraint(
            ["bed_id", "dispensary_id"],
            ["bed.id", "bed.dispensary_id"],
            name="fk_bed_closure_bed_id_dispensary_id",
        ),
    )
    id: int = identity()
    bed_id: int = Field(sa_type=BigInteger)
    dispensary_id: int = Field(sa_type=BigInteger)
    closed_at: datetime = instant(now=True)
    reopened_at: datetime | None = instant(nullable=True)
    reason: Remark
    closed_by_id: int | None = reference("account.id", nullable=True)
