"""GraphQL over WebSocket: graphql-transport-ws, on which feeds stay open all day.

Strawberry speaks the protocol and runs queries and mutations. Subscriptions join a group of `watching`: an
idle one has no task. A socket is closed with 4401 when its token ends, with 4403 when its account is blocked
or its roles change, and with 4413 when its client reads too slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import orjson
import strawberry
from graphql import GraphQLError
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket
from strawberry.asgi import ASGIWebSocketAdapter, GraphQL
from strawberry.extensions import SchemaExtension
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL
from strawberry.subscriptions.protocols.graphql_transport_ws.handlers import (
    BaseGraphQLTransportWSHandler,
    Operation,
)

from ekoyka.api.accounts import Account, dismiss
from ekoyka.api.clients import address_of
from ekoyka.api.context import Run
from ekoyka.api.endpoint import bearer, language_of, without_names
from ekoyka.api.outlets import outlet_of, text_frame
from ekoyka.api.presentation import present
from ekoyka.api.requests import BadRequest, document_of
from ekoyka.api.subscriptions import asked
from ekoyka.api.watching import AccountChanged, Member, errors_of
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.plan import PlanError
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.readings import Reader, reader_of
from ekoyka.observability import request_id

if TYPE_CHECKING:
    from strawberry.subscriptions.protocols.graphql_transport_ws.types import Message

_TOKEN_ENDED = 4401
INIT_PATIENCE = timedelta(seconds=10)


class PresentedEvents(SchemaExtension):
    """Errors in a socket's frames look as they do over HTTP."""

    def on_stream_result(self, result: Any) -> Iterator[None]:
        if result.errors:
            # At most five of them.
            shown = zip(result.errors, present(result.errors), strict=False)
            result.errors = [
                GraphQLError(new["message"], old.nodes, path=old.path, extensions=new["extensions"])
                for old, new in shown
            ]
        yield


class _TextFrames(ASGIWebSocketAdapter):
    """Frames are text, written to the socket's outlet; answers that are JSON already are not parsed again."""

    def __init__(self, view: Any, request: WebSocket, response: WebSocket) -> None:
        super().__init__(view, request, response)
        self.outlet = outlet_of(response)

    async def send_json(self, message: Mapping[str, object]) -> None:
        self.outlet.write(text_frame(orjson.dumps(message)))
        await self.outlet.drained()

    async def close(self, code: int, reason: str) -> None:
        with contextlib.suppress(RuntimeError):  # the socket was closed meanwhile, by us
            await super().close(code, reason)


class _Handler(BaseGraphQLTransportWSHandler[Run, None]):
    """A socket: authenticated once, watched as long as it is open."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.outlet = cast("_TextFrames", self.websocket).outlet
        self._members: dict[str, Member] = {}
        self._expires_at_s = 0.0
        self._expiry: asyncio.TimerHandle | None = None

    @property
    def account(self) -> Account:
        """Who has signed in; nobody else gets so far as to subscribe."""
        actor = self.context.known_actor
        return actor.account_id, actor.auth_version

    @property
    def reader(self) -> Reader:
        """They, for the access log; by the request that opened the socket."""
        actor = self.context.known_actor
        return reader_of(actor, request_id=actor.request_id, address=actor.address)

    # Messages

    async def handle_connection_init(self, message: Any) -> None:
        payload = message.get("payload") or {}
        if isinstance(payload, dict) and not self.connection_init_received:
            try:
                given = payload.get("authorization") or payload.get("Authorization") or ""
                token = bearer(str(given), self.context.services) or self._carried(payload)
            except NotAuthenticated:
                await self.websocket.close(_TOKEN_ENDED, "The access token is not good (any more).")
                return
            if token is not None:
                self.context.actor = replace(
                    token.actor, request_id=request_id.get(), address=address_of(self.context.connection)
                )
                self.context.services.accounts.add(self)
                self._expires_at_s = token.expires_at_s
                self._expire()
        await super().handle_connection_init(message)
        # Neither is of any use from now on; the second holds the token.
        self.connection_init_timeout_task = None
        self.context.connection_params = None

    def _carried(self, payload: dict[str, Any]) -> ReadToken | None:
        """The token of a browser's page, which cannot set header fields. Raises `NotAuthenticated`."""
        run = self.context
        run.carried = run.services.browsers.on_socket(run.connection, payload)
        return run.carried.token if run.carried else None

    async def handle_message(self, message: Any) -> None:
        if not isinstance(message, dict):
            await self.handle_invalid_message("A message is an object.")
            return
        try:
            await super().handle_message(cast("Message", message))
        except (TypeError, AttributeError):
            await self.handle_invalid_message("The message is malformed.")

    async def handle_subscribe(self, message: Any) -> None:
        payload = message["payload"]
        if not (
            isinstance(message["id"], str)
            and message["id"]
            and isinstance(payload.get("query") if payload.get("documentId") is None else "", str)
            and isinstance(payload.get("variables"), dict | None)
            and isinstance(payload.get("operationName"), str | None)
        ):
            await self.handle_invalid_message("The message is malformed.")
            return
        text = ""
        if self.connection_acknowledged:
            try:
                text = await document_of(self.context.services, payload)
            except (BadRequest, DatabaseUnavailable) as error:
                shown = [error.formatted] if isinstance(error, BadRequest) else errors_of(error)
                answer = {"id": message["id"], "type": "error", "payload": shown}
                await self.send_message(cast("Message", answer))
                return
        meant: Any = {**message, "payload": {**payload, "query": text}}
        await super().handle_subscribe(meant)

    async def run_operation(self, operation: Operation[Run, None]) -> None:
        run = copy.copy(self.context)  # which the socket does not keep
        name = operation.operation_name or None
        try:
            wanted = await asked(run, operation.query, name, operation.variables)
            if wanted is None:
                async with asyncio.timeout(run.services.settings.operation_timeout_s):
                    await super().run_operation(operation)
                return
            member = await run.services.watching.join(self, operation.id, wanted.question, wanted.after)
        except PlanError as error:
            errors = without_names(run, present(error.errors))
        except AccountChanged:
            dismiss(self)
            return
        except Exception as error:  # whatever it is, it is masked and has the socket's request id
            errors = errors_of(error)
        else:
            self._members[operation.id] = member
            # From here on its group knows what it needs.
            operation.query, operation.variables, operation.task = "", None, None
            return
        await operation.send_operation_message(
            cast("Message", {"id": operation.id, "type": "error", "payload": errors})
        )

    # What a group asks of its members' sockets

    def fail(self, operation_id: str, errors: list[dict[str, Any]]) -> None:
        """The operation has ended with these errors."""
        self._members.pop(operation_id, None)
        self.operations.pop(operation_id, None)
        self.outlet.write(text_frame(orjson.dumps({"id": operation_id, "type": "error", "payload": errors})))

    # Endings

    async def cleanup_operation(self, operation_id: str) -> None:
        member = self._members.pop(operation_id, None)
        if member is None:
            await super().cleanup_operation(operation_id)
        else:
            member.leave()
            del self.operations[operation_id]

    def _expire(self) -> None:
        """The socket is closed once its token has ended; by the clock on the wall, which may be set."""
        left = self._expires_at_s - time.time()
        if left > 0:
            self._expiry = asyncio.get_running_loop().call_later(left, self._expire)
        else:
            self.outlet.end(_TOKEN_ENDED, "The access token has ended.")

    async def shutdown(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self.context.actor is not None:
            self.context.services.accounts.remove(self)
        await super().shutdown()


class Sockets(GraphQL[Run, None]):
    """The WebSocket's route."""

    websocket_adapter_class = _TextFrames
    graphql_transport_ws_handler_class = _Handler

    def __init__(self, schema: strawberry.Schema, *, operations_per_socket: int, origin: str) -> None:
        super().__init__(
            schema,
            graphql_ide=None,
            allow_queries_via_get=False,
            subscription_protocols=(GRAPHQL_TRANSPORT_WS_PROTOCOL,),
            connection_init_wait_timeout=INIT_PATIENCE,
            max_subscriptions_per_connection=operations_per_socket,
            # Beside the one that the `Host` names; pages of others are refused with 403.
            allowed_origins=(origin,),
        )

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Run:
        return Run(request.app.state.services, request, None, language_of(request))

    def decode_json(self, data: str | bytes) -> object:
        return orjson.loads(data)
