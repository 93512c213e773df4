"""A page's socket is carried by the browser's cookies, and another site's page opens none of them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from ekoyka.database import Database
from ekoyka.identity.tables import Account
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.identity.test_sessions import PASSWORD, person
from tests.servers import Server, running

SIGN_IN = (
    "mutation ($e: String!, $p: String!) "
    "{ signIn(input: {email: $e, password: $p, browser: true}) { __typename } }"
)


async def signed_in(server: Server, account: Account) -> dict[str, str]:
    """The cookies of a sign-in, which a client for plain http would not send by itself: they are Secure."""
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post(
            "/graphql", json={"query": SIGN_IN, "variables": {"e": account.email, "p": PASSWORD}}
        )
    parts = [line.partition(";")[0].partition("=") for line in answer.headers.get_list("set-cookie")]
    return {name: value for name, _, value in parts}


@asynccontextmanager
async def opened(
    server: Server, cookies: dict[str, str], origin: str | None, payload: dict[str, Any]
) -> AsyncIterator[ClientConnection]:
    async with connect(
        server.url.replace("http", "ws") + "/graphql",
        subprotocols=[Subprotocol("graphql-transport-ws")],
        origin=Origin(origin) if origin else None,
        additional_headers={"cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())},
    ) as connection:
        await connection.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
        yield connection


async def asked(connection: ClientConnection, query: str) -> Any:
    """What the socket answers to an operation; the code with which it is closed instead, if it is."""
    try:
        assert orjson.loads(await connection.recv())["type"] == "connection_ack"
        body = {"id": "1", "type": "subscribe", "payload": {"query": query}}
        await connection.send(orjson.dumps(body).decode())
        return orjson.loads(await connection.recv())["payload"]
    except ConnectionClosed:
        return connection.close_code


@pytest.mark.parametrize("header", ["X-CSRF-Token", "x-csrf-token"])
async def test_a_page_of_the_servers_own_watches_and_changes_by_its_cookies(
    settings: Settings, make: Factory, header: str
) -> None:
    account = await person(make)
    async with running(settings) as [server]:
        cookies = await signed_in(server, account)
        async with opened(server, cookies, server.url, {header: cookies["ekoyka_csrf"]}) as socket:
            answer = await asked(socket, "{ me { id } }")

    assert answer["data"]["me"]["id"] == gid("Account", account)


async def test_another_sites_page_and_a_program_without_origin_get_nothing_by_them(
    settings: Settings, make: Factory
) -> None:
    account = await person(make)
    async with running(settings) as [server]:
        cookies = await signed_in(server, account)
        good = {"X-CSRF-Token": cookies["ekoyka_csrf"]}
        without_access = {name: value for name, value in cookies.items() if name != "ekoyka_access"}
        heard = {}
        for name, kept, origin, payload in (
            ("another host", cookies, "https://evil.example", good),
            ("another port", cookies, "http://127.0.0.1:1", good),
            ("a sandbox", cookies, "null", good),
            ("no origin", cookies, None, good),
            ("no CSRF token", cookies, server.url, {}),
            ("a wrong CSRF token", cookies, server.url, {"X-CSRF-Token": "x"}),
            ("a CSRF token of no kind", cookies, server.url, {"X-CSRF-Token": {"a": 1}}),
            ("a session to renew", without_access, server.url, good),
            ("a forged access token", {**cookies, "ekoyka_access": "a.b.c"}, server.url, good),
        ):
            try:
                async with opened(server, kept, origin, payload) as socket:
                    heard[name] = await asked(socket, "{ me { id } }")
            except InvalidStatus as refused:
                heard[name] = refused.response.status_code

    others = {"another host": 403, "another port": 403, "a sandbox": 403}
    assert heard == {name: others.get(name, 4401) for name in heard}
    assert len(heard) == 9


async def test_behind_a_proxy_the_pages_of_the_public_address_are_the_servers_own(
    settings: Settings, make: Factory
) -> None:
    account = await person(make)
    public = "https://beds.example.org"
    async with running(settings, EKOYKA_PUBLIC_URL=public) as [server]:
        cookies = await signed_in(server, account)
        beside = {"X-CSRF-Token": cookies["__Host-ekoyka_csrf"]}
        async with opened(server, cookies, public, beside) as socket:
            ours = await asked(socket, "{ me { id } }")
        async with opened(server, cookies, server.url, beside) as socket:
            by_its_host = await asked(socket, "{ me { id } }")

    assert ours["data"]["me"]["id"] == gid("Account", account)
    assert by_its_host == 4401


async def test_a_socket_with_a_bearer_token_takes_no_notice_of_cookies(
    settings: Settings, make: Factory
) -> None:
    account, program = await person(make), await person(make)
    async with running(settings) as [server]:
        cookies = await signed_in(server, account)
        async with httpx.AsyncClient(base_url=server.url) as http:
            form = {"grant_type": "password", "username": program.email, "password": PASSWORD}
            token = (await http.post("/auth/token", data=form)).json()["access_token"]
        async with opened(server, cookies, server.url, {"Authorization": f"Bearer {token}"}) as socket:
            answer = await asked(socket, "{ me { id } }")

    assert answer["data"]["me"]["id"] == gid("Account", program)


async def test_a_socket_sets_no_cookies_and_says_so(settings: Settings, make: Factory) -> None:
    account = await person(make)
    change = (
        f'mutation {{ passwordChange(input: {{password: "{PASSWORD}", newPassword: "{PASSWORD}!"}}) '
        "{ __typename ... on Invalid { path } } }"
    )
    async with running(settings) as [server]:
        cookies = await signed_in(server, account)
        async with opened(server, cookies, server.url, {"X-CSRF-Token": cookies["ekoyka_csrf"]}) as socket:
            answer = await asked(socket, change)

    assert answer["data"]["passwordChange"] == {"__typename": "Invalid", "path": ["browser"]}


async def test_a_blocked_account_is_dismissed_from_a_pages_socket_at_once(
    database: Database, settings: Settings, make: Factory
) -> None:
    account, boss = await person(make), await person(make, superadmin=True)
    async with running(settings) as [server]:
        cookies, theirs = await signed_in(server, account), await signed_in(server, boss)
        async with opened(server, cookies, server.url, {"X-CSRF-Token": cookies["ekoyka_csrf"]}) as socket:
            assert "data" in await asked(socket, "{ me { id } }")
            assert orjson.loads(await socket.recv())["type"] == "complete"
            async with httpx.AsyncClient(base_url=server.url) as http:
                await http.post(
                    "/graphql",
                    json={
                        "query": "mutation ($id: ID!) { accountBlock(input: {id: $id}) { __typename } }",
                        "variables": {"id": gid("Account", account)},
                    },
                    headers={
                        "cookie": f"ekoyka_access={theirs['ekoyka_access']}",
                        "x-csrf-token": theirs["ekoyka_csrf"],
                    },
                )
            with pytest.raises(ConnectionClosed):
                await socket.recv()

    assert socket.close_code == 4403
