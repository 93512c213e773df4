"""Every answer says what browsers may do with it, whoever made it: routes, errors, files, sockets."""

import asyncio
from pathlib import Path

import httpx
import pytest
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from ekoyka.settings import Settings
from tests.api.matrix import ROUTES
from tests.client import Client, serving
from tests.factories import Factory
from tests.servers import running

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def checked(answer: httpx.Response) -> None:
    """The answer has all that every answer has, once."""
    where = (answer.request.method, answer.request.url.path, answer.status_code)
    for name, value in EVERYWHERE.items():
        assert answer.headers.get_list(name) == [value], (*where, name)
    [policy] = answer.headers.get_list("content-security-policy")
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert directives["default-src"] == "'none'", where
    if "application/pdf" not in answer.headers.get("content-type", ""):
        assert (
            directives["frame-ancestors"] == directives["base-uri"] == directives["form-action"] == "'none'"
        ), where
    assert "unsafe-eval" not in policy, where
    assert [name for name in directives if "unsafe-inline" in directives[name]] in ([], ["style-src-attr"]), (
        where
    )
    assert len(answer.headers.get_list("cache-control")) == 1, where
    assert not [name for name in answer.headers if name.startswith("access-control-")], where
    assert answer.headers.get_list("x-request-id"), where


async def test_every_route_and_every_refusal_has_them(client: Client, make: Factory) -> None:
    admin = {"authorization": f"Bearer {client.token(await make.actor(superadmin=True))}"}
    ask = client.http.request
    seen = set()
    for route in client.app.routes:
        if isinstance(route, Route):
            for method in route.methods or ():
                for accept in ("application/json", "text/html", "*/*"):
                    path = route.path.replace("{name}", "1-2-3").replace("{code}", "nobody")
                    checked(await ask(method, path, headers={"accept": accept}))
                seen.add(f"{method} {route.path}")
        elif isinstance(route, Mount):
            seen.add(f"GET {route.path}")
    assert {line for line in ROUTES if not line.startswith("WEBSOCKET")} <= seen

    for method, path, options in (
        ("POST", "/graphql", {"json": {"query": "{ me { id } }"}, "headers": admin}),
        ("POST", "/graphql", {"json": {"query": "{ me { id } }"}}),
        ("POST", "/graphql", {"json": {"query": "{"}}),
        ("POST", "/graphql", {"json": []}),
        ("POST", "/graphql", {"content": b"x"}),
        ("POST", "/graphql", {"json": {"query": "#" * 100_000}}),
        ("POST", "/graphql", {"json": {"query": "{ me { id } }"}, "headers": {"authorization": "Bearer x"}}),
        ("POST", "/auth/token", {"data": {"x": "y" * 100_000}}),
        ("GET", "/nowhere", {}),
        ("GET", "/static/nothing.js", {}),
        ("PUT", "/graphql", {}),
        ("OPTIONS", "/graphql", {}),
        ("DELETE", "/auth/token", {}),
        ("TRACE", "/", {}),
    ):
        checked(await ask(method, path, **options))
    client.app.state.prepared.clear()
    checked(await ask("POST", "/graphql", json={"query": "{ me { id } }"}))


async def test_what_goes_wrong_unexpectedly_has_them_too(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("broken")

    [route] = [route for route in client.app.routes if getattr(route, "path", "") == "/healthz"]
    monkeypatch.setattr(route, "app", broken)

    answer = await client.http.get("/healthz")

    assert (answer.status_code, answer.json()["errors"][0]["extensions"]["code"]) == (500, "INTERNAL")
    checked(answer)


async def test_nothing_is_kept_but_files_that_never_change(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [static] = [route.app for route in client.app.routes if isinstance(route, Mount)]
    (tmp_path / "explorer.js").write_text("1")
    monkeypatch.setattr(static, "all_directories", [tmp_path])

    kept = await client.http.get("/static/explorer.js")
    again = await client.http.get(
        "/static/explorer.js", headers={"if-none-match": kept.headers.get("etag", "")}
    )
    missing = await client.http.get("/static/other.js")

    assert (kept.status_code, again.status_code, missing.status_code) == (200, 304, 404)
    for answer in (kept, again, missing):
        checked(answer)
    assert kept.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert missing.headers["cache-control"] == "no-store"
    for path in ("/graphql", "/readyz", "/verify/x"):
        assert (await client.http.get(path)).headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/graphql", "/auth/token", "/verify/x", "/static/x", "/nowhere"])
async def test_a_preflight_is_refused_by_name(client: Client, path: str) -> None:
    answer = await client.http.options(
        path,
        headers={
            "origin": "https://evil.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,x-csrf-token",
        },
    )

    assert answer.status_code in (404, 405)
    assert answer.json()["errors"][0]["extensions"]["code"] in ("METHOD_NOT_ALLOWED", "NOT_FOUND")
    checked(answer)


async def test_browsers_are_told_to_stay_with_tls_where_the_public_address_is_over_tls(
    client: Client, settings: Settings
) -> None:
    async with serving(settings.model_copy(update={"public_url": "https://beds.example.org"})) as secure:
        answers = [await secure.http.get(path) for path in ("/healthz", "/nowhere")]
        answers.append(await secure.http.post("/graphql", json={"query": "{ __typename }"}))
    for answer in answers:
        assert answer.headers.get_list("strict-transport-security") == ["max-age=31536000"]
        checked(answer)
    assert "strict-transport-security" not in (await client.http.get("/healthz")).headers


async def test_sockets_handshakes_and_what_is_not_even_http_have_them(settings: Settings) -> None:
    async with running(settings, EKOYKA_PUBLIC_URL="https://beds.example.org") as [server]:
        async with connect(
            server.url.replace("http", "ws") + "/graphql", subprotocols=[Subprotocol("graphql-transport-ws")]
        ) as socket:
            assert socket.response is not None
            handshake = {name.lower(): value for name, value in socket.response.headers.raw_items()}
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"no HTTP at all\r\n\r\n")
        raw = (await asyncio.wait_for(reader.read(), 10)).decode()
        writer.close()

    assert handshake["strict-transport-security"] == "max-age=31536000"
    assert raw.startswith("HTTP/1.1 400 ")
    assert '"code":"BAD_REQUEST"' in raw
    for name, value in EVERYWHERE.items():
        assert handshake[name] == value
        assert f"\r\n{name}: {value}\r\n" in raw
