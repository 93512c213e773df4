"""A mutation sent again under its key: done once, answered alike, whichever process is asked and however often."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest
from graphql import GraphQLInputObjectType, get_named_type

from ekoyka.database import Database
from ekoyka.graph.model import TYPES
from ekoyka.identity.tables import Role
from ekoyka.settings import Settings
from tests.api.questions import NOBODY, questions, world
from tests.client import Client, gid
from tests.factories import Factory
from tests.feed import token
from tests.outpatient.clinic import noon
from tests.servers import Server, running

CHECK_IN = """mutation ($input: StayCheckInInput!) { stayCheckIn(input: $input) {
  __typename ... on Stay { id version patient { recordNumber } currentBed { label } }
  ... on Refusal { code path } } }"""
MADE = {
    "stay": "SELECT count(*) FROM stay",
    "assignment": "SELECT count(*) FROM bed_assignment",
    "entry in the access log": "SELECT count(*) FROM access_entry WHERE action = 'stay_check_in'",
    "event": "SELECT count(*) FROM feed_event",
    "key": "SELECT count(*) FROM idempotency_key",
}


async def send_all(
    servers: list[Server], access: str, inputs: list[dict[str, Any]]
) -> list[tuple[int, dict[str, Any]]]:
    """All at once, to one server after the other: status and result of each."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, timeout=60) as http:
        answers = await asyncio.gather(
            *(
                http.post(
                    f"{servers[number % len(servers)].url}/graphql",
                    json={"query": CHECK_IN, "variables": {"input": input}},
                    headers={"authorization": f"Bearer {access}"},
                )
                for number, input in enumerate(inputs)
            )
        )
    return [(answer.status_code, answer.json()["data"]["stayCheckIn"]) for answer in answers]


async def test_of_a_hundred_sends_at_once_to_two_processes_one_is_done_and_all_get_its_answer(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    beds = [await make.bed(place) for _ in range(2)]
    patient = await make.patient(place)
    once = {"patientId": gid("Patient", patient), "bedId": gid("Bed", beds[0]), "idempotencyKey": "раз"}
    async with running(settings, 2) as servers:
        answers = await send_all(servers, token(doctor), [once] * 100)
        other = await send_all(servers, token(doctor), [{**once, "bedId": gid("Bed", beds[1])}] * 4)

    kinds = Counter(orjson.dumps(answer) for answer in answers)
    assert list(kinds.values()) == [100]
    status, stay = answers[0]
    assert (status, stay["__typename"], stay["version"]) == (200, "Stay", 1)
    assert {name: await database.fetch_value(sql) for name, sql in MADE.items()} == dict.fromkeys(MADE, 1)
    assert [answer for _, answer in other] == [
        {"__typename": "IdempotencyKeyReused", "code": "IDEMPOTENCY_KEY_REUSED", "path": ["idempotencyKey"]}
    ] * 4


async def test_of_two_bodies_under_one_key_sent_at_once_one_is_done_and_the_other_refused(
    database: Database, settings: Settings, make: Factory
) -> None:
    place = await make.dispensary()
    doctor = await make.actor(doctor_of=(place,))
    patient = await make.patient(place)
    bodies = [
        {
            "patientId": gid("Patient", patient),
            "bedId": gid("Bed", await make.bed(place)),
            "idempotencyKey": "k",
        }
        for _ in range(2)
    ]
    async with running(settings, 2) as servers:
        # By pairs, so that each server is sent both.
        answers = await send_all(servers, token(doctor), [body for body in bodies for _ in range(2)] * 15)

    kinds = Counter(answer["__typename"] for _, answer in answers)
    assert kinds == {"Stay": 30, "IdempotencyKeyReused": 30}
    assert len({answer["id"] for _, answer in answers if "id" in answer}) == 1
    assert {name: await database.fetch_value(sql) for name, sql in MADE.items()} == dict.fromkeys(MADE, 1)


async def test_every_mutation_with_a_key_is_done_once_and_answered_twice(
    client: Client, make: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated from the schema: what cannot be done with the usual values has others here."""

    async def forget(*_: object) -> None:
        """The one answer's entry in the access log would be seen in the other."""

    monkeypatch.setattr(client.services.readings, "note", forget)
    here = await world(make, "Здешний")
    admin = await make.actor(superadmin=True)
    schema = client.app.state.schema._schema
    elsewhere, outsider = await make.dispensary(), await make.patient(here.dispensary)
    ended = datetime.now(UTC) - timedelta(days=1)
    past = await make.stay(await make.patient(elsewhere), await make.bed(elsewhere), until=ended)
    hence = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    meant: dict[str, dict[str, Any]] = {
        "stayCheckIn": {
            "patientId": gid("Patient", outsider),
            "bedId": gid("Bed", await make.bed(here.dispensary)),
            "attendingDoctorId": None,
            "reservationId": None,
        },
        "bedReserve": {"until": hence},
        "certificateIssue": {"stayId": gid("Stay", past)},
        "patientRegister": {"codeName": "Ключ"},
        "timetableSet": {"visitMinutes": 30, "hours": [], "validFrom": None, "validUntil": None},
        "timeOffAdd": {"startsAt": noon().isoformat(), "endsAt": noon(60).isoformat()},
        "extraHoursAdd": {"startsAt": noon().isoformat(), "endsAt": noon(60).isoformat(), "visitMinutes": 30},
        "waitingListJoin": {"appointmentId": None},
    }

    async def send(question: Any, input: dict[str, Any]) -> Any:
        data = await client.data(question.document, admin, input=input)
        return data[question.name]

    seen = set()
    for question in questions(schema, frozenset({Role.SUPERADMIN.value, Role.USER.value}), ("Mutation",)):
        input_type = get_named_type(schema.mutation_type.fields[question.name].args["input"].type)
        assert isinstance(input_type, GraphQLInputObjectType)
        if "idempotencyKey" not in input_type.fields:
            continue
        seen.add(question.name)
        given = {
            **question.with_rows(here.rows)["input"],
            **meant.get(question.name, {}),
            "idempotencyKey": "k",
        }

        first = await send(question, given)
        kind = first["__typename"]
        assert TYPES[kind].node, (question.name, first)
        counting = f"SELECT count(*) FROM {TYPES[kind].source}"
        rows = await make.database.fetch_value(counting)
        again = await send(question, given)
        others = {
            **given,
            **{path[-1]: NOBODY[kind] for path, kind in question.ids[:1]},
            **({"name": "Другой"} if "name" in given else {}),
        }
        refused = await send(question, others)
        anew = await make.database.fetch_value(counting)

        # A file's address is good for some minutes from when it is asked for.
        addresses = {"downloadUrl": "", "calendarUrl": ""}
        assert {**again, **addresses} == {**first, **addresses}, question.name
        assert anew == rows, question.name
        assert refused["__typename"] == "IdempotencyKeyReused", (question.name, refused)

    assert seen >= {"stayCheckIn", "bedReserve", "certificateIssue", "patientRegister", "dispensaryCreate"}
