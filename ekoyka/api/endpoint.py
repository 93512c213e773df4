"""GraphQL over HTTP: who asks, the operation, the answer.

Takes ``POST`` with JSON and nothing else, so nothing is changed by a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from time import perf_counter
from typing import Any

import orjson
import strawberry
import structlog
from graphql import GraphQLError
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from strawberry.exceptions import MissingQueryError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.types.graphql import OperationType

from ekoyka.api.context import Run, Services
from ekoyka.api.presentation import UNAVAILABLE, present
from ekoyka.api.requests import BadRequest, document_of
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.plan import PlanError
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.observability import count_operation, request_id

log = structlog.get_logger(__name__)
LARGEST_BODY_BYTES = 64 * 1024
_JSON = "application/json"
_GRAPHQL_JSON = "application/graphql-response+json"
# Below, a packet or two are saved for more than they cost; the lowest level takes nine tenths of what the
# highest would, in a fifth of the time. Changes' answers, which may hold tokens, are never compressed.
WORTH_COMPRESSING_BYTES = 4096
_GZIP_LEVEL = 1
# Codes of what may go well when it is asked again.
_LATER = {"SERVICE_UNAVAILABLE", "TIMED_OUT"}


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether the client takes gzip (RFC 9110, 12.5.3)."""
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


@lru_cache(1000)
def media_type(accept: str) -> str | None:
    """The media type of an answer for this `Accept`; None where the client takes neither.

    GraphQL over HTTP, 6.2; RFC 9110, 12.5.1: the most specific range says how much a type is wanted.
    """
    if not accept:
        return _JSON
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (item.strip() for item in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[name] = max(weight, weights.get(name, 0.0))

    def wanted(name: str) -> float:
        return next((weights[item] for item in (name, "application/*", "*/*") if item in weights), 0.0)

    # Where both are wanted alike, the one that is named, and the older one where neither is.
    best = max((_GRAPHQL_JSON, _JSON), key=lambda name: (wanted(name), name in weights, name == _JSON))
    if _GRAPHQL_JSON in weights and wanted(_GRAPHQL_JSON) >= wanted(best):
        best = _GRAPHQL_JSON
    return best if wanted(best) > 0 else None


@lru_cache(1000)
def _is_json(content_type: str) -> bool:
    name, *parameters = (item.strip().lower() for item in content_type.split(";"))
    charsets = [item[8:].strip('"') for item in parameters if item.startswith("charset=")]
    return name == _JSON and all(charset in ("utf-8", "utf8") for charset in charsets)


def without_names(run: Run, errors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The errors as whoever may not introspect sees them: what does not fit the schema tells nothing of it."""
    introspectors = run.planner.introspectors
    if introspectors is None or not run.actor_shape().roles.isdisjoint(introspectors):
        return errors
    closed = [error for error in errors if error["extensions"]["code"] != "GRAPHQL_VALIDATION_FAILED"]
    if len(closed) < len(errors):
        closed.append(
            {
                "message": "The document does not fit the schema.",
                "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"},
            }
        )
    return closed


def language_of(connection: HTTPConnection) -> str:
    """The language for messages that the connection's client prefers."""
    return preferred(connection.headers.get("accept-language", ""))


def preferred(accept_language: str) -> str:
    """The language for messages: English where the client prefers it, else Russian."""
    if not accept_language:
        return "ru"
    weights: dict[str, float] = {}
    for part in accept_language.split(","):
        tag, _, weight = part.strip().partition(";q=")
        with contextlib.suppress(ValueError):
            weights.setdefault(tag.split("-")[0].lower(), float(weight or 1))
    return "en" if weights.get("en", 0) > weights.get("ru", 0) else "ru"


def bearer(authorization: str, services: Services) -> ReadToken | None:
    """The actor of an `Authorization` field, or None where it is empty. Raises `NotAuthenticated`."""
    if not authorization:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthenticated("scheme")
    return services.tokens.read(token.strip())


class Fields:
    """A request's header fields by name, as text: empty where one is absent, the last where it is repeated."""

    def __init__(self, raw: Iterable[tuple[bytes, bytes]]) -> None:
        self._raw = dict(raw)

    def __getitem__(self, name: bytes) -> str:
        return self._raw.get(name, b"").decode("latin-1")


class TooLarge(Exception):
    """The body is larger than it may be."""


async def whole(receive: Receive) -> bytes:
    """The request's body. Raises `ClientDisconnect`, `TooLarge`."""
    parts = []
    left = LARGEST_BODY_BYTES
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        left -= len(parts[-1])
        if left < 0:
            raise TooLarge
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def failure(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without data."""
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    return Response(orjson.dumps(body), status, dict(headers or {}), _JSON)


def too_large() -> Response:
    """The answer to a body that is larger than it may be."""
    message = f"A body holds at most {LARGEST_BODY_BYTES} bytes."
    return failure(413, "CONTENT_TOO_LARGE", message, {"connection": "close"})


def says_too_much(scope: Scope) -> bool:
    """Whether the request says that its body is larger than any may be."""
    said = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(said) > LARGEST_BODY_BYTES if said.isdigit() else False


class Endpoint:
    """One JSON body in, one JSON body out.

    Queries and mutations are answered from their plans; introspection and all that is not good, by Strawberry.
    """

    def __init__(self, schema: strawberry.Schema) -> None:
        self.schema = schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond(scope, receive)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        state = scope["app"].state
        if not state.prepared.is_set():
            return failure(
                503,
                "SERVICE_UNAVAILABLE",
                "The server is waiting for its database; the same request may succeed in a moment.",
                {"retry-after": "2"},
            )
        headers = Fields(scope["headers"])
        if not _is_json(headers[b"content-type"]):
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the operation as application/json in UTF-8.")
        if media_type(headers[b"accept"]) is None:
            return failure(406, "NOT_ACCEPTABLE", f"Answers are {_GRAPHQL_JSON} or {_JSON}: see `Accept`.")
        if headers[b"content-encoding"] not in ("", "identity"):
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the body without a content encoding.")
        try:
            body = orjson.loads(await whole(receive))
        except TooLarge:
            return too_large()
        except orjson.JSONDecodeError:
            return failure(400, "BAD_REQUEST", "The body is not JSON in UTF-8.")
        if not isinstance(body, dict):
            return failure(400, "BAD_REQUEST", "The body is an object with a `query` or a `documentId`.")
        if not isinstance(body.get("variables"), dict | None):
            return failure(400, "BAD_REQUEST", "`variables` is an object.")
        if not isinstance(body.get("operationName"), str | None):
            return failure(400, "BAD_REQUEST", "`operationName` is text.")
        services: Services = state.services
        try:
            token = bearer(headers[b"authorization"], services)
        except NotAuthenticated:
            return failure(
                401,
                "UNAUTHENTICATED",
                "The access token is not good (any more): sign in, or refresh it.",
                {"www-authenticate": 'Bearer error="invalid_token"'},
            )
        try:
            text = await document_of(services, body)
        except BadRequest as error:
            return failure(error.status, error.code, error.message)
        except DatabaseUnavailable:
            return failure(503, "SERVICE_UNAVAILABLE", UNAVAILABLE, {"retry-after": "1"})
        actor = token.actor if token else None
        run = Run(services, HTTPConnection(scope), actor, preferred(headers[b"accept-language"]))
        return await self._answer(run, text, body, headers)

    async def _answer(self, run: Run, query: str, body: dict[str, Any], headers: Fields) -> Response:
        started = perf_counter()
        name, variables = body.get("operationName") or None, body.get("variables")
        run.names_operation = name is not None
        data: bytes | None = None
        errors: list[dict[str, Any]] = []
        began = True
        try:
            async with asyncio.timeout(run.services.settings.operation_timeout_s):
                data = await run.answer_at_once(query, name, variables)
                if data is None:
                    if run.actor is not None:
                        run.actor = replace(run.actor, request_id=request_id.get())
                    result = await self.schema.execute(
                        query,
                        variable_values=variables,
                        context_value=run,
                        operation_name=name,
                        allowed_operation_types=(OperationType.QUERY, OperationType.MUTATION),
                    )
                    errors = present(result.errors or ())
                    data = orjson.dumps(result.data)
                    began = result.data is not None
        except (CannotGetOperationTypeError, MissingQueryError):
            return failure(400, "BAD_REQUEST", "The document holds no such operation: see `operationName`.")
        except InvalidOperationTypeError:
            return failure(
                400, "BAD_REQUEST", "Subscriptions are served over the WebSocket (graphql-transport-ws)."
            )
        except PlanError as error:
            errors, began = present(error.errors), False
        except GraphQLError as error:
            errors, began = present([error]), False
        except Exception as error:  # whatever it is, it is masked and has the request's id
            errors, began = present([GraphQLError("", original_error=error)]), False
        errors = without_names(run, errors)
        codes = {error["extensions"]["code"] for error in errors}
        plan = run.last_plan()
        kind = plan.operation.value if plan else "unplanned"
        count_operation(kind, min(codes).lower() if codes else "ok", perf_counter() - started)
        # An operation that never began has no data (GraphQL over HTTP, 6.4): errors of the request itself.
        began |= codes <= {"INTERNAL", "RATE_LIMITED", *_LATER}
        parts = [b'"errors":' + orjson.dumps(errors)] if errors else []
        if began:
            parts.append(b'"data":' + (data or b"null"))
        if plan is not None:
            parts.append(b'"extensions":{"cost":%d}' % plan.cost)
        answer_type = media_type(headers[b"accept"]) or _JSON
        status, more = 200, {}
        if codes & _LATER:
            status, more = 503, {"retry-after": "1"}
        elif "RATE_LIMITED" in codes:
            waits = [error["extensions"].get("retryAfterS", 1) for error in errors]
            status, more = 429, {"retry-after": str(max(waits))}
        elif not began and answer_type == _GRAPHQL_JSON:
            status = 401 if "UNAUTHENTICATED" in codes else 400
        content = b"{" + b",".join(parts) + b"}"
        if len(content) >= WORTH_COMPRESSING_BYTES and kind == "query":
            more["vary"] = "accept-encoding"
            if _takes_gzip(headers[b"accept-encoding"]):
                more["content-encoding"] = "gzip"
                content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
        return Response(content, status, more, f"{answer_type}; charset=utf-8")
