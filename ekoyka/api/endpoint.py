"""GraphQL over HTTP and over WebSocket: who asks, the operation, the answer.

HTTP takes ``POST`` with JSON and nothing else, so nothing is changed by a link. The WebSocket speaks
graphql-transport-ws; the socket is closed with 4401 when its token expires and with 4403 when its account
is blocked or its roles change.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Any

import orjson
import strawberry
from cross_web import HTTPException
from graphql import OperationType
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketState
from strawberry.asgi import GraphQL
from strawberry.asgi import ASGIWebSocketAdapter
from strawberry.exceptions import ConnectionRejectionError
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.exceptions import MissingQueryError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.types.graphql import OperationType as StrawberryOperationType

from ekoyka.api.context import Run, Services
from ekoyka.api.presentation import present
from ekoyka.database import DatabaseUnavailable
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.queries import guard
from ekoyka.observability import EXECUTION, OPERATIONS, PLANS, STATEMENTS, request_id

_JSON = "application/json"
_GRAPHQL_JSON = "application/graphql-response+json"


def language_of(connection: HTTPConnection) -> str:
    """The language for messages: English where the client prefers it, else Russian."""
    weights: dict[str, float] = {}
    for part in connection.headers.get("accept-language", "").split(","):
        tag, _, weight = part.strip().partition(";q=")
        with contextlib.suppress(ValueError):
            weights.setdefault(tag.split("-")[0].lower(), float(weight or 1))
    return "en" if weights.get("en", 0) > weights.get("ru", 0) else "ru"


def bearer(headers: Mapping[str, Any], services: Services) -> ReadToken | None:
    """The actor of the `Authorization` header, or None without one. Raises `NotAuthenticated`."""
    value = headers.get("authorization") or headers.get("Authorization")
    if not value:
        return None
    scheme, _, token = str(value).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise NotAuthenticated("scheme")
    return services.tokens.read(token.strip())


def failure(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without data."""
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    return Response(orjson.dumps(body), status, dict(headers or {}), _JSON)


class Endpoint:
    """The HTTP half: one JSON body in, one JSON body out."""

    def __init__(self, schema: strawberry.Schema) -> None:
        self.schema = schema

    async def __call__(self, request: Request) -> Response:
        services: Services = request.app.state.services
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the operation as application/json.")
        if request.headers.get("content-encoding", "identity") != "identity":
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the body without a content encoding.")
        try:
            body = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            return failure(400, "BAD_REQUEST", "The body is not JSON in UTF-8.")
        if not isinstance(body, dict) or not isinstance(body.get("query"), str):
            return failure(400, "BAD_REQUEST", "The body is an object with a `query` that is text.")
        if not isinstance(body.get("variables"), dict | None):
            return failure(400, "BAD_REQUEST", "`variables` is an object.")
        if not isinstance(body.get("operationName"), str | None):
            return failure(400, "BAD_REQUEST", "`operationName` is text.")
        try:
            token = bearer(request.headers, services)
        except NotAuthenticated:
            return failure(
                401,
                "UNAUTHENTICATED",
                "The access token is not good (any more): sign in, or refresh it.",
                {"www-authenticate": 'Bearer error="invalid_token"'},
            )
        run = Run(services, request, token.actor if token else None, language_of(request))
        return await self._answer(run, body, request.headers.get("accept", ""))

    async def _answer(self, run: Run, body: dict[str, Any], accept: str) -> Response:
        started, kind = perf_counter(), "unknown"
        statements, hits = run.database.statements, run.planner.hits
        try:
            result = await self.schema.execute(
                body["query"],
                variable_values=body.get("variables"),
                context_value=run,
                operation_name=body.get("operationName") or None,
                allowed_operation_types=(StrawberryOperationType.QUERY, StrawberryOperationType.MUTATION),
            )
        except (CannotGetOperationTypeError, MissingQueryError):
            return failure(400, "BAD_REQUEST", "The document holds no such operation: see `operationName`.")
        except InvalidOperationTypeError:
            return failure(400, "BAD_REQUEST", "Subscriptions are served over the WebSocket (graphql-transport-ws).")
        errors = present(result.errors or ())
        codes = {error["extensions"]["code"] for error in errors}
        OPERATIONS.labels(run.kind, "ok" if not errors else min(codes).lower()).inc()
        EXECUTION.labels(run.kind).observe(perf_counter() - started)
        answer: dict[str, Any] = {"errors": errors} if errors else {}
        # Without data the operation never began: GraphQL over HTTP, 6.4.
        began = result.data is not None or not errors or any("path" in error and codes <= {"INTERNAL"} for error in errors)
        if began:
            answer["data"] = result.data
        status, headers = 200, {}
        if "SERVICE_UNAVAILABLE" in codes:
            status, headers = 503, {"retry-after": "1"}
        elif not began and _GRAPHQL_JSON in accept:
            status = 401 if "UNAUTHENTICATED" in codes else 400
        media_type = _GRAPHQL_JSON if _GRAPHQL_JSON in accept else _JSON
        return Response(orjson.dumps(answer), status, headers, f"{media_type}; charset=utf-8")
