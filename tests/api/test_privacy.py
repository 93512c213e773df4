"""Canaries: made-up personal data goes through the server and comes out nowhere but in the answers."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from ekoyka.database import CHANNEL, Database
from ekoyka.settings import Settings
from tests.api.questions import questions, world
from tests.api.test_browser_sockets import asked, opened, signed_in
from tests.client import Client, gid
from tests.factories import Factory
from tests.feed import token
from tests.identity.test_sessions import person
from tests.servers import Socket, ready, start

CANARIES = {
    "family": "Канарейкин",
    "given": "Соломон",
    "phone": "+79997654321",
    "address": "Тайный переулок 13",
    "document": "4509 123456",
    "diagnosis": "F19.77",
    "password": "a bird in 1 cage",
    "email": "canary@example.org",
}


async def test_no_personal_data_in_logs_metrics_or_notifications(
    database: Database, owned: Database, database_url: str, settings: Settings, make: Factory, tmp_path: Path
) -> None:
    place = await make.dispensary()
    bed, doctor = await make.bed(place), await make.actor(doctor_of=(place,))
    access = token(doctor)
    heard: list[str] = []
    listener = await asyncpg.connect(database_url)
    await listener.add_listener(CHANNEL, lambda *call: heard.append(str(call[3])))
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_LOG_LEVEL="DEBUG")
    try:
        await asyncio.wait_for(ready(server), 60)
        async with httpx.AsyncClient(base_url=server.url) as http, Socket.open(server, access) as watcher:

            async def ask(query: str, **variables: Any) -> dict[str, Any]:
                answer = await http.post(
                    "/graphql",
                    json={"query": query, "variables": variables},
                    headers={"authorization": f"Bearer {access}"},
                )
                found: dict[str, Any] = answer.json()
                return found

            await watcher.acknowledged()
            await watcher.subscribe(
                "1",
                "subscription ($id: ID!) { bedAvailability(dispensaryId: $id) { kind changes { bed { currentAssignment "
                "{ stay { patient { familyName } } } } } } }",
                id=gid("Dispensary", place),
            )
            await watcher.event("1")
            for password in (CANARIES["password"], "wrong " + CANARIES["password"]):
                await ask(
                    "mutation ($e: String!, $p: String!) { signIn(input: {email: $e, password: $p}) { __typename } "
                    'register(input: {email: $e, password: $p, name: "x"}) { __typename } }',
                    e=CANARIES["email"],
                    p=password,
                )
                await http.post(
                    "/auth/token",
                    data={"grant_type": "password", "username": CANARIES["email"], "password": password},
                )
            details = {
                "dispensaryId": gid("Dispensary", place),
                "recordNumber": "1",
                "sex": "MALE",
                "familyName": CANARIES["family"],
                "givenName": CANARIES["given"],
                "phone": CANARIES["phone"],
                "address": CANARIES["address"],
                "identityDocument": CANARIES["document"],
            }
            register = (
                "mutation ($i: PatientRegisterInput!) { patientRegister(input: $i) "
                "{ ... on Patient { id } ... on Refusal { code } } }"
            )
            made = await ask(register, i=details)
            await ask(register, i=details)
            await ask(register, i={**details, "recordNumber": "2", "phone": f"{CANARIES['phone']} nonsense"})
            await ask(
                f'{{ patients(where: {{search: "{CANARIES["family"]}", nonsense: 1}}) {{ totalCount }} }}'
            )
            await ask(f'{{ patients(where: {{search: "{CANARIES["family"]}"}}) {{ totalCount }}')
            admitted = await ask(
                "mutation ($p: ID!, $b: ID!, $d: String!) { stayCheckIn(input: {patientId: $p, bedId: $b, "
                "diagnosisCode: $d}) { ... on Stay { id diagnosisCode } } }",
                p=made["data"]["patientRegister"]["id"],
                b=gid("Bed", bed),
                d=CANARIES["diagnosis"],
            )
            [event] = await watcher.told("1", 1)
            # A statement that fails in PostgreSQL, with the canaries among its values.
            await owned.fetch(
                "ALTER TABLE patient ADD CONSTRAINT canary CHECK (family_name <> given_name || 'x')"
            )
            await ask(register, i={**details, "recordNumber": "3", "familyName": CANARIES["given"] + "x"})
            metrics = (await http.get("/metrics")).text
    finally:
        await server.stop()
        await listener.close()

    assert admitted["data"]["stayCheckIn"]["diagnosisCode"] == CANARIES["diagnosis"]
    assert event["bed"]["currentAssignment"]["stay"]["patient"]["familyName"] == CANARIES["family"]
    assert heard == [f"beds:{place.id} 1"]
    said = log.read_text()
    assert "operation_failed" in said
    for where, text in (("the log", said), ("the metrics", metrics)):
        for kind, canary in {**CANARIES, "token": access}.items():
            assert canary not in text, f"a {kind} in {where}"


async def test_what_is_sent_through_every_operation_well_or_badly_comes_back_in_no_error_and_no_log(
    client: Client, database_url: str, settings: Settings, make: Factory, tmp_path: Path
) -> None:
    """Over HTTP and the socket: as it should be, in the document's text, as the wrong type, amid broken syntax."""
    place = await world(make, "Здешний")
    boss, doctor = await make.actor(superadmin=True), await make.actor(doctor_of=(place.dispensary,))
    canary = " ".join(CANARIES.values())
    held = frozenset({"SUPERADMIN", "USER"})
    asked = [*questions(client.app.state.schema._schema, held, ("Query", "Mutation", "Subscription"))]
    heard: list[str] = []
    listener = await asyncpg.connect(database_url)
    await listener.add_listener(CHANNEL, lambda *call: heard.append(str(call[3])))
    errors: list[str] = []
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_LOG_LEVEL="DEBUG")
    try:
        await asyncio.wait_for(ready(server), 60)
        async with httpx.AsyncClient(base_url=server.url) as http:
            for actor in (boss, doctor):
                access = token(actor)
                async with Socket.open(server, access) as socket:
                    await socket.acknowledged()
                    for number, question in enumerate(asked):
                        given = question.with_rows(place.rows)
                        bodies = [
                            {"query": question.document, "variables": with_text(given, canary)},
                            {
                                "query": question.document,
                                "variables": with_text(given, canary, everywhere=True),
                            },
                            {"query": f'{{ {question.name}(nonsense: "{canary}") {{ x }} }}'},
                            {"query": f'{{ {question.name} "{canary}" '},
                            {"query": question.document, "operationName": canary, "variables": given},
                        ]
                        if question.name == "signOutEverywhere":
                            bodies = bodies[1:4]  # otherwise it would end this very socket
                        for form, body in enumerate(bodies):
                            answer = (
                                await http.post(
                                    "/graphql", json=body, headers={"authorization": f"Bearer {access}"}
                                )
                            ).json()
                            errors.append(str(answer.get("errors")))
                            if "signIn" not in question.name:
                                frame = await socket.ask(f"{number}-{form}", body)
                                told = frame["payload"]
                                errors.append(str(told.get("errors") if isinstance(told, dict) else told))
            metrics = (await http.get("/metrics")).text
    finally:
        await server.stop()
        await listener.close()

    assert len(errors) > 1000
    for where, text in (
        ("the errors", "\n".join(errors)),
        ("the log", log.read_text()),
        ("the metrics", metrics),
        ("the notifications", "\n".join(heard)),
    ):
        for kind, value in {**CANARIES, "token": access}.items():
            assert value not in text, f"a {kind} in {where}"


def with_text(value: Any, text: str, *, everywhere: bool = False) -> Any:
    """The value with this text for all of its texts that are no ids; or everywhere, whatever is meant to be there."""
    if isinstance(value, dict):
        return {
            key: item
            if isinstance(item, str) and (key == "id" or key.endswith("Id")) and not everywhere
            else with_text(item, text, everywhere=everywhere)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [with_text(item, text, everywhere=everywhere) for item in value]
    return text if everywhere or isinstance(value, str) else value


async def test_what_is_sent_stands_in_no_text_of_a_statement(
    client: Client, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values are bound: a statement's text may be logged by PostgreSQL, or seen by whoever watches it at work."""
    place, boss = await world(make, "Здешний"), await make.actor(superadmin=True)
    canary = " ".join(CANARIES.values())
    sent: list[str] = []
    for name in ("_execute", "execute"):
        real = getattr(asyncpg.Connection, name)

        async def told(self: Any, query: str, *more: Any, _real: Any = real, **named: Any) -> Any:
            sent.append(query)
            return await _real(self, query, *more, **named)

        monkeypatch.setattr(asyncpg.Connection, name, told)

    for question in questions(
        client.app.state.schema._schema, frozenset({"SUPERADMIN", "USER"}), ("Query", "Mutation")
    ):
        await client.post(question.document, boss, **with_text(question.with_rows(place.rows), canary))
    await client.post(f'{{ patients(where: {{search: "{CANARIES["family"]}"}}) {{ totalCount }} }}', boss)

    assert len(sent) > 60
    for kind, value in CANARIES.items():
        assert not [text for text in sent if value in text], kind


async def test_what_browsers_carry_and_what_providers_send_stands_in_no_log_and_no_metric(
    settings: Settings, make: Factory, tmp_path: Path
) -> None:
    account = await person(make)
    provider = {"EKOYKA_OIDC_ISSUER": "http://127.0.0.1:1", "EKOYKA_OIDC_CLIENT_ID": "canary-client-id"}
    log = tmp_path / "server.log"
    server = await start(settings, log=log, EKOYKA_LOG_LEVEL="DEBUG", **provider)
    try:
        await asyncio.wait_for(ready(server), 60)
        cookies = await signed_in(server, account)
        beside = {"X-CSRF-Token": cookies["ekoyka_csrf"]}
        async with httpx.AsyncClient(base_url=server.url) as http:

            async def ask(query: str, kept: dict[str, str], **headers: str) -> httpx.Response:
                cookie = "; ".join(f"{name}={value}" for name, value in kept.items())
                return await http.post(
                    "/graphql", json={"query": query}, headers={"cookie": cookie, **headers}
                )

            refresh = "mutation { tokenRefresh(input: {}) { __typename } }"
            answers = [
                await ask("{ me { id } }", cookies, **beside),
                await ask("{ me { id } }", cookies, **{"x-csrf-token": "canary-csrf-token"}),
                await ask("{ me { id } }", cookies, origin="https://canary.example", **beside),
                await ask("{ me { id } }", {**cookies, "ekoyka_access": "canary.access.token"}, **beside),
                await ask(refresh, cookies, **beside),
                await ask(refresh, cookies, **beside),
                await http.get(
                    "/auth/oidc/callback?code=canary-code&state=canary-state", headers={"cookie": "a=b"}
                ),
                await http.get("/auth/oidc/login"),
                await http.get("/graphql", headers={"accept": "text/html", "cookie": "ekoyka_access=canary"}),
            ]
            async with opened(server, cookies, server.url, {"X-CSRF-Token": "canary-csrf-token"}) as socket:
                assert await asked(socket, "{ me { id } }") == 4401
            metrics = (await http.get("/metrics")).text
    finally:
        await server.stop()

    assert [answer.status_code for answer in answers] == [200, 403, 403, 200, 200, 200, 400, 503, 200]
    said = log.read_text()
    assert "refresh_token_reused" in said
    assert "oidc_refused" in said
    for canary in (*cookies.values(), "canary", account.email):
        assert canary not in said
        assert canary not in metrics
