"""GraphQL over WebSocket: graphql-transport-ws, on which feeds stay open all day.

Strawberry speaks the protocol and runs queries and mutations. Subscriptions join a group of `watching`: an
idle one has no task. Whatever ends a socket has a code:

- 4400 a message is malformed; 1002, 1007, 1009 it is no WebSocket's, no UTF-8, too large
- 4401 nobody has been introduced, or the token is not good (any more)
- 4403 the account was blocked or its roles have changed, or another account's token was sent
- 4406 another protocol
- 4408 the introduction, a message or the answer to a ping takes too long
- 4409 the id is in use
- 4413 the client reads too slowly
- 4429 too many sockets, messages or introductions
- 1012, 1013 come back, now or in a moment
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
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

from ekoyka.api.accounts import ACCOUNT_CHANGED, Account, dismiss
from ekoyka.api.clients import address_of
from ekoyka.api.context import Run
from ekoyka.api.endpoint import bearer, language_of, without_names
from ekoyka.api.outlets import COME_BACK, TOO_MANY, outlet_of, text_frame
from ekoyka.api.presentation import present
from ekoyka.api.requests import BadRequest, document_of
from ekoyka.api.subscriptions import asked
from ekoyka.api.watching import AccountChanged, Member, errors_of
from ekoyka.database import DatabaseUnavailable
from ekoyka.graph.plan import PlanError
from ekoyka.identity.credentials import NotAuthenticated, ReadToken
from ekoyka.identity.readings import Reader, reader_of
from ekoyka.observability import request_id
from ekoyka.tally import Bound, Full

if TYPE_CHECKING:
    from strawberry.subscriptions.protocols.graphql_transport_ws.types import Message

_MALFORMED, _UNAUTHORIZED, _IN_USE, _LATER = 4400, 4401, 4409, 1013
_TOKEN_NOT_GOOD = "The access token is not good (any more)."  # noqa: S105 -- it is none
INIT_PATIENCE = timedelta(seconds=10)
# So long a socket waits for a server that has just started.
_PREPARED_S = 5.0
# Each frame of an operation repeats its id.
LONGEST_ID = 200


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
        self.outlet.end(code, reason)
        await self.outlet.drained()


class _Operation(Operation[Run, None]):
    """An operation whose document may have to be looked up: what the client sent."""

    __slots__ = ("payload",)

    payload: dict[str, Any]


class _Handler(BaseGraphQLTransportWSHandler[Run, None]):
    """A socket: counted and watched as long as it is open."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.outlet = cast("_TextFrames", self.websocket).outlet
        self._members: dict[str, Member] = {}
        self._bounds: tuple[Bound, ...] = ()
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

    async def handle(self) -> None:
        """The socket is heard until it ends. Of one address this process hears so many, introduced or not."""
        settings, here = self.context.services.settings, cast("Sockets", self.view).by_address
        address = address_of(self.context.connection) or "?"
        if not await _within(_PREPARED_S, self.context.connection.app.state.prepared):
            await self.websocket.close(_LATER, "The server is waiting for its database: come back.")
        elif here[address] >= settings.sockets_per_address:
            await self.websocket.close(TOO_MANY, _too_many("address"))
        else:
            here[address] += 1
            try:
                await super().handle()
            finally:
                here[address] -= 1
                if not here[address]:
                    del here[address]

    # Messages

    async def handle_connection_init(self, message: Any) -> None:
        if self.connection_init_received:
            await self.websocket.close(TOO_MANY, "connection_init is sent once.")
            return
        self.connection_init_received = True
        # Of no use from now on.
        if self.connection_init_timeout_task is not None:
            self.connection_init_timeout_task.cancel()
            self.connection_init_timeout_task = None
        try:
            payload = message.get("payload") or {}
            token = bearer(_authorization(payload), self.context.services) or self._carried(payload)
        except NotAuthenticated:
            await self.websocket.close(_UNAUTHORIZED, _TOKEN_NOT_GOOD)
            return
        if not await self._has_room(token):
            return
        if token is not None:
            self._sign_in(token)
            self.context.services.accounts.add(self)
            self._expire()
        await self.send_message({"type": "connection_ack"})
        self.connection_acknowledged = True

    async def _has_room(self, token: ReadToken | None) -> bool:
        """Whether the socket is one of as many as its address and its account may have; otherwise it is closed."""
        settings = self.context.services.settings
        address = address_of(self.context.connection) or "?"
        bounds = [Bound("address", address, settings.sockets_per_address)]
        if token is not None:
            bounds.append(Bound("account", str(token.actor.account_id), settings.sockets_per_account))
        try:
            await self.context.services.sockets.enter(*bounds)
        except Full as full:
            await self.websocket.close(TOO_MANY, _too_many(full.bound.kind))
            return False
        except DatabaseUnavailable:
            await self.websocket.close(_LATER, "The database cannot be reached right now: come back.")
            return False
        self._bounds = tuple(bounds)
        return True

    def _sign_in(self, token: ReadToken) -> None:
        """The socket is the token's actor's until the last of its tokens ends."""
        self.context.actor = replace(
            token.actor, request_id=request_id.get(), address=address_of(self.context.connection)
        )
        self._expires_at_s = max(self._expires_at_s, token.expires_at_s)

    def _carried(self, payload: dict[str, Any]) -> ReadToken | None:
        """The token of a browser's page, which cannot set header fields. Raises `NotAuthenticated`."""
        run = self.context
        run.carried = run.services.browsers.on_socket(run.connection, payload)
        return run.carried.token if run.carried else None

    async def handle_message(self, message: Any) -> None:
        if self.outlet.closed():  # what came behind the message that closed it
            return
        if isinstance(message, dict) and isinstance(message.get("payload"), dict | None):
            await super().handle_message(cast("Message", message))
        else:
            await self.handle_invalid_message("A message is an object, and so is its payload")

    async def handle_invalid_message(self, error_message: str) -> None:
        # Without what was sent, which may be long.
        await self.websocket.close(_MALFORMED, error_message.partition(":")[0])

    async def handle_ping(self, message: Any) -> None:
        """A ping is answered; with a token of the same account, the socket stays open until that one ends."""
        payload = message.get("payload") or {}
        if payload.keys().isdisjoint(_AUTHORIZATION):
            await self.send_message({"type": "pong"})
            return
        try:
            token = bearer(_authorization(payload), self.context.services)
        except NotAuthenticated:
            token = None
        actor = self.context.actor
        if token is None or not self.connection_acknowledged:
            await self.websocket.close(_UNAUTHORIZED, _TOKEN_NOT_GOOD)
        elif actor is None or (token.actor.account_id, token.actor.auth_version) != self.account:
            # Whatever it watches was planned for the account and roles of the first token.
            await self.websocket.close(ACCOUNT_CHANGED, "The token is of another account or of other roles.")
        else:
            self._sign_in(token)
            expires_at = datetime.fromtimestamp(self._expires_at_s, UTC).isoformat()
            await self.send_message({"type": "pong", "payload": {"expiresAt": expires_at}})

    async def handle_complete(self, message: Any) -> None:
        if isinstance(message["id"], str):
            await super().handle_complete(message)
        else:
            await self.handle_invalid_message("An id is text")

    async def handle_subscribe(self, message: Any) -> None:
        key, payload, most = message["id"], message["payload"], self.max_subscriptions_per_connection
        if not (
            isinstance(key, str)
            and 0 < len(key) <= LONGEST_ID
            and isinstance(payload, dict)
            and isinstance(payload.get("query") if payload.get("documentId") is None else "", str)
            and isinstance(payload.get("variables"), dict | None)
            and isinstance(payload.get("operationName"), str | None)
        ):
            await self.handle_invalid_message("The message is malformed")
        elif not self.connection_acknowledged:
            await self.websocket.close(_UNAUTHORIZED, "connection_init comes first.")
        elif key in self.operations:
            await self.websocket.close(_IN_USE, "An operation with this id is under way.")
        elif most is not None and len(self.operations) >= most:
            said = f"At most {most} operations are under way on one socket at once."
            errors = [{"message": said, "extensions": {"code": "RATE_LIMITED"}}]
            await self.send_message(cast("Message", {"id": key, "type": "error", "payload": errors}))
        else:
            operation = _Operation(self, key, "", payload.get("variables"), payload.get("operationName"))
            operation.payload = payload
            operation.task = asyncio.create_task(self.run_operation(operation))
            operation.task.add_done_callback(self._task_done)
            self.operations[key] = operation

    async def run_operation(self, operation: Operation[Run, None]) -> None:
        run = copy.copy(self.context)  # which the socket does not keep
        name = operation.operation_name or None
        try:
            async with asyncio.timeout(run.services.settings.operation_timeout_s):
                operation.query = await document_of(run.services, cast("_Operation", operation).payload)
                wanted = await asked(run, operation.query, name, operation.variables)
                if wanted is None:
                    await super().run_operation(operation)
                    return
                member = await run.services.watching.join(self, operation.id, wanted.question, wanted.after)
        except BadRequest as error:
            errors = [error.formatted]
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
            cast("_Operation", operation).payload = {}
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
            self.outlet.end(_UNAUTHORIZED, "The access token has ended.")

    async def shutdown(self) -> None:
        try:
            if self.outlet.stopping:
                await self._finish()
        finally:
            if self._expiry is not None:
                self._expiry.cancel()
            if self.context.actor is not None:
                self.context.services.accounts.remove(self)
            if self._bounds:
                self.context.services.sockets.leave(*self._bounds)
            await super().shutdown()

    async def _finish(self) -> None:
        """The server stops: what has begun is answered, by name where the server can wait no longer."""
        running = {key: operation.task for key, operation in self.operations.items() if operation.task}
        try:
            if running:
                await asyncio.wait(running.values())
        finally:
            for key, task in running.items():
                if not task.done():
                    answer = {"id": key, "type": "error", "payload": errors_of(TimeoutError())}
                    self.outlet.write(text_frame(orjson.dumps(answer)))
            self.outlet.end(COME_BACK, "The server stops: come back.")


async def _within(seconds: float, event: asyncio.Event) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


_AUTHORIZATION = ("authorization", "Authorization")


def _authorization(payload: Mapping[str, Any]) -> str:
    return str(next((payload[name] for name in _AUTHORIZATION if payload.get(name)), ""))


def _too_many(of: str) -> str:
    return f"There are as many sockets of this {of} as there may be: close some, or use those."


class Sockets(GraphQL[Run, None]):
    """The WebSocket's route."""

    websocket_adapter_class = _TextFrames
    graphql_transport_ws_handler_class = _Handler
    by_address: Counter[str]

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
        self.by_address = Counter()

    async def get_context(self, request: Request | WebSocket, response: Response | WebSocket) -> Run:
        return Run(request.app.state.services, request, None, language_of(request))

    def decode_json(self, data: str | bytes) -> object:
        return orjson.loads(data)
