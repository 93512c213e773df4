"""The live feed over graphql-transport-ws, from real server processes."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import text

from ekoyka.database import Database
from ekoyka.identity import operations as identity
from ekoyka.identity.actors import Actor
from ekoyka.inpatient import reservations, stays
from ekoyka.inpatient.queries import BedChange, publish_beds
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import token
from tests.servers import Server, Socket, running

FEED = """subscription ($id: ID!, $after: String) { bedAvailability(dispensaryId: $id, after: $after) {
  kind cursor bed { id } changes { cursor change status bed { id } } counts { total free occupied } } }"""


async def change(server: Server, actor: Actor, mutation: str, **variables: Any) -> dict[str, Any]:
    """A mutation over HTTP; its result."""
    async with httpx.AsyncClient() as http:
        answer = await http.post(
            f"{server.url}/graphql",
            json={"query": mutation, "variables": variables},
            headers={"authorization": f"Bearer {token(actor)}"},
        )
    [result] = answer.json()["data"].values()
    found: dict[str, Any] = result
    return found


async def test_every_committed_change_reaches_subscribers_of_every_process_in_order(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary(cleaning_after_check_out=True)
    bed, other = await make.bed(place), await make.bed(place)
    patient, doctor = await make.patient(place), await make.actor(doctor_of=(place,))
    async with (
        running(settings, 2, EKOYKA_LAPSE_INTERVAL_S="0.1") as (first, second),
        Socket.open(first, token(doctor)) as near,
        Socket.open(second, token(doctor)) as far,
    ):
        for watcher in (near, far):
            await watcher.acknowledged()
            await watcher.subscribe("1", FEED, id=gid("Dispensary", place))
            start = await watcher.event("1")
            assert (start["kind"], start["bed"], start["changes"], start["counts"]) == (
                "SNAPSHOT",
                None,
                [],
                {"total": 2, "free": 2, "occupied": 0},
            )
        await near.subscribe(
            "2",
            "subscription ($id: ID!) { bedChanged(bedId: $id) { kind bed { id } changes { change status } } }",
            id=gid("Bed", other),
        )
        assert await near.event("2") == {"kind": "SNAPSHOT", "bed": {"id": gid("Bed", other)}, "changes": []}

        checked_in = await change(
            second,
            doctor,
            "mutation ($p: ID!, $b: ID!) "
            "{ stayCheckIn(input: {patientId: $p, bedId: $b}) { ... on Stay { id version } } }",
            p=gid("Patient", patient),
            b=gid("Bed", bed),
        )
        moved = await change(
            first,
            doctor,
            "mutation ($s: ID!, $b: ID!) "
            "{ stayTransfer(input: {id: $s, version: 1, bedId: $b}) { ... on Stay { version } } }",
            s=checked_in["id"],
            b=gid("Bed", other),
        )
        await change(
            second,
            doctor,
            "mutation ($s: ID!, $v: Int!) "
            "{ stayCheckOut(input: {id: $s, version: $v, outcome: DISCHARGED}) { __typename } }",
            s=checked_in["id"],
            v=moved["version"],
        )
        for state in ("IN_SERVICE", "CONTAMINATED"):
            await change(
                first,
                doctor,
                f"mutation ($b: ID!) {{ bedSetServiceState(input: {{id: $b, state: {state}}}) {{ __typename }} }}",
                b=gid("Bed", bed),
            )
        await change(
            first,
            doctor,
            "mutation ($b: ID!) { bedSetServiceState(input: {id: $b, state: IN_SERVICE}) { __typename } }",
            b=gid("Bed", other),
        )
        await change(
            first,
            doctor,
            "mutation ($b: ID!, $u: DateTime!) { bedReserve(input: {bedId: $b, until: $u}) { __typename } }",
            b=gid("Bed", other),
            u=(datetime.now(UTC) + timedelta(seconds=4)).isoformat(),
        )

        expected = [
            (bed, "CHECKED_IN", "OCCUPIED"),
            (bed, "TRANSFERRED_OUT", "CLEANING"),
            (other, "TRANSFERRED_IN", "OCCUPIED"),
            (other, "CHECKED_OUT", "CLEANING"),
            (bed, "SERVICE_STATE_CHANGED", "FREE"),
            (bed, "SERVICE_STATE_CHANGED", "CONTAMINATED"),
            (other, "SERVICE_STATE_CHANGED", "FREE"),
            (other, "RESERVED", "RESERVED"),
            (other, "RESERVATION_LAPSED", "FREE"),
        ]
        for watcher in (near, far):
            seen = await watcher.told("1", len(expected))
            assert [(item["bed"]["id"], item["change"], item["status"]) for item in seen] == [
                (gid("Bed", row), what, status) for row, what, status in expected
            ]
            assert watcher.last["counts"] == {"total": 2, "free": 1, "occupied": 0}
            assert watcher.last["cursor"] == seen[-1]["cursor"]
        narrow = await near.told("2", sum(row is other for row, *_ in expected))
        assert [item["change"] for item in narrow] == [what for row, what, _ in expected if row is other]


async def test_a_client_that_comes_back_misses_nothing_and_sees_nothing_twice(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))

    async def happen(count: int) -> None:
        for _ in range(count):
            async with database.transaction() as session:
                await publish_beds(session, place.id, (bed.id, BedChange.CORRECTED))

    async with running(settings) as (server,):
        async with Socket.open(server, token(doctor)) as before:
            await before.acknowledged()
            await before.subscribe("1", FEED, id=gid("Dispensary", place))
            cursors = [(await before.event("1"))["cursor"]]
            await happen(3)
            cursors += [item["cursor"] for item in await before.told("1", 3)]
        await happen(2)
        async with Socket.open(server, token(doctor)) as after:
            await after.acknowledged()
            await after.subscribe("1", FEED, id=gid("Dispensary", place), after=cursors[1])
            again = await after.told("1", 4)
            await happen(1)
            again += await after.told("1", 1)
            assert [item["cursor"] for item in again[:2]] == cursors[2:]
            assert len({item["cursor"] for item in again} | set(cursors)) == 7

            async with database.transaction() as session:
                await session.execute(text("DELETE FROM feed_event WHERE cursor <= 4"))
            await after.subscribe("2", FEED, id=gid("Dispensary", place), after=cursors[1])
            assert (await after.event("2"))["kind"] == "SNAPSHOT"
            await after.subscribe("3", FEED, id=gid("Dispensary", place), after="bm9uc2Vuc2U=")
            assert _codes(await after.next("3")) == ["BAD_USER_INPUT"]
            await after.subscribe("4", FEED, id=gid("Dispensary", place), after="é")
            assert _codes(await after.next("4")) == ["BAD_USER_INPUT"]


async def test_commits_out_of_order_are_seen_in_the_order_of_their_cursors(
    database: Database, make: Factory
) -> None:
    """A slow transaction that published first holds the topic: the quick one waits, none is skipped."""
    place = await make.dispensary()
    bed = await make.bed(place)
    published = asyncio.Event()
    let_go = asyncio.Event()

    async def slow() -> None:
        async with database.transaction() as session:
            await publish_beds(session, place.id, (bed.id, BedChange.RESERVED))
            published.set()
            await let_go.wait()

    async def quick() -> None:
        async with database.transaction() as session:
            await publish_beds(session, place.id, (bed.id, BedChange.CORRECTED))

    async def cursors() -> list[tuple[int, str]]:
        rows = await database.fetch("SELECT cursor, payload->>'change' FROM feed_event ORDER BY cursor")
        return [(row[0], row[1]) for row in rows]

    first = asyncio.create_task(slow())
    await published.wait()
    second = asyncio.create_task(quick())
    await asyncio.sleep(0.2)
    waiting = await cursors()
    let_go.set()
    await asyncio.gather(first, second)

    assert waiting == []
    assert await cursors() == [(1, "RESERVED"), (2, "CORRECTED")]


async def test_after_the_listening_connection_was_cut_subscribers_get_what_they_missed_and_a_fresh_snapshot(
    owned: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    async with running(settings) as (server,), Socket.open(server, token(doctor)) as watcher:
        await watcher.acknowledged()
        await watcher.subscribe("1", FEED, id=gid("Dispensary", place))
        await watcher.event("1")

        async with owned.transaction() as session:
            cut = await session.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'ekoyka feed' AND datname = current_database()"
                )
            )
            assert cut.scalars().all() == [True]
            await publish_beds(session, place.id, (bed.id, BedChange.CORRECTED))

        kinds = [(await watcher.event("1"))["kind"]]
        while kinds[-1] != "SNAPSHOT":
            kinds.append((await watcher.event("1"))["kind"])
        assert kinds == ["CHANGE", "SNAPSHOT"]


async def test_nothing_is_told_before_the_commit_or_of_what_was_rolled_back(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    bed, doctor, patient = (
        await make.bed(place),
        await make.actor(doctor_of=(place,)),
        await make.patient(place),
    )
    async with running(settings) as (server,), Socket.open(server, token(doctor)) as watcher:
        await watcher.acknowledged()
        await watcher.subscribe("1", FEED, id=gid("Dispensary", place))
        await watcher.event("1")

        with contextlib.suppress(LookupError):
            async with database.transaction() as session:
                await stays.check_in(session, actor=doctor, patient_id=patient.id, bed_id=bed.id)
                raise LookupError
        async with database.transaction() as session:
            await reservations.reserve_bed(
                session,
                actor=doctor,
                bed_id=bed.id,
                until=datetime.now(UTC) + timedelta(hours=1),
                patient_id=None,
            )

        assert [item["change"] for item in await watcher.told("1", 1)] == ["RESERVED"]


async def test_a_socket_is_closed_when_its_token_ends_or_its_account_is_blocked(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    doctor, admin = await make.actor(doctor_of=(place,)), await make.actor(superadmin=True)
    async with running(settings) as (server,):
        async with Socket.open(server, token(doctor, ttl_s=5)) as ending:
            await ending.acknowledged()
            assert await ending.closed() == 4401
        async with Socket.open(server, "nonsense") as forged:
            assert await forged.closed() == 4401
        async with Socket.open(server, token(doctor)) as blocked:
            await blocked.acknowledged()
            await blocked.subscribe("1", FEED, id=gid("Dispensary", place))
            await blocked.event("1")
            async with database.transaction() as session:
                await identity.block_account(session, actor=admin, account_id=doctor.account_id)
            assert await blocked.closed() == 4403


async def test_a_feed_outside_ones_scope_is_as_if_it_were_not_there(
    database: Database, settings: Settings, make: Factory
) -> None:
    here, there = await make.dispensary(), await make.dispensary()
    bed = await make.bed(there)
    doctor, user = await make.actor(doctor_of=(here,)), await make.actor()
    narrow = "subscription ($id: ID!) { bedChanged(bedId: $id) { kind } }"
    async with running(settings) as (server,):
        async with Socket.open(server, token(doctor)) as watcher:
            await watcher.acknowledged()
            for number, (query, row) in enumerate(
                (
                    (FEED, gid("Dispensary", there)),
                    (FEED, gid("Dispensary", 10**9)),
                    (narrow, gid("Bed", bed)),
                    (narrow, gid("Bed", 10**9)),
                )
            ):
                await watcher.subscribe(str(number), query, id=row)
                assert _codes(await watcher.next(str(number))) == ["NOT_FOUND"]
        async with Socket.open(server, token(user)) as stranger:
            await stranger.acknowledged()
            await stranger.subscribe("1", FEED, id=gid("Dispensary", here))
            assert _codes(await stranger.next("1")) == ["FORBIDDEN"]
        async with Socket.open(server, None) as nobody:
            await nobody.acknowledged()
            await nobody.subscribe("1", FEED, id=gid("Dispensary", here))
            assert _codes(await nobody.next("1")) == ["UNAUTHENTICATED"]


def _codes(frame: dict[str, Any]) -> list[str]:
    errors = frame["payload"] if frame["type"] == "error" else frame["payload"]["errors"]
    return [error["extensions"]["code"] for error in errors]


async def test_forty_check_ins_over_http_and_several_processes_leave_one_winner(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    room, doctor = await make.room(place), await make.actor(doctor_of=(place,))
    beds = [await make.bed(place, room) for _ in range(41)]
    patients = [await make.patient(place) for _ in range(41)]
    query = (
        "mutation ($p: ID!, $b: ID!) { stayCheckIn(input: {patientId: $p, bedId: $b}) "
        "{ __typename ... on BedOccupied { occupiedSince alternatives { id } } } }"
    )
    async with running(settings, 3) as servers, httpx.AsyncClient(timeout=60) as http:
        headers = {"authorization": f"Bearer {token(doctor)}"}

        async def attempt(number: int, patient: Any, bed: Any) -> tuple[int, str]:
            variables = {"p": gid("Patient", patient), "b": gid("Bed", bed)}
            answer = await http.post(
                f"{servers[number % 3].url}/graphql",
                json={"query": query, "variables": variables},
                headers=headers,
            )
            return answer.status_code, answer.json()["data"]["stayCheckIn"]["__typename"]

        one_bed = await asyncio.gather(*(attempt(n, patients[n], beds[0]) for n in range(40)))
        one_patient = await asyncio.gather(*(attempt(n, patients[40], beds[1 + n]) for n in range(40)))

    assert sorted(one_bed) == [(200, "BedOccupied")] * 39 + [(200, "Stay")]
    assert sorted(one_patient) == [(200, "PatientAlreadyAdmitted")] * 39 + [(200, "Stay")]
    assert (
        await database.fetch_value("SELECT count(*) FROM bed_assignment WHERE bed_id = $1", beds[0].id) == 1
    )
    assert await database.fetch_value("SELECT count(*) FROM stay") == 2
