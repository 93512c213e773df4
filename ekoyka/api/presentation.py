"""Errors as clients see them: a code, a sentence, never a traceback, a statement or a value of the database."""

from collections.abc import Iterable
from typing import Any

import structlog
from graphql import GraphQLError, GraphQLSyntaxError

from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.execution import ActorGone
from ekoyka.graph.ids import BadInput
from ekoyka.graph.wording import plainly
from ekoyka.identity.credentials import NotAuthenticated
from ekoyka.observability import request_id, where

log = structlog.get_logger(__name__)


class OutOfSight(Exception):
    """The row that an answer was to show is not there, or not the actor's to see."""


UNAVAILABLE = "The database cannot be reached right now; the same request may succeed in a moment."
_SENTENCES = {
    "UNAUTHENTICATED": "Sign in again: the token is no longer good.",
    "NOT_FOUND": "There is no such record.",
    "SERVICE_UNAVAILABLE": UNAVAILABLE,
    "INTERNAL": "Something went wrong on our side. It is in the log under this request id.",
}


def present(errors: Iterable[GraphQLError]) -> list[dict[str, Any]]:
    """The errors of an answer; what nobody expected is logged and masked."""
    return [_present(error) for error in errors]


def _present(error: GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    shown: dict[str, Any] = {**error.formatted, "message": plainly(error)}
    code = (error.extensions or {}).get("code") or (getattr(cause, "extensions", None) or {}).get("code")
    if isinstance(cause, ActorGone | NotAuthenticated):
        code = "UNAUTHENTICATED"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, OutOfSight):
        code = "NOT_FOUND"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, DatabaseUnavailable):
        code = "SERVICE_UNAVAILABLE"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, BadInput):
        code = "BAD_USER_INPUT"
    elif isinstance(error, GraphQLSyntaxError):
        code = "GRAPHQL_PARSE_FAILED"
    elif code is None and (cause is None or isinstance(cause, GraphQLError)):
        code = "GRAPHQL_VALIDATION_FAILED" if error.path is None else "BAD_USER_INPUT"
    elif code is None:
        code = "INTERNAL"
        shown["message"] = _SENTENCES[code]
        log.error("operation_failed", **where(cause))
    extensions = {**(error.extensions or {}), "code": code}
    if code == "INTERNAL":
        extensions["requestId"] = request_id.get()
    shown["extensions"] = extensions
    return shown
