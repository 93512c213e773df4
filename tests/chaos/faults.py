"""What goes wrong: each fault is done to the deployment and is over when its function returns."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from ekoyka.database import ACTOR, NETWORK, WARD_ROLE
from ekoyka.graph.ids import decode
from tests.chaos.deployment import SERVERS, Deployment
from tests.chaos.history import until
from tests.chaos.postgres import Filler

Do = Callable[[Deployment, random.Random], Awaitable[None]]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong; ``on_disk`` is for a small disk that may be filled."""

    name: str
    do: Do
    on_disk: bool = False


FAULTS: list[Fault] = []


def fault(name: str, *, on_disk: bool = False) -> Callable[[Do], Do]:
    """The function is the fault of this name."""

    def declare(do: Do) -> Do:
        FAULTS.append(Fault(name, do, on_disk))
        return do

    return declare


# The servers


@fault("a server is killed (kill -9), and started again")
async def kill_a_server(here: Deployment, chance: random.Random) -> None:
    number = chance.randrange(SERVERS)
    await here.kill_server(number)
    await here.start_server(number)


@fault("all servers are killed (kill -9), and started again")
async def kill_all_servers(here: Deployment, chance: random.Random) -> None:
    await asyncio.gather(*(here.kill_server(number) for number in range(SERVERS)))
    for number in range(SERVERS):
        await here.start_server(number)


@fault("a server stands still for 3 s (SIGSTOP)")
async def freeze_a_server(here: Deployment, chance: random.Random) -> None:
    server = here.servers[chance.randrange(SERVERS)]
    os.kill(server.pid, signal.SIGSTOP)
    await asyncio.sleep(3)
    os.kill(server.pid, signal.SIGCONT)


@fault("the servers are killed while reservations lapse")
async def kill_amid_lapsing(here: Deployment, chance: random.Random) -> None:
    """Their job, in one transaction, has ended reservations and told nobody yet: a trigger keeps it there."""
    async with here.aside() as connection:
        await connection.execute(_LINGER)
        async with connection.transaction():
            await connection.execute(_AS_WARD)
            for place in here.places:
                for bed in place.probes:
                    await connection.execute(_DUE, decode(bed)[1])
        assert await until(lambda: _lapsing(connection), 10), "nobody lets reservations lapse"
        await asyncio.gather(*(here.kill_server(number) for number in range(SERVERS)))
        # PostgreSQL would notice when the trigger has waited, and undo it then.
        await connection.fetch(f"SELECT pg_terminate_backend(a.pid) {_LAPSING}")
        await connection.execute("DROP FUNCTION linger CASCADE")
    for number in range(SERVERS):
        await here.start_server(number)


_LINGER = """
CREATE FUNCTION linger() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END';
CREATE TRIGGER linger AFTER UPDATE ON reservation FOR EACH ROW WHEN (NEW.outcome = 'LAPSED')
    EXECUTE FUNCTION linger();
"""
_AS_WARD = f"SET LOCAL ROLE {WARD_ROLE}; SET LOCAL {ACTOR} = '{NETWORK}'"
# Reservations that have run out already, of beds that nobody else reserves.
_DUE = """
INSERT INTO reservation (bed_id, dispensary_id, reserved_at, until)
SELECT id, dispensary_id, now() - interval '1 hour', now() FROM bed WHERE id = $1
"""
_LAPSING = "FROM pg_stat_activity a WHERE a.wait_event = 'PgSleep' AND a.query LIKE '%SKIP LOCKED%'"


async def _lapsing(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    return bool(await connection.fetchval(f"SELECT count(*) {_LAPSING}"))


@fault("the worker is killed (kill -9) amid a job, and another takes its place")
async def kill_the_worker(here: Deployment, chance: random.Random) -> None:
    """It has let held slots go, in one transaction, and told nobody yet: a trigger keeps it there."""
    async with here.aside() as connection:
        await connection.execute(_LINGER_AT_HOLDS)
        await connection.executemany(_HELD, list(here.slots.items()))
        if not await until(lambda: _is_so(connection, f"SELECT count(*) > 0 {_LETTING_GO}"), 30):
            raise AssertionError(f"no job lets go: {await connection.fetchval(_QUEUE)}")
        await here.kill_worker()
        await connection.fetch(f"SELECT pg_terminate_backend(a.pid) {_LETTING_GO}")
        await connection.execute("DROP FUNCTION linger_at_holds CASCADE")
        assert await _is_so(connection, "SELECT count(*) = $1 FROM slot_hold", len(here.slots)), "half a job"
        await here.start_worker()
        assert await until(lambda: _is_so(connection, "SELECT count(*) = 0 FROM slot_hold"), 30), (
            "a job was lost"
        )


_LINGER_AT_HOLDS = """
CREATE FUNCTION linger_at_holds() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END';
CREATE TRIGGER linger_at_holds AFTER DELETE ON slot_hold FOR EACH STATEMENT EXECUTE FUNCTION linger_at_holds();
"""
_HELD = """
INSERT INTO slot_hold (slot_id, dispensary_id, account_id, until)
SELECT id, dispensary_id, $2, now() FROM slot WHERE id = $1
"""
_LETTING_GO = "FROM pg_stat_activity a WHERE a.wait_event = 'PgSleep' AND a.query LIKE '%slot_hold%'"


_QUEUE = """
SELECT json_build_object('now', now(),
    'jobs', (SELECT json_agg(json_build_array(id, task_name, status, attempts, scheduled_at, worker_id) ORDER BY id)
             FROM procrastinate_jobs),
    'workers', (SELECT json_agg(json_build_array(id, last_heartbeat)) FROM procrastinate_workers),
    'connections', (SELECT json_agg(json_build_array(application_name, state, wait_event, query_start, left(query, 80)))
                    FROM pg_stat_activity WHERE application_name LIKE '%worker%'),
    'held', (SELECT count(*) FROM slot_hold))::text
"""


async def _is_so(connection: asyncpg.Connection[asyncpg.Record], sql: str, *values: object) -> bool:
    return bool(await connection.fetchval(sql, *values))


@fault("the processes that render certificates are stopped, then killed, in the middle of it")
async def stop_the_renderers(here: Deployment, chance: random.Random) -> None:
    for number in range(SERVERS):
        for pid in here.renderers(number):
            os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(3)
    for number in range(SERVERS):
        for pid in here.renderers(number):
            os.kill(pid, signal.SIGKILL)


# PostgreSQL


@fault("PostgreSQL is killed with all its processes (kill -9), and started again")
async def kill_postgresql(here: Deployment, chance: random.Random) -> None:
    here.postgres.kill()
    await asyncio.sleep(chance.uniform(0, 2))
    await here.start_postgres()


@fault("one of PostgreSQL's processes is killed (kill -9)")
async def kill_a_backend(here: Deployment, chance: random.Random) -> None:
    async with here.aside() as watcher:
        pids = await watcher.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'ekoyka write'")
        here.postgres.kill_a_backend(chance.choice(pids)["pid"])
    await _answers(here)


@fault("PostgreSQL is shut down at once (immediate), and started again")
async def stop_postgresql_at_once(here: Deployment, chance: random.Random) -> None:
    here.postgres.signal(signal.SIGQUIT)
    await here.postgres.ended()
    await here.start_postgres()


@fault("PostgreSQL is restarted (fast)")
async def restart_postgresql(here: Deployment, chance: random.Random) -> None:
    here.postgres.signal(signal.SIGINT)
    await here.postgres.ended()
    await here.start_postgres()


async def _answers(here: Deployment, patience_s: float = 60) -> None:
    """PostgreSQL takes connections again."""

    async def does() -> bool:
        try:
            async with here.aside() as connection:
                return bool(await connection.fetchval("SELECT true"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    if not await until(does, patience_s):
        raise TimeoutError("PostgreSQL does not answer")


# Connections


@fault("PostgreSQL ends every connection (pg_terminate_backend)")
async def end_all_connections(here: Deployment, chance: random.Random) -> None:
    async with here.aside() as connection:
        for _ in range(5):
            await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'ekoyka %'"
            )
            await asyncio.sleep(0.2)


@fault("every connection is reset")
async def reset_all_connections(here: Deployment, chance: random.Random) -> None:
    for _ in range(5):
        for wire in here.wires:
            wire.cut()
        await asyncio.sleep(0.2)


@fault("one server cannot reach PostgreSQL for 4 s")
async def cut_a_server_off(here: Deployment, chance: random.Random) -> None:
    wire = chance.choice(here.wires)
    wire.close()
    await asyncio.sleep(4)
    wire.open()


@fault("answers are lost for 1 s, what was asked is done, and then every connection is reset")
async def lose_answers(here: Deployment, chance: random.Random) -> None:
    for _ in range(3):
        for wire in here.wires:
            wire.drop_answers()
        await asyncio.sleep(1)
        for wire in here.wires:
            wire.cut()
        await asyncio.sleep(0.3)


@fault("nothing gets through for 4 s, and then all of it")
async def hold_everything_back(here: Deployment, chance: random.Random) -> None:
    for wire in here.wires:
        wire.stall()
    await asyncio.sleep(4)
    for wire in here.wires:
        wire.flow()


@fault("nothing gets through for some seconds, and old connections never answer again")
async def lose_all_connections(here: Deployment, chance: random.Random) -> None:
    for wire in here.wires:
        wire.stall()
    # Shorter and longer than it takes to notice, and longer than any operation may take.
    await asyncio.sleep(chance.choice([1, 3, 6, 17]))
    for wire in here.wires:
        wire.lose()
        wire.flow()


@fault("PostgreSQL's ends of all connections are closed, and the servers are not told")
async def hang_up(here: Deployment, chance: random.Random) -> None:
    for wire in here.wires:
        wire.hang_up_on_postgresql()


# Locks and pools


@asynccontextmanager
async def _locked(here: Deployment, sql: str) -> AsyncIterator[None]:
    async with here.aside() as connection, connection.transaction():
        await connection.execute(sql)
        yield


@fault("all beds are locked for 7 s: changes use up their pool")
async def lock_all_beds(here: Deployment, chance: random.Random) -> None:
    async with _locked(here, "SELECT FROM bed ORDER BY id FOR UPDATE"):
        await asyncio.sleep(7)


@fault("the table of beds is locked for 7 s: reads and changes use up their pools")
async def lock_the_table(here: Deployment, chance: random.Random) -> None:
    async with _locked(here, "LOCK TABLE bed IN ACCESS EXCLUSIVE MODE"):
        await asyncio.sleep(7)


# The disk


@fault("the disk is full for 5 s", on_disk=True)
async def fill_the_disk(here: Deployment, chance: random.Random) -> None:
    filler = Filler(here.postgres.folder)
    filler.fill()
    try:
        await asyncio.sleep(5)
    finally:
        filler.free()
    await _revived(here)


@fault("the disk is full when PostgreSQL needs room for its log: it stops in panic", on_disk=True)
async def fill_the_disk_of_the_log(here: Deployment, chance: random.Random) -> None:
    filler = Filler(here.postgres.folder)
    filler.fill()
    try:
        for _ in range(20):
            try:
                async with here.aside(superuser=True) as connection:
                    # Each asks for a new segment of 16 MB.
                    await connection.fetch("SELECT pg_switch_wal(), pg_logical_emit_message(false, 'x', 'x')")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                pass
            await asyncio.sleep(0.2)
    finally:
        filler.free()
    await _revived(here)


async def _revived(here: Deployment) -> None:
    """PostgreSQL answers again. Where it has given up, whoever looks after it starts it again; so too where it hangs,
    as PostgreSQL 18 does now and then when a recovery fails."""
    try:
        if here.postgres.runs():
            await _answers(here, 10)
            return
    except TimeoutError:
        here.postgres.kill()
    await here.start_postgres()
