"""GraphQL over HTTP: who asks, the operation, the answer.

Takes ``POST`` with JSON and nothing else, so nothing is changed by a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
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

from ekoyka.api.browsers import CrossSite
from ekoyka.api.clients import Fields
from ekoyka.api.context import Run, Services
from ekoyka.api.presentation import UNAVAILABLE, present
from ekoyka.api.requests import BadRequest, document_of
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.plan import PlanError
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.sessions import CsrfTokenWrong
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
_LATER = {"SERVICE_UNAVAILABLE", "OUTCOME_UNKNOWN", "TIMED_OUT"}
# Codes of what a page of another site may have made a browser ask.
_UNASKED = {"CSRF_TOKEN_WRONG", "CROSS_SITE_REQUEST"}


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


def failure(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, *, accept: str = ""
) -> Response:
    """An answer without data, in the media type that the client asks for."""
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    answer_type = media_type(accept) or _JSON
    return Response(orjson.dumps(body), status, dict(headers or {}), f"{answer_type}; charset=utf-8")


def _status(codes: set[str]) -> int:
    """The status of errors of the request itself, where the answer's media type lets it be told."""
    if "UNAUTHENTICATED" in codes:
        return 401
    return 403 if "FORBIDDEN" in codes else 400


def _bad(message: str) -> dict[str, Any]:
    return {"message": message, "extensions": {"code": "BAD_REQUEST"}}


def _holds(data: bytes | None) -> bool:
    """Whether any of the operation's fields has a value."""
    return data is not None and any(value is not None for value in (orjson.loads(data) or {}).values())


def too_large(accept: str = "") -> Response:
    """The answer to a body that is larger than it may be."""
    message = f"A body holds at most {LARGEST_BODY_BYTES} bytes."
    return failure(413, "CONTENT_TOO_LARGE", message, {"connection": "close"}, accept=accept)


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
        headers = Fields(scope["headers"])
        fail = partial(failure, accept=headers[b"accept"])
        if not state.prepared.is_set():
            return fail(
                503,
                "SERVICE_UNAVAILABLE",
                "The server is waiting for its database; the same request may succeed in a moment.",
                {"retry-after": "2"},
            )
        if not _is_json(headers[b"content-type"]):
            return fail(415, "UNSUPPORTED_MEDIA_TYPE", "Send the operation as application/json in UTF-8.")
        if media_type(headers[b"accept"]) is None:
            return fail(406, "NOT_ACCEPTABLE", f"Answers are {_GRAPHQL_JSON} or {_JSON}: see `Accept`.")
        if headers[b"content-encoding"] not in ("", "identity"):
            return fail(415, "UNSUPPORTED_MEDIA_TYPE", "Send the body without a content encoding.")
        try:
            body = orjson.loads(await whole(receive))
        except TooLarge:
            return too_large(headers[b"accept"])
        except orjson.JSONDecodeError:
            return fail(400, "BAD_REQUEST", "The body is not JSON in UTF-8.")
        if not isinstance(body, dict):
            return fail(400, "BAD_REQUEST", "The body is an object with a `query` or a `documentId`.")
        for name in ("variables", "extensions"):
            if not isinstance(body.get(name), dict | None):
                return fail(400, "BAD_REQUEST", f"`{name}` is an object.")
        if not isinstance(body.get("operationName"), str | None):
            return fail(400, "BAD_REQUEST", "`operationName` is text.")
        services: Services = state.services
        carried = None
        try:
            token = bearer(headers[b"authorization"], services)
            # Beside a bearer token cookies mean nothing.
            if token is None and headers[b"cookie"]:
                carried = services.browsers.carried(headers)
                token = carried.token if carried else None
        except (CrossSite, CsrfTokenWrong) as error:
            [told] = present([GraphQLError("", original_error=error)])
            return failure(403, told["extensions"]["code"], told["message"])
        except NotAuthenticated:
            return fail(
                401,
                "UNAUTHENTICATED",
                "The access token is not good (any more): sign in, or refresh it.",
                {"www-authenticate": 'Bearer error="invalid_token"'},
            )
        try:
            text = await document_of(services, body)
        except BadRequest as error:
            return fail(error.status, error.code, error.message)
        except DatabaseUnavailable:
            return fail(503, "SERVICE_UNAVAILABLE", UNAVAILABLE, {"retry-after": "1"})
        actor = token.actor if token else None
        run = Run(services, HTTPConnection(scope), actor, preferred(headers[b"accept-language"]))
        run.carried = carried
        response = await self._answer(run, text, body, headers)
        for cookie in run.cookies:
            response.headers.append("set-cookie", cookie)
        return response

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
            errors, began = [_bad("The document holds no such operation: see `operationName`.")], False
        except InvalidOperationTypeError:
            errors = [_bad("Subscriptions are served over the WebSocket (graphql-transport-ws).")]
            began = False
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
        # An operation that never began has no data (GraphQL over HTTP, 6.4): errors of the request itself. Nor has
        # one of which nothing came about and that may be asked again: with data its status would have to be 200.
        again = bool(codes & {"RATE_LIMITED", *_LATER})
        began = not (again and not _holds(data)) and (began or codes <= {"INTERNAL"})
        parts = [b'"errors":' + orjson.dumps(errors)] if errors else []
        if began:
            parts.append(b'"data":' + (data or b"null"))
        if plan is not None:
            parts.append(b'"extensions":{"cost":%d}' % plan.cost)
        answer_type = media_type(headers[b"accept"]) or _JSON
        status, more = 200, dict[str, str]()
        if again:
            waits = [error["extensions"].get("retryAfterS", 1) for error in errors]
            more["retry-after"] = str(max(waits))
            if not began:
                status = 429 if "RATE_LIMITED" in codes else 503
        elif codes & _UNASKED:
            status = 403
        elif not began and answer_type == _GRAPHQL_JSON:
            status = _status(codes)
            if status == 401:
                more["www-authenticate"] = "Bearer"
        content = b"{" + b",".join(parts) + b"}"
        if len(content) >= WORTH_COMPRESSING_BYTES and kind == "query":
            more["vary"] = "accept-encoding"
            if _takes_gzip(headers[b"accept-encoding"]):
                more["content-encoding"] = "gzip"
                content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
        return Response(content, status, more, f"{answer_type}; charset=utf-8")
