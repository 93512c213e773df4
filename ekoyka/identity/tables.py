"""Accounts, their roles and sessions, and the access log."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import StringConstraints
from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, text
from sqlalchemy.dialects.postgresql import ARRAY, INT8MULTIRANGE
from sqlmodel import Field, SQLModel

from ekoyka.columns import Title, identity, instant, reference


class Role(StrEnum):
    """What an account may do; every account is a USER."""

    SUPERADMIN = "SUPERADMIN"
    DOCTOR = "DOCTOR"
    DISPATCHER = "DISPATCHER"
    USER = "USER"


class AccountDetails(SQLModel):
    """What a person may change about their own account."""

    name: Title
    position: Title | None = None
    language: Annotated[str, StringConstraints(pattern="^(ru|en)$")] = "ru"


class Account(AccountDetails, table=True):
    """Somebody who can sign in.

    ``auth_version`` grows with every change of roles, password or blocking: tokens carry the version they
    were issued for, and every statement compares it, so that older tokens end at once.
    """

    __table_args__ = (
        CheckConstraint("email = lower(email) AND length(email) <= 254", "email"),
        CheckConstraint("length(name) BETWEEN 1 AND 200", "name"),
        CheckConstraint("language IN ('ru', 'en')", "language"),
        Index("uq_account_email", "email", unique=True),
    )
    id: int = identity()
    email: str
    password_hash: str
    auth_version: int = 1
    blocked_at: datetime | None = instant(nullable=True)
    created_at: datetime = instant(now=True)
    version: int = 1


class RoleGrant(SQLModel, table=True):
    """A role held by an account: the superadministrator's in the whole network, others in a dispensary."""

    __tablename__ = "role_grant"
    __table_args__ = (
        CheckConstraint("role IN ('SUPERADMIN', 'DOCTOR', 'DISPATCHER')", "role"),
        CheckConstraint("(role = 'SUPERADMIN') = (dispensary_id IS NULL)", "dispensary"),
        Index(
            "uq_role_grant",
            "account_id",
            "role",
            "dispensary_id",
            unique=True,
            postgresql_nulls_not_distinct=True,
        ),
        Index("ix_role_grant_dispensary_id", "dispensary_id", "role"),
    )
    id: int = identity()
    account_id: int = reference("account.id")
    role: str
    dispensary_id: int | None = reference("dispensary.id", nullable=True)
    granted_by_id: int | None = reference("account.id", nullable=True)
    granted_at: datetime = instant(now=True)


class Session(SQLModel, table=True):
    """One sign-in, alive while its refresh tokens are."""

    __table_args__ = (Index("ix_session_account_id", "account_id"),)
    id: int = identity()
    account_id: int = reference("account.id")
    created_at: datetime = instant(now=True)
    expires_at: datetime = instant()
    ended_at: datetime | None = instant(nullable=True)
    last_used_at: datetime = instant(now=True)
    # As a person recognises where they signed in.
    address: str | None = None
    client: str | None = None
    # Of a browser's session alone: SHA-256 of the CSRF token that its pages send with what its cookies carry.
    csrf_hash: bytes | None = None


class ExternalIdentity(SQLModel, table=True):
    """Somebody as an OpenID Connect provider knows them, and the account that they are here."""

    __tablename__ = "external_identity"
    __table_args__ = (
        CheckConstraint("length(subject) BETWEEN 1 AND 255", "subject"),
        Index("uq_external_identity_subject", "issuer", "subject", unique=True),
        # An e-mail address that a provider gives to another person later on does not give them the account.
        Index("uq_external_identity_account", "account_id", "issuer", unique=True),
    )
    id: int = identity()
    account_id: int = reference("account.id")
    issuer: str
    subject: str
    linked_at: datetime = instant(now=True)


class PasswordReset(SQLModel, table=True):
    """An administrator's leave to set a new password once, by a code kept as its SHA-256."""

    __tablename__ = "password_reset"
    __table_args__ = (Index("uq_password_reset_hash", "hash", unique=True),)
    id: int = identity()
    account_id: int = reference("account.id", index=True)
    hash: bytes
    issued_by_id: int = reference("account.id")
    issued_at: datetime = instant(now=True)
    expires_at: datetime = instant()
    used_at: datetime | None = instant(nullable=True)


class RefreshToken(SQLModel, table=True):
    """An opaque token, kept as its SHA-256, good for one use."""

    __tablename__ = "refresh_token"
    __table_args__ = (Index("uq_refresh_token_hash", "hash", unique=True),)
    id: int = identity()
    session_id: int = reference("session.id", index=True)
    hash: bytes
    created_at: datetime = instant(now=True)
    used_at: datetime | None = instant(nullable=True)


class AccessEntry(SQLModel, table=True):
    """One read or change of a person's record, or of several in one: who, what, when, from where, why.

    It refers to other rows by number alone: evidence neither waits for them nor keeps them. Whom a read was
    about is one patient, a set of them, or nobody where none was found.
    """

    __tablename__ = "access_entry"
    __table_args__ = (
        Index(
            "ix_access_entry_patient_id",
            "patient_id",
            "at",
            "id",
            postgresql_where=text("patient_id IS NOT NULL"),
        ),
        Index("ix_access_entry_patients", "patients", postgresql_where=text("patients IS NOT NULL")),
        Index("ix_access_entry_account_id", "account_id", "at", "id"),
        Index("ix_access_entry_at", "at", "id"),
        # Whoever adds an entry may not see it: RETURNING would be refused.
        {"implicit_returning": False},
    )
    id: int = identity()
    at: datetime = instant(now=True)
    account_id: int | None = Field(default=None, sa_type=BigInteger)
    # As what they acted.
    role: str | None = None
    action: str
    # The root field that a read was made by.
    field: str | None = None
    patient_id: int | None = Field(default=None, sa_type=BigInteger)
    patients: bytes | None = None
    dispensary_id: int | None = Field(default=None, sa_type=BigInteger)
    object_type: str | None = None
    object_id: int | None = Field(default=None, sa_type=BigInteger)
    reason: str | None = None
    request_id: str | None = None
    address: str | None = None


class AccessSet(SQLModel, table=True):
    """The patients whom reads were about together, kept once under the SHA-256 of their numbers."""

    __tablename__ = "access_set"
    __table_args__ = (Index("ix_access_set_patients", "patients", postgresql_using="gin"),)
    digest: bytes = Field(primary_key=True)
    patients: list[int] = Field(sa_column=Column(ARRAY(BigInteger), nullable=False))


class AccessSeal(SQLModel, table=True):
    """A link of the chain: the SHA-256 of the seal before it and of these entries (see `identity.seals`)."""

    __tablename__ = "access_seal"
    __table_args__ = (Index("ix_access_seal_at", "at"),)
    number: int = Field(sa_column=Column(BigInteger, primary_key=True, autoincrement=False))
    at: datetime = instant(now=True)
    entries: Any = Field(sa_column=Column(INT8MULTIRANGE, nullable=False))
    size: int
    digest: bytes


class IdempotencyKey(SQLModel, table=True):
    """The first result of a mutation that creates, kept under the client's key."""

    __tablename__ = "idempotency_key"
    __table_args__ = (CheckConstraint("length(key) BETWEEN 1 AND 200", "key"),)
    account_id: int = Field(
        sa_column=Column(BigInteger, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True)
    )
    mutation: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    input_hash: bytes
    result_id: int | None = Field(default=None, sa_type=BigInteger)
    created_at: datetime = instant(now=True)
