"""A small server with the explorer in front of a made-up graph."""

import asyncio
import secrets
import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from threading import Thread
from typing import Annotated, Any

import pytest
import strawberry
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from strawberry.asgi import GraphQL
from strawberry.subscriptions import GRAPHQL_TRANSPORT_WS_PROTOCOL

from ekoyka import explorer

_watchers: set[asyncio.Queue[int]] = set()


@strawberry.type
class BedCounts:
    total: int
    free: int


@strawberry.type
class Dispensary:
    id: strawberry.ID
    name: str
    bed_counts: BedCounts


@strawberry.type
class Edge:
    node: Dispensary


@strawberry.type
class Connection:
    edges: list[Edge]


@strawberry.interface
class Refusal:
    message: str


@strawberry.type
class CredentialsWrong(Refusal):
    pass


@strawberry.type
class Tokens:
    access_token: str


@strawberry.input
class SignInInput:
    email: str
    password: str


@strawberry.type
class Query:
    @strawberry.field
    def dispensaries(self, first: int = 20) -> Connection:
        node = Dispensary(
            id=strawberry.ID("1"), name="Наркологический диспансер № 1", bed_counts=BedCounts(total=8, free=3)
        )
        return Connection(edges=[Edge(node=node)][:first])

    @strawberry.field
    def authorization(self, info: strawberry.Info[Any]) -> str | None:
        request: Request = info.context["request"]
        return request.headers.get("authorization")

    @strawberry.field
    def broken(self) -> str:
        raise ValueError("Такой койки нет.")


@strawberry.type
class Mutation:
    @strawberry.mutation
    def sign_in(
        self, input: SignInInput
    ) -> Annotated[Tokens | CredentialsWrong, strawberry.union("SignInResult")]:
        if input.password == "верный":
            return Tokens(access_token=f"token-of-{input.email}")
        return CredentialsWrong(message="Почта или пароль неверны.")

    @strawberry.mutation
    async def bed_free(self, free: int) -> BedCounts:
        for watcher in _watchers:
            watcher.put_nowait(free)
        return BedCounts(total=8, free=free)


@strawberry.type
class Event:
    free: int
    authorization: str | None


@strawberry.type
class Subscription:
    @strawberry.subscription
    async def bed_availability(self, info: strawberry.Info[Any]) -> AsyncGenerator[Event, None]:
        authorization = info.context["connection_params"].get("Authorization")
        watcher: asyncio.Queue[int] = asyncio.Queue()
        _watchers.add(watcher)
        try:
            yield Event(free=3, authorization=authorization)
            while True:
                yield Event(free=await watcher.get(), authorization=authorization)
        finally:
            _watchers.discard(watcher)


async def _page(request: Request) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    policy = {"content-security-policy": explorer.content_security_policy(nonce)}
    return HTMLResponse(explorer.page(nonce=nonce), headers=policy)


@pytest.fixture
def served() -> Iterator[str]:
    """The origin of a running server."""
    schema = strawberry.Schema(Query, Mutation, Subscription)
    endpoint: GraphQL[Any, Any] = GraphQL(
        schema, graphql_ide=None, subscription_protocols=[GRAPHQL_TRANSPORT_WS_PROTOCOL]
    )
    static = Path(explorer.__file__).parent.parent / "static"
    app = Starlette(
        routes=[
            Route("/graphql", _page, methods=["GET"]),
            Route("/graphql", endpoint, methods=["POST"]),
            WebSocketRoute("/graphql", endpoint),
            Mount("/static", StaticFiles(directory=static, check_dir=False)),
        ]
    )
    config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()
