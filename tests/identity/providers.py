"""Real OpenID Connect providers for tests: a certified one, run by node, and one that says whatever it is told to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urljoin

import httpx
import pytest

from ekoyka.settings import Settings
from tests.servers import free_port

HERE = Path(__file__).parent / "provider"
KEPT = Path(__file__).parents[2] / ".data" / "test-provider"
CLIENT_ID, CLIENT_SECRET = "ekoyka", "a secret that both know"


def _installed() -> Path:
    """The provider's folder, installed once for each lock. Skips the test where there is no node."""
    # The README asks for Python and make alone; where everything is checked there is node.
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip(
            "No node was found: the OpenID Connect provider of the tests runs on node 20.11 or newer."
        )
    lock = (HERE / "package-lock.json").read_bytes()
    made = KEPT / hashlib.sha256(lock).hexdigest()[:12]
    if not made.exists():
        KEPT.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=KEPT))
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(HERE / name, draft)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=draft, check=True)
        try:
            draft.rename(made)
        except OSError:  # another run was faster
            shutil.rmtree(draft)
    shutil.copy(HERE / "provider.mjs", made)
    return made


@asynccontextmanager
async def certified(
    settings: Settings, *, host: str = "127.0.0.1", ask_userinfo: bool = False
) -> AsyncIterator[Settings]:
    """The certified provider, running; settings of a server that people may sign in to with it."""
    folder, port = _installed(), free_port()
    process = await asyncio.create_subprocess_exec(
        "node",
        "provider.mjs",
        cwd=folder,
        env={
            **os.environ,
            "PORT": str(port),
            "HOST": host,
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": CLIENT_SECRET,
            "REDIRECT_URI": f"{settings.base_url}/auth/oidc/callback",
            "ASK_USERINFO": str(ask_userinfo).lower(),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while b"listening" not in (line := await process.stdout.readline()):
                assert line, "the provider ended"
        yield with_provider(settings, f"http://{host}:{port}")
    finally:
        process.kill()
        await process.wait()


def with_provider(settings: Settings, issuer: str) -> Settings:
    """Settings of a server that people may sign in to with this provider."""
    # Through the settings' own checks, which a copy would go around.
    given = Settings(oidc_issuer=issuer, oidc_client_id=CLIENT_ID, oidc_client_secret=CLIENT_SECRET)
    names = ("oidc_issuer", "oidc_client_id", "oidc_client_secret")
    return settings.model_copy(update={name: getattr(given, name) for name in names})


async def signed_in_there(address: str, who: str) -> str:
    """Where the provider sends the browser back to, once somebody has signed in and agreed."""
    async with httpx.AsyncClient() as http:
        answer = await http.get(address)
        while True:
            if answer.is_redirect:
                target = urljoin(str(answer.url), answer.headers["location"])
                if "/auth/oidc/callback" in target:
                    return target
                answer = await http.get(target)
                continue
            assert answer.status_code == 200, answer.text
            [action] = re.findall(r'<form[^>]* action="([^"]+)"', answer.text)
            form = dict(re.findall(r'<input type="hidden" name="(\w+)" value="(\w+)"', answer.text))
            answer = await http.post(
                unescape(urljoin(str(answer.url), action)), data={**form, "login": who, "password": "any"}
            )


class Liar:
    """A provider that answers whatever it is told to: honest ones cannot be made to."""

    def __init__(self) -> None:
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}"
        self.metadata: dict[str, Any] = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/keys",
        }
        self.keys: dict[str, Any] = {"keys": []}
        self.token: tuple[int, bytes] = (200, b"{}")
        self.asked: list[Mapping[str, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import JSONResponse, Response

        request = Request(scope, receive)
        answer: Response
        match request.url.path:
            case "/.well-known/openid-configuration":
                answer = JSONResponse(self.metadata)
            case "/keys":
                answer = JSONResponse(self.keys)
            case _:
                self.asked.append(dict(parse_qsl((await request.body()).decode())))
                answer = Response(self.token[1], self.token[0], media_type="application/json")
        await answer(scope, receive, send)


@asynccontextmanager
async def lying() -> AsyncIterator[Liar]:
    """The liar, on a port of its own."""
    import uvicorn

    liar = Liar()
    server = uvicorn.Server(
        uvicorn.Config(liar, port=liar.port, log_config=None, lifespan="off", ws="none", http="h11")
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- it tells nobody
        await asyncio.sleep(0.01)
    try:
        yield liar
    finally:
        server.should_exit = True
        await serving
