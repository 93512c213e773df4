"""The register of certificates: numbers without gaps, the bytes once made, and the duplicates handed out."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from ekoyka.columns import Remark, identity, instant, reference


class CertificateCounter(SQLModel, table=True):
    """The last number given out in a dispensary's year; its row lock leaves no gaps."""

    __tablename__ = "certificate_counter"
    dispensary_id: int = Field(sa_column=Column(BigInteger, ForeignKey("dispensary.id"), primary_key=True))
    year: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    last_number: int


class Certificate(SQLModel, table=True):
    """A certificate of a stay; ``facts`` is all that the paper says, so the same paper can be made again.

    ``pdf`` is empty only between the number's giving out and the rendering.
    """

    __table_args__ = (
        CheckConstraint("number > 0", "number"),
        CheckConstraint("language IN ('ru', 'en')", "language"),
        CheckConstraint("(pdf IS NULL) = (sha256 IS NULL)", "pdf"),
        CheckConstraint("(annulled_at IS NULL) = (annulment_reason IS NULL)", "annulment"),
        ForeignKeyConstraint(
            ["stay_id", "dispensary_id"],
            ["stay.id", "stay.dispensary_id"],
            name="fk_certificate_stay_id_dispensary_id",
        ),
        Index("uq_certificate_number", "dispensary_id", "year", "number", unique=True),
        Index("uq_certificate_verification_code", "verification_code", unique=True),
        Index("ix_certificate_stay_id", "stay_id"),
        Index("ix_certificate_dispensary_id", "dispensary_id", "issued_at", "id"),
    )
    id: int = identity()
    dispensary_id: int = Field(sa_type=BigInteger)
    stay_id: int = Field(sa_type=BigInteger)
    year: int
    number: int
    language: str
    issued_on: date
    issued_at: datetime = instant(now=True)
    issued_by_id: int = reference("account.id")
    with_diagnosis: bool = False
    neutral_header: bool = False
    verification_code: str
    facts: dict[str, Any] = Field(sa_type=JSONB)
    pdf: bytes | None = Field(default=None, sa_column=Column(LargeBinary, nullable=True))
    sha256: str | None = None
    annulled_at: datetime | None = instant(nullable=True)
    annulled_by_id: int | None = reference("account.id", nullable=True)
    annulment_reason: Remark | None = None
    version: int = 1


class CertificateDuplicate(SQLModel, table=True):
    """One entry «Дубликат» of the register: the same bytes were handed out again."""

    __tablename__ = "certificate_duplicate"
    __table_args__ = (Index("ix_certificate_duplicate_certificate_id", "certificate_id", "issued_at"),)
    id: int = identity()
    certificate_id: int = reference("certificate.id")
    issued_at: datetime = instant(now=True)
    issued_by_id: int = reference("account.id")
    reason: Remark | None = None
