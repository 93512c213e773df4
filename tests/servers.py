"""Real server processes over one database, and a graphql-transport-ws client for them."""

import asyncio
import contextlib
import os
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
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ekoyka.settings import Settings

TOKEN_KEY = "k" * 48


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """One server process."""

    port: int
    process: asyncio.subprocess.Process

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(kind)
        return await self.process.wait()


async def start(settings: Settings, *, log: Path | None = None, **environment: str) -> Server:
    """A server process of `ekoyka serve`; it may not be ready yet. ``log`` receives all that it says."""
    assert settings.database_url is not None
    port = free_port()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if log is not None else None
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ekoyka",
        "serve",
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("EKOYKA_")},
            "DATABASE_URL": settings.database_url.get_secret_value(),
            "EKOYKA_PORT": str(port),
            "EKOYKA_TOKEN_KEYS": TOKEN_KEY,
            "EKOYKA_PASSWORD_HASH_ROUNDS": "4",
            "EKOYKA_LOG_LEVEL": "WARNING",
            "EKOYKA_WORKER_INSIDE": "false",
            **environment,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    if output is not None:
        os.close(output)
    return Server(port, process)


async def ready(server: Server) -> None:
    """Waits until the server says that it is ready."""
    async with httpx.AsyncClient() as http:
        while True:
            assert server.process.returncode is None, "the server ended"
            try:
                if (await http.get(f"{server.url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
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


@dataclass
class Socket:
    """A client of the feed."""

    connection: ClientConnection
    frames: dict[str, asyncio.Queue[dict[str, Any]]] = field(default_factory=dict)
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

    async def subscribe(self, key: str, query: str, **variables: Any) -> None:
        self.frames[key] = asyncio.Queue()
        body = {"id": key, "type": "subscribe", "payload": {"query": query, "variables": variables}}
        await self.connection.send(orjson.dumps(body).decode())

    async def ask(self, key: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The first frame that answers this operation, which is over then."""
        self.frames[key] = asyncio.Queue()
        body = {"id": key, "type": "subscribe", "payload": payload}
        await self.connection.send(orjson.dumps(body).decode())
        frame = await self.next(key)
        await self.complete(key)
        return frame

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

    async def complete(self, key: str) -> None:
        """The operation is over, by this client's wish."""
        await self.connection.send(orjson.dumps({"id": key, "type": "complete"}).decode())

    async def closed(self) -> int:
        """The code with which the server closed the socket."""
        await asyncio.wait_for(self.connection.wait_closed(), 20)
        assert self.connection.close_code is not None
        return self.connection.close_code
