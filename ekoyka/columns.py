"""The kinds of columns that tables are made of, and the kinds of text that people type into them."""

from typing import Annotated, Any

import phonenumbers
from pydantic import AfterValidator, StringConstraints
from sqlalchemy import BigInteger, Column, Computed, ForeignKey, Identity, Text, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlmodel import Field, SQLModel

# The names by which operations recognise a constraint's refusal; Alembic uses the same.
SQLModel.metadata.naming_convention = {
    "pk": "pk_%(table_name)s",
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
}

# One line of text, trimmed, without control characters.
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[Line, StringConstraints(max_length=100)]
Title = Annotated[Line, StringConstraints(max_length=200)]
Remark = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, min_length=1, max_length=1000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$"
    ),
]
Email = Annotated[
    str,
    StringConstraints(
        strip_whitespace=True, to_lower=True, max_length=254, pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+$"
    ),
]


def phone_number(value: str) -> str:
    """The number in E.164 form. Raises ValueError."""
    try:
        number = phonenumbers.parse(value, None)
    except phonenumbers.NumberParseException as error:
        raise ValueError("not a phone number in E.164 form, such as +74950000000") from error
    if not phonenumbers.is_possible_number(number):
        raise ValueError("not a possible phone number")
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


Phone = Annotated[str, StringConstraints(strip_whitespace=True, max_length=30), AfterValidator(phone_number)]


def identity() -> Any:
    """A bigint primary key that PostgreSQL gives out."""
    return Field(default=None, sa_column=Column(BigInteger, Identity(), primary_key=True))


def reference(target: str, *, nullable: bool = False, index: bool = False, **options: Any) -> Any:
    """A bigint foreign key to ``table.column``."""
    return Field(
        default=None,
        sa_column=Column(BigInteger, ForeignKey(target, **options), nullable=nullable, index=index),
    )


def instant(*, nullable: bool = False, now: bool = False) -> Any:
    """A point in time, kept in UTC."""
    return Field(
        default=None,
        sa_column=Column(
            TIMESTAMP(timezone=True),
            nullable=nullable,
            server_default=text("clock_timestamp()") if now else None,
        ),
    )


def computed(sql: str) -> Any:
    """A text that PostgreSQL keeps, made from the row's other columns: what rows are ordered by."""
    return Field(default=None, sa_column=Column(Text, Computed(sql, persisted=True), nullable=False))


def folded(sql: str) -> str:
    """SQL of a text in the form that orders and searches compare: lower case, ё as е."""
    return f"lower(translate({sql}, 'Ёё', 'Ее'))"


def natural(sql: str) -> str:
    """SQL of a key that sorts "2" before "10" and both before "A"."""
    return f"coalesce(lpad(substring({sql} FROM '^[0-9]{{1,9}}'), 9, '0'), '~') || {folded(sql)}"


def contains(sql: str, part: str) -> str:
    """SQL of the condition that a text contains another, folded, taking the other's signs literally."""
    return f"position({folded(part)} IN {folded(sql)}) > 0"
