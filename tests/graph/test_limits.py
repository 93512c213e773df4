"""What one operation may ask for: each limit, refused before any SQL, and in the time of the text's own length."""

from __future__ import annotations

import time
from typing import Any

import pytest
from graphql import get_introspection_query

from ekoyka.graph.limits import MAX_COST, MOST
from tests.client import Client, gid
from tests.factories import Factory


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
