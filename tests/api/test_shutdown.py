"""SIGTERM: what has begun is answered, what was answered is there, sockets come back, and it is soon over."""

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from ekoyka import embedded
from ekoyka.database import Database
from ekoyka.identity.actors import Actor
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import FEED, subscribed, token
from tests.invariants import broken_invariants
from tests.servers import TOKEN_KEY, Server, Socket, free_port, ready, start
from tests.wire import Wire, message

CHECK_IN = """mutation ($p: ID!, $b: ID!) { stayCheckIn(input: {patientId: $p, bedId: $b}) {
  __typename ... on Stay { id version } ... on Refusal { code } } }"""
CHECK_OUT = """mutation ($s: ID!, $v: Int!) { stayCheckOut(input: {id: $s, version: $v, outcome: DISCHARGED}) {
  __typename ... on Stay { id } ... on Refusal { code } } }"""
OUT_IN_S = 20


@dataclass
class Ward:
    """One bed, and one patient who comes and goes over one client's connections until the server is gone."""

    patient: Any
    bed: Any
    done: list[str] = field(default_factory=list)
    ended: str = ""

    async def work(self, server: Server, access: str, *, kept_alive: bool) -> None:
        headers = {"authorization": f"Bearer {access}", "connection": "keep-alive" if kept_alive else "close"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as http:
            while True:
                given = {"p": gid("Patient", self.patient), "b": gid("Bed", self.bed)}
                stay = await self._change(http, CHECK_IN, given)
                if stay is None or await self._change(http, CHECK_OUT, {"s": stay["id"], "v": 1}) is None:
                    return

    async def _change(
        self, http: httpx.AsyncClient, mutation: str, given: dict[str, Any]
    ) -> dict[str, Any] | None:
        try:
            answer = await http.post("/graphql", json={"query": mutation, "variables": given})
        except httpx.TransportError as error:
            self.ended = type(error).__name__
            return None
        assert answer.status_code == 200, (answer.status_code, answer.text)
        [(name, stay)] = answer.json()["data"].items()
        assert stay["__typename"] == "Stay", stay
        self.done.append(name)
        return dict(stay)


async def _refused_at(server: Server) -> float:
    """When the server's port took no connection any more."""
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        except ConnectionRefusedError:
            return time.monotonic()
        except ConnectionResetError:  # it stood in line when the port was closed
            continue
        writer.close()
        await asyncio.sleep(0.02)


async def _blocked(owned: Database, *asking: asyncio.Task[Any]) -> None:
    """Each of those who ask waits for a lock in the database; which is told to their own login."""
    blocked = 0
    while blocked < len(asking):
        await asyncio.sleep(0.05)
        assert not [task.result() for task in asking if task.done()]
        blocked = await owned.fetch_value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )


@pytest.mark.parametrize("workers", [1, 2])
async def test_under_load_all_that_was_begun_is_answered_and_all_that_was_answered_is_there(
    database: Database, settings: Settings, make: Factory, tmp_path: Path, workers: int
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    wards = [Ward(await make.patient(place), await make.bed(place)) for _ in range(20)]
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_WORKERS=str(workers), EKOYKA_LAPSE_INTERVAL_S="3600")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, signal.SIGKILL)
        await asyncio.wait_for(ready(server, workers), 60)
        watchers = [
            await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place)) for _ in range(40)
        ]
        await _deaf(stack, server, make)
        async with asyncio.TaskGroup() as load:
            for number, ward in enumerate(wards):
                load.create_task(ward.work(server, token(doctor), kept_alive=number % 2 == 0))
            async with asyncio.timeout(60):
                while any(len(ward.done) < 6 for ward in wards):  # noqa: ASYNC110 -- they tell nobody
                    await asyncio.sleep(0.05)
            told = time.monotonic()
            status = asyncio.create_task(server.stop(signal.SIGTERM))
            refused_after_s = await _refused_at(server) - told
            codes = [await watcher.closed() for watcher in watchers]
        ended = await status, time.monotonic() - told

    rows = await database.fetch(
        "SELECT s.patient_id, count(*) AS began, count(*) FILTER (WHERE s.checked_out_at IS NOT NULL) AS ended "
        "FROM stay s GROUP BY s.patient_id"
    )
    there = {row["patient_id"]: (row["began"], row["ended"]) for row in rows}
    # Answered, and done; not answered, and not done.
    assert there == {
        ward.patient.id: (ward.done.count("stayCheckIn"), ward.done.count("stayCheckOut")) for ward in wards
    }
    assert codes == [1012] * 40
    assert ended[0] == 0
    assert ended[1] < OUT_IN_S / 2, ended
    assert refused_after_s < 3
    assert await broken_invariants(database) == []
    said = log.read_text()
    assert "Traceback" not in said
    assert "request_failed" not in said


async def _deaf(stack: AsyncExitStack, server: Server, make: Factory) -> None:
    """A socket that was sent much, and neither reads nor answers."""
    place = await make.dispensary()
    room = await make.room(place)
    for _ in range(50):
        await make.bed(place, room, profile="x" * 100)
    many = " ".join(f"p{number}: profile" for number in range(14))
    query = (
        f'{{ room(id: "{gid("Room", room)}") {{ beds(first: 100) {{ edges {{ node {{ {many} }} }} }} }} }}'
    )
    deaf = await stack.enter_async_context(Wire.open(server))
    await deaf.begin(token(await make.actor(doctor_of=(place,))))
    deaf.stop_reading()
    for number in range(150):
        await deaf.send(
            message({"type": "subscribe", "id": str(number), "payload": {"query": query}}), pause_s=0.002
        )


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_waits_is_answered_when_it_can_be_and_given_up_by_name_when_the_server_must_go(
    database: Database, owned: Database, settings: Settings, make: Factory, tmp_path: Path, workers: int
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    freed, held, never = [await make.bed(place) for _ in range(3)]
    patients = [await make.patient(place) for _ in range(4)]
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_WORKERS=str(workers), EKOYKA_LAPSE_INTERVAL_S="3600")

    def given(patient: Any, bed: Any) -> dict[str, Any]:
        return {"query": CHECK_IN, "variables": {"p": gid("Patient", patient), "b": gid("Bed", bed)}}

    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, signal.SIGKILL)
        await asyncio.wait_for(ready(server, workers), 60)
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=server.url, headers={"authorization": f"Bearer {token(doctor)}"}, timeout=60
            )
        )
        socket, stuck = await _signed_in(stack, server, doctor), await _signed_in(stack, server, doctor)
        until_freed = await stack.enter_async_context(AsyncExitStack())
        short = await until_freed.enter_async_context(database.transaction())
        long = await stack.enter_async_context(database.transaction())
        await short.execute(text("SELECT 1 FROM bed WHERE id = :id FOR UPDATE"), {"id": freed.id})
        await long.execute(
            text("SELECT 1 FROM bed WHERE id = ANY(:ids) FOR UPDATE"), {"ids": [held.id, never.id]}
        )
        first_http = asyncio.create_task(http.post("/graphql", json=given(patients[0], freed)))
        first_socket = asyncio.create_task(socket.answer("1", given(patients[1], freed)))
        last_http = asyncio.create_task(http.post("/graphql", json=given(patients[2], held)))
        last_socket = asyncio.create_task(stuck.answer("1", given(patients[3], never)))
        await _blocked(owned, first_http, first_socket, last_http, last_socket)
        told = time.monotonic()
        status = asyncio.create_task(server.stop(signal.SIGTERM))
        await _refused_at(server)
        await asyncio.sleep(0.5)
        await until_freed.aclose()
        by_http, by_socket = await first_http, await first_socket
        first_after_s = time.monotonic() - told
        stuck_http, stuck_socket = await last_http, await last_socket
        codes = await socket.closed(), await stuck.closed()
        ended = await status, time.monotonic() - told

    names = {
        by_http.json()["data"]["stayCheckIn"]["__typename"],
        by_socket["payload"]["data"]["stayCheckIn"]["__typename"],
    }
    assert names == {"Stay", "BedOccupied"}
    assert first_after_s < 8
    assert (stuck_http.status_code, stuck_http.headers["retry-after"]) == (503, "1")
    assert stuck_http.json()["errors"][0]["extensions"]["code"] == "TIMED_OUT"
    assert stuck_socket["payload"][0]["extensions"]["code"] == "TIMED_OUT"
    assert codes == (1012, 1012)
    assert ended[0] == 0
    assert ended[1] < OUT_IN_S, ended
    assert await database.fetch_value("SELECT count(*) FROM stay") == 1
    said = log.read_text()
    assert "Traceback" not in said
    assert "request_failed" not in said


async def _signed_in(stack: AsyncExitStack, server: Server, actor: Actor) -> Socket:
    socket = await stack.enter_async_context(Socket.open(server, token(actor)))
    await socket.acknowledged()
    return socket


async def test_a_request_that_is_just_arriving_is_answered_and_one_that_stays_half_is_told_so(
    settings: Settings,
) -> None:
    head = b"POST /graphql HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 25\r\n"
    body = b'{"query":"{ __typename }"}'[:25] + b"}"
    server = await start(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, signal.SIGKILL)
        await asyncio.wait_for(ready(server), 60)
        connections = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        idle, kept, arriving, half, late = connections
        kept[1].write(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        await kept[0].readuntil(b'{"alive":true}')
        arriving[1].write(head)
        half[1].write(head)
        await asyncio.sleep(0.2)
        status = asyncio.create_task(server.stop(signal.SIGTERM))
        await _refused_at(server)
        arriving[1].write(b"\r\n" + body[:25])
        late[1].write(b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n")
        said = [await asyncio.wait_for(reader.read(), 10) for reader, _ in connections]
        code = await status
        for _, writer in connections:
            writer.close()

    assert said[0] == said[1] == b""
    assert said[2].startswith(b"HTTP/1.1 400 ")
    assert said[3].startswith(b"HTTP/1.1 503 ")
    assert b'"code":"SERVICE_UNAVAILABLE"' in said[3]
    assert said[4].startswith(b"HTTP/1.1 ")
    assert all(b"connection: close" in answer for answer in said[2:])
    assert code == 0
    assert idle[0].at_eof()


def _of_postgres(folder: Path) -> list[int]:
    """The processes of the PostgreSQL that keeps its data there."""
    files = [*folder.rglob("postmaster.pid")]
    return [int(file.read_text().split()[0]) for file in files]


async def test_the_embedded_database_is_stopped_after_the_server(tmp_path: Path) -> None:
    """Without DATABASE_URL: what is under way still finds its database, and nothing is left running."""
    environment = {name: value for name, value in os.environ.items() if "EKOYKA" not in name}
    environment.pop("DATABASE_URL", None)
    with (tmp_path / "log").open("wb") as log:
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ekoyka",
            "serve",
            env={
                **environment,
                "EKOYKA_PORT": str(port),
                "EKOYKA_DATA_DIR": str(tmp_path / "data"),
                "EKOYKA_TOKEN_KEYS": TOKEN_KEY,
                "EKOYKA_WORKERS": "2",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    server = Server(port, process)
    await asyncio.wait_for(ready(server, 2), 90)
    [postgres] = _of_postgres(tmp_path)
    before = (tmp_path / "log").read_text()
    guess = {"grant_type": "password", "username": "a@b.example", "password": "x" * 12}
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
        slow = asyncio.create_task(http.post("/auth/token", data=guess))
        await asyncio.sleep(0.1)
        told = time.monotonic()
        status = await server.stop(signal.SIGTERM)
        took_s = time.monotonic() - told
        answer = await slow

    assert (status, answer.status_code) == (0, 400)
    assert took_s < OUT_IN_S
    assert _of_postgres(tmp_path) == []
    with pytest.raises(ProcessLookupError):
        os.kill(postgres, 0)
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "feed_cut" not in said.removeprefix(before)


async def test_a_database_that_says_nothing_holds_nobody_up(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    database = embedded.start(folder, durable=False)
    [postgres] = _of_postgres(folder)
    log = tmp_path / "server.log"
    server = await start(Settings(database_url=database.url()), log=log)
    question = {"query": '{ certificateVerification(code: "0123456789") { number } }'}
    guess = {"grant_type": "password", "username": "a@b.example", "password": "x" * 12}
    async with AsyncExitStack() as stack:
        stack.callback(embedded.stop, database)
        stack.push_async_callback(server.stop, signal.SIGKILL)
        await asyncio.wait_for(ready(server), 60)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=server.url, timeout=60))
        socket = await stack.enter_async_context(Socket.open(server, None))
        await socket.acknowledged()
        frozen = [postgres, *_children(postgres)]
        stack.callback(_signal, frozen, signal.SIGCONT)
        _signal(frozen, signal.SIGSTOP)
        asking = [
            asyncio.create_task(http.post("/graphql", json=question)),
            asyncio.create_task(http.post("/auth/token", data=guess)),
        ]
        waiting = asyncio.create_task(socket.answer("1", question))
        await asyncio.sleep(0.5)
        told = time.monotonic()
        status = await server.stop(signal.SIGTERM)
        took_s = time.monotonic() - told
        answers = [await answer for answer in asking]
        frame, code = await waiting, await socket.closed()

    assert status == 0
    assert took_s < OUT_IN_S
    assert [answer.status_code for answer in answers] == [503, 503]
    assert frame["payload"][0]["extensions"]["code"] in ("TIMED_OUT", "SERVICE_UNAVAILABLE")
    assert code == 1012
    assert "Traceback" not in log.read_text()


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _signal(processes: list[int], kind: signal.Signals) -> None:
    for process in processes:
        os.kill(process, kind)


async def test_a_port_that_is_taken_ends_the_start_with_an_error(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        first = await start(settings)
        stack.push_async_callback(first.stop, signal.SIGKILL)
        await asyncio.wait_for(ready(first), 60)
        for workers in ("1", "2"):
            second = await start(settings, EKOYKA_PORT=str(first.port), EKOYKA_WORKERS=workers)
            assert second.process is not None
            assert await asyncio.wait_for(second.process.wait(), 60) == 3
