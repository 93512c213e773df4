"""Who is signed in on a socket, for how long, and how many sockets there may be."""

import asyncio
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from ekoyka.api.sockets import INIT_PATIENCE
from ekoyka.database import NOTICES, Database
from ekoyka.identity import operations as identity
from ekoyka.identity.actors import Actor
from ekoyka.identity.queries import actor_of
from ekoyka.identity.tables import Role
from ekoyka.settings import Settings
from ekoyka.tally import LEASE_S
from tests.client import gid
from tests.factories import Factory
from tests.feed import FEED, QUIET, happen, is_open, place_of, subscribed, token, until
from tests.servers import Server, Socket, running
from tests.wire import Wire, message

# ---- renewal


async def test_a_socket_shown_a_newer_token_stays_open_and_its_busy_feed_loses_nothing(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    over = asyncio.Event()

    async def busy() -> int:
        count = 0
        while not over.is_set():
            await happen(database, place, bed, 2)
            count += 2
            await asyncio.sleep(0.01)
        return count

    async with (
        running(settings, 1, **QUIET) as [server],
        Socket.open(server, token(doctor, ttl_s=5)) as watcher,
    ):
        await watcher.acknowledged()
        ends = datetime.now(UTC) + timedelta(seconds=5)
        await watcher.subscribe("1", FEED, id=gid("Dispensary", place))
        seen = [place_of((await watcher.event("1"))["cursor"])]
        bursting = asyncio.create_task(busy())
        for ttl_s in (600, 300, 600):  # the last to end counts
            await asyncio.sleep(0.5)
            await watcher.renew(token(doctor, ttl_s=ttl_s))
        pongs = [await asyncio.wait_for(watcher.pongs.get(), 20) for _ in range(3)]
        while datetime.now(UTC) < ends + timedelta(seconds=2):
            seen += [place_of(item["cursor"]) for item in (await watcher.event("1"))["changes"]]
        over.set()
        count = await bursting
        while seen[-1] < count:
            seen += [place_of(item["cursor"]) for item in (await watcher.event("1"))["changes"]]
        answer = await watcher.ask("2", {"query": "{ me { name } }"})

    told = [datetime.fromisoformat(pong["payload"]["expiresAt"]) for pong in pongs]
    assert count > 20
    assert seen == list(range(seen[0], count + 1))
    assert told[0] == told[1] <= told[2]
    assert timedelta(seconds=590) < told[0] - ends + timedelta(seconds=5) < timedelta(seconds=610)
    assert "errors" not in answer["payload"]


async def test_a_socket_is_renewed_by_its_own_account_with_the_same_roles_alone(
    database: Database, settings: Settings, make: Factory
) -> None:
    place, there = await make.dispensary(), await make.dispensary()
    doctor, other = await make.actor(doctor_of=(place,)), await make.actor(doctor_of=(place,))
    admin = await make.actor(superadmin=True)
    expired = token(doctor, ttl_s=1)
    async with running(settings, 1, **QUIET) as [server], AsyncExitStack() as stack:

        async def code_of(first: Actor | None, shown: str) -> int:
            socket = await stack.enter_async_context(Socket.open(server, token(first) if first else None))
            await socket.acknowledged()
            await socket.renew(shown)
            return await socket.closed()

        await asyncio.sleep(1.1)
        codes = {
            "another account": await code_of(doctor, token(other)),
            "an expired token": await code_of(doctor, expired),
            "a forged token": await code_of(doctor, token(doctor)[:-4] + "AAAA"),
            "a socket that nobody has signed in on": await code_of(None, token(doctor)),
        }
        staying = await stack.enter_async_context(Socket.open(server, token(admin)))
        await staying.acknowledged()
        async with database.transaction() as session:
            session.info.setdefault(NOTICES, {})
            await identity.grant_role(
                session, actor=admin, account_id=doctor.account_id, role=Role.DOCTOR, dispensary_id=there.id
            )
            session.info[NOTICES].clear()  # it is the renewal that finds it out
        async with database.transaction() as session:
            present = await actor_of(session, doctor.account_id)
        assert present is not None
        codes["other roles"] = await code_of(doctor, token(present))
        codes["the roles that were, on a socket of those that are"] = await code_of(present, token(doctor))
        await staying.renew(token(admin))
        pong = await asyncio.wait_for(staying.pongs.get(), 20)

    assert codes == {
        "another account": 4403,
        "an expired token": 4401,
        "a forged token": 4401,
        "a socket that nobody has signed in on": 4403,
        "other roles": 4403,
        "the roles that were, on a socket of those that are": 4403,
    }
    assert pong["payload"]["expiresAt"]


# ---- every event is authorised


async def _block(session: AsyncSession, admin: Actor, doctor: Actor, place: Any) -> None:
    await identity.block_account(session, actor=admin, account_id=doctor.account_id)


async def _revoke(session: AsyncSession, admin: Actor, doctor: Actor, place: Any) -> None:
    await identity.revoke_role(
        session, actor=admin, account_id=doctor.account_id, role=Role.DOCTOR, dispensary_id=place.id
    )


@pytest.mark.parametrize("sanction", [_block, _revoke], ids=["blocked", "revoked"])
@pytest.mark.parametrize("told", [True, False], ids=["told", "the notification is lost"])
async def test_whoever_is_blocked_or_loses_the_role_gets_no_further_event(
    database: Database, settings: Settings, make: Factory, sanction: Any, told: bool
) -> None:
    place = await make.dispensary()
    bed, admin = await make.bed(place), await make.actor(superadmin=True)
    doctor, other = await make.actor(doctor_of=(place,)), await make.actor(doctor_of=(place,))
    async with running(settings, 1, **QUIET) as [server], AsyncExitStack() as stack:
        losing = [
            await subscribed(stack, server, doctor, FEED, id=gid("Dispensary", place)) for _ in range(2)
        ]
        staying = await subscribed(stack, server, other, FEED, id=gid("Dispensary", place))
        await happen(database, place, bed)
        for watcher in (*losing, staying):
            await watcher.told("1", 1)
        # A renewal changes nothing of it.
        await losing[1].renew(token(doctor))

        async with database.transaction() as session:
            await sanction(session, admin, doctor, place)
            if not told:
                session.info[NOTICES].clear()
        if not told:
            # The event itself must find it out, long before anybody looks again.
            await happen(database, place, bed)
            await staying.told("1", 1)
        codes = [await watcher.closed() for watcher in losing]
        await happen(database, place, bed)
        await staying.told("1", 1)
        await until(lambda: is_open(server, 1))

    assert codes == [4403, 4403]
    assert all(watcher.frames["1"].empty() for watcher in losing)


async def test_a_lost_notification_keeps_a_blocked_accounts_quiet_socket_open_for_seconds_at_most(
    database: Database, settings: Settings, make: Factory
) -> None:
    doctor, admin = await make.actor(doctor_of=(await make.dispensary(),)), await make.actor(superadmin=True)
    async with running(settings, 1, **QUIET) as [server], Socket.open(server, token(doctor)) as quiet:
        await quiet.acknowledged()
        async with database.transaction() as session:
            await identity.block_account(session, actor=admin, account_id=doctor.account_id)
            session.info[NOTICES].clear()
        assert await quiet.closed() == 4403


# ---- how many


async def _opened(
    stack: AsyncExitStack, server: Server, actor: Actor | None, address: str = "127.0.0.1"
) -> tuple[Wire, int | None]:
    """A socket, and the code with which it was closed; None where it was acknowledged."""
    wire = await stack.enter_async_context(Wire.open(server, address=address))
    payload = {"authorization": f"Bearer {token(actor)}"} if actor else None
    await wire.send(message({"type": "connection_init", "payload": payload}))
    opcode, said = await asyncio.wait_for(wire.frame(), 30)
    return wire, None if opcode == 1 else int.from_bytes(said[:2])


async def test_an_account_and_an_address_have_so_many_sockets_in_all_processes_together(
    database: Database, settings: Settings, make: Factory
) -> None:
    first, second, third = [await make.actor() for _ in range(3)]
    few = {"EKOYKA_SOCKETS_PER_ACCOUNT": "3", "EKOYKA_SOCKETS_PER_ADDRESS": "5", **QUIET}
    async with running(settings, 2, **few) as servers, AsyncExitStack() as stack:

        async def opened(number: int, actor: Actor | None, address: str) -> int | None:
            wire, code = await _opened(stack, servers[number % 2], actor, address)
            wires.append(wire)
            return code

        wires: list[Wire] = []
        one = [await opened(number, first, "127.0.0.1") for number in range(4)]
        # Wherever it comes from.
        elsewhere = await opened(0, first, "127.0.0.2")
        two = [await opened(number, second, "127.0.0.1") for number in range(3)]
        nobody = await opened(1, None, "127.0.0.1")
        there = await opened(1, third, "127.0.0.3")
        wires[0].writer.transport.abort()

        async def again() -> bool:
            return await opened(1, first, "127.0.0.1") is None

        await until(again)

    assert one == [None] * 3 + [4429]
    assert elsewhere == 4429
    assert two == [None, None, 4429]
    assert (nobody, there) == (4429, None)


async def test_sockets_that_say_nothing_are_bounded_by_address_too(settings: Settings) -> None:
    async with (
        running(settings, 1, EKOYKA_SOCKETS_PER_ADDRESS="3", **QUIET) as [server],
        AsyncExitStack() as stack,
    ):
        silent = [await stack.enter_async_context(Wire.open(server)) for _ in range(4)]
        refused = await silent[3].closed(5)
        other = await stack.enter_async_context(Wire.open(server, address="127.0.0.2"))
        await other.begin()
        ended = [await wire.closed(INIT_PATIENCE.total_seconds() + 10) for wire in silent[:3]]
        await (await stack.enter_async_context(Wire.open(server))).begin()

    assert (refused, silent[3].reason.partition(":")[0]) == (
        4429,
        "There are as many sockets of this address as there may be",
    )
    assert ended == [4408] * 3


async def test_a_killed_process_keeps_nobody_out_for_a_minute(
    database: Database, settings: Settings, make: Factory
) -> None:
    actor = await make.actor()
    async with (
        running(settings, 2, EKOYKA_SOCKETS_PER_ACCOUNT="2", **QUIET) as [dying, server],
        AsyncExitStack() as stack,
    ):
        full = [(await _opened(stack, dying, actor))[1] for _ in range(3)]
        await dying.stop(signal.SIGKILL)
        at_once = (await _opened(stack, server, actor))[1]
        longest_s = await database.fetch_value(
            "SELECT max(extract(epoch FROM until - clock_timestamp()))::float FROM server_process"
        )
        await database.fetch(
            "UPDATE server_process SET until = until - make_interval(secs => $1)", longest_s + 1
        )
        later = (await _opened(stack, server, actor))[1]

    assert full == [None, None, 4429]
    assert at_once == 4429
    assert longest_s < LEASE_S + 1 < 60
    assert later is None


async def test_a_hospital_behind_one_address_has_room(settings: Settings, make: Factory) -> None:
    actors = [await make.actor() for _ in range(10)]
    async with running(settings, 1, **QUIET) as [server], AsyncExitStack() as stack:
        codes = await asyncio.gather(*(_opened(stack, server, actors[number % 10]) for number in range(300)))

    assert {code for _, code in codes} == {None}
