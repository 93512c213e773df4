"""What one operation may ask for: each limit, refused before any SQL, and in the time of the text's own length."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from graphql import get_introspection_query

from ekoyka import documents
from ekoyka.database import Database
from ekoyka.graph.limits import MAX_COST, MOST
from ekoyka.settings import Settings
from tests.client import Client, gid
from tests.factories import Factory
from tests.feed import token
from tests.servers import Socket, running


def _doubling(type_name: str, levels: int, last: str) -> str:
    """Fragments of which each spreads the next twice."""
    chain = "".join(f"fragment f{n} on {type_name} {{ ...f{n + 1} ...f{n + 1} }} " for n in range(levels))
    return f"{chain} fragment f{levels} on {type_name} {{ {last} }}"


def _nested(levels: int) -> str:
    return "{ account(id: 1) " + "{ patient { account " * levels + "{ id }" + "} }" * levels + " }"


TOO_MUCH = {
    "a chain of fragments that doubles at the root": (
        "{ ...f0 } " + _doubling("Query", 20, "me { id }"),
        "root fields",
    ),
    "a chain of fragments that doubles below": (
        "{ me { ...f0 } } " + _doubling("Account", 25, "x: id"),
        "aliases",
    ),
    "a chain of fragments without end": (
        "{ me { ...f0 } } "
        + "".join(f"fragment f{n} on Account {{ ...f{n + 1} }} " for n in range(120))
        + "fragment f120 on Account { id }",
        "depth",
    ),
    "depth": (_nested(6), "depth"),
    "aliases": ("{ " + " ".join(f"a{n}: me {{ id }}" for n in range(16)) + " }", "aliases"),
    "directives": ("{ me { id " + "@include(if: true) " * 9 + "} }", "directives"),
    "root fields": ("{ " + "me { id } " * 21 + "}", "root fields"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_a_document_that_asks_for_too_much_is_refused_by_name_before_any_sql(
    client: Client, make: Factory, name: str
) -> None:
    text, limit = TOO_MUCH[name]
    boss = await make.actor(superadmin=True)
    before = client.services.database.statements

    answer = await client.post(text, boss)

    [error] = answer["errors"]
    extensions = error["extensions"]
    assert (extensions["code"], extensions["limit"]) == ("QUERY_TOO_EXPENSIVE", limit)
    assert extensions["allowed"] == MOST[limit] < extensions["asked"]
    assert "data" not in answer
    assert client.services.database.statements == before


HOSTILE = {
    **{name: text for name, (text, _) in TOO_MUCH.items()},
    "a cycle": "{ ...a } fragment a on Query { ...b } fragment b on Query { ...a me { id } }",
    "deep braces": "{a" * 10_000 + "}" * 10_000,
    "deep lists": "{ nodes(ids: " + "[" * 5000 + "]" * 5000 + ") { id } }",
    "tokens": "{ me { " + "id " * 20_000 + "} }",
    "the same field again and again": "{ me { " + "id " * 900 + "} }",
    "fields that may clash": "{ " + " ".join(f"beds(first: {n}) {{ totalCount }}" for n in range(19)) + " }",
    "introspection of introspection": "{ __schema { types { "
    + "fields { type { " * 12
    + "name"
    + " } } " * 12
    + " } } }",
    "a number of 5,000 digits": "{ beds(first: " + "9" * 5000 + ") { totalCount } }",
    "variables": "query (" + " ".join(f"$a{n}: Int" for n in range(190)) + ") { me { id } }",
    "a long text": '{ patients(where: {search: "' + "x" * 60_000 + '"}) { totalCount } }',
    "pages of pages of pages": "{ rooms(first: 999999999) { edges { node { "
    + "beds(first: 999999999) { edges { node { room { " * 3
    + "number"
    + " } } } }" * 3
    + " } } } }",
    "all of introspection, many times": "{ "
    + " ".join(f"a{n}: __schema {{ ...s }}" for n in range(15))
    + " } fragment s on __Schema { types { name description fields { name description args { name description "
    "type { name ofType { name ofType { name } } } } type { name ofType { name ofType { name } } } } "
    "inputFields { name description type { name ofType { name } } } enumValues { name description } } }",
    "fragments that were measured further up": "{ me { "
    + " ".join(f"...f{n}" for n in range(12))
    + " } } "
    + "".join(
        f"fragment f{n} on Account {{ {'...{ ' * 20} {f'...f{n - 1}' if n else 'id'} {' }' * 20} }} "
        for n in range(12)
    ),
    "an order in lists of lists": "{ patients(orderBy: " + "[" * 190 + "]" * 190 + ") { totalCount } }",
    "a filter in filters": "{ patients(where: " + "{search: " * 150 + "1" + "}" * 150 + ") { totalCount } }",
    "ids": "{ nodes(ids: [" + '"x", ' * 480 + "]) { id } }",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_no_document_holds_the_server_for_long(client: Client, make: Factory, name: str) -> None:
    """0.3 s is the bound; what is measured is this process's own time, whatever else the machine does."""
    boss = await make.actor(superadmin=True)
    await client.data("{ me { id } }", boss)
    began = time.process_time()

    answer = await client.post(HOSTILE[name], boss)

    assert time.process_time() - began < 0.3
    codes = {error["extensions"]["code"] for error in answer.get("errors", ())}
    assert codes <= {
        "QUERY_TOO_EXPENSIVE",
        "GRAPHQL_PARSE_FAILED",
        "GRAPHQL_VALIDATION_FAILED",
        "BAD_USER_INPUT",
    }


MANY = {
    "ids of everything": (
        "[ID!]!",
        "nodes(ids: $v) { id ... on Bed { label } ... on Stay { checkedInAt } }",
        "ids",
    ),
    "ids that are none": ("[ID!]!", "nodes(ids: $v) { id }", [{}] * 9000),
    "lists of lists that are no ids": ("[ID!]!", "nodes(ids: $v) { id }", [[[]]] * 9000),
    "the same status again and again": (
        "[BedStatus!]",
        "beds(where: {status: $v}) { totalCount }",
        ["FREE"] * 6000,
    ),
    "a status that is none": ("[BedStatus!]", "beds(where: {status: $v}) { totalCount }", ["X"] * 9000),
    "an order that does not end": (
        "[PatientOrder!]",
        "patients(orderBy: $v) { totalCount }",
        [{"field": "NAME", "direction": "ASC"}] * 1200,
    ),
    "many words": ("String", "patients(where: {search: $v}) { totalCount }", "а " * 15_000),
    "a long cursor": ("String", "patients(after: $v) { totalCount }", "x" * 60_000),
    "filters that are not there": (
        "PatientWhere",
        "patients(where: $v) { totalCount }",
        {f"f{n}": 1 for n in range(5000)},
    ),
}


@pytest.mark.parametrize("name", MANY)
async def test_no_variables_hold_the_server_for_long(client: Client, make: Factory, name: str) -> None:
    type_name, field, value = MANY[name]
    boss = await make.actor(superadmin=True)
    await client.data("{ me { id } }", boss)
    if value == "ids":
        value = [gid(kind, key) for key in range(1, 1600) for kind in ("Bed", "Stay")]
    began = time.process_time()

    answer = await client.post(f"query ($v: {type_name}) {{ {field} }}", boss, v=value)

    assert time.process_time() - began < 0.3
    errors = answer.get("errors", ())
    assert len(errors) <= 5
    assert {error["extensions"]["code"] for error in errors} <= {
        "BAD_USER_INPUT",
        "GRAPHQL_VALIDATION_FAILED",
    }


async def test_a_variable_that_may_be_null_makes_no_page_cheaper(client: Client, make: Factory) -> None:
    """Of `first: null, last: 100` the page has a hundred rows, whatever stands first."""
    boss = await make.actor(superadmin=True)
    page = "edges { node { beds(first: $n, last: 100) { edges { node { label } } } } }"

    for query in (
        f"query ($n: Int) {{ rooms(first: $n, last: 100) {{ {page} }} }}",
        f"query ($n: Int = null) {{ rooms(first: $n, last: 100) {{ {page} }} }}",
        f"query ($n: Int) {{ rooms(first: null, last: 100) {{ {page} }} }}",
    ):
        [error] = (await client.post(query, boss))["errors"]
        assert error["extensions"]["code"] == "QUERY_TOO_EXPENSIVE", query


async def test_what_is_asked_is_told_in_numbers_that_clients_can_read(client: Client, make: Factory) -> None:
    boss = await make.actor(superadmin=True)
    query = (
        "query ($n: Int) { rooms(first: $n) { edges { node { beds(first: $n) { edges { node { room "
        "{ beds(first: $n) { edges { node { label } } } } } } } } } } }"
    )

    [error] = (await client.post(query, boss, n=2**31 - 1))["errors"]

    assert error["extensions"]["asked"] == 2**53 - 1


async def test_the_limits_hold_on_the_socket_and_for_trusted_documents(
    settings: Settings, make: Factory, database: Database
) -> None:
    boss, place = await make.actor(superadmin=True), await make.dispensary()
    watch = (
        "subscription ($id: ID!, $n: Int) { bedAvailability(dispensaryId: $id) { dispensary { rooms(first: $n) "
        "{ edges { node { beds(first: $n) { edges { node { label } } } } } } } } }"
    )
    page = "query ($n: Int) { rooms(first: $n) { edges { node { beds(first: $n) { edges { node { id } } } } } } }"
    async with database.transaction() as session:
        await documents.register(session, "test", [page])

    async with running(settings) as [server], Socket.open(server, token(boss)) as socket:
        await socket.acknowledged()
        given = {"id": gid("Dispensary", place), "n": 100}
        frames = [
            await socket.ask("1", {"query": watch, "variables": given}),
            await socket.ask("2", {"query": page, "variables": given}),
            await socket.ask("3", {"documentId": documents.identify(page), "variables": given}),
            *[await socket.ask(name, {"query": text}) for name, (text, _) in TOO_MUCH.items()],
        ]
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {token(boss)}"}) as http:
            posted = await http.post(
                f"{server.url}/graphql",
                json={"documentId": documents.identify(page), "variables": {"n": 100}},
            )

    told = [frame["payload"] for frame in frames] + [posted.json()]
    for payload in told:
        [error] = payload if isinstance(payload, list) else payload["errors"]
        assert error["extensions"]["code"] == "QUERY_TOO_EXPENSIVE"


async def test_a_cost_counts_the_rows_that_pages_may_hold_and_is_told_with_the_answer(
    client: Client, make: Factory
) -> None:
    boss = await make.actor(superadmin=True)
    query = "query ($n: Int, $m: Int) { rooms(first: $n) { edges { node { id beds(first: $m) { totalCount } } } } }"

    async def cost(**variables: Any) -> Any:
        return (await client.post(query, boss, **variables))["extensions"]["cost"]

    assert await cost(n=10, m=5) == 10 * (1 + 5)
    assert await cost(n=100, m=49) == MAX_COST
    assert await cost() == 20 * (1 + 20)
    assert (await client.post("{ me { id } }", boss))["extensions"]["cost"] == 1
    refused = await client.post(query, boss, n=100, m=50)
    [error] = refused["errors"]
    assert error["extensions"] == {
        "code": "QUERY_TOO_EXPENSIVE",
        "limit": "cost",
        "asked": 5100,
        "allowed": MAX_COST,
    }


async def test_what_clients_really_ask_is_within_the_limits(client: Client, make: Factory) -> None:
    place, boss = await make.dispensary(), await make.actor(superadmin=True)

    answer = await client.post(get_introspection_query(input_value_deprecation=True), boss)
    assert len(answer["data"]["__schema"]["types"]) > 50

    board = """query ($id: ID!) { dispensary(id: $id) { name rooms(first: 50) { edges { node { number
      beds(first: 20) { edges { node { label currentAssignment { stay { patient { familyName } } } } } } } } } } }"""
    assert (await client.post(board, boss, id=gid("Dispensary", place)))["extensions"]["cost"] == 4051
