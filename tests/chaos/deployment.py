"""What a run is about: PostgreSQL, two server processes, a wire between each and PostgreSQL, and a small ward."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg

from ekoyka import migrate
from ekoyka.database import WARD_ROLE, Database
from ekoyka.identity.actors import Actor
from ekoyka.identity.credentials import Tokens
from ekoyka.settings import Settings
from tests import servers
from tests.chaos.postgres import Postgres, descendants
from tests.chaos.wire import Wire
from tests.client import gid
from tests.factories import Factory
from tests.servers import TOKEN_KEY, Server

SERVERS = 2
DOCTORS = 4
# Few connections, so that they can be used up; all else is as by default, but for reservations, which lapse soon here.
ENVIRONMENT = {"EKOYKA_READ_POOL_SIZE": "4", "EKOYKA_WRITE_POOL_SIZE": "4", "EKOYKA_LAPSE_INTERVAL_S": "0.25"}


@dataclass
class Beds:
    """One dispensary of the run: its beds, and one bed for each server that only its probe changes."""

    dispensary: str
    beds: list[str]
    probes: list[str]


@dataclass
class Deployment:
    """The parts, each of which something may be done to."""

    folder: Path
    postgres: Postgres
    wires: list[Wire]
    servers: list[Server] = field(default_factory=list)
    places: list[Beds] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    # Slots that may be held, each by one of these accounts.
    slots: dict[int, int] = field(default_factory=dict)
    worker: asyncio.subprocess.Process | None = None

    def settings(self, number: int) -> Settings:
        """A server's own: its way to the database is its wire."""
        url = f"postgresql://ekoyka@127.0.0.1:{self.wires[number].port}/ekoyka"
        return Settings(database_url=url)

    def log(self, number: int) -> Path:
        """What a server has said."""
        return self.folder / f"server-{number}.log"

    async def start_server(self, number: int) -> None:
        """The server's process is there; on the port it had, if it had one."""
        again = {"EKOYKA_PORT": str(self.servers[number].port)} if number < len(self.servers) else {}
        server = await servers.start(self.settings(number), log=self.log(number), **ENVIRONMENT, **again)
        self.servers[number:] = [server, *self.servers[number + 1 :]]

    async def kill_server(self, number: int) -> None:
        """The server's process is gone, and it was asked nothing."""
        await self.servers[number].stop(signal.SIGKILL)

    async def start_worker(self) -> None:
        """The worker's process is there; its way to the database is the first server's."""
        url = self.settings(0).database_url
        assert url is not None
        self.worker = await servers.start_worker(url.get_secret_value(), self.folder / "worker.log")

    async def kill_worker(self) -> None:
        """The worker's process is gone, and it was asked nothing."""
        if self.worker is not None and self.worker.returncode is None:
            self.worker.kill()
            await self.worker.wait()

    def renderers(self, number: int) -> list[int]:
        """The processes in which a server renders certificates."""
        return [
            pid
            for pid in descendants(self.servers[number].pid)
            if b"ekoyka.certificates.paper" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    async def start_postgres(self) -> None:
        """PostgreSQL answers, and the wires lead to it."""
        await self.postgres.start()
        for wire in self.wires:
            wire.target = self.postgres.socket

    @asynccontextmanager
    async def aside(self, *, superuser: bool = False) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A connection that goes around all wires."""
        url = self.postgres.superuser_url if superuser else self.postgres.url
        connection = await asyncpg.connect(url, timeout=10)
        try:
            yield connection
        finally:
            connection.terminate()


@asynccontextmanager
async def deployed(folder: Path, disk: Path) -> AsyncIterator[Deployment]:
    """All of it runs, with an empty ward; nothing of it is left afterwards. ``disk`` holds PostgreSQL's data."""
    postgres = Postgres(disk / "data")
    async with AsyncExitStack() as stack:
        stack.callback(postgres.keep_log, folder / "postgres.log")
        stack.push_async_callback(postgres.stop)
        await postgres.start()
        wires = [await stack.enter_async_context(Wire.laid(postgres.socket)) for _ in range(SERVERS)]
        here = Deployment(folder, postgres, wires)
        async with Database(postgres.url, Settings(), pooled=False) as database:
            await migrate.upgrade(database)
        async with Database(postgres.url, Settings(), pooled=False, role=WARD_ROLE) as database:
            await _make_ward(here, Factory(database))

        async def stop_servers() -> None:
            for server in here.servers:
                await server.stop(signal.SIGKILL)
            await here.kill_worker()

        stack.push_async_callback(stop_servers)
        for number in range(SERVERS):
            await here.start_server(number)
        await here.start_worker()
        await asyncio.wait_for(asyncio.gather(*map(servers.ready, here.servers)), 60)
        yield here


async def _make_ward(here: Deployment, make: Factory) -> None:
    rows = [await make.dispensary() for _ in range(2)]
    for place in rows:
        rooms = [await make.room(place) for _ in range(2)]
        beds = [await make.bed(place, room) for room in rooms for _ in range(2)]
        probes = [await make.bed(place, rooms[0]) for _ in range(SERVERS)]
        here.places.append(
            Beds(
                gid("Dispensary", place),
                [gid("Bed", bed) for bed in beds],
                [gid("Bed", bed) for bed in probes],
            )
        )
    here.patients = [gid("Patient", await make.patient(rows[number % 2])) for number in range(12)]
    tokens = Tokens([TOKEN_KEY], issuer="ekoyka", ttl_s=3600)
    for _ in range(DOCTORS):
        doctor: Actor = await make.actor(doctor_of=tuple(rows))
        here.tokens.append(tokens.issue(doctor).text)
    schedule = await make.schedule(doctor, rows[0], {})
    for _ in range(3):
        here.slots[(await make.slot(schedule)).id] = (await make.account()).id
