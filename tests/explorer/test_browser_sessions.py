"""Sessions as a real browser carries them, on the real server in production mode."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from playwright.async_api import expect

from ekoyka.database import Database
from ekoyka.identity.tables import Account
from ekoyka.settings import Settings
from tests.client import gid
from tests.explorer.browser import Explorer, visiting
from tests.explorer.tls import over_tls
from tests.factories import Factory
from tests.identity.providers import CLIENT_ID, CLIENT_SECRET, certified
from tests.servers import free_port, running

PASSWORD = "correct horse"


@pytest.fixture
async def staff(make: Factory) -> Account:
    """A superadministrator who can sign in."""
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    return await make.account(superadmin=True, password_hash=hashed, email="boss@example.org")


async def sign_in(seen: Explorer, account: Account, password: str = PASSWORD) -> None:
    await seen.page.get_by_label("E-mail").fill(account.email)
    await seen.page.get_by_label("Password").fill(password)
    await seen.page.get_by_role("button", name="Sign in").click()


async def cookies(seen: Explorer) -> dict[str, Any]:
    """The cookies that the browser keeps, by their names."""
    return {str(item.get("name")): item for item in await seen.page.context.cookies()}


@pytest.mark.parametrize("secure", [False, True], ids=["this machine", "over TLS"])
async def test_staff_signs_in_asks_changes_watches_and_signs_out(
    settings: Settings,
    database: Database,
    make: Factory,
    staff: Account,
    tmp_path: Path,
    secure: bool,
) -> None:
    place = await make.dispensary(name="Наркологический диспансер № 1")
    bed = await make.bed(place)
    port = free_port()
    public = {"EKOYKA_PUBLIC_URL": f"https://localhost:{port}"} if secure else {}
    async with running(settings, 1, **public) as [server], contextlib.AsyncExitStack() as stack:
        url = public.get("EKOYKA_PUBLIC_URL", server.url)
        if secure:
            await stack.enter_async_context(over_tls(port, server.port, tmp_path))
        seen = await stack.enter_async_context(visiting(url))
        page = seen.page
        await page.goto(f"{url}/graphql")
        await expect(page.get_by_role("heading", name="Вход в ЭКойку")).to_be_visible()
        await seen.screenshot(tmp_path / f"door-{secure}.png")
        await sign_in(seen, staff, "wrong horse")
        await expect(page.get_by_role("alert")).to_contain_text("password is wrong")
        await sign_in(seen, staff)
        await seen.shown()
        kept = await cookies(seen)
        by_scripts = await page.evaluate("document.cookie")

        await seen.write("{ dispensaries(first: 5) { edges { node { name } } } }")
        await seen.run()
        asked = await seen.result(containing="edges")
        await seen.screenshot(tmp_path / f"explorer-{secure}.png")
        await seen.write(
            f'mutation {{ bedSetServiceState(input: {{id: "{gid("Bed", bed)}", state: CLEANING}}) '
            "{ ... on Bed { status } ... on Refusal { code } } }"
        )
        await seen.run()
        changed = await seen.result(containing="bedSetServiceState")
        await seen.write(
            f'subscription {{ bedAvailability(dispensaryId: "{gid("Dispensary", place)}") '
            "{ kind counts { cleaning } } }"
        )
        await seen.run()
        watched = await seen.result(containing="SNAPSHOT")
        await page.locator(".graphiql-execute-button").click()  # stops it

        # The access token is gone, as after ten minutes: the page renews the session by itself, once for all of them.
        await page.context.clear_cookies(name=next(name for name in kept if name.endswith("access")))
        second = await page.context.new_page()
        await second.goto(f"{url}/graphql")
        await expect(second.locator(".graphiql-query-editor .view-line").first).to_be_visible()
        await seen.write("{ me { email } }")
        await seen.run()
        renewed = await seen.result(containing="email")
        await seen.write("mutation { signOut(input: {}) { ... on SignedOut { done } } }")
        await seen.run()
        await seen.result(containing="done")
        left = await cookies(seen)
        await page.goto(f"{url}/graphql")
        await expect(page.get_by_role("heading", name="Вход в ЭКойку")).to_be_visible()

    prefix = "__Host-" if secure else ""
    assert set(kept) == {f"{prefix}ekoyka_{name}" for name in ("access", "refresh", "csrf")}
    for name, cookie in kept.items():
        assert (cookie["sameSite"], cookie["secure"], cookie["path"]) == ("Strict", True, "/")
        assert cookie["httpOnly"] == (not name.endswith("csrf"))
    assert by_scripts == f"{prefix}ekoyka_csrf={kept[f'{prefix}ekoyka_csrf']['value']}"
    assert asked["data"]["dispensaries"]["edges"] == [{"node": {"name": "Наркологический диспансер № 1"}}]
    assert changed["data"] == {"bedSetServiceState": {"status": "CLEANING"}}
    assert watched["data"]["bedAvailability"] == {"kind": "SNAPSHOT", "counts": {"cleaning": 1}}
    assert renewed["data"] == {"me": {"email": staff.email}}
    assert left == {}
    assert seen.outside == []
    assert seen.complaints == []
    assert not await database.fetch("SELECT FROM session WHERE ended_at IS NULL")


ATTACK = """
async ([victim, document]) => {
  const body = JSON.stringify({ query: document });
  const csrf = document_cookie("csrf");
  function document_cookie(part) {
    return window.document.cookie.split("; ").find((item) => item.includes(part))?.split("=")[1] ?? "";
  }
  const tries = {
    json: { headers: { "Content-Type": "application/json" } },
    "with the token": { headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf } },
    "as text": { headers: { "Content-Type": "text/plain" }, mode: "no-cors" },
    "as a form": { headers: { "Content-Type": "application/x-www-form-urlencoded" }, mode: "no-cors" },
  };
  const told = {};
  for (const [name, how] of Object.entries(tries)) {
    told[name] = await fetch(victim + "/graphql", { method: "POST", credentials: "include", body, ...how }).then(
      (answer) => `answered ${answer.type}`,
      () => "refused",
    );
  }
  await fetch(victim + "/graphql", { credentials: "include", mode: "no-cors" }).catch(() => null);
  told.socket = await new Promise((resolve) => {
    const socket = new WebSocket(victim.replace("http", "ws") + "/graphql", "graphql-transport-ws");
    socket.onopen = () => socket.send(JSON.stringify({ type: "connection_init", payload: { "X-CSRF-Token": csrf } }));
    socket.onmessage = ({ data }) => resolve(data);
    socket.onclose = ({ code }) => resolve(`closed ${code}`);
  });
  return [csrf, told];
}
"""
FORM = """
<form method="post" enctype="text/plain" action="%s/graphql">
<input name='{"query":"mutation { accountUpdate(input: {version: 1, name: \\"Pwned\\"}) { __typename } }","x":"'
  value='"}'>
</form><script>document.forms[0].submit()</script>
"""


@asynccontextmanager
async def evil(html: str) -> AsyncIterator[str]:
    """Another origin on this machine: the same site to a browser, so that even strict cookies come along."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = html.encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


async def test_a_page_of_another_origin_changes_nothing_and_learns_nothing(
    settings: Settings, database: Database, staff: Account
) -> None:
    document = 'mutation { accountUpdate(input: {version: 1, name: "Pwned"}) { __typename } }'
    async with (
        running(settings) as [server],
        evil("<p>evil") as other,
        evil(FORM % server.url) as form,
        visiting(server.url, also=(other, form)) as seen,
    ):
        await seen.page.goto(f"{server.url}/graphql")
        await sign_in(seen, staff)
        await seen.shown()
        posted: list[bool] = []
        seen.page.context.on(
            "request",
            lambda request: posted.append(request.method == "POST" and request.url.startswith(server.url)),
        )
        await seen.page.goto(other)
        csrf, told = await seen.page.evaluate(ATTACK, [server.url, document])
        await seen.page.goto(form)
        await seen.page.wait_for_url(f"{server.url}/graphql")
        by_form = await seen.page.content()

        await seen.page.goto(f"{server.url}/graphql")
        await seen.shown()
        await seen.write("{ me { name version } }")
        await seen.run()
        still = await seen.result(containing="version")

    assert len(csrf) == 43  # a port is no wall between cookies: the attacker did read the token
    assert told == {
        "json": "refused",
        "with the token": "refused",
        "as text": "refused",
        "as a form": "refused",
        "socket": "closed 1006",
    }
    assert sum(posted) >= 3  # what needed no preflight did come to the server
    assert "UNSUPPORTED_MEDIA_TYPE" in by_form
    assert still["data"]["me"] == {"name": "Иванова Анна", "version": 1}
    assert await database.fetch_value("SELECT count(*) FROM session WHERE ended_at IS NULL") == 1


async def test_whoever_comes_back_from_the_identity_provider_is_signed_in(
    settings: Settings, database: Database, staff: Account, tmp_path: Path
) -> None:
    """The provider is of another site to the browser, so that it brings no strict cookie back."""
    port = free_port()
    async with certified(settings.model_copy(update={"port": port}), host="localhost") as beside:
        environment = {
            "EKOYKA_PORT": str(port),
            "EKOYKA_OIDC_ISSUER": str(beside.oidc_issuer),
            "EKOYKA_OIDC_CLIENT_ID": CLIENT_ID,
            "EKOYKA_OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "EKOYKA_OIDC_LINKS_ACCOUNTS": "true",
        }
        async with (
            running(settings, 1, **environment) as [server],
            visiting(server.url, also=(str(beside.oidc_issuer),)) as seen,
        ):
            page = seen.page
            await page.goto(f"{server.url}/graphql")
            await seen.screenshot(tmp_path / "door-with-provider.png")
            await page.get_by_role("link", name="Sign in with localhost").click()
            await page.get_by_placeholder("Enter any login").fill(f"7:{staff.email}")
            await page.get_by_placeholder("and password").fill("any")
            await page.get_by_role("button", name="Sign-in").click()
            await page.get_by_role("button", name="Continue").click()
            await seen.shown()
            address = page.url
            await seen.write("{ me { email sessions { current } } }")
            await seen.run()
            me = await seen.result(containing="sessions")
            kept = await cookies(seen)

    assert address == f"{server.url}/graphql"
    assert me["data"]["me"] == {"email": staff.email, "sessions": [{"current": True}]}
    assert {name for name in kept if name.startswith("ekoyka")} == {
        "ekoyka_access",
        "ekoyka_refresh",
        "ekoyka_csrf",
    }
