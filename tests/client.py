"""The application as a client sees it, in this process: the real routes over the test's database."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.requests import HTTPConnection

from ekoyka.api.context import Run, Services
from ekoyka.app import create_app
from ekoyka.graph.ids import encode
from ekoyka.identity.actors import Actor
from ekoyka.settings import Settings

REFUSED = "__typename ... on Refusal { code message path }"


def gid(type_name: str, row: Any) -> str:
    """The global id of a row, or of a key."""
    return encode(type_name, row if isinstance(row, int) else row.id)


class Browser:
    """A page of the server's own in a browser: keeps cookies and says the CSRF token beside them."""

    def __init__(self, client: "Client", origin: str = "https://ward.test") -> None:
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=client.app), base_url=origin)
        self.browsers = client.services.browsers

    def cookie(self, name: str) -> str | None:
        """What the browser keeps under this name, without its prefix."""
        return self.http.cookies.get(getattr(self.browsers, name))

    def put(self, name: str, value: str) -> None:
        """The browser keeps this under the name, instead of what was there."""
        self.http.cookies.set(getattr(self.browsers, name), value, domain=self.http.base_url.host)

    async def ask(
        self, query: str, *, headers: dict[str, str] | None = None, **variables: Any
    ) -> httpx.Response:
        """The answer to an operation; the headers are those of a page unless others are given."""
        own = {"x-csrf-token": self.cookie("csrf") or "", "origin": str(self.http.base_url).rstrip("/")}
        return await self.http.post(
            "/graphql",
            json={"query": query, "variables": variables},
            headers=own if headers is None else headers,
        )

    async def data(self, query: str, **variables: Any) -> Any:
        """The only field of the answer; there must be no error."""
        answer = (await self.ask(query, **variables)).json()
        assert "errors" not in answer, answer["errors"]
        [value] = answer["data"].values()
        return value

    async def sign_in(self, email: str, password: str) -> httpx.Response:
        """A sign-in that is carried by cookies from now on."""
        return await self.ask(
            "mutation ($e: String!, $p: String!) { signIn(input: {email: $e, password: $p, browser: true}) "
            "{ __typename ... on BrowserSession { expiresAt endsAt account { name } } ... on Refusal { code } } }",
            e=email,
            p=password,
        )


class Client:
    """Sends operations and gives their answers."""

    def __init__(self, app: Starlette, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http
        self.services: Services = app.state.services

    def token(self, actor: Actor) -> str:
        """An access token of the actor."""
        return self.services.tokens.issue(actor).text

    async def post(self, query: str, actor: Actor | None = None, **variables: Any) -> dict[str, Any]:
        """The whole answer."""
        headers = {"authorization": f"Bearer {self.token(actor)}"} if actor else {}
        answer = await self.http.post(
            "/graphql", json={"query": query, "variables": variables}, headers=headers
        )
        body: dict[str, Any] = answer.json()
        return body

    async def data(self, query: str, actor: Actor | None = None, **variables: Any) -> dict[str, Any]:
        """The answer's data; there must be no error."""
        answer = await self.post(query, actor, **variables)
        assert "errors" not in answer, answer["errors"]
        data: dict[str, Any] = answer["data"]
        return data

    async def codes(self, query: str, actor: Actor | None = None, **variables: Any) -> list[str]:
        """The codes of the answer's errors."""
        answer = await self.post(query, actor, **variables)
        return [error["extensions"]["code"] for error in answer.get("errors", [])]

    async def mutate(
        self, name: str, selection: str, input: dict[str, Any], actor: Actor | None = None
    ) -> dict[str, Any]:
        """A mutation's result, with a refusal's code, message and path."""
        type_name = f"{name[0].upper()}{name[1:]}Input"
        field = self.app.state.schema.get_type_by_name("Mutation").get_field(name)
        if field is not None:
            type_name = field.arguments[0].type.__strawberry_definition__.name
        query = f"mutation ($input: {type_name}!) {{ {name}(input: $input) {{ {REFUSED} {selection} }} }}"
        result: dict[str, Any] = (await self.data(query, actor, input=input))[name]
        return result


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Client]:
    """The application, started and ready."""
    app = create_app(settings)
    async with LifespanManager(app) as manager:
        await app.state.prepared.wait()
        async with asyncio.timeout(30):
            while not app.state.services.feed.connected:  # noqa: ASYNC110 -- it tells nobody
                await asyncio.sleep(0.005)
        transport = httpx.ASGITransport(app=manager.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield Client(app, http)


def context(client: Client, actor: Actor | None, *, compiled: bool) -> Run:
    """A context for running the schema itself, by compiled statements or by Strawberry's own executor."""
    # An address of its own: how often somebody asks is not what such tests are about.
    nobody = HTTPConnection({"type": "http", "headers": [], "client": (uuid.uuid4().hex, 0)})
    return Run(client.services, nobody, actor, "ru", compiled=compiled)
