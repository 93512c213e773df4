"""Everything that can be asked × every role × {one's own, another dispensary's, nobody's}, from the schema itself."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest
from starlette.routing import Mount, Route, WebSocketRoute

from ekoyka.graph.model import TYPES
from ekoyka.identity.actors import Actor
from ekoyka.settings import Settings
from tests.api.matrix import FIELDS, MAY_NAME_ANYBODY, NODES, ROLES, ROUTES, reach
from tests.api.questions import NOBODY, Question, as_role, questions, world
from tests.client import Client
from tests.factories import Factory
from tests.feed import token
from tests.servers import Socket, running


def test_every_field_and_kind_of_row_has_its_line(client: Client) -> None:
    schema = client.app.state.schema._schema
    asked = {
        f"{root.name}.{name}"
        for root in (schema.query_type, schema.mutation_type, schema.subscription_type)
        for name in root.fields
    }

    assert asked == set(FIELDS)
    assert {name for name, decl in TYPES.items() if decl.node} == set(NODES)


async def ask(client: Client, question: Question, actor: Actor | None, variables: Any) -> bytes:
    headers = {"authorization": f"Bearer {client.token(actor)}"} if actor else {}
    answer = await client.http.post(
        "/graphql", json={"query": question.document, "variables": variables}, headers=headers
    )
    return answer.content


def is_there(answer: bytes, name: str) -> bool:
    """Whether the answer is about a row, as opposed to saying that there is none."""
    body = orjson.loads(answer)
    assert "errors" not in body, body
    found = body["data"][name]
    if isinstance(found, list):
        found = next(iter(found), None)
    if isinstance(found, dict) and "edges" in found:
        return bool(found["edges"])
    return found is not None and found["__typename"] != "NotFound"


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["Query", "Mutation"])
async def test_each_role_reaches_what_is_its_own_and_the_rest_is_not_there(
    client: Client, make: Factory, role: str, kind: str
) -> None:
    """Outside one's scope a row does not exist: the answer is that for a row that never was, to the byte."""
    there = await world(make, "Тамошний")
    actor, here = await as_role(make, role, await world(make, "Здешний"))
    held = frozenset(item.value for item in actor.roles) if actor else frozenset({"ANONYMOUS"})
    outside = there.word.lower().encode()

    for question in questions(client.app.state.schema._schema, held, (kind,)):
        line = FIELDS[f"{kind}.{question.name}"]
        if question.name in ("node", "nodes"):
            line = NODES[question.ids[0][1]]
        expected, where = reach(line, role), f"{role}: {question.name} {question.ids[:1]}"
        if kind == "Mutation" and expected != "-":
            actor, here = await as_role(make, role, await world(make, "Здешний"))
        if expected == "-":
            before = client.services.database.statements
            answer = await ask(client, question, actor, question.with_rows(here.rows))
            code = b"UNAUTHENTICATED" if actor is None else b"FORBIDDEN"
            assert answer.count(b'"code":"' + code + b'"') == 1, (where, answer)
            assert b'"data":{' not in answer, where
            assert client.services.database.statements == before, where
            continue

        if expected == "all":
            far = await world(make, "Дальний") if kind == "Mutation" else there
            assert is_there(
                await ask(client, question, actor, question.with_rows(far.rows)), question.name
            ), where
        else:
            for path, of in question.ids:
                if (question.name, path[-1]) not in MAY_NAME_ANYBODY:
                    other, never = [
                        await ask(client, question, actor, question.with_rows(here.rows, but=(path, row)))
                        for row in (there.rows[of], NOBODY[of])
                    ]
                    assert other == never, (where, path)
        answer = await ask(client, question, actor, question.with_rows(here.rows))
        if expected != "any":
            assert is_there(answer, question.name) == (expected in ("own", "all")), (where, answer)
        if expected != "all":
            assert outside not in answer.decode().lower().encode(), (where, answer)


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_watches_what_is_its_own_and_the_rest_is_not_there(
    client: Client, settings: Settings, make: Factory, role: str
) -> None:
    there = await world(make, "Тамошний")
    actor, here = await as_role(make, role, await world(make, "Здешний"))
    held = frozenset(item.value for item in actor.roles) if actor else frozenset({"ANONYMOUS"})
    schema = client.app.state.schema._schema

    async with running(settings) as [server], Socket.open(server, token(actor) if actor else None) as socket:
        await socket.acknowledged()
        numbers = iter(map(str, range(1000)))

        async def watch(question: Question, variables: Any) -> Any:
            number = next(numbers)
            await socket.subscribe(number, question.document, **variables)
            frame = await socket.next(number)
            await socket.complete(number)
            return frame["type"], frame["payload"]

        for question in questions(schema, held, ("Subscription",)):
            expected = reach(FIELDS[f"Subscription.{question.name}"], role)
            given = {**question.with_rows(here.rows), "after": None}
            kind, payload = await watch(question, given)
            if expected == "-":
                code = "UNAUTHENTICATED" if actor is None else "FORBIDDEN"
                assert (kind, payload[0]["extensions"]["code"]) == ("error", code), question.name
                continue
            assert kind == "next", (question.name, payload)
            [event] = payload["data"].values()
            assert event["kind"] == "SNAPSHOT"
            for path, of in question.ids:
                other, never = [
                    await watch(question, {**question.with_rows(here.rows, but=(path, row)), "after": None})
                    for row in (there.rows[of], NOBODY[of])
                ]
                assert (other == never) == (expected == "own"), (role, question.name, other, never)


def test_every_route_has_its_line(client: Client) -> None:
    found = set()
    for route in client.app.routes:
        assert isinstance(route, Route | WebSocketRoute | Mount), route
        methods = {"WEBSOCKET"} if isinstance(route, WebSocketRoute) else {"GET"}
        if isinstance(route, Route):
            methods = (route.methods or set()) - {"HEAD"}
        found |= {f"{method} {route.path}" for method in methods}

    assert found == set(ROUTES)


async def test_no_route_shows_more_to_anybody_than_its_line_says(client: Client, make: Factory) -> None:
    """Routes hold no row that an anonymous caller may not have; who they are changes nothing."""
    place = await world(make, "Здешний")
    actors = [(await as_role(make, role, place))[0] for role in ROLES]
    elsewhere = httpx.ASGITransport(app=client.app, client=("192.0.2.1", 1))  # which holds nothing open
    stranger = httpx.AsyncClient(transport=elsewhere, base_url="http://test")

    for line, expected in ROUTES.items():
        method, path = line.split()
        if method == "WEBSOCKET" or expected is None:
            continue
        for actor in actors:
            headers = {"authorization": f"Bearer {client.token(actor)}"} if actor else {}
            answer = await stranger.request(
                method, path.replace("{name}", "1-2-3").replace("{code}", "nobody"), headers=headers
            )
            assert answer.status_code == expected, (line, answer.status_code)
            assert "здешний" not in answer.text.lower(), line
