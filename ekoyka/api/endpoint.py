"""GraphQL over HTTP and over WebSocket: who asks, the operation, the answer.

HTTP takes ``POST`` with JSON and nothing else, so nothing is changed by a link. The WebSocket speaks
graphql-transport-ws; the socket is closed with 4401 when its token expires and with 4403 when its account
is blocked or its roles change.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import orjson
import strawberry
import structlog
from graphql import GraphQLError
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.exceptions import MissingQueryError
from strawberry.extensions import SchemaExtension
from strawberry.schema.exceptions import CannotGetOperationTypeError, InvalidOperationTypeError
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import BaseGraphQLTransportWSHandler
from strawberry.types.graphql import OperationType

from ekoyka.api.context import Run, Services
from ekoyka.api.presentation import UNAVAILABLE, present
from ekoyka.api.requests import BadRequest, document_of
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.plan import PlanError
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.queries import guard
from ekoyka.observability import count_operation, request_id

if TYPE_CHECKING:
    from strawberry.subscriptions.protocols.graphql_transport_ws.types import Message

log = structlog.get_logger(__name__)
_JSON = "application/json"
_GRAPHQL_JSON = "application/graphql-response+json"
# Below, a packet or two are saved for more than they cost; the lowest level takes nine tenths of what the
# highest would, in a fifth of the time. Changes' answers, which may hold tokens, are never compressed.
WORTH_COMPRESSING_BYTES = 4096
_GZIP_LEVEL = 1


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether the client takes gzip (RFC 9110, 12.5.3)."""
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


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


async def _whole(receive: Receive) -> bytes:
    """The request's body; the application has bounded it. Raises `ClientDisconnect`."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def failure(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without data."""
    body = {"errors": [{"message": message, "extensions": {"code": code}}]}
    return Response(orjson.dumps(body), status, dict(headers or {}), _JSON)


class Endpoint:
    """The HTTP half: one JSON body in, one JSON body out.

    A query that the compiler covers is answered from its plan; everything else is Strawberry's to execute.
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
        if headers[b"content-type"].partition(";")[0].strip().lower() != _JSON:
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the operation as application/json.")
        if headers[b"content-encoding"] not in ("", "identity"):
            return failure(415, "UNSUPPORTED_MEDIA_TYPE", "Send the body without a content encoding.")
        try:
            body = orjson.loads(await _whole(receive))
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
            data = await run.answer_query(query, name, variables)
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
        except Exception as error:  # whatever it is, it is masked and has the request's id
            errors, began = present([GraphQLError("", original_error=error)]), False
        codes = {error["extensions"]["code"] for error in errors}
        kind = run.last_kind()
        count_operation(kind, min(codes).lower() if codes else "ok", perf_counter() - started)
        # An operation that never began has no data (GraphQL over HTTP, 6.4): errors of the request itself.
        began |= codes <= {"INTERNAL", "SERVICE_UNAVAILABLE"}
        parts = [b'"errors":' + orjson.dumps(errors)] if errors else []
        if began:
            parts.append(b'"data":' + (data or b"null"))
        accept = headers[b"accept"]
        status, more = 200, {}
        if "SERVICE_UNAVAILABLE" in codes:
            status, more = 503, {"retry-after": "1"}
        elif not began and _GRAPHQL_JSON in accept:
            status = 401 if "UNAUTHENTICATED" in codes else 400
        content = b"{" + b",".join(parts) + b"}"
        if len(content) >= WORTH_COMPRESSING_BYTES and kind == "query":
            more["vary"] = "accept-encoding"
            if _takes_gzip(headers[b"accept-encoding"]):
                more["content-encoding"] = "gzip"
                content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
        media_type = _GRAPHQL_JSON if _GRAPHQL_JSON in accept else _JSON
        return Response(content, status, more, f"{media_type}; charset=utf-8")


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
                given = payload.get("authorization") or payload.get("Authorization") or ""
                token = bearer(str(given), self.context.services)
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
