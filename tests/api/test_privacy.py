"""Canaries: made-up personal data goes through the server and comes out nowhere but in the answers."""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from ekoyka.database import CHANNEL, Database
from ekoyka.settings import Settings
from tests.client import gid
from tests.factories import Factory
from tests.feed import token
from tests.servers import Socket, ready, start

CANARIES = {
    "family": "Канарейкин",
    "given": "Соломон",
    "phone": "+79997654321",
    "address": "Тайный переулок 13",
    "document": "4509 123456",
    "diagnosis": "F19.77",
    "password": "canary password 1",
    "email": "canary@example.org",
}


async def test_no_personal_data_in_logs_metrics_or_notifications(
    database: Database, database_url: str, settings: Settings, make: Factory, tmp_path: Path
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
            await database.fetch(
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
