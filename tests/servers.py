"""Real server processes over one database, and a graphql-transport-ws client for them."""

import asyncio
import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import orjson
import uvicorn
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ekoyka.api.intake import Intake
from ekoyka.api.outlets import DirectProtocol
from ekoyka.app import create_app
from ekoyka.settings import Settings

TOKEN_KEY = "k" * 48


def free_port() -> int:
    """A port that nobody listens on, below those of which clients get theirs while a server is away."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", 10_000 + secrets.randbelow(20_000)))
            return int(probe.getsockname()[1])


@dataclass
class Server:
    """One server process."""

    port: int
    # None where it runs inside the test's own; its parts are at hand there.
    process: asyncio.subprocess.Process | None
    services: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of a process of its own."""
        assert self.process is not None
        return self.process.pid

    async def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(kind)
        return await self.process.wait()


async def start(settings: Settings, *, log: Path | None = None, **environment: str) -> Server:
    """A server process of `ekoyka serve`; it may not be ready yet. ``log`` receives all that it says."""
    assert settings.database_url is not None
    port = int(environment.get("EKOYKA_PORT") or free_port())
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")},
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "EKOYKA_PORT": str(port),
        "EKOYKA_TOKEN_KEYS": TOKEN_KEY,
        "EKOYKA_PASSWORD_HASH_ROUNDS": "4",
        "EKOYKA_LOG_LEVEL": "WARNING",
        "EKOYKA_WORKER_INSIDE": "false",
        **environment,
    }
    return Server(port, await _spawn("serve", env, log))


async def start_worker(address: str, log: Path | None = None) -> asyncio.subprocess.Process:
    """A process of `ekoyka worker`. ``log`` receives all that it says."""
    return await _spawn("worker", {**os.environ, "DATABASE_URL": address}, log)


async def _spawn(command: str, env: dict[str, str], log: Path | None) -> asyncio.subprocess.Process:
    """The command's process, in a session of its own."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log is not None else None
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ekoyka",
            command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        if output is not None:
            os.close(output)


async def ready(server: Server, workers: int = 1) -> None:
    """Waits until the server says that it is ready, whichever of its workers is asked."""
    left = wanted = 1 if workers == 1 else 10 * workers
    async with httpx.AsyncClient(headers={"connection": "close"}) as http:
        while left:
            assert server.process is not None
            assert server.process.returncode is None, "the server ended"
            try:
                left = left - 1 if (await http.get(f"{server.url}/readyz")).status_code == 200 else wanted
            except httpx.TransportError:
                left = wanted
            if left == wanted:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def running(settings: Settings, count: int = 1, **environment: str) -> AsyncIterator[list[Server]]:
    """So many server processes, ready; killed at the end if they have not stopped."""
    servers = [await start(settings, log=None, **environment) for _ in range(count)]
    try:
        await asyncio.wait_for(asyncio.gather(*map(ready, servers)), 60)
        yield servers
    finally:
        for server in servers:
            await server.stop(signal.SIGKILL)


@asynccontextmanager
async def inside(settings: Settings, **options: Any) -> AsyncIterator[Server]:
    """A server in this very process, on a port of its own, ready; uvicorn's ``options`` are the test's."""
    app = create_app(settings.model_copy(update={"token_keys": (SecretStr(TOKEN_KEY),)}))
    port = free_port()
    config = uvicorn.Config(
        app,
        port=port,
        http=Intake,
        ws=DirectProtocol,
        ws_per_message_deflate=False,
        log_config=None,
        **options,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        await app.state.prepared.wait()
        while not server.started:  # noqa: ASYNC110 -- uvicorn tells nobody
            await asyncio.sleep(0.01)
        yield Server(port, None, app.state.services)
    finally:
        server.should_exit = True
        await serving


@dataclass
class Socket:
    """A client of the feed."""

    connection: ClientConnection
    frames: dict[str, asyncio.Queue[dict[str, Any]]] = field(default_factory=dict)
    pongs: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    last: dict[str, Any] = field(default_factory=dict)
    _reader: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, token: str | None) -> AsyncIterator[Self]:
        async with connect(
            server.url.replace("http", "ws") + "/graphql", subprotocols=[Subprotocol("graphql-transport-ws")]
        ) as connection:
            made = cls(connection)
            payload = {"Authorization": f"Bearer {token}"} if token else {}
            await connection.send(orjson.dumps({"type": "connection_init", "payload": payload}).decode())
            yield made

    async def acknowledged(self) -> None:
        assert orjson.loads(await self.connection.recv())["type"] == "connection_ack"
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            async for message in self.connection:
                frame = orjson.loads(message)
                if "id" in frame:
                    self.frames[frame["id"]].put_nowait(frame)
                elif frame["type"] == "pong":
                    self.pongs.put_nowait(frame)

    async def subscribe(self, key: str, query: str, **variables: Any) -> None:
        self.frames[key] = asyncio.Queue()
        body = {"id": key, "type": "subscribe", "payload": {"query": query, "variables": variables}}
        await self.connection.send(orjson.dumps(body).decode())

    async def ask(self, key: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The first frame that answers this operation, which is over then."""
        frame = await self.answer(key, payload)
        await self.complete(key)
        return frame

    async def answer(self, key: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The first frame that answers this operation."""
        self.frames[key] = asyncio.Queue()
        body = {"id": key, "type": "subscribe", "payload": payload}
        await self.connection.send(orjson.dumps(body).decode())
        return await self.next(key)

    async def next(self, key: str) -> dict[str, Any]:
        """The operation's next frame; a test that waits in vain fails after a while."""
        return await asyncio.wait_for(self.frames[key].get(), 20)

    async def event(self, key: str) -> dict[str, Any]:
        """The only field of the next `next` frame."""
        frame = await self.next(key)
        assert frame["type"] == "next", frame
        assert "errors" not in frame["payload"], frame
        [value] = frame["payload"]["data"].values()
        found: dict[str, Any] = value
        return found

    async def told(self, key: str, count: int) -> list[dict[str, Any]]:
        """The next so many changes of a feed, in however many events; `last` is the last of them."""
        changes: list[dict[str, Any]] = []
        while len(changes) < count:
            event = await self.event(key)
            assert event["kind"] == "CHANGE", event
            assert event["changes"], event
            changes += event["changes"]
            self.last = event
        assert len(changes) == count, changes
        return changes

    async def renew(self, token: str | None) -> None:
        """The server is shown a newer token; it answers with a pong, unless it closes the socket."""
        ping = {"type": "ping", "payload": {"authorization": f"Bearer {token}"}}
        await self.connection.send(orjson.dumps(ping).decode())

    async def complete(self, key: str) -> None:
        """The operation is over, by this client's wish."""
        await self.connection.send(orjson.dumps({"id": key, "type": "complete"}).decode())

    async def closed(self) -> int:
        """The code with which the server closed the socket."""
        await asyncio.wait_for(self.connection.wait_closed(), 20)
        assert self.connection.close_code is not None
        return self.connection.close_code
