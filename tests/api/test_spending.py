"""What expensive operations cost is counted for each account, wherever it is asked: named, with when to come back."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from ekoyka.database import Database
from ekoyka.identity import limits
from ekoyka.identity.actors import Actor
from ekoyka.rates import Purses, RateLimited
from ekoyka.settings import Settings
from tests.client import Client, gid, serving
from tests.factories import Factory
from tests.feed import token
from tests.servers import Socket, running

PER_MINUTE = 10_000
# 100 rows, and what is asked of each.
DEAR = "{ beds(first: 100) { edges { node { room { dispensary { rooms(first: 6) { edges { node { id } } } } } } } } }"
CHEAP = "{ beds(first: 100) { edges { node { label } } } }"
COST = 100 * (1 + 1 + 1 + 6)


@pytest.fixture
async def strict(settings: Settings) -> AsyncIterator[Client]:
    """A server whose accounts may ask for little."""
    async with serving(settings.model_copy(update={"cost_per_minute": PER_MINUTE})) as client:
        yield client


async def ask(client: Client, actor: Actor, query: str = DEAR, **variables: Any) -> httpx.Response:
    return await client.http.post(
        "/graphql",
        json={"query": query, "variables": variables},
        headers={"authorization": f"Bearer {client.token(actor)}"},
    )


async def until_refused(client: Client, actor: Actor, query: str = DEAR, **variables: Any) -> int:
    """How many are answered before one is refused."""
    for number in range(200):
        if (await ask(client, actor, query, **variables)).status_code == 429:
            return number
    raise AssertionError("nothing was refused")


async def test_whoever_asks_for_too_much_in_a_minute_is_told_when_to_come_back(
    strict: Client, make: Factory
) -> None:
    """Administrators, too; and nobody else has to wait for it."""
    boss, other = await make.actor(superadmin=True), await make.actor(superadmin=True)
    await make.bed(await make.dispensary())

    answered = await until_refused(strict, boss)
    before = strict.services.database.statements
    refused = await ask(strict, boss)

    assert answered == PER_MINUTE // COST
    [error] = refused.json()["errors"]
    assert error["extensions"]["code"] == "RATE_LIMITED"
    assert refused.headers["retry-after"] == str(error["extensions"]["retryAfterS"])
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert strict.services.database.statements == before  # nor is PostgreSQL asked again
    assert (await ask(strict, boss, CHEAP)).status_code == 200
    assert (await ask(strict, other)).json()["extensions"] == {"cost": COST}


async def test_an_ordinary_query_takes_no_statement_more_and_an_expensive_one_few(
    client: Client, make: Factory
) -> None:
    boss = await make.actor(superadmin=True)

    async def statements(query: str, times: int) -> int:
        before = client.services.database.statements
        for _ in range(times):
            assert (await ask(client, boss, query)).status_code == 200
        return client.services.database.statements - before

    assert await statements(CHEAP, 30) == 30
    assert await statements(DEAR, 30) == 30 + 2  # portions of a twentieth of 500,000
    assert await client.services.database.fetch_value("SELECT count(*) FROM rate") == 3


async def test_many_at_once_fetch_no_more_than_they_spend(database: Database) -> None:
    purses = Purses(database)
    limit = limits.spending("somebody", None, PER_MINUTE)

    spent = await asyncio.gather(
        *(purses.spend("somebody", 400, *limit) for _ in range(40)), return_exceptions=True
    )

    assert spent.count(None) == PER_MINUTE // 400
    assert all(isinstance(item, RateLimited) for item in spent if item is not None)


async def test_what_is_spent_is_counted_by_address_and_in_all_too(database: Database) -> None:
    async def spend(who: str, address: str) -> bool:
        try:
            await Purses(database).spend(who, 5000, *limits.spending(who, address, PER_MINUTE))
        except RateLimited:
            return False
        return True

    one_place = [await spend(f"account {n}", "192.0.2.1") for n in range(25)]
    everywhere = [await spend(f"account {1000 + n}", f"192.0.2.{n}") for n in range(200)]
    everywhere += [await spend(f"account {2000 + n}", f"198.51.100.{n}") for n in range(200)]

    assert one_place == [True] * 20 + [False] * 5
    assert (everywhere.count(True), everywhere[-1]) == (380, False)


async def test_two_processes_share_what_an_account_may_ask_for(settings: Settings, make: Factory) -> None:
    boss = await make.actor(superadmin=True)
    headers = {"authorization": f"Bearer {token(boss)}"}

    async with (
        running(settings, 2, EKOYKA_COST_PER_MINUTE=str(PER_MINUTE)) as servers,
        httpx.AsyncClient(headers=headers) as http,
    ):
        answers = [
            (await http.post(f"{servers[number % 2].url}/graphql", json={"query": DEAR})).status_code
            for number in range(30)
        ]

    # Each may hold a portion that it has not spent.
    assert PER_MINUTE // COST - 2 <= answers.count(200) <= PER_MINUTE // COST
    assert set(answers[-10:]) == {429}


async def test_over_the_socket_it_is_told_in_the_error(settings: Settings, make: Factory) -> None:
    boss, place = await make.actor(superadmin=True), await make.dispensary()
    watch = (
        "subscription ($id: ID!) { bedAvailability(dispensaryId: $id) { dispensary { rooms(first: 100) "
        "{ edges { node { beds(first: 9) { edges { node { label } } } } } } } } }"
    )

    async with (
        running(settings, EKOYKA_COST_PER_MINUTE="3000") as [server],
        Socket.open(server, token(boss)) as socket,
    ):
        await socket.acknowledged()
        watched = [
            await socket.ask(str(n), {"query": watch, "variables": {"id": gid("Dispensary", place)}})
            for n in range(4)
        ]
        _, query = [await socket.ask(name, {"query": DEAR}) for name in ("what is left", "too much")]

    assert [frame["type"] for frame in watched] == ["next", "next", "error", "error"]
    told = query["payload"]
    for errors in (watched[-1]["payload"], told if isinstance(told, list) else told["errors"]):
        [error] = errors
        assert error["extensions"]["code"] == "RATE_LIMITED"
        assert 0 < error["extensions"]["retryAfterS"] <= 60


@pytest.mark.parametrize(
    ("query", "variables", "cost"),
    [
        ('{ patients(where: {search: "ив"}, first: 5) { edges { node { id } } } }', {}, 505),
        (
            "query ($t: String) { patients(where: {search: $t}, first: 5) { edges { cursor } } }",
            {"t": "ив"},
            505,
        ),
        (
            "query ($w: PatientWhere) { patients(where: $w, first: 5) { edges { cursor } } }",
            {"w": {"search": "ив"}},
            505,
        ),
        (
            "query ($w: PatientWhere) { patients(where: $w, first: 5) { edges { cursor } } }",
            {"w": {"search": None}},
            5,
        ),
        ("query ($w: PatientWhere) { patients(where: $w, first: 5) { edges { cursor } } }", {}, 5),
        (
            '{ stays(where: {patientSearch: "ив", diagnosis: "F10"}, first: 5) { edges { cursor } } }',
            {},
            1005,
        ),
        ('{ accounts(where: {search: "ив"}, first: 5) { edges { cursor } } }', {}, 505),
        (
            "{ stays(orderBy: [{field: PATIENT_NAME, direction: ASC}], first: 5) { edges { cursor } } }",
            {},
            505,
        ),
        (
            "{ stays(orderBy: [{field: CHECKED_IN_AT, direction: ASC}], first: 5) { edges { cursor } } }",
            {},
            5,
        ),
        (
            "query ($o: [StayOrder!]) { stays(orderBy: $o, first: 5) { edges { cursor } } }",
            {"o": [{"field": "PATIENT_NAME", "direction": "DESC"}]},
            505,
        ),
        (
            "query ($f: StayOrderField!) "
            "{ stays(orderBy: {field: $f, direction: ASC}, first: 5) { edges { cursor } } }",
            {"f": "CHECKED_IN_AT"},
            505,
        ),
        # A search in each of the rows of a page.
        (
            "{ dispensaries(first: 3) { edges { node "
            '{ stays(where: {patientSearch: "ив"}, first: 2) { totalCount } } } } }',
            {},
            3 * (1 + 2 + 500),
        ),
        (
            "{ patients(first: 5) { totalCount } stays(first: 5) { ...n } } "
            "fragment n on StayConnection { totalCount }",
            {},
            410,
        ),
        ("{ __schema { queryType { name } } }", {}, 3000),
        ('{ a: __type(name: "Bed") { name } b: __type(name: "Room") { name } }', {}, 400),
    ],
)
async def test_searches_counts_and_orders_without_an_index_cost_what_they_look_through(
    client: Client, make: Factory, query: str, variables: dict[str, Any], cost: int
) -> None:
    boss = await make.actor(superadmin=True)

    assert (await client.post(query, boss, **variables))["extensions"] == {"cost": cost}


async def test_the_making_of_certificates_is_counted(strict: Client, make: Factory) -> None:
    place = await make.dispensary()
    stay = await make.stay(await make.patient(place), await make.bed(place))
    doctor = await make.actor(doctor_of=(place,))
    issue = "mutation ($id: ID!) { certificateIssue(input: {stayId: $id}) { __typename ... on Refusal { code } } }"

    answered = await until_refused(strict, doctor, issue, id=gid("Stay", stay))

    assert answered == PER_MINUTE // 1001
