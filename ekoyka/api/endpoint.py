"""GraphQL over HTTP and over WebSocket: who asks, the operation, the answer.

HTTP takes ``POST`` with JSON and nothing else, so nothing is changed by a link. The WebSocket speaks
graphql-transport-ws; the socket is closed with 4401 when its token expires and with 4403 when its account
is blocked or its roles change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import orjson
import strawberry
import structlog
from graphql import GraphQLError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import SchemaExtension
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.types.graphql import OperationType

from ekoyka.api.context import Run, Services
from ekoyka.api.presentation import present
from ekoyka.database import DatabaseUnavailable
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.queries import guard
from ekoyka.observability import EXECUTION, OPERATIONS, request_id

if TYPE_CHECKING:
    from strawberry.subscriptions.protocols.graphql_transport_ws.types import Message

log = structlog.get_logger(__name__)
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
    return services.tokens.read(token.strip(), request_id=request_id.get())


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
        if not request.app.state.prepared.is_set():
            return failure(
                503,
                "SERVICE_UNAVAILABLE",
                "The server is waiting for its database; the same request may succeed in a moment.",
                {"retry-after": "2"},
            )
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
        run.names_operation = bool(body.get("operationName"))
        return await self._answer(run, body, request.headers.get("accept", ""))

    async def _answer(self, run: Run, body: dict[str, Any], accept: str) -> Response:
        started = perf_counter()
        try:
            result = await self.schema.execute(
                body["query"],
                variable_values=body.get("variables"),
                context_value=run,
                operation_name=body.get("operationName") or None,
                allowed_operation_types=(OperationType.QUERY, OperationType.MUTATION),
            )
        except (CannotGetOperationTypeError, MissingQueryError):
            return failure(400, "BAD_REQUEST", "The document holds no such operation: see `operationName`.")
        except InvalidOperationTypeError:
            return failure(
                400, "BAD_REQUEST", "Subscriptions are served over the WebSocket (graphql-transport-ws)."
            )
        errors = present(result.errors or ())
        codes = {error["extensions"]["code"] for error in errors}
        kind = run.last_kind()
        OPERATIONS.labels(kind, min(codes).lower() if codes else "ok").inc()
        EXECUTION.labels(kind).observe(perf_counter() - started)
        answer: dict[str, Any] = {"errors": errors} if errors else {}
        # An operation that never began has no data (GraphQL over HTTP, 6.4): errors of the request itself.
        began = result.data is not None or codes <= {"INTERNAL", "SERVICE_UNAVAILABLE"}
        if began:
            answer["data"] = result.data
        status, headers = 200, {}
        if "SERVICE_UNAVAILABLE" in codes:
            status, headers = 503, {"retry-after": "1"}
        elif not began and _GRAPHQL_JSON in accept:
            status = 401 if "UNAUTHENTICATED" in codes else 400
        media_type = _GRAPHQL_JSON if _GRAPHQL_JSON in accept else _JSON
        return Response(orjson.dumps(answer), status, headers, f"{media_type}; charset=utf-8")


class PresentedEvents(SchemaExtension):
    """Errors in a socket's frames look as they do over HTTP."""

    def on_stream_result(self, result: Any) -> Iterator[None]:
        if result.errors:
            shown = zip(result.errors, present(result.errors), strict=True)
            result.errors = [
                GraphQLError(new["message"], old.nodes, path=old.path, extensions=new["extensions"])
                for old, new in shown
            ]
        yield


class _TextFrames(ASGIWebSocketAdapter):
    """Frames are text; answers that are JSON already are not parsed again."""

    async def send_json(self, message: Mapping[str, object]) -> None:
        with contextlib.suppress(RuntimeError):  # the socket was closed meanwhile, by us
            await self.ws.send_text(orjson.dumps(message).decode())

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(RuntimeError):
            await super().close(code, reason)


class _Handler(BaseGraphQLTransportWSHandler[Run, None]):
    """A socket: authenticated once, watched as long as it is open."""

    _keeper: asyncio.Task[None] | None = None

    async def handle_connection_init(self, message: Any) -> None:
        payload = message.get("payload") or {}
        if isinstance(payload, dict) and not self.connection_init_received:
            try:
                token = bearer(payload, self.context.services)
            except NotAuthenticated:
                await self.websocket.close(4401, "The access token is not good (any more).")
                return
            if token is not None:
                self.context.actor = token.actor
                self._keeper = asyncio.create_task(self._keep(token))
        await super().handle_connection_init(message)

    async def handle_message(self, message: Any) -> None:
        if not isinstance(message, dict):
            await self.handle_invalid_message("A message is an object.")
            return
        try:
            await super().handle_message(cast("Message", message))
        except (TypeError, AttributeError):
            await self.handle_invalid_message("The message is malformed.")

    async def _keep(self, token: ReadToken) -> None:
        """The socket is closed when the token ends or the account is no longer what it says."""
        services, actor = self.context.services, token.actor
        question = f"SELECT {guard('$1::bigint', '$2::int')}"
        with services.feed.watch(f"account:{actor.account_id}") as watch:
            while True:
                left = (token.expires_at - datetime.now(UTC)).total_seconds()
                if left <= 0:
                    await self.websocket.close(4401, "The access token has ended.")
                    return
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(watch.wait(), left)
                    while True:
                        try:
                            current = await services.database.fetch_value(
                                question, actor.account_id, actor.auth_version
                            )
                            break
                        except DatabaseUnavailable:
                            await asyncio.sleep(0.5)
                    if not current:
                        await self.websocket.close(4403, "The account was blocked or its roles have changed.")
                        return

    async def shutdown(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await super().shutdown()


class Sockets(GraphQL[Run, None]):
    """The WebSocket half."""

    websocket_adapter_class = _TextFrames
    graphql_transport_ws_handler_class = _Handler

    def __init__(self, schema: strawberry.Schema, *, operations_per_socket: int) -> None:
        super().__init__(
            schema,
            graphql_ide=None,
            allow_queries_via_get=False,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
            connection_init_wait_timeout=timedelta(seconds=10),
            max_subscriptions_per_connection=operations_per_socket,
        )

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Run:
        return Run(request.app.state.services, request, None, language_of(request))

    def decode_json(self, data: str | bytes) -> object:
        return orjson.loads(data)
