"""Which document a request means: its text, or a trusted one by its id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ekoyka.api.context import Services
from ekoyka.documents import is_id


class BadRequest(Exception):
    """The request cannot be meant; what to do is said with a code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message

    @property
    def formatted(self) -> dict[str, Any]:
        """The error as clients see it."""
        return {"message": self.message, "extensions": {"code": self.code}}


async def document_of(services: Services, request: Mapping[str, Any]) -> str:
    """The document's text. Raises `BadRequest`, `DatabaseUnavailable`."""
    query, document_id = request.get("query"), request.get("documentId")
    if document_id is None:
        if not isinstance(query, str):
            raise BadRequest(
                400, "BAD_REQUEST", "Send an object with a `query` that is text, or with a `documentId`."
            )
        if services.settings.trusted_documents_only:
            raise BadRequest(
                403,
                "TRUSTED_DOCUMENTS_ONLY",
                "This server answers registered documents only: send a `documentId`.",
            )
        return query
    if query is not None:
        raise BadRequest(400, "BAD_REQUEST", "Send either `query` or `documentId`.")
    if not isinstance(document_id, str) or not is_id(document_id):
        raise BadRequest(
            400, "BAD_REQUEST", "A `documentId` is sha256: and the SHA-256 of the document in 64 hex digits."
        )
    text = await services.documents.text(document_id)
    if text is None:
        raise BadRequest(
            400, "PERSISTED_DOCUMENT_NOT_FOUND", "No document of this `documentId` is registered."
        )
    return text
