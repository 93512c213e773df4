"""Trusted documents: the operations of client builds, registered beforehand and asked for by their hash.

Owns the table of them and a process's lookup. A document is known by ``sha256:`` and the SHA-256 of its text
in UTF-8 (GraphQL over HTTP, appendix on persisted documents). It gives nobody more rights: it is executed as
its text would be.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import CheckConstraint, Index, Text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import Field, SQLModel, col, delete

from ekoyka.cache import Cache
from ekoyka.columns import instant
from ekoyka.database import Database

KEPT = 1000
_ID = re.compile(r"sha256:[0-9a-f]{64}")


class TrustedDocument(SQLModel, table=True):
    """A document of one client's build; several clients may have registered the same one."""

    __tablename__ = "trusted_document"
    __table_args__ = (
        CheckConstraint("length(client) BETWEEN 1 AND 100", "client"),
        Index("ix_trusted_document_client", "client"),
    )
    id: str = Field(primary_key=True)
    client: str = Field(primary_key=True)
    document: str = Field(sa_type=Text)
    registered_at: datetime = instant(now=True)


def identify(document: str) -> str:
    """The document's id."""
    return f"sha256:{hashlib.sha256(document.encode()).hexdigest()}"


def is_id(text: str) -> bool:
    """Whether the text has the form of a document's id."""
    return _ID.fullmatch(text) is not None


async def register(session: AsyncSession, client: str, documents: Iterable[str]) -> int:
    """The client's documents are trusted from the commit on; how many it had not registered before."""
    rows = [{"id": identify(text), "client": client, "document": text} for text in dict.fromkeys(documents)]
    if not rows:
        return 0
    added = await session.scalars(
        insert(TrustedDocument).values(rows).on_conflict_do_nothing().returning(col(TrustedDocument.id))
    )
    return len(list(added))


async def forget(session: AsyncSession, client: str) -> int:
    """The client's documents are no longer trusted for its sake; how many there were.

    A process that has answered one keeps it until it is restarted.
    """
    gone = await session.scalars(
        delete(TrustedDocument)
        .where(col(TrustedDocument.client) == client)
        .returning(col(TrustedDocument.id))
    )
    return len(list(gone))


class Documents:
    """One process's lookup: what was asked for is kept, what is unknown is asked for anew."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Cache[str, str] = Cache(KEPT)

    async def text(self, document_id: str) -> str | None:
        """The document; None for one that nobody registered. One indexed read the first time."""
        known = self._known.get(document_id)
        if known is None and is_id(document_id):
            known = await self._database.fetch_value(
                "SELECT document FROM trusted_document WHERE id = $1 LIMIT 1", document_id
            )
            if known is not None:
                self._known.put(document_id, known)
        return known
