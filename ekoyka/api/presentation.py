"""Errors as clients see them: a code, a sentence, never a traceback, a statement or a value of the database."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import structlog
from graphql import GraphQLError, GraphQLSyntaxError

from ekoyka.api.browsers import CSRF_HEADER, CrossSite
from ekoyka.database import DatabaseUnavailable, OutcomeUnknown
from ekoyka.graph.execution import ActorGone
from ekoyka.graph.ids import BadInput
from ekoyka.graph.wording import plainly
from ekoyka.identity.credentials import NotAuthenticated
from ekoyka.identity.sessions import CsrfTokenWrong
from ekoyka.observability import request_id, where
from ekoyka.rates import RateLimited

log = structlog.get_logger(__name__)


class OutOfSight(Exception):
    """The row that an answer was to show is not there, or not the actor's to see."""


MOST_ERRORS = 5
UNAVAILABLE = (
    "The database cannot do it right now, and nothing was changed; the same request may succeed in a moment."
)
_SENTENCES = {
    "UNAUTHENTICATED": "Sign in again: the token is no longer good.",
    "NOT_FOUND": "There is no such record.",
    "CROSS_SITE_REQUEST": "Cookies count for pages of this server's own origin (EKOYKA_PUBLIC_URL) alone.",
    "CSRF_TOKEN_WRONG": f"Send the value of the cookie that ends with ekoyka_csrf as {CSRF_HEADER}.",
    "SERVICE_UNAVAILABLE": UNAVAILABLE,
    "OUTCOME_UNKNOWN": (
        "The database went away while the change was being made. It may have been made or not: "
        "send it again with the same idempotencyKey, or look whether the version has changed."
    ),
    "TIMED_OUT": (
        "It took too long and was given up. A change may have been made or not: "
        "send it again with the same idempotencyKey."
    ),
    "INTERNAL": "Something went wrong on our side. It is in the log under this request id.",
}


# query_canceled, as by statement_timeout; lock_not_available
_GIVEN_UP = ("57014", "55P03")


def _sqlstate(cause: BaseException | None) -> str | None:
    state: str | None = getattr(getattr(cause, "orig", cause), "sqlstate", None)
    return state


def was_given_up(error: BaseException | None) -> bool:
    """Whether it took too long: for the server, or for PostgreSQL."""
    return isinstance(error, TimeoutError) or _sqlstate(error) in _GIVEN_UP


def may_succeed_later(error: BaseException | None) -> bool:
    """Whether the same request may be answered in a moment."""
    return isinstance(error, DatabaseUnavailable) or was_given_up(error)


def present(errors: Iterable[GraphQLError]) -> list[dict[str, Any]]:
    """The errors of an answer, the first five; what nobody expected is logged and masked."""
    return [_present(error) for error in islice(errors, MOST_ERRORS)]


def _present(error: GraphQLError) -> dict[str, Any]:
    cause = error.original_error
    while isinstance(cause, GraphQLError) and cause.original_error is not None:
        cause = cause.original_error
    shown: dict[str, Any] = {**error.formatted, "message": plainly(error)}
    more: dict[str, Any] = {}
    code = (error.extensions or {}).get("code") or (getattr(cause, "extensions", None) or {}).get("code")
    if isinstance(cause, ActorGone | NotAuthenticated):
        code = "UNAUTHENTICATED"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, OutOfSight):
        code = "NOT_FOUND"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, CrossSite | CsrfTokenWrong):
        code = "CROSS_SITE_REQUEST" if isinstance(cause, CrossSite) else "CSRF_TOKEN_WRONG"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, DatabaseUnavailable):
        code = "OUTCOME_UNKNOWN" if isinstance(cause, OutcomeUnknown) else "SERVICE_UNAVAILABLE"
        shown["message"] = _SENTENCES[code]
        log.warning("database_unavailable", **where(cause.__cause__))
    elif was_given_up(cause):
        code = "TIMED_OUT"
        shown["message"] = _SENTENCES[code]
    elif isinstance(cause, RateLimited):
        code = "RATE_LIMITED"
        shown["message"] = f"Too often: ask again in {cause.retry_after_s} s."
        more["retryAfterS"] = cause.retry_after_s
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
    extensions = {**(error.extensions or {}), "code": code, **more}
    if code == "INTERNAL":
        extensions["requestId"] = request_id.get()
    shown["extensions"] = extensions
    return shown
